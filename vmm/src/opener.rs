//! Turns the files named by a `VmConfig` into open ones.
//!
//! By hand a file is a path and opened here, before anything else happens. In the jail
//! only inherited descriptors are accepted: no path outside means anything any more.

use std::collections::HashSet;
use std::ffi::CString;
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use kvm_ioctls::Kvm;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use thiserror::Error;

use crate::config::{Source, VmConfig};
use crate::devices::virtio::net::tap;
use crate::scm;

/// Why a file of the configuration cannot be used.
#[derive(Debug, Error)]
pub enum OpenError {
    /// The path cannot be opened.
    #[error("cannot open {what} {}", path.display())]
    Path {
        /// Which file of the configuration.
        what: &'static str,
        /// The path given.
        path: PathBuf,
        /// What the host said.
        #[source]
        source: io::Error,
    },
    /// The descriptor is not open.
    #[error("{what} is descriptor {fd}, which was not inherited or is named twice")]
    Descriptor {
        /// Which file of the configuration.
        what: &'static str,
        /// The number given.
        fd: RawFd,
    },
    /// Fewer descriptors came with the document.
    #[error("{what} is the received descriptor {place}, which did not come or is named twice")]
    Received {
        /// Which file of the configuration.
        what: &'static str,
        /// The place given.
        place: usize,
    },
    /// A path, in the jail.
    #[error("{what} is the path {}, but a jailed VMM takes inherited descriptors only", path.display())]
    PathInJail {
        /// Which file of the configuration.
        what: &'static str,
        /// The path given.
        path: PathBuf,
    },
}

/// Whether paths mean anything.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Paths {
    /// By hand: they are opened.
    Open,
    /// In the jail: they are refused.
    Refuse,
}

/// Takes inherited and received descriptors into possession, each once.
#[derive(Debug, Default)]
pub struct Descriptors {
    taken: HashSet<RawFd>,
    received: Vec<Option<OwnedFd>>,
}

impl Descriptors {
    /// Takes `fd`, which `what` names in an error.
    ///
    /// Standard input, output and error are never given away.
    #[expect(
        unsafe_code,
        reason = "a descriptor number becomes an owned descriptor"
    )]
    pub fn take(&mut self, fd: RawFd, what: &'static str) -> Result<OwnedFd, OpenError> {
        let refused = OpenError::Descriptor { what, fd };
        if fd <= 2 || !self.taken.insert(fd) {
            return Err(refused);
        }
        // SAFETY: the descriptor is used for one fcntl only, which fails if it is not open.
        let borrowed = unsafe { std::os::fd::BorrowedFd::borrow_raw(fd) };
        // Also keeps it from being inherited further.
        if fcntl(borrowed, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).is_err() {
            return Err(refused);
        }
        // SAFETY: it is open (the call above), was inherited for this very purpose, and
        // `taken` makes sure that it gets one owner.
        Ok(unsafe { OwnedFd::from_raw_fd(fd) })
    }

    fn take_received(&mut self, place: usize, what: &'static str) -> Result<OwnedFd, OpenError> {
        let fd = self.received.get_mut(place).and_then(Option::take);
        fd.ok_or(OpenError::Received { what, place })
    }

    /// Reads a document to its end. If it comes over a socket, descriptors may come with it.
    pub fn read_document(&mut self, fd: OwnedFd) -> io::Result<Vec<u8>> {
        use std::io::Read;
        let mut document = Vec::new();
        self.receive(&fd, &mut document)?;
        File::from(fd).read_to_end(&mut document)?;
        Ok(document)
    }

    /// Reads the first piece of a document, with which the descriptors come.
    fn receive(&mut self, socket: &OwnedFd, document: &mut Vec<u8>) -> io::Result<()> {
        let mut piece = [0; 4096];
        let (length, received) = match scm::receive(socket, &mut piece) {
            // A pipe: nothing comes with its bytes.
            Err(error) if error.raw_os_error() == Some(libc::ENOTSOCK) => return Ok(()),
            received => received?,
        };
        let received = received.map_err(io::Error::other)?;
        self.received.extend(received.into_iter().map(Some));
        document.extend_from_slice(&piece[..length]);
        Ok(())
    }
}

/// Everything a machine needs from the host, open.
pub struct Resources {
    /// The KVM device.
    pub kvm: Kvm,
    /// Uncompressed `vmlinux`.
    pub kernel: File,
    /// cpio archive.
    pub initramfs: Option<File>,
    /// Where the host connects to the guest's vsock ports.
    pub vsock_listener: Option<UnixListener>,
    /// One tap for each network device.
    pub taps: Vec<OwnedFd>,
}

impl Resources {
    /// Opens or takes every file of `config`.
    pub fn open(
        config: &VmConfig,
        paths: Paths,
        descriptors: &mut Descriptors,
    ) -> Result<Self, OpenError> {
        let mut opener = Opener { paths, descriptors };
        let initramfs = config.kernel.initramfs.as_ref();
        let vsock = config.vsock.as_ref();
        Ok(Self {
            kvm: opener.kvm(&config.kvm)?,
            kernel: opener.file(&config.kernel.image, "the kernel")?,
            initramfs: initramfs
                .map(|source| opener.file(source, "the initramfs"))
                .transpose()?,
            vsock_listener: vsock
                .map(|vsock| opener.listener(&vsock.listener))
                .transpose()?,
            taps: (config.net.iter())
                .map(|net| opener.take(&net.tap, "the tap", tap::open, |fd| fd))
                .collect::<Result<_, _>>()?,
        })
    }
}

struct Opener<'a> {
    paths: Paths,
    descriptors: &'a mut Descriptors,
}

impl Opener<'_> {
    /// `open` makes one of a path, `from` of a descriptor.
    fn take<T>(
        &mut self,
        source: &Source,
        what: &'static str,
        open: impl FnOnce(&Path) -> io::Result<T>,
        from: impl FnOnce(OwnedFd) -> T,
    ) -> Result<T, OpenError> {
        match (source, self.paths) {
            (Source::Fd(fd), _) => self.descriptors.take(*fd, what).map(from),
            (Source::Received { received }, _) => {
                self.descriptors.take_received(*received, what).map(from)
            }
            (Source::Path(path), Paths::Open) => open(path).map_err(|source| OpenError::Path {
                what,
                path: path.clone(),
                source,
            }),
            (Source::Path(path), Paths::Refuse) => Err(OpenError::PathInJail {
                what,
                path: path.clone(),
            }),
        }
    }

    fn file(&mut self, source: &Source, what: &'static str) -> Result<File, OpenError> {
        self.take(source, what, |path| File::open(path), File::from)
    }

    /// A socket left behind by an earlier run is replaced.
    fn listener(&mut self, source: &Source) -> Result<UnixListener, OpenError> {
        let bind = |path: &Path| {
            match std::fs::remove_file(path) {
                Err(error) if error.kind() != io::ErrorKind::NotFound => return Err(error),
                _ => {}
            }
            UnixListener::bind(path)
        };
        self.take(source, "the vsock listener", bind, UnixListener::from)
    }

    #[expect(unsafe_code, reason = "the KVM crate takes a descriptor number")]
    fn kvm(&mut self, source: &Source) -> Result<Kvm, OpenError> {
        let open = |path: &Path| {
            let path = CString::new(path.as_os_str().as_bytes())?;
            Kvm::new_with_path(path).map_err(io::Error::from)
        };
        let from = |fd: OwnedFd| {
            let fd = std::os::fd::IntoRawFd::into_raw_fd(fd);
            // SAFETY: `fd` is open and given up by its owner right here. That it is KVM's
            // is checked with the first ioctl, its API version.
            unsafe { Kvm::from_raw_fd(fd) }
        };
        self.take(source, "KVM", open, from)
    }
}

#[cfg(test)]
mod tests {
    use std::os::fd::{AsRawFd, IntoRawFd};

    use super::*;

    fn open_fd() -> RawFd {
        File::open("/dev/null").unwrap().into_raw_fd()
    }

    fn take(source: &Source, paths: Paths) -> Result<File, OpenError> {
        let mut descriptors = Descriptors::default();
        Opener {
            paths,
            descriptors: &mut descriptors,
        }
        .file(source, "the kernel")
    }

    #[test]
    fn a_descriptor_is_taken_once() {
        let mut descriptors = Descriptors::default();
        let fd = open_fd();
        let taken = descriptors.take(fd, "the kernel").unwrap();
        assert_eq!(taken.as_raw_fd(), fd);
        let error = descriptors.take(fd, "the initramfs").unwrap_err();
        assert_eq!(
            error.to_string(),
            format!("the initramfs is descriptor {fd}, which was not inherited or is named twice")
        );
    }

    #[test]
    fn closed_and_standard_descriptors_are_refused() {
        let mut descriptors = Descriptors::default();
        for fd in [-1, 0, 1, 2, 99_999] {
            assert!(descriptors.take(fd, "the kernel").is_err(), "{fd}");
        }
    }

    #[test]
    fn a_missing_file_is_named() {
        let error = take(&Source::Path("/none/vmlinux".into()), Paths::Open).unwrap_err();
        assert_eq!(error.to_string(), "cannot open the kernel /none/vmlinux");
    }

    #[test]
    fn descriptors_come_with_a_document_and_are_taken_once() {
        use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, sendmsg};
        use std::io::{IoSlice, Write};
        use std::os::unix::net::UnixStream;

        let (mut theirs, ours) = UnixStream::pair().unwrap();
        let file = File::open("/dev/null").unwrap();
        let fds = [file.as_raw_fd()];
        let rights = [ControlMessage::ScmRights(&fds)];
        let first = [IoSlice::new(b"first, ")];
        let socket = theirs.as_raw_fd();
        sendmsg::<UnixAddr>(socket, &first, &rights, MsgFlags::empty(), None).unwrap();
        theirs.write_all(&[b'x'; 10_000]).unwrap();
        drop(theirs);
        let mut descriptors = Descriptors::default();
        let document = descriptors.read_document(ours.into()).unwrap();
        assert_eq!(document.len(), 10_007);
        assert!(document.starts_with(b"first, x"));
        let mut take = |received| {
            let source = Source::Received { received };
            let paths = Paths::Refuse;
            let descriptors = &mut descriptors;
            Opener { paths, descriptors }.file(&source, "the tap")
        };
        assert!(take(0).is_ok());
        for place in [0, 1] {
            let error = take(place).unwrap_err().to_string();
            assert!(error.contains(&format!("the tap is the received descriptor {place}")));
        }
    }

    #[test]
    fn a_document_from_a_pipe_comes_alone() {
        let (read, write) = nix::unistd::pipe().unwrap();
        nix::unistd::write(&write, b"{}").unwrap();
        drop(write);
        let mut descriptors = Descriptors::default();
        assert_eq!(descriptors.read_document(read).unwrap(), b"{}");
    }

    #[test]
    fn the_jail_takes_no_paths() {
        let path = Source::Path("/dev/null".into());
        assert!(take(&path, Paths::Open).is_ok());
        let error = take(&path, Paths::Refuse).unwrap_err().to_string();
        assert!(error.contains("descriptors only"), "{error}");
        assert!(take(&Source::Fd(open_fd()), Paths::Refuse).is_ok());
    }
}
