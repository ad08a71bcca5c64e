//! The one clean-up path: after success, after a failure, and by `delete` after a
//! crash of the shim. It undoes what `state.json` says, in reverse, and may run
//! any number of times.

use std::fs;
use std::io;
use std::os::fd::AsFd;
use std::path::{Path, PathBuf};

use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use thiserror::Error;

use super::network::NetworkError;
use super::pod_cgroup::Leaf;
use super::state_file::{ProcessRef, StateFile};
use crate::beneath;
use crate::mount;
use crate::sys;

/// How long a killed process may take to be gone, in milliseconds.
const DEATH_DEADLINE_MS: u16 = 2000;

/// What could not be undone. The rest was.
#[derive(Debug, Error)]
pub enum CleanupError {
    /// A process survived SIGKILL.
    #[error("process {pid} is still there {DEATH_DEADLINE_MS} ms after SIGKILL")]
    Process {
        /// Its pid.
        pid: i32,
        /// Why, if a call failed.
        source: io::Error,
    },
    /// A mount stayed.
    #[error("{path} cannot be unmounted")]
    Unmount {
        /// The mount point.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A file or directory stayed.
    #[error("{path} cannot be removed")]
    Remove {
        /// The path.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Something stayed in the pod's network namespace.
    #[error("the redirects in the pod's network namespace cannot be removed")]
    Network(#[source] NetworkError),
    /// The state could not be written back.
    #[error("state.json in {dir} cannot be written")]
    State {
        /// The run directory.
        dir: PathBuf,
        /// Why.
        source: io::Error,
    },
}

/// Undoes the sandbox: VMM, redirects, mounts, jail. The shim itself may live on.
///
/// # Errors
/// The first thing that could not be undone; everything else was tried.
pub fn release_sandbox(file: &StateFile) -> Result<(), CleanupError> {
    let state = file.state();
    let killed = match &state.vmm {
        Some(vmm) => kill(vmm),
        None => Ok(()),
    };
    let disconnected = disconnect(file);
    let unmounted = unmount_all(file, &state.mounts);
    let removed = unmounted.and_then(|()| remove_tree(file.dir(), &file.jail()));
    let forgotten = match (&killed, &state.vmm) {
        (Ok(()), Some(_)) => record(file, |state| state.vmm = None),
        _ => Ok(()),
    };
    let left = match &killed {
        Ok(()) => leave_cgroups(file, &state.cgroups),
        Err(_) => Ok(()),
    };
    let network = killed.and(disconnected);
    network.and(removed).and(forgotten).and(left)
}

/// Takes the redirects to the taps out of the pod's network namespace.
fn disconnect(file: &StateFile) -> Result<(), CleanupError> {
    let Some(redirects) = file.state().redirects else {
        return Ok(());
    };
    redirects.remove().map_err(CleanupError::Network)?;
    record(file, |state| state.redirects = None)
}

/// Removes the leaves below the pod's cgroup; this process goes back to where it came from.
fn leave_cgroups(file: &StateFile, leaves: &[Leaf]) -> Result<(), CleanupError> {
    let mut result = Ok(());
    for leaf in leaves {
        let left = leaf.leave().map_err(|source| CleanupError::Remove {
            path: leaf.path.clone(),
            source,
        });
        result = result.and(left);
    }
    if result.is_ok() && !leaves.is_empty() {
        result = record(file, |state| state.cgroups.clear());
    }
    result
}

/// Undoes what the shim itself made: a pod's files, its socket and the run directory. The last
/// step, after [`release_sandbox`].
///
/// # Errors
/// The first thing that could not be removed; everything else was tried.
pub fn remove_shim(file: &StateFile) -> Result<(), CleanupError> {
    let state = file.state();
    let socket = state.socket.map_or(Ok(()), |socket| remove_file(&socket));
    let address = remove_file(&state.bundle.join("address"));
    let files = state.files.iter().rev().map(|file| remove_file(file));
    let files = files.fold(Ok(()), Result::and);
    let dir = remove_tree(file.dir(), file.dir());
    // The directories above go with their last sandbox; until then they are not empty.
    for above in file.dir().ancestors().skip(1).take(2) {
        if fs::remove_dir(above).is_err() {
            break;
        }
    }
    socket.and(address).and(files).and(dir)
}

/// Kills a process, if it is still the one recorded, and waits until it is gone.
///
/// # Errors
/// [`CleanupError::Process`].
pub fn kill(process: &ProcessRef) -> Result<(), CleanupError> {
    let pid = process.pid;
    let failed = |source| CleanupError::Process { pid, source };
    let Ok(pidfd) = sys::pidfd_open(pid) else {
        return Ok(());
    };
    // The pidfd pins the process; only now is the comparison free of races.
    if !process.is_alive() {
        return Ok(());
    }
    sys::pidfd_kill(pidfd.as_fd()).map_err(failed)?;
    let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
    match poll(&mut fds, PollTimeout::from(DEATH_DEADLINE_MS)) {
        Ok(0) => Err(failed(io::ErrorKind::TimedOut.into())),
        Ok(_) => Ok(()),
        Err(errno) => Err(failed(errno.into())),
    }
}

/// Unmounts `mounts`, the last one first, and strikes each from the record.
///
/// # Errors
/// The first that stayed; the others were tried.
pub fn unmount_all(file: &StateFile, mounts: &[PathBuf]) -> Result<(), CleanupError> {
    let mut result = Ok(());
    for path in mounts.iter().rev() {
        let jail = file.jail();
        let unmounted = match path.starts_with(&jail) {
            true => beneath::unmount(&jail, path),
            false => mount::unmount(path),
        };
        let unmounted = unmounted.map_err(|source| CleanupError::Unmount {
            path: path.clone(),
            source,
        });
        let struck = unmounted.and_then(|()| record(file, |state| strike(&mut state.mounts, path)));
        result = result.and(struck);
    }
    result
}

/// Removes the last occurrence of `path`.
fn strike(mounts: &mut Vec<PathBuf>, path: &Path) {
    if let Some(index) = mounts.iter().rposition(|mount| mount == path) {
        mounts.remove(index);
    }
}

fn record(
    file: &StateFile,
    change: impl FnOnce(&mut super::state_file::State),
) -> Result<(), CleanupError> {
    match file.record(change) {
        // Somebody else cleaned up meanwhile: there is nothing left to record.
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        recorded => recorded.map_err(|source| CleanupError::State {
            dir: file.dir().to_owned(),
            source,
        }),
    }
}

/// Removes a directory of ours below the trusted `root`. It holds directories, sockets,
/// empty files that were mount points, and state files; anything else means that
/// somebody's data still shows through, and is left alone together with the directory.
///
/// # Errors
/// [`CleanupError::Unmount`] when something is mounted below, [`CleanupError::Remove`].
pub fn remove_tree(root: &Path, dir: &Path) -> Result<(), CleanupError> {
    let failed = |source| CleanupError::Remove {
        path: dir.to_owned(),
        source,
    };
    if let Some(path) = mount::mounts_below(dir).map_err(failed)?.pop() {
        let source = io::ErrorKind::ResourceBusy.into();
        return Err(CleanupError::Unmount { path, source });
    }
    match beneath::remove_dir(root, dir) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        result => result.map_err(failed),
    }
}

fn remove_file(path: &Path) -> Result<(), CleanupError> {
    match fs::remove_file(path) {
        Err(source) if source.kind() != io::ErrorKind::NotFound => Err(CleanupError::Remove {
            path: path.to_owned(),
            source,
        }),
        _ => Ok(()),
    }
}

#[cfg(test)]
#[path = "cleanup_test.rs"]
mod tests;
