//! The status of every answer of the task API, in every state a task can be in: a table,
//! asked of our shim and of runc's over their own sockets.
//!
//! containerd and its clients decide by these codes: whether a task is gone already,
//! whether to try again, whether a shim is to be cleaned up.

mod requests;

use containerd_shim_protos::api::{
    Empty, PidsRequest, PidsResponse, ShutdownRequest, StateRequest, StateResponse, Status,
};
use containerd_shim_protos::protobuf::{EnumOrUnknown, Message};
use containerd_shim_protos::shim::oci::ProcessDetails;
use containerd_shim_protos::ttrpc::Code;
use husk_tests::containerd::Events;
use husk_tests::task_api::{Refusal, TaskApi};
use husk_tests::{Container, Node, Runtime, Task, process};

use requests::{Ask, ask};

const OK: Code = Code::OK;
/// What runc's shim answers where it does not say which kind of error it is: ours says it.
const UNNAMED: Code = Code::UNKNOWN;
const LINUX_RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// A request, our shim's answer, runc's.
type Row = (Ask, Code, Code);

/// Asks row by row and reports every row that differs, not only the first.
#[track_caller]
fn check(runtime: Runtime, api: &TaskApi, state: &str, rows: &[Row]) {
    let mut wrong = Vec::new();
    for (request, husk, runc) in rows {
        let expected = match runtime {
            Runtime::Husk => *husk,
            Runtime::Runc => *runc,
        };
        let answer = ask(api, api.container(), *request);
        if answer != expected {
            wrong.push(format!("{request:?}: {answer:?} instead of {expected:?}"));
        }
    }
    assert!(
        wrong.is_empty(),
        "{runtime:?}, {state}:\n{}",
        wrong.join("\n")
    );
}

fn sleeper(runtime: Runtime) -> Task {
    Container::new(runtime, &["sleep", "infinity"])
        .with(&["--null-io"])
        .detach()
}

#[test]
fn an_unknown_container_is_not_found_by_any_verb() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let task = sleeper(runtime);
        let api = TaskApi::of(task.id());
        for request in [
            Ask::Start(""),
            Ask::State(""),
            Ask::Kill("", 9),
            Ask::Delete(""),
            Ask::Exec("e"),
            Ask::Resize(""),
            Ask::CloseIo(""),
            Ask::Wait(""),
            Ask::Pids,
            Ask::Pause,
            Ask::Resume,
            Ask::Checkpoint,
            Ask::Update(LINUX_RESOURCES, "{}"),
            Ask::Stats,
        ] {
            let answer = ask(&api, "nobody", request);
            assert_eq!(answer, Code::NOT_FOUND, "{runtime:?}: {request:?}");
        }
        // The probe of a shim's life: an error would have containerd remove the shim.
        assert_eq!(ask(&api, "nobody", Ask::Connect), OK, "{runtime:?}");
        task.destroy();
    });
}

#[test]
fn a_running_task_answers_every_verb_with_the_right_status() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let task = sleeper(runtime);
        let api = TaskApi::of(task.id());
        check(
            runtime,
            &api,
            "running",
            &[
                (Ask::State(""), OK, OK),
                (Ask::Start(""), Code::FAILED_PRECONDITION, UNNAMED),
                (Ask::Delete(""), Code::FAILED_PRECONDITION, UNNAMED),
                (Ask::Resume, Code::FAILED_PRECONDITION, UNNAMED),
                (Ask::Resize(""), OK, OK),
                (Ask::CloseIo(""), OK, OK),
                (Ask::Connect, OK, OK),
                (Ask::Stats, OK, OK),
                (Ask::Update(LINUX_RESOURCES, "{}"), OK, OK),
                (
                    Ask::Update(LINUX_RESOURCES, "[]"),
                    Code::INVALID_ARGUMENT,
                    UNNAMED,
                ),
                (Ask::Kill("", 4096), Code::INVALID_ARGUMENT, UNNAMED),
                // With a task left it does nothing.
                (Ask::Shutdown, OK, OK),
                (Ask::Pids, OK, OK),
            ],
        );
        check(
            runtime,
            &api,
            "unknown exec",
            &[
                (Ask::Start("e"), Code::NOT_FOUND, Code::NOT_FOUND),
                (Ask::State("e"), Code::NOT_FOUND, Code::NOT_FOUND),
                (Ask::Kill("e", 9), Code::NOT_FOUND, Code::NOT_FOUND),
                (Ask::Delete("e"), Code::NOT_FOUND, Code::NOT_FOUND),
                (Ask::Resize("e"), Code::NOT_FOUND, Code::NOT_FOUND),
                (Ask::CloseIo("e"), Code::NOT_FOUND, UNNAMED),
                (Ask::Wait("e"), Code::NOT_FOUND, Code::NOT_FOUND),
            ],
        );
        if runtime == Runtime::Husk {
            // Of these runc has no opinion, or depends on what the host has installed.
            for (request, expected) in [
                (Ask::Create, Code::ALREADY_EXISTS),
                (Ask::Checkpoint, Code::UNIMPLEMENTED),
                (
                    Ask::Update("types/WindowsResources", "{}"),
                    Code::INVALID_ARGUMENT,
                ),
            ] {
                assert_eq!(ask(&api, task.id(), request), expected, "{request:?}");
            }
        }
        task.destroy();
    });
}

#[test]
fn an_exec_answers_every_verb_with_the_right_status() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let task = sleeper(runtime);
        let api = TaskApi::of(task.id());
        check(
            runtime,
            &api,
            "created exec",
            &[
                (Ask::ExecNonsense, Code::INVALID_ARGUMENT, UNNAMED),
                (Ask::Exec("e"), OK, OK),
                (Ask::Exec("e"), Code::ALREADY_EXISTS, Code::ALREADY_EXISTS),
                (Ask::State("e"), OK, OK),
                (Ask::Resize("e"), OK, OK),
                (Ask::CloseIo("e"), OK, OK),
                (
                    Ask::Kill("e", 9),
                    Code::FAILED_PRECONDITION,
                    Code::FAILED_PRECONDITION,
                ),
                (Ask::Delete("e"), OK, OK),
                (Ask::Delete("e"), Code::NOT_FOUND, Code::NOT_FOUND),
            ],
        );
        check(
            runtime,
            &api,
            "ended exec",
            &[
                (Ask::Exec("e"), OK, OK),
                (Ask::Start("e"), OK, OK),
                (Ask::Wait("e"), OK, OK),
                (Ask::Wait("e"), OK, OK),
                (Ask::Start("e"), Code::FAILED_PRECONDITION, UNNAMED),
                (Ask::Kill("e", 9), OK, Code::NOT_FOUND),
                (Ask::Kill("e", 15), OK, Code::NOT_FOUND),
                (Ask::Kill("e", 10), Code::NOT_FOUND, Code::NOT_FOUND),
                (Ask::Resize("e"), Code::FAILED_PRECONDITION, UNNAMED),
                (Ask::State("e"), OK, OK),
            ],
        );
        assert_eq!(api.wait("e").expect("it is known"), 3, "{runtime:?}");
        assert_eq!(state(&api, "e"), Status::STOPPED, "{runtime:?}");
        assert_eq!(ask(&api, task.id(), Ask::Delete("e")), OK, "{runtime:?}");
        task.destroy();
    });
}

#[test]
fn a_paused_task_answers_every_verb_with_the_right_status() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let task = sleeper(runtime);
        let api = TaskApi::of(task.id());
        check(
            runtime,
            &api,
            "paused",
            &[
                (Ask::Exec("e"), OK, OK),
                (Ask::Pause, OK, OK),
                (Ask::Pause, Code::FAILED_PRECONDITION, UNNAMED),
                (Ask::Exec("f"), Code::FAILED_PRECONDITION, UNNAMED),
                (Ask::Start("e"), Code::FAILED_PRECONDITION, UNNAMED),
                (Ask::Start(""), Code::FAILED_PRECONDITION, UNNAMED),
                (Ask::Delete(""), Code::FAILED_PRECONDITION, UNNAMED),
                (Ask::Stats, OK, OK),
                (Ask::Pids, OK, OK),
                (Ask::Update(LINUX_RESOURCES, "{}"), OK, OK),
            ],
        );
        assert_eq!(state(&api, ""), Status::PAUSED, "{runtime:?}");
        check(
            runtime,
            &api,
            "resumed",
            &[
                (Ask::Resume, OK, OK),
                (Ask::Resume, Code::FAILED_PRECONDITION, UNNAMED),
            ],
        );
        assert_eq!(state(&api, ""), Status::RUNNING, "{runtime:?}");
        task.destroy();
    });
}

#[test]
fn a_stopped_task_answers_every_verb_with_the_right_status() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let task = sleeper(runtime);
        let api = TaskApi::of(task.id());
        task.kill("KILL");
        for _ in 0..2 {
            assert_eq!(api.wait("").expect("it is known"), 137, "{runtime:?}");
        }
        assert_eq!(state(&api, ""), Status::STOPPED, "{runtime:?}");
        check(
            runtime,
            &api,
            "stopped",
            &[
                (Ask::Start(""), Code::FAILED_PRECONDITION, UNNAMED),
                (Ask::Exec("e"), Code::FAILED_PRECONDITION, UNNAMED),
                (Ask::Pause, Code::FAILED_PRECONDITION, UNNAMED),
                (Ask::Resume, Code::FAILED_PRECONDITION, UNNAMED),
                (
                    Ask::Update(LINUX_RESOURCES, "{}"),
                    Code::FAILED_PRECONDITION,
                    UNNAMED,
                ),
                (Ask::Resize(""), OK, OK),
                (Ask::Kill("", 9), OK, Code::NOT_FOUND),
                (Ask::Kill("", 15), OK, Code::NOT_FOUND),
                (Ask::Kill("", 10), Code::NOT_FOUND, Code::NOT_FOUND),
                (Ask::Wait(""), OK, OK),
                (Ask::Connect, OK, OK),
                (Ask::Delete(""), OK, OK),
                (Ask::Delete(""), Code::NOT_FOUND, Code::NOT_FOUND),
                (Ask::Kill("", 9), Code::NOT_FOUND, Code::NOT_FOUND),
                (Ask::State(""), Code::NOT_FOUND, Code::NOT_FOUND),
            ],
        );
        // Without a task left the shim ends, and containerd notices.
        let answer = ask(&api, task.id(), Ask::Shutdown);
        // runc's shim is gone before it has answered now and then.
        let gone = runtime == Runtime::Runc && answer == Code::UNAVAILABLE;
        assert!(answer == OK || gone, "{runtime:?}: {answer:?}");
        task.forgotten();
    });
}

#[test]
fn the_pid_of_an_exec_carries_its_id() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let task = sleeper(runtime);
        let mut exec = task.start_exec_as("listed", &["sh", "-c", "echo ready; sleep infinity"]);
        exec.wait_for("ready");
        let api = TaskApi::of(task.id());
        let request = PidsRequest {
            id: task.id().into(),
            ..Default::default()
        };
        let list: PidsResponse = api.call("Pids", &request).expect("the task exists");
        let ids: Vec<String> = list
            .processes
            .iter()
            .filter_map(|process| process.info.as_ref())
            .map(|info| {
                assert_eq!(
                    info.type_url, "containerd.runc.v1.ProcessDetails",
                    "{runtime:?}"
                );
                let details = ProcessDetails::parse_from_bytes(&info.value);
                details.expect("a message of its type").exec_id
            })
            .collect();
        assert_eq!(ids, ["listed"], "{runtime:?}: {list:?}");
        task.kill("KILL");
        exec.finish();
        task.wait();
        task.delete();
    });
}

#[test]
fn a_guest_that_stands_still_is_answered_for_and_can_be_killed() {
    let _node = Node::enter();
    let events = Events::subscribe();
    let task = sleeper(Runtime::Husk);
    let api = TaskApi::of(task.id());
    assert_eq!(ask(&api, task.id(), Ask::Stats), OK, "figures to remember");
    signal(task.pid(), "STOP");
    // containerd waits 2 s for a State and then shows UNKNOWN.
    assert_eq!(task.status(), "RUNNING");
    let request = PidsRequest {
        id: task.id().into(),
        ..Default::default()
    };
    let list: PidsResponse = api.call("Pids", &request).expect("the task exists");
    let pids: Vec<u32> = list.processes.iter().map(|process| process.pid).collect();
    assert_eq!(pids, [task.pid()]);
    for (request, expected) in [
        (Ask::Stats, OK),
        (Ask::Connect, OK),
        (Ask::State(""), OK),
        (Ask::Kill("", 15), Code::DEADLINE_EXCEEDED),
        (Ask::Kill("", 9), OK),
        (Ask::Wait(""), OK),
    ] {
        assert_eq!(ask(&api, task.id(), request), expected, "{request:?}");
    }
    assert_eq!(task.delete(), 137);
    assert_eq!(events.one_exit(), 137);
}

#[test]
fn the_death_of_the_machine_is_what_later_callers_read() {
    let _node = Node::enter();
    let task = sleeper(Runtime::Husk);
    signal(task.pid(), "KILL");
    // At once, and when the exit is known.
    for _ in 0..2 {
        task.exec(&["true"])
            .failed_saying(&["the virtual machine ended", "SIGKILL"]);
        task.wait();
    }
    assert_eq!(task.delete(), 137);
}

#[test]
fn shutdown_now_ends_what_runs_and_its_exit_is_told_once() {
    let _node = Node::enter();
    let mut events = Events::subscribe();
    let task = sleeper(Runtime::Husk);
    let request = ShutdownRequest {
        id: task.id().into(),
        now: true,
        ..Default::default()
    };
    let api = TaskApi::of(task.id());
    let ended: Result<Empty, Refusal> = api.call("Shutdown", &request);
    assert!(ended.is_ok(), "{ended:?}");
    task.forgotten();
    events.wait_for("/tasks/exit");
    let exits: Vec<_> = events
        .tasks()
        .into_iter()
        .filter(|(topic, _)| topic == "/tasks/exit")
        .map(|(_, event)| event["exit_status"].clone())
        .collect();
    assert_eq!(exits, [137]);
}

#[track_caller]
fn signal(pid: u32, name: &str) {
    let mut kill = std::process::Command::new("kill");
    kill.args([&format!("-{name}"), &pid.to_string()]);
    process::run(kill).succeeded();
}

#[track_caller]
fn state(api: &TaskApi, exec_id: &str) -> Status {
    let request = StateRequest {
        id: api.container().into(),
        exec_id: exec_id.into(),
        ..Default::default()
    };
    let state: StateResponse = api.call("State", &request).expect("the process is known");
    let status: EnumOrUnknown<Status> = state.status;
    status.enum_value().expect("a status containerd knows")
}
