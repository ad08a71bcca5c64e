//! `-v` and `-info`: what this runtime is. Neither needs KVM or a configuration.

use capctl::caps::Cap;
use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::well_known_types::any::Any;
use serde_json::json;

use crate::hooks::OCI_VERSION;

/// The runtime's name in containerd.
pub const RUNTIME: &str = "io.containerd.rust.v2";
/// Type URL under which containerd knows the OCI features document.
const FEATURES_TYPE: &str = "types.containerd.io/opencontainers/runtime-spec/1/features/Features";

/// The text of `-v`.
pub fn version_text() -> String {
    format!(
        "containerd-shim-rust-v2:\n  Version:  {}\n  Runtime:  {RUNTIME}\n",
        env!("CARGO_PKG_VERSION")
    )
}

/// The answer to `-info`.
pub fn runtime_info() -> RuntimeInfo {
    RuntimeInfo {
        name: RUNTIME.to_owned(),
        version: Some(RuntimeVersion {
            version: env!("CARGO_PKG_VERSION").to_owned(),
            ..RuntimeVersion::default()
        })
        .into(),
        features: Some(Any {
            type_url: FEATURES_TYPE.to_owned(),
            value: features().to_string().into_bytes(),
            ..Any::default()
        })
        .into(),
        ..RuntimeInfo::default()
    }
}

/// Mount options that hold for one mount, and with an `r` in front for all below it.
const MOUNT_ATTRIBUTES: [&str; 18] = [
    "ro",
    "rw",
    "nosuid",
    "suid",
    "nodev",
    "dev",
    "noexec",
    "exec",
    "noatime",
    "atime",
    "nodiratime",
    "diratime",
    "relatime",
    "norelatime",
    "strictatime",
    "nostrictatime",
    "nosymfollow",
    "symfollow",
];
/// All other mount options that are no file system's own.
const MOUNT_OPTIONS: [&str; 26] = [
    "defaults",
    "async",
    "sync",
    "dirsync",
    "bind",
    "rbind",
    "remount",
    "mand",
    "nomand",
    "silent",
    "loud",
    "acl",
    "noacl",
    "iversion",
    "noiversion",
    "lazytime",
    "nolazytime",
    "private",
    "rprivate",
    "shared",
    "rshared",
    "slave",
    "rslave",
    "unbindable",
    "runbindable",
    "tmpcopyup",
];

/// The OCI features document (runtime-spec `features.md`): what a spec may ask for.
fn features() -> serde_json::Value {
    let recursive = MOUNT_ATTRIBUTES.map(|option| format!("r{option}"));
    let options = MOUNT_OPTIONS.iter().chain(&MOUNT_ATTRIBUTES).copied();
    let options = options.chain(recursive.iter().map(String::as_str));
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": OCI_VERSION,
        "hooks": [
            "prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop",
        ],
        "mountOptions": options.collect::<Vec<_>>(),
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            // All that the guest's kernel has; it is as new as the crate.
            "capabilities": Cap::iter().map(|cap| cap.to_string()).collect::<Vec<_>>(),
            "cgroup": {
                "v1": false, "v2": true, "systemd": false, "systemdUser": false, "rdma": false,
            },
            "seccomp": {
                "enabled": true,
                "actions": [
                    "SCMP_ACT_ALLOW", "SCMP_ACT_ERRNO", "SCMP_ACT_KILL", "SCMP_ACT_KILL_PROCESS",
                    "SCMP_ACT_KILL_THREAD", "SCMP_ACT_LOG", "SCMP_ACT_TRACE", "SCMP_ACT_TRAP",
                ],
                "operators": [
                    "SCMP_CMP_EQ", "SCMP_CMP_GE", "SCMP_CMP_GT", "SCMP_CMP_LE", "SCMP_CMP_LT",
                    "SCMP_CMP_MASKED_EQ", "SCMP_CMP_NE",
                ],
                "archs": ["SCMP_ARCH_X32", "SCMP_ARCH_X86", "SCMP_ARCH_X86_64"],
                "knownFlags": SECCOMP_FLAGS,
                "supportedFlags": SECCOMP_FLAGS,
            },
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
            "intelRdt": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": false } },
        },
    })
}

const SECCOMP_FLAGS: [&str; 3] = [
    "SECCOMP_FILTER_FLAG_TSYNC",
    "SECCOMP_FILTER_FLAG_LOG",
    "SECCOMP_FILTER_FLAG_SPEC_ALLOW",
];

#[cfg(test)]
mod tests {
    use super::*;
    use protobuf::Message;

    #[test]
    fn info_survives_the_wire_and_carries_the_features() {
        let bytes = runtime_info().write_to_bytes().unwrap();
        let info = RuntimeInfo::parse_from_bytes(&bytes).unwrap();
        assert_eq!(info.name, "io.containerd.rust.v2");
        let features: serde_json::Value = serde_json::from_slice(&info.features.value).unwrap();
        assert_eq!(features["linux"]["cgroup"]["v2"], true);
        // What containerd's CRI plugin asks for before it uses it.
        let options = features["mountOptions"].as_array().unwrap();
        assert!(options.contains(&"rro".into()) && !options.contains(&"idmap".into()));
        assert_eq!(
            features["linux"]["capabilities"].as_array().unwrap().len(),
            41
        );
    }
}
