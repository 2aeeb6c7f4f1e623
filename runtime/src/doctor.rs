//! What this machine can do, found out by doing it.

use std::fs;
use std::io::{self, Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::os::fd::AsFd as _;
use std::path::Path;
use std::time::Duration;

use nix::poll::{PollFd, PollFlags};
use serde::Serialize;

use crate::config::limits::Limits;
use crate::config::ports::Publish;
use crate::config::{Config, Network, Upper};
use crate::error::{Error, Result, Step};
use crate::sandbox::Sandbox;
use crate::sys::{joined_network, path_of};
use crate::wait::{Deadline, wait_ready};

/// One thing that a sandbox is made of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
#[non_exhaustive]
pub struct Check {
    /// The thing.
    pub what: &'static str,
    /// Whether it is there.
    pub verdict: Verdict,
    /// What was seen.
    pub detail: String,
    /// What to do, if it is not all there.
    pub remedy: Option<String>,
}

/// Whether something is there.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Verdict {
    /// It is.
    Good,
    /// Sandboxes work without it, and with less.
    Limited,
    /// No sandbox works without it.
    Missing,
}

impl Check {
    fn good(what: &'static str, detail: impl Into<String>) -> Self {
        Self { what, verdict: Verdict::Good, detail: detail.into(), remedy: None }
    }

    fn limited(what: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self { what, verdict: Verdict::Limited, detail: detail.into(), remedy }
    }

    fn missing(what: &'static str, detail: impl Into<String>, remedy: impl Into<String>) -> Self {
        let remedy = Some(remedy.into());
        Self { what, verdict: Verdict::Missing, detail: detail.into(), remedy }
    }
}

/// The first Linux on which overlayfs takes an id-mapped layer.
const OLDEST_KERNEL: (u32, u32) = (5, 19);

/// Examines this machine, as the calling user. It makes some sandboxes, and leaves nothing but what
/// the first sandbox of a state directory leaves there for the next: the host image.
/// `state_directory` is as in [`Config`].
pub fn examine(state_directory: Option<&Path>) -> Vec<Check> {
    let config =
        Config { state_directory: state_directory.map(Path::to_owned), ..Config::default() };
    let on_disk = Sandbox::create(config.clone());
    let in_memory =
        Sandbox::create(Config { upper: Upper::Memory { size: 16 << 20 }, ..config.clone() });
    let mut checks = vec![kernel(), privileges(&config, on_disk.is_ok() || in_memory.is_ok())];
    match (&on_disk, &in_memory) {
        (Err(on_disk), Err(in_memory)) => {
            // Nothing else can be tried. One cause is told once.
            let causes = [no_sandbox(on_disk), no_sandbox(in_memory)];
            checks.extend(causes);
            checks.dedup_by(|one, other| (one.what, &one.remedy) == (other.what, &other.remedy));
        }
        (Ok(sandbox), _) | (_, Ok(sandbox)) => checks.extend([
            Check::good(NAMESPACES, "user, PID, mount, UTS, IPC, cgroup, network"),
            overlay("overlay, on disk", on_disk.as_ref()),
            overlay("overlay, in memory", in_memory.as_ref()),
            disk_limit(&config),
            ports(sandbox),
            host_network(&config),
            joined_network(&config),
            seccomp(sandbox),
            limits(&config),
        ]),
    }
    // What can't be removed is told where it matters: by `adl gc`.
    for sandbox in [on_disk, in_memory].into_iter().flatten() {
        let _ = sandbox.delete();
    }
    crate::finish_removals();
    checks
}

fn kernel() -> Check {
    const WHAT: &str = "kernel";
    let release = fs::read_to_string("/proc/sys/kernel/osrelease").unwrap_or_default();
    let release = release.trim();
    let mut numbers = release.split(['.', '-']).map(str::parse);
    match (numbers.next(), numbers.next()) {
        (Some(Ok(major)), Some(Ok(minor))) if (major, minor) < OLDEST_KERNEL => {
            let (major, minor) = OLDEST_KERNEL;
            Check::missing(WHAT, release, format!("use Linux {major}.{minor} or later"))
        }
        _ => Check::good(WHAT, format!("Linux {release}")),
    }
}

/// What is wrong with all sandboxes, where none can be made, is told by other checks.
fn privileges(config: &Config, can_be_made: bool) -> Check {
    const WHAT: &str = "ids";
    const LENGTH: u32 = crate::sys::id_ranges::LENGTH;
    if crate::sys::id_ranges::caller_may_map() {
        return Check::good(WHAT, format!("a range of {LENGTH} for each sandbox"));
    }
    if !can_be_made {
        let fix = "run as root, for sandboxes with users other than root in them";
        return Check::limited(WHAT, "one, the calling user's", fix);
    }
    let limited =
        |why: &str, fix| Check::limited(WHAT, format!("one, the calling user's: {why}"), fix);
    match Sandbox::create(Config { ids: Some(LENGTH), ..config.clone() }) {
        Ok(sandbox) => {
            let _ = sandbox.delete();
            let detail = format!("one, the calling user's; {LENGTH} with `ids` (adl run --ids)");
            Check::good(WHAT, detail)
        }
        Err(Error::Unsupported { why, fix, .. }) => limited(&why, fix),
        Err(error) => limited(&error.to_string(), remedy_of(&error).to_owned()),
    }
}

fn disk_limit(config: &Config) -> Check {
    const WHAT: &str = "a size of uppers on disk";
    let upper = Upper::Disk { size: Some(16 << 20) };
    match Sandbox::create(Config { upper, ..config.clone() }).and_then(|sandbox| sandbox.delete()) {
        Ok(()) => Check::good(WHAT, "by project quotas"),
        Err(Error::Unsupported { why, fix, .. }) => Check::limited(WHAT, why, fix),
        Err(error) => Check::limited(WHAT, error.to_string(), remedy_of(&error)),
    }
}

const NAMESPACES: &str = "user namespaces and the others";

/// What stands in the way of all sandboxes.
fn no_sandbox(error: &Error) -> Check {
    match error {
        Error::Unsupported { what, why, fix } => {
            let of_namespaces = what.ends_with("in namespaces of its own");
            let remedy = of_namespaces.then(typed_remedy).flatten().unwrap_or_else(|| fix.clone());
            let what_for =
                if what.starts_with("the state directory") { STATE_DIRECTORY } else { NAMESPACES };
            Check::missing(what_for, format!("{what}: {why}"), remedy)
        }
        Error::Setup { step: Step::Identity | Step::Hostname | Step::Loopback, .. } => {
            const APPARMOR: &str = "an AppArmor profile that allows userns, or, as root: sysctl -w \
                                    kernel.apparmor_restrict_unprivileged_userns=0";
            Check::missing(NAMESPACES, "made, but without rights in them", APPARMOR)
        }
        Error::Setup { step: Step::Seccomp, .. } => {
            Check::missing("seccomp", error.to_string(), "use a kernel with CONFIG_SECCOMP_FILTER")
        }
        Error::Invalid { .. } | Error::Io { .. } => {
            Check::missing(STATE_DIRECTORY, error.to_string(), remedy_of(error))
        }
        _ => Check::missing("overlay", error.to_string(), remedy_of(error)),
    }
}

const STATE_DIRECTORY: &str = "the state directory";

/// What to type where a setting of the kernel is in the way of user namespaces.
fn typed_remedy() -> Option<String> {
    let settings = [
        ("kernel/unprivileged_userns_clone", "0", "kernel.unprivileged_userns_clone=1"),
        (
            "kernel/apparmor_restrict_unprivileged_userns",
            "1",
            "kernel.apparmor_restrict_unprivileged_userns=0",
        ),
        ("user/max_user_namespaces", "0", "user.max_user_namespaces=15000"),
    ];
    let is_in_the_way = |name: &str, bad: &str| {
        fs::read_to_string(Path::new("/proc/sys").join(name)).is_ok_and(|text| text.trim() == bad)
    };
    let found = settings.into_iter().find(|(name, bad, _)| is_in_the_way(name, bad));
    found.map(|(_, _, setting)| format!("as root: sysctl -w {setting}"))
}

fn overlay(what: &'static str, sandbox: Result<&Sandbox, &Error>) -> Check {
    match sandbox {
        Ok(_) => Check::good(what, "mounted in a user namespace"),
        Err(error) => Check::missing(what, error.to_string(), remedy_of(error)),
    }
}

fn remedy_of(error: &Error) -> &str {
    match error {
        Error::Unsupported { fix, .. } => fix,
        Error::Setup { step: Step::Upper | Step::Overlay | Step::Layer, .. } => {
            "as root: modprobe overlay; keep the state directory (ADL_STATE_DIR) on ext4, xfs, \
             btrfs or tmpfs, not on an overlay itself"
        }
        Error::Setup { step: Step::Proc, .. } => {
            "in a container, unmount what lies on its /proc, or run it with it unmasked: docker \
             run --security-opt systempaths=unconfined"
        }
        Error::Io { .. } | Error::Invalid { .. } => {
            "set ADL_STATE_DIR to a directory in which the calling user may write"
        }
        _ => "report this, with what `adl run -- true` says",
    }
}

fn host_network(config: &Config) -> Check {
    const WHAT: &str = "the host's network, where asked for";
    match Sandbox::create(Config { network: Network::Host, ..config.clone() }) {
        Ok(sandbox) => {
            let _ = sandbox.delete();
            Check::good(WHAT, "shared")
        }
        Err(error) => Check::limited(WHAT, error.to_string(), "use a network of the sandbox's own"),
    }
}

/// Joins a network namespace that is made for that.
fn joined_network(config: &Config) -> Check {
    const WHAT: &str = "a network namespace, where asked for";
    const FIX: &str = "use a network of the sandbox's own";
    let made = match joined_network::make() {
        Ok(made) => made,
        Err(error) => return Check::limited(WHAT, format!("none to try: {error}"), FIX),
    };
    let network = Network::join(path_of(&made));
    match Sandbox::create(Config { network, ..config.clone() }) {
        Ok(sandbox) => {
            let _ = sandbox.delete();
            Check::good(WHAT, "joined")
        }
        Err(Error::Unsupported { why, fix, .. }) => Check::limited(WHAT, why, fix),
        Err(error) => Check::limited(WHAT, error.to_string(), FIX),
    }
}

/// Has a port of the host's lead to a server inside, and says something through it.
fn ports(sandbox: &Sandbox) -> Check {
    const WHAT: &str = "ports into a sandbox";
    const FIX: &str =
        "have servers listen on this machine, by its network (adl run --network host)";
    match pass_on(sandbox) {
        Ok(true) => Check::good(WHAT, "passed on to servers inside"),
        Ok(false) => Check::limited(WHAT, format!("nothing came through within {PASSAGE:?}"), FIX),
        Err(error) => Check::limited(WHAT, error.to_string(), FIX),
    }
}

/// How long what is said may take from one end to the other.
const PASSAGE: Duration = Duration::from_secs(5);

/// Whether a word comes through a published port. No program inside is needed for it: the server's
/// socket is inside, and its end outside.
fn pass_on(sandbox: &Sandbox) -> Result<bool> {
    const WORD: &[u8] = b"adl";
    let server = sandbox.listen((Ipv4Addr::LOCALHOST, 0))?;
    let inside = server.local_addr().map_err(Error::io("getsockname"))?.port();
    let port = sandbox.publish(&Publish::new((Ipv4Addr::LOCALHOST, 0), inside))?;
    let passed = || -> io::Result<bool> {
        let mut client = TcpStream::connect_timeout(&port.address(), PASSAGE)?;
        client.set_read_timeout(Some(PASSAGE))?;
        let mut fds = [PollFd::new(server.as_fd(), PollFlags::POLLIN)];
        if !wait_ready(&mut fds, Deadline::after(PASSAGE)).map_err(io::Error::other)? {
            return Ok(false);
        }
        server.accept()?.0.write_all(WORD)?;
        let mut heard = Vec::new();
        client.read_to_end(&mut heard)?;
        Ok(heard == WORD)
    };
    let passed = passed().map_err(Error::io("talk through a port"));
    sandbox.close_port(&port)?;
    passed
}

/// Asks a program in the sandbox what the kernel says of it.
fn seccomp(sandbox: &Sandbox) -> Check {
    const WHAT: &str = "seccomp";
    const FILTERED: &str = "Seccomp:\t2";
    match sandbox.command("cat").arg("/proc/self/status").output() {
        Ok(output) if String::from_utf8_lossy(&output.stdout).contains(FILTERED) => {
            Check::good(WHAT, "the filter is in force")
        }
        Ok(_) => Check::missing(WHAT, "no filter in force", "use CONFIG_SECCOMP_FILTER"),
        Err(error) => Check::limited(WHAT, error.to_string(), "install cat, to have it looked at"),
    }
}

fn limits(config: &Config) -> Check {
    const WHAT: &str = "limits";
    let limits = Limits { accounting: true, ..Limits::default() };
    let sandbox = match Sandbox::create(Config { limits, ..config.clone() }) {
        Ok(sandbox) => sandbox,
        Err(Error::Unsupported { why, fix, .. }) => return Check::limited(WHAT, why, fix),
        Err(error) => return Check::limited(WHAT, error.to_string(), remedy_of(&error)),
    };
    let Ok(group) = sandbox.group() else { return Check::limited(WHAT, "none", "") };
    let found = group.found();
    match group.missing() {
        Some(Error::Unsupported { what, fix, .. }) => {
            Check::limited(WHAT, format!("by cgroups: {found}; not {what}"), fix)
        }
        _ => Check::good(WHAT, format!("by cgroups: {found}")),
    }
}
