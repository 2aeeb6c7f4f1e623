//! What is written to a cgroup to limit it, in both versions.

use std::collections::BTreeMap;

use nix::errno::Errno;
use nix::sys::stat::{major, minor, stat};

use super::directory::{Directory, errno};
use super::hierarchy::{Controller, Version};
use crate::config::limits::{self, IoLimit, Limits};
use crate::error::{Error, Result};

/// The period of a CPU limit, in microseconds: the default of both versions.
const PERIOD: u64 = 100_000;
/// The weight of version 2, and the shares of version 1, of what was given none.
const WEIGHT: u32 = 100;

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
                    directory.write("cpu.cfs_quota_us", &quota).map_err(|error| {
                        let above = "more than the cgroup has that it is made in";
                        instead_of(Errno::EINVAL, error, || Error::invalid("cpu limit", above))
                    })?;
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
            let may_lack = limits.swap.is_none() && !directory.has("memory.swap.max")?;
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
            Some(cpus) => set_cpus(directory, cpus)?,
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
        Controller::Pids | Controller::Io | Controller::CpuTime | Controller::Freezer => {}
    }
    Ok(())
}

fn or_max(value: Option<u64>) -> String {
    value.map_or_else(|| "max".to_owned(), |value| value.to_string())
}

/// What an error means that the kernel gives as a number only.
fn instead_of(number: Errno, error: Error, meaning: impl FnOnce() -> Error) -> Error {
    match &error {
        Error::Io { source, .. } if errno(source) == Some(number) => meaning(),
        _ => error,
    }
}

fn no_swap(error: Error) -> Error {
    instead_of(Errno::ENOENT, error, || Error::Unsupported {
        what: "a limit of swap".to_owned(),
        why: "this kernel does not count it".to_owned(),
        fix: "start the kernel with swapaccount=1 and CONFIG_SWAP".to_owned(),
    })
}

/// Sets the CPUs to run on. What the cgroups above don't have is no error for the kernel, where
/// version 2 is in force, and then some others are taken.
fn set_cpus(directory: &Directory, cpus: &str) -> Result<()> {
    let why = |there: &str| format!("{cpus} are not all there: {there}");
    directory.write("cpuset.cpus", cpus).map_err(|error| match &error {
        Error::Io { source, .. }
            if matches!(errno(source), Some(Errno::EINVAL | Errno::ERANGE | Errno::EACCES)) =>
        {
            Error::invalid("cpuset", why(&source.to_string()))
        }
        _ => error,
    })?;
    if directory.version == Version::V1 {
        return Ok(());
    }
    let got = directory.read("cpuset.cpus.effective")?.unwrap_or_default();
    if limits::cpus(got.trim()) == limits::cpus(cpus) {
        return Ok(());
    }
    Err(Error::invalid("cpuset", why(got.trim())))
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
    if limits.memory.is_none() && !all {
        return Ok(());
    }
    let text = |value: Option<u64>| value.map_or_else(|| "-1".to_owned(), |v| v.to_string());
    let memory = text(limits.memory);
    // Counted apart: as much once more, at most.
    if directory.has(BUFFERS)? {
        directory.write(BUFFERS, &memory)?;
    }
    let together = text(limits.memory.map(|m| m.saturating_add(limits.swap.unwrap_or_default())));
    if !directory.has(WITH_SWAP)? {
        if limits.swap.is_some() {
            return directory.write(WITH_SWAP, &together).map_err(no_swap);
        }
        return directory.write(MEMORY, &memory).map_err(in_use);
    }
    // Upwards the one comes first, downwards the other.
    match directory.write(MEMORY, &memory) {
        Ok(()) => return directory.write(WITH_SWAP, &together).map_err(in_use),
        Err(Error::Io { source, .. }) if errno(&source) == Some(Errno::EINVAL) => {}
        Err(error) => return Err(in_use(error)),
    }
    directory.write(WITH_SWAP, &together).map_err(in_use)?;
    directory.write(MEMORY, &memory).map_err(in_use)
}

/// What version 1 counts of the buffers of TCP and UDP.
const BUFFERS: &str = "memory.kmem.tcp.limit_in_bytes";

/// Has buffers of sockets that are made in a cgroup of version 1 be counted, which begins with a
/// limit of its own; that which holds is above it.
pub(super) fn count_buffers(leaf: &Directory) -> Result<()> {
    if leaf.has(BUFFERS)? { leaf.write(BUFFERS, "-1") } else { Ok(()) }
}

/// Version 1 does not kill for the sake of a lower limit.
fn in_use(error: Error) -> Error {
    instead_of(Errno::EBUSY, error, || Error::Busy {
        what: "the memory above the limit".to_owned(),
        by: "processes, and none of it can be reclaimed".to_owned(),
    })
}

/// A disk, by its number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub(super) struct Disk {
    major: u64,
    minor: u64,
}

/// Finds out which disks are to have limits.
pub(super) fn disks(limits: &[IoLimit]) -> Result<BTreeMap<Disk, &IoLimit>> {
    let mut found = BTreeMap::new();
    for limit in limits {
        let path = &limit.device;
        let invalid = |why: &str| Error::invalid("io limit", format!("{path:?} {why}"));
        let number = stat(path).map_err(Error::at("stat", path))?;
        if number.st_mode & nix::libc::S_IFMT != nix::libc::S_IFBLK {
            return Err(invalid("is no block device"));
        }
        let disk = Disk { major: major(number.st_rdev), minor: minor(number.st_rdev) };
        if found.insert(disk, limit).is_some() {
            return Err(invalid("has two"));
        }
    }
    Ok(found)
}

/// Sets the limits of a disk; those that are not set are none.
pub(super) fn limit_disk(directory: &Directory, disk: Disk, limit: &IoLimit) -> Result<()> {
    let Disk { major, minor } = disk;
    let rates = [
        ("rbps", "read_bps", limit.read_bytes),
        ("wbps", "write_bps", limit.write_bytes),
        ("riops", "read_iops", limit.read_operations),
        ("wiops", "write_iops", limit.write_operations),
    ];
    let done = match directory.version {
        Version::V2 => {
            let rates = rates.map(|(name, _, rate)| format!(" {name}={}", or_max(rate)));
            directory.write("io.max", &format!("{major}:{minor}{}", rates.concat()))
        }
        Version::V1 => rates.into_iter().try_for_each(|(_, name, rate)| {
            let file = format!("blkio.throttle.{name}_device");
            directory.write(&file, &format!("{major}:{minor} {}", rate.unwrap_or_default()))
        }),
    };
    done.map_err(|error| {
        let why = format!("{:?} is no whole disk", limit.device);
        instead_of(Errno::ENODEV, error, || Error::invalid("io limit", why))
    })
}
