use virtio_bindings::virtio_ring::{VRING_DESC_F_INDIRECT, VRING_DESC_F_NEXT, VRING_DESC_F_WRITE};
use vm_memory::Bytes;

use super::*;
use crate::testing::{Buffer, GuestQueue, RAM_SIZE, ram};

const BASE: u64 = 0x10_0000;
const SIZE: u16 = 8;

fn queue() -> (GuestQueue, QueuePump) {
    let guest = GuestQueue::new(&ram(), BASE, SIZE);
    let pump = guest.pump();
    (guest, pump)
}

/// What the driver sees of a queue that gave up.
fn assert_broken(guest: &mut GuestQueue, pump: &mut QueuePump, why: &str) {
    pump.drain(|_| panic!("{why}: the device saw the chain"));
    assert!(pump.is_broken(), "{why}: not noticed");
    assert!(guest.interrupt().needs_reset(), "{why}: driver not told");
    assert!(guest.interrupted(), "{why}: driver not interrupted");
    assert_eq!(guest.used(), None, "{why}: chain given back");
}

#[test]
fn chains_go_round_with_one_interrupt() {
    let (mut guest, mut pump) = queue();
    let request = guest.readable(b"ping");
    let answer = guest.writable(4);
    let first = guest.add(&[request, answer]);
    let second = guest.add_indirect(&[request, answer]);
    let mut seen = Vec::new();
    pump.drain(|chain| {
        let mem = chain.memory();
        let parts: Vec<_> = chain.clone().collect();
        let mut bytes = [0; 4];
        mem.read_slice(&mut bytes, parts[0].addr()).unwrap();
        seen.push(bytes);
        mem.write_slice(b"pong", parts[1].addr()).unwrap();
        Some(4)
    });
    assert_eq!(seen, [*b"ping", *b"ping"]);
    assert_eq!(guest.used(), Some((first, 4)));
    assert_eq!(guest.used(), Some((second, 4)));
    assert_eq!(guest.bytes(answer), b"pong");
    assert_eq!(guest.interrupt().irqfd().read().unwrap(), 1);
}

#[test]
fn nothing_available_arms_the_next_kick_and_does_not_interrupt() {
    let (mut guest, mut pump) = queue();
    let buffer = guest.writable(1);
    guest.add(&[buffer]);
    pump.drain(|_| Some(0));
    assert_eq!(
        guest.avail_event(),
        1,
        "a kick for the second chain was asked for"
    );
    assert!(guest.interrupted());
    pump.drain(|_| Some(0));
    assert!(!guest.interrupted());
}

#[test]
fn the_driver_chooses_when_it_is_interrupted() {
    let (mut guest, mut pump) = queue();
    let buffer = guest.writable(1);
    guest.set_used_event(2);
    for expected in [false, false, true] {
        guest.add(&[buffer]);
        pump.drain(|_| Some(1));
        assert_eq!(guest.interrupted(), expected);
    }
}

#[test]
fn chains_given_back_together_appear_together_across_the_rings_end() {
    let (mut guest, mut pump) = queue();
    let buffer = guest.writable(1);
    for round in 0..20 {
        let heads: [u16; 3] = std::array::from_fn(|_| guest.add(&[buffer]));
        for head in heads {
            assert_eq!(pump.pop().unwrap().head_index(), head);
        }
        assert_eq!(guest.used(), None);
        // An interrupt is asked for at the first of the three.
        guest.set_used_event(3 * round);
        pump.push_used_together(&[(heads[2], 7), (heads[0], 8), (heads[1], 9)]);
        pump.notify();
        assert!(guest.interrupted(), "round {round}");
        assert_eq!(guest.used(), Some((heads[2], 7)));
        assert_eq!(guest.used(), Some((heads[0], 8)));
        assert_eq!(guest.used(), Some((heads[1], 9)));
        assert_eq!(guest.used(), None);
        pump.notify();
        assert!(!guest.interrupted(), "told twice");
    }
}

#[test]
fn a_chain_the_device_has_no_room_for_stays_first() {
    let (mut guest, mut pump) = queue();
    let buffer = guest.writable(1);
    let head = guest.add(&[buffer]);
    pump.drain(|_| None);
    assert_eq!(guest.used(), None);
    pump.drain(|_| Some(1));
    assert_eq!(guest.used(), Some((head, 1)));
}

#[test]
fn a_driver_that_never_stops_cannot_hold_the_thread() {
    let (mut guest, mut pump) = queue();
    let buffer = guest.writable(1);
    guest.add(&[buffer]);
    let mut count = 0;
    pump.drain(|_| {
        count += 1;
        guest.add(&[buffer]);
        Some(1)
    });
    assert_eq!(count, SIZE);
    assert!(
        guest.kick().read().is_ok(),
        "the pump comes back to the rest"
    );
}

#[test]
fn the_rings_wrap_at_65536() {
    let (mut guest, mut pump) = queue();
    let buffer = guest.writable(1);
    for _ in 0..70_000u32 {
        let head = guest.add(&[buffer]);
        pump.drain(|_| Some(1));
        assert_eq!(guest.used(), Some((head, 1)));
    }
}

#[test]
fn a_queue_of_one_works() {
    let mut guest = GuestQueue::new(&ram(), BASE, 1);
    let mut pump = guest.pump();
    let buffer = guest.writable(1);
    for _ in 0..3 {
        guest.add(&[buffer]);
        pump.drain(|_| Some(1));
        assert_eq!(guest.used(), Some((0, 1)));
    }
}

#[test]
fn zero_length_buffers_are_the_devices_business() {
    let (mut guest, mut pump) = queue();
    let nowhere = Buffer {
        address: u64::MAX,
        len: 0,
        writable: false,
    };
    guest.add(&[nowhere]);
    let mut count = 0;
    pump.drain(|_| {
        count += 1;
        Some(0)
    });
    assert_eq!(count, 1);
}

#[test]
fn an_available_index_that_jumps_ahead_breaks_the_queue() {
    let (mut guest, mut pump) = queue();
    guest.set_avail_idx(SIZE + 1);
    assert_broken(&mut guest, &mut pump, "jump");
}

#[test]
fn a_head_beyond_the_table_breaks_the_queue() {
    for head in [SIZE, u16::MAX] {
        let (mut guest, mut pump) = queue();
        guest.publish(head);
        assert_broken(&mut guest, &mut pump, "head");
    }
}

#[test]
fn malformed_chains_break_the_queue() {
    let next = VRING_DESC_F_NEXT;
    let write = VRING_DESC_F_WRITE;
    let indirect = VRING_DESC_F_INDIRECT;
    let good = BASE + 0x8_0000;
    let end = RAM_SIZE - 1;
    // (name, descriptors: address, length, flags, next)
    type Raw = (u64, u32, u32, u16);
    let cases: &[(&str, &[Raw])] = &[
        ("loop on itself", &[(good, 1, next, 0)]),
        ("loop of two", &[(good, 1, next, 1), (good, 1, next, 0)]),
        ("link out of the table", &[(good, 1, next, SIZE)]),
        ("link far out", &[(good, 1, next, u16::MAX)]),
        (
            "readable after writable",
            &[(good, 1, next | write, 1), (good, 1, 0, 0)],
        ),
        ("buffer past the end of RAM", &[(end, 2, 0, 0)]),
        ("buffer outside RAM", &[(0xd000_0000, 4, write, 0)]),
        ("address overflow", &[(u64::MAX, 2, write, 0)]),
        ("4 GiB", &[(good, u32::MAX, write, 0)]),
        (
            "many large buffers",
            &[(0, 8 << 20, next, 1), (0, 8 << 20, 0, 0)],
        ),
        ("indirect table of odd length", &[(good, 17, indirect, 0)]),
        ("empty indirect table", &[(good, 0, indirect, 0)]),
        (
            "indirect table outside RAM",
            &[(u64::MAX - 15, 16, indirect, 0)],
        ),
        (
            "huge indirect table",
            &[(good, 0x10_0000 * 16, indirect, 0)],
        ),
        (
            "indirect table is the table itself",
            &[(BASE, 16, indirect, 0)],
        ),
    ];
    for (why, descriptors) in cases {
        let (mut guest, mut pump) = queue();
        for (index, (address, len, flags, link)) in (0u16..).zip(*descriptors) {
            guest.write_raw(index, *address, *len, *flags, *link);
        }
        guest.publish(0);
        assert_broken(&mut guest, &mut pump, why);
    }
}

#[test]
fn an_indirect_chain_longer_than_the_queue_breaks_it() {
    let (mut guest, mut pump) = queue();
    let buffer = guest.writable(1);
    guest.add_indirect(&vec![buffer; usize::from(SIZE)]);
    pump.drain(|_| Some(0));
    assert!(guest.used().is_some(), "as long as the queue is allowed");
    guest.interrupted();
    guest.add_indirect(&vec![buffer; usize::from(SIZE) + 1]);
    assert_broken(&mut guest, &mut pump, "too long");
}

#[test]
fn indirect_tables_must_be_negotiated() {
    let mut guest = GuestQueue::new(&ram(), BASE, SIZE);
    let mut pump = guest.pump_with(RingFeatures {
        event_idx: false,
        indirect: false,
    });
    let buffer = guest.writable(1);
    guest.add_indirect(&[buffer]);
    assert_broken(&mut guest, &mut pump, "indirect");
}

#[test]
fn a_broken_queue_stays_silent() {
    let (mut guest, mut pump) = queue();
    guest.publish(SIZE);
    assert_broken(&mut guest, &mut pump, "head");
    let buffer = guest.writable(1);
    let head = guest.add(&[buffer]);
    pump.drain(|_| panic!("a broken queue yielded a chain"));
    pump.push_used(head, 1);
    pump.notify();
    assert_eq!(guest.used(), None);
    assert!(!guest.interrupted());
}

#[test]
fn layouts_are_checked_against_size_alignment_and_ram() {
    let mem = ram();
    let good = GuestQueue::new(&mem, BASE, SIZE).layout();
    assert_eq!(good.validate(SIZE, &mem).unwrap(), SIZE);
    let bad = [
        QueueLayout {
            ready: false,
            ..good
        },
        QueueLayout { size: 0, ..good },
        QueueLayout { size: 3, ..good },
        QueueLayout { size: 16, ..good },
        QueueLayout {
            size: 0x1_0008,
            ..good
        },
        QueueLayout { desc: 0, ..good },
        QueueLayout {
            desc: BASE + 8,
            ..good
        },
        QueueLayout {
            avail: BASE + 1,
            ..good
        },
        QueueLayout {
            used: BASE + 2,
            ..good
        },
        QueueLayout {
            desc: RAM_SIZE - 16,
            ..good
        },
        QueueLayout {
            avail: RAM_SIZE - 4,
            ..good
        },
        QueueLayout {
            used: RAM_SIZE - 8,
            ..good
        },
        QueueLayout {
            used: u64::MAX - 3,
            ..good
        },
    ];
    for layout in bad {
        assert!(layout.validate(SIZE, &mem).is_err(), "{layout:?}");
    }
}

#[test]
fn rings_may_end_with_the_last_byte_of_ram() {
    let mem = ram();
    let good = GuestQueue::new(&mem, BASE, SIZE).layout();
    let last = QueueLayout {
        desc: RAM_SIZE - 16 * u64::from(SIZE),
        ..good
    };
    assert!(last.validate(SIZE, &mem).is_ok());
}
