//! What the root file system of a sandbox is at first.

use serde::{Deserialize, Serialize};

use super::host_path::HostPath;

/// What a sandbox sees as its root file system at first. It can change all of it; the image stays
/// as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image(pub(crate) Kind);

/// Which one it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    #[default]
    Host,
    Directory(HostPath),
    Archive(HostPath),
    Snapshot(String),
}

impl Image {
    /// The programs of the host, on any machine without a download: its `/usr`, and around it a
    /// root with what programs read in `/etc`, and no secret that is known for one: see
    /// [`HostImage`](crate::HostImage). Nothing of its `/home`, `/root`, `/var` or its other `/etc`
    /// is inside; of `/usr` all that any user of the host may read, and where an ordinary user makes
    /// the sandbox, what that user may. Else files that not every user may read are left out. The
    /// list of them is renewed when packages change, or something at the top
    /// of `/usr/local`.
    ///
    /// Its `/tmp`, `/home` and `/root` are on the writable layer, and so in snapshots; `/dev/shm`
    /// is memory. Its `/etc/passwd` has root and nobody, and any number can be a user.
    pub fn host() -> Self {
        Self(Kind::Host)
    }

    /// A directory, such as `debootstrap` or `docker export` leave.
    pub fn directory(path: impl Into<HostPath>) -> Self {
        Self(Kind::Directory(path.into()))
    }

    /// A tar archive of one (ustar, pax or GNU; plain, or compressed by gzip or zstd), as `docker
    /// export` writes it. It is unpacked by the first sandbox that is made of it, and again when the
    /// file has changed, with owners, times and extended attributes, file capabilities among them.
    /// An ordinary user owns all that is unpacked, and devices are left out. An archive is refused
    /// that leads out of itself, or is a bomb: `docs/layers.md` has the limits.
    pub fn archive(path: impl Into<HostPath>) -> Self {
        Self(Kind::Archive(path.into()))
    }

    /// A snapshot of a sandbox, by its name in the state directory; see [`crate::Snapshot`]. Any
    /// number of sandboxes can be made of it at once.
    pub fn snapshot(name: impl Into<String>) -> Self {
        Self(Kind::Snapshot(name.into()))
    }
}
