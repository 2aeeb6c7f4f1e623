//! What `adl run` moves between its own standard streams and those of the command.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::process::ExitStatusExt;
use std::process::{Child, Command, ExitStatus, Stdio};
use std::time::{Duration, Instant};

use nix::fcntl::{FcntlArg, Flock, FlockArg, OFlag, fcntl};
use nix::pty::openpty;
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::harness::{Home, Need, adl_command, at_most, needs, stderr, succeeds};

/// What a command that is not held up takes, and far less than what holds it up here.
const SOON: Duration = Duration::from_secs(20);

fn run(home: &Home, script: &str) -> Command {
    let mut adl = adl_command(&home.state());
    adl.args(["run", "--", "sh", "-c", script]);
    adl
}

/// Does to each of its streams what would outlive it on those of the caller.
const ATTACK: &str = "import fcntl, os
for fd in 0, 1, 2:
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
    for act in lambda: fcntl.ioctl(fd, 0x540c), lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB):
        try: act()
        except OSError: pass
    try: os.write(0, b'written to stdin')
    except OSError: pass
os.fork() or os.execvp('sleep', ['sleep', '1000'])";

#[test]
fn what_the_caller_has_open_is_out_of_reach() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let path = home.path("file");
    fs::write(&path, "content").unwrap();
    let file = File::options().read(true).write(true).open(&path).unwrap();
    let pty = openpty(None, None).unwrap();
    let own = |fd: &OwnedFd| Stdio::from(fd.try_clone().unwrap());
    let attack = |mut command: Command| {
        command.stdin(file.try_clone().unwrap()).stdout(own(&pty.slave)).stderr(own(&pty.slave));
        command.status().unwrap()
    };
    // TIOCGEXCL, as the terminal tells it to who opens it.
    let is_changed = || {
        let flags = OFlag::from_bits_retain(fcntl(&pty.slave, FcntlArg::F_GETFL).unwrap());
        let of_file = OFlag::from_bits_retain(fcntl(&file, FcntlArg::F_GETFL).unwrap());
        let lock = Flock::lock(File::open(&path).unwrap(), FlockArg::LockExclusiveNonblock);
        let changed = (flags | of_file).contains(OFlag::O_NONBLOCK) || lock.is_err();
        let excluded = succeeds(
            Command::new("python3")
                .arg("-c")
                .arg(
                    "import fcntl, struct
print(struct.unpack('i', fcntl.ioctl(0, 0x80045440, bytes(4)))[0])",
                )
                .stdin(own(&pty.slave)),
        );
        (changed, excluded.trim() != "0", fs::read(&path).unwrap() != b"content")
    };
    assert_eq!(is_changed(), (false, false, false));
    let mut adl = adl_command(&home.state());
    adl.args(["run", "--", "python3", "-c", ATTACK]);
    assert!(attack(adl).success());
    assert_eq!(is_changed(), (false, false, false));
    // The attack is one: by a program that has them.
    let (to_the_end, _) = ATTACK.rsplit_once('\n').unwrap();
    let mut host = Command::new("python3");
    host.args(["-c", to_the_end]);
    assert!(attack(host).success());
    assert_eq!(is_changed(), (true, true, true));
}

#[test]
fn a_terminal_without_tty_is_read_and_written_through_pipes() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let pty = openpty(None, None).unwrap();
    let own = || Stdio::from(pty.slave.try_clone().unwrap());
    let script = "test -t 0 || test -t 1 || test -t 2 || echo pipes; read a; echo got $a; cat";
    let mut adl = run(&home, script).stdin(own()).stdout(own()).stderr(own()).spawn().unwrap();
    let mut master = File::from(pty.master.try_clone().unwrap());
    let mut shown = String::new();
    let mut shows = |master: &mut File, what: &str| {
        let mut bytes = [0; 1024];
        while !shown.contains(what) {
            let count = master.read(&mut bytes).unwrap();
            shown.push_str(str::from_utf8(&bytes[..count]).unwrap());
        }
    };
    shows(&mut master, "pipes\r\n");
    master.write_all(b"line\n").unwrap();
    shows(&mut master, "got line\r\n");
    master.write_all(b"more\n").unwrap();
    shows(&mut master, "more\r\nmore\r\n");
    // The end of input, as it is typed.
    master.write_all(b"\x04").unwrap();
    assert!(adl.wait().unwrap().success());
}

#[test]
fn any_bytes_come_through_in_any_number() {
    if !needs(&[Need::Program("cmp")]) {
        return;
    }
    const LENGTH: usize = 16 << 20;
    let home = Home::new();
    let mut random = 0x9e37_79b9_u32;
    let bytes: Vec<u8> = (0..LENGTH / 4)
        .flat_map(|_| {
            random ^= random << 13;
            random ^= random >> 17;
            random ^= random << 5;
            random.to_ne_bytes()
        })
        .collect();
    let (input, output) = (home.path("input"), home.path("output"));
    fs::write(&input, &bytes).unwrap();
    // Files, which never wait, and pipes, which do.
    let mut adl = run(&home, "cat");
    adl.stdin(File::open(&input).unwrap()).stdout(File::create(&output).unwrap());
    assert!(adl.status().unwrap().success());
    assert!(fs::read(&output).unwrap() == bytes);
    let mut adl =
        run(&home, "cat >&2").stdin(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    let (mut stdin, mut stderr) = (adl.stdin.take().unwrap(), adl.stderr.take().unwrap());
    let mut read = Vec::new();
    std::thread::scope(|scope| {
        scope.spawn(move || stdin.write_all(&bytes).unwrap());
        stderr.read_to_end(&mut read).unwrap();
    });
    let peak = fs::read_to_string(format!("/proc/{}/status", adl.id())).unwrap_or_default();
    assert!(adl.wait().unwrap().success());
    assert!(read == fs::read(&input).unwrap());
    let peak = peak.lines().find_map(|line| line.strip_prefix("VmHWM:")).map(str::trim);
    let peak = peak.and_then(|peak| peak.strip_suffix(" kB")?.parse::<usize>().ok());
    assert!(peak.is_none_or(|peak| peak < 32 << 10), "{peak:?} KiB");
}

#[test]
fn the_end_of_the_command_is_that_of_adl_and_nothing_written_is_lost() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let begin = Instant::now();
    // What is left in the background holds the pipes, and writes.
    let output =
        run(&home, "(while :; do sleep 0.01; echo more; done) & head -c 60000 /dev/zero; exit 7")
            .output()
            .unwrap();
    assert_eq!(output.status.code(), Some(7));
    let zeros = output.stdout.iter().filter(|byte| **byte == 0).count();
    assert_eq!(zeros, 60_000);
    // A stdin that never ends, and that no one reads.
    let mut yes = Command::new("yes").stdout(Stdio::piped()).spawn().unwrap();
    let stdin = yes.stdout.take().unwrap();
    let output = run(&home, "echo done").stdin(stdin).output().unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"done\n"[..]));
    assert_eq!(yes.wait().unwrap().signal(), Some(13));
    assert!(begin.elapsed() < at_most(SOON), "{:?}", begin.elapsed());
}

#[test]
fn what_can_not_be_written_is_told() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    // No one reads: as in a shell, the command learns of it.
    let mut adl = run(&home, "exec yes");
    let mut adl = adl.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
    adl.stdout.take().unwrap().read_exact(&mut [0; 100]).unwrap();
    let output = adl.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &*stderr(&output)), (Some(128 + 13), ""));
    // There is no room.
    let full = File::options().write(true).open("/dev/full").unwrap();
    let output = run(&home, "echo text; exit 0").stdout(full).output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    assert!(
        stderr(&output).starts_with("adl: write to stdout: No space left"),
        "{}",
        stderr(&output)
    );
}

#[test]
fn a_reader_that_stalls_holds_up_no_end_by_the_clock() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    // What adl has to say itself goes there, too, in the one case.
    for (is_merged, options) in [(true, "-i"), (false, "-i"), (true, "-it"), (false, "-it")] {
        let pty = openpty(None, None).unwrap();
        let (_unread, full) = std::io::pipe().unwrap();
        let mut adl = adl_command(&home.state());
        adl.args(["run", options, "--timeout", "200ms", "--", "yes"]);
        let both = full.try_clone().unwrap();
        let stderr = if is_merged { Stdio::from(both) } else { Stdio::piped() };
        let mut adl = adl.stdin(pty.slave).stdout(full).stderr(stderr).spawn().unwrap();
        assert_eq!(ends(&mut adl).code(), Some(124), "{options}");
        let mut told = String::new();
        if let Some(mut stderr) = adl.stderr.take() {
            stderr.read_to_string(&mut told).unwrap();
            assert!(told.contains("was not read") && told.contains("longer than 200ms"), "{told}");
        }
    }
    // Nor an end by a signal that is passed on.
    let (mut read, full) = std::io::pipe().unwrap();
    let mut adl = run(&home, "exec yes").stdout(full).spawn().unwrap();
    read.read_exact(&mut [0; 2]).unwrap();
    kill(Pid::from_raw(adl.id().cast_signed()), Signal::SIGTERM).unwrap();
    assert_eq!(ends(&mut adl).code(), Some(128 + 15));
}

/// Waits for its end, no longer than that takes where nothing holds it up.
#[track_caller]
fn ends(adl: &mut Child) -> ExitStatus {
    let begin = Instant::now();
    loop {
        match adl.try_wait().unwrap() {
            Some(status) => return status,
            None if begin.elapsed() > at_most(SOON) => {
                adl.kill().unwrap();
                adl.wait().unwrap();
                panic!("it hangs");
            }
            None => std::thread::sleep(Duration::from_millis(10)),
        }
    }
}

#[test]
fn two_streams_of_one_place_stay_in_order_and_none_stays_none() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let path = home.path("both");
    let both = File::create(&path).unwrap();
    let mut adl = run(&home, "for i in $(seq 500); do echo $i; echo $i >&2; done");
    adl.stdout(both.try_clone().unwrap()).stderr(both);
    assert!(adl.status().unwrap().success());
    let expected: String = (1..=500).map(|i| format!("{i}\n{i}\n")).collect();
    assert!(fs::read_to_string(&path).unwrap() == expected);
    let mut adl = run(&home, "stat -Lc %t,%T /proc/self/fd/0 /proc/self/fd/2");
    let output = adl.stderr(Stdio::null()).output().unwrap();
    assert_eq!(output.stdout, b"1,3\n1,3\n");
}

#[test]
fn of_a_file_that_is_stdin_the_command_takes_what_it_reads() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let path = home.path("lines");
    fs::write(&path, "one\ntwo\nthree\n").unwrap();
    let mut file = File::open(&path).unwrap();
    for (script, position) in [("true", 0), ("read a; echo $a", 4), ("read a; read a", 14)] {
        assert!(run(&home, script).stdin(file.try_clone().unwrap()).status().unwrap().success());
        assert_eq!(file.stream_position().unwrap(), position, "{script}");
    }
    file.seek(SeekFrom::Start(0)).unwrap();
    let output = run(&home, "cat").stdin(file.try_clone().unwrap()).output().unwrap();
    assert_eq!((&*output.stdout, file.stream_position().unwrap()), (&b"one\ntwo\nthree\n"[..], 14));
}
