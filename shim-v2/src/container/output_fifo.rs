//! Stop 11 of twelve: the writing end of a fifo of containerd's, and the care it takes that
//! every byte written is also read.

use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::inotify::{AddWatchFlags, InitFlags, Inotify};
use rustix::fs::{Mode, OFlags};
use rustix::io::ioctl_fionread;
use tokio::io::AsyncWriteExt;
use tokio::net::unix::pipe;
use tokio::sync::oneshot;
use tokio::time::{Instant, timeout};

use crate::sys;

/// How long a fifo may wait for its first reader.
const READER_DEADLINE: Duration = Duration::from_secs(10);
/// After this time without a sign of a reader it is looked at anyway: not every way
/// to read (splice) is reported by every kernel.
const RECHECK: Duration = Duration::from_millis(100);
/// How long a reader may leave the last bytes untouched before they count as its own
/// affair: some read only after they have heard of the exit.
const UNTOUCHED: Duration = Duration::from_secs(1);

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
        // Its client may take the name away at any time.
        let inode = rustix::fs::open(path, OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
        let by_inode = PathBuf::from(format!("/proc/self/fd/{}", inode.as_raw_fd()));
        let options = pipe::OpenOptions::new();
        let writer = match options.open_sender(&by_inode) {
            Err(error) if error.raw_os_error() == Some(libc::ENXIO) => {
                wait_for_reader(path, &by_inode).await?
            }
            opened => opened?,
        };
        let keeper = options.open_receiver(&by_inode)?;
        Ok(Self { writer, keeper })
    }

    /// Writes all of `bytes`, waiting for the reader as long as it takes.
    ///
    /// # Errors
    /// What `write` gave.
    pub async fn write_all(&mut self, bytes: &[u8]) -> io::Result<()> {
        self.writer.write_all(bytes).await
    }

    /// Ends the output once all of it was read, or nobody reads.
    ///
    /// Clients close their end of the fifo when they learn of the process's exit, read
    /// out or not: those of containerd 1.7 do (`cio.Cancel`). So the exit is told only
    /// when the fifo is empty, of which only the reader's doings give a sign. What a
    /// reader leaves untouched for [`UNTOUCHED`] stays in the fifo for it.
    ///
    /// # Errors
    /// What the fifo or inotify gave; the output has ended all the same.
    pub async fn close(self) -> io::Result<()> {
        let Self { writer, keeper } = self;
        drop(keeper);
        let mut left = unread(&writer)?;
        if left == 0 {
            return Ok(());
        }
        let reads = Inotify::init(InitFlags::IN_CLOEXEC | InitFlags::IN_NONBLOCK)?;
        let name = format!("/proc/self/fd/{}", writer.as_raw_fd());
        let signs = AddWatchFlags::IN_ACCESS | AddWatchFlags::IN_CLOSE;
        reads.add_watch(name.as_str(), signs)?;
        let reads = sys::watchable(OwnedFd::from(reads))?;
        let mut events = [0; 1024];
        let mut touched = Instant::now();
        loop {
            match unread(&writer)? {
                0 => return Ok(()),
                now if now != left => (left, touched) = (now, Instant::now()),
                _ if touched.elapsed() >= UNTOUCHED => return Ok(()),
                _ => {}
            }
            if let Ok(ready) = timeout(RECHECK, reads.readable()).await {
                // What was read is of no interest, only that something was.
                drop(ready?.try_io(|reads| Ok(nix::unistd::read(reads.get_ref(), &mut events)?)));
            }
        }
    }
}

/// The bytes in the fifo, none if nobody is left to read them.
fn unread(writer: &pipe::Sender) -> io::Result<u64> {
    let mut fds = [PollFd::new(writer.as_fd(), PollFlags::empty())];
    poll(&mut fds, PollTimeout::ZERO)?;
    // pipe(7): the writing end reports an error when no reading end is left.
    let abandoned = fds[0]
        .revents()
        .is_some_and(|events| events.contains(PollFlags::POLLERR));
    Ok(match abandoned {
        true => 0,
        false => ioctl_fionread(writer)?,
    })
}

/// A blocking open on a thread of its own, ended by our own reader if none comes.
async fn wait_for_reader(path: &Path, by_inode: &Path) -> io::Result<pipe::Sender> {
    let (opened, mut open) = oneshot::channel();
    let blocking = by_inode.to_owned();
    // Not one of the few threads that mounting and all else share.
    thread::Builder::new().spawn(move || {
        let options = OpenOptions::new()
            .write(true)
            .custom_flags(libc::O_CLOEXEC)
            .open(blocking);
        // Nobody may wait any more.
        drop(opened.send(options));
    })?;
    let opened = match timeout(READER_DEADLINE, &mut open).await {
        Ok(opened) => opened,
        Err(_) => {
            log::warn!(
                "nobody reads {}, output will stall when the fifo is full",
                path.display()
            );
            let _reader = pipe::OpenOptions::new().open_receiver(by_inode)?;
            open.await
        }
    };
    pipe::Sender::from_file(opened.map_err(io::Error::other)??)
}
