//! How much an image may say of itself: looked at in one place, whoever says it, and before
//! anything of it is fetched or unpacked.

use std::collections::HashSet;

use adl_protocol::limits::MAX_LAYERS;

use crate::error::{Error, Result};
use crate::image::digest::Digest;

/// The most layers. Many may be one that comes again, as the empty one does.
const MOST: usize = 1000;
/// The most that differ: what a sandbox has, but for the one above those of an image.
const MOST_DIFFERENT: usize = MAX_LAYERS - 1;

/// Checks how many layers there are, by their digests.
///
/// # Errors
/// [`Error::Invalid`]
pub(crate) fn check_count<'a>(layers: impl ExactSizeIterator<Item = &'a Digest>) -> Result<()> {
    if layers.len() > MOST {
        return Err(Error::invalid("image", format!("it has more than {MOST} layers")));
    }
    let different = layers.collect::<HashSet<_>>().len();
    if different > MOST_DIFFERENT {
        let why = format!(
            "it has {different} layers, and those of a sandbox are {MOST_DIFFERENT} at most: make \
             it one layer, as `docker export` does"
        );
        return Err(Error::invalid("image", why));
    }
    Ok(())
}

/// How many bytes its layers have together, as they come.
///
/// # Errors
/// [`Error::TooLarge`] where they are more than `most`.
pub(crate) fn check_sizes(sizes: impl IntoIterator<Item = u64>, most: u64) -> Result<u64> {
    let sum = sizes.into_iter().try_fold(0_u64, u64::checked_add);
    let too_large = Error::TooLarge { what: "the layers of an image, in bytes,", limit: most };
    sum.filter(|sum| *sum <= most).ok_or(too_large)
}

#[cfg(test)]
mod tests {
    use super::{Digest, Error, MOST, MOST_DIFFERENT, check_count, check_sizes};

    #[test]
    fn as_many_layers_as_a_sandbox_takes_and_sizes_that_have_a_sum() {
        let of = |count: usize| -> Vec<_> {
            (0..count).map(|number| Digest::of(&number.to_le_bytes())).collect()
        };
        assert!(check_count(of(MOST_DIFFERENT).iter()).is_ok());
        let refused = check_count(of(MOST_DIFFERENT + 1).iter()).unwrap_err().to_string();
        assert!(refused.contains("it has 128 layers") && refused.contains("127"), "{refused}");
        let same = vec![Digest::of(b"x"); MOST + 1];
        assert!(check_count(same.iter().skip(1)).is_ok());
        assert!(check_count(same.iter()).is_err());
        assert_eq!(check_sizes([1, 2, 3], 6).unwrap(), 6);
        assert_eq!(check_sizes([], 0).unwrap(), 0);
        for sizes in [&[1, 2, 4][..], &[u64::MAX, 1], &[u64::MAX, u64::MAX, 8]] {
            let refused = check_sizes(sizes.iter().copied(), 6);
            assert!(matches!(refused, Err(Error::TooLarge { limit: 6, .. })), "{sizes:?}");
        }
        assert!(check_sizes([u64::MAX, 1], u64::MAX).is_err());
    }
}
