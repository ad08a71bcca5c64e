use netlink_packet_core::NetlinkHeader;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_NETFILTER;

use super::super::message::attributes;
use super::*;
use crate::sandbox::network::NetworkError;
use crate::sandbox::network::difference::Difference;
use crate::sandbox::network::netfilter::read;
use crate::sandbox::network::tests::{Namespace, within};

const INET: u8 = 1;
const IP: u8 = 2;
const IP6: u8 = 10;

/// An attribute.
fn one(kind: u16, value: impl AsRef<[u8]>) -> Vec<u8> {
    let mut bytes = Vec::new();
    put(&mut bytes, kind, value.as_ref());
    bytes
}

fn word(kind: u16, value: u32) -> Vec<u8> {
    one(kind, value.to_be_bytes())
}

fn name(kind: u16, name: &str) -> Vec<u8> {
    one(kind, format!("{name}\0"))
}

fn expression(kind: &str, data: &[Vec<u8>]) -> Vec<u8> {
    one(1, [name(1, kind), one(2, data.concat())].concat())
}

fn meta(key: u32) -> Vec<u8> {
    expression("meta", &[word(2, key), word(1, 1)])
}

fn cmp(operation: u32, value: &[u8]) -> Vec<u8> {
    let data = one(3, one(1, value));
    expression("cmp", &[word(1, 1), word(2, operation), data])
}

fn payload(place: [u32; 3]) -> Vec<u8> {
    let [base, offset, length] = place;
    expression(
        "payload",
        &[word(1, 1), word(2, base), word(3, offset), word(4, length)],
    )
}

fn counter(count: u8) -> Vec<u8> {
    let count = [0, 0, 0, 0, 0, 0, 0, count];
    expression("counter", &[one(1, count), one(2, count)])
}

fn rule(family: u8, chain: &str, expressions: &[Vec<u8>]) -> Message {
    let parts = [
        name(TABLE, "t"),
        name(NAME, chain),
        one(3, [0, 0, 0, 0, 0, 0, 0, 9]),
        one(6, [0, 0, 0, 0, 0, 0, 0, 8]),
        one(4, expressions.concat()),
    ];
    Message::new(NEWRULE, family, parts.concat())
}

/// What a kernel tells of a table, where `count` packets were counted.
fn told(count: u8) -> Vec<Message> {
    let counts = [0, 0, 0, 0, 0, 0, 0, count];
    let message = |kind, parts: &[Vec<u8>]| {
        let attributes = [&[name(TABLE, "t")], parts].concat().concat();
        Message {
            resource: 77,
            ..Message::new(kind, INET, attributes)
        }
    };
    let hook = one(4, [word(1, 1), word(2, 0)].concat());
    let counted = one(8, [one(1, counts), one(2, counts)].concat());
    let base = [
        one(2, counts),
        name(3, "in"),
        hook,
        word(5, 1),
        word(6, 2),
        name(7, "filter"),
        counted,
        word(10, 1),
    ];
    let element = |port: u16| one(1, one(1, one(1, port.to_be_bytes())));
    let verdict = one(2, [word(1, -3_i32 as u32), name(2, "__chain0")].concat());
    let jump = expression("immediate", &[word(1, 0), one(2, verdict)]);
    let lookup = expression("lookup", &[name(1, "__set0"), word(2, 1)]);
    vec![
        message(NEWTABLE, &[word(2, 0), word(3, 4), one(4, counts)]),
        message(NEWCHAIN, &base),
        message(NEWCHAIN, &[name(3, "__chain0"), word(10, 4), word(6, 1)]),
        message(
            NEWOBJ,
            &[
                name(2, "hits"),
                word(3, 1),
                one(4, [one(1, counts), one(2, counts)].concat()),
                word(5, 1),
            ],
        ),
        message(
            NEWSET,
            &[
                name(2, "__set0"),
                word(3, 3),
                word(4, 13),
                word(5, 2),
                one(9, word(1, 2)),
                one(16, counts),
            ],
        ),
        message(
            NEWSETELEM,
            &[
                name(2, "__set0"),
                one(3, [element(80), element(443)].concat()),
            ],
        ),
        rule(
            INET,
            "in",
            &[meta(4), cmp(0, &1_u32.to_ne_bytes()), counter(count)],
        ),
        rule(
            INET,
            "in",
            &[meta(16), cmp(0, &[6]), payload([2, 2, 2]), lookup, jump],
        ),
    ]
}

/// The requests of a transaction with their headers.
fn requests(transaction: &[u8]) -> Vec<(NetlinkHeader, Message)> {
    let mut rest = transaction;
    let mut requests = Vec::new();
    while !rest.is_empty() {
        let message = NetlinkMessage::<Message>::deserialize(rest).unwrap();
        rest = &rest[message.header.length as usize..];
        let NetlinkPayload::InnerMessage(request) = message.payload else {
            panic!("{:?}", message.header);
        };
        requests.push((message.header, request));
    }
    requests
}

fn kinds(bytes: &[u8]) -> Vec<u16> {
    attributes(bytes).map(|attribute| attribute.kind).collect()
}

#[test]
fn a_table_is_one_transaction_that_makes_it_anew() {
    let items = items(&told(9), Some);
    let [item] = items.as_slice() else {
        panic!("{}", items.len());
    };
    assert_eq!(item.what, "nftables table inet t");
    let made = requests(&item.add);
    let order: Vec<u16> = made.iter().map(|(header, _)| header.message_type).collect();
    let inner = told(9).into_iter().map(|message| message.kind);
    let frame = [BATCH[0], DESTROYTABLE].into_iter();
    assert_eq!(
        order,
        frame.chain(inner).chain([BATCH[1]]).collect::<Vec<_>>()
    );
    for ((header, request), number) in made.iter().zip(0..) {
        assert_eq!(header.sequence_number, number);
        // It asks for no acknowledgement.
        assert_eq!((header.flags & 1, header.flags & 4), (1, 0));
        let framed = BATCH.contains(&request.kind);
        assert_eq!(request.resource, if framed { SUBSYSTEM } else { 0 });
    }
    let removed = requests(&item.remove);
    assert_eq!(removed.len(), 3);
    assert_eq!(removed[1].1, made[1].1);
    assert_eq!(super::items(&[], Some), []);
}

#[test]
fn what_only_the_kernel_knows_is_left_out() {
    let items = items(&told(9), Some);
    let made = requests(&items[0].add);
    let kept: Vec<Vec<u16>> = made[2..10]
        .iter()
        .map(|(_, made)| kinds(&made.attributes))
        .collect();
    let expected: [&[u16]; 8] = [
        &[1, 2],
        &[1, 3, 4, 5, 7, 10],
        &[1, 3, 10],
        &[1, 2, 3, 4],
        &[1, 2, 3, 4, 5, 9, 10],
        &[1, 2, 3],
        &[1, 2, 4],
        &[1, 2, 4],
    ];
    assert_eq!(kept, expected);
    // A chain without a name has none of its own in the guest.
    assert_eq!(number(&made[4].1.attributes, 10), Some(0));
    assert_eq!(made[5].1.get(4), Some(&[][..]));
    // With other counts it is the same.
    assert_eq!(super::items(&told(200), Some), items);
    let owned = Message::new(NEWTABLE, IP, [name(1, "t"), word(2, 3)].concat());
    assert_eq!(number(&request(&owned, 1, &Some).attributes, 2), Some(1));
}

#[test]
fn a_changed_table_is_given_again_and_a_lost_one_taken_away() {
    let given = items(&told(1), Some);
    assert!(Difference::between(&given, &items(&told(2), Some)).is_empty());
    let more = [told(1), vec![rule(INET, "in", &[counter(0)])]].concat();
    let more = items(&more, Some);
    let steps = Difference::between(&given, &more).steps(&more, &[]);
    assert_eq!(steps.len(), 1);
    assert!(steps[0].change.netfilter && steps[0].change.request == more[0].add);
    let steps = Difference::between(&given, &[]).steps(&[], &[]);
    assert!(steps[0].change.netfilter && steps[0].change.request == given[0].remove);
}

#[test]
fn a_counter_in_an_element_begins_at_zero_and_its_time_anew() {
    let count = |count| [name(1, "counter"), one(2, one(1, [count; 8]))].concat();
    let key = one(1, one(1, [0, 80]));
    let parts = [key.clone(), one(4, [1; 8]), one(5, [2; 8])].concat();
    let single = [parts.clone(), one(7, count(3))].concat();
    let list = [parts, one(11, one(1, count(3)))].concat();
    assert_eq!(kinds(&element(&single)), [1, 4, 7]);
    assert_eq!(get(&element(&single), 7), Some(&one(1, "counter")[..]));
    assert_eq!(kinds(&element(&list)), [1, 4, 11]);
    assert!(element(&list).len() < list.len());
}

#[test]
fn the_protocol_of_a_rule_of_iptables_is_what_it_compares() {
    let of = |protocol: u32, flags: u32| [word(1, protocol), word(2, flags)].concat();
    let owner = expression("match", &[name(1, "owner")]);
    let redirect = expression("target", &[name(1, "REDIRECT")]);
    let cases = [
        (
            IP,
            vec![meta(16), cmp(0, &[6]), owner.clone()],
            Some(of(6, 0)),
        ),
        (
            IP,
            vec![meta(16), cmp(1, &[17]), owner.clone()],
            Some(of(17, 2)),
        ),
        (
            IP,
            vec![payload([1, 9, 1]), cmp(0, &[6]), redirect.clone()],
            Some(of(6, 0)),
        ),
        (
            IP6,
            vec![payload([1, 6, 1]), cmp(0, &[6]), redirect],
            Some(of(6, 0)),
        ),
        (
            IP6,
            vec![payload([1, 9, 1]), cmp(0, &[6]), owner.clone()],
            None,
        ),
        (
            IP,
            vec![meta(16), counter(1), cmp(0, &[6]), owner.clone()],
            None,
        ),
        (IP, vec![meta(16), cmp(0, &[6])], None),
        (IP, vec![owner], None),
    ];
    for (number, (family, expressions, compat)) in cases.into_iter().enumerate() {
        let wanted = request(&rule(family, "in", &expressions), 1, &Some);
        assert_eq!(wanted.get(5), compat.as_deref(), "{number}");
    }
}

#[test]
fn an_interface_has_the_number_of_the_guests() {
    let index = |host| match host {
        1 => Some(1),
        7 => Some(2),
        _ => None,
    };
    for key in [4, 5] {
        for (host, guest) in [(1, 1), (7, 2), (9, u32::MAX)] {
            let compare = |index: u32| rule(IP, "in", &[meta(key), cmp(0, &index.to_ne_bytes())]);
            let wanted = request(&compare(host), 1, &index);
            let expected = request(&compare(guest), 1, &Some);
            assert_eq!(wanted, expected, "{host}");
        }
    }
    // A mark is none.
    let mark = rule(IP, "in", &[meta(3), cmp(0, &7_u32.to_ne_bytes())]);
    assert_eq!(request(&mark, 1, &index), request(&mark, 1, &Some));
}

#[test]
fn the_part_that_was_refused_is_named() {
    let log = rule(
        INET,
        "in",
        &[meta(16), expression("target", &[name(1, "LOG")])],
    );
    let messages = [told(1), vec![log]].concat();
    let add = &items(&messages, Some)[0].add;
    let parts: Vec<Option<String>> = (0..13).map(|number| part(add, number)).collect();
    let parts: Vec<&str> = parts
        .iter()
        .map(|part| part.as_deref().unwrap_or(""))
        .collect();
    assert_eq!(
        parts,
        [
            "",
            "",
            "",
            "chain in",
            "chain __chain0",
            "object hits",
            "set __set0",
            "set __set0",
            "rule 1 of chain in (meta, cmp, counter)",
            "rule 2 of chain in (meta, cmp, payload, lookup, immediate)",
            "rule 3 of chain in (meta, target LOG)",
            "",
            "",
        ]
    );
}

#[test]
fn what_is_cut_off_is_no_reason_to_panic() {
    for message in told(1) {
        for length in 0..message.attributes.len() {
            let mut cut = message.clone();
            cut.attributes.truncate(length);
            let wanted = request(&cut, 1, &Some);
            assert!(wanted.attributes.len() <= length + 24);
        }
    }
    let add = items(&told(1), Some).remove(0).add;
    for length in 0..add.len() {
        part(&add[..length], 11);
    }
}

/// What the agent does with a transaction.
fn apply(namespace: &Namespace, transaction: &[u8]) {
    let refusals = within(&namespace.path, |_| {
        let socket = Socket::new(NETLINK_NETFILTER).unwrap();
        socket.set_non_blocking(true).unwrap();
        socket.send(transaction, 0).unwrap();
        let mut refusals = Vec::new();
        while let Ok((answer, _)) = socket.recv_from_full() {
            let answer = NetlinkMessage::<Message>::deserialize(&answer).unwrap();
            let refused = part(transaction, answer.header.sequence_number);
            refusals.push(format!("{refused:?}: {:?}", answer.payload));
        }
        Ok::<_, NetworkError>(refusals)
    });
    assert_eq!(refusals.unwrap(), Vec::<String>::new());
}

#[test]
fn a_kernel_that_was_told_tells_the_same() {
    let [pod, guest] = [Namespace::new(), Namespace::new()];
    let (Some(pod), Some(guest)) = (pod, guest) else {
        eprintln!("skipped: needs root");
        return;
    };
    let listed = |namespace: &Namespace| within(&namespace.path, |_| read()).unwrap().tables;
    assert_eq!(listed(&pod), []);
    if !super::super::nftables_is_there() {
        eprintln!("skipped: needs nftables");
        return;
    }
    apply(&pod, &items(&told(3), Some)[0].add);
    let given = items(&listed(&pod), Some);
    assert_eq!(given.len(), 1);
    for _ in 0..2 {
        apply(&guest, &given[0].add);
        assert_eq!(items(&listed(&guest), Some), given);
    }
    apply(&guest, &given[0].remove);
    assert_eq!(listed(&guest), []);
}
