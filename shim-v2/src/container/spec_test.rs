//! What the guest gets to read, and what is refused.

use super::*;
use crate::container::pod::PodRole;
use serde_json::json;
use std::fs;

fn base() -> Value {
    json!({
        "ociVersion": "1.1.0",
        "process": { "args": ["sh"], "cwd": "/", "apparmorProfile": "x", "user": { "uid": 0 } },
        "root": { "path": "rootfs", "readonly": true },
        "hostname": "h",
        "mounts": [
            { "destination": "/proc", "type": "proc", "source": "proc", "options": ["nosuid"] },
            { "destination": "/data", "type": "bind", "source": "/srv/data", "options": ["rbind", "ro"] },
            { "destination": "/etc/hosts", "type": "bind", "source": "/srv/hosts", "options": ["bind", "rw", "rslave"] },
        ],
        "linux": {
            "namespaces": [
                { "type": "pid" }, { "type": "ipc" }, { "type": "uts" }, { "type": "mount" },
                { "type": "network", "path": "/run/netns/p" },
            ],
            "resources": { "memory": { "limit": 67108864, "swap": 1 }, "cpu": { "quota": 150000, "period": 100000, "shares": 10 }, "pids": { "limit": 5 } },
            "maskedPaths": ["/proc/kcore"],
        },
        "annotations": { "a": "b" },
    })
}

fn look(path: &Path) -> io::Result<SourceKind> {
    match path.to_str() {
        Some("/srv/data" | "/b/relative") => Ok(SourceKind::Directory),
        Some("/srv/tree") => Ok(SourceKind::Tree),
        Some("/srv/hosts") => Ok(SourceKind::File),
        _ => Err(io::ErrorKind::NotFound.into()),
    }
}

fn spec(value: &Value) -> Spec {
    Spec::parse(value.to_string().as_bytes()).unwrap()
}

fn rewrite(value: &Value) -> Result<GuestSpec, String> {
    rewrite_in(None, value)
}

fn rewrite_in(pod: Option<&Pod>, value: &Value) -> Result<GuestSpec, String> {
    let rewritten = spec(value).for_guest("c1", Path::new("/b"), LabelPolicy::Ignore, pod, look);
    rewritten.map_err(|error| error.to_string())
}

#[test]
fn the_pods_namespaces_are_joined_in_the_guest_and_no_others() {
    let pod = &Pod {
        pids: vec![(700, 80), (701, 90)],
    };
    let with = |kind: &str, path: &str| {
        let mut value = base();
        let namespaces = value["linux"]["namespaces"].as_array_mut().unwrap();
        let entry = namespaces.iter_mut().find(|entry| entry["type"] == kind);
        entry.unwrap()["path"] = path.into();
        value
    };
    for kind in ["pid", "ipc", "uts"] {
        let path = format!("/proc/700/ns/{kind}");
        let guest = rewrite_in(Some(pod), &with(kind, &path)).unwrap();
        let guest: Value = serde_json::from_slice(&guest.json).unwrap();
        let namespaces = guest["linux"]["namespaces"].as_array().unwrap();
        let entry = namespaces.iter().find(|entry| entry["type"] == kind);
        assert_eq!(entry.unwrap()["path"], format!("/proc/80/ns/{kind}"));
        assert!(rewrite_in(Some(pod), &with(kind, "/proc/1/ns/pid")).is_err());
        assert!(rewrite(&with(kind, &path)).is_err(), "there is no pod");
    }
    let other = rewrite_in(Some(pod), &with("pid", "/proc/701/ns/pid")).unwrap();
    let guest: Value = serde_json::from_slice(&other.json).unwrap();
    assert_eq!(guest["linux"]["namespaces"][0]["path"], "/proc/90/ns/pid");
    let network = rewrite_in(Some(pod), &with("network", "/proc/700/ns/net")).unwrap();
    let guest: Value = serde_json::from_slice(&network.json).unwrap();
    assert_eq!(
        guest["linux"]["namespaces"][4],
        json!({ "type": "network" })
    );
    assert!(rewrite_in(Some(pod), &with("mount", "/proc/700/ns/mnt")).is_err());
}

#[test]
fn the_shared_memory_of_a_pod_is_the_guests() {
    let mut spec = base();
    let shm = json!({ "destination": "/dev/shm", "type": "bind", "source": "/run/x/c1/shm", "options": ["rbind"] });
    spec["mounts"] = json!([shm]);
    assert!(rewrite(&spec).is_err(), "no pod: a directory of the host");
    spec["annotations"]["io.kubernetes.cri.container-type"] = "sandbox".into();
    let mut volume = spec.clone();
    volume["mounts"][0]["source"] = "/volumes/empty-dir/shm".into();
    assert!(rewrite(&volume).is_err(), "somebody's volume");
    let guest = rewrite(&spec).unwrap();
    assert!(guest.volumes.is_empty());
    let json: Value = serde_json::from_slice(&guest.json).unwrap();
    assert_eq!(json["mounts"][0]["source"], "/run/husk/shm");
    assert_eq!(json["mounts"][0]["options"], json!(["rbind"]));
}

#[test]
fn cpu_numbers_of_the_host_do_not_reach_the_guest() {
    let mut spec = base();
    spec["linux"]["resources"] = json!({ "cpu": { "cpus": "4-7", "mems": "1", "shares": 512 } });
    let guest: Value = serde_json::from_slice(&rewrite(&spec).unwrap().json).unwrap();
    assert_eq!(
        guest["linux"]["resources"],
        json!({ "cpu": { "shares": 512 } })
    );
}

#[test]
fn paths_become_guest_paths_and_the_rest_is_untouched() {
    let guest = rewrite(&base()).unwrap();
    let json: Value = serde_json::from_slice(&guest.json).unwrap();
    let mut expected = base();
    expected["root"]["path"] = "/run/husk/share/c1/rootfs".into();
    expected["mounts"][1]["source"] = "/run/husk/share/c1/mounts/1".into();
    expected["mounts"][2]["source"] = "/run/husk/share/c1/mounts/2/hosts".into();
    expected["linux"]["namespaces"][4] = json!({ "type": "network" });
    expected["process"]
        .as_object_mut()
        .unwrap()
        .remove("apparmorProfile");
    assert_eq!(json, expected);
}

#[test]
fn volumes_carry_the_options_the_host_has_to_enforce() {
    let volumes = rewrite(&base()).unwrap().volumes;
    let data = Volume {
        source: "/srv/data".into(),
        kind: SourceKind::Directory,
        export: "c1/mounts/1".into(),
        readonly: ReadOnly::Top,
        recursive: true,
        follows_host: false,
    };
    let hosts = Volume {
        source: "/srv/hosts".into(),
        kind: SourceKind::File,
        export: "c1/mounts/2".into(),
        readonly: ReadOnly::Nothing,
        recursive: false,
        follows_host: true,
    };
    assert_eq!(volumes, [data, hosts]);
}

#[test]
fn a_relative_source_counts_from_the_bundle() {
    let mut value = base();
    value["mounts"][1]["source"] = "relative".into();
    let volumes = rewrite(&value).unwrap().volumes;
    assert_eq!(volumes[0].source, Path::new("/b/relative"));
}

#[test]
fn what_a_guest_cannot_give_is_refused_by_name() {
    let without = |kind: &str| {
        let mut value = base();
        let namespaces = value["linux"]["namespaces"].as_array_mut().unwrap();
        namespaces.retain(|ns| ns["type"] != kind);
        value
    };
    let with = |pointer: &str, new: Value| {
        let mut value = base();
        let (parent, key) = pointer.rsplit_once('/').unwrap();
        value.pointer_mut(parent).unwrap()[key] = new;
        value
    };
    let cases = [
        (without("network"), "linux.namespaces: no `network` entry"),
        (without("pid"), "linux.namespaces: no `pid` entry"),
        (without("ipc"), "linux.namespaces: no `ipc` entry"),
        (without("uts"), "linux.namespaces: no `uts` entry"),
        (
            with("/linux/namespaces/0/path", json!("/proc/1/ns/pid")),
            "linux.namespaces[0].path: ",
        ),
        (
            with("/linux/namespaces/0/type", json!("user")),
            "linux.namespaces: no `pid`",
        ),
        (
            with("/linux/namespaces/3/type", json!("user")),
            "linux.namespaces[3]: user",
        ),
        (
            with("/linux/uidMappings", json!([{"size": 1}])),
            "linux.uidMappings: user",
        ),
        (
            with("/linux/namespaces/3/type", json!("time")),
            "linux.namespaces[3]: time",
        ),
        (
            with("/linux/intelRdt", json!({"closID": "x"})),
            "linux.intelRdt: ",
        ),
        (
            with("/hooks", json!({"createRuntime": [{"path": "x"}]})),
            "hooks.createRuntime[0].path: ",
        ),
        (
            with("/mounts/0/options", json!(["ridmap"])),
            "mounts[0].options: idmapped",
        ),
        (
            with("/mounts/1/source", json!("/nope")),
            "mounts[1].source: /nope",
        ),
        (
            with("/mounts/1/source", json!("")),
            "mounts[1].source: is missing",
        ),
        (
            with("/mounts/1/uidMappings", json!([])),
            "mounts[1].uidMappings: ",
        ),
    ];
    let cases = cases.into_iter().chain([
        (with("/process", json!(null)), "process: is missing"),
        (with("/process/args", json!([])), "process.args: is empty"),
    ]);
    for (value, start) in cases {
        let error = rewrite(&value).unwrap_err();
        assert!(
            error.starts_with(start),
            "expected {start:?}, got {error:?}"
        );
    }
}

#[test]
fn the_last_word_on_writing_counts() {
    use ReadOnly::{All, Nothing, Top};
    for (options, readonly) in [
        (json!(["rbind"]), Nothing),
        (json!(["rbind", "ro"]), Top),
        (json!(["rbind", "ro", "rw"]), Nothing),
        (json!(["rbind", "rw", "ro"]), Top),
        (json!(["rbind", "rro"]), All),
        (json!(["rbind", "rro", "rw"]), All),
    ] {
        let mut value = base();
        value["mounts"][1]["options"] = options.clone();
        let volumes = rewrite(&value).unwrap().volumes;
        assert_eq!(volumes[0].readonly, readonly, "{options}");
    }
}

#[test]
fn a_tree_is_not_sealed_in_the_guest_where_runc_seals_its_top_only() {
    for (source, options, in_guest) in [
        ("/srv/tree", json!(["rbind", "ro"]), json!(["rbind"])),
        ("/srv/tree", json!(["bind", "ro"]), json!(["bind", "ro"])),
        (
            "/srv/tree",
            json!(["rbind", "rro"]),
            json!(["rbind", "rro"]),
        ),
        ("/srv/data", json!(["rbind", "ro"]), json!(["rbind", "ro"])),
        // More may be mounted later.
        (
            "/srv/data",
            json!(["rbind", "ro", "rslave"]),
            json!(["rbind", "rslave"]),
        ),
    ] {
        let mut value = base();
        value["mounts"][1]["source"] = source.into();
        value["mounts"][1]["options"] = options.clone();
        let json: Value = serde_json::from_slice(&rewrite(&value).unwrap().json).unwrap();
        assert_eq!(json["mounts"][1]["options"], in_guest, "{source} {options}");
    }
}

#[test]
fn a_root_path_stays_in_the_bundle() {
    let rootfs = |path: &str| {
        let mut value = base();
        value["root"]["path"] = path.into();
        spec(&value)
            .rootfs(Path::new("/b"))
            .map_err(|error| error.to_string())
    };
    assert_eq!(rootfs("rootfs"), Ok("/b/rootfs".into()));
    assert_eq!(rootfs("/abs"), Ok("/abs".into()));
    for path in ["", "../x", "a/../../x", "/a/../etc"] {
        assert!(
            rootfs(path).unwrap_err().starts_with("root.path: "),
            "{path}"
        );
    }
}

#[test]
fn the_network_namespace_is_found() {
    let path = |value: &Value| spec(value).network_namespace().unwrap().map(Path::to_owned);
    assert_eq!(path(&base()), Some("/run/netns/p".into()));
    let mut new = base();
    new["linux"]["namespaces"][4] = json!({ "type": "network" });
    assert_eq!(path(&new), None);
}

#[test]
fn limits_are_read_and_absent_ones_are_none() {
    let limits = |value: Value| {
        let mut spec_value = base();
        spec_value["linux"]["resources"] = value;
        let resources = spec(&spec_value).linux.resources;
        (resources.memory_limit(), resources.cpu_limit())
    };
    assert_eq!(
        limits(base()["linux"]["resources"].clone()),
        (Some(64 << 20), Some((150_000, 100_000)))
    );
    assert_eq!(limits(json!({})), (None, None));
    assert_eq!(
        limits(json!({ "memory": { "limit": -1 }, "cpu": { "quota": -1, "period": 100000 } })),
        (None, None)
    );
    assert_eq!(
        limits(json!({ "cpu": { "quota": 5000 } })),
        (None, Some((5000, 100_000)))
    );
    assert_eq!(
        limits(json!({ "cpu": { "quota": 5000, "period": 0 } })),
        (None, None)
    );
}

#[test]
fn the_pod_role_is_told_by_annotations_of_both_cri_servers() {
    let role = |annotations: Value| {
        let mut value = base();
        value["annotations"] = annotations;
        spec(&value).pod_role()
    };
    assert_eq!(role(json!({})), PodRole::Alone);
    let sandbox = json!({ "io.kubernetes.cri.container-type": "sandbox", "io.kubernetes.cri.sandbox-id": "s" });
    assert_eq!(role(sandbox), PodRole::Sandbox);
    for (kind, id) in [
        (
            "io.kubernetes.cri.container-type",
            "io.kubernetes.cri.sandbox-id",
        ),
        (
            "io.kubernetes.cri-o.ContainerType",
            "io.kubernetes.cri-o.SandboxID",
        ),
    ] {
        let member = json!({ kind: "container", id: "s" });
        assert_eq!(
            role(member),
            PodRole::Member {
                sandbox: "s".into()
            }
        );
    }
}

#[test]
fn a_bundle_without_a_spec_and_one_with_a_broken_spec_are_told_apart() {
    let dir = std::env::temp_dir().join(format!("husk-spec-{}", std::process::id()));
    fs::create_dir_all(&dir).unwrap();
    assert!(matches!(Spec::load(&dir), Err(SpecError::Read { .. })));
    fs::write(dir.join("config.json"), "{").unwrap();
    assert!(matches!(Spec::load(&dir), Err(SpecError::Parse { .. })));
    let wrong = "{ \"process\": {\n \"args\": \"true\" } }";
    fs::write(dir.join("config.json"), wrong).unwrap();
    let error = crate::error::chain(&Spec::load(&dir).unwrap_err());
    assert!(
        error.contains("config.json is not an OCI spec") && error.contains("line 2"),
        "{error}"
    );
    fs::remove_dir_all(&dir).unwrap();
}
