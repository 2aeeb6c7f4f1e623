//! The limit of core dumps stays what init has set.
//!
//! With a `core_pattern` of `|program` the kernel runs a program of the host as root, and hands it
//! the memory of what crashed, unless that has `RLIMIT_CORE` 1; a lower limit does not keep it from
//! that (core(5)). But programs that hold secrets, as ssh-agent and sudo, set it to 0, and end
//! where that fails. So to set it succeeds, and changes nothing.

use super::ranges::{Instruction, RETURN_ALLOW, RETURN_ERRNO};

/// The low half of an argument; the high one is at 4 more.
pub(super) const fn argument(number: u32) -> u32 {
    16 + 8 * number
}

const CORE: u32 = libc::RLIMIT_CORE;

/// `setrlimit(resource, …)`.
pub(super) const SETRLIMIT: [Instruction; 4] = [
    Instruction::load(argument(0)),
    Instruction::if_equal_else(CORE, 1, 0),
    Instruction::ret(RETURN_ALLOW),
    Instruction::ret(RETURN_ERRNO),
];

/// `prlimit64(pid, resource, new, old)`: the beginning of a program, which leaves to what follows
/// it all that it does not decide. Init's own changes carry `key` in the fifth argument, of which
/// the kernel takes four.
pub(super) fn prlimit(key: u64) -> [Instruction; 16] {
    let [low, high] = [key as u32, (key >> 32) as u32];
    [
        Instruction::load(argument(1)),
        Instruction::if_equal_else(CORE, 0, 14),
        // Without a new one it is a question.
        Instruction::load(argument(2)),
        Instruction::if_equal_else(0, 0, 2),
        Instruction::load(argument(2) + 4),
        Instruction::if_equal_else(0, 10, 0),
        // 6: init.
        Instruction::load(argument(4)),
        Instruction::if_equal_else(low, 0, 2),
        Instruction::load(argument(4) + 4),
        Instruction::if_equal_else(high, 6, 0),
        // 10: one that asks for the old one, too, would take for it what its memory holds.
        Instruction::load(argument(3)),
        Instruction::if_equal_else(0, 0, 3),
        Instruction::load(argument(3) + 4),
        Instruction::if_equal_else(0, 0, 1),
        // 14: done.
        Instruction::ret(RETURN_ERRNO),
        Instruction::ret(RETURN_ERRNO | libc::EPERM.unsigned_abs()),
        // 16: the end.
    ]
}
