//! What every life of a sandbox is built from: made once of its configuration, and checked.

use adl_protocol::Identities;

use crate::cgroup;
use crate::config::limits::Limits;
use crate::config::name::check_name;
use crate::config::{Config, Network, Seccomp};
use crate::error::Result;
use crate::job::user::RunAs;
use crate::sys::id_ranges;

/// What every life of a sandbox is built from, beside its root file system and its cgroups, which
/// it may come to have others of.
#[derive(Debug)]
pub(crate) struct Plan {
    /// As it was given, with absolute paths: for the record of a snapshot.
    config: Config,
    /// What `uname -n` is to print, unless that is the name.
    pub(crate) hostname: Option<String>,
    pub(crate) has_own_network: bool,
    /// Those of jobs that run as root, as the kernel writes them.
    pub(crate) capabilities: u64,
    /// Whether system calls are filtered.
    pub(crate) is_filtered: bool,
}

impl Plan {
    /// Checks what can be checked without a look at the machine.
    pub(crate) fn new(mut config: Config) -> Result<Self> {
        if let Some(name) = &config.name {
            check_name("name", name)?;
        }
        if let Some(hostname) = &config.hostname {
            check_name("hostname", hostname)?;
        }
        // A snapshot keeps them, for callers who may be elsewhere.
        for mount in &mut config.mounts {
            mount.make_absolute()?;
        }
        config.limits.check()?;
        config.limits.make_absolute()?;
        config.defaults.check()?;
        let identities = match id_ranges::caller_may_map() {
            true => Identities::Range,
            false => Identities::Single,
        };
        RunAs::of(&config.defaults).check(identities)?;
        if let Some(parent) = &config.cgroup_parent {
            cgroup::check_parent(parent)?;
        }
        Ok(Self {
            hostname: config.hostname.clone(),
            has_own_network: config.network == Network::None,
            capabilities: config.capabilities.bits(),
            is_filtered: config.seccomp == Seccomp::Default,
            config,
        })
    }

    /// What it was made of: for what is opened by it, once, and for what is told of it.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// What it would have been made of with other limits.
    pub(crate) fn config_with(&self, limits: Limits) -> Config {
        Config { limits, ..self.config.clone() }
    }
}
