//! What only a host does: compressing logs, hooks, version 1 of the cgroups. The agent of a guest must be small. It has the
//! same code, but no [`OnHost`]; so what holds one is never made there, and the compiler leaves out all that would use it.

use std::io;

/// Proof of being compiled for a host.
#[cfg(feature = "host")]
pub(crate) type OnHost = ();
/// There is none in a guest.
#[cfg(not(feature = "host"))]
pub(crate) type OnHost = std::convert::Infallible;

/// The proof.
#[cfg(feature = "host")]
pub(crate) fn on_host() -> io::Result<OnHost> {
    Ok(())
}

/// None.
#[cfg(not(feature = "host"))]
pub(crate) fn on_host() -> io::Result<OnHost> {
    Err(io::Error::new(io::ErrorKind::Unsupported, "only a host does this, not the agent of a microVM"))
}
