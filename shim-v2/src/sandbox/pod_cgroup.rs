//! The pod's cgroup on the host, which a kubelet makes and limits: it tells the size of the
//! VM where nothing else does, and shim and VMM live in a leaf below it, at the sandbox's
//! own `linux.cgroupsPath`. (Version 2 has no processes beside children.)
//!
//! Files: cgroups(7), the kernel's `admin-guide/cgroup-v2` and `admin-guide/cgroup-v1`.

use std::fs;
use std::io::{self, ErrorKind};
use std::path::{Component, Path, PathBuf};
use std::thread;
use std::time::Duration;

use serde::{Deserialize, Serialize};

use crate::container::pod::Limits;

/// Where hosts mount their cgroups.
pub const ROOT: &str = "/sys/fs/cgroup";
/// Version 1 tells "no limit" as the largest number of whole pages, of up to 64 KiB.
const V1_UNLIMITED: u64 = 0x7fff_ffff_ffff_0000;

/// Between attempts to remove a leaf, doubled each time up to the last.
const FIRST_PAUSE: Duration = Duration::from_millis(10);
const LAST_PAUSE: Duration = Duration::from_millis(400);

/// Where a sandbox belongs, relative to a hierarchy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Place {
    pod: PathBuf,
    leaf: String,
}

/// A leaf this shim lives in, and where it came from.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Leaf {
    /// Its directory.
    pub path: PathBuf,
    /// The cgroup the shim was in before.
    pub home: PathBuf,
    /// The root of the hierarchy.
    pub root: PathBuf,
}

impl Place {
    /// Reads `linux.cgroupsPath` of a pod's first container: a path, or `slice:prefix:name`
    /// for systemd. `None` if that leaves no cgroup for the pod.
    pub fn parse(cgroups_path: &str) -> Option<Self> {
        if let [slice, prefix, name] = cgroups_path.split(':').collect::<Vec<_>>()[..] {
            if cgroups_path.contains('/') {
                return None;
            }
            return Some(Self {
                pod: expand_slice(slice)?,
                leaf: format!("{prefix}-{name}.scope"),
            });
        }
        let path: PathBuf = Path::new(cgroups_path)
            .components()
            .filter(|part| matches!(part, Component::Normal(_)))
            .collect();
        let leaf = path.file_name()?.to_str()?.to_owned();
        let pod = path.parent().filter(|pod| *pod != Path::new(""))?;
        Some(Self {
            pod: pod.to_owned(),
            leaf,
        })
    }

    /// What the pod's cgroup below `root` allows. What cannot be read is no limit.
    pub fn limits(&self, root: &Path) -> Limits {
        let read = |hierarchy: &str, file: &str| {
            let path = root.join(hierarchy).join(&self.pod).join(file);
            fs::read_to_string(path).ok()
        };
        if is_v2(root) {
            return Limits {
                memory: read("", "memory.max").and_then(|text| number(&text)),
                cpu: read("", "cpu.max").and_then(|text| {
                    let (quota, period) = text.trim().split_once(' ')?;
                    Some((number(quota)?, number(period)?))
                }),
            };
        }
        let memory = read("memory", "memory.limit_in_bytes");
        let quota = read("cpu", "cpu.cfs_quota_us");
        let period = read("cpu", "cpu.cfs_period_us");
        Limits {
            memory: memory.and_then(|text| number(&text)),
            cpu: quota
                .and_then(|text| number(&text))
                .zip(period.and_then(|text| number(&text))),
        }
    }

    /// The leaf in each hierarchy this process is in; `own` is its /proc/self/cgroup.
    pub fn leaves(&self, root: &Path, own: &str) -> Vec<Leaf> {
        let leaves = hierarchies(root, own).map(|(mount, path)| {
            let home = mount.join(path.trim_start_matches('/'));
            let leaf = mount.join(&self.pod).join(&self.leaf);
            Leaf {
                path: leaf,
                home,
                root: mount,
            }
        });
        leaves.collect()
    }
}

impl Leaf {
    /// Moves this process into the leaf, which is made first.
    ///
    /// # Errors
    /// What the kernel refused.
    pub fn enter(&self) -> io::Result<()> {
        fs::create_dir_all(&self.path)?;
        let below = self.path.strip_prefix(&self.root).unwrap_or(&self.path);
        let mut parent = self.root.clone();
        for name in below.components() {
            let child = parent.join(name);
            inherit_cpuset(&parent, &child);
            parent = child;
        }
        if let Some(pod) = self.path.parent() {
            enable_controllers(pod);
        }
        fs::write(self.path.join("cgroup.procs"), "0")
    }

    /// Moves this process back, if it is in the leaf, and removes that.
    ///
    /// # Errors
    /// What the kernel refused; a leaf that is gone already is none.
    pub fn leave(&self) -> io::Result<()> {
        let own = std::process::id().to_string();
        let inside = fs::read_to_string(self.path.join("cgroup.procs")).unwrap_or_default();
        if inside.lines().any(|pid| pid == own) {
            let enter = |cgroup: &Path| fs::write(cgroup.join("cgroup.procs"), "0");
            // Where it came from may be gone by now; the root takes everybody.
            enter(&self.home).or_else(|_| enter(&self.root))?;
        }
        let mut pause = FIRST_PAUSE;
        loop {
            match fs::remove_dir(&self.path) {
                Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
                // Who was killed may still be on the way out.
                Err(error) if error.kind() == ErrorKind::ResourceBusy && pause < LAST_PAUSE => {
                    thread::sleep(pause);
                    pause *= 2;
                }
                result => return result,
            }
        }
    }

    /// How many processes the host's OOM killer has killed in the leaf.
    pub fn oom_kills(&self) -> u64 {
        // Version 2: memory.events(.local), version 1: memory.oom_control.
        let read = |file: &str| fs::read_to_string(self.path.join(file)).ok();
        let text = read("memory.events").or_else(|| read("memory.oom_control"));
        let text = text.unwrap_or_default();
        let kills = text.lines().find_map(|line| line.strip_prefix("oom_kill "));
        kills.and_then(number).unwrap_or(0)
    }
}

/// Version 2: the leaf has figures of its own. Limits apply without, so this may fail.
fn enable_controllers(pod: &Path) {
    for controller in ["+cpu", "+cpuset", "+io", "+memory", "+pids"] {
        fs::write(pod.join("cgroup.subtree_control"), controller).ok();
    }
}

/// Version 1: a new cpuset has no CPUs, and takes no process before it has.
fn inherit_cpuset(parent: &Path, child: &Path) {
    for file in ["cpuset.cpus", "cpuset.mems"] {
        let is_empty = |text: String| text.trim().is_empty();
        let (own, parents) = (child.join(file), parent.join(file));
        if child.join("tasks").exists() && fs::read_to_string(&own).is_ok_and(is_empty) {
            // What went wrong shows when a process is to enter.
            fs::read(parents).and_then(|list| fs::write(own, list)).ok();
        }
    }
}

/// The hierarchies mounted below `root` that a process is in, each with its cgroup there, by its
/// /proc/<pid>/cgroup.
pub fn hierarchies<'a>(root: &Path, own: &'a str) -> impl Iterator<Item = (PathBuf, &'a str)> {
    own.lines().filter_map(move |line| {
        // cgroups(7): hierarchy-ID:controller-list:cgroup-path
        let mut fields = line.splitn(3, ':').skip(1);
        let (controllers, path) = (fields.next()?, fields.next()?);
        let mount = match controllers {
            "" if is_v2(root) => root.to_owned(),
            "" => root.join("unified"),
            list => root.join(list.trim_start_matches("name=")),
        };
        mount.is_dir().then_some((mount, path))
    })
}

fn is_v2(root: &Path) -> bool {
    root.join("cgroup.controllers").exists()
}

/// systemd.slice(5): `a-b.slice` is in `a.slice`.
fn expand_slice(slice: &str) -> Option<PathBuf> {
    let name = slice.strip_suffix(".slice").filter(|name| *name != "-")?;
    let ends = name.match_indices('-').map(|(end, _)| end);
    let mut path: PathBuf = ends.map(|end| format!("{}.slice", &name[..end])).collect();
    path.push(slice);
    Some(path)
}

/// A limit; "max", -1, 0 and version 1's largest number are none.
fn number(text: &str) -> Option<u64> {
    let number: u64 = text.trim().parse().ok()?;
    (number > 0 && number < V1_UNLIMITED).then_some(number)
}

#[cfg(test)]
#[path = "pod_cgroup_test.rs"]
mod tests;
