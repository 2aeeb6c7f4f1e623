//! What is promised of uppers that need a file system of their kind: btrfs, project quotas.

use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;

use adl_runtime::{
    Access, Config, Error, Image, Mount, RootAccess, Sandbox, Snapshot, SnapshotOptions, Step,
    Upper,
};

use crate::harness::{Home, Need, needs, shell, stderr, succeeds};
use crate::images;

const BTRFS: Upper = Upper::Btrfs { size: None };

/// A file system in a file, mounted until it is dropped.
pub(crate) struct Mounted {
    place: PathBuf,
}

impl Mounted {
    pub(crate) fn btrfs(home: &Home) -> Self {
        Self::new(home, &["mkfs.btrfs", "-q"], "loop")
    }

    fn ext4(home: &Home, options: &str) -> Self {
        Self::new(home, &PROJECTS, &format!("loop{options}"))
    }

    /// An ext4 of a few MiB, whose blocks have 4096 bytes, as those of larger ones.
    pub(crate) fn small_ext4(home: &Home) -> Self {
        let make = ["mkfs.ext4", "-q", "-b", "4096", "-N", "8192"];
        Self::try_new(&home.path(""), &make, "loop", 16 << 20).unwrap()
    }

    fn new(home: &Home, make: &[&str], options: &str) -> Self {
        Self::try_new(&home.path(""), make, options, SIZE).unwrap()
    }

    fn try_new(at: &Path, make: &[&str], options: &str, size: u64) -> Result<Self, String> {
        let (file, place) = (at.join("disk"), at.join("mounted"));
        File::create(&file).unwrap().set_len(size).unwrap();
        fs::create_dir(&place).unwrap();
        let run = |command: &mut Command| match command.output() {
            Ok(output) if output.status.success() => Ok(()),
            Ok(output) => Err(format!("{command:?}: {}", stderr(&output))),
            Err(error) => Err(format!("{command:?}: {error}")),
        };
        run(Command::new(make[0]).args(&make[1..]).arg(&file))?;
        run(Command::new("mount").args(["-o", options]).arg(&file).arg(&place))?;
        Ok(Self { place })
    }

    /// The configuration of sandboxes on it.
    pub(crate) fn config(&self) -> Config {
        Config { state_directory: Some(self.place.join("state")), ..Config::default() }
    }

    fn subvolumes(&self) -> Vec<String> {
        let list = succeeds(Command::new("btrfs").args(["subvolume", "list"]).arg(&self.place));
        let mut paths: Vec<_> =
            list.lines().map(|line| line.split(' ').next_back().unwrap().to_owned()).collect();
        paths.sort();
        paths
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        adl_runtime::finish_removals();
        // A sandbox that has just ended may hold it for a moment.
        let unmounted = crate::harness::within(std::time::Duration::from_secs(5), || {
            Command::new("umount").arg(&self.place).status().is_ok_and(|status| status.success())
        });
        assert!(unmounted || std::thread::panicking());
    }
}

/// How large they are, in bytes, of which little is used.
const SIZE: u64 = 2 << 30;

/// Makes an ext4 that can count what is in directories.
const PROJECTS: [&str; 4] = ["mkfs.ext4", "-q", "-O", "project,quota"];

/// Why there can be no btrfs here, if so.
pub(crate) fn no_btrfs() -> Option<String> {
    let directory = crate::harness::temporary_directory();
    Mounted::try_new(directory.path(), &["mkfs.btrfs", "-q"], "loop", SIZE).err()
}

/// Why there can be no project quotas here, if so.
pub(crate) fn no_project_quota() -> Option<String> {
    let directory = crate::harness::temporary_directory();
    Mounted::try_new(directory.path(), &PROJECTS, "loop,prjquota", SIZE).err()
}

/// A root file system with a shell, and some files to lose.
fn small_image(at: &Path) -> PathBuf {
    let image = at.join("image");
    images::small(&image);
    fs::create_dir_all(image.join("data/sub")).unwrap();
    fs::create_dir_all(image.join("tmp")).unwrap();
    fs::write(image.join("data/file"), "image\n").unwrap();
    fs::write(image.join("data/sub/other"), "other\n").unwrap();
    image
}

fn left(config: &Config) -> usize {
    adl_runtime::finish_removals();
    fs::read_dir(config.state_directory.as_ref().unwrap().join("sandboxes")).unwrap().count()
}

#[test]
fn a_sandbox_on_btrfs_lives_as_any_other() {
    if !needs(&[Need::Root, Need::Btrfs]) {
        return;
    }
    let home = Home::new();
    let disk = Mounted::btrfs(&home);
    let image = Image::directory(small_image(&home.path("")));
    let config = Config { upper: BTRFS, image, ..disk.config() };
    let sandbox = Sandbox::create(config.clone()).unwrap();
    let look = "cat /data/* /data/sub/* 2>/dev/null; ls /data";
    let new = shell(&sandbox, look);
    assert_eq!(new, "image\nother\nfile\nsub\n");
    let mounts = shell(&sandbox, "cat /proc/self/mounts");
    assert!(mounts.lines().any(|line| line.contains(" / btrfs ")), "{mounts}");
    let change = "echo changed > /data/file; echo > /data/new; rm /data/sub/other";
    shell(&sandbox, change);
    assert_eq!(shell(&sandbox, look), "changed\n\nfile\nnew\nsub\n");
    sandbox.reset().unwrap();
    assert_eq!(shell(&sandbox, look), new);

    assert_eq!(sandbox.changes().unwrap(), []);
    shell(&sandbox, change);
    let changes = |changes: Vec<adl_runtime::Change>| {
        changes
            .iter()
            .map(|one| format!("{:?} {} ", one.kind, one.path.display()))
            .collect::<String>()
    };
    let expected = "Modified /data/file Added /data/new Deleted /data/sub/other ";
    assert_eq!(changes(sandbox.changes().unwrap()), expected);
    let snapshot = sandbox.snapshot().unwrap();
    assert_eq!(changes(snapshot.changes().unwrap()), expected);
    let forks = [0, 1].map(|number| {
        let one = Sandbox::create(snapshot.config()).unwrap();
        assert_eq!(shell(&one, look), "changed\n\nfile\nnew\nsub\n");
        shell(&one, format!("echo {number} > /data/file; echo > /data/{number}"));
        one
    });
    for (number, one) in forks.iter().enumerate() {
        assert_eq!(
            shell(one, "cat /data/file; ls /data"),
            format!("{number}\n{number}\nfile\nnew\nsub\n")
        );
    }
    assert_eq!(shell(&sandbox, look), "changed\n\nfile\nnew\nsub\n");
    // A fork of a fork, and its parents gone.
    let [one, other] = forks;
    other.delete().unwrap();
    let how = SnapshotOptions { name: Some("second".into()), ..SnapshotOptions::default() };
    let second = one.snapshot_with(&how).unwrap();
    one.delete().unwrap();
    sandbox.delete().unwrap();
    let again = Sandbox::create(second.config()).unwrap();
    assert_eq!(shell(&again, "cat /data/file; ls /data"), "0\n0\nfile\nnew\nsub\n");
    assert!(matches!(second.delete(), Err(Error::Busy { .. })));
    again.delete().unwrap();
    drop(snapshot);
    Snapshot::open(config.state_directory.as_deref(), "second").unwrap().delete().unwrap();
    assert_eq!(left(&config), 0);
    // What is left is what the next sandbox begins with, and no one has changed.
    assert!(
        matches!(&*disk.subvolumes(), [base] if base.starts_with("state/images/")),
        "{:?}",
        disk.subvolumes()
    );
    let next = Sandbox::create(config.clone()).unwrap();
    assert_eq!(shell(&next, look), new);
    assert_eq!(disk.subvolumes().len(), 2);
}

#[test]
fn a_root_on_btrfs_can_be_read_only() {
    if !needs(&[Need::Root, Need::Btrfs]) {
        return;
    }
    let home = Home::new();
    let disk = Mounted::btrfs(&home);
    let sandbox = Sandbox::create(Config {
        upper: BTRFS,
        image: Image::directory(small_image(&home.path(""))),
        root: RootAccess::ReadOnly,
        mounts: vec![Mount::tmpfs("/new", 1 << 20)],
        ..disk.config()
    })
    .unwrap();
    let output = sandbox.shell("echo > /new/file; echo > /data/new").output().unwrap();
    assert!(String::from_utf8_lossy(&output.stderr).contains("/data/new: Read-only"), "{output:?}");
    assert_eq!(shell(&sandbox, "ls /new /data"), "/data:\nfile\nsub\n\n/new:\nfile\n");
}

#[test]
fn the_host_image_and_archives_are_images_on_btrfs_too() {
    if !needs(&[Need::Root, Need::Btrfs, Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let disk = Mounted::btrfs(&home);
    let sandbox = Sandbox::create(Config { upper: BTRFS, ..disk.config() }).unwrap();
    shell(&sandbox, "python3 -c 'print(1)' > /root/file; echo > /usr/share/new");
    let snapshot = sandbox.snapshot().unwrap();
    let one = Sandbox::create(snapshot.config()).unwrap();
    assert_eq!(shell(&one, "cat /root/file; ls /usr/share/new"), "1\n/usr/share/new\n");
    sandbox.reset().unwrap();
    assert_eq!(shell(&sandbox, "ls /root; ls /usr/share/new || echo none"), "none\n");
    let archive = home.path("image.tar");
    let mut tar = Command::new("tar");
    succeeds(tar.arg("-C").arg(small_image(&home.path(""))).arg("-cf").arg(&archive).arg("."));
    let image = Image::archive(&archive);
    let of_archive = Sandbox::create(Config { upper: BTRFS, image, ..disk.config() }).unwrap();
    assert_eq!(shell(&of_archive, "cat /data/file"), "image\n");
    // Of a snapshot on btrfs, there is no overlay, nor the other way round.
    let other = Config { upper: Upper::default(), ..snapshot.config() };
    assert!(matches!(Sandbox::create(other), Err(Error::Invalid { what: "snapshot", .. })));
}

/// Makes subvolumes in subvolumes, one of them read-only, and a snapshot of the root.
const NESTED: &str = r#"
import fcntl, os, struct
CREATE, SNAPSHOT, SET_FLAGS = 0x5000940e, 0x50009401, 0x4008941a
def call(request, directory, name, fd=0):
    at = os.open(directory, os.O_RDONLY)
    fcntl.ioctl(at, request, bytearray(struct.pack('q4088s', fd, name.encode())), True)
    os.close(at)
    return directory + '/' + name
path = '/srv'
for level in range(3):
    path = call(CREATE, path, 'sub%d' % level)
    open(path + '/file', 'w').write('x')
    os.makedirs(path + '/a/b/c')
    call(CREATE, path + '/a/b', 'leaf')
    path += '/a'
call(SNAPSHOT, '/srv', 'snapshot', os.open('/', os.O_RDONLY))
for name in ['/srv/sub0/a/b/leaf', '/srv/sub0/a/sub1', '/srv/snapshot']:
    fcntl.ioctl(os.open(name, os.O_RDONLY), SET_FLAGS, struct.pack('Q', 2))
try:
    open('/srv/snapshot/new', 'w'); print('not read-only')
except OSError: pass
print('made')
"#;

#[test]
fn subvolumes_that_a_guest_has_made_go_with_it() {
    if !needs(&[Need::Root, Need::Btrfs, Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let disk = Mounted::btrfs(&home);
    let config = Config { upper: BTRFS, ..disk.config() };
    let sandbox = Sandbox::create(config.clone()).unwrap();
    let before = disk.subvolumes();
    let make = |sandbox: &Sandbox| {
        let output = sandbox.command("python3").args(["-c", NESTED]).output().unwrap();
        assert_eq!(output.stdout, b"made\n", "{}", String::from_utf8_lossy(&output.stderr));
        assert!(disk.subvolumes().len() >= before.len() + 7, "{:?}", disk.subvolumes());
    };
    make(&sandbox);
    sandbox.reset().unwrap();
    adl_runtime::finish_removals();
    assert_eq!(disk.subvolumes(), before);
    make(&sandbox);
    // A snapshot would not take along what is in them.
    assert!(matches!(sandbox.snapshot(), Err(Error::Unsupported { .. })));
    assert_eq!(shell(&sandbox, "cat /srv/sub0/file"), "x");
    sandbox.delete().unwrap();
    assert_eq!(left(&config), 0);
    assert_eq!(disk.subvolumes().len(), before.len() - 1, "{:?}", disk.subvolumes());
}

#[test]
fn a_size_on_btrfs_holds_and_can_not_be_gone_around() {
    if !needs(&[Need::Root, Need::Btrfs]) {
        return;
    }
    let home = Home::new();
    let disk = Mounted::btrfs(&home);
    let image = Image::directory(small_image(&home.path("")));
    let upper = Upper::Btrfs { size: Some(16 << 20) };
    let config = Config { upper, image, ..disk.config() };
    match Sandbox::create(config.clone()) {
        Err(Error::Unsupported { fix, .. }) => assert!(fix.contains("quota enable"), "{fix}"),
        other => panic!("{other:?}"),
    }
    assert_eq!(left(&config), 0);
    succeeds(Command::new("btrfs").args(["quota", "enable"]).arg(&disk.place));
    let host = Config { image: Image::host(), ..config.clone() };
    assert!(matches!(Sandbox::create(host), Err(Error::Unsupported { .. })));
    full_and_reset(&config);
}

/// Fills a sandbox that may take 16 MiB, and resets it.
fn full_and_reset(config: &Config) {
    let sandbox = Sandbox::create(config.clone()).unwrap();
    for _ in 0..3 {
        let fill = "cat /dev/zero > /data/large; cat /bin/sh > /data/more && sync";
        let output = sandbox.shell(fill).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("quota exceeded") || text.contains("No space left"), "{text}");
        let size = shell(&sandbox, "ls -l /data/large");
        let size: u64 = size.split_whitespace().nth(4).unwrap().parse().unwrap();
        assert!((4 << 20..=17 << 20).contains(&size), "{size}");
        assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
        sandbox.reset().unwrap();
        // All of it is there again, though what was before may not be removed yet.
        shell(
            &sandbox,
            "i=0; while test $i != 40; do cat /bin/sh > /data/$i || exit; i=$((i + 1)); done",
        );
        sandbox.reset().unwrap();
    }
    sandbox.delete().unwrap();
    assert_eq!(left(config), 0);
}

#[test]
fn a_size_on_disk_holds_where_there_are_project_quotas() {
    if !needs(&[Need::Root, Need::ProjectQuota]) {
        return;
    }
    let home = Home::new();
    let disk = Mounted::ext4(&home, ",prjquota");
    let upper = Upper::Disk { size: Some(16 << 20) };
    let image = Image::directory(small_image(&disk.place));
    let config = Config { upper, image, ..disk.config() };
    full_and_reset(&config);
    // The uppers of all overlays count together, and inodes have a limit, too.
    let volume = disk.place.join("volume");
    fs::create_dir(&volume).unwrap();
    let mounts = vec![Mount::volume(&volume, "/copy", Access::CopyOnWrite)];
    let sandbox = Sandbox::create(Config { mounts, ..config.clone() }).unwrap();
    let fill = |to: &str, megabytes: u32| {
        let zeros = vec![0; (megabytes as usize) << 20];
        sandbox.command("/bin/sh").args(["-c", &format!("cat > {to}")]).input(zeros).status()
    };
    assert!(fill("/tmp/a", 10).unwrap().success());
    assert!(!fill("/copy/b", 10).unwrap().success());
    shell(&sandbox, "rm /tmp/a /copy/b");
    assert!(fill("/copy/b", 10).unwrap().success());
    let make = "cd /tmp; i=0; while test $i != 20000; do : > $i || exit; i=$((i + 1)); done";
    let many = sandbox.shell(make).output().unwrap();
    let text = String::from_utf8_lossy(&many.stderr);
    assert!(text.contains("quota exceeded") || text.contains("No space left"), "{text}");
    assert_eq!(shell(&sandbox, "echo alive"), "alive\n");
    sandbox.delete().unwrap();

    // What a snapshot keeps is not what the next one may take.
    let sandbox = Sandbox::create(config.clone()).unwrap();
    shell(
        &sandbox,
        "i=0; while test $i != 80; do cat /bin/sh > /data/$i || exit; i=$((i + 1)); done",
    );
    let snapshot = sandbox.snapshot().unwrap();
    shell(
        &sandbox,
        "i=0; while test $i != 80; do cat /bin/sh > /data/x$i || exit; i=$((i + 1)); done",
    );
    drop((sandbox, snapshot));
    assert_eq!(left(&config), 0);
    assert_eq!(limits(&disk.place), "");
}

#[test]
fn a_snapshot_that_is_full_can_be_the_image_of_others() {
    if !needs(&[Need::Root, Need::ProjectQuota]) {
        return;
    }
    let home = Home::new();
    let disk = Mounted::ext4(&home, ",prjquota");
    let upper = Upper::Disk { size: Some(4 << 20) };
    let image = Image::directory(small_image(&disk.place));
    let sandbox = Sandbox::create(Config { upper, image, ..disk.config() }).unwrap();
    // All inodes but those that the snapshot itself takes.
    let fill = "cd /tmp; i=0; while test $i != 20000; do : > f$i || exit; i=$((i + 1)); done";
    sandbox.shell(fill).status().unwrap();
    shell(&sandbox, "cd /tmp; test -e f1000; test ! -e f19999; rm f1 f2 f3 f4");
    let full = sandbox.snapshot().unwrap();
    let fork = Sandbox::create(full.config()).unwrap();
    let forks: Vec<_> = (0..12)
        .map(|_| {
            fork.reset().unwrap();
            fork.snapshot().unwrap()
        })
        .collect();
    drop((sandbox, fork, full, forks));
    adl_runtime::finish_removals();
    assert_eq!(fs::read_dir(disk.place.join("state/snapshots")).unwrap().count(), 0);
}

#[test]
fn a_full_btrfs_is_told_and_its_forks_go_on_once_there_is_room() {
    if !needs(&[Need::Root, Need::Btrfs]) {
        return;
    }
    let home = Home::new();
    // Content and names share what room there is, so that it is full soon.
    let mkfs = ["mkfs.btrfs", "-q", "--mixed"];
    let disk = Mounted::try_new(&home.path(""), &mkfs, "loop", 64 << 20).unwrap();
    let image = Image::directory(small_image(&home.path("")));
    let config = Config { upper: BTRFS, image, ..disk.config() };
    let fill = "cat /dev/zero > /data/large; i=0; while mkdir -p /data/$i/x; do i=$((i + 1)); done";
    let filled = |sandbox: &Sandbox| {
        let output = sandbox.shell(fill).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(text.contains("cannot create directory"), "{text}");
    };
    // Whether it was made; where not, the error has to say why.
    let is_full = |error: Error| error.to_string().contains("No space left");
    let sandbox = Sandbox::create(config.clone()).unwrap();
    filled(&sandbox);
    match sandbox.snapshot() {
        // It lies on what is full, and so does a fork of it.
        Ok(full) => assert!(Sandbox::create(full.config()).map_or_else(is_full, |_| true)),
        Err(error) => assert!(is_full(error)),
    }
    assert_eq!(shell(&sandbox, "cat /data/file"), "image\n");

    sandbox.reset().unwrap();
    shell(&sandbox, "echo new > /data/new");
    let snapshot = sandbox.snapshot().unwrap();
    let fork = Sandbox::create(snapshot.config()).unwrap();
    filled(&fork);
    // What one fork has filled, others have not.
    if let Err(error) = Sandbox::create(snapshot.config()) {
        assert!(is_full(error));
    }
    assert_eq!(shell(&sandbox, "cat /data/new"), "new\n");
    // And what it gives back, the next one has.
    fork.delete().unwrap();
    let last = Sandbox::create(snapshot.config()).unwrap();
    let look = "cat /data/new; ls /data; echo more > /data/more; cat /data/more";
    assert_eq!(shell(&last, look), "new\nfile\nnew\nsub\nmore\n");
    drop((last, sandbox));
    snapshot.delete().unwrap();
    assert_eq!(left(&config), 0);
    assert_eq!(fs::read_dir(disk.place.join("state/snapshots")).unwrap().count(), 0);
    let subvolumes = disk.subvolumes();
    assert!(matches!(&*subvolumes, [base] if base.starts_with("state/images/")), "{subvolumes:?}");
}

#[test]
fn a_disk_that_a_guest_has_filled_is_emptied_by_a_reset() {
    if !needs(&[Need::Root, Need::Btrfs]) {
        return;
    }
    for upper in [BTRFS, Upper::default()] {
        let home = Home::new();
        // Content and names share what room there is, so that it is full soon.
        let mkfs = ["mkfs.btrfs", "-q", "--mixed"];
        let disk = Mounted::try_new(&home.path(""), &mkfs, "loop", 64 << 20).unwrap();
        let image = Image::directory(small_image(&home.path("")));
        let config = Config { upper, image, ..disk.config() };
        let sandbox = Sandbox::create(config.clone()).unwrap();
        let fill =
            "cat /dev/zero > /data/large; i=0; while mkdir -p /data/$i/x; do i=$((i + 1)); done";
        let filled = |sandbox: &Sandbox| {
            let output = sandbox.shell(fill).output().unwrap();
            let text = String::from_utf8_lossy(&output.stderr);
            assert!(text.contains("cannot create directory"), "{text}");
        };
        filled(&sandbox);
        sandbox.reset().unwrap();
        assert_eq!(shell(&sandbox, "ls /data"), "file\nsub\n");
        filled(&sandbox);
        sandbox.delete().unwrap();
        assert_eq!(left(&config), 0);
    }
}

#[test]
fn on_a_disk_without_room_no_root_is_read_only_without_a_word() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let mkfs = ["mkfs.ext4", "-q", "-m", "10", "-O", "^has_journal"];
    let disk = Mounted::try_new(&home.path(""), &mkfs, "loop", 32 << 20).unwrap();
    let image = Image::directory(small_image(&home.path("")));
    let config = Config { image, ..disk.config() };
    let sandbox = Sandbox::create(config.clone()).unwrap();
    // The guest takes what there is for users; what is left for root lets the host go on.
    let fill = "cat /dev/zero > /data/large; i=0; while : > /data/$i; do i=$((i + 1)); done; \
                while mkdir /data/d$i; do i=$((i + 1)); done";
    let filled = sandbox.shell(fill).output().unwrap();
    let text = String::from_utf8_lossy(&filled.stderr);
    assert!(text.contains("No space left"), "{text}");

    // Another one has no room, and is told so.
    match Sandbox::create(config.clone()) {
        Err(Error::Setup { step: Step::Etc | Step::Overlay, source, .. }) => {
            assert_eq!(source.raw_os_error(), Some(28), "{source}");
        }
        other => panic!("{other:?}"),
    }
    // A reset makes room first, and what it makes can be written to.
    sandbox.reset().unwrap();
    assert_eq!(
        shell(&sandbox, "echo new > /data/new; cat /data/new; ls /data"),
        "new\nfile\nnew\nsub\n"
    );
    shell(&Sandbox::create(config).unwrap(), "echo > /data/other");
}

/// The projects that have a limit.
fn limits(place: &Path) -> String {
    let report = Command::new("repquota").args(["-P", "-n", "--raw-grace"]).arg(place).output();
    let Ok(report) = report else { return String::new() };
    let text = String::from_utf8(report.stdout).unwrap();
    text.lines()
        .filter(|line| line.starts_with('#'))
        .filter(|line| line.split_whitespace().nth(4).is_some_and(|hard| hard != "0"))
        .collect()
}

#[test]
fn a_size_on_disk_is_refused_where_it_would_not_hold() {
    if !needs(&[Need::Root, Need::ProjectQuota]) {
        return;
    }
    let home = Home::new();
    let upper = Upper::Disk { size: Some(16 << 20) };
    // Counted, but not enforced.
    let disk = Mounted::ext4(&home, "");
    for config in [disk.config(), home.config()] {
        match Sandbox::create(Config { upper, ..config.clone() }) {
            Err(Error::Unsupported { what, fix, .. }) => {
                assert!(what.contains("limit") && fix.contains("quota"), "{what}: {fix}");
            }
            // The machine's own file system may have them.
            Ok(sandbox) if config == home.config() => sandbox.delete().unwrap(),
            other => panic!("{other:?}"),
        }
        assert_eq!(left(&config), 0);
    }
    let btrfs = Sandbox::create(Config { upper: BTRFS, ..disk.config() });
    assert!(matches!(btrfs, Err(Error::Unsupported { .. })), "{btrfs:?}");
}
