//! Descriptors that come over a Unix socket (`SCM_RIGHTS`, unix(7)).

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};
use thiserror::Error;

/// Most descriptors that may come at once (`SCM_MAX_FD`).
const MAX_RECEIVED: usize = 253;

/// Why what came with some bytes is not there (MSG_CTRUNC): there is room for all that the
/// kernel lets through, so it had no number to give.
#[derive(Debug, Error)]
#[error(
    "a descriptor that was sent did not arrive: this VMM has as many files open as it may \
     (RLIMIT_NOFILE), most of them files that the guest knows; with more memory it may have \
     more: 1024 for each MiB, at least 20000, as far as the host's hard limit goes"
)]
pub struct Lost;

/// Receives one piece of a stream, or one packet, and what came with it. Returns its length.
///
/// # Errors
/// Those of recvmsg(2). [`Lost`] is none of them: the bytes have been received.
#[expect(
    unsafe_code,
    reason = "a descriptor number becomes an owned descriptor"
)]
pub fn receive(
    socket: &OwnedFd,
    piece: &mut [u8],
) -> io::Result<(usize, Result<Vec<OwnedFd>, Lost>)> {
    let mut space = nix::cmsg_space!([RawFd; MAX_RECEIVED]);
    let mut buffers = [IoSliceMut::new(piece)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut buffers, Some(&mut space), flags)?;
    let Ok(controls) = message.cmsgs() else {
        return Ok((message.bytes, Err(Lost)));
    };
    let mut received = Vec::new();
    for control in controls {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
                received.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    Ok((message.bytes, Ok(received)))
}
