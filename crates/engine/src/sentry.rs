//! The supervisor's part in the walls of its workload's networks: who takes our rules away from the firewall, by
//! `nft flush ruleset` or a firewall that is started anew, has them put back at once.
//!
//! ```text
//! attached ─► guard ─► (something was removed from nf_tables) ─► check: is anything of ours missing? ─► put back
//! ```
//!
//! Not here: rules of containers that have no supervisor any more. Whoever adopts one checks.

use crate::network::lock_subnets;
use crate::resolver::NameService;
use net::{NetError, Published, Watch};
use std::os::fd::BorrowedFd;
use types::Attachment;

/// Guards the rules of one workload.
#[derive(Default)]
pub(crate) struct Sentry {
    watch: Option<Watch>,
    attachments: Vec<Attachment>,
}

impl Sentry {
    /// Guards the rules of these places on networks from now on, and no others. Where it cannot, `network repair` is left.
    pub(crate) fn guard(&mut self, attachments: &[Attachment]) {
        self.attachments = attachments.iter().filter(|a| a.uplink.is_none()).cloned().collect();
        if self.attachments.is_empty() {
            self.watch = None;
        } else if self.watch.is_none() {
            self.watch = Watch::new().ok();
        }
    }

    /// Readable when [`Self::look`] may have something to do.
    pub(crate) fn poll_fd(&self) -> Option<BorrowedFd<'_>> {
        self.watch.as_ref().map(Watch::poll_fd)
    }

    /// Puts back what is missing, if something was removed.
    pub(crate) fn look(&self, published: Option<&mut Published>, names: &mut NameService) {
        if self.watch.as_ref().is_some_and(Watch::stirred) {
            // There is nobody to tell; the next removal, or command, has it tried again.
            let _ = self.restore(published, names);
        }
    }

    /// Puts back what is missing.
    pub(crate) fn restore(
        &self,
        published: Option<&mut Published>,
        names: &mut NameService,
    ) -> Result<(), NetError> {
        let lock = || lock_subnets().map_err(std::io::Error::other);
        net::restore(&self.attachments, published, lock)?;
        // Where names lead goes with the rest, and may have been taken out of its set alone.
        names.permit_again();
        Ok(())
    }
}
