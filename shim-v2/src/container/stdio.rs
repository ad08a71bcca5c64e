//! Stop 11 of twelve: containerd's fifos and the guest's streams, one to one. Output may
//! also go to a file or to a logger ([`super::output`]).
//!
//! Both ends of every fifo are held open. A reader of the output that goes away
//! and comes back (containerd restarts, a client detaches) thus breaks nothing,
//! and standard input does not end when one of its writers does: it ends with
//! CloseIO, after which the last writer's end is the end.
//!
//! The input's fifo is opened when the process starts, not before: a client may send
//! all it has the moment the fifo has a reader, and some cannot call CloseIO before
//! their Create has returned.
//!
//! Output flows until the guest closes its stream. The exit of a process waits for
//! that, but not for ever: a grandchild may keep the pipe open, a reader may sleep.

use std::io::{self, Read};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use agent_protocol::STREAM_PORT;
use agent_protocol::agent::Stdio;
use thiserror::Error;
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::net::unix::pipe;
use tokio::sync::watch;
use tokio::task::JoinHandle;
use tokio::time::{Instant, timeout};

use super::logger::{Ended, Logger};
use super::output::{Output, Target};
use super::output_fifo::OutputFifo;
use crate::sandbox::vsock::Vsock;

/// Bytes moved at a time.
const BUFFER: usize = 32 * 1024;
/// How long after a process's exit its silent but open output is waited for, half of it after
/// the guest was seen to run.
const IDLE_LIMIT: Duration = Duration::from_secs(2);
/// How long after a process's exit its flowing or blocked output is waited for.
const DRAIN_LIMIT: Duration = Duration::from_secs(10);

/// The stdio of a process as containerd names it; empty means /dev/null.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Paths {
    /// The process has a terminal; then there is no separate standard error.
    pub terminal: bool,
    /// Fifo the input comes from.
    pub stdin: String,
    /// Fifo, `file://` or `binary://` the output goes to.
    pub stdout: String,
    /// Fifo or `file://` the errors go to; the output's file or logger has them too.
    pub stderr: String,
}

/// Why the stdio of a process cannot be connected.
#[derive(Debug, Error)]
pub enum StdioError {
    /// A scheme that is not for this stream.
    #[error(
        "{which} is {uri}: only fifos are supported, for output also file://, for stdout binary://"
    )]
    Scheme {
        /// `stdin`, `stdout` or `stderr`.
        which: &'static str,
        /// As given.
        uri: String,
    },
    /// A URI that names no path.
    #[error("{which} is {uri}: not a URI with an absolute path and two digits after every %")]
    Uri {
        /// `stdout` or `stderr`.
        which: &'static str,
        /// As given.
        uri: String,
    },
    /// The logger did not start, or did not get ready.
    #[error("{which}: logger {program} cannot be started")]
    Logger {
        /// `stdout`.
        which: &'static str,
        /// Its path.
        program: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The path is not what its URI says, or cannot be opened.
    #[error("{which}: {path} cannot be opened")]
    Open {
        /// `stdin`, `stdout` or `stderr`.
        which: &'static str,
        /// Its path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The guest does not take the stream.
    #[error("{which}: the guest does not accept the stream")]
    Connect {
        /// `stdin`, `stdout` or `stderr`.
        which: &'static str,
        /// Why.
        source: io::Error,
    },
}

/// Where the streams of a process that is being made go, open, and their tokens.
pub struct Fifos {
    /// The process's, for the log.
    id: String,
    stdin: Input,
    outputs: Vec<(&'static str, u64, Output)>,
    logger: Option<Ended>,
}

/// The running copies of one process.
#[derive(Default)]
pub struct Streams {
    id: String,
    stdin: Mutex<Input>,
    outputs: Vec<Task>,
    progress: Arc<Progress>,
    logger: Option<Ended>,
}

/// Standard input: at first only its name and token, then open.
#[derive(Default)]
struct Input {
    waiting: Option<(PathBuf, u64)>,
    /// A writing end of the fifo; while it lives the fifo does not end.
    keeper: Option<pipe::Sender>,
    /// CloseIO came.
    closed: bool,
    copy: Option<Task>,
}

/// Aborts its task when dropped.
struct Task(JoinHandle<()>);

impl Drop for Task {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// What the output copies are doing.
#[derive(Default)]
struct Progress {
    bytes: AtomicU64,
    /// At least one copy waits for its reader.
    blocked: AtomicU64,
    open: watch::Sender<usize>,
}

impl Paths {
    /// Refuses what cannot be opened before anything was made.
    ///
    /// # Errors
    /// [`StdioError::Scheme`], [`StdioError::Uri`] and [`StdioError::Open`].
    pub fn check(&self) -> Result<(), StdioError> {
        let mut targets = self.targets()?.into_iter();
        targets.try_for_each(|(which, target)| target.check(which))
    }

    fn targets(&self) -> Result<Vec<(&'static str, Target)>, StdioError> {
        let parse = |which, uri: &str| match uri {
            "" => Ok(None),
            uri => Target::parse(which, uri).map(|target| Some((which, target))),
        };
        let stdin = parse("stdin", &self.stdin)?;
        let stdout = parse("stdout", &self.stdout)?;
        let stderr = match &stdout {
            _ if self.terminal => None,
            // As with runc both are for one place.
            Some((_, one @ (Target::Logger(_) | Target::File(_)))) => Some(("stderr", one.clone())),
            _ => parse("stderr", &self.stderr)?,
        };
        Ok([stdin, stdout, stderr].into_iter().flatten().collect())
    }
}

impl Fifos {
    /// Opens where the output goes of the process `id` of containerd's `namespace`. Each
    /// stream gets a token: the returned message tells the agent, which then waits for
    /// [`Fifos::connect`] and [`Streams::start_stdin`].
    ///
    /// # Errors
    /// See [`StdioError`]; nothing stays open then.
    pub async fn open(
        paths: &Paths,
        id: &str,
        namespace: &str,
    ) -> Result<(Self, Stdio), StdioError> {
        let mut message = Stdio {
            terminal: paths.terminal,
            ..Stdio::default()
        };
        let mut fifos = Self {
            id: id.to_owned(),
            stdin: Input::default(),
            outputs: Vec::new(),
            logger: None,
        };
        let mut errors_to_logger = None;
        for (which, target) in paths.targets()? {
            let token = token().map_err(|source| StdioError::Connect { which, source })?;
            match which {
                "stdin" => message.stdin = token,
                "stdout" => message.stdout = token,
                _ => message.stderr = token,
            }
            let failed = |path| {
                move |source| StdioError::Open {
                    which,
                    path,
                    source,
                }
            };
            let output = match target {
                Target::Fifo(path) if which == "stdin" => {
                    fifos.stdin.waiting = Some((path, token));
                    continue;
                }
                Target::Fifo(path) => OutputFifo::open(&path)
                    .await
                    .map(Output::Fifo)
                    .map_err(failed(path))?,
                Target::File(path) => Output::open_file(&path).await.map_err(failed(path))?,
                Target::Logger(program) => match errors_to_logger.take() {
                    Some(output) => output,
                    None => {
                        let started = Logger::start(&program, id, namespace).await;
                        let logger = started.map_err(|source| StdioError::Logger {
                            which,
                            program: program.path,
                            source,
                        })?;
                        fifos.logger = Some(logger.ended);
                        errors_to_logger = Some(logger.stderr);
                        logger.stdout
                    }
                },
            };
            fifos.outputs.push((which, token, output));
        }
        Ok((fifos, message))
    }

    /// Connects each output with its stream in the guest, once the agent knows the
    /// tokens, and starts to copy.
    ///
    /// # Errors
    /// [`StdioError::Connect`].
    pub async fn connect(self, vsock: &Vsock) -> Result<Streams, StdioError> {
        let mut streams = Streams {
            id: self.id,
            stdin: Mutex::new(self.stdin),
            logger: self.logger,
            ..Streams::default()
        };
        for (which, token, output) in self.outputs {
            let stream = dial(vsock, which, token).await?;
            streams.progress.open.send_modify(|open| *open += 1);
            let name = format!("{which} of {}", streams.id);
            let copy = copy_out(name, stream, output, streams.progress.clone());
            streams.outputs.push(Task(tokio::spawn(copy)));
        }
        Ok(streams)
    }
}

impl Streams {
    /// Opens standard input, if there is one, and connects it with its stream.
    ///
    /// # Errors
    /// [`StdioError::Open`] and [`StdioError::Connect`].
    pub async fn start_stdin(&self, vsock: &Vsock) -> Result<(), StdioError> {
        let Some((path, token)) = self.input().waiting.take() else {
            return Ok(());
        };
        let (fifo, keeper) = open_input(&path).map_err(|source| StdioError::Open {
            which: "stdin",
            path,
            source,
        })?;
        let stream = dial(vsock, "stdin", token).await?;
        let mut input = self.input();
        input.keeper = Some(keeper).filter(|_| !input.closed);
        input.copy = Some(Task(tokio::spawn(copy_in(fifo, stream))));
        Ok(())
    }

    /// Lets standard input end: what was written so far is still delivered.
    pub fn close_stdin(&self) {
        let mut input = self.input();
        input.closed = true;
        input.keeper = None;
    }

    fn input(&self) -> MutexGuard<'_, Input> {
        self.stdin.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Waits until all output was delivered, within limits. `false` when a limit
    /// was hit; the copies go on then until the streams are dropped.
    ///
    /// A guest that is silent may be one that does not get to run: `answers` tells whether it
    /// does, and the guest sends what it has before it answers.
    pub async fn drained<F>(&self, answers: impl Fn() -> F) -> bool
    where
        F: Future<Output = bool>,
    {
        let mut open = self.progress.open.subscribe();
        let begin = Instant::now();
        let mut answered = false;
        loop {
            let before = self.progress.bytes.load(Ordering::Relaxed);
            if timeout(IDLE_LIMIT / 2, open.wait_for(|open| *open == 0))
                .await
                .is_ok()
            {
                return true;
            }
            let moved = self.progress.bytes.load(Ordering::Relaxed) != before;
            let blocked = self.progress.blocked.load(Ordering::Relaxed) > 0;
            if moved || blocked {
                answered = false;
            } else if answered {
                log::warn!("{} has ended, and something holds its output open", self.id);
                return false;
            } else {
                answered = answers().await;
            }
            if begin.elapsed() >= DRAIN_LIMIT {
                let id = &self.id;
                log::warn!("{id} has ended, and its output not after {DRAIN_LIMIT:?}");
                return false;
            }
        }
    }

    /// The logger of the output, if it has one, to wait for once the streams are dropped.
    pub fn logger(&self) -> Option<Ended> {
        self.logger.clone()
    }

    /// Whether every output came to its end.
    pub fn is_drained(&self) -> bool {
        *self.progress.open.borrow() == 0
    }
}

/// A random token for a stream, never zero.
fn token() -> io::Result<u64> {
    let mut random = std::fs::File::open("/dev/urandom")?;
    let mut bytes = [0; 8];
    loop {
        random.read_exact(&mut bytes)?;
        match u64::from_le_bytes(bytes) {
            0 => {}
            token => return Ok(token),
        }
    }
}

async fn dial(vsock: &Vsock, which: &'static str, token: u64) -> Result<UnixStream, StdioError> {
    let failed = |source| StdioError::Connect { which, source };
    let mut stream = vsock.connect(STREAM_PORT).await.map_err(failed)?;
    stream
        .write_all(&token.to_le_bytes())
        .await
        .map_err(failed)?;
    Ok(stream)
}

/// Opens the reading end, which never waits, and a writing end that keeps it open.
fn open_input(path: &Path) -> io::Result<(pipe::Receiver, pipe::Sender)> {
    let options = pipe::OpenOptions::new();
    Ok((options.open_receiver(path)?, options.open_sender(path)?))
}

/// Input: to the fifo's end, then a half-close, then until the guest has let go.
async fn copy_in(mut fifo: pipe::Receiver, stream: UnixStream) {
    let (mut from_guest, mut to_guest) = stream.into_split();
    let copied = async {
        let mut buffer = vec![0; BUFFER];
        loop {
            match fifo.read(&mut buffer).await? {
                0 => return to_guest.shutdown().await,
                length => to_guest.write_all(&buffer[..length]).await?,
            }
        }
    };
    match copied.await {
        Ok(()) => {
            let mut nothing = [0; 64];
            while matches!(from_guest.read(&mut nothing).await, Ok(1..)) {}
        }
        // The process closed its input or is gone: the rest of the input has no reader.
        Err(error) => log::debug!("input: {error}"),
    }
}

/// Output: to the stream's end. A process does not suffer from a log that fails: what
/// cannot be written is lost.
async fn copy_out(
    name: String,
    mut stream: UnixStream,
    mut output: Output,
    progress: Arc<Progress>,
) {
    let mut buffer = vec![0; BUFFER];
    let mut lost = false;
    loop {
        let length = match stream.read(&mut buffer).await {
            Ok(0) => break,
            Ok(length) => length,
            Err(error) => {
                log::warn!("{name} is cut short: {error}");
                break;
            }
        };
        if !lost {
            progress.blocked.fetch_add(1, Ordering::Relaxed);
            let written = output.write_all(&buffer[..length]).await;
            progress.blocked.fetch_sub(1, Ordering::Relaxed);
            if let Err(error) = written {
                log::warn!("{name} is lost from here on: {error}");
                lost = true;
            }
        }
        first_byte();
        progress.bytes.fetch_add(length as u64, Ordering::Relaxed);
    }
    // The reader sees the end before anybody is told that it came.
    progress.blocked.fetch_add(1, Ordering::Relaxed);
    if let Err(error) = output.close().await {
        log::warn!("{name} may not have been read to its end: {error}");
    }
    progress.blocked.fetch_sub(1, Ordering::Relaxed);
    progress.open.send_modify(|open| *open -= 1);
}

/// Logs the first output of the sandbox, once.
fn first_byte() {
    static LOGGED: AtomicBool = AtomicBool::new(false);
    if !LOGGED.swap(true, Ordering::Relaxed) {
        crate::log::timeline("first_byte_out");
    }
}

#[cfg(test)]
#[path = "stdio_test.rs"]
mod tests;
