//! Options that several commands share.

use std::ffi::OsString;

use adl_runtime::{Config, Error, Image, Network, RootAccess, Seccomp, Upper};
use lexopt::ValueExt as _;

use crate::bases::Named;
use crate::values::{CliResult, bytes};
use crate::{limits, mounts};

/// The help of the options that [`sandbox_option`] knows.
pub(crate) const SANDBOX_HELP: &str = "\
\x20     --image IMAGE        a directory with a root file system, a tar archive of one,
                           `snapshot:NAME`, or `host` for the programs of this machine (default)
      --beneath DIR        guests have written in DIR, as in what was copied out: paths of this
                           machine that options name below it are opened without following a link.
                           So are those below what is mounted `rw` or made by --copy-out here; any
                           other path is followed, whoever made the links on its way. May be given
                           several times
      --name NAME          name of the sandbox
      --hostname NAME      host name inside (default: the name)
      --network MODE       `none`, a loopback device only (default), or `host`
      --upper WHERE        where writes go: `disk` (default), `btrfs`, either of them with a limit, as
                           disk:2g, or `memory:SIZE`, as memory:512m
      --cap-add NAMES      capabilities for root inside, beyond the default, comma-separated; `all`
                           for all
      --cap-drop NAMES     capabilities to take from the default; `all` for all
      --security-opt seccomp=unconfined
                           allow all system calls; hostile code then reaches all of the kernel
";

/// Takes an option that says what the sandbox is like; `false` if it is another. [`Named::settle`]
/// has to follow.
pub(crate) fn sandbox_option(
    config: &mut Config,
    named: &mut Named,
    name: &str,
    parser: &mut lexopt::Parser,
) -> CliResult<bool> {
    match name {
        "image" => {
            let image = parser.value()?;
            let text = image.to_str().unwrap_or_default();
            named.image = None;
            if image == "host" {
                config.image = Image::host();
            } else if let Some(name) = text.strip_prefix("snapshot:") {
                config.image = Image::snapshot(name);
            } else {
                named.image = Some(image.into());
            }
        }
        "beneath" => named.beneath.push(parser.value()?.into()),
        "name" => config.name = Some(parser.value()?.string()?),
        "hostname" => config.hostname = Some(parser.value()?.string()?),
        "network" => {
            config.network = match parser.value()?.to_str() {
                Some("none") => Network::None,
                Some("host") => Network::Host,
                _ => return Err("--network takes `none` or `host`".into()),
            };
        }
        "upper" => config.upper = upper(&parser.value()?)?,
        "volume" => config.mounts.push(mounts::volume(&parser.value()?)?),
        "tmpfs" => config.mounts.push(mounts::tmpfs(&parser.value()?)?),
        "device" => config.mounts.push(mounts::device(&parser.value()?)?),
        "read-only" => config.root = RootAccess::ReadOnly,
        "cap-add" => {
            let names = parser.value()?.string()?;
            let added = match &*names {
                "all" | "ALL" => adl_runtime::Capabilities::ALL,
                names => names.parse()?,
            };
            config.capabilities = config.capabilities.union(added);
        }
        "cap-drop" => {
            let names = parser.value()?.string()?;
            config.capabilities = match &*names {
                "all" | "ALL" => adl_runtime::Capabilities::NONE,
                names => config.capabilities.difference(names.parse()?),
            };
        }
        "security-opt" => match parser.value()?.to_str() {
            Some("seccomp=unconfined") => config.seccomp = Seccomp::Unconfined,
            _ => return Err("--security-opt takes `seccomp=unconfined`".into()),
        },
        "cgroup-parent" => config.cgroup_parent = Some(parser.value()?.into()),
        _ => return limits::option(&mut config.limits, name, parser),
    }
    Ok(true)
}

fn upper(value: &OsString) -> CliResult<Upper> {
    let text = value.to_str().unwrap_or_default();
    let (kind, size) = match text.split_once(':') {
        Some((kind, size)) => (kind, Some(bytes(size).filter(|size| *size != 0))),
        None => (text, None),
    };
    match (kind, size) {
        ("disk", None) => Ok(Upper::Disk { size: None }),
        ("btrfs", None) => Ok(Upper::Btrfs { size: None }),
        ("disk", Some(Some(size))) => Ok(Upper::Disk { size: Some(size) }),
        ("btrfs", Some(Some(size))) => Ok(Upper::Btrfs { size: Some(size) }),
        ("memory", Some(Some(size))) => Ok(Upper::Memory { size }),
        _ => {
            Err("--upper takes `disk`, `btrfs`, `disk:SIZE`, `btrfs:SIZE` or `memory:SIZE`, with \
                  a size as 64m or 1g"
                .into())
        }
    }
}

/// What to exit with for an error, as shells do.
pub(crate) fn exit_code_of(error: &Error) -> u8 {
    match error {
        Error::Start { stage: adl_runtime::Stage::Exec, source, .. } => match source.kind() {
            std::io::ErrorKind::NotFound => 127,
            _ => 126,
        },
        _ => super::OWN_ERROR,
    }
}
