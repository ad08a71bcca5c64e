//! The vsock device (virtio 1.2, 5.10), in user space: guest vsock streams on one
//! side, Unix stream sockets on the other.
//!
//! # The protocol in a minute
//!
//! A stream is named by two ports, the host's and the guest's. Every packet is a
//! 44-byte header and, for `RW`, up to 64 KiB of bytes:
//!
//! ```text
//! guest connects          host connects           either side, later
//! REQUEST  ->             <- REQUEST              SHUTDOWN(flags): half or both
//!          <- RESPONSE    RESPONSE ->             directions are over
//!          <- or RST      or RST ->               RST: the stream is gone
//! ```
//!
//! *Credit* keeps either side from sending more than the other can hold. Each
//! header carries the sender's buffer size (`buf_alloc`) and how many bytes it has
//! consumed since the stream began (`fwd_cnt`, modulo 2^32), so that
//!
//! ```text
//! room = peer.buf_alloc - (bytes sent - peer.fwd_cnt)
//! ```
//!
//! `CREDIT_UPDATE` carries those two numbers and nothing else, `CREDIT_REQUEST`
//! asks for one.
//!
//! # How Unix sockets meet it
//!
//! * The host connects to one listening socket, writes `CONNECT <port>\n` and reads
//!   `OK <host port>\n` once the guest has accepted; anything else is a hang-up.
//!   (The handshake is Firecracker's.)
//! * A guest connection to CID 2, port P, becomes a connection to the Unix socket
//!   `<guest_connect>_<P>`; RST when nobody listens.
//! * `SHUTDOWN` and `shutdown(2)` map one to one, both ways: half-closed streams
//!   stay usable in the other direction, and bytes already received are delivered
//!   before a direction ends.
//!
//! # The files
//!
//! [`packet`] reads and writes packets in guest memory, [`connection`] is the state
//! of one stream without any input or output, [`stream`] a Unix socket with its
//! connection, [`muxer`] all streams of the guest (with [`deadlines`] for those that
//! wait), and [`device`] ties the muxer to the three virtqueues.

mod connection;
mod deadlines;
mod device;
mod muxer;
mod packet;
mod stream;

pub use device::{Vsock, VsockError};

/// Context id of the host (virtio 1.2, 5.10.4).
const HOST_CID: u64 = 2;

/// Most bytes the guest may have in flight to the host per connection, and so the
/// size to which a connection's buffer can grow. Linux also caps what a sender has
/// queued by this number, so a small one would slow bulk output down.
const BUF_ALLOC: u32 = 256 * 1024;

/// The guest is told of freed space once this much is free that it does not know of.
const CREDIT_UPDATE_THRESHOLD: u32 = BUF_ALLOC / 4;

/// Most bytes of payload in one packet; what Linux sends at most
/// (`VIRTIO_VSOCK_MAX_PKT_BUF_SIZE`).
const MAX_PAYLOAD: u32 = 64 * 1024;

/// Most streams at a time, those still in the handshake or being flushed included.
/// The guest cannot make the VMM hold more descriptors or buffers than this.
const MAX_CONNECTIONS: usize = 1023;
