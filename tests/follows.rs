//! No call of the host follows a path but those that were looked at.
//!
//! What a guest may have had a hand in is opened by `runtime/src/sys/open.rs` alone: beneath a
//! directory that is open, through no link, without waiting. This reads the sources for calls that
//! take a path and follow it. A new one makes it fail: use `sys/open.rs`, or say here why no guest
//! can have had a hand in that path.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use crate::harness::{Need, needs, repository};

/// Functions that follow a path or what is in the last place of it, by their modules.
const FUNCTIONS: [(&str, &[&str]); 5] = [
    (
        "fs",
        &[
            "canonicalize",
            "chown",
            "copy",
            "create_dir",
            "create_dir_all",
            "exists",
            "hard_link",
            "lchown",
            "metadata",
            "read",
            "read_dir",
            "read_link",
            "read_to_string",
            "remove_dir",
            "remove_dir_all",
            "remove_file",
            "rename",
            "set_permissions",
            "symlink",
            "symlink_metadata",
            "write",
        ],
    ),
    ("fcntl", &["open", "openat", "readlink", "rename"]),
    ("stat", &["lstat", "mkdir", "mknod", "stat", "utimes"]),
    ("statfs", &["statfs"]),
    (
        "unistd",
        &[
            "access", "chdir", "chown", "chroot", "lchown", "link", "linkat", "mkdir", "mkfifo",
            "rmdir", "symlink", "truncate", "unlink",
        ],
    ),
];

/// What else follows, whatever is before it.
const OTHERS: [&str; 20] = [
    ".canonicalize(",
    ".exists(",
    ".is_dir(",
    ".is_file(",
    ".metadata(",
    ".read_dir(",
    ".read_link(",
    ".symlink_metadata(",
    ".try_exists(",
    "AtFlags::empty(",
    "Dir::open(",
    "Dir::openat(",
    "DirBuilder::new(",
    "FchmodatFlags::FollowSymlink",
    "File::create(",
    "File::create_new(",
    "File::open(",
    "File::options(",
    "OpenOptions::new(",
    "UtimensatFlags::FollowSymlink",
];

/// A file, its calls, and why no guest can have had a hand in what they follow.
type Allowed = (&'static str, &'static [(&'static str, usize)], &'static str);

const STATE: &str = "the state directory, which the calling user alone can enter";
const CGROUPS: &str = "cgroup file systems, where no guest writes and no link can be";
const PROC: &str = "files of procfs that no guest has made";
const OF_HOST: &str =
    "the host's /etc and /usr, where root alone writes, and what is new in the state directory";
const BENCH: &str = "temporary files of its own";

const ALLOWED: &[Allowed] = &[
    (
        "bin/adl/bases.rs",
        &[("fs::metadata", 2), ("fs::read_link", 1), ("fs::symlink_metadata", 2)],
        "what the caller has named, up to where guests write; nothing is opened",
    ),
    (
        "bin/adl/bench/alive.rs",
        &[("fs::read_dir", 1), ("fs::read_to_string", 1)],
        "`/proc/self/fd` and `/proc/meminfo`",
    ),
    (
        "bin/adl/bench/files.rs",
        &[
            ("DirBuilder::new", 1),
            ("File::create", 1),
            ("fs::metadata", 1),
            ("fs::remove_dir_all", 1),
            ("fs::remove_file", 2),
        ],
        BENCH,
    ),
    (
        "bin/adl/bench/flat.rs",
        &[("File::open", 1), ("fs::create_dir", 1), ("fs::create_dir_all", 1)],
        "`/dev/null`, and a temporary directory of its own",
    ),
    (
        "bin/adl/bench/floor.rs",
        &[(".is_dir", 1), ("fs::canonicalize", 1), ("fs::create_dir_all", 1), ("fs::write", 1)],
        "a temporary directory of its own, and what the caller has named as an image",
    ),
    ("bin/adl/bench/mod.rs", &[("OpenOptions::new", 1), ("fs::remove_file", 1)], BENCH),
    (
        "bin/adl/bench/peers.rs",
        &[
            (".is_dir", 3),
            ("File::create", 1),
            ("fs::create_dir", 2),
            ("fs::read_link", 2),
            ("fs::read_to_string", 1),
            ("fs::symlink", 1),
        ],
        "a temporary directory of its own, `/proc`, and what is at the top of the host's root",
    ),
    (
        "bin/adl/bench/reset.rs",
        &[(".exists", 1), (".metadata", 1)],
        "calls of `Files`, which are done inside",
    ),
    ("bin/adl/copies.rs", &[(".metadata", 1)], "a call of `Files`, which is done inside"),
    (
        "bin/adl/image.rs",
        &[(".exists", 1)],
        "what the caller has named: whether it is there is told, and nothing is opened",
    ),
    ("bin/adl/environment.rs", &[("File::open", 1)], "what the caller has open, in /dev/fd"),
    (
        "bin/adl/result.rs",
        &[(".is_file", 2), (".metadata", 3), ("File::options", 1), ("fs::read_link", 1)],
        "the caller's own, refused where a guest may have written on the way",
    ),
    (
        "bin/adl/session.rs",
        &[(".metadata", 2), ("File::options", 2)],
        "stdin and stdout of the caller, in /proc/self/fd",
    ),
    ("cgroup/count.rs", &[("OpenOptions::new", 1)], CGROUPS),
    (
        "cgroup/directory.rs",
        &[
            (".is_dir", 1),
            (".try_exists", 1),
            ("OpenOptions::new", 2),
            ("fs::create_dir", 1),
            ("fs::read_to_string", 2),
        ],
        CGROUPS,
    ),
    (
        "cgroup/hierarchy.rs",
        &[
            (".try_exists", 1),
            ("File::open", 1),
            ("fs::read", 3),
            ("fs::read_to_string", 2),
            ("fs::write", 1),
        ],
        CGROUPS,
    ),
    ("cgroup/leaves.rs", &[("OpenOptions::new", 1), ("fs::remove_dir", 1)], CGROUPS),
    ("cgroup/limit.rs", &[("stat::stat", 1)], "a device that the caller has named; not opened"),
    (
        "cgroup/mod.rs",
        &[(".is_dir", 1), ("OpenOptions::new", 1), ("fcntl::open", 2), ("fs::read_dir", 1)],
        CGROUPS,
    ),
    ("cgroup/oom.rs", &[("OpenOptions::new", 1)], CGROUPS),
    ("cgroup/processes.rs", &[("OpenOptions::new", 1)], CGROUPS),
    ("doctor.rs", &[("fs::read_to_string", 2)], PROC),
    ("image/place.rs", &[("fcntl::open", 2), ("unistd::unlink", 1)], STATE),
    ("image/layer.rs", &[(".is_dir", 1), (".symlink_metadata", 1)], STATE),
    (
        "image/unpack/files.rs",
        &[("AtFlags::empty", 1), ("unistd::linkat", 1)],
        "linkat(2), which follows only where told to",
    ),
    ("image/unpack/mod.rs", &[("fcntl::open", 1)], STATE),
    ("files/mod.rs", &[(".metadata", 1)], "a call of its own, which is done inside"),
    (
        "root/etc.rs",
        &[("fcntl::openat", 1)],
        "a single name in an open directory, opened with O_NOFOLLOW",
    ),
    (
        "root/host/etc.rs",
        &[("fcntl::open", 2), ("fcntl::openat", 1)],
        "roots that are the caller's word, and a file that must be new (O_EXCL)",
    ),
    (
        "root/host/mod.rs",
        &[
            (".is_dir", 3),
            ("fcntl::open", 1),
            ("fs::create_dir", 2),
            ("fs::read_link", 1),
            ("fs::set_permissions", 4),
            ("fs::symlink", 3),
            ("fs::symlink_metadata", 1),
            ("fs::write", 1),
        ],
        OF_HOST,
    ),
    (
        "root/host/own.rs",
        &[("fcntl::open", 1), ("fs::create_dir", 1), ("fs::set_permissions", 1)],
        OF_HOST,
    ),
    ("root/host/seen.rs", &[("fcntl::open", 2), ("fcntl::openat", 1)], STATE),
    ("root/nodes.rs", &[("fcntl::open", 1)], STATE),
    (
        "store/once.rs",
        &[
            (".is_dir", 2),
            (".metadata", 1),
            (".symlink_metadata", 2),
            ("DirBuilder::new", 1),
            ("File::open", 3),
            ("fcntl::open", 2),
            ("fs::rename", 2),
            ("fs::symlink_metadata", 2),
        ],
        STATE,
    ),
    (
        "store/uses.rs",
        &[(".metadata", 1), (".symlink_metadata", 1), ("fcntl::open", 1), ("unistd::unlink", 1)],
        STATE,
    ),
    ("image/cache.rs", &[(".is_dir", 1), (".metadata", 1), ("fcntl::open", 2)], STATE),
    ("image/implicit.rs", &[("fcntl::open", 1), ("fcntl::openat", 2)], STATE),
    ("image/pull.rs", &[("fcntl::openat", 2)], STATE),
    (
        "image/catalog.rs",
        &[
            (".is_file", 1),
            (".metadata", 2),
            (".symlink_metadata", 1),
            ("fcntl::open", 1),
            ("fcntl::openat", 5),
        ],
        STATE,
    ),
    ("image/lock.rs", &[(".metadata", 1)], STATE),
    ("image/record.rs", &[("fcntl::open", 1)], STATE),
    ("image/view.rs", &[("fcntl::open", 1)], STATE),
    (
        "root/private.rs",
        &[
            ("File::options", 2),
            ("fcntl::open", 1),
            ("fs::chown", 1),
            ("fs::create_dir", 1),
            ("fs::rename", 1),
            ("fs::set_permissions", 1),
            ("stat::mknod", 1),
        ],
        "the host's /usr and /run/adl, where root alone writes, and what is new in the state directory",
    ),
    ("root/unpack.rs", &[(".metadata", 2), ("File::open", 1), ("fcntl::open", 1)], STATE),
    ("sandbox/children.rs", &[("fs::read", 1), ("fs::read_to_string", 1)], PROC),
    (
        "sandbox/launch.rs",
        &[
            ("File::open", 1),
            ("File::options", 1),
            ("fs::read", 1),
            ("fs::read_to_string", 1),
            ("fs::write", 1),
        ],
        PROC,
    ),
    (
        "sandbox/descriptors.rs",
        &[("FchmodatFlags::FollowSymlink", 1)],
        "a node just made on a tmpfs of its own",
    ),
    ("seccomp/mod.rs", &[("File::open", 1)], "/dev/urandom of the host"),
    (
        "sys/joined_network.rs",
        &[("File::open", 2), ("fs::metadata", 1), ("fs::write", 3)],
        "its own in procfs, and what was looked at and is open, by its number",
    ),
    ("job/relay.rs", &[("File::options", 1)], "streams of the caller, in /proc/self/fd"),
    ("snapshot/lease.rs", &[(".metadata", 1)], "of a file that is open"),
    ("snapshot/record.rs", &[("fcntl::openat", 2)], STATE),
    ("snapshot/users.rs", &[("fcntl::openat", 2)], STATE),
    (
        "store/contents.rs",
        &[("fcntl::openat", 6)],
        "single names in an open directory, opened with O_NOFOLLOW",
    ),
    ("store/directories.rs", &[("fcntl::open", 1), ("fcntl::openat", 1)], STATE),
    ("store/directory.rs", &[("fcntl::openat", 4)], STATE),
    (
        "store/ids.rs",
        &[("DirBuilder::new", 1), ("OpenOptions::new", 1)],
        "/run/adl, where root alone writes",
    ),
    (
        "store/quota/format.rs",
        &[("fs::read_to_string", 2)],
        "what a distribution installs with its kernel, which root alone writes",
    ),
    ("store/mod.rs", &[(".symlink_metadata", 2), (".try_exists", 1), ("unistd::access", 1)], STATE),
    (
        "store/own_file.rs",
        &[
            (".is_dir", 1),
            ("DirBuilder::new", 1),
            ("fcntl::openat", 1),
            ("fs::create_dir_all", 1),
            ("fs::symlink_metadata", 2),
        ],
        STATE,
    ),
    (
        "store/quota/format.rs",
        &[("fs::read_to_string", 2)],
        "files of the kernel, and what is installed with it",
    ),
    (
        "store/subordinate.rs",
        &[("File::open", 2), ("fs::read_to_string", 1)],
        "/proc of a child, and the host's /etc, where root alone writes",
    ),
    (
        "sys/empty_namespace.rs",
        &[("File::open", 2), ("fs::read_link", 1), ("fs::write", 3), ("unistd::chdir", 2)],
        "files of procfs that no guest has made, and a file system of its own",
    ),
    ("sys/id_ranges.rs", &[("fs::read_to_string", 1)], PROC),
    (
        "sys/mod.rs",
        &[("FchmodatFlags::FollowSymlink", 1)],
        "a descriptor of its own, in /proc/self/fd",
    ),
    ("sys/own_namespaces.rs", &[("File::open", 2), ("fs::read_to_string", 1)], PROC),
    ("sys/open.rs", &[("fcntl::open", 1), ("fcntl::openat", 1)], "what all others use"),
    (
        "sys/proc.rs",
        &[
            ("File::open", 1),
            ("fs::metadata", 4),
            ("fs::read", 2),
            ("fs::read_link", 1),
            ("fs::read_to_string", 3),
        ],
        PROC,
    ),
    (
        "sys/socket.rs",
        &[("fs::read_link", 2)],
        "a descriptor in /proc/self/fd, whose name alone is read",
    ),
    (
        "sys/surroundings.rs",
        &[("fs::metadata", 1), ("fs::read", 2), ("fs::read_link", 1), ("fs::read_to_string", 1)],
        "files of procfs that no guest has made, and the caller's root directory",
    ),
    ("sys/watchdog.rs", &[("fs::read_dir", 1), ("fs::read_to_string", 2)], PROC),
    ("transfer/attributes.rs", &[("fs::read_to_string", 1)], PROC),
    (
        "transfer/write.rs",
        &[("AtFlags::empty", 1), ("fcntl::openat", 1), ("unistd::linkat", 1)],
        "a file that must be new (O_EXCL), and linkat(2), which follows only where told to",
    ),
];

/// The sources of the library and of the `adl` program, without tests.
fn sources() -> Vec<(String, String)> {
    let top = repository().join("runtime/src");
    let mut found = Vec::new();
    let mut directories = vec![top.clone()];
    while let Some(directory) = directories.pop() {
        for entry in fs::read_dir(directory).unwrap() {
            let path: PathBuf = entry.unwrap().path();
            let name = path.strip_prefix(&top).unwrap().to_str().unwrap().to_owned();
            if path.is_dir() {
                directories.push(path);
            } else if name.ends_with(".rs") && !is_test(&name) {
                let text = fs::read_to_string(path).unwrap();
                found.push((name, text));
            }
        }
    }
    found.sort();
    found
}

fn is_test(name: &str) -> bool {
    matches!(name, "store/loop_disk.rs" | "image/fuzzing.rs")
        || Path::new(name).iter().any(|part| part == "tests" || part == "tests.rs")
}

/// Code without comments and without the tests at its end.
fn code(text: &str) -> Vec<(usize, &str)> {
    let text = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
    let lines = (1..).zip(text.lines());
    lines.filter(|(_, line)| !line.trim_start().starts_with("//")).collect()
}

/// The names that a file takes from a module, as `fs` or `fcntl`, to call them without it.
fn imported(lines: &[(usize, &str)], module: &str) -> Vec<String> {
    let text: String = lines.iter().flat_map(|(_, line)| [line.trim(), " "]).collect();
    let mut names = Vec::new();
    for import in text.split("use ").skip(1) {
        let import = import.split(';').next().unwrap_or_default();
        let Some((_, taken)) = import.split_once(&format!("{module}::")) else { continue };
        let taken = taken.trim_start_matches('{').split('}').next().unwrap_or_default();
        names.extend(taken.split(',').map(|name| name.trim().to_owned()));
    }
    names
}

/// How often a call is in a line, as a word of its own.
fn count(line: &str, call: &str, is_bare: bool) -> usize {
    let starts = line.match_indices(call).filter(|(at, _)| {
        let before = &line[..*at];
        let is_part = before.ends_with(|c: char| c.is_alphanumeric() || c == '_');
        let is_other = is_bare && (before.ends_with(['.', ':']) || before.ends_with("fn "));
        call.starts_with('.') || !is_part && !is_other
    });
    starts.count()
}

/// The calls of a file, and the lines that they are in.
fn calls(text: &str) -> BTreeMap<String, Vec<usize>> {
    let lines = code(text);
    let mut found: BTreeMap<String, Vec<usize>> = BTreeMap::new();
    let mut look = |name: &str, call: &str, is_bare: bool| {
        for (number, line) in &lines {
            for _ in 0..count(line, call, is_bare) {
                found.entry(name.to_owned()).or_default().push(*number);
            }
        }
    };
    for (module, functions) in FUNCTIONS {
        let taken = imported(&lines, module);
        for function in functions {
            let name = format!("{module}::{function}");
            look(&name, &format!("{name}("), false);
            if taken.iter().any(|taken| taken == function) {
                look(&name, &format!("{function}("), true);
            }
        }
    }
    for call in OTHERS {
        look(call.trim_end_matches('('), call, false);
    }
    found
}

#[test]
fn no_call_follows_a_path_but_those_that_were_looked_at() {
    if !needs(&[Need::Workspace]) {
        return;
    }
    let mut wrong = Vec::new();
    let sources = sources();
    for (name, text) in &sources {
        let found = calls(text);
        let allowed = ALLOWED.iter().find(|(file, ..)| file == name);
        let allowed: BTreeMap<&str, usize> =
            allowed.map(|(_, calls, _)| calls.iter().copied().collect()).unwrap_or_default();
        let seen: BTreeMap<&str, usize> =
            found.iter().map(|(call, lines)| (call.as_str(), lines.len())).collect();
        if seen != allowed {
            wrong.push(format!("runtime/src/{name}: {allowed:?} is allowed, there is {found:?}"));
        }
    }
    for (file, _, why) in ALLOWED {
        if !sources.iter().any(|(name, _)| name == file) || why.is_empty() {
            wrong.push(format!("runtime/src/{file}: not there, or no reason"));
        }
    }
    assert!(wrong.is_empty(), "calls that follow paths:\n{}", wrong.join("\n"));
}

#[test]
fn calls_that_follow_are_found_however_they_are_written() {
    let found = |text: &str| calls(text).into_keys().collect::<Vec<_>>();
    for (text, call) in [
        ("let a = std::fs::read(path);", "fs::read"),
        ("use std::fs;\nfs::remove_dir_all(path)", "fs::remove_dir_all"),
        ("use std::fs::{self, read};\nread(path)", "fs::read"),
        ("use nix::fcntl::{OFlag,\n    open};\nopen(path, flags)", "fcntl::open"),
        ("use nix::sys::stat::stat;\nstat(path)", "stat::stat"),
        ("fs::File::open(path)", "File::open"),
        ("path.exists()", ".exists"),
        ("fchmodat(fd, name, mode, FchmodatFlags::FollowSymlink)", "FchmodatFlags::FollowSymlink"),
        ("fstatat(fd, name, AtFlags::empty())", "AtFlags::empty"),
    ] {
        assert_eq!(found(text), [call], "{text}");
    }
    for text in [
        "// std::fs::read(path)",
        "file.read(buffer); self.open(path); Self::open(path); reopen(path)",
        "fn open(path: &Path) {}",
        "open(path)",
        "#[cfg(test)]\nmod tests {\nfs::read(path)",
    ] {
        assert_eq!(found(text), [""; 0], "{text}");
    }
}
