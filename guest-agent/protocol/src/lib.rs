//! The contract between the shim (host) and the agent (guest).
//!
//! The messages and the service are generated from `agent.proto`; the types are
//! used as they are on both sides. This file adds the numbers and paths both
//! sides have to agree on.
//!
//! How the two meet, in order:
//!
//! 1. The shim puts `husk.nonce=<32 hex digits>` on the kernel command line and
//!    listens for guest connections to [`BELL_PORT`].
//! 2. The agent, once it serves, dials CID 2 at [`BELL_PORT`], writes one
//!    `Announce` message and closes. The shim accepts a single connection, checks
//!    version and nonce, and closes the listener before any container exists:
//!    vsock is not namespaced, so a container could pose as the agent later.
//! 3. The shim connects to [`RPC_PORT`] and speaks ttrpc (service `husk.agent.Agent`).
//! 4. For each stdio descriptor the shim connects to [`STREAM_PORT`], writes the
//!    stream's token (8 bytes, little endian) and from then on raw bytes flow, with
//!    half-close both ways. Tokens are chosen by the shim, random, never zero.
//! 5. For each connection made to the pod's loopback on the host it connects to
//!    [`forward::FORWARD_PORT`], see there.

pub mod forward;

include!(concat!(env!("OUT_DIR"), "/generated.rs"));

/// Version of this contract; the shim refuses an agent that announces another one.
pub const VERSION: u32 = 3;

/// Host port (CID 2) the agent dials once, to announce itself.
pub const BELL_PORT: u32 = 1024;

/// Guest port of the ttrpc service.
pub const RPC_PORT: u32 = 1024;

/// Guest port of the raw stdio streams.
pub const STREAM_PORT: u32 = 1025;

/// Key on the kernel command line that carries the per-boot nonce.
pub const NONCE_KEY: &str = "husk.nonce";

/// Tag of the virtio-fs device that exports the sandbox's share.
pub const SHARE_TAG: &str = "share";

/// Where the agent mounts the share; paths in OCI specs sent to it start here.
pub const SHARE_DIR: &str = "/run/husk/share";

/// Where the agent keeps the pod's shared memory, which its containers have as /dev/shm:
/// memory of the guest, not files of the host.
pub const SHM_DIR: &str = "/run/husk/shm";

/// The kernel parameters of an IPC namespace, besides those below `fs/mqueue`; relative to
/// `/proc/sys`.
pub const IPC_SYSCTLS: [&str; 8] = [
    "kernel/msgmax",
    "kernel/msgmnb",
    "kernel/msgmni",
    "kernel/sem",
    "kernel/shmall",
    "kernel/shmmax",
    "kernel/shmmni",
    "kernel/shm_rmid_forced",
];

/// Longest accepted `Announce`, in bytes.
pub const MAX_ANNOUNCE_LEN: usize = 4096;
