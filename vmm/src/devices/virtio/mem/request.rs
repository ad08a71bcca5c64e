//! Requests and answers as the queue carries them (virtio 1.2, 5.15.6).

use std::io::{Read as _, Write as _};

use virtio_queue::DescriptorChain;

use crate::memory::{GuestMemory, Ram};

const REQUEST_LEN: usize = 24;
const RESPONSE_LEN: usize = 10;

/// What the driver asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Request {
    /// Give the guest blocks.
    Plug {
        /// Guest physical address of the first.
        address: u64,
        /// Number of them.
        blocks: u16,
    },
    /// Take blocks back.
    Unplug {
        /// Guest physical address of the first.
        address: u64,
        /// Number of them.
        blocks: u16,
    },
    /// Take all back.
    UnplugAll,
    /// Tell whether blocks are plugged.
    State {
        /// Guest physical address of the first.
        address: u64,
        /// Number of them.
        blocks: u16,
    },
}

/// What it is answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Response {
    /// Done.
    Ack,
    /// Not done: it would be more than requested.
    Nack,
    /// Not done: the request is wrong.
    Error,
    /// Answers [`Request::State`].
    State(State),
}

/// Whether the blocks of a range are plugged.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// All.
    Plugged,
    /// None.
    Unplugged,
    /// Some.
    Mixed,
}

impl Request {
    /// Reads a request; `None` if it is none.
    pub fn read(mem: &Ram, chain: DescriptorChain<GuestMemory>) -> Option<Self> {
        let mut bytes = [0; REQUEST_LEN];
        chain.reader(mem).ok()?.read_exact(&mut bytes).ok()?;
        Self::parse(&bytes)
    }

    fn parse(bytes: &[u8; REQUEST_LEN]) -> Option<Self> {
        let (kind, rest) = bytes.split_first_chunk()?;
        let (_padding, rest) = rest.split_first_chunk::<6>()?;
        let (address, rest) = rest.split_first_chunk()?;
        let (blocks, _padding) = rest.split_first_chunk()?;
        let (address, blocks) = (u64::from_le_bytes(*address), u16::from_le_bytes(*blocks));
        match u16::from_le_bytes(*kind) {
            0 => Some(Self::Plug { address, blocks }),
            1 => Some(Self::Unplug { address, blocks }),
            2 => Some(Self::UnplugAll),
            3 => Some(Self::State { address, blocks }),
            _ => None,
        }
    }
}

impl Response {
    /// Writes the answer to the chain's writable part; returns how many bytes that is.
    pub fn write(self, mem: &Ram, chain: DescriptorChain<GuestMemory>) -> u32 {
        let written = chain.writer(mem).ok().and_then(|mut writer| {
            let bytes = self.bytes();
            writer.write_all(&bytes).ok()?;
            Some(bytes.len() as u32)
        });
        written.unwrap_or(0)
    }

    fn bytes(self) -> [u8; RESPONSE_LEN] {
        let (kind, state): (u16, u16) = match self {
            Self::Ack => (0, 0),
            Self::Nack => (1, 0),
            Self::Error => (3, 0),
            Self::State(State::Plugged) => (0, 0),
            Self::State(State::Unplugged) => (0, 1),
            Self::State(State::Mixed) => (0, 2),
        };
        let mut bytes = [0; RESPONSE_LEN];
        bytes[..2].copy_from_slice(&kind.to_le_bytes());
        bytes[8..].copy_from_slice(&state.to_le_bytes());
        bytes
    }
}
