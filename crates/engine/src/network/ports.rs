//! The published ports of a container: `-p` and `-P`, as its configuration has them, read and decided as far as that can be
//! before the host is asked.

use crate::spec::invalid;
use crate::store::Container;
use crate::{EngineError, Result};
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use types::{PortBinding, Protocol};

/// The most ports that one container may publish.
const MAX_PORTS: usize = 65_536;

/// The published ports of a container.
pub(super) fn ports(container: &Container) -> Result<Vec<PortBinding>> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ports_are_read() {
        assert_eq!(parse_port("80").unwrap(), (80, Protocol::Tcp));
        assert_eq!(parse_port("53/udp").unwrap(), (53, Protocol::Udp));
        for bad in ["", "0", "65536/tcp", "80/xyz", "a/tcp", "80/"] {
            assert!(parse_port(bad).is_err(), "{bad}");
        }
    }
}
