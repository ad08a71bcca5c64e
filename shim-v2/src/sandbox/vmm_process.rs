//! The VMM as a child process: its descriptors, its log, its end.

use std::collections::VecDeque;
use std::ffi::CString;
use std::fs::{self, OpenOptions};
use std::io::{self, IoSlice, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use husk_vmm::exit::Exit;
use nix::fcntl::OFlag;
use nix::sys::socket::{
    AddressFamily, ControlMessage, MsgFlags, SockFlag, SockType, UnixAddr, sendmsg, socketpair,
};
use nix::sys::wait::{Id, WaitPidFlag, WaitStatus, waitid};
use tokio::io::unix::AsyncFd;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, BufReader};
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::timeout;

use crate::sys::{self, Program};

/// Errors of the VMM's log kept for the error message when it dies.
const TAIL_LINES: usize = 64;
/// How many of them the message quotes when none is a panic's.
const QUOTED_LINES: usize = 4;
/// How the VMM begins a line of the guest's console.
const CONSOLE: &str = "console: ";
/// How a Linux kernel begins the line that says why it panicked.
const PANIC: &str = "Kernel panic";
/// Longest line taken from the VMM, in bytes; the rest becomes the next line.
const MAX_LINE: u64 = 1024;
/// How long the log may take to end after the process did.
const LOG_END: Duration = Duration::from_millis(500);

/// How the VMM ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VmmEnd {
    /// Its exit status in our terms; `None` when a signal ended it.
    pub exit: Option<Exit>,
    /// What happened, with the last errors it logged: the text users get.
    pub reason: String,
}

/// A freshly cloned VMM that waits for its configuration.
pub struct Spawned {
    /// Its pid on the host.
    pub pid: i32,
    /// Where it reads its configuration.
    pub config: UnixStream,
    /// The shim's end of the control socket.
    pub control: OwnedFd,
    pidfd: OwnedFd,
    log: OwnedFd,
}

/// The running VMM. Dropping it kills it.
#[derive(Debug)]
pub struct VmmProcess {
    pid: i32,
    pidfd: Arc<AsyncFd<OwnedFd>>,
    gone: watch::Receiver<Option<VmmEnd>>,
}

/// The id on the host of a thread of the VMM that has the id `inner` in its pid namespace.
///
/// # Errors
/// `NotFound` if there is none.
pub fn thread_on_host(vmm: u32, inner: i32) -> io::Result<u32> {
    for thread in fs::read_dir(format!("/proc/{vmm}/task"))?.flatten() {
        // A thread may end while they are read.
        let status = fs::read_to_string(thread.path().join("status")).unwrap_or_default();
        // proc_pid_status(5): the ids in all nested namespaces, outermost first.
        let ids = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
        let innermost = ids.and_then(|ids| ids.split_whitespace().last()?.parse().ok());
        let name = thread.file_name().to_str().and_then(|id| id.parse().ok());
        if let (Some(id), true) = (name, innermost == Some(inner)) {
            return Ok(id);
        }
    }
    Err(io::ErrorKind::NotFound.into())
}

/// Clones the VMM into its namespaces. `inherit` are the descriptors its
/// configuration will name, `netns` the network namespace to join.
///
/// # Errors
/// What the operating system refused.
pub fn spawn(
    vmm: &Path,
    jail: &Path,
    inherit: &[&OwnedFd],
    netns: Option<OwnedFd>,
) -> io::Result<Spawned> {
    let (config, config_vmm) = UnixStream::pair()?;
    let config_vmm = OwnedFd::from(config_vmm);
    let (log, log_write) = nix::unistd::pipe2(OFlag::O_CLOEXEC)?;
    let (control, control_vmm) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    let args = [
        c"husk-vmm".to_owned(),
        c"--jail".to_owned(),
        sys::c_path(jail)?,
        c"--config-fd".to_owned(),
        number(&config_vmm)?,
        c"--control-fd".to_owned(),
        number(&control_vmm)?,
        c"--log-fd".to_owned(),
        number(&log_write)?,
    ];
    let own = [&config_vmm, &control_vmm, &log_write];
    let program = Program {
        path: sys::c_path(vmm)?,
        args: args.into(),
        env: Vec::new(),
        inherit: own.iter().chain(inherit).map(|fd| fd.as_raw_fd()).collect(),
        null: OpenOptions::new()
            .read(true)
            .write(true)
            .open("/dev/null")?
            .into(),
        stderr: log_write.try_clone()?,
        netns,
    };
    let (pid, pidfd) = sys::clone_into_namespaces(&program)?;
    Ok(Spawned {
        pid,
        config,
        control,
        pidfd,
        log,
    })
}

/// Writes a VMM its configuration, and with it the descriptors that did not exist when it was
/// cloned.
///
/// # Errors
/// What the socket says; `BrokenPipe` if the VMM is gone.
pub fn configure(mut vmm: UnixStream, json: &[u8], late: &[&OwnedFd]) -> io::Result<()> {
    let fds: Vec<_> = late.iter().map(|fd| fd.as_raw_fd()).collect();
    let rights = [ControlMessage::ScmRights(&fds)];
    let rights = if fds.is_empty() { &[][..] } else { &rights };
    let whole = [IoSlice::new(json)];
    let flags = MsgFlags::MSG_NOSIGNAL;
    let sent = sendmsg::<UnixAddr>(vmm.as_raw_fd(), &whole, rights, flags, None)?;
    vmm.write_all(&json[sent..])
}

fn number(fd: &OwnedFd) -> io::Result<CString> {
    CString::new(fd.as_raw_fd().to_string()).map_err(io::Error::other)
}

impl VmmProcess {
    /// Begins to watch a spawned VMM: its log and its end.
    pub fn watch(pid: i32, pidfd: OwnedFd, log: OwnedFd) -> io::Result<Self> {
        let pidfd = Arc::new(sys::watchable(pidfd)?);
        let tail = Tail::default();
        let log = pipe::Receiver::from_owned_fd(log)?;
        let reader = tokio::spawn(relay_log(log, tail.clone()));
        let (end, gone) = watch::channel(None);
        tokio::spawn(reap(pidfd.clone(), reader, tail, end));
        Ok(Self { pid, pidfd, gone })
    }

    /// Its pid as the host numbers it.
    pub fn pid(&self) -> i32 {
        self.pid
    }

    /// Becomes `Some` when the VMM is gone and reaped.
    pub fn gone(&self) -> watch::Receiver<Option<VmmEnd>> {
        self.gone.clone()
    }

    /// Kills it; harmless when it is gone already.
    pub fn kill(&self) {
        if self.gone.borrow().is_none()
            && let Err(error) = sys::pidfd_kill(self.pidfd.get_ref().as_fd())
        {
            log::debug!("the VMM was not killed: {error}");
        }
    }
}

impl Drop for VmmProcess {
    fn drop(&mut self) {
        self.kill();
    }
}

impl Spawned {
    /// Splits off what [`VmmProcess::watch`] takes.
    pub fn into_parts(self) -> (UnixStream, OwnedFd, impl FnOnce() -> io::Result<VmmProcess>) {
        let watch = move || VmmProcess::watch(self.pid, self.pidfd, self.log);
        (self.config, self.control, watch)
    }
}

/// Waits until the VMM is gone, which is final, and on any error of the channel too.
pub async fn end(gone: &mut watch::Receiver<Option<VmmEnd>>) -> VmmEnd {
    match gone.wait_for(Option::is_some).await {
        Ok(end) => end.clone(),
        Err(_) => None,
    }
    .unwrap_or_else(|| VmmEnd {
        exit: None,
        reason: "the VMM is gone".to_owned(),
    })
}

/// Waits for the process's end, reaps it and tells everybody why it ended.
async fn reap(
    pidfd: Arc<AsyncFd<OwnedFd>>,
    log: JoinHandle<()>,
    tail: Tail,
    end: watch::Sender<Option<VmmEnd>>,
) {
    if let Err(error) = pidfd.readable().await {
        log::error!("the VMM cannot be watched any more: {error}");
    }
    let status = waitid(Id::PIDFd(pidfd.get_ref().as_fd()), WaitPidFlag::WEXITED);
    // What it said last is the explanation; the pipe ends with the process.
    if timeout(LOG_END, log).await.is_err() {
        log::debug!("the VMM's log did not end with it");
    }
    let exit = match status {
        Ok(WaitStatus::Exited(_, code)) => Exit::from_code(code),
        _ => None,
    };
    let what = match (exit, status) {
        (Some(exit), _) => exit.describe().to_owned(),
        (None, Ok(WaitStatus::Exited(_, code))) => format!("the VMM exited with code {code}"),
        (None, Ok(WaitStatus::Signaled(_, signal, _))) => format!("the VMM was killed by {signal}"),
        (None, other) => format!("the VMM ended in an unknown way ({other:?})"),
    };
    let expected = matches!(exit, Some(Exit::Clean | Exit::Stopped));
    let reason = if expected { what } else { tail.explain(what) };
    log::info!("VMM gone: {reason}");
    end.send_replace(Some(VmmEnd { exit, reason }));
}

/// The last errors of the VMM's log, to which the console of a dead guest belongs.
#[derive(Clone, Default)]
struct Tail(Arc<Mutex<VecDeque<String>>>);

impl Tail {
    fn push(&self, line: &str) {
        let mut lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        if lines.len() == TAIL_LINES {
            lines.pop_front();
        }
        lines.push_back(line.to_owned());
    }

    /// Adds the last words: of the guest if it had any, otherwise of the VMM.
    fn explain(&self, what: String) -> String {
        let lines = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        let all: Vec<&str> = lines.iter().map(String::as_str).collect();
        let guest: Vec<&str> = all.iter().filter_map(|l| l.strip_prefix(CONSOLE)).collect();
        let words = if guest.is_empty() { all } else { guest };
        let quoted = match words.iter().position(|line| line.contains(PANIC)) {
            Some(panic) => &words[panic..=panic],
            None => &words[words.len().saturating_sub(QUOTED_LINES)..],
        };
        if quoted.is_empty() {
            return what;
        }
        format!("{what}; last words: {}", quoted.join(" | "))
    }
}

/// Copies the VMM's log (`<level> <message>` lines) into ours, to its end.
async fn relay_log(log: pipe::Receiver, tail: Tail) {
    let mut reader = BufReader::with_capacity(1024, log);
    let mut line = Vec::new();
    loop {
        line.clear();
        match (&mut reader)
            .take(MAX_LINE)
            .read_until(b'\n', &mut line)
            .await
        {
            Ok(0) => return,
            Ok(_) => {}
            Err(error) => return log::debug!("the VMM's log broke: {error}"),
        }
        let text = String::from_utf8_lossy(&line);
        let text: String = text
            .trim_end()
            .chars()
            .filter(|c| !c.is_control())
            .collect();
        let (level, message) = split_level(&text);
        if level == log::Level::Error {
            tail.push(message);
        }
        log::log!(level, "vmm: {message}");
    }
}

/// Lines without a level are what the runtime prints before it aborts.
fn split_level(line: &str) -> (log::Level, &str) {
    let (first, rest) = line.split_once(' ').unwrap_or((line, ""));
    match first.parse() {
        Ok(level) => (level, rest),
        Err(_) => (log::Level::Error, line),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn late_descriptors_reach_the_vmm_with_its_configuration() {
        use husk_vmm::opener::Descriptors;

        let file = OwnedFd::from(fs::File::open("/dev/null").unwrap());
        for late in [&[][..], &[&file], &[&file, &file]] {
            let (ours, theirs) = UnixStream::pair().unwrap();
            configure(ours, &[b'x'; 20_000], late).unwrap();
            let mut descriptors = Descriptors::default();
            let document = descriptors.read_document(theirs.into()).unwrap();
            assert_eq!(document, [b'x'; 20_000]);
            let received = format!("{descriptors:?}").matches("Some(").count();
            assert_eq!(received, late.len());
        }
    }

    #[test]
    fn levels_are_recognised_and_everything_else_is_an_error() {
        assert_eq!(
            split_level("info vm created"),
            (log::Level::Info, "vm created")
        );
        assert_eq!(split_level("warn x"), (log::Level::Warn, "x"));
        assert_eq!(
            split_level("thread 'main' panicked"),
            (log::Level::Error, "thread 'main' panicked")
        );
        assert_eq!(split_level(""), (log::Level::Error, ""));
    }

    #[test]
    fn the_last_words_are_quoted_and_a_panics_before_all() {
        let tail = Tail::default();
        assert_eq!(tail.explain("it broke".to_owned()), "it broke");
        for n in 0..200 {
            tail.push(&n.to_string());
        }
        let text = tail.explain("it broke".to_owned());
        assert_eq!(text, "it broke; last words: 196 | 197 | 198 | 199");
        tail.push("console: Kernel panic - not syncing: why");
        (0..40).for_each(|n| tail.push(&n.to_string()));
        let text = tail.explain("it broke".to_owned());
        assert_eq!(
            text,
            "it broke; last words: Kernel panic - not syncing: why"
        );
    }

    #[tokio::test]
    async fn an_ended_process_is_reaped_and_explained() {
        let (read, write) = nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap();
        #[expect(clippy::zombie_processes, reason = "reaped by what is tested")]
        let child = std::process::Command::new("sh")
            .args([
                "-c",
                "echo error no kernel >&2; echo info chatter >&2; exit 2",
            ])
            .stderr(write)
            .spawn()
            .unwrap();
        let pid = child.id() as i32;
        let pidfd = sys::pidfd_open(pid).unwrap();
        let vmm = VmmProcess::watch(pid, pidfd, read).unwrap();
        let end = end(&mut vmm.gone()).await;
        assert_eq!(end.exit, Some(Exit::Config));
        assert_eq!(
            end.reason,
            "the VMM refused its configuration; last words: no kernel"
        );
    }
}
