//! Start: lets a created container's program run, or runs an exec.

use std::sync::Arc;
use std::time::Duration;

use agent_protocol::agent::{ExecProcessRequest, ResizePtyRequest, SignalProcessRequest};
use containerd_shim_protos::api::{StartRequest, StartResponse};
use containerd_shim_protos::events::task::{TaskExecStarted, TaskStart};
use tokio::time::timeout;

use crate::container::Container;
use crate::container::process::{Exit, KILLED, Process};
use crate::container::stdio::Fifos;
use crate::container::supervise::supervise;
use crate::error::{Error, chain};
use crate::hooks;
use crate::sandbox::agent::AgentError;
use crate::sandbox::{Sandbox, SlotError};
use crate::shim::Shim;

/// How long the exit of an init may take whose poststart hook failed.
const HOOKED_EXIT: Duration = Duration::from_secs(3);

/// Starts an init or an exec. The start event is queued before the process counts
/// as started, so its exit event cannot come first.
pub async fn start(shim: Arc<Shim>, request: StartRequest) -> Result<StartResponse, Error> {
    let container = shim.containers.get(&request.id)?;
    let process = container.process(&request.exec_id)?;
    let sandbox = shim.slot.get().ok_or(SlotError::Ended)?;
    let pid = container.pid;
    process.begin_start()?;
    let started = if request.exec_id.is_empty() {
        start_init(&shim, &sandbox, &container).await
    } else {
        start_exec(&shim, &sandbox, &container, &process).await
    };
    if let Err(error) = started {
        let error = sandbox.blame("Start", error).await;
        if request.exec_id.is_empty() {
            process.start_failed();
            if matches!(error, Error::Hook(_)) {
                // It ran, and was killed: its exit is told before the failure.
                drop(timeout(HOOKED_EXIT, process.wait()).await);
            }
        } else {
            // As with runc it has ended for those who wait, without an event: no start was told.
            process.exited(Exit::now(KILLED));
        }
        return Err(error);
    }
    process.started();
    if !request.exec_id.is_empty()
        && let Err(error) = apply_late_size(&sandbox, &container, &process).await
    {
        log::warn!("terminal of exec {}: {error}", request.exec_id);
    }
    // It runs already: a client that took its fifo away cannot stop it.
    if let Some(streams) = process.streams()
        && let Err(error) = streams.start_stdin(&sandbox.vsock).await
    {
        log::error!("input of {}: {}", request.id, chain(&error));
    }
    Ok(StartResponse {
        pid,
        ..StartResponse::default()
    })
}

async fn start_init(shim: &Shim, sandbox: &Sandbox, container: &Container) -> Result<(), Error> {
    // What was put into the pod's network since Create is there when the program looks.
    sandbox.network.settle().await;
    sandbox.agent.start(&container.id).await?;
    crate::log::timeline("container_started");
    if let Err(error) = hooks::poststart(&sandbox.file, &container.id, container.pid).await {
        // It does not run without its hook, as with runc.
        let kill = SignalProcessRequest {
            container_id: container.id.clone(),
            signal: libc::SIGKILL as u32,
            ..SignalProcessRequest::default()
        };
        if let Err(error) = sandbox.agent.signal(&kill).await {
            log::warn!("container {}: {error}", container.id);
        }
        return Err(error.into());
    }
    shim.events.publish(&TaskStart {
        container_id: container.id.clone(),
        pid: container.pid,
        ..TaskStart::default()
    });
    Ok(())
}

/// A terminal may have been resized while its exec was being started with an older size.
async fn apply_late_size(
    sandbox: &Sandbox,
    container: &Container,
    process: &Process,
) -> Result<(), AgentError> {
    let Some((width, height)) = process.late_size() else {
        return Ok(());
    };
    let resize = ResizePtyRequest {
        container_id: container.id.clone(),
        exec_id: process.exec_id.clone(),
        width,
        height,
        ..ResizePtyRequest::default()
    };
    sandbox.agent.resize(&resize).await
}

/// The caller is told that the exec did not start, so it must not run later.
async fn take_back(sandbox: &Sandbox, container: &Container, process: &Process) {
    let kill = SignalProcessRequest {
        container_id: container.id.clone(),
        exec_id: process.exec_id.clone(),
        signal: libc::SIGKILL as u32,
        ..SignalProcessRequest::default()
    };
    let killed = sandbox.agent.signal(&kill).await;
    let deleted = sandbox.agent.delete(&container.id, &process.exec_id).await;
    if let Err(error) = killed.and(deleted) {
        log::warn!("exec {}: {error}", process.exec_id);
    }
}

async fn start_exec(
    shim: &Shim,
    sandbox: &Arc<Sandbox>,
    container: &Arc<Container>,
    process: &Arc<Process>,
) -> Result<(), Error> {
    super::exec::may_exec(container).await?;
    // As with runc it is the exec that a logger is told of.
    let namespace = sandbox.file.namespace();
    let (fifos, stdio) = Fifos::open(&process.stdio, &process.exec_id, &namespace).await?;
    let request = ExecProcessRequest {
        container_id: container.id.clone(),
        exec_id: process.exec_id.clone(),
        process_json: super::exec::with_size(&process.spec, process.size_for_start()),
        stdio: Some(stdio).into(),
        ..ExecProcessRequest::default()
    };
    let started = sandbox.agent.exec(&request).await;
    if matches!(started, Err(AgentError::Deadline { .. })) {
        take_back(sandbox, container, process).await;
    }
    process.set_guest_pid(started?);
    match fifos.connect(&sandbox.vsock).await {
        Ok(streams) => process.set_streams(streams),
        // It runs already: without its output, but not out of reach.
        Err(error) => log::error!("exec {}: {}", process.exec_id, chain(&error)),
    }
    shim.events.publish(&TaskExecStarted {
        container_id: container.id.clone(),
        exec_id: process.exec_id.clone(),
        pid: container.pid,
        ..TaskExecStarted::default()
    });
    let (events, sandbox) = (shim.events.clone(), sandbox.clone());
    tokio::spawn(supervise(
        events,
        sandbox,
        container.clone(),
        process.clone(),
    ));
    Ok(())
}
