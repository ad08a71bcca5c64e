use std::io::IoSlice;
use std::os::fd::AsRawFd;

use nix::sys::resource::{Resource, getrlimit, setrlimit};
use nix::sys::socket::{
    AddressFamily, ControlMessage, SockFlag, SockType, recv, sendmsg, socketpair,
};
use serde_json::{Value, json};

use super::*;
use crate::config::ShareConfig;
use crate::devices::virtio::fs::Fs;
use crate::testing::in_a_process_of_its_own;

struct Shim {
    socket: Option<OwnedFd>,
    latch: ExitLatch,
    event_loop: EventLoop,
}

impl Shim {
    fn new(share: Option<ShareControl>) -> Self {
        let (ours, theirs) = socketpair(
            AddressFamily::Unix,
            SockType::SeqPacket,
            None,
            SockFlag::SOCK_CLOEXEC,
        )
        .unwrap();
        let latch = ExitLatch::new().unwrap();
        let mut event_loop = EventLoop::new().unwrap();
        event_loop.add(Box::new(latch.clone()));
        let controls = Controls {
            share,
            ..Controls::default()
        };
        start(theirs, controls, latch.clone(), &mut event_loop).unwrap();
        Self {
            socket: Some(ours),
            latch,
            event_loop,
        }
    }

    fn ask(&self, request: &[u8]) -> Value {
        self.ask_with(request, &[])
    }

    /// Sends descriptors along.
    fn ask_with(&self, request: &[u8], descriptors: &[ControlMessage]) -> Value {
        let socket = self.socket.as_ref().unwrap().as_raw_fd();
        let request = [IoSlice::new(request)];
        sendmsg::<()>(socket, &request, descriptors, MsgFlags::empty(), None).unwrap();
        let mut answer = [0; MAX_PACKET_LEN];
        let len = recv(socket, &mut answer, MsgFlags::empty()).unwrap();
        serde_json::from_slice(&answer[..len]).unwrap()
    }

    fn wait_for_end(mut self) -> Exit {
        while self.latch.exit().is_none() {
            assert_ne!(
                self.event_loop.run_for(60_000),
                0,
                "the machine did not end"
            );
        }
        self.latch.exit().unwrap()
    }
}

#[test]
fn stop_is_answered_and_then_ends_the_machine() {
    let shim = Shim::new(None);
    assert_eq!(shim.ask(br#"{"verb":"stop"}"#), json!("ok"));
    assert_eq!(shim.wait_for_end(), Exit::Stopped);
}

#[test]
fn hanging_up_ends_the_machine() {
    let mut shim = Shim::new(None);
    shim.socket = None;
    assert_eq!(shim.wait_for_end(), Exit::Stopped);
}

#[test]
fn what_is_not_a_request_is_answered_with_the_reason() {
    let shim = Shim::new(None);
    let long = vec![b' '; MAX_PACKET_LEN + 1];
    for (request, reason) in [
        (&b"{"[..], "not a request"),
        (br#"{"verb":"dance"}"#, "dance"),
        (br#"{"verb":"remove_share","path":"a","extra":1}"#, "extra"),
        (br#"{"verb":"remove_share","path":"a"}"#, "without a share"),
        (br#"{"verb":"grow_vcpus","count":2}"#, "does not run"),
        (br#"{"verb":"resize_memory","mib":-1}"#, "not a request"),
        (
            br#"{"verb":"plug_nic","slot":0,"mac":"02:00:00:00:00:01","mtu":1500}"#,
            "network device 0: its tap must come with the request, alone; 0 descriptors came",
        ),
        (
            br#"{"verb":"plug_nic","slot":7,"mac":"02:00:00:00:00:01","mtu":60}"#,
            "network device 7: `mtu` is 60, must be 68 to 65535",
        ),
        (
            br#"{"verb":"add_share","export":{"path":"../a","cache":"always"}}"#,
            "`export.path` is \"../a\", must be",
        ),
        (br#"{"verb":"unplug_nic","slot":0}"#, "does not run"),
        (&long, "longer than"),
    ] {
        let answer = shim.ask(request);
        let text = answer["error"].as_str().unwrap();
        assert!(text.contains(reason), "{text}");
    }
    assert_eq!(shim.latch.exit(), None);
}

#[test]
fn a_vmm_out_of_descriptors_refuses_one_more_and_goes_on() {
    let test = "control_thread::tests::a_vmm_out_of_descriptors_refuses_one_more_and_goes_on";
    in_a_process_of_its_own(test, || {
        let shim = Shim::new(None);
        let request = br#"{"verb":"plug_nic","slot":0,"mac":"02:00:00:00:00:01","mtu":1500}"#;
        let tap = [std::io::stdin().as_raw_fd()];
        let ask = || {
            let answer = shim.ask_with(request, &[ControlMessage::ScmRights(&tap)]);
            answer["error"].as_str().unwrap().to_owned()
        };
        let limit = Resource::RLIMIT_NOFILE;
        let (soft, hard) = getrlimit(limit).unwrap();
        setrlimit(limit, 0, hard).unwrap();
        let lost = ask();
        setrlimit(limit, soft, hard).unwrap();
        assert!(lost.contains("RLIMIT_NOFILE"), "{lost}");
        assert_eq!(ask(), "the machine does not run");
        assert_eq!(shim.latch.exit(), None);
    });
}

#[test]
fn trees_are_added_and_removed() {
    let dir = std::env::temp_dir().join(format!("husk-control-{}", std::process::id()));
    std::fs::create_dir_all(dir.join("c1")).unwrap();
    let fs = Fs::new(&ShareConfig {
        tag: "share".into(),
        root: dir.clone(),
        exports: Vec::new(),
    })
    .unwrap();
    let shim = Shim::new(Some(fs.control()));
    let add = |path: &str| {
        let export = json!({ "path": path, "cache": "always" });
        shim.ask(
            json!({ "verb": "add_share", "export": export })
                .to_string()
                .as_bytes(),
        )
    };
    assert_eq!(add("c1"), json!("ok"));
    assert!(add("missing")["error"].is_string());
    assert!(add("../etc")["error"].is_string());
    let remove = json!({ "verb": "remove_share", "path": "c1" }).to_string();
    assert_eq!(shim.ask(remove.as_bytes()), json!("ok"));
    std::fs::remove_dir_all(dir).unwrap();
}
