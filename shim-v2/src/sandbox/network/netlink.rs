//! A client of the kernel's rtnetlink, or another of its protocols, in the network namespace of
//! the thread that opens it.
//!
//! The kernel carries out a request while it is sent, and writes the next part of a listing
//! while one is read. So the answer is there when it is looked for, the socket never blocks,
//! and no wait needs a deadline.

use std::io;

use netlink_packet_core::{
    DecodeError, DoneMessage, ErrorMessage, NLM_F_ACK, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_REQUEST,
    NetlinkHeader, NetlinkMessage, NetlinkPayload, NetlinkSerializable, NlasIterator,
};
use netlink_packet_route::RouteNetlinkMessage;
use netlink_sys::Socket;
use netlink_sys::protocols::NETLINK_ROUTE;
use thiserror::Error;

use super::decode::{Object, decode};

/// Room for one packet of answers; the kernel makes them no larger than 32 KiB.
const BUFFER: usize = 64 * 1024;
/// How often a listing is begun again when what it lists changed meanwhile.
pub const ATTEMPTS: u32 = 10;
/// Length of a netlink header, which an error repeats.
const HEADER_LEN: usize = 16;
/// The attribute of an error that says in words what is wrong (`NLMSGERR_ATTR_MSG`).
const ERROR_TEXT: u16 = 1;

/// Why the kernel's network was not read or changed.
#[derive(Debug, Error)]
pub enum NetlinkError {
    /// The kernel refused the request.
    #[error("{source}{text}")]
    Refused {
        /// Its error.
        source: io::Error,
        /// Its explanation in parentheses, if it gave one.
        text: String,
    },
    /// The socket failed.
    #[error("the netlink socket failed")]
    Socket(#[from] io::Error),
    /// An answer that is not understood.
    #[error("the kernel's answer is not understood: {0}")]
    Malformed(#[from] DecodeError),
    /// The listing never came out whole.
    #[error("it changed {ATTEMPTS} times while it was listed")]
    Restless,
}

impl NetlinkError {
    /// The kernel's error number, if it refused the request.
    pub fn errno(&self) -> Option<i32> {
        match self {
            Self::Refused { source, .. } => source.raw_os_error(),
            _ => None,
        }
    }
}

/// One conversation with the kernel.
pub struct Netlink {
    socket: Socket,
    buffer: Vec<u8>,
    sequence: u32,
}

impl Netlink {
    /// Opens it in the calling thread's network namespace.
    pub fn open() -> io::Result<Self> {
        Self::open_protocol(NETLINK_ROUTE)
    }

    /// The same for another protocol than rtnetlink.
    pub fn open_protocol(protocol: isize) -> io::Result<Self> {
        let socket = Socket::new(protocol)?;
        socket.set_non_blocking(true)?;
        // Errors come with a text, and without a copy of the request.
        socket.set_ext_ack(true)?;
        socket.set_cap_ack(true)?;
        Ok(Self {
            socket,
            buffer: Vec::with_capacity(BUFFER),
            sequence: 0,
        })
    }

    /// Has the kernel carry out one request, and waits for its acknowledgement.
    pub fn change(&mut self, flags: u16, request: RouteNetlinkMessage) -> Result<(), NetlinkError> {
        self.send(NLM_F_ACK | flags, request)?;
        loop {
            for answer in self.receive::<RouteNetlinkMessage>()? {
                if let NetlinkPayload::Error(error) = answer.payload {
                    return acknowledged(&error);
                }
            }
        }
    }

    /// Lists all objects of a kind.
    pub fn list<M: Object>(&mut self, request: &M) -> Result<Vec<M>, NetlinkError> {
        for _ in 0..ATTEMPTS {
            if let Some(objects) = self.try_list(request.clone())? {
                return Ok(objects);
            }
        }
        Err(NetlinkError::Restless)
    }

    /// `None` if something changed meanwhile, so that an object may be missing.
    fn try_list<M: Object>(&mut self, request: M) -> Result<Option<Vec<M>>, NetlinkError> {
        self.send(NLM_F_DUMP, request)?;
        let (mut objects, mut whole) = (Vec::new(), true);
        loop {
            for answer in self.receive()? {
                whole &= answer.header.flags & NLM_F_DUMP_INTR == 0;
                match answer.payload {
                    NetlinkPayload::InnerMessage(object) => objects.push(object),
                    NetlinkPayload::Done(done) => {
                        ended(&done)?;
                        return Ok(whole.then_some(objects));
                    }
                    NetlinkPayload::Error(error) => acknowledged(&error)?,
                    _ => {}
                }
            }
        }
    }

    fn send(&mut self, flags: u16, request: impl NetlinkSerializable) -> io::Result<()> {
        self.sequence += 1;
        let packet = packet(flags, self.sequence, request);
        self.socket.send(&packet, 0).map(drop)
    }

    /// The messages of one packet that answer the last request.
    fn receive<M: Object>(&mut self) -> Result<Vec<NetlinkMessage<M>>, NetlinkError> {
        self.buffer.clear();
        self.socket.recv(&mut self.buffer, 0)?;
        let mut messages = Vec::new();
        let mut rest = self.buffer.as_slice();
        while !rest.is_empty() {
            let message = decode(rest)?;
            // Messages begin at multiples of four.
            let length = (message.header.length as usize).next_multiple_of(4);
            rest = rest.get(length..).unwrap_or_default();
            if message.header.sequence_number == self.sequence {
                messages.push(message);
            }
        }
        Ok(messages)
    }
}

/// A request as the kernel reads it.
pub fn packet(flags: u16, sequence: u32, request: impl NetlinkSerializable) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.flags = NLM_F_REQUEST | flags;
    header.sequence_number = sequence;
    let mut message = NetlinkMessage::new(header, NetlinkPayload::InnerMessage(request));
    message.finalize();
    let mut packet = vec![0; message.buffer_len()];
    message.serialize(&mut packet);
    packet
}

fn acknowledged(error: &ErrorMessage) -> Result<(), NetlinkError> {
    if error.code.is_none() {
        return Ok(());
    }
    let attributes = error.header.get(HEADER_LEN..).unwrap_or_default();
    Err(refused(error.to_io(), attributes))
}

/// A listing that failed half-way ends like any other, but for its code.
fn ended(done: &DoneMessage) -> Result<(), NetlinkError> {
    if done.code >= 0 {
        return Ok(());
    }
    let source = io::Error::from_raw_os_error(done.code.saturating_neg());
    Err(refused(source, &done.extended_ack))
}

fn refused(source: io::Error, attributes: &[u8]) -> NetlinkError {
    let mut attributes = NlasIterator::new(attributes).flatten();
    let text = attributes.find(|attribute| attribute.kind() == ERROR_TEXT);
    let text = text.map(|text| String::from_utf8_lossy(text.value()).into_owned());
    NetlinkError::Refused {
        source,
        text: text.map_or_else(String::new, |text| {
            format!(" ({})", text.trim_end_matches('\0'))
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listing_that_failed_half_way_is_none() {
        let mut done = DoneMessage::default();
        ended(&done).unwrap();
        done.code = -libc::ENOMEM;
        // struct nlattr, the text.
        done.extended_ack = [&[8, 0, 1, 0], &b"why\0"[..]].concat();
        let error = ended(&done).unwrap_err();
        assert_eq!(error.errno(), Some(libc::ENOMEM));
        assert!(error.to_string().ends_with(" (why)"), "{error}");
        done.code = i32::MIN;
        ended(&done).unwrap_err();
    }
}
