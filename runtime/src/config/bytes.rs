//! Paths in what is written as JSON, which has no bytes: as text where they are, else as numbers.

use std::ffi::OsString;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Path, PathBuf};

use serde::{Deserialize, Deserializer, Serialize, Serializer};

#[derive(Serialize, Deserialize)]
#[serde(untagged)]
enum Form<T, B> {
    Text(T),
    Bytes(B),
}

pub(crate) fn serialize<S: Serializer>(path: &Path, serializer: S) -> Result<S::Ok, S::Error> {
    match path.to_str() {
        Some(text) => Form::Text(text),
        None => Form::Bytes(path.as_os_str().as_bytes()),
    }
    .serialize(serializer)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    Ok(match Form::<String, Vec<u8>>::deserialize(deserializer)? {
        Form::Text(text) => text.into(),
        Form::Bytes(bytes) => OsString::from_vec(bytes).into(),
    })
}

#[cfg(test)]
mod tests {
    use std::ffi::OsStr;
    use std::os::unix::ffi::OsStrExt;

    use super::{Deserialize, PathBuf, Serialize};

    #[derive(Serialize, Deserialize)]
    struct Holder(#[serde(with = "super")] PathBuf);

    #[test]
    fn any_path_comes_back_as_it_was() {
        for path in [&b"/a/b"[..], b"", b"\xff\xfe\n\"", "/é".as_bytes()] {
            let path = PathBuf::from(OsStr::from_bytes(path));
            let text = serde_json::to_string(&Holder(path.clone())).unwrap();
            assert_eq!(serde_json::from_str::<Holder>(&text).unwrap().0, path, "{text}");
        }
    }
}
