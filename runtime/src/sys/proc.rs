//! Processes as `/proc` tells of them, also where that is of another PID namespace.
//!
//! A child of fork(2) in a new PID namespace has its parent's `/proc` until it mounts another.

use std::ffi::OsString;
use std::fs;
use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStringExt;
use std::os::unix::fs::MetadataExt;
use std::path::PathBuf;

use crate::sys::clone::Process;
use crate::sys::owner::PerProcess;
use crate::sys::pidfd;

/// What process ids mean to the caller.
#[derive(Debug, Clone, Copy)]
pub(crate) struct View {
    /// The numbers of its PID namespace and, in the upper half, of its time namespace, unless that
    /// is the machine's first, in which starts of processes are counted from elsewhere; 0 if that
    /// can't be found out.
    pub(crate) namespace: u64,
    /// A part of the machine's boot id; 0 if that can't be found out, or is not the machine's own.
    pub(crate) boot: u64,
    /// Whether `/proc` has the same numbers.
    has_own_proc: bool,
}

impl View {
    pub(crate) fn of_caller() -> Self {
        static VIEW: PerProcess<View> = PerProcess::new();
        *VIEW.get_or(|| Self {
            namespace: namespace().unwrap_or_default(),
            boot: boot().unwrap_or_default(),
            has_own_proc: has_own_proc(),
        })
    }
}

/// Where an open file is now, as the kernel tells it.
pub(crate) fn path_of(file: BorrowedFd<'_>) -> io::Result<PathBuf> {
    fs::read_link(format!("/proc/self/fd/{}", file.as_raw_fd()))
}

/// Where something is mounted, as the caller sees it: the outer before what is mounted in it.
pub(crate) fn mount_points() -> io::Result<Vec<PathBuf>> {
    let text = fs::read("/proc/self/mountinfo")?;
    let lines = text.split(|byte| *byte == b'\n');
    let points = lines.filter_map(|line| line.split(|byte| *byte == b' ').nth(4));
    Ok(points.map(|point| OsString::from_vec(unescaped(point)).into()).collect())
}

/// Undoes what the kernel does to blanks: `\040` and its like.
fn unescaped(text: &[u8]) -> Vec<u8> {
    let mut bytes = Vec::new();
    let mut rest = text;
    while let Some((byte, tail)) = rest.split_first() {
        let escape = tail.split_at_checked(3).filter(|_| *byte == b'\\');
        let escaped = escape.and_then(|(digits, tail)| {
            Some((u8::from_str_radix(str::from_utf8(digits).ok()?, 8).ok()?, tail))
        });
        let (byte, tail) = escaped.unwrap_or((*byte, tail));
        bytes.push(byte);
        rest = tail;
    }
    bytes
}

/// The number of the machine's first time namespace (`PROC_TIME_INIT_INO` in the kernel).
const FIRST_TIME_NAMESPACE: u64 = 0xEFFF_FFFA;

fn namespace() -> Option<u64> {
    let pid = fs::metadata("/proc/self/ns/pid").ok()?.ino();
    let time = match fs::metadata("/proc/self/ns/time") {
        Ok(metadata) => metadata.ino() ^ FIRST_TIME_NAMESPACE,
        // A kernel without any.
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        Err(_) => return None,
    };
    Some(pid ^ time << 32)
}

fn boot() -> Option<u64> {
    let path = "/proc/sys/kernel/random/boot_id";
    // A container may have another file there: the machine's other containers, too, and each its
    // own.
    if fs::metadata(path).ok()?.dev() != fs::metadata("/proc").ok()?.dev() {
        return None;
    }
    let id = fs::read_to_string(path).ok()?;
    let digits: String = id.chars().filter(char::is_ascii_hexdigit).take(16).collect();
    u64::from_str_radix(&digits, 16).ok()
}

/// `NSpid` has one number for each PID namespace from that of `/proc` to the process's own.
fn has_own_proc() -> bool {
    let status = fs::read_to_string("/proc/self/status").unwrap_or_default();
    let numbers = status.lines().find_map(|line| line.strip_prefix("NSpid:"));
    numbers.is_some_and(|numbers| numbers.split_whitespace().count() == 1)
}

/// Where `/proc` tells of a child.
pub(crate) fn directory_of(process: &Process) -> io::Result<PathBuf> {
    let number = match View::of_caller().has_own_proc {
        true => process.pid,
        false => number_of(&process.pidfd)?,
    };
    Ok(PathBuf::from(format!("/proc/{number}")))
}

/// The number by which `/proc` knows a process.
fn number_of(pidfd: impl AsFd) -> io::Result<i32> {
    let info = fs::read_to_string(format!("/proc/self/fdinfo/{}", pidfd.as_fd().as_raw_fd()))?;
    let number = info.lines().find_map(|line| line.strip_prefix("Pid:"));
    let number = number.and_then(|number| number.trim().parse().ok()).filter(|number| *number > 0);
    number.ok_or_else(|| io::Error::other("a process that this /proc does not show"))
}

/// The network namespace of a process, which the caller may trace (`ptrace(2)`).
///
/// # Errors
/// ESRCH where it has ended.
pub(crate) fn network_namespace_of(pidfd: BorrowedFd<'_>) -> io::Result<OwnedFd> {
    let opened = fs::File::open(format!("/proc/{}/ns/net", number_of(pidfd)?))?;
    // Up to its end its number is no other's.
    match pidfd::has_ended(pidfd)? {
        true => Err(io::Error::from_raw_os_error(libc::ESRCH)),
        false => Ok(opened.into()),
    }
}

/// When a process started, in hundredths of a second since the machine did.
pub(crate) fn start_of(pidfd: impl AsFd) -> io::Result<u64> {
    let stat = fs::read(format!("/proc/{}/stat", number_of(pidfd)?))?;
    let stat = String::from_utf8_lossy(&stat);
    // The name is in parentheses and may hold anything. The start is the 22nd field, and the state
    // behind the name the third.
    let fields = stat.rsplit_once(')').map(|(_, fields)| fields.split_whitespace());
    let start = fields.and_then(|mut fields| fields.nth(19)?.parse().ok());
    start.ok_or_else(|| io::Error::other("a line of /proc/PID/stat without a start"))
}
