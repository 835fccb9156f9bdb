//! What a sandbox's root filesystem is made of: decided by the engine, carried out by `rootfs`.

use crate::Digest;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// How a layer lies on the disk.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum LayerFormat {
    /// One read-only EROFS file, whiteouts in overlayfs form.
    Erofs,
    /// An unpacked directory, whiteouts in overlayfs form.
    Dir,
}

/// One layer.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LayerPlan {
    /// Digest of the uncompressed tar.
    pub diff_id: Digest,
    /// The EROFS file or the directory.
    pub path: PathBuf,
    /// Which of the two.
    pub format: LayerFormat,
}

/// Extended attribute by which a layer marks a directory that its tar implied but did not mention, and its root where
/// it has such. Overlayfs takes what begins so for its own, and shows it to nobody.
pub const IMPLIED_XATTR: &str = "trusted.overlay.dhow.implied";

/// Layers and a writable directory.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct RootfsPlan {
    /// Base first.
    pub layers: Vec<LayerPlan>,
    /// Holds `upper/` and `work/`; made by `rootfs::prepare`.
    pub writable: PathBuf,
    /// Where this host mounts layers, shared by all sandboxes: `<run>/layers`.
    pub layer_mounts: PathBuf,
}
