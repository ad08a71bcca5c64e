//! Stop 11 of twelve: the writing end of a fifo of containerd's, and the care it takes that
//! every byte written is also read.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rustix::io::ioctl_fionread;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::time::timeout;

use crate::sys;

/// How long a fifo may wait for its first reader.
const READER_DEADLINE: Duration = Duration::from_secs(10);
/// After this time without a sign of a reader it is looked at anyway: not every way
/// to read (splice) is reported by every kernel.
const RECHECK: Duration = Duration::from_millis(100);

/// The writing end with a reading end that keeps it from breaking while nobody else reads.
pub struct OutputFifo {
    writer: pipe::Sender,
    keeper: pipe::Receiver,
}

impl OutputFifo {
    /// Opens the writing end once somebody reads. Without waiting, a short-lived
    /// process's fifo could open and close before its client opened it, and the client
    /// would wait for ever.
    ///
    /// # Errors
    /// What `open` gave.
    pub async fn open(path: &Path) -> io::Result<Self> {
        let options = pipe::OpenOptions::new();
        let writer = match options.open_sender(path) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
                wait_for_reader(path).await?
            }
            opened => opened?,
        };
        let keeper = options.open_receiver(path)?;
        Ok(Self { writer, keeper })
    }

    /// Writes all of `bytes`, waiting for the reader as long as it takes.
    ///
    /// # Errors
    /// What `write` gave.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes).await
    }

    /// Ends the output once all of it was read or nobody is left to read.
    ///
    /// Clients close their end of the fifo when they learn of the process's exit, read
    /// out or not: those of containerd 1.7 do (`cio.Cancel`). So the exit may be told
    /// only when the fifo is empty, of which only the reader's doings give a sign.
    ///
    /// # Errors
    /// What the fifo or inotify gave; the output has ended all the same.
    pub async fn close(self) -> io::Result<()> {
        let Self { writer, keeper } = self;
        drop(keeper);
        if is_read_out(&writer)? {
            return Ok(());
        }
        let reads = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let name = format!("/proc/self/fd/{}", writer.as_raw_fd());
        let signs = AddWatchFlags::IN_ACCESS | AddWatchFlags::IN_CLOSE;
        reads.add_watch(name.as_str(), signs)?;
        let reads = sys::watchable(OwnedFd::from(reads))?;
        let mut events = [0; 1024];
        while !is_read_out(&writer)? {
            if let Ok(ready) = timeout(RECHECK, reads.readable()).await {
                // What was read is of no interest, only that something was.
                drop(ready?.try_io(|reads| Ok(nix::unistd::read(reads.get_ref(), &mut events)?)));
            }
        }
        Ok(())
    }
}

/// Whether the fifo is empty or without a reader.
fn is_read_out(writer: &pipe::Sender) -> io::Result<bool> {
    if ioctl_fionread(writer)? == 0 {
        return Ok(true);
    }
    let mut fds = [PollFd::new(writer.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO)?;
    // pipe(7): the writing end reports an error when no reading end is left.
    Ok(fds[0]
        .revents()
        .is_some_and(|events| events.contains(PollFlags::POLLERR)))
}

/// A blocking open on a thread of its own, ended by our own reader if none comes.
async fn wait_for_reader(path: &Path) -> io::Result<pipe::Sender> {
    let (blocking, own) = (path.to_owned(), path.to_owned());
    let mut open = tokio::task::spawn_blocking(move || {
        OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(blocking)
    });
    let opened = match timeout(READER_DEADLINE, &mut open).await {
        Ok(opened) => opened,
        Err(_) => {
            log::warn!(
                "nobody reads {}, output will stall when the fifo is full",
                own.display()
            );
            let _reader = pipe::OpenOptions::new().open_receiver(&own)?;
            open.await
        }
    };
    pipe::Sender::from_file(opened.map_err(io::Error::other)??)
}
