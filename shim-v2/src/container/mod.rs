//! Containers of the sandbox: each an init process and any number of execs.

pub mod labels;
pub mod logger;
pub mod metrics;
pub mod oci;
pub mod output;
pub mod output_fifo;
pub mod pod;
pub mod process;
pub mod rlimits;
pub mod rootfs;
pub mod spec;
pub mod stdio;
pub mod supervise;

use std::collections::HashMap;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use protobuf::well_known_types::any::Any;
use thiserror::Error;
use tokio::sync::watch;

use process::Process;
use rootfs::Shared;

/// Nothing, or something else, has this id.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum LookupError {
    /// No such container.
    #[error("container {0} does not exist")]
    NoContainer(String),
    /// No such exec in the container.
    #[error("container {0} has no process {1}")]
    NoExec(String, String),
    /// The id is taken.
    #[error("container {0} exists already")]
    Exists(String),
    /// The exec id is taken.
    #[error("container {0} has a process {1} already")]
    ExecExists(String, String),
}

/// A container.
pub struct Container {
    /// Its id.
    pub id: String,
    /// Its bundle.
    pub bundle: PathBuf,
    /// The process of the host that stands for it: what containerd is told.
    pub pid: u32,
    /// Its first process.
    pub init: Arc<Process>,
    /// What was made on the host for its files.
    pub shared: Shared,
    execs: Mutex<HashMap<String, Arc<Process>>>,
    oom_kills: Mutex<u64>,
    metrics: Mutex<Option<Any>>,
}

impl Container {
    /// A container without execs.
    pub fn new(id: String, bundle: PathBuf, pid: u32, init: Process, shared: Shared) -> Self {
        Self {
            id,
            bundle,
            pid,
            init: Arc::new(init),
            shared,
            execs: Mutex::default(),
            oom_kills: Mutex::default(),
            metrics: Mutex::default(),
        }
    }

    /// Notes how often the OOM killer has killed in it. `false` if that was known.
    pub fn note_oom_kills(&self, kills: u64) -> bool {
        let mut known = self
            .oom_kills
            .lock()
            .unwrap_or_else(PoisonError::into_inner);
        let more = kills > *known;
        if more {
            *known = kills;
        }
        more
    }

    /// The figures last read, if any were.
    pub fn last_metrics(&self) -> Option<Any> {
        self.metrics
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone()
    }

    /// Keeps figures for when the guest does not answer.
    pub fn keep_metrics(&self, metrics: &Any) {
        *self.metrics.lock().unwrap_or_else(PoisonError::into_inner) = Some(metrics.clone());
    }

    fn execs(&self) -> MutexGuard<'_, HashMap<String, Arc<Process>>> {
        self.execs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The init for an empty id, otherwise the exec.
    ///
    /// # Errors
    /// [`LookupError::NoExec`].
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, LookupError> {
        if exec_id.is_empty() {
            return Ok(self.init.clone());
        }
        let exec = self.execs().get(exec_id).cloned();
        exec.ok_or_else(|| LookupError::NoExec(self.id.clone(), exec_id.to_owned()))
    }

    /// Adds an exec.
    ///
    /// # Errors
    /// [`LookupError::ExecExists`].
    pub fn add_exec(&self, exec: Process) -> Result<(), LookupError> {
        use std::collections::hash_map::Entry;
        match self.execs().entry(exec.exec_id.clone()) {
            Entry::Occupied(entry) => {
                let exec_id = entry.key().clone();
                Err(LookupError::ExecExists(self.id.clone(), exec_id))
            }
            Entry::Vacant(entry) => {
                entry.insert(Arc::new(exec));
                Ok(())
            }
        }
    }

    /// Forgets an exec.
    pub fn remove_exec(&self, exec_id: &str) {
        self.execs().remove(exec_id);
    }

    /// All execs.
    pub fn all_execs(&self) -> Vec<Arc<Process>> {
        self.execs().values().cloned().collect()
    }
}

/// The containers of a sandbox by id, including those still being created.
pub struct Containers {
    by_id: Mutex<HashMap<String, Entry>>,
    count: watch::Sender<usize>,
}

enum Entry {
    Creating {
        /// Deleted before it was there.
        cancelled: bool,
    },
    Ready(Arc<Container>),
    /// Its hooks still run and its files are still there.
    Deleting,
}

/// An id that is taken while its container is created; given back when dropped.
pub struct Reservation<'a> {
    containers: &'a Containers,
    id: String,
    kept: bool,
}

impl Default for Containers {
    fn default() -> Self {
        Self {
            by_id: Mutex::default(),
            count: watch::Sender::new(0),
        }
    }
}

impl Containers {
    fn lock(&self) -> MutexGuard<'_, HashMap<String, Entry>> {
        self.by_id.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Takes an id for a container to be created.
    ///
    /// # Errors
    /// [`LookupError::Exists`].
    pub fn reserve(&self, id: &str) -> Result<Reservation<'_>, LookupError> {
        let mut by_id = self.lock();
        if by_id.contains_key(id) {
            return Err(LookupError::Exists(id.to_owned()));
        }
        by_id.insert(id.to_owned(), Entry::Creating { cancelled: false });
        self.count.send_replace(by_id.len());
        Ok(Reservation {
            containers: self,
            id: id.to_owned(),
            kept: false,
        })
    }

    /// A created container.
    ///
    /// # Errors
    /// [`LookupError::NoContainer`], also for one that is still being created.
    pub fn get(&self, id: &str) -> Result<Arc<Container>, LookupError> {
        match self.lock().get(id) {
            Some(Entry::Ready(container)) => Ok(container.clone()),
            _ => Err(LookupError::NoContainer(id.to_owned())),
        }
    }

    /// Begins to delete a created container: nobody finds it any more, and its id stays
    /// taken until [`Containers::remove`]. Returns whether no other is left.
    ///
    /// # Errors
    /// [`LookupError::NoContainer`] if somebody else was first.
    pub fn begin_delete(&self, id: &str) -> Result<bool, LookupError> {
        let mut by_id = self.lock();
        match by_id.get_mut(id) {
            Some(entry @ Entry::Ready(_)) => *entry = Entry::Deleting,
            _ => return Err(LookupError::NoContainer(id.to_owned())),
        }
        Ok(by_id.len() == 1)
    }

    /// Has a Create that is under way end without a container: its caller has given up.
    pub fn cancel(&self, id: &str) {
        if let Some(Entry::Creating { cancelled }) = self.lock().get_mut(id) {
            *cancelled = true;
        }
    }

    /// Forgets a container.
    pub fn remove(&self, id: &str) {
        let mut by_id = self.lock();
        by_id.remove(id);
        self.count.send_replace(by_id.len());
    }

    /// Whether a created container exists; one still being created does not count.
    pub fn any_ready(&self) -> bool {
        self.lock()
            .values()
            .any(|entry| !matches!(entry, Entry::Creating { .. }))
    }

    /// What stands for each created container on the host, and its init in the guest.
    pub fn pids(&self) -> Vec<(u32, u32)> {
        let by_id = self.lock();
        let ready = by_id.values().filter_map(|entry| match entry {
            // Of one that has ended the guest may have given the number to another process.
            Entry::Ready(container) if container.init.exit().is_none() => {
                Some((container.pid, container.init.guest_pid()?))
            }
            _ => None,
        });
        ready.collect()
    }

    /// Waits until the init of every created container has ended and was published.
    pub async fn all_ended(&self) {
        let created: Vec<_> = self
            .lock()
            .values()
            .filter_map(|entry| match entry {
                Entry::Ready(container) => Some(container.init.clone()),
                Entry::Creating { .. } | Entry::Deleting => None,
            })
            .collect();
        for init in created {
            init.wait().await;
        }
    }

    /// The number of ids taken, as it changes.
    pub fn count(&self) -> watch::Receiver<usize> {
        self.count.subscribe()
    }
}

impl Reservation<'_> {
    /// Puts the created container in place. `false` if it was cancelled meanwhile: the id
    /// is then free again.
    pub fn fill(mut self, container: Arc<Container>) -> bool {
        let mut by_id = self.containers.lock();
        if matches!(
            by_id.get(&self.id),
            Some(Entry::Creating { cancelled: true })
        ) {
            return false;
        }
        self.kept = true;
        by_id.insert(self.id.clone(), Entry::Ready(container));
        true
    }
}

impl Drop for Reservation<'_> {
    fn drop(&mut self) {
        if !self.kept {
            self.containers.remove(&self.id);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::process::State;
    use super::stdio::Paths;
    use super::*;

    fn process(exec_id: &str) -> Process {
        Process::new(exec_id.to_owned(), Paths::default(), Vec::new())
    }

    fn container() -> Container {
        Container::new("c".into(), "/b".into(), 1, process(""), Shared::default())
    }

    #[test]
    fn an_id_is_taken_while_its_container_is_created_and_free_after_a_failure() {
        let containers = Containers::default();
        let reservation = containers.reserve("c").unwrap();
        assert!(containers.reserve("c").is_err());
        assert!(containers.get("c").is_err());
        assert!(!containers.any_ready());
        drop(reservation);
        let reservation = containers.reserve("c").unwrap();
        assert!(reservation.fill(Arc::new(container())));
        assert!(containers.any_ready());
        assert_eq!(containers.get("c").unwrap().id, "c");
        assert_eq!(*containers.count().borrow(), 1);
        containers.remove("c");
        assert_eq!(*containers.count().borrow(), 0);
    }

    #[test]
    fn a_container_that_is_being_deleted_keeps_its_id_and_is_not_found() {
        let containers = Containers::default();
        for id in ["c", "d"] {
            let reservation = containers.reserve(id).unwrap();
            assert!(reservation.fill(Arc::new(container())));
        }
        assert_eq!(containers.begin_delete("c"), Ok(false));
        assert!(containers.get("c").is_err());
        assert!(containers.begin_delete("c").is_err());
        assert!(containers.reserve("c").is_err());
        containers.remove("c");
        assert_eq!(containers.begin_delete("d"), Ok(true));
        assert!(containers.any_ready(), "its hooks may still run");
        containers.remove("d");
        assert!(!containers.any_ready());
    }

    #[test]
    fn a_create_that_was_given_up_leaves_no_container() {
        let containers = Containers::default();
        let reservation = containers.reserve("c").unwrap();
        containers.cancel("c");
        assert!(!reservation.fill(Arc::new(container())));
        assert_eq!(*containers.count().borrow(), 0);
        assert!(containers.reserve("c").is_ok());
    }

    #[test]
    fn an_oom_kill_is_news_once() {
        let container = container();
        assert!(!container.note_oom_kills(0));
        assert!(container.note_oom_kills(2));
        assert!(!container.note_oom_kills(1));
        assert!(!container.note_oom_kills(2));
        assert!(container.note_oom_kills(3));
    }

    #[test]
    fn processes_are_found_by_exec_id() {
        let container = container();
        assert_eq!(container.process("").unwrap().state(), State::Created);
        assert!(container.process("e").is_err());
        container.add_exec(process("e")).unwrap();
        assert!(container.add_exec(process("e")).is_err());
        assert_eq!(container.process("e").unwrap().exec_id, "e");
        container.remove_exec("e");
        assert!(container.all_execs().is_empty());
    }
}
