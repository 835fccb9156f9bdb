//! Volumes that are more than a directory: decided by the engine, mounted by a sandbox's supervisor or handed to its
//! microVM.

use crate::LayerPlan;
use serde::{Deserialize, Serialize};
use std::path::PathBuf;

/// Mount option, for a specification of ours: the part of the source that is bound, a path beneath it.
pub const SUBPATH: &str = "dhow.subpath=";

/// Annotation of a specification with the volumes that an image's files are copied into while they are empty: a JSON
/// list of targets, as a path may contain any character.
pub const COPY_UP: &str = "dhow.copy-up";

/// Those volumes: their targets, and what is bound there.
pub fn volumes_to_fill(spec: &crate::oci::Spec) -> Result<Vec<(PathBuf, PathBuf)>, serde_json::Error> {
    let list = spec.annotations().as_ref().and_then(|all| all.get(COPY_UP));
    let targets: Vec<PathBuf> = list.map_or(Ok(Vec::new()), |list| serde_json::from_str(list))?;
    let lies = |target: PathBuf| {
        // The last one: the standard mounts, which come first, may have the same target.
        let last = spec.mounts().iter().flatten().rfind(|m| *m.destination() == target)?;
        last.source().clone().map(|source| (target, source))
    };
    Ok(targets.into_iter().filter_map(lies).collect())
}

/// Something to be mounted on the host while a sandbox uses it; or, of a disk, to be given to its microVM.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct VolumePlan {
    /// As the user knows it, for errors.
    pub name: String,
    /// A directory of the host's with its lock and its mount point, shared by all that use it: `<run>/volumes/<name>`.
    pub place: PathBuf,
    /// What is mounted.
    pub source: VolumeSource,
    /// This sandbox cannot write to it.
    pub read_only: bool,
    /// It is this sandbox's alone while it writes; others wait for nothing, and are refused.
    pub exclusive: bool,
}

/// What a volume is made of.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum VolumeSource {
    /// What mount(8) can mount: the options of Docker's driver `local`.
    Mount {
        /// `nfs`, `tmpfs`, `none` for a binding.
        kind: String,
        /// What is mounted.
        device: String,
        /// Words as in fstab(5).
        options: Vec<String>,
    },
    /// A file with an ext4 filesystem.
    Disk {
        /// The file.
        file: PathBuf,
        /// This host's kernel may mount it also where a guest has written it.
        #[serde(default)]
        trusted: bool,
    },
    /// An image's files, read-only.
    Image {
        /// Base first.
        layers: Vec<LayerPlan>,
        /// Where this host mounts layers.
        layer_mounts: PathBuf,
    },
}

impl VolumePlan {
    /// Where it is mounted on the host, and what a specification binds.
    pub fn mountpoint(&self) -> PathBuf {
        self.place.join("mnt")
    }

    /// The file, of a disk.
    pub fn disk(&self) -> Option<&PathBuf> {
        match &self.source {
            VolumeSource::Disk { file, .. } => Some(file),
            _ => None,
        }
    }

    /// Whether this host's kernel may mount it also where a guest has written it.
    pub fn is_trusted(&self) -> bool {
        matches!(self.source, VolumeSource::Disk { trusted: true, .. })
    }
}
