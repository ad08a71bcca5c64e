//! The virtio side of the memory device, and the handle to resize it.

use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use thiserror::Error;
use virtio_bindings::virtio_ids::VIRTIO_ID_MEM;
use virtio_queue::DescriptorChain;
use vm_memory::GuestAddress;

use super::blocks::{Blocks, CONFIG_LEN};
use super::request::{Request, Response};
use super::{BLOCK_SIZE, SECTION_SIZE};
use crate::devices::virtio::interrupt::Interrupt;
use crate::devices::virtio::pump::QueuePump;
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice, copy_config};
use crate::event_loop::{LoopHandle, Registration};
use crate::memory::{self, GuestMemory, Hotplug, MemoryError};

/// Linux keeps one request in flight.
const QUEUE_SIZES: &[u16] = &[8];

/// VIRTIO_MEM_F_UNPLUGGED_INACCESSIBLE (5.15.3): the driver must not even read what is not
/// plugged, which could cost the host memory.
const UNPLUGGED_INACCESSIBLE: u64 = 1 << 1;

/// How long the guest may take to plug what it was asked to, and how long without getting
/// anywhere: gigabytes take well under a second on silicon, many on an emulated host.
const DEADLINE: Duration = Duration::from_secs(30);
const STALL: Duration = Duration::from_secs(5);

/// Why the device cannot be resized.
#[derive(Debug, Error)]
pub enum ResizeError {
    /// More than there is room for.
    #[error("{wanted} bytes cannot be plugged: the region has {region}, in blocks of 2 MiB")]
    Size {
        /// Bytes asked for.
        wanted: u64,
        /// Bytes there is room for.
        region: u64,
    },
    /// KVM took no further memory.
    #[error(transparent)]
    Memory(#[from] MemoryError),
}

/// What device, worker and control share.
struct Shared {
    state: Mutex<State>,
    /// Signalled when the driver has changed something, or seen what it is to change.
    changed: Condvar,
}

struct State {
    blocks: Blocks,
    generation: u32,
    /// Whether the driver has read what is requested now. Linux reads it between two of its
    /// rounds: what it unplugs from then on leaves it as much as that.
    seen: bool,
    hotplug: Box<dyn Opener>,
    /// There while the device is active.
    interrupt: Option<Interrupt>,
}

/// Opens the region as far as it is needed.
pub(super) trait Opener: Send {
    /// Opens the first `bytes` to guest and devices.
    fn open(&mut self, bytes: u64) -> Result<(), MemoryError>;
}

impl Opener for Hotplug {
    fn open(&mut self, bytes: u64) -> Result<(), MemoryError> {
        Hotplug::open(self, bytes)
    }
}

impl Shared {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// The memory device.
pub struct Mem {
    shared: Arc<Shared>,
    handle: LoopHandle,
    registration: Option<Registration>,
}

impl Mem {
    /// A device for what can be plugged into `hotplug`, served on the loop behind `handle`.
    pub fn new(hotplug: Hotplug, handle: LoopHandle) -> Self {
        let (base, size) = (hotplug.base(), hotplug.size());
        Self::with(Box::new(hotplug), base, size, handle)
    }

    pub(super) fn with(hotplug: Box<dyn Opener>, base: u64, size: u64, handle: LoopHandle) -> Self {
        let state = State {
            blocks: Blocks::new(base, size),
            generation: 0,
            seen: false,
            hotplug,
            interrupt: None,
        };
        Self {
            shared: Arc::new(Shared {
                state: Mutex::new(state),
                changed: Condvar::new(),
            }),
            handle,
            registration: None,
        }
    }

    /// The length of a region in which `bytes` can be plugged.
    pub fn region_for(bytes: u64) -> u64 {
        bytes.next_multiple_of(SECTION_SIZE)
    }

    /// A handle to resize it.
    pub fn control(&self) -> MemControl {
        MemControl {
            shared: self.shared.clone(),
        }
    }
}

impl VirtioDevice for Mem {
    fn id(&self) -> u32 {
        VIRTIO_ID_MEM
    }

    fn name(&self) -> &'static str {
        "mem"
    }

    fn queue_sizes(&self) -> &[u16] {
        QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        UNPLUGGED_INACCESSIBLE
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut state = self.shared.lock();
        copy_config(&state.blocks.config(), offset, data);
        if offset.saturating_add(data.len() as u64) >= CONFIG_LEN as u64 {
            state.seen = true;
            self.shared.changed.notify_all();
        }
    }

    fn config_generation(&self) -> u32 {
        self.shared.lock().generation
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let got = activation.queues.len();
        let [queue] = <[QueuePump; 1]>::try_from(activation.queues)
            .map_err(|_| ActivateError::QueueCount { got, want: 1 })?;
        let interrupt = queue.interrupt().clone();
        let worker = Worker {
            queue,
            mem: activation.mem,
            shared: self.shared.clone(),
        };
        self.registration = Some(self.handle.add(Box::new(worker))?);
        self.shared.lock().interrupt = Some(interrupt);
        Ok(())
    }

    /// What is plugged stays so: a driver that comes back finds it (5.15.5).
    fn reset(&mut self) {
        self.shared.lock().interrupt = None;
        // An error means that the loop, and the worker with it, is gone already.
        drop(self.registration.take().map(Registration::remove));
    }
}

struct Worker {
    queue: QueuePump,
    mem: GuestMemory,
    shared: Arc<Shared>,
}

impl MutEventSubscriber for Worker {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(self.queue.kick(), EventSet::IN)) {
            log::error!("mem: the event loop refused the queue: {error}");
            self.queue.fail();
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.queue.ack_kick();
        let (mem, shared) = (&self.mem, &self.shared);
        self.queue.drain(|chain| Some(serve(mem, shared, chain)));
    }
}

fn serve(mem: &GuestMemory, shared: &Shared, chain: DescriptorChain<GuestMemory>) -> u32 {
    let Some(request) = Request::read(mem, chain.clone()) else {
        return Response::Error.write(mem, chain);
    };
    let outcome = shared.lock().blocks.handle(&request);
    if let Some(range) = outcome.discard {
        // Not under the lock: it takes a while for gigabytes.
        memory::discard(mem, GuestAddress(range.start), range.end - range.start);
    }
    shared.changed.notify_all();
    outcome.response.write(mem, chain)
}

/// Changes how much is plugged.
#[derive(Clone)]
pub struct MemControl {
    shared: Arc<Shared>,
}

impl MemControl {
    /// Asks the guest to plug or unplug until it has `bytes`, rounded down to whole blocks.
    /// Where that is more than it was asked to have before, waits until it has them, or gets
    /// no nearer; it unplugs in its own time, and what it can. Returns how many bytes are
    /// plugged.
    pub fn resize(&self, bytes: u64) -> Result<u64, ResizeError> {
        self.resize_within(bytes, DEADLINE, STALL)
    }

    pub(super) fn resize_within(
        &self,
        bytes: u64,
        deadline: Duration,
        stall: Duration,
    ) -> Result<u64, ResizeError> {
        let bytes = bytes - bytes % BLOCK_SIZE;
        let mut state = self.shared.lock();
        let region = state.blocks.region();
        if bytes > region {
            return Err(ResizeError::Size {
                wanted: bytes,
                region,
            });
        }
        let usable = state.blocks.usable_for(bytes);
        // Before the driver is told that it may plug there.
        state.hotplug.open(usable)?;
        let shrinks = bytes < state.blocks.requested();
        state.blocks.request(bytes);
        state.generation = state.generation.wrapping_add(1);
        state.seen = false;
        let Some(interrupt) = state.interrupt.clone() else {
            // No driver yet: it reads what is requested when it comes.
            return Ok(state.blocks.plugged());
        };
        interrupt.signal_config();
        if shrinks {
            return Ok(state.blocks.plugged());
        }
        let end = Instant::now() + deadline;
        // What is plugged may just be on its way out, by an earlier and smaller request.
        while !state.seen || state.blocks.plugged() < bytes {
            let before = (state.seen, state.blocks.plugged());
            let left = end.saturating_duration_since(Instant::now()).min(stall);
            let wait = self
                .shared
                .changed
                .wait_timeout_while(state, left, |state| {
                    (state.seen, state.blocks.plugged()) == before
                });
            let (now, timed_out) = wait.unwrap_or_else(PoisonError::into_inner);
            state = now;
            if timed_out.timed_out() {
                break;
            }
        }
        Ok(state.blocks.plugged())
    }
}
