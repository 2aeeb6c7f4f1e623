//! What a guest puts in the place of a file.

use std::fs;
use std::io::Read;
use std::path::Path;
use std::time::Duration;

use adl_runtime::{Config, Error, FileKind, Result, Sandbox, Seccomp, WriteMode, WriteOptions};
use nix::errno::Errno;

use crate::harness::{Home, Need, at_most, needs, shell};
use crate::jobs::{SOON, alone};

use super::{Guest, errno, in_time};

/// Puts in place all that is no file, and holds it.
const SPECIAL: &str = r"
import fcntl, os, socket, struct, sys, threading
os.mkdir('/tmp/s'); os.chdir('/tmp/s')
for name in ['fifo', 'fifo-read', 'fifo-written']: os.mkfifo(name)
held = [os.open('fifo-read', os.O_RDONLY | os.O_NONBLOCK), os.open('fifo-written', os.O_RDWR)]
os.write(held[1], b'from a fifo')
s = socket.socket(socket.AF_UNIX); s.bind('socket'); s.listen()
os.symlink('loop', 'loop')
os.symlink('nowhere', 'dangling')
open('plain', 'w').write('content')
os.symlink('plain', 'chain-0')
for n in range(1, 40): os.symlink('chain-%d' % (n - 1), 'chain-%d' % n)
os.symlink('chain-39', 'chain-40')
for name in ['flock', 'ofd', 'lease', 'shared-lease']: open(name, 'w').write('content')
f = open('flock', 'r+'); fcntl.flock(f, fcntl.LOCK_EX)
o = open('ofd', 'r+'); fcntl.fcntl(o, 37, struct.pack('hhqqi4x', fcntl.F_WRLCK, 0, 0, 0, 0))
import signal
signal.signal(signal.SIGIO, signal.SIG_IGN)
l = os.open('lease', os.O_RDWR); fcntl.fcntl(l, 1024, fcntl.F_WRLCK)
r = os.open('shared-lease', os.O_RDONLY); fcntl.fcntl(r, 1024, fcntl.F_RDLCK)
big = open('sparse', 'w'); big.truncate(1 << 40)
os.symlink('/proc/self/fd/0', 'magic')
def grow():
    g = os.open('growing', os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    while True:
        if os.lseek(g, 0, os.SEEK_END) < 1 << 28: os.write(g, b'x' * 65536)
        else: os.ftruncate(g, 0)
threading.Thread(target=grow, daemon=True).start()
while not os.path.exists('growing') or os.path.getsize('growing') < 1 << 16: pass
print('ready', flush=True)
sys.stdin.read()
os._exit(0)
";

#[test]
fn what_is_no_file_is_an_error_at_once() {
    use Errno::{EACCES, EAGAIN, EISDIR, ELOOP, ENOENT, EPERM};
    /// What is said of something that can't be read.
    #[derive(Clone, Copy)]
    enum Said {
        Content(&'static [u8]),
        NotRegular,
        TooLarge,
        Kernel(&'static [Errno]),
    }
    use Said::{Content, Kernel, NotRegular, TooLarge};
    const AT_ONCE: Duration = Duration::from_millis(100);
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let _alone = alone();
    let home = Home::new();
    // With the filter, there are no leases inside.
    let config = Config { seccomp: Seccomp::Unconfined, ..home.config() };
    let sandbox = Sandbox::create(config).unwrap();
    let mut guest = Guest::start(&sandbox, 0, SPECIAL, &[]);
    let mut files = sandbox.files();
    files.current_dir("/tmp/s").timeout(at_most(SOON)).limit(1 << 20);
    let cases = [
        ("plain", Content(b"content")),
        ("fifo", NotRegular),
        ("fifo-read", NotRegular),
        ("fifo-written", NotRegular),
        ("socket", NotRegular),
        ("/dev/null", NotRegular),
        ("/dev/zero", NotRegular),
        ("/dev/full", NotRegular),
        ("/dev/random", NotRegular),
        ("/dev/urandom", NotRegular),
        ("/dev/tty", NotRegular),
        ("/dev/ptmx", NotRegular),
        ("/dev", Kernel(&[EISDIR])),
        (".", Kernel(&[EISDIR])),
        ("/", Kernel(&[EISDIR])),
        ("/proc/self/mem", Kernel(&[EACCES])),
        ("/proc/uptime", NotRegular),
        ("/proc/self/fd/0", Kernel(&[ELOOP])),
        ("/proc/self/exe", Kernel(&[ELOOP])),
        ("/proc/self/root/etc/passwd", Kernel(&[ELOOP])),
        ("magic", Kernel(&[ELOOP])),
        ("loop", Kernel(&[ELOOP])),
        ("dangling", Kernel(&[ENOENT])),
        // The kernel's own bound (path_resolution(7)) is 40.
        ("chain-39", Content(b"content")),
        ("chain-40", Kernel(&[ELOOP])),
        ("flock", Content(b"content")),
        ("ofd", Content(b"content")),
        ("shared-lease", Content(b"content")),
        ("sparse", TooLarge),
    ];
    // Masked, as what the kernel hides is refused by it.
    let hidden = ["/proc/kmsg", "/proc/keys"].map(|path| (path, NotRegular));
    let refused = ["/proc/1/environ", "/proc/1/mem", "/proc/kcore"];
    let refused = refused.map(|path| (path, Kernel(&[EACCES, EPERM, ENOENT, EISDIR])));
    let hidden = [hidden.as_slice(), &refused].concat();
    for (path, said) in cases.iter().chain(&hidden) {
        let read = in_time(AT_ONCE, || files.read_file(path));
        let mut streamed = Vec::new();
        let stream = in_time(AT_ONCE, || files.open_read(path).unwrap().read_to_end(&mut streamed));
        match (read, said) {
            (Ok(bytes), Content(content)) => {
                assert_eq!(bytes, *content, "{path}");
                assert_eq!(streamed, *content, "{path}");
                continue;
            }
            (Err(Error::NotRegular { .. }), NotRegular | Kernel([EACCES, ..])) => {}
            (Err(Error::TooLarge { .. }), TooLarge) => {}
            (Err(error), Kernel(any)) if errno(&error).is_some_and(|e| any.contains(&e)) => {}
            (other, _) => panic!("{path}: {other:?}"),
        }
        assert!(stream.is_err(), "{path}");
        // A few bytes are as little to be had as all.
        let part = in_time(AT_ONCE, || files.read_range(path, 0, 10));
        assert!(part.is_err() || *path == "sparse", "{path}: {part:?}");
    }
    // A lease is not waited for, nor its holder: 45 s, where the kernel would.
    let leased = in_time(AT_ONCE, || files.read_file("lease")).unwrap_err();
    assert_eq!(errno(&leased), Some(EAGAIN), "{leased:?}");
    let leased = in_time(AT_ONCE, || files.append_file("shared-lease", "x")).unwrap_err();
    assert_eq!(errno(&leased), Some(EAGAIN), "{leased:?}");
    // One that grows all the time is read up to the limit, or at a moment when it is short.
    for _ in 0..20 {
        let read = in_time(AT_ONCE, || files.read_file("growing"));
        match read {
            Ok(bytes) => {
                assert!(bytes.len() <= 1 << 20 && bytes.iter().all(|b| *b == b'x' || *b == 0))
            }
            Err(Error::TooLarge { .. }) => {}
            Err(error) => panic!("{error:?}"),
        }
    }
    // Into none of them is anything written, and none is replaced by what looks like a success.
    for path in
        ["fifo", "fifo-read", "fifo-written", "socket", "/dev/zero", "/dev", ".", "/proc/uptime"]
    {
        for how in
            [WriteMode::Replace, WriteMode::Truncate, WriteMode::Append, WriteMode::CreateNew]
        {
            let options = WriteOptions::new().how(how);
            let made = in_time(AT_ONCE, || files.write_with(path, "x", options));
            assert!(made.is_err(), "{path} {how:?}");
        }
    }
    assert_eq!(shell(&sandbox, "cd /tmp/s; ls -A | grep -c ^.adl || true"), "0\n");
    // Copies leave them out, and read no more than what is a file.
    let report = in_time(Duration::from_secs(10), || {
        let mut files = files.clone();
        files.limit(1 << 30);
        fs::create_dir(home.path("out")).unwrap();
        for path in ["fifo", "fifo-written", "socket", "/dev/zero", "/dev/tty"] {
            let report = files.copy_out(path, home.path("out/special")).unwrap();
            assert_eq!((report.files, report.skipped.len()), (0, 1), "{path}");
            assert!(!home.path("out/special").exists());
        }
        files.copy_out("/dev", home.path("out/dev")).unwrap()
    });
    assert_eq!(report.files, 0);
    assert!(report.skipped.iter().any(|s| s.path == Path::new("zero")
        && matches!(s.kind, FileKind::CharacterDevice | FileKind::Mount)));
    drop(guest.0.stdin.take());
}

#[test]
fn no_call_goes_through_a_magic_link() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = sandbox.files();
    // To what the job is: for it, that is init's program, and the host's pipes.
    shell(&sandbox, "ln -s /proc/self/exe /tmp/exe; ln -s /proc/self/fd/3 /tmp/channel");
    for path in ["/tmp/exe", "/tmp/channel", "/proc/self/exe", "/proc/self/fd/0"] {
        let chain: [(&str, Result<()>); 5] = [
            ("read", files.read_file(path).map(drop)),
            ("stat", files.metadata(path).map(drop)),
            ("chown", files.chown(path, Some(0), None)),
            ("append", files.append_file(path, "x")),
            ("chmod", files.set_permissions(path, 0o711)),
        ];
        for (call, made) in chain {
            let error = made.expect_err(call);
            assert_eq!(errno(&error), Some(Errno::ELOOP), "{call} {path}: {error:?}");
        }
    }
}
