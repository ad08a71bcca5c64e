//! What is dialled on the pod's loopback on the host goes on to a server in the guest.
//!
//! ```text
//!   containerd -> 127.0.0.1:80 (loopback) -> this -> vsock -> agent -> 127.0.0.1:80
//! ```
//!
//! The kernel has accepted for us before the guest is asked, so a refusal is a reset. So is a
//! connection that is cut: one is closed as usual only when both sides have ended theirs. What
//! a server in the guest resets, vsock tells as its end.
//!
//! The guest never opens one of these streams; it has those that somebody on the host asked for.

use std::future::poll_fn;
use std::io;
use std::net::SocketAddr;
use std::task::Poll;
use std::time::Duration;

use agent_protocol::forward::{self, CONNECTED, DIAL_DEADLINE, FORWARD_PORT};
use nix::sys::socket::{setsockopt, sockopt};
use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream, UnixStream};
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{sleep, timeout};

use super::loopback::Loopback;
use crate::sandbox::vmm_process::{self, VmmEnd};
use crate::sandbox::vsock::Vsock;

/// Most connections at a time.
const MAX_CONNECTIONS: usize = 128;
/// How long to wait before accepting again when the process is out of descriptors.
const ACCEPT_PAUSE: Duration = Duration::from_millis(100);

/// Serves the pod's loopback until the VMM has ended; then all connections are cut, and the
/// namespace is left.
///
/// # Errors
/// If the listeners cannot be waited for.
pub fn start(
    loopback: Loopback,
    vsock: Vsock,
    mut gone: watch::Receiver<Option<VmmEnd>>,
) -> io::Result<()> {
    let watched = |listener: &std::net::TcpListener| {
        let listener = listener.try_clone()?;
        listener.set_nonblocking(true)?;
        TcpListener::from_std(listener)
    };
    let listeners: Vec<_> = loopback
        .listeners
        .iter()
        .map(watched)
        .collect::<io::Result<_>>()?;
    tokio::spawn(async move {
        tokio::select! {
            () = serve(&listeners, vsock) => {}
            _ = vmm_process::end(&mut gone) => {}
        }
        drop(loopback);
    });
    Ok(())
}

async fn serve(listeners: &[TcpListener], vsock: Vsock) {
    let mut connections = JoinSet::new();
    loop {
        let client = match accept(listeners).await {
            Ok(client) => client,
            Err(error) => {
                log::warn!("port-forward: cannot accept a connection: {error}");
                sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        if connections.len() >= MAX_CONNECTIONS {
            log::warn!(
                "port-forward: {client:?} is refused, {MAX_CONNECTIONS} connections are open"
            );
            continue;
        }
        let vsock = vsock.clone();
        connections.spawn(async move {
            if let Err(error) = carry(client, &vsock).await {
                log::debug!("port-forward: {error}");
            }
        });
    }
}

/// The next connection to any of them. Dropped, it is reset.
async fn accept(listeners: &[TcpListener]) -> io::Result<TcpStream> {
    let accepted = poll_fn(|context| {
        for listener in listeners {
            let accepted = listener.poll_accept(context);
            if accepted.is_ready() {
                return accepted;
            }
        }
        // All were asked, so all wake this task.
        Poll::Pending
    });
    let (client, _) = accepted.await?;
    reset_when_dropped(&client, true)?;
    // What is held back here was held back already where it came from.
    client.set_nodelay(true)?;
    Ok(client)
}

fn reset_when_dropped(client: &TcpStream, reset: bool) -> io::Result<()> {
    let linger = libc::linger {
        l_onoff: reset.into(),
        l_linger: 0,
    };
    Ok(setsockopt(client, sockopt::Linger, &linger)?)
}

/// One connection, from its first byte to its last.
async fn carry(mut client: TcpStream, vsock: &Vsock) -> io::Result<()> {
    let dialled = client.local_addr()?;
    let guest = timeout(DIAL_DEADLINE, dial(vsock, dialled)).await??;
    forward::join(&mut client, guest).await?;
    reset_when_dropped(&client, false)
}

async fn dial(vsock: &Vsock, dialled: SocketAddr) -> io::Result<UnixStream> {
    let mut guest = vsock.connect(FORWARD_PORT).await?;
    guest.write_all(&forward::encode(dialled)).await?;
    match guest.read_u8().await {
        Ok(CONNECTED) => Ok(guest),
        _ => Err(io::Error::new(
            io::ErrorKind::ConnectionRefused,
            format!(
                "nothing in the guest listens on TCP port {}",
                dialled.port()
            ),
        )),
    }
}

#[cfg(test)]
#[path = "forward_test.rs"]
mod tests;
