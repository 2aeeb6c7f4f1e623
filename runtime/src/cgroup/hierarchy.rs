//! Where on this machine cgroups of each controller can be made.
//!
//! Nothing above or beside the caller's own cgroup is written to. With version 1, that is where a
//! sandbox's cgroups go. With version 2 a cgroup that has processes can't hand controllers on. So
//! they go into the nearest one above that does, as far as that was delegated to the caller, as
//! systemd does it; or into the caller's own, if that is the root, which is then made to hand them
//! on.

use std::fs;
use std::os::fd::AsFd;
use std::os::unix::ffi::{OsStrExt, OsStringExt};
use std::path::{Component, Path, PathBuf};

use nix::fcntl::{AT_FDCWD, AtFlags};
use nix::unistd::{AccessFlags, faccessat};

use crate::error::{Error, Result, found};
use crate::sys;
use crate::sys::owner::PerProcess;

/// What a cgroup can limit or count.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub(crate) enum Controller {
    Cpu,
    Cpuset,
    Io,
    Memory,
    Pids,
    /// CPU time. A cgroup of version 2 counts it without a controller.
    CpuTime,
    /// Freezing, which those of version 2 can, too.
    Freezer,
}

impl Controller {
    pub(super) const WITH_LIMITS: [Self; 5] =
        [Self::Cpu, Self::Cpuset, Self::Io, Self::Memory, Self::Pids];

    pub(super) fn name(self, version: Version) -> &'static str {
        match (self, version) {
            (Self::Cpu, _) => "cpu",
            (Self::Cpuset, _) => "cpuset",
            (Self::Io, Version::V1) => "blkio",
            (Self::Io, Version::V2) => "io",
            (Self::Memory, _) => "memory",
            (Self::Pids, _) => "pids",
            (Self::CpuTime, _) => "cpuacct",
            (Self::Freezer, _) => "freezer",
        }
    }
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Version {
    V1,
    V2,
}

/// Where a sandbox's cgroup goes in one hierarchy, and what for.
#[derive(Debug, Clone)]
pub(super) struct Place {
    pub(super) version: Version,
    pub(super) parent: PathBuf,
    pub(super) controllers: Vec<Controller>,
    /// By what the hierarchy is known inside, below `/sys/fs/cgroup`; none with version 2.
    pub(super) names: Vec<&'static str>,
    /// Whether it is for programs inside to find, and nothing that was asked for.
    pub(super) only_shown: bool,
}

/// What the JVM looks for with version 1, before it believes any limit.
const LOOKED_FOR: [Controller; 4] =
    [Controller::Cpu, Controller::Cpuset, Controller::Memory, Controller::CpuTime];

/// A mounted hierarchy.
#[derive(Debug)]
struct Hierarchy {
    version: Version,
    mount: PathBuf,
    /// What of the hierarchy is mounted there.
    root: PathBuf,
    /// With version 1, its controllers, and what it is known by in `/proc/self/cgroup`.
    controllers: Vec<Controller>,
    options: Vec<String>,
}

/// Finds a place for what can be had of what is `wanted`, what is `needed` before all; and tells
/// for what of that there is none.
///
/// `parent` is what to be below, in each hierarchy, instead of the caller's own cgroup; `is_shown`
/// is whether programs inside are to find limits.
pub(super) fn places(
    needed: &[Controller],
    wanted: &[Controller],
    parent: Option<&Path>,
    is_shown: bool,
) -> Result<(Vec<Place>, Vec<Controller>)> {
    static HIERARCHIES: PerProcess<Vec<Hierarchy>> = PerProcess::new();
    let hierarchies = HIERARCHIES.get_or_try(mounted)?;
    let own =
        fs::read("/proc/self/cgroup").map_err(Error::at("read", "/proc/self/cgroup".as_ref()))?;
    let mut places: Vec<Place> = Vec::new();
    for hierarchy in hierarchies.iter().filter(|hierarchy| hierarchy.version == Version::V1) {
        // It may be mounted several times.
        if places.iter().all(|place| place.controllers != hierarchy.controllers) {
            places.extend(hierarchy.place(&own, parent)?);
        }
    }
    let has = |places: &[Place], controller| {
        places.iter().any(|place| place.controllers.contains(&controller))
    };
    let elsewhere = |all: &[Controller]| -> Vec<Controller> {
        all.iter().copied().filter(|controller| !has(&places, *controller)).collect()
    };
    let (needed_here, wanted_here) = (elsewhere(needed), elsewhere(wanted));
    let unified = hierarchies.iter().filter(|hierarchy| hierarchy.version == Version::V2);
    let mut with_parent =
        unified.filter_map(|h| Some(h.parent(&own, parent).transpose()?.map(|lowest| (h, lowest))));
    if let Some((unified, lowest)) = with_parent.next().transpose()? {
        let place = unified.unified_place(&lowest, parent.is_some(), &needed_here, &wanted_here)?;
        if place.is_some() {
            // What it counts by itself, it counts for all.
            for other in &mut places {
                let is_its =
                    |c: &Controller| matches!(c, Controller::CpuTime | Controller::Freezer);
                other.controllers.retain(|controller| !is_its(controller));
            }
        }
        places.extend(place);
    }
    let limits_a_size =
        |c: &Controller| matches!(c, Controller::Cpu | Controller::Memory) && needed.contains(c);
    let shows_more = is_shown
        && places.iter().any(|place| {
            place.version == Version::V1 && place.controllers.iter().any(limits_a_size)
        });
    let looked_for = LOOKED_FOR.map(|controller| controller.name(Version::V1));
    for place in &mut places {
        let is_wanted = |c: &Controller| {
            matches!(c, Controller::CpuTime | Controller::Freezer) || wanted.contains(c)
        };
        place.only_shown = !place.controllers.iter().any(is_wanted);
    }
    places.retain(|place| {
        let is_looked_for = place.names.iter().any(|name| looked_for.contains(name));
        !place.only_shown || shows_more && is_looked_for
    });
    let missing = needed.iter().copied().filter(|controller| !has(&places, *controller)).collect();
    Ok((places, missing))
}

/// Why a limit can't be had.
pub(super) fn nowhere(controller: Controller, parent: Option<&Path>) -> Error {
    let (v1, v2) = (controller.name(Version::V1), controller.name(Version::V2));
    let names = if v1 == v2 { v1.to_owned() } else { format!("{v2} (or, of version 1, {v1})") };
    let why = match parent {
        Some(parent) => format!("the parent {parent:?} is not there with it, or has processes"),
        None => "this process has no cgroup with it that it could make others in".to_owned(),
    };
    let fix = if nix::unistd::geteuid().is_root() {
        "name a cgroup that no process is in and that may have it, with `cgroup_parent`, as one made by \
         mkdir in /sys/fs/cgroup; or run in a systemd service with Delegate=yes and DelegateSubgroup="
    } else {
        "have systemd delegate a cgroup: systemd-run --user --scope -p Delegate=yes COMMAND; `systemctl \
         cat user@.service` shows what is delegated"
    };
    Error::Unsupported {
        what: format!("a limit by the cgroup controller {names}"),
        why,
        fix: fix.to_owned(),
    }
}

impl Hierarchy {
    /// The caller's own cgroup in it, by what `/proc/self/cgroup` says.
    fn own(&self, cgroups: &[u8]) -> Option<PathBuf> {
        let line = cgroups.split(|byte| *byte == b'\n').find_map(|line| {
            let mut fields = line.splitn(3, |byte| *byte == b':');
            let (_, names, path) = (fields.next()?, fields.next()?, fields.next()?);
            let is_this = match self.version {
                Version::V2 => names.is_empty(),
                Version::V1 => names
                    .split(|byte| *byte == b',')
                    .any(|name| self.options.iter().any(|option| option.as_bytes() == name)),
            };
            is_this.then_some(path)
        })?;
        self.path_of(Path::new(std::ffi::OsStr::from_bytes(line)))
    }

    /// Where a cgroup is that `/proc/self/cgroup` knows by `path`; `None` if it is not mounted, as
    /// one outside the cgroup namespace, whose path begins with `/..`.
    fn path_of(&self, path: &Path) -> Option<PathBuf> {
        let below = path.strip_prefix(&self.root).ok()?;
        let is_plain = below.components().all(|part| matches!(part, Component::Normal(_)));
        is_plain.then(|| self.mount.join(below))
    }

    fn parent(&self, cgroups: &[u8], configured: Option<&Path>) -> Result<Option<PathBuf>> {
        let path = match configured {
            Some(path) => self.path_of(path),
            None => self.own(cgroups),
        };
        match path {
            Some(path) if is_writable(&path, self.version)? => Ok(Some(path)),
            _ => Ok(None),
        }
    }

    fn place(&self, cgroups: &[u8], configured: Option<&Path>) -> Result<Option<Place>> {
        let parent = self.parent(cgroups, configured)?;
        Ok(parent.map(|parent| Place {
            version: Version::V1,
            parent,
            controllers: self.controllers.clone(),
            names: self.controllers.iter().map(|c| c.name(Version::V1)).collect(),
            only_shown: false,
        }))
    }

    /// The place in the hierarchy of version 2: where the most is of what is `needed`, and then of
    /// what is `wanted`, and nearest to `lowest`, the caller's cgroup or the one that was
    /// `configured`.
    fn unified_place(
        &self,
        lowest: &Path,
        configured: bool,
        needed: &[Controller],
        wanted: &[Controller],
    ) -> Result<Option<Place>> {
        ask_for(lowest, wanted)?;
        let above = lowest.ancestors().skip(1).take_while(|path| path.starts_with(&self.mount));
        // What is delegated is so with all that is below it.
        let mut top = None;
        for path in above.clone().filter(|_| !configured) {
            if self.is_delegated(path)? {
                top = Some(path);
            }
        }
        let above = above.take_while(|path| top.is_some_and(|top| path.starts_with(top)));
        let mut best = (None, Vec::new(), lowest);
        for parent in std::iter::once(lowest).chain(above) {
            let is_fit = parent == lowest || is_writable(parent, self.version)?;
            if !is_fit || !may_have_others(parent)? {
                continue;
            }
            let handed_on = words(&parent.join("cgroup.subtree_control"))?;
            let has = |c: &Controller| handed_on.iter().any(|name| name == c.name(Version::V2));
            let controllers: Vec<_> = wanted.iter().copied().filter(has).collect();
            let count = Some((needed.iter().filter(|c| has(c)).count(), controllers.len()));
            if count > best.0 {
                best = (count, controllers, parent);
            }
        }
        let (Some(_), mut controllers, parent) = best else { return Ok(None) };
        controllers.extend([Controller::CpuTime, Controller::Freezer]);
        let (version, parent) = (Version::V2, parent.to_owned());
        let names = Vec::new();
        Ok(Some(Place { version, parent, controllers, names, only_shown: false }))
    }

    /// Whether what is in a cgroup above the caller's is the caller's to arrange.
    fn is_delegated(&self, path: &Path) -> Result<bool> {
        if !is_writable(path, self.version)? {
            return Ok(false);
        }
        if !nix::unistd::geteuid().is_root() {
            return Ok(true);
        }
        // To root, all is writable. A container's own hierarchy was made for it; the root of all is
        // what has no type. Of others, systemd tells.
        if path == self.mount {
            return has_type(path);
        }
        let directory = found(fs::File::open(path)).map_err(Error::at("open", path))?;
        let Some(directory) = directory else { return Ok(false) };
        for name in [c"trusted.delegate", c"user.delegate"] {
            let mut buffer = [0; 8];
            let value = sys::extended_attribute(directory.as_fd(), name, &mut buffer);
            let value = found(value.map_err(Into::into)).map_err(Error::at("getxattr", path))?;
            if value.flatten() == Some(b"1") {
                return Ok(true);
            }
        }
        Ok(false)
    }
}

/// Whether what is made in a cgroup of version 2 can have processes: not in one that is threaded.
/// The root of all has no type.
fn may_have_others(cgroup: &Path) -> Result<bool> {
    let path = cgroup.join("cgroup.type");
    match fs::read_to_string(&path) {
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(true),
        kind => {
            let kind = found(kind).map_err(Error::at("read", &path))?;
            Ok(kind.is_some_and(|kind| kind.trim() == "domain"))
        }
    }
}

fn has_type(cgroup: &Path) -> Result<bool> {
    let path = cgroup.join("cgroup.type");
    Ok(found(path.try_exists()).map_err(Error::at("stat", &path))?.unwrap_or_default())
}

/// Has a cgroup of version 2 hand on what it may and does not yet. One that has processes is left
/// as it is: some controllers it would hand on, but to threads alone.
fn ask_for(cgroup: &Path, wanted: &[Controller]) -> Result<()> {
    let is_root = !has_type(cgroup)?;
    let path = cgroup.join("cgroup.procs");
    let processes = found(fs::read(&path)).map_err(Error::at("read", &path))?;
    if !is_root && processes.is_none_or(|processes| !processes.is_empty()) {
        return Ok(());
    }
    let control = cgroup.join("cgroup.subtree_control");
    let (available, handed_on) = (words(&cgroup.join("cgroup.controllers"))?, words(&control)?);
    for name in wanted.iter().map(|controller| controller.name(Version::V2)) {
        if available.iter().any(|other| other == name) && handed_on.iter().all(|o| o != name) {
            // Refused where one is for the root alone: then what it hands on already is all that
            // there is.
            let _ = fs::write(&control, format!("+{name}"));
        }
    }
    Ok(())
}

/// Whether cgroups can be made in one, and processes moved into those.
fn is_writable(directory: &Path, version: Version) -> Result<bool> {
    let may = |path: &Path, how| {
        let may = faccessat(AT_FDCWD, path, how, AtFlags::AT_EACCESS);
        let may = found(may.map_err(Into::into)).map_err(Error::at("access", path));
        may.map(|may| may.is_some())
    };
    // To move one takes the right to write to all that it leaves, with version 2 alone.
    Ok(may(directory, AccessFlags::W_OK | AccessFlags::X_OK)?
        && (version == Version::V1 || may(&directory.join("cgroup.procs"), AccessFlags::W_OK)?))
}

fn words(path: &Path) -> Result<Vec<String>> {
    let text = fs::read_to_string(path).map_err(Error::at("read", path))?;
    Ok(text.split_whitespace().map(str::to_owned).collect())
}

/// The hierarchies that are mounted.
fn mounted() -> Result<Vec<Hierarchy>> {
    let path = Path::new("/proc/self/mountinfo");
    let text = fs::read(path).map_err(Error::at("read", path))?;
    let mut found = Vec::new();
    for line in text.split(|byte| *byte == b'\n') {
        let Some(hierarchy) = hierarchy_of(line) else { continue };
        found.push(hierarchy);
    }
    Ok(found)
}

/// Reads a line of `/proc/self/mountinfo` (`proc_pid_mountinfo(5)`).
fn hierarchy_of(line: &[u8]) -> Option<Hierarchy> {
    let mut fields = line.split(|byte| *byte == b' ');
    let (root, mount) = (unescape(fields.nth(3)?), unescape(fields.next()?));
    let mut after = fields.skip_while(|field| *field != b"-").skip(1);
    let version = match after.next()? {
        b"cgroup" => Version::V1,
        b"cgroup2" => Version::V2,
        _ => return None,
    };
    let options = String::from_utf8(after.nth(1)?.to_vec()).ok()?;
    let options = options.split(',').filter(|o| !matches!(*o, "rw" | "ro")).map(str::to_owned);
    let options: Vec<_> = options.collect();
    let mut controllers = Controller::WITH_LIMITS.to_vec();
    controllers.extend([Controller::CpuTime, Controller::Freezer]);
    controllers.retain(|c| options.iter().any(|option| option == c.name(Version::V1)));
    let is_useful = version == Version::V2 || !controllers.is_empty();
    is_useful.then_some(Hierarchy { version, mount, root, controllers, options })
}

/// Undoes what the kernel does to blanks and backslashes: three octal digits.
fn unescape(field: &[u8]) -> PathBuf {
    let mut bytes = Vec::new();
    let mut rest = field;
    while let Some((&byte, after)) = rest.split_first() {
        let digits = after.get(..3).and_then(|digits| std::str::from_utf8(digits).ok());
        match digits.and_then(|digits| u8::from_str_radix(digits, 8).ok()) {
            Some(value) if byte == b'\\' => {
                bytes.push(value);
                rest = after.get(3..).unwrap_or_default();
            }
            _ => {
                bytes.push(byte);
                rest = after;
            }
        }
    }
    std::ffi::OsString::from_vec(bytes).into()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lines_of_mountinfo_are_read() {
        let v1 = b"30 25 0:26 / /sys/fs/cgroup/cpu,cpuacct rw,relatime shared:11 - cgroup cgroup rw,cpu,cpuacct";
        let v1 = hierarchy_of(v1).unwrap();
        assert_eq!((v1.version, v1.mount), (Version::V1, "/sys/fs/cgroup/cpu,cpuacct".into()));
        assert_eq!(v1.options, ["cpu", "cpuacct"]);
        let v2 = b"29 23 0:25 /a\\040b /sys/fs/cgroup rw - cgroup2 cgroup2 rw,nsdelegate";
        let v2 = hierarchy_of(v2).unwrap();
        assert_eq!((v2.version, &*v2.root), (Version::V2, Path::new("/a b")));
        assert_eq!(v2.own(b"1:cpu:/x\n0::/a b/c\n"), Some("/sys/fs/cgroup/c".into()));
        assert_eq!(v2.own(b"0::/elsewhere\n"), None);
        assert_eq!(v2.own(b"0::/a b/../c\n"), None);
        assert!(hierarchy_of(b"28 23 0:24 / /proc rw - proc proc rw").is_none());
        assert!(hierarchy_of(b"").is_none());
    }
}
