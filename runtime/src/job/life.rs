//! The life of a sandbox that commands and file calls are asked of: a reset begins another.

use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::config::defaults::Defaults;
use crate::error::{Error, Result};
use crate::job::background::Jobs;
use crate::job::beginning::Beginning;
use crate::sys::lock::lock;
use crate::sys::owner::Owner;
use crate::wait::Deadline;
use crate::wire::control::Control;

/// One life of a sandbox, as a command sees it that begins in it.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    pub(crate) control: Arc<Control>,
    pub(crate) jobs: Arc<Jobs>,
    /// The name of the sandbox.
    pub(crate) sandbox: Arc<str>,
    /// Counts those who have it, and are about to ask for a job.
    beginning: Beginning,
}

impl Life {
    pub(crate) fn new(control: Arc<Control>, jobs: Arc<Jobs>, sandbox: Arc<str>) -> Self {
        Self { control, jobs, sandbox, beginning: Beginning::default() }
    }
}

/// The life that there is now.
#[derive(Debug)]
pub(crate) struct Lives {
    now: Mutex<Now>,
    /// It is not held any more.
    let_go: Condvar,
    owner: Owner,
    /// What is asked of any life starts from them.
    defaults: Defaults,
    user_is_of_image: bool,
}

#[derive(Debug)]
struct Now {
    /// `None` once the sandbox was deleted.
    life: Option<Life>,
    /// Whether no command is to begin.
    is_held: bool,
    /// Whether what that life has written may be removed just now.
    is_gone: bool,
}

impl Lives {
    pub(crate) fn new(first: Life, defaults: Defaults, user_is_of_image: bool) -> Arc<Self> {
        let now = Mutex::new(Now { life: Some(first), is_held: false, is_gone: false });
        let owner = Owner::this_process();
        Arc::new(Self { now, let_go: Condvar::new(), owner, defaults, user_is_of_image })
    }

    /// What commands and file calls start from.
    pub(crate) fn defaults(&self) -> &Defaults {
        &self.defaults
    }

    /// Whether the user that these name is the image's, by name.
    pub(crate) fn user_is_of_image(&self) -> bool {
        self.user_is_of_image
    }

    /// Refuses a fork of the process that made it: a thread of its parent may have had a lock.
    pub(crate) fn check_own(&self) -> Result<()> {
        self.owner.check("the sandbox")
    }

    /// The life that a command begins in. Where it is held, this waits for the next.
    pub(crate) fn begin(&self, deadline: Deadline) -> Result<Life> {
        self.check_own()?;
        let mut now = lock(&self.now);
        while now.is_held {
            now = match deadline.left() {
                None => self.let_go.wait(now).unwrap_or_else(PoisonError::into_inner),
                Some(Duration::ZERO) => {
                    let what = "another thread to reset the sandbox, or to make a snapshot of it";
                    return Err(Error::TimedOut { what, after: deadline.length() });
                }
                Some(left) => {
                    let waited = self.let_go.wait_timeout(now, left);
                    waited.unwrap_or_else(PoisonError::into_inner).0
                }
            };
        }
        now.life.clone().ok_or(Error::Deleted)
    }

    /// The control and the jobs of the life that there is, for who only looks.
    pub(crate) fn look(&self) -> Result<(Arc<Control>, Arc<Jobs>)> {
        self.check_own()?;
        let now = lock(&self.now);
        let life = now.life.as_ref().ok_or(Error::Deleted)?;
        Ok((Arc::clone(&life.control), Arc::clone(&life.jobs)))
    }

    /// Whether a command can begin, now or when what is held goes on.
    pub(crate) fn is_alive(&self) -> bool {
        if self.check_own().is_err() {
            return false;
        }
        let now = lock(&self.now);
        now.life.as_ref().is_some_and(|life| now.is_held || life.control.is_alive())
    }

    /// Whether a control is still that of the life that there is, with all that it has written.
    pub(crate) fn is_whole(&self, control: &Arc<Control>) -> bool {
        let now = lock(&self.now);
        let life = now.life.as_ref().filter(|_| !now.is_gone);
        life.is_some_and(|life| Arc::ptr_eq(&life.control, control))
    }

    /// Has no command begin until what this returns is dropped.
    pub(crate) fn hold(&self) -> Hold<'_> {
        lock(&self.now).is_held = true;
        Hold(self)
    }
}

/// Keeps commands from beginning. There is one at a time, since who has it changes the sandbox.
pub(crate) struct Hold<'a>(&'a Lives);

impl Hold<'_> {
    /// Whether a command begins in the life that there is, of which no process may be there yet.
    pub(crate) fn is_beginning(&self) -> bool {
        let is_beginning = |life: &Life| {
            // One is that of the life itself.
            life.beginning.count() > 1 || life.control.is_any_to_come()
        };
        lock(&self.0.now).life.as_ref().is_some_and(is_beginning)
    }

    /// Puts the next life in the place of that one; none where the sandbox is deleted.
    pub(crate) fn replace(&self, next: Option<Life>) {
        let mut now = lock(&self.0.now);
        (now.life, now.is_gone) = (next, false);
    }

    /// Takes down that what that life has written is about to be removed.
    pub(crate) fn mark_gone(&self) {
        lock(&self.0.now).is_gone = true;
    }
}

impl Drop for Hold<'_> {
    fn drop(&mut self) {
        lock(&self.0.now).is_held = false;
        self.0.let_go.notify_all();
    }
}
