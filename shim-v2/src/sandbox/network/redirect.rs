//! The redirects between a link and its tap: what arrives at one leaves by the other, before
//! the namespace's own network stack sees it.

use libc::{EINVAL, ENODEV, ENOENT};
use netlink_packet_core::{NLM_F_CREATE, NLM_F_EXCL};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::link::{LinkAttribute, LinkMessage};
use netlink_packet_route::tc::{
    TcAction, TcActionAttribute, TcActionMirror, TcActionMirrorOption, TcActionOption,
    TcActionType, TcAttribute, TcFilterMatchAll, TcFilterMatchAllOption, TcFilterU32,
    TcFilterU32Option, TcHandle, TcMessage, TcMirror, TcMirrorActionType, TcOption, TcU32Key,
    TcU32Selector, TcU32SelectorFlags,
};
use serde::{Deserialize, Serialize};

use super::netlink::{Netlink, NetlinkError};
use crate::error::chain;

/// The queueing discipline that only holds filters, for both directions.
const CLSACT: &str = "clsact";
/// Its elder, for one direction. A link has one of the two at most.
const INGRESS: &str = "ingress";
/// Behind every filter that somebody else may have: they see the packets first.
const PREFERENCE: u16 = 0xfff0;
/// Packets of all protocols (`ETH_P_ALL`), in the byte order of the network.
const ALL_PROTOCOLS: u16 = 0x0003_u16.to_be();

/// What was added to a link, or is about to be.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Redirect {
    /// The link's number in the pod's namespace.
    pub link: u32,
    /// Whether the queueing discipline is ours; otherwise only the filter is.
    pub own_qdisc: bool,
}

/// The links that have a queueing discipline for filters.
pub fn filtered(netlink: &mut Netlink) -> Result<Vec<u32>, NetlinkError> {
    let all = RouteNetlinkMessage::GetQueueDiscipline(TcMessage::default());
    let listed = netlink.list(&all)?.into_iter();
    let links = listed.filter_map(|message| match message {
        RouteNetlinkMessage::NewQueueDiscipline(qdisc) if holds_filters(&qdisc) => {
            u32::try_from(qdisc.header.index).ok()
        }
        _ => None,
    });
    Ok(links.collect())
}

/// What redirecting from `link` will add to it, where those that are [`filtered`] are known.
pub fn plan(filtered: &[u32], link: u32) -> Redirect {
    let own_qdisc = !filtered.contains(&link);
    Redirect { link, own_qdisc }
}

/// Whether a filter of ours is on `link`. Somebody may have removed it, and it is gone from a link
/// that left the namespace, though it may have come back.
pub fn is_on(netlink: &mut Netlink, link: u32) -> Result<bool, NetlinkError> {
    let ours = RouteNetlinkMessage::GetTrafficFilter(filter(link, None));
    Ok(!netlink.list(&ours)?.is_empty())
}

fn holds_filters(qdisc: &TcMessage) -> bool {
    let is_it = |attribute: &TcAttribute| matches!(attribute, TcAttribute::Kind(kind) if kind == CLSACT || kind == INGRESS);
    qdisc.attributes.iter().any(is_it)
}

impl Redirect {
    /// Sends what arrives at the link out by `target`. After an error nothing of ours is there;
    /// what somebody else has there may be the reason.
    pub fn add(self, netlink: &mut Netlink, target: u32) -> Result<(), NetlinkError> {
        if self.own_qdisc {
            let qdisc = RouteNetlinkMessage::NewQueueDiscipline(qdisc(self.link));
            netlink.change(NLM_F_CREATE | NLM_F_EXCL, qdisc)?;
        }
        let added = self.add_filter(netlink, target);
        if added.is_err()
            && self.own_qdisc
            && let Err(error) = self.take_away(netlink)
        {
            let error = chain(&error);
            log::warn!("link number {} keeps a clsact: {error}", self.link);
        }
        added
    }

    fn add_filter(self, netlink: &mut Netlink, target: u32) -> Result<(), NetlinkError> {
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let filter = |options| filter(self.link, Some(options));
        let matchall = filter(matchall(target));
        match netlink.change(flags, RouteNetlinkMessage::NewTrafficFilter(matchall)) {
            // A kernel without it.
            Err(error) if error.errno() == Some(ENOENT) => {
                let u32 = filter(u32(target));
                netlink.change(flags, RouteNetlinkMessage::NewTrafficFilter(u32))
            }
            result => result,
        }
    }

    /// Takes away what [`Redirect::add`] added, if it is there. Without our filter it is not, and a
    /// queueing discipline is somebody else's by now.
    pub fn remove(self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        match is_on(netlink, self.link)? {
            true => self.take_away(netlink),
            false => Ok(()),
        }
    }

    fn take_away(self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        let request = if self.own_qdisc {
            RouteNetlinkMessage::DelQueueDiscipline(qdisc(self.link))
        } else {
            RouteNetlinkMessage::DelTrafficFilter(filter(self.link, None))
        };
        match netlink.change(0, request) {
            // No such discipline, filter or link: it went with the link, or was never added.
            Err(error) if matches!(error.errno(), Some(ENOENT | EINVAL | ENODEV)) => Ok(()),
            result => result,
        }
    }
}

/// Gives a link the transmit queue of length 0 back that it had before [`Redirect::add`]: the
/// kernel lengthens it with the link's first queueing discipline.
pub fn without_queue(netlink: &mut Netlink, link: u32) -> Result<(), NetlinkError> {
    let mut message = LinkMessage::default();
    message.header.index = link;
    message.attributes = vec![LinkAttribute::TxQueueLen(0)];
    netlink.change(0, RouteNetlinkMessage::SetLink(message))
}

/// Indexes are positive numbers of 31 bits, in most of the kernel's structures.
fn index(link: u32) -> i32 {
    i32::try_from(link).unwrap_or_default()
}

fn qdisc(link: u32) -> TcMessage {
    let mut message = TcMessage::with_index(index(link));
    message.header.parent = TcHandle::CLSACT;
    message.header.handle = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: 0,
    };
    message.attributes = vec![TcAttribute::Kind(CLSACT.to_owned())];
    message
}

/// Our filter; to be found or removed it needs no options.
fn filter(link: u32, kind: Option<(&'static str, Vec<TcOption>)>) -> TcMessage {
    let mut message = TcMessage::with_index(index(link));
    message.header.parent = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: TcHandle::MIN_INGRESS,
    };
    message.header.info = u32::from(PREFERENCE) << 16 | u32::from(ALL_PROTOCOLS);
    if let Some((kind, options)) = kind {
        message.attributes = vec![
            TcAttribute::Kind(kind.to_owned()),
            TcAttribute::Options(options),
        ];
    }
    message
}

fn matchall(target: u32) -> (&'static str, Vec<TcOption>) {
    let action = TcFilterMatchAllOption::Action(vec![redirect_to(target)]);
    (TcFilterMatchAll::KIND, vec![TcOption::MatchAll(action)])
}

fn u32(target: u32) -> (&'static str, Vec<TcOption>) {
    // One key that any packet has: no bit of the first word is looked at.
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.nkeys = 1;
    selector.keys = vec![TcU32Key::default()];
    let options = vec![
        TcOption::U32(TcFilterU32Option::Selector(selector)),
        TcOption::U32(TcFilterU32Option::Action(vec![redirect_to(target)])),
    ];
    (TcFilterU32::KIND, options)
}

fn redirect_to(target: u32) -> TcAction {
    let mut parameters = TcMirror::default();
    parameters.generic.action = TcActionType::Stolen;
    parameters.eaction = TcMirrorActionType::EgressRedir;
    parameters.ifindex = target;
    let option = TcActionOption::Mirror(TcActionMirrorOption::Parms(parameters));
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![option]),
    ];
    action
}
