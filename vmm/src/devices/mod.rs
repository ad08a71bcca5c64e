//! What the guest can talk to.
//!
//! | device | at | kernel option it needs |
//! |---|---|---|
//! | [`serial`] | port 0x3f8, GSI 4 | `CONFIG_SERIAL_8250_CONSOLE` |
//! | [`i8042`] | ports 0x60 to 0x64 | none; `reboot=k` uses it |
//! | [`debug_port`] | port 0xf4 | none; PID 1 writes to it |
//! | [`virtio::rng`] | virtio-mmio | `CONFIG_HW_RANDOM_VIRTIO` |
//! | [`virtio::vsock`] | virtio-mmio | `CONFIG_VIRTIO_VSOCKETS` |
//! | [`virtio::fs`] | virtio-mmio | `CONFIG_VIRTIO_FS` |
//! | [`virtio::balloon`] | virtio-mmio | `CONFIG_VIRTIO_BALLOON`, `CONFIG_PAGE_REPORTING` |
//! | [`virtio::mem`] | virtio-mmio | `CONFIG_VIRTIO_MEM` |
//! | [`virtio::net`] | virtio-mmio | `CONFIG_VIRTIO_NET` |
//!
//! virtio-mmio devices also need `CONFIG_VIRTIO_MMIO` and
//! `CONFIG_VIRTIO_MMIO_CMDLINE_DEVICES`.

pub mod debug_port;
pub mod i8042;
pub mod serial;
pub mod virtio;
