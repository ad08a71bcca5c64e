//! Why a child could not become what was asked for.

use std::fmt::Display;
use std::io;

use nix::errno::Errno;

use crate::sys;

/// Whose fault a failed setup is; decides the status code of the answer.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Blame {
    /// The spec or the image: a missing program, a bad mount source.
    Request,
    /// The guest: a system call that should have worked.
    Guest,
    /// The container, whose init is ending or has ended.
    Ended,
}

/// A failed step, as text for the user of the container.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{text}")]
pub struct SetupError {
    /// Whose fault.
    pub blame: Blame,
    /// What failed, on which object, and why.
    pub text: String,
}

impl SetupError {
    /// A fault of the spec or the image.
    pub fn request(text: impl Display) -> Self {
        Self {
            blame: Blame::Request,
            text: text.to_string(),
        }
    }
}

/// Adds what was being done to a failed system call.
pub trait Context<T> {
    /// For steps that depend on what the spec or the image says.
    fn or_request<D: Display>(self, what: impl FnOnce() -> D) -> Result<T, SetupError>;
    /// For steps that should always work.
    fn or_guest<D: Display>(self, what: impl FnOnce() -> D) -> Result<T, SetupError>;
}

impl<T, E: Into<CallError>> Context<T> for Result<T, E> {
    fn or_request<D: Display>(self, what: impl FnOnce() -> D) -> Result<T, SetupError> {
        self.map_err(|error| error.into().after(&what(), Blame::Request))
    }

    fn or_guest<D: Display>(self, what: impl FnOnce() -> D) -> Result<T, SetupError> {
        self.map_err(|error| error.into().after(&what(), Blame::Guest))
    }
}

/// The text of a failed call, from any of the libraries that make it.
#[derive(Debug)]
pub struct CallError(String);

impl CallError {
    fn after(self, what: &impl Display, blame: Blame) -> SetupError {
        SetupError {
            blame,
            text: format!("{what}: {}", self.0),
        }
    }
}

impl From<Errno> for CallError {
    fn from(errno: Errno) -> Self {
        Self(sys::errno_text(errno))
    }
}

impl From<io::Error> for CallError {
    fn from(error: io::Error) -> Self {
        match error.raw_os_error() {
            Some(number) => Errno::from_raw(number).into(),
            None => Self(error.to_string()),
        }
    }
}

impl From<capctl::Error> for CallError {
    fn from(error: capctl::Error) -> Self {
        Errno::from_raw(error.code()).into()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn texts_read_like_those_of_other_runtimes() {
        let failed: Result<(), _> = Err(Errno::ENOENT);
        let error = failed.or_request(|| "chdir to cwd (\"/x\")").unwrap_err();
        assert_eq!(
            error.text,
            "chdir to cwd (\"/x\"): no such file or directory"
        );
        let failed: Result<(), _> = Err(io::Error::from_raw_os_error(libc::EACCES));
        let error = failed.or_guest(|| "exec /x").unwrap_err();
        assert_eq!(error.text, "exec /x: permission denied");
        assert_eq!(error.blame, Blame::Guest);
    }
}
