//! Rules on the arguments of calls that are harmless with some and not with others.
//!
//! A rule says what is refused. Arguments that the kernel takes as 32 bits are compared on their
//! low half alone: to compare all 64 is to let anything pass that has a bit set above.

use std::collections::BTreeMap;

use seccompiler::{
    BackendError, BpfProgram, SeccompAction, SeccompCmpArgLen::Dword, SeccompCmpOp,
    SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::core_limit;
use super::ranges::{Checks, Instruction, RETURN_ALLOW, RETURN_ASK, RETURN_ERRNO};

/// Namespaces, as flags of `unshare(2)`, but those of host names and cgroups: init marks the
/// processes of a job with the one, and has them see their cgroups as the root by the other. The
/// kernel refuses both to a guest, for want of CAP_SYS_ADMIN.
const NAMESPACES: i32 = libc::CLONE_NEWNS
    | libc::CLONE_NEWIPC
    | libc::CLONE_NEWUSER
    | libc::CLONE_NEWPID
    | libc::CLONE_NEWNET
    | libc::CLONE_NEWTIME;

/// Those of `clone(2)`, where the bit of CLONE_NEWTIME is a part of the exit signal.
const CLONED_NAMESPACES: i32 =
    NAMESPACES & !libc::CLONE_NEWTIME | libc::CLONE_NEWUTS | libc::CLONE_NEWCGROUP;

/// Families of sockets that programs use; of the others, each has been a way into the kernel.
const FAMILIES: [i32; 4] = [libc::AF_UNIX, libc::AF_INET, libc::AF_INET6, libc::AF_NETLINK];

/// What the types of AF_INET and AF_INET6 have without a module. For any other the kernel runs
/// modprobe(8), twice for each call: as root of the host, in a time that no one is charged for.
const STREAMS: [i32; 2] = [0, libc::IPPROTO_TCP];
const DATAGRAMS: [i32; 2] = [0, libc::IPPROTO_UDP];
const PINGS: [(i32, i32); 2] =
    [(libc::AF_INET, libc::IPPROTO_ICMP), (libc::AF_INET6, libc::IPPROTO_ICMPV6)];

/// Have the kernel do so for bridges and virtual networks, before it asks who may make one:
/// `SIOCGIFBR`, `SIOCSIFBR`, `SIOCGIFVLAN`, `SIOCSIFVLAN`, `SIOCBRADDBR`, `SIOCBRDELBR`.
const BRIDGES: [u64; 6] = [0x8940, 0x8941, 0x8982, 0x8983, 0x89a0, 0x89a1];

/// Protocols of AF_INET and AF_INET6: whatever the type implies, and with CAP_NET_RAW, raw ones.
const PROTOCOLS: [i32; 6] = [
    0,
    libc::IPPROTO_ICMP,
    libc::IPPROTO_TCP,
    libc::IPPROTO_UDP,
    libc::IPPROTO_ICMPV6,
    libc::IPPROTO_RAW,
];

/// The mask of a socket's type, without its flags, and the types that AF_INET and AF_INET6 have not
/// without a module, or not at all: 5 and 6 have the kernel load SCTP and DCCP, and 10 turns
/// AF_INET into AF_PACKET. SOCK_STREAM, SOCK_DGRAM and SOCK_RAW remain.
const SOCKET_TYPE: u64 = 0xf;
/// As a mask and what is left by it.
const NO_SOCKET_TYPES: [(u64, u64); 3] = [(SOCKET_TYPE, 0), (4, 4), (8, 8)];

/// Input into the terminal of someone else, and into the console.
const TERMINAL_INPUT: [u64; 2] = [0x5412, 0x541c];

/// Has the kernel load and run another driver of a terminal's line: old network protocols.
const TIOCSETD: u64 = 0x5423;

/// Have someone else's `open(2)` wait for up to 45 s, and tell of what is done in a directory.
const LEASES: [i32; 2] = [libc::F_SETLEASE, libc::F_NOTIFY];

/// What makes subvolumes and snapshots of btrfs: `BTRFS_IOC_SUBVOL_CREATE`,
/// `BTRFS_IOC_SNAP_CREATE`, and the second version of each.
const SUBVOLUMES: [u64; 4] = [0x5000_940e, 0x5000_9401, 0x5000_9418, 0x5000_9417];

/// What a personality may consist of: that of 32-bit programs, an old version's number, fixed
/// addresses (debuggers and sanitizers ask for them), and where in memory they are. What else there
/// is has memory executable that is not said to be, or page 0 mapped, or is of other systems.
/// `PER_LINUX32`, `UNAME26`, `ADDR_NO_RANDOMIZE`, `ADDR_COMPAT_LAYOUT`, `ADDR_LIMIT_32BIT` and
/// `ADDR_LIMIT_3GB`.
const PERSONALITIES: i32 = 0x8 | 0x2_0000 | 0x4_0000 | 0x20_0000 | 0x80_0000 | 0x800_0000;

/// What sets options of a tracer: `PTRACE_SETOPTIONS`, the older number of it, `PTRACE_SEIZE`.
const TRACING_OPTIONS: [u32; 3] = [0x4200, 21, 0x4206];

/// `PTRACE_O_TRACEEXIT`: the traced one stops on its way out, and SIGKILL does not move it. Two
/// that do so to each other never end, nor does the sandbox that they are in.
const TRACE_EXIT: u32 = 0x40;

/// The process id of init, inside.
const INIT: u64 = 1;
/// What sets how a process is scheduled, by its id as the first argument.
const SCHEDULING: [i64; 4] = [
    libc::SYS_sched_setparam,
    libc::SYS_sched_setscheduler,
    libc::SYS_sched_setaffinity,
    libc::SYS_sched_setattr,
];
/// What does so for one, for a group or for all of a user, and which number says the last.
const PRIORITIES: [(i64, u64); 2] = [(libc::SYS_setpriority, 2), (libc::SYS_ioprio_set, 3)];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Compiles all rules of the default policy, for each call. What a machine may lack fails as there,
/// so that programs do without; the rest with EPERM.
pub(super) fn compile(core_key: u64) -> Result<Checks, BackendError> {
    let of_errors = [
        (libc::ENOMEM, no_huge_pages()?),
        (libc::EINVAL, no_huge_files()?),
        (libc::EINVAL, no_leases_and_drivers()?),
        (libc::EAFNOSUPPORT, no_families()?),
        (libc::EOPNOTSUPP, no_pairs()?),
        (libc::ESOCKTNOSUPPORT, no_socket_types()?),
        (libc::EPROTONOSUPPORT, no_protocols()?),
        (libc::EPERM, refused()?),
    ];
    let mut checks = Checks::from([
        (libc::SYS_setrlimit as u32, core_limit::SETRLIMIT.to_vec()),
        (libc::SYS_prlimit64 as u32, core_limit::prlimit(core_key).to_vec()),
        (libc::SYS_clone as u32, no_bits(CLONED_NAMESPACES).to_vec()),
        (libc::SYS_unshare as u32, no_bits(NAMESPACES).to_vec()),
        (libc::SYS_personality as u32, no_personalities().to_vec()),
        (libc::SYS_ptrace as u32, ask_for_stops_at_the_end().to_vec()),
    ]);
    for (errno, rules) in of_errors {
        for (call, rules) in rules {
            // seccompiler knows one error number for each program.
            let program = compiled(Rules::from([(call, rules)]), errno)?;
            let check = checks.entry(call as u32).or_default();
            Instruction::go_on(check);
            check.extend(program.iter().map(Instruction::from));
        }
    }
    Ok(checks)
}

/// Of the pages that are counted for the whole machine, none are left.
fn no_huge_pages() -> Result<Rules, BackendError> {
    let mut rules = Rules::new();
    let [map, shared] = [libc::MAP_HUGETLB, libc::SHM_HUGETLB].map(value);
    add(&mut rules, libc::SYS_mmap, vec![masked(3, map, map)?])?;
    add(&mut rules, libc::SYS_shmget, vec![masked(2, shared, shared)?])?;
    Ok(rules)
}

/// As before Linux 4.14. Chromium asks with all flags at once whether the call is there, and takes
/// no other error for a yes.
fn no_huge_files() -> Result<Rules, BackendError> {
    let mut rules = Rules::new();
    let huge = u64::from(libc::MFD_HUGETLB);
    add(&mut rules, libc::SYS_memfd_create, vec![masked(1, huge, huge)?])?;
    Ok(rules)
}

/// As on a file system that has no leases, and a kernel with one driver of lines and no bridges.
fn no_leases_and_drivers() -> Result<Rules, BackendError> {
    let mut rules = Rules::new();
    for command in LEASES.map(value) {
        add(&mut rules, libc::SYS_fcntl, vec![is(1, command)?])?;
    }
    for request in BRIDGES.into_iter().chain([TIOCSETD]) {
        add(&mut rules, libc::SYS_ioctl, vec![is(1, request)?])?;
    }
    Ok(rules)
}

/// As on a kernel without those families: what logs in or makes users asks for some, and takes no
/// other error for an answer that it can go on with.
fn no_families() -> Result<Rules, BackendError> {
    let mut rules = Rules::new();
    add(&mut rules, libc::SYS_socket, none_of(0, FAMILIES.map(value))?)?;
    add(&mut rules, libc::SYS_socketpair, none_of(0, FAMILIES.map(value))?)?;
    Ok(rules)
}

/// Families that there are, and whose sockets come alone. The kernel says so, once it has made two.
fn no_pairs() -> Result<Rules, BackendError> {
    let mut rules = Rules::new();
    for family in FAMILIES.into_iter().filter(|family| *family != libc::AF_UNIX) {
        add(&mut rules, libc::SYS_socketpair, vec![is(0, value(family))?])?;
    }
    Ok(rules)
}

fn no_socket_types() -> Result<Rules, BackendError> {
    let mut rules = Rules::new();
    for family in [libc::AF_INET, libc::AF_INET6].map(value) {
        for (mask, kind) in NO_SOCKET_TYPES {
            let conditions = vec![is(0, family)?, masked(1, mask, kind)?];
            add(&mut rules, libc::SYS_socket, conditions)?;
        }
    }
    Ok(rules)
}

/// Of netlink, routes and links alone: not the audit log, above all.
fn no_protocols() -> Result<Rules, BackendError> {
    let mut rules = Rules::new();
    let netlink = vec![is(0, value(libc::AF_NETLINK))?, is_not(2, 0)?];
    add(&mut rules, libc::SYS_socket, netlink)?;
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut conditions = vec![is(0, value(family))?];
        conditions.extend(none_of(2, PROTOCOLS.map(value))?);
        add(&mut rules, libc::SYS_socket, conditions)?;
    }
    let of = |family, kind| {
        let [family, kind] = [family, kind].map(value);
        Ok(vec![is(0, family)?, masked(1, SOCKET_TYPE, kind)?])
    };
    for (family, ping) in PINGS {
        let mut streams: Vec<_> = of(family, libc::SOCK_STREAM)?;
        streams.extend(none_of(2, STREAMS.map(value))?);
        let mut datagrams: Vec<_> = of(family, libc::SOCK_DGRAM)?;
        datagrams.extend(none_of(2, DATAGRAMS.map(value))?);
        datagrams.push(is_not(2, value(ping))?);
        let mut raw: Vec<_> = of(family, libc::SOCK_RAW)?;
        raw.push(is(2, 0)?);
        for conditions in [streams, datagrams, raw] {
            add(&mut rules, libc::SYS_socket, conditions)?;
        }
    }
    Ok(rules)
}

fn refused() -> Result<Rules, BackendError> {
    let mut rules = Rules::new();
    for request in TERMINAL_INPUT {
        add(&mut rules, libc::SYS_ioctl, vec![is(1, request)?])?;
    }
    // With one id, or with CAP_SYS_RESOURCE, nothing else keeps init's limits from a guest.
    add(&mut rules, libc::SYS_prlimit64, vec![is(0, INIT)?])?;
    // Nor, with CAP_SYS_NICE, how it is scheduled.
    for call in SCHEDULING {
        add(&mut rules, call, vec![is(0, INIT)?])?;
    }
    for (call, of_user) in PRIORITIES {
        add(&mut rules, call, vec![is(1, INIT)?])?;
        add(&mut rules, call, vec![is(0, of_user)?])?;
    }
    Ok(rules)
}

/// Refuses a first argument with one of the bits: five instructions, where each bit by itself would
/// take as many.
fn no_bits(bits: i32) -> [Instruction; 5] {
    [
        Instruction::load(core_limit::argument(0)),
        Instruction::and(bits.cast_unsigned()),
        Instruction::if_equal_else(0, 0, 1),
        Instruction::ret(RETURN_ALLOW),
        Instruction::ret(RETURN_ERRNO | libc::EPERM.unsigned_abs()),
    ]
}

/// Has init decide whether a process may have another stop at its end: it may where that is its
/// child (`init/src/tracing.rs`).
fn ask_for_stops_at_the_end() -> [Instruction; 9] {
    let [set, older, seize] = TRACING_OPTIONS;
    [
        Instruction::load(core_limit::argument(0)),
        Instruction::if_equal_else(set, 2, 0),
        Instruction::if_equal_else(older, 1, 0),
        Instruction::if_equal_else(seize, 0, 3),
        Instruction::load(core_limit::argument(3)),
        Instruction::and(TRACE_EXIT),
        Instruction::if_equal_else(TRACE_EXIT, 1, 0),
        Instruction::ret(RETURN_ALLOW),
        Instruction::ret(RETURN_ASK),
    ]
}

/// Refuses what is no personality of [`PERSONALITIES`], but for the question which it is.
fn no_personalities() -> [Instruction; 6] {
    const QUESTION: u32 = u32::MAX;
    let [load, and, none, allow, refuse] = no_bits(!PERSONALITIES);
    [load, Instruction::if_equal_else(QUESTION, 2, 0), and, none, allow, refuse]
}

/// Compiles the one rule that no one makes subvolumes.
pub(super) fn no_subvolumes() -> Result<Vec<u8>, BackendError> {
    let mut rules = Rules::new();
    for request in SUBVOLUMES {
        add(&mut rules, libc::SYS_ioctl, vec![is(1, request)?])?;
    }
    let program = compiled(rules, libc::EPERM)?;
    Ok(program.iter().map(Instruction::from).flat_map(Instruction::bytes).collect())
}

fn add(
    rules: &mut Rules,
    call: i64,
    conditions: Vec<SeccompCondition>,
) -> Result<(), BackendError> {
    rules.entry(call).or_default().push(SeccompRule::new(conditions)?);
    Ok(())
}

/// What the rules match fails with the error number; all else is allowed.
fn compiled(rules: Rules, errno: i32) -> Result<BpfProgram, BackendError> {
    let errno = SeccompAction::Errno(errno.unsigned_abs());
    let filter = SeccompFilter::new(rules, SeccompAction::Allow, errno, TargetArch::x86_64)?;
    BpfProgram::try_from(filter)
}

type Condition = Result<SeccompCondition, BackendError>;

fn is(argument: u8, value: u64) -> Condition {
    SeccompCondition::new(argument, Dword, SeccompCmpOp::Eq, value)
}

fn is_not(argument: u8, value: u64) -> Condition {
    SeccompCondition::new(argument, Dword, SeccompCmpOp::Ne, value)
}

fn masked(argument: u8, mask: u64, value: u64) -> Condition {
    SeccompCondition::new(argument, Dword, SeccompCmpOp::MaskedEq(mask), value)
}

/// All of these hold together: the argument is none of the values.
fn none_of<const N: usize>(
    argument: u8,
    values: [u64; N],
) -> Result<Vec<SeccompCondition>, BackendError> {
    values.into_iter().map(|value| is_not(argument, value)).collect()
}

/// A constant of C as the kernel sees it in 32 bits.
fn value(constant: i32) -> u64 {
    u64::from(constant.cast_unsigned())
}
