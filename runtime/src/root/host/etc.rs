//! The host's `/etc` as the image has it: what the rule takes, copied.
//!
//! A link is copied as a link, and what it leads to is taken, too, if that is in a tree that files
//! are taken from; what is in `/usr` is there as it is. Links are followed here, one by one, as far
//! as those trees: the host's administrator has made them.

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::fmt;
use std::fs::{self, DirBuilder, File, Metadata, Permissions};
use std::io::{self, Read};
use std::os::unix::fs::{DirBuilderExt, MetadataExt, OpenOptionsExt, PermissionsExt, symlink};
use std::path::{Component, Path, PathBuf};

use crate::root::host::rule::{self, is_never, secret_in};

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
        }
    }
}

/// Takes what the rule says of a host whose root is `host`; `links` are what its `/usr` links to.
/// Copies it to `to`, if that is given, where `/etc` is there already.
pub(super) fn take(host: &Path, links: &[PathBuf], to: Option<&Path>) -> io::Result<HostImage> {
    let mut taker =
        Taker { host, to, image: HostImage::default(), seen: BTreeSet::new(), bytes: 0 };
    for path in seeds(host)?.iter().chain(links) {
        taker.take(path, 0)?;
    }
    taker.image.left_out.sort_by(|one, other| one.0.cmp(&other.0));
    taker.image.left_out.dedup();
    Ok(taker.image)
}

/// What the list of names comes to on this host.
fn seeds(host: &Path) -> io::Result<Vec<PathBuf>> {
    let etc = Path::new("/etc");
    let mut there: Vec<OsString> = Vec::new();
    for entry in fs::read_dir(below(host, etc))? {
        there.push(entry?.file_name());
    }
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

/// Where something of a host with this root is.
fn below(host: &Path, path: &Path) -> PathBuf {
    host.join(path.strip_prefix("/").unwrap_or(path))
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

fn may_all(metadata: &Metadata, bits: u32) -> bool {
    metadata.mode() & bits == bits
}

struct Taker<'a> {
    host: &'a Path,
    to: Option<&'a Path>,
    image: HostImage,
    /// What was asked for. Links may lead in a circle.
    seen: BTreeSet<PathBuf>,
    bytes: u64,
}

impl Taker<'_> {
    /// Takes what a path below a tree leads to, with what is in it.
    fn take(&mut self, path: &Path, depth: usize) -> io::Result<()> {
        if !self.seen.insert(path.to_owned()) {
            return Ok(());
        }
        if depth > DEEPEST {
            return self.leave_out(path, LeftOut::TooLarge);
        }
        let mut at = PathBuf::from("/");
        let mut names = path.components();
        names.next();
        while let Some(name) = names.next() {
            let parent = at;
            at = parent.join(name);
            if is_never(&at) {
                return self.leave_out(&at, LeftOut::Name);
            }
            let Some(metadata) = self.look(&at)? else { return Ok(()) };
            if metadata.is_symlink() {
                return self.take_link(&parent, &at, names.as_path(), depth);
            }
            let is_last = names.as_path().as_os_str().is_empty();
            match () {
                () if metadata.is_dir() && !may_all(&metadata, 0o005) => {
                    return self.leave_out(&at, LeftOut::NotPublic);
                }
                () if metadata.is_dir() => self.make_directory(&at)?,
                () if !is_last => return Ok(()),
                () if metadata.is_file() => return self.take_file(&at, &metadata),
                () => return self.leave_out(&at, LeftOut::Special),
            }
        }
        for name in self.names_in(&at)? {
            self.take(&at.join(name), depth + 1)?;
        }
        Ok(())
    }

    /// Takes a link, and what `rest` is below what it leads to.
    fn take_link(
        &mut self,
        parent: &Path,
        link: &Path,
        rest: &Path,
        depth: usize,
    ) -> io::Result<()> {
        let text = fs::read_link(below(self.host, link))?;
        let next = target(parent, &text);
        if is_program(&next) {
            return self.make_link(link, &text);
        }
        // Further links on the way may lead on, to where files are taken from or not.
        let Some(end) = self.resolve(link)? else { return self.leave_out(link, LeftOut::Dangling) };
        if is_taken_from(&next) {
            self.make_link(link, &text)?;
            return self.take(&next.join(rest), depth + 1);
        }
        if is_taken_from(&end) {
            self.make_link(link, &end)?;
            return self.take(&end.join(rest), depth + 1);
        }
        match is_program(&end) {
            true => self.make_link(link, &end),
            false => self.leave_out(link, LeftOut::Dangling),
        }
    }

    /// Where a path leads, through directories that all may enter; `None` if to nothing.
    fn resolve(&self, path: &Path) -> io::Result<Option<PathBuf>> {
        let mut at = PathBuf::from("/");
        let mut links = 0;
        let parts = |path: &Path| -> Vec<OsString> {
            path.components().rev().map(|part| part.as_os_str().to_owned()).collect()
        };
        let mut left = parts(path);
        while let Some(part) = left.pop() {
            match part.as_encoded_bytes() {
                b"/" => at = PathBuf::from("/"),
                b"." => {}
                b".." => _ = at.pop(),
                _ => {
                    let next = at.join(&part);
                    let Some(metadata) = self.look(&next)? else { return Ok(None) };
                    if metadata.is_symlink() {
                        links += 1;
                        left.extend(parts(&fs::read_link(below(self.host, &next))?));
                    } else if metadata.is_dir() && !may_all(&metadata, 0o001) {
                        return Ok(None);
                    } else {
                        at = next;
                    }
                    if links > MOST_LINKS {
                        return Ok(None);
                    }
                }
            }
        }
        Ok(Some(at))
    }

    fn take_file(&mut self, path: &Path, metadata: &Metadata) -> io::Result<()> {
        if !may_all(metadata, 0o004) {
            return self.leave_out(path, LeftOut::NotPublic);
        }
        let content = match read(&below(self.host, path)) {
            Ok(Some(content)) => content,
            Ok(None) => return self.leave_out(path, LeftOut::TooLarge),
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
            // What a security module keeps from everyone.
            Err(error) if error.kind() == io::ErrorKind::PermissionDenied => {
                return self.leave_out(path, LeftOut::NotPublic);
            }
            Err(error) => return Err(error),
        };
        if let Some(what) = secret_in(&content) {
            return self.leave_out(path, LeftOut::Secret(what));
        }
        self.bytes += content.len() as u64;
        if self.bytes > MOST_BYTES {
            return self.leave_out(path, LeftOut::TooLarge);
        }
        let is_new = self.is_new(path);
        let Some(to) = self.to.filter(|_| is_new) else { return Ok(()) };
        let mode = if metadata.mode() & 0o111 == 0 { 0o644 } else { 0o755 };
        let place = below(to, path);
        fs::write(&place, content)?;
        fs::set_permissions(&place, Permissions::from_mode(mode))
    }

    fn make_directory(&mut self, path: &Path) -> io::Result<()> {
        let is_new = self.is_new(path);
        let Some(to) = self.to.filter(|_| is_new) else { return Ok(()) };
        let place = below(to, path);
        match DirBuilder::new().mode(0o755).create(&place) {
            // The image has it whatever the host has.
            Err(error) if error.kind() == io::ErrorKind::AlreadyExists => return Ok(()),
            made => made?,
        }
        // Whatever the caller's umask.
        fs::set_permissions(&place, Permissions::from_mode(0o755))
    }

    fn make_link(&mut self, path: &Path, text: &Path) -> io::Result<()> {
        let is_new = self.is_new(path);
        let Some(to) = self.to.filter(|_| is_new) else { return Ok(()) };
        let place = below(to, path);
        // An empty directory that each image has.
        match fs::remove_dir(&place) {
            Err(error) if error.kind() != io::ErrorKind::NotFound => Err(error),
            _ => symlink(text, place),
        }
    }

    /// Whether something is to be made: it was not yet, and there is room.
    fn is_new(&mut self, path: &Path) -> bool {
        if self.image.taken.len() >= MOST_ENTRIES {
            self.image.left_out.push((path.to_owned(), LeftOut::TooLarge));
            return false;
        }
        self.image.taken.insert(path.to_owned())
    }

    fn leave_out(&mut self, path: &Path, why: LeftOut) -> io::Result<()> {
        self.image.left_out.push((path.to_owned(), why));
        Ok(())
    }

    /// What is at a path whose parent is no link; `None` if nothing is.
    fn look(&self, path: &Path) -> io::Result<Option<Metadata>> {
        match fs::symlink_metadata(below(self.host, path)) {
            Ok(metadata) => Ok(Some(metadata)),
            Err(error) => match error.kind() {
                io::ErrorKind::NotFound
                | io::ErrorKind::NotADirectory
                | io::ErrorKind::PermissionDenied => Ok(None),
                _ => Err(error),
            },
        }
    }

    fn names_in(&self, directory: &Path) -> io::Result<Vec<OsString>> {
        let entries = match fs::read_dir(below(self.host, directory)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(Vec::new()),
            entries => entries?,
        };
        let mut names =
            entries.map(|entry| Ok(entry?.file_name())).collect::<io::Result<Vec<_>>>()?;
        names.sort();
        Ok(names)
    }
}

/// Reads what was a file a moment ago; `None` if it is too large, or no file any more. It waits for
/// no one, whatever has come there.
fn read(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let flags = libc::O_NOFOLLOW | libc::O_NONBLOCK;
    let file = File::options().read(true).custom_flags(flags).open(path)?;
    let metadata = file.metadata()?;
    if !metadata.is_file() || !may_all(&metadata, 0o004) || metadata.len() > LONGEST_FILE {
        return Ok(None);
    }
    let mut content = Vec::new();
    file.take(LONGEST_FILE + 1).read_to_end(&mut content)?;
    Ok((content.len() as u64 <= LONGEST_FILE).then_some(content))
}

/// What a file says that anyone may read, wherever links lead to it; `None` if there is none.
pub(crate) fn public_content(path: &Path) -> io::Result<Option<Vec<u8>>> {
    let Ok(path) = fs::canonicalize(path) else { return Ok(None) };
    let is_public = path
        .ancestors()
        .skip(1)
        .all(|above| fs::symlink_metadata(above).is_ok_and(|metadata| may_all(&metadata, 0o001)));
    match read(&path) {
        Ok(content) => Ok(content.filter(|_| is_public)),
        Err(_) if !is_public => Ok(None),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(error) => Err(error),
    }
}

#[cfg(test)]
mod tests {
    use std::os::unix::net::UnixListener;

    use super::*;

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
}
