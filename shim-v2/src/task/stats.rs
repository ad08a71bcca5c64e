//! Stats: what a container uses, in the message of the host's cgroup version. The links are
//! the pod's: its containers share them.

use containerd_shim_protos::api::{StatsRequest, StatsResponse};

use crate::container::metrics::{self, network::links};
use crate::error::Error;
use crate::sandbox::SlotError;
use crate::shim::Shim;

/// Reads a container's figures. A guest that does not answer is stood in for by
/// what it said last; without that it is an error, since zeros would be a lie.
pub async fn stats(shim: &Shim, request: &StatsRequest) -> Result<StatsResponse, Error> {
    let container = shim.containers.get(&request.id)?;
    let sandbox = shim.slot.get().ok_or(SlotError::Ended)?;
    let metrics = match sandbox.agent.read_cgroup(&container.id).await {
        Ok(files) => {
            let metrics = metrics::encode(&files, &links(sandbox.pid()))?;
            container.keep_metrics(&metrics);
            metrics
        }
        Err(error) => {
            let last = container.last_metrics();
            let Some(last) = last.filter(|_| error.is_silence()) else {
                return Err(error.into());
            };
            log::debug!("stats of {} are the last known: {error}", container.id);
            last
        }
    };
    Ok(StatsResponse {
        stats: Some(metrics).into(),
        ..StatsResponse::default()
    })
}
