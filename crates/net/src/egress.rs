//! Egress policies: where a workload may go. [`crate::attach`] and [`crate::attach_tap`] put a policy into force before
//! the sandbox has its interface, and [`crate::leave`], [`crate::detach`] and [`fn@crate::sweep`] take it back; here is what a sandbox's
//! resolver does in between, and what changes the policy of one that runs.
//!
//! Connections that are open stay open when a policy becomes narrower, or when the address of a name is no longer valid.

use crate::{NetError, firewall};
use std::cell::RefCell;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::time::Duration;
use sys::netlink::Socket;
use types::{Attachment, EgressRule};

/// Puts the attachment's policy into force, in the place of what was in force for its addresses. May be repeated.
///
/// Names of a policy lead nowhere until they are resolved: [`permit`]. Fails where the kernel cannot enforce it.
pub fn confine(attachment: &Attachment) -> Result<(), NetError> {
    firewall::enter(attachment)
}

/// Takes the policy back: its sandbox is gone. May be repeated.
pub fn release(attachment: &Attachment) -> Result<(), NetError> {
    crate::leave(std::slice::from_ref(attachment)).map(drop)
}

thread_local! {
    /// Kept open: closing a socket to nf_tables waits until the kernel has freed what was replaced.
    static RULES: RefCell<Option<Socket>> = const { RefCell::new(None) };
}

/// Lets the sandbox go to the addresses that a name of its policy (`rule`) resolved to, each for so long from now. To be
/// called before the sandbox is told the addresses.
///
/// Loopback, link-local and multicast addresses are left out: whoever answers for a name has no say in these.
pub fn permit(
    attachment: &Attachment,
    rule: &EgressRule,
    found: &[(IpAddr, Duration)],
) -> Result<(), NetError> {
    RULES.with_borrow_mut(|kept| {
        let mut socket = match kept.take() {
            Some(socket) => socket,
            None => firewall::open()?,
        };
        firewall::permit(&mut socket, attachment, rule, found)?;
        *kept = Some(socket);
        Ok(())
    })
}

/// Metadata services of clouds that are no link-local addresses: Alibaba's; AWS's, Google's and Scaleway's on IPv6.
const METADATA: [IpAddr; 4] = [
    IpAddr::V4(Ipv4Addr::new(100, 100, 100, 200)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0xec2, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd20, 0xce, 0, 0, 0, 0, 0, 0x254)),
    IpAddr::V6(Ipv6Addr::new(0xfd00, 0x42, 0, 0, 0, 0, 0, 0x42)),
];

/// Whether an address may be permitted because a name leads to it: not one that means this very host, whoever is near, or
/// a cloud's metadata service, whatever carries it within an IPv6 address. Who answers for a name has no right to these.
pub(crate) fn may_be_named(address: IpAddr) -> bool {
    if METADATA.contains(&address) {
        return false;
    }
    match address {
        IpAddr::V4(a) => {
            !(a.is_loopback()
                || a.is_unspecified()
                || a.is_link_local()
                || a.is_multicast()
                || a.is_broadcast())
        }
        IpAddr::V6(a) => {
            let special =
                a.is_loopback() || a.is_unspecified() || a.is_multicast() || a.is_unicast_link_local();
            // Mapped (RFC 4291), no address of a wire; translated (RFC 6052), by whoever translates.
            let translated = (a.segments()[..6] == [0x64, 0xff9b, 0, 0, 0, 0]).then(|| {
                let [.., w, x, y, z] = a.octets();
                Ipv4Addr::new(w, x, y, z)
            });
            !special && a.to_ipv4_mapped().is_none() && translated.is_none_or(|v4| may_be_named(v4.into()))
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_lead_nowhere_private_to_this_host() {
        for bad in [
            "127.0.0.1",
            "0.0.0.0",
            "169.254.169.254",
            "100.100.100.200",
            "224.0.0.1",
            "255.255.255.255",
            "::1",
            "fe80::1",
            "ff02::1",
            "fd00:ec2::254",
            "::ffff:10.0.0.1",
            "64:ff9b::7f00:1",
            "64:ff9b::a9fe:a9fe",
        ] {
            assert!(!may_be_named(bad.parse().unwrap()), "{bad}");
        }
        for good in ["10.0.0.1", "192.0.2.1", "fd00::1", "2001:db8::1", "64:ff9b::c000:201"] {
            assert!(may_be_named(good.parse().unwrap()), "{good}");
        }
    }
}
