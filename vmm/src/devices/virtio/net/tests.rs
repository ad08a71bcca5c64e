use std::cell::Cell;
use std::io;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicI32, AtomicU32, Ordering};

use libc::{TUN_F_CSUM, TUN_F_TSO_ECN, TUN_F_TSO4, TUN_F_TSO6, TUN_F_USO4, TUN_F_USO6};
use nix::errno::Errno;
use nix::sys::socket::{
    AddressFamily, MsgFlags, SockFlag, SockType, recv, send, setsockopt, socketpair, sockopt,
};
use virtio_bindings::virtio_net::{
    VIRTIO_NET_F_CSUM, VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN, VIRTIO_NET_F_GUEST_TSO4,
    VIRTIO_NET_F_GUEST_TSO6, VIRTIO_NET_F_GUEST_USO4, VIRTIO_NET_F_GUEST_USO6,
    VIRTIO_NET_F_HOST_USO, VIRTIO_NET_F_MAC, VIRTIO_NET_F_MRG_RXBUF, VIRTIO_NET_F_MTU,
};
use vm_memory::VolatileSlice;

use super::tap::{Link, Tap, TapError};
use super::*;
use crate::config::MacAddress;
use crate::devices::virtio::{Activation, VirtioDevice};
use crate::event_loop::EventLoop;
use crate::memory::GuestMemory;
use crate::testing::{Buffer, GuestQueue, activated, ram};

const TCP: u32 = TUN_F_CSUM | TUN_F_TSO4 | TUN_F_TSO6 | TUN_F_TSO_ECN;
const UDP: u32 = TUN_F_USO4 | TUN_F_USO6;

/// One end of a pair of sockets that keep frames apart, as a tap does.
struct Socket {
    fd: OwnedFd,
    /// What TUNSETOFFLOAD knows.
    known: u32,
    offload: AtomicU32,
    /// What sending fails with, if not 0.
    errno: AtomicI32,
}

impl AsRawFd for Socket {
    fn as_raw_fd(&self) -> RawFd {
        self.fd.as_raw_fd()
    }
}

impl Link for Socket {
    fn offloads(&self) -> u32 {
        self.known
    }

    fn set_offload(&self, offload: u32) -> io::Result<()> {
        if offload & !self.known != 0 {
            return Err(io::Error::from_raw_os_error(libc::EINVAL));
        }
        self.offload.store(offload, Ordering::SeqCst);
        Ok(())
    }

    fn send(&self, parts: &[VolatileSlice]) -> io::Result<()> {
        match self.errno.load(Ordering::SeqCst) {
            0 => tap::write_vectored(self.as_raw_fd(), parts),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }
}

fn bits(bits: &[u32]) -> u64 {
    bits.iter().fold(0, |all, bit| all | 1 << bit)
}

const MAC: MacAddress = MacAddress([2, 0, 0, 0, 0, 9]);

/// The device on an event loop, the driver's two queues and the far end of the link.
struct Machine {
    net: Option<Net>,
    event_loop: EventLoop,
    link: Arc<Socket>,
    far: OwnedFd,
    mem: GuestMemory,
    rx: GuestQueue,
    tx: GuestQueue,
}

impl Machine {
    /// Active, with mergeable buffers.
    fn new() -> Self {
        Self::with(256, bits(&[VIRTIO_NET_F_MRG_RXBUF]))
    }

    fn with(rx_size: u16, features: u64) -> Self {
        let mut machine = Self::inactive(rx_size);
        machine.activate(features);
        machine
    }

    fn inactive(rx_size: u16) -> Self {
        let (near, far) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_NONBLOCK,
        )
        .unwrap();
        setsockopt(&far, sockopt::SndBuf, &(1 << 20)).unwrap();
        let link = Arc::new(Socket {
            fd: near,
            known: TCP | UDP,
            offload: AtomicU32::new(u32::MAX),
            errno: AtomicI32::new(0),
        });
        let event_loop = EventLoop::new().unwrap();
        let mem = ram();
        Self {
            net: Some(Net::new(link.clone(), MAC, 1500, event_loop.handle())),
            event_loop,
            link,
            far,
            rx: GuestQueue::new(&mem, 0x10_0000, rx_size),
            tx: GuestQueue::new(&mem, 0x20_0000, 256),
            mem,
        }
    }

    /// Runs something on a thread of its own, as vCPUs do, while the loop goes on.
    fn on_vcpu(&mut self, act: impl FnOnce(&mut Net) + Send + 'static) {
        let mut net = self.net.take().unwrap();
        let vcpu = std::thread::spawn(move || {
            act(&mut net);
            net
        });
        while !vcpu.is_finished() {
            self.event_loop.run_for(10);
        }
        self.net = Some(vcpu.join().unwrap());
    }

    fn activate(&mut self, features: u64) {
        let activation = Activation {
            mem: self.mem.clone(),
            queues: vec![self.rx.pump(), self.tx.pump()],
            features,
        };
        self.on_vcpu(move |net| net.activate(activation).unwrap());
        self.kick();
    }

    fn reset(&mut self) {
        self.on_vcpu(VirtioDevice::reset);
    }

    fn kick(&mut self) {
        self.rx.kick().write(1).unwrap();
        self.tx.kick().write(1).unwrap();
        self.run();
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

    /// Posts receive buffers and returns their chains.
    fn post(&mut self, count: usize, len: u32) -> Vec<(u16, Buffer)> {
        let post = |_| {
            let buffer = self.rx.writable(len);
            (self.rx.add(&[buffer]), buffer)
        };
        let posted = (0..count).map(post).collect();
        self.rx.kick().write(1).unwrap();
        self.run();
        posted
    }

    /// Sends a frame from the host's side.
    fn arrive(&mut self, frame: &[u8]) {
        let sent = send(self.far.as_raw_fd(), frame, MsgFlags::empty()).unwrap();
        assert_eq!(sent, frame.len());
        self.run();
    }

    /// Queues a frame on the guest's side.
    fn queue(&mut self, frame: &[u8]) -> u16 {
        let buffer = self.tx.readable(frame);
        self.tx.add(&[buffer])
    }

    /// What has reached the host's side.
    fn sent(&self) -> Option<Vec<u8>> {
        let mut frame = vec![0; 1 << 20];
        match recv(self.far.as_raw_fd(), &mut frame, MsgFlags::empty()) {
            Ok(len) => Some(frame[..len].to_vec()),
            Err(Errno::EAGAIN) => None,
            Err(error) => panic!("{error}"),
        }
    }
}

/// A header and `len - 12` bytes that differ from frame to frame.
fn frame(seed: u8, len: usize) -> Vec<u8> {
    let mut frame: Vec<u8> = (0..len)
        .map(|at| (at as u8).wrapping_mul(31) ^ seed)
        .collect();
    frame[..HEADER_LEN].fill(0);
    frame
}

/// What the driver finds of a frame that arrived in `buffers` chains.
fn with_num_buffers(mut frame: Vec<u8>, buffers: u16) -> Vec<u8> {
    frame[NUM_BUFFERS..HEADER_LEN].copy_from_slice(&buffers.to_le_bytes());
    frame
}

#[test]
fn the_configuration_is_address_and_mtu() {
    let machine = Machine::inactive(256);
    let net = machine.net.as_ref().unwrap();
    let mut space = [0xff; 16];
    net.read_config(0, &mut space);
    assert_eq!(
        space,
        [
            2, 0, 0, 0, 0, 9, 0, 0, 0, 0, 0xdc, 5, 0xff, 0xff, 0xff, 0xff
        ]
    );
}

#[test]
fn a_frame_arrives_in_one_buffer_with_its_header() {
    for features in [0, bits(&[VIRTIO_NET_F_MRG_RXBUF])] {
        let mut machine = Machine::with(256, features);
        let posted = machine.post(2, 1526);
        assert_eq!(machine.rx.used(), None);
        let mut sent = frame(1, 100);
        // Flags and offsets of the header are the tap's and go through.
        sent[..10].copy_from_slice(&[1, 0, 0, 0, 0, 0, 34, 0, 16, 0]);
        machine.arrive(&sent);
        assert_eq!(machine.rx.used(), Some((posted[0].0, 100)));
        assert_eq!(machine.rx.used(), None);
        let bytes = machine.rx.bytes(posted[0].1);
        assert_eq!(bytes[..100], with_num_buffers(sent, 1));
        assert!(bytes[100..].iter().all(|byte| *byte == 0));
        assert_eq!(machine.rx.interrupt().irqfd().read().unwrap(), 1);
    }
}

#[test]
fn a_buffer_may_be_in_pieces_smaller_than_the_header() {
    let mut machine = Machine::new();
    let pieces = [5, 6, 40, 100].map(|len| machine.rx.writable(len));
    let head = machine.rx.add(&pieces);
    machine.kick();
    let sent = frame(3, 90);
    machine.arrive(&sent);
    assert_eq!(machine.rx.used(), Some((head, 90)));
    let bytes = pieces.map(|piece| machine.rx.bytes(piece)).concat();
    assert_eq!(bytes[..90], with_num_buffers(sent, 1));
}

#[test]
fn a_long_frame_is_merged_from_buffers_and_the_next_goes_on_after_them() {
    let mut machine = Machine::new();
    let posted = machine.post(4, 1000);
    let sent = frame(1, 2500);
    machine.arrive(&sent);
    let mut bytes = Vec::<u8>::new();
    for ((head, buffer), len) in std::iter::zip(&posted, [1000, 1000, 500]) {
        assert_eq!(machine.rx.used(), Some((*head, len)));
        bytes.extend(&machine.rx.bytes(*buffer)[..len as usize]);
    }
    assert_eq!(bytes, with_num_buffers(sent, 3));
    let sent = frame(2, 60);
    machine.arrive(&sent);
    assert_eq!(machine.rx.used(), Some((posted[3].0, 60)));
    let bytes = machine.rx.bytes(posted[3].1);
    assert_eq!(bytes[..60], with_num_buffers(sent, 1));
}

#[test]
fn the_longest_frame_arrives() {
    let mut machine = Machine::new();
    machine.post(60, 1526);
    machine.arrive(&frame(1, MAX_FRAME_LEN));
    let mut len = 0;
    let mut chains = 0;
    while let Some((_, used)) = machine.rx.used() {
        len += used as usize;
        chains += 1;
    }
    assert_eq!((len, chains), (MAX_FRAME_LEN, MAX_FRAME_LEN.div_ceil(1526)));
}

#[test]
fn without_buffers_frames_wait_in_the_link() {
    let mut machine = Machine::new();
    for seed in 0..3 {
        machine.arrive(&frame(seed, 200));
    }
    assert_eq!(machine.rx.used(), None);
    let posted = machine.post(2, 1526);
    let more = machine.post(2, 1526);
    for (seed, (head, buffer)) in (0..).zip([posted[0], posted[1], more[0]]) {
        assert_eq!(machine.rx.used(), Some((head, 200)));
        let bytes = machine.rx.bytes(buffer);
        assert_eq!(bytes[..200], with_num_buffers(frame(seed, 200), 1));
    }
    assert_eq!(machine.rx.used(), None);
}

#[test]
fn a_frame_waits_for_the_rest_of_its_buffers() {
    let mut machine = Machine::new();
    let mut posted = machine.post(1, 1000);
    let sent = frame(1, 3500);
    machine.arrive(&sent);
    machine.arrive(&frame(2, 100));
    for _ in 0..2 {
        assert_eq!(machine.rx.used(), None, "half a frame");
        posted.extend(machine.post(1, 1000));
    }
    posted.extend(machine.post(2, 1000));
    let mut bytes = Vec::<u8>::new();
    for ((head, buffer), len) in std::iter::zip(&posted, [1000, 1000, 1000, 500]) {
        assert_eq!(machine.rx.used(), Some((*head, len)));
        bytes.extend(&machine.rx.bytes(*buffer)[..len as usize]);
    }
    assert_eq!(bytes, with_num_buffers(sent, 4));
    assert_eq!(machine.rx.used(), Some((posted[4].0, 100)));
}

#[test]
fn frames_that_no_buffer_can_hold_are_dropped() {
    // The whole queue is too small, then the one buffer, then the frame is beyond bounds.
    let merge = bits(&[VIRTIO_NET_F_MRG_RXBUF]);
    for (size, features, count, len, too_long) in [
        (4, merge, 4, 100, 401),
        (4, 0, 3, 1526, 1527),
        (256, merge, 60, 1526, MAX_FRAME_LEN + 1),
        (256, merge, 60, 1526, 4 * MAX_FRAME_LEN),
    ] {
        let mut machine = Machine::with(size, features);
        let posted = machine.post(count, len);
        machine.arrive(&frame(1, too_long));
        assert_eq!(machine.rx.used(), None, "{too_long}");
        let sent = frame(2, 90);
        machine.arrive(&sent);
        assert_eq!(machine.rx.used(), Some((posted[0].0, 90)));
        let bytes = machine.rx.bytes(posted[0].1);
        assert_eq!(bytes[..90], with_num_buffers(sent, 1));
    }
}

#[test]
fn useless_receive_buffers_are_given_back_empty() {
    let mut machine = Machine::new();
    let read_only = machine.rx.readable(&[7; 100]);
    let small = machine.rx.writable(HEADER_LEN as u32 - 1);
    let good = machine.rx.writable(100);
    let heads = [
        machine.rx.add(&[read_only]),
        machine.rx.add(&[small]),
        machine.rx.add_indirect(&[read_only, good]),
        machine.rx.add(&[good]),
    ];
    machine.kick();
    machine.arrive(&frame(1, 60));
    for (head, len) in std::iter::zip(heads, [0, 0, 0, 60]) {
        assert_eq!(machine.rx.used(), Some((head, len)));
    }
    assert_eq!(machine.rx.bytes(read_only), [7; 100]);
}

#[test]
fn a_frame_is_sent_from_all_buffers_of_a_chain() {
    let mut machine = Machine::new();
    let whole = frame(1, 1000);
    let parts = [&whole[..7], &whole[7..12], &whole[12..500], &whole[500..]];
    let buffers = parts.map(|part| machine.tx.readable(part));
    let heads = [
        machine.tx.add(&buffers),
        machine.tx.add_indirect(&buffers),
        machine.queue(&frame(2, 60)),
    ];
    machine.kick();
    assert_eq!(machine.sent().unwrap(), whole);
    assert_eq!(machine.sent().unwrap(), whole);
    assert_eq!(machine.sent().unwrap(), frame(2, 60));
    assert_eq!(machine.sent(), None);
    for head in heads {
        assert_eq!(machine.tx.used(), Some((head, 0)));
    }
    assert_eq!(machine.tx.interrupt().irqfd().read().unwrap(), 1);
}

#[test]
fn chains_that_are_no_frame_are_given_back_and_harm_nothing() {
    let mut machine = Machine::new();
    let header = machine.tx.readable(&[0; HEADER_LEN]);
    let bytes = machine.tx.readable(&[1; 60]);
    let writable = machine.tx.writable(60);
    let long = machine.tx.readable(&vec![0; MAX_FRAME_LEN + 1]);
    let most = Buffer {
        len: MAX_FRAME_LEN as u32,
        ..long
    };
    let empty = Buffer { len: 0, ..header };
    let bad: [&[Buffer]; 6] = [
        &[header],
        &[writable],
        &[header, bytes, writable],
        &[long],
        &[most, empty, header],
        &[empty],
    ];
    let heads = bad.map(|chain| machine.tx.add_indirect(chain));
    let good = machine.tx.add(&[most]);
    machine.kick();
    for head in heads {
        assert_eq!(machine.tx.used(), Some((head, 0)));
    }
    assert_eq!(machine.tx.used(), Some((good, 0)));
    assert_eq!(machine.sent().unwrap().len(), MAX_FRAME_LEN);
    assert_eq!(machine.sent(), None);
    assert_eq!(machine.tx.bytes(writable), [0; 60]);
}

#[test]
fn a_chain_in_circles_stops_the_queue_and_not_the_device() {
    let mut machine = Machine::new();
    machine.tx.write_raw(0, 0x28_0000, 100, 1, 1);
    machine.tx.write_raw(1, 0x28_0000, 100, 1, 0);
    machine.tx.publish(0);
    let posted = machine.post(1, 1526);
    machine.kick();
    assert!(machine.tx.interrupt().needs_reset());
    assert_eq!(machine.sent(), None);
    machine.arrive(&frame(1, 60));
    assert_eq!(machine.rx.used(), Some((posted[0].0, 60)));
}

#[test]
fn a_broken_receive_queue_takes_no_frames_and_leaves_the_guest_sending() {
    let mut machine = Machine::new();
    let posted = machine.post(2, 100);
    machine.rx.set_avail_idx(1000);
    machine.kick();
    machine.arrive(&frame(1, 60));
    assert!(machine.rx.interrupt().needs_reset());
    assert_eq!(machine.rx.used(), None);
    assert_eq!(machine.rx.bytes(posted[0].1), [0; 100]);
    machine.queue(&frame(2, 60));
    machine.kick();
    assert_eq!(machine.sent(), Some(frame(2, 60)));
}

#[test]
fn a_full_link_keeps_frames_in_the_queue_once_and_in_order() {
    let mut machine = Machine::new();
    let heads: Vec<_> = (0..200).map(|n| machine.queue(&frame(n, 1500))).collect();
    setsockopt(&machine.link.fd, sockopt::SndBuf, &8192).unwrap();
    machine.kick();
    let mut expected = heads.iter();
    let given_back = |machine: &mut Machine, expected: &mut std::slice::Iter<u16>| {
        let before = expected.len();
        while let Some((head, _)) = machine.tx.used() {
            assert_eq!(Some(&head), expected.next());
        }
        before - expected.len()
    };
    let first = given_back(&mut machine, &mut expected);
    assert!((1..200).contains(&first), "{first} fit");
    // A kick in between must not send what waits a second time.
    machine.kick();
    assert_eq!(given_back(&mut machine, &mut expected), 0);
    for n in 0..200 {
        assert_eq!(machine.sent(), Some(frame(n, 1500)), "frame {n}");
        machine.run();
    }
    assert_eq!(machine.sent(), None);
    given_back(&mut machine, &mut expected);
    assert_eq!(expected.len(), 0);
}

#[test]
fn a_host_short_of_memory_is_asked_again_and_not_all_the_time() {
    let mut machine = Machine::new();
    for errno in [libc::ENOBUFS, libc::ENOMEM] {
        let head = machine.queue(&frame(1, 100));
        machine.link.errno.store(errno, Ordering::SeqCst);
        machine.kick();
        assert_eq!(machine.tx.used(), None);
        machine.link.errno.store(0, Ordering::SeqCst);
        machine.event_loop.run_for(10_000);
        assert_eq!(machine.sent(), Some(frame(1, 100)));
        assert_eq!(machine.tx.used(), Some((head, 0)));
        machine.run();
        assert_eq!(machine.sent(), None);
    }
}

#[test]
fn what_the_link_refuses_is_dropped() {
    let mut machine = Machine::new();
    machine.link.errno.store(libc::EINVAL, Ordering::SeqCst);
    let head = machine.queue(&frame(1, 100));
    machine.kick();
    assert_eq!(machine.tx.used(), Some((head, 0)));
    machine.link.errno.store(0, Ordering::SeqCst);
    machine.queue(&frame(2, 100));
    machine.kick();
    assert_eq!(machine.sent(), Some(frame(2, 100)));
}

#[test]
fn a_busy_link_leaves_the_loop_to_others_now_and_then() {
    let mut machine = Machine::new();
    machine.post(250, 100);
    for n in 0..150 {
        let frame = frame(n, 60);
        send(machine.far.as_raw_fd(), &frame, MsgFlags::empty()).unwrap();
    }
    assert_eq!(machine.event_loop.run_for(0), 1);
    let mut first = 0;
    while machine.rx.used().is_some() {
        first += 1;
    }
    assert_eq!(first, 64);
    machine.run();
    let mut second = 0;
    while machine.rx.used().is_some() {
        second += 1;
    }
    assert_eq!(first + second, 150);
}

#[test]
fn the_driver_is_interrupted_and_kicks_when_each_asked_for_it() {
    let mut machine = Machine::new();
    // All buffers are with the device, which wants to hear of the next.
    machine.post(3, 100);
    assert_eq!(machine.rx.avail_event(), 3);
    machine.rx.set_used_event(1);
    for expected in [false, true, false] {
        machine.arrive(&frame(1, 60));
        assert_eq!(machine.rx.interrupted(), expected);
    }
    // A frame in two buffers passes the index that was asked for in its middle.
    machine.rx.set_used_event(3);
    machine.post(2, 100);
    machine.arrive(&frame(1, 150));
    assert!(machine.rx.interrupted());
    assert_eq!(machine.tx.avail_event(), 0);
    machine.queue(&frame(1, 60));
    machine.kick();
    assert_eq!(machine.tx.avail_event(), 1);
}

#[test]
fn a_reset_stops_both_directions_at_once() {
    let mut machine = Machine::new();
    // A frame with too few buffers, one behind it, and one the link does not take.
    let posted = machine.post(1, 100);
    machine.arrive(&frame(1, 300));
    machine.arrive(&frame(2, 60));
    machine.link.errno.store(libc::EAGAIN, Ordering::SeqCst);
    machine.queue(&frame(3, 60));
    machine.tx.kick().write(1).unwrap();
    machine.event_loop.run_for(0);
    assert_eq!(machine.link.offload.load(Ordering::SeqCst), 0);

    machine.reset();
    let before = machine.rx.bytes(posted[0].1);
    machine.link.errno.store(0, Ordering::SeqCst);
    machine.post(4, 1526);
    machine.kick();
    assert_eq!(machine.rx.used(), None);
    assert_eq!(machine.tx.used(), None);
    assert_eq!(machine.sent(), None);
    assert_eq!(machine.rx.bytes(posted[0].1), before);

    // The next driver gets none of it.
    machine.rx = GuestQueue::new(&machine.mem, 0x30_0000, 256);
    machine.tx = GuestQueue::new(&machine.mem, 0x40_0000, 256);
    machine.activate(bits(&[VIRTIO_NET_F_GUEST_CSUM]));
    assert_eq!(machine.link.offload.load(Ordering::SeqCst), TUN_F_CSUM);
    let posted = machine.post(1, 1526);
    assert_eq!(machine.rx.used(), None);
    machine.arrive(&frame(4, 60));
    assert_eq!(machine.rx.used(), Some((posted[0].0, 60)));
    assert_eq!(machine.sent(), None);
    machine.reset();
    assert_eq!(machine.link.offload.load(Ordering::SeqCst), 0);
}

#[test]
fn a_link_that_goes_away_does_not_keep_the_loop_busy() {
    for buffers in [0, 2] {
        let mut machine = Machine::new();
        machine.post(buffers, 100);
        let other = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::empty(),
        );
        machine.far = other.unwrap().0;
        machine.run();
        let head = machine.queue(&frame(1, 60));
        machine.kick();
        assert_eq!(machine.tx.used(), Some((head, 0)), "frames go nowhere");
        machine.kick();
        machine.reset();
    }
}

#[test]
fn a_device_the_event_loop_does_not_take_asks_for_a_reset() {
    let mem = ram();
    let [rx, tx] = [0x10_0000, 0x20_0000].map(|base| GuestQueue::new(&mem, base, 256));
    let mut event_loop = EventLoop::new().unwrap();
    // Not among the files that epoll_ctl(2) takes.
    let null = std::fs::File::open("/dev/null").unwrap();
    let link = Socket {
        fd: null.into(),
        known: 0,
        offload: AtomicU32::new(0),
        errno: AtomicI32::new(0),
    };
    let net = Net::new(Arc::new(link), MAC, 1500, event_loop.handle());
    let _net = activated(net, &mem, vec![rx.pump(), tx.pump()], &mut event_loop);
    assert!(rx.interrupt().needs_reset());
    assert!(tx.interrupt().needs_reset());
}

#[test]
fn what_is_offered_is_what_the_link_knows() {
    let offered = |known: u32| {
        let left = Cell::new(1);
        let offloads = features::probe(|offload| {
            if offload & !known != 0 {
                return Err(io::Error::from_raw_os_error(libc::EINVAL));
            }
            left.set(offload);
            Ok(())
        });
        assert_eq!(left.get(), 0, "left at nothing");
        features::offered(offloads.unwrap())
    };
    let always = bits(&[VIRTIO_NET_F_MAC, VIRTIO_NET_F_MTU, VIRTIO_NET_F_MRG_RXBUF]);
    assert_eq!(offered(0), always);
    let tcp = offered(TCP);
    let udp = bits(&[
        VIRTIO_NET_F_HOST_USO,
        VIRTIO_NET_F_GUEST_USO4,
        VIRTIO_NET_F_GUEST_USO6,
    ]);
    assert_eq!(tcp & udp, 0);
    assert_eq!(tcp & always, always);
    // CSUM and GUEST_CSUM; TSO4, TSO6 and ECN both ways.
    assert_eq!((tcp & !always).count_ones(), 8);
    assert_eq!(offered(TCP | UDP), tcp | udp);
    assert_eq!(offered(TCP | TUN_F_USO4), tcp, "one of the two is neither");
}

#[test]
fn the_link_is_told_what_the_driver_accepted() {
    for (features, offload) in [
        (bits(&[]), 0),
        (bits(&[VIRTIO_NET_F_CSUM, VIRTIO_NET_F_HOST_USO]), 0),
        (bits(&[VIRTIO_NET_F_GUEST_TSO4, VIRTIO_NET_F_GUEST_USO4]), 0),
        (bits(&[VIRTIO_NET_F_GUEST_CSUM]), TUN_F_CSUM),
        (
            bits(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_ECN]),
            TUN_F_CSUM,
        ),
        (
            bits(&[
                VIRTIO_NET_F_GUEST_CSUM,
                VIRTIO_NET_F_GUEST_TSO6,
                VIRTIO_NET_F_GUEST_ECN,
            ]),
            TUN_F_CSUM | TUN_F_TSO6 | TUN_F_TSO_ECN,
        ),
        (
            bits(&[VIRTIO_NET_F_GUEST_CSUM, VIRTIO_NET_F_GUEST_USO4]),
            TUN_F_CSUM,
        ),
        (u64::MAX, TCP | UDP),
    ] {
        let mut machine = Machine::with(256, features);
        let told = machine.link.offload.load(Ordering::SeqCst);
        assert_eq!(told, offload, "{features:#x}");
        machine.reset();
    }
}

#[test]
fn a_descriptor_that_is_no_tap_is_refused() {
    let null = std::fs::File::open("/dev/null").unwrap();
    let error = Tap::new(null.into()).unwrap_err();
    assert!(matches!(error, TapError::NotATap(_)), "{error}");
    for name in ["", "a-name-too-long-for-a-link"] {
        assert!(tap::open(name.as_ref()).is_err());
    }
}

#[test]
fn the_kernels_own_tap_can_be_used() {
    let in_a_thread = std::thread::spawn(|| {
        let newnet = nix::sched::CloneFlags::CLONE_NEWNET;
        if let Err(error) = nix::sched::unshare(newnet) {
            println!("skipped: no network namespace to be had: {error}");
            return;
        }
        let fd = match tap::open("husk7".as_ref()) {
            Ok(fd) => fd,
            Err(error) => {
                println!("skipped: no tap to be had: {error}");
                return;
            }
        };
        // As in the jail: nothing after the opening needs a capability.
        crate::jail::drop_all_capabilities().unwrap();
        let tap = Arc::new(Tap::new(fd).unwrap());
        let event_loop = EventLoop::new().unwrap();
        let net = Net::new(tap.clone(), MAC, 1500, event_loop.handle());
        let all = [TCP, TCP | UDP].map(super::features::offered);
        assert!(all.contains(&net.features()), "{:#x}", net.features());
        tap.set_offload(TCP).unwrap();
        let nothing = tap.receive(&[], &mut [0; 100]).unwrap_err();
        // Not up: it has no frames to give, and does not wait for any.
        assert_eq!(nothing.kind(), io::ErrorKind::WouldBlock);
    });
    in_a_thread.join().unwrap();
}
