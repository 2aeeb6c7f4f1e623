//! What init has to know before it can begin: all that it does before it hears of the root.

use std::sync::Arc;

use crate::cgroup;
use crate::error::Result;
use crate::sandbox::plan::Plan;
use crate::store::subordinate::Subordinate;
use crate::sys::id_ranges::Ids;

/// What init has to know before it can begin.
#[derive(Debug, Clone)]
pub(crate) struct Beginning {
    pub(crate) plan: Arc<Plan>,
    pub(crate) takes_subvolumes: bool,
    pub(crate) cgroups: Option<cgroup::Plan>,
}

/// What of a beginning shows in init: one that has begun for something of the same shape will do.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Shape {
    has_own_network: bool,
    joined: Option<[u64; 2]>,
    is_filtered: bool,
    capabilities: u64,
    ids: Ids,
    subordinate: Option<Subordinate>,
    sysctls: Vec<u8>,
    dev_size: u64,
    has_sysfs: bool,
    shows_cgroups: bool,
    takes_subvolumes: bool,
}

impl Beginning {
    pub(crate) fn shape(&self) -> Result<Shape> {
        let Self { plan, takes_subvolumes, cgroups } = self;
        let has_cgroups = cgroups.as_ref().is_some_and(|cgroups| !cgroups.is_empty());
        Ok(Shape {
            has_own_network: plan.has_own_network,
            joined: plan.joined.as_ref().map(|joined| joined.identity()),
            is_filtered: plan.is_filtered,
            capabilities: plan.capabilities,
            ids: plan.ids,
            subordinate: plan.subordinate,
            sysctls: plan.sysctls(cgroups.as_ref().and_then(cgroup::Plan::pid_max))?,
            dev_size: plan.dev_size(),
            has_sysfs: plan.has_sysfs(has_cgroups),
            shows_cgroups: has_cgroups && plan.has_sysfs(true),
            takes_subvolumes: *takes_subvolumes,
        })
    }
}
