//! The one event loop of the process, run by the main thread.
//!
//! Everything that waits without blocking lives here: the console's input, hang-up of the
//! control socket, the end of the machine, and the queues of devices that never block (all
//! but fs). A device that does blocking I/O has a thread of its own.
//!
//! Devices are switched on and off by vCPU threads (a write to their status register).
//! They reach the loop through a [`LoopHandle`], whose calls wait until the loop has
//! carried them out: once [`Registration::remove`] returned, the subscriber is off the
//! loop and back in the caller's hands.

use event_manager::{
    EventManager, MutEventSubscriber, RemoteEndpoint, SubscriberId, SubscriberOps,
};
use thiserror::Error;

/// What lives on the loop.
pub type Subscriber = Box<dyn MutEventSubscriber + Send>;

/// Why the loop failed.
#[derive(Debug, Error)]
pub enum LoopError {
    /// epoll or eventfd failed, or the loop has ended.
    #[error("the event loop failed")]
    Manager(#[from] event_manager::Error),
}

/// The loop itself; owned and run by the main thread.
pub struct EventLoop {
    manager: EventManager<Subscriber>,
}

impl EventLoop {
    /// An empty loop.
    pub fn new() -> Result<Self, LoopError> {
        Ok(Self {
            manager: EventManager::new()?,
        })
    }

    /// A handle for other threads.
    pub fn handle(&self) -> LoopHandle {
        LoopHandle {
            endpoint: self.manager.remote_endpoint(),
        }
    }

    /// Adds a subscriber that stays for good.
    pub fn add(&mut self, subscriber: Subscriber) {
        self.manager.add_subscriber(subscriber);
    }

    /// Waits for events, without a limit of time, and dispatches them once.
    pub fn run_once(&mut self) -> Result<(), LoopError> {
        self.manager.run()?;
        Ok(())
    }

    /// Dispatches the events that are ready now, waiting at most `timeout_ms`.
    #[cfg(test)]
    pub fn run_for(&mut self, timeout_ms: i32) -> usize {
        self.manager.run_with_timeout(timeout_ms).unwrap()
    }
}

/// Lets another thread put subscribers on the loop.
#[derive(Clone)]
pub struct LoopHandle {
    endpoint: RemoteEndpoint<Subscriber>,
}

impl LoopHandle {
    /// Puts `subscriber` on the loop and waits until it is there.
    ///
    /// Must not be called from the loop's own thread, which would wait for itself. Fails
    /// when the loop has ended.
    pub fn add(&self, subscriber: Subscriber) -> Result<Registration, LoopError> {
        let id = self.endpoint.call_blocking(move |ops| {
            Ok::<_, event_manager::Error>(ops.add_subscriber(subscriber))
        })?;
        Ok(Registration {
            endpoint: self.endpoint.clone(),
            id,
        })
    }
}

/// A subscriber's place on the loop. Dropping it leaves the subscriber where it is.
pub struct Registration {
    endpoint: RemoteEndpoint<Subscriber>,
    id: SubscriberId,
}

impl Registration {
    /// Takes the subscriber off the loop and waits until it is off, so that none of its
    /// code runs any more. Same rule as [`LoopHandle::add`].
    pub fn remove(self) -> Result<Subscriber, LoopError> {
        let id = self.id;
        Ok(self
            .endpoint
            .call_blocking(move |ops| ops.remove_subscriber(id))?)
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Arc;
    use std::sync::atomic::{AtomicUsize, Ordering};

    use event_manager::{EventOps, EventSet, Events};
    use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

    use super::*;

    struct Counter {
        event: EventFd,
        seen: Arc<AtomicUsize>,
    }

    impl MutEventSubscriber for Counter {
        fn init(&mut self, ops: &mut EventOps) {
            ops.add(Events::new(&self.event, EventSet::IN)).unwrap();
        }

        fn process(&mut self, _events: Events, _ops: &mut EventOps) {
            self.event.read().unwrap();
            self.seen.fetch_add(1, Ordering::SeqCst);
        }
    }

    #[test]
    fn another_thread_adds_and_removes_a_subscriber() {
        let mut event_loop = EventLoop::new().unwrap();
        let handle = event_loop.handle();
        let event = EventFd::new(EFD_NONBLOCK).unwrap();
        let kick = event.try_clone().unwrap();
        let seen = Arc::new(AtomicUsize::new(0));
        let counter = Box::new(Counter {
            event,
            seen: seen.clone(),
        });
        let other = std::thread::spawn(move || {
            let registration = handle.add(counter).unwrap();
            kick.write(1).unwrap();
            drop(registration.remove().unwrap());
            kick.write(1).unwrap();
        });
        while !other.is_finished() {
            event_loop.run_for(10);
        }
        other.join().unwrap();
        event_loop.run_for(0);
        assert!(seen.load(Ordering::SeqCst) <= 1, "ran after its removal");
    }

    #[test]
    fn a_call_to_an_ended_loop_fails_instead_of_waiting() {
        let event_loop = EventLoop::new().unwrap();
        let handle = event_loop.handle();
        drop(event_loop);
        let counter = Box::new(Counter {
            event: EventFd::new(EFD_NONBLOCK).unwrap(),
            seen: Arc::default(),
        });
        assert!(handle.add(counter).is_err());
    }
}
