//! Limits on an ext4 and an xfs in a file.

use std::fs::{self, Permissions};
use std::os::fd::AsFd;
use std::os::unix::fs::PermissionsExt;
use std::time::{Duration, Instant};

use super::*;
use crate::store::loop_disk::{LoopDisk, fill, open, shell};

/// A directory that anyone may write to, as a guest can to its own.
fn directory(disk: &LoopDisk, name: &str) -> std::os::fd::OwnedFd {
    fs::create_dir(disk.path(name)).unwrap();
    fs::set_permissions(disk.path(name), Permissions::from_mode(0o777)).unwrap();
    open(disk.path(name))
}

/// One after the other: each with projects, where this kernel can do it.
fn disks() -> impl Iterator<Item = LoopDisk> {
    let make = [|| LoopDisk::ext4("project,quota", "prjquota"), || LoopDisk::xfs("prjquota")];
    make.into_iter().filter_map(|make| make())
}

/// In the words of ext4 and of xfs.
fn is_full(errors: &str) -> bool {
    errors.contains("quota exceeded") || errors.contains("No space left on device")
}

fn is_unsupported(result: &Result<()>, why: &str) {
    let Err(Error::Unsupported { why: told, fix, .. }) = result else { panic!("{result:?}") };
    assert!(told.contains(why), "{told}");
    assert!(!fix.is_empty());
}

#[test]
fn a_directory_holds_no_more_than_its_limit() {
    for disk in disks() {
        let (limited, other) = (directory(&disk, "limited"), directory(&disk, "other"));
        limit(limited.as_fd(), 8 << 20).unwrap();
        limit(other.as_fd(), 32 << 20).unwrap();
        let (length, errors) = fill(&disk.path("limited/fits"), 4);
        assert_eq!((length, errors.as_str()), (4 << 20, ""));
        let (length, errors) = fill(&disk.path("limited/too-much"), 8);
        assert!(is_full(&errors), "{errors}");
        assert!(length > 2 << 20 && length <= 4 << 20, "{length}");
        // Another's is not used up.
        assert_eq!(fill(&disk.path("other/file"), 16), (16 << 20, String::new()));
        assert_eq!(fill(&disk.path("none"), 1).0, 0, "only root may write to the top");
        // Below, too, and where things are moved to.
        fs::remove_file(disk.path("limited/too-much")).unwrap();
        let deep = disk.path("limited/a/b");
        shell("mkdir -p a/b && chmod 777 a/b", &disk.path("limited"));
        assert!(is_full(&fill(&deep.join("file"), 8).1));
        let error = fs::rename(disk.path("other/file"), disk.path("limited/file")).unwrap_err();
        assert_eq!(error.raw_os_error(), Some(libc::EXDEV));
        // Removed, it is free again.
        fs::remove_dir_all(disk.path("limited/a")).unwrap();
        assert_eq!(fill(&disk.path("limited/again"), 3), (3 << 20, String::new()));
    }
}

#[test]
fn a_directory_holds_no_more_files_than_its_limit() {
    for disk in disks() {
        let limited = directory(&disk, "limited");
        limit(limited.as_fd(), 1 << 20).unwrap();
        let script = "setpriv --reuid=65534 --regid=65534 --clear-groups \
            sh -c 'for i in $(seq 2000); do : > $i || break; done' 2>&1 | tail -n 1";
        let said = shell(script, &disk.path("limited"));
        assert!(is_full(&said), "{said}");
        // The directory is one of them.
        assert_eq!(crate::store::loop_disk::count(limited.as_fd()), 1024 + 256 - 1);
    }
}

#[test]
fn a_limit_can_be_changed() {
    for disk in disks() {
        let limited = directory(&disk, "limited");
        limit(limited.as_fd(), 1 << 20).unwrap();
        limit(limited.as_fd(), u64::MAX).unwrap();
        assert_eq!(fill(&disk.path("limited/file"), 8), (8 << 20, String::new()));
    }
}

#[test]
fn a_removed_directory_leaves_no_record() {
    for disk in disks() {
        for order in ["before", "after"] {
            let limited = directory(&disk, "limited");
            limit(limited.as_fd(), 8 << 20).unwrap();
            let project = ioctl::attributes(&limited).unwrap().project;
            assert_eq!(quotactl::next_project(disk_top(&disk), FIRST).unwrap(), project);
            fill(&disk.path("limited/file"), 1);
            if order == "before" {
                release(limited.as_fd()).unwrap();
            }
            fs::remove_dir_all(disk.path("limited")).unwrap();
            if order == "after" {
                release(limited.as_fd()).unwrap();
            }
            drop(limited);
            // The kernel does the last of it in a thread of its own, and tells no one.
            let began = Instant::now();
            while let Ok(next) = quotactl::next_project(disk_top(&disk), FIRST) {
                assert!(began.elapsed() < Duration::from_secs(20), "{next:x}, released {order}");
                std::thread::sleep(Duration::from_millis(10));
            }
            let none = quotactl::next_project(disk_top(&disk), FIRST).unwrap_err();
            assert_eq!(none.raw_os_error(), Some(libc::ENOENT));
        }
    }
}

fn disk_top(disk: &LoopDisk) -> std::os::fd::OwnedFd {
    open(&disk.top)
}

#[test]
fn limits_of_others_are_not_released() {
    for disk in disks() {
        let shared = directory(&disk, "shared");
        limit(shared.as_fd(), 8 << 20).unwrap();
        let project = ioctl::attributes(&shared).unwrap().project;
        // Made in it, of the same project, which is not its own.
        let inside = directory(&disk, "shared/inside");
        assert_eq!(ioctl::attributes(&inside).unwrap().project, project);
        release(inside.as_fd()).unwrap();
        assert_eq!(quotactl::project(&shared, project).unwrap().byte_limit, 8 << 20);
        // And where there is none, or no project at all.
        release(disk_top(&disk).as_fd()).unwrap();
        release(open("/proc").as_fd()).unwrap();
        release(shared.as_fd()).unwrap();
        release(shared.as_fd()).unwrap();
        assert_eq!(quotactl::project(&shared, project).unwrap().byte_limit, 0);
    }
}

#[test]
fn directories_of_the_same_number_have_limits_of_their_own() {
    for disk in disks() {
        let (first, second) = (directory(&disk, "first"), directory(&disk, "second"));
        // As if the inode number of the second had the same low bits.
        let inode = fstat(&second).unwrap().st_ino;
        let mut attributes = ioctl::attributes(&first).unwrap();
        attributes.project = candidate(inode, 0);
        ioctl::set_attributes(&first, &attributes).unwrap();
        quotactl::set_limits(&first, attributes.project, 1 << 20, 1024).unwrap();
        limit(second.as_fd(), 8 << 20).unwrap();
        assert_eq!(ioctl::attributes(&second).unwrap().project, candidate(inode, 1));
        assert_eq!(quotactl::project(&first, attributes.project).unwrap().byte_limit, 1 << 20);
        release(second.as_fd()).unwrap();
        assert_eq!(quotactl::project(&second, candidate(inode, 1)).unwrap().byte_limit, 0);
        assert_eq!(quotactl::project(&first, attributes.project).unwrap().byte_limit, 1 << 20);
    }
}

#[test]
fn a_project_is_never_none_nor_an_administrators() {
    for inode in [0, 1, 0x7fff_ffff, 0xffff_ffff, u64::MAX, 0x12_3456_789a] {
        for attempt in 0..CANDIDATES {
            let project = candidate(inode, attempt);
            assert!(project >= FIRST && project != NONE, "{inode:x}: {project:x}");
        }
        assert_eq!(candidate(inode, 3), candidate(inode, 3));
    }
    assert_eq!(candidate(0x12_3456_789a, 0), 0x8000_0000 | 0x3456_789a);
    assert_ne!(candidate(1, 1), candidate(1 | 1 << 40, 1));
}

#[test]
fn a_limit_that_would_not_hold_is_refused() {
    // Counted, but not enforced: the mount option is missing.
    for disk in [LoopDisk::ext4("project,quota", "defaults"), LoopDisk::xfs("pqnoenforce")] {
        let Some(disk) = disk else { continue };
        let limited = directory(&disk, "limited");
        let before = ioctl::attributes(&limited).unwrap();
        is_unsupported(&limit(limited.as_fd(), 1 << 20), "does not enforce");
        assert_eq!(ioctl::attributes(&limited).unwrap().project, before.project);
    }
}

#[test]
fn a_file_system_without_projects_is_told() {
    if let Some(disk) = LoopDisk::ext4("^project,^quota", "defaults") {
        let limited = directory(&disk, "limited");
        let result = limit(limited.as_fd(), 1 << 20);
        is_unsupported(&result, "no project quotas");
        assert!(result.unwrap_err().to_string().contains("with quotas"));
        release(limited.as_fd()).unwrap();
    }
    for disk in [LoopDisk::btrfs("defaults"), LoopDisk::xfs("noquota")].into_iter().flatten() {
        is_unsupported(&limit(open(&disk.top).as_fd(), 1 << 20), "no project quotas");
    }
    is_unsupported(&limit(open("/dev/shm").as_fd(), 1 << 20), "no project quotas");
    is_unsupported(&limit(open("/proc").as_fd(), 1 << 20), "no project quotas");
}

#[test]
fn what_is_told_to_do_helps() {
    // That this kernel can do it at all.
    if LoopDisk::ext4("project,quota", "prjquota").is_none() {
        return;
    }
    let Some(disk) = LoopDisk::ext4("^project,^quota", "defaults") else { return };
    let script = "umount top; tune2fs -O project,quota image >/dev/null
        mount -o loop,prjquota image top";
    shell(script, disk.top.parent().unwrap());
    let limited = directory(&disk, "limited");
    limit(limited.as_fd(), 2 << 20).unwrap();
    assert!(fill(&disk.path("limited/file"), 4).1.contains("quota exceeded"));
}
