//! Sets of capabilities, by name.

use std::fmt;
use std::str::FromStr;

use serde::{Deserialize, Serialize};

use crate::error::{Error, Result};

/// One of the rights that root is made of (`capabilities(7)`). In a sandbox each of them reaches
/// the sandbox's own things only.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
#[non_exhaustive]
#[repr(u8)]
pub enum Capability {
    /// `CAP_CHOWN`. Change owners of files.
    Chown = 0,
    /// `CAP_DAC_OVERRIDE`. Read, write and execute whatever the mode of a file is.
    DacOverride = 1,
    /// `CAP_DAC_READ_SEARCH`. Read files and search directories whatever their modes are.
    DacReadSearch = 2,
    /// `CAP_FOWNER`. Do what the owner of a file may.
    Fowner = 3,
    /// `CAP_FSETID`. Keep set-user-id and set-group-id bits when a file is changed.
    Fsetid = 4,
    /// `CAP_KILL`. Send signals to processes of other users.
    Kill = 5,
    /// `CAP_SETGID`. Change groups.
    Setgid = 6,
    /// `CAP_SETUID`. Change users.
    Setuid = 7,
    /// `CAP_SETPCAP`. Change the capabilities of a process.
    Setpcap = 8,
    /// `CAP_LINUX_IMMUTABLE`. Set the flags append-only and immutable of files.
    LinuxImmutable = 9,
    /// `CAP_NET_BIND_SERVICE`. Bind ports below 1024.
    NetBindService = 10,
    /// `CAP_NET_BROADCAST`. Nothing: Linux does not use it.
    NetBroadcast = 11,
    /// `CAP_NET_ADMIN`. Configure the network.
    NetAdmin = 12,
    /// `CAP_NET_RAW`. Use raw and packet sockets.
    NetRaw = 13,
    /// `CAP_IPC_LOCK`. Lock memory.
    IpcLock = 14,
    /// `CAP_IPC_OWNER`. Pass the permissions of System V IPC objects.
    IpcOwner = 15,
    /// `CAP_SYS_MODULE`. Load kernel modules.
    SysModule = 16,
    /// `CAP_SYS_RAWIO`. Use I/O ports and the like.
    SysRawio = 17,
    /// `CAP_SYS_CHROOT`. Change the root directory.
    SysChroot = 18,
    /// `CAP_SYS_PTRACE`. Trace any process.
    SysPtrace = 19,
    /// `CAP_SYS_PACCT`. Switch process accounting.
    SysPacct = 20,
    /// `CAP_SYS_ADMIN`. Mount, and much else.
    SysAdmin = 21,
    /// `CAP_SYS_BOOT`. Reboot.
    SysBoot = 22,
    /// `CAP_SYS_NICE`. Raise priorities of processes.
    SysNice = 23,
    /// `CAP_SYS_RESOURCE`. Go beyond limits.
    SysResource = 24,
    /// `CAP_SYS_TIME`. Set the clock.
    SysTime = 25,
    /// `CAP_SYS_TTY_CONFIG`. Configure terminals.
    SysTtyConfig = 26,
    /// `CAP_MKNOD`. Make device nodes.
    Mknod = 27,
    /// `CAP_LEASE`. Take leases on any file.
    Lease = 28,
    /// `CAP_AUDIT_WRITE`. Write to the audit log.
    AuditWrite = 29,
    /// `CAP_AUDIT_CONTROL`. Configure auditing.
    AuditControl = 30,
    /// `CAP_SETFCAP`. Set the capabilities of files.
    Setfcap = 31,
    /// `CAP_MAC_OVERRIDE`. Pass mandatory access control (Smack).
    MacOverride = 32,
    /// `CAP_MAC_ADMIN`. Configure mandatory access control (Smack).
    MacAdmin = 33,
    /// `CAP_SYSLOG`. Read the kernel's log.
    Syslog = 34,
    /// `CAP_WAKE_ALARM`. Set timers that wake the machine.
    WakeAlarm = 35,
    /// `CAP_BLOCK_SUSPEND`. Keep the machine from suspending.
    BlockSuspend = 36,
    /// `CAP_AUDIT_READ`. Read the audit log.
    AuditRead = 37,
    /// `CAP_PERFMON`. Measure performance (Linux 5.8).
    Perfmon = 38,
    /// `CAP_BPF`. Use privileged parts of BPF (Linux 5.8).
    Bpf = 39,
    /// `CAP_CHECKPOINT_RESTORE`. Checkpoint and restore processes (Linux 5.9).
    CheckpointRestore = 40,
}

/// A set of capabilities (`capabilities(7)`).
///
/// ```
/// use adl_runtime::{Capabilities, Capability};
///
/// let some: Capabilities = "net_bind_service,CAP_CHOWN".parse()?;
/// assert!(some.contains(Capability::Chown));
/// assert_eq!(some.to_string(), "CAP_CHOWN,CAP_NET_BIND_SERVICE");
/// assert!(!Capabilities::default().contains(Capability::SysAdmin));
/// # Ok::<(), adl_runtime::Error>(())
/// ```
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(into = "String", try_from = "String")]
pub struct Capabilities(u64);

impl Capabilities {
    /// No capability.
    pub const NONE: Self = Self(0);

    /// All that there are, up to `CAP_CHECKPOINT_RESTORE` (Linux 5.9).
    pub const ALL: Self = Self((1 << 41) - 1);

    /// The set with `capability` in it.
    #[must_use]
    pub const fn with(self, capability: Capability) -> Self {
        Self(self.0 | 1 << capability as u8)
    }

    /// The set with `capability` not in it.
    #[must_use]
    pub fn without(self, capability: Capability) -> Self {
        Self(self.0 & !(1 << capability as u8))
    }

    /// What is in either set.
    #[must_use]
    pub fn union(self, other: Self) -> Self {
        Self(self.0 | other.0)
    }

    /// What is in the set and not in `other`.
    #[must_use]
    pub fn difference(self, other: Self) -> Self {
        Self(self.0 & !other.0)
    }

    /// Whether `capability` is in the set.
    pub fn contains(self, capability: Capability) -> bool {
        self.0 & 1 << capability as u8 != 0
    }

    /// The set as the kernel writes it: bit `n` is capability number `n`.
    pub fn bits(self) -> u64 {
        self.0
    }
}

/// What containers have by default, in Docker as here: `AUDIT_WRITE`, `CHOWN`, `DAC_OVERRIDE`,
/// `FOWNER`, `FSETID`, `KILL`, `MKNOD`, `NET_BIND_SERVICE`, `NET_RAW`, `SETFCAP`, `SETGID`,
/// `SETPCAP`, `SETUID`, `SYS_CHROOT`.
impl Default for Capabilities {
    fn default() -> Self {
        [
            Capability::AuditWrite,
            Capability::Chown,
            Capability::DacOverride,
            Capability::Fowner,
            Capability::Fsetid,
            Capability::Kill,
            Capability::Mknod,
            Capability::NetBindService,
            Capability::NetRaw,
            Capability::Setfcap,
            Capability::Setgid,
            Capability::Setpcap,
            Capability::Setuid,
            Capability::SysChroot,
        ]
        .into_iter()
        .fold(Self::NONE, Self::with)
    }
}

impl FromStr for Capabilities {
    type Err = Error;

    fn from_str(names: &str) -> Result<Self> {
        names.split(',').filter(|name| !name.is_empty()).try_fold(Self::NONE, |set, name| {
            let upper = name.trim().to_ascii_uppercase();
            let full = if upper.starts_with("CAP_") { upper } else { format!("CAP_{upper}") };
            let capability = caps::Capability::from_str(&full).map_err(|_| {
                let why = format!("{name:?} is not known; capabilities(7) lists them");
                Error::invalid("capability", why)
            })?;
            Ok(Self(set.0 | capability.bitmask()))
        })
    }
}

impl TryFrom<String> for Capabilities {
    type Error = Error;

    fn try_from(names: String) -> Result<Self> {
        names.parse()
    }
}

impl From<Capabilities> for String {
    fn from(capabilities: Capabilities) -> Self {
        capabilities.to_string()
    }
}

impl fmt::Display for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let held = |capability: &caps::Capability| self.0 & capability.bitmask() != 0;
        let mut known: Vec<_> = caps::all().into_iter().filter(held).collect();
        known.sort_by_key(caps::Capability::index);
        let names: Vec<String> = known.iter().map(ToString::to_string).collect();
        f.write_str(&names.join(","))
    }
}

/// Its name in the kernel, as `CAP_CHOWN`.
impl fmt::Display for Capability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Capabilities::NONE.with(*self).fmt(f)
    }
}

impl fmt::Debug for Capabilities {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "Capabilities({self})")
    }
}

#[cfg(test)]
mod tests {
    use super::{Capabilities, Capability};

    #[test]
    fn each_capability_has_the_kernels_number_and_name() {
        for known in caps::all() {
            let one: Capabilities = known.to_string().parse().unwrap();
            assert_eq!(one.bits(), 1 << known.index(), "{known}");
            assert_eq!(one.to_string(), known.to_string());
        }
        for (capability, number, name) in [
            (Capability::Chown, 0, "CAP_CHOWN"),
            (Capability::NetAdmin, 12, "CAP_NET_ADMIN"),
            (Capability::Setfcap, 31, "CAP_SETFCAP"),
            (Capability::CheckpointRestore, 40, "CAP_CHECKPOINT_RESTORE"),
        ] {
            assert_eq!(Capabilities::NONE.with(capability).bits(), 1 << number);
            assert_eq!(capability.to_string(), name);
            assert_eq!(capability as u8, number);
        }
    }
}
