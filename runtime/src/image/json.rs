//! How programs write the documents of images.

use serde::{Deserialize, Deserializer};

/// Reads `null` as what is left out: Go writes it for what is empty.
pub(super) fn or_default<'de, D: Deserializer<'de>, T: Deserialize<'de> + Default>(
    deserializer: D,
) -> std::result::Result<T, D::Error> {
    Ok(Option::deserialize(deserializer)?.unwrap_or_default())
}
