//! Descriptors that come over a Unix socket (`SCM_RIGHTS`, unix(7)).

use std::io::{self, IoSliceMut};
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd, RawFd};

use nix::sys::socket::{ControlMessageOwned, MsgFlags, UnixAddr, recvmsg};

/// Most descriptors that may come at once (`SCM_MAX_FD`).
const MAX_RECEIVED: usize = 253;

/// Receives one piece of a stream, or one packet, and what came with it. Returns its length.
///
/// # Errors
/// Those of recvmsg(2).
#[expect(
    unsafe_code,
    reason = "a descriptor number becomes an owned descriptor"
)]
pub fn receive(socket: &OwnedFd, piece: &mut [u8]) -> io::Result<(usize, Vec<OwnedFd>)> {
    let mut space = nix::cmsg_space!([RawFd; MAX_RECEIVED]);
    let mut buffers = [IoSliceMut::new(piece)];
    let flags = MsgFlags::MSG_CMSG_CLOEXEC;
    let message = recvmsg::<UnixAddr>(socket.as_raw_fd(), &mut buffers, Some(&mut space), flags)?;
    let mut received = Vec::new();
    for control in message.cmsgs()? {
        if let ControlMessageOwned::ScmRights(fds) = control {
            for fd in fds {
                // SAFETY: the kernel just made this descriptor for us; nobody else owns it.
                received.push(unsafe { OwnedFd::from_raw_fd(fd) });
            }
        }
    }
    Ok((message.bytes, received))
}
