//! Exec: registers one more process of a running container; Start runs it.

use std::path::Path;
use std::sync::Arc;

use containerd_shim_protos::api::{Empty, ExecProcessRequest};
use containerd_shim_protos::events::task::TaskExecAdded;
use serde::Deserialize;
use serde_json::{Map, Value, json};

use crate::config::{self, Config, LabelPolicy};
use crate::container::process::{Process, State, StateError};
use crate::container::stdio::Paths;
use crate::container::{Container, labels, rlimits};
use crate::error::Error;
use crate::ids;
use crate::shim::Shim;

/// Registers an exec.
pub async fn exec(shim: Arc<Shim>, request: ExecProcessRequest) -> Result<Empty, Error> {
    let container = shim.containers.get(&request.id)?;
    ids::check(&request.exec_id)?;
    may_exec(&container).await?;
    let policy = Config::load(Path::new(config::PATH))?.lsm_labels;
    let spec = process_spec(&request.spec.value, request.terminal, policy)?;
    let stdio = Paths {
        terminal: request.terminal,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    };
    stdio.check()?;
    container.add_exec(Process::new(request.exec_id.clone(), stdio, spec))?;
    shim.events.publish(&TaskExecAdded {
        container_id: request.id,
        exec_id: request.exec_id,
        ..TaskExecAdded::default()
    });
    Ok(Empty::default())
}

/// Processes can be added as soon as there is an init, and while nothing stands still.
pub async fn may_exec(container: &Container) -> Result<(), StateError> {
    match container.init.steady().await {
        State::Created | State::Running => Ok(()),
        state => Err(state.refuses("exec in")),
    }
}

/// The types of what an exec is told, where a wrong one is likely. Whether the values make
/// sense is the guest's to say, when it starts.
#[derive(Deserialize)]
#[expect(dead_code, reason = "read for the types alone")]
struct Types {
    args: Option<Vec<String>>,
    env: Option<Vec<String>>,
    cwd: Option<String>,
    user: Option<UserTypes>,
}

#[derive(Deserialize)]
#[expect(dead_code, reason = "read for the types alone")]
struct UserTypes {
    uid: Option<u32>,
    gid: Option<u32>,
    #[serde(rename = "additionalGids")]
    additional_gids: Option<Vec<u32>>,
}

/// The OCI `process` object for the guest: the request decides about the terminal,
/// and labels of the host's security modules stay on the host.
fn process_spec(json: &[u8], terminal: bool, policy: LabelPolicy) -> Result<Vec<u8>, Error> {
    let bad = |problem: String| Error::Argument {
        what: "spec",
        problem,
    };
    let not_a_process = |error| bad(format!("is not an OCI process object: {error}"));
    let mut process: Map<String, Value> = serde_json::from_slice(json).map_err(not_a_process)?;
    serde_json::from_slice::<Types>(json).map_err(not_a_process)?;
    process.insert("terminal".to_owned(), terminal.into());
    // Without any it has the container's, as with runc; with some the others are the shim's.
    if process
        .get("rlimits")
        .is_some_and(|limits| limits != &json!([]) && !limits.is_null())
    {
        rlimits::inherit(&mut process, &rlimits::own());
    }
    labels::strip(&mut process, "process", labels::PROCESS, policy)?;
    serde_json::to_vec(&process).map_err(|error| bad(error.to_string()))
}

/// Adds the size a terminal was given before there was one.
pub fn with_size(process: &[u8], size: Option<(u32, u32)>) -> Vec<u8> {
    let parsed = serde_json::from_slice::<Map<String, Value>>(process);
    let (Ok(mut object), Some((width, height))) = (parsed, size) else {
        return process.to_vec();
    };
    object.insert(
        "consoleSize".to_owned(),
        json!({ "width": width, "height": height }),
    );
    Value::Object(object).to_string().into_bytes()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_process_object_is_adapted_or_refused() {
        let spec = process_spec(
            br#"{"args":["a"],"terminal":false,"apparmorProfile":"p"}"#,
            true,
            LabelPolicy::Ignore,
        );
        let spec: Value = serde_json::from_slice(&spec.unwrap()).unwrap();
        assert_eq!(spec, json!({ "args": ["a"], "terminal": true }));
        let types = br#"{"user":{"uid":"root"}}"#;
        for bad in [&b""[..], b"{", b"[]", b"null", types] {
            assert!(process_spec(bad, false, LabelPolicy::Ignore).is_err());
        }
    }

    #[test]
    fn an_early_size_goes_into_the_object() {
        let sized: Value = serde_json::from_slice(&with_size(b"{}", Some((80, 24)))).unwrap();
        assert_eq!(
            sized,
            json!({ "consoleSize": { "width": 80, "height": 24 } })
        );
        assert_eq!(with_size(b"{}", None), b"{}");
    }
}
