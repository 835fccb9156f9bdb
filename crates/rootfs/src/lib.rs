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
//! [`types::RootfsPlan`], both in the host's mount namespace. A guest's agent calls what needs no plan: it does without
//! the feature `mount`.
#![forbid(unsafe_code)]

mod base;
mod copy;
mod create;
mod diff;
mod error;
#[cfg(feature = "mount")]
mod implied;
#[cfg(feature = "mount")]
mod layers;
#[cfg(feature = "mount")]
mod overlay;
mod pack;
mod reader;
#[cfg(feature = "mount")]
mod remove;
mod tarball;
mod tree;
mod unpack;

pub use base::{fresh_upper, make_base};
pub use copy::{copy_up, is_unfilled};
#[cfg(feature = "mount")]
pub use diff::{archive_changes, changes};
pub use diff::{archive_changes_between, changes_between};
pub use error::RootfsError;
#[cfg(feature = "mount")]
pub use layers::{Layers, sweep};
#[cfg(feature = "mount")]
pub use overlay::{Access, MountOptions, Rootfs, mount, prepare};
pub use pack::{PathStat, export, pack, stat};
#[cfg(feature = "mount")]
pub use remove::remove_tree;
pub use tree::usage;
pub use unpack::{UnpackOptions, unpack};
