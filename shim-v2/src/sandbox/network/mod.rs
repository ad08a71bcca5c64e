//! The pod's network: what is in its network namespace, the guest has too.
//!
//! ```text
//!   pod's network namespace                         guest
//!     eth0 <--- tc redirects ---> tap husk<N> ===> eth0
//! ```
//!
//! Each link that carries the pod's traffic gets a tap, which becomes a network device of the
//! guest with the link's Ethernet address; what arrives at the one leaves by the other
//! ([`scan`], [`tap`], [`redirect`]). Names, addresses, routes, rules and neighbours are set in
//! the guest as they were found ([`mirror`]). In the namespace nothing else is touched: a CNI
//! plugin finds there what it left.
//!
//! What the host dials on the namespace's loopback (`kubectl port-forward`) reaches servers in
//! the guest ([`loopback`], [`forward`]).
//!
//! A tap ends with its last descriptor. What was added to a link is recorded before, and
//! removed by clean-up.

pub mod forward;
pub mod loopback;
pub mod mirror;
pub mod netlink;
pub mod redirect;
pub mod scan;
pub mod tap;

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;

use husk_vmm::config::MAX_NICS;
use nix::sched::{CloneFlags, setns};
use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::loopback::Loopback;
use self::netlink::{Netlink, NetlinkError};
use self::redirect::Redirect;
use self::scan::Scan;
use super::state_file::StateFile;

/// Why the guest does not have the pod's network.
#[derive(Debug, Error)]
pub enum NetworkError {
    /// The namespace cannot be entered.
    #[error("the network namespace {path} cannot be entered")]
    Enter {
        /// By which path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The namespace cannot be read.
    #[error("the {what} of the pod's network namespace cannot be listed")]
    List {
        /// Which of its objects.
        what: &'static str,
        /// Why.
        source: NetlinkError,
    },
    /// A link that a guest cannot have.
    #[error(
        "link {name} of the pod's network namespace {problem}, which a virtual machine cannot carry: take it down or out of the namespace, or use another runtime"
    )]
    Link {
        /// Its name.
        name: String,
        /// What is special about it.
        problem: String,
    },
    /// More links than a guest may have devices.
    #[error(
        "the pod's network namespace has {found} links to carry, a virtual machine has at most {MAX_NICS} network devices: take some down or out of the namespace"
    )]
    TooMany {
        /// How many there are.
        found: usize,
    },
    /// The VMM's end of a link.
    #[error(
        "the tap {name} for link {link} cannot be made in the pod's network namespace: is the tun module loaded?"
    )]
    Tap {
        /// Its name.
        name: String,
        /// What it is for.
        link: String,
        /// Why.
        source: io::Error,
    },
    /// The redirects.
    #[error(
        "the traffic of link {link} cannot be redirected by tc: are sch_ingress, act_mirred and cls_matchall or cls_u32 there?"
    )]
    Redirect {
        /// Of which link.
        link: String,
        /// Why.
        source: NetlinkError,
    },
    /// The state file.
    #[error("the redirects cannot be recorded")]
    Record(#[source] io::Error),
    /// The guest came up without a link.
    #[error("the guest has no network device for link {name}")]
    Missing {
        /// The link.
        name: String,
    },
}

/// A device of the guest.
#[derive(Debug)]
pub struct Nic {
    /// The VMM's end.
    pub tap: OwnedFd,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Its largest packet.
    pub mtu: u16,
}

/// The pod's network, ready for a guest.
#[derive(Debug)]
pub struct Network {
    /// The devices, in the order of [`Scan::links`].
    pub nics: Vec<Nic>,
    /// What is to be set in the guest.
    pub scan: Scan,
    /// What the host dials on the namespace's loopback; `None` where the kernel cannot have
    /// it taken over.
    pub loopback: Option<Loopback>,
}

/// What was added to links of a namespace, for clean-up.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redirects {
    /// A path of the namespace.
    netns: PathBuf,
    /// Its inode, so that a later namespace by the same path is left alone.
    inode: u64,
    /// What was added.
    links: Vec<Redirect>,
}

/// Connects the network namespace `own` of the VMM: scans it, makes the taps and the redirects.
/// `name` is the path that names it also when the VMM is gone. Blocks, but never for long.
///
/// # Errors
/// See [`NetworkError`]. What was made until then is on record.
pub fn connect(file: &StateFile, own: &Path, name: Option<&Path>) -> Result<Network, NetworkError> {
    // A namespace without a name ends with the VMM, and takes everything along.
    let record = |redirect| match name {
        Some(name) => record(file, name, redirect),
        None => Ok(()),
    };
    within(own, |netlink| {
        let scan = scan::scan(netlink)?;
        let found = scan.links.len();
        if found > MAX_NICS as usize {
            return Err(NetworkError::TooMany { found });
        }
        let mut nics = Vec::new();
        for link in &scan.links {
            let tap = tap::make(netlink, link)?;
            let failed = |source| NetworkError::Redirect {
                link: link.name.clone(),
                source,
            };
            let redirect = redirect::plan(netlink, link.index).map_err(failed)?;
            record(redirect)?;
            let back = Redirect {
                link: tap.index,
                own_qdisc: true,
            };
            back.add(netlink, link.index).map_err(failed)?;
            redirect.add(netlink, tap.index).map_err(failed)?;
            if link.tx_queue_len == Some(0) {
                redirect::without_queue(netlink, link.index).map_err(failed)?;
            }
            nics.push(Nic {
                tap: tap.fd,
                mac: link.mac,
                mtu: u16::try_from(link.mtu).unwrap_or(u16::MAX),
            });
        }
        let loopback = take_over_loopback(netlink, name.is_none());
        Ok(Network {
            nics,
            scan,
            loopback,
        })
    })
}

/// Without it a pod does all but port-forward.
fn take_over_loopback(netlink: &mut Netlink, own_namespace: bool) -> Option<Loopback> {
    if own_namespace && let Err(error) = loopback::up(netlink) {
        log::warn!("lo of the pod's network namespace stays down: {error}");
    }
    let taken = loopback::take_over();
    let warn = |error: &io::Error| log::warn!("port-forward will not work for this pod: {error}");
    taken.inspect_err(warn).ok()
}

fn record(file: &StateFile, netns: &Path, redirect: Redirect) -> Result<(), NetworkError> {
    let inode = fs::metadata(netns).map_err(NetworkError::Record)?.ino();
    let recorded = file.record(|state| {
        let redirects = state.redirects.get_or_insert_with(|| Redirects {
            netns: netns.to_owned(),
            inode,
            links: Vec::new(),
        });
        redirects.links.push(redirect);
    });
    recorded.map_err(NetworkError::Record)
}

impl Redirects {
    /// Removes what was added, if the namespace still exists.
    ///
    /// # Errors
    /// The first that stayed; the others were tried.
    pub fn remove(&self) -> Result<(), NetworkError> {
        match fs::metadata(&self.netns) {
            Ok(netns) if netns.ino() == self.inode => {}
            _ => return Ok(()),
        }
        within(&self.netns, |netlink| {
            let mut result = Ok(());
            for redirect in self.links.iter().rev() {
                let removed = redirect.remove(netlink);
                result = result.and(removed.map_err(|source| NetworkError::Redirect {
                    link: format!("number {}", redirect.link),
                    source,
                }));
            }
            result
        })
    }
}

/// Does `work` in a network namespace, on a thread that never leaves it.
fn within<T: Send>(
    path: &Path,
    work: impl FnOnce(&mut Netlink) -> Result<T, NetworkError> + Send,
) -> Result<T, NetworkError> {
    let failed = |source| NetworkError::Enter {
        path: path.to_owned(),
        source,
    };
    let inside = || {
        let netns = File::open(path).map_err(failed)?;
        setns(netns.as_fd(), CloneFlags::CLONE_NEWNET).map_err(|errno| failed(errno.into()))?;
        work(&mut Netlink::open().map_err(failed)?)
    };
    thread::scope(|scope| {
        let thread = thread::Builder::new().name("netns".to_owned());
        let thread = thread.spawn_scoped(scope, inside).map_err(failed)?;
        let panicked = |_| failed(io::Error::other("the thread in it panicked"));
        thread.join().map_err(panicked)?
    })
}

#[cfg(test)]
mod tests;
