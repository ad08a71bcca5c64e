//! The ledger: the host objects that a container may use and must not leave behind.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::{Duration, Instant};

use crate::containerd;

/// How long teardown may go on after `ctr` has returned.
const TEARDOWN: Duration = Duration::from_secs(60);

/// Directories that stay after a first container of any runtime: one per
/// containerd namespace, not one per container.
const LASTING: &[&str] = &[
    "/run/containerd/fifo",
    "/run/containerd/io.containerd.grpc.v1.cri/containers",
    "/run/containerd/io.containerd.grpc.v1.cri/sandboxes",
    "/run/containerd/io.containerd.runtime.v2.task/default",
    "/run/containerd/io.containerd.runtime.v2.task/k8s.io",
    "/run/containerd/io.containerd.sandbox.controller.v1.shim/k8s.io",
    "/run/containerd/runc",
    "/run/containerd/runc/default",
    "/run/containerd/runc/k8s.io",
    "/run/containerd/s",
    "/run/husk",
    "/run/husk/default",
    "/run/husk/k8s.io",
    "/run/netns",
    "/run/pods",
    "/run/pods/dual",
    "/run/pods/dual/last_reserved_ip.0",
    "/run/pods/dual/last_reserved_ip.1",
    "/run/pods/dual/lock",
    "/run/pods/pods",
    "/run/pods/pods/last_reserved_ip.0",
    "/run/pods/pods/lock",
    "/sys/fs/cgroup/default",
    "/sys/fs/cgroup/k8s.io",
    "/var/lib/containerd/io.containerd.runtime.v2.task/default",
    "/var/lib/containerd/io.containerd.runtime.v2.task/k8s.io",
    "/var/lib/containerd/io.containerd.sandbox.controller.v1.shim/k8s.io",
];

/// All of them, counted; equal objects (two mounts at one place) add up.
#[derive(Debug)]
pub struct Ledger(BTreeMap<String, usize>);

impl Ledger {
    /// Counts what is there.
    pub fn take() -> Self {
        let mut ledger = Self(BTreeMap::new());
        ledger.processes();
        ledger.mounts();
        ledger.links();
        ledger.sockets();
        ledger.loop_devices();
        for tree in [
            "/run",
            "/dev/shm",
            "/tmp",
            "/var/lib/containerd/io.containerd.runtime.v2.task",
            "/var/lib/containerd/io.containerd.sandbox.controller.v1.shim",
        ] {
            ledger.files(Path::new(tree));
        }
        ledger.cgroups(Path::new("/sys/fs/cgroup"));
        ledger
    }

    /// What is there now and was not when this ledger was taken, after teardown had
    /// its time; one object a line.
    pub fn leaks(&self) -> Vec<String> {
        let deadline = Instant::now() + TEARDOWN;
        loop {
            let leaks = self.new_since(&Self::take());
            if leaks.is_empty() || Instant::now() > deadline {
                return leaks;
            }
            // Mounts, cgroups and files have no common event to wait for.
            thread::sleep(Duration::from_millis(50));
        }
    }

    fn new_since(&self, now: &Self) -> Vec<String> {
        now.0
            .iter()
            .filter(|(object, count)| **count > self.0.get(*object).copied().unwrap_or(0))
            .map(|(object, _)| object.clone())
            .collect()
    }

    fn add(&mut self, object: String) {
        *self.0.entry(object).or_default() += 1;
    }

    /// Every process but the kernel's own and this one's, and the distinct network
    /// namespaces they live in.
    fn processes(&mut self) {
        let mut namespaces = BTreeMap::new();
        for (pid, directory) in numbered(Path::new("/proc")) {
            let Ok(stat) = fs::read_to_string(directory.join("stat")) else {
                continue;
            };
            // "pid (comm) state ppid ...": comm may hold anything, so from the right.
            let Some((head, tail)) = stat.rsplit_once(')') else {
                continue;
            };
            let mut fields = tail.split_whitespace();
            let state = fields.next().unwrap_or_default();
            let parent = fields.next().unwrap_or_default();
            if pid == 2 || parent == "2" {
                continue;
            }
            if let Ok(target) = fs::read_link(directory.join("ns/net")) {
                namespaces.insert(target, ());
            }
            let comm = head.split_once('(').map_or("?", |(_, comm)| comm);
            let dead = if state == "Z" { " (zombie)" } else { "" };
            if containerd::pid() == Some(pid) && dead.is_empty() {
                // It may have been killed and started again.
                self.add("process containerd".into());
            } else {
                self.add(format!("process {pid} {comm}{dead}"));
            }
        }
        for _ in namespaces {
            self.add("network namespace with processes".into());
        }
    }

    fn mounts(&mut self) {
        // proc(5), mountinfo: field 5 is the mount point.
        for line in read("/proc/self/mountinfo").lines() {
            let point = line.split_whitespace().nth(4).unwrap_or_default();
            self.add(format!("mount {point}"));
        }
    }

    fn links(&mut self) {
        for name in names(Path::new("/sys/class/net")) {
            self.add(format!("network link {name}"));
        }
    }

    fn sockets(&mut self) {
        // Listening ones (flag 0x10000): connections come and go with containerd's clients.
        for line in read("/proc/net/unix").lines() {
            let words: Vec<&str> = line.split_whitespace().collect();
            if let [_, _, _, "00010000", _, _, _, path] = words[..] {
                self.add(format!("unix socket {path}"));
            }
        }
    }

    fn loop_devices(&mut self) {
        for name in names(Path::new("/sys/block")) {
            let file = read(format!("/sys/block/{name}/loop/backing_file"));
            if !file.is_empty() {
                self.add(format!("loop device {name} on {}", file.trim()));
            }
        }
    }

    fn files(&mut self, directory: &Path) {
        let Ok(device) = fs::metadata(directory).map(|metadata| metadata.dev()) else {
            return;
        };
        for name in names(directory) {
            let path = directory.join(name);
            if path.starts_with("/run/results") {
                continue;
            }
            let Ok(metadata) = path.symlink_metadata() else {
                continue;
            };
            let lasting = LASTING.iter().any(|lasting| path == Path::new(lasting));
            if !lasting {
                self.add(format!("file {}", path.display()));
            }
            // Not into a container's mounted root: the mount itself is listed.
            if metadata.is_dir() && metadata.dev() == device {
                self.files(&path);
            }
        }
    }

    fn cgroups(&mut self, directory: &Path) {
        for name in names(directory) {
            let path = directory.join(name);
            if path.is_dir() {
                if !LASTING.iter().any(|lasting| path == Path::new(lasting)) {
                    self.add(format!("cgroup {}", path.display()));
                }
                self.cgroups(&path);
            }
        }
    }
}

fn read(path: impl AsRef<Path>) -> String {
    fs::read_to_string(path).unwrap_or_default()
}

fn names(directory: &Path) -> Vec<String> {
    let Ok(entries) = fs::read_dir(directory) else {
        return Vec::new();
    };
    entries
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned())
        .collect()
}

fn numbered(directory: &Path) -> impl Iterator<Item = (u32, PathBuf)> + '_ {
    names(directory)
        .into_iter()
        .filter_map(move |name| Some((name.parse().ok()?, directory.join(name))))
}
