//! Virtual processors: one thread each.
//!
//! All are created before the first runs; KVM keeps those other than the first waiting
//! until the guest's kernel starts them.

pub mod kick;
mod run;

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
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

/// Creates `count` vCPUs with processor features and registers set; the first will begin
/// at [`set_entry`]'s address, the others when the guest starts them.
pub fn create(vm: &VmFd, supported: &CpuId, count: u32) -> Result<Vec<VcpuFd>, VcpuError> {
    (0..count)
        .map(|id| {
            let kvm_error = |what| move |source| VcpuError::Kvm { id, what, source };
            let vcpu = vm
                .create_vcpu(id.into())
                .map_err(kvm_error("creating it"))?;
            let mut features = supported.clone();
            cpuid::for_vcpu(&mut features, id, count);
            // First: KVM checks what follows against it.
            vcpu.set_cpuid2(&features)
                .map_err(kvm_error("its processor features (CPUID)"))?;
            msrs::set(&vcpu)?;
            regs::set_any_cpu(&vcpu)?;
            Ok(vcpu)
        })
        .collect()
}

/// Makes the first vCPU begin at `entry`.
pub fn set_entry(vcpus: &[VcpuFd], entry: u64) -> Result<(), VcpuError> {
    if let Some(first) = vcpus.first() {
        regs::set_boot_cpu(first, entry)?;
    }
    Ok(())
}

/// Running vCPU threads.
pub struct VcpuThreads {
    threads: Vec<JoinHandle<()>>,
    stop: Stop,
    /// Closed when the last thread has ended.
    ended: Receiver<()>,
}

impl VcpuThreads {
    /// Starts a thread for each vCPU.
    pub fn start(
        vcpus: Vec<VcpuFd>,
        buses: &Arc<Buses>,
        latch: &ExitLatch,
    ) -> Result<Self, VcpuError> {
        kick::install_handler().map_err(VcpuError::Signal)?;
        let (running, ended) = channel();
        let mut all = Self {
            threads: Vec::new(),
            stop: Stop::default(),
            ended,
        };
        for (id, vcpu) in (0..).zip(vcpus) {
            let thread = spawn(
                id,
                vcpu,
                &all.stop,
                buses.clone(),
                (latch.clone(), running.clone()),
            );
            all.threads
                .push(thread.map_err(|source| VcpuError::Thread { id, source })?);
        }
        Ok(all)
    }

    /// Takes all vCPUs out of the guest and waits, for a second at most, for their
    /// threads to end.
    pub fn stop(self) {
        self.stop.set();
        for thread in &self.threads {
            if let Err(error) = thread.kill(kick::signal()) {
                // It has ended already.
                log::debug!("a vCPU thread was not there to be stopped: {error}");
            }
        }
        if self.ended.recv_timeout(STOP_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            log::warn!("a vCPU thread is still waiting for the host; leaving it behind");
        }
    }
}

fn spawn(
    id: u32,
    vcpu: VcpuFd,
    stop: &Stop,
    buses: Arc<Buses>,
    (latch, running): (ExitLatch, Sender<()>),
) -> std::io::Result<JoinHandle<()>> {
    let stop = stop.clone();
    std::thread::Builder::new()
        .name(format!("vcpu{id}"))
        .spawn(move || {
            run::run(Kickable::new(vcpu), &buses, &latch, &stop);
            drop(running);
        })
}
