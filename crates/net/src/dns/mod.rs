//! Names: a sandbox on a network of the user's finds the others there by name, alias and short id, and all else by the
//! host's own servers.
//!
//! ```text
//! workload ── 127.0.0.11:53 ──► Server ── View: files of the registry ──► an answer of our own
//!                                  │
//!                                  └── the policy lets it ──► servers outside, asked from the host ──► their answer
//! ```
//!
//! No process serves names for all: each sandbox's supervisor serves its own workload, and sees the names of that one's
//! networks alone ([`registry`]). On the default bridge there is none of this, as in Docker. A microVM's agent listens
//! inside and passes the messages on to the supervisor ([`relay`]).
//!
//! Not here: who is on which network and by which names (the engine).

mod decide;
mod entrance;
mod haste;
mod message;
mod outside;
mod redirect;
mod reflex;
mod reflex_program;
mod registry;
pub mod relay;
mod server;
mod servers;
mod stream;
#[cfg(test)]
mod tests;

pub use entrance::Entrance;
#[doc(hidden)]
pub use message::fuzz_message;
pub use registry::{announce, sweep_names, withdraw};
pub use server::{Names, Permit, Server};
pub use stream::{Over, Stream};

use std::net::Ipv4Addr;
use types::Attachment;

/// Where a sandbox asks for names, as in Docker.
pub const ADDRESS: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 11);
/// And on which port.
const PORT: u16 = 53;
/// Name of the network without names.
const DEFAULT: &str = "bridge";

/// Whether names are served on this network: on every one but the default one.
pub fn is_named(attachment: &Attachment) -> bool {
    attachment.network_name != DEFAULT
}
