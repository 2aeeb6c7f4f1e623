//! From a fork of init to the job's program: the steps, in their one order.

use alloc::collections::VecDeque;
use alloc::vec::Vec;
use core::ffi::CStr;

use adl_protocol::{
    Identities, Identity, JobEvent, Rlimit, Spawn, Stage, StdioSource, Strings, limits,
};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags, ResolveFlags};
use rustix::io::Errno;
use rustix::process::{DumpableBehavior, Resource};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use crate::receive::send_frame;
use crate::setup::{DEFAULT_UMASK, JobDefaults};
use crate::sys;

/// The status of a process that could not become its program. No one sees it: the host has been
/// told [`JobEvent::Failed`] before.
const NOT_STARTED: i32 = 127;

/// The descriptors of a job.
pub(crate) struct Resources {
    /// Its channel.
    pub(crate) channel: OwnedFd,
    /// Closed by a successful `execve(2)`, which is how the host learns of it.
    pub(crate) start_notice: Option<OwnedFd>,
    /// One for each [`StdioSource::Descriptor`].
    stdio: [Option<OwnedFd>; 3],
}

impl Resources {
    /// Takes the descriptors that came with `spawn`; `None` if there are too few.
    pub(crate) fn take(spawn: &Spawn<'_>, from: &mut VecDeque<OwnedFd>) -> Option<Self> {
        let channel = from.pop_front()?;
        let start_notice = if spawn.start_notice { Some(from.pop_front()?) } else { None };
        let mut stdio = [None, None, None];
        for (place, source) in stdio.iter_mut().zip(&spawn.stdio) {
            if *source == StdioSource::Descriptor {
                *place = Some(from.pop_front()?);
            }
        }
        Some(Self { channel, start_notice, stdio })
    }
}

struct Failure(Stage, Errno);

trait InStage<T> {
    fn stage(self, stage: Stage) -> Result<T, Failure>;
}

impl<T> InStage<T> for rustix::io::Result<T> {
    fn stage(self, stage: Stage) -> Result<T, Failure> {
        self.map_err(|errno| Failure(stage, errno))
    }
}

/// Turns a fresh fork of init into the job's program, or reports why not, and ends.
pub(crate) fn become_program(
    spawn: &Spawn<'_>,
    resources: &Resources,
    defaults: &JobDefaults,
) -> ! {
    let Failure(stage, errno) = match start(spawn, resources, defaults) {
        Ok(never) => match never {},
        Err(failure) => failure,
    };
    let failed = JobEvent::Failed { stage, errno: errno.raw_os_error() };
    // A host that does not listen any more has detached from the job.
    let _ = send_frame(&resources.channel, &failed);
    sys::exit(NOT_STARTED)
}

fn start(
    spawn: &Spawn<'_>,
    resources: &Resources,
    defaults: &JobDefaults,
) -> Result<core::convert::Infallible, Failure> {
    // 1. A session of its own: no terminal of another job, and a group to be signalled.
    rustix::process::setsid().stage(Stage::Session)?;

    // 2. Its three descriptors, and after its execve no other.
    place_stdio(spawn, resources, &defaults.null).stage(Stage::Stdio)?;
    sys::close_on_exec_from(3).stage(Stage::Stdio)?;

    // 3. What execve passes on: signals, umask, limits, niceness.
    sys::unblock_signals().stage(Stage::Session)?;
    if spawn.umask != DEFAULT_UMASK {
        rustix::process::umask(Mode::from_raw_mode(spawn.umask));
    }
    for limit in &spawn.rlimits {
        set_limit(limit).stage(Stage::Rlimit)?;
    }
    if spawn.nice != 0 {
        rustix::process::nice(i32::from(spawn.nice)).stage(Stage::Nice)?;
    }

    // 4. Its ids, and with them the right to nothing more than they give.
    take_identity(&spawn.identity, defaults.identities).stage(Stage::Identity)?;
    take_capabilities(spawn.identity.uid, defaults.capabilities).stage(Stage::Capabilities)?;

    // 5. Its directory, as itself: it is not led where it could not go.
    enter(spawn.directory).stage(Stage::Directory)?;

    // 6. Its program.
    Err(Failure(Stage::Exec, execute(spawn)))
}

fn place_stdio(spawn: &Spawn<'_>, resources: &Resources, null: &OwnedFd) -> rustix::io::Result<()> {
    type Place = fn(&OwnedFd) -> rustix::io::Result<()>;
    const PLACES: [Place; 3] = [
        |fd| rustix::stdio::dup2_stdin(fd),
        |fd| rustix::stdio::dup2_stdout(fd),
        |fd| rustix::stdio::dup2_stderr(fd),
    ];
    let sources = spawn.stdio.iter().zip(&resources.stdio);
    let mut previous = null;
    for (place, (source, descriptor)) in PLACES.iter().zip(sources) {
        previous = match (source, descriptor) {
            (StdioSource::Null, _) => null,
            (StdioSource::Descriptor, Some(descriptor)) => descriptor,
            (StdioSource::Previous, _) => previous,
            (StdioSource::Descriptor, None) => return Err(Errno::INVAL),
        };
        place(previous)?;
    }
    Ok(())
}

fn set_limit(limit: &Rlimit) -> rustix::io::Result<()> {
    let resource = match limit.resource {
        0 => Resource::Cpu,
        1 => Resource::Fsize,
        2 => Resource::Data,
        3 => Resource::Stack,
        4 => Resource::Core,
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

fn take_identity(identity: &Identity, identities: Identities) -> rustix::io::Result<()> {
    // To the kernel, this id says: leave it as it is, which here is root.
    const UNCHANGED: u32 = u32::MAX;
    let Identity { uid, gid, groups } = identity;
    if *uid == UNCHANGED || *gid == UNCHANGED || groups.contains(&UNCHANGED) {
        return Err(Errno::INVAL);
    }
    match identities {
        // init has none itself.
        Identities::Range if groups.is_empty() => {}
        Identities::Range => {
            let groups: Vec<Gid> = groups.iter().map(|group| Gid::from_raw(*group)).collect();
            rustix::thread::set_thread_groups(&groups)?;
        }
        // setgroups is denied there, and the caller's own groups give nothing inside.
        Identities::Single if groups.is_empty() => {}
        Identities::Single => return Err(Errno::PERM),
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

fn enter(directory: &[u8]) -> rustix::io::Result<()> {
    if directory == b"/" {
        // Where init is, and so its children.
        return Ok(());
    }
    let root = rustix::fs::open(c"/", OFlags::PATH | OFlags::CLOEXEC, Mode::empty())?;
    let opened = rustix::fs::openat2(
        root,
        directory,
        OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
        Mode::empty(),
        ResolveFlags::IN_ROOT | ResolveFlags::NO_MAGICLINKS,
    )?;
    rustix::process::fchdir(opened)?;
    // A directory outside of the root has a path that starts with "(unreachable)".
    let path = rustix::process::getcwd(Vec::new())?;
    if path.as_bytes().starts_with(b"/") { Ok(()) } else { Err(Errno::ACCESS) }
}

/// Runs the first of the programs that exists; returns why it could not.
fn execute(spawn: &Spawn<'_>) -> Errno {
    let (Some(mut argv), Some(environment)) =
        (sys::Pointers::new(1, spawn.arguments), sys::Pointers::new(0, spawn.environment))
    else {
        return Errno::TOOBIG;
    };
    for program in spawn.programs.iter() {
        let Ok(program) = CStr::from_bytes_with_nul(program) else { return Errno::INVAL };
        argv.set_first(program);
        let run = |path: &CStr| sys::execve(path, &argv, &environment);
        match search(program, spawn.environment, run) {
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
    for directory in search_path(environment) {
        if directory.len() + 1 + name.len() > limits::MAX_PATH {
            continue;
        }
        let mut path = Vec::from(if directory.is_empty() { b"." } else { directory });
        path.push(b'/');
        path.extend_from_slice(program.to_bytes_with_nul());
        let Ok(path) = CStr::from_bytes_with_nul(&path) else { continue };
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
