//! Checkpoint: what it would write is a process image of the host's kernel, which a
//! process in a virtual machine does not have.

use containerd_shim_protos::api::{CheckpointTaskRequest, Empty};

use crate::error::Error;
use crate::shim::Shim;

/// Refuses, after the answers that any runtime gives.
pub fn checkpoint(shim: &Shim, request: &CheckpointTaskRequest) -> Result<Empty, Error> {
    shim.containers.get(&request.id)?;
    Err(Error::Unsupported {
        verb: "Checkpoint",
        why: "a container in a virtual machine has no process image on the host",
    })
}
