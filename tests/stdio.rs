//! What a command can do with its streams by their names, and what it can't with the caller's.

use std::fs::{self, File};
use std::io::{Read, Seek, SeekFrom, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::MetadataExt;
use std::os::unix::net::UnixStream;
use std::time::Duration;

use adl_runtime::{Command, EndReason, Error, ErrorKind, ExitStatus, Output, Sandbox, Stdio};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::pty::openpty;
use nix::sys::signal::Signal;

use crate::harness::{Home, Need, adl_command, at_most, needs, shell, stderr, succeeds};

/// Opens each of its streams again, by each name that there is.
const AGAIN: &str = "set -e
cat /dev/stdin
echo out > /dev/stdout
echo more >> /proc/self/fd/1
echo err | tee /dev/stderr > /dev/null
: < /proc/self/fd/0";

/// Root, a number, and a name where there are several users.
fn users(sandbox: &Sandbox) -> &'static [&'static str] {
    if sandbox.id_range().is_some() { &["0", "1234:99", "nobody"] } else { &["0"] }
}

#[track_caller]
fn check(output: &Output, what: &str) {
    let told = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{what}: {}: {told}", output.status);
    assert_eq!((&output.stdout[..], &*told), (&b"in\nout\nmore\n"[..], "err\n"), "{what}");
}

#[test]
fn what_no_stream_was_asked_for_is_the_null_device_by_its_name() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    // The first of a process, and one that is made in another way.
    for sandbox in [home.sandbox(), home.sandbox(), home.sandbox()] {
        assert_eq!(shell(&sandbox, "readlink /proc/self/fd/0"), "/dev/null\n");
        let same = "test /proc/self/fd/0 -ef /dev/null && echo the same";
        assert_eq!(shell(&sandbox, same), "the same\n");
    }
}

#[test]
fn streams_can_be_opened_again_by_whoever_runs_the_command() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    for user in users(&sandbox) {
        let again = || {
            let mut command = sandbox.shell(AGAIN);
            command.user(user);
            command
        };
        check(&again().input("in\n").output().unwrap(), user);
        check(&again().input("in\n").background().unwrap().wait().unwrap(), user);

        let mut spawned = again();
        spawned.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = spawned.spawn().unwrap();
        child.stdin.take().unwrap().write_all(b"in\n").unwrap();
        check(&child.wait_with_output().unwrap(), user);

        // Nowhere, and a terminal.
        let mut null =
            sandbox.shell("cat /dev/stdin && echo x > /dev/stdout && echo y > /dev/stderr");
        assert!(null.user(user).status().unwrap().success(), "{user}");
        let mut terminal = sandbox.shell("echo x > /dev/stdout && echo y > /dev/stderr");
        let output = terminal.user(user).terminal(24, 80).output().unwrap();
        assert!(output.status.success(), "{user}: {}", output.status);
        assert_eq!(output.stdout, b"x\r\ny\r\n", "{user}");
    }
}

#[test]
fn logs_that_are_links_to_the_streams_are_written_to() {
    if !needs(&[Need::Debian]) {
        return;
    }
    // As the image of nginx has them.
    let home = Home::new();
    let sandbox = home.sandbox_of(adl_runtime::Image::directory(crate::images::debian().unwrap()));
    shell(
        &sandbox,
        "mkdir /var/log/nginx && ln -s /dev/stdout /var/log/nginx/access.log &&
         ln -s /dev/stderr /var/log/nginx/error.log",
    );
    let script = "echo GET / >> /var/log/nginx/access.log; echo late >> /var/log/nginx/error.log";
    for user in users(&sandbox) {
        let (stdout, stderr) = (home.path("access"), home.path("error"));
        let create = |path| File::create(path).unwrap();
        let mut server = sandbox.shell(script);
        server.user(user).stdout(create(&stdout)).stderr(create(&stderr));
        let ways: [fn(&mut Command) -> adl_runtime::ExitStatus; 4] = [
            |command| command.status().unwrap(),
            |command| command.output().unwrap().status,
            |command| command.spawn().unwrap().wait().unwrap(),
            |command| command.background().unwrap().wait().unwrap().status,
        ];
        for (number, way) in ways.into_iter().enumerate() {
            let before = [&stdout, &stderr].map(|path| {
                let m = fs::metadata(path).unwrap();
                (m.uid(), m.gid(), m.mode())
            });
            assert!(way(&mut server).success(), "{user}, {number}");
            // Nothing about the caller's file has changed but what is in it.
            let after = [&stdout, &stderr].map(|path| {
                let m = fs::metadata(path).unwrap();
                (m.uid(), m.gid(), m.mode())
            });
            assert_eq!(before, after, "{user}, {number}");
        }
        assert_eq!(fs::read_to_string(&stdout).unwrap(), "GET /\n".repeat(4), "{user}");
        assert_eq!(fs::read_to_string(&stderr).unwrap(), "late\n".repeat(4), "{user}");
    }
}

#[test]
fn adl_run_gives_streams_that_can_be_opened_again() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let range = home.sandbox().id_range().is_some();
    for user in if range { &["0", "1234"][..] } else { &["0"] } {
        let run = || {
            let mut adl = adl_command(&home.state());
            adl.args(["run", "--user", user, "--", "sh", "-c", AGAIN]);
            adl
        };
        let (input, out, err) = (home.path("in"), home.path("out"), home.path("err"));
        fs::write(&input, "in\n").unwrap();
        // Files, then pipes.
        let mut adl = run();
        adl.stdin(File::open(&input).unwrap());
        adl.stdout(File::create(&out).unwrap()).stderr(File::create(&err).unwrap());
        assert!(adl.status().unwrap().success(), "{}", fs::read_to_string(&err).unwrap());
        assert_eq!(fs::read_to_string(&out).unwrap(), "in\nout\nmore\n");
        assert_eq!(fs::read_to_string(&err).unwrap(), "err\n");
        let output = run().stdin(File::open(&input).unwrap()).output().unwrap();
        assert!(output.status.success(), "{}", stderr(&output));
        assert_eq!((&output.stdout[..], &*stderr(&output)), (&b"in\nout\nmore\n"[..], "err\n"));
        // A terminal, with and without one inside.
        for options in [&["run", "-t"][..], &["run"]] {
            let pty = openpty(None, None).unwrap();
            let own = || std::process::Stdio::from(pty.slave.try_clone().unwrap());
            let mut adl = adl_command(&home.state());
            adl.args(options).args(["--user", user, "--", "sh", "-c"]);
            adl.arg("echo out > /dev/stdout && echo err > /dev/stderr && echo done");
            assert!(adl.stdin(own()).stdout(own()).stderr(own()).status().unwrap().success());
            let mut shown = vec![0; 4096];
            let count = File::from(pty.master).read(&mut shown).unwrap();
            let shown = String::from_utf8_lossy(&shown[..count]).into_owned();
            assert!(shown.contains("out\r\nerr\r\ndone\r\n"), "{options:?}: {shown}");
        }
    }
}

/// Does to each of its streams what would outlive it on those of the caller.
const ATTACK: &str = "import fcntl, os
for fd in 0, 1:
    fcntl.fcntl(fd, fcntl.F_SETFL, fcntl.fcntl(fd, fcntl.F_GETFL) | os.O_NONBLOCK)
    for act in lambda: fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB), lambda: os.lseek(fd, 3, 0), \\
               lambda: os.fchmod(fd, 0o777), lambda: os.ftruncate(fd, 0):
        try: act()
        except OSError: pass
os.fork() or os.execvp('sleep', ['sleep', '1000'])";

#[test]
fn what_is_given_to_a_command_is_out_of_its_reach() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let attack = |direct: bool| {
        let path = home.path(if direct { "direct" } else { "relayed" });
        fs::write(&path, "content").unwrap();
        let mut input = File::open(&path).unwrap();
        let output = File::options().write(true).open(&path).unwrap();
        let stdio = |file: &File| {
            let file = OwnedFd::from(file.try_clone().unwrap());
            if direct { Stdio::direct(file) } else { file.into() }
        };
        let mut python = sandbox.command("python3");
        python.args(["-c", ATTACK]).stdin(stdio(&input)).stdout(stdio(&output));
        assert!(python.status().unwrap().success());
        let flags = fcntl(&input, FcntlArg::F_GETFL).unwrap();
        let is_nonblocking = OFlag::from_bits_retain(flags).contains(OFlag::O_NONBLOCK);
        let is_locked = File::open(&path).unwrap().try_lock().is_err();
        let is_moved = input.stream_position().unwrap() != 0;
        let is_emptied = fs::read(&path).unwrap() != b"content";
        [is_nonblocking, is_locked, is_moved, is_emptied]
    };
    assert_eq!(attack(false), [false; 4]);
    // The attack is one.
    assert_eq!(attack(true), [true; 4]);
}

#[test]
fn a_descriptor_itself_stays_whose_it_is() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let path = home.path("file");
    let run = |stdout: Stdio| {
        let mut command = sandbox.shell("echo by number; echo by name >> /dev/stdout");
        let succeeds = command.user("1234").stdout(stdout).status().unwrap().success();
        (succeeds, fs::read_to_string(&path).unwrap(), fs::metadata(&path).unwrap().uid())
    };
    let by_number = "by number\n".to_owned();
    assert_eq!(run(Stdio::direct(File::create(&path).unwrap())), (false, by_number.clone(), 0));
    let both = by_number + "by name\n";
    assert_eq!(run(File::create(&path).unwrap().into()), (true, both, 0));
    // The pipe of another command is passed on as it is.
    let mut first = sandbox.shell("echo from the first");
    let mut first = first.user("1234").stdout(Stdio::piped()).spawn().unwrap();
    let mut second = sandbox.command("cat");
    let output = second.user("1234").arg("/dev/stdin").stdin(first.stdout.take().unwrap()).output();
    assert_eq!(output.unwrap().stdout, b"from the first\n");
    assert!(first.wait().unwrap().success());
}

#[test]
fn of_a_file_a_command_takes_what_it_reads_and_no_more() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let path = home.path("lines");
    let lines: String = (0..20_000).map(|number| format!("{number}\n")).collect();
    fs::write(&path, &lines).unwrap();
    let ways: [fn(&mut Command) -> bool; 3] = [
        |command| command.status().unwrap().success(),
        |command| command.spawn().unwrap().wait().unwrap().success(),
        |command| command.background().unwrap().wait().unwrap().status.success(),
    ];
    for way in ways {
        let mut file = File::open(&path).unwrap();
        let mut head = sandbox.shell("read a && read b && test $a$b = 01");
        assert!(way(head.stdin(file.try_clone().unwrap())));
        let mut rest = String::new();
        file.read_to_string(&mut rest).unwrap();
        assert!(rest.starts_with("2\n3\n") && rest.len() == lines.len() - 4, "{}", rest.len());
    }
    let mut all = sandbox.command("cat");
    let output = all.stdin(File::open(&path).unwrap()).output().unwrap();
    assert_eq!(output.stdout, lines.as_bytes());
}

#[test]
fn what_a_command_puts_into_its_own_stdin_moves_no_file_of_the_callers_back() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let path = home.path("script");
    fs::write(&path, vec![b'x'; 3000]).unwrap();
    let script = "head -c 1500 > /dev/null; exec 5<> /dev/stdin; head -c 9000 /dev/zero >&5";
    let (mut of_library, of_line) = (File::open(&path).unwrap(), File::open(&path).unwrap());
    for mut file in [&of_library, &of_line] {
        file.seek(SeekFrom::Start(1000)).unwrap();
    }
    let mut command = sandbox.shell(script);
    assert!(command.stdin(of_library.try_clone().unwrap()).status().unwrap().success());
    let mut adl = adl_command(&home.state());
    adl.args(["run", "-i", "--", "sh", "-c", script]).stdin(of_line.try_clone().unwrap());
    assert!(adl.status().unwrap().success());
    for file in [&mut of_library, &mut { of_line }] {
        let position = file.stream_position().unwrap();
        assert!((1000..=3000).contains(&position), "{position}");
    }
}

#[test]
fn what_goes_through_is_there_when_the_wait_is_over_whoever_holds_the_stream() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let path = home.path("file");
    let script = "yes 1234567 | head -c 800000; sleep 1000 & echo; echo end";
    let ways: [fn(&mut Command) -> bool; 3] = [
        |command| command.status().unwrap().success(),
        |command| command.spawn().unwrap().wait().unwrap().success(),
        |command| command.background().unwrap().wait().unwrap().status.success(),
    ];
    for way in ways {
        let mut command = sandbox.shell(script);
        assert!(way(command.stdout(File::create(&path).unwrap())));
        let text = fs::read_to_string(&path).unwrap();
        assert_eq!((text.len(), text.ends_with("\nend\n")), (800_005, true));
    }
    // To a terminal, too, which can't be one inside.
    let pty = openpty(None, None).unwrap();
    let mut command = sandbox.shell("test -t 1 || echo by a pipe");
    assert!(command.stdout(pty.slave).status().unwrap().success());
    let mut shown = [0; 64];
    let count = File::from(pty.master).read(&mut shown).unwrap();
    assert_eq!(&shown[..count], b"by a pipe\r\n");
}

#[test]
fn a_stream_of_the_callers_that_takes_nothing_is_told_of_in_time() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let full = || File::options().write(true).open("/dev/full").unwrap();
    // With how it ended, whichever way it is waited for, and as often.
    let mut text = sandbox.shell("echo text; exit 7");
    let mut child = text.stdout(full()).spawn().unwrap();
    let job = text.background().unwrap();
    for error in [
        text.status().unwrap_err(),
        text.output().unwrap_err(),
        child.wait().unwrap_err(),
        child.wait().unwrap_err(),
        job.wait().unwrap_err(),
        job.try_wait().unwrap_err(),
    ] {
        let Error::Undelivered { status, why } = &error else { panic!("{error:?}") };
        assert_eq!(status.code(), Some(7));
        assert!(matches!(&**why, Error::Io { .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Temporary);
        assert!(error.to_string().contains("exit status 7"), "{error}");
        assert!(error.to_string().contains("No space"), "{error}");
    }
    assert_eq!(child.try_wait().unwrap().unwrap().code(), Some(7));
    // One whose reader is gone is as with any pipe.
    let (ours, theirs) = UnixStream::pair().unwrap();
    drop(ours);
    let status = sandbox.command("yes").stdout(OwnedFd::from(theirs)).status().unwrap();
    assert_eq!(status.signal(), Some(Signal::SIGPIPE as u8), "{status}");
    // One that no one reads holds up a command, and its time is up all the same.
    let ways: [fn(&mut Command) -> Error; 3] = [
        |command| command.status().unwrap_err(),
        |command| command.spawn().unwrap().wait().unwrap_err(),
        |command| command.background().unwrap().wait().unwrap_err(),
    ];
    for way in ways {
        let (_ours, theirs) = UnixStream::pair().unwrap();
        let mut yes = sandbox.command("yes");
        let begin = std::time::Instant::now();
        let error = way(yes.stdout(OwnedFd::from(theirs)).timeout(Duration::from_millis(300)));
        assert!(begin.elapsed() < at_most(Duration::from_secs(5)));
        let Error::Undelivered { status, why } = &error else { panic!("{error:?}") };
        assert_eq!(status.reason(), EndReason::TimedOut);
        assert!(matches!(&**why, Error::TimedOut { .. }), "{error:?}");
    }
    assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
}

#[test]
fn whoever_reads_slowly_gets_all_of_what_ended_by_itself() {
    if !needs(&[]) {
        return;
    }
    // More than a pipe holds, and no more than two: so it ends before anything is read.
    const LENGTH: usize = 100_000;
    // Its time would have been up, and the second after that, before anything is read.
    const TIMEOUT: Duration = Duration::from_millis(500);
    const PAUSE: Duration = Duration::from_secs(2);
    let home = Home::new();
    let sandbox = home.sandbox();
    let ways: [fn(&mut Command) -> ExitStatus; 3] = [
        |command| command.status().unwrap(),
        |command| command.spawn().unwrap().wait().unwrap(),
        |command| command.background().unwrap().wait().unwrap().status,
    ];
    for way in ways {
        let (mut ours, theirs) = std::io::pipe().unwrap();
        let script = format!("head -c {LENGTH} /dev/zero; exit 7");
        let slow = std::thread::spawn(move || {
            std::thread::sleep(PAUSE);
            let mut all = Vec::new();
            ours.read_to_end(&mut all).unwrap();
            all.len()
        });
        let mut command = sandbox.shell(script);
        let status = way(command.stdout(OwnedFd::from(theirs)).timeout(TIMEOUT));
        drop(command);
        assert_eq!((status.reason(), status.code()), (EndReason::Exited, Some(7)));
        assert_eq!(slow.join().unwrap(), LENGTH);
    }
}

#[test]
fn two_streams_of_one_place_come_in_order() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let path = home.path("both");
    let expected: String = (1..=500).map(|i| format!("{i}\n{i}\n")).collect();
    let ways: [fn(&mut Command) -> ExitStatus; 3] = [
        |command| command.status().unwrap(),
        |command| command.spawn().unwrap().wait().unwrap(),
        |command| command.background().unwrap().wait().unwrap().status,
    ];
    for way in ways {
        let both = File::create(&path).unwrap();
        let mut command = sandbox.shell("for i in $(seq 500); do echo $i; echo $i >&2; done");
        let status = way(command.stdout(both.try_clone().unwrap()).stderr(both));
        assert!(status.success(), "{status}");
        assert!(fs::read_to_string(&path).unwrap() == expected);
    }
    // The program's own, as in a shell after `2>&1`.
    let both = File::create(&path).unwrap();
    let mut helper = crate::helper::command("inherits-both-streams", &home.state());
    assert!(helper.stdout(both.try_clone().unwrap()).stderr(both).status().unwrap().success());
    assert!(fs::read_to_string(&path).unwrap().contains(&expected));
    // Two places are two.
    let other = home.path("other");
    let mut command = sandbox.shell("echo out; echo err >&2");
    let (stdout, stderr) = (File::create(&path).unwrap(), File::create(&other).unwrap());
    assert!(command.stdout(stdout).stderr(stderr).status().unwrap().success());
    let read = |path| fs::read_to_string(path).unwrap();
    assert_eq!((&*read(&path), &*read(&other)), ("out\n", "err\n"));
}

/// The helper of the test above.
pub(crate) fn inherits_both_streams(state: &std::path::Path) {
    let config =
        adl_runtime::Config { state_directory: Some(state.to_owned()), ..Default::default() };
    let sandbox = Sandbox::create(config).unwrap();
    let mut command = sandbox.shell("for i in $(seq 500); do echo $i; echo $i >&2; done");
    command.stdout(Stdio::inherit()).stderr(Stdio::inherit());
    assert!(command.status().unwrap().success());
}

#[test]
fn bounds_of_what_no_one_counts_are_refused() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let path = home.path("file");
    let command = || {
        let mut command = sandbox.command("yes");
        command.stdout(File::create(&path).unwrap()).output_limit(100_000);
        command
    };
    assert!(matches!(command().spawn(), Err(Error::Invalid { what: "output limit", .. })));
    assert_eq!(command().status().unwrap().reason(), EndReason::OutputLimit);
    assert!(fs::metadata(&path).unwrap().len() > 100_000);
}

#[test]
fn the_streams_of_the_calling_program_go_through_pipes() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let input = home.path("in");
    fs::write(&input, "first\nsecond\n").unwrap();
    let mut helper = crate::helper::command("inherits-streams", &home.state());
    let told = succeeds(helper.stdin(File::open(&input).unwrap()));
    assert!(told.contains("pipe, first\n") && told.contains("rest: second\n"), "{told}");
}

/// The helper of the test above.
pub(crate) fn inherits_streams(state: &std::path::Path) {
    let config =
        adl_runtime::Config { state_directory: Some(state.to_owned()), ..Default::default() };
    let sandbox = Sandbox::create(config).unwrap();
    let script = "read a; test -p /dev/stdin && test -p /dev/stdout && echo pipe, $a > /dev/stdout";
    let mut command = sandbox.shell(script);
    command.stdin(Stdio::inherit()).stdout(Stdio::inherit()).stderr(Stdio::inherit());
    assert!(command.spawn().unwrap().wait().unwrap().success());
    let mut rest = String::new();
    std::io::stdin().read_to_string(&mut rest).unwrap();
    println!("rest: {rest}");
}
