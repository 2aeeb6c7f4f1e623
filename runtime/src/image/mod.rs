//! Images in layers, as they are packed for registries, and archives of one root file system.
//!
//! Nothing in them is trusted, and no program of theirs runs to unpack them.

#![allow(dead_code, reason = "what fetches images is not there yet")]

mod ahead;
mod attributes;
mod compression;
pub(crate) mod digest;
pub(crate) mod layer;
pub(crate) mod unpack;

#[cfg(test)]
mod tests;
