//! Stop 11 of twelve, in the guest: pipe or terminal ↔ vsock, one stream each.
//!
//! The shim names a stream by a token when it asks for a process, connects to
//! [`agent_protocol::STREAM_PORT`] and sends the token; from then on the two are
//! joined byte for byte. Until then nothing is lost: output stays in the pipe, whose
//! size is the only buffer, so a process that writes more waits.
//!
//! Ends travel too. When the last writer of an output is gone, the stream is shut
//! down for writing. When the shim shuts a stdin stream down, the process reads the
//! end of its input (a terminal has no such end and stays open).

use std::collections::HashMap;
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_protocol::agent::Stdio;
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::unistd::{dup2_stderr, dup2_stdin, dup2_stdout, pipe2};
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::unix::pipe;
use tokio::sync::Notify;
use tokio::task::AbortHandle;
use tokio::time::timeout;

use crate::container::ChildStdio;
use crate::error::Error;
use crate::sync::lock;
use crate::tty::Tty;

/// Bytes moved at a time, per stream.
const BUFFER: usize = 32 * 1024;
/// How long [`ProcessIo::close_stdin`] waits for a stream that is on its way.
const ATTACH_DEADLINE: Duration = Duration::from_millis(500);

/// The agent's end of one descriptor of a process.
#[derive(Debug)]
enum End {
    Stdin(pipe::Sender),
    Output(pipe::Receiver),
    TtyInput(Arc<Tty>),
    TtyOutput(Arc<Tty>),
}

/// An end and its way to the stream.
#[derive(Debug)]
struct Slot {
    state: Mutex<SlotState>,
    attached: Notify,
}

#[derive(Debug)]
enum SlotState {
    Waiting(End),
    Attached(AbortHandle),
    Closed,
}

/// The ends that wait for their stream, by token.
#[derive(Debug, Default)]
pub struct Streams {
    waiting: Mutex<HashMap<u64, Arc<Slot>>>,
}

impl Streams {
    /// Joins `stream` with the end that waits under `token`; a stream that nothing
    /// waits for is closed.
    pub fn attach<S>(&self, token: u64, stream: S)
    where
        S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
    {
        let Some(slot) = lock(&self.waiting).remove(&token) else {
            return;
        };
        let mut state = lock(&slot.state);
        if let SlotState::Waiting(end) = std::mem::replace(&mut *state, SlotState::Closed) {
            let task = tokio::spawn(async move {
                // A broken stream is the shim's to notice; both ends close.
                end.join(stream).await.ok();
            });
            *state = SlotState::Attached(task.abort_handle());
        }
        drop(state);
        slot.attached.notify_waiters();
    }

    fn add(&self, token: u64, end: End) -> Result<Arc<Slot>, Error> {
        let slot = Arc::new(Slot {
            state: Mutex::new(SlotState::Waiting(end)),
            attached: Notify::new(),
        });
        let mut waiting = lock(&self.waiting);
        if waiting.contains_key(&token) {
            return Err(Error::Argument {
                field: "stdio",
                why: format!("token {token:#x} already names another stream"),
            });
        }
        waiting.insert(token, Arc::clone(&slot));
        Ok(slot)
    }
}

impl End {
    async fn join(self, mut stream: impl AsyncRead + AsyncWrite + Unpin) -> io::Result<()> {
        let mut buffer = vec![0; BUFFER];
        match self {
            Self::Stdin(mut pipe) => loop {
                let length = stream.read(&mut buffer).await?;
                let Some(bytes) = filled(&buffer, length) else {
                    return Ok(());
                };
                pipe.write_all(bytes).await?;
            },
            Self::Output(mut pipe) => loop {
                let length = pipe.read(&mut buffer).await?;
                let Some(bytes) = filled(&buffer, length) else {
                    return stream.shutdown().await;
                };
                stream.write_all(bytes).await?;
            },
            Self::TtyInput(tty) => loop {
                let length = stream.read(&mut buffer).await?;
                let Some(bytes) = filled(&buffer, length) else {
                    return Ok(());
                };
                tty.write_all(bytes).await?;
            },
            Self::TtyOutput(tty) => loop {
                let length = tty.read(&mut buffer).await?;
                let Some(bytes) = filled(&buffer, length) else {
                    return stream.shutdown().await;
                };
                stream.write_all(bytes).await?;
            },
        }
    }
}

/// What a read of `length` bytes left in the buffer; none at the end.
fn filled(buffer: &[u8], length: usize) -> Option<&[u8]> {
    buffer.get(..length).filter(|bytes| !bytes.is_empty())
}

/// The agent's ends of a process that is being made.
#[derive(Debug)]
pub struct AgentEnds {
    pipes: Vec<(u64, End)>,
    stdin_token: u64,
    stdout_token: u64,
}

/// The standard I/O of a process; gives everything up when dropped.
#[derive(Debug)]
pub struct ProcessIo {
    streams: Arc<Streams>,
    slots: Vec<(u64, Arc<Slot>)>,
    stdin_token: u64,
    tty: Option<Arc<Tty>>,
}

/// Makes the pipes a process needs: the child's ends and the agent's.
pub fn make(stdio: &Stdio) -> Result<(ChildStdio, AgentEnds), Error> {
    let mut ends = AgentEnds {
        pipes: Vec::new(),
        stdin_token: stdio.stdin,
        stdout_token: stdio.stdout,
    };
    if stdio.terminal {
        return Ok((ChildStdio::Terminal, ends));
    }
    let pipes = || pipe2(OFlag::O_CLOEXEC).map_err(|errno| Error::stdio(errno.into()));
    let mut child = [None, None, None];
    if stdio.stdin != 0 {
        let (read, write) = pipes()?;
        set_nonblocking(&write).map_err(Error::stdio)?;
        let sender = pipe::Sender::from_owned_fd(write).map_err(Error::stdio)?;
        ends.pipes.push((stdio.stdin, End::Stdin(sender)));
        child[0] = Some(read);
    }
    for (place, token) in child[1..].iter_mut().zip([stdio.stdout, stdio.stderr]) {
        if token != 0 {
            let (read, write) = pipes()?;
            set_nonblocking(&read).map_err(Error::stdio)?;
            let receiver = pipe::Receiver::from_owned_fd(read).map_err(Error::stdio)?;
            ends.pipes.push((token, End::Output(receiver)));
            *place = Some(write);
        }
    }
    Ok((ChildStdio::Pipes(child), ends))
}

impl AgentEnds {
    /// From now on streams may attach. `terminal` is the master side, if there is one.
    pub fn register(
        self,
        streams: &Arc<Streams>,
        terminal: Option<OwnedFd>,
    ) -> Result<ProcessIo, Error> {
        let mut io = ProcessIo {
            streams: Arc::clone(streams),
            slots: Vec::new(),
            stdin_token: self.stdin_token,
            tty: None,
        };
        let mut ends = self.pipes;
        if let Some(master) = terminal {
            let tty = Arc::new(Tty::new(master).map_err(Error::stdio)?);
            for (token, end) in [
                (self.stdin_token, End::TtyInput(Arc::clone(&tty))),
                (self.stdout_token, End::TtyOutput(Arc::clone(&tty))),
            ] {
                if token != 0 {
                    ends.push((token, end));
                }
            }
            io.tty = Some(tty);
        }
        for (token, end) in ends {
            io.slots.push((token, streams.add(token, end)?));
        }
        Ok(io)
    }
}

impl ProcessIo {
    /// Closes stdin if no stream does it: one that is attached, or attaches soon,
    /// closes it by its own end, after all its bytes. A terminal stays open.
    pub async fn close_stdin(&self) {
        let stdin = self
            .slots
            .iter()
            .find(|(token, _)| *token == self.stdin_token);
        let Some((token, slot)) = stdin.filter(|_| self.tty.is_none()) else {
            return;
        };
        let attached = slot.attached.notified();
        if !matches!(*lock(&slot.state), SlotState::Waiting(_)) {
            return;
        }
        if timeout(ATTACH_DEADLINE, attached).await.is_err() {
            lock(&self.streams.waiting).remove(token);
            let mut state = lock(&slot.state);
            if matches!(*state, SlotState::Waiting(_)) {
                *state = SlotState::Closed;
            }
        }
    }

    /// Sets the terminal's size in characters.
    pub fn resize(&self, width: u32, height: u32) -> Result<(), Error> {
        let tty = self.tty.as_ref().ok_or_else(|| Error::Argument {
            field: "exec_id",
            why: "the process has no terminal to resize".into(),
        })?;
        let (width, height) = window_size(width, height);
        tty.resize(width, height)
            .map_err(|errno| Error::stdio(errno.into()))
    }
}

impl Drop for ProcessIo {
    fn drop(&mut self) {
        for (token, slot) in &self.slots {
            lock(&self.streams.waiting).remove(token);
            if let SlotState::Attached(task) =
                std::mem::replace(&mut *lock(&slot.state), SlotState::Closed)
            {
                task.abort();
            }
        }
    }
}

/// A size in characters as a terminal can hold it.
pub fn window_size(width: u32, height: u32) -> (u16, u16) {
    let clamp = |value| u16::try_from(value).unwrap_or(u16::MAX);
    (clamp(width), clamp(height))
}

/// Makes reads and writes on `fd` return instead of waiting.
pub fn set_nonblocking(fd: &impl AsFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

/// Makes three descriptors the calling process's standard I/O.
pub fn replace_standard(
    stdin: BorrowedFd,
    stdout: BorrowedFd,
    stderr: BorrowedFd,
) -> nix::Result<()> {
    dup2_stdin(stdin)?;
    dup2_stdout(stdout)?;
    dup2_stderr(stderr)
}

#[cfg(test)]
#[path = "stdio_test.rs"]
mod tests;
