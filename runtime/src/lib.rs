//! A low-level Linux sandbox runtime.
//!
//! A sandbox is a set of namespaces with a root file system of its own, made out of read-only
//! layers and a writable one, and a tiny static init as its PID 1, which starts commands without
//! a shell. Creating one takes about a millisecond, and when it is dropped, or the process that
//! made it ends, nothing is left of it.
//!
//! ```no_run
//! use adl_runtime::{Config, Image, Sandbox, Stdio};
//!
//! let sandbox = Sandbox::create(Config { image: Image::host(), ..Config::default() })?;
//! let output = sandbox.command("/bin/echo").arg("hello").env("A", "b").current_dir("/tmp").output()?;
//! assert!(output.status.success());
//! assert_eq!(output.stdout, b"hello\n");
//! let mut child = sandbox.command("/bin/cat").stdin(Stdio::piped()).stdout(Stdio::piped()).spawn()?;
//! child.wait()?;
//! sandbox.shell("echo hi | wc -c").output()?;
//! sandbox.delete()?;
//! # Ok::<(), adl_runtime::Error>(())
//! ```
//!
//! How one starts: [`Sandbox::create`] opens what needs the host's authority, clones init into
//! new namespaces, maps its ids and sends it the plan; init mounts, gives up its rights, installs
//! the system call filters and says that it is ready. `ARCHITECTURE.md` tells the whole.
//!
//! The library changes nothing of the process that uses it: no signal handler, no umask, no
//! working directory. It needs Linux 5.19 or later on x86_64.

#![cfg_attr(
    test,
    allow(
        clippy::unwrap_used,
        clippy::expect_used,
        clippy::indexing_slicing,
        clippy::panic,
        reason = "a test fails by panicking"
    )
)]

mod background;
mod btrfs;
mod bytes;
mod capabilities;
mod cgroup;
mod changes;
mod child;
mod collect;
mod command;
mod config;
mod control;
pub mod doctor;
mod error;
mod exit;
mod files;
mod garbage;
mod host_path;
mod ids;
mod image;
mod init_binary;
mod init_record;
mod instance;
mod launch;
mod layers;
mod limits;
mod lock;
#[cfg(test)]
mod loop_disk;
mod mount;
mod open;
mod owner;
mod private;
mod proc;
mod quota;
mod remove;
mod root;
mod running;
mod sandbox;
mod seccomp;
mod snapshot;
mod state;
mod stats;
mod stdio;
mod sys;
mod terminal;
mod tree;
mod unpack;
mod user;
mod wire;

pub use background::{Job, JobId, SoFar};
pub use capabilities::{Capabilities, Capability};
pub use child::{Child, ChildStderr, ChildStdin, ChildStdout, GuestPid, Output};
pub use command::{Command, Leftovers, Resource};
pub use config::{Config, Network, RootAccess, Seccomp, Upper};
pub use error::{Error, Result, Stage, Step};
pub use exit::{EndReason, ExitStatus, Usage};
pub use files::{
    Cursor, DirEntry, FileKind, FileReader, FileWriter, Files, Metadata, WriteMode, WriteOptions,
};
pub use garbage::collect_garbage;
pub use host_path::HostPath;
pub use image::Image;
pub use limits::{IoLimit, Limits};
pub use mount::{Access, Mount};
pub use remove::{finish_removals, pending_removals};
pub use running::{Handle, Scope};
pub use sandbox::Sandbox;
pub use snapshot::{Running, Snapshot, SnapshotOptions};
pub use stats::Stats;
pub use stdio::Stdio;
pub use terminal::Terminal;
pub use tree::{Change, ChangeKind, CopyReport, Export, Skipped};
