//! Which addresses a network may have that a restricted client makes: the host reaches what lies in them by that network from
//! then on. So they are from private space, and none of the host's name servers is among them.

use std::net::IpAddr;

/// Private space: RFC 1918, and RFC 4193.
const PRIVATE: [(IpAddr, u8); 4] = [
    (IpAddr::V4(std::net::Ipv4Addr::new(10, 0, 0, 0)), 8),
    (IpAddr::V4(std::net::Ipv4Addr::new(172, 16, 0, 0)), 12),
    (IpAddr::V4(std::net::Ipv4Addr::new(192, 168, 0, 0)), 16),
    (IpAddr::V6(std::net::Ipv6Addr::new(0xfc00, 0, 0, 0, 0, 0, 0, 0)), 7),
];

/// Whether a network may have this subnet, or why not. What is none is the engine's to tell.
pub fn admit(subnet: &str) -> Result<(), String> {
    let servers = std::fs::read_to_string("/etc/resolv.conf").unwrap_or_default();
    let servers =
        servers.lines().filter_map(|line| line.trim().strip_prefix("nameserver")?.trim().parse().ok());
    check(subnet, servers)
}

fn check(subnet: &str, mut servers: impl Iterator<Item = IpAddr>) -> Result<(), String> {
    let parsed = subnet.split_once('/').and_then(|(ip, len)| Some((ip.parse().ok()?, len.parse().ok()?)));
    let Some((ip, len)) = parsed else { return Ok(()) };
    if !PRIVATE.iter().any(|(space, least)| len >= *least && contains((*space, *least), ip)) {
        return Err(format!("the subnet {subnet} is not from private space"));
    }
    match servers.find(|server| contains((ip, len), *server)) {
        Some(server) => Err(format!("in the subnet {subnet} is {server}, a name server of this host")),
        None => Ok(()),
    }
}

/// Whether an address is in a subnet.
fn contains((network, len): (IpAddr, u8), ip: IpAddr) -> bool {
    let (bits, network, ip) = match (network, ip) {
        (IpAddr::V4(a), IpAddr::V4(b)) => (32, u128::from(a.to_bits()), u128::from(b.to_bits())),
        (IpAddr::V6(a), IpAddr::V6(b)) => (128, a.to_bits(), b.to_bits()),
        _ => return false,
    };
    let rest = u32::from(bits - len.min(bits));
    network.checked_shr(rest) == ip.checked_shr(rest)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_of_others_are_not_taken() {
        let servers = ["10.9.0.53".parse().unwrap(), "fd00::53".parse().unwrap()];
        let of = |subnet: &str| check(subnet, servers.into_iter()).is_ok();
        for subnet in
            ["10.8.0.0/16", "172.31.4.0/24", "192.168.7.0/28", "fd12:3456::/48", "nonsense", "1.1.1.1"]
        {
            assert!(of(subnet), "{subnet}");
        }
        for subnet in [
            "1.1.1.0/24",
            "8.0.0.0/8",
            "10.0.0.0/7",
            "172.0.0.0/8",
            "10.9.0.0/16",
            "2001:db8::/64",
            "fd00::/64",
            "0.0.0.0/0",
            "::/0",
            "169.254.0.0/16",
            "10.9.0.53/32",
        ] {
            assert!(!of(subnet), "{subnet}");
        }
    }
}
