//! Opening, on the host, what a guest may have had a hand in.
//!
//! A guest puts links, FIFOs and sockets where files are expected, and one thing in the place of
//! another between a look and a use. So what it may have touched is opened below a directory that
//! is open already, and through no symbolic link (`openat2(2)`); no open waits, and what was opened
//! is looked at before it is used. Links are followed on a path that is the caller's word alone.

use std::ffi::{CStr, CString};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Component, Path, PathBuf};

use nix::NixPath;
use nix::errno::Errno;
use nix::fcntl::{AT_FDCWD, OFlag, OpenHow, ResolveFlag, openat2};
use nix::sys::stat::{FileStat, Mode, fstat};

use crate::error::{Error, Result};

/// How a directory is opened that is to be read or locked: itself, and not what a link leads to.
pub(crate) const DIRECTORY: OFlag =
    OFlag::O_RDONLY.union(OFlag::O_DIRECTORY).union(OFlag::O_CLOEXEC).union(OFlag::O_NOFOLLOW);

/// What something is opened for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Purpose {
    /// To look at it or to mount it, whatever it is: no driver hears of that.
    Look,
    /// A directory, to go through it.
    Pass,
    /// A directory, to list it.
    List,
    /// To read it. What is no regular file does not wait, but has to be looked at.
    Read,
}

impl Purpose {
    pub(crate) fn flags(self) -> OFlag {
        let reading = OFlag::O_RDONLY | OFlag::O_NONBLOCK | OFlag::O_NOCTTY | OFlag::O_CLOEXEC;
        match self {
            Self::Look => OFlag::O_PATH | OFlag::O_CLOEXEC,
            Self::Pass => OFlag::O_PATH | OFlag::O_CLOEXEC | OFlag::O_DIRECTORY,
            Self::List => reading | OFlag::O_DIRECTORY,
            Self::Read => reading,
        }
    }
}

/// Opens what is below a directory, through no link.
///
/// # Errors
/// ELOOP for a link anywhere on the way, EXDEV for what leads out, as `..` does; ESTALE where a
/// guest has moved what was found out of the directory before it was open.
pub(crate) fn beneath(
    directory: impl AsFd,
    path: &(impl NixPath + ?Sized),
    purpose: Purpose,
) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    match openat2(directory, path, OpenHow::new().flags(purpose.flags()).resolve(resolve)) {
        Err(Errno::EXDEV) if leads_down(path) => Err(Errno::ESTALE),
        opened => opened,
    }
}

/// Opens what is at an absolute path that no link is on, to look at it or to mount it.
pub(crate) fn exactly(path: &CStr) -> nix::Result<OwnedFd> {
    let resolve = ResolveFlag::RESOLVE_NO_SYMLINKS | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    openat2(AT_FDCWD, path, OpenHow::new().flags(Purpose::Look.flags()).resolve(resolve))
}

/// What is mounted on the way to something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Mounts {
    /// Is entered.
    Entered,
    /// Is in the way: what a file system may have to ask another machine or program for could keep
    /// whoever waits for it, for ever.
    Refused,
}

/// Opens what is below a directory, through no link. With [`Purpose::Look`] that may be a link,
/// which is opened itself.
///
/// # Errors
/// As those of [`beneath`], and EXDEV for what is mounted there and is not to be entered.
pub(crate) fn entry(
    directory: impl AsFd,
    path: &(impl NixPath + ?Sized),
    purpose: Purpose,
    mounts: Mounts,
) -> nix::Result<OwnedFd> {
    let mut resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    if mounts == Mounts::Refused {
        resolve |= ResolveFlag::RESOLVE_NO_XDEV;
    }
    let flags = purpose.flags() | OFlag::O_NOFOLLOW;
    openat2(directory, path, OpenHow::new().flags(flags).resolve(resolve))
}

/// Makes a file below a directory, where there is nothing, not even a link, and through none. Its
/// owner may read and write it.
pub(crate) fn create_beneath(
    directory: impl AsFd,
    path: &(impl NixPath + ?Sized),
) -> nix::Result<OwnedFd> {
    let flags = OFlag::O_WRONLY
        | OFlag::O_CREAT
        | OFlag::O_EXCL
        | OFlag::O_NOFOLLOW
        | OFlag::O_NOCTTY
        | OFlag::O_CLOEXEC;
    let resolve = ResolveFlag::RESOLVE_BENEATH
        | ResolveFlag::RESOLVE_NO_SYMLINKS
        | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    openat2(directory, path, OpenHow::new().flags(flags).mode(mode).resolve(resolve))
}

/// Finds what a path leads to for a program of which a directory is the root, without a look at
/// anything else of it.
///
/// # Errors
/// EAGAIN where something was renamed meanwhile, again and again.
pub(crate) fn in_root(root: impl AsFd, path: &(impl NixPath + ?Sized)) -> nix::Result<OwnedFd> {
    const ATTEMPTS: usize = 64;
    let resolve = ResolveFlag::RESOLVE_IN_ROOT | ResolveFlag::RESOLVE_NO_MAGICLINKS;
    let how = OpenHow::new().flags(Purpose::Look.flags()).resolve(resolve);
    let mut opened = Err(Errno::EAGAIN);
    for _ in 0..ATTEMPTS {
        opened = openat2(root.as_fd(), path, how);
        if !matches!(opened, Err(Errno::EAGAIN)) {
            break;
        }
    }
    opened
}

/// Whether a path leads nowhere but down, as long as no one moves anything.
fn leads_down(path: &(impl NixPath + ?Sized)) -> bool {
    let leads_down = |path: &CStr| {
        let path = path.to_bytes();
        !path.starts_with(b"/") && path.split(|byte| *byte == b'/').all(|name| name != b"..")
    };
    path.with_nix_path(leads_down).unwrap_or(false)
}

/// Opens what a path leads to, links and all.
///
/// Where a link is replaced at that moment, ext4 clears the old one while another process may still
/// read it, and the kernel then goes where the rest leads: to the directory that the link is in,
/// or to one above. So where there are links, only what two looks agree on is believed.
///
/// # Errors
/// ESTALE where it leads elsewhere each time.
fn follow(path: &Path, purpose: Purpose) -> nix::Result<OwnedFd> {
    const ATTEMPTS: usize = 64;
    let direct = OpenHow::new().flags(purpose.flags()).resolve(ResolveFlag::RESOLVE_NO_SYMLINKS);
    match openat2(AT_FDCWD, path, direct) {
        Err(Errno::ELOOP) => {}
        opened => return opened,
    }
    let open = || nix::fcntl::open(path, purpose.flags(), Mode::empty());
    let identity = |opened: &nix::Result<OwnedFd>| match opened {
        Ok(opened) => fstat(opened).map(|stat| (stat.st_dev, stat.st_ino)),
        Err(errno) => Err(*errno),
    };
    let mut last = open();
    for _ in 0..ATTEMPTS {
        let opened = open();
        if identity(&opened) == identity(&last) {
            return opened;
        }
        last = opened;
    }
    Err(Errno::ESTALE)
}

/// Opens the directory above one, to list it. A guest may have moved that: who goes back up
/// compares what this opens with what the way down went through.
pub(crate) fn above(directory: impl AsFd) -> nix::Result<OwnedFd> {
    nix::fcntl::openat(directory, "..", Purpose::List.flags(), Mode::empty())
}

/// Opens what is below a directory, or, where there is none, what a path leads to that is the
/// caller's word.
#[derive(Debug)]
pub(crate) struct Location {
    base: Option<OwnedFd>,
    path: PathBuf,
    /// For errors.
    shown: PathBuf,
}

impl Location {
    /// What a path leads to, links and all.
    pub(crate) fn followed(path: PathBuf) -> Self {
        Self { base: None, shown: path.clone(), path }
    }

    /// What is below a directory.
    ///
    /// # Errors
    /// [`Error::Invalid`] for a path that leads out.
    pub(crate) fn beneath(base: OwnedFd, path: &Path, shown: PathBuf) -> Result<Self> {
        let is_below = |part| matches!(part, Component::Normal(_) | Component::CurDir);
        if !path.components().all(is_below) {
            let why = format!("{path:?} leads out of its base: takes a relative one without `..`");
            return Err(Error::invalid("path", why));
        }
        let path = if path.as_os_str().is_empty() { Path::new(".") } else { path };
        Ok(Self { base: Some(base), path: path.to_owned(), shown })
    }

    /// What is below a directory of the caller's.
    pub(crate) fn at(directory: BorrowedFd<'_>, path: &Path) -> Result<Self> {
        let base = directory.try_clone_to_owned().map_err(Error::io("dup"))?;
        Self::beneath(base, path, path.to_owned())
    }

    /// How errors name it.
    pub(crate) fn shown(&self) -> &Path {
        &self.shown
    }

    pub(crate) fn open(&self, operation: &'static str, purpose: Purpose) -> Result<OwnedFd> {
        self.open_path(operation, &self.path, purpose)
    }

    /// Opens a regular file to read it. Nothing else is opened, since to a driver that may be an
    /// order, nor waited for.
    ///
    /// # Errors
    /// [`Error::Invalid`] with `what` for something else.
    pub(crate) fn open_file(&self, what: &'static str) -> Result<OwnedFd> {
        let check = |file: &OwnedFd| {
            let stat = fstat(file).map_err(Error::at("stat", &self.shown))?;
            if stat.st_mode & libc::S_IFMT == libc::S_IFREG {
                return Ok(());
            }
            let why = format!("{:?} is {}, not a regular file", self.shown, kind(&stat));
            Err(Error::invalid(what, why))
        };
        check(&self.open("open", Purpose::Look)?)?;
        let file = self.open("open", Purpose::Read)?;
        check(&file)?;
        Ok(file)
    }

    /// The directory that it is in or is to be in, and its name there; `.` for one without a name,
    /// which no link can be.
    pub(crate) fn parent(&self) -> Result<(OwnedFd, CString)> {
        let (parent, name) = match (self.path.parent(), self.path.file_name()) {
            (Some(parent), Some(name)) if parent.as_os_str().is_empty() => (Path::new("."), name),
            (Some(parent), Some(name)) => (parent, name),
            _ => (self.path.as_path(), ".".as_ref()),
        };
        let name = CString::new(name.as_bytes())
            .map_err(|_| Error::invalid("target", "a path with a NUL byte"))?;
        Ok((self.open_path("open", parent, Purpose::Pass)?, name))
    }

    fn open_path(&self, operation: &'static str, path: &Path, purpose: Purpose) -> Result<OwnedFd> {
        let Some(base) = &self.base else {
            return follow(path, purpose).map_err(Error::at(operation, path));
        };
        beneath(base, path, purpose).map_err(|errno| match errno {
            Errno::ELOOP => {
                let why = "leads through a symbolic link, and none is followed there";
                Error::invalid("path", format!("{:?} {why}", self.shown))
            }
            errno => Error::at(operation, &self.shown)(errno),
        })
    }
}

/// What something is, in words.
fn kind(stat: &FileStat) -> &'static str {
    match stat.st_mode & libc::S_IFMT {
        libc::S_IFREG => "a regular file",
        libc::S_IFDIR => "a directory",
        libc::S_IFIFO => "a FIFO",
        libc::S_IFSOCK => "a socket",
        libc::S_IFCHR | libc::S_IFBLK => "a device",
        _ => "something else",
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::os::fd::AsFd;
    use std::os::unix::fs::{MetadataExt, symlink};

    use nix::errno::Errno;
    use nix::sys::stat::{Mode, fstat};

    use super::{Location, Path, PathBuf, Purpose, beneath, follow};
    use crate::error::Error;

    fn temporary(name: &str) -> PathBuf {
        std::env::temp_dir().join(format!("adl-open-{name}-{}", std::process::id()))
    }

    const ALL: [Purpose; 4] = [Purpose::Look, Purpose::Pass, Purpose::List, Purpose::Read];

    #[test]
    fn nothing_leads_out_of_a_directory_and_no_link_is_followed_in_it() {
        let top = temporary("beneath");
        fs::create_dir_all(top.join("base/a/b")).unwrap();
        fs::create_dir(top.join("out")).unwrap();
        fs::write(top.join("base/a/file"), "").unwrap();
        for (target, link) in [("a/b", "in"), ("../out", "out"), ("/proc/self", "magic")] {
            symlink(target, top.join("base").join(link)).unwrap();
        }
        let base = File::open(top.join("base")).unwrap();
        for purpose in ALL {
            // Each is there for who follows.
            for link in ["in", "out", "in/.", "out/.", "magic/root", "magic/cwd"] {
                File::open(top.join("base").join(link)).unwrap();
                let refused = beneath(&base, link, purpose).map(drop);
                assert_eq!(refused, Err(Errno::ELOOP), "{link} {purpose:?}");
            }
            for out in ["..", "../out", "a/../../out", "/"] {
                let refused = beneath(&base, out, purpose).map(drop);
                assert_eq!(refused, Err(Errno::EXDEV), "{out} {purpose:?}");
            }
            for there in ["a", "a/b", "."] {
                beneath(&base, there, purpose).unwrap();
            }
        }
        for out in ["..", "a/..", "../base/a", "/", "/a"] {
            let made = Location::at(base.as_fd(), Path::new(out)).map(drop);
            assert!(matches!(made, Err(Error::Invalid { .. })), "{out}: {made:?}");
        }
        fs::remove_dir_all(top).unwrap();
    }

    #[test]
    fn what_is_moved_away_meanwhile_is_stale_and_no_one_has_led_out() {
        let top = temporary("moved");
        fs::create_dir_all(top.join("base/a")).unwrap();
        fs::create_dir_all(top.join("out")).unwrap();
        let base = File::open(top.join("base")).unwrap();
        let is_over = std::sync::atomic::AtomicBool::new(false);
        let order = std::sync::atomic::Ordering::Relaxed;
        std::thread::scope(|scope| {
            scope.spawn(|| {
                for _ in 0..20_000 {
                    fs::rename(top.join("base/a"), top.join("out/a")).unwrap();
                    fs::rename(top.join("out/a"), top.join("base/a")).unwrap();
                }
                is_over.store(true, order);
            });
            while !is_over.load(order) {
                let opened = beneath(&base, "a", Purpose::Pass).map(drop);
                let is_told = matches!(opened, Ok(()) | Err(Errno::ENOENT | Errno::ESTALE));
                assert!(is_told, "{opened:?}");
            }
        });
        assert_eq!(beneath(&base, "a", Purpose::Pass).map(drop), Ok(()));
        fs::remove_dir_all(top).unwrap();
    }

    #[test]
    fn a_link_that_is_replaced_leads_to_the_one_or_the_other() {
        let top = temporary("replaced");
        let [one, other] = ["one", "other"].map(|name| top.join(name));
        let inodes = [&one, &other].map(|path| {
            fs::create_dir_all(path).unwrap();
            fs::metadata(path).unwrap().ino()
        });
        let (link, aside) = (top.join("link"), top.join("aside"));
        symlink(&one, &link).unwrap();
        std::thread::scope(|scope| {
            let replaces = scope.spawn(|| {
                for turn in 0..20_000 {
                    symlink(if turn % 2 == 0 { &other } else { &one }, &aside).unwrap();
                    fs::rename(&aside, &link).unwrap();
                }
            });
            let mut count = 0;
            while !replaces.is_finished() {
                match follow(&link, Purpose::Pass) {
                    Ok(opened) => {
                        let inode = fstat(&opened).unwrap().st_ino;
                        assert!(inodes.contains(&inode), "{inode} is none of {inodes:?}");
                        count += 1;
                    }
                    Err(errno) => assert_eq!(errno, Errno::ESTALE),
                }
            }
            assert!(count > 0);
        });
        fs::remove_dir_all(top).unwrap();
    }

    #[test]
    fn only_regular_files_are_opened_to_be_read_and_nothing_is_waited_for() {
        let top = temporary("kinds");
        fs::create_dir(&top).unwrap();
        nix::unistd::mkfifo(&top.join("fifo"), Mode::S_IRWXU).unwrap();
        let _socket = std::os::unix::net::UnixListener::bind(top.join("socket")).unwrap();
        fs::write(top.join("file"), "").unwrap();
        let of = |path: &Path| Location::followed(path.to_owned()).open_file("thing");
        of(&top.join("file")).unwrap();
        for path in [&top, &top.join("fifo"), &top.join("socket"), Path::new("/dev/null")] {
            let error = of(path).unwrap_err();
            assert!(matches!(error, Error::Invalid { what: "thing", .. }), "{path:?}: {error}");
        }
        fs::remove_dir_all(top).unwrap();
    }
}
