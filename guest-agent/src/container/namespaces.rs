//! Which namespaces a container gets.
//!
//! | kind | listed without a path | not listed |
//! |---|---|---|
//! | mount, pid | new | refused: it would be the guest's own |
//! | network | the guest's, which is the pod's | refused: it would be the host's |
//! | ipc, uts, cgroup | new | the guest's |
//! | user, time | refused | none |
//!
//! A path names the namespace of a process of the guest, `/proc/<pid>/ns/…`, and that one is
//! joined: another container's, or process 1's, which are those of a pod without a pause
//! container; the host's namespaces do not exist here. Only the mount namespace cannot be
//! shared: each container has a root of its own.

use std::fs::File;
use std::io;
use std::os::fd::OwnedFd;
use std::path::{Path, PathBuf};

use nix::sched::{CloneFlags, setns};

use super::setup_error::{Context, SetupError};
use crate::oci::{Namespace, SpecError, require};

/// Each kind that can be had: its flag and its name below `/proc/<pid>/ns`.
const KINDS: [(&str, CloneFlags, &str); 6] = [
    ("mount", CloneFlags::CLONE_NEWNS, "mnt"),
    ("pid", CloneFlags::CLONE_NEWPID, "pid"),
    ("network", CloneFlags::CLONE_NEWNET, "net"),
    ("ipc", CloneFlags::CLONE_NEWIPC, "ipc"),
    ("uts", CloneFlags::CLONE_NEWUTS, "uts"),
    ("cgroup", CloneFlags::CLONE_NEWCGROUP, "cgroup"),
];

/// The namespaces of one container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Namespaces {
    new: CloneFlags,
    joined: Vec<(CloneFlags, PathBuf)>,
}

/// Namespaces of other processes, to be joined.
#[derive(Debug, Default)]
pub struct Joined {
    /// Must be entered by the parent, before the fork.
    pub pid: Option<OwnedFd>,
    /// Entered by the child itself.
    pub others: Vec<(CloneFlags, OwnedFd)>,
}

impl Namespaces {
    /// Checks `linux.namespaces`.
    pub fn plan(listed: &[Namespace]) -> Result<Self, SpecError> {
        let mut new = CloneFlags::empty();
        let mut joined = Vec::new();
        let mut seen = CloneFlags::empty();
        for namespace in listed {
            let refused = |why| SpecError::Refused {
                field: format!("linux.namespaces, {:?}", namespace.kind),
                why,
            };
            let (flag, file) = match namespace.kind.as_str() {
                "user" => return Err(refused("user namespaces are not supported in the guest")),
                "time" => return Err(refused("time namespaces are not supported in the guest")),
                kind => KINDS
                    .into_iter()
                    .find(|(known, ..)| *known == kind)
                    .map(|(_, flag, file)| (flag, file))
                    .ok_or_else(|| SpecError::Value {
                        field: "linux.namespaces".into(),
                        value: kind.into(),
                        must: "mount, pid, network, ipc, uts or cgroup",
                    })?,
            };
            require(!seen.contains(flag), || refused("is listed twice"))?;
            seen |= flag;
            if namespace.path.as_os_str().is_empty() {
                new |= flag;
                continue;
            }
            require(flag != CloneFlags::CLONE_NEWNS, || {
                refused("joining a mount namespace by its path is not supported")
            })?;
            require(is_of_a_process(&namespace.path, file), || {
                refused("a path must be that of a process of the guest, /proc/<pid>/ns/…")
            })?;
            joined.push((flag, namespace.path.clone()));
        }
        for (flag, kind, why) in [
            (
                CloneFlags::CLONE_NEWNS,
                "mount",
                "without it the container would share the guest's mounts",
            ),
            (
                CloneFlags::CLONE_NEWPID,
                "pid",
                "without it the container asks for the host's processes, which a guest cannot show",
            ),
            (
                CloneFlags::CLONE_NEWNET,
                "network",
                "without it the container asks for the host's network, which a guest does not have",
            ),
        ] {
            require(seen.contains(flag), || SpecError::Refused {
                field: format!("linux.namespaces, no {kind:?}"),
                why,
            })?;
        }
        // The guest's network is the pod's already.
        new -= CloneFlags::CLONE_NEWNET;
        Ok(Self { new, joined })
    }

    /// Those to be made together with the process.
    pub fn at_clone(&self) -> CloneFlags {
        // A new cgroup namespace starts at the cgroup its maker is in, which must be
        // the container's: it is made by the child itself.
        self.new - CloneFlags::CLONE_NEWCGROUP
    }

    /// Those the child makes itself, once in its cgroup.
    pub fn in_child(&self) -> CloneFlags {
        self.new & CloneFlags::CLONE_NEWCGROUP
    }

    /// Opens those that are named by a path.
    pub fn open(&self) -> Result<Joined, SetupError> {
        let mut joined = Joined::default();
        for (flag, path) in &self.joined {
            let what = || format!("linux.namespaces: opening {path:?}");
            let opened: io::Result<File> = File::open(path);
            let namespace = OwnedFd::from(opened.or_request(what)?);
            if *flag == CloneFlags::CLONE_NEWPID {
                joined.pid = Some(namespace);
            } else {
                joined.others.push((*flag, namespace));
            }
        }
        Ok(joined)
    }

    /// Whether host and domain name are not the guest's.
    pub fn has_uts(&self) -> bool {
        self.has(CloneFlags::CLONE_NEWUTS)
    }

    /// Whether its processes are among those of others.
    pub fn shares_pids(&self) -> bool {
        !self.new.contains(CloneFlags::CLONE_NEWPID)
    }

    /// Whether IPC objects are not the guest's.
    pub fn has_ipc(&self) -> bool {
        self.has(CloneFlags::CLONE_NEWIPC)
    }

    fn has(&self, flag: CloneFlags) -> bool {
        self.new.contains(flag) || self.joined.iter().any(|(joined, _)| *joined == flag)
    }

    /// Those a further process of the container joins by itself. The pid namespace is
    /// not among them: it must be entered by the parent, before the fork.
    pub fn to_join() -> CloneFlags {
        CloneFlags::CLONE_NEWNS
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWCGROUP
            | CloneFlags::CLONE_NEWNET
    }
}

impl Joined {
    /// Enters all but the pid namespace.
    pub fn enter(&self) -> Result<(), SetupError> {
        for (flag, namespace) in &self.others {
            setns(namespace, *flag).or_request(|| {
                let kind = KINDS.iter().find(|(_, known, _)| known == flag);
                let kind = kind.map_or("", |(kind, ..)| *kind);
                format!("linux.namespaces: joining the {kind} namespace")
            })?;
        }
        Ok(())
    }
}

/// Whether `path` is `/proc/<pid>/ns/<file>`.
fn is_of_a_process(path: &Path, file: &str) -> bool {
    let pid = path
        .to_str()
        .and_then(|path| path.strip_prefix("/proc/"))
        .and_then(|rest| rest.strip_suffix(file))
        .and_then(|rest| rest.strip_suffix("/ns/"))
        .and_then(|pid| pid.parse::<u32>().ok());
    pid.is_some_and(|pid| pid > 0)
}

#[cfg(test)]
mod tests {
    use std::io::{BufRead, BufReader};
    use std::process::{Command, Stdio};

    use super::*;

    fn plan(listed: &[&str]) -> Result<Namespaces, SpecError> {
        let listed: Vec<Namespace> = listed
            .iter()
            .map(|kind| Namespace {
                kind: kind.to_string(),
                path: "".into(),
            })
            .collect();
        Namespaces::plan(&listed)
    }

    #[test]
    fn the_usual_list() {
        let namespaces = plan(&["pid", "ipc", "uts", "mount", "network", "cgroup"]).unwrap();
        let expected = CloneFlags::CLONE_NEWPID
            | CloneFlags::CLONE_NEWIPC
            | CloneFlags::CLONE_NEWUTS
            | CloneFlags::CLONE_NEWNS;
        assert_eq!(namespaces.at_clone(), expected);
        assert_eq!(namespaces.in_child(), CloneFlags::CLONE_NEWCGROUP);
        assert!(namespaces.has_uts());
    }

    #[test]
    fn host_modes_are_refused_by_name() {
        for (listed, missing) in [
            (&["mount", "network"], "pid"),
            (&["mount", "pid"], "network"),
            (&["pid", "network"], "mount"),
        ] {
            let error = plan(listed).unwrap_err().to_string();
            assert!(error.contains(&format!("no \"{missing}\"")), "{error}");
        }
    }

    #[test]
    fn what_is_not_listed_is_the_guests() {
        let namespaces = plan(&["mount", "pid", "network"]).unwrap();
        assert!(!namespaces.has_uts());
        assert_eq!(namespaces.in_child(), CloneFlags::empty());
    }

    #[test]
    fn user_time_unknown_and_repeated_ones_are_refused() {
        for kind in ["user", "time", "wonder", "pid"] {
            let error = plan(&["mount", "pid", "network", kind])
                .unwrap_err()
                .to_string();
            assert!(error.contains(kind), "{error}");
        }
    }

    fn with_path(kind: &str, path: &str) -> Result<Namespaces, SpecError> {
        let entry = |kind: &str, path: &str| Namespace {
            kind: kind.into(),
            path: path.into(),
        };
        let mut listed = vec![entry(kind, path)];
        let others = ["mount", "pid", "network"].into_iter();
        listed.extend(
            others
                .filter(|other| *other != kind)
                .map(|other| entry(other, "")),
        );
        Namespaces::plan(&listed)
    }

    #[test]
    fn a_path_of_another_process_is_joined() {
        let namespaces = with_path("ipc", "/proc/7/ns/ipc").unwrap();
        assert!(namespaces.has_ipc());
        assert!(!namespaces.at_clone().contains(CloneFlags::CLONE_NEWIPC));
        let namespaces = with_path("pid", "/proc/712/ns/pid").unwrap();
        assert!(!namespaces.at_clone().contains(CloneFlags::CLONE_NEWPID));
        assert!(namespaces.shares_pids());
        assert!(with_path("network", "/proc/7/ns/net").is_ok());
        for (kind, path) in [("ipc", "/proc/1/ns/ipc"), ("pid", "/proc/1/ns/pid")] {
            assert!(
                with_path(kind, path).is_ok(),
                "of a pod without a pause container"
            );
        }
    }

    #[test]
    fn other_paths_are_refused() {
        for (kind, path) in [
            ("mount", "/proc/7/ns/mnt"),
            ("ipc", "/proc/0/ns/ipc"),
            ("ipc", "/proc/self/ns/ipc"),
            ("ipc", "/proc/7/ns/uts"),
            ("ipc", "/proc/7/root/proc/7/ns/ipc"),
            ("ipc", "/run/husk/share/c/rootfs/ipc"),
            ("network", "/run/netns/pod"),
        ] {
            let error = with_path(kind, path).unwrap_err().to_string();
            assert!(error.contains(kind), "{path}: {error}");
        }
    }

    #[test]
    fn a_process_that_is_gone_is_named() {
        let namespaces = with_path("uts", "/proc/4194304/ns/uts").unwrap();
        let error = namespaces.open().unwrap_err();
        assert!(error.text.contains("/proc/4194304/ns/uts"), "{error}");
    }

    #[test]
    fn the_namespace_of_another_process_is_entered() {
        if !nix::unistd::Uid::effective().is_root() {
            eprintln!("skipped: needs root");
            return;
        }
        let mut other = Command::new("unshare")
            .args(["--uts", "sh", "-c"])
            .arg("echo burrow >/proc/sys/kernel/hostname; echo ready; read line")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut line = String::new();
        let mut output = BufReader::new(other.stdout.take().unwrap());
        output.read_line(&mut line).unwrap();
        let path = format!("/proc/{}/ns/uts", other.id());
        let joined = with_path("uts", &path).unwrap().open().unwrap();
        // Of all threads only this one moves.
        let entered = std::thread::spawn(move || {
            joined.enter().unwrap();
            nix::unistd::gethostname().unwrap()
        });
        assert_eq!(entered.join().unwrap(), "burrow");
        drop(other.stdin.take());
        other.wait().unwrap();
    }
}
