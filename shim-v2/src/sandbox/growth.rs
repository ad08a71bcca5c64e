//! Growth: the VM is made larger when its containers may use more, together, than it was
//! booted for.
//!
//! A task owns what the containers ask for and how large the VM is, so that two who ask at
//! once do so one after the other, without a lock. A growth that cannot be had is a warning
//! and the container runs with what there is.

use std::path::Path;

use thiserror::Error;
use tokio::sync::{mpsc, oneshot};

use super::agent::{Agent, AgentError};
use super::control::{Control, ControlError};
use super::demand::{Demand, Demands};
use super::pod_cgroup::{self, Place};
use super::size::{self, Ceiling, Host, Size};
use crate::config::Config;
use crate::container::oci::Resources;
use crate::container::pod::Limits;
use crate::error::chain;

/// How the size of a VM is found: what was known when it booted.
#[derive(Clone, Debug)]
pub struct Sizing {
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

/// Why the VM did not grow.
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
    /// Make room for a container and answer what it asked for before.
    Fit(String, Resources, oneshot::Sender<Option<Demand>>),
    /// A container asks for this, and the VM keeps its size.
    Set(String, Option<Demand>),
}

impl Growth {
    /// Starts the task for a VM that has `now` and can have up to `ceiling`.
    pub fn start(
        sizing: Sizing,
        now: Size,
        ceiling: Ceiling,
        control: Control,
        agent: Agent,
    ) -> Self {
        let (messages, queue) = mpsc::channel(16);
        let fitted = (Demands::default().limits(sizing.workload), sizing.pod());
        let task = Task {
            sizing,
            now,
            ceiling,
            fitted,
            demands: Demands::default(),
            control,
            agent,
        };
        tokio::spawn(task.serve(queue));
        Self(messages)
    }

    /// Makes room for a container that is to have `resources`, as far as they are named.
    /// Returns when the guest has it, with what the container asked for before.
    pub async fn fit(&self, container: &str, resources: Resources) -> Option<Demand> {
        let (done, answer) = oneshot::channel();
        let message = Message::Fit(container.to_owned(), resources, done);
        // The task ends with the last handle, so it is there.
        drop(self.0.send(message).await);
        answer.await.ok().flatten()
    }

    /// Takes back what a container asked for; `None` if it is gone.
    pub async fn set(&self, container: &str, demand: Option<Demand>) {
        let message = Message::Set(container.to_owned(), demand);
        drop(self.0.send(message).await);
    }
}

struct Task {
    sizing: Sizing,
    now: Size,
    ceiling: Ceiling,
    /// The limits, the pod's among them, that `now` answers.
    fitted: (Limits, Limits),
    demands: Demands,
    control: Control,
    agent: Agent,
}

impl Task {
    async fn serve(mut self, mut queue: mpsc::Receiver<Message>) {
        while let Some(message) = queue.recv().await {
            match message {
                Message::Fit(container, resources, done) => {
                    let before = self.demands.get(&container);
                    let demand = before.unwrap_or_default().changed_by(&resources);
                    self.demands.set(container, Some(demand));
                    self.fit().await;
                    // Whoever asked may have given up.
                    done.send(before).ok();
                }
                Message::Set(container, demand) => self.demands.set(container, demand),
            }
        }
    }

    /// Grows the VM to what the containers may use now.
    async fn fit(&mut self) {
        let limits = (self.demands.limits(self.sizing.workload), self.sizing.pod());
        if limits == self.fitted {
            return;
        }
        self.fitted = limits;
        let wanted = self.ceiling.clamp(self.sizing.size(limits.0, limits.1));
        if wanted.vcpus > self.now.vcpus {
            let grown = self.add_vcpus(wanted.vcpus).await;
            self.report("vCPUs", wanted.vcpus, grown, |now| &mut now.vcpus);
        }
        if wanted.memory_mib > self.now.memory_mib {
            let grown = self.add_memory(wanted.memory_mib).await;
            self.report("MiB of RAM", wanted.memory_mib, grown, |now| {
                &mut now.memory_mib
            });
        }
    }

    async fn add_vcpus(&self, wanted: u32) -> Result<u32, GrowthError> {
        let there = self.control.grow_vcpus(wanted).await?;
        let online = self.agent.use_size(there, 0).await?.cpus;
        Ok(online.min(there))
    }

    /// The VMM tells what was plugged, the guest's MemTotal that it can be used.
    async fn add_memory(&self, wanted: u32) -> Result<u32, GrowthError> {
        let kib = |mib: u32| u64::from(mib) * 1024;
        let before = self.agent.use_size(0, 0).await?.memory_kib;
        let there = self.control.resize_memory(wanted).await?;
        let more = kib(there.saturating_sub(self.now.memory_mib));
        let usable = self.agent.use_size(0, before.saturating_add(more)).await?;
        let missing = more.saturating_sub(usable.memory_kib.saturating_sub(before));
        if missing > 0 {
            log::warn!("growth: {missing} KiB of RAM are plugged, but not in use yet");
        }
        Ok(there)
    }

    /// Notes and logs what became of a growth.
    fn report(
        &mut self,
        what: &str,
        wanted: u32,
        grown: Result<u32, GrowthError>,
        field: fn(&mut Size) -> &mut u32,
    ) {
        let now = field(&mut self.now);
        match grown {
            Ok(there) => {
                // Memory comes in blocks of 2 MiB.
                if there.saturating_add(1) < wanted {
                    log::warn!("growth: {wanted} {what} asked for, the guest took {there}");
                } else {
                    log::info!("growth: {there} {what}, {now} before");
                }
                *now = there;
            }
            Err(error) => {
                let error = chain(&error);
                log::warn!("growth: still {now} {what}, {wanted} asked for: {error}");
            }
        }
    }
}
