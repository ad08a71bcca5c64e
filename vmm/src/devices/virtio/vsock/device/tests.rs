use std::io::{Read, Write};
use std::os::unix::net::UnixStream;

use vmm_sys_util::tempdir::TempDir;

use super::super::packet::{HEADER_LEN, Header, TYPE_STREAM, op};
use super::*;
use crate::event_loop::EventLoop;
use crate::testing::{Buffer, GuestQueue, ram};

const BUFFER_LEN: u32 = 4096;

/// The device on an event loop, and a driver.
struct Machine {
    vsock: Option<Vsock>,
    event_loop: EventLoop,
    dir: TempDir,
    rx: GuestQueue,
    tx: GuestQueue,
    events: GuestQueue,
    posted: Vec<(u16, Buffer)>,
}

impl Machine {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let path = dir.as_path().join("vsock");
        let event_loop = EventLoop::new().unwrap();
        let listener = Vsock::listen(&path).unwrap();
        let mem = ram();
        let mut machine = Self {
            vsock: Some(Vsock::new(3, listener, path, event_loop.handle())),
            event_loop,
            dir,
            rx: GuestQueue::new(&mem, 0x10_0000, 64),
            tx: GuestQueue::new(&mem, 0x20_0000, 128),
            events: GuestQueue::new(&mem, 0x30_0000, 16),
            posted: Vec::new(),
        };
        let activation = Activation {
            mem,
            queues: vec![machine.rx.pump(), machine.tx.pump(), machine.events.pump()],
            features: 0,
        };
        machine.on_vcpu(move |vsock| vsock.activate(activation).unwrap());
        machine
    }

    /// Runs something on a thread of its own, as vCPUs do, while the loop goes on.
    fn on_vcpu(&mut self, act: impl FnOnce(&mut Vsock) + Send + 'static) {
        let mut vsock = self.vsock.take().unwrap();
        let vcpu = std::thread::spawn(move || {
            act(&mut vsock);
            vsock
        });
        while !vcpu.is_finished() {
            self.event_loop.run_for(10);
        }
        self.vsock = Some(vcpu.join().unwrap());
    }

    /// Runs the loop until it has nothing to do.
    fn run(&mut self) {
        for _ in 0..10_000 {
            if self.event_loop.run_for(0) == 0 {
                return;
            }
        }
        panic!("the event loop is busy without progress");
    }

    fn post(&mut self, count: usize) {
        for _ in 0..count {
            let buffer = self.rx.writable(HEADER_LEN as u32 + BUFFER_LEN);
            let head = self.rx.add(&[buffer]);
            self.posted.push((head, buffer));
        }
        self.rx.kick().write(1).unwrap();
    }

    fn send(&mut self, header: Header) -> u16 {
        let buffer = self.tx.readable(&header.to_bytes());
        let head = self.tx.add(&[buffer]);
        self.tx.kick().write(1).unwrap();
        head
    }

    fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        self.run();
        let (head, len) = self.rx.used()?;
        let at = self.posted.iter().position(|(posted, _)| *posted == head);
        let (_, buffer) = self.posted.remove(at.unwrap());
        let bytes = self.rx.bytes(buffer);
        let header = Header::from_bytes(bytes[..HEADER_LEN].try_into().unwrap());
        assert_eq!(len, HEADER_LEN as u32 + header.len);
        Some((header, bytes[HEADER_LEN..len as usize].to_vec()))
    }

    /// A stream opened by the host to guest port 7, and the header that answers it.
    fn connect(&mut self) -> (UnixStream, Header) {
        let mut host = UnixStream::connect(self.dir.as_path().join("vsock")).unwrap();
        host.write_all(b"CONNECT 7\n").unwrap();
        let (request, _) = self.receive().unwrap();
        assert_eq!(request.op, op::REQUEST);
        let answer = Header {
            src_cid: 3,
            dst_cid: 2,
            src_port: request.dst_port,
            dst_port: request.src_port,
            kind: TYPE_STREAM,
            op: op::RESPONSE,
            buf_alloc: 1 << 20,
            ..Header::default()
        };
        self.send(answer);
        self.run();
        let mut line = [0; 32];
        let len = host.read(&mut line).unwrap();
        assert!(line[..len].starts_with(b"OK "));
        (host, answer)
    }
}

#[test]
fn the_configuration_is_the_guests_cid() {
    let machine = Machine::new();
    let mut cid = [0xff; 8];
    machine.vsock.unwrap().read_config(0, &mut cid);
    assert_eq!(u64::from_le_bytes(cid), 3);
}

#[test]
fn one_interrupt_announces_a_batch() {
    let mut machine = Machine::new();
    machine.post(60);
    let (mut host, _) = machine.connect();
    while machine.rx.interrupted() {}
    host.write_all(&[5; 20 * BUFFER_LEN as usize]).unwrap();
    machine.rx.set_used_event(1);
    machine.event_loop.run_for(100);
    assert_eq!(machine.rx.interrupt().irqfd().read().unwrap(), 1);
    for _ in 0..20 {
        assert_eq!(machine.receive().unwrap().1, [5; BUFFER_LEN as usize]);
    }
}

#[test]
fn without_receive_buffers_nothing_is_lost_and_nothing_spins() {
    let mut machine = Machine::new();
    machine.post(2);
    let (mut host, answer) = machine.connect();
    host.write_all(&[5; 3 * BUFFER_LEN as usize]).unwrap();
    assert_eq!(machine.receive().unwrap().1.len(), BUFFER_LEN as usize);
    drop(host);
    // No buffer is left; the transmit queue is served all the same.
    assert_eq!(machine.receive(), None);
    let head = machine.send(Header {
        op: op::CREDIT_UPDATE,
        ..answer
    });
    machine.run();
    let mut done = Vec::new();
    while let Some((used, _)) = machine.tx.used() {
        done.push(used);
    }
    assert!(done.contains(&head));
    machine.post(3);
    assert_eq!(machine.receive().unwrap().1.len(), BUFFER_LEN as usize);
    assert_eq!(machine.receive().unwrap().1.len(), BUFFER_LEN as usize);
    assert_eq!(machine.receive().unwrap().0.op, op::SHUTDOWN);
}

#[test]
fn a_connection_made_before_the_driver_is_there_waits_for_it() {
    let dir = TempDir::new().unwrap();
    let path = dir.as_path().join("vsock");
    let listener = Vsock::listen(&path).unwrap();
    let mut early = UnixStream::connect(&path).unwrap();
    early.write_all(b"CONNECT 9\n").unwrap();
    let mut machine = Machine::new();
    let handle = machine.event_loop.handle();
    machine.vsock = Some(Vsock::new(3, listener, path, handle));
    let mem = ram();
    machine.rx = GuestQueue::new(&mem, 0x10_0000, 64);
    machine.tx = GuestQueue::new(&mem, 0x20_0000, 128);
    let queues = vec![machine.rx.pump(), machine.tx.pump(), machine.events.pump()];
    let activation = Activation {
        mem,
        queues,
        features: 0,
    };
    machine.on_vcpu(move |vsock| vsock.activate(activation).unwrap());
    machine.posted.clear();
    machine.post(1);
    let (request, _) = machine.receive().unwrap();
    assert_eq!((request.op, request.dst_port), (op::REQUEST, 9));
}

#[test]
fn a_reset_closes_every_stream_and_touches_no_queue_after() {
    let mut machine = Machine::new();
    machine.post(10);
    let (mut host, answer) = machine.connect();
    machine.on_vcpu(VirtioDevice::reset);
    assert_eq!(host.read(&mut [0]).unwrap(), 0);
    let last = machine.send(answer);
    machine.run();
    while let Some((used, _)) = machine.tx.used() {
        assert_ne!(used, last, "used after the reset");
    }
}

#[test]
fn malformed_packets_are_given_back_and_the_next_is_served() {
    let mut machine = Machine::new();
    machine.post(4);
    let good = Header {
        src_cid: 3,
        dst_cid: 2,
        kind: TYPE_STREAM,
        op: op::RW,
        ..Header::default()
    };
    let mut heads = Vec::new();
    for bytes in [
        vec![],
        vec![0; 43],
        Header { len: 1, ..good }.to_bytes().to_vec(),
        Header {
            len: u32::MAX,
            ..good
        }
        .to_bytes()
        .to_vec(),
    ] {
        let buffer = machine.tx.readable(&bytes);
        heads.push(machine.tx.add(&[buffer]));
    }
    let writable = machine.tx.writable(100);
    heads.push(machine.tx.add(&[writable]));
    heads.push(machine.send(good));
    assert_eq!(machine.receive().unwrap().0.op, op::RST);
    assert_eq!(machine.receive(), None);
    for head in heads {
        assert_eq!(machine.tx.used(), Some((head, 0)));
    }
}

#[test]
fn receive_buffers_too_small_for_anything_are_given_back_empty() {
    let mut machine = Machine::new();
    for len in [0, 1, 44] {
        let buffer = machine.rx.writable(len);
        machine.rx.add(&[buffer]);
    }
    machine.post(1);
    let mut host = UnixStream::connect(machine.dir.as_path().join("vsock")).unwrap();
    host.write_all(b"CONNECT 7\n").unwrap();
    machine.run();
    for _ in 0..3 {
        assert_eq!(machine.rx.used().unwrap().1, 0);
    }
    assert_eq!(machine.receive().unwrap().0.op, op::REQUEST);
}

#[test]
fn a_broken_queue_stops_the_device_not_the_loop() {
    let mut machine = Machine::new();
    machine.post(4);
    machine.tx.set_avail_idx(1000);
    machine.tx.kick().write(1).unwrap();
    machine.run();
    assert!(machine.tx.interrupt().needs_reset());
    machine.on_vcpu(VirtioDevice::reset);
}
