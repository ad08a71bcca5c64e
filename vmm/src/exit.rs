//! How a machine can end, and the exit code of `husk-vmm` that says so.

use vmm_sys_util::errno;
use vmm_sys_util::signal::register_signal_handler;

/// Why the VMM exits. The code is the process's exit status.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
#[repr(u8)]
pub enum Exit {
    /// The guest reported a clean end through the debug port, then reset.
    Clean = 0,
    /// The VMM itself failed: a host error after the configuration was accepted.
    Internal = 1,
    /// Wrong arguments, a refused `VmConfig` or a file that cannot be used.
    Config = 2,
    /// The shim asked for the stop, or its end of the control socket is gone.
    Stopped = 10,
    /// The guest reset the machine without reporting a clean end: a crash of PID 1.
    Reset = 11,
    /// The guest's kernel panicked.
    Panic = 12,
    /// The guest's vCPU shut down on a triple fault.
    TripleFault = 13,
    /// KVM could not run the guest (internal error, failed entry).
    KvmError = 14,
}

impl Exit {
    /// The variant for a process exit status, if it is one of ours.
    pub fn from_code(code: i32) -> Option<Self> {
        [
            Self::Clean,
            Self::Internal,
            Self::Config,
            Self::Stopped,
            Self::Reset,
            Self::Panic,
            Self::TripleFault,
            Self::KvmError,
        ]
        .into_iter()
        .find(|exit| *exit as i32 == code)
    }

    /// What happened, as a phrase for logs and errors.
    pub fn describe(self) -> &'static str {
        match self {
            Self::Clean => "the guest ended cleanly",
            Self::Internal => "the VMM failed",
            Self::Config => "the VMM refused its configuration",
            Self::Stopped => "the VM was stopped",
            Self::Reset => "the guest's PID 1 died and the machine reset",
            Self::Panic => "the guest kernel panicked",
            Self::TripleFault => "the guest's CPU triple-faulted",
            Self::KvmError => "KVM could not run the guest",
        }
    }
}

/// Has SIGTERM end the process at once, as [`Exit::Stopped`]. Without a handler it would never
/// reach the VMM, which is PID 1 of its namespace (pid_namespaces(7)): who ends all processes of
/// a host, or a pod by its pid, would wait for nothing.
///
/// # Errors
/// What the operating system refused.
pub fn stop_on_sigterm() -> Result<(), errno::Error> {
    register_signal_handler(libc::SIGTERM, on_sigterm)
}

#[expect(unsafe_code, reason = "the only safe way to exit runs handlers")]
extern "C" fn on_sigterm(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    // SAFETY: async-signal-safe (signal-safety(7)), and ends the process.
    unsafe { libc::_exit(Exit::Stopped as i32) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn codes_are_distinct_and_round_trip() {
        for code in 0..=255 {
            if let Some(exit) = Exit::from_code(code) {
                assert_eq!(exit as i32, code);
            }
        }
        assert_eq!(Exit::from_code(13), Some(Exit::TripleFault));
        assert_eq!(Exit::from_code(99), None);
    }
}
