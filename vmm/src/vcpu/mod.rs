//! Virtual processors: one thread each.
//!
//! Those the machine boots with are created before the first runs, further ones when they
//! are asked for: what does not exist costs nothing. KVM keeps all but the first waiting
//! until the guest's kernel starts them.

pub mod kick;
mod run;

use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;

use kvm_bindings::CpuId;
use kvm_ioctls::{VcpuFd, VmFd};
use thiserror::Error;
use vmm_sys_util::signal::Killable;

use crate::arch::msrs::MsrError;
use crate::arch::regs::RegsError;
use crate::arch::{cpuid, msrs, regs};
use crate::bus::Bus;
use crate::exit_latch::ExitLatch;
use kick::Kickable;

/// How long the threads get to leave the guest at the end. A thread that takes longer is
/// in a device waiting for the host, and ends with the process.
const STOP_TIMEOUT: Duration = Duration::from_secs(1);

/// Why the vCPUs could not be made to run.
#[derive(Debug, Error)]
pub enum VcpuError {
    /// An ioctl failed.
    #[error("KVM refused vCPU {id}: {what}")]
    Kvm {
        /// Number of the vCPU, from 0.
        id: u32,
        /// What was asked for.
        what: &'static str,
        /// What the ioctl said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// Registers could not be set.
    #[error("cannot set up the registers of a vCPU")]
    Regs(#[from] RegsError),
    /// Model specific registers could not be set.
    #[error("cannot set up the model specific registers of a vCPU")]
    Msrs(#[from] MsrError),
    /// The kick's signal handler could not be installed.
    #[error("cannot install the signal handler of the vCPU threads")]
    Signal(#[source] vmm_sys_util::errno::Error),
    /// More than the guest was told of.
    #[error("{wanted} vCPUs were asked for, the machine was built for {possible}")]
    TooMany {
        /// The number asked for.
        wanted: u32,
        /// The number in the MP table.
        possible: u32,
    },
    /// The machine is on its way out.
    #[error("the machine is ending")]
    Ending,
    /// The host refused a thread.
    #[error("cannot start the thread of vCPU {id}")]
    Thread {
        /// Number of the vCPU, from 0.
        id: u32,
        /// What the host said.
        #[source]
        source: std::io::Error,
    },
}

/// What vCPUs reach.
#[derive(Default)]
pub struct Buses {
    /// I/O ports.
    pub ports: Bus,
    /// Memory-mapped devices.
    pub mmio: Bus,
}

/// Tells vCPU threads to leave.
#[derive(Clone, Debug, Default)]
struct Stop(Arc<AtomicBool>);

impl Stop {
    fn set(&self) {
        self.0.store(true, Ordering::SeqCst);
    }

    fn is_set(&self) -> bool {
        self.0.load(Ordering::SeqCst)
    }
}

/// Makes vCPUs, all alike: the first will begin at [`set_entry`]'s address, the others when
/// the guest starts them.
pub struct VcpuMaker {
    vm: Arc<VmFd>,
    supported: CpuId,
    possible: u32,
}

impl VcpuMaker {
    /// For a machine whose MP table names `possible` vCPUs.
    pub fn new(vm: Arc<VmFd>, supported: CpuId, possible: u32) -> Self {
        Self {
            vm,
            supported,
            possible,
        }
    }

    /// A vCPU with processor features and registers set.
    pub fn make(&self, id: u32) -> Result<VcpuFd, VcpuError> {
        let vcpu = self.create(id)?;
        self.set_up(id, &vcpu)?;
        Ok(vcpu)
    }

    /// KVM takes a vCPU at any time, also while others run, and never gives it back: there can
    /// be no second one of that id (KVM API, 4.7).
    fn create(&self, id: u32) -> Result<VcpuFd, VcpuError> {
        let created = self.vm.create_vcpu(id.into());
        created.map_err(kvm_error(id, "creating it"))
    }

    fn set_up(&self, id: u32, vcpu: &VcpuFd) -> Result<(), VcpuError> {
        let mut features = self.supported.clone();
        cpuid::for_vcpu(&mut features, id, self.possible);
        // First: KVM checks what follows against it.
        vcpu.set_cpuid2(&features)
            .map_err(kvm_error(id, "its processor features (CPUID)"))?;
        msrs::set(vcpu)?;
        Ok(regs::set_any_cpu(vcpu)?)
    }
}

fn kvm_error(id: u32, what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> VcpuError {
    move |source| VcpuError::Kvm { id, what, source }
}

/// Makes the first vCPU begin at `entry`.
pub fn set_entry(vcpus: &[VcpuFd], entry: u64) -> Result<(), VcpuError> {
    if let Some(first) = vcpus.first() {
        regs::set_boot_cpu(first, entry)?;
    }
    Ok(())
}

/// Running vCPU threads; clones share them.
#[derive(Clone)]
pub struct VcpuThreads {
    maker: Arc<VcpuMaker>,
    buses: Arc<Buses>,
    latch: ExitLatch,
    stop: Stop,
    running: Arc<Mutex<Option<Running>>>,
}

/// The threads, until they are told to end.
struct Running {
    threads: Vec<JoinHandle<()>>,
    /// The next vCPU, if it was created but could not be set up.
    spare: Option<VcpuFd>,
    /// A clone is in each thread.
    alive: Sender<()>,
    /// Closed when the last thread has ended.
    ended: Receiver<()>,
}

/// A thread that waits for its vCPU.
struct Thread {
    handle: JoinHandle<()>,
    vcpu: Sender<VcpuFd>,
}

impl VcpuThreads {
    /// Starts a thread for each of `vcpus`; further ones are made by `maker`.
    pub fn start(
        vcpus: Vec<VcpuFd>,
        maker: VcpuMaker,
        buses: &Arc<Buses>,
        latch: &ExitLatch,
    ) -> Result<Self, VcpuError> {
        kick::install_handler().map_err(VcpuError::Signal)?;
        let (alive, ended) = channel();
        let mut running = Running {
            threads: Vec::new(),
            spare: None,
            alive,
            ended,
        };
        let all = Self {
            maker: Arc::new(maker),
            buses: buses.clone(),
            latch: latch.clone(),
            stop: Stop::default(),
            running: Arc::default(),
        };
        for vcpu in vcpus {
            let thread = all.spawn(&running)?;
            running.add(thread, vcpu);
        }
        *lock(&all.running) = Some(running);
        Ok(all)
    }

    /// Sees to it that there are at least `count` vCPUs; returns how many there are. The new
    /// ones wait for the guest to start them.
    ///
    /// # Errors
    /// See [`VcpuError`]. Those made before one that failed stay; asking again goes on there.
    pub fn grow(&self, count: u32) -> Result<u32, VcpuError> {
        let possible = self.maker.possible;
        if count > possible {
            return Err(VcpuError::TooMany {
                wanted: count,
                possible,
            });
        }
        let mut running = lock(&self.running);
        let running = running.as_mut().ok_or(VcpuError::Ending)?;
        while running.count() < count {
            // The thread first, which ends if it gets nothing: a vCPU is there for good.
            let thread = self.spawn(running)?;
            let vcpu = self.next(running)?;
            running.add(thread, vcpu);
        }
        Ok(running.count())
    }

    /// Takes all vCPUs out of the guest and waits, for a second at most, for their
    /// threads to end.
    pub fn stop(&self) {
        self.stop.set();
        let Some(running) = lock(&self.running).take() else {
            return;
        };
        for thread in &running.threads {
            if let Err(error) = thread.kill(kick::signal()) {
                // It has ended already.
                log::debug!("a vCPU thread was not there to be stopped: {error}");
            }
        }
        drop(running.alive);
        if running.ended.recv_timeout(STOP_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            log::warn!("a vCPU thread is still waiting for the host; leaving it behind");
        }
    }

    /// The next vCPU.
    fn next(&self, running: &mut Running) -> Result<VcpuFd, VcpuError> {
        let id = running.count();
        let vcpu = match running.spare.take() {
            Some(vcpu) => vcpu,
            None => self.maker.create(id)?,
        };
        match self.maker.set_up(id, &vcpu) {
            Ok(()) => Ok(vcpu),
            Err(error) => {
                running.spare = Some(vcpu);
                Err(error)
            }
        }
    }

    /// A thread for the next vCPU.
    fn spawn(&self, running: &Running) -> Result<Thread, VcpuError> {
        let id = running.count();
        let (buses, latch, stop) = (self.buses.clone(), self.latch.clone(), self.stop.clone());
        let alive = running.alive.clone();
        let (vcpu, given) = channel();
        let handle = std::thread::Builder::new()
            .name(format!("vcpu{id}"))
            .spawn(move || {
                if let Ok(vcpu) = given.recv() {
                    run::run(Kickable::new(vcpu), &buses, &latch, &stop);
                }
                drop(alive);
            })
            .map_err(|source| VcpuError::Thread { id, source })?;
        Ok(Thread { handle, vcpu })
    }
}

impl Running {
    fn add(&mut self, thread: Thread, vcpu: VcpuFd) {
        // It waits for it.
        thread.vcpu.send(vcpu).ok();
        self.threads.push(thread.handle);
    }

    fn count(&self) -> u32 {
        // No more than the MP table has ids for.
        self.threads.len() as u32
    }
}

fn lock(running: &Mutex<Option<Running>>) -> std::sync::MutexGuard<'_, Option<Running>> {
    running.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests;
