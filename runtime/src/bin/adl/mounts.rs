//! Volumes, tmpfs and devices on the command line, as docker writes them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use adl_runtime::{Access, Mount};
use clap::{Args, ValueHint};

use crate::values::{of_bytes, size};

#[derive(Args)]
pub(crate) struct MountOptions {
    /// Mount a directory or file of this machine at TARGET inside; MODE is `rw` (default), `ro`, or
    /// `cow`: writes go to a copy that is gone afterwards
    #[arg(short, long, value_name = "SOURCE:TARGET[:MODE]", value_hint = ValueHint::AnyPath)]
    #[arg(value_parser = of_bytes(volume))]
    volume: Vec<Mount>,

    /// Mount an empty file system in memory; by default of 64m
    #[arg(long, value_name = "TARGET[:size=SIZE]", value_parser = of_bytes(tmpfs))]
    tmpfs: Vec<Mount>,

    /// Have a device of this machine inside
    #[arg(long, value_name = "PATH[:TARGET]", value_hint = ValueHint::FilePath)]
    #[arg(value_parser = of_bytes(device))]
    device: Vec<Mount>,
}

/// The size of a tmpfs of which none is said.
const TMPFS: u64 = 64 << 20;

/// Reads `SOURCE:TARGET` or `SOURCE:TARGET:MODE`.
fn volume(text: &OsStr) -> Result<Mount, &'static str> {
    let parts = split(text);
    let access = match parts.get(2).map(|mode| mode.as_bytes()) {
        None | Some(b"rw") => Access::ReadWrite,
        Some(b"ro") => Access::ReadOnly,
        Some(b"cow") => Access::CopyOnWrite,
        Some(_) => return Err("the mode is `ro`, `rw` or `cow`"),
    };
    match &*parts {
        [source, target] | [source, target, _] if !source.is_empty() && !target.is_empty() => {
            Ok(Mount::volume(source, target, access))
        }
        _ => Err("takes SOURCE:TARGET or SOURCE:TARGET:MODE"),
    }
}

/// Reads `TARGET` or `TARGET:size=SIZE`.
fn tmpfs(text: &OsStr) -> Result<Mount, &'static str> {
    match &*split(text) {
        [target] => Ok(Mount::tmpfs(target, TMPFS)),
        [target, option] => {
            let text = option.to_str().and_then(|option| option.strip_prefix("size="));
            let size = text.and_then(|text| size(text).ok());
            Ok(Mount::tmpfs(target, size.ok_or("takes a size as size=64m")?))
        }
        _ => Err("takes TARGET or TARGET:size=SIZE"),
    }
}

/// Reads `PATH` or `SOURCE:TARGET`.
fn device(text: &OsStr) -> Result<Mount, &'static str> {
    match &*split(text) {
        [path] => Ok(Mount::device(path)),
        [source, target] => {
            Ok(Mount::Device { source: source.into(), target: PathBuf::from(target) })
        }
        _ => Err("takes PATH or SOURCE:TARGET"),
    }
}

fn split(text: &OsStr) -> Vec<OsString> {
    let parts = text.as_bytes().split(|byte| *byte == b':');
    parts.map(|part| OsString::from_vec(part.to_vec())).collect()
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;

    use adl_runtime::{Access, Mount};

    use super::{device, tmpfs, volume};

    #[test]
    fn mounts_are_read_as_docker_reads_them() {
        let of = |text| volume(OsStr::new(text)).ok();
        assert_eq!(of("/a:/b"), Some(Mount::volume("/a", "/b", Access::ReadWrite)));
        assert_eq!(of("a:/b:ro"), Some(Mount::volume("a", "/b", Access::ReadOnly)));
        assert_eq!(of("/a:/b:cow"), Some(Mount::volume("/a", "/b", Access::CopyOnWrite)));
        for wrong in ["", "/a", ":/b", "/a:", "/a:/b:x", "/a:/b:ro:x"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        let of = |text| tmpfs(OsStr::new(text)).ok();
        assert_eq!(of("/a"), Some(Mount::tmpfs("/a", 64 << 20)));
        assert_eq!(of("/a:size=1k"), Some(Mount::tmpfs("/a", 1024)));
        for wrong in ["/a:1k", "/a:size=", "/a:size=0", "/a:size=1:x"] {
            assert_eq!(of(wrong), None, "{wrong}");
        }
        assert_eq!(device(OsStr::new("/dev/fuse")).ok(), Some(Mount::device("/dev/fuse")));
    }
}
