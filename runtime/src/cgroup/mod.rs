//! The cgroups of a sandbox, one in each hierarchy, and below them a leaf for each job.
//!
//! A hierarchy that has nothing to give has none, and there are leaves in those that count.
//!
//! Names below the parent begin with [`PREFIX`]; what is written down of them in the sandbox's
//! directory is enough to remove them.

mod count;
mod directory;
mod hierarchy;
mod leaves;
mod limit;
mod oom;
mod processes;
pub(crate) mod stats;

use std::collections::BTreeSet;
use std::fs;
use std::io::Write;
use std::path::{Component, Path, PathBuf};

use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::open;
use nix::sys::stat::Mode;
use nix::sys::statfs::{CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC, fstatfs};
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::cgroup::stats::Stats;
use crate::config::limits::{IoLimit, Limits};
use crate::error::{Error, Result};
use crate::sys::lock::lock;
use crate::sys::open::DIRECTORY;
use crate::sys::owner::Owner;
use crate::sys::unique::unique_name;

use directory::Directory;
use hierarchy::{Controller, Place, Version, nowhere, places};
pub(crate) use leaves::{CpuFile, JobCgroup, JoinFiles};
use leaves::{Leaves, State};
use limit::Disk;
use oom::Notice;

/// What the names of a sandbox's cgroups begin with.
const PREFIX: &str = "adl-";

/// How long the kernel may take to take out of a cgroup what has ended.
const EMPTYING: Duration = Duration::from_secs(5);
/// How often that is looked at: there is no message of it in version 1.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// What a sandbox has of cgroups in each of its lives, and what holds without any.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    places: Vec<Place>,
    /// Those that hold by cgroups.
    limits: Limits,
    /// The bound of processes where no controller has one.
    pid_max: Option<u32>,
}

/// The least that the largest process id can be.
const LEAST_PID_MAX: u32 = 301;

impl Plan {
    /// Finds out how limits can hold; `parent` is what the cgroups are to be below, `cpu_time`
    /// whether that of each job is to be counted, `is_shown` whether programs inside are to find
    /// the limits.
    pub(crate) fn new(
        limits: &Limits,
        parent: Option<&Path>,
        cpu_time: bool,
        is_shown: bool,
    ) -> Result<Self> {
        let mut needed = needed(limits);
        needed.extend(cpu_time.then_some(Controller::CpuTime));
        // What limits a parent is to hold for the sandbox, too.
        let all = limits.accounting || parent.is_some();
        let wanted = if all { &Controller::WITH_LIMITS[..] } else { &needed };
        let (places, missing) = places(&needed, wanted, parent, is_shown)?;
        let mut limits = limits.clone();
        let mut pid_max = None;
        for controller in missing {
            match (controller, limits.pids) {
                (Controller::Pids, Some(pids)) if pids >= LEAST_PID_MAX => {
                    pid_max = limits.pids.take();
                }
                _ => return Err(nowhere(controller, parent)),
            }
        }
        if places.is_empty() && (parent.is_some() || !limits.is_none()) {
            return Err(Error::Unsupported {
                what: match parent {
                    Some(parent) => format!("a cgroup in {parent:?}"),
                    None => "a cgroup of the sandbox's own".to_owned(),
                },
                why: "there is no hierarchy in which this process may make any".to_owned(),
                fix: match nix::unistd::geteuid().is_root() {
                    true => {
                        "mount one that can be written to: mount -t cgroup2 cgroup2 /sys/fs/cgroup"
                    }
                    false => {
                        "have one delegated: systemd-run --user --scope -p Delegate=yes PROGRAM"
                    }
                }
                .to_owned(),
            });
        }
        Ok(Self { places, limits, pid_max })
    }

    /// The largest process id that there is to be.
    pub(crate) fn pid_max(&self) -> Option<u32> {
        self.pid_max
    }

    /// Whether there is no cgroup to make.
    pub(crate) fn is_empty(&self) -> bool {
        self.places.is_empty()
    }

    /// Sets other limits, of what runs, too.
    pub(crate) fn change(&mut self, limits: &Limits, group: &Group) -> Result<()> {
        let mut limits = limits.clone();
        if let Some(pid_max) = self.pid_max
            && limits.pids.take() != Some(pid_max)
        {
            return Err(Error::Unsupported {
                what: "another limit of processes".to_owned(),
                why: "there is no cgroup controller pids, and the PID namespace is the bound"
                    .to_owned(),
                fix: "create the sandbox with that limit".to_owned(),
            });
        }
        group.unless_ended(group.limit(&limits, Some(&self.limits)))?;
        self.limits = limits;
        Ok(())
    }
}

/// The cgroups of one life of a sandbox.
#[derive(Debug)]
pub(crate) struct Group {
    parts: Vec<Part>,
    leaves: Mutex<Leaves>,
    /// Where version 1 has to be helped to end a job that ran out of memory.
    notice: Mutex<Option<Notice>>,
    /// The disks that have limits.
    disks: Mutex<BTreeSet<Disk>>,
    owner: Owner,
}

/// The sandbox's cgroup in one hierarchy.
#[derive(Debug)]
struct Part {
    directory: Directory,
    controllers: Vec<Controller>,
    /// By what its hierarchy is known inside.
    names: Vec<&'static str>,
    /// Whether it is for programs inside to find, and no limit is to be set in it.
    only_shown: bool,
}

impl Part {
    /// Whether there is a leaf for each job: where something is counted that is told of a job. With
    /// version 1, limits of a disk do not hold for what is below a cgroup, and each would need a
    /// set of CPUs of its own.
    fn has_leaves(&self) -> bool {
        let counts = |c: &Controller| {
            matches!(c, Controller::CpuTime | Controller::Memory | Controller::Pids)
        };
        let stands_alone = |c: &Controller| matches!(c, Controller::Io | Controller::Cpuset);
        self.directory.version == Version::V2
            || (self.controllers.iter().any(counts) && !self.controllers.iter().any(stands_alone))
    }

    fn has(&self, controller: Controller) -> bool {
        self.controllers.contains(&controller)
    }
}

impl Group {
    /// Makes the cgroups of a sandbox; `record` is told of them before they are there.
    pub(crate) fn create(
        plan: &Plan,
        record: impl FnOnce(&[PathBuf]) -> Result<()>,
    ) -> Result<Arc<Self>> {
        let Plan { places, limits, .. } = plan;
        let name = unique_name(PREFIX);
        let paths: Vec<_> = places.iter().map(|place| place.parent.join(&name)).collect();
        record(&paths)?;
        let mut this = Self {
            parts: Vec::new(),
            leaves: Mutex::default(),
            notice: Mutex::default(),
            disks: Mutex::default(),
            owner: Owner::this_process(),
        };
        let made = places.iter().zip(paths).try_for_each(|(place, path)| {
            let directory = Directory::make(path, place.version)?;
            let (controllers, names) = (place.controllers.clone(), place.names.clone());
            let only_shown = place.only_shown;
            this.parts.push(Part { directory, controllers, names, only_shown });
            Ok(())
        });
        let made = made
            .and_then(|()| this.prepare(limits))
            .and_then(|()| this.limit(limits, None))
            .and_then(|()| this.ask_for_notice());
        match made {
            Ok(()) => {
                let this = Arc::new(this);
                if let Some(notice) = &*lock(&this.notice) {
                    notice.watch_for(&this);
                }
                Ok(this)
            }
            Err(error) => {
                // The error that is told is the first one.
                let _ = this.remove();
                Err(error)
            }
        }
    }

    fn ask_for_notice(&self) -> Result<()> {
        if let Some(Part { directory, .. }) = self.part(Controller::Memory)
            && directory.version == Version::V1
        {
            *lock(&self.notice) = Some(Notice::of(directory)?);
        }
        Ok(())
    }

    /// Has each part be ready for leaves.
    fn prepare(&self, limits: &Limits) -> Result<()> {
        for Part { directory, controllers, .. } in &self.parts {
            match directory.version {
                Version::V2 => {
                    let counted = [Controller::Io, Controller::Memory, Controller::Pids];
                    let names = counted.into_iter().filter(|c| controllers.contains(c));
                    let names: Vec<_> =
                        names.map(|c| format!("+{}", c.name(Version::V2))).collect();
                    if !names.is_empty() {
                        directory.write("cgroup.subtree_control", &names.join(" "))?;
                    }
                }
                // It takes no process before it is told where those may run.
                Version::V1 if controllers.contains(&Controller::Cpuset) => {
                    for name in ["cpuset.mems", "cpuset.cpus"] {
                        if name == "cpuset.mems" || limits.cpuset.is_none() {
                            directory.write(name, &directory.read_of_parent(name)?)?;
                        }
                    }
                }
                Version::V1 => {}
            }
        }
        Ok(())
    }

    /// Sets the limits, instead of those of `before`.
    pub(crate) fn limit(&self, limits: &Limits, before: Option<&Limits>) -> Result<()> {
        if let Some(missing) = needed(limits).into_iter().find(|c| self.part(*c).is_none()) {
            return Err(Error::Unsupported {
                what: format!("a limit by the cgroup controller {}", missing.name(Version::V2)),
                why: "the sandbox has no cgroup of that controller".to_owned(),
                fix: "create it with such a limit, or with accounting".to_owned(),
            });
        }
        // What is wrong with them shows before anything is set.
        let disks = limit::disks(&limits.io)?;
        for part in &self.parts {
            for controller in &part.controllers {
                limit::limit(&part.directory, *controller, limits, before)?;
            }
        }
        self.limit_leaves(limits)?;
        let Some(part) = self.part(Controller::Io) else { return Ok(()) };
        let mut limited = lock(&self.disks);
        for disk in limited.iter().filter(|disk| !disks.contains_key(disk)) {
            limit::limit_disk(&part.directory, *disk, &IoLimit::default())?;
        }
        for (disk, limit) in &disks {
            limited.insert(*disk);
            limit::limit_disk(&part.directory, *disk, limit)?;
        }
        limited.retain(|disk| disks.contains_key(disk));
        Ok(())
    }

    /// Whether they are of version 2 alone.
    fn is_unified(&self) -> bool {
        self.parts.iter().all(|part| part.directory.version == Version::V2)
    }

    /// Where each is, with the names of its hierarchy below `/sys/fs/cgroup`: none where there is
    /// version 2 alone, which is that itself.
    pub(crate) fn views(&self) -> Vec<(Vec<&'static str>, PathBuf)> {
        let is_unified = self.is_unified();
        let view = |Part { directory, names, .. }: &Part| {
            let names = match directory.version {
                Version::V2 if is_unified => Vec::new(),
                Version::V2 => vec!["unified"],
                Version::V1 => names.clone(),
            };
            (names, directory.path().to_owned())
        };
        self.parts.iter().map(view).collect()
    }

    fn part(&self, controller: Controller) -> Option<&Part> {
        self.parts.iter().find(|part| part.has(controller) && !part.only_shown)
    }

    /// Its controllers with the version that each is of, for people.
    pub(crate) fn found(&self) -> String {
        let mut found = Vec::new();
        for Part { directory, controllers, .. } in &self.parts {
            found.extend(controllers.iter().map(|c| match (c, directory.version) {
                (Controller::CpuTime, Version::V2) => "pressure (2)".to_owned(),
                (Controller::Freezer, Version::V2) => "freezing (2)".to_owned(),
                (_, Version::V2) => format!("{} (2)", c.name(Version::V2)),
                (_, Version::V1) => format!("{} (1)", c.name(Version::V1)),
            }));
        }
        found.join(", ")
    }

    /// Why a limit can't be had, if there is one that can't.
    pub(crate) fn missing(&self) -> Option<Error> {
        Controller::WITH_LIMITS
            .into_iter()
            .find(|c| self.part(*c).is_none())
            .map(|c| nowhere(c, None))
    }

    /// What all jobs have used.
    pub(crate) fn stats(&self) -> Result<Stats> {
        self.unless_ended(self.count_all())
    }

    /// What was read or written of the cgroups, unless they are at their end and may have gone.
    fn unless_ended<T>(&self, result: Result<T>) -> Result<T> {
        if self.leaves().state == State::End { Err(Error::SandboxDied) } else { result }
    }

    fn count_all(&self) -> Result<Stats> {
        let mut stats = Stats::default();
        for Part { directory, controllers, .. } in &self.parts {
            for controller in controllers {
                count::count(directory, *controller, &mut stats)?;
                count::count_of_all(directory, *controller, &mut stats)?;
            }
        }
        // A cgroup of version 1 does not count what was killed below it.
        if self.part(Controller::Memory).is_some_and(|part| part.directory.version == Version::V1) {
            stats.oom_kills = Some(self.oom_kills());
        }
        stats.pids_refused = self.refused();
        Ok(stats)
    }

    /// Stops all jobs where they are, or lets them go on.
    pub(crate) fn freeze(&self, frozen: bool) -> Result<()> {
        let Some(part) = self.part(Controller::Freezer) else {
            return Err(Error::Unsupported {
                what: "freezing the sandbox".to_owned(),
                why: "there is no cgroup of version 2, and no controller `freezer`".to_owned(),
                fix: "mount the one or the other".to_owned(),
            });
        };
        let (from, to) = match frozen {
            true => (State::Run, State::Stand),
            false => (State::Stand, State::Run),
        };
        self.change_state(part, to)?;
        // Another may want something else meanwhile.
        let is_over = || self.leaves().state != to;
        let done = processes::wait_frozen(&part.directory, frozen, is_over);
        match self.leaves().state {
            State::End => return Err(Error::SandboxDied),
            state if state != to => {
                let (what, by) = ("the freezer of the sandbox", "another thread, which undid this");
                return Err(Error::Busy { what: what.to_owned(), by: by.to_owned() });
            }
            _ => {}
        }
        if done.is_err() && frozen {
            // The error that is told is the first one.
            let _ = self.change_state(part, from);
        }
        done
    }

    /// Has jobs stand or go on, unless they are at their end: what version 1 has frozen can't be
    /// killed.
    fn change_state(&self, freezer: &Part, to: State) -> Result<()> {
        let mut leaves = self.leaves();
        if leaves.state == State::End {
            return Err(Error::SandboxDied);
        }
        processes::set_frozen(&freezer.directory, to == State::Stand)?;
        leaves.state = to;
        Ok(())
    }

    /// Has no job begin and none be frozen from here on, and lets go on what version 1 could not
    /// kill otherwise: all of it is about to be killed.
    pub(crate) fn end(&self) {
        self.leaves().state = State::End;
        if let Some(part) = self.part(Controller::Freezer)
            && part.directory.version == Version::V1
        {
            // If that fails, so will the wait for the end, and tell.
            let _ = processes::set_frozen(&part.directory, false);
        }
    }

    /// Removes them. All that was in them has ended, or is about to.
    pub(crate) fn remove(&self) -> Result<()> {
        remove_all(self.parts.iter().map(|part| part.directory.path()))
    }
}

/// Refuses what `/proc/self/cgroup` would not say of a cgroup.
pub(crate) fn check_parent(path: &Path) -> Result<()> {
    let is_plain = |part| matches!(part, Component::RootDir | Component::Normal(_));
    if path.is_absolute() && path.components().all(is_plain) {
        return Ok(());
    }
    Err(Error::invalid("cgroup parent", format!("{path:?} is not absolute, or contains `..`")))
}

/// Why nothing is limited or counted.
pub(crate) fn none() -> Error {
    Error::Unsupported {
        what: "counting, limiting or freezing what the sandbox does".to_owned(),
        why: "it was created without any limit, and so has no cgroup".to_owned(),
        fix: "create it with a limit, or with accounting".to_owned(),
    }
}

/// Why the CPU time of a job is not limited.
pub(crate) fn no_cpu_time() -> Error {
    Error::Unsupported {
        what: "a limit of CPU time".to_owned(),
        why: "the sandbox has no cgroup that counts that of each command".to_owned(),
        fix: "create it with a limit of CPU time for all commands, or with accounting".to_owned(),
    }
}

/// The controllers that limits need.
fn needed(limits: &Limits) -> Vec<Controller> {
    let memory = limits.memory.is_some() || limits.memory_high.is_some() || limits.swap.is_some();
    [
        (Controller::Cpu, limits.cpu.is_some() || limits.cpu_weight.is_some()),
        (Controller::Cpuset, limits.cpuset.is_some()),
        (Controller::Io, !limits.io.is_empty()),
        (Controller::Memory, memory),
        (Controller::Pids, limits.pids.is_some()),
    ]
    .into_iter()
    .filter_map(|(controller, is_needed)| is_needed.then_some(controller))
    .collect()
}

/// Removes what was written down of a sandbox's cgroups. Nothing else can be meant by that, and
/// what is no cgroup, or has another name than adl gives them, is left alone.
///
/// # Errors
/// Also where it can't be seen whether one is a cgroup: what was written down is still needed then.
pub(crate) fn remove_recorded(paths: &[PathBuf]) -> Result<()> {
    let mut ours = Vec::new();
    let mut unseen = Ok(());
    for path in paths {
        match is_ours(path) {
            Ok(true) => ours.push(path.as_path()),
            Ok(false) => {}
            // The others go all the same.
            Err(error) => unseen = unseen.and(Err(error)),
        }
    }
    remove_all(ours.into_iter()).and(unseen)
}

fn is_ours(path: &Path) -> Result<bool> {
    let name = path.file_name().and_then(|name| name.to_str());
    if check_parent(path).is_err() || !name.is_some_and(|name| name.starts_with(PREFIX)) {
        return Ok(false);
    }
    match open(path, DIRECTORY, Mode::empty()) {
        Ok(fd) => {
            let kind = fstatfs(fd).map_err(Error::at("statfs", path))?.filesystem_type();
            Ok([CGROUP_SUPER_MAGIC, CGROUP2_SUPER_MAGIC].contains(&kind))
        }
        Err(Errno::ENOENT | Errno::ENOTDIR | Errno::ELOOP) => Ok(false),
        // Its removal will tell.
        Err(_) => Ok(true),
    }
}

/// Removes each that can be, and tells what went wrong first.
fn remove_all<'a>(paths: impl Iterator<Item = &'a Path> + Clone) -> Result<()> {
    // What version 1 froze before its owner died can't end. In others there is no such file.
    for path in paths.clone() {
        let _ = fs::OpenOptions::new()
            .write(true)
            .open(path.join("freezer.state"))
            .and_then(|mut file| file.write_all(b"THAWED"));
    }
    let errors: Vec<_> = paths.filter_map(|path| remove(path).err()).collect();
    errors.into_iter().next().map_or(Ok(()), Err)
}

/// Removes a cgroup and those below it.
fn remove(path: &Path) -> Result<()> {
    let fd = match open(path, DIRECTORY, Mode::empty()) {
        Ok(fd) => fd,
        Err(Errno::ENOENT) => return Ok(()),
        Err(errno) => return Err(Error::at("open", path)(errno)),
    };
    for entry in fs::read_dir(path).map_err(Error::at("read", path))? {
        let entry = entry.map_err(Error::at("read", path))?;
        if entry.file_type().is_ok_and(|kind| kind.is_dir()) {
            let name = entry.file_name();
            remove_empty(|| unlinkat(&fd, name.as_os_str(), UnlinkatFlags::RemoveDir), path)?;
        }
    }
    remove_empty(|| unlinkat(nix::fcntl::AT_FDCWD, path, UnlinkatFlags::RemoveDir), path)
}

/// Removes what processes may still be leaving.
fn remove_empty(remove: impl Fn() -> nix::Result<()>, path: &Path) -> Result<()> {
    let begin = Instant::now();
    loop {
        match remove() {
            Ok(()) | Err(Errno::ENOENT) => return Ok(()),
            Err(Errno::EBUSY) if begin.elapsed() < EMPTYING => std::thread::sleep(BETWEEN_LOOKS),
            Err(errno) => return Err(Error::at("rmdir", path)(errno)),
        }
    }
}
