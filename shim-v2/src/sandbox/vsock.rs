//! Connections into the guest: the VMM's Unix socket with its one-line handshake.

use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::UnixStream;
use tokio::time::timeout;

use crate::beneath;

/// How long the guest may take to accept a connection.
const DEADLINE: Duration = Duration::from_secs(10);
/// Longest answer to the handshake: `OK`, a blank, ten digits, a line feed.
const MAX_ANSWER_LEN: usize = 16;

/// The jail's directory, through which sockets in it are reached: its own path may
/// be longer than the 108 bytes of a socket address.
#[derive(Clone, Debug)]
pub struct Vsock {
    jail: Arc<OwnedFd>,
}

impl Vsock {
    /// Takes an open descriptor of the jail's directory.
    pub fn new(jail: OwnedFd) -> Self {
        let jail = Arc::new(jail);
        Self { jail }
    }

    /// A path to a socket in the jail, valid as long as `self`.
    pub fn path(&self, name: &str) -> PathBuf {
        format!("/proc/self/fd/{}/{name}", self.jail.as_raw_fd()).into()
    }

    /// Connects to a port in the guest.
    ///
    /// # Errors
    /// `TimedOut` when the guest does not accept, otherwise what the socket gave.
    pub async fn connect(&self, port: u32) -> io::Result<UnixStream> {
        // The VMM can put a link to any of the host's sockets in its place.
        let socket = beneath::open_at(self.jail.as_fd(), Path::new("vsock"))?;
        let connect = handshake(beneath::handle(&socket), port);
        timeout(DEADLINE, connect)
            .await
            .unwrap_or_else(|_| Err(io::ErrorKind::TimedOut.into()))
    }
}

async fn handshake(path: PathBuf, port: u32) -> io::Result<UnixStream> {
    let mut stream = UnixStream::connect(path).await?;
    stream
        .write_all(format!("CONNECT {port}\n").as_bytes())
        .await?;
    // Byte by byte: what follows the line belongs to the connection.
    let mut answer = Vec::with_capacity(MAX_ANSWER_LEN);
    while answer.last() != Some(&b'\n') {
        if answer.len() == MAX_ANSWER_LEN {
            return Err(refused(port));
        }
        match stream.read_u8().await {
            Ok(byte) => answer.push(byte),
            Err(error) if error.kind() == io::ErrorKind::UnexpectedEof => {
                return Err(refused(port));
            }
            Err(error) => return Err(error),
        }
    }
    if answer.starts_with(b"OK ") {
        Ok(stream)
    } else {
        Err(refused(port))
    }
}

fn refused(port: u32) -> io::Error {
    let text = format!("nothing in the guest listens on vsock port {port}");
    io::Error::new(io::ErrorKind::ConnectionRefused, text)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{BufRead, BufReader, Write};
    use std::os::unix::net::UnixListener;

    /// A VMM that answers one handshake; returns what was asked.
    fn vmm(name: &str, answer: &'static [u8]) -> (Vsock, std::thread::JoinHandle<String>) {
        let dir = std::env::temp_dir().join(format!("husk-vsock-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        let jail = std::fs::File::open(&dir).unwrap();
        let vsock = Vsock::new(jail.into());
        let listener = UnixListener::bind(vsock.path("vsock")).unwrap();
        let thread = std::thread::spawn(move || {
            let (stream, _) = listener.accept().unwrap();
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line).unwrap();
            (&stream).write_all(answer).unwrap();
            std::fs::remove_dir_all(dir).unwrap();
            line
        });
        (vsock, thread)
    }

    #[tokio::test]
    async fn bytes_after_the_handshake_are_left_in_the_stream() {
        let (vsock, thread) = vmm("ok", b"OK 7\nhello");
        let mut stream = vsock.connect(1025).await.unwrap();
        let mut rest = String::new();
        stream.read_to_string(&mut rest).await.unwrap();
        assert_eq!(rest, "hello");
        assert_eq!(thread.join().unwrap(), "CONNECT 1025\n");
    }

    #[tokio::test]
    async fn a_closed_or_wrong_answer_is_a_refusal() {
        for (name, answer) in [
            ("eof", &b""[..]),
            ("no", b"NO\n"),
            ("long", b"OK 0123456789012345"),
        ] {
            let (vsock, thread) = vmm(name, answer);
            let error = vsock.connect(9).await.unwrap_err();
            assert_eq!(error.kind(), io::ErrorKind::ConnectionRefused, "{name}");
            thread.join().unwrap();
        }
    }
}
