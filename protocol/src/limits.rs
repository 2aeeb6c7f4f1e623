//! The bounds that both sides keep, each with its unit and its reason.

/// The longest body of a frame, in bytes.
///
/// Linux refuses an argument list with its environment above 6 MiB whatever the stack limit
/// (`execve(2)`), so this holds every job that the kernel could start, with room for the rest.
pub const MAX_FRAME: usize = 8 << 20;

/// The most arguments, or environment entries, of a job.
///
/// init makes a pointer of 8 bytes for each in the job's own process; this bounds that at 4 MiB.
pub const MAX_STRINGS: usize = 512 << 10;

/// The most read-only layers below one overlay.
///
/// The kernel takes 500 (`OVL_MAX_STACK`), but they travel as descriptors, of which one message
/// carries at most 253 (`SCM_MAX_FD`).
pub const MAX_LAYERS: usize = 128;

/// The most descriptors that one message may carry (`SCM_MAX_FD`).
pub const MAX_DESCRIPTORS: usize = 253;

/// The longest path, in bytes, without its NUL (`PATH_MAX` - 1).
pub const MAX_PATH: usize = 4095;

/// The longest host name of a UTS namespace, in bytes (`__NEW_UTS_LEN`).
pub const MAX_HOSTNAME: usize = 64;

/// The most supplementary groups of a job: 65,536 in Linux (`NGROUPS_MAX`), fewer here, since
/// each takes space in init.
pub const MAX_GROUPS: usize = 1024;

/// The longest line of `/etc/passwd` that is an entry, in bytes. Its fields go to the environment,
/// and init keeps a line on a stack.
pub const MAX_PASSWD_LINE: usize = 1023;

/// Where init finds its control socket.
pub const CONTROL_DESCRIPTOR: i32 = 0;
