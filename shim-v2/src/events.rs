//! Stop 12 of twelve: the way back up. Events reach containerd in the order in
//! which they were queued, each until it was accepted.
//!
//! One queue, one sender task. containerd may be restarting for as long as it
//! likes: the sender tries again, with growing pauses, and the queue is bounded
//! at [`MAX_QUEUED`] events, the oldest going first. Nothing waits for the queue
//! except the shim's own end, and that for [`FLUSH`] at most.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, SystemTime};

use async_trait::async_trait;
use containerd_shim_protos::events::task::{
    TaskCreate, TaskDelete, TaskExecAdded, TaskExecStarted, TaskExit, TaskOOM, TaskPaused,
    TaskResumed, TaskStart,
};
use containerd_shim_protos::shim::event::Envelope;
use containerd_shim_protos::shim::events::ForwardRequest;
use containerd_shim_protos::shim_async::{Client, EventsClient};
use containerd_shim_protos::topics;
use protobuf::MessageFull;
use protobuf::well_known_types::any::Any;
use tokio::sync::{Notify, watch};

/// Most events kept while containerd does not answer.
const MAX_QUEUED: usize = 10_000;
/// Deadline of one delivery.
const SEND_DEADLINE: Duration = Duration::from_secs(5);
/// Pauses between attempts, the last one repeating.
const PAUSES_MS: [u64; 5] = [100, 250, 500, 1000, 5000];
/// How long the shim's end waits for the queue to empty.
const FLUSH: Duration = Duration::from_secs(2);

/// A message that is published under a topic of its own.
pub trait Event: MessageFull {
    /// containerd's topic.
    const TOPIC: &'static str;
}

macro_rules! event {
    ($message:ty, $topic:ident) => {
        impl Event for $message {
            const TOPIC: &'static str = topics::$topic;
        }
    };
}
event!(TaskCreate, TASK_CREATE_EVENT_TOPIC);
event!(TaskStart, TASK_START_EVENT_TOPIC);
event!(TaskExit, TASK_EXIT_EVENT_TOPIC);
event!(TaskDelete, TASK_DELETE_EVENT_TOPIC);
event!(TaskExecAdded, TASK_EXEC_ADDED_EVENT_TOPIC);
event!(TaskExecStarted, TASK_EXEC_STARTED_EVENT_TOPIC);
event!(TaskOOM, TASK_OOM_EVENT_TOPIC);
event!(TaskPaused, TASK_PAUSED_EVENT_TOPIC);
event!(TaskResumed, TASK_RESUMED_EVENT_TOPIC);

/// Where events go; in tests a recorder.
#[async_trait]
pub trait EventSink: Send + Sync + 'static {
    /// Delivers one event. An error means "not accepted, try again".
    async fn send(&self, envelope: &Envelope) -> Result<(), String>;
}

/// The sending end of the queue; cheap to clone.
#[derive(Clone)]
pub struct Events {
    namespace: String,
    queue: Arc<Queue>,
}

struct Queue {
    pending: Mutex<VecDeque<Envelope>>,
    added: Notify,
    empty: watch::Sender<bool>,
    closed: AtomicBool,
}

impl Events {
    /// Starts the sender task.
    pub fn start(namespace: &str, sink: impl EventSink) -> Self {
        let queue = Arc::new(Queue {
            pending: Mutex::default(),
            added: Notify::new(),
            empty: watch::Sender::new(true),
            closed: AtomicBool::new(false),
        });
        tokio::spawn(deliver(queue.clone(), sink));
        Self {
            namespace: namespace.to_owned(),
            queue,
        }
    }

    /// Queues an event behind all earlier ones; never waits.
    pub fn publish<E: Event>(&self, event: &E) {
        if self.queue.closed.load(Ordering::Relaxed) {
            return log::debug!("event {} comes after the last", E::TOPIC);
        }
        let value = match event.write_to_bytes() {
            Ok(value) => value,
            Err(error) => return log::error!("event {} cannot be encoded: {error}", E::TOPIC),
        };
        let envelope = Envelope {
            timestamp: Some(SystemTime::now().into()).into(),
            namespace: self.namespace.clone(),
            topic: E::TOPIC.to_owned(),
            event: Some(Any {
                type_url: E::descriptor().full_name().to_owned(),
                value,
                ..Any::default()
            })
            .into(),
            ..Envelope::default()
        };
        let mut pending = self.queue.lock();
        if pending.len() == MAX_QUEUED {
            pending.pop_front();
            log::error!("{MAX_QUEUED} events wait for containerd, the oldest is dropped");
        }
        pending.push_back(envelope);
        self.queue.empty.send_replace(false);
        drop(pending);
        self.queue.added.notify_one();
    }

    /// Nothing more is told: what happens from now on containerd tells by itself.
    pub fn close(&self) {
        self.queue.closed.store(true, Ordering::Relaxed);
    }

    /// Waits until everything queued was accepted, but no longer than [`FLUSH`].
    pub async fn flush(&self) {
        let mut empty = self.queue.empty.subscribe();
        if tokio::time::timeout(FLUSH, empty.wait_for(|empty| *empty))
            .await
            .is_err()
        {
            let lost = self.queue.lock().len();
            log::warn!("containerd did not accept {lost} events before the shim's end");
        }
    }
}

impl Queue {
    fn lock(&self) -> std::sync::MutexGuard<'_, VecDeque<Envelope>> {
        self.pending.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn front(&self) -> Option<Envelope> {
        self.lock().front().cloned()
    }

    /// Removes the event just sent, unless overflow already did.
    fn sent(&self, envelope: &Envelope) {
        let mut pending = self.lock();
        if pending.front() == Some(envelope) {
            pending.pop_front();
        }
        if pending.is_empty() {
            self.empty.send_replace(true);
        }
    }
}

async fn deliver(queue: Arc<Queue>, sink: impl EventSink) {
    loop {
        let Some(envelope) = queue.front() else {
            queue.added.notified().await;
            continue;
        };
        let mut pauses = PAUSES_MS.iter().copied();
        let mut pause = PAUSES_MS[0];
        while let Err(error) = sink.send(&envelope).await {
            pause = pauses.next().unwrap_or(pause);
            log::warn!(
                "event {} not accepted ({error}), again in {pause} ms",
                envelope.topic
            );
            tokio::time::sleep(Duration::from_millis(pause)).await;
        }
        queue.sent(&envelope);
    }
}

/// containerd's ttrpc event service.
pub struct Containerd {
    address: String,
    client: Mutex<Option<EventsClient>>,
}

impl Containerd {
    /// Takes the value of `TTRPC_ADDRESS`, a socket path with or without `unix://`.
    /// Empty (CRI-O sets none) means that events are only logged.
    pub fn new(ttrpc_address: &str) -> Self {
        let path = ttrpc_address.trim_start_matches("unix://");
        Self {
            address: if path.is_empty() {
                String::new()
            } else {
                format!("unix://{path}")
            },
            client: Mutex::new(None),
        }
    }

    fn client(&self) -> std::sync::MutexGuard<'_, Option<EventsClient>> {
        self.client.lock().unwrap_or_else(PoisonError::into_inner)
    }

    async fn connected(&self) -> ttrpc::Result<EventsClient> {
        let known = self.client().clone();
        if let Some(client) = known {
            return Ok(client);
        }
        let client = EventsClient::new(Client::connect(&self.address).await?);
        *self.client() = Some(client.clone());
        Ok(client)
    }

    async fn forward(&self, request: &ForwardRequest) -> Result<(), String> {
        let deadline = ttrpc::context::with_duration(SEND_DEADLINE);
        let client = self.connected().await.map_err(|error| error.to_string())?;
        match client.forward(deadline, request).await {
            Ok(_) => Ok(()),
            // containerd understood the call and refuses the event: trying again changes nothing.
            Err(ttrpc::Error::RpcStatus(status)) if is_final(&status) => {
                log::warn!("containerd refused an event: {}", status.message);
                Ok(())
            }
            Err(error) => {
                *self.client() = None;
                Err(error.to_string())
            }
        }
    }
}

#[async_trait]
impl EventSink for Containerd {
    async fn send(&self, envelope: &Envelope) -> Result<(), String> {
        if self.address.is_empty() {
            log::info!("event {}", envelope.topic);
            return Ok(());
        }
        let request = ForwardRequest {
            envelope: Some(envelope.clone()).into(),
            ..ForwardRequest::default()
        };
        // A connection kept since the last event may have died with a former containerd.
        let was_kept = self.client().is_some();
        match self.forward(&request).await {
            Err(_) if was_kept => self.forward(&request).await,
            result => result,
        }
    }
}

fn is_final(status: &ttrpc::Status) -> bool {
    use ttrpc::Code::{INVALID_ARGUMENT, NOT_FOUND, UNIMPLEMENTED};
    let code = status.code.enum_value();
    matches!(code, Ok(INVALID_ARGUMENT | NOT_FOUND | UNIMPLEMENTED))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Refuses every second attempt and records what it accepted.
    #[derive(Clone, Default)]
    struct Recorder(Arc<Mutex<(usize, Vec<String>)>>);

    #[async_trait]
    impl EventSink for Recorder {
        async fn send(&self, envelope: &Envelope) -> Result<(), String> {
            let mut state = self.0.lock().unwrap();
            state.0 += 1;
            if state.0 % 2 == 1 {
                return Err("busy".to_owned());
            }
            state.1.push(envelope.topic.clone());
            Ok(())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn order_survives_refusals_and_nothing_follows_the_end() {
        let recorder = Recorder::default();
        let events = Events::start("ns", recorder.clone());
        events.publish(&TaskCreate::default());
        events.publish(&TaskStart::default());
        events.publish(&TaskExit::default());
        events.publish(&TaskDelete::default());
        events.close();
        events.publish(&TaskExit::default());
        events.flush().await;
        let topics = recorder.0.lock().unwrap().1.clone();
        assert_eq!(
            topics,
            [
                "/tasks/create",
                "/tasks/start",
                "/tasks/exit",
                "/tasks/delete"
            ]
        );
    }

    struct Deaf;

    #[async_trait]
    impl EventSink for Deaf {
        async fn send(&self, _: &Envelope) -> Result<(), String> {
            Err("nobody there".to_owned())
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_queue_is_bounded_and_the_end_does_not_wait_for_ever() {
        let events = Events::start("ns", Deaf);
        for _ in 0..MAX_QUEUED + 5 {
            events.publish(&TaskExit::default());
        }
        assert_eq!(events.queue.lock().len(), MAX_QUEUED);
        events.flush().await;
    }

    #[test]
    fn topics_and_type_urls_are_the_ones_containerd_registers() {
        fn check<E: Event>(name: &str, topic: &str) {
            assert_eq!(
                E::descriptor().full_name(),
                format!("containerd.events.{name}")
            );
            assert_eq!(E::TOPIC, topic);
        }
        check::<TaskCreate>("TaskCreate", "/tasks/create");
        check::<TaskStart>("TaskStart", "/tasks/start");
        check::<TaskExit>("TaskExit", "/tasks/exit");
        check::<TaskDelete>("TaskDelete", "/tasks/delete");
        check::<TaskExecAdded>("TaskExecAdded", "/tasks/exec-added");
        check::<TaskExecStarted>("TaskExecStarted", "/tasks/exec-started");
        check::<TaskOOM>("TaskOOM", "/tasks/oom");
        check::<TaskPaused>("TaskPaused", "/tasks/paused");
        check::<TaskResumed>("TaskResumed", "/tasks/resumed");
    }
}
