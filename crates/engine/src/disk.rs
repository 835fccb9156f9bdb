//! `system df`.

use crate::{Engine, Result, store};
use std::collections::HashSet;
use types::Digest;

/// One line of `system df`.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// `Images`, `Containers`, `Local Volumes`, `Build Cache`.
    pub kind: &'static str,
    /// How many.
    pub total: usize,
    /// How many are in use.
    pub active: usize,
    /// Bytes on disk.
    pub size: u64,
    /// Bytes that a prune would free.
    pub reclaimable: u64,
}

impl Engine {
    /// What takes how much of the disk.
    pub fn disk_usage(&self) -> Result<Vec<Usage>> {
        let containers = store::all(&self.db)?;
        let used: HashSet<Digest> =
            containers.iter().filter_map(|c| Digest::parse(&c.image_id).ok()).collect();
        let images = self.images.disk_usage(&used)?;
        let mut own = Usage { kind: "Containers", total: containers.len(), ..Usage::default() };
        for container in &containers {
            let size = rootfs::usage(&self.paths.sandbox(&container.id))?;
            own.size += size;
            if self.state(container)?.status.is_active() {
                own.active += 1;
            } else {
                own.reclaimable += size;
            }
        }
        let mut volumes = Usage { kind: "Local Volumes", ..Usage::default() };
        for volume in self.volumes()? {
            let size = self.volume_usage(&volume)?;
            volumes.total += 1;
            volumes.size += size;
            if volume.users.is_empty() {
                volumes.reclaimable += size;
            } else {
                volumes.active += 1;
            }
        }
        Ok(vec![
            Usage {
                kind: "Images",
                total: images.images,
                active: used.len().min(images.images),
                size: images.bytes,
                reclaimable: images.reclaimable,
            },
            own,
            volumes,
            Usage { kind: "Build Cache", ..Usage::default() },
        ])
    }
}
