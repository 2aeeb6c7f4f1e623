//! Images in layers, as they are packed for registries, and archives of one root file system.
//!
//! Nothing in them is trusted, and no program of theirs runs to unpack them.

mod ahead;
mod bounds;
pub(crate) mod cache;
pub(crate) mod catalog;
mod compression;
pub(crate) mod digest;
#[cfg(any(test, fuzzing))]
pub(crate) mod fuzzing;
mod implicit;
mod json;
pub(crate) mod layer;
pub(crate) mod layout;
pub(crate) mod lock;
mod manifest;
mod mark;
pub(crate) mod name;
pub(crate) mod options;
pub(crate) mod place;
mod platform;
mod program;
pub(crate) mod pull;
pub(crate) mod record;
pub(crate) mod reference;
mod refusal;
pub(crate) mod unpack;
mod user;
pub(crate) mod view;

#[cfg(test)]
mod tests;

pub(crate) use self::cache::{Cached, of_layers};
pub(crate) use self::compression::plain_beginning;
pub(crate) use self::lock::Lease;
pub(crate) use self::pull::{of_local, of_reference};
pub(crate) use self::record::OpenedLayer;
pub(crate) use self::view::is_opaque;
