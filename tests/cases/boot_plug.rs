//! `husk-vmm` in its jail, given network devices while it runs, as the shim does.

use std::io::IoSlice;
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::UnixListener;
use std::path::Path;
use std::process::Command;

use husk_tests::process::{Running, run};
use husk_tests::vm::{KERNEL, VMM};
use husk_tests::{Node, Vm};
use husk_vmm::devices::virtio::net::tap;
use rustix::fs::{Mode, OFlags, open};
use rustix::io::{FdFlags, fcntl_setfd};
use rustix::net::{
    AddressFamily, RecvFlags, SendAncillaryBuffer, SendAncillaryMessage, SendFlags, SocketFlags,
    SocketType, recv, sendmsg, socketpair,
};
use serde_json::{Value, json};

/// As many as the VMM reserves at most.
const SLOTS: usize = 16;
/// A guest that does what it is told, in the directory of its slots' driver.
const OBEY: &str = "cd /sys/bus/platform/drivers/virtio-mmio\n\
    echo ready; while read line; do eval \"$line\"; done";

struct Machine {
    vmm: Running,
    control: OwnedFd,
    told: usize,
    _files: (Vm, UnixListener),
}

impl Machine {
    /// With every kind of device, so that there are fewer lines than slots.
    #[track_caller]
    fn start() -> Self {
        let mut vm = Vm::running(OBEY);
        let jail = vm.path("jail");
        for dir in ["share", "proc"] {
            std::fs::create_dir_all(jail.join(dir)).expect("a directory of the jail");
        }
        let listener = UnixListener::bind(vm.path("vsock")).expect("a socket");
        inherit(&listener, true);
        let kernel = inherited(KERNEL.as_ref(), OFlags::RDONLY);
        let initramfs = inherited(&vm.initramfs(), OFlags::RDONLY);
        let kvm = inherited("/dev/kvm".as_ref(), OFlags::RDWR);
        vm.config["kvm"] = kvm.as_raw_fd().into();
        vm.config["kernel"]["image"] = kernel.as_raw_fd().into();
        vm.config["kernel"]["initramfs"] = initramfs.as_raw_fd().into();
        vm.config["max_memory_mib"] = 512.into();
        vm.config["share"] = json!({ "tag": "share", "root": "/share" });
        vm.config["vsock"] =
            json!({ "cid": 3, "listener": listener.as_raw_fd(), "guest_connect": "/vsock" });
        vm.config["nic_slots"] = SLOTS.into();
        std::fs::write(vm.path("vm.json"), vm.config.to_string()).expect("a file");
        let config = inherited(&vm.path("vm.json"), OFlags::RDONLY);
        let log = inherited(&vm.path("log"), OFlags::WRONLY | OFlags::CREATE);
        let (control, theirs) = socketpair(
            AddressFamily::UNIX,
            SocketType::SEQPACKET,
            SocketFlags::empty(),
            None,
        )
        .expect("a pair of sockets");
        inherit(&control, false);
        let mut command = Command::new("unshare");
        command
            .args("--mount --pid --ipc --uts --fork --propagation unchanged".split(' '))
            .arg(VMM)
            .arg("--jail")
            .arg(jail);
        for (option, fd) in [("config", &config), ("control", &theirs), ("log", &log)] {
            command.args([&format!("--{option}-fd"), &fd.as_raw_fd().to_string()]);
        }
        let mut vmm = Running::start(command);
        vmm.wait_for("ready");
        Self {
            vmm,
            control,
            told: 0,
            _files: (vm, listener),
        }
    }

    fn ask(&self, request: &Value, tap: Option<OwnedFd>) -> Value {
        let packet = request.to_string();
        let fds: Vec<_> = tap.iter().map(AsFd::as_fd).collect();
        let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(1))];
        let mut rights = SendAncillaryBuffer::new(&mut space);
        if !fds.is_empty() {
            assert!(rights.push(SendAncillaryMessage::ScmRights(&fds)));
        }
        let packet = [IoSlice::new(packet.as_bytes())];
        let flags = SendFlags::empty();
        sendmsg(&self.control, &packet, &mut rights, flags).expect("the VMM takes a request");
        let mut answer = [0; 8192];
        let (length, _) =
            recv(&self.control, &mut answer, RecvFlags::empty()).expect("the VMM answers");
        serde_json::from_slice(&answer[..length]).expect("JSON")
    }

    /// A tap of the node with an address, given to the VMM for good.
    fn plug(&self, slot: usize) -> Value {
        let name = format!("husk{slot}");
        let tap = tap::open(Path::new(&name)).expect("a tap");
        ip(&format!("address add 10.9.{slot}.1/24 dev {name}"));
        ip(&format!("link set {name} up"));
        let mac = format!("02:00:00:00:00:{slot:02x}");
        let request = json!({ "verb": "plug_nic", "slot": slot, "mac": mac, "mtu": 1500 });
        self.ask(&request, Some(tap))
    }

    fn unplug(&self, slot: usize) -> Value {
        self.ask(&json!({ "verb": "unplug_nic", "slot": slot }), None)
    }

    /// What the guest prints when it is told this.
    #[track_caller]
    fn tell(&mut self, line: &str) -> String {
        self.told += 1;
        let before = self.vmm.printed().len();
        // What is typed is printed too, and must not look like the end.
        let end = format!("told-{}-", self.told);
        let line = format!("{line}; echo told-$(({}))-\n", self.told);
        self.vmm.write(line.as_bytes());
        self.vmm.wait_for(&end);
        self.vmm.printed().split_off(before)
    }

    /// Has the guest take a device, and use it.
    #[track_caller]
    fn reaches_the_node(&mut self, slot: usize) {
        let said = self.tell(&format!(
            "echo virtio-mmio.{slot} > bind; n=$(ls virtio-mmio.{slot}/virtio*/net); \
             cat /sys/class/net/$n/address; ip link set $n up; \
             ip address add 10.9.{slot}.2/24 dev $n; ping -c 2 10.9.{slot}.1"
        ));
        assert!(
            said.contains(&format!("02:00:00:00:00:{slot:02x}")),
            "{said}"
        );
        assert!(said.contains(" 2 packets received"), "{said}");
    }

    fn end(self) {
        drop(self.control);
        self.vmm.finish();
    }
}

fn inherited(path: &Path, flags: OFlags) -> OwnedFd {
    open(path, flags, Mode::RUSR).expect("a file of the machine")
}

fn inherit(fd: impl AsFd, inherit: bool) {
    let flags = if inherit {
        FdFlags::empty()
    } else {
        FdFlags::CLOEXEC
    };
    fcntl_setfd(fd, flags).expect("an open descriptor");
}

#[track_caller]
fn ip(arguments: &str) {
    let mut command = Command::new("ip");
    command.args(arguments.split(' '));
    run(command).succeeded();
}

fn is_there(slot: usize) -> bool {
    Path::new(&format!("/sys/class/net/husk{slot}")).exists()
}

#[test]
fn a_device_comes_and_goes_and_comes_again() {
    let _node = Node::enter();
    let mut machine = Machine::start();
    let said = machine.tell("ls /sys/class/net; echo virtio-mmio.3 > bind");
    assert!(!said.contains("eth"), "{said}");
    assert!(said.contains("No such device"), "{said}");
    for _ in 0..2 {
        assert_eq!(machine.plug(3), json!("ok"));
        machine.reaches_the_node(3);
        let said = machine.tell("echo virtio-mmio.3 > unbind; ls /sys/class/net");
        assert!(!said.contains("eth"), "{said}");
        assert_eq!(machine.unplug(3), json!("ok"));
        assert!(!is_there(3), "the tap is closed");
    }
    machine.end();
}

#[test]
fn a_device_is_taken_from_a_guest_that_uses_it() {
    let _node = Node::enter();
    let mut machine = Machine::start();
    assert_eq!(machine.plug(0), json!("ok"));
    machine.reaches_the_node(0);
    machine.tell("ping -q -A -s 1400 10.9.0.1 & echo $!");
    assert_eq!(machine.unplug(0), json!("ok"));
    assert!(!is_there(0), "the tap is closed");
    assert_eq!(machine.unplug(0), json!("ok"));
    let said = machine.tell("kill %1; echo virtio-mmio.0 > unbind; ls /sys/class/net");
    assert!(!said.contains("eth"), "{said}");
    assert_eq!(machine.plug(0), json!("ok"));
    machine.reaches_the_node(0);
    machine.end();
}

#[test]
fn sixteen_devices_share_the_lines_and_a_seventeenth_is_refused() {
    let _node = Node::enter();
    let mut machine = Machine::start();
    for slot in 0..SLOTS {
        assert_eq!(machine.plug(slot), json!("ok"));
        machine.reaches_the_node(slot);
    }
    let lines = machine.tell("grep virtio /proc/interrupts");
    assert!(
        lines.contains("virtio") && lines.contains(", virtio"),
        "{lines}"
    );
    // Those that share, at once.
    let said = machine.tell("for n in 12 13 14 15; do ping -q -A -c 100 10.9.$n.1 & done; wait");
    assert_eq!(said.matches(" 100 packets received").count(), 4, "{said}");
    let refused = machine.plug(SLOTS);
    let error = refused["error"].as_str().unwrap_or_default();
    assert!(error.contains("no slot 16 "), "{refused}");
    assert!(!is_there(SLOTS), "its tap is closed");
    machine.end();
}
