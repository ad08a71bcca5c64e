//! Changing the size of a running machine, for the control socket.

use crate::devices::virtio::mem::MemControl;
use crate::jail;
use crate::log::chain;
use crate::vcpu::VcpuThreads;

const MIB: u64 = 1 << 20;

const NO_ROOM: &str = "this VM has no room for more memory: `max_memory_mib` equals `memory_mib`, \
    or the host refused the addresses at its start (see its log)";

/// The size of a running machine.
pub struct Growth {
    vcpus: VcpuThreads,
    boot_mib: u32,
    plugged: Option<MemControl>,
}

impl Growth {
    /// Of a machine that has `boot_mib` MiB of RAM besides what is plugged.
    pub fn new(vcpus: VcpuThreads, boot_mib: u32, plugged: Option<MemControl>) -> Self {
        Self {
            vcpus,
            boot_mib,
            plugged,
        }
    }

    /// Sees to it that there are at least `count` vCPUs; returns how many there are.
    ///
    /// # Errors
    /// A sentence for the log.
    pub fn vcpus(&self, count: u32) -> Result<u32, String> {
        self.vcpus.grow(count).map_err(|error| chain(&error))
    }

    /// Has the guest plug or unplug until it has `mib` MiB in all, as far as it can, but never
    /// fewer than at the boot; returns how many it has. It is waited for only to plug.
    ///
    /// # Errors
    /// A sentence for the log.
    pub fn memory(&self, mib: u32) -> Result<u32, String> {
        let more = mib.saturating_sub(self.boot_mib);
        let plugged = match &self.plugged {
            Some(plugged) => plugged.resize(u64::from(more) * MIB),
            None if more == 0 => Ok(0),
            None => return Err(NO_ROOM.into()),
        };
        let plugged = plugged.map_err(|error| chain(&error))? / MIB;
        let mib = self.boot_mib + u32::try_from(plugged).unwrap_or(u32::MAX - self.boot_mib);
        jail::raise_open_files_for(mib);
        Ok(mib)
    }
}
