//! The OCI runtime spec (config.json) as containerd wrote it, as far as the host has
//! to know it. All other fields are carried along as they are.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

use super::rlimits;
use crate::hooks::Hooks;

/// Largest config.json read, in bytes.
const MAX_SPEC_LEN: u64 = 4 << 20;
/// The period of a CPU quota that names none, in microseconds, as the kernel has it.
pub const CPU_PERIOD: u64 = 100_000;

/// An OCI runtime spec (config.json), as far as the host has to know it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    pub(super) root: Root,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) mounts: Vec<Mount>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) process: Option<Process>,
    pub(super) linux: Linux,
    #[serde(skip_serializing_if = "Hooks::is_empty")]
    pub(super) hooks: Hooks,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    pub(super) annotations: HashMap<String, String>,
    #[serde(flatten)]
    pub(super) rest: Map<String, Value>,
}

/// `root`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Root {
    pub(super) path: PathBuf,
    #[serde(flatten)]
    pub(super) rest: Map<String, Value>,
}

/// `process`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Process {
    pub(super) args: Vec<String>,
    #[serde(flatten)]
    pub(super) rest: Map<String, Value>,
}

/// An entry of `mounts`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Mount {
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    pub(super) kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    pub(super) source: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) options: Vec<String>,
    #[serde(flatten)]
    pub(super) rest: Map<String, Value>,
}

/// `linux`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Linux {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    pub(super) namespaces: Vec<Namespace>,
    #[serde(skip_serializing_if = "Resources::is_empty")]
    pub(super) resources: Resources,
    #[serde(flatten)]
    pub(super) rest: Map<String, Value>,
}

/// An entry of `linux.namespaces`.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Namespace {
    #[serde(rename = "type")]
    pub(super) kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub(super) path: Option<PathBuf>,
}

/// `linux.resources`, of which sizing reads two members.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) cpu: Option<Cpu>,
    #[serde(flatten)]
    pub(super) rest: Map<String, Value>,
}

/// `linux.resources.memory`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Memory {
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<i64>,
    #[serde(flatten)]
    pub(super) rest: Map<String, Value>,
}

/// `linux.resources.cpu`.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Cpu {
    #[serde(skip_serializing_if = "Option::is_none")]
    quota: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    period: Option<u64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    shares: Option<u64>,
    #[serde(flatten)]
    pub(super) rest: Map<String, Value>,
}

/// Takes the numbers of CPUs and memory nodes out of the `cpu` object of `whose` resources: they
/// are the host's, and the guest numbers its own. By the CPUs its vCPUs are pinned
/// (`sandbox::pinning`).
pub fn drop_host_numbers(cpu: &mut Map<String, Value>, whose: &str) {
    cpu.remove("cpus");
    if cpu.remove("mems").is_some_and(|list| list != "") {
        log::warn!("{whose}: cpu.mems names the host's, it is ignored");
    }
}

/// Why a spec is refused.
#[derive(Debug, Error)]
pub enum SpecError {
    /// config.json cannot be read.
    #[error("{path} cannot be read: is the bundle complete?")]
    Read {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Not JSON, or not a spec.
    #[error("{path} is not an OCI spec")]
    Parse {
        /// The file.
        path: PathBuf,
        /// What is wrong and where.
        source: serde_json::Error,
    },
    /// A field asks for what a guest cannot give.
    #[error("{field}: {problem}")]
    Refused {
        /// Path of the field in the spec.
        field: String,
        /// Why not, and what to do instead.
        problem: String,
    },
    /// The source of a bind mount is not there.
    #[error("mounts[{index}].source: {path} cannot be used")]
    Source {
        /// Which mount.
        index: usize,
        /// Its source.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// A [`SpecError::Refused`].
pub fn refused(field: impl Into<String>, problem: impl Into<String>) -> SpecError {
    SpecError::Refused {
        field: field.into(),
        problem: problem.into(),
    }
}

impl Spec {
    /// Reads config.json of a bundle.
    ///
    /// # Errors
    /// [`SpecError::Read`] and [`SpecError::Parse`], with the file's path.
    pub fn load(bundle: &Path) -> Result<Self, SpecError> {
        use std::io::Read;
        let path = bundle.join("config.json");
        let mut json = Vec::new();
        let read = fs::File::open(&path).and_then(|f| f.take(MAX_SPEC_LEN).read_to_end(&mut json));
        match read {
            Ok(_) => Self::parse(&json).map_err(|source| SpecError::Parse { path, source }),
            Err(source) => Err(SpecError::Read { path, source }),
        }
    }

    pub(super) fn parse(json: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(json)
    }

    /// `hooks`.
    pub fn hooks(&self) -> &Hooks {
        &self.hooks
    }

    /// `annotations`.
    pub fn annotations(&self) -> &HashMap<String, String> {
        &self.annotations
    }

    /// `linux.resources`.
    pub fn resources(&self) -> &Resources {
        &self.linux.resources
    }

    /// Gives the process those of these limits it does not name.
    pub fn inherit_limits(&mut self, limits: &[(&str, u64, u64)]) {
        if let Some(process) = &mut self.process {
            rlimits::inherit(&mut process.rest, limits);
        }
    }

    /// How readily the host may kill the sandbox when it runs out of memory:
    /// `process.oomScoreAdj`, 0 if absent.
    pub fn oom_score_adj(&self) -> i64 {
        let field = |process: &Process| process.rest.get("oomScoreAdj")?.as_i64();
        self.process.as_ref().and_then(field).unwrap_or(0)
    }
}

impl Resources {
    fn is_empty(&self) -> bool {
        self.memory.is_none() && self.cpu.is_none() && self.rest.is_empty()
    }

    /// `memory.limit` in bytes as given, if it is named at all.
    pub fn named_memory_limit(&self) -> Option<i64> {
        self.memory.as_ref()?.limit
    }

    /// `cpu.quota`, `cpu.period` and `cpu.shares` as given, as far as they are named.
    pub fn named_cpu(&self) -> (Option<i64>, Option<u64>, Option<u64>) {
        let cpu = self.cpu.as_ref();
        cpu.map_or((None, None, None), |cpu| {
            (cpu.quota, cpu.period, cpu.shares)
        })
    }

    /// `cpu.cpus`, if it is named: numbers of the host's CPUs.
    pub fn named_cpus(&self) -> Option<&str> {
        let list = self.cpu.as_ref()?.rest.get("cpus")?.as_str();
        list.filter(|list| !list.is_empty())
    }

    /// `memory.limit` in bytes, if one is set; 0 and negative values mean none.
    pub fn memory_limit(&self) -> Option<u64> {
        let limit = self.memory.as_ref()?.limit?;
        u64::try_from(limit).ok().filter(|limit| *limit > 0)
    }

    /// `cpu.quota` and `cpu.period` in microseconds, if both set a limit.
    pub fn cpu_limit(&self) -> Option<(u64, u64)> {
        let cpu = self.cpu.as_ref()?;
        let quota = u64::try_from(cpu.quota?).ok().filter(|quota| *quota > 0)?;
        let period = cpu.period.unwrap_or(CPU_PERIOD);
        (period > 0).then_some((quota, period))
    }
}
