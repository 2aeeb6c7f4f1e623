//! Sets of capabilities, by name.

use std::fmt;
use std::str::FromStr;

pub use caps::Capability;
use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// A set of capabilities (`capabilities(7)`).
///
/// ```
/// use adl_runtime::{Capabilities, Capability};
///
/// let some: Capabilities = "net_bind_service,CAP_CHOWN".parse()?;
/// assert!(some.contains(Capability::CAP_CHOWN));
/// assert_eq!(some.to_string(), "CAP_CHOWN,CAP_NET_BIND_SERVICE");
/// assert!(!Capabilities::default().contains(Capability::CAP_SYS_ADMIN));
/// # Ok::<(), adl_runtime::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Capabilities(u64);

impl Capabilities {
    /// No capability.
    pub const NONE: Self = Self(0);

    /// All that there are, up to `CAP_CHECKPOINT_RESTORE` (Linux 5.9).
    pub const ALL: Self = Self((1 << 41) - 1);

    /// The set with `capability` in it.
    #[must_use]
    pub const fn with(self, capability: Capability) -> Self {
        Self(self.0 | 1 << capability as u8)
    }

    /// The set with `capability` not in it.
    #[must_use]
    pub fn without(self, capability: Capability) -> Self {
        Self(self.0 & !capability.bitmask())
    }

    /// What is in either set.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in the set and not in `other`.
    #[must_use]
    pub fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether `capability` is in the set.
    pub fn contains(self, capability: Capability) -> bool {
        self.0 & capability.bitmask() != 0
    }

    /// The set as the kernel writes it: bit `n` is capability number `n`.
    pub fn bits(self) -> u64 {
        self.0
    }
}

/// What containers have by default, in Docker as here. In a user namespace each of them reaches
/// the sandbox's own things only.
impl Default for Capabilities {
    fn default() -> Self {
        [
            Capability::CAP_AUDIT_WRITE,
            Capability::CAP_CHOWN,
            Capability::CAP_DAC_OVERRIDE,
            Capability::CAP_FOWNER,
            Capability::CAP_FSETID,
            Capability::CAP_KILL,
            Capability::CAP_MKNOD,
            Capability::CAP_NET_BIND_SERVICE,
            Capability::CAP_NET_RAW,
            Capability::CAP_SETFCAP,
            Capability::CAP_SETGID,
            Capability::CAP_SETPCAP,
            Capability::CAP_SETUID,
            Capability::CAP_SYS_CHROOT,
        ]
        .into_iter()
        .fold(Self::NONE, Self::with)
    }
}

impl FromStr for Capabilities {
    type Err = Error;

    fn from_str(names: &str) -> Result<Self> {
        names.split(',').filter(|name| !name.is_empty()).try_fold(Self::NONE, |set, name| {
            let upper = name.trim().to_ascii_uppercase();
            let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
            let capability = Capability::from_str(&full)
                .map_err(|_| Error::invalid("capability", format!("{name:?} is not known")))?;
            Ok(set.with(capability))
        })
    }
}

impl TryFrom<String> for Capabilities {
    type Error = Error;

    fn try_from(names: String) -> Result<Self> {
        names.parse()
    }
}

impl From<Capabilities> for String {
    fn from(capabilities: Capabilities) -> Self {
        capabilities.to_string()
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut known: Vec<_> = caps::all().into_iter().filter(|c| self.contains(*c)).collect();
        known.sort_by_key(Capability::index);
        let names: Vec<String> = known.iter().map(Capability::to_string).collect();
        f.write_str(&names.join(","))
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capabilities({self})")
    }
}
