//! `Sandbox`: what a caller asks of it, and the order of create and delete.

mod beginning;
mod beside;
pub(crate) mod blank;
mod changes;
mod children;
pub(crate) mod counts;
mod descriptors;
mod init_binary;
mod instance;
pub(crate) mod launch;
pub(crate) mod phase;
pub(crate) mod plan;
mod reset;
mod root;
mod snapshot;
mod sockets;
mod spare;

use std::os::fd::OwnedFd;
use std::sync::atomic::{AtomicBool, AtomicI32, Ordering};
use std::sync::{Arc, Mutex, MutexGuard};
use std::time::{Duration, Instant};

use tracing::field::Empty;

use crate::cgroup::stats::Stats;
use crate::cgroup::{self, Group};
use crate::config::image::{ImageConfig, ImageSays};
use crate::config::limits::Limits;
use crate::config::{Config, Upper};
use crate::error::traced::{span, traced};
use crate::error::{Error, Result};
use crate::files::{self, Files};
use crate::garbage;
use crate::job::background::Job;
use crate::job::command::Command;
use crate::job::kill_all::kill_all;
use crate::job::life::Lives;
use crate::network::ports::Ports;
use crate::sandbox::beginning::Beginning;
use crate::sandbox::counts::Counted;
use crate::sandbox::instance::{Instance, Preparing, Started};
use crate::sandbox::phase::{Phase, in_phase};
use crate::sandbox::plan::Plan;
use crate::sandbox::root::Root;
use crate::sandbox::spare::Spare;
use crate::store::directory::{Layout, SandboxDirectory};
use crate::store::ids::IdRange;
use crate::store::{State, remover};
use crate::sys::lock::lock;
use crate::sys::owner::PerProcess;
use crate::sys::pidfd;
use crate::sys::unique::{unique_name, unique_number};
use crate::wire::control::Control;

/// How long a create waits for the room of what was removed, which a file system may give back
/// late. Where others have filled the disk, it fails soon.
const ROOM_TO_CREATE: Duration = Duration::from_secs(10);
/// How long it waits between two attempts.
const BETWEEN_ATTEMPTS: Duration = Duration::from_millis(50);

/// A running sandbox.
///
/// All methods take `&self`: threads share it in an [`Arc`], and any number of jobs may run at
/// once. Resets, snapshots and a delete are made one after the other. A command that runs while
/// the sandbox is reset, deleted or made into a snapshot ends as that method says; a command that
/// starts meanwhile runs in the sandbox as it is afterwards, or is [`Error::Deleted`].
///
/// When it is dropped, or the process that made it ends in whatever way, all processes in it are
/// killed and the kernel takes back all that they had. A fork of that process can't use it
/// ([`Error::ForkedProcess`]), and dropping its copy ends nothing.
#[derive(Debug)]
pub struct Sandbox {
    name: Arc<str>,
    plan: Arc<Plan>,
    state: State,
    /// The first of the ids outside that the ids from 0 on inside are, and their number.
    id_range: Option<(u32, u32)>,
    /// What its image says of commands.
    says: Option<Arc<ImageSays>>,
    /// What commands and file calls are asked of.
    lives: Arc<Lives>,
    /// Of the instance that there is now.
    init_pid: AtomicI32,
    /// What a reset puts in the place of that, where it has one.
    spare: Option<Arc<Spare>>,
    /// Those that lead into it and out of it.
    ports: Ports,
    /// Taken for as long as something of it is changed; `None` once it was deleted.
    now: Mutex<Option<Now>>,
}

/// What a sandbox has until it is deleted.
#[derive(Debug)]
struct Now {
    /// What it is on as new: after a snapshot, the instance is on that.
    image: Arc<Root>,
    ids: Option<Arc<IdRange>>,
    cgroups: Option<cgroup::Plan>,
    limits: Limits,
    instance: Instance,
}

/// What a sandbox has, unless it was deleted.
fn alive(now: &mut Option<Now>) -> Result<&mut Now> {
    now.as_mut().ok_or(Error::Deleted)
}

impl Sandbox {
    /// Builds a sandbox and returns when it is ready to run commands.
    ///
    /// # Errors
    /// [`Error::Invalid`] and [`Error::Io`] for what is wrong with `config` and its paths;
    /// [`Error::Unsupported`] for what this machine can't give; [`Error::Setup`] where building
    /// failed. Whatever the error, nothing is left behind.
    pub fn create(config: Config) -> Result<Self> {
        let span = span!(INFO, "create", sandbox = Empty, init_pid = Empty,);
        phase::begin();
        let created = traced(&span, || {
            let plan = Plan::new(config)?.opened()?;
            remover::with_descriptors(|| {
                let state = State::open(plan.config().state_directory.as_deref())?;
                collect_once(&state);
                match Self::build(&plan, &state) {
                    Err(error) if may_be_given_back(&error, &plan, &state) => {
                        Self::build_when_there_is_room(&plan, &state)
                    }
                    built => built,
                }
            })
        });
        match &created {
            Ok(this) => {
                counts::add(Counted::Created);
                span.record("sandbox", &*this.name);
                span.record("init_pid", this.init_pid());
            }
            Err(_) => counts::add(Counted::Failed(phase::failed())),
        }
        created
    }

    /// What can be said of a configuration without a look at the machine.
    pub(crate) fn check(config: &Config) -> Result<()> {
        Plan::new(config.clone()).map(drop)
    }

    /// Builds one where what this process has removed may be in the way still: a btrfs gives the
    /// room back in the background.
    fn build_when_there_is_room(plan: &Plan, state: &State) -> Result<Self> {
        let end = Instant::now() + ROOM_TO_CREATE;
        remover::finish_within(ROOM_TO_CREATE);
        loop {
            state.make_room()?;
            match Self::build(plan, state) {
                Err(error) if error.is_no_space() && Instant::now() < end => {
                    std::thread::sleep(BETWEEN_ATTEMPTS);
                }
                built => return built,
            }
        }
    }

    /// Opens what the plan names, and builds a first instance on that.
    fn build(plan: &Plan, state: &State) -> Result<Self> {
        phase::begin();
        let open = || Root::open(plan.config(), state);
        let image = Arc::new(in_phase(Phase::Root, &span!(DEBUG, "open_root",), open)?);
        let plan = &Arc::new(plan.on_image(image.says.as_deref())?);
        let config = plan.config();
        let layout = image.layout()?;

        let (preparing, beginning) = begin(plan, image.takes_subvolumes())?;
        let directory = in_phase(Phase::Directory, &span!(DEBUG, "make_directory",), || {
            make_directory(state, config.name.as_deref(), &layout)
        })?;
        let name: Arc<str> = directory.name().into();
        let hostname = plan.hostname.as_deref().unwrap_or(&name);
        let ports = Ports::new(plan.network());
        let open = |control: &Control, is_ready| ports.open_configured(control, config, is_ready);
        // Before anything runs in it.
        let instance = preparing
            .set_up(hostname, directory, Arc::clone(&image), |control| open(control, false))
            .and_then(|instance| open(instance.control(), true).map(|()| instance))
            .inspect_err(|_| ports.end())?;
        let lives =
            Lives::new(instance.life(&name), config.defaults.clone(), plan.user_is_of_image);
        let ids = instance.ids().map(Arc::clone);
        let init_pid = AtomicI32::new(instance.init_pid());
        let limits = config.limits.clone();
        let id_range = ids.as_deref().map(|ids| (ids.base(), ids.length()));
        let says = image.says.clone();
        let cgroups = beginning.cgroups.clone();
        blank::renew(beginning, instance.origin());
        let now = Mutex::new(Some(Now { image, ids, cgroups, limits, instance }));
        let (plan, state) = (Arc::clone(plan), state.clone());
        let spare = plan.config().spare.then(Arc::default);
        let this = Self { name, plan, state, id_range, says, lives, init_pid, spare, ports, now };
        if let Some(now) = &*lock(&this.now) {
            this.renew_spare(now, None);
        }
        Ok(this)
    }

    /// Kills all that runs in it, and returns when nothing of a guest's does any more. It is to be
    /// deleted then.
    pub(crate) fn end_guests(&self) -> Result<()> {
        let mut now = self.now()?;
        let now = alive(&mut now)?;
        self.end_guest(&self.lives.hold(), &mut now.instance)
    }

    /// Kills all that runs in it, without waiting for anything, and for no other thread that
    /// changes it: it is to be deleted.
    pub(crate) fn kill(&self) {
        if let Ok((control, _)) = self.lives.look() {
            // What can't be killed now is tried again, by whoever deletes it.
            let _ = pidfd::kill(control.init());
        }
    }

    /// What it is now, for the one who changes it.
    fn now(&self) -> Result<MutexGuard<'_, Option<Now>>> {
        // In a fork, a thread of its parent may have had the lock.
        self.lives.check_own()?;
        Ok(lock(&self.now))
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The process id of its init, as the host sees it: another after each reset and snapshot. Once
    /// it has died, this is no process, or another.
    pub fn init_pid(&self) -> i32 {
        self.init_pid.load(Ordering::Relaxed)
    }

    /// Whether commands can run in it: not where its init has died or it was deleted, and not in a
    /// fork of the process that made it. While another thread resets it or makes a snapshot of it,
    /// it is alive: commands wait for what comes then. It may have died when this returns.
    pub fn is_alive(&self) -> bool {
        self.lives.is_alive()
    }

    /// Whether its spare is ready ([`Config::spare`]), so that the next reset takes that.
    pub fn has_spare(&self) -> bool {
        self.is_alive() && self.spare.as_ref().is_some_and(|spare| spare.is_ready())
    }

    /// A descriptor that is readable when it has died or was ended, for `poll(2)` and event loops:
    /// a pidfd of its init, which a reset or a snapshot ends, too.
    ///
    /// # Errors
    /// [`Error::Deleted`]; [`Error::Io`] if there can be no descriptor.
    pub fn pidfd(&self) -> Result<OwnedFd> {
        let (control, _) = self.lives.look()?;
        let pidfd = control.init().try_clone();
        pidfd.map_err(Error::io("dup"))
    }

    /// The first id on the host and the number of ids that the sandbox has; the first one is root
    /// inside. `None` where it has no range of its own.
    pub fn id_range(&self) -> Option<(u32, u32)> {
        self.id_range
    }

    /// Prepares a command: a program of the sandbox, started without a shell. A name without a
    /// slash is looked for in the `PATH` of the command's environment.
    pub fn command(&self, program: impl AsRef<std::ffi::OsStr>) -> Command {
        self.command_of(&[program.as_ref()])
    }

    /// Prepares a script: for bash if the sandbox has it, else for sh.
    pub fn shell(&self, script: impl AsRef<std::ffi::OsStr>) -> Command {
        let mut command = self.command_of(&["/bin/bash".as_ref(), "/bin/sh".as_ref()]);
        command.arg("-c").arg(script);
        command
    }

    fn command_of(&self, programs: &[&std::ffi::OsStr]) -> Command {
        Command::new(&self.lives, files::read_small, programs)
    }

    /// Reads, writes and copies its files.
    pub fn files(&self) -> Files {
        Files::new(&self.lives)
    }

    /// Sets other limits, also for what runs; those that are not set are none from here on. This
    /// call ignores [`Limits::accounting`]: what is counted was fixed by [`Sandbox::create`].
    ///
    /// Memory in use above a new limit is reclaimed. Where that does not suffice, a cgroup of
    /// version 2 kills, and one of version 1 refuses.
    ///
    /// # Errors
    /// [`Error::Deleted`]; [`Error::Invalid`] for what no limit can be; [`Error::Unsupported`]
    /// where the sandbox was created without [`Limits::accounting`] and without any limit of that
    /// controller; [`Error::Busy`] where version 1 can't reclaim what is above the limit. After an
    /// error, some of the limits may be the new ones.
    pub fn set_limits(&self, mut limits: Limits) -> Result<()> {
        limits.check()?;
        limits.make_absolute()?;
        let mut now = self.now()?;
        let now = alive(&mut now)?;
        let control = Arc::clone(now.instance.control());
        let (Some(plan), Some(group)) = (&mut now.cgroups, control.group()) else {
            return Err(cgroup::none());
        };
        plan.change(&limits, group)?;
        // What is counted was settled when it was created.
        let accounting = now.limits.accounting;
        now.limits = Limits { accounting, ..limits };
        // The one that there is has the old ones.
        self.renew_spare(now, None);
        Ok(())
    }

    /// What all its jobs have used since it was created or reset, and its connections since it has
    /// had ports.
    ///
    /// # Errors
    /// [`Error::Deleted`]; [`Error::Unsupported`] where it has no cgroup, as for
    /// [`Sandbox::set_limits`], and never had a port.
    pub fn stats(&self) -> Result<Stats> {
        let connections = || {
            self.lives.check_own()?;
            self.ports.stats()
        };
        match (self.group(), connections()?) {
            (Ok(group), connections) => Ok(Stats { connections, ..group.stats()? }),
            (Err(Error::Unsupported { .. }), Some(stats)) => {
                Ok(Stats { connections: Some(stats), ..Stats::default() })
            }
            (Err(error), _) => Err(error),
        }
    }

    /// Stops all its jobs where they are, until [`Sandbox::thaw`], and returns when they stand.
    /// Commands and calls of [`Sandbox::files`] are refused meanwhile, as [`Error::Busy`]. It can
    /// be reset and deleted. Where cgroups of version 1 alone are mounted, a frozen job can't be
    /// killed until it is thawed; when its timeout comes, its status says `survivors`.
    ///
    /// # Errors
    /// As [`Sandbox::stats`]; [`Error::TimedOut`] if a process can't be stopped within five
    /// seconds, as when it waits for a device: then all go on.
    pub fn freeze(&self) -> Result<()> {
        self.group()?.freeze(true)
    }

    /// Lets its jobs go on.
    ///
    /// # Errors
    /// As [`Sandbox::freeze`].
    pub fn thaw(&self) -> Result<()> {
        self.group()?.freeze(false)
    }

    pub(crate) fn group(&self) -> Result<Arc<Group>> {
        let (control, _) = self.lives.look()?;
        control.group().map(Arc::clone).ok_or_else(cgroup::none)
    }

    /// Ends all its processes and gives back all that it had. What it has written is removed, and
    /// what it had mounted let go of, soon after; see [`crate::finish_removals`]. From then on all
    /// that it is asked is [`Error::Deleted`]. Dropping it does the same, but can't tell what
    /// went wrong.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if the kernel could not end a process within ten seconds, as when it
    /// waits for a device that does not answer; at once where [`Sandbox::reset`] has told so
    /// before. A thread waits for it then and gives back the rest, the name among it. [`Error::Io`]
    /// where a file could not be removed. `adl gc` removes what is left once the calling process
    /// has ended.
    pub fn delete(&self) -> Result<()> {
        let mut guard = self.now()?;
        // Whoever comes second finds that it is gone.
        let Some(now) = guard.take() else { return Ok(()) };
        counts::add(Counted::Deleted);
        traced(&span!(INFO, "delete", sandbox = &*self.name,), || self.end(now))
    }

    /// Ends what it has had until it was deleted.
    fn end(&self, mut now: Now) -> Result<()> {
        let mut beside = self.spare.as_ref().map_or_else(Vec::new, |spare| spare.close());
        // So that none is waited for alone.
        beside.iter_mut().for_each(|instance| drop(instance.kill()));
        // Before its processes end, which would look as an end of what they send.
        self.ports.end();
        let hold = self.lives.hold();
        // If they can't be ended now, a thread does that, and it is told below.
        let _ = now.instance.end_processes();
        // Before its files are given away: who looks at them learns that.
        hold.replace(None);
        drop(hold);
        let mut ended = now.instance.end();
        for mut instance in beside {
            ended = ended.and(instance.end());
        }
        ended
    }

    /// What its image says of the commands that are run in it, where that is one in layers, or a
    /// snapshot of a sandbox on one. Its environment, directory and user are what commands start
    /// from already, below [`Config::defaults`](crate::Config::defaults); its program
    /// ([`ImageConfig::entrypoint`], [`ImageConfig::cmd`]) is for the caller to run.
    pub fn image_config(&self) -> Option<&ImageConfig> {
        self.says.as_ref().map(|says| &says.config)
    }

    /// Kills every process in it, those that commands have left behind among them, and returns
    /// when they are gone. The sandbox lives on, with its files. Whoever waits for a command is
    /// told of its end, as [`EndReason::Killed`](crate::EndReason::Killed); calls of
    /// [`Sandbox::files`] that are under way end with an error. Commands that other threads start
    /// meanwhile end with the others, or begin after them.
    ///
    /// ```no_run
    /// # use adl_runtime::{Config, Sandbox};
    /// let sandbox = Sandbox::create(Config::default())?;
    /// let job = sandbox.shell("server & watch & sleep inf").background()?;
    /// sandbox.kill_all()?;
    /// assert!(job.try_wait()?.is_some() && sandbox.command("true").status()?.success());
    /// # Ok::<(), adl_runtime::Error>(())
    /// ```
    ///
    /// # Errors
    /// [`Error::Deleted`]; [`Error::Busy`] where it is frozen; [`Error::TimedOut`] if the kernel
    /// could not end a process within five seconds, which it is still ending then.
    pub fn kill_all(&self) -> Result<()> {
        kill_all(&self.lives)
    }

    /// The jobs in the background ([`Command::background`]), the oldest first: those that run,
    /// and those that have ended and that no one has waited for yet. In a fork of the process that
    /// made it, none.
    pub fn jobs(&self) -> Vec<Job> {
        self.lives.look().map_or_else(|_| Vec::new(), |(_, jobs)| jobs.lock().clone())
    }

    /// The job of this number ([`JobId::as_u64`](crate::JobId::as_u64)) among
    /// [`Sandbox::jobs`].
    pub fn job(&self, number: u64) -> Option<Job> {
        self.jobs().into_iter().find(|job| job.id().as_u64() == number)
    }
}

impl Drop for Sandbox {
    fn drop(&mut self) {
        // There is no one to tell; what is left is for the collector. In a fork, nothing is done.
        let _ = self.delete();
    }
}

/// Whether room on disk is missing that is given back soon, as far as this process knows.
fn may_be_given_back(error: &Error, plan: &Plan, state: &State) -> bool {
    let is_on_disk = !matches!(plan.config().upper, Upper::Memory { .. });
    error.is_no_space() && is_on_disk && state.gives_room_back_late() && remover::has_removed()
}

/// Has an init begin, which may be one that has begun already, with what it has begun for.
fn begin(plan: &Arc<Plan>, takes_subvolumes: bool) -> Result<(Preparing, Beginning)> {
    let config = plan.config();
    let cpu_time = config.defaults.cpu_time.is_some();
    let cgroups = || match (plan.may_have_cgroups(), config.cgroup_parent.as_deref()) {
        (false, _) => Ok(None),
        (true, parent) => {
            let limits = &config.limits;
            let find = || cgroup::Plan::new(limits, parent, cpu_time, plan.has_sysfs(true));
            in_phase(Phase::Cgroups, &span!(DEBUG, "find_cgroups",), find).map(Some)
        }
    };
    let mut beginning = Beginning { plan: Arc::clone(plan), takes_subvolumes, cgroups: None };
    if blank::are_kept() {
        beginning.cgroups = cgroups()?;
        let preparing = match blank::take(&beginning)? {
            Some(blank) => blank,
            None => Started::begin(&beginning)?,
        };
        return Ok((preparing, beginning));
    }
    // The order is that of what takes time: while the child becomes init, the rest is made ready.
    // From here on, dropping `started` undoes everything.
    let started = Started::new(plan, plan.fresh_ids()?)?;
    beginning.cgroups = cgroups()?;
    let preparing = started.prepare(plan, takes_subvolumes, beginning.cgroups.clone())?;
    preparing.record_ids()?;
    Ok((preparing, beginning))
}

fn make_directory(state: &State, name: Option<&str>, layout: &Layout) -> Result<SandboxDirectory> {
    if let Some(name) = name {
        return state.make_sandbox(name, layout);
    }
    let name = format!("sb-{}-{}", std::process::id(), unique_number());
    match state.make_sandbox(&name, layout) {
        // By another process of the same number: of another PID namespace, or an earlier one.
        Err(Error::NameInUse { .. }) => state.make_sandbox(&unique_name("sb-"), layout),
        made => made,
    }
}

/// Removes what owners that have ended left behind, once in a process, beside its first creation.
fn collect_once(state: &State) {
    static COLLECTED: PerProcess<AtomicBool> = PerProcess::new();
    if COLLECTED.get().swap(true, Ordering::Relaxed) || state.is_surely_empty() {
        return;
    }
    let state = state.clone();
    // Whatever goes wrong here is not the caller's business; `adl gc` tells it.
    let _ = std::thread::Builder::new()
        .name("adl-collect".to_owned())
        .spawn(move || garbage::collect(&state));
}
