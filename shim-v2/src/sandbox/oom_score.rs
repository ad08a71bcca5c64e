//! How readily the host kills the VMM when memory runs out (`oom_score_adj`, proc(5)).
//!
//! The VMM counts as what runs in it. Left alone it would inherit the protection of
//! containerd, and the host could not free the memory of a guest at all. But it is never
//! better protected than the shim: killed before its machine, the shim could not tell why
//! everything ended.

use std::fs;

/// Never killed (`OOM_SCORE_ADJ_MIN`).
const NEVER: i64 = -1000;

/// Keeps the OOM killer from this shim: in the pod's cgroup it runs out of memory together with
/// its machine, and has to tell of that. With any other score it was seen killed right after.
pub fn protect_shim() {
    write("self", NEVER);
}

/// What the shim starts on the host besides its machine may be killed like anything else.
pub fn unprotect(child: u32) {
    if read("self") == Some(NEVER) {
        write(&child.to_string(), 0);
    }
}

/// Gives a VMM the score of its first container.
pub fn set(vmm: i32, adjust: i64) {
    let adjust = read("self").map_or(adjust, |own| adjust.max(own));
    let adjust = adjust.max(NEVER + 1);
    write(&vmm.to_string(), adjust);
}

/// Raises it to that of one more container, if that is higher: the sandbox's own is protected
/// whatever the pod's containers are worth.
pub fn raise(vmm: u32, adjust: i64) {
    let vmm = vmm.to_string();
    if read(&vmm).is_some_and(|present| present < adjust) {
        write(&vmm, adjust);
    }
}

fn read(process: &str) -> Option<i64> {
    let text = fs::read_to_string(format!("/proc/{process}/oom_score_adj")).ok()?;
    text.trim().parse().ok()
}

fn write(process: &str, adjust: i64) {
    let path = format!("/proc/{process}/oom_score_adj");
    if let Err(error) = fs::write(&path, adjust.to_string()) {
        log::warn!("{path} cannot be set to {adjust}: {error}");
    }
}
