//! Start: lets a created container's program run, or runs an exec.

use std::sync::Arc;

use agent_protocol::agent::ExecProcessRequest;
use containerd_shim_protos::api::{StartRequest, StartResponse};
use containerd_shim_protos::events::task::{TaskExecStarted, TaskStart};

use crate::container::Container;
use crate::container::process::{Exit, KILLED, Process, State, StateError};
use crate::container::stdio::Fifos;
use crate::container::supervise::supervise;
use crate::error::{Error, chain};
use crate::sandbox::{Sandbox, SlotError};
use crate::shim::Shim;

/// Starts an init or an exec. The start event is queued before the process counts
/// as started, so its exit event cannot come first.
pub async fn start(shim: Arc<Shim>, request: StartRequest) -> Result<StartResponse, Error> {
    let container = shim.containers.get(&request.id)?;
    let process = container.process(&request.exec_id)?;
    let sandbox = shim.slot.get().ok_or(SlotError::Ended)?;
    let pid = sandbox.pid();
    process.begin_start()?;
    let started = if request.exec_id.is_empty() {
        start_init(&shim, &sandbox, &container).await
    } else {
        start_exec(&shim, &sandbox, &container, &process).await
    };
    if let Err(error) = started {
        if request.exec_id.is_empty() {
            process.start_failed();
        } else {
            // As with runc it has ended for those who wait, without an event: no start was told.
            process.exited(Exit::now(KILLED));
        }
        return Err(error);
    }
    process.started();
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
    sandbox.agent.start(&container.id).await?;
    crate::log::timeline("container_started");
    shim.events.publish(&TaskStart {
        container_id: container.id.clone(),
        pid: sandbox.pid(),
        ..TaskStart::default()
    });
    Ok(())
}

async fn start_exec(
    shim: &Shim,
    sandbox: &Arc<Sandbox>,
    container: &Arc<Container>,
    process: &Arc<Process>,
) -> Result<(), Error> {
    if container.init.state() != State::Running {
        return Err(StateError::NotRunning.into());
    }
    let (fifos, stdio) = Fifos::open(&process.stdio).await?;
    let request = ExecProcessRequest {
        container_id: container.id.clone(),
        exec_id: process.exec_id.clone(),
        process_json: super::exec::with_size(&process.spec, process.size()),
        stdio: Some(stdio).into(),
        ..ExecProcessRequest::default()
    };
    sandbox.agent.exec(&request).await?;
    match fifos.connect(&sandbox.vsock).await {
        Ok(streams) => process.set_streams(streams),
        // It runs already: without its output, but not out of reach.
        Err(error) => log::error!("exec {}: {}", process.exec_id, chain(&error)),
    }
    shim.events.publish(&TaskExecStarted {
        container_id: container.id.clone(),
        exec_id: process.exec_id.clone(),
        pid: sandbox.pid(),
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
