//! Stop 5 of twelve: the machine, how it is built, how it runs, how it ends.
//! [`Vm::build`] is the recipe; it reads from top to bottom in the order in which things
//! must happen.

use std::sync::{Arc, Mutex};

use kvm_ioctls::{Kvm, VcpuFd, VmFd};
use log::{error, info};
use thiserror::Error;

use crate::arch::boot::{self, BootError, BootSource};
use crate::arch::mptable::{self, MpTableError};
use crate::arch::regs::{self, RegsError};
use crate::arch::{cpuid, layout};
use crate::bus::BusOverlap;
use crate::config::{ConsoleConfig, VmConfig};
use crate::control_thread::{self, ControlError, Controls};
use crate::devices::debug_port::{self, DebugPort};
use crate::devices::i8042::{self, I8042};
use crate::devices::serial::{self, ConsoleInput, ConsoleRing, RawTerminal, SerialConsole};
use crate::devices::virtio::VirtioDevice;
use crate::devices::virtio::balloon::Balloon;
use crate::devices::virtio::fs::{Fs, FsError, ShareControl};
use crate::devices::virtio::mem::{Mem, MemControl, SECTION_SIZE};
use crate::devices::virtio::rng::Rng;
use crate::devices::virtio::vsock::Vsock;
use crate::event_loop::{EventLoop, LoopError};
use crate::exit::Exit;
use crate::exit_latch::ExitLatch;
use crate::growth::Growth;
use crate::irq::{self, IrqError};
use crate::log::{chain, timeline};
use crate::memory::{self, GuestMemory, Hotplug, MemoryError};
use crate::opener::Resources;
use crate::slots::{NicSlots, SlotError, VirtioBus};
use crate::vcpu::{self, Buses, VcpuError, VcpuMaker, VcpuThreads};

/// The one version of the KVM API there is (KVM API, 4.1).
const KVM_API_VERSION: i32 = 12;
/// How often KVM_CREATE_VM is repeated when a signal interrupts it.
const CREATE_VM_ATTEMPTS: u32 = 100;
/// How much of the console goes to the log when the machine did not end cleanly.
const LOGGED_CONSOLE_LINES: usize = 60;

/// Why a machine could not be built.
#[derive(Debug, Error)]
pub enum BuildError {
    /// The descriptor is not KVM's, or of another age.
    #[error("the KVM device does not answer as KVM does (API version {0}, must be 12)")]
    NotKvm(i32),
    /// An ioctl failed.
    #[error("KVM refused {what}")]
    Kvm {
        /// What was asked for.
        what: &'static str,
        /// What the ioctl said.
        #[source]
        source: kvm_ioctls::Error,
    },
    /// An eventfd or a copy of a descriptor could not be made.
    #[error("the host refused a descriptor")]
    Descriptor(#[from] std::io::Error),
    /// See [`LoopError`].
    #[error("cannot create the event loop")]
    Loop(#[from] LoopError),
    /// See [`MemoryError`].
    #[error("cannot set up guest RAM")]
    Memory(#[from] MemoryError),
    /// See [`IrqError`].
    #[error("cannot set up interrupts")]
    Irq(#[from] IrqError),
    /// Two devices at one address: an error in `layout`.
    #[error("cannot place a device")]
    Bus(#[from] BusOverlap),
    /// See [`SlotError`].
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// See [`FsError`].
    #[error("cannot build the virtio-fs device")]
    Fs(#[from] FsError),
    /// See [`VcpuError`].
    #[error("cannot set up the vCPUs")]
    Vcpu(#[from] VcpuError),
    /// See [`BootError`].
    #[error("cannot boot the guest")]
    Boot(#[from] BootError),
    /// See [`RegsError`].
    #[error("cannot boot the guest")]
    Tables(#[from] RegsError),
    /// See [`MpTableError`].
    #[error("cannot boot the guest")]
    MpTable(#[from] MpTableError),
}

/// Why a machine could not be run.
#[derive(Debug, Error)]
pub enum RunError {
    /// See [`VcpuError`].
    #[error("cannot start the vCPUs")]
    Vcpu(#[from] VcpuError),
    /// See [`ControlError`].
    #[error(transparent)]
    Control(#[from] ControlError),
    /// See [`LoopError`].
    #[error(transparent)]
    Loop(#[from] LoopError),
}

/// A machine ready to run.
///
/// Fields are dropped in this order: guest RAM goes last, when no vCPU, device or slot of
/// KVM's refers to it any more.
pub struct Vm {
    vcpus: Vec<VcpuFd>,
    maker: VcpuMaker,
    buses: Arc<Buses>,
    event_loop: EventLoop,
    latch: ExitLatch,
    console: ConsoleRing,
    share: Option<ShareControl>,
    plugged: Option<MemControl>,
    nics: NicSlots,
    boot_mib: u32,
    terminal: Option<RawTerminal>,
    _memory: GuestMemory,
}

impl Vm {
    /// Builds the machine that `config` describes; every file it names is open in
    /// `resources`.
    pub fn build(config: &VmConfig, mut resources: Resources) -> Result<Self, BuildError> {
        let latch = ExitLatch::new()?;
        let mut event_loop = EventLoop::new()?;
        event_loop.add(Box::new(latch.clone()));

        let vm = Arc::new(create_vm(&resources.kvm)?);
        timeline("vm_created");
        let ram = memory::allocate(config.memory_mib)?;
        memory::register(&vm, &ram)?;
        let hotplug = reserve(config, &vm, &ram);
        let memory = hotplug.as_ref().map_or(&ram, Hotplug::memory).clone();
        irq::create_controllers(&vm)?;

        let mut buses = Buses::default();
        let console = ConsoleRing::default();
        let terminal = add_console(&vm, &mut buses, &mut event_loop, config, &console, &latch)?;
        add_port_devices(&mut buses, &latch)?;
        let fs = config.share.as_ref().map(Fs::new).transpose()?;
        let share = fs.as_ref().map(Fs::control);
        let mem = hotplug.map(|hotplug| Mem::new(hotplug, event_loop.handle()));
        let plugged = mem.as_ref().map(Mem::control);
        let devices = virtio_devices(config, &mut resources, fs, mem, &event_loop);
        let mut bus = VirtioBus::new(&vm, &mut buses.mmio, &memory);
        for (number, device) in (config.possible_nics()..).zip(devices) {
            bus.add(number, device)?;
        }
        let nics = bus.add_nic_slots(config.possible_nics(), event_loop.handle())?;
        let slots = bus.announced();
        for ((number, net), tap) in (0..).zip(&config.net).zip(resources.taps) {
            nics.plug(number, tap, net.mac, net.mtu)?;
        }

        let supported = cpuid::supported(&resources.kvm)
            .map_err(kvm_error("the list of processor features (CPUID)"))?;
        let possible = config.possible_vcpus();
        let maker = VcpuMaker::new(vm, supported, possible);
        let vcpus: Vec<_> = (0..config.vcpus)
            .map(|id| maker.make(id))
            .collect::<Result<_, _>>()?;

        let boot_cpus = (possible > config.vcpus).then_some(config.vcpus);
        let cmdline = boot::cmdline(&config.kernel.cmdline, boot_cpus, &slots)?;
        let source = BootSource {
            kernel: &mut resources.kernel,
            initramfs: resources.initramfs.as_mut(),
            cmdline: &cmdline,
        };
        let entry = boot::load(&ram, source)?;
        regs::write_tables(&ram)?;
        mptable::write(&ram, possible)?;
        vcpu::set_entry(&vcpus, entry)?;

        Ok(Self {
            vcpus,
            maker,
            buses: Arc::new(buses),
            event_loop,
            latch,
            console,
            share,
            plugged,
            nics,
            boot_mib: config.memory_mib,
            terminal,
            _memory: memory,
        })
    }

    /// Runs the machine to its end. All threads started from here on have the calling
    /// thread's capabilities.
    ///
    /// `control` is the VMM's end of the control socket, if there is one.
    pub fn run(mut self, control: Option<std::os::fd::OwnedFd>) -> Result<Exit, RunError> {
        timeline("kernel_entered");
        let vcpus = std::mem::take(&mut self.vcpus);
        let threads = VcpuThreads::start(vcpus, self.maker, &self.buses, &self.latch)?;
        if let Some(socket) = control {
            let growth = Growth::new(threads.clone(), self.boot_mib, self.plugged.take());
            let controls = Controls {
                share: self.share.take(),
                growth: Some(growth),
                nics: Some(self.nics),
            };
            control_thread::start(socket, controls, self.latch.clone(), &mut self.event_loop)?;
        }
        let exit = loop {
            if let Some(exit) = self.latch.exit() {
                break exit;
            }
            self.event_loop.run_once()?;
        };
        // First the loop: a vCPU may be waiting for it.
        drop(self.event_loop);
        threads.stop();
        drop(self.terminal);
        let exit = verdict(exit, &self.console);
        report(exit, &self.console);
        // Not the rest: a thread that waits for the host may still use it. The process
        // ends now anyway.
        std::mem::forget((self.buses, threads, self._memory));
        Ok(exit)
    }
}

fn kvm_error(what: &'static str) -> impl FnOnce(kvm_ioctls::Error) -> BuildError {
    move |source| BuildError::Kvm { what, source }
}

/// KVM_CREATE_VM, which a signal can interrupt on a loaded host.
fn create_vm(kvm: &Kvm) -> Result<VmFd, BuildError> {
    let version = kvm.get_api_version();
    if version != KVM_API_VERSION {
        return Err(BuildError::NotKvm(version));
    }
    let mut attempts = 0;
    loop {
        attempts += 1;
        match kvm.create_vm() {
            Err(error) if error.errno() == libc::EINTR && attempts < CREATE_VM_ATTEMPTS => {}
            result => return result.map_err(kvm_error("to create a virtual machine")),
        }
    }
}

fn add_console(
    vm: &VmFd,
    buses: &mut Buses,
    event_loop: &mut EventLoop,
    config: &VmConfig,
    ring: &ConsoleRing,
    latch: &ExitLatch,
) -> Result<Option<RawTerminal>, BuildError> {
    let stdio = config.console == ConsoleConfig::Stdio;
    let console = SerialConsole::new(ring.clone(), stdio)?;
    irq::connect(vm, console.irqfd(), layout::SERIAL_GSI)?;
    let console = Arc::new(Mutex::new(console));
    buses
        .ports
        .insert(serial::BASE, serial::SIZE, console.clone())?;
    if !stdio {
        return Ok(None);
    }
    event_loop.add(Box::new(ConsoleInput::new(console, latch.clone())?));
    Ok(RawTerminal::enter())
}

fn add_port_devices(buses: &mut Buses, latch: &ExitLatch) -> Result<(), BusOverlap> {
    let ports = &mut buses.ports;
    let controller = Arc::new(Mutex::new(I8042::new(latch.clone())));
    ports.insert(i8042::BASE, i8042::SIZE, controller)?;
    let debug_port = Arc::new(Mutex::new(DebugPort::new(latch.clone())));
    ports.insert(debug_port::BASE, debug_port::SIZE, debug_port)
}

/// Room for the memory that may be plugged later. Without it the machine stays as large as
/// it is, which is no reason not to start it.
fn reserve(config: &VmConfig, vm: &Arc<VmFd>, ram: &GuestMemory) -> Option<Hotplug> {
    let more = config.possible_memory_mib() - config.memory_mib;
    let size = Mem::region_for(u64::from(more) << 20);
    if size == 0 {
        return None;
    }
    Hotplug::reserve(vm.clone(), ram, size, SECTION_SIZE)
        .inspect_err(|error| log::warn!("this VM's memory cannot grow: {}", chain(error)))
        .ok()
}

/// The virtio devices `config` asks for besides those of the network, in the order of their
/// slots.
fn virtio_devices(
    config: &VmConfig,
    resources: &mut Resources,
    fs: Option<Fs>,
    mem: Option<Mem>,
    event_loop: &EventLoop,
) -> Vec<Box<dyn VirtioDevice>> {
    let mut devices: Vec<Box<dyn VirtioDevice>> = vec![
        Box::new(Rng::new(event_loop.handle())),
        Box::new(Balloon::new(event_loop.handle())),
    ];
    if let (Some(vsock), Some(listener)) = (&config.vsock, resources.vsock_listener.take()) {
        let target = vsock.guest_connect.clone();
        let handle = event_loop.handle();
        devices.push(Box::new(Vsock::new(vsock.cid, listener, target, handle)));
    }
    if let Some(fs) = fs {
        devices.push(Box::new(fs));
    }
    if let Some(mem) = mem {
        devices.push(Box::new(mem));
    }
    devices
}

/// A kernel that panics resets the machine; what it printed before tells the two apart.
fn verdict(exit: Exit, console: &ConsoleRing) -> Exit {
    if exit == Exit::Reset && console.shows_panic() {
        Exit::Panic
    } else {
        exit
    }
}

/// Says how the machine ended; for one that died, with its last words.
fn report(exit: Exit, console: &ConsoleRing) {
    if matches!(exit, Exit::Clean | Exit::Stopped) {
        info!("{}", exit.describe());
        return;
    }
    error!("{}; the console's last lines follow", exit.describe());
    for line in console.last_lines(LOGGED_CONSOLE_LINES) {
        error!("console: {line}");
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_reset_after_the_panic_message_is_a_panic() {
        use crate::bus::BusDevice;
        let quiet = ConsoleRing::default();
        assert_eq!(verdict(Exit::Reset, &quiet), Exit::Reset);
        let ring = ConsoleRing::default();
        let mut console = SerialConsole::new(ring.clone(), false).unwrap();
        for byte in b"Kernel panic - not syncing: VFS\r\n" {
            console.write(0, &[*byte]);
        }
        assert_eq!(verdict(Exit::Reset, &ring), Exit::Panic);
        assert_eq!(verdict(Exit::Clean, &ring), Exit::Clean);
        assert_eq!(verdict(Exit::TripleFault, &ring), Exit::TripleFault);
    }
}
