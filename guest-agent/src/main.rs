//! Stop 7 of twelve: PID 1 of the guest, `/init` of its initramfs.
//!
//! Sets the guest up, tells the host, then makes and watches containers on request
//! (`agent.proto`). One thread, on purpose: forking is only safe without others.
//!
//! PID 1 must not end: a failure is said on the console and the machine reset.
#![deny(unsafe_code)]

mod bell;
mod clock;
mod cmdline;
mod console;
mod container;
mod error;
mod forward;
mod growth;
mod init;
mod network;
mod nic;
mod oci;
mod power;
mod process;
mod reaper;
mod registry;
mod server;
mod service;
mod stdio;
mod sync;
#[expect(
    unsafe_code,
    reason = "system calls without a safe wrapper, all in one file"
)]
mod sys;
mod tty;

use std::convert::Infallible;
use std::error::Error;
use std::io;
use std::process::ExitCode;
use std::sync::Arc;

use agent_protocol::NONCE_KEY;
use tokio::runtime;
use tokio::signal::unix::{SignalKind, signal};

use crate::clock::HostClock;
use crate::container::create::Workshop;
use crate::reaper::Reaper;
use crate::service::Service;

fn main() -> ExitCode {
    if !init::is_init() {
        console::warn(format_args!(
            "this is the init of a Husk guest: it runs as PID 1 of its initramfs only"
        ));
        return ExitCode::FAILURE;
    }
    power::report_init_runs();
    match run() {
        Ok(never) => match never {},
        Err(error) => power::crash(format_args!("{}", chain(error.as_ref()))),
    }
}

fn run() -> Result<Infallible, Box<dyn Error>> {
    let init_us = bell::boot_us();
    init::set_up()?;
    let host_clock = HostClock::open();
    let runtime = runtime::Builder::new_current_thread()
        .enable_all()
        .build()?;
    runtime.block_on(serve(init_us, host_clock))
}

async fn serve(init_us: u64, host_clock: Option<HostClock>) -> Result<Infallible, Box<dyn Error>> {
    let sigchld = signal(SignalKind::child())?;
    let workshop = Workshop::default();
    let reaper: Arc<Reaper> = Arc::clone(&workshop.reaper);

    server::serve_streams(Arc::clone(&workshop.streams))?;
    server::serve_forwards()?;
    let calls = server::serve_calls(Service::new(workshop)).await?;
    match init::kernel_parameter(NONCE_KEY)? {
        Some(nonce) => bell::ring(&nonce, init_us).await?,
        None => console::warn(format_args!(
            "no {NONCE_KEY} on the kernel command line: started by hand, nobody to tell"
        )),
    }

    if let Some(clock) = host_clock {
        tokio::spawn(clock.follow());
    }
    reaper.run(sigchld).await;
    drop(calls);
    Err(io::Error::other("the stream of SIGCHLD ended").into())
}

/// An error and its causes on one line.
fn chain(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        text = format!("{text}: {cause}");
        next = cause.source();
    }
    text
}
