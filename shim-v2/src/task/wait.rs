//! Wait: the exit of a process, whenever it comes. Needs no guest.

use containerd_shim_protos::api::{WaitRequest, WaitResponse};

use crate::error::Error;
use crate::shim::Shim;

/// Waits for a process's end.
pub async fn wait(shim: &Shim, request: &WaitRequest) -> Result<WaitResponse, Error> {
    let container = shim.containers.get(&request.id)?;
    let process = container.process(&request.exec_id)?;
    let exit = process.wait().await;
    Ok(WaitResponse {
        exit_status: exit.status,
        exited_at: Some(exit.at.into()).into(),
        ..WaitResponse::default()
    })
}
