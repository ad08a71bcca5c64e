//! Kill: sends a signal to a process or to all of its container.

use std::sync::Arc;
use std::time::Duration;

use agent_protocol::agent::SignalProcessRequest;
use containerd_shim_protos::api::{Empty, KillRequest};
use tokio::time::timeout;

use crate::container::process::{Process, State, StateError};
use crate::error::Error;
use crate::sandbox::agent::AgentError;
use crate::sandbox::{Sandbox, SlotError};
use crate::shim::Shim;

const SIGKILL: u32 = libc::SIGKILL as u32;
const SIGTERM: u32 = libc::SIGTERM as u32;
/// How long an exec's start may take: the guest does not know it before, and a signal
/// that finds nobody must not count as delivered.
const START: Duration = Duration::from_secs(80);
/// How long an init may take from an acknowledged SIGKILL to its published exit. The
/// delivery of its own and its execs' output is part of it, which takes 21 s at most.
const DEATH: Duration = Duration::from_secs(60);

/// Signals a process. An init that SIGKILL does not end loses its machine: killing
/// always works.
pub async fn kill(shim: Arc<Shim>, request: KillRequest) -> Result<Empty, Error> {
    let container = shim.containers.get(&request.id)?;
    let process = container.process(&request.exec_id)?;
    let (is_init, signal) = (request.exec_id.is_empty(), request.signal);
    if !is_init {
        drop(timeout(START, process.settled()).await);
    }
    match process.state() {
        State::Stopped(_) => return finished(signal),
        State::Created | State::Starting if !is_init => return Err(StateError::NotCreated.into()),
        _ => {}
    }
    let sandbox = shim.slot.get().ok_or(SlotError::Ended)?;
    let request = SignalProcessRequest {
        container_id: request.id,
        exec_id: request.exec_id,
        signal,
        // Of an exec there is only one process, whatever the caller asks: containerd
        // itself kills execs this way.
        all: request.all && is_init,
        ..SignalProcessRequest::default()
    };
    let fatal = is_init && signal == SIGKILL;
    match sandbox.agent.signal(&request).await {
        Ok(()) => {
            if fatal {
                tokio::spawn(see_it_die(sandbox, process));
            }
            Ok(Empty::default())
        }
        Err(AgentError::Status {
            code: ttrpc::Code::NOT_FOUND,
            ..
        }) => finished(signal),
        // Its exit is on the way.
        Err(AgentError::VmGone { .. }) => finished(signal),
        Err(error @ (AgentError::Deadline { .. } | AgentError::Connection { .. })) if fatal => {
            log::error!("{error}: the virtual machine is killed");
            sandbox.kill();
            Ok(Empty::default())
        }
        Err(error) => Err(error.into()),
    }
}

/// To end what is over already is done; any other signal has nobody to reach.
fn finished(signal: u32) -> Result<Empty, Error> {
    match signal {
        SIGTERM | SIGKILL => Ok(Empty::default()),
        _ => Err(StateError::Finished.into()),
    }
}

/// A process that hangs in the guest's kernel does not die of a signal.
async fn see_it_die(sandbox: Arc<Sandbox>, init: Arc<Process>) {
    if timeout(DEATH, init.wait()).await.is_err() {
        log::error!(
            "an init does not end {} s after SIGKILL: the virtual machine is killed",
            DEATH.as_secs()
        );
        sandbox.kill();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ending_what_is_over_is_success_and_every_other_signal_is_not() {
        assert!(finished(SIGTERM).is_ok());
        assert!(finished(SIGKILL).is_ok());
        for signal in [0, libc::SIGHUP as u32, libc::SIGUSR1 as u32] {
            let error = finished(signal).unwrap_err();
            assert_eq!(error.code(), ttrpc::Code::NOT_FOUND);
            assert_eq!(error.to_string(), "process already finished");
        }
    }
}
