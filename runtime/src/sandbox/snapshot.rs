//! Keeping what a sandbox has written, as a snapshot that the sandbox goes on from.

use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::sync::Arc;

use tracing::field::Empty;

use crate::error::traced::{span, traced};
use crate::error::{Error, Result};
use crate::sandbox::counts::{self, Counted};
use crate::sandbox::instance::{Instance, Preparing, Started};
use crate::sandbox::root::Root;
use crate::sandbox::{Sandbox, alive};
use crate::snapshot::{IfRunning, PendingSnapshot, Snapshot, SnapshotOptions};
use crate::store::directory::{Layout, SandboxDirectory};
use crate::store::name::SnapshotName;
use crate::store::remover::{Removal, remove_later};

impl Sandbox {
    /// Keeps all that it has written, as a snapshot that any number of sandboxes can be made of;
    /// see [`Snapshot`]. It takes about as long as [`Sandbox::create`], whatever was written, and
    /// copies nothing.
    ///
    /// The sandbox goes on with the same files, and otherwise as after a reset; the next reset
    /// takes it back to its image. Only its files are kept, so no process may run in it; see
    /// [`Sandbox::snapshot_with`].
    ///
    /// # Errors
    /// [`Error::Busy`] if a process runs in it, which is not hurt. [`Error::Unsupported`] with
    /// [`Upper::Memory`](crate::Upper::Memory), of which a snapshot could not be kept on disk, and
    /// on btrfs where there are subvolumes inside. [`Error::Invalid`] where there would be more
    /// layers than can be handed to init (about 120). Otherwise as [`Sandbox::reset`]. What was
    /// written is not lost: where no snapshot comes about, the call can be made again; where only
    /// the sandbox can't go on, the snapshot is returned, and the sandbox is dead until it is
    /// reset.
    pub fn snapshot(&self) -> Result<Snapshot> {
        self.snapshot_with(&SnapshotOptions::default())
    }

    /// Keeps all that it has written, with a name, or where something runs in it.
    ///
    /// # Errors
    /// As [`Sandbox::snapshot`], and [`Error::NameInUse`].
    pub fn snapshot_with(&self, options: &SnapshotOptions) -> Result<Snapshot> {
        let span = span!(INFO, "snapshot", sandbox = &*self.name, snapshot = Empty,);
        let snapshot = traced(&span, || self.try_snapshot(options));
        if let Ok(snapshot) = &snapshot {
            counts::add(Counted::Snapshot);
            span.record("snapshot", snapshot.name());
        }
        snapshot
    }

    fn try_snapshot(&self, options: &SnapshotOptions) -> Result<Snapshot> {
        let mut now = self.now()?;
        let now = alive(&mut now)?;
        let name = options.name.as_deref().map(SnapshotName::given).transpose()?;
        let unsupported = |why: &str, fix: &str| Error::Unsupported {
            what: "a snapshot of the sandbox".to_owned(),
            why: why.to_owned(),
            fix: fix.to_owned(),
        };
        if now.image.memory().is_some() {
            let fix = "make the sandbox with the upper `disk` or `btrfs`";
            return Err(unsupported("what it has written is in memory", fix));
        }
        if now.instance.is_ending() {
            now.instance.end_processes()?;
        }
        // From here on no command begins.
        let hold = self.lives.hold();
        let is_busy = || Ok::<_, Error>(hold.is_beginning() || now.instance.is_busy()?);
        if options.running == IfRunning::Refuse && is_busy()? {
            let what = format!("the sandbox {:?}", self.name);
            return Err(Error::Busy { what, by: "processes that run in it".to_owned() });
        }
        let this = &mut now.instance;
        let (Some(directory), Some(root)) = (this.directory(), this.root()) else {
            return Err(unsupported("its files are gone", "reset it first"));
        };
        // All that can be wrong shows before anything is ended or moved.
        root.check_layers(1)?;
        if directory.has_nested_subvolumes()? {
            let why = "subvolumes were made in it, which a btrfs snapshot does not take along";
            return Err(unsupported(why, "remove them inside, or use the upper `disk`"));
        }
        let root = Arc::clone(root);
        let stacks: Vec<_> = root.uppers().collect();
        let config = self.plan.config_with(now.limits.clone());
        let pending = PendingSnapshot::begin(
            &self.state,
            directory,
            &config,
            root.says.as_deref(),
            &stacks,
            name,
        )?;
        let next = Started::new(&self.plan, now.ids.clone())?;
        let next = next.prepare(&self.plan, root.takes_subvolumes(), now.cgroups.clone())?;
        let layout = Layout { subvolume: None, ..root.layout()? };
        let mut directory = self.state.make_aside(&layout)?;
        let snapshot = match self.end_and_publish(this, &root, pending, &next, &mut directory) {
            Ok(snapshot) => snapshot,
            Err(error) => {
                // It is no one's yet. What goes wrong with that is told by the collector.
                let _ = remove_later(Removal::new(None, Some(directory)));
                self.ports.go_on(this.control());
                return Err(error);
            }
        };
        let root = Arc::new(root.on_top(Arc::clone(snapshot.lease())));
        let next = self.set_up_on(next, directory, root);
        match next.and_then(|next| Ok((self.ports.prepare(next.control())?, next))) {
            Ok((ports, next)) => {
                self.begin(&hold, &next, ports);
                drop(hold);
                std::mem::replace(&mut now.instance, next).end()?;
            }
            // It is dead, as any command will tell.
            Err(_) => {
                self.ports.go_on(now.instance.control());
                now.instance.end()?;
            }
        }
        Ok(snapshot)
    }

    /// Ends an instance and makes its directory a snapshot; `directory`, which is the next one's,
    /// takes its name.
    fn end_and_publish(
        &self,
        this: &mut Instance,
        root: &Root,
        pending: PendingSnapshot,
        next: &Preparing,
        directory: &mut SandboxDirectory,
    ) -> Result<Snapshot> {
        // What is set up after the end takes descriptors, which are there then.
        let reserved = reserve_descriptors(next.as_fd(), root.descriptors_to_set_up())?;
        self.ports.hold();
        this.end_processes()?;
        next.record_ids()?;
        drop(reserved);
        this.remove_cgroups()?;
        let Some(ended) = this.directory_mut() else { return Err(Error::SandboxDied) };
        directory.take_name(&self.name, Some(&mut *ended))?;
        // If this fails, the files are the sandbox's still, and the next attempt's.
        let snapshot = pending.publish(ended)?;
        // From here on they are the snapshot's, and whatever happens, the caller has that.
        this.detach_directory();
        Ok(snapshot)
    }

    /// Sets up an instance that was started to take the place of one that has ended.
    fn set_up_on(
        &self,
        next: Preparing,
        directory: SandboxDirectory,
        root: Arc<Root>,
    ) -> Result<Instance> {
        let added = root.layout().and_then(|layout| directory.add_subvolume(&layout));
        if let Err(error) = added {
            let _ = remove_later(Removal::new(None, Some(directory)));
            return Err(error);
        }
        next.set_up(self.hostname(), directory, root, |_| Ok(()))
    }
}

/// Takes so many descriptors, to be let go of when others are needed in their place.
fn reserve_descriptors(any: BorrowedFd<'_>, count: usize) -> Result<Vec<OwnedFd>> {
    let reserved: std::io::Result<_> = (0..count).map(|_| any.try_clone_to_owned()).collect();
    reserved.map_err(Error::io("dup"))
}
