//! The virtio side of the share, and the handle for its exports.

use std::io;
use std::path::Path;
use std::sync::mpsc::{self, Sender};
use std::thread::JoinHandle;
use std::time::Duration;

use thiserror::Error;
use virtio_bindings::virtio_ids::VIRTIO_ID_FS;

use super::tree::{ShareError, Tree};
use super::worker::{Command, Commands, spawn};
use crate::config::{Export, MAX_TAG_LEN, ShareConfig};
use crate::devices::virtio::{ActivateError, Activation, VirtioDevice, copy_config};

/// Request queues. Linux spreads requests over as many as there are vCPUs; one thread
/// serves them, so more would gain nothing.
const REQUEST_QUEUES: u32 = 1;

/// Sizes of the high-priority and the request queue. Linux makes no request with more
/// parts than the queue has descriptors, less four; 1 MiB has 256 pages.
const QUEUE_SIZES: [u16; 2] = [64, 512];

/// Configuration space (5.11.4): the tag and the number of request queues.
const CONFIG_LEN: usize = MAX_TAG_LEN + size_of::<u32>();

/// How long to wait for the thread to change the exports. It may be in a file system
/// call for the guest, which takes long only where storage does.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(5);

/// Why the device could not be built.
#[derive(Debug, Error)]
pub enum FsError {
    /// The host refused a thread or a descriptor.
    #[error("cannot start the thread that serves the share")]
    Start(#[from] io::Error),
    /// One of the configured exports cannot be served.
    #[error(transparent)]
    Share(#[from] ShareError),
}

/// The virtio-fs device.
pub struct Fs {
    config: [u8; CONFIG_LEN],
    commands: Commands,
    thread: Option<JoinHandle<()>>,
}

impl Fs {
    /// A device with the exports of `config`, and its thread, which inherits the
    /// capabilities of the calling one.
    pub fn new(config: &ShareConfig) -> Result<Self, FsError> {
        let (commands, thread) = spawn(Tree::new(config.root.clone()))?;
        let mut space = [0; CONFIG_LEN];
        for (to, from) in space.iter_mut().zip(config.tag.bytes().take(MAX_TAG_LEN)) {
            *to = from;
        }
        space[MAX_TAG_LEN..].copy_from_slice(&REQUEST_QUEUES.to_le_bytes());
        let fs = Self {
            config: space,
            commands,
            thread: Some(thread),
        };
        let control = fs.control();
        for export in &config.exports {
            control.add(export)?;
        }
        Ok(fs)
    }

    /// A handle for the exports.
    pub fn control(&self) -> ShareControl {
        ShareControl {
            commands: self.commands.clone(),
        }
    }
}

impl VirtioDevice for Fs {
    fn id(&self) -> u32 {
        VIRTIO_ID_FS
    }

    fn name(&self) -> &'static str {
        "fs"
    }

    fn queue_sizes(&self) -> &[u16] {
        &QUEUE_SIZES
    }

    /// None: no notification queue (5.11.3).
    fn features(&self) -> u64 {
        0
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        copy_config(&self.config, offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), ActivateError> {
        let (got, want) = (activation.queues.len(), QUEUE_SIZES.len());
        if got != want {
            return Err(ActivateError::QueueCount { got, want });
        }
        if self.commands.send(Command::Activate(activation)) {
            Ok(())
        } else {
            Err(ActivateError::WorkerGone)
        }
    }

    /// Waits for as long as the request being served takes: its buffers are in use.
    fn reset(&mut self) {
        let (done, wait) = mpsc::channel();
        if self.commands.send(Command::Reset(done)) {
            // An error means that the thread has ended, and holds nothing any more.
            wait.recv().ok();
        }
    }
}

impl Drop for Fs {
    fn drop(&mut self) {
        self.commands.send(Command::Stop);
        if let Some(Err(_)) = self.thread.take().map(JoinHandle::join) {
            log::error!("virtio-fs: the thread that serves the share has panicked");
        }
    }
}

/// Changes what is exported while the guest runs.
#[derive(Clone)]
pub struct ShareControl {
    commands: Commands,
}

impl ShareControl {
    /// Exports one more tree. The guest can look it up when this returns.
    pub fn add(&self, export: &Export) -> Result<(), ShareError> {
        self.ask(|answer| Command::Add(export.clone(), answer))
    }

    /// Takes a tree back. When this returns the VMM holds no descriptor below it.
    pub fn remove(&self, path: &Path) -> Result<(), ShareError> {
        self.ask(|answer| Command::Remove(path.to_owned(), answer))
    }

    fn ask(
        &self,
        command: impl FnOnce(Sender<Result<(), ShareError>>) -> Command,
    ) -> Result<(), ShareError> {
        let (answer, wait) = mpsc::channel();
        let unanswered = ShareError::Unanswered {
            seconds: ANSWER_TIMEOUT.as_secs(),
        };
        if !self.commands.send(command(answer)) {
            return Err(unanswered);
        }
        wait.recv_timeout(ANSWER_TIMEOUT).unwrap_or(Err(unanswered))
    }
}
