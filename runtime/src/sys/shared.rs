//! Descriptors of directories that many sandboxes of a process have open: one for all of them.

use std::collections::HashMap;
use std::mem::MaybeUninit;
use std::os::fd::{AsRawFd, OwnedFd, RawFd};
use std::sync::{Arc, Mutex, Weak};

use super::lock::lock;
use super::owner::PerProcess;

/// What a descriptor is, for as long as it is open: that keeps its mount and its inode.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
struct Identity {
    mount: u64,
    device: (u32, u32),
    inode: u64,
    flags: i32,
}

impl Identity {
    /// `None` if it can't be known, or if it is no directory: of a file there may be several names.
    fn of(fd: RawFd) -> Option<Self> {
        const MASK: u32 = libc::STATX_TYPE | libc::STATX_INO | libc::STATX_MNT_ID;
        let flags = libc::AT_EMPTY_PATH | libc::AT_STATX_DONT_SYNC;
        let mut found = MaybeUninit::<libc::statx>::zeroed();
        // SAFETY: an empty, NUL-ended path, and room for a struct statx; any number may be asked.
        let (done, of_open) = unsafe {
            let done = libc::statx(fd, c"".as_ptr(), flags, MASK, found.as_mut_ptr());
            (done, libc::fcntl(fd, libc::F_GETFL))
        };
        // SAFETY: any bytes are one.
        let found = unsafe { found.assume_init() };
        let is_whole = done == 0 && of_open >= 0 && found.stx_mask & MASK == MASK;
        let is_directory = u32::from(found.stx_mode) & libc::S_IFMT == libc::S_IFDIR;
        (is_whole && is_directory).then_some(Self {
            mount: found.stx_mnt_id,
            device: (found.stx_dev_major, found.stx_dev_minor),
            inode: found.stx_ino,
            flags: of_open,
        })
    }
}

/// One that is open already and is the same, in the place of what was just opened. Only for what
/// lies on file systems that tell the truth of what is the same, and for what no one reads by it,
/// or locks: all that have it have one position and its locks.
pub(crate) fn shared(opened: OwnedFd) -> Arc<OwnedFd> {
    static ALL: PerProcess<Mutex<HashMap<Identity, Weak<OwnedFd>>>> = PerProcess::new();
    let Some(identity) = Identity::of(opened.as_raw_fd()) else { return Arc::new(opened) };
    let mut all = lock(ALL.get());
    if let Some(same) = all.get(&identity).and_then(Weak::upgrade) {
        drop(all);
        return same;
    }
    // Looked through when it would grow.
    if all.len() == all.capacity() {
        all.retain(|_, shared| shared.strong_count() != 0);
    }
    let shared = Arc::new(opened);
    all.insert(identity, Arc::downgrade(&shared));
    shared
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::sync::Arc;

    use super::*;

    #[test]
    fn what_is_open_twice_is_one_descriptor_for_as_long_as_it_is_open() {
        let top = std::env::temp_dir().join(format!("adl-shared-{}", std::process::id()));
        std::fs::create_dir_all(top.join("below")).unwrap();
        std::fs::write(top.join("file"), "").unwrap();
        let open = |name: &str| shared(File::open(top.join(name)).unwrap().into());
        let (one, other) = (open(""), open("below/.."));
        assert!(Arc::ptr_eq(&one, &other));
        assert!(!Arc::ptr_eq(&one, &open("below")), "another directory");
        assert!(!Arc::ptr_eq(&open("file"), &open("file")), "a file");
        drop((one, other));
        assert_eq!(Arc::strong_count(&open("")), 1);
        std::fs::remove_dir_all(&top).unwrap();
    }
}
