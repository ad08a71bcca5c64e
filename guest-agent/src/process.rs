//! One process the agent has made and is asked about: a container's init or an exec.

use std::os::fd::{AsFd, OwnedFd};

use nix::errno::Errno;
use nix::unistd::Pid;

use crate::error::Error;
use crate::reaper::{self, Exit, ExitWatch};
use crate::stdio::ProcessIo;
use crate::sys;

/// Highest signal number (signal(7)).
const MAX_SIGNAL: u32 = 64;

/// A process.
#[derive(Debug)]
pub struct Process {
    pid: Pid,
    pidfd: OwnedFd,
    exit: ExitWatch,
    io: ProcessIo,
}

impl Process {
    /// Takes charge of a child.
    pub fn new(pid: Pid, pidfd: OwnedFd, exit: ExitWatch, io: ProcessIo) -> Self {
        Self {
            pid,
            pidfd,
            exit,
            io,
        }
    }

    /// Its id as the guest numbers it.
    pub fn pid(&self) -> Pid {
        self.pid
    }

    /// Refers to it even when its id is used again.
    pub fn pidfd(&self) -> &OwnedFd {
        &self.pidfd
    }

    /// Its end, if it has ended.
    pub fn exit(&self) -> Option<Exit> {
        *self.exit.borrow()
    }

    /// Waits for its end.
    pub async fn wait(&self) -> Option<Exit> {
        reaper::ended(self.exit.clone()).await
    }

    /// Sends it a signal.
    pub fn signal(&self, signal: i32) -> Result<(), Error> {
        match sys::signal_pidfd(self.pidfd.as_fd(), signal) {
            Err(Errno::ESRCH) => Err(Error::Finished),
            Err(errno) => Err(Error::System {
                what: "sending the signal",
                errno,
            }),
            Ok(()) => Ok(()),
        }
    }

    /// Its standard I/O.
    pub fn io(&self) -> &ProcessIo {
        &self.io
    }
}

/// Checks a signal number that came with a call.
pub fn signal_number(signal: u32) -> Result<i32, Error> {
    if (1..=MAX_SIGNAL).contains(&signal) {
        return Ok(signal as i32);
    }
    Err(Error::Argument {
        field: "signal",
        why: format!("{signal} is not a signal, must be 1 to {MAX_SIGNAL}"),
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_signals_are_sent() {
        for wrong in [0, 65, u32::MAX] {
            assert!(signal_number(wrong).is_err(), "{wrong} was accepted");
        }
        assert_eq!(signal_number(9).unwrap(), 9);
        assert_eq!(signal_number(64).unwrap(), 64);
    }
}
