//! The network device (virtio 1.2, 5.1): a queue pair of the guest's on one side, a tap
//! of the host's on the other.
//!
//! # A frame's way
//!
//! Every frame begins with a `virtio_net_hdr` of 12 bytes, in the guest's buffers and on
//! the tap alike, so the header is passed on as it is: what is left of a checksum, and
//! how a frame longer than the MTU is to be cut, is between guest and tap. The VMM agrees
//! on what either may ask of the other ([`features`]) and moves bytes; one system call
//! takes a frame from the tap straight into guest memory or the other way.
//!
//! ```text
//! guest's transmit queue ── writev ─▶ tap        full: the frame stays in the queue
//! guest's receive queue  ◀─ readv ─── tap        no buffers: the frame stays in the tap
//! ```
//!
//! Nothing waits: the device is on the event loop, which comes back to it when the tap is
//! readable (and there are buffers), when it is writable (and a frame is stuck) or when
//! the driver kicks. A round is bounded, so that a busy link does not starve the loop.
//!
//! # The files
//!
//! [`tap`] is the tap, [`features`] what is offered and what it means to the tap,
//! [`buffers`] a chain's pieces of guest memory, [`rx`] and [`tx`] the two directions, and
//! [`device`] ties them to the event loop. All their state but descriptors is plain data.

mod buffers;
mod device;
mod features;
mod rx;
pub mod tap;
#[cfg(test)]
mod tests;
mod tx;

pub use device::Net;

/// Length of the header before each frame: `num_buffers` is part of it for every driver
/// of version 1 (virtio 1.2, 5.1.6).
const HEADER_LEN: usize = 12;
/// Where `num_buffers` is in it.
const NUM_BUFFERS: usize = 10;
/// Length of an Ethernet header.
const ETHERNET_LEN: usize = 14;
/// Most bytes of a frame with its header: what a driver that takes segments for the MTU
/// must have room for (virtio 1.2, 5.1.6.3.1).
const MAX_FRAME_LEN: usize = HEADER_LEN + 65550;
