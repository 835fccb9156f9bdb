//! Dhow's servers. One so far: the Docker Engine API, so that what speaks to Docker speaks to Dhow unchanged.
//!
//! ```text
//! listen ─► connection ─► docker (which request is it?) ─► policy (may it?) ─► one method of the engine
//!                                                                               on a thread of its own
//! ```
//!
//! A server holds no state: what it knows is the engine's, and killing it stops nothing. What it does keep, as long as it
//! lives, are its connections, and the clients among them that wait for a container's start (see [`mod@rendezvous`]).
//! Network and streams are asynchronous; the engine is not, and is called on threads that may block.
#![forbid(unsafe_code)]
// One of Docker's documents has more members than a macro may otherwise take.
#![recursion_limit = "256"]

mod ask;
mod body;
mod client;
mod connection;
mod docker;
mod fault;
mod fold;
mod fuzz;
mod listen;
mod policy;
mod query;
mod rendezvous;
mod room;
mod server;
mod shared;
mod stream;
mod subnet;
mod takeover;
mod tls;
mod work;

#[doc(hidden)]
pub use fuzz::fuzz_request;
pub use listen::{ListenError, Listener};
pub use policy::{Policy, PolicyError, Restrict};
pub use server::{ServeOptions, serve};
pub use shared::Settings;

/// The newest version of Docker's API that is spoken.
pub const API_VERSION: &str = engine::API_VERSION;
/// The oldest.
pub const MIN_API_VERSION: &str = engine::MIN_API_VERSION;
