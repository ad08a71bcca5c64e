//! From the link to the guest (virtio 1.2, 5.1.6.3 and 5.1.6.4).
//!
//! A frame is read from the link into the buffers the driver posted. With mergeable
//! buffers it may fill several chains, and nobody knows how many before it is read: all
//! that the longest frame needs are offered to the link, and those it did not reach stay
//! with us for the next one. When there are fewer, the frame's end is caught in a buffer
//! of our own and follows when the driver has posted more: no frame is lost because a
//! driver posts little at a time.

use std::collections::VecDeque;
use std::io;

use vm_memory::VolatileSlice;

use super::buffers::{Access, Buffers, write_at};
use super::tap::Link;
use super::{HEADER_LEN, MAX_FRAME_LEN, NUM_BUFFERS};
use crate::devices::virtio::pump::QueuePump;
use crate::memory::GuestMemory;

/// Most frames in one round; then the event loop sees to its other duties.
const BATCH: usize = 64;

/// What the next frame waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Wait {
    /// The link being readable.
    Frame,
    /// The driver posting buffers, and kicking.
    Buffers,
    /// Nothing: the link is gone.
    Nothing,
}

/// A frame that was read and for which there were too few buffers.
#[derive(Clone, Copy, Debug)]
struct Frame {
    len: usize,
    /// How much of it is in the driver's buffers; the rest is in `rest`.
    placed: usize,
}

/// The receive queue.
pub struct Receiver {
    queue: QueuePump,
    mem: GuestMemory,
    mergeable: bool,
    /// Taken from the queue and not filled yet, in order.
    posted: VecDeque<Buffers>,
    /// Room for all of a frame and a byte more, by which a longer one is known.
    rest: Vec<u8>,
    held: Option<Frame>,
    link_is_gone: bool,
    /// Frames that no buffer of this driver can hold.
    oversized: u64,
}

impl Receiver {
    /// Serves `queue`; `mergeable` if VIRTIO_NET_F_MRG_RXBUF was negotiated.
    pub fn new(queue: QueuePump, mem: GuestMemory, mergeable: bool) -> Self {
        Self {
            queue,
            mem,
            mergeable,
            posted: VecDeque::new(),
            rest: vec![0; MAX_FRAME_LEN + 1],
            held: None,
            link_is_gone: false,
            oversized: 0,
        }
    }

    /// The queue, for its kick.
    pub fn queue(&self) -> &QueuePump {
        &self.queue
    }

    /// Takes nothing more from the queue; the driver has to reset the device.
    pub fn fail(&mut self) {
        self.queue.fail();
    }

    /// How many frames were dropped because they were too long.
    pub fn oversized(&self) -> u64 {
        self.oversized
    }

    /// There will be no more frames.
    pub fn lose_link(&mut self) {
        self.link_is_gone = true;
    }

    /// Passes frames on until one of them has to wait, or for one round.
    pub fn run(&mut self, link: &dyn Link) -> Wait {
        let stopped = (0..BATCH).find_map(|_| self.pass_one(link).err());
        self.queue.notify();
        stopped.unwrap_or(Wait::Frame)
    }

    fn pass_one(&mut self, link: &dyn Link) -> Result<(), Wait> {
        if self.link_is_gone {
            return Err(Wait::Nothing);
        }
        self.take_buffers();
        if self.queue.is_broken() {
            return Err(Wait::Buffers);
        }
        let mem = self.mem.clone();
        let Some(parts) = self.locate(&mem) else {
            // RAM that was there when the buffer was posted is not any more.
            self.queue.fail();
            return Err(Wait::Buffers);
        };
        let room = parts.iter().map(VolatileSlice::len).sum();
        if room == 0 {
            return Err(Wait::Buffers);
        }
        let frame = match self.held.take() {
            Some(frame) => frame,
            None => self.read(link, &parts, room)?,
        };
        if self.is_oversized(frame, room) {
            self.oversized += 1;
            log::debug!("net: dropped a frame of {} bytes", frame.len);
            return Ok(());
        }
        if frame.len > room {
            self.held = Some(frame);
            return Err(Wait::Buffers);
        }
        if let Some(rest) = self.rest.get(..frame.len - frame.placed) {
            write_at(&parts, frame.placed, rest);
        }
        self.give(&parts, frame.len);
        Ok(())
    }

    fn read(
        &mut self,
        link: &dyn Link,
        parts: &[VolatileSlice],
        room: usize,
    ) -> Result<Frame, Wait> {
        match link.receive(parts, &mut self.rest) {
            Ok(len) => Ok(Frame {
                len,
                placed: len.min(room),
            }),
            Err(error) if is_empty(&error) => Err(Wait::Frame),
            Err(error) => {
                log::error!("net: no more frames can be taken from the tap: {error}");
                self.lose_link();
                Err(Wait::Nothing)
            }
        }
    }

    /// Takes chains from the queue until there is room for the longest frame.
    fn take_buffers(&mut self) {
        for _ in 0..self.queue.size() {
            if self.has_enough() {
                return;
            }
            let Some(chain) = self.queue.pop() else {
                return;
            };
            let buffers = Buffers::of(&chain, Access::Write);
            match buffers.filter(|buffers| buffers.len >= HEADER_LEN) {
                Some(buffers) => self.posted.push_back(buffers),
                // No place for a header, or none to write to.
                None => self.queue.push_used(chain.head_index(), 0),
            }
        }
        self.queue.kick_again();
    }

    fn has_enough(&self) -> bool {
        if !self.mergeable {
            return !self.posted.is_empty();
        }
        let room: usize = self.posted.iter().map(|buffers| buffers.len).sum();
        room >= MAX_FRAME_LEN || self.has_all()
    }

    /// Whether every descriptor of the queue is ours already, so that there will not be
    /// more room.
    fn has_all(&self) -> bool {
        let taken: usize = self.posted.iter().map(Buffers::count).sum();
        taken >= usize::from(self.queue.size())
    }

    /// Whether there will never be buffers for a frame.
    fn is_oversized(&self, frame: Frame, room: usize) -> bool {
        let no_more = !self.mergeable || self.has_all();
        frame.len > MAX_FRAME_LEN || (frame.len > room && no_more)
    }

    /// The buffers the next frame may fill.
    fn locate<'a>(&self, mem: &'a GuestMemory) -> Option<Vec<VolatileSlice<'a>>> {
        let chains = if self.mergeable { self.posted.len() } else { 1 };
        let mut parts = Vec::new();
        for buffers in self.posted.iter().take(chains) {
            buffers.locate(mem, &mut parts)?;
        }
        Some(parts)
    }

    /// Gives the driver the chains that hold a frame of `len` bytes, all at once.
    fn give(&mut self, parts: &[VolatileSlice], len: usize) {
        let mut left = len;
        let mut used = Vec::new();
        while left > 0 {
            let Some(buffers) = self.posted.pop_front() else {
                break;
            };
            let written = left.min(buffers.len);
            left -= written;
            // A frame's length, so it fits.
            used.push((buffers.head, written as u32));
        }
        // The tap leaves it to us. Without mergeable buffers it is 1, too (5.1.6.4.1).
        write_at(parts, NUM_BUFFERS, &(used.len() as u16).to_le_bytes());
        self.queue.push_used_together(&used);
    }
}

/// Whether there was no frame to be had at the moment.
fn is_empty(error: &io::Error) -> bool {
    matches!(
        error.kind(),
        io::ErrorKind::WouldBlock | io::ErrorKind::Interrupted
    )
}
