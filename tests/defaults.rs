//! Commands and file calls start from the login of their user and `Config::defaults`.

use std::time::{Duration, Instant};

use adl_runtime::{
    Command, Config, Defaults, EndReason, Error, Image, Resource, Rlimit, Sandbox, WriteOptions,
};

use crate::harness::{Home, Need, at_most, needs, shell};

/// The variables of a command that a login sets, sorted.
fn login(sandbox: &Sandbox, change: impl FnOnce(&mut Command)) -> Vec<String> {
    let mut command = sandbox.command("env");
    change(&mut command);
    let output = command.output().unwrap();
    assert!(output.status.success(), "{output:?}");
    let text = String::from_utf8(output.stdout).unwrap();
    let others = ["PATH=", "LANG=C.UTF-8"];
    let lines = text.lines().filter(|line| !others.iter().any(|other| line.starts_with(other)));
    let mut lines: Vec<_> = lines.map(|line| line.trim_end().to_owned()).collect();
    lines.sort_unstable();
    lines
}

const ENTRY: &str = "alice:x:1000:1001:Alice:/home/alice:/bin/alicesh";
const ALICE: [&str; 4] = ["HOME=/home/alice", "LOGNAME=alice", "SHELL=/bin/alicesh", "USER=alice"];

#[test]
fn a_command_has_what_a_login_of_its_user_sets() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(
        &sandbox,
        "echo '#a comment' >> /etc/passwd; echo broken:x:1000 >> /etc/passwd
         echo alice:x:1000:1001:Alice:/home/alice:/bin/alicesh >> /etc/passwd
         echo second:x:1000:1001::/home/second:/bin/sh >> /etc/passwd
         printf bare:x:7:7:: >> /etc/passwd",
    );
    let of_root = login(&sandbox, |_| {});
    let root = shell(&sandbox, "sed -n 's/^root:x:0:0:[^:]*:/HOME=/p' /etc/passwd");
    let (root, its_shell) = root.trim().split_once(':').unwrap();
    let expected = [root, "LOGNAME=root", &format!("SHELL={its_shell}"), "USER=root"];
    assert_eq!(of_root, expected);
    // By name and by number, in each way to say that.
    assert_eq!(login(&sandbox, |c| _ = c.user("alice")), ALICE);
    assert_eq!(login(&sandbox, |c| _ = c.user("alice:7")), ALICE);
    assert_eq!(login(&sandbox, |c| _ = c.user("1000")), ALICE);
    assert_eq!(login(&sandbox, |c| _ = c.uid(1000)), ALICE);
    assert_eq!(login(&sandbox, |c| _ = c.user("second").uid(1000)), ALICE);
    let second = login(&sandbox, |c| _ = c.user("second"));
    assert_eq!(second, ["HOME=/home/second", "LOGNAME=second", "SHELL=/bin/sh", "USER=second"]);
    // What an entry leaves out.
    let bare = ["HOME=/", "LOGNAME=bare", "SHELL=/bin/sh", "USER=bare"];
    assert_eq!(login(&sandbox, |c| _ = c.user("bare")), bare);
    assert_eq!(login(&sandbox, |c| _ = c.uid(7)), bare);
    // Who has none.
    assert_eq!(login(&sandbox, |c| _ = c.uid(4242)), ["HOME=/"]);
    // What the caller says counts, and what it takes away is not there.
    let said = login(&sandbox, |c| _ = c.user("1000").env("HOME", "/h").env("USER", "u"));
    assert_eq!(said, ["HOME=/h", "LOGNAME=alice", "SHELL=/bin/alicesh", "USER=u"]);
    let said = login(&sandbox, |c| _ = c.user("alice").env("SHELL", "/s"));
    assert_eq!(said, ["HOME=/home/alice", "LOGNAME=alice", "SHELL=/s", "USER=alice"]);
    for user in ["alice", "1000", "4242:1"] {
        let none = login(&sandbox, |c| {
            c.user(user).env_remove("HOME").env_remove("USER").env_remove("LOGNAME");
            c.env_remove("SHELL");
        });
        assert_eq!(none, [""; 0], "{user}");
    }
    let cleared =
        login(&sandbox, |c| _ = c.uid(1000).env_clear().env("A", "b").env("PATH", "/bin"));
    assert_eq!(cleared, ["A=b"]);
}

#[test]
fn a_terminal_has_a_name_unless_the_caller_says_one() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let term = |change: fn(&mut Command)| {
        let all = login(&sandbox, |command| change(command.terminal(24, 80)));
        all.into_iter().filter(|line| line.starts_with("TERM=")).collect::<Vec<_>>()
    };
    assert_eq!(term(|_| {}), ["TERM=xterm"]);
    assert_eq!(term(|c| _ = c.env("TERM", "vt100")), ["TERM=vt100"]);
    assert_eq!(term(|c| _ = c.env_remove("TERM")), [""; 0]);
    assert!(!login(&sandbox, |_| {}).iter().any(|line| line.starts_with("TERM=")));
}

#[test]
fn a_hostile_file_of_users_gives_a_number_no_login_and_holds_nothing_up() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let long = "head -c 4000 /dev/zero | tr '\\0' a";
    for (make, has_entry) in [
        (format!("echo {ENTRY} > passwd"), true),
        (format!("({long}; echo; echo {ENTRY}) > passwd"), true),
        (format!("({long}; echo {ENTRY}) > passwd"), false),
        (format!("echo {ENTRY} > passwd; chmod 600 passwd"), false),
        (format!("(head -c 2M /dev/zero | tr '\\0' '\\n'; echo {ENTRY}) > passwd"), false),
        (format!("printf '{ENTRY}\\0EVIL=1' > passwd"), false),
        (format!("echo {ENTRY} > other; ln -s other passwd"), true),
        ("mkfifo passwd".to_owned(), false),
        ("mkdir passwd".to_owned(), false),
        ("ln -s /dev/zero passwd".to_owned(), false),
        ("ln -s /proc/1/environ passwd".to_owned(), false),
        ("ln -s passwd passwd".to_owned(), false),
        ("truncate -s 10G passwd".to_owned(), false),
        (":".to_owned(), false),
    ] {
        // By no shell: one may look up who runs it, in what was made last.
        let status = sandbox.command("rm").args(["-rf", "/etc/passwd"]).status().unwrap();
        assert!(status.success(), "{status}");
        shell(&sandbox, format!("cd /etc; {make}"));
        let begin = Instant::now();
        let all = login(&sandbox, |command| _ = command.uid(1000));
        let took = begin.elapsed();
        assert!(took < at_most(Duration::from_secs(1)), "{make}: {took:?}");
        match has_entry {
            true => assert_eq!(all, ALICE, "{make}"),
            false => assert_eq!(all, ["HOME=/"], "{make}"),
        }
        // By name, the host looks it up as root: the same lines are entries for both, or an error.
        let mut by_name = sandbox.command("env");
        match by_name.user("alice").output() {
            Ok(output) => {
                let text = String::from_utf8(output.stdout).unwrap();
                assert!(text.contains("HOME=/home/alice\n") && !text.contains("EVIL"), "{text}");
            }
            Err(error) => {
                assert!(!has_entry && !matches!(error, Error::Invalid { .. }), "{make}: {error}");
            }
        }
    }
}

fn defaults() -> Defaults {
    Defaults {
        env: vec![("A".into(), "default".into()), ("B".into(), "b".into())],
        current_dir: "/tmp".into(),
        umask: 0o077,
        rlimits: vec![Rlimit { resource: Resource::OpenFiles, soft: 50, hard: 60 }],
        timeout: Some(Duration::from_millis(300)),
        ..Defaults::default()
    }
}

const ALL: &str = "echo $A $B $HOME; pwd; umask; ulimit -Sn; ulimit -Hn";

#[test]
fn commands_start_from_the_defaults_of_the_sandbox_unless_they_say_otherwise() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = Sandbox::create(Config { defaults: defaults(), ..home.config() }).unwrap();
    assert_eq!(shell(&sandbox, ALL), "default b /root\n/tmp\n0077\n50\n60\n");
    let mut command = sandbox.shell(ALL);
    command.env("A", "own").env_remove("B").current_dir("/").umask(0o22);
    let output = command.rlimit(Resource::OpenFiles, 70, 80).output().unwrap();
    assert_eq!(String::from_utf8(output.stdout).unwrap(), "own /root\n/\n0022\n70\n80\n");
    let output = sandbox.command("env").env_clear().output();
    assert!(matches!(output, Ok(output) if output.stdout.is_empty()));
    // Time is up for one that says nothing, and not for one that does.
    let status = sandbox.command("sleep").arg("1000").status().unwrap();
    assert_eq!(status.reason(), EndReason::TimedOut);
    let mut command = sandbox.command("sleep");
    assert!(command.arg("0.6").timeout(Duration::from_secs(100)).status().unwrap().success());
    // It holds in each life, and in a fork of a snapshot that is made of its configuration.
    sandbox.reset().unwrap();
    assert_eq!(shell(&sandbox, ALL), "default b /root\n/tmp\n0077\n50\n60\n");
    let snapshot = sandbox.snapshot().unwrap();
    let image = Image::snapshot(snapshot.name());
    let fork =
        Sandbox::create(Config { image, state_directory: Some(home.state()), ..snapshot.config() });
    assert_eq!(shell(&fork.unwrap(), ALL), "default b /root\n/tmp\n0077\n50\n60\n");
}

#[test]
fn commands_and_file_calls_are_made_by_the_user_of_the_sandbox() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let defaults = Defaults {
        user: Some("nobody".to_owned()),
        env: vec![("HOME".into(), "/tmp".into())],
        ..defaults()
    };
    let sandbox = Sandbox::create(Config { defaults, ..home.config() }).unwrap();
    let nobody = shell(&sandbox, "id -u nobody; id -g nobody");
    assert_eq!(shell(&sandbox, "id -u; id -g"), nobody);
    assert_eq!(shell(&sandbox, "echo $USER $HOME"), "nobody /tmp\n");
    let ids: Vec<u32> = nobody.lines().map(|id| id.parse().unwrap()).collect();
    let files = sandbox.files();
    files.write_file("relative", b"text").unwrap();
    let metadata = files.metadata("/tmp/relative").unwrap();
    assert_eq!([metadata.uid, metadata.gid], ids[..]);
    assert_eq!(metadata.mode, 0o600);
    files.create_dir_all("a/b").unwrap();
    assert_eq!(files.metadata("/tmp/a/b").unwrap().mode, 0o700);
    // A mode that was asked for is the file's.
    files.write_with("modes", b"", WriteOptions::new().mode(0o644)).unwrap();
    assert_eq!(files.metadata("/tmp/modes").unwrap().mode, 0o644);
    assert!(matches!(files.write_file("/etc/file", b""), Err(Error::File { .. })));
    let mut of_root = sandbox.files();
    of_root.uid(0).current_dir("/etc").write_file("file", b"").unwrap();
    assert_eq!(of_root.metadata("/etc/file").unwrap().uid, 0);
    assert_eq!(sandbox.shell("id -u").uid(0).output().unwrap().stdout, b"0\n");
}

#[test]
fn what_no_command_could_start_from_is_refused_when_the_sandbox_is_made() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    for wrong in [
        Defaults { env: vec![("".into(), "a".into())], ..Defaults::default() },
        Defaults { env: vec![("A=B".into(), "a".into())], ..Defaults::default() },
        Defaults { env: vec![("A".into(), "a\0b".into())], ..Defaults::default() },
        Defaults { current_dir: "/a\0b".into(), ..Defaults::default() },
        Defaults { current_dir: "a/".repeat(3000).into(), ..Defaults::default() },
        Defaults { user: Some(String::new()), ..Defaults::default() },
        Defaults { user: Some("1:".to_owned()), ..Defaults::default() },
        Defaults { user: Some("4294967295".to_owned()), ..Defaults::default() },
        Defaults { umask: 0o1000, ..Defaults::default() },
        Defaults {
            rlimits: vec![Rlimit { resource: Resource::OpenFiles, soft: 20, hard: 10 }],
            ..Defaults::default()
        },
    ] {
        let what = format!("{wrong:?}");
        let created = Sandbox::create(Config { defaults: wrong, ..home.config() });
        assert!(matches!(created, Err(Error::Invalid { .. })), "{what}: {created:?}");
    }
    assert_eq!(home.left(), [""; 0]);
    if !nix::unistd::geteuid().is_root() {
        // A number is the one id that there is then; a name is of another.
        let of = |user: &str| {
            let defaults = Defaults { user: Some(user.to_owned()), ..Defaults::default() };
            Sandbox::create(Config { defaults, ..home.config() })
        };
        assert_eq!(shell(&of("1000").unwrap(), "id -u"), "1000\n");
        let named = of("nobody").and_then(|sandbox| sandbox.command("id").status());
        assert!(matches!(named, Err(Error::Unsupported { .. })), "{named:?}");
    }
}

#[test]
fn a_login_is_found_whatever_may_be_open() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(&sandbox, format!("echo {} >> /etc/passwd", ENTRY));
    // A shell's own needs are small; those of init's child, of which init's are a part, are not.
    let run = |files: u64| {
        let mut command = sandbox.shell("echo $HOME $USER");
        let output = command.uid(1000).rlimit(Resource::OpenFiles, files, files).output().unwrap();
        String::from_utf8(output.stdout).unwrap()
    };
    assert_eq!(run(8), "/home/alice alice\n");
    let children: Vec<_> = (0..20)
        .map(|_| sandbox.command("sleep").arg("1000").kill_on_drop(true).spawn().unwrap())
        .collect();
    assert_eq!(run(8), "/home/alice alice\n");
    drop(children);
}

#[test]
fn a_user_by_number_is_not_in_the_group_of_the_defaults_user() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let defaults = Defaults { user: Some("1000:50".to_owned()), ..Defaults::default() };
    let sandbox = Sandbox::create(Config { defaults, ..home.config() }).unwrap();
    let ids = |change: fn(&mut Command)| {
        let mut command = sandbox.shell("echo $(id -u) $(id -g)");
        change(&mut command);
        String::from_utf8(command.output().unwrap().stdout).unwrap()
    };
    assert_eq!(ids(|_| {}), "1000 50\n");
    assert_eq!(ids(|c| _ = c.uid(7)), "7 0\n");
    assert_eq!(ids(|c| _ = c.gid(9)), "1000 9\n");
    assert_eq!(ids(|c| _ = c.gid(9).uid(7)), "7 9\n");
    assert_eq!(ids(|c| _ = c.user("8")), "8 8\n");
}
