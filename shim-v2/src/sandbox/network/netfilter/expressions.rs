//! The expressions that a rule of nftables consists of.
//!
//! Three things differ between what the kernel tells of a rule and the request that makes it:
//!
//! * Counters begin at zero: what was counted is no configuration.
//! * Interfaces have other numbers in the guest. Names they have the same.
//! * Matches and targets of iptables are checked against the protocol of their rule, which is
//!   not told; it is what the rule compares.

use super::message::{attributes, get, number, put, text};

/// The attribute of a list's elements (`NFTA_LIST_ELEM`).
const LIST_ELEMENT: u16 = 1;
/// Name and data of an expression.
const NAME: u16 = 1;
const DATA: u16 = 2;
/// Target register and key of `meta`.
const META_REGISTER: u16 = 1;
const META_KEY: u16 = 2;
/// `NFT_META_IIF`, `NFT_META_OIF` and `NFT_META_L4PROTO`.
const INTERFACES: [u32; 2] = [4, 5];
const PROTOCOL: u32 = 16;
/// Target register, base, offset and length of `payload`.
const PAYLOAD_REGISTER: u16 = 1;
const PAYLOAD_PLACE: [u16; 3] = [2, 3, 4];
/// Base (the network header), offset and length of the protocol in a header of IP version 4 and 6.
const PROTOCOL_OF_IP: [u32; 3] = [1, 9, 1];
const PROTOCOL_OF_IP6: [u32; 3] = [1, 6, 1];
const FAMILY_IP: u8 = 2;
const FAMILY_IP6: u8 = 10;
/// Source register, operation and operand of `cmp`.
const CMP_REGISTER: u16 = 1;
const CMP_OPERATION: u16 = 2;
const CMP_DATA: u16 = 3;
const CMP_NEQ: u32 = 1;
const DATA_VALUE: u16 = 1;
/// Protocol and flags of a rule of iptables (`NFTA_RULE_COMPAT`).
const COMPAT_PROTOCOL: u16 = 1;
const COMPAT_FLAGS: u16 = 2;
/// The protocol is any other one (`NFT_RULE_COMPAT_F_INV`).
const COMPAT_INVERTED: u32 = 2;
/// The number of no interface.
const NO_INTERFACE: u32 = u32::MAX;

/// What makes a rule.
pub struct Rule {
    /// The list of its expressions.
    pub expressions: Vec<u8>,
    /// Its protocol, for matches and targets of iptables.
    pub compat: Option<Vec<u8>>,
}

/// What an expression has put into a register.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Loaded {
    Interface,
    Protocol,
}

/// What is known of the rule before an expression.
#[derive(Default)]
struct State {
    /// By the expression before, and into which register.
    loaded: Option<(Loaded, u32)>,
    /// The protocol that the rule compares, and whether it is that or any other one.
    protocol: Option<(u8, bool)>,
    /// Whether it has a match or a target of iptables.
    compat: bool,
}

/// Makes of the expressions that are told of a rule those that make it in the guest, where
/// `index` gives the number of an interface.
pub fn translate(told: &[u8], family: u8, index: impl Fn(u32) -> Option<u32>) -> Rule {
    let mut state = State::default();
    let expressions = each(told, |expression| {
        let data = get(expression, DATA).unwrap_or_default();
        let loaded = state.loaded.take();
        match text(expression, NAME).unwrap_or_default().as_str() {
            "meta" => state.loaded = meta(data),
            "payload" => state.loaded = payload(data, family),
            "cmp" => {
                let of = |(what, register)| {
                    (number(data, CMP_REGISTER) == Some(register)).then_some(what)
                };
                match loaded.and_then(of) {
                    Some(Loaded::Interface) => return with_interface(expression, data, &index),
                    Some(Loaded::Protocol) => state.protocol = state.protocol.or(protocol(data)),
                    None => {}
                }
            }
            "match" | "target" => state.compat = true,
            _ => {}
        }
        without_count(expression)
    });
    let compat = state.protocol.filter(|_| state.compat);
    let compat = compat.map(|(protocol, inverted)| {
        let flags = if inverted { COMPAT_INVERTED } else { 0 };
        let mut compat = Vec::new();
        put(
            &mut compat,
            COMPAT_PROTOCOL,
            &u32::from(protocol).to_be_bytes(),
        );
        put(&mut compat, COMPAT_FLAGS, &flags.to_be_bytes());
        compat
    });
    Rule {
        expressions,
        compat,
    }
}

fn meta(data: &[u8]) -> Option<(Loaded, u32)> {
    let what = match number(data, META_KEY)? {
        key if INTERFACES.contains(&key) => Loaded::Interface,
        PROTOCOL => Loaded::Protocol,
        _ => return None,
    };
    Some((what, number(data, META_REGISTER)?))
}

fn payload(data: &[u8], family: u8) -> Option<(Loaded, u32)> {
    let place = PAYLOAD_PLACE.map(|kind| number(data, kind).unwrap_or_default());
    let is_protocol = match family {
        FAMILY_IP => place == PROTOCOL_OF_IP,
        FAMILY_IP6 => place == PROTOCOL_OF_IP6,
        _ => false,
    };
    let register = number(data, PAYLOAD_REGISTER).filter(|_| is_protocol)?;
    Some((Loaded::Protocol, register))
}

fn protocol(cmp: &[u8]) -> Option<(u8, bool)> {
    let &[protocol] = get(get(cmp, CMP_DATA)?, DATA_VALUE)? else {
        return None;
    };
    Some((protocol, number(cmp, CMP_OPERATION) == Some(CMP_NEQ)))
}

/// A comparison with the number of an interface, which is in the order of the machine.
fn with_interface(expression: &[u8], cmp: &[u8], index: impl Fn(u32) -> Option<u32>) -> Vec<u8> {
    let operand = get(cmp, CMP_DATA).and_then(|data| get(data, DATA_VALUE));
    let Some(Ok(host)) = operand.map(TryInto::try_into) else {
        return expression.to_vec();
    };
    let guest = match u32::from_ne_bytes(host) {
        // None, on either side.
        0 => 0,
        host => index(host).unwrap_or(NO_INTERFACE),
    };
    let mut value = Vec::new();
    put(&mut value, DATA_VALUE, &guest.to_ne_bytes());
    let data = replaced(cmp, CMP_DATA, &value);
    replaced(expression, DATA, &data)
}

/// The attributes with another value of one of them.
fn replaced(bytes: &[u8], kind: u16, value: &[u8]) -> Vec<u8> {
    let mut replaced = Vec::new();
    for attribute in attributes(bytes) {
        let same = attribute.kind != kind;
        let value = if same { attribute.value } else { value };
        put(&mut replaced, attribute.kind, value);
    }
    replaced
}

/// An expression that begins to count at zero.
pub fn without_count(expression: &[u8]) -> Vec<u8> {
    let mut wanted = expression.to_vec();
    let name = text(expression, NAME).unwrap_or_default();
    if name == "counter" || name == "last" {
        wanted.clear();
        put(&mut wanted, NAME, name.as_bytes());
    }
    wanted
}

/// Makes something else of each element of a list.
pub fn each(list: &[u8], mut become_: impl FnMut(&[u8]) -> Vec<u8>) -> Vec<u8> {
    let mut other = Vec::new();
    for element in attributes(list) {
        put(&mut other, LIST_ELEMENT, &become_(element.value));
    }
    other
}

/// The names of a rule's expressions; matches and targets by their own.
pub fn names(list: &[u8]) -> String {
    let name = |expression: &[u8]| {
        let name = text(expression, NAME).unwrap_or_default();
        let own = get(expression, DATA).and_then(|data| text(data, NAME));
        match (name.as_str(), own) {
            ("match" | "target", Some(own)) => format!("{name} {own}"),
            _ => name,
        }
    };
    let names: Vec<String> = attributes(list)
        .map(|element| name(element.value))
        .collect();
    names.join(", ")
}
