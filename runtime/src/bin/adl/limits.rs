//! Limits of cgroups on the command line, and what `--stats` prints.

use std::path::PathBuf;
use std::time::Duration;

use adl_runtime::{IoLimit, Limits, Stats};
use clap::{Args, ValueHint};

use crate::output::say_line;
use crate::values::{number, size, size_or_zero};

#[derive(Args)]
pub(crate) struct LimitOptions {
    /// The most memory that all processes of the sandbox may use together, as 512m; what they have
    /// cached of files, and files in memory, count. When it runs out, all of the command is killed
    #[arg(short, long, value_name = "SIZE", value_parser = memory)]
    memory: Option<u64>,

    /// Memory above which its processes are slowed down (with cgroup version 2)
    #[arg(long, value_name = "SIZE", value_parser = size)]
    memory_high: Option<u64>,

    /// The most swap, beside the memory; by default none, where --memory is given
    #[arg(long, value_name = "SIZE", value_parser = size_or_zero)]
    swap: Option<u64>,

    /// CPU time: 1.5 is that of one CPU and a half, as is 150%
    #[arg(long, value_name = "NUMBER", value_parser = cpus)]
    cpus: Option<u32>,

    /// Share of CPU time where it is scarce, 1 to 10000; by default 100
    #[arg(long, value_name = "N", value_parser = number::<u32>)]
    cpu_weight: Option<u32>,

    /// CPUs to run on, as 0-3,6
    #[arg(long, alias = "cpuset-cpus", value_name = "LIST")]
    cpuset: Option<String>,

    /// The most processes and threads of the sandbox together; -1 is no limit
    #[arg(long, value_name = "N", value_parser = pids)]
    pids_limit: Option<Pids>,

    /// What may be read from and written to a block device in a second, as
    /// /dev/sda:rbps=10m,wbps=1m,riops=100,wiops=100
    #[arg(long, value_name = "DEVICE:RATE[,RATE]", value_parser = io)]
    io: Vec<IoLimit>,

    /// Make the sandbox's cgroups below this one, a path as in /proc/self/cgroup
    #[arg(long, value_name = "PATH", value_hint = ValueHint::DirPath)]
    pub(crate) cgroup_parent: Option<PathBuf>,
}

impl LimitOptions {
    pub(crate) fn limits(&self) -> Limits {
        Limits {
            memory: self.memory,
            memory_high: self.memory_high,
            swap: self.swap,
            cpu: self.cpus,
            cpu_weight: self.cpu_weight,
            cpuset: self.cpuset.clone(),
            pids: self.pids_limit.and_then(|limit| limit.0),
            io: self.io.clone(),
            ..Limits::default()
        }
    }
}

/// The least memory in which a program starts.
const LEAST_MEMORY: u64 = 1 << 20;

/// Reads a limit of memory.
fn memory(text: &str) -> Result<u64, &'static str> {
    let size = size(text)?;
    if size < LEAST_MEMORY {
        return Err("no program runs in less than 1m; say the unit, as 512m or 2g");
    }
    Ok(size)
}

/// The most processes, or no limit.
#[derive(Clone, Copy)]
struct Pids(Option<u32>);

/// Reads a limit of processes.
fn pids(text: &str) -> Result<Pids, &'static str> {
    if text == "-1" {
        return Ok(Pids(None));
    }
    let limit = text.parse().ok().filter(|limit| *limit != 0);
    limit.map(|limit| Pids(Some(limit))).ok_or("takes a whole number, or -1 for no limit")
}

/// Reads a number of CPUs, in thousandths.
fn cpus(text: &str) -> Result<u32, &'static str> {
    thousandths(text).ok_or("takes a number, as 1.5 or 150%")
}

fn thousandths(text: &str) -> Option<u32> {
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
fn io(text: &str) -> Result<IoLimit, &'static str> {
    rates(text).ok_or("takes DEVICE:RATE, as /dev/sda:rbps=10m")
}

fn rates(text: &str) -> Option<IoLimit> {
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
        *place = Some(size(value).ok()?);
    }
    (!device.is_empty()).then_some(limit)
}

/// Prints what was used, a line each, to stderr.
pub(crate) fn print(stats: &Stats) {
    let seconds = |name: &str, time: Option<Duration>| {
        if let Some(time) = time {
            say_line(format_args!("{name:<16} {:.6} s", time.as_secs_f64()));
        }
    };
    let number = |name: &str, number: Option<u64>| {
        if let Some(number) = number {
            say_line(format_args!("{name:<16} {number}"));
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
            assert_eq!(cpus(text), Ok(thousandths), "{text}");
        }
        for wrong in ["", ".", "-1", "1e3", "1,5", "%", "x", "99999999999"] {
            assert!(cpus(wrong).is_err(), "{wrong}");
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
        assert_eq!(io("/dev/sda:rbps=10m,wiops=100"), Ok(limit));
        for wrong in [
            "",
            "/dev/sda",
            "/dev/sda:",
            "/dev/sda:rbps",
            "/dev/sda:rbps=0",
            ":rbps=1",
            "/dev/sda:x=1",
        ] {
            assert!(io(wrong).is_err(), "{wrong}");
        }
    }
}
