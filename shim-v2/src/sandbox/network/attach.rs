//! A link of the pod's network namespace becomes a device of the machine, and is left as it was.

use nix::net::if_::if_nametoindex;

use super::netlink::{Netlink, NetlinkError};
use super::redirect::{self, Redirect};
use super::scan::{Backend, Link, Scan};
use super::tap;
use super::{MAX_NICS, Netns, NetworkError, Nic, Redirects};
use crate::error::chain;

/// How often a namespace is looked at whose links go while the machine is connected to them.
const LOOKS: usize = 10;

/// The device that a link got, and what was added to the link: nothing to one that is used
/// directly.
pub type Attached = (Nic, Option<Redirect>);

impl Netns {
    /// Connects a link to the machine's end of it.
    ///
    /// # Errors
    /// See [`NetworkError`]; nothing is left then.
    pub fn attach(&self, link: &Link) -> Result<Attached, NetworkError> {
        self.namespace.within(|netlink| {
            let filtered = filtered(netlink)?;
            self.attach_with(netlink, link, &filtered)
        })
    }

    /// Takes away what [`Netns::attach`] added to a link, if it is there.
    ///
    /// # Errors
    /// See [`NetworkError`].
    pub fn detach(&self, redirect: Redirect) -> Result<(), NetworkError> {
        self.namespace.within(|netlink| remove(netlink, redirect))?;
        self.forget(redirect)
    }

    /// Connects all links. Where one went while they were at it, everything is looked at again.
    pub(super) fn attach_all(
        &self,
        netlink: &mut Netlink,
    ) -> Result<(Scan, Vec<Attached>), NetworkError> {
        let mut looks = 0;
        loop {
            let mut scan = self.scan(netlink)?;
            if let Some(problem) = scan.problems.pop() {
                return Err(problem);
            }
            let found = scan.links.len();
            if found > MAX_NICS as usize {
                return Err(NetworkError::TooMany { found });
            }
            let filtered = filtered(netlink)?;
            let mut attached = Vec::new();
            let failed = scan.links.iter().find_map(|link| {
                match self.attach_with(netlink, link, &filtered) {
                    Ok(one) => attached.push(one),
                    Err(error) => return Some((link, error)),
                }
                None
            });
            let Some((link, error)) = failed else {
                return Ok((scan, attached));
            };
            looks += 1;
            if looks == LOOKS || if_nametoindex(link.name.as_str()) == Ok(link.index) {
                return Err(error);
            }
            log::info!("network: link {} went during the boot", link.name);
            for redirect in attached.into_iter().filter_map(|(_, redirect)| redirect) {
                remove(netlink, redirect)?;
                self.forget(redirect)?;
            }
        }
    }

    fn attach_with(
        &self,
        netlink: &mut Netlink,
        link: &Link,
        filtered: &[u32],
    ) -> Result<Attached, NetworkError> {
        let (tap, redirect) = match link.backend {
            Backend::Redirected => {
                let tap = tap::make(netlink, link)?;
                (
                    tap.fd,
                    Some(self.redirect(netlink, link, tap.index, filtered)?),
                )
            }
            Backend::Tap => (tap::open_tap(link)?, None),
            Backend::MacVtap => (tap::open_macvtap(link)?, None),
        };
        let nic = Nic {
            tap,
            mac: link.mac,
            // The guest is told the link's like its other settings, which may change.
            mtu: u16::MAX,
        };
        Ok((nic, redirect))
    }

    fn redirect(
        &self,
        netlink: &mut Netlink,
        link: &Link,
        tap: u32,
        filtered: &[u32],
    ) -> Result<Redirect, NetworkError> {
        let redirect = redirect::plan(filtered, link.index);
        self.record(redirect)?;
        if let Err(source) = join(netlink, link, tap, redirect) {
            // Nothing of ours is there.
            if let Err(error) = self.forget(redirect) {
                log::warn!("link {}: {}", link.name, chain(&error));
            }
            let link = link.name.clone();
            return Err(NetworkError::Redirect { link, source });
        }
        Ok(redirect)
    }

    fn forget(&self, redirect: Redirect) -> Result<(), NetworkError> {
        let struck = self.file.record(|state| {
            if let Some(redirects) = &mut state.redirects {
                redirects.links.retain(|recorded| *recorded != redirect);
            }
        });
        struck.map_err(NetworkError::Record)
    }

    fn record(&self, redirect: Redirect) -> Result<(), NetworkError> {
        let Some(name) = &self.name else {
            return Ok(());
        };
        // Not the path's, which may name another one by now, or none.
        let inode = self.namespace.inode().map_err(NetworkError::Record)?;
        let recorded = self.file.record(|state| {
            let redirects = state.redirects.get_or_insert_with(|| Redirects {
                netns: name.clone(),
                inode,
                links: Vec::new(),
            });
            redirects.links.push(redirect);
        });
        recorded.map_err(NetworkError::Record)
    }
}

pub(super) fn filtered(netlink: &mut Netlink) -> Result<Vec<u32>, NetworkError> {
    let what = "queueing disciplines";
    redirect::filtered(netlink).map_err(|source| NetworkError::List { what, source })
}

/// Redirects between a link and its tap. After an error the link is as it was.
fn join(
    netlink: &mut Netlink,
    link: &Link,
    tap: u32,
    redirect: Redirect,
) -> Result<(), NetlinkError> {
    let back = Redirect {
        link: tap,
        own_qdisc: true,
    };
    back.add(netlink, link.index)?;
    let joined = redirect.add(netlink, tap);
    if joined.is_ok() {
        redirect.share(netlink, tap);
    }
    if link.tx_queue_len == Some(0)
        && let Err(error) = redirect::without_queue(netlink, link.index)
    {
        let (name, error) = (&link.name, chain(&error));
        log::warn!("link {name} has a transmit queue, which it had not: {error}");
    }
    joined
}

pub(super) fn remove(netlink: &mut Netlink, redirect: Redirect) -> Result<(), NetworkError> {
    let removed = redirect.remove(netlink);
    removed.map_err(|source| NetworkError::Redirect {
        link: format!("number {}", redirect.link),
        source,
    })
}
