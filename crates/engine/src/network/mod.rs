//! Decides a container's network: which bridge, which address, which ports.

pub(crate) mod names;

use crate::spec::invalid;
use crate::store::{self, Container};
use crate::{Engine, EngineError, Result};
use state::rusqlite::{OptionalExtension, params};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use types::{Attachment, BridgePlan, ContainerId, NetworkPlan, PortBinding, Protocol};

/// The setting that holds the default bridge's plan.
const BRIDGE: &str = "bridge";
/// Locked while subnets are chosen. In a directory that only root writes: anybody could hold a lock in `/tmp`.
const SUBNETS: &str = "/run/dhow-subnets.lock";
/// The name of the default network in the address table.
pub(crate) const DEFAULT: &str = "bridge";
/// The most ports that one container may publish.
const MAX_PORTS: usize = 65_536;

/// Checks what can be checked without deciding anything.
pub(crate) fn check(container: &Container) -> Result<()> {
    let host = &container.host;
    let mode = host.network_mode.as_deref().unwrap_or("bridge");
    let bridged = match mode {
        "bridge" => true,
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
        other => {
            return Err(EngineError::Invalid(format!(
                "network {other} not found: bridge, host, none and container:NAME are known"
            )));
        }
    };
    let ports = ports(container)?;
    if !bridged && mode != "host" && !ports.is_empty() {
        return Err(invalid(format!("ports cannot be published with --network {mode}")));
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

/// The published ports of a container.
fn ports(container: &Container) -> Result<Vec<PortBinding>> {
    let mut out = Vec::new();
    for (port, bindings) in container.host.port_bindings.iter().flatten() {
        let (container_port, protocol) = parse_port(port)?;
        let none = [types::docker::PortBinding::default()];
        let bindings = bindings.as_deref().filter(|b| !b.is_empty()).unwrap_or(&none);
        for binding in bindings {
            let text = binding.host_port.as_deref().unwrap_or("");
            let (first, last) = text.split_once('-').unwrap_or((text, text));
            let number = |s: &str| match s {
                "" => Ok(0u16),
                s => s.parse::<u16>().map_err(|_| invalid(format!("invalid host port {text:?}"))),
            };
            let (first, last) = (number(first)?, number(last)?);
            if last < first {
                return Err(invalid(format!("invalid host port range {text:?}")));
            }
            // Of a range the engine picks a free one, by asking for each in turn.
            let host_port = if first == last { first } else { free_of(first, last, protocol)? };
            let address = binding.host_ip.as_deref().unwrap_or("");
            let families: Vec<IpAddr> = match address {
                "" => vec![Ipv4Addr::UNSPECIFIED.into(), Ipv6Addr::UNSPECIFIED.into()],
                a => vec![
                    a.trim_matches(['[', ']'])
                        .parse()
                        .map_err(|_| invalid(format!("invalid IP address {a:?} of a published port")))?,
                ],
            };
            for host_ip in families {
                out.push(PortBinding { host_ip, host_port, container_port, protocol });
            }
        }
    }
    if container.host.publish_all_ports.unwrap_or(false) {
        for port in container.config.exposed_ports.iter().flatten() {
            let (container_port, protocol) = parse_port(port)?;
            if !out.iter().any(|p| (p.container_port, p.protocol) == (container_port, protocol)) {
                for host_ip in [IpAddr::from(Ipv4Addr::UNSPECIFIED), Ipv6Addr::UNSPECIFIED.into()] {
                    out.push(PortBinding { host_ip, host_port: 0, container_port, protocol });
                }
            }
        }
    }
    if out.len() > MAX_PORTS {
        return Err(invalid(format!("{} published ports are more than {MAX_PORTS}", out.len())));
    }
    out.sort_by_key(|p| (p.container_port, p.protocol, p.host_ip, p.host_port));
    Ok(out)
}

fn free_of(first: u16, last: u16, protocol: Protocol) -> Result<u16> {
    let free = |port: &u16| match protocol {
        Protocol::Tcp => std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok(),
        Protocol::Udp => std::net::UdpSocket::bind((Ipv4Addr::UNSPECIFIED, *port)).is_ok(),
    };
    (first..=last).find(free).ok_or_else(|| {
        EngineError::Conflict(format!("all ports of the range {first}-{last} are already allocated"))
    })
}

/// Reads `80/tcp`.
pub(crate) fn parse_port(text: &str) -> Result<(u16, Protocol)> {
    let (number, protocol) = text.split_once('/').unwrap_or((text, "tcp"));
    let wrong = || invalid(format!("invalid port {text:?}: for example 80/tcp"));
    let protocol = match protocol {
        "tcp" => Protocol::Tcp,
        "udp" => Protocol::Udp,
        "sctp" => {
            return Err(EngineError::Unsupported(format!("port {text}: SCTP ports cannot be published")));
        }
        _ => return Err(wrong()),
    };
    match number.parse::<u16>() {
        Ok(number) if number > 0 => Ok((number, protocol)),
        _ => Err(wrong()),
    }
}

impl Engine {
    /// Decides the network of a container that is about to start.
    pub(crate) fn plan_network(&self, container: &Container) -> Result<NetworkPlan> {
        match container.host.network_mode.as_deref().unwrap_or("bridge") {
            "host" => Ok(NetworkPlan::Host),
            "none" => Ok(NetworkPlan::None),
            mode => match mode.strip_prefix("container:") {
                Some(name) => Ok(NetworkPlan::Container(store::find(&self.db, name)?.id.to_string())),
                None => Ok(NetworkPlan::Networks(vec![self.attachment(container)?])),
            },
        }
    }

    fn attachment(&self, container: &Container) -> Result<Attachment> {
        let bridge = self.default_bridge()?;
        let ipv4 = self.lease(&bridge, &container.id)?;
        let mac = container
            .networking
            .endpoints_config
            .iter()
            .flatten()
            .find_map(|(_, e)| e.mac_address.as_deref().filter(|m| !m.is_empty()))
            .map_or_else(|| Ok(net::mac_from_ipv4(ipv4)), parse_mac)?;
        let mut ports = ports(container)?;
        if bridge.gateway6.is_none() {
            ports.retain(|p| p.host_ip.is_ipv4());
        }
        Ok(Attachment {
            ipv6: bridge.gateway6.map(|g| net::ipv6_for(g, bridge.prefix6, ipv4)),
            bridge,
            id: container.id.to_string(),
            network: DEFAULT.into(),
            network_name: DEFAULT.into(),
            names: vec![container.name.clone()],
            default_route: true,
            egress: types::Egress::All,
            bandwidth: types::Bandwidth::default(),
            uplink: None,
            host_access: false,
            host_ifname: net::host_ifname(container.id.as_str(), 0),
            ifname: "eth0".into(),
            mac,
            ipv4,
            ports,
        })
    }

    /// The default bridge of this store: its subnets are chosen once.
    pub(crate) fn default_bridge(&self) -> Result<BridgePlan> {
        if let Some(plan) = self.stored_bridge()? {
            return Ok(plan);
        }
        // Stores of one host must not choose the same subnet: one at a time, and the bridge is made at once.
        let lock = sys::file::Lock::exclusive(SUBNETS.as_ref())
            .map_err(EngineError::io("cannot lock", SUBNETS.as_ref()))?;
        if let Some(plan) = self.stored_bridge()? {
            return Ok(plan);
        }
        let seed = sys::host::random().map_err(EngineError::io("getrandom", "".as_ref()))?;
        let subnets = net::choose_subnets(seed, &[])?;
        let tag = self.paths.tag();
        let plan = BridgePlan {
            name: if tag.is_empty() { "dhow0".into() } else { format!("dhow-{tag}") },
            gateway4: subnets.gateway4,
            prefix4: subnets.prefix4,
            gateway6: subnets.gateway6.filter(|_| has_ipv6()),
            prefix6: subnets.prefix6,
            mtu: 1500,
            internal: false,
            host_access: false,
            no_metadata: false,
        };
        net::ensure_bridge(&plan)?;
        store::set_setting(&self.db, BRIDGE, &store::json(&plan))?;
        drop(lock);
        Ok(plan)
    }

    pub(crate) fn stored_bridge(&self) -> Result<Option<BridgePlan>> {
        Ok(store::setting(&self.db, BRIDGE)?.and_then(|json| serde_json::from_str(&json).ok()))
    }

    /// The container's address on the bridge: the one it had, or the next free one.
    fn lease(&self, bridge: &BridgePlan, id: &ContainerId) -> Result<Ipv4Addr> {
        let held = "SELECT address FROM addresses WHERE container = ?1 AND network = ?2";
        let mut statement = self.db.conn().prepare_cached(held)?;
        if let Some(address) =
            statement.query_row([id.as_str(), DEFAULT], |r| r.get::<_, u32>(0)).optional()?
        {
            return Ok(address.into());
        }
        self.db.write(|tx| {
            let last: Option<String> = store::setting(&self.db, "last-address")?;
            let last = last.and_then(|a| a.parse().ok());
            let mut taken =
                tx.prepare_cached("SELECT 1 FROM addresses WHERE network = ?1 AND address = ?2")?;
            let taken = std::cell::RefCell::new(&mut taken);
            let used =
                |a: Ipv4Addr| taken.borrow_mut().exists(params![DEFAULT, u32::from(a)]).unwrap_or(true);
            let address =
                net::next_free_v4(bridge.gateway4, bridge.prefix4, last, &used).ok_or_else(|| {
                    EngineError::Exhausted(format!(
                        "no free address is left in {}/{}: remove containers that are not needed",
                        bridge.gateway4, bridge.prefix4
                    ))
                })?;
            tx.prepare_cached("INSERT INTO addresses VALUES (?1, ?2, ?3)")?.execute(params![
                DEFAULT,
                u32::from(address),
                id.as_str()
            ])?;
            tx.prepare_cached("INSERT OR REPLACE INTO settings VALUES ('last-address', ?1)")?
                .execute([address.to_string()])?;
            Ok(address)
        })
    }
}

fn has_ipv6() -> bool {
    std::fs::read("/proc/sys/net/ipv6/conf/all/disable_ipv6").is_ok_and(|v| v.first() == Some(&b'0'))
}

fn parse_mac(text: &str) -> Result<[u8; 6]> {
    let wrong = || invalid(format!("invalid MAC address {text:?}"));
    let mut out = [0; 6];
    let mut parts = text.split(':');
    for byte in &mut out {
        let part = parts.next().filter(|p| p.len() == 2).ok_or_else(wrong)?;
        *byte = u8::from_str_radix(part, 16).map_err(|_| wrong())?;
    }
    if parts.next().is_some() || out[0] & 1 != 0 {
        return Err(wrong());
    }
    Ok(out)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_and_addresses_are_read() {
        assert_eq!(parse_port("80").unwrap(), (80, Protocol::Tcp));
        assert_eq!(parse_port("53/udp").unwrap(), (53, Protocol::Udp));
        for bad in ["", "0", "65536/tcp", "80/xyz", "a/tcp", "80/"] {
            assert!(parse_port(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_mac("02:42:ac:11:00:02").unwrap(), [2, 0x42, 0xac, 0x11, 0, 2]);
        for bad in ["", "02:42", "03:42:ac:11:00:02", "02:42:ac:11:00:02:01", "zz:42:ac:11:00:02"] {
            assert!(parse_mac(bad).is_err(), "{bad}");
        }
    }
}
