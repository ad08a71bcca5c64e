//! Packets in guest memory (virtio 1.2, 5.10.6).
//!
//! A driver may cut a packet into descriptors wherever it likes: Linux has put
//! header and payload in one descriptor, in two, and spread the payload over many.
//! So both directions work on bytes: the chain is a list of memory slices, the
//! header is the first 44 bytes of it, the payload is what follows.

use virtio_queue::DescriptorChain;
use virtio_queue::desc::split::Descriptor;
use vm_memory::{GuestMemory as _, VolatileSlice};

use super::MAX_PAYLOAD;
use crate::memory::{GuestMemory, Ram};

/// Length of the header on the wire, in bytes.
pub const HEADER_LEN: usize = 44;

/// The only socket type this device offers.
pub const TYPE_STREAM: u16 = 1;

/// Operations (5.10.6.1).
pub mod op {
    /// The sender wants a connection.
    pub const REQUEST: u16 = 1;
    /// The connection is accepted.
    pub const RESPONSE: u16 = 2;
    /// The connection is refused or gone.
    pub const RST: u16 = 3;
    /// One or both directions are over; `flags` says which.
    pub const SHUTDOWN: u16 = 4;
    /// Payload.
    pub const RW: u16 = 5;
    /// Buffer space, nothing else.
    pub const CREDIT_UPDATE: u16 = 6;
    /// The sender wants a `CREDIT_UPDATE`.
    pub const CREDIT_REQUEST: u16 = 7;
}

/// Flags of a `SHUTDOWN` (5.10.6.6): what the sender will not do any more.
pub mod shutdown {
    /// It will not receive.
    pub const RECEIVE: u32 = 1;
    /// It will not send.
    pub const SEND: u32 = 2;
    /// Neither.
    pub const BOTH: u32 = RECEIVE | SEND;
}

/// A packet header, in host byte order.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Header {
    /// Context id of the sender.
    pub src_cid: u64,
    /// Context id of the receiver.
    pub dst_cid: u64,
    /// Port of the sender.
    pub src_port: u32,
    /// Port of the receiver.
    pub dst_port: u32,
    /// Bytes of payload that follow.
    pub len: u32,
    /// Socket type; [`TYPE_STREAM`].
    pub kind: u16,
    /// What the packet does, one of [`op`].
    pub op: u16,
    /// For `SHUTDOWN`, bits of [`shutdown`].
    pub flags: u32,
    /// Size of the sender's receive buffer for this connection, in bytes.
    pub buf_alloc: u32,
    /// Bytes the sender has taken out of that buffer so far, modulo 2^32.
    pub fwd_cnt: u32,
}

impl Header {
    /// The wire form: little endian, packed.
    pub fn to_bytes(self) -> [u8; HEADER_LEN] {
        let mut bytes = [0; HEADER_LEN];
        bytes[0..8].copy_from_slice(&self.src_cid.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.dst_cid.to_le_bytes());
        bytes[16..20].copy_from_slice(&self.src_port.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.dst_port.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.len.to_le_bytes());
        bytes[28..30].copy_from_slice(&self.kind.to_le_bytes());
        bytes[30..32].copy_from_slice(&self.op.to_le_bytes());
        bytes[32..36].copy_from_slice(&self.flags.to_le_bytes());
        bytes[36..40].copy_from_slice(&self.buf_alloc.to_le_bytes());
        bytes[40..44].copy_from_slice(&self.fwd_cnt.to_le_bytes());
        bytes
    }

    /// Reads the wire form.
    pub fn from_bytes(bytes: &[u8; HEADER_LEN]) -> Self {
        let u16_at = |at: usize| u16::from_le_bytes([bytes[at], bytes[at + 1]]);
        let u32_at = |at: usize| u32::from(u16_at(at)) | u32::from(u16_at(at + 2)).wrapping_shl(16);
        let u64_at = |at: usize| u64::from(u32_at(at)) | u64::from(u32_at(at + 4)) << 32;
        Self {
            src_cid: u64_at(0),
            dst_cid: u64_at(8),
            src_port: u32_at(16),
            dst_port: u32_at(20),
            len: u32_at(24),
            kind: u16_at(28),
            op: u16_at(30),
            flags: u32_at(32),
            buf_alloc: u32_at(36),
            fwd_cnt: u32_at(40),
        }
    }
}

/// Guest memory cut into slices, as a chain lists it.
type Slices<'m> = Vec<VolatileSlice<'m>>;

/// A packet from the guest.
pub struct TxPacket<'m> {
    /// The header, read once.
    pub header: Header,
    /// Exactly `header.len` bytes.
    pub payload: Slices<'m>,
}

impl<'m> TxPacket<'m> {
    /// Reads the packet a chain of the transmit queue holds. `None` if it is no
    /// packet: too short, outside guest memory, or longer than [`MAX_PAYLOAD`].
    pub fn parse(mem: &'m Ram, chain: DescriptorChain<GuestMemory>) -> Option<Self> {
        Self::from_slices(collect(mem, chain.readable())?)
    }

    fn from_slices(mut slices: Slices<'m>) -> Option<Self> {
        let mut bytes = [0; HEADER_LEN];
        take(&mut slices, &mut bytes)?;
        let header = Header::from_bytes(&bytes);
        truncate(&mut slices, header.len as usize)?;
        Some(Self {
            header,
            payload: slices,
        })
    }
}

/// A buffer the guest has posted for one packet from the host.
pub struct RxBuffer<'m> {
    header: Slices<'m>,
    payload: Slices<'m>,
}

impl<'m> RxBuffer<'m> {
    /// Takes the writable part of a chain of the receive queue. `None` if it cannot
    /// hold a header and a byte, or lies outside guest memory.
    pub fn parse(mem: &'m Ram, chain: DescriptorChain<GuestMemory>) -> Option<Self> {
        Self::from_slices(collect(mem, chain.writable())?)
    }

    fn from_slices(slices: Slices<'m>) -> Option<Self> {
        let mut header = Slices::with_capacity(1);
        let mut payload = Slices::with_capacity(slices.len());
        let mut missing = HEADER_LEN;
        for slice in slices {
            let (head, tail) = slice.split_at(missing.min(slice.len())).ok()?;
            missing -= head.len();
            header.extend((!head.is_empty()).then_some(head));
            payload.extend((!tail.is_empty()).then_some(tail));
        }
        (missing == 0 && !payload.is_empty()).then_some(Self { header, payload })
    }

    /// The memory for the payload, in order.
    pub fn payload(&self) -> &[VolatileSlice<'m>] {
        &self.payload
    }

    /// Completes the packet; its payload of `header.len` bytes is in place already.
    /// Answers the bytes written in all.
    pub fn finish(self, header: Header) -> u32 {
        let bytes = header.to_bytes();
        let mut done = 0;
        for slice in &self.header {
            slice.copy_from(&bytes[done..done + slice.len()]);
            done += slice.len();
        }
        HEADER_LEN as u32 + header.len
    }
}

/// The memory `descriptors` name, as far as one packet can reach, or `None` if some of
/// it is no guest memory.
fn collect<'m>(mem: &'m Ram, descriptors: impl Iterator<Item = Descriptor>) -> Option<Slices<'m>> {
    let mut slices = Slices::with_capacity(2);
    let mut room = HEADER_LEN + MAX_PAYLOAD as usize;
    for descriptor in descriptors {
        let len = room.min(descriptor.len() as usize);
        if len > 0 {
            let slice = mem.get_slice(descriptor.addr(), len).ok()?;
            slices.push(mem.check_range(descriptor.addr(), len).then_some(slice)?);
        }
        room -= len;
        if room == 0 {
            break;
        }
    }
    Some(slices)
}

/// Moves the first `out.len()` bytes of `slices` into `out`, or `None` if there are
/// fewer.
fn take(slices: &mut Slices<'_>, out: &mut [u8]) -> Option<()> {
    let mut done = 0;
    let mut used = 0;
    for slice in slices.iter_mut() {
        let count = slice.len().min(out.len() - done);
        slice.subslice(0, count).ok()?.copy_to(&mut out[done..]);
        done += count;
        if count < slice.len() {
            *slice = slice.offset(count).ok()?;
            break;
        }
        used += 1;
    }
    slices.drain(..used);
    (done == out.len()).then_some(())
}

/// Shortens `slices` to `len` bytes, or `None` if there are fewer.
fn truncate(slices: &mut Slices<'_>, len: usize) -> Option<()> {
    let mut left = len;
    let mut keep = 0;
    for slice in slices.iter_mut() {
        if left == 0 {
            break;
        }
        if slice.len() > left {
            *slice = slice.subslice(0, left).ok()?;
        }
        left -= slice.len();
        keep += 1;
    }
    slices.truncate(keep);
    (left == 0).then_some(())
}

#[cfg(test)]
mod tests;
