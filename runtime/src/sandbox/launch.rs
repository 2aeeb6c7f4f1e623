//! From an opened image to a running init: the steps on the host's side, in their one order.

use std::fs;
use std::io::{self, Write};
use std::os::fd::{AsFd, AsRawFd, OwnedFd, RawFd};
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use adl_protocol::{
    Access, Cgroups, IdMaps, Identities, Mount, Mounts, NetworkOrigin, Origin, Reply, Request,
    Setup, SetupFailure, Step, Strings, VERSION, What,
};
use nix::errno::Errno;

use crate::cgroup::{Group, JoinFiles};
use crate::config::capabilities::{Capabilities, Capability};
use crate::error::traced::{span, traced};
use crate::error::{Error, Result, error_of};
use crate::root::etc::Contents;
use crate::sandbox::descriptors::{self, Descriptors};
use crate::sandbox::init_binary;
use crate::sandbox::plan::{PID_MAX, Plan};
use crate::sandbox::root::Root;
use crate::seccomp;
use crate::store::directory::SandboxDirectory;
use crate::store::ids::IdRange;
use crate::sys::clone::{Init, Namespaces, Process, Refused, spawn_in_namespaces};
use crate::sys::empty_namespace::EmptyNamespace;
use crate::sys::id_ranges::Ids;
use crate::sys::inheritance::{self, SessionKeyring};
use crate::sys::joined_network::JoinedNetwork;
use crate::sys::own_namespaces::OwnNamespaces;
use crate::sys::socket::{self, Socket};
use crate::sys::{pidfd, proc};
use crate::wait::Deadline;
use crate::wire::{self, Messages};

/// How long init may take to set up a sandbox: thousands of times what it needs, so that only one
/// that hangs is given up.
const SETUP: Duration = Duration::from_secs(20);

/// Parts of `/proc` that tell of the host's devices, memory and users or act on them, below
/// `/proc`. To write to those of `pressure` would also let a guest delay its own end: each trigger
/// waits for the kernel to come to rest when it is closed.
const MASKED: &[u8] =
    b"acpi/\0asound/\0bus/\0cmdline\0diskstats\0fs/\0interrupts\0irq/\0kcore\0keys\0kmsg\0\
    latency_stats\0locks\0partitions\0pressure/\0sched_debug\0scsi/\0swaps\0\
    sys/kernel/random/boot_id\0sysrq-trigger\0timer_list\0timer_stats\0";
/// Parts of `/proc` that can be read but not written: parameters of the kernel.
const READ_ONLY: &[u8] = b"sys\0";
/// And init, which who holds CAP_SYS_NICE could make sleep past each deadline that it keeps
/// (`timerslack_ns`). Without need this is not done: a process that ends takes what is mounted on
/// it along, and whoever reaps it waits for every processor.
const READ_ONLY_WITH_SYS_NICE: &[u8] = b"1\0sys\0";

/// What init needs of capabilities, beyond those of jobs, to set up the sandbox and start them.
const FOR_SETUP: Capabilities = Capabilities::NONE
    .with(Capability::Chown)
    .with(Capability::DacOverride)
    .with(Capability::Fowner)
    .with(Capability::Kill)
    .with(Capability::NetAdmin)
    .with(Capability::Setgid)
    .with(Capability::Setpcap)
    .with(Capability::Setuid)
    .with(Capability::SysAdmin)
    .with(Capability::SysChroot)
    .with(Capability::SysPtrace)
    .with(Capability::SysResource);

/// What one life of a sandbox is built from, opened.
pub(crate) struct Build<'a> {
    pub(crate) plan: &'a Plan,
    /// A range of ids; `None` for a user without privilege, who has only their own.
    pub(crate) ids: Option<&'a IdRange>,
    /// What init's mounts were copied from.
    pub(crate) origin: Origin,
    /// The largest process id inside, where that is to bound how many there are.
    pub(crate) pid_max: Option<u32>,
    /// Whether it is to have cgroups.
    pub(crate) has_cgroups: bool,
    /// Whether programs inside may make subvolumes of btrfs.
    pub(crate) takes_subvolumes: bool,
}

impl Build<'_> {
    fn shows_cgroups(&self) -> bool {
        self.has_cgroups && self.plan.has_sysfs(true)
    }
}

/// The namespaces that an ordinary user's sandboxes begin in, where this plan's may. Others begin
/// in a copy of the caller's mounts: those with ids that are mapped by programs, and those with
/// cgroups in `/sys`, which init opens by path.
pub(crate) fn namespaces(plan: &Plan) -> Option<&'static OwnNamespaces> {
    let has_sysfs = plan.may_have_sysfs();
    if plan.joined.is_some() {
        // Which may belong to another user namespace than they do.
        return None;
    }
    match plan.ids {
        // A sysfs shows the network devices of where it was mounted.
        Ids::One { .. } if !has_sysfs || plan.has_own_network && !plan.may_have_cgroups() => {
            OwnNamespaces::of_process(has_sysfs)
        }
        Ids::One { .. } | Ids::Range(_) => None,
    }
}

/// Starts init, in namespaces of its own and waiting for its set-up.
///
/// A user without privilege maps their own ids, from inside; else the host will map `ids`, of which
/// the first makes the user namespace.
pub(crate) fn start(
    plan: &Plan,
    ids: Option<&IdRange>,
    namespaces: Option<&'static OwnNamespaces>,
) -> Result<(Process, Origin, Messages)> {
    let (ours, theirs) = Socket::pair().map_err(Error::io("socketpair"))?;
    let theirs = wire::above_stdio(theirs)?;
    let messages = Messages::new(ours);
    messages.expect_descriptor()?;
    let kinds = match plan.has_own_network {
        true => Namespaces::BASE.with_network(),
        false => Namespaces::BASE,
    };
    let maker = ids.map(IdRange::base);
    let executable = init_binary::memfd()?;
    let capabilities = plan.capabilities | FOR_SETUP.bits();
    // Of keys an ordinary user may have 200, for all that they do.
    let keyring = match plan.is_filtered && ids.is_none() {
        true => SessionKeyring::Callers,
        false => SessionKeyring::Own,
    };
    let (control, others) = (theirs.as_fd(), messages.as_fd());
    let network = plan.joined.as_deref();
    let init = Init { executable, control, others, maker, capabilities, keyring, network };
    // A sysfs shows the network devices of where it was mounted: the caller's.
    let has_sysfs = plan.may_have_sysfs();
    let empty = match ids.is_some() && (plan.network() != NetworkOrigin::Caller || !has_sysfs) {
        true => EmptyNamespace::of_process(has_sysfs),
        false => namespaces.map(OwnNamespaces::empty),
    };
    let (process, origin) =
        spawn_in_namespaces(kinds, &init, empty).map_err(|refused| match refused {
            Refused::Clone(error) => namespaces_refused(error, network),
            Refused::Join(error) => network.map_or_else(
                || Error::Protocol { why: "no network was to be joined" },
                |network| network.refused(error),
            ),
        })?;
    Ok((process, origin, messages))
}

/// What is kept of the beginning of a set-up for the rest.
#[derive(Debug)]
pub(crate) struct Begun {
    /// Where the host has mapped the ids.
    user_namespace: Option<OwnedFd>,
    is_core_limited: bool,
}

/// Gives init its ids, and all else that it can do before there is a directory of the sandbox.
pub(crate) fn begin(process: &Process, messages: &Messages, build: &Build<'_>) -> Result<Begun> {
    try_begin(process, messages, build).map_err(|error| why(process, error))
}

/// Gives init its file systems; does `meanwhile` what it needs not wait for. Returns by when it is
/// to be ready.
pub(crate) fn set_up(
    process: &Process,
    messages: &Messages,
    begun: Begun,
    build: &Build<'_>,
    sources: Option<Vec<OwnedFd>>,
    of_sandbox: (&str, &SandboxDirectory, &Root),
    meanwhile: impl FnOnce() -> Result<Option<Arc<Group>>>,
) -> Result<Deadline> {
    try_set_up(process, messages, begun, build, sources, of_sandbox, meanwhile)
        .map_err(|error| why(process, error))
}

/// Waits until init says that all is done. Returns its mount namespace, and which network namespace
/// it is in.
pub(crate) fn wait_ready(
    process: &Process,
    messages: &Messages,
    deadline: Deadline,
) -> Result<(OwnedFd, u64)> {
    traced(&span!(DEBUG, "wait_ready",), || try_wait_ready(process, messages, deadline))
        .map_err(|error| why(process, error))
}

/// Why a set-up has failed: where the process's end came before it was init, that tells.
fn why(process: &Process, error: Error) -> Error {
    process.launch_error().map_or(error, launch_failed)
}

fn try_begin(process: &Process, messages: &Messages, build: &Build<'_>) -> Result<Begun> {
    let deadline = Deadline::after(SETUP);
    let Build { plan, .. } = build;
    let (user_namespace, dev) = match build.ids {
        Some(range) => {
            let place = proc::directory_of(process).map_err(Error::io("look for init in /proc"))?;
            write_id_maps(&place, range)?;
            let dev = descriptors::dev(range.base(), plan.dev_size())?;
            (Some(open_user_namespace(&place)?), Some(dev))
        }
        None => (None, None),
    };
    let filter = match plan.is_filtered {
        true => Some(seccomp::default_filter(plan.capabilities)?),
        false => None,
    };
    let of_upper = match build.takes_subvolumes {
        true => None,
        false => Some(seccomp::no_subvolumes()?),
    };
    let own_maps = match plan.ids {
        Ids::Range(_) => [Vec::new(), Vec::new()],
        Ids::One { uid, gid } => id_maps_of_caller(uid, gid, process.ids_of_caller),
    };
    let sysctls = plan.sysctls(build.pid_max)?;
    let read_only = match plan.config().capabilities.contains(Capability::SysNice) {
        true => READ_ONLY_WITH_SYS_NICE,
        false => READ_ONLY,
    };
    let setup = Setup {
        version: VERSION,
        identities: match plan.ids {
            Ids::Range(_) => Identities::Range,
            Ids::One { uid, gid } => Identities::Single { uid, gid },
        },
        id_maps: match (plan.ids, plan.subordinate) {
            (Ids::One { .. }, _) => IdMaps::Own(own_maps.each_ref().map(Vec::as_slice)),
            (Ids::Range(_), Some(_)) => IdMaps::ByHelpers,
            (Ids::Range(_), None) => IdMaps::Written,
        },
        origin: build.origin,
        network: plan.network(),
        masked: Strings::new(MASKED).map_err(strings_error)?,
        read_only: Strings::new(read_only).map_err(strings_error)?,
        sysctls: Strings::new(&sysctls).map_err(strings_error)?,
        dev_size: plan.dev_size(),
        sys: plan.has_sysfs(build.has_cgroups),
        cgroups: build.shows_cgroups(),
        is_filtered: plan.is_filtered,
        capabilities: plan.capabilities,
        filters: filter.into_iter().chain(of_upper.as_deref()).collect(),
        core_key: seccomp::core_key()?,
    };
    let owner = pidfd::open(std::process::id().cast_signed()).map_err(Error::io("pidfd_open"))?;
    let numbers = [Some(&owner), dev.as_ref()].into_iter().flatten();
    let numbers: Vec<_> = numbers.map(|fd| fd.as_raw_fd()).collect();
    let init = process.pidfd.as_fd();
    // Before init looks what limits jobs can have.
    let is_core_limited = inheritance::raise_core_limit(process.pid).is_ok();
    wire::send(messages.as_fd(), &Request::Setup(setup), &numbers, init, deadline)?;
    Ok(Begun { user_namespace, is_core_limited })
}

fn try_set_up(
    process: &Process,
    messages: &Messages,
    begun: Begun,
    build: &Build<'_>,
    sources: Option<Vec<OwnedFd>>,
    (hostname, directory, root): (&str, &SandboxDirectory, &Root),
    meanwhile: impl FnOnce() -> Result<Option<Arc<Group>>>,
) -> Result<Deadline> {
    let deadline = Deadline::after(SETUP);
    let Build { plan, .. } = build;
    let init = process.pidfd.as_fd();
    let mut descriptors = match sources {
        Some(mounts) => Descriptors::cloned(mounts),
        None => Descriptors::new(begun.user_namespace, build.ids.map(IdRange::base)),
    };
    let (upper, mounts) = descriptors.name_all(root, directory)?;
    let names = (hostname, &plan.config().network);
    let etc = root.stacks().next();
    let etc = Contents::new(&root.etc, etc, names, plan.ids, plan.subordinate)?;
    let mounts = Mounts {
        hostname: hostname.as_bytes(),
        upper,
        mounts,
        etc: Strings::new(&etc.files).map_err(strings_error)?,
        etc_attributes: etc.attributes,
    };
    // What init failed at comes below.
    let send = |request: &Request<'_>, numbers: &[RawFd]| match wire::send(
        messages.as_fd(),
        request,
        numbers,
        init,
        deadline,
    ) {
        Ok(()) | Err(Error::SandboxDied) => Ok(()),
        Err(error) => Err(error),
    };
    if let (Ids::Range(length), Some(subordinate)) = (plan.ids, plan.subordinate) {
        let body = messages.next("init to wait for its ids", init, deadline)?;
        // Not before: see `map_own_ids` of init.
        match wire::decode(&body)? {
            Reply::Unmapped => subordinate.map(process, length)?,
            other => return Err(refusal(other)),
        }
        send(&Request::Mapped, &[])?;
    }
    send(&Request::Mounts(mounts), &descriptors.numbers().collect::<Vec<_>>())?;
    // While init mounts the root.
    let group = meanwhile()?;
    if build.shows_cgroups() {
        let mut descriptors = Descriptors::new(None, build.ids.map(IdRange::base));
        let cgroups = descriptors.cgroups(group.as_deref())?;
        let mounts = cgroups.iter().map(|(names, directory)| Mount {
            at: names.as_bytes(),
            access: Access::ReadOnly,
            what: What::Volume(directory.clone()),
        });
        let roots = group.as_deref().map_or_else(|| Ok(JoinFiles::default()), Group::roots)?;
        let request = Request::Cgroups(Cgroups { mounts: mounts.collect(), roots: roots.count() });
        let numbers: Vec<_> = descriptors.numbers().chain(roots.descriptors()).collect();
        send(&request, &numbers)?;
    }
    if plan.is_filtered {
        no_dumps_leave(begun.is_core_limited)?;
    }
    let is_spared = own_oom_score_is_negative()?;

    if is_spared {
        // Init has raised its own. How far it and what it starts may go back is what one with
        // CAP_SYS_RESOURCE sets; without that, it is the caller's.
        let _ = fs::write(format!("/proc/{}/oom_score_adj", process.pid), "0");
    }
    Ok(deadline)
}

fn try_wait_ready(
    process: &Process,
    messages: &Messages,
    deadline: Deadline,
) -> Result<(OwnedFd, u64)> {
    let body = messages.next("init to set up the sandbox", process.pidfd.as_fd(), deadline)?;
    // It has no more to say here.
    messages.no_more()?;
    match wire::decode(&body)? {
        Reply::Ready { version: VERSION, network } => {
            let mounts = messages.take_descriptor(
                socket::is_other_mount_namespace,
                "a sandbox without its mount namespace",
            )?;
            Ok((mounts, network))
        }
        Reply::Ready { .. } => Err(Error::Protocol { why: "init speaks another version" }),
        other => Err(refusal(other)),
    }
}

/// What init says in the place of what is expected.
pub(crate) fn refusal(reply: Reply<'_>) -> Error {
    match reply {
        Reply::Ready { .. } | Reply::Unmapped => {
            Error::Protocol { why: "init says that it is at another step" }
        }
        Reply::Failed(SetupFailure { step: Step::Sysctl, path, errno })
            if path == PID_MAX.as_bytes() =>
        {
            Error::Unsupported {
                what: "a limit of processes".to_owned(),
                why: format!(
                    "there is no cgroup controller pids to make one in, and a PID namespace has no bound of \
                     its own: {}",
                    error_of(errno)
                ),
                fix: "mount a cgroup hierarchy with pids, or use Linux 6.14 or later".to_owned(),
            }
        }
        Reply::Failed(failure) => setup_error(failure),
    }
}

/// Makes sure that the kernel hands the memory of what crashes to no one: a socket in the place of
/// a file (Linux 6.16) gets it whatever the limit of core dumps is, and a program unless that is 1.
fn no_dumps_leave(is_core_limited: bool) -> Result<()> {
    let path = Path::new("/proc/sys/kernel/core_pattern");
    let pattern = match fs::read_to_string(path) {
        // A kernel that dumps nothing.
        Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(()),
        other => other.map_err(Error::at("read", path))?,
    };
    let (what, fix) = match pattern.as_bytes().first() {
        Some(b'@') => (
            "a socket, which gets it whatever the limits are",
            "set sysctl kernel.core_pattern to a file name or to |program",
        ),
        Some(b'|') if !is_core_limited => (
            "a program, which gets it unless the limit of core dumps is 1, and the hard limit here is 0",
            "raise the hard limit of core dumps to 1 or more (RLIMIT_CORE, LimitCORE= of systemd)",
        ),
        _ => return Ok(()),
    };
    Err(Error::Unsupported {
        what: "a sandbox whose memory stays in it when a program crashes".to_owned(),
        why: format!("kernel.core_pattern is {:?}, {what}", pattern.trim_end()),
        fix: fix.to_owned(),
    })
}

/// Whether this process is spared when memory runs out (`proc_pid_oom_score_adj(5)`).
fn own_oom_score_is_negative() -> Result<bool> {
    let path = Path::new("/proc/self/oom_score_adj");
    let score = fs::read(path).map_err(Error::at("read", path))?;
    Ok(score.starts_with(b"-"))
}

/// Maps by which a user and a group inside are those of the calling process outside: a user without
/// privilege may write no others, and only from inside.
fn id_maps_of_caller(uid: u32, gid: u32, [caller, its_group]: [u32; 2]) -> [Vec<u8>; 2] {
    let map = |inside: u32, outside: u32| format!("{inside} {outside} 1\n").into_bytes();
    [map(uid, caller), map(gid, its_group)]
}

/// Maps a range of ids.
fn write_id_maps(place: &Path, range: &IdRange) -> Result<()> {
    let map = format!("0 {} {}\n", range.base(), range.length());
    for name in ["uid_map", "gid_map"] {
        let path = place.join(name);
        let file = fs::File::options().write(true).open(&path);
        // One write: the kernel takes a map whole or not at all.
        file.and_then(|mut file| file.write_all(map.as_bytes())).map_err(|source| match source
            .kind()
        {
            io::ErrorKind::PermissionDenied => Error::Unsupported {
                what: "a map of ids for the user namespace".to_owned(),
                why: format!("writing {path:?}: {source}"),
                fix:
                    "run as root with CAP_DAC_OVERRIDE, CAP_SETGID, CAP_SETUID and CAP_SYS_ADMIN, \
                      or as an ordinary user"
                        .to_owned(),
            },
            _ => Error::at("write", &path)(source),
        })?;
    }
    Ok(())
}

fn open_user_namespace(place: &Path) -> Result<OwnedFd> {
    let path = place.join("ns/user");
    fs::File::open(&path).map(OwnedFd::from).map_err(|source| match source.kind() {
        // That of a process that is not dumpable.
        io::ErrorKind::PermissionDenied => Error::Unsupported {
            what: "the user namespace of init".to_owned(),
            why: format!("opening {path:?}: {source}"),
            fix: "run as root with CAP_SYS_PTRACE, or as an ordinary user".to_owned(),
        },
        _ => Error::at("open", &path)(source),
    })
}

fn strings_error(error: adl_protocol::StringsError) -> Error {
    Error::invalid("path", error.to_string())
}

fn setup_error(failure: SetupFailure<'_>) -> Error {
    Error::Setup {
        step: crate::error::Step::from_wire(failure.step),
        path: PathBuf::from(std::ffi::OsStr::from_bytes(failure.path)),
        source: error_of(failure.errno),
    }
}

/// Whether it may do when there is less of something else.
fn is_exhausted(error: &io::Error) -> bool {
    use libc::{EAGAIN, EMFILE, ENFILE, ENOMEM};
    matches!(error.raw_os_error(), Some(EAGAIN | EMFILE | ENFILE | ENOMEM))
}

fn launch_failed(error: io::Error) -> Error {
    if is_exhausted(&error) {
        return Error::io("execute init, see RLIMIT_NPROC, RLIMIT_NOFILE and pids.max")(error);
    }
    let fix = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EINTR) => return Error::io("execute init")(error),
        Some(Errno::EPERM | Errno::EACCES) => {
            "allow user namespaces in full: sysctl \
             kernel.apparmor_restrict_unprivileged_userns=0, or an AppArmor profile; vm.memfd_noexec \
             must not be 2"
        }
        Some(Errno::EDQUOT) => "raise sysctl kernel.keys.maxkeys, or delete sandboxes",
        _ => "`adl doctor` tells more",
    };
    Error::Unsupported {
        what: "an init in namespaces of its own".to_owned(),
        why: error.to_string(),
        fix: fix.to_owned(),
    }
}

fn namespaces_refused(error: io::Error, network: Option<&JoinedNetwork>) -> Error {
    if is_exhausted(&error) {
        return Error::io("clone init, see RLIMIT_NPROC, RLIMIT_NOFILE and pids.max")(error);
    }
    if let Some(network) = network.filter(|network| network.owner().is_some())
        && error.raw_os_error() == Some(libc::EPERM)
    {
        // Whose numbers it lacks.
        return network.refused(error);
    }
    let fix = match error.raw_os_error().map(Errno::from_raw) {
        Some(Errno::EINTR) => return Error::io("clone init")(error),
        Some(Errno::EPERM | Errno::EACCES) => {
            "allow user namespaces: sysctl kernel.unprivileged_userns_clone=1, or \
             kernel.apparmor_restrict_unprivileged_userns=0 and an AppArmor profile; in a \
             container, a seccomp profile that allows clone with namespaces. Root needs CAP_SETUID. \
             A process in a chroot can't make them at all"
        }
        Some(Errno::ENOSPC | Errno::EUSERS) => {
            "raise sysctl user.max_user_namespaces and its siblings for the other namespaces, or \
             delete sandboxes"
        }
        Some(Errno::EINVAL | Errno::ENOSYS) => {
            "use Linux 5.19 or later with CONFIG_USER_NS, CONFIG_PID_NS, CONFIG_NET_NS, \
             CONFIG_IPC_NS, CONFIG_UTS_NS and CONFIG_CGROUPS"
        }
        _ => "`adl doctor` tells more",
    };
    Error::Unsupported {
        what: "a process in namespaces of its own".to_owned(),
        why: format!("clone: {error}"),
        fix: fix.to_owned(),
    }
}
