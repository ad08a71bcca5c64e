//! `husk-vmm` by hand: a machine of a kernel and a shell script.

use std::io::Write;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use serde_json::{Value, json};
use tempfile::TempDir;

use crate::process::{self, Output, Running};

/// The program under test.
pub const VMM: &str = "/usr/local/lib/husk/husk-vmm";
/// The guest's kernel.
pub const KERNEL: &str = "/usr/local/lib/husk/vmlinux";
/// What the kernel is told.
pub const CMDLINE: &str = "console=ttyS0 quiet panic=-1 reboot=k";

const INITRAMFS: &str = "initramfs.cpio";

/// A machine about to be started. Its files are gone when it is dropped.
pub struct Vm {
    directory: TempDir,
    /// The configuration; tests change it as a user would edit the file.
    pub config: Value,
}

impl Vm {
    /// One vCPU and 64 MiB, running `script` by busybox's shell as `/init`.
    ///
    /// # Panics
    /// If the initramfs cannot be made.
    #[track_caller]
    pub fn running(script: &str) -> Self {
        let directory = TempDir::new().expect("a temporary directory");
        let initramfs = directory.path().join(INITRAMFS);
        make_initramfs(directory.path(), script, &initramfs);
        let config = json!({
            "vcpus": 1,
            "memory_mib": 64,
            "kernel": {
                "image": KERNEL,
                "initramfs": initramfs,
                "cmdline": CMDLINE,
            },
            "console": "stdio",
        });
        Self { directory, config }
    }

    /// Runs it to its end.
    #[track_caller]
    pub fn run(&self) -> Output {
        process::run(self.command())
    }

    /// Starts it, standard input being the guest's serial console.
    #[track_caller]
    pub fn start(&self) -> Running {
        Running::start(self.command())
    }

    /// `husk-vmm` on the configuration as it is now.
    #[track_caller]
    pub fn command(&self) -> Command {
        self.command_with(&self.config.to_string())
    }

    /// `husk-vmm` on a configuration file with this text.
    ///
    /// # Panics
    /// If the file cannot be written.
    #[track_caller]
    pub fn command_with(&self, json: &str) -> Command {
        let config = self.path("vm.json");
        std::fs::write(&config, json).expect("a config file");
        let mut command = Command::new(VMM);
        command.arg("--config").arg(config);
        command
    }

    /// The archive that holds the script.
    pub fn initramfs(&self) -> PathBuf {
        self.path(INITRAMFS)
    }

    /// A file in the machine's temporary directory.
    pub fn path(&self, name: &str) -> PathBuf {
        self.directory.path().join(name)
    }
}

/// Packs busybox and the script as `/init`.
#[track_caller]
fn make_initramfs(directory: &Path, script: &str, out: &Path) {
    let tree = directory.join("tree");
    for folder in ["bin", "dev", "proc", "sys"] {
        std::fs::create_dir_all(tree.join(folder)).expect("a folder of the initramfs");
    }
    std::fs::copy("/usr/bin/busybox", tree.join("bin/busybox")).expect("the node has busybox");
    let init = format!(
        "#!/bin/busybox sh\n\
         /bin/busybox --install -s /bin\n\
         mount -t devtmpfs dev /dev; mount -t proc proc /proc; mount -t sysfs sys /sys\n\
         exec </dev/console >/dev/console 2>&1\n\
         {script}\n"
    );
    let path = tree.join("init");
    std::fs::write(&path, init).expect("the script");
    std::fs::set_permissions(&path, std::os::unix::fs::PermissionsExt::from_mode(0o755))
        .expect("an executable script");

    let archive = std::fs::File::create(out).expect("the initramfs");
    let mut cpio = Command::new("cpio")
        .args(["--create", "--format=newc", "--quiet"])
        .current_dir(&tree)
        .stdin(Stdio::piped())
        .stdout(archive)
        .spawn()
        .expect("the node has cpio");
    let list = ".\nbin\nbin/busybox\ndev\nproc\nsys\ninit\n";
    let mut names = cpio.stdin.take().expect("a pipe was asked for");
    names.write_all(list.as_bytes()).expect("cpio reads names");
    drop(names);
    assert!(cpio.wait().expect("cpio ends").success(), "cpio failed");
}
