//! File systems of their own for tests, in a file.

use std::fs::{self, File};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicU32, Ordering};

use crate::sys::open::DIRECTORY;

/// What mkfs.xfs asks for at least, in bytes. They are sparse.
const SIZE: u64 = 320 << 20;

/// A mounted file system, which is gone in the end, with its file and its loop device.
pub(crate) struct LoopDisk {
    place: PathBuf,
    pub(crate) top: PathBuf,
}

impl LoopDisk {
    /// Of btrfs; `None`, after a line that says so, where a test can't have one.
    pub(crate) fn btrfs(options: &str) -> Option<Self> {
        Self::make(&["mkfs.btrfs", "-q"], options)
    }

    /// Of ext4, with these features.
    pub(crate) fn ext4(features: &str, options: &str) -> Option<Self> {
        Self::make(&["mkfs.ext4", "-q", "-F", "-O", features], options)
    }

    /// Of xfs.
    pub(crate) fn xfs(options: &str) -> Option<Self> {
        Self::make(&["mkfs.xfs", "-q"], options)
    }

    fn make(mkfs: &[&str], options: &str) -> Option<Self> {
        static NEXT: AtomicU32 = AtomicU32::new(0);
        if !nix::unistd::geteuid().is_root() {
            println!("skipped: it takes root to mount {}", mkfs[0]);
            return None;
        }
        let next = NEXT.fetch_add(1, Ordering::Relaxed);
        let place = std::env::temp_dir().join(format!("adl-disk-{}-{next}", std::process::id()));
        fs::create_dir(&place).unwrap();
        let disk = Self { top: place.join("top"), place };
        fs::create_dir(&disk.top).unwrap();
        let image = disk.place.join("image");
        File::create_new(&image).unwrap().set_len(SIZE).unwrap();
        match Command::new(mkfs[0]).args(&mkfs[1..]).arg(&image).output() {
            Err(error) => {
                println!("skipped: {}: {error}", mkfs[0]);
                return None;
            }
            Ok(output) => assert!(output.status.success(), "{mkfs:?}: {output:?}"),
        }
        let mount = Command::new("mount")
            .args(["-o", &format!("loop,{options}")])
            .args([&image, &disk.top])
            .output()
            .unwrap();
        if !mount.status.success() {
            println!("skipped: mount -o {options}: {}", String::from_utf8_lossy(&mount.stderr));
            return None;
        }
        Some(disk)
    }

    pub(crate) fn path(&self, name: &str) -> PathBuf {
        self.top.join(name)
    }
}

impl Drop for LoopDisk {
    fn drop(&mut self) {
        let is_mounted = fs::read_to_string("/proc/self/mounts")
            .is_ok_and(|mounts| mounts.contains(&format!(" {} ", self.top.display())));
        if is_mounted {
            let unmount = |option: &[&str]| {
                Command::new("umount").args(option).arg(&self.top).status().unwrap().success()
            };
            // Lazily, where a failed test has left something open: it ends soon.
            assert!(unmount(&[]) || unmount(&["-l"]));
        }
        fs::remove_dir(&self.top).unwrap();
        fs::remove_dir_all(&self.place).unwrap();
    }
}

pub(crate) fn open(path: impl AsRef<Path>) -> OwnedFd {
    nix::fcntl::open(path.as_ref(), DIRECTORY, nix::sys::stat::Mode::empty()).unwrap()
}

/// Runs a shell script that must succeed.
pub(crate) fn shell(script: &str, directory: &Path) -> String {
    let output =
        Command::new("/bin/sh").args(["-ec", script]).current_dir(directory).output().unwrap();
    assert!(output.status.success(), "{script}: {output:?}");
    String::from_utf8(output.stdout).unwrap()
}

/// Writes up to so many bytes, on disk, as a user without rights of the host, and returns what came
/// of it: the length of the file, and what dd said.
pub(crate) fn fill(path: &Path, megabytes: u32) -> (u64, String) {
    let output = Command::new("setpriv")
        .args(["--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all"])
        .args(["dd", "if=/dev/urandom", "bs=1M", "conv=fsync", "status=none"])
        .arg(format!("count={megabytes}"))
        .arg(format!("of={}", path.display()))
        .output()
        .unwrap();
    let length = fs::metadata(path).map_or(0, |metadata| metadata.len());
    (length, String::from_utf8_lossy(&output.stderr).into_owned())
}

/// How many entries there are.
pub(crate) fn count(directory: BorrowedFd<'_>) -> usize {
    crate::store::contents::entries(directory.as_fd()).unwrap().len()
}
