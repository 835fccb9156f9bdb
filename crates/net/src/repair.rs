//! All rules from scratch, for `network repair`: after a `nft flush ruleset`, a firewall that was reloaded, or an
//! administrator's mistake.

use crate::{NetError, Swept, bridge, firewall, sweep};
use types::{Attachment, BridgePlan};

/// Makes the bridges of these plans where they are missing, and builds all our rules anew in one transaction, with all
/// that the live attachments (published ports decided) have in them. Bridges and sandboxes of other stores keep what
/// is there of theirs.
///
/// `live` is asked several times: what ends meanwhile leaves nothing behind. Where it cannot tell, it answers with none, and
/// nothing is changed. A bridge that cannot be made keeps no other from being repaired.
pub fn repair<L: Into<Option<Vec<Attachment>>>>(
    plans: &[BridgePlan],
    live: impl Fn() -> L,
) -> Result<Swept, NetError> {
    let live = || -> Option<Vec<Attachment>> { live().into() };
    let (mut made, mut failed) = (Vec::new(), None);
    for plan in plans {
        match bridge::ensure_bridge(plan) {
            Ok(()) => made.push(bridge::effective(plan)),
            Err(e) => failed = failed.or(Some(e)),
        }
    }
    let plans = made;
    match firewall::open().and_then(|mut rules| firewall::rebuild(&mut rules, &plans, &live)) {
        Err(e)
            if firewall::is_missing(&e)
                && !live().ok_or(NetError::Unknown)?.iter().any(firewall::is_confined) => {}
        done => done?,
    }
    let mut all = Swept::default();
    for plan in &plans {
        let swept = sweep(plan, live)?;
        all.links += swept.links;
        all.ports += swept.ports;
        all.policies += swept.policies;
    }
    failed.map_or(Ok(all), Err)
}
