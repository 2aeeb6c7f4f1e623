//! The rules for names that callers give: of sandboxes, snapshots and hosts.

use adl_protocol::limits;

use crate::error::{Error, Result};

/// The longest name, in bytes: it must be a host name, too.
pub(crate) const LONGEST_NAME: usize = limits::MAX_HOSTNAME;

/// Refuses what is no name that a caller can give.
pub(crate) fn check_name(what: &'static str, name: &str) -> Result<()> {
    let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '.' | '_' | '-');
    let why = if name.is_empty() {
        "it is empty".to_owned()
    } else if name.len() > LONGEST_NAME {
        format!("longer than {LONGEST_NAME} bytes")
    } else if !name.chars().all(allowed) {
        format!("{name:?} has characters other than letters, digits, '.', '_' and '-'")
    } else if name.starts_with(['.', '-']) {
        format!("{name:?} starts with '.' or '-'")
    } else {
        return Ok(());
    };
    Err(Error::invalid(what, why))
}
