//! The files of a cgroup: what is written to them and read from them, in both versions.

use std::fs;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::{OFlag, openat};
use nix::poll::{PollFd, PollFlags};
use nix::sys::stat::{Mode, mkdirat, stat};

use super::hierarchy::{Controller, Version};
use crate::error::{Error, Result};
use crate::limits::{IoLimit, Limits};
use crate::state::DIRECTORY;
use crate::stats::Stats;
use crate::wire::{self, Deadline};

/// The period of a CPU limit, in microseconds: the default of both versions.
const PERIOD: u64 = 100_000;
/// The weight of version 2, and the shares of version 1, of what was given none.
const WEIGHT: u32 = 100;
/// How long it may take until all have stopped.
const FREEZING: Duration = Duration::from_secs(5);
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// A cgroup's directory.
#[derive(Debug)]
pub(super) struct Directory {
    pub(super) version: Version,
    path: PathBuf,
    fd: OwnedFd,
}

impl Directory {
    /// Makes one.
    pub(super) fn make(parent: &Path, path: PathBuf, version: Version) -> Result<Self> {
        match fs::create_dir(&path) {
            Ok(()) => {}
            Err(error) => return Err(refused(parent, Error::at("mkdir", &path)(error))),
        }
        let fd =
            nix::fcntl::open(&path, DIRECTORY, Mode::empty()).map_err(Error::at("open", &path))?;
        Ok(Self { version, path, fd })
    }

    /// Makes one below it.
    pub(super) fn make_below(&self, name: &str) -> Result<Self> {
        let path = self.path.join(name);
        mkdirat(&self.fd, name, Mode::from_bits_truncate(0o755))
            .map_err(Error::at("mkdir", &path))?;
        let fd =
            openat(&self.fd, name, DIRECTORY, Mode::empty()).map_err(Error::at("open", &path))?;
        Ok(Self { version: self.version, path, fd })
    }

    /// Those below it.
    pub(super) fn below(&self) -> Result<Vec<Self>> {
        let mut found = Vec::new();
        for entry in fs::read_dir(&self.path).map_err(Error::at("read", &self.path))? {
            let path = entry.map_err(Error::at("read", &self.path))?.path();
            match nix::fcntl::open(&path, DIRECTORY, Mode::empty()) {
                Ok(fd) => found.push(Self { version: self.version, path, fd }),
                Err(Errno::ENOTDIR | Errno::ENOENT) => {}
                Err(errno) => return Err(Error::at("open", &path)(errno)),
            }
        }
        Ok(found)
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    /// What a process writes itself into, to be in it.
    pub(super) fn procs(&self) -> Result<OwnedFd> {
        self.open("cgroup.procs", OFlag::O_WRONLY)
    }

    pub(super) fn open(&self, name: &str, flags: OFlag) -> Result<OwnedFd> {
        openat(&self.fd, name, flags | OFlag::O_CLOEXEC, Mode::empty())
            .map_err(Error::at("open", &self.path.join(name)))
    }

    pub(super) fn write(&self, name: &str, value: &str) -> Result<()> {
        let mut file = fs::File::from(self.open(name, OFlag::O_WRONLY)?);
        file.write_all(value.as_bytes()).map_err(Error::at("write", &self.path.join(name)))
    }

    /// Reads a file; `None` if this kernel has none of that name.
    pub(super) fn read(&self, name: &str) -> Result<Option<String>> {
        let fd = match openat(&self.fd, name, OFlag::O_RDONLY | OFlag::O_CLOEXEC, Mode::empty()) {
            Ok(fd) => fd,
            Err(Errno::ENOENT) => return Ok(None),
            Err(errno) => return Err(Error::at("open", &self.path.join(name))(errno)),
        };
        let mut text = String::new();
        match fs::File::from(fd).read_to_string(&mut text) {
            Ok(_) => Ok(Some(text)),
            // As PSI that was turned off when the kernel was started.
            Err(error) if error.raw_os_error() == Some(Errno::EOPNOTSUPP as i32) => Ok(None),
            Err(error) => Err(Error::at("read", &self.path.join(name))(error)),
        }
    }

    pub(super) fn read_of_parent(&self, name: &str) -> Result<String> {
        let path = self.path.join("..").join(name);
        fs::read_to_string(&path).map_err(Error::at("read", &path))
    }

    fn has(&self, name: &str) -> bool {
        nix::unistd::faccessat(
            &self.fd,
            name,
            nix::unistd::AccessFlags::F_OK,
            nix::fcntl::AtFlags::empty(),
        )
        .is_ok()
    }
}

/// Says what to do where a cgroup may not be made.
fn refused(parent: &Path, error: Error) -> Error {
    match &error {
        Error::Io { source, .. } if source.raw_os_error() == Some(Errno::EAGAIN as i32) => {
            Error::Unsupported {
                what: "one more cgroup".to_owned(),
                why: format!("{parent:?} has as many below it as it may: {source}"),
                fix: "raise its cgroup.max.descendants, or delete sandboxes".to_owned(),
            }
        }
        _ => error,
    }
}

/// Sets what limits say of one controller, instead of those of `before`.
pub(super) fn limit(
    directory: &Directory,
    controller: Controller,
    limits: &Limits,
    before: Option<&Limits>,
) -> Result<()> {
    // What they leave open may have been set.
    let all = before.is_some();
    let is_v1 = directory.version == Version::V1;
    match controller {
        Controller::Cpu => {
            if limits.cpu.is_some() || all {
                let quota = limits.cpu.map(|cpu| u64::from(cpu) * PERIOD / 1000);
                if is_v1 {
                    let quota = quota.map_or_else(|| "-1".to_owned(), |quota| quota.to_string());
                    directory.write("cpu.cfs_quota_us", &quota)?;
                } else {
                    directory.write("cpu.max", &format!("{} {PERIOD}", or_max(quota)))?;
                }
            }
            if limits.cpu_weight.is_some() || all {
                let weight = limits.cpu_weight.unwrap_or(WEIGHT);
                if is_v1 {
                    // Its default is 1024.
                    let shares = (u64::from(weight) * 1024 / u64::from(WEIGHT)).max(2);
                    directory.write("cpu.shares", &shares.to_string())?;
                } else {
                    directory.write("cpu.weight", &weight.to_string())?;
                }
            }
        }
        Controller::Memory if is_v1 => memory_of_v1(directory, limits, all)?,
        Controller::Memory => {
            if limits.memory_high.is_some() || all {
                directory.write("memory.high", &or_max(limits.memory_high))?;
            }
            // Before the memory, which would move to where there is no limit yet.
            let swap = limits.swap.or(limits.memory.map(|_| 0));
            let may_lack = limits.swap.is_none() && !directory.has("memory.swap.max");
            if (swap.is_some() || all) && !may_lack {
                directory.write("memory.swap.max", &or_max(swap)).map_err(no_swap)?;
            }
            if limits.memory.is_some() || all {
                directory.write("memory.max", &or_max(limits.memory))?;
            }
        }
        Controller::Pids if limits.pids.is_some() || all => {
            directory.write("pids.max", &or_max(limits.pids.map(u64::from)))?;
        }
        Controller::Cpuset => match &limits.cpuset {
            Some(cpus) => directory.write("cpuset.cpus", cpus)?,
            None if all && is_v1 => {
                directory.write("cpuset.cpus", &directory.read_of_parent("cpuset.cpus")?)?;
            }
            // Older kernels take no empty set where there are processes.
            None if all && directory.write("cpuset.cpus", "\n").is_err() => {
                let cpus = directory.read_of_parent("cpuset.cpus.effective")?;
                directory.write("cpuset.cpus", &cpus)?;
            }
            None => {}
        },
        Controller::Io => {
            let is_gone = |io: &&IoLimit| limits.io.iter().all(|new| new.device != io.device);
            for io in before.iter().flat_map(|before| &before.io).filter(is_gone) {
                let none = IoLimit { device: io.device.clone(), ..IoLimit::default() };
                limit_io(directory, &none)?;
            }
            for io in &limits.io {
                limit_io(directory, io)?;
            }
        }
        Controller::Pids | Controller::CpuTime | Controller::Freezer => {}
    }
    Ok(())
}

fn or_max(value: Option<u64>) -> String {
    value.map_or_else(|| "max".to_owned(), |value| value.to_string())
}

fn no_swap(error: Error) -> Error {
    match error {
        Error::Io { source, .. } if source.raw_os_error() == Some(Errno::ENOENT as i32) => {
            Error::Unsupported {
                what: "a limit of swap".to_owned(),
                why: "this kernel does not count it".to_owned(),
                fix: "start the kernel with swapaccount=1 and CONFIG_SWAP".to_owned(),
            }
        }
        other => other,
    }
}

/// Version 1 limits memory, and memory and swap together, which is never less.
fn memory_of_v1(directory: &Directory, limits: &Limits, all: bool) -> Result<()> {
    const MEMORY: &str = "memory.limit_in_bytes";
    const WITH_SWAP: &str = "memory.memsw.limit_in_bytes";
    if limits.memory_high.is_some() {
        return Err(Error::Unsupported {
            what: "a limit `memory_high`".to_owned(),
            why: "version 1 of the cgroup controller memory has none".to_owned(),
            fix: "boot with cgroup version 2 alone: systemd.unified_cgroup_hierarchy=1".to_owned(),
        });
    }
    if limits.memory.is_none() && limits.swap.is_some() {
        return Err(Error::invalid("swap limit", "without a limit of memory"));
    }
    if limits.memory.is_none() && !all {
        return Ok(());
    }
    let text = |value: Option<u64>| value.map_or_else(|| "-1".to_owned(), |v| v.to_string());
    let memory = text(limits.memory);
    let together = text(limits.memory.map(|m| m.saturating_add(limits.swap.unwrap_or_default())));
    if !directory.has(WITH_SWAP) {
        if limits.swap.is_some() {
            return directory.write(WITH_SWAP, &together).map_err(no_swap);
        }
        return directory.write(MEMORY, &memory).map_err(in_use);
    }
    // Upwards the one comes first, downwards the other.
    match directory.write(MEMORY, &memory) {
        Ok(()) => return directory.write(WITH_SWAP, &together).map_err(in_use),
        Err(Error::Io { source, .. }) if source.raw_os_error() == Some(Errno::EINVAL as i32) => {}
        Err(error) => return Err(in_use(error)),
    }
    directory.write(WITH_SWAP, &together).map_err(in_use)?;
    directory.write(MEMORY, &memory).map_err(in_use)
}

/// Version 1 does not kill for the sake of a lower limit.
fn in_use(error: Error) -> Error {
    match error {
        Error::Io { source, .. } if source.raw_os_error() == Some(Errno::EBUSY as i32) => {
            Error::Busy {
                what: "the memory above the limit".to_owned(),
                by: "processes, and none of it can be reclaimed".to_owned(),
            }
        }
        other => other,
    }
}

fn limit_io(directory: &Directory, limit: &IoLimit) -> Result<()> {
    let path = &limit.device;
    let number = stat(path).map_err(Error::at("stat", path))?;
    if number.st_mode & nix::libc::S_IFMT != nix::libc::S_IFBLK {
        return Err(Error::invalid("io limit", format!("{path:?} is no block device")));
    }
    let (major, minor) =
        (nix::sys::stat::major(number.st_rdev), nix::sys::stat::minor(number.st_rdev));
    let rates = [
        ("rbps", "read_bps", limit.read_bytes),
        ("wbps", "write_bps", limit.write_bytes),
        ("riops", "read_iops", limit.read_operations),
        ("wiops", "write_iops", limit.write_operations),
    ];
    match directory.version {
        Version::V2 => {
            let rates = rates.map(|(name, _, rate)| format!(" {name}={}", or_max(rate)));
            directory.write("io.max", &format!("{major}:{minor}{}", rates.concat()))
        }
        Version::V1 => rates.into_iter().try_for_each(|(_, name, rate)| {
            let file = format!("blkio.throttle.{name}_device");
            directory.write(&file, &format!("{major}:{minor} {}", rate.unwrap_or_default()))
        }),
    }
}

/// How much of what a cgroup has counted is asked for.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Count {
    /// What adds up, of a job: what the next in its leaf starts with.
    Sums,
    /// All, of a job.
    OfJob,
    /// All, and what had to wait.
    OfSandbox,
}

/// Adds what a cgroup has counted of one controller.
pub(super) fn count(
    directory: &Directory,
    controller: Controller,
    what: Count,
    stats: &mut Stats,
) -> Result<()> {
    let is_v1 = directory.version == Version::V1;
    match controller {
        Controller::Cpu if what != Count::OfSandbox => {}
        Controller::Cpu if is_v1 => {
            stats.throttled = directory
                .read("cpu.stat")?
                .and_then(|text| value(&text, "throttled_time"))
                .map(Duration::from_nanos);
        }
        Controller::Cpu => {
            stats.throttled = directory
                .read("cpu.stat")?
                .and_then(|text| value(&text, "throttled_usec"))
                .map(Duration::from_micros);
        }
        Controller::CpuTime if is_v1 => {
            stats.cpu_time = number(directory, "cpuacct.usage")?.map(Duration::from_nanos);
        }
        Controller::CpuTime => {
            stats.cpu_time = directory
                .read("cpu.stat")?
                .and_then(|text| value(&text, "usage_usec"))
                .map(Duration::from_micros);
            if what != Count::OfSandbox {
                return Ok(());
            }
            for (what, file) in [
                (&mut stats.cpu_pressure, "cpu.pressure"),
                (&mut stats.memory_pressure, "memory.pressure"),
                (&mut stats.io_pressure, "io.pressure"),
            ] {
                *what = directory.read(file)?.and_then(|text| pressure(&text));
            }
        }
        Controller::Memory => {
            let [now, peak] = if is_v1 {
                ["memory.usage_in_bytes", "memory.max_usage_in_bytes"]
            } else {
                ["memory.current", "memory.peak"]
            };
            if what != Count::Sums {
                stats.memory = number(directory, now)?;
                stats.memory_peak = number(directory, peak)?;
            }
            stats.oom_kills = oom_kills(directory)?;
        }
        Controller::Pids if what == Count::Sums => {}
        Controller::Pids => stats.pids = number(directory, "pids.current")?,
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
        Controller::Cpuset | Controller::Freezer => {}
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
    Ok(directory.read(file)?.and_then(|text| value(&text, "oom_kill")))
}

/// Has the peak of memory begin anew; `false` where it can't be.
pub(super) fn forget_peak(directory: &Directory) -> bool {
    // With version 2, that is for the descriptor alone that it is written to.
    directory.version == Version::V1 && directory.write("memory.max_usage_in_bytes", "0").is_ok()
}

/// Stops all in a cgroup and those below it, or lets them go on, and waits until it is so.
pub(super) fn freeze(directory: &Directory, frozen: bool) -> Result<()> {
    let late = Error::TimedOut { what: "all processes to stop", after: FREEZING };
    let begin = Instant::now();
    if directory.version == Version::V1 {
        let state = if frozen { "FROZEN" } else { "THAWED" };
        directory.write("freezer.state", state)?;
        while directory.read("freezer.state")?.is_none_or(|now| now.trim() != state) {
            if begin.elapsed() > FREEZING {
                return Err(late);
            }
            std::thread::sleep(BETWEEN_LOOKS);
        }
        return Ok(());
    }
    directory.write("cgroup.freeze", if frozen { "1" } else { "0" })?;
    let events = fs::File::from(directory.open("cgroup.events", OFlag::O_RDONLY)?);
    let deadline = Deadline::after(FREEZING);
    loop {
        let mut text = String::new();
        std::io::Seek::rewind(&mut &events)
            .and_then(|()| (&events).read_to_string(&mut text))
            .map_err(Error::at("read", &directory.path.join("cgroup.events")))?;
        if value(&text, "frozen") == Some(u64::from(frozen)) {
            return Ok(());
        }
        let mut fds = [PollFd::new(events.as_fd(), PollFlags::POLLPRI)];
        if !wire::wait_ready(&mut fds, deadline)? {
            return Err(late);
        }
    }
}

fn number(directory: &Directory, name: &str) -> Result<Option<u64>> {
    Ok(directory.read(name)?.and_then(|text| text.trim().parse().ok()))
}

/// The value of a key in a file of `key value` lines.
fn value(text: &str, key: &str) -> Option<u64> {
    let mut pairs = text.lines().filter_map(|line| line.split_once(' '));
    pairs.find(|(name, _)| *name == key)?.1.trim().parse().ok()
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
    fn values_are_found_by_their_whole_key() {
        let text = "oom_kill_disable 0\nunder_oom 0\noom_kill 7\n";
        assert_eq!((value(text, "oom_kill"), value(text, "oom")), (Some(7), None));
        let psi = "some avg10=0.00 avg60=0.00 avg300=0.00 total=1234\nfull avg10=0.00 total=5\n";
        assert_eq!(pressure(psi), Some(Duration::from_micros(1234)));
        assert_eq!(pressure(""), None);
    }
}
