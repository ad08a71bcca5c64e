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
use crate::container::process::Process;
use crate::container::rootfs::{Shared, Sources, source_kind};
use crate::container::stdio::{Fifos, Paths};
use crate::container::supervise::supervise;
use crate::error::Error;
use crate::ids;
use crate::sandbox::boot::boot;
use crate::sandbox::{self, Sandbox};
use crate::shim::Shim;

/// A checked request: nothing exists for it yet.
struct Plan {
    stdio: Paths,
    spec: Spec,
    json: Vec<u8>,
    sources: Sources,
}

/// Creates a container.
pub async fn create(
    shim: Arc<Shim>,
    request: CreateTaskRequest,
) -> Result<CreateTaskResponse, Error> {
    ids::check(&request.id)?;
    let reservation = shim.containers.reserve(&request.id)?;
    let planned = {
        let request = request.clone();
        tokio::task::spawn_blocking(move || plan(request)).await
    };
    let (plan, config) = planned.map_err(|_| Error::Panicked("Create"))??;
    let (sandbox, booted) = match shim.slot.claim()? {
        Some(sandbox) => (sandbox, false),
        None => (boot_sandbox(&shim, &config, &plan.spec).await?, true),
    };
    let mut shared = Shared::default();
    let (id, bundle) = (plan.sources.id.clone(), plan.sources.bundle.clone());
    let init = match set_up(&sandbox, plan, &mut shared).await {
        Ok(init) => init,
        Err(error) => {
            undo(&shim, &sandbox, booted, shared, id).await;
            return Err(error);
        }
    };
    let container = Arc::new(Container::new(id, bundle, init, shared));
    let pid = sandbox.pid();
    reservation.fill(container.clone());
    shim.events.publish(&created(&request, pid));
    let init = container.init.clone();
    tokio::spawn(supervise(shim.events.clone(), sandbox, container, init));
    Ok(CreateTaskResponse {
        pid,
        ..CreateTaskResponse::default()
    })
}

/// Reads and checks all that can be known without a VM.
fn plan(request: CreateTaskRequest) -> Result<(Plan, Config), Error> {
    if !request.checkpoint.is_empty() {
        let problem = "restoring a checkpoint is not supported".to_owned();
        return Err(Error::Argument {
            what: "checkpoint",
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
    let spec = Spec::load(&bundle)?;
    let rootfs = spec.rootfs(&bundle)?;
    let guest = spec.clone().for_guest(&request.id, &bundle, source_kind)?;
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
        sources,
    };
    Ok((plan, config))
}

/// Boots the shim's only sandbox; a failed boot is the end of it.
async fn boot_sandbox(shim: &Shim, config: &Config, spec: &Spec) -> Result<Arc<Sandbox>, Error> {
    match boot(shim.file.clone(), config, spec, shim.ending()).await {
        Ok(sandbox) => {
            let sandbox = Arc::new(sandbox);
            shim.slot.ready(sandbox.clone());
            Ok(sandbox)
        }
        Err(error) => {
            drop(shim.slot.end());
            sandbox::release(shim.file.clone()).await;
            Err(error.into())
        }
    }
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
    let file = sandbox.file.clone();
    let mounted = tokio::task::spawn_blocking(move || {
        let mut shared = Shared::default();
        let result = shared.mount(&file, &sources);
        (shared, result)
    });
    let (made, result) = mounted.await.map_err(|_| Error::Panicked("Create"))?;
    *shared = made;
    result?;
    shared.export(&sandbox.control).await?;
    let (fifos, message) = Fifos::open(&stdio).await?;
    let request = CreateContainerRequest {
        container_id: id,
        spec_json: json,
        stdio: Some(message).into(),
        ..CreateContainerRequest::default()
    };
    sandbox.agent.create(&request).await?;
    let init = Process::new(String::new(), stdio, Vec::new());
    init.set_streams(fifos.connect(&sandbox.vsock).await?);
    Ok(init)
}

async fn undo(shim: &Shim, sandbox: &Arc<Sandbox>, booted: bool, shared: Shared, id: String) {
    if booted {
        drop(shim.slot.end());
        return sandbox.stop().await;
    }
    // The guest may know the container or not: whatever it has of it must go.
    if let Err(error) = sandbox.agent.delete(&id, "").await {
        log::debug!("container {id}: {error}");
    }
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
