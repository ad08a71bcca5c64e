//! Kills by the kernel's OOM killer in a container, as `memory.events` counts them.
//!
//! The kernel counts before it sends the signal, and counts for the victim's cgroup
//! whichever limit was hit: the container's own, one of a cgroup the container made
//! below, or the machine's. So the count read after a process has ended includes the
//! kill that ended it.

use std::sync::atomic::{AtomicU64, Ordering};

use tokio::sync::watch;

use super::cgroup::{Cgroup, CgroupError};
use super::event_file::{EventFile, number};
use crate::console;

const FILE: &str = "memory.events";
const KEY: &str = "oom_kill";

/// What outlives the cgroup's files.
#[derive(Debug, Default)]
pub struct OomWatch {
    last: AtomicU64,
    removed: watch::Sender<bool>,
}

impl OomWatch {
    /// Ends all waiting: the cgroup is gone.
    pub fn close(&self) {
        self.removed.send_replace(true);
    }
}

impl Cgroup {
    /// How often the OOM killer has killed in it so far; after its removal, until then.
    /// An exit is told with this number and must not be lost over it.
    pub fn oom_kills(&self) -> u64 {
        // Once it is removed another cgroup may have the name.
        if !*self.oom.removed.borrow() {
            match self.read(FILE) {
                Ok(text) => {
                    let kills = number(&text, KEY).unwrap_or(0);
                    self.oom.last.fetch_max(kills, Ordering::Relaxed);
                }
                Err(error) if error.is_gone() => {}
                Err(error) => console::warn(format_args!("counting OOM kills: {error}")),
            }
        }
        self.oom.last.load(Ordering::Relaxed)
    }

    /// Waits for more than `seen` kills; none if the cgroup is removed before.
    pub async fn wait_oom(&self, seen: u64) -> Result<Option<u64>, CgroupError> {
        let mut removed = self.oom.removed.subscribe();
        let events = match EventFile::open(self.file(FILE)) {
            Err(error) if error.is_gone() => return Ok(None),
            other => other?,
        };
        let more = events.wait_for(|text| number(text, KEY).filter(|kills| *kills > seen));
        tokio::select! {
            biased;
            more = more => match more {
                Err(error) if error.is_gone() => Ok(None),
                other => other.map(Some),
            },
            // The sender lives as long as `self`.
            _ = removed.wait_for(|removed| *removed) => Ok(None),
        }
    }
}
