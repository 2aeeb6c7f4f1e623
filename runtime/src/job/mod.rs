//! What runs in a sandbox: how it is started, followed, and what becomes of it.

pub(crate) mod background;
mod beginning;
pub(crate) mod captures;
pub(crate) mod child;
mod collect;
pub(crate) mod command;
pub(crate) mod counts;
pub(crate) mod environment;
pub(crate) mod kill_all;
pub(crate) mod life;
mod outcome;
pub(crate) mod pending;
mod reader;
mod relay;
pub(crate) mod running;
pub(crate) mod stdio;
pub(crate) mod terminal;
pub(crate) mod user;
pub(crate) mod watch;
