//! A terminal for programs that want one.

use std::fs::{File, OpenOptions};
use std::io::{Read, Write};
use std::process::{Child, Command};
use std::sync::mpsc::{Receiver, channel};
use std::thread;
use std::time::{Duration, Instant};

use rustix::process::{Pid, Signal, kill_process};
use rustix::pty::{OpenptFlags, grantpt, openpt, ptsname, unlockpt};
use rustix::termios::{Winsize, tcsetwinsize};

use crate::process::{DEADLINE, wait_for_exit};

/// A program on a terminal of its own, as a person would run it.
pub struct Terminal {
    master: File,
    output: Receiver<Vec<u8>>,
    seen: Vec<u8>,
    child: Child,
}

impl Terminal {
    /// Starts `command` with a terminal of that size as its controlling terminal.
    ///
    /// # Panics
    /// If either cannot be had.
    #[track_caller]
    pub fn start(command: &Command, rows: u16, columns: u16) -> Self {
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY).expect("a pty");
        grantpt(&master).expect("a pty of ours");
        unlockpt(&master).expect("a pty of ours");
        let name = ptsname(&master, Vec::new()).expect("a pty with a name");
        let master = File::from(master);
        tcsetwinsize(&master, size(rows, columns)).expect("a size");

        let slave = || {
            OpenOptions::new()
                .read(true)
                .write(true)
                .open(name.to_str().expect("an ASCII name"))
                .expect("the pty's other side")
        };
        // setsid makes standard input the controlling terminal, so that SIGWINCH arrives.
        let child = Command::new("setsid")
            .args(["--ctty", "--wait"])
            .arg(command.get_program())
            .args(command.get_args())
            .stdin(slave())
            .stdout(slave())
            .stderr(slave())
            .spawn()
            .expect("setsid is there");

        let (sender, output) = channel();
        let mut reader = master.try_clone().expect("a second descriptor");
        thread::spawn(move || {
            let mut buffer = [0; 4096];
            // EIO when the last user of the other side is gone.
            while let Ok(n @ 1..) = reader.read(&mut buffer) {
                if sender.send(buffer[..n].to_vec()).is_err() {
                    break;
                }
            }
        });
        Self {
            master,
            output,
            seen: Vec::new(),
            child,
        }
    }

    /// Types `text`.
    ///
    /// # Panics
    /// If nobody has the terminal open.
    #[track_caller]
    pub fn types(&mut self, text: &str) {
        self.master
            .write_all(text.as_bytes())
            .expect("a terminal in use");
    }

    /// Makes the window that large, and says so until `text` has appeared.
    ///
    /// `ctr` listens for it only after its first size was taken, which the program in the
    /// container may know before: a single signal can come too early.
    ///
    /// # Panics
    /// If the terminal refuses, or the text has not appeared by the deadline.
    #[track_caller]
    pub fn resize_until(&mut self, rows: u16, columns: u16, text: &str) {
        tcsetwinsize(&self.master, size(rows, columns)).expect("a size");
        let program = Pid::from_child(&self.child);
        let deadline = Instant::now() + DEADLINE;
        while !self.appears(text, Duration::from_secs(1)) {
            assert!(
                Instant::now() < deadline,
                "no {text:?} on the terminal:\n{}",
                self.screen()
            );
            kill_process(program, Signal::WINCH).expect("the program still runs");
        }
    }

    /// Waits until `text` has appeared.
    ///
    /// # Panics
    /// If it has not by the deadline.
    #[track_caller]
    pub fn wait_for(&mut self, text: &str) {
        let appeared = self.appears(text, DEADLINE);
        assert!(appeared, "no {text:?} on the terminal:\n{}", self.screen());
    }

    fn appears(&mut self, text: &str, within: Duration) -> bool {
        let deadline = Instant::now() + within;
        while !self.screen().contains(text) {
            let left = deadline.saturating_duration_since(Instant::now());
            match self.output.recv_timeout(left) {
                Ok(chunk) => self.seen.extend(chunk),
                Err(_) => return false,
            }
        }
        true
    }

    /// Everything that has appeared.
    pub fn screen(&self) -> String {
        String::from_utf8_lossy(&self.seen).into_owned()
    }

    /// Waits for the program's end and gives its exit code.
    ///
    /// # Panics
    /// If the deadline passes before.
    #[track_caller]
    pub fn finish(&mut self) -> i32 {
        let ended = wait_for_exit(self.child.id(), Instant::now() + DEADLINE);
        while let Ok(chunk) = self.output.recv_timeout(Duration::from_millis(200)) {
            self.seen.extend(chunk);
        }
        assert!(ended, "no end; on the terminal:\n{}", self.screen());
        let status = self.child.wait().expect("the child is ours");
        status.code().unwrap_or(-1)
    }
}

impl Drop for Terminal {
    fn drop(&mut self) {
        // Ended already is as good. Its session is hung up with the terminal.
        drop(self.child.kill());
        drop(self.child.wait());
    }
}

fn size(rows: u16, columns: u16) -> Winsize {
    Winsize {
        ws_row: rows,
        ws_col: columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}
