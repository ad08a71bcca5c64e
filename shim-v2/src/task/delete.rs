//! Delete: forgets an ended process; with the last container the sandbox goes too.

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::api::{DeleteRequest, DeleteResponse};
use containerd_shim_protos::events::task::TaskDelete;
use tokio::time::{Instant, timeout_at};

use crate::container::Container;
use crate::container::process::{Exit, KILLED, Process, State};
use crate::container::rootfs::Shared;
use crate::container::supervise::publish_exit;
use crate::error::{Error, chain};
use crate::hooks;
use crate::sandbox::demand::Settled;
use crate::sandbox::{Sandbox, SlotError};
use crate::shim::Shim;

/// Deletes an exec or a container.
pub async fn delete(shim: Arc<Shim>, request: DeleteRequest) -> Result<DeleteResponse, Error> {
    let found = shim.containers.get(&request.id);
    let container = found.inspect_err(|_| shim.containers.cancel(&request.id))?;
    let process = container.process(&request.exec_id)?;
    let sandbox = shim.slot.get().ok_or(SlotError::Ended)?;
    let exit = match process.state() {
        State::Stopped(exit) => exit,
        State::Created => Exit::now(KILLED),
        state => return Err(state.refuses("delete").into()),
    };
    let pid = container.pid;
    if request.exec_id.is_empty() {
        let last = shim.containers.begin_delete(&request.id)?;
        end_streams(&sandbox, &process).await;
        // A pod of the sandbox service does not end with its containers.
        let last = last && shim.pod.get().is_none();
        // A container that never ran still ends, and ends before it is deleted.
        publish_exit(&shim.events, &container, &process, exit);
        delete_container(sandbox, &container, last).await;
        shim.containers.remove(&request.id);
        shim.events.publish(&TaskDelete {
            container_id: request.id,
            pid,
            exit_status: exit.status,
            exited_at: Some(exit.at.into()).into(),
            ..TaskDelete::default()
        });
    } else {
        end_streams(&sandbox, &process).await;
        // As with runc, the end of an exec is its exit event.
        delete_exec(&sandbox, &container, &process).await;
    }
    if !request.exec_id.is_empty() && process.guest_pid().is_none() {
        // As runc tells of an exec that never ran: no pid, no status, no time.
        return Ok(DeleteResponse::default());
    }
    Ok(DeleteResponse {
        pid,
        exit_status: exit.status,
        exited_at: Some(exit.at.into()).into(),
        ..DeleteResponse::default()
    })
}

/// A slow reader had its time when the process ended, and gets a little more now; what was
/// logged is complete, if the logger does not take too long: containerd waits 5 s for all of
/// Delete. A logger that does not end is ended by its follower.
async fn end_streams(sandbox: &Sandbox, process: &Process) {
    const LIMIT: Duration = Duration::from_secs(2);
    let deadline = Instant::now() + LIMIT;
    let streams = process.streams();
    if let (Some(streams), State::Stopped(_)) = (&streams, process.state()) {
        let answers = || async { sandbox.agent.ping().await.is_ok() };
        drop(timeout_at(deadline, streams.drained(answers)).await);
    }
    let logger = streams.and_then(|streams| streams.logger());
    process.drop_streams();
    if let Some(mut logger) = logger {
        // An error: the sender is gone, and so is the logger.
        drop(timeout_at(deadline, logger.wait_for(|()| false)).await);
    }
}

async fn delete_exec(sandbox: &Sandbox, container: &Container, process: &Process) {
    if process.guest_pid().is_some() {
        forget_in_guest(sandbox, container, &process.exec_id).await;
    }
    // Whoever still waits for an exec that never ran is let go.
    process.exited(Exit::now(KILLED));
    container.remove_exec(&process.exec_id);
}

/// The last container takes the machine along, which undoes everything at once and
/// in the background: Shutdown waits for it.
async fn delete_container(sandbox: Arc<Sandbox>, container: &Container, last: bool) {
    if last {
        if hooks::pending(&sandbox.file, &container.id) {
            // They are to find the container gone, and its files still there.
            sandbox.end_vm().await;
            hooks::poststop(&sandbox.file, &container.id).await;
        }
        tokio::spawn(async move { sandbox.stop().await });
        return;
    }
    let noted = sandbox.file.record(|state| {
        state.outlived |= state.bundle == container.bundle;
    });
    if let Err(error) = noted {
        log::error!("container {}: state.json: {error}", container.id);
    }
    forget_in_guest(&sandbox, container, "").await;
    sandbox.growth.settle(&container.id, Settled::Gone).await;
    hooks::poststop(&sandbox.file, &container.id).await;
    release_files(&sandbox, container.shared.clone(), container.id.clone()).await;
}

/// The guest's opinion is not needed to delete: what it cannot undo goes with the VM.
async fn forget_in_guest(sandbox: &Sandbox, container: &Container, exec_id: &str) {
    if let Err(error) = sandbox.agent.delete(&container.id, exec_id).await {
        log::warn!(
            "container {}: the guest did not clean up: {error}",
            container.id
        );
    }
}

/// Takes a container's files back from the guest and unmounts them.
pub async fn release_files(sandbox: &Sandbox, shared: Shared, id: String) {
    shared.take_back(&sandbox.control).await;
    if let Err(error) = sandbox.control.remove_thread(id.clone()).await {
        log::warn!("container {id}: {error}");
    }
    let file = sandbox.file.clone();
    let unmounted = tokio::task::spawn_blocking(move || shared.unmount(&file, &id)).await;
    if let Ok(Err(error)) = unmounted {
        log::error!("clean-up: {}", chain(&error));
    }
}
