//! Stop 12 of twelve: a process's end becomes Wait's answer and the exit event.
//!
//! One task per process, and only it records the exit: so there is exactly one,
//! whether the guest reports it or the whole VM dies. It comes after the output
//! was delivered, and for an init after the exits of its execs.
//!
//! One more task per container watches the OOM killer. It kills without ending the
//! init, too; and where it does end a process, the report of that end carries the
//! count, so that the oom event is queued before the exit whoever is first.

use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::events::task::{TaskExit, TaskOOM};
use tokio::time::{sleep, timeout};

use super::Container;
use super::metrics;
use super::process::{Exit, KILLED, Process, State};
use crate::events::Events;
use crate::sandbox::Sandbox;
use crate::sandbox::agent::AgentError;
use crate::shim::Shim;

/// How long the exit of an init waits for those of its execs: their own output may
/// be slow to be read.
const EXECS: Duration = Duration::from_secs(11);

/// How long a machine outlives its only container: Delete usually comes at once, and ends it.
const RETIRE_DELAY: Duration = Duration::from_secs(1);

/// Least time between two oom events of a container.
const OOM_INTERVAL: Duration = Duration::from_millis(100);

/// Follows a process to its end and publishes it.
pub async fn supervise(
    events: Events,
    sandbox: Arc<Sandbox>,
    container: Arc<Container>,
    process: Arc<Process>,
) {
    let exit = match sandbox.agent.wait(&container.id, &process.exec_id).await {
        Ok(ended) => {
            publish_oom(&events, &container, ended.oom_kills);
            Exit::now(ended.status)
        }
        Err(error) => {
            log::error!(
                "{}: exit status {KILLED}: {error}",
                name(&container, &process)
            );
            if matches!(error, AgentError::Connection { .. }) {
                // An agent that cannot be asked is a machine that cannot be used.
                sandbox.kill();
            }
            if process.exec_id.is_empty() && sandbox.host_oom_kills() > 0 {
                log::error!("the host ran out of the memory of the pod's cgroup");
                tell_oom(&events, &container);
            }
            Exit::now(KILLED)
        }
    };
    process.settled().await;
    if process.exec_id.is_empty() {
        end_execs(&container).await;
    }
    if let Some(streams) = process.streams() {
        let answers = || async { sandbox.agent.ping().await.is_ok() };
        streams.drained(answers).await;
        // A logger is Delete's to wait for.
        if streams.is_drained() && streams.logger().is_none() {
            process.drop_streams();
        }
    }
    publish_exit(&events, &container, &process, exit);
}

/// Ends the machine of a container that is in no pod, some time after the container has ended: it
/// is of no use any more, and Delete may be long in coming. What the host has made for the
/// machine stays until then.
pub async fn retire(shim: Arc<Shim>, sandbox: Arc<Sandbox>, container: Arc<Container>) {
    sleep(RETIRE_DELAY).await;
    let count = *shim.containers.count().borrow();
    let delivered =
        |process: &Arc<Process>| process.streams().is_none_or(|streams| streams.is_drained());
    // Output that nobody has read yet is still in the guest.
    let done = delivered(&container.init) && container.all_execs().iter().all(delivered);
    if count != 1 || !done {
        return;
    }
    // Stats answers with these from now on.
    if let Ok(files) = sandbox.agent.read_cgroup(&container.id).await
        && let Ok(metrics) = metrics::encode(&files, &metrics::network::links(sandbox.pid()))
    {
        container.keep_metrics(&metrics);
    }
    log::info!(
        "container {} has ended, and its machine with it",
        container.id
    );
    sandbox.end_vm().await;
}

/// Publishes what the OOM killer does in a container, until it is deleted.
pub async fn watch_oom(events: Events, sandbox: Arc<Sandbox>, container: Arc<Container>) {
    let mut seen = 0;
    loop {
        match sandbox.agent.wait_oom(&container.id, seen).await {
            Ok(kills) if kills > seen => {
                publish_oom(&events, &container, kills);
                seen = kills;
            }
            Ok(_) => {
                return log::error!("container {}: the guest repeats an OOM kill", container.id);
            }
            Err(error) => return log::debug!("container {}: {error}", container.id),
        }
        // Killed again and again, it is told no more often than it matters to anybody.
        sleep(OOM_INTERVAL).await;
    }
}

fn publish_oom(events: &Events, container: &Container, kills: u64) {
    if !container.note_oom_kills(kills) {
        return;
    }
    log::warn!(
        "container {}: out of memory, {kills} processes killed so far",
        container.id
    );
    tell_oom(events, container);
}

/// Also for a kill the guest did not count: its machine was killed with all in it.
fn tell_oom(events: &Events, container: &Container) {
    events.publish(&TaskOOM {
        container_id: container.id.clone(),
        ..TaskOOM::default()
    });
}

/// Records and publishes an exit, if it is the process's first.
pub fn publish_exit(events: &Events, container: &Container, process: &Process, exit: Exit) {
    if !process.exited(exit) {
        return;
    }
    log::info!(
        "{} exited with status {}",
        name(container, process),
        exit.status
    );
    let id = match process.exec_id.as_str() {
        "" => &container.id,
        exec_id => exec_id,
    };
    events.publish(&TaskExit {
        container_id: container.id.clone(),
        id: id.to_owned(),
        pid: container.pid,
        exit_status: exit.status,
        exited_at: Some(exit.at.into()).into(),
        ..TaskExit::default()
    });
}

/// An init takes its execs along; their exits are published first.
async fn end_execs(container: &Container) {
    let all = async {
        for exec in container.all_execs() {
            match exec.state() {
                // Never started, so there is no exit to tell: only waiters are let go.
                State::Created => drop(exec.exited(Exit::now(KILLED))),
                _ => drop(exec.wait().await),
            }
        }
    };
    if timeout(EXECS, all).await.is_err() {
        log::warn!(
            "container {}: a process did not end with its init",
            container.id
        );
    }
}

fn name(container: &Container, process: &Process) -> String {
    match process.exec_id.as_str() {
        "" => format!("container {}", container.id),
        exec_id => format!("container {} process {exec_id}", container.id),
    }
}
