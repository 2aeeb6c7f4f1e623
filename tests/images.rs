//! Makes root file systems for tests; no tests of its own.

use std::fs;
use std::hash::{DefaultHasher, Hash, Hasher};
use std::os::unix::fs::{MetadataExt, PermissionsExt};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::OnceLock;

use crate::harness::target_directory;

/// A Debian: the one that `ADL_TEST_DEBIAN` names, or one that is made once by debootstrap and
/// kept in cargo's target directory. An error says why there is none.
pub(crate) fn debian() -> Result<PathBuf, String> {
    static DEBIAN: OnceLock<Result<PathBuf, String>> = OnceLock::new();
    DEBIAN.get_or_init(find_debian).clone()
}

fn find_debian() -> Result<PathBuf, String> {
    if let Some(path) = std::env::var_os("ADL_TEST_DEBIAN").map(PathBuf::from) {
        let there = path.join("usr/bin/dpkg").is_file();
        return there.then_some(path).ok_or("ADL_TEST_DEBIAN has no usr/bin/dpkg".to_owned());
    }
    let place = target_directory().join("tmp/debian-bookworm");
    if place.is_dir() {
        return Ok(place);
    }
    if !nix::unistd::geteuid().is_root() {
        return Err("no ADL_TEST_DEBIAN, and only root can run debootstrap".to_owned());
    }
    let aside = place.with_extension(std::process::id().to_string());
    fs::create_dir_all(&aside).map_err(|error| format!("{}: {error}", aside.display()))?;
    fs::set_permissions(&aside, fs::Permissions::from_mode(0o755)).unwrap();
    let output = Command::new("debootstrap")
        .args(["--variant=minbase", "--include=python3-minimal", "bookworm"])
        .arg(&aside)
        .output();
    let made = match output {
        Ok(output) if output.status.success() => Ok(()),
        Ok(output) => {
            let text = String::from_utf8_lossy(&output.stdout).into_owned();
            Err(format!("debootstrap: {}", text.lines().last().unwrap_or_default()))
        }
        Err(error) => Err(format!("debootstrap: {error}")),
    };
    if made.and_then(|()| fs::rename(&aside, &place).map_err(|e| e.to_string())).is_err() {
        let _ = fs::remove_dir_all(&aside);
        if !place.is_dir() {
            return Err("no ADL_TEST_DEBIAN, and debootstrap failed".to_owned());
        }
    }
    Ok(place)
}

/// Fills a directory with a root file system of a few programs of the host and their libraries,
/// and nothing else: no /proc, no /dev, no /tmp.
pub(crate) fn small(root: &Path) {
    for program in ["sh", "cat", "ls", "mkdir", "rm", "sleep", "id"] {
        let path = ["/usr/bin", "/bin"].map(|bin| Path::new(bin).join(program));
        let path = path.iter().find(|path| path.exists()).unwrap();
        copy(path, &root.join("bin").join(program));
        let libraries = Command::new("ldd").arg(path).env("LC_ALL", "C").output().unwrap();
        for line in String::from_utf8(libraries.stdout).unwrap().lines() {
            // "libc.so.6 => /lib/libc.so.6 (0x…)", or "/lib64/ld-linux-x86-64.so.2 (0x…)"
            if let Some(library) = line.split_whitespace().find(|word| word.starts_with('/')) {
                copy(Path::new(library), &root.join(library.trim_start_matches('/')));
            }
        }
    }
}

fn copy(from: &Path, to: &Path) {
    fs::create_dir_all(to.parent().unwrap()).unwrap();
    crate::harness::copy_program(from, to);
}

/// What a directory holds: for each path of it its mode, owner, time of change and content. What
/// the caller may not read counts as such.
pub(crate) fn fingerprint(root: &Path) -> Vec<(PathBuf, u64)> {
    let mut found = Vec::new();
    let mut left = vec![root.to_owned()];
    while let Some(path) = left.pop() {
        let metadata = fs::symlink_metadata(&path).unwrap();
        let mut hasher = DefaultHasher::new();
        (metadata.mode(), metadata.uid(), metadata.gid(), metadata.rdev()).hash(&mut hasher);
        (metadata.mtime(), metadata.mtime_nsec(), metadata.nlink()).hash(&mut hasher);
        if metadata.is_dir() {
            let entries = fs::read_dir(&path).map(|e| e.map(|e| e.unwrap().path()).collect());
            left.extend(entries.unwrap_or_else(|_| Vec::new()));
        } else if metadata.is_symlink() {
            fs::read_link(&path).unwrap().hash(&mut hasher);
        } else if metadata.is_file() {
            fs::read(&path).ok().hash(&mut hasher);
        }
        found.push((path, hasher.finish()));
    }
    found.sort();
    found
}
