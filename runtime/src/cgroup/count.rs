//! What a cgroup has counted.

use std::fs;
use std::io::Write;
use std::time::Duration;

use super::directory::{Directory, read_again};
use super::hierarchy::{Controller, Version};
use crate::cgroup::stats::Stats;
use crate::error::{Error, Result};

/// Adds what a cgroup has counted by one controller, of a job.
pub(super) fn count(
    directory: &Directory,
    controller: Controller,
    stats: &mut Stats,
) -> Result<()> {
    let is_v1 = directory.version == Version::V1;
    match controller {
        Controller::CpuTime if is_v1 => {
            stats.cpu_time = directory.number("cpuacct.usage")?.map(Duration::from_nanos);
        }
        Controller::CpuTime => {
            stats.cpu_time = directory.value("cpu.stat", "usage_usec")?.map(Duration::from_micros);
        }
        Controller::Memory => {
            let [now, peak] = if is_v1 {
                ["memory.usage_in_bytes", "memory.max_usage_in_bytes"]
            } else {
                ["memory.current", "memory.peak"]
            };
            stats.memory = directory.number(now)?;
            stats.memory_peak = directory.number(peak)?;
            stats.oom_kills = oom_kills(directory)?;
        }
        Controller::Pids => stats.pids = directory.number("pids.current")?,
        Controller::Io if is_v1 => {
            let text = directory.read("blkio.throttle.io_service_bytes_recursive")?;
            let sum = |what: &str| {
                let lines = text.as_deref().unwrap_or_default().lines();
                let of_this = lines.filter_map(|line| line.split_once(' ')?.1.strip_prefix(what));
                of_this.filter_map(|count| count.trim().parse::<u64>().ok()).sum()
            };
            stats.read_bytes = text.as_ref().map(|_| sum("Read"));
            stats.write_bytes = text.as_ref().map(|_| sum("Write"));
        }
        Controller::Io => {
            let text = directory.read("io.stat")?;
            let sum = |what: &str| {
                let words = text.as_deref().unwrap_or_default().split_whitespace();
                words.filter_map(|word| word.strip_prefix(what)?.parse::<u64>().ok()).sum()
            };
            stats.read_bytes = text.as_ref().map(|_| sum("rbytes="));
            stats.write_bytes = text.as_ref().map(|_| sum("wbytes="));
        }
        Controller::Cpu | Controller::Cpuset | Controller::Freezer => {}
    }
    Ok(())
}

/// How many processes were refused. Version 1, and version 2 before Linux 6.11, count that in the
/// cgroup of whoever wanted one; later, in the one whose limit it was.
pub(super) fn refused(directory: &Directory) -> Result<Option<u64>> {
    directory.value("pids.events", "max")
}

/// Adds what all had to wait for, and how many there were.
pub(super) fn count_of_all(
    directory: &Directory,
    controller: Controller,
    stats: &mut Stats,
) -> Result<()> {
    match (controller, directory.version) {
        (Controller::Cpu, Version::V1) => {
            stats.throttled =
                directory.value("cpu.stat", "throttled_time")?.map(Duration::from_nanos);
        }
        (Controller::Cpu, Version::V2) => {
            stats.throttled =
                directory.value("cpu.stat", "throttled_usec")?.map(Duration::from_micros);
        }
        (Controller::Pids, _) => stats.pids_peak = directory.number("pids.peak")?,
        (Controller::CpuTime, Version::V2) => {
            for (what, file) in [
                (&mut stats.cpu_pressure, "cpu.pressure"),
                (&mut stats.memory_pressure, "memory.pressure"),
                (&mut stats.io_pressure, "io.pressure"),
            ] {
                *what = directory.read(file)?.and_then(|text| pressure(&text));
            }
        }
        _ => {}
    }
    Ok(())
}

/// How many processes were killed because memory ran out: with version 1, those in it, with version
/// 2 those below it, too.
pub(super) fn oom_kills(directory: &Directory) -> Result<Option<u64>> {
    let file = match directory.version {
        Version::V1 => "memory.oom_control",
        Version::V2 => "memory.events",
    };
    directory.value(file, "oom_kill")
}

/// Where the most memory that a cgroup had since a moment can be read.
#[derive(Debug)]
pub(super) enum Peak {
    /// In its file.
    OfCgroup,
    /// From this descriptor (Linux 6.12).
    OfDescriptor(fs::File),
    Unknown,
}

impl Peak {
    /// Begins anew.
    pub(super) fn since_now(memory: &Directory) -> Self {
        if memory.version == Version::V1 {
            let is_reset = memory.write("memory.max_usage_in_bytes", "0").is_ok();
            return if is_reset { Self::OfCgroup } else { Self::Unknown };
        }
        // Older kernels have it for reading only, or not at all.
        let file = memory.open("memory.peak", fs::OpenOptions::new().read(true).write(true));
        match file.map(|file| ((&file).write_all(b"reset"), file)) {
            Ok((Ok(()), file)) => Self::OfDescriptor(file),
            _ => Self::Unknown,
        }
    }

    /// The peak since then, where that of the cgroup is `of_cgroup`.
    pub(super) fn read(&self, of_cgroup: Option<u64>) -> Result<Option<u64>> {
        match self {
            Self::OfCgroup => Ok(of_cgroup),
            Self::OfDescriptor(file) => {
                let text = read_again(file).map_err(Error::io("read memory.peak"))?;
                Ok(text.trim().parse().ok())
            }
            Self::Unknown => Ok(None),
        }
    }
}

/// The total of `some` in a file of PSI.
fn pressure(text: &str) -> Option<Duration> {
    let some = text.lines().find_map(|line| line.strip_prefix("some "))?;
    let total = some.split(' ').find_map(|word| word.strip_prefix("total="))?;
    total.parse().ok().map(Duration::from_micros)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn pressure_is_the_total_of_some() {
        let psi = "some avg10=0.00 avg60=0.00 avg300=0.00 total=1234\nfull avg10=0.00 total=5\n";
        assert_eq!(pressure(psi), Some(Duration::from_micros(1234)));
        assert_eq!(pressure(""), None);
    }
}
