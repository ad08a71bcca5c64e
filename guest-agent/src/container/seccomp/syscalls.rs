//! System call numbers by name, for the architectures a process in the guest can use.

use std::collections::HashMap;

use ::syscalls::{x86, x86_64};

/// `AUDIT_ARCH_X86_64` of linux/audit.h: what the kernel calls the 64-bit interface.
pub const AUDIT_ARCH_X86_64: u32 = 0xc000_003e;
/// `AUDIT_ARCH_I386`: the 32-bit interface.
pub const AUDIT_ARCH_I386: u32 = 0x4000_0003;

/// Set in the number of each x32 call (asm/unistd.h); otherwise they are those of
/// x86-64. The guest's kernel knows none, so those numbered apart do not matter.
pub const X32_BIT: u32 = 0x4000_0000;

/// What `linux.seccomp.architectures` may name besides x86 and x32.
pub const OTHER_ARCHITECTURES: [&str; 19] = [
    "SCMP_ARCH_X86_64",
    "SCMP_ARCH_ARM",
    "SCMP_ARCH_AARCH64",
    "SCMP_ARCH_MIPS",
    "SCMP_ARCH_MIPS64",
    "SCMP_ARCH_MIPS64N32",
    "SCMP_ARCH_MIPSEL",
    "SCMP_ARCH_MIPSEL64",
    "SCMP_ARCH_MIPSEL64N32",
    "SCMP_ARCH_PPC",
    "SCMP_ARCH_PPC64",
    "SCMP_ARCH_PPC64LE",
    "SCMP_ARCH_S390",
    "SCMP_ARCH_S390X",
    "SCMP_ARCH_PARISC",
    "SCMP_ARCH_PARISC64",
    "SCMP_ARCH_RISCV64",
    "SCMP_ARCH_LOONGARCH64",
    "SCMP_ARCH_M68K",
];

/// Calls that 32-bit programs also make, or only make, as a sub-call of
/// `socketcall(2)`; the number is that of linux/net.h.
const SOCKETCALL: [(&str, u64); 20] = [
    ("socket", 1),
    ("bind", 2),
    ("connect", 3),
    ("listen", 4),
    ("accept", 5),
    ("getsockname", 6),
    ("getpeername", 7),
    ("socketpair", 8),
    ("send", 9),
    ("recv", 10),
    ("sendto", 11),
    ("recvfrom", 12),
    ("shutdown", 13),
    ("setsockopt", 14),
    ("getsockopt", 15),
    ("sendmsg", 16),
    ("recvmsg", 17),
    ("accept4", 18),
    ("recvmmsg", 19),
    ("sendmmsg", 20),
];

/// The same for `ipc(2)`; the number is that of linux/ipc.h.
const IPC: [(&str, u64); 12] = [
    ("semop", 1),
    ("semget", 2),
    ("semctl", 3),
    ("semtimedop", 4),
    ("msgsnd", 11),
    ("msgrcv", 12),
    ("msgget", 13),
    ("msgctl", 14),
    ("shmat", 21),
    ("shmdt", 22),
    ("shmget", 23),
    ("shmctl", 24),
];

/// A call as it reaches the kernel.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    /// Its number.
    pub number: u32,
    /// For a sub-call, the first argument that selects it.
    pub selector: Option<u64>,
}

/// The calls of one architecture.
#[derive(Debug)]
pub struct Table {
    numbers: HashMap<&'static str, u32>,
    multiplexed: bool,
}

impl Table {
    /// Those of 64-bit programs.
    pub fn x86_64() -> Self {
        let call = |call: x86_64::Sysno| (call.name(), call.id() as u32);
        Self {
            numbers: x86_64::Sysno::iter().map(call).collect(),
            multiplexed: false,
        }
    }

    /// Those of 32-bit programs.
    pub fn x86() -> Self {
        let call = |call: x86::Sysno| (call.name(), call.id() as u32);
        Self {
            numbers: x86::Sysno::iter().map(call).collect(),
            multiplexed: true,
        }
    }

    /// The number of the call `name` itself.
    pub fn number(&self, name: &str) -> Option<u32> {
        self.numbers.get(name).copied()
    }

    /// All ways to make the call `name`; none if the architecture does not have it.
    pub fn entries(&self, name: &str) -> Vec<Entry> {
        let direct = self.number(name).map(|number| Entry {
            number,
            selector: None,
        });
        let sub_call = [("socketcall", &SOCKETCALL[..]), ("ipc", &IPC[..])]
            .into_iter()
            .filter(|_| self.multiplexed)
            .find_map(|(multiplexer, sub_calls)| {
                let (_, selector) = sub_calls.iter().find(|(sub_call, _)| *sub_call == name)?;
                Some(Entry {
                    number: self.number(multiplexer)?,
                    selector: Some(*selector),
                })
            });
        sub_call.into_iter().chain(direct).collect()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_tables_agree_with_the_kernel_headers() {
        let table = Table::x86_64();
        for (name, number) in [
            ("read", libc::SYS_read),
            ("clone3", libc::SYS_clone3),
            ("mseal", libc::SYS_mseal),
            ("newfstatat", libc::SYS_newfstatat),
        ] {
            assert_eq!(table.number(name), Some(number as u32), "{name}");
        }
        assert_eq!(Table::x86().number("read"), Some(3));
        assert_eq!(Table::x86().number("clock_gettime64"), Some(403));
    }

    #[test]
    fn sub_calls_exist_for_32_bit_programs_only() {
        let entry = |number, selector| Entry { number, selector };
        assert_eq!(
            Table::x86().entries("socket"),
            [entry(102, Some(1)), entry(359, None)]
        );
        assert_eq!(Table::x86().entries("accept"), [entry(102, Some(5))]);
        assert_eq!(Table::x86().entries("semop"), [entry(117, Some(1))]);
        assert_eq!(Table::x86_64().entries("socket"), [entry(41, None)]);
        assert!(Table::x86_64().entries("socketcall").is_empty());
        assert!(Table::x86().entries("no_such_call").is_empty());
    }
}
