//! `linux.resources`: what a container may use.
//!
//! Ignored, as runc does with cgroup v2: `memory.kernel`, `memory.kernelTCP`,
//! `memory.swappiness`, `memory.disableOOMKiller`, `memory.useHierarchy`,
//! `cpu.realtimeRuntime`, `cpu.realtimePeriod`, `blockIO.leafWeight` and
//! `blockIO.weightDevice`: version 2 has no such knobs.

use std::collections::BTreeMap;

use serde::Deserialize;
use serde::de::IgnoredAny;

use super::{SpecError, null_is_default};

/// `linux.resources`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Resources {
    /// Which devices may be used, later rules overriding earlier ones.
    #[serde(default, deserialize_with = "null_is_default")]
    pub devices: Vec<DeviceRule>,
    /// Memory limits.
    #[serde(default, deserialize_with = "null_is_default")]
    pub memory: Memory,
    /// CPU shares, quota and sets.
    #[serde(default, deserialize_with = "null_is_default")]
    pub cpu: Cpu,
    /// Limit on processes and threads.
    #[serde(default, deserialize_with = "null_is_default")]
    pub pids: Pids,
    /// Weight and limits of block devices.
    #[serde(rename = "blockIO", default, deserialize_with = "null_is_default")]
    pub block_io: BlockIo,
    /// Limits on huge pages.
    #[serde(default, deserialize_with = "null_is_default")]
    pub hugepage_limits: Vec<HugepageLimit>,
    /// cgroup v2 files and what to write to them.
    #[serde(default, deserialize_with = "null_is_default")]
    pub unified: BTreeMap<String, String>,
    #[serde(default, deserialize_with = "null_is_default")]
    network: Network,
    #[serde(default, deserialize_with = "null_is_default")]
    rdma: BTreeMap<String, IgnoredAny>,
}

/// One of `linux.resources.devices`.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct DeviceRule {
    /// Whether what matches is allowed or denied.
    #[serde(default, deserialize_with = "null_is_default")]
    pub allow: bool,
    /// `c`, `b`, or `a` (also if empty) for every device, whatever the numbers say.
    #[serde(default, rename = "type", deserialize_with = "null_is_default")]
    pub kind: String,
    /// Missing or -1 means every major number.
    pub major: Option<i64>,
    /// Missing or -1 means every minor number.
    pub minor: Option<i64>,
    /// Any of `r`, `w` and `m` (mknod).
    #[serde(default, deserialize_with = "null_is_default")]
    pub access: String,
}

/// `linux.resources.memory`, in bytes; -1 means no limit.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Memory {
    /// Most memory.
    pub limit: Option<i64>,
    /// Memory protected under pressure.
    pub reservation: Option<i64>,
    /// Most memory and swap together.
    pub swap: Option<i64>,
    /// Whether a limit below what is in use is an error; else the kernel reclaims and kills.
    #[serde(default, deserialize_with = "null_is_default")]
    pub check_before_update: bool,
}

/// `linux.resources.cpu`.
#[derive(Debug, Default, Deserialize)]
pub struct Cpu {
    /// Relative weight, cgroup v1 scale (2 to 262144).
    pub shares: Option<u64>,
    /// Microseconds of CPU time per period; -1 means no limit.
    pub quota: Option<i64>,
    /// Microseconds.
    pub period: Option<u64>,
    /// Microseconds that may be saved up.
    pub burst: Option<u64>,
    /// 1: run only when nothing else wants to.
    pub idle: Option<i64>,
    /// CPUs that may be used, as a list of ranges.
    #[serde(default, deserialize_with = "null_is_default")]
    pub cpus: String,
    /// Memory nodes that may be used, as a list of ranges.
    #[serde(default, deserialize_with = "null_is_default")]
    pub mems: String,
}

/// `linux.resources.pids`.
#[derive(Debug, Default, Deserialize)]
pub struct Pids {
    /// Most processes and threads; -1 means no limit, 0 that none was asked for.
    pub limit: Option<i64>,
}

/// `linux.resources.blockIO`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct BlockIo {
    /// Relative weight, cgroup v1 scale (10 to 1000).
    pub weight: Option<u16>,
    /// Bytes read per second.
    #[serde(default, deserialize_with = "null_is_default")]
    pub throttle_read_bps_device: Vec<Throttle>,
    /// Bytes written per second.
    #[serde(default, deserialize_with = "null_is_default")]
    pub throttle_write_bps_device: Vec<Throttle>,
    /// Reads per second.
    #[serde(
        rename = "throttleReadIOPSDevice",
        default,
        deserialize_with = "null_is_default"
    )]
    pub throttle_read_iops_device: Vec<Throttle>,
    /// Writes per second.
    #[serde(
        rename = "throttleWriteIOPSDevice",
        default,
        deserialize_with = "null_is_default"
    )]
    pub throttle_write_iops_device: Vec<Throttle>,
}

/// A limit of one block device.
#[derive(Debug, Deserialize)]
pub struct Throttle {
    /// Major number.
    pub major: i64,
    /// Minor number.
    pub minor: i64,
    /// Per second.
    pub rate: u64,
}

/// One of `linux.resources.hugepageLimits`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct HugepageLimit {
    /// As in the cgroup file's name, such as `2MB`.
    pub page_size: String,
    /// Bytes.
    pub limit: u64,
}

/// Callers send this object with nothing in it; only a value is a request.
#[derive(Debug, Default, Deserialize)]
struct Network {
    #[serde(rename = "classID")]
    class_id: Option<u32>,
    #[serde(default, deserialize_with = "null_is_default")]
    priorities: Vec<IgnoredAny>,
}

impl Resources {
    /// Parses the `linux.resources` object of an update and refuses what the guest
    /// cannot give.
    pub fn from_json(json: &[u8]) -> Result<Self, SpecError> {
        let resources: Self = serde_json::from_slice(json)?;
        resources.refuse()?;
        Ok(resources)
    }

    pub(super) fn refuse(&self) -> Result<(), SpecError> {
        let network = &self.network;
        let refused = |field: &str, why| SpecError::Refused {
            field: format!("linux.resources.{field}"),
            why,
        };
        if network.class_id.is_some_and(|id| id > 0) || !network.priorities.is_empty() {
            return Err(refused("network", "cgroup v2 has no network controllers"));
        }
        if !self.rdma.is_empty() {
            return Err(refused("rdma", "the guest has no RDMA devices"));
        }
        Ok(())
    }
}
