//! The system call filter, compiled on the host and installed by init.
//!
//! How a filter is shaped decides what creating a sandbox costs. At install the kernel runs it once
//! for each system call number; a chain of comparisons, one for each call of an allow-list, takes
//! longer than all the rest of create. So the verdict on the number is a balanced tree over ranges
//! of numbers ([`ranges`]), which for the few calls on whose arguments it depends leads to a
//! program of the call's own ([`arguments`]). The kernel keeps the verdict on a call that is
//! allowed whatever its arguments, and runs the filter for the others each time.

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
    /// It is made where commands hold the capability of this bit, else it fails.
    Held(u64, Refusal),
    /// It fails with EPERM.
    Deny,
    /// It fails with ENOSYS, as on a kernel that does not have it.
    Missing,
    /// It fails with EOPNOTSUPP, as on a file that does not have it.
    Unsupported,
}

/// How a call fails that takes a capability.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Refusal {
    /// With EPERM.
    Deny,
    /// With ENOSYS.
    Missing,
    /// As its rule says, if its arguments are not harmless.
    Check,
}

/// The capabilities that calls of the table are bound to, as bits. The kernel asks for others, too,
/// but for those of the host, which no one inside has.
const SYS_PTRACE: u64 = 1 << 19;
const SYS_ADMIN: u64 = 1 << 21;
const SYS_NICE: u64 = 1 << 23;
const BOUND: [u64; 3] = [SYS_PTRACE, SYS_ADMIN, SYS_NICE];

/// The program of the default policy for commands that may hold `capabilities` (bit `n` is number
/// `n`), an array of `struct sock_filter`. Each is compiled once in a process.
pub(crate) fn default_filter(capabilities: u64) -> Result<&'static [u8]> {
    static FILTERS: [PerProcess<Vec<u8>>; 1 << BOUND.len()] =
        [const { PerProcess::new() }; 1 << BOUND.len()];
    let which = BOUND.iter().enumerate();
    let which = which.map(|(bit, held)| usize::from(capabilities & held != 0) << bit).sum();
    let Some(filter) = FILTERS.get::<usize>(which) else {
        return Err(Error::invalid("system call policy", "no such set of capabilities"));
    };
    let filter = filter.get_or_try(|| {
        let checks = arguments::compile(core_key()?)
            .map_err(|error| Error::invalid("system call policy", error.to_string()))?;
        Ok(ranges::compile(&table_for(capabilities), &checks))
    })?;
    Ok(filter)
}

type Row = (u32, &'static str, Verdict);

/// The table as it is where commands may hold `capabilities`.
fn table_for(capabilities: u64) -> Vec<Row> {
    let decide = |&(number, name, verdict): &Row| {
        let verdict = match verdict {
            Verdict::Held(capability, _) if capabilities & capability != 0 => Verdict::Allow,
            Verdict::Held(_, Refusal::Deny) => Verdict::Deny,
            Verdict::Held(_, Refusal::Missing) => Verdict::Missing,
            Verdict::Held(_, Refusal::Check) => Verdict::Check,
            other => other,
        };
        (number, name, verdict)
    };
    table::TABLE.iter().map(decide).collect()
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
    use super::Verdict::{Allow, Check, Deny, Held, Missing, Unsupported};
    use super::{
        BOUND, Refusal, SYS_ADMIN, SYS_NICE, SYS_PTRACE, arguments, default_filter, no_subvolumes,
        ranges, table::TABLE, table_for,
    };

    const X86_64: u32 = 0xC000_003E;
    const I386: u32 = 0x4000_0003;
    const ALLOW: u32 = 0x7fff_0000;
    const KILL: u32 = 0x8000_0000;
    const ASK: u32 = ranges::RETURN_ASK;
    const EPERM: u32 = 0x0005_0000 | libc::EPERM as u32;
    const ENOSYS: u32 = 0x0005_0000 | libc::ENOSYS as u32;
    const ENOMEM: u32 = 0x0005_0000 | libc::ENOMEM as u32;
    const EINVAL: u32 = 0x0005_0000 | libc::EINVAL as u32;
    const EAFNOSUPPORT: u32 = 0x0005_0000 | libc::EAFNOSUPPORT as u32;
    const EPROTONOSUPPORT: u32 = 0x0005_0000 | libc::EPROTONOSUPPORT as u32;
    const EOPNOTSUPP: u32 = 0x0005_0000 | libc::EOPNOTSUPP as u32;
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
        run(default_filter(0).unwrap(), arch, number, arguments)
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
        let table = table_for(0);
        let checked = table.iter().filter(|row| row.2 == Check);
        let checks = checked.map(|row| (row.0, allowed(row.1))).collect();
        let program = ranges::compile(&table, &checks);
        for number in (0..2048).chain([0x4000_0000, 0x4000_0001, 0x7fff_ffff, u32::MAX]) {
            let row = TABLE.iter().find(|row| row.0 == number);
            let expected = match row.map_or(Missing, |row| row.2) {
                Allow => ALLOW,
                Check | Held(_, Refusal::Check) => ALLOW | number,
                Deny | Held(_, Refusal::Deny) => EPERM,
                Missing | Held(_, Refusal::Missing) => ENOSYS,
                Unsupported => EOPNOTSUPP,
            };
            assert_eq!(run(&program, X86_64, number, [0; 6]), expected, "{number} {row:?}");
        }
    }

    #[test]
    fn what_is_checked_has_a_program_and_nothing_else_has() {
        let checked: Vec<u32> =
            table_for(0).iter().filter(|row| row.2 == Check).map(|row| row.0).collect();
        assert_eq!(arguments::compile(0).unwrap().into_keys().collect::<Vec<_>>(), checked);
        // What has none all the same is refused.
        let program = ranges::compile(&table_for(0), &ranges::Checks::new());
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
        /// What init gives to jobs.
        const CGROUP: u64 = 0x200_0000;
        const UTS: u64 = 0x400_0000;
        for flag in [0x2_0000, 0x800_0000, 0x1000_0000, 0x2000_0000, 0x4000_0000] {
            for more in [0, THREAD, CGROUP, UTS, 1 << 32] {
                assert_eq!(call("clone", &[flag | more]), EPERM, "{flag:#x} {more:#x}");
                assert_eq!(call("unshare", &[flag | more]), EPERM, "{flag:#x} {more:#x}");
            }
        }
        // Of time, which clone(2) does not know.
        assert_eq!(call("unshare", &[0x80]), EPERM);
        assert_eq!(call("clone", &[CGROUP | THREAD]), EPERM);
        assert_eq!(call("clone", &[UTS | THREAD]), EPERM);
        // CLONE_FS, CLONE_FILES, CLONE_SYSVSEM: of oneself.
        for flags in [0x200, 0x400, 0x4_0000, 0x4_0600] {
            assert_eq!(call("unshare", &[flags]), ALLOW, "{flags:#x}");
        }
        assert_eq!(call("unshare", &[CGROUP]), ALLOW);
        assert_eq!(call("unshare", &[UTS]), ALLOW);
        assert_eq!(call("clone", &[THREAD]), ALLOW);
        assert_eq!(call("clone", &[17]), ALLOW);
        assert_eq!(call("clone3", &[]), ENOSYS);
    }

    #[test]
    fn only_the_families_and_protocols_of_ordinary_programs_have_sockets() {
        for family in (0..64).filter(|family| ![1, 2, 10, 16].contains(family)) {
            assert_eq!(call("socket", &[family, 1, 0]), EAFNOSUPPORT, "{family}");
            assert_eq!(call("socketpair", &[family, 1, 0]), EAFNOSUPPORT, "{family}");
            assert_eq!(call("socketpair", &[family | 1 << 32, 1, 0]), EAFNOSUPPORT, "{family}");
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
        for family in [2, 10, 16] {
            assert_eq!(call("socketpair", &[family, 1, 0]), EOPNOTSUPP, "{family}");
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
    fn limits_are_changed_of_all_but_init() {
        for pid in [0, 2, 4_000_000, 1 << 32] {
            assert_eq!(call("prlimit64", &[pid, 7, 1]), ALLOW, "{pid}");
            assert_eq!(call("prlimit64", &[pid, 7]), ALLOW, "{pid}");
        }
        for pid in [1, 1 | 1 << 32] {
            assert_eq!(call("prlimit64", &[pid, 7, 1]), EPERM);
            assert_eq!(call("prlimit64", &[pid, 7]), EPERM);
        }
    }

    #[test]
    fn calls_that_take_a_capability_are_there_where_it_is_held() {
        let of = |capabilities: u64, name: &str| {
            run(default_filter(capabilities).unwrap(), X86_64, number(name), [0; 6])
        };
        let placement = ["mbind", "set_mempolicy", "get_mempolicy", "migrate_pages", "move_pages"];
        let names = ["sethostname", "setdomainname"];
        for (capability, refused, calls) in [
            (SYS_NICE, ENOSYS, &placement[..]),
            (SYS_NICE, ENOSYS, &["set_mempolicy_home_node"]),
            (SYS_PTRACE, ENOSYS, &["pidfd_getfd", "process_madvise"]),
            (SYS_ADMIN, EPERM, &names),
        ] {
            for call in calls {
                assert_eq!(of(0, call), refused, "{call}");
                assert_eq!(of(capability, call), ALLOW, "{call}");
                assert_eq!(of(!capability, call), refused, "{call}");
                assert_eq!(of(u64::MAX, call), ALLOW, "{call}");
            }
        }
        // What no capability inside is the right for, or what would reach init.
        let never = [
            "mount",
            "umount2",
            "pivot_root",
            "setns",
            "open_tree",
            "move_mount",
            "fsopen",
            "mount_setattr",
            "open_by_handle_at",
            "bpf",
            "perf_event_open",
            "fanotify_init",
            "reboot",
            "init_module",
            "finit_module",
            "acct",
            "settimeofday",
            "clock_settime",
            "syslog",
            "iopl",
            "ioperm",
            "vhangup",
            "quotactl",
            "swapon",
            "kexec_load",
        ];
        for name in never {
            assert_eq!(of(u64::MAX, name), EPERM, "{name}");
        }
        // One filter for each set of those that matter.
        let place = |capabilities| default_filter(capabilities).unwrap().as_ptr();
        assert_eq!(place(1), place(!(SYS_NICE | SYS_PTRACE | SYS_ADMIN)));
        let all = BOUND.into_iter().fold(0, |all, one| all | one);
        assert_eq!(place(all), place(u64::MAX));
        assert_ne!(place(SYS_NICE), place(SYS_PTRACE));
    }

    #[test]
    fn init_is_asked_who_may_hold_up_the_end_of_another() {
        const EXIT: u64 = 0x40;
        let of = |capabilities: u64, request: u64, options: u64| {
            let arguments = [request, 7, 0, options, 0, 0];
            run(default_filter(capabilities).unwrap(), X86_64, number("ptrace"), arguments)
        };
        // PTRACE_SETOPTIONS, PTRACE_SEIZE, PTRACE_OLDSETOPTIONS.
        for request in [0x4200, 0x4206, 21, 0x4200 | 1 << 32] {
            for options in [EXIT, EXIT | 0x1f, EXIT | 1 << 40] {
                assert_eq!(of(0, request, options), ASK, "{request:#x} {options:#x}");
                assert_eq!(of(SYS_PTRACE, request, options), ALLOW, "{request:#x} {options:#x}");
            }
            // PTRACE_O_EXITKILL and all others but that.
            assert_eq!(of(0, request, 0x10_00bf), ALLOW, "{request:#x}");
        }
        // PTRACE_TRACEME, PEEKDATA, POKEDATA, CONT, ATTACH, DETACH, GETREGSET, INTERRUPT.
        for request in [0, 2, 5, 7, 16, 17, 0x4204, 0x4207] {
            assert_eq!(of(0, request, EXIT), ALLOW, "{request:#x}");
        }
    }

    #[test]
    fn what_a_smaller_kernel_lacks_is_missing_rather_than_refused() {
        for name in
            ["add_key", "request_key", "keyctl", "modify_ldt", "ustat", "clone3", "io_uring_setup"]
        {
            assert_eq!(call(name, &[]), ENOSYS, "{name}");
        }
        // As on the root itself, an overlay.
        assert_eq!(call("name_to_handle_at", &[]), EOPNOTSUPP);
        // The kernel has a program that someone traces make them, in whose place none is prepared
        // for an error.
        for name in ["uretprobe", "uprobe"] {
            assert_eq!(call(name, &[]), ALLOW, "{name}");
        }
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
        // Those of setarch(8): -R of gdb and of sanitizers, -L, -B, -3, --uname-2.6.
        let fine = [0, 8, 0x2_0000, 0x4_0000, 0x20_0000, 0x80_0000, 0x800_0000, 0x4_0008];
        for persona in fine.into_iter().chain([0xffff_ffff, 0x4_0000 | 1 << 32]) {
            assert_eq!(call("personality", &[persona]), ALLOW, "{persona:#x}");
        }
        // READ_IMPLIES_EXEC, MMAP_PAGE_ZERO, and those of other systems.
        for persona in
            [0x40_0000, 0x10_0000, 0x44_0000, 1, 6, 0xff, 0x8000_0000, 0x40_0000 | 1 << 40]
        {
            assert_eq!(call("personality", &[persona]), EPERM, "{persona:#x}");
        }
    }

    /// The rows of a table of `docs/seccomp.md`, by its heading.
    fn documented(heading: &str) -> Vec<Vec<String>> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/../docs/seccomp.md");
        let text = std::fs::read_to_string(path).unwrap();
        let section = text.split("\n## ").find_map(|part| part.strip_prefix(heading)).unwrap();
        let rows = section.lines().filter(|line| line.starts_with("| ")).skip(1);
        rows.map(|row| row.split('|').map(|cell| cell.trim().to_owned()).collect()).collect()
    }

    /// What is in backticks.
    fn quoted(cell: &str) -> Vec<&str> {
        cell.split('`').skip(1).step_by(2).collect()
    }

    fn said(word: &str) -> u32 {
        match word {
            "there" => ALLOW,
            "init decides" => ASK,
            "succeeds" => 0x0005_0000,
            "EPERM" => EPERM,
            "ENOSYS" => ENOSYS,
            "EOPNOTSUPP" => EOPNOTSUPP,
            "EINVAL" => EINVAL,
            "ENOMEM" => ENOMEM,
            "EAFNOSUPPORT" => EAFNOSUPPORT,
            "EPROTONOSUPPORT" => EPROTONOSUPPORT,
            "ESOCKTNOSUPPORT" => ESOCKTNOSUPPORT,
            other => panic!("{other}"),
        }
    }

    #[test]
    fn the_document_says_of_each_call_what_the_filter_does() {
        let mut seen = Vec::new();
        for row in documented("Calls that are refused") {
            for name in quoted(&row[1]) {
                // Whatever is held.
                for capabilities in [0, u64::MAX] {
                    let filter = default_filter(capabilities).unwrap();
                    let verdict = run(filter, X86_64, number(name), [0; 6]);
                    assert_eq!(verdict, said(&row[2]), "{name}");
                }
                seen.push(name.to_owned());
            }
        }
        for row in documented("Calls that take a capability") {
            let held = match quoted(&row[2])[..] {
                ["SYS_NICE"] => SYS_NICE,
                ["SYS_PTRACE"] => SYS_PTRACE,
                ["SYS_ADMIN"] => SYS_ADMIN,
                ref other => panic!("{other:?}"),
            };
            for name in quoted(&row[1]) {
                let of = |capabilities| {
                    run(default_filter(capabilities).unwrap(), X86_64, number(name), [0; 6])
                };
                let [without, with] = [of(!held), of(held)];
                assert_eq!((without, with), (said(&row[3]), ALLOW), "{name}");
                seen.push(name.to_owned());
            }
        }
        let mut examples = std::collections::BTreeSet::new();
        for row in documented("Calls that depend on arguments") {
            for example in quoted(&row[1]) {
                let (name, values) = example.strip_suffix(')').unwrap().split_once('(').unwrap();
                let values: Vec<u64> = values.split(", ").map(value).collect();
                assert_eq!(call(name, &values), said(&row[2]), "{example}");
                examples.insert(name.to_owned());
            }
        }
        seen.extend(examples);
        seen.sort();
        let table = table_for(0).into_iter().filter(|row| row.2 != Allow);
        let mut all: Vec<_> = table.map(|row| row.1.to_owned()).collect();
        all.sort();
        assert_eq!(seen, all);
    }

    fn value(text: &str) -> u64 {
        match text.strip_prefix("0x") {
            Some(digits) => u64::from_str_radix(digits, 16).unwrap(),
            None => text.parse().unwrap(),
        }
    }
}
