use std::ops::Range;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::time::Duration;

use super::blocks::{Blocks, Outcome};
use super::device::Opener;
use super::request::{Request, Response, State};
use super::*;
use crate::devices::virtio::VirtioDevice as _;
use crate::event_loop::EventLoop;
use crate::memory::MemoryError;
use crate::testing::{Buffer, GuestQueue, activated, ram};

const BASE: u64 = 4 << 30;
const REGION: u64 = 4 * SECTION_SIZE;
const MIB: u64 = 1 << 20;

fn blocks(requested: u64) -> Blocks {
    let mut blocks = Blocks::new(BASE, REGION);
    blocks.request(requested);
    blocks
}

fn plug(address: u64, blocks: u16) -> Request {
    Request::Plug { address, blocks }
}

fn unplug(address: u64, blocks: u16) -> Request {
    Request::Unplug { address, blocks }
}

fn answer(blocks: &mut Blocks, request: Request) -> Response {
    blocks.handle(&request).response
}

#[test]
fn the_guest_plugs_as_much_as_was_requested_and_no_more() {
    let mut blocks = blocks(8 * MIB);
    assert_eq!(answer(&mut blocks, plug(BASE, 2)), Response::Ack);
    assert_eq!(answer(&mut blocks, plug(BASE + 8 * MIB, 3)), Response::Nack);
    assert_eq!(answer(&mut blocks, plug(BASE + 8 * MIB, 2)), Response::Ack);
    assert_eq!(blocks.plugged(), 8 * MIB);
    assert_eq!(
        answer(&mut blocks, plug(BASE + 64 * MIB, 1)),
        Response::Nack
    );
    // A smaller request takes nothing by itself.
    blocks.request(2 * MIB);
    assert_eq!(blocks.plugged(), 8 * MIB);
    let outcome = blocks.handle(&unplug(BASE, 2));
    let discarded = Outcome {
        response: Response::Ack,
        discard: Some(BASE..BASE + 4 * MIB),
    };
    assert_eq!(outcome, discarded);
    assert_eq!(blocks.plugged(), 4 * MIB);
}

#[test]
fn requests_outside_the_usable_part_or_out_of_step_are_errors() {
    let end = BASE + SECTION_SIZE;
    for (address, count) in [
        (BASE, 0),
        (BASE + MIB, 1),
        (BASE - 2 * MIB, 1),
        (0, 1),
        (end, 1),
        (end - 2 * MIB, 2),
        (BASE, u16::MAX),
        (u64::MAX - 2 * MIB + 1, 1),
        (u64::MAX, u16::MAX),
    ] {
        let mut blocks = blocks(SECTION_SIZE);
        let before = blocks.clone();
        for request in [
            plug(address, count),
            unplug(address, count),
            Request::State {
                address,
                blocks: count,
            },
        ] {
            let outcome = blocks.handle(&request);
            assert_eq!(outcome, Response::Error.into(), "{request:?}");
        }
        assert_eq!(blocks, before);
    }
    let mut blocks = blocks(SECTION_SIZE);
    answer(&mut blocks, plug(BASE, 1));
    assert_eq!(answer(&mut blocks, plug(BASE, 2)), Response::Error);
    assert_eq!(answer(&mut blocks, unplug(BASE, 2)), Response::Error);
    assert_eq!(
        answer(&mut blocks, unplug(BASE + 2 * MIB, 1)),
        Response::Error
    );
    assert_eq!(blocks.plugged(), 2 * MIB);
}

#[test]
fn the_state_of_a_range_is_told() {
    let mut blocks = blocks(SECTION_SIZE);
    answer(&mut blocks, plug(BASE, 2));
    let state = |address, blocks| Request::State { address, blocks };
    for (request, expected) in [
        (state(BASE, 2), State::Plugged),
        (state(BASE, 3), State::Mixed),
        (state(BASE + 4 * MIB, 60), State::Unplugged),
    ] {
        assert_eq!(answer(&mut blocks, request), Response::State(expected));
    }
    let all = blocks.handle(&Request::UnplugAll);
    assert_eq!(all.response, Response::Ack);
    assert_eq!(all.discard, Some(BASE..BASE + SECTION_SIZE));
    assert_eq!(blocks.plugged(), 0);
}

#[test]
fn the_usable_part_grows_in_sections_and_stays() {
    let field = |blocks: &Blocks, at: usize| {
        u64::from_le_bytes(blocks.config()[at..at + 8].try_into().unwrap())
    };
    let mut blocks = blocks(0);
    let config = [0, 16, 24, 32, 40, 48].map(|at| field(&blocks, at));
    assert_eq!(config, [BLOCK_SIZE, BASE, REGION, 0, 0, 0]);
    for (requested, usable) in [
        (2 * MIB, SECTION_SIZE),
        (SECTION_SIZE + 2 * MIB, 2 * SECTION_SIZE),
        (2 * MIB, 2 * SECTION_SIZE),
        (REGION, REGION),
    ] {
        blocks.request(requested);
        assert_eq!(
            (field(&blocks, 48), field(&blocks, 32)),
            (requested, usable)
        );
    }
}

/// Tells how far the region was opened.
struct Opened(Sender<u64>);

impl Opener for Opened {
    fn open(&mut self, bytes: u64) -> Result<(), MemoryError> {
        self.0.send(bytes).unwrap();
        Ok(())
    }
}

fn device(event_loop: &EventLoop) -> (Mem, Receiver<u64>) {
    let (sender, opened) = channel();
    let opener = Box::new(Opened(sender));
    (Mem::with(opener, BASE, REGION, event_loop.handle()), opened)
}

/// Sends a request as the driver does; returns the answer's type and state.
fn ask(guest: &mut GuestQueue, event_loop: &mut EventLoop, request: &[u8]) -> Option<(u16, u16)> {
    let buffers = [guest.readable(request), guest.writable(10)];
    let (_, written) = exchange(guest, event_loop, &buffers);
    let bytes = guest.bytes(buffers[1]);
    let field = |range: Range<usize>| u16::from_le_bytes(bytes[range].try_into().unwrap());
    (written == 10).then(|| (field(0..2), field(8..10)))
}

fn exchange(guest: &mut GuestQueue, event_loop: &mut EventLoop, buffers: &[Buffer]) -> (u16, u32) {
    let head = guest.add(buffers);
    guest.kick().write(1).unwrap();
    event_loop.run_for(100);
    let used = guest.used().unwrap();
    assert_eq!(used.0, head);
    used
}

fn wire(kind: u16, address: u64, blocks: u16) -> Vec<u8> {
    let mut bytes = kind.to_le_bytes().to_vec();
    bytes.extend_from_slice(&[0; 6]);
    bytes.extend_from_slice(&address.to_le_bytes());
    bytes.extend_from_slice(&blocks.to_le_bytes());
    bytes.extend_from_slice(&[0; 6]);
    bytes
}

#[test]
fn requests_come_through_the_queue_and_nonsense_is_answered() {
    let mem = ram();
    let mut guest = GuestQueue::new(&mem, 0x10_0000, 8);
    let mut event_loop = EventLoop::new().unwrap();
    let (device, opened) = device(&event_loop);
    let control = device.control();
    let pumps = vec![guest.pump()];
    let device = activated(device, &mem, pumps, &mut event_loop);
    let none = Duration::ZERO;
    assert_eq!(control.resize_within(5 * MIB, none, none).unwrap(), 0);
    assert_eq!(opened.try_recv(), Ok(SECTION_SIZE));
    assert!(guest.interrupted(), "the configuration changed");
    assert_eq!(device.config_generation(), 1);
    for (request, expected) in [
        (wire(0, BASE, 2), (0, 0)),
        (wire(3, BASE, 3), (0, 2)),
        (wire(0, BASE + 4 * MIB, 1), (1, 0)),
        (wire(0, 0, 1), (3, 0)),
        (wire(7, BASE, 1), (3, 0)),
        (wire(1, BASE, 1)[..20].to_vec(), (3, 0)),
    ] {
        let answer = ask(&mut guest, &mut event_loop, &request);
        assert_eq!(answer, Some(expected), "{request:?}");
    }
    // No room for the answer, nothing to read.
    let request = guest.readable(&wire(3, BASE, 1));
    let short = guest.writable(4);
    for buffers in [&[request][..], &[request, short], &[short]] {
        assert_eq!(exchange(&mut guest, &mut event_loop, buffers).1, 0);
    }
    assert!(!guest.interrupt().needs_reset());
}

#[test]
fn a_resize_waits_for_the_guest() {
    const LONG: Duration = Duration::from_secs(1000);
    let mem = ram();
    let mut guest = GuestQueue::new(&mem, 0x10_0000, 8);
    let mut event_loop = EventLoop::new().unwrap();
    let (device, _opened) = device(&event_loop);
    let control = device.control();
    assert_eq!(control.resize(4 * MIB).unwrap(), 0, "no driver to wait for");
    assert!(control.resize(REGION + BLOCK_SIZE).is_err());
    let pumps = vec![guest.pump()];
    let device = activated(device, &mem, pumps, &mut event_loop);
    let grow = control.clone();
    let waiting = std::thread::spawn(move || grow.resize_within(5 * MIB, LONG, LONG).unwrap());
    for block in 0..2 {
        std::thread::sleep(Duration::from_millis(20));
        assert!(!waiting.is_finished());
        let request = wire(0, BASE + block * BLOCK_SIZE, 1);
        ask(&mut guest, &mut event_loop, &request).unwrap();
    }
    read_requested(&device);
    assert_eq!(waiting.join().unwrap(), 4 * MIB);
}

/// Reads the configuration's last field as Linux does, in halves; returns the lower.
fn read_requested(device: &Mem) -> u32 {
    let [low, _high] = [48, 52].map(|offset| {
        let mut half = [0; 4];
        device.read_config(offset, &mut half);
        u32::from_le_bytes(half)
    });
    low
}

#[test]
fn a_smaller_size_is_not_waited_for_and_a_larger_one_until_no_block_leaves_any_more() {
    let mem = ram();
    let mut guest = GuestQueue::new(&mem, 0x10_0000, 8);
    let mut event_loop = EventLoop::new().unwrap();
    let (device, _opened) = device(&event_loop);
    let control = device.control();
    let pumps = vec![guest.pump()];
    let device = activated(device, &mem, pumps, &mut event_loop);
    let none = Duration::ZERO;
    assert_eq!(control.resize_within(8 * MIB, none, none).unwrap(), 0);
    ask(&mut guest, &mut event_loop, &wire(0, BASE, 4)).unwrap();
    read_requested(&device);
    // Nobody answers, and the deadline of the test is not reached.
    assert_eq!(control.resize(2 * MIB).unwrap(), 8 * MIB);
    assert_eq!(read_requested(&device), 2 << 20);
    // The driver is about to unplug what it was told to: there is enough, but not to stay.
    let grow = control.clone();
    let waiting = std::thread::spawn(move || grow.resize(6 * MIB).unwrap());
    while device.config_generation() < 3 {
        std::thread::yield_now();
    }
    ask(&mut guest, &mut event_loop, &wire(1, BASE, 3)).unwrap();
    assert_eq!(read_requested(&device), 6 << 20);
    std::thread::sleep(Duration::from_millis(20));
    assert!(!waiting.is_finished());
    ask(&mut guest, &mut event_loop, &wire(0, BASE, 2)).unwrap();
    assert_eq!(waiting.join().unwrap(), 6 * MIB);
}
