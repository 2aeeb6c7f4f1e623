//! The programs, and in what they are known to differ.

use std::fmt;

use adl_runtime::Capability;

/// A program, or what several have in common.
pub(super) struct Program {
    pub(super) name: &'static str,
    /// What is tried, in a few words.
    pub(super) what: &'static str,
    /// What the sandbox is given beside what each of them has.
    pub(super) capability: Option<Capability>,
    script: &'static str,
}

impl Program {
    /// What is run: one job after the other, in one sandbox. In a script a line `#job` parts them.
    pub(super) fn jobs(&self) -> Vec<String> {
        let job = |part: &str| concat!(include_str!("check.sh"), "\n").to_owned() + part;
        self.script.split("\n#job\n").map(job).collect()
    }
}

macro_rules! programs {
    ($($name:literal $(with $capability:ident)?: $what:literal,)*) => {
        &[$(Program {
            name: $name,
            what: $what,
            capability: [$(Capability::$capability)?].first().copied(),
            script: include_str!(concat!($name, ".sh")),
        }),*]
    };
}

pub(super) const PROGRAMS: &[Program] = programs! {
    "users": "useradd, usermod, chpasswd, su, runuser, chage, userdel",
    "dpkg": "dpkg and apt, with a package that makes a user, from a repository",
    "git": "history, merge, rebase, clone of a file and from a server, worktree, gc",
    "python": "multiprocessing, shared memory, asyncio, sockets, venv",
    "daemon": "a server that lives from one job to the next",
    "terminal": "tmux, job control, pseudo-terminals",
    "sudo": "sudo by root; by a user, as su, it is refused",
    "openssh": "the package; logins on loopback, by key and password, with a terminal, scp, sftp",
    "postgresql": "the package; the server between jobs, queries, a crash, dump",
    "redis": "the package; the server between jobs, a fork that saves",
    "nginx": "the package; the server between jobs, TLS, logs to stdout",
    "pip": "venv, wheel, sdist, what is edited, without an index",
    "node": "npm with a tarball, a server, workers, children, its own test runner",
    "rust": "cargo offline: build, test, doc, package",
    "go": "build, cgo, test, race detector",
    "java": "TLS on loopback, processes, collectors, a heap by the limit",
    "compilers": "C, C++, ASan, LSan, TSan, UBSan, gcov",
    "tracing": "gdb, valgrind, process_vm_readv",
    "strace": "of a program, of children; faults put in",
    "attach" with SysPtrace: "strace of what runs",
    "chromium": "a screenshot, without its sandbox and with it",
    "cpython": "test modules of CPython's own that lean on the system",
};

/// Who makes the sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Side {
    Root,
    /// An ordinary user, with one id.
    User,
}

impl Side {
    pub(super) const ALL: [Self; 2] = [Self::Root, Self::User];
}

impl fmt::Display for Side {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Root => "root",
            Self::User => "user",
        })
    }
}

/// Something that is not the same inside and outside.
pub(super) struct Difference {
    pub(super) program: &'static str,
    pub(super) sides: &'static [Side],
    /// The names of the checks, each of which is not the same. None for any, of which one is not.
    pub(super) checks: &'static [&'static str],
    pub(super) why: &'static str,
}

impl Difference {
    pub(super) fn covers(&self, check: &str) -> bool {
        self.checks.is_empty() || self.checks.contains(&check)
    }
}

const ROOT: &[Side] = &[Side::Root];
const USER: &[Side] = &[Side::User];
const BOTH: &[Side] = &Side::ALL;

macro_rules! differences {
    ($($sides:ident $program:literal [$($check:literal),*] $why:literal;)*) => {
        &[$(Difference {
            program: $program,
            sides: $sides,
            checks: &[$($check),*],
            why: $why,
        }),*]
    };
}

pub(super) const DIFFERENCES: &[Difference] = differences! {
    ROOT "users" ["newgrp"] "No program has set-user-id rights: nosuid, no_new_privs.";
    USER "users" [
        "alice may not", "alice writes at home", "chown", "many ids", "newgrp", "runuser",
        "set-group-id", "setpriv", "su", "su as a login", "userdel"
    ] "Users can be made, but there is one id to be.";
    USER "dpkg" [] "One id: apt becomes _apt, and the package gives files to a user.";
    ROOT "sudo" ["root by a user, by set-user-id"] "No program has set-user-id rights.";
    USER "sudo" [] "One id: apt becomes _apt, and sudo another user.";
    USER "openssh" [] "One id: apt becomes _apt, and sshd another user.";
    USER "postgresql" [] "One id: apt becomes _apt, and the server is no root.";
    USER "redis" [] "One id: apt becomes _apt, and the server another user.";
    USER "nginx" [] "One id: apt becomes _apt, and the workers another user.";
    BOTH "tracing" ["valgrind: an invalid read"]
        "The limit of core dumps is 1 rather than 0: valgrind says that it dumps, and does not.";
    ROOT "chromium" ["as a user with its own sandbox"]
        "No namespaces can be made inside, and no program has set-user-id rights.";
    USER "chromium" ["as a user with its own sandbox"] "One id.";
    BOTH "cpython" ["test_fcntl"] "No dnotify: F_NOTIFY fails with EINVAL.";
    ROOT "cpython" ["test_posix"] "No owner above 65535: the test makes a file that of 2147483648.";
    USER "cpython" ["test_os", "test_posix"] "One id: chown, setgroups.";
    BOTH "cpython" ["test_shutil"] "Attributes trusted.* are for the root of the machine.";
    BOTH "cpython" ["test_socket"] "No UDP-Lite, which the test takes for granted.";
    BOTH "cpython" ["test_subprocess"] "RLIMIT_NPROC holds for root, too; the limit of open files.";
};
