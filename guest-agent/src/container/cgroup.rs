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
use std::os::fd::{AsFd, BorrowedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use nix::errno::Errno;
use nix::unistd::Pid;
use thiserror::Error;
use tokio::time::timeout;

use super::event_file::{EventFile, number};
use super::oom::OomWatch;
use super::resources::{Limits, Setting};
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
    #[error("{field}: {file} cannot be set to {value:?}: {}", sys::errno_text(*errno))]
    Value {
        /// Dotted path of the field in the OCI spec.
        field: String,
        /// The file in the container's cgroup.
        file: String,
        /// What was asked for.
        value: String,
        /// Why not.
        errno: Errno,
    },
    /// The kernel refused the device rules.
    #[error("linux.resources.devices: the rules cannot be applied: {}", sys::errno_text(*errno))]
    Devices {
        /// Why not.
        errno: Errno,
    },
    /// Not every process stood still, or ran again, in time.
    #[error("cgroup: not every process in {path:?} came to {wanted} within {limit:?}")]
    NotFrozen {
        /// The cgroup.
        path: PathBuf,
        /// What was asked for.
        wanted: &'static str,
        /// The limit.
        limit: Duration,
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

impl CgroupError {
    /// Whether the request is to blame: the kernel refused what was to be written, or
    /// does not have the file to write it to.
    pub fn is_wrong_value(&self) -> bool {
        let Self::Value { errno, .. } = self else {
            return false;
        };
        matches!(
            errno,
            Errno::EINVAL | Errno::ERANGE | Errno::ENODEV | Errno::EOPNOTSUPP | Errno::ENOENT
        )
    }

    /// Whether there is no such file, or none any more.
    pub fn is_gone(&self) -> bool {
        let Self::Io { source, .. } = self else {
            return false;
        };
        matches!(source.raw_os_error(), Some(libc::ENOENT | libc::ENODEV))
    }
}

/// The cgroup of one container.
#[derive(Debug)]
pub struct Cgroup {
    path: PathBuf,
    dir: File,
    pub(super) oom: OomWatch,
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
    pub async fn create(name: &str, limits: &Limits) -> Result<Self, CgroupError> {
        let path = Path::new(ROOT).join(CONTAINERS).join(name);
        if path.exists() {
            Self::at(path.clone())?.destroy().await?;
        }
        create_dir(&path)?;
        let cgroup = Self::at(path.clone()).and_then(|cgroup| {
            limits
                .settings
                .iter()
                .try_for_each(|setting| cgroup.apply(setting))?;
            sys::attach_device_filter(cgroup.as_fd(), limits.devices.instructions())
                .map_err(|errno| CgroupError::Devices { errno })?;
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
        let oom = OomWatch::default();
        Ok(Self { path, dir, oom })
    }

    /// The path of its file `name`.
    pub(super) fn file(&self, name: &str) -> PathBuf {
        self.path.join(name)
    }

    pub(super) fn read(&self, name: &str) -> Result<String, CgroupError> {
        read(&self.file(name))
    }

    pub(super) fn write(&self, name: &str, value: &str) -> Result<(), CgroupError> {
        write(&self.file(name), value)
    }

    /// The cgroup above those of all containers.
    pub fn of_all_containers() -> Result<Self, CgroupError> {
        Self::at(Path::new(ROOT).join(CONTAINERS))
    }

    fn apply(&self, setting: &Setting) -> Result<(), CgroupError> {
        match self.write(&setting.file, &setting.value) {
            Err(CgroupError::Io { source, .. })
                if setting.may_be_absent && source.kind() == io::ErrorKind::NotFound =>
            {
                Ok(())
            }
            Err(CgroupError::Io { source, .. }) => Err(CgroupError::Value {
                field: setting.field.clone(),
                file: setting.file.clone(),
                value: setting.value.clone(),
                errno: Errno::from_raw(source.raw_os_error().unwrap_or(libc::EIO)),
            }),
            other => other,
        }
    }

    /// Applies all settings, or in the end none.
    pub fn apply_or_restore(&self, settings: &[Setting]) -> Result<(), CgroupError> {
        let mut before: Vec<(&str, String)> = Vec::new();
        for setting in settings {
            let old = self.read(&setting.file);
            if let Err(error) = self.apply(setting) {
                for (file, old) in before.iter().rev() {
                    // What was in force a moment ago is accepted again.
                    self.write(file, old).ok();
                }
                return Err(error);
            }
            if let Ok(old) = old {
                before.push((&setting.file, old));
            }
        }
        Ok(())
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
                // Gone since it was listed.
                Err(error) if error.is_gone() => {}
                // Threaded: its processes are in its parent.
                Err(CgroupError::Io { source, .. })
                    if source.raw_os_error() == Some(libc::EOPNOTSUPP) => {}
                Err(error) => return Err(error),
            }
        }
        Ok(pids)
    }

    /// Waits until no process is left in it.
    pub async fn wait_empty(&self) -> Result<(), CgroupError> {
        let events = EventFile::open(self.file("cgroup.events"))?;
        let empty = |text: &str| number(text, "populated").filter(|populated| *populated == 0);
        match timeout(EMPTY_DEADLINE, events.wait_for(empty)).await {
            Ok(result) => result.map(drop),
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
        // From now on the last count is what there is.
        self.oom_kills();
        for dir in self.tree()?.into_iter().rev() {
            fs::remove_dir(&dir).map_err(|source| CgroupError::Io {
                action: "removing",
                path: dir,
                source,
            })?;
        }
        self.oom.close();
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
