//! Volumes, tmpfs and devices on the command line, as docker writes them.

use std::ffi::{OsStr, OsString};
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::PathBuf;

use adl_runtime::{Access, Mount};

use crate::values::{CliResult, bytes};

pub(crate) const HELP: &str = "\
\x20 -v, --volume SOURCE:TARGET[:MODE]
                           mount a directory or file of this machine at TARGET inside; MODE is `rw`
                           (default), `ro`, or `cow`: writes go to a copy that is gone afterwards
      --tmpfs TARGET[:size=SIZE]
                           mount an empty file system in memory (default size: 64m)
      --device PATH[:TARGET]
                           have a device of this machine inside
      --read-only          let no one inside write but to what is mounted there
";

/// The size of a tmpfs of which none is said.
const TMPFS: u64 = 64 << 20;

/// Reads `SOURCE:TARGET` or `SOURCE:TARGET:MODE`.
pub(crate) fn volume(text: &OsStr) -> CliResult<Mount> {
    let parts = split(text);
    let access = match parts.get(2).map(|mode| mode.as_bytes()) {
        None | Some(b"rw") => Access::ReadWrite,
        Some(b"ro") => Access::ReadOnly,
        Some(b"cow") => Access::CopyOnWrite,
        Some(_) => return Err(wrong("--volume", text, "the mode is `ro`, `rw` or `cow`")),
    };
    match &*parts {
        [source, target] | [source, target, _] if !source.is_empty() && !target.is_empty() => {
            Ok(Mount::volume(source, target, access))
        }
        _ => Err(wrong("--volume", text, "takes SOURCE:TARGET or SOURCE:TARGET:MODE")),
    }
}

/// Reads `TARGET` or `TARGET:size=SIZE`.
pub(crate) fn tmpfs(text: &OsStr) -> CliResult<Mount> {
    match &*split(text) {
        [target] => Ok(Mount::tmpfs(target, TMPFS)),
        [target, size] => {
            let size = size.to_str().and_then(|size| bytes(size.strip_prefix("size=")?));
            let size = size.filter(|size| *size != 0);
            let size = size.ok_or_else(|| wrong("--tmpfs", text, "takes a size as size=64m"))?;
            Ok(Mount::tmpfs(target, size))
        }
        _ => Err(wrong("--tmpfs", text, "takes TARGET or TARGET:size=SIZE")),
    }
}

/// Reads `PATH` or `SOURCE:TARGET`.
pub(crate) fn device(text: &OsStr) -> CliResult<Mount> {
    match &*split(text) {
        [path] => Ok(Mount::device(path)),
        [source, target] => {
            Ok(Mount::Device { source: source.into(), target: PathBuf::from(target) })
        }
        _ => Err(wrong("--device", text, "takes PATH or SOURCE:TARGET")),
    }
}

fn split(text: &OsStr) -> Vec<OsString> {
    let parts = text.as_bytes().split(|byte| *byte == b':');
    parts.map(|part| OsString::from_vec(part.to_vec())).collect()
}

fn wrong(option: &str, text: &OsStr, why: &str) -> Box<dyn std::error::Error> {
    format!("{option} {}: {why}", text.display()).into()
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
