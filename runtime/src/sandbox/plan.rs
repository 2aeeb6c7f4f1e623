//! What every life of a sandbox is built from: made once of its configuration, and checked.

use std::sync::Arc;

use adl_protocol::{DEV_SIZE, NetworkOrigin, Strings};

use crate::cgroup;
use crate::config::image::ImageSays;
use crate::config::limits::Limits;
use crate::config::name::check_name;
use crate::config::{Config, Network, Seccomp, Sysfs, sysctl};
use crate::error::{Error, Result};
use crate::job::user::{RunAs, groups_in_image};
use crate::root::mounts;
use crate::store::ids::IdRange;
use crate::store::subordinate::Subordinate;
use crate::sys::id_ranges::{self, Ids};
use crate::sys::joined_network::JoinedNetwork;

/// Of the PID namespace since Linux 6.14; before, of the whole machine, and out of reach.
pub(crate) const PID_MAX: &str = "kernel/pid_max";

/// What every life of a sandbox is built from, beside its root file system and its cgroups, which
/// it may come to have others of.
#[derive(Debug, Clone)]
pub(crate) struct Plan {
    /// As it was given, with absolute paths: for the record of a snapshot.
    config: Config,
    /// What `uname -n` is to print, unless that is the name.
    pub(crate) hostname: Option<String>,
    pub(crate) has_own_network: bool,
    /// The network that it joins, if it joins one, from [`Plan::opened`] on.
    pub(crate) joined: Option<Arc<JoinedNetwork>>,
    /// Those of jobs that run as root, as the kernel writes them.
    pub(crate) capabilities: u64,
    /// Whether system calls are filtered.
    pub(crate) is_filtered: bool,
    /// The ids inside.
    pub(crate) ids: Ids,
    /// Where an ordinary user has a range of them: what that is outside.
    pub(crate) subordinate: Option<Subordinate>,
    /// Whether who runs commands by default is the user by name of the image.
    pub(crate) user_is_of_image: bool,
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
        config.network.make_absolute()?;
        sysctl::check(&config)?;
        if let Some(size) = config.shm_size {
            mounts::check_size("shm size", size)?;
        }
        let run_as = RunAs::of(&config.defaults, false);
        let (ids, subordinate) = ids_of(config.ids, &run_as)?;
        mounts::check_tmpfs(&config.mounts, ids)?;
        run_as.check(ids)?;
        if let Some(parent) = &config.cgroup_parent {
            cgroup::check_parent(parent)?;
        }
        Ok(Self {
            hostname: config.hostname.clone(),
            has_own_network: config.network == Network::None,
            joined: None,
            capabilities: config.capabilities.bits(),
            is_filtered: config.seccomp == Seccomp::Default,
            ids,
            subordinate,
            user_is_of_image: false,
            config,
        })
    }

    /// With the network that it joins, opened: all lives of the sandbox are in that one.
    pub(crate) fn opened(mut self) -> Result<Self> {
        let Network::Join(path) = &self.config.network else { return Ok(self) };
        let joined = JoinedNetwork::open(&path.locate()?)?;
        if joined.owner().is_some() && self.subordinate.is_some() {
            return Err(Error::Unsupported {
                what: "a network namespace of another user namespace, with subordinate ids".into(),
                why: "newuidmap(1) maps ids only in a user namespace made in the caller's".into(),
                fix: "leave the number of ids out, or run as root".into(),
            });
        }
        self.joined = Some(Arc::new(joined));
        Ok(self)
    }

    /// With what an image says of commands below what the caller does.
    pub(crate) fn on_image(&self, says: Option<&ImageSays>) -> Result<Self> {
        let Some(ImageSays { config: image, ids, groups }) = says else {
            let mut this = self.clone();
            this.config.defaults.settle_directory(None);
            return Ok(this);
        };
        let mut config = self.config.clone();
        let defaults = &mut config.defaults;
        let env = image.env.iter().map(|(name, value)| (name.into(), value.into()));
        let own = std::mem::take(&mut defaults.env);
        defaults.env = env.chain(own).collect();
        defaults.settle_directory(image.working_dir.as_deref());
        let own = image.user.as_deref().map(|user| user_of(user, *ids));
        let is_name = own.as_deref().is_some_and(|user| !is_by_number(user));
        if defaults.user.is_none() {
            defaults.user.clone_from(&own);
            // One by name has those that the sandbox's own files give it by then.
            if let (Ids::Range(length), None, false, Some((_, gid))) =
                (self.ids, &defaults.groups, is_name, ids)
            {
                defaults.groups = Some(groups_in_image(*gid, groups, length));
            }
        }
        // A snapshot has kept the name.
        let user_is_of_image = is_name && defaults.user == own;
        let joined = self.joined.clone();
        Ok(Self { user_is_of_image, joined, ..Self::new(config)? })
    }

    /// A range of ids that no other sandbox has, where the caller may map any.
    pub(crate) fn fresh_ids(&self) -> Result<Option<Arc<IdRange>>> {
        match self.ids {
            Ids::Range(length) if self.subordinate.is_none() => {
                IdRange::take(length).map(|range| Some(Arc::new(range)))
            }
            // They are the caller's, and no one else's.
            Ids::Range(_) | Ids::One { .. } => Ok(None),
        }
    }

    /// Whether there is a `/sys`.
    pub(crate) fn has_sysfs(&self, has_cgroups: bool) -> bool {
        match self.config.sysfs {
            Sysfs::WithLimits => has_cgroups,
            Sysfs::Always => true,
            Sysfs::Never => false,
        }
    }

    /// Whether there may be one, before it is known which cgroups there can be.
    pub(crate) fn may_have_sysfs(&self) -> bool {
        self.has_sysfs(self.may_have_cgroups())
    }

    /// Whether something is asked for that takes a cgroup.
    pub(crate) fn may_have_cgroups(&self) -> bool {
        let Config { limits, defaults, cgroup_parent, .. } = &self.config;
        !limits.is_none() || defaults.cpu_time.is_some() || cgroup_parent.is_some()
    }

    /// The most that may be in `/dev`, in bytes.
    pub(crate) fn dev_size(&self) -> u64 {
        self.config.shm_size.unwrap_or(DEV_SIZE)
    }

    /// The kernel parameters of its namespaces, as init takes them: in turn a path and a value.
    pub(crate) fn sysctls(&self, pid_max: Option<u32>) -> Result<Vec<u8>> {
        let (lowest, highest) = match self.ids {
            Ids::Range(length) => (0, length.saturating_sub(1)),
            Ids::One { gid, .. } => (gid, gid),
        };
        let of_network = [
            ("net/ipv4/ip_unprivileged_port_start".to_owned(), "0".to_owned()),
            ("net/ipv4/ping_group_range".to_owned(), format!("{lowest} {highest}")),
        ];
        let of_network = of_network.into_iter().filter(|_| self.has_own_network);
        let pid_max = pid_max.map(|most| (PID_MAX.to_owned(), most.to_string()));
        let given = self.config.sysctls.iter();
        let given = given.map(|(name, value)| (name.replace('.', "/"), value.clone()));
        let mut all = Vec::new();
        for (path, value) in of_network.chain(pid_max).chain(given) {
            for text in [path, value] {
                Strings::append(&mut all, text.as_bytes())
                    .map_err(|error| Error::invalid("kernel parameter", error.to_string()))?;
            }
        }
        Ok(all)
    }

    /// Whose network it has.
    pub(crate) fn network(&self) -> NetworkOrigin {
        match (self.has_own_network, &self.joined) {
            (true, _) => NetworkOrigin::New,
            (false, Some(_)) => NetworkOrigin::Joined,
            (false, None) => NetworkOrigin::Caller,
        }
    }

    /// What it was made of: for what is opened by it, once, and for what is told of it.
    pub(crate) fn config(&self) -> &Config {
        &self.config
    }

    /// What a snapshot keeps: it would have been made of that, with other limits.
    pub(crate) fn config_with(&self, limits: Limits) -> Config {
        let (publish, forward) = (Vec::new(), Vec::new());
        Config { limits, spare: false, publish, forward, ..self.config.clone() }
    }
}

/// Who an image's user is, whose ids are these. One by name has the groups of its name, but where
/// there is one id. One by number has the group that docker gives it.
fn user_of(user: &str, ids: Option<(u32, u32)>) -> String {
    match ids {
        Some((uid, gid)) if is_by_number(user) || !id_ranges::caller_may_map() => {
            format!("{uid}:{gid}")
        }
        // Whoever is to run then is told what is not there.
        _ if user.starts_with(':') => format!("0{user}"),
        _ => user.trim_end_matches(':').to_owned(),
    }
}

/// Whether a user is said by number, or left out, which is root.
fn is_by_number(user: &str) -> bool {
    let name = user.split(':').next().unwrap_or_default();
    name.bytes().all(|byte| byte.is_ascii_digit())
}

/// The ids that there are inside, where so many were asked for, and the subordinate ids of an
/// ordinary user that are among them.
fn ids_of(length: Option<u32>, run_as: &RunAs) -> Result<(Ids, Option<Subordinate>)> {
    const LEAST: u32 = id_ranges::LENGTH;
    const MOST: u32 = id_ranges::MOST;
    match length {
        Some(length) if !(LEAST..=MOST).contains(&length) => {
            let why = match length < LEAST {
                true => format!("{length} are fewer than the {LEAST} that each sandbox has"),
                false => format!("{length} are more than the {MOST} that there are"),
            };
            Err(Error::invalid("number of ids", format!("{why}: leave it out for {LEAST}")))
        }
        length if id_ranges::caller_may_map() => Ok((Ids::Range(length.unwrap_or(LEAST)), None)),
        None => Ok((run_as.only()?, None)),
        Some(length) => Ok((Ids::Range(length), Subordinate::asked_for(Some(length))?)),
    }
}
