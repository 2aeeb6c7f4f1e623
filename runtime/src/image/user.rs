//! Who the user is that an image names, by the image's own files.

use std::path::Path;

use crate::image::view::View;

/// The longest `/etc/passwd` or `/etc/group` that is read, in bytes.
const LONGEST: u64 = 1 << 20;

/// The ids of `USER` or `USER:GROUP`, each a name or a number, by docker's rules: a number without
/// an entry has the group 0. `None` for one that is not there: whoever is to run then, is told.
pub(super) fn ids(view: &View, text: &str) -> Option<(u32, u32)> {
    let read = |path: &str| view.read(Path::new(path), LONGEST).ok().flatten().unwrap_or_default();
    let (user, group) = match text.split_once(':') {
        Some((user, group)) => (user, Some(group)),
        None => (text, None),
    };
    let (uid, own) = user_of(&read("/etc/passwd"), user)?;
    let gid = match group {
        None | Some("") => own,
        Some(group) => match group.parse() {
            Ok(gid) => gid,
            Err(_) => number(fields(&read("/etc/group"), group.as_bytes(), 0)?.get(2)?)?,
        },
    };
    Some((uid, gid))
}

/// A user, and the user's group.
fn user_of(passwd: &[u8], user: &str) -> Option<(u32, u32)> {
    let entry = match user.parse::<u32>() {
        Ok(uid) => match fields(passwd, uid.to_string().as_bytes(), 2) {
            Some(entry) => entry,
            None => return Some((uid, 0)),
        },
        Err(_) => fields(passwd, user.as_bytes(), 0)?,
    };
    Some((number(entry.get(2)?)?, number(entry.get(3)?)?))
}

/// The fields of the first line with a value in one of them.
fn fields<'a>(file: &'a [u8], value: &[u8], at: usize) -> Option<Vec<&'a [u8]>> {
    let lines = file.split(|byte| *byte == b'\n');
    let mut lines = lines.map(|line| line.split(|byte| *byte == b':').collect::<Vec<_>>());
    lines.find(|fields| fields.len() >= 4 && fields.get(at).is_some_and(|field| *field == value))
}

fn number(field: &[u8]) -> Option<u32> {
    let is_number = !field.is_empty() && field.iter().all(u8::is_ascii_digit);
    std::str::from_utf8(field).ok()?.parse().ok().filter(|id| is_number && *id != u32::MAX)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::{View, ids};

    #[test]
    fn users_are_found_by_docker_s_rules() {
        let top = std::env::temp_dir().join(format!("adl-image-user-{}", std::process::id()));
        fs::create_dir_all(top.join("etc")).unwrap();
        let passwd = "root:x:0:0::/root:/bin/sh\nshort:x:9\napp:x:999:998::/:\nbad:x:-1:0::/:\n";
        fs::write(top.join("etc/passwd"), passwd).unwrap();
        fs::write(top.join("etc/group"), "staff:x:50:\n").unwrap();
        let view = View::open(std::slice::from_ref(&top)).unwrap();
        for (text, expected) in [
            ("app", Some((999, 998))),
            ("999", Some((999, 998))),
            ("app:staff", Some((999, 50))),
            ("app:7", Some((999, 7))),
            ("1000", Some((1000, 0))),
            ("1000:", Some((1000, 0))),
            ("1000:1000", Some((1000, 1000))),
            ("1000:staff", Some((1000, 50))),
            ("absent", None),
            ("short", None),
            ("bad", None),
            ("app:absent", None),
            ("", None),
        ] {
            assert_eq!(ids(&view, text), expected, "{text:?}");
        }
        fs::remove_dir_all(top).unwrap();
    }
}
