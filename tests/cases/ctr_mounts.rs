//! Bind mounts, tmpfs, and what the host mounts later.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use husk_tests::{Container, Node, Runtime, process};
use tempfile::TempDir;

fn folder() -> (TempDir, String) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().to_str().expect("a UTF-8 path").to_owned();
    (directory, path)
}

/// A mount of the host's on a directory that it makes, for as long as it lives.
struct HostMount(PathBuf);

impl HostMount {
    fn new(args: &[&str], target: &Path) -> Self {
        fs::create_dir_all(target).expect("a mount point");
        let mut mount = Command::new("mount");
        mount.args(args).arg(target);
        process::run(mount).succeeded();
        Self(target.to_owned())
    }

    fn tmpfs(target: &Path) -> Self {
        Self::new(&["-t", "tmpfs", "tmpfs"], target)
    }
}

impl Drop for HostMount {
    fn drop(&mut self) {
        let mut umount = Command::new("umount");
        umount.arg(&self.0);
        // What stays mounted is in the ledger.
        process::run(umount);
    }
}

#[test]
fn a_directory_of_the_host_is_read_and_written() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let (directory, path) = folder();
        fs::write(directory.path().join("in"), "from the host\n").expect("a file");
        let mount = format!("type=bind,src={path},dst=/data,options=rbind:rw");
        let output = Container::new(runtime, &["sh", "-c", "cat /data/in; echo back >/data/out"])
            .with(&["--mount", &mount])
            .run()
            .succeeded();
        assert_eq!(output.text(), "from the host\n", "{runtime:?}");
        assert_eq!(
            fs::read_to_string(directory.path().join("out")).expect("a file"),
            "back\n"
        );
    });
}

#[test]
fn a_read_only_bind_mount_refuses_writes() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let (directory, path) = folder();
        fs::write(directory.path().join("in"), "read me\n").expect("a file");
        let mount = format!("type=bind,src={path},dst=/data,options=rbind:ro");
        let output = Container::new(runtime, &["sh", "-c", "cat /data/in; echo no >/data/in"])
            .with(&["--mount", &mount])
            .run()
            .ended_with(1);
        assert_eq!(output.text(), "read me\n", "{runtime:?}");
        assert!(
            output.stderr.contains("Read-only file system"),
            "{runtime:?}: {output}"
        );
    });
}

/// Every way to write that a mount can refuse, in a volume with the file `in`.
const WRITES: [&str; 11] = [
    "echo no >in",
    "echo no >new",
    "mkdir new",
    "mkfifo new",
    "ln in new",
    "ln -s in new",
    "mv in new",
    "rm in",
    "chmod 600 in",
    "chown 1 in",
    "touch in",
];

#[test]
fn a_read_only_bind_mount_leaves_what_is_mounted_below_it_as_it_is() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let (directory, path) = folder();
        let volume = directory.path();
        fs::write(volume.join("in"), "as it was\n").expect("a file");
        let _writable = HostMount::tmpfs(&volume.join("writable"));
        // The volume's own file system once more: its files have the same numbers there.
        fs::create_dir(volume.join("own")).expect("a folder");
        fs::write(volume.join("own/in"), "old\n").expect("a file");
        let _again = HostMount::new(&["--bind", &format!("{path}/own")], &volume.join("again"));
        let sealed = ["-t", "tmpfs", "-o", "ro", "tmpfs"];
        let _sealed = HostMount::new(&sealed, &volume.join("sealed"));
        let refused = WRITES.map(|write| format!("({write}) 2>&1")).join("; ");
        let script = format!(
            "cd /data; {refused}; (echo no >sealed/new) 2>&1; \
             echo yes >writable/new && cat own/in && echo yes >again/in && cat again/in; \
             (echo no >own/in) 2>&1; cat in"
        );
        let mount = format!("type=bind,src={path},dst=/data,options=rbind:ro");
        let output = Container::new(runtime, &["sh", "-c", &script])
            .with(&["--mount", &mount])
            .run()
            .succeeded();
        let text = output.text();
        assert_eq!(
            text.matches("Read-only file system").count(),
            WRITES.len() + 2,
            "{runtime:?}: {text}"
        );
        assert!(text.ends_with("as it was\n"), "{runtime:?}: {text}");
        let on_host = |name: &str| fs::read_to_string(volume.join(name)).expect("a file");
        assert_eq!(on_host("writable/new"), "yes\n", "{runtime:?}");
        assert_eq!(on_host("own/in"), "yes\n", "{runtime:?}");
    });
}

#[test]
fn a_recursively_read_only_bind_mount_seals_what_is_mounted_below_it() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let (directory, path) = folder();
        let _inner = HostMount::tmpfs(&directory.path().join("inner"));
        let mount = format!("type=bind,src={path},dst=/data,options=rbind:ro:rro");
        let script = "echo no 2>&1 >/data/new; echo no 2>&1 >/data/inner/new";
        let output = Container::new(runtime, &["sh", "-c", script])
            .with(&["--mount", &mount])
            .run();
        let refused = format!("{output}").matches("Read-only file system").count();
        assert_eq!(refused, 2, "{runtime:?}: {output}");
    });
}

#[test]
fn a_single_file_of_the_host_is_mounted() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let (directory, path) = folder();
        fs::write(directory.path().join("conf"), "one file\n").expect("a file");
        fs::write(directory.path().join("secret"), "not this one\n").expect("a file");
        let mount = format!("type=bind,src={path}/conf,dst=/etc/app/conf,options=bind:ro");
        let output = Container::new(runtime, &["sh", "-c", "cat /etc/app/conf; ls /etc/app"])
            .with(&["--mount", &mount])
            .run()
            .succeeded();
        assert_eq!(output.text(), "one file\nconf\n", "{runtime:?}");
    });
}

#[test]
fn a_tmpfs_has_the_size_and_mode_asked_for() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let output = Container::new(
            runtime,
            &["sh", "-c", "df -k /scratch | tail -1; ls -ld /scratch"],
        )
        .with(&[
            "--mount",
            "type=tmpfs,src=tmpfs,dst=/scratch,options=size=1m:mode=700",
        ])
        .run()
        .succeeded();
        let text = output.text();
        assert!(text.contains("1024"), "{runtime:?}: {text}");
        assert!(text.contains("drwx------"), "{runtime:?}: {text}");
    });
}

#[test]
fn owner_and_mode_of_new_files_reach_the_host() {
    use std::os::unix::fs::MetadataExt;
    let _node = Node::enter();
    let (directory, path) = folder();
    let mount = format!("type=bind,src={path},dst=/data,options=rbind:rw");
    Container::script(
        "umask 0; mkdir -m 750 /data/d; touch /data/f; chown 1000:29 /data/f; ln -s f /data/l",
    )
    .with(&["--mount", &mount])
    .run()
    .succeeded();
    let file = fs::metadata(directory.path().join("f")).expect("the file");
    assert_eq!(
        (file.uid(), file.gid(), file.mode() & 0o777),
        (1000, 29, 0o666)
    );
    let made = fs::metadata(directory.path().join("d")).expect("the folder");
    assert_eq!(made.mode() & 0o777, 0o750);
    assert_eq!(
        fs::read_link(directory.path().join("l"))
            .expect("the link")
            .to_str(),
        Some("f")
    );
}

#[test]
fn a_change_on_the_host_is_seen_by_a_running_container() {
    let _node = Node::enter();
    let (directory, path) = folder();
    fs::write(directory.path().join("conf"), "old\n").expect("a file");
    let mount = format!("type=bind,src={path},dst=/data,options=rbind:ro");
    let script = "cat /data/conf; echo ready; read go; cat /data/conf";
    let mut container = Container::script(script).with(&["--mount", &mount]).start();
    container.wait_for("ready");
    // As a ConfigMap is changed: a new file takes the old one's name.
    fs::write(directory.path().join("next"), "new\n").expect("a file");
    fs::rename(directory.path().join("next"), directory.path().join("conf")).expect("a rename");
    container.write(b"go\n");
    container.close_stdin();
    assert_eq!(container.finish().succeeded().text(), "old\nready\nnew\n");
}

#[test]
fn a_mount_made_on_the_host_after_the_boot_is_seen() {
    let _node = Node::enter();
    Runtime::both(|runtime| {
        let (directory, path) = folder();
        let inner = directory.path().join("inner");
        // Read-only is the mount at the top, whatever comes below it.
        let mount = format!("type=bind,src={path},dst=/data,options=rbind:ro:rslave");
        let script = "echo ready; read go; cat /data/inner/late; \
                      echo yes >/data/inner/new; echo no >/data/new";
        let mut container = Container::new(runtime, &["sh", "-c", script])
            .with(&["--mount", &mount])
            .start();
        container.wait_for("ready");
        let late = HostMount::tmpfs(&inner);
        fs::write(inner.join("late"), "mounted late\n").expect("a file");
        container.write(b"go\n");
        container.close_stdin();
        let output = container.finish().ended_with(1);
        let written = fs::read_to_string(inner.join("new"));
        drop(late);
        assert_eq!(output.text(), "ready\nmounted late\n", "{runtime:?}");
        assert_eq!(written.expect("a file"), "yes\n", "{runtime:?}");
        assert!(
            output.stderr.contains("Read-only file system"),
            "{runtime:?}: {output}"
        );
    });
}

/// Makes the host's root a private mount, as on hosts without systemd, for as long as it lives.
struct PrivateRoot;

impl PrivateRoot {
    fn set(propagation: &str) {
        let mut mount = Command::new("mount");
        mount.args([propagation, "/"]);
        process::run(mount).succeeded();
    }

    fn new() -> Self {
        Self::set("--make-rprivate");
        Self
    }
}

impl Drop for PrivateRoot {
    fn drop(&mut self) {
        Self::set("--make-rshared");
    }
}

#[test]
fn a_host_whose_root_is_a_private_mount_will_do() {
    let _node = Node::enter();
    let _private = PrivateRoot::new();
    let (directory, path) = folder();
    fs::write(directory.path().join("in"), "seen\n").expect("a file");
    let mount = format!("type=bind,src={path},dst=/data,options=rbind:ro");
    let output = Container::script("cat /data/in")
        .with(&["--mount", &mount])
        .run();
    assert_eq!(output.succeeded().text(), "seen\n");
}
