//! The thread that makes what a caller is not to wait for: spares and blanks.

use std::collections::VecDeque;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

use crate::sys::lock::lock;
use crate::sys::owner::PerProcess;

/// What there is to do beside.
pub(crate) trait Work: Send + Sync {
    /// Does what is to be done now.
    fn work(&self);

    /// Has no one wait any more for work that has panicked, as where a caller's subscriber does.
    fn gave_up(&self);
}

/// The thread of this process. A fork makes its own.
static MAKER: PerProcess<Maker> = PerProcess::new();

/// Has the thread look at something soon; `false` where there is no thread.
pub(crate) fn ask<T: Work + 'static>(work: &Arc<T>) -> bool {
    let work: Arc<dyn Work> = Arc::<T>::clone(work);
    MAKER.get().ask(&work)
}

#[derive(Default)]
struct Maker {
    asked: Mutex<Asked>,
    changed: Condvar,
}

#[derive(Default)]
struct Asked {
    all: VecDeque<Arc<dyn Work>>,
    has_thread: bool,
}

impl Maker {
    fn ask(&'static self, work: &Arc<dyn Work>) -> bool {
        let mut asked = lock(&self.asked);
        if !asked.has_thread {
            let thread = std::thread::Builder::new().name("adl-spare".to_owned());
            asked.has_thread = thread.spawn(|| self.run()).is_ok();
        }
        if asked.has_thread && !asked.all.iter().any(|other| Arc::ptr_eq(other, work)) {
            asked.all.push_back(Arc::clone(work));
            self.changed.notify_one();
        }
        asked.has_thread
    }

    fn run(&self) {
        loop {
            let mut asked: MutexGuard<'_, Asked> = lock(&self.asked);
            let work = loop {
                match asked.all.pop_front() {
                    Some(work) => break work,
                    None => {
                        let waited = self.changed.wait(asked);
                        asked = waited.unwrap_or_else(PoisonError::into_inner);
                    }
                }
            };
            drop(asked);
            // The thread is there for all others, too.
            if catch_unwind(AssertUnwindSafe(|| work.work())).is_err() {
                work.gave_up();
            }
        }
    }
}
