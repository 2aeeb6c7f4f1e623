//! Verdicts by number, as a balanced tree over ranges of numbers, and what it leads to.

use std::collections::BTreeMap;

use super::Verdict;

/// `AUDIT_ARCH_X86_64`
const ARCHITECTURE: u32 = 0xC000_003E;

pub(super) const RETURN_ALLOW: u32 = 0x7fff_0000;
const RETURN_KILL_PROCESS: u32 = 0x8000_0000;
pub(super) const RETURN_ERRNO: u32 = 0x0005_0000;
/// `SECCOMP_RET_USER_NOTIF`: init decides. Where a filter around the caller has one who decides
/// already, a second one can't be, and the call fails with ENOSYS.
pub(super) const RETURN_ASK: u32 = 0x7fc0_0000;

/// One instruction of classic BPF (`struct sock_filter`).
#[derive(Debug, Clone, Copy)]
pub(super) struct Instruction {
    code: u16,
    jump_true: u8,
    jump_false: u8,
    k: u32,
}

impl Instruction {
    /// Loads a word of `struct seccomp_data`.
    pub(super) const fn load(offset: u32) -> Self {
        Self { code: 0x20, jump_true: 0, jump_false: 0, k: offset }
    }

    /// Skips instructions by whether the word equals `k`.
    pub(super) const fn if_equal_else(k: u32, jump_true: u8, jump_false: u8) -> Self {
        Self { code: 0x15, jump_true, jump_false, k }
    }

    /// Goes on `jump_true` instructions further if the word equals `k`.
    const fn if_equal(k: u32, jump_true: u8) -> Self {
        Self { code: 0x15, jump_true, jump_false: 0, k }
    }

    /// Keeps the bits of the word that are in `mask`.
    pub(super) const fn and(mask: u32) -> Self {
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

    pub(super) const fn ret(action: u32) -> Self {
        Self { code: 0x06, jump_true: 0, jump_false: 0, k: action }
    }

    /// Has a program go on with what follows it, where it would allow.
    pub(super) fn go_on(program: &mut [Self]) {
        for (instruction, left) in program.iter_mut().rev().zip(0..) {
            if (instruction.code, instruction.k) == (Self::ret(0).code, RETURN_ALLOW) {
                *instruction = Self::skip(left);
            }
        }
    }

    pub(super) fn bytes(self) -> [u8; 8] {
        let [code_0, code_1] = self.code.to_ne_bytes();
        let [k_0, k_1, k_2, k_3] = self.k.to_ne_bytes();
        [code_0, code_1, self.jump_true, self.jump_false, k_0, k_1, k_2, k_3]
    }
}

impl From<&seccompiler::sock_filter> for Instruction {
    fn from(instruction: &seccompiler::sock_filter) -> Self {
        let seccompiler::sock_filter { code, jt, jf, k } = *instruction;
        Self { code, jump_true: jt, jump_false: jf, k }
    }
}

/// Numbers from `first` up to the next range's first, and what becomes of them.
#[derive(Debug, Clone, Copy)]
struct Range {
    first: u32,
    verdict: Verdict,
}

/// Programs for the calls whose arguments are looked at, by number. Each loads what it compares.
pub(super) type Checks = BTreeMap<u32, Vec<Instruction>>;

/// Compiles a table that is sorted by number; numbers that are not in it are missing.
pub(super) fn compile(table: &[(u32, &str, Verdict)], checks: &Checks) -> Vec<u8> {
    const OFFSET_OF_NUMBER: u32 = 0;
    const OFFSET_OF_ARCHITECTURE: u32 = 4;
    let mut program = vec![
        // First: the numbers below are those of one architecture.
        Instruction::load(OFFSET_OF_ARCHITECTURE),
        Instruction::if_equal(ARCHITECTURE, 1),
        Instruction::ret(RETURN_KILL_PROCESS),
        Instruction::load(OFFSET_OF_NUMBER),
    ];
    let tree = subtree(&ranges(table));
    let mut programs: Vec<Instruction> = Vec::new();
    for (node, left) in tree.iter().zip((0..tree.len()).rev()) {
        program.push(match node {
            Node::Instruction(instruction) => *instruction,
            Node::Check(number) => {
                // Over what is left of the tree, and the programs of others.
                let skip = Instruction::skip(length(left + programs.len()));
                // One without a program is refused.
                let refused = [Instruction::ret(action(Verdict::Deny))];
                programs.extend(checks.get(number).map_or(&refused[..], Vec::as_slice));
                skip
            }
        });
    }
    program.extend(programs);
    program.into_iter().flat_map(Instruction::bytes).collect()
}

fn length(instructions: usize) -> u32 {
    u32::try_from(instructions).unwrap_or(u32::MAX)
}

/// Neighbours with the same verdict become one range, and gaps ranges of their own. The last one
/// has no end, so it holds the numbers of x32, which have bit 30 set.
fn ranges(table: &[(u32, &str, Verdict)]) -> Vec<Range> {
    let mut ranges: Vec<Range> = Vec::new();
    let mut add = |first, verdict| {
        // Of those that are checked, each has its own program.
        let is_new = |last: &Range| verdict == Verdict::Check || last.verdict != verdict;
        if ranges.last().is_none_or(is_new) {
            ranges.push(Range { first, verdict });
        }
    };
    let mut next = 0;
    for (number, _, verdict) in table {
        if *number != next {
            add(next, Verdict::Missing);
        }
        add(*number, *verdict);
        next = number + 1;
    }
    add(next, Verdict::Missing);
    ranges
}

fn action(verdict: Verdict) -> u32 {
    let errno = |errno: i32| RETURN_ERRNO | errno.unsigned_abs();
    match verdict {
        Verdict::Allow => RETURN_ALLOW,
        // Of those that depend on something, no one has said what they come to.
        Verdict::Deny | Verdict::Check | Verdict::Held(..) => errno(libc::EPERM),
        Verdict::Missing => errno(libc::ENOSYS),
        Verdict::Unsupported => errno(libc::EOPNOTSUPP),
    }
}

/// What is one instruction in the end.
enum Node {
    Instruction(Instruction),
    /// Goes on with the program of a call.
    Check(u32),
}

fn subtree(ranges: &[Range]) -> Vec<Node> {
    let (lower, upper) = ranges.split_at(ranges.len() / 2);
    let Some(middle) = upper.first() else {
        // Not reached: a table has at least the range of what is missing.
        return vec![Node::Instruction(Instruction::ret(RETURN_KILL_PROCESS))];
    };
    if lower.is_empty() {
        return vec![match middle.verdict {
            Verdict::Check => Node::Check(middle.first),
            verdict => Node::Instruction(Instruction::ret(action(verdict))),
        }];
    }
    let (lower, upper) = (subtree(lower), subtree(upper));
    let condition = match u8::try_from(lower.len()) {
        Ok(distance) => vec![Instruction::if_at_least(middle.first, distance, 0)],
        // A condition jumps over 255 instructions at most.
        Err(_) => vec![
            Instruction::if_at_least(middle.first, 0, 1),
            Instruction::skip(length(lower.len())),
        ],
    };
    condition.into_iter().map(Node::Instruction).chain(lower).chain(upper).collect()
}
