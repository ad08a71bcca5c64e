//! A running container, asked over its shim's task API.

use containerd_shim_protos::api::{Empty, KillRequest, UpdateTaskRequest};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use husk_tests::task_api::{Exec, Refusal, TaskApi};
use serde_json::{Value, json};

use super::table::Outcome;

/// What containerd calls the type of an update's resources.
const RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// The container of a [`Cases::Running`](super::table::Cases::Running).
pub struct Live {
    /// Its shim.
    pub api: TaskApi,
    process: Value,
}

impl Live {
    /// Connects to a container made from that spec.
    #[track_caller]
    pub fn of(container: &str, spec: &Value) -> Self {
        Self {
            api: TaskApi::of(container),
            process: spec["process"].clone(),
        }
    }

    /// The container's own process object with another command: what `ctr task exec` sends.
    pub fn process(&self, command: &[&str]) -> Value {
        let mut process = self.process.clone();
        process["args"] = json!(command);
        process
    }

    /// Runs a script in the container.
    pub fn sh(&self, script: &str) -> Outcome {
        self.sh_with(script, |_| {})
    }

    /// Runs a script as a process that differs from the container's.
    pub fn sh_with(&self, script: &str, change: fn(&mut Value)) -> Outcome {
        self.exec_with(&["sh", "-c", script], change)
    }

    /// Runs a command in the container.
    pub fn exec(&self, command: &[&str]) -> Outcome {
        self.exec_with(command, |_| {})
    }

    /// Runs a command as a process that differs from the container's.
    pub fn exec_with(&self, command: &[&str], change: fn(&mut Value)) -> Outcome {
        let mut process = self.process(command);
        change(&mut process);
        let exec = match self.api.exec(&process) {
            Ok(exec) => exec,
            Err(refusal) => return refused("exec", &refusal),
        };
        if let Err(refusal) = exec.start() {
            // As containerd does after a failed start.
            let deleted = outcome(exec.delete());
            let Outcome(refused) = refused("start", &refusal);
            return Outcome(format!("{refused}; delete: {}", deleted.0));
        }
        match exec.finish() {
            Ok(ended) => Outcome::ended(
                ended.status.into(),
                &ended.stdout.replace('\r', "\\r"),
                &ended.stderr,
            ),
            Err(refusal) => refused("finish", &refusal),
        }
    }

    /// Starts a script, sends it a signal once it runs and tells how it ended.
    pub fn sh_killed_by(&self, script: &str, signal: u32) -> Outcome {
        let exec = match self.started(script) {
            Ok(exec) => exec,
            Err(refusal) => return refused("start", &refusal),
        };
        if let Err(refusal) = self.kill(&exec.id, signal, false) {
            return refused("kill", &refusal);
        }
        match exec.finish() {
            Ok(ended) => Outcome::ended(ended.status.into(), &ended.stdout, &ended.stderr),
            Err(refusal) => refused("finish", &refusal),
        }
    }

    /// Starts a script and leaves it running.
    pub fn started(&self, script: &str) -> Result<Exec<'_>, Refusal> {
        let exec = self.api.exec(&self.process(&["sh", "-c", script]))?;
        exec.start()?;
        Ok(exec)
    }

    /// Sends a signal to the init or, with an id, an exec.
    pub fn kill(&self, exec_id: &str, signal: u32, all: bool) -> Result<(), Refusal> {
        let request = KillRequest {
            id: self.api.container().into(),
            exec_id: exec_id.into(),
            signal,
            all,
            ..Default::default()
        };
        self.api.call::<_, Empty>("Kill", &request).map(drop)
    }

    /// Changes the container's resources as containerd's clients do.
    pub fn update(&self, resources: &Value) -> Outcome {
        let request = UpdateTaskRequest {
            id: self.api.container().into(),
            resources: Some(Any {
                type_url: RESOURCES.into(),
                value: resources.to_string().into_bytes(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        self.ask("Update", &request)
    }

    /// Any request with an empty answer.
    pub fn ask<Q: Message>(&self, method: &str, request: &Q) -> Outcome {
        outcome(self.api.call::<_, Empty>(method, request).map(drop))
    }
}

/// What came of a request without an answer worth comparing.
pub fn outcome(answer: Result<(), Refusal>) -> Outcome {
    match answer {
        Ok(()) => Outcome("done".into()),
        Err(refusal) => refused("request", &refusal),
    }
}

/// A refusal by its code and the class of its words.
fn refused(step: &str, refusal: &Refusal) -> Outcome {
    let Outcome(class) = Outcome::refused(&refusal.text);
    Outcome(format!("{step} {class} ({:?})", refusal.code))
}
