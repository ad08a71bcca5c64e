//! The OCI runtime specification as far as the guest honours it.
//!
//! Own structures, because the general crate would double the size of the agent.
//! Three kinds of fields: those here are honoured; those in [`refused`] have an
//! effect the guest cannot give and are refused by name; all others are none of the
//! guest's business (other platforms, the hooks of the host) and ignored.
//!
//! Field names and meanings: OCI runtime spec 1.2, `config.md` and `config-linux.md`.
//! Go writes `null` for empty lists and maps, so every list and map accepts it.

pub mod hooks;
pub mod refused;
mod resources;
pub mod scheduling;
pub mod seccomp;

use std::collections::BTreeMap;
use std::path::PathBuf;

use serde::de::IgnoredAny;
use serde::{Deserialize, Deserializer};
use thiserror::Error;

pub use self::resources::{BlockIo, Cpu, DeviceRule, Memory, Resources};

/// Why a spec is not accepted.
#[derive(Debug, Error)]
pub enum SpecError {
    /// Not JSON or a field of the wrong type; the text names line and field.
    #[error("OCI spec: {0}")]
    Parse(#[from] serde_json::Error),
    /// A field that has to be there.
    #[error("OCI spec: {field} is missing")]
    Missing {
        /// Dotted path of the field.
        field: &'static str,
    },
    /// A value that is not allowed.
    #[error("OCI spec: {field} is {value:?}, must be {must}")]
    Value {
        /// Dotted path of the field.
        field: String,
        /// What was given.
        value: String,
        /// What is accepted.
        must: &'static str,
    },
    /// A valid request that a guest cannot fulfil.
    #[error("OCI spec: {field}: {why}")]
    Refused {
        /// Dotted path of the field.
        field: String,
        /// Why not, and what to do instead where there is something.
        why: &'static str,
    },
}

/// `config.json`.
#[derive(Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Spec {
    /// What to run.
    pub process: Option<Process>,
    /// The root file system.
    pub root: Option<Root>,
    /// Host name of a new UTS namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    pub hostname: String,
    /// NIS domain name of a new UTS namespace.
    #[serde(default, deserialize_with = "null_is_default")]
    pub domainname: String,
    /// Mounted in this order.
    #[serde(default, deserialize_with = "null_is_default")]
    pub mounts: Vec<Mount>,
    /// Programs to run at certain points.
    #[serde(default, deserialize_with = "null_is_default")]
    pub hooks: hooks::Hooks,
    /// What is particular to Linux.
    #[serde(default, deserialize_with = "null_is_default")]
    pub linux: Linux,
    /// Told to the hooks.
    #[serde(default, deserialize_with = "null_is_default")]
    pub annotations: BTreeMap<String, String>,
}

/// `root`.
#[derive(Debug, Deserialize)]
pub struct Root {
    /// A directory, as the guest sees it.
    pub path: PathBuf,
    /// Whether `/` is read-only for the container.
    #[serde(default, deserialize_with = "null_is_default")]
    pub readonly: bool,
}

/// One of `mounts`.
#[derive(Clone, Debug, Deserialize)]
pub struct Mount {
    /// Where, inside the container.
    pub destination: PathBuf,
    /// File system type; may be missing for bind mounts.
    #[serde(default, rename = "type", deserialize_with = "null_is_default")]
    pub kind: String,
    /// What: for bind mounts a path as the guest sees it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub source: String,
    /// As in fstab.
    #[serde(default, deserialize_with = "null_is_default")]
    pub options: Vec<String>,
    #[serde(default, rename = "uidMappings", deserialize_with = "null_is_default")]
    pub(crate) uid_mappings: Vec<IgnoredAny>,
}

/// `process`, of a container or of an exec. Whether it has a terminal is said by the
/// call's `Stdio`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Process {
    /// First size of the terminal.
    pub console_size: Option<ConsoleSize>,
    /// Who runs it.
    #[serde(default, deserialize_with = "null_is_default")]
    pub user: User,
    /// The program and its arguments.
    #[serde(default, deserialize_with = "null_is_default")]
    pub args: Vec<String>,
    /// `KEY=value` each.
    #[serde(default, deserialize_with = "null_is_default")]
    pub env: Vec<String>,
    /// Absolute path of the working directory.
    #[serde(default, deserialize_with = "null_is_default")]
    pub cwd: PathBuf,
    /// Missing means none at all.
    pub capabilities: Option<Capabilities>,
    /// Resource limits; those not listed keep the agent's defaults.
    #[serde(default, deserialize_with = "null_is_default")]
    pub rlimits: Vec<Rlimit>,
    /// Whether exec may never grant more privileges.
    #[serde(default, deserialize_with = "null_is_default")]
    pub no_new_privileges: bool,
    /// -1000 to 1000.
    pub oom_score_adj: Option<i32>,
    /// CPU scheduling.
    pub scheduler: Option<scheduling::Scheduler>,
    /// I/O scheduling.
    pub io_priority: Option<scheduling::IoPriority>,
    #[serde(flatten)]
    pub(crate) refused: refused::ProcessFields,
}

/// `process.consoleSize`, in characters.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct ConsoleSize {
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// `process.user`.
#[derive(Clone, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct User {
    /// User id.
    #[serde(default, deserialize_with = "null_is_default")]
    pub uid: u32,
    /// Group id.
    #[serde(default, deserialize_with = "null_is_default")]
    pub gid: u32,
    /// File mode creation mask; missing means 0022.
    pub umask: Option<u32>,
    /// The supplementary groups, all of them.
    #[serde(default, deserialize_with = "null_is_default")]
    pub additional_gids: Vec<u32>,
}

/// `process.capabilities`: names with the `CAP_` prefix.
#[derive(Clone, Debug, Default, Deserialize)]
pub struct Capabilities {
    /// What can ever be gained.
    #[serde(default, deserialize_with = "null_is_default")]
    pub bounding: Vec<String>,
    /// What is in force.
    #[serde(default, deserialize_with = "null_is_default")]
    pub effective: Vec<String>,
    /// What is kept across exec of a file with the same file capability.
    #[serde(default, deserialize_with = "null_is_default")]
    pub inheritable: Vec<String>,
    /// What may be put in force.
    #[serde(default, deserialize_with = "null_is_default")]
    pub permitted: Vec<String>,
    /// What is kept across exec of any unprivileged file.
    #[serde(default, deserialize_with = "null_is_default")]
    pub ambient: Vec<String>,
}

/// One of `process.rlimits`.
#[derive(Clone, Debug, Deserialize)]
pub struct Rlimit {
    /// `RLIMIT_…`.
    #[serde(rename = "type")]
    pub kind: String,
    /// The ceiling.
    pub hard: u64,
    /// The value in force.
    pub soft: u64,
}

/// `linux`.
#[derive(Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Linux {
    /// Which namespaces are not the guest's.
    #[serde(default, deserialize_with = "null_is_default")]
    pub namespaces: Vec<Namespace>,
    /// Nodes to make besides the standard ones.
    #[serde(default, deserialize_with = "null_is_default")]
    pub devices: Vec<Device>,
    /// cgroup limits.
    #[serde(default, deserialize_with = "null_is_default")]
    pub resources: Resources,
    /// Kernel parameters.
    #[serde(default, deserialize_with = "null_is_default")]
    pub sysctl: BTreeMap<String, String>,
    /// Propagation of `/`: one of the names mount(8) knows.
    #[serde(default, deserialize_with = "null_is_default")]
    pub rootfs_propagation: String,
    /// Hidden from the container.
    #[serde(default, deserialize_with = "null_is_default")]
    pub masked_paths: Vec<PathBuf>,
    /// Not writable for the container.
    #[serde(default, deserialize_with = "null_is_default")]
    pub readonly_paths: Vec<PathBuf>,
    /// Which machine the kernel says it is.
    pub personality: Option<scheduling::Personality>,
    /// Which system calls may be made; missing means all.
    pub seccomp: Option<seccomp::Seccomp>,
    #[serde(flatten)]
    pub(crate) refused: refused::LinuxFields,
}

/// One of `linux.namespaces`.
#[derive(Debug, Deserialize)]
pub struct Namespace {
    /// `pid`, `mount`, ….
    #[serde(rename = "type")]
    pub kind: String,
    /// An existing one to join.
    #[serde(default, deserialize_with = "null_is_default")]
    pub path: PathBuf,
}

/// One of `linux.devices`.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Device {
    /// `c`, `u`, `b` or `p`.
    #[serde(rename = "type")]
    pub kind: String,
    /// Where, inside the container.
    pub path: PathBuf,
    /// Major number.
    #[serde(default, deserialize_with = "null_is_default")]
    pub major: i64,
    /// Minor number.
    #[serde(default, deserialize_with = "null_is_default")]
    pub minor: i64,
    /// Permission bits; missing means 0666.
    pub file_mode: Option<u32>,
    /// Owner; missing means root.
    pub uid: Option<u32>,
    /// Group; missing means root.
    pub gid: Option<u32>,
}

impl Spec {
    /// Parses `config.json` and refuses what the guest cannot give.
    pub fn from_json(json: &[u8]) -> Result<Self, SpecError> {
        let spec: Self = serde_json::from_slice(json)?;
        spec.refuse()?;
        Ok(spec)
    }
}

impl Process {
    /// Parses the `process` object of an exec and refuses what the guest cannot give.
    pub fn from_json(json: &[u8]) -> Result<Self, SpecError> {
        let process: Self = serde_json::from_slice(json)?;
        process.refuse()?;
        Ok(process)
    }
}

/// `error` unless `holds`.
pub fn require(holds: bool, error: impl FnOnce() -> SpecError) -> Result<(), SpecError> {
    if holds { Ok(()) } else { Err(error()) }
}

fn null_is_default<'de, D, T>(deserializer: D) -> Result<T, D::Error>
where
    D: Deserializer<'de>,
    T: Default + Deserialize<'de>,
{
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}

#[cfg(test)]
mod tests;
