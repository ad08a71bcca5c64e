//! The pod that CreateSandbox made: what the task service has to know of it.
//!
//! ```text
//!           Create            Start                Stop, or the machine's end
//!  nothing --------> created --------> running --------------------------> ended
//!                       +---------------------- Stop ------------------------^
//! ```

use std::path::PathBuf;
use std::sync::{Mutex, OnceLock, PoisonError};
use std::time::SystemTime;

use thiserror::Error;
use tokio::sync::watch;

use crate::container::oci::Spec;
use crate::container::process::Exit;

/// A pod without a pause container.
#[derive(Debug)]
pub struct Pod {
    /// Its sandbox's id.
    pub id: String,
    /// What its machine is booted for.
    pub spec: Spec,
    /// For the guest's kernel command line.
    pub kernel_params: String,
    /// Files of its containers' `/etc`.
    pub etc: Vec<PathBuf>,
    started_at: Mutex<Option<SystemTime>>,
    exit: watch::Sender<Option<Exit>>,
}

/// The wrong moment for a verb, or the wrong sandbox.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum PodError {
    /// This shim has no such sandbox.
    #[error("sandbox {0} does not exist")]
    NotFound(String),
    /// It was created before.
    #[error("sandbox {0} exists already")]
    Exists(String),
    /// The shim is in use by the task service.
    #[error("sandbox {0} cannot be created: a container without one runs in this shim")]
    InUse(String),
    /// It runs already.
    #[error("sandbox {0} was started already")]
    Started(String),
    /// It does not run.
    #[error("sandbox {0} is not running")]
    NotRunning(String),
}

impl Pod {
    /// A pod that is not started.
    pub fn new(id: String, spec: Spec, kernel_params: String, etc: Vec<PathBuf>) -> Self {
        Self {
            id,
            spec,
            kernel_params,
            etc,
            started_at: Mutex::default(),
            exit: watch::Sender::new(None),
        }
    }

    /// Notes that its machine is up. Returns since when.
    pub fn started(&self) -> SystemTime {
        let now = SystemTime::now();
        let mut started = self
            .started_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        *started.get_or_insert(now)
    }

    /// When it was started, if it was.
    pub fn started_at(&self) -> Option<SystemTime> {
        *self
            .started_at
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
    }

    /// Notes its end; only the first one counts.
    pub fn ended(&self, exit: Exit) {
        self.exit.send_if_modified(|known| {
            let first = known.is_none();
            known.get_or_insert(exit);
            first
        });
    }

    /// How it ended, if it did.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for its end, however long that takes.
    pub async fn wait(&self) -> Exit {
        let mut exit = self.exit.subscribe();
        // The sender lives in `self`, so waiting cannot fail.
        let ended = exit.wait_for(Option::is_some).await;
        ended.ok().and_then(|exit| *exit).unwrap_or(Exit::now(0))
    }
}

/// The shim's pod, if it was made by the sandbox service.
#[derive(Debug, Default)]
pub struct Slot(OnceLock<Pod>);

impl Slot {
    /// The pod, whatever became of it.
    pub fn get(&self) -> Option<&Pod> {
        self.0.get()
    }

    /// The pod of this id.
    ///
    /// # Errors
    /// [`PodError::NotFound`].
    pub fn of(&self, id: &str) -> Result<&Pod, PodError> {
        let pod = self.get().filter(|pod| pod.id == id);
        pod.ok_or_else(|| PodError::NotFound(id.to_owned()))
    }

    /// Puts the created pod in place.
    ///
    /// # Errors
    /// [`PodError::Exists`].
    pub fn fill(&self, pod: Pod) -> Result<(), PodError> {
        self.0.set(pod).map_err(|pod| PodError::Exists(pod.id))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pod() -> Pod {
        Pod::new("p".to_owned(), Spec::default(), String::new(), Vec::new())
    }

    #[test]
    fn a_shim_has_one_pod_and_knows_no_other() {
        let slot = Slot::default();
        assert_eq!(slot.of("p").err(), Some(PodError::NotFound("p".to_owned())));
        slot.fill(pod()).unwrap();
        assert_eq!(slot.fill(pod()), Err(PodError::Exists("p".to_owned())));
        assert_eq!(slot.of("p").map(|pod| pod.id.as_str()), Ok("p"));
        assert!(slot.of("q").is_err());
    }

    #[tokio::test]
    async fn a_pod_ends_once_for_all_who_wait() {
        let pod = pod();
        assert_eq!((pod.started_at(), pod.exit()), (None, None));
        assert_eq!(Some(pod.started()), pod.started_at());
        let first = Exit::now(137);
        let (early, ()) = tokio::join!(pod.wait(), async {
            pod.ended(first);
            pod.ended(Exit::now(0));
        });
        assert_eq!((early, pod.wait().await), (first, first));
    }
}
