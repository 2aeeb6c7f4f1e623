//! What contents are called by: a digest of them.

use std::fmt;
use std::io::{self, Read};

use serde::{Deserialize, Serialize};
use sha2::Digest as _;
use sha2::{Sha256, Sha512};

use crate::error::{Error, Result};

/// The digests that there are, of those that images may have.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
enum Algorithm {
    Sha256,
    Sha512,
}

impl Algorithm {
    const ALL: [Self; 2] = [Self::Sha256, Self::Sha512];

    fn name(self) -> &'static str {
        match self {
            Self::Sha256 => "sha256",
            Self::Sha512 => "sha512",
        }
    }

    /// How many hexadecimal digits one has.
    fn digits(self) -> usize {
        match self {
            Self::Sha256 => 64,
            Self::Sha512 => 128,
        }
    }
}

/// A digest, as `sha256:` and 64 digits. Digits and small letters are all that is in it, so it may
/// be a part of a name on disk.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub(crate) struct Digest {
    algorithm: Algorithm,
    hex: String,
}

impl Digest {
    /// Reads the one form that there is.
    ///
    /// # Errors
    /// [`Error::Invalid`]
    pub(crate) fn parse(text: &str) -> Result<Self> {
        let is_digit = |byte: u8| matches!(byte, b'0'..=b'9' | b'a'..=b'f');
        let of = |algorithm: Algorithm| {
            let hex = text.strip_prefix(algorithm.name())?.strip_prefix(':')?;
            let is_one = hex.len() == algorithm.digits() && hex.bytes().all(is_digit);
            is_one.then(|| Self { algorithm, hex: hex.to_owned() })
        };
        Algorithm::ALL.into_iter().find_map(of).ok_or_else(|| {
            let why = "is neither `sha256:` and 64 digits nor `sha512:` and 128, in lower case";
            Error::invalid("digest", format!("{text:?} {why}"))
        })
    }

    /// That of bytes, by SHA-256.
    pub(crate) fn of(bytes: &[u8]) -> Self {
        let hex = hex(&Sha256::digest(bytes));
        Self { algorithm: Algorithm::Sha256, hex }
    }

    /// Whether it is that of bytes.
    pub(crate) fn is_of(&self, bytes: &[u8]) -> bool {
        let mut hasher = Hasher::like(Some(self));
        hasher.update(bytes);
        hasher.finish().as_ref() == Some(self)
    }

    /// That of all that can be read, by SHA-256.
    pub(crate) fn of_all(bytes: impl Read) -> io::Result<Self> {
        let mut bytes = Digesting::new(bytes, Hasher::like(None));
        io::copy(&mut bytes, &mut io::sink())?;
        bytes.finish().ok_or_else(|| io::Error::other("no digest was made"))
    }

    /// Both parts, as a name on disk has them.
    pub(crate) fn file_name(&self) -> String {
        format!("{}-{}", self.algorithm.name(), self.hex)
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

impl TryFrom<String> for Digest {
    type Error = Error;

    fn try_from(text: String) -> Result<Self> {
        Self::parse(&text)
    }
}

impl From<Digest> for String {
    fn from(digest: Digest) -> Self {
        digest.to_string()
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.algorithm.name(), self.hex)
    }
}

/// Makes a digest of what comes in pieces.
pub(crate) enum Hasher {
    /// Of what has no digest.
    None,
    Sha256(Sha256),
    Sha512(Sha512),
}

impl Hasher {
    /// One that can be compared with another digest; SHA-256, if there is none.
    pub(crate) fn like(other: Option<&Digest>) -> Self {
        match other.map(|digest| digest.algorithm) {
            None | Some(Algorithm::Sha256) => Self::Sha256(Sha256::new()),
            Some(Algorithm::Sha512) => Self::Sha512(Sha512::new()),
        }
    }

    pub(crate) fn update(&mut self, bytes: &[u8]) {
        match self {
            Self::None => {}
            Self::Sha256(hasher) => hasher.update(bytes),
            Self::Sha512(hasher) => hasher.update(bytes),
        }
    }

    pub(crate) fn finish(self) -> Option<Digest> {
        let digest = |algorithm, bytes: &[u8]| Some(Digest { algorithm, hex: hex(bytes) });
        match self {
            Self::None => None,
            Self::Sha256(hasher) => digest(Algorithm::Sha256, &hasher.finalize()),
            Self::Sha512(hasher) => digest(Algorithm::Sha512, &hasher.finalize()),
        }
    }
}

/// Reads, and makes a digest of what was read.
pub(crate) struct Digesting<R> {
    input: R,
    hasher: Hasher,
    count: u64,
}

impl<R> Digesting<R> {
    pub(crate) fn new(input: R, hasher: Hasher) -> Self {
        Self { input, hasher, count: 0 }
    }

    /// How many bytes have come.
    pub(crate) fn count(&self) -> u64 {
        self.count
    }

    /// The digest of what has come.
    pub(crate) fn finish(self) -> Option<Digest> {
        self.hasher.finish()
    }
}

impl<R: Read> Read for Digesting<R> {
    fn read(&mut self, into: &mut [u8]) -> io::Result<usize> {
        let count = self.input.read(into)?;
        self.hasher.update(into.get(..count).unwrap_or_default());
        self.count = self.count.saturating_add(count as u64);
        Ok(count)
    }
}

#[cfg(test)]
mod tests {
    use std::io::Read;

    use super::{Digest, Digesting, Hasher};

    const EMPTY: &str = "sha256:e3b0c44298fc1c149afbf4c8996fb92427ae41e4649b934ca495991b7852b855";
    const EMPTY_512: &str = "sha512:cf83e1357eefb8bdf1542850d66d8007d620e4050b5715dc83f4a921d36ce9ce\
        47d0d13c5d85f2b0ff8318d2877eec2f63b931bd47417a81a538327af927da3e";

    #[test]
    fn only_one_form_is_a_digest() {
        for text in [EMPTY, EMPTY_512] {
            let digest = Digest::parse(text).unwrap();
            assert_eq!(digest.to_string(), text);
            assert_eq!(digest.file_name(), text.replace(':', "-"));
        }
        let upper = EMPTY.to_uppercase().replace("SHA", "sha");
        let longer = format!("{EMPTY}0");
        let short = &EMPTY[..EMPTY.len() - 1];
        let as_512 = EMPTY.replace("256", "512");
        let outward = format!("sha256:../{}", "a".repeat(61));
        let nul = format!("sha256:\0{}", "a".repeat(63));
        let spaced = format!(" {EMPTY}");
        let md5 = format!("md5:{}", "a".repeat(32));
        for text in [
            "", "sha256", "sha256:", &upper, &longer, short, &as_512, &outward, &nul, &spaced, &md5,
        ] {
            assert!(Digest::parse(text).is_err(), "{text:?}");
        }
    }

    #[test]
    fn what_passes_through_is_digested() {
        for (expected, text) in [(EMPTY, ""), (EMPTY_512, "")] {
            let expected = Digest::parse(expected).unwrap();
            let mut reader = Digesting::new(text.as_bytes(), Hasher::like(Some(&expected)));
            reader.read_to_end(&mut Vec::new()).unwrap();
            assert_eq!(reader.finish(), Some(expected));
        }
        let mut reader = Digesting::new(&b"abc"[..], Hasher::like(None));
        assert_eq!(reader.read(&mut [0; 2]).unwrap(), 2);
        reader.read_to_end(&mut Vec::new()).unwrap();
        assert_eq!(reader.count(), 3);
        let abc = "ba7816bf8f01cfea414140de5dae2223b00361a396177a9cb410ff61f20015ad";
        assert_eq!(reader.finish().unwrap().to_string(), format!("sha256:{abc}"));
        let digest = Digest::of(b"abc");
        assert_eq!(digest.to_string(), format!("sha256:{abc}"));
        assert_eq!(Digest::of_all(&b"abc"[..]).unwrap(), digest);
        assert!(digest.is_of(b"abc") && !digest.is_of(b"ab"));
        assert!(Digest::parse(EMPTY_512).unwrap().is_of(b""));
    }
}
