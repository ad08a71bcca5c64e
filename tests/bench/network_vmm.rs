//! (j) What a byte costs between the node and a machine by hand behind a tap, against QEMU's
//! microvm machine with its own virtio-net, without vhost.

use std::process::Command;

use husk_tests::network::node;
use husk_tests::{Running, Vm};
use serde_json::json;

use crate::network::{RUNS, SINK, elapsed_ms, one_mib, send};
use crate::{Report, boot};

/// What the guest prints when its link is up.
const MARK: &str = "link is up";
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
        one_mib(|mib| elapsed_ms(&|| send(machine.address, mib)))
    });
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
            "ip addr add {address}/24 dev eth0; ip link set eth0 up; echo {MARK}
             exec nc -ll -p {SINK} -e dd of=/dev/null bs=65536 status=none"
        ));
        let mut running = Running::start(command(&mut files, tap));
        running.wait_for(MARK);
        Self {
            tap,
            address,
            _running: running,
            _files: files,
        }
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        node(&format!("ip link del {}", self.tap));
    }
}
