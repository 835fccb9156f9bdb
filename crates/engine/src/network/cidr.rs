//! Subnets as users write them: `10.1.0.0/24`, `fd00:1::/64`.

use serde::{Deserialize, Serialize};
use std::fmt;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// A subnet: an address whose bits behind the prefix are zero.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Cidr {
    pub address: IpAddr,
    pub prefix: u8,
}

impl Cidr {
    /// Reads `ADDRESS/PREFIX`; the failure is a sentence.
    pub fn parse(text: &str) -> Result<Self, String> {
        let wrong = || format!("invalid subnet {text:?}: for example 10.1.0.0/24 or fd00:1::/64");
        let (address, prefix) = text.split_once('/').ok_or_else(wrong)?;
        let address: IpAddr = address.parse().map_err(|_| wrong())?;
        // No sign, no leading zeros: what u8 alone would take.
        let prefix: u8 = prefix.parse().ok().filter(|p: &u8| p.to_string() == prefix).ok_or_else(wrong)?;
        if prefix > width(address) {
            return Err(wrong());
        }
        let whole = Self::around(address, prefix);
        if whole.address != address {
            return Err(format!("invalid subnet {text}: it should be {whole}"));
        }
        Ok(whole)
    }

    /// The subnet of this size that an address lies in.
    pub fn around(address: IpAddr, prefix: u8) -> Self {
        let host = host_mask(address, prefix);
        Self { address: from_number(number(address) & !host, address.is_ipv4()), prefix }
    }

    /// Whether an address lies in it.
    pub fn contains(self, address: IpAddr) -> bool {
        self.address.is_ipv4() == address.is_ipv4() && Self::around(address, self.prefix) == self
    }

    /// Whether all of another one lies in it.
    pub fn covers(self, other: Self) -> bool {
        other.prefix >= self.prefix && self.contains(other.address)
    }

    /// Whether they have an address in common.
    pub fn overlaps(self, other: Self) -> bool {
        self.covers(other) || other.covers(self)
    }

    /// Its first and last address, as numbers.
    pub fn span(self) -> (u128, u128) {
        let first = number(self.address);
        (first, first | host_mask(self.address, self.prefix))
    }

    /// Its first and last address that an interface may have: the first of all names the subnet, and the last is
    /// IPv4's broadcast.
    pub fn hosts(self) -> (u128, u128) {
        let (first, last) = self.span();
        (first.saturating_add(1), if self.address.is_ipv4() { last.saturating_sub(1) } else { last })
    }

    /// Whether no interface can have an address in it: loopback, multicast, link-local, unspecified.
    pub fn is_special(self) -> bool {
        let special = |a: IpAddr| match a {
            IpAddr::V4(a) => {
                a.is_loopback()
                    || a.is_multicast()
                    || a.is_link_local()
                    || a.octets()[0] == 0
                    || a.is_broadcast()
            }
            IpAddr::V6(a) => {
                let unspecified = a.segments()[..4] == [0; 4];
                unspecified || a.is_multicast() || a.segments()[0] & 0xffc0 == 0xfe80
            }
        };
        let (first, last) = self.span();
        special(self.address)
            || special(from_number(first, self.address.is_ipv4()))
            || special(from_number(last, self.address.is_ipv4()))
    }
}

impl fmt::Display for Cidr {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}", self.address, self.prefix)
    }
}

/// Bits of an address.
fn width(address: IpAddr) -> u8 {
    if address.is_ipv4() { 32 } else { 128 }
}

fn host_mask(address: IpAddr, prefix: u8) -> u128 {
    let bits = width(address).saturating_sub(prefix);
    1u128.checked_shl(u32::from(bits)).map_or(u128::MAX, |n| n - 1)
}

/// An address as a number.
pub(crate) fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(a) => u32::from(a).into(),
        IpAddr::V6(a) => a.into(),
    }
}

/// A number as an address.
pub(crate) fn from_number(number: u128, ipv4: bool) -> IpAddr {
    match ipv4 {
        true => Ipv4Addr::from(number as u32).into(),
        false => Ipv6Addr::from(number).into(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn cidr(text: &str) -> Cidr {
        Cidr::parse(text).unwrap()
    }

    #[test]
    fn subnets_are_read() {
        assert_eq!(cidr("10.1.0.0/24").to_string(), "10.1.0.0/24");
        assert_eq!(cidr("fd00:1::/64").to_string(), "fd00:1::/64");
        assert_eq!(
            Cidr::parse("10.1.0.7/24").unwrap_err(),
            "invalid subnet 10.1.0.7/24: it should be 10.1.0.0/24"
        );
        for bad in
            ["", "10.1.0.0", "10.1.0.0/", "10.1.0.0/33", "10.1.0.0/+8", "10.1.0.0/08", "x/8", "fd00::/129"]
        {
            assert!(Cidr::parse(bad).is_err(), "{bad}");
        }
    }

    #[test]
    fn subnets_are_compared() {
        assert!(
            cidr("10.0.0.0/8").overlaps(cidr("10.1.0.0/24"))
                && cidr("10.1.0.0/24").overlaps(cidr("10.0.0.0/8"))
        );
        assert!(!cidr("10.1.0.0/24").overlaps(cidr("10.1.1.0/24")));
        assert!(!cidr("10.1.0.0/24").contains("fd00::1".parse().unwrap()));
        assert!(cidr("0.0.0.0/0").contains("255.255.255.255".parse().unwrap()));
        assert!(cidr("::/0").contains("ff::1".parse().unwrap()));
        assert_eq!(cidr("10.1.0.0/30").hosts(), (0x0a01_0001, 0x0a01_0002));
        for special in
            ["127.0.0.0/8", "224.0.0.0/4", "169.254.0.0/16", "0.0.0.0/0", "fe80::/64", "ff00::/8", "::/64"]
        {
            assert!(cidr(special).is_special(), "{special}");
        }
        assert!(!cidr("192.168.1.0/24").is_special() && !cidr("2001:db8::/64").is_special());
    }
}
