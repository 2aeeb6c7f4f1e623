//! Argument and environment lists, in the form that `execve(2)` reads them.

use alloc::vec::Vec;
use core::ffi::CStr;
use core::fmt;

use serde::de::Error as _;
use serde::{Deserialize, Deserializer, Serialize, Serializer};

use crate::limits::MAX_STRINGS;

/// A list of byte strings, each ended by a NUL, as one borrowed run of bytes.
///
/// The kernel wants exactly this: pointers to NUL-ended strings. So init can point into the
/// frame it received instead of copying and allocating for each argument.
#[derive(Clone, Copy, PartialEq, Eq, Default)]
pub struct Strings<'a>(&'a [u8]);

/// Why a run of bytes is not a list of strings.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
#[non_exhaustive]
pub enum StringsError {
    /// A string holds a NUL, which would cut it in two.
    Nul,
    /// The last string has no NUL at its end.
    Unterminated,
    /// There are more than [`MAX_STRINGS`].
    TooMany,
}

impl fmt::Display for StringsError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Nul => "a string holds a NUL byte",
            Self::Unterminated => "the last string is not ended by a NUL byte",
            Self::TooMany => "too many strings",
        })
    }
}

impl core::error::Error for StringsError {}

impl<'a> Strings<'a> {
    /// The root directory, as a list of one.
    pub const ROOT: Self = Self(b"/\0");

    /// Takes bytes that are already in the form: empty, or ended by a NUL.
    ///
    /// # Errors
    /// [`StringsError::Unterminated`] and [`StringsError::TooMany`].
    pub fn new(bytes: &'a [u8]) -> Result<Self, StringsError> {
        match bytes.last() {
            None | Some(0) => {}
            Some(_) => return Err(StringsError::Unterminated),
        }
        let strings = Self(bytes);
        if strings.len() > MAX_STRINGS {
            return Err(StringsError::TooMany);
        }
        Ok(strings)
    }

    /// Appends one string to bytes that [`Strings::new`] will take.
    ///
    /// # Errors
    /// [`StringsError::Nul`]; nothing is appended then.
    pub fn append(bytes: &mut Vec<u8>, string: &[u8]) -> Result<(), StringsError> {
        if string.contains(&0) {
            return Err(StringsError::Nul);
        }
        bytes.extend_from_slice(string);
        bytes.push(0);
        Ok(())
    }

    /// The number of strings.
    pub fn len(&self) -> usize {
        self.0.iter().filter(|byte| **byte == 0).count()
    }

    /// Whether there is none.
    pub fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    /// The string, if there is exactly one.
    pub fn single(&self) -> Option<&'a CStr> {
        CStr::from_bytes_with_nul(self.0).ok()
    }

    /// Goes through the strings, each with its NUL.
    pub fn iter(&self) -> impl Iterator<Item = &'a [u8]> + use<'a> {
        self.0.split_inclusive(|byte| *byte == 0)
    }
}

impl fmt::Debug for Strings<'_> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_list().entries(self.iter().map(|s| s.escape_ascii())).finish()
    }
}

impl Serialize for Strings<'_> {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        serializer.serialize_bytes(self.0)
    }
}

impl<'de: 'a, 'a> Deserialize<'de> for Strings<'a> {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        Self::new(<&[u8]>::deserialize(deserializer)?).map_err(D::Error::custom)
    }
}
