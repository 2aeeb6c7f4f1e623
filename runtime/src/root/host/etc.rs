//! The host's `/etc` as the image has it: what the rule takes, copied.
//!
//! A link is copied as a link, and what it leads to is taken, too, if that is in a tree that files
//! are taken from; what is in `/usr` is there as it is. Each step of a way is opened in the
//! directory that the step before has opened, and no call follows a link: links are read and
//! followed here, one by one, by this rule. So nothing comes of it that whoever may write to a
//! directory there exchanges meanwhile. What is made is made likewise.

use std::collections::BTreeSet;
use std::ffi::{OsStr, OsString};
use std::fmt;
use std::fs::File;
use std::io::{self, Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Component, Path, PathBuf};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat, readlinkat};
use nix::sys::stat::{FileStat, Mode, fchmod, fstat, mkdirat};
use nix::unistd::{UnlinkatFlags, symlinkat, unlinkat};

use crate::root::host::rule::{self, is_never};
use crate::root::host::secret::secret_in;
use crate::store::contents::entries;
use crate::sys::open::{self, Mounts, Purpose};

/// Where what is copied may lie. In openSUSE `/etc/ssl/certs` leads to the second.
const TREES: [&str; 2] = ["/etc", "/var/lib/ca-certificates"];

/// The most that is copied: entries, bytes in all of them, bytes in one, and how deep. Hundreds of
/// times what is there on an ordinary host.
const MOST_ENTRIES: usize = 100_000;
const MOST_BYTES: u64 = 256 << 20;
const LONGEST_FILE: u64 = 32 << 20;
const DEEPEST: usize = 64;
/// The most links on one way, as for the kernel.
const MOST_LINKS: usize = 40;

/// What a host image has of the host beside `/usr`.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct HostImage {
    /// What it has: directories, files and links, by their paths.
    pub taken: BTreeSet<PathBuf>,
    /// What its rule names and it leaves out, and why.
    pub left_out: Vec<(PathBuf, LeftOut)>,
}

/// Why a host image is without something.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum LeftOut {
    /// Not everyone may read it, or enter a directory above it.
    NotPublic,
    /// It has a name that is never taken.
    Name,
    /// It holds this.
    Secret(&'static str),
    /// It is a link that leads nowhere, or to what is not public or not taken.
    Dangling,
    /// It is a socket, a FIFO or a device.
    Special,
    /// It is larger than all that is taken may be.
    TooLarge,
    /// Something else is mounted there.
    Mount,
}

impl fmt::Display for LeftOut {
    fn fmt(&self, to: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NotPublic => to.write_str("not everyone may read it"),
            Self::Name => to.write_str("its name is never taken"),
            Self::Secret(what) => write!(to, "holds {what}"),
            Self::Dangling => to.write_str("leads to nothing that is taken"),
            Self::Special => to.write_str("no file, directory or link"),
            Self::TooLarge => to.write_str("too large"),
            Self::Mount => to.write_str("something is mounted there"),
        }
    }
}

/// Takes what the rule says of a host whose root is `host`; `links` are what its `/usr` links to.
/// Copies it to `to`, if that is given, where `/etc` is there already.
pub(super) fn take(host: &Path, links: &[PathBuf], to: Option<&Path>) -> io::Result<HostImage> {
    let open = |path: &Path| nix::fcntl::open(path, Purpose::Pass.flags(), Mode::empty());
    let host = Host { root: open(host)? };
    let to = to.map(open).transpose()?;
    let seeds = seeds(&host)?;
    let mut taker =
        Taker { host, to, image: HostImage::default(), seen: BTreeSet::new(), bytes: 0 };
    for path in seeds.iter().chain(links) {
        taker.take(path, 0)?;
    }
    taker.image.left_out.sort_by(|one, other| one.0.cmp(&other.0));
    taker.image.left_out.dedup();
    Ok(taker.image)
}

/// What the list of names comes to on this host.
fn seeds(host: &Host) -> io::Result<Vec<PathBuf>> {
    let etc = Path::new("/etc");
    let mut there = entries(open::beneath(&host.root, "etc", Purpose::Pass)?.as_fd())?;
    there.sort();
    let names = rule::TAKEN.iter().flat_map(|(_, names)| *names);
    Ok(names
        .flat_map(|name| match name.contains('*') {
            true => there
                .iter()
                .filter(|there| rule::matches(name, there))
                .map(|n| etc.join(n))
                .collect(),
            false => vec![etc.join(name)],
        })
        .collect())
}

/// Where a link leads that lies in `parent`, without a look at what is there.
pub(crate) fn target(parent: &Path, text: &Path) -> PathBuf {
    let mut path = PathBuf::from("/");
    for part in parent.join(text).components() {
        match part {
            Component::ParentDir => _ = path.pop(),
            Component::Normal(name) => path.push(name),
            _ => {}
        }
    }
    path
}

/// Whether something is below a tree that files are taken from.
pub(crate) fn is_taken_from(path: &Path) -> bool {
    TREES.iter().any(|tree| path.starts_with(tree) && path != Path::new(tree))
}

fn is_program(path: &Path) -> bool {
    super::PROGRAMS.iter().any(|name| path.starts_with(Path::new("/").join(name)))
}

/// Whether a file system of its own may lie there: above trees and at their tops. What is mounted
/// in them is not looked at: it may be of a machine or a program that does not answer.
fn mounts_at(path: &Path) -> Mounts {
    let is_top = super::PROGRAMS.iter().any(|name| path == Path::new("/").join(name));
    match is_top || TREES.iter().any(|tree| Path::new(tree).starts_with(path)) {
        true => Mounts::Entered,
        false => Mounts::Refused,
    }
}

fn may_all(stat: &FileStat, bits: u32) -> bool {
    stat.st_mode & bits == bits
}

fn kind(stat: &FileStat) -> u32 {
    stat.st_mode & libc::S_IFMT
}

/// A host whose files are looked at.
struct Host {
    root: OwnedFd,
}

/// What is at a path, opened to look at it: a link itself.
struct Seen {
    fd: OwnedFd,
    stat: FileStat,
}

/// What a look at a name brings.
enum Look {
    Seen(Seen),
    /// Nothing that can be looked at.
    Nothing,
    /// Something is mounted there.
    Mount,
}

/// Where a way has come to.
struct End {
    /// The directory that it lies in.
    parent: OwnedFd,
    path: PathBuf,
}

impl Host {
    /// What a directory has under the last name of its path.
    fn look(&self, directory: &OwnedFd, path: &Path, mounts: Mounts) -> io::Result<Look> {
        let Some(name) = path.file_name() else { return Ok(Look::Nothing) };
        match open::entry(directory, name, Purpose::Look, mounts) {
            Ok(fd) => {
                let stat = fstat(&fd)?;
                Ok(Look::Seen(Seen { fd, stat }))
            }
            Err(Errno::ENOENT | Errno::ENOTDIR | Errno::EACCES) => Ok(Look::Nothing),
            Err(Errno::EXDEV) => Ok(Look::Mount),
            Err(errno) => Err(errno.into()),
        }
    }

    /// Where a path leads, through directories that all may enter; `None` if to nothing. `mounts`
    /// says of each path on the way whether what is mounted there is entered.
    fn resolve(&self, path: &Path, mounts: fn(&Path) -> Mounts) -> io::Result<Option<End>> {
        let parts = |path: &Path| -> Vec<OsString> {
            path.components().rev().map(|part| part.as_os_str().to_owned()).collect()
        };
        // The directories on the way; the last one is what it has come to, whatever that is.
        let mut way = vec![self.root.try_clone()?];
        let mut at = PathBuf::from("/");
        let mut links = 0;
        let mut left = parts(path);
        while let Some(part) = left.pop() {
            match part.as_encoded_bytes() {
                b"/" => {
                    way.truncate(1);
                    at = PathBuf::from("/");
                }
                b"." => {}
                b".." => {
                    way.truncate(way.len().saturating_sub(1).max(1));
                    at.pop();
                }
                _ => {
                    let Some(directory) = way.last() else { return Ok(None) };
                    let next = at.join(&part);
                    let Look::Seen(seen) = self.look(directory, &next, mounts(&next))? else {
                        return Ok(None);
                    };
                    match kind(&seen.stat) {
                        libc::S_IFLNK => {
                            links += 1;
                            left.extend(parts(Path::new(&readlinkat(&seen.fd, "")?)));
                        }
                        libc::S_IFDIR if !may_all(&seen.stat, 0o001) => return Ok(None),
                        _ => {
                            way.push(seen.fd);
                            at = next;
                        }
                    }
                    if links > MOST_LINKS {
                        return Ok(None);
                    }
                }
            }
        }
        way.pop();
        Ok(way.pop().map(|parent| End { parent, path: at }))
    }
}

struct Taker {
    host: Host,
    to: Option<OwnedFd>,
    image: HostImage,
    /// What was asked for. Links may lead in a circle.
    seen: BTreeSet<PathBuf>,
    bytes: u64,
}

impl Taker {
    /// Takes what a path below a tree leads to, with what is in it.
    fn take(&mut self, path: &Path, depth: usize) -> io::Result<()> {
        if !self.seen.insert(path.to_owned()) {
            return Ok(());
        }
        if depth > DEEPEST {
            return self.leave_out(path, LeftOut::TooLarge);
        }
        let mut directory = self.host.root.try_clone()?;
        let mut at = PathBuf::from("/");
        let mut names = path.components();
        names.next();
        while let Some(name) = names.next() {
            let parent = at;
            at = parent.join(name);
            if is_never(&at) {
                return self.leave_out(&at, LeftOut::Name);
            }
            let seen = match self.host.look(&directory, &at, mounts_at(&at))? {
                Look::Seen(seen) => seen,
                Look::Nothing => return Ok(()),
                Look::Mount => return self.leave_out(&at, LeftOut::Mount),
            };
            let is_last = names.as_path().as_os_str().is_empty();
            match kind(&seen.stat) {
                libc::S_IFLNK => {
                    let text = readlinkat(&seen.fd, "")?;
                    return self.take_link(
                        (&parent, &at),
                        Path::new(&text),
                        names.as_path(),
                        depth,
                    );
                }
                libc::S_IFDIR if !may_all(&seen.stat, 0o005) => {
                    return self.leave_out(&at, LeftOut::NotPublic);
                }
                libc::S_IFDIR => {
                    self.make_directory(&at)?;
                    directory = seen.fd;
                }
                _ if !is_last => return Ok(()),
                libc::S_IFREG => return self.take_file(&directory, &at, &seen.stat),
                _ => return self.leave_out(&at, LeftOut::Special),
            }
        }
        let mut names = entries(directory.as_fd())?;
        names.sort();
        for name in names {
            self.take(&at.join(name), depth + 1)?;
        }
        Ok(())
    }

    /// Takes a link, and what `rest` is below what it leads to.
    fn take_link(
        &mut self,
        (parent, link): (&Path, &Path),
        text: &Path,
        rest: &Path,
        depth: usize,
    ) -> io::Result<()> {
        let next = target(parent, text);
        if is_program(&next) {
            return self.make_link(link, text);
        }
        // Further links on the way may lead on, to where files are taken from or not.
        let Some(end) = self.host.resolve(link, mounts_at)? else {
            return self.leave_out(link, LeftOut::Dangling);
        };
        if is_taken_from(&next) {
            self.make_link(link, text)?;
            return self.take(&next.join(rest), depth + 1);
        }
        if is_taken_from(&end.path) {
            self.make_link(link, &end.path)?;
            return self.take(&end.path.join(rest), depth + 1);
        }
        match is_program(&end.path) {
            true => self.make_link(link, &end.path),
            false => self.leave_out(link, LeftOut::Dangling),
        }
    }

    fn take_file(&mut self, directory: &OwnedFd, path: &Path, stat: &FileStat) -> io::Result<()> {
        if !may_all(stat, 0o004) {
            return self.leave_out(path, LeftOut::NotPublic);
        }
        let name = path.file_name().unwrap_or_default();
        let content = match read(directory, name, mounts_at(path)) {
            Ok(Some(content)) => content,
            Ok(None) => return self.leave_out(path, LeftOut::TooLarge),
            Err(error) => match error.raw_os_error().map(Errno::from_raw) {
                // Something else has come there.
                Some(Errno::ENOENT | Errno::ELOOP | Errno::EXDEV | Errno::ENXIO) => return Ok(()),
                // What a security module keeps from everyone.
                Some(Errno::EACCES | Errno::EPERM) => {
                    return self.leave_out(path, LeftOut::NotPublic);
                }
                _ => return Err(error),
            },
        };
        if let Some(what) = secret_in(&content) {
            return self.leave_out(path, LeftOut::Secret(what));
        }
        self.bytes += content.len() as u64;
        if self.bytes > MOST_BYTES {
            return self.leave_out(path, LeftOut::TooLarge);
        }
        let mode = if stat.st_mode & 0o111 == 0 { 0o644 } else { 0o755 };
        self.make(path, |parent, name| {
            let flags = OFlag::O_WRONLY | OFlag::O_CREAT | OFlag::O_EXCL | OFlag::O_CLOEXEC;
            let mut file = File::from(openat(parent, name, flags, Mode::S_IRWXU)?);
            file.write_all(&content)?;
            Ok(fchmod(&file, Mode::from_bits_truncate(mode))?)
        })
    }

    fn make_directory(&mut self, path: &Path) -> io::Result<()> {
        self.make(path, |parent, name| {
            match mkdirat(parent, name, Mode::S_IRWXU) {
                // The image has it whatever the host has.
                Err(Errno::EEXIST) => {
                    open::entry(parent, name, Purpose::Pass, Mounts::Entered)?;
                    return Ok(());
                }
                made => made?,
            }
            // Whatever the caller's umask.
            let made = open::entry(parent, name, Purpose::List, Mounts::Entered)?;
            Ok(fchmod(made, Mode::from_bits_truncate(0o755))?)
        })
    }

    fn make_link(&mut self, path: &Path, text: &Path) -> io::Result<()> {
        self.make(path, |parent, name| {
            // An empty directory that each image has.
            match unlinkat(parent, name, UnlinkatFlags::RemoveDir) {
                Ok(()) | Err(Errno::ENOENT) => {}
                Err(errno) => return Err(errno.into()),
            }
            Ok(symlinkat(text, parent, name)?)
        })
    }

    /// Makes something, unless it is there already or there is no room, in the copy of the
    /// directory that it lies in. No link of the copy is followed: what the host has there may
    /// have become another thing since that was made.
    fn make(
        &mut self,
        path: &Path,
        make: impl FnOnce(&OwnedFd, &OsStr) -> io::Result<()>,
    ) -> io::Result<()> {
        if self.image.taken.len() >= MOST_ENTRIES {
            return self.leave_out(path, LeftOut::TooLarge);
        }
        let is_new = self.image.taken.insert(path.to_owned());
        let Some(to) = self.to.as_ref().filter(|_| is_new) else { return Ok(()) };
        let (parent, name) = (path.parent(), path.file_name().unwrap_or_default());
        let parent = parent.and_then(|parent| parent.strip_prefix("/").ok());
        let parent = parent.filter(|parent| !parent.as_os_str().is_empty());
        let made = open::beneath(to, parent.unwrap_or(Path::new(".")), Purpose::Pass)
            .map_err(io::Error::from)
            .and_then(|parent| make(&parent, name));
        match made.as_ref().map_err(|error| error.raw_os_error().map(Errno::from_raw)) {
            Err(Some(
                Errno::ELOOP | Errno::ENOTDIR | Errno::ENOENT | Errno::EEXIST | Errno::ENOTEMPTY,
            )) => {
                self.image.taken.remove(path);
                self.leave_out(path, LeftOut::Dangling)
            }
            _ => made,
        }
    }

    fn leave_out(&mut self, path: &Path, why: LeftOut) -> io::Result<()> {
        self.image.left_out.push((path.to_owned(), why));
        Ok(())
    }
}

/// Reads what was a file a moment ago; `None` if it is too large, or no file any more. It waits for
/// no one, whatever has come there.
fn read(directory: &OwnedFd, name: &OsStr, mounts: Mounts) -> io::Result<Option<Vec<u8>>> {
    let file = File::from(open::entry(directory, name, Purpose::Read, mounts)?);
    let stat = fstat(&file)?;
    let is_file = kind(&stat) == libc::S_IFREG && may_all(&stat, 0o004);
    if !is_file || u64::try_from(stat.st_size).is_ok_and(|size| size > LONGEST_FILE) {
        return Ok(None);
    }
    let mut content = Vec::new();
    file.take(LONGEST_FILE + 1).read_to_end(&mut content)?;
    Ok((content.len() as u64 <= LONGEST_FILE).then_some(content))
}

/// What a file says that anyone may read, wherever links lead to it; `None` if there is none.
pub(crate) fn public_content(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let host = Host { root: nix::fcntl::open("/", Purpose::Pass.flags(), Mode::empty())? };
    // It is where the host itself looks, whoever has that.
    let Some(end) = host.resolve(path, |_| Mounts::Entered)? else { return Ok(None) };
    let Some(name) = end.path.file_name() else { return Ok(None) };
    match read(&end.parent, name, Mounts::Entered) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        content => content,
    }
}

#[cfg(test)]
mod tests {
    use std::fs::{self, Permissions};
    use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
    use std::os::unix::net::UnixListener;

    use super::*;

    /// Where something of a host with this root is.
    fn below(host: &Path, path: &Path) -> PathBuf {
        host.join(path.strip_prefix("/").unwrap_or(path))
    }

    /// A root of a host, until this is dropped.
    struct Host(PathBuf);

    impl Host {
        fn new(name: &str) -> Self {
            let root = std::env::temp_dir().join(format!("adl-{name}-{}", std::process::id()));
            fs::create_dir_all(root.join("etc")).unwrap();
            Self(root)
        }

        /// Makes a file, with all above it.
        fn file(&self, path: &str, content: &str) -> PathBuf {
            let place = below(&self.0, Path::new(path));
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            fs::write(&place, content).unwrap();
            self.mode(path, 0o644);
            place
        }

        fn mode(&self, path: &str, mode: u32) {
            fs::set_permissions(below(&self.0, Path::new(path)), Permissions::from_mode(mode))
                .unwrap();
        }

        fn link(&self, path: &str, text: &str) {
            let place = below(&self.0, Path::new(path));
            fs::create_dir_all(place.parent().unwrap()).unwrap();
            symlink(text, place).unwrap();
        }

        /// Copies what the rule takes; what is in the copy, and what was left out.
        fn take(&self, links: &[&str]) -> (PathBuf, Vec<(String, LeftOut)>) {
            let to = self.0.join("copy");
            fs::create_dir_all(to.join("etc/fonts")).unwrap();
            fs::create_dir_all(to.join("var/lib")).unwrap();
            let links: Vec<PathBuf> = links.iter().map(PathBuf::from).collect();
            let image = take(&self.0, &links, Some(&to)).unwrap();
            for path in &image.taken {
                assert!(fs::symlink_metadata(below(&to, path)).is_ok(), "{path:?}");
            }
            assert_eq!(image, take(&self.0, &links, None).unwrap());
            let text = |path: PathBuf| path.to_str().unwrap().to_owned();
            (to, image.left_out.into_iter().map(|(path, why)| (text(path), why)).collect())
        }
    }

    impl Drop for Host {
        fn drop(&mut self) {
            fs::remove_dir_all(&self.0).unwrap();
        }
    }

    #[test]
    fn what_links_lead_to_is_there() {
        let host = Host::new("links");
        // As in Fedora.
        host.file("/etc/pki/ca-trust/extracted/pem/tls.pem", "certificates");
        host.link("/etc/pki/tls/certs/ca-bundle.crt", "/etc/pki/ca-trust/extracted/pem/tls.pem");
        host.link("/etc/ssl/certs", "../pki/tls/certs");
        host.file("/etc/pki/fonts/one", "font");
        host.link("/etc/fonts", "pki/fonts");
        // As in Debian.
        host.file("/etc/java-17/security/java.security", "x");
        host.link("/etc/alternatives/java", "/usr/lib/jvm/bin/java");
        host.file("/etc/other/deep/file", "linked");
        host.file("/etc/other/not", "not");
        // As in openSUSE.
        host.file("/var/lib/ca-certificates/openssl/1.pem", "one");
        host.link("/etc/pki/tls/more", "/var/lib/ca-certificates/openssl");
        host.file("/etc/profile.d/run.sh", "");
        host.mode("/etc/profile.d/run.sh", 0o755);
        let (to, left_out) = host.take(&["/etc/other/deep"]);
        assert_eq!(left_out, []);
        // Its absolute links lead nowhere from here.
        let link = |path: &str| fs::read_link(to.join(path)).unwrap();
        assert_eq!(link("etc/ssl/certs"), Path::new("../pki/tls/certs"));
        let text = "/etc/pki/ca-trust/extracted/pem/tls.pem";
        assert_eq!(link("etc/ssl/certs/ca-bundle.crt"), Path::new(text));
        assert_eq!(fs::read(below(&to, Path::new(text))).unwrap(), b"certificates");
        assert_eq!(link("etc/fonts"), Path::new("pki/fonts"));
        assert_eq!(link("etc/alternatives/java"), Path::new("/usr/lib/jvm/bin/java"));
        assert_eq!(fs::read(to.join("var/lib/ca-certificates/openssl/1.pem")).unwrap(), b"one");
        assert_eq!(fs::read(to.join("etc/java-17/security/java.security")).unwrap(), b"x");
        assert_eq!(fs::read(to.join("etc/other/deep/file")).unwrap(), b"linked");
        assert!(!to.join("etc/other/not").exists());
        let mode = |path: &str| fs::metadata(to.join(path)).unwrap().mode() & 0o7777;
        assert_eq!((mode("etc/profile.d/run.sh"), mode("etc/other/deep/file")), (0o755, 0o644));
    }

    #[test]
    fn no_secret_is_there_and_nothing_holds_it_up() {
        const KEY: &str = "-----BEGIN PRIVATE KEY-----\nMII\n-----END PRIVATE KEY-----\n";
        let host = Host::new("secrets");
        host.file("/etc/ssl/certs/site.pem", KEY);
        host.file("/etc/ssl/certs/public.pem", "-----BEGIN CERTIFICATE-----");
        host.file("/etc/ssl/certs/site.key", "DER");
        host.file("/etc/ssl/private/key.pem", "x");
        host.file("/etc/profile.d/proxy.sh", "export http_proxy=http://me:word@proxy:3128");
        host.file("/etc/profile.d/token.sh", "export CI_TOKEN=abc");
        host.file("/etc/maven/settings.xml", "<settings><password>x</password></settings>");
        host.file("/etc/skel/closed", "x");
        host.mode("/etc/skel/closed", 0o640);
        host.file("/etc/fonts/shut/file", "x");
        host.mode("/etc/fonts/shut", 0o750);
        host.file("/etc/shadow", "root:x");
        host.file("/etc/machine-id", "x");
        host.file("/etc/environment", "x");
        host.file("/home/me/secret", "x");
        host.file("/root/secret", "x");
        host.link("/etc/vim/home", "/home/me/secret");
        host.link("/etc/vim/root", "../../root/secret");
        host.link("/etc/vim/shadow", "/etc/shadow");
        host.link("/etc/vim/nowhere", "nowhere");
        host.link("/etc/vim/self", "self");
        host.link("/etc/vim/up", "/etc/vim");
        host.link("/etc/vim/through", "/etc/fonts/shut/file");
        nix::unistd::mkfifo(
            &below(&host.0, Path::new("/etc/vim/fifo")),
            nix::sys::stat::Mode::S_IRWXU,
        )
        .unwrap();
        host.mode("/etc/vim/fifo", 0o666);
        let _socket = UnixListener::bind(below(&host.0, Path::new("/etc/vim/s"))).unwrap();
        let (to, left_out) =
            host.take(&["/etc/shadow", "/etc/machine-id", "/etc/environment", "/etc/ssl/private"]);
        let expected = [
            ("/etc/environment", LeftOut::Name),
            ("/etc/fonts/shut", LeftOut::NotPublic),
            ("/etc/machine-id", LeftOut::Name),
            ("/etc/maven/settings.xml", LeftOut::Secret("a password")),
            ("/etc/profile.d/proxy.sh", LeftOut::Secret("a password in an address")),
            ("/etc/profile.d/token.sh", LeftOut::Secret("a password or token")),
            ("/etc/shadow", LeftOut::Name),
            ("/etc/skel/closed", LeftOut::NotPublic),
            ("/etc/ssl/certs/site.key", LeftOut::Name),
            ("/etc/ssl/certs/site.pem", LeftOut::Secret("a private key")),
            ("/etc/ssl/private", LeftOut::Name),
            ("/etc/vim/fifo", LeftOut::Special),
            ("/etc/vim/home", LeftOut::Dangling),
            ("/etc/vim/nowhere", LeftOut::Dangling),
            ("/etc/vim/root", LeftOut::Dangling),
            ("/etc/vim/s", LeftOut::Special),
            ("/etc/vim/self", LeftOut::Dangling),
            ("/etc/vim/shadow", LeftOut::Name),
            ("/etc/vim/through", LeftOut::Dangling),
        ];
        assert_eq!(left_out, expected.map(|(path, why)| (path.to_owned(), why)));
        for (path, _) in expected {
            assert!(fs::symlink_metadata(below(&to, Path::new(path))).is_err(), "{path}");
        }
        // The control.
        assert!(to.join("etc/ssl/certs/public.pem").exists());
        assert_eq!(fs::read_link(to.join("etc/vim/up")).unwrap(), Path::new("/etc/vim"));
    }

    #[test]
    fn what_is_too_large_or_too_deep_is_left_out() {
        let host = Host::new("large");
        host.file("/etc/vim/small", "x");
        let large = File::create(host.file("/etc/vim/large", "")).unwrap();
        large.set_len(LONGEST_FILE + 1).unwrap();
        let deep = ["d"; DEEPEST + 3].join("/");
        host.file(&format!("/etc/xml/{deep}/file"), "x");
        let (to, left_out) = host.take(&[]);
        assert!(to.join("etc/vim/small").exists() && !to.join("etc/vim/large").exists());
        let [large, deep] = &left_out[..] else { panic!("{left_out:?}") };
        assert_eq!((large.0.as_str(), large.1), ("/etc/vim/large", LeftOut::TooLarge));
        assert!(deep.0.starts_with("/etc/xml/d/d") && deep.1 == LeftOut::TooLarge, "{deep:?}");
    }

    #[test]
    fn nothing_is_written_through_a_link() {
        let host = Host::new("through");
        let outside = host.0.join("outside");
        fs::create_dir(&outside).unwrap();
        host.file("/etc/vim/file", "content");
        host.file("/etc/xml/deep/file", "content");
        let to = host.0.join("copy");
        // As where what was a link when it was copied has become a directory.
        for link in ["etc/vim", "etc/xml/deep"] {
            fs::create_dir_all(to.join(link).parent().unwrap()).unwrap();
            symlink(&outside, to.join(link)).unwrap();
        }
        let image = take(&host.0, &[], Some(&to)).unwrap();
        assert_eq!(fs::read_dir(&outside).unwrap().count(), 0);
        let left_out: Vec<_> = image.left_out.iter().map(|(path, _)| path.as_path()).collect();
        assert!(left_out.contains(&Path::new("/etc/vim")), "{left_out:?}");
        assert!(!image.taken.contains(Path::new("/etc/vim")), "{:?}", image.taken);
    }

    #[test]
    fn what_is_exchanged_meanwhile_leads_to_nothing_that_is_not_public() {
        use std::sync::atomic::{AtomicBool, Ordering};

        let host = Host::new("exchanged");
        host.file("/etc/linked/here/file", "public");
        host.file("/etc/closed/file", "secret");
        host.mode("/etc/closed", 0o700);
        host.link("/etc/linked/other", "../closed");
        let [here, other] =
            ["here", "other"].map(|name| below(&host.0, Path::new("/etc/linked")).join(name));
        let is_over = AtomicBool::new(false);
        let copy = |number: usize| {
            let to = host.0.join(format!("copy{number}"));
            fs::create_dir_all(to.join("etc")).unwrap();
            take(&host.0, &["/etc/linked/here/file".into()], Some(&to)).unwrap();
            let found = fs::read(to.join("etc/linked/here/file")).ok();
            fs::remove_dir_all(to).unwrap();
            found
        };
        // The control.
        assert_eq!(copy(0).unwrap(), b"public");
        let exchange = || {
            let flags = nix::fcntl::RenameFlags::RENAME_EXCHANGE;
            let at = nix::fcntl::AT_FDCWD;
            nix::fcntl::renameat2(at, &here, at, &other, flags).unwrap();
        };
        std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    exchange();
                }
            });
            let found: BTreeSet<_> = (1..300).filter_map(copy).collect();
            is_over.store(true, Ordering::Relaxed);
            assert!(!found.contains(b"secret".as_slice()), "{found:?}");
        });
    }
}
