//! ResizePty: the size of a process's terminal.

use std::sync::Arc;

use agent_protocol::agent::ResizePtyRequest as Resize;
use containerd_shim_protos::api::{Empty, ResizePtyRequest};

use crate::container::process::State;
use crate::error::Error;
use crate::sandbox::SlotError;
use crate::shim::Shim;

/// Resizes a terminal; an exec that has none yet gets the size when it starts.
pub async fn resize(shim: Arc<Shim>, request: ResizePtyRequest) -> Result<Empty, Error> {
    let container = shim.containers.get(&request.id)?;
    let process = container.process(&request.exec_id)?;
    let state = process.state();
    let (is_exec, terminal) = (!request.exec_id.is_empty(), process.stdio.terminal);
    if matches!(state, State::Stopped(_)) && (is_exec || terminal) {
        return Err(state.refuses("resize").into());
    }
    if !terminal {
        // Clients resize whatever they attach to; runc has nothing against it.
        return Ok(Empty::default());
    }
    process.set_size(request.width, request.height);
    if is_exec && matches!(state, State::Created | State::Starting) {
        return Ok(Empty::default());
    }
    let sandbox = shim.slot.get().ok_or(SlotError::Ended)?;
    let resize = Resize {
        container_id: request.id,
        exec_id: request.exec_id,
        width: request.width,
        height: request.height,
        ..Resize::default()
    };
    sandbox.agent.resize(&resize).await?;
    Ok(Empty::default())
}
