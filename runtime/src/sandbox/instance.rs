//! One life of a sandbox: from the clone of its init to the end of its last process.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use adl_protocol::Origin;
use nix::poll::{PollFd, PollFlags};

use crate::cgroup::{self, Group};
use crate::error::traced::{span, traced};
use crate::error::{Error, Result};
use crate::job::background::Jobs;
use crate::job::life::Life;
use crate::sandbox::beginning::Beginning;
use crate::sandbox::children::{SOON, Whose, children_of, whose};
use crate::sandbox::descriptors::clone_sources;
use crate::sandbox::launch::{self, Begun, Build};
use crate::sandbox::phase::{Phase, in_phase};
use crate::sandbox::plan::Plan;
use crate::sandbox::root::Root;
use crate::store::directory::SandboxDirectory;
use crate::store::ids::IdRange;
use crate::store::init_record::InitRecord;
use crate::store::remover::{Removal, remove_later};
use crate::sys::clone::Process;
use crate::sys::own_namespaces::OwnNamespaces;
use crate::sys::owner::Owner;
use crate::sys::pidfd;
use crate::wait::{Deadline, wait_ready};
use crate::wire::control::Control;

/// How long the kernel may take to end all processes.
const END: Duration = Duration::from_secs(10);

/// An init that was cloned and waits for its set-up. When it is dropped, it ends.
#[derive(Debug)]
pub(crate) struct Started(Processes);

/// An init that does what it can do before there is a directory of the sandbox, and waits for the
/// rest of its set-up. When it is dropped, it ends.
#[derive(Debug)]
pub(crate) struct Preparing {
    processes: Processes,
    begun: Begun,
    plan: Arc<Plan>,
    cgroups: Option<cgroup::Plan>,
}

/// A sandbox that was set up. When it is dropped, all of it ends and is given back.
#[derive(Debug)]
pub(crate) struct Instance {
    processes: Processes,
    /// `None` once it was ended.
    files: Option<Files>,
}

/// An init, and all that it starts. When they are dropped, they end.
#[derive(Debug)]
struct Processes {
    init: Process,
    /// What its mounts were copied from.
    origin: Origin,
    /// Where it began, if it is an ordinary user's that began in the empty namespace.
    namespaces: Option<&'static OwnNamespaces>,
    control: Arc<Control>,
    jobs: Arc<Jobs>,
    /// Shared with what comes after it, and with what ends late.
    ids: Option<Arc<IdRange>>,
    owner: Owner,
    end: End,
}

/// What a sandbox has on disk and in its mount namespace.
#[derive(Debug)]
struct Files {
    /// `None` once it has become a snapshot's.
    directory: Option<SandboxDirectory>,
    /// While that is held, the end of its processes does not wait for the kernel to forget the
    /// files that a guest has made, of which there may be millions. `None` where init did not come
    /// so far.
    mounts: Option<OwnedFd>,
    /// What they lie on.
    root: Arc<Root>,
}

/// How far an end has come.
#[derive(Debug, Clone, Copy)]
enum End {
    None,
    /// All of it was killed, and the kernel has until then to end it. It may need longer, and the
    /// end is waited for again as often as someone asks.
    Pending(Deadline),
    Done,
}

impl Started {
    /// Starts init, which waits for [`Started::prepare`].
    pub(crate) fn new(plan: &Plan, ids: Option<Arc<IdRange>>) -> Result<Self> {
        Self::new_in(plan, ids, launch::namespaces(plan))
    }

    fn new_in(
        plan: &Plan,
        ids: Option<Arc<IdRange>>,
        namespaces: Option<&'static OwnNamespaces>,
    ) -> Result<Self> {
        let (init, origin, control) = in_phase(Phase::Clone, &span!(DEBUG, "clone",), || {
            launch::start(plan, ids.as_deref(), namespaces)
        })?;
        let namespaces = namespaces.filter(|_| origin == Origin::Empty);
        let first_id = ids.as_deref().map(IdRange::base);
        let pidfd = Arc::clone(&init.pidfd);
        let control = Control::new(control, pidfd, plan.ids, first_id, plan.network());
        let (jobs, owner) = (Arc::default(), Owner::this_process());
        Ok(Self(Processes { init, origin, namespaces, control, jobs, ids, owner, end: End::None }))
    }

    /// Starts an init with ids of its own, and has it begin.
    pub(crate) fn begin(beginning: &Beginning) -> Result<Preparing> {
        let Beginning { plan, takes_subvolumes, cgroups } = beginning;
        let started = Self::new(plan, plan.fresh_ids()?)?;
        let preparing = started.prepare(plan, *takes_subvolumes, cgroups.clone())?;
        preparing.record_ids()?;
        Ok(preparing)
    }

    /// Has init begin, and returns at once: it makes what needs no layer, and waits for
    /// [`Preparing::set_up`].
    pub(crate) fn prepare(
        self,
        plan: &Arc<Plan>,
        takes_subvolumes: bool,
        cgroups: Option<cgroup::Plan>,
    ) -> Result<Preparing> {
        let Self(processes) = self;
        let build = processes.build(plan, takes_subvolumes, cgroups.as_ref());
        let begun = in_phase(Phase::Setup, &span!(DEBUG, "send_setup",), || {
            launch::begin(&processes.init, processes.control.messages(), &build)
        })?;
        Ok(Preparing { processes, begun, plan: Arc::clone(plan), cgroups })
    }
}

impl Preparing {
    /// Goes on as what begins in the same way.
    pub(crate) fn of(self, beginning: &Beginning) -> Self {
        let Beginning { plan, cgroups, .. } = beginning;
        Self { plan: Arc::clone(plan), cgroups: cgroups.clone(), ..self }
    }

    /// What its mounts were copied from.
    pub(crate) fn origin(&self) -> Origin {
        self.processes.origin
    }

    pub(crate) fn is_alive(&self) -> bool {
        self.processes.has_died().is_ok_and(|has_died| !has_died)
    }

    /// Writes down that the ids are its own, once no other has any process with them.
    pub(crate) fn record_ids(&self) -> Result<()> {
        self.processes.record_ids()
    }

    /// Has init build the sandbox in its directory, and waits until it has; does `meanwhile` what
    /// needs no sandbox that is ready. Where that fails, all of it ends and is given back.
    pub(crate) fn set_up(
        self,
        hostname: &str,
        directory: SandboxDirectory,
        root: Arc<Root>,
        meanwhile: impl FnOnce(&Control) -> Result<()>,
    ) -> Result<Instance> {
        let (this, sources) = match self.with_sources(&directory, &root) {
            Ok(both) => both,
            Err(error) => {
                // What goes wrong with that is told by the collector.
                let _ = Files { directory: Some(directory), mounts: None, root }.remove();
                return Err(error);
            }
        };
        let Self { mut processes, begun, plan, cgroups } = this;
        let built = in_phase(Phase::Ready, &span!(DEBUG, "set_up",), || {
            let of_sandbox = (hostname, &directory, &*root);
            processes.set_up(begun, &plan, cgroups.as_ref(), sources, of_sandbox, meanwhile)
        });
        let (mounts, result) = match built {
            Ok(mounts) => (Some(mounts), Ok(())),
            Err(error) => (None, Err(error)),
        };
        let files = Some(Files { directory: Some(directory), mounts, root });
        let this = Instance { processes, files };
        result.map(|()| this)
    }
}

impl Preparing {
    /// With mounts of what the root is put together from, where init can have them in no other way.
    ///
    /// Where one of them can't be had, another init begins, in a copy of the caller's mounts: it has
    /// them by their paths, or tells why not.
    fn with_sources(
        self,
        directory: &SandboxDirectory,
        root: &Root,
    ) -> Result<(Self, Option<Vec<OwnedFd>>)> {
        let Some(namespaces) = self.processes.namespaces else { return Ok((self, None)) };
        let clone = || clone_sources(namespaces, root, directory);
        if let Ok(sources) = traced(&span!(DEBUG, "clone_sources",), clone) {
            return Ok((self, Some(sources)));
        }
        let Self { processes, plan, cgroups, .. } = self;
        let ids = processes.ids.clone();
        drop(processes);
        let started = Started::new_in(&plan, ids, None)?;
        Ok((started.prepare(&plan, root.takes_subvolumes(), cgroups)?, None))
    }
}

impl AsFd for Preparing {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.processes.as_fd()
    }
}

impl Instance {
    /// Writes down that the ids are its own, once no other has any process with them.
    pub(crate) fn record_ids(&self) -> Result<()> {
        self.processes.record_ids()
    }

    /// Removes its cgroups. Its processes have ended.
    pub(crate) fn remove_cgroups(&self) -> Result<()> {
        self.directory().map_or(Ok(()), SandboxDirectory::remove_cgroups)
    }

    /// What its mounts were copied from, before it had its own.
    pub(crate) fn origin(&self) -> Origin {
        self.processes.origin
    }

    pub(crate) fn init_pid(&self) -> i32 {
        self.processes.init.pid
    }

    pub(crate) fn control(&self) -> &Arc<Control> {
        &self.processes.control
    }

    /// What commands and file calls are asked of.
    pub(crate) fn life(&self, sandbox: &Arc<str>) -> Life {
        let Processes { control, jobs, .. } = &self.processes;
        Life::new(Arc::clone(control), Arc::clone(jobs), Arc::clone(sandbox))
    }

    pub(crate) fn ids(&self) -> Option<&Arc<IdRange>> {
        self.processes.ids.as_ref()
    }

    /// Its directory, if it has one still.
    pub(crate) fn directory(&self) -> Option<&SandboxDirectory> {
        self.files.as_ref()?.directory.as_ref()
    }

    pub(crate) fn directory_mut(&mut self) -> Option<&mut SandboxDirectory> {
        self.files.as_mut()?.directory.as_mut()
    }

    /// Has its directory not be removed: it has become something else.
    pub(crate) fn detach_directory(&mut self) {
        if let Some(files) = &mut self.files {
            files.directory = None;
        }
    }

    /// What its file systems lie on, until it was ended.
    pub(crate) fn root(&self) -> Option<&Arc<Root>> {
        self.files.as_ref().map(|files| &files.root)
    }

    /// Whether any process but init runs in it.
    pub(crate) fn is_busy(&self) -> Result<bool> {
        self.processes.are_busy()
    }

    /// Whether it was killed, and the kernel has not been seen to have ended all of it.
    pub(crate) fn is_ending(&self) -> bool {
        matches!(self.processes.end, End::Pending(_))
    }

    /// Whether init has any child, whatever that calls itself: all that runs descends from one.
    pub(crate) fn has_children(&self) -> bool {
        let Processes { init, .. } = &self.processes;
        let mut are_none_before = false;
        // Twice: see `are_busy`.
        loop {
            match children_of(init) {
                Ok((_, children)) if children.is_empty() && are_none_before => return false,
                Ok((_, children)) if children.is_empty() => are_none_before = true,
                // Or this can't be known.
                _ => return true,
            }
        }
    }

    /// Kills init, and so all processes, and returns at once. [`Instance::end`] waits for them.
    pub(crate) fn kill(&mut self) -> Result<()> {
        self.processes.kill()
    }

    /// Kills all processes and waits until they are gone, which is when init is.
    ///
    /// # Errors
    /// [`Error::TimedOut`] where the kernel takes too long to end one. All that the instance had
    /// stays its own then, and the next call looks again; from then on without waiting.
    pub(crate) fn end_processes(&mut self) -> Result<()> {
        self.processes.end()
    }

    /// Ends all processes and has the rest removed. Where that takes long, a thread does both:
    /// it is not its own any more then.
    pub(crate) fn end(&mut self) -> Result<()> {
        if !self.processes.owner.is_this_process() {
            // Of a fork's copy nothing may be undone.
            return Ok(());
        }
        let files = self.files.take();
        if let Err(error) = self.processes.end() {
            self.processes.end_late(files);
            return Err(error);
        }
        // Whoever makes the next sandbox may have them.
        self.processes.ids = None;
        files.map_or(Ok(()), Files::remove)
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // There is no one to tell; what is left is for the collector.
        let _ = self.end();
    }
}

impl Processes {
    fn record_ids(&self) -> Result<()> {
        self.ids.as_ref().map_or(Ok(()), |ids| ids.record(&InitRecord::of_child(self.init.pid)))
    }

    fn build<'a>(
        &'a self,
        plan: &'a Plan,
        takes_subvolumes: bool,
        cgroups: Option<&cgroup::Plan>,
    ) -> Build<'a> {
        Build {
            plan,
            takes_subvolumes,
            ids: self.ids.as_deref(),
            origin: self.origin,
            pid_max: cgroups.and_then(cgroup::Plan::pid_max),
            has_cgroups: cgroups.is_some_and(|cgroups| !cgroups.is_empty()),
        }
    }

    /// Has init build the sandbox, and waits until it has, after `last`. Returns its mount
    /// namespace.
    fn set_up(
        &mut self,
        begun: Begun,
        plan: &Plan,
        cgroups: Option<&cgroup::Plan>,
        sources: Option<Vec<OwnedFd>>,
        (hostname, directory, root): (&str, &SandboxDirectory, &Root),
        last: impl FnOnce(&Control) -> Result<()>,
    ) -> Result<OwnedFd> {
        let build = self.build(plan, root.takes_subvolumes(), cgroups);
        let cgroups = cgroups.filter(|cgroups| !cgroups.is_empty());
        // Before init knows of the directory: who finds that without an owner waits for init's end.
        directory.record_init(&InitRecord::of_child(self.init.pid))?;
        let meanwhile = || {
            let Some(cgroups) = cgroups else { return Ok(None) };
            let record = |paths: &[_]| directory.record_cgroups(paths);
            let make = || Group::create(cgroups, record);
            let group = in_phase(Phase::Cgroups, &span!(DEBUG, "make_cgroups",), make)?;
            self.control.give_group(Arc::clone(&group));
            Ok(Some(group))
        };
        let messages = self.control.messages();
        let of_sandbox = (hostname, directory, root);
        let deadline =
            launch::set_up(&self.init, messages, begun, &build, sources, of_sandbox, meanwhile)?;
        let done = match last(&self.control) {
            // What init failed at comes below.
            done @ (Ok(()) | Err(Error::SandboxDied)) => done,
            Err(error) => return Err(error),
        };
        let (mounts, cookie) = launch::wait_ready(&self.init, messages, deadline)?;
        done?;
        self.control.give_cookie(cookie);
        self.init.launched();
        Ok(mounts)
    }

    /// Whether there is any but init.
    fn are_busy(&self) -> Result<bool> {
        if self.has_died()? {
            return Ok(false);
        }
        // Whatever runs descends from init, which is given what others have left.
        let late = Deadline::after(SOON);
        let are_there = || {
            let mut before = None;
            loop {
                let (place, children) = children_of(&self.init)?;
                let whose = |pid: &str| whose(&place.with_file_name(pid));
                let whose: Vec<_> =
                    children.split_whitespace().map(whose).collect::<io::Result<_>>()?;
                // It takes a moment until it has another name.
                if whose.contains(&Whose::NewOfInit) && !late.passed() {
                    std::thread::sleep(Duration::from_millis(1));
                    continue;
                }
                if whose.iter().any(|whose| *whose != Whose::NoOnes) {
                    return Ok::<_, io::Error>(true);
                }
                // One that ends while the list is read, after it was in it, can hide the next
                // (proc_tid_children(5)). It is not there any more when the list is read again.
                if before.as_ref() == Some(&children) {
                    return Ok(false);
                }
                before = Some(children);
            }
        };
        match are_there() {
            Ok(are_there) => Ok(are_there),
            Err(_) if self.has_died()? => Ok(false),
            Err(error) => Err(Error::io("read the children of init")(error)),
        }
    }

    fn has_died(&self) -> Result<bool> {
        pidfd::has_ended(self.as_fd()).map_err(Error::io("poll"))
    }

    /// Kills init, and so every process of its PID namespace, and returns at once.
    fn kill(&mut self) -> Result<()> {
        if !matches!(self.end, End::None) {
            return Ok(());
        }
        if let Some(group) = self.control.group() {
            group.end();
        }
        pidfd::kill(&self.init.pidfd).map_err(Error::io("pidfd_send_signal"))?;
        self.end = End::Pending(Deadline::after(END));
        Ok(())
    }

    /// See [`Instance::end_processes`].
    fn end(&mut self) -> Result<()> {
        self.kill()?;
        let End::Pending(deadline) = self.end else { return Ok(()) };
        // They hold on to the control socket, which holds on to them.
        self.jobs.lock().clear();
        let ended = self.wait_for_end(deadline);
        // What is said of the jobs is settled in any case: whoever waits for one is told.
        if let Some(group) = self.control.group() {
            group.settle();
        }
        self.control.end_waits();
        ended?;
        self.end = End::Done;
        Ok(())
    }

    fn wait_for_end(&self, deadline: Deadline) -> Result<()> {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        if !wait_ready(&mut fds, deadline)? {
            let what = "the sandbox's processes to end, which were killed";
            return Err(Error::TimedOut { what, after: deadline.length() });
        }
        pidfd::reap(self).map_err(Error::io("waitid"))
    }

    /// Leaves to a thread what could not be waited for. Until it is done, the ids are no one
    /// else's.
    fn end_late(&mut self, files: Option<Files>) {
        self.end = End::Done;
        // Lost, if there can be no thread: better than given to a sandbox beside what still runs.
        let ids = ManuallyDrop::new(self.ids.take());
        let pidfd = Arc::clone(&self.init.pidfd);
        let wait = move || {
            let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            let is_over = wait_ready(&mut fds, Deadline::NEVER)
                .and_then(|_| pidfd::reap(&*pidfd).map_err(Error::io("waitid")));
            // The caller was told already that something went wrong.
            if is_over.is_ok() {
                drop(ManuallyDrop::into_inner(ids));
                drop(files.map(Files::remove));
            }
        };
        drop(std::thread::Builder::new().name("adl-end".to_owned()).spawn(wait));
    }
}

/// Readable when init has died, or was ended.
impl AsFd for Processes {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.init.pidfd.as_fd()
    }
}

impl Drop for Processes {
    fn drop(&mut self) {
        if self.owner.is_this_process() && self.end().is_err() {
            self.end_late(None);
        }
    }
}

impl Files {
    /// Has them removed, once all processes have ended.
    fn remove(self) -> Result<()> {
        let removed = match (&self.mounts, &self.directory) {
            (None, None) => Ok(()),
            _ => remove_later(Removal::new(self.mounts, self.directory)),
        };
        // Held until here: it is what the directory's overlays lie on.
        drop(self.root);
        removed
    }
}
