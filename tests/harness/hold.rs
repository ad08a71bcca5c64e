//! A stop between a task's creation and its start.

use std::fs::{self, File};
use std::io::Write;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;

use rustix::fs::{CWD, FileType, Mode, mknodat};

use crate::process::Stream;

/// Flags of a `ctr run` that is to be held.
pub const FLAGS: &[&str] = &["--cni"];

const CONFIG: &str = "/etc/cni/net.d/hold.conf";
const PLUGIN: &str = "/opt/cni/bin/hold";
const ARRIVED: &str = "/var/tmp/hold-arrived";
const GO: &str = "/var/tmp/hold-go";

/// A CNI plugin that adds no interface and takes its time: `ctr` calls it when the task
/// is created and not yet started, as all do who wire the network late. Gone when dropped.
pub struct Hold {
    arrivals: Stream,
    go: File,
    /// Open for as long as arrivals are read.
    _arrived: File,
}

impl Hold {
    /// Installs it; from now on `ctr run` with these [`FLAGS`] is held.
    ///
    /// # Panics
    /// If it cannot be installed.
    #[track_caller]
    pub fn install() -> Self {
        let plugin = format!(
            r#"#!/bin/sh
case $CNI_COMMAND in
VERSION) echo '{{"cniVersion": "0.4.0", "supportedVersions": ["0.4.0"]}}' ;;
ADD)
    echo held >{ARRIVED}
    read -r go <{GO}
    echo '{{"cniVersion": "0.4.0", "interfaces": [{{"name": "eth0", "sandbox": "'"$CNI_NETNS"'"}}]}}'
    ;;
esac
"#
        );
        let config = r#"{"cniVersion": "0.4.0", "name": "hold", "type": "hold"}"#;
        for (path, text, mode) in [(CONFIG, config, 0o644), (PLUGIN, plugin.as_str(), 0o755)] {
            let folder = Path::new(path).parent().expect("a file is in a folder");
            fs::create_dir_all(folder).expect("a folder");
            fs::write(path, text).expect("a file");
            fs::set_permissions(path, PermissionsExt::from_mode(mode)).expect("a file of ours");
        }
        let [arrived, go] = [ARRIVED, GO].map(|path| {
            mknodat(CWD, path, FileType::Fifo, Mode::RUSR | Mode::WUSR, 0).expect("a fifo");
            // Open both ways, so that nobody waits for the other side to come.
            let both = File::options().read(true).write(true).open(path);
            both.expect("a fifo of ours")
        });
        Self {
            arrivals: Stream::of_fifo(Path::new(ARRIVED)),
            go,
            _arrived: arrived,
        }
    }

    /// Waits until a `ctr run` is held: its task is created.
    ///
    /// # Panics
    /// If none is by the deadline.
    #[track_caller]
    pub fn wait(&mut self) {
        self.arrivals.wait_for("held\n");
    }

    /// Lets the one that is held, or comes first, go on to start.
    ///
    /// # Panics
    /// If the fifo is gone.
    #[track_caller]
    pub fn release(&mut self) {
        self.go.write_all(b"go\n").expect("a fifo of ours");
    }
}

impl Drop for Hold {
    fn drop(&mut self) {
        // A plugin whose ctr was killed waits still; the fifo ends when nobody has it open.
        drop(self.go.write_all(b"go\n"));
        for path in [CONFIG, PLUGIN, ARRIVED, GO] {
            drop(fs::remove_file(path));
        }
    }
}
