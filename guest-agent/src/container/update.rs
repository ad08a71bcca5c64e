//! Changing the limits of a container while it lives.

use std::os::fd::AsFd;
use std::time::Duration;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use tokio::time::timeout;

use super::cgroup::Cgroup;
use super::channel::{self, ChildLine, FromChild};
use super::resources::{self, Setting};
use super::setup_error::{Blame, Context, SetupError};
use super::{Container, State};
use crate::error::Error;
use crate::oci::{Memory, Resources, SpecError};
use crate::sys::{self, Cloned};

/// How long the kernel may take, which reclaims memory before it lowers a limit.
const DEADLINE: Duration = Duration::from_secs(10);

impl Container {
    /// Applies what an OCI `linux.resources` object names. Its device rules are left
    /// aside, as runc's update does. All or nothing, unless the deadline passes.
    pub async fn update(&self, resources_json: &[u8]) -> Result<(), Error> {
        if self.state() == State::Stopped {
            return Err(self.wrong_state("it has ended: there is nothing to update"));
        }
        let resources = Resources::from_json(resources_json)?;
        if resources.memory.check_before_update {
            check_usage(&resources.memory, &self.cgroup.read("memory.current")?)?;
        }
        let settings = resources::settings(&resources, &self.cgroup.read("cpu.max")?)?;
        if settings.is_empty() {
            return Ok(());
        }
        apply_in_child(&self.cgroup, &settings).await
    }
}

/// A limit below what is in use would make the kernel kill.
fn check_usage(memory: &Memory, current: &str) -> Result<(), SpecError> {
    let usage: i64 = current.trim().parse().unwrap_or(0);
    for (field, limit) in [("limit", memory.limit), ("swap", memory.swap)] {
        if let Some(limit) = limit.filter(|limit| (1..usage).contains(limit)) {
            return Err(SpecError::Value {
                field: format!("linux.resources.memory.{field}"),
                value: limit.to_string(),
                must: "at least the memory in use, because checkBeforeUpdate is set",
            });
        }
    }
    Ok(())
}

/// A write that lowers a memory limit reclaims before it returns, and may wait for
/// files of the host to be written back: not with the agent's own thread.
async fn apply_in_child(cgroup: &Cgroup, settings: &[Setting]) -> Result<(), Error> {
    let (line, child_line) = channel::pair().map_err(Error::line)?;
    let cloned = sys::clone_child(CloneFlags::empty(), None);
    let pidfd = match cloned {
        Ok(Cloned::Parent { pidfd, .. }) => pidfd,
        Ok(Cloned::Child) => run_child(cgroup, settings, &child_line),
        Err(errno) => {
            return Err(Error::System {
                what: "forking",
                errno,
            });
        }
    };
    drop(child_line);
    match timeout(DEADLINE, line.receive()).await {
        Ok(Ok(FromChild::Ready)) => Ok(()),
        Ok(Ok(FromChild::Failed(error))) => Err(error.into()),
        Ok(Ok(_)) => Err(Error::System {
            what: "updating the cgroup: the child that does it is gone",
            errno: Errno::EPIPE,
        }),
        Ok(Err(error)) => Err(Error::line(error)),
        Err(_) => {
            // It may have ended by itself.
            sys::signal_pidfd(pidfd.as_fd(), libc::SIGKILL).ok();
            Err(Error::Deadline {
                what: "updating the cgroup (some limits may be in force)",
                limit: DEADLINE,
            })
        }
    }
}

fn run_child(cgroup: &Cgroup, settings: &[Setting], line: &ChildLine) -> ! {
    let result = leave_agent(line).and_then(|()| {
        cgroup.apply_or_restore(settings).map_err(|error| {
            let blame = match error.is_wrong_value() {
                true => Blame::Request,
                false => Blame::Guest,
            };
            let text = error.to_string();
            SetupError { blame, text }
        })
    });
    // Where the agent does not hear it, it sees the end of the line. It answers "ready"
    // by dropping its own end.
    match result {
        Ok(()) => line.ready().ok(),
        Err(error) => line.fail(&error).ok(),
    };
    sys::exit_now(0)
}

/// Sheds what would do harm if the child is held up: a copy of the agent's signal
/// handlers and of the pipes of other containers.
fn leave_agent(line: &ChildLine) -> Result<(), SetupError> {
    sys::reset_signals().or_guest(|| "resetting signals")?;
    sys::close_all_except(&[sys::raw(line)]).or_guest(|| "closing the agent's descriptors")
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn a_limit_below_the_usage_is_refused_by_name() {
        let check = |json| {
            let memory: Memory = serde_json::from_value(json).unwrap();
            check_usage(&memory, "1000\n").map_err(|error| error.to_string())
        };
        for fine in [
            json!({}),
            json!({ "limit": 1000 }),
            json!({ "limit": -1, "swap": -1 }),
        ] {
            assert_eq!(check(fine.clone()), Ok(()), "{fine}");
        }
        for (json, field) in [
            (json!({ "limit": 999 }), "memory.limit"),
            (json!({ "limit": 2000, "swap": 1 }), "memory.swap"),
        ] {
            let error = check(json).unwrap_err();
            assert!(error.contains(field), "{error}");
        }
    }
}
