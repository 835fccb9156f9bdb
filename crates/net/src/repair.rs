//! All rules from scratch, for `network repair`: after a `nft flush ruleset`, a firewall that was reloaded, or an
//! administrator's mistake.

use crate::{NetError, Swept, bridge, firewall, sweep};
use types::{Attachment, BridgePlan};

/// Makes the bridges of these plans where they are missing, and builds all our rules anew in one transaction, with all
/// that the live attachments (published ports decided) have in them. Bridges and sandboxes of other stores keep what
/// is there of theirs.
///
/// `live` is asked several times: what ends meanwhile leaves nothing behind.
pub fn repair(plans: &[BridgePlan], live: impl Fn() -> Vec<Attachment>) -> Result<Swept, NetError> {
    plans.iter().try_for_each(bridge::ensure_bridge)?;
    let plans: Vec<_> = plans.iter().map(bridge::effective).collect();
    match firewall::open().and_then(|mut rules| firewall::rebuild(&mut rules, &plans, &live)) {
        Err(e) if firewall::is_missing(&e) && !live().iter().any(firewall::is_confined) => {}
        done => done?,
    }
    let mut all = Swept::default();
    for plan in &plans {
        let swept = sweep(plan, &live)?;
        all.links += swept.links;
        all.ports += swept.ports;
        all.policies += swept.policies;
    }
    Ok(all)
}
