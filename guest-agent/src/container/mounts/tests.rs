use std::os::unix::fs::symlink;

use super::target::{check_proc, resolve};
use super::*;

fn planned(destination: &str, kind: &str, options: &[&str]) -> Result<PlannedMount, SpecError> {
    let mount = serde_json::json!({ "destination": destination, "type": kind, "options": options });
    PlannedMount::new(&serde_json::from_value(mount).unwrap(), 0)
}

/// A directory of its own for one test, removed at the end.
struct Scratch(PathBuf);

impl Scratch {
    fn new(name: &str) -> Self {
        let path = std::env::temp_dir().join(format!("husk-agent-{name}-{}", std::process::id()));
        fs::create_dir_all(&path).unwrap();
        Self(path)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        fs::remove_dir_all(&self.0).unwrap();
    }
}

#[test]
fn symlinks_of_an_image_stay_inside_its_root() {
    let root = Scratch::new("inside");
    symlink("/../../etc", root.0.join("absolute")).unwrap();
    symlink("../../../..", root.0.join("up")).unwrap();
    for (path, inside) in [
        ("/absolute/passwd", "etc/passwd"),
        ("/up/etc", "etc"),
        ("/../../etc", "etc"),
        ("/up/up/up", ""),
    ] {
        assert_eq!(
            resolve(&root.0, Path::new(path)).unwrap(),
            root.0.join(inside),
            "{path}"
        );
    }
}

#[test]
fn a_dangling_symlink_leads_to_the_place_it_names() {
    let root = Scratch::new("dangling");
    fs::create_dir(root.0.join("etc")).unwrap();
    symlink(
        "../run/systemd/resolve/stub.conf",
        root.0.join("etc/resolv.conf"),
    )
    .unwrap();
    let resolved = resolve(&root.0, Path::new("/etc/resolv.conf")).unwrap();
    assert_eq!(resolved, root.0.join("run/systemd/resolve/stub.conf"));
}

#[test]
fn a_loop_of_symlinks_ends() {
    let root = Scratch::new("loop");
    symlink("b", root.0.join("a")).unwrap();
    symlink("a", root.0.join("b")).unwrap();
    let error = resolve(&root.0, Path::new("/a")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ELOOP));
}

#[test]
fn targets_are_made_as_what_they_have_to_be() {
    let root = Scratch::new("targets");
    let file = root.0.join("a/b/file");
    assert_eq!(make_target(&file, false).unwrap(), file);
    assert!(file.is_file());
    let error = make_target(&file, true).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::ENOTDIR));
    let dir = root.0.join("a/c/d");
    assert!(make_target(&dir, true).unwrap().is_dir());
    assert_eq!(
        make_target(&dir, false).unwrap_err().raw_os_error(),
        Some(libc::ENOTDIR)
    );
}

#[test]
fn nothing_covers_proc_but_the_known_files() {
    let check =
        |path: &str, is_proc| check_proc(Path::new(path), is_proc).map_err(|error| error.text);
    assert_eq!(
        check("/proc/sys", true),
        Err("\"/proc/sys\" cannot be mounted because it is inside /proc".to_owned())
    );
    assert!(check("/proc/self/exe", false).is_err());
    assert_eq!(
        check("/proc", false),
        Err("\"/proc\" cannot be mounted because it is not of type proc".to_owned())
    );
    assert!(check("/proc", true).is_ok());
    assert!(check("/proc/cpuinfo", false).is_ok());
    assert!(check("/process", false).is_ok());
}

#[test]
fn a_symlink_into_proc_is_seen_through() {
    let root = Scratch::new("proc");
    symlink("/proc/1", root.0.join("data")).unwrap();
    let target = resolve(&root.0, Path::new("/data/attr")).unwrap();
    let inside = Path::new("/").join(target.strip_prefix(&root.0).unwrap());
    assert!(check_proc(&inside, false).is_err(), "{inside:?}");
}

#[test]
fn kinds_are_understood_as_runc_does() {
    assert_eq!(
        planned("/sys/fs/cgroup", "cgroup", &["ro"]).unwrap().kind,
        "cgroup2"
    );
    assert!(planned("/data", "bind", &[]).unwrap().is_bind());
    assert!(planned("/data", "none", &["rbind"]).unwrap().is_bind());
    assert!(planned("/data", "", &[]).is_err());
    assert_eq!(
        planned("data", "tmpfs", &[]).unwrap().destination(),
        Path::new("/data")
    );
}

#[test]
fn a_read_only_tmpfs_is_sealed_last() {
    assert!(
        planned("/dev", "tmpfs", &["ro"])
            .unwrap()
            .read_only_at_last()
    );
    assert!(planned("/x", "tmpfs", &["ro"]).unwrap().read_only_at_last());
    assert!(!planned("/x", "tmpfs", &["rw"]).unwrap().read_only_at_last());
    assert!(
        !planned("/sys", "sysfs", &["ro"])
            .unwrap()
            .read_only_at_last()
    );
    assert!(
        !planned("/dev", "bind", &["ro"])
            .unwrap()
            .read_only_at_last()
    );
}
