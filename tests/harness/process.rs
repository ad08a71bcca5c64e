//! Programs run with a deadline, their input fed and their output kept.

use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::Path;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags, fcntl_setfl, open};
use rustix::process::{Pid, PidfdFlags, Signal, kill_process_group, pidfd_open};

/// How long a single command may take on the emulated node before it counts as hung.
pub const DEADLINE: Duration = Duration::from_secs(240);

/// What a finished program left.
#[derive(Debug)]
pub struct Output {
    /// The command line, for messages.
    pub command: String,
    /// Exit code as a shell reports it: 128 + n for signal n.
    pub code: i32,
    /// Everything written to standard output.
    pub stdout: Vec<u8>,
    /// Everything written to standard error.
    pub stderr: String,
}

impl Output {
    /// Standard output as text.
    pub fn text(&self) -> String {
        String::from_utf8_lossy(&self.stdout).into_owned()
    }

    /// Passes the output on if the exit code is 0.
    ///
    /// # Panics
    /// If it is another, with everything the program wrote.
    #[track_caller]
    pub fn succeeded(self) -> Self {
        self.ended_with(0)
    }

    /// Passes the output on if the exit code is `code`.
    ///
    /// # Panics
    /// If it is another, with everything the program wrote.
    #[track_caller]
    pub fn ended_with(self, code: i32) -> Self {
        assert_eq!(self.code, code, "exit code of {self}");
        self
    }

    /// Passes the output on if the program failed and said each of `words` on standard error.
    ///
    /// # Panics
    /// If not, with everything the program wrote.
    #[track_caller]
    pub fn failed_saying(self, words: &[&str]) -> Self {
        assert_ne!(self.code, 0, "{self} should have failed");
        for word in words {
            assert!(self.stderr.contains(word), "no {word:?} from {self}");
        }
        self
    }
}

impl std::fmt::Display for Output {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let stdout = String::from_utf8_lossy(&self.stdout[..self.stdout.len().min(4096)]);
        write!(
            f,
            "`{}` (code {})\nstdout: {stdout}\nstderr: {}",
            self.command, self.code, self.stderr
        )
    }
}

/// A program under way. Killed with its process group when dropped.
pub struct Running {
    command: String,
    child: Child,
    stdin: Option<ChildStdin>,
    stdout: Stream,
    stderr: Stream,
}

/// Runs `command` to its end with nothing on standard input.
///
/// # Panics
/// If it cannot be started or is not done by the [`DEADLINE`].
#[track_caller]
pub fn run(command: Command) -> Output {
    let mut running = Running::start(command);
    running.close_stdin();
    running.finish()
}

impl Running {
    /// Starts `command` in a process group of its own, standard input a pipe.
    ///
    /// # Panics
    /// If it cannot be started.
    #[track_caller]
    pub fn start(mut command: Command) -> Self {
        command
            .process_group(0)
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        let name = std::iter::once(command.get_program())
            .chain(command.get_args())
            .map(|word| word.to_string_lossy())
            .collect::<Vec<_>>()
            .join(" ");
        let mut child = match command.spawn() {
            Ok(child) => child,
            Err(error) => panic!("cannot start `{name}`: {error}"),
        };
        Self {
            command: name,
            stdin: child.stdin.take(),
            stdout: Stream::of(child.stdout.take(), Duration::ZERO),
            stderr: Stream::of(child.stderr.take(), Duration::ZERO),
            child,
        }
    }

    /// The program's process id.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// Writes `bytes` to standard input and leaves it open.
    ///
    /// # Panics
    /// If the program has closed its end.
    #[track_caller]
    pub fn write(&mut self, bytes: &[u8]) {
        let stdin = self.stdin.as_mut().expect("standard input is open");
        stdin.write_all(bytes).expect("the program reads its input");
    }

    /// Writes `bytes` to standard input in the background, then closes it.
    pub fn feed(&mut self, bytes: Vec<u8>) {
        if let Some(mut stdin) = self.stdin.take() {
            // A program that ends early leaves the rest unread; its output tells.
            thread::spawn(move || stdin.write_all(&bytes));
        }
    }

    /// Closes standard input.
    pub fn close_stdin(&mut self) {
        self.stdin = None;
    }

    /// Waits until `text` has appeared on standard output.
    ///
    /// # Panics
    /// If the output ends or the [`DEADLINE`] passes before.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        if !self.prints(text, DEADLINE) {
            self.kill();
            self.stderr
                .read_to_end(Instant::now() + Duration::from_secs(5));
            panic!(
                "`{}` did not print {text:?}\nstdout: {}\nstderr: {}",
                self.command,
                self.stdout.text(),
                self.stderr.text()
            );
        }
    }

    /// Whether `text` has appeared on standard output, or does within `time`.
    pub fn prints(&mut self, text: &str, time: Duration) -> bool {
        self.stdout
            .read_until(Instant::now() + time, |seen| contains(seen, text))
    }

    /// What has been read of standard output so far.
    pub fn printed(&self) -> String {
        self.stdout.text()
    }

    /// Waits for the end.
    ///
    /// # Panics
    /// If the [`DEADLINE`] passes before.
    #[track_caller]
    pub fn finish(self) -> Output {
        self.finish_within(DEADLINE)
    }

    /// Waits for the end of a program that may take longer than others.
    ///
    /// # Panics
    /// If `time` passes before.
    #[track_caller]
    pub fn finish_within(mut self, time: Duration) -> Output {
        let deadline = Instant::now() + time;
        let ended = wait_for_exit(self.child.id(), deadline);
        if !ended {
            self.kill();
        }
        // Both pipes end with the process, unless it left someone behind who holds them.
        let drain = Instant::now() + Duration::from_secs(20);
        self.stdout.read_to_end(drain);
        self.stderr.read_to_end(drain);
        let status = self.child.wait().expect("the child is ours to wait for");
        let output = Output {
            command: self.command.clone(),
            code: status
                .code()
                .or(status.signal().map(|signal| 128 + signal))
                .unwrap_or(-1),
            stdout: std::mem::take(&mut self.stdout.seen),
            stderr: self.stderr.text(),
        };
        assert!(ended, "no end after {time:?}: {output}");
        output
    }

    /// Kills the program and its process group with SIGKILL.
    pub fn kill(&mut self) {
        if let Some(group) = Pid::from_raw(self.child.id().cast_signed()) {
            // Gone already is as good.
            kill_process_group(group, Signal::KILL).ok();
        }
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if matches!(self.child.try_wait(), Ok(None)) {
            self.kill();
            drop(self.child.wait());
        }
    }
}

/// Sends a signal to a process that is there.
///
/// # Panics
/// If it is not.
#[track_caller]
pub fn signal(pid: u32, signal: &str) {
    let mut kill = Command::new("kill");
    kill.args([&format!("-{signal}"), &pid.to_string()]);
    run(kill).succeeded();
}

/// Waits until the process has ended or the deadline is over; true if it has ended.
pub fn wait_for_exit(pid: u32, deadline: Instant) -> bool {
    let Some(pid) = Pid::from_raw(pid.cast_signed()) else {
        return true;
    };
    // No such process: it has ended and was reaped.
    let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else {
        return true;
    };
    let left = deadline.saturating_duration_since(Instant::now());
    let timeout = Timespec {
        tv_sec: i64::try_from(left.as_secs()).unwrap_or(i64::MAX),
        tv_nsec: left.subsec_nanos().into(),
    };
    let mut fds = [PollFd::new(&pidfd, PollFlags::IN)];
    matches!(poll(&mut fds, Some(&timeout)), Ok(1))
}

/// Something read to its end by a thread of its own: an output of a program, a fifo.
pub struct Stream {
    chunks: Receiver<Vec<u8>>,
    seen: Vec<u8>,
    ended: bool,
}

impl Stream {
    fn of(pipe: Option<impl Read + Send + 'static>, pause: Duration) -> Self {
        let (sender, chunks) = channel();
        if let Some(pipe) = pipe {
            thread::spawn(move || pump(pipe, &sender, pause));
        }
        Self::from_chunks(chunks)
    }

    /// Reads a fifo that somebody has open for writing, or had: whoever wrote may have ended.
    ///
    /// # Panics
    /// If there is no such fifo.
    #[track_caller]
    pub fn of_fifo(path: &Path) -> Self {
        Self::of_fifo_slowly(path, Duration::ZERO)
    }

    /// The same with a pause after each 64 KiB, as a slow reader makes it.
    ///
    /// # Panics
    /// If there is no such fifo.
    #[track_caller]
    pub fn of_fifo_slowly(path: &Path, pause: Duration) -> Self {
        // Opened here and without waiting: a blocking open in the thread may come after the last
        // writer has closed, and then waits for ever.
        let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::CLOEXEC;
        let fifo = File::from(open(path, flags, Mode::empty()).expect("a fifo"));
        fcntl_setfl(&fifo, OFlags::RDONLY).expect("a fifo of ours");
        Self::of(Some(fifo), pause)
    }

    fn from_chunks(chunks: Receiver<Vec<u8>>) -> Self {
        Self {
            chunks,
            seen: Vec::new(),
            ended: false,
        }
    }

    /// Waits until `text` has appeared.
    ///
    /// # Panics
    /// If the stream ends or the [`DEADLINE`] passes before.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let found = self.read_until(Instant::now() + DEADLINE, |seen| contains(seen, text));
        assert!(found, "no {text:?} in {:?}", self.text());
    }

    /// Waits until that many bytes have come.
    ///
    /// # Panics
    /// If the stream ends or the [`DEADLINE`] passes before.
    #[track_caller]
    pub fn wait_for_length(&mut self, length: usize) {
        let enough = self.read_until(Instant::now() + DEADLINE, |seen| seen.len() >= length);
        assert!(enough, "{} bytes came of {length}", self.seen.len());
    }

    /// Everything up to the end of file.
    ///
    /// # Panics
    /// If the end does not come within `time`.
    #[track_caller]
    pub fn to_end(mut self, time: Duration) -> Vec<u8> {
        self.read_to_end(Instant::now() + time);
        assert!(
            self.ended,
            "no end of file after {} bytes and {time:?}",
            self.seen.len()
        );
        self.seen
    }

    /// Reads on until `done` says so (true) or the stream or the time is at its end (false).
    fn read_until(&mut self, deadline: Instant, done: impl Fn(&[u8]) -> bool) -> bool {
        loop {
            if done(&self.seen) {
                return true;
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.chunks.recv_timeout(left) {
                Ok(chunk) => self.seen.extend(chunk),
                Err(RecvTimeoutError::Timeout) => return false,
                Err(RecvTimeoutError::Disconnected) => {
                    self.ended = true;
                    return false;
                }
            }
        }
    }

    fn read_to_end(&mut self, deadline: Instant) {
        self.read_until(deadline, |_| false);
    }

    fn text(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }
}

fn pump(mut from: impl Read, to: &Sender<Vec<u8>>, pause: Duration) {
    let mut buffer = vec![0; 64 * 1024];
    while let Ok(n @ 1..) = from.read(&mut buffer) {
        if to.send(buffer[..n].to_vec()).is_err() {
            break;
        }
        thread::sleep(pause);
    }
}

fn contains(bytes: &[u8], text: &str) -> bool {
    bytes
        .windows(text.len())
        .any(|window| window == text.as_bytes())
}

/// The pids of all processes whose executable has this file name.
pub fn named(name: &str) -> Vec<u32> {
    let Ok(processes) = std::fs::read_dir("/proc") else {
        return Vec::new();
    };
    processes
        .flatten()
        .filter(|process| {
            std::fs::read_link(process.path().join("exe"))
                .is_ok_and(|exe| exe.file_name().is_some_and(|file| file == name))
        })
        .filter_map(|process| process.file_name().to_str()?.parse().ok())
        .collect()
}

/// The only process of that name.
///
/// # Panics
/// If there is none or more than one.
#[track_caller]
pub fn only(name: &str) -> u32 {
    match named(name)[..] {
        [pid] => pid,
        ref other => panic!("processes named {name}: {other:?}"),
    }
}
