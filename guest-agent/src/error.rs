//! What can go wrong with a call, and the one place that says which status it is.

use std::io;
use std::time::Duration;

use nix::errno::Errno;
use thiserror::Error as ThisError;
use ttrpc::Code;

use crate::container::cgroup::CgroupError;
use crate::container::setup_error::{Blame, SetupError};
use crate::oci::SpecError;
use crate::sys::errno_text;

/// A failed call. The text is what the user of the container reads.
#[derive(Debug, ThisError)]
pub enum Error {
    /// Nothing of that id.
    #[error("{kind} {id:?} not found")]
    NotFound {
        /// container or process.
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// The process ended before the call; it needs no signal any more.
    #[error("process already finished")]
    Finished,
    /// The id is taken.
    #[error("{kind} {id:?} already exists")]
    Exists {
        /// container or process.
        kind: &'static str,
        /// Its id.
        id: String,
    },
    /// The call does not fit the state.
    #[error("{kind} {id:?}: {why}")]
    State {
        /// container or process.
        kind: &'static str,
        /// Its id.
        id: String,
        /// What is in the way.
        why: String,
    },
    /// Not an id.
    #[error(
        "{kind} id {id:?}: must be 1 to 255 letters, digits, `_`, `.` and `-`, not beginning with a dot"
    )]
    Id {
        /// container or process.
        kind: &'static str,
        /// What was given.
        id: String,
    },
    /// A wrong argument of the call itself.
    #[error("{field}: {why}")]
    Argument {
        /// The message's field.
        field: &'static str,
        /// What is wrong.
        why: String,
    },
    /// The spec is wrong or asks for what the guest refuses.
    #[error(transparent)]
    Spec(#[from] SpecError),
    /// The child reported why it cannot run the program.
    #[error(transparent)]
    Setup(#[from] SetupError),
    /// The child is gone without a word.
    #[error(
        "the process ended with status {status} before its program was executed; 137 means it was killed, as happens when the memory limit is too small"
    )]
    DiedInSetup {
        /// Its exit status.
        status: u32,
    },
    /// A cgroup operation.
    #[error(transparent)]
    Cgroup(#[from] CgroupError),
    /// Something took too long.
    #[error("{what} took longer than {limit:?}")]
    Deadline {
        /// What did.
        what: &'static str,
        /// The limit.
        limit: Duration,
    },
    /// The kernel refused a change to the network.
    #[error("network of the guest: {what}: {}{}", errno_text(*errno), in_parentheses(text))]
    Network {
        /// What was to change.
        what: String,
        /// Its error number.
        errno: Errno,
        /// Its explanation, if it gave one.
        text: String,
    },
    /// A system call of the agent's own.
    #[error("{what}: {}", errno_text(*errno))]
    System {
        /// What it was for.
        what: &'static str,
        /// Why it failed.
        errno: Errno,
    },
}

impl Error {
    /// The line to a child failed.
    pub fn line(error: io::Error) -> Self {
        Self::io("talking to the process being set up", &error)
    }

    /// Pipes or terminals failed.
    pub fn stdio(error: io::Error) -> Self {
        Self::io("setting up standard I/O", &error)
    }

    /// A file operation of the agent's own failed.
    pub fn io(what: &'static str, error: &io::Error) -> Self {
        let errno = Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO));
        Self::System { what, errno }
    }

    fn code(&self) -> Code {
        match self {
            Self::NotFound { .. } | Self::Finished => Code::NOT_FOUND,
            Self::Exists { .. } => Code::ALREADY_EXISTS,
            Self::State { .. } => Code::FAILED_PRECONDITION,
            Self::Id { .. } | Self::Argument { .. } | Self::Spec(_) => Code::INVALID_ARGUMENT,
            Self::Setup(error) => match error.blame {
                Blame::Request => Code::INVALID_ARGUMENT,
                Blame::Guest => Code::INTERNAL,
                Blame::Ended => Code::FAILED_PRECONDITION,
            },
            Self::Cgroup(error) if error.is_wrong_value() => Code::INVALID_ARGUMENT,
            Self::Cgroup(CgroupError::StillPopulated { .. } | CgroupError::NotFrozen { .. })
            | Self::Deadline { .. } => Code::DEADLINE_EXCEEDED,
            Self::Cgroup(_)
            | Self::DiedInSetup { .. }
            | Self::Network { .. }
            | Self::System { .. } => Code::INTERNAL,
        }
    }
}

fn in_parentheses(text: &str) -> String {
    match text {
        "" => String::new(),
        text => format!(" ({text})"),
    }
}

impl From<Error> for ttrpc::Error {
    fn from(error: Error) -> Self {
        Self::RpcStatus(ttrpc::get_status(error.code(), error.to_string()))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn each_kind_has_its_status() {
        let (kind, id) = ("container", || String::from("c"));
        let setup = |blame| SetupError {
            blame,
            text: "x".into(),
        };
        let value = |errno| CgroupError::Value {
            field: "linux.resources.memory.limit".into(),
            file: "f".into(),
            value: "v".into(),
            errno,
        };
        for (error, code) in [
            (Error::NotFound { kind, id: id() }, Code::NOT_FOUND),
            (Error::Finished, Code::NOT_FOUND),
            (Error::Exists { kind, id: id() }, Code::ALREADY_EXISTS),
            (
                Error::State {
                    kind,
                    id: id(),
                    why: "x".into(),
                },
                Code::FAILED_PRECONDITION,
            ),
            (Error::Id { kind, id: id() }, Code::INVALID_ARGUMENT),
            (
                Error::Argument {
                    field: "f",
                    why: "x".into(),
                },
                Code::INVALID_ARGUMENT,
            ),
            (
                SpecError::Missing { field: "process" }.into(),
                Code::INVALID_ARGUMENT,
            ),
            (setup(Blame::Request).into(), Code::INVALID_ARGUMENT),
            (setup(Blame::Guest).into(), Code::INTERNAL),
            (setup(Blame::Ended).into(), Code::FAILED_PRECONDITION),
            (value(Errno::EINVAL).into(), Code::INVALID_ARGUMENT),
            (value(Errno::EIO).into(), Code::INTERNAL),
            (
                CgroupError::StillPopulated { path: "/".into() }.into(),
                Code::DEADLINE_EXCEEDED,
            ),
            (
                Error::Deadline {
                    what: "x",
                    limit: Duration::ZERO,
                },
                Code::DEADLINE_EXCEEDED,
            ),
            (Error::DiedInSetup { status: 137 }, Code::INTERNAL),
            (
                Error::Network {
                    what: "x".into(),
                    errno: Errno::EINVAL,
                    text: "y".into(),
                },
                Code::INTERNAL,
            ),
            (
                Error::System {
                    what: "x",
                    errno: Errno::ENOMEM,
                },
                Code::INTERNAL,
            ),
        ] {
            assert_eq!(error.code(), code, "{error}");
        }
    }

    #[test]
    fn texts_name_the_object_and_the_reason() {
        let error = Error::NotFound {
            kind: "container",
            id: "c1".into(),
        };
        assert_eq!(error.to_string(), "container \"c1\" not found");
        let error = Error::System {
            what: "forking",
            errno: Errno::EAGAIN,
        };
        assert_eq!(
            error.to_string(),
            "forking: resource temporarily unavailable"
        );
    }
}
