//! Virtio devices: the contract between a device and its transport.
//!
//! The transport ([`mmio`]) owns every register and the status state machine, [`pump`]
//! owns the way chains are taken from a queue and given back. A device supplies what is
//! left: its id, its features, its configuration space and what it does with a chain.
//! [`rng`] is the smallest one; start a new device by reading it.
//!
//! # Where a device runs
//!
//! [`VirtioDevice::activate`] and [`VirtioDevice::reset`] are called on a vCPU thread,
//! inside the guest's write to the status register. The queues are served elsewhere:
//!
//! * A device that never blocks serves them on the event loop. It is built with a
//!   [`LoopHandle`](crate::event_loop::LoopHandle); `activate` boxes the queues into a
//!   subscriber and calls `LoopHandle::add`, keeping the `Registration`; `reset` calls
//!   `Registration::remove`, which returns when the subscriber is off the loop, and
//!   drops it.
//! * A device that does blocking I/O has threads of its own, **spawned when it is built**
//!   and waiting for an activation: after all devices exist every other thread drops the
//!   capabilities these threads keep, and a vCPU thread could not hand on what it no
//!   longer has. `reset` waits until the threads have let go of queues and memory.

pub mod balloon;
pub mod fs;
pub mod interrupt;
pub mod mem;
pub mod mmio;
pub mod net;
pub mod pump;
pub mod rng;
pub mod vsock;

use thiserror::Error;
use virtio_bindings::bindings::virtio_config::VIRTIO_F_VERSION_1;
use virtio_bindings::bindings::virtio_ring::{
    VIRTIO_RING_F_EVENT_IDX, VIRTIO_RING_F_INDIRECT_DESC,
};

use crate::event_loop::LoopError;
use crate::memory::GuestMemory;
use pump::QueuePump;

/// Feature bits every device gets from the transport (virtio 1.2, section 6).
pub const TRANSPORT_FEATURES: u64 =
    (1 << VIRTIO_F_VERSION_1) | (1 << VIRTIO_RING_F_EVENT_IDX) | (1 << VIRTIO_RING_F_INDIRECT_DESC);

/// The device id of an empty slot.
pub const VIRTIO_ID_NONE: u32 = 0;

/// A device behind a virtio transport.
///
/// The transport calls `activate` at most once between two calls of `reset`, and never
/// calls `reset` on a device that is not active.
pub trait VirtioDevice: Send {
    /// Device id (virtio 1.2, section 5).
    fn id(&self) -> u32;

    /// Name for logs.
    fn name(&self) -> &'static str;

    /// Largest size of each queue, a power of two; the number of queues is its length.
    fn queue_sizes(&self) -> &[u16];

    /// Device-specific feature bits; the transport adds [`TRANSPORT_FEATURES`].
    fn features(&self) -> u64;

    /// Reads the configuration space at `offset`. Bytes past its end stay 0; `offset` and
    /// length are the guest's.
    fn read_config(&self, offset: u64, data: &mut [u8]);

    /// Changes with the configuration space, so that a driver can tell whether what it read
    /// in parts belongs together (virtio 1.2, 2.5.3).
    fn config_generation(&self) -> u32 {
        0
    }

    /// Takes over the queues at DRIVER_OK: validated, and frozen until `reset`.
    ///
    /// Must see to it that each queue is processed once without a kick (the transport
    /// signals every kick descriptor right after this call). On an error the transport
    /// sets DEVICE_NEEDS_RESET, and the device must be as if never activated.
    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError>;

    /// Stops: when it returns, nothing uses the queues or the guest's memory any more.
    fn reset(&mut self);
}

/// What a device gets to work with.
pub struct Activation {
    /// The guest's RAM.
    pub mem: GuestMemory,
    /// One per entry of [`VirtioDevice::queue_sizes`], in that order.
    pub queues: Vec<QueuePump>,
    /// Feature bits both sides agreed on.
    pub features: u64,
}

/// Why a device could not be activated.
#[derive(Debug, Error)]
pub enum ActivateError {
    /// The driver set up another number of queues than the device has.
    #[error("{got} queues were set up, {want} are needed")]
    QueueCount {
        /// Queues handed over.
        got: usize,
        /// Queues the device has.
        want: usize,
    },
    /// The event loop did not take the device.
    #[error("the device cannot join the event loop")]
    Loop(#[from] LoopError),
    /// The thread serving the device is gone.
    #[error("the thread serving the device has ended")]
    WorkerGone,
    /// The host refused a resource.
    #[error("the host refused a resource")]
    Host(#[from] std::io::Error),
}

/// Copies the part of a configuration space that `offset` and `data` select.
///
/// Bytes of `data` past the end of `space` are left as they are.
pub fn copy_config(space: &[u8], offset: u64, data: &mut [u8]) {
    let Some(rest) = usize::try_from(offset).ok().and_then(|at| space.get(at..)) else {
        return;
    };
    for (to, from) in data.iter_mut().zip(rest) {
        *to = *from;
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn config_reads_stop_at_the_end() {
        let space = [1, 2, 3, 4];
        let read = |offset, len| {
            let mut data = vec![0; len];
            copy_config(&space, offset, &mut data);
            data
        };
        assert_eq!(read(0, 4), [1, 2, 3, 4]);
        assert_eq!(read(2, 4), [3, 4, 0, 0]);
        assert_eq!(read(4, 1), [0]);
        assert_eq!(read(u64::MAX, 8), [0; 8]);
    }
}
