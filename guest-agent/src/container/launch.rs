//! The agent's side of a child's way to its exec.

use std::os::fd::{AsFd, OwnedFd};
use std::time::Duration;

use nix::unistd::Pid;
use tokio::time::timeout;

use super::channel::{FromChild, Line};
use crate::error::Error;
use crate::process::Process;
use crate::reaper::{self, ExitWatch};
use crate::sys;

/// How long a child may take to set itself up, and to execute its program. Both
/// read files of the host.
pub const SETUP_DEADLINE: Duration = Duration::from_secs(30);
/// How long a killed child may take to disappear.
const KILL_DEADLINE: Duration = Duration::from_secs(2);

/// A forked child as the agent holds it.
#[derive(Debug)]
pub struct Child {
    pub pid: Pid,
    pub pidfd: OwnedFd,
    pub exit: ExitWatch,
    pub line: Line,
}

impl Child {
    /// Waits until only the exec is left. Returns the master side of the terminal, if
    /// one was asked for. A child that fails, dies or takes too long is gone afterwards.
    pub async fn wait_ready(&self) -> Result<Option<OwnedFd>, Error> {
        let outcome = timeout(SETUP_DEADLINE, self.receive_until_ready()).await;
        let error = match outcome {
            Ok(Ok(terminal)) => return Ok(terminal),
            Ok(Err(error)) => error,
            Err(_) => Error::Deadline {
                what: "setting up the process",
                limit: SETUP_DEADLINE,
            },
        };
        // It may have ended by itself.
        sys::signal_pidfd(self.pidfd.as_fd(), libc::SIGKILL).ok();
        // Past the deadline it is stuck in the kernel: the cgroup's removal deals with it.
        timeout(KILL_DEADLINE, reaper::ended(self.exit.clone()))
            .await
            .ok();
        Err(error)
    }

    async fn receive_until_ready(&self) -> Result<Option<OwnedFd>, Error> {
        let mut terminal = None;
        loop {
            match self.line.receive().await.map_err(Error::line)? {
                FromChild::Terminal(master) => terminal = Some(master),
                FromChild::Ready => return Ok(terminal),
                FromChild::Failed(error) => return Err(error.into()),
                FromChild::Closed => {
                    let exit = reaper::ended(self.exit.clone()).await;
                    let status = exit.map_or(0, |exit| exit.status);
                    return Err(Error::DiedInSetup { status });
                }
            }
        }
    }
}

/// Lets a child that is ready execute its program, for which it has until `limit`;
/// returns once it did.
pub async fn release(line: &Line, process: &Process, limit: Duration) -> Result<(), Error> {
    // A child that died meanwhile is seen as the end of the line, and then as an exit.
    line.release().ok();
    match timeout(limit, line.receive()).await {
        Ok(Ok(FromChild::Failed(error))) => {
            // Its exit is known before the answer is.
            timeout(KILL_DEADLINE, process.wait()).await.ok();
            Err(error.into())
        }
        Ok(Ok(_)) => Ok(()),
        Ok(Err(error)) => Err(Error::line(error)),
        Err(_) => {
            process.signal(libc::SIGKILL).ok();
            Err(Error::Deadline {
                what: "executing the program",
                limit,
            })
        }
    }
}
