//! `ctr task metrics`, Update, and the OOM killer: what a container uses and may use.

use containerd_shim_protos::api::{Empty, StatsRequest, StatsResponse, UpdateTaskRequest};
use containerd_shim_protos::cgroups_v2::metrics::Metrics;
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use husk_tests::containerd::Events;
use husk_tests::network::{Namespace, node};
use husk_tests::task_api::TaskApi;
use husk_tests::{Container, Node, Runtime, Task, ctr};
use serde_json::Value;

const MIB: u64 = 1 << 20;

/// What monitoring reads, as `ctr task metrics --format json` prints it.
#[track_caller]
fn metrics(task: &Task) -> Value {
    let output = ctr(&["task", "metrics", "--format", "json", task.id()]).succeeded();
    serde_json::from_str(&output.text()).unwrap_or_else(|error| panic!("{error}: {output}"))
}

#[track_caller]
fn number(metrics: &Value, pointer: &str) -> u64 {
    // A field that is zero is left out.
    match metrics.pointer(pointer) {
        None => 0,
        Some(value) => value
            .as_u64()
            .unwrap_or_else(|| panic!("{pointer} in {metrics}")),
    }
}

#[test]
fn the_figures_are_the_containers() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        // 8 MiB of its own memory, some work, three processes.
        let script =
            "x=$(head -c 8388608 /dev/zero | tr '\\0' x); sleep infinity & sleep infinity & wait";
        let task = Container::new(runtime, &["sh", "-c", script])
            .with(&["--null-io", "--memory-limit", "67108864"])
            .detach();
        let deadline = std::time::Instant::now() + husk_tests::process::DEADLINE;
        let metrics = loop {
            let metrics = metrics(&task);
            if number(&metrics, "/pids/current") == 3 && number(&metrics, "/memory/anon") > 8 * MIB
            {
                break metrics;
            }
            assert!(
                std::time::Instant::now() < deadline,
                "{runtime:?}: {metrics}"
            );
        };
        assert_eq!(
            number(&metrics, "/memory/usage_limit"),
            64 * MIB,
            "{runtime:?}"
        );
        let usage = number(&metrics, "/memory/usage");
        assert!(
            (8 * MIB..64 * MIB).contains(&usage),
            "{runtime:?}: {metrics}"
        );
        let [all, user, system] = ["usage_usec", "user_usec", "system_usec"]
            .map(|key| number(&metrics, &format!("/cpu/{key}")));
        assert!(
            all > 0 && all.abs_diff(user + system) <= 1,
            "{runtime:?}: {metrics}"
        );
        assert!(
            number(&metrics, "/memory/pgfault") > 0,
            "{runtime:?}: {metrics}"
        );
        let table = ctr(&["task", "metrics", task.id()]).succeeded().text();
        assert!(table.contains("cpu.usage_usec"), "{runtime:?}: {table}");
        task.destroy();
    });
}

#[test]
fn an_update_changes_what_it_names_and_nothing_else() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let task = Container::new(runtime, &["sleep", "infinity"])
            .with(&["--null-io", "--memory-limit", "67108864"])
            .detach();
        let api = TaskApi::of(task.id());
        let limits = || {
            let metrics = metrics(&task);
            ["/memory/usage_limit", "/pids/limit"].map(|pointer| number(&metrics, pointer))
        };
        let [memory, pids] = limits();
        assert_eq!(memory, 64 * MIB, "{runtime:?}");
        update(&api, r#"{"pids":{"limit":50}}"#);
        assert_eq!(limits(), [64 * MIB, 50], "{runtime:?}: {pids} before");
        update(&api, r#"{"memory":{"limit":50331648}}"#);
        assert_eq!(limits(), [48 * MIB, 50], "{runtime:?}");
        task.destroy();
    });
}

#[test]
fn the_traffic_of_the_pods_links_is_told() {
    let _node = Node::enter();
    let add = "ip link add counted-far type veth peer name eth0 netns counted
        ip addr add 10.77.0.1/24 dev counted-far; ip link set counted-far up
        n addr add 10.77.0.2/24 dev eth0; n link set eth0 up";
    let namespace = Namespace::new("counted", add);
    let task = namespace.run();
    node("busybox ping -c 3 -s 1000 -W 20 10.77.0.2");
    // Not every `ctr` knows this part of the message.
    let request = StatsRequest {
        id: task.id().into(),
        ..Default::default()
    };
    let answer: StatsResponse = TaskApi::of(task.id())
        .call("Stats", &request)
        .expect("figures");
    let metrics = Metrics::parse_from_bytes(&answer.stats.value).expect("figures");
    let [link] = &metrics.network[..] else {
        panic!("neither lo nor the tap: {:?}", metrics.network);
    };
    assert_eq!(link.name, "eth0");
    assert!(link.rx_packets >= 3 && link.rx_bytes > 3000, "{link:?}");
    assert!(link.tx_packets >= 3 && link.tx_bytes > 3000, "{link:?}");
    task.destroy();
}

#[track_caller]
fn update(api: &TaskApi, resources: &str) {
    let request = UpdateTaskRequest {
        id: api.container().into(),
        resources: Some(Any {
            type_url: "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources".into(),
            value: resources.as_bytes().to_vec(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    let updated = api.call::<_, Empty>("Update", &request);
    assert!(updated.is_ok(), "{updated:?}");
}

#[test]
fn an_oom_kill_is_told_before_the_exit_it_causes() {
    let _node = Node::enter();
    // Not compared: runc's shim tells it after the exit now and then, or not at all.
    let events = Events::subscribe();
    Container::script("x=0123456789abcdef; while :; do x=$x$x; done")
        .with(&["--memory-limit", "16777216"])
        .run()
        .ended_with(137);
    let topics = [
        "/tasks/create",
        "/tasks/start",
        "/tasks/oom",
        "/tasks/exit",
        "/tasks/delete",
    ];
    assert_eq!(events.task_topics_with("/tasks/delete"), topics);
}

#[test]
fn an_oom_kill_of_a_child_is_told_while_the_container_lives() {
    let _node = Node::enter();
    let mut events = Events::subscribe();
    let script = "sh -c 'x=0123456789abcdef; while :; do x=$x$x; done'; sleep infinity";
    let task = Container::script(script)
        .with(&["--null-io", "--memory-limit", "16777216"])
        .detach();
    events.wait_for("/tasks/oom");
    assert_eq!(task.status(), "RUNNING");
    let kills = number(&metrics(&task), "/memory_events/oom_kill");
    assert_eq!(kills, 1);
    task.destroy();
    let topics = events.task_topics_with("/tasks/delete");
    let oom = topics.iter().filter(|topic| *topic == "/tasks/oom").count();
    assert_eq!(oom, 1, "{topics:?}");
}

#[test]
#[ignore = "full"]
fn a_hundred_restarts_after_an_oom_kill_end_alike() {
    let _node = Node::enter();
    let script = "x=0123456789abcdef; while :; do x=$x$x; done";
    for restart in 0..100 {
        let output = Container::script(script)
            .with(&["--memory-limit", "16777216"])
            .run();
        assert_eq!(output.code, 137, "restart {restart}: {}", output.stderr);
    }
}
