//! (h) Pods under the CRI service: how long they take, and what an idle one costs all in all.

use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use husk_tests::cri::api;
use husk_tests::{Pod, Runtime, process};
use serde_json::json;

use crate::{Report, as_f64, median, milliseconds, rounded};

/// Pods of each runtime, taken in turns.
pub const RUNS: usize = 5;
/// Pods made at once.
const PARALLEL: usize = 10;
/// What a container is allowed more than its machine has.
const GROWTH_MIB: i64 = 512;
/// How long the container's first output may stay unnoticed.
const PERIOD: Duration = Duration::from_millis(1);

pub fn measure(report: &mut Report) {
    let (ours, theirs) = (("husk", Runtime::Husk), ("runc", Runtime::Runc));
    report.in_turns("pod_start_ratio_runc", RUNS, ours, theirs, |runtime| {
        let start = Instant::now();
        let pod = started(*runtime);
        let elapsed = milliseconds(start);
        pod.remove();
        elapsed
    });
    println!("\n{PARALLEL} of them at once, once each");
    let [theirs, ours] = [Runtime::Runc, Runtime::Husk].map(|runtime| {
        let start = Instant::now();
        let pods: Vec<Pod> = thread::scope(|scope| {
            let pods: Vec<_> = (0..PARALLEL)
                .map(|_| scope.spawn(move || started(runtime)))
                .collect();
            pods.into_iter()
                .map(|pod| pod.join().expect("a pod"))
                .collect()
        });
        let elapsed = milliseconds(start);
        pods.into_iter().for_each(Pod::remove);
        elapsed
    });
    report.ratio(
        "pod_parallel10_ratio_runc",
        ("husk", ours),
        ("runc", theirs),
    );
    println!("\nmemory of idle pods, each: shim and VMM with the guest's RAM (Pss)");
    for (count, key) in [(1, "idle_pod_mib"), (30, "idle_pod_mib_30")] {
        let pods: Vec<Pod> = (0..count).map(|_| Pod::run(Runtime::Husk)).collect();
        let pids = ["containerd-shim-rust-v2", "husk-vmm"].map(process::named);
        let kib: u64 = pids.iter().flatten().copied().map(pss).sum();
        let mib = rounded(as_f64(kib) / 1024.0 / as_f64(count));
        println!("  {:<34} {mib:>9.2} MiB", format!("of {count}"));
        report.add(key, json!(mib));
        pods.into_iter().for_each(Pod::remove);
    }
    let grow_ms = rounded(median((0..RUNS).map(|_| grown()).collect()));
    println!(
        "\nan update by {GROWTH_MIB} MiB and a CPU, until the guest has them, median of {RUNS}"
    );
    println!("  {:<34} {grow_ms:>9.2} ms", "husk");
    report.add("grow_ms_virtual", json!(grow_ms));
}

/// How long the update of a container takes whose pod's machine must grow for it.
fn grown() -> f64 {
    let pod = Pod::run(Runtime::Husk);
    let container = pod.script("echo up; exec sleep infinity");
    let linux = api::LinuxContainerResources {
        memory_limit_in_bytes: GROWTH_MIB << 20,
        cpu_quota: 200_000,
        cpu_period: 100_000,
        ..Default::default()
    };
    let request = api::UpdateContainerResourcesRequest {
        container_id: container.id().into(),
        linux: Some(linux),
        ..Default::default()
    };
    let start = Instant::now();
    let answer = pod.cri.update_container_resources(request);
    let elapsed = milliseconds(start);
    answer.expect("an update");
    pod.remove();
    elapsed
}

/// RunPodSandbox, CreateContainer, StartContainer and the first byte of output.
fn started(runtime: Runtime) -> Pod {
    let pod = Pod::run(runtime);
    let container = pod.script("echo up; exec sleep infinity");
    while container.log().is_empty() {
        thread::sleep(PERIOD);
    }
    pod
}

/// In KiB.
fn pss(pid: u32) -> u64 {
    let rollup = fs::read_to_string(format!("/proc/{pid}/smaps_rollup")).expect("a process");
    let pss = rollup.lines().find_map(|line| line.strip_prefix("Pss:"));
    let number = pss.and_then(|rest| rest.split_whitespace().next()?.parse().ok());
    number.expect("its Pss")
}
