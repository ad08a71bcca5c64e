//! SandboxMetrics: what the pod costs the host, which is more than its containers use.

use std::time::SystemTime;

use containerd_shim_protos::sandbox_api::{SandboxMetricsRequest, SandboxMetricsResponse};

use super::pod::PodError;
use crate::container::metrics::{self, network::links};
use crate::error::Error;
use crate::sandbox::usage;
use crate::shim::Shim;

/// Reads the figures of shim and VMM together, in the message of the host's cgroup version.
pub async fn metrics(
    shim: &Shim,
    request: &SandboxMetricsRequest,
) -> Result<SandboxMetricsResponse, Error> {
    let pod = shim.pod.of(&request.sandbox_id)?;
    let sandbox = shim.slot.get().filter(|_| pod.exit().is_none());
    let sandbox = sandbox.ok_or_else(|| PodError::NotRunning(pod.id.clone()))?;
    let (leaves, vmm) = (shim.file.state().cgroups, sandbox.pid());
    let files = tokio::task::spawn_blocking(move || usage::files(&leaves, vmm)).await;
    let files = files.map_err(|_| Error::Panicked("SandboxMetrics"))?;
    let mut response = SandboxMetricsResponse::default();
    let metric = response.metrics.mut_or_insert_default();
    metric.id = pod.id.clone();
    metric.timestamp = Some(SystemTime::now().into()).into();
    metric.data = Some(metrics::encode(&files, &links(vmm))?).into();
    Ok(response)
}
