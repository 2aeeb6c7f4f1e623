//! A snapshot keeps what a sandbox wrote, and any number of others begin with it.

use std::fs;
use std::path::Path;
use std::time::Duration;

use adl_runtime::{
    Access, Change, ChangeKind, Config, Error, Export, IfRunning, Image, Limits, Mount, Sandbox,
    Snapshot, SnapshotOptions, Upper,
};

use crate::figures::percentile;
use crate::harness::{
    Home, Need, adl_command, beside, needs, processor_time, shell, stderr, succeeds, within,
};
use crate::helper::{Helper, say};
use crate::{census, images};

const SOON: Duration = Duration::from_secs(20);

fn named(name: &str) -> SnapshotOptions {
    SnapshotOptions { name: Some(name.to_owned()), ..SnapshotOptions::default() }
}

fn fork(snapshot: &Snapshot) -> Sandbox {
    Sandbox::create(snapshot.config()).unwrap()
}

/// What of snapshots is on disk.
fn on_disk(home: &Home) -> Vec<String> {
    adl_runtime::finish_removals();
    let entries = match std::fs::read_dir(home.state().join("snapshots")) {
        Ok(entries) => entries,
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => return Vec::new(),
        Err(error) => panic!("{error}"),
    };
    let mut names: Vec<_> =
        entries.map(|entry| entry.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    names
}

#[test]
fn a_fork_has_what_was_written_and_nothing_of_what_is_written_later() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(
        &sandbox,
        "echo one > /root/file; rm /etc/nsswitch.conf; mkdir -p /tmp/a/b; chmod 700 /tmp/a
         ln /root/file /root/link; ln -s /absent /root/symlink; touch -d @7 /root/old
         rm -r /etc/ssl; mkdir /etc/ssl; echo > /etc/ssl/new; mkfifo /tmp/fifo; echo > /dev/shm/gone",
    );
    let snapshot = sandbox.snapshot().unwrap();
    let look = "cat /root/file /root/link; ls /etc/ssl /dev/shm; stat -c '%a %F %Y' /tmp/a /root/symlink \
                /root/old /tmp/fifo | sed '2s/[0-9]*$//'; ls /etc/nsswitch.conf 2>&1; true";
    let expected = shell(&sandbox, look);
    assert!(
        expected.starts_with("one\none\n/dev/shm:\n\n/etc/ssl:\nnew\n700 directory"),
        "{expected}"
    );
    assert!(expected.contains("regular empty file 7\n"), "{expected}");
    let forks = [fork(&snapshot), fork(&snapshot)];
    for one in &forks {
        assert_eq!(shell(one, look), expected);
    }
    // What each writes is its own, and the snapshot stays.
    for (number, one) in forks.iter().chain([&sandbox]).enumerate() {
        shell(one, format!("echo {number} > /root/file; rm /tmp/a/b -r; echo > /tmp/{number}"));
    }
    for (number, one) in forks.iter().chain([&sandbox]).enumerate() {
        assert_eq!(shell(one, "cat /root/file; ls /tmp"), format!("{number}\n{number}\na\nfifo\n"));
    }
    assert_eq!(shell(&fork(&snapshot), look), expected);
    // A reset of a fork leads back to the snapshot, one of the sandbox to the image.
    let [one, _other] = forks;
    one.reset().unwrap();
    assert_eq!(shell(&one, look), expected);
    sandbox.reset().unwrap();
    assert_eq!(
        shell(&sandbox, "ls /root /tmp /etc/nsswitch.conf"),
        "/etc/nsswitch.conf\n\n/root:\n\n/tmp:\n"
    );
}

#[test]
fn a_snapshot_keeps_the_configuration() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let volume = home.path("volume");
    std::fs::create_dir(&volume).unwrap();
    std::fs::write(volume.join("of-the-host"), "host\n").unwrap();
    let sandbox = Sandbox::create(Config {
        name: Some("first".into()),
        hostname: Some("box".into()),
        mounts: vec![
            Mount::volume(&volume, "/data", Access::CopyOnWrite),
            Mount::tmpfs("/scratch", 1 << 20),
        ],
        ..home.config()
    })
    .unwrap();
    shell(&sandbox, "echo more > /data/of-the-host; echo > /data/new; echo > /scratch/gone");
    let first = sandbox.snapshot().unwrap();
    let config = first.config();
    assert_eq!((config.name.as_deref(), config.hostname.as_deref()), (None, Some("box")));
    assert_eq!(config.mounts.len(), 2);
    let look = "uname -n; cat /data/of-the-host; ls /data /scratch";
    let expected = "box\nmore\n/data:\nnew\nof-the-host\n\n/scratch:\n";
    assert_eq!(shell(&sandbox, look), expected);
    // A volume is no part of the image.
    assert_eq!(lines(&first.changes().unwrap()), "");
    let one = fork(&first);
    assert_eq!(shell(&one, look), expected);
    // On a second snapshot, too; and a fork may have other mounts.
    shell(&one, "rm /data/of-the-host");
    let second = one.snapshot().unwrap();
    assert_eq!(shell(&fork(&second), "ls /data"), "new\n");
    let other = Sandbox::create(Config { mounts: Vec::new(), ..second.config() }).unwrap();
    assert_eq!(shell(&other, "ls /data"), "");
    assert_eq!(std::fs::read_to_string(volume.join("of-the-host")).unwrap(), "host\n");
}

#[test]
fn one_with_a_name_is_there_until_it_is_deleted() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(&sandbox, "echo kept > /root/file");
    drop(sandbox.snapshot_with(&named("kept")).unwrap());
    assert_eq!(Snapshot::list(Some(&home.state())).unwrap(), ["kept"]);
    // Of another of its name there is none, and the sandbox has not changed.
    shell(&sandbox, "echo > /root/more");
    match sandbox.snapshot_with(&named("kept")) {
        Err(Error::NameInUse { name }) => assert_eq!(name, "kept"),
        other => panic!("{other:?}"),
    }
    assert_eq!(shell(&sandbox, "ls /root"), "file\nmore\n");
    drop(sandbox);
    assert_eq!(adl_runtime::collect_garbage(Some(&home.state())).unwrap(), [""; 0]);
    let one = home.sandbox_of(Image::snapshot("kept"));
    assert_eq!(shell(&one, "cat /root/file"), "kept\n");
    let snapshot = Snapshot::open(Some(&home.state()), "kept").unwrap();
    assert!(matches!(snapshot.delete(), Err(Error::Busy { .. })));
    assert_eq!(
        shell(&fork(&Snapshot::open(Some(&home.state()), "kept").unwrap()), "cat /root/file"),
        "kept\n"
    );
    one.delete().unwrap();
    Snapshot::open(Some(&home.state()), "kept").unwrap().delete().unwrap();
    assert_eq!(on_disk(&home), [""; 0]);
    for absent in [
        Snapshot::open(Some(&home.state()), "kept").map(drop),
        Sandbox::create(Config { image: Image::snapshot("kept"), ..home.config() }).map(drop),
    ] {
        assert!(matches!(absent, Err(Error::NoSnapshot { .. })), "{absent:?}");
    }
}

#[test]
fn one_without_a_name_goes_with_its_last_user() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(&sandbox, "echo > /root/file");
    let snapshot = sandbox.snapshot().unwrap();
    assert!(snapshot.name().starts_with('.'), "{}", snapshot.name());
    assert_eq!(Snapshot::list(Some(&home.state())).unwrap(), [""; 0]);
    let one = fork(&snapshot);
    let second = one.snapshot_with(&named("second")).unwrap();
    drop(snapshot);
    sandbox.reset().unwrap();
    one.delete().unwrap();
    // The second one lies on it.
    assert_eq!(on_disk(&home).len(), 2);
    assert_eq!(adl_runtime::collect_garbage(Some(&home.state())).unwrap(), [""; 0]);
    assert_eq!(shell(&fork(&second), "ls /root"), "file\n");
    second.delete().unwrap();
    assert_eq!(on_disk(&home), [""; 0]);
}

#[test]
fn processes_are_refused_or_ended_as_asked() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let child = sandbox.command("sleep").arg("1000").spawn().unwrap();
    // What a command has left behind counts, too.
    shell(&sandbox, "setsid sleep 1001 > /dev/null 2>&1 & echo > /root/file");
    // The two sleepers: what init itself has inside comes and goes.
    let running = || {
        let name = |pid| fs::read_to_string(format!("/proc/{pid}/comm")).unwrap_or_default();
        let mut all = census::tree(sandbox.init_pid());
        all.retain(|process| name(process.pid) == "sleep\n");
        all
    };
    let settled = || running().len() == 2;
    assert!(crate::harness::within(crate::lifetime::GONE, settled), "{:?}", running());
    let before = running();
    for _ in 0..2 {
        assert!(matches!(sandbox.snapshot(), Err(Error::Busy { .. })));
    }
    let gone: Vec<_> = before.iter().filter(|process| !process.exists()).collect();
    assert!(gone.is_empty(), "{gone:?} of {before:?}, now {:?}", running());
    assert_eq!(on_disk(&home), [""; 0]);
    let how = SnapshotOptions { running: IfRunning::End, ..SnapshotOptions::default() };
    let snapshot = sandbox.snapshot_with(&how).unwrap();
    assert!(before.iter().all(|process| !process.exists()), "{before:?}");
    assert_eq!(before.len(), 2);
    drop(child);
    assert_eq!(shell(&sandbox, "ls /root; echo > /root/more"), "file\n");
    assert_eq!(shell(&fork(&snapshot), "ls /root"), "file\n");
    // Nothing runs any more, at once.
    for _ in 0..20 {
        shell(&sandbox, "true");
        sandbox.snapshot().unwrap();
    }
}

#[test]
fn nothing_runs_in_what_was_just_made() {
    if !needs(&[Need::Cgroups]) {
        return;
    }
    let home = Home::new();
    let limits = Limits { accounting: true, ..Limits::default() };
    for _ in 0..50 {
        let sandbox = Sandbox::create(Config { limits: limits.clone(), ..home.config() }).unwrap();
        sandbox.snapshot().unwrap();
    }
}

#[test]
fn what_is_in_memory_can_not_be_kept() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let upper = Upper::Memory { size: 1 << 20 };
    let sandbox = Sandbox::create(Config { upper, ..home.config() }).unwrap();
    shell(&sandbox, "echo > /root/file");
    assert!(matches!(sandbox.snapshot(), Err(Error::Unsupported { .. })));
    assert_eq!(shell(&sandbox, "ls /root"), "file\n");
    // A sandbox on one can be.
    let disk = home.sandbox();
    shell(&disk, "echo > /root/file");
    let snapshot = disk.snapshot().unwrap();
    let one = Sandbox::create(Config { upper, ..snapshot.config() }).unwrap();
    assert_eq!(shell(&one, "echo > /root/more; ls /root"), "file\nmore\n");
}

#[test]
fn a_hundred_forks_at_once_see_nothing_of_one_another() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    shell(&sandbox, "echo first > /root/file; mkdir /root/d; seq 1000 > /root/d/seq");
    let snapshot = sandbox.snapshot().unwrap();
    let make = |number: usize| {
        let one = fork(&snapshot);
        shell(
            &one,
            format!(
                "cat /root/file > /root/old; echo {number} > /root/file; rm -r /root/d; mkdir /root/{number}"
            ),
        );
        one
    };
    let make = &make;
    let forks: Vec<Sandbox> = std::thread::scope(|scope| {
        let threads: Vec<_> = (0..10)
            .map(|thread| scope.spawn(move || (0..10).map(|n| make(thread * 10 + n)).collect()))
            .collect();
        threads
            .into_iter()
            .flat_map(|thread| thread.join().unwrap_or_else(|_| Vec::new()))
            .collect()
    });
    assert_eq!(forks.len(), 100);
    for (number, one) in forks.iter().enumerate() {
        let seen = shell(one, "cat /root/old /root/file; ls /root");
        let mut names = [number.to_string(), "file".to_owned(), "old".to_owned()];
        names.sort();
        assert_eq!(seen, format!("first\n{number}\n{}\n", names.join("\n")));
    }
    assert_eq!(shell(&fork(&snapshot), "cat /root/file; tail -1 /root/d/seq"), "first\n1000\n");
}

#[test]
fn chains_of_fifty_work_and_none_of_them_breaks() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let mut current = home.sandbox();
    let mut chain = Vec::new();
    for number in 0..50 {
        // Each adds, changes and removes.
        shell(
            &current,
            format!(
                "echo {number} > /root/last; echo > /root/f{number}; rm -f /root/f$(({number} - 2)); mkdir -p /tmp/d{number}/x"
            ),
        );
        let snapshot = current.snapshot_with(&named(&format!("s{number}"))).unwrap();
        // Half of the way by forks, half by going on.
        if number % 2 == 0 {
            current = fork(&snapshot);
        }
        chain.push(snapshot);
    }
    for (number, snapshot) in chain.iter().enumerate() {
        let seen = shell(&fork(snapshot), "cat /root/last; ls /root; ls /tmp | wc -l");
        let files = if number == 0 {
            "f0\n".to_owned()
        } else {
            let mut names = [format!("f{}", number - 1), format!("f{number}")];
            names.sort();
            format!("{}\n{}\n", names[0], names[1])
        };
        assert_eq!(seen, format!("{number}\n{files}last\n{}\n", number + 1));
    }
    drop(current);
    // From below, none can go; from above, all.
    for snapshot in chain.iter().take(49) {
        let other = Snapshot::open(Some(&home.state()), snapshot.name()).unwrap();
        assert!(matches!(other.delete(), Err(Error::Busy { .. })), "{}", snapshot.name());
    }
    assert_eq!(on_disk(&home).len(), 50);
    let mut names: Vec<String> = chain.iter().map(|one| one.name().to_owned()).collect();
    drop(chain);
    while let Some(name) = names.pop() {
        Snapshot::open(Some(&home.state()), &name).unwrap().delete().unwrap();
    }
    assert_eq!(on_disk(&home), [""; 0]);
}

#[test]
fn more_layers_than_there_can_be_are_an_error() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let image = home.path("image");
    images::small(&image);
    let sandbox = home.sandbox_of(Image::directory(&image));
    let (mut last, mut written) = (None, 0);
    for _ in 0..200 {
        shell(&sandbox, "echo >> /count");
        match sandbox.snapshot() {
            Ok(snapshot) => last = Some(snapshot),
            Err(Error::Invalid { .. }) => break,
            Err(other) => panic!("{other:?}"),
        }
        written += 1;
    }
    // Nothing is lost by that.
    assert_eq!(shell(&sandbox, "cat /count").lines().count(), written + 1);
    let last = last.unwrap();
    let lines = shell(&fork(&last), "cat /count").lines().count();
    assert!(lines > 100, "{lines}");
    sandbox.reset().unwrap();
    shell(&sandbox, "test ! -e /count");
}

#[test]
fn of_two_that_are_made_under_one_name_one_is_and_the_other_loses_nothing() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let mut sandboxes = [home.sandbox(), home.sandbox()];
    for round in 0..20 {
        let name = format!("one{round}");
        for sandbox in &sandboxes {
            shell(sandbox, format!("echo {round} >> /root/rounds"));
        }
        let barrier = std::sync::Barrier::new(2);
        let make = |sandbox: &mut Sandbox| {
            barrier.wait();
            sandbox.snapshot_with(&named(&name))
        };
        let make = &make;
        let made: Vec<_> = std::thread::scope(|scope| {
            let threads = sandboxes.each_mut().map(|one| scope.spawn(move || make(one)));
            threads.into_iter().map(|thread| thread.join().unwrap()).collect()
        });
        assert_eq!(made.iter().filter(|made| made.is_ok()).count(), 1, "{made:?}");
        for sandbox in &sandboxes {
            assert_eq!(shell(sandbox, "wc -l < /root/rounds"), format!("{}\n", round + 1));
        }
    }
    drop(sandboxes);
    for name in Snapshot::list(Some(&home.state())).unwrap().iter().rev().cycle() {
        // In whatever order they lie on one another.
        match Snapshot::remove(Some(&home.state()), name) {
            Ok(()) | Err(Error::Busy { .. } | Error::NoSnapshot { .. }) => {}
            Err(other) => panic!("{other:?}"),
        }
        if on_disk(&home).is_empty() {
            break;
        }
    }
}

#[test]
fn handles_and_forks_that_end_side_by_side_leave_nothing() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let work = || {
        for _ in 0..8 {
            let sandbox = home.sandbox();
            let first = sandbox.snapshot().unwrap();
            let one = fork(&first);
            let second = one.snapshot().unwrap();
            let other = fork(&second);
            std::thread::scope(|scope| {
                scope.spawn(|| drop(sandbox));
                scope.spawn(|| drop((first, one)));
                scope.spawn(|| drop((second, other)));
            });
        }
    };
    std::thread::scope(|scope| (0..4).for_each(|_| drop(scope.spawn(work))));
    assert_eq!(on_disk(&home), [""; 0]);
    assert_eq!(adl_runtime::collect_garbage(Some(&home.state())).unwrap(), [""; 0]);
}

#[test]
fn a_snapshot_is_there_whoever_looks_whether_it_can_go() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    drop(sandbox.snapshot().unwrap());
    let kept = sandbox.snapshot_with(&named("kept")).unwrap();
    drop((sandbox, kept));
    let collects = |_| drop(succeeds(adl_command(&home.state()).arg("gc")));
    beside(1, collects, || {
        for _ in 0..40 {
            succeeds(adl_command(&home.state()).args(["run", "--image", "snapshot:kept", "true"]));
        }
    });
    Snapshot::remove(Some(&home.state()), "kept").unwrap();
    assert_eq!(on_disk(&home), [""; 0]);
}

#[test]
fn a_record_that_can_not_be_read_is_in_no_ones_way() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    for name in ["broken", "newer", "whole"] {
        drop(sandbox.snapshot_with(&named(name)).unwrap());
        sandbox.reset().unwrap();
    }
    let record = |name: &str| home.state().join("snapshots").join(name).join("snapshot.json");
    std::fs::write(record("broken"), "").unwrap();
    // Of a form that is not known: it says of one that it lies on it, and has told that.
    std::fs::write(record("newer"), r#"{"form": 99, "lies": ["on", "whole"]}"#).unwrap();
    std::fs::write(record("whole").with_file_name("users").join("1.newer"), "").unwrap();
    let open = |name| Snapshot::open(Some(&home.state()), name).map(drop);
    assert!(matches!(open("broken"), Err(Error::Io { .. })));
    assert!(matches!(open("newer"), Err(Error::Io { .. })));
    let remove = |name| Snapshot::remove(Some(&home.state()), name);
    assert!(matches!(remove("whole"), Err(Error::Busy { .. })));
    for name in ["newer", "whole", "broken"] {
        remove(name).unwrap();
    }
    assert_eq!(on_disk(&home), [""; 0]);
}

#[test]
fn it_takes_as_long_whatever_was_written() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let mut times = Vec::new();
    for size in ["1m", "512m"] {
        let mut both = Vec::new();
        let sandbox = home.sandbox();
        shell(&sandbox, format!("head -c {size} /dev/zero > /root/large"));
        for _ in 0..9 {
            shell(&sandbox, "echo >> /root/large");
            let (time, one) = processor_time(|| {
                let snapshot = sandbox.snapshot().unwrap();
                fork(&snapshot)
            });
            both.push(time);
            drop(one);
        }
        times.push(percentile(&mut both, 50));
    }
    eprintln!("snapshot and fork of 1 MiB and of 512 MiB: {times:?}");
    // Copying them takes a hundred milliseconds and more.
    assert!(times[1] < times[0].max(Duration::from_millis(4)) * 5, "{times:?}");
}

#[test]
fn what_a_dead_caller_left_of_snapshots_is_collected() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    for round in 0..12 {
        let mut helper = Helper::start("snapshot-for-ever", &home.state());
        for _ in 0..=round {
            helper.next().unwrap();
        }
        helper.kill();
        let collect = || adl_runtime::collect_garbage(Some(&home.state())).unwrap();
        // The last processes may hold locks for a moment.
        let gone = || {
            collect();
            home.left().is_empty()
        };
        assert!(crate::harness::within(crate::lifetime::GONE, gone), "{:?}", home.left());
        // Those with names are whole.
        let mut names = Snapshot::list(Some(&home.state())).unwrap();
        for name in &names {
            let one = home.sandbox_of(Image::snapshot(name));
            assert_eq!(shell(&one, "cat /root/number"), format!("{}\n", &name[1..]));
            one.delete().unwrap();
        }
        // And so is what they lie on, which goes with them.
        names.sort_by_key(|name| name[1..].parse::<u32>().unwrap());
        for name in names.iter().rev() {
            Snapshot::open(Some(&home.state()), name).unwrap().delete().unwrap();
        }
        collect();
        assert_eq!(on_disk(&home), [""; 0]);
    }
}

/// The helper of the test above.
pub(crate) fn snapshot_for_ever(state: &Path) {
    let config = Config { state_directory: Some(state.to_owned()), ..Config::default() };
    let sandbox = Sandbox::create(config).unwrap();
    for number in 0.. {
        if number % 8 == 0 {
            sandbox.reset().unwrap();
        }
        shell(&sandbox, format!("echo {number} > /root/number"));
        say("snapshot");
        if number % 3 == 0 {
            drop(sandbox.snapshot_with(&named(&format!("n{number}"))).unwrap());
        } else {
            let snapshot = sandbox.snapshot().unwrap();
            drop(fork(&snapshot));
        }
    }
}

#[test]
fn the_command_line_keeps_and_lists_and_removes() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let adl = |arguments: &[&str]| succeeds(adl_command(&home.state()).args(arguments));
    let make =
        "echo kept > /root/file; rm /etc/nsswitch.conf; echo 10.0.0.1 > /etc/added; sleep 1000 &";
    adl(&["run", "--snapshot", "one", "--", "sh", "-c", make]);
    assert_eq!(adl(&["snapshot", "ls", "-q"]), "one\n");
    assert_eq!(adl(&["run", "--image", "snapshot:one", "--", "cat", "/root/file"]), "kept\n");
    let changes = adl(&["snapshot", "changes", "one"]);
    assert_eq!(changes, "A /etc/added\nD /etc/nsswitch.conf\nA /root/file\n");
    let again = adl_command(&home.state())
        .args(["run", "--snapshot", "one", "--", "true"])
        .output()
        .unwrap();
    assert_eq!(again.status.code(), Some(125));
    assert!(stderr(&again).contains("in use"), "{}", stderr(&again));
    // What can't come about is told before the work is done.
    for upper in ["disk", "memory:8m"] {
        let mut early = adl_command(&home.state());
        early.args(["run", "--upper", upper, "--snapshot", "one", "--", "echo", "worked"]);
        let early = early.output().unwrap();
        assert_eq!((early.status.code(), &*early.stdout), (Some(125), &b""[..]), "{upper}");
    }
    adl(&["snapshot", "rm", "one"]);
    assert_eq!(adl(&["snapshot", "ls", "-q"]), "");
    let absent = adl_command(&home.state())
        .args(["run", "--image", "snapshot:one", "true"])
        .output()
        .unwrap();
    assert!(stderr(&absent).contains("no snapshot named \"one\""), "{}", stderr(&absent));
}

/// Changes as lines.
fn lines(changes: &[Change]) -> String {
    let line = |change: &Change| {
        let path = change.path.display();
        match change.kind {
            ChangeKind::Added => format!("A {path}\n"),
            ChangeKind::Modified => format!("C {path}\n"),
            ChangeKind::Deleted => format!("D {path}\n"),
            _ => panic!("{change:?}"),
        }
    };
    changes.iter().map(line).collect()
}

#[test]
fn changes_are_what_differs_from_the_image() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    assert_eq!(lines(&sandbox.changes().unwrap()), "");
    shell(
        &sandbox,
        "cd /; mkdir -p opt/a/b; echo > opt/a/file; echo >> etc/passwd; rm etc/nsswitch.conf; chmod 700 srv
         rm -r etc/ssl/certs; rm -rf home; echo > home; echo > tmp/gone; rm tmp/gone
         mv etc/group etc/moved; ls -R usr > /dev/null 2>&1 || :",
    );
    let expected = "C /etc/passwd
D /etc/group
A /etc/moved
D /etc/nsswitch.conf
D /etc/ssl/certs
C /home
A /opt/a
A /opt/a/b
A /opt/a/file
C /srv
";
    let sorted = |text: &str| {
        let mut lines: Vec<_> =
            text.lines().map(|line| line[2..].to_owned() + &line[..1]).collect();
        lines.sort();
        lines
    };
    let before = lines(&sandbox.changes().unwrap());
    assert_eq!(sorted(&before), sorted(expected), "{before}");
    let snapshot = sandbox.snapshot().unwrap();
    assert_eq!(lines(&snapshot.changes().unwrap()), before);
    // What comes on top is a change to the image, too; of a fork, the snapshot is the image.
    shell(&sandbox, "rm /etc/moved; echo > /etc/nsswitch.conf");
    let later = lines(&sandbox.changes().unwrap());
    assert!(!later.contains("moved") && later.contains("C /etc/nsswitch.conf"), "{later}");
    let one = fork(&snapshot);
    assert_eq!(lines(&one.changes().unwrap()), "");
    shell(&one, "rm /etc/moved; echo > /etc/nsswitch.conf");
    assert_eq!(lines(&one.changes().unwrap()), "D /etc/moved\nA /etc/nsswitch.conf\n");
    let second = one.snapshot().unwrap();
    assert_eq!(lines(&second.changes().unwrap()), "D /etc/moved\nA /etc/nsswitch.conf\n");
    sandbox.reset().unwrap();
    assert_eq!(lines(&sandbox.changes().unwrap()), "");
    let memory = Config { upper: Upper::Memory { size: 1 << 20 }, ..home.config() };
    let changes = Sandbox::create(memory).unwrap().changes();
    assert!(matches!(changes, Err(Error::Unsupported { .. })), "{changes:?}");
}

#[test]
fn an_export_is_an_image_again_or_a_layer_of_one() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let image = home.path("image");
    images::small(&image);
    for directory in ["etc", "tmp", "old/sub"] {
        std::fs::create_dir_all(image.join(directory)).unwrap();
    }
    for file in ["etc/a", "etc/b", "old/sub/file"] {
        std::fs::write(image.join(file), "image\n").unwrap();
    }
    let sandbox = home.sandbox_of(Image::directory(&image));
    let change = "cd /; echo changed > etc/a; rm etc/b; rm -r old; echo > new; : > etc/empty";
    shell(&sandbox, format!("{change}; cat etc/a > 'etc/a b'"));
    let snapshot = sandbox.snapshot().unwrap();
    let (tree, layer) = (home.path("tree.tar"), home.path("layer.tar"));
    for (what, path) in [(Export::Tree, &tree), (Export::Layer, &layer)] {
        let report = snapshot.export(what, std::fs::File::create(path).unwrap()).unwrap();
        assert_eq!(report.skipped, []);
    }
    let of_tree = home.sandbox_of(Image::archive(&tree));
    let look = "cd /; rm etc/hosts etc/hostname; ls etc; cat etc/a 'etc/a b' new; ls old";
    let seen = of_tree.shell(look).output().unwrap();
    assert_eq!(seen.stdout, b"a\na b\nempty\nchanged\nchanged\n\n");
    assert!(!seen.status.success());
    let mut names: Vec<_> = succeeds(std::process::Command::new("tar").arg("-tf").arg(&layer))
        .lines()
        .map(|name| name.trim_start_matches("./").trim_end_matches('/').to_owned())
        .filter(|name| !name.is_empty() && !["proc", "dev", "tmp"].contains(&&**name))
        .collect();
    names.sort();
    assert_eq!(names, [".wh.old", "etc", "etc/.wh.b", "etc/a", "etc/a b", "etc/empty", "new"]);
    // A name that would delete something where the layer is used is refused, and nothing else is.
    shell(&sandbox, ": > /etc/.wh.passwd");
    let hostile = sandbox.snapshot().unwrap();
    let refused = hostile.export(Export::Layer, std::io::sink()).map(drop);
    assert!(matches!(refused, Err(Error::Refused { .. })), "{refused:?}");
    hostile.export(Export::Tree, std::io::sink()).unwrap();
}

#[test]
fn names_of_snapshots_are_checked() {
    if !needs(&[Need::Userns]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    for name in ["", "a/b", "..", ".unnamed-1-1", "a\0b", "-x"] {
        assert!(
            matches!(sandbox.snapshot_with(&named(name)), Err(Error::Invalid { .. })),
            "{name:?}"
        );
        let opened = Snapshot::open(Some(&home.state()), name).map(drop);
        assert!(matches!(opened, Err(Error::Invalid { .. })), "{name:?}: {opened:?}");
        let image = Image::snapshot(name);
        let made = Sandbox::create(Config { image, ..home.config() }).map(drop);
        let is_own = name.starts_with(".unnamed");
        assert!(
            matches!(made, Err(Error::NoSnapshot { .. })) && is_own
                || matches!(made, Err(Error::Invalid { .. })),
            "{name:?}: {made:?}"
        );
    }
    shell(&sandbox, "true");
}

#[test]
fn a_file_call_that_is_over_keeps_no_sandbox_busy() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let files = sandbox.files();
    files.write_file("/root/file", "content").unwrap();
    // All of it is in the pipe, and no one has read it.
    let mut reader = files.open_read("/root/file").unwrap();
    let snapshot = || sandbox.snapshot().map_err(|error| format!("{error:?}"));
    let mut last = Ok(());
    let is_made = within(SOON, || {
        last = snapshot().map(drop);
        last.is_ok()
    });
    assert!(is_made, "{last:?}");
    let mut read = String::new();
    std::io::Read::read_to_string(&mut reader, &mut read).unwrap();
    assert_eq!(read, "content");
    // What was to write it has died, and no one has looked.
    let writer = files.open_write("/root/other", adl_runtime::WriteOptions::new()).unwrap();
    assert!(matches!(snapshot(), Err(error) if error.contains("Busy")));
    sandbox.kill_all().unwrap();
    assert!(within(SOON, || snapshot().is_ok()));
    writer.finish().unwrap_err();
}
