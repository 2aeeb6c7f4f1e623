//! Any bytes, in the place of what comes from init, the host, archives and callers: the bodies of
//! the fuzz targets in `fuzz/`, and of tests with very many inputs.
//!
//! None may panic, hang or take in what must be refused.

#[cfg(test)]
pub(crate) mod tests;

use std::fs::File;
use std::io::Write;
use std::os::fd::{AsRawFd, OwnedFd};
use std::time::Duration;

use adl_protocol::limits::{MAX_GROUPS, MAX_PASSWD_LINE};
use adl_protocol::{Chunk, Entry, JobEvent, JobRequest, Reply, Request, Strings, Task, codec};
use nix::fcntl::OFlag;
use nix::sys::socket::{Shutdown, shutdown};

use crate::config::Config;
use crate::error::{Error, Result};
use crate::exit::{EndReason, ExitStatus};
use crate::files::list::read_page;
use crate::files::{FileKind, Metadata};
use crate::job::user::RunAs;
use crate::sandbox::launch::refusal;
use crate::sandbox::plan::Plan;
use crate::sys::id_ranges::Ids;
use crate::sys::socket::Socket;
use crate::transfer::tar::reader::{End, Kind, Reader};
use crate::transfer::tar::{from_tar, to_tar};
use crate::transfer::{CopyOptions, CopyReport, Incoming, Outgoing};
use crate::wait::Deadline;
use crate::wire::{self, Messages};

/// What is done with an input; whether it was taken for something.
type Body = fn(&[u8]) -> bool;

/// The targets, by the names that they have in `fuzz/`.
pub(crate) const TARGETS: [(&str, Body); 5] = [
    ("replies", replies),
    ("requests", requests),
    ("tar", tar),
    ("users", users),
    ("config", config),
];

/// The longest input, in bytes: what it makes fits into a pipe.
pub(crate) const LONGEST: usize = 16 << 10;

/// What an archive may have, so that what is made of it fits there, too.
const OPTIONS: CopyOptions =
    CopyOptions { owners: true, set_ids: true, extended: true, limit: 64 << 10, entries: 100 };

/// Far more than any input takes.
const SOON: Duration = Duration::from_secs(20);

/// Does with an input what a target does.
#[cfg(fuzzing)]
pub fn fuzz_one(target: &str, input: &[u8]) {
    let (_, body) = TARGETS.iter().find(|(name, _)| *name == target).unwrap();
    body(input.get(..LONGEST).unwrap_or(input));
}

/// What the host reads of init and of jobs. The first byte says which of it the rest is.
pub(crate) fn replies(input: &[u8]) -> bool {
    let Some((what, bytes)) = input.split_first() else { return false };
    match what % 5 {
        0 => hear(Socket::pair().unwrap(), bytes, |body| {
            let reply = wire::decode::<Reply<'_>>(body)?;
            assert!(!refusal(reply).to_string().is_empty());
            Ok(())
        }),
        1 => hear(wire::channel().unwrap(), bytes, |body| {
            if let JobEvent::Exited(exit) = wire::decode(body)? {
                for asked in [None, Some(EndReason::TimedOut)] {
                    let status = ExitStatus::new(&exit, asked, false);
                    assert_eq!(status.code().is_some(), status.signal().is_none());
                    assert!(!status.with_too_much_output().to_string().is_empty());
                }
            }
            Ok(())
        }),
        2 => {
            let told = wire::decode_frame::<adl_protocol::Metadata>(bytes);
            let is_known = |told| FileKind::ALL.contains(&Metadata::from(told).kind);
            told.is_ok_and(|told| {
                assert!(is_known(told));
                true
            })
        }
        3 => {
            let mut entries = Vec::new();
            let read = read_page(bytes, 100, &mut entries);
            assert!(read.is_err() || entries.len() <= 100);
            for entry in entries {
                assert!(adl_protocol::is_plain_name(entry.name.as_encoded_bytes()));
            }
            read.is_ok()
        }
        _ => to_archive(pipe_of(bytes)).is_ok(),
    }
}

/// Hears bytes as messages, until they end or are none. Whether there was any.
fn hear(
    (ours, theirs): (Socket, OwnedFd),
    bytes: &[u8],
    mut take: impl FnMut(&[u8]) -> Result<()>,
) -> bool {
    let mut has_taken = false;
    let messages = Messages::new(ours);
    let mut theirs = File::from(theirs);
    theirs.write_all(bytes).unwrap();
    // To close it does not do where another thread has just made a process, which has a copy.
    shutdown(theirs.as_raw_fd(), Shutdown::Write).unwrap();
    // Each turn takes some of it, but the one that has read a part of a frame.
    for _ in 0..=bytes.len() {
        match messages.try_next() {
            Ok(Some(body)) if take(&body).is_err() => return has_taken,
            Ok(Some(_)) => has_taken = true,
            Ok(None) => {}
            Err(Error::SandboxDied | Error::Protocol { .. }) => return has_taken,
            Err(other) => panic!("{other}"),
        }
    }
    panic!("messages without an end");
}

fn pipe() -> (OwnedFd, OwnedFd) {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap()
}

/// A pipe that holds bytes, and ends.
fn pipe_of(bytes: &[u8]) -> OwnedFd {
    let (read, write) = pipe();
    File::from(write).write_all(bytes).unwrap();
    read
}

fn soon() -> Deadline {
    Deadline::after(SOON)
}

/// Makes an archive of the tree in a pipe, in which no path leads out.
fn to_archive(pipe: OwnedFd) -> Result<Vec<u8>> {
    let mut archive = Vec::new();
    let mut from = Incoming::new(pipe, soon()).unwrap();
    let made = to_tar(&mut from, &mut archive, &OPTIONS, &mut CopyReport::default());
    not_late(&made);
    made?;
    let mut reader = Reader::new(&*archive, End::Marked);
    while let Some(entry) = reader.next(|_| Ok(())).unwrap() {
        let path = entry.member.path;
        let mut names = path.strip_prefix(b"./").unwrap_or(&path).split(|byte| *byte == b'/');
        let is_plain = |name: &[u8]| name.is_empty() || adl_protocol::is_plain_name(name);
        assert!(!path.starts_with(b"/") && names.all(is_plain), "{}", path.escape_ascii());
    }
    Ok(archive)
}

/// No wait has come to its end.
fn not_late<T>(result: &Result<T>) {
    assert!(!matches!(result, Err(Error::TimedOut { .. })), "it hangs");
}

/// A message is what it was when it is written and read again.
macro_rules! again {
    ($type:ty, $body:expr) => {
        if let Ok(message) = codec::decode::<$type>($body) {
            let mut frame = Vec::new();
            codec::encode(&message, &mut frame).unwrap();
            assert_eq!(codec::decode::<$type>(&frame[codec::HEADER..]).as_ref(), Ok(&message));
            Some(message)
        } else {
            None
        }
    };
}

fn check(strings: &Strings<'_>) {
    assert_eq!(strings.iter().count(), strings.len());
    assert!(strings.iter().all(|string| string.ends_with(b"\0")));
    assert!(strings.single().is_none() || strings.len() == 1);
}

/// What init reads of the host: requests, and the tree of a copy.
pub(crate) fn requests(input: &[u8]) -> bool {
    let request = again!(Request<'_>, input);
    let mut is_one = request.is_some();
    match request {
        Some(Request::Setup(setup)) => {
            for strings in [setup.masked, setup.read_only, setup.sysctls] {
                check(&strings);
            }
        }
        Some(Request::Mounts(mounts)) => check(&mounts.etc),
        Some(Request::Spawn(spawn)) => {
            check(&spawn.directory);
            if let Task::Program(program) = &spawn.task {
                check(&program.names);
                check(&program.arguments);
                check(&program.environment);
            }
        }
        _ => {}
    }
    is_one |= again!(JobRequest, input).is_some();
    let entry = again!(Entry<'_>, input);
    is_one |= entry.is_some();
    if let Some(Entry::SymbolicLink { name, target, .. } | Entry::HardLink { name, target }) = entry
    {
        check(&name);
        check(&target);
    }
    for header in input.array_windows::<{ Chunk::HEADER }>() {
        if let Some(chunk) = Chunk::decode(*header) {
            assert_eq!(chunk.encode(), *header);
        }
    }
    is_one
}

/// An archive that a caller has of anyone: its members, and what is sent to init of it.
pub(crate) fn tar(input: &[u8]) -> bool {
    for end in [End::Marked, End::MarkedOrNot] {
        let mut reader = Reader::new(input, end);
        // Each member has a block.
        let mut left = input.len() / 512 + 1;
        while let Ok(Some(entry)) = reader.next(|_| Ok(())) {
            left = left.checked_sub(1).expect("more members than blocks");
            if let Kind::File(_) = entry.kind
                && reader.content(1000).is_err()
            {
                break;
            }
        }
    }
    let (read, write) = pipe();
    let mut to = Outgoing::new(write, soon()).unwrap();
    let sent = from_tar(&mut &*input, &mut to, &OPTIONS, &mut CopyReport::default());
    not_late(&sent);
    drop(to);
    let archive = to_archive(read);
    not_late(&archive);
    if let (Ok(()), Err(error)) = (&sent, archive) {
        // More is zeros in an archive than in a tree.
        assert!(matches!(error, Error::TooLarge { .. } | Error::Refused { .. }), "{error}");
    }
    sent.is_ok()
}

/// A sandbox's own `/etc/passwd` and `/etc/group`, and a user to look for: three parts with a byte
/// between them that is no text.
pub(crate) fn users(input: &[u8]) -> bool {
    let mut is_found = false;
    let mut parts = input.splitn(3, |byte| *byte == 0xff);
    let mut part = || parts.next().unwrap_or_default();
    let (who, passwd, group) = (String::from_utf8_lossy(part()), part(), part());
    let mut run_as = RunAs::ROOT;
    run_as.set_user(&who);
    let read = |path| Ok(if path == "/etc/passwd" { passwd.to_vec() } else { group.to_vec() });
    for ids in [Ids::Range(65_536), Ids::Range(u32::MAX), Ids::One { uid: 7, gid: 8 }] {
        let Ok((identity, entry)) = run_as.find(ids, read) else { continue };
        is_found = true;
        match ids {
            Ids::Range(length) => {
                let mut all = identity.groups.iter().chain([&identity.uid, &identity.gid]);
                assert!(all.all(|id| *id < length));
                assert!(identity.groups.len() <= MAX_GROUPS);
            }
            Ids::One { uid, gid } => {
                assert_eq!((identity.uid, identity.gid, identity.groups), (uid, gid, Vec::new()));
            }
        }
        // It goes to the environment.
        let Some(entry) = entry else { continue };
        let fields = [&entry.name, &entry.home, &entry.shell];
        assert!(fields.iter().map(|field| field.len()).sum::<usize>() <= MAX_PASSWD_LINE + 8);
        assert!(!fields.iter().any(|field| field.iter().any(|byte| b"\0\n:".contains(byte))));
        assert!(entry.home.starts_with(b"/") && !entry.shell.is_empty());
        assert_eq!(entry.name, who.split(':').next().unwrap().as_bytes());
    }
    is_found
}

/// A configuration that was kept as text: mounts, limits and defaults among it.
pub(crate) fn config(input: &[u8]) -> bool {
    let Ok(config) = serde_json::from_slice::<Config>(input) else { return false };
    let text = serde_json::to_vec(&config).unwrap();
    assert_eq!(serde_json::from_slice::<Config>(&text).unwrap(), config);
    let Ok(plan) = Plan::new(config) else { return false };
    let checked = plan.config();
    if let Some(name) = &checked.name {
        assert!(adl_protocol::is_plain_name(name.as_bytes()));
    }
    assert!(checked.limits.pids != Some(0) && checked.limits.memory != Some(0));
    let _ = plan.sysctls(Some(4096));
    true
}
