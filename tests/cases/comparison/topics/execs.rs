//! Further processes in a running container.

use serde_json::json;

use crate::comparison::table::Group;

const IDENTITY: &str = "grep -E '^(Uid|Gid|Groups)' /proc/self/status | tr '\\t' ' '";
const SETS: &str = "grep -E '^(Cap|NoNewPrivs|Seccomp):?' /proc/self/status";

/// The rows of every run.
pub const SHORT: &[Group] = &[
    Group::running(
        "in a usual container",
        |_| {},
        "exec sleep 1000",
        &[
            ("output and code", |c| {
                c.sh("echo good; echo bad >&2; exit 4")
            }),
            ("standard input is empty", |c| c.sh("cat | wc -c")),
            ("privileges are the process's", |c| c.sh(SETS)),
            ("other capabilities", |c| {
                c.sh_with(SETS, |p| {
                p["capabilities"] = json!({ "bounding": ["CAP_KILL"], "effective": ["CAP_KILL"], "permitted": ["CAP_KILL"] });
            })
            }),
            ("more capabilities than the container", |c| {
                c.sh_with(SETS, |p| {
                p["capabilities"] = json!({ "bounding": ["CAP_SYS_ADMIN"], "effective": ["CAP_SYS_ADMIN"], "permitted": ["CAP_SYS_ADMIN"] });
            })
            }),
            ("no capabilities", |c| {
                c.sh_with(SETS, |p| p["capabilities"] = json!({}))
            }),
            ("the container's when none are told", |c| {
                c.sh_with(SETS, |p| {
                    p.as_object_mut().map(|p| p.remove("capabilities"));
                })
            }),
            ("ambient ones for a user", |c| {
                c.sh_with(SETS, |p| {
                let kill = json!(["CAP_KILL"]);
                p["capabilities"] = json!({ "bounding": kill, "effective": kill, "permitted": kill, "inheritable": kill, "ambient": kill });
                p["user"] = json!({ "uid": 1000, "gid": 1000 });
            })
            }),
            ("without no_new_privs", |c| {
                c.sh_with(SETS, |p| p["noNewPrivileges"] = json!(false))
            }),
            ("a user", |c| {
                c.sh_with(IDENTITY, |p| {
                    p["user"] = json!({ "uid": 1000, "gid": 1000 })
                })
            }),
            ("a user with groups", |c| {
                c.sh_with(IDENTITY, |p| {
                    p["user"] = json!({ "uid": 77, "gid": 78, "additionalGids": [29, 100] })
                })
            }),
            ("a user's home", |c| {
                c.sh_with("echo $HOME", |p| {
                    p["user"] = json!({ "uid": 1000, "gid": 1000 })
                })
            }),
            ("a user's capabilities", |c| {
                c.sh_with(SETS, |p| p["user"] = json!({ "uid": 1000, "gid": 1000 }))
            }),
            ("a user writes to its output by name", |c| {
                c.sh_with("echo named >/dev/stdout", |p| {
                    p["user"] = json!({ "uid": 1000, "gid": 1000 })
                })
            }),
            ("a umask", |c| {
                c.sh_with("umask", |p| p["user"]["umask"] = json!(0o077))
            }),
            ("a directory", |c| {
                c.sh_with("pwd", |p| p["cwd"] = json!("/etc"))
            }),
            ("a directory that is not there", |c| {
                c.sh_with("pwd", |p| p["cwd"] = json!("/not/there"))
            }),
            ("a directory that is a file", |c| {
                c.sh_with("pwd", |p| p["cwd"] = json!("/etc/passwd"))
            }),
            ("an environment", |c| {
                c.sh_with("env | sort", |p| {
                    p["env"] = json!(["PATH=/bin", "MINE=yes"])
                })
            }),
            ("no environment", |c| {
                c.exec_with(&["/bin/env"], |p| p["env"] = json!([]))
            }),
            ("limits", |c| {
                c.sh_with("ulimit -n; ulimit -c", |p| {
                p["rlimits"] = json!([{ "type": "RLIMIT_NOFILE", "soft": 33, "hard": 44 }, { "type": "RLIMIT_CORE", "soft": 0, "hard": 0 }]);
            })
            }),
            ("no limits", |c| {
                c.sh_with("ulimit -n", |p| p["rlimits"] = json!([]))
            }),
            ("limits of its own and inherited ones", |c| {
                c.sh_with("cat /proc/self/limits", |p| {
                    p["rlimits"] = json!([{ "type": "RLIMIT_NPROC", "soft": 70, "hard": 80 }]);
                })
            }),
            ("an out-of-memory score", |c| {
                c.sh_with("cat /proc/self/oom_score_adj", |p| {
                    p["oomScoreAdj"] = json!(500)
                })
            }),
            ("arguments", |c| {
                c.exec(&["sh", "-c", "echo \"$1|$2|$#\"", "name", "", "two words"])
            }),
            ("a program that is not there", |c| {
                c.exec(&["/no/such/program"])
            }),
            ("a program that is not on the path", |c| {
                c.exec(&["no-such-program"])
            }),
            ("a directory as program", |c| c.exec(&["/etc"])),
            ("a file without the right to run", |c| {
                c.exec(&["/etc/passwd"])
            }),
            ("a program its user may not run", |c| {
                c.sh("mkdir /own; cp /bin/busybox /own/echo; chmod 700 /own/echo");
                c.exec_with(&["/own/echo", "ran"], |p| {
                    p["user"] = json!({ "uid": 1000, "gid": 1000 })
                })
            }),
            ("no command", |c| c.exec(&[])),
            ("an empty command", |c| c.exec(&[""])),
            ("a process that is no object", |c| {
                c.exec_with(&["true"], |p| *p = json!("process"))
            }),
            ("a user that is no number", |c| {
                c.exec_with(&["true"], |p| p["user"]["uid"] = json!("root"))
            }),
            ("the container's namespaces", |c| {
                c.sh("for n in pid mnt uts ipc net cgroup; do [ $(readlink /proc/1/ns/$n) = $(readlink /proc/self/ns/$n) ] || echo $n; done; echo compared")
            }),
            ("the container's cgroup", |c| {
                c.sh("cat /proc/1/cgroup /proc/self/cgroup | sort -u | wc -l")
            }),
            ("the container's root", |c| {
                c.sh("readlink /proc/self/root; ls -A /proc/self/root | sort")
            }),
            ("sees init", |c| {
                c.sh("cat /proc/1/comm; set -- /proc/[0-9]*; echo $#")
            }),
            ("its parent is outside", |c| {
                c.exec(&["cut", "-d ", "-f4", "/proc/self/stat"])
            }),
            ("a session of its own", |c| {
                c.sh("p=$(cut -d' ' -f1,6 /proc/$$/stat); [ \"${p% *}\" = \"${p#* }\" ] && echo leader")
            }),
            ("descriptors", |c| c.sh("cd /proc/$$/fd && echo *")),
            ("nothing is blocked or ignored", |c| {
                c.sh("grep -E '^Sig(Blk|Ign)' /proc/self/status")
            }),
            ("may end the init's neighbours only", |c| {
                c.sh("kill -KILL 1; cat /proc/1/comm")
            }),
            ("killed by itself", |c| c.sh("kill -KILL $$")),
            ("killed by a fault", |c| c.sh("kill -SEGV $$")),
            ("a child that stays", |c| {
                c.sh("sleep 2 >/dev/null 2>&1 & echo gone")
            }),
            ("personality is the container's", |c| c.sh("uname -m")),
            ("the same files", |c| {
                c.sh("echo left >/tmp/left");
                c.sh("cat /tmp/left")
            }),
            ("64 KiB less one byte of output", |c| {
                c.sh("head -c 60000 /dev/zero | tr '\\0' x | md5sum")
            }),
        ],
    ),
    Group::running(
        "in a container of a user",
        |spec| {
            spec["process"]["user"] = json!({ "uid": 1000, "gid": 1000, "additionalGids": [29] });
            spec["process"]["cwd"] = json!("/var");
            spec["process"]["noNewPrivileges"] = json!(false);
            spec["process"]["oomScoreAdj"] = json!(100);
            spec["root"]["readonly"] = json!(true);
        },
        "exec sleep 1000",
        &[
            ("the same user", |c| c.sh(IDENTITY)),
            ("the same directory", |c| c.sh("pwd")),
            ("the same privileges", |c| c.sh(SETS)),
            ("root", |c| {
                c.sh_with(&format!("{IDENTITY}; {SETS}"), |p| {
                    p["user"] = json!({ "uid": 0, "gid": 0 })
                })
            }),
            ("a read-only root", |c| {
                c.sh_with("touch /new", |p| p["user"] = json!({ "uid": 0, "gid": 0 }))
            }),
            ("the same score", |c| c.sh("cat /proc/self/oom_score_adj")),
        ],
    ),
];
