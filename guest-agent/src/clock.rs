//! Keeps the guest's wall clock on the host's.
//!
//! KVM's clock runs with the host's undisciplined counter, and the kernel's own start loses
//! what passes before its first timer interrupt. The host's wall clock is `/dev/ptp0`
//! (a hypercall, Linux' `Documentation/virt/kvm/x86/hypercalls.rst`, `KVM_HC_CLOCK_PAIRING`);
//! a host whose own clock is not its TSC does not offer it, and the guest keeps KVM's.

use std::fs::File;
use std::os::fd::AsRawFd;
use std::time::Duration;

use nix::sys::time::TimeValLike;
use nix::time::{ClockId, clock_gettime};

use crate::sys;

const HOST_CLOCK: &str = "/dev/ptp0";

/// Between corrections: at the 500 ppm the kernel slews by, more than any crystal's drift.
const INTERVAL: Duration = Duration::from_secs(60);

/// Microseconds; a larger offset is a jump (the host's clock was set) and not a drift.
const STEP: i64 = 10_000;

/// The host's wall clock.
pub struct HostClock(File);

impl HostClock {
    /// Opens it and sets the guest's clock by it; nothing where the host offers none.
    pub fn open() -> Option<Self> {
        let clock = Self(File::open(HOST_CLOCK).ok()?);
        sys::step_clock(clock.offset().ok()?).ok()?;
        Some(clock)
    }

    /// Keeps the guest's clock on it for ever.
    pub async fn follow(self) {
        loop {
            tokio::time::sleep(INTERVAL).await;
            // It may come back: a host that is being migrated or reconfigured.
            self.correct().ok();
        }
    }

    fn correct(&self) -> nix::Result<()> {
        let offset = self.offset()?;
        if offset.abs() > STEP {
            sys::step_clock(offset)
        } else {
            sys::slew_clock(offset)
        }
    }

    /// Microseconds by which the guest's clock is behind (or, negative, ahead).
    fn offset(&self) -> nix::Result<i64> {
        // A clock by descriptor: clock_getres(2), "Dynamic clocks".
        let host = ClockId::from_raw((!self.0.as_raw_fd() << 3) | 3);
        let before = now(ClockId::CLOCK_REALTIME)?;
        let told = now(host)?;
        let after = now(ClockId::CLOCK_REALTIME)?;
        Ok(told - (before + (after - before) / 2))
    }
}

/// Microseconds since the Unix epoch.
fn now(clock: ClockId) -> nix::Result<i64> {
    clock_gettime(clock).map(|time| time.num_microseconds())
}
