//! StopSandbox ends the pod's machine, ShutdownSandbox the shim as well.

use std::sync::Arc;

use containerd_shim_protos::sandbox_api::{
    ShutdownSandboxRequest, ShutdownSandboxResponse, StopSandboxRequest, StopSandboxResponse,
};

use super::pod::PodError;
use crate::container::process::{Exit, KILLED};
use crate::error::Error;
use crate::sandbox::{Sandbox, SlotError};
use crate::shim::Shim;

/// Ends the machine with all that runs in it; containerd has stopped the containers in their
/// own time before. Everything on the host is free afterwards, the pod's network and cgroup too.
pub async fn stop(
    shim: Arc<Shim>,
    request: StopSandboxRequest,
) -> Result<StopSandboxResponse, Error> {
    let pod = shim.pod.of(&request.sandbox_id)?;
    match shim.slot.claim() {
        // It stays in its slot: its containers are still to be deleted.
        Ok(Some(sandbox)) => {
            shim.end_machine(&sandbox).await;
            pod.ended(exit_of(&sandbox));
        }
        Ok(None) => {
            drop(shim.slot.end());
            pod.ended(Exit::now(0));
        }
        Err(SlotError::Ended) => {}
        Err(error @ SlotError::Booting) => return Err(error.into()),
    }
    Ok(StopSandboxResponse::default())
}

/// How a pod ended whose machine is gone: in order, or as if it was killed.
pub fn exit_of(sandbox: &Sandbox) -> Exit {
    match sandbox.died_of() {
        Some(_) => Exit::now(KILLED),
        None => Exit::now(0),
    }
}

/// Ends the shim. Also one whose pod was never created: containerd asks for it when it was not.
pub async fn shutdown(
    shim: Arc<Shim>,
    request: ShutdownSandboxRequest,
) -> Result<ShutdownSandboxResponse, Error> {
    if request.sandbox_id != shim.id() {
        return Err(PodError::NotFound(request.sandbox_id).into());
    }
    shim.end().await;
    if let Some(pod) = shim.pod.get() {
        // Of a pod that was never started nobody else tells it.
        pod.ended(Exit::now(0));
    }
    Ok(ShutdownSandboxResponse::default())
}
