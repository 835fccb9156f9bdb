//! `--egress none | all | HOST[:PORT][/tcp|udp],CIDR[:PORT],…`: read, not carried out.

use crate::spec::invalid;
use crate::{Result, network::cidr::Cidr};
use std::net::IpAddr;
use types::{Egress, EgressRule, EgressTo, Protocol};

/// The annotation that holds `--egress`, for which Docker's API has no field.
pub const EGRESS: &str = "dhow.egress";
/// The most destinations of one policy: each costs the kernel an element, and each name a look at every answer.
const MOST_RULES: usize = 1024;

/// Reads an egress policy.
pub fn parse_egress(text: &str) -> Result<Egress> {
    let words: Vec<&str> = text.split(',').map(str::trim).collect();
    match words[..] {
        ["all"] => return Ok(Egress::All),
        ["none"] => return Ok(Egress::Only(Vec::new())),
        _ if words.len() > MOST_RULES => {
            return Err(invalid(format!("invalid --egress: more than {MOST_RULES} destinations")));
        }
        _ => {}
    }
    let rules =
        words.iter().map(|word| rule(word).map_err(|why| invalid(format!("invalid --egress: {why}"))));
    Ok(Egress::Only(rules.collect::<Result<_>>()?))
}

fn rule(word: &str) -> Result<EgressRule, String> {
    match word {
        "" => return Err("a destination is empty: for example example.org:443,10.0.0.0/8".into()),
        "all" | "none" => return Err(format!("{word:?} stands alone, not in a list")),
        _ => {}
    }
    let (rest, protocol) = protocol(word)?;
    let (to, port) = split(rest)
        .ok_or_else(|| format!("{word:?}: IPv6 needs brackets before a port: [2001:db8::1]:443"))?;
    Ok(EgressRule { to: destination(to)?, port: port.map(|p| number(word, p)).transpose()?, protocol })
}

/// Splits off `/tcp` or `/udp`.
fn protocol(word: &str) -> Result<(&str, Option<Protocol>), String> {
    match word.rsplit_once('/') {
        Some((rest, "tcp")) => Ok((rest, Some(Protocol::Tcp))),
        Some((rest, "udp")) => Ok((rest, Some(Protocol::Udp))),
        Some((_, other)) if !other.starts_with(|c: char| c.is_ascii_digit()) => {
            Err(format!("{word:?}: unknown protocol {other:?}: tcp and udp are known"))
        }
        _ => Ok((word, None)),
    }
}

/// Splits off the port. In IPv6 it stands behind brackets.
fn split(word: &str) -> Option<(&str, Option<&str>)> {
    if let Some(inner) = word.strip_prefix('[') {
        let (address, rest) = inner.split_once(']')?;
        return match rest.strip_prefix(':') {
            Some(port) => Some((address, Some(port))),
            None => rest.is_empty().then_some((address, None)),
        };
    }
    match word.split_once(':') {
        Some((_, rest)) if rest.contains(':') => Some((word, None)),
        Some((host, port)) => Some((host, Some(port))),
        None => Some((word, None)),
    }
}

fn number(word: &str, port: &str) -> Result<u16, String> {
    let digits = !port.is_empty() && port.bytes().all(|b| b.is_ascii_digit());
    match port.parse() {
        Ok(number) if digits && number > 0 => Ok(number),
        _ => Err(format!("{word:?}: invalid port {port:?}: one number from 1 to 65535")),
    }
}

fn destination(text: &str) -> Result<EgressTo, String> {
    if text.contains('/') {
        let subnet = Cidr::parse(text)?;
        return Ok(EgressTo::Subnet(subnet.address, subnet.prefix));
    }
    if let Ok(address) = text.parse::<IpAddr>() {
        return Ok(EgressTo::Subnet(address, if address.is_ipv4() { 32 } else { 128 }));
    }
    let name = text.strip_suffix('.').unwrap_or(text).to_ascii_lowercase();
    let labels = name.strip_prefix("*.").unwrap_or(&name);
    let label = |l: &str| {
        (1..=63).contains(&l.len())
            && l.bytes().all(|b| b.is_ascii_alphanumeric() || matches!(b, b'-' | b'_'))
    };
    // A last label of digits alone is an address that went wrong.
    let numeric = labels.rsplit('.').next().is_some_and(|l| l.bytes().all(|b| b.is_ascii_digit()));
    if name.len() > 253 || numeric || !labels.split('.').all(label) {
        return Err(format!("{text:?} is neither an address, a subnet nor a name"));
    }
    Ok(EgressTo::Name(name))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn policies_are_read() {
        assert_eq!(parse_egress("all").unwrap(), Egress::All);
        assert_eq!(parse_egress("none").unwrap(), Egress::Only(vec![]));
        let Egress::Only(rules) = parse_egress(
            "Example.org:443/tcp, *.deb.debian.org,10.0.0.0/8:53/udp,192.0.2.7,2001:db8::/32,[2001:db8::1]:80,db",
        )
        .unwrap() else {
            panic!()
        };
        let name = |n: &str| EgressTo::Name(n.into());
        let of = |to, port, protocol| EgressRule { to, port, protocol };
        assert_eq!(
            rules,
            [
                of(name("example.org"), Some(443), Some(Protocol::Tcp)),
                of(name("*.deb.debian.org"), None, None),
                of(EgressTo::Subnet([10, 0, 0, 0].into(), 8), Some(53), Some(Protocol::Udp)),
                of(EgressTo::Subnet([192, 0, 2, 7].into(), 32), None, None),
                of(EgressTo::Subnet("2001:db8::".parse().unwrap(), 32), None, None),
                of(EgressTo::Subnet("2001:db8::1".parse().unwrap(), 128), Some(80), None),
                of(name("db"), None, None),
            ]
        );
        for bad in [
            "",
            ",",
            "a,,b",
            "a,none",
            "all,a",
            "a:0",
            "a:65536",
            "a:+1",
            "a:1-2",
            "a:",
            "a:1/sctp",
            "10.0.0.1/8",
            "10.0.0",
            "1.2.3.4.5",
            "*",
            "a.*.b",
            "-x y",
            "[::1",
            "[::1]80",
            "fd00::1:x",
            "a..b",
            "a/24",
        ] {
            let e = parse_egress(bad).err().unwrap_or_else(|| panic!("{bad}")).to_string();
            assert!(e.contains("egress"), "{e}");
        }
    }
}
