//! The cgroups of a sandbox: one in each hierarchy that has something to give, and below those that
//! count, a leaf for each job that runs.
//!
//! A job joins its leaf itself, by descriptors that the host has opened, before it does anything
//! else. Leaves are used again once nothing is in them any more. Names below the parent begin with
//! [`PREFIX`]; what is written down of them in the sandbox's directory is enough to remove them.

mod files;
mod hierarchy;
mod oom;

use std::fs;
use std::io::Write;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
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
use hierarchy::{Controller, Place, Version, nowhere, places};
use oom::Notice;

/// What the names of a sandbox's cgroups begin with.
const PREFIX: &str = "adl-";

/// How long the kernel may take to take out of a cgroup what has ended.
const EMPTYING: Duration = Duration::from_secs(5);
/// How often that is looked at: there is no message of it in version 1.
const BETWEEN_LOOKS: Duration = Duration::from_millis(1);

/// What there will be of cgroups, and what holds without any.
#[derive(Debug)]
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
    /// Finds out how limits can hold; `parent` is what the cgroups are to be below.
    pub(crate) fn new(limits: &Limits, parent: Option<&Path>) -> Result<Self> {
        let needed = needed(limits);
        let wanted = if limits.accounting { &Controller::WITH_LIMITS[..] } else { &needed };
        let (places, missing) = places(&needed, wanted, parent)?;
        let mut limits = limits.clone();
        let mut pid_max = None;
        for controller in missing {
            match (controller, limits.pids) {
                (Controller::Pids, Some(pids)) if pids >= LEAST_PID_MAX => {
                    pid_max = limits.pids.take();
                }
                _ => return Err(nowhere(controller)),
            }
        }
        if places.is_empty() && !limits.is_none() {
            return Err(Error::Unsupported {
                what: "a cgroup of the sandbox's own".to_owned(),
                why: "there is no hierarchy in which this process may make any".to_owned(),
                fix: "`man 7 cgroups` tells how they are mounted and delegated".to_owned(),
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
}

/// The cgroups of one sandbox.
#[derive(Debug)]
pub(crate) struct Group {
    parts: Vec<Part>,
    leaves: Mutex<Leaves>,
    /// For what is no program.
    of_tasks: OnceLock<Leaf>,
    /// Where version 1 has to be helped to end a job that ran out of memory.
    notice: Option<Notice>,
}

#[derive(Debug, Default)]
struct Leaves {
    /// All of jobs.
    made: Vec<Arc<Leaf>>,
    /// Those of no job. Something that a job has left may be in them.
    free: Vec<Arc<Leaf>>,
    /// One that was free, and is ready.
    next: Option<Start>,
}

/// The sandbox's cgroup in one hierarchy.
#[derive(Debug)]
struct Part {
    directory: Directory,
    controllers: Vec<Controller>,
}

impl Part {
    /// Whether it counts anything that is told of a job. With version 1, limits of a disk do not hold
    /// for what is below a cgroup.
    fn has_leaves(&self) -> bool {
        let counts = |c: &Controller| {
            matches!(c, Controller::CpuTime | Controller::Memory | Controller::Pids)
        };
        self.directory.version == Version::V2 || self.controllers.iter().any(counts)
    }

    fn has(&self, controller: Controller) -> bool {
        self.controllers.contains(&controller)
    }
}

/// A job's cgroups.
#[derive(Debug)]
pub(crate) struct Leaf {
    /// In the order of the group's parts.
    parts: Vec<LeafPart>,
    /// How many kills it had counted when the job began, or when those were dealt with.
    kills: AtomicU64,
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

/// A leaf, and what it had counted before the job.
#[derive(Debug)]
struct Start {
    leaf: Arc<Leaf>,
    counted: Stats,
    /// Whether its peak is that of the job.
    has_peak: bool,
}

/// The leaf of a job, which is another's when this is dropped and nothing is in it any more.
#[derive(Debug)]
pub(crate) struct Seat {
    group: Arc<Group>,
    start: Start,
}

impl Seat {
    pub(crate) fn leaf(&self) -> &Leaf {
        &self.start.leaf
    }

    /// What the job has used.
    pub(crate) fn stats(&self) -> Result<Stats> {
        let now = self.group.count(&self.start.leaf, Count::OfJob)?;
        Ok(now.since(&self.start.counted, self.start.has_peak))
    }

    /// Whether the kernel has killed any of it because memory ran out.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        // What can't be read is not told.
        let kills = self.group.oom_kills(&self.start.leaf).unwrap_or_default();
        kills > self.start.counted.oom_kills.unwrap_or_default()
    }
}

impl Drop for Seat {
    fn drop(&mut self) {
        self.group.leaves().free.push(Arc::clone(&self.start.leaf));
    }
}

impl Group {
    /// Makes the cgroups of a sandbox; `record` is told of them before they are there.
    pub(crate) fn create(
        plan: Plan,
        record: impl FnOnce(&[PathBuf]) -> Result<()>,
    ) -> Result<Arc<Self>> {
        let Plan { places, limits, .. } = plan;
        let limits = &limits;
        let name = unique_name(PREFIX);
        let paths: Vec<_> = places.iter().map(|place| place.parent.join(&name)).collect();
        record(&paths)?;
        let mut this = Self {
            parts: Vec::new(),
            leaves: Mutex::default(),
            of_tasks: OnceLock::new(),
            notice: None,
        };
        let made = places.into_iter().zip(paths).try_for_each(|(place, path)| {
            let directory = Directory::make(&place.parent, path, place.version)?;
            this.parts.push(Part { directory, controllers: place.controllers });
            Ok(())
        });
        let made = made
            .and_then(|()| this.prepare(limits))
            .and_then(|()| this.limit(limits, None))
            .and_then(|()| this.ask_for_notice());
        match made {
            Ok(()) => {
                let this = Arc::new(this);
                if let Some(notice) = &this.notice {
                    notice.is_for(&this);
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

    fn ask_for_notice(&mut self) -> Result<()> {
        if let Some(Part { directory, .. }) = self.part(Controller::Memory)
            && directory.version == Version::V1
        {
            self.notice = Some(Notice::of(directory)?);
        }
        Ok(())
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

    /// Sets the limits, instead of those of `before`.
    pub(crate) fn limit(&self, limits: &Limits, before: Option<&Limits>) -> Result<()> {
        if let Some(missing) = needed(limits).into_iter().find(|c| self.part(*c).is_none()) {
            return Err(Error::Unsupported {
                what: format!("a limit by the cgroup controller {}", missing.name(Version::V2)),
                why: "the sandbox has no cgroup of that".to_owned(),
                fix: "create it with such a limit, or with `Limits::accounting`".to_owned(),
            });
        }
        for part in &self.parts {
            for controller in &part.controllers {
                files::limit(&part.directory, *controller, limits, before)?;
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
        let free = match leaves.next.take() {
            Some(start) => Some(start),
            None => self.take_free(&mut leaves)?,
        };
        let start = match free {
            Some(start) => start,
            None => {
                let leaf = Arc::new(self.make_leaf(&format!("job-{}", leaves.made.len()))?);
                leaves.made.push(Arc::clone(&leaf));
                Start { leaf, counted: Stats::default(), has_peak: true }
            }
        };
        Ok(Seat { group: Arc::clone(self), start })
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
    fn take_free(&self, leaves: &mut Leaves) -> Result<Option<Start>> {
        let Some(place) = leaves.free.iter().rposition(|leaf| leaf.is_empty()) else {
            return Ok(None);
        };
        let leaf = leaves.free.swap_remove(place);
        let counted = self.count(&leaf, Count::Sums)?;
        leaf.kills.store(counted.oom_kills.unwrap_or_default(), Ordering::Relaxed);
        let has_peak = self.leaf_of(&leaf, Controller::Memory).is_some_and(files::forget_peak);
        Ok(Some(Start { leaf, counted, has_peak }))
    }

    /// Ends each job of which the kernel has killed a process because memory ran out, as version 2 does
    /// by itself; whether there was any.
    fn end_where_memory_ran_out(&self) -> bool {
        // Held, so that what is in a leaf is the job's that has counted the kill.
        let leaves = self.leaves();
        let mut found = false;
        for leaf in &leaves.made {
            let kills = self.oom_kills(leaf).unwrap_or_default();
            if kills <= leaf.kills.load(Ordering::Relaxed) {
                continue;
            }
            found = true;
            let unified = self.leaf_of(leaf, Controller::Freezer);
            if let Some(unified) = unified.filter(|directory| directory.version == Version::V2)
                // On a kernel before 5.14, it is the one process that is killed.
                && unified.write("cgroup.kill", "1").is_ok()
            {
                leaf.kills.store(kills, Ordering::Relaxed);
            }
        }
        found
    }

    /// The leaf for what is done for the caller and is no program.
    pub(crate) fn leaf_of_tasks(&self) -> Result<&Leaf> {
        if let Some(leaf) = self.of_tasks.get() {
            return Ok(leaf);
        }
        let _leaves = self.leaves();
        // Another thread may have been quicker.
        if let Some(leaf) = self.of_tasks.get() {
            return Ok(leaf);
        }
        // No name of a file that cgroups have.
        let leaf = self.make_leaf("builtins")?;
        Ok(self.of_tasks.get_or_init(|| leaf))
    }

    fn make_leaf(&self, name: &str) -> Result<Leaf> {
        let parts = self.parts.iter().map(|part| {
            if !part.has_leaves() {
                return Ok(LeafPart { directory: None, procs: part.directory.procs()? });
            }
            let directory = part.directory.make_below(name)?;
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
        Ok(Leaf { parts: parts.collect::<Result<_>>()?, kills: AtomicU64::new(0) })
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
        remove_all(self.parts.iter().map(|part| part.directory.path()))
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
    remove_all(paths.iter().filter(is_ours).map(PathBuf::as_path))
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
