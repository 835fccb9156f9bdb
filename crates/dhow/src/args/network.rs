//! `--network`, `--add-host`, `--dns`, `--mac-address` and their kin.

use std::net::IpAddr;

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
}

/// Reads one `--network`.
pub fn parse_network(s: &str) -> Result<NetworkFlag, String> {
    if !s.contains('=') {
        return Ok(NetworkFlag { name: s.to_owned(), ..NetworkFlag::default() });
    }
    let mut n = NetworkFlag::default();
    for field in s.split(',') {
        let (key, value) =
            field.split_once('=').ok_or_else(|| format!("invalid field {field} in --network {s}"))?;
        match key.to_ascii_lowercase().as_str() {
            "name" => n.name = value.into(),
            "alias" => n.aliases.push(value.into()),
            "ip" => n.ip = Some(address(value)?),
            "ip6" => n.ip6 = Some(address(value)?),
            "mac-address" => n.mac = Some(mac(value)?),
            _ => return Err(format!("invalid field key {key} in --network {s}")),
        }
    }
    if n.name.is_empty() {
        return Err(format!("--network {s} names no network: add name=…"));
    }
    Ok(n)
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
        assert!(parse_network("alias=y").is_err());
        assert_eq!(mac("92-D0-c6-0a-29-33").unwrap(), "92:d0:c6:0a:29:33");
        assert!(mac("92:d0").is_err());
        assert!(dns_search("example.com").is_ok() && dns_search(".").is_ok());
        assert!(dns_search("a b").is_err());
    }
}
