//! The redirects between a link and its tap: what arrives at one leaves by the other, before
//! the namespace's own network stack sees it, but for what they share.

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
/// The preference of the redirect, and that it takes packets of all protocols. It is behind every
/// filter that somebody else may have: they see the packets first.
const REDIRECT: Place = (0xfff0, libc::ETH_P_ALL as u16);
/// Packets that the namespace is to see besides the guest: whoever obtained a link's addresses
/// there renews them there. Answers of DHCP, which CNI's daemon reads from a socket that would
/// only see what no filter has taken; and router advertisements (RFC 4861, 4.2), which the
/// namespace's kernel reads.
const SHARED: [(Place, &[Word]); 2] = [
    (
        (REDIRECT.0 - 2, libc::ETH_P_IP as u16),
        // A header without options, UDP, from port 67 to 68.
        &[
            (0, 0x0f00_0000, 0x0500_0000),
            (8, 0x00ff_0000, 0x0011_0000),
            (20, 0xffff_ffff, 67 << 16 | 68),
        ],
    ),
    (
        (REDIRECT.0 - 1, libc::ETH_P_IPV6 as u16),
        // ICMPv6 behind no other header, type 134.
        &[(4, 0x0000_ff00, 58 << 8), (40, 0xff00_0000, 134 << 24)],
    ),
];

/// The preference of a filter, and of which protocol its packets are (`ETH_P_*`).
type Place = (u16, u16);
/// A word of a packet: its offset in bytes from the network header, a mask, and what it leaves.
type Word = (i32, u32, u32);

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
    let ours = RouteNetlinkMessage::GetTrafficFilter(filter(link, REDIRECT, None));
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
        let filter = |options| filter(self.link, REDIRECT, Some(options));
        let matchall = filter(matchall(target));
        match netlink.change(flags, RouteNetlinkMessage::NewTrafficFilter(matchall)) {
            // A kernel without it.
            Err(error) if error.errno() == Some(ENOENT) => {
                // One key that any packet has: no bit of the first word is looked at.
                let u32 = filter(u32(&[(0, 0, 0)], redirect_to(target)));
                netlink.change(flags, RouteNetlinkMessage::NewTrafficFilter(u32))
            }
            result => result,
        }
    }

    /// Lets the namespace see some packets, too, that [`Redirect::add`] sends out by `target`.
    pub fn share(self, netlink: &mut Netlink, target: u32) {
        for (place, words) in SHARED {
            let filter = filter(self.link, place, Some(u32(words, copy_to(target))));
            let request = RouteNetlinkMessage::NewTrafficFilter(filter);
            // As without cls_u32. The pod has all it needs for now.
            if let Err(error) = netlink.change(NLM_F_CREATE | NLM_F_EXCL, request) {
                let (link, error) = (self.link, chain(&error));
                log::warn!("DHCP or router advertisements end at link number {link}: {error}");
            }
        }
    }

    /// Takes away what [`Redirect::add`] and [`Redirect::share`] added, if it is there. Without our
    /// redirect a queueing discipline is somebody else's by now.
    pub fn remove(self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        if is_on(netlink, self.link)? {
            return self.take_away(netlink);
        }
        let places = SHARED.map(|(place, _)| place);
        self.take_filters(netlink, &places)
    }

    fn take_away(self, netlink: &mut Netlink) -> Result<(), NetlinkError> {
        if self.own_qdisc {
            let qdisc = RouteNetlinkMessage::DelQueueDiscipline(qdisc(self.link));
            return if_there(netlink.change(0, qdisc));
        }
        let [(answers, _), (routers, _)] = SHARED;
        self.take_filters(netlink, &[answers, routers, REDIRECT])
    }

    fn take_filters(self, netlink: &mut Netlink, places: &[Place]) -> Result<(), NetlinkError> {
        let mut taken = Ok(());
        for place in places {
            let filter = RouteNetlinkMessage::DelTrafficFilter(filter(self.link, *place, None));
            taken = taken.and(if_there(netlink.change(0, filter)));
        }
        taken
    }
}

/// A discipline, filter or link that is not there went with the link, or was never added.
fn if_there(removed: Result<(), NetlinkError>) -> Result<(), NetlinkError> {
    match removed {
        Err(error) if matches!(error.errno(), Some(ENOENT | EINVAL | ENODEV)) => Ok(()),
        removed => removed,
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

/// A filter of ours; to be found or removed it needs no options.
fn filter(
    link: u32,
    (preference, protocol): Place,
    kind: Option<(&'static str, Vec<TcOption>)>,
) -> TcMessage {
    let mut message = TcMessage::with_index(index(link));
    message.header.parent = TcHandle {
        major: TcHandle::CLSACT.major,
        minor: TcHandle::MIN_INGRESS,
    };
    // In the byte order of the network.
    message.header.info = u32::from(preference) << 16 | u32::from(protocol.to_be());
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

fn u32(words: &[Word], action: TcAction) -> (&'static str, Vec<TcOption>) {
    let keys = words.iter().map(|(offset, mask, value)| {
        let mut key = TcU32Key::default();
        (key.off, key.mask, key.val) = (*offset, *mask, *value);
        key
    });
    let mut selector = TcU32Selector::default();
    selector.flags = TcU32SelectorFlags::Terminal;
    selector.keys = keys.collect();
    selector.nkeys = selector.keys.len() as u8;
    let options = vec![
        TcOption::U32(TcFilterU32Option::Selector(selector)),
        TcOption::U32(TcFilterU32Option::Action(vec![action])),
    ];
    (TcFilterU32::KIND, options)
}

fn redirect_to(target: u32) -> TcAction {
    mirred(
        TcMirrorActionType::EgressRedir,
        TcActionType::Stolen,
        target,
    )
}

/// The packet itself goes its way.
fn copy_to(target: u32) -> TcAction {
    mirred(TcMirrorActionType::EgressMirror, TcActionType::Ok, target)
}

fn mirred(what: TcMirrorActionType, then: TcActionType, target: u32) -> TcAction {
    let mut parameters = TcMirror::default();
    parameters.generic.action = then;
    parameters.eaction = what;
    parameters.ifindex = target;
    let option = TcActionOption::Mirror(TcActionMirrorOption::Parms(parameters));
    let mut action = TcAction::default();
    action.attributes = vec![
        TcActionAttribute::Kind(TcActionMirror::KIND.to_owned()),
        TcActionAttribute::Options(vec![option]),
    ];
    action
}
