//! Options that say what a sandbox is like, as several commands share them.

use std::ffi::OsStr;
use std::os::unix::ffi::OsStrExt;
use std::path::{Path, PathBuf};

use adl_runtime::{Capabilities, Config, Error, Image, Network, RootAccess, Seccomp, Upper};
use clap::builder::{EnumValueParser, PossibleValue, TypedValueParser};
use clap::{Arg, Args, Command, ValueEnum, ValueHint};

use crate::bases::{Bases, Named};
use crate::in_order::InOrder;
use crate::inside::InsideOptions;
use crate::limits::LimitOptions;
use crate::mounts::MountOptions;
use crate::values::{CliResult, number, of_bytes, size};

/// What help says of paths of this machine beside the options that name them.
pub(crate) const HELP: &str = "\
No link is followed below --beneath, below a volume that is `rw`, or below what is copied out. Any \
other path that an option names is followed, whoever made the links on its way.";

#[derive(Args)]
pub(crate) struct SandboxOptions {
    #[command(flatten, next_help_heading = "Mounts")]
    mounts: InOrder<MountOptions, adl_runtime::Mount>,

    /// Make the root file system read-only; what is mounted in it is as its own option says
    #[arg(long)]
    read_only: bool,

    #[command(flatten, next_help_heading = "Limits")]
    limits: LimitOptions,

    #[command(flatten, next_help_heading = "Sandbox")]
    root: RootOptions,

    #[command(flatten)]
    inside: InsideOptions,

    #[command(flatten)]
    capabilities: CapabilityOptions,

    /// Switch a protection off: `seccomp=unconfined` allows all system calls, and hostile code then
    /// reaches all of the kernel. `no-new-privileges` is on in any case
    #[arg(long, value_name = "OPTION")]
    security_opt: Vec<SecurityOption>,
}

// What the root is made of, and the names of the sandbox. (A doc comment would be help.)
#[derive(Args)]
struct RootOptions {
    /// An image of a registry, as debian:12; a path that begins with / or ./ of a directory with a
    /// root file system, of a tar archive of one, or of what `docker save` and OCI tools write;
    /// `snapshot:NAME`; or `host` for the programs of this machine, which is the default
    #[arg(long, value_hint = ValueHint::AnyPath, value_parser = of_bytes(image))]
    image: Option<ImageOption>,

    /// Trust no symbolic link in DIR, in which sandboxes have written, as in what was copied out:
    /// where an option names a path of this machine below DIR, no link there is followed
    #[arg(long, value_name = "DIR", value_hint = ValueHint::DirPath)]
    beneath: Vec<PathBuf>,

    /// Name of the sandbox
    #[arg(long)]
    name: Option<String>,

    /// Host name inside; by default the name
    #[arg(long, value_name = "NAME")]
    hostname: Option<String>,

    /// How many user and group ids there are inside, from 0 on; by default 65536, and for an
    /// ordinary user one, or 65536 and more with this and lines in /etc/subuid and /etc/subgid
    #[arg(long, value_name = "COUNT", value_parser = number::<u32>)]
    ids: Option<u32>,

    /// The network inside: `none` has a loopback device only, with all ports; `host` is this
    /// machine's, where a server inside can be reached, on ports from 1024 on; `ns:PATH` is a
    /// network namespace that is there, as ns:/run/netns/NAME or ns:/proc/PID/ns/net. With `host`
    /// and `ns:PATH`, /etc/hosts and resolv.conf have what this machine's have, where the image has
    /// none; with `--etc-files all` in any case
    #[arg(long, alias = "net", value_name = "MODE", default_value = "none")]
    #[arg(value_parser = NetworkParser, hide_possible_values = true)]
    network: NetworkOption,

    /// Where writes go: `disk`, `btrfs`, either of them with a limit, as disk:2g, or `memory:SIZE`,
    /// as memory:512m
    #[arg(long, value_name = "WHERE", value_parser = upper, default_value = "disk")]
    upper: Upper,
}

#[derive(Args)]
struct CapabilityOptions {
    /// Capabilities for root inside, beyond the default, comma-separated; `all` for all. As with
    /// docker, the order does not matter: what is added is there, also beside `--cap-drop all`.
    /// `strace -p` needs SYS_PTRACE
    #[arg(long, value_name = "NAMES", value_parser = capabilities)]
    cap_add: Vec<NamedCapabilities>,

    /// Capabilities to take from the default, or from all where all are added; `all` for all
    #[arg(long, value_name = "NAMES", value_parser = capabilities)]
    cap_drop: Vec<NamedCapabilities>,
}

/// What an option names.
#[derive(Clone, Copy)]
struct NamedCapabilities {
    named: Capabilities,
    all: bool,
}

impl CapabilityOptions {
    /// What is left of `default`, by docker's rules.
    fn of(&self, default: Capabilities) -> Capabilities {
        let sum = |options: &[NamedCapabilities]| {
            let named = options.iter().map(|option| option.named);
            let all = options.iter().any(|option| option.all);
            (named.fold(Capabilities::NONE, Capabilities::union), all)
        };
        let ((added, adds_all), (dropped, drops_all)) = (sum(&self.cap_add), sum(&self.cap_drop));
        match (adds_all, drops_all) {
            (true, _) => Capabilities::ALL.difference(dropped),
            (false, true) => added,
            (false, false) => default.difference(dropped).union(added),
        }
    }
}

/// An image, as it is named on the command line.
#[derive(Clone)]
pub(crate) enum ImageOption {
    Known(Image),
    Path(PathBuf),
    /// In a registry.
    Name(String),
}

#[derive(Clone, Copy, ValueEnum)]
enum NetworkMode {
    None,
    Host,
}

/// A network, as it is named on the command line.
#[derive(Clone)]
enum NetworkOption {
    Known(NetworkMode),
    Namespace(PathBuf),
}

/// Reads `ns:PATH`, or one of those that have names.
#[derive(Clone)]
struct NetworkParser;

impl TypedValueParser for NetworkParser {
    type Value = NetworkOption;

    fn parse_ref(
        &self,
        command: &Command,
        argument: Option<&Arg>,
        value: &OsStr,
    ) -> Result<NetworkOption, clap::Error> {
        match value.as_bytes().strip_prefix(b"ns:") {
            Some(path) => Ok(NetworkOption::Namespace(OsStr::from_bytes(path).into())),
            None => {
                let known = EnumValueParser::<NetworkMode>::new();
                known.parse_ref(command, argument, value).map(NetworkOption::Known)
            }
        }
    }

    fn possible_values(&self) -> Option<Box<dyn Iterator<Item = PossibleValue> + '_>> {
        let known = NetworkMode::value_variants().iter();
        Some(Box::new(known.filter_map(NetworkMode::to_possible_value)))
    }
}

#[derive(Clone, Copy, ValueEnum)]
enum SecurityOption {
    #[value(name = "seccomp=unconfined")]
    SeccompUnconfined,
    #[value(name = "no-new-privileges", alias = "no-new-privileges=true")]
    #[value(alias = "no-new-privileges:true")]
    NoNewPrivileges,
}

impl SandboxOptions {
    /// Whether an image is named by an option.
    pub(crate) fn names_image(&self) -> bool {
        self.root.image.is_some()
    }

    /// Names one.
    pub(crate) fn set_image(&mut self, image: ImageOption) {
        self.root.image = Some(image);
    }

    /// The path that is named as the image.
    pub(crate) fn image_path(&self) -> Option<&Path> {
        match &self.root.image {
            Some(ImageOption::Path(path)) => Some(path),
            _ => None,
        }
    }

    /// The image of a registry that is named.
    pub(crate) fn reference(&self) -> Option<&str> {
        match &self.root.image {
            Some(ImageOption::Name(name)) => Some(name),
            _ => None,
        }
    }

    /// Whether the programs are this machine's.
    pub(crate) fn has_host_image(&self) -> bool {
        match &self.root.image {
            None => true,
            Some(image) => matches!(image, ImageOption::Known(image) if *image == Image::host()),
        }
    }

    /// Where guests may write or have written, of this machine; `targets` among it.
    pub(crate) fn bases<'a>(&self, targets: impl IntoIterator<Item = &'a Path>) -> Bases {
        Bases::of(&self.root.beneath, &self.mounts.values, targets)
    }

    /// What the options say, and how paths of this machine are to be opened. Guests may write
    /// `targets`, too.
    pub(crate) fn settle<'a>(
        &self,
        targets: impl IntoIterator<Item = &'a Path>,
    ) -> CliResult<(Config, Bases)> {
        let RootOptions { image, beneath, name, hostname, ids, network, upper } = &self.root;
        let mut named = Named { image: None, beneath: beneath.clone() };
        let mut config = Config {
            name: name.clone(),
            hostname: hostname.clone(),
            ids: *ids,
            network: match network {
                NetworkOption::Known(NetworkMode::None) => Network::None,
                NetworkOption::Known(NetworkMode::Host) => Network::Host,
                NetworkOption::Namespace(path) => Network::join(path),
            },
            upper: *upper,
            mounts: self.mounts.values.clone(),
            limits: self.limits.limits(),
            cgroup_parent: self.limits.cgroup_parent.clone(),
            ..Config::default()
        };
        match image {
            None => {}
            Some(ImageOption::Known(image)) => config.image = image.clone(),
            Some(ImageOption::Path(path)) => named.image = Some(path.clone()),
            Some(ImageOption::Name(name)) => config.image = Image::reference(name),
        }
        self.inside.apply(&mut config);
        if self.read_only {
            config.root = RootAccess::ReadOnly;
        }
        config.capabilities = self.capabilities.of(config.capabilities);
        for option in &self.security_opt {
            match option {
                SecurityOption::SeccompUnconfined => config.seccomp = Seccomp::Unconfined,
                SecurityOption::NoNewPrivileges => {}
            }
        }
        let bases = named.settle(&mut config, targets)?;
        Ok((config, bases))
    }
}

/// Reads the name of an image. What could be a name and a path is a name, as docker has it.
pub(crate) fn image(text: &OsStr) -> Result<ImageOption, &'static str> {
    const PATHS: [&str; 3] = ["/", "./", "../"];
    let bytes = text.as_encoded_bytes();
    let is_path = PATHS.iter().any(|beginning| bytes.starts_with(beginning.as_bytes()));
    if is_path || text == "." || text == ".." {
        return Ok(ImageOption::Path(text.into()));
    }
    let name = text.to_str().ok_or("no name of an image; a path begins with / or ./")?;
    Ok(match name.strip_prefix("snapshot:") {
        Some(name) => ImageOption::Known(Image::snapshot(name)),
        None if name == "host" => ImageOption::Known(Image::host()),
        None => ImageOption::Name(name.to_owned()),
    })
}

fn capabilities(names: &str) -> Result<NamedCapabilities, Error> {
    let mut found = NamedCapabilities { named: Capabilities::NONE, all: false };
    for name in names.split(',').map(str::trim) {
        match name.to_ascii_uppercase().as_str() {
            "ALL" | "CAP_ALL" => found.all = true,
            "" => return Err(Error::Invalid { what: "capability", why: "no name".to_owned() }),
            upper => match name.parse() {
                Ok(named) => found.named = found.named.union(named),
                Err(error) => return Err(near(upper).unwrap_or(error)),
            },
        }
    }
    Ok(found)
}

/// The error of a name that lacks its first word, as PTRACE.
fn near(name: &str) -> Option<Error> {
    let name = name.strip_prefix("CAP_").unwrap_or(name);
    let all = Capabilities::ALL.to_string();
    let full = all.split(',').filter_map(|full| full.strip_prefix("CAP_"));
    let full: Vec<_> = full.filter(|full| full.ends_with(&format!("_{name}"))).collect();
    let why = format!("there is no {name}; did you mean {}?", full.join(" or "));
    (!full.is_empty()).then_some(Error::Invalid { what: "capability", why })
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

#[cfg(test)]
mod tests {
    use adl_runtime::Capabilities;

    use super::{CapabilityOptions, capabilities};

    #[test]
    fn capabilities_are_added_and_dropped_by_dockers_rules() {
        let of = |names: &[&str]| names.iter().map(|names| capabilities(names).unwrap()).collect();
        let default: Capabilities = "chown,kill".parse().unwrap();
        for (add, drop, left) in [
            (&[][..], &[][..], "chown,kill"),
            (&["SYS_TIME"], &[], "chown,kill,sys_time"),
            (&[], &["CAP_KILL"], "chown"),
            (&["cap_sys_time"], &["kill"], "chown,sys_time"),
            (&[], &["all"], ""),
            (&["Sys_Time"], &["ALL"], "sys_time"),
            (&["sys_time,kill"], &["all", "chown"], "sys_time,kill"),
            // Who names one wants it: as docker has it.
            (&["kill"], &["kill"], "chown,kill"),
        ] {
            let options = CapabilityOptions { cap_add: of(add), cap_drop: of(drop) };
            assert_eq!(options.of(default), left.parse().unwrap(), "{add:?} {drop:?}");
        }
        let all = CapabilityOptions { cap_add: of(&["All"]), cap_drop: of(&["kill"]) };
        let expected = Capabilities::ALL.difference("kill".parse().unwrap());
        assert_eq!(all.of(default), expected);
        for wrong in ["", "chown,", "flying"] {
            assert!(capabilities(wrong).is_err(), "{wrong:?}");
        }
    }
}
