//! Capabilities and no_new_privs.

use capctl::caps::Cap;
use serde_json::{Value, json};

use crate::comparison::drive::host;
use crate::comparison::table::Group;

const SETS: &str = "grep -E '^(Cap|NoNewPrivs)' /proc/self/status";

/// The same capabilities in these sets, none in the others.
fn only(spec: &mut Value, sets: &[&str], capabilities: &[&str]) {
    spec["process"]["capabilities"] = json!({});
    for set in sets {
        spec["process"]["capabilities"][set] = json!(capabilities);
    }
}

const USUAL: &[&str] = &["bounding", "effective", "permitted"];

/// The rows of every run.
pub const SHORT: &[Group] = &[
    Group::shell(
        "containerd's defaults",
        |_| {},
        &[
            ("sets", SETS),
            ("chroot is allowed", "chroot / true"),
            ("mounting is not", "mount -t tmpfs tmpfs /tmp"),
            ("setting the hostname is not", "hostname other"),
            ("setting the time is not", "date -s 2000-01-01 >/dev/null"),
            (
                "configuring the network is not",
                "ip link add dummy0 type dummy",
            ),
            (
                "tracing another process's memory is its own right",
                "head -c 0 /proc/1/mem && echo opened",
            ),
            ("the kernel's log", "dmesg >/dev/null; echo $?"),
            ("rebooting is not", "reboot -f -n"),
            ("swapping is not", "swapoff -a; swapon /tmp/none"),
        ],
    ),
    Group::shell(
        "none",
        |spec| only(spec, &[], &[]),
        &[
            ("sets", SETS),
            ("no file is given away", "touch /tmp/f; chown 5 /tmp/f"),
            (
                "permissions hold for root too",
                "echo x >/tmp/closed; chmod 0 /tmp/closed; cat /tmp/closed",
            ),
            ("no other user", "su user -s /bin/sh -c id"),
            ("no low port", "timeout 2 nc -l -p 80"),
        ],
    ),
    Group::shell(
        "ambient ones for a user",
        |spec| {
            only(
                spec,
                &[
                    "bounding",
                    "effective",
                    "permitted",
                    "inheritable",
                    "ambient",
                ],
                &["CAP_NET_BIND_SERVICE", "CAP_CHOWN"],
            );
            spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        },
        &[
            ("sets", SETS),
            (
                "they work",
                "touch /tmp/f; chown 5 /tmp/f; stat -c %u /tmp/f",
            ),
        ],
    ),
];

/// The rows that only a full run has time for.
pub const FULL: &[Group] = &[
    Group::shell(
        "no list at all",
        |spec| {
            spec["process"]
                .as_object_mut()
                .map(|process| process.remove("capabilities"));
        },
        &[("sets", SETS)],
    ),
    Group::shell(
        "two of them",
        |spec| only(spec, USUAL, &["CAP_CHOWN", "CAP_SYS_ADMIN"]),
        &[
            ("sets", SETS),
            (
                "mounting is allowed",
                "mount -t tmpfs tmpfs /tmp && grep -c ' /tmp tmpfs' /proc/mounts",
            ),
            ("the hostname too", "hostname other && hostname"),
            ("unmounting a mask is", "umount /proc/keys && echo unmasked"),
        ],
    ),
    Group::shell(
        "inheritable without ambient for a user",
        |spec| {
            only(
                spec,
                &["bounding", "permitted", "inheritable", "effective"],
                &["CAP_KILL"],
            );
            spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
        },
        &[("sets", SETS)],
    ),
    Group::shell(
        "a bounding set larger than the rest",
        |spec| {
            only(
                spec,
                &["bounding"],
                &["CAP_CHOWN", "CAP_KILL", "CAP_NET_RAW"],
            );
            spec["process"]["noNewPrivileges"] = json!(false);
        },
        &[("sets", SETS)],
    ),
    Group::shell(
        "a name that does not exist",
        |spec| only(spec, USUAL, &["CAP_CHOWN", "CAP_NO_SUCH_THING"]),
        &[("sets", SETS)],
    ),
    Group::shell(
        "all of them",
        |spec| {
            let all: Vec<String> = Cap::iter().map(|cap| cap.to_string()).collect();
            only(
                spec,
                USUAL,
                &all.iter().map(String::as_str).collect::<Vec<_>>(),
            );
        },
        &[
            ("sets", SETS),
            (
                "links",
                "ip link set lo mtu 1400 && cat /sys/class/net/lo/mtu",
            ),
        ],
    ),
    Group::shell(
        "setuid programs without no_new_privs",
        |spec| {
            spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000 });
            spec["process"]["noNewPrivileges"] = json!(false);
            let file = host(spec, "dir");
            spec["mounts"].as_array_mut().expect("mounts").push(json!({
                "destination": "/shared", "type": "bind", "source": file, "options": ["rbind"],
            }));
        },
        &[
            ("flag", SETS),
            (
                "the root allows them",
                "grep ' / ' /proc/mounts | grep -c nosuid",
            ),
            (
                "a bind mount allows them",
                "grep ' /shared ' /proc/mounts | grep -c nosuid",
            ),
        ],
    ),
];
