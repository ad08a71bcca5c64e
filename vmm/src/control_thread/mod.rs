//! The VMM's end of the control socket.
//!
//! Requests are carried out one after the other by a thread of their own: taking a tree
//! back waits for the file system, memory for the guest. That the shim has hung up must not wait for anything,
//! so the event loop listens for that.

use std::io;
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;

use event_manager::{EventOps, EventSet, Events, MutEventSubscriber};
use nix::sys::socket::{MsgFlags, send};
use thiserror::Error;

use crate::config::validate_nic;
use crate::control::{MAX_PACKET_LEN, Request, Response};
use crate::devices::virtio::fs::ShareControl;
use crate::event_loop::EventLoop;
use crate::exit::Exit;
use crate::exit_latch::ExitLatch;
use crate::growth::Growth;
use crate::scm;
use crate::slots::NicSlots;
use crate::stand_in::StandIns;

/// Why the control socket cannot be served.
#[derive(Debug, Error)]
#[error("cannot start the thread that serves the control socket")]
pub struct ControlError(#[from] std::io::Error);

/// What requests are about.
#[derive(Default)]
pub struct Controls {
    /// The exports, if there is a share.
    pub share: Option<ShareControl>,
    /// The size of the machine, once it runs.
    pub growth: Option<Growth>,
    /// The slots for network devices.
    pub nics: Option<NicSlots>,
}

/// Serves `socket` until the process ends.
pub fn start(
    socket: OwnedFd,
    controls: Controls,
    latch: ExitLatch,
    event_loop: &mut EventLoop,
) -> Result<(), ControlError> {
    let socket = Arc::new(socket);
    event_loop.add(Box::new(HangUp {
        socket: socket.clone(),
        latch: latch.clone(),
    }));
    std::thread::Builder::new()
        .name("control".into())
        .spawn(move || serve(&socket, &controls, &latch))?;
    Ok(())
}

fn serve(socket: &OwnedFd, controls: &Controls, latch: &ExitLatch) {
    // One byte more than allowed, to notice a packet that is longer.
    let mut packet = vec![0; MAX_PACKET_LEN + 1];
    let mut threads = StandIns::default();
    loop {
        let (received, came) = match scm::receive(socket, &mut packet) {
            Ok((0, _)) => break,
            Ok((len, came)) => (packet.get(..len).unwrap_or_default(), came),
            Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
            Err(error) => {
                log::error!("the control socket failed: {error}");
                break;
            }
        };
        let request = parse(received);
        let stop = matches!(request, Ok(Request::Stop));
        let response = request.and_then(|request| {
            let descriptors = came.map_err(|lost| lost.to_string())?;
            carry_out(request, descriptors, controls, &mut threads)
        });
        let response = response.unwrap_or_else(Response::Error);
        let Ok(json) = serde_json::to_vec(&response) else {
            break;
        };
        if let Err(error) = send(socket.as_raw_fd(), &json, MsgFlags::MSG_NOSIGNAL) {
            // Most likely the shim is gone, which the next `recv` tells.
            log::warn!("a request on the control socket cannot be answered: {error}");
        }
        if stop {
            // After the answer: the process ends with the machine.
            break;
        }
    }
    latch.trip(Exit::Stopped);
}

fn parse(packet: &[u8]) -> Result<Request, String> {
    if packet.len() > MAX_PACKET_LEN {
        return Err(format!("a request is longer than {MAX_PACKET_LEN} bytes"));
    }
    serde_json::from_slice(packet).map_err(|error| format!("not a request: {error}"))
}

fn carry_out(
    request: Request,
    descriptors: Vec<OwnedFd>,
    controls: &Controls,
    threads: &mut StandIns,
) -> Result<Response, String> {
    let share = controls.share.as_ref();
    let share = || share.ok_or("this VM was configured without a share");
    let growth = || controls.growth.as_ref().ok_or("the machine does not run");
    let nics = || controls.nics.as_ref().ok_or("the machine does not run");
    match request {
        Request::Stop => {}
        Request::AddShare { export } => {
            let valid = export.validate();
            valid.map_err(|error| error.within("export").to_string())?;
            let added = share()?.add(&export);
            added.map_err(|error| crate::log::chain(&error))?;
        }
        Request::RemoveShare { path } => {
            let removed = share()?.remove(&path);
            removed.map_err(|error| crate::log::chain(&error))?;
        }
        Request::GrowVcpus { count } => return growth()?.vcpus(count).map(Response::Vcpus),
        Request::ResizeMemory { mib } => return growth()?.memory(mib).map(Response::MemoryMib),
        Request::PlugNic { slot, mac, mtu } => {
            let object = format!("network device {slot}");
            validate_nic(mac, mtu).map_err(|error| format!("{object}: {error}"))?;
            let [tap] = <[OwnedFd; 1]>::try_from(descriptors).map_err(|came| {
                let came = came.len();
                format!(
                    "{object}: its tap must come with the request, alone; {came} descriptors came"
                )
            })?;
            let plugged = nics()?.plug(slot, tap, mac, mtu);
            plugged.map_err(|error| crate::log::chain(&error))?;
        }
        Request::UnplugNic { slot } => {
            let unplugged = nics()?.unplug(slot);
            unplugged.map_err(|error| crate::log::chain(&error))?;
        }
        Request::AddThread { container } => return threads.add(container).map(Response::Thread),
        Request::RemoveThread { container } => threads.remove(&container),
    }
    Ok(Response::Ok)
}

/// Ends the machine when the other end of the socket is closed.
struct HangUp {
    socket: Arc<OwnedFd>,
    latch: ExitLatch,
}

impl MutEventSubscriber for HangUp {
    fn init(&mut self, ops: &mut EventOps) {
        let hang_up = EventSet::HANG_UP | EventSet::READ_HANG_UP;
        if let Err(error) = ops.add(Events::new(&*self.socket, hang_up)) {
            log::error!("the event loop refused the control socket: {error}");
            self.latch.trip(Exit::Internal);
        }
    }

    fn process(&mut self, _events: Events, _ops: &mut EventOps) {
        self.latch.trip(Exit::Stopped);
    }
}

#[cfg(test)]
mod tests;
