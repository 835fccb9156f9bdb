//! Kernel parameters below `/proc/sys/net`, of the network namespace of the calling thread.

use crate::NetError;
use std::fs;
use std::io;
use std::path::Path;

/// Sets a parameter unless it has that value; on the way of every start, so a read that finds it set is all.
pub(crate) fn set(path: &str, value: &'static str) -> Result<(), NetError> {
    let file = format!("/proc/sys/net/{path}");
    let failed = |source| NetError::Sysctl { path: file.clone(), value, source };
    if fs::read_to_string(&file).map_err(failed)?.trim() == value {
        return Ok(());
    }
    fs::write(&file, value).map_err(failed)
}

/// Whether this kernel has IPv6, not switched off.
pub(crate) fn has_ipv6() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6").is_ok_and(|v| v.trim() == "0")
}

/// Whether bridged packets go through the IP firewall (br_netfilter, which Docker and Kubernetes load).
pub(crate) fn bridges_filter() -> bool {
    let on = |name| fs::read(format!("/proc/sys/net/bridge/{name}")).is_ok_and(|v| v.first() == Some(&b'1'));
    on("bridge-nf-call-iptables") || on("bridge-nf-call-ip6tables")
}

/// Forwarding of IPv6 makes the host a router, and a router ignores router advertisements unless an interface's
/// `accept_ra` is 2: without that, a host that got its own address from them would lose its network
/// (Documentation/networking/ip-sysctl.rst).
pub(crate) fn forward_ipv6() -> Result<(), NetError> {
    let all = "ipv6/conf/all/forwarding";
    if fs::read_to_string(Path::new("/proc/sys/net").join(all)).is_ok_and(|v| v.trim() == "1") {
        return Ok(());
    }
    keep_router_advertisements().map_err(|source| NetError::Sysctl {
        path: "/proc/sys/net/ipv6/conf/*/accept_ra".into(),
        value: "2",
        source,
    })?;
    set(all, "1")
}

fn keep_router_advertisements() -> io::Result<()> {
    for entry in fs::read_dir("/proc/sys/net/ipv6/conf")? {
        let file = entry?.path().join("accept_ra");
        // An interface may go while we look; loopback and all have no meaning here.
        if fs::read_to_string(&file).is_ok_and(|v| v.trim() == "1") {
            let _ = fs::write(&file, "2");
        }
    }
    Ok(())
}
