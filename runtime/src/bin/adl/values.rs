//! Readers of values that several options use, and `CliResult`.

use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::time::Duration;

use clap::Arg;
use clap::builder::{OsStringValueParser, TypedValueParser};

/// What a command of the command line returns.
pub(crate) type CliResult<T> = Result<T, Box<dyn std::error::Error>>;

/// Makes clap read a value that may hold any bytes.
pub(crate) fn of_bytes<T: Clone + Send + Sync + 'static>(
    parse: fn(&OsStr) -> Result<T, &'static str>,
) -> impl TypedValueParser<Value = T> {
    OsStringValueParser::new().try_map(move |text| parse(&text))
}

/// Lets the value of an option begin with a dash, as getopt does: a path may.
pub(crate) fn take_any_value(argument: Arg) -> Arg {
    let takes = !argument.is_positional() && argument.get_action().takes_values();
    if takes { argument.allow_hyphen_values(true) } else { argument }
}

/// Reads a whole number.
pub(crate) fn number<T: FromStr>(text: &str) -> Result<T, &'static str> {
    text.parse().map_err(|_| "takes a whole number")
}

/// Reads a whole number that is not zero.
pub(crate) fn count(text: &str) -> Result<NonZeroUsize, &'static str> {
    text.parse().map_err(|_| "takes a whole number, at least 1")
}

/// Reads a size that is not zero.
pub(crate) fn size(text: &str) -> Result<u64, &'static str> {
    bytes(text).filter(|size| *size != 0).ok_or("takes a size, as 512m")
}

/// Reads a size that may be zero.
pub(crate) fn size_or_zero(text: &str) -> Result<u64, &'static str> {
    bytes(text).ok_or("takes a size, as 512m, or 0")
}

/// Reads a size: a number of bytes, or with one of the suffixes k, m, g, t of 1024.
fn bytes(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let digits = lower.trim_end_matches(['k', 'm', 'g', 't']);
    let factor: u64 = match lower.strip_prefix(digits)? {
        "" => 1,
        "k" => 1 << 10,
        "m" => 1 << 20,
        "g" => 1 << 30,
        "t" => 1 << 40,
        _ => return None,
    };
    digits.parse::<u64>().ok()?.checked_mul(factor)
}

/// Reads a length of time: a number of seconds, or with one of the suffixes ms, s, m, h. A fraction
/// is allowed; nothing is not.
pub(crate) fn duration(text: &str) -> Result<Duration, &'static str> {
    positive_duration(text).ok_or("takes a time, as 10, 1.5s or 2m")
}

fn positive_duration(text: &str) -> Option<Duration> {
    let number = text.trim_end_matches(|c: char| c.is_ascii_alphabetic());
    let seconds = match text.strip_prefix(number)? {
        "ms" => 1e-3,
        "" | "s" => 1.0,
        "m" => 60.0,
        "h" => 3600.0,
        _ => return None,
    };
    // Of what Rust takes for a number, that without a sign and an exponent.
    let is_plain = number.bytes().all(|byte| byte.is_ascii_digit() || byte == b'.');
    let number: f64 = number.parse().ok().filter(|_| is_plain)?;
    Duration::try_from_secs_f64(number * seconds).ok().filter(|length| length.as_micros() != 0)
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{bytes, positive_duration as duration};

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        assert_eq!(bytes("512"), Some(512));
        assert_eq!(bytes("64K"), Some(64 << 10));
        assert_eq!(bytes("512m"), Some(512 << 20));
        assert_eq!(bytes("1g"), Some(1 << 30));
        for wrong in ["", "m", "-1", "1mm", "1.5g", "99999999999t", "1x"] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }
    #[test]
    fn lengths_of_time_are_seconds_or_have_a_unit() {
        for (text, milliseconds) in [
            ("3", 3_000),
            ("0.25", 250),
            (".5s", 500),
            ("20ms", 20),
            ("1.5m", 90_000),
            ("2h", 7_200_000),
        ] {
            assert_eq!(duration(text), Some(Duration::from_millis(milliseconds)), "{text}");
        }
        for wrong in
            ["", "s", "0", "0ms", "-1", "+1", "1e3", "inf", "nan", "1 s", "1d", "1.2.3", "1sm"]
        {
            assert_eq!(duration(wrong), None, "{wrong}");
        }
        assert_eq!(duration(&"9".repeat(40)), None);
    }
}
