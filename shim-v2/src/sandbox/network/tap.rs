//! The taps: the VMM's end of each link, in the pod's network namespace. Most are ours; a tap
//! or macvtap of the pod's own is opened as it is.

use std::fs;
use std::fs::{File, OpenOptions};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::OpenOptionsExt;

use libc::c_int;
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkFlags, LinkMessage};
use nix::errno::Errno;
use rustix::fs::{FileType, Mode, OFlags, makedev, mknodat, openat};
use rustix::mount::{FsMountFlags, FsOpenFlags, MountAttrFlags, fsconfig_create, fsmount, fsopen};

use super::NetworkError;
use super::netlink::Netlink;
use super::scan::Link;
use crate::sys;

/// Ethernet frames, each after the header of virtio-net.
const TAP: c_int = libc::IFF_TAP | libc::IFF_NO_PI | libc::IFF_VNET_HDR;
/// Fails if there is one of that name.
const IFF_TUN_EXCL: c_int = 0x8000;

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

/// The number of the link that a tap of ours of this name belongs to.
pub fn link_of(name: &str) -> Option<u32> {
    name.strip_prefix("husk")?.parse().ok()
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
    let (fd, index) = attach(&name, TAP | IFF_TUN_EXCL).map_err(failed)?;
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

/// Opens the tap `link` of the calling thread's namespace, which nobody holds.
///
/// # Errors
/// [`NetworkError::Open`].
pub fn open_tap(link: &Link) -> Result<OwnedFd, NetworkError> {
    let open = || {
        let one = attach(&link.name, TAP);
        // What it was made with has to be named, too.
        let (fd, index) = match one {
            Err(error) if error.raw_os_error() == Some(libc::EINVAL) => {
                attach(&link.name, TAP | libc::IFF_MULTI_QUEUE)?
            }
            one => one?,
        };
        // Without one of that name the call makes one, which goes with the descriptor.
        match index == link.index {
            true => Ok(fd),
            false => Err(Errno::ENODEV.into()),
        }
    };
    open().map_err(|source| cannot_open("tap", link, source))
}

/// Opens the character device of the macvtap `link` of the calling thread's namespace.
///
/// # Errors
/// [`NetworkError::Open`].
pub fn open_macvtap(link: &Link) -> Result<OwnedFd, NetworkError> {
    let open = || {
        // The numbers are in the sysfs of the namespace; the node's /dev may have none of it, or
        // another namespace's of the same name.
        let sysfs = mounted("sysfs", MountAttrFlags::MOUNT_ATTR_RDONLY)?;
        let numbers = format!("class/macvtap/tap{}/dev", link.index);
        let numbers = openat(&sysfs, numbers, OFlags::CLOEXEC, Mode::empty())?;
        let numbers = io::read_to_string(File::from(numbers))?;
        let device = device(&numbers).ok_or(io::ErrorKind::InvalidData)?;
        let dev = mounted("tmpfs", MountAttrFlags::empty())?;
        mknodat(&dev, "tap", FileType::CharacterDevice, Mode::RUSR, device)?;
        let flags = OFlags::RDWR | OFlags::NONBLOCK | OFlags::CLOEXEC;
        Ok(openat(&dev, "tap", flags, Mode::empty())?)
    };
    open().map_err(|source| cannot_open("macvtap", link, source))
}

/// A new file system of this type that is mounted nowhere.
fn mounted(kind: &str, attributes: MountAttrFlags) -> io::Result<OwnedFd> {
    let new = fsopen(kind, FsOpenFlags::FSOPEN_CLOEXEC)?;
    fsconfig_create(new.as_fd())?;
    Ok(fsmount(
        new.as_fd(),
        FsMountFlags::FSMOUNT_CLOEXEC,
        attributes,
    )?)
}

/// Reads `major:minor`.
fn device(numbers: &str) -> Option<u64> {
    let (major, minor) = numbers.trim_end().split_once(':')?;
    Some(makedev(major.parse().ok()?, minor.parse().ok()?))
}

fn cannot_open(kind: &'static str, link: &Link, source: io::Error) -> NetworkError {
    let name = link.name.clone();
    NetworkError::Open { kind, name, source }
}

/// What to do when one that is there cannot be opened.
pub fn advice_for_its_own(error: &io::Error) -> &'static str {
    match error.raw_os_error() {
        Some(libc::EBUSY) => ": another program has just opened it",
        _ => ": if it stays so, take it down or out of the namespace",
    }
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

/// A descriptor of the tap `name`, and its number.
fn attach(name: &str, flags: c_int) -> io::Result<(OwnedFd, u32)> {
    let mut options = OpenOptions::new();
    let options = options.read(true).write(true);
    let fd: OwnedFd = options
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/net/tun")?
        .into();
    sys::attach_tap(fd.as_fd(), name, flags)?;
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
