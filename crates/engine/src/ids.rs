//! New ids: of containers, and of all else that has one of their form. What an id looks like is [`ContainerId`]'s.

use crate::{EngineError, Result};
use types::ContainerId;

/// One that nobody has.
pub(crate) fn new_id() -> Result<ContainerId> {
    let bytes = sys::host::random().map_err(EngineError::io("getrandom", "".as_ref()))?;
    Ok(ContainerId::from_random(bytes))
}
