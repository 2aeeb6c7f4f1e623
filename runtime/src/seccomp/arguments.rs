//! Rules on the arguments of calls that are harmless with some and not with others.
//!
//! A rule says what is refused. Arguments that the kernel takes as 32 bits are compared on their
//! low half alone: to compare all 64 is to let anything pass that has a bit set above.

use std::collections::BTreeMap;

use super::Verdict;
use super::tree;

/// Fails with an error number if all conditions hold.
#[derive(Debug)]
pub(super) struct Rule {
    pub(super) conditions: Vec<Condition>,
    pub(super) errno: i32,
}

/// Whether the low half of an argument, masked, equals a value, or does not.
#[derive(Debug, Clone, Copy)]
pub(super) struct Condition {
    pub(super) argument: u8,
    pub(super) mask: u32,
    pub(super) value: u32,
    pub(super) is_equal: bool,
}

/// The rules of each call that has any.
pub(super) type Rules = BTreeMap<u32, Vec<Rule>>;

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

/// Protocols of AF_INET and AF_INET6: whatever the type implies, and with CAP_NET_RAW, raw ones.
const PROTOCOLS: [i32; 6] = [
    0,
    libc::IPPROTO_ICMP,
    libc::IPPROTO_TCP,
    libc::IPPROTO_UDP,
    libc::IPPROTO_ICMPV6,
    libc::IPPROTO_RAW,
];

/// The mask of a socket's type, without its flags, and the types that AF_INET and AF_INET6 have
/// without a module: SOCK_STREAM, SOCK_DGRAM and SOCK_RAW. Of the others, 5 and 6 have the kernel
/// load SCTP and DCCP, and 10 turns AF_INET into AF_PACKET.
const SOCKET_TYPE: u32 = 0xf;
const SOCKET_TYPES: [u32; 3] = [1, 2, 3];

/// Input into the terminal of someone else, and into the console.
const TERMINAL_INPUT: [u32; 2] = [0x5412, 0x541c];

/// Has the kernel load and run another driver of a terminal's line: old network protocols.
const TIOCSETD: u32 = 0x5423;

/// Have someone else's `open(2)` wait for up to 45 s, and tell of what is done in a directory.
const LEASES: [i32; 2] = [libc::F_SETLEASE, libc::F_NOTIFY];

/// What makes subvolumes and snapshots of btrfs: `BTRFS_IOC_SUBVOL_CREATE`, `BTRFS_IOC_SNAP_CREATE`,
/// and the second version of each.
const SUBVOLUMES: [u32; 4] = [0x5000_940e, 0x5000_9401, 0x5000_9418, 0x5000_9417];

/// Linux, with or without an old version's number, fixed addresses or both; and the question
/// which it is. Others switch protections of memory off.
const PERSONALITIES: [u32; 5] = [0, 0x8, 0x2_0000, 0x2_0008, 0xffff_ffff];

/// All rules of the default policy. What a machine may lack fails as there; the rest with EPERM.
pub(super) fn rules() -> Rules {
    let mut rules = Rules::new();
    let mut fail = |errno, call, conditions| fail(&mut rules, errno, call, conditions);

    // Of the pages and requests that are counted for the whole machine, none are left.
    let huge = value(libc::MAP_HUGETLB);
    fail(libc::ENOMEM, libc::SYS_mmap, vec![masked(3, huge, huge)]);
    let huge = libc::MFD_HUGETLB;
    fail(libc::ENOMEM, libc::SYS_memfd_create, vec![masked(1, huge, huge)]);
    let huge = value(libc::SHM_HUGETLB);
    fail(libc::ENOMEM, libc::SYS_shmget, vec![masked(2, huge, huge)]);

    // As on a file system that has no leases.
    for command in LEASES {
        fail(libc::EINVAL, libc::SYS_fcntl, vec![is(1, value(command))]);
    }

    for family in [libc::AF_INET, libc::AF_INET6].map(value) {
        let types = SOCKET_TYPES.map(|kind| Condition { mask: SOCKET_TYPE, ..is_not(1, kind) });
        let conditions = [is(0, family)].into_iter().chain(types);
        fail(libc::ESOCKTNOSUPPORT, libc::SYS_socket, conditions.collect());
    }
    fail(libc::EINVAL, libc::SYS_ioctl, vec![is(1, TIOCSETD)]);

    let mut refuse = |call, conditions| fail(libc::EPERM, call, conditions);
    for flag in NAMESPACES.map(value) {
        refuse(libc::SYS_clone, vec![masked(0, flag, flag)]);
    }

    // What init marks the processes of a job with; to a guest the kernel refuses it, for want of
    // CAP_SYS_ADMIN.
    refuse(libc::SYS_unshare, vec![is_not(0, value(libc::CLONE_NEWCGROUP))]);

    refuse(libc::SYS_socket, none_of(0, FAMILIES.map(value)));
    refuse(libc::SYS_socket, vec![is(0, value(libc::AF_NETLINK)), is_not(2, 0)]);
    for family in [libc::AF_INET, libc::AF_INET6] {
        let mut conditions = vec![is(0, value(family))];
        conditions.extend(none_of(2, PROTOCOLS.map(value)));
        refuse(libc::SYS_socket, conditions);
    }
    refuse(libc::SYS_socketpair, vec![is_not(0, value(libc::AF_UNIX))]);

    for request in TERMINAL_INPUT {
        refuse(libc::SYS_ioctl, vec![is(1, request)]);
    }
    refuse(libc::SYS_prlimit64, vec![is_not(0, 0)]);
    refuse(libc::SYS_personality, none_of(0, PERSONALITIES));
    rules
}

/// Compiles the one rule that no one makes subvolumes.
pub(super) fn no_subvolumes() -> Vec<u8> {
    let mut rules = Rules::new();
    for request in SUBVOLUMES {
        fail(&mut rules, libc::EPERM, libc::SYS_ioctl, vec![is(1, request)]);
    }
    tree::compile(rules.keys().map(|call| (*call, Verdict::Check)), Verdict::Allow, &rules)
}

fn fail(rules: &mut Rules, errno: i32, call: i64, conditions: Vec<Condition>) {
    // The numbers of calls are small.
    let call = u32::try_from(call).unwrap_or(u32::MAX);
    rules.entry(call).or_default().push(Rule { conditions, errno });
}

fn is(argument: u8, value: u32) -> Condition {
    Condition { argument, mask: u32::MAX, value, is_equal: true }
}

fn is_not(argument: u8, value: u32) -> Condition {
    Condition { is_equal: false, ..is(argument, value) }
}

fn masked(argument: u8, mask: u32, value: u32) -> Condition {
    Condition { mask, ..is(argument, value) }
}

/// All of these hold together: the argument is none of the values.
fn none_of<const N: usize>(argument: u8, values: [u32; N]) -> Vec<Condition> {
    values.map(|value| is_not(argument, value)).to_vec()
}

/// A constant of C as the kernel sees it in 32 bits.
fn value(constant: i32) -> u32 {
    constant.cast_unsigned()
}
