//! What the CRI service tells of containers by itself, as a kubelet with the feature
//! `EventedPLEG` listens to it.

use std::sync::mpsc::{Receiver, channel};
use std::thread::{self, JoinHandle};
use std::time::Instant;

use k8s_cri::v1::runtime_service_client::RuntimeServiceClient;
use k8s_cri::v1::{ContainerEventType, GetEventsRequest};
use tokio::sync::oneshot;

use crate::cri::endpoint;
use crate::process::DEADLINE;

/// The stream of GetContainerEvents. containerd keeps what nobody has heard yet, so it may begin
/// with containers of before.
pub struct ContainerEvents {
    told: Receiver<(String, ContainerEventType)>,
    listener: Option<(oneshot::Sender<()>, JoinHandle<()>)>,
}

impl ContainerEvents {
    /// Listens until it is dropped: containerd 1.7 gives each event to one listener only.
    pub fn listen() -> Self {
        let (tell, told) = channel();
        let (end, ended) = oneshot::channel::<()>();
        let listener = thread::spawn(move || {
            let runtime = tokio::runtime::Builder::new_current_thread()
                .enable_all()
                .build()
                .expect("a runtime for the listener");
            let listen = async move {
                let mut client = RuntimeServiceClient::new(endpoint().connect_lazy());
                let answer = client.get_container_events(GetEventsRequest {}).await;
                let mut events = answer.expect("a stream of events").into_inner();
                while let Ok(Some(event)) = events.message().await {
                    let kind = event.container_event_type();
                    if tell.send((event.container_id, kind)).is_err() {
                        break;
                    }
                }
            };
            runtime.block_on(async {
                tokio::spawn(listen);
                // An error is the end, too: that of whoever had the other side.
                drop(ended.await);
            });
        });
        Self {
            told,
            listener: Some((end, listener)),
        }
    }

    /// What is told of these containers until one of them, `last`, is deleted.
    ///
    /// # Panics
    /// If that is not told by the deadline.
    #[track_caller]
    pub fn of(&self, ids: &[String], last: &str) -> Vec<(usize, ContainerEventType)> {
        let deadline = Instant::now() + DEADLINE;
        let mut events = Vec::new();
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let (id, kind) = self
                .told
                .recv_timeout(left)
                .unwrap_or_else(|error| panic!("{error}: {last} was not deleted: {events:?}"));
            if let Some(index) = ids.iter().position(|known| *known == id) {
                events.push((index, kind));
            }
            if id == last && kind == ContainerEventType::ContainerDeletedEvent {
                return events;
            }
        }
    }
}

impl Drop for ContainerEvents {
    fn drop(&mut self) {
        if let Some((end, listener)) = self.listener.take() {
            drop(end);
            drop(listener.join());
        }
    }
}
