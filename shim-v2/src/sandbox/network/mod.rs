//! The pod's network: what is in its network namespace, the guest has too.
//!
//! ```text
//!   pod's network namespace                         guest
//!     eth0 <--- tc redirects ---> tap husk<N> ===> eth0
//! ```
//!
//! Each link that carries the pod's traffic gets a tap, which becomes a network device of the
//! guest with the link's Ethernet address; what arrives at the one leaves by the other
//! ([`scan`], [`tap`], [`redirect`]). A macvtap, or a tap that nobody holds, is the machine's end
//! already and used directly ([`attach`]). VRFs, and links made on another one of the namespace, are
//! made in the guest ([`made`]), and names, addresses, routes, rules, neighbours ([`mirror`]),
//! kernel parameters ([`parameters`]) and packet filters ([`netfilter`]) are set there as they were
//! found. In the namespace nothing else is touched: a CNI plugin finds there what it left.
//!
//! What the host dials on the namespace's loopback (`kubectl port-forward`) reaches servers in
//! the guest ([`loopback`], [`forward`]).
//!
//! A tap ends with its last descriptor. What was added to a link is recorded before, and
//! removed by clean-up.
//!
//! So it is at the boot, and so it stays: what changes in the namespace while the pod runs, the
//! kernel tells ([`events`]), and the guest is given the difference ([`difference`],
//! [`follow`]).

pub mod attach;
mod decode;
mod detour;
pub mod difference;
pub mod events;
pub mod follow;
pub mod forward;
pub mod loopback;
mod made;
pub mod mirror;
mod namespace;
pub mod netfilter;
pub mod netlink;
pub mod parameters;
pub mod redirect;
pub mod scan;
pub mod tap;

use std::collections::HashSet;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use husk_vmm::config::MAX_NICS;
use serde::{Deserialize, Serialize};
use thiserror::Error;

use self::events::Events;
use self::loopback::Loopback;
use self::namespace::Namespace;
use self::netfilter::Filters;
use self::netlink::{Netlink, NetlinkError};
use self::redirect::Redirect;
use self::scan::Scan;
use super::state_file::StateFile;
use crate::config::{Config, Netfilter};

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
    /// More packet filters than a guest is given.
    #[error(transparent)]
    Filters(#[from] netfilter::TooMany),
    /// Changes cannot be noticed.
    #[error("the pod's network namespace cannot be followed")]
    Follow(#[source] io::Error),
    /// lo of a namespace that nobody else sets up.
    #[error("the link lo of the pod's new network namespace cannot be brought up")]
    Loopback(#[source] NetlinkError),
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
    /// A route of which too little is understood.
    #[error(
        "the route {route} of the pod's network namespace has next hops that are not understood: take it out of the namespace, or use another runtime"
    )]
    Route {
        /// Which.
        route: String,
    },
    /// More links than a guest may have devices.
    #[error(
        "the pod's network namespace has {found} links to carry, a virtual machine has at most {MAX_NICS} network devices: take some out of the namespace"
    )]
    TooMany {
        /// How many there are.
        found: usize,
    },
    /// The VMM's end of a link.
    #[error(
        "the tap {name} for link {link} cannot be made in the pod's network namespace: {}",
        tap::advice(source)
    )]
    Tap {
        /// Its name.
        name: String,
        /// What it is for.
        link: String,
        /// Why.
        source: io::Error,
    },
    /// A link that is to be the VMM's end itself.
    #[error(
        "the {kind} {name} of the pod's network namespace cannot be opened for the virtual machine{}",
        tap::advice_for_its_own(source)
    )]
    Open {
        /// A tap or a macvtap.
        kind: &'static str,
        /// Its name.
        name: String,
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
    /// The guest did not take something.
    #[error("{0}")]
    Refused(String),
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

/// What was found in the pod's network namespace, and connected.
#[derive(Debug)]
pub struct Network {
    /// The namespace.
    pub netns: Netns,
    /// Where its later changes are told.
    pub events: events::Sockets,
    /// What is to be set in the guest.
    pub scan: Scan,
    /// What was added to the links, in the order of [`Scan::links`]; `None` where nothing was.
    pub redirects: Vec<Option<Redirect>>,
    /// What the host dials on the namespace's loopback; `None` where the kernel cannot have
    /// it taken over.
    pub loopback: Option<Loopback>,
}

impl Network {
    /// With the namespace's kernel parameters, for which no device waits.
    ///
    /// # Errors
    /// See [`NetworkError`].
    pub fn with_parameters(mut self) -> Result<Self, NetworkError> {
        let Netns {
            namespace, kept, ..
        } = &self.netns;
        let links = self.scan.all_links();
        self.scan.parameters = namespace.within(|_| Ok(parameters::read(links, kept)))?;
        Ok(self)
    }
}

/// The pod's network namespace, and the record of what is added to it. Its functions block, but
/// never for long.
#[derive(Debug)]
pub struct Netns {
    namespace: Namespace,
    /// The path that names it also when the VMM is gone. A namespace without one ends with the
    /// VMM, and takes everything along.
    name: Option<PathBuf>,
    file: Arc<StateFile>,
    /// Kernel parameters that the guest has from its command line, by their files.
    kept: HashSet<String>,
    netfilter: Netfilter,
}

/// Connects the network namespace `own` of the VMM: scans it, makes the taps and the redirects.
/// The devices are in the order of [`Scan::links`]. `name` is the path that names it also when
/// the VMM is gone.
///
/// # Errors
/// See [`NetworkError`]. What was made until then is on record.
pub fn connect(
    file: Arc<StateFile>,
    own: &Path,
    name: Option<PathBuf>,
    config: &Config,
) -> Result<(Vec<Nic>, Network), NetworkError> {
    let namespace = Namespace::open(own)?;
    let netns = Netns {
        namespace,
        name,
        file,
        kept: parameters::of_command_line(&config.kernel_params),
        netfilter: config.netfilter,
    };
    let (events, scan, connected, loopback) = netns.namespace.within(|netlink| {
        if netns.name.is_none() {
            loopback::up(netlink).map_err(NetworkError::Loopback)?;
        }
        // Before the first look, so that nothing is missed between the two.
        let told = config.netfilter == Netfilter::Carry && netfilter::nftables_is_there();
        let events = events::open(told).map_err(NetworkError::Follow)?;
        let (scan, connected) = netns.attach_all(netlink)?;
        Ok((events, scan, connected, take_over_loopback()))
    })?;
    let (nics, redirects) = connected.into_iter().unzip();
    let network = Network {
        netns,
        events,
        scan,
        redirects,
        loopback,
    };
    Ok((nics, network))
}

/// Without it a pod does all but port-forward.
fn take_over_loopback() -> Option<Loopback> {
    let taken = loopback::take_over();
    let warn = |error: &io::Error| log::warn!("port-forward will not work for this pod: {error}");
    taken.inspect_err(warn).ok()
}

impl Netns {
    /// Reads it once more. Returns also the links that are redirected to a tap of ours: both may
    /// be taken away by somebody.
    ///
    /// # Errors
    /// See [`NetworkError`].
    pub fn look(&self) -> Result<(Scan, Vec<u32>), NetworkError> {
        self.namespace.within(|netlink| {
            let mut scan = self.scan(netlink)?;
            scan.parameters = parameters::read(scan.all_links(), &self.kept);
            let mut redirected = Vec::new();
            for link in &scan.links {
                let what = "tc filters";
                let is_on = redirect::is_on(netlink, link.index);
                let is_on = is_on.map_err(|source| NetworkError::List { what, source })?;
                if is_on && scan.tapped.contains(&link.index) {
                    redirected.push(link.index);
                }
            }
            Ok((scan, redirected))
        })
    }

    /// Filters that cannot be read are a problem like a link that cannot be carried.
    fn scan(&self, netlink: &mut Netlink) -> Result<Scan, NetworkError> {
        let mut scan = scan::scan(netlink)?;
        scan.filters = Some(Filters::default());
        if self.netfilter == Netfilter::Carry && !scan.links.is_empty() {
            scan.filters = match netfilter::read() {
                Ok(filters) => Some(filters),
                Err(problem) => {
                    scan.problems.push(problem);
                    None
                }
            };
        }
        Ok(scan)
    }

    /// Whether there may be filters of which nobody tells: the kernel got nftables later.
    fn may_have_new_filters(&self, events: &Events) -> bool {
        let carried = self.netfilter == Netfilter::Carry;
        carried && !events.tell_of_filters() && netfilter::nftables_is_there()
    }
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

impl Redirects {
    /// Removes what was added, if the namespace still exists.
    ///
    /// # Errors
    /// The first that stayed; the others were tried.
    pub fn remove(&self) -> Result<(), NetworkError> {
        let namespace = match Namespace::open(&self.netns) {
            Err(NetworkError::Enter { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
                return Ok(());
            }
            opened => opened?,
        };
        let inode = namespace.inode().map_err(|source| NetworkError::Enter {
            path: self.netns.clone(),
            source,
        })?;
        if inode != self.inode {
            return Ok(());
        }
        namespace.within(|netlink| {
            let mut result = Ok(());
            for redirect in self.links.iter().rev() {
                result = result.and(attach::remove(netlink, *redirect));
            }
            result
        })
    }
}

#[cfg(test)]
mod tests;
