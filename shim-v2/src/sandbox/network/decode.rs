//! Messages of netlink, decoded attribute by attribute where the decoder of the protocol refuses
//! one of them: it takes some for what they are not, as the name of a congestion control for a
//! number. Such a one stays as it is among the others.

use netlink_packet_core::{
    DecodeError, DefaultNla, NLA_HEADER_SIZE, NetlinkBuffer, NetlinkDeserializable, NetlinkHeader,
    NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator, Parseable,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_packet_route::address::AddressAttribute;
use netlink_packet_route::link::LinkAttribute;
use netlink_packet_route::neighbour::NeighbourAttribute;
use netlink_packet_route::route::RouteAttribute;
use netlink_packet_route::rule::RuleAttribute;
use netlink_packet_route::tc::TcAttribute;

/// What a protocol tells of.
pub trait Object: Clone + NetlinkSerializable + NetlinkDeserializable {
    /// Decodes each attribute by itself; `None` if that is no help.
    fn by_attributes(_header: &NetlinkHeader, _payload: &[u8]) -> Option<Self> {
        None
    }
}

impl Object for RouteNetlinkMessage {
    fn by_attributes(header: &NetlinkHeader, payload: &[u8]) -> Option<Self> {
        let (start, attributes) = payload.split_at_checked(start(header.message_type)?)?;
        let mut understood = start.to_vec();
        let mut object = Self::deserialize(header, &understood).ok()?;
        let mut raw = Vec::new();
        for attribute in NlasIterator::new(attributes) {
            let attribute = attribute.ok()?;
            let before = understood.len();
            let length = NLA_HEADER_SIZE + attribute.value_length();
            understood.extend(attribute.into_inner().get(..length)?);
            understood.resize(understood.len().next_multiple_of(4), 0);
            if let Ok(more) = Self::deserialize(header, &understood) {
                object = more;
            } else {
                understood.truncate(before);
                raw.push(DefaultNla::parse(&attribute).ok()?);
            }
        }
        keep(&mut object, raw);
        Some(object)
    }
}

/// How much is before the attributes: `struct ifinfomsg` and its like.
fn start(kind: u16) -> Option<usize> {
    Some(match kind {
        libc::RTM_NEWADDR => 8,
        libc::RTM_NEWROUTE
        | libc::RTM_DELROUTE
        | libc::RTM_NEWNEIGH
        | libc::RTM_NEWRULE
        | libc::RTM_DELRULE => 12,
        libc::RTM_NEWLINK => 16,
        libc::RTM_NEWQDISC | libc::RTM_NEWTFILTER => 20,
        _ => return None,
    })
}

fn keep(object: &mut RouteNetlinkMessage, raw: Vec<DefaultNla>) {
    use RouteNetlinkMessage as Message;
    let raw = raw.into_iter();
    match object {
        Message::NewLink(link) => link.attributes.extend(raw.map(LinkAttribute::Other)),
        Message::NewAddress(address) => {
            address.attributes.extend(raw.map(AddressAttribute::Other));
        }
        Message::NewRoute(route) | Message::DelRoute(route) => {
            route.attributes.extend(raw.map(RouteAttribute::Other));
        }
        Message::NewRule(rule) | Message::DelRule(rule) => {
            rule.attributes.extend(raw.map(RuleAttribute::Other));
        }
        Message::NewNeighbour(neighbour) => {
            let raw = raw.map(NeighbourAttribute::Other);
            neighbour.attributes.extend(raw);
        }
        Message::NewQueueDiscipline(tc) | Message::NewTrafficFilter(tc) => {
            tc.attributes.extend(raw.map(TcAttribute::Other));
        }
        _ => {}
    }
}

/// Decodes the message that `packet` begins with.
///
/// # Errors
/// If it is none, or its attributes are not where they should be.
pub fn decode<M: Object>(packet: &[u8]) -> Result<NetlinkMessage<M>, DecodeError> {
    NetlinkMessage::deserialize(packet).or_else(|error| {
        let buffer = NetlinkBuffer::new_checked(&packet)?;
        let header = NetlinkHeader::parse(&buffer)?;
        let object = M::by_attributes(&header, buffer.payload()).ok_or(error)?;
        let payload = NetlinkPayload::InnerMessage(object);
        Ok(NetlinkMessage::new(header, payload))
    })
}

#[cfg(test)]
mod tests {
    use netlink_packet_route::route::{RouteMessage, RouteMetric};
    use netlink_packet_route::rule::RuleMessage;

    use super::super::netlink::packet;
    use super::*;

    fn decoded(packet: &[u8]) -> Option<RouteNetlinkMessage> {
        match decode(packet).ok()?.payload {
            NetlinkPayload::InnerMessage(object) => Some(object),
            _ => None,
        }
    }

    #[test]
    fn an_attribute_that_is_not_understood_stays_as_it_is() {
        let mut rule = RuleMessage::default();
        let tunnel = DefaultNla::new(12, 5u64.to_be_bytes().to_vec());
        let priority = RuleAttribute::Priority(7);
        rule.attributes = vec![RuleAttribute::Other(tunnel.clone()), priority.clone()];
        let packet = packet(0, 1, RouteNetlinkMessage::NewRule(rule.clone()));
        let nothing = NetlinkMessage::<RouteNetlinkMessage>::deserialize(&packet);
        assert!(
            nothing.is_err(),
            "it is understood: nothing of this is needed"
        );
        rule.attributes = vec![priority, RuleAttribute::Other(tunnel)];
        let expected = RouteNetlinkMessage::NewRule(rule);
        assert_eq!(decoded(&packet), Some(expected));
        for length in 0..packet.len() {
            assert_eq!(decoded(&packet[..length]), None);
        }
    }

    #[test]
    fn what_is_understood_beside_it_is_decoded() {
        // RTA_METRICS with RTAX_CC_ALGO.
        let algorithm = [10, 0, 16, 0, b'd', b'c', b't', b'c', b'p', 0, 0, 0];
        let metrics = DefaultNla::new(libc::RTA_METRICS, algorithm.to_vec());
        let mtu = RouteAttribute::Metrics(vec![RouteMetric::Mtu(1400)]);
        let mut route = RouteMessage::default();
        route.attributes = vec![
            RouteAttribute::Other(metrics.clone()),
            RouteAttribute::Table(1000),
            mtu.clone(),
        ];
        let packet = packet(0, 1, RouteNetlinkMessage::NewRoute(route.clone()));
        route.attributes = vec![
            RouteAttribute::Table(1000),
            mtu,
            RouteAttribute::Other(metrics),
        ];
        let expected = RouteNetlinkMessage::NewRoute(route);
        assert_eq!(decoded(&packet), Some(expected));
    }
}
