//! The ids that an ordinary user has beside their own: `/etc/subuid`, `/etc/subgid`, and the
//! programs that map them.
//!
//! All sandboxes of a user with a range of ids have the same one: inside, 0 is the user and the
//! others are those that come first in the range. What such a sandbox leaves on disk belongs to
//! them, and the user alone can neither remove it nor read all of it. So that is done in a user
//! namespace with the whole range, which each process makes once, when it first needs it.

use std::fs;
use std::io::Read;
use std::os::fd::{AsFd, OwnedFd};
use std::path::Path;
use std::process::{Child, Command, Stdio};
use std::sync::Mutex;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags};

use crate::error::{Error, Result};
use crate::sys::clone::Process;
use crate::sys::id_ranges::{self, LENGTH};
use crate::sys::lock::lock;
use crate::sys::owner::PerProcess;
use crate::sys::pidfd;
use crate::sys::proc;
use crate::sys::user_namespace::{Waiting, within};
use crate::wait::{Deadline, wait_ready};

/// How long the programs may take that map ids: they may ask a directory service. Less than init
/// has for all of its set-up, which waits for them.
const MAPPING: Duration = Duration::from_secs(10);

/// The most that a file of ranges may hold, in bytes.
const LONGEST: u64 = 16 << 20;

/// A user's subordinate ids.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Subordinate {
    first_uid: u32,
    first_gid: u32,
    /// How many there are of each.
    count: u32,
}

impl Subordinate {
    /// Those of the calling user, where so many ids were asked for and the caller has no others.
    ///
    /// # Errors
    /// As [`Self::of_caller`].
    pub(crate) fn asked_for(ids: Option<u32>) -> Result<Option<Self>> {
        let ids = ids.filter(|_| !id_ranges::caller_may_map());
        ids.map(Self::of_caller).transpose()
    }

    /// What tells these from others, for a name.
    pub(crate) fn firsts(self) -> (u32, u32) {
        (self.first_uid, self.first_gid)
    }

    /// The owner inside, where there are so many ids, of what has one outside.
    pub(crate) fn inside(self, uid: u32, gid: u32, ids: u32) -> [u32; 2] {
        /// The kernel's for what is not mapped.
        const OVERFLOW: u32 = 65_534;
        let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        [(uid, own.0, self.first_uid), (gid, own.1, self.first_gid)].map(|(id, own, first)| {
            let beyond = id.checked_sub(first).filter(|offset| *offset < ids - 1);
            if id == own { 0 } else { beyond.map_or(OVERFLOW, |offset| offset + 1) }
        })
    }

    /// Those of the calling user, if there are enough for a sandbox of so many ids.
    ///
    /// # Errors
    /// [`Error::Unsupported`] otherwise.
    pub(crate) fn of_caller(ids: u32) -> Result<Self> {
        let unsupported = |why: String| Error::Unsupported {
            what: format!("a sandbox with {ids} ids"),
            why,
            fix: format!("{REMEDY}; or make the sandbox as root"),
        };
        let this = Self::find().ok_or_else(|| {
            let (user, least) = (nix::unistd::geteuid(), LENGTH - 1);
            unsupported(format!(
                "the ordinary user {user} has no {least} subordinate ids in /etc/subuid and \
                 /etc/subgid"
            ))
        })?;
        if ids - 1 > this.count {
            return Err(unsupported(format!(
                "the calling user has {} subordinate ids in /etc/subuid and /etc/subgid",
                this.count
            )));
        }
        Ok(this)
    }

    /// Those of the calling user, if they have enough of them for any sandbox.
    fn find() -> Option<Self> {
        if id_ranges::caller_may_map() {
            return None;
        }
        let uid = nix::unistd::geteuid().as_raw();
        let passwd = read("/etc/passwd").unwrap_or_default();
        let find = |path| first_range(&read(path)?, &names_of(&passwd, uid), uid);
        let (uids, gids) = (find("/etc/subuid")?, find("/etc/subgid")?);
        Some(Self { first_uid: uids.0, first_gid: gids.0, count: uids.1.min(gids.1) })
    }

    /// Maps so many of them, and the caller's own as the first, into the user namespace of a child.
    ///
    /// # Errors
    /// [`Error::Unsupported`] where the programs for that are missing, or refuse to.
    pub(crate) fn map(self, process: &Process, ids: u32) -> Result<()> {
        let place = proc::directory_of(process).map_err(Error::io("look for a child in /proc"))?;
        let number = place.file_name().unwrap_or_default();
        let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
        let deadline = Deadline::after(MAPPING);
        let start = |program, own, first| Mapper::start(program, number, own, first, ids - 1);
        // Both at once: each takes as long as to run a program does.
        let uids = start("newuidmap", own.0, self.first_uid)?;
        let gids = start("newgidmap", own.1, self.first_gid)?;
        // What they have done is seen, whoever has learnt how they ended.
        uids.finish(&place.join("uid_map"), deadline)?;
        gids.finish(&place.join("gid_map"), deadline)
    }
}

const REMEDY: &str = "as root: apt install uidmap; usermod --add-subuids 100000-165535 \
                      --add-subgids 100000-165535 USER";

/// One of the programs that map ids, which run with rights that the caller has not.
struct Mapper {
    program: &'static str,
    child: Child,
    /// What is to be in the map, without blanks.
    fields: [String; 6],
}

impl Mapper {
    fn start(
        program: &'static str,
        process: &std::ffi::OsStr,
        own: u32,
        first: u32,
        count: u32,
    ) -> Result<Self> {
        let fields = [0, own, 1, 1, first, count].map(|number| number.to_string());
        let mut command = Command::new(program);
        command.arg(process).args(&fields);
        command.stdin(Stdio::null()).stdout(Stdio::null()).stderr(Stdio::piped());
        let child = command.spawn().map_err(|error| match error.kind() {
            std::io::ErrorKind::NotFound => unmapped(format!("there is no program {program}")),
            _ => Error::at("run", Path::new(program))(error),
        })?;
        Ok(Self { program, child, fields })
    }

    fn finish(mut self, map: &Path, deadline: Deadline) -> Result<()> {
        let said = self.read_errors(deadline)?;
        // All that it says has come, or its time is up.
        let _ = self.child.kill();
        // An error means that the calling program has reaped it.
        let _ = self.child.wait();
        let map = fs::read_to_string(map).map_err(Error::at("read", map))?;
        if map.split_whitespace().eq(self.fields.iter().map(String::as_str)) {
            return Ok(());
        }
        let said = String::from_utf8_lossy(&said);
        let said = match said.trim() {
            "" if deadline.left().is_some_and(|left| left.is_zero()) => "its time was up",
            "" => "it says nothing",
            said => said,
        };
        Err(refused(format!("{} does not map them: {said}", self.program)))
    }

    /// The beginning of what it says until it ends. Who it has started may hold the pipe for longer.
    fn read_errors(&mut self, deadline: Deadline) -> Result<Vec<u8>> {
        const MOST: usize = 1024;
        let mut said = Vec::new();
        let Some(mut errors) = self.child.stderr.take() else { return Ok(said) };
        // There is none where the calling program has it reaped already.
        let end = self.child.id().try_into().ok().and_then(|pid| pidfd::open(pid).ok());
        loop {
            let pipe = PollFd::new(errors.as_fd(), PollFlags::POLLIN);
            let end = end.as_ref().map(|end| PollFd::new(end.as_fd(), PollFlags::POLLIN));
            let mut fds: Vec<_> = std::iter::once(pipe).chain(end).collect();
            let has_some = wait_ready(&mut fds, deadline)?
                && fds.first().is_some_and(|pipe| pipe.any() == Some(true));
            if !has_some {
                return Ok(said);
            }
            let mut chunk = [0; 4096];
            match errors.read(&mut chunk) {
                Ok(0) => return Ok(said),
                // It is read to the end: the program may map ids after all that it says.
                Ok(count) => said.extend(chunk.iter().take(count.min(MOST - said.len()))),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => {}
                Err(error) => return Err(Error::io("read of a pipe")(error)),
            }
        }
    }
}

impl Drop for Mapper {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

fn unmapped(why: String) -> Error {
    Error::Unsupported {
        what: "the subordinate ids of the calling user".to_owned(),
        why,
        fix: REMEDY.to_owned(),
    }
}

fn refused(why: String) -> Error {
    Error::Unsupported {
        what: "the subordinate ids of the calling user".to_owned(),
        why,
        fix: "call adl with the user and group that /etc/passwd names (not in `newgrp` or `sg`), \
              and look at /etc/subuid, /etc/subgid and the rights of the program; or make the \
              sandbox as root"
            .to_owned(),
    }
}

/// Has work done as root of a user namespace in which the caller is that, with all subordinate ids
/// of theirs.
///
/// # Errors
/// As [`Subordinate::map`], and what the work says.
pub(crate) fn with_ids<T: Send>(work: impl FnOnce() -> Result<T> + Send) -> Result<T> {
    within(namespace()?.as_fd(), work).map_err(Error::io("enter a user namespace"))?
}

/// The user namespace with all subordinate ids of the calling user.
///
/// # Errors
/// As [`Subordinate::map`].
pub(crate) fn namespace() -> Result<OwnedFd> {
    /// With the ids that it is for: the files may change.
    type Made = Option<(Subordinate, OwnedFd)>;
    static MADE: PerProcess<Mutex<Made>> = PerProcess::new();
    let all = Subordinate::of_caller(LENGTH)?;
    let mut made = lock(MADE.get());
    let (_, namespace) = match made.take().filter(|(of, _)| *of == all) {
        Some(same) => made.insert(same),
        None => made.insert((all, all.make_namespace()?)),
    };
    namespace.try_clone().map_err(Error::io("dup"))
}

impl Subordinate {
    fn make_namespace(self) -> Result<OwnedFd> {
        let waiting = Waiting::start().map_err(Error::io("clone into a user namespace"))?;
        self.map(waiting.process(), self.count + 1)?;
        let place = proc::directory_of(waiting.process());
        let path = place.map_err(Error::io("look for a child in /proc"))?.join("ns/user");
        fs::File::open(&path).map(OwnedFd::from).map_err(Error::at("open", &path))
    }
}

/// Does something with what a sandbox has left on disk: as the caller, and where the kernel refuses
/// that to them, with all ids that may be its owners.
pub(crate) fn as_owner<T: Send>(work: impl Fn() -> Result<T> + Send + Sync) -> Result<T> {
    match work() {
        Err(error) if error.is_refusal() && Subordinate::find().is_some() => with_ids(work),
        done => done,
    }
}

fn read(path: &str) -> Option<Vec<u8>> {
    let mut content = Vec::new();
    fs::File::open(path).ok()?.take(LONGEST).read_to_end(&mut content).ok()?;
    Some(content)
}

/// The names of a user, by the content of `/etc/passwd`.
fn names_of(passwd: &[u8], uid: u32) -> Vec<&[u8]> {
    let lines = passwd.split(|byte| *byte == b'\n');
    let names = lines.filter_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let (name, id) = (fields.next()?, fields.nth(1)?);
        (number(id) == Some(uid)).then_some(name)
    });
    names.collect()
}

/// The first range that is long enough, by the content of `/etc/subuid` or `/etc/subgid`
/// (subuid(5)): its first id, and how many there are.
fn first_range(content: &[u8], names: &[&[u8]], uid: u32) -> Option<(u32, u32)> {
    content.split(|byte| *byte == b'\n').find_map(|line| {
        let mut fields = line.split(|byte| *byte == b':');
        let owner = fields.next().filter(|owner| !owner.is_empty())?;
        let (first, count) = (number(fields.next()?)?, number(fields.next()?)?);
        let is_callers = names.contains(&owner) || number(owner) == Some(uid);
        let is_whole = fields.next().is_none() && first.checked_add(count).is_some();
        (is_callers && is_whole && count >= LENGTH - 1).then_some((first, count))
    })
}

fn number(digits: &[u8]) -> Option<u32> {
    str::from_utf8(digits).ok().filter(|text| !text.starts_with('+'))?.parse().ok()
}

#[cfg(test)]
mod tests {
    use super::{first_range, names_of};

    #[test]
    fn the_first_range_of_the_user_that_is_long_enough_counts() {
        let content = b"other:1000:65536\nme:5:10\nme:200000:65535\n1000:300000:70000\n";
        assert_eq!(first_range(content, &[b"me"], 1000), Some((200_000, 65_535)));
        assert_eq!(first_range(content, &[], 1000), Some((300_000, 70_000)));
        assert_eq!(first_range(content, &[b"it"], 7), None);
        assert_eq!(first_range(content, &[b"it", b"other"], 7), Some((1000, 65_536)));
    }

    #[test]
    fn what_is_no_line_of_subuid_is_passed_over() {
        for content in [
            &b""[..],
            b"me",
            b"me:1:65534",
            b"me:1:-65536",
            b"me:+1:65536",
            b"me:1:65536:",
            b"me: 1:65536",
            b"me:4294967295:65536",
            b":1:65536",
            b"#me:1:65536",
            b"me:1:99999999999",
        ] {
            assert_eq!(first_range(content, &[b"me"], 1000), None, "{content:?}");
        }
        let last = b"me:1:x\nme:7:65536";
        assert_eq!(first_range(last, &[b"me"], 1000), Some((7, 65_536)));
    }

    #[test]
    fn a_user_may_have_several_names_and_any_bytes_in_them() {
        let passwd =
            b"root:x:0:0::/:/bin/sh\na-b.c$:x:1000:1000::/:\n\xff:x:1000:5::/:\nbad:x\n:x:1:";
        assert_eq!(names_of(passwd, 1000), [&b"a-b.c$"[..], b"\xff"]);
        assert_eq!(names_of(passwd, 1001), [&b""[..]; 0]);
    }
}
