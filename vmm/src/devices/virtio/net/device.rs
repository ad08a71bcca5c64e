//! The device: two virtqueues on the event loop, and the link behind them.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use virtio_bindings::virtio_ids::VIRTIO_ID_NET;
use virtio_bindings::virtio_net::VIRTIO_NET_F_MRG_RXBUF;
use vmm_sys_util::timerfd::TimerFd;

use super::MAX_FRAME_LEN;
use super::features;
use super::rx::{Receiver, Wait};
use super::tap::Link;
use super::tx::{Stuck, Transmitter};
use crate::config::MacAddress;
use crate::devices::virtio::pump::QueuePump;
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice, copy_config};
use crate::event_loop::{LoopHandle, Registration};

/// Sizes of the receive and the transmit queue. Linux fills the receive queue with buffers
/// of a frame of the MTU each, so its size costs guest memory.
const QUEUE_SIZES: [u16; 2] = [256, 256];
/// Length of the configuration space (virtio 1.2, 5.1.4), up to and including `mtu`.
const CONFIG_LEN: usize = 12;
/// How soon a frame is sent again that the host had no memory for.
const RETRY: Duration = Duration::from_millis(10);
/// Most frames thrown away when a driver begins.
const MAX_STALE: usize = 4096;

const RX_KICK: u32 = 0;
const TX_KICK: u32 = 1;
const LINK: u32 = 2;
const TIMER: u32 = 3;

/// The network device.
pub struct Net {
    link: Arc<dyn Link>,
    config: [u8; CONFIG_LEN],
    features: u64,
    event_loop: LoopHandle,
    active: Option<Registration>,
}

impl Net {
    /// A device with the address `mac`, which moves frames between the guest and `link`.
    pub fn new(link: Arc<dyn Link>, mac: MacAddress, mtu: u16, event_loop: LoopHandle) -> Self {
        let mut config = [0; CONFIG_LEN];
        // Status and the number of queue pairs between the two belong to features that
        // are not offered.
        config[..6].copy_from_slice(&mac.0);
        config[10..].copy_from_slice(&mtu.to_le_bytes());
        Self {
            features: features::offered(link.offloads()),
            link,
            config,
            event_loop,
            active: None,
        }
    }
}

impl VirtioDevice for Net {
    fn id(&self) -> u32 {
        VIRTIO_ID_NET
    }

    fn name(&self) -> &'static str {
        "net"
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    fn features(&self) -> u64 {
        self.features
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let offload = features::accepted(activation.features);
        let service = Service::new(self.link.clone(), activation)?;
        self.link.set_offload(offload)?;
        throw_away_stale_frames(&*self.link);
        self.active = Some(self.event_loop.add(Box::new(service))?);
        Ok(())
    }

    fn reset(&mut self) {
        let Some(registration) = self.active.take() else {
            return;
        };
        // Dropping the service lets go of the queues. A loop that has ended has dropped it.
        if let Err(error) = registration.remove() {
            log::debug!("net: reset while the event loop ends: {error}");
        }
        // The next driver may know less than this one did.
        if let Err(error) = self.link.set_offload(0) {
            log::debug!("net: the tap is gone: {error}");
        }
    }
}

/// What waits on the link came while no driver was there, or is in a form that the driver
/// before had accepted.
fn throw_away_stale_frames(link: &dyn Link) {
    let mut frame = vec![0; MAX_FRAME_LEN];
    let stale = (0..MAX_STALE)
        .take_while(|_| link.receive(&[], &mut frame).is_ok())
        .count();
    if stale > 0 {
        log::debug!("net: threw away {stale} frames from before the driver");
    }
}

/// An active device, on the event loop.
struct Service {
    link: Arc<dyn Link>,
    rx: Receiver,
    tx: Transmitter,
    rx_waits: Wait,
    tx_stuck: Option<Stuck>,
    /// The events of the link that are asked for; `None` when it is off the loop for good.
    interest: Option<EventSet>,
    timer: TimerFd,
}

impl Service {
    fn new(link: Arc<dyn Link>, activation: Activation) -> Result<Self, ActivateError> {
        let got = activation.queues.len();
        let Ok([rx, tx]) = <[QueuePump; 2]>::try_from(activation.queues) else {
            let want = QUEUE_SIZES.len();
            return Err(ActivateError::QueueCount { got, want });
        };
        let mergeable = features::has(activation.features, VIRTIO_NET_F_MRG_RXBUF);
        Ok(Self {
            link,
            rx: Receiver::new(rx, activation.mem.clone(), mergeable),
            tx: Transmitter::new(tx, activation.mem),
            // Until the first kick, which the transport gives.
            rx_waits: Wait::Buffers,
            tx_stuck: None,
            interest: Some(EventSet::empty()),
            timer: TimerFd::new().map_err(io::Error::from)?,
        })
    }

    fn receive(&mut self) {
        self.rx_waits = self.rx.run(&*self.link);
    }

    fn transmit(&mut self) {
        let before = std::mem::replace(&mut self.tx_stuck, self.tx.run(&*self.link));
        // Setting the timer takes its readiness away, too.
        let timer = if self.tx_stuck == Some(Stuck::NoMemory) {
            self.timer.reset(RETRY, None)
        } else if before == Some(Stuck::NoMemory) {
            self.timer.clear()
        } else {
            Ok(())
        };
        if let Err(error) = timer {
            log::error!("net: the timer cannot be set: {error}");
        }
    }

    fn link_events(&self, interest: EventSet) -> Events {
        Events::with_data_raw(self.link.as_raw_fd(), LINK, interest)
    }

    /// Asks for those events of the link that something waits for. It is readable while
    /// it has frames and nearly always writable, so asking for more would never let the
    /// loop sleep.
    fn settle_interest(&mut self, ops: &mut EventOps) {
        let Some(old) = self.interest else { return };
        let mut new = EventSet::empty();
        if self.rx_waits == Wait::Frame {
            new |= EventSet::IN;
        }
        if self.tx_stuck == Some(Stuck::Full) {
            new |= EventSet::OUT;
        }
        let done = if self.rx_waits == Wait::Nothing {
            self.interest = None;
            ops.remove(self.link_events(old))
        } else if new != old {
            self.interest = Some(new);
            ops.modify(self.link_events(new))
        } else {
            Ok(())
        };
        if let Err(error) = done {
            log::error!("net: the event loop does not watch the tap: {error}");
            self.fail();
        }
    }

    /// The driver hears of it, and has to reset the device.
    fn fail(&mut self) {
        self.rx.fail();
        self.tx.fail();
    }
}

impl MutEventSubscriber for Service {
    fn init(&mut self, ops: &mut EventOps) {
        let all = [
            Events::with_data(self.rx.queue().kick(), RX_KICK, EventSet::IN),
            Events::with_data(self.tx.queue().kick(), TX_KICK, EventSet::IN),
            Events::with_data(&self.timer, TIMER, EventSet::IN),
            self.link_events(EventSet::empty()),
        ];
        for events in all {
            if let Err(error) = ops.add(events) {
                log::error!("net: the event loop does not take the device: {error}");
                self.fail();
            }
        }
    }

    fn process(&mut self, events: Events, ops: &mut EventOps) {
        let set = events.event_set();
        match events.data() {
            RX_KICK => {
                self.rx.queue().ack_kick();
                self.receive();
            }
            TX_KICK => {
                self.tx.queue().ack_kick();
                self.transmit();
            }
            TIMER => self.transmit(),
            // A tap is removed with its network namespace, or by hand.
            _ if set.intersects(EventSet::ERROR | EventSet::HANG_UP) => {
                log::error!("net: the tap is gone");
                self.rx.lose_link();
                self.receive();
                self.transmit();
            }
            _ => {
                if set.contains(EventSet::IN) {
                    self.receive();
                }
                if set.contains(EventSet::OUT) {
                    self.transmit();
                }
            }
        }
        self.settle_interest(ops);
    }
}

impl Drop for Service {
    fn drop(&mut self) {
        let (oversized, dropped) = (self.rx.oversized(), self.tx.dropped());
        if oversized + dropped > 0 {
            // The guest chooses when, and how often.
            log::info!(target: "guest", "net: {oversized} frames to the guest and {dropped} from it were dropped");
        }
    }
}
