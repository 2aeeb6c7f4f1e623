//! `Sandbox::reset`: the next instance, made now or before, in the place of the one that there is.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

use tracing::Span;
use tracing::field::Empty;

use super::{BETWEEN_ATTEMPTS, Now, Sandbox, alive};
use crate::error::traced::{span, traced};
use crate::error::{Error, Result};
use crate::job::life::Hold;
use crate::network::ports::Prepared;
use crate::sandbox::counts::{self, Counted};
use crate::sandbox::instance::Instance;
use crate::sandbox::spare::Recipe;
use crate::store::remover;

/// How long a file system may take to give back the room of what was removed.
const ROOM: Duration = Duration::from_secs(20);

impl Sandbox {
    /// Makes it as new: the same name, ids and configuration, and nothing of what was before in
    /// it: no process, file, shared memory, message queue, socket or host name. It takes as long
    /// as [`Sandbox::create`], whatever was done inside, or less with a
    /// [`Config::spare`](crate::Config::spare); what was written to disk is removed soon after, as
    /// by [`Sandbox::delete`].
    ///
    /// Commands that run are killed, and their ends are told as
    /// [`EndReason::SandboxDied`](crate::EndReason::SandboxDied); file calls end with
    /// [`Error::SandboxDied`]. A sandbox that has died is alive again after it.
    ///
    /// As new means as its image was. To come back to a state that was prepared, make a
    /// [`Sandbox::snapshot`] of it, and a sandbox on that image.
    ///
    /// ```no_run
    /// # use adl_runtime::{Config, Sandbox};
    /// let sandbox = Sandbox::create(Config::default())?;
    /// sandbox.shell("rm -rf /usr; sleep inf &").status()?;
    /// sandbox.reset()?;
    /// assert!(sandbox.command("true").status()?.success());
    /// # Ok::<(), adl_runtime::Error>(())
    /// ```
    ///
    /// # Errors
    /// As [`Sandbox::create`]: all that can fail is done before anything is ended, and the sandbox
    /// goes on as it was. Only where the disk is full, or processes inside have used up what is
    /// needed, it is ended first, and dead if that was not enough.
    ///
    /// [`Error::TimedOut`] where the kernel can't end a process for ten seconds. The sandbox is
    /// dead then, and its processes are still ending; this can be called again, which tells the
    /// same until they have ended, and succeeds from then on.
    pub fn reset(&self) -> Result<()> {
        let span = span!(INFO, "reset", sandbox = &*self.name, spare = Empty,);
        traced(&span, || self.reset_in(&span)).inspect(|()| counts::add(Counted::Reset))
    }

    fn reset_in(&self, span: &Span) -> Result<()> {
        let mut guard = self.now()?;
        let now = alive(&mut guard)?;
        if now.instance.is_ending() {
            now.instance.end_processes()?;
        }
        let spare = self.spare.as_ref().and_then(|spare| spare.take());
        span.record("spare", spare.is_some());
        if let Some(next) = spare {
            return self.swap(now, next);
        }
        let mut hold = None;
        let mut next = match self.make_next(now) {
            // What it has used up is in the way of what it will, and goes first.
            Err(error) if may_be_in_the_way(&error, &now.instance) => {
                let hold = hold.insert(self.lives.hold());
                self.ports.hold();
                let next = self.make_next_after(now, hold);
                next.inspect_err(|_| self.ports.go_on(now.instance.control()))?
            }
            next => next?,
        };
        let is_held = hold.is_some();
        // Who has come to a port that is held is told that nothing comes.
        let go_on = |control: &_| {
            if is_held {
                self.ports.go_on(control)
            }
        };
        let prepared = self.ports.prepare(next.control());
        let ports = prepared.inspect_err(|_| go_on(now.instance.control()))?;
        // A command that begins from here on comes to the next, when there is nothing left of this
        // one: there is no moment at which both do something. The name goes first: it is the last
        // that can fail.
        let hold = hold.unwrap_or_else(|| self.lives.hold());
        let this = &mut now.instance;
        self.exchange_names(this, &mut next).inspect_err(|_| go_on(this.control()))?;
        self.ports.hold();
        if let Err(error) = this.end_processes().and_then(|()| next.record_ids()) {
            // Its own again, for whoever calls again. If that fails, it is the next one's, and free
            // with it.
            let _ = self.exchange_names(this, &mut next);
            self.ports.go_on(this.control());
            return Err(error);
        }
        self.begin(&hold, &next, ports);
        let mut ended = std::mem::replace(this, next);
        drop(hold);
        self.renew_spare(now, None);
        // With the lock still held: who deletes the sandbox next, and then waits for all removals,
        // finds this one among them.
        ended.end()
    }

    /// Puts the spare in the place of the instance, which ends beside. Where anything of a guest's
    /// runs, that has ended before.
    fn swap(&self, now: &mut Now, mut next: Instance) -> Result<()> {
        let hold = self.lives.hold();
        let this = &mut now.instance;
        let prepared = self.ports.prepare(next.control());
        let ports = match prepared.and_then(|p| self.exchange_names(this, &mut next).map(|()| p)) {
            Ok(ports) => ports,
            Err(error) => {
                self.renew_spare(now, Some(next));
                return Err(error);
            }
        };
        self.ports.hold();
        let is_over = self.end_guest(&hold, this);
        if let Err(error) = is_over.and_then(|()| next.record_ids()) {
            let _ = self.exchange_names(this, &mut next);
            self.ports.go_on(this.control());
            self.renew_spare(now, Some(next));
            return Err(error);
        }
        self.begin(&hold, &next, ports);
        let ended = std::mem::replace(this, next);
        drop(hold);
        self.renew_spare(now, Some(ended));
        Ok(())
    }

    /// Kills all of an instance, and returns when nothing of a guest's runs in it any more. Where
    /// nothing does, init is all that ends: no one need wait for that, and its ids may be written
    /// down as the next one's, since it does nothing any more.
    pub(super) fn end_guest(&self, hold: &Hold<'_>, instance: &mut Instance) -> Result<()> {
        match hold.is_beginning() || instance.has_children() {
            true => instance.end_processes(),
            false => instance.kill(),
        }
    }

    /// Has another spare be made of what the sandbox is now, if it has one; `ended` is ended.
    pub(super) fn renew_spare(&self, now: &Now, ended: Option<Instance>) {
        if let Some(spare) = &self.spare {
            spare.renew(self.recipe(now), ended);
        }
    }

    /// What the next instance is made of.
    fn recipe(&self, now: &Now) -> Recipe {
        Recipe {
            plan: Arc::clone(&self.plan),
            hostname: self.hostname().to_owned(),
            state: self.state.clone(),
            image: Arc::clone(&now.image),
            ids: now.ids.clone(),
            cgroups: now.cgroups.clone(),
        }
    }

    /// Has the next instance be what the name stands for, or again this one.
    fn exchange_names(&self, this: &mut Instance, next: &mut Instance) -> Result<()> {
        let (Some(next), this) = (next.directory_mut(), this.directory_mut()) else {
            return Ok(());
        };
        match this {
            Some(this) if next.name() == &*self.name => this.take_name(&self.name, Some(next)),
            this => next.take_name(&self.name, this),
        }
    }

    /// Ends the instance that there is, whose room the next one needs, and makes that.
    fn make_next_after(&self, now: &mut Now, hold: &Hold<'_>) -> Result<Instance> {
        now.instance.end_processes()?;
        hold.mark_gone();
        now.instance.end()?;
        remover::finish_within(ROOM);
        self.make_next_when_there_is_room(now)
    }

    /// Makes the next instance where what was in the way has just been removed. A btrfs gives the
    /// room back when it has written that down, and a subvolume's in the background after that.
    fn make_next_when_there_is_room(&self, now: &Now) -> Result<Instance> {
        let end = Instant::now() + ROOM;
        loop {
            self.state.make_room()?;
            match self.make_next(now) {
                Err(error) if error.is_no_space() && Instant::now() < end => {
                    std::thread::sleep(BETWEEN_ATTEMPTS);
                }
                made => return made,
            }
        }
    }

    /// Makes the instance on the image that is to take the place of this one.
    fn make_next(&self, now: &Now) -> Result<Instance> {
        remover::with_descriptors(|| self.recipe(now).try_to_make())
    }

    pub(super) fn hostname(&self) -> &str {
        self.plan.hostname.as_deref().unwrap_or(&self.name)
    }

    /// Has an instance be what commands are asked of from here on.
    pub(super) fn begin(&self, hold: &Hold<'_>, next: &Instance, ports: Option<Prepared>) {
        hold.replace(Some(next.life(&self.name)));
        self.init_pid.store(next.init_pid(), Ordering::Relaxed);
        self.ports.begin(ports);
    }
}

/// Whether something could not be made because of what a sandbox has used up.
fn may_be_in_the_way(error: &Error, instance: &Instance) -> bool {
    let is_busy = || instance.is_busy().unwrap_or(true);
    error.is_no_space() || error.is_exhausted() && is_busy()
}
