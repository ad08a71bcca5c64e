//! Stop 10 of twelve, in the container: from the fork to the exec.
//!
//! This code runs in a forked copy of the agent. The agent has a single thread, so
//! nothing it holds is locked and allocating is safe here; the copy never returns
//! to the agent's code: it ends in exec or in [`sys::exit_now`]. Everything that may
//! stall on a file of the host happens here and not in the agent.
//!
//! The order is runc's where a container can notice it.

use std::convert::Infallible;
use std::ffi::CString;
use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::os::unix::fs::{DirBuilderExt, FileTypeExt, MetadataExt};
use std::path::Path;

use nix::errno::Errno;
use nix::fcntl::{OFlag, open};
use nix::mount::{MsFlags, mount};
use nix::sched::{setns, unshare};
use nix::sys::stat::{Mode, makedev, umask};
use nix::unistd::{chdir, execve, sethostname, setsid};

use super::channel::ChildLine;
use super::hooks::{Hooks, ReadyHooks};
use super::mounts::{self, set_propagation, set_read_only};
use super::namespaces::{Joined, Namespaces};
use super::plan::{ContainerPlan, ProcessPlan};
use super::program::{home_in_passwd, look_up, variable};
use super::setup_error::{Blame, Context, SetupError};
use super::terminal;
use crate::{stdio, sys};

/// Most of `/etc/passwd` that is read, in bytes.
const MAX_PASSWD: u64 = 1 << 20;
/// Exit status of a child that never became its program; the reason went over the line, or
/// after the start to its standard error.
pub const NOT_STARTED: i32 = 1;

/// The child's ends of its standard I/O.
#[derive(Debug)]
pub enum ChildStdio {
    /// A terminal, made by the child itself.
    Terminal,
    /// A pipe for each of stdin, stdout and stderr; none means `/dev/null`.
    Pipes([Option<OwnedFd>; 3]),
}

/// A process with all but its program.
struct Ready<'a> {
    plan: &'a ProcessPlan,
    path: CString,
    env: Vec<String>,
    hooks: Option<ReadyHooks<'a>>,
}

/// Becomes the init of container `id`.
pub fn run_init(
    id: &str,
    plan: &ContainerPlan,
    hooks: &Hooks,
    joined: &Joined,
    line: &ChildLine,
    stdio: &ChildStdio,
) -> ! {
    let result = set_up_init(id, plan, hooks, joined, line, stdio);
    give_up(line, result.and_then(|ready| hand_over(ready, line)))
}

/// Becomes a further process of container `id`, whose init is behind `init`. The
/// parent has entered the container's pid namespace and cgroup for us.
pub fn run_exec(
    id: &str,
    plan: &ProcessPlan,
    init: &OwnedFd,
    line: &ChildLine,
    stdio: &ChildStdio,
) -> ! {
    let result = set_up_exec(id, plan, init, line, stdio);
    give_up(line, result.and_then(|ready| hand_over(ready, line)))
}

fn set_up_init<'a>(
    id: &str,
    plan: &'a ContainerPlan,
    hooks: &'a Hooks,
    joined: &Joined,
    line: &ChildLine,
    stdio: &ChildStdio,
) -> Result<Ready<'a>, SetupError> {
    let mut keep = vec![sys::raw(line)];
    keep.extend(
        joined
            .others
            .iter()
            .map(|(_, namespace)| sys::raw(namespace)),
    );
    leave_agent(id, keep, stdio)?;
    joined.enter()?;
    unshare(plan.namespaces.in_child()).or_guest(|| "making a cgroup namespace")?;

    let sources = mounts::take_sources(&plan.mounts)?;
    let staged = plan.dev.stage()?;
    mounts::enter_rootfs(&plan.rootfs)?;
    mounts::mount_all(&plan.mounts, &sources)?;
    plan.dev.fill(&staged)?;
    make_cwd(&plan.process.cwd)?;
    if let Some(flags) = plan.propagation {
        set_propagation(Path::new("/"), flags)?;
    }

    take_stdio(&plan.process, line, stdio, true)?;
    mounts::seal(&plan.mounts)?;
    if plan.readonly_rootfs {
        set_read_only(Path::new("/"))?;
    }
    set_names(plan)?;
    for (path, value) in &plan.sysctls {
        fs::write(path, value).or_request(|| format!("sysctl: writing {value:?} to {path:?}"))?;
    }
    plan.readonly_paths
        .iter()
        .try_for_each(|path| protect(path))?;
    plan.masked_paths.iter().try_for_each(|path| mask(path))?;
    let ready = become_process(&plan.process)?;
    Ok(Ready {
        hooks: Some(hooks.prepare()?),
        ..ready
    })
}

fn set_up_exec<'a>(
    id: &str,
    plan: &'a ProcessPlan,
    init: &OwnedFd,
    line: &ChildLine,
    stdio: &ChildStdio,
) -> Result<Ready<'a>, SetupError> {
    leave_agent(id, vec![sys::raw(line), sys::raw(init)], stdio)?;
    // Close-on-exec: the program does not see this descriptor.
    setns(init, Namespaces::to_join())
        .or_guest(|| "joining the container's namespaces")
        .map_err(|error| SetupError {
            blame: Blame::Ended,
            ..error
        })?;
    take_stdio(plan, line, stdio, false)?;
    become_process(plan)
}

/// Sheds what a copy of the agent still has of it. `keep` lists descriptors besides
/// those of standard I/O.
fn leave_agent(id: &str, mut keep: Vec<i32>, stdio: &ChildStdio) -> Result<(), SetupError> {
    sys::reset_signals().or_guest(|| "resetting signals")?;
    if let ChildStdio::Pipes(fds) = stdio {
        keep.extend(fds.iter().flatten().map(sys::raw));
    }
    // A waiting child would hold the pipes of other containers open.
    sys::close_all_except(&keep).or_guest(|| "closing the agent's descriptors")?;
    setsid().or_guest(|| "setsid")?;
    // Of the name runc gives it; otherwise all containers would share the agent's.
    sys::join_session_keyring(&format!("_ses.{id}")).or_guest(|| "joining a keyring")?;
    umask(Mode::from_bits_truncate(0o022));
    Ok(())
}

/// runc makes a missing working directory.
fn make_cwd(cwd: &Path) -> Result<(), SetupError> {
    let made = match fs::metadata(cwd) {
        Ok(found) if found.is_dir() => return Ok(()),
        Ok(_) => Err(Errno::ENOTDIR.into()),
        Err(_) => fs::DirBuilder::new()
            .recursive(true)
            .mode(0o755)
            .create(cwd),
    };
    made.or_request(|| format!("mkdir {}", cwd.display()))
}

fn take_stdio(
    plan: &ProcessPlan,
    line: &ChildLine,
    stdio: &ChildStdio,
    is_init: bool,
) -> Result<(), SetupError> {
    match stdio {
        ChildStdio::Terminal => terminal::become_stdio(line, plan.console_size, is_init),
        ChildStdio::Pipes([stdin, stdout, stderr]) => {
            let what = || "setting up standard I/O";
            // The container's own, and only where it is needed: an image may lack it.
            let or_null = |fd: &Option<OwnedFd>| match fd {
                Some(fd) => fd.try_clone().or_guest(what),
                None => open("/dev/null", OFlag::O_RDWR | OFlag::O_CLOEXEC, Mode::empty())
                    .or_request(|| "opening /dev/null"),
            };
            let (stdin, stdout, stderr) = (or_null(stdin)?, or_null(stdout)?, or_null(stderr)?);
            stdio::replace_standard(stdin.as_fd(), stdout.as_fd(), stderr.as_fd()).or_guest(what)
        }
    }
}

fn set_names(plan: &ContainerPlan) -> Result<(), SetupError> {
    if !plan.hostname.is_empty() {
        sethostname(&plan.hostname)
            .or_request(|| format!("setting the host name {:?}", plan.hostname))?;
    }
    if !plan.domainname.is_empty() {
        let name = &plan.domainname;
        sys::set_domain_name(name).or_request(|| format!("setting the domain name {name:?}"))?;
    }
    Ok(())
}

/// Makes `path` and all below read-only; a path the image lacks needs nothing.
fn protect(path: &Path) -> Result<(), SetupError> {
    let what = || format!("making {path:?} read-only");
    let flags = MsFlags::MS_BIND | MsFlags::MS_REC;
    match mount(Some(path), path, None::<&str>, flags, None::<&str>) {
        Err(Errno::ENOENT) => return Ok(()),
        other => other.or_guest(what)?,
    }
    sys::set_mount_attributes(path, libc::MOUNT_ATTR_RDONLY, 0, true).or_guest(what)
}

/// Hides `path`: a file behind `/dev/null`, a directory behind an empty one.
fn mask(path: &Path) -> Result<(), SetupError> {
    let what = || format!("masking {path:?}");
    let none = None::<&str>;
    let null = Path::new("/dev/null");
    let found = fs::metadata(null).or_request(what)?;
    if !found.file_type().is_char_device() || found.rdev() != makedev(1, 3) {
        // Binding anything else over the path would show what it was to hide.
        return Err(SetupError::request(format!(
            "masking {path:?}: the container's /dev/null is not the null device"
        )));
    }
    match mount(Some(null), path, none, MsFlags::MS_BIND, none) {
        Err(Errno::ENOENT) => Ok(()),
        Err(Errno::ENOTDIR) => {
            mount(Some("tmpfs"), path, Some("tmpfs"), MsFlags::MS_RDONLY, none).or_guest(what)
        }
        other => other.or_guest(what),
    }
}

/// Takes on directory, user and capabilities, and finds the program.
fn become_process(plan: &ProcessPlan) -> Result<Ready<'_>, SetupError> {
    plan.scheduling.apply()?;
    let enter_cwd = || chdir(&plan.cwd);
    let what = || format!("chdir to cwd ({:?}) set in config.json failed", plan.cwd);
    // As root first: the user may lack the right to search a directory on the way.
    // On shares it can be the other way round, hence again as the user.
    let entered = match enter_cwd() {
        Err(Errno::EPERM | Errno::EACCES) => false,
        other => other.or_request(what).map(|()| true)?,
    };
    let credentials = &plan.credentials;
    credentials.own_stdio()?;
    let env = with_home(plan);
    credentials.become_user()?;
    if !entered {
        enter_cwd().or_request(what)?;
    }
    credentials.drop_capabilities(plan.filter.as_ref())?;
    let path = look_up(&plan.name, variable(&env, "PATH"))?;
    Ok(Ready {
        plan,
        path: c_string(path.into_os_string().into_vec()).or_request(|| "program path")?,
        env,
        hooks: None,
    })
}

fn c_string(bytes: Vec<u8>) -> Result<CString, Errno> {
    CString::new(bytes).map_err(|_| Errno::EINVAL)
}

/// The environment, with `HOME` from the image's `/etc/passwd` if it is not set.
fn with_home(plan: &ProcessPlan) -> Vec<String> {
    let mut env = plan.env.clone();
    if variable(&env, "HOME").is_some_and(|home| !home.is_empty()) {
        return env;
    }
    let mut passwd = Vec::new();
    // An image without the file, or with an unreadable one, has no homes.
    if let Ok(file) = File::open("/etc/passwd") {
        file.take(MAX_PASSWD).read_to_end(&mut passwd).ok();
    }
    let home = home_in_passwd(&passwd, plan.credentials.uid());
    env.retain(|entry| !entry.starts_with("HOME="));
    env.push(format!(
        "HOME={}",
        String::from_utf8_lossy(home.as_os_str().as_bytes())
    ));
    env
}

/// Waits for the start, then executes the program.
fn hand_over(ready: Ready, line: &ChildLine) -> Result<Infallible, SetupError> {
    let env = ready.env.iter().map(|entry| c_string(entry.clone().into()));
    let env: Vec<CString> = env.collect::<Result<_, _>>().or_request(|| "process.env")?;
    line.ready().or_guest(|| "waiting for the start")?;
    let is_init = ready.hooks.is_some();
    let Err(error) = execute(ready, &env);
    if is_init {
        // As with runc the container has started, and this is its end; an exec fails to start.
        // A filter of the container may forbid even that.
        writeln!(io::stderr(), "{error}").ok();
        sys::exit_now(NOT_STARTED)
    }
    Err(error)
}

fn execute(ready: Ready, env: &[CString]) -> Result<Infallible, SetupError> {
    let plan = ready.plan;
    plan.credentials.filter(plan.filter.as_ref())?;
    if let Some(hooks) = ready.hooks {
        hooks.run(&ready.env)?;
    }
    let failed = execve(&ready.path, &plan.args, env);
    failed.or_request(|| format!("exec {}", ready.path.to_string_lossy()))
}

fn give_up(line: &ChildLine, result: Result<Infallible, SetupError>) -> ! {
    let Err(error) = result;
    // If even this fails the agent sees the end of the line.
    line.fail(&error).ok();
    sys::exit_now(NOT_STARTED)
}
