//! Kernel parameters of the container's own namespaces, and no others.

use super::step::Step;
use crate::hull::HullError;
use rustix::fs::{Mode, OFlags, ResolveFlags, openat2};
use std::collections::HashMap;
use std::os::fd::BorrowedFd;
use sys::clone::ns;

/// Parameters of the IPC namespace, ipc_namespaces(7).
const IPC: [&str; 8] = [
    "kernel.msgmax",
    "kernel.msgmnb",
    "kernel.msgmni",
    "kernel.sem",
    "kernel.shmall",
    "kernel.shmmax",
    "kernel.shmmni",
    "kernel.shm_rmid_forced",
];

/// Refuses a parameter that would change the host.
pub(super) fn check(sysctls: &HashMap<String, String>, apart: u64) -> Result<(), HullError> {
    for (name, value) in sysctls {
        let key = name.replace('/', ".");
        let (flag, namespace) = match key.as_str() {
            k if k.starts_with("net.") => (ns::NET, "network"),
            k if k.starts_with("fs.mqueue.") || IPC.contains(&k) => (ns::IPC, "IPC"),
            "kernel.domainname" => (ns::UTS, "UTS"),
            "kernel.hostname" => {
                return Err(HullError::Invalid("sysctl kernel.hostname: use --hostname instead".into()));
            }
            _ => {
                let text =
                    format!("sysctl {name} is not in a separate kernel namespace: it would change the host");
                return Err(HullError::Invalid(text));
            }
        };
        if apart & flag == 0 {
            return Err(HullError::Invalid(format!(
                "sysctl {name} is not allowed as the container uses the host's {namespace} namespace"
            )));
        }
        if value.contains(['\n', '\0']) || key.split('.').any(|part| matches!(part, "" | "..")) {
            return Err(HullError::Invalid(format!("sysctl {name}={value:?} is malformed")));
        }
    }
    Ok(())
}

/// Writes them by way of the host's procfs, which no container can have tampered with: the kernel shows each process
/// the parameters of its own namespaces.
pub(super) fn write(host_proc: BorrowedFd<'_>, sysctls: &HashMap<String, String>) -> Result<(), HullError> {
    for (name, value) in sysctls {
        // As sysctl(8): in a name with slashes dots are part of an interface's name.
        let path = if name.contains('/') { name.clone() } else { name.replace('.', "/") };
        let beneath = ResolveFlags::BENEATH | ResolveFlags::NO_XDEV | ResolveFlags::NO_MAGICLINKS;
        let flags = OFlags::WRONLY | OFlags::CLOEXEC;
        let named = || format!("set sysctl {name}={value}");
        let file = openat2(host_proc, format!("sys/{path}"), flags, Mode::empty(), beneath).step(named)?;
        rustix::io::write(file, value.as_bytes()).step(named)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_hosts_parameters_are_refused() {
        let ask = |name: &str, apart| check(&[(name.to_owned(), "1".to_owned())].into(), apart).is_ok();
        assert!(ask("net.ipv4.ip_forward", ns::NET));
        assert!(!ask("net.ipv4.ip_forward", ns::IPC));
        assert!(ask("kernel.msgmax", ns::IPC));
        assert!(ask("net/ipv4/conf/eth0.1/forwarding", ns::NET));
        for never in
            ["kernel.core_pattern", "vm.overcommit_memory", "net.../../kernel/core_pattern", "net.a..b"]
        {
            assert!(!ask(never, u64::MAX), "{never}");
        }
    }
}
