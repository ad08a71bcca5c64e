//! `-v` and `-info`: what this runtime is. Neither needs KVM or a configuration.

use containerd_shim_protos::types::introspection::{RuntimeInfo, RuntimeVersion};
use protobuf::well_known_types::any::Any;
use serde_json::json;

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

/// The OCI features document (runtime-spec `features.md`): what a spec may ask for.
fn features() -> serde_json::Value {
    json!({
        "ociVersionMin": "1.0.0",
        "ociVersionMax": "1.2.0",
        "hooks": [],
        "mountOptions": ["bind", "rbind", "ro", "rw", "nodev", "nosuid", "noexec"],
        "linux": {
            "namespaces": ["cgroup", "ipc", "mount", "network", "pid", "uts"],
            "cgroup": { "v1": false, "v2": true, "systemd": false },
            "seccomp": { "enabled": false },
            "apparmor": { "enabled": false },
            "selinux": { "enabled": false },
            "mountExtensions": { "idmap": { "enabled": false } },
        },
    })
}

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
    }
}
