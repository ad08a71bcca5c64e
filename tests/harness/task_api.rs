//! The task API of a running shim, spoken without containerd: for requests that `ctr` has
//! no words for, and the same for runc's shim as for ours.

use std::cell::Cell;
use std::fmt;
use std::fs::{self, File, OpenOptions};
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;
use std::path::Path;
use std::thread;
use std::time::Duration;

use containerd_shim_protos::api::{
    ConnectRequest, ConnectResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest,
    StartRequest, StartResponse, WaitRequest, WaitResponse,
};
use containerd_shim_protos::protobuf::Message;
use containerd_shim_protos::protobuf::well_known_types::any::Any;
use containerd_shim_protos::ttrpc::{Client, Code, Error, proto};
use rustix::fs::{CWD, FileType, Mode, OFlags, mknodat};
use serde_json::Value;
use tempfile::TempDir;

use crate::{ctr, process};

/// How often the output of an exec is read.
const READ_EVERY: Duration = Duration::from_millis(20);
/// What containerd calls the type of an exec's `Process` object.
const PROCESS: &str = "types.containerd.io/opencontainers/runtime-spec/1/Process";

/// A shim's refusal of a request.
#[derive(Debug)]
pub struct Refusal {
    /// The status code.
    pub code: Code,
    /// The sentence that goes with it.
    pub text: String,
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{:?}: {}", self.code, self.text)
    }
}

/// A connection to a shim.
#[derive(Clone)]
pub(crate) struct Connection {
    client: Client,
    service: &'static str,
}

impl Connection {
    /// To one of the services behind a socket.
    pub(crate) fn new(client: Client, service: &'static str) -> Self {
        Self { client, service }
    }

    #[track_caller]
    pub(crate) fn call<Q: Message, A: Message>(
        &self,
        method: &str,
        request: &Q,
    ) -> Result<A, Refusal> {
        let request = proto::Request {
            service: self.service.into(),
            method: method.into(),
            timeout_nano: i64::try_from(process::DEADLINE.as_nanos()).unwrap_or(i64::MAX),
            payload: request.write_to_bytes().expect("a message"),
            ..Default::default()
        };
        match self.client.request(request) {
            Ok(answer) => Ok(A::parse_from_bytes(&answer.payload).expect("an answer of its type")),
            Err(Error::RpcStatus(status)) => Err(Refusal {
                code: status.code(),
                text: status.message,
            }),
            Err(error) => Err(Refusal {
                code: Code::UNAVAILABLE,
                text: format!("{method}: no answer: {error}"),
            }),
        }
    }
}

/// A connection to the shim of one container.
pub struct TaskApi {
    connection: Connection,
    container: String,
    fifos: TempDir,
    execs: Cell<u32>,
}

impl TaskApi {
    /// Connects to the shim of a container that containerd started.
    ///
    /// # Panics
    /// If it does not listen or serves neither version of the task API.
    #[track_caller]
    pub fn of(container: &str) -> Self {
        let client = Client::connect(&address(container)).expect("the shim listens");
        let service = "containerd.task.v2.Task";
        let mut api = Self {
            connection: Connection { client, service },
            container: container.into(),
            fifos: TempDir::new().expect("a temporary directory"),
            execs: Cell::new(0),
        };
        // The second version of the API is the first under another name; runc's shim of
        // containerd 2 serves only that one.
        let request = ConnectRequest {
            id: container.into(),
            ..Default::default()
        };
        if api
            .call::<_, ConnectResponse>("Connect", &request)
            .is_err_and(|refusal| refusal.text.contains("service"))
        {
            api.connection.service = "containerd.task.v3.Task";
            let connected = api.call::<_, ConnectResponse>("Connect", &request);
            assert!(connected.is_ok(), "{connected:?}");
        }
        api
    }

    /// The container's id.
    pub fn container(&self) -> &str {
        &self.container
    }

    /// One request, answered or refused by the shim. No answer by the deadline, or a broken
    /// connection, is a refusal with a code that no shim uses.
    ///
    /// # Panics
    /// If the answer is not of its type.
    #[track_caller]
    pub fn call<Q: Message, A: Message>(&self, method: &str, request: &Q) -> Result<A, Refusal> {
        self.connection.call(method, request)
    }

    /// Adds a process to the container and leaves it unstarted.
    ///
    /// # Panics
    /// If its output's fifo cannot be made.
    #[track_caller]
    pub fn exec(&self, process: &Value) -> Result<Exec<'_>, Refusal> {
        self.execs.set(self.execs.get() + 1);
        let id = format!("exec-{}", self.execs.get());
        let terminal = process["terminal"].as_bool().unwrap_or(false);
        let output = Fifo::make(&self.fifos.path().join(&id));
        // A terminal has one output.
        let errors = (!terminal).then(|| Fifo::make(&self.fifos.path().join(format!("{id}-err"))));
        let request = ExecProcessRequest {
            id: self.container.clone(),
            exec_id: id.clone(),
            terminal,
            stdout: output.path.clone(),
            stderr: errors
                .as_ref()
                .map_or_else(String::new, |fifo| fifo.path.clone()),
            spec: Some(Any {
                type_url: PROCESS.into(),
                value: process.to_string().into_bytes(),
                ..Default::default()
            })
            .into(),
            ..Default::default()
        };
        self.call::<_, Empty>("Exec", &request)?;
        Ok(Exec {
            api: self,
            id,
            output,
            errors,
        })
    }

    /// Waits for the container's init or, with an id, an exec and gives its exit status.
    pub fn wait(&self, exec_id: &str) -> Result<u32, Refusal> {
        self.connection
            .call::<_, WaitResponse>("Wait", &self.to_wait(exec_id))
            .map(|answer| answer.exit_status)
    }

    fn to_wait(&self, exec_id: &str) -> WaitRequest {
        WaitRequest {
            id: self.container.clone(),
            exec_id: exec_id.into(),
            ..Default::default()
        }
    }
}

/// A process added to a container.
pub struct Exec<'a> {
    api: &'a TaskApi,
    /// Its id.
    pub id: String,
    output: Fifo,
    errors: Option<Fifo>,
}

/// How an exec ended and what it wrote.
#[derive(Debug)]
pub struct Ended {
    /// The exit status the shim reports.
    pub status: u32,
    /// Its standard output, or everything on its terminal.
    pub stdout: String,
    /// Its standard error.
    pub stderr: String,
}

impl Exec<'_> {
    /// Starts it.
    pub fn start(&self) -> Result<(), Refusal> {
        let request = StartRequest {
            id: self.api.container.clone(),
            exec_id: self.id.clone(),
            ..Default::default()
        };
        self.api
            .call::<_, StartResponse>("Start", &request)
            .map(drop)
    }

    /// Reads its output until it has ended, as clients do, and deletes it.
    ///
    /// # Panics
    /// If the connection to the shim panicked.
    #[track_caller]
    pub fn finish(mut self) -> Result<Ended, Refusal> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let mut read = |exec: &mut Self| {
            stdout.extend(exec.output.rest());
            stderr.extend(exec.errors.iter_mut().flat_map(Fifo::rest));
        };
        let (connection, request) = (self.api.connection.clone(), self.api.to_wait(&self.id));
        let waiter = thread::spawn(move || connection.call::<_, WaitResponse>("Wait", &request));
        while !waiter.is_finished() {
            read(&mut self);
            thread::sleep(READ_EVERY);
        }
        let status = waiter.join().expect("a thread that waits")?.exit_status;
        self.delete()?;
        read(&mut self);
        let text = |bytes: Vec<u8>| String::from_utf8_lossy(&bytes).into_owned();
        Ok(Ended {
            status,
            stdout: text(stdout),
            stderr: text(stderr),
        })
    }

    /// Deletes it.
    pub fn delete(&self) -> Result<(), Refusal> {
        let request = DeleteRequest {
            id: self.api.container.clone(),
            exec_id: self.id.clone(),
            ..Default::default()
        };
        self.api
            .call::<_, DeleteResponse>("Delete", &request)
            .map(drop)
    }
}

/// A fifo open for reading before anybody writes.
struct Fifo {
    path: String,
    reader: File,
}

impl Fifo {
    #[track_caller]
    fn make(path: &Path) -> Self {
        mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a fifo");
        let reader = OpenOptions::new()
            .read(true)
            .custom_flags(OFlags::NONBLOCK.bits().cast_signed())
            .open(path)
            .expect("a fifo to read from");
        Self {
            path: path.to_string_lossy().into_owned(),
            reader,
        }
    }

    /// What is in it now.
    fn rest(&mut self) -> Vec<u8> {
        let mut bytes = Vec::new();
        // EAGAIN instead of the end while somebody holds it open.
        drop(self.reader.read_to_end(&mut bytes));
        bytes
    }
}

/// Where the shim of a container listens, as it or containerd wrote it into the bundle.
#[track_caller]
fn address(container: &str) -> String {
    let bundle = Path::new(ctr::BUNDLES).join(container);
    if let Ok(address) = fs::read_to_string(bundle.join("address")) {
        return address.trim().into();
    }
    let text = fs::read_to_string(bundle.join("bootstrap.json"))
        .expect("address or bootstrap.json in the bundle");
    let parameters: Value = serde_json::from_str(&text).expect("JSON");
    parameters["address"]
        .as_str()
        .expect("the shim's address")
        .into()
}
