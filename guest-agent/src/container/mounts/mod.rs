//! The container's file system tree, made from `root` and `mounts`.
//!
//! Sources are taken before the pivot, as detached copies ([`take_sources`]); targets
//! are resolved after it ([`mount_all`]). By then the container's root is the only
//! root there is, so no symlink of an image can lead a mount anywhere else.

mod copy_up;
mod target;

use std::fs;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};

use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::statfs::{PROC_SUPER_MAGIC, fstatfs};
use nix::unistd::{chdir, pivot_root};

use super::mount_options::{self, MountOptions};
use super::setup_error::{Context, SetupError};
use crate::oci::{self, SpecError};
use crate::sys;

pub use self::target::make_target;

/// One checked entry of `mounts`.
#[derive(Clone, Debug)]
pub struct PlannedMount {
    source: String,
    destination: PathBuf,
    kind: String,
    options: MountOptions,
}

/// Checks `mounts` of a spec.
pub fn plan(mounts: &[oci::Mount]) -> Result<Vec<PlannedMount>, SpecError> {
    mounts
        .iter()
        .enumerate()
        .map(|(index, mount)| PlannedMount::new(mount, index))
        .collect()
}

impl PlannedMount {
    fn new(mount: &oci::Mount, index: usize) -> Result<Self, SpecError> {
        let mut options = mount_options::parse(&mount.options, index)?;
        if mount.kind == "bind" {
            options.flags |= MsFlags::MS_BIND;
        }
        if mount.destination.as_os_str().is_empty() {
            return Err(SpecError::Value {
                field: format!("mounts[{index}].destination"),
                value: String::new(),
                must: "a path in the container",
            });
        }
        // A relative destination counts from the root, as in runc.
        let destination = target::clean(&Path::new("/").join(&mount.destination));
        let kind = match mount.kind.as_str() {
            "cgroup" => "cgroup2".to_owned(),
            kind => kind.to_owned(),
        };
        if kind.is_empty() && !options.is_bind() {
            return Err(SpecError::Value {
                field: format!("mounts[{index}].type"),
                value: kind,
                must: "a file system type, unless the mount is a bind mount",
            });
        }
        Ok(Self {
            source: mount.source.clone(),
            destination,
            kind,
            options,
        })
    }

    /// Where it goes, as an absolute path in the container.
    pub fn destination(&self) -> &Path {
        &self.destination
    }

    /// Whether it is a bind mount.
    pub fn is_bind(&self) -> bool {
        self.options.is_bind()
    }

    /// Whether it must stay writable until the tree is complete.
    fn read_only_at_last(&self) -> bool {
        let filled_later = self.kind == "tmpfs" || self.destination == Path::new("/dev");
        !self.is_bind() && filled_later && self.options.flags.contains(MsFlags::MS_RDONLY)
    }
}

/// A bind mount's source as taken before the pivot.
#[derive(Debug)]
pub struct Source {
    mount: OwnedFd,
    is_dir: bool,
    /// Whether it is part of a proc file system.
    is_proc: bool,
}

/// Takes a detached copy of each bind mount's source; other mounts have none.
pub fn take_sources(mounts: &[PlannedMount]) -> Result<Vec<Option<Source>>, SetupError> {
    mounts
        .iter()
        .map(|mount| {
            if !mount.is_bind() {
                return Ok(None);
            }
            let path = Path::new(&mount.source);
            let what = || format!("bind source {:?} for {:?}", mount.source, mount.destination);
            let is_dir = fs::metadata(path).or_request(what)?.is_dir();
            let recursive = mount.options.flags.contains(MsFlags::MS_REC);
            let mount = sys::clone_mount(path, recursive).or_request(what)?;
            let file_system = fstatfs(&mount).or_request(what)?.filesystem_type();
            Ok(Some(Source {
                mount,
                is_dir,
                is_proc: file_system == PROC_SUPER_MAGIC,
            }))
        })
        .collect()
}

/// Makes `rootfs` the root of the calling process, with nothing of the guest's own
/// tree left below or above it. The caller has a mount namespace of its own.
pub fn enter_rootfs(rootfs: &Path) -> Result<(), SetupError> {
    let none = None::<&str>;
    // Nothing done here may reach the guest's own tree, and pivot_root(2) refuses shared mounts.
    mount(none, "/", none, MsFlags::MS_PRIVATE | MsFlags::MS_REC, none)
        .or_guest(|| "making the mount namespace private")?;
    let what = || format!("rootfs {rootfs:?}");
    mount(
        Some(rootfs),
        rootfs,
        none,
        MsFlags::MS_BIND | MsFlags::MS_REC,
        none,
    )
    .or_request(what)?;
    chdir(rootfs).or_request(what)?;
    // With both arguments the same directory the old root ends up on top of the
    // new one, where it is detached without needing a directory (pivot_root(2)).
    pivot_root(".", ".").or_guest(|| format!("pivot_root into {rootfs:?}"))?;
    umount2(".", MntFlags::MNT_DETACH).or_guest(|| "detaching the guest's root")?;
    chdir("/").or_guest(|| "chdir to the new root")
}

/// Mounts everything, in order.
pub fn mount_all(mounts: &[PlannedMount], sources: &[Option<Source>]) -> Result<(), SetupError> {
    for (mount, source) in mounts.iter().zip(sources) {
        match source {
            Some(source) => attach(mount, source)?,
            None => mount_new(mount)?,
        }
        for flags in &mount.options.propagation {
            set_propagation(&mount.destination, *flags)?;
        }
        let options = &mount.options;
        if options.recursive_set | options.recursive_clear != 0 {
            let (set, clear) = (options.recursive_set, options.recursive_clear);
            sys::set_mount_attributes(&mount.destination, set, clear, true)
                .or_request(|| format!("recursive options of {:?}", mount.destination))?;
        }
    }
    Ok(())
}

/// Makes those mounts read-only that had to be filled first.
pub fn seal(mounts: &[PlannedMount]) -> Result<(), SetupError> {
    for mount in mounts.iter().filter(|mount| mount.read_only_at_last()) {
        set_read_only(&mount.destination)?;
    }
    Ok(())
}

/// Makes the mount at `path` read-only, and only that one.
pub fn set_read_only(path: &Path) -> Result<(), SetupError> {
    sys::set_mount_attributes(path, libc::MOUNT_ATTR_RDONLY, 0, false)
        .or_guest(|| format!("making {path:?} read-only"))
}

/// Changes the propagation of the mount at `path`.
pub fn set_propagation(path: &Path, flags: MsFlags) -> Result<(), SetupError> {
    mount(None::<&str>, path, None::<&str>, flags, None::<&str>)
        .or_guest(|| format!("setting the propagation of {path:?}"))
}

/// Where `mount` goes, without symlinks; it need not exist yet.
fn target_of(mount: &PlannedMount, is_proc: bool) -> Result<PathBuf, SetupError> {
    let destination = &mount.destination;
    let target = target::resolve(Path::new("/"), destination)
        .or_request(|| format!("mount point {destination:?}"))?;
    target::check_proc(&target, is_proc)?;
    Ok(target)
}

fn attach(mount: &PlannedMount, source: &Source) -> Result<(), SetupError> {
    let target = target_of(mount, source.is_proc)?;
    target::make(&target, source.is_dir)
        .or_request(|| format!("mount point {:?}", mount.destination))?;
    let what = || format!("mounting {:?} at {:?}", mount.source, mount.destination);
    sys::attach_mount(source.mount.as_fd(), &target).or_request(what)?;
    let (set, clear) = (mount.options.bind_set(), mount.options.bind_clear());
    if set | clear == 0 {
        return Ok(());
    }
    sys::set_mount_attributes(&target, set, clear, false).or_request(what)
}

fn mount_new(planned: &PlannedMount) -> Result<(), SetupError> {
    let destination = &planned.destination;
    let what = || format!("mounting {:?} at {destination:?}", planned.kind);
    let existing = fs::symlink_metadata(destination).ok();
    if matches!(planned.kind.as_str(), "proc" | "sysfs")
        && existing.as_ref().is_some_and(|found| !found.is_dir())
    {
        // Programs trust these two at their usual place: no detours.
        let text = format!(
            "{destination:?} is not a directory: {} needs one",
            planned.kind
        );
        return Err(SetupError::request(text));
    }
    let target = target_of(planned, planned.kind == "proc")?;
    let covered = fs::symlink_metadata(&target).ok();
    target::make(&target, true).or_request(|| format!("mount point {destination:?}"))?;
    let mut data = planned.options.data.clone();
    if let Some(found) = covered.filter(|found| planned.kind == "tmpfs" && found.is_dir()) {
        // The directory keeps its mode unless the options say otherwise: the last one counts.
        data.insert(0, format!("mode={:o}", found.permissions().mode() & 0o7777));
    }
    let copy_up = planned.kind == "tmpfs" && planned.options.copy_up;
    if copy_up {
        // Covered by the mount, it is still the working directory.
        chdir(&target).or_request(what)?;
    }
    let data = (!data.is_empty()).then(|| data.join(","));
    let mut flags = planned.options.flags;
    if planned.read_only_at_last() {
        flags &= !MsFlags::MS_RDONLY;
    }
    let source = if planned.source.is_empty() {
        &planned.kind
    } else {
        &planned.source
    };
    mount(
        Some(source.as_str()),
        &target,
        Some(planned.kind.as_str()),
        flags,
        data.as_deref(),
    )
    .or_request(what)?;
    if copy_up {
        copy_up::copy_tree(&target)?;
        chdir("/").or_guest(what)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests;
