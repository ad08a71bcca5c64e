//! Stop 9 of twelve: the OCI spec as containerd wrote it becomes the spec the guest
//! can carry out. A pure function but for one look at each bind mount's source.
//!
//! Only the fields that mean something on the host are touched; all others travel
//! as they are. What a guest cannot give is refused by the name of the field.

use std::collections::HashMap;
use std::fs;
use std::io;
use std::path::{Component, Path, PathBuf};

use agent_protocol::SHARE_DIR;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use thiserror::Error;

/// Largest config.json read, in bytes.
const MAX_SPEC_LEN: u64 = 4 << 20;

/// An OCI runtime spec (config.json), as far as the host has to know it.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
pub struct Spec {
    root: Root,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    mounts: Vec<Mount>,
    #[serde(skip_serializing_if = "Map::is_empty")]
    process: Map<String, Value>,
    linux: Linux,
    #[serde(skip_serializing_if = "Map::is_empty")]
    hooks: Map<String, Value>,
    #[serde(skip_serializing_if = "HashMap::is_empty")]
    annotations: HashMap<String, String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Root {
    path: PathBuf,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Mount {
    #[serde(rename = "type", skip_serializing_if = "String::is_empty")]
    kind: String,
    #[serde(skip_serializing_if = "String::is_empty")]
    source: String,
    #[serde(skip_serializing_if = "Vec::is_empty")]
    options: Vec<String>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", default)]
struct Linux {
    #[serde(skip_serializing_if = "Vec::is_empty")]
    namespaces: Vec<Namespace>,
    #[serde(skip_serializing_if = "Resources::is_empty")]
    resources: Resources,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Clone, Debug, Serialize, Deserialize)]
struct Namespace {
    #[serde(rename = "type")]
    kind: String,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    path: Option<PathBuf>,
}

/// `linux.resources`, of which sizing reads two members.
#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
pub struct Resources {
    #[serde(skip_serializing_if = "Option::is_none")]
    memory: Option<Memory>,
    #[serde(skip_serializing_if = "Option::is_none")]
    cpu: Option<Cpu>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Memory {
    #[serde(skip_serializing_if = "Option::is_none")]
    limit: Option<i64>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

#[derive(Clone, Debug, Default, Serialize, Deserialize)]
#[serde(default)]
struct Cpu {
    #[serde(skip_serializing_if = "Option::is_none")]
    quota: Option<i64>,
    #[serde(skip_serializing_if = "Option::is_none")]
    period: Option<u64>,
    #[serde(flatten)]
    rest: Map<String, Value>,
}

/// The place of a container in its pod, from the annotations of the CRI plugins.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum PodRole {
    /// No pod: a sandbox of its own.
    Alone,
    /// The pod's first container, whose id names the sandbox.
    Sandbox,
    /// One more container of a running sandbox.
    Member {
        /// The sandbox's id.
        sandbox: String,
    },
}

/// What a bind mount's source is on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// A directory.
    Directory,
    /// Anything else that can be a mount point of its own.
    File,
}

/// A host directory or file the guest is to see.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Volume {
    /// Where it is on the host.
    pub source: PathBuf,
    /// Directory or file.
    pub kind: SourceKind,
    /// Its export, relative to the share's root. A file's export is a directory
    /// that holds the file under its own name.
    pub export: PathBuf,
    /// Nobody in the guest may write it, whatever happens there.
    pub readonly: bool,
    /// Mounts below the source come along.
    pub recursive: bool,
    /// Mounts made later below the source come along too.
    pub follows_host: bool,
}

/// The rewritten spec and what has to be exported for it.
#[derive(Debug)]
pub struct GuestSpec {
    /// config.json for the agent.
    pub json: Vec<u8>,
    /// Bind mounts, in the order of the spec.
    pub volumes: Vec<Volume>,
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

fn refused(field: impl Into<String>, problem: impl Into<String>) -> SpecError {
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

    fn parse(json: &[u8]) -> serde_json::Result<Self> {
        serde_json::from_slice(json)
    }

    /// The container's place in its pod.
    pub fn pod_role(&self) -> PodRole {
        const FAMILIES: [(&str, &str); 2] = [
            (
                "io.kubernetes.cri.container-type",
                "io.kubernetes.cri.sandbox-id",
            ),
            (
                "io.kubernetes.cri-o.ContainerType",
                "io.kubernetes.cri-o.SandboxID",
            ),
        ];
        for (kind, id) in FAMILIES {
            match (
                self.annotations.get(kind).map(String::as_str),
                self.annotations.get(id),
            ) {
                (Some("sandbox"), _) => return PodRole::Sandbox,
                (Some("container"), Some(sandbox)) => {
                    let sandbox = sandbox.clone();
                    return PodRole::Member { sandbox };
                }
                _ => {}
            }
        }
        PodRole::Alone
    }

    /// The rootfs on the host. A relative path counts from the bundle, as the OCI
    /// spec has it, and may not leave it.
    ///
    /// # Errors
    /// [`SpecError::Refused`] for a missing or escaping path.
    pub fn rootfs(&self, bundle: &Path) -> Result<PathBuf, SpecError> {
        let path = &self.root.path;
        if path.as_os_str().is_empty() {
            return Err(refused("root.path", "is missing"));
        }
        let escapes = path.components().any(|part| part == Component::ParentDir);
        if escapes {
            return Err(refused(
                "root.path",
                format!("{path:?} leads out of the bundle"),
            ));
        }
        Ok(bundle.join(path))
    }

    /// The network namespace the pod lives in: `Some` with its path, or `None` for a new one.
    ///
    /// # Errors
    /// Refuses the host's network, which is what a spec without the entry asks for.
    pub fn network_namespace(&self) -> Result<Option<&Path>, SpecError> {
        let network = self.linux.namespaces.iter().find(|ns| ns.kind == "network");
        match network {
            Some(namespace) => Ok(namespace
                .path
                .as_deref()
                .filter(|p| !p.as_os_str().is_empty())),
            None => Err(refused(
                "linux.namespaces",
                "no `network` entry, which asks for the host's network: a virtual machine has a network of its own, run this container without host networking or with another runtime",
            )),
        }
    }

    /// `linux.resources`.
    pub fn resources(&self) -> &Resources {
        &self.linux.resources
    }

    /// Rewrites the spec for the guest. `look` tells what a bind mount's source is.
    ///
    /// # Errors
    /// [`SpecError::Refused`] names the field, [`SpecError::Source`] the mount.
    pub fn for_guest(
        mut self,
        id: &str,
        bundle: &Path,
        look: impl Fn(&Path) -> io::Result<SourceKind>,
    ) -> Result<GuestSpec, SpecError> {
        self.network_namespace()?;
        self.check_namespaces()?;
        self.check_hooks()?;
        self.check_user_namespace()?;
        let share = Path::new(SHARE_DIR);
        let mut volumes = Vec::new();
        for (index, mount) in self.mounts.iter_mut().enumerate() {
            if mount.is_bind() {
                let volume = mount.volume(index, id, bundle, &look)?;
                let guest = match volume.kind {
                    SourceKind::Directory => share.join(&volume.export),
                    SourceKind::File => share.join(&volume.export).join(file_name(&volume.source)),
                };
                mount.source = guest.to_string_lossy().into_owned();
                volumes.push(volume);
            }
        }
        self.root.path = share.join(rootfs_export(id));
        // The VM is the network namespace: its only one has the pod's devices.
        self.linux.namespaces.retain(|ns| ns.kind != "network");
        self.drop_labels();
        let json = serde_json::to_vec(&self).map_err(|source| SpecError::Parse {
            path: bundle.join("config.json"),
            source,
        })?;
        Ok(GuestSpec { json, volumes })
    }

    fn check_namespaces(&self) -> Result<(), SpecError> {
        let namespaces = &self.linux.namespaces;
        for (kind, whose) in [
            ("pid", "processes"),
            ("ipc", "IPC objects"),
            ("uts", "host name"),
        ] {
            if !namespaces.iter().any(|ns| ns.kind == kind) {
                let problem = format!(
                    "no `{kind}` entry, which asks for the host's {whose}: a guest cannot see them"
                );
                return Err(refused("linux.namespaces", problem));
            }
        }
        for (index, namespace) in namespaces.iter().enumerate() {
            let field = format!("linux.namespaces[{index}]");
            match (namespace.kind.as_str(), &namespace.path) {
                ("user", _) => return Err(refused(field, "user namespaces are not supported")),
                ("network", _) | (_, None) => {}
                (_, Some(path)) if path.as_os_str().is_empty() => {}
                (kind, Some(path)) => {
                    let problem = format!(
                        "joining the {kind} namespace {path:?} of the host is not possible"
                    );
                    return Err(refused(field + ".path", problem));
                }
            }
        }
        Ok(())
    }

    fn check_hooks(&self) -> Result<(), SpecError> {
        let wanted = |value: &Value| value.as_array().is_some_and(|hooks| !hooks.is_empty());
        match self.hooks.iter().find(|(_, hooks)| wanted(hooks)) {
            Some((name, _)) => Err(refused(format!("hooks.{name}"), "hooks are not supported")),
            None => Ok(()),
        }
    }

    fn check_user_namespace(&self) -> Result<(), SpecError> {
        for field in ["uidMappings", "gidMappings"] {
            let mappings = self.linux.rest.get(field).and_then(Value::as_array);
            if mappings.is_some_and(|mappings| !mappings.is_empty()) {
                let field = format!("linux.{field}");
                return Err(refused(field, "user namespaces are not supported"));
            }
        }
        Ok(())
    }

    /// Labels of the host's security modules mean nothing in the guest, which has none.
    fn drop_labels(&mut self) {
        let process = ["apparmorProfile", "selinuxLabel"];
        let dropped = process.map(|field| (field, self.process.remove(field)));
        let mount = [("mountLabel", self.linux.rest.remove("mountLabel"))];
        for (field, value) in dropped.into_iter().chain(mount) {
            if value.is_some_and(|value| value.as_str().is_some_and(|label| !label.is_empty())) {
                log::warn!("spec: {field} is ignored, the guest has no such security module");
            }
        }
    }
}

/// The export of a container's rootfs, relative to the share's root.
pub fn rootfs_export(id: &str) -> PathBuf {
    Path::new(id).join("rootfs")
}

/// The last component of a path, under which a file volume appears in its export.
pub fn file_name(path: &Path) -> &Path {
    path.file_name().map_or(Path::new("file"), Path::new)
}

impl Mount {
    fn is_bind(&self) -> bool {
        self.kind == "bind" || self.options.iter().any(|o| o == "bind" || o == "rbind")
    }

    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|o| o == option)
    }

    fn volume(
        &self,
        index: usize,
        id: &str,
        bundle: &Path,
        look: impl Fn(&Path) -> io::Result<SourceKind>,
    ) -> Result<Volume, SpecError> {
        for field in ["uidMappings", "gidMappings"] {
            if self.rest.contains_key(field) {
                let field = format!("mounts[{index}].{field}");
                return Err(refused(field, "idmapped mounts are not supported"));
            }
        }
        if self.source.is_empty() {
            return Err(refused(format!("mounts[{index}].source"), "is missing"));
        }
        let source = bundle.join(&self.source);
        let kind = look(&source).map_err(|error| SpecError::Source {
            index,
            path: source.clone(),
            source: error,
        })?;
        Ok(Volume {
            kind,
            export: Path::new(id).join("mounts").join(index.to_string()),
            readonly: self.has("ro") && !self.has("rw"),
            recursive: !self.has("bind"),
            follows_host: ["slave", "rslave", "shared", "rshared"]
                .iter()
                .any(|o| self.has(o)),
            source,
        })
    }
}

impl Resources {
    fn is_empty(&self) -> bool {
        self.memory.is_none() && self.cpu.is_none() && self.rest.is_empty()
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
        let period = cpu.period.unwrap_or(100_000);
        (period > 0).then_some((quota, period))
    }
}

#[cfg(test)]
#[path = "spec_test.rs"]
mod tests;
