//! Names of snapshots, and of what lies in a sandbox's directory, with their rules.
//!
//! Wherever they come from, they are checked before they are part of a path.

use std::ffi::CStr;
use std::fmt;

use serde::{Deserialize, Serialize};

use crate::config::name::{LONGEST_NAME, check_name};
use crate::error::{Error, Result};
use crate::sys::unique::unique_name;

/// What of a sandbox's directory is the root of the sandbox, where that is a btrfs subvolume.
pub(crate) const SUBVOLUME: &str = "root";

/// The names of files that a sandbox may have of its own in `/etc`.
pub(crate) const HOSTS: &CStr = c"hosts";
pub(crate) const HOSTNAME: &CStr = c"hostname";
pub(crate) const RESOLV_CONF: &CStr = c"resolv.conf";

/// Where in a sandbox's directory overlay `number` has its upper.
pub(crate) fn upper_name(number: usize) -> String {
    format!("{number}.upper")
}

/// What names begin with that a snapshot has of its own, and that a caller can't give.
const OWN: &str = ".unnamed-";

/// The name of a snapshot, and of its directory: one component of a path.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct SnapshotName(String);

impl SnapshotName {
    /// A name that a caller gives to a snapshot.
    pub(crate) fn given(name: &str) -> Result<Self> {
        check_name("snapshot", name)?;
        Ok(Self(name.to_owned()))
    }

    /// A name that a snapshot may have: one that was given to it, or one of its own.
    pub(crate) fn parse(name: &str) -> Result<Self> {
        // As they are made by `unique_name`.
        let is_unique = |rest: &str| {
            !rest.is_empty() && rest.bytes().all(|byte| byte.is_ascii_hexdigit() || byte == b'-')
        };
        match name.strip_prefix(OWN) {
            Some(rest) if is_unique(rest) && name.len() <= LONGEST_NAME => {
                Ok(Self(name.to_owned()))
            }
            _ => Self::given(name),
        }
    }

    /// A new name for a snapshot that was given none.
    pub(crate) fn own() -> Self {
        Self(unique_name(OWN))
    }

    /// Whether it was given none.
    pub(crate) fn is_own(&self) -> bool {
        self.0.starts_with(OWN)
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for SnapshotName {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        Self::parse(&name)
    }
}

impl fmt::Display for SnapshotName {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

/// The name, in a sandbox's directory, of what holds the changes of one of its trees.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String")]
pub(crate) struct PartName(String);

impl PartName {
    /// The root, where that is a subvolume.
    pub(crate) fn subvolume() -> Self {
        Self(SUBVOLUME.to_owned())
    }

    /// The upper of an overlay.
    pub(crate) fn upper(number: usize) -> Self {
        Self(upper_name(number))
    }

    pub(crate) fn is_subvolume(&self) -> bool {
        self.0 == SUBVOLUME
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl TryFrom<String> for PartName {
    type Error = Error;

    fn try_from(name: String) -> Result<Self> {
        let number = name.split('.').next().and_then(|number| number.parse().ok());
        // Said again, it has to be the same: there is one way to write each.
        if name == SUBVOLUME || number.is_some_and(|number| name == upper_name(number)) {
            return Ok(Self(name));
        }
        Err(Error::invalid("part of a snapshot", format!("{name:?}")))
    }
}

#[cfg(test)]
mod tests {
    use super::{PartName, SnapshotName};

    #[test]
    fn names_of_snapshots_are_one_component_of_a_path() {
        let own = SnapshotName::own();
        assert!(own.is_own());
        for name in [own.as_str(), ".unnamed-0123456789abcdef-17", "a", "a.b", "A_1-2"] {
            assert_eq!(SnapshotName::parse(name).unwrap().as_str(), name);
        }
        assert!(SnapshotName::given(own.as_str()).is_err());
        let long = format!(".unnamed-{}", "0".repeat(60));
        for name in [
            "",
            ".",
            "..",
            "a/b",
            "/a",
            "a\0",
            "-a",
            ".a",
            ".unnamed-",
            ".unnamed-x",
            ".unnamed-1/../a",
            ".unnamed-1/",
            ".unnamed-..",
            ".removing-1-1",
            &long,
            "é",
        ] {
            assert!(SnapshotName::parse(name).is_err(), "{name:?}");
            assert!(serde_json::from_value::<SnapshotName>(name.into()).is_err(), "{name:?}");
        }
    }

    #[test]
    fn parts_are_what_a_sandbox_has() {
        for name in ["root", "0.upper", "17.upper"] {
            assert_eq!(PartName::try_from(name.to_owned()).unwrap().as_str(), name);
        }
        for name in [
            "",
            ".",
            "..",
            "root/",
            "0.upper/x",
            "../0.upper",
            "00.upper",
            "+1.upper",
            "0.work",
            "1",
        ] {
            assert!(PartName::try_from(name.to_owned()).is_err(), "{name:?}");
        }
    }
}
