//! Opens what the root file system of a sandbox is made of, as a configuration names it.

pub(crate) mod etc;
pub(crate) mod form;
pub(crate) mod host;
pub(crate) mod image;
pub(crate) mod mounts;
mod nodes;
mod private;
pub(crate) mod source;
pub(crate) mod stack;
pub(crate) mod unpack;
