//! The control socket to the VMM: one request at a time, each with a deadline.
//!
//! A task owns the socket, so requests queue up without a lock. Its end closes the
//! socket, and with that the VMM exits: a sandbox never outlives its shim.

use std::io::{self, IoSlice};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::Duration;

use husk_vmm::config::{CachePolicy, Export, MacAddress};
use husk_vmm::control::{MAX_PACKET_LEN, Request, Response};
use nix::sys::socket::{ControlMessage, MsgFlags, UnixAddr, recv, sendmsg};
use thiserror::Error;
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;
use tokio::sync::{mpsc, oneshot};
use tokio::time::timeout;

use super::network::Nic;
use crate::sys;

/// How long the VMM may take for one request. Opening a directory of a volume is part of
/// it, which a file system on the network may let wait.
const DEADLINE: Duration = Duration::from_secs(60);

/// Why the VMM did not do what it was asked to.
#[derive(Debug, Error)]
pub enum ControlError {
    /// It answered with an error.
    #[error("the VMM refused: {0}")]
    Refused(String),
    /// It did not answer, or it is gone.
    #[error("the VMM does not answer on its control socket")]
    Silent(#[source] io::Error),
}

/// A handle on the VMM's control socket; clones share it.
#[derive(Clone, Debug)]
pub struct Control(mpsc::Sender<Call>);

struct Call {
    request: Request,
    /// Goes along with the request.
    descriptor: Option<OwnedFd>,
    done: oneshot::Sender<Result<Response, ControlError>>,
}

impl Control {
    /// Takes over the shim's end of the socket pair.
    pub fn start(socket: OwnedFd) -> io::Result<Self> {
        let socket = sys::watchable(socket)?;
        let (calls, queue) = mpsc::channel(16);
        tokio::spawn(serve(socket, queue));
        Ok(Self(calls))
    }

    /// Exports one more tree of the share.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn add_share(&self, path: &Path, cache: CachePolicy) -> Result<(), ControlError> {
        let path = path.to_owned();
        let export = Export { path, cache };
        self.call(Request::AddShare { export }).await.map(drop)
    }

    /// Takes a tree back; the VMM holds nothing below it afterwards.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn remove_share(&self, path: PathBuf) -> Result<(), ControlError> {
        self.call(Request::RemoveShare { path }).await.map(drop)
    }

    /// Starts the thread that stands for a container. Returns its id in the VMM's pid
    /// namespace.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn add_thread(&self, container: String) -> Result<i32, ControlError> {
        match self.call(Request::AddThread { container }).await? {
            Response::Thread(id) => Ok(id),
            other => Err(ControlError::Refused(format!("no thread: {other:?}"))),
        }
    }

    /// Ends the thread that stands for a container.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn remove_thread(&self, container: String) -> Result<(), ControlError> {
        self.call(Request::RemoveThread { container })
            .await
            .map(drop)
    }

    /// Adds vCPUs until there are `count`. Returns how many there are.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn grow_vcpus(&self, count: u32) -> Result<u32, ControlError> {
        match self.call(Request::GrowVcpus { count }).await? {
            Response::Vcpus(count) => Ok(count),
            other => Err(ControlError::Refused(format!("no vCPUs: {other:?}"))),
        }
    }

    /// Has the guest plug memory until it has `mib` MiB. Returns how many it has.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn resize_memory(&self, mib: u32) -> Result<u32, ControlError> {
        match self.call(Request::ResizeMemory { mib }).await? {
            Response::MemoryMib(mib) => Ok(mib),
            other => Err(ControlError::Refused(format!("no memory: {other:?}"))),
        }
    }

    /// Puts a network device into an empty slot. The tap is the VMM's alone then.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn plug_nic(&self, slot: u32, nic: Nic) -> Result<(), ControlError> {
        let (mac, mtu) = (MacAddress(nic.mac), nic.mtu);
        let request = Request::PlugNic { slot, mac, mtu };
        self.call_with(request, Some(nic.tap)).await.map(drop)
    }

    /// Takes the network device out of a slot, if there is one; its tap is gone afterwards.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn unplug_nic(&self, slot: u32) -> Result<(), ControlError> {
        self.call(Request::UnplugNic { slot }).await.map(drop)
    }

    /// Stops the machine at once.
    ///
    /// # Errors
    /// See [`ControlError`].
    pub async fn stop(&self) -> Result<(), ControlError> {
        self.call(Request::Stop).await.map(drop)
    }

    async fn call(&self, request: Request) -> Result<Response, ControlError> {
        self.call_with(request, None).await
    }

    async fn call_with(
        &self,
        request: Request,
        descriptor: Option<OwnedFd>,
    ) -> Result<Response, ControlError> {
        let (done, answer) = oneshot::channel();
        let gone = || ControlError::Silent(io::ErrorKind::BrokenPipe.into());
        let call = Call {
            request,
            descriptor,
            done,
        };
        self.0.send(call).await.map_err(|_| gone())?;
        answer.await.map_err(|_| gone())?
    }
}

/// Answers come in order; after a missed one they could not be told apart any
/// more, so the first failure of the socket ends the conversation.
async fn serve(socket: AsyncFd<OwnedFd>, mut queue: mpsc::Receiver<Call>) {
    while let Some(call) = queue.recv().await {
        let exchanged = exchange(&socket, &call.request, call.descriptor);
        let result = match timeout(DEADLINE, exchanged).await {
            Ok(Ok(Response::Error(text))) => Err(ControlError::Refused(text)),
            Ok(Ok(done)) => Ok(done),
            Ok(Err(error)) => Err(ControlError::Silent(error)),
            Err(_) => Err(ControlError::Silent(io::ErrorKind::TimedOut.into())),
        };
        let broken = matches!(result, Err(ControlError::Silent(_)));
        // Nobody waits for the answer any more: nothing to do about it.
        drop(call.done.send(result));
        if broken {
            queue.close();
        }
    }
}

async fn exchange(
    socket: &AsyncFd<OwnedFd>,
    request: &Request,
    descriptor: Option<OwnedFd>,
) -> io::Result<Response> {
    let packet = serde_json::to_vec(request)?;
    let flags = MsgFlags::MSG_DONTWAIT | MsgFlags::MSG_NOSIGNAL;
    let fd = socket.get_ref().as_raw_fd();
    let fds: Vec<_> = descriptor.iter().map(AsRawFd::as_raw_fd).collect();
    socket
        .async_io(Interest::WRITABLE, |_| {
            let rights = [ControlMessage::ScmRights(&fds)];
            let rights = if fds.is_empty() { &[][..] } else { &rights };
            let packet = [IoSlice::new(&packet)];
            Ok(sendmsg::<UnixAddr>(fd, &packet, rights, flags, None)?)
        })
        .await?;
    drop(descriptor);
    let mut answer = vec![0; MAX_PACKET_LEN];
    let length = socket
        .async_io(Interest::READABLE, |_| {
            Ok(recv(fd, &mut answer, MsgFlags::MSG_DONTWAIT)?)
        })
        .await?;
    if length == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    Ok(serde_json::from_slice(&answer[..length])?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use nix::sys::socket::{AddressFamily, SockFlag, SockType, send, socketpair};

    fn pair() -> (Control, OwnedFd) {
        let flags = SockFlag::SOCK_CLOEXEC;
        let (ours, vmm) =
            socketpair(AddressFamily::Unix, SockType::SeqPacket, None, flags).unwrap();
        (Control::start(ours).unwrap(), vmm)
    }

    /// Answers one request like a VMM would; returns the request.
    fn answer(vmm: &OwnedFd, response: &Response) -> Request {
        let mut packet = [0; MAX_PACKET_LEN];
        let length = recv(vmm.as_raw_fd(), &mut packet, MsgFlags::empty()).unwrap();
        let json = serde_json::to_vec(response).unwrap();
        send(vmm.as_raw_fd(), &json, MsgFlags::empty()).unwrap();
        serde_json::from_slice(&packet[..length]).unwrap()
    }

    #[tokio::test]
    async fn requests_are_answered_in_order() {
        let (control, vmm) = pair();
        let vmm = std::thread::spawn(move || {
            let add = answer(&vmm, &Response::Ok);
            (add, answer(&vmm, &Response::Error("no such tree".into())))
        });
        control
            .add_share(Path::new("a"), CachePolicy::Always)
            .await
            .unwrap();
        let error = control.remove_share("b".into()).await.unwrap_err();
        assert!(matches!(error, ControlError::Refused(text) if text == "no such tree"));
        let (add, remove) = vmm.join().unwrap();
        assert!(matches!(add, Request::AddShare { export } if export.path == Path::new("a")));
        assert_eq!(remove, Request::RemoveShare { path: "b".into() });
    }

    #[tokio::test]
    async fn a_tap_goes_along_with_its_request() {
        let (control, vmm) = pair();
        let (tap, far) = nix::unistd::pipe().unwrap();
        let vmm = std::thread::spawn(move || {
            let mut packet = [0; MAX_PACKET_LEN];
            let (length, came) = husk_vmm::scm::receive(&vmm, &mut packet).unwrap();
            let mut came = came.unwrap();
            send(vmm.as_raw_fd(), br#""ok""#, MsgFlags::empty()).unwrap();
            nix::unistd::write(&far, b"x").unwrap();
            let mut byte = [0];
            nix::unistd::read(came.pop().unwrap(), &mut byte).unwrap();
            let request = serde_json::from_slice::<Request>(&packet[..length]).unwrap();
            (request, byte, came.len())
        });
        let (mac, mtu) = ([2, 0, 0, 0, 0, 1], 1400);
        control.plug_nic(3, Nic { tap, mac, mtu }).await.unwrap();
        let (slot, mac) = (3, MacAddress(mac));
        let expected = Request::PlugNic { slot, mac, mtu };
        assert_eq!(vmm.join().unwrap(), (expected, [b'x'], 0));
    }

    #[tokio::test]
    async fn a_dead_vmm_is_an_error_for_every_later_request() {
        let (control, vmm) = pair();
        drop(vmm);
        for _ in 0..2 {
            assert!(matches!(control.stop().await, Err(ControlError::Silent(_))));
        }
    }
}
