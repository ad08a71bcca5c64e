//! `ctr task pause` and `resume`.

use std::net::UdpSocket;
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

use husk_tests::containerd::Events;
use husk_tests::network::{Namespace, echo_datagrams};
use husk_tests::process::DEADLINE;
use husk_tests::{Container, Node, Runtime, ctr};

/// Counts into a file, some ten times a second.
const COUNTER: &str = "n=0; while :; do n=$((n + 1)); echo $n >/count; usleep 100000; done";

#[test]
fn a_paused_container_stands_still_and_goes_on_where_it_was() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
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
        std::thread::sleep(Duration::from_secs(2));
        assert_eq!(count(), before, "{runtime:?}");
        ctr(&["task", "exec", "--exec-id", "e", task.id(), "true"]).failed_saying(&["paused"]);
        ctr(&["task", "resume", task.id()]).succeeded();
        assert_eq!(task.status(), "RUNNING", "{runtime:?}");
        counts_on(before);
        events.wait_for("/tasks/resumed");
        task.destroy();
        assert_eq!(
            events.task_topics_with("/tasks/delete"),
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
    });
}

#[test]
fn a_paused_container_can_be_killed() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let task = Container::new(runtime, &["sleep", "infinity"])
            .with(&["--null-io"])
            .detach();
        ctr(&["task", "pause", task.id()]).succeeded();
        task.kill("KILL");
        task.wait();
        assert_eq!(task.delete(), 137, "{runtime:?}");
    });
}

#[test]
fn a_signal_to_a_paused_container_is_delivered_when_it_goes_on() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let script = "trap 'exit 7' TERM; >/trapped; sleep infinity & wait";
        let task = Container::new(runtime, &["sh", "-c", script])
            .with(&["--null-io"])
            .detach();
        // An init without a handler is not reached by the signal at all.
        let trapped = "until [ -e /trapped ]; do sleep 1; done";
        task.exec(&["sh", "-c", trapped]).succeeded();
        ctr(&["task", "pause", task.id()]).succeeded();
        task.kill("TERM");
        assert_eq!(task.status(), "PAUSED", "{runtime:?}");
        ctr(&["task", "resume", task.id()]).succeeded();
        task.wait();
        assert_eq!(task.delete(), 7, "{runtime:?}");
    });
}

#[test]
fn the_clock_is_the_hosts_before_and_after_a_pause() {
    const SKEW: Duration = Duration::from_millis(50);
    let _node = Node::enter();
    let clock = "echo ready; while read n; do adjtimex; echo told $n; done";
    let container = Container::script(clock);
    let mut running = container.start();
    running.wait_for("ready\n");
    let now = || {
        let since_1970 = SystemTime::now().duration_since(UNIX_EPOCH);
        since_1970.expect("a time after 1970")
    };
    let mut check = |when: &str, numbers: std::ops::Range<u32>| {
        for number in numbers {
            let before = now();
            running.write(format!("{number}\n").as_bytes());
            running.wait_for(&format!("told {number}\n"));
            let after = now();
            let told = last_time(&running.printed());
            assert!(
                before < told + SKEW && told < after + SKEW,
                "{when}: {told:?} is not between {before:?} and {after:?}"
            );
        }
    };
    // One answer may be late; a clock that is off is off in all.
    check("at the start", 0..9);
    ctr(&["task", "pause", container.id()]).succeeded();
    std::thread::sleep(Duration::from_secs(3));
    ctr(&["task", "resume", container.id()]).succeeded();
    check("after the pause", 9..18);
    running.close_stdin();
    running.finish().succeeded();
}

/// Datagrams with a number each, to a server that sends them back.
struct Numbered {
    socket: UdpSocket,
    next: u32,
}

impl Numbered {
    #[track_caller]
    fn to(server: &str) -> Self {
        let socket = UdpSocket::bind("10.77.0.1:0").expect("a socket");
        socket.connect(server).expect("a route");
        let timeout = socket.set_read_timeout(Some(Duration::from_millis(500)));
        timeout.expect("a timeout");
        Self { socket, next: 0 }
    }

    /// Sends so many.
    fn send(&mut self, count: u32) {
        for _ in 0..count {
            // It may tell that an earlier one was refused.
            drop(self.socket.send(&self.next.to_be_bytes()));
            self.next += 1;
        }
    }

    /// The numbers of those that come back until none has for half a second.
    fn come_back(&self) -> Vec<u32> {
        let mut numbers = Vec::new();
        let mut datagram = [0; 4];
        while let Ok(4) = self.socket.recv(&mut datagram) {
            numbers.push(u32::from_be_bytes(datagram));
        }
        numbers
    }

    /// Sends more until the server is seen to be there: the numbers of all that come back.
    #[track_caller]
    fn go_on(&mut self) -> Vec<u32> {
        let deadline = Instant::now() + DEADLINE;
        let mut numbers = Vec::new();
        loop {
            self.send(1);
            numbers.extend(self.come_back());
            if numbers.last() == Some(&(self.next - 1)) {
                return numbers;
            }
            assert!(Instant::now() < deadline, "no answer after {numbers:?}");
        }
    }
}

#[test]
fn what_comes_by_the_network_during_a_pause_is_there_after_it_once_and_in_order() {
    let _node = Node::enter();
    let add = "ip link add still-far type veth peer name eth0 netns still; ip link set still-far up
        ip addr add 10.77.0.1/24 dev still-far; n addr add 10.77.0.2/24 dev eth0; n link set eth0 up";
    Runtime::both(|runtime| {
        let namespace = Namespace::new("still", add);
        let task = namespace.run_beside_the_nodes_programs(runtime);
        echo_datagrams(&task, 7);
        let mut numbered = Numbered::to("10.77.0.2:7");
        numbered.go_on();
        // As many as the server's socket holds, and more than that.
        for during in [50, 5000] {
            let kept = numbered.next..numbered.next + 50 + 50;
            numbered.send(50);
            ctr(&["task", "pause", task.id()]).succeeded();
            let mut numbers = numbered.come_back();
            numbered.send(during);
            assert_eq!(numbered.come_back(), [0_u32; 0], "{runtime:?}");
            ctr(&["task", "resume", task.id()]).succeeded();
            numbers.extend(numbered.go_on());
            let first = numbers.iter().copied().take(kept.len());
            assert!(kept.eq(first), "{runtime:?}: {numbers:?}");
            let once_and_in_order = numbers.is_sorted_by(|one, next| one < next);
            assert!(once_and_in_order, "{runtime:?}: {numbers:?}");
        }
        task.destroy();
    });
}

/// The last time of day that `adjtimex` printed.
#[track_caller]
fn last_time(printed: &str) -> Duration {
    let number = |name: &str| {
        let lines = printed.lines().rev();
        let mut values = lines.filter_map(|line| line.split_once(name));
        let number = values.next().and_then(|(_, text)| text.trim().parse().ok());
        number.unwrap_or_else(|| panic!("no {name} in {printed}"))
    };
    Duration::from_secs(number("time.tv_sec:")) + Duration::from_micros(number("time.tv_usec:"))
}
