//! The taps: the VMM's end of each link, in the pod's network namespace.

use std::fs;
use std::fs::OpenOptions;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};

use super::NetworkError;
use super::netlink::Netlink;
use super::scan::Link;
use crate::sys;

/// A tap that is up. It is gone with the last copy of its descriptor.
#[derive(Debug)]
pub struct Tap {
    /// Its number in the pod's namespace.
    pub index: u32,
    /// What the VMM reads and writes.
    pub fd: OwnedFd,
}

/// The name of the tap that belongs to a link. No plugin chooses it, and it fits any index.
pub fn name(link: u32) -> String {
    format!("husk{link}")
}

/// Whether a tap of this name is one of ours.
pub fn is_ours(name: &str) -> bool {
    let link = name.strip_prefix("husk");
    link.is_some_and(|link| link.parse::<u32>().is_ok())
}

/// Makes the tap of `link` in the calling thread's namespace.
///
/// # Errors
/// [`NetworkError::Tap`].
pub fn make(netlink: &mut Netlink, link: &Link) -> Result<Tap, NetworkError> {
    let name = name(link.index);
    let failed = |source| NetworkError::Tap {
        name: name.clone(),
        link: link.name.clone(),
        source,
    };
    let (fd, index) = open(&name).map_err(failed)?;
    keep_silent(&name).map_err(failed)?;
    let mut message = LinkMessage::default();
    message.header.index = index;
    // It has no address to be asked for.
    message.header.flags = LinkFlags::Up | LinkFlags::Noarp;
    message.header.change_mask = message.header.flags;
    let up = netlink.change(0, RouteNetlinkMessage::SetLink(message));
    up.map_err(|error| failed(io::Error::other(error)))?;
    Ok(Tap { index, fd })
}

/// What to do when one cannot be made.
pub fn advice(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => {
            "a virtual machine carries the link already: one pod per network namespace"
        }
        _ => "is the tun module loaded?",
    }
}

fn open(name: &str) -> io::Result<(OwnedFd, u32)> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true);
    let fd: OwnedFd = options
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?
        .into();
    sys::make_tap(fd.as_fd(), name)?;
    let index = nix::net::if_::if_nametoindex(name)?;
    Ok((fd, index))
}

/// What goes out by the tap reaches the guest: nothing may come from the namespace's own
/// IPv6, which greets every link that comes up.
fn keep_silent(name: &str) -> io::Result<()> {
    let path = format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6");
    match fs::write(path, "1") {
        // A kernel without IPv6.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        written => written,
    }
}
