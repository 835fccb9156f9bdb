//! Which namespaces are new, which are another container's, which are the host's.

use crate::spec::{Context, invalid};
use crate::users::{IDS, is_private};
use crate::{EngineError, Result};
use types::docker::HostConfigCgroupnsModeEnum as CgroupNs;
use types::oci::{
    LinuxIdMapping, LinuxIdMappingBuilder, LinuxNamespace, LinuxNamespaceBuilder, LinuxNamespaceType,
};

pub(super) fn of(cx: &Context<'_>) -> Result<Vec<LinuxNamespace>> {
    use LinuxNamespaceType as T;
    let host = &cx.container.host;
    let mut out = vec![new(T::Mount)?];
    let mut shared = |kind: T, file: &str, mode: Option<&str>, flag: &str| -> Result<()> {
        match mode.unwrap_or("") {
            "" | "private" | "shareable" | "none" => out.push(new(kind)?),
            "host" => {}
            other => match other.strip_prefix("container:") {
                Some(name) => out.push(joined(cx, kind, file, name)?),
                None => return Err(invalid(format!("invalid {flag} mode {other:?}"))),
            },
        }
        Ok(())
    };
    shared(T::Pid, "pid", host.pid_mode.as_deref(), "--pid")?;
    shared(T::Ipc, "ipc", host.ipc_mode.as_deref(), "--ipc")?;
    shared(T::Uts, "uts", host.uts_mode.as_deref(), "--uts")?;
    // Whatever else it says is the name of a network.
    let network = host.network_mode.as_deref().filter(|m| *m == "host" || m.starts_with("container:"));
    shared(T::Network, "net", network, "--network")?;
    // A privileged container sees the host's tree on cgroup v1 as Docker does; every other one its own part only.
    if host.cgroupns_mode != Some(CgroupNs::HOST) {
        out.push(new(T::Cgroup)?);
    }
    if is_private(host) {
        out.push(new(T::User)?);
    }
    if host.annotations.as_ref().is_some_and(|a| a.get("dhow.time-namespace").is_some_and(|v| v == "private"))
    {
        out.push(new(T::Time)?);
    }
    Ok(out)
}

fn new(kind: LinuxNamespaceType) -> Result<LinuxNamespace> {
    LinuxNamespaceBuilder::default().typ(kind).build().map_err(invalid)
}

fn joined(cx: &Context<'_>, kind: LinuxNamespaceType, file: &str, name: &str) -> Result<LinuxNamespace> {
    let pid = cx.joined.get(name).ok_or_else(|| EngineError::NotRunning(name.to_owned()))?;
    LinuxNamespaceBuilder::default().typ(kind).path(format!("/proc/{pid}/ns/{file}")).build().map_err(invalid)
}

/// The mappings of a private user namespace, for users and groups alike.
pub(super) fn private_ids(cx: &Context<'_>) -> Result<Option<Vec<LinuxIdMapping>>> {
    let Some(first) = cx.user_ids.filter(|_| is_private(&cx.container.host)) else { return Ok(None) };
    let map = LinuxIdMappingBuilder::default().container_id(0u32).host_id(first).size(IDS);
    Ok(Some(vec![map.build().map_err(invalid)?]))
}
