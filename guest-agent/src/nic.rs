//! Network devices that come and go: the slots of the virtio-mmio bus that are empty at boot.
//!
//! Linux makes a platform device of each slot that its command line names. Its driver finds an
//! empty one empty and leaves it alone, until it is told to look again (`bind`). Both that and
//! the opposite (`unbind`) return when the link is there or gone: nothing here ever waits.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};

use agent_protocol::agent::Link;
use nix::errno::Errno;

use crate::error::Error;
use crate::{console, network};

/// Where the kernel shows its platform devices, and the driver of the slots.
const PLATFORM: &str = "/sys/bus/platform";
const DRIVER: &str = "drivers/virtio-mmio";

/// Has the driver take the device in slot `number`; returns its link.
pub fn plug(number: u32) -> Result<Link, Error> {
    let slot = Slot::new(Path::new(PLATFORM), number);
    // Left from a device that was taken away when the driver did not let go of it.
    slot.unbind()?;
    slot.bind()?;
    let link = slot.link();
    if link.is_err()
        && let Err(error) = slot.unbind()
    {
        console::warn(format_args!("after a device without a link: {error}"));
    }
    link
}

/// Has the driver let go of the device in slot `number`, if it holds one.
pub fn unplug(number: u32) -> Result<(), Error> {
    Slot::new(Path::new(PLATFORM), number).unbind()
}

struct Slot {
    /// The platform device.
    name: String,
    device: PathBuf,
    driver: PathBuf,
}

impl Slot {
    fn new(platform: &Path, number: u32) -> Self {
        let name = format!("virtio-mmio.{number}");
        Self {
            device: platform.join("devices").join(&name),
            driver: platform.join(DRIVER),
            name,
        }
    }

    fn bind(&self) -> Result<(), Error> {
        if !self.device.exists() {
            return Err(Error::NotFound {
                kind: "slot",
                id: self.name.clone(),
            });
        }
        // ENODEV: the slot is empty.
        let bound = fs::write(self.driver.join("bind"), &self.name);
        bound.map_err(|error| self.refused("a device", &error))
    }

    fn unbind(&self) -> Result<(), Error> {
        if !self.driver.join(&self.name).exists() {
            return Ok(());
        }
        let unbound = fs::write(self.driver.join("unbind"), &self.name);
        unbound.map_err(|error| self.refused("letting go", &error))
    }

    /// The link of the network device, below the virtio device: `virtio5/net/eth1`.
    fn link(&self) -> Result<Link, Error> {
        let failed = |error| self.refused("its link", &error);
        for device in fs::read_dir(&self.device).map_err(failed)? {
            let device = device.map_err(failed)?.path();
            let Ok(mut links) = fs::read_dir(device.join("net")) else {
                continue;
            };
            if let Some(link) = links.next() {
                return network::link(&link.map_err(failed)?.path()).map_err(failed);
            }
        }
        Err(failed(io::Error::from(Errno::ENXIO)))
    }

    fn refused(&self, what: &str, error: &io::Error) -> Error {
        Error::Network {
            what: format!("{what} in slot {}", self.name),
            errno: Errno::from_raw(error.raw_os_error().unwrap_or(libc::EIO)),
            text: String::new(),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// A directory that looks like the kernel's, with the slot 3.
    struct Platform(PathBuf);

    impl Platform {
        fn new(test: &str) -> Self {
            let name = format!("husk-nic-{test}-{}", std::process::id());
            let platform = Self(std::env::temp_dir().join(name));
            platform.make("devices/virtio-mmio.3/power");
            platform.make(DRIVER);
            platform
        }

        fn make(&self, dir: &str) {
            fs::create_dir_all(self.0.join(dir)).unwrap();
        }

        fn slot(&self, number: u32) -> Slot {
            Slot::new(&self.0, number)
        }

        fn told(&self, file: &str) -> Option<String> {
            fs::read_to_string(self.0.join(DRIVER).join(file)).ok()
        }
    }

    impl Drop for Platform {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn the_driver_is_told_the_slots_device() {
        let platform = Platform::new("told");
        let slot = platform.slot(3);
        slot.bind().unwrap();
        assert_eq!(platform.told("bind").unwrap(), "virtio-mmio.3");
        slot.unbind().unwrap();
        assert_eq!(platform.told("unbind"), None, "it holds nothing");
        platform.make("drivers/virtio-mmio/virtio-mmio.3");
        slot.unbind().unwrap();
        assert_eq!(platform.told("unbind").unwrap(), "virtio-mmio.3");
    }

    #[test]
    fn the_link_is_that_of_the_slot() {
        let platform = Platform::new("link");
        let slot = platform.slot(3);
        let error = slot.link().unwrap_err().to_string();
        assert!(error.contains("its link in slot virtio-mmio.3"), "{error}");
        let link = "devices/virtio-mmio.3/virtio7/net/eth1";
        platform.make(link);
        assert!(slot.link().is_err(), "without a number");
        for (file, text) in [("ifindex", "9\n"), ("address", "02:00:00:00:00:0a\n")] {
            fs::write(platform.0.join(link).join(file), text).unwrap();
        }
        let link = slot.link().unwrap();
        assert_eq!((link.index, link.name.as_str()), (9, "eth1"));
        assert_eq!(link.mac, [2, 0, 0, 0, 0, 10]);
    }

    #[test]
    fn a_slot_that_is_not_there_is_named() {
        let platform = Platform::new("none");
        let error = platform.slot(4).bind().unwrap_err().to_string();
        assert!(error.contains("virtio-mmio.4"), "{error}");
    }
}
