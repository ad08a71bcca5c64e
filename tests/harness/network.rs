//! Network namespaces made by hand, and CNI's plugins.

use std::fs::{self, File};
use std::io::{self, Read, Write};
use std::net::TcpStream;
use std::os::fd::AsFd;
use std::path::Path;
use std::process::Command;
use std::thread;
use std::time::{Duration, Instant};

use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use serde_json::{Value, json};

use crate::dump::{of_guest, of_namespace};
use crate::process::{self, DEADLINE, Output, Running};
use crate::{Container, Pod, Runtime, Task};

/// Flags of a container that has the node's programs by `chroot /node`.
pub const PROGRAMS: &[&str] = &["--mount", "type=bind,src=/,dst=/node,options=bind:ro"];

/// Flags of a container that has all rights, and the node's programs by `chroot /node`.
pub const THE_NODES_PROGRAMS: &[&str] = &[
    "--privileged",
    "--mount",
    "type=bind,src=/,dst=/node,options=rbind:ro",
];

/// The lines of a text, in an order of their own.
pub fn lines(text: &str) -> Vec<String> {
    let words = |line: &str| line.split_whitespace().collect::<Vec<_>>().join(" ");
    let mut lines: Vec<String> = text.lines().map(words).collect();
    lines.retain(|line| !line.is_empty());
    lines.sort();
    lines
}

/// What a script prints in the network namespace of a path.
///
/// # Panics
/// If it fails.
#[track_caller]
pub fn in_namespace(path: &str, script: &str) -> String {
    let mut nsenter = Command::new("nsenter");
    nsenter.arg(format!("--net={path}")).arg("busybox");
    nsenter.args(["sh", "-c", script]);
    process::run(nsenter).succeeded().text()
}

/// Connects in the network namespace of a path. Reading and writing end by the deadline.
///
/// # Errors
/// What connecting gave.
///
/// # Panics
/// If there is no such namespace.
#[track_caller]
pub fn dial(path: &str, address: &str) -> io::Result<TcpStream> {
    let inside = || {
        let namespace = File::open(path).expect("a namespace");
        let network = Some(LinkNameSpaceType::Network);
        move_into_link_name_space(namespace.as_fd(), network).expect("a network namespace");
        let stream = TcpStream::connect(address)?;
        stream.set_read_timeout(Some(DEADLINE))?;
        stream.set_write_timeout(Some(DEADLINE))?;
        Ok(stream)
    };
    thread::scope(|scope| scope.spawn(inside).join().expect("a connection or none"))
}

/// Runs a script on the node.
///
/// # Panics
/// If it fails.
#[track_caller]
pub fn node(script: &str) {
    let mut sh = Command::new("sh");
    sh.args(["-e", "-c", script]);
    process::run(sh).succeeded();
}

/// How long it takes until a link of the node has gone.
///
/// # Panics
/// If it is there after the deadline.
#[track_caller]
pub fn vanished(link: &str) -> Duration {
    let link = Path::new("/sys/class/net").join(link);
    let start = Instant::now();
    while link.exists() {
        assert!(start.elapsed() < DEADLINE, "{} stays", link.display());
        thread::sleep(Duration::from_millis(5));
    }
    start.elapsed()
}

/// A network namespace with a name, made by hand. Gone when dropped.
pub struct Namespace(&'static str);

impl Namespace {
    /// Makes it. `script` goes on in a shell where `n` is `ip` in the namespace.
    ///
    /// # Panics
    /// If the script fails.
    #[track_caller]
    pub fn new(name: &'static str, script: &str) -> Self {
        let namespace = Self(name);
        node(&format!(
            "ip netns add {name}; n() {{ ip -n {name} \"$@\"; }}; n link set lo up; {script}"
        ));
        namespace.settle();
        namespace
    }

    /// Waits until its addresses are what they will be.
    ///
    /// # Panics
    /// If they are not by the deadline.
    #[track_caller]
    pub fn settle(&self) {
        // Addresses of version 6 are tried out before they are used, which is seen in a dump.
        let deadline = Instant::now() + DEADLINE;
        while self.told("ip -6 addr").contains("tentative") {
            assert!(Instant::now() < deadline, "{}", self.told("ip -6 addr"));
            thread::sleep(Duration::from_millis(200));
        }
    }

    /// By which path others name it.
    pub fn path(&self) -> String {
        format!("/run/netns/{}", self.0)
    }

    /// What a script prints in it.
    ///
    /// # Panics
    /// If it fails.
    #[track_caller]
    pub fn told(&self, script: &str) -> String {
        in_namespace(&self.path(), script)
    }

    /// The network in it.
    ///
    /// # Panics
    /// If it cannot be told.
    #[track_caller]
    pub fn network(&self) -> Vec<String> {
        of_namespace(&self.path())
    }

    /// Everything in it, also what a guest has no part in.
    ///
    /// # Panics
    /// If it cannot be told.
    #[track_caller]
    pub fn whole(&self) -> String {
        let mut ip = Command::new("sh");
        // A bridge tells its timers, too.
        let script = "ip -d addr | sed \"s/[a-z_]*_timer *[0-9.]*//g\"; ip -d route show table all; ip -d rule; ip -d -6 rule; ip neigh show proxy; \
             ip neigh show nud permanent; tc qdisc; for l in /sys/class/net/*; do for d in ingress egress; do tc filter show dev ${l##*/} $d; done; done";
        ip.args(["-c", &format!("ip netns exec {} sh -c '{script}'", self.0)]);
        process::run(ip).text()
    }

    /// A container in it that has all rights, and the node's programs besides its own: by
    /// `chroot /node`.
    ///
    /// # Panics
    /// If it does not start.
    #[track_caller]
    pub fn run_beside_the_nodes_programs(&self, runtime: Runtime) -> Task {
        let namespace = format!("network:{}", self.path());
        let task = Container::new(runtime, &["sleep", "infinity"])
            .with(&["--with-ns", &namespace, "--null-io"])
            .with(THE_NODES_PROGRAMS)
            .detach();
        told(&task, "mount --bind /dev /node/dev");
        task
    }

    /// A container in it, with the node's programs besides its own.
    ///
    /// # Panics
    /// If it does not start.
    #[track_caller]
    pub fn run(&self) -> Task {
        let namespace = format!("network:{}", self.path());
        Container::new(Runtime::Husk, &["sleep", "infinity"])
            .with(&[
                "--with-ns",
                &namespace,
                "--cap-add",
                "CAP_NET_RAW",
                "--null-io",
            ])
            .with(PROGRAMS)
            .detach()
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        let mut ip = Command::new("ip");
        ip.args(["netns", "del", self.0]);
        process::run(ip);
    }
}

/// Has the node's perl, with its sockets, run a program in a container of
/// [`Namespace::run_beside_the_nodes_programs`] until that ends: the image has few servers. It may
/// still be starting. The program has no single quotes.
///
/// # Panics
/// If it cannot be started.
#[track_caller]
pub fn serve(task: &Task, program: &str) {
    told(
        task,
        &format!("chroot /node /usr/bin/perl -MSocket -e '{program}' >/dev/null 2>&1 &"),
    );
}

/// Has it send each datagram back that comes to a port.
///
/// # Panics
/// If it cannot be started.
#[track_caller]
pub fn echo_datagrams(task: &Task, port: u16) {
    serve(
        task,
        &format!(
            "socket(S, PF_INET, SOCK_DGRAM, 0); bind(S, sockaddr_in({port}, INADDR_ANY));
             while ($from = recv(S, $data, 65535, 0)) {{ send(S, $data, 0, $from) }}"
        ),
    );
}

/// What a script prints in a container.
///
/// # Panics
/// If it fails.
#[track_caller]
pub fn told(task: &Task, script: &str) -> String {
    task.exec(&["sh", "-c", script]).succeeded().text()
}

/// Waits until the guest has what the namespace of a path has; returns it.
///
/// # Panics
/// If it has not by the deadline.
#[track_caller]
pub fn same(task: &Task, namespace: &str) -> Vec<String> {
    let deadline = Instant::now() + DEADLINE;
    loop {
        // Addresses of version 6 are tried out on the host, which is seen in a dump.
        let host = of_namespace(namespace);
        let guest = of_guest(task);
        if guest == host && host == of_namespace(namespace) {
            return guest;
        }
        assert!(Instant::now() < deadline, "{guest:#?}\nis not\n{host:#?}");
        thread::sleep(Duration::from_millis(100));
    }
}

/// Starts a server in the guest that sends back what it gets, for [`comes_back`].
///
/// # Panics
/// If it cannot.
#[track_caller]
pub fn send_back(task: &Task) {
    told(task, "nc -ll -p 7000 -e cat >/dev/null 2>&1 &");
    let listens = "netstat -ltn | grep -q ':7000 '";
    told(task, &format!("until {listens}; do sleep 0.1; done"));
}

/// Has a megabyte sent back by the server of [`send_back`] at an address.
///
/// # Panics
/// If it does not come back as it was by the [`DEADLINE`].
#[track_caller]
pub fn comes_back(address: &str) {
    let sent: Vec<u8> = (0..1_u32 << 20)
        .map(|n| (n.wrapping_mul(n) >> 7) as u8)
        .collect();
    let mut stream = TcpStream::connect((address, 7000)).expect("a connection");
    stream.set_read_timeout(Some(DEADLINE)).expect("a deadline");
    stream
        .set_write_timeout(Some(DEADLINE))
        .expect("a deadline");
    let mut received = vec![0; sent.len()];
    thread::scope(|scope| {
        let mut writer = stream.try_clone().expect("the stream");
        scope.spawn({
            let sent = &sent;
            move || writer.write_all(sent).expect("a megabyte is taken")
        });
        stream
            .read_exact(&mut received)
            .expect("a megabyte comes back");
    });
    assert!(received == sent, "{address}: the bytes are others");
}

/// Plugins that make an interface, one after the other, as a `.conflist` names them.
pub struct Chain {
    network: String,
    container: String,
    namespace: String,
    interface: &'static str,
    plugins: Vec<Value>,
    result: Value,
}

impl Chain {
    /// Has them make it.
    ///
    /// # Panics
    /// If one refuses.
    #[track_caller]
    pub fn add(namespace: &Namespace, interface: &'static str, plugins: Value) -> Self {
        let Value::Array(plugins) = plugins else {
            panic!("a chain is a list: {plugins}")
        };
        let mut chain = Self {
            network: format!("net-{interface}"),
            container: "pod".into(),
            namespace: namespace.path(),
            interface,
            plugins,
            result: Value::Null,
        };
        for plugin in chain.plugins.clone() {
            let result = chain.call("ADD", plugin).succeeded();
            chain.result = serde_json::from_str(&result.text()).expect("a result");
        }
        chain
    }

    /// Those of a pod that containerd's CRI service runs, as it has called them: from the record
    /// that libcni keeps of it.
    ///
    /// # Panics
    /// If there is no record.
    #[track_caller]
    pub fn of_pod(network: &str, pod: &Pod) -> Self {
        let read = |path: String| -> Value {
            let text = fs::read_to_string(&path).unwrap_or_else(|error| panic!("{path}: {error}"));
            serde_json::from_str(&text).unwrap_or_else(|error| panic!("{path}: {error}"))
        };
        let mut list = read(format!(
            "/usr/local/lib/node/{network}.d/{network}.conflist"
        ));
        let mut record = read(format!("/var/lib/cni/results/{network}-{}-eth0", pod.id()));
        let mut plugins = list["plugins"].take();
        let plugins = plugins.as_array_mut().expect("a list");
        for plugin in &mut *plugins {
            // What of the pod goes to it is what it says it can do.
            let capabilities = plugin["capabilities"].as_object().into_iter().flatten();
            let given = capabilities.map(|(name, _)| {
                let value = record["capabilityArgs"][name].clone();
                (name.clone(), value)
            });
            plugin["runtimeConfig"] = Value::Object(given.collect());
        }
        Self {
            network: network.into(),
            container: pod.id().into(),
            namespace: pod.network_namespace(),
            interface: "eth0",
            plugins: plugins.clone(),
            result: record["result"].take(),
        }
    }

    /// The name of the node's end of the link, as the bridge plugin told it.
    ///
    /// # Panics
    /// If no plugin did.
    #[track_caller]
    pub fn far_end(&self) -> &str {
        let interfaces = self.result["interfaces"].as_array().into_iter().flatten();
        let mut names = interfaces.filter_map(|interface| interface["name"].as_str());
        let far = names.find(|name| name.starts_with("veth"));
        far.unwrap_or_else(|| panic!("no veth in {}", self.result))
    }

    /// What each says when asked (CHECK) whether all is as it left it; nothing if so.
    #[track_caller]
    pub fn verdicts(&self) -> Vec<String> {
        let plugins = self.plugins.iter();
        let verdict = plugins.map(|plugin| self.call("CHECK", plugin.clone()).text());
        verdict.collect()
    }

    /// Has them take it away again.
    ///
    /// # Panics
    /// If one refuses.
    #[track_caller]
    pub fn del(&self) {
        for plugin in self.plugins.iter().rev() {
            self.call("DEL", plugin.clone()).succeeded();
        }
    }

    #[track_caller]
    fn call(&self, verb: &str, mut plugin: Value) -> Output {
        let program = plugin["type"].as_str().expect("a type").to_owned();
        plugin["cniVersion"] = json!("1.0.0");
        plugin["name"] = json!(self.network);
        if !self.result.is_null() {
            plugin["prevResult"] = self.result.clone();
        }
        let plugins = Path::new("/usr/lib/cni");
        let mut command = Command::new(plugins.join(program));
        command
            .env("CNI_COMMAND", verb)
            .env("CNI_CONTAINERID", &self.container)
            .env("CNI_NETNS", &self.namespace)
            .env("CNI_IFNAME", self.interface)
            .env("CNI_PATH", plugins);
        let mut running = Running::start(command);
        running.feed(plugin.to_string().into_bytes());
        running.finish()
    }
}
