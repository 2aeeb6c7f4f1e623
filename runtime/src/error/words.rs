//! How errors are told: in sentences, with what to do where that is known.

use std::fmt;
use std::io;
use std::path::Path;

use super::{Error, Stage, Step};

impl Stage {
    /// What is done, as it follows "could not".
    fn action(self) -> &'static str {
        match self {
            Self::Request => "read the request",
            Self::Fork => "make a process",
            Self::Cgroup => "join its cgroup",
            Self::Session => "make a session",
            Self::Rlimit => "set its resource limits",
            Self::Nice => "set its niceness",
            Self::OomScore => "set its OOM score",
            Self::Identity => "become its user",
            Self::Capabilities => "give up capabilities",
            Self::Terminal => "make its terminal",
            Self::Stdio => "put its standard streams in place",
            Self::Directory => "enter its working directory",
            Self::Exec => "execute it",
            Self::File => "open the file",
            Self::Kind => "see which kind of file it is",
            Self::Copy => "move bytes",
            Self::Socket => "make the socket",
        }
    }
}

impl fmt::Display for Stage {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.action())
    }
}

impl Step {
    /// What is done, as it follows "could not".
    fn action(self) -> &'static str {
        match self {
            Self::Protocol => "read the request",
            Self::Identity => "become root of the user namespace",
            Self::Hostname => "set the host name",
            Self::Loopback => "bring the loopback device up",
            Self::Propagation => "cut the mounts off from the host's",
            Self::Scratch => "mount a file system to gather the layers on",
            Self::Layer => "attach a read-only layer",
            Self::Upper => "attach the writable layer",
            Self::Overlay => "mount the overlay",
            Self::Etc => "make the sandbox's own files in /etc",
            Self::Proc => "mount /proc",
            Self::Sysctl => "set the kernel parameter",
            Self::Mask => "cover a part of /proc",
            Self::Dev => "make /dev",
            Self::Sys => "make /sys",
            Self::Mount => "mount a volume, tmpfs or device at",
            Self::Pivot => "change the root",
            Self::Limits => "set limits",
            Self::Capabilities => "give up capabilities",
            Self::Seccomp => "install the system call filter",
        }
    }
}

impl fmt::Display for Step {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.action())
    }
}

/// A path behind what was done to it. Escaped: it may hold bytes that a guest chose.
pub(super) struct Of<'a>(pub(super) &'a Path);

impl fmt::Display for Of<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.0.as_os_str().is_empty() { Ok(()) } else { write!(f, " {:?}", self.0) }
    }
}

/// What to do about it, where that is known.
pub(super) struct Remedy<'a>(pub(super) &'a str, pub(super) &'a io::Error);

impl fmt::Display for Remedy<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(operation, source) = self;
        match (*operation, source.raw_os_error()) {
            (_, Some(libc::EMFILE)) => f.write_str("; raise RLIMIT_NOFILE (ulimit -n)"),
            (_, Some(libc::ENFILE)) => f.write_str("; raise the sysctl fs.file-max"),
            ("setxattr", Some(libc::ENOSPC)) => f.write_str(
                "; the disk is full: free room on it; `adl image prune` removes unused images",
            ),
            ("setxattr", Some(libc::EDQUOT)) => f.write_str(
                "; a quota of the disk is full: raise it, or free room; `adl image prune` removes \
                 unused images",
            ),
            ("open volume", Some(libc::ENOENT)) => {
                f.write_str("; volumes are directories and files that are there: make it first")
            }
            _ => Ok(()),
        }
    }
}

/// What to do where a socket is refused, if that is known.
pub(super) struct Unanswered<'a>(pub(super) &'a io::Error, pub(super) bool);

impl fmt::Display for Unanswered<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(why, is_inside) = *self;
        let place = if is_inside { " in the sandbox" } else { " of this machine" };
        write!(f, "{place}: {why}")?;
        f.write_str(match (why.raw_os_error(), is_inside) {
            (Some(libc::ECONNREFUSED), _) => {
                "; nothing listens there: start the server first, or name the address that it has"
            }
            (Some(libc::EADDRINUSE), true) => {
                "; something inside listens there: name another port, or 0 for any"
            }
            (Some(libc::EADDRINUSE), false) => {
                "; something listens there: name another port, or 0 for any"
            }
            (Some(libc::EADDRNOTAVAIL | libc::ENETUNREACH), true) => {
                "; the sandbox has no such address: 127.0.0.1, ::1 and 198.18.0.1 are its own"
            }
            (Some(libc::EADDRNOTAVAIL), false) => {
                "; this machine has no such address: 0.0.0.0 and [::] are all that it has"
            }
            _ => "",
        })
    }
}

/// How many there are.
pub(super) struct Count<'a>(pub(super) &'a [Error]);

impl fmt::Display for Count<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self.0.len() {
            1 => f.write_str("one thing"),
            count => write!(f, "{count} things"),
        }
    }
}

/// All of them, one behind the other.
pub(super) struct Listed<'a>(pub(super) &'a [Error]);

impl fmt::Display for Listed<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (number, error) in self.0.iter().enumerate() {
            write!(f, "{}{error}", if number == 0 { "" } else { "; " })?;
        }
        Ok(())
    }
}

/// Why a command was not started: what it means, where the kernel's words don't say that.
pub(super) struct NotStarted<'a>(pub(super) &'a Path, pub(super) Stage, pub(super) &'a io::Error);

impl fmt::Display for NotStarted<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(program, stage, source) = self;
        let why = match (stage, source.raw_os_error()) {
            (Stage::Directory, Some(libc::ENOENT)) if program.as_os_str().is_empty() => {
                return f.write_str("the working directory has no name; leave it out for `/`");
            }
            (Stage::Directory, Some(libc::ENOENT)) => {
                return write!(
                    f,
                    "the working directory {program:?} does not exist in the sandbox; make it in \
                     the image, by a volume or tmpfs there, or have the command make it: sh -c \
                     'mkdir -p DIR && cd DIR && …'"
                );
            }
            (Stage::Directory, _) => {
                return write!(f, "could not enter the working directory {program:?}: {source}");
            }
            (Stage::Identity, Some(libc::ENOENT)) => {
                return write!(
                    f,
                    "there is no user or group {program:?} in /etc/passwd and /etc/group of the \
                     sandbox: name one by number, as 1000, or one that is there, or add it"
                );
            }
            (Stage::Identity, Some(libc::EINVAL)) => {
                "its user or group is none of the ids of the sandbox, which go from 0 to 65535 \
                 unless more were asked for"
            }
            (Stage::Exec, Some(libc::ENOENT)) => {
                "there is no such program in the sandbox, or its interpreter is missing"
            }
            (Stage::Exec, Some(libc::EACCES)) => {
                "it is no file, or its user may not execute it in the sandbox"
            }
            (Stage::Exec, Some(libc::ENOEXEC)) => {
                "it is neither a program for this machine nor a script that begins with #!"
            }
            _ => return write!(f, "{program:?} did not start: could not {stage}: {source}"),
        };
        write!(f, "{program:?} did not start: {why}")
    }
}

/// Why a sandbox was not built.
pub(super) struct NotBuilt<'a>(pub(super) &'a Path, pub(super) Step, pub(super) &'a io::Error);

impl fmt::Display for NotBuilt<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self(path, step, source) = self;
        // Init names targets from its root on, and parameters by their paths.
        let shown = match step {
            Step::Mount => Path::new("/").join(path),
            Step::Sysctl => path.to_string_lossy().replace('/', ".").into(),
            _ => path.to_path_buf(),
        };
        write!(f, "the sandbox was not built: could not {step}{}: ", Of(&shown))?;
        match (step, source.raw_os_error()) {
            (Step::Mount, Some(libc::ENOTDIR)) => f.write_str(
                "one of the two is a directory and the other is a file, or something on the way is \
                 a file; name a target of the same kind, or one that is not there",
            ),
            (Step::Sysctl, Some(libc::EACCES | libc::EPERM)) => f.write_str(
                "the kernel has it for the whole machine; leave it out, and set it outside, as \
                 root: sysctl -w NAME=VALUE",
            ),
            (Step::Sysctl, Some(libc::ENOENT)) => f.write_str(
                "this kernel has no such parameter for a sandbox; `sysctl -a` lists the machine's",
            ),
            (Step::Sysctl, Some(libc::EINVAL | libc::ERANGE)) => {
                write!(f, "{source}; it takes other values: `sysctl` of it tells the machine's")
            }
            (Step::Mount, Some(libc::EBUSY)) => {
                f.write_str("it leads to `/`, `/proc` or `/dev`, where nothing can be mounted")
            }
            (Step::Mount, Some(libc::EROFS)) => write!(
                f,
                "{source}; what it is to be mounted on does not exist, and can't be made in what \
                 is mounted read-only there"
            ),
            _ => write!(f, "{source}"),
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io;
    use std::path::Path;

    use super::{Error, Stage, Step};

    fn os(errno: i32) -> io::Error {
        io::Error::from_raw_os_error(errno)
    }

    #[test]
    fn a_failure_to_start_is_told_in_a_sentence() {
        let told = |stage, errno| {
            Error::Start { program: "p".into(), stage, source: os(errno) }.to_string()
        };
        for (stage, errno, text) in [
            (
                Stage::Exec,
                libc::ENOENT,
                "\"p\" did not start: there is no such program in the sandbox, or its interpreter is \
                 missing",
            ),
            (
                Stage::Identity,
                libc::ENOENT,
                "there is no user or group \"p\" in /etc/passwd and /etc/group of the sandbox: name \
                 one by number, as 1000, or one that is there, or add it",
            ),
            (
                Stage::Rlimit,
                libc::EINVAL,
                "\"p\" did not start: could not set its resource limits: Invalid argument (os error \
                 22)",
            ),
        ] {
            assert_eq!(told(stage, errno), text);
        }
    }

    #[test]
    fn a_failure_to_build_is_told_in_a_sentence() {
        let error = |step, path: &str| {
            let path = path.into();
            Error::Setup { step, path, source: os(libc::EPERM) }.to_string()
        };
        let text = "the sandbox was not built: could not mount /proc: Operation not permitted (os \
                    error 1)";
        assert_eq!(error(Step::Proc, ""), text);
        assert!(
            error(Step::Mount, "/a")
                .contains("could not mount a volume, tmpfs or device at \"/a\"")
        );
    }

    #[test]
    fn a_full_disk_and_a_full_quota_are_told_apart() {
        let told = |errno| Error::at("setxattr", Path::new("/a"))(os(errno)).to_string();
        assert!(told(libc::ENOSPC).contains("(os error 28); the disk is full"));
        assert!(told(libc::EDQUOT).contains("(os error 122); a quota of the disk is full"));
        assert!(told(libc::EIO).ends_with("(os error 5)"));
    }

    #[test]
    fn a_cause_is_printed_once() {
        let error = Error::at("open", Path::new("/a"))(os(libc::ENOENT));
        assert_eq!(error.to_string(), "open \"/a\": No such file or directory (os error 2)");
        assert!(std::error::Error::source(&error).is_none());
    }
}
