use netlink_packet_core::{NetlinkMessage, NetlinkPayload};
use netlink_packet_route::AddressFamily;
use netlink_packet_route::address::CacheInfo;
use netlink_packet_route::route::RouteNextHop;

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

fn request(change: &NetworkChange) -> RouteNetlinkMessage {
    match NetlinkMessage::deserialize(&change.request)
        .unwrap()
        .payload
    {
        NetlinkPayload::InnerMessage(message) => message,
        other => panic!("{other:?}"),
    }
}

fn whats(changes: &[NetworkChange]) -> Vec<&str> {
    changes.iter().map(|change| change.what.as_str()).collect()
}

#[test]
fn a_link_is_set_up_before_it_is_brought_up() {
    let (scan, guest) = one_link();
    let changes = changes(&scan, &guest).unwrap();
    assert_eq!(whats(&changes), ["link eth0", "link eth0, up"]);
    let RouteNetlinkMessage::SetLink(message) = request(&changes[0]) else {
        panic!("{changes:?}");
    };
    assert_eq!(message.header.index, 2);
    assert_eq!(message.header.flags, LinkFlags::Multicast);
    assert!(message.attributes.contains(&LinkAttribute::Mtu(1450)));
    let none = AfSpecInet6::AddrGenMode(In6AddrGenMode::None);
    let none = LinkAttribute::AfSpecUnspec(vec![AfSpecUnspec::Inet6(vec![none])]);
    assert!(message.attributes.contains(&none), "{message:?}");
}

#[test]
fn names_that_are_taken_are_freed_first() {
    let scan = Scan {
        links: vec![link(3, "eth1", 1), link(5, "eth0", 2), link(6, "net1", 3)],
        ..Scan::default()
    };
    let guest = [
        there(2, "eth0", 1),
        there(3, "eth1", 2),
        there(4, "eth2", 3),
    ];
    let changes = changes(&scan, &guest).unwrap();
    assert_eq!(
        whats(&changes)[..3],
        [
            "link eth0, out of the way",
            "link eth1, out of the way",
            "link eth1"
        ]
    );
}

#[test]
fn links_with_one_address_are_told_apart_by_their_order() {
    let scan = Scan {
        links: vec![link(3, "eth0", 1), link(5, "net1", 1)],
        ..Scan::default()
    };
    let guest = [there(9, "b", 1), there(4, "a", 1)];
    let links = Links::pair(&scan.links, &guest).unwrap();
    assert_eq!((links.index(3), links.index(5)), (Some(4), Some(9)));
    assert_eq!(
        (links.index(LOOPBACK), links.index(8)),
        (Some(LOOPBACK), None)
    );
    let missing = changes(&scan, &guest[..1]).unwrap_err().to_string();
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
    let changes = changes(&scan, &guest).unwrap();
    assert_eq!(changes[2].what, "address fd00::2/64 of eth0");
    let RouteNetlinkMessage::NewAddress(message) = request(&changes[2]) else {
        panic!("{changes:?}");
    };
    assert_eq!(message.header.index, 2);
    let flags = AddressFlags::Noprefixroute | AddressFlags::Nodad;
    let expected = [
        AddressAttribute::Address(ip),
        AddressAttribute::Flags(flags),
    ];
    assert_eq!(message.attributes, expected);
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
    let changes = changes(&scan, &guest).unwrap();
    let expected = [
        "route 10.0.0.0/24 in table 254",
        "route default in table 254",
        "route 10.1.0.0/24 in table 254",
    ];
    assert_eq!(whats(&changes)[2..], expected);
    let RouteNetlinkMessage::NewRoute(default) = request(&changes[3]) else {
        panic!("{changes:?}");
    };
    assert_eq!(default.header.flags, RouteFlags::Onlink);
    let expected = [gateway("10.0.0.1"), RouteAttribute::Oif(2)];
    assert_eq!(default.attributes, expected);
    let RouteNetlinkMessage::NewRoute(multipath) = request(&changes[4]) else {
        panic!("{changes:?}");
    };
    let RouteAttribute::MultiPath(hops) = &multipath.attributes[1] else {
        panic!("{multipath:?}");
    };
    assert_eq!(hops[0].interface_index, 2);
    assert_eq!(hops[0].flags, RouteNextHopFlags::Onlink);
}
