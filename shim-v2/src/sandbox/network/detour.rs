//! Routes by a gateway that no other route leads to: a kernel keeps such a one when the other
//! goes, as after CNI's plugin vrf, but takes none. So the other is there for a moment.
//! Pure functions.

use agent_protocol::agent::{NetworkChange, NetworkRefusal};
use libc::{EHOSTUNREACH, ENETUNREACH};
use netlink_packet_core::{NLM_F_ACK, NLM_F_CREATE, NLM_F_EXCL, NetlinkPayload};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::route::{RouteAddress, RouteAttribute, RouteMessage, RouteScope};

use super::decode::decode;
use super::netlink::packet;

/// Which of [`around`]'s changes is the route's own.
pub const ROUTE: u32 = 1;
/// How many there are.
pub const CHANGES: u32 = 3;
/// The least preferred: nobody else's route to the gateway is taken for ours.
const METRIC: u32 = u32::MAX;

/// What gives the guest a route that it has refused for its gateway; `None` if it was not that.
pub fn around(change: &NetworkChange, refusal: &NetworkRefusal) -> Option<[NetworkChange; 3]> {
    if ![ENETUNREACH, EHOSTUNREACH].contains(&refusal.errno) {
        return None;
    }
    let request = decode(&change.request).ok()?;
    let NetlinkPayload::InnerMessage(RouteNetlinkMessage::NewRoute(route)) = request.payload else {
        return None;
    };
    let bridge = to_gateway(&route)?;
    let with = |what: &str, flags, request| NetworkChange {
        what: format!("{}, {what}", change.what),
        request: packet(NLM_F_ACK | flags, 1, request),
        ..NetworkChange::default()
    };
    let flags = NLM_F_CREATE | NLM_F_EXCL;
    let there = RouteNetlinkMessage::NewRoute(bridge.clone());
    let gone = RouteNetlinkMessage::DelRoute(bridge);
    Some([
        with("its gateway", flags, there),
        change.clone(),
        with("its gateway, removed", 0, gone),
    ])
}

/// A route to a route's gateway, by the same link and in the same table.
fn to_gateway(route: &RouteMessage) -> Option<RouteMessage> {
    let gateway = route
        .attributes
        .iter()
        .find_map(|attribute| match attribute {
            RouteAttribute::Gateway(gateway) => Some(gateway.clone()),
            _ => None,
        })?;
    let mut bridge = RouteMessage::default();
    bridge.header = route.header.clone();
    bridge.header.destination_prefix_length = match gateway {
        RouteAddress::Inet(_) => 32,
        RouteAddress::Inet6(_) => 128,
        _ => return None,
    };
    bridge.header.source_prefix_length = 0;
    bridge.header.scope = RouteScope::Link;
    let kept = route
        .attributes
        .iter()
        .filter(|attribute| matches!(attribute, RouteAttribute::Oif(_) | RouteAttribute::Table(_)));
    bridge.attributes = kept.cloned().collect();
    bridge.attributes.push(RouteAttribute::Destination(gateway));
    bridge.attributes.push(RouteAttribute::Priority(METRIC));
    Some(bridge)
}

#[cfg(test)]
mod tests {
    use netlink_packet_core::NetlinkMessage;
    use netlink_packet_route::AddressFamily;

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

    #[test]
    fn the_gateway_is_reached_for_as_long_as_it_takes() {
        let gateway: std::net::Ipv4Addr = "10.0.0.1".parse().unwrap();
        let by = change(vec![
            RouteAttribute::Oif(2),
            RouteAttribute::Table(1000),
            RouteAttribute::Gateway(RouteAddress::Inet(gateway)),
        ]);
        let changes = around(&by, &refusal(ENETUNREACH)).unwrap();
        assert_eq!(changes.len(), CHANGES as usize);
        assert_eq!(changes[ROUTE as usize], by);
        let told = |change: &NetworkChange| {
            let request = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&change.request);
            match request.unwrap().payload {
                NetlinkPayload::InnerMessage(
                    RouteNetlinkMessage::NewRoute(route) | RouteNetlinkMessage::DelRoute(route),
                ) => route,
                other => panic!("{other:?}"),
            }
        };
        let bridge = told(&changes[0]);
        assert_eq!(told(&changes[2]), bridge);
        assert_eq!(bridge.header.destination_prefix_length, 32);
        let of = RouteAttribute::Destination(RouteAddress::Inet(gateway));
        for attribute in [of, RouteAttribute::Oif(2), RouteAttribute::Table(1000)] {
            assert!(bridge.attributes.contains(&attribute), "{bridge:?}");
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
