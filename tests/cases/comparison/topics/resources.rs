//! Limits of the cgroup and of the process.

use serde_json::{Value, json};

use crate::comparison::live::Live;
use crate::comparison::table::{Group, Outcome};

/// With the container's cgroup to be seen at its usual place.
fn limited(spec: &mut Value, resources: Value) {
    let mounts = spec["mounts"].as_array_mut().expect("mounts");
    mounts.push(json!({
        "destination": "/sys/fs/cgroup", "type": "cgroup", "source": "cgroup",
        "options": ["nosuid", "noexec", "nodev", "relatime", "ro"],
    }));
    let namespaces = spec["linux"]["namespaces"]
        .as_array_mut()
        .expect("namespaces");
    namespaces.push(json!({ "type": "cgroup" }));
    for (key, value) in resources.as_object().expect("resources") {
        spec["linux"]["resources"][key] = value.clone();
    }
}

/// Prints files of the container's cgroup.
macro_rules! files {
    ($names:literal) => {
        concat!("cd /sys/fs/cgroup; head -n 1 ", $names)
    };
}

fn rlimits(spec: &mut Value, limits: &[(&str, u64, u64)]) {
    spec["process"]["rlimits"] = limits
        .iter()
        .map(|(kind, soft, hard)| json!({ "type": kind, "soft": soft, "hard": hard }))
        .collect();
}

const MIB: u64 = 1 << 20;

/// The rows of every run.
pub const SHORT: &[Group] = &[
    Group::shell(
        "memory",
        |spec| {
            limited(
                spec,
                json!({ "memory": { "limit": 64 * MIB, "reservation": 16 * MIB, "swap": 96 * MIB } }),
            )
        },
        &[
            ("limit", files!("memory.max")),
            ("reservation", files!("memory.low")),
            ("swap", files!("memory.swap.max")),
            ("no event yet", "grep oom_kill /sys/fs/cgroup/memory.events"),
        ],
    ),
    Group::shell(
        "cgroups that can be written to",
        |spec| {
            limited(spec, json!({ "pids": { "limit": 50 } }));
            let mounts = spec["mounts"].as_array_mut().expect("mounts");
            let cgroup = mounts.last_mut().expect("the cgroup's");
            cgroup["options"] = json!(["nosuid", "noexec", "nodev", "relatime", "rw"]);
        },
        &[
            (
                "its own limit stays",
                "echo max >/sys/fs/cgroup/pids.max; cat /sys/fs/cgroup/pids.max",
            ),
            (
                "one of its own",
                "mkdir /sys/fs/cgroup/own && cat /sys/fs/cgroup/own/cgroup.type; rmdir /sys/fs/cgroup/own",
            ),
        ],
    ),
    Group::shell(
        "processors by weight and quota",
        |spec| {
            limited(
                spec,
                json!({ "cpu": { "shares": 512, "quota": 25_000, "period": 50_000 } }),
            )
        },
        &[
            ("weight", files!("cpu.weight")),
            ("quota", files!("cpu.max")),
        ],
    ),
    Group::shell(
        "processes",
        |spec| limited(spec, json!({ "pids": { "limit": 12 } })),
        &[
            ("limit", files!("pids.max")),
            (
                "holds",
                "for i in 1 2 3 4 5 6 7 8 9 10 11 12 13 14; do sleep 100 & done; wait; echo all",
            ),
        ],
    ),
    Group::command(
        "more memory than the limit",
        |spec| {
            limited(
                spec,
                json!({ "memory": { "limit": 16 * MIB, "swap": 16 * MIB } }),
            )
        },
        &["dd", "if=/dev/zero", "of=/dev/null", "bs=64M", "count=1"],
    ),
    Group::shell(
        "limits of the process",
        |spec| {
            rlimits(
                spec,
                &[
                    ("RLIMIT_NOFILE", 100, 200),
                    ("RLIMIT_CORE", 0, 0),
                    ("RLIMIT_FSIZE", 4096, 8192),
                    ("RLIMIT_NPROC", 50, 60),
                    ("RLIMIT_STACK", 1 << 20, 2 << 20),
                    ("RLIMIT_CPU", 500, 600),
                    ("RLIMIT_DATA", 1 << 26, 1 << 27),
                    ("RLIMIT_MEMLOCK", 4096, 4096),
                    ("RLIMIT_MSGQUEUE", 1000, 2000),
                    ("RLIMIT_NICE", 5, 6),
                    ("RLIMIT_RTPRIO", 3, 4),
                    ("RLIMIT_RTTIME", 1000, 2000),
                    ("RLIMIT_SIGPENDING", 10, 20),
                    ("RLIMIT_LOCKS", 7, 8),
                    ("RLIMIT_RSS", 1 << 26, 1 << 27),
                    ("RLIMIT_AS", 1 << 30, 1 << 31),
                ],
            );
        },
        &[
            ("all of them", "tr -s ' ' </proc/self/limits"),
            ("of the shell", "ulimit -n; ulimit -H -n; ulimit -c"),
            (
                "file size",
                "dd if=/dev/zero of=/tmp/big bs=1k count=5 2>/dev/null; echo $?; stat -c %s /tmp/big",
            ),
            (
                "descriptors",
                "i=3; while [ $i -lt 99 ]; do eval \"exec $i</dev/null\" || break; i=$((i+1)); done; echo $i; exec 150</dev/null",
            ),
        ],
    ),
];

/// The rows that only a full run has time for.
pub const FULL: &[Group] = &[
    Group::shell(
        "nothing asked for",
        |spec| limited(spec, json!({})),
        &[
            (
                "memory",
                files!("memory.max memory.low memory.swap.max memory.high"),
            ),
            ("processors", files!("cpu.max cpu.weight")),
            ("processes", files!("pids.max")),
            (
                "controllers",
                "cd /sys/fs/cgroup; for c in cpu memory pids io cpuset; do grep -q $c cgroup.controllers && echo $c; done",
            ),
            ("type", files!("cgroup.type cgroup.freeze")),
            ("no children", "cat /sys/fs/cgroup/cgroup.subtree_control"),
        ],
    ),
    Group::shell(
        "memory without swap",
        |spec| {
            limited(
                spec,
                json!({ "memory": { "limit": 64 * MIB, "swap": 64 * MIB } }),
            )
        },
        &[("files", files!("memory.max memory.swap.max"))],
    ),
    Group::shell(
        "processors without a quota",
        |spec| {
            limited(
                spec,
                json!({ "cpu": { "shares": 2, "quota": -1, "period": 200_000 } }),
            )
        },
        &[("files", files!("cpu.weight cpu.max"))],
    ),
    Group::shell(
        "processors by number",
        |spec| limited(spec, json!({ "cpu": { "cpus": "0", "mems": "0" } })),
        &[
            ("files", files!("cpuset.cpus cpuset.mems")),
            ("affinity", "grep Cpus_allowed_list /proc/self/status"),
        ],
    ),
    Group::shell(
        "processes without a limit",
        |spec| limited(spec, json!({ "pids": { "limit": -1 } })),
        &[("limit", files!("pids.max"))],
    ),
    Group::shell(
        "files of the cgroup by name",
        |spec| {
            limited(
                spec,
                json!({ "unified": {
                "memory.high": "50331648", "memory.min": "1048576", "pids.max": "99",
                "cpu.weight": "77", "memory.oom.group": "1",
            } }),
            );
        },
        &[(
            "files",
            files!("memory.high memory.min pids.max cpu.weight memory.oom.group"),
        )],
    ),
    Group::command(
        "a file of the cgroup that is not there",
        |spec| limited(spec, json!({ "unified": { "memory.nonsense": "1" } })),
        &["true"],
    ),
    Group::command(
        "a file of the cgroup with a path",
        |spec| limited(spec, json!({ "unified": { "../memory.high": "1" } })),
        &["true"],
    ),
    Group::command(
        "swap below memory",
        |spec| {
            limited(
                spec,
                json!({ "memory": { "limit": 64 * MIB, "swap": 32 * MIB } }),
            )
        },
        &["true"],
    ),
    Group::command(
        "a quota that is too small",
        |spec| limited(spec, json!({ "cpu": { "quota": 1, "period": 100_000 } })),
        &["true"],
    ),
    Group::command(
        "processors that are not there",
        |spec| limited(spec, json!({ "cpu": { "cpus": "999" } })),
        &["true"],
    ),
    Group::shell(
        "a child with more memory than the limit",
        |spec| {
            limited(
                spec,
                json!({ "memory": { "limit": 16 * MIB, "swap": 16 * MIB } }),
            )
        },
        &[
            (
                "dies alone",
                "dd if=/dev/zero of=/dev/null bs=64M count=1 2>/dev/null; echo $?",
            ),
            ("is counted", "grep oom_kill /sys/fs/cgroup/memory.events"),
        ],
    ),
    Group::shell(
        "no limits of the process",
        |spec| rlimits(spec, &[]),
        &[
            ("descriptors", "grep -c 'open files' /proc/self/limits"),
            ("core files", "tr -s ' ' </proc/self/limits | grep core"),
            ("stack", "tr -s ' ' </proc/self/limits | grep stack"),
            (
                "locked memory",
                "tr -s ' ' </proc/self/limits | grep locked",
            ),
        ],
    ),
    Group::command(
        "a limit that does not exist",
        |spec| rlimits(spec, &[("RLIMIT_TEARS", 1, 1)]),
        &["true"],
    ),
    Group::command(
        "a soft limit above the hard one",
        |spec| rlimits(spec, &[("RLIMIT_NOFILE", 20, 10)]),
        &["true"],
    ),
    Group::command(
        "the same limit twice",
        |spec| {
            rlimits(
                spec,
                &[("RLIMIT_NOFILE", 10, 10), ("RLIMIT_NOFILE", 20, 20)],
            )
        },
        &["true"],
    ),
    Group::shell(
        "the out-of-memory score",
        |spec| spec["process"]["oomScoreAdj"] = json!(321),
        &[("is set", "cat /proc/self/oom_score_adj")],
    ),
    Group::shell(
        "no out-of-memory score",
        |_| {},
        &[("is inherited", "cat /proc/self/oom_score_adj")],
    ),
    Group::running(
        "limits changed at run time",
        |spec| {
            limited(
                spec,
                json!({ "memory": { "limit": 64 * MIB }, "pids": { "limit": 50 } }),
            )
        },
        "exec sleep 1000",
        &[
            ("before", |c| {
                c.sh(files!("memory.max pids.max cpu.weight cpu.max"))
            }),
            ("pids", |c| {
                update(c, &json!({ "pids": { "limit": 40 } }), files!("pids.max"))
            }),
            ("memory up", |c| {
                update(
                    c,
                    &json!({ "memory": { "limit": 65 * MIB } }),
                    files!("memory.max"),
                )
            }),
            ("memory down", |c| {
                update(
                    c,
                    &json!({ "memory": { "limit": 32 * MIB } }),
                    files!("memory.max"),
                )
            }),
            ("reservation", |c| {
                update(
                    c,
                    &json!({ "memory": { "reservation": 8 * MIB } }),
                    files!("memory.low memory.max"),
                )
            }),
            ("weight", |c| {
                update(
                    c,
                    &json!({ "cpu": { "shares": 2048 } }),
                    files!("cpu.weight"),
                )
            }),
            ("quota", |c| {
                update(
                    c,
                    &json!({ "cpu": { "quota": 50_000, "period": 100_000 } }),
                    files!("cpu.max cpu.weight"),
                )
            }),
            ("no quota", |c| {
                update(c, &json!({ "cpu": { "quota": -1 } }), files!("cpu.max"))
            }),
            ("by name", |c| {
                update(
                    c,
                    &json!({ "unified": { "memory.high": "20971520" } }),
                    files!("memory.high"),
                )
            }),
            ("nothing", |c| {
                update(c, &json!({}), files!("memory.max pids.max"))
            }),
            ("a file that is not there", |c| {
                update(
                    c,
                    &json!({ "unified": { "no.such": "1" } }),
                    files!("memory.max"),
                )
            }),
        ],
    ),
];

/// Changes the container's resources and prints what came of it.
fn update(container: &Live, resources: &Value, look: &str) -> Outcome {
    let Outcome(answer) = container.update(resources);
    let Outcome(seen) = container.sh(look);
    Outcome(format!("{answer}\n{seen}"))
}
