//! The real program as containerd runs it: `start` with every form of standard
//! input, the resident server under both service names, `delete` after a crash.
//! Needs root (sockets and run files lie below /run) but neither KVM nor containerd.

use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::time::Duration;

use containerd_shim_protos::api::{ConnectRequest, ConnectResponse, DeleteResponse};
use containerd_shim_protos::api::{ShutdownRequest, StateRequest};
use containerd_shim_protos::bootstrap_api::BootstrapParams;
use containerd_shim_protos::sandbox_api::{
    CreateSandboxRequest, SandboxStatusRequest, StopSandboxRequest,
};
use protobuf::Message;
use protobuf::well_known_types::any::Any;
use ttrpc::Code;
use ttrpc::asynchronous::Client;

const SHIM: &str = env!("CARGO_BIN_EXE_containerd-shim-rust-v2");
const NAMESPACE: &str = "husk-test";

/// A bundle directory, removed at the end.
struct Bundle {
    dir: PathBuf,
    id: String,
}

impl Bundle {
    /// `None` when this machine cannot run the test, with the reason printed.
    fn new(name: &str) -> Option<Self> {
        let own = std::fs::metadata("/proc/self").expect("proc is mounted");
        if own.uid() != 0 {
            println!("skipped: sockets and run files below /run need root");
            return None;
        }
        let id = format!("{name}-{}", std::process::id());
        let dir = std::env::temp_dir().join(format!("husk-bundle-{id}"));
        std::fs::create_dir_all(&dir).expect("a temporary directory can be made");
        let fifo = Command::new("mkfifo").arg(dir.join("log")).status();
        assert!(fifo.expect("mkfifo can be executed").success());
        Some(Self { dir, id })
    }

    fn shim(&self, action: &str, stdin: &[u8]) -> Output {
        let mut child = Command::new(SHIM)
            .args(["-namespace", NAMESPACE, "-id", &self.id])
            .args(["-address", "/run/test.sock", "-publish-binary", "", action])
            .current_dir(&self.dir)
            .env_remove("TTRPC_ADDRESS")
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .spawn()
            .expect("the shim can be executed");
        let mut pipe = child.stdin.take().expect("stdin is piped");
        pipe.write_all(stdin).expect("the shim reads its stdin");
        drop(pipe);
        child.wait_with_output().expect("the shim ends")
    }

    /// Runs `start`, checks that nothing but the answer was printed, returns it.
    fn start(&self, stdin: &[u8]) -> String {
        let output = self.shim("start", stdin);
        let errors = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "start failed: {errors}");
        assert_eq!(errors, "", "containerd 1.x reads stderr with the answer");
        String::from_utf8(output.stdout).expect("the answer is text")
    }

    fn run_dir(&self) -> PathBuf {
        Path::new("/run/husk").join(NAMESPACE).join(&self.id)
    }
}

impl Drop for Bundle {
    fn drop(&mut self) {
        self.shim("delete", b"");
        std::fs::remove_dir_all(&self.dir).ok();
    }
}

async fn connect(address: &str) -> Client {
    Client::connect(address).await.expect("the shim listens")
}

/// Calls a method by the full name of its service.
async fn call(
    client: &Client,
    service: &str,
    method: &str,
    message: &impl Message,
) -> ttrpc::Result<Vec<u8>> {
    let request = ttrpc::Request {
        service: service.to_owned(),
        method: method.to_owned(),
        payload: message
            .write_to_bytes()
            .expect("the message can be encoded"),
        timeout_nano: 60_000_000_000,
        ..ttrpc::Request::default()
    };
    Ok(client.request(request).await?.payload)
}

async fn shim_pid(client: &Client, service: &str) -> u32 {
    let answer = call(client, service, "Connect", &ConnectRequest::default()).await;
    let answer = answer.expect("Connect never fails");
    ConnectResponse::parse_from_bytes(&answer)
        .expect("the answer is a ConnectResponse")
        .shim_pid
}

/// Shuts the shim down and waits until its process is gone.
async fn shut_down(client: &Client, pid: u32) {
    let pidfd = std::fs::File::open(format!("/proc/{pid}/stat")).expect("the shim runs");
    let request = ShutdownRequest::default();
    call(client, "containerd.task.v2.Task", "Shutdown", &request)
        .await
        .expect("Shutdown works");
    wait_for(|| std::io::read_to_string(&pidfd).is_err() || is_zombie(pid)).await;
}

/// Reparented to a PID 1 that does not reap, an ended shim stays as a zombie.
fn is_zombie(pid: u32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    stat.is_empty() || stat.contains(") Z ")
}

async fn wait_for(done: impl Fn() -> bool) {
    for _ in 0..6000 {
        if done() {
            return;
        }
        tokio::time::sleep(Duration::from_millis(10)).await;
    }
    panic!("not done within 60 s");
}

fn options() -> Vec<u8> {
    let options = Any {
        type_url: "runtimeoptions.v1.Options".to_owned(),
        ..Any::default()
    };
    options
        .write_to_bytes()
        .expect("the options can be encoded")
}

#[tokio::test]
async fn every_form_of_stdin_starts_a_shim_that_serves_both_apis_and_leaves_nothing() {
    let forms: [(&str, &[u8]); 3] = [
        ("empty", b""),
        ("options", &options()),
        ("garbage", b"\xff\xfe\x00 what"),
    ];
    for (name, stdin) in forms {
        let Some(bundle) = Bundle::new(name) else {
            return;
        };
        let address = bundle.start(stdin);
        assert!(
            address.starts_with("unix:///run/containerd/s/"),
            "{address}"
        );
        let kept = std::fs::read_to_string(bundle.dir.join("address")).expect("address is kept");
        assert_eq!(kept, address);
        let client = connect(&address).await;
        let pid = shim_pid(&client, "containerd.task.v2.Task").await;
        assert_eq!(pid, shim_pid(&client, "containerd.task.v3.Task").await);
        let state = StateRequest {
            id: "none".to_owned(),
            ..StateRequest::default()
        };
        let error = call(&client, "containerd.task.v3.Task", "State", &state).await;
        let Err(ttrpc::Error::RpcStatus(status)) = error else {
            panic!("State of an unknown container gave {error:?}");
        };
        assert_eq!(status.code, ttrpc::Code::NOT_FOUND.into());
        assert_eq!(
            bundle.start(b""),
            address,
            "a second start must find the first"
        );
        shut_down(&client, pid).await;
        let socket = address.trim_start_matches("unix://");
        assert!(!Path::new(socket).exists() && !bundle.run_dir().exists());
    }
}

#[tokio::test]
async fn bootstrap_params_are_answered_with_json_and_obeyed() {
    let Some(bundle) = Bundle::new("params") else {
        return;
    };
    let params = BootstrapParams {
        instance_id: bundle.id.clone(),
        namespace: NAMESPACE.to_owned(),
        containerd_version: "2.3.0".to_owned(),
        socket_dir: Some(bundle.dir.join("s").to_string_lossy().into_owned()),
        ..BootstrapParams::default()
    };
    let answer = bundle.start(&params.write_to_bytes().expect("the params can be encoded"));
    let answer: serde_json::Value = serde_json::from_str(&answer).expect("the answer is JSON");
    assert_eq!(
        (&answer["version"], &answer["protocol"]),
        (&3.into(), &"ttrpc".into())
    );
    let address = answer["address"].as_str().expect("the address is text");
    let wanted = format!("unix://{}/s/", bundle.dir.display());
    assert!(
        address.starts_with(&wanted),
        "{address} is not below {wanted}"
    );
    let client = connect(address).await;
    let pid = shim_pid(&client, "containerd.task.v3.Task").await;
    shut_down(&client, pid).await;
}

#[tokio::test]
async fn delete_cleans_up_after_a_killed_and_after_a_stuck_shim() {
    for signal in ["-KILL", "-STOP"] {
        let Some(bundle) = Bundle::new(&format!("crash{signal}")) else {
            return;
        };
        let address = bundle.start(b"");
        let client = connect(&address).await;
        let pid = shim_pid(&client, "containerd.task.v2.Task").await;
        let sent = Command::new("kill")
            .args([signal, &pid.to_string()])
            .status();
        assert!(sent.expect("kill can be executed").success());
        let output = bundle.shim("delete", b"");
        assert!(output.status.success());
        let response = DeleteResponse::parse_from_bytes(&output.stdout);
        let response = response.expect("the answer is a DeleteResponse");
        assert_eq!(response.exit_status, 137);
        assert!(response.exited_at.is_some());
        wait_for(|| is_zombie(pid)).await;
        let socket = address.trim_start_matches("unix://");
        assert!(!Path::new(socket).exists() && !bundle.run_dir().exists());
    }
}

/// Starts a shim and kills it before anybody cleans up.
async fn start_and_kill(bundle: &Bundle) -> PathBuf {
    let address = bundle.start(b"");
    let client = connect(&address).await;
    let pid = shim_pid(&client, "containerd.task.v2.Task").await;
    let sent = Command::new("kill")
        .args(["-KILL", &pid.to_string()])
        .status();
    assert!(sent.expect("kill can be executed").success());
    wait_for(|| is_zombie(pid)).await;
    PathBuf::from(address.trim_start_matches("unix://"))
}

#[tokio::test]
async fn delete_without_a_record_removes_the_socket() {
    let Some(bundle) = Bundle::new("norecord") else {
        return;
    };
    let socket = start_and_kill(&bundle).await;
    // As if `start` itself had been killed right after it bound the socket.
    std::fs::remove_dir_all(bundle.run_dir()).expect("there is a record");
    assert!(socket.exists());
    assert!(bundle.shim("delete", b"").status.success());
    assert!(!socket.exists(), "{} is left", socket.display());
}

#[tokio::test]
async fn start_undoes_what_a_dead_shim_of_the_same_id_left() {
    let Some(bundle) = Bundle::new("leftover") else {
        return;
    };
    let socket = start_and_kill(&bundle).await;
    let left = bundle.run_dir().join("jail/share");
    std::fs::create_dir_all(&left).expect("a run directory");
    let address = bundle.start(b"");
    assert_eq!(address, format!("unix://{}", socket.display()));
    assert!(!left.exists(), "{} is left", left.display());
    let client = connect(&address).await;
    let pid = shim_pid(&client, "containerd.task.v2.Task").await;
    shut_down(&client, pid).await;
}

#[test]
fn a_shim_that_cannot_serve_fails_start_and_leaves_nothing() {
    let Some(bundle) = Bundle::new("noroom") else {
        return;
    };
    // Enough descriptors for `start`, too few for the server's runtime.
    let output = Command::new("sh")
        .args(["-c", "ulimit -n 9; exec \"$0\" \"$@\"", SHIM])
        .args(["-namespace", NAMESPACE, "-id", &bundle.id])
        .args(["-address", "", "-publish-binary", "", "start"])
        .current_dir(&bundle.dir)
        .stdin(Stdio::null())
        .output()
        .expect("sh can be executed");
    let errors = String::from_utf8_lossy(&output.stderr);
    assert!(!output.status.success() && output.stdout.is_empty());
    assert!(errors.contains("does not serve: "), "{errors}");
    assert!(errors.contains("Too many open files"), "{errors}");
    assert!(!bundle.run_dir().exists() && !bundle.dir.join("address").exists());
}

#[tokio::test]
async fn a_signal_does_not_end_the_shim() {
    let Some(bundle) = Bundle::new("signal") else {
        return;
    };
    let address = bundle.start(b"");
    let client = connect(&address).await;
    let pid = shim_pid(&client, "containerd.task.v2.Task").await;
    for signal in ["-TERM", "-INT", "-PIPE"] {
        let sent = Command::new("kill")
            .args([signal, &pid.to_string()])
            .status();
        assert!(sent.expect("kill can be executed").success());
        assert_eq!(
            shim_pid(&client, "containerd.task.v2.Task").await,
            pid,
            "after {signal}"
        );
    }
    shut_down(&client, pid).await;
}

#[test]
fn version_and_info_answer_without_any_installation() {
    let run = |flag: &str| Command::new(SHIM).arg(flag).stdin(Stdio::null()).output();
    let version = run("-v").expect("the shim can be executed");
    assert!(version.status.success() && version.stdout.starts_with(b"containerd-shim-rust-v2:"));
    let info = run("-info").expect("the shim can be executed");
    assert!(info.status.success() && info.stderr.is_empty());
    let text = String::from_utf8_lossy(&info.stdout);
    assert!(text.contains("io.containerd.rust.v2"), "{text}");
}

#[test]
fn a_wrong_command_line_is_one_line_on_stderr() {
    let output = Command::new(SHIM)
        .args(["-wat"])
        .output()
        .expect("the shim can be executed");
    assert!(!output.status.success() && output.stdout.is_empty());
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(text, "containerd-shim-rust-v2: unknown flag `-wat`\n");
}

/// The status of a call of the sandbox service, and its text.
async fn sandbox_call(client: &Client, method: &str, message: &impl Message) -> (Code, String) {
    const SERVICE: &str = "containerd.runtime.sandbox.v1.Sandbox";
    match call(client, SERVICE, method, message).await {
        Ok(_) => (Code::OK, String::new()),
        Err(ttrpc::Error::RpcStatus(status)) => (status.code(), status.message),
        Err(error) => panic!("{method}: {error:?}"),
    }
}

/// As far as it goes without a machine; `tests/cases/sandbox_api.rs` goes on.
#[tokio::test]
async fn a_sandbox_is_created_stopped_and_shut_down_without_a_trace() {
    let Some(bundle) = Bundle::new("sandbox") else {
        return;
    };
    let address = bundle.start(b"");
    let client = connect(&address).await;
    let pid = shim_pid(&client, "containerd.task.v2.Task").await;
    let create = CreateSandboxRequest {
        sandbox_id: bundle.id.clone(),
        ..CreateSandboxRequest::default()
    };
    let stop = StopSandboxRequest {
        sandbox_id: bundle.id.clone(),
        ..StopSandboxRequest::default()
    };
    let ask = SandboxStatusRequest {
        sandbox_id: bundle.id.clone(),
        ..SandboxStatusRequest::default()
    };
    assert_eq!(
        sandbox_call(&client, "StopSandbox", &stop).await.0,
        Code::NOT_FOUND
    );
    assert_eq!(
        sandbox_call(&client, "CreateSandbox", &create).await.0,
        Code::OK
    );
    assert_eq!(
        sandbox_call(&client, "CreateSandbox", &create).await.0,
        Code::ALREADY_EXISTS
    );
    let hostname = bundle.dir.join("hostname");
    let mode = std::fs::metadata(&hostname)
        .expect("a file for containers")
        .mode();
    assert_eq!(mode & 0o777, 0o644);
    for method in ["SandboxStatus", "Platform"] {
        assert_eq!(
            sandbox_call(&client, method, &ask).await.0,
            Code::OK,
            "{method}"
        );
    }
    for method in ["PingSandbox", "SandboxMetrics"] {
        let (code, text) = sandbox_call(&client, method, &ask).await;
        assert_eq!(code, Code::FAILED_PRECONDITION, "{method}: {text}");
        assert!(text.contains("is not running"), "{method}: {text}");
    }
    // A container's end is not the pod's, even if it is told so.
    let shutdown = ShutdownRequest {
        id: "a-container".to_owned(),
        now: true,
        ..ShutdownRequest::default()
    };
    let ignored = call(&client, "containerd.task.v2.Task", "Shutdown", &shutdown).await;
    assert!(ignored.is_ok() && !is_zombie(pid));
    for method in ["StopSandbox", "StopSandbox", "WaitSandbox"] {
        assert_eq!(
            sandbox_call(&client, method, &stop).await.0,
            Code::OK,
            "{method}"
        );
    }
    let (code, text) = sandbox_call(&client, "StartSandbox", &ask).await;
    assert_eq!(code, Code::FAILED_PRECONDITION, "{text}");
    let stat = std::fs::File::open(format!("/proc/{pid}/stat")).expect("the shim runs");
    assert_eq!(
        sandbox_call(&client, "ShutdownSandbox", &ask).await.0,
        Code::OK
    );
    wait_for(|| std::io::read_to_string(&stat).is_err() || is_zombie(pid)).await;
    assert!(!hostname.exists() && !bundle.run_dir().exists());
}

#[test]
fn what_was_handed_over_to_runc_is_runcs_to_delete() {
    let Some(bundle) = Bundle::new("handed-over") else {
        return;
    };
    std::fs::write(bundle.dir.join("handed-over-to-runc"), "").expect("a record");
    // Stands for the program found by PATH; the real one runs on the node.
    let program = bundle.dir.join("containerd-shim-runc-v2");
    std::fs::write(&program, "#!/bin/sh\necho runc: \"$@\"\n").expect("a program");
    let executable = std::os::unix::fs::PermissionsExt::from_mode(0o755);
    std::fs::set_permissions(&program, executable).expect("a mode");
    let args = ["-namespace", NAMESPACE, "-id", &bundle.id, "delete"];
    let delete = |path: &Path| {
        let mut command = Command::new(SHIM);
        command
            .args(args)
            .current_dir(&bundle.dir)
            .env("PATH", path);
        command.output().expect("the shim ends")
    };
    let output = delete(&bundle.dir);
    let text = String::from_utf8_lossy(&output.stdout);
    assert_eq!(text, format!("runc: {}\n", args.join(" ")));
    // Without the program it is answered as for any container that is gone.
    let output = delete(Path::new("/nonexistent"));
    let response = DeleteResponse::parse_from_bytes(&output.stdout).expect("an answer");
    assert_eq!(response.exit_status, 137);
}
