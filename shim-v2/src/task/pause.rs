//! Pause and Resume: the container's processes stand still and go on.
//!
//! The guest does it with the freezer of the container's cgroup, so execs are part
//! of it. The state of the init is the container's.

use std::sync::Arc;

use containerd_shim_protos::api::{Empty, PauseRequest, ResumeRequest};
use containerd_shim_protos::events::task::{TaskPaused, TaskResumed};

use crate::container::process::State;
use crate::error::Error;
use crate::sandbox::SlotError;
use crate::sandbox::agent::AgentError;
use crate::shim::Shim;

/// Pauses a running container.
pub async fn pause(shim: Arc<Shim>, request: PauseRequest) -> Result<Empty, Error> {
    let container = shim.containers.get(&request.id)?;
    let sandbox = shim.slot.get().ok_or(SlotError::Ended)?;
    container.init.steady().await;
    container.init.begin_pause()?;
    if let Err(error) = sandbox.agent.pause(&request.id).await {
        if matches!(error, AgentError::Deadline { .. }) {
            // It may be half frozen, or become so yet: what is told is that it runs.
            if let Err(error) = sandbox.agent.resume(&request.id).await {
                log::warn!("container {}: {error}", request.id);
                // It can be resumed when the guest answers again.
                container.init.paused();
                return Err(error.into());
            }
        }
        container.init.pause_failed();
        return Err(error.into());
    }
    if !container.init.paused() {
        return Err(container.init.state().refuses("pause").into());
    }
    shim.events.publish(&TaskPaused {
        container_id: request.id,
        ..TaskPaused::default()
    });
    Ok(Empty::default())
}

/// Resumes a paused container.
pub async fn resume(shim: Arc<Shim>, request: ResumeRequest) -> Result<Empty, Error> {
    let container = shim.containers.get(&request.id)?;
    let sandbox = shim.slot.get().ok_or(SlotError::Ended)?;
    container.init.steady().await;
    container.init.begin_resume()?;
    if let Err(error) = sandbox.agent.resume(&request.id).await {
        container.init.resume_failed();
        return Err(error.into());
    }
    // A process that was killed while it was paused may end the moment it goes on.
    if !container.init.resumed() && !matches!(container.init.state(), State::Stopped(_)) {
        return Err(container.init.state().refuses("resume").into());
    }
    shim.events.publish(&TaskResumed {
        container_id: request.id,
        ..TaskResumed::default()
    });
    Ok(Empty::default())
}
