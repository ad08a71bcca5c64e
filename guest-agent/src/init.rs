//! What the kernel leaves to PID 1: file systems, the loopback interface, limits.
//!
//! Only what the agent itself uses is mounted; a container brings its own `/dev/pts`,
//! `/dev/shm` and `/tmp`.

use std::fs;
use std::io;
use std::path::Path;

use agent_protocol::{SHARE_DIR, SHARE_TAG};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::resource::{RLIM_INFINITY, Resource, setrlimit};
use nix::sys::socket::{AddressFamily, SockFlag, SockType, socket};
use nix::unistd::{chdir, chroot};
use std::os::fd::AsFd;
use thiserror::Error;

use crate::container::cgroup::{self, CgroupError};
use crate::{console, sys};

/// Where the new root is built; a directory of the initramfs.
const NEW_ROOT: &str = "/newroot";

/// What is mounted, in this order: target, type, flags, options.
const MOUNTS: [(&str, &str, MsFlags, &str); 4] = [
    ("/proc", "proc", HARDENED, ""),
    ("/sys", "sysfs", HARDENED, ""),
    ("/dev", "devtmpfs", MsFlags::MS_NOSUID, "mode=755"),
    (cgroup::ROOT, "cgroup2", HARDENED, ""),
];
const HARDENED: MsFlags = MsFlags::MS_NOSUID
    .union(MsFlags::MS_NODEV)
    .union(MsFlags::MS_NOEXEC);

/// Mount points and directories other files of this crate use.
const DIRECTORIES: [&str; 5] = ["/proc", "/sys", "/dev", SHARE_DIR, "/run/husk/dev"];

/// Open files a container may have unless its spec says otherwise: what containerd's
/// service file gives containers that run directly on the host.
const NOFILE: u64 = 1 << 20;

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
    loopback_up()?;
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
    Ok(())
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

/// Containers inherit the agent's limits. The kernel's own are for a small machine.
fn raise_limits() -> Result<(), InitError> {
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

fn loopback_up() -> Result<(), InitError> {
    let any = system(
        "opening a socket",
        socket(
            AddressFamily::Inet,
            SockType::Datagram,
            SockFlag::SOCK_CLOEXEC,
            None,
        ),
    )?;
    system("bringing up lo", sys::set_interface_up(any.as_fd(), "lo"))
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
