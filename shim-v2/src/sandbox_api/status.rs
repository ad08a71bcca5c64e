//! What the pod is, and what became of it. Only PingSandbox asks the guest.

use containerd_shim_protos::sandbox_api::{
    PingRequest, PingResponse, PlatformRequest, PlatformResponse, SandboxStatusRequest,
    SandboxStatusResponse, WaitSandboxRequest, WaitSandboxResponse,
};
use serde_json::json;

use super::pod::PodError;
use crate::error::Error;
use crate::shim::Shim;

/// The CRI's names of a pod's state, which are what containerd compares with.
const READY: &str = "SANDBOX_READY";
const NOT_READY: &str = "SANDBOX_NOTREADY";

/// What containers have to be made for.
pub fn platform(shim: &Shim, request: &PlatformRequest) -> Result<PlatformResponse, Error> {
    shim.pod.of(&request.sandbox_id)?;
    let mut response = PlatformResponse::default();
    let platform = response.platform.mut_or_insert_default();
    platform.os = "linux".to_owned();
    // As Go names it; the only one there is.
    platform.architecture = "amd64".to_owned();
    Ok(response)
}

/// Waits for the pod's end.
pub async fn wait(shim: &Shim, request: &WaitSandboxRequest) -> Result<WaitSandboxResponse, Error> {
    let exit = shim.pod.of(&request.sandbox_id)?.wait().await;
    Ok(WaitSandboxResponse {
        exit_status: exit.status,
        exited_at: Some(exit.at.into()).into(),
        ..WaitSandboxResponse::default()
    })
}

/// Describes the pod.
pub fn status(shim: &Shim, request: &SandboxStatusRequest) -> Result<SandboxStatusResponse, Error> {
    let pod = shim.pod.of(&request.sandbox_id)?;
    let exit = pod.exit();
    let sandbox = shim.slot.get();
    let running = sandbox.as_ref().filter(|_| exit.is_none());
    let pid = running.map_or(0, |sandbox| sandbox.pid());
    let mut response = SandboxStatusResponse {
        sandbox_id: pod.id.clone(),
        pid,
        state: if pid > 0 { READY } else { NOT_READY }.to_owned(),
        created_at: pod.started_at().map(Into::into).into(),
        exited_at: exit.map(|exit| exit.at.into()).into(),
        ..SandboxStatusResponse::default()
    };
    if request.verbose {
        // Clients of the CRI show it as it is.
        let info = json!({
            "pid": pid,
            "shimPid": std::process::id(),
            "endedBecause": sandbox.and_then(|sandbox| sandbox.died_of()),
        });
        response.info.insert("info".to_owned(), info.to_string());
    }
    Ok(response)
}

/// Whether the guest answers.
pub async fn ping(shim: &Shim, request: &PingRequest) -> Result<PingResponse, Error> {
    let pod = shim.pod.of(&request.sandbox_id)?;
    let sandbox = shim.slot.get().filter(|_| pod.exit().is_none());
    let sandbox = sandbox.ok_or_else(|| PodError::NotRunning(pod.id.clone()))?;
    sandbox.agent.ping().await?;
    Ok(PingResponse::default())
}
