//! Which blocks of the region are plugged, and what a request may change.

use std::ops::Range;

use super::request::{Request, Response, State};
use super::{BLOCK_SIZE, SECTION_SIZE};

/// Where `requested_size` ends in the configuration space, and this with it.
pub const CONFIG_LEN: usize = 56;

/// The region's state.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Blocks {
    base: u64,
    region: u64,
    usable: u64,
    requested: u64,
    plugged: Vec<bool>,
    count: u64,
}

/// What a request leads to.
#[derive(Debug, PartialEq, Eq)]
pub struct Outcome {
    /// What the driver is told.
    pub response: Response,
    /// Guest physical addresses the host has back.
    pub discard: Option<Range<u64>>,
}

impl From<Response> for Outcome {
    fn from(response: Response) -> Self {
        Self {
            response,
            discard: None,
        }
    }
}

impl Blocks {
    /// A region of `region` bytes at `base`, nothing of it plugged.
    pub fn new(base: u64, region: u64) -> Self {
        Self {
            base,
            region,
            usable: 0,
            requested: 0,
            plugged: vec![false; (region / BLOCK_SIZE) as usize],
            count: 0,
        }
    }

    /// Bytes plugged.
    pub fn plugged(&self) -> u64 {
        self.count * BLOCK_SIZE
    }

    /// Bytes the guest should have.
    pub fn requested(&self) -> u64 {
        self.requested
    }

    /// Length of the region in bytes.
    pub fn region(&self) -> u64 {
        self.region
    }

    /// Up to where the region is usable for `requested` bytes: in whole sections, and never
    /// less than before, because the driver may have plugged there (5.15.6.2).
    pub fn usable_for(&self, requested: u64) -> u64 {
        let sections = requested.next_multiple_of(SECTION_SIZE);
        sections.min(self.region).max(self.usable)
    }

    /// Sets how much the guest should have: whole blocks, no more than the region has.
    pub fn request(&mut self, bytes: u64) {
        self.usable = self.usable_for(bytes);
        self.requested = bytes;
    }

    /// Carries out a request of the driver's (5.15.6).
    pub fn handle(&mut self, request: &Request) -> Outcome {
        match *request {
            Request::Plug { address, blocks } => self.plug(address, blocks).into(),
            Request::Unplug { address, blocks } => self.unplug(address, blocks),
            Request::UnplugAll => {
                self.plugged.fill(false);
                self.count = 0;
                Outcome {
                    response: Response::Ack,
                    discard: Some(self.base..self.base + self.usable),
                }
            }
            Request::State { address, blocks } => self.state(address, blocks).into(),
        }
    }

    fn plug(&mut self, address: u64, blocks: u16) -> Response {
        let (requested, after) = (self.requested, self.plugged() + size(blocks));
        match self.range(address, blocks) {
            Some(range) if !range.contains(&true) => {
                if after > requested {
                    return Response::Nack;
                }
                range.fill(true);
                self.count += u64::from(blocks);
                Response::Ack
            }
            _ => Response::Error,
        }
    }

    fn unplug(&mut self, address: u64, blocks: u16) -> Outcome {
        match self.range(address, blocks) {
            Some(range) if !range.contains(&false) => {
                range.fill(false);
                self.count -= u64::from(blocks);
                Outcome {
                    response: Response::Ack,
                    discard: Some(address..address + size(blocks)),
                }
            }
            _ => Response::Error.into(),
        }
    }

    fn state(&mut self, address: u64, blocks: u16) -> Response {
        let Some(range) = self.range(address, blocks) else {
            return Response::Error;
        };
        Response::State(match (range.contains(&true), range.contains(&false)) {
            (true, false) => State::Plugged,
            (false, _) => State::Unplugged,
            (true, true) => State::Mixed,
        })
    }

    /// The blocks a request names, if they are whole ones of the usable part, and any.
    fn range(&mut self, address: u64, blocks: u16) -> Option<&mut [bool]> {
        let offset = address.checked_sub(self.base)?;
        let end = offset.checked_add(size(blocks))?;
        if blocks == 0 || !offset.is_multiple_of(BLOCK_SIZE) || end > self.usable {
            return None;
        }
        let blocks = (offset / BLOCK_SIZE) as usize..(end / BLOCK_SIZE) as usize;
        self.plugged.get_mut(blocks)
    }

    /// The configuration space (5.15.4): block size, node (none), address, sizes.
    pub fn config(&self) -> [u8; CONFIG_LEN] {
        let fields = [
            BLOCK_SIZE,
            0,
            self.base,
            self.region,
            self.usable,
            self.plugged(),
            self.requested,
        ];
        let mut space = [0; CONFIG_LEN];
        for (to, field) in space.chunks_exact_mut(8).zip(fields) {
            to.copy_from_slice(&field.to_le_bytes());
        }
        space
    }
}

fn size(blocks: u16) -> u64 {
    u64::from(blocks) * BLOCK_SIZE
}
