//! `-p [ip:][host[-range]:]container[-range][/proto]` and `--expose`, by the rules of Docker's `go-connections/nat`.

use std::collections::HashMap;
use std::net::IpAddr;
use types::docker;

/// One published port: container port with protocol, and where on the host.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PortSpec {
    /// `80/tcp`.
    pub container: String,
    /// Empty for all addresses.
    pub host_ip: String,
    /// Empty for one that is free; `8000-8010` for one of these.
    pub host_port: String,
}

/// Reads one `-p`, which may stand for many ports.
pub fn parse_publish(s: &str) -> Result<Vec<PortSpec>, String> {
    let (rest, proto) = split_protocol(s)?;
    let (ip, host, container) = split_parts(rest)?;
    let ip = match ip {
        "" => String::new(),
        ip => {
            let bare = ip.strip_prefix('[').and_then(|i| i.strip_suffix(']')).unwrap_or(ip);
            bare.parse::<IpAddr>().map_err(|_| format!("invalid IP address: {ip}"))?;
            bare.to_owned()
        }
    };
    if container.is_empty() {
        return Err(format!("no port specified: {s}<empty>"));
    }
    let (first, last) = range(container).ok_or_else(|| format!("invalid containerPort: {container}"))?;
    let spec = |port: u16, host_port: String| PortSpec {
        container: format!("{port}/{proto}"),
        host_ip: ip.clone(),
        host_port,
    };
    if host.is_empty() {
        return Ok((first..=last).map(|p| spec(p, String::new())).collect());
    }
    let (host_first, host_last) = range(host).ok_or_else(|| format!("invalid hostPort: {host}"))?;
    if host_last - host_first == last - first {
        return Ok((first..=last).map(|p| spec(p, (host_first + (p - first)).to_string())).collect());
    }
    if first != last {
        return Err(format!("invalid ranges specified for container and host ports: {container} and {host}"));
    }
    // One port inside, a range outside: any free one of the range.
    Ok(vec![spec(first, format!("{host_first}-{host_last}"))])
}

/// Reads one `--expose`: `80`, `80-90/udp`.
pub fn parse_expose(s: &str) -> Result<Vec<String>, String> {
    if s.contains(':') {
        return Err(format!("invalid port format for --expose: {s}"));
    }
    let (ports, proto) = split_protocol(s)?;
    let (first, last) = range(ports).ok_or_else(|| format!("invalid range format for --expose: {s}"))?;
    Ok((first..=last).map(|p| format!("{p}/{proto}")).collect())
}

/// The map that `HostConfig` has.
pub fn port_map(specs: &[PortSpec]) -> docker::PortMap {
    let mut map: docker::PortMap = HashMap::new();
    for s in specs {
        let binding =
            docker::PortBinding { host_ip: Some(s.host_ip.clone()), host_port: Some(s.host_port.clone()) };
        map.entry(s.container.clone()).or_default().get_or_insert_with(Vec::new).push(binding);
    }
    map
}

fn split_protocol(s: &str) -> Result<(&str, String), String> {
    let (rest, proto) = s.split_once('/').unwrap_or((s, "tcp"));
    let proto = if proto.is_empty() { "tcp" } else { proto }.to_ascii_lowercase();
    match proto.as_str() {
        "tcp" | "udp" => Ok((rest, proto)),
        "sctp" => Err(format!("invalid port {s}: publishing SCTP is not supported, only tcp and udp are")),
        other => Err(format!("invalid proto: {other}")),
    }
}

fn split_parts(s: &str) -> Result<(&str, &str, &str), String> {
    if s.starts_with('[') {
        let end = s.find(']').ok_or_else(|| format!("invalid IP address: {s}"))?;
        let rest = s[end + 1..].strip_prefix(':').ok_or_else(|| format!("invalid port format: {s}"))?;
        let (host, container) = rest.rsplit_once(':').ok_or_else(|| format!("invalid port format: {s}"))?;
        return Ok((&s[..=end], host, container));
    }
    let Some((rest, container)) = s.rsplit_once(':') else { return Ok(("", "", s)) };
    Ok(match rest.rsplit_once(':') {
        None => ("", rest, container),
        Some((ip, host)) => (ip, host, container),
    })
}

fn range(s: &str) -> Option<(u16, u16)> {
    let number = |n: &str| n.bytes().all(|b| b.is_ascii_digit()).then(|| n.parse().ok()).flatten();
    let (first, last) = s.split_once('-').unwrap_or((s, s));
    let (first, last): (u16, u16) = (number(first)?, number(last)?);
    (first <= last).then_some((first, last))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn three(s: &str) -> Vec<(String, String, String)> {
        parse_publish(s).unwrap().into_iter().map(|p| (p.host_ip, p.host_port, p.container)).collect()
    }

    fn one(ip: &str, host: &str, container: &str) -> Vec<(String, String, String)> {
        vec![(ip.into(), host.into(), container.into())]
    }

    #[test]
    fn forms() {
        assert_eq!(three("80"), one("", "", "80/tcp"));
        assert_eq!(three("8080:80"), one("", "8080", "80/tcp"));
        assert_eq!(three("8080:80/udp"), one("", "8080", "80/udp"));
        assert_eq!(three("127.0.0.1:8080:80"), one("127.0.0.1", "8080", "80/tcp"));
        assert_eq!(three("127.0.0.1::80"), one("127.0.0.1", "", "80/tcp"));
        assert_eq!(three("[::1]:8080:80"), one("::1", "8080", "80/tcp"));
        assert_eq!(three("::1:8080:80"), one("::1", "8080", "80/tcp"));
        assert_eq!(three("8000-8010:80"), one("", "8000-8010", "80/tcp"));
        assert_eq!(three("1-2:3-4").len(), 2);
        assert_eq!(three("1-2:3-4")[1], ("".into(), "2".into(), "4/tcp".into()));
    }

    #[test]
    fn wrong_forms() {
        for bad in [
            "",
            ":",
            "80:",
            "x",
            "80:x",
            "1.2.3:80:80",
            "1-3:1-2",
            "2-1",
            "80/xyz",
            "70000",
            "[::1]80",
            "-80",
        ] {
            assert!(parse_publish(bad).is_err(), "{bad}");
        }
        for bad in ["", "1:2", "x", "5-3"] {
            assert!(parse_expose(bad).is_err(), "{bad}");
        }
        assert_eq!(parse_expose("80-81/udp").unwrap(), ["80/udp", "81/udp"]);
    }

    proptest! {
        #[test]
        fn nothing_panics(s in "\\PC{0,24}") {
            let _ = parse_publish(&s);
            let _ = parse_expose(&s);
        }

        #[test]
        fn what_was_asked_comes_back(host: u16, inside: u16) {
            let specs = parse_publish(&format!("{host}:{inside}")).unwrap();
            prop_assert_eq!(&specs[0].host_port, &host.to_string());
            prop_assert_eq!(&specs[0].container, &format!("{inside}/tcp"));
        }
    }
}
