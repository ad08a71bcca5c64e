//! A FUSE client on the driver's half of the queues.
//!
//! It writes the wire format by hand (Linux's `fuse.h`), so that it does not share a
//! mistake with the server.

use std::path::{Path, PathBuf};

use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::tempdir::TempDir;

use super::super::*;
use crate::config::{CachePolicy, Export, ShareConfig};
use crate::devices::virtio::{Activation, VirtioDevice};
use crate::testing::{GuestQueue, RING_FEATURES, ram};

pub const LOOKUP: u32 = 1;
pub const FORGET: u32 = 2;
pub const GETATTR: u32 = 3;
pub const SETATTR: u32 = 4;
pub const SYMLINK: u32 = 6;
pub const MKNOD: u32 = 8;
pub const MKDIR: u32 = 9;
pub const UNLINK: u32 = 10;
pub const RMDIR: u32 = 11;
pub const RENAME: u32 = 12;
pub const LINK: u32 = 13;
pub const OPEN: u32 = 14;
pub const READ: u32 = 15;
pub const WRITE: u32 = 16;
pub const GETXATTR: u32 = 22;
pub const LISTXATTR: u32 = 23;
pub const INIT: u32 = 26;
pub const OPENDIR: u32 = 27;
pub const READDIR: u32 = 28;
pub const CREATE: u32 = 35;
pub const DESTROY: u32 = 38;
pub const BATCH_FORGET: u32 = 42;
pub const READDIRPLUS: u32 = 44;
pub const RENAME2: u32 = 45;
pub const LSEEK: u32 = 46;

pub const ROOT: u64 = 1;

const IN_HEADER: usize = 40;
const OUT_HEADER: usize = 16;

/// Where a test's files are.
pub struct Host {
    dir: TempDir,
}

impl Host {
    /// `share/` with two trees `c1/rootfs` and `c1/volume`, and `outside/victim` that no
    /// request may touch.
    pub fn new() -> Self {
        let host = Self {
            dir: TempDir::new().unwrap(),
        };
        for dir in ["share/c1/rootfs", "share/c1/volume", "outside"] {
            std::fs::create_dir_all(host.path(dir)).unwrap();
        }
        std::fs::write(host.path("outside/victim"), "untouched").unwrap();
        std::fs::write(host.path("share/c1/victim"), "untouched").unwrap();
        host
    }

    pub fn path(&self, below: &str) -> PathBuf {
        self.dir.as_path().join(below)
    }

    pub fn write(&self, below: &str, content: &str) {
        std::fs::write(self.path(below), content).unwrap();
    }

    /// Every path outside the exported trees, sorted.
    pub fn outside(&self) -> Vec<PathBuf> {
        let mut found = Vec::new();
        let mut todo = vec![self.dir.as_path().to_owned()];
        let exports = ["share/c1/rootfs", "share/c1/volume"].map(|path| self.path(path));
        while let Some(dir) = todo.pop() {
            for entry in std::fs::read_dir(dir).unwrap() {
                let path = entry.unwrap().path();
                if path.is_dir() && !path.is_symlink() && !exports.contains(&path) {
                    todo.push(path.clone());
                }
                found.push(path);
            }
        }
        found.sort();
        found
    }

    /// Descriptors of this process on or below a path.
    pub fn descriptors(&self, below: &str) -> usize {
        let path = self.path(below);
        let opened = |entry: std::fs::DirEntry| std::fs::read_link(entry.path()).ok();
        std::fs::read_dir("/proc/self/fd")
            .unwrap()
            .filter_map(|entry| opened(entry.unwrap()))
            .filter(|target| target.starts_with(&path))
            .count()
    }
}

pub fn rootfs() -> Export {
    export("c1/rootfs", CachePolicy::Always)
}

pub fn volume() -> Export {
    export("c1/volume", CachePolicy::Revalidate)
}

pub fn export(path: &str, cache: CachePolicy) -> Export {
    Export {
        path: Path::new(path).into(),
        cache,
    }
}

/// What the guest knows of a name.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Found {
    pub node: u64,
    pub generation: u64,
    pub name_valid_s: u64,
    pub attr_valid_s: u64,
    pub mode: u32,
}

/// The guest.
pub struct Client {
    pub fs: Fs,
    pub host: Host,
    pub queue: GuestQueue,
    pub hiprio: GuestQueue,
    epoll: Epoll,
    unique: u64,
}

impl Client {
    /// A mounted device with the given exports.
    pub fn new(exports: Vec<Export>) -> Self {
        let mut client = Self::unmounted(Host::new(), exports);
        client.activate();
        client.init();
        client
    }

    pub fn unmounted(host: Host, exports: Vec<Export>) -> Self {
        let config = ShareConfig {
            tag: "share".into(),
            root: host.path("share"),
            exports,
        };
        let fs = Fs::new(&config).unwrap();
        let mem = ram();
        Self {
            fs,
            host,
            hiprio: GuestQueue::new(&mem, 0x10_0000, 64),
            queue: GuestQueue::new(&mem, 0x30_0000, 512),
            epoll: Epoll::new().unwrap(),
            unique: 0,
        }
    }

    /// Hands fresh queues to the device.
    pub fn activate(&mut self) {
        let mem = ram();
        self.hiprio = GuestQueue::new(&mem, 0x10_0000, 64);
        self.queue = GuestQueue::new(&mem, 0x30_0000, 512);
        let mut features = RING_FEATURES;
        // An interrupt for each reply, so that waiting is simple.
        features.event_idx = false;
        let queues = vec![
            self.hiprio.pump_with(features),
            self.queue.pump_with(features),
        ];
        let interrupt = self.queue.interrupt().irqfd();
        let fd = std::os::fd::AsRawFd::as_raw_fd(interrupt);
        let event = EpollEvent::new(EventSet::IN, 0);
        self.epoll.ctl(ControlOperation::Add, fd, event).unwrap();
        let activation = Activation {
            mem,
            queues,
            features: 0,
        };
        self.fs.activate(activation).unwrap();
    }

    pub fn init(&mut self) {
        // Protocol 7.38 and every feature Linux 6.12 offers in the first word.
        let mut body = words(&[7, 38, 0x20000, 0x73ff_ffff]);
        body.extend([0; 48]);
        let reply = self.ask(INIT, 0, &body).unwrap();
        assert_eq!(reply[..4], 7u32.to_le_bytes());
    }

    /// A request with its header; the reply's body or its errno.
    pub fn ask(&mut self, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        self.ask_as(0, opcode, node, body)
    }

    /// The same, on behalf of another user and group of the guest.
    pub fn ask_as(&mut self, id: u32, opcode: u32, node: u64, body: &[u8]) -> Result<Vec<u8>, i32> {
        self.unique += 1;
        let mut request = words(&[(IN_HEADER + body.len()) as u32, opcode]);
        request.extend(self.unique.to_le_bytes());
        request.extend(node.to_le_bytes());
        request.extend(words(&[id, id, 0, 0]));
        request.extend(body);
        let unique = self.unique;
        let reply = self.exchange(&request, 8192).expect("a reply");
        assert_eq!(reply[8..16], unique.to_le_bytes());
        match i32::from_le_bytes(reply[4..8].try_into().unwrap()) {
            0 => Ok(reply[OUT_HEADER..].to_vec()),
            error => Err(-error),
        }
    }

    /// Any bytes as a request. `None` if the device gave the chain back without a reply;
    /// the length of a reply is always the one it states.
    pub fn exchange(&mut self, request: &[u8], room: u32) -> Option<Vec<u8>> {
        // Cut in odd places: header, arguments and room are anything but descriptors.
        let (first, second) = request.split_at(request.len().min(29));
        let parts = [
            self.queue.readable(first),
            self.queue.readable(second),
            self.queue.writable(room.min(7)),
            self.queue.writable(room.saturating_sub(7)),
        ];
        let head = self.queue.add(&parts);
        self.queue.kick().write(1).unwrap();
        let (used, len) = self.wait();
        assert_eq!(used, head);
        let mut reply = self.queue.bytes(parts[2]);
        reply.extend(self.queue.bytes(parts[3]));
        reply.truncate(len as usize);
        if reply.is_empty() {
            return None;
        }
        assert_eq!(
            reply[..4],
            len.to_le_bytes(),
            "length used and stated differ"
        );
        Some(reply)
    }

    /// The next chain the device gives back.
    pub fn wait(&mut self) -> (u16, u32) {
        loop {
            if let Some(used) = self.queue.used() {
                return used;
            }
            let mut events = [EpollEvent::default()];
            let count = self.epoll.wait(10_000, &mut events).unwrap();
            assert_eq!(count, 1, "the device does not answer");
            self.queue.interrupted();
        }
    }

    pub fn lookup(&mut self, parent: u64, name: &str) -> Result<Found, i32> {
        let reply = self.ask(LOOKUP, parent, &cstr(name))?;
        Ok(Found {
            node: u64_at(&reply, 0),
            generation: u64_at(&reply, 8),
            name_valid_s: u64_at(&reply, 16),
            attr_valid_s: u64_at(&reply, 24),
            mode: u32_at(&reply, 40 + 60),
        })
    }

    /// The node at a path from the root.
    pub fn walk(&mut self, path: &str) -> Result<Found, i32> {
        let mut found = Err(0);
        let mut node = ROOT;
        for name in path.split('/') {
            found = self.lookup(node, name);
            node = found?.node;
        }
        found
    }

    pub fn open(&mut self, node: u64, flags: i32) -> Result<u64, i32> {
        let reply = self.ask(OPEN, node, &words(&[flags as u32, 0]))?;
        Ok(u64_at(&reply, 0))
    }

    pub fn read(&mut self, node: u64, handle: u64, len: u32) -> Result<Vec<u8>, i32> {
        self.ask(READ, node, &io_args(handle, 0, len))
    }

    /// Names in a directory but for the two that are in each.
    pub fn list(&mut self, node: u64) -> Result<Vec<String>, i32> {
        let handle = u64_at(&self.ask(OPENDIR, node, &words(&[0, 0]))?, 0);
        let reply = self.ask(READDIR, node, &io_args(handle, 0, 4096))?;
        let mut names = Vec::new();
        let mut at = 0;
        while at < reply.len() {
            let len = u32_at(&reply, at + 16) as usize;
            let name = reply[at + 24..at + 24 + len].to_vec();
            names.push(String::from_utf8(name).unwrap());
            at += (24 + len).next_multiple_of(8);
        }
        assert_eq!(names[..2], [".", ".."]);
        names.drain(..2);
        names.sort();
        Ok(names)
    }
}

/// The arguments of READ, READDIR and READDIRPLUS, and the first of WRITE.
pub fn io_args(handle: u64, offset: u64, len: u32) -> Vec<u8> {
    let mut body = longs(&[handle, offset]);
    body.extend(words(&[len, 0, 0, 0, 0, 0]));
    body
}

pub fn words(words: &[u32]) -> Vec<u8> {
    words.iter().flat_map(|word| word.to_le_bytes()).collect()
}

pub fn longs(longs: &[u64]) -> Vec<u8> {
    longs.iter().flat_map(|long| long.to_le_bytes()).collect()
}

pub fn cstr(text: &str) -> Vec<u8> {
    [text.as_bytes(), b"\0"].concat()
}

pub fn u32_at(bytes: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(bytes[at..at + 4].try_into().unwrap())
}

pub fn u64_at(bytes: &[u8], at: usize) -> u64 {
    u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap())
}
