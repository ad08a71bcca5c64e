//! `ctr task exec`: further processes in a running container.

use husk_tests::hold::{self, Hold};
use husk_tests::process::Running;
use husk_tests::{Container, Node, Runtime, ctr, shim};

fn sleeper() -> husk_tests::Task {
    Container::husk(&["sleep", "infinity"]).detach()
}

#[test]
fn an_exec_has_its_own_output_and_exit_code() {
    let _node = Node::enter();
    let task = sleeper();
    assert_eq!(
        task.exec(&["echo", "inside"]).succeeded().text(),
        "inside\n"
    );
    task.exec(&["sh", "-c", "exit 42"]).ended_with(42);
    task.destroy();
}

#[test]
fn an_exec_shares_the_containers_namespaces_and_root() {
    let _node = Node::enter();
    let task = sleeper();
    let script = "for n in pid mnt uts ipc net cgroup; do \
                  [ $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) ] || echo $n differs; done; \
                  cat /proc/1/comm; cat /proc/1/cgroup /proc/self/cgroup | sort -u | wc -l";
    assert_eq!(
        task.exec(&["sh", "-c", script]).succeeded().text(),
        "sleep\n1\n"
    );
    task.destroy();
}

/// containerd kills execs with `all` set; that must not reach the container.
#[test]
fn killing_an_exec_leaves_its_container_running() {
    let _node = Node::enter();
    let task = sleeper();
    let mut exec = task.start_exec_as("victim", &["sh", "-c", "echo ready; exec sleep 1000"]);
    exec.wait_for("ready");
    shim::kill_exec(task.id(), "victim");
    exec.finish().ended_with(137);
    assert_eq!(task.status(), "RUNNING");
    assert_eq!(task.exec(&["echo", "alive"]).succeeded().text(), "alive\n");
    task.destroy();
}

#[test]
fn an_exec_takes_directory_and_user() {
    let _node = Node::enter();
    let task = sleeper();
    let output = task.exec_with(
        &["--cwd", "/var", "--user", "1000:29"],
        &["sh", "-c", "pwd; id -u; id -g"],
    );
    assert_eq!(output.succeeded().text(), "/var\n1000\n29\n");
    task.destroy();
}

#[test]
fn an_exec_of_a_missing_program_fails_with_runcs_text() {
    let _node = Node::enter();
    let task = sleeper();
    task.exec(&["no-such-program"])
        .failed_saying(&["exec: \"no-such-program\": executable file not found in $PATH"]);
    assert_eq!(task.exec(&["echo", "alive"]).succeeded().text(), "alive\n");
    task.destroy();
}

#[test]
fn an_exec_reads_standard_input_to_its_end() {
    let _node = Node::enter();
    let task = sleeper();
    let mut cat = task.start_exec(&["sh", "-c", "echo ready; cat"]);
    cat.wait_for("ready\n");
    cat.feed(b"through and through".to_vec());
    assert_eq!(
        cat.finish().succeeded().text(),
        "ready\nthrough and through"
    );
    task.destroy();
}

#[test]
fn ten_execs_one_after_the_other_leave_nothing_in_the_container() {
    let _node = Node::enter();
    let task = sleeper();
    for _ in 0..10 {
        task.exec(&["true"]).succeeded();
    }
    let listed = task
        .exec(&["sh", "-c", "set -- /proc/[0-9]*; echo $#"])
        .succeeded()
        .text();
    assert_eq!(listed, "2\n", "the init and the shell");
    task.destroy();
}

#[test]
fn the_tasks_processes_are_listed() {
    let _node = Node::enter();
    let task = sleeper();
    let list = ctr(&["task", "ps", task.id()]).succeeded().text();
    assert!(list.lines().count() >= 2, "{list}");
    task.destroy();
}

#[test]
fn a_container_that_has_not_started_takes_an_exec() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let mut hold = Hold::install();
        let container = Container::new(runtime, &["sleep", "infinity"]);
        let container = container.with(hold::FLAGS).with(&["--null-io"]);
        let run = Running::start(container.command(&["--detach"]));
        hold.wait();
        let task = container.task();
        assert_eq!(task.status(), "CREATED", "{runtime:?}");
        let early = task.exec(&["sh", "-c", "echo early; exit 3"]);
        assert_eq!(early.ended_with(3).text(), "early\n", "{runtime:?}");
        hold.release();
        run.finish().succeeded();
        assert_eq!(task.status(), "RUNNING", "{runtime:?}");
        task.destroy();
    });
}

#[test]
fn execs_end_when_the_container_does() {
    let _node = Node::enter();
    let task = sleeper();
    let mut exec = task.start_exec(&["sh", "-c", "echo up; sleep infinity"]);
    exec.wait_for("up");
    task.kill("KILL");
    task.wait();
    exec.finish().ended_with(137);
    task.delete();
}
