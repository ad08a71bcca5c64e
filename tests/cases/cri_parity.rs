//! What a pod's containers are told by a script: the same under both runtimes, each promise of
//! the CRI on its own.

use std::fs;
use std::path::Path;
use std::process::Command;

use husk_tests::cri::api;
use husk_tests::pod_plan::{resources, security};
use husk_tests::{Node, Pod, PodPlan, Runtime, process};

type Change = fn(&mut api::ContainerConfig);

/// What a script prints in a container of a usual pod, both streams, and its exit code.
#[track_caller]
fn told_by_both(change: impl Fn(&mut api::ContainerConfig), script: &str) -> String {
    told_in(|plan| plan, change, script)
}

/// The same in a pod of one's own making.
#[track_caller]
fn told_in(
    pod: impl Fn(PodPlan) -> PodPlan,
    change: impl Fn(&mut api::ContainerConfig),
    script: &str,
) -> String {
    let _node = Node::enter();
    let [runc, husk] = Runtime::both(|runtime| {
        let pod = pod(PodPlan::new(runtime)).run();
        let mut plan = pod.plan(&["sh", "-c", script]);
        change(&mut plan);
        let container = pod.start(plan);
        let code = container.ended().exit_code;
        let told = container.log().join("\n");
        pod.remove();
        format!("{told}\nexit {code}")
    });
    assert_eq!(runc, husk);
    husk
}

const AS_IT_IS: Change = |_| {};

/// Runs a program on the host about a path.
#[track_caller]
fn host(program: &str, args: &[&str], path: &Path) {
    let mut command = Command::new(program);
    command.args(args).arg(path);
    process::run(command).succeeded();
}

#[test]
fn user_and_groups_are_numbers_that_need_no_passwd_file() {
    let told = told_by_both(
        |config| {
            let security = security(config);
            security.run_as_user = Some(api::Int64Value { value: 4711 });
            security.run_as_group = Some(api::Int64Value { value: 4712 });
            security.supplemental_groups = vec![4713, 4714];
        },
        "id -u; id -g; id -G",
    );
    assert!(
        told.contains("stdout F 4711\nstdout F 4712\nstdout F 4712 4713 4714"),
        "{told}"
    );
}

#[test]
fn capabilities_are_dropped_and_added_by_name() {
    let told = told_by_both(
        |config| {
            security(config).capabilities = Some(api::Capability {
                add_capabilities: vec!["NET_BIND_SERVICE".into()],
                drop_capabilities: vec!["ALL".into()],
                ..Default::default()
            });
        },
        "grep Cap /proc/self/status",
    );
    assert!(told.contains("CapEff:\t0000000000000400"), "{told}");
}

#[test]
fn nobody_gains_privileges_where_that_is_forbidden() {
    let told = told_by_both(
        |config| security(config).no_new_privs = true,
        "grep NoNewPrivs /proc/self/status",
    );
    assert!(told.contains("NoNewPrivs:\t1"), "{told}");
}

#[test]
fn the_runtimes_default_seccomp_profile_filters() {
    let told = told_by_both(
        |config| {
            security(config).seccomp = Some(api::SecurityProfile {
                profile_type: api::security_profile::ProfileType::RuntimeDefault.into(),
                ..Default::default()
            });
        },
        "grep Seccomp: /proc/self/status; unshare -U true 2>&1; mount -t tmpfs t /tmp 2>&1",
    );
    assert!(
        told.contains("Seccomp:\t2") && told.contains("not permitted"),
        "{told}"
    );
}

#[test]
fn a_read_only_root_can_be_written_in_its_volumes_only() {
    let volume = tempfile::tempdir().expect("a volume");
    let host_path = volume.path().to_string_lossy().into_owned();
    let told = told_by_both(
        |config| {
            security(config).readonly_rootfs = true;
            config.mounts.push(api::Mount {
                container_path: "/data".into(),
                host_path: host_path.clone(),
                ..Default::default()
            });
        },
        "touch /x 2>&1; touch /data/x && echo written && rm /data/x; touch /dev/shm/x && echo shared",
    );
    assert!(
        told.contains("Read-only file system") && told.contains("F written"),
        "{told}"
    );
}

#[test]
fn a_read_only_volume_cannot_be_written() {
    let volume = tempfile::tempdir().expect("a volume");
    fs::write(volume.path().join("file"), "content\n").expect("a file");
    // What the host has mounted below it can.
    let inner = volume.path().join("inner");
    fs::create_dir(&inner).expect("a mount point");
    host("mount", &["-t", "tmpfs", "inner"], &inner);
    let host_path = volume.path().to_string_lossy().into_owned();
    let told = told_by_both(
        |config| {
            config.mounts.push(api::Mount {
                container_path: "/data".into(),
                host_path: host_path.clone(),
                readonly: true,
                ..Default::default()
            });
        },
        "cat /data/file; echo x >/data/inner/file && cat /data/inner/file; \
         echo x 2>&1 >/data/file; rm /data/file 2>&1",
    );
    host("umount", &[], &inner);
    assert!(told.contains("F content") && told.contains("F x"), "{told}");
    let kept = fs::read_to_string(volume.path().join("file"));
    assert_eq!(kept.expect("a file"), "content\n");
}

#[test]
fn one_file_of_the_host_is_a_volume() {
    let dir = tempfile::tempdir().expect("a place");
    let file = dir.path().join("settings");
    fs::write(&file, "a = 1\n").expect("a file");
    let host_path = file.to_string_lossy().into_owned();
    told_by_both(
        |config| {
            config.mounts.push(api::Mount {
                container_path: "/etc/settings".into(),
                host_path: host_path.clone(),
                ..Default::default()
            });
        },
        "grep a /etc/settings; echo b = 2 >>/etc/settings; ls /etc/settings",
    );
    let written = fs::read_to_string(&file).expect("a file");
    assert_eq!(written, "a = 1\nb = 2\nb = 2\n");
}

#[test]
fn paths_are_masked_and_read_only_as_named() {
    let told = told_by_both(
        |config| {
            let security = security(config);
            security.masked_paths = vec!["/proc/version".into(), "/proc/tty".into()];
            security.readonly_paths = vec!["/proc/sys".into()];
        },
        "wc -c </proc/version; ls /proc/tty | wc -l; echo x 2>&1 >/proc/sys/kernel/domainname",
    );
    assert!(told.contains("stdout F 0\nstdout F 0\n"), "{told}");
}

#[test]
fn the_environment_is_the_configurations() {
    let told = told_by_both(
        |config| {
            let variables = [("A", "1"), ("B", "two words"), ("C", ""), ("A", "3")];
            config.envs = variables
                .map(|(key, value)| api::KeyValue {
                    key: key.into(),
                    value: value.into(),
                })
                .to_vec();
        },
        "env | grep -vE '^(SHLVL|HOSTNAME)=' | sort",
    );
    assert!(told.contains("F B=two words"), "{told}");
}

#[test]
fn the_working_directory_is_made_if_it_is_not_there() {
    let told = told_by_both(
        |config| config.working_dir = "/a/new/one".into(),
        "pwd; ls -A | wc -l",
    );
    assert!(told.contains("stdout F /a/new/one\nstdout F 0"), "{told}");
}

#[test]
fn a_pods_sysctls_hold_in_its_containers() {
    let told = told_in(
        |plan| {
            plan.with(|config| {
                let linux = config.linux.as_mut().expect("a Linux pod");
                linux
                    .sysctls
                    .insert("kernel.shm_rmid_forced".into(), "1".into());
            })
        },
        AS_IT_IS,
        "cat /proc/sys/kernel/shm_rmid_forced",
    );
    assert!(told.contains("stdout F 1"), "{told}");
}

#[test]
fn name_servers_and_host_names_are_the_pods() {
    let told = told_in(
        |plan| {
            plan.with(|config| {
                config.hostname = "burrow".into();
                config.dns_config = Some(api::DnsConfig {
                    servers: vec!["10.0.0.10".into(), "fd00::10".into()],
                    searches: vec!["default.svc.cluster.local".into()],
                    options: vec!["ndots:5".into()],
                });
            })
        },
        AS_IT_IS,
        "cat /etc/resolv.conf; hostname; cat /etc/hostname",
    );
    assert!(
        told.contains("nameserver fd00::10") && told.contains("F burrow"),
        "{told}"
    );
}

#[test]
fn hosts_names_and_name_servers_are_the_same_in_all_containers_of_a_pod() {
    let _node = Node::enter();
    let hosts = tempfile::NamedTempFile::new().expect("a file");
    fs::write(hosts.path(), "127.0.0.1 localhost\n10.0.0.5 burrow\n").expect("a file of ours");
    let [runc, husk] = Runtime::both(|runtime| {
        let mut plan = PodPlan::new(runtime);
        plan.config.hostname = "burrow".into();
        plan.config.dns_config = Some(api::DnsConfig {
            servers: vec!["10.0.0.10".into(), "fd00::10".into()],
            searches: vec!["default.svc.cluster.local".into()],
            options: vec!["ndots:5".into()],
        });
        let pod = plan.run();
        let first = pod.script("exec sleep infinity");
        let second = pod.script("exec sleep infinity");
        // A kubelet has a file of its own.
        let mut managed = pod.plan(&["sleep", "infinity"]);
        managed.mounts.push(api::Mount {
            host_path: hosts.path().to_string_lossy().into_owned(),
            container_path: "/etc/hosts".into(),
            ..Default::default()
        });
        let third = pod.start(managed);
        let containers = [&first, &second, &third];
        let all =
            "for f in hosts hostname resolv.conf; do echo /etc/$f; cat /etc/$f; done; hostname";
        let told = containers.map(|container| container.told(all));
        assert_eq!(told[0], told[1], "{runtime:?}");
        assert!(
            told[2].contains("10.0.0.5 burrow"),
            "{runtime:?}: {}",
            told[2]
        );
        // One file for all of them, which the first changes.
        first.told("echo nameserver 10.0.0.11 >>/etc/resolv.conf; echo 10.0.0.6 den >>/etc/hosts");
        let changed = containers.map(|container| container.told(all));
        drop((first, second, third));
        pod.remove();
        (told, changed)
    });
    assert_eq!(husk, runc);
    let [first, second, third] = &husk.1;
    assert_eq!(first, second);
    assert!(first.contains("10.0.0.6 den"), "{first}");
    assert!(
        third.contains("nameserver 10.0.0.11") && !third.contains("den"),
        "{third}"
    );
}

#[test]
fn the_score_for_the_oom_killer_is_the_containers() {
    let told = told_by_both(
        |config| resources(config).oom_score_adj = 777,
        "cat /proc/self/oom_score_adj",
    );
    assert!(told.contains("stdout F 777"), "{told}");
}

#[test]
fn limits_are_read_in_the_containers_own_cgroup() {
    let told = told_by_both(
        |config| {
            let limits = resources(config);
            limits.memory_limit_in_bytes = 96 << 20;
            limits.cpu_quota = 50_000;
            limits.cpu_period = 100_000;
            limits.cpu_shares = 512;
        },
        "cd /sys/fs/cgroup; cat memory.max cpu.max; cat /proc/self/cgroup",
    );
    assert!(
        told.contains("F 100663296\nstdout F 50000 100000\nstdout F 0::/"),
        "{told}"
    );
}

#[test]
fn a_program_that_is_killed_has_the_signals_exit_code() {
    // Not process 1: the kernel spares it.
    let told = told_by_both(AS_IT_IS, "sh -c 'kill -SEGV $$; echo after'; exit $?");
    assert!(told.ends_with("exit 139"), "{told}");
}

#[test]
fn long_lines_and_lines_without_an_end_are_logged_whole() {
    let told = told_by_both(
        AS_IT_IS,
        "head -c 40000 /dev/zero | tr '\\0' x; echo; printf end",
    );
    assert!(told.contains("stdout P end"), "{told}");
    assert_eq!(told.matches('x').count(), 40_001);
}

#[test]
fn a_container_on_a_terminal_logs_what_it_shows() {
    let told = told_by_both(
        |config| config.tty = true,
        "tty; echo a; echo b >&2; exit 3",
    );
    assert!(
        told.contains("/dev/pts/0") && told.ends_with("exit 3"),
        "{told}"
    );
}

#[test]
fn the_usual_devices_are_there_and_no_other() {
    let told = told_by_both(
        AS_IT_IS,
        "cd /dev; ls -A | grep -v core; stat -c '%n %F %t %T %a' null tty",
    );
    assert!(
        told.contains("null character special file 1 3 666"),
        "{told}"
    );
}

#[test]
fn a_program_that_is_not_there_is_told_by_start() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let pod = Pod::run(runtime);
        let container = pod
            .try_create(pod.plan(&["/no/such"]))
            .expect("a container");
        let error = container.start().expect_err("a program that is not there");
        assert!(
            error.message().contains("no such file"),
            "{runtime:?}: {error}"
        );
        let status = container.status();
        let told = (status.exit_code, &status.reason[..]);
        assert_eq!(told, (128, "StartError"), "{runtime:?}");
        pod.remove();
    });
}

#[test]
fn shared_memory_is_the_pods() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let pod = Pod::run(runtime);
        let writer = pod.script("echo shared >/dev/shm/file; exec sleep infinity");
        let reader = pod.script("until cat /dev/shm/file; do sleep 1; done; exec sleep infinity");
        reader.logs("stdout F shared");
        writer.stop(0);
        assert_eq!(reader.told("cat /dev/shm/file"), "shared\n", "{runtime:?}");
        pod.remove();
    });
}

#[test]
fn a_mount_of_the_host_made_later_reaches_the_containers_that_follow_it() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let volume = tempfile::tempdir().expect("a volume");
        let later = volume.path().join("later");
        fs::create_dir(&later).expect("a mount point");
        let pod = Pod::run(runtime);
        let mut plan = pod.plan(&["sh", "-c", "exec sleep infinity"]);
        plan.mounts.push(api::Mount {
            container_path: "/data".into(),
            host_path: volume.path().to_string_lossy().into_owned(),
            propagation: api::MountPropagation::PropagationHostToContainer.into(),
            ..Default::default()
        });
        let container = pod.start(plan);
        host("mount", &["-t", "tmpfs", "late"], &later);
        fs::write(later.join("file"), "late\n").expect("a file");
        assert_eq!(
            container.told("cat /data/later/file"),
            "late\n",
            "{runtime:?}"
        );
        pod.remove();
        host("umount", &[], &later);
    });
}
