//! Trees that a guest has made for the host, or the host for a guest.

use std::collections::BTreeSet;
use std::ffi::OsStr;
use std::fs;
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{FileTypeExt, MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::{Duration, Instant};

use adl_runtime::{Error, Sandbox};

use crate::harness::{Home, Need, at_most, needs, patient_files, shell, within};
use crate::jobs::{SOON, alone};

use super::{Canary, Guest, bytes_below, file_jobs, in_time, is_sensible, python};

#[test]
fn a_tree_that_is_meant_for_the_host_comes_out_as_what_it_is() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let canary = Canary::new(home.path("canary"));
    let sandbox = home.sandbox();
    let make = r"
import os, socket, sys
host = sys.argv[1]
os.mkdir('/tmp/t'); os.chdir('/tmp/t')
names = [b'new\nline', b'\xff\xfe\x80', b'n' * 255, b'...', b'-rf', b'\x1b[31m', b'a\\b', b' ', b'*', b'C:']
for name in names: open(name, 'w').write('content')
os.symlink(host + '/secret', 'absolute')
os.symlink('../' * 40 + host.lstrip('/') + '/secret', 'up')
os.symlink(host, 'directory')
os.symlink('/' + 'x' * 4000, 'long')
os.mkfifo('fifo')
socket.socket(socket.AF_UNIX).bind('socket')
for name, mode in [('setuid', 0o4755), ('setgid', 0o2755), ('both', 0o6777)]:
    open(name, 'w').write('#!/bin/sh'); os.chmod(name, mode)
os.mkdir('setgid-directory'); os.chmod('setgid-directory', 0o2775)
os.mkdir('closed'); open('closed/file', 'w').write('x'); os.chmod('closed', 0)
os.mkdir('sub'); os.link('...', 'sub/hard')
";
    python(&sandbox, make, &[canary.root.to_str().unwrap()]);
    let target = home.path("out");
    let report = sandbox.files().copy_out("/tmp/t", &target).unwrap();
    let skipped: BTreeSet<_> = report
        .skipped
        .iter()
        .map(|s| (s.path.to_str().unwrap(), format!("{:?}", s.kind)))
        .collect();
    assert_eq!(skipped, [("fifo", "Fifo".to_owned()), ("socket", "Socket".to_owned())].into());
    assert_eq!((report.symbolic_links, report.hard_links, report.directories), (4, 1, 4));
    let names: [&[u8]; 10] = [
        b"new\nline",
        b"\xff\xfe\x80",
        &[b'n'; 255],
        b"...",
        b"-rf",
        b"\x1b[31m",
        b"a\\b",
        b" ",
        b"*",
        b"C:",
    ];
    for name in names {
        assert_eq!(fs::read(target.join(OsStr::from_bytes(name))).unwrap(), b"content");
    }
    for link in ["absolute", "up", "directory", "long"] {
        assert!(fs::symlink_metadata(target.join(link)).unwrap().is_symlink(), "{link}");
    }
    assert_eq!(
        fs::metadata(target.join("sub/hard")).unwrap().ino(),
        fs::metadata(target.join("...")).unwrap().ino()
    );
    let mode = |target: &Path, name| fs::metadata(target.join(name)).unwrap().mode() & 0o7777;
    let modes = |target: &Path| {
        ["setuid", "setgid", "both", "setgid-directory"].map(|name| mode(target, name))
    };
    assert_eq!(modes(&target), [0o755, 0o755, 0o777, 0o775]);
    assert_eq!(mode(&target, "closed"), 0);
    let nothing_else = |target: &Path| {
        for entry in fs::read_dir(target).unwrap() {
            let kind = entry.unwrap().file_type().unwrap();
            assert!(kind.is_file() || kind.is_dir() || kind.is_symlink());
            assert!(!kind.is_fifo() && !kind.is_socket() && !kind.is_char_device());
        }
    };
    nothing_else(&target);
    let kept = home.path("kept");
    sandbox.files().keep_set_ids(true).copy_out("/tmp/t", &kept).unwrap();
    assert_eq!(modes(&kept), [0o4755, 0o2755, 0o6777, 0o2775]);
    assert!(canary.is_whole());
    for root in [target, kept] {
        fs::set_permissions(root.join("closed"), fs::Permissions::from_mode(0o700)).unwrap();
    }
}

#[test]
fn a_link_of_an_earlier_copy_leads_a_later_one_nowhere() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let canary = Canary::new(home.path("canary"));
    let sandbox = home.sandbox();
    let host = canary.root.display();
    let target = home.path("out");
    let copy = || sandbox.files().copy_out("/tmp/t", &target);
    let again = |script: String| {
        shell(&sandbox, format!("rm -rf /tmp/t; mkdir /tmp/t; cd /tmp/t; {script}"));
        copy()
    };
    // What is there is a link to a directory of the host, or to a file of it, or to nothing.
    for link in [format!("{host}"), format!("{host}/secret"), "../canary".into(), "/nowhere".into()]
    {
        again(format!("ln -s {link} x; ln -s {link} y; ln -s {link} z")).unwrap();
        // A file makes it go, and so does another link.
        again("echo evil > x; ln -s elsewhere y".to_owned()).unwrap();
        assert_eq!(fs::read(target.join("x")).unwrap(), b"evil\n");
        assert!(!fs::symlink_metadata(target.join("x")).unwrap().is_symlink());
        // A directory with files does not go through it, nor does a hard link.
        for script in
            ["mkdir z; echo evil > z/passwd", "mkdir z; mkdir z/sub; echo evil > z/sub/passwd"]
        {
            let error = again(script.to_owned()).unwrap_err();
            assert!(matches!(error, Error::Io { .. }), "{error:?}");
            assert!(fs::symlink_metadata(target.join("z")).unwrap().is_symlink());
        }
        again("echo evil > a; ln a y; ln a z".to_owned()).unwrap();
        assert!(canary.is_whole(), "{link}");
        fs::remove_dir_all(&target).unwrap();
        // The same at the top: neither gone through nor replaced.
        symlink(&link, &target).unwrap();
        let error = again("echo evil > passwd".to_owned()).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error:?}");
        shell(&sandbox, "echo evil > /tmp/one");
        let error = sandbox.files().copy_out("/tmp/one", &target).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error:?}");
        assert!(canary.is_whole(), "{link}");
        fs::remove_file(&target).unwrap();
        // And the other way round: a link does not take the place of a directory.
        again("mkdir -p x/deep; echo 1 > x/deep/file".to_owned()).unwrap();
        let error = again(format!("ln -s {link} x")).unwrap_err();
        assert!(matches!(error, Error::Io { .. }), "{error:?}");
        assert_eq!(fs::read(target.join("x/deep/file")).unwrap(), b"1\n");
        fs::remove_dir_all(&target).unwrap();
    }
    // Control: what follows links would have written there.
    again(format!("ln -s {host} x")).unwrap();
    fs::write(target.join("x/passwd"), "evil").unwrap();
    assert!(!canary.is_whole());
}

#[test]
fn a_link_that_two_copies_make_by_turns_is_never_gone_through() {
    const SWAPPER: &str = r"
import os, sys
host = sys.argv[1]
def quiet(call, *arguments):
    try: return call(*arguments)
    except OSError: pass
os.makedirs('/tmp/t/x'); os.chdir('/tmp/t')
for name in ('passwd', 'secret'): open('x/' + name, 'w').write('evil')
os.symlink(host, 'y')
print('ready', flush=True)
while True:
    # Each name is a link at one time and a directory at another.
    quiet(os.rename, 'x', 'z'); quiet(os.rename, 'y', 'x'); quiet(os.rename, 'z', 'y')
";
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let canary = Canary::new(home.path("canary"));
    let sandbox = home.sandbox();
    let _guest = Guest::start(&sandbox, 0, SWAPPER, &[canary.root.to_str().unwrap()]);
    let target = home.path("out");
    let (mut made, mut refused) = (0, 0);
    for _ in 0..400 {
        match sandbox.files().copy_out("/tmp/t", &target) {
            Ok(_) => made += 1,
            Err(error) => {
                assert!(is_sensible(&error), "{error:?}");
                refused += 1;
                fs::remove_dir_all(&target).unwrap();
            }
        }
    }
    assert!(made > 10 && refused > 10, "{made} {refused}");
    assert!(canary.is_whole());
}

/// Makes a tree of directories with names of `width` bytes, and in the last one what is asked for.
const DEEP: &str = r"
import os, sys
depth, width, fifos, links = map(int, sys.argv[1:])
os.mkdir('/tmp/deep'); os.chdir('/tmp/deep')
for _ in range(depth):
    os.mkdir('x' * width); os.chdir('x' * width)
open('file', 'w').write('content')
for n in range(fifos): os.mkfifo(str(n))
for n in range(links): os.link('file', 'link-%d' % n)
";

/// Removes what is deeper than a path can be long.
fn remove_deep(root: &Path) {
    let removed = std::process::Command::new("rm").arg("-rf").arg(root).status().unwrap();
    assert!(removed.success());
}

fn make_deep(sandbox: &Sandbox, [depth, width, fifos, links]: [u32; 4]) {
    let arguments = [depth, width, fifos, links].map(|number| number.to_string());
    python(sandbox, DEEP, &arguments.each_ref().map(String::as_str));
}

#[test]
fn a_deep_tree_is_copied_and_removed() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    make_deep(&sandbox, [2_000, 2, 3, 2]);
    let report = patient_files(&sandbox).copy_out("/tmp/deep", home.path("out")).unwrap();
    assert_eq!((report.directories, report.files, report.hard_links), (2_001, 1, 2));
    assert_eq!(report.skipped.len(), 3);
    let report = patient_files(&sandbox).copy_in(home.path("out"), "/tmp/again").unwrap();
    assert_eq!((report.directories, report.files, report.hard_links), (2_001, 1, 2));
    patient_files(&sandbox).remove_dir_all("/tmp/deep").unwrap();
    patient_files(&sandbox).remove_dir_all("/tmp/again").unwrap();
    remove_deep(&home.path("out"));
}

#[test]
fn a_file_with_two_names_far_down_is_copied() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    // Its way is longer than the 1 MiB of an entry.
    make_deep(&sandbox, [4_200, 255, 0, 1]);
    let report = patient_files(&sandbox).copy_out("/tmp/deep", home.path("out"));
    remove_deep(&home.path("out"));
    let report = report.unwrap();
    assert_eq!(report.files + report.hard_links, 2);
}

#[test]
fn a_tree_as_deep_as_they_may_be_is_removed() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::of_a_test_that_takes(Duration::from_secs(600));
    let sandbox = home.sandbox();
    // What all its names take is more than half of what a job can have.
    make_deep(&sandbox, [34_000, 255, 0, 0]);
    let removed = patient_files(&sandbox).remove_dir_all("/tmp/deep");
    // Before anything fails: on the way out, what is left is removed by recursion.
    drop(sandbox);
    home.assert_settled();
    removed.unwrap();
}

#[test]
fn the_time_of_a_copy_is_kept_however_long_its_paths_are() {
    const TIMEOUT: Duration = Duration::from_secs(2);
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let sandbox = home.sandbox();
    make_deep(&sandbox, [1_500, 255, 15_000, 0]);
    let mut files = sandbox.files();
    let copied =
        in_time(TIMEOUT, || files.timeout(TIMEOUT).copy_out("/tmp/deep", home.path("out")));
    assert!(matches!(copied, Ok(_) | Err(Error::TimedOut { .. })), "{copied:?}");
    remove_deep(&home.path("out"));
}

#[test]
fn a_copy_keeps_its_bounds() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let many = "import os
os.mkdir('/tmp/many'); os.chdir('/tmp/many')
for n in range(20000): os.close(os.open(str(n), os.O_CREAT | os.O_WRONLY))
os.mkdir('/tmp/large'); os.chdir('/tmp/large')
for n in range(16): open(str(n), 'wb').write(b'x' * (1 << 20))
os.mkdir('/tmp/sparse'); open('/tmp/sparse/file', 'w').truncate(1 << 40)";
    python(&sandbox, many, &[]);
    let report = patient_files(&sandbox).copy_out("/tmp/many", home.path("many")).unwrap();
    assert_eq!((report.files, report.directories), (20_000, 1));
    let copied =
        patient_files(&sandbox).entry_limit(10_000).copy_out("/tmp/many", home.path("fewer"));
    assert!(matches!(copied, Err(Error::TooLarge { limit: 10_000, .. })), "{copied:?}");
    assert!(fs::read_dir(home.path("fewer")).unwrap().count() <= 10_000);
    let copied = patient_files(&sandbox).limit(10 << 20).copy_out("/tmp/large", home.path("large"));
    assert!(matches!(copied, Err(Error::TooLarge { .. })), "{copied:?}");
    assert!(bytes_below(&home.path("large")) <= 10 << 20);
    let sparse = patient_files(&sandbox)
        .limit(1 << 20)
        .copy_out("/tmp/sparse", home.path("sparse"))
        .unwrap();
    assert_eq!((sparse.files, sparse.bytes), (1, 0));
    let file = fs::metadata(home.path("sparse/file")).unwrap();
    assert_eq!((file.len(), file.blocks()), (1 << 40, 0));
    for timeout in [0, 5, 20].map(Duration::from_millis) {
        let begin = Instant::now();
        let copied =
            patient_files(&sandbox).timeout(timeout).copy_out("/tmp/many", home.path("late"));
        assert!(matches!(copied, Err(Error::TimedOut { .. })), "{copied:?}");
        assert!(begin.elapsed() < timeout + at_most(SOON));
        let copied =
            patient_files(&sandbox).timeout(timeout).copy_in(home.path("many"), "/tmp/late");
        assert!(matches!(copied, Err(Error::TimedOut { .. })), "{copied:?}");
        assert!(begin.elapsed() < 2 * timeout + at_most(SOON));
    }
    assert!(within(SOON, || file_jobs(&sandbox) == 0));
    assert_eq!(shell(&sandbox, "find /tmp/late -name '.adl-*' | wc -l"), "0\n");
}

#[test]
fn a_copy_that_fails_takes_no_file_of_the_host_away() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(&sandbox, "mkdir /tmp/t; head -c 100000 /dev/zero > /tmp/t/file");
    let target = home.path("out");
    fs::create_dir(&target).unwrap();
    fs::write(target.join("file"), "precious").unwrap();
    let copied = sandbox.files().limit(1000).copy_out("/tmp/t", &target);
    assert!(matches!(copied, Err(Error::TooLarge { .. })), "{copied:?}");
    assert_eq!(fs::read(target.join("file")).unwrap(), b"precious");
    let copied = sandbox.files().limit(1000).copy_out("/tmp/t/file", target.join("file"));
    assert!(matches!(copied, Err(Error::TooLarge { .. })), "{copied:?}");
    assert_eq!(fs::read(target.join("file")).unwrap(), b"precious");
    // Nor is a part of it, or a file under another name, left.
    assert_eq!(fs::read_dir(&target).unwrap().count(), 1);
    sandbox.files().copy_out("/tmp/t", &target).unwrap();
    assert_eq!(fs::metadata(target.join("file")).unwrap().len(), 100_000);
}

#[test]
fn a_guest_does_not_choose_the_mode_of_a_directory_that_was_there() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(&sandbox, "mkdir -p /tmp/t/.ssh; chmod 777 /tmp/t /tmp/t/.ssh; echo > /tmp/t/.ssh/file");
    let target = home.path("out");
    fs::create_dir_all(target.join(".ssh")).unwrap();
    let all = [target.clone(), target.join(".ssh")];
    for directory in &all {
        fs::set_permissions(directory, fs::Permissions::from_mode(0o700)).unwrap();
    }
    sandbox.files().copy_out("/tmp/t", &target).unwrap();
    let modes = all.each_ref().map(|path| fs::metadata(path).unwrap().mode() & 0o7777);
    assert_eq!(modes, [0o700, 0o700]);
}

#[test]
fn a_copy_into_a_directory_that_is_there_leaves_its_mode() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let source = home.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("file"), "content").unwrap();
    fs::set_permissions(&source, fs::Permissions::from_mode(0o700)).unwrap();
    let tell = "stat -c '%a %u:%g' / /tmp";
    let before = shell(&sandbox, tell);
    if sandbox.id_range().is_some() {
        // To whom it does not belong, but who may write there.
        sandbox.files().uid(1000).gid(1000).copy_in(&source, "/tmp").unwrap();
        assert_eq!(shell(&sandbox, "stat -c %u /tmp/file"), "1000\n");
    }
    sandbox.files().copy_in(&source, "/tmp").unwrap();
    sandbox.files().copy_in(&source, "/").unwrap();
    assert_eq!(shell(&sandbox, tell), before);
}

#[test]
fn what_of_the_host_has_no_content_is_left_out_of_a_copy() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let source = home.path("source");
    fs::create_dir(&source).unwrap();
    fs::write(source.join("a"), "content").unwrap();
    fs::write(source.join("z"), "content").unwrap();
    nix::unistd::mkfifo(&source.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(source.join("socket")).unwrap();
    let report = sandbox.files().copy_in(&source, "/tmp/t").unwrap();
    assert_eq!((report.files, report.skipped.len()), (2, 2));
    assert_eq!(shell(&sandbox, "ls /tmp/t"), "a\nz\n");
    let report = sandbox.files().copy_in(source.join("fifo"), "/tmp/fifo").unwrap();
    assert_eq!((report.files, report.skipped.len()), (0, 1));
    assert_eq!(shell(&sandbox, "test -e /tmp/fifo || echo none"), "none\n");
}

#[test]
fn holes_without_an_end_are_no_time_without_an_end() {
    const TIMEOUT: Duration = Duration::from_millis(200);
    if !needs(&[]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(&sandbox, "mkdir /tmp/z; truncate -s 50G /tmp/z/hole");
    let mut files = sandbox.files();
    let exported =
        in_time(TIMEOUT, || files.timeout(TIMEOUT).export_tar("/tmp/z", Disk(Vec::new())));
    assert!(matches!(exported, Err(Error::TimedOut { .. })), "{exported:?}");
    // Nothing but a reader's patience ends this, or a limit.
    shell(&sandbox, "truncate -s 1M /tmp/z/hole");
    files.timeout(at_most(SOON)).export_tar("/tmp/z", Disk(Vec::new())).unwrap();
}

/// As slow as a disk's cache.
struct Disk(Vec<u8>);

impl std::io::Write for Disk {
    fn write(&mut self, bytes: &[u8]) -> std::io::Result<usize> {
        self.0.clear();
        self.0.extend_from_slice(bytes);
        Ok(std::hint::black_box(&self.0).len())
    }

    fn flush(&mut self) -> std::io::Result<()> {
        Ok(())
    }
}

/// An archive of headers that say something of all that follows, for ever.
struct Endless {
    header: [u8; 1024],
    at: usize,
    read: u64,
}

impl std::io::Read for Endless {
    fn read(&mut self, buffer: &mut [u8]) -> std::io::Result<usize> {
        for byte in &mut *buffer {
            *byte = self.header[self.at % 1024];
            self.at += 1;
        }
        self.read += buffer.len() as u64;
        Ok(buffer.len())
    }
}

#[test]
fn an_archive_without_an_end_ends() {
    const TIMEOUT: Duration = Duration::from_millis(300);
    if !needs(&[]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut header = [0_u8; 1024];
    header[..8].copy_from_slice(b"comment\0");
    header[124..136].copy_from_slice(b"00000000014\0");
    header[156] = b'g';
    header[257..265].copy_from_slice(b"ustar\x0000");
    header[148..156].fill(b' ');
    let sum: u32 = header[..512].iter().map(|byte| u32::from(*byte)).sum();
    header[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
    header[512..524].copy_from_slice(b"12 comment=x");
    let mut endless = Endless { header, at: 0, read: 0 };
    let mut files = sandbox.files();
    let late = in_time(TIMEOUT, || files.timeout(TIMEOUT).import_tar(&mut endless, "/tmp/a"));
    assert!(matches!(late, Err(Error::TimedOut { .. })), "{late:?}");
    assert!(endless.read > 0);
    // Its headers count as content.
    (endless.at, endless.read) = (0, 0);
    let large = files.timeout(at_most(SOON)).limit(1 << 20).import_tar(&mut endless, "/tmp/a");
    assert!(matches!(large, Err(Error::TooLarge { .. })), "{large:?}");
    assert!(endless.read < 4 << 20, "{}", endless.read);
}

#[test]
fn a_copy_that_fails_leaves_directories_that_were_there_as_they_were() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(&sandbox, "mkdir -p /tmp/t/a/b/c; head -c 2M /dev/zero > /tmp/t/a/b/c/large");
    let target = home.path("out");
    fs::create_dir_all(target.join("a/b/c")).unwrap();
    let modes = [("a/b/c", 0o500), ("a/b", 0o711), ("a", 0o500), ("", 0o555)];
    for (path, mode) in modes {
        fs::set_permissions(target.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    let failed = sandbox.files().limit(1 << 20).copy_out("/tmp/t", &target);
    assert!(matches!(failed, Err(Error::TooLarge { .. })), "{failed:?}");
    for (path, mode) in modes {
        let now = fs::metadata(target.join(path)).unwrap().mode() & 0o7777;
        assert_eq!(now, mode, "{path}: {now:o}");
    }
    let mut open = modes;
    open.reverse();
    for (path, _) in open {
        fs::set_permissions(target.join(path), fs::Permissions::from_mode(0o700)).unwrap();
    }
}

#[test]
fn the_root_is_no_directory_to_remove_and_no_id_means_no_owner() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = sandbox.files();
    let busy = files.remove_dir_all("/").unwrap_err();
    assert_eq!(super::errno(&busy), Some(nix::errno::Errno::EBUSY));
    let options = adl_runtime::WriteOptions::new().owner(u32::MAX, 5);
    assert!(matches!(files.write_with("/tmp/x", "x", options), Err(Error::Invalid { .. })));
    assert!(!files.exists("/tmp/x").unwrap());
}

#[test]
fn a_limit_on_the_size_of_files_is_an_error_and_no_signal() {
    if !needs(&[Need::Program("prlimit")]) {
        return;
    }
    let home = Home::new();
    let source = home.path("large");
    fs::write(&source, vec![b'x'; 2 << 20]).unwrap();
    // Wherever in their file the ids are recorded.
    for _ in 0..8 {
        let mut adl = std::process::Command::new("prlimit");
        adl.arg("--fsize=1000000").arg(crate::harness::adl()).arg("run");
        adl.arg("--copy-in").arg(format!("{}:/tmp/copy", source.display()));
        adl.args(["--", "true"]).env("ADL_STATE_DIR", home.state());
        let output = adl.output().unwrap();
        let stderr = String::from_utf8_lossy(&output.stderr);
        assert_eq!(output.status.code(), Some(125), "{stderr}");
        assert!(stderr.contains("File too large"), "{stderr}");
    }
}
