//! The sandbox: one virtual machine and everything on the host that belongs to it.
//!
//! ```text
//!               boot                        stop
//!  NotBooted ---------> Booting ---> Ready ------> Ended
//!                          |                         ^
//!                          +------ failed -----------+
//! ```
//!
//! * `NotBooted`: the shim serves, nothing exists on the host but its run directory.
//! * `Booting`: [`boot::boot`] runs. Dropping it kills the VMM.
//! * `Ready`: the agent serves. The VM may die at any time; its pidfd tells.
//! * `Ended`: only clean-up is allowed. A shim serves one sandbox in its life.
//!
//! Resources are taken in this order and released in reverse: run directory and
//! `state.json`, jail and its shared mount, VMM, agent connection, per container
//! its mounts and exports.

pub mod agent;
pub mod boot;
pub mod cleanup;
pub mod control;
pub mod demand;
pub mod growth;
pub mod network;
pub mod nics;
pub mod oom_score;
mod pinning;
pub mod pod_cgroup;
pub mod size;
pub mod state_file;
pub mod usage;
pub mod vmm_process;
pub mod vsock;

use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use husk_vmm::exit::Exit;
use thiserror::Error;
use tokio::sync::watch;
use tokio::time::timeout;

use agent::{Agent, AgentError};
use control::{Control, ControlError};
use growth::Growth;
use network::follow::Follower;
use state_file::StateFile;
use vmm_process::VmmProcess;
use vsock::Vsock;

use crate::container::rootfs::RootfsError;
use crate::container::stdio::StdioError;
use crate::error::Error;

/// How long the guest may take to power off. These three together stay within the
/// 3 s that containerd waits for Shutdown.
const POWER_OFF: Duration = Duration::from_millis(1200);
/// How long the VMM may take to end when it is told to.
const STOP: Duration = Duration::from_millis(300);
/// How long the VMM may take to be gone once it was killed.
const KILL: Duration = Duration::from_millis(500);
/// How long a broken connection to the VMM may take to turn out as its end.
const END_GRACE: Duration = Duration::from_millis(900);

/// A running virtual machine.
pub struct Sandbox {
    /// Record of what exists on the host.
    pub file: Arc<StateFile>,
    /// The agent in the guest.
    pub agent: Agent,
    /// Connections into the guest.
    pub vsock: Vsock,
    /// The VMM's control socket.
    pub control: Control,
    /// The VM's size.
    pub growth: Growth,
    /// The pod's network, which the guest's follows.
    pub network: Follower,
    vmm: VmmProcess,
    vm_end: Once,
    stop: Once,
}

/// Work that is done once, whoever asks for it first.
struct Once(watch::Sender<Progress>);

#[derive(Clone, Copy, Default, PartialEq, Eq)]
enum Progress {
    #[default]
    Due,
    Running,
    Done,
}

impl Once {
    fn new() -> Self {
        Self(watch::Sender::default())
    }

    /// Does `work` in a task of its own, which a caller that gives up does not interrupt, unless
    /// that was begun before. Returns when it is done.
    async fn run(&self, work: impl Future<Output = ()> + Send + 'static) {
        let mut done = self.0.subscribe();
        let first = self.0.send_if_modified(|progress| {
            let first = *progress == Progress::Due;
            *progress = if first { Progress::Running } else { *progress };
            first
        });
        if first {
            let progress = self.0.clone();
            tokio::spawn(async move {
                work.await;
                progress.send_replace(Progress::Done);
            });
        }
        // The sender lives in `self`, so waiting cannot fail.
        drop(done.wait_for(|progress| *progress == Progress::Done).await);
    }
}

impl Sandbox {
    /// The VMM's pid on the host, which is what containerd is told as the first
    /// container's: its network namespace is the pod's.
    pub fn pid(&self) -> u32 {
        u32::try_from(self.vmm.pid()).unwrap_or_default()
    }

    /// Starts a thread of the VMM that stands for one more container. Returns its id on the
    /// host, which containerd is told as the container's.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn stand_in(&self, container: String) -> Result<u32, ControlError> {
        let inner = self.control.add_thread(container).await?;
        let found = vmm_process::thread_on_host(self.pid(), inner);
        found.map_err(ControlError::Silent)
    }

    /// How many processes the host's OOM killer has killed in the pod's cgroup.
    pub fn host_oom_kills(&self) -> u64 {
        let leaves = self.file.state().cgroups;
        leaves.iter().map(pod_cgroup::Leaf::oom_kills).sum()
    }

    /// Kills the VMM at once; everything that waits for the guest ends with it.
    pub fn kill(&self) {
        self.vmm.kill();
    }

    /// Ends the VM and undoes everything made for it. Any number of callers may
    /// ask; all return when it is done.
    pub async fn stop(self: &Arc<Self>) {
        let sandbox = self.clone();
        let stop = async move {
            sandbox.end_vm().await;
            sandbox.network.ended().await;
            crate::log::timeline("gone");
            release(sandbox.file.clone()).await;
        };
        self.stop.run(stop).await;
    }

    /// Waits until the machine is gone, for whatever reason.
    pub async fn gone(&self) {
        drop(vmm_process::end(&mut self.vmm.gone()).await);
    }

    /// Why the machine ended by itself; `None` while it lives and after an orderly end.
    pub fn died_of(&self) -> Option<String> {
        let gone = self.vmm.gone();
        let end = gone.borrow().clone()?;
        let orderly = matches!(end.exit, Some(Exit::Clean | Exit::Stopped));
        Some(end.reason).filter(|_| !orderly)
    }

    /// The error of a call that failed because the VMM is gone: whoever reads it learns
    /// why the machine ended, not which socket broke. Other errors stay as they are.
    pub async fn blame(&self, call: &'static str, error: Error) -> Error {
        let broken = match &error {
            Error::Stdio(StdioError::Connect { .. }) | Error::Control(ControlError::Silent(_)) => {
                true
            }
            Error::Rootfs(RootfsError::Export { source, .. }) => {
                matches!(source, ControlError::Silent(_))
            }
            _ => false,
        };
        if !broken {
            return error;
        }
        match timeout(END_GRACE, vmm_process::end(&mut self.vmm.gone())).await {
            Ok(end) => {
                let reason = end.reason;
                AgentError::VmGone { call, reason }.into()
            }
            Err(_) => error,
        }
    }

    /// Ends the VM: politely, firmly, by force. What is on the host stays until
    /// [`Sandbox::stop`].
    pub async fn end_vm(self: &Arc<Self>) {
        let sandbox = self.clone();
        self.vm_end
            .run(async move { sandbox.power_off().await })
            .await;
    }

    async fn power_off(&self) {
        let mut gone = self.vmm.gone();
        if gone.borrow().is_some() {
            return;
        }
        let politely = timeout(POWER_OFF, async {
            match self.agent.power_off().await {
                // The machine may end before it has answered.
                Ok(()) | Err(AgentError::VmGone { .. }) => {
                    drop(vmm_process::end(&mut gone).await);
                    true
                }
                Err(error) => {
                    log::debug!("power off: {error}");
                    false
                }
            }
        });
        if !matches!(politely.await, Ok(true)) {
            log::warn!("the guest does not power off, the VMM is stopped");
            self.stop_vmm().await;
        }
    }

    async fn stop_vmm(&self) {
        let mut gone = self.vmm.gone();
        let stopped = timeout(STOP, async {
            if let Err(error) = self.control.stop().await {
                log::warn!("the VMM is not stopped: {error}");
            }
            vmm_process::end(&mut gone).await
        });
        if stopped.await.is_err() {
            self.vmm.kill();
            drop(timeout(KILL, vmm_process::end(&mut gone)).await);
        }
    }
}

/// Undoes what was made on the host for a sandbox, off the async threads.
pub async fn release(file: Arc<StateFile>) {
    let undone = tokio::task::spawn_blocking(move || cleanup::release_sandbox(&file)).await;
    match undone {
        Ok(Ok(())) => {}
        Ok(Err(error)) => log::error!("clean-up: {}", crate::error::chain(&error)),
        Err(error) => log::error!("clean-up did not run: {error}"),
    }
}

/// Where the shim's only sandbox stands.
#[derive(Default)]
pub struct Slot(Mutex<State>);

#[derive(Default)]
enum State {
    #[default]
    NotBooted,
    Booting,
    Ready(Arc<Sandbox>),
    Ended,
}

/// Why there is no sandbox to use.
#[derive(Debug, Error, PartialEq, Eq)]
pub enum SlotError {
    /// Another Create is still booting it.
    #[error("the sandbox is still booting")]
    Booting,
    /// It is over.
    #[error("the sandbox has ended")]
    Ended,
}

impl Slot {
    fn lock(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The running sandbox, or `None` after taking the duty to boot it: the caller
    /// has to go on to [`Slot::ready`] or [`Slot::end`].
    ///
    /// # Errors
    /// See [`SlotError`].
    pub fn claim(&self) -> Result<Option<Arc<Sandbox>>, SlotError> {
        let mut state = self.lock();
        match &*state {
            State::NotBooted => {
                *state = State::Booting;
                Ok(None)
            }
            State::Booting => Err(SlotError::Booting),
            State::Ready(sandbox) => Ok(Some(sandbox.clone())),
            State::Ended => Err(SlotError::Ended),
        }
    }

    /// The boot succeeded.
    pub fn ready(&self, sandbox: Arc<Sandbox>) {
        *self.lock() = State::Ready(sandbox);
    }

    /// The sandbox is over, or never came to be. Returns it if it has to be stopped.
    pub fn end(&self) -> Option<Arc<Sandbox>> {
        match std::mem::replace(&mut *self.lock(), State::Ended) {
            State::Ready(sandbox) => Some(sandbox),
            _ => None,
        }
    }

    /// The sandbox, if it is ready.
    pub fn get(&self) -> Option<Arc<Sandbox>> {
        match &*self.lock() {
            State::Ready(sandbox) => Some(sandbox.clone()),
            _ => None,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_slot_boots_once_and_ends_for_good() {
        let slot = Slot::default();
        assert!(slot.claim().unwrap().is_none());
        assert_eq!(slot.claim().err(), Some(SlotError::Booting));
        assert!(slot.get().is_none());
        assert!(slot.end().is_none());
        assert_eq!(slot.claim().err(), Some(SlotError::Ended));
    }
}
