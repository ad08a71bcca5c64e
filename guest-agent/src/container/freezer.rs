//! Pausing a container: the freezer of its cgroup.
//!
//! A frozen process can still be killed: SIGKILL, also by `cgroup.kill`, ends it where
//! it stands. Other signals wait for the thaw.

use std::time::Duration;

use tokio::time::timeout;

use super::cgroup::{Cgroup, CgroupError};
use super::event_file::{EventFile, number};
use super::{Container, State};
use crate::error::Error;

/// How long the processes may take to stand still, or to run again; runc's limit too.
/// One that waits for a file of the host may take longer.
const DEADLINE: Duration = Duration::from_secs(10);

impl Container {
    /// Stops every process of it; returns once all stand still. May be repeated.
    pub async fn pause(&self) -> Result<(), Error> {
        if self.state() == State::Stopped {
            return Err(self.wrong_state("it has ended: there is nothing to pause"));
        }
        Ok(self.cgroup.freeze().await?)
    }

    /// Lets its processes run again. May be repeated.
    pub async fn resume(&self) -> Result<(), Error> {
        if self.state() == State::Stopped {
            return Err(self.wrong_state("it has ended: there is nothing to resume"));
        }
        Ok(self.cgroup.thaw().await?)
    }

    /// Refuses what a paused container cannot do: a process made in it would stand
    /// still before its program runs.
    pub fn require_unpaused(&self) -> Result<(), Error> {
        if self.cgroup.is_frozen()? {
            return Err(self.wrong_state("it is paused: resume it first"));
        }
        Ok(())
    }
}

impl Cgroup {
    async fn freeze(&self) -> Result<(), CgroupError> {
        let frozen = self.set_frozen(true).await;
        if frozen.is_err() {
            // Half frozen is worse than not at all; the first error is the one to report.
            self.write("cgroup.freeze", "0").ok();
        }
        frozen
    }

    async fn thaw(&self) -> Result<(), CgroupError> {
        self.set_frozen(false).await
    }

    fn is_frozen(&self) -> Result<bool, CgroupError> {
        Ok(self.read("cgroup.freeze")?.trim() == "1")
    }

    async fn set_frozen(&self, frozen: bool) -> Result<(), CgroupError> {
        let wanted = u64::from(frozen);
        let events = EventFile::open(self.file("cgroup.events"))?;
        self.write("cgroup.freeze", &wanted.to_string())?;
        let reached = |text: &str| number(text, "frozen").filter(|now| *now == wanted);
        match timeout(DEADLINE, events.wait_for(reached)).await {
            Ok(result) => result.map(drop),
            Err(_) => Err(CgroupError::NotFrozen {
                path: self.file(""),
                wanted: if frozen { "stand still" } else { "run again" },
                limit: DEADLINE,
            }),
        }
    }
}
