//! How images are fetched and unpacked, and what is told meanwhile.

use std::fmt;
use std::time::Duration;

/// How long an image may take to be fetched, unless the caller says so.
const LONG: Duration = Duration::from_secs(3600);

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
    /// Hears how far it is, some times a second.
    pub progress: Option<&'a dyn Fn(&Progress)>,
}

impl Default for PullOptions<'_> {
    fn default() -> Self {
        Self { timeout: LONG, insecure: false, ids: None, progress: None }
    }
}

impl fmt::Debug for PullOptions<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { timeout, insecure, ids, progress: _ } = self;
        let mut shown = f.debug_struct("PullOptions");
        shown.field("timeout", timeout).field("insecure", insecure).field("ids", ids);
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
        }
    }
}
