//! Egress policies: where a workload may go. [`crate::attach`] and [`crate::attach_tap`] put a policy into force before
//! the sandbox has its interface, and [`crate::leave`], [`crate::detach`] and [`fn@crate::sweep`] take it back; here is what a sandbox's
//! resolver does in between, and what changes the policy of one that runs.
//!
//! Connections that are open stay open when a policy becomes narrower, or when the address of a name is no longer valid.

use crate::{NetError, firewall};
use std::cell::RefCell;
use std::net::IpAddr;
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
