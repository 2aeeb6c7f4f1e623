//! Kernel parameters of a sandbox's own namespaces.

use crate::config::{Config, Network};
use crate::error::{Error, Result};

/// Those of the IPC namespace, as `sysctl(8)` writes them. With any of them, what a guest takes is
/// counted as before: see SECURITY.md.
const OF_IPC: [&str; 13] = [
    "fs.mqueue.msg_default",
    "fs.mqueue.msg_max",
    "fs.mqueue.msgsize_default",
    "fs.mqueue.msgsize_max",
    "fs.mqueue.queues_max",
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shm_rmid_forced",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
];

/// The longest name or value, in bytes.
const LONGEST: usize = 256;

/// Refuses what is no parameter of the sandbox's own.
pub(crate) fn check(config: &Config) -> Result<()> {
    config.sysctls.iter().try_for_each(|(name, value)| check_one(name, value, &config.network))
}

fn check_one(name: &str, value: &str, network: &Network) -> Result<()> {
    let is_part = |part: &str| {
        let allowed = |c: char| c.is_ascii_alphanumeric() || matches!(c, '_' | '-');
        !part.is_empty() && part.chars().all(allowed)
    };
    // Some of netfilter's are switches of the whole machine that any network namespace has.
    let is_of_network = name.starts_with("net.") && !name.starts_with("net.netfilter.");
    let why = if name.len() > LONGEST || value.len() > LONGEST {
        format!("a name or a value longer than {LONGEST} bytes")
    } else if value.is_empty() || value.contains(|c: char| c.is_ascii_control() && c != '\t') {
        format!("{name}: {value:?} is no value: empty, or a control character in it")
    } else if !name.split('.').all(is_part) {
        format!("{name:?} is no name of a kernel parameter, as kernel.shmmax is one")
    } else if OF_IPC.contains(&name) || is_of_network && *network == Network::None {
        return Ok(());
    } else if name == "kernel.hostname" {
        format!("{name}: set the host name instead")
    } else if is_of_network {
        format!("{name}: the network is not the sandbox's own")
    } else {
        format!(
            "{name} is the machine's, not a sandbox's: takes fs.mqueue.*, kernel.msgmax, msgmnb, msgmni, \
             sem, shm_rmid_forced, shmall, shmmax and shmmni, and net.* without net.netfilter.*"
        )
    };
    Err(Error::invalid("kernel parameter", why))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_parameters_of_a_sandboxs_own_are_taken() {
        for name in ["kernel.sem", "fs.mqueue.msg_max", "net.ipv4.ip_forward", "net.core.somaxconn"]
        {
            check_one(name, "1 2\t3", &Network::None).unwrap();
        }
        for (name, value) in [
            ("kernel.hostname", "a"),
            ("kernel.domainname", "a"),
            ("kernel.core_pattern", "|/bin/sh"),
            ("vm.overcommit_memory", "1"),
            ("net", "1"),
            ("net.", "1"),
            ("net.netfilter.nf_hooks_lwtunnel", "1"),
            ("net..x", "1"),
            ("net.ipv4/../../kernel/core_pattern", "1"),
            ("../vm/swappiness", "1"),
            ("", "1"),
            ("kernel.sem", ""),
            ("kernel.sem", "1\n2"),
            ("kernel.sem", "1\0"),
        ] {
            assert!(check_one(name, value, &Network::None).is_err(), "{name} {value:?}");
        }
        for network in [Network::Host, Network::join("/run/netns/x")] {
            assert!(check_one("net.core.somaxconn", "1", &network).is_err());
            check_one("kernel.sem", "1", &network).unwrap();
        }
    }
}
