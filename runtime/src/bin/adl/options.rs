//! Options that say what a sandbox is like, as several commands share them.

use std::ffi::OsStr;
use std::path::{Path, PathBuf};

use adl_runtime::{Capabilities, Config, Error, Image, Network, RootAccess, Seccomp, Upper};
use clap::{Args, ValueEnum, ValueHint};

use crate::bases::{Bases, Named};
use crate::in_order::InOrder;
use crate::inside::InsideOptions;
use crate::limits::LimitOptions;
use crate::mounts::MountOptions;
use crate::values::{CliResult, of_bytes, size};

/// What help says of paths of this machine beside the options that name them.
pub(crate) const HELP: &str = "\
No link is followed below --beneath, below a volume that is `rw`, or below what is copied out. Any \
other path that an option names is followed, whoever made the links on its way.";

#[derive(Args)]
pub(crate) struct SandboxOptions {
    #[command(flatten, next_help_heading = "Mounts")]
    mounts: InOrder<MountOptions, adl_runtime::Mount>,

    /// Let no one inside write but to what is mounted there
    #[arg(long)]
    read_only: bool,

    #[command(flatten, next_help_heading = "Limits")]
    limits: LimitOptions,

    #[command(flatten, next_help_heading = "Sandbox")]
    root: RootOptions,

    #[command(flatten)]
    inside: InsideOptions,

    #[command(flatten)]
    capabilities: InOrder<CapabilityOptions, CapabilityChange>,

    /// Switch a protection off: `seccomp=unconfined` allows all system calls, and hostile code then
    /// reaches all of the kernel
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<SecurityOption>,
}

// What the root is made of, and the names of the sandbox. (A doc comment would be help.)
#[derive(Args)]
struct RootOptions {
    /// A directory with a root file system, a tar archive of one, `snapshot:NAME`, or `host` for
    /// the programs of this machine
    #[arg(long, default_value = "host", value_hint = ValueHint::AnyPath)]
    #[arg(value_parser = of_bytes(image))]
    image: ImageOption,

    /// Guests have written in DIR, as in what was copied out: paths of this machine that options
    /// name below it are opened without following a link
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    beneath: Vec<PathBuf>,

    /// Name of the sandbox
    #[arg(long)]
    name: Option<String>,

    /// Host name inside; by default the name
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,

    /// The network inside; `none` is a loopback device only
    #[arg(long, value_name = "MODE", default_value = "none")]
    network: NetworkMode,

    /// Where writes go: `disk`, `btrfs`, either of them with a limit, as disk:2g, or `memory:SIZE`,
    /// as memory:512m
    #[arg(long, value_name = "WHERE", value_parser = upper, default_value = "disk")]
    upper: Upper,
}

#[derive(Args)]
struct CapabilityOptions {
    /// Capabilities for root inside, beyond the default, comma-separated; `all` for all
    #[arg(long, value_name = "NAMES", value_parser = added)]
    cap_add: Vec<CapabilityChange>,

    /// Capabilities to take from the default; `all` for all
    #[arg(long, value_name = "NAMES", value_parser = dropped)]
    cap_drop: Vec<CapabilityChange>,
}

#[derive(Clone, Copy)]
enum CapabilityChange {
    Add(Capabilities),
    Drop(Capabilities),
}

#[derive(Clone)]
enum ImageOption {
    Known(Image),
    Path(PathBuf),
}

#[derive(Clone, Copy, ValueEnum)]
enum NetworkMode {
    None,
    Host,
}

#[derive(Clone, Copy, ValueEnum)]
enum SecurityOption {
    #[value(name = "seccomp=unconfined")]
    SeccompUnconfined,
}

impl SandboxOptions {
    /// What the options say, and how paths of this machine are to be opened. Guests may write
    /// `targets`, too.
    pub(crate) fn settle<'a>(
        &self,
        targets: impl IntoIterator<Item = &'a Path>,
    ) -> CliResult<(Config, Bases)> {
        let RootOptions { image, beneath, name, hostname, network, upper } = &self.root;
        let mut named = Named { image: None, beneath: beneath.clone() };
        let mut config = Config {
            name: name.clone(),
            hostname: hostname.clone(),
            network: match network {
                NetworkMode::None => Network::None,
                NetworkMode::Host => Network::Host,
            },
            upper: *upper,
            mounts: self.mounts.values.clone(),
            limits: self.limits.limits(),
            cgroup_parent: self.limits.cgroup_parent.clone(),
            ..Config::default()
        };
        match image {
            ImageOption::Known(image) => config.image = image.clone(),
            ImageOption::Path(path) => named.image = Some(path.clone()),
        }
        self.inside.apply(&mut config);
        if self.read_only {
            config.root = RootAccess::ReadOnly;
        }
        for change in &self.capabilities.values {
            config.capabilities = match *change {
                CapabilityChange::Add(added) => config.capabilities.union(added),
                CapabilityChange::Drop(dropped) => config.capabilities.difference(dropped),
            };
        }
        for option in &self.security_opt {
            match option {
                SecurityOption::SeccompUnconfined => config.seccomp = Seccomp::Unconfined,
            }
        }
        let bases = named.settle(&mut config, targets)?;
        Ok((config, bases))
    }
}

fn image(text: &OsStr) -> Result<ImageOption, &'static str> {
    let snapshot = text.to_str().and_then(|text| text.strip_prefix("snapshot:"));
    Ok(match snapshot {
        Some(name) => ImageOption::Known(Image::snapshot(name)),
        None if text == "host" => ImageOption::Known(Image::host()),
        None => ImageOption::Path(text.into()),
    })
}

fn added(names: &str) -> Result<CapabilityChange, Error> {
    capabilities(names).map(CapabilityChange::Add)
}

fn dropped(names: &str) -> Result<CapabilityChange, Error> {
    capabilities(names).map(CapabilityChange::Drop)
}

fn capabilities(names: &str) -> Result<Capabilities, Error> {
    match names {
        "all" | "ALL" => Ok(Capabilities::ALL),
        names => names.parse(),
    }
}

fn upper(text: &str) -> Result<Upper, &'static str> {
    let (kind, size) = match text.split_once(':') {
        Some((kind, text)) => (kind, Some(size(text).ok())),
        None => (text, None),
    };
    match (kind, size) {
        ("disk", None) => Ok(Upper::Disk { size: None }),
        ("btrfs", None) => Ok(Upper::Btrfs { size: None }),
        ("disk", Some(Some(size))) => Ok(Upper::Disk { size: Some(size) }),
        ("btrfs", Some(Some(size))) => Ok(Upper::Btrfs { size: Some(size) }),
        ("memory", Some(Some(size))) => Ok(Upper::Memory { size }),
        _ => Err("takes `disk`, `btrfs`, `disk:SIZE`, `btrfs:SIZE` or `memory:SIZE`, with a size \
                  as 64m or 1g"),
    }
}
