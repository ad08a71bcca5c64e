//! The slots of the guest's network devices: which are taken, and how they are filled and
//! emptied while the VM runs.
//!
//! The VMM puts a device into a slot, then the guest's driver is told to look at it; and the
//! other way round. Whatever the guest does, an unplugged device has let go of its tap.

use std::sync::{Mutex, MutexGuard, PoisonError};

use agent_protocol::agent::Link;
use husk_vmm::config::MAX_NICS;
use thiserror::Error;

use super::agent::{Agent, AgentError};
use super::control::{Control, ControlError};
use super::network::Nic;

/// Why a device was not plugged or unplugged.
#[derive(Debug, Error)]
pub enum NicError {
    /// All slots are taken.
    #[error(
        "the virtual machine has {MAX_NICS} network devices already, and room for no more: take some links out of the pod's network namespace"
    )]
    Full,
    /// The VMM.
    #[error("network device in slot {slot}")]
    Vmm {
        /// Which device.
        slot: u32,
        /// What it says.
        source: ControlError,
    },
    /// The guest.
    #[error("network device in slot {slot}")]
    Guest {
        /// Which device.
        slot: u32,
        /// What it says.
        source: AgentError,
    },
    /// The guest has some other device there than the one that was plugged.
    #[error("the guest shows a link with another Ethernet address in slot {slot}")]
    Other {
        /// Which slot.
        slot: u32,
    },
}

/// Which slots are taken.
struct Slots(Mutex<[bool; MAX_NICS as usize]>);

impl Slots {
    fn new(taken: usize) -> Self {
        Self(Mutex::new(std::array::from_fn(|slot| slot < taken)))
    }

    fn lock(&self) -> MutexGuard<'_, [bool; MAX_NICS as usize]> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// The first empty slot.
    fn take(&self) -> Result<u32, NicError> {
        let mut slots = self.lock();
        let empty = (0..).zip(slots.iter_mut()).find(|(_, taken)| !**taken);
        let (slot, taken) = empty.ok_or(NicError::Full)?;
        *taken = true;
        Ok(slot)
    }

    fn give_back(&self, slot: u32) {
        if let Some(taken) = self.lock().get_mut(slot as usize) {
            *taken = false;
        }
    }
}

/// A device of the running guest.
#[derive(Clone, Debug, PartialEq)]
pub struct Plugged {
    /// Where it is.
    pub slot: u32,
    /// What the guest's kernel made of it.
    pub link: Link,
}

/// The slots of a VM.
pub struct Nics {
    slots: Slots,
    control: Control,
    agent: Agent,
}

impl Nics {
    /// Of a VM that has booted with `at_boot` devices, which are in the first slots, in the
    /// order of its configuration.
    pub fn new(at_boot: usize, control: Control, agent: Agent) -> Self {
        Self {
            slots: Slots::new(at_boot),
            control,
            agent,
        }
    }

    /// Gives the guest one more device. Its link is down and has the name that the guest's
    /// kernel chose.
    ///
    /// # Errors
    /// See [`NicError`]; the guest is then without the device and its tap is closed.
    pub async fn plug(&self, nic: Nic) -> Result<Plugged, NicError> {
        let slot = self.slots.take()?;
        let mac = nic.mac;
        if let Err(source) = self.control.plug_nic(slot, nic).await {
            self.slots.give_back(slot);
            return Err(NicError::Vmm { slot, source });
        }
        let link = match self.agent.plug_nic(slot).await {
            Ok(link) if link.mac == mac => return Ok(Plugged { slot, link }),
            Ok(_) => NicError::Other { slot },
            Err(source) => NicError::Guest { slot, source },
        };
        if let Err(error) = self.unplug(slot).await {
            let error = crate::error::chain(&error);
            log::warn!("what was plugged in vain: {error}");
        }
        Err(link)
    }

    /// Takes a device away. Its tap is closed when this returns `Ok`; a guest that did not
    /// let go of the device is left with one that does nothing.
    ///
    /// # Errors
    /// [`NicError::Vmm`]: the slot stays taken.
    pub async fn unplug(&self, slot: u32) -> Result<(), NicError> {
        let let_go = self.agent.unplug_nic(slot).await;
        let unplugged = self.control.unplug_nic(slot).await;
        unplugged.map_err(|source| NicError::Vmm { slot, source })?;
        if let Err(error) = let_go {
            log::warn!("network device in slot {slot}: the guest does not let go: {error}");
        }
        self.slots.give_back(slot);
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn slots_are_taken_lowest_first_up_to_the_last() {
        let slots = Slots::new(2);
        let taken: Vec<u32> = std::iter::from_fn(|| slots.take().ok()).collect();
        assert_eq!(taken, (2..MAX_NICS).collect::<Vec<_>>());
        let error = slots.take().unwrap_err().to_string();
        assert!(error.contains("has 16 network devices"), "{error}");
        slots.give_back(7);
        slots.give_back(MAX_NICS);
        assert_eq!(slots.take().unwrap(), 7);
        assert!(slots.take().is_err());
    }
}
