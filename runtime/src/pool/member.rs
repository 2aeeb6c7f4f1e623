//! One sandbox of a pool, and how it is made.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::Arc;

use crate::config::Config;
use crate::error::{Error, Result};
use crate::sandbox::Sandbox;

/// A sandbox of a pool, by a number of its own.
#[derive(Debug, Clone)]
pub(super) struct Member {
    pub(super) number: u64,
    pub(super) sandbox: Arc<Sandbox>,
}

/// Why a caller's `prepare` has failed.
pub(super) type Refusal = Box<dyn std::error::Error + Send + Sync>;
type Prepare = Box<dyn Fn(&Sandbox) -> Result<(), Refusal> + Send + Sync>;
type Check = Box<dyn Fn(&Sandbox) -> bool + Send + Sync>;

/// What all sandboxes of a pool are made by.
pub(super) struct Recipe {
    pub(super) config: Config,
    pub(super) prepare: Option<Prepare>,
    pub(super) check: Option<Check>,
}

impl Recipe {
    /// Makes a new sandbox ready, by the caller's code: what that panics with is an error here.
    pub(super) fn prepare(&self, sandbox: &Sandbox) -> Result<()> {
        if let Some(prepare) = &self.prepare {
            let prepared = catch_unwind(AssertUnwindSafe(|| prepare(sandbox)));
            let prepared = prepared.unwrap_or_else(|panic| Err(said(&*panic).into()));
            prepared.map_err(|why| Error::Prepare { why })?;
        }
        match self.is_well(sandbox) {
            true => Ok(()),
            false => Err(Error::Prepare { why: "the new sandbox is not well".into() }),
        }
    }

    /// Whether a sandbox can be handed out. A check that panics says no.
    pub(super) fn is_well(&self, sandbox: &Sandbox) -> bool {
        let check = |check: &Check| catch_unwind(AssertUnwindSafe(|| check(sandbox)));
        sandbox.is_alive() && self.check.as_ref().is_none_or(|it| check(it).unwrap_or(false))
    }
}

/// What an error says. Where it is of a caller's `prepare`, that is the caller's code, which may
/// wait for whoever else uses the pool: this is no thing to do with the lock.
pub(super) fn text_of(error: &Error) -> String {
    let text = catch_unwind(AssertUnwindSafe(|| error.to_string()));
    text.unwrap_or_else(|panic| said(&*panic))
}

/// What a panic has said.
fn said(panic: &(dyn std::any::Any + Send)) -> String {
    let text = panic.downcast_ref::<&str>().copied();
    let text = text.or_else(|| panic.downcast_ref::<String>().map(String::as_str));
    format!("it panicked: {}", text.unwrap_or("without a message"))
}
