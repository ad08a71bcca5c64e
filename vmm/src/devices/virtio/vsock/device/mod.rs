//! The device: three virtqueues, and the muxer behind them.

use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};

use event_manager::{EventOps, EventSet as LoopEvents, Events, MutEventSubscriber};
use thiserror::Error;
use virtio_bindings::virtio_ids::VIRTIO_ID_VSOCK;
use vmm_sys_util::epoll::EpollEvent;

use super::muxer::{FIRST_CALLER_TOKEN, Muxer};
use super::packet::{RxBuffer, TxPacket};
use crate::devices::virtio::pump::QueuePump;
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice, copy_config};
use crate::event_loop::{LoopHandle, Registration};
use crate::memory::GuestMemory;

/// Sizes of the receive, transmit and event queue. The driver keeps the receive queue
/// full of 4 KiB buffers, so its size costs guest memory; 64 of them are one credit
/// window of a Linux socket.
const QUEUE_SIZES: [u16; 3] = [64, 128, 16];

const RX_KICK: u64 = FIRST_CALLER_TOKEN;
const TX_KICK: u64 = FIRST_CALLER_TOKEN + 1;

/// Events taken from the muxer's epoll set at a time.
const EVENT_BATCH: usize = 64;

/// Why the device could not be built.
#[derive(Debug, Error)]
pub enum VsockError {
    /// The path's directory does not exist, the name is taken, or it is too long.
    #[error("cannot listen on the vsock socket {}", path.display())]
    Listen {
        /// The path given.
        path: PathBuf,
        /// What `bind` said.
        #[source]
        source: io::Error,
    },
}

/// The vsock device.
pub struct Vsock {
    guest_cid: u64,
    listener: UnixListener,
    guest_connect: PathBuf,
    event_loop: LoopHandle,
    active: Option<Registration>,
}

impl Vsock {
    /// A device for the guest `cid`. The host connects to `listener`; a guest
    /// connection to port P goes to the Unix socket `<guest_connect>_<P>`.
    pub fn new(
        cid: u32,
        listener: UnixListener,
        guest_connect: PathBuf,
        event_loop: LoopHandle,
    ) -> Self {
        Self {
            guest_cid: u64::from(cid),
            listener,
            guest_connect,
            event_loop,
            active: None,
        }
    }

    /// Binds the listener when it is given by path.
    pub fn listen(path: &Path) -> Result<UnixListener, VsockError> {
        UnixListener::bind(path).map_err(|source| VsockError::Listen {
            path: path.to_owned(),
            source,
        })
    }
}

impl VirtioDevice for Vsock {
    fn id(&self) -> u32 {
        VIRTIO_ID_VSOCK
    }

    fn name(&self) -> &'static str {
        "vsock"
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// None: streams only, no sequenced packets (5.10.3).
    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.guest_cid.to_le_bytes(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let service = Service::new(
            Muxer::new(
                self.guest_cid,
                self.listener.try_clone()?,
                self.guest_connect.clone(),
            )?,
            activation,
        )?;
        self.active = Some(self.event_loop.add(Box::new(service))?);
        Ok(())
    }

    fn reset(&mut self) {
        let Some(registration) = self.active.take() else {
            return;
        };
        // Dropping the service closes every stream. A loop that has ended has dropped it.
        if let Err(error) = registration.remove() {
            log::debug!("vsock: reset while the event loop ends: {error}");
        }
    }
}

/// An active device, on the event loop.
struct Service {
    mem: GuestMemory,
    rx: QueuePump,
    tx: QueuePump,
    /// The driver posts buffers here for events, of which there is one: that streams
    /// were lost while the guest was moved (5.10.6.7). It cannot happen yet, so the
    /// buffers stay where they are.
    _events: QueuePump,
    muxer: Muxer,
}

impl Service {
    fn new(muxer: Muxer, activation: Activation) -> Result<Self, ActivateError> {
        let got = activation.queues.len();
        let Ok([rx, tx, events]) = <[QueuePump; 3]>::try_from(activation.queues) else {
            let want = QUEUE_SIZES.len();
            return Err(ActivateError::QueueCount { got, want });
        };
        muxer.watch(rx.kick(), RX_KICK)?;
        muxer.watch(tx.kick(), TX_KICK)?;
        Ok(Self {
            mem: activation.mem,
            rx,
            tx,
            _events: events,
            muxer,
        })
    }

    /// One round of work: what the sockets have, what the guest has, what is due to the
    /// guest. Each part is bounded, and what is left over keeps a descriptor readable,
    /// so that the loop comes back after its other duties.
    fn run(&mut self) -> io::Result<()> {
        let mut events = [EpollEvent::default(); EVENT_BATCH];
        let count = self.muxer.poll(&mut events)?;
        for event in &events[..count] {
            match event.data() {
                RX_KICK => self.rx.ack_kick(),
                TX_KICK => self.tx.ack_kick(),
                token => self.muxer.on_event(token, event.event_set()),
            }
        }
        // The guest's side is always drained: it stops taking packets from the host while
        // too many answers of its own are stuck (virtio 1.2, 5.10.6.4).
        self.drain_tx();
        self.fill_rx();
        self.muxer.settle();
        Ok(())
    }

    fn drain_tx(&mut self) {
        let Self { mem, tx, muxer, .. } = self;
        tx.drain(|chain| {
            match TxPacket::parse(mem, chain) {
                Some(packet) => muxer.receive(&packet),
                None => log::debug!(target: "guest", "vsock: dropped a malformed packet"),
            }
            Some(0)
        });
    }

    fn fill_rx(&mut self) {
        let Self { mem, rx, muxer, .. } = self;
        if !muxer.has_packets() {
            return;
        }
        rx.drain(|chain| match RxBuffer::parse(mem, chain) {
            Some(buffer) => muxer.fill(buffer),
            // Too small for anything.
            None => Some(0),
        });
    }
}

impl MutEventSubscriber for Service {
    fn init(&mut self, ops: &mut EventOps) {
        let events = Events::new_raw(self.muxer.epoll_fd(), LoopEvents::IN);
        if let Err(error) = ops.add(events) {
            log::error!("vsock: the event loop does not take the device: {error}");
            self.rx.fail();
            self.tx.fail();
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        if let Err(error) = self.run() {
            log::error!("vsock: {error}");
        }
    }
}

#[cfg(test)]
mod tests;
