//! What the callers and the threads of a pool share, and the rules by which they do.
//!
//! One lock guards all of it, and is held for no longer than it takes to move a sandbox from one
//! list to another. Sandboxes are made, checked and deleted without it.

use std::collections::{BTreeMap, VecDeque};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use tracing::Span;
use tracing::field::Empty;

use crate::error::traced::{span, traced};
use crate::error::{Error, ErrorKind, Result};
use crate::pool::member::{Member, Recipe, text_of};
use crate::pool::stats::PoolStats;
use crate::pool::waiting::{Ticket, Wish};
use crate::sandbox::Sandbox;
use crate::sys::lock::lock;
use crate::sys::most_descriptors;
use crate::sys::owner::Owner;
use crate::wait::Deadline;

/// How long nothing is made after a failure: twice as long after each further one, up to a bound.
const FIRST_PAUSE: Duration = Duration::from_millis(50);
const LONGEST_PAUSE: Duration = Duration::from_secs(5);

/// How many sandboxes may wait for their deletion before callers delete their own.
const BACKLOG: usize = 64;
/// Of how many descriptors that the process may have one of those may have one.
const DESCRIPTORS: u64 = 32;

/// How long the threads of a pool that is closed may take to end: as long as a sandbox may to be
/// made, and to be ended, and no longer where a caller's `prepare` does not return.
const CLOSE: Duration = Duration::from_secs(40);

/// How many sandboxes a pool has.
#[derive(Debug, Clone, Copy)]
pub(super) struct Sizes {
    pub(super) minimum: usize,
    pub(super) maximum: usize,
    pub(super) prefetch: usize,
}

pub(super) struct Shared {
    recipe: Recipe,
    sizes: Sizes,
    owner: Owner,
    state: Mutex<State>,
    /// There may be something for a thread to do.
    work: Condvar,
    /// A thread has ended.
    ended: Condvar,
}

#[derive(Debug, Default)]
struct State {
    /// The oldest first. Where there is any, no one waits.
    idle: VecDeque<Member>,
    /// Who came first is the first.
    waiting: VecDeque<Arc<Ticket>>,
    /// What is to be deleted.
    doomed: VecDeque<Member>,
    /// All that there are, for the end of the pool.
    all: BTreeMap<u64, Arc<Sandbox>>,
    trouble: Option<Trouble>,
    is_closed: bool,
    threads: usize,
    next: u64,
    /// What can be read in the lists is filled in when someone asks.
    stats: PoolStats,
}

/// The last sandbox could not be made.
#[derive(Debug)]
struct Trouble {
    why: Arc<Error>,
    pause: Duration,
    until: Instant,
}

/// What a thread is to do.
pub(super) enum Task {
    Make,
    Delete(Member),
    End,
}

impl Shared {
    pub(super) fn new(recipe: Recipe, sizes: Sizes) -> Self {
        let (state, owner) = (Mutex::default(), Owner::this_process());
        Self { recipe, sizes, owner, state, work: Condvar::new(), ended: Condvar::new() }
    }

    /// Refuses a fork of the process that made the pool: a thread of that may have had the lock.
    pub(super) fn check_own(&self) -> Result<()> {
        self.owner.check("the pool")
    }

    pub(super) fn is_own(&self) -> bool {
        self.owner.is_this_process()
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    pub(super) fn stats(&self) -> PoolStats {
        if !self.is_own() {
            return PoolStats::default();
        }
        let state = self.state();
        let (idle, waiting) = (state.idle.len(), state.waiting.len());
        let deleting = state.stats.deleting + state.doomed.len();
        PoolStats { idle, waiting, deleting, ..state.stats.clone() }
    }

    pub(super) fn is_open(&self) -> bool {
        !self.state().is_closed
    }

    // For callers.

    /// Takes a sandbox that is well, when it is this caller's turn.
    pub(super) fn acquire(&self, within: Duration, wish: Wish<'_>) -> Result<Member> {
        self.check_own()?;
        let (begin, deadline) = (Instant::now(), Deadline::after(within));
        let mut place = Place::Last;
        loop {
            let member = self.take(deadline, place, wish)?;
            if self.recipe.is_well(&member.sandbox) {
                let waited = begin.elapsed();
                let stats = &mut self.state().stats;
                stats.acquired += 1;
                stats.waited += waited;
                stats.waited_most = stats.waited_most.max(waited);
                return Ok(member);
            }
            self.state().stats.sick += 1;
            self.give_back(member);
            place = Place::First;
        }
    }

    /// Takes a sandbox as it is.
    fn take(&self, deadline: Deadline, place: Place, wish: Wish<'_>) -> Result<Member> {
        let mut state = self.state();
        state.check_open()?;
        if let Some(member) = state.take_idle() {
            drop(state);
            // There is one less.
            self.work.notify_one();
            return Ok(member);
        }
        if let Some(why) = state.lasting_trouble() {
            return Err(Error::Pool { why });
        }
        if deadline.passed() {
            return Err(state.late(deadline.length()));
        }
        let begin = Instant::now();
        let ticket = Arc::<Ticket>::default();
        match place {
            Place::Last => state.waiting.push_back(Arc::clone(&ticket)),
            Place::First => state.waiting.push_front(Arc::clone(&ticket)),
        }
        drop(state);
        self.work.notify_one();
        if let Some(given) = ticket.wait(deadline, wish) {
            return given;
        }
        let mut state = self.state();
        let before = state.waiting.len();
        state.waiting.retain(|other| !Arc::ptr_eq(other, &ticket));
        if state.waiting.len() < before {
            let after = if deadline.passed() { deadline.length() } else { begin.elapsed() };
            return Err(state.late(after));
        }
        drop(state);
        // It was given at the last moment.
        ticket.wait(Deadline::NEVER, None).unwrap_or(Err(Error::PoolClosed))
    }

    /// Takes what a reset is to put in the place of another: one that is ready, or one made now.
    pub(super) fn next_for_reset(&self) -> Result<Member> {
        self.check_own()?;
        loop {
            let mut state = self.state();
            state.check_open()?;
            let Some(member) = state.take_idle() else { break };
            drop(state);
            self.work.notify_one();
            if self.recipe.is_well(&member.sandbox) {
                return Ok(member);
            }
            self.state().stats.sick += 1;
            self.give_back(member);
        }
        self.state().stats.making += 1;
        let made = self.make().map_err(|error| (text_of(&error), error));
        let mut state = self.state();
        state.stats.making -= 1;
        match made {
            Ok(member) => {
                state.stats.made += 1;
                state.stats.in_use += 1;
                Ok(member)
            }
            Err((text, error)) => {
                state.stats.failed += 1;
                state.stats.last_error = Some(text);
                Err(error)
            }
        }
    }

    pub(super) fn count_reset(&self) {
        self.state().stats.resets += 1;
    }

    /// Takes a sandbox that was used, or is sick, out of use. It is deleted by a thread, unless
    /// too many wait for that.
    pub(super) fn give_back(&self, member: Member) {
        if !self.is_own() {
            return;
        }
        // So that it does nothing from here on, whenever its turn comes.
        member.sandbox.kill();
        let mut state = self.state();
        state.stats.in_use -= 1;
        if !state.is_closed && state.doomed.len() < self.backlog() {
            state.doomed.push_back(member);
            drop(state);
            self.work.notify_one();
            return;
        }
        state.stats.deleting += 1;
        drop(state);
        // There is room for another now.
        self.work.notify_one();
        self.delete(member);
    }

    fn backlog(&self) -> usize {
        let most = usize::try_from(most_descriptors() / DESCRIPTORS).unwrap_or(BACKLOG);
        most.min(BACKLOG).min(self.sizes.maximum)
    }

    // For threads.

    /// One more thread, or one less.
    pub(super) fn begin_thread(&self) {
        self.state().threads += 1;
    }

    pub(super) fn end_thread(&self) {
        self.state().threads -= 1;
        self.ended.notify_all();
    }

    /// What is to be done next; waits until there is something.
    pub(super) fn next_task(&self) -> Task {
        let mut state = self.state();
        loop {
            let is_wanted = !state.is_closed && state.is_wanted(self.sizes);
            let pause = state.trouble.as_ref().map(Trouble::left).filter(|left| !left.is_zero());
            let may_make = is_wanted && pause.is_none();
            // Who waits comes first, then room for what is next, then what no one has asked for.
            if may_make && !state.waiting.is_empty() {
                state.stats.making += 1;
                return Task::Make;
            }
            if let Some(member) = state.doomed.pop_front() {
                state.stats.deleting += 1;
                return Task::Delete(member);
            }
            if may_make {
                state.stats.making += 1;
                return Task::Make;
            }
            if state.is_closed {
                return Task::End;
            }
            state = match pause.filter(|_| is_wanted) {
                None => self.work.wait(state).unwrap_or_else(PoisonError::into_inner),
                Some(left) => {
                    let waited = self.work.wait_timeout(state, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
    }

    /// Makes a sandbox for whoever waits for one the longest, or for later.
    pub(super) fn make_one(&self) {
        let made = self.make().map_err(|error| (text_of(&error), error));
        let mut state = self.state();
        state.stats.making -= 1;
        match made {
            Ok(member) => {
                state.stats.made += 1;
                state.trouble = None;
                match state.waiting.pop_front() {
                    _ if state.is_closed => state.doomed.push_back(member),
                    Some(ticket) => {
                        state.stats.in_use += 1;
                        ticket.give(Ok(member));
                    }
                    None => state.idle.push_back(member),
                }
            }
            Err((text, error)) => state.fail(text, error),
        }
        drop(state);
        self.work.notify_all();
    }

    /// Makes a sandbox, and prepares it.
    fn make(&self) -> Result<Member> {
        let span = span!(DEBUG, "refill", sandbox = Empty,);
        traced(&span, || self.make_in(&span))
    }

    fn make_in(&self, span: &Span) -> Result<Member> {
        let sandbox = Arc::new(Sandbox::create(self.recipe.config.clone())?);
        span.record("sandbox", sandbox.name());
        let mut state = self.state();
        state.check_open()?;
        let member = Member { number: state.next, sandbox };
        state.next += 1;
        state.all.insert(member.number, Arc::clone(&member.sandbox));
        drop(state);
        let prepare = || self.recipe.prepare(&member.sandbox);
        traced(&span!(DEBUG, "prepare",), prepare).map(|()| member.clone()).inspect_err(|_| {
            let _ = member.sandbox.delete();
            self.state().all.remove(&member.number);
        })
    }

    /// Deletes a sandbox that [`Shared::next_task`] has named, or that was taken out of use.
    pub(super) fn delete(&self, member: Member) {
        // What is wrong is no one's to be told; what is left is for the collector.
        let _ = member.sandbox.delete();
        let mut state = self.state();
        state.stats.deleting -= 1;
        state.stats.deleted += 1;
        state.all.remove(&member.number);
    }

    // The end.

    /// Ends all that there is: who waits is told, and no sandbox is left, in use or not.
    pub(super) fn close(&self) -> Result<()> {
        self.check_own()?;
        let mut state = self.state();
        state.is_closed = true;
        for ticket in std::mem::take(&mut state.waiting) {
            ticket.give(Err(Error::PoolClosed));
        }
        let idle = std::mem::take(&mut state.idle);
        state.doomed.extend(idle);
        // Those that are in use, and that are being prepared, too: that ends what they wait for.
        let all: Vec<_> = state.all.values().map(Arc::clone).collect();
        drop(state);
        self.work.notify_all();
        // None is waited for alone.
        all.iter().for_each(|sandbox| sandbox.kill());
        let ends = all.iter().map(|sandbox| sandbox.delete());
        ends.fold(Ok(()), Result::and)
    }

    /// Waits until no thread is there but so many, which are the caller's own.
    pub(super) fn wait_for_threads(&self, own: usize) -> Result<()> {
        self.check_own()?;
        let deadline = Deadline::after(CLOSE);
        let mut state = self.state();
        while state.threads > own {
            let left = deadline.left().unwrap_or_default();
            if left.is_zero() {
                let what = "the threads of the pool to end: `prepare` has not returned";
                return Err(Error::TimedOut { what, after: deadline.length() });
            }
            let waited = self.ended.wait_timeout(state, left);
            state = waited.unwrap_or_else(PoisonError::into_inner).0;
        }
        Ok(())
    }
}

/// Where in the queue.
#[derive(Clone, Copy)]
enum Place {
    Last,
    /// Of one that has waited before.
    First,
}

impl Trouble {
    /// How long nothing is to be made.
    fn left(&self) -> Duration {
        self.until.saturating_duration_since(Instant::now())
    }
}

impl State {
    fn check_open(&self) -> Result<()> {
        if self.is_closed { Err(Error::PoolClosed) } else { Ok(()) }
    }

    fn take_idle(&mut self) -> Option<Member> {
        let member = self.idle.pop_front()?;
        self.stats.in_use += 1;
        Some(member)
    }

    /// Whether another sandbox is to be made.
    fn is_wanted(&self, sizes: Sizes) -> bool {
        let coming = self.idle.len() + self.stats.making;
        let wanted = self.waiting.len() + sizes.prefetch;
        let wanted = wanted.max(sizes.minimum.saturating_sub(self.stats.in_use));
        coming < wanted && coming + self.stats.in_use < sizes.maximum
    }

    /// Why no sandbox can be made just now, where that does not pass by itself.
    fn lasting_trouble(&self) -> Option<Arc<Error>> {
        let trouble = self.trouble.as_ref().filter(|trouble| !trouble.left().is_zero())?;
        let is_lasting = trouble.why.kind() != ErrorKind::Temporary;
        is_lasting.then(|| Arc::clone(&trouble.why))
    }

    /// Takes down that a sandbox could not be made, and tells all who wait, unless that may pass.
    fn fail(&mut self, text: String, error: Error) {
        self.stats.failed += 1;
        if self.is_closed {
            return;
        }
        let why = Arc::new(error);
        self.stats.last_error = Some(text);
        let pause = match &self.trouble {
            None => FIRST_PAUSE,
            // Of another thread, which began as this one did.
            Some(before) if !before.left().is_zero() => before.pause,
            Some(before) => (before.pause * 2).min(LONGEST_PAUSE),
        };
        self.trouble =
            Some(Trouble { why: Arc::clone(&why), pause, until: Instant::now() + pause });
        if why.kind() != ErrorKind::Temporary {
            for ticket in std::mem::take(&mut self.waiting) {
                ticket.give(Err(Error::Pool { why: Arc::clone(&why) }));
            }
        }
    }

    /// What is told when the time is up: the trouble that there is, or that there is none.
    fn late(&mut self, after: Duration) -> Error {
        self.stats.timed_out += 1;
        match &self.trouble {
            Some(trouble) => Error::Pool { why: Arc::clone(&trouble.why) },
            None => Error::TimedOut { what: "a sandbox of the pool", after },
        }
    }
}
