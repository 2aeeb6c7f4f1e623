//! Options that several commands share.

use std::ffi::OsString;
use std::time::Duration;

use adl_runtime::{Config, Error, Image, Network, RootAccess, Seccomp, Upper};
use lexopt::ValueExt as _;

use crate::bases::Named;
use crate::{limits, mounts};

/// What a command of the command line returns.
pub(crate) type CliResult<T> = Result<T, Box<dyn std::error::Error>>;

/// The help of the options that [`sandbox_option`] knows.
pub(crate) const SANDBOX_HELP: &str = "\
\x20     --image IMAGE        a directory with a root file system, a tar archive of one,
                           `snapshot:NAME`, or `host` for the programs of this machine (default)
      --beneath DIR        guests have written in DIR, as in what was copied out: paths of this
                           machine that options name below it are opened without following a link.
                           So are those below what is mounted `rw` or made by --copy-out here; any
                           other path is followed, whoever made the links on its way. May be given
                           several times
      --name NAME          name of the sandbox
      --hostname NAME      host name inside (default: the name)
      --network MODE       `none`, a loopback device only (default), or `host`
      --upper WHERE        where writes go: `disk` (default), `btrfs`, either of them with a limit, as
                           disk:2g, or `memory:SIZE`, as memory:512m
      --cap-add NAMES      capabilities for root inside, beyond the default, comma-separated; `all`
                           for all
      --cap-drop NAMES     capabilities to take from the default; `all` for all
      --security-opt seccomp=unconfined
                           allow all system calls; hostile code then reaches all of the kernel
";

/// Takes an option that says what the sandbox is like; `false` if it is another. [`Named::settle`]
/// has to follow.
pub(crate) fn sandbox_option(
    config: &mut Config,
    named: &mut Named,
    name: &str,
    parser: &mut lexopt::Parser,
) -> CliResult<bool> {
    match name {
        "image" => {
            let image = parser.value()?;
            let text = image.to_str().unwrap_or_default();
            named.image = None;
            if image == "host" {
                config.image = Image::host();
            } else if let Some(name) = text.strip_prefix("snapshot:") {
                config.image = Image::snapshot(name);
            } else {
                named.image = Some(image.into());
            }
        }
        "beneath" => named.beneath.push(parser.value()?.into()),
        "name" => config.name = Some(parser.value()?.string()?),
        "hostname" => config.hostname = Some(parser.value()?.string()?),
        "network" => {
            config.network = match parser.value()?.to_str() {
                Some("none") => Network::None,
                Some("host") => Network::Host,
                _ => return Err("--network takes `none` or `host`".into()),
            };
        }
        "upper" => config.upper = upper(&parser.value()?)?,
        "volume" => config.mounts.push(mounts::volume(&parser.value()?)?),
        "tmpfs" => config.mounts.push(mounts::tmpfs(&parser.value()?)?),
        "device" => config.mounts.push(mounts::device(&parser.value()?)?),
        "read-only" => config.root = RootAccess::ReadOnly,
        "cap-add" => {
            let names = parser.value()?.string()?;
            let added = match &*names {
                "all" | "ALL" => adl_runtime::Capabilities::ALL,
                names => names.parse()?,
            };
            config.capabilities = config.capabilities.union(added);
        }
        "cap-drop" => {
            let names = parser.value()?.string()?;
            config.capabilities = match &*names {
                "all" | "ALL" => adl_runtime::Capabilities::NONE,
                names => config.capabilities.difference(names.parse()?),
            };
        }
        "security-opt" => match parser.value()?.to_str() {
            Some("seccomp=unconfined") => config.seccomp = Seccomp::Unconfined,
            _ => return Err("--security-opt takes `seccomp=unconfined`".into()),
        },
        "cgroup-parent" => config.cgroup_parent = Some(parser.value()?.into()),
        _ => return limits::option(&mut config.limits, name, parser),
    }
    Ok(true)
}

fn upper(value: &OsString) -> CliResult<Upper> {
    let text = value.to_str().unwrap_or_default();
    let (kind, size) = match text.split_once(':') {
        Some((kind, size)) => (kind, Some(bytes(size).filter(|size| *size != 0))),
        None => (text, None),
    };
    match (kind, size) {
        ("disk", None) => Ok(Upper::Disk { size: None }),
        ("btrfs", None) => Ok(Upper::Btrfs { size: None }),
        ("disk", Some(Some(size))) => Ok(Upper::Disk { size: Some(size) }),
        ("btrfs", Some(Some(size))) => Ok(Upper::Btrfs { size: Some(size) }),
        ("memory", Some(Some(size))) => Ok(Upper::Memory { size }),
        _ => {
            Err("--upper takes `disk`, `btrfs`, `disk:SIZE`, `btrfs:SIZE` or `memory:SIZE`, with \
                  a size as 64m or 1g"
                .into())
        }
    }
}

/// Reads a size: a number of bytes, or with one of the suffixes k, m, g, t of 1024.
pub(crate) fn bytes(text: &str) -> Option<u64> {
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
pub(crate) fn duration(text: &str) -> Option<Duration> {
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

/// What to exit with for an error, as shells do.
pub(crate) fn exit_code_of(error: &Error) -> u8 {
    match error {
        Error::Start { stage: adl_runtime::Stage::Exec, source, .. } => match source.kind() {
            std::io::ErrorKind::NotFound => 127,
            _ => 126,
        },
        _ => super::OWN_ERROR,
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::{bytes, duration};

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
