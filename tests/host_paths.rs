//! What a guest has put on a path of the host leads the host nowhere.
//!
//! It does not when something is copied out, nor when what came out, or lies in a volume, is given
//! to a sandbox again.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::fs::symlink;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};

use adl_runtime::{Access, Config, Error, HostPath, Image, Mount, Result, Sandbox};
use nix::fcntl::{AT_FDCWD, RenameFlags, renameat2};

use crate::harness::{Home, Need, OrdinaryUser, adl, adl_command, needs, shell, stderr, succeeds};
use crate::images;

/// The content of a file of the host that no guest is to see.
const HOST: &str = "HOST";

/// What exits with this was ended by timeout(1).
const HANGS: i32 = 124;

/// A directory of the host that nothing may come into, and that nothing may come out of: also a
/// root file system, for who takes it for one.
fn host(home: &Home) -> PathBuf {
    let host = home.path("host");
    fs::create_dir(&host).unwrap();
    images::small(&host);
    fs::write(host.join("shadow"), HOST).unwrap();
    host
}

fn names(directory: &Path) -> Vec<String> {
    let entries = fs::read_dir(directory).unwrap();
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

/// `adl run` with some options and a command, in the directory of a test.
fn run(home: &Home, options: &[&str], command: &[&str]) -> Output {
    let mut adl = adl_command(&home.state());
    adl.arg("run").args(options).arg("--").args(command).current_dir(home.path(""));
    adl.output().unwrap()
}

#[track_caller]
fn assert_refused(output: &Output, why: &str) {
    let said = stderr(output);
    assert_eq!(output.status.code(), Some(125), "{said}");
    assert!(said.contains(why), "{said}");
    assert!(!String::from_utf8_lossy(&output.stdout).contains(HOST), "{output:?}");
}

const LINK: &str = "leads through a symbolic link";

#[test]
fn a_copy_out_goes_through_no_link_of_another_copy() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let hostdir = home.path("hostdir");
    fs::create_dir(&hostdir).unwrap();
    let target = |name: &str| home.path(name).to_str().unwrap().to_owned();
    let (work, logs) =
        (format!("/work:{}", target("out")), format!("/logs:{}", target("out/logs/")));
    let script = format!(
        "mkdir /work /logs; echo x >/logs/f; ln -s {} /work/logs; echo ran",
        hostdir.display()
    );
    let orders = [[&*work, &*logs], [&*logs, &*work]];
    let copy = |[one, other]: [&str; 2]| {
        run(&home, &["--copy-out", one, "--copy-out", other], &["sh", "-c", &script])
    };
    // Nothing is there: the command does not run.
    for order in orders {
        let output = copy(order);
        assert_refused(&output, "there is no directory");
        assert_eq!(output.stdout, b"");
    }
    // A directory is there: it is that one, whatever the other copy brings.
    for order in orders {
        fs::create_dir_all(home.path("out/logs")).unwrap();
        let output = copy(order);
        assert_eq!(output.status.code(), Some(125), "{}", stderr(&output));
        assert_eq!(fs::read(home.path("out/logs/logs/f")).unwrap(), b"x\n");
        fs::remove_dir_all(home.path("out")).unwrap();
    }
    // A link is there, of a copy before.
    fs::create_dir(home.path("out")).unwrap();
    let output = run(&home, &["--copy-out", &work], &["sh", "-c", &script]);
    assert!(output.status.success(), "{}", stderr(&output));
    assert_eq!(fs::read_link(home.path("out/logs")).unwrap(), hostdir);
    for order in orders {
        assert_refused(&copy(order), LINK);
    }
    assert_refused(&run(&home, &["--beneath", "out", "--copy-out", &logs], &["true"]), LINK);
    assert_eq!(names(&hostdir), [""; 0]);
    // Control: who follows comes there.
    fs::write(home.path("f"), "x").unwrap();
    succeeds(Command::new("cp").arg(home.path("f")).arg(home.path("out/logs/")));
    assert_eq!(names(&hostdir), ["f"]);
}

#[test]
fn a_copy_out_goes_where_it_would_have_gone_before_the_command_ran() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let hostdir = home.path("hostdir");
    fs::create_dir(&hostdir).unwrap();
    fs::create_dir_all(home.path("volume/sub")).unwrap();
    // Of the caller's own links, any may be on the way, and into the volume, too.
    symlink("volume", home.path("mine")).unwrap();
    symlink("volume/sub", home.path("into")).unwrap();
    let swap = format!(
        "mkdir /logs; echo x >/logs/f; mv /v/sub /v/old; ln -s {} /v/sub; echo ran",
        hostdir.display()
    );
    let volume = format!("{}:/v", home.path("volume").display());
    let copy = |to: &str, script: &str| {
        run(&home, &["-v", &volume, "--copy-out", &format!("/logs:{to}")], &["sh", "-c", script])
    };
    for to in ["volume/sub/", "volume/sub/logs", "mine/sub/", "into/", "into/logs/"] {
        if to.ends_with("logs/") {
            fs::create_dir(home.path("volume/sub/logs")).unwrap();
        }
        let output = copy(to, &swap);
        assert!(output.status.success(), "{to}: {}", stderr(&output));
        let logs = if to.ends_with("logs/") { "logs/logs/f" } else { "logs/f" };
        assert_eq!(fs::read(home.path("volume/old").join(logs)).unwrap(), b"x\n", "{to}");
        // Now the link is there before: the guest's own.
        if to != "into/logs/" {
            let output = copy(to, &swap);
            assert_refused(&output, LINK);
            assert_eq!(output.stdout, b"", "{to}");
        }
        // Control: who follows comes there.
        fs::write(home.path("f"), "x").unwrap();
        succeeds(Command::new("cp").arg(home.path("f")).arg(home.path("volume/sub/")));
        assert_eq!(names(&hostdir), ["f"], "{to}");
        fs::remove_file(hostdir.join("f")).unwrap();
        fs::remove_file(home.path("volume/sub")).unwrap();
        fs::remove_dir_all(home.path("volume/old")).unwrap();
        fs::create_dir(home.path("volume/sub")).unwrap();
    }
    // Where it is swapped at the target itself.
    let script = format!("mkdir /logs; ln -s {} /v/sub/logs", hostdir.display());
    let output = copy("volume/sub/", &script);
    assert_eq!(output.status.code(), Some(125), "{}", stderr(&output));
    assert_eq!(names(&hostdir), [""; 0]);
}

/// What a guest has left in `OUT`: links to the host, and things of its own.
fn copied_out(home: &Home, host: &Path) {
    let script = format!(
        "mkdir -p /w/real; cd /w; ln -s {0}/shadow link; ln -s {0} dir; echo A=own > real/file; \
         mkfifo fifo; ln -s real/file inner",
        host.display()
    );
    let output = run(home, &["--copy-out", "/w:OUT"], &["sh", "-c", &script]);
    assert!(output.status.success(), "{}", stderr(&output));
}

#[test]
fn what_was_copied_out_leads_nowhere_when_it_is_given_back() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let host = host(&home);
    copied_out(&home, &host);
    symlink("OUT", home.path("alias")).unwrap();
    let attacks: [(&[&str], &[&str]); 9] = [
        (&["--copy-in", "OUT/link:/tmp/d"], &["cat", "/tmp/d"]),
        (&["--copy-in", "OUT/dir/shadow:/tmp/d"], &["cat", "/tmp/d"]),
        (&["--copy-in", "OUT/dir:/tmp/d"], &["cat", "/tmp/d/shadow"]),
        (&["--copy-in", "alias/dir/shadow:/tmp/d"], &["cat", "/tmp/d"]),
        (&["-v", "OUT/link:/x:ro"], &["cat", "/x"]),
        (&["-v", "OUT/dir:/x"], &["cat", "/x/shadow"]),
        (&["-v", "OUT/dir:/x:cow"], &["cat", "/x/shadow"]),
        (&["--image", "./OUT/dir"], &["cat", "/shadow"]),
        (&["--image", "./alias/./dir/"], &["cat", "/shadow"]),
    ];
    // Of one run, what else it names says where guests write; of another, the option.
    let says: [&[&str]; 4] = [
        &["--beneath", "OUT"],
        &["--beneath", "alias"],
        &["-v", "./OUT:/v"],
        &["--copy-out", "/tmp:OUT"],
    ];
    for (attack, command) in attacks {
        for says in says {
            for options in [[attack, says].concat(), [says, attack].concat()] {
                assert_refused(&run(&home, &options, command), LINK);
            }
        }
        // Control: else it is the caller's word, and followed.
        let output = run(&home, attack, command);
        assert_eq!(
            String::from_utf8_lossy(&output.stdout),
            HOST,
            "{attack:?}: {}",
            stderr(&output)
        );
    }
    // What leads out without a link, as a tenant may name it.
    let output = run(
        &home,
        &["--beneath", "OUT", "--copy-in", "OUT/real/../../host/shadow:/tmp/d"],
        &["true"],
    );
    assert_refused(&output, "..");
    // What has no links on its way is given, and the directory itself.
    let honest: [(&[&str], &[&str]); 5] = [
        (&["--copy-in", "OUT/real/file:/tmp/d"], &["cat", "/tmp/d"]),
        (&["--copy-in", "OUT:/tmp/d"], &["cat", "/tmp/d/inner"]),
        (&["-v", "OUT/real:/x:ro"], &["cat", "/x/file"]),
        (&["-v", "alias/real/file:/x"], &["cat", "/x"]),
        (&["--env-file", "OUT/real/file"], &["sh", "-c", "echo A=$A"]),
    ];
    for (options, command) in honest {
        for says in says {
            let output = run(&home, &[says, options].concat(), command);
            assert_eq!(output.stdout, b"A=own\n", "{options:?}: {}", stderr(&output));
        }
    }
    // Variables are content of a file, too.
    fs::write(host.join("shadow"), "A=HOST").unwrap();
    let (attack, command) = (["--env-file", "OUT/link"], ["sh", "-c", "echo $A"]);
    for says in says {
        assert_refused(&run(&home, &[says, &attack].concat(), &command), LINK);
    }
    assert_eq!(run(&home, &attack, &command).stdout, b"HOST\n");
    // As for who mistakes what guests have written.
    for wrong in ["absent", "OUT/fifo", "OUT/real/file"] {
        assert_refused(&run(&home, &["--beneath", wrong], &["true"]), "--beneath");
    }
}

#[test]
fn an_ordinary_user_s_sources_lead_nowhere_either() {
    if !needs(&[]) {
        return;
    }
    let user = OrdinaryUser::new();
    let is_root = nix::unistd::geteuid().is_root();
    let beside = if is_root { user.adl().to_owned() } else { user.state() };
    let out = beside.with_file_name("OUT");
    let make = format!(
        "mkdir -p {0}/real; cd {0}; echo own > real/file; ln -s /etc/passwd link; ln -s /etc dir",
        out.display()
    );
    succeeds(user.command("sh").args(["-c", &make]));
    let run = |beneath: bool, source: &str, path: &str| {
        let mut adl = user.command(user.adl());
        adl.arg("run");
        if beneath {
            adl.args(["--beneath".as_ref(), out.as_os_str()]);
        }
        adl.arg("-v").arg(format!("{}:/x:ro", out.join(source).display()));
        adl.args(["--", "cat", path]).output().unwrap()
    };
    for (source, path) in [("link", "/x"), ("dir", "/x/passwd"), ("dir/passwd", "/x")] {
        assert_refused(&run(true, source, path), LINK);
        let output = run(false, source, path);
        assert!(output.stdout.starts_with(b"root:"), "{source}: {}", stderr(&output));
    }
    let output = run(true, "real", "/x/file");
    assert_eq!(output.stdout, b"own\n", "{}", stderr(&output));
    fs::remove_dir_all(out).unwrap();
}

/// What the library may be given: for each of its sources, what it makes of a path, as text.
fn uses<'a>(home: &'a Home, sandbox: &'a Sandbox) -> Vec<(&'static str, Box<Use<'a>>)> {
    let volume = |access| {
        Box::new(move |path| {
            let mounts = vec![Mount::volume(path, "/x", access)];
            let other = Sandbox::create(Config { mounts, ..home.config() })?;
            Ok(shell(&other, "cat /x/shadow"))
        })
    };
    vec![
        ("read-only", volume(Access::ReadOnly) as Box<Use<'a>>),
        ("read-write", volume(Access::ReadWrite)),
        ("copy on write", volume(Access::CopyOnWrite)),
        (
            "image",
            Box::new(|path| {
                let image = Image::directory(path);
                let other = Sandbox::create(Config { image, ..home.config() })?;
                Ok(shell(&other, "cat /shadow"))
            }),
        ),
        (
            "copy in",
            Box::new(|path| {
                let _ = sandbox.files().remove_dir_all("/tmp/d");
                sandbox.files().copy_in(path, "/tmp/d")?;
                Ok(shell(sandbox, "cat /tmp/d/shadow"))
            }),
        ),
        (
            "copy out",
            Box::new(|path| {
                shell(sandbox, "mkdir -p /tmp/new && echo new > /tmp/new/file");
                let below = path.path().join("new");
                let to = match path.base() {
                    Some(base) => HostPath::beneath(base, below),
                    None => below.into(),
                };
                sandbox.files().copy_out("/tmp/new", to)?;
                Ok(HOST.to_owned())
            }),
        ),
        (
            "directory",
            Box::new(|path| {
                path.open_dir()?;
                Ok(HOST.to_owned())
            }),
        ),
    ]
}

type Use<'a> = dyn Fn(HostPath) -> Result<String> + 'a;

#[test]
fn beneath_a_base_no_link_is_followed_and_nothing_leads_out() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let host = host(&home);
    let base = home.path("base");
    fs::create_dir_all(base.join("sub")).unwrap();
    symlink(&host, base.join("link")).unwrap();
    symlink("../host", base.join("relative")).unwrap();
    symlink("link", base.join("twice")).unwrap();
    symlink("..", base.join("sub/up")).unwrap();
    symlink(".", base.join("sub/here")).unwrap();
    // The way to the base is the caller's.
    symlink("base", home.path("mine")).unwrap();
    succeeds(Command::new("cp").arg("-a").arg(&host).arg(base.join("sub/own")));
    let sandbox = home.sandbox();
    for (name, make) in uses(&home, &sandbox) {
        for bad in ["link", "relative", "twice", "sub/up/link", "sub/here/own"] {
            let refused = make(HostPath::beneath(&base, bad)).unwrap_err();
            assert!(matches!(refused, Error::Invalid { .. }), "{name}: {bad}: {refused}");
            assert!(refused.to_string().contains(LINK), "{refused}");
            // Control.
            assert_eq!(make(base.join(bad).into()).unwrap(), HOST, "{name}: {bad}");
        }
        for bad in ["../host", "sub/../../host", host.to_str().unwrap()] {
            let refused = make(HostPath::beneath(&base, bad)).unwrap_err();
            assert!(matches!(refused, Error::Invalid { .. }), "{name}: {bad}: {refused}");
            assert_eq!(make(base.join(bad).into()).unwrap(), HOST, "{name}: {bad}");
        }
        let absent = make(HostPath::beneath(&base, "absent")).unwrap_err();
        assert!(matches!(absent, Error::Io { .. }), "{name}: {absent}");
        for base in [&base, &home.path("mine")] {
            assert_eq!(make(HostPath::beneath(base, "sub/own")).unwrap(), HOST, "{name}");
            assert_eq!(make(HostPath::beneath(base.join("sub/own"), "")).unwrap(), HOST, "{name}");
        }
    }
    // Archives and devices are files.
    succeeds(Command::new("tar").arg("-cf").arg(host.join("tar")).arg("-C").arg(&host).arg("bin"));
    fs::copy(host.join("tar"), base.join("tar")).unwrap();
    let archive =
        |path: HostPath| Sandbox::create(Config { image: Image::archive(path), ..home.config() });
    assert!(matches!(archive(HostPath::beneath(&base, "link/tar")), Err(Error::Invalid { .. })));
    archive(HostPath::from(base.join("link/tar"))).unwrap();
    archive(HostPath::beneath(&base, "tar")).unwrap();
    symlink("/dev/null", base.join("null")).unwrap();
    let device = |source: HostPath| {
        let mounts = vec![Mount::Device { source, target: "/dev/other".into() }];
        Sandbox::create(Config { mounts, ..home.config() })
    };
    assert!(matches!(device(HostPath::beneath(&base, "null")), Err(Error::Invalid { .. })));
    device(HostPath::from(base.join("null"))).unwrap();
    device(HostPath::beneath("/dev", "null")).unwrap();
    // It is written down and read again as it was.
    let mounts = vec![Mount::volume(HostPath::beneath(&base, "link"), "/x", Access::ReadOnly)];
    let config = Config {
        image: Image::directory(HostPath::beneath(&base, "sub/own")),
        mounts,
        ..home.config()
    };
    let text = serde_json::to_string(&config).unwrap();
    let read: Config = serde_json::from_str(&text).unwrap();
    assert_eq!((&read.image, &read.mounts), (&config.image, &config.mounts));
    let read = Config { state_directory: Some(home.state()), ..read };
    assert!(matches!(Sandbox::create(read), Err(Error::Invalid { .. })));
}

#[test]
fn a_copy_to_an_open_directory_goes_there_whatever_has_its_path() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let hostdir = home.path("hostdir");
    fs::create_dir(&hostdir).unwrap();
    fs::create_dir_all(home.path("out/sub")).unwrap();
    let sandbox = home.sandbox();
    let files = sandbox.files();
    shell(&sandbox, "mkdir /tmp/t; echo own > /tmp/t/file");
    let opened = HostPath::from(home.path("out/sub")).open_dir().unwrap();
    fs::rename(home.path("out/sub"), home.path("out/old")).unwrap();
    symlink(&hostdir, home.path("out/sub")).unwrap();
    files.copy_out_at("/tmp/t", &opened, "t").unwrap();
    files.copy_out_at("/tmp/t/file", &opened, "t/again").unwrap();
    files.copy_out_at("/tmp/t", &opened, "").unwrap();
    assert_eq!(names(&home.path("out/old")), ["file", "t"]);
    assert_eq!(names(&home.path("out/old/t")), ["again", "file"]);
    files.copy_in_at(&opened, "t/again", "/tmp/back").unwrap();
    assert_eq!(shell(&sandbox, "cat /tmp/back"), "own\n");
    symlink(&hostdir, home.path("out/old/link")).unwrap();
    fs::write(hostdir.join("file"), HOST).unwrap();
    for bad in ["link/new", "../new", "t/../../../hostdir/new", "/tmp/new"] {
        let refused = files.copy_out_at("/tmp/t", &opened, bad).unwrap_err();
        assert!(matches!(refused, Error::Invalid { .. }), "{bad}: {refused}");
    }
    for bad in ["link", "link/file", "..", "/etc/passwd"] {
        let refused = files.copy_in_at(opened.as_fd(), bad, "/tmp/bad").unwrap_err();
        assert!(matches!(refused, Error::Invalid { .. }), "{bad}: {refused}");
    }
    // The target itself may be a link: it is neither followed nor replaced.
    files.copy_out_at("/tmp/t", &opened, "link").unwrap_err();
    assert_eq!(names(&hostdir), ["file"]);
    // Control.
    files.copy_out("/tmp/t", home.path("out/sub/t")).unwrap();
    assert_eq!(names(&hostdir), ["file", "t"]);
}

#[test]
fn what_is_swapped_while_it_is_opened_leads_nowhere() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let host = host(&home);
    let base = home.path("base");
    fs::create_dir_all(base.join("sub")).unwrap();
    fs::write(base.join("sub/shadow"), "own").unwrap();
    symlink(&host, base.join("other")).unwrap();
    let sandbox = home.sandbox();
    let files = sandbox.files();
    let [mut own, mut refused, mut followed] = [0; 3];
    std::thread::scope(|scope| {
        let (stop, stopped) = std::sync::mpsc::channel::<()>();
        let (one, other) = (base.join("sub"), base.join("other"));
        scope.spawn(move || {
            while stopped.try_recv() == Err(std::sync::mpsc::TryRecvError::Empty) {
                renameat2(AT_FDCWD, &one, AT_FDCWD, &other, RenameFlags::RENAME_EXCHANGE).unwrap();
            }
        });
        // Until each outcome was seen that there is: without end, where one is not.
        while own < 20 || refused < 20 || followed < 20 {
            match files.copy_in(HostPath::beneath(&base, "sub/shadow"), "/tmp/d") {
                Ok(_) => {
                    assert_eq!(files.read_file("/tmp/d").unwrap(), b"own");
                    own += 1;
                }
                Err(Error::Invalid { .. }) => refused += 1,
                Err(error) => panic!("{error}"),
            }
            // Control.
            files.copy_in(base.join("sub/shadow"), "/tmp/d").unwrap();
            followed += u32::from(files.read_file("/tmp/d").unwrap() == HOST.as_bytes());
        }
        drop(stop);
    });
}

#[test]
fn a_snapshot_lies_on_no_link_that_came_after_it() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let host = host(&home);
    let base = home.path("base");
    let make = |path: HostPath| {
        fs::create_dir(&base).unwrap();
        succeeds(Command::new("cp").arg("-a").arg(&host).arg(base.join("root")));
        let sandbox = home.sandbox_of(Image::directory(path));
        shell(&sandbox, "mkdir /new");
        let snapshot = sandbox.snapshot().unwrap();
        sandbox.delete().unwrap();
        drop(Sandbox::create(snapshot.config()).unwrap());
        assert_eq!(snapshot.changes().unwrap().len(), 1);
        fs::remove_dir_all(base.join("root")).unwrap();
        symlink(&host, base.join("root")).unwrap();
        snapshot
    };
    let snapshot = make(HostPath::beneath(&base, "root"));
    let refused = Sandbox::create(snapshot.config()).map(drop);
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    let refused = snapshot.changes();
    assert!(matches!(refused, Err(Error::Invalid { .. })), "{refused:?}");
    snapshot.delete().unwrap();
    // Control.
    fs::remove_dir_all(&base).unwrap();
    let snapshot = make(base.join("root").into());
    let fork = Sandbox::create(snapshot.config()).unwrap();
    assert_eq!(shell(&fork, "cat /shadow"), HOST);
    fork.delete().unwrap();
    snapshot.delete().unwrap();
}

#[test]
fn what_is_no_file_is_told_at_once() {
    if !needs(&[Need::Program("timeout")]) {
        return;
    }
    let home = Home::new();
    let fifo = home.path("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    let _socket = std::os::unix::net::UnixListener::bind(home.path("socket")).unwrap();
    let in_time = |seconds: &str, program: &Path, arguments: &[&str]| {
        let mut command = Command::new("timeout");
        command.arg(seconds).arg(program).args(arguments).current_dir(home.path(""));
        command.env("ADL_STATE_DIR", home.state()).stdin(Stdio::null()).output().unwrap()
    };
    // Control.
    assert_eq!(in_time("0.2", Path::new("cat"), &["fifo"]).status.code(), Some(HANGS));
    for odd in ["fifo", "socket", "/dev/null", "/dev/tty"] {
        let volume = |mode| format!("{odd}:/x:{mode}");
        let (ro, rw, cow) = (volume("ro"), volume("rw"), volume("cow"));
        let below = format!("/etc/passwd:{odd}/x");
        let image = if odd.starts_with('/') { odd.to_owned() } else { format!("./{odd}") };
        let options: [&[&str]; 7] = [
            &["--image", &image],
            &["--env-file", odd],
            &["-v", &ro],
            &["-v", &rw],
            &["-v", &cow],
            &["--beneath", odd],
            &["--copy-out", &below],
        ];
        for options in options {
            let arguments = [&["run"], options, &["--", "true"]].concat();
            let output = in_time("30", adl(), &arguments);
            assert_eq!(output.status.code(), Some(125), "{options:?}: {}", stderr(&output));
            assert!(stderr(&output).contains(odd), "{options:?}: {}", stderr(&output));
        }
        // Of a copy it is left out, and that is said.
        let copy = format!("{odd}:/tmp/x");
        let output = in_time("30", adl(), &["run", "--copy-in", &copy, "--", "true"]);
        assert!(output.status.success(), "{}", stderr(&output));
        assert!(stderr(&output).contains("not copied"), "{}", stderr(&output));
    }
    let device = in_time("30", adl(), &["run", "--device", "./fifo:/dev/x", "--", "true"]);
    assert_refused(&device, "fifo");
    for what in [Image::archive(&fifo), Image::directory(&fifo)] {
        // Without a watch: a test that hangs is ended.
        let made = Sandbox::create(Config { image: what.clone(), ..home.config() }).map(drop);
        assert!(
            matches!(made, Err(Error::Invalid { .. } | Error::Io { .. })),
            "{what:?}: {made:?}"
        );
    }
    let error = HostPath::from(&fifo).open_file().unwrap_err();
    assert!(matches!(error, Error::Invalid { .. }), "{error}");
    // What the caller has open may be a pipe, as a shell's `<(…)`.
    let mut adl = adl_command(&home.state());
    adl.args(["run", "--env-file", "/dev/stdin", "--", "sh", "-c", "echo $A"]);
    fs::write(home.path("variables"), "A=here\n").unwrap();
    for stdin in ["cat variables |", "< variables"] {
        let line = if stdin.ends_with('|') {
            format!("{stdin} \"$@\"")
        } else {
            format!("\"$@\" {stdin}")
        };
        let mut shell = Command::new("sh");
        shell.args(["-c", &line, "sh"]).arg(adl.get_program()).args(adl.get_args());
        shell.env("ADL_STATE_DIR", home.state()).current_dir(home.path(""));
        assert_eq!(succeeds(&mut shell), "here\n");
    }
}
