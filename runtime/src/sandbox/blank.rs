//! Blanks: inits that have begun their set-up before a sandbox is asked for.
//!
//! Most of what a create takes does not depend on the root file system: the clone into new
//! namespaces, the map of ids, `/proc` and `/dev`. A blank has that behind it and waits for the
//! rest. No guest has ever run in it, and it is used once.
//!
//! What a blank was made in shows in it: the cgroup, the limits, the user of the moment. So each
//! create compares that with what is now, and whatever differs is ended.

use std::collections::VecDeque;
use std::sync::{Arc, Condvar, Mutex, PoisonError};

use adl_protocol::Origin;

use crate::error::traced::{span, traced};
use crate::error::{Error, Result};
use crate::sandbox::beginning::{Beginning, Shape};
use crate::sandbox::beside::{self, Work};
use crate::sandbox::counts::{self, Counted};
use crate::sandbox::instance::{Preparing, Started};
use crate::store::remover;
use crate::sys::empty_namespace::EmptyNamespace;
use crate::sys::lock::lock;
use crate::sys::owner::PerProcess;
use crate::sys::surroundings::Surroundings;

/// Has this process keep up to `most` *blanks*, with which [`Sandbox::create`] takes half as long.
///
/// A blank is an init in namespaces of its own in which nothing has run yet. After each create a
/// thread makes one for the next sandbox. A create takes it if its [`Config`](crate::Config) has
/// the same kind of network, ids, capabilities, filter, kernel parameters and size of `/dev`;
/// image, mounts, the values of limits and name may differ. A sandbox made of a blank is as one
/// made without.
///
/// To make a blank takes about a millisecond. A create that comes sooner, or that no blank fits,
/// makes all of the sandbox itself. For two kinds of sandboxes in turn, keep two.
///
/// Without this call there are no blanks. Each takes a process, a range of ids, and three
/// descriptors. They end with the calling process, and with `keep_blanks(0)`, which waits for that.
/// There are none for what starts with a copy of the caller's mounts, which would be old: a sandbox
/// with the host's network and a `/sys`; an ordinary user's with subordinate ids or with cgroups in
/// `/sys`.
///
/// A blank that was made under other limits (`setrlimit(2)`), in another cgroup, or with other
/// rights or namespaces than the calling thread has now is not used. The kernel does not tell of
/// Landlock (`landlock(7)`): call `keep_blanks(0)` before you restrict the process by that.
///
/// A [`Pool`](crate::Pool) has whole sandboxes ready and is faster still; blanks are for programs
/// whose sandboxes differ.
///
/// ```no_run
/// # use adl_runtime::{Config, Image, Sandbox, keep_blanks};
/// keep_blanks(1);
/// for image in ["/srv/one", "/srv/two"] {
///     let config = Config { image: Image::directory(image), ..Config::default() };
///     let sandbox = Sandbox::create(config)?;
///     sandbox.command("/bin/work").status()?;
/// }
/// keep_blanks(0);
/// # Ok::<(), adl_runtime::Error>(())
/// ```
///
/// [`Sandbox::create`]: crate::Sandbox::create
pub fn keep_blanks(most: usize) {
    let blanks = BLANKS.get();
    if most != 0 {
        EmptyNamespace::expect();
    }
    let mut now = lock(&blanks.now);
    now.most = most;
    let keep = now.ready.len().min(most);
    now.forget_kinds();
    let mut ended = std::mem::take(&mut now.ended);
    ended.extend(now.ready.drain(keep..));
    if most == 0 {
        while now.is_in_hand {
            now = blanks.done.wait(now).unwrap_or_else(PoisonError::into_inner);
        }
        ended.append(&mut now.ended);
    }
    drop(now);
    drop(ended);
}

/// How many blanks are ready now, of the [`keep_blanks`] that are kept.
#[must_use]
pub fn blanks_ready() -> usize {
    lock(&BLANKS.get().now).ready.len()
}

#[derive(Debug)]
struct Blank {
    shape: Shape,
    made_in: Surroundings,
    preparing: Preparing,
}

impl Blank {
    /// `None` where something has changed meanwhile.
    fn make(beginning: &Beginning) -> Result<Option<Self>> {
        let look = || Surroundings::of_thread().map_err(Error::io("look at /proc/thread-self"));
        let shape = beginning.shape()?;
        let made_in = look()?;
        let preparing = traced(&span!(DEBUG, "make_blank",), || {
            remover::with_descriptors(|| Started::begin(beginning))
        })?;
        // It has a copy of all mounts, as they were: what is mounted since would be missing, and
        // what is unmounted would stay in use.
        if preparing.origin() != Origin::Empty {
            return Ok(None);
        }
        counts::add(Counted::BlankMade);
        Ok((look()? == made_in).then_some(Self { shape, made_in, preparing }))
    }
}

/// The blanks of this process. A fork makes its own.
static BLANKS: PerProcess<Arc<Blanks>> = PerProcess::new();

#[derive(Debug, Default)]
struct Blanks {
    now: Mutex<Now>,
    /// The thread has made one, or not.
    done: Condvar,
}

#[derive(Debug, Default)]
struct Now {
    most: usize,
    /// The oldest first.
    ready: VecDeque<Blank>,
    /// What the next ones are to be for: kinds that were asked for lately, the last one last, and
    /// no more than there may be blanks.
    wanted: VecDeque<(Shape, Beginning)>,
    /// What is to be ended.
    ended: Vec<Blank>,
    is_in_hand: bool,
}

/// Whether any are kept.
pub(crate) fn are_kept() -> bool {
    lock(&BLANKS.get().now).most != 0
}

/// Takes one that does for a beginning, if there is one.
pub(crate) fn take(beginning: &Beginning) -> Result<Option<Preparing>> {
    let shape = beginning.shape()?;
    // What can't be compared is not used.
    let Ok(surroundings) = Surroundings::of_thread() else { return Ok(None) };
    let mut now = lock(&BLANKS.get().now);
    let Now { ready, ended, .. } = &mut *now;
    let (fit, other) = ready
        .drain(..)
        .partition(|blank| blank.made_in == surroundings && blank.preparing.is_alive());
    *ready = fit;
    ended.extend::<VecDeque<_>>(other);
    let found = ready.iter().position(|blank| blank.shape == shape);
    let found = found.and_then(|found| ready.remove(found));
    drop(now);
    if found.is_some() {
        counts::add(Counted::BlankTaken);
    }
    Ok(found.map(|blank| blank.preparing.of(beginning)))
}

/// Has blanks like this be made, up to as many as are kept, where `origin` is what the like has.
pub(crate) fn renew(beginning: Beginning, origin: Origin) {
    if origin != Origin::Empty {
        return;
    }
    let blanks = BLANKS.get();
    let mut now = lock(&blanks.now);
    if now.most != 0
        && let Ok(shape) = beginning.shape()
    {
        now.wanted.retain(|(other, _)| *other != shape);
        now.wanted.push_back((shape, beginning));
        now.forget_kinds();
        drop(now);
        // Where there is no thread, there are none.
        beside::ask(blanks);
    }
}

impl Now {
    /// Forgets the kinds that were asked for before so many others.
    fn forget_kinds(&mut self) {
        let too_many = self.wanted.len().saturating_sub(self.most);
        self.wanted.drain(..too_many);
    }

    /// What is to be made: of each kind one, then more of the last. What is in the place of that
    /// goes: a kind that no one wants any more, or one of several.
    fn next(&mut self) -> Option<Beginning> {
        let Self { most, ready, wanted, ended, .. } = self;
        let count = |shape: &Shape| ready.iter().filter(|blank| blank.shape == *shape).count();
        let missing = wanted.iter().rev().find(|(shape, _)| count(shape) == 0);
        if ready.len() < *most {
            let (_, beginning) = missing.or(wanted.back())?;
            return Some(beginning.clone());
        }
        let (_, beginning) = missing?;
        let is_spare = |blank: &Blank| {
            count(&blank.shape) > 1 || wanted.iter().all(|(shape, _)| *shape != blank.shape)
        };
        let spare = ready.iter().position(is_spare)?;
        let beginning = beginning.clone();
        ended.extend(ready.remove(spare));
        Some(beginning)
    }
}

impl Blanks {
    /// Keeps one that was made, unless fewer are kept by now.
    fn put(&self, made: Option<Blank>) {
        let mut now = lock(&self.now);
        let one_too_many = match made {
            Some(made) if now.ready.len() < now.most => {
                now.ready.push_back(made);
                None
            }
            made => made,
        };
        drop(now);
        drop(one_too_many);
        let mut now = lock(&self.now);
        now.is_in_hand = false;
        self.done.notify_all();
    }
}

impl Work for Blanks {
    /// One at a time: spares have their turn.
    fn work(&self) {
        let mut now = lock(&self.now);
        let next = now.next();
        let ended = std::mem::take(&mut now.ended);
        now.is_in_hand = true;
        drop(now);
        // Its end can't be told to anyone: the collector finds what is left.
        drop(ended);
        // Where it fails, a create makes its own, and tells.
        let made = next.and_then(|beginning| Blank::make(&beginning).ok().flatten());
        let is_made = made.is_some();
        self.put(made);
        if is_made {
            beside::ask(BLANKS.get());
        }
    }

    fn gave_up(&self) {
        self.put(None);
    }
}
