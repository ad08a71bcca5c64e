//! The buffers of one chain, as plain data.
//!
//! They are read once, so that a guest that rewrites its descriptors later changes nothing,
//! and looked up in guest memory again whenever they are used.

use virtio_queue::DescriptorChain;
use vm_memory::{GuestAddress, GuestMemory as _, VolatileSlice};

use crate::memory::{GuestMemory, Ram};

/// Which way the bytes of a chain go.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    /// The device reads them.
    Read,
    /// The device writes them.
    Write,
}

/// A piece of guest memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Piece {
    address: GuestAddress,
    len: usize,
}

/// The buffers of a chain taken from a queue.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Buffers {
    /// The chain's head, by which it is given back.
    pub head: u16,
    /// Bytes in all.
    pub len: usize,
    pieces: Vec<Piece>,
}

impl Buffers {
    /// `None` if a buffer of the chain is meant for the other access.
    pub fn of(chain: &DescriptorChain<GuestMemory>, access: Access) -> Option<Self> {
        let mut buffers = Self {
            head: chain.head_index(),
            len: 0,
            pieces: Vec::new(),
        };
        for descriptor in chain.clone() {
            if descriptor.is_write_only() != (access == Access::Write) {
                return None;
            }
            let len = descriptor.len() as usize;
            buffers.len = buffers.len.checked_add(len)?;
            buffers.pieces.push(Piece {
                address: descriptor.addr(),
                len,
            });
        }
        Some(buffers)
    }

    /// How many descriptors there are.
    pub fn count(&self) -> usize {
        self.pieces.len()
    }

    /// Appends the buffers to `parts`; `None` if one is not in RAM.
    pub fn locate<'a>(&self, mem: &'a Ram, parts: &mut Vec<VolatileSlice<'a>>) -> Option<()> {
        for piece in &self.pieces {
            // A buffer of no bytes may be anywhere.
            if piece.len > 0 && !mem.check_range(piece.address, piece.len) {
                return None;
            }
            for part in mem.get_slices(piece.address, piece.len) {
                parts.push(part.ok()?);
            }
        }
        Some(())
    }
}

/// Copies `bytes` to `parts`, from `offset` on. What does not fit is left out.
pub fn write_at(parts: &[VolatileSlice], mut offset: usize, mut bytes: &[u8]) {
    for part in parts {
        let Ok(part) = part.offset(offset) else {
            offset -= part.len();
            continue;
        };
        offset = 0;
        let (now, later) = bytes.split_at(bytes.len().min(part.len()));
        part.copy_from(now);
        bytes = later;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_buffer_that_runs_over_the_end_of_ram_is_not_found() {
        let mem = Ram::with_room(2 << 20);
        let found = |address, len| {
            let address = GuestAddress(address);
            let buffers = Buffers {
                head: 0,
                len,
                pieces: vec![Piece { address, len }],
            };
            let mut parts = Vec::new();
            buffers.locate(&mem, &mut parts).map(|()| parts.len())
        };
        let end = (1 << 32) + (2 << 20);
        assert_eq!(found(end - 4096, 4096), Some(1));
        assert_eq!(found(end - 4096, 4097), None);
        assert_eq!(found(end, 1), None);
        assert_eq!(found(u64::MAX, 0), Some(0), "nothing, anywhere");
    }
}
