//! The one file with `unsafe`: system calls no crate wraps.
//!
//! Rule for [`clone_into_namespaces`]: the process has several threads, so between
//! the clone and `execve` the child calls only async-signal-safe functions. It
//! allocates nothing, takes no lock and logs nothing; every string and descriptor
//! it needs is prepared before.

use std::ffi::{CString, c_char, c_int};
use std::io;
use std::os::fd::{AsRawFd, BorrowedFd, FromRawFd, OwnedFd, RawFd};
use std::path::Path;
use std::ptr;

use nix::errno::Errno;
use tokio::io::unix::AsyncFd;
use tokio::process::Command;

/// `ioctl` request that answers the kind of a namespace file, see ioctl_ns(2).
const NS_GET_NSTYPE: libc::c_ulong = 0xb703;

/// A program to start in namespaces of its own.
pub struct Program {
    /// Absolute path of the executable.
    pub path: CString,
    /// Arguments, the first being the program's name.
    pub args: Vec<CString>,
    /// Its environment.
    pub env: Vec<CString>,
    /// Descriptors it inherits under the same numbers.
    pub inherit: Vec<RawFd>,
    /// Its standard input and output.
    pub null: OwnedFd,
    /// Its standard error.
    pub stderr: OwnedFd,
    /// The network namespace it joins; `None` makes a new one.
    pub netns: Option<OwnedFd>,
}

/// A step of the child between clone and exec, as told over the error pipe.
const STEPS: [&str; 4] = [
    "join its network namespace",
    "inherit a descriptor",
    "set up its standard streams",
    "execute",
];

/// Starts `program` in new mount, pid, IPC and UTS namespaces and its network
/// namespace. Returns its pid as the host numbers it and a pidfd.
///
/// # Errors
/// The failed step by name; nothing is left running then.
pub fn clone_into_namespaces(program: &Program) -> io::Result<(i32, OwnedFd)> {
    let argv = pointers(&program.args);
    let envp = pointers(&program.env);
    let (error_read, error_write) = nix::unistd::pipe2(nix::fcntl::OFlag::O_CLOEXEC)?;
    let mut pidfd: RawFd = -1;
    let flags = libc::CLONE_PIDFD
        | libc::CLONE_NEWNS
        | libc::CLONE_NEWPID
        | libc::CLONE_NEWIPC
        | libc::CLONE_NEWUTS;
    let args = CloneArgs {
        flags: flags as u64,
        pidfd: &raw mut pidfd as u64,
        exit_signal: libc::SIGCHLD as u64,
        ..CloneArgs::default()
    };
    // SAFETY: `args` is a valid clone_args of the size given and `pidfd` outlives
    // the call. Without CLONE_VM the child runs on a copy of this stack; it goes
    // straight into `run_child`, which never returns.
    let pid = unsafe { libc::syscall(libc::SYS_clone3, &raw const args, size_of::<CloneArgs>()) };
    if pid == 0 {
        run_child(program, &argv, &envp, error_write.as_raw_fd());
    }
    if pid < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: clone3 succeeded, so the kernel stored a new descriptor that nobody else owns.
    let pidfd = unsafe { OwnedFd::from_raw_fd(pidfd) };
    drop(error_write);
    let pid = i32::try_from(pid).unwrap_or(i32::MAX);
    match read_child_error(error_read) {
        None => Ok((pid, pidfd)),
        Some(error) => {
            let reaped = nix::sys::wait::waitpid(nix::unistd::Pid::from_raw(pid), None);
            reaped.map_err(io::Error::from)?;
            Err(error)
        }
    }
}

/// `struct clone_args` of the first version, see clone3(2).
#[repr(C)]
#[derive(Default)]
struct CloneArgs {
    flags: u64,
    pidfd: u64,
    child_tid: u64,
    parent_tid: u64,
    exit_signal: u64,
    stack: u64,
    stack_size: u64,
    tls: u64,
}

fn pointers(strings: &[CString]) -> Vec<*const c_char> {
    let ends = std::iter::once(ptr::null());
    strings.iter().map(|s| s.as_ptr()).chain(ends).collect()
}

/// Reads what the child wrote before it gave up; nothing when exec closed the pipe.
fn read_child_error(pipe: OwnedFd) -> Option<io::Error> {
    use std::io::Read;
    let mut message = [0u8; 5];
    std::fs::File::from(pipe).read_exact(&mut message).ok()?;
    let errno = i32::from_le_bytes([message[1], message[2], message[3], message[4]]);
    let step = STEPS
        .get(usize::from(message[0]))
        .copied()
        .unwrap_or("start");
    let cause = io::Error::from_raw_os_error(errno);
    Some(io::Error::new(
        cause.kind(),
        format!("cannot {step}: {cause}"),
    ))
}

/// The child's side: async-signal-safe calls only, see the module's rule.
fn run_child(
    program: &Program,
    argv: &[*const c_char],
    envp: &[*const c_char],
    errors: RawFd,
) -> ! {
    let failed = prepare_and_exec(program, argv, envp);
    let errno = Errno::last_raw().to_le_bytes();
    let message = [failed, errno[0], errno[1], errno[2], errno[3]];
    // SAFETY: the buffer is valid for its length; write(2) is async-signal-safe.
    unsafe { libc::write(errors, message.as_ptr().cast(), message.len()) };
    // SAFETY: _exit(2) is async-signal-safe and runs no destructors.
    unsafe { libc::_exit(127) }
}

/// Returns the index into [`STEPS`] of what failed, with errno set.
fn prepare_and_exec(program: &Program, argv: &[*const c_char], envp: &[*const c_char]) -> u8 {
    let netns = match &program.netns {
        // SAFETY: plain system call on an open descriptor.
        Some(fd) => unsafe { libc::setns(fd.as_raw_fd(), libc::CLONE_NEWNET) },
        // SAFETY: plain system call without memory arguments.
        None => unsafe { libc::unshare(libc::CLONE_NEWNET) },
    };
    if netns < 0 {
        return 0;
    }
    for fd in &program.inherit {
        // SAFETY: plain system call; clears FD_CLOEXEC in this process only.
        if unsafe { libc::fcntl(*fd, libc::F_SETFD, 0) } < 0 {
            return 1;
        }
    }
    let null = program.null.as_raw_fd();
    for (from, to) in [(null, 0), (null, 1), (program.stderr.as_raw_fd(), 2)] {
        // SAFETY: plain system call on open descriptors.
        if unsafe { libc::dup2(from, to) } < 0 {
            return 2;
        }
    }
    // SAFETY: plain system call; cannot fail in a freshly cloned process that leads no group.
    unsafe { libc::setsid() };
    // SAFETY: SIG_DFL is a valid disposition; the Rust runtime had set it to ignored.
    unsafe { libc::signal(libc::SIGPIPE, libc::SIG_DFL) };
    // SAFETY: path, argv and envp are NUL-terminated and live in the copied memory.
    unsafe { libc::execve(program.path.as_ptr(), argv.as_ptr(), envp.as_ptr()) };
    3
}

/// Gives the child of `command` these descriptors, as 3, 4, 5 and so on.
///
/// # Errors
/// There is no room for them.
pub fn pass_descriptors(command: &mut Command, descriptors: Vec<OwnedFd>) -> io::Result<()> {
    const FIRST: RawFd = 3;
    // Not one of them lies where another is to go, so that each loses FD_CLOEXEC by dup2.
    let above = FIRST + c_int::try_from(descriptors.len()).unwrap_or(c_int::MAX - FIRST);
    let duplicate = |least| {
        let copies = descriptors.iter();
        let copies = copies.map(|fd| rustix::io::fcntl_dupfd_cloexec(fd, least));
        copies.collect::<Result<Vec<_>, _>>()
    };
    // Taken, so that `Command` has nothing of its own there, to be overwritten.
    let taken = duplicate(FIRST)?;
    let copies = duplicate(above)?;
    let place = move || {
        let _taken = &taken;
        for (from, to) in copies.iter().zip(FIRST..) {
            // SAFETY: plain system call on an open descriptor.
            Errno::result(unsafe { libc::dup2(from.as_raw_fd(), to) })?;
        }
        Ok(())
    };
    // SAFETY: between fork and exec it only calls dup2, which is async-signal-safe; an
    // error it gives back is a number, nothing is allocated.
    unsafe { command.pre_exec(place) };
    Ok(())
}

/// Makes every descriptor above the standard streams one that ends with exec: whatever
/// the caller left open is not for hooks or the VMM.
pub fn keep_descriptors_from_children() -> io::Result<()> {
    let flags = libc::CLOSE_RANGE_CLOEXEC;
    // SAFETY: close_range(2) takes no memory and with this flag closes nothing.
    let result = unsafe { libc::syscall(libc::SYS_close_range, 3, u32::MAX, flags) };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// Opens a pidfd for a running process.
pub fn pidfd_open(pid: i32) -> io::Result<OwnedFd> {
    // SAFETY: plain system call without memory arguments.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid, 0) };
    owned(fd)
}

/// Sends SIGKILL through a pidfd: never hits another process that got the same pid. One that
/// has ended meanwhile needs none, even if its parent has waited for it (ESRCH).
pub fn pidfd_kill(pidfd: BorrowedFd<'_>) -> io::Result<()> {
    let none = ptr::null::<libc::siginfo_t>();
    let fd = pidfd.as_raw_fd();
    // SAFETY: a null siginfo is allowed, see pidfd_send_signal(2).
    let result = unsafe { libc::syscall(libc::SYS_pidfd_send_signal, fd, libc::SIGKILL, none, 0) };
    match Errno::result(result) {
        Ok(_) | Err(Errno::ESRCH) => Ok(()),
        Err(errno) => Err(errno.into()),
    }
}

/// A descriptor that tasks can wait for.
pub fn watchable(fd: OwnedFd) -> io::Result<AsyncFd<OwnedFd>> {
    // SAFETY: an OwnedFd keeps the same open description under the same number until
    // it is dropped, which the AsyncFd that owns it does only after deregistering.
    let registered = unsafe { AsyncFd::register(fd) };
    Ok(registered?)
}

/// The kind of the namespace a descriptor refers to, as a `CLONE_NEW*` flag.
pub fn namespace_kind(fd: BorrowedFd<'_>) -> io::Result<c_int> {
    // SAFETY: NS_GET_NSTYPE takes no argument and fails with ENOTTY on other files.
    let kind = unsafe { libc::ioctl(fd.as_raw_fd(), NS_GET_NSTYPE) };
    Errno::result(kind).map_err(io::Error::from)
}

/// `struct mount_attr`, see mount_setattr(2).
#[repr(C)]
#[derive(Default)]
struct MountAttr {
    attr_set: u64,
    attr_clr: u64,
    propagation: u64,
    userns_fd: u64,
}

/// A copy of a mount, attached nowhere yet: `open_tree(OPEN_TREE_CLONE)`.
pub fn clone_mount(source: &Path, recursive: bool) -> io::Result<OwnedFd> {
    let path = c_path(source)?;
    let recurse = if recursive {
        libc::AT_RECURSIVE as u32
    } else {
        0
    };
    let flags = libc::OPEN_TREE_CLONE | libc::OPEN_TREE_CLOEXEC | recurse;
    // SAFETY: `path` is NUL-terminated and outlives the call.
    let fd = unsafe { libc::syscall(libc::SYS_open_tree, libc::AT_FDCWD, path.as_ptr(), flags) };
    owned(fd)
}

/// Sets attributes (`MOUNT_ATTR_*`) and propagation (`MS_*`, 0 for unchanged) of a
/// cloned mount, and with `recursive` of everything below it.
pub fn set_mount_attributes(
    tree: BorrowedFd<'_>,
    set: u64,
    propagation: u64,
    recursive: bool,
) -> io::Result<()> {
    let attr = MountAttr {
        attr_set: set,
        propagation,
        ..MountAttr::default()
    };
    let recurse = if recursive { libc::AT_RECURSIVE } else { 0 };
    let flags = libc::AT_EMPTY_PATH | recurse;
    // SAFETY: an empty path with AT_EMPTY_PATH names the descriptor; `attr` is a
    // valid mount_attr of the size given.
    let result = unsafe {
        libc::syscall(
            libc::SYS_mount_setattr,
            tree.as_raw_fd(),
            c"".as_ptr(),
            flags,
            &raw const attr,
            size_of::<MountAttr>(),
        )
    };
    Errno::result(result).map(drop).map_err(io::Error::from)
}

/// Turns a path into what a system call takes.
pub fn c_path(path: &Path) -> io::Result<CString> {
    use std::os::unix::ffi::OsStrExt;
    CString::new(path.as_os_str().as_bytes()).map_err(|_| {
        io::Error::new(
            io::ErrorKind::InvalidInput,
            format!("{path:?} contains a NUL byte"),
        )
    })
}

fn owned(fd: libc::c_long) -> io::Result<OwnedFd> {
    let fd = Errno::result(fd).map_err(io::Error::from)?;
    let fd = RawFd::try_from(fd).map_err(io::Error::other)?;
    // SAFETY: the system call just returned this new descriptor; nobody else owns it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd) })
}

/// `struct ifreq` as `TUNSETIFF` reads it, see netdevice(7).
#[repr(C)]
struct InterfaceRequest {
    name: [u8; libc::IFNAMSIZ],
    flags: libc::c_short,
    padding: [u8; 22],
}

/// Makes a descriptor of `/dev/net/tun` that of the tap `name`, which is made if there is none.
/// `flags` are those of `TUNSETIFF`, 16 bits.
pub fn attach_tap(tun: BorrowedFd<'_>, name: &str, flags: c_int) -> io::Result<()> {
    let mut request = InterfaceRequest {
        name: [0; libc::IFNAMSIZ],
        flags: flags as libc::c_short,
        padding: [0; 22],
    };
    // The last byte stays NUL.
    let room = request.name[..libc::IFNAMSIZ - 1].get_mut(..name.len());
    room.ok_or(io::ErrorKind::InvalidInput)?
        .copy_from_slice(name.as_bytes());
    // SAFETY: `request` is an ifreq, which the call reads and writes, and outlives it.
    let made = unsafe { libc::ioctl(tun.as_raw_fd(), libc::TUNSETIFF, &raw mut request) };
    Errno::result(made).map(drop).map_err(io::Error::from)
}

/// A BPF map of listening sockets, in this order (`BPF_MAP_TYPE_SOCKMAP`, see bpf(2)). It
/// holds none of them open.
///
/// # Errors
/// `EPERM` without the right to use bpf(2), `ENOSYS` or `EINVAL` on a kernel without it or
/// such maps.
pub fn socket_map(sockets: &[BorrowedFd]) -> io::Result<OwnedFd> {
    const BPF_MAP_CREATE: c_int = 0;
    const BPF_MAP_UPDATE_ELEM: c_int = 2;
    const BPF_MAP_TYPE_SOCKMAP: u32 = 15;
    #[repr(C)]
    struct Create {
        map_type: u32,
        key_size: u32,
        value_size: u32,
        max_entries: u32,
    }
    #[repr(C)]
    struct Update {
        map_fd: u32,
        padding: u32,
        key: u64,
        value: u64,
        flags: u64,
    }
    let create = Create {
        map_type: BPF_MAP_TYPE_SOCKMAP,
        key_size: size_of::<u32>() as u32,
        value_size: size_of::<u32>() as u32,
        max_entries: sockets.len() as u32,
    };
    // SAFETY: `Create` is the beginning of a bpf_attr and holds no pointers.
    let map = owned(unsafe { bpf(BPF_MAP_CREATE, &create) })?;
    for (key, socket) in (0_u32..).zip(sockets) {
        let value = socket.as_raw_fd();
        let update = Update {
            map_fd: map.as_raw_fd() as u32,
            padding: 0,
            key: &raw const key as u64,
            value: &raw const value as u64,
            flags: 0,
        };
        // SAFETY: as above; key and value have the sizes of the map's and outlive the call.
        let updated = unsafe { bpf(BPF_MAP_UPDATE_ELEM, &update) };
        Errno::result(updated)?;
    }
    Ok(map)
}

/// Has the BPF program `instructions`, of type `BPF_PROG_TYPE_SK_LOOKUP`, choose the
/// listening socket of connections that arrive in a network namespace. It does so until the
/// returned descriptor is closed, or the namespace ends.
///
/// # Errors
/// `EPERM` without the right to; `EINVAL` on a kernel before 5.9, or for a program that its
/// verifier does not accept; `E2BIG` where the namespace has 64 of them.
pub fn attach_socket_lookup(netns: BorrowedFd, instructions: &[u64]) -> io::Result<OwnedFd> {
    const BPF_PROG_LOAD: c_int = 5;
    const BPF_LINK_CREATE: c_int = 28;
    const BPF_PROG_TYPE_SK_LOOKUP: u32 = 30;
    const BPF_SK_LOOKUP: u32 = 36;
    /// What `BPF_PROG_LOAD` reads, up to the last that is used.
    #[repr(C)]
    struct Load {
        prog_type: u32,
        insn_cnt: u32,
        insns: u64,
        license: u64,
        log_level: u32,
        log_size: u32,
        log_buf: u64,
        kern_version: u32,
        prog_flags: u32,
        prog_name: [u8; 16],
        prog_ifindex: u32,
        expected_attach_type: u32,
    }
    #[repr(C)]
    struct Link {
        prog_fd: u32,
        target_fd: u32,
        attach_type: u32,
        flags: u32,
    }
    let load = Load {
        prog_type: BPF_PROG_TYPE_SK_LOOKUP,
        insn_cnt: instructions.len() as u32,
        insns: instructions.as_ptr() as u64,
        license: c"Apache-2.0".as_ptr() as u64,
        log_level: 0,
        log_size: 0,
        log_buf: 0,
        kern_version: 0,
        prog_flags: 0,
        prog_name: *b"husk_loopback\0\0\0",
        prog_ifindex: 0,
        expected_attach_type: BPF_SK_LOOKUP,
    };
    // SAFETY: `Load` is the beginning of a bpf_attr; what it points to outlives the call.
    let program = owned(unsafe { bpf(BPF_PROG_LOAD, &load) })?;
    let link = Link {
        prog_fd: program.as_raw_fd() as u32,
        target_fd: netns.as_raw_fd() as u32,
        attach_type: BPF_SK_LOOKUP,
        flags: 0,
    };
    // SAFETY: as above; `Link` holds no pointers.
    owned(unsafe { bpf(BPF_LINK_CREATE, &link) })
}

/// bpf(2), whose descriptors end with exec.
///
/// # Safety
/// `attributes` is the beginning of the `union bpf_attr` that `command` reads, and its
/// pointers are valid; the kernel takes the rest as zero.
unsafe fn bpf<T>(command: c_int, attributes: &T) -> libc::c_long {
    let attributes: *const T = attributes;
    // SAFETY: pointer and size are those of `attributes`; the rest is the caller's promise.
    unsafe { libc::syscall(libc::SYS_bpf, command, attributes, size_of::<T>()) }
}
