//! The spare of a sandbox: its next instance, made beside it before a reset asks for it.
//!
//! One thread of the process ends what resets have put out of place, and makes the next spares
//! (`beside.rs`).
//! A sandbox has one spare at most, and none while what it was before is still ending: a caller
//! that resets faster than the thread makes spares makes its own.

use std::sync::{Arc, Condvar, Mutex, PoisonError};

use crate::cgroup;
use crate::error::Result;
use crate::error::traced::{span, traced};
use crate::sandbox::beside::{self, Work};
use crate::sandbox::counts::{self, Counted};
use crate::sandbox::instance::{Instance, Started};
use crate::sandbox::plan::Plan;
use crate::sandbox::root::Root;
use crate::store::ids::IdRange;
use crate::store::{State, remover};
use crate::sys::lock::lock;

/// What the next instance of a sandbox is made of, as it would be now.
#[derive(Debug, Clone)]
pub(crate) struct Recipe {
    pub(crate) plan: Arc<Plan>,
    pub(crate) hostname: String,
    pub(crate) state: State,
    pub(crate) image: Arc<Root>,
    pub(crate) ids: Option<Arc<IdRange>>,
    pub(crate) cgroups: Option<cgroup::Plan>,
}

impl Recipe {
    fn make(&self) -> Result<Instance> {
        let span = span!(DEBUG, "make_spare", sandbox = &*self.hostname,);
        traced(&span, || remover::with_descriptors(|| self.try_to_make()))
    }

    /// Makes it. It may want for descriptors that removals give back.
    pub(crate) fn try_to_make(&self) -> Result<Instance> {
        let next = Started::new(&self.plan, self.ids.clone())?;
        let takes_subvolumes = self.image.takes_subvolumes();
        let next = next.prepare(&self.plan, takes_subvolumes, self.cgroups.clone())?;
        let directory = self.state.make_aside(&self.image.layout()?)?;
        next.set_up(&self.hostname, directory, Arc::clone(&self.image), |_| Ok(()))
    }
}

/// The spare of one sandbox, whether or not there is one now.
#[derive(Debug, Default)]
pub(crate) struct Spare {
    now: Mutex<Now>,
    /// The thread has done something for it.
    done: Condvar,
}

#[derive(Debug, Default)]
struct Now {
    ready: Option<Instance>,
    /// What the next one is to be made of. It is made when there is nothing left to be ended.
    wanted: Option<Recipe>,
    /// What is to be ended.
    ended: Vec<Instance>,
    /// Whether the thread works for it. What it makes is thrown away where another is wanted.
    is_in_hand: bool,
    /// Whether the sandbox is being deleted: there is to be none any more.
    is_closed: bool,
}

impl Now {
    /// Takes out what is ready, to be ended.
    fn discard(&mut self) -> Option<Instance> {
        let ready = self.ready.take();
        if ready.is_some() {
            counts::add(Counted::SpareDiscarded);
        }
        ready
    }
}

impl Spare {
    /// Takes it, if it is ready and alive.
    pub(crate) fn take(&self) -> Option<Instance> {
        let mut now = lock(&self.now);
        let spare = now.ready.take()?;
        if spare.control().is_alive() {
            counts::add(Counted::SpareTaken);
            return Some(spare);
        }
        counts::add(Counted::SpareDiscarded);
        now.ended.push(spare);
        None
    }

    pub(crate) fn is_ready(&self) -> bool {
        lock(&self.now).ready.is_some()
    }

    /// Has another be made of this, in the place of any that there is. `ended` is ended before.
    ///
    /// Where there is no thread to do it, there is no spare, and what was to be ended is dropped,
    /// which ends it.
    pub(crate) fn renew(self: &Arc<Self>, recipe: Recipe, ended: Option<Instance>) {
        let mut now = lock(&self.now);
        let before = now.discard();
        now.ended.extend(before.into_iter().chain(ended));
        now.wanted = Some(recipe);
        drop(now);
        if !beside::ask(self) {
            let ended = std::mem::take(&mut lock(&self.now).ended);
            drop(ended);
        }
    }

    /// Ends it for good. What there is of it, all that was to be ended among it, is the caller's to
    /// end. Waits for the thread, if that works for it just now.
    pub(crate) fn close(&self) -> Vec<Instance> {
        let mut now = lock(&self.now);
        now.is_closed = true;
        now.wanted = None;
        let mut left = std::mem::take(&mut now.ended);
        while now.is_in_hand {
            now = self.done.wait(now).unwrap_or_else(PoisonError::into_inner);
        }
        left.append(&mut now.ended);
        left.extend(now.discard());
        left
    }

    fn finish(&self, made: Option<Instance>) {
        let mut now = lock(&self.now);
        match made {
            // Another is wanted already.
            Some(made) if now.is_closed || now.wanted.is_some() => {
                counts::add(Counted::SpareDiscarded);
                now.ended.push(made);
            }
            Some(made) => now.ready = Some(made),
            None => {}
        }
        now.is_in_hand = false;
        self.done.notify_all();
    }
}

impl Work for Spare {
    fn work(&self) {
        let mut now = lock(&self.now);
        let (ended, recipe) = (std::mem::take(&mut now.ended), now.wanted.take());
        now.is_in_hand = true;
        drop(now);
        // Its end can't be told to anyone: the collector finds what is left.
        drop(ended);
        // Where it fails, a reset makes its own, and tells.
        let make = |recipe: Recipe| {
            let made = recipe.make();
            counts::add(if made.is_ok() { Counted::SpareMade } else { Counted::SpareFailed });
            made.ok()
        };
        let made = recipe.and_then(make);
        self.finish(made);
    }

    fn gave_up(&self) {
        self.finish(None);
    }
}
