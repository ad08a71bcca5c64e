//! Threads that stand for containers.
//!
//! containerd is told a process of the host for each container, and names the namespaces
//! of one container to another by it (`/proc/<pid>/ns/pid`). The processes are the guest's;
//! on the host a thread of the VMM stands for each: it is in the pod's network namespace,
//! has a number nobody else has, and does nothing.

use std::collections::BTreeMap;
use std::io;
use std::sync::mpsc::{Sender, channel};
use std::thread;

use nix::unistd::gettid;

/// Bytes of stack: the thread waits once.
const STACK: usize = 16 << 10;

/// The threads by container.
#[derive(Debug, Default)]
pub struct StandIns(BTreeMap<String, Sender<()>>);

impl StandIns {
    /// Starts the thread of a container. Returns its id in the VMM's pid namespace; the
    /// same again for a container that has one already is an error.
    ///
    /// # Errors
    /// A sentence for the log.
    pub fn add(&mut self, container: String) -> Result<i32, String> {
        if self.0.contains_key(&container) {
            return Err(format!("container {container} has a thread already"));
        }
        let failed = |error: io::Error| format!("no thread for container {container}: {error}");
        let (alive, end) = channel();
        let (started, id) = channel();
        // A thread's name is short and without NUL; the kernel cuts it.
        let name: String = container.chars().filter(|c| !c.is_control()).collect();
        thread::Builder::new()
            .name(name)
            .stack_size(STACK)
            .spawn(move || {
                // Whoever asked may have given up.
                started.send(gettid().as_raw()).ok();
                // Ends with an error when the sender is dropped.
                end.recv().ok();
            })
            .map_err(failed)?;
        let id = id.recv().map_err(|error| failed(io::Error::other(error)))?;
        self.0.insert(container, alive);
        Ok(id)
    }

    /// Ends the thread of a container, if there is one.
    pub fn remove(&mut self, container: &str) {
        self.0.remove(container);
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn is_thread(id: i32) -> bool {
        std::path::Path::new(&format!("/proc/self/task/{id}")).exists()
    }

    #[test]
    fn a_container_has_one_thread_until_it_is_removed() {
        let mut threads = StandIns::default();
        let first = threads.add("a".into()).unwrap();
        let second = threads.add("b\0".into()).unwrap();
        assert!(first != second && is_thread(first) && is_thread(second));
        assert!(threads.add("a".into()).is_err());
        threads.remove("a");
        threads.remove("a");
        // The thread ends when it notices.
        for _ in 0..1000 {
            if !is_thread(first) {
                break;
            }
            thread::sleep(std::time::Duration::from_millis(1));
        }
        assert!(!is_thread(first) && is_thread(second));
        threads.add("a".into()).unwrap();
    }
}
