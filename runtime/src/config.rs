//! What a sandbox is made of, as plain data.

use std::path::PathBuf;

use crate::capabilities::Capabilities;
use crate::image::Image;

/// How a sandbox is built. Every field has a default; the default of all of them is the host's
/// programs, nothing of its data, no network, and every protection on.
///
/// ```no_run
/// use adl_runtime::{Config, Image, Network, Sandbox};
///
/// let sandbox = Sandbox::create(Config {
///     image: Image::directory("/srv/debian"),
///     network: Network::Host,
///     ..Config::default()
/// })?;
/// # Ok::<(), adl_runtime::Error>(())
/// ```
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Config {
    /// What the root file system looks like at first.
    pub image: Image,
    /// The name, unique in the state directory: letters, digits, `.`, `_` and `-`, at most 64.
    /// By default a fresh one.
    pub name: Option<String>,
    /// What `uname -n` prints inside; by default the name.
    pub hostname: Option<String>,
    /// Which network it sees.
    pub network: Network,
    /// Where its writes go.
    pub upper: Upper,
    /// The capabilities of jobs that run as root.
    pub capabilities: Capabilities,
    /// Which system calls there are.
    pub seccomp: Seccomp,
    /// Where sandboxes keep what must be on disk. By default `$ADL_STATE_DIR`; else, for root,
    /// `/var/lib/adl`; else `$XDG_STATE_HOME/adl`, `$HOME/.local/state/adl` or, for a user
    /// without a home, `/tmp/adl-UID`.
    pub state_directory: Option<PathBuf>,
}

/// Which network a sandbox sees.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Network {
    /// One of its own, with a loopback device and nothing else.
    #[default]
    None,
    /// The host's, with all that the calling program could reach.
    Host,
}

/// Where the writes of a sandbox go. They are gone when it is deleted.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Upper {
    /// A directory on disk, below the state directory.
    #[default]
    Disk,
    /// Memory.
    Memory {
        /// The most it may take, in bytes.
        size: u64,
    },
}

/// Which system calls the programs in a sandbox may make.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
#[non_exhaustive]
pub enum Seccomp {
    /// Those that ordinary programs use; see `SECURITY.md`.
    #[default]
    Default,
    /// All. Hostile code then reaches every corner of the kernel.
    Unconfined,
}
