//! The tap: how it is opened, checked and told what the guest can do, and the two system
//! calls that move a frame between it and guest memory.

use std::fs::File;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;

use libc::{c_int, c_uint, c_ulong, iovec};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use thiserror::Error;
use vm_memory::VolatileSlice;
use vmm_sys_util::ioctl::{ioctl_with_mut_ref, ioctl_with_ref, ioctl_with_val};

use super::{HEADER_LEN, features};

/// Ethernet frames, no packet information before them, a `virtio_net_hdr` instead.
const FLAGS: c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;

/// What a network device needs of its other side. A tap; in tests, a socket.
pub trait Link: AsRawFd + Send + Sync {
    /// What frames it can leave to the receiver, as bits of TUNSETOFFLOAD.
    fn offloads(&self) -> c_uint;

    /// Sets what frames may leave to the receiver, as bits of TUNSETOFFLOAD.
    fn set_offload(&self, offload: c_uint) -> io::Result<()>;

    /// Takes one frame, to `parts` and what they do not hold to `rest`. The end of a frame
    /// longer than both is lost. Does not wait.
    fn receive(&self, parts: &[VolatileSlice], rest: &mut [u8]) -> io::Result<usize> {
        read_vectored(self.as_raw_fd(), parts, rest)
    }

    /// Gives away one frame, whole or not at all. Does not wait.
    fn send(&self, parts: &[VolatileSlice]) -> io::Result<()> {
        write_vectored(self.as_raw_fd(), parts)
    }
}

/// Why a tap cannot be used.
#[derive(Debug, Error)]
pub enum TapError {
    /// TUNGETIFF failed.
    #[error("the descriptor is not a tap's")]
    NotATap(#[source] io::Error),
    /// It was opened in another way.
    #[error(
        "tap {name} was opened with the flags {flags:#x}; \
         IFF_TAP, IFF_NO_PI and IFF_VNET_HDR are needed"
    )]
    Flags {
        /// The link's name.
        name: String,
        /// What TUNGETIFF says.
        flags: c_int,
    },
    /// The host's kernel refused a setting.
    #[error("tap {name} refused {what}")]
    Refused {
        /// The link's name.
        name: String,
        /// Which setting.
        what: &'static str,
        /// What it said.
        #[source]
        source: io::Error,
    },
}

/// A tap, ready for frames with a header of version 1.
#[derive(Debug)]
pub struct Tap {
    fd: OwnedFd,
    offloads: c_uint,
}

impl Tap {
    /// Checks that `fd` is a tap of the right kind, and sets it up.
    pub fn new(fd: OwnedFd) -> Result<Self, TapError> {
        let (name, flags) = identify(&fd).map_err(TapError::NotATap)?;
        if flags & FLAGS != FLAGS {
            return Err(TapError::Flags { name, flags });
        }
        let refused = |what| {
            let name = name.clone();
            move |source| TapError::Refused { name, what, source }
        };
        set_int(&fd, libc::TUNSETVNETHDRSZ, HEADER_LEN as c_int)
            .map_err(refused("a header of 12 bytes"))?;
        // What virtio says of version 1, whatever the host's own order of bytes.
        set_int(&fd, libc::TUNSETVNETLE, 1).map_err(refused("a little-endian header"))?;
        set_nonblocking(&fd).map_err(refused("not to wait"))?;
        let offloads = features::probe(|offloads| set_offload(&fd, offloads));
        let offloads = offloads.map_err(refused("to have no offloads"))?;
        Ok(Self { fd, offloads })
    }
}

impl AsRawFd for Tap {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Link for Tap {
    fn offloads(&self) -> c_uint {
        self.offloads
    }

    fn set_offload(&self, offload: c_uint) -> io::Result<()> {
        set_offload(&self.fd, offload)
    }
}

/// Opens the tap called `name`, for use by hand; makes it if there is none.
#[expect(unsafe_code, reason = "an ioctl")]
pub fn open(name: &Path) -> io::Result<OwnedFd> {
    let file = File::options()
        .read(true)
        .write(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?;
    let mut request = no_request();
    let bytes = name.as_os_str().as_bytes();
    // One byte is left for the NUL.
    if bytes.is_empty() || bytes.len() >= request.ifr_name.len() {
        return Err(io::ErrorKind::InvalidInput.into());
    }
    for (to, from) in request.ifr_name.iter_mut().zip(bytes) {
        *to = *from as libc::c_char;
    }
    // The flags fit: they are those of a field this wide.
    request.ifr_ifru.ifru_flags = FLAGS as i16;
    // SAFETY: TUNSETIFF reads and writes an `ifreq`, which `request` is.
    check(unsafe { ioctl_with_mut_ref(&file, libc::TUNSETIFF, &mut request) })?;
    Ok(file.into())
}

/// The link's name and the flags it was opened with.
#[expect(unsafe_code, reason = "an ioctl, and the union it fills")]
fn identify(fd: &OwnedFd) -> io::Result<(String, c_int)> {
    let mut request = no_request();
    // SAFETY: TUNGETIFF writes an `ifreq`, which `request` is.
    check(unsafe { ioctl_with_mut_ref(fd, libc::TUNGETIFF, &mut request) })?;
    let name = request.ifr_name.iter().take_while(|byte| **byte != 0);
    let name: Vec<u8> = name.map(|byte| *byte as u8).collect();
    // SAFETY: TUNGETIFF fills the flags; any value of them is valid.
    let flags = unsafe { request.ifr_ifru.ifru_flags };
    Ok((
        String::from_utf8_lossy(&name).into_owned(),
        c_int::from(flags as u16),
    ))
}

#[expect(unsafe_code, reason = "a structure with a union is to be zero")]
fn no_request() -> libc::ifreq {
    // SAFETY: it is made of integers and a pointer, for all of which zero is valid.
    unsafe { std::mem::zeroed() }
}

#[expect(unsafe_code, reason = "an ioctl")]
fn set_int(fd: &OwnedFd, request: c_ulong, value: c_int) -> io::Result<()> {
    // SAFETY: the callers' requests read one int, which `value` is.
    check(unsafe { ioctl_with_ref(fd, request, &value) })
}

#[expect(unsafe_code, reason = "an ioctl")]
fn set_offload(fd: &OwnedFd, offload: c_uint) -> io::Result<()> {
    // SAFETY: TUNSETOFFLOAD takes a number and touches no memory of ours.
    check(unsafe { ioctl_with_val(fd, libc::TUNSETOFFLOAD, c_ulong::from(offload)) })
}

fn set_nonblocking(fd: &OwnedFd) -> io::Result<()> {
    let flags = OFlag::from_bits_retain(fcntl(fd, FcntlArg::F_GETFL)?);
    fcntl(fd, FcntlArg::F_SETFL(flags | OFlag::O_NONBLOCK))?;
    Ok(())
}

fn check(status: c_int) -> io::Result<()> {
    if status < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

#[expect(unsafe_code, reason = "the kernel writes to guest memory")]
fn read_vectored(fd: RawFd, parts: &[VolatileSlice], rest: &mut [u8]) -> io::Result<usize> {
    let guards: Vec<_> = parts.iter().map(VolatileSlice::ptr_guard_mut).collect();
    let parts = guards.iter().map(|part| (part.as_ptr(), part.len()));
    let rest = std::iter::once((rest.as_mut_ptr(), rest.len()));
    let vector: Vec<_> = parts.chain(rest).map(entry).collect();
    // SAFETY: every entry but the last is a piece of a live mapping of guest RAM, held by
    // its guard and never borrowed as a slice; the last is `rest`, borrowed mutably. The
    // guest may access its RAM meanwhile, which the kernel's copying tolerates.
    let len = unsafe { libc::readv(fd, vector.as_ptr(), count(&vector)) };
    usize::try_from(len).map_err(|_| io::Error::last_os_error())
}

#[expect(unsafe_code, reason = "the kernel reads from guest memory")]
pub(super) fn write_vectored(fd: RawFd, parts: &[VolatileSlice]) -> io::Result<()> {
    let guards: Vec<_> = parts.iter().map(VolatileSlice::ptr_guard).collect();
    let parts = guards
        .iter()
        .map(|part| (part.as_ptr().cast_mut(), part.len()));
    let vector: Vec<_> = parts.map(entry).collect();
    // SAFETY: as above; the kernel only reads from these pieces.
    let len = unsafe { libc::writev(fd, vector.as_ptr(), count(&vector)) };
    if len < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}

fn entry((start, len): (*mut u8, usize)) -> iovec {
    iovec {
        iov_base: start.cast(),
        iov_len: len,
    }
}

/// More than the kernel takes (IOV_MAX) is refused by it.
fn count(vector: &[iovec]) -> c_int {
    c_int::try_from(vector.len()).unwrap_or(c_int::MAX)
}
