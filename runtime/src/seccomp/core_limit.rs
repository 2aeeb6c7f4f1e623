//! The limit of core dumps stays what init has set.
//!
//! With a `core_pattern` of `|program` the kernel runs a program of the host as root, and hands it
//! the memory of what crashed, unless that has `RLIMIT_CORE` 1; a lower limit does not keep it from
//! that (core(5)). But programs that hold secrets, as ssh-agent and sudo, set it to 0, and end where
//! that fails. So to set it succeeds, and changes nothing.

use super::tree::{Instruction, RETURN_ERRNO};

/// The beginning of a program, which leaves to what follows it all that it does not decide. Init's
/// own changes carry `key` in the fifth argument of `prlimit(2)`, of which the kernel takes four.
pub(super) fn compile(key: u64) -> Vec<u8> {
    const NUMBER: u32 = 0;
    /// The low half of an argument; the high one is at 4 more.
    const fn argument(number: u32) -> u32 {
        16 + 8 * number
    }
    const SETRLIMIT: u32 = libc::SYS_setrlimit as u32;
    const PRLIMIT: u32 = libc::SYS_prlimit64 as u32;
    const CORE: u32 = libc::RLIMIT_CORE;
    let [low, high] = [key as u32, (key >> 32) as u32];
    let program = [
        Instruction::load(NUMBER),
        // To 4; setrlimit(resource, …).
        Instruction::if_equal_else(SETRLIMIT, 0, 2),
        Instruction::load(argument(0)),
        // To `done`, or the end.
        Instruction::if_equal_else(CORE, 15, 17),
        // 4: prlimit64(pid, resource, new, old).
        Instruction::if_equal_else(PRLIMIT, 0, 16),
        Instruction::load(argument(1)),
        Instruction::if_equal_else(CORE, 0, 14),
        // Without a new one it is a question.
        Instruction::load(argument(2)),
        Instruction::if_equal_else(0, 0, 2),
        Instruction::load(argument(2) + 4),
        Instruction::if_equal_else(0, 10, 0),
        // 11: init.
        Instruction::load(argument(4)),
        Instruction::if_equal_else(low, 0, 2),
        Instruction::load(argument(4) + 4),
        Instruction::if_equal_else(high, 6, 0),
        // 15: one that asks for the old one, too, would take for it what its memory holds.
        Instruction::load(argument(3)),
        Instruction::if_equal_else(0, 0, 3),
        Instruction::load(argument(3) + 4),
        Instruction::if_equal_else(0, 0, 1),
        // 19: `done`.
        Instruction::ret(RETURN_ERRNO),
        Instruction::ret(RETURN_ERRNO | libc::EPERM.unsigned_abs()),
        // 21: the end.
    ];
    program.into_iter().flat_map(Instruction::bytes).collect()
}
