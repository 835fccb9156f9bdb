//! Rules that somebody takes away, by `nft flush ruleset` or a firewall that is started anew, and putting back what belongs to
//! one sandbox. Each sandbox's supervisor does it for its own, so that nobody is without its walls for longer than it takes
//! to wake a process. [`crate::repair()`] does it for all, when it is told to.

use crate::{NetError, Published, bridge, firewall};
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use sys::notices::Notices;
use types::Attachment;

/// Notices that something was removed from nf_tables, or that others than we took elements out of our sets.
#[derive(Debug)]
pub struct Watch(Notices);

impl Watch {
    /// Watches from now on.
    pub fn new() -> Result<Self, NetError> {
        Notices::of_removals(firewall::NAME).map(Self).map_err(NetError::system("watch the firewall"))
    }

    /// Readable when [`Self::stirred`] has something to say.
    pub fn poll_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }

    /// Whether something was removed since it was last asked.
    pub fn stirred(&self) -> bool {
        self.0.drain()
    }
}

/// Puts back what is missing of the rules of a sandbox: those of its networks, what holds it to its addresses and to its
/// policy, and its published ports. Whether anything was missing; then what names of its policy led to is gone, too.
///
/// Connections of who is under a policy begin anew: those that were made meanwhile end. Many sandboxes find out at once:
/// `lock`, once there is something to do, has the first load what the others then find there.
pub fn restore<G>(
    attachments: &[Attachment],
    mut published: Option<&mut Published>,
    lock: impl FnOnce() -> io::Result<G>,
) -> Result<bool, NetError> {
    let bridged = || attachments.iter().filter(|a| a.uplink.is_none());
    let whole = |published: &Option<&mut Published>| -> Result<bool, NetError> {
        let mut rules = firewall::open()?;
        let whole = bridged().all(|a| {
            let plan = bridge::effective(&a.bridge);
            firewall::installed(&mut rules, &plan) && firewall::is_entered(&mut rules, a)
        });
        Ok(whole && published.as_ref().is_none_or(|p| p.is_led(&mut rules)))
    };
    if whole(&published)? {
        return Ok(false);
    }
    let _held = lock().map_err(NetError::system("lock the rules"))?;
    for attachment in bridged() {
        bridge::ensure_bridge(&attachment.bridge)?;
        firewall::enter(attachment)?;
    }
    match &mut published {
        Some(published) => published.lead_again().map(|()| true),
        None => Ok(true),
    }
}
