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

use crate::error::finish;
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
}

#[async_trait]
impl Task for TaskService {
    async fn create(
        &self,
        _: &TtrpcContext,
        request: CreateTaskRequest,
    ) -> ttrpc::Result<CreateTaskResponse> {
        let id = request.id.clone();
        self.shim
            .run("Create", &id, |shim| create::create(shim, request))
            .await
    }

    async fn start(&self, _: &TtrpcContext, request: StartRequest) -> ttrpc::Result<StartResponse> {
        let id = request.id.clone();
        self.shim
            .run("Start", &id, |shim| start::start(shim, request))
            .await
    }

    async fn exec(&self, _: &TtrpcContext, request: ExecProcessRequest) -> ttrpc::Result<Empty> {
        let id = request.id.clone();
        self.shim
            .run("Exec", &id, |shim| exec::exec(shim, request))
            .await
    }

    async fn kill(&self, _: &TtrpcContext, request: KillRequest) -> ttrpc::Result<Empty> {
        let id = request.id.clone();
        self.shim
            .run("Kill", &id, |shim| kill::kill(shim, request))
            .await
    }

    async fn delete(
        &self,
        _: &TtrpcContext,
        request: DeleteRequest,
    ) -> ttrpc::Result<DeleteResponse> {
        let id = request.id.clone();
        self.shim
            .run("Delete", &id, |shim| delete::delete(shim, request))
            .await
    }

    async fn resize_pty(
        &self,
        _: &TtrpcContext,
        request: ResizePtyRequest,
    ) -> ttrpc::Result<Empty> {
        let id = request.id.clone();
        self.shim
            .run("ResizePty", &id, |shim| resize::resize(shim, request))
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
        self.shim
            .run("Shutdown", &id, |shim| shutdown::shutdown(shim, request))
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
        self.shim
            .run("Pause", &id, |shim| pause::pause(shim, request))
            .await
    }

    async fn resume(&self, _: &TtrpcContext, request: ResumeRequest) -> ttrpc::Result<Empty> {
        let id = request.id.clone();
        self.shim
            .run("Resume", &id, |shim| pause::resume(shim, request))
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
        self.shim
            .run("Update", &id, |shim| update::update(shim, request))
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
