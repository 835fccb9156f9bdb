//! The last step before a workload runs: user, capabilities, limits, seccomp.
//!
//! Shared by whatever executes a process of an OCI specification inside a sandbox. Knows nothing of how the sandbox
//! came to be: namespaces, mounts and cgroups are the caller's.
#![forbid(unsafe_code)]

pub mod caps;
mod error;
mod launch;
mod limits;
pub mod lookup;
pub mod named;
pub mod seccomp;
mod seccomp_load;
mod user;

pub use error::LaunchError;
pub use launch::Launch;
pub use seccomp_load::Loadable;
pub use user::{UserError, home, resolve_user};
