//! The jail: what a guest that has taken over this process finds itself in.
//!
//! The shim has started the process in new mount, pid, ipc and uts namespaces, as their
//! first process, in the pod's network namespace. Before anything of the guest's is
//! looked at, [`enter`]
//!
//! 1. turns mount propagation from the host one-way (`/` rslave): a mount the shim makes
//!    below the shared tree arrives, nothing goes back;
//! 2. makes the jail directory the root and lets go of the old one. Left of the file
//!    system are the exported tree, the vsock sockets and a `/proc` of the new pid
//!    namespace, which shows this process alone;
//! 3. forbids `open_by_handle_at`, to which CAP_DAC_READ_SEARCH would open every file of
//!    a file system of which a single directory is exported;
//! 4. gives up every capability but [`KEPT`], for this thread and for what it could gain
//!    by exec, and forbids gaining any (`no_new_privs`).
//!
//! Capabilities belong to threads. Those of [`KEPT`] are the file system's: it acts for
//! all users of the guest. Its thread is spawned when the device is built, inherits
//! them, and keeps them. When all devices are built the main thread gives up the rest by
//! [`drop_all_capabilities`], and only then spawns the vCPU threads, which inherit none.

use std::path::Path;

use capctl::prctl::Secbits;
use capctl::{Cap, CapSet, CapState};
use nix::errno::Errno;
use nix::mount::{MntFlags, MsFlags, mount, umount2};
use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::stat::{Mode, umask};
use nix::unistd::{chdir, pivot_root};
use seccompiler::{BpfProgram, SeccompAction, SeccompFilter, TargetArch};
use thiserror::Error;

/// What the file system thread needs to act as the guest's root over the exported tree.
pub const KEPT: [Cap; 8] = [
    Cap::CHOWN,
    Cap::DAC_OVERRIDE,
    Cap::DAC_READ_SEARCH,
    Cap::FOWNER,
    Cap::FSETID,
    Cap::SETUID,
    Cap::SETGID,
    Cap::SETFCAP,
];

/// Most descriptors of a VMM: each inode the guest knows is one.
const MAX_OPEN_FILES: u64 = 1 << 20;
/// What every VMM may have, and its own use with it.
const MIN_OPEN_FILES: u64 = 20_000;

/// Marks the numbers of the x32 system calls, by which a kernel that has them is entered too.
const X32_SYSCALL_BIT: libc::c_long = 0x4000_0000;

/// Why the jail could not be entered.
#[derive(Debug, Error)]
pub enum JailError {
    /// A mount operation failed.
    #[error("cannot enter the jail {jail}: {step} failed")]
    Mount {
        /// The jail's directory.
        jail: String,
        /// What was being done.
        step: &'static str,
        /// What the kernel said.
        #[source]
        source: Errno,
    },
    /// Capabilities could not be given up.
    #[error("cannot give up capabilities")]
    Capabilities(#[source] capctl::Error),
    /// The system call filter could not be installed.
    #[error("cannot install the system call filter")]
    Filter(#[source] seccompiler::Error),
}

/// Enters the jail at `dir`. Everything still needed from outside must be open already.
pub fn enter(dir: &Path) -> Result<(), JailError> {
    change_root(dir)?;
    umask(Mode::empty());
    raise_open_files();
    limit_capabilities()?;
    forbid_file_handles()
}

fn change_root(dir: &Path) -> Result<(), JailError> {
    let failed = |step| {
        move |source| JailError::Mount {
            jail: dir.display().to_string(),
            step,
            source,
        }
    };
    let none: Option<&Path> = None;
    let slave = MsFlags::MS_REC | MsFlags::MS_SLAVE;
    mount(none, "/", none, slave, none).map_err(failed("making mount propagation one-way"))?;
    // pivot_root wants a mount; the directories mounted below come along.
    let bind = MsFlags::MS_BIND | MsFlags::MS_REC;
    mount(Some(dir), dir, none, bind, none).map_err(failed("binding the directory to itself"))?;
    chdir(dir).map_err(failed("changing to it"))?;
    // Read-only and nothing but processes: /proc/sys and sysrq-trigger would obey uid 0
    // whatever its capabilities.
    let inert = MsFlags::MS_RDONLY | MsFlags::MS_NOSUID | MsFlags::MS_NODEV | MsFlags::MS_NOEXEC;
    let subset = Some("subset=pid");
    mount(Some("proc"), "proc", Some("proc"), inert, subset).map_err(failed("mounting proc"))?;
    // Both arguments ".": the old root ends up on top of the new one, and is let go of
    // there (pivot_root(2), NOTES). No directory for it is needed inside.
    pivot_root(".", ".").map_err(failed("making it the root"))?;
    umount2(".", MntFlags::MNT_DETACH).map_err(failed("letting go of the old root"))?;
    chdir("/").map_err(failed("changing to the new root"))?;
    seal(failed)
}

/// The shim works by path in the root and the share, so nobody here may change them.
/// What it mounts below the share keeps flags of its own.
fn seal<F: FnOnce(Errno) -> JailError>(
    failed: impl Fn(&'static str) -> F,
) -> Result<(), JailError> {
    let none: Option<&Path> = None;
    let sealed = MsFlags::MS_REMOUNT
        | MsFlags::MS_BIND
        | MsFlags::MS_RDONLY
        | MsFlags::MS_NOSUID
        | MsFlags::MS_NODEV;
    match mount(none, "/share", none, sealed, none) {
        // There is no share, or it is no mount of its own: the root's flags cover it.
        Err(Errno::ENOENT | Errno::EINVAL) => {}
        sealed => sealed.map_err(failed("making the share read-only"))?,
    }
    mount(none, "/", none, sealed, none).map_err(failed("making the root read-only"))
}

/// As far as the hard limit goes, or beyond while the capability for it is held.
fn raise_open_files() {
    let limit = Resource::RLIMIT_NOFILE;
    if setrlimit(limit, MAX_OPEN_FILES, MAX_OPEN_FILES).is_ok() {
        return;
    }
    let raised = getrlimit(limit).and_then(|(_, hard)| setrlimit(limit, hard, hard));
    if let Err(error) = raised {
        log::warn!("cannot raise the limit of open files: {error}");
    }
}

/// Leaves the process the open files that a guest of `memory_mib` MiB has use for: it spends
/// about a KiB on each inode it knows, and the host as much, on account of the cgroup it is in.
/// It may have those of `possible_mib` MiB when it has grown.
pub fn limit_open_files(memory_mib: u32, possible_mib: u32) {
    set_open_files(|(_, hard)| (open_files(memory_mib), hard.min(open_files(possible_mib))));
}

/// Leaves the process the open files for a guest that has grown. One that has shrunk keeps
/// what it had: it may have that many open.
pub fn raise_open_files_for(memory_mib: u32) {
    set_open_files(|(soft, hard)| (soft.max(open_files(memory_mib)), hard));
}

fn open_files(memory_mib: u32) -> u64 {
    (u64::from(memory_mib) * 1024).clamp(MIN_OPEN_FILES, MAX_OPEN_FILES)
}

/// `change` makes new limits, soft and hard, of those there are. The soft one ends at the hard.
fn set_open_files(change: impl FnOnce((u64, u64)) -> (u64, u64)) {
    let limit = Resource::RLIMIT_NOFILE;
    let set = getrlimit(limit).map(change);
    let set = set.and_then(|(soft, hard)| setrlimit(limit, soft.min(hard), hard));
    if let Err(error) = set {
        log::warn!("cannot change the limit of open files: {error}");
    }
}

fn limit_capabilities() -> Result<(), JailError> {
    let kept: CapSet = KEPT.into_iter().collect();
    // The file system thread creates files as users of the guest and keeps its
    // capabilities meanwhile (see `devices::virtio::fs`); this takes CAP_SETPCAP.
    capctl::prctl::set_securebits(Secbits::NO_SETUID_FIXUP).map_err(JailError::Capabilities)?;
    capctl::prctl::set_no_new_privs().map_err(JailError::Capabilities)?;
    // Neither core dumps nor ptrace by a process of the same user.
    capctl::prctl::set_dumpable(false).map_err(JailError::Capabilities)?;
    capctl::bounding::clear_unknown().map_err(JailError::Capabilities)?;
    for cap in Cap::iter().filter(|cap| !kept.has(*cap)) {
        // Succeeds, too, for a capability this kernel does not know.
        capctl::bounding::ensure_dropped(cap).map_err(JailError::Capabilities)?;
    }
    set_capabilities(kept)
}

/// For the calling thread and those it will spawn.
fn forbid_file_handles() -> Result<(), JailError> {
    let number = libc::SYS_open_by_handle_at;
    let rules = [number, number | X32_SYSCALL_BIT].map(|number| (number, Vec::new()));
    let refused = SeccompAction::Errno(libc::EPERM as u32);
    SeccompFilter::new(
        rules.into(),
        SeccompAction::Allow,
        refused,
        TargetArch::x86_64,
    )
    .and_then(BpfProgram::try_from)
    .map_err(seccompiler::Error::from)
    .and_then(|program| seccompiler::apply_filter(&program))
    .map_err(JailError::Filter)
}

/// Gives up the rest, for the calling thread and those it will spawn.
pub fn drop_all_capabilities() -> Result<(), JailError> {
    set_capabilities(CapSet::empty())
}

fn set_capabilities(set: CapSet) -> Result<(), JailError> {
    let state = CapState {
        effective: set,
        permitted: set,
        inheritable: CapSet::empty(),
    };
    state.set_current().map_err(JailError::Capabilities)
}

#[cfg(test)]
mod tests {
    use std::os::fd::AsRawFd as _;

    use super::*;
    use crate::testing::in_a_process_of_its_own;

    #[test]
    fn the_limit_of_open_files_follows_a_guest_that_grows_and_never_falls() {
        let test =
            "jail::tests::the_limit_of_open_files_follows_a_guest_that_grows_and_never_falls";
        in_a_process_of_its_own(test, || {
            let limit = Resource::RLIMIT_NOFILE;
            let (_, hard) = getrlimit(limit).unwrap();
            for (before, grown_to_mib, after) in [
                (100, 1, MIN_OPEN_FILES),
                (MIN_OPEN_FILES + 1, 1, MIN_OPEN_FILES + 1),
                (MIN_OPEN_FILES + 1, 64, 65_536),
            ] {
                setrlimit(limit, before.min(hard), hard).unwrap();
                raise_open_files_for(grown_to_mib);
                assert_eq!(getrlimit(limit).unwrap(), (after.min(hard), hard));
            }
        });
    }

    #[test]
    fn file_handles_open_nothing() {
        let in_a_thread = std::thread::spawn(|| {
            capctl::prctl::set_no_new_privs().unwrap();
            forbid_file_handles().unwrap();
            let dir = std::fs::File::open("/").unwrap();
            // SAFETY: the filter answers before the kernel looks at the handle.
            let result = unsafe {
                libc::syscall(
                    libc::SYS_open_by_handle_at,
                    dir.as_raw_fd(),
                    std::ptr::null::<u8>(),
                    libc::O_RDONLY,
                )
            };
            (result, Errno::last())
        });
        // Without the filter a null handle is EFAULT, whoever asks.
        assert_eq!(in_a_thread.join().unwrap(), (-1, Errno::EPERM));
    }
}
