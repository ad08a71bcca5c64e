//! `delete`: containerd found the shim dead, or never got it to answer. Undoes what
//! `state.json` says, by the same path as a live shim, and answers for the task.
//!
//! containerd gives this five seconds and takes a failure for "exit status
//! unknown", so whatever cannot be undone is logged and the answer still given.

use std::path::{Path, PathBuf};
use std::time::SystemTime;

use containerd_shim_protos::api::DeleteResponse;
use log::LevelFilter;

use crate::bootstrap;
use crate::container::oci::Spec;
use crate::container::process::KILLED;
use crate::error::chain;
use crate::flags::Flags;
use crate::handover;
use crate::hooks;
use crate::mount;
use crate::sandbox::cleanup;
use crate::sandbox::state_file::{StateFile, run_dir};

/// Cleans up and describes the task's end: killed, just now.
pub fn delete(flags: &Flags) -> DeleteResponse {
    let bundle = flags
        .bundle
        .clone()
        .or_else(|| std::env::current_dir().ok());
    let bundle = bundle.unwrap_or_else(|| PathBuf::from("."));
    let level = if flags.debug {
        LevelFilter::Debug
    } else {
        LevelFilter::Info
    };
    crate::log::init(&bundle, &flags.id, level);
    if handover::has_record(&bundle) {
        let error = handover::become_runcs(b"");
        log::error!(
            "a container that runc runs is not cleaned up: {}",
            chain(&error)
        );
    }
    let pid = match StateFile::load(run_dir(&flags.namespace, &flags.id)) {
        Ok(Some(file)) if bootstrap::is_of_another_daemon(flags, &file) => {
            log::warn!("the container of this id is another containerd's, nothing is cleaned up");
            0
        }
        // containerd asks after each Delete; the shim goes with the pod's last container.
        Ok(Some(file)) if file.state().outlived && file.state().is_served() => 0,
        Ok(Some(file)) => clean_up(&file),
        // Hardly anything was made, or it is the pod's, whose shim may have died.
        Ok(None) => {
            remove_abandoned_socket(flags, &bundle);
            clean_up_pod(flags, &bundle)
        }
        Err(error) => {
            log::error!("the sandbox's state cannot be read, nothing is cleaned up: {error}");
            0
        }
    };
    if let Err(error) = mount::unmount(&bundle.join("rootfs")) {
        log::error!("the bundle's rootfs cannot be unmounted: {error}");
    }
    DeleteResponse {
        pid,
        exit_status: KILLED,
        exited_at: Some(SystemTime::now().into()).into(),
        ..DeleteResponse::default()
    }
}

/// Undoes what the dead shim of a container's pod left, if its own `delete` came before.
fn clean_up_pod(flags: &Flags, bundle: &Path) -> u32 {
    let spec = Spec::load(bundle).ok();
    let sandbox = bootstrap::sandbox_of(spec.as_ref(), &flags.id);
    match StateFile::load(run_dir(&flags.namespace, &sandbox)) {
        Ok(Some(file)) if sandbox != flags.id && !file.state().is_served() => clean_up(&file),
        _ => 0,
    }
}

/// A `start` that was killed at the wrong moment leaves its socket and no record.
fn remove_abandoned_socket(flags: &Flags, bundle: &Path) {
    let Some(socket) = bootstrap::abandoned_socket(flags, bundle) else {
        return;
    };
    match std::fs::remove_file(&socket) {
        Ok(()) => log::info!("removed {}, on which nobody listens", socket.display()),
        Err(error) => log::error!("{} cannot be removed: {error}", socket.display()),
    }
}

/// Undoes everything on record. Returns the pid containerd knew the task by.
pub fn clean_up(file: &StateFile) -> u32 {
    let state = file.state();
    let pid = state.vmm.and_then(|vmm| u32::try_from(vmm.pid).ok());
    // The shim first: it would still act on what is undone here.
    let shim = state.shim.map_or(Ok(()), |shim| cleanup::kill(&shim));
    if let Some(Err(error)) = state.vmm.map(|vmm| cleanup::kill(&vmm)) {
        log::error!("clean-up: {}", chain(&error));
    }
    hooks::poststop_after_crash(file);
    let steps = [
        shim,
        cleanup::release_sandbox(file),
        cleanup::remove_shim(file),
    ];
    for error in steps.into_iter().filter_map(Result::err) {
        log::error!("clean-up: {}", chain(&error));
    }
    log::info!("cleaned up after a shim that is gone");
    pid.unwrap_or_default()
}
