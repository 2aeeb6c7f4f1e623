//! The cgroups of a sandbox: one in each hierarchy that has something to give, and below those that
//! count, a leaf for each job that runs.
//!
//! A job joins its leaf itself, by descriptors that the host has opened, before it does anything
//! else. Leaves are used again once nothing is in them any more. Names below the parent begin with
//! [`PREFIX`]; what is written down of them in the sandbox's directory is enough to remove them.

mod files;
mod hierarchy;

use std::fs;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError};
use std::time::{Duration, Instant};

use nix::errno::Errno;
use nix::fcntl::open;
use nix::sys::stat::Mode;
use nix::unistd::{UnlinkatFlags, unlinkat};

use crate::error::{Error, Result};
use crate::limits::Limits;
use crate::sandbox::unique_name;
use crate::state::DIRECTORY;
use crate::stats::Stats;

use files::{Count, Directory};
use hierarchy::{Controller, Version, places};

/// What the names of a sandbox's cgroups begin with.
const PREFIX: &str = "adl-";

/// How long the kernel may take to take out of a cgroup what has ended.
const EMPTYING: Duration = Duration::from_secs(5);
/// How often that is looked at: there is no message of it in version 1.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// The cgroups of one sandbox.
#[derive(Debug)]
pub(crate) struct Group {
    parts: Vec<Part>,
    leaves: Mutex<Leaves>,
    /// For what is no program.
    of_tasks: OnceLock<Leaf>,
}

#[derive(Debug, Default)]
struct Leaves {
    made: usize,
    /// Those of no job. Something that a job has left may be in them.
    free: Vec<Leaf>,
    /// One of them that is ready.
    next: Option<Leaf>,
}

/// The sandbox's cgroup in one hierarchy.
#[derive(Debug)]
struct Part {
    directory: Directory,
    controllers: Vec<Controller>,
}

impl Part {
    /// Whether it counts anything that is told of a job.
    fn has_leaves(&self) -> bool {
        let counts = |c: &Controller| !matches!(c, Controller::Cpu | Controller::Cpuset);
        self.directory.version == Version::V2
            || self.controllers.iter().any(|c| counts(c) && *c != Controller::Freezer)
    }

    fn has(&self, controller: Controller) -> bool {
        self.controllers.contains(&controller)
    }
}

/// A job's cgroups, and what they had counted before it.
#[derive(Debug)]
pub(crate) struct Leaf {
    /// In the order of the group's parts; the group's own where there are none of a job.
    parts: Vec<LeafPart>,
    start: Stats,
    is_reused: bool,
}

#[derive(Debug)]
struct LeafPart {
    /// `None` where jobs join the group itself.
    directory: Option<Directory>,
    procs: OwnedFd,
}

impl Leaf {
    /// What a job writes itself into, to be in it.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = BorrowedFd<'_>> {
        self.parts.iter().map(|part| part.procs.as_fd())
    }

    fn is_empty(&self) -> bool {
        self.parts.iter().find_map(|part| part.directory.as_ref()).is_none_or(|directory| {
            directory.read("cgroup.procs").is_ok_and(|procs| procs.is_none_or(|p| p.is_empty()))
        })
    }
}

/// The leaf of a job, which is another's when this is dropped.
#[derive(Debug)]
pub(crate) struct Seat {
    group: Arc<Group>,
    leaf: Option<Leaf>,
}

impl Seat {
    pub(crate) fn leaf(&self) -> Option<&Leaf> {
        self.leaf.as_ref()
    }

    /// What the job has used.
    pub(crate) fn stats(&self) -> Result<Stats> {
        let Some(leaf) = &self.leaf else { return Ok(Stats::default()) };
        Ok(self.group.count(leaf, Count::OfJob)?.since(&leaf.start, !leaf.is_reused))
    }

    /// Whether the kernel has killed any of it because memory ran out.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        let Some(leaf) = &self.leaf else { return false };
        // What can't be read is not told.
        let kills = self.group.oom_kills(leaf).unwrap_or_default();
        kills > leaf.start.oom_kills.unwrap_or_default()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        if let Some(leaf) = self.leaf.take() {
            self.group.leaves().free.push(leaf);
        }
    }
}

impl Group {
    /// Makes the cgroups of a sandbox; `record` is told of them before they are there.
    pub(crate) fn create(
        limits: &Limits,
        parent: Option<&Path>,
        record: impl FnOnce(&[PathBuf]) -> Result<()>,
    ) -> Result<Self> {
        let needed = needed(limits);
        let wanted = if limits.accounting { &Controller::WITH_LIMITS[..] } else { &needed };
        let places = places(&needed, wanted, parent)?;
        if places.is_empty() {
            return Err(Error::Unsupported {
                what: "a cgroup of the sandbox's own".to_owned(),
                why: "there is no hierarchy in which this process may make any".to_owned(),
                fix: "`man 7 cgroups` tells how they are mounted and delegated".to_owned(),
            });
        }
        let name = unique_name(PREFIX);
        let paths: Vec<_> = places.iter().map(|place| place.parent.join(&name)).collect();
        record(&paths)?;
        let mut this =
            Self { parts: Vec::new(), leaves: Mutex::default(), of_tasks: OnceLock::new() };
        let made = places.into_iter().zip(paths).try_for_each(|(place, path)| {
            let directory = Directory::make(&place.parent, path, place.version)?;
            this.parts.push(Part { directory, controllers: place.controllers });
            Ok(())
        });
        match made.and_then(|()| this.prepare(limits)).and_then(|()| this.limit(limits, false)) {
            Ok(()) => Ok(this),
            Err(error) => {
                // The error that is told is the first one.
                let _ = this.remove();
                Err(error)
            }
        }
    }

    /// Has each part be ready for leaves.
    fn prepare(&self, limits: &Limits) -> Result<()> {
        for Part { directory, controllers } in &self.parts {
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

    /// Sets the limits; `all` is whether those that are none may have been something before.
    pub(crate) fn limit(&self, limits: &Limits, all: bool) -> Result<()> {
        if let Some(missing) = needed(limits).into_iter().find(|c| self.part(*c).is_none()) {
            return Err(Error::Unsupported {
                what: format!("a limit by the cgroup controller {}", missing.name(Version::V2)),
                why: "the sandbox has no cgroup of that".to_owned(),
                fix: "create it with such a limit, or with `Limits::accounting`".to_owned(),
            });
        }
        for part in &self.parts {
            for controller in &part.controllers {
                files::limit(&part.directory, *controller, limits, all)?;
            }
        }
        Ok(())
    }

    fn part(&self, controller: Controller) -> Option<&Part> {
        self.parts.iter().find(|part| part.has(controller))
    }

    fn leaves(&self) -> MutexGuard<'_, Leaves> {
        self.leaves.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A leaf for a job.
    pub(crate) fn seat(self: &Arc<Self>) -> Result<Seat> {
        let mut leaves = self.leaves();
        let leaf = match leaves.next.take() {
            Some(leaf) => leaf,
            None => match self.take_free(&mut leaves)? {
                Some(leaf) => leaf,
                None => self.make_leaf(&mut leaves)?,
            },
        };
        Ok(Seat { group: Arc::clone(self), leaf: Some(leaf) })
    }

    /// Makes a used leaf ready for the next job: to be called when init has something to do.
    pub(crate) fn prepare_seat(&self) {
        let mut leaves = self.leaves();
        if leaves.next.is_none() {
            // If there is none now, the next job says why.
            leaves.next = self.take_free(&mut leaves).ok().flatten();
        }
    }

    /// Takes a leaf that was used, and in which nothing is any more.
    fn take_free(&self, leaves: &mut Leaves) -> Result<Option<Leaf>> {
        let Some(place) = leaves.free.iter().rposition(Leaf::is_empty) else { return Ok(None) };
        let leaf = leaves.free.swap_remove(place);
        let start = self.count(&leaf, Count::Sums)?;
        let memory = self.leaf_of(&leaf, Controller::Memory);
        let is_reused = memory.is_none_or(|memory| !files::forget_peak(memory));
        Ok(Some(Leaf { start, is_reused, ..leaf }))
    }

    /// The leaf for what is done for the caller and is no program.
    pub(crate) fn leaf_of_tasks(&self) -> Result<&Leaf> {
        if let Some(leaf) = self.of_tasks.get() {
            return Ok(leaf);
        }
        let mut leaves = self.leaves();
        // Another thread may have been quicker.
        if let Some(leaf) = self.of_tasks.get() {
            return Ok(leaf);
        }
        let leaf = self.make_leaf(&mut leaves)?;
        Ok(self.of_tasks.get_or_init(|| leaf))
    }

    fn make_leaf(&self, leaves: &mut Leaves) -> Result<Leaf> {
        let name = leaves.made.to_string();
        leaves.made += 1;
        let parts = self.parts.iter().map(|part| {
            if !part.has_leaves() {
                return Ok(LeafPart { directory: None, procs: part.directory.procs()? });
            }
            let directory = part.directory.make_below(&name)?;
            if part.has(Controller::Cpuset) && directory.version == Version::V1 {
                for name in ["cpuset.cpus", "cpuset.mems"] {
                    directory.write(name, &directory.read_of_parent(name)?)?;
                }
            }
            if part.has(Controller::Memory) && directory.version == Version::V2 {
                directory.write("memory.oom.group", "1")?;
            }
            Ok(LeafPart { procs: directory.procs()?, directory: Some(directory) })
        });
        Ok(Leaf { parts: parts.collect::<Result<_>>()?, start: Stats::default(), is_reused: false })
    }

    fn leaf_of<'a>(&self, leaf: &'a Leaf, controller: Controller) -> Option<&'a Directory> {
        let parts = self.parts.iter().zip(&leaf.parts);
        parts.filter(|(part, _)| part.has(controller)).find_map(|(_, leaf)| leaf.directory.as_ref())
    }

    fn oom_kills(&self, leaf: &Leaf) -> Result<u64> {
        let memory = self.leaf_of(leaf, Controller::Memory);
        Ok(memory.map(files::oom_kills).transpose()?.flatten().unwrap_or_default())
    }

    /// What a leaf has counted; `what` is whether all of that, or what adds up alone.
    fn count(&self, leaf: &Leaf, what: Count) -> Result<Stats> {
        let mut stats = Stats::default();
        for (part, leaf) in self.parts.iter().zip(&leaf.parts) {
            if let Some(directory) = &leaf.directory {
                for controller in &part.controllers {
                    files::count(directory, *controller, what, &mut stats)?;
                }
            }
        }
        Ok(stats)
    }

    /// What all jobs have used.
    pub(crate) fn stats(&self) -> Result<Stats> {
        let mut stats = Stats::default();
        for part in &self.parts {
            for controller in &part.controllers {
                files::count(&part.directory, *controller, Count::OfSandbox, &mut stats)?;
            }
        }
        // A cgroup of version 1 does not count what was killed below it.
        if let Some(Part { directory, .. }) = self.part(Controller::Memory)
            && directory.version == Version::V1
        {
            let mut kills = 0;
            for leaf in directory.below()? {
                kills += files::oom_kills(&leaf)?.unwrap_or_default();
            }
            stats.oom_kills = Some(kills);
        }
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
        files::freeze(&part.directory, frozen)
    }

    /// Lets go on what version 1 could not kill otherwise.
    pub(crate) fn thaw_for_end(&self) {
        if let Some(part) = self.part(Controller::Freezer)
            && part.directory.version == Version::V1
        {
            // If that fails, so will the wait for the end, and tell.
            let _ = part.directory.write("freezer.state", "THAWED");
        }
    }

    /// Removes them. All that was in them has ended, or is about to.
    pub(crate) fn remove(&self) -> Result<()> {
        self.parts.iter().try_for_each(|part| remove(part.directory.path()))
    }
}

/// Why nothing is limited or counted.
pub(crate) fn none() -> Error {
    Error::Unsupported {
        what: "counting and limiting what the sandbox uses".to_owned(),
        why: "it was created without any limit, and so has no cgroup".to_owned(),
        fix: "create it with a limit, or with `Limits::accounting`".to_owned(),
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

/// Removes what was written down of a sandbox's cgroups. Nothing else can be meant by that.
pub(crate) fn remove_recorded(paths: &[PathBuf]) -> Result<()> {
    let is_ours = |path: &&PathBuf| {
        path.file_name().and_then(|name| name.to_str()).is_some_and(|n| n.starts_with(PREFIX))
    };
    paths.iter().filter(is_ours).try_for_each(|path| remove(path))
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
            Err(Errno::EBUSY) if begin.elapsed() < EMPTYING => {
                // Frozen by version 1 when its owner died. In others there is no such file.
                let _ = fs::write(path.join("freezer.state"), "THAWED");
                std::thread::sleep(BETWEEN_LOOKS);
            }
            Err(errno) => return Err(Error::at("rmdir", path)(errno)),
        }
    }
}
