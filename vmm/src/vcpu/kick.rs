//! Getting a vCPU thread out of KVM_RUN.
//!
//! A signal alone is not enough: it may arrive just before the ioctl, which would then
//! wait. So the handler also sets `immediate_exit` in the page the thread shares with
//! KVM, and the next KVM_RUN returns at once (KVM API, 5, `immediate_exit`).

use std::cell::Cell;
use std::ptr;

use kvm_ioctls::VcpuFd;
use vmm_sys_util::signal::{SIGRTMIN, register_signal_handler};

thread_local! {
    /// The `immediate_exit` byte of the vCPU this thread runs, or null.
    static IMMEDIATE_EXIT: Cell<*mut u8> = const { Cell::new(ptr::null_mut()) };
}

/// The signal that kicks a vCPU thread.
pub fn signal() -> i32 {
    SIGRTMIN()
}

/// Installs the handler, once for the process.
pub fn install_handler() -> Result<(), vmm_sys_util::errno::Error> {
    register_signal_handler(signal(), on_kick)
}

#[expect(unsafe_code, reason = "writes to the page shared with KVM")]
extern "C" fn on_kick(_: i32, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    let at = IMMEDIATE_EXIT.get();
    if !at.is_null() {
        // SAFETY: `Kickable` sets the pointer to a byte of a mapping it owns, and clears
        // it before the mapping goes; both on this very thread.
        unsafe { at.write_volatile(1) };
    }
}

/// A vCPU that kicks sent to this thread reach.
pub struct Kickable {
    vcpu: VcpuFd,
}

impl Kickable {
    /// Directs kicks of the calling thread, which must be the one to run `vcpu`.
    pub fn new(mut vcpu: VcpuFd) -> Self {
        // The mapping does not move when its owner does.
        let immediate_exit = &raw mut vcpu.get_kvm_run().immediate_exit;
        IMMEDIATE_EXIT.set(immediate_exit);
        Self { vcpu }
    }

    /// The vCPU.
    pub fn vcpu(&mut self) -> &mut VcpuFd {
        &mut self.vcpu
    }

    /// Makes KVM_RUN wait again. Who calls this then looks for the kick's reason.
    pub fn acknowledge(&mut self) {
        self.vcpu.set_kvm_immediate_exit(0);
    }
}

impl Drop for Kickable {
    fn drop(&mut self) {
        IMMEDIATE_EXIT.set(ptr::null_mut());
    }
}
