//! What a container finds in `/dev`: the nodes and links runc makes, and the spec's own.

use std::fs;
use std::io;
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};

use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::stat::{FchmodatFlags, Mode, SFlag, fchmodat, makedev, mknod};
use nix::unistd::{Gid, Uid, chown};

use super::mounts::{PlannedMount, make_target};
use super::setup_error::{Context, SetupError};
use crate::oci::{self, SpecError};
use crate::sys;

/// The nodes every container has (OCI runtime spec, "Default Devices").
const DEFAULT: [(&str, u64, u64); 6] = [
    ("/dev/null", 1, 3),
    ("/dev/zero", 1, 5),
    ("/dev/full", 1, 7),
    ("/dev/random", 1, 8),
    ("/dev/urandom", 1, 9),
    ("/dev/tty", 5, 0),
];

/// The links every container has.
const LINKS: [(&str, &str); 6] = [
    ("pts/ptmx", "/dev/ptmx"),
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
    ("/proc/kcore", "/dev/core"),
];

/// Where nodes are made that cannot live in the container's own `/dev`; a directory
/// of the guest.
const STAGING: &str = "/run/husk/dev";

/// One node to make.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Node {
    path: PathBuf,
    /// Whether its place is a directory of the host, which lets the guest make no nodes:
    /// then it is made elsewhere and bound there.
    staged: bool,
    kind: SFlag,
    major: u64,
    minor: u64,
    mode: u32,
    uid: u32,
    gid: u32,
}

/// Everything to be done in `/dev`; nothing if it is a bind mount: whoever asked for
/// that takes care of its contents.
#[derive(Clone, Debug)]
pub struct DevPlan {
    nodes: Vec<Node>,
    is_bound: bool,
}

/// Checks `linux.devices` and merges it with the standard nodes.
pub fn plan(devices: &[oci::Device], mounts: &[PlannedMount]) -> Result<DevPlan, SpecError> {
    let mut nodes: Vec<Node> = DEFAULT
        .iter()
        .map(|(path, major, minor)| Node {
            path: PathBuf::from(path),
            staged: true,
            kind: SFlag::S_IFCHR,
            major: *major,
            minor: *minor,
            mode: 0o666,
            uid: 0,
            gid: 0,
        })
        .collect();
    for (index, device) in devices.iter().enumerate() {
        let node = Node::new(device, index)?;
        nodes.retain(|other| other.path != node.path);
        // Always the link into the container's own terminals.
        if node.path != Path::new("/dev/ptmx") {
            nodes.push(node);
        }
    }
    for node in &mut nodes {
        // The last mount above it is the one it will be on.
        let mount = mounts
            .iter()
            .rfind(|mount| node.path.starts_with(mount.destination()));
        node.staged = mount.is_none_or(PlannedMount::is_bind);
    }
    let dev = mounts
        .iter()
        .rfind(|mount| mount.destination() == Path::new("/dev"));
    Ok(DevPlan {
        nodes,
        is_bound: dev.is_some_and(PlannedMount::is_bind),
    })
}

impl Node {
    fn new(device: &oci::Device, index: usize) -> Result<Self, SpecError> {
        let wrong = |field: &str, value: String, must| SpecError::Value {
            field: format!("linux.devices[{index}].{field}"),
            value,
            must,
        };
        let kind = match device.kind.as_str() {
            "c" | "u" => SFlag::S_IFCHR,
            "b" => SFlag::S_IFBLK,
            "p" => SFlag::S_IFIFO,
            other => return Err(wrong("type", other.into(), "c, u, b or p")),
        };
        if !device.path.is_absolute() {
            let path = device.path.display().to_string();
            return Err(wrong("path", path, "an absolute path"));
        }
        let number = |field, value: i64| {
            u64::try_from(value).map_err(|_| wrong(field, value.to_string(), "0 or above"))
        };
        // Pipes have no numbers; callers send -1 for "none".
        let numbered = kind != SFlag::S_IFIFO;
        Ok(Self {
            path: device.path.clone(),
            staged: true,
            kind,
            major: if numbered {
                number("major", device.major)?
            } else {
                0
            },
            minor: if numbered {
                number("minor", device.minor)?
            } else {
                0
            },
            mode: device.file_mode.unwrap_or(0o666) & 0o7777,
            uid: device.uid.unwrap_or(0),
            gid: device.gid.unwrap_or(0),
        })
    }

    fn make(&self, path: &Path) -> nix::Result<()> {
        let device = makedev(self.major, self.minor);
        let mode = Mode::from_bits_truncate(self.mode);
        match mknod(path, self.kind, mode, device) {
            Err(Errno::EEXIST) => return Ok(()),
            other => other?,
        }
        // The creation mask must not count.
        fchmodat(
            nix::fcntl::AT_FDCWD,
            path,
            mode,
            FchmodatFlags::FollowSymlink,
        )?;
        chown(
            path,
            Some(Uid::from_raw(self.uid)),
            Some(Gid::from_raw(self.gid)),
        )
    }
}

/// Nodes made in the guest, to be bound into the container.
#[derive(Debug, Default)]
pub struct Staged(Vec<OwnedFd>);

impl DevPlan {
    /// Before the pivot: makes those nodes that cannot be made in the container.
    pub fn stage(&self) -> Result<Staged, SetupError> {
        if self.is_bound || !self.nodes.iter().any(|node| node.staged) {
            return Ok(Staged::default());
        }
        // In the child's own mount namespace, hence gone with it.
        mount(
            Some("tmpfs"),
            STAGING,
            Some("tmpfs"),
            MsFlags::empty(),
            Some("mode=700"),
        )
        .or_guest(|| format!("mounting a tmpfs at {STAGING}"))?;
        let mut staged = Vec::new();
        for (index, node) in self.staged().enumerate() {
            let path = Path::new(STAGING).join(index.to_string());
            let what = || format!("making device {:?}", node.path);
            node.make(&path).or_request(what)?;
            staged.push(sys::clone_mount(&path, false).or_guest(what)?);
        }
        Ok(Staged(staged))
    }

    /// After the mounts: fills `/dev`.
    pub fn fill(&self, staged: &Staged) -> Result<(), SetupError> {
        if self.is_bound {
            return Ok(());
        }
        for node in self.nodes.iter().filter(|node| !node.staged) {
            let what = || format!("making device {:?}", node.path);
            let parent = node.path.parent().unwrap_or(Path::new("/"));
            make_target(parent, true).or_request(what)?;
            node.make(&node.path).or_request(what)?;
        }
        for (node, mount) in self.staged().zip(&staged.0) {
            let what = || format!("binding device {:?}", node.path);
            let target = make_target(&node.path, false).or_request(what)?;
            sys::attach_mount(mount.as_fd(), &target).or_request(what)?;
        }
        LINKS
            .into_iter()
            .try_for_each(|(points_to, path)| link(points_to, path))
    }

    fn staged(&self) -> impl Iterator<Item = &Node> {
        self.nodes.iter().filter(|node| node.staged)
    }
}

fn link(points_to: &str, path: &str) -> Result<(), SetupError> {
    if points_to == "/proc/kcore" && !Path::new(points_to).exists() {
        return Ok(());
    }
    let what = || format!("linking {path} to {points_to}");
    if path == "/dev/ptmx" {
        // Whatever is there would be the terminals of somebody else.
        match fs::remove_file(path) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => {
                return Err(error).or_request(what);
            }
            _ => {}
        }
    }
    match symlink(points_to, path) {
        Err(error) if error.kind() == io::ErrorKind::AlreadyExists => Ok(()),
        other => other.or_request(what),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn device(json: serde_json::Value) -> oci::Device {
        serde_json::from_value(json).unwrap()
    }

    #[test]
    fn a_device_of_the_spec_replaces_the_standard_one() {
        let null = device(serde_json::json!({
            "type": "c", "path": "/dev/null", "major": 1, "minor": 3, "fileMode": 0o600, "uid": 7,
        }));
        let plan = plan(&[null], &[]).unwrap();
        assert_eq!(plan.nodes.len(), DEFAULT.len());
        let node = plan
            .nodes
            .iter()
            .find(|node| node.path == Path::new("/dev/null"))
            .unwrap();
        assert_eq!((node.mode, node.uid), (0o600, 7));
    }

    #[test]
    fn ptmx_is_never_a_node() {
        let ptmx =
            device(serde_json::json!({ "type": "c", "path": "/dev/ptmx", "major": 5, "minor": 2 }));
        assert_eq!(plan(&[ptmx], &[]).unwrap().nodes.len(), DEFAULT.len());
    }

    #[test]
    fn wrong_devices_are_named() {
        for (json, field) in [
            (
                serde_json::json!({ "type": "x", "path": "/dev/x" }),
                "linux.devices[0].type",
            ),
            (
                serde_json::json!({ "type": "c", "path": "dev/x" }),
                "linux.devices[0].path",
            ),
            (
                serde_json::json!({ "type": "c", "path": "/x", "major": -1 }),
                "linux.devices[0].major",
            ),
        ] {
            let error = plan(&[device(json)], &[]).unwrap_err().to_string();
            assert!(error.contains(field), "{error}");
        }
    }

    #[test]
    fn nodes_on_files_of_the_host_are_bound() {
        let mount = |destination: &str, kind: &str| {
            serde_json::from_value::<oci::Mount>(
                serde_json::json!({ "destination": destination, "type": kind }),
            )
            .unwrap()
        };
        let mounts = [mount("/dev", "tmpfs"), mount("/dev/host", "bind")];
        let mounts = super::super::mounts::plan(&mounts).unwrap();
        let made = ["/dev/fuse", "/dev/host/kvm", "/opt/tty"].map(|path| {
            device(serde_json::json!({ "type": "c", "path": path, "major": 10, "minor": 1 }))
        });
        let plan = plan(&made, &mounts).unwrap();
        let staged: Vec<_> = plan.staged().map(|node| node.path.as_path()).collect();
        assert_eq!(staged, [Path::new("/dev/host/kvm"), Path::new("/opt/tty")]);
        assert!(!plan.is_bound);
    }

    #[test]
    fn a_pipe_needs_no_numbers() {
        let pipe =
            device(serde_json::json!({ "type": "p", "path": "/dev/p", "major": -1, "minor": -1 }));
        assert!(plan(&[pipe], &[]).is_ok());
    }
}
