use netlink_packet_core::{DefaultNla, NLA_F_NESTED};
use netlink_packet_route::link::{InfoMacVlan, InfoVlan, InfoVrf, MacVlanMode, VlanFlags};

use super::*;

fn message(index: u32, name: &str, flags: LinkFlags) -> LinkMessage {
    let mut message = LinkMessage::default();
    message.header.index = index;
    message.header.link_layer_type = LinkLayerType::Ether;
    message.header.flags = flags;
    message.attributes = vec![
        LinkAttribute::IfName(name.to_owned()),
        LinkAttribute::Address(vec![2, 0, 0, 0, 0, index as u8]),
        LinkAttribute::Mtu(1450),
    ];
    message
}

fn of_kind(mut message: LinkMessage, kind: InfoKind) -> LinkMessage {
    let info = LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind)]);
    message.attributes.push(info);
    message
}

fn names(links: &[Link]) -> Vec<&str> {
    links.iter().map(|link| link.name.as_str()).collect()
}

#[test]
fn links_are_carried_in_the_order_they_came_to_be() {
    let up = LinkFlags::Up;
    let lo = message(1, "lo", up | LinkFlags::Loopback);
    let mut tunnel = message(2, "sit0", LinkFlags::empty());
    tunnel.header.link_layer_type = LinkLayerType::Sit;
    let mut late = of_kind(message(9, "net1", up), InfoKind::MacVlan);
    late.attributes.push(LinkAttribute::LinkNetNsId(0));
    let first = of_kind(message(3, "eth0", up), InfoKind::Veth);
    let down = of_kind(message(5, "net2", LinkFlags::empty()), InfoKind::Dummy);
    let links = carried([lo, tunnel, late, down, first].into_iter(), true).links;
    assert_eq!(names(&links), ["eth0", "net2", "net1"]);
    assert_eq!((links[0].mac, links[0].mtu), ([2, 0, 0, 0, 0, 3], 1450));
}

#[test]
fn a_bridge_is_carried_and_its_ports_are_not() {
    let mut port = message(2, "port", LinkFlags::Up);
    port.attributes.push(LinkAttribute::Controller(3));
    let bridge = of_kind(message(3, "br0", LinkFlags::Up), InfoKind::Bridge);
    let links = carried([port, bridge].into_iter(), true).links;
    assert_eq!(names(&links), ["br0"]);
}

#[test]
fn a_vrf_is_the_guests_own_and_its_ports_are_carried() {
    let of_red = |mut port: LinkMessage| {
        port.attributes.push(LinkAttribute::Controller(6));
        port
    };
    let eth0 = of_red(message(3, "eth0", LinkFlags::Up));
    // Its own ports are none of the guest's.
    let bridge = of_red(of_kind(message(4, "br0", LinkFlags::Up), InfoKind::Bridge));
    let mut port = message(5, "port", LinkFlags::Up);
    port.attributes.push(LinkAttribute::Controller(4));
    let mut red = message(6, "red", LinkFlags::empty());
    let data = InfoData::Vrf(vec![InfoVrf::TableId(1000)]);
    red.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vrf),
        LinkInfo::Data(data),
    ]));
    let net1 = message(7, "net1", LinkFlags::Up);
    let scan = carried([eth0, bridge, port, red, net1].into_iter(), true);
    assert_eq!(names(&scan.links), ["eth0", "br0", "net1"]);
    let vrfs: Vec<_> = scan.links.iter().map(|link| link.vrf).collect();
    assert_eq!(vrfs, [Some(6), Some(6), None]);
    assert_eq!(scan.made.len(), 1);
    let made = &scan.made[0];
    assert_eq!(made.link.name, "red");
    let data = InfoData::Vrf(vec![InfoVrf::TableId(1000)]);
    assert_eq!((&made.recipe.data, made.recipe.lower), (&data, None));
    assert!(scan.carries(6) && scan.problems.is_empty());
}

#[test]
fn a_link_is_of_its_kind_whatever_else_is_told_of_it() {
    let mut bridge = message(3, "br0", LinkFlags::Up);
    // struct nlattr, IFLA_INFO_KIND.
    let info = [&[11, 0, 1, 0], &b"bridge\0\0"[..]].concat();
    let info = DefaultNla::new(libc::IFLA_LINKINFO | NLA_F_NESTED, info);
    bridge.attributes.push(LinkAttribute::Other(info));
    let mut port = message(2, "port", LinkFlags::Up);
    port.attributes.push(LinkAttribute::Controller(3));
    let scan = carried([port, bridge].into_iter(), true);
    assert_eq!(names(&scan.links), ["br0"]);
    assert!(scan.problems.is_empty());
}

#[test]
fn a_route_with_next_hops_that_are_not_understood_is_named() {
    let mut route = route(100, RouteProtocol::Boot);
    assert_eq!(understood(route.clone()).unwrap(), route);
    let hops = DefaultNla::new(libc::RTA_MULTIPATH | NLA_F_NESTED, vec![0; 8]);
    route.attributes.push(RouteAttribute::Other(hops));
    let problem = understood(route).unwrap_err().to_string();
    assert!(problem.contains("default in table 100"), "{problem}");
}

#[test]
fn our_taps_are_none_of_the_pods_links() {
    let tap = |name| of_kind(message(8, name, LinkFlags::Up), InfoKind::Tun);
    let mut down = tap("husk9");
    down.header.flags = LinkFlags::empty();
    let scan = carried([tap("husk7"), down, tap("huskies")].into_iter(), true);
    assert_eq!(
        (names(&scan.links), scan.tapped),
        (vec!["huskies"], vec![7])
    );
}

#[test]
fn what_waits_for_a_machine_is_used_directly() {
    let with = |kind, carrier| {
        let mut message = of_kind(message(8, "net1", LinkFlags::Up), kind);
        let of_the_host = LinkAttribute::LinkNetNsId(0);
        message
            .attributes
            .extend([LinkAttribute::Carrier(carrier), of_the_host]);
        carried([message].into_iter(), true).links[0].backend
    };
    assert_eq!(with(InfoKind::Tun, 0), Backend::Tap);
    assert_eq!(with(InfoKind::Tun, 1), Backend::Redirected);
    assert_eq!(with(InfoKind::MacVtap, 1), Backend::MacVtap);
    assert_eq!(with(InfoKind::Veth, 0), Backend::Redirected);
}

#[test]
fn what_is_made_on_a_link_of_the_namespace_is_the_guests_own() {
    let on = |index, name, lower, data| {
        let mut message = message(index, name, LinkFlags::Up);
        let kind = match data {
            InfoData::Vlan(_) => InfoKind::Vlan,
            _ => InfoKind::MacVlan,
        };
        message.attributes.extend([
            LinkAttribute::Link(lower),
            LinkAttribute::LinkInfo(vec![LinkInfo::Kind(kind), LinkInfo::Data(data)]),
        ]);
        message
    };
    let vlan = |index, name, lower| {
        let flags = InfoVlan::Flags((VlanFlags::ReorderHdr, VlanFlags::all()));
        let parts = vec![InfoVlan::Id(7), flags];
        on(index, name, lower, InfoData::Vlan(parts))
    };
    let macvlan = |index, name, mode| {
        let parts = vec![InfoMacVlan::Mode(mode), InfoMacVlan::BcQueueLenUsed(9)];
        on(index, name, 3, InfoData::MacVlan(parts))
    };
    let eth0 = message(3, "eth0", LinkFlags::Up);
    let bridge = of_kind(message(4, "br0", LinkFlags::Up), InfoKind::Bridge);
    let mut port = message(5, "port", LinkFlags::Up);
    port.attributes.push(LinkAttribute::Controller(4));
    let mut far = vlan(6, "far", 3);
    far.attributes.push(LinkAttribute::LinkNetNsId(0));
    let links = [
        vlan(2, "eth0.7.7", 8),
        vlan(8, "eth0.7", 3),
        macvlan(10, "mac0", MacVlanMode::Bridge),
        far,
        vlan(11, "port.7", 5),
        vlan(12, "port.7.7", 11),
        vlan(14, "ring0", 15),
        vlan(15, "ring1", 14),
        macvlan(13, "some0", MacVlanMode::Source),
        eth0,
        bridge,
        port,
    ];
    // Where a kernel does not tell it, they may be on links of another namespace.
    let unsure = carried(links.clone().into_iter(), false);
    assert_eq!(unsure.made, []);
    assert_eq!(unsure.problems.len(), 8);
    let scan = carried(links.into_iter(), true);
    assert_eq!(names(&scan.links), ["eth0", "br0", "far"]);
    let made: Vec<_> = scan
        .made
        .iter()
        .map(|made| (&*made.link.name, made.recipe.lower))
        .collect();
    assert_eq!(
        made,
        [
            ("eth0.7", Some(3)),
            ("eth0.7.7", Some(8)),
            ("mac0", Some(3))
        ]
    );
    // A kernel refuses to be asked for bits that it does not know.
    let InfoData::Vlan(parts) = &scan.made[0].recipe.data else {
        panic!("{:?}", scan.made);
    };
    let known = VlanFlags::from_bits_retain(0x1f);
    assert_eq!(parts[1], InfoVlan::Flags((VlanFlags::ReorderHdr, known)));
    let mode = InfoData::MacVlan(vec![InfoMacVlan::Mode(MacVlanMode::Bridge)]);
    assert_eq!(scan.made[2].recipe.data, mode);
    let problems: Vec<_> = scan.problems.iter().map(ToString::to_string).collect();
    for (problem, words) in problems
        .iter()
        .zip(["some0", "port.7 ", "port.7.7", "ring0", "ring1"])
    {
        assert!(problem.contains(words), "{words}: {problems:?}");
    }
    assert_eq!(problems.len(), 5);
}

#[test]
fn a_link_that_cannot_be_carried_is_named_if_it_is_up() {
    let mut wireguard = message(4, "wg0", LinkFlags::empty());
    wireguard.header.link_layer_type = LinkLayerType::None;
    let mut port = message(5, "port", LinkFlags::empty());
    port.attributes.push(LinkAttribute::Controller(9));
    let vlan = of_kind(message(6, "eth0.5", LinkFlags::empty()), InfoKind::Vlan);
    let mut ipvlan = message(7, "net1", LinkFlags::empty());
    ipvlan.attributes.push(LinkAttribute::LinkNetNsId(0));
    ipvlan.attributes.push(LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::IpVlan),
        LinkInfo::Data(InfoData::IpVlan(vec![IPVLAN_L3S])),
    ]));
    for (mut link, words) in [
        (wireguard, "Ethernet"),
        (port, "port of link 9"),
        (vlan, "a vlan made on another link of the namespace"),
        (ipvlan, "mode l3s"),
    ] {
        let scan = carried([link.clone()].into_iter(), true);
        assert!(scan.links.is_empty() && scan.problems.is_empty());
        link.header.flags = LinkFlags::Up;
        let scan = carried([link].into_iter(), true);
        let error = scan.problems[0].to_string();
        assert!(scan.links.is_empty() && error.contains(words), "{error}");
    }
}

fn route(table: u8, protocol: RouteProtocol) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.table = table;
    route.header.protocol = protocol;
    route
}

#[test]
fn routes_of_all_tables_are_wanted_but_those_the_guest_makes_itself() {
    assert!(wants_route(&route(254, RouteProtocol::Kernel)));
    assert!(wants_route(&route(100, RouteProtocol::Boot)));
    assert!(wants_route(&route(255, RouteProtocol::Static)));
    assert!(!wants_route(&route(255, RouteProtocol::Kernel)));
    // In the table of a VRF.
    let mut local = route(100, RouteProtocol::Kernel);
    local.header.kind = RouteType::Local;
    assert!(!wants_route(&local));
    local.header.protocol = RouteProtocol::Static;
    assert!(wants_route(&local));
    let mut wide = route(252, RouteProtocol::Static);
    wide.attributes = vec![RouteAttribute::Table(1000)];
    assert_eq!(table(&wide), 1000);
    let mut cached = route(254, RouteProtocol::Boot);
    cached.header.flags = RouteFlags::Cloned;
    assert!(!wants_route(&cached));
    let mut multicast = route(254, RouteProtocol::Boot);
    multicast.header.address_family = AddressFamily::Other(128);
    assert!(!wants_route(&multicast));
}

#[test]
fn of_routes_to_networks_of_lo_only_the_usual_one_is_not_wanted() {
    for (ip, prefix, wanted) in [
        ([10, 0, 0, 0], 24, true),
        ([10, 0, 0, 1], 32, false),
        ([127, 0, 0, 0], 8, false),
    ] {
        let mut local = route(255, RouteProtocol::Kernel);
        local.header.kind = RouteType::Local;
        local.header.destination_prefix_length = prefix;
        let to = RouteAddress::Inet(ip.into());
        local.attributes = vec![RouteAttribute::Destination(to)];
        assert_eq!(wants_route(&local), wanted, "{local:?}");
    }
}

#[test]
fn the_rules_every_namespace_has_are_not_wanted() {
    let rule = |priority, table| {
        let mut rule = RuleMessage::default();
        rule.header.family = AddressFamily::Inet6;
        rule.header.table = table;
        rule.header.action = RuleAction::ToTable;
        rule.attributes = vec![
            RuleAttribute::Table(table.into()),
            RuleAttribute::SuppressPrefixLen(u32::MAX),
            RuleAttribute::Protocol(RouteProtocol::Kernel),
            RuleAttribute::Priority(priority),
        ];
        rule
    };
    assert!(!wants_rule(&rule(32766, 254)));
    assert!(!wants_rule(&rule(0, 255)));
    assert!(wants_rule(&rule(32766, 100)));
    assert!(wants_rule(&rule(100, 254)));
    let mut with_source = rule(32766, 254);
    with_source.header.src_len = 24;
    assert!(wants_rule(&with_source));
    let mut with_mark = rule(32766, 254);
    with_mark.attributes.push(RuleAttribute::FwMark(1));
    assert!(wants_rule(&with_mark));
}

#[test]
fn of_lo_only_what_somebody_added_is_wanted() {
    let scan = carried([message(3, "eth0", LinkFlags::Up)].into_iter(), true);
    let address = |index, ip: &str| {
        let mut address = AddressMessage::default();
        address.header.family = AddressFamily::Inet;
        address.header.index = index;
        address.attributes = vec![AddressAttribute::Address(ip.parse().unwrap())];
        address
    };
    assert!(scan.wants_address(&address(3, "10.0.0.2")));
    assert!(scan.wants_address(&address(LOOPBACK, "10.9.9.9")));
    assert!(!scan.wants_address(&address(LOOPBACK, "127.0.0.1")));
    assert!(!scan.wants_address(&address(7, "10.0.0.2")));
}

#[test]
fn an_address_that_another_has_is_not_wanted() {
    let scan = carried([message(3, "eth0", LinkFlags::Up)].into_iter(), true);
    let mut address = AddressMessage::default();
    address.header.family = AddressFamily::Inet6;
    address.header.index = 3;
    for (flags, wanted) in [
        (AddressFlags::Tentative, true),
        (AddressFlags::Tentative | AddressFlags::Dadfailed, false),
    ] {
        address.attributes = vec![
            AddressAttribute::Address("fd77::2".parse().unwrap()),
            AddressAttribute::Flags(flags),
        ];
        assert_eq!(scan.wants_address(&address), wanted, "{flags:?}");
    }
}

#[test]
fn only_neighbours_that_somebody_set_are_wanted() {
    let without_arp = message(4, "ipvlan", LinkFlags::Up | LinkFlags::Noarp);
    let scan = carried(
        [message(3, "eth0", LinkFlags::Up), without_arp].into_iter(),
        true,
    );
    let mut neighbour = NeighbourMessage::default();
    neighbour.header.family = AddressFamily::Inet;
    neighbour.header.ifindex = 3;
    neighbour.header.state = NeighbourState::Reachable;
    assert!(!scan.wants_neighbour(&neighbour));
    neighbour.header.state = NeighbourState::Permanent;
    assert!(scan.wants_neighbour(&neighbour));
    neighbour.header.ifindex = 1;
    assert!(!scan.wants_neighbour(&neighbour));
    // What the kernel has made itself.
    neighbour.header.state = NeighbourState::Noarp;
    for (link, first, wanted) in [
        (3, 2, true),
        (3, 0x33, false),
        (3, 0xff, false),
        (4, 2, false),
    ] {
        neighbour.header.ifindex = link;
        let mac = vec![first, 0, 0, 0, 0, 9];
        neighbour.attributes = vec![NeighbourAttribute::LinkLayerAddress(mac)];
        assert_eq!(scan.wants_neighbour(&neighbour), wanted, "{link} {first:x}");
    }
    neighbour.header.state = NeighbourState::None;
    assert!(!scan.wants_neighbour(&neighbour));
    neighbour.header.flags = NeighbourFlags::Proxy;
    assert!(scan.wants_neighbour(&neighbour));
}
