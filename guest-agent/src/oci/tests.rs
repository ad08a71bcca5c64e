use serde_json::{Value, json};

use super::*;

fn minimal() -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": { "args": ["sh"], "cwd": "/", "user": { "uid": 0, "gid": 0 } },
        "root": { "path": "/run/husk/share/c/rootfs" },
        "linux": { "namespaces": [{ "type": "pid" }, { "type": "mount" }] },
    })
}

fn parse(value: &Value) -> Result<Spec, SpecError> {
    Spec::from_json(value.to_string().as_bytes())
}

#[test]
fn unknown_fields_and_those_of_other_platforms_are_ignored() {
    let mut value = minimal();
    value["hooks"] = json!({ "prestart": [{ "path": "/x" }] });
    value["windows"] = json!({ "layerFolders": ["a"] });
    value["annotations"] = json!({ "a": "b" });
    assert!(parse(&value).is_ok());
}

#[test]
fn null_counts_as_absent() {
    let mut value = minimal();
    value["mounts"] = Value::Null;
    value["process"]["env"] = Value::Null;
    value["process"]["rlimits"] = Value::Null;
    value["linux"]["resources"] = json!({ "memory": null, "cpu": { "cpus": null }, "blockIO": {} });
    let spec = parse(&value).unwrap();
    assert!(spec.mounts.is_empty());
    assert!(spec.process.unwrap().env.is_empty());
}

#[test]
fn what_a_guest_cannot_give_is_refused_by_name() {
    let cases = [
        (
            "/linux/uidMappings",
            json!([{ "containerID": 0, "hostID": 1, "size": 1 }]),
        ),
        ("/linux/timeOffsets", json!({ "monotonic": { "secs": 1 } })),
        ("/linux/intelRdt", json!({})),
        ("/process/execCPUAffinity", json!({ "initial": "0" })),
        (
            "/linux/resources",
            json!({ "rdma": { "mlx5_0": { "hcaHandles": 1 } } }),
        ),
        ("/linux/resources", json!({ "network": { "classID": 7 } })),
        (
            "/mounts",
            json!([{ "destination": "/x", "uidMappings": [{ "size": 1 }] }]),
        ),
    ];
    for (pointer, given) in cases {
        let mut value = minimal();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        value.pointer_mut(parent).unwrap()[key] = given;
        match parse(&value) {
            Err(SpecError::Refused { field, .. }) => {
                assert!(
                    format!("/{}", field.replace('.', "/")).starts_with(pointer),
                    "{field}"
                );
            }
            other => panic!("{pointer}: {other:?}"),
        }
    }
}

#[test]
fn empty_objects_request_nothing() {
    let mut value = minimal();
    value["linux"]["resources"] = json!({
        "blockIO": { "weight": 0 }, "network": {}, "rdma": {}, "devices": [{ "allow": false, "access": "rwm" }],
    });
    value["linux"]["timeOffsets"] = json!({});
    assert!(parse(&value).is_ok());
}

#[test]
fn labels_of_security_modules_lead_to_a_warning() {
    let mut value = minimal();
    value["process"]["apparmorProfile"] = json!("");
    assert!(parse(&value).unwrap().warnings().is_empty());
    value["process"]["apparmorProfile"] = json!("docker-default");
    value["process"]["selinuxLabel"] = json!("system_u:system_r:container_t:s0");
    value["linux"]["mountLabel"] = json!("system_u:object_r:container_file_t:s0");
    let warnings = parse(&value).unwrap().warnings();
    for (warning, field) in warnings.iter().zip([
        "process.apparmorProfile",
        "process.selinuxLabel",
        "linux.mountLabel",
    ]) {
        assert!(warning.starts_with(field), "{warning}");
    }
    assert_eq!(warnings.len(), 3);
}

#[test]
fn a_wrong_type_names_the_place() {
    let mut value = minimal();
    value["process"]["args"] = json!("sh");
    let error = parse(&value).unwrap_err().to_string();
    assert!(
        error.starts_with("OCI spec: invalid type: string"),
        "{error}"
    );
}

#[test]
fn an_exec_process_is_checked_like_a_container_process() {
    let json = json!({ "args": ["true"], "cwd": "/", "execCPUAffinity": { "initial": "0" } });
    let error = Process::from_json(json.to_string().as_bytes())
        .unwrap_err()
        .to_string();
    assert!(error.contains("process.execCPUAffinity"), "{error}");
}
