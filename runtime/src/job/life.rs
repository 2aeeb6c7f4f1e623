//! The life of a sandbox that commands and file calls are asked of: a reset begins another.

use std::sync::{Arc, PoisonError, RwLock, RwLockWriteGuard};

use crate::error::Result;
use crate::job::background::Jobs;
use crate::job::beginning::Beginning;
use crate::sys::owner::Owner;
use crate::wire::control::Control;

/// One life of a sandbox, as a command sees it that begins in it.
#[derive(Debug, Clone)]
pub(crate) struct Life {
    pub(crate) control: Arc<Control>,
    pub(crate) jobs: Arc<Jobs>,
    beginning: Beginning,
}

impl Life {
    pub(crate) fn new(control: Arc<Control>, jobs: Arc<Jobs>) -> Self {
        Self { control, jobs, beginning: Beginning::default() }
    }

    /// What keeps the sandbox busy until it is dropped, for a command that begins.
    pub(crate) fn beginning(&self) -> Beginning {
        self.beginning.clone()
    }

    /// Whether a command begins in it, of which no process may be there yet.
    pub(crate) fn is_beginning(&self) -> bool {
        // One is that of the life itself.
        self.beginning.count() > 1
    }
}

/// The life that there is now.
#[derive(Debug)]
pub(crate) struct Lives {
    now: RwLock<Life>,
    owner: Owner,
}

impl Lives {
    pub(crate) fn new(first: Life) -> Arc<Self> {
        Arc::new(Self { now: RwLock::new(first), owner: Owner::this_process() })
    }

    /// Refuses a fork of the process that made it: a thread of its parent may have had a lock.
    pub(crate) fn check_own(&self) -> Result<()> {
        self.owner.check("the sandbox")
    }

    /// The life that there is now. Where it is held, this waits for the next.
    pub(crate) fn now(&self) -> Result<Life> {
        self.check_own()?;
        Ok(self.now.read().unwrap_or_else(PoisonError::into_inner).clone())
    }

    /// Has no command begin until the next life is put in its place, or this is dropped.
    pub(crate) fn hold(&self) -> RwLockWriteGuard<'_, Life> {
        self.now.write().unwrap_or_else(PoisonError::into_inner)
    }
}
