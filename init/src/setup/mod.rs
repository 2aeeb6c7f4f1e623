//! From a bare process in fresh namespaces to a sandbox: the steps, in their one order.

mod cgroups;
mod failure;
mod mounts;
mod proc_and_dev;
mod sysfs;

use alloc::vec::Vec;
use core::ffi::CStr;

use adl_protocol::{IdMaps, Identities, Mounts, Origin, Reply, Request, Setup, Step, VERSION};
use rustix::event::{PollFd, PollFlags, poll};
use rustix::fd::OwnedFd;
use rustix::fs::{Mode, OFlags};
use rustix::io::Errno;
use rustix::mount::MountPropagationFlags;
use rustix::process::{DumpableBehavior, Resource, Rlimit};
use rustix::thread::{CapabilitySet, CapabilitySets, Gid, Uid};

use crate::job::defaults::DEFAULT_UMASK;
use crate::job::defaults::{JobDefaults, OwnScore};
use crate::receive::Receiver;
pub(crate) use crate::setup::failure::Failure;
use crate::setup::failure::{InStep, Result};
use crate::setup::mounts::{Assembly, Layers};
use crate::sys;

/// What the event loop needs to know of the sandbox.
pub(crate) struct Init {
    /// Readable when a child has ended.
    pub(crate) child_signals: OwnedFd,
    /// Readable when the host's process has ended.
    pub(crate) owner: OwnedFd,
    /// Where the filter of jobs asks, if it does.
    pub(crate) questions: Option<OwnedFd>,
    /// The cookie of the network namespace.
    pub(crate) network: u64,
    /// What every job starts from.
    pub(crate) jobs: JobDefaults,
}

/// What is done before the request has come, while the host maps ids and opens layers.
pub(crate) struct Early {
    child_signals: OwnedFd,
    origin: Origin,
    /// The first socket of the network namespace.
    network: OwnedFd,
    loopback: rustix::io::Result<()>,
}

/// Takes back what came with the memory of the caller, which this process had until its execve. All
/// else that a caller passes on was given up before that (`sys/inheritance.rs` of the host).
fn give_up_callers_memory_settings() -> rustix::io::Result<()> {
    // Large pages as the machine has them. No page is merged with one of the same content: how long
    // a write to it takes would tell whoever has the other.
    rustix::thread::disable_transparent_huge_pages(false)?;
    sys::merge_no_memory()?;
    // The process's own files in /proc are its own only while it is dumpable. It stays that until
    // it is root of the namespace; no guest is there before that.
    rustix::process::set_dumpable_behavior(DumpableBehavior::Dumpable)?;
    // The kernel's, where it dumps at all.
    match write_own(c"/proc/self/coredump_filter", |_| Some(b"0x33")) {
        Ok(()) | Err(Errno::NOENT) => {}
        Err(errno) => return Err(errno),
    }
    // Not spared when memory runs out because the caller is. That it goes before others is the
    // caller's wish, and stays.
    write_own(c"/proc/self/oom_score_adj", |now| now.starts_with(b"-").then_some(b"0"))
}

/// Writes what is made of the content to a short file of this process's own in `/proc`.
fn write_own(
    path: &CStr,
    change: impl FnOnce(&[u8]) -> Option<&'static [u8]>,
) -> rustix::io::Result<()> {
    let file = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let mut content = [0; 16];
    let length = rustix::io::read(&file, &mut content)?;
    match change(content.get(..length).unwrap_or_default()) {
        Some(new) => rustix::io::write(&file, new).map(drop),
        None => Ok(()),
    }
}

/// The steps that need to know nothing.
pub(crate) fn prepare() -> Result<Early> {
    // Before any other descriptor comes.
    take_output().step(Step::Dev)?;
    // Nothing that the host left ignored or blocked reaches a job.
    sys::reset_signals().step(Step::Protocol)?;
    let child_signals = sys::child_signals().step(Step::Protocol)?;
    // Out of the caller's session: a stop of its process group stops no init, and where the
    // scheduler shares by session (sched_autogroup, sched(7)), init does not wait its turn behind
    // the caller's own threads.
    rustix::process::setsid().step(Step::Protocol)?;
    // Without this, mounts of the host would go on to appear here.
    let private = MountPropagationFlags::REC | MountPropagationFlags::PRIVATE;
    rustix::mount::mount_change(c"/", private).step(Step::Propagation)?;
    let origin = mounts::origin().step(Step::Proc)?;
    give_up_callers_memory_settings().step(Step::Limits)?;
    // What is made below has the mode that it is made with.
    rustix::process::umask(Mode::empty());
    // 80 µs that are free now. In the host's network this is refused, and there is nothing to do;
    // whether it was done where it must be is looked at below.
    let network = sys::network_socket().step(Step::Loopback)?;
    let loopback = sys::loopback_up(&network);
    Ok(Early { child_signals, origin, network, loopback })
}

/// Builds the sandbox, and returns its mount namespace with it. Nothing of a guest runs before this
/// has returned.
pub(crate) fn run(
    setup: &Setup<'_>,
    receiver: &mut Receiver,
    early: Early,
) -> Result<(Init, OwnedFd)> {
    // 1. Above: prepare.
    let Early { child_signals, origin, network, loopback } = early;
    if setup.version != VERSION || setup.origin != origin {
        return Err(Failure::new(Step::Protocol, Errno::PROTO));
    }

    let owner = next_descriptor(receiver)?;

    // 2. Root of the user namespace, in a way that no guest can imitate.
    let dev = match setup.id_maps {
        IdMaps::Written => Some(next_descriptor(receiver)?),
        IdMaps::Own(maps) => {
            map_own_ids(maps).step(Step::Identity)?;
            None
        }
        IdMaps::ByHelpers => {
            wait_for_ids(receiver, &owner)?;
            None
        }
    };
    // While this process can still write to its files in /proc.
    let capabilities = CapabilitySet::from_bits_truncate(setup.capabilities);
    let own_score = match capabilities.contains(CapabilitySet::SYS_PTRACE) {
        true => Some(OwnScore::open().step(Step::Identity)?),
        false => None,
    };
    become_root(setup.identities).step(Step::Identity)?;

    // 3. What needs no layer, while the host makes those: the loopback device; the scratch, and
    // /proc and /dev on that. Layers that init opens by their paths outside come before: the scratch
    // covers some paths, and nothing that is opened is to hold it.
    if setup.own_network {
        loopback.step(Step::Loopback)?;
    }
    let network = sys::network_cookie(network).step(Step::Loopback)?;
    let comes_late = dev.is_none() && setup.origin == Origin::Caller;
    if !comes_late {
        prepare_mounts(setup, dev)?;
    }
    let body = next_request(receiver, &owner)?;
    let (mounts, layers) = open_mounts(&body, receiver)?;
    if comes_late {
        prepare_mounts(setup, None)?;
    }
    rustix::system::sethostname(mounts.hostname).step(Step::Hostname)?;

    // 4. The root, then /proc, /dev, /sys in it, and what the caller wants on top of that; then the
    // host's root is let go.
    let assembly = Assembly::begin(setup.identities, &mounts, layers)?;
    proc_and_dev::put_in_root(setup.origin)?;
    if setup.sys {
        sysfs::begin_sys(setup.own_network)?;
        if setup.cgroups {
            receive_cgroups(receiver, &owner)?;
        }
        sysfs::finish_sys()?;
    }
    let proc = open_directory(c"m0/proc").step(Step::Proc)?;
    let terminals = open_directory(c"m0/dev/pts").step(Step::Dev)?;
    let null = open_null(c"m0/dev/null").step(Step::Dev)?;
    assembly.finish()?;
    mounts::change_root(setup).step(Step::Pivot)?;

    // 5. What jobs inherit, and init's own limit of descriptors: one for each job.
    rustix::process::umask(Mode::from_raw_mode(DEFAULT_UMASK));
    let rlimits = limits_of_jobs();
    let files = rustix::process::getrlimit(Resource::Nofile);
    let files = Rlimit { current: files.maximum, maximum: files.maximum };
    rustix::process::setrlimit(Resource::Nofile, files).step(Step::Limits)?;
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let mount_namespace = rustix::fs::openat(&proc, c"self/ns/mnt", flags, Mode::empty());
    let mount_namespace = mount_namespace.step(Step::Proc)?;

    let may_share_memory = setup.identities == Identities::Range
        && own_score.is_none()
        && !changed_ids_are_dumpable(&proc).step(Step::Proc)?;

    // 6. Rights: what is given up here, no job can have.
    drop_capabilities(capabilities).step(Step::Capabilities)?;

    // 7. The filters last: they forbid most of the above.
    let mut questions = None;
    for filter in &setup.filters {
        questions = sys::install_filter(filter).step(Step::Seccomp)?.or(questions);
    }

    let identities = setup.identities;
    let descriptors = files.maximum.unwrap_or(u64::MAX);
    let jobs = JobDefaults {
        may_share_memory,
        descriptors,
        null,
        capabilities,
        identities,
        rlimits,
        core_key: setup.core_key,
        proc,
        terminals,
        own_score,
    };
    Ok((Init { child_signals, owner, questions, network, jobs }, mount_namespace))
}

/// Waits for the next request, or the end of the host's process: the socket alone does not
/// end with that where a fork of it holds the other end.
fn next_request(receiver: &mut Receiver, owner: &OwnedFd) -> Result<Vec<u8>> {
    let failed = |errno| Failure::new(Step::Protocol, errno);
    loop {
        if let Some(body) = receiver.take_frame().map_err(|_| failed(Errno::PROTO))? {
            return Ok(body);
        }
        let mut fds = [PollFd::new(receiver, PollFlags::IN), PollFd::new(owner, PollFlags::IN)];
        match poll(&mut fds, None) {
            Ok(_) | Err(Errno::INTR) => {}
            Err(errno) => return Err(failed(errno)),
        }
        let [_, owner_event] = &fds;
        let has_ended = !owner_event.revents().is_empty();
        let is_open = receiver.read_available().map_err(|_| failed(Errno::PROTO))?;
        if !is_open || has_ended {
            return Err(failed(Errno::PIPE));
        }
    }
}

/// Waits until the host has mapped the ids.
fn wait_for_ids(receiver: &mut Receiver, owner: &OwnedFd) -> Result<()> {
    receiver.send(&Reply::Unmapped).step(Step::Identity)?;
    let body = next_request(receiver, owner)?;
    match sys::decode_request(&body) {
        Ok(Request::Mapped) => Ok(()),
        _ => Err(Failure::new(Step::Protocol, Errno::PROTO)),
    }
}

/// The next of the descriptors that came with a request.
fn next_descriptor(receiver: &mut Receiver) -> Result<OwnedFd> {
    receiver.descriptors().pop_front().ok_or(Failure::new(Step::Protocol, Errno::BADF))
}

/// Makes the mounts that need no layer. The working directory is the scratch from here on.
fn prepare_mounts(setup: &Setup<'_>, dev: Option<OwnedFd>) -> Result<()> {
    mounts::enter_scratch(setup.origin).step(Step::Scratch)?;
    proc_and_dev::mount_proc(setup)?;
    proc_and_dev::make_dev(dev, setup)
}

/// Opens what the root file system is made of, as the request says that.
fn open_mounts<'a>(body: &'a [u8], receiver: &mut Receiver) -> Result<(Mounts<'a>, Layers)> {
    let Ok(Request::Mounts(mounts)) = sys::decode_request(body) else {
        return Err(Failure::new(Step::Protocol, Errno::PROTO));
    };
    let layers = Layers::open(&mounts, receiver.descriptors())?;
    Ok((mounts, layers))
}

/// Waits for the cgroups, and mounts them.
fn receive_cgroups(receiver: &mut Receiver, owner: &OwnedFd) -> Result<()> {
    let body = next_request(receiver, owner)?;
    let Ok(Request::Cgroups(cgroups)) = sys::decode_request(&body) else {
        return Err(Failure::new(Step::Protocol, Errno::PROTO));
    };
    cgroups::mount_cgroups(&cgroups, receiver.descriptors())
}

/// Whether a process that takes on another id becomes one that its new user may trace
/// (`fs.suid_dumpable`, `proc_sys_fs(5)`), which holds until it says otherwise.
fn changed_ids_are_dumpable(proc: &OwnedFd) -> rustix::io::Result<bool> {
    let flags = OFlags::RDONLY | OFlags::CLOEXEC;
    let file = rustix::fs::openat(proc, c"sys/fs/suid_dumpable", flags, Mode::empty())?;
    let mut text = [0];
    Ok(rustix::io::read(&file, &mut text)? == 1 && text == *b"1")
}

fn open_directory(path: &CStr) -> rustix::io::Result<OwnedFd> {
    let flags = OFlags::RDONLY | OFlags::DIRECTORY | OFlags::CLOEXEC;
    rustix::fs::open(path, flags, Mode::empty())
}

/// The limits of a job that asks for no others, where they are lower than those of init, up to
/// which a command may ask.
fn limits_of_jobs() -> [adl_protocol::Rlimit; 3] {
    /// What programs are used to; some go through all the descriptors that they could have.
    const FILES: u64 = 1024;
    /// What servers ask for. The end of a process that holds as many takes a moment, not seconds.
    const MOST_FILES: u64 = 65_536;
    /// No core dump, and none handed to a program of the host's either: that is what 1, unlike 0,
    /// means (core(5)).
    const CORE: u64 = 1;
    /// The kernel's, in bytes.
    const LOCKED: u64 = 8 << 20;
    let of = |resource, number, soft: u64, hard: u64| {
        let most = rustix::process::getrlimit(resource).maximum.unwrap_or(u64::MAX);
        adl_protocol::Rlimit { resource: number, soft: soft.min(most), hard: hard.min(most) }
    };
    [
        of(Resource::Nofile, 7, FILES, MOST_FILES),
        of(Resource::Core, 4, CORE, CORE),
        of(Resource::Memlock, 8, LOCKED, LOCKED),
    ]
}

/// Has `/dev/null` on the descriptors 1 and 2, so that none that comes later is a standard one.
fn take_output() -> rustix::io::Result<()> {
    // Away from the standard ones, of which the first that is free is 1.
    let null = rustix::io::fcntl_dupfd_cloexec(open_null(c"/dev/null")?, 3)?;
    rustix::stdio::dup2_stdout(&null)?;
    rustix::stdio::dup2_stderr(&null)?;
    sys::close_on_exec_from(0)
}

/// Opens what must be the null device.
fn open_null(path: &CStr) -> rustix::io::Result<OwnedFd> {
    let null = rustix::fs::open(path, OFlags::RDWR | OFlags::CLOEXEC, Mode::empty())?;
    let stat = rustix::fs::fstat(&null)?;
    let is_null = rustix::fs::FileType::from_raw_mode(stat.st_mode)
        == rustix::fs::FileType::CharacterDevice
        && stat.st_rdev == rustix::fs::makedev(1, 3);
    if !is_null {
        return Err(Errno::NODEV);
    }
    Ok(null)
}

/// Maps the ids of the user who has made the sandbox, where that is no root.
///
/// Here, and not before this program was run, and so it is when the host does that by programs for
/// ordinary users: the kernel gives a process that runs what it can't read to the user namespace
/// that has the file's owner, so that no one inside traces init or one who has a copy of its
/// memory, not with CAP_SYS_PTRACE either. So it must be no one's of this namespace then.
fn map_own_ids([uid_map, gid_map]: [&[u8]; 2]) -> rustix::io::Result<()> {
    // The kernel asks for `deny` before a user without privilege may map a group.
    let files = [
        (c"/proc/self/setgroups", &b"deny"[..]),
        (c"/proc/self/uid_map", uid_map),
        (c"/proc/self/gid_map", gid_map),
    ];
    files.into_iter().try_for_each(|(path, content)| {
        let file = rustix::fs::open(path, OFlags::WRONLY | OFlags::CLOEXEC, Mode::empty())?;
        rustix::io::write(file, content).map(drop)
    })
}

/// Takes on id 0, and another saved id; where there is but one id, that.
///
/// `prlimit(2)` lets a process change the limits of another one whose real, effective and saved
/// ids all equal its own. With a saved id unlike the others, no guest is that process, whatever
/// it becomes; otherwise root in the sandbox could set `RLIMIT_CPU` of init to one second, and
/// the SIGKILL that follows is one of the few that a PID 1 doesn't survive.
fn become_root(identities: Identities) -> rustix::io::Result<()> {
    const OTHER: u32 = 65_534;
    let ((uid, saved_uid), (gid, saved_gid)) = match identities {
        Identities::Range => {
            rustix::thread::set_thread_groups(&[])?;
            ((0, OTHER), (0, OTHER))
        }
        Identities::Single { uid, gid } => ((uid, uid), (gid, gid)),
    };
    let [uid, saved_uid] = [uid, saved_uid].map(Uid::from_raw);
    let [gid, saved_gid] = [gid, saved_gid].map(Gid::from_raw);
    rustix::thread::set_thread_res_gid(gid, gid, saved_gid)?;
    rustix::thread::set_thread_res_uid(uid, uid, saved_uid)?;
    // Not dumpable: /proc/1 then belongs to no one inside, and can't be traced. After the change
    // of ids, since that resets it to what fs.suid_dumpable says.
    rustix::process::set_dumpable_behavior(DumpableBehavior::NotDumpable)?;
    rustix::thread::set_name(c"adl-init")
}

/// Leaves init with what it needs to start and signal jobs, and jobs with `jobs` at most.
fn drop_capabilities(jobs: CapabilitySet) -> rustix::io::Result<()> {
    // SYS_ADMIN marks the trees of jobs, SYS_PTRACE reads the marks. SYS_RESOURCE is in it for what
    // it is not: a job's set. A process can't trace one that holds a capability that it lacks
    // itself. In a user namespace it lifts no limit.
    let own = jobs
        | CapabilitySet::SETUID
        | CapabilitySet::SETGID
        | CapabilitySet::SETPCAP
        | CapabilitySet::KILL
        | CapabilitySet::SYS_ADMIN
        | CapabilitySet::SYS_PTRACE
        | CapabilitySet::SYS_RESOURCE;
    for capability in CapabilitySet::all() {
        if !jobs.contains(capability) {
            match rustix::thread::remove_capability_from_bounding_set(capability) {
                // EINVAL: a capability that this kernel does not know.
                Ok(()) | Err(Errno::INVAL) => {}
                Err(errno) => return Err(errno),
            }
        }
    }
    // Without inheritable ones there are no ambient ones either.
    let sets =
        CapabilitySets { effective: own, permitted: own, inheritable: CapabilitySet::empty() };
    rustix::thread::set_capabilities(None, sets)?;
    rustix::thread::set_no_new_privs(true)
}
