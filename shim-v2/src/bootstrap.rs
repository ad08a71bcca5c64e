//! Stop 2 of twelve: `start`. Finds the pod's shim or makes one, and answers its
//! address.
//!
//! The socket is bound here and handed to the resident server as its standard
//! input, so there is nothing to wait for: containerd may connect at once, and
//! its first call is served as soon as the server runs. Standard output carries
//! the answer and nothing else; old daemons read standard error with it, so that
//! stays empty unless `start` fails.

use std::fs;
use std::io::{self, IsTerminal, Read};
use std::os::fd::OwnedFd;
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use log::LevelFilter;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::caller::Caller;
use crate::container::oci::{PodRole, Spec};
use crate::flags::Flags;

/// Where sockets go unless the caller names another directory.
const SOCKET_DIR: &str = "/run/containerd/s";
/// Most bytes read from standard input.
const MAX_STDIN: u64 = 4 << 20;

/// Why `start` fails. Printed on standard error, which containerd shows.
#[derive(Debug, Error)]
pub enum BootstrapError {
    /// The working directory, which is the bundle, cannot be told.
    #[error("the working directory, which should be the bundle, cannot be told")]
    Bundle(#[source] io::Error),
    /// A container of a pod whose shim does not answer.
    #[error(
        "container {id} belongs to sandbox {sandbox}, whose shim does not answer at {socket}: remove the pod and create it again"
    )]
    NoSandbox {
        /// The container.
        id: String,
        /// Its sandbox.
        sandbox: String,
        /// Where the sandbox's shim should listen.
        socket: PathBuf,
        /// What connecting gave.
        source: io::Error,
    },
    /// The socket cannot be made.
    #[error("socket {socket} cannot be made")]
    Socket {
        /// Its path.
        socket: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The bundle's `address` file cannot be written.
    #[error("{path} cannot be written")]
    Address {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The server cannot be executed.
    #[error("the shim's server cannot be started from {exe}")]
    Server {
        /// This program.
        exe: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Runs `start` and returns the answer for standard output.
///
/// # Errors
/// See [`BootstrapError`]; nothing is left behind then.
pub fn start(flags: &Flags) -> Result<String, BootstrapError> {
    let bundle = std::env::current_dir().map_err(BootstrapError::Bundle)?;
    let caller = Caller::recognise(&read_stdin(), flags);
    let debug = flags.debug || caller.wants_debug();
    let level = if debug {
        LevelFilter::Debug
    } else {
        LevelFilter::Info
    };
    crate::log::init(&bundle, &flags.id, level);
    crate::log::timeline("shim_start");
    if caller == Caller::Unknown {
        log::warn!("standard input of `start` is in no known form and is ignored");
    }
    let sandbox = sandbox_of(&bundle, &flags.id);
    let dir = caller.socket_dir().unwrap_or(SOCKET_DIR);
    let socket = socket_path(Path::new(dir), flags, &sandbox);
    let address = format!("unix://{}", socket.display());
    if sandbox != flags.id {
        UnixStream::connect(&socket).map_err(|source| BootstrapError::NoSandbox {
            id: flags.id.clone(),
            sandbox,
            socket,
            source,
        })?;
    } else if let Some(listener) = listen(&socket)? {
        write_address(&bundle, &address)?;
        spawn_server(flags, debug, &caller, listener).inspect_err(|_| {
            drop(fs::remove_file(&socket));
        })?;
    }
    write_address(&bundle, &address)?;
    Ok(caller.answer(&address))
}

/// Standard input to its end; a terminal (by hand) counts as empty.
fn read_stdin() -> Vec<u8> {
    let mut bytes = Vec::new();
    let stdin = io::stdin();
    if !stdin.is_terminal()
        && let Err(error) = stdin.lock().take(MAX_STDIN).read_to_end(&mut bytes)
    {
        log::warn!("standard input of `start` cannot be read: {error}");
    }
    bytes
}

/// The id of the sandbox a container belongs to: its own unless the bundle's
/// annotations say otherwise. A bundle that cannot be read is left for Create to
/// refuse, which has a better way to tell.
fn sandbox_of(bundle: &Path, id: &str) -> String {
    match Spec::load(bundle).map(|spec| spec.pod_role()) {
        Ok(PodRole::Member { sandbox }) => sandbox,
        Ok(PodRole::Alone | PodRole::Sandbox) | Err(_) => id.to_owned(),
    }
}

/// The socket's path: short (a socket address holds 108 bytes) and different for
/// every daemon, namespace and sandbox.
fn socket_path(dir: &Path, flags: &Flags, sandbox: &str) -> PathBuf {
    let name = format!("{}/{}/{}", flags.address, flags.namespace, sandbox);
    let hash = Sha256::digest(name.as_bytes());
    let hex: String = hash.iter().map(|byte| format!("{byte:02x}")).collect();
    dir.join(hex)
}

/// Binds the socket; `None` when a living shim listens there already. A socket
/// that a dead shim left is replaced.
fn listen(socket: &Path) -> Result<Option<UnixListener>, BootstrapError> {
    let failed = |source| BootstrapError::Socket {
        socket: socket.to_owned(),
        source,
    };
    if let Some(dir) = socket.parent() {
        let mut builder = fs::DirBuilder::new();
        builder
            .recursive(true)
            .mode(0o711)
            .create(dir)
            .map_err(failed)?;
    }
    match UnixListener::bind(socket) {
        Ok(listener) => Ok(Some(listener)),
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            if UnixStream::connect(socket).is_ok() {
                return Ok(None);
            }
            fs::remove_file(socket).map_err(failed)?;
            UnixListener::bind(socket).map(Some).map_err(failed)
        }
        Err(error) => Err(failed(error)),
    }
}

/// Leaves the address in the bundle: containerd 1.x finds a running task again by
/// this file after a restart.
fn write_address(bundle: &Path, address: &str) -> Result<(), BootstrapError> {
    let path = bundle.join("address");
    fs::write(&path, address).map_err(|source| BootstrapError::Address { path, source })
}

/// Starts the resident server on the bound socket. It takes over neither standard
/// output nor standard error: containerd waits for their end.
fn spawn_server(
    flags: &Flags,
    debug: bool,
    caller: &Caller,
    listener: UnixListener,
) -> Result<(), BootstrapError> {
    let exe = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    let mut command = Command::new(&exe);
    command
        .args(["-namespace", &flags.namespace, "-id", &flags.id])
        .args(["-address", &flags.address])
        .args(debug.then_some("-debug"))
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(Stdio::null())
        .stderr(Stdio::null());
    if let Some(address) = caller.ttrpc_address() {
        command.env("TTRPC_ADDRESS", address);
    }
    match command.spawn() {
        Ok(_) => Ok(()),
        Err(source) => Err(BootstrapError::Server { exe, source }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sockets_of_two_daemons_namespaces_or_sandboxes_differ_and_are_short() {
        let flags = |address: &str, namespace: &str| {
            let args = ["-namespace", namespace, "-address", address, "-id", "c"];
            Flags::parse(args.map(str::to_owned)).unwrap()
        };
        let path = |a, n, s| socket_path(Path::new(SOCKET_DIR), &flags(a, n), s);
        let paths = [
            path("a", "n", "s"),
            path("b", "n", "s"),
            path("a", "m", "s"),
            path("a", "n", "t"),
        ];
        for (i, one) in paths.iter().enumerate() {
            assert!(one.as_os_str().len() < 108);
            assert!(!paths[..i].contains(one));
        }
        assert_eq!(paths[0], path("a", "n", "s"));
    }

    #[test]
    fn a_dead_socket_is_replaced_and_a_living_one_respected() {
        let dir = std::env::temp_dir().join(format!("husk-listen-{}", std::process::id()));
        let socket = dir.join("s");
        let first = listen(&socket).unwrap();
        assert!(first.is_some());
        assert!(
            listen(&socket).unwrap().is_none(),
            "a living shim was not noticed"
        );
        drop(first);
        assert!(
            listen(&socket).unwrap().is_some(),
            "a dead socket was not replaced"
        );
        fs::remove_dir_all(&dir).unwrap();
    }
}
