//! What a guest cannot give is refused by name before anything is left behind.

use std::fs;

use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::shim::oci::Options;
use containerd_shim_protos::ttrpc::Code;
use husk_tests::shim::{self, Bundle};
use husk_tests::{Container, Node, process};
use serde_json::json;

#[test]
fn the_hosts_network_is_refused() {
    let _node = Node::enter();
    Container::husk(&["true"])
        .with(&["--net-host"])
        .run()
        .failed_saying(&["host", "network"]);
}

#[test]
fn the_hosts_pid_namespace_is_refused() {
    let _node = Node::enter();
    Container::husk(&["true"])
        .with(&["--with-ns", "pid:/proc/1/ns/pid"])
        .run()
        .failed_saying(&["host", "pid"]);
}

#[test]
fn a_shim_lives_in_the_cgroup_of_its_options_or_is_refused() {
    let _node = Node::enter();
    let bundle = Bundle::new();
    let options = Options {
        shim_cgroup: "/shims".to_owned(),
        ..Options::default()
    };
    let options = Any {
        type_url: "containerd.runc.v1.Options".to_owned(),
        value: options.write_to_bytes().expect("a message"),
        ..Any::default()
    };
    let options = options.write_to_bytes().expect("a message");
    let nowhere = || panic!("it was started");
    bundle
        .started_with(&options, nowhere)
        .failed_saying(&["/shims", "ShimCgroup", "No such file"]);
    fs::create_dir("/sys/fs/cgroup/shims").expect("a cgroup");
    let here = || {
        let shim = process::only("containerd-shim-rust-v2");
        let own = fs::read_to_string(format!("/proc/{shim}/cgroup"));
        assert_eq!(own.expect("it lives"), "0::/shims\n");
    };
    bundle.started_with(&options, here).succeeded();
    fs::remove_dir("/sys/fs/cgroup/shims").expect("nobody is left in it");
}

#[test]
fn a_bind_mount_of_nothing_is_refused_by_name() {
    let _node = Node::enter();
    Container::husk(&["true"])
        .with(&[
            "--mount",
            "type=bind,src=/no/such/source,dst=/data,options=rbind",
        ])
        .run()
        .failed_saying(&["/no/such/source"]);
}

#[test]
fn a_mount_destination_outside_the_root_stays_inside() {
    let _node = Node::enter();
    let output = Container::script("ls -d /escaped")
        .with(&[
            "--mount",
            "type=tmpfs,src=tmpfs,dst=/../../escaped,options=size=64k",
        ])
        .run()
        .succeeded();
    assert_eq!(output.text(), "/escaped\n");
}

/// Refuses it as a mistake of the caller, in words that name what is wrong.
#[track_caller]
fn refused(bundle: &Bundle, words: &[&str]) {
    let (code, text) = bundle.refusal();
    assert_eq!(code, Code::INVALID_ARGUMENT, "{text}");
    for word in words {
        assert!(text.contains(word), "no {word:?} in: {text}");
    }
}

#[test]
fn a_bundle_without_a_spec_is_refused() {
    let _node = Node::enter();
    let bundle = Bundle::new();
    std::fs::remove_file(bundle.path().join("config.json")).expect("a config.json");
    refused(&bundle, &["config.json"]);
}

#[test]
fn a_spec_that_is_not_json_is_refused_with_its_place() {
    let _node = Node::enter();
    let bundle = Bundle::new();
    bundle.write_config("{\"ociVersion\": \"1.1.0\",\n oops");
    refused(&bundle, &["config.json", "line 2"]);
}

#[test]
fn a_wrong_type_in_the_spec_is_refused() {
    let _node = Node::enter();
    refused(
        &Bundle::with("/process/args", json!("true")),
        &["OCI spec", "invalid type", "line 1"],
    );
}

#[test]
fn a_root_outside_the_bundle_by_dots_is_refused() {
    let _node = Node::enter();
    refused(
        &Bundle::with("/root/path", json!("../../etc")),
        &["root", "../../etc"],
    );
}

#[test]
fn a_root_that_is_missing_is_refused_by_name() {
    let _node = Node::enter();
    refused(
        &Bundle::with("/root/path", json!("/no/root")),
        &["/no/root"],
    );
}

#[test]
fn a_spec_without_a_process_is_refused() {
    let _node = Node::enter();
    refused(&Bundle::with("/process", json!(null)), &["process"]);
}

#[test]
fn an_empty_command_is_refused() {
    let _node = Node::enter();
    refused(&Bundle::with("/process/args", json!([])), &["args"]);
}

#[test]
fn an_annotation_that_is_no_number_is_refused_by_name() {
    let _node = Node::enter();
    let annotations = json!({ "io.kubernetes.cri.sandbox-memory": "much" });
    refused(
        &Bundle::with("/annotations", annotations),
        &["io.kubernetes.cri.sandbox-memory", "much"],
    );
}

#[test]
fn another_containerds_container_of_the_same_name_is_left_alone() {
    let _node = Node::enter();
    let task = Container::husk(&["sleep", "infinity"])
        .with(&["--null-io"])
        .detach();
    let bundle = Bundle::new();
    let of_another = ["-address", "/run/another/containerd.sock", "-id", task.id()];
    let by_hand = |verb: &str| shim::run(&bundle, &[&of_another[..], &[verb]].concat());
    by_hand("start").failed_saying(&[task.id(), "another containerd"]);
    by_hand("delete").succeeded();
    assert_eq!(task.exec(&["echo", "alive"]).succeeded().text(), "alive\n");
    task.destroy();
}
