//! Stop 9 of twelve: the OCI spec as containerd wrote it becomes the spec the guest
//! can carry out. A pure function but for one look at each bind mount's source.
//!
//! Only the fields that mean something on the host are touched; all others travel
//! as they are. What a guest cannot give is refused by the name of the field.

use std::io;
use std::path::{Component, Path, PathBuf};

use agent_protocol::{SHARE_DIR, SHM_DIR};
use serde_json::Value;

use super::labels;
use super::oci::{Mount, Namespace, Spec, SpecError, drop_host_numbers, refused};
use super::pod::{Pod, PodRole};
use crate::config::LabelPolicy;
use crate::mount::ReadOnly;

/// What to do about a container that asks for namespaces of the host.
const NO_HOST: &str = "no virtual machine is in namespaces of the host, run this container without them or with another runtime, or set `host_namespaces` to \"runc\"";

/// What a bind mount's source is on the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum SourceKind {
    /// A directory with nothing mounted below it.
    Directory,
    /// A directory and what is mounted below it.
    Tree,
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
    /// What of it nobody in the guest may write, whatever happens there.
    pub readonly: ReadOnly,
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

impl Volume {
    /// Whether mounts below the source are written though its top is read-only. They are one
    /// mount in the guest, where `ro` would seal them all: it is left to the host's mounts.
    fn is_writable_below(&self) -> bool {
        let has_more = self.recursive && self.kind == SourceKind::Tree || self.follows_host;
        self.readonly == ReadOnly::Top && has_more
    }
}

impl Spec {
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
                format!("no `network` entry, which asks for the host's network: {NO_HOST}"),
            )),
        }
    }

    /// Rewrites the spec for the guest. `policy` is for labels the guest cannot give, `pod` is
    /// what the container joins, `look` tells what a bind mount's source is.
    ///
    /// # Errors
    /// [`SpecError::Refused`] names the field, [`SpecError::Source`] the mount.
    pub fn for_guest(
        mut self,
        id: &str,
        bundle: &Path,
        policy: LabelPolicy,
        pod: Option<&Pod>,
        look: impl Fn(&Path) -> io::Result<SourceKind>,
    ) -> Result<GuestSpec, SpecError> {
        self.network_namespace()?;
        self.check_namespaces(pod)?;
        self.hooks.check()?;
        self.check_process()?;
        self.check_user_namespace()?;
        self.check_host_hardware()?;
        let share = Path::new(SHARE_DIR);
        let mut volumes = Vec::new();
        let pod_shm = self.pod_shm(id);
        for (index, mount) in self.mounts.iter_mut().enumerate() {
            mount.check_idmap(index)?;
            if pod_shm.iter().any(|shm| mount.is_pod_shm(shm)) {
                mount.source = SHM_DIR.to_owned();
            } else if mount.is_bind() {
                let volume = mount.volume(index, id, bundle, &look)?;
                let guest = match volume.kind {
                    SourceKind::Directory | SourceKind::Tree => share.join(&volume.export),
                    SourceKind::File => share.join(&volume.export).join(file_name(&volume.source)),
                };
                mount.source = guest.to_string_lossy().into_owned();
                if volume.is_writable_below() {
                    mount.options.retain(|option| option != "ro");
                }
                volumes.push(volume);
            }
        }
        self.root.path = share.join(rootfs_export(id));
        for namespace in &mut self.linux.namespaces {
            let kind = namespace.kind.as_str();
            // The VM is in the pod's network namespace, and so is all of the guest.
            let path = namespace.path.as_deref().filter(|_| kind != "network");
            namespace.path = path.and_then(|path| pod?.in_guest(kind, path));
        }
        self.hooks = std::mem::take(&mut self.hooks).for_guest();
        if let Some(process) = &mut self.process {
            labels::strip(&mut process.rest, "process", labels::PROCESS, policy)?;
        }
        labels::strip(&mut self.linux.rest, "linux", labels::LINUX, policy)?;
        if let Some(cpu) = &mut self.linux.resources.cpu {
            drop_host_numbers(&mut cpu.rest, "spec");
        }
        let json = serde_json::to_vec(&self).map_err(|source| SpecError::Parse {
            path: bundle.join("config.json"),
            source,
        })?;
        Ok(GuestSpec { json, volumes })
    }

    /// The ends of the paths at which containerd and CRI-O mount a tmpfs on the host for the
    /// shared memory of a pod. Its containers are in one guest, which shares memory better
    /// than files of the host do, and pays for it with its own.
    fn pod_shm(&self, id: &str) -> Vec<PathBuf> {
        let sandbox = match self.pod_role() {
            PodRole::Alone => return Vec::new(),
            PodRole::Sandbox => id.to_owned(),
            PodRole::Member { sandbox } => sandbox,
        };
        let ends = ["shm", "userdata/shm"];
        ends.map(|end| Path::new(&sandbox).join(end)).to_vec()
    }

    fn check_namespaces(&self, pod: Option<&Pod>) -> Result<(), SpecError> {
        let namespaces = &self.linux.namespaces;
        for (kind, whose) in [
            ("pid", "processes"),
            ("ipc", "IPC objects"),
            ("uts", "host name"),
        ] {
            if !namespaces.iter().any(|ns| ns.kind == kind) {
                let problem =
                    format!("no `{kind}` entry, which asks for the host's {whose}: {NO_HOST}");
                return Err(refused("linux.namespaces", problem));
            }
        }
        for (index, namespace) in namespaces.iter().enumerate() {
            let field = format!("linux.namespaces[{index}]");
            match (namespace.kind.as_str(), &namespace.path) {
                ("user", _) => return Err(refused(field, "user namespaces are not supported")),
                ("time", _) => return Err(refused(field, "time namespaces are not supported")),
                ("network", _) => {}
                (_, _) if !namespace.is_joined() => {}
                (kind @ ("pid" | "ipc" | "uts"), Some(path))
                    if pod.is_some_and(|pod| pod.in_guest(kind, path).is_some()) => {}
                (kind, path) => {
                    let problem = format!(
                        "joining the {kind} namespace {} of the host is not possible",
                        path.as_deref().unwrap_or(Path::new("")).display()
                    );
                    return Err(refused(field + ".path", problem));
                }
            }
        }
        Ok(())
    }

    fn check_process(&self) -> Result<(), SpecError> {
        match &self.process {
            None => Err(refused("process", "is missing")),
            Some(process) if process.args.is_empty() => {
                Err(refused("process.args", "is empty: there is nothing to run"))
            }
            Some(_) => Ok(()),
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

    /// What works on the host's processors, behind the VM's back.
    fn check_host_hardware(&self) -> Result<(), SpecError> {
        match self.linux.rest.get("intelRdt") {
            None | Some(Value::Null) => Ok(()),
            Some(_) => {
                let problem = "cache and bandwidth allocation is the host's, not the guest's";
                Err(refused("linux.intelRdt", problem))
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

impl Namespace {
    /// Whether it is another process's, and not a new one.
    fn is_joined(&self) -> bool {
        let path = self.path.as_ref();
        path.is_some_and(|path| !path.as_os_str().is_empty())
    }
}

impl Mount {
    fn is_bind(&self) -> bool {
        self.kind == "bind" || self.options.iter().any(|o| o == "bind" || o == "rbind")
    }

    /// Whether it is the pod's shared memory, which a CRI server has at a path with this end.
    fn is_pod_shm(&self, end: &Path) -> bool {
        let source = Path::new(&self.source);
        self.is_bind() && self.destination() == Some("/dev/shm") && source.ends_with(end)
    }

    /// Where it is mounted.
    pub(super) fn destination(&self) -> Option<&str> {
        self.rest.get("destination")?.as_str()
    }

    fn has(&self, option: &str) -> bool {
        self.options.iter().any(|o| o == option)
    }

    /// The last word on writing counts, and `rro` whatever comes after it.
    fn readonly(&self) -> ReadOnly {
        let mut words = self.options.iter().map(String::as_str);
        if self.has("rro") {
            ReadOnly::All
        } else if words.rfind(|word| ["ro", "rw"].contains(word)) == Some("ro") {
            ReadOnly::Top
        } else {
            ReadOnly::Nothing
        }
    }

    fn check_idmap(&self, index: usize) -> Result<(), SpecError> {
        let mappings = ["uidMappings", "gidMappings"];
        let field = if let Some(field) = mappings.iter().find(|f| self.rest.contains_key(**f)) {
            field
        } else if self.has("idmap") || self.has("ridmap") {
            "options"
        } else {
            return Ok(());
        };
        let field = format!("mounts[{index}].{field}");
        Err(refused(field, "idmapped mounts are not supported"))
    }

    fn volume(
        &self,
        index: usize,
        id: &str,
        bundle: &Path,
        look: impl Fn(&Path) -> io::Result<SourceKind>,
    ) -> Result<Volume, SpecError> {
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
            readonly: self.readonly(),
            recursive: !self.has("bind"),
            follows_host: ["slave", "rslave", "shared", "rshared"]
                .iter()
                .any(|o| self.has(o)),
            source,
        })
    }
}

#[cfg(test)]
#[path = "spec_test.rs"]
mod tests;
