//! The agent's side of a terminal.

use std::io;
use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::{read, write};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::stdio::set_nonblocking;
use crate::sys;

/// The master side of a pseudo-terminal.
#[derive(Debug)]
pub struct Tty {
    master: AsyncFd<OwnedFd>,
}

impl Tty {
    /// Takes charge of a master side.
    pub fn new(master: OwnedFd) -> io::Result<Self> {
        set_nonblocking(&master)?;
        Ok(Self {
            master: sys::watch_fd(master, Interest::READABLE | Interest::WRITABLE)?,
        })
    }

    /// Reads what the process wrote; 0 at the end.
    pub async fn read(&self, buffer: &mut [u8]) -> io::Result<usize> {
        let read = |master: &OwnedFd| Ok(read(master, buffer)?);
        match self.master.async_io(Interest::READABLE, read).await {
            // How Linux says that no process has the terminal open any more, once
            // all output was read (pty(7)).
            Err(error) if error.raw_os_error() == Some(Errno::EIO as i32) => Ok(0),
            other => other,
        }
    }

    /// Types `bytes`.
    pub async fn write_all(&self, mut bytes: &[u8]) -> io::Result<()> {
        while !bytes.is_empty() {
            let write = |master: &OwnedFd| Ok(write(master, bytes)?);
            let written = self.master.async_io(Interest::WRITABLE, write).await?;
            bytes = bytes.get(written..).unwrap_or_default();
        }
        Ok(())
    }

    /// Sets the size in characters; the process is told by `SIGWINCH`.
    pub fn resize(&self, width: u16, height: u16) -> nix::Result<()> {
        sys::set_window_size(self.master.as_fd(), width, height)
    }
}
