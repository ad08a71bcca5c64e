//! Processes with a terminal.

use serde_json::{Value, json};

use crate::comparison::table::Group;

/// Gives a process a terminal.
fn terminal(process: &mut Value) {
    process["terminal"] = json!(true);
}

/// The rows of every run.
pub const SHORT: &[Group] = &[Group::running(
    "execs",
    |_| {},
    "exec sleep 1000",
    &[
        ("have one", |c| {
            c.sh_with(
                "tty; [ -t 0 ] && [ -t 1 ] && [ -t 2 ] && echo all three",
                terminal,
            )
        }),
        ("see both outputs on it", |c| {
            c.sh_with("echo out; echo err >&2", terminal)
        }),
        ("its modes", |c| c.sh_with("stty -a | tail -n +2", terminal)),
        ("a size", |c| {
            c.sh_with("stty size", |p| {
                terminal(p);
                p["consoleSize"] = json!({ "height": 33, "width": 99 });
            })
        }),
        ("no size", |c| c.sh_with("stty size", terminal)),
        ("it is the controlling one", |c| {
            c.sh_with("echo mine >/dev/tty", terminal)
        }),
        ("it belongs to the user", |c| {
            c.sh_with("stat -c '%u %g %a' $(tty)", |p| {
                terminal(p);
                p["user"] = json!({ "uid": 1000, "gid": 1000 });
            })
        }),
        ("it belongs to root", |c| {
            c.sh_with("stat -c '%u %g %a' $(tty)", terminal)
        }),
        ("leader of its session", |c| {
            c.sh_with("set -- $(cut -d' ' -f1,5,6,8 /proc/$$/stat); [ $1 = $2 ] && [ $1 = $3 ] && [ $1 = $4 ] && echo leader", terminal)
        }),
        ("descriptors", |c| {
            c.sh_with("cd /proc/$$/fd && echo *", terminal)
        }),
        ("no environment of its own", |c| {
            c.sh_with("echo ${TERM-unset}", terminal)
        }),
        ("code", |c| c.sh_with("exit 12", terminal)),
        ("killed", |c| c.sh_with("kill -KILL $$", terminal)),
        ("a program that is not there", |c| {
            c.exec_with(&["no-such-program"], terminal)
        }),
        ("without it there is none", |c| {
            c.sh("tty; echo x >/dev/tty")
        }),
        ("the container has no console", |c| c.sh("ls /dev/console")),
    ],
)];
