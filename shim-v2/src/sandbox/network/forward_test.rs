use std::fs;
use std::net::Ipv4Addr;

use agent_protocol::forward::{HEADER_LEN, REFUSED};
use tempfile::TempDir;
use tokio::io::AsyncBufReadExt;
use tokio::io::BufReader;
use tokio::net::UnixListener;

use super::*;

/// A jail with a VMM's socket; whoever connects is served by `guest`, the answer first.
fn guest(answer: &'static [u8]) -> (TempDir, Vsock) {
    let jail = tempfile::tempdir().unwrap();
    let vsock = Vsock::new(fs::File::open(jail.path()).unwrap().into());
    let listener = UnixListener::bind(vsock.path("vsock")).unwrap();
    tokio::spawn(async move {
        loop {
            let (stream, _) = listener.accept().await.unwrap();
            tokio::spawn(echo(stream, answer));
        }
    });
    (jail, vsock)
}

/// Takes the handshake and the header, answers, and sends back what comes until its end.
async fn echo(stream: UnixStream, answer: &[u8]) -> io::Result<()> {
    let mut stream = BufReader::new(stream);
    stream.read_line(&mut String::new()).await?;
    stream.write_all(b"OK 1\n").await?;
    let mut header = [0; HEADER_LEN];
    stream.read_exact(&mut header).await?;
    stream.write_all(answer).await?;
    let port = forward::decode(header).port();
    stream.write_all(&port.to_be_bytes()).await?;
    let mut heard = Vec::new();
    stream.read_to_end(&mut heard).await?;
    stream.write_all(&heard).await?;
    stream.shutdown().await
}

async fn served(answer: &'static [u8]) -> (TempDir, SocketAddr) {
    let (jail, vsock) = guest(answer);
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.unwrap();
    let address = listener.local_addr().unwrap();
    tokio::spawn(async move { serve(&[listener], vsock).await });
    (jail, address)
}

#[tokio::test]
async fn the_port_is_told_and_the_end_is_carried() {
    let (_jail, address) = served(&[CONNECTED]).await;
    let mut client = TcpStream::connect(address).await.unwrap();
    client.write_all(b"echo").await.unwrap();
    client.shutdown().await.unwrap();
    let mut heard = Vec::new();
    client.read_to_end(&mut heard).await.unwrap();
    let port = address.port().to_be_bytes();
    assert_eq!(heard, [&port[..], b"echo"].concat());
}

#[tokio::test]
async fn a_refusal_is_a_reset() {
    for answer in [&[REFUSED][..], b"", b"\x07more"] {
        let (_jail, address) = served(answer).await;
        let mut client = TcpStream::connect(address).await.unwrap();
        let told = client.read(&mut [0]).await.unwrap_err();
        assert_eq!(told.kind(), io::ErrorKind::ConnectionReset, "{answer:?}");
    }
}

#[tokio::test]
async fn one_connection_too_many_is_reset_and_the_others_live() {
    let (_jail, address) = served(&[CONNECTED]).await;
    let mut clients = Vec::new();
    for _ in 0..MAX_CONNECTIONS {
        let mut client = TcpStream::connect(address).await.unwrap();
        assert_eq!(client.read_u16().await.unwrap(), address.port());
        clients.push(client);
    }
    let mut late = TcpStream::connect(address).await.unwrap();
    let told = late.read(&mut [0]).await.unwrap_err();
    assert_eq!(told.kind(), io::ErrorKind::ConnectionReset);
    let mut first = clients.remove(0);
    first.shutdown().await.unwrap();
    assert_eq!(first.read(&mut [0]).await.unwrap(), 0);
    // Its place is free as soon as the shim has closed it.
    let mut again = TcpStream::connect(address).await.unwrap();
    assert_eq!(again.read_u16().await.unwrap(), address.port());
}
