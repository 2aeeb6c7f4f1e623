//! The names by which images are known, and what each is believed to lead to.
//!
//! All names get into the catalog through here. One with a digest is a promise: it leads to an
//! image of which that digest was seen, and nothing that an archive says makes one.

use std::fmt;

use crate::error::{Error, Result};
use crate::image::digest::Digest;
use crate::image::reference::Reference;

/// A name that leads to an image, whole.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub(crate) struct Name(String);

impl Name {
    /// One that the caller gives to what lies in a file.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is no name, and for one with a digest.
    pub(crate) fn given(text: &str) -> Result<Self> {
        let reference = Reference::parse(text)?;
        match reference.digest() {
            None => Ok(Self(reference.to_string())),
            Some(_) => Err(Error::invalid("image", "a name that is given has no digest")),
        }
    }

    /// One that an archive or a layout says of an image in it; `None` where that can't be one, as
    /// a tag alone, or is one with a digest.
    pub(crate) fn said(text: &str) -> Option<Self> {
        if text.contains([':', '/']) { Self::given(text).ok() } else { None }
    }

    /// One that was fetched. `seen` are the digests that what was fetched for it has, that of its
    /// index and that of its manifest; `None` where the name asks for another.
    pub(crate) fn fetched(reference: &Reference, seen: &[Digest]) -> Option<Self> {
        let is_it = reference.digest().is_none_or(|digest| seen.contains(digest));
        is_it.then(|| Self(reference.to_string()))
    }

    /// Of what lies in a file, by what is seen of that at a glance. No one else says such a name.
    pub(crate) fn of_file(fingerprint: u64) -> Self {
        Self(format!("file:{fingerprint:016x}"))
    }

    pub(crate) fn as_str(&self) -> &str {
        &self.0
    }
}

impl fmt::Display for Name {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::{Digest, Name, Reference};

    #[test]
    fn a_name_with_a_digest_is_none_but_what_was_fetched_with_it() {
        let digest = Digest::of(b"it");
        let pinned = format!("debian:12@{digest}");
        assert_eq!(Name::said(&pinned), None);
        assert!(Name::given(&pinned).is_err());
        let whole = |name: Option<Name>| name.map(|name| name.to_string());
        assert_eq!(whole(Name::said("debian:12")).unwrap(), "docker.io/library/debian:12");
        assert_eq!(whole(Name::given("debian").ok()).unwrap(), "docker.io/library/debian:latest");
        for no_name in ["latest", "", "file:0123456789abcdef@x", "De:b", "a\x1b:1"] {
            assert_eq!(Name::said(no_name), None, "{no_name:?}");
        }
        let reference = Reference::parse(&pinned).unwrap();
        let others = [Digest::of(b"index"), Digest::of(b"manifest")];
        assert_eq!(Name::fetched(&reference, &others), None);
        assert_eq!(Name::fetched(&reference, &[]), None);
        let seen = [Digest::of(b"index"), digest];
        assert_eq!(whole(Name::fetched(&reference, &seen)).unwrap(), reference.to_string());
        let tagged = Reference::parse("debian:12").unwrap();
        assert_eq!(whole(Name::fetched(&tagged, &[])).unwrap(), tagged.to_string());
    }
}
