//! Routes by gateways that no other route leads to: a kernel keeps such a one when the others
//! go, as after CNI's plugin vrf, but takes none. So the others are there for a moment.
//! Pure functions.

use agent_protocol::agent::{NetworkChange, NetworkRefusal};
use libc::{EHOSTUNREACH, ENETUNREACH};
use netlink_packet_core::{NLM_F_ACK, NLM_F_APPEND, NLM_F_CREATE, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope};

use super::decode::decode;
use super::netlink::packet;

/// The least preferred: nobody else's route to the gateway is taken for ours.
const METRIC: u32 = u32::MAX;

/// What gives the guest a route that it has refused for a gateway; `None` if it was not that. The
/// route's own change is the one in the middle.
pub fn around(change: &NetworkChange, refusal: &NetworkRefusal) -> Option<Vec<NetworkChange>> {
    if ![ENETUNREACH, EHOSTUNREACH].contains(&refusal.errno) {
        return None;
    }
    let request = decode(&change.request).ok()?;
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) = request.payload else {
        return None;
    };
    let bridges = to_gateways(&route);
    if bridges.is_empty() {
        return None;
    }
    let with = |what: &str, flags, request| NetworkChange {
        what: format!("{}, {what}", change.what),
        request: packet(NLM_F_ACK | flags, 1, request),
        ..NetworkChange::default()
    };
    // One gateway may be behind several links.
    let flags = NLM_F_CREATE | NLM_F_APPEND;
    let there = bridges.iter().cloned().map(RouteNetlinkMessage::NewRoute);
    let there = there.map(|bridge| with("its gateway", flags, bridge));
    let gone = bridges.iter().cloned().map(RouteNetlinkMessage::DelRoute);
    let gone = gone.map(|bridge| with("its gateway, removed", 0, bridge));
    Some(there.chain([change.clone()]).chain(gone).collect())
}

/// Routes to a route's gateways, by the same links and in the same table.
fn to_gateways(route: &RouteMessage) -> Vec<RouteMessage> {
    let mut own = None;
    let mut gateways = Vec::new();
    for attribute in &route.attributes {
        match attribute {
            RouteAttribute::Oif(link) => own = Some(*link),
            RouteAttribute::MultiPath(hops) => {
                for hop in hops {
                    let gateway = gateway(&hop.attributes);
                    gateways.extend(gateway.map(|gateway| (hop.interface_index, gateway)));
                }
            }
            _ => {}
        }
    }
    gateways.extend(own.zip(gateway(&route.attributes)));
    let bridges = gateways.into_iter();
    bridges
        .filter_map(|(link, gateway)| bridge(route, link, gateway))
        .collect()
}

fn gateway(attributes: &[RouteAttribute]) -> Option<&RouteAddress> {
    attributes.iter().find_map(|attribute| match attribute {
        RouteAttribute::Gateway(gateway) => Some(gateway),
        _ => None,
    })
}

fn bridge(route: &RouteMessage, link: u32, gateway: &RouteAddress) -> Option<RouteMessage> {
    let mut bridge = RouteMessage::default();
    bridge.header = route.header.clone();
    bridge.header.destination_prefix_length = match gateway {
        RouteAddress::Inet(_) => 32,
        RouteAddress::Inet6(_) => 128,
        _ => return None,
    };
    bridge.header.source_prefix_length = 0;
    bridge.header.scope = RouteScope::Link;
    let is_table = |attribute: &&RouteAttribute| matches!(attribute, RouteAttribute::Table(_));
    let table = route.attributes.iter().filter(is_table);
    bridge.attributes = table.cloned().collect();
    bridge.attributes.extend([
        RouteAttribute::Oif(link),
        RouteAttribute::Destination(gateway.clone()),
        RouteAttribute::Priority(METRIC),
    ]);
    Some(bridge)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkMessage;
    use netlink_packet_route::AddressFamily;
    use netlink_packet_route::route::RouteNextHop;

    use super::*;

    fn refusal(errno: i32) -> NetworkRefusal {
        NetworkRefusal {
            errno,
            ..NetworkRefusal::default()
        }
    }

    fn change(attributes: Vec<RouteAttribute>) -> NetworkChange {
        let mut route = RouteMessage::default();
        route.header.address_family = AddressFamily::Inet;
        route.attributes = attributes;
        NetworkChange {
            what: "route".to_owned(),
            request: packet(NLM_F_ACK, 1, RouteNetlinkMessage::NewRoute(route)),
            ..NetworkChange::default()
        }
    }

    fn told(change: &NetworkChange) -> RouteMessage {
        let request = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&change.request);
        match request.unwrap().payload {
            NetlinkPayload::InnerMessage(
                RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
            ) => route,
            other => panic!("{other:?}"),
        }
    }

    #[test]
    fn the_gateway_is_reached_for_as_long_as_it_takes() {
        let gateway: std::net::Ipv4Addr = "10.0.0.1".parse().unwrap();
        let by = change(vec![
            RouteAttribute::Oif(2),
            RouteAttribute::Table(1000),
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)),
        ]);
        let changes = around(&by, &refusal(ENETUNREACH)).unwrap();
        let [there, own, gone] = &changes[..] else {
            panic!("{changes:?}");
        };
        assert_eq!(*own, by);
        let bridge = told(there);
        assert_eq!(told(gone), bridge);
        assert_eq!(bridge.header.destination_prefix_length, 32);
        let of = RouteAttribute::Destination(RouteAddress::Inet(gateway));
        for attribute in [of, RouteAttribute::Oif(2), RouteAttribute::Table(1000)] {
            assert!(bridge.attributes.contains(&attribute), "{bridge:?}");
        }
    }

    #[test]
    fn so_is_each_of_several_gateways() {
        let hop = |link: u8| {
            let mut hop = RouteNextHop::default();
            hop.interface_index = link.into();
            let gateway = RouteAddress::Inet([10, 0, link, 1].into());
            hop.attributes = vec![RouteAttribute::Gateway(gateway)];
            hop
        };
        let by = change(vec![RouteAttribute::MultiPath(vec![hop(2), hop(3)])]);
        let changes = around(&by, &refusal(ENETUNREACH)).unwrap();
        assert_eq!(changes.len(), 5);
        assert_eq!(changes[changes.len() / 2], by);
        for (number, link) in [(0, 2), (1, 3), (3, 2), (4, 3)] {
            let bridge = told(&changes[number]);
            let to = RouteAddress::Inet([10, 0, link, 1].into());
            for attribute in [
                RouteAttribute::Oif(link.into()),
                RouteAttribute::Destination(to),
            ] {
                assert!(bridge.attributes.contains(&attribute), "{bridge:?}");
            }
        }
    }

    #[test]
    fn what_is_refused_for_another_reason_stays_refused() {
        let by = RouteAttribute::Gateway(RouteAddress::Inet([10, 0, 0, 1].into()));
        assert!(around(&change(vec![by]), &refusal(libc::EINVAL)).is_none());
        let direct = change(vec![RouteAttribute::Oif(2)]);
        assert!(around(&direct, &refusal(ENETUNREACH)).is_none());
        assert!(around(&NetworkChange::default(), &refusal(ENETUNREACH)).is_none());
    }
}
