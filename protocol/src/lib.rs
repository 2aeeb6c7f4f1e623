//! The wire between `adl-runtime` on the host and `adl-init`, PID 1 of a sandbox.
//!
//! Two kinds of stream socket carry frames (see [`codec`]):
//!
//! * the **control** socket, one per sandbox: [`Request`] towards init, [`Reply`] back;
//! * a **job channel**, one per job: [`JobEvent`] towards the host, [`JobRequest`] back.
//!
//! Bytes of a job (its stdin, stdout, stderr) never travel in frames: the host makes the pipes
//! and passes their ends with `SCM_RIGHTS` beside the [`Spawn`] request. Descriptors belong to
//! frames in order: a frame that needs `n` of them takes the next `n` that arrived.
//!
//! Neither side trusts the other: decoding is total, bounded by [`limits`], and refuses trailing
//! bytes. No type on the wire is recursive and no list has elements of size zero, because those
//! two shapes can make a length-checked decoder spin or overflow its stack.
//!
//! ```
//! use adl_protocol::{codec, Reply, VERSION};
//!
//! let mut frame = Vec::new();
//! codec::encode(&Reply::Ready { version: VERSION, network: 1 }, &mut frame)?;
//! let (header, body) = frame.split_at(codec::HEADER);
//! assert_eq!(codec::body_length(header.try_into().unwrap())?, body.len());
//! assert_eq!(codec::decode::<Reply>(body)?, Reply::Ready { version: VERSION, network: 1 });
//! # Ok::<(), codec::Error>(())
//! ```
#![no_std]
#![forbid(unsafe_code)]

extern crate alloc;

pub mod codec;
mod file;
mod job;
pub mod limits;
mod setup;
mod strings;
mod transfer;

pub use file::{FileAction, FileKind, FileTask, Listing, Metadata, Time, WriteHow};
pub use job::{
    CpuLimit, EndedBy, Exit, Identity, JobEvent, JobRequest, JobStdio, Leftovers, Login, Program,
    Rlimit, Scope, Spawn, Stage, Status, StdioSource, Task, Usage,
};
pub use setup::{
    Access, Cgroups, DEV_INODES, DEV_SIZE, DEVICE, DEVICE_NODES, DeviceNode, IdMaps, Identities,
    Layer, Mount, Mounts, NetworkOrigin, Origin, Setup, SetupFailure, Step, Upper, What,
};
pub use strings::{Strings, StringsError};
pub use transfer::{
    Attributes, Chunk, Entry, MAX_ATTRIBUTES, MAX_CHUNK, MAX_DEPTH, MAX_NAME, is_plain_name,
};

use serde::{Deserialize, Serialize};

/// The version of the wire; both sides refuse any other.
///
/// The runtime embeds the init that it was built with, so a difference means a wrong binary
/// (`ADL_INIT`), never an upgrade to be negotiated.
pub const VERSION: u32 = 14;

/// What the host asks for on the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Request<'a> {
    /// Begin to build the sandbox; the first request, sent once.
    #[serde(borrow)]
    Setup(Setup<'a>),
    /// Go on with the root file system: the second request, or the third after [`Self::Mapped`].
    /// The host makes what it lies on while init does what it was told in the first.
    #[serde(borrow)]
    Mounts(Mounts<'a>),
    /// Start a job.
    #[serde(borrow)]
    Spawn(Spawn<'a>),
    /// End, and with it every process of the sandbox.
    Shutdown,
    /// Go on with these in `/sys/fs/cgroup`: the next request, where [`Setup::cgroups`] says so. The
    /// host makes them while init mounts.
    #[serde(borrow)]
    Cgroups(Cgroups<'a>),
    /// Go on: the ids are mapped.
    Mapped,
}

/// What init answers on the control socket.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Reply<'a> {
    /// Every step of set-up succeeded, and the last one closed the door behind init. With it comes
    /// a descriptor of the mount namespace, which the host holds to decide when it goes.
    Ready {
        /// [`VERSION`] as init was built with.
        version: u32,
        /// The cookie of the network namespace (`SO_NETNS_COOKIE`), as the first socket that was
        /// made in it tells it: each that is handed out later has the same.
        network: u64,
    },
    /// A step of set-up failed; init exits after this.
    #[serde(borrow)]
    Failed(SetupFailure<'a>),
    /// Init is dumpable, as one must be whose ids are to be mapped by an ordinary user's programs,
    /// and waits for that.
    Unmapped,
}
