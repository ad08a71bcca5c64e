//! Where the machine's end is announced: by a vCPU, a device or the control socket, from
//! any thread; the main thread waits for it on the event loop. The first reason counts.

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use crate::eventfd;
use crate::exit::Exit;

#[derive(Debug)]
struct State {
    exit: Mutex<Option<Exit>>,
    clean_end_announced: AtomicBool,
    event: EventFd,
}

/// A handle; cheap to clone.
#[derive(Clone, Debug)]
pub struct ExitLatch {
    state: Arc<State>,
}

impl ExitLatch {
    /// A latch nobody has tripped.
    pub fn new() -> std::io::Result<Self> {
        Ok(Self {
            state: Arc::new(State {
                exit: Mutex::new(None),
                clean_end_announced: AtomicBool::new(false),
                event: EventFd::new(EFD_NONBLOCK)?,
            }),
        })
    }

    /// The machine ends with `exit`, unless it already ended otherwise.
    pub fn trip(&self, exit: Exit) {
        let mut first = self.lock();
        if first.is_none() {
            *first = Some(exit);
            eventfd::raise(&self.state.event);
        }
    }

    /// The guest says that its next reset is the end of its work, not a crash.
    pub fn announce_clean_end(&self) {
        self.state.clean_end_announced.store(true, Ordering::SeqCst);
    }

    /// The guest reset the machine.
    pub fn reset(&self) {
        let clean = self.state.clean_end_announced.load(Ordering::SeqCst);
        self.trip(if clean { Exit::Clean } else { Exit::Reset });
    }

    /// How the machine ended, if it has.
    pub fn exit(&self) -> Option<Exit> {
        *self.lock()
    }

    fn lock(&self) -> std::sync::MutexGuard<'_, Option<Exit>> {
        self.state
            .exit
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }
}

/// On the loop, a tripped latch only has to end the wait; who runs the loop looks.
impl MutEventSubscriber for ExitLatch {
    fn init(&mut self, ops: &mut EventOps) {
        if let Err(error) = ops.add(Events::new(&self.state.event, EventSet::IN)) {
            log::error!("the event loop cannot wait for the end of the machine: {error}");
            self.trip(Exit::Internal);
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {}
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_reason_counts() {
        let latch = ExitLatch::new().unwrap();
        assert_eq!(latch.exit(), None);
        latch.trip(Exit::TripleFault);
        latch.trip(Exit::Stopped);
        assert_eq!(latch.exit(), Some(Exit::TripleFault));
    }

    #[test]
    fn a_reset_is_clean_only_when_announced() {
        let latch = ExitLatch::new().unwrap();
        latch.reset();
        assert_eq!(latch.exit(), Some(Exit::Reset));
        let latch = ExitLatch::new().unwrap();
        latch.announce_clean_end();
        latch.reset();
        assert_eq!(latch.exit(), Some(Exit::Clean));
    }
}
