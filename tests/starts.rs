//! How a command starts, as whom and with what, and what is told when it can't.

use std::io::{BufRead, BufReader, Write};
use std::process;
use std::time::{Duration, Instant};

use adl_runtime::{
    Capabilities, Capability, Command, Config, Error, Files, Resource, Sandbox, Stage, Stdio,
};
use nix::errno::Errno;

use crate::harness::{Home, Need, at_most, needs, shell, typical};
use crate::jobs::alone;

#[test]
fn a_failure_to_start_is_told_by_stage_and_errno_and_at_once() {
    if !needs(&[]) {
        return;
    }
    type Change = fn(&mut Command);
    let _alone = alone();
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(
        &sandbox,
        "cd /tmp; echo text > text; echo text > plain; chmod 755 text; chmod 644 plain
         printf '#!/nonexistent\\n' > script; head -c 100 /bin/true > cut; chmod 755 script cut",
    );
    let none: Change = |_| {};
    let cases: [(&str, Change, Stage, Errno); 13] = [
        ("/nonexistent", none, Stage::Exec, Errno::ENOENT),
        ("no-such-program", none, Stage::Exec, Errno::ENOENT),
        ("/tmp", none, Stage::Exec, Errno::EACCES),
        ("/tmp/plain", none, Stage::Exec, Errno::EACCES),
        ("/tmp/text", none, Stage::Exec, Errno::ENOEXEC),
        ("/tmp/cut", none, Stage::Exec, Errno::ENOEXEC),
        ("/tmp/script", none, Stage::Exec, Errno::ENOENT),
        ("true", |c| _ = c.current_dir("/nonexistent"), Stage::Directory, Errno::ENOENT),
        ("true", |c| _ = c.current_dir("/tmp/text"), Stage::Directory, Errno::ENOTDIR),
        ("true", |c| _ = c.user("no-one"), Stage::Identity, Errno::ENOENT),
        ("true", |c| _ = c.rlimit(Resource::OpenFiles, 20, 10), Stage::Rlimit, Errno::EINVAL),
        ("true", |c| _ = c.nice(-5), Stage::Nice, Errno::EACCES),
        ("true", |c| _ = c.oom_score_adj(-1000), Stage::OomScore, Errno::EACCES),
    ];
    for (program, change, stage, errno) in cases {
        let command = || {
            let mut command = sandbox.command(program);
            change(&mut command);
            command
        };
        let what = format!("{program}, {stage:?}, {errno}");
        let check = |error: Option<Error>| match error {
            Some(Error::Start { stage: told, source, .. }) => {
                assert_eq!((told, source.raw_os_error()), (stage, Some(errno as i32)), "{what}");
            }
            other => panic!("{what}: {other:?}"),
        };
        let (mut by_output, mut by_spawn) = (Vec::new(), Vec::new());
        for _ in 0..15 {
            let begin = Instant::now();
            check(command().output().err());
            by_output.push(begin.elapsed());
            let begin = Instant::now();
            check(command().stdout(Stdio::piped()).spawn().err());
            by_spawn.push(begin.elapsed());
        }
        check(command().background().err());
        let times = [typical(&mut by_output), typical(&mut by_spawn)];
        eprintln!("{what}: {times:?}");
        assert!(times.iter().all(|time| *time < Duration::from_millis(10)), "{what}: {times:?}");
    }
    assert_eq!(sandbox.jobs().len(), 0);
    assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
}

/// Prints who it is, with its groups, and its home.
const WHO: &str = "echo $(id -u) $(id -g) $(grep ^Groups: /proc/self/status) $HOME";

#[test]
fn users_are_those_of_the_sandboxs_own_files() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(
        &sandbox,
        "echo alice:x:1000:1001:Alice:/home/alice:/bin/sh >> /etc/passwd
         printf '%s\\n' alice:x:1001: audio:x:29:alice,bob video:x:44:bob staff:x:50:alice \\
             >> /etc/group",
    );
    let who = |change: fn(&mut Command)| {
        let mut command = sandbox.shell(WHO);
        change(&mut command);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    assert_eq!(who(|_| {}), "0 0 Groups: /root\n");
    assert_eq!(who(|c| _ = c.user("alice")), "1000 1001 Groups: 29 50 /home/alice\n");
    assert_eq!(who(|c| _ = c.user("alice:video")), "1000 44 Groups: /home/alice\n");
    assert_eq!(who(|c| _ = c.user("alice:7").env("HOME", "/h")), "1000 7 Groups: /h\n");
    assert_eq!(who(|c| _ = c.user("alice").groups([8, 9])), "1000 1001 Groups: 8 9 /home/alice\n");
    assert_eq!(who(|c| _ = c.user("1000")), "1000 1000 Groups: /home/alice\n");
    // The last one counts. A group that is named after a user is that user's.
    assert_eq!(who(|c| _ = c.user("0").uid(1000)), "1000 0 Groups: /home/alice\n");
    assert_eq!(who(|c| _ = c.uid(7).user("alice")), "1000 1001 Groups: 29 50 /home/alice\n");
    assert_eq!(who(|c| _ = c.user("alice").uid(0).gid(5)), "0 5 Groups: /root\n");
    assert_eq!(who(|c| _ = c.user("alice").gid(44)), "1000 44 Groups: /home/alice\n");
    let file = |change: fn(&mut Files)| {
        let mut files = sandbox.files();
        change(&mut files);
        files.write_file("/tmp/whose", b"").unwrap();
        let metadata = files.metadata("/tmp/whose").unwrap();
        sandbox.files().remove_file("/tmp/whose").unwrap();
        (metadata.uid, metadata.gid)
    };
    assert_eq!(file(|f| _ = f.user("0").uid(1000)), (1000, 0));
    assert_eq!(file(|f| _ = f.uid(7).user("alice")), (1000, 1001));
    for unknown in ["bob", "alice:no-such-group", "Alice", "ali"] {
        let error = sandbox.command("true").user(unknown).status();
        assert!(matches!(error, Err(Error::Start { stage: Stage::Identity, .. })), "{error:?}");
    }
    // Who is in no group needs no file of them.
    shell(&sandbox, "rm /etc/group");
    assert_eq!(who(|c| _ = c.user("alice")), "1000 1001 Groups: /home/alice\n");
}

#[test]
fn a_hostile_file_of_users_is_an_error_soon_and_makes_no_one_root() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let unreadable = |error: &Error, errno: Errno| matches!(error, Error::File { source, .. } if source.raw_os_error() == Some(errno as i32));
    let no_file: &dyn Fn(&Error) -> bool = &|e| matches!(e, Error::NotRegular { .. });
    let directory: &dyn Fn(&Error) -> bool = &|e| unreadable(e, Errno::EISDIR);
    let too_large: &dyn Fn(&Error) -> bool = &|e| matches!(e, Error::TooLarge { .. });
    let links: &dyn Fn(&Error) -> bool = &|e| unreadable(e, Errno::ELOOP);
    // Who reads is not dumpable: its own files in /proc are not even its own.
    let refused: &dyn Fn(&Error) -> bool = &|e| unreadable(e, Errno::EACCES);
    let no_user: &dyn Fn(&Error) -> bool =
        &|e| matches!(e, Error::Start { stage: Stage::Identity, .. });
    let mut wrong = Vec::new();
    for (make, told) in [
        ("mkfifo passwd", no_file),
        ("mkdir passwd", directory),
        ("head -c 2M /dev/zero | tr '\\0' a > passwd", too_large),
        ("ln -s /proc/self/mem passwd", refused),
        ("ln -s /dev/zero passwd", no_file),
        ("ln -s passwd passwd", links),
        ("echo alice > passwd", no_user),
        ("echo alice:x:: > passwd", no_user),
        ("echo alice:x:-1:-1:::: > passwd", no_user),
        ("echo alice:x:4294967296:4294967296:::: > passwd", no_user),
        (":", no_user),
    ] {
        // By no shell: one may look up who runs it, in what was made last.
        let status = sandbox.command("rm").args(["-rf", "/etc/passwd"]).status().unwrap();
        assert!(status.success(), "{status}");
        shell(&sandbox, format!("cd /etc; {make}"));
        let begin = Instant::now();
        let output = sandbox.shell(WHO).user("alice").output();
        let took = begin.elapsed();
        assert!(took < at_most(Duration::from_secs(1)), "{make}: {took:?}");
        // What can't be read, and what does not name her: each is told as what it is.
        if !output.as_ref().is_err_and(told) {
            wrong.push((make, output));
        }
    }
    assert!(wrong.is_empty(), "{wrong:#?}");
    assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
}

#[test]
fn what_was_set_for_a_command_holds_inside_it() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let script = "umask; nice; cat /proc/self/oom_score_adj; ulimit -Sn; ulimit -Hn; ulimit -St";
    let mut command = sandbox.shell(script);
    command.umask(0o027).nice(5).oom_score_adj(500);
    // The last one counts.
    command.rlimit(Resource::OpenFiles, 10, 20).rlimit(Resource::OpenFiles, 100, 200);
    let output = command.rlimit(Resource::Cpu, 60, 70).output().unwrap();
    let own = process::Command::new("nice").output().unwrap().stdout;
    let own: i32 = String::from_utf8(own).unwrap().trim().parse().unwrap();
    let expected = format!("0027\n{}\n500\n100\n200\n60\n", own + 5);
    assert_eq!(String::from_utf8(output.stdout).unwrap(), expected);
    assert_eq!(shell(&sandbox, "umask; nice; ulimit -St"), format!("0022\n{own}\nunlimited\n"));
    // And does what it says.
    let mut command = sandbox.shell("trap '' XFSZ; head -c 100k /dev/zero > /tmp/file");
    assert!(!command.rlimit(Resource::FileSize, 4096, 4096).status().unwrap().success());
    assert_eq!(shell(&sandbox, "stat -c %s /tmp/file"), "4096\n");
    let mut child = sandbox.shell("read line; exit $line").stdin(Stdio::piped()).spawn().unwrap();
    child.stdin.as_mut().unwrap().write_all(b"9\n").unwrap();
    assert_eq!(child.wait().unwrap().code(), Some(9));
}

/// Looks at each process as soon as it is there, and says of how many it has read the memory while
/// that was init's, once a file tells it to end.
const LOOKS: &str = r#"
import os
def read(pid):
    try:
        memory = os.open(f'/proc/{pid}/mem', os.O_RDONLY)
    except OSError:
        return False
    try:
        # Where init is, and no program that is loaded anywhere.
        return len(os.pread(memory, 4, 0x200000)) == 4
    except OSError:
        return False
    finally:
        os.close(memory)
print('looks', flush=True)
seen = set()
while not os.path.exists('/tmp/end'):
    with open('/proc/loadavg') as file:
        last = int(file.read().split()[-1])
    for _ in range(200):
        seen.update(pid for pid in (last, last + 1, last + 2) if read(pid))
print(len(seen))
"#;

#[test]
fn an_oom_score_lets_no_one_look_at_a_command_before_its_program_runs() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let capabilities = Capabilities::default().with(Capability::SysPtrace);
    let sandbox = Sandbox::create(Config { capabilities, ..home.config() }).unwrap();
    let of_init =
        || std::fs::read_to_string(format!("/proc/{}/oom_score_adj", sandbox.init_pid())).unwrap();
    let before = of_init();
    let score = |score: i16| {
        let mut command = sandbox.command("/bin/cat");
        command.arg("/proc/self/oom_score_adj").oom_score_adj(score).output()
    };
    let mut command = sandbox.command("python3");
    let mut looks = command.args(["-c", LOOKS]).stdout(Stdio::piped()).spawn().unwrap();
    let mut said = BufReader::new(looks.stdout.take().unwrap());
    let mut line = String::new();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "looks\n");
    for _ in 0..300 {
        assert_eq!(score(500).unwrap().stdout, b"500\n");
    }
    // What has none has that of others, and what is refused is told.
    assert_eq!(score(0).unwrap().stdout, before.as_bytes());
    let refused = score(-1000);
    assert!(matches!(refused, Err(Error::Start { stage: Stage::OomScore, .. })), "{refused:?}");
    assert_eq!(of_init(), before);
    shell(&sandbox, "touch /tmp/end");
    line.clear();
    said.read_line(&mut line).unwrap();
    assert_eq!(line, "0\n");
}

#[test]
fn any_number_of_commands_may_start_at_once() {
    if !needs(&[]) {
        return;
    }
    // More than init has on their way to their programs at once.
    const COUNT: usize = 300;
    let home = Home::new();
    let sandbox = home.sandbox();
    let begin = std::sync::Barrier::new(COUNT);
    let run = |number: usize| {
        let mut command = sandbox.command("echo");
        command.arg(number.to_string());
        begin.wait();
        command.output()
    };
    let run = &run;
    std::thread::scope(|scope| {
        let all: Vec<_> = (0..COUNT).map(|number| scope.spawn(move || run(number))).collect();
        for (number, thread) in all.into_iter().enumerate() {
            let output = thread.join().unwrap().unwrap();
            assert_eq!(output.stdout, format!("{number}\n").as_bytes());
        }
    });
}
