//! Fields whose effect the guest cannot give: refused by name, never dropped in silence.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{Linux, Process, Resources, Spec, SpecError, null_is_default};

/// Fields of `process` that are refused.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ProcessFields {
    scheduler: Option<IgnoredAny>,
    io_priority: Option<IgnoredAny>,
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
    personality: Option<IgnoredAny>,
    intel_rdt: Option<IgnoredAny>,
    memory_policy: Option<IgnoredAny>,
    seccomp: Option<IgnoredAny>,
}

/// Fields of `linux.resources` that are refused.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct ResourceFields {
    #[serde(rename = "blockIO", default, deserialize_with = "null_is_default")]
    block_io: BlockIo,
    #[serde(default, deserialize_with = "null_is_default")]
    network: Network,
    #[serde(default, deserialize_with = "null_is_default")]
    rdma: BTreeMap<String, IgnoredAny>,
}

/// Callers send these objects with nothing in them; only a value is a request.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
struct BlockIo {
    weight: Option<u16>,
    leaf_weight: Option<u16>,
    #[serde(default, deserialize_with = "null_is_default")]
    weight_device: Vec<IgnoredAny>,
    #[serde(default, deserialize_with = "null_is_default")]
    throttle_read_bps_device: Vec<IgnoredAny>,
    #[serde(default, deserialize_with = "null_is_default")]
    throttle_write_bps_device: Vec<IgnoredAny>,
    #[serde(
        rename = "throttleReadIOPSDevice",
        default,
        deserialize_with = "null_is_default"
    )]
    throttle_read_iops_device: Vec<IgnoredAny>,
    #[serde(
        rename = "throttleWriteIOPSDevice",
        default,
        deserialize_with = "null_is_default"
    )]
    throttle_write_iops_device: Vec<IgnoredAny>,
}

#[derive(Debug, Default, Deserialize)]
struct Network {
    #[serde(rename = "classID")]
    class_id: Option<u32>,
    #[serde(default, deserialize_with = "null_is_default")]
    priorities: Vec<IgnoredAny>,
}

const USER_NAMESPACE: &str = "user namespaces are not supported in the guest";
const BLOCK_IO: &str = "the guest has no block device to limit; its files live on the host";

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
        let fields = &self.linux.refused;
        let mut warnings = Vec::new();
        if fields.seccomp.is_some() {
            warnings.push("linux.seccomp is not applied in the guest");
        }
        warnings
    }
}

impl Process {
    pub(super) fn refuse(&self) -> Result<(), SpecError> {
        let fields = &self.refused;
        for (present, field) in [
            (fields.scheduler.is_some(), "process.scheduler"),
            (fields.io_priority.is_some(), "process.ioPriority"),
            (
                fields.exec_cpu_affinity.is_some(),
                "process.execCPUAffinity",
            ),
        ] {
            refuse_if(present, || field.to_owned(), "not supported in the guest")?;
        }
        Ok(())
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
                fields.personality.is_some(),
                "linux.personality",
                "not supported in the guest",
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

impl Resources {
    fn refuse(&self) -> Result<(), SpecError> {
        let fields = &self.refused;
        let block_io = &fields.block_io;
        let network = &fields.network;
        for (present, field, why) in [
            (
                block_io.weight.is_some_and(|weight| weight > 0),
                "weight",
                BLOCK_IO,
            ),
            (
                block_io.leaf_weight.is_some_and(|weight| weight > 0),
                "leafWeight",
                BLOCK_IO,
            ),
            (!block_io.weight_device.is_empty(), "weightDevice", BLOCK_IO),
            (
                !block_io.throttle_read_bps_device.is_empty(),
                "throttleReadBpsDevice",
                BLOCK_IO,
            ),
            (
                !block_io.throttle_write_bps_device.is_empty(),
                "throttleWriteBpsDevice",
                BLOCK_IO,
            ),
            (
                !block_io.throttle_read_iops_device.is_empty(),
                "throttleReadIOPSDevice",
                BLOCK_IO,
            ),
            (
                !block_io.throttle_write_iops_device.is_empty(),
                "throttleWriteIOPSDevice",
                BLOCK_IO,
            ),
        ] {
            refuse_if(present, || format!("linux.resources.blockIO.{field}"), why)?;
        }
        refuse_if(
            network.class_id.is_some_and(|id| id > 0) || !network.priorities.is_empty(),
            || "linux.resources.network".to_owned(),
            "cgroup v2 has no network controllers",
        )?;
        refuse_if(
            !fields.rdma.is_empty(),
            || "linux.resources.rdma".to_owned(),
            "the guest has no RDMA devices",
        )
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
