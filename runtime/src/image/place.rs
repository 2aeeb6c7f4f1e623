//! What images in layers lie in: a directory, or a tar archive of one.
//!
//! Names come from what is read there, so nothing is followed, and nothing but a regular file is
//! opened.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

use adl_protocol::limits::MAX_PATH;
use nix::errno::Errno;
use nix::fcntl::OFlag;
use nix::sys::stat::{FileStat, Mode, fstat};

use crate::config::host_path::HostPath;
use crate::error::{Error, Result};
use crate::image::compression::{Compression, decompress, late};
use crate::image::options::Caps;
use crate::sys::open::{self, Purpose};
use crate::sys::unique::unique_name;
use crate::transfer::tar::reader::{End, Entry, Kind, Reader};
use crate::wait::Deadline;

/// The most files in an archive that are remembered.
const MOST_FILES: usize = 100_000;
/// The most bytes of their names, and of those that they lead to.
const MOST_OF_NAMES: usize = 16 << 20;
/// How many links are followed from one file of an archive to another.
const MOST_LINKS: usize = 8;

/// What images in layers lie in, opened.
#[derive(Debug)]
pub(crate) struct Place {
    form: Form,
    /// For errors.
    shown: PathBuf,
    /// All that is read of it is read by then.
    deadline: Deadline,
}

#[derive(Debug)]
enum Form {
    Directory(OwnedFd),
    Archive { file: File, parts: BTreeMap<String, Part> },
}

/// A file in an archive.
#[derive(Debug, PartialEq, Eq)]
enum Part {
    Content {
        at: u64,
        size: u64,
    },
    /// As `docker save` once wrote layers that it had written before.
    Link(String),
}

/// A file that is read from its beginning.
pub(crate) struct Content<'a> {
    pub(crate) bytes: Box<dyn Read + Send + 'a>,
    pub(crate) size: u64,
}

impl Place {
    /// Opens a directory or an archive. What is compressed is unpacked into a file without a name in
    /// `aside`, since it is read in another order than it lies there.
    ///
    /// # Errors
    /// [`Error::Invalid`] for anything else, [`Error::TooLarge`], [`Error::TimedOut`].
    pub(crate) fn open(
        path: &HostPath,
        aside: &Path,
        caps: Caps,
        deadline: Deadline,
    ) -> Result<Self> {
        let location = path.locate()?;
        let shown = path.full_path();
        let looked = location.open("open image", Purpose::Look)?;
        let stat = fstat(&looked).map_err(Error::at("stat", &shown))?;
        let form = if is(&stat, libc::S_IFDIR) {
            Form::Directory(location.open("open image", Purpose::Pass)?)
        } else {
            let file = File::from(location.open_file("image")?);
            let file = plain(file, aside, caps, deadline).map_err(|error| match error {
                Error::Invalid { why, .. } => Error::invalid("image", format!("{shown:?}: {why}")),
                error => error,
            })?;
            let parts = parts(&file, &shown, deadline).map_err(|error| match error {
                Error::Invalid { why, .. } => {
                    Error::invalid("image", format!("{shown:?} is no tar archive: {why}"))
                }
                error => error,
            })?;
            Form::Archive { file, parts }
        };
        Ok(Self { form, shown, deadline })
    }

    /// A directory of adl's own.
    pub(crate) fn directory(directory: OwnedFd, shown: PathBuf, deadline: Deadline) -> Self {
        Self { form: Form::Directory(directory), shown, deadline }
    }

    /// How errors name it.
    pub(crate) fn shown(&self) -> &PathBuf {
        &self.shown
    }

    /// Opens a file; `None` if there is none.
    pub(crate) fn file(&self, name: &str) -> Result<Option<Content<'_>>> {
        check(self.deadline)?;
        let content = match &self.form {
            Form::Directory(directory) => self.file_of(directory, name)?,
            Form::Archive { file, parts } => find(parts, name).map(|(at, size)| Content {
                bytes: Box::new(Section { file, at, end: at.saturating_add(size) }),
                size,
            }),
        };
        let timed = |Content { bytes, size }| Content {
            bytes: Box::new(Timed { bytes, deadline: self.deadline }),
            size,
        };
        Ok(content.map(timed))
    }

    /// Says why a file of it could not be read.
    pub(crate) fn failed(&self, name: &str, error: io::Error) -> Error {
        error.downcast().unwrap_or_else(Error::at("read", &self.shown.join(name)))
    }

    fn file_of(&self, directory: &OwnedFd, name: &str) -> Result<Option<Content<'static>>> {
        let at = || self.shown.join(name);
        let file = match open::beneath(directory.as_fd(), name, Purpose::Read) {
            Ok(file) => file,
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EINVAL | Errno::ENAMETOOLONG) => {
                return Ok(None);
            }
            Err(Errno::ELOOP | Errno::EXDEV) => {
                let why = "leads through a link or out of the image, and is not followed";
                return Err(Error::invalid("image", format!("{:?} {why}", at())));
            }
            Err(errno) => return Err(Error::at("open", &at())(errno)),
        };
        let stat = fstat(&file).map_err(Error::at("stat", &at()))?;
        if !is(&stat, libc::S_IFREG) {
            return Err(Error::invalid("image", format!("{:?} is no regular file", at())));
        }
        let bytes = Box::new(File::from(file));
        Ok(Some(Content { bytes, size: stat.st_size.unsigned_abs() }))
    }

    /// Reads a whole file; `None` if there is none.
    ///
    /// # Errors
    /// [`Error::TooLarge`] for a longer one.
    pub(crate) fn read(&self, name: &str, longest: u64) -> Result<Option<Vec<u8>>> {
        let Some(content) = self.file(name)? else { return Ok(None) };
        let too_large =
            Error::TooLarge { what: "a document of an image, in bytes", limit: longest };
        if content.size > longest {
            return Err(too_large);
        }
        let mut bytes = Vec::new();
        let read = content.bytes.take(longest + 1).read_to_end(&mut bytes);
        let count = read.map_err(|error| self.failed(name, error))?;
        if count as u64 > longest { Err(too_large) } else { Ok(Some(bytes)) }
    }
}

/// Looks whether it is too late.
fn check(deadline: Deadline) -> Result<()> {
    if deadline.passed() { Err(late(deadline)) } else { Ok(()) }
}

/// What is read in time.
struct Timed<'a> {
    bytes: Box<dyn Read + Send + 'a>,
    deadline: Deadline,
}

impl Read for Timed<'_> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        check(self.deadline).map_err(io::Error::other)?;
        self.bytes.read(into)
    }
}

fn is(stat: &FileStat, kind: libc::mode_t) -> bool {
    stat.st_mode & libc::S_IFMT == kind
}

/// An archive that is not compressed.
fn plain(file: File, aside: &Path, caps: Caps, deadline: Deadline) -> Result<File> {
    let mut beginning = [0; 6];
    let count = file.read_at(&mut beginning, 0).map_err(Error::io("read an image"))?;
    if Compression::of(beginning.get(..count).unwrap_or_default()) == Compression::None {
        return Ok(file);
    }
    let mut unpacked = unnamed(aside).map_err(Error::at("make a file in", aside))?;
    decompress(file, &mut unpacked, caps, deadline)?;
    Ok(unpacked)
}

/// A file that goes with its descriptor.
fn unnamed(directory: &Path) -> nix::Result<File> {
    let mode = Mode::S_IRUSR | Mode::S_IWUSR;
    let flags = OFlag::O_RDWR | OFlag::O_CLOEXEC;
    match nix::fcntl::open(directory, flags | OFlag::O_TMPFILE, mode) {
        // A file system that has none.
        Err(Errno::EOPNOTSUPP | Errno::EISDIR) => {
            let path = directory.join(unique_name(".image-"));
            let flags = flags | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_NOFOLLOW;
            let file = nix::fcntl::open(&path, flags, mode)?;
            nix::unistd::unlink(&path)?;
            Ok(file.into())
        }
        made => made.map(File::from),
    }
}

/// A part of a file, which others read, too.
struct Section<'a> {
    file: &'a File,
    at: u64,
    end: u64,
}

impl Read for Section<'_> {
    fn read(&mut self, buffer: &mut [u8]) -> io::Result<usize> {
        let left = usize::try_from(self.end.saturating_sub(self.at)).unwrap_or(usize::MAX);
        let wanted = buffer.len().min(left);
        let count = self.file.read_at(buffer.get_mut(..wanted).unwrap_or_default(), self.at)?;
        self.at += count as u64;
        Ok(count)
    }
}

/// Where the content of a file lies in an archive.
fn find(parts: &BTreeMap<String, Part>, name: &str) -> Option<(u64, u64)> {
    let mut name = plain_name(name)?;
    for _ in 0..MOST_LINKS {
        match parts.get(&name)? {
            Part::Content { at, size } => return Some((*at, *size)),
            Part::Link(target) => name.clone_from(target),
        }
    }
    None
}

/// A name without what says nothing; `None` for one that leads elsewhere.
fn plain_name(name: &str) -> Option<String> {
    let mut parts: Vec<&str> = Vec::new();
    for part in name.split('/') {
        match part {
            "" if parts.is_empty() && name.starts_with('/') => return None,
            "" | "." => {}
            ".." => _ = parts.pop()?,
            part => parts.push(part),
        }
    }
    Some(parts.join("/"))
}

/// The files in an archive. Of two with one name the last counts.
fn parts(mut file: &File, shown: &Path, deadline: Deadline) -> Result<BTreeMap<String, Part>> {
    let failed = |error| Error::at("read", shown)(error);
    file.seek(SeekFrom::Start(0)).map_err(failed)?;
    let mut parts = BTreeMap::new();
    let mut of_names = 0;
    let mut reader = Reader::new(file, End::MarkedOrNot);
    while let Some(Entry { member, kind }) = reader.next(|_| check(deadline))? {
        let at = reader.input().stream_position().map_err(failed)?;
        let left = i64::try_from(reader.leave()).map_err(io::Error::other).map_err(failed)?;
        reader.input().seek(SeekFrom::Current(left)).map_err(failed)?;
        // Names that no file could have, or that are no text, are no image's.
        if member.path.len().max(member.link.len()) > MAX_PATH {
            continue;
        }
        let Some(name) = str::from_utf8(&member.path).ok().and_then(plain_name) else { continue };
        let link = || str::from_utf8(&member.link).ok();
        let part = match kind {
            Kind::File(map) if map.pieces == [(0, map.size)] => {
                Part::Content { at, size: map.size }
            }
            Kind::SymbolicLink => {
                let above = name.rsplit_once('/').map_or("", |(above, _)| above);
                match link().and_then(|link| plain_name(&format!("./{above}/{link}"))) {
                    Some(target) => Part::Link(target),
                    None => continue,
                }
            }
            Kind::HardLink => match link().and_then(plain_name) {
                Some(target) => Part::Link(target),
                None => continue,
            },
            _ => continue,
        };
        of_names += name.len() + if let Part::Link(target) = &part { target.len() } else { 0 };
        if of_names > MOST_OF_NAMES {
            let what = "the names of the files of an image, in bytes,";
            return Err(Error::TooLarge { what, limit: MOST_OF_NAMES as u64 });
        }
        parts.insert(name, part);
        if parts.len() > MOST_FILES {
            return Err(Error::TooLarge {
                what: "the files of an image",
                limit: MOST_FILES as u64,
            });
        }
    }
    Ok(parts)
}

#[cfg(test)]
mod tests {
    use std::fs::{self, File};
    use std::io::Write;
    use std::os::unix::fs::symlink;
    use std::path::{Path, PathBuf};

    use super::{Caps, Error, Place, plain_name};
    use crate::wait::Deadline;

    fn temporary(name: &str) -> PathBuf {
        let path = std::env::temp_dir().join(format!("adl-place-{name}-{}", std::process::id()));
        let _ = fs::remove_dir_all(&path);
        fs::create_dir(&path).unwrap();
        path
    }

    fn read(place: &Place, name: &str) -> Option<Vec<u8>> {
        place.read(name, 100).unwrap()
    }

    #[test]
    fn names_lead_nowhere_but_down() {
        for (name, expected) in [
            ("a/b", Some("a/b")),
            ("./a//b/", Some("a/b")),
            ("a/../b", Some("b")),
            ("..", None),
            ("a/../../b", None),
            ("/a", None),
        ] {
            assert_eq!(plain_name(name).as_deref(), expected, "{name}");
        }
    }

    #[test]
    fn nothing_is_followed_out_of_a_directory() {
        let top = temporary("directory");
        fs::create_dir_all(top.join("image/blobs")).unwrap();
        fs::write(top.join("secret"), "secret").unwrap();
        fs::write(top.join("image/blobs/x"), "content").unwrap();
        symlink("../../secret", top.join("image/blobs/link")).unwrap();
        symlink("..", top.join("image/out")).unwrap();
        nix::unistd::mkfifo(&top.join("image/fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
        let place =
            Place::open(&top.join("image").into(), &top, Caps::default(), Deadline::NEVER).unwrap();
        assert_eq!(read(&place, "blobs/x").unwrap(), b"content");
        assert_eq!(read(&place, "absent"), None);
        assert_eq!(read(&place, "blobs/x/y"), None);
        for name in ["blobs/link", "out/secret", "../secret", "/etc/passwd", "fifo", "blobs"] {
            let refused = place.read(name, 100).unwrap_err();
            assert!(matches!(refused, Error::Invalid { .. }), "{name}: {refused}");
        }
        assert!(matches!(place.read("blobs/x", 6), Err(Error::TooLarge { limit: 6, .. })));
        fs::remove_dir_all(top).unwrap();
    }

    fn header(kind: u8, name: &str, link: &str, size: u64) -> [u8; 512] {
        let mut header = [0; 512];
        let mut set = |at: usize, text: &[u8]| header[at..at + text.len()].copy_from_slice(text);
        set(0, name.as_bytes());
        set(100, b"0000644\x000000000\x000000000\0");
        set(124, format!("{size:011o}\x0000000000000\0").as_bytes());
        set(148, b"        ");
        set(156, &[kind]);
        set(157, link.as_bytes());
        set(257, b"ustar\x0000");
        let sum: u32 = header.iter().map(|byte| u32::from(*byte)).sum();
        header[148..155].copy_from_slice(format!("{sum:06o}\0").as_bytes());
        header
    }

    fn archive(path: &Path, entries: &[(u8, &str, &str, &[u8])]) {
        let mut file = File::create(path).unwrap();
        for (kind, name, link, content) in entries {
            file.write_all(&header(*kind, name, link, content.len() as u64)).unwrap();
            file.write_all(content).unwrap();
            file.write_all(&vec![0; content.len().next_multiple_of(512) - content.len()]).unwrap();
        }
        file.write_all(&[0; 1024]).unwrap();
    }

    #[test]
    fn files_of_an_archive_are_found_by_name_and_links_lead_to_others_in_it() {
        let top = temporary("archive");
        let path = top.join("x.tar");
        let long = "long/".repeat(30) + "name";
        archive(
            &path,
            &[
                (b'0', "./a/layer.tar", "", b"first"),
                (b'2', "b/layer.tar", "../a/layer.tar", b""),
                (b'1', "c", "a/layer.tar", b""),
                (b'2', "out", "../../etc/passwd", b""),
                (b'2', "loop", "loop", b""),
                (b'0', "../escape", "", b"x"),
                (b'5', "a", "", b""),
                (b'L', "././@LongLink", "", format!("{long}\0").as_bytes()),
                (b'0', "long", "", b"named"),
                (b'x', "pax", "", b"17 path=pax/name\n"),
                (b'0', "short", "", b"pax"),
                (b'0', "c2", "", b"before"),
                (b'0', "c2", "", b"after"),
            ],
        );
        let place = Place::open(&path.into(), &top, Caps::default(), Deadline::NEVER).unwrap();
        for (name, content) in [
            ("a/layer.tar", Some(&b"first"[..])),
            ("b/layer.tar", Some(b"first")),
            ("c", Some(b"first")),
            (&long, Some(b"named")),
            ("pax/name", Some(b"pax")),
            ("c2", Some(b"after")),
            ("out", None),
            ("loop", None),
            ("escape", None),
            ("../escape", None),
            ("a", None),
            ("long", None),
            ("short", None),
        ] {
            assert_eq!(read(&place, name).as_deref(), content, "{name}");
        }
        fs::remove_dir_all(top).unwrap();
    }

    #[test]
    fn what_is_no_archive_is_told_and_headers_of_absurd_size_are_not_read() {
        let top = temporary("none");
        let path = top.join("x.tar");
        let open = |content: &[u8]| {
            fs::write(&path, content).unwrap();
            Place::open(&(&path).into(), &top, Caps::default(), Deadline::NEVER)
        };
        assert!(matches!(open(&[b'x'; 5000]), Err(Error::Invalid { .. })));
        let mut absurd = header(b'L', "x", "", 1 << 32).to_vec();
        absurd.resize(4096, 0);
        assert!(matches!(open(&absurd), Err(Error::TooLarge { .. })));
        // A file that ends before its content does is read as far as there is any.
        let cut = header(b'0', "x", "", 1 << 32).to_vec();
        if let Ok(place) = open(&cut) {
            assert!(place.read("x", 100).is_err());
        }
        assert!(
            Place::open(&(&top.join("absent")).into(), &top, Caps::default(), Deadline::NEVER)
                .is_err()
        );
        fs::remove_dir_all(top).unwrap();
    }
}
