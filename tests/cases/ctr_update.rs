//! Update: new limits for a container that runs.

use containerd_shim_protos::api::{Empty, UpdateTaskRequest};
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::ttrpc::Code;
use husk_tests::task_api::{Refusal, TaskApi};
use husk_tests::{Container, Node, Runtime, Task};
use serde_json::{Value, json};

const LINUX_RESOURCES: &str = "types.containerd.io/opencontainers/runtime-spec/1/LinuxResources";

/// A container that sees its own cgroup.
fn sleeper(runtime: Runtime) -> Task {
    let cgroup = "type=cgroup,src=cgroup,dst=/cgroup,options=ro";
    Container::new(runtime, &["sleep", "infinity"])
        .with(&["--null-io", "--memory-limit", "67108864", "--mount", cgroup])
        .detach()
}

fn update(task: &Task, resources: &Value) -> Result<(), Refusal> {
    let request = UpdateTaskRequest {
        id: task.id().into(),
        resources: Some(Any {
            type_url: LINUX_RESOURCES.into(),
            value: resources.to_string().into_bytes(),
            ..Default::default()
        })
        .into(),
        ..Default::default()
    };
    TaskApi::of(task.id())
        .call::<_, Empty>("Update", &request)
        .map(drop)
}

/// What is in these files of its cgroup, a line each.
fn limits(task: &Task, files: &[&str]) -> String {
    // `ctr` gives the container no cgroup namespace: the mount shows the whole tree.
    let own = "/cgroup$(cut -d: -f3 /proc/self/cgroup)";
    let script = format!("cd {own} && cat {}", files.join(" "));
    task.exec(&["sh", "-c", &script]).succeeded().text()
}

#[test]
fn an_update_changes_what_it_names_and_leaves_the_rest() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let task = sleeper(runtime);
        let files = [
            "memory.max",
            "memory.swap.max",
            "memory.low",
            "cpu.max",
            "cpu.weight",
            "pids.max",
            "io.weight",
        ];
        for (resources, expected) in [
            // Shares at the ends of their scale: between them runc's versions differ.
            (
                json!({
                    "cpu": { "quota": 30_000, "period": 60_000, "shares": 2 },
                    "pids": { "limit": 50 },
                }),
                "67108864\nmax\n0\n30000 60000\n1\n50\ndefault 100\n",
            ),
            (
                json!({ "memory": { "limit": 50_331_648, "swap": 67_108_864, "reservation": 8_388_608 } }),
                "50331648\n16777216\n8388608\n30000 60000\n1\n50\ndefault 100\n",
            ),
            (
                json!({
                    "cpu": { "shares": 262_144, "quota": 15_000, "period": 60_000 },
                    "blockIO": { "weight": 500 },
                }),
                "50331648\n16777216\n8388608\n15000 60000\n10000\n50\ndefault 4950\n",
            ),
            (
                json!({ "memory": { "limit": -1 }, "pids": { "limit": -1 } }),
                "max\nmax\n8388608\n15000 60000\n10000\nmax\ndefault 4950\n",
            ),
        ] {
            let updated = update(&task, &resources);
            assert!(updated.is_ok(), "{runtime:?}: {resources}: {updated:?}");
            let now = limits(&task, &files);
            assert_eq!(now, expected, "{runtime:?}: after {resources}");
        }
        task.destroy();
    });
}

#[test]
fn an_update_that_fails_changes_nothing_and_names_the_field() {
    let _node = Node::enter();
    let task = sleeper(Runtime::Husk);
    let files = ["memory.max", "pids.max", "cpu.weight"];
    let before = limits(&task, &files);
    for (resources, field) in [
        (
            // The kernel refuses the last of three.
            json!({
                "memory": { "limit": 33_554_432 }, "pids": { "limit": 9 },
                "unified": { "memory.high": "much" },
            }),
            "linux.resources.unified: memory.high",
        ),
        (
            json!({ "pids": { "limit": 9 }, "cpu": { "shares": 2, "period": 1 } }),
            "linux.resources.cpu.period: cpu.max",
        ),
        (
            json!({ "pids": { "limit": 9 }, "memory": { "limit": 33_554_432, "swap": 1 } }),
            "linux.resources.memory.swap",
        ),
        (
            json!({ "pids": { "limit": 9 }, "memory": { "limit": 4096, "checkBeforeUpdate": true } }),
            "linux.resources.memory.limit",
        ),
    ] {
        let refusal = update(&task, &resources).expect_err("a refusal");
        assert_eq!(refusal.code, Code::INVALID_ARGUMENT, "{refusal}");
        assert!(refusal.text.contains(field), "{resources}: {refusal}");
        assert_eq!(limits(&task, &files), before, "after {resources}");
    }
    task.destroy();
}

#[test]
fn a_limit_below_what_is_used_kills_in_the_container_only() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let task = sleeper(runtime);
        // Filled memory that cannot be reclaimed.
        let fill = "mkdir -p /dev/shm; dd if=/dev/zero of=/dev/shm/f bs=1M count=16 2>/dev/null";
        task.exec(&["sh", "-c", fill]).succeeded();
        let updated = update(&task, &json!({ "memory": { "limit": 4_194_304 } }));
        assert!(updated.is_ok(), "{runtime:?}: {updated:?}");
        task.wait();
        assert_eq!(task.delete(), 137, "{runtime:?}");
    });
}
