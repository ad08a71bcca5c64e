//! What the init container of a service mesh does: connections of the pod go to its sidecar.

use husk_tests::network::{Namespace, told};
use husk_tests::{Node, Runtime};

/// The node's own programs, of both kinds of iptables.
const PROGRAMS: [&str; 4] = [
    "iptables-nft",
    "iptables-legacy",
    "ip6tables-nft",
    "ip6tables-legacy",
];

#[test]
fn connections_are_redirected_to_a_sidecar() {
    let _node = Node::enter();
    let add = "ip link add mesh-far type veth peer name eth0 netns mesh; ip link set mesh-far up;
        n addr add 10.77.0.2/24 dev eth0; n addr add fd77::2/64 dev eth0 nodad;
        n link set eth0 up; n route add default via 10.77.0.1; n route add default via fd77::1";
    let namespace = Namespace::new("mesh", add);
    let task = namespace.run_beside_the_nodes_programs(Runtime::Husk);
    // For the lock of the older kind.
    told(&task, "mount -t tmpfs none /node/run");
    for program in PROGRAMS {
        let far = if program.starts_with("ip6") {
            "fd99::9"
        } else {
            "192.0.2.9"
        };
        let rule = "OUTPUT -p tcp --dport 80 -m owner ! --uid-owner 1337 -m comment --comment mesh";
        let tables = format!("chroot /node /usr/sbin/{program} -t nat");
        let script = format!(
            "{tables} -A {rule} -j REDIRECT --to-ports 15001 || exit 1
             nc -ll -p 15001 -e echo sidecar &
             until nc {far} 80 </dev/null | grep sidecar; do sleep 1; done
             kill $!; wait $!
             {tables} -D {rule} -j REDIRECT --to-ports 15001"
        );
        let answer = told(&task, &script);
        assert!(answer.contains("sidecar"), "{program}: {answer}");
    }
    task.destroy();
}
