//! What a hostile guest does to file calls, and that they end well all the same.
//!
//! It swaps what paths lead over, puts in their way what is no file, fights the jobs that do them,
//! and makes trees that are meant for the host.

//!
//! * [`races`]: paths that are swapped while calls go through them
//! * [`special`]: what is no file; [`rights`]: what a user may
//! * [`fights`]: jobs that are stopped and killed; [`trees`]: what is meant for the host

mod fights;
pub(crate) mod races;
mod rights;
mod special;
mod trees;

use std::fs;
use std::io::{BufRead, BufReader};
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use adl_runtime::{Child, Error, Sandbox, Stdio};
use nix::errno::Errno;

use crate::census;
use crate::harness::at_most;
use crate::images::fingerprint;

/// How much later than its timeout a call may return.
pub(super) const LATE: Duration = Duration::from_millis(50);

/// Makes a call that is to return in its time, whatever it returns.
#[track_caller]
pub(super) fn in_time<T: std::fmt::Debug>(timeout: Duration, call: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = call();
    let took = begin.elapsed();
    assert!(took <= timeout + at_most(LATE), "{took:?} instead of {timeout:?}: {result:?}");
    result
}

/// The kernel's number in an error, if it holds one.
pub(super) fn errno(error: &Error) -> Option<Errno> {
    match error {
        Error::File { source, .. } | Error::Io { source, .. } => {
            source.raw_os_error().map(Errno::from_raw)
        }
        _ => None,
    }
}

/// A program of the guest's that says `ready` when it has begun.
pub(super) struct Guest(Child);

impl Guest {
    pub(super) fn start(sandbox: &Sandbox, uid: u32, script: &str, arguments: &[&str]) -> Self {
        let mut command = sandbox.command("python3");
        command.args(["-c", script]).args(arguments).uid(uid).gid(uid);
        let mut child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn().unwrap();
        let mut line = String::new();
        BufReader::new(child.stdout.as_mut().unwrap()).read_line(&mut line).unwrap();
        assert_eq!(line, "ready\n");
        Self(child)
    }
}

impl Drop for Guest {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// Runs a script of the guest's to its end.
#[track_caller]
pub(super) fn python(sandbox: &Sandbox, script: &str, arguments: &[&str]) -> String {
    let output = sandbox.command("python3").args(["-c", script]).args(arguments).output().unwrap();
    let stderr = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{}: {stderr}", output.status);
    String::from_utf8(output.stdout).unwrap()
}

/// A directory of the host that no guest may touch, and the proof that none did.
pub(super) struct Canary {
    pub(super) root: PathBuf,
    before: Vec<(PathBuf, u64)>,
}

pub(super) const HOST: &str = "HOST";

impl Canary {
    pub(super) fn new(root: PathBuf) -> Self {
        fs::create_dir_all(root.join("sub/deep")).unwrap();
        for name in ["passwd", "sub/passwd", "sub/deep/file", "secret"] {
            fs::write(root.join(name), HOST).unwrap();
        }
        symlink("secret", root.join("link")).unwrap();
        let before = fingerprint(&root);
        Self { root, before }
    }

    pub(super) fn is_whole(&self) -> bool {
        fingerprint(&self.root) == self.before
    }
}

/// What a race may make of a call.
pub(super) fn is_sensible(error: &Error) -> bool {
    const SENSIBLE: [Errno; 13] = [
        Errno::ENOENT,
        Errno::ENOTDIR,
        Errno::EISDIR,
        Errno::ELOOP,
        Errno::EEXIST,
        Errno::ENOTEMPTY,
        Errno::EXDEV,
        Errno::EAGAIN,
        Errno::EINVAL,
        Errno::EPERM,
        Errno::EACCES,
        Errno::ESTALE,
        Errno::EBUSY,
    ];
    match error {
        Error::NotRegular { .. } | Error::TooLarge { .. } => true,
        Error::File { .. } | Error::Io { .. } => {
            errno(error).is_some_and(|e| SENSIBLE.contains(&e))
        }
        _ => false,
    }
}

/// What the regular files of a tree hold, in bytes.
pub(super) fn bytes_below(root: &Path) -> u64 {
    let Ok(entries) = fs::read_dir(root) else { return 0 };
    let of = |path: PathBuf| {
        let metadata = fs::symlink_metadata(&path).unwrap();
        if metadata.is_dir() {
            bytes_below(&path)
        } else {
            u64::from(metadata.is_file()) * metadata.len()
        }
    };
    entries.map(|entry| of(entry.unwrap().path())).sum()
}

pub(super) fn file_jobs(sandbox: &Sandbox) -> usize {
    let is_one = |process: &census::Process| {
        let name = fs::read_to_string(format!("/proc/{}/comm", process.pid));
        name.is_ok_and(|name| name == "adl-file\n")
    };
    census::tree(sandbox.init_pid()).iter().filter(|process| is_one(process)).count()
}
