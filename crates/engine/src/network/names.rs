//! The files by which a workload finds names, `/etc/hosts` and `/etc/resolv.conf`: what the user said about them,
//! read and checked.

use crate::Result;
use crate::spec::invalid;
use crate::store::Container;
use std::net::IpAddr;
use types::NetworkPlan;

/// Builds `/etc/hosts`.
pub(crate) fn hosts(container: &Container, hostname: &str, network: &NetworkPlan) -> Result<String> {
    let attachments = network.attachments();
    let addresses: Vec<IpAddr> = attachments
        .iter()
        .flat_map(|a| std::iter::once(a.ipv4.into()).chain(a.ipv6.map(Into::into)))
        .collect();
    let gateway = attachments.first().map(|a| a.bridge.gateway4.into());
    let extra = container
        .host
        .extra_hosts
        .iter()
        .flatten()
        .map(|text| extra_host(text, gateway))
        .collect::<Result<Vec<_>>>()?;
    let own = match network {
        NetworkPlan::Host => Some(std::fs::read_to_string("/etc/hosts").unwrap_or_default()),
        _ => None,
    };
    Ok(net::hosts_file(&net::Hosts {
        hostname,
        domainname: container.config.domainname.as_deref().unwrap_or(""),
        addresses: &addresses,
        extra: &extra,
        host: own.as_deref(),
    }))
}

/// Reads `name:address` or `name=address`.
fn extra_host(text: &str, gateway: Option<IpAddr>) -> Result<(String, IpAddr)> {
    let wrong = || invalid(format!("bad format for add-host: {text:?}, for example name:10.0.0.1"));
    let (name, address) = text.split_once([':', '=']).ok_or_else(wrong)?;
    let address = match address.trim_matches(['[', ']']) {
        "host-gateway" => {
            gateway.ok_or_else(|| invalid(format!("{text}: host-gateway needs the bridge network")))?
        }
        address => address.parse().map_err(|_| wrong())?,
    };
    if name.is_empty() || name.contains(char::is_whitespace) {
        return Err(wrong());
    }
    Ok((name.to_owned(), address))
}

/// The servers that `--dns` names.
pub(crate) fn servers(container: &Container) -> Result<Vec<IpAddr>> {
    let list = container.host.dns.iter().flatten();
    list.map(|s| s.parse().map_err(|_| invalid(format!("{s} is not an IP address of a DNS server"))))
        .collect()
}

/// Builds `/etc/resolv.conf`.
pub(crate) fn resolv_conf(container: &Container, network: &NetworkPlan) -> Result<String> {
    let host_network = matches!(network, NetworkPlan::Host);
    let host = &container.host;
    let asked = servers(container)?;
    let named = network.attachments().iter().any(net::dns::is_named);
    let servers: Vec<String> = match named {
        true => vec![net::dns::ADDRESS.to_string()],
        false => asked.iter().map(IpAddr::to_string).collect(),
    };
    Ok(net::resolv_conf(
        &net::host_resolv_conf(host_network),
        &net::Resolv {
            servers: &servers,
            search: host.dns_search.as_deref().unwrap_or_default(),
            options: host.dns_options.as_deref().unwrap_or_default(),
            host_network,
            named,
            ipv6: network.attachments().iter().any(|a| a.ipv6.is_some()),
        },
    ))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn extra_hosts_are_read() {
        let gateway = Some([10, 0, 0, 1].into());
        assert_eq!(extra_host("a:::1", None).unwrap().1, IpAddr::from([0, 0, 0, 0, 0, 0, 0, 1u16]));
        assert_eq!(Some(extra_host("gw=host-gateway", gateway).unwrap().1), gateway);
        for bad in ["", "a", "a:b", ":1.2.3.4", "a b:1.2.3.4", "gw:host-gateway"] {
            assert!(extra_host(bad, None).is_err(), "{bad}");
        }
    }
}
