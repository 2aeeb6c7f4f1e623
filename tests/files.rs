//! Files read, written and listed by calls from outside, as a command inside sees them.

use std::ffi::{OsStr, OsString};
use std::io::{self, Read, Write};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};

use adl_runtime::{
    Config, EndReason, Error, FileKind, Files, Sandbox, Seccomp, Upper, WriteMode, WriteOptions,
};

use nix::errno::Errno;

use crate::census;
use crate::harness::{Home, Need, at_most, needs, patient_files, shell};
use crate::helper::{Helper, say};
use crate::jobs::{SOON, alone};

/// The error number of what went wrong inside.
fn errno<T: std::fmt::Debug>(result: adl_runtime::Result<T>) -> Errno {
    match result {
        Err(Error::File { source, .. }) => Errno::from_raw(source.raw_os_error().unwrap()),
        other => panic!("{other:?}"),
    }
}

fn is_not_regular<T>(result: adl_runtime::Result<T>) -> bool {
    matches!(result, Err(Error::NotRegular { .. }))
}

/// Calls something that is to be told at once.
fn at_once<T>(what: &str, call: impl FnOnce() -> T) -> T {
    let begin = Instant::now();
    let result = call();
    let took = begin.elapsed();
    assert!(took < at_most(Duration::from_millis(500)), "{what} took {took:?}");
    result
}

#[test]
fn what_is_written_is_read_by_commands_and_the_other_way_round() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = sandbox.files();
    files.write_file("/tmp/a", b"one\0two").unwrap();
    assert_eq!(shell(&sandbox, "cat /tmp/a; stat -c ' %a %u' /tmp/a"), "one\0two 644 0\n");
    shell(&sandbox, "umask 077; printf three > /tmp/b; printf four > '/tmp/with space'");
    assert_eq!(files.read_file("/tmp/b").unwrap(), b"three");
    // What is replaced keeps its mode, what is new has the usual one.
    files.write_file("/tmp/b", b"").unwrap();
    assert_eq!(files.read_file("/tmp/b").unwrap(), b"");
    assert_eq!(files.metadata("/tmp/b").unwrap().mode, 0o600);
    assert_eq!(files.read_file("tmp/with space").unwrap(), b"four");
    let mut in_tmp = sandbox.files();
    in_tmp.current_dir("tmp");
    assert_eq!(in_tmp.read_file("with space").unwrap(), b"four");
    assert_eq!(in_tmp.read_file("/tmp/with space").unwrap(), b"four");

    // More than any buffer on the way.
    let large: Vec<u8> = (0..5_000_003_u32).map(|n| (n % 251) as u8).collect();
    for length in [1, 4079, 4080, 4081, 4096, 65_535, 65_536, 1 << 20, (1 << 20) + 1, large.len()] {
        let bytes = &large[..length];
        files.write_file("/tmp/large", bytes).unwrap();
        assert!(files.read_file("/tmp/large").unwrap() == bytes, "{length} bytes");
    }
    assert_eq!(files.read_range("/tmp/large", 5_000_000, 100).unwrap(), &large[5_000_000..]);
    assert_eq!(files.read_range("/tmp/large", 70_000, 3).unwrap(), &large[70_000..70_003]);
    assert_eq!(files.read_range("/tmp/large", 1 << 40, 3).unwrap(), b"");
}

#[test]
fn a_file_is_appended_to_cut_off_or_made_as_was_asked_for() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = sandbox.files();
    let with = |how| WriteOptions::new().how(how);
    files.append_file("/tmp/log", b"one ").unwrap();
    files.append_file("/tmp/log", b"two ").unwrap();
    let long = vec![b'x'; 100_000];
    files.append_file("/tmp/log", &long).unwrap();
    assert_eq!(files.read_file("/tmp/log").unwrap(), [&b"one two "[..], &long].concat());

    // The file itself, by whatever name or link.
    shell(&sandbox, "ln /tmp/log /tmp/other; ln -s log /tmp/link");
    files.write_with("/tmp/link", b"short", with(WriteMode::Truncate)).unwrap();
    assert_eq!(
        shell(&sandbox, "cat /tmp/other; stat -c ' %h %F' /tmp/log"),
        "short 2 regular file\n"
    );
    // Another in its place.
    files.write_file("/tmp/log", b"new").unwrap();
    assert_eq!(shell(&sandbox, "cat /tmp/other /tmp/log"), "shortnew");
    files.write_file("/tmp/link", b"no link").unwrap();
    assert_eq!(files.symlink_metadata("/tmp/link").unwrap().kind, FileKind::File);
    assert_eq!(files.read_file("/tmp/log").unwrap(), b"new");

    let new = with(WriteMode::CreateNew);
    assert_eq!(errno(files.write_with("/tmp/log", b"x", new)), Errno::EEXIST);
    let owned = files.write_with("/tmp/fresh", b"x", new.mode(0o4750).owner(7, 8));
    if sandbox.id_range().is_none() {
        // There is no such user.
        assert_eq!(errno(owned), Errno::EINVAL);
    } else {
        owned.unwrap();
        assert_eq!(shell(&sandbox, "stat -c '%a %u %g' /tmp/fresh"), "4750 7 8\n");
    }
    shell(&sandbox, "chown 7:8 /tmp/other 2>/dev/null || true; chmod 4711 /tmp/other");
    files.write_file("/tmp/other", b"y").unwrap();
    let kept = files.metadata("/tmp/other").unwrap();
    assert_eq!(kept.mode, 0o711, "set-user-id is not for new content");
    if sandbox.id_range().is_some() {
        assert_eq!((kept.uid, kept.gid), (7, 8));
    }
    assert_eq!(shell(&sandbox, "ls -A /tmp | grep -c adl || true"), "0\n");
}

#[test]
fn directories_and_links_are_made_listed_and_removed() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = sandbox.files();
    files.create_dir_all("/tmp/a/b/c").unwrap();
    files.create_dir_all("/tmp/a/b/c/").unwrap();
    files.symlink("a/b", "/tmp/link").unwrap();
    files.create_dir_all("/tmp/link/d").unwrap();
    files.symlink("/nowhere", "/tmp/a/dangling").unwrap();
    shell(&sandbox, "cd /tmp/a/b; touch f; mkfifo p; test -d d");
    assert_eq!(files.read_link("/tmp/link").unwrap(), Path::new("a/b"));
    assert_eq!(errno(files.read_link("/tmp/a")), Errno::EINVAL);
    let mut entries: Vec<_> = files
        .list_dir("/tmp/link")
        .unwrap()
        .into_iter()
        .map(|entry| (entry.name.into_string().unwrap(), entry.kind))
        .collect();
    entries.sort_by(|a, b| a.0.cmp(&b.0));
    let expected = [
        ("c", FileKind::Directory),
        ("d", FileKind::Directory),
        ("f", FileKind::File),
        ("p", FileKind::Fifo),
    ];
    assert_eq!(entries, expected.map(|(name, kind)| (name.to_owned(), kind)));

    assert!(files.exists("/tmp/link/f").unwrap());
    assert!(!files.exists("/tmp/link/g").unwrap());
    assert!(!files.exists("/tmp/link/f/g").unwrap());
    assert!(!files.exists("/tmp/a/dangling").unwrap());
    let link = files.symlink_metadata("/tmp/a/dangling").unwrap();
    assert_eq!((link.kind, link.size), (FileKind::SymbolicLink, 8));

    files.rename("/tmp/a/b/f", "/tmp/a/g").unwrap();
    files.rename("/tmp/a/b/", "/tmp/moved").unwrap();
    assert_eq!(shell(&sandbox, "ls /tmp/moved; ls /tmp/a"), "c\nd\np\ndangling\ng\n");
    files.set_permissions("/tmp/a/g", 0o2710).unwrap();
    assert_eq!(files.metadata("/tmp/a/g").unwrap().mode, 0o2710);
    files.remove_file("/tmp/a/dangling").unwrap();
    files.remove_file("/tmp/moved/p").unwrap();
    assert_eq!(errno(files.remove_file("/tmp/moved")), Errno::EISDIR);
    assert_eq!(errno(files.remove_dir_all("/tmp/a/g")), Errno::ENOTDIR);
    assert_eq!(errno(files.remove_dir_all("/tmp/link")), Errno::ENOTDIR);
    files.remove_dir_all("/tmp/moved/").unwrap();
    files.remove_dir_all("/tmp/a").unwrap();
    assert_eq!(shell(&sandbox, "ls -A /tmp"), "link\n");
    assert_eq!(errno(files.rename("/tmp/none", "/tmp/x")), Errno::ENOENT);
    assert_eq!(errno(files.create_dir_all("/etc/passwd/x")), Errno::ENOTDIR);
}

#[test]
fn what_is_told_of_a_file_is_what_stat_tells() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = sandbox.files();
    shell(&sandbox, "cd /tmp; printf 12345 > f; ln f g; chmod 1640 f; touch -d @-86400.25 f");
    let told = files.metadata("/tmp/f").unwrap();
    let stat = shell(&sandbox, "stat -c '%s %b %h %i %u %g' /tmp/f");
    let expected = format!(
        "{} {} {} {} {} {}\n",
        told.size, told.blocks, told.links, told.inode, told.uid, told.gid
    );
    assert_eq!(stat, expected);
    assert_eq!((told.kind, told.mode, told.size, told.links), (FileKind::File, 0o1640, 5, 2));
    let day = Duration::from_millis(86_400_250);
    assert_eq!(told.modified, SystemTime::UNIX_EPOCH - day);
    assert!(told.changed.elapsed().unwrap() < at_most(SOON));
    for (path, kind) in [
        ("/tmp", FileKind::Directory),
        ("/dev/null", FileKind::CharacterDevice),
        ("/proc/self", FileKind::Directory),
    ] {
        assert_eq!(files.metadata(path).unwrap().kind, kind, "{path}");
    }
}

/// Names that a guest may choose, and that careless callers stumble over.
fn odd_names() -> Vec<OsString> {
    let mut names: Vec<OsString> =
        [&b"with space"[..], b"\n", b"-rf", b"...", b"\xff\xfe", b"*?[", b"a\\b", b"\x1b[31m"]
            .into_iter()
            .map(|name| OsStr::from_bytes(name).to_owned())
            .collect();
    names.push(OsString::from_vec(vec![b'n'; 255]));
    names.push(OsString::from_vec([b'\x80'; 255].to_vec()));
    names
}

#[test]
fn names_may_be_any_bytes_and_paths_as_long_as_the_kernel_takes_them() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = sandbox.files();
    files.create_dir_all("/tmp/odd").unwrap();
    let names = odd_names();
    for name in &names {
        let path = Path::new("/tmp/odd").join(name);
        files.write_file(&path, name.as_bytes()).unwrap();
        assert_eq!(files.read_file(&path).unwrap(), name.as_bytes());
    }
    let mut listed: Vec<_> =
        files.list_dir("/tmp/odd").unwrap().into_iter().map(|entry| entry.name).collect();
    listed.sort();
    let mut expected = names.clone();
    expected.sort();
    assert_eq!(listed, expected);
    let inside = sandbox
        .command("python3")
        .args(["-c", "import os,sys\nfor n in sorted(os.listdir(b'/tmp/odd')): sys.stdout.buffer.write(n + b'\\0')"])
        .output()
        .unwrap();
    let inside: Vec<_> =
        inside.stdout.split_inclusive(|b| *b == 0).map(|n| &n[..n.len() - 1]).collect();
    assert_eq!(inside, expected.iter().map(|name| name.as_bytes()).collect::<Vec<_>>());

    // 4,095 bytes, and one more.
    let mut long = PathBuf::from("/tmp/long");
    while long.as_os_str().len() + 256 < 4095 {
        long.push("d".repeat(255));
    }
    let left = 4095 - long.as_os_str().len() - 1;
    files.create_dir_all(&long).unwrap();
    let longest = long.join("f".repeat(left));
    assert_eq!(longest.as_os_str().len(), 4095);
    files.write_file(&longest, b"deep").unwrap();
    assert_eq!(files.read_file(&longest).unwrap(), b"deep");
    assert_eq!(files.list_dir(&long).unwrap().len(), 1);
    let longer = long.join("f".repeat(left + 1));
    assert!(matches!(files.read_file(&longer), Err(Error::Invalid { .. })));
    assert!(matches!(files.write_file(&longer, b""), Err(Error::Invalid { .. })));
    assert_eq!(
        errno(files.write_file(format!("/tmp/{}", "n".repeat(256)), b"")),
        Errno::ENAMETOOLONG
    );
    files.remove_dir_all("/tmp/long").unwrap();
    assert!(!files.exists("/tmp/long").unwrap());
}

#[test]
fn a_tree_of_any_depth_and_any_width_is_removed() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = patient_files(&sandbox);
    const MAKE: &str = "import os
os.makedirs('/tmp/t/empty'); os.chdir('/tmp/t')
for i in range(300):
    os.makedirs(f'd{i}/x'); open(f'd{i}/f', 'w'); open(f'd{i}/x/f', 'w')
for i in range(5000):
    os.mkdir('d' * 100); os.chdir('d' * 100); open('f', 'w'); os.mkdir('e')
os.chmod('e', 0)";
    let made = sandbox.command("python3").args(["-c", MAKE]).output().unwrap();
    assert!(made.status.success(), "{made:?}");
    files.remove_dir_all("/tmp/t").unwrap();
    assert_eq!(shell(&sandbox, "ls -A /tmp"), "");
}

#[test]
fn paths_that_make_no_sense_are_refused() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = sandbox.files();
    for path in ["", "/tmp/a\0b"] {
        assert!(matches!(files.read_file(path), Err(Error::Invalid { .. })), "{path:?}");
        assert!(matches!(files.rename("/tmp", path), Err(Error::Invalid { .. })), "{path:?}");
    }
    for path in ["/", "/tmp/", "/tmp/.", "/tmp/..", ".", "..", "/tmp/x/"] {
        let result = files.write_file(path, b"x");
        assert!(matches!(result, Err(Error::File { .. })), "{path}: {result:?}");
    }
    for path in ["/", "/tmp/..", "/tmp/.", ".."] {
        let result = files.remove_dir_all(path);
        assert!(matches!(result, Err(Error::File { .. })), "{path}: {result:?}");
    }
    assert_eq!(shell(&sandbox, "cat /etc/passwd | wc -l; ls -d /usr/bin").lines().count(), 2);
    // Of the root there is nothing above.
    shell(&sandbox, "printf inside > /tmp/f");
    assert_eq!(files.read_file("/../../tmp/../../tmp/f").unwrap(), b"inside");
    shell(&sandbox, "ln -s ../../../../../../../tmp/f /tmp/up; ln -s /tmp/f /tmp/absolute");
    assert_eq!(files.read_file("/tmp/up").unwrap(), b"inside");
    assert_eq!(files.read_file("/tmp/absolute").unwrap(), b"inside");
    shell(
        &sandbox,
        "cd /tmp; ln -s loop loop; ln -s f l0; for i in $(seq 45); do ln -s l$((i-1)) l$i; done",
    );
    assert_eq!(errno(files.read_file("/tmp/loop")), Errno::ELOOP);
    assert_eq!(files.read_file("/tmp/l39").unwrap(), b"inside");
    assert_eq!(errno(files.read_file("/tmp/l45")), Errno::ELOOP);
}

#[test]
fn what_is_no_regular_file_is_told_at_once_and_not_touched() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = sandbox.files();
    const PREPARE: &str = "import os, socket
os.chdir('/tmp'); os.mkfifo('fifo'); os.mkfifo('read'); os.mkfifo('written')
s = socket.socket(socket.AF_UNIX); s.bind('socket')
os.truncate(os.open('sparse', os.O_CREAT | os.O_RDWR), 1 << 40)";
    assert!(sandbox.command("python3").args(["-c", PREPARE]).status().unwrap().success());
    // With someone at the other end, who is not to be disturbed.
    let reader = sandbox.shell("cat /tmp/read").background().unwrap();
    let writer = sandbox.shell("exec 3> /tmp/written; echo never").background().unwrap();

    let not_regular = [
        "/tmp/fifo",
        "/tmp/written",
        "/tmp/socket",
        "/dev/zero",
        "/dev/null",
        "/dev/tty",
        "/proc/meminfo",
        "/proc/self/mem",
        "/proc/self/environ",
        "/proc/pressure/cpu",
    ];
    for path in not_regular {
        let result = at_once(path, || files.read_file(path));
        match path {
            // Not on every kernel, and not a guest's to open.
            "/proc/pressure/cpu" | "/proc/self/mem" | "/proc/self/environ" => {
                assert!(matches!(result, Err(Error::File { .. } | Error::NotRegular { .. })));
            }
            _ => assert!(is_not_regular(result), "{path}"),
        }
    }
    for path in ["/tmp/fifo", "/tmp/read", "/tmp/socket", "/dev/zero", "/dev/tty"] {
        for how in [WriteMode::Replace, WriteMode::Truncate, WriteMode::Append] {
            let options = WriteOptions::new().how(how);
            let result = at_once(path, || files.write_with(path, b"x", options));
            assert!(is_not_regular(result), "{path} {how:?}");
        }
    }
    // Masked: an empty file, for commands as for this, and nothing of the kernel's.
    let masked = at_once("kmsg", || files.read_file("/proc/kmsg"));
    assert!(!masked.is_ok_and(|bytes| !bytes.is_empty()));
    assert_eq!(errno(at_once("directory", || files.read_file("/tmp"))), Errno::EISDIR);
    assert_eq!(errno(at_once("directory", || files.write_file("/tmp", b""))), Errno::EISDIR);
    // Magic links lead nowhere.
    for path in ["/proc/self/fd/0", "/proc/self/root/etc/passwd", "/proc/1/root/etc/passwd"] {
        let result = at_once(path, || files.read_file(path));
        assert!(matches!(result, Err(Error::File { .. })), "{path}: {result:?}");
    }
    let sparse = at_once("sparse", || files.read_file("/tmp/sparse"));
    assert!(matches!(sparse, Err(Error::TooLarge { .. })), "{sparse:?}");
    let part = at_once("sparse", || files.read_range("/tmp/sparse", (1 << 40) - 3, 1000));
    assert_eq!(part.unwrap(), [0; 3]);

    assert_eq!(
        shell(&sandbox, "stat -c %F /tmp/fifo /tmp/read /tmp/socket"),
        "fifo\nfifo\nsocket\n"
    );
    for job in [reader, writer] {
        job.kill().unwrap();
        job.wait().unwrap();
    }
}

#[test]
fn a_file_that_someone_holds_a_lease_on_is_not_waited_for() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    // With the filter, there are no leases inside.
    let config = Config { seccomp: Seccomp::Unconfined, ..home.config() };
    let sandbox = Sandbox::create(config).unwrap();
    let files = sandbox.files();
    // F_SETLEASE, F_WRLCK; it ignores that it is asked to let go.
    const HOLD: &str = "import fcntl, os, signal, time
signal.signal(signal.SIGIO, signal.SIG_IGN)
fd = os.open('/tmp/leased', os.O_RDWR | os.O_CREAT)
fcntl.fcntl(fd, 1024, fcntl.F_WRLCK)
print('held', flush=True)
time.sleep(1000)";
    let mut holder = sandbox.command("python3");
    let mut holder = holder
        .args(["-c", HOLD])
        .stdout(adl_runtime::Stdio::piped())
        .kill_on_drop(true)
        .spawn()
        .unwrap();
    let mut held = [0; 5];
    holder.stdout.as_mut().unwrap().read_exact(&mut held).unwrap();
    assert_eq!(errno(at_once("leased", || files.read_file("/tmp/leased"))), Errno::EAGAIN);
    let append = || files.append_file("/tmp/leased", b"x");
    assert_eq!(errno(at_once("leased", append)), Errno::EAGAIN);
    // Neither has this to do with the file that is there, nor does it wait.
    at_once("leased", || files.write_file("/tmp/leased", b"new")).unwrap();
    assert_eq!(files.read_file("/tmp/leased").unwrap(), b"new");
}

#[test]
fn a_file_that_grows_for_ever_ends_at_the_limit() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut writer = sandbox.shell("exec yes > /tmp/grows");
    let mut writer = writer.kill_on_drop(true).spawn().unwrap();
    let mut files = sandbox.files();
    files.limit(8 << 20).timeout(Duration::from_secs(60));
    // It may end before it has grown so far.
    let end = Instant::now() + Duration::from_secs(60);
    loop {
        match files.read_file("/tmp/grows") {
            Err(Error::TooLarge { limit, .. }) => break assert_eq!(limit, 8 << 20),
            Ok(bytes) => assert!(bytes.len() <= 8 << 20),
            Err(Error::File { source, .. }) => assert_eq!(source.kind(), io::ErrorKind::NotFound),
            Err(error) => panic!("{error}"),
        }
        assert!(Instant::now() < end, "it does not grow");
    }
    let begin = files.read_range("/tmp/grows", 0, 6).unwrap();
    assert_eq!(begin, b"y\ny\ny\n");
    writer.kill().unwrap();
}

#[test]
fn streams_move_any_amount_and_tell_their_end_only_if_all_was_read() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = sandbox.files();
    let block: Vec<u8> = (0..1_000_003_u32).map(|n| (n * 7 % 253) as u8).collect();
    let mut writer = files.open_write("/tmp/stream", WriteOptions::new()).unwrap();
    for _ in 0..40 {
        writer.write_all(&block).unwrap();
    }
    assert!(!files.exists("/tmp/stream").unwrap(), "before it is finished there is none");
    writer.finish().unwrap();
    let mut reader = files.open_read("/tmp/stream").unwrap();
    let mut back = vec![0; block.len()];
    for _ in 0..40 {
        reader.read_exact(&mut back).unwrap();
        assert!(back == block);
    }
    assert_eq!(reader.read(&mut back).unwrap(), 0);
    assert_eq!(reader.read(&mut back).unwrap(), 0);

    // Let go in the middle: of one nothing is left, of the other nothing was needed.
    let mut writer = files.open_write("/tmp/stream", WriteOptions::new()).unwrap();
    writer.write_all(&block).unwrap();
    drop(writer);
    drop(files.open_read("/tmp/stream").unwrap());
    let size = files.metadata("/tmp/stream").unwrap().size;
    assert_eq!(size, 40 * block.len() as u64);
    let no_rest = || shell(&sandbox, "ls -A /tmp") == "stream\n";
    assert!(crate::harness::within(SOON, no_rest), "{}", shell(&sandbox, "ls -A /tmp"));

    // The reader's process is killed: not an end, but an error.
    let mut reader = files.open_read("/tmp/stream").unwrap();
    reader.read_exact(&mut back[..1]).unwrap();
    shell(
        &sandbox,
        "pkill -KILL -x adl-file || kill -9 $(grep -lx adl-file /proc/*/comm | tr -dc '0-9\\n')",
    );
    let error = io::copy(&mut reader, &mut io::sink()).unwrap_err();
    assert!(error.get_ref().is_some_and(|inner| inner.is::<Error>()), "{error}");
}

#[test]
fn a_full_disk_is_told_and_the_old_file_stays() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let upper = Upper::Memory { size: 8 << 20 };
    let sandbox = Sandbox::create(Config { upper, ..home.config() }).unwrap();
    let files = sandbox.files();
    files.write_file("/tmp/kept", b"old").unwrap();
    for length in [9 << 20, 64 << 20] {
        let result = files.write_file("/tmp/kept", vec![1; length]);
        assert_eq!(errno(result), Errno::ENOSPC);
        assert_eq!(files.read_file("/tmp/kept").unwrap(), b"old");
    }
    let mut writer = files.open_write("/tmp/kept", WriteOptions::new()).unwrap();
    let error =
        io::copy(&mut io::repeat(1).take(64 << 20), &mut writer).and_then(|_| writer.flush());
    let told = match error {
        Err(error) => error.into_inner().unwrap().downcast::<Error>().unwrap(),
        Ok(()) => Box::new(writer.finish().unwrap_err()),
    };
    assert_eq!(errno::<()>(Err(*told)), Errno::ENOSPC);
    assert_eq!(shell(&sandbox, "ls -A /tmp; cat /tmp/kept"), "kept\nold");
    // There is room again: nothing is left of what did not fit.
    files.write_file("/tmp/fits", vec![1; 6 << 20]).unwrap();
}

#[test]
fn a_caller_that_ends_in_the_middle_leaves_the_old_file_or_the_new() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = sandbox.files();
    files.write_file("/tmp/f", b"old").unwrap();
    // What a caller's end does to a call is to close its pipe, here at any place of the stream.
    let new = vec![b'n'; 3 << 20];
    for written in [0, 1, 4096, 65_536, 1 << 20, (1 << 20) + 7, 3 << 20] {
        let mut writer = files.open_write("/tmp/f", WriteOptions::new()).unwrap();
        writer.write_all(&new[..written]).unwrap();
        writer.flush().unwrap();
        drop(writer);
        assert_eq!(files.read_file("/tmp/f").unwrap(), b"old");
    }
    let no_rest = || shell(&sandbox, "ls -A /tmp") == "f\n";
    assert!(crate::harness::within(SOON, no_rest), "{}", shell(&sandbox, "ls -A /tmp"));

    // And a real end. With its process the sandbox ends, too; what it has left on disk, until it is
    // collected, is the old file.
    let mut helper = Helper::start("write-for-ever", &home.state());
    assert_eq!(helper.next().as_deref(), Some("writing"));
    let members = census::tree(helper.id());
    helper.kill();
    assert!(crate::harness::within(SOON, || members.iter().all(|process| !process.exists())));
    let left = home.state().join("sandboxes/writing/0.upper/tmp/f");
    assert_eq!(std::fs::read(left).unwrap(), b"old");
    assert_eq!(adl_runtime::collect_garbage(Some(&home.state())).unwrap(), ["writing"]);
}

/// The helper of the test above.
pub(crate) fn write_for_ever(state: &Path) {
    let name = Some("writing".to_owned());
    let config = Config { name, state_directory: Some(state.to_owned()), ..Config::default() };
    let sandbox = Sandbox::create(config).unwrap();
    sandbox.files().write_file("/tmp/f", b"old").unwrap();
    let mut writer = sandbox.files().open_write("/tmp/f", WriteOptions::new()).unwrap();
    writer.write_all(&[1; 1 << 20]).unwrap();
    say("writing");
    loop {
        writer.write_all(&[1; 1 << 20]).unwrap();
    }
}

#[test]
fn a_user_can_do_what_its_commands_can_and_no_more() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(
        &sandbox,
        "cd /tmp; chmod 1777 .; umask 022; printf secret > secret; chmod 600 secret
         mkdir closed own; printf x > closed/f; chmod 700 closed; chown 1000:1000 own
         printf mine > own/f; chown 1000:1000 own/f; ln secret own/hard; ln -s /tmp/secret own/soft
         printf group > own/group; chown 0:7 own/group; chmod 640 own/group",
    );
    let root = sandbox.files();
    let mut user = sandbox.files();
    user.user("1000");
    type Call = fn(&Files) -> adl_runtime::Result<()>;
    let denied: [(&str, Call); 12] = [
        ("read", |f| f.read_file("/tmp/secret").map(drop)),
        ("hard link", |f| f.read_file("/tmp/own/hard").map(drop)),
        ("symbolic link", |f| f.read_file("/tmp/own/soft").map(drop)),
        ("append", |f| f.append_file("/tmp/own/hard", b"x")),
        ("chmod", |f| f.set_permissions("/tmp/own/hard", 0o666)),
        ("list", |f| f.list_dir("/tmp/closed").map(drop)),
        ("below", |f| f.metadata("/tmp/closed/f").map(drop)),
        ("make", |f| f.write_file("/etc/new", b"x")),
        ("sticky", |f| f.remove_file("/tmp/secret")),
        ("replace in sticky", |f| f.write_file("/tmp/secret", b"x")),
        ("remove tree", |f| f.remove_dir_all("/tmp/closed")),
        ("chown", |f| f.chown("/tmp/own/f", Some(0), None)),
    ];
    for (what, call) in denied {
        let errno = errno(call(&user));
        assert!([Errno::EACCES, Errno::EPERM].contains(&errno), "{what}: {errno}");
    }
    assert_eq!(shell(&sandbox, "cat /tmp/secret; stat -c %a /tmp/secret"), "secret600\n");
    assert_eq!(errno(user.read_file("/tmp/own/group")), Errno::EACCES);
    assert_eq!(user.clone().groups([7]).read_file("/tmp/own/group").unwrap(), b"group");
    // What is its own it can have, and what it makes is its own.
    assert_eq!(user.read_file("/tmp/own/f").unwrap(), b"mine");
    user.write_file("/tmp/own/new", b"x").unwrap();
    user.create_dir_all("/tmp/own/a/b").unwrap();
    user.remove_file("/tmp/own/hard").unwrap();
    assert_eq!(shell(&sandbox, "stat -c %u /tmp/own/new /tmp/own/a/b"), "1000\n1000\n");
    // The same calls, and nothing is in root's way.
    for (what, call) in denied.into_iter().filter(|(what, _)| !what.contains("hard link")) {
        if !["append", "chmod"].contains(&what) {
            call(&root).unwrap_or_else(|error| panic!("{what}: {error}"));
        }
    }
    let unknown = sandbox.files().user("no-such-user").read_file("/etc/passwd").unwrap_err();
    assert!(matches!(unknown, Error::Start { .. }), "{unknown}");
}

#[test]
fn a_large_directory_is_listed_whole_or_by_pages() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    const MAKE: &str = "import os
os.mkdir('/tmp/many'); os.chdir('/tmp/many')
for i in range(30000): os.close(os.open('n' * 200 + str(i), os.O_CREAT))";
    assert!(sandbox.command("python3").args(["-c", MAKE]).status().unwrap().success());
    let files = patient_files(&sandbox);
    // 6 MB of names: more than one answer holds.
    let all = files.list_dir("/tmp/many").unwrap();
    let mut names: Vec<_> = all.iter().map(|entry| &entry.name).collect();
    names.sort();
    names.dedup();
    assert_eq!((all.len(), names.len()), (30_000, 30_000));
    let (mut paged, mut from) = (Vec::new(), None);
    loop {
        let (page, next) = files.list_dir_page("/tmp/many", from, 7000).unwrap();
        assert!(page.len() <= 7000);
        paged.extend(page);
        match next {
            Some(next) => from = Some(next),
            None => break,
        }
    }
    assert_eq!(paged, all);
    let result = files.clone().entry_limit(29_999).list_dir("/tmp/many");
    assert!(matches!(result, Err(Error::TooLarge { .. })));
    assert_eq!(files.clone().entry_limit(30_000).list_dir("/tmp/many").unwrap().len(), 30_000);
    assert!(files.list_dir("/tmp/many/..").unwrap().len() == 1);
}

#[test]
fn a_call_that_is_held_up_inside_ends_with_its_time() {
    if !needs(&[]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(&sandbox, "head -c 100M /dev/zero > /tmp/large");
    // Stops each as soon as it sees it.
    const STOP: &str = "while :; do for c in /proc/[0-9]*/comm; do read -r name < $c || continue
        case $name in adl-file) p=${c%/comm}; kill -STOP ${p#/proc/}; esac; done 2> /dev/null; done";
    let stopper = sandbox.shell(STOP).background().unwrap();
    let timeout = Duration::from_millis(200);
    let mut files = sandbox.files();
    files.timeout(timeout);
    let mut held_up = 0;
    let end = Instant::now() + Duration::from_secs(90);
    while held_up < 5 && Instant::now() < end {
        let begin = Instant::now();
        let result = files.read_file("/tmp/large");
        let took = begin.elapsed();
        assert!(took < timeout + at_most(Duration::from_millis(50)), "{took:?}");
        match result {
            Err(Error::TimedOut { after, .. }) => {
                assert_eq!(after, timeout);
                held_up += 1;
            }
            Err(Error::TooLarge { .. }) => {}
            other => panic!("{:?}", other.map(|bytes| bytes.len())),
        }
    }
    assert_eq!(held_up, 5, "none was held up");
    stopper.kill().unwrap();
    assert_eq!(stopper.wait().unwrap().status.reason(), EndReason::Signaled);
    let gone = || shell(&sandbox, "grep -lx adl-file /proc/[0-9]*/comm || true").is_empty();
    assert!(crate::harness::within(SOON, gone));
    assert_eq!(files.read_range("/tmp/large", 0, 3).unwrap(), [0; 3]);
}

#[test]
fn calls_of_a_sandbox_that_has_died_say_so() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = sandbox.files();
    let mut writer = files.open_write("/tmp/f", WriteOptions::new()).unwrap();
    writer.write_all(b"x").unwrap();
    let init = nix::unistd::Pid::from_raw(sandbox.init_pid());
    nix::sys::signal::kill(init, nix::sys::signal::Signal::SIGKILL).unwrap();
    assert!(matches!(writer.finish(), Err(Error::SandboxDied)));
    let result = at_once("after its death", || files.read_file("/etc/passwd"));
    assert!(matches!(result, Err(Error::SandboxDied)), "{result:?}");
    let result = at_once("after its death", || files.write_file("/tmp/f", vec![1; 10 << 20]));
    assert!(matches!(result, Err(Error::SandboxDied)), "{result:?}");
}

#[test]
fn many_streams_at_once_leave_room_for_commands() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = sandbox.files();
    let mut writers: Vec<_> = (0..200)
        .map(|n| files.open_write(format!("/tmp/{n}"), WriteOptions::new()).unwrap())
        .collect();
    for writer in &mut writers {
        writer.write_all(b"x").unwrap();
    }
    assert_eq!(shell(&sandbox, "echo here"), "here\n");
    for writer in writers {
        writer.finish().unwrap();
    }
    assert_eq!(shell(&sandbox, "cat /tmp/* | wc -c"), "200\n");
}

#[test]
fn a_part_is_bounded_and_what_is_too_large_is_not_finished() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let mut files = sandbox.files();
    files.write_file("/tmp/file", vec![b'x'; 100]).unwrap();
    files.limit(10);
    assert_eq!(files.read_range("/tmp/file", 0, 10).unwrap().len(), 10);
    assert_eq!(files.read_range("/tmp/file", 95, u64::MAX).unwrap().len(), 5);
    let large = files.read_range("/tmp/file", 0, 11);
    assert!(matches!(large, Err(Error::TooLarge { limit: 10, .. })), "{large:?}");
    let mut writer = files.open_write("/tmp/file", WriteOptions::new()).unwrap();
    writer.write_all(&[b'y'; 8]).unwrap();
    assert!(writer.write_all(&[b'y'; 8]).is_err());
    assert!(writer.finish().is_err());
    assert_eq!(files.limit(1000).read_file("/tmp/file").unwrap(), [b'x'; 100]);
}
