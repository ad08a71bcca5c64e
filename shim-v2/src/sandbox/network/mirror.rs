//! What was scanned on the host becomes items that the guest is to have, each with the requests
//! to its kernel that give and remove it. Pure functions.
//!
//! The guest's kernel shall add nothing by itself: no link-local address of its own, no
//! prefix route for an address (a plugin may have removed it), no duplicate address
//! detection (the address is in use, by this very pod). So every route is installed as it was
//! found, also those that the host's kernel had made.

use std::net::IpAddr;

use agent_protocol::agent::Link as GuestLink;
use netlink_packet_core::{
    NLA_TYPE_MASK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_EXCL, NLM_F_REPLACE, Nla,
};
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeader, AddressHeaderFlags, AddressMessage, CacheInfo,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkInfo, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags,
};
use netlink_packet_route::rule::{RuleAttribute, RuleFlags, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};

use super::NetworkError;
use super::difference::{AddressList, Item, Kind, out_of_the_way, unwanted_name};
use super::made::Made;
use super::netfilter::replay;
use super::parameters::Parameter;
use super::scan::{LOOPBACK, Link, Scan, table};

/// Flags of a link that a plugin may have set, besides that it is up.
const LINK_FLAGS: LinkFlags = LinkFlags::Noarp
    .union(LinkFlags::Promisc)
    .union(LinkFlags::Allmulti)
    .union(LinkFlags::Multicast);
/// Flags of an address that are wanted; the others tell what became of it.
const ADDRESS_FLAGS: AddressFlags = AddressFlags::Homeaddress
    .union(AddressFlags::Managetempaddr)
    .union(AddressFlags::Mcautojoin);

/// Attributes of a route that name no link: `RTA_METRICS`, `RTA_ENCAP_TYPE`, `RTA_ENCAP`.
const AS_THEY_ARE: [u16; 3] = [libc::RTA_METRICS, 21, 22];
/// Smallest MTU with which a link has IPv6 (RFC 8200, 5).
const IPV6_MIN_MTU: u32 = 1280;
/// The numbers of the links that the guest makes are those in the pod's namespace and this bit:
/// known before they are made, and none that the guest's kernel gives by counting.
const MADE_INDEX: u32 = 1 << 30;

/// The number of a link in the pod's namespace and that of the guest's device for it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Pair {
    /// In the pod's namespace.
    pub host: u32,
    /// In the guest.
    pub guest: u32,
}

/// Finds the guest's device of each link by its Ethernet address. Links with the same one,
/// which those of an ipvlan have, are told apart by their order.
///
/// # Errors
/// [`NetworkError::Missing`] if the guest lacks a link.
pub fn pair(host: &[Link], guest: &[GuestLink]) -> Result<Vec<Pair>, NetworkError> {
    let mut free: Vec<&GuestLink> = guest.iter().collect();
    free.sort_by_key(|link| link.index);
    let mut pairs = Vec::new();
    for link in host {
        let found = free.iter().position(|there| there.mac == link.mac);
        let Some(found) = found else {
            let name = link.name.clone();
            return Err(NetworkError::Missing { name });
        };
        pairs.push(Pair {
            host: link.index,
            guest: free.remove(found).index,
        });
    }
    Ok(pairs)
}

/// What a guest that has the links of `pairs` is to have, in the order in which it can be given.
pub fn items(scan: &Scan, pairs: &[Pair]) -> Vec<Item> {
    let mirror = Mirror { scan, pairs };
    let links = || {
        let guest = |link: &Link| mirror.index(link.index);
        let links = scan.all_links();
        links.filter_map(move |link| Some((link, guest(link)?)))
    };
    // Before anything can pass them.
    let filters = scan.filters.as_ref().map(|filters| &filters.tables[..]);
    let mut items = replay::items(filters.unwrap_or_default(), |host| mirror.index(host));
    // With its first VRF a kernel makes the rule of them all, if there is none yet.
    let (of_vrfs, rules): (Vec<_>, Vec<_>) = scan.rules.iter().partition(|rule| is_of_vrfs(rule));
    items.extend(of_vrfs.into_iter().map(rule));
    items.extend(scan.made.iter().filter_map(|made| mirror.make(made)));
    items.extend(links().map(|(link, index)| mirror.set_up(link, index)));
    items.extend(links().filter_map(|(link, index)| no_own_addresses(link, index)));
    // A link that joins loses routes and addresses.
    items.extend(links().filter_map(|(link, index)| mirror.port(link, index)));
    let parameters = scan.parameters.iter();
    items.extend(parameters.filter_map(|parameter| mirror.parameter(parameter)));
    // A link that goes up takes along what was made on it.
    let is_made = |link: &Link| mirror.made(link.index).is_some();
    let told = |(link, _): &(&Link, u32)| link.flags.contains(LinkFlags::Up) || is_made(link);
    items.extend(links().filter(told).map(|(link, index)| bring(link, index)));
    let is_v6 = |address: &&AddressMessage| address.header.family == AddressFamily::Inet6;
    let (v6, v4): (Vec<_>, Vec<_>) = scan.addresses.iter().partition(is_v6);
    // A kernel lists them in the order of its preference: with version 4 a new one is the last,
    // with version 6 the first of its scope.
    let addresses = v4.into_iter().chain(v6.into_iter().rev());
    items.extend(addresses.filter_map(|address| mirror.address(address)));
    let mut routes: Vec<&RouteMessage> = scan.routes.iter().collect();
    // A gateway must be reachable by a route that exists already.
    routes.sort_by_key(|route| has_gateway(route));
    items.extend(routes.into_iter().filter_map(|route| mirror.route(route)));
    items.extend(rules.into_iter().map(rule));
    let neighbours = scan.neighbours.iter();
    items.extend(neighbours.filter_map(|neighbour| mirror.neighbour(neighbour)));
    items
}

/// `None` for a link that has no IPv6. Not with its settings: an MTU gives it IPv6 only when the
/// request for that is done.
fn no_own_addresses(link: &Link, index: u32) -> Option<Item> {
    let to = |mode| {
        let mut message = LinkMessage::default();
        message.header.index = index;
        let inet6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)]);
        message.attributes = vec![LinkAttribute::AfSpecUnspec(vec![inet6])];
        (0, RouteNetlinkMessage::SetLink(message))
    };
    let what = format!("link {}, no addresses of its own", link.name);
    let (add, (_, remove)) = (to(In6AddrGenMode::None), to(In6AddrGenMode::Eui64));
    let item = Item::new(what, Kind::AddressMode, add, remove);
    (link.mtu >= IPV6_MIN_MTU).then_some(item)
}

/// Up, or down.
fn bring(link: &Link, index: u32) -> Item {
    let to = |flags| {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = flags;
        message.header.change_mask = LinkFlags::Up;
        (0, RouteNetlinkMessage::SetLink(message))
    };
    let up = link.flags & LinkFlags::Up;
    let state = if up.is_empty() { "down" } else { "up" };
    let what = format!("link {}, {state}", link.name);
    let (_, remove) = to(LinkFlags::empty());
    Item::new(what, Kind::Up, to(up), remove)
}

fn is_of_vrfs(rule: &RuleMessage) -> bool {
    let is_it = |attribute: &RuleAttribute| matches!(attribute, RuleAttribute::L3MDev(true));
    rule.attributes.iter().any(is_it)
}

fn rule(rule: &RuleMessage) -> Item {
    let priority = rule
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RuleAttribute::Priority(priority) => Some(*priority),
            _ => None,
        });
    let what = format!("rule {}", priority.unwrap_or_default());
    let mut wanted = rule.clone();
    // The others tell whether a link of the name exists.
    wanted.header.flags &= RuleFlags::Invert;
    let add = RouteNetlinkMessage::NewRule(wanted.clone());
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    let remove = RouteNetlinkMessage::DelRule(wanted);
    Item::new(what, Kind::Rule, (flags, add), remove)
}

struct Mirror<'a> {
    scan: &'a Scan,
    pairs: &'a [Pair],
}

impl Mirror<'_> {
    fn index(&self, host: u32) -> Option<u32> {
        if host == LOOPBACK {
            return Some(LOOPBACK);
        }
        if let Some(made) = self.made(host) {
            let there = made.recipe.lower.map(|lower| self.index(lower));
            return (there != Some(None)).then_some(host | MADE_INDEX);
        }
        let pair = self.pairs.iter().find(|pair| pair.host == host);
        pair.map(|pair| pair.guest)
    }

    fn name(&self, host: u32) -> &str {
        let link = self.scan.all_links().find(|link| link.index == host);
        link.map_or("lo", |link| &link.name)
    }

    fn made(&self, host: u32) -> Option<&Made> {
        let mut made = self.scan.made.iter();
        made.find(|made| made.link.index == host)
    }

    /// `None` for one on a link that is not carried.
    fn make(&self, made: &Made) -> Option<Item> {
        let recipe = &made.recipe;
        let mut message = LinkMessage::default();
        let index = self.index(made.link.index)?;
        message.header.index = index;
        message.attributes = vec![LinkAttribute::LinkInfo(vec![
            LinkInfo::Kind(recipe.kind.clone()),
            LinkInfo::Data(recipe.data.clone()),
        ])];
        if let Some(lower) = recipe.lower {
            let lower = LinkAttribute::Link(self.index(lower)?);
            message.attributes.push(lower);
        }
        // By all of it: one that is made another way is another one.
        let remove = RouteNetlinkMessage::DelLink(message.clone());
        let name = LinkAttribute::IfName(unwanted_name(index));
        message.attributes.push(name);
        let add = RouteNetlinkMessage::NewLink(message);
        let flags = NLM_F_CREATE | NLM_F_EXCL;
        let what = format!("{} {}", recipe.kind, made.link.name);
        Some(Item::new(what, Kind::Made, (flags, add), remove))
    }

    /// All but up: an address of its own would be made at that moment.
    fn set_up(&self, link: &Link, index: u32) -> Item {
        let mut message = LinkMessage::default();
        message.header.index = index;
        message.header.flags = link.flags & LINK_FLAGS;
        message.header.change_mask = LINK_FLAGS;
        message.attributes = vec![
            LinkAttribute::IfName(link.name.clone()),
            LinkAttribute::Mtu(link.mtu),
            LinkAttribute::IfAlias(link.alias.clone().unwrap_or_default()),
            LinkAttribute::Group(link.group),
        ];
        let made = self.made(link.index);
        if made.is_none_or(|made| made.recipe.takes_an_address()) {
            let mac = LinkAttribute::Address(link.mac.to_vec());
            message.attributes.push(mac);
        }
        let queue = link.tx_queue_len.map(LinkAttribute::TxQueueLen);
        message.attributes.extend(queue);
        let name = link.name.clone();
        Item::new(
            format!("link {name}"),
            Kind::Link { index, name },
            (0, RouteNetlinkMessage::SetLink(message)),
            out_of_the_way(index),
        )
    }

    /// `None` for a link that is no port of a VRF.
    fn port(&self, link: &Link, index: u32) -> Option<Item> {
        let vrf = link.vrf?;
        let of = |controller| {
            let mut message = LinkMessage::default();
            message.header.index = index;
            message.attributes = vec![LinkAttribute::Controller(controller)];
            RouteNetlinkMessage::SetLink(message)
        };
        let what = format!("link {}, port of {}", link.name, self.name(vrf));
        let add = of(self.index(vrf)?);
        Some(Item::new(what, Kind::Port, (0, add), of(0)))
    }

    /// `None` for one of a link that is not carried.
    fn parameter(&self, parameter: &Parameter) -> Option<Item> {
        if let Some(link) = parameter.link {
            self.index(link)?;
        }
        Some(Item::parameter(parameter))
    }

    fn address(&self, address: &AddressMessage) -> Option<Item> {
        let mut wanted = address.clone();
        wanted.header.index = self.index(address.header.index)?;
        let mut flags = AddressFlags::from_bits_retain(address.header.flags.bits().into());
        let mut renewed = None;
        wanted.attributes.retain(|attribute| match attribute {
            AddressAttribute::Flags(all) => {
                flags = *all;
                false
            }
            // An end of its life that never comes.
            AddressAttribute::CacheInfo(life) => {
                let ends = (life.ifa_preferred, life.ifa_valid) != (u32::MAX, u32::MAX);
                renewed = ends.then_some(life.tstamp);
                ends
            }
            AddressAttribute::Address(_)
            | AddressAttribute::Local(_)
            | AddressAttribute::Label(_)
            | AddressAttribute::Broadcast(_)
            | AddressAttribute::RoutePriority(_)
            | AddressAttribute::Protocol(_) => true,
            _ => false,
        });
        // With version 4 a kernel does not say so by the life of one that stays for ever.
        if flags.contains(AddressFlags::Deprecated) && renewed.is_none() {
            let mut life = CacheInfo::default();
            (life.ifa_preferred, life.ifa_valid) = (0, u32::MAX);
            wanted.attributes.push(AddressAttribute::CacheInfo(life));
        }
        let flags = flags & ADDRESS_FLAGS | AddressFlags::Noprefixroute | AddressFlags::Nodad;
        wanted.header.flags = AddressHeaderFlags::empty();
        wanted.attributes.push(AddressAttribute::Flags(flags));
        let (mut ip, mut peer) = (None, None);
        for attribute in &address.attributes {
            match attribute {
                AddressAttribute::Local(local) => ip = Some(local),
                AddressAttribute::Address(address) => peer = Some(address),
                _ => {}
            }
        }
        // Without a peer there may be one of them only.
        let ip = ip.or(peer)?;
        let prefix = address.header.prefix_len;
        let what = format!(
            "address {ip}/{prefix} of {}",
            self.name(address.header.index)
        );
        // All that cannot be changed in place.
        let mut known = wanted.clone();
        known.attributes.retain(|attribute| {
            matches!(
                attribute,
                AddressAttribute::Address(_)
                    | AddressAttribute::Local(_)
                    | AddressAttribute::Label(_)
                    | AddressAttribute::Broadcast(_)
            )
        });
        let kind = Kind::Address(list(&wanted.header, peer.unwrap_or(ip)));
        let add = RouteNetlinkMessage::NewAddress(wanted);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        let remove = RouteNetlinkMessage::DelAddress(known);
        Some(Item::new(what, kind, (flags, add), remove).renewed(renewed))
    }

    /// `None` for a route by a link that is not carried.
    fn route(&self, route: &RouteMessage) -> Option<Item> {
        let mut wanted = route.clone();
        wanted.header.flags &= RouteFlags::Onlink;
        wanted.attributes.clear();
        for attribute in &route.attributes {
            wanted.attributes.push(match attribute {
                RouteAttribute::Oif(index) => RouteAttribute::Oif(self.index(*index)?),
                RouteAttribute::MultiPath(hops) => {
                    let mut hops = hops.clone();
                    for hop in &mut hops {
                        hop.interface_index = self.index(hop.interface_index)?;
                        hop.flags &= RouteNextHopFlags::Onlink;
                    }
                    RouteAttribute::MultiPath(hops)
                }
                RouteAttribute::Destination(_)
                | RouteAttribute::Source(_)
                | RouteAttribute::Gateway(_)
                | RouteAttribute::PrefSource(_)
                | RouteAttribute::Via(_)
                | RouteAttribute::Preference(_)
                | RouteAttribute::Metrics(_)
                | RouteAttribute::Priority(_)
                | RouteAttribute::Table(_)
                | RouteAttribute::EncapType(_)
                | RouteAttribute::Encap(_) => attribute.clone(),
                // Not understood, but the same to the guest's kernel.
                RouteAttribute::Other(raw)
                    if AS_THEY_ARE.contains(&(raw.kind() & NLA_TYPE_MASK)) =>
                {
                    attribute.clone()
                }
                // What the kernel counts and caches.
                _ => continue,
            });
        }
        let what = format!("route {}", describe(route));
        let remove = RouteNetlinkMessage::DelRoute(wanted.clone());
        let add = RouteNetlinkMessage::NewRoute(wanted);
        let flags = NLM_F_CREATE | NLM_F_APPEND;
        Some(Item::new(what, Kind::Route, (flags, add), remove))
    }

    fn neighbour(&self, neighbour: &NeighbourMessage) -> Option<Item> {
        let mut wanted = neighbour.clone();
        wanted.header.ifindex = self.index(neighbour.header.ifindex)?;
        wanted.attributes.retain(|attribute| {
            matches!(
                attribute,
                NeighbourAttribute::Destination(_)
                    | NeighbourAttribute::LinkLayerAddress(_)
                    | NeighbourAttribute::Protocol(_)
            )
        });
        let what = format!("neighbour of {}", self.name(neighbour.header.ifindex));
        let mut known = wanted.clone();
        let is_name = |attribute: &_| matches!(attribute, NeighbourAttribute::Destination(_));
        known.attributes.retain(is_name);
        let add = RouteNetlinkMessage::NewNeighbour(wanted);
        let flags = NLM_F_CREATE | NLM_F_REPLACE;
        let remove = RouteNetlinkMessage::DelNeighbour(known);
        Some(Item::new(what, Kind::Neighbour, (flags, add), remove))
    }
}

/// The list of an address that is, or whose peer is, `ip`.
fn list(header: &AddressHeader, ip: &IpAddr) -> AddressList {
    let link = header.index;
    match ip {
        IpAddr::V4(ip) => {
            let prefix = header.prefix_len;
            let host = u32::MAX.checked_shr(prefix.into()).unwrap_or_default();
            let network = ip.to_bits() & !host;
            AddressList::V4 {
                link,
                network,
                prefix,
            }
        }
        IpAddr::V6(_) => {
            let scope = header.scope.into();
            AddressList::V6 { link, scope }
        }
    }
}

fn has_gateway(route: &RouteMessage) -> bool {
    let is_gateway = |attribute: &RouteAttribute| {
        matches!(
            attribute,
            RouteAttribute::Gateway(_) | RouteAttribute::Via(_)
        )
    };
    route.attributes.iter().any(|attribute| match attribute {
        RouteAttribute::MultiPath(hops) => {
            hops.iter().any(|hop| hop.attributes.iter().any(is_gateway))
        }
        other => is_gateway(other),
    })
}

/// As an operator would write it.
pub fn describe(route: &RouteMessage) -> String {
    let destination = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(IpAddr::V4(*ip)),
            RouteAttribute::Destination(RouteAddress::Inet6(ip)) => Some(IpAddr::V6(*ip)),
            _ => None,
        });
    let prefix = route.header.destination_prefix_length;
    let destination = destination.map_or("default".to_owned(), |ip| format!("{ip}/{prefix}"));
    format!("{destination} in table {}", table(route))
}

#[cfg(test)]
#[path = "mirror_test.rs"]
mod tests;
