//! Kill: sends a signal to a process or to all of its container.

use std::sync::Arc;

use agent_protocol::agent::SignalProcessRequest;
use containerd_shim_protos::api::{Empty, KillRequest};

use crate::container::process::{State, StateError};
use crate::error::Error;
use crate::sandbox::SlotError;
use crate::sandbox::agent::AgentError;
use crate::shim::Shim;

const SIGKILL: u32 = libc::SIGKILL as u32;

/// Signals a process. A guest too frozen to carry out SIGKILL for an init loses its
/// machine: killing always works.
pub async fn kill(shim: Arc<Shim>, request: KillRequest) -> Result<Empty, Error> {
    let container = shim.containers.get(&request.id)?;
    let process = container.process(&request.exec_id)?;
    let is_init = request.exec_id.is_empty();
    match process.state() {
        State::Stopped(_) => return Err(StateError::Finished.into()),
        State::Created if !is_init => return Err(StateError::NotRunning.into()),
        _ => {}
    }
    let sandbox = shim.slot.get().ok_or(SlotError::Ended)?;
    let signal = SignalProcessRequest {
        container_id: request.id,
        exec_id: request.exec_id,
        signal: request.signal,
        // Of an exec there is only one process, whatever the caller asks: containerd
        // itself kills execs this way.
        all: request.all && is_init,
        ..SignalProcessRequest::default()
    };
    match sandbox.agent.signal(&signal).await {
        Ok(()) => Ok(Empty::default()),
        // Its exit is on the way.
        Err(AgentError::VmGone { .. }) => Err(StateError::Finished.into()),
        Err(error @ (AgentError::Deadline { .. } | AgentError::Connection { .. }))
            if is_init && request.signal == SIGKILL =>
        {
            log::error!("{error}: the virtual machine is killed");
            sandbox.kill();
            Ok(Empty::default())
        }
        Err(error) => Err(error.into()),
    }
}
