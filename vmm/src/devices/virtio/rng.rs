//! The entropy device (virtio 1.2, 5.4): the guest posts buffers, we fill them.
//!
//! The smallest device there is; copy this file to begin another one. The struct is what
//! the transport sees, [`Worker`] is what lives on the event loop while the device is
//! active.

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_RNG;
use virtio_queue::DescriptorChain;
use vm_memory::Bytes;

use super::pump::QueuePump;
use super::{ActivateError, Activation, VirtioDevice};
use crate::event_loop::{LoopHandle, Registration};
use crate::memory::GuestMemory;

/// Most bytes given per request: the guest chooses the buffer's size, and must not make
/// the VMM allocate or compute without a bound. Getting less than asked for is normal
/// (virtio 1.2, 5.4.6.2).
const MAX_REQUEST_LEN: usize = 64 * 1024;
/// Linux keeps one request in flight.
const QUEUE_SIZES: &[u16] = &[8];

/// The entropy device.
pub struct Rng {
    handle: LoopHandle,
    registration: Option<Registration>,
}

impl Rng {
    /// A device that will serve its queue on the loop behind `handle`.
    pub fn new(handle: LoopHandle) -> Self {
        Self {
            handle,
            registration: None,
        }
    }
}

impl VirtioDevice for Rng {
    fn id(&self) -> u32 {
        VIRTIO_ID_RNG
    }

    fn name(&self) -> &'static str {
        "rng"
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let got = activation.queues.len();
        let [queue] = <[QueuePump; 1]>::try_from(activation.queues)
            .map_err(|_| ActivateError::QueueCount { got, want: 1 })?;
        self.registration = Some(self.handle.add(Box::new(Worker { queue }))?);
        Ok(())
    }

    fn reset(&mut self) {
        // An error means that the loop, and the worker with it, is gone already.
        drop(self.registration.take().map(Registration::remove));
    }
}

struct Worker {
    queue: QueuePump,
}

impl MutEventSubscriber for Worker {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(self.queue.kick(), EventSet::IN)) {
            log::error!("rng: the event loop refused the queue: {error}");
            self.queue.fail();
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.queue.ack_kick();
        self.queue.drain(|chain| Some(fill(&chain)));
    }
}

/// Fills the chain's writable buffers; returns how many bytes were written.
fn fill(chain: &DescriptorChain<GuestMemory>) -> u32 {
    let mut written = 0;
    for buffer in chain.clone().writable() {
        let len = usize::try_from(buffer.len())
            .unwrap_or(usize::MAX)
            .min(MAX_REQUEST_LEN - written);
        let mut random = vec![0; len];
        if let Err(error) = getrandom::fill(&mut random) {
            log::warn!(target: "guest", "rng: the host gave no random bytes: {error}");
            break;
        }
        if chain.memory().write_slice(&random, buffer.addr()).is_err() {
            break;
        }
        written += len;
    }
    // At most MAX_REQUEST_LEN.
    written as u32
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::event_loop::EventLoop;
    use crate::testing::{GuestQueue, ram};

    fn with_rng(test: impl FnOnce(&mut GuestQueue, &mut EventLoop)) {
        let mem = ram();
        let mut guest = GuestQueue::new(&mem, 0x10_0000, 8);
        let mut event_loop = EventLoop::new().unwrap();
        let mut rng = Rng::new(event_loop.handle());
        let queues = vec![guest.pump()];
        let vcpu = std::thread::spawn(move || {
            let activation = Activation {
                mem,
                queues,
                features: 0,
            };
            rng.activate(activation).unwrap();
            rng
        });
        while !vcpu.is_finished() {
            event_loop.run_for(10);
        }
        let mut rng = vcpu.join().unwrap();
        test(&mut guest, &mut event_loop);
        let vcpu = std::thread::spawn(move || rng.reset());
        while !vcpu.is_finished() {
            event_loop.run_for(10);
        }
        vcpu.join().unwrap();
        let buffer = guest.writable(8);
        guest.add(&[buffer]);
        guest.kick().write(1).unwrap();
        event_loop.run_for(0);
        while guest.used().is_some() {}
        assert_eq!(guest.bytes(buffer), [0; 8], "written after the reset");
    }

    #[test]
    fn buffers_are_filled() {
        with_rng(|guest, event_loop| {
            let buffers = [guest.writable(100), guest.writable(28)];
            let head = guest.add(&buffers);
            guest.kick().write(1).unwrap();
            event_loop.run_for(100);
            assert_eq!(guest.used(), Some((head, 128)));
            assert!(guest.interrupted());
            for buffer in buffers {
                assert!(guest.bytes(buffer).iter().any(|byte| *byte != 0));
            }
        });
    }

    #[test]
    fn a_request_yields_at_most_64_kib() {
        with_rng(|guest, event_loop| {
            let big = guest.writable(100 << 10);
            guest.add(&[big, big]);
            guest.kick().write(1).unwrap();
            event_loop.run_for(100);
            assert_eq!(guest.used().unwrap().1, 64 << 10);
            let bytes = guest.bytes(big);
            assert!(bytes[64 << 10..].iter().all(|byte| *byte == 0));
        });
    }

    #[test]
    fn a_request_without_room_yields_nothing() {
        with_rng(|guest, event_loop| {
            let read_only = guest.readable(&[7; 16]);
            guest.add(&[read_only]);
            guest.kick().write(1).unwrap();
            event_loop.run_for(100);
            assert_eq!(guest.used().unwrap().1, 0);
            assert_eq!(guest.bytes(read_only), [7; 16]);
        });
    }
}
