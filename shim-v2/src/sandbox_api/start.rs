//! StartSandbox: boots the pod's machine, by the same way as Create does for a container.

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::sandbox_api::{StartSandboxRequest, StartSandboxResponse};
use tokio::time::timeout;

use super::pod::{Pod, PodError};
use super::stop::exit_of;
use crate::config::{self, Config};
use crate::container::process::{Exit, KILLED};
use crate::error::Error;
use crate::hooks::HostHooks;
use crate::sandbox::Sandbox;
use crate::sandbox::boot::boot;
use crate::shim::Shim;

/// How long the exits of a dead machine's containers may take to be told: until their output
/// was read, or given up: as long as SIGKILL waits for it (`task::kill`).
const EXITS: Duration = Duration::from_secs(21);

/// Starts the shim's pod.
pub async fn start(
    shim: Arc<Shim>,
    request: StartSandboxRequest,
) -> Result<StartSandboxResponse, Error> {
    let pod = shim.pod.of(&request.sandbox_id)?;
    let mut config = Config::load(Path::new(config::PATH))?;
    // The operator's have the last word.
    config.kernel_params = format!("{} {}", pod.kernel_params, config.kernel_params);
    if shim.slot.claim()?.is_some() {
        return Err(PodError::Started(request.sandbox_id).into());
    }
    let sandbox = boot_pod(&shim, pod, &config).await?;
    let response = StartSandboxResponse {
        pid: sandbox.pid(),
        created_at: Some(pod.started().into()).into(),
        ..StartSandboxResponse::default()
    };
    tokio::spawn(follow(shim.clone(), sandbox));
    Ok(response)
}

/// A failed boot is the pod's end.
async fn boot_pod(shim: &Shim, pod: &Pod, config: &Config) -> Result<Arc<Sandbox>, Error> {
    let file = shim.file.clone();
    // There are none: they belong to containers.
    let hooks = HostHooks::new(&pod.spec, &pod.id, &file.state().bundle);
    let booted = boot(file, config, &pod.spec, &hooks, shim.ending()).await;
    let settled = shim.settle(booted.map_err(Error::from)).await;
    settled.inspect_err(|_| pod.ended(Exit::now(KILLED)))
}

/// Tells the pod's end when its machine is gone. Nobody has to stop a pod that ended by itself,
/// and its cgroup is removed with a shim in it or without one: the host is left at once.
async fn follow(shim: Arc<Shim>, sandbox: Arc<Sandbox>) {
    sandbox.gone().await;
    if let Some(pod) = shim.pod.get() {
        pod.ended(exit_of(&sandbox));
    }
    if timeout(EXITS, shim.containers.all_ended()).await.is_err() {
        log::warn!("an exit was not told within {} s", EXITS.as_secs());
    }
    sandbox.stop().await;
}
