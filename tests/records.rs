//! What lies in the state directory is looked at before it is believed, and names are no paths.
//!
//! What is odd or left behind is in no one's way.

use std::ffi::OsStr;
use std::fs::{self, Permissions};
use std::os::unix::ffi::OsStrExt;
use std::os::unix::fs::{PermissionsExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use adl_runtime::{Config, Error, Image, Sandbox, Snapshot, SnapshotOptions, collect_garbage};
use nix::sys::stat::Mode;
use nix::time::{ClockId, clock_gettime};
use nix::unistd::mkfifo;
use serde_json::{Value, json};

use crate::harness::{Home, NOBODY, adl_command, needs, shell, stderr, succeeds, within};

fn named(name: &str) -> SnapshotOptions {
    SnapshotOptions { name: Some(name.to_owned()), ..SnapshotOptions::default() }
}

fn snapshots(home: &Home) -> PathBuf {
    home.state().join("snapshots")
}

fn images(home: &Home) -> PathBuf {
    home.state().join("images")
}

fn open(home: &Home, name: &str) -> Result<Snapshot, Error> {
    Snapshot::open(Some(&home.state()), name)
}

fn remove(home: &Home, name: &str) -> Result<(), Error> {
    Snapshot::remove(Some(&home.state()), name)
}

fn create(home: &Home, name: &str) -> Result<Sandbox, Error> {
    Sandbox::create(Config { image: Image::snapshot(name), ..home.config() })
}

/// The names in a directory, sorted.
fn entries(directory: &Path) -> Vec<String> {
    adl_runtime::finish_removals();
    let entries = fs::read_dir(directory).into_iter().flatten();
    let name = |entry: std::io::Result<fs::DirEntry>| entry.unwrap().file_name();
    let mut names: Vec<_> =
        entries.map(|entry| name(entry).to_string_lossy().into_owned()).collect();
    names.sort();
    names
}

/// The record of a snapshot, and what it says.
fn record(home: &Home, name: &str) -> (PathBuf, Value) {
    let path = snapshots(home).join(name).join("snapshot.json");
    let value = serde_json::from_slice(&fs::read(&path).unwrap()).unwrap();
    (path, value)
}

/// A directory of the host's that no sandbox may see.
fn canary(home: &Home) -> PathBuf {
    let path = home.path("canary");
    fs::create_dir(&path).unwrap();
    fs::write(path.join("secret"), "of the host\n").unwrap();
    path
}

#[test]
fn a_name_of_a_snapshot_is_no_path() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let canary = canary(&home);
    let sandbox = home.sandbox();
    let unnamed = sandbox.snapshot().unwrap();
    let own = unnamed.name().to_owned();
    drop(sandbox.snapshot_with(&named("kept")).unwrap());
    // What a guest has written looks like a snapshot of a directory of the host's.
    let guest = Sandbox::create(Config { name: Some("T".to_owned()), ..home.config() }).unwrap();
    let (_, mut evil) = record(&home, "kept");
    let layers = json!([{ "directory": { "path": canary } }]);
    evil["trees"] = json!([{
        "at": "", "layers": layers, "changed": 0, "is_volume": false, "is_subvolume": false
    }]);
    let write = format!(
        "mkdir -m 700 /evil && cat > /evil/snapshot.json && chmod 600 /evil/*; {}",
        "ls -d /evil"
    );
    let written = guest.shell(write).input(evil.to_string()).output().unwrap();
    assert!(written.status.success(), "{written:?}");
    let of_guest = "../../sandboxes/T/0.upper/evil";
    assert!(snapshots(&home).join(&own).join(of_guest).join("snapshot.json").is_file());

    for name in [
        format!("{own}/../kept"),
        format!("{own}/{of_guest}"),
        format!("{own}/../{own}"),
        format!("{own}/."),
        format!("../snapshots/{own}"),
        "../snapshots/kept".to_owned(),
        ".unnamed-/../kept".to_owned(),
        ".unnamed-x/../kept".to_owned(),
        ".unnamed-".to_owned(),
        "kept/".to_owned(),
        snapshots(&home).join("kept").to_str().unwrap().to_owned(),
    ] {
        // By a caller, from a file, and from the command line.
        let json = json!({ "image": { "snapshot": name } });
        let from_file: Config = serde_json::from_value(json).unwrap();
        let from_file = Config { state_directory: Some(home.state()), ..from_file };
        for made in [create(&home, &name), Sandbox::create(from_file)] {
            assert!(matches!(made, Err(Error::Invalid { .. })), "{name:?}: {made:?}");
        }
        assert!(matches!(open(&home, &name), Err(Error::Invalid { .. })), "{name:?}");
        assert!(matches!(remove(&home, &name), Err(Error::Invalid { .. })), "{name:?}");
        let image = format!("snapshot:{name}");
        for arguments in [
            &["run", "--image", &image, "--", "cat", "/secret"][..],
            &["snapshot", "rm", &name],
            &["snapshot", "changes", &name],
            &["run", "--snapshot", &name, "--", "true"],
        ] {
            let output = adl_command(&home.state()).args(arguments).output().unwrap();
            assert_eq!(output.status.code(), Some(125), "{arguments:?}: {output:?}");
            assert!(output.stdout.is_empty(), "{arguments:?}: {output:?}");
        }
        assert_eq!(entries(&snapshots(&home)), [own.clone(), "kept".to_owned()], "{name:?}");
    }
    // The names themselves are good.
    for name in [&own, "kept"] {
        shell(&create(&home, name).unwrap(), "true");
    }
    drop((sandbox, unnamed));
    open(&home, "kept").unwrap().delete().unwrap();
    assert_eq!(entries(&snapshots(&home)), [""; 0]);
}

/// Makes a snapshot that lies on another, both with names, and a volume's changes in it.
fn two_on_one_another(home: &Home) {
    let sandbox = home.sandbox();
    shell(&sandbox, "echo below > /root/below");
    drop(sandbox.snapshot_with(&named("below")).unwrap());
    shell(&sandbox, "echo above > /root/above");
    drop(sandbox.snapshot_with(&named("above")).unwrap());
}

#[test]
fn a_record_is_believed_only_as_adl_writes_it() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let canary = canary(&home);
    two_on_one_another(&home);
    let (path, good) = record(&home, "above");
    // The control: what is whole is, also after it was written again by its owner.
    let is_good = |home: &Home| {
        let one = create(home, "above").unwrap();
        assert_eq!(shell(&one, "cat /root/below /root/above"), "below\nabove\n");
    };
    fs::write(&path, good.to_string()).unwrap();
    is_good(&home);

    let of = |name: &str, part: &str| json!({ "snapshot": { "name": name, "part": part } });
    let at = |path: &str| json!({ "directory": { "path": path } });
    let (own, below) = (of("above", "0.upper"), of("below", "0.upper"));
    let image = good["trees"][0]["layers"][2].clone();
    assert_eq!(good["trees"][0]["layers"], json!([own, below, image]));
    let secret = canary.to_str().unwrap();
    let layers = [
        json!([]),
        json!([image]),
        json!([own]),
        json!([own, below]),
        json!([own, at(secret), below, image]),
        json!([below, image]),
        json!([own, own, image]),
        json!([own, of("../kept", "0.upper"), image]),
        json!([own, of("", "0.upper"), image]),
        json!([of("below/../above", "0.upper"), image]),
        json!([of("above", "../below/0.upper"), image]),
        json!([of("above", "0.upper/root"), image]),
        json!([of("above", "00.upper"), image]),
        json!([of("above", "+0.upper"), image]),
        json!([of("above", "0.work"), image]),
        json!([of("above", "root"), image]),
        json!([of("above", "users"), image]),
        json!([of("above", ""), image]),
        json!([own, at("sandboxes")]),
        json!([own, at("")]),
        json!([own, at("images")]),
        json!([own, at("images/..")]),
        json!([own, at("images/../../canary")]),
        json!([own, at("../canary")]),
        json!([own, image, image]),
        Value::Array(std::iter::repeat_n(own.clone(), 200).chain([image.clone()]).collect()),
    ];
    let with = |change: &dyn Fn(&mut Value)| {
        let mut changed = good.clone();
        change(&mut changed);
        changed
    };
    let mut bad: Vec<Value> = layers
        .iter()
        .map(|layers| with(&|record| record["trees"][0]["layers"] = layers.clone()))
        .collect();
    for (key, value) in [
        ("at", json!("/etc")),
        ("at", json!("etc")),
        ("at", json!("../..")),
        ("changed", json!(0)),
        ("changed", json!(9)),
        ("is_volume", json!(true)),
        ("is_subvolume", json!(true)),
    ] {
        bad.push(with(&|record| record["trees"][0][key] = value.clone()));
    }
    bad.push(with(&|record| record["trees"] = json!([])));
    bad.push(with(&|record| record["trees"][1]["at"] = json!("usr/../..")));
    // A second tree on what the root does not lie on could lose its layer.
    bad.push(with(&|record| record["trees"][0]["layers"] = json!([own, image])));
    bad.push(with(&|record| {
        let trees = record["trees"].as_array_mut().unwrap();
        let last = trees.last().unwrap().clone();
        trees.extend(std::iter::repeat_n(last, 300));
    }));
    for value in &bad {
        fs::write(&path, value.to_string()).unwrap();
        let made = create(&home, "above");
        assert!(matches!(made, Err(Error::Io { .. })), "{value}: {made:?}");
        assert!(matches!(open(&home, "above"), Err(Error::Io { .. })), "{value}");
    }
    // Too much of it.
    fs::write(&path, format!("{}{}", good, " ".repeat(16 << 20))).unwrap();
    assert!(matches!(create(&home, "above"), Err(Error::Io { .. })));
    fs::write(&path, good.to_string()).unwrap();
    is_good(&home);

    // The file and the directory are looked at, too.
    let elsewhere = home.path("elsewhere.json");
    fs::copy(&path, &elsewhere).unwrap();
    let file = |make: &dyn Fn()| {
        fs::remove_file(&path).unwrap();
        make();
        let made = create(&home, "above");
        assert!(matches!(made, Err(Error::Io { .. })), "{made:?}");
        let removed = remove(&home, "below");
        assert!(matches!(removed, Err(Error::Busy { .. } | Error::Io { .. })), "{removed:?}");
        if path.is_dir() { fs::remove_dir(&path) } else { fs::remove_file(&path) }.unwrap();
        fs::write(&path, good.to_string()).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o600)).unwrap();
    };
    file(&|| mkfifo(&path, Mode::S_IRWXU).unwrap());
    file(&|| symlink(&elsewhere, &path).unwrap());
    file(&|| fs::create_dir(&path).unwrap());
    file(&|| {
        fs::write(&path, good.to_string()).unwrap();
        fs::set_permissions(&path, Permissions::from_mode(0o666)).unwrap();
    });
    let directory = snapshots(&home).join("above");
    let refused = |what: &str| {
        let made = create(&home, "above");
        assert!(matches!(made, Err(Error::Io { .. })), "{what}: {made:?}");
    };
    fs::set_permissions(&directory, Permissions::from_mode(0o770)).unwrap();
    refused("a directory that a group can write to");
    fs::set_permissions(&directory, Permissions::from_mode(0o700)).unwrap();
    if nix::unistd::geteuid().is_root() {
        for path in [&directory, &path] {
            chown(path, Some(NOBODY), None).unwrap();
            refused("of someone else");
            chown(path, Some(0), None).unwrap();
        }
    }
    is_good(&home);

    // A link in the place of the snapshot is no snapshot, and one in the place of a part no part.
    let aside = home.path("aside");
    fs::rename(&directory, &aside).unwrap();
    symlink(&aside, &directory).unwrap();
    assert!(matches!(create(&home, "above"), Err(Error::NoSnapshot { .. })));
    fs::remove_file(&directory).unwrap();
    fs::rename(&aside, &directory).unwrap();
    let part = directory.join("0.upper");
    fs::rename(&part, &aside).unwrap();
    for target in [aside.as_path(), &canary, Path::new("../below/0.upper")] {
        symlink(target, &part).unwrap();
        refused("a link for a part");
        fs::remove_file(&part).unwrap();
    }
    fs::rename(&aside, &part).unwrap();
    is_good(&home);
    for name in ["above", "below"] {
        remove(&home, name).unwrap();
    }
}

#[test]
fn one_with_others_on_it_stays_however_that_is_known() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let is_busy = |home: &Home| {
        let removed = remove(home, "below");
        assert!(matches!(removed, Err(Error::Busy { .. })), "{removed:?}");
        shell(&create(home, "above").unwrap(), "cat /root/below");
    };
    let ends = |home: &Home| {
        remove(home, "above").unwrap();
        remove(home, "below").unwrap();
        assert_eq!(entries(&snapshots(home)), [""; 0]);
    };
    two_on_one_another(&home);
    is_busy(&home);
    ends(&home);

    // Of one that adl made before snapshots were told who lies on them.
    two_on_one_another(&home);
    for name in ["below", "above"] {
        let users = snapshots(&home).join(name).join("users");
        fs::remove_dir_all(&users).unwrap();
    }
    is_busy(&home);
    let fork = create(&home, "above").unwrap();
    drop(fork.snapshot_with(&named("top")).unwrap());
    drop(fork);
    assert!(matches!(remove(&home, "above"), Err(Error::Busy { .. })));
    remove(&home, "top").unwrap();
    ends(&home);

    // What is gone, whoever died before that was written down, is in no one's way; nor what is odd.
    two_on_one_another(&home);
    let users = snapshots(&home).join("below").join("users");
    assert_eq!(entries(&users).len(), 1);
    for name in ["1.gone", "7..unnamed-0123456789abcdef-0", "odd", "x.y", "1.a..b"] {
        fs::write(users.join(name), "").unwrap();
    }
    mkfifo(&users.join("1.fifo"), Mode::S_IRWXU).unwrap();
    is_busy(&home);
    // The name of what lay on it may have become another's, that lies on nothing.
    let sandbox = home.sandbox();
    drop(sandbox.snapshot_with(&named("gone")).unwrap());
    drop(sandbox);
    is_busy(&home);
    remove(&home, "gone").unwrap();
    ends(&home);

    // A copy of the state directory, where inode numbers are others.
    two_on_one_another(&home);
    let copy = Home::new();
    adl_runtime::finish_removals();
    copy_tree(&home.state(), &copy.state());
    is_busy(&copy);
    ends(&copy);
    is_busy(&home);
    ends(&home);
}

#[test]
fn what_lies_on_one_is_forgotten_with_it() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    let base = sandbox.snapshot_with(&named("base")).unwrap();
    let users = || entries(&snapshots(&home).join("base/users"));
    assert_eq!(users(), [""; 0]);
    for round in 0..3 {
        let fork = Sandbox::create(base.config()).unwrap();
        // One that does not come about leaves no trace.
        let failed = fork.snapshot_with(&named("base"));
        assert!(matches!(failed, Err(Error::NameInUse { .. })), "{failed:?}");
        assert_eq!(users(), [""; 0]);
        let first = fork.snapshot_with(&named("first")).unwrap();
        let second = fork.snapshot().unwrap();
        // The second lies on it by way of the first.
        assert_eq!(users().len(), 1, "{round}");
        drop((fork, second));
        first.delete().unwrap();
        assert_eq!(users(), [""; 0]);
    }
    drop(sandbox);
    base.delete().unwrap();
    assert_eq!(entries(&snapshots(&home)), [""; 0]);
}

/// The processor time of this thread alone.
fn processor_time() -> Duration {
    clock_gettime(ClockId::CLOCK_THREAD_CPUTIME_ID).unwrap().into()
}

fn time_of(work: impl FnOnce()) -> Duration {
    let begin = processor_time();
    work();
    processor_time() - begin
}

#[test]
fn removing_one_costs_the_same_whatever_others_there_are() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox = home.sandbox();
    drop(sandbox.snapshot_with(&named("s0")).unwrap());
    drop(sandbox);
    let place = snapshots(&home);
    let record = fs::read_to_string(place.join("s0/snapshot.json")).unwrap();
    let copy = |number: usize| {
        let name = format!("s{number}");
        copy_tree(&place.join("s0"), &place.join(&name));
        let text = record.replace("\"s0\"", &format!("\"{name}\""));
        fs::write(place.join(&name).join("snapshot.json"), text).unwrap();
    };
    let least = |numbers: std::ops::Range<usize>| {
        let one = |number| time_of(|| remove(&home, &format!("s{number}")).unwrap());
        numbers.map(one).min().unwrap()
    };
    (1..30).for_each(copy);
    let few = least(1..11);
    (30..620).for_each(copy);
    let many = least(11..21);
    eprintln!("processor time of a removal beside 20 snapshots: {few:?}, beside 600: {many:?}");
    // The copies are whole.
    shell(&create(&home, "s619").unwrap(), "true");
    assert!(many <= few.max(Duration::from_micros(300)) * 3, "{few:?}, {many:?}");
}

#[test]
fn the_end_of_a_chain_costs_the_same_for_each_of_it() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let each = |length: u32| {
        let sandbox = home.sandbox();
        let chain: Vec<_> = (0..length).map(|_| sandbox.snapshot().unwrap()).collect();
        drop(sandbox);
        // From below, so that all but the last find others on them.
        let time = time_of(|| drop(chain));
        assert_eq!(entries(&snapshots(&home)), [""; 0]);
        time / length
    };
    let least = |length| (0..3).map(|_| each(length)).min().unwrap();
    let (short, long) = (least(15), least(105));
    eprintln!("processor time for each of a chain of 15: {short:?}, of 105: {long:?}");
    assert!(long <= short.max(Duration::from_micros(300)) * 3, "{short:?}, {long:?}");
}

/// A tar archive of a root file system.
fn archive(home: &Home) -> PathBuf {
    let (tree, tar) = (home.path("tree"), home.path("tree.tar"));
    crate::images::small(&tree);
    succeeds(Command::new("tar").arg("-C").arg(&tree).arg("-cf").arg(&tar).arg("."));
    tar
}

/// What there is of images, but what tells who uses them, the layers that hide what of the host's
/// programs is private, and those that give an ordinary user a place of their own: most hosts have
/// something of that kind, and some have nothing.
fn made(home: &Home) -> Vec<String> {
    let mut made = entries(&images(home));
    made.retain(|name| [".used-", "private-", "own-"].iter().all(|it| !name.starts_with(it)));
    made
}

/// Copies a tree of the state directory. An overlay leaves a directory that no one may enter.
fn copy_tree(from: &Path, to: &Path) {
    let open = "find \"$0\" -name '*.work' -prune -exec chmod -R u+rwx {} +; cp -a \"$0\" \"$1\"";
    succeeds(Command::new("sh").args(["-ec", open]).arg(from).arg(to));
}

/// Kills `adl` while it makes the host image, as soon as there is something of it.
fn killed_while_it_makes_an_image(home: &Home) {
    let mut run = adl_command(&home.state());
    let mut run = run.args(["run", "--", "true"]).spawn().unwrap();
    let begun = || images(home).exists() && !made(home).is_empty();
    assert!(within(Duration::from_secs(60), begun));
    run.kill().unwrap();
    run.wait().unwrap();
    let left = made(home);
    let [name] = &*left else { panic!("what it left: {left:?}") };
    if !name.starts_with(".making-") {
        // It was the faster one: so has it what it had a moment before.
        let unfinished = images(home).join(format!(".making-{name}"));
        fs::rename(images(home).join(name), unfinished).unwrap();
    }
}

/// Makes what one who makes the image of an archive has of it, before that is whole.
fn unfinished(home: &Home, archive: &Path) -> PathBuf {
    drop(home.sandbox_of(Image::archive(archive)));
    let of_archive = |name: &String| name.starts_with("tar-");
    let name = entries(&images(home)).into_iter().find(of_archive).unwrap();
    fs::remove_dir_all(images(home).join(&name)).unwrap();
    let path = images(home).join(format!(".making-{name}"));
    fs::create_dir_all(path.join("junk/inside")).unwrap();
    path
}

fn whole(unfinished: &Path) -> PathBuf {
    let name = unfinished.file_name().unwrap().to_str().unwrap();
    unfinished.with_file_name(name.strip_prefix(".making-").unwrap())
}

#[test]
fn an_image_that_was_not_made_to_its_end_is_made_by_the_next() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    killed_while_it_makes_an_image(&home);
    assert_eq!(shell(&home.sandbox(), "echo whole"), "whole\n");
    let left = made(&home);
    assert!(matches!(&*left, [one] if one.starts_with("host-") && !one.contains('.')), "{left:?}");
    let tar = archive(&home);
    let unfinished = unfinished(&home, &tar);
    assert_eq!(shell(&home.sandbox_of(Image::archive(&tar)), "echo whole"), "whole\n");
    assert!(!unfinished.exists());
    assert!(whole(&unfinished).join("bin/sh").exists());
    assert!(!whole(&unfinished).join("junk").exists());
}

#[test]
fn an_image_that_was_not_made_to_its_end_is_collected() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    killed_while_it_makes_an_image(&home);
    let mut expected = made(&home);
    assert_eq!(collect_garbage(Some(&home.state())).unwrap(), expected);
    assert_eq!(made(&home), [""; 0]);
    // Of an archive, and what adl left before it made all of them in one way.
    let tar = archive(&home);
    let unfinished = unfinished(&home, &tar);
    expected = vec![
        unfinished.file_name().unwrap().to_str().unwrap().to_owned(),
        ".unpacking".to_owned(),
        "host-0123456789abcdef.4711.0".to_owned(),
    ];
    for name in &expected {
        fs::create_dir_all(images(&home).join(name).join("etc/ssl")).unwrap();
    }
    // What is whole stays.
    shell(&home.sandbox(), "true");
    let mut collected = collect_garbage(Some(&home.state())).unwrap();
    collected.sort();
    expected.sort();
    assert_eq!(collected, expected);
    let left = made(&home);
    assert!(matches!(&*left, [one] if one.starts_with("host-")), "{left:?}");
    assert_eq!(collect_garbage(Some(&home.state())).unwrap(), [""; 0]);
}

#[test]
fn an_image_is_left_alone_while_another_makes_it() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let tar = archive(&home);
    let unfinished = unfinished(&home, &tar);
    let maker = fs::File::open(&unfinished).unwrap();
    maker.lock().unwrap();
    assert_eq!(collect_garbage(Some(&home.state())).unwrap(), [""; 0]);
    // Who needs another image does not wait, and who needs this one does.
    shell(&home.sandbox(), "true");
    let mut other = adl_command(&home.state());
    other.arg("run").arg("--image").arg(&tar).args(["--", "sh", "-c", "echo made"]);
    let other = other.stdout(Stdio::piped()).spawn().unwrap();
    // What it waits for it has open; it looks again and again whether that is free.
    let waits = || {
        let descriptors = fs::read_dir(format!("/proc/{}/fd", other.id())).unwrap();
        descriptors.flatten().any(|one| fs::read_link(one.path()).is_ok_and(|it| it == unfinished))
    };
    assert!(within(Duration::from_secs(60), waits));
    assert!(unfinished.join("junk/inside").exists());
    drop(maker);
    let output = other.wait_with_output().unwrap();
    assert_eq!((output.status.code(), &*output.stdout), (Some(0), &b"made\n"[..]), "{output:?}");
    assert!(!unfinished.exists() && !whole(&unfinished).join("junk").exists());
}

#[test]
fn many_that_need_an_image_at_once_make_one() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let tar = archive(&home);
    for image in ["host", tar.to_str().unwrap()] {
        let start = || {
            let mut adl = adl_command(&home.state());
            adl.args(["run", "--image", image, "--", "sh", "-c", "echo made"]);
            adl.stdout(Stdio::piped()).spawn().unwrap()
        };
        let all: Vec<_> = (0..12).map(|_| start()).collect();
        while entries(&images(&home)).is_empty() {
            std::thread::yield_now();
        }
        // A collector beside them is in no one's way.
        collect_garbage(Some(&home.state())).unwrap();
        for one in all {
            let output = one.wait_with_output().unwrap();
            assert_eq!(output.stdout, b"made\n", "{image}: {}", stderr(&output));
        }
        assert_eq!(made(&home).len(), 1, "{:?}", made(&home));
        fs::remove_dir_all(images(&home)).unwrap();
    }
}

#[test]
fn what_is_odd_is_told_and_the_rest_is_collected() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let canary = canary(&home);
    let sandbox = home.sandbox();
    drop(sandbox.snapshot_with(&named("kept")).unwrap());
    let unnamed = sandbox.snapshot().unwrap();
    let own = unnamed.name().to_owned();
    // What no one has any more.
    let sandboxes = home.state().join("sandboxes");
    let leave = || {
        fs::create_dir_all(sandboxes.join("dead/0.upper/etc")).unwrap();
        fs::create_dir_all(sandboxes.join(".removing-0123456789abcdef-0/x")).unwrap();
        fs::create_dir_all(snapshots(&home).join("reserved")).unwrap();
        fs::create_dir_all(snapshots(&home).join(".removing-0123456789abcdef-1")).unwrap();
        fs::create_dir_all(images(&home).join(".unpacking/x")).unwrap();
    };
    leave();
    let expected = [
        ".removing-0123456789abcdef-0",
        ".removing-0123456789abcdef-1",
        ".unpacking",
        "dead",
        "reserved",
    ];
    let mut odd = Vec::new();
    for place in [&sandboxes, &snapshots(&home), &images(&home)] {
        fs::write(place.join("a-file"), "kept").unwrap();
        mkfifo(&place.join("b-fifo"), Mode::S_IRWXU).unwrap();
        symlink(&canary, place.join("c-link")).unwrap();
        symlink("/absent", place.join(".unnamed-0123456789abcdef-9")).unwrap();
        fs::create_dir(place.join(OsStr::from_bytes(b"d-\xff"))).unwrap();
        fs::create_dir_all(place.join("lost+found/inside")).unwrap();
        let names = ["a-file", "b-fifo", "c-link", ".unnamed-0123456789abcdef-9", "lost+found"];
        odd.extend(names.map(|name| place.join(name)));
        odd.push(place.join(OsStr::from_bytes(b"d-\xff")));
    }
    odd.sort();
    let error = collect_garbage(Some(&home.state())).unwrap_err();
    let text = error.to_string();
    let Error::Uncollected { mut removed, errors } = error else { panic!("{error:?}") };
    removed.sort();
    assert_eq!(removed, expected);
    let path = |error: &Error| match error {
        Error::Io { path, .. } => path.clone(),
        other => panic!("{other:?}"),
    };
    let mut told: Vec<PathBuf> = errors.iter().map(path).collect();
    told.sort();
    assert_eq!(told, odd);
    assert!(odd.iter().all(|path| text.contains(&format!("{path:?}"))), "{text}");
    assert_eq!(fs::read_to_string(canary.join("secret")).unwrap(), "of the host\n");
    assert!(odd.iter().all(|path| fs::symlink_metadata(path).is_ok()));
    // So does the command line, each on a line.
    leave();
    let output = adl_command(&home.state()).arg("gc").output().unwrap();
    assert_eq!(output.status.code(), Some(125));
    let mut lines: Vec<_> = std::str::from_utf8(&output.stdout).unwrap().lines().collect();
    lines.sort_unstable();
    assert_eq!(lines, expected);
    assert_eq!(stderr(&output).lines().count(), odd.len(), "{}", stderr(&output));
    // They are in no one's way.
    assert_eq!(Snapshot::list(Some(&home.state())).unwrap(), ["kept"]);
    shell(&home.sandbox(), "true");
    shell(&create(&home, "kept").unwrap(), "true");
    drop((sandbox, unnamed));
    assert!(!entries(&snapshots(&home)).contains(&own));
    for path in &odd {
        match fs::symlink_metadata(path).unwrap().is_dir() {
            true => fs::remove_dir_all(path),
            false => fs::remove_file(path),
        }
        .unwrap();
    }
    assert_eq!(collect_garbage(Some(&home.state())).unwrap(), [""; 0]);
    remove(&home, "kept").unwrap();
}

#[test]
fn nothing_but_cgroups_is_removed_for_a_dead_sandbox() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    drop(home.sandbox());
    adl_runtime::finish_removals();
    let victim = home.path("victim");
    fs::write(&victim, "of the host\n").unwrap();
    // What its record names has the names of cgroups, and is none.
    let own = home.path("adl-0123456789abcdef-0");
    fs::create_dir(&own).unwrap();
    symlink(&victim, own.join("freezer.state")).unwrap();
    let other = home.path("adl-0123456789abcdef-1");
    fs::create_dir_all(other.join("empty")).unwrap();
    let link = home.path("adl-0123456789abcdef-2");
    symlink(&other, &link).unwrap();
    let dead = home.state().join("sandboxes/dead");
    let places = [&own, &other, &link].map(|path| path.as_os_str().as_bytes());
    let name = |sandbox: &str| home.state().join("sandboxes").join(sandbox).join("cgroups");
    fs::create_dir_all(&dead).unwrap();
    fs::write(name("dead"), places.join(&0)).unwrap();
    assert_eq!(collect_garbage(Some(&home.state())).unwrap(), ["dead"]);
    assert_eq!(fs::read_to_string(&victim).unwrap(), "of the host\n");
    assert!(own.is_dir() && other.join("empty").is_dir() && link.is_symlink());
    // A record that is none is told.
    for odd in ["fifo", "link", "large"] {
        fs::create_dir_all(dead.with_file_name(odd)).unwrap();
    }
    mkfifo(&name("fifo"), Mode::S_IRWXU).unwrap();
    fs::write(home.path("record"), places.join(&0)).unwrap();
    symlink(home.path("record"), name("link")).unwrap();
    fs::write(name("large"), vec![b'x'; 16 << 20]).unwrap();
    let error = collect_garbage(Some(&home.state())).unwrap_err();
    let Error::Uncollected { removed, errors } = error else { panic!("{error:?}") };
    assert_eq!((removed.len(), errors.len()), (0, 3), "{removed:?} {errors:?}");
    assert!(own.is_dir() && other.join("empty").is_dir());
    for odd in home.left() {
        fs::remove_dir_all(home.state().join("sandboxes").join(odd)).unwrap();
    }
}
