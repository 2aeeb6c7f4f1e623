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
//! Read [`Sandbox`], [`Config`] and [`Command`] first: with these three most programs are written.
//! `examples/` has a program for each theme, which `cargo run --example hello` runs: `hello`,
//! `files`, `fork`, `limits`, `pool`, `terminal`, `server`, `threads`, `tokio`.
//!
//! # By theme
//!
//! - **Sandboxes:** [`Sandbox`] is one, with its whole life; [`Config`] says what it is made of:
//!   [`Image`], [`Mount`] and its [`Access`], [`Upper`], [`RootAccess`], [`Network`],
//!   [`Capabilities`], [`Seccomp`]; [`Defaults`] are what its commands start from.
//! - **Pools:** a [`Pool`] has sandboxes ready before they are asked for, as [`PoolBuilder`] says;
//!   a [`PooledSandbox`] is one of them, [`PoolStats`] are its metrics.
//! - **Commands:** [`Command`] is run to its end (`output`, `status`), beside the caller
//!   ([`Child`], with [`Stdio`] or a [`Terminal`]), in the background ([`Job`]) or from an event
//!   loop ([`PendingOutput`]).
//! - **Ends of commands:** [`Output`] is what it wrote, [`ExitStatus`] how it ended, [`EndReason`]
//!   why, [`Usage`] what it took; [`Handle`] waits for it and signals it from any thread, as far
//!   as a [`Scope`] says; [`Leftovers`] are what it has started and left.
//! - **Files:** [`Files`] reads, writes, lists and copies as a user inside, streams by
//!   [`FileReader`] and [`FileWriter`], and takes [`HostPath`]s on the host's side.
//! - **Sockets:** [`Sandbox::connect`], [`Sandbox::connect_unix`] and [`Sandbox::listen`] reach
//!   servers inside, and are reached from inside, without a privilege (`docs/network.md`).
//! - **Limits and counts:** [`Limits`] hold for a sandbox, [`Rlimit`] for each process; [`Stats`]
//!   is what was used.
//! - **Snapshots and changes:** [`Snapshot`] keeps what a sandbox has written, for others to begin
//!   with; [`Change`] is one path that differs; [`Export`] says what an archive holds.
//! - **Errors:** [`Error`] says what was tried and why it failed; [`ErrorKind`] what to do.
//! - **Fast creates:** [`keep_blanks`] prepares the next sandbox beside, as far as all of a kind
//!   are the same; a pool has whole ones.
//! - **What was done:** [`metrics`] counts what this process has and has done; spans of the crate
//!   `tracing` tell of each step (`docs/tracing.md`).
//! - **The machine:** [`doctor::examine`] tells what it can do; [`collect_garbage`] removes what
//!   the dead have left; [`finish_removals`] waits for what this process removes.
//!
//! # Errors
//!
//! A command that fails is no error: its [`ExitStatus`] tells. A call that fails returns the one
//! type [`Error`], and [`Error::kind`] says whose turn it is:
//!
//! ```no_run
//! use adl_runtime::{ErrorKind, Result, Sandbox};
//!
//! fn run(sandbox: &Sandbox, program: &str) -> Result<bool> {
//!     match sandbox.command(program).status() {
//!         Ok(status) => Ok(status.success()),
//!         // No such program, or not for this user: an answer for who asked.
//!         Err(error) if error.kind() == ErrorKind::Inside => Ok(false),
//!         Err(error) if error.kind() == ErrorKind::Died => {
//!             // Else another thread has reset it meanwhile, and the call can be made again.
//!             if !sandbox.is_alive() {
//!                 sandbox.reset()?;
//!             }
//!             Ok(false)
//!         }
//!         Err(error) => Err(error),
//!     }
//! }
//! ```
//!
//! # Threads, forks, async
//!
//! All methods of [`Sandbox`] take `&self`, so threads share one in an [`Arc`](std::sync::Arc),
//! and any number of commands run at once. A reset, a snapshot and a delete wait for one another;
//! what runs meanwhile ends as they say.
//!
//! A fork of the calling process makes sandboxes of its own. What its parent has made it is
//! refused, as [`Error::ForkedProcess`], and dropping its copies ends nothing.
//!
//! There is no async runtime: commands, jobs, pipes and sandboxes are descriptors for `poll(2)`,
//! and the other calls block. The example `tokio` shows both.
//!
//! # A judge
//!
//! One sandbox runs one submission after the other, each in a new one by a reset. What must not be
//! seen, as the expected answer, stays outside.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use adl_runtime::{Config, Defaults, EndReason, Limits, Result, Sandbox};
//!
//! fn judge(submissions: &[&str], input: &str, expected: &[u8]) -> Result<()> {
//!     let limits = Limits { memory: Some(256 << 20), pids: Some(64), ..Limits::default() };
//!     let cpu_time = Some(Duration::from_secs(2));
//!     let defaults = Defaults { current_dir: "/tmp".into(), cpu_time, ..Defaults::default() };
//!     let sandbox = Sandbox::create(Config { limits, defaults, ..Config::default() })?;
//!     for submission in submissions {
//!         sandbox.files().write_file("solution.py", submission)?;
//!         let mut command = sandbox.command("python3");
//!         command.arg("solution.py").input(input).output_limit(1 << 20);
//!         let output = command.timeout(Duration::from_secs(6)).output()?;
//!         println!("{}", match output.status.reason() {
//!             EndReason::Exited if !output.status.success() => "failed",
//!             EndReason::Exited if output.stdout == expected => "right",
//!             EndReason::Exited => "wrong",
//!             EndReason::CpuTimedOut | EndReason::TimedOut => "too slow",
//!             EndReason::OutOfMemory => "too much memory",
//!             _ => "ended otherwise",
//!         });
//!         sandbox.reset()?;
//!     }
//!     sandbox.delete()
//! }
//! ```
//!
//! # A session of an agent, with a server
//!
//! Each session begins with a snapshot of what was prepared once. Each action has a timeout, and
//! as much of its output as the agent can read; a server runs beside, and its log can be read.
//!
//! ```no_run
//! use std::time::Duration;
//!
//! use adl_runtime::{ErrorKind, IfRunning, Result, Sandbox, Snapshot, SnapshotOptions};
//!
//! fn session(prepared: &Snapshot, actions: &[&str]) -> Result<Snapshot> {
//!     let sandbox = Sandbox::create(prepared.config())?;
//!     let server = sandbox.command("python3").args(["-m", "http.server"]).background()?;
//!     for action in actions {
//!         let mut command = sandbox.shell(action);
//!         command.timeout(Duration::from_secs(60)).keep_output(8 << 10, 8 << 10);
//!         match command.output() {
//!             Ok(output) => {
//!                 println!("{}: {}", output.status, String::from_utf8_lossy(&output.stdout));
//!             }
//!             Err(error) if error.kind() == ErrorKind::Inside => println!("{error}"),
//!             Err(error) => return Err(error),
//!         }
//!     }
//!     println!("{}", String::from_utf8_lossy(&server.partial_output().stderr));
//!     // What the session has written, for the next one: the server ends.
//!     sandbox.snapshot_with(&SnapshotOptions { running: IfRunning::End, ..Default::default() })
//! }
//! ```
//!
//! # Guarantees
//!
//! - If a protection is missing, [`Sandbox::create`] fails: [`Error::Unsupported`] says what to do.
//! - When a command has ended, its output is complete, and its result tells why it ended.
//! - To end a command is to end all that it has started, double forks and new sessions among it.
//! - The host follows no path and no link of the guest's.
//! - A sandbox that was reset is as new, in the time of a create.
//! - When the caller ends, even by SIGKILL, its sandboxes end.
//! - The library sets no signal handler, no umask, no working directory and no environment variable
//!   of the process that uses it. It starts threads, each for a purpose, and a process that ends
//!   normally waits up to ten seconds for the removal of what its sandboxes left on disk.
//!
//! `README.md` has all of them, `SECURITY.md` what is in the way of hostile code and what is not.
//!
//! # Limitations
//!
//! - Linux 5.19 or later on x86_64 (`docs/kernel-features.md`), as root or with user namespaces for
//!   ordinary users, and a file system for the state directory on which an overlay can be.
//! - A sandbox of an ordinary user has one user, 0.
//! - Most of [`Limits`] need cgroups that the caller may make (`docs/limits.md`).
//! - Images of registries are fetched by `skopeo`, `podman` or `docker`.
//!
//! # Where state lies
//!
//! What sandboxes write to disk, snapshots and unpacked images are in one directory,
//! [`Config::state_directory`]; for root also `/run/adl` and cgroups
//! (`docs/state-directory.md`). There is no daemon. What a process that was killed has left there
//! is removed by the next one that uses it, or by [`collect_garbage`].
//!
//! # How a sandbox starts
//!
//! [`Sandbox::create`] opens what needs the host's authority, clones init into new namespaces, maps
//! its ids and sends it the plan; init mounts, gives up its rights, installs the system call
//! filters and says that it is ready. `ARCHITECTURE.md` tells the whole.

#![cfg_attr(
    any(test, fuzzing),
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
mod exit;
mod files;
#[cfg(any(test, fuzzing))]
mod fuzzing;
mod garbage;
mod image;
mod images;
mod job;
mod metrics;
mod mirror;
mod network;
mod pool;
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
pub use config::image::{Image, ImageConfig};
pub use config::limits::{IoLimit, Limits};
pub use config::mount::{Access, Mount, TmpfsOptions};
pub use config::ports::{ConnectionLimits, ConnectionStats, Forward, Publish};
pub use config::{Config, EtcFiles, Network, RootAccess, Seccomp, Sysfs, Upper};
pub use error::{Error, ErrorKind, Result, Stage, Step};
pub use exit::{EndReason, ExitStatus, Usage};
pub use files::{
    Cursor, DirEntry, FileKind, FileReader, FileWriter, Files, Metadata, WriteMode, WriteOptions,
};
#[cfg(fuzzing)]
#[doc(hidden)]
pub use fuzzing::fuzz_one;
pub use garbage::collect_garbage;
#[cfg(fuzzing)]
#[doc(hidden)]
pub use image::fuzzing::unpack_one;
pub use image::options::{ImageCaps, Progress, PullOptions};
pub use images::{ImageInfo, Images, MadeImage};
pub use job::background::{Job, JobId, OutputCursor, PartialOutput};
pub use job::captures::OutputStream;
pub use job::child::{Child, ChildStderr, ChildStdin, ChildStdout, GuestPid, Output};
pub use job::command::{Command, Leftovers};
pub use job::pending::PendingOutput;
pub use job::running::{Handle, Scope};
pub use job::stdio::Stdio;
pub use job::terminal::Terminal;
pub use metrics::{
    BlankMetrics, CreateFailures, JobEnds, JobMetrics, Metrics, RemovalMetrics, SandboxMetrics,
    SpareMetrics, metrics,
};
pub use network::ports::{ConnectionEnd, ConnectionEndReason};
pub use network::relay::message::Port;
pub use pool::{Pool, PoolBuilder, PoolStats, PooledSandbox};
pub use root::host::etc::{HostImage, LeftOut};
pub use sandbox::Sandbox;
pub use sandbox::blank::{blanks_ready, keep_blanks};
pub use snapshot::{IfRunning, ReplaceError, Snapshot, SnapshotOptions};
pub use store::remover::{finish_removals, pending_removals, wait_at_exit};
pub use transfer::{Change, ChangeKind, CopyReport, Export, Skipped};
