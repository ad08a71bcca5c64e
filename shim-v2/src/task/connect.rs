//! Connect: containerd's liveness probe of a shim. Never fails, needs no guest.

use containerd_shim_protos::api::{ConnectRequest, ConnectResponse};

use crate::shim::Shim;

/// Tells the shim's pid and the task's.
pub fn connect(shim: &Shim, request: &ConnectRequest) -> ConnectResponse {
    let exists = shim.containers.get(&request.id).is_ok();
    let sandbox = shim.slot.get().filter(|_| exists);
    ConnectResponse {
        shim_pid: std::process::id(),
        task_pid: sandbox.map_or(0, |sandbox| sandbox.pid()),
        version: env!("CARGO_PKG_VERSION").to_owned(),
        ..ConnectResponse::default()
    }
}
