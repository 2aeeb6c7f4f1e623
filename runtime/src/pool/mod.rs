//! `Pool`: sandboxes that are ready before they are asked for.

mod guard;
mod member;
mod shared;
mod stats;
mod waiting;

use std::fmt;
use std::mem;
use std::panic::{AssertUnwindSafe, catch_unwind, resume_unwind};
use std::sync::{Arc, Mutex, Weak};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use tracing::field::Empty;

use crate::config::Config;
use crate::error::traced::{span, traced};
use crate::error::{Error, Result};
pub use crate::pool::guard::PooledSandbox;
use crate::pool::member::Recipe;
use crate::pool::shared::{Shared, Sizes, Task};
pub use crate::pool::stats::PoolStats;
use crate::pool::waiting::Wish;
use crate::sandbox::Sandbox;
use crate::sys::lock::lock;
use crate::sys::owner::PerProcess;

/// What the threads of a pool are named.
const THREAD: &str = "adl-pool";

/// Sandboxes with one configuration that are ready before they are asked for.
///
/// Threads of the pool make them, prepare them and delete them; [`Pool::acquire`] hands one over. A
/// sandbox that was used is deleted, and never handed out again: whatever was done in it, the next
/// caller has a new one.
///
/// A clone is a handle on the same pool, for another thread. When the last one is dropped, the pool
/// is closed ([`Pool::close`]).
///
/// ```no_run
/// use std::time::Duration;
///
/// use adl_runtime::{Config, Pool};
///
/// let pool = Pool::builder(Config::default())
///     .prefetch(4)
///     .maximum(32)
///     .prepare(|sandbox| {
///         sandbox.shell("mkdir /work").status()?;
///         Ok(())
///     })
///     .build()?;
/// let sandbox = pool.acquire(Duration::from_secs(10))?;
/// sandbox.command("ls").current_dir("/work").status()?;
/// drop(sandbox); // back to the pool, which deletes it and makes another
/// # Ok::<(), adl_runtime::Error>(())
/// ```
#[derive(Clone)]
pub struct Pool(Arc<Handle>);

/// What all clones of a pool share, and no sandbox or thread of it.
struct Handle {
    shared: Arc<Shared>,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

/// What a pool is to be; see [`Pool::builder`].
#[must_use = "`build` makes a pool of it"]
pub struct PoolBuilder {
    recipe: Recipe,
    sizes: Sizes,
    threads: usize,
}

impl Pool {
    /// Prepares a pool of sandboxes with this configuration. Each is as [`Sandbox::create`] makes
    /// it, with a name of its own.
    pub fn builder(config: Config) -> PoolBuilder {
        let threads = thread::available_parallelism().map_or(1, usize::from);
        let sizes = Sizes { minimum: 0, maximum: 16, prefetch: 1 };
        PoolBuilder { recipe: Recipe { config, prepare: None, check: None }, sizes, threads }
    }

    /// Takes a sandbox, which is ready: at once where the pool has one, else when one was made and
    /// it is this caller's turn. Who has asked first is the first.
    ///
    /// # Errors
    /// [`Error::TimedOut`] if there is none `within` that time; with [`Duration::ZERO`] that is
    /// told at once. [`Error::Pool`] if none can be made: at once, where the cause lasts
    /// ([`Error::kind`]); where it may pass, the pool tries again, and tells it when the time is
    /// up. [`Error::PoolClosed`].
    pub fn acquire(&self, within: Duration) -> Result<PooledSandbox> {
        self.acquire_by(within, None)
    }

    /// Takes a sandbox as [`Pool::acquire`] does, for as long as `is_wanted` says so: it is asked
    /// before the wait and then each 50 ms. A caller who gives up so leaves the line, and takes no
    /// sandbox of which no one knows.
    ///
    /// # Errors
    /// As [`Pool::acquire`]; what that says when the time is up where it is not wanted any more.
    pub fn acquire_while(
        &self,
        within: Duration,
        is_wanted: impl Fn() -> bool,
    ) -> Result<PooledSandbox> {
        let panicked = Mutex::new(None);
        let acquired = self.acquire_by(
            within,
            // One that panics is out of the line first.
            Some(&|| match catch_unwind(AssertUnwindSafe(&is_wanted)) {
                Ok(is_wanted) => is_wanted,
                Err(panic) => {
                    *lock(&panicked) = Some(panic);
                    false
                }
            }),
        );
        match lock(&panicked).take() {
            Some(panic) => resume_unwind(panic),
            None => acquired,
        }
    }

    fn acquire_by(&self, within: Duration, wish: Wish<'_>) -> Result<PooledSandbox> {
        let shared = &self.0.shared;
        let span = span!(DEBUG, "acquire", sandbox = Empty,);
        let member = traced(&span, || shared.acquire(within, wish))?;
        span.record("sandbox", member.sandbox.name());
        Ok(PooledSandbox::new(member, Arc::clone(shared)))
    }

    /// What it has now, and has done until now.
    pub fn stats(&self) -> PoolStats {
        self.0.shared.stats()
    }

    /// Ends the pool: all its sandboxes are deleted, those in use among them, whose users are told
    /// [`Error::Deleted`]; all who wait are told [`Error::PoolClosed`]; its threads end. When it
    /// returns, none of that is left. Dropping the last handle does the same, but can't tell what
    /// went wrong.
    ///
    /// # Errors
    /// [`Error::TimedOut`] where `prepare` does not return, or the kernel can't end a process: the
    /// rest is done. Others as [`Sandbox::delete`].
    pub fn close(&self) -> Result<()> {
        self.0.close()
    }
}

impl fmt::Debug for Pool {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_tuple("Pool").field(&self.stats()).finish()
    }
}

impl Handle {
    fn close(&self) -> Result<()> {
        let ended = self.shared.close();
        let is_own = |thread: &JoinHandle<()>| thread.thread().id() == thread::current().id();
        // In `prepare`, the caller is one of them.
        let own = lock(&self.threads).iter().filter(|thread| is_own(thread)).count();
        self.shared.wait_for_threads(own)?;
        for thread in mem::take(&mut *lock(&self.threads)) {
            if !is_own(&thread) {
                // It has ended, and has caught what it panicked with.
                let _ = thread.join();
            }
        }
        ended
    }
}

impl Drop for Handle {
    fn drop(&mut self) {
        if self.shared.is_own() {
            // There is no one to tell.
            let _ = self.close();
            return;
        }
        // In a fork there are no such threads, and nothing is to be done to them.
        if let Ok(threads) = self.threads.get_mut() {
            mem::take(threads).into_iter().for_each(mem::forget);
        }
    }
}

impl PoolBuilder {
    /// How many sandboxes there are at least, ready and in use together; none by default.
    pub fn minimum(mut self, count: usize) -> Self {
        self.sizes.minimum = count;
        self
    }

    /// How many sandboxes there are at most: those that are ready, in use and being made; 16 by
    /// default. Beside them there may be as many, but no more than 64, that wait to be deleted.
    pub fn maximum(mut self, count: usize) -> Self {
        self.sizes.maximum = count;
        self
    }

    /// How many sandboxes are kept ready beside those in use; one by default.
    pub fn prefetch(mut self, count: usize) -> Self {
        self.sizes.prefetch = count;
        self
    }

    /// How many threads make and delete sandboxes, and so how many are made at once; by default as
    /// many as there are processors.
    pub fn threads(mut self, count: usize) -> Self {
        self.threads = count;
        self
    }

    /// Runs this on each new sandbox, before it is handed out: to start a server in it, say, or to
    /// fill a cache. A sandbox of which it fails is deleted, and so is one of which it panics;
    /// [`Pool::acquire`] and [`Pool::stats`] tell the error, and the next one is tried after a
    /// pause, which grows.
    ///
    /// It runs in threads of the pool, in several at once. When the pool is closed, its sandbox is
    /// deleted, and what it waits for there ends.
    pub fn prepare<F>(mut self, prepare: F) -> Self
    where
        F: Fn(&Sandbox) -> Result<(), Box<dyn std::error::Error + Send + Sync>>,
        F: Send + Sync + 'static,
    {
        self.recipe.prepare = Some(Box::new(prepare));
        self
    }

    /// Asks this whether a sandbox is well: when it was prepared, and again when it is handed out,
    /// in the thread of the caller of [`Pool::acquire`]. One that is not is deleted, and another
    /// takes its place. By default a sandbox is well that is alive, which is looked at in any case.
    pub fn check<F>(mut self, check: F) -> Self
    where
        F: Fn(&Sandbox) -> bool + Send + Sync + 'static,
    {
        self.recipe.check = Some(Box::new(check));
        self
    }

    /// Makes the pool, which begins to make sandboxes, and returns without waiting for any.
    ///
    /// # Errors
    /// [`Error::Invalid`] for what is wrong with the configuration, which has to be without a name,
    /// or with the numbers; [`Error::Io`] if there can be no thread.
    pub fn build(self) -> Result<Pool> {
        let Self { recipe, sizes, threads } = self;
        if recipe.config.name.is_some() {
            let why = "the sandboxes of a pool can't all have one: leave it out";
            return Err(Error::invalid("name", why));
        }
        Sandbox::check(&recipe.config)?;
        if sizes.maximum == 0 || sizes.minimum > sizes.maximum {
            let why = format!("at least {} and at most {}", sizes.minimum, sizes.maximum);
            return Err(Error::invalid("number of sandboxes in a pool", why));
        }
        if threads == 0 {
            return Err(Error::invalid("number of threads of a pool", "there is none"));
        }
        let shared = Arc::new(Shared::new(recipe, sizes));
        register(&shared);
        let pool = Pool(Arc::new(Handle { shared, threads: Mutex::default() }));
        for _ in 0..threads {
            // If there can be none, the others end with the pool.
            let thread = begin_thread(&pool.0.shared)?;
            lock(&pool.0.threads).push(thread);
        }
        Ok(pool)
    }
}

impl fmt::Debug for PoolBuilder {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { recipe, sizes, threads } = self;
        let mut debug = f.debug_struct("PoolBuilder");
        debug.field("config", &recipe.config).field("sizes", sizes).field("threads", threads);
        debug.finish_non_exhaustive()
    }
}

/// The pools of this process, for its metrics.
static POOLS: PerProcess<Mutex<Vec<Weak<Shared>>>> = PerProcess::new();

fn register(shared: &Arc<Shared>) {
    let mut pools = lock(POOLS.get());
    pools.retain(|pool| pool.strong_count() != 0);
    pools.push(Arc::downgrade(shared));
}

/// What the pools of this process have and have done, without those that are closed.
pub(crate) fn all_stats() -> Vec<PoolStats> {
    let pools: Vec<_> = lock(POOLS.get()).iter().filter_map(Weak::upgrade).collect();
    pools.iter().filter(|pool| pool.is_open()).map(|pool| pool.stats()).collect()
}

fn begin_thread(shared: &Arc<Shared>) -> Result<JoinHandle<()>> {
    let this = Arc::clone(shared);
    shared.begin_thread();
    let thread = thread::Builder::new().name(THREAD.to_owned()).spawn(move || {
        // Whoever waits for its end is told.
        let _ = catch_unwind(AssertUnwindSafe(|| work(&this)));
        this.end_thread();
    });
    thread.map_err(|error| {
        shared.end_thread();
        Error::io("start a thread")(error)
    })
}

fn work(shared: &Shared) {
    loop {
        match shared.next_task() {
            Task::Make => shared.make_one(),
            Task::Delete(member) => shared.delete(member),
            Task::End => return,
        }
    }
}
