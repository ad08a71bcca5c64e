//! `ctr task pause` and `resume`.

use husk_tests::containerd::Events;
use husk_tests::{Container, Node, Runtime, ctr};

/// Counts into a file, some ten times a second.
const COUNTER: &str = "n=0; while :; do n=$((n + 1)); echo $n >/count; usleep 100000; done";

#[test]
fn a_paused_container_stands_still_and_goes_on_where_it_was() {
    let _node = Node::enter();
    for runtime in Runtime::BOTH {
        let mut events = Events::subscribe();
        let task = Container::new(runtime, &["sh", "-c", COUNTER])
            .with(&["--null-io"])
            .detach();
        // Read on the host: in a paused container nothing can be executed.
        let count = || {
            let path = format!("{}/{}/rootfs/count", ctr::BUNDLES, task.id());
            let text = std::fs::read_to_string(path).unwrap_or_default();
            text.trim().parse::<u64>().unwrap_or(0)
        };
        let counts_on = |from: u64| {
            let deadline = std::time::Instant::now() + husk_tests::process::DEADLINE;
            while count() <= from {
                assert!(
                    std::time::Instant::now() < deadline,
                    "{runtime:?} stands still"
                );
            }
        };
        counts_on(1);
        ctr(&["task", "pause", task.id()]).succeeded();
        assert_eq!(task.status(), "PAUSED", "{runtime:?}");
        let before = count();
        // Long enough for a dozen more.
        std::thread::sleep(std::time::Duration::from_secs(2));
        assert_eq!(count(), before, "{runtime:?}");
        ctr(&["task", "exec", "--exec-id", "e", task.id(), "true"]).failed_saying(&["paused"]);
        ctr(&["task", "resume", task.id()]).succeeded();
        assert_eq!(task.status(), "RUNNING", "{runtime:?}");
        counts_on(before);
        events.wait_for("/tasks/resumed");
        task.destroy();
        assert_eq!(
            events.task_topics(),
            [
                "/tasks/create",
                "/tasks/start",
                "/tasks/paused",
                "/tasks/resumed",
                "/tasks/exit",
                "/tasks/delete"
            ],
            "{runtime:?}"
        );
    }
}

#[test]
fn a_paused_container_can_be_killed() {
    let _node = Node::enter();
    for runtime in Runtime::BOTH {
        let task = Container::new(runtime, &["sleep", "infinity"])
            .with(&["--null-io"])
            .detach();
        ctr(&["task", "pause", task.id()]).succeeded();
        task.kill("KILL");
        task.wait();
        assert_eq!(task.delete(), 137, "{runtime:?}");
    }
}

#[test]
fn a_signal_to_a_paused_container_is_delivered_when_it_goes_on() {
    let _node = Node::enter();
    for runtime in Runtime::BOTH {
        let script = "trap 'exit 7' TERM; sleep infinity & wait";
        let task = Container::new(runtime, &["sh", "-c", script])
            .with(&["--null-io"])
            .detach();
        ctr(&["task", "pause", task.id()]).succeeded();
        task.kill("TERM");
        assert_eq!(task.status(), "PAUSED", "{runtime:?}");
        ctr(&["task", "resume", task.id()]).succeeded();
        task.wait();
        assert_eq!(task.delete(), 7, "{runtime:?}");
    }
}
