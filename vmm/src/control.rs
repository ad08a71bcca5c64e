//! The control socket: what the shim may ask of a running VMM.
//!
//! A `SOCK_SEQPACKET` Unix socket pair, one JSON document per packet, one answer
//! per request, in order. When the shim's end hangs up the VMM exits: a sandbox
//! never outlives its shim.

use serde::{Deserialize, Serialize};

use crate::config::{Export, MacAddress};

/// Longest packet either side sends, in bytes.
pub const MAX_PACKET_LEN: usize = 8192;

/// A request from the shim.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "verb", rename_all = "snake_case", deny_unknown_fields)]
pub enum Request {
    /// Stop the machine at once and exit with [`crate::exit::Exit::Stopped`].
    Stop,
    /// Export one more tree; answered when the guest can look it up.
    AddShare {
        /// The tree and its caching.
        export: Export,
    },
    /// Take a tree back; answered when the VMM holds no descriptor below it.
    RemoveShare {
        /// The path given to `AddShare`.
        path: std::path::PathBuf,
    },
    /// Have at least so many vCPUs; answered when the guest can start them. If one cannot be
    /// made, those before it stay.
    GrowVcpus {
        /// The number, those of the boot included.
        count: u32,
    },
    /// Plug or unplug memory until there is this much. More than was asked for before is
    /// answered when the guest has it or gets no nearer, less at once: the guest unplugs
    /// what it can when it can.
    ResizeMemory {
        /// MiB, those of the boot included.
        mib: u32,
    },
    /// Put a network device into an empty slot. The tap comes with the packet as its only
    /// descriptor, opened as [`crate::config::NetConfig::tap`] says. The guest sees the device
    /// when it looks for it.
    PlugNic {
        /// Which slot: below [`crate::config::VmConfig::nic_slots`].
        slot: u32,
        /// The guest's address on the link.
        mac: MacAddress,
        /// The largest packet of the link; within [`crate::config::MTU`].
        mtu: u16,
    },
    /// Take the network device out of a slot; no error if there is none. Answered when the
    /// tap is closed, whether or not the guest has let go of the device.
    UnplugNic {
        /// Which slot.
        slot: u32,
    },
    /// Start a thread that stands for a container; answered with its id.
    AddThread {
        /// The container.
        container: String,
    },
    /// End the thread that stands for a container; no error if there is none.
    RemoveThread {
        /// The container.
        container: String,
    },
}

/// The answer to a request.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// Done.
    Ok,
    /// Done; the thread's id in the VMM's pid namespace.
    Thread(i32),
    /// So many vCPUs there are now.
    Vcpus(u32),
    /// So many MiB of memory there are now.
    MemoryMib(u32),
    /// Not done; the text names the object and the reason. Nothing has changed but what the
    /// request says.
    Error(String),
}
