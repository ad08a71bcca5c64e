//! Many pods side by side.

use std::sync::atomic::{AtomicU32, Ordering};
use std::thread;

use husk_tests::{Node, Pod, Runtime, process};

/// Runs pods, some at a time, each with a container that does something; none may fail.
#[track_caller]
fn pods(count: u32, at_once: u32) {
    let left = AtomicU32::new(count);
    let take = || {
        left.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |left| {
            left.checked_sub(1)
        })
    };
    thread::scope(|scope| {
        for _ in 0..at_once {
            scope.spawn(|| {
                while let Ok(number) = take() {
                    let pod = Pod::run(Runtime::Husk);
                    let container = pod.script(&format!("echo {number}; exit 3"));
                    assert_eq!(container.ended().exit_code, 3);
                    container.logs(&format!("stdout F {number}"));
                    pod.remove();
                }
            });
        }
    });
    assert!(process::named("husk-vmm").is_empty());
}

#[test]
fn pods_are_made_and_removed_side_by_side() {
    let _node = Node::enter();
    pods(6, 3);
}

#[test]
#[ignore = "full"]
fn thirty_pods_eight_at_a_time_ten_times_over() {
    for _ in 0..10 {
        let _node = Node::enter();
        pods(30, 8);
    }
}

#[test]
#[ignore = "full"]
fn fifty_containers_come_and_go_and_the_machines_memory_comes_back() {
    let _node = Node::enter();
    let pod = Pod::run(Runtime::Husk);
    let machine = process::only("husk-vmm");
    let observer = pod.script("exec sleep infinity");
    // The best of a few: pages on their way back to the host are neither free nor used.
    let available = || {
        let told = || observer.told("awk '/MemAvailable/ { print $2 }' /proc/meminfo");
        let looks = (0..5).map(|_| told().trim().parse::<i64>().expect("KiB"));
        looks.max().expect("five")
    };
    let rounds = |count| {
        for _ in 0..count {
            let container = pod.script("echo here; exit 3");
            assert_eq!(container.ended().exit_code, 3);
            container.remove();
        }
    };
    // What the kernel keeps from the first of each kind it keeps for good.
    rounds(5);
    let before = available();
    rounds(50);
    let lost = before - available();
    assert!(lost < 2048, "{lost} KiB are lost");
    assert_eq!(process::only("husk-vmm"), machine);
    pod.remove();
}
