//! The one loop that takes chains from a virtqueue, gives them back and interrupts.
//!
//! # Primer
//!
//! A split virtqueue (virtio 1.2, 2.7) is two rings over one descriptor table. The driver
//! publishes chain heads in the *available* ring and *kicks*; the device works on a
//! chain, publishes it in the *used* ring and *interrupts*. With EVENT_IDX (2.7.10) each
//! side tells the other at which index it wants to be woken next, which makes the order
//! of steps matter: a device that goes to sleep must first ask for a kick and then look
//! at the ring once more, or a chain published in between is never seen.
//! [`QueuePump::pop`] does exactly that before it says "nothing there", so no device can
//! get it wrong.
//!
//! # Hostile drivers
//!
//! Before a device sees a chain the pump has walked it: every buffer lies in guest RAM,
//! readable ones come before writable ones, indirect tables were negotiated and are not
//! nested, links do not run in circles, and number and total length of the buffers are
//! bounded. Anything else marks the queue broken: it yields nothing more, and the driver
//! is told by DEVICE_NEEDS_RESET. The driver can still rewrite descriptors after the
//! walk, so a device must not size an allocation by what it reads from a chain without a
//! limit of its own. The memory layer refuses what is not mapped in any case, and what begins
//! beyond the RAM that has been opened; that it ends there is checked here, and again by
//! devices that use a buffer for more than a few bytes ([`crate::memory`]).

use std::num::Wrapping;
use std::sync::Arc;
use std::sync::atomic::{Ordering, fence};

use thiserror::Error;
use virtio_queue::{DescriptorChain, Queue, QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestMemory as _};
use vmm_sys_util::eventfd::EventFd;

use super::interrupt::Interrupt;
use crate::eventfd;
use crate::memory::GuestMemory;

/// Most bytes one chain may describe, in bytes. virtio 1.2 allows 4 GiB; the largest
/// honest request of our devices is 1 MiB of file data with its headers.
pub const MAX_CHAIN_BYTES: u64 = 8 << 20;

/// What is wrong with a queue or a chain.
#[derive(Debug, Error)]
pub enum QueueError {
    /// The size is 0, not a power of two or above the device's maximum.
    #[error("queue size {size} is not a power of two up to {max}")]
    Size {
        /// What the driver set.
        size: u32,
        /// The device's maximum.
        max: u16,
    },
    /// A ring is misaligned or not wholly in RAM.
    #[error("the {ring} at {address:#x} is misaligned or not wholly in RAM")]
    Ring {
        /// Which of the three.
        ring: &'static str,
        /// Where the driver put it.
        address: u64,
    },
    /// The driver did not make the queue ready.
    #[error("the queue was not made ready")]
    NotReady,
    /// `avail.idx` is ahead by more than the queue's size, or a ring access failed.
    #[error("the rings are inconsistent: {0}")]
    Rings(virtio_queue::Error),
    /// A ring entry could not be read.
    #[error("a ring entry is out of range")]
    Entry,
    /// The chain loops, has a bad link, is empty or nests indirect tables.
    #[error("descriptor chain {head} is malformed")]
    Chain {
        /// Index of its first descriptor.
        head: u16,
    },
    /// A buffer is not wholly in RAM.
    #[error("a buffer at {address:#x}, {len} bytes, of chain {head} is not in RAM")]
    Buffer {
        /// Index of the chain's first descriptor.
        head: u16,
        /// Guest physical address.
        address: u64,
        /// Length in bytes.
        len: u32,
    },
    /// Too many bytes in all.
    #[error("descriptor chain {head} describes more than {max} bytes")]
    TooLong {
        /// Index of its first descriptor.
        head: u16,
        /// How many it may.
        max: u64,
    },
}

/// Where the driver put a queue, as plain data; all three addresses are guest physical.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct QueueLayout {
    /// Number of descriptors.
    pub size: u32,
    /// Whether the driver said the queue is set up.
    pub ready: bool,
    /// Descriptor table.
    pub desc: u64,
    /// Available ring ("driver area").
    pub avail: u64,
    /// Used ring ("device area").
    pub used: u64,
}

impl QueueLayout {
    /// Checks the layout against virtio 1.2, 2.7 and against RAM.
    pub fn validate(&self, max: u16, mem: &GuestMemory) -> Result<u16, QueueError> {
        if !self.ready {
            return Err(QueueError::NotReady);
        }
        let size = u16::try_from(self.size)
            .ok()
            .filter(|size| size.is_power_of_two() && *size <= max)
            .ok_or(QueueError::Size {
                size: self.size,
                max,
            })?;
        let entries = usize::from(size);
        for (ring, address, align, len) in [
            ("descriptor table", self.desc, 16, 16 * entries),
            ("available ring", self.avail, 2, 6 + 2 * entries),
            ("used ring", self.used, 4, 6 + 8 * entries),
        ] {
            // Address 0 is where an unset register points; the queue code refuses it too.
            let ok =
                address != 0 && address % align == 0 && mem.check_range(GuestAddress(address), len);
            if !ok {
                return Err(QueueError::Ring { ring, address });
            }
        }
        Ok(size)
    }

    fn build(&self, max: u16, event_idx: bool, mem: &GuestMemory) -> Result<Queue, QueueError> {
        let size = self.validate(max, mem)?;
        let mut queue = Queue::new(max).map_err(QueueError::Rings)?;
        queue.try_set_size(size).map_err(QueueError::Rings)?;
        queue
            .try_set_desc_table_address(GuestAddress(self.desc))
            .map_err(QueueError::Rings)?;
        queue
            .try_set_avail_ring_address(GuestAddress(self.avail))
            .map_err(QueueError::Rings)?;
        queue
            .try_set_used_ring_address(GuestAddress(self.used))
            .map_err(QueueError::Rings)?;
        queue.set_event_idx(event_idx);
        queue.set_ready(true);
        Ok(queue)
    }
}

/// Options the driver negotiated that change how a queue is read.
#[derive(Clone, Copy, Debug)]
pub struct RingFeatures {
    /// VIRTIO_F_RING_EVENT_IDX.
    pub event_idx: bool,
    /// VIRTIO_F_RING_INDIRECT_DESC.
    pub indirect: bool,
}

/// A live queue with its kick and its interrupt.
#[derive(Debug)]
pub struct QueuePump {
    queue: Queue,
    mem: GuestMemory,
    features: RingFeatures,
    kick: Arc<EventFd>,
    interrupt: Interrupt,
    max_chain_bytes: u64,
    broken: bool,
    /// Chains given back since the driver was last told.
    unannounced: u16,
}

impl QueuePump {
    /// Builds the queue described by `layout` after checking it.
    pub fn new(
        layout: &QueueLayout,
        max_size: u16,
        features: RingFeatures,
        mem: GuestMemory,
        kick: Arc<EventFd>,
        interrupt: Interrupt,
    ) -> Result<Self, QueueError> {
        Ok(Self {
            queue: layout.build(max_size, features.event_idx, &mem)?,
            mem,
            features,
            kick,
            interrupt,
            max_chain_bytes: MAX_CHAIN_BYTES,
            broken: false,
            unannounced: 0,
        })
    }

    /// Lets a chain describe other than [`MAX_CHAIN_BYTES`] bytes: for a device that never
    /// copies what a buffer holds.
    #[must_use]
    pub fn with_max_chain_bytes(mut self, max: u64) -> Self {
        self.max_chain_bytes = max;
        self
    }

    /// The interrupt of this queue's device.
    pub fn interrupt(&self) -> &Interrupt {
        &self.interrupt
    }

    /// Becomes readable when the driver kicked; for an epoll set.
    pub fn kick(&self) -> &EventFd {
        &self.kick
    }

    /// Empties [`kick`](Self::kick), before the queue is processed.
    pub fn ack_kick(&self) {
        eventfd::lower(&self.kick);
    }

    /// Number of descriptors, and of chains that can be taken at a time.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// Whether the driver broke the queue; it yields nothing until the device is reset.
    pub fn is_broken(&self) -> bool {
        self.broken
    }

    /// The next chain, checked. `None` means that none is there and that the driver will
    /// kick when it adds one (or that the queue is broken).
    ///
    /// A chain taken must be given back, by [`push_used`](Self::push_used) or, if it was
    /// the last one taken, by [`unpop`](Self::unpop).
    pub fn pop(&mut self) -> Option<DescriptorChain<GuestMemory>> {
        match self.try_pop() {
            Ok(chain) => chain,
            Err(error) => {
                self.break_queue(&error);
                None
            }
        }
    }

    /// Takes back the last [`pop`](Self::pop): the next one yields the same chain.
    pub fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back with `len` bytes written to its writable buffers. The driver
    /// hears of it at the next [`notify`](Self::notify).
    pub fn push_used(&mut self, head: u16, len: u32) {
        self.push_used_together(&[(head, len)]);
    }

    /// As [`push_used`](Self::push_used) for several chains, each a head and a length, of
    /// which the driver sees none before it sees all.
    pub fn push_used_together(&mut self, chains: &[(u16, u32)]) {
        if self.broken {
            return;
        }
        if let Err(error) = self.try_push_used(chains) {
            self.break_queue(&error);
        }
    }

    /// Interrupts the driver if chains were given back since the last call and it wants
    /// to be told.
    pub fn notify(&mut self) {
        let count = std::mem::take(&mut self.unannounced);
        if self.broken || count == 0 {
            return;
        }
        match self.wants_interrupt(count) {
            Ok(true) => self.interrupt.signal_queue(),
            Ok(false) => {}
            Err(error) => self.break_queue(&error),
        }
    }

    /// Hands every available chain to `process`, gives it back with the length returned,
    /// and interrupts once.
    ///
    /// `None` from `process` means "no resources": the chain stays in the queue and the
    /// device must call `drain` again by itself. After a whole queue's worth of chains
    /// the pump kicks itself and returns, so that a driver that never stops cannot keep
    /// the thread from its other duties.
    pub fn drain(&mut self, mut process: impl FnMut(DescriptorChain<GuestMemory>) -> Option<u32>) {
        let mut left = self.queue.size();
        while let Some(chain) = self.pop() {
            let head = chain.head_index();
            match process(chain) {
                Some(len) => self.push_used(head, len),
                None => {
                    self.unpop();
                    break;
                }
            }
            left -= 1;
            if left == 0 {
                self.kick_again();
                break;
            }
        }
        self.notify();
    }

    /// As [`drain`](Self::drain) for a device whose requests may block: each chain's answer
    /// reaches the driver at once, and after `limit` chains the pump kicks itself.
    pub fn serve(
        &mut self,
        limit: usize,
        mut process: impl FnMut(DescriptorChain<GuestMemory>) -> u32,
    ) {
        for _ in 0..limit {
            let Some(chain) = self.pop() else { return };
            let head = chain.head_index();
            let len = process(chain);
            self.push_used(head, len);
            self.notify();
        }
        self.kick_again();
    }

    /// Makes [`kick`](Self::kick) readable, so that the queue's thread comes back to it.
    pub fn kick_again(&self) {
        eventfd::raise(&self.kick);
    }

    /// Declares the device broken for a reason of the device's own (a violation of its
    /// protocol from which it cannot recover).
    pub fn fail(&mut self) {
        self.broken = true;
        self.interrupt.fail();
    }

    fn break_queue(&mut self, error: &QueueError) {
        log::warn!(target: "guest", "a virtqueue is unusable until the driver resets its device: {error}");
        self.fail();
    }

    /// The library writes the last element and moves the index past all of them.
    fn try_push_used(&mut self, chains: &[(u16, u32)]) -> Result<(), QueueError> {
        let Some(((head, len), others)) = chains.split_last() else {
            return Ok(());
        };
        let mut next = self.queue.next_used();
        for (head, len) in others {
            let slot = u64::from(next % self.queue.size());
            let at = GuestAddress(self.queue.used_ring() + 4 + 8 * slot);
            let element = [u32::from(*head).to_le(), len.to_le()];
            self.mem
                .write_obj(element, at)
                .map_err(|_| QueueError::Entry)?;
            next = next.wrapping_add(1);
        }
        self.queue.set_next_used(next);
        self.queue
            .add_used(&*self.mem, *head, *len)
            .map_err(QueueError::Rings)?;
        self.unannounced = self.unannounced.saturating_add(chains.len() as u16);
        Ok(())
    }

    /// Whether the driver asked to be told of one of the last `count` chains given back
    /// (virtio 1.2, 2.7.7.2 and 2.7.10). The library counts them for itself and misses
    /// those given back together.
    fn wants_interrupt(&self, count: u16) -> Result<bool, QueueError> {
        if !self.features.event_idx {
            return Ok(true);
        }
        // The used index must be out before the driver's wish is read, as the driver
        // states its wish before it looks at the index.
        fence(Ordering::SeqCst);
        let at = self.queue.avail_ring() + 4 + 2 * u64::from(self.queue.size());
        let used_event: u16 = self
            .mem
            .read_obj(GuestAddress(at))
            .map_err(|_| QueueError::Entry)?;
        let behind = self.queue.next_used().wrapping_sub(used_event);
        Ok((1..=count).contains(&behind))
    }

    fn try_pop(&mut self) -> Result<Option<DescriptorChain<GuestMemory>>, QueueError> {
        if self.broken {
            return Ok(None);
        }
        if let Some(chain) = self.take()? {
            return Ok(Some(chain));
        }
        let more = self
            .queue
            .enable_notification(&*self.mem)
            .map_err(QueueError::Rings)?;
        if !more {
            return Ok(None);
        }
        self.take()
    }

    fn take(&mut self) -> Result<Option<DescriptorChain<GuestMemory>>, QueueError> {
        let before = self.queue.next_avail();
        let available = self
            .queue
            .avail_idx(&*self.mem, Ordering::Acquire)
            .map_err(QueueError::Rings)?;
        if available == Wrapping(before) {
            return Ok(None);
        }
        let chain = self
            .queue
            .iter(self.mem.clone())
            .map_err(QueueError::Rings)?
            .next()
            .ok_or(QueueError::Entry)?;
        self.check(&chain)?;
        Ok(Some(chain))
    }

    /// Walks a chain once. The library ends an iteration silently at a bad link, which
    /// shows as a last descriptor that still announces a next one.
    fn check(&self, chain: &DescriptorChain<GuestMemory>) -> Result<(), QueueError> {
        let head = chain.head_index();
        let malformed = QueueError::Chain { head };
        if head >= self.queue.size() || (!self.features.indirect && self.is_indirect(chain)) {
            return Err(malformed);
        }
        let mut left = self.queue.size();
        let mut bytes = 0u64;
        let mut writable = false;
        let mut ended = false;
        for descriptor in chain.clone() {
            if left == 0 || (writable && !descriptor.is_write_only()) {
                return Err(malformed);
            }
            left -= 1;
            writable = descriptor.is_write_only();
            ended = !descriptor.has_next();
            let (address, len) = (descriptor.addr(), descriptor.len());
            bytes += u64::from(len);
            if bytes > self.max_chain_bytes {
                let max = self.max_chain_bytes;
                return Err(QueueError::TooLong { head, max });
            }
            // A zero-length buffer may point anywhere; nothing is read from it.
            if len > 0 && !self.mem.check_range(address, len as usize) {
                return Err(QueueError::Buffer {
                    head,
                    address: address.0,
                    len,
                });
            }
        }
        if ended { Ok(()) } else { Err(malformed) }
    }

    fn is_indirect(&self, chain: &DescriptorChain<GuestMemory>) -> bool {
        use virtio_queue::desc::split::Descriptor;
        // Only without the feature, where one look at each direct descriptor decides.
        let mut index = chain.head_index();
        for _ in 0..self.queue.size() {
            let at = self.queue.desc_table() + 16 * u64::from(index % self.queue.size());
            let Ok(descriptor) = self.mem.read_obj::<Descriptor>(GuestAddress(at)) else {
                return false;
            };
            if descriptor.refers_to_indirect_table() {
                return true;
            }
            if !descriptor.has_next() {
                return false;
            }
            index = descriptor.next();
        }
        false
    }
}

#[cfg(test)]
mod tests;
