//! Readers of values that several options use, and `CliResult`.

use std::error::Error;
use std::ffi::OsStr;
use std::num::NonZeroUsize;
use std::str::FromStr;
use std::time::Duration;

use clap::Arg;
use clap::builder::{OsStringValueParser, TypedValueParser};

/// What a command of the command line returns.
pub(crate) type CliResult<T> = Result<T, Box<dyn Error>>;

/// Makes clap read a value that may hold any bytes.
pub(crate) fn of_bytes<T, E>(parse: fn(&OsStr) -> Result<T, E>) -> impl TypedValueParser<Value = T>
where
    T: Clone + Send + Sync + 'static,
    E: Into<Box<dyn Error + Send + Sync>> + 'static,
{
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

/// Reads a size as docker does: a number of bytes, with a fraction or not, or with one of the units
/// k, m, g, t, p of 1024, each also as kb or KiB.
fn bytes(text: &str) -> Option<u64> {
    let lower = text.to_ascii_lowercase();
    let number = lower.trim_end_matches(|c: char| !c.is_ascii_digit());
    let unit = lower.strip_prefix(number)?;
    let unit = unit.strip_prefix(' ').unwrap_or(unit);
    let unit = unit.strip_suffix('b').unwrap_or(unit);
    let letter = unit.strip_suffix('i').filter(|rest| !rest.is_empty()).unwrap_or(unit);
    let shift = match letter {
        "" => 0,
        "k" => 10,
        "m" => 20,
        "g" => 30,
        "t" => 40,
        "p" => 50,
        _ => return None,
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, "0"));
    let is_number = |part: &str| !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_digit());
    // More places than these are less than a byte.
    if !is_number(whole) || !is_number(fraction) || fraction.len() > 18 {
        return None;
    }
    let whole = whole.parse::<u64>().ok()?.checked_mul(1 << shift)?;
    let part = u128::from(fraction.parse::<u64>().ok()?) << shift;
    let part = part / 10_u128.pow(u32::try_from(fraction.len()).ok()?);
    whole.checked_add(u64::try_from(part).ok()?)
}

/// Reads a length of time that is not zero: a number of seconds, or numbers with units, as Go has
/// them: `1.5s`, `1m30s`.
pub(crate) fn duration(text: &str) -> Result<Duration, &'static str> {
    let length = length_of_time(text).ok_or("takes a time, as 10, 1.5s, 2m or 1m30s")?;
    if length.as_micros() == 0 {
        return Err("takes a time above zero, as 10, 1.5s or 2m; for no limit, leave it out");
    }
    Ok(length)
}

fn length_of_time(text: &str) -> Option<Duration> {
    let is_number = |c: char| c.is_ascii_digit() || c == '.';
    if !text.is_empty() && text.chars().all(is_number) {
        return seconds(text, 1.0);
    }
    let mut rest = text;
    let mut sum = Duration::ZERO;
    loop {
        let (number, tail) = rest.split_at(rest.find(|c| !is_number(c))?);
        let (unit, tail) = tail.split_at(tail.find(is_number).unwrap_or(tail.len()));
        let factor = match unit {
            "ns" => 1e-9,
            "us" | "µs" => 1e-6,
            "ms" => 1e-3,
            "s" => 1.0,
            "m" => 60.0,
            "h" => 3600.0,
            _ => return None,
        };
        sum = sum.checked_add(seconds(number, factor)?)?;
        if tail.is_empty() {
            return Some(sum);
        }
        rest = tail;
    }
}

fn seconds(number: &str, factor: f64) -> Option<Duration> {
    let number: f64 = number.parse().ok()?;
    Duration::try_from_secs_f64(number * factor).ok()
}

/// What a signal is passed on as: that which asks to end, as the image says.
pub(crate) fn passed_on(signal: u8, stop: u8) -> u8 {
    if i32::from(signal) == libc::SIGTERM { stop } else { signal }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{bytes, duration};

    #[test]
    fn sizes_are_read_as_docker_reads_them() {
        for (text, size) in [
            ("512", 512),
            ("64b", 64),
            ("64K", 64 << 10),
            ("1KiB", 1 << 10),
            ("64mb", 64 << 20),
            ("512m", 512 << 20),
            ("512 MB", 512 << 20),
            ("1g", 1 << 30),
            ("0.5g", 512 << 20),
            ("1.5gib", 3 << 29),
            ("0.1k", 102),
            ("1t", 1 << 40),
            ("1P", 1 << 50),
            ("0", 0),
        ] {
            assert_eq!(bytes(text), Some(size), "{text}");
        }
        for wrong in [
            "",
            "m",
            "b",
            "-1",
            "+1",
            "1mm",
            ".5g",
            "1.g",
            "1.5.5g",
            "99999999999t",
            "1x",
            "1bb",
            "1i",
            "1ib",
            "1bk",
            "1  m",
            " 1m",
            "1e3",
            "1,5g",
            "٣m",
            "0.1234567890123456789g",
        ] {
            assert_eq!(bytes(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn lengths_of_time_are_seconds_or_have_units() {
        for (text, milliseconds) in [
            ("3", 3_000),
            ("0.25", 250),
            (".5s", 500),
            ("20ms", 20),
            ("20000us", 20),
            ("20000µs", 20),
            ("1.5m", 90_000),
            ("1m30s", 90_000),
            ("1h1m1s1ms", 3_661_001),
            ("2h", 7_200_000),
        ] {
            assert_eq!(duration(text), Ok(Duration::from_millis(milliseconds)), "{text}");
        }
        for wrong in [
            "", "s", "-1", "+1", "1e3", "inf", "nan", "1 s", "1d", "1.2.3", "1sm", "1m30", "30 s",
            "m30s", ".", ".s",
        ] {
            assert!(duration(wrong).is_err_and(|why| why.contains("1m30s")), "{wrong}");
        }
        for zero in ["0", "0ms", "0m0s", "0.0", "1ns"] {
            assert!(duration(zero).is_err_and(|why| why.contains("above zero")), "{zero}");
        }
        assert!(duration(&"9".repeat(40)).is_err());
    }
}
