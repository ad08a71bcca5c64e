//! Writes a classic BPF program from its end to its beginning.
//!
//! All jumps lead forwards, so written backwards each target is known when the jump
//! to it is written. A distance that does not fit the 8 bits of a conditional jump
//! goes by an unconditional one next to it.

use super::Instruction;

/// A place in the program, counted from its end.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Label(usize);

/// How the accumulator is compared with a constant.
#[derive(Clone, Copy, Debug)]
pub enum Test {
    /// It is equal.
    Equal,
    /// It is at least that.
    AtLeast,
    /// It is above that.
    Above,
}

/// A program under construction.
#[derive(Debug, Default)]
pub struct Assembler {
    /// The last instruction first.
    reversed: Vec<Instruction>,
    /// Where each value was last returned.
    returns: Vec<(u32, Label)>,
}

impl Assembler {
    /// Returns `value` from the filter.
    pub fn ret(&mut self, value: u32) -> Label {
        let reachable = usize::from(u8::MAX) / 2;
        let found = self.returns.iter_mut().find(|(known, _)| *known == value);
        if let Some((_, label)) = &found
            && self.reversed.len() - label.0 < reachable
        {
            return *label;
        }
        let label = push(&mut self.reversed, libc::BPF_RET | libc::BPF_K, 0, 0, value);
        match found {
            Some(known) => known.1 = label,
            None => self.returns.push((value, label)),
        }
        label
    }

    /// Loads the 32 bits at `offset` of `struct seccomp_data`.
    pub fn load(&mut self, offset: u32) -> Label {
        let code = libc::BPF_LD | libc::BPF_W | libc::BPF_ABS;
        push(&mut self.reversed, code, 0, 0, offset)
    }

    /// Keeps only the bits of `mask`.
    pub fn and(&mut self, mask: u32) -> Label {
        let code = libc::BPF_ALU | libc::BPF_AND | libc::BPF_K;
        push(&mut self.reversed, code, 0, 0, mask)
    }

    /// Continues at `yes` or at `no`.
    pub fn branch(&mut self, test: Test, value: u32, yes: Label, no: Label) -> Label {
        let (yes, no) = self.near(yes, no);
        let operation = match test {
            Test::Equal => libc::BPF_JEQ,
            Test::AtLeast => libc::BPF_JGE,
            Test::Above => libc::BPF_JGT,
        };
        let code = libc::BPF_JMP | operation | libc::BPF_K;
        let (yes, no) = (self.distance(yes), self.distance(no));
        // `near` saw to it that both fit.
        push(&mut self.reversed, code, yes as u8, no as u8, value)
    }

    /// Continues at `target`, if that is not what follows anyway.
    pub fn goto(&mut self, target: Label) -> Label {
        if target == self.here() {
            return target;
        }
        let distance = self.distance(target) as u32;
        let code = libc::BPF_JMP | libc::BPF_JA;
        push(&mut self.reversed, code, 0, 0, distance)
    }

    /// The finished program, which begins with what was written last.
    pub fn finish(mut self) -> Vec<Instruction> {
        self.reversed.reverse();
        self.reversed
    }

    /// The place of what was written last.
    pub fn here(&self) -> Label {
        Label(self.reversed.len())
    }

    /// The instructions between the next one to be written and `target`.
    fn distance(&self, target: Label) -> usize {
        self.reversed.len() - target.0
    }

    /// Places from which the two targets are reached, both near enough to jump to. With
    /// at most two jumps to be put in between, the limits leave room for both.
    fn near(&mut self, yes: Label, no: Label) -> (Label, Label) {
        let limit = usize::from(u8::MAX) - 2;
        let no = if self.distance(no) > limit {
            self.goto(no)
        } else {
            no
        };
        let yes = if self.distance(yes) > limit {
            self.goto(yes)
        } else {
            yes
        };
        (yes, no)
    }
}

fn push(
    reversed: &mut Vec<Instruction>,
    code: u32,
    jump_true: u8,
    jump_false: u8,
    k: u32,
) -> Label {
    reversed.push(Instruction {
        // The operations of linux/bpf_common.h are 8 bits wide.
        code: code as u16,
        jump_true,
        jump_false,
        k,
    });
    Label(reversed.len())
}
