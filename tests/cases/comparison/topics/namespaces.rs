//! Namespaces, names and sysctls.

use serde_json::{Value, json};

use crate::comparison::table::Group;

/// Takes a namespace out of the spec.
fn without(spec: &mut Value, kind: &str) {
    let namespaces = spec["linux"]["namespaces"]
        .as_array_mut()
        .expect("namespaces");
    namespaces.retain(|namespace| namespace["type"] != kind);
}

/// Puts a namespace into the spec, instead of the one of its kind.
fn with(spec: &mut Value, namespace: &Value) {
    without(spec, namespace["type"].as_str().unwrap_or_default());
    let namespaces = spec["linux"]["namespaces"]
        .as_array_mut()
        .expect("namespaces");
    namespaces.push(namespace.clone());
}

/// The rows of every run.
pub const SHORT: &[Group] = &[
    Group::shell(
        "the defaults",
        |spec| spec["hostname"] = json!("burrow"),
        &[
            ("hostname", "hostname"),
            ("hostname in proc", "cat /proc/sys/kernel/hostname"),
            (
                "hostname is not in the environment",
                "echo ${HOSTNAME-unset}",
            ),
            ("init is 1", "echo $$; cat /proc/1/comm"),
            ("its parent is outside", "cut -d' ' -f4 /proc/1/stat"),
            ("session and group", "cut -d' ' -f5,6 /proc/1/stat"),
            ("links", "ls /sys/class/net"),
            (
                "loopback is up",
                "ip addr show lo | grep -E -o 'UP|inet6? [^ ]*' | sort -u",
            ),
            (
                "loopback works",
                "(nc -ll -p 5555 -e echo x >/dev/null 2>&1 &); for n in $(seq 100); do nc 127.0.0.1 5555 </dev/null 2>/dev/null && break; sleep 0.2; done",
            ),
            ("routes", "ip route; ip -6 route | wc -l"),
            ("queues are its own", "ls -A /dev/mqueue | wc -l"),
            // The group's own shells come and go; a host has dozens of others.
            (
                "only its own processes",
                "set -- /proc/[0-9]*; [ $# -lt 10 ] && echo few",
            ),
            ("namespaces there are", "ls /proc/self/ns"),
            (
                "children share them",
                "for n in ipc mnt net pid uts cgroup user time; do [ $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) ] && echo $n; done",
            ),
            ("port ranges", "cat /proc/sys/net/ipv4/ip_local_port_range"),
            (
                "unprivileged ports begin",
                "cat /proc/sys/net/ipv4/ip_unprivileged_port_start",
            ),
            (
                "sysctls are read-only",
                "echo 1 >/proc/sys/net/ipv4/ip_forward",
            ),
            ("sysrq is read-only", "echo h >/proc/sysrq-trigger"),
            (
                "ids of the user namespace",
                "cat /proc/self/uid_map | tr -s ' '",
            ),
        ],
    ),
    Group::shell(
        "sysctls",
        |spec| {
            spec["linux"]["sysctl"] = json!({
                "net.ipv4.ip_unprivileged_port_start": "0",
                "net.ipv4.ip_forward": "1",
                "net/ipv4/conf/lo/forwarding": "1",
                "net.ipv4.ping_group_range": "0 2147483647",
                "kernel.shmmax": "1234567",
                "kernel.msgmax": "4321",
                "kernel.sem": "100 3200 50 64",
                "fs.mqueue.msg_max": "77",
                "kernel.domainname": "from.sysctl",
            });
        },
        &[
            (
                "of the network",
                "cd /proc/sys/net/ipv4; cat ip_unprivileged_port_start ip_forward conf/lo/forwarding",
            ),
            (
                "with two numbers",
                "tr '\\t' ' ' </proc/sys/net/ipv4/ping_group_range",
            ),
            ("of shared memory", "cat /proc/sys/kernel/shmmax"),
            ("of messages", "cat /proc/sys/kernel/msgmax"),
            ("of semaphores", "tr '\\t' ' ' </proc/sys/kernel/sem"),
            ("of queues", "cat /proc/sys/fs/mqueue/msg_max"),
            ("of names", "cat /proc/sys/kernel/domainname"),
        ],
    ),
    Group::command(
        "the host's network",
        |spec| without(spec, "network"),
        &["true"],
    ),
];

/// The rows that only a full run has time for.
pub const FULL: &[Group] = &[
    Group::shell(
        "no hostname",
        |spec| {
            spec.as_object_mut().map(|spec| spec.remove("hostname"));
        },
        &[("is not set", "[ -n \"$(hostname)\" ] && echo named")],
    ),
    Group::shell(
        "a domain name",
        |spec| {
            spec["hostname"] = json!("burrow");
            spec["domainname"] = json!("example.org");
        },
        &[("is set", "cat /proc/sys/kernel/domainname")],
    ),
    Group::shell(
        "a cgroup namespace",
        |spec| with(spec, &json!({ "type": "cgroup" })),
        &[
            ("the container is at its root", "cat /proc/self/cgroup"),
            ("and so is its init", "cat /proc/1/cgroup"),
        ],
    ),
    Group::shell(
        "no cgroup namespace",
        |_| {},
        &[("the path is the spec's", "cat /proc/self/cgroup")],
    ),
    Group::command(
        "a sysctl of the whole kernel",
        |spec| spec["linux"]["sysctl"] = json!({ "kernel.panic": "7" }),
        &["true"],
    ),
    Group::command(
        "a sysctl that is not there",
        |spec| spec["linux"]["sysctl"] = json!({ "net.ipv4.no_such_thing": "7" }),
        &["true"],
    ),
    Group::command(
        "a sysctl with a value that cannot be",
        |spec| spec["linux"]["sysctl"] = json!({ "net.ipv4.ip_forward": "perhaps" }),
        &["true"],
    ),
    Group::command(
        "a sysctl of a namespace that is not new",
        |spec| {
            without(spec, "ipc");
            spec["linux"]["sysctl"] = json!({ "kernel.shmmax": "7" });
        },
        &["true"],
    ),
    Group::command(
        "the host's processes",
        |spec| without(spec, "pid"),
        &["true"],
    ),
    Group::shell(
        "the host's ipc",
        |spec| without(spec, "ipc"),
        &[("works", "echo fine")],
    ),
    Group::command(
        "a user namespace",
        |spec| {
            with(spec, &json!({ "type": "user" }));
            spec["linux"]["uidMappings"] =
                json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
            spec["linux"]["gidMappings"] =
                json!([{ "containerID": 0, "hostID": 0, "size": 65536 }]);
        },
        &["true"],
    ),
    Group::command(
        "a namespace that does not exist",
        |spec| with(spec, &json!({ "type": "galaxy" })),
        &["true"],
    ),
    Group::command(
        "a network namespace by a path that is not there",
        |spec| {
            with(
                spec,
                &json!({ "type": "network", "path": "/var/run/netns/none" }),
            )
        },
        &["true"],
    ),
    Group::command(
        "a hostname without a namespace for it",
        |spec| {
            without(spec, "uts");
            spec["hostname"] = json!("burrow");
        },
        &["true"],
    ),
];
