//! (j) What a byte costs between the node and a machine by hand behind a tap, against QEMU's
//! microvm machine with its own virtio-net, without vhost.

use std::process::Command;

use husk_tests::network::node;
use husk_tests::{Running, Vm};
use serde_json::json;

use crate::network::{RUNS, serve, tcp};
use crate::{Report, as_f64, boot, kvm};

/// What the guest prints when it serves.
const MARK: &str = "iperf3 listens";
/// The guest's address on its link.
const MAC: &str = "02:00:00:00:00:02";

/// A running machine and its tap. Both are gone when dropped.
struct Machine {
    tap: &'static str,
    address: &'static str,
    _running: Running,
    _files: Vm,
}

/// Both with the same kernel, initramfs, memory and script.
pub fn measure(report: &mut Report) {
    let ours = Machine::start("bench-vmm", "10.77.3.1/24", "10.77.3.2", |machine, tap| {
        machine.config["net"] = json!([{ "tap": tap, "mac": MAC, "mtu": 1500 }]);
        machine.command()
    });
    let theirs = Machine::start("bench-qemu", "10.77.4.1/24", "10.77.4.2", |machine, tap| {
        let mut qemu = boot::qemu(machine);
        // The present virtio, which has every feature, instead of the one before 1.0.
        qemu.args(["-global", "virtio-mmio.force-legacy=false"])
            .arg("-netdev")
            .arg(format!(
                "tap,id=link,ifname={tap},script=no,downscript=no,vhost=off"
            ))
            .args([
                "-device",
                &format!("virtio-net-device,netdev=link,mac={MAC}"),
            ]);
        qemu
    });
    println!("\none MiB of TCP to a machine behind a tap");
    let (husk, qemu) = (("husk-vmm", &ours), ("QEMU microvm", &theirs));
    report.in_turns("tcp_ratio_qemu", RUNS, husk, qemu, |machine| {
        tcp(machine.address, &[]).mib_ms()
    });
    for (key, machine, what) in [
        ("net_exits_per_packet_qemu", &theirs, "QEMU microvm"),
        ("net_exits_per_packet", &ours, "husk-vmm"),
    ] {
        let exits = machine.exits_per_packet();
        report.amount(key, exits, "exits a packet", what);
    }
}

impl Machine {
    fn start(
        tap: &'static str,
        node_address: &str,
        address: &'static str,
        command: impl Fn(&mut Vm, &str) -> Command,
    ) -> Self {
        node(&format!(
            "ip tuntap add dev {tap} mode tap; ip addr add {node_address} dev {tap}; ip link set {tap} up"
        ));
        let mut files = Vm::running(&format!(
            "ip addr add {address}/24 dev eth0; ip link set eth0 up; {}
             echo {MARK}; wait",
            serve("/usr/bin/iperf3")
        ));
        add_iperf3(&files);
        let mut running = Running::start(command(&mut files, tap));
        running.wait_for(MARK);
        Self {
            tap,
            address,
            _running: running,
            _files: files,
        }
    }

    /// Of a transfer to the machine, acknowledgements included. What is segmented or put
    /// together by the other side is one packet.
    fn exits_per_packet(&self) -> f64 {
        let counts = || (kvm::exits(), self.packets("rx") + self.packets("tx"));
        let before = counts();
        tcp(self.address, &[]);
        let after = counts();
        as_f64(after.0 - before.0) / as_f64(after.1 - before.1)
    }

    fn packets(&self, direction: &str) -> u64 {
        let file = format!("/sys/class/net/{}/statistics/{direction}_packets", self.tap);
        let text = std::fs::read_to_string(file).expect("a counter of the tap");
        text.trim().parse().expect("a number")
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        node(&format!("ip link del {}", self.tap));
    }
}

/// Packs the node's iperf3 and the libraries it links to into a second archive, after the first;
/// and libgcc_s, which pthread_cancel() opens when a test of datagrams ends, or aborts.
fn add_iperf3(files: &Vm) {
    let (tree, initramfs) = (files.path("iperf3"), files.initramfs());
    node(&format!(
        "mkdir {tree}; cd {tree}
         cp -L --parents /usr/bin/iperf3 $(ldd /usr/bin/iperf3 | grep -o '/[^ ]*') \
             /lib/x86_64-linux-gnu/libgcc_s.so.1 .
         find . | cpio --create --format=newc --quiet >>{}",
        initramfs.display(),
        tree = tree.display()
    ));
}
