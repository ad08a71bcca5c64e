use crate::event_loop::EventLoop;
use crate::testing::{GuestQueue, ram};

use super::*;

fn with_rng(test: impl FnOnce(&mut GuestQueue, &mut EventLoop)) {
    let mem = ram();
    let mut guest = GuestQueue::new(&mem, 0x10_0000, 8);
    let mut event_loop = EventLoop::new().unwrap();
    let mut rng = Rng::new(event_loop.handle());
    let queues = vec![guest.pump()];
    let vcpu = std::thread::spawn(move || {
        let activation = Activation {
            mem,
            queues,
            features: 0,
        };
        rng.activate(activation).unwrap();
        rng
    });
    while !vcpu.is_finished() {
        event_loop.run_for(10);
    }
    let mut rng = vcpu.join().unwrap();
    test(&mut guest, &mut event_loop);
    let vcpu = std::thread::spawn(move || rng.reset());
    while !vcpu.is_finished() {
        event_loop.run_for(10);
    }
    vcpu.join().unwrap();
    let buffer = guest.writable(8);
    guest.add(&[buffer]);
    guest.kick().write(1).unwrap();
    event_loop.run_for(0);
    while guest.used().is_some() {}
    assert_eq!(guest.bytes(buffer), [0; 8], "written after the reset");
}

#[test]
fn buffers_are_filled() {
    with_rng(|guest, event_loop| {
        let buffers = [guest.writable(100), guest.writable(28)];
        let head = guest.add(&buffers);
        guest.kick().write(1).unwrap();
        event_loop.run_for(100);
        assert_eq!(guest.used(), Some((head, 128)));
        assert!(guest.interrupted());
        for buffer in buffers {
            assert!(guest.bytes(buffer).iter().any(|byte| *byte != 0));
        }
    });
}

#[test]
fn a_request_yields_at_most_64_kib() {
    with_rng(|guest, event_loop| {
        let big = guest.writable(100 << 10);
        guest.add(&[big, big]);
        guest.kick().write(1).unwrap();
        event_loop.run_for(100);
        assert_eq!(guest.used().unwrap().1, 64 << 10);
        let bytes = guest.bytes(big);
        assert!(bytes[64 << 10..].iter().all(|byte| *byte == 0));
    });
}

#[test]
fn a_request_without_room_yields_nothing() {
    with_rng(|guest, event_loop| {
        let read_only = guest.readable(&[7; 16]);
        guest.add(&[read_only]);
        guest.kick().write(1).unwrap();
        event_loop.run_for(100);
        assert_eq!(guest.used().unwrap().1, 0);
        assert_eq!(guest.bytes(read_only), [7; 16]);
    });
}
