//! Archives of this and of GNU tar are the same, and hostile ones do no harm.

use std::fs;
use std::io::Write;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use std::process::{Command, Stdio};

use adl_protocol::{FileKind, Time};

use super::super::tests::{OPTIONS, Scratch, assert_same_content, at, everything, look, through};
use super::super::{CopyOptions, CopyReport, MAX_DEPTH, receive, send};
use super::header::{BLOCK, Member, padding};
use super::{from_tar, to_tar};
use crate::error::{Error, Result};

fn pack(source: &Path) -> (Vec<u8>, CopyReport) {
    let (mut sent, mut report) = (CopyReport::default(), CopyReport::default());
    let mut archive = Vec::new();
    let (one, other) = through(
        |to| send(&at(source), to, &OPTIONS, &mut sent),
        |from| to_tar(from, &mut archive, &OPTIONS, &mut report),
    );
    other.unwrap();
    one.unwrap();
    (archive, report)
}

fn unpack_with(archive: &[u8], target: &Path, options: &CopyOptions) -> Result<CopyReport> {
    let (mut report, mut received) = (CopyReport::default(), CopyReport::default());
    let mut rest = archive;
    let (one, other) = through(
        |to| from_tar(&mut rest, to, options, &mut report),
        |from| receive(from, &at(target), &OPTIONS, &mut received),
    );
    // What is wrong with the archive is told by who read it.
    one?;
    other.map(|()| report)
}

fn unpack(archive: &[u8], target: &Path) -> Result<CopyReport> {
    unpack_with(archive, target, &OPTIONS)
}

fn gnu_tar(arguments: &[&str], directory: &Path, input: &[u8]) -> Vec<u8> {
    let mut tar = Command::new("tar")
        .args(arguments)
        .current_dir(directory)
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap();
    let mut stdin = tar.stdin.take().unwrap();
    let output = std::thread::scope(|scope| {
        // An error: it has read enough.
        scope.spawn(move || drop(stdin.write_all(input)));
        tar.wait_with_output().unwrap()
    });
    assert!(output.status.success(), "{arguments:?}: {}", String::from_utf8_lossy(&output.stderr));
    output.stdout
}

#[test]
fn gnu_tar_unpacks_what_is_packed_here() {
    let scratch = Scratch::new();
    let (source, target) = (scratch.path("source"), scratch.path("target"));
    everything(&source);
    fs::create_dir(&target).unwrap();
    let long = "long".repeat(50);
    fs::create_dir_all(source.join(format!("{long}/{long}"))).unwrap();
    fs::write(source.join(format!("{long}/{long}/file")), "x").unwrap();
    fs::hard_link(source.join(format!("{long}/{long}/file")), source.join("zz")).unwrap();
    std::os::unix::fs::symlink("x".repeat(300), source.join("far")).unwrap();
    let (archive, report) = pack(&source);
    assert_eq!(archive.len() % BLOCK, 0);
    assert_eq!((report.files, report.hard_links), (9, 3));
    gnu_tar(&["-xpf", "-"], &target, &archive);
    assert_eq!(look(&target), look(&source));
    assert_same_content(&source, &target);

    // And so does this.
    unpack(&archive, &scratch.path("again")).unwrap();
    assert_eq!(look(&scratch.path("again")), look(&source));
    assert_same_content(&source, &scratch.path("again"));
}

#[test]
fn what_gnu_tar_packs_is_unpacked_here() {
    let scratch = Scratch::new();
    let source = scratch.path("source");
    everything(&source);
    for (number, arguments) in [
        ["--format=pax"].as_slice(),
        &["--format=gnu"],
        &["--format=pax", "-S", "--sparse-version=0.0"],
        &["--format=pax", "-S", "--sparse-version=0.1"],
        &["--format=pax", "-S", "--sparse-version=1.0"],
        &["--format=gnu", "-S"],
    ]
    .iter()
    .enumerate()
    {
        let archive = gnu_tar(&[arguments, ["-cf", "-", "."].as_slice()].concat(), &source, b"");
        let target = scratch.path(&number.to_string());
        let report = unpack(&archive, &target).unwrap();
        assert_eq!((report.files, report.directories), (8, 5), "{arguments:?}");
        assert_same_content(&source, &target);
        if arguments.contains(&"--format=pax") {
            assert_eq!(look(&target), look(&source), "{arguments:?}");
        }
        if arguments.contains(&"-S") {
            assert!(archive.len() < 5 << 20);
            let sparse = fs::metadata(target.join("sparse")).unwrap();
            assert!(sparse.blocks() * 512 < 1 << 20, "{arguments:?}: {}", sparse.blocks());
        }
    }
    // The oldest kind, in which names are in two parts.
    let plain = scratch.path("plain");
    let long = "n".repeat(90);
    fs::create_dir_all(plain.join(&long)).unwrap();
    fs::write(plain.join(&long).join(&long), "x").unwrap();
    let archive = gnu_tar(&["--format=ustar", "-cf", "-", "."], &plain, b"");
    unpack(&archive, &scratch.path("unpacked")).unwrap();
    assert_same_content(&plain, &scratch.path("unpacked"));
}

#[test]
fn a_sparse_file_in_very_many_pieces() {
    use std::os::unix::fs::FileExt;
    let scratch = Scratch::new();
    fs::create_dir(scratch.path("source")).unwrap();
    let file = fs::File::create(scratch.path("source/file")).unwrap();
    for piece in 0..300_u64 {
        file.write_at(b"piece", piece * 65536 + 100).unwrap();
    }
    for (number, arguments) in [["--format=gnu"].as_slice(), &["--format=pax"]].iter().enumerate() {
        let arguments = [arguments, ["-S", "-cf", "-", "."].as_slice()].concat();
        let archive = gnu_tar(&arguments, &scratch.path("source"), b"");
        unpack(&archive, &scratch.path(&number.to_string())).unwrap();
        assert_same_content(&scratch.path("source"), &scratch.path(&number.to_string()));
    }
}

fn depth_of(path: &str) -> usize {
    path.split('/').count()
}

// Archives byte by byte.

#[derive(Default, Clone)]
struct Archive(Vec<u8>);

impl Archive {
    fn member(mut self, kind: u8, path: &str, rest: Member) -> Self {
        let modified = Time { seconds: depth_of(path) as i64, nanoseconds: 0 };
        Member { kind, path: path.into(), mode: 0o750, modified, ..rest }.write(&mut self.0);
        self
    }

    fn file(self, path: &str, content: &str) -> Self {
        let size = content.len() as u64;
        let mut archive = self.member(b'0', path, Member { size, ..Member::default() });
        archive.bytes(content.as_bytes());
        archive
    }

    fn bytes(&mut self, bytes: &[u8]) {
        self.0.extend_from_slice(bytes);
        self.0.resize(self.0.len() + padding(bytes.len() as u64) as usize, 0);
    }

    fn directory(self, path: &str) -> Self {
        self.member(b'5', path, Member::default())
    }

    fn link(self, kind: u8, path: &str, to: &str) -> Self {
        self.member(kind, path, Member { link: to.into(), ..Member::default() })
    }

    fn end(mut self) -> Vec<u8> {
        self.0.resize(self.0.len() + 2 * BLOCK, 0);
        self.0
    }
}

fn modes(target: &Path, path: &str) -> u32 {
    fs::symlink_metadata(target.join(path)).unwrap().mode() & 0o7777
}

#[test]
fn members_come_in_any_order() {
    let scratch = Scratch::new();
    let target = scratch.path("target");
    let archive = Archive::default()
        .file("a/b/file", "1")
        .file("c", "2")
        .file("a/b/other", "3")
        .directory("a/")
        .file("/absolute/./path//file", "4")
        .file("a/b/file", "changed")
        .link(b'1', "d/hard", "a/b/file")
        .link(b'2', "a/link", "../c")
        .member(b'0', "old/", Member::default())
        .end();
    let report = unpack(&archive, &target).unwrap();
    assert_eq!(report.directories, 7, "{report:?}");
    assert_eq!(fs::read(target.join("a/b/file")).unwrap(), b"changed");
    assert_eq!(fs::read(target.join("a/b/other")).unwrap(), b"3");
    assert_eq!(fs::read(target.join("a/link")).unwrap(), b"2");
    assert_eq!(fs::read(target.join("absolute/path/file")).unwrap(), b"4");
    assert_eq!(fs::metadata(target.join("d/hard")).unwrap().nlink(), 2);
    assert!(target.join("old").is_dir());
    // What the archive says of a directory holds, though it was entered again.
    assert_eq!((modes(&target, "a"), modes(&target, "a/b")), (0o750, 0o755));

    unpack(&Archive::default().end(), &scratch.path("empty")).unwrap();
    assert!(scratch.path("empty").is_dir());
}

#[test]
fn archives_that_lead_out_are_refused() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.path("around/canary")).unwrap();
    fs::write(scratch.path("around/canary/file"), "alive").unwrap();
    let before = look(&scratch.path("around/canary"));
    let target = scratch.path("around/target");
    let long = "n".repeat(256);
    for path in ["../canary/new", "a/../../canary/new", "..", "/../canary/new", &long] {
        for archive in [
            Archive::default().file(path, "dead"),
            Archive::default().directory(path),
            Archive::default().link(b'2', path, "x"),
            Archive::default().link(b'1', path, "x"),
            Archive::default().file("x", "x").link(b'1', "y", path),
        ] {
            let result = unpack(&archive.end(), &target);
            assert!(matches!(result, Err(Error::Refused { .. })), "{path}: {result:?}");
        }
    }
    for archive in [
        Archive::default().link(b'2', "link", "../canary").file("link/file", "dead"),
        Archive::default().link(b'2', "link", "../canary").link(b'1', "hard", "link/file"),
        Archive::default().link(b'2', "file", "../canary/file").link(b'1', "hard", "file"),
        Archive::default().link(b'1', "hard", "missing"),
    ] {
        assert!(unpack(&archive.end(), &target).is_err());
        fs::remove_dir_all(&target).unwrap();
    }
    // A file in the place of a link is a new one.
    let over = Archive::default().link(b'2', "file", "../canary/file").file("file", "new");
    unpack(&over.end(), &target).unwrap();
    assert_eq!(fs::read(target.join("file")).unwrap(), b"new", "positive control");
    assert_eq!(look(&scratch.path("around/canary")), before);
    assert_eq!(fs::read(scratch.path("around/canary/file")).unwrap(), b"alive");
    assert_eq!(fs::metadata(scratch.path("around/canary/file")).unwrap().nlink(), 1);
}

#[test]
fn devices_are_skipped_and_told() {
    let scratch = Scratch::new();
    let mut archive = Archive::default()
        .member(b'3', "dev/null", Member::default())
        .member(b'4', "dev/sda", Member::default())
        .member(b'6', "fifo", Member::default())
        .member(b'Q', "what", Member { size: 600, ..Member::default() });
    archive.bytes(&[7; 600]);
    let archive = archive.file("x", "x").end();
    let report = unpack(&archive, &scratch.path("target")).unwrap();
    let skipped: Vec<_> =
        report.skipped.iter().map(|one| (one.path.to_str().unwrap(), one.kind)).collect();
    assert_eq!(
        skipped,
        [
            ("dev/null", FileKind::CharacterDevice),
            ("dev/sda", FileKind::BlockDevice),
            ("fifo", FileKind::Fifo),
            ("what", FileKind::Unknown)
        ]
    );
    let names: Vec<_> = fs::read_dir(scratch.path("target"))
        .unwrap()
        .map(|entry| entry.unwrap().file_name())
        .collect();
    assert_eq!(names, ["x"]);
}

#[test]
fn an_archive_that_is_too_large_is_refused_before_it_is_read() {
    let scratch = Scratch::new();
    let target = scratch.path("target");
    let options = CopyOptions { limit: 1000, entries: 20, ..OPTIONS };
    let too_large = |result: Result<CopyReport>| {
        assert!(matches!(result, Err(Error::TooLarge { .. })), "{result:?}");
    };
    for size in [1001, u64::MAX >> 1, 1 << 40] {
        let archive = Archive::default().member(b'0', "x", Member { size, ..Member::default() });
        too_large(unpack_with(&archive.0, &target, &options));
    }
    let many =
        (0..30).fold(Archive::default(), |archive, number| archive.directory(&number.to_string()));
    too_large(unpack_with(&many.end(), &target, &options));
    for kind in [b'x', b'L', b'K', b'g'] {
        let size = (1 << 20) + 1;
        let archive = Archive::default().member(kind, "x", Member { size, ..Member::default() });
        too_large(unpack_with(&archive.0, &target, &OPTIONS));
    }
    // A few bytes that would become very many.
    for map in ["0,1", "1152921504606846000,1"] {
        let records = format!("GNU.sparse.size=1152921504606846976\nGNU.sparse.map={map}\n");
        let bomb = with_records(&records).file("x", "x").end();
        too_large(unpack_with(&bomb, &target, &options));
    }
    let deep = "d/".repeat(MAX_DEPTH + 1);
    too_large(unpack(&Archive::default().directory(&deep).end(), &target));
    let fits = Archive::default().file("x", &"x".repeat(1000)).end();
    unpack_with(&fits, &target, &options).unwrap();
}

/// A pax header out of lines of `key=value`.
fn with_records(lines: &str) -> Archive {
    let mut records = Vec::new();
    for line in lines.lines() {
        let mut length = line.len() + 3;
        while length != line.len() + 2 + length.to_string().len() {
            length = line.len() + 2 + length.to_string().len();
        }
        records.extend_from_slice(format!("{length} {line}\n").as_bytes());
    }
    let size = records.len() as u64;
    let mut archive = Archive::default().member(b'x', "pax", Member { size, ..Member::default() });
    archive.bytes(&records);
    archive
}

#[test]
fn maps_that_make_no_sense_are_refused() {
    let scratch = Scratch::new();
    for (map, is_fine) in [
        ("0,2,3,2", true),
        ("3,2,0,2", false),
        ("0,2,1,2", false),
        ("0,4,99,0", false),
        ("0,5", false),
        ("0,3", false),
    ] {
        let records = format!("GNU.sparse.size=9\nGNU.sparse.map={map}\n");
        let archive = with_records(&records).file("x", "abcd").end();
        let result = unpack(&archive, &scratch.path("target"));
        assert_eq!(result.is_ok(), is_fine, "{map}: {result:?}");
        assert!(is_fine || matches!(result, Err(Error::Invalid { .. })), "{map}: {result:?}");
    }
    assert_eq!(fs::read(scratch.path("target/x")).unwrap(), b"ab\0cd\0\0\0\0");
}

#[test]
fn pax_says_more_than_a_header_can() {
    let scratch = Scratch::new();
    let records = "path=from/pax\nmtime=-1.25\nsize=3\ncomment=\nuid=70000000\n";
    let archive = with_records(records).file("x", "abc").file("plain", "p").end();
    unpack(&archive, &scratch.path("target")).unwrap();
    let metadata = fs::metadata(scratch.path("target/from/pax")).unwrap();
    assert_eq!((metadata.mtime(), metadata.mtime_nsec()), (-2, 750_000_000));
    assert!(scratch.path("target/plain").is_file());
    for records in ["mtime=x", "size=-1", "size=+3", "uid=99999999999", "path=a\0b", "mtime=1.-2"] {
        let archive = with_records(records).file("x", "abc").end();
        assert!(unpack(&archive, &scratch.path("bad")).is_err(), "{records:?}");
    }
}

fn sample() -> Vec<u8> {
    let long = "n".repeat(150);
    let records = "GNU.sparse.size=5000\nGNU.sparse.map=0,2,4096,2\n";
    with_records(records)
        .file("a/sparse", "abcd")
        .directory("a/")
        .file(&format!("a/{long}"), "content")
        .link(b'2', "link", "a")
        .link(b'1', "hard", "a/sparse")
        .member(b'6', "fifo", Member::default())
        .end()
}

#[test]
fn an_archive_that_is_cut_anywhere_is_an_error() {
    let scratch = Scratch::new();
    let sample = sample();
    let end = sample.len() - 2 * BLOCK;
    for length in (0..end).step_by(64).chain([end, end + BLOCK - 1]) {
        let result = unpack(&sample[..length], &scratch.path("target"));
        assert!(matches!(result, Err(Error::Invalid { .. })), "at {length}: {result:?}");
    }
    unpack(&sample, &scratch.path("target")).unwrap();
}

#[test]
fn any_archive_is_refused_or_made_in_the_target() {
    let scratch = Scratch::new();
    fs::create_dir_all(scratch.path("around/canary")).unwrap();
    let before = look(&scratch.path("around/canary"));
    let sample = sample();
    let mut random = 0x2545_f491_4f6c_dd1d_u64;
    let mut next = || {
        random ^= random << 13;
        random ^= random >> 7;
        random ^= random << 17;
        random as usize
    };
    let mut accepted = 0;
    for _ in 0..1000 {
        let mut bytes = sample.clone();
        for _ in 0..next() % 3 + 1 {
            let place = next() % bytes.len();
            bytes[place] = b"/.\0\xff97\x80"[next() % 7];
            mend(&mut bytes, place);
        }
        let target = scratch.path("around/target");
        accepted += u32::from(unpack(&bytes, &target).is_ok());
        if target.is_dir() {
            let directory = fs::File::open(&target).unwrap();
            crate::store::contents::remove_contents(std::os::fd::AsFd::as_fd(&directory)).unwrap();
        }
    }
    assert!(accepted > 0, "positive control");
    assert_eq!(look(&scratch.path("around/canary")), before);
    assert!(fs::read_dir(scratch.path("around")).unwrap().count() <= 2);
}

/// Makes the checksum of a header right again, so that its other fields are looked at.
fn mend(bytes: &mut [u8], place: usize) {
    let start = place / BLOCK * BLOCK;
    let block = &mut bytes[start..start + BLOCK];
    if &block[257..262] == b"ustar" && !(148..156).contains(&(place - start)) {
        block[148..156].fill(b' ');
        let sum: u32 = block.iter().map(|byte| u32::from(*byte)).sum();
        block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    }
}

// Streams that a hostile job sends, to be packed.

mod streams {
    use adl_protocol::{Attributes, Chunk, Entry, Strings};

    use super::*;

    const ATTRIBUTES: Attributes =
        Attributes { mode: 0o755, uid: 0, gid: 0, modified: Time { seconds: 1, nanoseconds: 0 } };

    fn strings(bytes: &'static [u8]) -> Strings<'static> {
        Strings::new(bytes).unwrap()
    }

    fn directory(name: &'static [u8]) -> Entry<'static> {
        Entry::Directory { name: strings(name), attributes: Some(ATTRIBUTES) }
    }

    fn file(name: &'static [u8], size: u64) -> Entry<'static> {
        Entry::File { name: strings(name), attributes: ATTRIBUTES, size }
    }

    fn link(name: &'static [u8], target: &'static [u8]) -> Entry<'static> {
        let (name, target) = (strings(name), strings(target));
        Entry::SymbolicLink { name, target, attributes: ATTRIBUTES }
    }

    fn hard(name: &'static [u8], target: &'static [u8]) -> Entry<'static> {
        Entry::HardLink { name: strings(name), target: strings(target) }
    }

    fn packed(entries: &[Entry<'_>]) -> Result<(Vec<u8>, CopyReport)> {
        let mut report = CopyReport::default();
        let mut archive = Vec::new();
        let options = CopyOptions { limit: 1 << 20, ..OPTIONS };
        let (_, result) = through(
            |to| {
                for entry in entries {
                    to.entry(entry)?;
                    if matches!(entry, Entry::File { .. }) {
                        to.chunk(Chunk::Hole(2))?;
                        to.chunk(Chunk::Data(3))?;
                        to.bytes(b"abc")?;
                        to.chunk(Chunk::End)?;
                    }
                }
                to.flush()
            },
            |from| to_tar(from, &mut archive, &options, &mut report),
        );
        result.map(|()| (archive, report))
    }

    #[test]
    fn a_length_that_is_not_true_makes_a_valid_archive() {
        let scratch = Scratch::new();
        let entries = [
            directory(b"\0"),
            file(b"less\0", 4),
            file(b"more\0", 700),
            file(b"none\0", 1),
            file(b"same\0", 5),
            Entry::Leave,
        ];
        let (archive, report) = packed(&entries).unwrap();
        assert_eq!(report.cut_off, ["less", "more", "none"].map(Path::new));
        gnu_tar(&["-xf", "-"], &scratch.0, &archive);
        let content = |name: &str| fs::read(scratch.path(name)).unwrap();
        assert_eq!(content("less"), b"\0\0ab");
        assert_eq!(content("more"), [b"\0\0abc".as_slice(), &[0; 695]].concat());
        assert_eq!(content("none"), b"\0");
        assert_eq!(content("same"), b"\0\0abc");
    }

    #[test]
    fn an_archive_holds_nothing_that_leads_out() {
        let top = || vec![directory(b"\0"), file(b"file\0", 5), link(b"link\0", b"/etc\0")];
        let refused: [&[Entry<'_>]; 9] = [
            &[file(b"..\0", 5)],
            &[directory(b"a/b\0")],
            &[link(b"\0", b"x\0")],
            &[hard(b"hard\0", b"..\0passwd\0")],
            &[hard(b"hard\0", b"link\0passwd\0")],
            &[hard(b"hard\0", b"link\0")],
            &[hard(b"hard\0", b"missing\0")],
            // Through a link, since the two have one path.
            &[directory(b"link\0"), file(b"passwd\0", 5), Entry::Leave],
            &[directory(b"d\0"), Entry::Leave, link(b"d\0", b"/etc\0")],
        ];
        for rest in refused {
            let entries = [top(), rest.to_vec(), vec![Entry::Leave]].concat();
            let result = packed(&entries);
            assert!(matches!(result, Err(Error::Refused { .. })), "{rest:?}: {result:?}");
        }
        let fine = [top(), vec![hard(b"hard\0", b"file\0"), Entry::Leave]].concat();
        packed(&fine).unwrap();
        let bomb = [directory(b"\0"), file(b"bomb\0", 1 << 60), Entry::Leave];
        assert!(matches!(packed(&bomb), Err(Error::TooLarge { .. })));
        assert!(matches!(packed(&[file(b"\0", 5)]), Err(Error::File { .. })));
    }
}
