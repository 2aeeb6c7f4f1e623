//! Volumes, tmpfs, devices and read-only roots let through what they say, and no more.

use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use adl_runtime::{
    Access, Capabilities, Capability, Config, Error, HostPath, Image, Mount, RootAccess, Sandbox,
    Seccomp, TmpfsOptions, Upper,
};
use nix::mount::MsFlags;
use nix::sched::{CloneFlags, unshare};

use crate::forks::{finish, fork};
use crate::harness::{Home, Need, adl_command, beside, needs, shell, succeeds};
use crate::images;

/// A directory of the host with a file, for a sandbox to have.
fn volume(home: &Home, name: &str) -> PathBuf {
    let path = home.path(name);
    fs::create_dir_all(path.join("sub")).unwrap();
    fs::write(path.join("file"), "host\n").unwrap();
    path
}

fn with(home: &Home, mounts: Vec<Mount>) -> Sandbox {
    Sandbox::create(Config { mounts, ..home.config() }).unwrap()
}

/// Mounts a tmpfs on the host until it is dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn on(path: &Path) -> Self {
        succeeds(Command::new("mount").args(["-t", "tmpfs", "tmpfs"]).arg(path));
        Self(path.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let unmounted = Command::new("umount").arg(&self.0).status();
        assert!(unmounted.is_ok_and(|status| status.success()) || std::thread::panicking());
    }
}

#[test]
fn a_read_only_volume_can_not_be_written_to_in_any_way() {
    if !needs(&[Need::Program("python3")]) {
        return;
    }
    let home = Home::new();
    let path = volume(&home, "volume");
    fs::set_permissions(&path, fs::Permissions::from_mode(0o777)).unwrap();
    fs::set_permissions(path.join("file"), fs::Permissions::from_mode(0o666)).unwrap();
    // A mount in it, where the caller can make one: it is read-only, too.
    let below = nix::unistd::geteuid().is_root().then(|| Tmpfs::on(&path.join("sub")));
    if below.is_some() {
        fs::write(path.join("sub/below"), "below\n").unwrap();
    }
    let before = images::fingerprint(&path);
    let attack = "
import os, ctypes
libc = ctypes.CDLL(None, use_errno=True)
done = []
def attempt(name, action):
    try:
        if action() != -1: done.append(name)
    except OSError: pass
D = '/data/'
for where in (D, D + 'sub/'):
    attempt('create', lambda: open(where + 'new', 'w'))
    attempt('mkdir', lambda: os.mkdir(where + 'dir'))
    attempt('chmod', lambda: os.chmod(where, 0o755))
    attempt('link', lambda: os.symlink('/', where + 'link'))
for name in ('file', 'sub/below'):
    attempt('write', lambda: open(D + name, 'a'))
    attempt('truncate', lambda: os.truncate(D + name, 0))
    attempt('utime', lambda: os.utime(D + name))
    attempt('chown', lambda: os.chown(D + name, 1, 1))
    attempt('xattr', lambda: os.setxattr(D + name, 'user.x', b'x'))
    attempt('rename', lambda: os.rename(D + name, D + 'renamed') or os.rename(D + 'renamed', D + name))
    attempt('out', lambda: os.rename(D + name, '/tmp/out'))
    attempt('hard link', lambda: os.link(D + name, '/tmp/linked'))
    try: fd = os.open(D + name, os.O_RDONLY)
    except OSError: continue
    for flags in (os.O_WRONLY, os.O_RDWR):
        attempt('reopen', lambda: os.open('/proc/self/fd/%d' % fd, flags))
    attempt('fchmod', lambda: os.fchmod(fd, 0o777))
    attempt('remove', lambda: os.unlink(D + name))
for flags in (32 | 4096, 32, 4096, 4096 | 16384):
    attempt('remount', lambda: libc.mount(b'none', b'/data', None, flags, None))
attempt('umount', lambda: libc.umount2(b'/data', 2))
print(*done)
";
    let attack = |access| {
        let sandbox = with(&home, vec![Mount::volume(&path, "/data", access)]);
        let output = sandbox.command("python3").args(["-c", attack]).output().unwrap();
        assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
        (String::from_utf8(output.stdout).unwrap(), shell(&sandbox, "cat /data/file; true"))
    };
    assert_eq!(attack(Access::ReadOnly), ("\n".to_owned(), "host\n".to_owned()));
    // Of the mount in it, its content is there, and the kernel says the same of it.
    let sandbox = with(&home, vec![Mount::volume(&path, "/data", Access::ReadOnly)]);
    let mounts = shell(&sandbox, "grep ' /data' /proc/self/mounts");
    assert_eq!(mounts.lines().count(), if below.is_some() { 2 } else { 1 }, "{mounts}");
    for line in mounts.lines() {
        assert!(line.contains(" ro,nosuid,nodev"), "{line}");
    }
    if below.is_some() {
        assert_eq!(shell(&sandbox, "cat /data/sub/below"), "below\n");
    }
    drop(sandbox);
    assert_eq!(images::fingerprint(&path), before);
    // Control: to a copy, nearly all of it can be done, and the host sees nothing of it.
    let (done, _) = attack(Access::CopyOnWrite);
    for expected in [
        "create", "mkdir", "chmod", "link", "write", "truncate", "xattr", "reopen", "fchmod",
        "remove",
    ] {
        assert!(done.contains(expected), "{expected}: {done}");
    }
    assert!(!done.contains("mount"), "{done}");
    assert_eq!(images::fingerprint(&path), before);
    // And to one that is read-write.
    let (done, _) = attack(Access::ReadWrite);
    assert!(done.contains("create") && done.contains("write") && !done.contains("mount"), "{done}");
    assert_ne!(images::fingerprint(&path), before);
}

#[test]
fn what_is_made_in_a_volume_is_the_mapped_users_outside() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let path = volume(&home, "volume");
    let sandbox = with(&home, vec![Mount::volume(&path, "/data", Access::ReadWrite)]);
    shell(&sandbox, "echo root > /data/of-root; echo more >> /data/file; chmod 777 /data");
    assert_eq!(fs::read_to_string(path.join("file")).unwrap(), "host\nmore\n");
    let owner = |name: &str| {
        let metadata = fs::metadata(path.join(name)).unwrap();
        (metadata.uid(), metadata.gid())
    };
    let own = (nix::unistd::geteuid().as_raw(), nix::unistd::getegid().as_raw());
    assert_eq!(owner("of-root"), own);
    if sandbox.id_range().is_some() {
        let mut command = sandbox.command("sh");
        command.args(["-c", "echo > /data/of-user"]).uid(1234).gid(5678);
        assert!(command.status().unwrap().success());
        assert_eq!(owner("of-user"), (1234, 5678));
        assert_eq!(shell(&sandbox, "stat -c %u:%g /data/of-user"), "1234:5678\n");
    }
    // It outlives a reset, and the sandbox.
    let sandbox = sandbox;
    sandbox.reset().unwrap();
    assert_eq!(shell(&sandbox, "cat /data/of-root"), "root\n");
    sandbox.delete().unwrap();
    assert!(path.join("of-root").exists());
}

#[test]
fn set_user_id_programs_and_devices_of_a_volume_are_neither() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let path = volume(&home, "volume");
    crate::harness::copy_program("/usr/bin/id".as_ref(), &path.join("id"));
    fs::set_permissions(path.join("id"), fs::Permissions::from_mode(0o4755)).unwrap();
    succeeds(
        Command::new("mknod").args(["-m", "666"]).arg(path.join("zero")).args(["c", "1", "5"]),
    );
    for access in [Access::ReadWrite, Access::ReadOnly, Access::CopyOnWrite] {
        let sandbox = with(&home, vec![Mount::volume(&path, "/data", access)]);
        // Commands get no new rights anyhow; so the mount is asked itself.
        let mount = shell(&sandbox, "grep ' /data ' /proc/self/mounts");
        assert!(mount.contains(",nosuid,nodev"), "{access:?}: {mount}");
        let output = sandbox.command("/data/id").arg("-u").uid(1000).gid(1000).output().unwrap();
        assert_eq!(output.stdout, b"1000\n", "{access:?}");
        let read = sandbox.shell("head -c 1 /data/zero").output().unwrap();
        assert!(!read.status.success(), "{access:?}");
    }
    // Control: outside, it is a device.
    assert_eq!(succeeds(Command::new("head").args(["-c", "1"]).arg(path.join("zero"))), "\0");
}

#[test]
fn a_copy_goes_with_a_reset_and_never_reaches_the_host() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let path = volume(&home, "volume");
    let before = images::fingerprint(&path);
    for upper in [Upper::default(), Upper::Memory { size: 8 << 20 }] {
        let mounts = vec![Mount::volume(&path, "/data", Access::CopyOnWrite)];
        let sandbox = Sandbox::create(Config { mounts, upper, ..home.config() }).unwrap();
        let change = "cd /data; echo > new; echo changed > file; mv sub moved; ls; cat file";
        assert_eq!(shell(&sandbox, change), "file\nmoved\nnew\nchanged\n");
        sandbox.reset().unwrap();
        assert_eq!(shell(&sandbox, "cd /data; ls; cat file"), "file\nsub\nhost\n");
    }
    assert_eq!(images::fingerprint(&path), before);
}

#[test]
fn one_file_can_be_a_volume() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let path = volume(&home, "volume").join("file");
    let sandbox = with(
        &home,
        vec![
            Mount::volume(&path, "/etc/hosts", Access::ReadOnly),
            Mount::volume(&path, "/new/dir/file", Access::ReadWrite),
        ],
    );
    let read = "cat /etc/hosts; echo more >> /new/dir/file; cat /etc/hosts; ! echo > /etc/hosts";
    let output = sandbox.shell(read).output().unwrap();
    assert_eq!(output.stdout, b"host\nhost\nmore\n");
    assert_eq!(fs::read_to_string(&path).unwrap(), "host\nmore\n");
}

#[test]
fn links_in_an_image_lead_no_target_out_of_it() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let path = volume(&home, "volume");
    let image = home.path("image");
    images::small(&image);
    let outside = home.path("outside");
    fs::create_dir_all(outside.join("dir")).unwrap();
    fs::create_dir_all(image.join("real")).unwrap();
    for (name, to) in [
        ("absolute", outside.clone()),
        ("up", PathBuf::from("../../../../../../../..").join(outside.strip_prefix("/").unwrap())),
        ("inside", "/real".into()),
        ("process", "/proc".into()),
        ("devices", "dev".into()),
        ("root", "/".into()),
        ("magic", "/proc/self/root/real".into()),
        ("keys", "/proc/keys".into()),
        ("acpi", "/proc/acpi".into()),
        ("terminals", "/dev/pts".into()),
        ("self", "self".into()),
    ] {
        symlink(to, image.join(name)).unwrap();
    }
    let before = images::fingerprint(&outside);
    let create = |target: &str, access| {
        let mounts = vec![Mount::volume(&path, target, access)];
        Sandbox::create(Config { image: Image::directory(&image), mounts, ..home.config() })
    };
    for access in [Access::ReadOnly, Access::CopyOnWrite] {
        let sandbox = create("/inside/a", access).unwrap();
        assert_eq!(shell(&sandbox, "cat /real/a/file"), "host\n");
        // Where it leads, below the root, there is nothing: no one makes it for a link.
        for target in ["/absolute", "/absolute/dir", "/up/dir"] {
            match create(target, access) {
                Err(Error::Setup { step: adl_runtime::Step::Mount, path, .. }) => {
                    assert_eq!(path, Path::new(target.trim_start_matches('/')));
                }
                other => panic!("{target}: {other:?}"),
            }
        }
        for target in [
            "/process",
            "/process/sys",
            "/devices",
            "/root",
            "/magic",
            "/self",
            "/self/a",
            "/acpi",
            "/terminals",
        ] {
            let made = create(target, access);
            assert!(matches!(made, Err(Error::Setup { .. })), "{target}: {made:?}");
        }
    }
    assert_eq!(images::fingerprint(&outside), before);
    home.assert_settled();
}

#[test]
fn what_takes_the_name_of_a_source_is_not_mounted() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let path = volume(&home, "volume");
    let secret = volume(&home, "secret");
    fs::write(secret.join("file"), "secret\n").unwrap();
    let mounts = [Access::ReadOnly, Access::ReadWrite]
        .map(|access| Mount::volume(&path, format!("/{access:?}"), access));
    let sandbox = with(&home, mounts.to_vec());
    fs::rename(&path, home.path("moved")).unwrap();
    symlink(&secret, &path).unwrap();
    let look = "cat /ReadOnly/file /ReadWrite/file";
    assert_eq!(shell(&sandbox, look), "host\nhost\n");
    // What was opened is mounted again; where there is no descriptor to do so by, it is missed.
    match sandbox.reset() {
        Ok(()) => assert_eq!(shell(&sandbox, look), "host\nhost\n"),
        Err(Error::Setup { .. }) if sandbox.id_range().is_none() => {}
        other => panic!("{other:?}"),
    }
}

#[test]
fn a_source_that_changes_all_the_time_is_one_or_the_other() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let (one, other) = (volume(&home, "one"), volume(&home, "other"));
    fs::write(other.join("file"), "other\n").unwrap();
    let link = home.path("link");
    symlink(&one, &link).unwrap();
    let aside = home.path("aside");
    let changes = |turn: usize| {
        symlink(if turn.is_multiple_of(2) { &other } else { &one }, &aside).unwrap();
        fs::rename(&aside, &link).unwrap();
    };
    let seen: std::collections::BTreeSet<String> = beside(1, changes, || {
        let made = (0..60).filter_map(|_| {
            let mounts = vec![Mount::volume(&link, "/data", Access::ReadOnly)];
            match Sandbox::create(Config { mounts, ..home.config() }) {
                Ok(sandbox) => Some(shell(&sandbox, "cat /data/file")),
                // Without privilege, init opens it once more, and sees that it is another.
                Err(Error::Setup { source, .. }) => {
                    assert_eq!(source.raw_os_error(), Some(nix::libc::ESTALE));
                    None
                }
                Err(other) => panic!("{other:?}"),
            }
        });
        made.collect()
    });
    assert!(seen.iter().all(|text| text == "host\n" || text == "other\n"), "{seen:?}");
}

#[test]
fn what_is_no_source_and_no_target_is_refused() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let path = volume(&home, "volume");
    let file = path.join("file");
    let socket = path.join("socket");
    let _listener = std::os::unix::net::UnixListener::bind(&socket).unwrap();
    nix::unistd::mkfifo(&path.join("fifo"), nix::sys::stat::Mode::S_IRWXU).unwrap();
    let refused = |mount: Mount| {
        let result = Sandbox::create(Config { mounts: vec![mount.clone()], ..home.config() });
        let error = result.map(drop).expect_err("an error");
        adl_runtime::finish_removals();
        assert_eq!(home.left(), [""; 0], "{mount:?}");
        error
    };
    for (what, mount) in [
        ("volume", Mount::volume(&socket, "/x", Access::ReadOnly)),
        ("volume", Mount::volume(path.join("fifo"), "/x", Access::ReadWrite)),
        ("volume", Mount::volume("/dev/null", "/x", Access::ReadWrite)),
        ("volume", Mount::volume(&file, "/x", Access::CopyOnWrite)),
        ("device", Mount::device(&file)),
        ("mount", Mount::volume(&path, "relative", Access::ReadOnly)),
        ("mount", Mount::volume(&path, "/", Access::ReadOnly)),
        ("mount", Mount::volume(&path, "/a/../b", Access::ReadOnly)),
        ("mount", Mount::tmpfs("/proc/x", 4096)),
        ("mount", Mount::tmpfs("/dev", 4096)),
        ("mount", Mount::tmpfs("/x", 0)),
        ("mount", Mount::tmpfs("/x", u64::MAX)),
    ] {
        let error = refused(mount.clone());
        match &error {
            Error::Invalid { what: about, .. } if *about == what => {}
            other => panic!("{mount:?}: {other:?}"),
        }
    }
    match refused(Mount::volume(home.path("absent"), "/x", Access::ReadOnly)) {
        Error::Io { source, path, .. } => {
            assert_eq!(source.kind(), std::io::ErrorKind::NotFound);
            assert_eq!(path, home.path("absent"));
        }
        other => panic!("{other:?}"),
    }
    // A directory on a file, and the other way round.
    for mount in [
        Mount::volume(&path, "/etc/passwd", Access::ReadOnly),
        Mount::volume(&file, "/etc", Access::ReadOnly),
        Mount::tmpfs("/etc/passwd/x", 4096),
    ] {
        let error = refused(mount.clone());
        assert!(matches!(error, Error::Setup { .. }), "{mount:?}: {error:?}");
    }
}

#[test]
fn a_tmpfs_has_its_size_and_is_new_after_a_reset() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let sandbox =
        with(&home, vec![Mount::tmpfs("/scratch", 1 << 20), Mount::tmpfs("/dev/shm", 2 << 20)]);
    for (path, size) in [("/scratch", "1.0M"), ("/dev/shm", "2.0M")] {
        assert_eq!(shell(&sandbox, format!("df -h --output=size {path} | tail -1")).trim(), size);
        let full = sandbox.shell(format!("head -c 4m /dev/zero > {path}/large")).output().unwrap();
        assert!(String::from_utf8_lossy(&full.stderr).contains("No space left"), "{path}");
    }
    sandbox.reset().unwrap();
    assert_eq!(shell(&sandbox, "ls /scratch /dev/shm"), "/dev/shm:\n\n/scratch:\n");
}

#[test]
fn a_tmpfs_is_what_it_was_to_be() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let tmpfs =
        |target: &str, options| Mount::Tmpfs { target: target.into(), size: 1 << 20, options };
    let usual = TmpfsOptions::default();
    let own = TmpfsOptions { mode: 0o2750, uid: 1000, gid: 1001, ..usual };
    let sandbox = with(
        &home,
        vec![
            tmpfs("/own", own),
            tmpfs("/data", TmpfsOptions { can_execute: false, ..usual }),
            tmpfs("/empty", TmpfsOptions { can_write: false, ..usual }),
            tmpfs("/data/below", TmpfsOptions { mode: 0, ..usual }),
        ],
    );
    let script =
        "cd /; stat -c '%n %a %u %g' own data empty data/below; df -h --output=size own | tail -1
        touch own/file && stat -c '%u %g' own/file; touch empty/file || echo 'no file'
        cp /bin/true own; own/true && echo ran; cp /bin/true data; data/true || echo 'did not run'";
    let expected = "own 2750 1000 1001\ndata 1777 0 0\nempty 1777 0 0\ndata/below 0 0 0\n 1.0M\n\
                    0 1001\nno file\nran\ndid not run\n";
    assert_eq!(shell(&sandbox, script), expected);
    // No one else may look into what is closed.
    let by = |uid| sandbox.command("ls").arg("/own").uid(uid).output().unwrap().status.success();
    assert_eq!([by(1000), by(1002)], [true, false]);
    sandbox.reset().unwrap();
    assert_eq!(shell(&sandbox, "ls /own /data"), "/data:\nbelow\n\n/own:\n");
    let mut options = usual;
    for (mode, uid, gid) in [(0o10_000, 0, 0), (0o755, 65_536, 0), (0o755, 0, u32::MAX)] {
        (options.mode, options.uid, options.gid) = (mode, uid, gid);
        let config = Config { mounts: vec![tmpfs("/t", options)], ..home.config() };
        let error = Sandbox::create(config).map(drop).unwrap_err();
        assert!(matches!(error, Error::Invalid { what: "mount", .. }), "{options:?}: {error}");
    }
}

#[test]
fn mounts_on_mounts_come_last() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let path = volume(&home, "volume");
    let sandbox = with(
        &home,
        vec![
            Mount::volume(&path, "/a/b/c", Access::CopyOnWrite),
            Mount::tmpfs("/a", 1 << 20),
            Mount::volume(&path, "/a/b/c/sub", Access::ReadOnly),
        ],
    );
    assert_eq!(shell(&sandbox, "cat /a/b/c/file /a/b/c/sub/file; ls /a"), "host\nhost\nb\n");
}

#[test]
fn a_read_only_root_can_be_written_to_by_no_one_but_where_mounts_are() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let path = volume(&home, "volume");
    let sandbox = Sandbox::create(Config {
        root: RootAccess::ReadOnly,
        mounts: vec![
            Mount::tmpfs("/tmp", 1 << 20),
            Mount::volume(&path, "/srv/volume", Access::ReadWrite),
            Mount::volume(&path, "/copy", Access::CopyOnWrite),
        ],
        ..home.config()
    })
    .unwrap();
    for place in ["/", "/root", "/etc", "/usr", "/usr/share", "/var/tmp", "/etc/passwd"] {
        let script =
            format!("if test -d {place}; then echo > {place}/new; else echo >> {place}; fi");
        let output = sandbox.shell(script).output().unwrap();
        let text = String::from_utf8_lossy(&output.stderr);
        assert!(!output.status.success(), "{place}");
        // With one id, /usr is another's, and that is told first.
        assert!(text.contains("Read-only") || text.contains("denied"), "{place}: {text}");
    }
    shell(&sandbox, "for d in /tmp /dev/shm /srv/volume /copy; do echo > $d/new; done");
    assert!(matches!(
        sandbox.files().write_file("/root/new", b"x"),
        Err(Error::File { source, .. }) if source.kind() == std::io::ErrorKind::ReadOnlyFilesystem
    ));
    assert!(path.join("new").exists());
}

#[test]
fn a_device_is_there_where_it_was_asked_for() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    // One of a kind that no sandbox has by itself, and that does nothing.
    let node = home.path("node");
    succeeds(Command::new("mknod").args(["-m", "600"]).arg(&node).args(["c", "1", "5"]));
    let device =
        |target: &str| Mount::Device { source: node.clone().into(), target: target.into() };
    let sandbox = with(&home, vec![device("/dev/sub/zeros"), device("/srv/zeros")]);
    for _ in 0..2 {
        let look = "stat -c '%F %t,%T %a %u:%g' /dev/sub/zeros; head -c 2 /dev/sub/zeros /srv/zeros | od -An -c";
        let seen = shell(&sandbox, look);
        assert!(seen.starts_with("character special file 1,5 600 0:0\n"), "{seen}");
        let as_user = sandbox.command("cat").arg("/dev/sub/zeros").uid(1000).output().unwrap();
        assert!(!as_user.status.success());
        let mounts = shell(&sandbox, "grep zeros /proc/self/mounts");
        assert!(mounts.lines().all(|line| line.contains(" rw,nosuid,noexec")), "{mounts}");
        sandbox.reset().unwrap();
    }
    assert_eq!(fs::metadata(&node).unwrap().uid(), 0);
    // Control.
    assert!(!home.sandbox().shell("test -e /dev/sub").status().unwrap().success());
}

#[test]
fn a_target_is_found_though_files_of_the_host_are_renamed_all_the_time() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let path = volume(&home, "volume");
    let image = home.path("image");
    images::small(&image);
    fs::create_dir_all(image.join("x/y")).unwrap();
    // To go up is what a rename anywhere interrupts.
    symlink("/x/y/../../x/y/../y", image.join("dots")).unwrap();
    let [one, other] = ["one", "other"].map(|name| home.path(name));
    fs::write(&one, "").unwrap();
    let renames = |_| {
        fs::rename(&one, &other).unwrap();
        fs::rename(&other, &one).unwrap();
    };
    beside(1, renames, || {
        for _ in 0..60 {
            let mounts = vec![Mount::volume(&path, "/dots/a", Access::ReadOnly)];
            let image = Image::directory(&image);
            drop(Sandbox::create(Config { image, mounts, ..home.config() }).unwrap());
        }
    });
}

#[test]
fn a_volume_of_the_whole_host_shows_nothing_of_how_a_sandbox_is_made() {
    if !needs(&[]) {
        return;
    }
    // Without privilege, init opens it; with, some of what is mounted in / may know no ids.
    let user = crate::harness::OrdinaryUser::new();
    let mut adl = user.command(user.adl());
    adl.args(["run", "-v", "/:/host:ro", "--", "sh", "-c"]);
    adl.arg("ls /host/proc | grep -E '^(m0|s|blank|[0-9]+[.][0-9]+)$'; test -d /host/usr");
    assert_eq!(succeeds(&mut adl), "");
}

#[test]
fn a_source_stays_what_it_was_for_forks_from_elsewhere() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let (one, other) = (volume(&home, "one"), volume(&home, "other"));
    fs::write(other.join("file"), "other\n").unwrap();
    let cow = |source: &Path| vec![Mount::volume(source, "/data", Access::CopyOnWrite)];
    let sandbox = with(&home, cow(&one));
    shell(&sandbox, "echo > /data/new");
    let snapshot = sandbox.snapshot().unwrap();
    // What was written lies on the one volume, and on no other.
    let made = Sandbox::create(Config { mounts: cow(&other), ..snapshot.config() }).map(drop);
    assert!(matches!(made, Err(Error::Invalid { what: "mount", .. })), "{made:?}");
    // The command line is where a relative path comes from.
    let mut adl = adl_command(&home.state());
    adl.args(["run", "-v", "./one:/data", "--snapshot", "relative", "--", "true"]);
    succeeds(adl.current_dir(home.path("")));
    let relative = adl_runtime::Snapshot::open(Some(&home.state()), "relative").unwrap();
    let config = relative.config();
    let [Mount::Volume { source, .. }] = &*config.mounts else { panic!("{config:?}") };
    assert_eq!(*source, HostPath::from(&one));
    relative.delete().unwrap();
}

#[test]
fn the_command_line_has_mounts() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let path = volume(&home, "volume");
    let mut adl = adl_command(&home.state());
    let of = |target: &str| format!("{}:{target}", path.display());
    adl.args(["run", "-v", &of("/rw"), "--volume", &of("/ro:ro"), "-v", &of("/cow:cow")]);
    adl.args(["--tmpfs", "/t:size=1m", "--read-only", "--", "sh", "-c"]);
    adl.arg(
        "cat /rw/file; echo 1 > /rw/new; echo 2 > /cow/new; echo 3 > /t/new; cat /cow/new /ro/new
             ! touch /ro/x 2> /dev/null; ! touch /x 2> /dev/null",
    );
    assert_eq!(succeeds(&mut adl), "host\n2\n1\n");
    assert_eq!(fs::read_to_string(path.join("new")).unwrap(), "1\n");
}

#[test]
fn mounts_cost_no_descriptor_that_is_not_given_back() {
    if !needs(&[]) {
        return;
    }
    let home = Home::new();
    let path = volume(&home, "volume");
    let mounts: Vec<Mount> = (0..40)
        .map(|number| {
            let access = [Access::ReadOnly, Access::ReadWrite, Access::CopyOnWrite][number % 3];
            Mount::volume(&path, format!("/m/{number}"), access)
        })
        .collect();
    let sandbox = with(&home, mounts);
    assert_eq!(shell(&sandbox, "cat /m/*/file | wc -l"), "40\n");
    sandbox.reset().unwrap();
    assert_eq!(shell(&sandbox, "cat /m/*/file | wc -l"), "40\n");
    // More than there can be are an error, and nothing worse.
    let mounts =
        (0..300).map(|n| Mount::volume(&path, format!("/m/{n}"), Access::ReadOnly)).collect();
    let many = Sandbox::create(Config { mounts, ..home.config() });
    assert!(many.is_err() || sandbox.id_range().is_none(), "{many:?}");
}

#[test]
fn no_mount_comes_in_or_out_where_those_of_the_host_are_shared() {
    if !needs(&[Need::Root]) {
        return;
    }
    let home = Home::new();
    let volume = volume(&home, "volume");
    // As systemd has it on every host.
    finish(fork(|| {
        unshare(CloneFlags::CLONE_NEWNS).unwrap();
        let none = None::<&str>;
        for propagation in [MsFlags::MS_PRIVATE, MsFlags::MS_SHARED] {
            nix::mount::mount(none, "/", none, MsFlags::MS_REC | propagation, none).unwrap();
        }
        fs::create_dir(volume.join("host")).unwrap();
        fs::create_dir(volume.join("guest")).unwrap();
        for _ in 0..2 {
            let mounts = vec![Mount::volume(&volume, "/data", Access::ReadWrite)];
            let capabilities = Capabilities::default().with(Capability::SysAdmin);
            let seccomp = Seccomp::Unconfined;
            let sandbox =
                Sandbox::create(Config { mounts, capabilities, seccomp, ..home.config() }).unwrap();
            let seen = |place: &str, at: &Path| {
                let place = format!(" {place} ");
                let outside = fs::read_to_string("/proc/self/mountinfo").unwrap();
                let at = format!(" {} ", at.display());
                let inside = shell(&sandbox, "cat /proc/self/mountinfo");
                (inside.contains(&place), outside.contains(&at))
            };
            let host = Tmpfs::on(&volume.join("host"));
            assert_eq!(seen("/data/host", &volume.join("host")), (false, true));
            drop(host);
            shell(&sandbox, "mount -t tmpfs tmpfs /data/guest");
            assert_eq!(seen("/data/guest", &volume.join("guest")), (true, false));
            sandbox.delete().unwrap();
        }
        adl_runtime::finish_removals();
    }));
}
