//! ResizePty: the size of a process's terminal.

use std::sync::Arc;

use agent_protocol::agent::ResizePtyRequest as Resize;
use containerd_shim_protos::api::{Empty, ResizePtyRequest};

use crate::container::process::{State, StateError};
use crate::error::Error;
use crate::sandbox::SlotError;
use crate::shim::Shim;

/// Resizes a terminal; an exec that has none yet gets the size when it starts.
pub async fn resize(shim: Arc<Shim>, request: ResizePtyRequest) -> Result<Empty, Error> {
    let container = shim.containers.get(&request.id)?;
    let process = container.process(&request.exec_id)?;
    if !process.stdio.terminal {
        let problem = "the process has no terminal".to_owned();
        return Err(Error::Argument {
            what: "id",
            problem,
        });
    }
    process.set_size(request.width, request.height);
    match process.state() {
        State::Created | State::Starting if !request.exec_id.is_empty() => {
            return Ok(Empty::default());
        }
        State::Stopped(_) => return Err(StateError::Finished.into()),
        _ => {}
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
