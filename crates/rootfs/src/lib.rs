//! Layers and a writable directory become one root filesystem, and files go in and out of it.
//!
//! ```text
//! prepare ──► mount ──► Rootfs::fd: a detached mount, for the hull to attach ──► release
//!               │
//!               └─ Layers: each mounted once per host, freed by its last user, or by sweep after a crash
//! ```
//!
//! Around that: what a container changed ([`changes`], [`archive_changes`]), its files as a tar and back ([`export`],
//! [`fn@pack`], [`fn@unpack`], [`stat`]), an image's files into a new volume ([`copy_up`]), and sizes ([`usage`]).
//! It knows nothing of images, containers or namespaces: the engine and the supervisor call it with a
//! [`types::RootfsPlan`], both in the host's mount namespace.
#![forbid(unsafe_code)]

mod copy;
mod create;
mod diff;
mod error;
mod implied;
mod layers;
mod overlay;
mod pack;
mod reader;
mod tarball;
mod tree;
mod unpack;

pub use copy::copy_up;
pub use diff::{archive_changes, changes};
pub use error::RootfsError;
pub use layers::{Layers, sweep};
pub use overlay::{Access, MountOptions, Rootfs, mount, prepare};
pub use pack::{PathStat, export, pack, stat};
pub use tree::usage;
pub use unpack::{UnpackOptions, unpack};
