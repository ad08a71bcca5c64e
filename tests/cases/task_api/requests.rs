//! The requests of the task API in one line each, and what code answers them.

use std::fmt::Debug;

use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::ttrpc::Code;
use husk_tests::ctr;
use husk_tests::task_api::{Refusal, TaskApi};
use serde_json::json;

/// A request about the container, or about one of its execs.
#[derive(Clone, Copy, Debug)]
pub enum Ask {
    Start(&'static str),
    State(&'static str),
    Kill(&'static str, u32),
    Delete(&'static str),
    Exec(&'static str),
    /// An exec whose spec is not a process.
    ExecNonsense,
    Resize(&'static str),
    CloseIo(&'static str),
    Wait(&'static str),
    Pids,
    Pause,
    Resume,
    Checkpoint,
    Update(&'static str, &'static str),
    Stats,
    Connect,
    Create,
    Shutdown,
}

/// Puts the request to the container `id`.
#[track_caller]
pub fn ask(api: &TaskApi, id: &str, ask: Ask) -> Code {
    let id = || id.to_owned();
    match ask {
        Ask::Start(exec) => code(api.call::<_, StartResponse>(
            "Start",
            &StartRequest {
                id: id(),
                exec_id: exec.into(),
                ..Default::default()
            },
        )),
        Ask::State(exec) => code(api.call::<_, StateResponse>(
            "State",
            &StateRequest {
                id: id(),
                exec_id: exec.into(),
                ..Default::default()
            },
        )),
        Ask::Kill(exec, signal) => code(api.call::<_, Empty>(
            "Kill",
            &KillRequest {
                id: id(),
                exec_id: exec.into(),
                signal,
                ..Default::default()
            },
        )),
        Ask::Delete(exec) => code(api.call::<_, DeleteResponse>(
            "Delete",
            &DeleteRequest {
                id: id(),
                exec_id: exec.into(),
                ..Default::default()
            },
        )),
        Ask::Exec(exec) => exec_with(api, id(), exec, &process_spec()),
        Ask::ExecNonsense => exec_with(api, id(), "nonsense", "[]"),
        Ask::Resize(exec) => code(api.call::<_, Empty>(
            "ResizePty",
            &ResizePtyRequest {
                id: id(),
                exec_id: exec.into(),
                width: 80,
                height: 24,
                ..Default::default()
            },
        )),
        Ask::CloseIo(exec) => code(api.call::<_, Empty>(
            "CloseIO",
            &CloseIORequest {
                id: id(),
                exec_id: exec.into(),
                stdin: true,
                ..Default::default()
            },
        )),
        Ask::Wait(exec) => code(api.call::<_, WaitResponse>(
            "Wait",
            &WaitRequest {
                id: id(),
                exec_id: exec.into(),
                ..Default::default()
            },
        )),
        other => ask_of_the_container(api, id(), other),
    }
}

/// Those requests that know no execs.
#[track_caller]
fn ask_of_the_container(api: &TaskApi, id: String, ask: Ask) -> Code {
    match ask {
        Ask::Pids => code(api.call::<_, PidsResponse>(
            "Pids",
            &PidsRequest {
                id,
                ..Default::default()
            },
        )),
        Ask::Pause => code(api.call::<_, Empty>(
            "Pause",
            &PauseRequest {
                id,
                ..Default::default()
            },
        )),
        Ask::Resume => code(api.call::<_, Empty>(
            "Resume",
            &ResumeRequest {
                id,
                ..Default::default()
            },
        )),
        Ask::Checkpoint => code(api.call::<_, Empty>(
            "Checkpoint",
            &CheckpointTaskRequest {
                id,
                path: "/run/no-checkpoint".into(),
                ..Default::default()
            },
        )),
        Ask::Update(type_url, json) => code(api.call::<_, Empty>(
            "Update",
            &UpdateTaskRequest {
                id,
                resources: Some(any(type_url, json)).into(),
                ..Default::default()
            },
        )),
        Ask::Stats => code(api.call::<_, StatsResponse>(
            "Stats",
            &StatsRequest {
                id,
                ..Default::default()
            },
        )),
        Ask::Connect => code(api.call::<_, ConnectResponse>(
            "Connect",
            &ConnectRequest {
                id,
                ..Default::default()
            },
        )),
        Ask::Create => code(api.call::<_, CreateTaskResponse>(
            "Create",
            &CreateTaskRequest {
                bundle: format!("{}/{id}", ctr::BUNDLES),
                id,
                ..Default::default()
            },
        )),
        Ask::Shutdown => code(api.call::<_, Empty>(
            "Shutdown",
            &ShutdownRequest {
                id,
                ..Default::default()
            },
        )),
        other => panic!("{other:?} is about a process"),
    }
}

#[track_caller]
fn exec_with(api: &TaskApi, id: String, exec_id: &str, spec: &str) -> Code {
    let request = ExecProcessRequest {
        id,
        exec_id: exec_id.into(),
        spec: Some(any(
            "types.containerd.io/opencontainers/runtime-spec/1/Process",
            spec,
        ))
        .into(),
        ..Default::default()
    };
    code(api.call::<_, Empty>("Exec", &request))
}

fn any(type_url: &str, json: &str) -> Any {
    Any {
        type_url: type_url.into(),
        value: json.as_bytes().to_vec(),
        ..Default::default()
    }
}

fn process_spec() -> String {
    json!({
        "args": ["sh", "-c", "exit 3"],
        "cwd": "/",
        "env": ["PATH=/bin"],
        "user": { "uid": 0, "gid": 0 },
    })
    .to_string()
}

#[track_caller]
fn code<A: Debug>(answer: Result<A, Refusal>) -> Code {
    match answer {
        Ok(_) => Code::OK,
        Err(refusal) => {
            assert!(
                !refusal.text.is_empty(),
                "{:?} without a word",
                refusal.code
            );
            refusal.code
        }
    }
}
