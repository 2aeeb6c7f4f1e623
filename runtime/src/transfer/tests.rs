//! What a copy keeps, and what a hostile stream can't do.

use std::fs::{self, File, Permissions};
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileExt, MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, AtomicU32, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use adl_protocol::{Attributes, Chunk, Entry, FileKind, Strings, Time, codec};
use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::sys::stat::{Mode, mkdirat};

use super::{CopyOptions, CopyReport, Incoming, MAX_DEPTH, Outgoing, receive, send};
use crate::error::{Error, Result};
use crate::sys::open::Location;
use crate::wait::Deadline;

pub(super) const OPTIONS: CopyOptions =
    CopyOptions { owners: false, set_ids: false, extended: true, limit: 1 << 30, entries: 200_000 };

/// A directory that is gone in the end, however deep.
pub(super) struct Scratch(pub(super) PathBuf);

impl Scratch {
    pub(super) fn new() -> Self {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let path = std::env::temp_dir().join(format!("adl-tree-{}-{next}", std::process::id()));
        fs::create_dir(&path).unwrap();
        Self(path)
    }

    pub(super) fn path(&self, name: &str) -> PathBuf {
        self.0.join(name)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        crate::store::contents::remove_contents(File::open(&self.0).unwrap().as_fd()).unwrap();
        fs::remove_dir(&self.0).unwrap();
    }
}

/// The place that a path of the test's own leads to.
pub(super) fn at(path: impl AsRef<Path>) -> Location {
    Location::followed(path.as_ref().to_owned())
}

pub(super) fn soon() -> Deadline {
    Deadline::after(Duration::from_secs(60))
}

pub(super) fn pipe() -> (OwnedFd, OwnedFd) {
    nix::unistd::pipe2(OFlag::O_CLOEXEC).unwrap()
}

/// Runs both ends.
pub(super) fn through<T: Send>(
    send: impl FnOnce(&mut Outgoing) -> Result<()> + Send,
    receive: impl FnOnce(&mut Incoming) -> T,
) -> (Result<()>, T) {
    let (read, write) = pipe();
    std::thread::scope(|scope| {
        let sender = scope.spawn(move || {
            let mut outgoing = Outgoing::new(write, soon())?;
            send(&mut outgoing)
        });
        let mut incoming = Incoming::new(read, soon()).unwrap();
        let received = receive(&mut incoming);
        drop(incoming);
        (sender.join().unwrap(), received)
    })
}

fn copy_with(source: &Path, target: &Path, options: &CopyOptions) -> [CopyReport; 2] {
    let mut reports = [CopyReport::default(), CopyReport::default()];
    let [sent, received] = &mut reports;
    let (one, other) = through(
        |to| send(&at(source), to, options, sent),
        |from| {
            receive(from, &at(target), options, received)?;
            assert!(from.is_at_end()?, "more than the tree");
            Ok::<_, Error>(())
        },
    );
    other.unwrap();
    one.unwrap();
    reports
}

fn copy(source: &Path, target: &Path) -> [CopyReport; 2] {
    copy_with(source, target, &OPTIONS)
}

/// What a directory holds, as a user would see it.
pub(super) fn look(top: &Path) -> Vec<String> {
    let format = "%P %y %m %T@ %s %n %l\\0";
    let output = Command::new("find").arg(top).args(["-printf", format]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let mut lines: Vec<_> = output
        .stdout
        .split(|byte| *byte == 0)
        .map(|line| {
            let line = line.escape_ascii().to_string();
            // The size of a directory depends on what it held once.
            let mut words: Vec<_> = line.split(' ').collect();
            if let Some(place) = words.iter().position(|word| *word == "d") {
                words.truncate(place + 3);
            }
            words.join(" ")
        })
        .collect();
    lines.sort();
    lines
}

pub(super) fn assert_same_content(one: &Path, other: &Path) {
    let output =
        Command::new("diff").args(["-r", "--no-dereference"]).args([one, other]).output().unwrap();
    assert!(output.status.success(), "{output:?}");
}

fn set_time(path: &Path, seconds: i64, nanoseconds: i64) {
    use nix::sys::stat::{UtimensatFlags, utimensat};
    let time = nix::sys::time::TimeSpec::new(seconds, nanoseconds);
    let flags = UtimensatFlags::NoFollowSymlink;
    utimensat(nix::fcntl::AT_FDCWD, path, &time, &time, flags).unwrap();
}

/// A tree with something of everything.
pub(super) fn everything(top: &Path) {
    fs::create_dir_all(top.join("directory/deeper")).unwrap();
    fs::create_dir(top.join("empty")).unwrap();
    fs::write(top.join("directory/file"), "content").unwrap();
    fs::write(top.join("directory/empty"), "").unwrap();
    let large: Vec<u8> = (0..3_000_001_u32).map(|number| (number % 251) as u8).collect();
    fs::write(top.join("directory/deeper/large"), &large).unwrap();
    fs::write(top.join(std::ffi::OsStr::from_bytes(b"not\xffutf8")), "1").unwrap();
    fs::write(top.join("new\nline"), "2").unwrap();
    fs::write(top.join("n".repeat(255)), "3").unwrap();
    fs::hard_link(top.join("directory/file"), top.join("directory/deeper/again")).unwrap();
    fs::hard_link(top.join("directory/file"), top.join("z")).unwrap();
    symlink("directory/file", top.join("link")).unwrap();
    symlink("/nowhere/at/all", top.join("dangling")).unwrap();
    symlink("..", top.join("directory/up")).unwrap();
    let sparse = File::create(top.join("sparse")).unwrap();
    sparse.write_at(b"begin", 0).unwrap();
    sparse.write_at(b"middle", 50 << 20).unwrap();
    sparse.set_len(100 << 20).unwrap();
    fs::create_dir(top.join("readonly")).unwrap();
    fs::write(top.join("readonly/inside"), "4").unwrap();
    fs::set_permissions(top.join("readonly/inside"), Permissions::from_mode(0o400)).unwrap();
    fs::set_permissions(top.join("directory/file"), Permissions::from_mode(0o751)).unwrap();
    fs::set_permissions(top.join("empty"), Permissions::from_mode(0o1777)).unwrap();
    set_time(&top.join("directory/file"), 1_234_567_890, 123_456_789);
    set_time(&top.join("link"), 1_000_000_000, 1);
    set_time(&top.join("new\nline"), -5, 500_000_000);
    fs::set_permissions(top.join("readonly"), Permissions::from_mode(0o555)).unwrap();
    set_time(&top.join("readonly"), 86400, 0);
    set_time(&top.join("directory"), 86401, 7);
    set_time(top, 86402, 0);
}

#[test]
fn a_tree_comes_out_as_it_went_in() {
    let scratch = Scratch::new();
    let (source, target) = (scratch.path("source"), scratch.path("target"));
    everything(&source);
    let [sent, received] = copy(&source, &target);
    assert_eq!(look(&target), look(&source));
    assert_same_content(&source, &target);
    let sparse = fs::metadata(target.join("sparse")).unwrap();
    assert!(sparse.blocks() * 512 < 1 << 20, "{} blocks", sparse.blocks());
    let ids = |name: &str| fs::metadata(target.join(name)).unwrap().ino();
    assert_eq!(ids("directory/file"), ids("directory/deeper/again"));
    assert_eq!(ids("directory/file"), ids("z"));
    for report in [&sent, &received] {
        assert_eq!(report.files, 8, "{report:?}");
        assert_eq!(report.directories, 5, "{report:?}");
        assert_eq!(report.symbolic_links, 3, "{report:?}");
        assert_eq!(report.hard_links, 2, "{report:?}");
        assert!(report.bytes >= 3_000_001 + 18 && report.bytes < 4_000_000, "{report:?}");
    }
    // And once more over it, read-only directories and all. They were there, and keep their modes.
    fs::set_permissions(&target, Permissions::from_mode(0o711)).unwrap();
    copy(&source, &target);
    assert_eq!(fs::metadata(&target).unwrap().mode() & 0o777, 0o711);
    let without_times = |tree: &Path| -> Vec<String> {
        let is_directory = |line: &str| line.split(' ').nth(1) == Some("d");
        let mut lines = look(tree).split_off(2);
        for line in lines.iter_mut().filter(|line| is_directory(line)) {
            line.truncate(line.rfind(' ').unwrap());
        }
        lines
    };
    assert_eq!(without_times(&target), without_times(&source));
    assert_same_content(&source, &target);
}

#[test]
fn the_top_may_be_a_file_and_is_followed_at_the_source_only() {
    let scratch = Scratch::new();
    fs::write(scratch.path("file"), "content").unwrap();
    symlink("file", scratch.path("link")).unwrap();
    copy(&scratch.path("link"), &scratch.path("copy"));
    assert!(fs::symlink_metadata(scratch.path("copy")).unwrap().is_file());
    assert_eq!(fs::read(scratch.path("copy")).unwrap(), b"content");

    fs::write(scratch.path("canary"), "alive").unwrap();
    symlink("canary", scratch.path("trap")).unwrap();
    let stream = Stream::default().file("", b"dead").end();
    let error = feed(&stream, &scratch.path("trap")).unwrap_err();
    assert!(is_errno(&error, Errno::ELOOP), "{error}");
    assert_eq!(fs::read(scratch.path("canary")).unwrap(), b"alive");
    fs::create_dir(scratch.path("directory")).unwrap();
    let error = feed(&stream, &scratch.path("directory")).unwrap_err();
    assert!(is_errno(&error, Errno::EISDIR), "{error}");
    feed(&stream, &scratch.path("canary")).unwrap();
    assert_eq!(fs::read(scratch.path("canary")).unwrap(), b"dead", "positive control");
}

#[test]
fn what_has_no_content_is_skipped_and_told() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    nix::unistd::mkfifo(&source.join("fifo"), Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
    fs::write(source.join("x"), "x").unwrap();
    let reports = copy(&source, &scratch.path("target"));
    for report in reports {
        let skipped: Vec<_> =
            report.skipped.iter().map(|one| (one.path.to_str().unwrap(), one.kind)).collect();
        assert_eq!(skipped, [("fifo", FileKind::Fifo), ("socket", FileKind::Socket)]);
    }
    let names: Vec<_> = fs::read_dir(scratch.path("target"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["x"]);
}

fn dig(top: &Path, name: &str, depth: usize) {
    fs::create_dir(top).unwrap();
    let mut here: OwnedFd = File::open(top).unwrap().into();
    for _ in 0..depth {
        mkdirat(&here, name, Mode::S_IRWXU).unwrap();
        here = crate::sys::open::beneath(&here, name, crate::sys::open::Purpose::List).unwrap();
    }
    let flags = OFlag::O_CREAT | OFlag::O_WRONLY;
    let file = openat(&here, "bottom", flags, Mode::S_IRWXU).unwrap();
    File::from(file).write_all(b"reached").unwrap();
}

fn descriptors() -> usize {
    fs::read_dir("/proc/self/fd").unwrap().count()
}

#[test]
fn depth_costs_neither_stack_nor_descriptors() {
    let scratch = Scratch::new();
    for (number, name) in ["d".to_owned(), "d".repeat(200)].iter().enumerate() {
        let source = scratch.path(&format!("source{number}"));
        let target = scratch.path(&format!("target{number}"));
        dig(&source, name, 2000);
        let most = AtomicUsize::new(0);
        let is_done = AtomicBool::new(false);
        let [sent, received] = std::thread::scope(|scope| {
            scope.spawn(|| {
                while !is_done.load(Ordering::Relaxed) {
                    most.fetch_max(descriptors(), Ordering::Relaxed);
                    std::thread::sleep(Duration::from_millis(1));
                }
            });
            let reports = copy(&source, &target);
            is_done.store(true, Ordering::Relaxed);
            reports
        });
        // Other tests have some open, too.
        let most = most.into_inner();
        assert!(most > 0 && most < 500, "{most} descriptors");
        assert_eq!((sent.directories, sent.files), (2001, 1));
        assert_eq!((received.directories, received.bytes), (2001, 7));
        assert_eq!(look(&target), look(&source));
    }
}

#[test]
fn twenty_thousand_files_in_one_directory() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    for number in 0..20_000 {
        fs::write(source.join(format!("file{number}")), number.to_string()).unwrap();
    }
    let [sent, received] = copy(&source, &scratch.path("target"));
    assert_eq!((sent.files, received.files), (20_000, 20_000));
    assert_same_content(&source, &scratch.path("target"));
}

#[test]
fn bits_that_give_rights_are_copied_only_where_asked_for() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("program"), "x").unwrap();
    fs::set_permissions(source.join("program"), Permissions::from_mode(0o6755)).unwrap();
    copy(&source, &scratch.path("without"));
    let options = CopyOptions { set_ids: true, ..OPTIONS };
    copy_with(&source, &scratch.path("with"), &options);
    let mode = |name| fs::metadata(scratch.path(name)).unwrap().mode() & 0o7777;
    assert_eq!(mode("without/program"), 0o755);
    assert_eq!(mode("with/program"), 0o6755);
    // Also of a job that sends them all the same.
    let stream = Stream::default().directory("").file_with("program", 0o6711, b"x").end().leave();
    feed(&stream, &scratch.path("hostile")).unwrap();
    assert_eq!(mode("hostile/program"), 0o711);
}

#[test]
fn a_file_that_shrinks_is_made_up_for_and_told() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), vec![1; 8 << 20]).unwrap();
    fs::write(source.join("next"), "next").unwrap();
    let mut sent = CopyReport::default();
    let (one, other) = through(
        |to| send(&at(&source), to, &OPTIONS, &mut sent),
        |from| {
            // By then, as much of it is on its way as the pipe holds.
            from.read(&mut [0; 4096])?;
            std::thread::sleep(Duration::from_millis(100));
            File::options().write(true).open(source.join("file")).unwrap().set_len(9).unwrap();
            while !from.is_at_end()? {
                from.skip(1)?;
            }
            Ok::<_, Error>(())
        },
    );
    other.unwrap();
    one.unwrap();
    assert_eq!(sent.cut_off, [Path::new("file")]);
    assert_eq!(sent.files, 2);

    let stream = Stream::default().directory("").entry(&file_entry("file", 0o644, 9));
    let stream = stream.data(b"123").chunk(Chunk::CutOff).leave();
    let report = feed(&stream, &scratch.path("target")).unwrap();
    assert_eq!(report.cut_off, [Path::new("file")]);
    assert_eq!(fs::read(scratch.path("target/file")).unwrap(), b"123");
}

#[test]
fn a_directory_that_is_moved_away_leads_nowhere() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.path("source/inner")).unwrap();
    fs::create_dir(scratch.path("elsewhere")).unwrap();
    fs::write(scratch.path("source/inner/large"), vec![1; 8 << 20]).unwrap();
    let source = scratch.path("source");
    let mut report = CopyReport::default();
    let (sent, _) = through(
        |to| send(&at(&source), to, &OPTIONS, &mut report),
        |from| {
            from.read(&mut [0; 4096]).unwrap();
            fs::rename(scratch.path("source/inner"), scratch.path("elsewhere/inner")).unwrap();
            while !from.is_at_end().unwrap() {
                from.skip(1).unwrap();
            }
        },
    );
    let error = sent.unwrap_err();
    assert!(is_errno(&error, Errno::ESTALE), "{error}");
}

#[test]
fn nothing_is_waited_for_without_an_end() {
    let scratch = Scratch::new();
    let brief = || Deadline::after(Duration::from_millis(50));
    let (read, write) = pipe();
    let mut incoming = Incoming::new(read, brief()).unwrap();
    let result =
        receive(&mut incoming, &at(scratch.path("x")), &OPTIONS, &mut CopyReport::default());
    assert!(matches!(result, Err(Error::TimedOut { .. })), "{result:?}");
    drop(write);

    let (_read, write) = pipe();
    fs::write(scratch.path("large"), vec![1; 8 << 20]).unwrap();
    let mut outgoing = Outgoing::new(write, brief()).unwrap();
    let result =
        send(&at(scratch.path("large")), &mut outgoing, &OPTIONS, &mut CopyReport::default());
    assert!(matches!(result, Err(Error::TimedOut { .. })), "{result:?}");
}

#[test]
fn a_pipe_that_is_closed_raises_no_signal() {
    use nix::sys::signal::{SigSet, Signal};
    let scratch = Scratch::new();
    fs::write(scratch.path("large"), vec![1; 1 << 20]).unwrap();
    // Blocked in this thread, one that was raised would stay.
    let mut set = SigSet::empty();
    set.add(Signal::SIGPIPE);
    set.thread_block().unwrap();
    let pending = || {
        let status = fs::read_to_string("/proc/thread-self/status").unwrap();
        let line = status.lines().find(|line| line.starts_with("SigPnd:")).unwrap();
        u64::from_str_radix(line.split_whitespace().nth(1).unwrap(), 16).unwrap()
    };
    for bytes in [b"x".as_slice(), &[1; 100_000]] {
        let (read, write) = pipe();
        let mut outgoing = Outgoing::new(write, soon()).unwrap();
        drop(read);
        let result = outgoing.bytes(bytes).and_then(|()| outgoing.flush());
        assert!(matches!(result, Err(Error::Protocol { .. })), "{result:?}");
        let file = File::open(scratch.path("large")).unwrap();
        let result = outgoing.move_from(file.as_fd(), 0, 1 << 20);
        assert!(matches!(result, Err(Error::Protocol { .. })), "{result:?}");
        assert_eq!(pending(), 0);
    }
    // Positive control, and one that was there before stays.
    let (read, write) = pipe();
    drop(read);
    assert_eq!(nix::unistd::write(&write, b"x"), Err(Errno::EPIPE));
    assert_ne!(pending(), 0);
    let _ = Outgoing::new(write, soon()).unwrap().bytes(&[1; 100_000]).unwrap_err();
    assert_ne!(pending(), 0);
}

// Streams byte by byte.

#[derive(Default, Clone)]
struct Stream(Vec<u8>);

fn name_of(name: &[u8]) -> Vec<u8> {
    [name, b"\0"].concat()
}

const ATTRIBUTES: Attributes =
    Attributes { mode: 0o755, uid: 0, gid: 0, modified: Time { seconds: 1, nanoseconds: 2 } };

fn file_entry(name: &str, mode: u32, size: u64) -> Entry<'static> {
    let name = Strings::new(name_of(name.as_bytes()).leak()).unwrap();
    Entry::File { name, attributes: Attributes { mode, ..ATTRIBUTES }, size }
}

impl Stream {
    fn entry(mut self, entry: &Entry<'_>) -> Self {
        codec::encode(entry, &mut self.0).unwrap();
        self
    }

    fn directory(self, name: impl AsRef<[u8]>) -> Self {
        let name = name_of(name.as_ref());
        let name = Strings::new(&name).unwrap();
        self.entry(&Entry::Directory { name, attributes: Some(ATTRIBUTES) })
    }

    fn leave(self) -> Self {
        self.entry(&Entry::Leave)
    }

    fn chunk(mut self, chunk: Chunk) -> Self {
        self.0.extend_from_slice(&chunk.encode());
        self
    }

    fn data(mut self, bytes: &[u8]) -> Self {
        self = self.chunk(Chunk::Data(bytes.len() as u64));
        self.0.extend_from_slice(bytes);
        self
    }

    fn file(self, name: &str, bytes: &[u8]) -> Self {
        self.file_with(name, 0o644, bytes)
    }

    fn file_with(self, name: &str, mode: u32, bytes: &[u8]) -> Self {
        self.entry(&file_entry(name, mode, bytes.len() as u64)).data(bytes)
    }

    fn end(self) -> Self {
        self.chunk(Chunk::End)
    }

    fn link(self, name: &str, target: &str) -> Self {
        let (name, target) = (name_of(name.as_bytes()), name_of(target.as_bytes()));
        let (name, target) = (Strings::new(&name).unwrap(), Strings::new(&target).unwrap());
        self.entry(&Entry::SymbolicLink { name, target, attributes: ATTRIBUTES })
    }

    fn hard_link(self, name: &str, target: &[&str]) -> Self {
        let name = name_of(name.as_bytes());
        let target: Vec<u8> = target.iter().flat_map(|name| name_of(name.as_bytes())).collect();
        let (name, target) = (Strings::new(&name).unwrap(), Strings::new(&target).unwrap());
        self.entry(&Entry::HardLink { name, target })
    }
}

fn feed_with(bytes: &[u8], target: &Path, options: &CopyOptions) -> Result<CopyReport> {
    let mut report = CopyReport::default();
    let (_, result) = through(
        // An error: it was refused before its end.
        |to| to.bytes(bytes).and_then(|()| to.flush()),
        |from| receive(from, &at(target), options, &mut report),
    );
    result.map(|()| report)
}

fn feed(stream: &Stream, target: &Path) -> Result<CopyReport> {
    feed_with(&stream.0, target, &OPTIONS)
}

fn is_errno(error: &Error, errno: Errno) -> bool {
    matches!(error, Error::Io { source, .. } if source.raw_os_error() == Some(errno as i32))
}

#[test]
fn names_that_lead_out_are_refused() {
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("canary")).unwrap();
    fs::create_dir(scratch.path("around")).unwrap();
    let before = look(&scratch.path("canary"));
    let long = "n".repeat(256);
    for name in ["..", ".", "", "a/b", "/", "../canary", "/tmp/adl-tree-escape", &long] {
        let top = Stream::default().directory("");
        for stream in [
            top.clone().directory(name).leave().leave(),
            top.clone().file(name, b"x").end().leave(),
            top.clone().link(name, "x").leave(),
            top.clone().file("f", b"x").end().hard_link(name, &["f"]).leave(),
        ] {
            let result = feed(&stream, &scratch.path("around/target"));
            assert!(matches!(result, Err(Error::Refused { .. })), "{name:?}: {result:?}");
        }
    }
    // Two names where one must be, and none.
    for bytes in [b"a\0b\0".as_slice(), b""] {
        let name = Strings::new(bytes).unwrap();
        let stream = Stream::default().directory("");
        let stream = stream.entry(&Entry::Directory { name, attributes: Some(ATTRIBUTES) });
        let result = feed(&stream, &scratch.path("around/target"));
        assert!(matches!(result, Err(Error::Protocol { .. })), "{result:?}");
    }
    let result = feed(&Stream::default().directory("named").leave(), &scratch.path("around/x"));
    assert!(matches!(result, Err(Error::Protocol { .. })), "{result:?}");
    assert_eq!(look(&scratch.path("canary")), before);
    let names: Vec<_> = fs::read_dir(scratch.path("around"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["target"]);
    let fine = Stream::default().directory("").directory("a").file("b", b"x").end().leave().leave();
    feed(&fine, &scratch.path("around/target")).unwrap();
    assert_eq!(fs::read(scratch.path("around/target/a/b")).unwrap(), b"x", "positive control");
}

#[test]
fn a_stream_ends_with_its_top() {
    let scratch = Scratch::new();
    for stream in [Stream::default().leave(), Stream::default().hard_link("", &["x"])] {
        let result = feed(&stream, &scratch.path("target"));
        assert!(matches!(result, Err(Error::Protocol { .. })), "{result:?}");
    }
    let more = Stream::default().directory("").leave().leave().directory("x");
    let (_, (result, is_at_end)) = through(
        |to| to.bytes(&more.0).and_then(|()| to.flush()),
        |from| {
            let mut report = CopyReport::default();
            let result = receive(from, &at(scratch.path("target")), &OPTIONS, &mut report);
            (result, from.is_at_end())
        },
    );
    result.unwrap();
    assert!(!is_at_end.unwrap());
}

#[test]
fn links_of_an_earlier_copy_are_not_followed() {
    let scratch = Scratch::new();
    let (canary, target) = (scratch.path("canary"), scratch.path("target"));
    fs::create_dir(&canary).unwrap();
    fs::write(canary.join("file"), "alive").unwrap();
    let before = look(&canary);
    let trap = Stream::default()
        .directory("")
        .link("directory", canary.to_str().unwrap())
        .link("file", canary.join("file").to_str().unwrap())
        .leave();
    feed(&trap, &target).unwrap();

    let through = Stream::default().directory("").directory("directory").file("file", b"dead");
    let error = feed(&through.end().leave().leave(), &target).unwrap_err();
    assert!(is_errno(&error, Errno::ENOTDIR) || is_errno(&error, Errno::ELOOP), "{error}");
    let over = Stream::default().directory("").file("file", b"new").end().leave();
    feed(&over, &target).unwrap();
    assert_eq!(fs::read(target.join("file")).unwrap(), b"new");
    assert!(fs::symlink_metadata(target.join("file")).unwrap().is_file());

    // In one stream, too.
    let both = Stream::default()
        .directory("")
        .link("d", canary.to_str().unwrap())
        .directory("d")
        .file("file", b"dead")
        .end()
        .leave()
        .leave();
    assert!(feed(&both, &target).is_err());
    // And a target that has become one.
    symlink(&canary, scratch.path("trap")).unwrap();
    let error = feed(&over, &scratch.path("trap")).unwrap_err();
    assert!(is_errno(&error, Errno::ENOTDIR) || is_errno(&error, Errno::ELOOP), "{error}");
    assert_eq!(look(&canary), before);
    assert_eq!(fs::read(canary.join("file")).unwrap(), b"alive");
}

#[test]
fn hard_links_are_of_this_copy_only() {
    let scratch = Scratch::new();
    let (canary, target) = (scratch.path("canary"), scratch.path("target"));
    fs::create_dir_all(&target).unwrap();
    fs::write(&canary, "alive").unwrap();
    fs::write(target.join("old"), "old").unwrap();
    let top = || {
        let stream = Stream::default().directory("").link("out", "..").link("link", "../canary");
        stream.directory("d").file("file", b"x").end().leave()
    };
    for names in [
        ["..", "canary"].as_slice(),
        &["d", "..", "..", "canary"],
        &["..", "target", "d", "file"],
        &["out", "canary"],
        &["link"],
        &["old"],
        &["d"],
        &["../canary"],
        &["missing"],
        &[],
    ] {
        let result = feed(&top().hard_link("new", names).leave(), &target);
        assert!(result.is_err(), "{names:?}");
        assert!(!target.join("new").exists(), "{names:?}");
    }
    assert_eq!(fs::metadata(&canary).unwrap().nlink(), 1);
    feed(&top().hard_link("new", &["d", "file"]).leave(), &target).unwrap();
    assert_eq!(fs::metadata(target.join("new")).unwrap().nlink(), 2, "positive control");
    // To itself.
    let itself = top().hard_link("new", &["d", "file"]).hard_link("new", &["d", "file"]);
    feed(&itself.leave(), &target).unwrap();
    assert_eq!(fs::read(target.join("new")).unwrap(), b"x");
}

#[test]
fn lengths_that_can_not_be_true_are_refused() {
    let scratch = Scratch::new();
    for length in [0, 5 << 20, u32::MAX] {
        let result = feed_with(&length.to_le_bytes(), &scratch.path("target"), &OPTIONS);
        assert!(matches!(result, Err(Error::Protocol { .. })), "{length}: {result:?}");
    }
    let file = || Stream::default().directory("").entry(&file_entry("file", 0o644, u64::MAX));
    for header in [u64::MAX, (2 << 20) << 2 | 1, 1, 2, 4] {
        let mut stream = file();
        stream.0.extend_from_slice(&header.to_le_bytes());
        let result = feed(&stream, &scratch.path("target"));
        assert!(result.is_err(), "{header:x}");
        assert!(!scratch.path("target/file").exists());
    }
    let most = (1 << 62) - 1;
    let holes = [most; 3].into_iter().fold(file(), |file, length| file.chunk(Chunk::Hole(length)));
    let error = feed(&holes.end().leave(), &scratch.path("target")).unwrap_err();
    assert!(is_errno(&error, Errno::EFBIG), "{error}");
    // Announced by what does not come: it counts as what has come.
    feed(&file().data(b"x").end().leave(), &scratch.path("target")).unwrap();
    assert_eq!(fs::read(scratch.path("target/file")).unwrap(), b"x");
}

#[test]
fn a_copy_has_an_end() {
    let scratch = Scratch::new();
    let options = CopyOptions { entries: 100, limit: 1000, ..OPTIONS };
    let many = (0..200).fold(Stream::default().directory(""), |stream, number| {
        stream.link(&number.to_string(), "x")
    });
    let result = feed_with(&many.0, &scratch.path("many"), &options);
    assert!(matches!(result, Err(Error::TooLarge { limit: 100, .. })), "{result:?}");
    let skipped = (0..200).fold(Stream::default().directory(""), |stream, _| {
        stream.entry(&Entry::Skipped { name: Strings::new(b"x\0").unwrap(), kind: FileKind::Fifo })
    });
    let result = feed_with(&skipped.0, &scratch.path("many"), &options);
    assert!(matches!(result, Err(Error::TooLarge { limit: 100, .. })), "{result:?}");
    let large = Stream::default().file("", &[1; 600]).data(&[1; 600]).end();
    let result = feed_with(&large.0, &scratch.path("large"), &options);
    assert!(matches!(result, Err(Error::TooLarge { limit: 1000, .. })), "{result:?}");
    assert!(!scratch.path("large").exists(), "half a file is left");
    let fits = Stream::default().file("", &[1; 600]).data(&[1; 400]).end();
    feed_with(&fits.0, &scratch.path("large"), &options).unwrap();

    let deep =
        (0..=MAX_DEPTH).fold(Stream::default().directory(""), |stream, _| stream.directory("d"));
    let result = feed(&deep, &scratch.path("deep"));
    assert!(
        matches!(result, Err(Error::TooLarge { limit, .. }) if limit == MAX_DEPTH as u64),
        "{result:?}"
    );

    let mut sent = CopyReport::default();
    let (result, ()) = through(
        |to| {
            send(&at(scratch.path("many")), to, &CopyOptions { entries: 50, ..OPTIONS }, &mut sent)
        },
        |from| while from.skip(1).is_ok() {},
    );
    assert!(matches!(result, Err(Error::TooLarge { limit: 50, .. })), "{result:?}");
}

#[test]
fn a_file_that_may_not_be_so_long_ends_no_process() {
    let scratch = Scratch::new();
    let limit = |soft: &str| {
        let (pid, fsize) = (std::process::id().to_string(), format!("--fsize={soft}:"));
        let status = Command::new("prlimit").args(["--pid", &pid, &fsize]).status().unwrap();
        assert!(status.success());
    };
    // More than any other test writes; SIGXFSZ would end them all.
    limit("1099511627776");
    let stream = Stream::default().file("", b"x").chunk(Chunk::Hole(1 << 41)).end();
    let error = feed(&stream, &scratch.path("target")).unwrap_err();
    limit("unlimited");
    assert!(is_errno(&error, Errno::EFBIG), "{error}");
    assert!(!scratch.path("target").exists());
}

#[test]
fn what_the_job_could_not_read_is_told() {
    let scratch = Scratch::new();
    let name = Strings::new(b"secret\0").unwrap();
    let stream = Stream::default().directory("").directory("d");
    let stream = stream.entry(&Entry::Failed { name, errno: libc::EACCES });
    let error = feed(&stream, &scratch.path("target")).unwrap_err();
    let Error::File { operation: "read", path, source } = error else { panic!("{error}") };
    assert_eq!(path, Path::new("d/secret"));
    assert_eq!(source.raw_os_error(), Some(libc::EACCES));
}

fn sample() -> Vec<u8> {
    let stream = Stream::default()
        .directory("")
        .directory("d")
        .file("file", b"content")
        .chunk(Chunk::Hole(4096))
        .data(b"more")
        .end()
        .leave()
        .link("link", "d/file")
        .hard_link("again", &["d", "file"])
        .entry(&Entry::Skipped { name: Strings::new(b"fifo\0").unwrap(), kind: FileKind::Fifo });
    stream.leave().0
}

#[test]
fn a_stream_that_is_cut_anywhere_is_an_error() {
    let scratch = Scratch::new();
    let sample = sample();
    let before = descriptors();
    for end in 0..sample.len() {
        let result = feed_with(&sample[..end], &scratch.path("target"), &OPTIONS);
        assert!(matches!(result, Err(Error::Protocol { .. })), "at {end}: {result:?}");
    }
    feed_with(&sample, &scratch.path("target"), &OPTIONS).unwrap();
    // Other tests have some open for a while.
    assert!(descriptors() < before + 200);
}

#[test]
fn any_bytes_are_refused_or_made_in_the_target() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.path("around/canary")).unwrap();
    fs::write(scratch.path("around/canary/file"), "alive").unwrap();
    let before = look(&scratch.path("around/canary"));
    let sample = sample();
    let mut random = 0x9e37_79b9_7f4a_7c15_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize
    };
    let began = Instant::now();
    let mut accepted = 0;
    for _ in 0..2000 {
        let mut bytes = sample.clone();
        for _ in 0..next() % 4 + 1 {
            let place = next() % bytes.len();
            match next() % 4 {
                0 => bytes[place] = next() as u8,
                1 => bytes[place] ^= 1 << (next() % 8),
                2 => drop(bytes.drain(place..(place + next() % 9).min(bytes.len()))),
                _ => bytes.insert(place, b"./\0\xff"[next() % 4]),
            }
            if bytes.is_empty() {
                break;
            }
        }
        let target = scratch.path("around/target");
        accepted += u32::from(feed_with(&bytes, &target, &OPTIONS).is_ok());
        if target.is_dir() {
            fs::set_permissions(&target, Permissions::from_mode(0o700)).unwrap();
            crate::store::contents::remove_contents(File::open(&target).unwrap().as_fd()).unwrap();
        }
    }
    assert!(accepted > 0, "positive control");
    assert!(began.elapsed() < Duration::from_secs(60));
    assert_eq!(look(&scratch.path("around/canary")), before);
    let mut content = String::new();
    File::open(scratch.path("around/canary/file")).unwrap().read_to_string(&mut content).unwrap();
    assert_eq!(content, "alive");
    assert!(fs::read_dir(scratch.path("around")).unwrap().count() <= 2);
}
