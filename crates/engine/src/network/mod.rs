//! Networks: their rows, their addresses, which of them a container has an interface on, and what of it is published.
//!
//! ```text
//! network create ─► request (read, checked) ─► networks (subnets, row, bridge)
//! create         ─► endpoints (rows)
//! start          ─► plan ─► leases (addresses), ports, egress ─► types::NetworkPlan, in the bundle
//! ```

mod cidr;
mod egress;
mod endpoints;
mod inspect;
mod leases;
pub(crate) mod names;
mod networks;
mod plan;
mod ports;
mod request;
mod rows;
mod shown;

pub use egress::{EGRESS, parse_egress};
pub(crate) use networks::lock_subnets;
pub use plan::HOST_ACCESS;
pub(crate) use ports::parse_port;
pub(crate) use rows::{DEFAULT, Endpoint};
pub(crate) use shown::Places;

use crate::Result;
use crate::spec::invalid;
use crate::store::Container;

/// Checks what can be checked without deciding anything.
pub(crate) fn check(container: &Container) -> Result<()> {
    let host = &container.host;
    let mode = host.network_mode.as_deref().unwrap_or("bridge");
    let bridged = match mode {
        "host" | "none" => false,
        other if other.strip_prefix("container:").is_some_and(|n| !n.is_empty()) => {
            for (what, set) in [
                ("--hostname", container.config.hostname.as_ref().is_some_and(|h| !h.is_empty())),
                ("--add-host", host.extra_hosts.as_ref().is_some_and(|h| !h.is_empty())),
                ("--dns", host.dns.as_ref().is_some_and(|d| !d.is_empty())),
                ("--publish", host.port_bindings.as_ref().is_some_and(|p| !p.is_empty())),
            ] {
                if set {
                    return Err(invalid(format!(
                        "conflicting options: {what} and the container type network mode"
                    )));
                }
            }
            false
        }
        "container:" => {
            return Err(invalid("--network container: names no container: write container:NAME"));
        }
        _ => true,
    };
    let ports = ports::ports(container)?;
    if !bridged && mode != "host" && !ports.is_empty() {
        return Err(invalid(format!("ports cannot be published with --network {mode}")));
    }
    if plan::egress_of(container)?.is_some() && !bridged {
        return Err(invalid(format!(
            "--egress cannot be enforced with --network {mode}: it needs a network of its own"
        )));
    }
    Ok(())
}

/// Containers whose namespaces this one joins, as they were named.
pub(crate) fn joined_names(container: &Container) -> Vec<String> {
    let host = &container.host;
    let mut out: Vec<String> = [&host.network_mode, &host.pid_mode, &host.ipc_mode, &host.uts_mode]
        .into_iter()
        .filter_map(|m| m.as_deref()?.strip_prefix("container:").map(str::to_owned))
        .collect();
    out.sort_unstable();
    out.dedup();
    out
}
