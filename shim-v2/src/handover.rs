//! Pods that ask for namespaces of the host, which no virtual machine has: run by runc's shim
//! where `host_namespaces` says so.
//!
//! runc's shim is executed in this program's place, with the same command line and standard
//! input; containerd speaks with it from then on. A file in the bundle says so to the calls
//! that come later, and goes with the bundle: the `start` of the pod's other containers looks
//! for that of the pod's first, whose bundle lies beside theirs.

use std::fs::File;
use std::io::{self, Seek, Write};
use std::os::unix::process::CommandExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use rustix::fs::{MemfdFlags, memfd_create};
use thiserror::Error;

use crate::caller::Caller;
use crate::config::{self, Config, ConfigError, HostNamespaces};
use crate::container::oci::Spec;
use crate::container::pod::PodRole;

/// Found like any program, by `PATH`.
const RUNC_SHIM: &str = "containerd-shim-runc-v2";
/// Says that a bundle is runc's.
const RECORD: &str = "handed-over-to-runc";
/// The options that runc's shim understands, by the end of their type's name.
pub const RUNC_OPTIONS: &str = "runc.v1.Options";

/// Why a pod is not handed over.
#[derive(Debug, Error)]
pub enum HandoverError {
    /// The configuration, which tells whether it should be.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The handler's options are not runc's.
    #[error(
        "the container asks for namespaces of the host and would be handed over to runc, which does not know options of type {0}: remove the options from the handler"
    )]
    Options(String),
    /// The record cannot be written.
    #[error("{path} cannot be written")]
    Record {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Standard input cannot be passed on.
    #[error("standard input cannot be passed on to {RUNC_SHIM}")]
    Stdin(#[source] io::Error),
    /// There is no such program.
    #[error(
        "{RUNC_SHIM} cannot be executed: install it, or set `host_namespaces` to \"refuse\" in {}",
        config::PATH
    )]
    Exec(#[source] io::Error),
}

/// Whether `start` is to be runc's: for a pod that shares namespaces with the host, and for
/// the further containers of one that was handed over.
///
/// # Errors
/// [`HandoverError::Config`] if nobody can tell.
pub fn is_runcs(spec: &Spec, bundle: &Path) -> Result<bool, ConfigError> {
    if let PodRole::Member { sandbox } = spec.pod_role() {
        return Ok(bundle
            .parent()
            .is_some_and(|dir| has_record(&dir.join(sandbox))));
    }
    if spec.host_namespaces().is_empty() {
        return Ok(false);
    }
    let config = Config::load(Path::new(config::PATH))?;
    Ok(config.host_namespaces == HostNamespaces::Runc)
}

/// Whether the container of `bundle` was handed over.
pub fn has_record(bundle: &Path) -> bool {
    bundle.join(RECORD).exists()
}

/// Becomes runc's shim for a `start`. Returns only if it cannot.
pub fn start(bundle: &Path, caller: &Caller, stdin: &[u8]) -> HandoverError {
    if let Some(foreign) = foreign_options(caller, stdin) {
        return HandoverError::Options(foreign);
    }
    let path = bundle.join(RECORD);
    if let Err(source) = std::fs::write(&path, "") {
        return HandoverError::Record { path, source };
    }
    log::info!("asks for namespaces of the host: handed over to {RUNC_SHIM}");
    let error = become_runcs(stdin);
    drop(std::fs::remove_file(path));
    error
}

/// Becomes runc's shim with the command line of this program. Returns only if it cannot.
pub fn become_runcs(stdin: &[u8]) -> HandoverError {
    let stdin = match file_of(stdin) {
        Ok(file) => file,
        Err(error) => return HandoverError::Stdin(error),
    };
    let mut command = Command::new(RUNC_SHIM);
    command
        .args(std::env::args_os().skip(1))
        .stdin(Stdio::from(stdin));
    HandoverError::Exec(command.exec())
}

/// A file in memory with that content, to be read from its beginning.
fn file_of(content: &[u8]) -> io::Result<File> {
    let mut file = File::from(memfd_create("stdin", MemfdFlags::CLOEXEC)?);
    file.write_all(content)?;
    file.rewind()?;
    Ok(file)
}

/// The type of the handler's options, if runc's shim would not understand them.
fn foreign_options(caller: &Caller, stdin: &[u8]) -> Option<String> {
    let options = caller.options(stdin);
    let mut types = options.into_iter().map(|any| any.type_url);
    types.find(|name| name.ends_with("Options") && !name.ends_with(RUNC_OPTIONS))
}

#[cfg(test)]
mod tests {
    use super::*;
    use containerd_shim_protos::bootstrap_api::{BootstrapParams, Extension};
    use protobuf::Message;
    use protobuf::well_known_types::any::Any;

    #[test]
    fn only_runcs_options_are_handed_over() {
        let any = |name: &str| Any {
            type_url: name.into(),
            ..Any::default()
        };
        let legacy = |name: &str| {
            let stdin = any(name).write_to_bytes().unwrap();
            foreign_options(&Caller::Legacy, &stdin)
        };
        assert_eq!(foreign_options(&Caller::Legacy, b""), None);
        assert_eq!(legacy("containerd.runc.v1.Options"), None);
        let foreign = "runtimeoptions.v1.Options";
        assert_eq!(legacy(foreign).as_deref(), Some(foreign));
        let params = BootstrapParams {
            extensions: vec![Extension {
                value: Some(any(foreign)).into(),
                ..Extension::default()
            }],
            ..BootstrapParams::default()
        };
        let caller = Caller::Bootstrap(Box::new(params));
        assert_eq!(foreign_options(&caller, b"").as_deref(), Some(foreign));
    }

    #[test]
    fn standard_input_is_passed_on_as_it_was() {
        let output = Command::new("cat")
            .stdin(Stdio::from(file_of(b"\x00\xffoptions").unwrap()))
            .output();
        assert_eq!(output.unwrap().stdout, b"\x00\xffoptions");
    }
}
