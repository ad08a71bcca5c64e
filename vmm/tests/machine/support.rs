//! A guest of a few bytes: an ELF image whose code starts in 64-bit mode.

use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

/// `mov al, 2; out 0xf4, al`: the next reset is a clean end.
pub const ANNOUNCE_CLEAN_END: &[u8] = &[0xb0, 0x02, 0xe6, 0xf4];
/// `mov al, 1; out 0xf4, al`: PID 1 runs.
pub const ANNOUNCE_INIT: &[u8] = &[0xb0, 0x01, 0xe6, 0xf4];
/// `mov al, 0xfe; out 0x64, al`: reset.
pub const RESET: &[u8] = &[0xb0, 0xfe, 0xe6, 0x64];
/// `mov dx, 0x3f8; mov al, '!'; out dx, al`: print.
pub const PRINT: &[u8] = &[0x66, 0xba, 0xf8, 0x03, 0xb0, b'!', 0xee];
/// `ud2`: an exception nobody handles, so a triple fault.
pub const FAULT: &[u8] = &[0x0f, 0x0b];
/// `hlt; jmp $-1`: wait for ever.
pub const WAIT: &[u8] = &[0xf4, 0xeb, 0xfd];

/// Where the code is loaded.
const ENTRY: u64 = 0x10_0000;

/// Says why the test is skipped, if KVM cannot be used.
pub fn kvm_is_missing() -> bool {
    let opened = std::fs::File::options()
        .read(true)
        .write(true)
        .open("/dev/kvm");
    match opened {
        Ok(_) => false,
        Err(error) => {
            println!("skipped: /dev/kvm cannot be opened: {error}");
            true
        }
    }
}

/// A directory that goes with the test.
pub struct Scratch(PathBuf);

impl Scratch {
    /// A directory whose name contains `name`.
    pub fn new(name: &str) -> Self {
        let dir = std::env::temp_dir().join(format!("husk-vmm-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        Self(dir)
    }

    /// Its path.
    pub fn path(&self) -> &Path {
        &self.0
    }

    /// Writes an ELF image made of `code` and returns its path.
    pub fn kernel(&self, code: &[&[u8]]) -> PathBuf {
        let path = self.0.join("kernel.elf");
        std::fs::write(&path, elf(&code.concat())).unwrap();
        path
    }

    /// Runs the machine that `config` describes, by hand, to its end.
    pub fn run(&self, config: &serde_json::Value) -> Output {
        let file = self.0.join("vm.json");
        std::fs::write(&file, config.to_string()).unwrap();
        let child = vmm().arg("--config").arg(file).spawn().unwrap();
        child.wait_with_output().unwrap()
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        std::fs::remove_dir_all(&self.0).unwrap();
    }
}

/// The program under test, without input and with its output caught.
pub fn vmm() -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_husk-vmm"));
    command
        .stdin(Stdio::null())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped());
    command
}

/// The smallest image that linux-loader takes: a header and one segment.
fn elf(code: &[u8]) -> Vec<u8> {
    const HEADERS: u64 = 64 + 56;
    let mut image = b"\x7fELF\x02\x01\x01".to_vec();
    image.resize(16, 0);
    for (value, size) in [
        (2, 2),       // executable
        (62, 2),      // x86-64
        (1, 4),       // version
        (ENTRY, 8),   // entry point
        (64, 8),      // program headers
        (0, 8),       // no sections
        (0, 4),       // flags
        (64, 2),      // size of this header
        (56, 2),      // size of a program header
        (1, 2),       // number of them
        (0, 6),       // no sections
        (1, 4),       // loadable
        (5, 4),       // read, execute
        (HEADERS, 8), // offset in the file
        (ENTRY, 8),   // virtual address
        (ENTRY, 8),   // physical address
        (code.len() as u64, 8),
        (code.len() as u64, 8),
        (4096, 8), // alignment
    ] {
        image.extend_from_slice(&value.to_le_bytes()[..size]);
    }
    image.extend_from_slice(code);
    image
}
