//! Stop 2 of twelve: `start`. Finds the pod's shim or makes one, and answers its
//! address.
//!
//! The socket is bound and put on record here, and handed to the resident server as
//! its standard input. The server's other streams are a pipe on which it says that
//! it serves, or why it does not: then `start` fails with that reason and takes
//! everything back. Standard output carries the answer and nothing else; old daemons
//! read standard error with it, so that stays empty unless `start` fails.

use std::fs;
use std::io::{self, IsTerminal, Read};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::DirBuilderExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use log::LevelFilter;
use nix::fcntl::OFlag;
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use protobuf::well_known_types::any::Any;
use sha2::{Digest, Sha256};
use thiserror::Error;

use crate::caller::Caller;
use crate::container::oci::Spec;
use crate::container::pod::PodRole;
use crate::delete;
use crate::error::chain;
use crate::flags::Flags;
use crate::handover::{self, HandoverError};
use crate::sandbox::cleanup;
use crate::sandbox::pod_cgroup;
use crate::sandbox::state_file::{State, StateFile, run_dir};
use crate::shim_cgroup;

/// Where sockets go unless the caller names another directory.
const SOCKET_DIR: &str = "/run/containerd/s";
/// Most bytes read from standard input.
const MAX_STDIN: u64 = 4 << 20;
/// What the server says to `start` once it serves.
pub const SERVING: &str = "serving\n";
/// How long the server may take to say it.
const SERVING_DEADLINE: Duration = Duration::from_secs(10);
/// Most bytes taken from a server that fails.
const MAX_REASON: usize = 4096;

/// Why `start` fails. Printed on standard error, which containerd shows.
#[derive(Debug, Error)]
pub enum BootstrapError {
    /// A pod that is runc's cannot be handed over.
    #[error(transparent)]
    Handover(#[from] HandoverError),
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
    /// Another containerd has a container of that name.
    #[error(
        "container {id} of namespace {namespace} is running under another containerd of this host: use another id or namespace"
    )]
    Taken {
        /// The container.
        id: String,
        /// Its namespace.
        namespace: String,
    },
    /// The cgroup of the handler's options does not take the shim.
    #[error(
        "the cgroup {cgroup}, ShimCgroup of the handler's options, cannot be entered: make it, or leave the option out"
    )]
    Cgroup {
        /// As given.
        cgroup: String,
        /// Why.
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
    /// The record of what exists cannot be made.
    #[error("{dir} cannot be made")]
    Record {
        /// The run directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The server runs into something.
    #[error("the shim's server does not serve: {0}")]
    NotServing(String),
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
    let stdin = read_stdin();
    let caller = Caller::recognise(&stdin, flags);
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
    let spec = Spec::load(&bundle).ok();
    if let Some(spec) = &spec
        && handover::is_runcs(spec, &bundle).map_err(HandoverError::from)?
    {
        return Err(handover::start(&bundle, &caller, &stdin).into());
    }
    let sandbox = sandbox_of(spec.as_ref(), &flags.id);
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
    } else if UnixStream::connect(&socket).is_err() {
        enter_cgroup(&caller.options(&stdin))?;
        remove_leftover(flags)?;
        let listener = listen(&socket)?;
        // The address first: `delete` may have to find the socket by it.
        let launched = write_address(&bundle, &address)
            .and_then(|()| launch(flags, debug, &caller, listener, &bundle));
        launched.inspect_err(|_| {
            drop(fs::remove_file(&socket));
            drop(fs::remove_file(bundle.join("address")));
        })?;
        return Ok(caller.answer(&address));
    }
    write_address(&bundle, &address)?;
    Ok(caller.answer(&address))
}

/// Enters the cgroup the handler's options name, which the server inherits.
fn enter_cgroup(options: &[Any]) -> Result<(), BootstrapError> {
    let Some(cgroup) = shim_cgroup::of(options) else {
        return Ok(());
    };
    let own = fs::read_to_string("/proc/self/cgroup").unwrap_or_default();
    shim_cgroup::enter(&cgroup, Path::new(pod_cgroup::ROOT), &own)
        .map_err(|source| BootstrapError::Cgroup { cgroup, source })
}

/// Undoes what a shim of the same id left that died unnoticed. Its record would be
/// overwritten, and nobody could undo it any more.
fn remove_leftover(flags: &Flags) -> Result<(), BootstrapError> {
    match StateFile::load(run_dir(&flags.namespace, &flags.id)) {
        Ok(None) => {}
        Ok(Some(file)) if is_of_another_daemon(flags, &file) => {
            return Err(BootstrapError::Taken {
                id: flags.id.clone(),
                namespace: flags.namespace.clone(),
            });
        }
        Ok(Some(file)) => {
            log::warn!("an earlier shim of the same id left things behind");
            delete::clean_up(&file);
        }
        Err(error) => log::error!("what an earlier shim left cannot be undone: {error}"),
    }
    Ok(())
}

/// Records the socket and starts the server on it. Nothing is left of a failure but
/// the socket and its address.
fn launch(
    flags: &Flags,
    debug: bool,
    caller: &Caller,
    listener: UnixListener,
    bundle: &Path,
) -> Result<(), BootstrapError> {
    let socket = listener.local_addr().ok();
    let state = State {
        socket: socket.and_then(|socket| socket.as_pathname().map(Path::to_owned)),
        bundle: bundle.to_owned(),
        ..State::default()
    };
    let dir = run_dir(&flags.namespace, &flags.id);
    let recorded = StateFile::create(dir.clone(), state);
    let file = recorded.map_err(|source| BootstrapError::Record { dir, source })?;
    serve(flags, debug, caller, listener).inspect_err(|_| {
        if let Err(error) = cleanup::remove_shim(&file) {
            log::error!("clean-up: {}", chain(&error));
        }
    })
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

/// The id of the sandbox a container belongs to: its own unless the spec's annotations say
/// otherwise. A spec that cannot be read is left for Create to refuse, which has a better way
/// to tell.
pub fn sandbox_of(spec: Option<&Spec>, id: &str) -> String {
    match spec.map(Spec::pod_role) {
        Some(PodRole::Member { sandbox }) => sandbox,
        Some(PodRole::Alone | PodRole::Sandbox) | None => id.to_owned(),
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

/// Whether the record is of a living shim of another containerd of this host, which uses the
/// same namespace and id.
pub fn is_of_another_daemon(flags: &Flags, file: &StateFile) -> bool {
    let ours = socket_path(Path::new(SOCKET_DIR), flags, &flags.id);
    file.state().socket.is_some_and(|socket| {
        socket.file_name() != ours.file_name() && UnixStream::connect(socket).is_ok()
    })
}

/// The socket of the shim `delete` is called for, if it is there and nobody listens:
/// left by a `start` that was killed before it recorded anything.
pub fn abandoned_socket(flags: &Flags, bundle: &Path) -> Option<PathBuf> {
    let usual = socket_path(Path::new(SOCKET_DIR), flags, &flags.id);
    let address = fs::read_to_string(bundle.join("address")).unwrap_or_default();
    // Of another directory if the caller asked for one; of another sandbox it may not be.
    let told = Path::new(address.trim_start_matches("unix://"));
    let socket = match told.file_name() == usual.file_name() && told.is_absolute() {
        true => told.to_owned(),
        false => usual,
    };
    let dead = |error: io::Error| error.kind() == io::ErrorKind::ConnectionRefused;
    UnixStream::connect(&socket)
        .is_err_and(dead)
        .then_some(socket)
}

/// Binds the socket, on which nobody listens. One that a dead shim left is replaced.
fn listen(socket: &Path) -> Result<UnixListener, BootstrapError> {
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
        Err(error) if error.kind() == io::ErrorKind::AddrInUse => {
            fs::remove_file(socket).map_err(failed)?;
            UnixListener::bind(socket).map_err(failed)
        }
        bound => bound.map_err(failed),
    }
}

/// Leaves the address in the bundle: containerd 1.x finds a running task again by
/// this file after a restart.
fn write_address(bundle: &Path, address: &str) -> Result<(), BootstrapError> {
    let path = bundle.join("address");
    fs::write(&path, address).map_err(|source| BootstrapError::Address { path, source })
}

/// Starts the resident server on the bound socket and waits until it serves. It takes
/// over neither standard output nor standard error: containerd waits for their end.
fn serve(
    flags: &Flags,
    debug: bool,
    caller: &Caller,
    listener: UnixListener,
) -> Result<(), BootstrapError> {
    let exe = std::env::current_exe().unwrap_or_else(|_| "/proc/self/exe".into());
    let pipes = || {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
        Ok((read, write.try_clone()?, write))
    };
    let failed = |source| BootstrapError::Server {
        exe: exe.clone(),
        source,
    };
    let (said, stdout, stderr) = pipes().map_err(failed)?;
    let mut command = Command::new(&exe);
    command
        .args(["-namespace", &flags.namespace, "-id", &flags.id])
        .args(["-address", &flags.address])
        .args(["-publish-binary", &flags.publish_binary])
        .args(debug.then_some("-debug"))
        .stdin(Stdio::from(OwnedFd::from(listener)))
        .stdout(stdout)
        .stderr(stderr);
    if let Some(address) = caller.ttrpc_address() {
        command.env("TTRPC_ADDRESS", address);
    }
    let server = command.spawn().map_err(failed)?;
    // Its copies of the pipe's writing end close with it: only the server's remain.
    drop(command);
    let said = hear(said);
    if said.as_deref().is_ok_and(|text| text.ends_with(SERVING)) {
        return Ok(());
    }
    Err(BootstrapError::NotServing(reason(server, said)))
}

/// All that the server says before it serves, ends or exceeds its time.
fn hear(pipe: OwnedFd) -> io::Result<String> {
    let end = Instant::now() + SERVING_DEADLINE;
    let mut pipe = fs::File::from(pipe);
    let mut said = Vec::new();
    loop {
        let left = end.saturating_duration_since(Instant::now());
        let wait = PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX);
        if poll(&mut [PollFd::new(pipe.as_fd(), PollFlags::POLLIN)], wait)? == 0 {
            return Err(io::ErrorKind::TimedOut.into());
        }
        let mut buffer = [0; 512];
        let count = pipe.read(&mut buffer)?;
        said.extend_from_slice(&buffer[..count]);
        let text = String::from_utf8_lossy(&said);
        if count == 0 || text.ends_with(SERVING) || said.len() > MAX_REASON {
            return Ok(text.into_owned());
        }
    }
}

/// Why the server does not serve, which it then really must not.
fn reason(mut server: Child, said: io::Result<String>) -> String {
    if matches!(server.try_wait(), Ok(None))
        && let Err(error) = server.kill()
    {
        log::error!("the shim's server cannot be killed: {error}");
    }
    let ended = match server.wait() {
        Ok(status) => status.to_string(),
        Err(error) => error.to_string(),
    };
    match said {
        Ok(text) if !text.trim().is_empty() => {
            let text = text.trim().replace('\n', ", ");
            text.trim_start_matches("containerd-shim-rust-v2: ")
                .to_owned()
        }
        Ok(_) => ended,
        Err(error) if error.kind() == io::ErrorKind::TimedOut => {
            format!("it is not up after {} s", SERVING_DEADLINE.as_secs())
        }
        Err(error) => format!("{error}, {ended}"),
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
    fn a_server_that_does_not_serve_says_why() {
        let heard = |script: &str| {
            let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
            let stderr = write.try_clone().unwrap();
            let server = Command::new("sh")
                .args(["-c", script])
                .stdout(write)
                .stderr(stderr)
                .spawn();
            let said = hear(read);
            let serves = said.as_deref().is_ok_and(|text| text.ends_with(SERVING));
            (serves, reason(server.unwrap(), said))
        };
        assert!(heard("echo serving; exec sleep 60").0);
        let (serves, why) = heard("echo containerd-shim-rust-v2: no room >&2; exit 1");
        assert_eq!((serves, why.as_str()), (false, "no room"));
        let (serves, why) = heard("kill -ABRT $$");
        assert!(!serves && why.starts_with("signal: 6"), "{why}");
        assert!(!heard("yes 'a wrong program'").0);
    }

    #[test]
    fn a_dead_socket_is_replaced_and_only_a_dead_one_of_ours_abandoned() {
        let dir = std::env::temp_dir().join(format!("husk-listen-{}", std::process::id()));
        let args = ["-namespace", "n", "-id", "c"];
        let flags = Flags::parse(args.map(str::to_owned)).unwrap();
        let socket = socket_path(&dir, &flags, "c");
        let first = listen(&socket).unwrap();
        write_address(&dir, &format!("unix://{}", socket.display())).unwrap();
        assert_eq!(abandoned_socket(&flags, &dir), None, "somebody listens");
        drop(first);
        assert_eq!(abandoned_socket(&flags, &dir), Some(socket.clone()));
        let other = Flags::parse(["-namespace", "n", "-id", "d"].map(str::to_owned)).unwrap();
        assert_eq!(abandoned_socket(&other, &dir), None, "of another sandbox");
        drop(listen(&socket).expect("a dead socket is replaced"));
        fs::remove_dir_all(&dir).unwrap();
    }
}
