//! Stop 5 of twelve: `husk-vmm`, one virtual machine from its configuration to its exit
//! code. The shim starts this program in the pod's namespaces; it enters its jail, reads
//! its configuration, follows the build recipe (`vm.rs`) and runs.

use std::fs::File;
use std::os::fd::{OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use husk_vmm::args::{self, Args, ArgsError};
use husk_vmm::config::{ConfigError, VmConfig};
use husk_vmm::exit::{self, Exit};
use husk_vmm::jail::{self, JailError};
use husk_vmm::log::chain;
use husk_vmm::opener::{Descriptors, OpenError, Paths, Resources};
use husk_vmm::slots::SlotError;
use husk_vmm::vm::{BuildError, RunError, Vm};
use thiserror::Error;

fn main() -> ExitCode {
    let result = match args::parse(std::env::args_os().skip(1)) {
        Ok(Args::ByHand { config }) => run_by_hand(&config),
        Ok(Args::Jailed {
            jail,
            config,
            control,
            log,
        }) => run_jailed(&jail, config, control, log),
        Ok(Args::Help) => {
            println!("{}", args::USAGE);
            return ExitCode::SUCCESS;
        }
        Err(error) => Err(error.into()),
    };
    let exit = result.unwrap_or_else(|error| {
        report(&error);
        error.exit()
    });
    // At once: a thread that waits for the host ends with the process, not before it.
    std::process::exit(exit as i32)
}

fn run_by_hand(config: &Path) -> Result<Exit, Error> {
    let stderr = std::io::stderr();
    start_log(nix::unistd::dup(stderr).map_err(std::io::Error::from)?);
    let json = std::fs::read(config).map_err(|source| Error::ConfigFile {
        path: config.to_owned(),
        source,
    })?;
    let config = VmConfig::from_json(&json)?;
    let resources = Resources::open(&config, Paths::Open, &mut Descriptors::default())?;
    Ok(Vm::build(&config, resources)?.run(None)?)
}

fn run_jailed(jail: &Path, config: RawFd, control: RawFd, log: RawFd) -> Result<Exit, Error> {
    let mut descriptors = Descriptors::default();
    start_log(descriptors.take(log, "the log")?);
    exit::stop_on_sigterm().map_err(Error::Signal)?;
    let config = descriptors.take(config, "the configuration")?;
    let control = descriptors.take(control, "the control socket")?;

    jail::enter(jail)?;

    let json = descriptors.read_document(config).map_err(Error::ConfigFd)?;
    let config = VmConfig::from_json(&json)?;
    jail::limit_open_files(config.memory_mib, config.possible_memory_mib());
    let resources = Resources::open(&config, Paths::Refuse, &mut descriptors)?;
    let vm = Vm::build(&config, resources)?;
    // The file system's thread exists and keeps what it has; nobody else needs any.
    jail::drop_all_capabilities()?;
    Ok(vm.run(Some(control))?)
}

fn start_log(fd: OwnedFd) {
    husk_vmm::log::start(File::from(fd), log::LevelFilter::Info);
}

/// To the log; before there is one, to standard error.
fn report(error: &Error) {
    if log::max_level() == log::LevelFilter::Off {
        eprintln!("husk-vmm: {}", chain(error));
        if matches!(error, Error::Args(_)) {
            eprintln!("{}", args::USAGE);
        }
    } else {
        log::error!("{}", chain(error));
    }
}

/// Everything that can end the program before the guest does.
#[derive(Debug, Error)]
enum Error {
    #[error(transparent)]
    Args(#[from] ArgsError),
    #[error("cannot handle SIGTERM")]
    Signal(#[source] vmm_sys_util::errno::Error),
    #[error("cannot read {}", path.display())]
    ConfigFile {
        path: PathBuf,
        source: std::io::Error,
    },
    #[error("cannot read the VmConfig from its descriptor")]
    ConfigFd(#[source] std::io::Error),
    #[error(transparent)]
    Config(#[from] ConfigError),
    #[error(transparent)]
    Open(#[from] OpenError),
    #[error(transparent)]
    Jail(#[from] JailError),
    #[error(transparent)]
    Build(#[from] BuildError),
    #[error(transparent)]
    Run(#[from] RunError),
    #[error("the host refused a descriptor")]
    Descriptor(#[from] std::io::Error),
}

impl Error {
    fn exit(&self) -> Exit {
        match self {
            Self::Args(_)
            | Self::ConfigFile { .. }
            | Self::ConfigFd(_)
            | Self::Config(_)
            | Self::Open(_)
            // None is the host's fault: the kernel, the size or a file asked for does not do.
            | Self::Build(
                BuildError::Boot(_) | BuildError::NotKvm(_) | BuildError::Slot(SlotError::Tap { .. }),
            ) => Exit::Config,
            Self::Signal(_) | Self::Jail(_) | Self::Build(_) | Self::Run(_) | Self::Descriptor(_) => Exit::Internal,
        }
    }
}
