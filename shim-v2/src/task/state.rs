//! State: what the shim knows of a process. Needs no guest.

use containerd_shim_protos::api::{StateRequest, StateResponse, Status};

use crate::container::process::State;
use crate::error::Error;
use crate::shim::Shim;

/// Describes a process.
pub fn state(shim: &Shim, request: &StateRequest) -> Result<StateResponse, Error> {
    let container = shim.containers.get(&request.id)?;
    let process = container.process(&request.exec_id)?;
    let pid = shim.slot.get().map_or(0, |sandbox| sandbox.pid());
    let status = match process.state() {
        State::Created | State::Starting => Status::CREATED,
        State::Running => Status::RUNNING,
        State::Stopped(_) => Status::STOPPED,
    };
    let exit = process.exit();
    Ok(StateResponse {
        id: container.id.clone(),
        bundle: container.bundle.to_string_lossy().into_owned(),
        pid,
        status: status.into(),
        stdin: process.stdio.stdin.clone(),
        stdout: process.stdio.stdout.clone(),
        stderr: process.stdio.stderr.clone(),
        terminal: process.stdio.terminal,
        exit_status: exit.map_or(0, |exit| exit.status),
        exited_at: exit.map(|exit| exit.at.into()).into(),
        exec_id: request.exec_id.clone(),
        ..StateResponse::default()
    })
}
