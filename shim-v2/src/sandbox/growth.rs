//! Growth: the VM is made larger when its containers may use more, together, than it was
//! booted for, and smaller again, down to that, when they may use less.
//!
//! A task owns what the containers ask for and how large the VM is, so that two who ask at
//! once do so one after the other, without a lock. A growth that cannot be had is a warning
//! and the container runs with what there is. Shrinking keeps nobody waiting: it begins some
//! time after the guest has the lower limits, so that a container that is restarted finds its
//! share still there, and the guest gives back what it can when it can. While a container without
//! a limit may be using the memory, it stays.

use std::path::Path;
use std::time::Duration;

use nix::sched::CpuSet;
use thiserror::Error;
use tokio::sync::{mpsc, oneshot};
use tokio::time::{Instant, timeout_at};

use super::agent::{Agent, AgentError};
use super::control::{Control, ControlError};
use super::demand::{Demands, Settled};
use super::pinning;
use super::pod_cgroup::{self, Place};
use super::size::{self, Ceiling, Host, Size};
use crate::config::Config;
use crate::container::oci::Resources;
use crate::container::pod::Limits;
use crate::error::chain;

/// How long the VM keeps what its containers may not use any more.
const SHRINK_DELAY: Duration = Duration::from_secs(10);

/// How the size of a VM is found: what was known when it booted.
#[derive(Clone, Debug)]
pub struct Sizing {
    /// The sandbox's id.
    pub sandbox: String,
    /// The pod's cgroup, if there is one.
    pub place: Option<Place>,
    /// The limits of the sandbox it was booted for.
    pub workload: Limits,
    /// The defaults.
    pub config: Config,
    /// What the host has.
    pub host: Host,
}

impl Sizing {
    /// What the pod's cgroup allows now.
    pub fn pod(&self) -> Limits {
        let root = Path::new(pod_cgroup::ROOT);
        let limits = self.place.as_ref().map(|place| place.limits(root));
        limits.unwrap_or_default()
    }

    /// The size for these limits.
    pub fn size(&self, workload: Limits, pod: Limits) -> Size {
        size::size(workload, pod, &self.config, self.host)
    }
}

/// Why the VM kept its size.
#[derive(Debug, Error)]
enum GrowthError {
    #[error(transparent)]
    Control(#[from] ControlError),
    #[error(transparent)]
    Agent(#[from] AgentError),
}

/// A handle on the task.
pub struct Growth(mpsc::Sender<Message>);

enum Message {
    /// Make room for a container.
    Fit(String, Resources, oneshot::Sender<()>),
    /// Give back what is not needed any more.
    Settle(String, Settled),
}

impl Growth {
    /// Starts the task for a VM that was booted with `now`, whose VMM has the pid `vmm`.
    pub fn start(sizing: Sizing, now: Size, vmm: i32, control: Control, agent: Agent) -> Self {
        let (messages, queue) = mpsc::channel(16);
        let task = Task {
            boot: now,
            asked: now,
            boot_kib: None,
            ceiling: Ceiling::new(now, sizing.host),
            vmm,
            pinned: None,
            demands: Demands::new(sizing.sandbox.clone()),
            sizing,
            control,
            agent,
        };
        tokio::spawn(task.serve(queue));
        Self(messages)
    }

    /// Makes room for a container that is to have `resources`, as far as they are named.
    /// Returns when the guest has it.
    pub async fn fit(&self, container: &str, resources: Resources) {
        let (done, answer) = oneshot::channel();
        let message = Message::Fit(container.to_owned(), resources, done);
        // The task ends with the last handle, so it is there.
        drop(self.0.send(message).await);
        answer.await.ok();
    }

    /// Tells what became of a container that room was made for. What is not needed any more
    /// is given back, without waiting for it.
    pub async fn settle(&self, container: &str, settled: Settled) {
        let message = Message::Settle(container.to_owned(), settled);
        drop(self.0.send(message).await);
    }
}

struct Task {
    sizing: Sizing,
    boot: Size,
    /// What the VM was last asked to have, without an error. What it has the VMM and the guest
    /// know.
    asked: Size,
    /// The guest's MemTotal with nothing plugged, in KiB.
    boot_kib: Option<u64>,
    ceiling: Ceiling,
    /// Its pid.
    vmm: i32,
    /// Where its vCPUs were last told to run.
    pinned: Option<CpuSet>,
    demands: Demands,
    control: Control,
    agent: Agent,
}

impl Task {
    async fn serve(mut self, mut queue: mpsc::Receiver<Message>) {
        let mut shrink_at = None;
        loop {
            let message = match shrink_at {
                Some(at) => timeout_at(at, queue.recv()).await,
                None => Ok(queue.recv().await),
            };
            match message {
                Ok(Some(Message::Fit(container, resources, done))) => {
                    self.demands.change(container, &resources);
                    self.fit(self.asked).await;
                    self.pin();
                    // Whoever asked may have given up.
                    done.send(()).ok();
                }
                Ok(Some(Message::Settle(container, settled))) => {
                    self.demands.settle(&container, settled);
                    self.pin();
                    shrink_at = Some(Instant::now() + SHRINK_DELAY);
                }
                Ok(None) => return,
                Err(_) => {
                    shrink_at = None;
                    self.fit(self.boot).await;
                }
            }
        }
    }

    /// Makes the VM as large as what the containers may use now, and at least as `least`.
    async fn fit(&mut self, least: Size) {
        let limits = (self.demands.limits(self.sizing.workload), self.sizing.pod());
        let wanted = self.ceiling.clamp(self.sizing.size(limits.0, limits.1));
        let vcpus = wanted.vcpus.max(least.vcpus);
        if vcpus != self.asked.vcpus {
            let there = self.resize_vcpus(vcpus).await;
            if report("vCPUs", self.asked.vcpus, vcpus, there) {
                self.asked.vcpus = vcpus;
            }
        }
        let least = match self.demands.has_unlimited() {
            true => self.asked,
            false => least,
        };
        let mib = wanted.memory_mib.max(least.memory_mib);
        if mib != self.asked.memory_mib {
            let there = self.resize_memory(mib).await;
            if report("MiB of RAM", self.asked.memory_mib, mib, there) {
                self.asked.memory_mib = mib;
            }
        }
    }

    /// Has the vCPUs, also those that were just made, run where the containers may.
    fn pin(&mut self) {
        let cpus = self.demands.cpus();
        if cpus.is_none() && self.pinned.is_none() {
            return;
        }
        self.pinned = cpus;
        if let Err(error) = pinning::pin(self.vmm, cpus.as_ref()) {
            let numbers = cpus.as_ref().map(pinning::numbers).unwrap_or_default();
            log::warn!(
                "the vCPUs cannot run on the host's CPUs {numbers:?}, which the containers' cpu.cpus name, and stay where they are: {error}"
            );
        }
    }

    /// The VMM keeps those that the guest takes offline; they cost next to nothing.
    async fn resize_vcpus(&self, wanted: u32) -> Result<u32, GrowthError> {
        let there = self.control.grow_vcpus(wanted).await?;
        Ok(self.agent.use_size(there.min(wanted), 0).await?.cpus)
    }

    /// The VMM tells what is plugged, the guest's MemTotal that it can be used.
    async fn resize_memory(&mut self, wanted: u32) -> Result<u32, GrowthError> {
        let boot_kib = match self.boot_kib {
            Some(kib) => kib,
            // Nothing was plugged yet.
            None => self.agent.use_size(0, 0).await?.memory_kib,
        };
        self.boot_kib = Some(boot_kib);
        let there = self.control.resize_memory(wanted).await?;
        // It may have more, which it is about to give back.
        let more = there.min(wanted).saturating_sub(self.boot.memory_mib);
        let total = boot_kib.saturating_add(u64::from(more) * 1024);
        let usable = self.agent.use_size(0, total).await?.memory_kib;
        if usable < total {
            let missing = total - usable;
            log::warn!("growth: {missing} KiB of RAM are plugged, but not in use yet");
        }
        Ok(there)
    }
}

/// Logs what the VM was asked to have, and what it has. `false` if it could not be asked.
fn report(what: &str, before: u32, wanted: u32, there: Result<u32, GrowthError>) -> bool {
    let asked = there.is_ok();
    match there {
        // Memory comes in blocks of 2 MiB.
        Ok(there) if there.saturating_add(1) < wanted => {
            log::warn!("growth: {wanted} {what} asked for, the guest took {there}");
        }
        Ok(there) => log::info!("growth: {wanted} {what} after {before}, {there} there now"),
        Err(error) => {
            let error = chain(&error);
            log::warn!("growth: {wanted} {what} asked for after {before}: {error}");
        }
    }
    asked
}
