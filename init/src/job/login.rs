//! What a login sets in the environment: by the entry of a job's user in `/etc/passwd`.
//!
//! It is looked up by the job's child, as its user, when nothing of init's is in its reach any
//! more. The guest may have written the file: what is no regular one is not read, and no line of it
//! is longer than what there is room for. Nothing is allocated.

use core::mem::ManuallyDrop;

use adl_protocol::limits::MAX_PASSWD_LINE;
use adl_protocol::{Login, Stage, Strings};
use rustix::fs::{FileType, Mode, OFlags, ResolveFlags};
use rustix::io::Errno;

use crate::failure::Failure;
use crate::text;

/// How much of the file is looked at, in bytes: as much as the host reads of it.
const LONGEST_FILE: usize = 1 << 20;
/// What all variables take at most, of one entry: its name is in two of them.
const ROOM: usize = "HOME=USER=LOGNAME=SHELL=/bin/sh".len() + Login::COUNT + 2 * MAX_PASSWD_LINE;

/// The variables, each `NAME=value` and a NUL.
pub(crate) struct Variables {
    bytes: [u8; ROOM],
    length: usize,
}

/// What an entry says.
struct Entry<'a> {
    name: &'a [u8],
    home: &'a [u8],
    shell: &'a [u8],
}

impl Variables {
    /// Those that are wanted, of the user `uid`.
    pub(crate) fn of(uid: u32, wanted: Login) -> Result<Self, Failure> {
        let mut this = Self { bytes: [0; ROOM], length: 0 };
        if wanted == Login::NONE {
            return Ok(this);
        }
        match find(uid, &mut this, wanted) {
            Ok(true) => return Ok(this),
            // No word about the user.
            Err(errno @ (Errno::MFILE | Errno::NFILE | Errno::NOMEM)) => {
                return Err(Failure(Stage::Identity, errno));
            }
            Ok(false) | Err(_) => {}
        }
        if wanted.has(Login::HOME) {
            this.add(b"HOME=", b"/");
        }
        Ok(this)
    }

    /// As `execve(2)` takes them.
    pub(crate) fn strings(&self) -> Strings<'_> {
        Strings::new(self.bytes.get(..self.length).unwrap_or_default()).unwrap_or_default()
    }

    fn add_all(&mut self, entry: &Entry<'_>, wanted: Login) {
        let home = if entry.home.starts_with(b"/") { entry.home } else { b"/" };
        let shell = if entry.shell.is_empty() { b"/bin/sh" } else { entry.shell };
        for (variable, name, value) in [
            (Login::HOME, &b"HOME="[..], home),
            (Login::USER, b"USER=", entry.name),
            (Login::LOGNAME, b"LOGNAME=", entry.name),
            (Login::SHELL, b"SHELL=", shell),
        ] {
            if wanted.has(variable) {
                self.add(name, value);
            }
        }
    }

    fn add(&mut self, name: &[u8], value: &[u8]) {
        let end = self.length + name.len() + value.len() + 1;
        let Some(room) = self.bytes.get_mut(self.length..end) else { return };
        let bytes = name.iter().chain(value).chain(b"\0");
        for (to, from) in room.iter_mut().zip(bytes) {
            *to = *from;
        }
        self.length = end;
    }
}

/// Adds the variables of the first entry of a user; `false` if there is none.
fn find(uid: u32, into: &mut Variables, wanted: Login) -> rustix::io::Result<bool> {
    // The root is the sandbox's own, as with any program of the user. The execve closes it.
    let flags = OFlags::RDONLY | OFlags::NONBLOCK | OFlags::NOCTTY | OFlags::CLOEXEC;
    let (path, resolve) = (c"/etc/passwd", ResolveFlags::NO_MAGICLINKS);
    let file = rustix::fs::openat2(rustix::fs::CWD, path, flags, Mode::empty(), resolve)?;
    let file = ManuallyDrop::new(file);
    if FileType::from_raw_mode(rustix::fs::fstat(&*file)?.st_mode) != FileType::RegularFile {
        return Err(Errno::INVAL);
    }
    let mut line = Line { bytes: [0; MAX_PASSWD_LINE], length: 0, is_too_long: false };
    let mut chunk = [0_u8; 2048];
    let mut total = 0;
    while total < LONGEST_FILE {
        let count = rustix::io::read(&*file, &mut chunk)?;
        let read = chunk.get(..count).unwrap_or_default();
        for byte in read {
            if *byte != b'\n' {
                line.push(*byte);
                continue;
            }
            if let Some(entry) = line.entry_of(uid) {
                into.add_all(&entry, wanted);
                return Ok(true);
            }
            line.clear();
        }
        if count == 0 {
            break;
        }
        total += count;
    }
    // The last one may have no end.
    let last = line.entry_of(uid);
    Ok(last.map(|entry| into.add_all(&entry, wanted)).is_some())
}

/// A line, as far as it has been read.
struct Line {
    bytes: [u8; MAX_PASSWD_LINE],
    length: usize,
    is_too_long: bool,
}

impl Line {
    fn push(&mut self, byte: u8) {
        match self.bytes.get_mut(self.length) {
            Some(place) => {
                *place = byte;
                self.length += 1;
            }
            None => self.is_too_long = true,
        }
    }

    fn clear(&mut self) {
        (self.length, self.is_too_long) = (0, false);
    }

    /// name:password:UID:GID:description:home:shell; a line that is not so is none.
    fn entry_of(&self, uid: u32) -> Option<Entry<'_>> {
        let line = self.bytes.get(..self.length).filter(|line| !line.contains(&0))?;
        let mut fields = line.split(|byte| *byte == b':');
        let name = fields.next().filter(|name| !name.is_empty() && !self.is_too_long)?;
        let id = fields.nth(1)?;
        let (home, shell) = (fields.nth(2)?, fields.next().unwrap_or_default());
        (text::number(id, 10)? == u64::from(uid)).then_some(Entry { name, home, shell })
    }
}

#[cfg(test)]
#[allow(clippy::unwrap_used, reason = "a test fails by panicking")]
mod tests {
    use alloc::borrow::ToOwned;
    use alloc::string::String;
    use alloc::vec;
    use alloc::vec::Vec;

    use super::{Line, Login, MAX_PASSWD_LINE, ROOM, Variables};

    fn variables(text: &[u8], uid: u32, wanted: Login) -> Option<Vec<String>> {
        let mut line = Line { bytes: [0; MAX_PASSWD_LINE], length: 0, is_too_long: false };
        text.iter().for_each(|byte| line.push(*byte));
        let entry = line.entry_of(uid)?;
        let mut this = Variables { bytes: [0; ROOM], length: 0 };
        this.add_all(&entry, wanted);
        let text = |one: &[u8]| String::from_utf8_lossy(one).trim_end_matches('\0').to_owned();
        Some(this.strings().iter().map(text).collect())
    }

    #[test]
    fn an_entry_gives_what_a_login_sets() {
        let games = b"games:x:5:60:g:/usr/games:/usr/sbin/nologin";
        let all = ["HOME=/usr/games", "USER=games", "LOGNAME=games", "SHELL=/usr/sbin/nologin"];
        assert_eq!(variables(games, 5, Login::ALL).unwrap(), all);
        let some = Login::USER;
        assert_eq!(variables(games, 5, some).unwrap(), ["USER=games"]);
        assert_eq!(variables(games, 60, Login::ALL), None);
        let bare = ["HOME=/", "USER=b", "LOGNAME=b", "SHELL=/bin/sh"];
        assert_eq!(variables(b"b:x:7:7::relative:", 7, Login::ALL).unwrap(), bare);
        assert_eq!(variables(b"b:x:7:7::", 7, Login::ALL).unwrap(), bare);
    }

    #[test]
    fn what_is_no_entry_gives_nothing() {
        for line in [
            &b":x:0:0::/:"[..],
            b"root:x:0",
            b"root:x::0::/:",
            b"r:x:-0:0::/:",
            b"r\0:x:0:0::/:",
            b"",
        ] {
            assert_eq!(variables(line, 0, Login::ALL), None);
        }
        assert_eq!(variables(b"big:x:4294967296:0::/:", 0, Login::ALL), None);
    }

    #[test]
    fn the_longest_line_has_room_and_a_longer_one_is_none() {
        let line = |length| [b"n:x:1:1::/", &vec![b'h'; length - 10][..]].concat();
        let found = variables(&line(MAX_PASSWD_LINE), 1, Login::ALL).unwrap();
        assert_eq!(found.len(), Login::COUNT);
        assert_eq!(variables(&line(MAX_PASSWD_LINE + 1), 1, Login::ALL), None);
        let name = [vec![b'n'; MAX_PASSWD_LINE - 8], b":x:1:1::".to_vec()].concat();
        assert_eq!(variables(&name, 1, Login::ALL).unwrap().len(), Login::COUNT);
    }
}
