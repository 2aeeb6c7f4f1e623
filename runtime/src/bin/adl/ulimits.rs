//! `--ulimit`: resource limits of a process, by the names and units that docker has.

use adl_runtime::Resource;
use nix::sys::resource::{Resource as Own, getrlimit};

/// What can be limited.
struct Named {
    name: &'static str,
    resource: Resource,
    own: Own,
    /// The most that a sandbox gives, whatever its caller has.
    most: u64,
}

/// No limit (`RLIM_INFINITY`).
const NONE: u64 = u64::MAX;

const fn named(name: &'static str, resource: Resource, own: Own, most: u64) -> Named {
    Named { name, resource, own, most }
}

/// All that docker knows; what no sandbox gives more of is in `docs/inheritance.md`.
const NAMES: [Named; 15] = [
    named("core", Resource::Core, Own::RLIMIT_CORE, NONE),
    named("cpu", Resource::Cpu, Own::RLIMIT_CPU, NONE),
    named("data", Resource::Data, Own::RLIMIT_DATA, NONE),
    named("fsize", Resource::FileSize, Own::RLIMIT_FSIZE, NONE),
    named("locks", Resource::FileLocks, Own::RLIMIT_LOCKS, NONE),
    named("memlock", Resource::LockedMemory, Own::RLIMIT_MEMLOCK, NONE),
    named("msgqueue", Resource::MessageQueues, Own::RLIMIT_MSGQUEUE, 819_200),
    named("nice", Resource::Nice, Own::RLIMIT_NICE, 0),
    named("nofile", Resource::OpenFiles, Own::RLIMIT_NOFILE, NONE),
    named("nproc", Resource::Processes, Own::RLIMIT_NPROC, NONE),
    named("rss", Resource::ResidentSet, Own::RLIMIT_RSS, NONE),
    named("rtprio", Resource::RealtimePriority, Own::RLIMIT_RTPRIO, 0),
    named("rttime", Resource::RealtimeTime, Own::RLIMIT_RTTIME, NONE),
    named("sigpending", Resource::PendingSignals, Own::RLIMIT_SIGPENDING, NONE),
    named("stack", Resource::Stack, Own::RLIMIT_STACK, NONE),
];

/// A resource limit.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) struct Ulimit {
    pub(crate) resource: Resource,
    pub(crate) soft: u64,
    pub(crate) hard: u64,
}

/// Reads `NAME=SOFT` or `NAME=SOFT:HARD`.
pub(crate) fn ulimit(text: &str) -> Result<Ulimit, String> {
    let (name, values) =
        text.split_once('=').ok_or("takes NAME=SOFT[:HARD], as nofile=1024:2048")?;
    let Some(named) = NAMES.iter().find(|named| named.name == name) else {
        let names = NAMES.map(|named| named.name).join(", ");
        return Err(format!("there is no limit {name:?}; there are {names}"));
    };
    let (soft, hard) = values.split_once(':').unwrap_or((values, values));
    let (soft, hard) = (limit(soft)?, limit(hard)?);
    if soft > hard {
        return Err("the soft limit, which comes first, is above the hard one".to_owned());
    }
    // By a limit of 0, the kernel still hands a dump to a program; by 1, the default, it does not.
    if (named.resource, soft, hard) == (Resource::Core, 0, 0) {
        return Ok(Ulimit { resource: Resource::Core, soft: 1, hard: 1 });
    }
    named.check(hard)?;
    Ok(Ulimit { resource: named.resource, soft, hard })
}

/// Reads a limit in the unit of its resource.
fn limit(text: &str) -> Result<u64, &'static str> {
    match text {
        "-1" | "unlimited" => Ok(NONE),
        _ => text
            .parse()
            .map_err(|_| "a limit is a whole number, of bytes or seconds, or -1 for none"),
    }
}

impl Named {
    /// Refuses what the kernel would.
    fn check(&self, hard: u64) -> Result<(), String> {
        if hard > self.most {
            return Err(format!("a sandbox gives no more than {}", self.most));
        }
        let (_, own) = getrlimit(self.own).map_err(|errno| errno.to_string())?;
        if hard > own {
            return Err(format!("this process has no more than {own} itself (prlimit tells)"));
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use adl_runtime::Resource;

    use super::{NAMES, Ulimit, ulimit};

    #[test]
    fn limits_of_a_process_are_read_as_docker_reads_them() {
        for (text, resource, soft, hard) in [
            ("nofile=64", Resource::OpenFiles, 64, 64),
            ("nofile=64:128", Resource::OpenFiles, 64, 128),
            ("cpu=1:2", Resource::Cpu, 1, 2),
            ("core=0", Resource::Core, 1, 1),
            ("nice=0", Resource::Nice, 0, 0),
            ("stack=65536:131072", Resource::Stack, 65_536, 131_072),
        ] {
            assert_eq!(ulimit(text), Ok(Ulimit { resource, soft, hard }), "{text}");
        }
        for (wrong, told) in [
            ("", "NAME=SOFT"),
            ("nofile", "NAME=SOFT"),
            ("nofiles=1", "nofile, nproc"),
            ("NOFILE=1", "no limit"),
            ("nofile=", "whole number"),
            ("nofile=-2", "whole number"),
            ("nofile=1k", "whole number"),
            ("nofile=1:2:3", "whole number"),
            ("nofile=2:1", "soft"),
            ("nofile=-1:1", "soft"),
            ("rtprio=1", "no more than 0"),
            ("msgqueue=-1", "no more than 819200"),
            ("nofile=-1", "no more than"),
        ] {
            assert!(
                ulimit(wrong).is_err_and(|why| why.contains(told)),
                "{wrong}: {:?}",
                ulimit(wrong)
            );
        }
        for named in NAMES {
            assert_eq!(named.resource as u32, named.own as u32, "{}", named.name);
        }
    }
}
