//! Stop 4 of twelve: boots the sandbox. Sizes the VM, makes its jail, clones the
//! VMM into its namespaces, hands it its `VmConfig` and waits until the agent
//! announces itself.
//!
//! On every failure the VMM dies with its handle, and clean-up follows the record
//! in `state.json`.

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read};
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::fs::{DirBuilderExt, OpenOptionsExt};
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use agent_protocol::{BELL_PORT, NONCE_KEY, SHARE_TAG};
use husk_vmm::config::{
    ConsoleConfig, KernelConfig, MAX_NICS, MacAddress, NetConfig, ShareConfig, Source, VmConfig,
    VsockConfig,
};
use thiserror::Error;
use tokio::sync::watch;
use tokio::task::JoinError;
use tokio::time::timeout;

use super::agent::{self, Agent, AgentError, BellError};
use super::cleanup::CleanupError;
use super::control::Control;
use super::growth::{Growth, Sizing};
use super::network::follow::{FollowError, Follower};
use super::network::{self, Network, NetworkError, Nic, forward};
use super::nics::Nics;
use super::oom_score;
use super::pod_cgroup::{self, Place};
use super::size::{Ceiling, Host, Size};
use super::state_file::{ProcessRef, StateFile};
use super::vmm_process::{self, Spawned, VmmEnd};
use super::vsock::Vsock;
use super::{Once, Sandbox};
use crate::config::{Config, ConfigError};
use crate::container::oci::{Spec, SpecError};
use crate::hooks::{HookError, HostHooks};
use crate::identity::{identity, identity_of};
use crate::mount::{self, MountError};
use crate::sys;

/// How long the guest may take from the VMM's start to its announcement. A boot
/// takes well under a second on silicon, and seconds on an emulated host.
const BOOT_DEADLINE: Duration = Duration::from_secs(60);
/// The guest's vsock context id; each VMM has a vsock world of its own.
const GUEST_CID: u32 = 3;
/// Silent unless it panics, then at once: the VMM keeps the text and sees the reset.
/// `swiotlb`: no device here needs bounce buffers, for which a guest with memory
/// above 4 GiB would set 64 MiB aside. `numdummies`: no link that the pod has not.
const CMDLINE: &str =
    "console=ttyS0 quiet loglevel=1 panic=-1 reboot=k swiotlb=noforce dummy.numdummies=0";

/// Why a sandbox did not come up.
#[derive(Debug, Error)]
pub enum BootError {
    /// A file of the installation is missing.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The spec asks for a network this host cannot give.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// No KVM.
    #[error(
        "/dev/kvm cannot be opened: is the kvm_intel or kvm_amd module loaded and virtualization enabled in the firmware?"
    )]
    Kvm(#[source] io::Error),
    /// The network namespace cannot be used.
    #[error("linux.namespaces: network namespace {path} {problem}")]
    Netns {
        /// Its path.
        path: PathBuf,
        /// What is wrong with it.
        problem: String,
    },
    /// The pod's cgroup cannot be used.
    #[error(
        "linux.cgroupsPath: cgroup {path} cannot be entered: is the pod's cgroup there, and without processes of its own?"
    )]
    Cgroup {
        /// Its directory.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The jail's mount.
    #[error(transparent)]
    Mount(#[from] MountError),
    /// A step on the host.
    #[error("cannot {step}")]
    Host {
        /// Which.
        step: &'static str,
        /// Why.
        source: io::Error,
    },
    /// A hook of the first container.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The pod's network.
    #[error(transparent)]
    Network(#[from] NetworkError),
    /// The guest's share of it.
    #[error(transparent)]
    Follow(#[from] FollowError),
    /// The VMM ended while booting.
    #[error("the virtual machine did not boot: {0}")]
    Ended(String),
    /// The guest stayed silent.
    #[error("the virtual machine did not announce itself within {} s", BOOT_DEADLINE.as_secs())]
    Deadline,
    /// The wrong guest announced itself.
    #[error(transparent)]
    Bell(#[from] BellError),
    /// The first call failed.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// What was left of an earlier attempt is in the way.
    #[error(transparent)]
    Leftover(#[from] CleanupError),
    /// The shim was told to end meanwhile.
    #[error("the sandbox was stopped while it was booting")]
    Cancelled,
}

fn host(step: &'static str) -> impl FnOnce(io::Error) -> BootError {
    move |source| BootError::Host { step, source }
}

/// Boots the sandbox of `spec`. The hooks of its first container run while the VMM
/// waits for its configuration: in the pod's network namespace, before there is a guest.
///
/// # Errors
/// See [`BootError`]. The caller then runs [`super::release`].
pub async fn boot(
    file: Arc<StateFile>,
    config: &Config,
    spec: &Spec,
    hooks: &HostHooks,
    cancelled: watch::Receiver<bool>,
) -> Result<Sandbox, BootError> {
    let place = spec.pod_place();
    let root = Path::new(pod_cgroup::ROOT);
    let sizing = Sizing {
        sandbox: file.id(),
        place: place.clone(),
        workload: spec.sandbox_limits(config.size_annotations)?,
        config: config.clone(),
        host: Host::read(),
    };
    let size = sizing.size(sizing.workload, sizing.pod());
    let ceiling = Ceiling::new(size, sizing.host);
    log::info!("booting: {} vCPU, {} MiB", size.vcpus, size.memory_mib);
    let files = Files::open(config)?;
    let netns_path = spec.network_namespace()?.map(Path::to_owned);
    let netns = netns_path.as_deref().map(open_netns).transpose()?;
    let (vmm, record) = (config.vmm.clone(), file.clone());
    let oom_score_adj = spec.oom_score_adj();
    let prepare = move || {
        if let Some(place) = &place {
            enter_pod_cgroup(place, root, &record)?;
        }
        let prepared = prepare(&vmm, &record, files, netns)?;
        oom_score::set(prepared.spawned.pid, oom_score_adj);
        Ok::<_, BootError>(prepared)
    };
    let prepared = tokio::task::spawn_blocking(prepare).await;
    let prepared = prepared.map_err(|error| host("start the VMM")(io::Error::other(error)))??;
    let Prepared {
        spawned,
        files,
        vsock,
        bell,
        listener,
    } = prepared;

    let (configure, control, watch) = spawned.into_parts();
    let vmm = watch().map_err(host("watch the VMM"))?;
    let control = Control::start(control).map_err(host("use the control socket"))?;
    let pid = vmm.pid().unsigned_abs();
    let ran = async { Ok(hooks.create(&file, pid).await?) };
    unless_over(ran, vmm.gone(), cancelled.clone()).await?;
    let (nics, network) = connect_network(file.clone(), pid, netns_path, config).await?;
    let nonce = nonce().map_err(host("read random bytes"))?;
    let document = VmConfig {
        net: nics.iter().enumerate().map(net_config).collect(),
        ..vm_config(size, ceiling, config, &files, &listener, &nonce)
    };
    let json = serde_json::to_vec(&document).map_err(|e| host("write the VmConfig")(e.into()))?;
    let taps: Vec<&OwnedFd> = nics.iter().map(|nic| &nic.tap).collect();
    vmm_process::configure(configure, &json, &taps).map_err(host("write the VmConfig"))?;
    // The VMM alone has the taps now, and with its end they are gone.
    drop((nics, files, listener));
    let network = tokio::task::spawn_blocking(|| network.with_parameters());

    let bell = listen(bell).map_err(host("wait for the agent"))?;
    let rung = wait_for_agent(&bell, &nonce);
    unless_over(rung, vmm.gone(), cancelled).await?;
    crate::log::timeline("agent_announced");
    // Nobody may ring again: from here on containers share the guest with the agent.
    drop(bell);
    fs::remove_file(vsock.path(&bell_name())).map_err(host("close the bell"))?;
    let agent = Agent::connect(&vsock, vmm.gone()).await?;
    let mut network = connected(network.await)?;
    if let Some(loopback) = network.loopback.take() {
        let started = forward::start(loopback, vsock.clone(), vmm.gone());
        started.map_err(host("serve the pod's loopback"))?;
    }
    let slots = Nics::new(network.redirects.len(), control.clone(), agent.clone());
    let network = Follower::start(network, slots, agent.clone(), vmm.gone()).await?;
    let growth = Growth::start(sizing, size, vmm.pid(), control.clone(), agent.clone());
    Ok(Sandbox {
        file,
        agent,
        vsock,
        control,
        growth,
        network,
        vmm,
        vm_end: Once::new(),
        stop: Once::new(),
    })
}

/// Reads the pod's network namespace, which the hooks have made what it is, and makes the taps.
async fn connect_network(
    file: Arc<StateFile>,
    vmm: u32,
    name: Option<PathBuf>,
    config: &Config,
) -> Result<(Vec<Nic>, Network), BootError> {
    let own = PathBuf::from(format!("/proc/{vmm}/ns/net"));
    let config = config.clone();
    let connect = move || network::connect(file, &own, name, &config);
    connected(tokio::task::spawn_blocking(connect).await)
}

fn connected<T>(done: Result<Result<T, NetworkError>, JoinError>) -> Result<T, BootError> {
    let done = done.map_err(|error| host("connect the network")(io::Error::other(error)))?;
    Ok(done?)
}

fn listen(bell: UnixListener) -> io::Result<tokio::net::UnixListener> {
    bell.set_nonblocking(true)?;
    tokio::net::UnixListener::from_std(bell)
}

/// Waits until the agent announced itself.
async fn wait_for_agent(bell: &tokio::net::UnixListener, nonce: &str) -> Result<(), BootError> {
    match timeout(BOOT_DEADLINE, agent::answer_bell(bell, nonce)).await {
        Ok(rung) => Ok(rung?),
        Err(_) => Err(BootError::Deadline),
    }
}

/// A step of the boot, unless the boot is over before the step is.
async fn unless_over(
    step: impl Future<Output = Result<(), BootError>>,
    mut gone: watch::Receiver<Option<VmmEnd>>,
    mut cancelled: watch::Receiver<bool>,
) -> Result<(), BootError> {
    tokio::select! {
        done = step => done,
        end = vmm_process::end(&mut gone) => Err(BootError::Ended(end.reason)),
        _ = cancelled.wait_for(|cancelled| *cancelled) => Err(BootError::Cancelled),
    }
}

fn bell_name() -> String {
    format!("vsock_{BELL_PORT}")
}

/// The files of the installation, opened for the VMM.
struct Files {
    kvm: OwnedFd,
    kernel: OwnedFd,
    initramfs: OwnedFd,
}

impl Files {
    fn open(config: &Config) -> Result<Self, BootError> {
        let open = |key, file: &Path| match File::open(file) {
            Ok(opened) => Ok(OwnedFd::from(opened)),
            Err(source) => Err(ConfigError::File {
                key,
                file: file.to_owned(),
                source,
            }),
        };
        open("vmm", &config.vmm)?;
        let kvm = OpenOptions::new().read(true).write(true).open("/dev/kvm");
        Ok(Self {
            kernel: open("kernel", &config.kernel)?,
            initramfs: open("initramfs", &config.initramfs)?,
            kvm: kvm.map_err(BootError::Kvm)?.into(),
        })
    }
}

/// Opens the pod's network namespace and makes sure that it is one, and not the host's.
fn open_netns(path: &Path) -> Result<OwnedFd, BootError> {
    let wrong = |problem: String| BootError::Netns {
        path: path.to_owned(),
        problem,
    };
    // O_NONBLOCK: should the path name a fifo, this must not hang.
    let open = OpenOptions::new()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open(path);
    let netns = open.map_err(|error| wrong(format!("cannot be opened: {error}")))?;
    if !sys::namespace_kind(netns.as_fd()).is_ok_and(|kind| kind == libc::CLONE_NEWNET) {
        return Err(wrong("is not a network namespace".to_owned()));
    }
    let own = Path::new("/proc/self/ns/net");
    if netns.metadata().ok().as_ref().map(identity) == identity_of(own) {
        let problem = "is the host's: a virtual machine has a network of its own";
        return Err(wrong(problem.to_owned()));
    }
    Ok(netns.into())
}

/// Moves the shim to where the pod's processes are counted and limited; the VMM follows as its
/// child.
fn enter_pod_cgroup(place: &Place, root: &Path, file: &StateFile) -> Result<(), BootError> {
    oom_score::protect_shim();
    let own = fs::read_to_string("/proc/self/cgroup").map_err(host("find the shim's cgroup"))?;
    let leaves = place.leaves(root, &own);
    file.record(|state| state.cgroups.clone_from(&leaves))
        .map_err(host("record the pod's cgroup"))?;
    for leaf in leaves {
        leaf.enter().map_err(|source| BootError::Cgroup {
            path: leaf.path.clone(),
            source,
        })?;
    }
    Ok(())
}

/// What exists once the VMM waits for its configuration.
struct Prepared {
    spawned: Spawned,
    files: Files,
    vsock: Vsock,
    bell: UnixListener,
    listener: OwnedFd,
}

/// The steps that block: directories, mounts, sockets, clone.
fn prepare(
    vmm: &Path,
    file: &StateFile,
    files: Files,
    netns: Option<OwnedFd>,
) -> Result<Prepared, BootError> {
    let jail = make_jail(file)?;
    let mut dir = OpenOptions::new();
    dir.read(true)
        .custom_flags(libc::O_PATH | libc::O_DIRECTORY);
    let dir = dir.open(&jail).map_err(host("open the jail"))?;
    let vsock = Vsock::new(dir.into());
    let bind = |name: &str| UnixListener::bind(vsock.path(name));
    let listener = bind("vsock").map_err(host("bind the vsock socket"))?.into();
    let bell = bind(&bell_name()).map_err(host("bind the bell's socket"))?;
    let inherit = [&files.kvm, &files.kernel, &files.initramfs, &listener];
    let spawned = vmm_process::spawn(vmm, &jail, &inherit, netns).map_err(host("start the VMM"))?;
    let vmm = ProcessRef::of(spawned.pid);
    file.record(|state| state.vmm = vmm)
        .map_err(host("record the VMM"))?;
    Ok(Prepared {
        spawned,
        files,
        vsock,
        bell,
        listener,
    })
}

/// Makes the VMM's root: the share, a mount of its own whose later mounts reach the
/// VMM's namespace, and a place for the VMM's proc.
fn make_jail(file: &StateFile) -> Result<PathBuf, BootError> {
    let jail = file.jail();
    super::cleanup::remove_tree(file.dir(), &jail)?;
    let mut builder = fs::DirBuilder::new();
    builder.mode(0o700);
    let share = jail.join("share");
    for dir in [&jail, &share, &jail.join("proc")] {
        builder.create(dir).map_err(host("make the jail"))?;
    }
    file.record(|state| state.mounts.push(share.clone()))
        .map_err(host("record the jail"))?;
    mount::make_shared_root(&share)?;
    Ok(jail)
}

fn vm_config(
    size: Size,
    Ceiling(most): Ceiling,
    config: &Config,
    files: &Files,
    listener: &OwnedFd,
    nonce: &str,
) -> VmConfig {
    let extra = config.kernel_params.trim();
    let cmdline = format!("{CMDLINE} {NONCE_KEY}={nonce} {extra}");
    let fd = |fd: &OwnedFd| Source::Fd(fd.as_raw_fd());
    VmConfig {
        vcpus: size.vcpus,
        max_vcpus: Some(most.vcpus),
        memory_mib: size.memory_mib,
        max_memory_mib: Some(most.memory_mib),
        kernel: KernelConfig {
            image: fd(&files.kernel),
            initramfs: Some(fd(&files.initramfs)),
            cmdline: cmdline.trim_end().to_owned(),
        },
        kvm: fd(&files.kvm),
        console: ConsoleConfig::Ring,
        vsock: Some(VsockConfig {
            cid: GUEST_CID,
            listener: fd(listener),
            guest_connect: "/vsock".into(),
        }),
        share: Some(ShareConfig {
            tag: SHARE_TAG.to_owned(),
            root: "/share".into(),
            exports: Vec::new(),
        }),
        net: Vec::new(),
        nic_slots: Some(MAX_NICS),
    }
}

/// The taps come with the document, in the order of the devices.
fn net_config((received, nic): (usize, &Nic)) -> NetConfig {
    NetConfig {
        tap: Source::Received { received },
        mac: MacAddress(nic.mac),
        mtu: nic.mtu,
    }
}

/// 32 random hex digits.
fn nonce() -> io::Result<String> {
    let mut bytes = [0; 16];
    File::open("/dev/urandom")?.read_exact(&mut bytes)?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_vm_config_is_one_the_vmm_accepts() {
        let null = || OwnedFd::from(File::open("/dev/null").unwrap());
        let files = Files {
            kvm: null(),
            kernel: null(),
            initramfs: null(),
        };
        let config = Config {
            kernel_params: "mitigations=off".to_owned(),
            ..Config::default()
        };
        let size = Size {
            vcpus: 1,
            memory_mib: 64,
        };
        let nonce = nonce().unwrap();
        let most = Size {
            vcpus: 4,
            memory_mib: 4096,
        };
        let nics = [1, 2].map(|last| Nic {
            tap: null(),
            mac: [2, 0, 0, 0, 0, last],
            mtu: 1450,
        });
        let document = VmConfig {
            net: nics.iter().enumerate().map(net_config).collect(),
            ..vm_config(size, Ceiling(most), &config, &files, &null(), &nonce)
        };
        let json = serde_json::to_vec(&document).unwrap();
        assert_eq!(VmConfig::from_json(&json).unwrap(), document);
        let cmdline = document.kernel.cmdline;
        assert!(
            cmdline.ends_with(&format!("husk.nonce={nonce} mitigations=off")),
            "{cmdline}"
        );
    }

    #[test]
    fn the_hosts_network_is_refused_and_so_is_a_plain_file() {
        let problem = |path: &str| match open_netns(Path::new(path)) {
            Err(BootError::Netns { problem, .. }) => problem,
            other => panic!("{path} gave {other:?}"),
        };
        assert!(problem("/proc/self/ns/net").starts_with("is the host's"));
        assert_eq!(problem("/proc/self/ns/uts"), "is not a network namespace");
        assert_eq!(problem("/etc/hostname"), "is not a network namespace");
        assert!(problem("/nonexistent").starts_with("cannot be opened"));
    }
}
