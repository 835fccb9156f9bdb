//! The vocabulary of Dhow: each noun that two crates exchange is defined here, once.
//!
//! Values only. Nothing in this crate opens a file, talks to a socket or asks for the time of day.
//! The shapes that users see as JSON (`inspect`, `HostConfig`, …) are Docker's own, generated from its
//! specification, in [`docker`]; the shape that a hull carries out is the OCI runtime [`oci::Spec`].
#![forbid(unsafe_code)]

mod bundle;
mod digest;
mod error;
mod event;
mod id;
mod image;
pub mod lean;
mod machine;
mod network;
mod platform;
mod reference;
mod rootfs;
mod run_state;
pub mod units;
mod volume;

pub use bundle::{Bundle, HealthCheck, LogConfig, LogDriver, RestartPolicy};
pub use digest::{Digest, DigestError};
pub use error::{ErrorKind, Kinded, without_numbers};
pub use event::{Event, EventType};
pub use id::{ContainerId, IdError};
pub use image::{HistoryEntry, ImageConfig, ImageHealth, ProcessDefaults, RootFs};
pub use machine::{Hypervisor, MachinePlan};
pub use network::{
    Attachment, Bandwidth, BridgePlan, Egress, EgressRule, EgressTo, MacvlanMode, NetworkPlan, PortBinding,
    Protocol, Uplink, spare_mac,
};
pub use platform::{Platform, PlatformError};
pub use reference::{ImageRef, ReferenceError};
pub use rootfs::{IMPLIED_XATTR, LayerFormat, LayerPlan, RootfsPlan};
pub use run_state::{HealthLogEntry, HealthState, HealthStatus, RunState, Status};
pub use volume::{COPY_UP, SUBPATH, VolumePlan, VolumeSource, volumes_to_fill};

/// Docker Engine API models, generated from Docker's own specification.
pub use bollard_stubs::models as docker;
/// The OCI runtime specification's configuration (`config.json`).
pub use oci_spec::runtime as oci;
