//! Who the user is that an image names, by the image's own files.

use std::path::Path;

use adl_protocol::limits::MAX_GROUPS;
use nix::errno::Errno;

use crate::error::{Error, Result};
use crate::image::view::View;

/// The longest `/etc/passwd` or `/etc/group` that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// A user of an image, by number.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct User {
    pub(super) uid: u32,
    pub(super) gid: u32,
    /// Supplementary ones.
    pub(super) groups: Vec<u32>,
}

/// Who `USER` or `USER:GROUP` is, each a name or a number, by docker's rules. Where no user is
/// said, it is root. A number without an entry has the group 0. Who has an entry is in the groups
/// that name it, unless a group is said. `None` for one that is not there: whoever is to run then,
/// is told.
///
/// # Errors
/// [`Error::Invalid`] where the image has one of these files, and it can't be read: no one is taken
/// for another user then.
pub(super) fn user(view: &View, text: &str) -> Result<Option<User>> {
    let (name, group) = match text.split_once(':') {
        Some((name, group)) => (name, Some(group).filter(|group| !group.is_empty())),
        None => (text, None),
    };
    let passwd = read(view, "/etc/passwd")?;
    let Some((uid, own, entry)) = user_of(&passwd, if name.is_empty() { "0" } else { name }) else {
        return Ok(None);
    };
    let (gid, groups) = match group {
        None => (Some(own), groups_of(&read(view, "/etc/group")?, entry, own)),
        Some(group) => match group.parse() {
            Ok(gid) => (Some(gid), Vec::new()),
            Err(_) => (group_of(&read(view, "/etc/group")?, group), Vec::new()),
        },
    };
    Ok(gid.map(|gid| User { uid, gid, groups }))
}

/// A file of the image; one that is not there is empty.
fn read(view: &View, path: &str) -> Result<Vec<u8>> {
    let why = match view.read(Path::new(path), LONGEST) {
        Ok(found) => return Ok(found.unwrap_or_default()),
        Err(Errno::EFBIG) => format!("it is longer than {LONGEST} bytes"),
        Err(Errno::EISDIR) => "it is a directory".to_owned(),
        Err(Errno::ENXIO) => "it is no regular file".to_owned(),
        Err(Errno::ELOOP) => "its links lead round and round".to_owned(),
        Err(errno) => errno.desc().to_owned(),
    };
    let why = format!("who its user is can't be read from {path} of the image: {why}");
    Err(Error::invalid("image", why))
}

fn group_of(file: &[u8], name: &str) -> Option<u32> {
    number(fields(file, name.as_bytes(), 0)?.get(2)?)
}

/// A user, the user's group, and the name of the entry, which is empty without one.
fn user_of<'a>(passwd: &'a [u8], user: &str) -> Option<(u32, u32, &'a [u8])> {
    let entry = match user.parse::<u32>() {
        Ok(uid) => match fields(passwd, uid.to_string().as_bytes(), 2) {
            Some(entry) => entry,
            None => return Some((uid, 0, b"")),
        },
        Err(_) => fields(passwd, user.as_bytes(), 0)?,
    };
    Some((number(entry.get(2)?)?, number(entry.get(3)?)?, entry.first()?))
}

/// The groups that have a member, but for the member's own.
fn groups_of(group: &[u8], member: &[u8], own: u32) -> Vec<u32> {
    let has_member = |fields: &Vec<&[u8]>| {
        let members = fields.get(3).filter(|_| !member.is_empty());
        members.is_some_and(|all| all.split(|byte| *byte == b',').any(|one| one == member))
    };
    let found = lines(group).filter(has_member).filter_map(|fields| number(fields.get(2)?));
    found.filter(|gid| *gid != own).take(MAX_GROUPS).collect()
}

fn lines(file: &[u8]) -> impl Iterator<Item = Vec<&[u8]>> {
    // Docker trims lines, too: their ends may be those of Windows.
    let lines = file.split(|byte| *byte == b'\n').map(<[u8]>::trim_ascii);
    lines.map(|line| line.split(|byte| *byte == b':').collect())
}

/// The fields of the first line with a value in one of them.
fn fields<'a>(file: &'a [u8], value: &[u8], at: usize) -> Option<Vec<&'a [u8]>> {
    lines(file)
        .find(|fields| fields.len() >= 4 && fields.get(at).is_some_and(|field| *field == value))
}

fn number(field: &[u8]) -> Option<u32> {
    let is_number = !field.is_empty() && field.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(field).ok()?.parse().ok().filter(|id| is_number && *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{User, View, user};

    #[test]
    fn users_are_found_by_docker_s_rules() {
        let top = std::env::temp_dir().join(format!("adl-image-user-{}", std::process::id()));
        fs::create_dir_all(top.join("etc")).unwrap();
        let passwd = "root:x:0:0::/root:/bin/sh\nshort:x:9\napp:x:999:998::/:\nbad:x:-1:0::/:\n\
                      :x:77:7::/:\nsame:x:999:1::/:\n";
        fs::write(top.join("etc/passwd"), passwd).unwrap();
        let group = "staff:x:50:other,app\nwheel:x:10:root\napp:x:998:app\nlong:x:51:apps\n\
                     none:x:52:\nminus:x:-1:app\nshort:x\naudio:x:29:app,same\nempty:x:53:,\n";
        fs::write(top.join("etc/group"), group).unwrap();
        let view = View::open(std::slice::from_ref(&top)).unwrap();
        for (text, expected) in [
            ("app", Some((999, 998, &[50, 29][..]))),
            ("999", Some((999, 998, &[50, 29]))),
            ("999:", Some((999, 998, &[50, 29]))),
            ("app:staff", Some((999, 50, &[]))),
            ("app:7", Some((999, 7, &[]))),
            ("999:7", Some((999, 7, &[]))),
            ("same", Some((999, 1, &[29]))),
            ("1000", Some((1000, 0, &[]))),
            ("1000:", Some((1000, 0, &[]))),
            ("1000:1000", Some((1000, 1000, &[]))),
            ("1000:staff", Some((1000, 50, &[]))),
            ("77", Some((77, 7, &[]))),
            ("", Some((0, 0, &[10]))),
            ("root", Some((0, 0, &[10]))),
            ("0", Some((0, 0, &[10]))),
            (":staff", Some((0, 50, &[]))),
            ("absent", None),
            ("short", None),
            ("bad", None),
            ("app:absent", None),
        ] {
            let expected =
                expected.map(|(uid, gid, groups)| User { uid, gid, groups: groups.to_vec() });
            assert_eq!(user(&view, text).unwrap(), expected, "{text:?}");
        }
        fs::remove_dir_all(top).unwrap();
    }

    #[test]
    fn a_file_of_users_that_can_t_be_read_is_named_and_no_one_is_in_group_0_for_it() {
        let top = std::env::temp_dir().join(format!("adl-image-unread-{}", std::process::id()));
        let etc = top.join("etc");
        fs::create_dir_all(etc.join("group")).unwrap();
        let view = View::open(std::slice::from_ref(&top)).unwrap();
        let mut long = b"app:x:999:998::/:\n".to_vec();
        long.resize(usize::try_from(super::LONGEST).unwrap() + 1, b'#');
        fs::write(etc.join("passwd"), &long).unwrap();
        for text in ["999", "app", "", "app:7"] {
            let told = user(&view, text).unwrap_err().to_string();
            assert!(told.contains("/etc/passwd") && told.contains("1048576"), "{text}: {told}");
        }
        // One byte less is read.
        fs::write(etc.join("passwd"), &long[1..]).unwrap();
        assert_eq!(user(&view, "pp:7").unwrap().map(|user| user.uid), Some(999));
        for text in ["999", "pp", "999:staff"] {
            let told = user(&view, text).unwrap_err().to_string();
            assert!(told.contains("/etc/group") && told.contains("a directory"), "{text}: {told}");
        }
        fs::remove_dir(etc.join("group")).unwrap();
        assert_eq!(user(&view, "999").unwrap().map(|user| user.gid), Some(998));
        fs::remove_dir_all(top).unwrap();
    }

    #[test]
    fn lines_may_end_as_those_of_windows_do() {
        let top = std::env::temp_dir().join(format!("adl-image-lines-{}", std::process::id()));
        fs::create_dir_all(top.join("etc")).unwrap();
        fs::write(top.join("etc/passwd"), "app:x:999:998::/:/bin/sh\r\n").unwrap();
        fs::write(top.join("etc/group"), "staff:x:50:other,app\r\n  wheel:x:10:app \n").unwrap();
        let view = View::open(std::slice::from_ref(&top)).unwrap();
        let expected = User { uid: 999, gid: 998, groups: vec![50, 10] };
        assert_eq!(user(&view, "app").unwrap(), Some(expected));
        fs::remove_dir_all(top).unwrap();
    }

    #[test]
    fn root_of_an_image_without_files_is_root() {
        let view = View::of(Vec::new());
        let root = User { uid: 0, gid: 0, groups: Vec::new() };
        assert_eq!(user(&view, "").unwrap(), Some(root));
    }
}
