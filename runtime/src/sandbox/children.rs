//! The children of init: which of them are a guest's.

use std::io;
use std::path::{Path, PathBuf};
use std::time::Duration;

use crate::sys::clone::Process;
use crate::sys::proc;

/// Whose a child of init is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Whose {
    /// It has ended, and init has not seen that yet; or it is a drain, which goes by itself when no
    /// one can write to its pipe any more, which another thread's new init can until it executes
    /// its program.
    NoOnes,
    /// Init has just made it, and what it will be is not known.
    NewOfInit,
    Guest,
}

/// How long a child of init may have init's name. Who takes it, or that of a drain, has itself to
/// thank.
pub(super) const SOON: Duration = Duration::from_millis(100);

/// Looks whose a process is, by its directory in a `/proc`.
pub(super) fn whose(directory: &Path) -> io::Result<Whose> {
    let stat = match std::fs::read(directory.join("stat")) {
        Ok(stat) => stat,
        // ESRCH where it ends while it is read.
        Err(error) if is_no_process(&error) => return Ok(Whose::NoOnes),
        Err(error) => return Err(error),
    };
    // A name may be any bytes.
    Ok(whose_by(&String::from_utf8_lossy(&stat)))
}

fn is_no_process(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOENT | libc::ESRCH))
}

/// What `/proc/PID/stat` says (proc_pid_stat(5)). A name is in parentheses, and may have any in it.
fn whose_by(stat: &str) -> Whose {
    let Some((before, after)) = stat.rsplit_once(')') else { return Whose::Guest };
    let name = before.split_once('(').map_or("", |(_, name)| name);
    let mut fields = after.split_whitespace();
    // The first of a program's threads may have ended, and others run.
    let has_ended = fields.next() == Some("Z")
        && fields.nth(16).and_then(|threads| threads.parse::<u32>().ok()).is_some_and(|it| it <= 1);
    match name {
        _ if has_ended => Whose::NoOnes,
        "adl-drain" => Whose::NoOnes,
        "adl-init" => Whose::NewOfInit,
        _ => Whose::Guest,
    }
}

/// The children of init, as `/proc` tells their numbers, and where it tells of init.
pub(super) fn children_of(init: &Process) -> io::Result<(PathBuf, String)> {
    let place = proc::directory_of(init)?;
    // Init has one thread, whose number is its own.
    let number = place.file_name().unwrap_or_default();
    let children = std::fs::read_to_string(place.join("task").join(number).join("children"))?;
    Ok((place, children))
}

#[cfg(test)]
mod tests {
    use super::{Whose, whose_by};

    fn stat(name: &str, state: char, threads: u32) -> Whose {
        let rest = "1 1 1 0 -1 4194560 107 0 0 0 0 0 0 0 20 0";
        whose_by(&format!("7 ({name}) {state} {rest} {threads} 0 9 2551808 220\n"))
    }

    #[test]
    fn what_runs_is_told_from_what_has_ended_and_what_is_inits() {
        assert_eq!(stat("sleep", 'S', 1), Whose::Guest);
        assert_eq!(stat("a) Z (b", 'R', 1), Whose::Guest);
        assert_eq!(stat("sleep", 'Z', 1), Whose::NoOnes);
        // Its first thread has ended, and another runs.
        assert_eq!(stat("java", 'Z', 2), Whose::Guest);
        assert_eq!(stat("adl-drain", 'S', 1), Whose::NoOnes);
        assert_eq!(stat("adl-init", 'R', 1), Whose::NewOfInit);
        assert_eq!(whose_by("what no kernel says"), Whose::Guest);
    }
}
