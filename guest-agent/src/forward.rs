//! Connections to the pod's loopback on the host, carried on to a server in the guest.

use std::io;
use std::iter;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use agent_protocol::forward::{CONNECTED, DIAL_DEADLINE, HEADER_LEN, REFUSED, decode, join};
use nix::ifaddrs::getifaddrs;
use nix::net::if_::InterfaceFlags;
use nix::sys::socket::SockaddrStorage;
use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt};
use tokio::net::TcpStream;
use tokio::time::timeout;

/// How long a new stream may take to say where it wants to go.
const HEADER_DEADLINE: Duration = Duration::from_secs(10);

/// Serves one stream of the host's to its end. Whatever breaks ends both sides, which is how
/// the host learns of it.
pub async fn serve(mut host: impl AsyncRead + AsyncWrite + Unpin + Send) -> io::Result<()> {
    let mut header = [0; HEADER_LEN];
    timeout(HEADER_DEADLINE, host.read_exact(&mut header)).await??;
    match timeout(DIAL_DEADLINE, dial(decode(header))).await {
        Ok(Some(server)) => {
            server.set_nodelay(true)?;
            host.write_all(&[CONNECTED]).await?;
            join(host, server).await
        }
        Ok(None) | Err(_) => host.write_all(&[REFUSED]).await,
    }
}

/// The first server that accepts: at the dialled address, on the loopback of the other
/// version of IP (who dials in the pod's namespace has no second try, the first seems to
/// succeed), at an address of the pod.
async fn dial(dialled: SocketAddr) -> Option<TcpStream> {
    let port = dialled.port();
    let other: SocketAddr = if dialled.is_ipv4() {
        (Ipv6Addr::LOCALHOST, port).into()
    } else {
        (Ipv4Addr::LOCALHOST, port).into()
    };
    let first = iter::once(dialled).chain(iter::once(other));
    for address in first.chain(own_addresses(dialled)) {
        if let Ok(server) = TcpStream::connect(address).await
            && !is_own_echo(&server)
        {
            return Some(server);
        }
    }
    None
}

/// Whether the kernel has joined the socket with itself: it may give a connection the very port
/// that it goes to.
fn is_own_echo(server: &TcpStream) -> bool {
    matches!((server.local_addr(), server.peer_addr()), (Ok(own), Ok(peer)) if own == peer)
}

/// The addresses of links other than lo, those of the dialled version of IP first.
fn own_addresses(dialled: SocketAddr) -> Vec<SocketAddr> {
    let mut addresses: Vec<SocketAddr> = getifaddrs()
        .into_iter()
        .flatten()
        .filter(|link| !link.flags.contains(InterfaceFlags::IFF_LOOPBACK))
        .filter_map(|link| socket_address(&link.address?))
        .collect();
    addresses.sort_by_key(|address| address.is_ipv4() != dialled.is_ipv4());
    for address in &mut addresses {
        address.set_port(dialled.port());
    }
    addresses
}

/// With the link's number where the address means nothing without.
fn socket_address(address: &SockaddrStorage) -> Option<SocketAddr> {
    let v4 = address.as_sockaddr_in().copied();
    let v6 = address.as_sockaddr_in6().copied();
    v4.map(|v4| SocketAddr::V4(v4.into()))
        .or_else(|| v6.map(|v6| SocketAddr::V6(v6.into())))
}

#[cfg(test)]
mod tests {
    use super::*;
    use agent_protocol::forward::encode;
    use tokio::io::{DuplexStream, duplex};
    use tokio::net::TcpListener;

    /// Asks for `dialled`; returns the host's end and the answer.
    async fn asked(dialled: SocketAddr) -> (DuplexStream, u8) {
        let (mut host, agent) = duplex(64);
        tokio::spawn(serve(agent));
        host.write_all(&encode(dialled)).await.unwrap();
        let answer = host.read_u8().await.unwrap();
        (host, answer)
    }

    #[tokio::test]
    async fn a_server_is_reached_and_hears_the_end() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let (mut host, answer) = asked(listener.local_addr().unwrap()).await;
        assert_eq!(answer, CONNECTED);
        let (mut server, _) = listener.accept().await.unwrap();
        host.write_all(b"question").await.unwrap();
        host.shutdown().await.unwrap();
        let mut heard = String::new();
        server.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "question");
        server.write_all(b"answer").await.unwrap();
        drop(server);
        heard.clear();
        host.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "answer");
    }

    #[tokio::test]
    async fn loopback_of_the_other_version_will_do() {
        let Ok(listener) = TcpListener::bind("[::1]:0").await else {
            return eprintln!("skipped: no IPv6");
        };
        let port = listener.local_addr().unwrap().port();
        let (_host, answer) = asked((Ipv4Addr::LOCALHOST, port).into()).await;
        assert_eq!(answer, CONNECTED);
    }

    #[tokio::test]
    async fn a_server_at_an_address_of_the_pod_will_do() {
        let any = (Ipv4Addr::LOCALHOST, 0).into();
        let Some(&own) = own_addresses(any).first() else {
            return eprintln!("skipped: no link with an address");
        };
        let listener = TcpListener::bind(own).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (_host, answer) = asked((Ipv6Addr::LOCALHOST, port).into()).await;
        assert_eq!(answer, CONNECTED);
    }

    #[tokio::test]
    async fn nobody_there_is_a_refusal() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap();
        drop(listener);
        let (mut host, answer) = asked(address).await;
        assert_eq!(answer, REFUSED);
        assert_eq!(host.read(&mut [0]).await.unwrap(), 0);
    }

    #[tokio::test(start_paused = true)]
    async fn who_does_not_say_where_to_is_sent_away() {
        let (mut host, agent) = duplex(64);
        host.write_all(&[0; HEADER_LEN - 1]).await.unwrap();
        let ended = serve(agent).await.unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
    }
}
