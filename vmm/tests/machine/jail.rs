//! What a jailed VMM has left, read back from `/proc`.

use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{BufRead, BufReader, Write};
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus};
use std::thread;
use std::time::{Duration, Instant};

use husk_vmm::devices::virtio::net::tap;
use nix::fcntl::{FcntlArg, FdFlag, fcntl};
use nix::mount::{MsFlags, mount};
use nix::sched::{CloneFlags, unshare};
use nix::sys::socket::{AddressFamily, MsgFlags, SockFlag, SockType, recv, send, socketpair};
use nix::unistd::pipe;
use serde_json::{Value, json};

use crate::support::*;

/// CHOWN, DAC_OVERRIDE, DAC_READ_SEARCH, FOWNER, FSETID, SETGID, SETUID and SETFCAP as
/// bits (linux/capability.h).
const KEPT: u64 = 1 | 1 << 1 | 1 << 2 | 1 << 3 | 1 << 4 | 1 << 6 | 1 << 7 | 1 << 31;

/// A VMM started as the shim starts it, in a mount namespace of the test's own.
struct Jailed {
    scratch: Scratch,
    unshare: Child,
    control: Option<OwnedFd>,
    log: BufReader<File>,
}

impl Jailed {
    /// `propagation` is that of the host's mounts.
    fn start(name: &str, propagation: MsFlags, config: impl FnOnce(RawFd, RawFd) -> Value) -> Self {
        let scratch = Scratch::new(name);
        // Of this thread only, and of the children it starts.
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        change(Path::new("/"), MsFlags::MS_REC | MsFlags::MS_PRIVATE);
        change(Path::new("/"), MsFlags::MS_REC | propagation);
        let share = scratch.path().join("share");
        for dir in [&share.join("c1"), &scratch.path().join("proc")] {
            fs::create_dir_all(dir).unwrap();
        }
        fs::write(share.join("c1/file"), "x").unwrap();
        let none: Option<&str> = None;
        mount(Some(&share), &share, none, MsFlags::MS_BIND, none).unwrap();
        change(&share, MsFlags::MS_SHARED);

        let kernel = File::open(scratch.kernel(&[WAIT])).unwrap();
        let kvm = File::options()
            .read(true)
            .write(true)
            .open("/dev/kvm")
            .unwrap();
        let (config_out, config_in) = pipe().unwrap();
        let (log_out, log_in) = pipe().unwrap();
        let (control, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        for ours in [&config_in, &log_out] {
            fcntl(ours, FcntlArg::F_SETFD(FdFlag::FD_CLOEXEC)).unwrap();
        }
        inherit(&theirs);
        inherit(&kernel);
        inherit(&kvm);
        let unshare = Command::new("unshare")
            .args(["--mount", "--pid", "--ipc", "--uts", "--fork"])
            .args(["--propagation", "unchanged"])
            .arg(env!("CARGO_BIN_EXE_husk-vmm"))
            .arg("--jail")
            .arg(scratch.path())
            .args(["--config-fd", &config_out.as_raw_fd().to_string()])
            .args(["--control-fd", &theirs.as_raw_fd().to_string()])
            .args(["--log-fd", &log_in.as_raw_fd().to_string()])
            .spawn()
            .unwrap();
        let config = config(kernel.as_raw_fd(), kvm.as_raw_fd());
        File::from(config_in)
            .write_all(config.to_string().as_bytes())
            .unwrap();
        Self {
            scratch,
            unshare,
            control: Some(control),
            log: BufReader::new(File::from(log_out)),
        }
    }

    /// Reads the log up to a line that contains `text`; panics with all of it at its end.
    fn wait_for(&mut self, text: &str) {
        let mut seen = String::new();
        while !seen.contains(text) {
            assert_ne!(self.log.read_line(&mut seen).unwrap(), 0, "{seen}");
        }
    }

    fn pid(&self) -> u32 {
        let id = self.unshare.id();
        let children = fs::read_to_string(format!("/proc/{id}/task/{id}/children")).unwrap();
        children.trim().parse().unwrap()
    }

    fn ask(&self, request: &Value) -> Value {
        let socket = self.control.as_ref().unwrap().as_raw_fd();
        let mut answer = [0; 8192];
        send(socket, request.to_string().as_bytes(), MsgFlags::empty()).unwrap();
        let len = recv(socket, &mut answer, MsgFlags::empty()).unwrap();
        serde_json::from_slice(&answer[..len]).unwrap()
    }

    fn end(&mut self) -> ExitStatus {
        self.unshare.wait().unwrap()
    }
}

impl Drop for Jailed {
    fn drop(&mut self) {
        // Its end of the socket closed, the VMM ends; `unshare` with it.
        self.control = None;
        self.unshare.wait().ok();
        nix::mount::umount2(
            &self.scratch.path().join("share"),
            nix::mount::MntFlags::MNT_DETACH,
        )
        .ok();
    }
}

fn change(path: &Path, propagation: MsFlags) {
    let none: Option<&str> = None;
    mount(none, path, none, propagation, none).unwrap();
}

fn inherit(fd: &impl std::os::fd::AsFd) {
    fcntl(fd, FcntlArg::F_SETFD(FdFlag::empty())).unwrap();
}

fn with_share(kernel: RawFd, kvm: RawFd) -> Value {
    json!({
        "vcpus": 2, "memory_mib": 64, "kvm": kvm,
        "kernel": { "image": kernel, "cmdline": "" },
        "share": { "tag": "share", "root": "/share",
                   "exports": [{ "path": "c1", "cache": "always" }] },
    })
}

/// `Name: value` lines of a status file.
fn status(path: &Path) -> HashMap<String, String> {
    let text = fs::read_to_string(path.join("status")).unwrap();
    let pairs = text.lines().filter_map(|line| line.split_once(':'));
    pairs
        .map(|(key, value)| (key.to_owned(), value.trim().to_owned()))
        .collect()
}

fn names(dir: &Path) -> Vec<String> {
    let entries = fs::read_dir(dir).unwrap();
    let mut names: Vec<_> = entries
        .map(|entry| entry.unwrap().file_name().into_string().unwrap())
        .collect();
    names.sort();
    names
}

fn cannot_run() -> bool {
    if !nix::unistd::geteuid().is_root() {
        println!("skipped: entering a jail needs root");
        return true;
    }
    kvm_is_missing()
}

#[test]
fn only_the_file_systems_thread_keeps_capabilities() {
    if cannot_run() {
        return;
    }
    let mut jailed = Jailed::start("caps", MsFlags::MS_PRIVATE, with_share);
    jailed.wait_for("kernel_entered");
    assert_eq!(
        jailed.ask(&json!({ "verb": "remove_share", "path": "c1" })),
        json!("ok")
    );
    let process = PathBuf::from(format!("/proc/{}", jailed.pid()));
    let mut holders = Vec::new();
    for task in names(&process.join("task")) {
        // A thread that has just begun still has its maker's name.
        let first = task == jailed.pid().to_string();
        let status = status(&process.join("task").join(task));
        let caps = |set: &str| u64::from_str_radix(&status[set], 16).unwrap();
        let name = &status["Name"];
        assert_eq!(status["NoNewPrivs"], "1", "{name}");
        // A filter, which forbids to open files by handle.
        assert_eq!(status["Seccomp"], "2", "{name}");
        assert_eq!(caps("CapBnd"), KEPT, "{name}");
        assert_eq!(caps("CapInh"), 0, "{name}");
        assert_eq!(caps("CapAmb"), 0, "{name}");
        assert_eq!(caps("CapPrm"), caps("CapEff"), "{name}");
        assert!([0, KEPT].contains(&caps("CapEff")), "{name}");
        if caps("CapEff") != 0 {
            holders.push(name.clone());
        }
        assert!(
            !first || status["NSpid"].ends_with("\t1"),
            "pid 1 of its namespace"
        );
        assert_eq!(status["Umask"], "0000");
    }
    assert_eq!(holders, ["fs"]);
    // 1024 for each of the guest's 64 MiB, or what whoever started it may have.
    let limits = fs::read_to_string(process.join("limits")).unwrap();
    let files = limits.lines().find(|l| l.starts_with("Max open files"));
    let numbers: Vec<_> = files.unwrap().split_whitespace().skip(3).take(2).collect();
    let (_, hard) = nix::sys::resource::getrlimit(nix::sys::resource::Resource::RLIMIT_NOFILE)
        .expect("a limit of our own");
    let given = ["65536".to_owned(), hard.min(65536).to_string()];
    assert_eq!(numbers[0], numbers[1], "{limits}");
    assert!(given.iter().any(|number| number == numbers[0]), "{limits}");
}

#[test]
fn the_root_is_the_jail_and_later_mounts_arrive_in_it() {
    if cannot_run() {
        return;
    }
    for (name, propagation) in [
        ("shared", MsFlags::MS_SHARED),
        ("private", MsFlags::MS_PRIVATE),
    ] {
        let mut jailed = Jailed::start(name, propagation, with_share);
        jailed.wait_for("kernel_entered");
        let process = PathBuf::from(format!("/proc/{}", jailed.pid()));
        let root = process.join("root");
        assert_eq!(names(&root), ["kernel.elf", "proc", "share"]);
        assert_eq!(fs::read_to_string(root.join("share/c1/file")).unwrap(), "x");
        let mounts = fs::read_to_string(process.join("mountinfo")).unwrap();
        let points: Vec<_> = mounts
            .lines()
            .map(|line| line.split(' ').nth(4).unwrap())
            .collect();
        assert_eq!(points, ["/", "/share", "/proc"], "{mounts}");
        for line in mounts.lines() {
            let options = line.split(' ').nth(5).unwrap();
            assert!(options.starts_with("ro,"), "{line}");
        }
        // uid 0 could write these whatever its capabilities.
        for name in ["sys", "sysrq-trigger"] {
            assert!(!root.join("proc").join(name).exists(), "{name}");
        }

        let late = jailed.scratch.path().join("share/late");
        fs::create_dir(&late).unwrap();
        mount(
            Some("late"),
            &late,
            Some("tmpfs"),
            MsFlags::empty(),
            None::<&str>,
        )
        .unwrap();
        fs::write(late.join("file"), "late").unwrap();
        assert_eq!(
            fs::read_to_string(root.join("share/late/file")).unwrap(),
            "late"
        );
        let export = json!({ "path": "late", "cache": "revalidate" });
        assert_eq!(
            jailed.ask(&json!({ "verb": "add_share", "export": export })),
            json!("ok")
        );
        assert_eq!(
            jailed.ask(&json!({ "verb": "remove_share", "path": "late" })),
            json!("ok")
        );
        nix::mount::umount(&late).unwrap();
        assert_eq!(jailed.ask(&json!({ "verb": "stop" })), json!("ok"));
        assert_eq!(jailed.end().code(), Some(10));
    }
}

#[test]
fn hanging_up_ends_the_vmm() {
    if cannot_run() {
        return;
    }
    let mut jailed = Jailed::start("hangup", MsFlags::MS_PRIVATE, with_share);
    jailed.wait_for("kernel_entered");
    jailed.control = None;
    assert_eq!(jailed.end().code(), Some(10));
    jailed.wait_for("the VM was stopped");
}

#[test]
fn vcpus_and_room_for_memory_are_added_while_the_guest_runs() {
    if cannot_run() {
        return;
    }
    let mut jailed = Jailed::start("growth", MsFlags::MS_PRIVATE, |kernel, kvm| {
        json!({
            "vcpus": 1, "max_vcpus": 3, "memory_mib": 64, "max_memory_mib": 4096, "kvm": kvm,
            "kernel": { "image": kernel, "cmdline": "" },
        })
    });
    jailed.wait_for("kernel_entered");
    let vcpus = |count: u32| jailed.ask(&json!({ "verb": "grow_vcpus", "count": count }));
    let memory = |mib: u32| jailed.ask(&json!({ "verb": "resize_memory", "mib": mib }));
    for (count, there) in [(1, 1), (2, 2), (3, 3), (0, 3)] {
        assert_eq!(vcpus(count), json!({ "vcpus": there }));
    }
    let refusal = vcpus(4)["error"].to_string();
    assert!(refusal.contains("was built for 3"), "{refusal}");
    let process = PathBuf::from(format!("/proc/{}", jailed.pid()));
    let comm = |task: &String| fs::read_to_string(process.join("task").join(task).join("comm"));
    let named = || {
        let threads = names(&process.join("task"));
        let vcpus = threads.iter().map(comm).filter_map(Result::ok);
        vcpus.filter(|name| name.starts_with("vcpu")).count()
    };
    // A thread names itself, and has not always done so when the answer is here.
    let deadline = Instant::now() + Duration::from_secs(60);
    while named() < 3 && Instant::now() < deadline {
        thread::sleep(Duration::from_millis(1));
    }
    assert_eq!(named(), 3);
    // There is no driver to plug it, but KVM takes what is opened for it.
    for mib in [64, 66, 1024, 4096, 0] {
        assert_eq!(memory(mib), json!({ "memory_mib": 64 }));
    }
    let refusal = memory(5000)["error"].to_string();
    assert!(refusal.contains("cannot be plugged"), "{refusal}");
    assert_eq!(jailed.ask(&json!({ "verb": "stop" })), json!("ok"));
    assert_eq!(jailed.end().code(), Some(10));
}

#[test]
fn a_path_is_refused_in_the_jail() {
    if cannot_run() {
        return;
    }
    let mut jailed = Jailed::start("path", MsFlags::MS_PRIVATE, |_, kvm| {
        json!({ "vcpus": 1, "memory_mib": 64, "kvm": kvm,
                "kernel": { "image": "/boot/vmlinux", "cmdline": "" } })
    });
    assert_eq!(jailed.end().code(), Some(2));
    jailed.wait_for("error the kernel is the path /boot/vmlinux, but a jailed VMM takes");
}

#[test]
fn a_tap_is_a_descriptor_and_no_capability() {
    if cannot_run() {
        return;
    }
    // This thread's own, so that nobody else sees the link.
    unshare(CloneFlags::CLONE_NEWNET).unwrap();
    let tap = match tap::open("husk0".as_ref()) {
        Ok(tap) => tap,
        Err(error) => {
            println!("skipped: no tap to be had: {error}");
            return;
        }
    };
    inherit(&tap);
    let with_tap = |tap: RawFd| {
        move |kernel, kvm| {
            let mut config = with_share(kernel, kvm);
            config["net"] = json!([{ "tap": tap, "mac": "02:00:00:00:00:01", "mtu": 1500 }]);
            config
        }
    };
    let mut jailed = Jailed::start("tap", MsFlags::MS_PRIVATE, with_tap(tap.as_raw_fd()));
    jailed.wait_for("kernel_entered");
    drop(jailed);

    let null = File::open("/dev/null").unwrap();
    inherit(&null);
    let mut jailed = Jailed::start("null", MsFlags::MS_PRIVATE, with_tap(null.as_raw_fd()));
    assert_eq!(jailed.end().code(), Some(2));
    jailed.wait_for("error cannot build network device 0: the descriptor is not a tap's");
}
