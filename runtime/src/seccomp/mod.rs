//! The system call filter, compiled on the host and installed by init.
//!
//! How a filter is shaped decides what creating a sandbox costs. At install the kernel runs it once
//! for each system call number; a chain of comparisons, one for each call of an allow-list, takes
//! longer than all the rest of create. So the verdict on the number is a balanced tree over ranges
//! of numbers ([`ranges`]), which for the few calls on whose arguments it depends leads to a program
//! of the call's own, compiled by seccompiler ([`arguments`]). The kernel keeps the verdict on a
//! call that is allowed whatever its arguments, and runs the filter for the others each time.

mod arguments;
mod core_limit;
mod ranges;
mod table;

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::error::{Error, Result};
use crate::sys::owner::PerProcess;

/// What becomes of a system call.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Verdict {
    /// It is made.
    Allow,
    /// It is made if its arguments are harmless, else it fails as its rule says.
    Check,
    /// It fails with EPERM.
    Deny,
    /// It fails with ENOSYS, as on a kernel that does not have it.
    Missing,
}

/// The program of the default policy, an array of `struct sock_filter`. Compiled once in a process.
pub(crate) fn default_filter() -> Result<&'static [u8]> {
    static FILTER: PerProcess<Vec<u8>> = PerProcess::new();
    let filter = FILTER.get_or_try(|| {
        let checks = arguments::compile(core_key()?)
            .map_err(|error| Error::invalid("system call policy", error.to_string()))?;
        Ok(ranges::compile(table::TABLE, &checks))
    })?;
    Ok(filter)
}

/// What init shows the filters to change the limit of core dumps; the same for all sandboxes of
/// this process.
pub(crate) fn core_key() -> Result<u64> {
    static KEY: PerProcess<u64> = PerProcess::new();
    let key = KEY.get_or_try(|| {
        let (path, mut bytes) = (Path::new("/dev/urandom"), [0; 8]);
        let read = File::open(path).and_then(|mut random| random.read_exact(&mut bytes));
        read.map_err(Error::at("read", path))?;
        Ok(u64::from_ne_bytes(bytes))
    })?;
    Ok(*key)
}

/// A program that no one can make a subvolume of btrfs under: what is in one is not counted in the
/// limit of the one around it.
pub(crate) fn no_subvolumes() -> Result<Vec<u8>> {
    arguments::no_subvolumes()
        .map_err(|error| Error::invalid("system call policy", error.to_string()))
}

#[cfg(test)]
mod tests {
    use super::Verdict::{Allow, Check, Deny, Missing};
    use super::{arguments, default_filter, no_subvolumes, ranges, table::TABLE};

    const X86_64: u32 = 0xC000_003E;
    const I386: u32 = 0x4000_0003;
    const ALLOW: u32 = 0x7fff_0000;
    const KILL: u32 = 0x8000_0000;
    const EPERM: u32 = 0x0005_0000 | libc::EPERM as u32;
    const ENOSYS: u32 = 0x0005_0000 | libc::ENOSYS as u32;
    const ENOMEM: u32 = 0x0005_0000 | libc::ENOMEM as u32;
    const EINVAL: u32 = 0x0005_0000 | libc::EINVAL as u32;
    const EAFNOSUPPORT: u32 = 0x0005_0000 | libc::EAFNOSUPPORT as u32;
    const EPROTONOSUPPORT: u32 = 0x0005_0000 | libc::EPROTONOSUPPORT as u32;
    const ESOCKTNOSUPPORT: u32 = 0x0005_0000 | libc::ESOCKTNOSUPPORT as u32;

    /// Runs a program as the kernel would: the few instructions that filters consist of.
    fn run(program: &[u8], arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend(number.to_ne_bytes());
        data.extend(arch.to_ne_bytes());
        data.extend([0; 8]);
        data.extend(arguments.iter().flat_map(|argument| argument.to_ne_bytes()));
        let word = |at: u32| {
            let at = at as usize;
            u32::from_ne_bytes(data[at..at + 4].try_into().unwrap())
        };
        let (mut accumulator, mut at) = (0_u32, 0_usize);
        loop {
            let code = u16::from_ne_bytes(program[at * 8..at * 8 + 2].try_into().unwrap());
            let (jt, jf) = (program[at * 8 + 2], program[at * 8 + 3]);
            let k = u32::from_ne_bytes(program[at * 8 + 4..at * 8 + 8].try_into().unwrap());
            let jump = |condition: bool| usize::from(if condition { jt } else { jf });
            at += 1;
            match code {
                0x20 => accumulator = word(k),
                0x54 => accumulator &= k,
                0x05 => at += k as usize,
                0x15 => at += jump(accumulator == k),
                0x25 => at += jump(accumulator > k),
                0x35 => at += jump(accumulator >= k),
                0x06 => return k,
                other => panic!("instruction {other:#x}"),
            }
        }
    }

    fn verdict(arch: u32, number: u32, arguments: [u64; 6]) -> u32 {
        run(default_filter().unwrap(), arch, number, arguments)
    }

    fn number(name: &str) -> u32 {
        TABLE.iter().find(|row| row.1 == name).unwrap().0
    }

    fn call(name: &str, arguments: &[u64]) -> u32 {
        let mut all = [0; 6];
        all[..arguments.len()].copy_from_slice(arguments);
        verdict(X86_64, number(name), all)
    }

    #[test]
    fn the_table_is_sorted_and_names_each_call_once() {
        assert!(TABLE.windows(2).all(|rows| rows[0].0 < rows[1].0));
        let names: std::collections::BTreeSet<_> = TABLE.iter().map(|row| row.1).collect();
        assert_eq!(names.len(), TABLE.len());
    }

    #[test]
    fn each_number_gets_the_verdict_of_the_table() {
        let allowed = |name: &str| vec![ranges::Instruction::ret(ALLOW | number(name))];
        let checked = TABLE.iter().filter(|row| row.2 == Check);
        let checks = checked.map(|row| (row.0, allowed(row.1))).collect();
        let program = ranges::compile(TABLE, &checks);
        for number in (0..2048).chain([0x4000_0000, 0x4000_0001, 0x7fff_ffff, u32::MAX]) {
            let row = TABLE.iter().find(|row| row.0 == number);
            let expected = match row.map_or(Missing, |row| row.2) {
                Allow => ALLOW,
                Check => ALLOW | number,
                Deny => EPERM,
                Missing => ENOSYS,
            };
            assert_eq!(run(&program, X86_64, number, [0; 6]), expected, "{number} {row:?}");
        }
    }

    #[test]
    fn what_is_checked_has_a_program_and_nothing_else_has() {
        let checked: Vec<u32> =
            TABLE.iter().filter(|row| row.2 == Check).map(|row| row.0).collect();
        assert_eq!(arguments::compile(0).unwrap().into_keys().collect::<Vec<_>>(), checked);
        // What has none all the same is refused.
        let program = ranges::compile(TABLE, &ranges::Checks::new());
        assert_eq!(run(&program, X86_64, number("clone"), [0; 6]), EPERM);
    }

    #[test]
    fn a_foreign_architecture_is_killed_and_x32_is_missing() {
        for number in [0, 1, 60, 102, 400] {
            assert_eq!(verdict(I386, number, [0; 6]), KILL);
            assert_eq!(verdict(X86_64, 0x4000_0000 | number, [0; 6]), ENOSYS);
        }
    }

    #[test]
    fn new_namespaces_are_refused_and_threads_are_not() {
        const THREAD: u64 = 0x003d_0f00;
        /// What init marks trees with.
        const MARK: u64 = 0x200_0000;
        for flag in
            [0x2_0000, 0x200_0000, 0x400_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000]
        {
            assert_eq!(call("clone", &[flag | THREAD]), EPERM, "{flag:#x}");
            assert_eq!(call("unshare", &[flag | 1]), EPERM, "{flag:#x}");
            if flag != MARK {
                assert_eq!(call("unshare", &[flag]), EPERM, "{flag:#x}");
                assert_eq!(call("unshare", &[flag | MARK]), EPERM, "{flag:#x}");
            }
        }
        assert_eq!(call("unshare", &[MARK]), ALLOW);
        assert_eq!(call("clone", &[THREAD]), ALLOW);
        assert_eq!(call("clone", &[17]), ALLOW);
        assert_eq!(call("clone3", &[]), ENOSYS);
    }

    #[test]
    fn only_the_families_and_protocols_of_ordinary_programs_have_sockets() {
        for family in (0..64).filter(|family| ![1, 2, 10, 16].contains(family)) {
            assert_eq!(call("socket", &[family, 1, 0]), EAFNOSUPPORT, "{family}");
            assert_eq!(call("socketpair", &[family, 1, 0]), EAFNOSUPPORT, "{family}");
        }
        for family in [1, 2, 10, 16] {
            assert_eq!(call("socket", &[family, 1 | 0o2_000_000, 0]), ALLOW, "{family}");
            // The kernel looks at the low half only, and so does the filter.
            assert_eq!(call("socket", &[family | 1 << 32, 1, 0]), ALLOW, "{family}");
        }
        assert_eq!(call("socket", &[38 | 1 << 32, 5, 0]), EAFNOSUPPORT);
        // NETLINK_AUDIT among them, without which users are made and logged in.
        for protocol in 1..32 {
            assert_eq!(call("socket", &[16, 3, protocol]), EPROTONOSUPPORT, "{protocol}");
        }
        for protocol in [33, 132, 136, 256, 262] {
            assert_eq!(call("socket", &[2, 3, protocol]), EPROTONOSUPPORT, "{protocol}");
            assert_eq!(call("socket", &[10, 3, protocol]), EPROTONOSUPPORT, "{protocol}");
        }
        // Those that a type has; for others the kernel looks for a module.
        for (family, ping) in [(2, 1), (10, 58)] {
            for protocol in (0..300).chain([u64::from(u32::MAX)]) {
                let of = |kind: u64, has: bool| {
                    let expected = if has { ALLOW } else { EPROTONOSUPPORT };
                    for more in [0, 0o2_004_000, 1 << 32] {
                        for protocol in [protocol, protocol | 1 << 32] {
                            let verdict = call("socket", &[family, kind | more, protocol]);
                            assert_eq!(verdict, expected, "{family} {kind} {protocol}");
                        }
                    }
                };
                of(1, [0, 6].contains(&protocol));
                of(2, [0, 17, ping].contains(&protocol));
            }
            assert_eq!(call("socket", &[family, 3, 0]), EPROTONOSUPPORT);
            assert_eq!(call("socket", &[family, 3, ping]), ALLOW);
            assert_eq!(call("socket", &[family, 3, 255]), ALLOW);
        }
        assert_eq!(call("socket", &[2, 2, 17]), ALLOW);
        assert_eq!(call("socket", &[2, 3, 1]), ALLOW);
        // Of AF_INET, the types that need no module; 10 makes a packet socket out of it.
        for (family, kind) in [2, 10].into_iter().flat_map(|f| (0..16).map(move |k| (f, k))) {
            let verdict = if [1, 2, 3].contains(&kind) { ALLOW } else { ESOCKTNOSUPPORT };
            let protocol = if kind == 3 { 255 } else { 0 };
            for more in [0, 0o2_004_000, 1 << 32] {
                let made = call("socket", &[family, kind | more, protocol]);
                assert_eq!(made, verdict, "{family} {kind}");
            }
        }
        // SOCK_SEQPACKET of AF_UNIX is in use.
        assert_eq!(call("socket", &[1, 5, 0]), ALLOW);
        assert_eq!(call("socketpair", &[1, 5, 0]), ALLOW);
        assert_eq!(call("socketpair", &[1, 1, 0]), ALLOW);
    }

    #[test]
    fn terminals_take_no_input_from_inside() {
        for request in [0x5412, 0x541c] {
            assert_eq!(call("ioctl", &[0, request]), EPERM);
            assert_eq!(call("ioctl", &[0, request | 1 << 32]), EPERM);
        }
        // Another driver of the line is none that this machine has.
        assert_eq!(call("ioctl", &[0, 0x5423]), EINVAL);
        assert_eq!(call("ioctl", &[0, 0x5423 | 1 << 32]), EINVAL);
        assert_eq!(call("ioctl", &[0, 0x5401]), ALLOW);
        assert_eq!(call("ioctl", &[0, 0x5413]), ALLOW);
    }

    #[test]
    fn nothing_asks_for_a_module_of_bridges() {
        for request in [0x8940, 0x8941, 0x8982, 0x8983, 0x89a0, 0x89a1] {
            assert_eq!(call("ioctl", &[0, request]), EINVAL);
            assert_eq!(call("ioctl", &[0, request | 1 << 32]), EINVAL);
        }
        // SIOCGIFCONF, SIOCGIFFLAGS, SIOCGIFINDEX, SIOCETHTOOL.
        for request in [0x8912, 0x8913, 0x8933, 0x8946] {
            assert_eq!(call("ioctl", &[0, request]), ALLOW);
        }
    }

    #[test]
    fn what_is_counted_for_the_whole_machine_is_not_there() {
        for name in ["io_setup", "io_submit", "io_getevents", "io_pgetevents", "io_destroy"] {
            assert_eq!(call(name, &[]), ENOSYS, "{name}");
        }
        // MAP_HUGETLB with a size of 2 MiB, MFD_HUGETLB, SHM_HUGETLB.
        for (name, at, flag, refused) in [
            ("mmap", 3, 0x5404_0000, ENOMEM),
            ("memfd_create", 1, 4, EINVAL),
            ("shmget", 2, 0o4_000, ENOMEM),
        ] {
            // The last of those that are refused has all flags.
            for (flags, verdict) in [
                (flag, refused),
                (flag | 1, refused),
                (flag | 1 << 32, refused),
                (0xffff_ffff, refused),
                (0x23, ALLOW),
            ] {
                let mut arguments = [0; 6];
                arguments[at] = flags;
                assert_eq!(call(name, &arguments), verdict, "{name} {flags:#x}");
            }
        }
    }

    #[test]
    fn files_have_no_leases() {
        for command in [1024, 1026] {
            assert_eq!(call("fcntl", &[0, command]), EINVAL);
            assert_eq!(call("fcntl", &[0, command | 1 << 32]), EINVAL);
        }
        // F_GETFL, F_GETLEASE, F_DUPFD_CLOEXEC, F_SETPIPE_SZ, F_ADD_SEALS, F_OFD_SETLK.
        for command in [3, 1025, 1030, 1031, 1033, 37] {
            assert_eq!(call("fcntl", &[0, command]), ALLOW);
        }
    }

    #[test]
    fn subvolumes_alone_are_refused_where_they_would_escape_a_limit() {
        let filter = no_subvolumes().unwrap();
        let run = |number, request| run(&filter, X86_64, number, [0, request, 0, 0, 0, 0]);
        for request in [0x5000_940e, 0x5000_9401, 0x5000_9418, 0x5000_9417] {
            assert_eq!(run(16, request), EPERM);
            assert_eq!(run(16, request | 1 << 32), EPERM);
            for number in [0, 15, 17, 400, 2048] {
                assert_eq!(run(number, request), ALLOW);
            }
        }
        assert_eq!(run(16, 0x5401), ALLOW);
        assert_eq!(super::tests::run(&filter, I386, 16, [0; 6]), KILL);
    }

    #[test]
    fn limits_are_changed_of_oneself_only() {
        assert_eq!(call("prlimit64", &[0, 7]), ALLOW);
        assert_eq!(call("prlimit64", &[1, 7]), EPERM);
        assert_eq!(call("prlimit64", &[1 << 32, 7]), ALLOW);
    }

    #[test]
    fn the_limit_of_core_dumps_is_inits_to_change() {
        const DONE: u32 = 0x0005_0000;
        const CORE: u64 = 4;
        const POINTERS: [u64; 3] = [0x7fff_0000, 1 << 32, 0x7fff_0000_1000];
        let key = super::core_key().unwrap();
        assert_eq!(call("getrlimit", &[CORE]), ALLOW);
        for resource in [CORE, CORE | 1 << 32] {
            assert_eq!(call("setrlimit", &[resource, 1]), DONE);
            for pointer in POINTERS {
                assert_eq!(call("prlimit64", &[0, resource, pointer]), DONE);
                assert_eq!(call("prlimit64", &[0, resource, 0, pointer]), ALLOW);
                // It would say nothing of the old one.
                assert_eq!(call("prlimit64", &[0, resource, pointer, pointer]), EPERM);
                assert_eq!(call("prlimit64", &[0, resource, pointer, 0, key]), ALLOW);
                for wrong in [0, key ^ 1, key ^ 1 << 63, key >> 32, key << 32] {
                    assert_eq!(call("prlimit64", &[0, resource, pointer, 0, wrong]), DONE);
                }
            }
        }
        for other in (0..16).filter(|other| *other != CORE) {
            assert_eq!(call("setrlimit", &[other, 1]), ALLOW);
            assert_eq!(call("prlimit64", &[0, other, 1, 1]), ALLOW);
        }
    }

    #[test]
    fn personalities_that_weaken_are_refused() {
        for persona in [0, 8, 0x2_0000, 0x2_0008, 0xffff_ffff] {
            assert_eq!(call("personality", &[persona]), ALLOW, "{persona:#x}");
        }
        for persona in [0x4_0000, 0x10_0000, 0x40_0000, 1] {
            assert_eq!(call("personality", &[persona]), EPERM, "{persona:#x}");
        }
    }
}
