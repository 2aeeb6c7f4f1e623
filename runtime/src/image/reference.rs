//! Names of images in registries, by docker's grammar: `debian:12`,
//! `registry:5000/team/app@sha256:…`.

use std::fmt;

use crate::error::{Error, Result};
use crate::image::digest::Digest;

/// Where an image is whose name says no registry.
const DOCKER_HUB: &str = "docker.io";
/// What docker's own registry had as its name once.
const OLD_DOCKER_HUB: &str = "index.docker.io";
/// Whose an image of that registry is whose name has no `/`.
const OFFICIAL: &str = "library";
/// Which one is meant where neither a tag nor a digest is said.
const LATEST: &str = "latest";

/// The longest name, in bytes, without a tag and a digest.
const LONGEST_NAME: usize = 255;
/// The longest tag, in bytes.
const LONGEST_TAG: usize = 128;

/// The whole name of an image: what was left out is filled in as docker does.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Reference {
    registry: String,
    path: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

impl Reference {
    /// Reads a name as people write it.
    ///
    /// # Errors
    /// [`Error::Invalid`] that says what is wrong with it.
    pub(crate) fn parse(text: &str) -> Result<Self> {
        parse(text).map_err(|why| Error::invalid("image", format!("{text:?} is no name: {why}")))
    }

    /// The registry, as `docker.io` or `localhost:5000`.
    pub(crate) fn registry(&self) -> &str {
        &self.registry
    }

    /// The digest of the manifest that it has to be, if the name says one.
    pub(crate) fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// It, as one with a digest and without a tag: there is one such image for good.
    pub(crate) fn at(&self, digest: &Digest) -> Self {
        Self { tag: None, digest: Some(digest.clone()), ..self.clone() }
    }

    /// It, as programs take it that know a tag or a digest and not both.
    pub(crate) fn to_fetch(&self) -> String {
        match &self.digest {
            Some(digest) => format!("{}/{}@{digest}", self.registry, self.path),
            None => self.to_string(),
        }
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.registry, self.path)?;
        if let Some(tag) = &self.tag {
            write!(f, ":{tag}")?;
        }
        match &self.digest {
            Some(digest) => write!(f, "@{digest}"),
            None => Ok(()),
        }
    }
}

fn parse(text: &str) -> std::result::Result<Reference, String> {
    if text.is_empty() {
        return Err("it is empty".to_owned());
    }
    if let Some(c) = text.chars().find(|c| !c.is_ascii_graphic()) {
        return Err(format!("{c:?} in it"));
    }
    if let Some((scheme, _)) = text.split_once("://") {
        return Err(format!("leave out the {scheme:?} at its beginning"));
    }
    let (rest, digest) = match text.split_once('@') {
        None => (text, None),
        Some((rest, digest)) => {
            let digest = Digest::parse(digest);
            let why = "what follows the @ is no digest, as sha256: and 64 hexadecimal digits";
            (rest, Some(digest.map_err(|_| why)?))
        }
    };
    // A colon before the last slash is that of a port.
    let end = rest.rfind('/').map_or(0, |at| at + 1);
    let (name, tag) = match rest.split_at(end).1.split_once(':') {
        None => (rest, None),
        Some((last, tag)) => (rest.get(..end + last.len()).unwrap_or(rest), Some(tag)),
    };
    if let Some(tag) = tag {
        check_tag(tag)?;
    }
    let (registry, path) = split_registry(name);
    if let Some(registry) = registry {
        check_registry(registry)?;
    } else if is_identifier(path) {
        return Err("it is an image's id, and not its name".to_owned());
    }
    check_path(path)?;
    let registry = match registry {
        None | Some(OLD_DOCKER_HUB) => DOCKER_HUB,
        Some(registry) => registry,
    };
    let path = match registry {
        DOCKER_HUB if !path.contains('/') => format!("{OFFICIAL}/{path}"),
        _ => path.to_owned(),
    };
    if registry.len() + 1 + path.len() > LONGEST_NAME {
        return Err(format!("longer than {LONGEST_NAME} bytes"));
    }
    let tag = match (tag, &digest) {
        (None, None) => Some(LATEST),
        (tag, _) => tag,
    };
    let (registry, tag) = (registry.to_owned(), tag.map(str::to_owned));
    Ok(Reference { registry, path, tag, digest })
}

/// A first part that can be no user's name is a registry.
fn split_registry(name: &str) -> (Option<&str>, &str) {
    match name.split_once('/') {
        Some((first, rest))
            if first.contains(['.', ':'])
                || first == "localhost"
                || first.contains(|c: char| c.is_ascii_uppercase()) =>
        {
            (Some(first), rest)
        }
        _ => (None, name),
    }
}

fn is_identifier(name: &str) -> bool {
    name.len() == 64 && name.bytes().all(|byte| matches!(byte, b'0'..=b'9' | b'a'..=b'f'))
}

fn check_registry(registry: &str) -> std::result::Result<(), String> {
    let no = |why: &str| Err(format!("{registry:?} is no registry: {why}"));
    let (host, port) =
        match registry.rfind(':').filter(|at| !registry.split_at(*at).1.ends_with(']')) {
            Some(at) => (registry.split_at(at).0, registry.get(at + 1..)),
            None => (registry, None),
        };
    if port.is_some_and(|port| port.parse::<u16>().is_err() || port.starts_with('+')) {
        return no("its port is no number up to 65535");
    }
    if let Some(address) = host.strip_prefix('[').and_then(|host| host.strip_suffix(']')) {
        return match address.parse::<std::net::Ipv6Addr>() {
            Ok(_) => Ok(()),
            Err(_) => no("what is in the brackets is no address"),
        };
    }
    let is_label = |label: &str| {
        let is_inner = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'-';
        !label.is_empty()
            && label.bytes().all(is_inner)
            && !label.starts_with('-')
            && !label.ends_with('-')
    };
    match host.split('.').all(is_label) {
        true => Ok(()),
        false => no("it is no name of a host"),
    }
}

/// Parts of letters and digits with `.`, `_`, `__` or any number of `-` between them.
fn check_path(path: &str) -> std::result::Result<(), String> {
    if path.contains(|c: char| c.is_ascii_uppercase()) {
        return Err(format!("it has capital letters; try {:?}", path.to_ascii_lowercase()));
    }
    for part in path.split('/') {
        if part.is_empty() {
            return Err("a part of it is empty".to_owned());
        }
        let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
        if let Some(c) = part.chars().find(|c| !is_word(*c) && !matches!(c, '.' | '_' | '-')) {
            return Err(format!("{c:?} in it"));
        }
        if !part.starts_with(is_word) || !part.ends_with(is_word) {
            return Err(format!(
                "{part:?} begins or ends with a character that is no letter or digit"
            ));
        }
        let is_separator = |text: &str| {
            matches!(text, "" | "." | "_" | "__") || text.bytes().all(|byte| byte == b'-')
        };
        if let Some(wrong) = part.split(is_word).find(|text| !is_separator(text)) {
            return Err(format!("{wrong:?} in it"));
        }
    }
    Ok(())
}

fn check_tag(tag: &str) -> std::result::Result<(), String> {
    let is_word = |byte: u8| byte.is_ascii_alphanumeric() || byte == b'_';
    let is_inner = |byte: u8| is_word(byte) || matches!(byte, b'.' | b'-');
    match tag.bytes().next() {
        None => Err("there is no tag behind the colon".to_owned()),
        Some(first) if !is_word(first) || !tag.bytes().all(is_inner) => {
            Err(format!("{tag:?} is no tag: letters, digits, `_`, `.` and `-`"))
        }
        Some(_) if tag.len() > LONGEST_TAG => {
            Err(format!("its tag is longer than {LONGEST_TAG} bytes"))
        }
        Some(_) => Ok(()),
    }
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::{Digest, Reference};

    const HEX: &str = "0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcdef";

    #[test]
    fn what_is_left_out_of_a_name_is_filled_in_as_docker_does() {
        let digest = format!("sha256:{HEX}");
        for (text, whole) in [
            ("debian", "docker.io/library/debian:latest"),
            ("debian:12", "docker.io/library/debian:12"),
            ("library/debian:12", "docker.io/library/debian:12"),
            ("docker.io/debian", "docker.io/library/debian:latest"),
            ("index.docker.io/debian", "docker.io/library/debian:latest"),
            ("team/app", "docker.io/team/app:latest"),
            ("localhost/x", "localhost/x:latest"),
            ("localhost:5000/x", "localhost:5000/x:latest"),
            ("registry:5000/team/app", "registry:5000/team/app:latest"),
            ("registry.example.org/a/b/c:v1.2-rc_3", "registry.example.org/a/b/c:v1.2-rc_3"),
            ("127.0.0.1:5000/x", "127.0.0.1:5000/x:latest"),
            ("[::1]:5000/x", "[::1]:5000/x:latest"),
            ("[fd00::1]/x", "[fd00::1]/x:latest"),
            ("Registry/x", "Registry/x:latest"),
            ("a__b/c---d.e_f", "docker.io/a__b/c---d.e_f:latest"),
            (HEX.get(1..).unwrap(), &format!("docker.io/library/{}:latest", &HEX[1..])),
            (&format!("localhost/{HEX}"), &format!("localhost/{HEX}:latest")),
            (&format!("debian@{digest}"), &format!("docker.io/library/debian@{digest}")),
            (&format!("debian:12@{digest}"), &format!("docker.io/library/debian:12@{digest}")),
        ] {
            let reference = Reference::parse(text).unwrap();
            assert_eq!(reference.to_string(), whole, "{text}");
            assert_eq!(Reference::parse(whole).unwrap(), reference, "{text}");
        }
        let both = Reference::parse(&format!("r:1/x:12@{digest}")).unwrap();
        assert_eq!(both.to_fetch(), format!("r:1/x@{digest}"));
        assert_eq!((both.registry(), both.digest().cloned()), ("r:1", Digest::parse(&digest).ok()));
        assert_eq!(
            Reference::parse("r:1/x").unwrap().at(both.digest().unwrap()).to_fetch(),
            both.to_fetch()
        );
    }

    #[test]
    fn what_is_no_name_is_refused_with_what_is_wrong() {
        let long = format!("localhost/{}", "a/".repeat(130) + "a");
        let tag = format!("x:{}", "t".repeat(129));
        for (text, why) in [
            ("", "empty"),
            ("Debian", "try \"debian\""),
            ("localhost/Team/x", "capital letters"),
            ("de bian", "' ' in it"),
            ("debian:", "no tag"),
            ("debian:12:13", "is no tag"),
            ("debian:-x", "is no tag"),
            (&tag, "longer than 128"),
            ("debian@sha256:12", "no digest"),
            ("debian@", "no digest"),
            (&format!("debian@SHA256:{HEX}"), "no digest"),
            (&format!("debian@sha256:{}", HEX.to_uppercase()), "no digest"),
            (&format!("debian@sha256:{HEX}@sha256:{HEX}"), "no digest"),
            (HEX, "an image's id"),
            ("/debian", "empty"),
            ("debian/", "empty"),
            ("a//b", "empty"),
            (".hidden", "begins or ends"),
            ("a..b", "\"..\" in it"),
            ("a___b", "\"___\" in it"),
            ("a.-b", "\".-\" in it"),
            ("a/../b", "begins or ends"),
            ("-v", "begins or ends"),
            ("--help/x", "begins or ends"),
            ("localhost:70000/x", "no number up to 65535"),
            ("localhost:x/y", "no number up to 65535"),
            ("-a.b/x", "no name of a host"),
            ("a..b/x", "no name of a host"),
            ("[::g]/x", "no address"),
            ("docker://debian", "leave out the \"docker\""),
            ("deb\u{e9}an", "in it"),
            ("deb\0ian", "in it"),
            (&long, "longer than 255"),
        ] {
            let error = Reference::parse(text).unwrap_err().to_string();
            assert!(error.contains(why), "{text:?}: {error}");
        }
    }

    proptest! {
        #[test]
        fn a_name_that_is_read_is_read_as_itself_again(text in "[a-zA-Z0-9./:@_\\[\\]-]{0,40}") {
            if let Ok(reference) = Reference::parse(&text) {
                prop_assert_eq!(Reference::parse(&reference.to_string()).unwrap(), reference);
            }
        }

        #[test]
        fn no_name_is_an_option_or_leads_anywhere(text in any::<String>()) {
            if let Ok(reference) = Reference::parse(&text) {
                let whole = reference.to_string();
                prop_assert!(!whole.starts_with('-') && whole.bytes().all(|b| b.is_ascii_graphic()));
                prop_assert!(!whole.contains("..") && !whole.contains("//"));
            }
        }

        #[test]
        fn names_of_the_grammar_are_read(
            host in "[a-z0-9]{1,9}\\.[a-z]{2,5}(:[1-9][0-9]{0,3})?",
            path in "[a-z0-9]{1,8}((\\.|_|__|-{1,3})[a-z0-9]{1,8}){0,2}(/[a-z0-9]{1,8}){0,3}",
            tag in "[A-Za-z0-9_][A-Za-z0-9_.-]{0,20}",
        ) {
            let whole = format!("{host}/{path}:{tag}");
            prop_assert_eq!(Reference::parse(&whole).unwrap().to_string(), whole);
        }
    }
}
