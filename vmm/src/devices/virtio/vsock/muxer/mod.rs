//! Streams and their Unix sockets: who exists, what is due to the guest, what to
//! watch.
//!
//! The muxer owns an epoll set of its own, which the VMM's event loop watches as one
//! descriptor, so that sockets come and go without the loop knowing.
//!
//! Work is never done twice nor lost: a stream with something for the guest is on
//! the `ready` list exactly once, a stream whose epoll interest may have changed is
//! on the `touched` list until [`Muxer::settle`].

use std::collections::{HashMap, VecDeque};
use std::io::{self, ErrorKind};
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::PathBuf;
use std::time::Duration;

use nix::sys::socket::{AddressFamily, SockFlag, SockType, UnixAddr, connect, socket};
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};

use super::connection::{Connection, Event};
use super::deadlines::Deadlines;
use super::packet::{Header, RxBuffer, TYPE_STREAM, TxPacket, op};
use super::stream::{Handshake, Phase, Ports, Stream};
use super::{HOST_CID, MAX_CONNECTIONS};

/// How long a host connection may take to say what it wants, and then how long the
/// guest may take to accept. Generous, because a guest on a crowded machine is slow
/// and a caller with less patience hangs up, which is noticed at once.
const OPEN_TIMEOUT: Duration = Duration::from_secs(10);

/// How long the guest may take to confirm the end of a stream.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// How long to wait before accepting again when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Most RSTs waiting for a receive buffer; more are dropped, and the guest finds out
/// by its own timeouts.
const MAX_RESETS: usize = 1024;

/// Host ports given to connections the host opens; above the ports services use.
const HOST_PORTS: std::ops::Range<u32> = 1 << 30..1 << 31;

/// Tokens of the muxer's own descriptors in its epoll set.
const LISTENER: u64 = 0;
const TIMER: u64 = 1;
/// First token free for the caller's descriptors.
pub const FIRST_CALLER_TOKEN: u64 = 2;
const FIRST_STREAM: u64 = 16;

/// All streams of one guest.
pub struct Muxer {
    guest_cid: u64,
    guest_connect: PathBuf,
    listener: UnixListener,
    epoll: Epoll,
    accepting: bool,
    streams: HashMap<u64, Stream>,
    by_ports: HashMap<Ports, u64>,
    /// Of streams, and of the listener while it pauses.
    deadlines: Deadlines,
    next_stream: u64,
    next_port: u32,
    ready: VecDeque<u64>,
    resets: VecDeque<Header>,
    touched: Vec<u64>,
}

impl Muxer {
    /// Serves `listener`, whose backlog holds the connections made before the driver
    /// was there; guest connections go to `<guest_connect>_<port>`.
    pub fn new(guest_cid: u64, listener: UnixListener, guest_connect: PathBuf) -> io::Result<Self> {
        listener.set_nonblocking(true)?;
        let mut muxer = Self {
            guest_cid,
            guest_connect,
            listener,
            epoll: Epoll::new()?,
            accepting: false,
            streams: HashMap::new(),
            by_ports: HashMap::new(),
            deadlines: Deadlines::new()?,
            next_stream: FIRST_STREAM,
            next_port: HOST_PORTS.start,
            ready: VecDeque::new(),
            resets: VecDeque::new(),
            touched: Vec::new(),
        };
        muxer.watch(muxer.deadlines.timer(), TIMER)?;
        muxer.settle();
        Ok(muxer)
    }

    /// Readable while there is anything to do.
    pub fn epoll_fd(&self) -> RawFd {
        self.epoll.as_raw_fd()
    }

    /// Adds a descriptor of the caller's to the set, for input.
    pub fn watch(&self, fd: &impl AsRawFd, token: u64) -> io::Result<()> {
        let event = EpollEvent::new(EventSet::IN, token);
        self.epoll.ctl(ControlOperation::Add, fd.as_raw_fd(), event)
    }

    /// What has happened, without waiting.
    pub fn poll(&self, events: &mut [EpollEvent]) -> io::Result<usize> {
        self.epoll.wait(0, events)
    }

    /// Handles an event that is not the caller's own.
    pub fn on_event(&mut self, token: u64, events: EventSet) {
        match token {
            LISTENER => self.accept(),
            TIMER => self.give_up_on_expired(),
            id => self.on_stream_event(id, events),
        }
    }

    fn accept(&mut self) {
        while self.streams.len() < MAX_CONNECTIONS {
            match self.listener.accept() {
                Ok((socket, _)) => {
                    if socket.set_nonblocking(true).is_err() {
                        continue;
                    }
                    let id = self.insert(Stream::new(socket, Phase::Handshake(Vec::new())));
                    self.deadlines.set(id, OPEN_TIMEOUT);
                    // The line is usually there already.
                    self.on_stream_event(id, EventSet::IN);
                }
                Err(error) if error.kind() == ErrorKind::WouldBlock => return,
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::ConnectionAborted => {}
                Err(error) => {
                    log::warn!(target: "guest", "vsock: cannot accept a host connection: {error}");
                    self.deadlines.set(LISTENER, ACCEPT_PAUSE);
                    return;
                }
            }
        }
    }

    fn on_stream_event(&mut self, id: u64, events: EventSet) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        stream.on_events(events);
        match &stream.phase {
            Phase::Handshake(_) => match stream.read_handshake() {
                Handshake::Incomplete => self.touch(id),
                Handshake::Port(port) => self.open_to_guest(id, port),
                Handshake::Invalid => self.remove(id),
            },
            Phase::Open(_, connection) => {
                if !connection.is_established() && stream.hung_up() {
                    self.abort(id);
                } else {
                    self.touch(id);
                    self.enqueue(id);
                }
            }
            Phase::Draining if stream.is_drained() => self.remove(id),
            Phase::Draining => self.touch(id),
        }
    }

    fn open_to_guest(&mut self, id: u64, guest: u32) {
        let Some(host) = self.free_host_port(guest) else {
            return self.remove(id);
        };
        let ports = Ports { host, guest };
        if let Some(stream) = self.streams.get_mut(&id) {
            stream.phase = Phase::Open(ports, Connection::to_guest());
            self.by_ports.insert(ports, id);
            self.deadlines.set(id, OPEN_TIMEOUT);
            self.touch(id);
            self.enqueue(id);
        }
    }

    fn free_host_port(&mut self, guest: u32) -> Option<u32> {
        // One more try than there can be ports in use.
        (0..=MAX_CONNECTIONS).find_map(|_| {
            let host = self.next_port;
            self.next_port = if host + 1 < HOST_PORTS.end {
                host + 1
            } else {
                HOST_PORTS.start
            };
            (!self.by_ports.contains_key(&Ports { host, guest })).then_some(host)
        })
    }

    /// Takes in a packet from the guest.
    pub fn receive(&mut self, packet: &TxPacket<'_>) {
        let header = &packet.header;
        if header.src_cid != self.guest_cid {
            return;
        }
        let ports = Ports {
            host: header.dst_port,
            guest: header.src_port,
        };
        let ours = header.dst_cid == HOST_CID && header.kind == TYPE_STREAM;
        let known = self.by_ports.get(&ports).copied().filter(|_| ours);
        match known {
            Some(id) => self.receive_known(id, packet),
            None if ours && header.op == op::REQUEST => self.open_from_guest(ports, header),
            // Never answer RST with RST.
            None if header.op == op::RST => {}
            None => self.push_reset(header.dst_cid, ports),
        }
    }

    fn receive_known(&mut self, id: u64, packet: &TxPacket<'_>) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let Phase::Open(ports, connection) = &mut stream.phase else {
            return;
        };
        let ports = *ports;
        match connection.receive(&packet.header) {
            Event::Nothing => {}
            Event::Accepted => {
                stream.answer_handshake(ports.host);
                self.deadlines.clear(id);
            }
            Event::Data => stream.write(&packet.payload),
            Event::Shutdown => stream.follow_guest_shutdown(),
            Event::Finished => {
                self.push_reset(HOST_CID, ports);
                return self.retire(id);
            }
            Event::Reset => return self.retire(id),
            Event::Violation => {
                self.push_reset(HOST_CID, ports);
                return self.remove(id);
            }
        }
        self.touch(id);
        self.enqueue(id);
    }

    fn open_from_guest(&mut self, ports: Ports, request: &Header) {
        // A late RST must not hit the new stream.
        self.resets.retain(|reset| ports_of(reset) != ports);
        if self.streams.len() >= MAX_CONNECTIONS {
            return self.push_reset(HOST_CID, ports);
        }
        match self.connect_to_host(ports.host) {
            Ok(socket) => {
                let connection = Connection::from_guest(request);
                let id = self.insert(Stream::new(socket, Phase::Open(ports, connection)));
                self.by_ports.insert(ports, id);
                self.enqueue(id);
            }
            Err(error) => {
                log::debug!(target: "guest", "vsock: no host connection for port {}: {error}", ports.host);
                self.push_reset(HOST_CID, ports);
            }
        }
    }

    /// Connects to `<guest_connect>_<port>`. A Unix socket connects at once or not at
    /// all: a full backlog is an error to a socket that does not block.
    fn connect_to_host(&self, port: u32) -> io::Result<UnixStream> {
        let mut path = self.guest_connect.clone().into_os_string();
        path.push(format!("_{port}"));
        let address = UnixAddr::new(std::path::Path::new(&path))?;
        let fd = socket(
            AddressFamily::Unix,
            SockType::Stream,
            SockFlag::SOCK_NONBLOCK | SockFlag::SOCK_CLOEXEC,
            None,
        )?;
        connect(fd.as_raw_fd(), &address)?;
        Ok(UnixStream::from(fd))
    }

    /// There is a packet for the guest, or a stream that may turn out to have one.
    pub fn has_packets(&self) -> bool {
        !self.resets.is_empty() || !self.ready.is_empty()
    }

    /// Puts the next packet for the guest into `buffer`, streams taking turns.
    /// Answers the bytes written, `None` if nothing was due after all.
    pub fn fill(&mut self, buffer: RxBuffer<'_>) -> Option<u32> {
        if let Some(header) = self.resets.pop_front() {
            return Some(buffer.finish(header));
        }
        while let Some(id) = self.ready.pop_front() {
            let Some(stream) = self.streams.get_mut(&id) else {
                continue;
            };
            stream.queued = false;
            let header = next_packet(stream, &buffer);
            let told_all = stream.connection().is_some_and(|c| c.told_all());
            if told_all && !self.deadlines.has(id) {
                self.deadlines.set(id, SHUTDOWN_TIMEOUT);
            }
            self.touch(id);
            self.enqueue(id);
            if let Some(mut header) = header {
                header.dst_cid = self.guest_cid;
                return Some(buffer.finish(header));
            }
        }
        None
    }

    /// Puts a stream on the ready list if something is due to the guest.
    fn enqueue(&mut self, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let has_input = stream.has_input();
        let has_control = stream.connection().is_some_and(|c| c.has_control());
        if (has_input || has_control) && !stream.queued {
            stream.queued = true;
            self.ready.push_back(id);
        }
    }

    fn push_reset(&mut self, src_cid: u64, ports: Ports) {
        if self.resets.len() < MAX_RESETS {
            self.resets.push_back(Header {
                src_cid,
                dst_cid: self.guest_cid,
                src_port: ports.host,
                dst_port: ports.guest,
                kind: TYPE_STREAM,
                op: op::RST,
                ..Header::default()
            });
        }
    }

    fn insert(&mut self, stream: Stream) -> u64 {
        let id = self.next_stream;
        self.next_stream += 1;
        self.streams.insert(id, stream);
        self.touch(id);
        id
    }

    /// Ends a stream the guest still knows of.
    fn abort(&mut self, id: u64) {
        if let Some(ports) = self.streams.get(&id).and_then(Stream::ports) {
            self.push_reset(HOST_CID, ports);
        }
        self.remove(id);
    }

    /// The guest has done with a stream: close it once its bytes are delivered.
    fn retire(&mut self, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        if let Some(ports) = stream.ports() {
            self.by_ports.remove(&ports);
        }
        if stream.retire() {
            self.deadlines.clear(id);
            self.touch(id);
        } else {
            self.remove(id);
        }
    }

    /// Closes a stream now. Dropping the socket takes it out of the epoll set.
    fn remove(&mut self, id: u64) {
        let Some(stream) = self.streams.remove(&id) else {
            return;
        };
        if let Some(ports) = stream.ports() {
            self.by_ports.remove(&ports);
        }
        self.deadlines.clear(id);
    }

    fn give_up_on_expired(&mut self) {
        while let Some(id) = self.deadlines.pop_expired() {
            // The listener is no stream; `settle` watches it again.
            self.abort(id);
        }
    }

    fn touch(&mut self, id: u64) {
        if self.touched.last() != Some(&id) {
            self.touched.push(id);
        }
    }

    /// Brings the epoll set and the timer in line with the state. To be called after
    /// every round of work.
    pub fn settle(&mut self) {
        let mut touched = std::mem::take(&mut self.touched);
        for id in touched.drain(..) {
            self.rewatch(id);
        }
        self.touched = touched;

        let accepting = !self.deadlines.has(LISTENER) && self.streams.len() < MAX_CONNECTIONS;
        if accepting != self.accepting {
            let done = if accepting {
                self.watch(&self.listener, LISTENER)
            } else {
                let fd = self.listener.as_raw_fd();
                let none = EpollEvent::default();
                self.epoll.ctl(ControlOperation::Delete, fd, none)
            };
            match done {
                Ok(()) => self.accepting = accepting,
                Err(error) => log::error!("vsock: cannot watch the host's listener: {error}"),
            }
        }
        if let Err(error) = self.deadlines.arm() {
            log::error!("vsock: cannot set the timer: {error}");
        }
    }

    fn rewatch(&mut self, id: u64) {
        let Some(stream) = self.streams.get_mut(&id) else {
            return;
        };
        let wanted = stream.interest();
        if wanted == stream.watched {
            return;
        }
        let operation = match (stream.watched, wanted) {
            (None, _) => ControlOperation::Add,
            (Some(_), Some(_)) => ControlOperation::Modify,
            (Some(_), None) => ControlOperation::Delete,
        };
        let event = EpollEvent::new(wanted.unwrap_or(EventSet::empty()), id);
        match self.epoll.ctl(operation, stream.fd(), event) {
            Ok(()) => stream.watched = wanted,
            Err(error) => {
                log::error!("vsock: cannot watch a stream, closing it: {error}");
                self.abort(id);
            }
        }
    }
}

/// The next packet of one stream: what is due besides payload first, because it may
/// open the stream or hand out credit; then payload.
fn next_packet(stream: &mut Stream, buffer: &RxBuffer<'_>) -> Option<Header> {
    let ports = stream.ports()?;
    let mut header = Header {
        src_cid: HOST_CID,
        src_port: ports.host,
        dst_port: ports.guest,
        kind: TYPE_STREAM,
        op: op::RW,
        ..Header::default()
    };
    let control = stream.connection()?.next_control();
    if control.is_none() && stream.has_input() {
        let room = stream.connection()?.room();
        header.len = stream.read(buffer.payload(), room);
    }
    let connection = stream.connection()?;
    connection.send(header.len);
    if header.len == 0 {
        // Reading may have come to the end, which is due at once.
        let control = control.or_else(|| connection.next_control())?;
        header.op = control.op;
        header.flags = control.flags;
    }
    connection.stamp(&mut header);
    Some(header)
}

fn ports_of(header: &Header) -> Ports {
    Ports {
        host: header.src_port,
        guest: header.dst_port,
    }
}

#[cfg(test)]
mod tests;
