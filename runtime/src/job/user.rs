//! Users and groups of a sandbox, by number or by the names that its own files give them.

use std::io;

use adl_protocol::{Identity, limits};

use crate::config::defaults::Defaults;
use crate::error::{Error, Result, Stage};
use crate::job::life::Life;
use crate::sys::id_ranges::Ids;
use crate::wait::Deadline;

/// The longest `/etc/passwd` or `/etc/group` that is read, in bytes. The guest may have written it.
pub(crate) const LONGEST: u64 = 1 << 20;
/// The largest id. The next one means "no change" to the kernel.
const LARGEST: u32 = u32::MAX - 1;

/// How to ask for more ids.
pub(crate) const IDS: &str = "`ids` (adl run --ids)";

/// A user who was found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct User {
    pub(crate) uid: u32,
    pub(crate) gid: u32,
    pub(crate) groups: Vec<u32>,
    /// What its entry says, if it has been looked up.
    pub(crate) entry: Option<Entry>,
}

/// What an entry of `/etc/passwd` says of a login.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Entry {
    pub(crate) name: Vec<u8>,
    pub(crate) home: Vec<u8>,
    pub(crate) shell: Vec<u8>,
}

/// Who is to run a job, as far as it was said: the last that was said of each counts.
#[derive(Debug, Clone)]
pub(crate) struct RunAs {
    user: Who,
    /// In place of the user's own, or of 0 where the user is said by `uid`.
    group: Option<Who>,
    /// In place of those that the user has.
    pub(crate) groups: Option<Vec<u32>>,
    /// Whether the defaults of the sandbox say who it is, and no one else has.
    is_default: bool,
    /// What they say of groups: it holds for as long as that.
    default_groups: Option<Vec<u32>>,
    /// Whether that user is the image's, whose groups are those that docker gives it: for as long
    /// as that, too.
    is_of_image: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
enum Who {
    /// Root, or who else is there where there is no root.
    First,
    Id(u32),
    /// A name, or a number as text.
    Name(String),
}

/// Reads a file of the sandbox as its root would, by a deadline, and no more than so many bytes; an
/// absent one is empty.
pub(crate) type ReadFile = fn(&Life, &'static str, u64, Deadline) -> Result<Vec<u8>>;

impl RunAs {
    pub(crate) const ROOT: Self = Self {
        user: Who::First,
        group: None,
        groups: None,
        is_default: false,
        default_groups: None,
        is_of_image: false,
    };

    /// Who the defaults of a sandbox say, and whether that is the user of its image.
    pub(crate) fn of(defaults: &Defaults, is_of_image: bool) -> Self {
        let mut this = Self::ROOT;
        if let Some(user) = &defaults.user {
            this.set_user(user);
        }
        this.is_default = true;
        this.default_groups = defaults.groups.clone();
        this.is_of_image = is_of_image;
        this
    }

    /// Takes a user, and a group if one is named: `USER` or `USER:GROUP`, each a name or a number.
    pub(crate) fn set_user(&mut self, text: &str) {
        let (user, group) = match text.split_once(':') {
            Some((user, group)) => (user, Some(Who::Name(group.to_owned()))),
            None => (text, None),
        };
        (self.user, self.group, self.is_default) = (Who::Name(user.to_owned()), group, false);
    }

    /// Takes a user by number. A group that was said stays; one of the defaults is that of their
    /// user.
    pub(crate) fn set_uid(&mut self, uid: u32) {
        self.user = Who::Id(uid);
        if self.is_default {
            (self.group, self.is_default) = (None, false);
        }
    }

    /// Takes a group by number.
    pub(crate) fn set_gid(&mut self, gid: u32) {
        (self.group, self.is_default) = (Some(Who::Id(gid)), false);
    }

    /// The one user and group that there are in the sandbox of an ordinary user: who is to run its
    /// jobs, where that is said by number, else root.
    pub(crate) fn only(&self) -> Result<Ids> {
        let Who::Name(user) = &self.user else { return Ok(Ids::One { uid: 0, gid: 0 }) };
        let Some(uid) = number(user)? else { return Ok(Ids::One { uid: 0, gid: 0 }) };
        let gid = match &self.group {
            Some(Who::Name(group)) => number(group)?,
            _ => Some(uid),
        };
        let gid = gid.ok_or_else(|| {
            Error::invalid("user", "an ordinary user has one id inside: say the group by number")
        })?;
        Ok(Ids::One { uid, gid })
    }

    /// Refuses what names no one in any sandbox with these ids.
    pub(crate) fn check(&self, ids: Ids) -> Result<()> {
        let mut is_known = true;
        for who in [Some(&self.user), self.group.as_ref()].into_iter().flatten() {
            if let Who::Name(name) = who {
                is_known &= number(name)?.is_some();
            }
        }
        // A name is looked up when the files are there.
        if is_known {
            self.find(ids, |_| Ok(Vec::new()))?;
        }
        Ok(())
    }

    /// Finds out who that is, and what its entry says if it had to be looked up.
    pub(crate) fn find(
        &self,
        ids: Ids,
        read: impl Fn(&'static str) -> Result<Vec<u8>>,
    ) -> Result<(Identity, Option<Entry>)> {
        let user = self.look_up(ids, read)?;
        let User { uid, gid, groups, entry } = user;
        let by_default = self.default_groups.as_ref().filter(|_| self.is_default);
        let groups = match (self.groups.as_ref().or(by_default), ids) {
            (Some(said), _) => said.clone(),
            (None, Ids::Range(length)) if self.is_default && self.is_of_image => {
                groups_in_image(gid, &groups, length)
            }
            (None, _) => groups,
        };
        if uid == u32::MAX || gid == u32::MAX || groups.contains(&u32::MAX) {
            return Err(Error::invalid("user", "id 4294967295 means no change to the kernel"));
        }
        if groups.len() > limits::MAX_GROUPS {
            return Err(Error::invalid("user", format!("more than {} groups", limits::MAX_GROUPS)));
        }
        let (why, fix) = match ids {
            Ids::One { uid: only, gid: group }
                if (uid, gid) != (only, group) || !groups.is_empty() =>
            {
                let why =
                    format!("the sandbox of an ordinary user has one id, here {only}:{group}");
                let fix = format!(
                    "name the user by number when the sandbox is made, which then is its one id; or \
                     make it with a range of ids, {IDS}, or as root"
                );
                (why, fix)
            }
            Ids::Range(length) if uid >= length || gid >= length => {
                return Err(beyond(length, format!("user {uid}:{gid} inside")));
            }
            Ids::Range(length) if groups.iter().any(|id| *id >= length) => {
                let group = groups.iter().find(|id| **id >= length).unwrap_or(&length);
                let what = format!("supplementary group {group} of user {uid}:{gid} inside");
                return Err(beyond(length, what));
            }
            _ => return Ok((Identity { uid, gid, groups }, entry)),
        };
        let what = format!("user {uid}:{gid} inside, with {} groups", groups.len());
        Err(Error::Unsupported { what, why, fix })
    }

    /// Looks names up in the sandbox's own `/etc/passwd` and `/etc/group`. What is all digits is a
    /// number, whatever is in them.
    fn look_up(&self, ids: Ids, read: impl Fn(&'static str) -> Result<Vec<u8>>) -> Result<User> {
        let by_number = |uid, gid| User { uid, gid, groups: Vec::new(), entry: None };
        let mut user = match &self.user {
            Who::First => match ids {
                Ids::Range(_) => by_number(0, 0),
                Ids::One { uid, gid } => by_number(uid, gid),
            },
            Who::Id(uid) => by_number(*uid, 0),
            Who::Name(name) => match number(name)? {
                Some(uid) => by_number(uid, uid),
                None => {
                    let passwd = read("/etc/passwd")?;
                    let mut user =
                        passwd_entry(&passwd, name.as_bytes()).ok_or_else(|| self.unknown())?;
                    if self.group.is_none() {
                        let group = read("/etc/group")?;
                        user.groups = groups_of(&group, name.as_bytes());
                        user.groups.retain(|gid| *gid != user.gid);
                    }
                    user
                }
            },
        };
        user.gid = match &self.group {
            None | Some(Who::First) => user.gid,
            Some(Who::Id(gid)) => *gid,
            Some(Who::Name(group)) => match number(group)? {
                Some(gid) => gid,
                None => {
                    let groups = read("/etc/group")?;
                    group_entry(&groups, group.as_bytes()).ok_or_else(|| self.unknown())?
                }
            },
        };
        Ok(user)
    }

    fn unknown(&self) -> Error {
        let name = |who: &Who| match who {
            Who::First => "root".to_owned(),
            Who::Id(id) => id.to_string(),
            Who::Name(name) => name.clone(),
        };
        let group = self.group.iter().map(|group| format!(":{}", name(group)));
        let name: String = [name(&self.user)].into_iter().chain(group).collect();
        Error::Start {
            program: name.into(),
            stage: Stage::Identity,
            source: io::Error::from_raw_os_error(libc::ENOENT),
        }
    }
}

/// Refuses to give a file to an owner whom the kernel does not know inside.
pub(crate) fn check_owner(ids: Ids, uid: u32, gid: u32) -> Result<()> {
    let is_beyond = |length: u32| [uid, gid].iter().any(|id| *id >= length && *id != u32::MAX);
    match ids {
        Ids::Range(length) if is_beyond(length) => {
            Err(beyond(length, format!("owner {uid}:{gid} inside")))
        }
        _ => Ok(()),
    }
}

/// The supplementary groups of an image's user, where there are so many ids: those that docker
/// gives it. They begin with its own, so that no set-group-id program sheds it, where files deny
/// that group something (CVE-2022-36109). What is beyond the ids is left out: an image can't know
/// how many there are.
pub(crate) fn groups_in_image(own: u32, others: &[u32], length: u32) -> Vec<u32> {
    let others = others.iter().copied().filter(|gid| *gid < length && *gid != own);
    [own].into_iter().chain(others).take(limits::MAX_GROUPS).collect()
}

fn beyond(length: u32, what: String) -> Error {
    let why = format!("the sandbox has the ids 0 to {}", length.saturating_sub(1));
    Error::Unsupported { what, why, fix: format!("make it with more: {IDS}") }
}

/// The methods by which callers say who does something, of a type that has a `run_as`.
macro_rules! run_as_methods {
    () => {
        /// Sets as whom it is done: `USER` or `USER:GROUP`, each a number or a name in the
        /// sandbox's own `/etc/passwd` and `/etc/group`. A user found by name has the groups that
        /// are written there; one by number has the group of the same number. A name is looked up
        /// for each command or call. One that is not there is an error, and never root.
        pub fn user(&mut self, user: impl AsRef<str>) -> &mut Self {
            self.run_as.set_user(user.as_ref());
            self
        }

        /// Sets the user id, as it is inside, in place of a user that was named before. A group
        /// that was said stays; where none was, it is 0.
        pub fn uid(&mut self, uid: u32) -> &mut Self {
            self.run_as.set_uid(uid);
            self
        }

        /// Sets the group id, as it is inside, in place of the group of a user that was named. Such
        /// a user then has no supplementary groups, unless [`Self::groups`] says some.
        pub fn gid(&mut self, gid: u32) -> &mut Self {
            self.run_as.set_gid(gid);
            self
        }

        /// Sets the supplementary groups, at most 1,024; by default those of a user that was named,
        /// else none.
        pub fn groups(&mut self, groups: impl Into<Vec<u32>>) -> &mut Self {
            self.run_as.groups = Some(groups.into());
            self
        }
    };
}

pub(crate) use run_as_methods;

fn number(text: &str) -> Result<Option<u32>> {
    if text.is_empty() || !text.bytes().all(|byte| byte.is_ascii_digit()) {
        return if text.is_empty() {
            Err(Error::invalid("user", "the name is empty"))
        } else {
            Ok(None)
        };
    }
    match text.parse() {
        Ok(id) if id <= LARGEST => Ok(Some(id)),
        _ => Err(Error::invalid("user", format!("id {text} is larger than {LARGEST}"))),
    }
}

/// The fields of the line that begins with `name`.
fn entry<'a>(file: &'a [u8], name: &[u8]) -> Option<Vec<&'a [u8]>> {
    lines(file).find(|fields| fields.first() == Some(&name))
}

/// Whether init would take it for an entry of `/etc/passwd`, too: it goes to the environment.
fn is_sound(fields: &[&[u8]]) -> bool {
    let length: usize = fields.iter().map(|field| field.len() + 1).sum();
    fields.len() >= 6
        && length <= limits::MAX_PASSWD_LINE + 1
        && !fields.iter().any(|field| field.contains(&0))
}

fn lines(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    // Lines may end as those of Windows do.
    let lines = file.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    lines.map(|line| line.split(|byte| *byte == b':').collect())
}

fn id(field: Option<&&[u8]>) -> Option<u32> {
    let digits = field.filter(|field| field.iter().all(u8::is_ascii_digit))?;
    std::str::from_utf8(digits).ok()?.parse().ok().filter(|id| *id <= LARGEST)
}

/// name:password:UID:GID:description:home:shell; a line that is not so is none.
fn passwd_entry(file: &[u8], name: &[u8]) -> Option<User> {
    let fields = entry(file, name).filter(|fields| is_sound(fields))?;
    let field = |number: usize| fields.get(number).copied();
    let entry = Entry {
        name: name.to_owned(),
        home: field(5).filter(|home| home.starts_with(b"/")).unwrap_or(b"/").to_owned(),
        shell: field(6).filter(|shell| !shell.is_empty()).unwrap_or(b"/bin/sh").to_owned(),
    };
    let (uid, gid) = (id(fields.get(2))?, id(fields.get(3))?);
    Some(User { uid, gid, groups: Vec::new(), entry: Some(entry) })
}

/// name:password:GID:members
fn group_entry(file: &[u8], name: &[u8]) -> Option<u32> {
    id(entry(file, name)?.get(2))
}

fn groups_of(file: &[u8], member: &[u8]) -> Vec<u32> {
    lines(file)
        .filter(|fields| {
            fields.get(3).is_some_and(|all| all.split(|byte| *byte == b',').any(|m| m == member))
        })
        .filter_map(|fields| id(fields.get(2)))
        .take(limits::MAX_GROUPS)
        .collect()
}

#[cfg(test)]
mod tests {
    use super::{Entry, RunAs, User, group_entry, groups_of, number, passwd_entry};
    use crate::config::defaults::Defaults;
    use crate::sys::id_ranges::Ids;

    const PASSWD: &[u8] = b"root:x:0:0:root:/root:/bin/sh\nshort:x\ngames:x:5:60:g:/usr/games:/x\n\
        big:x:4294967296:1::/:\nminus:x:-1:1::/:\nall:x:4294967295:1::/:\n:x:7:7::/:\n";
    const GROUP: &[u8] = b"root:x:0:\naudio:x:29:games,other\nvideo:x:44:mygames,games\nodd:x\n";

    #[test]
    fn an_entry_is_found_by_its_whole_name() {
        let entry = Entry { name: "games".into(), home: "/usr/games".into(), shell: "/x".into() };
        let games = User { uid: 5, gid: 60, groups: Vec::new(), entry: Some(entry) };
        assert_eq!(passwd_entry(PASSWD, b"games"), Some(games));
        assert_eq!(group_entry(GROUP, b"audio"), Some(29));
        assert_eq!(groups_of(GROUP, b"games"), [29, 44]);
        assert_eq!(groups_of(GROUP, b"none"), [0; 0]);
    }

    #[test]
    fn what_is_no_entry_is_no_user_and_least_of_all_root() {
        for name in ["game", "gamess", "short", "big", "minus", "all", "root:x", "x"] {
            assert_eq!(passwd_entry(PASSWD, name.as_bytes()), None, "{name}");
        }
        assert_eq!(group_entry(GROUP, b"odd"), None);
    }

    #[test]
    fn lines_may_end_as_those_of_windows_do() {
        let games = passwd_entry(b"games:x:5:60:g:/usr/games:/x\r\n", b"games").unwrap();
        assert_eq!(games.entry.unwrap().shell, b"/x");
        assert_eq!(
            groups_of(b"audio:x:29:other,games\r\nvideo:x:44:games\r\n", b"games"),
            [29, 44]
        );
    }

    #[test]
    fn groups_beyond_the_ids_are_left_out_of_an_images_user_and_named_of_others() {
        let read = |path| {
            Ok(match path {
                "/etc/passwd" => b"app:x:999:998::/:/bin/sh\n".to_vec(),
                _ => b"staff:x:50:app\nfar:x:100000:app\napp:x:998:app\n".to_vec(),
            })
        };
        let defaults = Defaults { user: Some("app".to_owned()), ..Defaults::default() };
        let ids = Ids::Range(65_536);
        let of_image = RunAs::of(&defaults, true);
        let find = |run_as: &RunAs| run_as.find(ids, read).map(|(found, _)| found.groups);
        // Docker has its own group among them.
        assert_eq!(find(&of_image).unwrap(), [998, 50]);
        let told = find(&RunAs::of(&defaults, false)).unwrap_err().to_string();
        assert!(told.contains("group 100000 of user 999:998"), "{told}");
        let mut named = of_image.clone();
        named.set_user("app");
        let told = find(&named).unwrap_err().to_string();
        assert!(told.contains("group 100000 of user 999:998"), "{told}");
        let mut other = of_image.clone();
        other.set_uid(7);
        assert_eq!(find(&other).unwrap(), [0; 0]);
        // What the caller says of groups is that.
        let groups = Some(vec![8, 9]);
        assert_eq!(find(&RunAs { groups, ..of_image }).unwrap(), [8, 9]);
        let defaults = Defaults { groups: Some(vec![8]), ..defaults };
        assert_eq!(find(&RunAs::of(&defaults, true)).unwrap(), [8]);
        let defaults = Defaults { user: Some("70000".to_owned()), ..Defaults::default() };
        let told = find(&RunAs::of(&defaults, true)).unwrap_err().to_string();
        assert!(told.contains("user 70000:70000 inside") && !told.contains("group"), "{told}");
    }

    #[test]
    fn digits_are_a_number_and_have_to_fit() {
        assert_eq!(number("12").unwrap(), Some(12));
        assert_eq!(number("a12").unwrap(), None);
        assert_eq!(number("-1").unwrap(), None);
        for wrong in ["", "4294967295", "99999999999999999999"] {
            assert!(number(wrong).is_err(), "{wrong}");
        }
    }
}
