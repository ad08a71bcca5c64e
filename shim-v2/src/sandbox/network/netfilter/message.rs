//! Messages of nfnetlink about nftables, with the numbers of `linux/netfilter/nf_tables.h`.

use std::fmt;

use netlink_packet_core::{NetlinkDeserializable, NetlinkHeader, NetlinkSerializable, NlaBuffer};

use super::super::decode::Object;

/// The subsystem nftables of nfnetlink (`NFNL_SUBSYS_NFTABLES`), which is the upper byte of a type.
pub const SUBSYSTEM: u16 = 10;
/// Begin and end of a transaction (`NFNL_MSG_BATCH_BEGIN`, `NFNL_MSG_BATCH_END`).
pub const BATCH: [u16; 2] = [0x10, 0x11];

pub const NEWTABLE: u16 = SUBSYSTEM << 8;
pub const GETTABLE: u16 = NEWTABLE + 1;
pub const NEWCHAIN: u16 = NEWTABLE + 3;
pub const GETCHAIN: u16 = NEWTABLE + 4;
pub const NEWRULE: u16 = NEWTABLE + 6;
pub const GETRULE: u16 = NEWTABLE + 7;
pub const NEWSET: u16 = NEWTABLE + 9;
pub const GETSET: u16 = NEWTABLE + 10;
pub const NEWSETELEM: u16 = NEWTABLE + 12;
pub const GETSETELEM: u16 = NEWTABLE + 13;
pub const NEWOBJ: u16 = NEWTABLE + 18;
pub const GETOBJ: u16 = NEWTABLE + 19;
/// Deletes a table, if it is there.
pub const DESTROYTABLE: u16 = NEWTABLE + 26;

/// The attribute of every message that names the table.
pub const TABLE: u16 = 1;
/// The name of a set in messages about it and its elements, of an object and of a rule's chain.
pub const NAME: u16 = 2;
/// The name of a chain in messages about it.
pub const CHAIN_NAME: u16 = 3;

/// Length of `struct nfgenmsg`.
const HEADER_LEN: usize = 4;
/// Length of an attribute's header (`struct nlattr`).
const ATTRIBUTE_HEADER_LEN: usize = 4;

/// A message, or an answer.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Message {
    /// What it does.
    pub kind: u16,
    /// To filters of which family of protocols (`NFPROTO_…`).
    pub family: u8,
    /// Of an answer the generation of the rules, of a transaction the subsystem.
    pub resource: u16,
    /// With what.
    pub attributes: Vec<u8>,
}

impl Message {
    /// A message without a resource.
    pub fn new(kind: u16, family: u8, attributes: Vec<u8>) -> Self {
        Self {
            kind,
            family,
            resource: 0,
            attributes,
        }
    }

    /// The value of one of its attributes.
    pub fn get(&self, kind: u16) -> Option<&[u8]> {
        get(&self.attributes, kind)
    }

    /// Whether both are about the same table.
    pub fn shares_table(&self, other: &Self) -> bool {
        self.family == other.family && self.get(TABLE) == other.get(TABLE)
    }
}

impl NetlinkDeserializable for Message {
    type Error = Short;

    fn deserialize(header: &NetlinkHeader, payload: &[u8]) -> Result<Self, Short> {
        let (start, attributes) = payload.split_at_checked(HEADER_LEN).ok_or(Short)?;
        Ok(Self {
            kind: header.message_type,
            family: start[0],
            resource: u16::from_be_bytes([start[2], start[3]]),
            attributes: attributes.to_vec(),
        })
    }
}

impl Object for Message {}

impl NetlinkSerializable for Message {
    fn message_type(&self) -> u16 {
        self.kind
    }

    fn buffer_len(&self) -> usize {
        HEADER_LEN + self.attributes.len()
    }

    fn serialize(&self, buffer: &mut [u8]) {
        let [high, low] = self.resource.to_be_bytes();
        buffer[..HEADER_LEN].copy_from_slice(&[self.family, 0, high, low]);
        buffer[HEADER_LEN..].copy_from_slice(&self.attributes);
    }
}

/// An answer without its header.
#[derive(Debug)]
pub struct Short;

impl fmt::Display for Short {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("it is too short")
    }
}

impl std::error::Error for Short {}

/// An attribute as it was read.
#[derive(Clone, Copy)]
pub struct Attribute<'a> {
    /// Its type, without the flags.
    pub kind: u16,
    /// Its value.
    pub value: &'a [u8],
}

/// The attributes in some bytes, until they end or make no sense.
pub fn attributes(bytes: &[u8]) -> impl Iterator<Item = Attribute<'_>> {
    let mut rest = bytes;
    std::iter::from_fn(move || {
        let header = NlaBuffer::new_checked(rest).ok()?;
        let (kind, length) = (header.kind(), usize::from(header.length()));
        let value = &rest[ATTRIBUTE_HEADER_LEN..length];
        rest = rest.get(length.next_multiple_of(4)..).unwrap_or_default();
        Some(Attribute { kind, value })
    })
}

/// The value of the first attribute of a kind.
pub fn get(bytes: &[u8], kind: u16) -> Option<&[u8]> {
    let found = attributes(bytes).find(|attribute| attribute.kind == kind);
    found.map(|attribute| attribute.value)
}

/// A number of four bytes; nftables has them in the network's order.
pub fn number(bytes: &[u8], kind: u16) -> Option<u32> {
    let value = get(bytes, kind)?.try_into().ok()?;
    Some(u32::from_be_bytes(value))
}

/// A name, without the zero at its end.
pub fn text(bytes: &[u8], kind: u16) -> Option<String> {
    let text = String::from_utf8_lossy(get(bytes, kind)?);
    Some(text.trim_end_matches('\0').to_owned())
}

/// Appends an attribute. Whether it consists of others nftables knows without the flag for it.
pub fn put(bytes: &mut Vec<u8>, kind: u16, value: &[u8]) {
    // No value is longer: it comes out of an attribute, or out of a shorter one.
    let length = (ATTRIBUTE_HEADER_LEN + value.len()).min(usize::from(u16::MAX));
    bytes.extend((length as u16).to_ne_bytes());
    bytes.extend(kind.to_ne_bytes());
    bytes.extend(value);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
}

/// Some of the attributes.
pub fn only(bytes: &[u8], kinds: &[u16]) -> Vec<u8> {
    let mut kept = Vec::new();
    for attribute in attributes(bytes) {
        if kinds.contains(&attribute.kind) {
            put(&mut kept, attribute.kind, attribute.value);
        }
    }
    kept
}
