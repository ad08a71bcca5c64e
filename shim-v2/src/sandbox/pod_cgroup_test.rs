//! Fixtures of both versions and both ways of naming.

use super::*;
use tempfile::TempDir;

const MIB: u64 = 1 << 20;

/// A host with these files below its cgroup root.
fn host(files: &[(&str, &str)]) -> TempDir {
    let root = tempfile::tempdir().unwrap();
    for (path, text) in files {
        let path = root.path().join(path);
        fs::create_dir_all(path.parent().unwrap()).unwrap();
        fs::write(path, text).unwrap();
    }
    root
}

fn limits(memory: Option<u64>, cpu: Option<(u64, u64)>) -> Limits {
    Limits { memory, cpu }
}

#[test]
fn the_pods_cgroup_is_above_the_sandboxs() {
    let cases = [
        (
            "/kubepods/burstable/pod1/abc",
            Some(("kubepods/burstable/pod1", "abc")),
        ),
        ("/kubepods/pod1/abc", Some(("kubepods/pod1", "abc"))),
        ("kubepods/pod1/abc/", Some(("kubepods/pod1", "abc"))),
        ("/kubepods/../pod1/abc", Some(("kubepods/pod1", "abc"))),
        (
            "kubepods-burstable-pod1_2.slice:cri-containerd:abc",
            Some((
                "kubepods.slice/kubepods-burstable.slice/kubepods-burstable-pod1_2.slice",
                "cri-containerd-abc.scope",
            )),
        ),
        (
            "system.slice:crio:abc",
            Some(("system.slice", "crio-abc.scope")),
        ),
        ("/abc", None),
        ("", None),
        ("-.slice:a:b", None),
        ("no-slice:a:b", None),
        ("a.slice:../../etc/x:y", None),
    ];
    for (path, expected) in cases {
        let expected = expected.map(|(pod, leaf)| Place {
            pod: pod.into(),
            leaf: leaf.into(),
        });
        assert_eq!(Place::parse(path), expected, "{path}");
    }
}

#[test]
fn limits_of_version_2() {
    let cases = [
        ("max", "max 100000", limits(None, None)),
        (
            "104857600\n",
            "150000 100000\n",
            limits(Some(100 * MIB), Some((150_000, 100_000))),
        ),
        (
            "4194304",
            "10000 100000",
            limits(Some(4 * MIB), Some((10_000, 100_000))),
        ),
        ("7696581394432", "max 50000", limits(Some(7 << 40), None)),
        ("0", "0 100000", limits(None, None)),
        ("nonsense", "100000", limits(None, None)),
    ];
    let place = Place::parse("/kubepods/pod1/abc").unwrap();
    for (memory, cpu, expected) in cases {
        let host = host(&[
            ("cgroup.controllers", ""),
            ("kubepods/pod1/memory.max", memory),
            ("kubepods/pod1/cpu.max", cpu),
        ]);
        assert_eq!(place.limits(host.path()), expected, "{memory} {cpu}");
    }
    let empty = host(&[("cgroup.controllers", "")]);
    assert_eq!(place.limits(empty.path()), Limits::default());
}

#[test]
fn limits_of_version_1() {
    let cases = [
        ("9223372036854771712", "-1", limits(None, None)),
        ("9223372036854710272", "0", limits(None, None)),
        ("-1", "50000", limits(None, Some((50_000, 50_000)))),
        (
            "104857600",
            "25000",
            limits(Some(100 * MIB), Some((25_000, 50_000))),
        ),
    ];
    let slice = "kubepods.slice/kubepods-pod1.slice";
    let place = Place::parse("kubepods-pod1.slice:cri-containerd:abc").unwrap();
    for (memory, quota, expected) in cases {
        let host = host(&[
            (&format!("memory/{slice}/memory.limit_in_bytes"), memory),
            (&format!("cpu/{slice}/cpu.cfs_quota_us"), quota),
            (&format!("cpu/{slice}/cpu.cfs_period_us"), "50000"),
        ]);
        assert_eq!(place.limits(host.path()), expected, "{memory} {quota}");
    }
}

#[test]
fn a_leaf_in_each_hierarchy() {
    let place = Place::parse("/kubepods/pod1/abc").unwrap();
    let v2 = host(&[("cgroup.controllers", "")]);
    let at = |root: &TempDir, path: &str| root.path().join(path);
    assert_eq!(
        place.leaves(v2.path(), "0::/system.slice/containerd.service\n"),
        [Leaf {
            path: at(&v2, "kubepods/pod1/abc"),
            home: at(&v2, "system.slice/containerd.service"),
            root: v2.path().to_owned(),
        }]
    );
    let v1 = host(&[
        ("memory/tasks", ""),
        ("cpu,cpuacct/tasks", ""),
        ("systemd/tasks", ""),
    ]);
    let own = "3:cpu,cpuacct:/\n2:memory:/a\n1:name=systemd:/b\n4:freezer:/\n0::/\n";
    let leaves = place.leaves(v1.path(), own);
    let expected = [
        ("cpu,cpuacct", "cpu,cpuacct/"),
        ("memory", "memory/a"),
        ("systemd", "systemd/b"),
    ]
    .map(|(root, home)| Leaf {
        path: at(&v1, root).join("kubepods/pod1/abc"),
        home: at(&v1, home),
        root: at(&v1, root),
    });
    assert_eq!(leaves, expected);
}

#[test]
fn kills_of_the_hosts_oom_killer_are_counted() {
    let root = host(&[(
        "memory.events",
        "low 0\noom 2\noom_kill 1\noom_group_kill 0\n",
    )]);
    let leaf = Leaf {
        path: root.path().to_owned(),
        home: PathBuf::new(),
        root: PathBuf::new(),
    };
    assert_eq!(leaf.oom_kills(), 1);
    fs::remove_file(root.path().join("memory.events")).unwrap();
    assert_eq!(leaf.oom_kills(), 0);
}

#[test]
fn a_new_cpuset_of_version_1_has_its_parents_processors_on_every_level() {
    let root = host(&[
        ("cpuset/cpuset.cpus", "0-3\n"),
        ("cpuset/cpuset.mems", "0\n"),
        ("cpuset/a/tasks", ""),
        ("cpuset/a/cpuset.cpus", "\n"),
        ("cpuset/a/cpuset.mems", "\n"),
        ("cpuset/a/b/tasks", ""),
        ("cpuset/a/b/cpuset.cpus", ""),
        ("cpuset/a/b/cpuset.mems", "1\n"),
    ]);
    let leaf = Leaf {
        path: root.path().join("cpuset/a/b"),
        home: root.path().join("cpuset"),
        root: root.path().join("cpuset"),
    };
    leaf.enter().unwrap();
    let read = |file: &str| fs::read_to_string(root.path().join("cpuset").join(file)).unwrap();
    assert_eq!(read("a/cpuset.cpus"), "0-3\n");
    assert_eq!(read("a/b/cpuset.cpus"), "0-3\n");
    assert_eq!(read("a/b/cpuset.mems"), "1\n", "what is set stays");
}
