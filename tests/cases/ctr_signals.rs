//! Signals, the states of a task and its events.

use std::time::{Duration, Instant};

use husk_tests::containerd::Events;
use husk_tests::process::{DEADLINE, signal};
use husk_tests::{Container, Node, Runtime, ctr};

#[test]
fn a_signal_ends_the_container_with_128_plus_its_number() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let task = Container::new(runtime, &["sleep", "infinity"]).detach();
        task.kill("KILL");
        task.wait();
        assert_eq!(task.delete(), 137, "{runtime:?}");
    });
}

#[test]
fn a_shell_dies_of_its_own_signal_with_128_plus_its_number() {
    let _node = Node::enter();
    // Not PID 1, for which the kernel ignores signals without a handler.
    Container::script("sh -c 'kill -SEGV $$'; exit $?")
        .run()
        .ended_with(139);
}

#[test]
fn a_handler_in_the_container_gets_the_signal() {
    let _node = Node::enter();
    let script = "trap 'echo caught; exit 5' TERM; echo ready; while :; do sleep 1; done";
    let container = Container::script(script);
    let mut running = container.start();
    running.wait_for("ready");
    ctr(&["task", "kill", "--signal", "TERM", container.id()]).succeeded();
    running.wait_for("caught");
    running.finish().ended_with(5);
}

#[test]
fn ctr_passes_its_own_signals_on() {
    let _node = Node::enter();
    let script =
        "trap 'echo caught' WINCH; trap 'exit 7' INT; echo ready; while :; do sleep 1; done";
    let mut running = Container::script(script).start();
    running.wait_for("ready");
    // `ctr` passes them on only some time after the start, and until then INT would end it; it is
    // not the worse for WINCH.
    let deadline = Instant::now() + DEADLINE;
    while !running.prints("caught", Duration::from_secs(1)) {
        assert!(Instant::now() < deadline, "ctr passes nothing on");
        signal(running.pid(), "WINCH");
    }
    signal(running.pid(), "INT");
    running.finish().ended_with(7);
}

#[test]
fn a_detached_container_runs_until_it_is_killed() {
    let _node = Node::enter();
    let task = Container::husk(&["sleep", "infinity"]).detach();
    assert_eq!(task.status(), "RUNNING");
    task.kill("KILL");
    task.wait();
    assert_eq!(task.delete(), 137);
}

#[test]
fn a_signal_to_a_stopped_task_says_that_it_is_not_there() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let task = Container::new(runtime, &["true"]).detach();
        task.wait();
        ctr(&["task", "kill", "--signal", "SIGUSR1", task.id()]).failed_saying(&["not found"]);
        task.delete();
    });
}

#[test]
fn ending_a_stopped_task_succeeds() {
    let _node = Node::enter();
    let task = Container::husk(&["true"]).detach();
    task.wait();
    for signal in ["SIGTERM", "SIGKILL"] {
        ctr(&["task", "kill", "--signal", signal, task.id()]).succeeded();
    }
    task.delete();
}

#[test]
fn a_running_task_is_not_deleted() {
    let _node = Node::enter();
    let task = Container::husk(&["sleep", "infinity"]).detach();
    ctr(&["task", "delete", task.id()]).failed_saying(&["must be stopped before deletion"]);
    assert_eq!(task.status(), "RUNNING");
    task.destroy();
}

#[test]
fn the_events_of_a_container_come_once_each_and_in_order() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let mut events = Events::subscribe();
        Container::new(runtime, &["sh", "-c", "exit 3"])
            .run()
            .ended_with(3);
        // runc's shim of containerd 2.1 may end before it has told of the deletion.
        let due = match runtime {
            Runtime::Husk => &["create", "start", "exit", "delete"][..],
            Runtime::Runc => &["create", "start", "exit"],
        };
        let due: Vec<String> = due.iter().map(|verb| format!("/tasks/{verb}")).collect();
        events.wait_for(&due[due.len() - 1]);
        let mut events = events.tasks();
        events.retain(|(topic, _)| runtime == Runtime::Husk || topic != "/tasks/delete");
        let topics: Vec<&str> = events.iter().map(|(topic, _)| topic.as_str()).collect();
        assert_eq!(topics, due, "{runtime:?}");
        assert_eq!(events[2].1["exit_status"], 3, "{runtime:?}");
    });
}

#[test]
fn the_events_of_an_exec_come_between_start_and_exit() {
    let _node = Node::enter();
    let events = Events::subscribe();
    let task = Container::husk(&["sleep", "infinity"]).detach();
    task.exec(&["true"]).succeeded();
    assert_eq!(
        events.task_topics_with("/tasks/exit"),
        [
            "/tasks/create",
            "/tasks/start",
            "/tasks/exec-added",
            "/tasks/exec-started",
            "/tasks/exit"
        ]
    );
    task.destroy();
}
