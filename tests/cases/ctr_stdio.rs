//! Standard streams when many use them at once, and when the other side dawdles or dies.

use std::fs::File;
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::Duration;

use husk_tests::hold::{self, Hold};
use husk_tests::process::{DEADLINE, Stream};
use husk_tests::task_api::TaskApi;
use husk_tests::{Container, Node, Runtime, containerd, ctr, shim};
use serde_json::{Value, json};

fn process(args: &[&str]) -> Value {
    json!({ "args": args, "env": ["PATH=/bin"], "cwd": "/", "user": { "uid": 0, "gid": 0 } })
}

/// What `yes 0123456789abcde | head -c LENGTH` prints.
fn lines(length: usize) -> Vec<u8> {
    b"0123456789abcde\n".repeat(length / 16)
}

/// A fifo as its writer has it who never waits for the reader.
#[track_caller]
fn writer(fifo: &Path) -> File {
    let both = File::options().read(true).write(true).open(fifo);
    both.expect("a fifo of ctr's")
}

/// Short outputs of processes that end at once: the last byte races the exit.
#[track_caller]
fn echoes(times: u32) {
    let _node = Node::enter();
    let task = Container::husk(&["sleep", "infinity"]).detach();
    let api = TaskApi::of(task.id());
    for n in 0..times {
        let exec = api
            .exec(&process(&["echo", "-n", "foobar"]))
            .expect("an exec");
        exec.start().expect("a started exec");
        let ended = exec.finish().expect("an exit status");
        let got = (ended.status, ended.stdout.as_str());
        assert_eq!(got, (0, "foobar"), "exec {n} of {times}");
    }
    task.destroy();
}

#[test]
fn no_short_output_is_lost() {
    echoes(25);
}

#[test]
#[ignore = "full"]
fn no_short_output_of_a_thousand_is_lost() {
    echoes(1000);
}

#[test]
fn fifty_execs_at_once_keep_their_outputs_apart() {
    let _node = Node::enter();
    let task = Container::husk(&["sleep", "infinity"]).detach();
    task.exec(&["mkfifo", "/go"]).succeeded();
    let api = TaskApi::of(task.id());
    let run = |script: &str| {
        let exec = api.exec(&process(&["sh", "-c", script])).expect("an exec");
        exec.start().expect("a started exec");
        exec
    };
    let execs: Vec<_> = (0..50)
        .map(|n| {
            // Opening a fifo for reading waits for the one who opens it for writing.
            run(&format!("echo -n 'begin {n} '; : </go; echo -n 'end {n}'"))
        })
        .collect();
    // Open from now on: also for those who come to it only later.
    let gate = run("exec sleep infinity <>/go");
    for (n, exec) in execs.into_iter().enumerate() {
        let ended = exec.finish().expect("an exit status");
        let wanted = format!("begin {n} end {n}");
        assert_eq!((ended.status, ended.stdout), (0, wanted));
    }
    shim::kill_exec(task.id(), &gate.id);
    assert_eq!(gate.finish().expect("an exit status").status, 137);
    task.destroy();
}

#[test]
fn an_output_ends_when_the_program_closes_it_and_its_input_goes_on() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let script = "read go; exec >&-; read more; echo \"got $more\" >&2";
        let task = Container::new(runtime, &["sh", "-c", script]).detach_with_input();
        let stdout = Stream::of_fifo(&task.fifo("stdout"));
        let mut stderr = Stream::of_fifo(&task.fifo("stderr"));
        let mut stdin = writer(&task.fifo("stdin"));
        stdin.write_all(b"go\n").expect("room in a fifo");
        assert_eq!(stdout.to_end(DEADLINE), b"", "{runtime:?}");
        assert_eq!(task.status(), "RUNNING", "{runtime:?}");
        stdin.write_all(b"on\n").expect("room in a fifo");
        stderr.wait_for("got on\n");
        task.wait();
        assert_eq!(task.delete(), 0, "{runtime:?}");
    });
}

#[test]
fn a_slow_reader_gets_everything() {
    let _node = Node::enter();
    let length = 2 << 20;
    let script = format!("read go; yes 0123456789abcde | head -c {length}");
    let task = Container::script(&script).detach_with_input();
    let stdout = Stream::of_fifo_slowly(&task.fifo("stdout"), Duration::from_millis(200));
    let mut stdin = writer(&task.fifo("stdin"));
    stdin.write_all(b"go\n").expect("room in a fifo");
    let got = stdout.to_end(DEADLINE);
    assert!(got == lines(length), "{} bytes of {length}", got.len());
    task.wait();
    assert_eq!(task.delete(), 0);
}

#[test]
fn a_reader_that_vanishes_leaves_a_task_that_can_be_killed() {
    let _node = Node::enter();
    let container = Container::husk(&["yes"]);
    let mut client = container.start();
    client.wait_for("y\ny\n");
    client.kill();
    drop(client);
    let task = container.task();
    assert_eq!(task.status(), "RUNNING");
    assert_eq!(task.exec(&["echo", "alive"]).succeeded().text(), "alive\n");
    task.kill("KILL");
    task.wait();
    assert_eq!(task.delete(), 137);
}

#[test]
fn input_written_before_the_start_is_kept() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let mut hold = Hold::install();
        let container = Container::new(runtime, &["sh", "-c", "read x; echo \"<$x>\""]);
        let mut client = container.with(hold::FLAGS).start();
        hold.wait();
        client.write(b"early\n");
        hold.release();
        client.wait_for("<early>\n");
        client.finish().succeeded();
    });
}

#[test]
fn a_task_can_be_left_and_attached_to_again() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let script = "while read x; do echo \"<$x>\"; done";
        let task = Container::new(runtime, &["sh", "-c", script]).detach_with_input();
        for word in ["one", "two"] {
            let mut client = task.attach();
            client.write(format!("{word}\n").as_bytes());
            client.wait_for(&format!("<{word}>\n"));
            client.kill();
        }
        let mut client = task.attach();
        client.write(b"three\n");
        client.wait_for("<three>\n");
        task.kill("KILL");
        client.finish().ended_with(137);
        // The client that saw the end has deleted the task.
        ctr(&["container", "delete", task.id()]).succeeded();
    });
}

#[test]
fn a_stream_goes_on_while_containerd_is_killed_and_comes_back() {
    let _node = Node::enter();
    let length = 8 << 20;
    let script = format!("read go; yes 0123456789abcde | head -c {length}; exit 3");
    let task = Container::script(&script).detach_with_input();
    // Slowly, or all is over before containerd is gone.
    let mut stdout = Stream::of_fifo_slowly(&task.fifo("stdout"), Duration::from_millis(10));
    let mut stdin = writer(&task.fifo("stdin"));
    stdin.write_all(b"go\n").expect("room in a fifo");
    stdout.wait_for_length(1 << 20);
    let away = containerd::kill_9();
    stdout.wait_for_length(2 << 20);
    away.end();
    let got = stdout.to_end(DEADLINE);
    assert!(got == lines(length), "{} bytes of {length}", got.len());
    task.wait();
    assert_eq!(task.delete(), 3);
}

/// Says something to both streams.
const TALK: &str = "echo said; echo complained >&2; exit 3";

/// Runs [`TALK`] detached with its output at `uri`, and deletes it.
#[track_caller]
fn talk_to(uri: &str, runtime: Runtime) {
    let task = Container::new(runtime, &["sh", "-c", TALK])
        .with(&["--log-uri", uri])
        .detach();
    task.wait();
    assert_eq!(task.delete(), 3, "{runtime:?}");
}

#[test]
fn a_log_uri_names_a_file_that_is_appended_to() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let directory = tempfile::tempdir().expect("a temporary directory");
        let file = directory.path().join("made/log");
        let uri = format!("file://{}", file.display());
        talk_to(&uri, runtime);
        talk_to(&uri, runtime);
        let log = std::fs::read_to_string(&file).expect("a log");
        // Two streams have no order.
        let mut lines: Vec<_> = log.lines().map(str::to_owned).collect();
        lines.sort_unstable();
        let told = ["complained", "complained", "said", "said"];
        assert_eq!(lines, told, "{runtime:?}");
    });
}

#[test]
fn a_log_uri_names_a_program_that_gets_both_streams() {
    let _node = Node::enter();
    let directory = tempfile::tempdir().expect("a temporary directory");
    let logger = directory.path().join("logger");
    let script = "#!/bin/sh
exec 5>&-
out=$(cat <&3)
err=$(cat <&4)
echo \"$1 $out $err $CONTAINER_NAMESPACE ${CONTAINER_ID%%[0-9]*}\" >\"$2\"
";
    std::fs::write(&logger, script).expect("a script");
    let executable = std::fs::Permissions::from_mode(0o755);
    std::fs::set_permissions(&logger, executable).expect("a program");
    let log = directory.path().join("log");
    let uri = format!("binary://{}?to={}", logger.display(), log.display());
    talk_to(&uri, Runtime::Husk);
    let log = std::fs::read_to_string(&log).expect("a log, complete at Delete");
    assert_eq!(log, "to said complained default c\n");
}

#[test]
fn a_logger_that_cannot_be_started_fails_the_create() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let container =
            Container::new(runtime, &["true"]).with(&["--log-uri", "binary:///no/logger"]);
        let refused = husk_tests::process::run(container.command(&["--detach"]));
        refused.failed_saying(&["/no/logger"]);
        ctr(&["container", "delete", container.id()]);
    });
}
