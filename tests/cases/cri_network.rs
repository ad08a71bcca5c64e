//! The network that containerd's CRI service has CNI's plugins make for a pod, with what a
//! cluster asks of it: checks, ports of the node, rules by the pod's link.

use std::path::Path;
use std::process::Command;

use husk_tests::cri::api;
use husk_tests::network::{Chain, node};
use husk_tests::pod::PodContainer;
use husk_tests::{Node, Pod, PodPlan, Runtime, process};

/// A pod whose port 80 is the node's port 8080.
#[track_caller]
fn with_a_port_of_the_node(runtime: Runtime) -> Pod {
    let port = api::PortMapping {
        protocol: api::Protocol::Tcp.into(),
        container_port: 80,
        host_port: 8080,
        host_ip: String::new(),
    };
    let plan = PodPlan::new(runtime).on_both_families();
    plan.with(|config| config.port_mappings.push(port)).run()
}

/// Has a container serve a word on ports.
#[track_caller]
fn serve(container: &PodContainer<'_>, ports: &[u16]) {
    let ports = ports.iter().map(|port| {
        format!(
            "nc -ll -p {port} -e echo served >/dev/null 2>&1 &
            until netstat -ltn | grep -q ':{port} '; do sleep 0.1; done\n"
        )
    });
    container.told(&ports.collect::<String>());
}

#[test]
fn a_port_of_the_node_leads_to_the_pod_and_checks_find_nothing_changed() {
    let _node = Node::enter();
    let neighbour = Pod::run(Runtime::Runc);
    let client = neighbour.script("exec sleep infinity");
    let [runc, husk] = Runtime::both(|runtime| {
        let pod = with_a_port_of_the_node(runtime);
        let container = pod.script("exec sleep infinity");
        serve(&container, &[80]);
        // The node's addresses, and by one of them a pod of another network.
        for address in ["127.0.0.1", "10.89.0.1", "fd89::1"] {
            let answer = node_told(&format!("busybox nc {address} 8080 </dev/null"));
            assert_eq!(answer, "served\n", "{runtime:?} {address}");
        }
        let answer = client.told("nc 10.88.0.1 8080 </dev/null");
        assert_eq!(answer, "served\n", "{runtime:?}");
        let chain = Chain::of_pod("dual", &pod);
        let verdicts = chain.verdicts();
        let mut traces = vec![format!("/sys/class/net/{}", chain.far_end())];
        let addresses = pod.addresses().into_iter();
        traces.extend(addresses.map(|address| format!("/run/pods/dual/{address}")));
        let is_there = |path: &String| Path::new(path).exists();
        assert!(traces.iter().all(is_there), "{runtime:?}: {traces:?}");
        pod.stop();
        assert!(!traces.iter().any(is_there), "{runtime:?}: {traces:?}");
        // Once more is no error.
        chain.del();
        pod.remove();
        node("! busybox nc -w 20 10.89.0.1 8080 </dev/null");
        verdicts
    });
    // An older portmap looks for rules of version 4 in the tables of version 6.
    let [bridge, portmap] = &husk[..] else {
        panic!("two plugins: {husk:?}")
    };
    assert_eq!(bridge, "");
    assert_eq!(portmap.is_empty(), runc[1].is_empty(), "{husk:?} {runc:?}");
    drop(client);
    neighbour.remove();
}

/// What a script prints on the node.
#[track_caller]
fn node_told(script: &str) -> String {
    let mut sh = Command::new("sh");
    sh.args(["-c", script]);
    process::run(sh).succeeded().text()
}

/// Rules on the bridge by the node's end of a pod's link, as for policies about who may talk to
/// whom. Gone when dropped.
struct Rules {
    link: String,
}

impl Rules {
    #[track_caller]
    fn add(link: &str) -> Self {
        let rules = Self { link: link.into() };
        node(&rules.each("-A"));
        rules
    }

    /// Nothing for port 7001 in either direction.
    fn each(&self, verb: &str) -> String {
        let mut script = String::new();
        for tables in ["iptables", "ip6tables"] {
            for direction in ["in", "out"] {
                let by = format!("-m physdev --physdev-is-bridged --physdev-{direction}");
                let link = &self.link;
                script +=
                    &format!("{tables} {verb} FORWARD {by} {link} -p tcp --dport 7001 -j DROP\n");
            }
        }
        script
    }
}

impl Drop for Rules {
    fn drop(&mut self) {
        node(&self.each("-D"));
    }
}

#[test]
fn rules_by_the_link_of_a_pod_let_pass_and_drop() {
    let _node = Node::enter();
    let pods = Runtime::BOTH.map(|runtime| PodPlan::new(runtime).on_both_families().run());
    let addresses = pods.each_ref().map(Pod::addresses);
    let containers = pods.each_ref().map(|pod| pod.script("exec sleep infinity"));
    for container in &containers {
        serve(container, &[7001, 7002]);
    }
    // What each gets from the other by both families, all at once: what is dropped takes its time.
    let reached = |port: u16| {
        [(0, 1), (1, 0)].map(|(from, to): (usize, usize)| {
            let tries = addresses[to]
                .iter()
                .map(|address| format!("(nc -w 3 {address} {port} </dev/null || echo dropped) & "));
            containers[from].told(&format!("{} wait", tries.collect::<String>()))
        })
    };
    let (dropped, served) = ("dropped\n".repeat(2), "served\n".repeat(2));
    let (dropped, served) = (&dropped[..], &served[..]);
    for pod in &pods {
        let _rules = Rules::add(Chain::of_pod("dual", pod).far_end());
        assert_eq!(reached(7001), [dropped, dropped]);
        assert_eq!(reached(7002), [served, served]);
    }
    assert_eq!(reached(7001), [served, served]);
    drop(containers);
    for pod in pods {
        pod.remove();
    }
}
