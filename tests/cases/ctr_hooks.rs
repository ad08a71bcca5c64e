//! Hooks on the host where a VM makes a difference: the time of the boot, failures, and
//! the death of the shim. That hooks are told what runc's are is compared elsewhere.

use std::fs;
use std::process::Command;

use husk_tests::containerd::Events;
use husk_tests::network::{told, vanished};
use husk_tests::process;
use husk_tests::rootfs::Rootfs;
use husk_tests::{Node, Runtime, Task, ctr};
use serde_json::{Value, json};

/// A container with hooks that write to `host/notes` beside its root.
struct Hooked {
    rootfs: Rootfs,
    id: &'static str,
}

impl Hooked {
    /// `hooks` are lists by name; each hook is a script in the host's directory that has
    /// the pid it was told of in `$pid`.
    fn new(id: &'static str, hooks: &[(&str, &[&str])]) -> Self {
        let rootfs = Rootfs::mount();
        let text = ctr(&["oci", "spec"]).succeeded().text();
        let mut spec: Value = serde_json::from_str(&text).expect("a spec");
        spec["root"] = json!({ "path": rootfs.path() });
        spec["process"]["args"] = json!(["sleep", "infinity"]);
        spec["process"]["env"] = json!(["PATH=/bin:/usr/bin"]);
        for (list, scripts) in hooks {
            let entry = |script: &&str| {
                let read = "pid=$(sed -n 's/.*\"pid\": *\\([0-9]*\\).*/\\1/p')";
                let script = format!("{read}; cd {}; {script}", rootfs.host().display());
                json!({
                    "path": "/bin/sh", "args": ["sh", "-c", script],
                    "env": ["PATH=/usr/sbin:/usr/bin:/sbin:/bin"],
                })
            };
            spec["hooks"][*list] = scripts.iter().map(entry).collect();
        }
        fs::write(rootfs.host().join("spec.json"), spec.to_string()).expect("a spec");
        Self { rootfs, id }
    }

    fn run(&self) -> process::Output {
        let config = self.rootfs.host().join("spec.json");
        let mut ctr = Command::new("ctr");
        ctr.args(["run", "--detach", "--null-io"])
            .args(["--runtime", Runtime::Husk.name(), "--config"])
            .arg(config)
            .arg(self.id);
        process::run(ctr)
    }

    fn notes(&self) -> String {
        fs::read_to_string(self.rootfs.host().join("notes")).unwrap_or_default()
    }
}

#[test]
fn the_pods_network_is_made_by_a_hook_before_the_guest_boots() {
    let _node = Node::enter();
    for (id, list) in [("h-net-1", "prestart"), ("h-net-2", "createRuntime")] {
        let link = "ip link add hook-far type veth peer name hooked netns $pid
            ip addr add 10.77.0.1/24 dev hook-far; ip link set hook-far up
            n() { nsenter --net=/proc/$pid/ns/net ip $*; }
            n addr add 10.77.0.2/24 dev hooked; n link set hooked up; n route add default via 10.77.0.1";
        // Until it boots, the VMM has one thread for its work and one for its control.
        let threads = "ls /proc/$pid/task | wc -l >notes; readlink /proc/$pid/exe >>notes";
        let hooked = Hooked::new(id, &[(list, &[link, threads])]);
        hooked.run().succeeded();
        let task = Task::of(hooked.id);
        let pid = task.pid();
        let notes = hooked.notes();
        let (before, exe) = notes.split_once('\n').expect("two lines");
        assert!(exe.trim().ends_with("/husk-vmm"), "{list}: {notes}");
        let before: usize = before.trim().parse().expect("a number");
        let after = fs::read_dir(format!("/proc/{pid}/task")).expect("the VMM runs");
        let ran = before >= after.count();
        assert!(!ran, "{list}: the guest ran already: {notes}");
        let has = "ls /sys/class/net; ip -o -4 addr show dev hooked | tr -s ' ' | cut -d ' ' -f 2-4; ip route";
        let expected = "hooked\nlo\nhooked inet 10.77.0.2/24\n\
            default via 10.77.0.1 dev hooked \n10.77.0.0/24 dev hooked scope link  src 10.77.0.2 \n";
        assert_eq!(told(&task, has), expected, "{list}");
        told(&task, "ping -c 1 -W 20 10.77.0.1");
        task.destroy();
        vanished("hook-far");
    }
}

#[test]
fn a_hook_of_creation_that_fails_leaves_nothing() {
    let _node = Node::enter();
    for (id, list) in [("h-fail-1", "prestart"), ("h-fail-2", "createContainer")] {
        let hooks: [(&str, &[&str]); 2] = [
            (
                list,
                &["ls $PWD/../rootfs/bin/sh >notes", "echo why >&2; exit 3"],
            ),
            ("poststop", &["echo poststop $pid >>notes"]),
        ];
        let hooked = Hooked::new(id, &hooks);
        let words = [
            list,
            "error running hook #1",
            "exit status 3",
            "stderr: why",
        ];
        hooked.run().failed_saying(&words);
        assert!(
            hooked.notes().ends_with("/bin/sh\npoststop\n"),
            "{}",
            hooked.notes()
        );
    }
}

#[test]
fn a_hook_after_the_start_that_fails_ends_the_container() {
    let _node = Node::enter();
    let hooks: [(&str, &[&str]); 2] = [
        ("poststart", &["echo poststart $pid >notes; exit 4"]),
        ("poststop", &["echo poststop >>notes"]),
    ];
    let hooked = Hooked::new("h-late", &hooks);
    hooked.run().failed_saying(&["poststart", "exit status 4"]);
    let task = Task::of(hooked.id);
    let pid = task.pid();
    task.wait();
    assert_eq!(task.delete(), 137);
    assert_eq!(hooked.notes(), format!("poststart {pid}\npoststop\n"));
}

#[test]
fn a_hook_after_the_end_has_its_time() {
    let _node = Node::enter();
    // Longer than a shim whose last container is gone waits for its own end.
    let hooks: [(&str, &[&str]); 1] = [("poststop", &["sleep 15; echo poststop >>notes"])];
    let hooked = Hooked::new("h-slow", &hooks);
    hooked.run().succeeded();
    let task = Task::of(hooked.id);
    task.kill("KILL");
    task.wait();
    assert_eq!(task.delete(), 137);
    assert_eq!(hooked.notes(), "poststop\n");
}

#[test]
fn the_last_hooks_run_once_when_the_shim_is_killed() {
    let _node = Node::enter();
    let hooks: [(&str, &[&str]); 2] = [
        ("createRuntime", &["echo created >notes"]),
        ("poststop", &["echo poststop >>notes"]),
    ];
    let hooked = Hooked::new("h-crash", &hooks);
    let mut events = Events::subscribe();
    hooked.run().succeeded();
    for pid in process::named("containerd-shim-rust-v2") {
        process::signal(pid, "KILL");
    }
    // containerd publishes it once `delete` has cleaned up.
    events.wait_for("/tasks/exit");
    assert_eq!(hooked.notes(), "created\npoststop\n");
    Task::of(hooked.id).forgotten();
}
