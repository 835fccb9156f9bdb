//! Capabilities: their names, numbers and sets, see capabilities(7).

use std::fmt;
use types::oci::{Capabilities, Capability, LinuxCapabilities};

/// Every capability and its number in linux/capability.h; the index is the number.
const BY_NUMBER: [(Capability, &str); 41] = {
    use Capability::*;
    [
        (Chown, "CHOWN"),
        (DacOverride, "DAC_OVERRIDE"),
        (DacReadSearch, "DAC_READ_SEARCH"),
        (Fowner, "FOWNER"),
        (Fsetid, "FSETID"),
        (Kill, "KILL"),
        (Setgid, "SETGID"),
        (Setuid, "SETUID"),
        (Setpcap, "SETPCAP"),
        (LinuxImmutable, "LINUX_IMMUTABLE"),
        (NetBindService, "NET_BIND_SERVICE"),
        (NetBroadcast, "NET_BROADCAST"),
        (NetAdmin, "NET_ADMIN"),
        (NetRaw, "NET_RAW"),
        (IpcLock, "IPC_LOCK"),
        (IpcOwner, "IPC_OWNER"),
        (SysModule, "SYS_MODULE"),
        (SysRawio, "SYS_RAWIO"),
        (SysChroot, "SYS_CHROOT"),
        (SysPtrace, "SYS_PTRACE"),
        (SysPacct, "SYS_PACCT"),
        (SysAdmin, "SYS_ADMIN"),
        (SysBoot, "SYS_BOOT"),
        (SysNice, "SYS_NICE"),
        (SysResource, "SYS_RESOURCE"),
        (SysTime, "SYS_TIME"),
        (SysTtyConfig, "SYS_TTY_CONFIG"),
        (Mknod, "MKNOD"),
        (Lease, "LEASE"),
        (AuditWrite, "AUDIT_WRITE"),
        (AuditControl, "AUDIT_CONTROL"),
        (Setfcap, "SETFCAP"),
        (MacOverride, "MAC_OVERRIDE"),
        (MacAdmin, "MAC_ADMIN"),
        (Syslog, "SYSLOG"),
        (WakeAlarm, "WAKE_ALARM"),
        (BlockSuspend, "BLOCK_SUSPEND"),
        (AuditRead, "AUDIT_READ"),
        (Perfmon, "PERFMON"),
        (Bpf, "BPF"),
        (CheckpointRestore, "CHECKPOINT_RESTORE"),
    ]
};

/// `CAP_SYS_ADMIN` as a bit.
pub(crate) const SYS_ADMIN: u64 = 1 << 21;
/// `CAP_SYS_RESOURCE` as a bit.
pub(crate) const SYS_RESOURCE: u64 = 1 << 24;

/// A name that is no capability.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct UnknownCapability(pub String);

impl fmt::Display for UnknownCapability {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "unknown capability {:?}: see capabilities(7) for the names", self.0)
    }
}

impl std::error::Error for UnknownCapability {}

/// A capability by its name, in any case, with or without `CAP_`.
pub fn parse(name: &str) -> Result<Capability, UnknownCapability> {
    let upper = name.trim().to_ascii_uppercase();
    let bare = upper.strip_prefix("CAP_").unwrap_or(&upper);
    BY_NUMBER
        .iter()
        .find(|(_, n)| *n == bare)
        .map(|(c, _)| *c)
        .ok_or_else(|| UnknownCapability(name.to_owned()))
}

/// Its name with the prefix: `CAP_CHOWN`.
pub fn name(capability: Capability) -> String {
    let name = BY_NUMBER.iter().find(|(c, _)| *c == capability).map_or("UNKNOWN", |(_, n)| n);
    format!("CAP_{name}")
}

/// Every capability that there is.
pub fn all() -> Capabilities {
    BY_NUMBER.iter().map(|(c, _)| *c).collect()
}

/// What Docker gives a container that asks for nothing (moby, `oci/caps/defaults.go`).
pub fn docker_default() -> Capabilities {
    use Capability::*;
    [
        Chown,
        DacOverride,
        Fsetid,
        Fowner,
        Mknod,
        NetRaw,
        Setgid,
        Setuid,
        Setfcap,
        Setpcap,
        NetBindService,
        SysChroot,
        Kill,
        AuditWrite,
    ]
    .into()
}

/// Docker's `--cap-add` and `--cap-drop` applied to the default set: `ALL` stands for every capability, and what is
/// named by itself beats `ALL`.
pub fn tweak(add: &[String], drop: &[String]) -> Result<Capabilities, UnknownCapability> {
    let is_all = |name: &String| matches!(name.to_ascii_uppercase().as_str(), "ALL" | "CAP_ALL");
    let named = |list: &[String]| -> Result<Vec<Capability>, UnknownCapability> {
        list.iter().filter(|n| !is_all(n)).map(|n| parse(n)).collect()
    };
    let (added, dropped) = (named(add)?, named(drop)?);
    let mut set = match (add.iter().any(is_all), drop.iter().any(is_all)) {
        (true, _) => all(),
        (false, true) => Capabilities::new(),
        (false, false) => docker_default(),
    };
    set.retain(|c| !dropped.contains(c));
    set.extend(added);
    Ok(set)
}

/// What this process may hand on: its bounding set.
pub fn available() -> Capabilities {
    from_bits(bounding())
}

/// Bits of a set.
pub fn to_bits(set: &Capabilities) -> u64 {
    (0..).zip(BY_NUMBER).filter(|(_, (c, _))| set.contains(c)).fold(0, |bits, (i, _)| bits | 1u64 << i)
}

/// The set of these bits.
pub fn from_bits(bits: u64) -> Capabilities {
    (0..).zip(BY_NUMBER).filter(|(i, _)| bits & (1u64 << i) != 0).map(|(_, (c, _))| c).collect()
}

/// The bounding set as bits.
pub(crate) fn bounding() -> u64 {
    use rustix::thread::{CapabilitySet, capability_is_in_bounding_set as has};
    // The kernel answers EINVAL beyond its last capability.
    (0..64)
        .map_while(|i| {
            has(CapabilitySet::from_bits_retain(1 << i)).ok().filter(|_| i < 63).map(|h| (1u64 << i, h))
        })
        .filter(|(_, has)| *has)
        .fold(0, |bits, (bit, _)| bits | bit)
}

/// The five sets of a process as bits, cut to what this host can give.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(crate) struct Sets {
    pub bounding: u64,
    pub effective: u64,
    pub permitted: u64,
    pub inheritable: u64,
    pub ambient: u64,
}

impl Sets {
    pub(crate) fn new(wanted: Option<&LinuxCapabilities>, available: u64) -> Self {
        let Some(wanted) = wanted else { return Self::default() };
        let bits = |set: &Option<Capabilities>| set.as_ref().map_or(0, to_bits) & available;
        let permitted = bits(wanted.permitted());
        let inheritable = bits(wanted.inheritable());
        Self {
            bounding: bits(wanted.bounding()),
            effective: bits(wanted.effective()) & permitted,
            permitted,
            inheritable,
            ambient: bits(wanted.ambient()) & permitted & inheritable,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn numbers_are_the_kernels() {
        assert_eq!(to_bits(&[Capability::SysAdmin].into()), 1 << 21);
        assert_eq!(to_bits(&[Capability::SysResource].into()), SYS_RESOURCE);
        assert_eq!(to_bits(&[Capability::CheckpointRestore].into()), 1 << 40);
        // Docker's default set, as /proc/PID/status shows it.
        assert_eq!(to_bits(&docker_default()), 0xa80425fb);
        assert_eq!(from_bits(0xa80425fb), docker_default());
    }

    #[test]
    fn names_are_taken_as_docker_takes_them() {
        assert_eq!(parse("cap_net_admin").unwrap(), Capability::NetAdmin);
        assert_eq!(parse("NET_ADMIN").unwrap(), Capability::NetAdmin);
        assert!(parse("CAP_NONSENSE").is_err());
        let s = |v: &[&str]| v.iter().map(|s| s.to_string()).collect::<Vec<_>>();
        assert_eq!(tweak(&s(&["SYS_TIME"]), &s(&["all"])).unwrap(), [Capability::SysTime].into());
        let most = tweak(&s(&["ALL"]), &s(&["MKNOD"])).unwrap();
        assert_eq!(most.len(), 40);
        assert_eq!(tweak(&[], &[]).unwrap(), docker_default());
    }
}
