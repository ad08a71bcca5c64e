//! What the kernel leaves to PID 1: file systems, the loopback interface, limits.
//!
//! Only what the agent itself uses is mounted; a container brings its own `/dev/pts`,
//! `/dev/shm` and `/tmp`.

use std::fs;
use std::io;
use std::path::Path;

use agent_protocol::{SHARE_DIR, SHARE_TAG, SHM_DIR};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::unistd::{chdir, chroot};
use thiserror::Error;

use crate::container::cgroup::{self, CgroupError};
use crate::{console, network};

/// Where the new root is built; a directory of the initramfs.
const NEW_ROOT: &str = "/newroot";

/// What is mounted, in this order: target, type, flags, options.
const MOUNTS: [(&str, &str, MsFlags, &str); 4] = [
    ("/proc", "proc", HARDENED, ""),
    ("/sys", "sysfs", HARDENED, ""),
    ("/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=755"),
    // A container that has a cgroup namespace may not lift its own limits; what is reserved
    // for a cgroup covers those below: as systemd mounts it.
    (
        cgroup::ROOT,
        "cgroup2",
        HARDENED,
        "nsdelegate,memory_recursiveprot",
    ),
];
const HARDENED: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// Mount points and directories other files of this crate use.
const DIRECTORIES: [&str; 6] = ["/proc", "/sys", "/dev", SHARE_DIR, SHM_DIR, "/run/husk/dev"];

/// As CRI servers make it.
const SHM_OPTIONS: &str = "mode=1777,size=64m";

/// Open files the agent itself may have.
const NOFILE: u64 = 1 << 20;

/// The largest `fs.nr_open` the kernel takes (`sysctl_nr_open_max` of its `fs/file.c`).
const MAX_NR_OPEN: u32 = i32::MAX.cast_unsigned() & !63;

/// Why the guest cannot be set up.
#[derive(Debug, Error)]
pub enum InitError {
    /// A system call failed.
    #[error("{what}")]
    System {
        /// What was being done.
        what: String,
        /// Why it failed.
        #[source]
        errno: Errno,
    },
    /// A file operation failed.
    #[error("{what}")]
    File {
        /// What was being done.
        what: String,
        /// Why it failed.
        #[source]
        source: io::Error,
    },
    /// lo could not be brought up.
    #[error(transparent)]
    Network(#[from] crate::error::Error),
    /// The cgroup hierarchy could not be laid out.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
}

/// Sets the guest up, from the first instruction to where containers can be made.
pub fn set_up() -> Result<(), InitError> {
    move_root()?;
    mount_file_systems()?;
    cgroup::set_up()?;
    protect_agent()?;
    raise_limits()?;
    allow_overcommit()?;
    network::loopback_up()?;
    mount_share()
}

/// The value of `key` on the kernel command line.
pub fn kernel_parameter(key: &str) -> Result<Option<String>, InitError> {
    let cmdline = file("reading /proc/cmdline", fs::read_to_string("/proc/cmdline"))?;
    Ok(crate::cmdline::value(&cmdline, key).map(str::to_owned))
}

/// Moves to a root with a parent: pivot_root(2) refuses the kernel's first root, and a
/// container's root is made by pivoting. The initramfs holds nothing but this
/// program, whose pages are in use, so there is nothing to free.
fn move_root() -> Result<(), InitError> {
    let none = None::<&str>;
    let options = Some("mode=755,size=1M");
    system(
        "mounting the new root",
        mount(
            Some("tmpfs"),
            NEW_ROOT,
            Some("tmpfs"),
            MsFlags::empty(),
            options,
        ),
    )?;
    system("entering the new root", chdir(NEW_ROOT))?;
    system(
        "moving the root",
        mount(Some("."), "/", none, MsFlags::MS_MOVE, none),
    )?;
    system("changing to the new root", chroot("."))?;
    system("entering /", chdir("/"))
}

fn mount_file_systems() -> Result<(), InitError> {
    for path in DIRECTORIES {
        file(&format!("making {path}"), fs::create_dir_all(path))?;
    }
    for (target, kind, flags, options) in MOUNTS {
        let options = Some(options).filter(|options| !options.is_empty());
        let mounted = mount(Some(kind), target, Some(kind), flags, options);
        system(&format!("mounting {kind} at {target}"), mounted)?;
    }
    let options = Some(SHM_OPTIONS);
    system(
        "mounting the pod's shared memory",
        mount(Some("shm"), SHM_DIR, Some("tmpfs"), HARDENED, options),
    )
}

/// The host's files. A machine started by hand may have none.
fn mount_share() -> Result<(), InitError> {
    // Not nosuid: containers run from binds of it, and setuid programs are theirs.
    let flags = MsFlags::MS_NODEV;
    match mount(
        Some(SHARE_TAG),
        SHARE_DIR,
        Some("virtiofs"),
        flags,
        None::<&str>,
    ) {
        // How the kernel says that no device carries the tag.
        Err(Errno::EINVAL) => {
            console::warn(format_args!(
                "no virtio-fs device {SHARE_TAG:?}: there are no files of the host"
            ));
            Ok(())
        }
        other => system(
            &format!("mounting the share {SHARE_TAG:?} at {SHARE_DIR}"),
            other,
        ),
    }
}

/// When memory runs out containers go first; and no container, though it is root in
/// the same user namespace, gets to look into a copy of the agent that is about to
/// become one of its processes.
fn protect_agent() -> Result<(), InitError> {
    file(
        "setting the agent's oom_score_adj",
        fs::write("/proc/self/oom_score_adj", "-1000"),
    )?;
    capctl::prctl::set_dumpable(false).map_err(|error| InitError::System {
        what: "hiding the agent from ptrace".into(),
        errno: Errno::from_raw(error.code()),
    })
}

/// The kernel's own limits are for a small machine; containers bring theirs from the host,
/// where `RLIMIT_NOFILE` may be as large as its kernel lets anybody have it.
fn raise_limits() -> Result<(), InitError> {
    file(
        "raising fs.nr_open",
        fs::write("/proc/sys/fs/nr_open", MAX_NR_OPEN.to_string()),
    )?;
    system(
        "raising RLIMIT_NOFILE",
        setrlimit(Resource::RLIMIT_NOFILE, NOFILE, NOFILE),
    )?;
    system(
        "raising RLIMIT_NPROC",
        setrlimit(Resource::RLIMIT_NPROC, RLIM_INFINITY, RLIM_INFINITY),
    )
}

/// A program may reserve more memory than the small machine has, as it may on a large
/// host: what it touches is limited by its cgroup, not what it asks for.
fn allow_overcommit() -> Result<(), InitError> {
    file(
        "allowing overcommit",
        fs::write("/proc/sys/vm/overcommit_memory", "1"),
    )
}

fn system<T>(what: &str, result: nix::Result<T>) -> Result<T, InitError> {
    result.map_err(|errno| InitError::System {
        what: what.into(),
        errno,
    })
}

fn file<T>(what: &str, result: io::Result<T>) -> Result<T, InitError> {
    result.map_err(|source| InitError::File {
        what: what.into(),
        source,
    })
}

/// Whether the program was really started as PID 1 of an initramfs: by hand on a
/// development machine it would take that machine's mounts apart.
pub fn is_init() -> bool {
    std::process::id() == 1 && Path::new(NEW_ROOT).is_dir()
}
