//! From a checked profile to a program: by architecture, then by a binary search for
//! the call's number, then by the conditions on its arguments.

use std::collections::BTreeMap;

use super::assembler::{Assembler, Label, Test};
use super::syscalls::{AUDIT_ARCH_I386, AUDIT_ARCH_X86_64, Entry, Table, X32_BIT};
use super::{Comparison, Condition, Instruction, Profile, Rule};

/// Offset of `nr` in `struct seccomp_data` (linux/seccomp.h).
const NUMBER: u32 = 0;
/// Offset of `arch`.
const ARCHITECTURE: u32 = 4;
/// Offset of `args`, of 64 bits each, the low half first on this machine.
const ARGUMENTS: u32 = 16;

/// The number a tracer sets to skip a call (ptrace(2)); it must not be taken for an x32 call.
const SKIPPED: u32 = u32::MAX;

/// What happens to one call.
#[derive(Clone, Debug, PartialEq, Eq)]
enum Decision {
    Return(u32),
    /// The first alternative whose conditions all hold; the default if there is none.
    Conditional(Vec<(Vec<Condition>, u32)>),
}

/// The size of an argument.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Width {
    Bits32,
    Bits64,
}

/// The program for `profile`.
pub fn compile(profile: &Profile) -> Vec<Instruction> {
    let mut assembler = Assembler::default();
    let bad_architecture = assembler.ret(libc::SECCOMP_RET_KILL_THREAD);
    let mut next = bad_architecture;
    if profile.x86 {
        let calls = Calls::new(profile, &Table::x86(), Width::Bits32);
        calls.search(&mut assembler);
        let found = assembler.load(NUMBER);
        next = assembler.branch(Test::Equal, AUDIT_ARCH_I386, found, next);
    }
    let calls = Calls::new(profile, &Table::x86_64(), Width::Bits64);
    let found = calls.search(&mut assembler);
    if profile.x32 {
        // The same rules: only the bit tells the two apart.
        assembler.and(!X32_BIT);
    } else {
        let bad = assembler.ret(libc::SECCOMP_RET_KILL_THREAD);
        let skipped = assembler.branch(Test::Equal, SKIPPED, found, bad);
        assembler.branch(Test::AtLeast, X32_BIT, skipped, found);
    }
    let found = assembler.load(NUMBER);
    assembler.branch(Test::Equal, AUDIT_ARCH_X86_64, found, next);
    assembler.load(ARCHITECTURE);
    assembler.finish()
}

/// The decisions for one architecture.
struct Calls {
    /// From each number on up to the next one.
    ranges: Vec<(u32, Decision)>,
    default: u32,
    width: Width,
}

impl Calls {
    fn new(profile: &Profile, table: &Table, width: Width) -> Self {
        let mut decisions = BTreeMap::<u32, Decision>::new();
        for rule in &profile.rules {
            for entry in table.entries(&rule.name) {
                decide(&mut decisions, entry, rule);
            }
        }
        let newest = profile.named.iter().filter_map(|name| table.number(name));
        let default = Decision::Return(profile.default);
        let mut ranges = vec![(0, default.clone())];
        for (number, decision) in decisions {
            put(&mut ranges, number, decision);
            put(&mut ranges, number + 1, default.clone());
        }
        if let (Some(unknown), Some(newest)) = (profile.unknown, newest.max()) {
            put(&mut ranges, newest + 1, Decision::Return(unknown));
            // That a call is skipped is not the profile's business.
            put(&mut ranges, SKIPPED, default);
        }
        Self {
            ranges,
            default: profile.default,
            width,
        }
    }

    /// Writes the search for the number in the accumulator.
    fn search(&self, assembler: &mut Assembler) -> Label {
        let start = self.search_in(assembler, &self.ranges);
        assembler.goto(start)
    }

    fn search_in(&self, assembler: &mut Assembler, ranges: &[(u32, Decision)]) -> Label {
        match ranges {
            [] => assembler.ret(self.default),
            [(_, Decision::Return(value))] => assembler.ret(*value),
            [(_, Decision::Conditional(alternatives))] => {
                let mut next = assembler.ret(self.default);
                for (conditions, action) in alternatives.iter().rev() {
                    next = self.alternative(assembler, conditions, *action, next);
                }
                next
            }
            _ => {
                let (low, high) = ranges.split_at(ranges.len() / 2);
                let first = high.first().map_or(0, |(first, _)| *first);
                let high = self.search_in(assembler, high);
                let low = self.search_in(assembler, low);
                assembler.branch(Test::AtLeast, first, high, low)
            }
        }
    }

    /// Writes: `action` if all `conditions` hold, else `otherwise`.
    fn alternative(
        &self,
        assembler: &mut Assembler,
        conditions: &[Condition],
        action: u32,
        otherwise: Label,
    ) -> Label {
        let mut holds = assembler.ret(action);
        for condition in conditions.iter().rev() {
            holds = match self.width {
                Width::Bits64 => compare(assembler, condition, holds, otherwise),
                Width::Bits32 => compare_low(assembler, condition, holds, otherwise),
            };
        }
        holds
    }
}

/// Adds a rule to what is known of a call.
fn decide(decisions: &mut BTreeMap<u32, Decision>, entry: Entry, rule: &Rule) {
    let mut conditions = rule.conditions.clone();
    if let Some(value) = entry.selector {
        // The arguments proper are in memory, where a filter cannot look; that of the
        // same number gives way to the one that selects the call, as in libseccomp.
        conditions.retain(|condition| condition.index != 0);
        conditions.insert(
            0,
            Condition {
                index: 0,
                comparison: Comparison::Equal,
                value,
            },
        );
    }
    if conditions.is_empty() {
        match decisions.get(&entry.number) {
            // The first one without conditions counts.
            Some(Decision::Return(_)) => {}
            _ => {
                decisions.insert(entry.number, Decision::Return(rule.action));
            }
        }
        return;
    }
    let known = decisions
        .entry(entry.number)
        .or_insert_with(|| Decision::Conditional(Vec::new()));
    if let Decision::Conditional(alternatives) = known {
        alternatives.push((conditions, rule.action));
    }
}

/// Lets `decision` hold from `first` on.
fn put(ranges: &mut Vec<(u32, Decision)>, first: u32, decision: Decision) {
    if ranges.last().is_some_and(|(last, _)| *last == first) {
        ranges.pop();
    }
    if ranges.last().is_none_or(|(_, last)| *last != decision) {
        ranges.push((first, decision));
    }
}

/// Writes: `yes` if the 64-bit condition holds, else `no`.
fn compare(assembler: &mut Assembler, condition: &Condition, yes: Label, no: Label) -> Label {
    let high = (condition.value >> 32) as u32;
    let offset = ARGUMENTS + 8 * condition.index;
    // The lower halves decide where the upper ones are equal.
    let lower = compare_low(assembler, condition, yes, no);
    match condition.comparison {
        Comparison::Equal => assembler.branch(Test::Equal, high, lower, no),
        Comparison::NotEqual => assembler.branch(Test::Equal, high, lower, yes),
        Comparison::Masked(mask) => {
            assembler.branch(Test::Equal, high, lower, no);
            assembler.and((mask >> 32) as u32)
        }
        Comparison::Greater | Comparison::GreaterOrEqual => {
            let not_above = assembler.branch(Test::Equal, high, lower, no);
            assembler.branch(Test::Above, high, yes, not_above)
        }
        Comparison::Less | Comparison::LessOrEqual => {
            let not_above = assembler.branch(Test::Equal, high, lower, yes);
            assembler.branch(Test::Above, high, no, not_above)
        }
    };
    assembler.load(offset + 4)
}

/// Writes: `yes` if the condition holds for the lower half of the argument, else `no`.
fn compare_low(assembler: &mut Assembler, condition: &Condition, yes: Label, no: Label) -> Label {
    let value = condition.value as u32;
    match condition.comparison {
        Comparison::Equal => assembler.branch(Test::Equal, value, yes, no),
        Comparison::NotEqual => assembler.branch(Test::Equal, value, no, yes),
        Comparison::Masked(mask) => {
            assembler.branch(Test::Equal, value, yes, no);
            assembler.and(mask as u32)
        }
        Comparison::Greater => assembler.branch(Test::Above, value, yes, no),
        Comparison::GreaterOrEqual => assembler.branch(Test::AtLeast, value, yes, no),
        Comparison::Less => assembler.branch(Test::AtLeast, value, no, yes),
        Comparison::LessOrEqual => assembler.branch(Test::Above, value, no, yes),
    };
    assembler.load(ARGUMENTS + 8 * condition.index)
}
