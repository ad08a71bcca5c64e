//! The system calls that have no safe wrapper in `nix`, and all `unsafe` of this crate.

use std::ffi::CString;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::Path;

use nix::errno::Errno;
use nix::sched::CloneFlags;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use nix::unistd::Pid;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::container::seccomp::Instruction;

/// `CLONE_INTO_CGROUP` of linux/sched.h; wider than the `c_int` that libc declares.
const CLONE_INTO_CGROUP: u64 = 0x2_0000_0000;

/// What [`clone_child`] returned into.
pub enum Cloned {
    /// The calling process: the new process's id and a pidfd for it.
    Parent {
        /// Id in the caller's pid namespace.
        pid: Pid,
        /// Refers to the process for good, even when the id is used again.
        pidfd: OwnedFd,
    },
    /// The new process.
    Child,
}

/// Forks the calling thread with the namespaces of `flags` new (clone3(2)), into
/// `cgroup` or else into its own.
///
/// Only correct in a process with a single thread: the child goes on to allocate,
/// which after a fork of a threaded process may wait for a lock nobody holds any more.
///
/// # Errors
/// `EBUSY` if `cgroup` hands controllers down to children of its own, `EAGAIN` if
/// its `pids.max` is reached, `ENOMEM`.
pub fn clone_child(flags: CloneFlags, cgroup: Option<BorrowedFd>) -> nix::Result<Cloned> {
    let mut pidfd: RawFd = -1;
    let into_cgroup = cgroup.map_or(0, |_| CLONE_INTO_CGROUP);
    let args = libc::clone_args {
        flags: flags.bits() as u64 | libc::CLONE_PIDFD as u64 | into_cgroup,
        pidfd: &raw mut pidfd as u64,
        child_tid: 0,
        parent_tid: 0,
        exit_signal: libc::SIGCHLD as u64,
        stack: 0,
        stack_size: 0,
        tls: 0,
        set_tid: 0,
        set_tid_size: 0,
        cgroup: cgroup.map_or(0, |cgroup| cgroup.as_raw_fd() as u64),
    };
    // SAFETY: `args` and `pidfd` live across the call and the size is that of `args`.
    // Without CLONE_VM and with no stack given, the call has the semantics of fork.
    let result = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of_val(&args)) };
    match Errno::result(result)? {
        0 => Ok(Cloned::Child),
        pid => Ok(Cloned::Parent {
            pid: Pid::from_raw(pid as i32),
            // SAFETY: the kernel stored a new descriptor there, which nobody else owns.
            pidfd: unsafe { OwnedFd::from_raw_fd(pidfd) },
        }),
    }
}

/// Takes ownership of a descriptor received in an `SCM_RIGHTS` message.
///
/// The caller passes each received number exactly once.
pub fn adopt_received_fd(fd: RawFd) -> OwnedFd {
    // SAFETY: recvmsg(2) installed this descriptor for us; the only caller
    // (`container::channel`) hands over each received number once.
    unsafe { OwnedFd::from_raw_fd(fd) }
}

/// Registers `fd` with the runtime.
pub fn watch_fd(fd: OwnedFd, interest: Interest) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an `OwnedFd` always yields the same descriptor and keeps it open as
    // long as the `AsyncFd` that owns it lives.
    Ok(unsafe { AsyncFd::register_with_interest(fd, interest) }?)
}

/// Ends the calling process at once, running no destructors: how a forked child leaves.
pub fn exit_now(status: i32) -> ! {
    // SAFETY: _exit has no preconditions.
    unsafe { libc::_exit(status) }
}

/// One ended child: its id and its raw wait status.
///
/// `nix` cannot report a death by a real-time signal, hence the raw call.
pub fn wait_any() -> Option<(Pid, i32)> {
    let mut status = 0;
    // SAFETY: `status` is a valid place for the result.
    let pid = unsafe { libc::waitpid(-1, &raw mut status, libc::WNOHANG) };
    (pid > 0).then(|| (Pid::from_raw(pid), status))
}

/// Closes every descriptor from 3 up except those in `keep`.
pub fn close_all_except(keep: &[RawFd]) -> nix::Result<()> {
    let mut keep: Vec<u32> = keep
        .iter()
        .filter_map(|fd| u32::try_from(*fd).ok())
        .collect();
    keep.sort_unstable();
    let mut first = 3;
    for fd in keep.into_iter().filter(|fd| *fd >= 3) {
        if fd > first {
            close_range(first, fd - 1)?;
        }
        first = fd + 1;
    }
    close_range(first, u32::MAX)
}

fn close_range(first: u32, last: u32) -> nix::Result<()> {
    // SAFETY: called in a forked child that never again uses the objects owning
    // these descriptors: it ends in exec or `exit_now`, without destructors.
    let result = unsafe { libc::syscall(libc::SYS_close_range, first, last, 0) };
    Errno::result(result).map(drop)
}

/// Puts every signal back to its default action and unblocks all.
///
/// The agent's handlers would run agent code in a child, and an ignored `SIGPIPE`
/// (Rust's start-up code does that) would be inherited by the program executed.
pub fn reset_signals() -> nix::Result<()> {
    let default = SigAction::new(SigHandler::SigDfl, SaFlags::empty(), SigSet::empty());
    for signal in Signal::iterator() {
        if matches!(signal, Signal::SIGKILL | Signal::SIGSTOP) {
            continue;
        }
        // SAFETY: SIG_DFL installs no handler, so there is no code that could run
        // in signal context.
        unsafe { sigaction(signal, &default) }?;
    }
    SigSet::empty().thread_set_mask()
}

/// Sends `signal` to the process behind `pidfd` (pidfd_send_signal(2)).
///
/// # Errors
/// `ESRCH` if it has ended and was waited for.
pub fn signal_pidfd(pidfd: BorrowedFd, signal: i32) -> nix::Result<()> {
    // SAFETY: the descriptor is open, and a null siginfo asks for that of kill(2).
    let result = unsafe {
        libc::syscall(
            libc::SYS_pidfd_send_signal,
            pidfd.as_raw_fd(),
            signal,
            std::ptr::null::<libc::siginfo_t>(),
            0,
        )
    };
    Errno::result(result).map(drop)
}

/// Sends `signal` to `pid`; unlike `nix`, knows real-time signals.
pub fn signal_pid(pid: Pid, signal: i32) -> nix::Result<()> {
    // SAFETY: kill(2) takes two integers and touches no memory of ours.
    Errno::result(unsafe { libc::kill(pid.as_raw(), signal) }).map(drop)
}

/// A private copy of the mount at `path`, attached nowhere (open_tree(2)).
/// With `recursive` the mounts below come along.
pub fn clone_mount(path: &Path, recursive: bool) -> nix::Result<OwnedFd> {
    let path = c_path(path)?;
    let mut flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC;
    if recursive {
        flags |= libc::AT_RECURSIVE as libc::c_uint;
    }
    // SAFETY: `path` is NUL-terminated and outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    let fd = Errno::result(fd)?;
    // SAFETY: the call returned a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Attaches a mount made by [`clone_mount`] at `target` (move_mount(2)).
pub fn attach_mount(mount: BorrowedFd, target: &Path) -> nix::Result<()> {
    let target = c_path(target)?;
    // SAFETY: both strings are NUL-terminated and outlive the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_move_mount,
            mount.as_raw_fd(),
            c"".as_ptr(),
            libc::AT_FDCWD,
            target.as_ptr(),
            // Without the second flag a symlink as the target would be covered itself.
            libc::MOVE_MOUNT_F_EMPTY_PATH | libc::MOVE_MOUNT_T_SYMLINKS,
        )
    };
    Errno::result(result).map(drop)
}

/// Sets and clears `MOUNT_ATTR_*` flags of the mount at `path` (mount_setattr(2)).
pub fn set_mount_attributes(path: &Path, set: u64, clear: u64, recursive: bool) -> nix::Result<()> {
    let path = c_path(path)?;
    let attr = libc::mount_attr {
        attr_set: set,
        attr_clr: clear,
        propagation: 0,
        userns_fd: 0,
    };
    // SAFETY: `path` is NUL-terminated, `attr` outlives the call and the size is its own.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            libc::AT_FDCWD,
            path.as_ptr(),
            if recursive { libc::AT_RECURSIVE } else { 0 },
            &raw const attr,
            size_of_val(&attr),
        )
    };
    Errno::result(result).map(drop)
}

/// Adds a seccomp filter to the calling thread (seccomp(2)).
///
/// # Errors
/// `EACCES` without `CAP_SYS_ADMIN` and `no_new_privs`, `EINVAL` for a program the
/// kernel does not accept.
pub fn set_seccomp_filter(program: &[Instruction], flags: u64) -> nix::Result<()> {
    let program = libc::sock_fprog {
        len: u16::try_from(program.len()).map_err(|_| Errno::EINVAL)?,
        filter: program.as_ptr().cast_mut().cast(),
    };
    // SAFETY: `Instruction` has the layout of `sock_filter`, `len` is the number of them,
    // and the kernel only reads them, during the call.
    let result = unsafe {
        libc::syscall(
            libc::SYS_seccomp,
            libc::SECCOMP_SET_MODE_FILTER,
            flags,
            &raw const program,
        )
    };
    Errno::result(result).map(drop)
}

/// What sched_setattr(2) takes.
#[derive(Clone, Copy, Debug)]
pub struct SchedulerAttributes {
    /// Number of the policy.
    pub policy: u32,
    /// `SCHED_FLAG_*`.
    pub flags: u64,
    /// Of the time-sharing policies.
    pub nice: i32,
    /// Of the real-time policies.
    pub priority: u32,
    /// Nanoseconds, of the deadline policy.
    pub runtime: u64,
    /// Nanoseconds, of the deadline policy.
    pub deadline: u64,
    /// Nanoseconds, of the deadline policy.
    pub period: u64,
}

/// Sets how the calling thread is scheduled.
pub fn set_scheduler(attributes: &SchedulerAttributes) -> nix::Result<()> {
    let attr = libc::sched_attr {
        size: size_of::<libc::sched_attr>() as u32,
        sched_policy: attributes.policy,
        sched_flags: attributes.flags,
        sched_nice: attributes.nice,
        sched_priority: attributes.priority,
        sched_runtime: attributes.runtime,
        sched_deadline: attributes.deadline,
        sched_period: attributes.period,
    };
    // SAFETY: `attr` outlives the call and tells its own size; 0 is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_sched_setattr, 0, &raw const attr, 0) };
    Errno::result(result).map(drop)
}

/// Sets the I/O priority of the calling thread: class and level (ioprio_set(2)).
pub fn set_io_priority(priority: u32) -> nix::Result<()> {
    const IOPRIO_WHO_PROCESS: libc::c_int = 1;
    // SAFETY: ioprio_set takes three integers; 0 is the calling thread.
    let result = unsafe { libc::syscall(libc::SYS_ioprio_set, IOPRIO_WHO_PROCESS, 0, priority) };
    Errno::result(result).map(drop)
}

/// A descriptor for the process `pid`, readable once that has ended (pidfd_open(2)).
pub fn open_pidfd(pid: u32) -> nix::Result<OwnedFd> {
    // SAFETY: pidfd_open takes two integers.
    let fd = Errno::result(unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) })?;
    // SAFETY: the call returned a new descriptor, which nobody else owns.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as RawFd) })
}

/// Sets the NIS domain name of the caller's UTS namespace.
pub fn set_domain_name(name: &str) -> nix::Result<()> {
    // SAFETY: pointer and length describe the string.
    Errno::result(unsafe { libc::setdomainname(name.as_ptr().cast(), name.len()) }).map(drop)
}

/// Makes the terminal `fd` the controlling terminal of the calling session leader.
pub fn set_controlling_terminal(fd: BorrowedFd) -> nix::Result<()> {
    // SAFETY: TIOCSCTTY takes an integer; 0 means "do not steal it from a session".
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSCTTY, 0) }).map(drop)
}

/// Sets the size of a terminal, in characters.
pub fn set_window_size(fd: BorrowedFd, width: u16, height: u16) -> nix::Result<()> {
    let size = libc::winsize {
        ws_row: height,
        ws_col: width,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: TIOCSWINSZ reads one winsize, which outlives the call.
    Errno::result(unsafe { libc::ioctl(fd.as_raw_fd(), libc::TIOCSWINSZ, &raw const size) })
        .map(drop)
}

/// Has the kernel say in words why it refuses a request on a netlink socket, and leave the
/// request itself out of its answer.
pub fn explain_netlink_errors(socket: BorrowedFd) -> nix::Result<()> {
    for option in [libc::NETLINK_EXT_ACK, libc::NETLINK_CAP_ACK] {
        let on: libc::c_int = 1;
        // SAFETY: both options are an int, which outlives the call.
        let result = unsafe {
            libc::setsockopt(
                socket.as_raw_fd(),
                libc::SOL_NETLINK,
                option,
                (&raw const on).cast(),
                size_of::<libc::c_int>() as libc::socklen_t,
            )
        };
        Errno::result(result)?;
    }
    Ok(())
}

/// Writes one byte to an I/O port.
pub fn write_port(port: u16, value: u8) -> nix::Result<()> {
    permit_port(port, true)?;
    // SAFETY: the port was opened above; `out` touches neither memory nor flags.
    unsafe {
        std::arch::asm!("out dx, al", in("dx") port, in("al") value,
            options(nomem, nostack, preserves_flags));
    }
    // Children inherit the permission, also across exec: no container may have it.
    permit_port(port, false)
}

fn permit_port(port: u16, permit: bool) -> nix::Result<()> {
    // SAFETY: ioperm(2) only changes which ports the calling thread may use.
    Errno::result(unsafe { libc::ioperm(port.into(), 1, permit.into()) }).map(drop)
}

/// Lets the BPF program `instructions`, of type `BPF_PROG_TYPE_CGROUP_DEVICE`, decide on
/// every use of a device in `cgroup` and below (bpf(2)). It lives as long as the cgroup.
///
/// # Errors
/// `EINVAL` or `EACCES` for a program the kernel's verifier does not accept.
pub fn attach_device_filter(cgroup: BorrowedFd, instructions: &[u64]) -> nix::Result<()> {
    /// `union bpf_attr` for `BPF_PROG_LOAD`, as far as it is used.
    #[repr(C)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
    }
    /// `union bpf_attr` for `BPF_PROG_ATTACH`, as far as it is used.
    #[repr(C)]
    struct Attach {
        target_fd: u32,
        attach_bpf_fd: u32,
        attach_type: u32,
        attach_flags: u32,
    }
    const BPF_PROG_LOAD: i32 = 5;
    const BPF_PROG_ATTACH: i32 = 8;
    const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
    const BPF_CGROUP_DEVICE: u32 = 6;
    // A container may restrict cgroups of its own further.
    const BPF_F_ALLOW_MULTI: u32 = 2;

    let load = Load {
        prog_type: BPF_PROG_TYPE_CGROUP_DEVICE,
        insn_cnt: u32::try_from(instructions.len()).map_err(|_| Errno::E2BIG)?,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
    };
    // SAFETY: `load` is the beginning of a bpf_attr, of which the kernel takes the rest as
    // zero; its size and its pointers are right and outlive the call.
    let program = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_LOAD,
            &raw const load,
            size_of_val(&load),
        )
    };
    let program = Errno::result(program)? as RawFd;
    // SAFETY: the call returned a new descriptor, which nobody else owns.
    let program = unsafe { OwnedFd::from_raw_fd(program) };
    let attach = Attach {
        target_fd: cgroup.as_raw_fd() as u32,
        attach_bpf_fd: program.as_raw_fd() as u32,
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
    };
    // SAFETY: as above; both descriptors are open.
    let result = unsafe {
        libc::syscall(
            libc::SYS_bpf,
            BPF_PROG_ATTACH,
            &raw const attach,
            size_of_val(&attach),
        )
    };
    Errno::result(result).map(drop)
}

/// Moves the wall clock by `offset` microseconds at once.
pub fn step_clock(offset: i64) -> nix::Result<()> {
    const SECOND: i64 = 1_000_000;
    // Not in nanoseconds: that would change the unit for every program that asks.
    adjust_clock(libc::ADJ_SETOFFSET, |change| {
        change.time.tv_sec = offset.div_euclid(SECOND);
        change.time.tv_usec = offset.rem_euclid(SECOND);
    })
}

/// Moves the wall clock by `offset` microseconds without a jump, at 500 ppm (adjtime(3)).
pub fn slew_clock(offset: i64) -> nix::Result<()> {
    adjust_clock(libc::ADJ_OFFSET_SINGLESHOT, |change| {
        change.offset = offset;
    })
}

/// Gives the calling process a session keyring of that name, the container's, as runc does
/// (keyrings(7)); the one it has is the whole guest's.
pub fn join_session_keyring(name: &str) -> nix::Result<()> {
    const KEYCTL_JOIN_SESSION_KEYRING: libc::c_int = 1;
    let name = c_path(Path::new(name))?;
    // SAFETY: `name` is NUL-terminated and outlives the call.
    let key =
        unsafe { libc::syscall(libc::SYS_keyctl, KEYCTL_JOIN_SESSION_KEYRING, name.as_ptr()) };
    Errno::result(key).map(drop)
}

fn adjust_clock(modes: libc::c_uint, fill: impl FnOnce(&mut libc::timex)) -> nix::Result<()> {
    // SAFETY: a structure of integers, for which zero is a value.
    let mut change: libc::timex = unsafe { std::mem::zeroed() };
    change.modes = modes;
    fill(&mut change);
    // SAFETY: `change` is of the size the call expects and outlives it.
    Errno::result(unsafe { libc::adjtimex(&raw mut change) }).map(drop)
}

/// The text of `errno` as container users know it from Go programs: lower case, no number.
pub fn errno_text(errno: Errno) -> String {
    let mut text = io::Error::from(errno).to_string();
    if let Some(end) = text.find(" (os error") {
        text.truncate(end);
    }
    if let Some(first) = text.get_mut(..1) {
        first.make_ascii_lowercase();
    }
    text
}

fn c_path(path: &Path) -> nix::Result<CString> {
    CString::new(path.as_os_str().as_bytes()).map_err(|_| Errno::EINVAL)
}

/// The raw number of a descriptor, for [`close_all_except`].
pub fn raw(fd: &impl AsFd) -> RawFd {
    fd.as_fd().as_raw_fd()
}
