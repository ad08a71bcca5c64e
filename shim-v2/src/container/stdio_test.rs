//! Fifos on one side, a socket pair in place of the guest's stream on the other.

use super::*;
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use std::fs::{File, OpenOptions};

/// A fifo with a name of its own, removed at the end.
struct Fifo(PathBuf);

impl Fifo {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("husk-fifo-{name}-{}", std::process::id()));
        mkfifo(&path, Mode::S_IRWXU).unwrap();
        Self(path)
    }

    fn reader(&self) -> pipe::Receiver {
        pipe::OpenOptions::new().open_receiver(&self.0).unwrap()
    }
}

impl Drop for Fifo {
    fn drop(&mut self) {
        std::fs::remove_file(&self.0).unwrap();
    }
}

async fn output(fifo: &Fifo) -> (UnixStream, Streams) {
    let (guest, stream) = UnixStream::pair().unwrap();
    let progress = Arc::<Progress>::default();
    progress.open.send_replace(1);
    let fifo = Output::Fifo(OutputFifo::open(&fifo.0).await.unwrap());
    let task = Task(tokio::spawn(copy_out(
        "stdout".to_owned(),
        stream,
        fifo,
        progress.clone(),
    )));
    let streams = Streams {
        outputs: vec![task],
        progress,
        ..Streams::default()
    };
    (guest, streams)
}

/// The guest answers.
async fn yes() -> bool {
    true
}

#[tokio::test]
async fn output_arrives_whole_and_ends_with_the_stream() {
    let fifo = Fifo::new("whole");
    let mut reader = fifo.reader();
    let (mut guest, streams) = output(&fifo).await;
    let sent: Vec<u8> = (0..1_000_000_u32).map(|n| n as u8).collect();
    let expected = sent.clone();
    tokio::spawn(async move { guest.write_all(&sent).await.unwrap() });
    let mut received = Vec::new();
    reader.read_to_end(&mut received).await.unwrap();
    assert!(received == expected);
    assert!(streams.drained(yes).await);
}

#[tokio::test]
async fn a_reader_may_come_late_and_may_come_back() {
    let fifo = Fifo::new("back");
    let late = {
        let path = fifo.0.clone();
        std::thread::spawn(move || File::open(path).unwrap())
    };
    let (mut guest, streams) = output(&fifo).await;
    drop(late.join().unwrap());
    guest.write_all(b"while nobody reads").await.unwrap();
    drop(guest);
    let mut reader = fifo.reader();
    let mut received = [0; 18];
    reader.read_exact(&mut received).await.unwrap();
    assert_eq!(&received, b"while nobody reads");
    assert!(streams.drained(yes).await);
}

#[tokio::test(start_paused = true)]
async fn output_is_delivered_when_the_last_byte_was_read() {
    let fifo = Fifo::new("unread");
    let mut reader = fifo.reader();
    let (mut guest, streams) = output(&fifo).await;
    guest.write_all(b"last words").await.unwrap();
    drop(guest);
    let pending = timeout(Duration::from_millis(300), streams.drained(yes)).await;
    assert!(pending.is_err(), "the reader has not read yet");
    let mut received = [0; 10];
    reader.read_exact(&mut received).await.unwrap();
    assert!(streams.drained(yes).await);
}

#[tokio::test(start_paused = true)]
async fn output_nobody_will_read_is_not_waited_for() {
    let fifo = Fifo::new("unwanted");
    let reader = fifo.reader();
    let (mut guest, streams) = output(&fifo).await;
    guest.write_all(b"last words").await.unwrap();
    drop(guest);
    let pending = timeout(Duration::from_millis(50), streams.drained(yes)).await;
    assert!(pending.is_err(), "there is a reader still");
    drop(reader);
    let begin = Instant::now();
    assert!(streams.drained(yes).await);
    assert!(begin.elapsed() < IDLE_LIMIT);
}

#[tokio::test(start_paused = true)]
async fn a_held_pipe_and_a_sleeping_reader_are_waited_for_within_limits() {
    let fifo = Fifo::new("held");
    let _reader = fifo.reader();
    let (guest, held) = output(&fifo).await;
    let begin = Instant::now();
    assert!(!held.drained(yes).await);
    assert_eq!(begin.elapsed().as_secs(), IDLE_LIMIT.as_secs());
    drop(guest);

    let fifo = Fifo::new("sleeping");
    let _reader = fifo.reader();
    let (mut guest, sleeping) = output(&fifo).await;
    tokio::spawn(async move { guest.write_all(&vec![0; 1 << 20]).await });
    let begin = Instant::now();
    assert!(!sleeping.drained(yes).await);
    assert_eq!(begin.elapsed().as_secs(), DRAIN_LIMIT.as_secs());
}

#[tokio::test(start_paused = true)]
async fn a_guest_that_does_not_get_to_run_is_waited_for() {
    let fifo = Fifo::new("starved");
    let _reader = fifo.reader();
    let (mut guest, streams) = output(&fifo).await;
    let late = IDLE_LIMIT * 2;
    tokio::spawn(async move {
        tokio::time::sleep(late).await;
        guest.write_all(b"last words").await.unwrap();
    });
    let begin = Instant::now();
    let answers = || async { begin.elapsed() > late };
    // The last words are there, but their reader does not read them.
    streams.drained(answers).await;
    assert_eq!(streams.progress.bytes.load(Ordering::Relaxed), 10);
}

#[tokio::test]
async fn input_survives_a_writer_and_ends_after_close_stdin() {
    let fifo = Fifo::new("input");
    let (mut guest, stream) = UnixStream::pair().unwrap();
    let (receiver, keeper) = open_input(&fifo.0).unwrap();
    let streams = Streams {
        stdin: Mutex::new(Input {
            keeper: Some(keeper),
            copy: Some(Task(tokio::spawn(copy_in(receiver, stream)))),
            ..Input::default()
        }),
        ..Streams::default()
    };
    for text in ["one", "two"] {
        std::fs::write(&fifo.0, text).unwrap();
        let mut received = [0; 3];
        guest.read_exact(&mut received).await.unwrap();
        assert_eq!(received, text.as_bytes());
    }
    let writer = OpenOptions::new().write(true).open(&fifo.0).unwrap();
    io::Write::write_all(&mut &writer, b"last").unwrap();
    streams.close_stdin();
    drop(writer);
    let mut rest = String::new();
    guest.read_to_string(&mut rest).await.unwrap();
    assert_eq!(rest, "last");
}

#[test]
fn what_cannot_be_opened_is_refused() {
    let paths = |stdout: &str| Paths {
        stdout: stdout.to_owned(),
        ..Paths::default()
    };
    let error = paths("tcp:///usr/bin/logger").check().unwrap_err();
    assert!(
        matches!(
            error,
            StdioError::Scheme {
                which: "stdout",
                ..
            }
        ),
        "{error}"
    );
    let error = paths("/etc/hostname").check().unwrap_err();
    assert!(
        matches!(
            error,
            StdioError::Open {
                which: "stdout",
                ..
            }
        ),
        "{error}"
    );
    let fifo = Fifo::new("uri");
    paths(&format!("fifo://{}", fifo.0.display()))
        .check()
        .unwrap();
    paths("").check().unwrap();
    paths("file:///not/there/yet").check().unwrap();
    paths("binary:///bin/sh?a=b").check().unwrap();
    let error = paths("binary:///not/there").check().unwrap_err();
    assert!(matches!(error, StdioError::Open { .. }), "{error}");
}
