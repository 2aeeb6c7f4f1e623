//! What guests leave behind is removed, whatever it is.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;
use std::process::{Command, Stdio};
use std::time::Duration;

use nix::sys::stat::mkdirat;

use super::*;
use crate::store::loop_disk::{LoopDisk, count, open, shell};

/// Tells a child which directory to empty.
const EMPTY: &str = "ADL_TEST_EMPTY";

fn remove(root: &Path) {
    remove_contents(open(root).as_fd()).unwrap();
    assert_eq!(count(open(root).as_fd()), 0);
}

/// What [`empty_what_is_asked_for`] does, in a process without any capability, as ordinary users
/// have none over what is their own.
fn without_rights(root: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command
        .args(["--bounding-set=-all", "--inh-caps=-all", "--ambient-caps=-all"])
        .arg(std::env::current_exe().unwrap())
        .args(["--exact", "store::contents::tests::empty_what_is_asked_for", "--ignored"])
        .env(EMPTY, root);
    command
}

#[test]
#[ignore = "the child of other tests"]
fn empty_what_is_asked_for() {
    if let Some(root) = std::env::var_os(EMPTY) {
        remove_contents(open(root).as_fd()).unwrap();
    }
}

/// A chain of directories, with a subvolume every so many levels. Some can't be changed.
fn descend(root: &Path, levels: usize, subvolume_each: usize) {
    let mut directory = open(root);
    let (mut flagged, mut read_only) = (Vec::new(), Vec::new());
    for level in 1..=levels {
        if level % subvolume_each == 0 {
            btrfs::create(&directory, "d").unwrap();
        } else {
            mkdirat(&directory, "d", Mode::S_IRWXU).unwrap();
        }
        directory = openat(&directory, "d", DIRECTORY, Mode::empty()).unwrap();
        if level % 701 == 0 {
            flagged.push(directory.try_clone().unwrap());
        }
        if level % (2 * subvolume_each) == 0 {
            read_only.push(directory.try_clone().unwrap());
        }
    }
    for directory in flagged {
        let flags = ioctl::inode_flags(&directory).unwrap();
        ioctl::set_inode_flags(&directory, flags | IMMUTABLE).unwrap();
    }
    for subvolume in read_only {
        ioctl::set_subvolume_flags(subvolume, ioctl::READ_ONLY).unwrap();
    }
}

/// Files and directories with each flag, in directories with each flag, and what can't be opened.
fn make_flagged(root: &Path) {
    shell(
        "mkdir -p tree/immutable/inner/deep tree/append/inner tree/plain empty-immutable empty-append
        for d in tree tree/immutable tree/immutable/inner tree/append tree/append/inner tree/plain; do
            echo x > $d/immutable-file; echo x > $d/append-file; mkfifo $d/fifo
            mknod $d/device c 5 0; ln -s /etc/passwd $d/link; ln -s ../canary $d/out
            chattr +i $d/immutable-file; chattr +a $d/append-file
        done
        chattr +i tree/immutable/inner/deep tree/immutable/inner tree/immutable empty-immutable
        chattr +a tree/append/inner tree/append empty-append
        chattr +ai tree/plain; chmod 0 tree",
        root,
    );
    assert!(fs::remove_dir(root.join("empty-append")).is_err());
    assert!(fs::remove_file(root.join("tree/plain/append-file")).is_err());
}

#[test]
fn files_that_may_not_be_changed_are_removed() {
    for disk in [LoopDisk::ext4("extent", "defaults"), LoopDisk::btrfs("defaults")] {
        let Some(disk) = disk else { return };
        fs::write(disk.path("canary"), "alive").unwrap();
        shell("chattr +i canary", &disk.top);
        let root = disk.path("root");
        fs::create_dir(&root).unwrap();
        make_flagged(&root);
        remove(&root);
        // Again, where the directory itself has them.
        make_flagged(&root);
        shell("chattr +ai .", &root);
        remove(&root);
        make_flagged(&root);
        shell("chattr +i root", &disk.top);
        remove_entry(open(&disk.top).as_fd(), OsStr::new("root")).unwrap();
        assert!(!root.exists());
        assert!(fs::write(disk.path("canary"), "dead").is_err(), "flags of others are as before");
    }
}

#[test]
fn a_refusal_that_stays_is_told() {
    let Some(disk) = LoopDisk::ext4("extent", "defaults") else { return };
    fs::create_dir(disk.path("root")).unwrap();
    fs::write(disk.path("root/file"), "x").unwrap();
    shell("chattr +i root/file", &disk.top);
    // Without CAP_LINUX_IMMUTABLE.
    let output = without_rights(&disk.path("root")).output().unwrap();
    assert!(!output.status.success());
    let said = String::from_utf8_lossy(&output.stdout);
    assert!(said.contains("Operation not permitted"), "{said}");
    assert!(disk.path("root/file").exists());
    let top = open(&disk.top);
    shell("mount -o remount,ro .", &disk.top);
    let error = remove_entry(top.as_fd(), OsStr::new("root")).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EROFS));
}

/// Subvolumes below directories, read-only or not, with files, flags, and each other in them.
fn make_nested(root: &Path) {
    shell(
        "subvolume() { btrfs subvolume create $1 >/dev/null; mkdir -p $1/x/y/z $1/e; echo x > $1/x/y/f; }
        subvolume flat; subvolume empty; rm -r empty/*
        mkdir -p d/d/d; subvolume d/d/d/a; subvolume d/d/d/a/b; subvolume d/d/d/a/x/y/c
        subvolume d/d/d/a/x/y/c/x/y/z/deep; subvolume d/read-only; subvolume d/read-only/x/inner
        subvolume d/read-only/x/inner/innermost; subvolume d/flat-read-only
        subvolume flagged; subvolume flagged/inner
        btrfs subvolume snapshot -r d/d/d/a d/d/d/a/snapshot >/dev/null
        echo x > flagged/x/file; chattr +i flagged/x/file flagged/x flagged/inner flagged
        chattr +a flagged/inner/x
        for s in d/read-only/x/inner/innermost d/read-only/x/inner d/read-only d/flat-read-only \
            flagged/inner flagged empty; do
            btrfs property set $s ro true
        done
        chmod 0 d",
        root,
    );
}

#[test]
fn nested_subvolumes_are_removed() {
    let Some(disk) = LoopDisk::btrfs("defaults") else { return };
    let top = open(&disk.top);
    fs::create_dir(disk.path("root")).unwrap();
    make_nested(&disk.path("root"));
    remove(&disk.path("root"));
    // In a subvolume, and in one that is read-only itself.
    for is_read_only in [false, true] {
        btrfs::create(&top, "volume").unwrap();
        make_nested(&disk.path("volume"));
        if is_read_only {
            shell("btrfs property set volume ro true", &disk.top);
        }
        remove(&disk.path("volume"));
        btrfs::destroy(&top, "volume").unwrap();
    }
    for entry in ["", "chattr +i volume", "btrfs property set volume ro true", "rm -rf volume/*"] {
        btrfs::create(&top, "volume").unwrap();
        make_nested(&disk.path("volume"));
        shell(&format!("chmod 0 volume; {entry} 2>/dev/null || :"), &disk.top);
        remove_entry(top.as_fd(), OsStr::new("volume")).unwrap();
        assert!(!disk.path("volume").exists());
        remove_entry(top.as_fd(), OsStr::new("volume")).unwrap();
    }
    assert_eq!(shell("btrfs subvolume list .", &disk.top), "");
}

#[test]
fn nested_subvolumes_are_removed_by_who_may_not_destroy_them() {
    let Some(disk) = LoopDisk::btrfs("defaults") else { return };
    let root = disk.path("root");
    fs::create_dir(&root).unwrap();
    make_nested(&root);
    // Which take a capability.
    shell(
        "chmod 700 d; btrfs property set flagged ro false; btrfs property set flagged/inner ro false
        chattr -i flagged flagged/inner flagged/x flagged/x/file; chattr -a flagged/inner/x",
        &root,
    );
    let output = without_rights(&root).output().unwrap();
    assert!(output.status.success(), "{output:?}");
    assert!(String::from_utf8_lossy(&output.stdout).contains("1 passed"), "{output:?}");
    assert_eq!(count(open(&root).as_fd()), 0);
}

#[test]
fn names_that_the_removal_uses_are_no_trap() {
    let Some(disk) = LoopDisk::btrfs("defaults") else { return };
    let root = disk.path("root");
    fs::create_dir(&root).unwrap();
    fs::write(disk.path("canary"), "alive").unwrap();
    let hostile = "mkdir -p removing-1/x/y/z removing-01/x removing-2 w/x/y/z
        for n in 18446744073709551615 18446744073709551616 4611686018427387904 4611686018427387903; do
            mkdir -p removing-$n/x/y
        done
        for n in 00 03 04 +5 010 011 012 013 014; do mkdir -p removing-$n/x/y; done
        echo x > removing-0; ln -s ../canary removing-3; ln -s .. removing-4; mkfifo removing-5
        mkdir -p removing-6/removing-7/removing-8/removing-6";
    // As an interrupted removal leaves it, and as a guest makes it in a subvolume of its own.
    shell(&format!("{hostile}; rm removing-[0345]"), &root);
    shell(
        "btrfs subvolume create removing-9 >/dev/null; btrfs subvolume create removing-9/in >/dev/null
        mkdir -p removing-9/in/removing-9/x; btrfs subvolume create s >/dev/null
        btrfs subvolume create s/removing-8 >/dev/null; mkdir -p s/removing-8/x",
        &root,
    );
    shell(hostile, &root.join("s"));
    shell(hostile, &root.join("removing-9/in"));
    remove(&root);
    assert_eq!(fs::read(disk.path("canary")).unwrap(), b"alive");
    assert_eq!(shell("ls", &disk.top), "canary\nroot\n");
}

#[test]
fn a_tree_as_deep_as_a_guest_likes_is_removed() {
    let Some(disk) = LoopDisk::btrfs("defaults") else { return };
    fs::create_dir(disk.path("root")).unwrap();
    descend(&disk.path("root"), 50_000, 9_000);
    remove(&disk.path("root"));
    assert_eq!(shell("btrfs subvolume list .", &disk.top), "");
}

#[test]
fn a_removal_that_is_interrupted_goes_on() {
    let Some(disk) = LoopDisk::btrfs("defaults") else { return };
    let root = disk.path("root");
    fs::create_dir(&root).unwrap();
    for _ in 0..3 {
        make_nested(&root);
        shell(
            "mkdir wide && cd wide && mkdir $(seq 300) && for d in *; do mkdir $d/e; done",
            &root,
        );
        shell("chmod 700 d && mkdir d/flagged && cp -a wide d/flagged/", &root);
        mkdirat(open(&root), "chain", Mode::S_IRWXU).unwrap();
        descend(&root.join("chain"), 3_000, 100);
        // Later and later, so that it comes to an end.
        let mut interruptions = 0;
        loop {
            let mut child = Command::new(std::env::current_exe().unwrap());
            child.args(["--exact", "store::contents::tests::empty_what_is_asked_for", "--ignored"]);
            let mut child = child.env(EMPTY, &root).stdout(Stdio::null()).spawn().unwrap();
            std::thread::sleep(Duration::from_millis(5 + interruptions * 3));
            child.kill().unwrap();
            let status = child.wait().unwrap();
            if status.signal().is_none() {
                assert!(status.success(), "{status} after {interruptions} interruptions");
                break;
            }
            interruptions += 1;
        }
        assert!(interruptions > 0);
        assert_eq!(count(open(&root).as_fd()), 0);
        assert_eq!(shell("btrfs subvolume list .", &disk.top), "");
    }
}

#[test]
fn what_has_become_a_link_by_the_time_that_it_is_opened_is_not_followed() {
    use std::os::unix::fs::PermissionsExt;
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o7777;
    let place = std::env::temp_dir().join(format!("adl-links-{}", std::process::id()));
    let (root, host) = (place.join("root"), place.join("host"));
    fs::create_dir_all(root.join("directory")).unwrap();
    fs::create_dir(&host).unwrap();
    fs::write(host.join("file"), "alive").unwrap();
    for (path, mode) in [(host.join("file"), 0o604), (host.clone(), 0o711)] {
        fs::set_permissions(path, fs::Permissions::from_mode(mode)).unwrap();
    }
    std::os::unix::fs::symlink("../host", root.join("to-directory")).unwrap();
    std::os::unix::fs::symlink("../host/file", root.join("to-file")).unwrap();
    for name in [c"to-directory", c"to-file"] {
        let opened = open_accessible(open(&root).as_fd(), name).map(drop);
        assert!(matches!(opened, Err(Errno::ELOOP | Errno::ENOTDIR)), "{opened:?}");
        assert_eq!(open_to_look(open(&root).as_fd(), name).map(drop), Err(Errno::EINVAL));
    }
    assert_eq!((mode(&host), mode(&host.join("file"))), (0o711, 0o604));
    // Control: a directory is made accessible.
    fs::set_permissions(root.join("directory"), fs::Permissions::from_mode(0o000)).unwrap();
    open_accessible(open(&root).as_fd(), c"directory").unwrap();
    open_to_look(open(&root).as_fd(), c"directory").unwrap();
    assert_eq!(mode(&root.join("directory")), 0o700);
    fs::remove_dir_all(&place).unwrap();
}
