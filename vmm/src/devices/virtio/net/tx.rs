//! From the guest to the link (virtio 1.2, 5.1.6.2): one chain, one frame, one write.

use std::io;

use super::buffers::{Access, Buffers};
use super::tap::Link;
use super::{ETHERNET_LEN, HEADER_LEN, MAX_FRAME_LEN};
use crate::devices::virtio::pump::QueuePump;
use crate::memory::GuestMemory;

/// What keeps a frame in the queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stuck {
    /// The link is full; it will say when it is not.
    Full,
    /// The host is short of memory; nobody says when it is not.
    NoMemory,
}

/// The transmit queue.
pub struct Transmitter {
    queue: QueuePump,
    mem: GuestMemory,
    /// Chains that are no frame, or one that the link refuses.
    dropped: u64,
}

impl Transmitter {
    /// Serves `queue`.
    pub fn new(queue: QueuePump, mem: GuestMemory) -> Self {
        Self {
            queue,
            mem,
            dropped: 0,
        }
    }

    /// The queue, for its kick.
    pub fn queue(&self) -> &QueuePump {
        &self.queue
    }

    /// Takes nothing more from the queue; the driver has to reset the device.
    pub fn fail(&mut self) {
        self.queue.fail();
    }

    /// How many chains were given back without anything having been sent.
    pub fn dropped(&self) -> u64 {
        self.dropped
    }

    /// Sends what the driver has queued, at most a queue's worth. Tells what keeps the first
    /// frame that could not be sent, and stays in the queue.
    pub fn run(&mut self, link: &dyn Link) -> Option<Stuck> {
        let Self {
            queue,
            mem,
            dropped,
        } = self;
        let mut stuck = None;
        queue.drain(|chain| {
            let sent = match Buffers::of(&chain, Access::Read) {
                Some(frame) => send(link, mem, &frame),
                None => Err(io::ErrorKind::InvalidData.into()),
            };
            let Err(error) = sent else {
                return Some(0);
            };
            stuck = is_stuck(&error);
            if stuck.is_some() {
                return None;
            }
            *dropped += 1;
            log::debug!(target: "guest", "net: dropped a frame: {error}");
            Some(0)
        });
        stuck
    }
}

fn send(link: &dyn Link, mem: &GuestMemory, frame: &Buffers) -> io::Result<()> {
    let mut parts = Vec::new();
    let is_frame = (HEADER_LEN + ETHERNET_LEN..=MAX_FRAME_LEN).contains(&frame.len);
    if !is_frame || frame.locate(mem, &mut parts).is_none() {
        return Err(io::ErrorKind::InvalidData.into());
    }
    link.send(&parts)
}

fn is_stuck(error: &io::Error) -> Option<Stuck> {
    match error.raw_os_error()? {
        // A signal, which is to say at once.
        libc::EAGAIN | libc::EINTR => Some(Stuck::Full),
        libc::ENOBUFS | libc::ENOMEM => Some(Stuck::NoMemory),
        _ => None,
    }
}
