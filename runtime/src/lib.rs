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
//! let output = sandbox.command("/bin/echo").arg("hello").current_dir("/tmp").output()?;
//! assert!(output.status.success());
//! assert_eq!(output.stdout, b"hello\n");
//! let mut child = sandbox.command("/bin/cat").stdin(Stdio::piped()).spawn()?;
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
//! The library sets no signal handler, no umask and no working directory of the process that uses
//! it. It starts threads, each for a purpose that `ARCHITECTURE.md` names, and a process that ends
//! normally waits up to ten seconds for the removal of what its sandboxes left on disk. It needs
//! Linux 5.19 or later on x86_64.

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

mod cgroup;
mod config;
pub mod doctor;
mod error;
mod files;
mod garbage;
mod job;
mod mirror;
mod root;
mod sandbox;
mod seccomp;
mod snapshot;
mod store;
mod sys;
mod transfer;
mod wait;
mod wire;

pub use cgroup::stats::Stats;
pub use config::capabilities::{Capabilities, Capability};
pub use config::defaults::{Defaults, Resource, Rlimit};
pub use config::host_path::HostPath;
pub use config::image::Image;
pub use config::limits::{IoLimit, Limits};
pub use config::mount::{Access, Mount};
pub use config::{Config, Network, RootAccess, Seccomp, Upper};
pub use error::{Error, ErrorKind, Result, Stage, Step};
pub use files::{
    Cursor, DirEntry, FileKind, FileReader, FileWriter, Files, Metadata, WriteMode, WriteOptions,
};
pub use garbage::collect_garbage;
pub use job::background::{Job, JobId, PartialOutput};
pub use job::child::{Child, ChildStderr, ChildStdin, ChildStdout, GuestPid, Output};
pub use job::command::{Command, Leftovers};
pub use job::exit::{EndReason, ExitStatus, Usage};
pub use job::running::{Handle, Scope};
pub use job::stdio::Stdio;
pub use job::terminal::Terminal;
pub use sandbox::Sandbox;
pub use snapshot::{IfRunning, Snapshot, SnapshotOptions};
pub use store::remover::{finish_removals, pending_removals};
pub use transfer::{Change, ChangeKind, CopyReport, Export, Skipped};
