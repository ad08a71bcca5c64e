//! The resident server: one per pod, on the socket `start` bound.

use std::collections::HashMap;
use std::fs::OpenOptions;
use std::io::{self, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use containerd_shim_protos::sandbox_async::create_sandbox;
use containerd_shim_protos::shim_async::create_task;
use log::LevelFilter;
use tokio::signal::unix::{SignalKind, signal};
use tokio::time::timeout;
use ttrpc::asynchronous::{Server, Service};

use crate::bootstrap::SERVING;
use crate::config::{self, Config};
use crate::events::{Containerd, Events};
use crate::flags::Flags;
use crate::publisher::Publisher;
use crate::sandbox::state_file::{ProcessRef, StateFile, run_dir};
use crate::sandbox_api::SandboxService;
use crate::shim::Shim;
use crate::task::TaskService;

/// Names under which containerd 1.x and 2.x call the same task service.
const TASK_SERVICES: [&str; 2] = ["containerd.task.v2.Task", "containerd.task.v3.Task"];
/// How long open connections may take to end.
const GOODBYE: Duration = Duration::from_secs(1);
/// Threads for blocking work; two Creates at once already have enough with this.
const BLOCKING_THREADS: usize = 8;

/// Serves until Shutdown.
///
/// # Errors
/// What keeps the server from starting.
pub fn run(flags: &Flags) -> io::Result<()> {
    let bundle = std::env::current_dir()?;
    let listener = take_listener()?;
    // A session of its own: no signal meant for containerd's reaches the shim.
    nix::unistd::setsid().map_err(io::Error::from)?;
    let level = match Config::load(Path::new(config::PATH)) {
        _ if flags.debug => LevelFilter::Debug,
        Ok(config) => config.log_level.into(),
        // Create reports it, where the user reads it.
        Err(_) => LevelFilter::Info,
    };
    crate::log::init(&bundle, &flags.id, level);
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .max_blocking_threads(BLOCKING_THREADS)
        .build()?;
    let served = runtime.block_on(serve(flags, &bundle, listener));
    // A blocking thread that hangs in the kernel must not keep the shim alive.
    runtime.shutdown_background();
    served
}

/// The listener is standard input; /dev/null takes its place.
fn take_listener() -> io::Result<UnixListener> {
    let listener: OwnedFd = io::stdin().as_fd().try_clone_to_owned()?;
    nix::unistd::dup2_stdin(std::fs::File::open("/dev/null")?)?;
    let listener = UnixListener::from(listener);
    listener.set_nonblocking(true)?;
    Ok(listener)
}

/// Tells `start` that it may go. Its pipe would break as soon as it did: from now on
/// standard error is the log's fifo.
fn dismiss_start(bundle: &Path) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(SERVING.as_bytes())?;
    stdout.flush()?;
    let null = OpenOptions::new().write(true).open("/dev/null")?;
    nix::unistd::dup2_stdout(&null)?;
    if let Err(error) = crate::log::capture_stderr(bundle) {
        log::debug!("no log fifo: {error}");
        nix::unistd::dup2_stderr(&null)?;
    }
    Ok(())
}

/// The record `start` made of this shim, now with its process.
fn adopt_record(flags: &Flags) -> io::Result<StateFile> {
    let dir = run_dir(&flags.namespace, &flags.id);
    let Some(file) = StateFile::load(dir.clone())? else {
        let text = format!("{} has no state.json: run `start`", dir.display());
        return Err(io::Error::new(io::ErrorKind::NotFound, text));
    };
    let own = i32::try_from(std::process::id()).ok();
    file.record(|state| state.shim = own.and_then(ProcessRef::of))?;
    Ok(file)
}

/// The queue of events, on the best way to containerd there is.
fn events(flags: &Flags) -> Events {
    let ttrpc_address = std::env::var("TTRPC_ADDRESS").unwrap_or_default();
    if ttrpc_address.is_empty()
        && let Some(publisher) = Publisher::new(&flags.publish_binary, &flags.address)
    {
        return Events::start(&flags.namespace, publisher);
    }
    Events::start(&flags.namespace, Containerd::new(&ttrpc_address))
}

async fn serve(flags: &Flags, bundle: &Path, listener: UnixListener) -> io::Result<()> {
    let file = Arc::new(adopt_record(flags)?);
    let shim = Arc::new(Shim::new(file, events(flags)));
    let listener = tokio::net::UnixListener::from_std(listener)?;
    let mut server = Server::new()
        .add_listener(listener.into())
        .register_service(services(&shim));
    server.start().await.map_err(io::Error::other)?;
    ignore(SignalKind::terminate())?;
    ignore(SignalKind::interrupt())?;
    dismiss_start(bundle)?;
    tokio::spawn(shim.clone().end_when_abandoned());

    // The sender lives in `shim`, so waiting cannot fail.
    drop(shim.ended().wait_for(|ended| *ended).await);
    // The answer to Shutdown is on its way out.
    if timeout(GOODBYE, server.shutdown()).await.is_err() {
        log::debug!("a connection is still open at the end");
    }
    Ok(())
}

/// The task service under each of its names, and the sandbox service.
fn services(shim: &Arc<Shim>) -> HashMap<String, Service> {
    let service = || create_task(Arc::new(TaskService::new(shim.clone()))).into_values();
    let tasks = TASK_SERVICES
        .into_iter()
        .flat_map(|name| service().map(move |service| (name.to_owned(), service)));
    let sandboxes = create_sandbox(Arc::new(SandboxService::new(shim.clone())));
    tasks.chain(sandboxes).collect()
}

/// A shim ends by Shutdown; a stray signal must not take a pod with it.
fn ignore(kind: SignalKind) -> io::Result<()> {
    let mut signals = signal(kind)?;
    tokio::spawn(async move {
        while signals.recv().await.is_some() {
            log::warn!("signal {} ignored", kind.as_raw_value());
        }
    });
    Ok(())
}
