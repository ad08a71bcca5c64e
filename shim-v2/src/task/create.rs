//! Stop 3 of twelve: Create. Finds or boots the sandbox, shows it the container's
//! files, and has the agent set the container up.
//!
//! Everything that can be refused without a VM is refused before there is one.
//! After that, a failure undoes what this call made: the whole sandbox if it was
//! booted for this container, otherwise the container's share of it.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use agent_protocol::agent::CreateContainerRequest;
use containerd_shim_protos::api::{CreateTaskRequest, CreateTaskResponse};
use containerd_shim_protos::events::task::{TaskCreate, TaskIO};

use crate::config::{self, Config};
use crate::container::Container;
use crate::container::oci::Spec;
use crate::container::pod::{Pod, PodRole};
use crate::container::process::Process;
use crate::container::rlimits;
use crate::container::rootfs::{RootfsError, Shared, Sources, source_kind};
use crate::container::stdio::{Fifos, Paths};
use crate::container::supervise::{retire, supervise, watch_oom};
use crate::error::Error;
use crate::hooks::{self, HostHooks};
use crate::identity::identity_of;
use crate::ids;
use crate::sandbox::Sandbox;
use crate::sandbox::boot::boot;
use crate::sandbox::demand::Settled;
use crate::sandbox::oom_score;
use crate::sandbox::state_file::StateFile;
use crate::shim::Shim;

/// Process 1 of the guest, its agent.
const GUEST_INIT: u32 = 1;

/// A checked request: nothing exists for it yet.
struct Plan {
    stdio: Paths,
    spec: Spec,
    json: Vec<u8>,
    sources: Arc<Sources>,
    hooks: HostHooks,
}

/// Creates a container.
pub async fn create(
    shim: Arc<Shim>,
    request: CreateTaskRequest,
) -> Result<CreateTaskResponse, Error> {
    ids::check(&request.id)?;
    let reservation = shim.containers.reserve(&request.id)?;
    let planned = {
        let (shim, request) = (shim.clone(), request.clone());
        tokio::task::spawn_blocking(move || plan(&shim, request)).await
    };
    let (plan, config) = planned.map_err(|_| Error::Panicked("Create"))??;
    let mut shared = Shared::default();
    let (sandbox, booted) = match shim.slot.claim()? {
        Some(sandbox) => (sandbox, false),
        None => (
            boot_sandbox(&shim, &config, &plan, &mut shared).await?,
            true,
        ),
    };
    let (id, bundle) = (plan.sources.id.clone(), plan.sources.bundle.clone());
    let alone = shim.pod.get().is_none() && plan.spec.pod_role() == PodRole::Alone;
    let made = async {
        let mut pid = sandbox.pid();
        if !booted {
            let file = &sandbox.file;
            on_host(&mut shared, file, &plan.sources, Shared::mount_snapshot).await?;
            pid = sandbox.stand_in(id.clone()).await?;
            oom_score::raise(sandbox.pid(), plan.spec.oom_score_adj());
            plan.hooks.create(file, pid).await?;
        }
        // Before the guest limits the container to what there might not be.
        let resources = plan.spec.resources().clone();
        sandbox.growth.fit(&id, resources).await;
        let init = set_up(&sandbox, plan, &mut shared).await?;
        sandbox.growth.settle(&id, Settled::Applied).await;
        Ok::<_, Error>((pid, init))
    };
    let (pid, init) = match made.await {
        Ok(made) => made,
        Err(error) => {
            let error = sandbox.blame("Create", error).await;
            undo(&shim, &sandbox, booted, shared, id).await;
            return Err(error);
        }
    };
    let container = Arc::new(Container::new(id, bundle, pid, init, shared));
    if !reservation.fill(container.clone()) {
        let (shared, id) = (container.shared.clone(), container.id.clone());
        undo(&shim, &sandbox, booted, shared, id).await;
        return Err(Error::GivenUp);
    }
    shim.events.publish(&created(&request, pid));
    let init = container.init.clone();
    let events = &shim.events;
    tokio::spawn(watch_oom(
        events.clone(),
        sandbox.clone(),
        container.clone(),
    ));
    let events = events.clone();
    tokio::spawn(async move {
        supervise(events, sandbox.clone(), container.clone(), init).await;
        if alone {
            retire(shim, sandbox, container).await;
        }
    });
    Ok(CreateTaskResponse {
        pid,
        ..CreateTaskResponse::default()
    })
}

/// Reads and checks all that can be known without a VM.
fn plan(shim: &Shim, request: CreateTaskRequest) -> Result<(Plan, Config), Error> {
    if !request.checkpoint.is_empty() {
        let problem = "restoring a checkpoint is not supported".to_owned();
        return Err(Error::Argument {
            what: "checkpoint",
            problem,
        });
    }
    if let Some(part) = request.rootfs.iter().find(|part| !part.target.is_empty()) {
        let problem = format!(
            "a mount within the rootfs, at {}, is not supported",
            part.target
        );
        return Err(Error::Argument {
            what: "rootfs",
            problem,
        });
    }
    let config = Config::load(Path::new(config::PATH))?;
    let stdio = Paths {
        terminal: request.terminal,
        stdin: request.stdin,
        stdout: request.stdout,
        stderr: request.stderr,
    };
    stdio.check()?;
    let bundle = PathBuf::from(request.bundle);
    let mut spec = Spec::load(&bundle)?;
    spec.inherit_limits(&rlimits::own());
    let rootfs = spec.rootfs(&bundle)?;
    let pod = match (spec.pod_role(), shim.pod.get()) {
        (PodRole::Member { sandbox }, _) => Some(pod(shim, sandbox, &spec)?),
        // A client that is no CRI server names the sandbox by its shim.
        (_, Some(created)) => Some(pod(shim, created.id.clone(), &spec)?),
        (PodRole::Alone | PodRole::Sandbox, None) => None,
    };
    if let Some(created) = shim.pod.get() {
        spec.furnish(&created.etc);
    }
    let guest = spec.clone().for_guest(
        &request.id,
        &bundle,
        config.lsm_labels,
        pod.as_ref(),
        source_kind,
    )?;
    let hooks = HostHooks::new(&spec, &request.id, &bundle);
    let sources = Sources {
        id: request.id,
        bundle,
        rootfs,
        snapshot: request.rootfs,
        volumes: guest.volumes,
    };
    if sources.snapshot.is_empty() {
        // Otherwise the rootfs is there once the snapshot is mounted.
        sources.check()?;
    }
    let json = guest.json;
    let plan = Plan {
        stdio,
        spec,
        json,
        sources: Arc::new(sources),
        hooks,
    };
    Ok((plan, config))
}

/// The running pod that a container of `sandbox` joins.
fn pod(shim: &Shim, sandbox: String, spec: &Spec) -> Result<Pod, Error> {
    let vm = shim.slot.get();
    let created = shim.pod.of(&sandbox).ok();
    // Without a pause container it is the machine that has to be there.
    let runs = match created {
        Some(created) => created.exit().is_none(),
        None => shim.containers.get(&sandbox).is_ok(),
    };
    let vm = vm.filter(|_| runs).ok_or(Error::NoPod(sandbox))?;
    let mut pids = shim.containers.pids();
    // The namespaces of such a pod are the guest's own, of which the VMM's pid tells.
    pids.extend(created.map(|_| (vm.pid(), GUEST_INIT)));
    // By whatever path: the guest has one network, and it is the pod's.
    let pods = format!("/proc/{}/ns/net", vm.pid());
    match spec.network_namespace()? {
        Some(path) if identity_of(path) != identity_of(Path::new(&pods)) => Err(Error::Argument {
            what: "linux.namespaces",
            problem: format!("the network {} is not the pod's", path.display()),
        }),
        _ => Ok(Pod { pids }),
    }
}

/// Boots the shim's only sandbox; a failed boot is the end of it.
async fn boot_sandbox(
    shim: &Shim,
    config: &Config,
    plan: &Plan,
    shared: &mut Shared,
) -> Result<Arc<Sandbox>, Error> {
    let file = &shim.file;
    let booted = async {
        on_host(shared, file, &plan.sources, Shared::mount_snapshot).await?;
        let cancelled = shim.ending();
        Ok(boot(file.clone(), config, &plan.spec, &plan.hooks, cancelled).await?)
    };
    shim.settle(booted.await).await
}

/// A step of mounting, off the async threads.
async fn on_host(
    shared: &mut Shared,
    file: &Arc<StateFile>,
    sources: &Arc<Sources>,
    step: fn(&mut Shared, &StateFile, &Sources) -> Result<(), RootfsError>,
) -> Result<(), Error> {
    let (file, sources, mut made) = (file.clone(), sources.clone(), std::mem::take(shared));
    let done = tokio::task::spawn_blocking(move || {
        let result = step(&mut made, &file, &sources);
        (made, result)
    });
    let (made, result) = done.await.map_err(|_| Error::Panicked("Create"))?;
    *shared = made;
    Ok(result?)
}

/// Files, streams, agent. What was mounted before an error is in `shared`.
async fn set_up(sandbox: &Sandbox, plan: Plan, shared: &mut Shared) -> Result<Process, Error> {
    let Plan {
        stdio,
        json,
        sources,
        ..
    } = plan;
    let id = sources.id.clone();
    on_host(shared, &sandbox.file, &sources, Shared::mount).await?;
    shared.export(&sandbox.control).await?;
    let (fifos, message) = Fifos::open(&stdio, &id, &sandbox.file.namespace()).await?;
    let request = CreateContainerRequest {
        container_id: id,
        spec_json: json,
        bundle: sources.bundle.to_string_lossy().into_owned(),
        stdio: Some(message).into(),
        ..CreateContainerRequest::default()
    };
    let pid = sandbox.agent.create(&request).await?;
    let init = Process::new(String::new(), stdio, Vec::new());
    init.set_guest_pid(pid);
    init.set_streams(fifos.connect(&sandbox.vsock).await?);
    Ok(init)
}

async fn undo(shim: &Shim, sandbox: &Arc<Sandbox>, booted: bool, shared: Shared, id: String) {
    if booted {
        drop(shim.slot.end());
        sandbox.end_vm().await;
        hooks::poststop(&sandbox.file, &id).await;
        return sandbox.stop().await;
    }
    // The guest may know the container or not: whatever it has of it must go.
    if let Err(error) = sandbox.agent.delete(&id, "").await {
        log::debug!("container {id}: {error}");
    }
    sandbox.growth.settle(&id, Settled::Gone).await;
    hooks::poststop(&sandbox.file, &id).await;
    super::delete::release_files(sandbox, shared, id).await;
}

fn created(request: &CreateTaskRequest, pid: u32) -> TaskCreate {
    TaskCreate {
        container_id: request.id.clone(),
        bundle: request.bundle.clone(),
        rootfs: request.rootfs.clone(),
        io: Some(TaskIO {
            stdin: request.stdin.clone(),
            stdout: request.stdout.clone(),
            stderr: request.stderr.clone(),
            terminal: request.terminal,
            ..TaskIO::default()
        })
        .into(),
        pid,
        ..TaskCreate::default()
    }
}
