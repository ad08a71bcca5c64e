//! The line between the agent and a child that is setting itself up.
//!
//! A socket pair of packets. The child sends, in this order: its terminal, if it has
//! one ([`FromChild::Terminal`]); then [`FromChild::Ready`]. It waits for [`Line::release`],
//! then executes the program, which closes its end (close-on-exec): the agent
//! reads the end of file as "the program runs". At any point it may send
//! [`FromChild::Failed`] instead and end. An end of file before `Ready` is a death.

use std::io;
use std::io::{IoSlice, IoSliceMut};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd, RawFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, ControlMessage, ControlMessageOwned, MsgFlags, SockFlag, SockType, recv,
    recvmsg, send, sendmsg, socketpair,
};
use nix::unistd::write;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use super::setup_error::{Blame, SetupError};
use crate::sys;

/// Longest message, in bytes; a longer error text is cut.
const MAX_MESSAGE: usize = 4096;

const TERMINAL: u8 = b'T';
const READY: u8 = b'R';
const FAILED_REQUEST: u8 = b'Q';
const FAILED_GUEST: u8 = b'G';
const FAILED_ENDED: u8 = b'E';
const RELEASE: u8 = b'S';

/// What a child reports.
#[derive(Debug)]
pub enum FromChild {
    /// The master side of the terminal it made in its own `/dev/pts`.
    Terminal(OwnedFd),
    /// All is set up but for the program.
    Ready,
    /// It gave up, and ends.
    Failed(SetupError),
    /// Its end is closed: the program runs, or the child is dead.
    Closed,
}

/// The agent's end.
#[derive(Debug)]
pub struct Line {
    socket: AsyncFd<OwnedFd>,
}

/// The child's end; every call blocks.
#[derive(Debug)]
pub struct ChildLine {
    socket: OwnedFd,
}

/// Makes both ends. The agent must drop the child's end after the fork.
pub fn pair() -> io::Result<(Line, ChildLine)> {
    let (ours, theirs) = socketpair(
        AddressFamily::Unix,
        SockType::SeqPacket,
        None,
        SockFlag::SOCK_CLOEXEC,
    )?;
    crate::stdio::set_nonblocking(&ours)?;
    let line = Line {
        socket: sys::watch_fd(ours, Interest::READABLE)?,
    };
    Ok((line, ChildLine { socket: theirs }))
}

impl Line {
    /// The child's next message.
    pub async fn receive(&self) -> io::Result<FromChild> {
        self.socket
            .async_io(Interest::READABLE, |socket| {
                Ok(receive_now(socket.as_fd())?)
            })
            .await
    }

    /// Lets the child execute its program.
    pub fn release(&self) -> io::Result<()> {
        send(self.socket.as_raw_fd(), &[RELEASE], MsgFlags::MSG_NOSIGNAL)?;
        Ok(())
    }
}

fn receive_now(socket: BorrowedFd) -> nix::Result<FromChild> {
    let mut buffer = [0; MAX_MESSAGE];
    let mut control = nix::cmsg_space!(RawFd);
    let mut parts = [IoSliceMut::new(&mut buffer)];
    let message = recvmsg::<()>(
        socket.as_raw_fd(),
        &mut parts,
        Some(&mut control),
        MsgFlags::MSG_CMSG_CLOEXEC,
    )?;
    let mut received = None;
    for item in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = item {
            for fd in fds {
                received = Some(sys::adopt_received_fd(fd));
            }
        }
    }
    let length = message.bytes;
    let text = String::from_utf8_lossy(buffer.get(1..length).unwrap_or_default()).into_owned();
    let failed = |blame| FromChild::Failed(SetupError { blame, text });
    Ok(match (buffer.first().filter(|_| length > 0), received) {
        (Some(&TERMINAL), Some(fd)) => FromChild::Terminal(fd),
        (Some(&READY), None) => FromChild::Ready,
        (Some(&FAILED_REQUEST), None) => failed(Blame::Request),
        (Some(&FAILED_GUEST), None) => failed(Blame::Guest),
        (Some(&FAILED_ENDED), None) => failed(Blame::Ended),
        _ => FromChild::Closed,
    })
}

impl ChildLine {
    /// Hands the terminal's master side to the agent.
    pub fn send_terminal(&self, master: BorrowedFd) -> nix::Result<()> {
        let fds = [master.as_raw_fd()];
        sendmsg::<()>(
            self.socket.as_raw_fd(),
            &[IoSlice::new(&[TERMINAL])],
            &[ControlMessage::ScmRights(&fds)],
            MsgFlags::MSG_NOSIGNAL,
            None,
        )?;
        Ok(())
    }

    /// Reports that only the program is left to execute, and waits for the release.
    ///
    /// # Errors
    /// `EPIPE` when the agent has dropped the container meanwhile.
    pub fn ready(&self) -> nix::Result<()> {
        self.send(READY, "")?;
        let mut answer = [0];
        loop {
            match recv(self.socket.as_raw_fd(), &mut answer, MsgFlags::empty()) {
                Err(Errno::EINTR) => {}
                Ok(1) if answer[0] == RELEASE => return Ok(()),
                Ok(_) => return Err(Errno::EPIPE),
                Err(errno) => return Err(errno),
            }
        }
    }

    /// Reports why the child ends.
    pub fn fail(&self, error: &SetupError) -> nix::Result<()> {
        let tag = match error.blame {
            Blame::Request => FAILED_REQUEST,
            Blame::Guest => FAILED_GUEST,
            Blame::Ended => FAILED_ENDED,
        };
        self.send(tag, &error.text)
    }

    fn send(&self, tag: u8, text: &str) -> nix::Result<()> {
        let mut message = vec![tag];
        message.extend_from_slice(text.as_bytes());
        message.truncate(MAX_MESSAGE);
        // Not send(2), which the seccomp filter may hold back by now. Should the agent be
        // gone, the signal of a broken pipe ends the child no worse than it would itself.
        write(&self.socket, &message)?;
        Ok(())
    }
}

impl AsFd for ChildLine {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.socket.as_fd()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test]
    async fn messages_arrive_in_order_and_the_end_is_seen() {
        let (line, child) = pair().unwrap();
        let (read, _write) = nix::unistd::pipe().unwrap();
        child.send_terminal(read.as_fd()).unwrap();
        let long = "x".repeat(2 * MAX_MESSAGE);
        let error = SetupError {
            blame: Blame::Request,
            text: long,
        };
        child.fail(&error).unwrap();
        drop(child);
        assert!(matches!(
            line.receive().await.unwrap(),
            FromChild::Terminal(_)
        ));
        match line.receive().await.unwrap() {
            FromChild::Failed(SetupError {
                blame: Blame::Request,
                text,
            }) => {
                assert_eq!(text.len(), MAX_MESSAGE - 1);
            }
            other => panic!("{other:?}"),
        }
        assert!(matches!(line.receive().await.unwrap(), FromChild::Closed));
    }

    #[tokio::test]
    async fn the_release_reaches_a_waiting_child() {
        let (line, child) = pair().unwrap();
        line.release().unwrap();
        child.ready().unwrap();
        assert!(matches!(line.receive().await.unwrap(), FromChild::Ready));
        drop(line);
        assert_eq!(child.ready(), Err(Errno::EPIPE));
    }
}
