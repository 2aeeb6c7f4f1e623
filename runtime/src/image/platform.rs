//! For which machines images are, and which of an index is for this one.

use std::cmp::Reverse;

use serde::Deserialize;

use crate::error::{Error, Result};
use crate::image::json::or_default;

/// This machine's, as images name it.
const OS: &str = "linux";
const ARCHITECTURE: &str = "amd64";

/// The level of what says nothing of levels, which all processors have.
const PLAIN: u32 = 1;

/// For which machines an image is.
#[derive(Debug, Clone, Deserialize)]
pub(crate) struct Platform {
    #[serde(default, deserialize_with = "or_default")]
    os: String,
    #[serde(default, deserialize_with = "or_default")]
    architecture: String,
    /// Of an architecture: for amd64 the level of the processor, as v3.
    #[serde(default, deserialize_with = "or_default")]
    variant: String,
}

impl Platform {
    /// Whether it is that of what is no image.
    pub(super) fn is_unknown(&self) -> bool {
        self.os == "unknown" && self.architecture == "unknown"
    }

    /// The level of the processor that it needs, if it is for this kind of machine at all.
    fn level(&self) -> Option<u32> {
        let is_own = matches!(self.architecture.as_str(), ARCHITECTURE | "x86_64" | "x86-64");
        match (self.os.as_str(), is_own, self.variant.as_str()) {
            (OS, true, "") => Some(PLAIN),
            (OS, true, variant) => variant.strip_prefix('v')?.parse().ok(),
            _ => None,
        }
    }

    fn shown(&self) -> String {
        let Self { os, architecture, variant } = self;
        let parts = [os, architecture, variant].map(String::as_str);
        let end = if variant.is_empty() { 2 } else { 3 };
        parts.get(..end).unwrap_or_default().join("/")
    }
}

/// What is for this machine, the best first: of the levels of the processor the highest that it
/// has. What does not say for which machine it is comes last.
///
/// # Errors
/// [`Error::Unsupported`] that lists the platforms that there are.
pub(super) fn best<T>(
    all: impl Iterator<Item = (Option<Platform>, T)>,
    name: &str,
) -> Result<Vec<T>> {
    best_for(level(), all, name)
}

fn best_for<T>(
    own: u32,
    all: impl Iterator<Item = (Option<Platform>, T)>,
    name: &str,
) -> Result<Vec<T>> {
    let mut others: Vec<String> = Vec::new();
    let mut found: Vec<(u32, T)> = Vec::new();
    for (platform, what) in all {
        let level = match &platform {
            None => Some(0),
            Some(platform) => platform.level().filter(|level| *level <= own),
        };
        match level {
            Some(level) => found.push((level, what)),
            None => others.extend(platform.as_ref().map(Platform::shown)),
        }
    }
    // Of two with one level, the first in the index.
    found.sort_by_key(|(level, _)| Reverse(*level));
    if found.is_empty() {
        others.sort();
        others.dedup();
        return Err(other_platform(name, &others, own));
    }
    Ok(found.into_iter().map(|(_, what)| what).collect())
}

/// Refuses an image whose configuration says that it is for other machines. What it leaves unsaid,
/// or says of a variant that no one knows, counts as for this one.
pub(crate) fn check(platform: &Platform, name: &str) -> Result<()> {
    let Platform { os, architecture, variant } = platform;
    let or = |text: &str, own: &str| if text.is_empty() { own } else { text }.to_owned();
    let own = level();
    let whole = Platform {
        os: or(os, OS),
        architecture: or(architecture, ARCHITECTURE),
        ..platform.clone()
    };
    let plain = Platform { variant: String::new(), ..whole.clone() };
    match (plain.level(), whole.level()) {
        (Some(_), Some(level)) if level <= own => Ok(()),
        (Some(_), None) if !variant.is_empty() => Ok(()),
        _ => Err(other_platform(name, &[platform.shown()], own)),
    }
}

fn other_platform(name: &str, others: &[String], level: u32) -> Error {
    let mut there = others.join(", ").escape_debug().to_string();
    if there.is_empty() {
        "no platform".clone_into(&mut there);
    }
    let own = format!("{OS}/{ARCHITECTURE}");
    // It matters where there are others of the kind.
    let level = match others.iter().any(|other| other.starts_with(&own)) {
        true => format!(", whose processor has the level v{level}"),
        false => String::new(),
    };
    Error::Unsupported {
        what: format!("the image {name}"),
        why: format!("it is for {there}, and this machine is {own}{level}"),
        fix: "name one that is made for this machine".to_owned(),
    }
}

/// The level of this machine's processor, as the psABI of x86-64 has them: what compilers use for
/// `-march=x86-64-v3`. The kernel has to support the registers, too.
fn level() -> u32 {
    let is_2 = is_x86_feature_detected!("cmpxchg16b")
        && is_x86_feature_detected!("popcnt")
        && is_x86_feature_detected!("sse3")
        && is_x86_feature_detected!("sse4.1")
        && is_x86_feature_detected!("sse4.2")
        && is_x86_feature_detected!("ssse3");
    let is_3 = is_x86_feature_detected!("avx")
        && is_x86_feature_detected!("avx2")
        && is_x86_feature_detected!("bmi1")
        && is_x86_feature_detected!("bmi2")
        && is_x86_feature_detected!("f16c")
        && is_x86_feature_detected!("fma")
        && is_x86_feature_detected!("lzcnt")
        && is_x86_feature_detected!("movbe");
    let is_4 = is_x86_feature_detected!("avx512f")
        && is_x86_feature_detected!("avx512bw")
        && is_x86_feature_detected!("avx512cd")
        && is_x86_feature_detected!("avx512dq")
        && is_x86_feature_detected!("avx512vl");
    PLAIN + [is_2, is_3, is_4].iter().take_while(|has| **has).count() as u32
}

#[cfg(test)]
mod tests {
    use super::{Error, Platform, best_for};

    fn platform(text: &str) -> Option<Platform> {
        let mut parts = text.split('/').map(str::to_owned);
        let mut next = || parts.next().unwrap_or_default();
        (!text.is_empty()).then(|| Platform { os: next(), architecture: next(), variant: next() })
    }

    fn chosen<'a>(all: &[&'a str], level: u32) -> Result<Vec<&'a str>, Error> {
        best_for(level, all.iter().map(|text| (platform(text), *text)), "x")
    }

    #[test]
    fn the_best_that_this_machine_can_run_comes_first() {
        let all = [
            "linux/arm64/v8",
            "linux/amd64/v3",
            "windows/amd64",
            "linux/amd64/v2",
            "linux/amd64",
            "linux/arm/v7",
            "",
            "linux/x86_64/v1",
            "linux/amd64/new",
        ];
        let plain = ["linux/amd64", "linux/x86_64/v1", ""];
        for (level, higher) in [
            (1, &[][..]),
            (2, &["linux/amd64/v2"]),
            (3, &["linux/amd64/v3", "linux/amd64/v2"]),
            (4, &["linux/amd64/v3", "linux/amd64/v2"]),
        ] {
            assert_eq!(chosen(&all, level).unwrap(), [higher, &plain].concat(), "{level}");
        }
        // Of one that says nothing, its configuration does.
        assert_eq!(chosen(&["", ""], 1).unwrap(), ["", ""]);
    }

    #[test]
    fn what_there_is_is_told_where_none_of_it_runs_here() {
        let told = |all: &[&str], level: u32| {
            let error = chosen(all, level).unwrap_err();
            assert!(matches!(error, Error::Unsupported { .. }), "{error}");
            error.to_string()
        };
        let none = told(&["linux/arm64/v8", "windows/amd64", "linux/arm/v7"], 4);
        let all = "it is for linux/arm/v7, linux/arm64/v8, windows/amd64, and this machine is \
                   linux/amd64;";
        assert!(none.contains(all), "{none}");
        let none = told(&["linux/amd64/v3", "linux/arm64/v8"], 2);
        assert!(none.contains("linux/amd64/v3, linux/arm64/v8"), "{none}");
        assert!(none.contains("linux/amd64, whose processor has the level v2"), "{none}");
        assert!(told(&[], 1).contains("no platform"));
    }
}
