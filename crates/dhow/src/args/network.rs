//! `--network`, `--add-host`, `--dns`, `--mac-address` and their kin; `network create`'s subnets.

use std::collections::HashMap;
use std::net::IpAddr;
use types::docker::{EndpointIpamConfig, EndpointSettings, IpamConfig};

/// One `--network`: a name, or `name=…,ip=…,alias=…` in Docker's long form.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct NetworkFlag {
    /// `bridge`, `none`, `host`, `container:NAME` or the name of a network.
    pub name: String,
    /// Further names in that network.
    pub aliases: Vec<String>,
    /// IPv4 address.
    pub ip: Option<String>,
    /// IPv6 address.
    pub ip6: Option<String>,
    /// MAC address.
    pub mac: Option<String>,
    /// Which network has the default route: the highest.
    pub priority: Option<i64>,
    /// Docker's `driver-opt`, and Dhow's own `host-access`, `ingress-rate`, `egress-rate`.
    pub options: HashMap<String, String>,
}

/// Reads one `--network`. The name may also stand first, without `name=`.
pub fn parse_network(s: &str) -> Result<NetworkFlag, String> {
    if !s.contains(['=', ',']) {
        return Ok(NetworkFlag { name: s.to_owned(), ..NetworkFlag::default() });
    }
    let mut n = NetworkFlag::default();
    for (place, field) in s.split(',').enumerate() {
        let Some((key, value)) = field.split_once('=') else {
            match (place, field) {
                (0, name) if !name.is_empty() => n.name = name.into(),
                (_, "host-access") => drop(n.options.insert(engine::HOST_ACCESS.into(), "true".into())),
                _ => return Err(format!("invalid field {field} in --network {s}")),
            }
            continue;
        };
        match key.to_ascii_lowercase().as_str() {
            "name" => n.name = value.into(),
            "alias" => n.aliases.push(value.into()),
            "ip" => n.ip = Some(address(value)?),
            "ip6" => n.ip6 = Some(address(value)?),
            "mac-address" | "mac" => n.mac = Some(mac(value)?),
            "gw-priority" => {
                n.priority = Some(value.parse().map_err(|_| format!("invalid gw-priority ({value})"))?);
            }
            "driver-opt" => {
                let (key, value) = value
                    .split_once('=')
                    .ok_or_else(|| format!("invalid key value pair format in driver options: {value}"))?;
                n.options.insert(key.into(), value.into());
            }
            key @ ("host-access" | "ingress-rate" | "egress-rate") => {
                n.options.insert(format!("dhow.{key}"), value.into());
            }
            _ => return Err(format!("invalid field key {key} in --network {s}")),
        }
    }
    if n.name.is_empty() {
        return Err(format!("--network {s} names no network: add name=…"));
    }
    Ok(n)
}

impl NetworkFlag {
    /// Whether it says nothing but the name.
    pub fn is_bare(&self) -> bool {
        *self == Self { name: self.name.clone(), ..Self::default() }
    }

    /// Whether it stands for no network of the engine's.
    pub fn is_special(&self) -> bool {
        matches!(self.name.as_str(), "host" | "none") || self.name.starts_with("container:")
    }

    /// In Docker's shape.
    pub fn endpoint(self) -> EndpointSettings {
        EndpointSettings {
            ipam_config: (self.ip.is_some() || self.ip6.is_some()).then(|| EndpointIpamConfig {
                ipv4_address: self.ip,
                ipv6_address: self.ip6,
                ..EndpointIpamConfig::default()
            }),
            mac_address: self.mac,
            aliases: (!self.aliases.is_empty()).then_some(self.aliases),
            gw_priority: self.priority,
            driver_opts: (!self.options.is_empty()).then_some(self.options),
            ..EndpointSettings::default()
        }
    }
}

/// Sorts gateways, ranges and auxiliary addresses to the subnets that they lie in, as Docker's client does.
pub fn ipam(
    subnets: &[String],
    gateways: &[String],
    ranges: &[String],
    auxiliary: &[String],
) -> Result<Vec<IpamConfig>, String> {
    if subnets.is_empty() && !(gateways.is_empty() && ranges.is_empty() && auxiliary.is_empty()) {
        return Err("every ip-range or gateway must have a corresponding subnet".into());
    }
    let mut configs: Vec<IpamConfig> =
        subnets.iter().map(|s| IpamConfig { subnet: Some(s.clone()), ..IpamConfig::default() }).collect();
    let holder = |configs: &[IpamConfig], what: &str, text: &str| -> Result<usize, String> {
        let bare = text.split('/').next().unwrap_or(text);
        let address: IpAddr = bare.parse().map_err(|_| format!("invalid {what}: {text}"))?;
        let holds = |c: &IpamConfig| c.subnet.as_deref().is_some_and(|s| within(s, address));
        configs.iter().position(holds).ok_or_else(|| format!("no matching subnet for {what} {text}"))
    };
    for text in gateways {
        let place = holder(&configs, "gateway", text)?;
        let config = &mut configs[place];
        if config.gateway.replace(text.clone()).is_some() {
            return Err(format!("cannot configure multiple gateways on the subnet of {text}"));
        }
    }
    for text in ranges {
        let place = holder(&configs, "range", text)?;
        let config = &mut configs[place];
        if config.ip_range.replace(text.clone()).is_some() {
            return Err(format!("cannot configure multiple ranges on the subnet of {text}"));
        }
    }
    for text in auxiliary {
        let (name, addr) = text
            .split_once('=')
            .filter(|(name, _)| !name.is_empty())
            .ok_or_else(|| format!("invalid auxiliary address {text:?}: for example router=10.0.0.2"))?;
        let place = holder(&configs, "aux-address", addr)?;
        let config = &mut configs[place];
        config.auxiliary_addresses.get_or_insert_default().insert(name.into(), addr.into());
    }
    Ok(configs)
}

/// Whether an address lies in a subnet; what is no subnet holds nothing, and is told by the engine.
fn within(subnet: &str, address: IpAddr) -> bool {
    let Some((net, prefix)) = subnet.split_once('/') else { return false };
    let (Ok(net), Ok(prefix)) = (net.parse::<IpAddr>(), prefix.parse::<u32>()) else { return false };
    match (net, address) {
        (IpAddr::V4(n), IpAddr::V4(a)) => {
            (u32::from(n) ^ u32::from(a)).checked_shr(32u32.saturating_sub(prefix)).unwrap_or(0) == 0
        }
        (IpAddr::V6(n), IpAddr::V6(a)) => {
            (u128::from(n) ^ u128::from(a)).checked_shr(128u32.saturating_sub(prefix)).unwrap_or(0) == 0
        }
        _ => false,
    }
}

/// An IP address, as it will be printed.
pub fn address(s: &str) -> Result<String, String> {
    s.parse::<IpAddr>().map(|a| a.to_string()).map_err(|_| format!("{s} is not an ip address"))
}

/// A MAC address of six bytes.
pub fn mac(s: &str) -> Result<String, String> {
    let parts: Vec<&str> = s.split([':', '-']).collect();
    let byte = |p: &&str| p.len() == 2 && p.bytes().all(|b| b.is_ascii_hexdigit());
    if parts.len() == 6 && parts.iter().all(byte) {
        Ok(parts.join(":").to_ascii_lowercase())
    } else {
        Err(format!("{s} is not a valid mac address"))
    }
}

/// `--add-host name:address` or `name=address`; `host-gateway` stands for the host. Answers `name:address`.
pub fn add_host(s: &str) -> Result<String, String> {
    let split = s.split_once('=').or_else(|| s.split_once(':'));
    let (name, addr) = match split {
        Some((n, a)) if !n.is_empty() => (n, a),
        _ => return Err(format!("bad format for add-host: {s:?}")),
    };
    let bare = addr.strip_prefix('[').and_then(|a| a.strip_suffix(']')).unwrap_or(addr);
    if bare != "host-gateway" && bare.parse::<IpAddr>().is_err() {
        return Err(format!("invalid IP address in add-host: {addr:?}"));
    }
    Ok(format!("{name}:{bare}"))
}

/// `--dns-search`; a single dot means none at all.
pub fn dns_search(s: &str) -> Result<String, String> {
    let ok = s == "."
        || (!s.is_empty()
            && s.len() <= 255
            && s.trim_matches('.').split('.').all(|l| {
                (1..=63).contains(&l.len())
                    && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
            }));
    if ok { Ok(s.to_owned()) } else { Err(format!("{s} is not a valid domain")) }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn hosts_and_networks() {
        assert_eq!(add_host("a:1.2.3.4").unwrap(), "a:1.2.3.4");
        assert_eq!(add_host("a=::1").unwrap(), "a:::1");
        assert_eq!(add_host("a:[::1]").unwrap(), "a:::1");
        assert_eq!(add_host("a:host-gateway").unwrap(), "a:host-gateway");
        for bad in ["a", ":1.2.3.4", "a:", "a:x"] {
            assert!(add_host(bad).is_err(), "{bad}");
        }
        let n = parse_network("name=x,alias=y,ip=1.2.3.4").unwrap();
        assert_eq!((n.name.as_str(), n.ip.as_deref()), ("x", Some("1.2.3.4")));
        assert_eq!(parse_network("container:a").unwrap().name, "container:a");
        let n = parse_network("lan,host-access,gw-priority=7,ingress-rate=1mbit").unwrap();
        assert_eq!((n.name.as_str(), n.priority), ("lan", Some(7)));
        assert_eq!(n.options["dhow.host-access"], "true");
        assert_eq!(n.options["dhow.ingress-rate"], "1mbit");
        for bad in
            ["alias=y", "a,b", "a,ip=x", ",ip=1.2.3.4", "a,gw-priority=x", "a,colour=red", "a,driver-opt=x"]
        {
            assert!(parse_network(bad).is_err(), "{bad}");
        }
        assert_eq!(mac("92-D0-c6-0a-29-33").unwrap(), "92:d0:c6:0a:29:33");
        assert!(mac("92:d0").is_err());
        assert!(dns_search("example.com").is_ok() && dns_search(".").is_ok());
        assert!(dns_search("a b").is_err());
    }

    #[test]
    fn addresses_find_their_subnets() {
        let list = |l: &[&str]| l.iter().map(|s| (*s).to_owned()).collect::<Vec<_>>();
        let configs = ipam(
            &list(&["10.1.0.0/16", "fd00:1::/64"]),
            &list(&["fd00:1::9", "10.1.0.9"]),
            &list(&["10.1.3.0/24"]),
            &list(&["router=10.1.0.2"]),
        )
        .unwrap();
        assert_eq!(configs[0].gateway.as_deref(), Some("10.1.0.9"));
        assert_eq!(configs[0].ip_range.as_deref(), Some("10.1.3.0/24"));
        assert_eq!(configs[0].auxiliary_addresses.as_ref().unwrap()["router"], "10.1.0.2");
        assert_eq!(configs[1].gateway.as_deref(), Some("fd00:1::9"));
        let one = list(&["10.1.0.0/16"]);
        assert!(ipam(&[], &list(&["10.1.0.1"]), &[], &[]).is_err());
        assert!(ipam(&one, &list(&["10.2.0.1"]), &[], &[]).unwrap_err().contains("no matching subnet"));
        assert!(ipam(&one, &list(&["10.1.0.1", "10.1.0.2"]), &[], &[]).is_err());
        assert!(ipam(&one, &[], &[], &list(&["10.1.0.1"])).is_err());
    }
}
