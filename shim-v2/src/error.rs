//! The one mapping from what went wrong to the status containerd gets.

use std::error::Error as StdError;
use std::io;
use std::path::PathBuf;

use thiserror::Error;
use ttrpc::Code;

use crate::config::ConfigError;
use crate::container::LookupError;
use crate::container::oci::SpecError;
use crate::container::process::StateError;
use crate::container::rootfs::RootfsError;
use crate::container::stdio::StdioError;
use crate::hooks::HookError;
use crate::ids::InvalidId;
use crate::mount::MountError;
use crate::sandbox::SlotError;
use crate::sandbox::agent::{AgentError, BellError};
use crate::sandbox::boot::BootError;
use crate::sandbox::control::ControlError;
use crate::sandbox::network::NetworkError;
use crate::sandbox::network::follow::FollowError;
use crate::sandbox_api::pod::PodError;

/// Any failure of a task call.
#[derive(Debug, Error)]
pub enum Error {
    /// An id that cannot be a file name.
    #[error(transparent)]
    Id(#[from] InvalidId),
    /// The configuration file.
    #[error(transparent)]
    Config(#[from] ConfigError),
    /// The OCI spec.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// No such container or exec, or one too many.
    #[error(transparent)]
    Lookup(#[from] LookupError),
    /// The wrong moment for this verb.
    #[error(transparent)]
    State(#[from] StateError),
    /// The wrong moment for this verb, because the machine is dead.
    #[error("{state}: the virtual machine ended: {reason}")]
    Died {
        /// What is wrong with the verb.
        state: StateError,
        /// Why the machine ended.
        reason: String,
    },
    /// The sandbox is not there to use.
    #[error(transparent)]
    Slot(#[from] SlotError),
    /// The sandbox did not boot.
    #[error(transparent)]
    Boot(#[from] BootError),
    /// Rootfs and volumes.
    #[error(transparent)]
    Rootfs(#[from] RootfsError),
    /// A hook on the host.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// Fifos and streams.
    #[error(transparent)]
    Stdio(#[from] StdioError),
    /// The VMM.
    #[error(transparent)]
    Control(#[from] ControlError),
    /// The guest.
    #[error(transparent)]
    Agent(#[from] AgentError),
    /// The wrong moment for a verb of the sandbox service, or the wrong sandbox.
    #[error(transparent)]
    Pod(#[from] PodError),
    /// A file for a pod's containers.
    #[error("{path} cannot be written")]
    PodFile {
        /// The file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An argument of the call.
    #[error("{what}: {problem}")]
    Argument {
        /// The field of the request.
        what: &'static str,
        /// What is wrong with it.
        problem: String,
    },
    /// A container of a pod that is not there.
    #[error("the container's sandbox {0} is not running: remove the pod and create it again")]
    NoPod(String),
    /// Create came to its end when nobody waited for it any more.
    #[error("the container was deleted before it was created")]
    GivenUp,
    /// A task of the shim panicked.
    #[error("the shim failed in {0}: see containerd's log")]
    Panicked(&'static str),
    /// A verb this runtime does not have.
    #[error("{verb} is not supported by this runtime: {why}")]
    Unsupported {
        /// The verb.
        verb: &'static str,
        /// What is in its way.
        why: &'static str,
    },
    /// An answer that protobuf refuses to write.
    #[error("the answer cannot be encoded")]
    Encode(#[from] protobuf::Error),
}

impl Error {
    /// The status code: what containerd bases its decisions on.
    pub fn code(&self) -> Code {
        match self {
            // The guest did not take the stream: not the caller's doing.
            Self::Stdio(StdioError::Connect { .. }) => Code::INTERNAL,
            Self::Id(_) | Self::Spec(_) | Self::Stdio(_) | Self::Argument { .. } => {
                Code::INVALID_ARGUMENT
            }
            Self::State(StateError::Wrong { .. } | StateError::NotCreated)
            | Self::Died { .. }
            | Self::NoPod(_)
            | Self::Config(_)
            | Self::Slot(_) => Code::FAILED_PRECONDITION,
            // containerd takes NotFound from Kill and Delete as "done already".
            Self::State(StateError::Finished) => Code::NOT_FOUND,
            Self::Lookup(LookupError::NoContainer(_) | LookupError::NoExec(..)) => Code::NOT_FOUND,
            Self::Lookup(LookupError::Exists(_) | LookupError::ExecExists(..)) => {
                Code::ALREADY_EXISTS
            }
            Self::Pod(PodError::NotFound(_)) => Code::NOT_FOUND,
            Self::Pod(PodError::Exists(_)) => Code::ALREADY_EXISTS,
            Self::Pod(PodError::InUse(_) | PodError::Started(_) | PodError::NotRunning(_)) => {
                Code::FAILED_PRECONDITION
            }
            Self::Boot(error) => boot_code(error),
            Self::Rootfs(RootfsError::Root { .. }) => Code::INVALID_ARGUMENT,
            Self::Rootfs(RootfsError::Mount(
                MountError::Option { .. } | MountError::TooLong { .. },
            )) => Code::INVALID_ARGUMENT,
            Self::Rootfs(_)
            | Self::Control(_)
            | Self::PodFile { .. }
            | Self::Panicked(_)
            | Self::Encode(_) => Code::INTERNAL,
            // As with runc, whose errors all are.
            Self::Hook(_) => Code::UNKNOWN,
            Self::Agent(error) => agent_code(error),
            Self::GivenUp => Code::CANCELLED,
            Self::Unsupported { .. } => Code::UNIMPLEMENTED,
        }
    }

    /// The error as ttrpc sends it, with the whole chain of causes as its text.
    pub fn into_status(self) -> ttrpc::Error {
        let (code, mut text) = (self.code(), chain(&self));
        if let Some(class) = class(code).filter(|class| !text.ends_with(class)) {
            text.push_str(": ");
            text.push_str(class);
        }
        ttrpc::Error::RpcStatus(ttrpc::get_status(code, text))
    }
}

/// Logs a verb's failure and maps it.
pub fn finish<T>(verb: &'static str, id: &str, result: Result<T, Error>) -> ttrpc::Result<T> {
    result.map_err(|error| {
        // NotFound is an everyday answer: containerd asks to be sure.
        let level = match error.code() {
            Code::NOT_FOUND => log::Level::Debug,
            _ => log::Level::Warn,
        };
        log::log!(level, "{verb} {id}: {}", chain(&error));
        error.into_status()
    })
}

/// How the text of an error of containerd's own ends (its `errdefs`). The client of 1.x adds
/// that where it is missing, that of 2.x shows what it gets.
fn class(code: Code) -> Option<&'static str> {
    match code {
        Code::NOT_FOUND => Some("not found"),
        Code::ALREADY_EXISTS => Some("already exists"),
        Code::INVALID_ARGUMENT => Some("invalid argument"),
        Code::FAILED_PRECONDITION => Some("failed precondition"),
        Code::UNIMPLEMENTED => Some("not implemented"),
        _ => None,
    }
}

fn boot_code(error: &BootError) -> Code {
    match error {
        BootError::Spec(_) | BootError::Netns { .. } => Code::INVALID_ARGUMENT,
        BootError::Config(_)
        | BootError::Kvm(_)
        | BootError::Network(NetworkError::Link { .. } | NetworkError::TooMany { .. }) => {
            Code::FAILED_PRECONDITION
        }
        BootError::Bell(BellError::Version(_)) => Code::FAILED_PRECONDITION,
        BootError::Deadline => Code::DEADLINE_EXCEEDED,
        BootError::Cancelled => Code::CANCELLED,
        BootError::Hook(_) => Code::UNKNOWN,
        BootError::Agent(error) | BootError::Follow(FollowError::Agent(error)) => agent_code(error),
        BootError::Cgroup { .. }
        | BootError::Mount(_)
        | BootError::Host { .. }
        | BootError::Network(_)
        | BootError::Follow(_)
        | BootError::Ended(_)
        | BootError::Bell(_)
        | BootError::Leftover(_) => Code::INTERNAL,
    }
}

fn agent_code(error: &AgentError) -> Code {
    match error {
        // From Create, containerd takes Unimplemented as "speaks an older API" and tries again.
        AgentError::Status {
            code: Code::UNIMPLEMENTED | Code::OK,
            ..
        } => Code::INTERNAL,
        AgentError::Status { code, .. } => *code,
        AgentError::Deadline { .. } => Code::DEADLINE_EXCEEDED,
        AgentError::VmGone { .. } | AgentError::Connection { .. } => Code::INTERNAL,
    }
}

/// An error and its causes in one line.
pub fn chain(error: &dyn StdError) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(cause) = source {
        let cause_text = cause.to_string();
        // Transparent variants repeat the text of what they wrap.
        if !text.ends_with(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        source = cause.source();
    }
    text
}

#[cfg(test)]
#[path = "error_test.rs"]
mod tests;
