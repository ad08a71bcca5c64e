//! Bind mounts, tmpfs, and what the host mounts later.

use std::fs;
use std::process::Command;

use husk_tests::{Container, Node, Runtime, process};
use tempfile::TempDir;

fn folder() -> (TempDir, String) {
    let directory = tempfile::tempdir().expect("a temporary directory");
    let path = directory.path().to_str().expect("a UTF-8 path").to_owned();
    (directory, path)
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
    let (directory, path) = folder();
    let inner = directory.path().join("inner");
    fs::create_dir(&inner).expect("a folder");
    let mount = format!("type=bind,src={path},dst=/data,options=rbind:rslave");
    let script = "echo ready; read go; cat /data/inner/late";
    let mut container = Container::script(script).with(&["--mount", &mount]).start();
    container.wait_for("ready");
    let host = |program: &str, args: &[&str]| {
        let mut command = Command::new(program);
        command.args(args).arg(&inner);
        process::run(command).succeeded();
    };
    host("mount", &["-t", "tmpfs", "late"]);
    fs::write(inner.join("late"), "mounted late\n").expect("a file");
    container.write(b"go\n");
    container.close_stdin();
    let output = container.finish();
    host("umount", &[]);
    assert_eq!(output.succeeded().text(), "ready\nmounted late\n");
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
