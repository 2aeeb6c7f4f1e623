//! The cgroups of jobs, below those of their sandbox.
//!
//! A job joins its leaf itself, before it does anything else, by files that the host has opened.
//! The next in it comes when nothing is in it any more: a job's leftovers keep it. Leaves are known
//! by their numbers, and held open by nothing.

use std::collections::{HashMap, VecDeque};
use std::fs;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, Weak};
use std::time::Duration;

use adl_protocol::CpuLimit;

use super::count::{self, Peak};
use super::directory::Directory;
use super::hierarchy::{Controller, Version};
use super::{Group, Part, limit, processes};
use crate::cgroup::stats::Stats;
use crate::config::limits::Limits;
use crate::error::{Error, Result};
use crate::sys;
use crate::sys::lock::lock;

/// The name of the one for what is done for the caller and is no program. No name of a file that
/// cgroups have.
const BUILTINS: &str = "builtins";

/// At how many that are of no job is looked before one more is made.
const LOOKS: usize = 4;

fn name_of(number: usize) -> String {
    format!("job-{number}")
}

#[derive(Debug, Default)]
pub(super) struct Leaves {
    /// For each how many kills it had counted when its job began, or when those were dealt with.
    kills: Vec<u64>,
    /// Those of no job, in which leftovers may be; what has become free last comes first.
    free: VecDeque<usize>,
    job_cgroups: HashMap<usize, Weak<JobCgroup>>,
    has_builtins: bool,
    /// Those of the sandbox.
    limits: Limits,
    pub(super) state: State,
}

/// What the jobs of a sandbox may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub(super) enum State {
    #[default]
    Run,
    Stand,
    /// All of it was killed, or is about to be.
    End,
}

impl State {
    /// Refuses to start what would not go on.
    fn check(self) -> Result<()> {
        match self {
            Self::Run => Ok(()),
            Self::Stand => Err(Error::Busy {
                what: "the sandbox".to_owned(),
                by: "a freeze, until it is thawed".to_owned(),
            }),
            Self::End => Err(Error::SandboxDied),
        }
    }
}

/// The leaf of a job, and what it has counted of it.
#[derive(Debug)]
pub(crate) struct JobCgroup {
    group: Arc<Group>,
    number: usize,
    /// How many kills it had counted before.
    kills: u64,
    /// What it had counted before, where anyone may ask what the job has used. Until the end of
    /// that.
    begin: Mutex<Option<(Stats, Peak)>>,
    /// Whether the job may still have to join it.
    is_expected: AtomicBool,
    /// What is told after the end of the job.
    last: OnceLock<Last>,
}

/// The file by which init sees how much CPU time a job has used, and when that is too much.
pub(crate) type CpuFile = (fs::File, CpuLimit);

#[derive(Debug)]
struct Last {
    stats: Stats,
    ran_out_of_memory: bool,
}

/// What a job writes itself into, to be in its cgroups.
#[derive(Debug, Default)]
pub(crate) struct JoinFiles(Vec<fs::File>);

impl JoinFiles {
    /// Its descriptors, for init.
    pub(crate) fn descriptors(&self) -> impl Iterator<Item = RawFd> {
        self.0.iter().map(AsRawFd::as_raw_fd)
    }

    /// How many they are.
    pub(crate) fn count(&self) -> u8 {
        u8::try_from(self.0.len()).unwrap_or(u8::MAX)
    }
}

impl JobCgroup {
    /// Says whether a job is under way that has not joined yet, so that no other is let in before
    /// it.
    pub(crate) fn expect(&self, is_expected: bool) {
        self.is_expected.store(is_expected, Ordering::Relaxed);
    }

    /// What the job has used: until its end, once that is known.
    pub(crate) fn stats(&self) -> Result<Stats> {
        let told = || self.last.get().map(|last| last.stats.clone());
        // Its cgroups may go while they are read, after its end is known.
        told().map_or_else(|| self.count().or_else(|error| told().ok_or(error)), Ok)
    }

    fn count(&self) -> Result<Stats> {
        let begin = lock(&self.begin);
        let Some((before, peak)) = &*begin else { return Ok(Stats::default()) };
        let mut now = self.group.count_of(self.number)?;
        now.memory_peak = peak.read(now.memory_peak)?;
        Ok(now.since(before))
    }

    /// How init finds out that it has used the CPU time that it may, before it has begun.
    pub(crate) fn cpu_limit(&self, limit: Duration) -> Result<CpuFile> {
        let leaf = self.group.leaf_with(self.number, Controller::CpuTime);
        let leaf = leaf.ok_or_else(super::no_cpu_time)?;
        // The unit of each, in ns.
        let (name, unit) = match leaf.version {
            Version::V1 => ("cpuacct.usage", 1),
            Version::V2 => ("cpu.stat", 1000),
        };
        let before = lock(&self.begin).as_ref().and_then(|(before, _)| before.cpu_time);
        let most = (before.unwrap_or_default() + limit).as_nanos().div_ceil(unit);
        let per_ms = u64::from(sys::processors()) * 1_000_000 / u64::try_from(unit).unwrap_or(1);
        let most = u64::try_from(most).unwrap_or(u64::MAX);
        Ok((leaf.open(name, fs::OpenOptions::new().read(true))?, CpuLimit { most, per_ms }))
    }

    /// Whether the kernel has killed any of it because memory ran out.
    pub(crate) fn ran_out_of_memory(&self) -> bool {
        match self.last.get() {
            Some(last) => last.ran_out_of_memory,
            None => self.group.oom_kills_of(self.number) > self.kills,
        }
    }

    /// Ends the count: the job has ended. Its leaf is another's when nothing is in it any more.
    pub(crate) fn settle(&self) {
        self.last.get_or_init(|| {
            let ran_out_of_memory = self.ran_out_of_memory();
            // What can't be read is not told.
            let last = Last { stats: self.count().unwrap_or_default(), ran_out_of_memory };
            *lock(&self.begin) = None;
            self.give_back();
            last
        });
    }

    fn give_back(&self) {
        // In a fork, another thread of its parent may have held the lock.
        if self.group.owner.is_this_process() {
            let mut leaves = self.group.leaves();
            leaves.job_cgroups.remove(&self.number);
            leaves.free.push_front(self.number);
        }
    }
}

impl Drop for JobCgroup {
    fn drop(&mut self) {
        // A job that no one asks about any more goes on. Of one that may still have to join, the
        // leaf is no one else's.
        if self.last.get().is_none() && !*self.is_expected.get_mut() {
            self.give_back();
        }
    }
}

impl Group {
    pub(super) fn leaves(&self) -> MutexGuard<'_, Leaves> {
        lock(&self.leaves)
    }

    /// A leaf for a job, and how to come into it; `counted` is whether anyone may ask what it has
    /// used, which takes a while to find out.
    pub(crate) fn job_cgroup(
        self: &Arc<Self>,
        counted: bool,
    ) -> Result<(Arc<JobCgroup>, JoinFiles)> {
        let mut leaves = self.leaves();
        leaves.state.check()?;
        let (number, is_new) = match self.find_free(&mut leaves) {
            Some(number) => (number, false),
            None => (leaves.kills.len(), true),
        };
        let ready = self.ready(number, is_new, counted, &leaves.limits);
        let (files, kills, begin) = ready.inspect_err(|_| {
            if is_new {
                self.remove_leaf(&name_of(number));
            } else {
                leaves.free.push_front(number);
            }
        })?;
        match leaves.kills.get_mut(number) {
            Some(dealt_with) => *dealt_with = kills,
            None => leaves.kills.push(kills),
        }
        let (is_expected, last) = (AtomicBool::new(false), OnceLock::new());
        let (group, begin) = (Arc::clone(self), Mutex::new(begin));
        let job_cgroup = Arc::new(JobCgroup { group, number, kills, begin, is_expected, last });
        leaves.job_cgroups.insert(number, Arc::downgrade(&job_cgroup));
        Ok((job_cgroup, JoinFiles(files)))
    }

    /// Finds a leaf that was used, and in which nothing is any more.
    fn find_free(&self, leaves: &mut Leaves) -> Option<usize> {
        for _ in 0..LOOKS.min(leaves.free.len()) {
            let number = leaves.free.pop_front()?;
            if self.is_empty(number) {
                return Some(number);
            }
            leaves.free.push_back(number);
        }
        None
    }

    /// Makes a leaf ready for a job: how to come into it, and what it has counted.
    #[expect(clippy::type_complexity, reason = "what a cgroup of a job has of it")]
    fn ready(
        &self,
        number: usize,
        is_new: bool,
        counted: bool,
        limits: &Limits,
    ) -> Result<(Vec<fs::File>, u64, Option<(Stats, Peak)>)> {
        if is_new {
            self.make_leaf(&name_of(number))?;
            self.limit_leaf(number, limits, None)
                .and_then(|()| self.ask_for_notice_of(number))
                .inspect_err(|_| self.remove_leaf(&name_of(number)))?;
            let begin = counted.then(|| (Stats::default(), Peak::OfCgroup));
            return Ok((self.open_to_join(&name_of(number), |_| true)?, 0, begin));
        }
        let begin = if counted {
            let memory = self.leaf_with(number, Controller::Memory);
            let peak = memory.map_or(Peak::Unknown, |memory| Peak::since_now(&memory));
            Some((self.count_of(number)?, peak))
        } else {
            None
        };
        Ok((self.open_to_join(&name_of(number), |_| true)?, self.oom_kills_of(number), begin))
    }

    /// The way into the leaf for what is done for the caller and is no program.
    pub(crate) fn join_files_of_builtins(&self) -> Result<JoinFiles> {
        let mut leaves = self.leaves();
        leaves.state.check()?;
        if !leaves.has_builtins {
            self.make_leaf(BUILTINS)?;
            leaves.has_builtins = true;
        }
        // What is no program looks for nothing.
        Ok(JoinFiles(self.open_to_join(BUILTINS, |part| !part.only_shown)?))
    }

    /// The ways into what is the root of all that jobs see.
    ///
    /// What they see in `/sys/fs/cgroup` are the sandbox's own cgroups, whose limits hold, and
    /// `/proc/self/cgroup` is to lead there. With version 1, where programs also compare the roots
    /// of mounts, the root is what is mounted, and the leaf of a job below it shows the limits as
    /// well. With version 2 no process can be in what has leaves: see
    /// [`Group::has_cgroup_namespaces`].
    pub(crate) fn roots(&self) -> Result<JoinFiles> {
        if self.has_cgroup_namespaces() {
            return Ok(JoinFiles::default());
        }
        let may_be_in = |part: &&Part| {
            let counts = |c: &Controller| !matches!(c, Controller::CpuTime | Controller::Freezer);
            part.directory.version == Version::V1 || !part.controllers.iter().any(counts)
        };
        let parts = self.parts.iter().filter(may_be_in);
        parts.map(|part| part.directory.open_to_join()).collect::<Result<_>>().map(JoinFiles)
    }

    /// Whether the leaf of each job is the root of what it sees: its path is `/` then, where the
    /// sandbox's own cgroup is mounted.
    pub(crate) fn has_cgroup_namespaces(&self) -> bool {
        self.is_unified()
    }

    /// Makes one in each part that has any.
    fn make_leaf(&self, name: &str) -> Result<()> {
        let made = self.parts.iter().filter(|part| part.has_leaves()).try_for_each(|part| {
            let leaf = Directory::make(part.directory.path().join(name), part.directory.version)?;
            // What is done for the caller are many things, of which each ends for itself.
            let is_job = name != BUILTINS;
            if is_job && part.has(Controller::Memory) && leaf.version == Version::V2 {
                leaf.write("memory.oom.group", "1")?;
            }
            if part.has(Controller::Memory) && leaf.version == Version::V1 {
                limit::count_buffers(&leaf)?;
            }
            Ok(())
        });
        made.inspect_err(|_| self.remove_leaf(name))
    }

    /// Removes one that no one has come into.
    fn remove_leaf(&self, name: &str) {
        for part in self.parts.iter().filter(|part| part.has_leaves()) {
            // It may be there in some of them only.
            let _ = fs::remove_dir(part.directory.path().join(name));
        }
    }

    fn open_to_join(&self, name: &str, which: fn(&Part) -> bool) -> Result<Vec<fs::File>> {
        let open = |part: &Part| match part.has_leaves() {
            true => part.directory.below(name).open_to_join(),
            false => part.directory.open_to_join(),
        };
        self.parts.iter().filter(|part| which(part)).map(open).collect()
    }

    /// Sets the limits that programs look for in their own cgroup, where that is a leaf of version
    /// 1, instead of those of `before`. They hold for the sandbox as a whole, above.
    fn limit_leaf(&self, number: usize, limits: &Limits, before: Option<&Limits>) -> Result<()> {
        for (part, leaf) in self.parts_of(number).filter(|(_, leaf)| leaf.version == Version::V1) {
            let shown = part.controllers.iter();
            let shown = shown.filter(|c| matches!(c, Controller::Memory | Controller::Pids));
            shown.copied().try_for_each(|c| limit::limit(&leaf, c, limits, before))?;
        }
        Ok(())
    }

    /// Sets them in all leaves that there are and come to be.
    pub(super) fn limit_leaves(&self, limits: &Limits) -> Result<()> {
        let mut leaves = self.leaves();
        let before = std::mem::replace(&mut leaves.limits, limits.clone());
        (0..leaves.kills.len())
            .try_for_each(|number| self.limit_leaf(number, limits, Some(&before)))
    }

    /// A leaf of version 1 that is at its limit does not tell of that above it.
    fn ask_for_notice_of(&self, number: usize) -> Result<()> {
        match (&*lock(&self.notice), self.leaf_with(number, Controller::Memory)) {
            (Some(notice), Some(leaf)) => notice.ask(&leaf),
            _ => Ok(()),
        }
    }

    /// A leaf in each part that has any.
    fn parts_of(&self, number: usize) -> impl Iterator<Item = (&Part, Directory)> {
        let parts = self.parts.iter().filter(|part| part.has_leaves());
        parts.map(move |part| (part, part.directory.below(&name_of(number))))
    }

    fn leaf_with(&self, number: usize, controller: Controller) -> Option<Directory> {
        self.parts_of(number).find(|(part, _)| part.has(controller)).map(|(_, leaf)| leaf)
    }

    /// Whether nothing is in a leaf. What is in it in one hierarchy is in it in all.
    fn is_empty(&self, number: usize) -> bool {
        // Version 2 is asked, which takes less time.
        self.parts_of(number).last().is_none_or(|(_, leaf)| leaf.is_empty())
    }

    fn oom_kills_of(&self, number: usize) -> u64 {
        let memory = self.leaf_with(number, Controller::Memory);
        let kills = memory.and_then(|memory| count::oom_kills(&memory).ok().flatten());
        kills.unwrap_or_default()
    }

    /// All that a leaf has counted.
    fn count_of(&self, number: usize) -> Result<Stats> {
        let mut stats = Stats::default();
        for (part, leaf) in self.parts_of(number) {
            for controller in &part.controllers {
                count::count(&leaf, *controller, &mut stats)?;
            }
        }
        Ok(stats)
    }

    /// How many processes were killed because memory ran out, in all leaves.
    pub(super) fn oom_kills(&self) -> u64 {
        let count = self.leaves().kills.len();
        let memory = self.parts.iter().find(|part| part.has(Controller::Memory));
        let of_builtins = memory.map(|part| count::oom_kills(&part.directory.below(BUILTINS)));
        let of_builtins = of_builtins.and_then(|kills| kills.ok().flatten()).unwrap_or_default();
        (0..count).map(|number| self.oom_kills_of(number)).sum::<u64>() + of_builtins
    }

    /// How many processes were refused, wherever that is counted.
    pub(super) fn refused(&self) -> Option<u64> {
        let pids = &self.parts.iter().find(|part| part.has(Controller::Pids))?.directory;
        let of_all = count::refused(pids).ok().flatten()?;
        let count = self.leaves().kills.len();
        let leaves = (0..count).filter_map(|number| self.leaf_with(number, Controller::Pids));
        let of_leaf = |leaf: Directory| count::refused(&leaf).ok().flatten().unwrap_or_default();
        Some(leaves.chain([pids.below(BUILTINS)]).map(of_leaf).sum::<u64>() + of_all)
    }

    /// Ends each job of which the kernel has killed a process because memory ran out, as version 2
    /// does by itself.
    pub(super) fn end_where_memory_ran_out(&self) {
        // Held, so that what is in a leaf is the job's that has counted the kill.
        let mut leaves = self.leaves();
        for (number, dealt_with) in leaves.kills.iter_mut().enumerate() {
            let kills = self.oom_kills_of(number);
            if kills <= *dealt_with {
                continue;
            }
            // The last is that of version 2, if there is one.
            let leaf = self.parts_of(number).last();
            if leaf.is_some_and(|(_, leaf)| processes::kill(&leaf).is_ok()) {
                *dealt_with = kills;
            }
        }
    }

    /// Ends the count of all jobs: the sandbox has ended.
    pub(crate) fn settle(&self) {
        let job_cgroups: Vec<_> =
            self.leaves().job_cgroups.values().filter_map(Weak::upgrade).collect();
        for job_cgroup in job_cgroups {
            job_cgroup.settle();
        }
        // Whoever still asks holds none of what was the sandbox's.
        drop(lock(&self.notice).take());
    }
}
