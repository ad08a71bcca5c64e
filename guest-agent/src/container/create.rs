//! Stop 10 of twelve, in the agent: a spec becomes a container, or a process in one.
//!
//! One recipe, twice: check everything, make the pipes, fork, let the child set
//! itself up ([`super::child`]), keep what it became. What was made is undone when a
//! later step fails.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::{Arc, Mutex};
use std::time::Duration;

use agent_protocol::agent::{CreateContainerRequest, Stdio};
use nix::errno::Errno;
use nix::sched::{CloneFlags, setns};
use tokio::time::timeout;

use super::cgroup::{self, Cgroup};
use super::channel;
use super::child::{self, ChildStdio};
use super::hooks::{self, Hooks};
use super::launch::{self, Child, SETUP_DEADLINE};
use super::namespaces::Joined;
use super::plan::{ContainerPlan, ProcessPlan};
use super::setup_error::Blame;
use super::{Container, State};
use crate::error::Error;
use crate::oci::{Process as ProcessSpec, Spec};
use crate::process::Process;
use crate::reaper::Reaper;
use crate::registry::Registry;
use crate::stdio::{AgentEnds, Streams};
use crate::sys::{self, Cloned};

/// How long a dying init may take to be gone.
const DEATH: Duration = Duration::from_secs(2);

const ENDED: &str = "it has ended: nothing can be executed in it";

/// What the making of processes needs of the agent.
#[derive(Clone, Debug, Default)]
pub struct Workshop {
    /// Learns of every process made.
    pub reaper: Arc<Reaper>,
    /// Learns of every stream a process waits for.
    pub streams: Arc<Streams>,
}

/// Makes a container up to its init's exec.
pub async fn create_container(
    workshop: &Workshop,
    request: &CreateContainerRequest,
) -> Result<Container, Error> {
    let id = request.container_id.as_str();
    let spec = Spec::from_json(&request.spec_json)?;
    for warning in spec.warnings() {
        crate::console::warn(format_args!("container {id}: {warning}"));
    }
    let plan = ContainerPlan::new(&spec)?;
    let hooks = Hooks::plan(&spec, id, &request.bundle)?;
    let stdio = request.stdio.clone().unwrap_or_default();
    let (child_stdio, ends) = crate::stdio::make(&stdio)?;
    let cgroup = Cgroup::create(id, &plan.limits).await?;
    let launched = {
        let run = |line: &channel::ChildLine, joined: &Joined| {
            child::run_init(id, &plan, &hooks, joined, line, &child_stdio);
        };
        launch_init(workshop, &plan, &cgroup, run)
    };
    // The child's ends must live on in the child alone, or their closing is never seen.
    drop(child_stdio);
    let launched = match launched {
        Ok(child) => finish(workshop, child, ends).await,
        Err(error) => Err(error),
    };
    let shares_pids = plan.namespaces.shares_pids();
    match launched {
        Ok((init, line)) => Ok(Container {
            id: id.into(),
            cgroup,
            init: Arc::new(init),
            shares_pids,
            line: Mutex::new(Some(line)),
            common: plan.common,
            start_limit: match hooks.is_empty() {
                true => SETUP_DEADLINE,
                false => SETUP_DEADLINE + hooks::DEADLINE,
            },
            execs: Registry::new("process"),
        }),
        Err(error) => {
            if let Err(undo) = cgroup.destroy().await {
                crate::console::warn(format_args!("container {id}: {undo}"));
            }
            Err(error)
        }
    }
}

/// Forks the init, which goes on with `run`.
fn launch_init(
    workshop: &Workshop,
    plan: &ContainerPlan,
    cgroup: &Cgroup,
    run: impl FnOnce(&channel::ChildLine, &Joined),
) -> Result<Child, Error> {
    let flags = plan.namespaces.at_clone();
    let score = plan.process.oom_score_adj;
    let joined = plan.namespaces.open()?;
    let in_pid_namespace = joined.pid.as_ref().map(PidNamespace::enter).transpose()?;
    let child = fork(workshop, flags, cgroup.as_fd(), score, |line| {
        run(line, &joined);
    });
    drop(in_pid_namespace);
    child
}

/// Makes one more process in `container`; returns once its program runs.
pub async fn exec_process(
    workshop: &Workshop,
    container: &Container,
    process_json: &[u8],
    stdio: &Stdio,
) -> Result<Process, Error> {
    let spec = ProcessSpec::from_json(process_json)?;
    for warning in spec.warnings() {
        crate::console::warn(format_args!("container {}, exec: {warning}", container.id));
    }
    let plan = ProcessPlan::new(&spec, &container.common)?;
    let (child_stdio, ends) = crate::stdio::make(stdio)?;
    match launch_exec(workshop, container, &plan, child_stdio, ends).await {
        Err(error) if is_of_a_dying_container(&error) => {
            // The init may be dying, which makes its namespaces unusable before it is gone.
            match timeout(DEATH, container.init.wait()).await {
                Ok(_) => Err(container.wrong_state(ENDED)),
                Err(_) => Err(error),
            }
        }
        other => other,
    }
}

/// Whether `error` is what making a process in a container whose init is ending gives.
fn is_of_a_dying_container(error: &Error) -> bool {
    match error {
        // setns(2); clone(2): "the init process of the namespace has terminated"; the
        // cgroup is gone.
        Error::System { errno, .. } => {
            matches!(errno, Errno::ESRCH | Errno::ENOMEM | Errno::ENODEV)
        }
        Error::Setup(error) => error.blame == Blame::Ended,
        Error::DiedInSetup { .. } => true,
        _ => false,
    }
}

async fn launch_exec(
    workshop: &Workshop,
    container: &Container,
    plan: &ProcessPlan,
    child_stdio: ChildStdio,
    ends: AgentEnds,
) -> Result<Process, Error> {
    if container.state() == State::Stopped {
        return Err(container.wrong_state(ENDED));
    }
    let init = container.init.pidfd();
    let score = plan.oom_score_adj;
    let run =
        |line: &channel::ChildLine| child::run_exec(&container.id, plan, init, line, &child_stdio);
    let in_pid_namespace = PidNamespace::enter(init)?;
    let child = match fork(
        workshop,
        CloneFlags::empty(),
        container.cgroup.as_fd(),
        score,
        run,
    ) {
        Err(Error::System {
            errno: Errno::EBUSY,
            ..
        }) => {
            // The container runs an init that manages cgroups below its own, which
            // then may hold no processes: join the init where it is (as runc does).
            let cgroup: File = cgroup::of_process(container.init.pid())?;
            fork(workshop, CloneFlags::empty(), cgroup.as_fd(), score, run)
        }
        other => other,
    };
    drop(in_pid_namespace);
    let child = child?;
    drop(child_stdio);
    let (process, line) = finish(workshop, child, ends).await?;
    launch::release(&line, &process, SETUP_DEADLINE).await?;
    Ok(process)
}

/// Forks a child that runs `run`, which never returns.
fn fork(
    workshop: &Workshop,
    flags: CloneFlags,
    cgroup: BorrowedFd,
    oom_score_adj: i32,
    run: impl FnOnce(&channel::ChildLine),
) -> Result<Child, Error> {
    let (line, child_line) = channel::pair().map_err(Error::line)?;
    let cloned = sys::clone_child(flags, Some(cgroup));
    let cloned = cloned.map_err(|errno| Error::System {
        what: "forking",
        errno,
    })?;
    let Cloned::Parent { pid, pidfd } = cloned else {
        run(&child_line);
        sys::exit_now(child::NOT_STARTED)
    };
    // The child cannot do this itself: born with the agent's score it could not be
    // killed, and below a memory limit too small for its first steps it would hang.
    let score = fs::write(
        format!("/proc/{pid}/oom_score_adj"),
        oom_score_adj.to_string(),
    );
    if let Err(error) = score {
        crate::console::warn(format_args!(
            "setting oomScoreAdj of process {pid}: {error}"
        ));
    }
    Ok(Child {
        pid,
        pidfd,
        exit: workshop.reaper.watch(pid),
        line,
    })
}

async fn finish(
    workshop: &Workshop,
    child: Child,
    ends: AgentEnds,
) -> Result<(Process, channel::Line), Error> {
    let terminal = child.wait_ready().await?;
    let io = ends.register(&workshop.streams, terminal)?;
    Ok((
        Process::new(child.pid, child.pidfd, child.exit, io),
        child.line,
    ))
}

/// While it lives, children of the agent are born into a container's pid namespace
/// (setns(2): it changes the caller's children, not the caller).
///
/// One thread and no await in its life: no other child can be born there.
struct PidNamespace {
    own: File,
}

impl PidNamespace {
    /// Takes a pidfd of a process in it, or the namespace itself.
    fn enter(namespace: &OwnedFd) -> Result<Self, Error> {
        let system = |errno| Error::System {
            what: "entering the container's pid namespace",
            errno,
        };
        let own = File::open("/proc/self/ns/pid")
            .map_err(|error| system(Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO))))?;
        setns(namespace, CloneFlags::CLONE_NEWPID).map_err(system)?;
        Ok(Self { own })
    }
}

impl Drop for PidNamespace {
    fn drop(&mut self) {
        if let Err(errno) = setns(&self.own, CloneFlags::CLONE_NEWPID) {
            // Every later container would be made inside this one.
            let why = sys::errno_text(errno);
            crate::power::crash(format_args!(
                "cannot return to the guest's pid namespace: {why}"
            ));
        }
    }
}
