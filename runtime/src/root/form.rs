//! What is given as an archive of a root file system, and is in another form.

use std::fs::File;
use std::io::Read;
use std::path::Path;

use crate::config::host_path::HostPath;
use crate::error::{Error, Result};
use crate::image::plain_beginning;

/// The size of a header of tar, and what sizes of content are rounded up to.
const BLOCK: usize = 512;

/// How many headers are looked at.
const LOOKED_AT: usize = 4;

/// Refuses what is no archive of a root file system, by its beginning, and says what to do.
///
/// # Errors
/// [`Error::Invalid`]
pub(crate) fn check(path: &Path, beginning: &[u8]) -> Result<()> {
    if holds_layers(beginning) {
        return Err(Error::invalid("image", format!("{path:?} {LAYERS}")));
    }
    Ok(())
}

/// What is said of an image in layers, behind its path. It has become one since it was looked at.
const LAYERS: &str = "holds an image in layers, as `docker save` and OCI tools write it";

/// How much of an archive is looked at.
const BEGINNING: u64 = 16 << 10;

/// Whether an archive holds an image in layers, and no root file system.
pub(crate) fn is_in_layers(archive: &HostPath) -> Result<bool> {
    let file = File::from(archive.locate()?.open_file("image")?);
    let mut beginning = Vec::new();
    let read = file.take(BEGINNING).read_to_end(&mut beginning);
    read.map_err(Error::at("read", &archive.full_path()))?;
    Ok(holds_layers(&plain_beginning(beginning, LOOKED_AT * 2 * BLOCK)))
}

/// Whether all the first names are those of an image in layers, one of them beyond doubt: where all
/// of a directory was packed, one that no root file system has.
fn holds_layers(beginning: &[u8]) -> bool {
    let names: Vec<&[u8]> = Names { rest: beginning }.take(LOOKED_AT).collect();
    let is_directory = names.first().is_some_and(|name| name.is_empty());
    let names = names.get(usize::from(is_directory)..).unwrap_or_default();
    let is_sure = |name: &&[u8]| match is_directory {
        true => *name == b"oci-layout" || name.starts_with(b"blobs/sha256"),
        false => is_of_layers(name),
    };
    names.iter().all(|name| *name == b"blobs" || is_of_layers(name)) && names.iter().any(is_sure)
}

fn is_of_layers(name: &[u8]) -> bool {
    let top = name.split(|byte| *byte == b'/').next().unwrap_or_default();
    let stem = top.split(|byte| *byte == b'.').next().unwrap_or_default();
    name.starts_with(b"blobs/sha256")
        || [&b"oci-layout"[..], b"index.json", b"manifest.json", b"repositories"].contains(&name)
        || stem.len() == 64 && stem.iter().all(u8::is_ascii_hexdigit)
}

/// The names in the first headers of an archive, as far as they are plain.
struct Names<'a> {
    rest: &'a [u8],
}

impl<'a> Iterator for Names<'a> {
    type Item = &'a [u8];

    fn next(&mut self) -> Option<&'a [u8]> {
        loop {
            let (header, rest) = self.rest.split_at_checked(BLOCK)?;
            if header.get(257..262) != Some(b"ustar") {
                return None;
            }
            let digits = str::from_utf8(header.get(124..135)?).ok()?;
            let size = usize::from_str_radix(digits.trim_matches(['\0', ' ']), 8).ok()?;
            self.rest = rest.get(size.checked_next_multiple_of(BLOCK)?..).unwrap_or_default();
            // Of the others, what they say is about the next one.
            if !matches!(header.get(156), Some(b'x' | b'g' | b'L' | b'K')) {
                let name = header.get(..100)?.split(|byte| *byte == 0).next()?;
                let name = name.strip_prefix(b"./").unwrap_or(name);
                return Some(name.strip_suffix(b"/").unwrap_or(name));
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use super::{BLOCK, check};

    fn archive(names: &[&str]) -> Vec<u8> {
        let header = |name: &&str| {
            let mut header = vec![0; 2 * BLOCK];
            header[..name.len()].copy_from_slice(name.as_bytes());
            header[124..135].copy_from_slice(b"00000000012");
            header[257..262].copy_from_slice(b"ustar");
            header
        };
        names.iter().flat_map(header).collect()
    }

    #[test]
    fn images_in_layers_are_told_from_root_file_systems() {
        let hash = "0123456789abcdef".repeat(4);
        let (blob, old) = (format!("blobs/sha256/{hash}"), format!("{hash}/layer.tar"));
        for names in [
            &["blobs/", "blobs/sha256/", &blob, "index.json"][..],
            &["./oci-layout", "./index.json"],
            &["./", "./index.json", "./oci-layout"],
            &["./", "./blobs/", "./blobs/sha256/", "./index.json"],
            &[&old],
            &[&format!("{hash}.json"), "manifest.json"],
        ] {
            let refused = check(Path::new("x"), &archive(names)).unwrap_err().to_string();
            assert!(refused.contains("docker save"), "{names:?}: {refused}");
        }
        for names in [
            &[][..],
            &["bin/", "manifest.json"],
            &["./", "./manifest.json"],
            &["blobs/"],
            &["blobs/", "etc/"],
            &["manifest.json", "usr/"],
        ] {
            assert!(check(Path::new("x"), &archive(names)).is_ok(), "{names:?}");
        }
    }
}
