//! The network namespace that a pod is in, and work in it.

use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, OpenOptionsExt};
use std::path::{Path, PathBuf};
use std::thread;

use nix::sched::{CloneFlags, setns};

use super::NetworkError;
use super::netlink::Netlink;

/// A network namespace. It exists for as long as this does.
#[derive(Debug)]
pub struct Namespace {
    path: PathBuf,
    file: File,
}

impl Namespace {
    /// Opens it by a path.
    ///
    /// # Errors
    /// [`NetworkError::Enter`].
    pub fn open(path: &Path) -> Result<Self, NetworkError> {
        let path = path.to_owned();
        // O_NONBLOCK: should the path name a fifo, this must not hang.
        let opened = OpenOptions::new()
            .read(true)
            .custom_flags(libc::O_NONBLOCK)
            .open(&path);
        match opened {
            Ok(file) => Ok(Self { path, file }),
            Err(source) => Err(NetworkError::Enter { path, source }),
        }
    }

    /// Its number, by which namespaces are told apart.
    ///
    /// # Errors
    /// What the operating system says.
    pub fn inode(&self) -> io::Result<u64> {
        Ok(self.file.metadata()?.ino())
    }

    /// Does `work` in it, on a thread that never leaves it.
    ///
    /// # Errors
    /// [`NetworkError::Enter`], and those of the work.
    pub fn within<T: Send>(
        &self,
        work: impl FnOnce(&mut Netlink) -> Result<T, NetworkError> + Send,
    ) -> Result<T, NetworkError> {
        let failed = |source| NetworkError::Enter {
            path: self.path.clone(),
            source,
        };
        let inside = || {
            let entered = setns(self.file.as_fd(), CloneFlags::CLONE_NEWNET);
            entered.map_err(|errno| failed(errno.into()))?;
            work(&mut Netlink::open().map_err(failed)?)
        };
        thread::scope(|scope| {
            let thread = thread::Builder::new().name("netns".to_owned());
            let thread = thread.spawn_scoped(scope, inside).map_err(failed)?;
            let panicked = |_| failed(io::Error::other("the thread in it panicked"));
            thread.join().map_err(panicked)?
        })
    }
}
