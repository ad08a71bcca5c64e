use std::io::Write;

use tokio::net::UnixStream;

use super::*;

const IN: u64 = 0x11;
const OUT: u64 = 0x22;

/// A process with stdin and stdout: its own ends, and the agent's registered.
fn process(streams: &Arc<Streams>) -> (std::fs::File, std::fs::File, ProcessIo) {
    let stdio = Stdio {
        stdin: IN,
        stdout: OUT,
        ..Default::default()
    };
    let (child, ends) = make(&stdio).unwrap();
    let ChildStdio::Pipes([Some(stdin), Some(stdout), None]) = child else {
        panic!("{child:?}");
    };
    let io = ends.register(streams, None).unwrap();
    (stdin.into(), stdout.into(), io)
}

async fn read_all(stream: &mut UnixStream) -> Vec<u8> {
    let mut bytes = Vec::new();
    stream.read_to_end(&mut bytes).await.unwrap();
    bytes
}

async fn in_thread<T: Send + 'static>(work: impl FnOnce() -> T + Send + 'static) -> T {
    tokio::task::spawn_blocking(work).await.unwrap()
}

#[tokio::test]
async fn output_written_before_the_stream_came_is_delivered_to_its_end() {
    let streams = Arc::new(Streams::default());
    let (_stdin, mut stdout, _io) = process(&streams);
    stdout.write_all(b"no newline at the end").unwrap();
    drop(stdout);
    let (mut shim, agent) = UnixStream::pair().unwrap();
    streams.attach(OUT, agent);
    assert_eq!(read_all(&mut shim).await, b"no newline at the end");
}

#[tokio::test]
async fn large_output_is_byte_exact() {
    let streams = Arc::new(Streams::default());
    let (_stdin, mut stdout, _io) = process(&streams);
    let (mut shim, agent) = UnixStream::pair().unwrap();
    streams.attach(OUT, agent);
    let sent: Vec<u8> = (0..1_000_003_u32).map(|n| (n % 251) as u8).collect();
    let writer = sent.clone();
    let writing = in_thread(move || stdout.write_all(&writer).unwrap());
    let (_, received) = tokio::join!(writing, read_all(&mut shim));
    assert!(
        received == sent,
        "{} bytes of {}",
        received.len(),
        sent.len()
    );
}

#[tokio::test]
async fn half_closing_stdin_ends_the_input_after_its_last_byte() {
    let streams = Arc::new(Streams::default());
    let (mut stdin, _stdout, io) = process(&streams);
    let (mut shim, agent) = UnixStream::pair().unwrap();
    shim.write_all(b"bytes").await.unwrap();
    shim.shutdown().await.unwrap();
    streams.attach(IN, agent);
    // An attached stream decides itself when stdin closes.
    io.close_stdin().await;
    let read = in_thread(move || std::io::read_to_string(&mut stdin).unwrap()).await;
    assert_eq!(read, "bytes");
}

#[tokio::test]
async fn closing_stdin_waits_for_a_stream_that_is_on_its_way() {
    let streams = Arc::new(Streams::default());
    let (mut stdin, _stdout, io) = process(&streams);
    let (mut shim, agent) = UnixStream::pair().unwrap();
    shim.write_all(b"late").await.unwrap();
    shim.shutdown().await.unwrap();
    let attaching = async {
        tokio::task::yield_now().await;
        streams.attach(IN, agent);
    };
    tokio::join!(io.close_stdin(), attaching);
    let read = in_thread(move || std::io::read_to_string(&mut stdin).unwrap()).await;
    assert_eq!(read, "late");
}

#[tokio::test]
async fn closing_stdin_needs_no_stream() {
    let streams = Arc::new(Streams::default());
    let (mut stdin, _stdout, io) = process(&streams);
    io.close_stdin().await;
    let read = in_thread(move || std::io::read_to_string(&mut stdin).unwrap()).await;
    assert_eq!(read, "");
    let (mut shim, agent) = UnixStream::pair().unwrap();
    streams.attach(IN, agent);
    assert_eq!(
        read_all(&mut shim).await,
        b"",
        "a stream for a closed stdin is closed"
    );
}

#[tokio::test]
async fn an_unknown_token_closes_the_stream() {
    let (mut shim, agent) = UnixStream::pair().unwrap();
    Streams::default().attach(0x33, agent);
    assert_eq!(read_all(&mut shim).await, b"");
}

#[tokio::test]
async fn a_token_names_one_stream() {
    let streams = Arc::new(Streams::default());
    let (_stdin, _stdout, _io) = process(&streams);
    let again = Stdio {
        stdout: OUT,
        ..Default::default()
    };
    let (_child, ends) = make(&again).unwrap();
    assert!(matches!(
        ends.register(&streams, None),
        Err(Error::Argument { .. })
    ));
}

#[tokio::test]
async fn a_deleted_process_leaves_no_stream_behind() {
    let streams = Arc::new(Streams::default());
    let (_stdin, _stdout, io) = process(&streams);
    let (mut shim, agent) = UnixStream::pair().unwrap();
    streams.attach(OUT, agent);
    drop(io);
    assert_eq!(read_all(&mut shim).await, b"");
    assert!(lock(&streams.waiting).is_empty());
}

#[test]
fn sizes_beyond_a_terminal_are_clamped() {
    assert_eq!(window_size(80, 25), (80, 25));
    assert_eq!(window_size(70_000, 0), (u16::MAX, 0));
}
