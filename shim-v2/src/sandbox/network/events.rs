//! What the kernel says of changes in a network namespace: that there are some.
//!
//! What changed is not read from the messages. Some of them may be lost when there are many,
//! which the kernel says too; so whoever follows a namespace looks at it as a whole.

use std::future::pending;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd};

use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, NetlinkAddr, SockFlag, SockProtocol, SockType, bind, recv, socket,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Groups of rtnetlink(7) that tell of links, neighbours, redirects, addresses, routes, rules and
/// some kernel parameters.
const GROUPS: i32 = libc::RTMGRP_LINK
    | libc::RTMGRP_NEIGH
    | libc::RTMGRP_TC
    | libc::RTMGRP_IPV4_IFADDR
    | libc::RTMGRP_IPV4_ROUTE
    | libc::RTMGRP_IPV6_IFADDR
    | libc::RTMGRP_IPV6_ROUTE
    | 1 << (RTNLGRP_IPV4_RULE - 1)
    | 1 << (RTNLGRP_IPV6_RULE - 1)
    | 1 << (RTNLGRP_IPV4_NETCONF - 1)
    | 1 << (RTNLGRP_IPV6_NETCONF - 1);
const RTNLGRP_IPV4_RULE: u32 = 8;
const RTNLGRP_IPV6_RULE: u32 = 19;
const RTNLGRP_IPV4_NETCONF: u32 = 24;
const RTNLGRP_IPV6_NETCONF: u32 = 25;
/// Group of nfnetlink that tells of changes of nftables (`NFNLGRP_NFTABLES`).
const GROUP_OF_NFTABLES: u32 = 1 << (7 - 1);

/// Where the kernel tells of changes.
#[derive(Debug)]
pub struct Sockets {
    /// Of all but packet filters.
    network: OwnedFd,
    /// Of those of nftables.
    filters: Option<OwnedFd>,
}

/// Has the kernel tell of changes in the calling thread's network namespace, from now on; of
/// `filters`, too, where that is asked for.
///
/// # Errors
/// What the kernel says.
pub fn open(filters: bool) -> io::Result<Sockets> {
    let open = |protocol, groups| {
        let socket = socket(
            AddressFamily::Netlink,
            SockType::Raw,
            SockFlag::SOCK_CLOEXEC | SockFlag::SOCK_NONBLOCK,
            protocol,
        )?;
        bind(socket.as_raw_fd(), &NetlinkAddr::new(0, groups))?;
        io::Result::Ok(socket)
    };
    let filters = filters.then(|| open(SockProtocol::NetlinkNetFilter, GROUP_OF_NFTABLES));
    // A kernel without such filters does not know the protocol.
    let filters = filters
        .transpose()
        .or_else(|error| match error.raw_os_error() {
            Some(libc::EPROTONOSUPPORT) => Ok(None),
            _ => Err(error),
        })?;
    let network = open(SockProtocol::NetlinkRoute, GROUPS as u32)?;
    Ok(Sockets { network, filters })
}

/// The changes of a namespace, as they are told.
pub struct Events {
    network: AsyncFd<OwnedFd>,
    filters: Option<AsyncFd<OwnedFd>>,
}

impl Events {
    /// Listens to what [`open`] opened.
    ///
    /// # Errors
    /// If it cannot be waited for.
    pub fn new(sockets: Sockets) -> io::Result<Self> {
        Ok(Self {
            network: sys::watchable(sockets.network)?,
            filters: sockets.filters.map(sys::watchable).transpose()?,
        })
    }

    /// Waits until something has changed. May be dropped at any time.
    pub async fn changed(&self) {
        let of_filters = async {
            match &self.filters {
                Some(filters) => filters.async_io(Interest::READABLE, one).await,
                None => pending().await,
            }
        };
        let told = tokio::select! {
            told = self.network.async_io(Interest::READABLE, one) => told,
            told = of_filters => told,
        };
        if let Err(error) = told {
            lost(&error);
        }
    }

    /// Whether they are told of packet filters, too.
    pub fn tell_of_filters(&self) -> bool {
        self.filters.is_some()
    }

    /// Whether something has changed, without waiting: what was told until now is then read.
    /// The kernel tells of a change before the call that made it returns.
    pub fn drain(&self) -> bool {
        let filters = self.filters.as_ref().map(AsyncFd::get_ref);
        let changed = drain(self.network.get_ref());
        filters.is_some_and(drain) || changed
    }
}

fn drain(socket: &OwnedFd) -> bool {
    let mut changed = false;
    loop {
        match one(socket) {
            Ok(()) => changed = true,
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => return changed,
            Err(error) => {
                lost(&error);
                return true;
            }
        }
    }
}

/// Reads one message that tells of a change here, and forgets it.
fn one(socket: &OwnedFd) -> io::Result<()> {
    loop {
        // A message that does not fit is cut, and read nonetheless.
        let mut message = [0; 32];
        recv(socket.as_raw_fd(), &mut message, MsgFlags::MSG_DONTWAIT)?;
        if !is_of_a_bridge(&message) {
            return Ok(());
        }
    }
}

/// Whether it tells what a bridge has learnt, which whoever sends through it decides: the type in
/// `struct nlmsghdr`, the family in the `struct ndmsg` behind it.
fn is_of_a_bridge(message: &[u8; 32]) -> bool {
    let kind = u16::from_ne_bytes([message[4], message[5]]);
    let neighbour = [libc::RTM_NEWNEIGH, libc::RTM_DELNEIGH].contains(&kind);
    neighbour && i32::from(message[16]) == libc::AF_BRIDGE
}

/// Nothing is lost for who looks at the whole.
fn lost(error: &io::Error) {
    if error.raw_os_error() != Some(Errno::ENOBUFS as i32) {
        log::warn!("changes of the pod's network may be noticed late: {error}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_what_a_bridge_learns_is_no_change() {
        for (kind, family, learnt) in [
            (libc::RTM_NEWNEIGH, libc::AF_BRIDGE, true),
            (libc::RTM_DELNEIGH, libc::AF_BRIDGE, true),
            (libc::RTM_NEWNEIGH, libc::AF_INET6, false),
            (libc::RTM_NEWLINK, libc::AF_BRIDGE, false),
        ] {
            let mut message = [0; 32];
            message[4..6].copy_from_slice(&kind.to_ne_bytes());
            message[16] = family as u8;
            assert_eq!(is_of_a_bridge(&message), learnt, "{kind} {family}");
        }
    }
}
