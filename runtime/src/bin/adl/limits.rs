//! Limits on the command line, as docker writes them, and what was used.

use std::ffi::OsStr;
use std::time::Duration;

use adl_runtime::{IoLimit, Limits, Stats};
use lexopt::ValueExt as _;

use crate::values::{CliResult, bytes};

pub(crate) const HELP: &str = "\
\x20     --memory SIZE        most memory that its jobs may use, as 512m, page cache and files in memory
                           with it
      --memory-high SIZE   memory above which they are slowed down (cgroup v2)
      --swap SIZE          swap beside the memory (default: none, where --memory is given)
      --cpus NUMBER        CPU time: 1.5 is that of one CPU and a half, as is 150%
      --cpu-weight N       share of CPU time where it is scarce, 1 to 10000 (default: 100)
      --cpuset LIST        CPUs to run on, as 0-3,6
      --pids-limit N       most processes and threads
      --io DEVICE:RATE,…   what may be read from and written to a block device in a second, as
                           /dev/sda:rbps=10m,wbps=1m,riops=100,wiops=100
      --cgroup-parent PATH make its cgroups below this one
";

/// Takes an option that is a limit; `false` if it is another.
pub(crate) fn option(
    limits: &mut Limits,
    name: &str,
    parser: &mut lexopt::Parser,
) -> CliResult<bool> {
    let size = |value: &OsStr| {
        let size = value.to_str().and_then(bytes).filter(|size| *size != 0);
        size.ok_or_else(|| format!("--{name} {}: takes a size, as 512m", value.display()))
    };
    match name {
        "memory" => limits.memory = Some(size(&parser.value()?)?),
        "memory-high" => limits.memory_high = Some(size(&parser.value()?)?),
        "swap" => {
            let value = parser.value()?;
            let swap = value.to_str().and_then(bytes);
            limits.swap = Some(
                swap.ok_or_else(|| format!("--swap {}: takes a size, as 512m", value.display()))?,
            );
        }
        "cpus" => {
            let value = parser.value()?;
            let cpus = value.to_str().and_then(cpus);
            limits.cpu = Some(cpus.ok_or_else(|| {
                format!("--cpus {}: takes a number, as 1.5 or 150%", value.display())
            })?);
        }
        "cpu-weight" => limits.cpu_weight = Some(parser.value()?.parse()?),
        "cpuset" => limits.cpuset = Some(parser.value()?.string()?),
        "pids-limit" => limits.pids = Some(parser.value()?.parse()?),
        "io" => {
            let value = parser.value()?;
            let io = value.to_str().and_then(io);
            limits.io.push(io.ok_or_else(|| {
                format!("--io {}: takes DEVICE:RATE, as /dev/sda:rbps=10m", value.display())
            })?);
        }
        _ => return Ok(false),
    }
    Ok(true)
}

/// Reads a number of CPUs, in thousandths.
fn cpus(text: &str) -> Option<u32> {
    let (number, places) = match text.strip_suffix('%') {
        Some(number) => (number, 1),
        None => (text, 3),
    };
    let (whole, fraction) = number.split_once('.').unwrap_or((number, ""));
    let is_number = |part: &str| part.bytes().all(|byte| byte.is_ascii_digit());
    if whole.is_empty() && fraction.is_empty() || !is_number(whole) || !is_number(fraction) {
        return None;
    }
    // What is finer than a thousandth is left out.
    let fraction: String = fraction.chars().chain("000".chars()).take(places).collect();
    format!("{whole}{fraction}").parse().ok()
}

/// Reads `DEVICE:rbps=RATE,wiops=N`.
fn io(text: &str) -> Option<IoLimit> {
    let (device, rates) = text.rsplit_once(':')?;
    let mut limit = IoLimit { device: device.into(), ..IoLimit::default() };
    for rate in rates.split(',') {
        let (name, value) = rate.split_once('=')?;
        let place = match name {
            "rbps" => &mut limit.read_bytes,
            "wbps" => &mut limit.write_bytes,
            "riops" => &mut limit.read_operations,
            "wiops" => &mut limit.write_operations,
            _ => return None,
        };
        *place = Some(bytes(value).filter(|value| *value != 0)?);
    }
    (!device.is_empty()).then_some(limit)
}

/// Prints what was used, a line each, to stderr.
pub(crate) fn print(stats: &Stats) {
    let seconds = |name: &str, time: Option<Duration>| {
        if let Some(time) = time {
            eprintln!("{name:<16} {:.6} s", time.as_secs_f64());
        }
    };
    let number = |name: &str, number: Option<u64>| {
        if let Some(number) = number {
            eprintln!("{name:<16} {number}");
        }
    };
    seconds("cpu time", stats.cpu_time);
    seconds("throttled", stats.throttled);
    number("memory", stats.memory);
    number("memory peak", stats.memory_peak);
    number("oom kills", stats.oom_kills);
    number("pids", stats.pids);
    number("bytes read", stats.read_bytes);
    number("bytes written", stats.write_bytes);
    seconds("cpu pressure", stats.cpu_pressure);
    seconds("memory pressure", stats.memory_pressure);
    seconds("io pressure", stats.io_pressure);
}

#[cfg(test)]
mod tests {
    use super::{IoLimit, cpus, io};

    #[test]
    fn numbers_of_cpus_are_read_in_thousandths() {
        for (text, thousandths) in [
            ("1", 1000),
            ("0.5", 500),
            (".25", 250),
            ("1.", 1000),
            ("2.0009", 2000),
            ("150%", 1500),
        ] {
            assert_eq!(cpus(text), Some(thousandths), "{text}");
        }
        for wrong in ["", ".", "-1", "1e3", "1,5", "%", "x", "99999999999"] {
            assert_eq!(cpus(wrong), None, "{wrong}");
        }
    }

    #[test]
    fn rates_of_io_are_read() {
        let limit = IoLimit {
            device: "/dev/sda".into(),
            read_bytes: Some(10 << 20),
            write_operations: Some(100),
            ..IoLimit::default()
        };
        assert_eq!(io("/dev/sda:rbps=10m,wiops=100"), Some(limit));
        for wrong in [
            "",
            "/dev/sda",
            "/dev/sda:",
            "/dev/sda:rbps",
            "/dev/sda:rbps=0",
            ":rbps=1",
            "/dev/sda:x=1",
        ] {
            assert_eq!(io(wrong), None, "{wrong}");
        }
    }
}
