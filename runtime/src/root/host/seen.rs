//! What was seen of the host a moment ago, by whichever program: to look at all that is taken from
//! `/etc` is the thirtieth part of an `adl run`.

use std::fs::File;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io::{self, Read};
use std::os::unix::fs::FileExt;
use std::path::PathBuf;
use std::sync::Mutex;
use std::time::{Duration, SystemTime};

use nix::fcntl::{OFlag, open, openat};
use nix::sys::stat::Mode;

use crate::error::Result;
use crate::store::State;
use crate::store::own_file::open_own_file;
use crate::sys;
use crate::sys::lock::lock;
use crate::sys::open::DIRECTORY;
use crate::sys::per_process::PerProcess;

/// Where that is, in the state directory.
const FILE: &str = "host-seen";
/// For how long it counts.
const FRESH: Duration = Duration::from_secs(10);
/// How long the file is, always: whoever reads it while it is written finds a part of another one,
/// which is not what its last number says.
const LENGTH: usize = 4 * 17;

/// What a look at the rest of `/etc` has told, at most so long ago as long as `first` is so, which
/// tells what has changed of all that is looked at each time.
///
/// # Errors
/// Those of `look`.
pub(super) fn others(state: &State, first: u64, look: impl FnOnce() -> Result<u64>) -> Result<u64> {
    /// The line that this process has read or written last, and in which state directory.
    static LAST: PerProcess<Mutex<Option<(PathBuf, String)>>> = PerProcess::new();
    let now = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
    if let Some((path, text)) = &*lock(LAST.get())
        && path == state.path()
        && let Some(others) = fresh(text, first, now)
    {
        return Ok(others);
    }
    let of_file = read(state).ok().and_then(|text| Some((fresh(&text, first, now)?, text)));
    let (others, text) = match of_file {
        Some(known) => known,
        None => {
            let others = look()?;
            let text = line(now.as_secs(), first, others);
            // Whoever comes next looks again, if it can't be written.
            let _ = write(state, &text);
            (others, text)
        }
    };
    *lock(LAST.get()) = Some((state.path().to_owned(), text));
    Ok(others)
}

fn line(at: u64, first: u64, others: u64) -> String {
    let mut hasher = DefaultHasher::new();
    (at, first, others).hash(&mut hasher);
    format!("{at:016x} {first:016x} {others:016x} {:016x}\n", hasher.finish())
}

/// What a line says, if it is not too old, nor of another time or host.
fn fresh(text: &str, first: u64, now: Duration) -> Option<u64> {
    let mut numbers = text.split_whitespace().map(|number| u64::from_str_radix(number, 16).ok());
    let (at, seen, others) = (numbers.next()??, numbers.next()??, numbers.next()??);
    let age = now.as_secs().checked_sub(at)?;
    (text == line(at, seen, others) && seen == first && age < FRESH.as_secs()).then_some(others)
}

fn read(state: &State) -> io::Result<String> {
    let directory = open(state.path(), DIRECTORY, Mode::empty())?;
    let file = open_own_file(std::os::fd::AsFd::as_fd(&directory), FILE, LENGTH as u64)?;
    let mut text = String::new();
    file.take(LENGTH as u64).read_to_string(&mut text)?;
    Ok(text)
}

fn write(state: &State, text: &str) -> io::Result<()> {
    // To try more is to get SIGXFSZ.
    if text.len() as u64 > sys::longest_file() {
        return Err(io::ErrorKind::FileTooLarge.into());
    }
    let directory = open(state.path(), DIRECTORY, Mode::empty())?;
    let flags = OFlag::O_WRONLY
        | OFlag::O_CREAT
        | OFlag::O_NOFOLLOW
        | OFlag::O_NONBLOCK
        | OFlag::O_NOCTTY
        | OFlag::O_CLOEXEC;
    let file = File::from(openat(directory, FILE, flags, Mode::S_IRUSR | Mode::S_IWUSR)?);
    file.write_all_at(text.as_bytes(), 0)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_seen_counts_for_a_while_and_for_what_is_so_still() {
        let text = line(1_000, 1, 2);
        assert_eq!(text.len(), LENGTH);
        let at = |seconds, first| fresh(&text, first, Duration::from_secs(seconds));
        assert_eq!([at(1_000, 1), at(1_009, 1)], [Some(2); 2]);
        assert_eq!([at(1_010, 1), at(999, 1), at(1_000, 3)], [None; 3]);
        // As in the middle of a write.
        let torn = text.replacen("2 ", "3 ", 1);
        assert_ne!(torn, text);
        for wrong in ["", "1", &text[1..], &torn, "x x x x"] {
            assert_eq!(fresh(wrong, 1, Duration::from_secs(1_000)), None, "{wrong:?}");
        }
    }
}
