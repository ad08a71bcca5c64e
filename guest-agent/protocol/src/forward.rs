//! Connections to the pod's loopback addresses on the host, carried on to a server in the guest.
//!
//! For each one the shim connects to [`FORWARD_PORT`] and writes the address and the port that
//! were dialled ([`encode`]). The agent dials in the guest and answers with one byte, after
//! which both copy what comes ([`join`]). A stream that ends instead of answering, or answers
//! anything but [`CONNECTED`], is a refusal.

use std::io;
use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::pin::{Pin, pin};
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncRead, AsyncReadExt, AsyncWrite, AsyncWriteExt, split};
use tokio::time::timeout;

/// Guest port of forwarded connections.
pub const FORWARD_PORT: u32 = 1026;

/// Length of what the shim writes first, in bytes.
pub const HEADER_LEN: usize = ADDRESS_LEN + 2;

/// The agent's answer when a server has accepted.
pub const CONNECTED: u8 = 0;

/// The agent's answer when no server has.
pub const REFUSED: u8 = 1;

/// How long the way to a server may take.
pub const DIAL_DEADLINE: Duration = Duration::from_secs(10);

const ADDRESS_LEN: usize = 16;
/// Bytes moved at a time, for each direction.
const BUFFER: usize = 16 * 1024;
/// How long a connection lives on of which one direction has ended, while nothing comes in
/// the other: the side that closed may be gone, which TCP tells only who writes to it.
const SILENCE: Duration = Duration::from_secs(600);

/// The address, IPv4 as mapped into IPv6, and the port, each as in a packet.
pub fn encode(dialled: SocketAddr) -> [u8; HEADER_LEN] {
    let address = match dialled.ip() {
        IpAddr::V4(address) => address.to_ipv6_mapped(),
        IpAddr::V6(address) => address,
    };
    let mut header = [0; HEADER_LEN];
    let (first, last) = header.split_at_mut(ADDRESS_LEN);
    first.copy_from_slice(&address.octets());
    last.copy_from_slice(&dialled.port().to_be_bytes());
    header
}

/// Reads what [`encode`] wrote; any bytes are an address.
pub fn decode(header: [u8; HEADER_LEN]) -> SocketAddr {
    let number = u128::from_be_bytes(std::array::from_fn(|at| header[at]));
    let address = Ipv6Addr::from_bits(number).to_canonical();
    SocketAddr::new(address, u16::from_be_bytes([header[16], header[17]]))
}

/// Copies between two streams until both have ended. The end of one is told to the other,
/// whose own direction goes on.
///
/// # Errors
/// The first of either stream, and `TimedOut` when one has ended and the other stays silent
/// for ten minutes, or one does not read for so long. The caller drops both then: the connection is cut.
pub async fn join<A, B>(one: A, other: B) -> io::Result<()>
where
    A: AsyncRead + AsyncWrite + Send,
    B: AsyncRead + AsyncWrite + Send,
{
    let moved = AtomicU64::new(0);
    let (from_one, to_one) = split(one);
    let (from_other, to_other) = split(other);
    let mut there = pin!(carry(from_one, to_other, &moved));
    let mut back = pin!(carry(from_other, to_one, &moved));
    let mut rest: Pin<&mut (dyn Future<Output = io::Result<()>> + Send)> = tokio::select! {
        ended = &mut there => { ended?; back }
        ended = &mut back => { ended?; there }
    };
    loop {
        let before = moved.load(Ordering::Relaxed);
        match timeout(SILENCE, &mut rest).await {
            Ok(ended) => return ended,
            Err(_) if moved.load(Ordering::Relaxed) == before => {
                return Err(io::ErrorKind::TimedOut.into());
            }
            Err(_) => {}
        }
    }
}

/// Nobody may keep the other side from ending by not reading for ever.
async fn within(write: impl Future<Output = io::Result<()>>) -> io::Result<()> {
    timeout(SILENCE, write).await?
}

/// One direction, to its end.
async fn carry(
    mut from: impl AsyncRead + Unpin,
    mut to: impl AsyncWrite + Unpin,
    moved: &AtomicU64,
) -> io::Result<()> {
    let mut buffer = vec![0; BUFFER];
    loop {
        let length = from.read(&mut buffer).await?;
        let bytes = buffer.get(..length).unwrap_or_default();
        if bytes.is_empty() {
            return within(to.shutdown()).await;
        }
        within(to.write_all(bytes)).await?;
        moved.fetch_add(1, Ordering::Relaxed);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use tokio::io::{DuplexStream, duplex};
    use tokio::task::JoinHandle;

    /// Two ends with a [`join`] between them.
    fn joined() -> (DuplexStream, DuplexStream, JoinHandle<io::Result<()>>) {
        let (client, one) = duplex(100);
        let (other, server) = duplex(100);
        (client, server, tokio::spawn(join(one, other)))
    }

    #[test]
    fn the_dialled_address_arrives() {
        for address in ["127.0.0.1:80", "127.9.8.7:65535", "[::1]:8080", "[::1]:0"] {
            let address = address.parse().unwrap();
            assert_eq!(decode(encode(address)), address);
        }
        let v4 = encode("127.0.0.1:258".parse().unwrap());
        assert_eq!(v4[10..], [0xff, 0xff, 127, 0, 0, 1, 1, 2]);
    }

    #[test]
    fn any_header_is_an_address() {
        for byte in 0..=u8::MAX {
            let address = decode([byte; HEADER_LEN]);
            assert_eq!(decode(encode(address)), address);
        }
    }

    #[tokio::test]
    async fn an_answer_comes_after_the_end_of_the_question() {
        let (mut client, mut server, task) = joined();
        let question: Vec<u8> = (0..100_000_u32).flat_map(u32::to_le_bytes).collect();
        let asks = async {
            client.write_all(&question).await.unwrap();
            client.shutdown().await.unwrap();
            let mut answer = Vec::new();
            client.read_to_end(&mut answer).await.unwrap();
            answer
        };
        let answers = async {
            let mut heard = Vec::new();
            server.read_to_end(&mut heard).await.unwrap();
            server.write_all(&heard).await.unwrap();
            server.shutdown().await.unwrap();
        };
        let (answer, ()) = tokio::join!(asks, answers);
        assert!(answer == question);
        task.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn the_idle_live_while_both_directions_are_open() {
        let (mut client, mut server, task) = joined();
        tokio::time::sleep(100 * SILENCE).await;
        client.write_all(b"still here").await.unwrap();
        drop(client);
        let mut heard = String::new();
        server.read_to_string(&mut heard).await.unwrap();
        assert_eq!(heard, "still here");
        drop(server);
        task.await.unwrap().unwrap();
    }

    #[tokio::test(start_paused = true)]
    async fn who_never_answers_an_end_is_given_up() {
        let (client, mut server, task) = joined();
        drop(client);
        // Whatever moves is not silence; the client's end takes it, as a socket does.
        assert_eq!(server.read(&mut [0]).await.unwrap(), 0);
        let begun = tokio::time::Instant::now();
        let ended = task.await.unwrap().unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::TimedOut);
        assert_eq!(begun.elapsed(), SILENCE);
        assert!(server.write_all(b"late").await.is_err());
    }

    #[tokio::test]
    async fn a_broken_stream_breaks_the_other() {
        let (client, mut server, task) = joined();
        drop(client);
        server.write_all(b"for nobody").await.unwrap();
        let ended = task.await.unwrap().unwrap_err();
        assert_eq!(ended.kind(), io::ErrorKind::BrokenPipe);
    }
}
