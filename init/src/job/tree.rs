//! All that a job ever started, and the end of it.
//!
//! Each job runs in a UTS namespace of its own. That is nothing but a mark: every process that
//! descends from the job carries it, whatever session, group or parent it has moved to, none can
//! take it off without CAP_SYS_ADMIN, and `/proc/PID/ns/uts` shows it. It costs 2 µs, and needs no
//! process to stand guard and no cgroup that can be written. The host name in it is the sandbox's,
//! and stays. A job is born with it, and init holds it before: nothing that a job does or suffers
//! comes between.
//!
//! A tree is ended by passes through `/proc` that send SIGKILL to all who carry the mark, until
//! passes meet none, twice: one that got the signal makes no more processes, and processes that
//! are made during a pass have higher ids, which the pass comes to, but where ids start over. A
//! pass goes on for a little in each turn of the event loop, so that the number of processes holds
//! up nothing.

use alloc::vec::Vec;
use core::ffi::CStr;
use core::mem::MaybeUninit;

use rustix::event::{PollFd, PollFlags, Timespec};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{Mode, OFlags, RawDir, SeekFrom};
use rustix::io::{Errno, Result};
use rustix::process::{Pid, PidfdFlags, Signal};

use crate::sys::{self, Namespace};
use crate::text;

/// How much of the list of processes is read in one turn, in bytes: about 150 of them.
const CHUNK: usize = 4 << 10;

/// Below the directory of a process or a thread in `/proc`, and below that itself.
const MARK: &CStr = c"ns/uts";
const MARK_OF_INIT: &CStr = c"self/ns/uts";

/// The mark of a job's tree.
pub(crate) struct Tree {
    /// Keeps the namespace alive, and with it its number from being another's.
    _pin: OwnedFd,
    mark: u64,
}

impl Tree {
    /// Puts a new mark on init, and so on the child that it starts next.
    pub(crate) fn begin(proc: impl AsFd) -> Result<Self> {
        sys::unshare(Namespace::Uts)?;
        let flags = OFlags::RDONLY | OFlags::CLOEXEC;
        let pin = rustix::fs::openat(proc, MARK_OF_INIT, flags, Mode::empty())?;
        let mark = rustix::fs::fstat(&pin)?.st_ino;
        Ok(Self { _pin: pin, mark })
    }

    pub(crate) fn mark(&self) -> u64 {
        self.mark
    }
}

/// The trees that are to be signalled or ended, and the pass that does it.
pub(crate) struct Sweeper {
    /// `/proc`, as it was before any guest ran.
    proc: &'static OwnedFd,
    targets: Vec<Target>,
    /// Whether a pass is under way.
    under_way: bool,
}

struct Target {
    mark: u64,
    /// Of the job.
    number: u64,
    signal: Signal,
    /// When it came, in ns.
    since: u64,
    /// How often all processes were stopped for it.
    stops: u32,
    /// Whether it came before the pass that is under way, which then goes through all of it.
    in_pass: bool,
    /// How many of the tree the pass has met.
    met: usize,
    /// How many passes in a row have met none.
    empty: usize,
    /// Whether all that still live of it should have ended, and how many of them the pass has met
    /// that may do something yet.
    is_late: bool,
    moving: usize,
    /// How many passes in a row have met none of those, though others.
    stuck: usize,
}

/// How many passes in a row must meet none; and how many, none that moves.
const EMPTY_PASSES: usize = 2;
/// After how long what lives of a tree is late, in ns: one that got SIGKILL needs a millisecond to
/// end, unless the kernel waits for something in its name.
const LATE: u64 = 20_000_000;

/// What a turn of the sweeper came to.
pub(crate) enum Turn {
    /// The pass goes on.
    UnderWay,
    /// A pass has ended.
    Done {
        /// The numbers of the jobs whose trees have ended.
        ended: Vec<u64>,
        /// The numbers of those whose trees have got a signal.
        signalled: Vec<u64>,
        /// The numbers of those of whose trees is left what can't be ended now.
        stuck: Vec<u64>,
        /// Whether others' processes were met, and are ending.
        met: bool,
    },
}

impl Sweeper {
    pub(crate) fn new(proc: &'static OwnedFd) -> Self {
        Self { proc, targets: Vec::new(), under_way: false }
    }

    /// Sends `signal` to all of a tree; with SIGKILL, until there is none. `now` is in ns.
    pub(crate) fn add(&mut self, mark: u64, number: u64, signal: Signal, now: u64) {
        let is_same = |other: &Target| other.mark == mark && other.signal == signal;
        let is_killed = |other: &Target| other.mark == mark && other.signal == Signal::KILL;
        // Each signal that has not been sent yet comes once, in the order in which they were asked
        // for; after SIGKILL, none does.
        if self.targets.iter().any(|t| is_killed(t) || is_same(t) && !t.in_pass) {
            return;
        }
        if signal == Signal::KILL {
            self.remove(mark);
        }
        self.targets.push(Target {
            mark,
            number,
            signal,
            since: now,
            stops: 0,
            in_pass: false,
            met: 0,
            empty: 0,
            is_late: false,
            moving: 0,
            stuck: 0,
        });
    }

    pub(crate) fn has(&self, mark: u64) -> bool {
        self.targets.iter().any(|target| target.mark == mark)
    }

    /// Whether a tree has not ended in the time that it should have taken.
    pub(crate) fn is_outrun(&self, now: u64, limit: u64) -> bool {
        self.targets.iter().any(|target| {
            let limit = limit.checked_shl(target.stops).unwrap_or(u64::MAX);
            // To stop what does not move would help nothing.
            let is_outrun = now.saturating_sub(target.since) > limit && target.stuck == 0;
            target.signal == Signal::KILL && is_outrun
        })
    }

    /// Has the next turn begin a pass.
    pub(crate) fn begin_again(&mut self) {
        self.under_way = false;
        for target in &mut self.targets {
            target.stops += 1;
        }
    }

    /// Lets all processes go on but those that stood still before all were stopped.
    pub(crate) fn resume_all(&self) {
        let resumed = self.each(|process| {
            if !stood_before(process) {
                let _ = rustix::process::pidfd_send_signal(process, Signal::CONT);
            }
        });
        if resumed.is_err() {
            // The kernel is out of memory: better one too many than one that stands for ever.
            let _ = sys::signal_all(Signal::CONT);
        }
    }

    /// Goes through all processes but this one at once.
    fn each(&self, act: impl Fn(&OwnedFd)) -> Result<()> {
        rustix::fs::seek(self.proc, SeekFrom::Start(0))?;
        let mut buffer = [MaybeUninit::uninit(); CHUNK];
        let mut entries = RawDir::new(self.proc, &mut buffer);
        while let Some(entry) = entries.next() {
            let entry = entry?;
            let name = entry.file_name();
            if name == c"1" || number(name.to_bytes()).is_none() {
                continue;
            }
            let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
            match rustix::fs::openat(self.proc, name, flags, Mode::empty()) {
                Ok(process) => act(&process),
                // It has ended.
                Err(Errno::NOENT | Errno::SRCH) => {}
                Err(errno) => return Err(errno),
            }
        }
        Ok(())
    }

    /// Forgets a tree.
    pub(crate) fn remove(&mut self, mark: u64) {
        self.targets.retain(|target| target.mark != mark);
    }

    pub(crate) fn is_idle(&self) -> bool {
        self.targets.is_empty()
    }

    /// Goes on with the pass, or begins one. `of_child` tells the mark of a child of init; `now` is
    /// in ns.
    pub(crate) fn turn(&mut self, now: u64, of_child: impl Fn(i32) -> Option<u64>) -> Result<Turn> {
        if !self.under_way {
            rustix::fs::seek(self.proc, SeekFrom::Start(0))?;
            self.under_way = true;
            for target in &mut self.targets {
                target.in_pass = true;
                target.met = 0;
                target.moving = 0;
                let is_kill = target.signal == Signal::KILL;
                target.is_late = is_kill && now.saturating_sub(target.since) > LATE;
            }
        }
        let mut buffer = [MaybeUninit::uninit(); CHUNK];
        let mut entries = RawDir::new(&self.proc, &mut buffer);
        loop {
            match entries.next() {
                None => break,
                Some(entry) => {
                    let entry = entry?;
                    let name = entry.file_name();
                    let pid = number(name.to_bytes()).and_then(|pid| i32::try_from(pid).ok());
                    if let Some(pid) = pid.filter(|pid| *pid != 1) {
                        visit(self.proc.as_fd(), name, pid, of_child(pid), &mut self.targets);
                    }
                }
            }
            if entries.is_buffer_empty() {
                return Ok(Turn::UnderWay);
            }
        }
        self.under_way = false;
        let mut met = false;
        let (mut ended, mut signalled, mut stuck) = (Vec::new(), Vec::new(), Vec::new());
        self.targets.retain_mut(|target| {
            let repeated = target.signal == Signal::KILL;
            target.empty =
                if target.met == 0 { target.empty + usize::from(target.in_pass) } else { 0 };
            let done = target.in_pass && (!repeated || target.empty == EMPTY_PASSES);
            if done {
                if repeated { &mut ended } else { &mut signalled }.push(target.number);
            }
            met |= repeated && target.met != 0;
            let is_stuck = target.is_late && target.met != 0 && target.moving == 0;
            target.stuck = if is_stuck { target.stuck + 1 } else { 0 };
            if target.stuck == EMPTY_PASSES {
                stuck.push(target.number);
            }
            !done
        });
        Ok(Turn::Done { ended, signalled, stuck, met })
    }
}

/// Looks at one process, and sends it what is for it.
fn visit(
    proc: BorrowedFd<'_>,
    name: &CStr,
    pid: i32,
    of_child: Option<u64>,
    targets: &mut [Target],
) {
    // From here on this is one process: its directory does not come to mean another.
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let Ok(process) = rustix::fs::openat(proc, name, flags, Mode::empty()) else { return };
    let mark = match of_child {
        Some(mark) => Some(mark),
        None => match mark_of(process.as_fd()) {
            Ok(mark) => Some(mark),
            // A program that can't be read, of an id that is none in the sandbox: it hides what
            // it is of. SIGKILL makes no exception for it.
            Err(Errno::ACCESS | Errno::PERM) => None,
            Err(_) => {
                // Its mark goes before its descriptors do, and both before it is a zombie.
                if is_ending(pid) {
                    for target in targets.iter_mut().filter(|t| t.signal == Signal::KILL) {
                        target.meet(&process);
                    }
                }
                return;
            }
        },
    };
    for target in targets {
        let is_kill = target.signal == Signal::KILL;
        // One that came in the middle of a pass has one of its own, which comes to all.
        let is_meant = match mark {
            Some(mark) => mark == target.mark && (is_kill || target.in_pass),
            None => is_kill,
        };
        if is_meant && rustix::process::pidfd_send_signal(&process, target.signal).is_ok() {
            target.meet(&process);
        }
    }
}

impl Target {
    /// Counts a process of the tree.
    fn meet(&mut self, process: &OwnedFd) {
        self.met += 1;
        // Once is enough, and to look at each costs as much again.
        if self.is_late && self.moving == 0 && moves(process) {
            self.moving += 1;
        }
    }
}

/// Whether a process does something, or will when it is scheduled: not one that the kernel has wait
/// for something else, or has frozen, nor one whose first thread has ended, or which who traces it
/// keeps from ending.
fn moves(process: &OwnedFd) -> bool {
    !matches!(state_and_parent(process), Some((b'D' | b'Z' | b'X' | b't', _)) | None)
}

/// The state of a process, by its directory in `/proc`, and the parent that it has now.
pub(crate) fn state_and_parent(process: &OwnedFd) -> Option<(u8, u64)> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(process, c"stat", flags, Mode::empty()).ok()?;
    let mut text = [0; 128];
    let length = rustix::io::read(&file, &mut text).ok()?;
    // pid (name) state parent: of the name, which may be anything of 15 bytes, the last
    // parenthesis counts.
    let rest = text.get(..length)?.rsplit(|byte| *byte == b')').next()?;
    let mut fields = rest.split(|byte| *byte == b' ').skip(1);
    Some((*fields.next()?.first()?, number(fields.next()?)?))
}

/// Whether a process that was sent SIGSTOP stood still already: to such a one the signal is still
/// to come, as `/proc/PID/status` tells, where from any other it has been taken.
fn stood_before(process: &OwnedFd) -> bool {
    const SIGSTOP: u64 = 1 << 18;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let Ok(file) = rustix::fs::openat(process, c"status", flags, Mode::empty()) else {
        return false;
    };
    let mut text = [0; 2 << 10];
    let Ok(length) = rustix::io::read(&file, &mut text) else { return false };
    let lines = || text.get(..length).unwrap_or_default().split(|byte| *byte == b'\n');
    // The name is on the first line, with what could be taken for the end of one escaped.
    let pending = lines().find_map(|line| line.strip_prefix(b"ShdPnd:\t"));
    let pending = pending.and_then(|mask| text::number(mask, 16)).unwrap_or(0);
    lines().any(|line| line.starts_with(b"State:\tT")) && pending & SIGSTOP != 0
}

/// Whether a process, on its way out, is not a zombie yet.
fn is_ending(pid: i32) -> bool {
    let Some(pid) = Pid::from_raw(pid) else { return false };
    let Ok(pidfd) = rustix::process::pidfd_open(pid, PidfdFlags::empty()) else { return false };
    let mut polled = [PollFd::new(&pidfd, PollFlags::IN)];
    rustix::event::poll(&mut polled, Some(&Timespec::default())) == Ok(0)
}

/// The mark of a process, by its directory in `/proc`; ENOENT if it has ended.
fn mark_of(process: BorrowedFd<'_>) -> Result<u64> {
    match read_mark(process) {
        // The first thread has ended; others may go on.
        Err(Errno::NOENT) => {}
        read => return read,
    }
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    let threads = rustix::fs::openat(process, c"task", flags, Mode::empty())?;
    let mut buffer = [MaybeUninit::uninit(); 1 << 10];
    let mut entries = RawDir::new(&threads, &mut buffer);
    while let Some(entry) = entries.next() {
        let entry = entry?;
        if number(entry.file_name().to_bytes()).is_none() {
            continue;
        }
        let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
        let Ok(thread) = rustix::fs::openat(&threads, entry.file_name(), flags, Mode::empty())
        else {
            continue;
        };
        match read_mark(thread.as_fd()) {
            Err(Errno::NOENT | Errno::SRCH) => {}
            read => return read,
        }
    }
    Err(Errno::NOENT)
}

fn read_mark(of: BorrowedFd<'_>) -> Result<u64> {
    let mut buffer = [MaybeUninit::uninit(); 64];
    let (link, _) = rustix::fs::readlinkat_raw(of, MARK, &mut buffer[..])?;
    // uts:[4026531838]
    let digits = link.strip_prefix(b"uts:[").and_then(|rest| rest.strip_suffix(b"]"));
    digits.and_then(number).ok_or(Errno::INVAL)
}

fn number(digits: &[u8]) -> Option<u64> {
    text::number(digits, 10)
}
