//! A container: its cgroup, its init, and the processes executed in it later.
//!
//! ```text
//!   create ──► Created ──start──► Running ──init ends──► Stopped ──delete──► gone
//!                 └────────killed, or exec failed───────────▲
//! ```
//!
//! Created: the init waits just before its exec. Running: it was released. Stopped:
//! it has ended; its exit can be asked for until the delete. The state is never
//! stored: it follows from whether the init has ended and whether its line was taken.

pub mod cgroup;
mod channel;
mod child;
pub use child::ChildStdio;
pub mod create;
mod credentials;
mod device_filter;
mod devices;
mod event_file;
mod freezer;
mod hooks;
mod launch;
mod mount_options;
mod mounts;
mod namespaces;
mod oom;
mod plan;
mod program;
mod resources;
mod scheduling;
pub mod seccomp;
pub mod setup_error;
mod statistics;
mod sysctl;
mod terminal;
mod update;

use std::sync::{Arc, Mutex};
use std::time::Duration;

use self::cgroup::Cgroup;
use self::channel::Line;
use crate::console;
use crate::error::Error;
use crate::process::Process;
use crate::reaper::Exit;
use crate::registry::{Registry, Reservation};
use crate::sync::lock;

/// One container.
#[derive(Debug)]
pub struct Container {
    id: String,
    cgroup: Cgroup,
    init: Arc<Process>,
    /// The kernel ends no other process of it with its init.
    shares_pids: bool,
    /// There while the init waits for its start.
    line: Mutex<Option<Line>>,
    /// What all its processes get.
    common: plan::Common,
    /// How long the init may take from its release to its exec.
    start_limit: Duration,
    execs: Registry<Process>,
}

/// Where a container is in its life.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum State {
    /// Set up, not started.
    Created,
    /// Started.
    Running,
    /// Its init has ended.
    Stopped,
}

impl Container {
    /// Where it is in its life.
    pub fn state(&self) -> State {
        if self.init.exit().is_some() {
            State::Stopped
        } else if lock(&self.line).is_some() {
            State::Created
        } else {
            State::Running
        }
    }

    /// Its init (empty `exec_id`) or the process `exec_id`.
    pub fn process(&self, exec_id: &str) -> Result<Arc<Process>, Error> {
        if exec_id.is_empty() {
            return Ok(Arc::clone(&self.init));
        }
        self.execs.get(exec_id)
    }

    /// Takes `exec_id` for a process to be made.
    pub fn reserve_exec<'a>(&'a self, exec_id: &'a str) -> Result<Reservation<'a, Process>, Error> {
        self.execs.reserve(exec_id)
    }

    /// Its cgroup.
    pub fn cgroup(&self) -> &Cgroup {
        &self.cgroup
    }

    /// Lets the init execute its program; returns once it did.
    pub async fn start(&self) -> Result<(), Error> {
        let state = self.state();
        let line = lock(&self.line).take();
        match (state, line) {
            (State::Created, Some(line)) => {
                launch::release(&line, &self.init, self.start_limit).await
            }
            (State::Stopped, _) => Err(self.wrong_state("it has ended")),
            _ => Err(self.wrong_state("it is already started")),
        }
    }

    /// Waits for the end of the process `exec_id`. That of an init is the end of its container
    /// also where the kernel does not see to it, because its pid namespace is not its own: as
    /// with runc, for what is left behind may hold the output.
    pub async fn ended(&self, exec_id: &str) -> Result<Exit, Error> {
        let exit = self.process(exec_id)?.wait().await;
        if exec_id.is_empty() && self.shares_pids {
            // The exit is told all the same.
            if let Err(error) = self.cgroup.kill() {
                console::warn(format_args!("container {}: {error}", self.id));
            }
        }
        exit.ok_or(Error::Finished)
    }

    /// Forgets the ended process `exec_id`.
    pub fn delete_exec(&self, exec_id: &str) -> Result<(), Error> {
        if self.execs.get(exec_id)?.exit().is_none() {
            return Err(Error::State {
                kind: "process",
                id: exec_id.into(),
                why: "it is still running: kill it first".into(),
            });
        }
        self.execs.remove(exec_id);
        Ok(())
    }

    /// Kills what is left of a container that does not run and removes its cgroup. May be repeated.
    pub async fn destroy(&self) -> Result<(), Error> {
        if self.state() == State::Running {
            return Err(self.wrong_state("it is running: kill it first"));
        }
        Ok(self.cgroup.destroy().await?)
    }

    fn wrong_state(&self, why: &str) -> Error {
        Error::State {
            kind: "container",
            id: self.id.clone(),
            why: why.into(),
        }
    }
}
