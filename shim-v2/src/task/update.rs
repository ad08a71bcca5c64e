//! Update: new limits for a container. They are the guest's to apply; where they are more
//! than the machine has, it grows first, and where they are less it may shrink afterwards.

use std::sync::Arc;

use containerd_shim_protos::api::{Empty, UpdateTaskRequest};
use serde_json::{Map, Value};

use crate::container::oci::{Resources, drop_host_numbers};
use crate::container::process::State;
use crate::error::Error;
use crate::sandbox::SlotError;
use crate::sandbox::demand::Settled;
use crate::shim::Shim;

/// How the type of the resources ends; before it stands a version of the OCI spec.
const TYPE: &str = "LinuxResources";

/// Applies what the resources name to a container.
pub async fn update(shim: Arc<Shim>, request: UpdateTaskRequest) -> Result<Empty, Error> {
    let container = shim.containers.get(&request.id)?;
    let resources = request.resources.into_option().unwrap_or_default();
    let (named, resources) = check(&resources.type_url, &resources.value)?;
    let state = container.init.state();
    if matches!(state, State::Stopped(_)) {
        return Err(state.refuses("update").into());
    }
    let sandbox = shim.slot.get().ok_or(SlotError::Ended)?;
    let growth = &sandbox.growth;
    growth.fit(&request.id, named).await;
    let updated = sandbox.agent.update(&request.id, resources).await;
    let settled = match updated {
        Ok(()) => Settled::Applied,
        Err(_) => Settled::Refused,
    };
    growth.settle(&request.id, settled).await;
    updated?;
    Ok(Empty::default())
}

/// containerd sends Go's JSON form of the OCI object, under a type of its own making. Returns
/// what the machine is made to fit, and the object for the guest.
fn check(type_url: &str, json: &[u8]) -> Result<(Resources, Vec<u8>), Error> {
    let bad = |problem: String| Error::Argument {
        what: "resources",
        problem,
    };
    if type_url.rsplit('/').next() != Some(TYPE) {
        return Err(bad(format!("is of type {type_url:?}, not {TYPE}")));
    }
    let no_object = |error| bad(format!("is not an OCI resources object: {error}"));
    let mut object: Map<String, Value> = serde_json::from_slice(json).map_err(no_object)?;
    // What is no number here is no limit; the guest refuses it by its name.
    let named = serde_json::from_slice(json).unwrap_or_default();
    if let Some(cpu) = object.get_mut("cpu").and_then(Value::as_object_mut) {
        drop_host_numbers(cpu, "update");
    }
    let json = serde_json::to_vec(&object).map_err(no_object)?;
    Ok((named, json))
}

#[cfg(test)]
mod tests {
    use super::*;

    const URL: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

    #[test]
    fn only_resources_of_linux_are_taken() {
        let json = br#"{"memory":{"limit":1048576}}"#;
        assert_eq!(check(URL, json).unwrap().1, json);
        assert!(check(URL, b"{}").is_ok());
        let with_host = br#"{"cpu":{"cpus":"7","mems":"","quota":1000}}"#;
        let (named, guests) = check(URL, with_host).unwrap();
        assert_eq!(named.named_cpus(), Some("7"));
        assert_eq!(guests, br#"{"cpu":{"quota":1000}}"#);
        let windows = URL.replace("Linux", "Windows");
        for (url, json) in [
            (windows.as_str(), &b"{}"[..]),
            ("", b"{}"),
            (URL, b""),
            (URL, b"[]"),
            (URL, b"null"),
        ] {
            let error = check(url, json).unwrap_err();
            assert_eq!(error.code(), ttrpc::Code::INVALID_ARGUMENT, "{error}");
        }
    }
}
