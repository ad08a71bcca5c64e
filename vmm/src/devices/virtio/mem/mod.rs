//! The memory device (virtio 1.2, 5.15): memory added to a running guest, and taken back.
//!
//! The host says how much the guest should have (`requested_size`) and interrupts; the
//! driver plugs or unplugs blocks of a region above RAM until it has that much, as far as
//! it can, and so the guest decides which.
//!
//! * [`blocks`] is the region's state, and what becomes of a request: plain data.
//! * [`request`] is the form requests and answers have in a queue.
//! * [`device`] is the virtio side and [`MemControl`], the handle to resize it.
//!
//! # What a guest can take
//!
//! The region is as long as the guest may ever need, but opened to guest and devices only
//! from its start to `usable_region_size`, which follows the largest size ever requested.
//! Beyond it the guest has nothing to touch (what of a device's may run over the end,
//! [`crate::memory`] says), and before it nothing that was not meant for it once: blocks within it that are unplugged are discarded, not withdrawn. A guest that
//! touches them all the same, which UNPLUGGED_INACCESSIBLE forbids it, reads zeroes and takes
//! host memory again, never more than the largest size it was once given, and as any of
//! its memory it is counted and limited by the cgroup the VMM is in.

mod blocks;
mod device;
mod request;

pub use device::{Mem, MemControl, ResizeError};

/// The unit of plugging, in bytes: Linux plugs in units of its huge pages.
pub const BLOCK_SIZE: u64 = 2 << 20;

/// Linux adds memory in such units, naturally aligned (`MIN_MEMORY_BLOCK_SIZE` of its
/// arch/x86/mm/init_64.c), and plugs blocks within.
pub const SECTION_SIZE: u64 = 128 << 20;

#[cfg(test)]
mod tests;
