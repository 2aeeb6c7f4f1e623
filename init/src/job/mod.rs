//! From a fork of init to the job's program: the steps, in their one order.

mod builtin;
pub(crate) mod defaults;
mod login;
pub(crate) mod tree;

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ffi::CStr;

use adl_protocol::{
    Identities, Identity, JobEvent, JobStdio, Login, Program, Request, Rlimit, Spawn, Stage,
    StdioSource, Strings, Task, limits,
};
use rustix::fd::{AsFd, BorrowedFd, OwnedFd};
use rustix::fs::{FileType, Mode, OFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource};
use rustix::pty::OpenptFlags;
use rustix::termios::Winsize;
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use crate::failure::{Failure, InStage};
use crate::files;
use crate::job::defaults::{DEFAULT_UMASK, JobDefaults, write_score};
use crate::job::login::Variables;
use crate::path::open_in_root;
use crate::receive::send_small;
use crate::sys::{self, Memory, Namespace, OwnedRequest, PointerSpace};

/// The status of a process that could not become its program. No one sees it: the host has been
/// told [`JobEvent::Failed`] before.
const NOT_STARTED: i32 = 127;

/// The largest request that init keeps while a child works on it, in bytes: a guest may keep the
/// child stopped. A child with a larger one has a copy.
const LARGEST_SHARED: usize = 32 << 10;

/// The descriptors of a job.
pub(crate) struct Resources {
    /// Its channel.
    pub(crate) channel: OwnedFd,
    /// Closed by a successful `execve(2)`, which is how the host learns of it.
    pub(crate) start_notice: Option<OwnedFd>,
    /// One for each [`StdioSource::Descriptor`].
    stdio: [Option<OwnedFd>; 3],
    cgroups: Vec<OwnedFd>,
    /// The file of [`Spawn::cpu_limit`].
    pub(crate) cpu_time: Option<OwnedFd>,
}

/// The descriptors of a job for its child, which has a table of its own in which they are open.
pub(crate) struct Lent {
    channel: BorrowedFd<'static>,
    stdio: [Option<BorrowedFd<'static>>; 3],
    cgroups: Vec<BorrowedFd<'static>>,
}

impl Resources {
    /// Takes the descriptors that came with `spawn`; `None` if there are too few.
    pub(crate) fn take(spawn: &Spawn<'_>, from: &mut VecDeque<OwnedFd>) -> Option<Self> {
        let channel = from.pop_front()?;
        let start_notice = if spawn.start_notice { Some(from.pop_front()?) } else { None };
        let mut stdio = [None, None, None];
        if let JobStdio::Streams(sources) = &spawn.stdio {
            for (place, source) in stdio.iter_mut().zip(sources) {
                if *source == StdioSource::Descriptor {
                    *place = Some(from.pop_front()?);
                }
            }
        }
        let mut cgroups = Vec::new();
        for _ in 0..spawn.cgroups {
            cgroups.push(from.pop_front()?);
        }
        let cpu_time = if spawn.cpu_limit.is_some() { Some(from.pop_front()?) } else { None };
        Some(Self { channel, start_notice, stdio, cgroups, cpu_time })
    }

    pub(crate) fn lend(&self) -> Lent {
        let stdio = self.stdio.each_ref().map(|fd| fd.as_ref().map(sys::lend_to_child));
        let cgroups = self.cgroups.iter().map(sys::lend_to_child).collect();
        Lent { channel: sys::lend_to_child(&self.channel), stdio, cgroups }
    }
}

/// All that a child needs to become its job. Made by init, since a child that shares its memory
/// must not allocate.
pub(crate) struct Start {
    request: OwnedRequest,
    resources: Lent,
    groups: Vec<Gid>,
    pointers: PointerSpace,
    defaults: &'static JobDefaults,
}

impl Start {
    /// Prepares the start of a [`Request::Spawn`], and says what memory it needs. `is_crowded` is
    /// whether many children share init's memory already.
    pub(crate) fn new(
        request: OwnedRequest,
        resources: Lent,
        defaults: &'static JobDefaults,
        is_crowded: bool,
    ) -> rustix::io::Result<(Memory, Self)> {
        let Request::Spawn(spawn) = request.get() else { return Err(Errno::INVAL) };
        // The kernel gives all who share memory the same score. Where there is one id, a guest may
        // write that of the child before its execve. In a cgroup without memory left, the kernel
        // kills a child with all who share its memory, and what those touch is charged to init's.
        let may_share = spawn.oom_score_adj == 0
            && spawn.cgroups == 0
            && defaults.may_share_memory
            && request.length() <= LARGEST_SHARED;
        let (shares, strings) = match &spawn.task {
            Task::Program(program) => {
                let strings = program.arguments.len() + program.environment.len();
                (may_share, strings + Login::COUNT)
            }
            // It may go on for as long as the host likes, and what it holds is init's memory.
            Task::File(task) => (may_share && !is_crowded && !files::allocates(task), 0),
            Task::Drain | Task::KillAll | Task::Socket => (false, 0),
        };
        let memory = if shares { Memory::Shared } else { Memory::Copied };
        let pointers = PointerSpace::new(1 + strings).ok_or(Errno::NOMEM)?;
        let groups = spawn.identity.groups.iter().map(|group| Gid::from_raw(*group)).collect();
        Ok((memory, Self { request, resources, groups, pointers, defaults }))
    }
}

/// Turns a fresh child of init into its job, or reports why not, and ends.
///
/// Without an allocation, until it is known to have memory of its own.
pub(crate) fn run(start: &Start) -> ! {
    let Request::Spawn(spawn) = start.request.get() else { sys::exit(NOT_STARTED) };
    let mut channel = start.resources.channel;
    let result = prepare(spawn, start, &mut channel).and_then(|()| match &spawn.task {
        Task::Program(program) => {
            let login = Variables::of(spawn.identity.uid, program.login)?;
            limit_open_files(spawn, start)?;
            Err(Failure(Stage::Exec, execute(program, login.strings(), &start.pointers)))
        }
        task => {
            limit_open_files(spawn, start)?;
            builtin::run(task, channel)
        }
    });
    let Err(failure) = result else { sys::exit(0) };
    // A host that does not listen any more has detached from the job.
    let _ = send_small(channel, &failure.event(), &[]);
    sys::exit(NOT_STARTED)
}

/// The steps up to the program.
fn prepare(
    spawn: &Spawn<'_>,
    start: &Start,
    channel: &mut BorrowedFd<'static>,
) -> Result<(), Failure> {
    // 0. Its cgroups, before it does anything that they are to count.
    for cgroup in &start.resources.cgroups {
        rustix::io::write(cgroup, b"0").stage(Stage::Cgroup)?;
    }
    if spawn.cgroup_namespace {
        sys::unshare(Namespace::Cgroup).stage(Stage::Cgroup)?;
    }

    // 1. A session of its own: no terminal of another job, and a group to be signalled. A file's
    // has neither, and to share the processor by sessions takes a while to set up.
    if !matches!(spawn.task, Task::File(_)) {
        rustix::process::setsid().stage(Stage::Session)?;
    }

    // 2. What execve passes on: signals, umask, limits, niceness. The limit of open files is last.
    sys::unblock_signals().stage(Stage::Session)?;
    if spawn.umask != DEFAULT_UMASK {
        rustix::process::umask(Mode::from_raw_mode(spawn.umask));
    }
    for limit in limits_of(spawn, start).filter(|limit| limit.resource != OPEN_FILES) {
        set_limit(limit, start.defaults.core_key).stage(Stage::Rlimit)?;
    }
    if spawn.nice != 0 {
        rustix::process::nice(i32::from(spawn.nice)).stage(Stage::Nice)?;
    }
    if spawn.oom_score_adj != 0 && start.defaults.own_score.is_none() {
        set_oom_score_adj(&start.defaults.proc, spawn.oom_score_adj).stage(Stage::OomScore)?;
    }

    // 3. Its three descriptors. What is init's own code has no other from here on: nothing of
    // another job's, or of init's, is held where the guest's user may hold it up. A program lets go
    // of them by its execve, until which a terminal is made as its user.
    if let JobStdio::Streams(sources) = spawn.stdio {
        place_stdio(sources, &start.resources.stdio, &start.defaults.null).stage(Stage::Stdio)?;
    }
    if !matches!(spawn.task, Task::Program(_)) {
        *channel = sys::keep_only(*channel).stage(Stage::Stdio)?;
    }

    // 4. Its ids, and with them the right to nothing more than they give.
    take_identity(&spawn.identity, &start.groups, start.defaults.identities)
        .stage(Stage::Identity)?;
    take_capabilities(spawn.identity.uid, start.defaults.capabilities)
        .stage(Stage::Capabilities)?;

    // 5. Its terminal, and after its execve no other descriptor than the three.
    if let JobStdio::Terminal { rows, columns } = spawn.stdio {
        open_terminal(rows, columns, start).stage(Stage::Terminal)?;
    }
    if matches!(spawn.task, Task::Program(_)) {
        sys::close_on_exec_from(3).stage(Stage::Stdio)?;
    }

    // 6. Its directory, as itself: it is not led where it could not go.
    enter(spawn.directory).stage(Stage::Directory)
}

/// `RLIMIT_NOFILE`
const OPEN_FILES: u32 = 7;

/// The limits of a job: those that all have, unless it asks for others, and those that it asks for.
fn limits_of<'a>(spawn: &'a Spawn<'_>, start: &Start) -> impl Iterator<Item = &'a Rlimit> {
    let defaults: &'static JobDefaults = start.defaults;
    let is_default = |limit: &&Rlimit| spawn.rlimits.iter().all(|l| l.resource != limit.resource);
    defaults.rlimits.iter().filter(is_default).chain(&spawn.rlimits)
}

/// Sets how many files it may have open: when nothing more is opened here, where init's own are
/// still there.
fn limit_open_files(spawn: &Spawn<'_>, start: &Start) -> Result<(), Failure> {
    let mut limits = limits_of(spawn, start).filter(|limit| limit.resource == OPEN_FILES);
    limits.try_for_each(|limit| set_limit(limit, start.defaults.core_key)).stage(Stage::Rlimit)
}

/// Makes a terminal in the sandbox's own devpts, as the job's user, and sends its master side to
/// the host; the other side becomes the job's descriptors and controls its session.
fn open_terminal(rows: u16, columns: u16, start: &Start) -> rustix::io::Result<()> {
    let flags = OFlags::RDWR | OFlags::NOCTTY | OFlags::CLOEXEC;
    let master = rustix::fs::openat(&start.defaults.terminals, c"ptmx", flags, Mode::empty())?;
    rustix::pty::unlockpt(&master)?;
    let size = Winsize { ws_row: rows, ws_col: columns, ws_xpixel: 0, ws_ypixel: 0 };
    rustix::termios::tcsetwinsize(&master, size)?;
    let flags = OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC;
    let slave = rustix::pty::ioctl_tiocgptpeer(&master, flags)?;
    // Before it is this session's: to close what could not be sent would end this process by
    // SIGHUP, with no word of why.
    send_small(start.resources.channel, &JobEvent::Terminal, &[master.as_fd()])?;
    rustix::process::ioctl_tiocsctty(&slave)?;
    rustix::stdio::dup2_stdin(&slave)?;
    rustix::stdio::dup2_stdout(&slave)?;
    rustix::stdio::dup2_stderr(&slave)
    // Both are closed here, and by the execve.
}

fn place_stdio(
    sources: [StdioSource; 3],
    descriptors: &[Option<BorrowedFd<'_>>; 3],
    null: &OwnedFd,
) -> rustix::io::Result<()> {
    type Place = fn(BorrowedFd<'_>) -> rustix::io::Result<()>;
    const PLACES: [Place; 3] = [
        |fd| rustix::stdio::dup2_stdin(fd),
        |fd| rustix::stdio::dup2_stdout(fd),
        |fd| rustix::stdio::dup2_stderr(fd),
    ];
    let mut previous = null.as_fd();
    for (place, (source, descriptor)) in PLACES.iter().zip(sources.iter().zip(descriptors)) {
        previous = match (source, descriptor) {
            (StdioSource::Null, _) => null.as_fd(),
            (StdioSource::Descriptor, Some(descriptor)) => {
                // One of the host's would lead out by openat(2). The host looks, too.
                let mode = rustix::fs::fstat(descriptor)?.st_mode;
                if FileType::from_raw_mode(mode) == FileType::Directory {
                    return Err(Errno::ISDIR);
                }
                *descriptor
            }
            (StdioSource::Previous, _) => previous,
            (StdioSource::Descriptor, None) => return Err(Errno::INVAL),
        };
        place(previous)?;
    }
    Ok(())
}

fn set_limit(limit: &Rlimit, core_key: u64) -> rustix::io::Result<()> {
    let resource = match limit.resource {
        0 => Resource::Cpu,
        1 => Resource::Fsize,
        2 => Resource::Data,
        3 => Resource::Stack,
        // Init alone may move it (`core_limit_stays` of the filters).
        4 => return sys::set_core_limit(limit.soft, limit.hard, core_key),
        5 => Resource::Rss,
        6 => Resource::Nproc,
        7 => Resource::Nofile,
        8 => Resource::Memlock,
        9 => Resource::As,
        10 => Resource::Locks,
        11 => Resource::Sigpending,
        12 => Resource::Msgqueue,
        13 => Resource::Nice,
        14 => Resource::Rtprio,
        15 => Resource::Rttime,
        _ => return Err(Errno::INVAL),
    };
    let value = |value| (value != u64::MAX).then_some(value);
    let limit = rustix::process::Rlimit { current: value(limit.soft), maximum: value(limit.hard) };
    rustix::process::setrlimit(resource, limit)
}

/// How soon the kernel kills it when memory runs out. Raising it needs no privilege.
fn set_oom_score_adj(proc: &OwnedFd, score: i16) -> rustix::io::Result<()> {
    // Its file in /proc is its own only while it is dumpable. It still holds capabilities that no
    // guest has, so it can't be traced meanwhile.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    let flags = OFlags::WRONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(proc, c"self/oom_score_adj", flags, Mode::empty());
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    write_score(&file?, score)
}

fn take_identity(
    identity: &Identity,
    groups: &[Gid],
    identities: Identities,
) -> rustix::io::Result<()> {
    // To the kernel, this id says: leave it as it is, which here is root.
    const UNCHANGED: u32 = u32::MAX;
    let Identity { uid, gid, .. } = identity;
    if *uid == UNCHANGED || *gid == UNCHANGED || identity.groups.contains(&UNCHANGED) {
        return Err(Errno::INVAL);
    }
    match identities {
        // init has none itself.
        Identities::Range if groups.is_empty() => {}
        Identities::Range => rustix::thread::set_thread_groups(groups)?,
        // setgroups is denied there. The caller's own groups stay, as what they are outside.
        Identities::Single { .. } if groups.is_empty() => {}
        Identities::Single { .. } => return Err(Errno::PERM),
    }
    let (uid, gid) = (Uid::from_raw(*uid), Gid::from_raw(*gid));
    rustix::thread::set_thread_res_gid(gid, gid, gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, uid)?;
    // As it was before the change of ids set it to what fs.suid_dumpable says: until the execve
    // this process holds what is init's.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)
}

/// As `execve(2)` would leave them: root has all of the sandbox's, any other user none.
fn take_capabilities(uid: u32, of_root: CapabilitySet) -> rustix::io::Result<()> {
    let own = if uid == 0 { of_root } else { CapabilitySet::empty() };
    let inheritable = CapabilitySet::empty();
    let sets = CapabilitySets { effective: own, permitted: own, inheritable };
    rustix::thread::set_capabilities(None, sets)
}

fn enter(directory: Strings<'_>) -> rustix::io::Result<()> {
    let directory = directory.single().ok_or(Errno::INVAL)?;
    if directory == c"/" {
        // Where init is, and so its children.
        return Ok(());
    }
    let opened = open_in_root(directory, OFlags::PATH | OFlags::DIRECTORY)?;
    rustix::process::fchdir(opened)?;
    if sys::working_directory_is_reachable()? { Ok(()) } else { Err(Errno::ACCESS) }
}

/// Runs the first of the programs that exists; returns why it could not.
fn execute(program: &Program<'_>, login: Strings<'_>, pointers: &PointerSpace) -> Errno {
    for name in program.names.iter() {
        let Ok(name) = CStr::from_bytes_with_nul(name) else { return Errno::INVAL };
        let environment = [program.environment, login];
        let run = |path: &CStr| sys::execve(path, name, program.arguments, environment, pointers);
        match search(name, program.environment, run) {
            Errno::NOENT => {}
            errno => return errno,
        }
    }
    Errno::NOENT
}

/// Finds a program as execvp(3) does: a name without a slash in the directories of PATH, going on
/// past those that don't have it and remembering a refusal.
fn search(program: &CStr, environment: Strings<'_>, run: impl Fn(&CStr) -> Errno) -> Errno {
    let name = program.to_bytes();
    if name.contains(&b'/') {
        return run(program);
    }
    if name.is_empty() {
        return Errno::NOENT;
    }
    let mut result = Errno::NOENT;
    let mut path = [0; limits::MAX_PATH + 1];
    for directory in search_path(environment) {
        let directory = if directory.is_empty() { b"." } else { directory };
        let parts = [directory, b"/", program.to_bytes_with_nul()];
        let length = parts.iter().map(|part| part.len()).sum();
        let Some(path) = path.get_mut(..length) else { continue };
        for (to, from) in path.iter_mut().zip(parts.iter().copied().flatten()) {
            *to = *from;
        }
        let Ok(path) = CStr::from_bytes_with_nul(path) else { continue };
        match run(path) {
            Errno::NOENT | Errno::NOTDIR | Errno::NODEV | Errno::STALE => {}
            Errno::ACCESS => result = Errno::ACCESS,
            errno => return errno,
        }
    }
    result
}

fn search_path<'a>(environment: Strings<'a>) -> impl Iterator<Item = &'a [u8]> {
    environment
        .iter()
        .find_map(|entry| entry.strip_prefix(b"PATH="))
        .map(|path| path.strip_suffix(b"\0").unwrap_or(path))
        .unwrap_or(b"/usr/local/bin:/usr/bin:/bin")
        .split(|byte| *byte == b':')
}
