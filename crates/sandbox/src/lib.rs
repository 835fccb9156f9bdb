//! The hull contract, the hulls that carry it out, and the supervisor that lives with each sandbox.
#![forbid(unsafe_code)]

pub mod boot;
pub mod client;
pub mod container;
pub mod files;
mod host_only;
pub mod hull;
pub mod logs;
pub mod protocol;
pub mod supervisor;
#[cfg(feature = "vm")]
pub mod vm;
