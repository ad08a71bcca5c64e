//! How the machine ends.
//!
//! The VMM listens on one I/O port, so that it can tell a wanted end from a crash: a
//! reset (the kernel runs with `reboot=k`) that no [`CLEAN_END`] came before is a crash.

use std::fmt::Arguments;
use std::sync::Arc;
use std::time::Duration;

use nix::sched::CloneFlags;
use nix::sys::reboot::{RebootMode, reboot};
use nix::unistd::sync;
use tokio::time::timeout;

use crate::console;
use crate::container::cgroup::{self, Cgroup};
use crate::reaper::{self, Reaper};
use crate::sys::{self, Cloned};

/// The VMM's debug port.
const DEBUG_PORT: u16 = 0xf4;
/// PID 1 runs.
const INIT_RUNS: u8 = 0x01;
/// The next reset is meant.
const CLEAN_END: u8 = 0x02;
/// How long file data may take to reach the host.
const SYNC_DEADLINE: Duration = Duration::from_secs(5);

/// Lets the VMM take the time at which PID 1 began.
pub fn report_init_runs() {
    report(INIT_RUNS);
}

/// Kills every container, writes file data back and resets the machine. Whatever
/// fails on the way is said on the console; the machine ends anyway.
pub async fn off(reaper: Arc<Reaper>) {
    if let Err(error) = kill_containers().await {
        console::warn(format_args!("power off: {error}"));
    }
    sync_files(&reaper).await;
    report(CLEAN_END);
    reset()
}

/// Ends a machine that cannot go on. The VMM reports it as a crash.
pub fn crash(why: Arguments) -> ! {
    console::warn(format_args!("fatal: {why}"));
    reset()
}

async fn kill_containers() -> Result<(), cgroup::CgroupError> {
    let containers = Cgroup::of_all_containers()?;
    containers.kill()?;
    containers.wait_empty().await
}

/// Writing back goes through the share and may stall, so a child does it.
async fn sync_files(reaper: &Reaper) {
    match sys::clone_child(CloneFlags::empty(), None) {
        Ok(Cloned::Child) => {
            sync();
            sys::exit_now(0)
        }
        Ok(Cloned::Parent { pid, .. }) => {
            let synced = timeout(SYNC_DEADLINE, reaper::ended(reaper.watch(pid))).await;
            if synced.is_err() {
                console::warn(format_args!(
                    "power off: file data was not written within {SYNC_DEADLINE:?}"
                ));
            }
        }
        Err(errno) => {
            let why = sys::errno_text(errno);
            console::warn(format_args!("power off: no child to sync: {why}"));
        }
    }
}

fn report(code: u8) {
    // Without I/O port permissions in the kernel the VMM takes the end for a crash.
    if let Err(errno) = sys::write_port(DEBUG_PORT, code) {
        console::warn(format_args!("debug port: {}", sys::errno_text(errno)));
    }
}

fn reset() -> ! {
    // Returns only if the kernel refuses, which it does not do to PID 1.
    reboot(RebootMode::RB_AUTOBOOT).ok();
    sys::exit_now(1)
}
