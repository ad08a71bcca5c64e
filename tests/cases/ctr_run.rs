//! `ctr run`: what comes out is what runc gives.

use std::thread;
use std::time::{Duration, Instant};

use husk_tests::process::{self, DEADLINE};
use husk_tests::{Container, Node, Runtime, ctr, timeline};

#[test]
fn hello() {
    let _node = Node::enter();
    let output = Container::husk(&["echo", "hello"]).run().succeeded();
    assert_eq!(output.text(), "hello\n");
    assert_eq!(output.stderr, "");
}

#[test]
fn the_exit_code_of_the_container_is_ctrs() {
    let _node = Node::enter();
    for code in [0, 1, 42, 255] {
        Container::script(&format!("exit {code}"))
            .run()
            .ended_with(code);
    }
}

#[test]
fn a_container_that_has_ended_needs_no_machine() {
    let _node = Node::enter();
    let task = Container::script("exit 3").with(&["--null-io"]).detach();
    task.wait();
    let deadline = Instant::now() + DEADLINE;
    while !process::named("husk-vmm").is_empty() {
        assert!(Instant::now() < deadline, "it still has one");
        thread::sleep(Duration::from_millis(50));
    }
    // What is asked of it is answered as before.
    assert_eq!(task.status(), "STOPPED");
    task.kill("TERM");
    ctr(&["task", "metrics", task.id()]).succeeded();
    ctr(&["task", "ps", task.id()]).succeeded();
    task.exec(&["true"]).failed_saying(&["stopped"]);
    assert_eq!(task.delete(), 3);
}

#[test]
fn a_shell_reports_126_and_127() {
    let _node = Node::enter();
    Container::script("/etc/passwd").run().ended_with(126);
    Container::script("no-such-program").run().ended_with(127);
}

#[test]
fn standard_error_is_apart_from_standard_output() {
    let _node = Node::enter();
    let output = Container::script("echo out; echo err >&2")
        .run()
        .succeeded();
    assert_eq!(
        (output.text().as_str(), output.stderr.as_str()),
        ("out\n", "err\n")
    );
}

#[test]
fn the_kernel_is_the_guests() {
    let _node = Node::enter();
    let release = |runtime| {
        Container::new(runtime, &["uname", "-r"])
            .run()
            .succeeded()
            .text()
    };
    let (guest, host) = (release(Runtime::Husk), release(Runtime::Runc));
    assert_ne!(guest, host);
    assert!(guest.starts_with("6.12."), "{guest}");
}

#[test]
fn without_limits_the_machine_has_one_cpu_and_64_mib() {
    let _node = Node::enter();
    let text = Container::script("nproc; grep MemTotal /proc/meminfo")
        .run()
        .succeeded()
        .text();
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words[0], "1", "{text}");
    let total_kib: u32 = words[2].parse().expect("a number of KiB");
    assert!(total_kib < 64 * 1024, "{text}");
}

#[test]
fn limits_make_the_machine_larger() {
    let _node = Node::enter();
    let limit_mib = 200;
    // Told a few times: pages on their way back to the host are not free for that moment.
    let script = "nproc; for n in 1 2 3 4; do grep MemAvailable /proc/meminfo; sleep 1; done";
    let output = Container::script(script)
        .with(&[
            "--cpus",
            "2",
            "--memory-limit",
            &(limit_mib << 20).to_string(),
        ])
        .run()
        .succeeded();
    let text = output.text();
    let words: Vec<&str> = text.split_whitespace().collect();
    assert_eq!(words[0], "2", "{text}");
    // The workload can have what its limit says, because the guest's own needs come on
    // top; MemAvailable is a careful estimate, some per cent too low.
    let told = words.iter().filter_map(|word| word.parse::<u32>().ok());
    let available_kib = told.max().expect("a number of KiB");
    assert!(available_kib / 1024 >= limit_mib * 95 / 100, "{text}");
}

#[test]
fn environment_directory_and_arguments_arrive() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let script = "echo \"$GREETING|$(pwd)|$0|$1|$#\"";
        let output = Container::new(runtime, &["sh", "-c", script, "name", "two words"])
            .with(&["--env", "GREETING=good day", "--cwd", "/var"])
            .run()
            .succeeded();
        assert_eq!(
            output.text(),
            "good day|/var|name|two words|1\n",
            "{runtime:?}"
        );
    });
}

#[test]
fn a_working_directory_that_is_missing_is_made() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let output = Container::new(runtime, &["pwd"])
            .with(&["--cwd", "/made/up"])
            .run()
            .succeeded();
        assert_eq!(output.text(), "/made/up\n", "{runtime:?}");
    });
}

#[test]
fn the_user_and_its_groups_are_the_images() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let output = Container::new(runtime, &["id"])
            .with(&["--user", "user"])
            .run()
            .succeeded();
        let text = output.text();
        assert!(
            text.starts_with("uid=1000(user) gid=1000(user)"),
            "{runtime:?}: {text}"
        );
    });
}

#[test]
fn the_hostname_is_the_specs() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let container = Container::new(runtime, &["hostname"]).with(&["--hostname", "burrow"]);
        assert_eq!(
            container.run().succeeded().text(),
            "burrow\n",
            "{runtime:?}"
        );
    });
}

#[test]
fn the_container_is_pid_1_of_its_own_namespace() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let script = "echo $$; set -- /proc/[0-9]*; echo $#";
        let text = Container::new(runtime, &["sh", "-c", script])
            .run()
            .succeeded()
            .text();
        let lines: Vec<&str> = text.lines().collect();
        assert_eq!(lines[0], "1", "{runtime:?}");
        assert!(
            lines[1].parse::<u32>().is_ok_and(|n| n <= 3),
            "{runtime:?}: {text}"
        );
    });
}

/// What a program can read about itself: the same lines from both runtimes. `/dev/core`
/// is left out, because the guest's kernel does not offer its memory as a file.
#[test]
fn privileges_and_limits_equal_runcs() {
    let _node = Node::enter();
    let script = "grep -E '^(Cap|NoNewPrivs|Uid|Gid|Groups)' /proc/self/status; ulimit -n; umask; \
                  ls /proc/self/fd | wc -l; ls /dev | grep -vx core | sort; \
                  ls -l /dev/stdin /dev/ptmx | sed 's/.* \\(.dev\\)/\\1/'";
    let [runc, husk] = Runtime::both(|runtime| {
        Container::new(runtime, &["sh", "-c", script])
            .run()
            .succeeded()
            .text()
    });
    assert_eq!(husk, runc);
}

#[test]
fn the_mounts_of_the_default_spec_equal_runcs() {
    let _node = Node::enter();
    // Mount point, type and options; devices and sizes are each kernel's own. What runc
    // masks because of ACPI and of the kernel's memory, our guest does not have.
    let script = "while read d p t o x; do echo $p $t $(echo $o | tr , '\\n' | \
                  grep -E '^(ro|rw|nosuid|nodev|noexec|mode=.*|gid=.*)$' | sort); done </proc/mounts | \
                  grep -v -e '^/ ' -e '^/proc/acpi' -e '^/proc/kcore'";
    let [runc, husk] = Runtime::both(|runtime| {
        Container::new(runtime, &["sh", "-c", script])
            .run()
            .succeeded()
            .text()
    });
    assert_eq!(husk, runc);
}

#[test]
fn masked_paths_are_empty_and_read_only_paths_refuse_writes() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let script = "cat /proc/keys /proc/timer_list | wc -c; ls /proc/scsi /sys/firmware 2>/dev/null | grep -v : | wc -w; \
                      echo 1 2>&1 >/proc/sys/kernel/panic | grep -c -i 'read-only'";
        let text = Container::new(runtime, &["sh", "-c", script]).run().text();
        assert_eq!(text, "0\n0\n1\n", "{runtime:?}");
    });
}

#[test]
fn a_root_file_system_from_a_directory() {
    let _node = Node::enter();
    let root = tempfile::tempdir().expect("a temporary directory");
    std::fs::create_dir_all(root.path().join("bin")).expect("a folder");
    std::fs::copy("/usr/bin/busybox", root.path().join("bin/busybox")).expect("busybox");
    for folder in ["proc", "sys", "dev"] {
        std::fs::create_dir(root.path().join(folder)).expect("a folder");
    }
    let rootfs = root.path().to_str().expect("a UTF-8 path");
    let container =
        Container::husk(&["/bin/busybox", "sh", "-c", "echo written >/file; echo done"]);
    assert_eq!(
        container.on_rootfs(rootfs).run().succeeded().text(),
        "done\n"
    );
    let written = std::fs::read_to_string(root.path().join("file")).expect("the container's file");
    assert_eq!(written, "written\n");
}

#[test]
fn setuid_programs_of_the_image_work() {
    let _node = Node::enter();
    let script =
        "while read d p t o x; do [ $p != / ] || echo $o; done </proc/mounts | grep -c nosuid";
    Runtime::both(|runtime| {
        let text = Container::new(runtime, &["sh", "-c", script]).run().text();
        assert_eq!(text, "0\n", "{runtime:?}");
    });
}

#[test]
fn a_read_only_root_refuses_writes() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let output = Container::new(runtime, &["touch", "/file"])
            .with(&["--read-only"])
            .run();
        assert!(
            output.stderr.contains("Read-only file system"),
            "{runtime:?}: {output}"
        );
    });
}

#[test]
fn a_missing_entrypoint_fails_with_runcs_text() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let text = "exec: \"/no/such/program\": stat /no/such/program: no such file or directory";
        Container::new(runtime, &["/no/such/program"])
            .run()
            .failed_saying(&[text]);
    });
}

#[test]
fn a_program_not_on_the_path_fails_with_runcs_text() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let text = "exec: \"no-such-program\": executable file not found in $PATH";
        Container::new(runtime, &["no-such-program"])
            .run()
            .failed_saying(&[text]);
    });
}

#[test]
fn two_machines_at_once() {
    let _node = Node::enter();
    let containers = [1, 2].map(|n| Container::script(&format!("echo up {n}; cat; echo down {n}")));
    let mut running = containers.map(|container| container.start());
    running[0].wait_for("up 1");
    running[1].wait_for("up 2");
    for container in &mut running {
        container.close_stdin();
    }
    let texts = running.map(|container| container.finish().succeeded().text());
    assert_eq!(texts, ["up 1\ndown 1\n", "up 2\ndown 2\n"]);
}

#[test]
fn the_same_container_id_can_be_used_again() {
    let _node = Node::enter();
    let container = Container::husk(&["echo", "again"]);
    for _ in 0..2 {
        assert_eq!(container.run().succeeded().text(), "again\n");
    }
}

#[test]
fn the_timeline_is_in_the_log_and_in_order() {
    let node = Node::enter();
    Container::husk(&["echo", "hello"]).run().succeeded();
    let log = node.log_with("timeline gone=");
    let steps = timeline::STEPS.map(|step| (timeline::at(&log, step), step));
    assert!(steps.is_sorted(), "{steps:?}");
}
