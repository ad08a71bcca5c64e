//! The resident shim: what its task calls share.

use std::sync::Arc;
use std::time::Duration;

use tokio::sync::watch;
use tokio::time::timeout;

use crate::container::Containers;
use crate::container::process::StateError;
use crate::error::{Error, chain, finish};
use crate::events::Events;
use crate::hooks;
use crate::sandbox::state_file::StateFile;
use crate::sandbox::{self, Sandbox, Slot, cleanup};
use crate::sandbox_api::pod;

/// How long a shim without any container waits for its first.
const FIRST_CONTAINER: Duration = Duration::from_secs(60);
/// How long a shim whose last container went waits for Shutdown.
const LAST_CONTAINER: Duration = Duration::from_secs(10);
/// How long the exits of a stopped machine's containers may take to be known.
const EXITS: Duration = Duration::from_millis(500);
/// How long an unfinished Create may take to notice that it is cancelled.
const CANCEL: Duration = Duration::from_secs(2);

/// The shim of one sandbox.
pub struct Shim {
    /// Record of what exists on the host.
    pub file: Arc<StateFile>,
    /// The way to containerd.
    pub events: Events,
    /// Its only sandbox.
    pub slot: Slot,
    /// Its pod, if the sandbox service made one.
    pub pod: pod::Slot,
    /// The sandbox's containers.
    pub containers: Containers,
    ending: watch::Sender<bool>,
    ended: watch::Sender<bool>,
}

impl Shim {
    /// A shim without a sandbox.
    pub fn new(file: Arc<StateFile>, events: Events) -> Self {
        Self {
            file,
            events,
            slot: Slot::default(),
            pod: pod::Slot::default(),
            containers: Containers::default(),
            ending: watch::Sender::new(false),
            ended: watch::Sender::new(false),
        }
    }

    /// Runs a verb that changes something, to its end, whether or not its caller waits.
    ///
    /// # Errors
    /// The verb's, as the status containerd gets.
    pub async fn run<T, F>(
        self: &Arc<Self>,
        verb: &'static str,
        id: &str,
        work: impl FnOnce(Arc<Self>) -> F,
    ) -> ttrpc::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        log::debug!("{verb} {id}");
        let result = tokio::spawn(work(self.clone())).await;
        let result = result.unwrap_or(Err(Error::Panicked(verb)));
        finish(verb, id, result.map_err(|error| self.explain(error)))
    }

    /// A process that is found stopped may be so because its machine died, of which
    /// the caller has not heard yet.
    fn explain(&self, error: Error) -> Error {
        let Error::State(state @ StateError::Wrong { .. }) = error else {
            return error;
        };
        match self.slot.get().and_then(|sandbox| sandbox.died_of()) {
            Some(reason) => Error::Died { state, reason },
            None => error,
        }
    }

    /// Puts the booted machine in its slot; a failed boot is the end of the only sandbox.
    ///
    /// # Errors
    /// The boot's, once everything that was made for it is gone.
    pub async fn settle(&self, booted: Result<Sandbox, Error>) -> Result<Arc<Sandbox>, Error> {
        match booted {
            Ok(sandbox) => {
                let sandbox = Arc::new(sandbox);
                self.slot.ready(sandbox.clone());
                Ok(sandbox)
            }
            Err(error) => {
                drop(self.slot.end());
                hooks::poststop_all(&self.file).await;
                sandbox::release(self.file.clone()).await;
                Err(error)
            }
        }
    }

    /// The id of its sandbox, which `start` was given.
    pub fn id(&self) -> String {
        self.file.id()
    }

    /// Becomes true when the shim was told to end: an unfinished boot gives up.
    pub fn ending(&self) -> watch::Receiver<bool> {
        self.ending.subscribe()
    }

    /// Becomes true when the sandbox is gone and the process may exit.
    pub fn ended(&self) -> watch::Receiver<bool> {
        self.ended.subscribe()
    }

    /// Ends the sandbox, whatever state it is in, and then the shim. Any number of
    /// callers may ask; all return when it is done.
    pub async fn end(&self) {
        if self.ending.send_replace(true) {
            // The sender lives in `self`, so waiting cannot fail.
            drop(self.ended().wait_for(|ended| *ended).await);
            return;
        }
        let mut count = self.containers.count();
        if !self.containers.any_ready() {
            // A Create that is under way cleans up after itself.
            drop(timeout(CANCEL, count.wait_for(|count| *count == 0)).await);
        }
        if self.containers.any_ready() {
            // Of tasks whose shim goes away containerd publishes the exit itself.
            self.events.close();
        }
        match self.slot.end() {
            Some(sandbox) => self.end_machine(&sandbox).await,
            None => sandbox::release(self.file.clone()).await,
        }
        // Those who wait for what still ran, as with `now`, get its exit.
        if timeout(EXITS, self.containers.all_ended()).await.is_err() {
            log::warn!("an exit was not told before the shim's end");
        }
        self.events.flush().await;
        // Before anybody sees the connection close: containerd then runs `delete`,
        // which should find nothing left to do.
        if let Err(error) = cleanup::remove_shim(&self.file) {
            log::error!("clean-up: {}", chain(&error));
        }
        self.ended.send_replace(true);
    }

    /// Ends the machine and frees what the host had for it. Hooks still find the files.
    pub async fn end_machine(&self, sandbox: &Arc<Sandbox>) {
        if !self.file.state().hooked.is_empty() {
            sandbox.end_vm().await;
            hooks::poststop_all(&self.file).await;
        }
        sandbox.stop().await;
    }

    /// Ends a shim nobody needs: containerd died between `start` and Create, or
    /// after the last Delete. A pod may be without containers for as long as it likes.
    pub async fn end_when_abandoned(self: Arc<Self>) {
        let mut count = self.containers.count();
        let mut limit = FIRST_CONTAINER;
        loop {
            if timeout(limit, count.wait_for(|count| *count > 0))
                .await
                .is_err()
            {
                if self.pod.get().is_some() {
                    return;
                }
                log::warn!("no container for {} s, the shim ends", limit.as_secs());
                return self.end().await;
            }
            drop(count.wait_for(|count| *count == 0).await);
            limit = LAST_CONTAINER;
        }
    }
}
