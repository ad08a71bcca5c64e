//! One Unix socket and the vsock stream it stands for.
//!
//! Level-triggered epoll needs care, because a condition that nobody handles wakes
//! the loop for ever. So a socket is watched for input only while its bytes have
//! somewhere to go, for output only while something waits to be written, and not at
//! all once it has hung up and neither holds: `EPOLLHUP` cannot be masked.

use std::collections::VecDeque;
use std::io::{ErrorKind, Write as _};
use std::net::Shutdown;
use std::os::fd::AsRawFd as _;
use std::os::unix::net::UnixStream;

use nix::sys::socket::{MsgFlags, recv};
use vm_memory::{ReadVolatile as _, VolatileMemoryError, VolatileSlice, WriteVolatile as _};
use vmm_sys_util::epoll::EventSet;

use super::connection::Connection;
use super::packet::shutdown;

/// Longest line accepted in the handshake; `CONNECT 4294967295\n` has 19 bytes.
const MAX_HANDSHAKE_LEN: usize = 32;

/// The two ports that name a stream.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Ports {
    /// On the host, CID 2.
    pub host: u32,
    /// In the guest.
    pub guest: u32,
}

/// What a socket is there for.
pub enum Phase {
    /// The host has connected; the bytes of its `CONNECT` line so far.
    Handshake(Vec<u8>),
    /// A stream the guest knows of.
    Open(Ports, Connection),
    /// The guest is done with the stream; its last bytes wait for the host.
    Draining,
}

/// How far the `CONNECT` line is.
#[derive(Debug, PartialEq, Eq)]
pub enum Handshake {
    /// More bytes are to come.
    Incomplete,
    /// The guest port wanted.
    Port(u32),
    /// Not a `CONNECT` line, or the peer hung up.
    Invalid,
}

/// A Unix socket of the muxer.
pub struct Stream {
    /// What the socket is there for.
    pub phase: Phase,
    /// It is on the muxer's list of streams with something for the guest.
    pub queued: bool,
    /// What epoll watches it for; `None` if it is not in the set.
    pub watched: Option<EventSet>,
    socket: UnixStream,
    /// Bytes from the guest that the socket has not taken yet.
    outbox: VecDeque<u8>,
    readable: bool,
    /// No byte will be read any more.
    read_over: bool,
    /// No byte can be written any more; what the guest sends is dropped.
    write_over: bool,
    /// The peer has closed, or both directions are shut.
    hung_up: bool,
}

impl Stream {
    /// Takes over `socket`, which must not block.
    pub fn new(socket: UnixStream, phase: Phase) -> Self {
        Self {
            phase,
            queued: false,
            watched: None,
            socket,
            outbox: VecDeque::new(),
            readable: false,
            read_over: false,
            write_over: false,
            hung_up: false,
        }
    }

    /// The socket, for epoll.
    pub fn fd(&self) -> i32 {
        self.socket.as_raw_fd()
    }

    /// The connection, if the guest knows of the stream.
    pub fn connection(&mut self) -> Option<&mut Connection> {
        match &mut self.phase {
            Phase::Open(_, connection) => Some(connection),
            _ => None,
        }
    }

    /// The ports, if the guest knows of the stream.
    pub fn ports(&self) -> Option<Ports> {
        match self.phase {
            Phase::Open(ports, _) => Some(ports),
            _ => None,
        }
    }

    /// What to watch the socket for; `None` to take it out of the epoll set.
    pub fn interest(&self) -> Option<EventSet> {
        let mut set = EventSet::empty();
        let wants_input = match &self.phase {
            Phase::Handshake(_) => true,
            Phase::Open(_, connection) => {
                connection.is_established()
                    && !self.readable
                    && !self.read_over
                    && connection.room() > 0
            }
            Phase::Draining => false,
        };
        set.set(EventSet::IN, wants_input);
        set.set(EventSet::OUT, !self.outbox.is_empty());
        (!set.is_empty() || !self.hung_up).then_some(set)
    }

    /// Takes in what epoll reported.
    pub fn on_events(&mut self, events: EventSet) {
        if events.contains(EventSet::IN) {
            self.readable = true;
        }
        if events.intersects(EventSet::HANG_UP | EventSet::ERROR) {
            // What is left to read, if only the end, is read without asking epoll again.
            self.hung_up = true;
            self.readable = true;
            if self.read_over {
                self.shut(shutdown::BOTH);
            }
        }
        if events.contains(EventSet::OUT) || self.hung_up {
            self.flush();
        }
    }

    /// The peer is gone.
    pub fn hung_up(&self) -> bool {
        self.hung_up
    }

    /// There are bytes (or an end of them) for the guest, and room for them there.
    pub fn has_input(&mut self) -> bool {
        let waiting = self.readable && !self.read_over;
        let Phase::Open(_, connection) = &mut self.phase else {
            return false;
        };
        if !waiting || !connection.is_established() {
            return false;
        }
        if connection.room() == 0 {
            connection.want_credit();
            return false;
        }
        true
    }

    /// Advances the handshake. Never reads past the line: the bytes after it, if the
    /// peer is that hasty, are the guest's.
    pub fn read_handshake(&mut self) -> Handshake {
        self.readable = false;
        let fd = self.socket.as_raw_fd();
        let Phase::Handshake(line) = &mut self.phase else {
            return Handshake::Invalid;
        };
        let mut buffer = [0; MAX_HANDSHAKE_LEN];
        let room = MAX_HANDSHAKE_LEN - line.len();
        let seen = match recv(fd, &mut buffer[..room], MsgFlags::MSG_PEEK) {
            Ok(0) => return Handshake::Invalid,
            Ok(seen) => seen,
            Err(nix::Error::EAGAIN | nix::Error::EINTR) => return Handshake::Incomplete,
            Err(_) => return Handshake::Invalid,
        };
        let end = buffer[..seen].iter().position(|byte| *byte == b'\n');
        let wanted = end.map_or(seen, |at| at + 1);
        if recv(fd, &mut buffer[..wanted], MsgFlags::empty()) != Ok(wanted) {
            return Handshake::Invalid;
        }
        line.extend_from_slice(&buffer[..wanted]);
        match end {
            Some(_) => parse_connect(line).map_or(Handshake::Invalid, Handshake::Port),
            None if line.len() == MAX_HANDSHAKE_LEN => Handshake::Invalid,
            None => Handshake::Incomplete,
        }
    }

    /// Tells the host that the guest has accepted.
    pub fn answer_handshake(&mut self, host_port: u32) {
        self.outbox.extend(format!("OK {host_port}\n").into_bytes());
        self.drain_outbox();
    }

    /// Reads into `slices`, at most `room` bytes. Answers the count; 0 if there was
    /// nothing, or the end was reached.
    pub fn read(&mut self, slices: &[VolatileSlice<'_>], room: u32) -> u32 {
        let mut room = room as usize;
        let mut done = 0;
        for slice in slices {
            let Ok(mut part) = slice.subslice(0, slice.len().min(room)) else {
                break;
            };
            if part.is_empty() {
                break;
            }
            match (&self.socket).read_volatile(&mut part) {
                Ok(0) => {
                    self.end_input();
                    break;
                }
                Ok(count) => {
                    done += count;
                    room -= count;
                    if count < part.len() {
                        // The socket is empty; epoll tells when it is not. After a
                        // hang-up the end is still to be read.
                        self.readable = self.hung_up;
                        break;
                    }
                }
                Err(error) if is_kind(&error, ErrorKind::Interrupted) => break,
                Err(error) if is_kind(&error, ErrorKind::WouldBlock) => {
                    self.readable = false;
                    break;
                }
                Err(_) => {
                    self.hung_up = true;
                    self.end_input();
                    break;
                }
            }
        }
        done as u32
    }

    fn end_input(&mut self) {
        self.read_over = true;
        self.shut(if self.hung_up {
            shutdown::BOTH
        } else {
            shutdown::SEND
        });
    }

    fn shut(&mut self, directions: u32) {
        if let Some(connection) = self.connection() {
            connection.shut(directions);
        }
    }

    /// Delivers payload from the guest: to the socket, or what it does not take to
    /// the outbox, which credit bounds.
    pub fn write(&mut self, payload: &[VolatileSlice<'_>]) {
        for slice in payload {
            let mut taken = 0;
            while self.outbox.is_empty() && !self.write_over && taken < slice.len() {
                let Ok(rest) = slice.offset(taken) else { break };
                match (&self.socket).write_volatile(&rest) {
                    Ok(count) => {
                        taken += count;
                        self.forwarded(count);
                    }
                    Err(error) if is_kind(&error, ErrorKind::Interrupted) => {}
                    Err(error) if is_kind(&error, ErrorKind::WouldBlock) => break,
                    Err(_) => self.end_output(),
                }
            }
            let left = slice.len() - taken;
            if self.write_over {
                self.forwarded(left);
            } else if let Ok(rest) = slice.offset(taken) {
                let mut bytes = vec![0; left];
                rest.copy_to(&mut bytes);
                self.outbox.extend(bytes);
            }
        }
    }

    /// Writes what waits, and ends the direction if the guest has ended it.
    pub fn flush(&mut self) {
        let done = self.drain_outbox();
        self.forwarded(done);
        let guest_is_done = match &self.phase {
            Phase::Open(_, connection) => connection.guest_shut() & shutdown::SEND != 0,
            _ => false,
        };
        if guest_is_done && self.outbox.is_empty() && !self.write_over {
            self.write_over = true;
            shut_socket(&self.socket, Shutdown::Write);
        }
    }

    fn drain_outbox(&mut self) -> usize {
        let mut done = 0;
        while !self.outbox.is_empty() {
            match (&self.socket).write(self.outbox.as_slices().0) {
                Ok(count) => {
                    self.outbox.drain(..count);
                    done += count;
                }
                Err(error) if error.kind() == ErrorKind::Interrupted => {}
                Err(error) if error.kind() == ErrorKind::WouldBlock => return done,
                Err(_) => {
                    done += self.outbox.len();
                    self.end_output();
                }
            }
        }
        self.outbox = VecDeque::new();
        done
    }

    /// The host takes no more bytes.
    fn end_output(&mut self) {
        self.write_over = true;
        self.outbox = VecDeque::new();
        self.shut(shutdown::RECEIVE);
    }

    fn forwarded(&mut self, count: usize) {
        if let Some(connection) = self.connection() {
            connection.forward(count as u32);
        }
    }

    /// Carries out what the guest's `SHUTDOWN` said.
    pub fn follow_guest_shutdown(&mut self) {
        let Some(connection) = self.connection() else {
            return;
        };
        if connection.guest_shut() & shutdown::RECEIVE != 0 && !self.read_over {
            self.read_over = true;
            // The host's next write fails with EPIPE.
            shut_socket(&self.socket, Shutdown::Read);
        }
        self.flush();
    }

    /// The guest is done with the stream. Answers whether bytes for the host are left
    /// that keep the socket in use.
    pub fn retire(&mut self) -> bool {
        if self.outbox.is_empty() {
            return false;
        }
        shut_socket(&self.socket, Shutdown::Read);
        self.phase = Phase::Draining;
        true
    }

    /// Nothing is left to do for the socket.
    pub fn is_drained(&self) -> bool {
        matches!(self.phase, Phase::Draining) && self.outbox.is_empty()
    }
}

/// `CONNECT <port>\n`, the port in plain decimal.
fn parse_connect(line: &[u8]) -> Option<u32> {
    let port = line.strip_prefix(b"CONNECT ")?.strip_suffix(b"\n")?;
    if !port.iter().all(u8::is_ascii_digit) {
        return None;
    }
    std::str::from_utf8(port).ok()?.parse().ok()
}

fn is_kind(error: &VolatileMemoryError, kind: ErrorKind) -> bool {
    matches!(error, VolatileMemoryError::IOError(error) if error.kind() == kind)
}

/// The only failure is that the peer is gone already, which shows at the next use.
fn shut_socket(socket: &UnixStream, how: Shutdown) {
    socket.shutdown(how).ok();
}
