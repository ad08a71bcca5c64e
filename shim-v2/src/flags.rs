//! The command line containerd calls the shim with, in the syntax of Go's `flag`
//! package: `-name value`, `-name=value`, one dash or two.

use std::path::PathBuf;

use thiserror::Error;

use crate::ids::{self, InvalidId};

/// What the shim is asked to do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// `start`: make sure the pod's shim runs, answer its address.
    Start,
    /// `delete`: clean up after a shim that may have crashed.
    Delete,
    /// No sub-command: be the pod's resident server.
    Serve,
    /// `-v`: print the version.
    Version,
    /// `-info`: describe the runtime.
    Info,
}

/// The parsed command line.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Flags {
    /// What to do.
    pub action: Action,
    /// containerd namespace of the container.
    pub namespace: String,
    /// Container id; for a pod, that of its sandbox container.
    pub id: String,
    /// containerd's gRPC address; part of the socket's name, so that two daemons never collide.
    pub address: String,
    /// The program through which events are published when `TTRPC_ADDRESS` is not set.
    pub publish_binary: String,
    /// The bundle, given for `delete`; otherwise it is the working directory.
    pub bundle: Option<PathBuf>,
    /// Log at debug level.
    pub debug: bool,
}

/// Why a command line is refused.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum FlagError {
    /// A flag this shim does not know.
    #[error("unknown flag `-{0}`")]
    Unknown(String),
    /// A flag without its value.
    #[error("flag `-{0}` needs a value")]
    NoValue(String),
    /// Neither `true` nor `false`.
    #[error("flag `-{0}` is `{1}`, must be true or false")]
    NotBoolean(String, String),
    /// A sub-command this shim does not know.
    #[error("unknown command `{0}`, must be `start`, `delete` or none")]
    UnknownCommand(String),
    /// An id or namespace that could not be a file name.
    #[error("flag `-{0}`: {1}")]
    Id(&'static str, InvalidId),
}

impl Flags {
    /// Parses the arguments that follow the program's name.
    ///
    /// # Errors
    /// The first argument that cannot be understood, by name.
    pub fn parse(args: impl IntoIterator<Item = String>) -> Result<Self, FlagError> {
        let mut flags = Self {
            action: Action::Serve,
            namespace: String::new(),
            id: String::new(),
            address: String::new(),
            publish_binary: String::new(),
            bundle: None,
            debug: false,
        };
        let (mut version, mut info) = (false, false);
        let mut args = args.into_iter();
        while let Some(arg) = args.next() {
            let Some((name, value)) = split(&arg) else {
                flags.action = command(&arg)?;
                break;
            };
            let mut text = || {
                let value = value.map(str::to_owned).or_else(|| args.next());
                value.ok_or_else(|| FlagError::NoValue(name.to_owned()))
            };
            match name {
                "namespace" => flags.namespace = text()?,
                "id" => flags.id = text()?,
                "address" => flags.address = text()?,
                "bundle" => flags.bundle = Some(text()?.into()),
                "publish-binary" => flags.publish_binary = text()?,
                // Of no use here: the socket is an inherited descriptor.
                "socket" => drop(text()?),
                "debug" => flags.debug = boolean(name, value)?,
                "v" | "version" => version = boolean(name, value)?,
                "info" => info = boolean(name, value)?,
                _ => return Err(FlagError::Unknown(name.to_owned())),
            }
        }
        if version || info {
            flags.action = if version {
                Action::Version
            } else {
                Action::Info
            };
            return Ok(flags);
        }
        ids::check(&flags.namespace).map_err(|error| FlagError::Id("namespace", error))?;
        ids::check(&flags.id).map_err(|error| FlagError::Id("id", error))?;
        Ok(flags)
    }
}

/// Splits `-name=value`; `None` when the argument is not a flag.
fn split(arg: &str) -> Option<(&str, Option<&str>)> {
    let name = arg.strip_prefix('-')?;
    let name = name.strip_prefix('-').unwrap_or(name);
    if name.is_empty() {
        return None;
    }
    Some(match name.split_once('=') {
        Some((name, value)) => (name, Some(value)),
        None => (name, None),
    })
}

fn command(arg: &str) -> Result<Action, FlagError> {
    match arg {
        "start" => Ok(Action::Start),
        "delete" => Ok(Action::Delete),
        _ => Err(FlagError::UnknownCommand(arg.to_owned())),
    }
}

/// A boolean flag takes a value only with `=`.
fn boolean(name: &str, value: Option<&str>) -> Result<bool, FlagError> {
    match value {
        None | Some("true" | "1" | "t" | "T" | "TRUE" | "True") => Ok(true),
        Some("false" | "0" | "f" | "F" | "FALSE" | "False") => Ok(false),
        Some(other) => Err(FlagError::NotBoolean(name.to_owned(), other.to_owned())),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(line: &str) -> Result<Flags, FlagError> {
        Flags::parse(line.split_whitespace().map(str::to_owned))
    }

    #[test]
    fn containerd_start_line_is_understood_with_one_dash_and_with_two() {
        let one = parse(
            "-namespace k8s.io -address /run/c.sock -publish-binary /usr/bin/containerd -id c1 -debug start",
        );
        let two = parse(
            "--namespace=k8s.io --address=/run/c.sock --publish-binary=/usr/bin/containerd --id c1 --debug=true start",
        );
        assert_eq!(one, two);
        let flags = one.unwrap();
        assert_eq!(flags.action, Action::Start);
        assert_eq!(
            (flags.namespace.as_str(), flags.id.as_str()),
            ("k8s.io", "c1")
        );
        assert!(flags.debug);
    }

    #[test]
    fn empty_address_and_publisher_are_accepted() {
        let line = ["-namespace", "n", "-address", "", "-publish-binary", ""];
        let line = line.into_iter().chain(["-id", "c1", "start"]);
        let flags = Flags::parse(line.map(str::to_owned)).unwrap();
        assert_eq!((flags.address, flags.publish_binary), Default::default());
    }

    #[test]
    fn delete_carries_the_bundle() {
        let flags = parse("-namespace n -address a -id c1 -bundle /b delete").unwrap();
        assert_eq!(flags.action, Action::Delete);
        assert_eq!(flags.bundle, Some("/b".into()));
    }

    #[test]
    fn version_and_info_need_nothing_else() {
        assert_eq!(parse("-v").unwrap().action, Action::Version);
        assert_eq!(parse("-info").unwrap().action, Action::Info);
        assert_eq!(
            parse("-namespace n -id c -info start").unwrap().action,
            Action::Info
        );
    }

    #[test]
    fn no_command_serves() {
        assert_eq!(parse("-namespace n -id c").unwrap().action, Action::Serve);
    }

    #[test]
    fn mistakes_are_named() {
        assert_eq!(
            parse("-wat x start").unwrap_err(),
            FlagError::Unknown("wat".into())
        );
        assert_eq!(parse("-id").unwrap_err(), FlagError::NoValue("id".into()));
        assert_eq!(
            parse("-namespace n -id c destroy").unwrap_err(),
            FlagError::UnknownCommand("destroy".into())
        );
        assert!(matches!(
            parse("-namespace n -id ../x start"),
            Err(FlagError::Id("id", _))
        ));
        assert!(matches!(
            parse("-id c start"),
            Err(FlagError::Id("namespace", _))
        ));
        assert!(matches!(
            parse("-debug=maybe start"),
            Err(FlagError::NotBoolean(..))
        ));
    }
}
