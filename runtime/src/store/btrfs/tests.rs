//! Subvolumes of a btrfs in a file.

use std::fs;
use std::os::unix::fs::MetadataExt;

use super::*;
use crate::store::loop_disk::{LoopDisk, fill, open, shell};

#[test]
fn a_subvolume_is_told_from_a_directory() {
    let Some(disk) = LoopDisk::btrfs("defaults") else { return };
    let top = open(&disk.top);
    create(&top, "volume").unwrap();
    fs::create_dir(disk.path("directory")).unwrap();
    assert!(is_btrfs(&top) && is_subvolume(&top));
    assert!(is_subvolume(open(disk.path("volume"))));
    let directory = open(disk.path("directory"));
    assert!(is_btrfs(&directory) && !is_subvolume(&directory));
    assert!(!is_btrfs(open("/proc")) && !is_subvolume(open("/proc")));
    let error = create(&top, "volume").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EEXIST));
    assert_eq!(create(open("/proc"), "x").unwrap_err().raw_os_error(), Some(libc::ENOTTY));
}

#[test]
fn a_name_is_one_name_or_an_error() {
    let Some(disk) = LoopDisk::btrfs("defaults") else { return };
    let top = open(&disk.top);
    create(&top, "source").unwrap();
    let source = open(disk.path("source"));
    let (longest, long, very_long) = ("n".repeat(255), "n".repeat(256), "n".repeat(5000));
    for (name, errno) in [
        ("", libc::EINVAL),
        ("a\0b", libc::EINVAL),
        ("a/b", libc::EINVAL),
        (&long, libc::ENAMETOOLONG),
        (&very_long, libc::ENAMETOOLONG),
    ] {
        for result in [create(&top, name), snapshot(&source, &top, name), destroy(&top, name)] {
            assert_eq!(result.unwrap_err().raw_os_error(), Some(errno), "{name:?}");
        }
    }
    // They are taken to exist, by the kernel.
    assert!(create(&top, ".").is_err() && create(&top, "..").is_err());
    create(&top, &longest).unwrap();
    destroy(&top, &longest).unwrap();
    assert_eq!(shell("ls", &disk.top), "source\n");
}

#[test]
fn a_snapshot_is_written_to_alone() {
    let Some(disk) = LoopDisk::btrfs("defaults") else { return };
    let top = open(&disk.top);
    create(&top, "source").unwrap();
    fs::write(disk.path("source/file"), "old").unwrap();
    fs::create_dir(disk.path("source/directory")).unwrap();
    snapshot(open(disk.path("source")), &top, "copy").unwrap();
    assert!(is_subvolume(open(disk.path("copy"))));
    fs::write(disk.path("copy/file"), "new").unwrap();
    assert_eq!(fs::read(disk.path("source/file")).unwrap(), b"old");
    let error = snapshot(open(disk.path("source/directory")), &top, "other").unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
    let mode = |name| fs::metadata(disk.path(name)).unwrap().mode();
    fs::create_dir(disk.path("directory")).unwrap();
    assert_eq!(mode("source"), mode("directory"));
}

#[test]
fn a_read_only_subvolume_becomes_writable() {
    let Some(disk) = LoopDisk::btrfs("defaults") else { return };
    let top = open(&disk.top);
    create(&top, "volume").unwrap();
    shell("btrfs property set volume ro true", &disk.top);
    assert!(fs::write(disk.path("volume/file"), "x").is_err());
    make_writable(open(disk.path("volume"))).unwrap();
    fs::write(disk.path("volume/file"), "x").unwrap();
    make_writable(open(disk.path("volume"))).unwrap();
    fs::create_dir(disk.path("directory")).unwrap();
    let error = make_writable(open(disk.path("directory"))).unwrap_err();
    assert_eq!(error.raw_os_error(), Some(libc::EINVAL));
}

#[test]
fn a_subvolume_is_destroyed_with_what_is_in_it() {
    let Some(disk) = LoopDisk::btrfs("defaults") else { return };
    let top = open(&disk.top);
    create(&top, "outer").unwrap();
    create(open(disk.path("outer")), "inner").unwrap();
    fs::write(disk.path("outer/inner/file"), "x").unwrap();
    assert_eq!(destroy(&top, "outer").unwrap_err().raw_os_error(), Some(libc::ENOTEMPTY));
    shell("btrfs property set outer/inner ro true", &disk.top);
    destroy(open(disk.path("outer")), "inner").unwrap();
    destroy(&top, "outer").unwrap();
    fs::create_dir(disk.path("directory")).unwrap();
    assert!(destroy(&top, "directory").is_err());
    assert_eq!(shell("ls", &disk.top), "directory\n");
}

#[test]
fn a_limit_is_for_what_a_snapshot_adds() {
    let Some(disk) = LoopDisk::btrfs("defaults") else { return };
    let top = open(&disk.top);
    create(&top, "source").unwrap();
    fs::write(disk.path("source/file"), vec![7; 30 << 20]).unwrap();
    let before = limit(open(disk.path("source")), 1 << 20).unwrap_err();
    assert!(are_quotas_off(&before), "{before}");
    shell("sync; btrfs quota enable . && btrfs quota rescan -w .", &disk.top);
    snapshot(open(disk.path("source")), &top, "copy").unwrap();
    let copy = open(disk.path("copy"));
    limit(&copy, 16 << 20).unwrap();
    fs::set_permissions(disk.path("copy"), std::os::unix::fs::PermissionsExt::from_mode(0o777))
        .unwrap();
    // Twice what is shared would be more than the limit already.
    let (length, errors) = fill(&disk.path("copy/fits"), 8);
    assert_eq!((length, errors.as_str()), (8 << 20, ""));
    let (length, errors) = fill(&disk.path("copy/too-much"), 20);
    assert!(errors.contains("quota exceeded"), "{errors}");
    assert!(length < 8 << 20, "{length}");
}
