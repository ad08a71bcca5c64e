//! Where a mount goes: resolved as the container sees it, checked, and made if missing.

use std::collections::VecDeque;
use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;

use crate::container::setup_error::SetupError;

/// Most symlinks followed in one target; the kernel's own limit (path_resolution(7)).
const MAX_SYMLINKS: usize = 40;

/// Paths below `/proc` that may be covered, because programs such as lxcfs serve
/// them: runc's list.
const COVERABLE_IN_PROC: [&str; 11] = [
    "/proc/cpuinfo",
    "/proc/diskstats",
    "/proc/meminfo",
    "/proc/stat",
    "/proc/swaps",
    "/proc/uptime",
    "/proc/loadavg",
    "/proc/slabinfo",
    "/proc/net/dev",
    "/proc/sys/kernel/ns_last_pid",
    "/proc/sys/crypto/fips_enabled",
];

/// Whether something may be mounted at `target`, which is without symlinks. Programs
/// trust `/proc` to be what it is: only a proc file system may be there, and below
/// it nothing but certain files.
pub fn check_proc(target: &Path, is_proc: bool) -> Result<(), SetupError> {
    if !target.starts_with("/proc") {
        return Ok(());
    }
    let wrong = if target == Path::new("/proc") {
        (!is_proc).then_some("it is not of type proc")
    } else {
        let coverable = |path: &&str| target == Path::new(path);
        let known = COVERABLE_IN_PROC.iter().any(coverable);
        (!known).then_some("it is inside /proc")
    };
    match wrong {
        Some(why) => Err(SetupError::request(format!(
            "{target:?} cannot be mounted because {why}"
        ))),
        None => Ok(()),
    }
}

/// Makes sure that `path` exists as a directory or a file and returns it without symlinks.
pub fn make_target(path: &Path, is_dir: bool) -> io::Result<PathBuf> {
    let target = resolve(Path::new("/"), path)?;
    make(&target, is_dir)?;
    Ok(target)
}

/// Makes sure that `target`, which is without symlinks, exists as a directory or a file.
pub fn make(target: &Path, is_dir: bool) -> io::Result<()> {
    match fs::symlink_metadata(target) {
        Ok(found) if found.is_dir() == is_dir => return Ok(()),
        // Either way, as mount(2) has it.
        Ok(_) => return Err(Errno::ENOTDIR.into()),
        Err(error) if error.kind() == io::ErrorKind::NotFound => {}
        Err(error) => return Err(error),
    }
    let dir = if is_dir {
        Some(target)
    } else {
        target.parent()
    };
    if let Some(dir) = dir {
        fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(dir)?;
    }
    if !is_dir {
        fs::OpenOptions::new()
            .write(true)
            .create(true)
            .truncate(false)
            .mode(0o644)
            .open(target)?;
    }
    Ok(())
}

/// The place `path` means with `root` as the root directory, symlinks followed even
/// where they lead to what does not exist yet: images ship dangling ones, such as
/// `/etc/resolv.conf`.
pub fn resolve(root: &Path, path: &Path) -> io::Result<PathBuf> {
    let mut resolved = PathBuf::new();
    let mut left: VecDeque<OsString> = parts(path).collect();
    let mut links = 0;
    while let Some(part) = left.pop_front() {
        if part == ".." {
            resolved.pop();
            continue;
        }
        let candidate = resolved.join(&part);
        match fs::read_link(root.join(&candidate)) {
            Ok(link) => {
                links += 1;
                if links > MAX_SYMLINKS {
                    return Err(Errno::ELOOP.into());
                }
                if link.is_absolute() {
                    resolved = PathBuf::new();
                }
                for part in parts(&link).collect::<Vec<_>>().into_iter().rev() {
                    left.push_front(part);
                }
            }
            // Not a symlink (EINVAL) or not there.
            Err(_) => resolved = candidate,
        }
    }
    Ok(root.join(resolved))
}

fn parts(path: &Path) -> impl Iterator<Item = OsString> {
    path.components().filter_map(|component| match component {
        Component::Normal(part) => Some(part.to_owned()),
        Component::ParentDir => Some("..".into()),
        Component::RootDir | Component::CurDir | Component::Prefix(_) => None,
    })
}

/// `path` without `.` and `..`, by its text alone.
pub fn clean(path: &Path) -> PathBuf {
    let mut clean = PathBuf::from("/");
    for part in parts(path) {
        if part == ".." {
            clean.pop();
        } else {
            clean.push(part);
        }
    }
    clean
}
