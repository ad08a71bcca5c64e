use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::time::Instant;

use vm_memory::VolatileSlice;
use vmm_sys_util::tempdir::TempDir;

use super::super::packet::{HEADER_LEN, shutdown};
use super::super::{BUF_ALLOC, MAX_PAYLOAD};
use super::*;

const GUEST_CID: u64 = 3;

/// How long a test waits for another thread before it calls that a failure.
const PATIENCE: Duration = Duration::from_secs(60);

/// A muxer with the guest played by the test.
struct Guest {
    muxer: Muxer,
    dir: TempDir,
    buf_alloc: u32,
    fwd_cnt: u32,
}

impl Guest {
    fn new() -> Self {
        let dir = TempDir::new().unwrap();
        let listener = UnixListener::bind(dir.as_path().join("vsock")).unwrap();
        let muxer = Muxer::new(GUEST_CID, listener, dir.as_path().join("vsock")).unwrap();
        Self {
            muxer,
            dir,
            buf_alloc: 1 << 20,
            fwd_cnt: 0,
        }
    }

    /// Runs the muxer until nothing is ready. Events of level-triggered descriptors that
    /// nobody handles would keep it running for ever.
    fn run(&mut self) {
        for _ in 0..1000 {
            let mut events = [EpollEvent::default(); 16];
            let count = self.muxer.poll(&mut events).unwrap();
            if count == 0 {
                return;
            }
            for event in &events[..count] {
                self.muxer.on_event(event.data(), event.event_set());
            }
            self.muxer.settle();
        }
        panic!("the muxer is busy without progress");
    }

    fn packet(&self, ports: Ports, op: u16) -> Header {
        Header {
            src_cid: GUEST_CID,
            dst_cid: HOST_CID,
            src_port: ports.guest,
            dst_port: ports.host,
            kind: TYPE_STREAM,
            op,
            buf_alloc: self.buf_alloc,
            fwd_cnt: self.fwd_cnt,
            ..Header::default()
        }
    }

    fn send_header(&mut self, header: Header, payload: &[u8]) {
        let mut bytes = payload.to_vec();
        let packet = TxPacket {
            header,
            payload: vec![VolatileSlice::from(&mut bytes[..])],
        };
        self.muxer.receive(&packet);
        self.muxer.settle();
    }

    fn send(&mut self, ports: Ports, op: u16) {
        self.send_header(self.packet(ports, op), b"");
    }

    fn send_data(&mut self, ports: Ports, payload: &[u8]) {
        let mut header = self.packet(ports, op::RW);
        header.len = payload.len() as u32;
        self.send_header(header, payload);
    }

    fn send_shutdown(&mut self, ports: Ports, flags: u32) {
        let mut header = self.packet(ports, op::SHUTDOWN);
        header.flags = flags;
        self.send_header(header, b"");
    }

    /// The next packet for the guest, in a buffer of 4 KiB.
    fn receive(&mut self) -> Option<(Header, Vec<u8>)> {
        self.run();
        let mut bytes = vec![0; 4096];
        let len = self.muxer.fill(RxBuffer::on(&mut bytes));
        self.muxer.settle();
        let len = len? as usize;
        let header = Header::from_bytes(bytes[..HEADER_LEN].try_into().unwrap());
        assert_eq!(len, HEADER_LEN + header.len as usize);
        assert_eq!((header.src_cid, header.dst_cid), (HOST_CID, GUEST_CID));
        Some((header, bytes[HEADER_LEN..len].to_vec()))
    }

    fn receive_op(&mut self, op: u16) -> Header {
        let (header, _) = self.receive().expect("a packet for the guest");
        assert_eq!(header.op, op, "{header:?}");
        header
    }

    fn receive_shutdown(&mut self, flags: u32) {
        assert_eq!(self.receive_op(op::SHUTDOWN).flags, flags);
    }

    /// A stream opened by the host to guest port 1025.
    fn host_connects(&mut self) -> (UnixStream, Ports) {
        let mut host = UnixStream::connect(self.dir.as_path().join("vsock")).unwrap();
        host.write_all(b"CONNECT 1025\n").unwrap();
        let request = self.receive_op(op::REQUEST);
        assert_eq!(request.dst_port, 1025);
        let ports = ports_of(&request);
        self.send(ports, op::RESPONSE);
        let mut answer = [0; 32];
        let len = host.read(&mut answer).unwrap();
        assert_eq!(answer[..len], *format!("OK {}\n", ports.host).as_bytes());
        (host, ports)
    }

    /// A stream opened by the guest to host port 52.
    fn guest_connects(&mut self) -> (UnixStream, Ports) {
        let listener = UnixListener::bind(self.dir.as_path().join("vsock_52")).unwrap();
        let ports = Ports {
            host: 52,
            guest: 4000,
        };
        self.send(ports, op::REQUEST);
        let response = self.receive_op(op::RESPONSE);
        assert_eq!(ports_of(&response), ports);
        assert_eq!(response.buf_alloc, BUF_ALLOC);
        (listener.accept().unwrap().0, ports)
    }
}

fn read_all(mut host: &UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    host.read_to_end(&mut bytes).unwrap();
    bytes
}

#[test]
fn host_and_guest_exchange_bytes() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.host_connects();
    host.write_all(b"to the guest").unwrap();
    let (header, payload) = guest.receive().unwrap();
    assert_eq!((header.op, ports_of(&header)), (op::RW, ports));
    assert_eq!(payload, b"to the guest");
    guest.send_data(ports, b"to the host");
    let mut bytes = [0; 11];
    host.read_exact(&mut bytes).unwrap();
    assert_eq!(&bytes, b"to the host");
    assert_eq!(guest.receive(), None);
}

#[test]
fn bytes_after_the_connect_line_reach_the_guest() {
    let mut guest = Guest::new();
    let mut host = UnixStream::connect(guest.dir.as_path().join("vsock")).unwrap();
    host.write_all(b"CONN").unwrap();
    guest.run();
    host.write_all(b"ECT 7\nhasty").unwrap();
    let request = guest.receive_op(op::REQUEST);
    assert_eq!(request.dst_port, 7);
    guest.send(ports_of(&request), op::RESPONSE);
    assert_eq!(guest.receive().unwrap().1, b"hasty");
}

#[test]
fn what_is_no_connect_line_is_hung_up_on() {
    for line in [
        "connect 7\n",
        "CONNECT\n",
        "CONNECT \n",
        "CONNECT -1\n",
        "CONNECT +1\n",
        "CONNECT 4294967296\n",
        "CONNECT 7 \n",
        "CONNECT 7\r\n",
        "CONNECT 0000000000000000000000000000000000007\n",
    ] {
        let mut guest = Guest::new();
        let mut host = UnixStream::connect(guest.dir.as_path().join("vsock")).unwrap();
        host.write_all(line.as_bytes()).unwrap();
        assert_eq!(guest.receive(), None, "{line:?}");
        assert!(guest.muxer.streams.is_empty(), "{line:?}");
        let mut byte = [0];
        assert!(matches!(host.read(&mut byte), Ok(0) | Err(_)), "{line:?}");
    }
}

#[test]
fn a_host_connection_the_guest_refuses_is_hung_up_on() {
    let mut guest = Guest::new();
    let mut host = UnixStream::connect(guest.dir.as_path().join("vsock")).unwrap();
    host.write_all(b"CONNECT 9\n").unwrap();
    let request = guest.receive_op(op::REQUEST);
    guest.send(ports_of(&request), op::RST);
    assert_eq!(read_all(&host), b"");
    assert_eq!(guest.receive(), None);
}

#[test]
fn a_host_that_hangs_up_while_the_guest_ponders_takes_its_request_back() {
    let mut guest = Guest::new();
    let mut host = UnixStream::connect(guest.dir.as_path().join("vsock")).unwrap();
    host.write_all(b"CONNECT 9\n").unwrap();
    let ports = ports_of(&guest.receive_op(op::REQUEST));
    drop(host);
    assert_eq!(ports_of(&guest.receive_op(op::RST)), ports);
    // The guest's answer was on its way.
    guest.send(ports, op::RESPONSE);
    assert_eq!(ports_of(&guest.receive_op(op::RST)), ports);
    assert!(guest.muxer.streams.is_empty());
}

#[test]
fn a_guest_connection_nobody_listens_to_is_reset() {
    let mut guest = Guest::new();
    let ports = Ports {
        host: 53,
        guest: 4000,
    };
    guest.send(ports, op::REQUEST);
    assert_eq!(ports_of(&guest.receive_op(op::RST)), ports);
}

#[test]
fn packets_of_unknown_streams_are_reset_except_resets() {
    let mut guest = Guest::new();
    let ports = Ports { host: 1, guest: 2 };
    for op in [op::RESPONSE, op::RW, op::SHUTDOWN, op::CREDIT_UPDATE, 0, 99] {
        guest.send(ports, op);
        guest.receive_op(op::RST);
    }
    guest.send(ports, op::RST);
    assert_eq!(guest.receive(), None);
}

#[test]
fn packets_of_another_kind_or_to_another_cid_are_reset() {
    let mut guest = Guest::new();
    let (_host, ports) = guest.guest_connects();
    let mut header = guest.packet(ports, op::RW);
    header.kind = 2;
    guest.send_header(header, b"");
    guest.receive_op(op::RST);
    header = guest.packet(ports, op::REQUEST);
    header.dst_cid = 9;
    guest.send_header(header, b"");
    guest.run();
    let mut bytes = vec![0; 64];
    guest.muxer.fill(RxBuffer::on(&mut bytes)).unwrap();
    let reset = Header::from_bytes(bytes[..HEADER_LEN].try_into().unwrap());
    assert_eq!((reset.src_cid, reset.op), (9, op::RST));
    // A forged sender is not answered at all.
    header = guest.packet(ports, op::RW);
    header.src_cid = 4;
    guest.send_header(header, b"");
    assert_eq!(guest.receive(), None);
}

#[test]
fn resets_that_find_no_buffer_are_bounded() {
    let mut guest = Guest::new();
    for port in 0..2 * MAX_RESETS as u32 {
        guest.send(
            Ports {
                host: 1,
                guest: port,
            },
            op::RW,
        );
    }
    assert_eq!(guest.muxer.resets.len(), MAX_RESETS);
}

#[test]
fn a_guest_that_half_closes_still_receives() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.host_connects();
    guest.send_data(ports, b"last words");
    guest.send_shutdown(ports, shutdown::SEND);
    assert_eq!(read_all(&host), b"last words");
    host.write_all(b"still here").unwrap();
    assert_eq!(guest.receive().unwrap().1, b"still here");
    drop(host);
    guest.receive_shutdown(shutdown::BOTH);
    guest.send(ports, op::RST);
    assert!(guest.muxer.streams.is_empty());
    assert_eq!(guest.receive(), None);
}

#[test]
fn a_host_that_half_closes_still_receives() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.host_connects();
    host.write_all(b"last words").unwrap();
    host.shutdown(Shutdown::Write).unwrap();
    assert_eq!(guest.receive().unwrap().1, b"last words");
    guest.receive_shutdown(shutdown::SEND);
    guest.send_data(ports, b"still here");
    guest.send_shutdown(ports, shutdown::BOTH);
    assert_eq!(ports_of(&guest.receive_op(op::RST)), ports);
    assert_eq!(read_all(&host), b"still here");
    assert!(host.write_all(b"x").is_err());
}

#[test]
fn a_guest_that_stops_receiving_fails_the_hosts_writes_only() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.host_connects();
    guest.send_shutdown(ports, shutdown::RECEIVE);
    assert!(host.write_all(b"x").is_err());
    guest.send_data(ports, b"but listen");
    guest.send_shutdown(ports, shutdown::SEND);
    guest.receive_op(op::RST);
    assert_eq!(read_all(&host), b"but listen");
}

#[test]
fn a_host_that_stops_receiving_is_told_to_the_guest_at_its_next_write() {
    let mut guest = Guest::new();
    let (mut host, ports) = guest.host_connects();
    host.shutdown(Shutdown::Read).unwrap();
    guest.send_data(ports, b"x");
    guest.receive_shutdown(shutdown::RECEIVE);
    // What was on its way is dropped without harm, and the other direction goes on.
    guest.send_data(ports, &[0; 1000]);
    host.write_all(b"but listen").unwrap();
    assert_eq!(guest.receive().unwrap().1, b"but listen");
}

#[test]
fn bytes_the_host_is_slow_to_take_survive_the_guests_close() {
    let mut guest = Guest::new();
    let (host, ports) = guest.host_connects();
    let sent: Vec<u8> = (0..BUF_ALLOC).map(|at| (at % 251) as u8).collect();
    for part in sent.chunks(MAX_PAYLOAD as usize) {
        guest.send_data(ports, part);
    }
    guest.send_shutdown(ports, shutdown::BOTH);
    // The guest has its answer although the bytes are not delivered yet.
    let answer = loop {
        let (header, _) = guest.receive().unwrap();
        if header.op != op::CREDIT_UPDATE {
            break header;
        }
    };
    assert_eq!(answer.op, op::RST);
    let reader = std::thread::spawn(move || read_all(&host));
    let started = Instant::now();
    while !guest.muxer.streams.is_empty() {
        assert!(started.elapsed() < PATIENCE, "the stream is never closed");
        guest.run();
        std::thread::yield_now();
    }
    assert_eq!(reader.join().unwrap(), sent);
}

#[test]
fn a_guest_that_ignores_its_credit_is_reset() {
    let mut guest = Guest::new();
    let (_host, ports) = guest.host_connects();
    // The socket takes some; what it does not take fills the buffer, and then it is over.
    let mut packets = 0;
    let reset = loop {
        guest.send_data(ports, &[7; MAX_PAYLOAD as usize]);
        packets += 1;
        assert!(packets < 100, "the buffer grows without limit");
        match guest.receive() {
            Some((header, _)) if header.op == op::RST => break header,
            _ => {}
        }
    };
    assert_eq!(ports_of(&reset), ports);
    assert!(guest.muxer.streams.is_empty());
}

#[test]
fn a_guest_within_its_credit_gets_more_as_the_host_reads() {
    let mut guest = Guest::new();
    let (host, ports) = guest.host_connects();
    let total = 4 * BUF_ALLOC as usize;
    let reader = std::thread::spawn(move || {
        let mut bytes = vec![0; total];
        (&host).read_exact(&mut bytes).unwrap();
        (bytes, host)
    });
    let (mut sent, mut told) = (0u32, 0);
    let mut expected = Vec::new();
    let started = Instant::now();
    while expected.len() < total {
        assert!(started.elapsed() < PATIENCE, "no credit comes back");
        if BUF_ALLOC - (sent - told) >= MAX_PAYLOAD {
            let part = vec![(sent / MAX_PAYLOAD) as u8; MAX_PAYLOAD as usize];
            guest.send_data(ports, &part);
            sent += MAX_PAYLOAD;
            expected.extend(part);
        }
        while let Some((header, _)) = guest.receive() {
            assert_eq!(header.op, op::CREDIT_UPDATE);
            told = header.fwd_cnt;
        }
    }
    // The last bytes may still wait for the host's socket to have room.
    while !reader.is_finished() {
        assert!(started.elapsed() < PATIENCE, "the last bytes do not arrive");
        guest.run();
        std::thread::yield_now();
    }
    let (bytes, _host) = reader.join().unwrap();
    assert_eq!(bytes, expected);
}

#[test]
fn the_host_waits_when_the_guest_has_no_room() {
    let mut guest = Guest::new();
    guest.buf_alloc = 10;
    let (mut host, ports) = guest.host_connects();
    host.write_all(b"0123456789abcdef").unwrap();
    assert_eq!(guest.receive().unwrap().1, b"0123456789");
    guest.receive_op(op::CREDIT_REQUEST);
    assert_eq!(guest.receive(), None);
    guest.fwd_cnt = 4;
    guest.send(ports, op::CREDIT_UPDATE);
    assert_eq!(guest.receive().unwrap().1, b"abcd");
    // The end comes after the last byte, however long that takes.
    drop(host);
    guest.receive_op(op::CREDIT_REQUEST);
    assert_eq!(guest.receive(), None);
    guest.fwd_cnt = 14;
    guest.send(ports, op::CREDIT_UPDATE);
    assert_eq!(guest.receive().unwrap().1, b"ef");
    guest.receive_shutdown(shutdown::BOTH);
}

#[test]
fn streams_take_turns() {
    let mut guest = Guest::new();
    let (mut one, first) = guest.host_connects();
    let (mut two, second) = guest.host_connects();
    one.write_all(&[1; 10_000]).unwrap();
    two.write_all(&[2; 10_000]).unwrap();
    let order: Vec<Ports> = std::iter::from_fn(|| guest.receive())
        .map(|(header, _)| ports_of(&header))
        .collect();
    let (a, b) = if order[0] == first {
        (first, second)
    } else {
        (second, first)
    };
    assert_eq!(order, [a, b, a, b, a, b]);
}

#[test]
fn a_stream_the_guest_does_not_confirm_the_end_of_is_reset() {
    let mut guest = Guest::new();
    let (host, ports) = guest.host_connects();
    drop(host);
    guest.receive_shutdown(shutdown::BOTH);
    let waited = Instant::now();
    let event = EpollEvent::default();
    let mut events = [event; 1];
    guest
        .muxer
        .epoll
        .wait(2 * SHUTDOWN_TIMEOUT.as_millis() as i32, &mut events)
        .unwrap();
    assert!(waited.elapsed() >= SHUTDOWN_TIMEOUT / 2);
    assert_eq!(ports_of(&guest.receive_op(op::RST)), ports);
    assert!(guest.muxer.streams.is_empty());
    assert!(guest.muxer.deadlines.pop_expired().is_none());
}

#[test]
fn a_request_for_a_stream_that_exists_resets_it() {
    let mut guest = Guest::new();
    let (host, ports) = guest.guest_connects();
    guest.send(ports, op::REQUEST);
    assert_eq!(ports_of(&guest.receive_op(op::RST)), ports);
    assert_eq!(read_all(&host), b"");
}

#[test]
fn a_late_reset_does_not_hit_the_next_stream() {
    let mut guest = Guest::new();
    let (_host, ports) = guest.guest_connects();
    guest.send_shutdown(ports, shutdown::BOTH);
    std::fs::remove_file(guest.dir.as_path().join("vsock_52")).unwrap();
    // The reset is still waiting for a buffer.
    let (_again, same) = guest.guest_connects();
    assert_eq!(ports, same);
    assert_eq!(guest.receive(), None);
}

#[test]
fn connections_beyond_the_limit_wait_or_are_reset() {
    let mut guest = Guest::new();
    let _listener = UnixListener::bind(guest.dir.as_path().join("vsock_52")).unwrap();
    for _ in 0..MAX_CONNECTIONS {
        let (socket, _) = UnixStream::pair().unwrap();
        guest.muxer.insert(Stream::new(socket, Phase::Draining));
    }
    guest.muxer.touched.clear();
    let ports = Ports {
        host: 52,
        guest: 4000,
    };
    guest.send(ports, op::REQUEST);
    guest.receive_op(op::RST);
    let mut host = UnixStream::connect(guest.dir.as_path().join("vsock")).unwrap();
    host.write_all(b"CONNECT 1\n").unwrap();
    assert_eq!(guest.receive(), None);
    guest.muxer.remove(FIRST_STREAM);
    guest.muxer.settle();
    guest.receive_op(op::REQUEST);
}

#[test]
fn host_ports_in_use_are_not_given_out_again() {
    let mut guest = Guest::new();
    let (_host, ports) = guest.host_connects();
    guest.muxer.next_port = ports.host;
    let (_other, second) = guest.host_connects();
    assert_ne!(ports, second);
    guest.muxer.next_port = HOST_PORTS.end - 1;
    let (_third, _) = guest.host_connects();
    let (_last, wrapped) = guest.host_connects();
    assert_eq!(wrapped.host, HOST_PORTS.start + 2);
}
