//! Stop 9 of twelve: the OCI spec as containerd wrote it becomes the spec the guest
//! can carry out. A pure function but for one look at each bind mount's source.
//!
//! Only the fields that mean something on the host are touched; all others travel
//! as they are. What a guest cannot give is refused by the name of the field.

use std::io;
use std::path::{Component, Path, PathBuf};

use agent_protocol::SHARE_DIR;
use serde_json::Value;

use super::labels;
use super::oci::{Mount, Spec, SpecError, refused};
use crate::config::LabelPolicy;

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
                "no `network` entry, which asks for the host's network: a virtual machine has a network of its own, run this container without host networking or with another runtime",
            )),
        }
    }

    /// Rewrites the spec for the guest. `policy` is for labels the guest cannot give,
    /// `look` tells what a bind mount's source is.
    ///
    /// # Errors
    /// [`SpecError::Refused`] names the field, [`SpecError::Source`] the mount.
    pub fn for_guest(
        mut self,
        id: &str,
        bundle: &Path,
        policy: LabelPolicy,
        look: impl Fn(&Path) -> io::Result<SourceKind>,
    ) -> Result<GuestSpec, SpecError> {
        self.network_namespace()?;
        self.check_namespaces()?;
        self.hooks.check()?;
        self.check_process()?;
        self.check_user_namespace()?;
        self.check_host_hardware()?;
        let share = Path::new(SHARE_DIR);
        let mut volumes = Vec::new();
        for (index, mount) in self.mounts.iter_mut().enumerate() {
            mount.check_idmap(index)?;
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
        // The VM is in the pod's network namespace; the path means nothing in the guest.
        for namespace in &mut self.linux.namespaces {
            namespace.path = None;
        }
        self.hooks = std::mem::take(&mut self.hooks).for_guest();
        if let Some(process) = &mut self.process {
            labels::strip(&mut process.rest, "process", labels::PROCESS, policy)?;
        }
        labels::strip(&mut self.linux.rest, "linux", labels::LINUX, policy)?;
        self.drop_host_cpus();
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
                ("time", _) => return Err(refused(field, "time namespaces are not supported")),
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

    /// CPU and memory node numbers are the host's; the guest numbers its own.
    fn drop_host_cpus(&mut self) {
        let Some(cpu) = &mut self.linux.resources.cpu else {
            return;
        };
        for field in ["cpus", "mems"] {
            if cpu.rest.remove(field).is_some_and(|list| list != "") {
                log::warn!("spec: linux.resources.cpu.{field} names the host's, it is ignored");
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
            readonly: self.has("ro") && !self.has("rw"),
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
