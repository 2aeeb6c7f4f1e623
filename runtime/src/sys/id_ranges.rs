//! Which ids the sandboxes of root have, and whether the caller may map them.

use super::owner::PerProcess;

/// The number of ids in a range, unless more are asked for: what a distribution's own ids and
/// `nobody` need. Longer ranges take as many of these as they need.
pub(crate) const LENGTH: u32 = 65_536;
/// The first range. Below are the ids of users, of /etc/subuid, and most of those that
/// systemd-nspawn draws from.
pub(crate) const FIRST: u32 = 0x2000_0000;
/// The end of the last range: 24,574 of them. Above are ids that systemd calls foreign, and from
/// 2^31 on some programs take an id for negative.
pub(crate) const END: u32 = 0x7ffe_0000;

/// The most ids that one sandbox can have.
pub(crate) const MOST: u32 = END - FIRST;

/// The user and group ids that there are in a sandbox.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Ids {
    /// So many, from 0 on.
    Range(u32),
    /// One user and one group, which outside are the caller's.
    One { uid: u32, gid: u32 },
}

/// Whether the caller can map ranges of ids: root, where these ids exist. Root of a user namespace
/// that has others is in the position of an ordinary user.
pub(crate) fn caller_may_map() -> bool {
    static EXIST: PerProcess<bool> = PerProcess::new();
    nix::unistd::geteuid().is_root()
        && *EXIST.get_or(|| {
            ["/proc/self/uid_map", "/proc/self/gid_map"]
                .iter()
                .all(|map| std::fs::read_to_string(map).is_ok_and(|map| holds_all_ranges(&map)))
        })
}

/// Whether a map, of lines with the first id inside, the first outside and their number, has one
/// that holds all ranges.
fn holds_all_ranges(map: &str) -> bool {
    map.lines().any(|line| {
        let mut numbers = line.split_whitespace().map(str::parse::<u64>);
        match (numbers.next(), numbers.next(), numbers.next()) {
            (Some(Ok(first)), Some(Ok(_)), Some(Ok(length))) => {
                first <= u64::from(FIRST) && first + length >= u64::from(END)
            }
            _ => false,
        }
    })
}

#[cfg(test)]
mod tests {
    use super::holds_all_ranges;

    #[test]
    fn ranges_exist_where_the_map_has_them() {
        assert!(holds_all_ranges("         0          0 4294967295\n"));
        assert!(!holds_all_ranges("         0       1000          1\n"));
        assert!(!holds_all_ranges("0 100000 65536\n"));
        assert!(!holds_all_ranges(""));
    }
}
