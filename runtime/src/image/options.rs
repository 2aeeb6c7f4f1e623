//! How images are fetched and unpacked, and what is told meanwhile.

use std::fmt;
use std::time::Duration;

/// How long an image may take to be fetched, unless the caller says so.
pub(crate) const LONG: Duration = Duration::from_secs(3600);

/// How much each layer of an image may have, so that none fills the disk or takes for ever.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct ImageCaps {
    /// The most bytes of its archive, and of what is made of it: the holes of one file count, those
    /// of all together don't; 64 GiB by default.
    pub size: u64,
    /// The most files, directories, links and marks; 5,000,000 by default.
    pub entries: u64,
    /// The most directories within one another; 1024 by default.
    pub depth: u64,
    /// The most bytes that one compressed byte may become, where it becomes much at all; 1000 by
    /// default.
    pub ratio: u64,
}

impl Default for ImageCaps {
    fn default() -> Self {
        // What gzip can make of zeros at most is 1032.
        Self { size: 64 << 30, entries: 5_000_000, depth: 1024, ratio: 1000 }
    }
}

pub(crate) use ImageCaps as Caps;

/// How an image is fetched.
#[derive(Clone, Copy)]
pub struct PullOptions<'a> {
    /// The longest that it may take; an hour by default.
    pub timeout: Duration,
    /// Whether its registry may be one without a certificate that is known, or without encryption:
    /// as docker's "insecure registries".
    pub insecure: bool,
    /// As [`Config::ids`](crate::Config::ids): where an ordinary user's sandboxes have a range of
    /// ids, what is unpacked for them has its owners.
    pub ids: Option<u32>,
    /// How much its layers may have.
    pub caps: ImageCaps,
    /// Hears how far it is, some times a second.
    pub progress: Option<&'a dyn Fn(&Progress)>,
}

impl Default for PullOptions<'_> {
    fn default() -> Self {
        let caps = ImageCaps::default();
        Self { timeout: LONG, insecure: false, ids: None, caps, progress: None }
    }
}

impl fmt::Debug for PullOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { timeout, insecure, ids, caps, progress: _ } = self;
        let mut shown = f.debug_struct("PullOptions");
        shown.field("timeout", timeout).field("insecure", insecure).field("ids", ids);
        shown.field("caps", caps);
        shown.finish_non_exhaustive()
    }
}

impl PullOptions<'_> {
    pub(crate) fn tell(&self, progress: &Progress) {
        if let Some(tell) = self.progress {
            tell(progress);
        }
    }
}

/// How far an image is on its way.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum Progress {
    /// Its layers are fetched, several at a time.
    Fetching {
        /// How many layers are there.
        layers: usize,
        /// How many there are.
        of_layers: usize,
        /// How many bytes are there, of those that had to be fetched.
        bytes: u64,
        /// How many that are; 0 where that is not known.
        of: u64,
    },
    /// A layer is unpacked. Those that were there before are left out.
    Unpacking {
        /// Which one, from 1 on, the lowest first.
        layer: usize,
        /// How many there are.
        layers: usize,
        /// How many of its bytes were read.
        bytes: u64,
        /// How many it has, as it comes.
        of: u64,
    },
    /// A layer was unpacked, and not all that its archive says was kept.
    NotKept {
        /// Which one, from 1 on, the lowest first.
        layer: usize,
        /// How many there are.
        layers: usize,
        /// How many files have become the calling user's, who may give files to no one else.
        owners: u64,
        /// How many devices, and files of an unknown kind, were left out.
        nodes: u64,
        /// How many extended attributes were left out, that can't be set or that only hosts set.
        attributes: u64,
    },
}

impl fmt::Display for Progress {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mebibytes = |bytes: u64| bytes as f64 / f64::from(1 << 20);
        match *self {
            Self::Fetching { layers, of_layers, bytes, of } => write!(
                f,
                "fetching: {layers} of {of_layers} layers, {:.1} of {:.1} MiB",
                mebibytes(bytes),
                mebibytes(of)
            ),
            Self::Unpacking { layer, layers, bytes, of } => write!(
                f,
                "unpacking: layer {layer} of {layers}, {:.1} of {:.1} MiB",
                mebibytes(bytes),
                mebibytes(of)
            ),
            Self::NotKept { layer, layers, owners, nodes, attributes } => {
                write!(f, "layer {layer} of {layers}: not kept")?;
                let mut before = ": ";
                for (count, what, more) in [
                    (owners, "owners of files", "; they are this user's now, `--ids` keeps them"),
                    (nodes, "devices", ""),
                    (attributes, "extended attributes", ""),
                ] {
                    if count > 0 {
                        write!(f, "{before}{what} ({count}{more})")?;
                        before = ", ";
                    }
                }
                Ok(())
            }
        }
    }
}
