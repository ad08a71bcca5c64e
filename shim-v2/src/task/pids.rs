//! Pids: the processes of a container as the guest numbers them.

use containerd_shim_protos::api::{PidsRequest, PidsResponse, ProcessInfo};

use crate::error::Error;
use crate::shim::Shim;

/// Lists pids. Never empty: for containerd that means a leaked shim, so a guest
/// that does not answer is stood in for by the VMM's pid.
pub async fn pids(shim: &Shim, request: &PidsRequest) -> Result<PidsResponse, Error> {
    let container = shim.containers.get(&request.id)?;
    let sandbox = shim.slot.get();
    let mut pids = match &sandbox {
        Some(sandbox) => sandbox
            .agent
            .pids(&container.id)
            .await
            .unwrap_or_else(|error| {
                log::debug!("pids of {}: {error}", container.id);
                Vec::new()
            }),
        None => Vec::new(),
    };
    if pids.is_empty() {
        pids.push(sandbox.map_or_else(std::process::id, |sandbox| sandbox.pid()));
    }
    let info = |pid| ProcessInfo {
        pid,
        ..ProcessInfo::default()
    };
    Ok(PidsResponse {
        processes: pids.into_iter().map(info).collect(),
        ..PidsResponse::default()
    })
}
