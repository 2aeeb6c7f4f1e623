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
use super::ranges::{Checks, Instruction};

/// Namespaces, as flags of `clone(2)`. CLONE_NEWTIME is not one: the bit is a part of the exit
/// signal there.
const NAMESPACES: [i32; 7] = [
    libc::CLONE_NEWNS,
    libc::CLONE_NEWCGROUP,
    libc::CLONE_NEWUTS,
    libc::CLONE_NEWIPC,
    libc::CLONE_NEWUSER,
    libc::CLONE_NEWPID,
    libc::CLONE_NEWNET,
];

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

/// Linux, with or without an old version's number, fixed addresses or both; and the question
/// which it is. Others switch protections of memory off.
const PERSONALITIES: [u64; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

type Rules = BTreeMap<i64, Vec<SeccompRule>>;

/// Compiles all rules of the default policy, for each call. What a machine may lack fails as there,
/// so that programs do without; the rest with EPERM.
pub(super) fn compile(core_key: u64) -> Result<Checks, BackendError> {
    let of_errors = [
        (libc::ENOMEM, no_huge_pages()?),
        (libc::EINVAL, no_huge_files()?),
        (libc::EINVAL, no_leases_and_drivers()?),
        (libc::EAFNOSUPPORT, no_families()?),
        (libc::ESOCKTNOSUPPORT, no_socket_types()?),
        (libc::EPROTONOSUPPORT, no_protocols()?),
        (libc::EPERM, refused()?),
    ];
    let mut checks = Checks::from([
        (libc::SYS_setrlimit as u32, core_limit::SETRLIMIT.to_vec()),
        (libc::SYS_prlimit64 as u32, core_limit::prlimit(core_key).to_vec()),
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
    add(&mut rules, libc::SYS_socketpair, vec![is_not(0, value(libc::AF_UNIX))?])?;
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
    let mut refuse = |call, conditions| add(&mut rules, call, conditions);
    for flag in NAMESPACES.map(value) {
        refuse(libc::SYS_clone, vec![masked(0, flag, flag)?])?;
    }

    // What init marks the processes of a job with; to a guest the kernel refuses it, for want of
    // CAP_SYS_ADMIN.
    refuse(libc::SYS_unshare, vec![is_not(0, value(libc::CLONE_NEWCGROUP))?])?;

    for request in TERMINAL_INPUT {
        refuse(libc::SYS_ioctl, vec![is(1, request)?])?;
    }
    refuse(libc::SYS_prlimit64, vec![is_not(0, 0)?])?;
    refuse(libc::SYS_personality, none_of(0, PERSONALITIES)?)?;
    Ok(rules)
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
