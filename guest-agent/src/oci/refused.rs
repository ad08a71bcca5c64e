//! Fields whose effect the guest cannot give: refused by name, never dropped in silence.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Linux, Process, Spec, SpecError, null_is_default};

/// Fields of `process` that are refused, and those that only lead to a warning.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessFields {
    #[serde(default, deserialize_with = "null_is_default")]
    apparmor_profile: String,
    #[serde(default, deserialize_with = "null_is_default")]
    selinux_label: String,
    #[serde(rename = "execCPUAffinity")]
    exec_cpu_affinity: Option<IgnoredAny>,
}

/// Fields of `linux` that are refused, and those that only lead to a warning.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct LinuxFields {
    #[serde(default, deserialize_with = "null_is_default")]
    uid_mappings: Vec<IgnoredAny>,
    #[serde(default, deserialize_with = "null_is_default")]
    gid_mappings: Vec<IgnoredAny>,
    #[serde(default, deserialize_with = "null_is_default")]
    time_offsets: BTreeMap<String, IgnoredAny>,
    #[serde(default, deserialize_with = "null_is_default")]
    net_devices: BTreeMap<String, IgnoredAny>,
    #[serde(default, deserialize_with = "null_is_default")]
    mount_label: String,
    intel_rdt: Option<IgnoredAny>,
    memory_policy: Option<IgnoredAny>,
}

const USER_NAMESPACE: &str = "user namespaces are not supported in the guest";

impl Spec {
    pub(super) fn refuse(&self) -> Result<(), SpecError> {
        if let Some(process) = &self.process {
            process.refuse()?;
        }
        for (index, mount) in self.mounts.iter().enumerate() {
            let field = || format!("mounts[{index}].uidMappings");
            refuse_if(
                !mount.uid_mappings.is_empty(),
                field,
                "id-mapped mounts are not supported",
            )?;
        }
        self.linux.refuse()
    }

    /// What is accepted but has no effect in the guest, as phrases for the log.
    pub fn warnings(&self) -> Vec<&'static str> {
        let mut warnings = self.process.as_ref().map_or(Vec::new(), Process::warnings);
        if !self.linux.refused.mount_label.is_empty() {
            warnings.push("linux.mountLabel is ignored: the guest has no SELinux");
        }
        warnings
    }
}

impl Process {
    pub(super) fn refuse(&self) -> Result<(), SpecError> {
        refuse_if(
            self.refused.exec_cpu_affinity.is_some(),
            || "process.execCPUAffinity".to_owned(),
            "not supported in the guest",
        )
    }

    /// What is accepted but has no effect in the guest, as phrases for the log.
    pub fn warnings(&self) -> Vec<&'static str> {
        let fields = &self.refused;
        let mut warnings = Vec::new();
        if !fields.apparmor_profile.is_empty() {
            warnings.push("process.apparmorProfile is ignored: the guest has no AppArmor");
        }
        if !fields.selinux_label.is_empty() {
            warnings.push("process.selinuxLabel is ignored: the guest has no SELinux");
        }
        warnings
    }
}

impl Linux {
    fn refuse(&self) -> Result<(), SpecError> {
        let fields = &self.refused;
        for (present, field, why) in [
            (
                !fields.uid_mappings.is_empty(),
                "linux.uidMappings",
                USER_NAMESPACE,
            ),
            (
                !fields.gid_mappings.is_empty(),
                "linux.gidMappings",
                USER_NAMESPACE,
            ),
            (
                !fields.time_offsets.is_empty(),
                "linux.timeOffsets",
                "time namespaces are not supported in the guest",
            ),
            (
                !fields.net_devices.is_empty(),
                "linux.netDevices",
                "host network devices cannot be moved into the guest",
            ),
            (
                fields.intel_rdt.is_some(),
                "linux.intelRdt",
                "cache and bandwidth allocation belong to the host",
            ),
            (
                fields.memory_policy.is_some(),
                "linux.memoryPolicy",
                "the guest has a single memory node",
            ),
        ] {
            refuse_if(present, || field.to_owned(), why)?;
        }
        self.resources.refuse()
    }
}

fn refuse_if(
    present: bool,
    field: impl FnOnce() -> String,
    why: &'static str,
) -> Result<(), SpecError> {
    if present {
        return Err(SpecError::Refused {
            field: field(),
            why,
        });
    }
    Ok(())
}
