//! A policy as a BPF program of type `BPF_PROG_TYPE_CGROUP_DEVICE`.
//!
//! The kernel runs it at each open and mknod with a `struct bpf_cgroup_dev_ctx` in
//! register 1; 0 in register 0 denies (linux/bpf.h). Instructions and their encoding:
//! Documentation/bpf/standardization/instruction-set.rst.

use super::{Access, Kind, Policy, Target};

/// A compiled policy.
#[derive(Clone, Debug)]
pub struct Program(Vec<u64>);

/// Offsets in `struct bpf_cgroup_dev_ctx`. The first word holds the accesses asked for
/// in its upper half and the kind of device in its lower half.
const CTX_ACCESS_AND_KIND: i16 = 0;
const CTX_MAJOR: i16 = 4;
const CTX_MINOR: i16 = 8;

// Opcodes: class, operation and source of the second operand (K: immediate, X: register).
// Comparisons are those of 32 bits, for which an immediate is not sign-extended.
pub(super) const LOAD_WORD: u8 = 0x61;
pub(super) const AND_K: u8 = 0x54;
pub(super) const SHIFT_RIGHT_K: u8 = 0x74;
pub(super) const MOVE_K: u8 = 0xb4;
pub(super) const MOVE_X: u8 = 0xbc;
pub(super) const JUMP_EQUAL_K: u8 = 0x16;
pub(super) const JUMP_NOT_EQUAL_K: u8 = 0x56;
pub(super) const JUMP_NOT_EQUAL_X: u8 = 0x5e;
pub(super) const EXIT: u8 = 0x95;

// Which register holds what.
const VERDICT: u8 = 0;
/// Overwritten, once all was read from it, as a scratch register.
const CTX: u8 = 1;
const SCRATCH: u8 = 1;
const KIND: u8 = 2;
const ACCESS: u8 = 3;
const MAJOR: u8 = 4;
const MINOR: u8 = 5;

impl Program {
    /// Compiles `policy`.
    pub fn compile(policy: &Policy) -> Self {
        let mut program = vec![
            instruction(LOAD_WORD, KIND, CTX, CTX_ACCESS_AND_KIND, 0),
            instruction(AND_K, KIND, 0, 0, 0xffff),
            instruction(LOAD_WORD, ACCESS, CTX, CTX_ACCESS_AND_KIND, 0),
            instruction(SHIFT_RIGHT_K, ACCESS, 0, 0, 16),
            instruction(LOAD_WORD, MAJOR, CTX, CTX_MAJOR, 0),
            instruction(LOAD_WORD, MINOR, CTX, CTX_MINOR, 0),
        ];
        for (target, access) in &policy.exceptions {
            program.extend(exception(*target, *access, !policy.allow_by_default));
        }
        program.extend(verdict(policy.allow_by_default));
        Self(program)
    }

    /// As bpf(2) takes them.
    pub fn instructions(&self) -> &[u64] {
        &self.0
    }
}

/// The instructions that end the program with `allow` if the access is the exception's.
fn exception(target: Target, access: Access, allow: bool) -> Vec<u64> {
    let kind = match target.kind {
        Kind::Block => 1,
        Kind::Char => 2,
    };
    // Jumps to the next exception; how far is filled in below.
    let mut tests = vec![(JUMP_NOT_EQUAL_K, KIND, 0, kind)];
    if access != Access::ALL {
        tests.push((MOVE_X, SCRATCH, ACCESS, 0));
        tests.push((AND_K, SCRATCH, 0, access.0));
        tests.push(if allow {
            // It must allow everything asked for.
            (JUMP_NOT_EQUAL_X, SCRATCH, ACCESS, 0)
        } else {
            // It is enough that it denies a part.
            (JUMP_EQUAL_K, SCRATCH, 0, 0)
        });
    }
    for (register, number) in [(MAJOR, target.major), (MINOR, target.minor)] {
        if let Some(number) = number {
            tests.push((JUMP_NOT_EQUAL_K, register, 0, number));
        }
    }
    let verdict = verdict(allow);
    let end = tests.len() + verdict.len();
    let mut code = Vec::with_capacity(end);
    for (index, (opcode, to, from, immediate)) in tests.into_iter().enumerate() {
        let jumps = matches!(opcode, JUMP_EQUAL_K | JUMP_NOT_EQUAL_K | JUMP_NOT_EQUAL_X);
        // Counted from the instruction after the jump.
        let distance = if jumps { end - index - 1 } else { 0 };
        code.push(instruction(opcode, to, from, distance as i16, immediate));
    }
    code.extend(verdict);
    code
}

fn verdict(allow: bool) -> [u64; 2] {
    [
        instruction(MOVE_K, VERDICT, 0, 0, allow.into()),
        instruction(EXIT, 0, 0, 0, 0),
    ]
}

/// `struct bpf_insn`, little-endian: opcode, registers, offset, immediate.
fn instruction(opcode: u8, to: u8, from: u8, offset: i16, immediate: u32) -> u64 {
    let registers = from << 4 | to;
    let [low, high] = offset.to_le_bytes();
    let [a, b, c, d] = immediate.to_le_bytes();
    u64::from_le_bytes([opcode, registers, low, high, a, b, c, d])
}
