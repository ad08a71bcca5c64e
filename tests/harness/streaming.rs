//! Exec, Attach and PortForward of containerd's CRI service as `kubectl` uses them: Kubernetes'
//! channels over a WebSocket, version 4. A message's first byte is its channel.

use std::net::TcpStream;
use std::time::{Duration, Instant};

use serde_json::Value;
use tungstenite::client::IntoClientRequest;
use tungstenite::http::HeaderValue;
use tungstenite::stream::MaybeTlsStream;
use tungstenite::{Error, Message, WebSocket};

use crate::process::DEADLINE;

const PROTOCOL: &str = "v4.channel.k8s.io";
const STDIN: u8 = 0;
const STDOUT: u8 = 1;
const STDERR: u8 = 2;
const STATUS: u8 = 3;
const SIZE: u8 = 4;
/// How much of standard input goes into a message.
const CHUNK: usize = 16 << 10;

/// The streams of a process.
pub struct Streams {
    socket: Socket,
    /// What came on standard output.
    pub stdout: Vec<u8>,
    /// What came on standard error.
    pub stderr: Vec<u8>,
    status: Vec<u8>,
}

impl Streams {
    /// Opens what the service offers at `url`.
    ///
    /// # Panics
    /// If it does not answer or speaks another protocol.
    #[track_caller]
    pub fn open(url: &str) -> Self {
        Self {
            socket: connect(url),
            stdout: Vec::new(),
            stderr: Vec::new(),
            status: Vec::new(),
        }
    }

    /// Writes to standard input.
    ///
    /// # Panics
    /// If the service has gone.
    #[track_caller]
    pub fn writes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(CHUNK) {
            self.send(STDIN, chunk);
        }
    }

    /// Makes the terminal's window that large.
    ///
    /// # Panics
    /// If the service has gone.
    #[track_caller]
    pub fn resize(&mut self, width: u16, height: u16) {
        let size = format!("{{\"Width\":{width},\"Height\":{height}}}");
        self.send(SIZE, size.as_bytes());
    }

    #[track_caller]
    fn send(&mut self, channel: u8, bytes: &[u8]) {
        let message = [&[channel], bytes].concat();
        self.socket
            .send(Message::Binary(message.into()))
            .expect("the service is there");
    }

    /// Waits until `text` has come on standard output.
    ///
    /// # Panics
    /// If it has not by the deadline.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let deadline = Instant::now() + DEADLINE;
        while !String::from_utf8_lossy(&self.stdout).contains(text) {
            let goes_on = self.receive();
            let seen = String::from_utf8_lossy(&self.stdout);
            assert!(goes_on, "ended without {text:?}: {seen}");
            assert!(Instant::now() < deadline, "no {text:?} in {seen}");
        }
    }

    /// Takes one message or waits a second for it; whether there may be more.
    #[track_caller]
    fn receive(&mut self) -> bool {
        let Some(message) = message(&mut self.socket) else {
            return false;
        };
        let Some((channel, bytes)) = message.split_first() else {
            return true;
        };
        match *channel {
            STDOUT => self.stdout.extend(bytes),
            STDERR => self.stderr.extend(bytes),
            STATUS => self.status.extend(bytes),
            other => panic!("a message on channel {other}: {bytes:?}"),
        }
        true
    }

    /// Waits for the end: the exit code.
    ///
    /// # Panics
    /// If there is none by the deadline, or the service tells something else.
    #[track_caller]
    pub fn ended(&mut self) -> i32 {
        let status = self.status();
        if status["status"] == "Success" {
            return 0;
        }
        let causes = status["details"]["causes"].as_array();
        let mut causes = causes.into_iter().flatten();
        let code = causes.find(|cause| cause["reason"] == "ExitCode");
        let code = code.and_then(|cause| cause["message"].as_str()?.parse().ok());
        code.unwrap_or_else(|| panic!("no exit code in {status}"))
    }

    /// Waits for the end of what could not be run: the reason.
    ///
    /// # Panics
    /// If there is none by the deadline.
    #[track_caller]
    pub fn failed(mut self) -> String {
        let status = self.status();
        assert_eq!(status["status"], "Failure", "{status}");
        status["message"].to_string()
    }

    #[track_caller]
    fn status(&mut self) -> Value {
        let deadline = Instant::now() + DEADLINE;
        while self.receive() {
            assert!(Instant::now() < deadline, "no end");
        }
        serde_json::from_slice(&self.status).expect("a status")
    }
}

type Socket = WebSocket<MaybeTlsStream<TcpStream>>;

#[track_caller]
fn connect(url: &str) -> Socket {
    let url = url.replacen("http:", "ws:", 1);
    let mut request = url.into_client_request().expect("the service's URL");
    request
        .headers_mut()
        .insert("Sec-WebSocket-Protocol", HeaderValue::from_static(PROTOCOL));
    let (socket, _) = tungstenite::connect(request).expect("a WebSocket");
    if let MaybeTlsStream::Plain(stream) = socket.get_ref() {
        let limit = Some(Duration::from_secs(1));
        stream.set_read_timeout(limit).expect("a time limit");
    }
    socket
}

/// The next message, empty if none comes within a second; `None` at the end.
#[track_caller]
fn message(socket: &mut Socket) -> Option<Vec<u8>> {
    match socket.read() {
        Ok(Message::Binary(bytes)) => Some(bytes.into()),
        // Nothing of the stream follows (RFC 6455 5.5.1), but containerd may send a second one:
        // it closes both at the end of the process and when it has read the answer to the first.
        Ok(Message::Close(_)) => None,
        Ok(_) => Some(Vec::new()),
        Err(Error::Io(error)) if error.kind() == std::io::ErrorKind::WouldBlock => Some(Vec::new()),
        Err(Error::ConnectionClosed | Error::AlreadyClosed) => None,
        Err(error) => panic!("the service's stream broke off: {error}"),
    }
}

/// A connection to one port of a pod. This protocol cannot tell the end of one direction.
pub struct PortForward {
    socket: Socket,
    data: Vec<u8>,
    errors: Vec<u8>,
}

impl PortForward {
    const DATA: u8 = 0;
    const ERRORS: u8 = 1;
    /// Each channel begins with the port's number.
    const PORT: usize = 2;

    /// Opens what the service offers at `url`.
    ///
    /// # Panics
    /// If it does not answer or speaks another protocol.
    #[track_caller]
    pub fn open(url: &str) -> Self {
        Self {
            socket: connect(url),
            data: Vec::new(),
            errors: Vec::new(),
        }
    }

    /// Writes to the server.
    ///
    /// # Panics
    /// If the service has gone.
    #[track_caller]
    pub fn writes(&mut self, bytes: &[u8]) {
        for chunk in bytes.chunks(CHUNK) {
            let message = [&[Self::DATA], chunk].concat();
            let sent = self.socket.send(Message::Binary(message.into()));
            sent.expect("the service is there");
        }
    }

    /// Waits for the end: what the server wrote, and what went wrong according to the service.
    ///
    /// # Panics
    /// If there is none by the deadline.
    #[track_caller]
    pub fn ended(mut self) -> (Vec<u8>, String) {
        let deadline = Instant::now() + DEADLINE;
        while let Some(message) = message(&mut self.socket) {
            match message.split_first() {
                Some((&Self::DATA, bytes)) => self.data.extend(bytes),
                Some((&Self::ERRORS, bytes)) => self.errors.extend(bytes),
                other => assert!(other.is_none(), "a message on {other:?}"),
            }
            assert!(Instant::now() < deadline, "no end");
        }
        let errors = self.errors.split_off(Self::PORT);
        let errors = String::from_utf8_lossy(&errors).into_owned();
        (self.data.split_off(Self::PORT), errors)
    }
}
