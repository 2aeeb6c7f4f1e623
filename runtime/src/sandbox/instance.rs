//! One life of a sandbox: from the clone of its init to the end of its last process.

use std::io;
use std::mem::ManuallyDrop;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;
use std::time::Duration;

use adl_protocol::Identities;
use nix::poll::{PollFd, PollFlags};

use crate::cgroup::{self, Group};
use crate::config::Config;
use crate::error::{Error, Result};
use crate::job::background::Jobs;
use crate::job::life::Life;
use crate::sandbox::launch::{self, Plan};
use crate::sandbox::root::Root;
use crate::store::directory::SandboxDirectory;
use crate::store::ids::IdRange;
use crate::store::init_record::InitRecord;
use crate::store::remover::{Removal, remove_later};
use crate::sys::owner::Owner;
use crate::sys::{Process, pidfd, proc};
use crate::wait::{Deadline, wait_ready};
use crate::wire::control::Control;

/// How long the kernel may take to end all processes.
const END: Duration = Duration::from_secs(10);

/// An init, and what it was given. When it is dropped, all of it ends and is given back.
#[derive(Debug)]
pub(crate) struct Instance {
    init: Process,
    control: Arc<Control>,
    jobs: Arc<Jobs>,
    /// Its own from [`Instance::set_up`] on.
    directory: Option<SandboxDirectory>,
    /// Its mount namespace. While that is held, the end of its processes does not wait for the
    /// kernel to forget the files that a guest has made, of which there may be millions.
    mounts: Option<OwnedFd>,
    /// What its file systems lie on.
    root: Option<Arc<Root>>,
    /// Shared with what comes after it, and with what ends late.
    ids: Option<Arc<IdRange>>,
    owner: Owner,
    end: End,
}

/// How far its end has come.
#[derive(Debug, Clone, Copy)]
enum End {
    None,
    /// All of it was killed, and the kernel has until then to end it. It may need longer, and the
    /// end is waited for again as often as someone asks.
    Pending(Deadline),
    Done,
}

impl Instance {
    /// Starts init. It makes what needs no layer, and waits for [`Instance::set_up`].
    pub(crate) fn start(config: &Config, ids: Option<Arc<IdRange>>) -> Result<Self> {
        let (init, control) = launch::start(config, ids.as_deref())?;
        let identities = match ids {
            Some(_) => Identities::Range,
            None => Identities::Single,
        };
        let control = Control::new(control, Arc::clone(&init.pidfd), identities);
        let owner = Owner::this_process();
        let (directory, mounts, root) = (None, None, None);
        let jobs = Arc::default();
        Ok(Self { init, control, jobs, directory, mounts, root, ids, owner, end: End::None })
    }

    /// Gives it a directory: from here on it is removed with it.
    pub(crate) fn attach_directory(
        &mut self,
        directory: SandboxDirectory,
    ) -> &mut SandboxDirectory {
        self.directory.insert(directory)
    }

    /// Writes down that the ids are its own, once no other has any process with them.
    pub(crate) fn record_ids(&self) -> Result<()> {
        self.ids.as_ref().map_or(Ok(()), |ids| ids.record(&InitRecord::of_child(self.init.pid)))
    }

    /// Removes its cgroups. Its processes have ended.
    pub(crate) fn remove_cgroups(&self) -> Result<()> {
        self.directory.as_ref().map_or(Ok(()), SandboxDirectory::remove_cgroups)
    }

    /// Has init build the sandbox in its directory, and waits until it has.
    pub(crate) fn set_up(
        &mut self,
        config: &Config,
        hostname: &str,
        root: Arc<Root>,
        cgroups: Option<&cgroup::Plan>,
    ) -> Result<()> {
        let root = self.root.insert(root);
        let Some(directory) = &self.directory else { return Err(Error::SandboxDied) };
        let pid_max = cgroups.and_then(cgroup::Plan::pid_max);
        let ids = self.ids.as_deref();
        let plan = Plan { config, hostname, root, directory, ids, pid_max };
        // Before init knows of the directory: who finds that without an owner waits for init's end.
        directory.record_init(&InitRecord::of_child(self.init.pid))?;
        let meanwhile = || {
            if let Some(cgroups) = cgroups.filter(|cgroups| !cgroups.is_empty()) {
                let record = |paths: &[_]| directory.record_cgroups(paths);
                self.control.give_group(Group::create(cgroups, record)?);
            }
            Ok(())
        };
        let messages = self.control.messages();
        self.mounts = Some(launch::set_up(&self.init, messages, &plan, meanwhile)?);
        self.init.launched();
        Ok(())
    }

    pub(crate) fn init_pid(&self) -> i32 {
        self.init.pid
    }

    pub(crate) fn control(&self) -> &Arc<Control> {
        &self.control
    }

    /// What commands and file calls are asked of.
    pub(crate) fn life(&self) -> Life {
        Life::new(Arc::clone(&self.control), Arc::clone(&self.jobs))
    }

    pub(crate) fn ids(&self) -> Option<&Arc<IdRange>> {
        self.ids.as_ref()
    }

    pub(crate) fn directory(&self) -> Option<&SandboxDirectory> {
        self.directory.as_ref()
    }

    pub(crate) fn directory_mut(&mut self) -> Option<&mut SandboxDirectory> {
        self.directory.as_mut()
    }

    /// Has its directory not be removed: it has become something else.
    pub(crate) fn detach_directory(&mut self) {
        self.directory = None;
    }

    /// What its file systems lie on.
    pub(crate) fn root(&self) -> Option<&Arc<Root>> {
        self.root.as_ref()
    }

    /// Whether any process but init runs in it.
    pub(crate) fn is_busy(&self) -> Result<bool> {
        if self.has_died()? {
            return Ok(false);
        }
        // Whatever runs descends from init, which is given what others have left.
        let children = || {
            let place = proc::directory_of(&self.init)?;
            // Init has one thread, whose number is its own.
            let number = place.file_name().unwrap_or_default();
            let children =
                std::fs::read_to_string(place.join("task").join(number).join("children"))?;
            Ok::<_, io::Error>((place, children))
        };
        match children() {
            Ok((place, children)) => {
                // A drain goes by itself when no one can write to its pipe any more, which another
                // thread's new init can until it executes its program. Who takes its name has
                // itself to thank.
                let is_drain =
                    |pid: &str| match std::fs::read(place.with_file_name(pid).join("comm")) {
                        Ok(name) => name == b"adl-drain\n",
                        Err(error) => error.kind() == io::ErrorKind::NotFound,
                    };
                Ok(!children.split_whitespace().all(is_drain))
            }
            Err(_) if self.has_died()? => Ok(false),
            Err(error) => Err(Error::io("read the children of init")(error)),
        }
    }

    fn has_died(&self) -> Result<bool> {
        let mut fds = [PollFd::new(self.as_fd(), PollFlags::POLLIN)];
        wait_ready(&mut fds, Deadline::after(Duration::ZERO))
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

    /// Whether it was killed, and the kernel has not been seen to have ended all of it.
    pub(crate) fn is_ending(&self) -> bool {
        matches!(self.end, End::Pending(_))
    }

    /// Kills all processes and waits until they are gone, which is when init is.
    ///
    /// # Errors
    /// [`Error::TimedOut`] where the kernel takes too long to end one. All that the instance had
    /// stays its own then, and the next call looks again; from then on without waiting.
    pub(crate) fn end_processes(&mut self) -> Result<()> {
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
            let what = "the sandbox's processes, which were killed and are still ending";
            return Err(Error::TimedOut { what, after: deadline.length() });
        }
        pidfd::reap(self).map_err(Error::io("waitid"))
    }

    /// Ends all processes and has the rest removed. Where that takes long, a thread does both:
    /// it is not its own any more then.
    pub(crate) fn end(&mut self) -> Result<()> {
        if !self.owner.is_this_process() {
            // Of a fork's copy nothing may be undone.
            return Ok(());
        }
        if let Err(error) = self.end_processes() {
            self.end_late();
            self.end = End::Done;
            return Err(error);
        }
        self.ids = None;
        let mounts = self.mounts.take();
        let directory = self.directory.take();
        let removed = match (&mounts, &directory) {
            (None, None) => Ok(()),
            _ => remove_later(Removal::new(mounts, directory)),
        };
        // Held until here: it is what the directory's overlays lie on.
        self.root = None;
        removed
    }

    /// Leaves to a thread what could not be waited for. Until it is done, the ids are no one
    /// else's.
    fn end_late(&mut self) {
        // Lost, if there can be no thread: better than given to a sandbox beside what still runs.
        let ids = ManuallyDrop::new(self.ids.take());
        let mounts = self.mounts.take();
        let directory = self.directory.take();
        let root = self.root.take();
        let pidfd = Arc::clone(&self.init.pidfd);
        let wait = move || {
            let mut fds = [PollFd::new(pidfd.as_fd(), PollFlags::POLLIN)];
            let is_over = wait_ready(&mut fds, Deadline::NEVER)
                .and_then(|_| pidfd::reap(&*pidfd).map_err(Error::io("waitid")));
            // The caller was told already that something went wrong.
            if is_over.is_ok() {
                drop(ManuallyDrop::into_inner(ids));
                drop(remove_later(Removal::new(mounts, directory)));
                drop(root);
            }
        };
        drop(std::thread::Builder::new().name("adl-end".to_owned()).spawn(wait));
    }
}

/// Readable when it has died, or was ended.
impl AsFd for Instance {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.init.pidfd.as_fd()
    }
}

impl Drop for Instance {
    fn drop(&mut self) {
        // There is no one to tell; what is left is for the collector.
        let _ = self.end();
    }
}
