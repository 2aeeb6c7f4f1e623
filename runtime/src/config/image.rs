//! What the root file system of a sandbox is at first.

use std::collections::BTreeMap;
use std::path::PathBuf;

use nix::sys::signal::Signal;
use serde::{Deserialize, Serialize};

use super::host_path::HostPath;

/// What a sandbox sees as its root file system at first. It can change all of it; the image stays
/// as it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct Image(pub(crate) Kind);

/// Which one it is.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub(crate) enum Kind {
    #[default]
    Host,
    Directory(HostPath),
    Archive(HostPath),
    Snapshot(String),
    /// Named in a registry.
    Reference(String),
    /// As that, and not fetched.
    Local(String),
    /// An archive or a directory with images in layers, and which of them.
    Layers(HostPath, Option<String>),
}

impl Image {
    /// The programs of the host, on any machine without a download: its `/usr`, and around it a
    /// root with what programs read in `/etc`, and no secret that is known for one: see
    /// [`HostImage`](crate::HostImage). Nothing of its `/home`, `/root`, `/var` or its other `/etc`
    /// is inside; of `/usr` all that any user of the host may read, and where an ordinary user makes
    /// the sandbox, what that user may. Else files that not every user may read are left out. The
    /// list of them is renewed when packages change, or something at the top
    /// of `/usr/local`.
    ///
    /// Its `/tmp`, `/home` and `/root` are on the writable layer, and so in snapshots; `/dev/shm`
    /// is memory. Its `/etc/passwd` has root and nobody, and any number can be a user.
    pub fn host() -> Self {
        Self(Kind::Host)
    }

    /// A directory, such as `debootstrap` or `docker export` leave.
    pub fn directory(path: impl Into<HostPath>) -> Self {
        Self(Kind::Directory(path.into()))
    }

    /// A tar archive of one (ustar, pax or GNU; plain, or compressed by gzip or zstd), as `docker
    /// export` writes it. It is unpacked by the first sandbox that is made of it, and again when the
    /// file has changed, with owners, times and extended attributes, file capabilities among them.
    /// An ordinary user owns all that is unpacked, and devices are left out. An archive is refused
    /// that leads out of itself, or is a bomb: `docs/layers.md` has the limits.
    pub fn archive(path: impl Into<HostPath>) -> Self {
        Self(Kind::Archive(path.into()))
    }

    /// An image of a registry, as `debian:12` or `registry:5000/team/app@sha256:…`, by docker's
    /// rules for what is left out. One that is not in the state directory is fetched by the first
    /// sandbox that is made of it, with `skopeo`, or else `podman` or `docker`, and so by their
    /// logins and mirrors; from then on there is no network in it. [`Images::pull`] fetches it
    /// before, or again, and tells of the progress.
    ///
    /// What it says of commands in it ([`ImageConfig`]) holds where [`Config::defaults`] say
    /// nothing else.
    ///
    /// [`Config::defaults`]: crate::Config::defaults
    /// [`Images::pull`]: crate::Images::pull
    pub fn reference(name: impl Into<String>) -> Self {
        Self(Kind::Reference(name.into()))
    }

    /// As [`Image::reference`], and never fetched: where it is not in the state directory, that is
    /// [`Error::NoImage`](crate::Error::NoImage).
    pub fn local(name: impl Into<String>) -> Self {
        Self(Kind::Local(name.into()))
    }

    /// An image in layers in a file or a directory: what `docker save` and `podman save` write, or
    /// an OCI image layout, as a directory or as a tar archive of one. Where several images are in
    /// it, `which` names one. Its layers are unpacked by the first sandbox that is made of it.
    pub fn layers(path: impl Into<HostPath>, which: Option<&str>) -> Self {
        Self(Kind::Layers(path.into(), which.map(str::to_owned)))
    }

    /// A snapshot of a sandbox, by its name in the state directory; see [`crate::Snapshot`]. Any
    /// number of sandboxes can be made of it at once.
    pub fn snapshot(name: impl Into<String>) -> Self {
        Self(Kind::Snapshot(name.into()))
    }
}

/// What an image in layers says of the commands that are run in it.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(default)]
pub struct ImageConfig {
    /// Environment variables.
    pub env: Vec<(String, String)>,
    /// Where commands start; it is made if it is missing.
    pub working_dir: Option<PathBuf>,
    /// Who runs commands: `USER` or `USER:GROUP`, each a name or a number.
    pub user: Option<String>,
    /// The program that is run, and its first arguments.
    pub entrypoint: Vec<String>,
    /// Arguments of it, or the program where there is none; a caller's own come in their place.
    pub cmd: Vec<String>,
    /// The signal that asks it to end, as `SIGQUIT` or a number.
    pub stop_signal: Option<String>,
    /// What its makers say of it.
    pub labels: BTreeMap<String, String>,
    /// The ports that it listens on, as `80/tcp`.
    pub exposed_ports: Vec<String>,
    /// When it was made, as RFC 3339 has it.
    pub created: Option<String>,
}

impl ImageConfig {
    /// The number of the signal that asks its program to end, if it says one that there is:
    /// `SIGQUIT`, `QUIT`, `SIGRTMIN+3` or a number, as docker reads them.
    pub fn stop_signal_number(&self) -> Option<u8> {
        let text = self.stop_signal.as_deref()?.trim();
        let number = match text.parse::<u8>() {
            Ok(number) => number,
            Err(_) => {
                let upper = text.to_ascii_uppercase();
                let name = upper.strip_prefix("SIG").unwrap_or(&upper);
                match (name.strip_prefix("RTMIN"), name.strip_prefix("RTMAX")) {
                    (Some(""), _) => RTMIN,
                    (Some(more), _) => RTMIN.checked_add(more.strip_prefix('+')?.parse().ok()?)?,
                    (_, Some("")) => RTMAX,
                    (_, Some(less)) => RTMAX.checked_sub(less.strip_prefix('-')?.parse().ok()?)?,
                    _ => {
                        let signal: Signal = format!("SIG{name}").parse().ok()?;
                        u8::try_from(signal as i32).ok()?
                    }
                }
            }
        };
        (1..=RTMAX).contains(&number).then_some(number)
    }
}

/// The first signal that is a program's own, as C libraries leave it, and the last.
const RTMIN: u8 = 34;
const RTMAX: u8 = 64;

/// What is known of the commands of an image.
#[derive(Debug, Clone, Default, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct ImageSays {
    pub(crate) config: ImageConfig,
    /// Who its user is, or root where it says none, and that user's group, by its own
    /// `/etc/passwd`.
    pub(crate) ids: Option<(u32, u32)>,
    /// The supplementary groups, by its own `/etc/group`.
    #[serde(default)]
    pub(crate) groups: Vec<u32>,
}

#[cfg(test)]
mod tests {
    use super::ImageConfig;

    #[test]
    fn the_signal_that_ends_a_program_is_read_as_docker_reads_it() {
        for (text, number) in [
            ("SIGTERM", Some(15)),
            ("QUIT", Some(3)),
            ("sigint", Some(2)),
            ("9", Some(9)),
            ("SIGRTMIN", Some(34)),
            ("SIGRTMIN+3", Some(37)),
            ("RTMAX-2", Some(62)),
            ("SIGRTMIN+200", None),
            ("SIGRTMIN+31", None),
            ("0", None),
            ("65", None),
            ("SIGNO", None),
            ("", None),
        ] {
            let stop_signal = Some(text.to_owned());
            let config = ImageConfig { stop_signal, ..ImageConfig::default() };
            assert_eq!(config.stop_signal_number(), number, "{text:?}");
        }
        assert_eq!(ImageConfig::default().stop_signal_number(), None);
    }
}
