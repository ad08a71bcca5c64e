//! The cgroup v2 tree: one cgroup per container, `/sys/fs/cgroup/containers/<id>`.
//!
//! The agent stays in the root, which may hold processes and still hand controllers
//! down. A leaf of its own would give it nothing (what it has cannot be reclaimed, and
//! the OOM killer passes it over), and moving there costs 10 ms of a 13 ms start:
//! a move waits for an RCU grace period, while a fork into a cgroup does not.
//!
//! None of these calls can stall: cgroupfs lives in the kernel's memory.

use std::fs::{self, File};
use std::io;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::sys::uio::pread;
use nix::unistd::Pid;
use thiserror::Error;
use tokio::io::Interest;
use tokio::time::timeout;

use super::resources::Setting;
use crate::sys;

/// Where the agent mounts the hierarchy.
pub const ROOT: &str = "/sys/fs/cgroup";
const CONTAINERS: &str = "containers";
/// How long killed processes may take to disappear.
const EMPTY_DEADLINE: Duration = Duration::from_secs(5);

/// Why a cgroup could not be used.
#[derive(Debug, Error)]
pub enum CgroupError {
    /// A file of the hierarchy could not be used.
    #[error("cgroup: {action} {path:?}: {}", errno(source))]
    Io {
        /// What was being done.
        action: &'static str,
        /// To which file.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
    /// The kernel refused a limit.
    #[error("cgroup: {file} cannot be set to {value:?}: {}", sys::errno_text(*errno))]
    Value {
        /// The file in the container's cgroup.
        file: String,
        /// What was asked for.
        value: String,
        /// Why not.
        errno: Errno,
    },
    /// Killed processes did not end in time, for example because they wait for a
    /// file of the host; the call may be repeated.
    #[error(
        "cgroup: processes in {path:?} are still there {EMPTY_DEADLINE:?} after they were killed"
    )]
    StillPopulated {
        /// The cgroup.
        path: PathBuf,
    },
}

/// The cgroup of one container.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    dir: File,
}

/// Lays out the hierarchy.
pub fn set_up() -> Result<(), CgroupError> {
    let root = Path::new(ROOT);
    let containers = root.join(CONTAINERS);
    delegate(root)?;
    create_dir(&containers)?;
    delegate(&containers)
}

/// Hands every controller down to the cgroups below `dir`.
fn delegate(dir: &Path) -> Result<(), CgroupError> {
    let available = read(&dir.join("cgroup.controllers"))?;
    let wanted: Vec<String> = available
        .split_whitespace()
        .map(|name| format!("+{name}"))
        .collect();
    write(&dir.join("cgroup.subtree_control"), &wanted.join(" "))
}

impl Cgroup {
    /// Makes the cgroup of the container `name` and applies its limits. One that is
    /// there already belongs to an earlier attempt whose processes would not end then.
    pub async fn create(name: &str, settings: &[Setting]) -> Result<Self, CgroupError> {
        let path = Path::new(ROOT).join(CONTAINERS).join(name);
        if path.exists() {
            Self::at(path.clone())?.destroy().await?;
        }
        create_dir(&path)?;
        let cgroup = Self::at(path.clone()).and_then(|cgroup| {
            settings
                .iter()
                .try_for_each(|setting| cgroup.apply(setting))?;
            Ok(cgroup)
        });
        if cgroup.is_err() {
            // Nothing has entered it yet; the first error is the one to report.
            fs::remove_dir(&path).ok();
        }
        cgroup
    }

    fn at(path: PathBuf) -> Result<Self, CgroupError> {
        let dir = open(&path)?;
        Ok(Self { path, dir })
    }

    /// The cgroup above those of all containers.
    pub fn of_all_containers() -> Result<Self, CgroupError> {
        Self::at(Path::new(ROOT).join(CONTAINERS))
    }

    fn apply(&self, setting: &Setting) -> Result<(), CgroupError> {
        match write(&self.path.join(&setting.file), &setting.value) {
            Err(CgroupError::Io { source, .. })
                if setting.may_be_absent && source.kind() == io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            Err(CgroupError::Io { source, .. }) => Err(CgroupError::Value {
                file: setting.file.clone(),
                value: setting.value.clone(),
                errno: Errno::from_raw(source.raw_os_error().unwrap_or(libc::EIO)),
            }),
            other => other,
        }
    }

    /// Kills every process in it, and in the cgroups the container made below.
    pub fn kill(&self) -> Result<(), CgroupError> {
        write(&self.path.join("cgroup.kill"), "1")
    }

    /// Sends a signal to every process in it and below.
    pub fn signal(&self, signal: i32) -> Result<(), CgroupError> {
        if signal == libc::SIGKILL {
            return self.kill();
        }
        for pid in self.pids()? {
            // A process that ended since the list was read needs no signal.
            sys::signal_pid(pid, signal).ok();
        }
        Ok(())
    }

    /// The processes in it and below.
    pub fn pids(&self) -> Result<Vec<Pid>, CgroupError> {
        let mut pids = Vec::new();
        for dir in self.tree()? {
            match read(&dir.join("cgroup.procs")) {
                Ok(text) => pids.extend(
                    text.lines()
                        .filter_map(|line| line.parse().ok())
                        .map(Pid::from_raw),
                ),
                // Gone since it was listed, or threaded: its processes are in its parent.
                Err(CgroupError::Io { source, .. })
                    if matches!(
                        source.raw_os_error(),
                        Some(libc::ENOENT | libc::ENODEV | libc::EOPNOTSUPP)
                    ) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pids)
    }

    /// Waits until no process is left in it.
    pub async fn wait_empty(&self) -> Result<(), CgroupError> {
        let path = self.path.join("cgroup.events");
        let failed = |source| CgroupError::Io {
            action: "watching",
            path: path.clone(),
            source,
        };
        let events = File::open(&path).map_err(failed)?;
        // The file reports changes as priority events (Documentation/admin-guide/cgroup-v2.rst).
        let events = sys::watch_fd(events.into(), Interest::PRIORITY).map_err(failed)?;
        let empty = async {
            loop {
                if is_empty(events.get_ref())? {
                    return Ok(());
                }
                events.ready(Interest::PRIORITY).await?.clear_ready();
            }
        };
        match timeout(EMPTY_DEADLINE, empty).await {
            Ok(result) => result.map_err(failed),
            Err(_) => Err(CgroupError::StillPopulated {
                path: self.path.clone(),
            }),
        }
    }

    /// Kills what is left, waits for its end and removes the cgroup. May be repeated.
    pub async fn destroy(&self) -> Result<(), CgroupError> {
        if !self.path.exists() {
            return Ok(());
        }
        self.kill()?;
        self.wait_empty().await?;
        for dir in self.tree()?.into_iter().rev() {
            fs::remove_dir(&dir).map_err(|source| CgroupError::Io {
                action: "removing",
                path: dir,
                source,
            })?;
        }
        Ok(())
    }

    /// Its directory and all below, parents first.
    fn tree(&self) -> Result<Vec<PathBuf>, CgroupError> {
        let mut tree = vec![self.path.clone()];
        let mut next = 0;
        while let Some(dir) = tree.get(next).cloned() {
            next += 1;
            let failed = |source| CgroupError::Io {
                action: "listing",
                path: dir.clone(),
                source,
            };
            for entry in fs::read_dir(&dir).map_err(failed)? {
                let entry = entry.map_err(failed)?;
                if entry.file_type().map_err(failed)?.is_dir() {
                    tree.push(entry.path());
                }
            }
        }
        Ok(tree)
    }
}

impl AsFd for Cgroup {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.dir.as_fd()
    }
}

/// The cgroup that `pid` is in at the moment, for clone3(2).
pub fn of_process(pid: Pid) -> Result<File, CgroupError> {
    let text = read(Path::new(&format!("/proc/{pid}/cgroup")))?;
    let path = text
        .lines()
        .find_map(|line| line.strip_prefix("0::/"))
        .unwrap_or_default();
    open(&Path::new(ROOT).join(path))
}

fn is_empty(events: &OwnedFd) -> io::Result<bool> {
    // Two short lines.
    let mut text = [0; 128];
    let length = pread(events, &mut text, 0)?;
    let text = text.get(..length).unwrap_or_default();
    Ok(text
        .split(|byte| *byte == b'\n')
        .any(|line| line == b"populated 0"))
}

fn create_dir(path: &Path) -> Result<(), CgroupError> {
    fs::create_dir(path).map_err(|source| CgroupError::Io {
        action: "making",
        path: path.into(),
        source,
    })
}

fn open(path: &Path) -> Result<File, CgroupError> {
    File::open(path).map_err(|source| CgroupError::Io {
        action: "opening",
        path: path.into(),
        source,
    })
}

fn read(path: &Path) -> Result<String, CgroupError> {
    fs::read_to_string(path).map_err(|source| CgroupError::Io {
        action: "reading",
        path: path.into(),
        source,
    })
}

fn write(path: &Path, value: &str) -> Result<(), CgroupError> {
    // Not `fs::write`: in a cgroup directory nothing can be created.
    let result = File::options().write(true).open(path).and_then(|mut file| {
        use std::io::Write;
        file.write_all(value.as_bytes())
    });
    result.map_err(|source| CgroupError::Io {
        action: "writing",
        path: path.into(),
        source,
    })
}

fn errno(error: &io::Error) -> String {
    match error.raw_os_error() {
        Some(number) => sys::errno_text(Errno::from_raw(number)),
        None => error.to_string(),
    }
}
