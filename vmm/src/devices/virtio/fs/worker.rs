//! The thread that serves the share.
//!
//! It is the only one that touches exported trees, so it is the only one that needs the
//! capabilities for it, and a file system that hangs stops nothing else. It is made with
//! the device, before other threads give up those capabilities, and then waits for
//! commands and kicks on one epoll set.

use std::os::fd::AsRawFd as _;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::mpsc::{self, Receiver, Sender};
use std::thread::{self, JoinHandle};
use std::{io, mem};

use capctl::prctl::{self, Secbits};
use fuse_backend_rs::api::filesystem::FileSystem as _;
use fuse_backend_rs::api::server::Server;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

use super::request::serve;
use super::tree::{ShareError, Tree};
use crate::config::Export;
use crate::devices::virtio::Activation;
use crate::devices::virtio::pump::QueuePump;

/// Token of the wake-up for commands; queue `n` has token `n`.
const WAKE: u64 = u64::MAX;

/// Requests served before commands are looked at again: each may wait for storage.
const BATCH: usize = 8;

/// What the thread is told.
pub enum Command {
    /// Serve these queues.
    Activate(Activation),
    /// Let go of queues and memory, forget what the guest knows, then answer.
    Reset(Sender<()>),
    /// Export a tree.
    Add(Export, Sender<Result<(), ShareError>>),
    /// Take an export back.
    Remove(PathBuf, Sender<Result<(), ShareError>>),
    /// End.
    Stop,
}

/// Sends commands; cheap to clone.
#[derive(Clone)]
pub struct Commands {
    sender: Sender<Command>,
    wake: Arc<EventFd>,
}

impl Commands {
    /// Queues a command. `false` if the thread is gone.
    pub fn send(&self, command: Command) -> bool {
        self.sender.send(command).is_ok() && self.wake.write(1).is_ok()
    }
}

/// Starts the thread.
pub fn spawn(tree: Tree) -> io::Result<(Commands, JoinHandle<()>)> {
    let (sender, receiver) = mpsc::channel();
    let wake = Arc::new(EventFd::new(EFD_NONBLOCK)?);
    let epoll = Epoll::new()?;
    epoll.ctl(
        ControlOperation::Add,
        wake.as_raw_fd(),
        EpollEvent::new(EventSet::IN, WAKE),
    )?;
    let tree = Arc::new(tree);
    let worker = Worker {
        server: Server::new(tree.clone()),
        tree,
        epoll,
        wake: wake.clone(),
        receiver,
        active: None,
    };
    let thread = thread::Builder::new()
        .name("fs".into())
        .spawn(move || worker.run())?;
    Ok((Commands { sender, wake }, thread))
}

struct Worker {
    tree: Arc<Tree>,
    server: Server<Arc<Tree>>,
    epoll: Epoll,
    wake: Arc<EventFd>,
    receiver: Receiver<Command>,
    active: Option<Activation>,
}

impl Worker {
    fn run(mut self) {
        keep_capabilities_across_users();
        let mut events = [EpollEvent::default(); 4];
        loop {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(error) if error.kind() == io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    log::error!("virtio-fs: cannot wait for requests: {error}");
                    return;
                }
            };
            for event in &events[..count] {
                match event.data() {
                    WAKE => {
                        // EAGAIN: another wake-up has been taken along already.
                        self.wake.read().ok();
                    }
                    queue => self.serve_queue(queue as usize),
                }
            }
            while let Ok(command) = self.receiver.try_recv() {
                if matches!(command, Command::Stop) {
                    return;
                }
                self.obey(command);
            }
        }
    }

    fn obey(&mut self, command: Command) {
        match command {
            Command::Activate(activation) => {
                if let Err(error) = self.activate(activation) {
                    log::error!("virtio-fs: cannot serve the queues: {error}");
                }
            }
            Command::Reset(done) => {
                self.reset();
                // Nobody waits any more when the VMM is ending.
                done.send(()).ok();
            }
            Command::Add(export, answer) => {
                let path = export.path.clone();
                let result = self.tree.add(&export);
                let added = result.is_ok();
                // Whoever asked has given up: to them it has failed, so undo it.
                if answer.send(result).is_err() && added {
                    self.tree.remove(&path).ok();
                }
            }
            Command::Remove(path, answer) => {
                answer.send(self.tree.remove(&path)).ok();
            }
            Command::Stop => {}
        }
    }

    fn activate(&mut self, mut activation: Activation) -> io::Result<()> {
        for index in 0..activation.queues.len() {
            let kick = activation.queues[index].kick().as_raw_fd();
            let event = EpollEvent::new(EventSet::IN, index as u64);
            if let Err(error) = self.epoll.ctl(ControlOperation::Add, kick, event) {
                self.unwatch(&activation.queues[..index]);
                // The driver learns that the device needs a reset.
                activation.queues.iter_mut().for_each(QueuePump::fail);
                return Err(error);
            }
        }
        let queues = activation.queues.len();
        self.active = Some(activation);
        // Kicks may predate the activation.
        (0..queues).for_each(|index| self.serve_queue(index));
        Ok(())
    }

    fn reset(&mut self) {
        let Some(activation) = mem::take(&mut self.active) else {
            return;
        };
        self.unwatch(&activation.queues);
        // A driver that comes back starts with INIT and knows no inode.
        self.tree.destroy();
    }

    fn unwatch(&self, queues: &[QueuePump]) {
        for queue in queues {
            let kick = queue.kick().as_raw_fd();
            let none = EpollEvent::default();
            if let Err(error) = self.epoll.ctl(ControlOperation::Delete, kick, none) {
                log::error!("virtio-fs: cannot let go of a queue: {error}");
            }
        }
    }

    fn serve_queue(&mut self, index: usize) {
        let Some(Activation { mem, queues, .. }) = &mut self.active else {
            return;
        };
        if let Some(queue) = queues.get_mut(index) {
            queue.ack_kick();
            queue.serve(BATCH, |chain| serve(&self.server, mem, chain));
        }
    }
}

/// Lets this thread keep its capabilities while it acts as another user.
///
/// What a request creates is created with the caller's user and group, and normally a
/// change of user empties the effective capabilities. Then the host would check
/// permissions again, without the caller's supplementary groups, which FUSE does not
/// carry: a process that may write to a directory by such a group could not create a
/// file there. The guest's kernel has checked already.
fn keep_capabilities_across_users() {
    let wanted = Secbits::NO_SETUID_FIXUP;
    let done = prctl::get_securebits().and_then(|bits| match bits.contains(wanted) {
        true => Ok(()),
        false => prctl::set_securebits(bits | wanted),
    });
    if let Err(error) = done {
        log::warn!(
            "virtio-fs: supplementary groups of guest users will not count when they \
             create files: {error} (CAP_SETPCAP is needed)"
        );
    }
}
