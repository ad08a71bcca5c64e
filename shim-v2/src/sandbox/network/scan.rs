//! What a CNI plugin, or whoever else, put into the pod's network namespace.

use netlink_packet_core::{NLA_TYPE_MASK, Nla, NlasIterator, Parseable};
use netlink_packet_route::address::{AddressAttribute, AddressFlags, AddressMessage};
use netlink_packet_route::link::{
    InfoData, InfoIpVlan, InfoKind, IpVlanMode, LinkAttribute, LinkFlags, LinkInfo, LinkLayerType,
    LinkMessage,
};
use netlink_packet_route::neighbour::{
    NeighbourAttribute, NeighbourFlags, NeighbourMessage, NeighbourState,
};
use netlink_packet_route::route::{
    RouteAddress, RouteAttribute, RouteFlags, RouteMessage, RouteProtocol, RouteType,
};
use netlink_packet_route::rule::{RuleAction, RuleAttribute, RuleMessage};
use netlink_packet_route::{AddressFamily, RouteNetlinkMessage};
use nix::sys::utsname::uname;

use super::made::{Made, Recipe, is_elsewhere};
use super::mirror::describe;
use super::netfilter::Filters;
use super::netlink::Netlink;
use super::parameters::Parameter;
use super::{NetworkError, tap};

/// The index of the loopback interface, in every network namespace.
pub const LOOPBACK: u32 = 1;
/// The routing table that the kernel fills by itself as addresses come and go.
const LOCAL_TABLE: u32 = 255;
/// The rules every network namespace is born with: priority and table.
const BORN_RULES: [(u32, u32); 3] = [(0, LOCAL_TABLE), (32766, 254), (32767, 253)];
/// Kinds of links that a module adds to every namespace when it is loaded, one of each.
const FALLBACK_TUNNELS: [&str; 9] = [
    "tunl0", "sit0", "gre0", "gretap0", "erspan0", "ip_vti0", "ip6_vti0", "ip6tnl0", "ip6gre0",
];

/// What of a link is the machine's end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Backend {
    /// A tap of ours, and redirects between the two.
    Redirected,
    /// The link: a tap that no program holds.
    Tap,
    /// The link: it has a character device.
    MacVtap,
}

/// What a link's other end decides.
const STATES: LinkFlags = LinkFlags::Running
    .union(LinkFlags::LowerUp)
    .union(LinkFlags::Dormant);
const IPVLAN_L3S: InfoIpVlan = InfoIpVlan::Mode(IpVlanMode::L3S);

/// A link that the guest has, too.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Link {
    /// Its number in the pod's namespace.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its Ethernet address.
    pub mac: [u8; 6],
    /// Largest packet.
    pub mtu: u32,
    /// Up, no ARP, promiscuous, …
    pub flags: LinkFlags,
    /// Length of its transmit queue, in packets.
    pub tx_queue_len: Option<u32>,
    /// Its other name.
    pub alias: Option<String>,
    /// The number by which packet filters and others name it among its like.
    pub group: u32,
    /// The number of the VRF that it is a port of.
    pub vrf: Option<u32>,
    /// What the machine is connected to.
    pub backend: Backend,
}

/// All that the guest is to have.
#[derive(Debug, Default)]
pub struct Scan {
    /// Those that carry the pod's traffic, in the order in which they came to be.
    pub links: Vec<Link>,
    /// Those that the guest makes itself, each behind the one that it is made on.
    pub made: Vec<Made>,
    /// Those that carry the pod's traffic, by their numbers, whose tap of ours is there and up.
    pub tapped: Vec<u32>,
    /// The links that a guest cannot have though they are up, and what is not understood.
    pub problems: Vec<NetworkError>,
    /// Of all these links and lo.
    pub addresses: Vec<AddressMessage>,
    /// In the order of the kernel's tables.
    pub routes: Vec<RouteMessage>,
    /// But those every namespace has.
    pub rules: Vec<RuleMessage>,
    /// The permanent ones, those without ARP that somebody has set, and those that are proxied.
    pub neighbours: Vec<NeighbourMessage>,
    /// Of the namespace and these links; [`scan`] does not look at them.
    pub parameters: Vec<Parameter>,
    /// Those of packets, if they are to be carried; `None` if they could not be read, and the
    /// guest keeps what it has.
    pub filters: Option<Filters>,
}

/// Reads the namespace of the calling thread.
///
/// # Errors
/// See [`NetworkError`].
pub fn scan(netlink: &mut Netlink) -> Result<Scan, NetworkError> {
    use RouteNetlinkMessage as Message;
    let mut list = |what, request| {
        let listed = netlink.list(&request);
        listed.map_err(|source| NetworkError::List { what, source })
    };
    let links = list("links", Message::GetLink(LinkMessage::default()))?;
    let links = links.into_iter().filter_map(|message| match message {
        Message::NewLink(link) => Some(link),
        _ => None,
    });
    let mut scan = carried(links, tells_namespaces());
    if scan.all_links().next().is_none() {
        return Ok(scan);
    }
    let addresses = list("addresses", Message::GetAddress(AddressMessage::default()))?;
    let routes = list("routes", Message::GetRoute(RouteMessage::default()))?;
    let rules = list("rules", Message::GetRule(RuleMessage::default()))?;
    let mut of_neighbours = NeighbourMessage::default();
    let neighbours = list("neighbours", Message::GetNeighbour(of_neighbours.clone()))?;
    of_neighbours.header.flags = NeighbourFlags::Proxy;
    let proxies = list("proxied neighbours", Message::GetNeighbour(of_neighbours))?;
    let all = [addresses, routes, rules, neighbours, proxies];
    for message in all.into_iter().flatten() {
        match message {
            Message::NewAddress(address) if scan.wants_address(&address) => {
                scan.addresses.push(address);
            }
            Message::NewRoute(route) if wants_route(&route) => match understood(route) {
                Ok(route) => scan.routes.push(route),
                Err(problem) => scan.problems.push(problem),
            },
            Message::NewRule(rule) if wants_rule(&rule) => scan.rules.push(rule),
            Message::NewNeighbour(neighbour) if scan.wants_neighbour(&neighbour) => {
                scan.neighbours.push(neighbour);
            }
            _ => {}
        }
    }
    Ok(scan)
}

/// Since Linux 5.18.
fn tells_namespaces() -> bool {
    let release = uname().map(|name| name.release().to_string_lossy().into_owned());
    let release = release.unwrap_or_default();
    let mut numbers = release.split(['.', '-']).map(str::parse::<u32>);
    let mut next = || numbers.next().and_then(Result::ok).unwrap_or_default();
    (next(), next()) >= (5, 18)
}

/// The links that the guest is to have, oldest first, and those that it should have and cannot.
/// One that is down is carried, too, for the time when it is up; that it cannot be is no problem.
/// Whether a kernel tells the namespace of the link that another one was made on: if not, it may
/// be of any.
fn carried(links: impl Iterator<Item = LinkMessage>, tells_namespaces: bool) -> Scan {
    let links: Vec<LinkMessage> = links.collect();
    let kind_of = |index| {
        let of_index = links.iter().find(|link| link.header.index == index);
        of_index.and_then(kind)
    };
    let (mut scan, mut made) = (Scan::default(), Vec::new());
    for message in &links {
        let mut link = Link::of(message);
        let (kind, controller) = (kind(message), controller(message));
        let fallback = FALLBACK_TUNNELS.contains(&link.name.as_str());
        if link.flags.contains(LinkFlags::Loopback) || fallback {
            continue;
        }
        let up = link.flags.contains(LinkFlags::Up);
        if let (Some(InfoKind::Tun), Some(of)) = (&kind, tap::link_of(&link.name)) {
            scan.tapped.extend(up.then_some(of));
            continue;
        }
        match controller.and_then(kind_of) {
            // What comes in by a port is the bridge's, which is the guest's.
            Some(InfoKind::Bridge) => continue,
            // The VRF only says by which table its ports are routed.
            Some(InfoKind::Vrf) => link.vrf = controller,
            _ => {}
        }
        let controller = controller.filter(|_| link.vrf.is_none());
        let recipe =
            Recipe::of(message, &links).filter(|recipe| tells_namespaces || recipe.lower.is_none());
        let problem = unfit(message, recipe.as_ref(), &links)
            .or_else(|| controller.map(|index| format!("is a port of link {index}")));
        match problem {
            None => match recipe {
                Some(recipe) => made.push(Made { link, recipe }),
                None => scan.links.push(link),
            },
            Some(problem) => report(&mut scan.problems, link, problem),
        }
    }
    scan.links.sort_by_key(|link| link.index);
    made.sort_by_key(|made| made.link.index);
    // One below another comes first, whatever its number.
    let has_lower = |scan: &Scan, made: &Made| {
        let lower = made.recipe.lower;
        lower.is_none_or(|lower| scan.carries(lower))
    };
    while let Some(at) = made.iter().position(|made| has_lower(&scan, made)) {
        let next = made.remove(at);
        scan.made.push(next);
    }
    for Made { link, recipe } in made {
        let problem = format!("is a {} made on a link that is not carried", recipe.kind);
        report(&mut scan.problems, link, problem);
    }
    scan
}

/// That one that is down is not carried is no problem.
fn report(problems: &mut Vec<NetworkError>, link: Link, problem: String) {
    let name = link.name;
    if link.flags.contains(LinkFlags::Up) {
        problems.push(NetworkError::Link { name, problem });
    } else {
        log::debug!("link {name} is not carried: it {problem}");
    }
}

impl Link {
    fn of(message: &LinkMessage) -> Self {
        let mut link = Self {
            index: message.header.index,
            name: String::new(),
            mac: [0; 6],
            mtu: 0,
            flags: message.header.flags & !STATES,
            tx_queue_len: None,
            alias: None,
            group: 0,
            vrf: None,
            backend: backend(message),
        };
        for attribute in &message.attributes {
            match attribute {
                LinkAttribute::IfName(name) => link.name.clone_from(name),
                LinkAttribute::Address(bytes) => {
                    link.mac = bytes.as_slice().try_into().unwrap_or_default();
                }
                LinkAttribute::Mtu(mtu) => link.mtu = *mtu,
                LinkAttribute::TxQueueLen(length) => link.tx_queue_len = Some(*length),
                LinkAttribute::Group(group) => link.group = *group,
                LinkAttribute::IfAlias(alias) => link.alias = Some(alias.clone()),
                _ => {}
            }
        }
        link
    }
}

/// What is told of a link's kind.
pub fn infos(message: &LinkMessage) -> impl Iterator<Item = &LinkInfo> {
    let infos = message.attributes.iter().filter_map(|attribute| {
        let LinkAttribute::LinkInfo(infos) = attribute else {
            return None;
        };
        Some(infos)
    });
    infos.flatten()
}

/// Also where nothing else is understood of what is told of the kind.
fn kind(message: &LinkMessage) -> Option<InfoKind> {
    let kind = infos(message).find_map(|info| match info {
        LinkInfo::Kind(kind) => Some(kind.clone()),
        _ => None,
    });
    kind.or_else(|| message.attributes.iter().find_map(raw_kind))
}

fn raw_kind(attribute: &LinkAttribute) -> Option<InfoKind> {
    let LinkAttribute::Other(raw) = attribute else {
        return None;
    };
    if raw.kind() & NLA_TYPE_MASK != libc::IFLA_LINKINFO {
        return None;
    }
    let mut infos = vec![0; raw.value_len()];
    raw.emit_value(&mut infos);
    let mut infos = NlasIterator::new(&infos[..]).flatten();
    infos.find_map(|info| InfoKind::parse(&info).ok())
}

/// What leaves by a tap reaches the program that holds it, as with a wire. One without, which has
/// no carrier, waits for a machine.
fn backend(message: &LinkMessage) -> Backend {
    let carrier = |attribute: &LinkAttribute| matches!(attribute, LinkAttribute::Carrier(1..));
    match kind(message) {
        Some(InfoKind::MacVtap) => Backend::MacVtap,
        Some(InfoKind::Tun) if !message.attributes.iter().any(carrier) => Backend::Tap,
        _ => Backend::Redirected,
    }
}

/// What is special about a link that no machine can be connected to.
fn unfit(message: &LinkMessage, recipe: Option<&Recipe>, links: &[LinkMessage]) -> Option<String> {
    use InfoKind::{
        ErSpan, Geneve, GreTap, GreTap6, Ip6ErSpan, IpVlan, IpVtap, MacSec, MacVlan, MacVtap, Vlan,
        Vrf, Vxlan,
    };
    let layer = message.header.link_layer_type;
    if layer != LinkLayerType::Ether {
        return Some(format!("is no Ethernet link but one of type {layer:?}"));
    }
    // Its packets change their link in the stack, behind any redirect.
    let mode = infos(message).find_map(|info| match info {
        LinkInfo::Data(InfoData::IpVlan(info)) => Some(info.contains(&IPVLAN_L3S)),
        _ => None,
    });
    if mode == Some(true) {
        return Some("is an ipvlan of mode l3s".to_owned());
    }
    if recipe.is_some() {
        return None;
    }
    match kind(message)? {
        // What is for such a link arrives at another one, or for its namespace. Where that is
        // this one it is the guest's already, whose kernel would need a link like it.
        kind @ (Vlan | MacVlan | MacVtap | IpVlan | IpVtap | MacSec | Vxlan | Geneve | GreTap
        | GreTap6 | ErSpan | Ip6ErSpan)
            if !is_elsewhere(message, links) =>
        {
            Some(format!("is a {kind} made on another link of the namespace"))
        }
        Vrf => Some("is a VRF without a table".to_owned()),
        _ => None,
    }
}

fn controller(message: &LinkMessage) -> Option<u32> {
    message.attributes.iter().find_map(|attribute| {
        let LinkAttribute::Controller(index) = attribute else {
            return None;
        };
        Some(*index)
    })
}

impl Scan {
    /// The links that carry the pod's traffic, and then those that are made on them.
    pub fn all_links(&self) -> impl Iterator<Item = &Link> {
        let made = self.made.iter().map(|made| &made.link);
        self.links.iter().chain(made)
    }

    fn carries(&self, index: u32) -> bool {
        self.all_links().any(|link| link.index == index)
    }

    /// Of lo the guest has its usual ones already. One that another machine has, too, is in no
    /// use here, and the guest would not find out.
    fn wants_address(&self, address: &AddressMessage) -> bool {
        let is_loopback = address.attributes.iter().any(|attribute| {
            matches!(attribute, AddressAttribute::Address(ip) | AddressAttribute::Local(ip)
                if ip.is_loopback())
        });
        let is_twice = address.attributes.iter().any(|attribute| {
            matches!(attribute, AddressAttribute::Flags(flags)
                if flags.contains(AddressFlags::Dadfailed))
        });
        let index = address.header.index;
        is_ip(address.header.family)
            && !is_twice
            && (self.carries(index) || (index == LOOPBACK && !is_loopback))
    }

    /// Those that somebody has set. A kernel makes entries for which nobody is asked (NOARP) by
    /// itself, too: of groups, and all of a link without ARP.
    fn wants_neighbour(&self, neighbour: &NeighbourMessage) -> bool {
        let header = &neighbour.header;
        let mut links = self.all_links();
        let Some(link) = links.find(|link| link.index == header.ifindex) else {
            return false;
        };
        let is_set = match header.state {
            NeighbourState::Permanent => true,
            NeighbourState::Noarp => {
                !link.flags.contains(LinkFlags::Noarp) && !is_of_a_group(neighbour)
            }
            _ => header.flags.contains(NeighbourFlags::Proxy),
        };
        is_ip(header.family) && is_set
    }
}

/// By the first bit of its Ethernet address.
fn is_of_a_group(neighbour: &NeighbourMessage) -> bool {
    neighbour.attributes.iter().any(|attribute| {
        matches!(attribute, NeighbourAttribute::LinkLayerAddress(mac)
            if mac.first().is_some_and(|first| first & 1 == 1))
    })
}

fn is_ip(family: AddressFamily) -> bool {
    matches!(family, AddressFamily::Inet | AddressFamily::Inet6)
}

/// Cached routes are no configuration, and the guest's kernel makes those to its own addresses
/// itself: in the local table, or in that of a VRF. Those to whole networks, which come with
/// addresses of lo, it makes for the usual one only.
fn wants_route(route: &RouteMessage) -> bool {
    use RouteType::{Anycast, Broadcast, Local, Multicast};
    let to_itself = matches!(route.header.kind, Local | Broadcast | Anycast | Multicast);
    let own = route.header.protocol == RouteProtocol::Kernel
        && (to_itself || table(route) == LOCAL_TABLE)
        && !is_to_network_of_lo(route);
    is_ip(route.header.address_family) && !own && !route.header.flags.contains(RouteFlags::Cloned)
}

fn is_to_network_of_lo(route: &RouteMessage) -> bool {
    let header = &route.header;
    let to = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Destination(RouteAddress::Inet(ip)) => Some(ip),
            _ => None,
        });
    header.kind == RouteType::Local
        && header.destination_prefix_length < 32
        && to.is_some_and(|ip| !ip.is_loopback())
}

/// Next hops name links by their numbers, which are others in the guest.
fn understood(route: RouteMessage) -> Result<RouteMessage, NetworkError> {
    let is_raw = route.attributes.iter().any(|attribute| {
        matches!(attribute, RouteAttribute::Other(raw)
            if raw.kind() & NLA_TYPE_MASK == libc::RTA_MULTIPATH)
    });
    if is_raw {
        let route = describe(&route);
        return Err(NetworkError::Route { route });
    }
    Ok(route)
}

/// Tables above 255 have their number in an attribute only.
pub fn table(route: &RouteMessage) -> u32 {
    let wide = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Table(table) => Some(*table),
            _ => None,
        });
    wide.unwrap_or_else(|| route.header.table.into())
}

fn wants_rule(rule: &RuleMessage) -> bool {
    is_ip(rule.header.family) && !is_born(rule)
}

fn is_born(rule: &RuleMessage) -> bool {
    let (mut priority, mut table) = (0, u32::from(rule.header.table));
    for attribute in &rule.attributes {
        match attribute {
            RuleAttribute::Priority(value) => priority = *value,
            RuleAttribute::Table(value) => table = *value,
            // Said of every rule.
            RuleAttribute::SuppressPrefixLen(u32::MAX) | RuleAttribute::Protocol(_) => {}
            _ => return false,
        }
    }
    let selects = rule.header.src_len != 0 || rule.header.dst_len != 0 || rule.header.tos != 0;
    !selects
        && rule.header.flags.is_empty()
        && rule.header.action == RuleAction::ToTable
        && BORN_RULES.contains(&(priority, table))
}

#[cfg(test)]
#[path = "scan_test.rs"]
mod tests;
