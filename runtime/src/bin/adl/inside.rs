//! Options for what a sandbox finds inside, beside its image.

use adl_runtime::{Config, EtcFiles, Sysfs};
use clap::{Args, ValueEnum};

use crate::values::size;

// What the runtime puts in. (A doc comment would be help.)
#[derive(Args)]
pub(crate) struct InsideOptions {
    /// Files of the sandbox's own in /etc (hosts, hostname, resolv.conf): those that the image has
    /// not, `all`, or `none`
    #[arg(long, value_name = "WHICH", default_value = "missing")]
    etc_files: WhichEtcFiles,

    /// When there is a read-only /sys with the processors and the sandbox's own cgroup
    #[arg(long, value_name = "WHEN", default_value = "with-limits")]
    sysfs: WhenSysfs,

    /// The most that may be in /dev/shm, as 256m; 64m by default
    #[arg(long, value_name = "SIZE", value_parser = size)]
    shm_size: Option<u64>,

    /// Set a kernel parameter of the sandbox's own namespaces, as net.ipv4.ip_default_ttl=60
    #[arg(long, value_name = "NAME=VALUE", value_parser = sysctl)]
    sysctl: Vec<(String, String)>,
}

#[derive(Clone, Copy, ValueEnum)]
enum WhichEtcFiles {
    Missing,
    All,
    None,
}

#[derive(Clone, Copy, ValueEnum)]
enum WhenSysfs {
    WithLimits,
    Always,
    Never,
}

impl InsideOptions {
    pub(crate) fn apply(&self, config: &mut Config) {
        config.etc_files = match self.etc_files {
            WhichEtcFiles::Missing => EtcFiles::Missing,
            WhichEtcFiles::All => EtcFiles::All,
            WhichEtcFiles::None => EtcFiles::None,
        };
        config.sysfs = match self.sysfs {
            WhenSysfs::WithLimits => Sysfs::WithLimits,
            WhenSysfs::Always => Sysfs::Always,
            WhenSysfs::Never => Sysfs::Never,
        };
        config.shm_size = self.shm_size;
        config.sysctls.clone_from(&self.sysctl);
    }
}

fn sysctl(text: &str) -> Result<(String, String), &'static str> {
    match text.split_once('=') {
        Some((name, value)) => Ok((name.to_owned(), value.to_owned())),
        None => Err("takes NAME=VALUE, as kernel.shmmax=1073741824"),
    }
}
