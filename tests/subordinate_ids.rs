//! What an ordinary user's sandboxes can do with subordinate ids, and what is done with what those
//! leave.

use std::collections::BTreeMap;
use std::fs;
use std::io::Read;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use adl_runtime::{
    Access, Change, ChangeKind, Config, Export, Image, Mount, Sandbox, Snapshot, collect_garbage,
    finish_removals,
};

use nix::sys::stat::Mode;
use nix::unistd::mkfifo;

use crate::harness::{
    NOBODY, Need, OrdinaryUser, SUBORDINATE, copy_program, needs, shell, stderr, succeeds,
};
use crate::{helper, image_fixtures, images};

/// What is to be done by the ordinary user's process.
const PART: &str = "ADL_TEST_PART";
/// An archive for it.
const ARCHIVE: &str = "ADL_TEST_ARCHIVE";

fn are_there(more: &[Need]) -> bool {
    let needed = [&[Need::Root, Need::Program("newuidmap"), Need::Program("setpriv")], more];
    needs(&needed.concat())
}

/// Has an ordinary user with subordinate ids do a part, with this library.
fn run_part(user: &OrdinaryUser, name: &str, archive: Option<&Path>) {
    let mut part = part_command(user, name);
    part.env(ARCHIVE, archive.unwrap_or(Path::new("")));
    succeeds(&mut part);
}

fn part_command(user: &OrdinaryUser, name: &str) -> Command {
    let tests = user.adl().with_file_name("tests");
    if !tests.exists() {
        copy_program(&std::env::current_exe().unwrap(), &tests);
    }
    let mut command = user.command(tests);
    command.args(["--exact", "helper::entry", "--ignored", "--nocapture", "--test-threads=1"]);
    command.env(helper::ROLE, "with-subordinate-ids").env(helper::STATE, user.state());
    command.env(PART, name);
    command
}

/// The helper of these tests.
pub(crate) fn part(state: &Path) {
    match std::env::var(PART).unwrap().as_str() {
        "ids" => ids(state),
        "removal" => removal(state),
        "snapshots" => snapshots(state),
        "image" => image(state),
        "packages" => packages(state),
        "copies" => copies(state),
        "hold" => hold(state),
        "collect" => collect(state),
        "cycles" => cycles(state),
        "shares" => shares(state),
        other => panic!("unknown part {other}"),
    }
    finish_removals();
}

fn config(state: &Path) -> Config {
    let state_directory = Some(state.to_owned());
    Config { ids: Some(65_536), state_directory, ..Config::default() }
}

fn create(state: &Path) -> Sandbox {
    Sandbox::create(config(state)).unwrap()
}

/// Makes what the user outside can neither remove nor look into: of others inside, and closed.
const CLOSED: &str =
    "mkdir -m 700 /tmp/closed /tmp/closed/below; echo secret > /tmp/closed/below/file
    chmod 600 /tmp/closed/below/file; chown -R 1000:1000 /tmp/closed; mkdir /tmp/open
    echo word > /tmp/open/file; chown 7:8 /tmp/open /tmp/open/file; chmod 4755 /tmp/open/file";

#[test]
fn an_ordinary_users_sandbox_has_as_many_ids_as_were_asked_for() {
    if are_there(&[]) {
        run_part(&OrdinaryUser::with_subordinate_ids(), "ids", None);
    }
}

fn ids(state: &Path) {
    let sandbox = create(state);
    let (first, count) = SUBORDINATE;
    let map = shell(&sandbox, "cat /proc/self/uid_map /proc/self/gid_map");
    let own = format!("0 {NOBODY} 1 1 {first} {count}");
    let fields: Vec<&str> = map.split_whitespace().collect();
    assert_eq!(fields.join(" "), format!("{own} {own}"));
    // No range of its own.
    assert_eq!(sandbox.id_range(), None);

    let mut id = sandbox.command("id");
    let id = id.uid(1000).gid(1001).groups([5, 1002]).output().unwrap();
    assert_eq!(id.stdout, b"uid=1000 gid=1001 groups=1001,5(tty),1002\n");
    shell(&sandbox, CLOSED);
    assert_eq!(shell(&sandbox, "stat -c '%u:%g %a' /tmp/open/file"), "7:8 4755\n");
    let setpriv = "setpriv --reuid 65535 --regid 65535 --groups 3 id";
    assert_eq!(shell(&sandbox, setpriv), "uid=65535 gid=65535 groups=65535,3\n");
    // Whoever has a stream can open it again.
    let script = "echo out > /dev/stdout; echo err > /proc/self/fd/2; cat /dev/stdin";
    let mut again = sandbox.shell(script);
    let again = again.uid(1000).gid(1000).input("in").output().unwrap();
    assert_eq!((again.stdout, again.stderr), (b"out\nin".to_vec(), b"err\n".to_vec()));
    // A terminal is its user's.
    let mut tty = sandbox.shell("stat -c '%u %g' $(tty)");
    let tty = tty.uid(1000).gid(1000).terminal(24, 80).output().unwrap();
    assert_eq!(String::from_utf8_lossy(&tty.stdout).trim(), "1000 5");
    // File calls are by any of them.
    let mut files = sandbox.files();
    files.user("1000");
    files.write_file("/tmp/closed/mine", "").unwrap();
    files.user("1001");
    assert!(files.read_file("/tmp/closed/mine").is_err());

    // There are no others.
    let error = sandbox.command("true").uid(65_536).status().unwrap_err().to_string();
    assert!(error.contains("--ids"), "{error}");
    let more = Sandbox::create(Config { ids: Some(70_000), ..config(state) }).unwrap_err();
    assert!(more.to_string().contains("has 65535 subordinate ids"), "{more}");
}

#[test]
fn what_subordinate_ids_have_written_is_removed() {
    if are_there(&[]) {
        run_part(&OrdinaryUser::with_subordinate_ids(), "removal", None);
    }
}

fn left(state: &Path, place: &str) -> Vec<PathBuf> {
    let entries = fs::read_dir(state.join(place)).unwrap();
    entries.map(|entry| entry.unwrap().path()).collect()
}

fn removal(state: &Path) {
    let sandbox = create(state);
    shell(&sandbox, CLOSED);
    // Control: the user alone can't.
    let [written] = left(state, "sandboxes").try_into().unwrap();
    let closed = written.join("0.upper/tmp/closed");
    assert!(fs::read_dir(&closed).is_err() && fs::remove_dir_all(&closed).is_err());
    sandbox.reset().unwrap();
    assert_eq!(shell(&sandbox, "ls /tmp"), "");
    // The root itself, too.
    shell(&sandbox, CLOSED);
    shell(&sandbox, "chown 1000:1000 /; chmod 700 /");
    sandbox.reset().unwrap();
    shell(&sandbox, CLOSED);
    sandbox.delete().unwrap();
    finish_removals();
    assert_eq!(left(state, "sandboxes"), [""; 0].map(PathBuf::from));
    assert_eq!(adl_runtime::pending_removals(), 0);
}

#[test]
fn what_a_dead_owner_left_of_subordinate_ids_is_collected() {
    if !are_there(&[]) {
        return;
    }
    let user = OrdinaryUser::with_subordinate_ids();
    let mut held = part_command(&user, "hold");
    let mut held = held.stdout(std::process::Stdio::piped()).spawn().unwrap();
    let mut said = Vec::new();
    let mut out = held.stdout.take().unwrap();
    while !String::from_utf8_lossy(&said).contains("held") {
        let mut chunk = [0; 100];
        let count = out.read(&mut chunk).unwrap();
        assert_ne!(count, 0, "{}", String::from_utf8_lossy(&said));
        said.extend_from_slice(&chunk[..count]);
    }
    // Its process became the ordinary user's by exec, and is this test's child.
    held.kill().unwrap();
    held.wait().unwrap();
    run_part(&user, "collect", None);
}

fn hold(state: &Path) {
    let sandbox = Sandbox::create(Config { name: Some("held".to_owned()), ..config(state) });
    let sandbox = sandbox.unwrap();
    shell(&sandbox, CLOSED);
    helper::say("held");
    std::thread::sleep(Duration::from_secs(1000));
}

fn collect(state: &Path) {
    assert_eq!(collect_garbage(Some(state)).unwrap(), ["held"]);
    assert_eq!(left(state, "sandboxes"), [""; 0].map(PathBuf::from));
}

#[test]
fn snapshots_hold_what_subordinate_ids_have_written() {
    if are_there(&[Need::Program("tar")]) {
        run_part(&OrdinaryUser::with_subordinate_ids(), "snapshots", None);
    }
}

fn changed(changes: &[Change]) -> BTreeMap<String, ChangeKind> {
    changes.iter().map(|change| (change.path.display().to_string(), change.kind)).collect()
}

fn snapshots(state: &Path) {
    let sandbox = create(state);
    shell(&sandbox, CLOSED);
    let paths = [
        "/tmp/closed",
        "/tmp/closed/below",
        "/tmp/closed/below/file",
        "/tmp/open",
        "/tmp/open/file",
    ];
    let expected: BTreeMap<_, _> =
        paths.map(|path| (path.to_owned(), ChangeKind::Added)).into_iter().collect();
    assert_eq!(changed(&sandbox.changes().unwrap()), expected);
    let snapshot = sandbox.snapshot().unwrap();
    assert_eq!(changed(&snapshot.changes().unwrap()), expected);

    // Owners are those inside.
    let mut archive = Vec::new();
    let report = snapshot.export(Export::Layer, &mut archive).unwrap();
    assert_eq!((report.files, report.directories), (2, 5), "{report:?}");
    let place = state.with_file_name("layer.tar");
    fs::write(&place, &archive).unwrap();
    let listed = succeeds(Command::new("tar").arg("--numeric-owner").arg("-tvf").arg(&place));
    let owners: BTreeMap<&str, &str> = listed
        .lines()
        .map(|line| line.split_whitespace().collect::<Vec<_>>())
        .map(|fields| (fields[5], fields[1]))
        .collect();
    assert_eq!(owners["tmp/closed/below/file"], "1000/1000", "{listed}");
    assert_eq!((owners["tmp/open/file"], owners["tmp/"]), ("7/8", "0/0"), "{listed}");
    assert!(listed.contains("-rwsr-xr-x"), "{listed}");
    fs::remove_file(place).unwrap();

    let fork = Sandbox::create(snapshot.config()).unwrap();
    let look = "cat /tmp/closed/below/file; stat -c %u:%g /tmp/closed/below/file /tmp/open";
    assert_eq!(shell(&fork, look), "secret\n1000:1000\n7:8\n");
    // A directory that has changed its owner alone has changed.
    shell(&fork, "chown 9 /tmp/open; rm -r /tmp/closed");
    let of_fork = changed(&fork.changes().unwrap());
    assert_eq!(of_fork["/tmp/open"], ChangeKind::Modified, "{of_fork:?}");
    assert_eq!(of_fork["/tmp/closed"], ChangeKind::Deleted, "{of_fork:?}");
    // Closed at its top, it is an image all the same.
    shell(&fork, "chown 1000:1000 / /etc; chmod 700 / /etc");
    let closed = fork.snapshot().unwrap();
    assert!(changed(&closed.changes().unwrap()).contains_key("/"), "{:?}", closed.changes());
    let of_closed = Sandbox::create(closed.config()).unwrap();
    let top = "stat -c '%u:%g %a' / /etc; ls /etc/hosts";
    assert_eq!(shell(&of_closed, top), "1000:1000 700\n1000:1000 700\n/etc/hosts\n");
    // With one id, nothing of it is anyone's that the guest can be.
    of_closed.delete().unwrap();
    fork.delete().unwrap();
    closed.delete().unwrap();
    sandbox.delete().unwrap();
    snapshot.delete().unwrap();
    assert_eq!(Snapshot::list(Some(state)).unwrap(), [""; 0]);
    finish_removals();
    assert_eq!(left(state, "snapshots"), [""; 0].map(PathBuf::from));
}

#[test]
fn an_archive_is_unpacked_with_its_owners() {
    if !are_there(&[Need::Program("tar")]) {
        return;
    }
    let user = OrdinaryUser::with_subordinate_ids();
    let root = user.adl().with_file_name("root");
    fs::create_dir(&root).unwrap();
    images::small(&root);
    let others = root.join("others");
    fs::create_dir(&others).unwrap();
    fs::write(others.join("file"), "of another\n").unwrap();
    for path in [&others, &others.join("file")] {
        std::os::unix::fs::chown(path, Some(1000), Some(50)).unwrap();
    }
    succeeds(Command::new("chmod").arg("700").arg(&others));
    let archive = user.adl().with_file_name("archive.tar");
    succeeds(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg("."));
    run_part(&user, "image", Some(&archive));
}

#[test]
fn layers_of_an_image_are_unpacked_with_their_owners_or_it_is_said_that_they_are_not() {
    if !are_there(&[Need::Program("umoci"), Need::Program("busybox")]) {
        return;
    }
    let user = OrdinaryUser::with_subordinate_ids();
    let top = user.adl().parent().unwrap().to_owned();
    let (layout, root, part) = (top.join("layout"), top.join("root"), top.join("part"));
    image_fixtures::small(&root);
    let script = "mkdir -p others part; echo below > others/file; echo x > others/gone
        chown -R 1000:50 others; chmod 2750 others; chmod 4755 others/file";
    succeeds(Command::new("sh").args(["-ec", script]).current_dir(&root));
    // Another layer uses the directory and has one more owner.
    fs::create_dir(&part).unwrap();
    let script =
        "mkdir others; echo above > others/new; chown 7:8 others/new; touch others/.wh.gone
        tar -cf part.tar others/new others/.wh.gone";
    succeeds(Command::new("sh").args(["-ec", script]).current_dir(&part));
    let image = format!("{}:one", layout.display());
    let umoci = |arguments: &[&str]| succeeds(Command::new("umoci").args(arguments));
    umoci(&["init", "--layout", layout.to_str().unwrap()]);
    umoci(&["new", "--image", &image]);
    umoci(&["insert", "--image", &image, root.to_str().unwrap(), "/"]);
    let archive = part.join("part.tar");
    umoci(&["raw", "add-layer", "--image", &image, archive.to_str().unwrap()]);
    succeeds(Command::new("chmod").args(["-R", "a+rX"]).arg(&layout));
    let import = |more: &[&str]| {
        let mut adl = user.command(user.adl());
        adl.args(["image", "import"]).args(more).arg(&layout).arg("local/one").output().unwrap()
    };
    let look = |more: &[&str]| {
        let mut adl = user.command(user.adl());
        let script = "cd /others; stat -c '%n %u:%g %a' . file new; echo $(ls)";
        succeeds(adl.arg("run").args(more).args(["local/one", "sh", "-ec", script]))
    };
    let told = import(&["--ids", "65536"]);
    assert!(told.status.success() && !stderr(&told).contains("not kept"), "{}", stderr(&told));
    let with_ids = ["--ids", "65536"];
    assert_eq!(look(&with_ids), ". 1000:50 2750\nfile 1000:50 4755\nnew 7:8 644\nfile new\n");
    // With one id, it is said of each layer how many owners are not those of the image.
    let told = stderr(&import(&[]));
    for line in [
        "layer 1 of 2: not kept: owners of files (3;",
        "layer 2 of 2: not kept: owners of files (1;",
    ] {
        assert!(told.contains(line), "{told}");
    }
    assert_eq!(look(&[]), ". 0:0 750\nfile 0:0 755\nnew 0:0 644\nfile new\n");
    // Neither takes what was unpacked for the other.
    assert_eq!(look(&with_ids).lines().next(), Some(". 1000:50 2750"));
}

#[test]
fn an_owner_that_the_user_has_no_id_for_is_told() {
    if !are_there(&[Need::Program("tar")]) {
        return;
    }
    let user = OrdinaryUser::with_subordinate_ids();
    let root = user.adl().with_file_name("root");
    fs::create_dir(&root).unwrap();
    images::small(&root);
    let file = root.join("file");
    fs::write(&file, "").unwrap();
    std::os::unix::fs::chown(&file, Some(200_000), Some(5)).unwrap();
    let archive = user.adl().with_file_name("archive.tar");
    succeeds(Command::new("tar").arg("-C").arg(&root).arg("-cf").arg(&archive).arg("."));
    let image = ["--image", archive.to_str().unwrap()];
    let output = adl(&user, &[], &[&["--ids", "65536"], &image[..]].concat(), "true");
    let said = stderr(&output);
    assert_eq!(output.status.code(), Some(125), "{said}");
    let words = ["the owner 200000:5 of", "file", "longer ranges"];
    assert!(words.iter().all(|word| said.contains(word)), "{said}");
    // With one id all is the user's.
    assert!(adl(&user, &[], &image, "true").status.success());
}

fn image(state: &Path) {
    let image = Image::archive(PathBuf::from(std::env::var_os(ARCHIVE).unwrap()));
    let sandbox = Sandbox::create(Config { image: image.clone(), ..config(state) }).unwrap();
    assert_eq!(shell(&sandbox, "ls -nd /others; ls -n /others").matches(" 1000 50 ").count(), 2);
    assert_eq!(shell(&sandbox, "cat /others/file"), "of another\n");
    assert!(changed(&sandbox.changes().unwrap()).is_empty());
    let mut read = sandbox.command("cat");
    assert!(read.arg("/others/file").uid(1000).gid(50).status().unwrap().success());
    let mut read = sandbox.command("cat");
    assert!(!read.arg("/others/file").uid(1001).gid(51).output().unwrap().status.success());
    // Who asks for no range has the same image without owners.
    let one = Sandbox::create(Config { image, ids: None, ..config(state) }).unwrap();
    assert_eq!(shell(&one, "cat /others/file"), "of another\n");
    // One for each, beside what tells who uses it.
    let images = left(state, "images");
    let is_image =
        |path: &&PathBuf| !path.file_name().unwrap().as_encoded_bytes().starts_with(b".");
    assert_eq!(images.iter().filter(is_image).count(), 2, "{images:?}");
}

#[test]
fn packages_that_make_users_are_installed() {
    if !are_there(&[Need::Debian, Need::Program("tar")]) {
        return;
    }
    let user = OrdinaryUser::with_subordinate_ids();
    let archive = user.adl().with_file_name("debian.tar");
    let debian = images::debian().unwrap();
    succeeds(Command::new("tar").arg("-C").arg(debian).arg("-cf").arg(&archive).arg("."));
    run_part(&user, "packages", Some(&archive));
}

fn packages(state: &Path) {
    let image = Image::archive(PathBuf::from(std::env::var_os(ARCHIVE).unwrap()));
    let sandbox = Sandbox::create(Config { image, ..config(state) }).unwrap();
    let script = "set -e
        mkdir -p /tmp/p/DEBIAN /tmp/p/srv/keeper; cd /tmp
        printf 'Package: keeper\\nVersion: 1\\nArchitecture: all\\nMaintainer: a <a@b.c>\\n' \
            > p/DEBIAN/control
        printf 'Description: keeps\\n' >> p/DEBIAN/control
        cat > p/DEBIAN/postinst <<'END'
#!/bin/sh -e
useradd --system --home-dir /srv/keeper --shell /bin/sh keeper
chown -R keeper:keeper /srv/keeper
chmod 700 /srv/keeper
END
        chmod 755 p/DEBIAN/postinst; echo kept > p/srv/keeper/file
        dpkg-deb --build p keeper.deb
        apt-get install -y ./keeper.deb
        chown nobody:tty keeper.deb; stat -c %U:%G keeper.deb /srv/keeper/file";
    let mut install = sandbox.shell(script);
    let output = install.timeout(Duration::from_secs(60)).output().unwrap();
    let printed = String::from_utf8_lossy(&output.stdout);
    assert!(output.status.success(), "{printed}{}", String::from_utf8_lossy(&output.stderr));
    assert!(printed.ends_with("nobody:tty\nkeeper:keeper\n"), "{printed}");
    let su = "su keeper -c 'id -un; cat ~/file; echo more > ~/more; stat -c %U ~/more'";
    assert_eq!(shell(&sandbox, su), "keeper\nkept\nkeeper\n");
    let mut by_name = sandbox.shell("id -un; cd ~ && ls");
    assert_eq!(by_name.user("keeper").output().unwrap().stdout, b"keeper\nfile\nmore\n");
    let removed = "apt-get remove -y keeper > /dev/null && userdel keeper && ls /srv/keeper";
    assert_eq!(shell(&sandbox, removed), "more\n");
    // Another, on what was installed.
    let snapshot = sandbox.snapshot().unwrap();
    let fork = Sandbox::create(snapshot.config()).unwrap();
    assert_eq!(
        shell(&fork, "cat /srv/keeper/more; dpkg -l keeper | grep -c ^rc || :"),
        "more\n0\n"
    );
}

#[test]
fn copies_out_belong_to_the_caller() {
    if are_there(&[]) {
        run_part(&OrdinaryUser::with_subordinate_ids(), "copies", None);
    }
}

fn copies(state: &Path) {
    let place = state.with_file_name("place");
    fs::create_dir(&place).unwrap();
    let volume = place.join("volume");
    fs::create_dir(&volume).unwrap();
    let mounts = vec![Mount::volume(&volume, "/volume", Access::ReadWrite)];
    let sandbox = Sandbox::create(Config { mounts, ..config(state) }).unwrap();
    shell(&sandbox, CLOSED);
    let mut files = sandbox.files();
    files.copy_out("/tmp/closed", place.join("copy")).unwrap();
    let copied = fs::metadata(place.join("copy/below/file")).unwrap();
    assert_eq!(copied.uid(), nix::unistd::geteuid().as_raw());
    assert_eq!(fs::read(place.join("copy/below/file")).unwrap(), b"secret\n");
    // Owners can't be kept: outside they are others.
    let error = files.keep_owners(true).copy_out("/tmp/closed", place.join("kept")).unwrap_err();
    assert!(error.to_string().contains("not permitted"), "{error}");
    // What root inside makes in a volume is the caller's, what others make is a subordinate id's.
    shell(&sandbox, "touch /volume/a /volume/b; chown 1000:1000 /volume/b");
    let owner = |name: &str| fs::metadata(volume.join(name)).unwrap().uid();
    assert_eq!((owner("a"), owner("b")), (nix::unistd::geteuid().as_raw(), SUBORDINATE.0 + 999));
    fs::remove_dir_all(place).unwrap();
}

#[test]
fn many_lives_leave_no_descriptor_and_no_process() {
    if are_there(&[]) {
        run_part(&OrdinaryUser::with_subordinate_ids(), "cycles", None);
    }
}

fn cycles(state: &Path) {
    let life = || {
        let sandbox = create(state);
        shell(&sandbox, CLOSED);
        assert_eq!(sandbox.changes().unwrap().len(), 5);
        sandbox.delete().unwrap();
        finish_removals();
    };
    let descriptors = || fs::read_dir("/proc/self/fd").unwrap().count();
    let children = || {
        let tasks = fs::read_dir("/proc/self/task").unwrap();
        let of = |task: fs::DirEntry| fs::read_to_string(task.path().join("children"));
        tasks.filter_map(|task| of(task.unwrap()).ok()).collect::<String>()
    };
    life();
    let before = descriptors();
    (0..50).for_each(|_| life());
    assert_eq!((descriptors(), children()), (before, String::new()));
}

#[test]
fn sandboxes_of_a_user_share_ids_and_see_nothing_of_each_other() {
    if are_there(&[]) {
        run_part(&OrdinaryUser::with_subordinate_ids(), "shares", None);
    }
}

fn shares(state: &Path) {
    // By several threads at once, each of which removes what others can't.
    let threads: Vec<_> = (0..4)
        .map(|_| {
            let state = state.to_owned();
            std::thread::spawn(move || {
                for _ in 0..3 {
                    let sandbox = create(&state);
                    shell(&sandbox, CLOSED);
                    // Of its own it sees each, of the others none.
                    let seen = "ls -d /proc/[0-9]* | wc -l; kill -0 -1 || echo none";
                    let mut look = sandbox.shell(seen);
                    let seen = look.uid(1000).gid(1000).output().unwrap();
                    let printed = String::from_utf8(seen.stdout).unwrap();
                    assert!(printed.ends_with("none\n"), "{printed}");
                    assert_eq!(sandbox.changes().unwrap().len(), 5);
                    sandbox.reset().unwrap();
                }
            })
        })
        .collect();
    threads.into_iter().for_each(|thread| thread.join().unwrap());
}

/// Runs `adl` as a user with these files in `/etc`, by a program, with the arguments that follow.
fn adl(user: &OrdinaryUser, by: &[&str], options: &[&str], script: &str) -> std::process::Output {
    let mut adl = user.command("env");
    adl.args(by).arg(user.adl()).arg("run").args(options).args(["--", "sh", "-c", script]);
    adl.output().unwrap()
}

#[test]
fn who_has_no_subordinate_ids_is_told_what_to_do() {
    if !are_there(&[]) {
        return;
    }
    let range = format!("{NOBODY}:{}:65535\n", SUBORDINATE.0);
    let short = format!("{NOBODY}:{}:65534\n", SUBORDINATE.0);
    let others = format!("1:{}:65536\n", SUBORDINATE.0);
    let overlapping = format!("{NOBODY}:65000:65536\n");
    let install = ["apt install uidmap", "usermod --add-subuids"];
    let look = ["newuidmap does not map them", "look at /etc/subuid"];
    for (uids, gids, remedies) in [
        ("", "", install),
        (&range, "", install),
        (&short, &range, install),
        (&range, &others, install),
        (&overlapping, &range, look),
    ] {
        let user = OrdinaryUser::with_etc(&[("subuid", uids), ("subgid", gids)]);
        let output = adl(&user, &[], &["--ids", "65536"], "true");
        assert_eq!(output.status.code(), Some(125), "{uids:?} {gids:?}: {output:?}");
        let said = stderr(&output);
        assert!(remedies.iter().all(|remedy| said.contains(remedy)), "{said}");
        // The one id there is needs nothing of that.
        assert!(adl(&user, &[], &[], "true").status.success());
    }
}

#[test]
fn a_program_that_maps_no_ids_is_not_believed() {
    if !are_there(&[]) {
        return;
    }
    let user = OrdinaryUser::with_subordinate_ids();
    let bin = user.adl().with_file_name("bin");
    fs::create_dir(&bin).unwrap();
    std::os::unix::fs::symlink("/bin/true", bin.join("newuidmap")).unwrap();
    let path = format!("PATH={}:/usr/bin:/bin", bin.display());
    let output = adl(&user, &[&path], &["--ids", "65536"], "true");
    assert_eq!(output.status.code(), Some(125), "{output:?}");
    assert!(stderr(&output).contains("newuidmap does not map them"), "{output:?}");
}

#[test]
fn a_program_that_maps_ids_may_say_much_and_leave_others_behind() {
    if !are_there(&[]) {
        return;
    }
    let user = OrdinaryUser::with_subordinate_ids();
    let bin = user.adl().with_file_name("bin");
    fs::create_dir(&bin).unwrap();
    let path = format!("PATH={}:/usr/bin:/bin", bin.display());
    let hold = bin.join("hold");
    mkfifo(&hold, Mode::S_IRWXU | Mode::S_IRWXG | Mode::S_IRWXO).unwrap();
    for script in [
        "head -c 100000 /dev/zero >&2\nexec /usr/bin/newuidmap \"$@\"\n",
        // Who is left holds the pipe, until the test lets go of it.
        "/usr/bin/newuidmap \"$@\"\ntimeout 60 head -c 4 \"${0%/*}/hold\" &\n",
    ] {
        fs::write(bin.join("newuidmap"), format!("#!/bin/sh\n{script}")).unwrap();
        succeeds(Command::new("chmod").arg("755").arg(bin.join("newuidmap")));
        let output = adl(&user, &[&path], &["--ids", "65536"], "true");
        assert!(output.status.success(), "{script}: {output:?}");
    }
    fs::write(&hold, "ends").unwrap();
}

#[test]
fn a_caller_who_ignores_the_end_of_children_has_subordinate_ids_too() {
    if !are_there(&[]) {
        return;
    }
    let user = OrdinaryUser::with_subordinate_ids();
    let output = adl(&user, &["--ignore-signal=CHLD"], &["--ids", "65536"], CLOSED);
    assert!(output.status.success(), "{output:?}");
}
