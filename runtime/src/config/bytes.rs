//! Paths and variables in JSON: as text where they are UTF-8, else as numbers.

use std::ffi::{OsStr, OsString};
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
    form(path.as_os_str()).serialize(serializer)
}

pub(crate) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    Form::deserialize(deserializer).map(|form| text(form).into())
}

fn form(text: &OsStr) -> Form<&str, &[u8]> {
    match text.to_str() {
        Some(text) => Form::Text(text),
        None => Form::Bytes(text.as_bytes()),
    }
}

fn text(form: Form<String, Vec<u8>>) -> OsString {
    match form {
        Form::Text(text) => text.into(),
        Form::Bytes(bytes) => OsString::from_vec(bytes),
    }
}

/// Names with values.
pub(crate) mod pairs {
    use std::ffi::OsString;

    use serde::{Deserialize, Deserializer, Serialize, Serializer};

    use super::{Form, form, text};

    pub(crate) fn serialize<S: Serializer>(
        pairs: &[(OsString, OsString)],
        serializer: S,
    ) -> Result<S::Ok, S::Error> {
        let pairs = pairs.iter().map(|(name, value)| (form(name), form(value)));
        pairs.collect::<Vec<_>>().serialize(serializer)
    }

    pub(crate) fn deserialize<'de, D: Deserializer<'de>>(
        deserializer: D,
    ) -> Result<Vec<(OsString, OsString)>, D::Error> {
        type One = Form<String, Vec<u8>>;
        let pairs = Vec::<(One, One)>::deserialize(deserializer)?;
        Ok(pairs.into_iter().map(|(name, value)| (text(name), text(value))).collect())
    }
}

#[cfg(test)]
mod tests {
    use std::ffi::{OsStr, OsString};
    use std::os::unix::ffi::OsStrExt;

    use super::{Deserialize, PathBuf, Serialize};

    #[derive(Serialize, Deserialize)]
    struct Holder(#[serde(with = "super")] PathBuf);

    #[derive(Serialize, Deserialize)]
    struct Variables(#[serde(with = "super::pairs")] Vec<(OsString, OsString)>);

    #[test]
    fn any_variable_comes_back_as_it_was() {
        let bytes = |bytes: &[u8]| OsStr::from_bytes(bytes).to_owned();
        let all = vec![("A".into(), bytes(b"\xff\n")), (bytes(b"\xfe"), "".into())];
        let text = serde_json::to_string(&Variables(all.clone())).unwrap();
        assert_eq!(serde_json::from_str::<Variables>(&text).unwrap().0, all, "{text}");
    }

    #[test]
    fn any_path_comes_back_as_it_was() {
        for path in [&b"/a/b"[..], b"", b"\xff\xfe\n\"", "/é".as_bytes()] {
            let path = PathBuf::from(OsStr::from_bytes(path));
            let text = serde_json::to_string(&Holder(path.clone())).unwrap();
            assert_eq!(serde_json::from_str::<Holder>(&text).unwrap().0, path, "{text}");
        }
    }
}
