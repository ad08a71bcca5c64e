//! What a kernel told of its tables becomes items that the guest is to have: of each table one
//! transaction that makes it anew, so that there is never a moment with half of its rules.
//! Pure functions.
//!
//! What the kernel tells of something are the attributes of the request that makes it, and
//! some more that only it knows (handles, uses, generations).

use netlink_packet_core::{NLM_F_APPEND, NLM_F_CREATE, NetlinkMessage, NetlinkPayload};

use super::super::difference::{Item, Kind};
use super::super::netlink::packet;
use super::expressions::{self, each, without_count};
use super::message::{
    BATCH, CHAIN_NAME, DESTROYTABLE, Message, NAME, NEWCHAIN, NEWOBJ, NEWRULE, NEWSET, NEWSETELEM,
    NEWTABLE, SUBSYSTEM, TABLE, get, number, only, put, text,
};

/// Name and user data of a table.
const OF_TABLE: [u16; 2] = [TABLE, 6];
const TABLE_FLAGS: u16 = 2;
/// It has no effect (`NFT_TABLE_F_DORMANT`). The other flags are about a process that owns it.
const TABLE_DORMANT: u32 = 1;
/// Table, name, hook, policy, type and user data of a chain.
const OF_CHAIN: [u16; 6] = [TABLE, CHAIN_NAME, 4, 5, 7, 12];
const CHAIN_FLAGS: u16 = 10;
/// It goes with the rule that jumps to it (`NFT_CHAIN_BINDING`), which knows it by a number then.
const CHAIN_BINDING: u32 = 4;
/// Table, chain and user data of a rule.
const OF_RULE: [u16; 3] = [TABLE, NAME, 7];
const RULE_EXPRESSIONS: u16 = 4;
const RULE_COMPAT: u16 = 5;
/// Table, name, flags, types and lengths of key and data, policy, description, timeout, interval
/// of its collector, user data, type of objects and expressions of a set.
const OF_SET: [u16; 15] = [TABLE, NAME, 3, 4, 5, 6, 7, 8, 9, 11, 12, 13, 15, 17, 18];
const SET_ID: u16 = 10;
const OF_ELEMENTS: [u16; 2] = [TABLE, NAME];
const ELEMENTS: u16 = 3;
/// Key, data, flags, timeout, user data, object and end of its interval of an element.
const OF_ELEMENT: [u16; 7] = [1, 2, 3, 4, 6, 9, 10];
const ELEMENT_EXPRESSION: u16 = 7;
const ELEMENT_EXPRESSIONS: u16 = 11;
/// Table, name, type and user data of an object.
const OF_OBJECT: [u16; 4] = [TABLE, NAME, OBJECT_TYPE, 8];
const OBJECT_TYPE: u16 = 3;
const OBJECT_DATA: u16 = 4;
/// `NFT_OBJECT_COUNTER`.
const COUNTER: u32 = 1;

/// The tables that `messages` tell of. `index` gives the guest's number of an interface.
pub fn items(messages: &[Message], index: impl Fn(u32) -> Option<u32>) -> Vec<Item> {
    let item = |table: &Message| {
        let name = only(&table.attributes, &[TABLE]);
        let destroy = Message::new(DESTROYTABLE, table.family, name);
        let mut make = vec![destroy.clone()];
        let parts = messages.iter().filter(|part| part.shares_table(table));
        for (id, part) in (1..).zip(parts) {
            make.push(request(part, id, &index));
        }
        Item {
            what: what(table),
            kind: Kind::Filters,
            add: transaction(make),
            remove: transaction(vec![destroy]),
            renewed: None,
        }
    };
    let tables = messages.iter().filter(|message| message.kind == NEWTABLE);
    tables.map(item).collect()
}

/// As `nft` names a table.
fn what(table: &Message) -> String {
    let family = match table.family {
        1 => "inet",
        2 => "ip",
        3 => "arp",
        5 => "netdev",
        7 => "bridge",
        10 => "ip6",
        _ => "of an unknown family",
    };
    let name = text(&table.attributes, TABLE).unwrap_or_default();
    format!("nftables table {family} {name}")
}

/// The request that makes what a message tells of.
fn request(told: &Message, id: u32, index: &impl Fn(u32) -> Option<u32>) -> Message {
    let value = |kind| told.get(kind).unwrap_or_default();
    let keep = |kinds: &[u16]| only(&told.attributes, kinds);
    let flags = |kind, mask: u32| {
        let flags = number(&told.attributes, kind).unwrap_or_default() & mask;
        flags.to_be_bytes()
    };
    let mut wanted;
    match told.kind {
        NEWTABLE => {
            wanted = keep(&OF_TABLE);
            put(&mut wanted, TABLE_FLAGS, &flags(TABLE_FLAGS, TABLE_DORMANT));
        }
        NEWCHAIN => {
            wanted = keep(&OF_CHAIN);
            put(
                &mut wanted,
                CHAIN_FLAGS,
                &flags(CHAIN_FLAGS, !CHAIN_BINDING),
            );
        }
        NEWRULE => {
            wanted = keep(&OF_RULE);
            let rule = expressions::translate(value(RULE_EXPRESSIONS), told.family, index);
            put(&mut wanted, RULE_EXPRESSIONS, &rule.expressions);
            if let Some(compat) = rule.compat {
                put(&mut wanted, RULE_COMPAT, &compat);
            }
        }
        NEWSET => {
            wanted = keep(&OF_SET);
            put(&mut wanted, SET_ID, &id.to_be_bytes());
        }
        NEWSETELEM => {
            wanted = keep(&OF_ELEMENTS);
            put(&mut wanted, ELEMENTS, &each(value(ELEMENTS), element));
        }
        NEWOBJ => {
            wanted = keep(&OF_OBJECT);
            let counts = number(&told.attributes, OBJECT_TYPE) == Some(COUNTER);
            let data = if counts { &[] } else { value(OBJECT_DATA) };
            put(&mut wanted, OBJECT_DATA, data);
        }
        _ => wanted = told.attributes.clone(),
    }
    Message::new(told.kind, told.family, wanted)
}

/// An element of a set. What is left of its time begins anew.
fn element(told: &[u8]) -> Vec<u8> {
    let mut wanted = only(told, &OF_ELEMENT);
    if let Some(expression) = get(told, ELEMENT_EXPRESSION) {
        let expression = without_count(expression);
        put(&mut wanted, ELEMENT_EXPRESSION, &expression);
    }
    if let Some(list) = get(told, ELEMENT_EXPRESSIONS) {
        let list = each(list, without_count);
        put(&mut wanted, ELEMENT_EXPRESSIONS, &list);
    }
    wanted
}

/// The requests as one packet, numbered from 1.
fn transaction(requests: Vec<Message>) -> Vec<u8> {
    let frame = |kind| Message {
        resource: SUBSYSTEM,
        ..Message::new(kind, 0, Vec::new())
    };
    let mut bytes = packet(0, 0, frame(BATCH[0]));
    let mut last = 0;
    for (number, request) in (1..).zip(requests) {
        bytes.extend(packet(NLM_F_CREATE | NLM_F_APPEND, number, request));
        last = number;
    }
    bytes.extend(packet(0, last + 1, frame(BATCH[1])));
    bytes
}

/// Which part of its table a request of a transaction makes, in words.
pub fn part(transaction: &[u8], number: u32) -> Option<String> {
    let mut rest = transaction;
    let mut rules: Vec<Message> = Vec::new();
    while !rest.is_empty() {
        let message = NetlinkMessage::<Message>::deserialize(rest).ok()?;
        rest = rest.get(message.header.length as usize..)?;
        let NetlinkPayload::InnerMessage(request) = message.payload else {
            return None;
        };
        if message.header.sequence_number == number {
            let named = |kind| text(&request.attributes, kind).unwrap_or_default();
            let before = |rule: &&Message| rule.get(NAME) == request.get(NAME);
            return match request.kind {
                NEWCHAIN => Some(format!("chain {}", named(CHAIN_NAME))),
                NEWSET | NEWSETELEM => Some(format!("set {}", named(NAME))),
                NEWOBJ => Some(format!("object {}", named(NAME))),
                NEWRULE => Some(format!(
                    "rule {} of chain {} ({})",
                    rules.iter().filter(before).count() + 1,
                    named(NAME),
                    expressions::names(request.get(RULE_EXPRESSIONS).unwrap_or_default())
                )),
                _ => None,
            };
        }
        if request.kind == NEWRULE {
            rules.push(request);
        }
    }
    None
}

#[cfg(test)]
#[path = "replay_test.rs"]
mod tests;
