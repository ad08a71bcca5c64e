//! The task API: what a shim answers, with which status code.

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, DeleteRequest,
    DeleteResponse, KillRequest, PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest,
    ResumeRequest, StartRequest, StartResponse, StateRequest, StateResponse,
};
use containerd_shim_protos::protobuf::Message;

use crate::comparison::live::{Live, outcome};
use crate::comparison::table::{Group, Outcome};

/// The request with the container's id and, where it has one, this exec's.
macro_rules! request {
    ($kind:ident, $live:expr $(, $field:ident: $value:expr)*) => {
        $kind { id: $live.api.container().into(), $($field: $value,)* ..Default::default() }
    };
}

/// The status of a process as the shim tells it.
fn state(live: &Live, exec_id: &str) -> Outcome {
    let request = request!(StateRequest, live, exec_id: exec_id.into());
    match live.api.call::<_, StateResponse>("State", &request) {
        Ok(state) => Outcome(format!(
            "{:?}, exit status {}, terminal {}, pid {}",
            state.status,
            state.exit_status,
            state.terminal,
            state.pid > 0
        )),
        Err(refusal) => outcome(Err(refusal)),
    }
}

/// A request whose answer is not worth comparing.
fn answered<A: Message>(live: &Live, method: &str, request: &impl Message) -> Outcome {
    outcome(live.api.call::<_, A>(method, request).map(drop))
}

/// The rows of every run.
pub const SHORT: &[Group] = &[
    Group::running(
        "a running container",
        |_| {},
        "exec sleep 1000",
        &[
            ("state", |c| state(c, "")),
            ("state of an exec that is not there", |c| state(c, "none")),
            ("a second start", |c| {
                answered::<StartResponse>(c, "Start", &request!(StartRequest, c))
            }),
            ("deletion while it runs", |c| {
                answered::<DeleteResponse>(c, "Delete", &request!(DeleteRequest, c))
            }),
            ("start of an exec that is not there", |c| {
                answered::<StartResponse>(
                    c,
                    "Start",
                    &request!(StartRequest, c, exec_id: "none".into()),
                )
            }),
            ("deletion of an exec that is not there", |c| {
                answered::<DeleteResponse>(
                    c,
                    "Delete",
                    &request!(DeleteRequest, c, exec_id: "none".into()),
                )
            }),
            ("a signal for an exec that is not there", |c| {
                c.ask(
                    "Kill",
                    &request!(KillRequest, c, exec_id: "none".into(), signal: 9),
                )
            }),
            ("waiting for an exec that is not there", |c| {
                outcome(c.api.wait("none").map(drop))
            }),
            ("closing the input of an exec that is not there", |c| {
                c.ask(
                    "CloseIO",
                    &request!(CloseIORequest, c, exec_id: "none".into(), stdin: true),
                )
            }),
            ("resizing an exec that is not there", |c| {
                c.ask(
                    "ResizePty",
                    &request!(ResizePtyRequest, c, exec_id: "none".into(), width: 5, height: 5),
                )
            }),
            ("closing the input twice", |c| {
                c.ask("CloseIO", &request!(CloseIORequest, c, stdin: true));
                c.ask("CloseIO", &request!(CloseIORequest, c, stdin: true))
            }),
            ("resizing without a terminal", |c| {
                c.ask(
                    "ResizePty",
                    &request!(ResizePtyRequest, c, width: 5, height: 5),
                )
            }),
            ("its processes", |c| {
                match c
                    .api
                    .call::<_, PidsResponse>("Pids", &request!(PidsRequest, c))
                {
                    Ok(pids) => Outcome(format!("{} processes", pids.processes.len())),
                    Err(refusal) => outcome(Err(refusal)),
                }
            }),
            ("connecting", |c| {
                match c
                    .api
                    .call::<_, ConnectResponse>("Connect", &request!(ConnectRequest, c))
                {
                    Ok(answer) => Outcome(format!(
                        "shim {}, task {}",
                        answer.shim_pid > 0,
                        answer.task_pid > 0,
                    )),
                    Err(refusal) => outcome(Err(refusal)),
                }
            }),
            ("a checkpoint to nowhere", |c| {
                c.ask("Checkpoint", &request!(CheckpointTaskRequest, c))
            }),
            ("an update with garbage", |c| {
                c.update(&serde_json::json!({ "memory": "much" }))
            }),
            ("another container's name", |c| {
                c.ask(
                    "Pause",
                    &PauseRequest {
                        id: "nobody".into(),
                        ..Default::default()
                    },
                )
            }),
        ],
    ),
    Group::running(
        "execs in all their states",
        |_| {},
        "exec sleep 1000",
        &[
            ("created", |c| match c.api.exec(&c.process(&["true"])) {
                Ok(exec) => {
                    let seen = state(c, &exec.id);
                    exec.delete().ok();
                    seen
                }
                Err(refusal) => outcome(Err(refusal)),
            }),
            ("deleted before its start", |c| {
                outcome(
                    c.api
                        .exec(&c.process(&["true"]))
                        .and_then(|exec| exec.delete()),
                )
            }),
            ("running", |c| match c.started("sleep 1000") {
                Ok(exec) => {
                    let seen = state(c, &exec.id);
                    c.kill(&exec.id, 9, false).ok();
                    exec.finish().ok();
                    seen
                }
                Err(refusal) => outcome(Err(refusal)),
            }),
            ("deleted while it runs", |c| {
                outcome(c.started("exec sleep 1000").and_then(|exec| {
                    let early = exec.delete();
                    c.kill(&exec.id, 9, false)?;
                    exec.finish()?;
                    early
                }))
            }),
            ("stopped", |c| match c.started("exit 5") {
                Ok(exec) => {
                    c.api.wait(&exec.id).ok();
                    let seen = state(c, &exec.id);
                    exec.delete().ok();
                    seen
                }
                Err(refusal) => outcome(Err(refusal)),
            }),
            ("killed when it has stopped", |c| {
                outcome(c.started("exit 5").and_then(|exec| {
                    c.api.wait(&exec.id)?;
                    let late = c.kill(&exec.id, 9, false);
                    exec.delete()?;
                    late
                }))
            }),
            ("waited for twice", |c| {
                outcome(c.started("exit 5").and_then(|exec| {
                    c.api.wait(&exec.id)?;
                    let again = c.api.wait(&exec.id).map(drop);
                    exec.delete()?;
                    again
                }))
            }),
            ("deleted twice", |c| {
                outcome(c.started("exit 5").and_then(|exec| {
                    c.api.wait(&exec.id)?;
                    exec.delete()?;
                    exec.delete()
                }))
            }),
            ("killed before its start", |c| {
                outcome(c.api.exec(&c.process(&["true"])).and_then(|exec| {
                    let early = c.kill(&exec.id, 9, false);
                    exec.delete().ok();
                    early
                }))
            }),
        ],
    ),
    Group::running(
        "a paused container",
        |_| {},
        "exec sleep 1000",
        &[
            ("resuming what is not paused", |c| {
                c.ask("Resume", &request!(ResumeRequest, c))
            }),
            ("pausing", |c| c.ask("Pause", &request!(PauseRequest, c))),
            ("state", |c| state(c, "")),
            ("pausing again", |c| {
                c.ask("Pause", &request!(PauseRequest, c))
            }),
            ("an exec", |c| outcome(c.started("true").map(drop))),
            ("resuming", |c| c.ask("Resume", &request!(ResumeRequest, c))),
            ("state after that", |c| state(c, "")),
            ("runs again", |c| c.sh("echo alive")),
            ("killed while paused", |c| {
                c.ask("Pause", &request!(PauseRequest, c));
                let Outcome(killed) = outcome(c.kill("", 9, true));
                Outcome(format!("{killed}, {:?}", c.api.wait("").ok()))
            }),
        ],
    ),
    Group::running(
        "a container whose init has ended",
        |_| {},
        "sleep 1; exit 7",
        &[
            ("its exit status", |c| {
                Outcome(format!("{:?}", c.api.wait("").ok()))
            }),
            ("state", |c| state(c, "")),
            ("waiting again", |c| {
                Outcome(format!("{:?}", c.api.wait("").ok()))
            }),
            ("an exec", |c| outcome(c.started("true").map(drop))),
            ("KILL", |c| outcome(c.kill("", 9, false))),
            ("TERM", |c| outcome(c.kill("", 15, false))),
            ("KILL for all", |c| outcome(c.kill("", 9, true))),
            ("start", |c| {
                answered::<StartResponse>(c, "Start", &request!(StartRequest, c))
            }),
            ("pausing", |c| c.ask("Pause", &request!(PauseRequest, c))),
            ("resuming", |c| c.ask("Resume", &request!(ResumeRequest, c))),
            ("its processes", |c| {
                match c
                    .api
                    .call::<_, PidsResponse>("Pids", &request!(PidsRequest, c))
                {
                    Ok(pids) => Outcome(format!("{} processes", pids.processes.len())),
                    Err(refusal) => outcome(Err(refusal)),
                }
            }),
            ("an update", |c| c.update(&serde_json::json!({}))),
        ],
    ),
];
