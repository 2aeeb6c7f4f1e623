//! Ranges of user and group ids, one for each sandbox that root makes.
//!
//! The ids are dealt out in blocks of 65,536; a range is as many blocks in a row as it needs.
//!
//! Two sandboxes that shared ids would share what the kernel counts by id (pages of pipes, keys,
//! descriptors in flight), and one could signal the other where they met. What it counts by who has
//! made a user namespace is that sandbox's own as well, since the first of its ids has. A range is
//! held by a lock on a file, on one byte for each block, which the kernel lets go of when its
//! holder ends, however it ends: nothing is to be cleaned up. Its processes may go on for a moment
//! after that, so which init has it is in the file, too, once for each block: whoever comes next
//! may ask for more or fewer of them.

use std::collections::BTreeSet;
use std::fs::{DirBuilder, File, OpenOptions};
use std::ops::Range;
use std::os::unix::fs::{DirBuilderExt, FileExt, OpenOptionsExt};
use std::path::Path;
use std::sync::Mutex;

use nix::errno::Errno;
use nix::fcntl::{FcntlArg, fcntl};

use crate::error::{Error, Result};
use crate::store::init_record::{InitRecord, LONGEST, Life};
use crate::sys;
use crate::sys::id_ranges::END;
use crate::sys::id_ranges::FIRST;
use crate::sys::id_ranges::LENGTH;
use crate::sys::lock::lock;
use crate::sys::owner::{Owner, PerProcess};

const BLOCKS: u32 = (END - FIRST) / LENGTH;

/// Where the locks are: one place for all programs of the machine, whatever their state directory.
const DIRECTORY: &str = "/run/adl";
const FILE: &str = "/run/adl/ids";

/// How much of the file each block has for its record, in bytes.
const RECORD: usize = 64;
const _: () = assert!(LONGEST <= RECORD);

/// The blocks of this process. Its own locks don't keep it out, so it must remember.
static HELD: PerProcess<Mutex<Held>> = PerProcess::new();

#[derive(Default)]
struct Held {
    /// Opened by this process: a fork that used its parent's would have its locks.
    file: Option<File>,
    blocks: BTreeSet<u32>,
    /// Where to look next: far from where other processes do, also those with another `/run`, as in
    /// containers that begin with the same process ids.
    next: Option<u32>,
}

/// A range that is this sandbox's until it is dropped.
#[derive(Debug)]
pub(crate) struct IdRange {
    blocks: Blocks,
    length: u32,
    owner: Owner,
}

/// Blocks in a row.
#[derive(Debug, Clone, Copy)]
struct Blocks {
    first: u32,
    count: u32,
}

impl Blocks {
    /// Their numbers.
    fn numbers(self) -> Range<u32> {
        self.first..self.first.saturating_add(self.count)
    }
}

impl IdRange {
    /// Takes a free range of so many ids.
    pub(crate) fn take(length: u32) -> Result<Self> {
        // Of an init that can't be seen it is not known whether it has ended. So its range comes
        // last, when whoever had it has let go of it long ago.
        match Self::find(length, |life| matches!(life, Life::Ended))? {
            Some(range) => Ok(range),
            None => Self::find(length, |life| !matches!(life, Life::Alive(_)))?.ok_or_else(|| {
                Error::Unsupported {
                    what: format!("a range of {length} ids for the user namespace"),
                    why: format!("no {length} of {} in a row are free", END - FIRST),
                    fix: "delete sandboxes that are no longer needed, or ask for fewer ids"
                        .to_owned(),
                }
            }),
        }
    }

    /// Takes blocks that no one has locked, and whose last inits are as asked for.
    fn find(length: u32, is_free: impl Fn(&Life) -> bool) -> Result<Option<Self>> {
        let mut held = lock(HELD.get());
        let Held { file, blocks: own, next } = &mut *held;
        let file = match file {
            Some(file) => file,
            None => file.insert(open()?),
        };
        let start = *next.get_or_insert_with(|| anywhere(Owner::this_process()));
        let count = length.div_ceil(LENGTH);
        let places = BLOCKS.saturating_sub(count.saturating_sub(1));
        // Those whose records this process can write come first.
        let fitting = fitting().min(places);
        let start = start.checked_rem(fitting).unwrap_or_default();
        let ranges = [start..fitting, 0..start, fitting..places];
        let take = |blocks| try_blocks(file, own, blocks, &is_free);
        let Some(blocks) = first_free(ranges, count, take)? else { return Ok(None) };
        own.extend(blocks.numbers());
        *next = Some(blocks.numbers().end % BLOCKS);
        Ok(Some(Self { blocks, length, owner: Owner::this_process() }))
    }

    /// Writes down who has it from here on: before that, nothing of a guest's runs with its ids.
    pub(crate) fn record(&self, init: &InitRecord) -> Result<()> {
        let held = lock(HELD.get());
        let Some(file) = &held.file else { return Ok(()) };
        write(file, self.blocks, &init.to_string())
    }

    /// The id outside that id 0 inside is.
    pub(crate) fn base(&self) -> u32 {
        FIRST + self.blocks.first * LENGTH
    }

    /// How many ids it has.
    pub(crate) fn length(&self) -> u32 {
        self.length
    }
}

impl Drop for IdRange {
    fn drop(&mut self) {
        // A fork has a copy of its parent's.
        if !self.owner.is_this_process() {
            return;
        }
        let mut held = lock(HELD.get());
        if let Some(file) = &held.file {
            // All that had these ids has ended. A record is for those who die before they see that:
            // to judge it takes as long as to take a range, and one from elsewhere can't be judged.
            let _ = write(file, self.blocks, "");
            // A lock that can't be let go of is gone when the process is.
            let _ = lock_blocks(file, self.blocks, libc::F_UNLCK);
        }
        for number in self.blocks.numbers() {
            held.blocks.remove(&number);
        }
    }
}

/// The first blocks in a row that can be taken, of those that begin in these ranges. `take` tells
/// the last one that is known to be taken, if one is.
fn first_free(
    ranges: [Range<u32>; 3],
    count: u32,
    mut take: impl FnMut(Blocks) -> Result<Option<u32>>,
) -> Result<Option<Blocks>> {
    for range in ranges {
        let mut first = range.start;
        while first < range.end {
            let blocks = Blocks { first, count };
            let Some(taken) = take(blocks)? else { return Ok(Some(blocks)) };
            // All that begin before the end of what is taken have that in them, too: of long
            // ranges these are many, and each takes long to look at.
            first = taken.max(first).saturating_add(1);
        }
    }
    Ok(None)
}

/// Locks blocks; `None` if they were free, else the last one that is known to be taken.
fn try_blocks(
    file: &File,
    own: &BTreeSet<u32>,
    blocks: Blocks,
    is_free: impl Fn(&Life) -> bool,
) -> Result<Option<u32>> {
    if let Some(taken) = own.range(blocks.numbers()).next_back() {
        return Ok(Some(*taken));
    }
    if !lock_blocks(file, blocks, libc::F_WRLCK)? {
        return locked(file, blocks).map(Some);
    }
    let taken = last_taken(file, blocks, is_free)?;
    if taken.is_some() {
        lock_blocks(file, blocks, libc::F_UNLCK)?;
    }
    Ok(taken)
}

fn anywhere(process: Owner) -> u32 {
    u32::try_from(process.number() % u64::from(BLOCKS)).unwrap_or_default()
}

/// The directory of what root has once on a machine, which is made if it is not there.
pub(crate) fn directory() -> Result<&'static Path> {
    let directory = Path::new(DIRECTORY);
    match DirBuilder::new().mode(0o700).create(directory) {
        Err(error) if error.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(Error::at("mkdir", directory)(error))
        }
        _ => Ok(directory),
    }
}

fn open() -> Result<File> {
    directory()?;
    OpenOptions::new()
        .read(true)
        .write(true)
        .create(true)
        .truncate(false)
        .mode(0o600)
        .custom_flags(libc::O_CLOEXEC | libc::O_NOFOLLOW)
        .open(FILE)
        .map_err(Error::at("open", Path::new(FILE)))
}

fn place_of(number: u32) -> u64 {
    u64::from(number) * RECORD as u64
}

/// How many blocks have their records where this process may write: beyond that, to try is to get
/// SIGXFSZ.
fn fitting() -> u32 {
    let most = sys::longest_file() / RECORD as u64;
    u32::try_from(most).unwrap_or(BLOCKS).min(BLOCKS)
}

/// Writes a record for each of some blocks, as far as this process may. Where it may not, the lock
/// alone tells.
fn write(file: &File, blocks: Blocks, record: &str) -> Result<()> {
    let end = blocks.numbers().end.min(fitting());
    let count = end.saturating_sub(blocks.first);
    let mut one = [0; RECORD];
    one.iter_mut().zip(record.bytes()).for_each(|(place, byte)| *place = byte);
    let all = one.repeat(count.try_into().unwrap_or(0));
    file.write_all_at(&all, place_of(blocks.first)).map_err(Error::at("write", Path::new(FILE)))
}

/// The last of some blocks whose last init is not as asked for. Where there is no record, none has
/// run.
fn last_taken(file: &File, blocks: Blocks, is_free: impl Fn(&Life) -> bool) -> Result<Option<u32>> {
    let mut bytes = vec![0; RECORD * blocks.numbers().len()];
    let mut filled = 0;
    // Of a long range a read may return a part.
    while let Some(rest) = bytes.get_mut(filled..).filter(|rest| !rest.is_empty()) {
        let place = place_of(blocks.first) + filled as u64;
        match file.read_at(rest, place).map_err(Error::at("read", Path::new(FILE)))? {
            0 => break,
            count => filled += count,
        }
    }
    let is_free = |record: &[u8]| {
        let text = record.split(|byte| *byte == 0).next().unwrap_or_default();
        let record = std::str::from_utf8(text).ok().and_then(|text| text.parse().ok());
        is_free(&record.map_or(Life::Ended, |record: InitRecord| record.life()))
    };
    // Those of one range are alike, and most are of none.
    let mut last = None;
    for (number, record) in blocks.numbers().zip(bytes.chunks(RECORD)).rev() {
        if last != Some(record) && !is_free(record) {
            return Ok(Some(number));
        }
        last = Some(record);
    }
    Ok(None)
}

/// The last of some blocks that another process has locked, of those that it has locked with the
/// first; the first of all if it has let go of it meanwhile.
fn locked(file: &File, blocks: Blocks) -> Result<u32> {
    let mut range = lock_of(blocks, libc::F_WRLCK);
    fcntl(file, FcntlArg::F_OFD_GETLK(&mut range)).map_err(Error::at("lock", Path::new(FILE)))?;
    let is_locked = i32::from(range.l_type) != libc::F_UNLCK;
    let end = match range.l_len {
        0 => i64::from(BLOCKS),
        length => range.l_start.saturating_add(length),
    };
    let last = u32::try_from(end.saturating_sub(1)).ok().filter(|_| is_locked);
    Ok(last.unwrap_or(blocks.first).min(blocks.numbers().end.saturating_sub(1)))
}

/// Changes the locks on some blocks, all at once; `false` if another process holds one of them. The
/// locks belong to the open file and not to the process, so closing another descriptor of it lets
/// go of nothing.
fn lock_blocks(file: &File, blocks: Blocks, kind: i32) -> Result<bool> {
    let range = lock_of(blocks, kind);
    match fcntl(file, FcntlArg::F_OFD_SETLK(&range)) {
        Ok(_) => Ok(true),
        Err(Errno::EAGAIN | Errno::EACCES) => Ok(false),
        Err(errno) => Err(Error::at("lock", Path::new(FILE))(errno)),
    }
}

fn lock_of(blocks: Blocks, kind: i32) -> libc::flock {
    libc::flock {
        l_type: i16::try_from(kind).unwrap_or(0),
        l_whence: 0,
        l_start: i64::from(blocks.first),
        l_len: i64::from(blocks.count),
        l_pid: 0,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use super::{HELD, IdRange, LENGTH, Range, first_free};
    use crate::store::init_record::Sleeper;
    use crate::sys::id_ranges::caller_may_map;
    use crate::sys::in_fork;
    use crate::sys::lock::lock;

    /// For tests that say where to look next.
    static ONE: Mutex<()> = Mutex::new(());

    #[test]
    fn no_two_sandboxes_share_an_id() {
        if !caller_may_map() {
            return eprintln!("skipped: not root");
        }
        let _alone = lock(&ONE);
        let ranges: Vec<_> = (0..50).map(|_| IdRange::take(LENGTH).unwrap()).collect();
        let bases: std::collections::BTreeSet<_> = ranges.iter().map(IdRange::base).collect();
        assert_eq!(bases.len(), 50);
        assert!(bases.iter().all(|base| base % LENGTH == 0));
    }

    #[test]
    fn a_range_whose_init_has_not_ended_is_no_one_elses() {
        if !caller_may_map() {
            return eprintln!("skipped: not root");
        }
        let _alone = lock(&ONE);
        let own = IdRange::take(LENGTH).unwrap();
        let (sleeper, init) = Sleeper::start();
        own.record(&init).unwrap();
        let number = own.blocks.first;
        let find_there = || {
            lock(HELD.get()).next = Some(number);
            IdRange::take(LENGTH).unwrap()
        };
        forget(own);
        assert_ne!(find_there().blocks.first, number);
        drop(sleeper);
        assert_eq!(find_there().blocks.first, number);
    }

    #[test]
    fn a_fork_takes_ranges_of_its_own_and_gives_back_none_of_its_parents() {
        if !caller_may_map() {
            return eprintln!("skipped: not root");
        }
        let _alone = lock(&ONE);
        let own = IdRange::take(LENGTH).unwrap();
        let number = own.blocks.first;
        let take_there = || {
            lock(HELD.get()).next = Some(number);
            IdRange::take(LENGTH).unwrap()
        };
        let mut own = Some(own);
        assert!(in_fork(|| {
            let is_other = take_there().blocks.first != number;
            drop(own.take());
            // Its parent has it still.
            is_other
                && take_there().blocks.first != number
                && in_fork(|| take_there().blocks.first != number)
        }));
    }

    /// Leaves a range as its owner's death does: no lock is on it.
    fn forget(range: IdRange) {
        let held = &mut *lock(HELD.get());
        super::lock_blocks(held.file.as_ref().unwrap(), range.blocks, libc::F_UNLCK).unwrap();
        range.blocks.numbers().for_each(|number| _ = held.blocks.remove(&number));
        std::mem::forget(range);
    }

    /// Takes a range, looking from this block on.
    fn take_from(number: u32, length: u32) -> IdRange {
        lock(HELD.get()).next = Some(number);
        IdRange::take(length).unwrap()
    }

    /// Whether two ranges share no block.
    fn are_apart(one: &IdRange, other: &IdRange) -> bool {
        let (one, other) = (one.blocks.numbers(), other.blocks.numbers());
        one.end <= other.start || other.end <= one.start
    }

    #[test]
    fn ranges_of_any_length_share_no_id() {
        if !caller_may_map() {
            return eprintln!("skipped: not root");
        }
        let _alone = lock(&ONE);
        let long = IdRange::take(10 * LENGTH + 1).unwrap();
        assert_eq!((long.blocks.count, long.length()), (11, 10 * LENGTH + 1));
        let first = long.blocks.first;
        // Whoever begins before it, in it, or takes what it does not.
        for (number, length) in [
            (first, 1),
            (first + 10, LENGTH),
            (first.saturating_sub(2), 4 * LENGTH),
            (first, 11 * LENGTH),
        ] {
            let other = take_from(number, length);
            assert!(are_apart(&long, &other), "{long:?} {other:?}");
            let third = take_from(other.blocks.first, 2 * LENGTH);
            assert!(are_apart(&long, &third) && are_apart(&other, &third));
            let in_fork = in_fork(|| {
                let mine = take_from(first + 1, 3 * LENGTH);
                [&long, &other, &third].into_iter().all(|range| are_apart(range, &mine))
            });
            assert!(in_fork);
        }
        drop(long);
        // And is free again, as a whole and in parts.
        assert!(somewhere(|| {
            let long = IdRange::take(11 * LENGTH).unwrap();
            let first = long.blocks.first;
            drop(long);
            take_from(first, 11 * LENGTH).blocks.first == first
                && take_from(first + 10, 1).blocks.first == first + 10
        }));
    }

    /// Whether something holds of ranges of which another program may have taken one meanwhile: then
    /// it does elsewhere.
    fn somewhere(holds: impl Fn() -> bool) -> bool {
        (0..20).any(|_| holds())
    }

    #[test]
    fn a_part_of_a_range_whose_init_has_not_ended_is_no_one_elses() {
        if !caller_may_map() {
            return eprintln!("skipped: not root");
        }
        let _alone = lock(&ONE);
        assert!(somewhere(|| {
            let long = IdRange::take(6 * LENGTH).unwrap();
            let (first, all) = (long.blocks.first, long.blocks.numbers());
            let is_in =
                |range: &IdRange| range.blocks.numbers().any(|number| all.contains(&number));
            let (sleeper, init) = Sleeper::start();
            long.record(&init).unwrap();
            forget(long);
            for (number, length) in [(first, 1), (first + 5, 1), (first + 3, 2 * LENGTH)] {
                assert!(!is_in(&take_from(number, length)));
            }
            // The control: once it has ended, each part is.
            drop(sleeper);
            let short = take_from(first + 5, 1);
            if short.blocks.first != first + 5 {
                return false;
            }
            let (sleeper, init) = Sleeper::start();
            short.record(&init).unwrap();
            forget(short);
            assert!(!take_from(first, 6 * LENGTH).blocks.numbers().contains(&(first + 5)));
            let is_free_before = take_from(first, 5 * LENGTH).blocks.first == first;
            drop(sleeper);
            is_free_before && take_from(first, 6 * LENGTH).blocks.first == first
        }));
    }

    #[test]
    fn all_ids_are_one_range_or_an_error_says_that_they_are_not_free() {
        if !caller_may_map() {
            return eprintln!("skipped: not root");
        }
        let _alone = lock(&ONE);
        let _other = IdRange::take(1).unwrap();
        let error = IdRange::take(crate::sys::id_ranges::MOST).unwrap_err().to_string();
        assert!(error.contains("fewer ids"), "{error}");
    }

    #[test]
    fn what_is_taken_is_looked_at_once_however_long_a_range_is() {
        let taken = [500, 9_000, 12_000, 12_001];
        let look = |count: u32, ranges: [Range<u32>; 3]| {
            let mut looks = 0;
            let found = first_free(ranges, count, |blocks| {
                looks += 1;
                let is_in = |number: &&u32| blocks.numbers().contains(number);
                Ok(taken.iter().rev().find(is_in).copied())
            });
            (found.unwrap().map(|blocks| blocks.first), looks)
        };
        // Half of all, behind what is taken and nowhere; the whole; one; before where it begins.
        assert_eq!(look(12_288, [0..12_287, 0..0, 0..0]), (Some(12_002), 2));
        assert_eq!(look(12_288, [0..12_002, 0..0, 0..0]), (None, 1));
        assert_eq!(look(24_574, [0..1, 0..0, 0..0]), (None, 1));
        assert_eq!(look(1, [500..24_574, 0..500, 0..0]), (Some(501), 2));
        assert_eq!(look(600, [12_000..12_001, 0..12_000, 0..0]), (Some(501), 3));
    }
}
