//! A policy as one program: a balanced tree over ranges of numbers, and in its leaves the verdicts,
//! or the rules on arguments.

use super::Verdict;
use super::arguments::{Condition, Rule, Rules};

/// `AUDIT_ARCH_X86_64`
const ARCHITECTURE: u32 = 0xC000_003E;

const RETURN_ALLOW: u32 = 0x7fff_0000;
const RETURN_KILL_PROCESS: u32 = 0x8000_0000;
const RETURN_ERRNO: u32 = 0x0005_0000;

/// One instruction of classic BPF (`struct sock_filter`).
#[derive(Debug, Clone, Copy)]
struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    k: u32,
}

impl Instruction {
    /// Loads a word of `struct seccomp_data`.
    const fn load(offset: u32) -> Self {
        Self { code: 0x20, jump_true: 0, jump_false: 0, k: offset }
    }

    /// Skips instructions by whether the word equals `k`.
    const fn if_equal(k: u32, jump_true: u8, jump_false: u8) -> Self {
        Self { code: 0x15, jump_true, jump_false, k }
    }

    /// Keeps of the word what is in `mask`.
    const fn and(mask: u32) -> Self {
        Self { code: 0x54, jump_true: 0, jump_false: 0, k: mask }
    }

    /// Skips instructions by whether the word is at least `k`.
    const fn if_at_least(k: u32, jump_true: u8, jump_false: u8) -> Self {
        Self { code: 0x35, jump_true, jump_false, k }
    }

    /// Skips `count` instructions.
    const fn skip(count: u32) -> Self {
        Self { code: 0x05, jump_true: 0, jump_false: 0, k: count }
    }

    const fn ret(action: u32) -> Self {
        Self { code: 0x06, jump_true: 0, jump_false: 0, k: action }
    }

    fn bytes(self) -> [u8; 8] {
        let [code_0, code_1] = self.code.to_ne_bytes();
        let [k_0, k_1, k_2, k_3] = self.k.to_ne_bytes();
        [code_0, code_1, self.jump_true, self.jump_false, k_0, k_1, k_2, k_3]
    }
}

/// Numbers from `first` up to the next range's first, and what becomes of them.
#[derive(Debug, Clone, Copy)]
struct Range {
    first: u32,
    leaf: Leaf,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Leaf {
    /// This is returned.
    Return(u32),
    /// The rules on the arguments of this call decide.
    Rules(u32),
}

/// Compiles a table that is sorted by number, and the rules of the calls in it that are checked;
/// `others` becomes of the numbers that are not in it.
pub(super) fn compile(
    table: impl IntoIterator<Item = (u32, Verdict)>,
    others: Verdict,
    rules: &Rules,
) -> Vec<u8> {
    const OFFSET_OF_NUMBER: u32 = 0;
    const OFFSET_OF_ARCHITECTURE: u32 = 4;
    let mut program = vec![
        // First: the numbers below are those of one architecture.
        Instruction::load(OFFSET_OF_ARCHITECTURE),
        Instruction::if_equal(ARCHITECTURE, 1, 0),
        Instruction::ret(RETURN_KILL_PROCESS),
        Instruction::load(OFFSET_OF_NUMBER),
    ];
    program.extend(subtree(&ranges(table, others), rules));
    program.into_iter().flat_map(Instruction::bytes).collect()
}

/// Neighbours with the same verdict become one range, and gaps ranges of their own. The last one
/// has no end, so it holds the numbers of x32, which have bit 30 set.
fn ranges(table: impl IntoIterator<Item = (u32, Verdict)>, others: Verdict) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    let mut add = |first, verdict| {
        let leaf = match verdict {
            Verdict::Check => Leaf::Rules(first),
            _ => Leaf::Return(action(verdict)),
        };
        if ranges.last().is_none_or(|last| last.leaf != leaf) {
            ranges.push(Range { first, leaf });
        }
    };
    let mut next = 0;
    for (number, verdict) in table {
        if number != next {
            add(next, others);
        }
        add(number, verdict);
        next = number + 1;
    }
    add(next, others);
    ranges
}

fn errno(errno: i32) -> u32 {
    RETURN_ERRNO | errno.unsigned_abs()
}

fn action(verdict: Verdict) -> u32 {
    match verdict {
        Verdict::Allow => RETURN_ALLOW,
        Verdict::Check | Verdict::Deny => errno(libc::EPERM),
        Verdict::Missing => errno(libc::ENOSYS),
    }
}

fn subtree(ranges: &[Range], rules: &Rules) -> Vec<Instruction> {
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let Some(middle) = upper.first() else {
        // Not reached: a table has at least the range of what is missing.
        return vec![Instruction::ret(RETURN_KILL_PROCESS)];
    };
    if lower.is_empty() {
        return match middle.leaf {
            Leaf::Return(action) => vec![Instruction::ret(action)],
            Leaf::Rules(call) => checks(rules.get(&call).map_or(&[], Vec::as_slice)),
        };
    }
    let (lower, upper) = (subtree(lower, rules), subtree(upper, rules));
    let mut program = match u8::try_from(lower.len()) {
        Ok(distance) => vec![Instruction::if_at_least(middle.first, distance, 0)],
        // A condition jumps over 255 instructions at most.
        Err(_) => vec![
            Instruction::if_at_least(middle.first, 0, 1),
            Instruction::skip(u32::try_from(lower.len()).unwrap_or(u32::MAX)),
        ],
    };
    program.extend(lower);
    program.extend(upper);
    program
}

/// The first rule that matches decides; what none matches is allowed.
fn checks(rules: &[Rule]) -> Vec<Instruction> {
    let mut program: Vec<_> = rules.iter().flat_map(check).collect();
    program.push(Instruction::ret(RETURN_ALLOW));
    program
}

/// Goes through the conditions, and past the end at the first that does not hold.
fn check(rule: &Rule) -> Vec<Instruction> {
    // From the end, since each jump is over what follows it.
    let mut program = vec![Instruction::ret(errno(rule.errno))];
    for condition in rule.conditions.iter().rev() {
        let Ok(past_end) = u8::try_from(program.len()) else {
            // Not reached: no rule is as long as a jump can be. It refuses rather than too little.
            return vec![Instruction::ret(errno(rule.errno))];
        };
        let Condition { argument, mask, value, is_equal } = *condition;
        program.push(match is_equal {
            true => Instruction::if_equal(value, 0, past_end),
            false => Instruction::if_equal(value, past_end, 0),
        });
        if mask != u32::MAX {
            program.push(Instruction::and(mask));
        }
        program.push(Instruction::load(low_half_of(argument)));
    }
    program.reverse();
    program
}

/// Where `struct seccomp_data` has the low half of an argument: its first four bytes.
fn low_half_of(argument: u8) -> u32 {
    16 + 8 * u32::from(argument)
}
