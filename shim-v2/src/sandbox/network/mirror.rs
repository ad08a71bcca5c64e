//! What was scanned on the host becomes requests to the guest's kernel. Pure functions.
//!
//! The guest's kernel shall add nothing by itself: no link-local address of its own, no
//! prefix route for an address (a plugin may have removed it), no duplicate address
//! detection (the address is in use, by this very pod). So every route is installed as it was
//! found, also those that the host's kernel had made.

use std::net::IpAddr;

use agent_protocol::agent::{Link as GuestLink, NetworkChange};
use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NLM_F_REPLACE};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::{
    AddressAttribute, AddressFlags, AddressHeaderFlags, AddressMessage,
};
use netlink_packet_route::link::{
    AfSpecInet6, AfSpecUnspec, In6AddrGenMode, LinkAttribute, LinkFlags, LinkMessage,
};
use netlink_packet_route::neighbour::{NeighbourAttribute, NeighbourMessage};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteNextHopFlags,
};
use netlink_packet_route::rule::{RuleAttribute, RuleMessage};

use super::NetworkError;
use super::netlink::packet;
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

/// Names of links by their numbers on the host and in the guest.
struct Links<'a>(Vec<(&'a Link, &'a GuestLink)>);

/// The requests that give the guest, which has the links `guest`, what was scanned, in order.
///
/// # Errors
/// [`NetworkError::Missing`] if the guest lacks a link.
pub fn changes(scan: &Scan, guest: &[GuestLink]) -> Result<Vec<NetworkChange>, NetworkError> {
    let links = Links::pair(&scan.links, guest)?;
    let mut changes = links.free_names();
    for (link, there) in &links.0 {
        changes.push(set_up(link, there.index));
    }
    for (link, there) in &links.0 {
        if link.flags.contains(LinkFlags::Up) {
            changes.push(bring_up(link, there.index));
        }
    }
    let addresses = scan.addresses.iter();
    changes.extend(addresses.filter_map(|address| links.address(address)));
    let mut routes: Vec<&RouteMessage> = scan.routes.iter().collect();
    // A gateway must be reachable by a route that exists already.
    routes.sort_by_key(|route| has_gateway(route));
    changes.extend(routes.into_iter().filter_map(|route| links.route(route)));
    changes.extend(scan.rules.iter().map(rule));
    let neighbours = scan.neighbours.iter();
    changes.extend(neighbours.filter_map(|neighbour| links.neighbour(neighbour)));
    Ok(changes)
}

fn change(what: String, flags: u16, request: RouteNetlinkMessage) -> NetworkChange {
    NetworkChange {
        what,
        request: packet(NLM_F_ACK | flags, 1, request),
        ..NetworkChange::default()
    }
}

fn set_link(what: String, index: u32, change_it: impl FnOnce(&mut LinkMessage)) -> NetworkChange {
    let mut message = LinkMessage::default();
    message.header.index = index;
    change_it(&mut message);
    change(what, 0, RouteNetlinkMessage::SetLink(message))
}

/// All but up: an address of its own would be made at that moment.
fn set_up(link: &Link, index: u32) -> NetworkChange {
    let own_addresses = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let mut attributes = vec![
        LinkAttribute::IfName(link.name.clone()),
        LinkAttribute::Mtu(link.mtu),
        LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![own_addresses])]),
    ];
    attributes.extend(link.tx_queue_len.map(LinkAttribute::TxQueueLen));
    attributes.extend(link.alias.clone().map(LinkAttribute::IfAlias));
    set_link(format!("link {}", link.name), index, |message| {
        message.header.flags = link.flags & LINK_FLAGS;
        message.header.change_mask = LINK_FLAGS;
        message.attributes = attributes;
    })
}

fn bring_up(link: &Link, index: u32) -> NetworkChange {
    set_link(format!("link {}, up", link.name), index, |message| {
        message.header.flags = LinkFlags::Up;
        message.header.change_mask = LinkFlags::Up;
    })
}

fn rule(rule: &RuleMessage) -> NetworkChange {
    let priority = rule
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RuleAttribute::Priority(priority) => Some(*priority),
            _ => None,
        });
    let what = format!("rule {}", priority.unwrap_or_default());
    let request = RouteNetlinkMessage::NewRule(rule.clone());
    change(what, NLM_F_CREATE, request)
}

impl<'a> Links<'a> {
    /// Links with the same Ethernet address, which those of an ipvlan have, are told apart by
    /// their order.
    fn pair(host: &'a [Link], guest: &'a [GuestLink]) -> Result<Self, NetworkError> {
        let mut free: Vec<&GuestLink> = guest.iter().collect();
        free.sort_by_key(|link| link.index);
        let mut pairs = Vec::new();
        for link in host {
            let found = free.iter().position(|there| there.mac == link.mac);
            let Some(found) = found else {
                let name = link.name.clone();
                return Err(NetworkError::Missing { name });
            };
            pairs.push((link, free.remove(found)));
        }
        Ok(Self(pairs))
    }

    /// Renames the links whose names others are to get.
    fn free_names(&self) -> Vec<NetworkChange> {
        let wanted = |name: &str| self.0.iter().any(|(link, _)| link.name == name);
        let mut changes = Vec::new();
        for (link, there) in &self.0 {
            if there.name != link.name && wanted(&there.name) {
                let name = format!("husk{}", there.index);
                let what = format!("link {}, out of the way", there.name);
                changes.push(set_link(what, there.index, |message| {
                    message.attributes = vec![LinkAttribute::IfName(name)];
                }));
            }
        }
        changes
    }

    fn index(&self, host: u32) -> Option<u32> {
        if host == LOOPBACK {
            return Some(LOOPBACK);
        }
        let pair = self.0.iter().find(|(link, _)| link.index == host);
        pair.map(|(_, there)| there.index)
    }

    fn name(&self, host: u32) -> &str {
        let pair = self.0.iter().find(|(link, _)| link.index == host);
        pair.map_or("lo", |(link, _)| &link.name)
    }

    fn address(&self, address: &AddressMessage) -> Option<NetworkChange> {
        let mut wanted = address.clone();
        wanted.header.index = self.index(address.header.index)?;
        let mut flags = AddressFlags::from_bits_retain(address.header.flags.bits().into());
        wanted.attributes.retain(|attribute| match attribute {
            AddressAttribute::Flags(all) => {
                flags = *all;
                false
            }
            // An end of its life that never comes.
            AddressAttribute::CacheInfo(life) => {
                (life.ifa_preferred, life.ifa_valid) != (u32::MAX, u32::MAX)
            }
            AddressAttribute::Address(_)
            | AddressAttribute::Local(_)
            | AddressAttribute::Label(_)
            | AddressAttribute::Broadcast(_)
            | AddressAttribute::Protocol(_) => true,
            _ => false,
        });
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
        let request = RouteNetlinkMessage::NewAddress(wanted);
        Some(change(what, NLM_F_CREATE | NLM_F_REPLACE, request))
    }

    /// `None` for a route by a link that is not carried.
    fn route(&self, route: &RouteMessage) -> Option<NetworkChange> {
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
                | RouteAttribute::Realm(_)
                | RouteAttribute::Table(_)
                | RouteAttribute::EncapType(_)
                | RouteAttribute::Encap(_) => attribute.clone(),
                // What the kernel counts and caches.
                _ => continue,
            });
        }
        let what = format!("route {}", describe(route));
        let request = RouteNetlinkMessage::NewRoute(wanted);
        Some(change(what, NLM_F_CREATE | NLM_F_APPEND, request))
    }

    fn neighbour(&self, neighbour: &NeighbourMessage) -> Option<NetworkChange> {
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
        let request = RouteNetlinkMessage::NewNeighbour(wanted);
        Some(change(what, NLM_F_CREATE | NLM_F_REPLACE, request))
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
fn describe(route: &RouteMessage) -> String {
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
