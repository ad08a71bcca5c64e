use std::borrow::Borrow;

use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::CacheInfo;
use netlink_packet_route::link::{InfoData, InfoIpVlan, InfoKind, InfoVlan, InfoVrf, IpVlanMode};
use netlink_packet_route::route::{RouteCacheInfo, RouteNextHop};

use super::super::made::Recipe;
use super::super::scan::Backend;
use super::*;

fn link(index: u32, name: &str, mac: u8) -> Link {
    Link {
        index,
        name: name.to_owned(),
        mac: [2, 0, 0, 0, 0, mac],
        mtu: 1450,
        flags: LinkFlags::Up | LinkFlags::Multicast | LinkFlags::Running,
        tx_queue_len: Some(1000),
        alias: None,
        group: 0,
        vrf: None,
        backend: Backend::Redirected,
    }
}

fn there(index: u32, name: &str, mac: u8) -> GuestLink {
    GuestLink {
        index,
        name: name.to_owned(),
        mac: vec![2, 0, 0, 0, 0, mac],
        ..GuestLink::default()
    }
}

/// A pod with one link, which has the number 7 on the host and 2 in the guest.
fn one_link() -> (Scan, Vec<GuestLink>) {
    let scan = Scan {
        links: vec![link(7, "eth0", 1)],
        ..Scan::default()
    };
    (scan, vec![there(2, "eth0", 1)])
}

fn request(packet: &[u8]) -> RouteNetlinkMessage {
    match NetlinkMessage::deserialize(packet).unwrap().payload {
        NetlinkPayload::InnerMessage(message) => message,
        other => panic!("{other:?}"),
    }
}

/// All but what each link with IPv6 has.
fn mirrored((scan, guest): (impl Borrow<Scan>, Vec<GuestLink>)) -> Vec<Item> {
    let scan = scan.borrow();
    let mut items = items(scan, &pair(&scan.links, &guest).unwrap());
    items.retain(|item| item.kind != Kind::AddressMode);
    items
}

fn whats(items: &[Item]) -> Vec<&str> {
    items.iter().map(|item| item.what.as_str()).collect()
}

#[test]
fn a_link_is_set_up_before_it_is_brought_up() {
    let items = mirrored(one_link());
    assert_eq!(whats(&items), ["link eth0", "link eth0, up"]);
    let RouteNetlinkMessage::SetLink(message) = request(&items[0].add) else {
        panic!("{items:?}");
    };
    assert_eq!(message.header.index, 2);
    assert_eq!(message.header.flags, LinkFlags::Multicast);
    assert!(message.attributes.contains(&LinkAttribute::Mtu(1450)));
    for (packet, flags) in [
        (&items[1].add, LinkFlags::Up),
        (&items[1].remove, LinkFlags::empty()),
    ] {
        let RouteNetlinkMessage::SetLink(message) = request(packet) else {
            panic!("{items:?}");
        };
        assert_eq!(message.header.flags, flags);
        assert_eq!(message.header.change_mask, LinkFlags::Up);
    }
}

#[test]
fn a_link_with_ipv6_makes_no_addresses_of_its_own() {
    let with = |mtu| {
        let (mut scan, guest) = one_link();
        scan.links[0].mtu = mtu;
        items(&scan, &pair(&scan.links, &guest).unwrap())
    };
    let items = with(1280);
    let expected = [
        "link eth0",
        "link eth0, no addresses of its own",
        "link eth0, up",
    ];
    assert_eq!(whats(&items), expected);
    for (packet, mode) in [
        (&items[1].add, In6AddrGenMode::None),
        (&items[1].remove, In6AddrGenMode::Eui64),
    ] {
        let RouteNetlinkMessage::SetLink(message) = request(packet) else {
            panic!("{items:?}");
        };
        let inet6 = AfSpecUnspec::Inet6(vec![AfSpecInet6::AddrGenMode(mode)]);
        let expected = LinkAttribute::AfSpecUnspec(vec![inet6]);
        assert_eq!(message.attributes, [expected]);
    }
    // One that is too narrow for IPv6 has none.
    assert_eq!(whats(&with(1279)), ["link eth0", "link eth0, up"]);
}

#[test]
fn links_with_one_address_are_told_apart_by_their_order() {
    let scan = Scan {
        links: vec![link(3, "eth0", 1), link(5, "net1", 1)],
        ..Scan::default()
    };
    let guest = [there(9, "b", 1), there(4, "a", 1)];
    let pairs = pair(&scan.links, &guest).unwrap();
    let numbers: Vec<_> = pairs.iter().map(|pair| (pair.host, pair.guest)).collect();
    assert_eq!(numbers, [(3, 4), (5, 9)]);
    let missing = pair(&scan.links, &guest[..1]).unwrap_err().to_string();
    assert!(missing.contains("net1"), "{missing}");
}

#[test]
fn an_address_brings_no_route_and_is_not_contested() {
    let (mut scan, guest) = one_link();
    let mut address = AddressMessage::default();
    address.header.family = AddressFamily::Inet6;
    address.header.index = 7;
    address.header.prefix_len = 64;
    let ip = "fd00::2".parse().unwrap();
    let mut life = CacheInfo::default();
    (life.ifa_preferred, life.ifa_valid) = (u32::MAX, u32::MAX);
    address.attributes = vec![
        AddressAttribute::Address(ip),
        AddressAttribute::CacheInfo(life),
        AddressAttribute::Flags(AddressFlags::Permanent | AddressFlags::Tentative),
    ];
    scan.addresses = vec![address];
    let items = mirrored((scan, guest));
    assert_eq!(items[2].what, "address fd00::2/64 of eth0");
    let RouteNetlinkMessage::NewAddress(message) = request(&items[2].add) else {
        panic!("{items:?}");
    };
    assert_eq!(message.header.index, 2);
    let flags = AddressFlags::Noprefixroute | AddressFlags::Nodad;
    let expected = [
        AddressAttribute::Address(ip),
        AddressAttribute::Flags(flags),
    ];
    assert_eq!(message.attributes, expected);
    let RouteNetlinkMessage::DelAddress(message) = request(&items[2].remove) else {
        panic!("{items:?}");
    };
    assert_eq!(message.header.index, 2);
    assert_eq!(message.attributes, expected[..1]);
}

#[test]
fn an_address_that_is_not_preferred_and_its_metric_stay_so() {
    let (mut scan, guest) = one_link();
    let mut address = AddressMessage::default();
    address.header.index = 7;
    let mut life = CacheInfo::default();
    (life.ifa_preferred, life.ifa_valid) = (u32::MAX, u32::MAX);
    let metric = AddressAttribute::RoutePriority(50);
    address.attributes = vec![
        AddressAttribute::Local("10.0.0.2".parse().unwrap()),
        metric.clone(),
        AddressAttribute::CacheInfo(life),
        AddressAttribute::Flags(AddressFlags::Permanent | AddressFlags::Deprecated),
    ];
    scan.addresses = vec![address];
    let items = mirrored((scan, guest));
    let RouteNetlinkMessage::NewAddress(message) = request(&items[2].add) else {
        panic!("{items:?}");
    };
    life.ifa_preferred = 0;
    for attribute in [metric, AddressAttribute::CacheInfo(life)] {
        assert!(message.attributes.contains(&attribute), "{message:?}");
    }
}

#[test]
fn an_address_with_another_label_is_another_one() {
    let (mut scan, guest) = one_link();
    let labels = ["eth0", "eth0:x"].map(|label| {
        let mut address = AddressMessage::default();
        address.header.index = 7;
        address.attributes = vec![
            AddressAttribute::Local("10.0.0.2".parse().unwrap()),
            AddressAttribute::Label(label.to_owned()),
        ];
        address
    });
    scan.addresses = labels.to_vec();
    let items = mirrored((scan, guest));
    assert_eq!(items[2].what, items[3].what);
    assert_ne!(items[2].remove, items[3].remove);
}

fn route(destination: &str, attributes: &[RouteAttribute]) -> RouteMessage {
    let mut route = RouteMessage::default();
    route.header.address_family = AddressFamily::Inet;
    route.header.table = 254;
    if !destination.is_empty() {
        route.header.destination_prefix_length = 24;
        let ip = RouteAddress::Inet(destination.parse().unwrap());
        route.attributes = vec![RouteAttribute::Destination(ip)];
    }
    route.attributes.extend_from_slice(attributes);
    route
}

fn gateway(ip: &str) -> RouteAttribute {
    RouteAttribute::Gateway(RouteAddress::Inet(ip.parse().unwrap()))
}

#[test]
fn routes_by_a_gateway_come_after_those_that_lead_to_it() {
    let (mut scan, guest) = one_link();
    let out = RouteAttribute::Oif(7);
    let mut hop = RouteNextHop::default();
    hop.interface_index = 7;
    hop.attributes = vec![gateway("10.0.0.9")];
    hop.flags = RouteNextHopFlags::Onlink | RouteNextHopFlags::Linkdown;
    scan.routes = vec![
        route("", &[gateway("10.0.0.1"), out.clone()]),
        route("10.1.0.0", &[RouteAttribute::MultiPath(vec![hop])]),
        route("10.0.0.0", std::slice::from_ref(&out)),
        route("10.2.0.0", &[RouteAttribute::Oif(44)]),
    ];
    scan.routes[0].header.flags = RouteFlags::Onlink | RouteFlags::Dead;
    let items = mirrored((scan, guest));
    let expected = [
        "route 10.0.0.0/24 in table 254",
        "route default in table 254",
        "route 10.1.0.0/24 in table 254",
    ];
    assert_eq!(whats(&items)[2..], expected);
    let RouteNetlinkMessage::NewRoute(default) = request(&items[3].add) else {
        panic!("{items:?}");
    };
    assert_eq!(default.header.flags, RouteFlags::Onlink);
    let expected = [gateway("10.0.0.1"), RouteAttribute::Oif(2)];
    assert_eq!(default.attributes, expected);
    let RouteNetlinkMessage::NewRoute(multipath) = request(&items[4].add) else {
        panic!("{items:?}");
    };
    let RouteAttribute::MultiPath(hops) = &multipath.attributes[1] else {
        panic!("{multipath:?}");
    };
    assert_eq!(hops[0].interface_index, 2);
    assert_eq!(hops[0].flags, RouteNextHopFlags::Onlink);
    let RouteNetlinkMessage::DelRoute(removed) = request(&items[4].remove) else {
        panic!("{items:?}");
    };
    assert_eq!(removed, multipath);
}

#[test]
fn a_route_that_will_end_is_the_namespaces_to_watch() {
    let ending = |expires: i32| {
        // struct rta_cacheinfo
        let mut bytes = [0; 32];
        bytes[8..12].copy_from_slice(&expires.to_ne_bytes());
        let life = RouteAttribute::CacheInfo(RouteCacheInfo::parse(&bytes).unwrap());
        let (mut scan, guest) = one_link();
        scan.routes = vec![route("10.0.0.0", &[life])];
        mirrored((scan, guest))
    };
    assert_eq!(ending(1234), ending(0));
}

#[test]
fn what_belongs_to_a_link_that_is_not_carried_is_left_out() {
    let (mut scan, guest) = one_link();
    scan.links.push(link(9, "net1", 2));
    let pairs = pair(&scan.links[..1], &guest).unwrap();
    let mut address = AddressMessage::default();
    address.header.index = 9;
    let ip = "10.0.0.2".parse().unwrap();
    address.attributes = vec![AddressAttribute::Address(ip)];
    scan.addresses = vec![address];
    scan.routes = vec![route("10.0.0.0", &[RouteAttribute::Oif(9)])];
    let items = items(&scan, &pairs);
    assert_eq!(
        whats(&items),
        [
            "link eth0",
            "link eth0, no addresses of its own",
            "link eth0, up"
        ]
    );
}

#[test]
fn a_rule_is_the_same_whether_its_link_is_there_or_not() {
    let (mut scan, guest) = one_link();
    let mut detached = RuleMessage::default();
    detached.header.flags = RuleFlags::Invert;
    let attached = detached.clone();
    detached.header.flags |= RuleFlags::IifDetached;
    scan.rules = vec![attached, detached];
    let items = mirrored((scan, guest));
    assert_eq!(items[2], items[3]);
}

#[test]
fn a_vrf_is_made_and_joined_before_there_are_addresses_and_routes() {
    let (mut scan, guest) = one_link();
    scan.links[0].vrf = Some(9);
    let red = link(9, "red", 9);
    let recipe = Recipe {
        kind: InfoKind::Vrf,
        data: InfoData::Vrf(vec![InfoVrf::TableId(1000)]),
        lower: None,
    };
    scan.made = vec![Made { link: red, recipe }];
    let mut address = AddressMessage::default();
    address.header.index = 9;
    let ip = "127.0.0.1".parse().unwrap();
    address.attributes = vec![AddressAttribute::Address(ip)];
    scan.addresses = vec![address];
    scan.routes = vec![
        route("10.0.0.0", &[RouteAttribute::Oif(7)]),
        route("10.1.0.0", &[RouteAttribute::Oif(9)]),
    ];
    let of_all = RuleAttribute::Priority(1000);
    let mut rule = RuleMessage::default();
    rule.attributes = vec![of_all, RuleAttribute::L3MDev(true)];
    scan.rules = vec![RuleMessage::default(), rule];
    let items = mirrored((scan, guest));
    let expected = [
        "rule 1000",
        "vrf red",
        "link eth0",
        "link red",
        "link eth0, port of red",
        "link eth0, up",
        "link red, up",
        "address 127.0.0.1/0 of red",
        "route 10.0.0.0/24 in table 254",
        "route 10.1.0.0/24 in table 254",
        "rule 0",
    ];
    assert_eq!(whats(&items), expected);
    let RouteNetlinkMessage::NewLink(made) = request(&items[1].add) else {
        panic!("{items:?}");
    };
    let index = 9 | MADE_INDEX;
    assert_eq!(made.header.index, index);
    let info = LinkAttribute::LinkInfo(vec![
        LinkInfo::Kind(InfoKind::Vrf),
        LinkInfo::Data(InfoData::Vrf(vec![InfoVrf::TableId(1000)])),
    ]);
    assert!(made.attributes.contains(&info), "{made:?}");
    let RouteNetlinkMessage::DelLink(removed) = request(&items[1].remove) else {
        panic!("{items:?}");
    };
    assert_eq!(
        (removed.header.index, removed.attributes),
        (index, vec![info])
    );
    for (packet, controller) in [(&items[4].add, index), (&items[4].remove, 0)] {
        let RouteNetlinkMessage::SetLink(port) = request(packet) else {
            panic!("{items:?}");
        };
        assert_eq!(port.header.index, 2);
        assert_eq!(port.attributes, [LinkAttribute::Controller(controller)]);
    }
    let RouteNetlinkMessage::NewRoute(by_vrf) = request(&items[9].add) else {
        panic!("{items:?}");
    };
    assert!(by_vrf.attributes.contains(&RouteAttribute::Oif(index)));
}

#[test]
fn a_link_on_another_one_is_made_on_the_guests() {
    let (mut scan, mut guest) = one_link();
    let lower = scan.links[0].index;
    let on = |index, name, kind, data, lower| Made {
        link: link(index, name, 7),
        recipe: Recipe {
            kind,
            data,
            lower: Some(lower),
        },
    };
    let vlan = InfoData::Vlan(vec![InfoVlan::Id(7)]);
    let ipvlan = InfoData::IpVlan(vec![InfoIpVlan::Mode(IpVlanMode::L2)]);
    scan.made = vec![
        on(20, "eth0.7", InfoKind::Vlan, vlan.clone(), lower),
        on(21, "ip0", InfoKind::IpVlan, ipvlan, 20),
        on(22, "lost", InfoKind::Vlan, vlan, 99),
    ];
    // What is below would take it up.
    scan.made[1].link.flags = LinkFlags::empty();
    let items = mirrored((&scan, guest.clone()));
    let expected = [
        "vlan eth0.7",
        "ipvlan ip0",
        "link eth0",
        "link eth0.7",
        "link ip0",
        "link eth0, up",
        "link eth0.7, up",
        "link ip0, down",
    ];
    assert_eq!(whats(&items), expected);
    let made_on = |item: &Item| {
        let RouteNetlinkMessage::NewLink(made) = request(&item.add) else {
            panic!("{item:?}");
        };
        made.attributes
            .into_iter()
            .find_map(|attribute| match attribute {
                LinkAttribute::Link(lower) => Some(lower),
                _ => None,
            })
    };
    assert_eq!(made_on(&items[0]), Some(2));
    assert_eq!(made_on(&items[1]), Some(20 | MADE_INDEX));
    let has_address = |item: &Item| {
        let RouteNetlinkMessage::SetLink(set) = request(&item.add) else {
            panic!("{item:?}");
        };
        let is_it = |attribute: &_| matches!(attribute, LinkAttribute::Address(_));
        set.attributes.iter().any(is_it)
    };
    assert!(has_address(&items[3]) && !has_address(&items[4]));
    // On another device it is another link.
    guest[0].index += 1;
    let again = mirrored((&scan, guest));
    assert_ne!(again[0].remove, items[0].remove);
    assert_eq!(again[1].remove, items[1].remove);
}

#[test]
fn a_parameter_is_written_once_its_link_has_its_name_and_before_it_is_up() {
    let (mut scan, guest) = one_link();
    let parameter = |link, file: &str| Parameter {
        link,
        file: file.to_owned(),
        value: "1".to_owned(),
        default: "0",
    };
    scan.parameters = vec![
        parameter(None, "net/core/x"),
        parameter(Some(7), "net/ipv4/conf/eth0/y"),
        parameter(Some(8), "net/ipv4/conf/port/y"),
    ];
    let items = mirrored((scan, guest));
    let [_, of_all, of_link, _] = &items[..] else {
        panic!("{items:?}");
    };
    assert_eq!(of_all.what, "parameter net/core/x=1");
    assert_eq!(of_link.add, b"net/ipv4/conf/eth0/y=1");
    assert_eq!(of_link.remove, b"net/ipv4/conf/eth0/y=0");
    assert_eq!(items[3].what, "link eth0, up");
}
