//! containerd's task service: each method logs, calls its verb and maps the error.
//! The verbs are the modules, one each, and know nothing of ttrpc.
//!
//! Verbs that change something run in a task of their own: containerd giving up on
//! a call does not leave it half done.

mod checkpoint;
mod close_io;
mod connect;
mod create;
mod delete;
mod exec;
mod kill;
mod pause;
mod pids;
mod resize;
mod shutdown;
mod start;
mod state;
mod stats;
mod update;
mod wait;

use std::future::Future;
use std::sync::Arc;

use async_trait::async_trait;
use containerd_shim_protos::api::{
    CheckpointTaskRequest, CloseIORequest, ConnectRequest, ConnectResponse, CreateTaskRequest,
    CreateTaskResponse, DeleteRequest, DeleteResponse, Empty, ExecProcessRequest, KillRequest,
    PauseRequest, PidsRequest, PidsResponse, ResizePtyRequest, ResumeRequest, ShutdownRequest,
    StartRequest, StartResponse, StateRequest, StateResponse, StatsRequest, StatsResponse,
    UpdateTaskRequest, WaitRequest, WaitResponse,
};
use containerd_shim_protos::shim_async::Task;
use ttrpc::asynchronous::TtrpcContext;

use crate::container::process::StateError;
use crate::error::{Error, chain};
use crate::shim::Shim;

/// The service containerd calls.
pub struct TaskService {
    shim: Arc<Shim>,
}

impl TaskService {
    /// The service of a shim.
    pub fn new(shim: Arc<Shim>) -> Self {
        Self { shim }
    }

    /// A process that is found stopped may be so because its machine died, of which
    /// the caller has not heard yet.
    fn explain(&self, error: Error) -> Error {
        let Error::State(state @ StateError::Wrong { .. }) = error else {
            return error;
        };
        match self.shim.slot.get().and_then(|sandbox| sandbox.died_of()) {
            Some(reason) => Error::Died { state, reason },
            None => error,
        }
    }

    /// Runs a verb that changes something, to its end.
    async fn run<T, F>(
        &self,
        verb: &'static str,
        id: &str,
        work: impl FnOnce(Arc<Shim>) -> F,
    ) -> ttrpc::Result<T>
    where
        T: Send + 'static,
        F: Future<Output = Result<T, Error>> + Send + 'static,
    {
        log::debug!("{verb} {id}");
        let result = tokio::spawn(work(self.shim.clone())).await;
        let result = result.unwrap_or(Err(Error::Panicked(verb)));
        finish(verb, id, result.map_err(|error| self.explain(error)))
    }
}

/// Logs a failure and maps it.
fn finish<T>(verb: &'static str, id: &str, result: Result<T, Error>) -> ttrpc::Result<T> {
    result.map_err(|error| {
        // NotFound is an everyday answer: containerd asks to be sure.
        let level = match error.code() {
            ttrpc::Code::NOT_FOUND => log::Level::Debug,
            _ => log::Level::Warn,
        };
        log::log!(level, "{verb} {id}: {}", chain(&error));
        error.into_status()
    })
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let id = request.id.clone();
        self.run("Create", &id, |shim| create::create(shim, request))
            .await
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let id = request.id.clone();
        self.run("Start", &id, |shim| start::start(shim, request))
            .await
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let id = request.id.clone();
        self.run("Exec", &id, |shim| exec::exec(shim, request))
            .await
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let id = request.id.clone();
        self.run("Kill", &id, |shim| kill::kill(shim, request))
            .await
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: DeleteRequest,
    ) -> ttrpc::Result<DeleteResponse> {
        let id = request.id.clone();
        self.run("Delete", &id, |shim| delete::delete(shim, request))
            .await
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let id = request.id.clone();
        self.run("ResizePty", &id, |shim| resize::resize(shim, request))
            .await
    }

    async fn close_io(&self, _: &TtrpcContext, request: CloseIORequest) -> ttrpc::Result<Empty> {
        finish(
            "CloseIO",
            &request.id,
            close_io::close_io(&self.shim, &request),
        )
    }

    async fn shutdown(&self, _: &TtrpcContext, request: ShutdownRequest) -> ttrpc::Result<Empty> {
        let id = request.id.clone();
        self.run("Shutdown", &id, |shim| shutdown::shutdown(shim, request))
            .await
    }

    async fn wait(&self, _: &TtrpcContext, request: WaitRequest) -> ttrpc::Result<WaitResponse> {
        finish("Wait", &request.id, wait::wait(&self.shim, &request).await)
    }

    async fn state(&self, _: &TtrpcContext, request: StateRequest) -> ttrpc::Result<StateResponse> {
        finish("State", &request.id, state::state(&self.shim, &request))
    }

    async fn pids(&self, _: &TtrpcContext, request: PidsRequest) -> ttrpc::Result<PidsResponse> {
        finish("Pids", &request.id, pids::pids(&self.shim, &request).await)
    }

    async fn connect(
        &self,
        _: &TtrpcContext,
        request: ConnectRequest,
    ) -> ttrpc::Result<ConnectResponse> {
        Ok(connect::connect(&self.shim, &request))
    }

    async fn pause(&self, _: &TtrpcContext, request: PauseRequest) -> ttrpc::Result<Empty> {
        let id = request.id.clone();
        self.run("Pause", &id, |shim| pause::pause(shim, request))
            .await
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let id = request.id.clone();
        self.run("Resume", &id, |shim| pause::resume(shim, request))
            .await
    }

    async fn checkpoint(
        &self,
        _: &TtrpcContext,
        request: CheckpointTaskRequest,
    ) -> ttrpc::Result<Empty> {
        finish(
            "Checkpoint",
            &request.id,
            checkpoint::checkpoint(&self.shim, &request),
        )
    }

    async fn update(&self, _: &TtrpcContext, request: UpdateTaskRequest) -> ttrpc::Result<Empty> {
        let id = request.id.clone();
        self.run("Update", &id, |shim| update::update(shim, request))
            .await
    }

    async fn stats(&self, _: &TtrpcContext, request: StatsRequest) -> ttrpc::Result<StatsResponse> {
        finish(
            "Stats",
            &request.id,
            stats::stats(&self.shim, &request).await,
        )
    }
}
