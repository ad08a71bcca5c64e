//! Shutdown: ends the sandbox and the shim, unless containers remain.

use std::sync::Arc;

use containerd_shim_protos::api::{Empty, ShutdownRequest};

use crate::error::Error;
use crate::shim::Shim;

/// Ends the shim. containerd sends this after each Delete, so while created
/// containers remain it means nothing; one whose Create never finished does not count. Nor
/// does it for a container of a pod that the sandbox service ends.
pub async fn shutdown(shim: Arc<Shim>, request: ShutdownRequest) -> Result<Empty, Error> {
    if shim.pod.get().is_some_and(|pod| pod.id != request.id) {
        return Ok(Empty::default());
    }
    if !shim.containers.any_ready() || request.now {
        shim.end().await;
    }
    Ok(Empty::default())
}
