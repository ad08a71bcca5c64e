use std::sync::{Arc, Mutex};

use super::ring::RING_SIZE;
use super::*;
use crate::exit::Exit;
use crate::exit_latch::ExitLatch;

fn console() -> (SerialConsole, ConsoleRing) {
    let ring = ConsoleRing::default();
    (SerialConsole::new(ring.clone(), false).unwrap(), ring)
}

fn print(console: &mut SerialConsole, text: &[u8]) {
    for byte in text {
        console.write(0, &[*byte]);
    }
}

#[test]
fn the_last_lines_are_kept() {
    let (mut console, ring) = console();
    print(&mut console, b"one\r\n\r\ntwo\r\nthree");
    assert_eq!(ring.last_lines(2), ["two", "three"]);
    assert_eq!(ring.last_lines(9), ["one", "two", "three"]);
}

#[test]
fn the_ring_never_exceeds_its_size() {
    let ring = ConsoleRing::default();
    ring.push(b"old\n");
    ring.push(&vec![b'x'; RING_SIZE]);
    assert_eq!(ring.lock().len(), RING_SIZE);
    ring.push(b"\nnew");
    assert_eq!(ring.lock().len(), RING_SIZE);
    assert_eq!(ring.last_lines(1), ["new"]);
}

#[test]
fn a_panic_is_seen_even_where_the_ring_wraps() {
    let ring = ConsoleRing::default();
    ring.push(&vec![b'x'; RING_SIZE - 5]);
    assert!(!ring.shows_panic());
    ring.push(b"Kernel panic - not syncing: Attempted to kill init!");
    assert!(ring.shows_panic());
}

#[test]
fn accesses_wider_than_a_byte_reach_no_register() {
    let (mut console, ring) = console();
    console.write(0, b"ab");
    console.write(0, b"");
    let mut data = [0; 2];
    console.read(0, &mut data);
    assert_eq!(data, [0xff, 0xff]);
    assert!(ring.last_lines(1).is_empty());
}

#[test]
fn input_reaches_the_guest_and_its_end_is_told() {
    let (mut console, _) = console();
    console.uart.enqueue_raw_bytes(b"ok").unwrap();
    let mut byte = [0];
    console.read(0, &mut byte);
    assert_eq!(byte, *b"o");
    assert!(console.uart.events().0.read().is_err());
    console.read(0, &mut byte);
    assert_eq!(byte, *b"k");
    assert!(console.uart.events().0.read().is_ok());
}

#[test]
fn ctrl_a_x_stops_and_ctrl_a_ctrl_a_types_one() {
    let latch = ExitLatch::new().unwrap();
    let console = Arc::new(Mutex::new(console().0));
    let mut input = ConsoleInput::new(console, latch.clone()).unwrap();
    let mut typed = b"a\x01\x01b\x01".to_vec();
    input.take_escapes(&mut typed);
    assert_eq!(typed, b"a\x01b");
    assert_eq!(latch.exit(), None);
    let mut typed = b"x".to_vec();
    input.take_escapes(&mut typed);
    assert!(typed.is_empty());
    assert_eq!(latch.exit(), Some(Exit::Stopped));
}
