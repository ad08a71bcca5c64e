//! The balloon device (virtio 1.2, 5.5), as far as it reports free pages (5.5.6.7): the
//! guest tells which memory it does not use, and the host has it back until the guest
//! touches it again. Nobody ever inflates it.

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_BALLOON;
use virtio_queue::DescriptorChain;

use super::pump::QueuePump;
use super::{ActivateError, Activation, VirtioDevice};
use crate::event_loop::{LoopHandle, Registration};
use crate::memory::{self, GuestMemory};

/// VIRTIO_BALLOON_F_REPORTING (5.5.3).
const REPORTING: u64 = 1 << 5;

/// Inflating and deflating (which a driver sets up in any case), then reporting (5.5.2).
/// Linux reports 32 ranges at a time.
const QUEUE_SIZES: &[u16] = &[8, 8, 32];

/// Most bytes of one report: 32 ranges of the largest pieces in which Linux keeps free
/// memory, 4 MiB.
const MAX_REPORT_BYTES: u64 = 128 << 20;

/// The balloon device. Its configuration space is all zeroes: no page is wanted.
pub struct Balloon {
    handle: LoopHandle,
    registration: Option<Registration>,
}

impl Balloon {
    /// A device that will serve its queues on the loop behind `handle`.
    pub fn new(handle: LoopHandle) -> Self {
        Self {
            handle,
            registration: None,
        }
    }
}

impl VirtioDevice for Balloon {
    fn id(&self) -> u32 {
        VIRTIO_ID_BALLOON
    }

    fn name(&self) -> &'static str {
        "balloon"
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        REPORTING
    }

    fn read_config(&self, _offset: u64, _data: &mut [u8]) {}

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let got = activation.queues.len();
        let [inflate, deflate, reports] = <[QueuePump; 3]>::try_from(activation.queues)
            .map_err(|_| ActivateError::QueueCount { got, want: 3 })?;
        let worker = Worker {
            ignored: [inflate, deflate],
            reports: reports.with_max_chain_bytes(MAX_REPORT_BYTES),
            mem: activation.mem,
        };
        self.registration = Some(self.handle.add(Box::new(worker))?);
        Ok(())
    }

    fn reset(&mut self) {
        // An error means that the loop, and the worker with it, is gone already.
        drop(self.registration.take().map(Registration::remove));
    }
}

struct Worker {
    /// Nothing was asked for, so nothing is expected; a chain goes back as it came.
    ignored: [QueuePump; 2],
    reports: QueuePump,
    mem: GuestMemory,
}

impl MutEventSubscriber for Worker {
    fn init(&mut self, ops: &mut EventOps) {
        let queues = self.ignored.iter_mut().chain([&mut self.reports]);
        for queue in queues {
            if let Err(error) = ops.add(Events::new(queue.kick(), EventSet::IN)) {
                log::error!("balloon: the event loop refused a queue: {error}");
                queue.fail();
            }
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        for queue in &mut self.ignored {
            queue.ack_kick();
            queue.drain(|_| Some(0));
        }
        self.reports.ack_kick();
        let mem = &self.mem;
        self.reports.drain(|chain| Some(discard(mem, &chain)));
    }
}

/// Gives the host back the pages that the chain's buffers are. The guest has promised that
/// nobody uses them before the chain is given back.
fn discard(mem: &GuestMemory, chain: &DescriptorChain<GuestMemory>) -> u32 {
    for buffer in chain.clone().writable() {
        memory::discard(mem, buffer.addr(), buffer.len().into());
    }
    0
}

#[cfg(test)]
mod tests {
    use vm_memory::{Bytes, GuestAddress};

    use super::*;
    use crate::event_loop::EventLoop;
    use crate::testing::{Buffer, GuestQueue, activated, ram};

    /// An active balloon with its queues and the loop that serves them.
    fn machine(mem: &GuestMemory) -> ([GuestQueue; 3], EventLoop, Balloon) {
        let queues = [1, 2, 3].map(|mib| GuestQueue::new(mem, mib << 20, 8));
        let mut event_loop = EventLoop::new().unwrap();
        let pumps = queues.iter().map(GuestQueue::pump).collect();
        let balloon = Balloon::new(event_loop.handle());
        let balloon = activated(balloon, mem, pumps, &mut event_loop);
        (queues, event_loop, balloon)
    }

    /// A free range as the driver reports it.
    fn free(address: u64, len: u32) -> Buffer {
        Buffer {
            address,
            len,
            writable: true,
        }
    }

    #[test]
    fn reported_pages_are_gone_and_their_neighbours_stay() {
        let mem = ram();
        let (mut queues, mut event_loop, _balloon) = machine(&mem);
        for page in 0..8 {
            let at = GuestAddress(0x80_0000 + page * 4096);
            mem.write_obj(7u64, at).unwrap();
        }
        let reports = &mut queues[2];
        // Whole pages are taken; of one that is reported in part nothing is.
        let ranges = [
            free(0x80_0000, 8192),
            free(0x80_2010, 4096),
            free(0x80_4000, 12_288),
        ];
        let head = reports.add(&ranges);
        reports.kick().write(1).unwrap();
        event_loop.run_for(100);
        assert_eq!(reports.used(), Some((head, 0)));
        let left: Vec<u64> = (0..8)
            .map(|page| mem.read_obj(GuestAddress(0x80_0000 + page * 4096)).unwrap())
            .collect();
        assert_eq!(left, [0, 0, 7, 7, 0, 0, 0, 7]);
    }

    #[test]
    fn what_is_not_ram_breaks_the_queue_and_nothing_else() {
        let mem = ram();
        let (mut queues, mut event_loop, _balloon) = machine(&mem);
        // A page that nobody wants is taken and given back.
        let page = queues[0].readable(&[0; 4]);
        let head = queues[0].add(&[page]);
        queues[0].kick().write(1).unwrap();
        event_loop.run_for(100);
        assert_eq!(queues[0].used(), Some((head, 0)));
        queues[2].add(&[free(0xd000_0000, 4096)]);
        queues[2].kick().write(1).unwrap();
        event_loop.run_for(100);
        assert_eq!(queues[2].used(), None);
        assert!(queues[2].interrupt().needs_reset());
    }
}
