//! What a start mounts, or hands to a microVM, of a container's volumes; and who may not have what.

use super::options::{mount_of, trusts_guest};
use super::{Driver, Marks, VolumeInfo, disk, place};
use crate::machine::disk::{Use, make};
use crate::mounts::{Kind, UserMount, check_source};
use crate::store::{self, Container};
use crate::{Engine, EngineError, Result};
use std::path::PathBuf;
use types::{ContainerId, LayerPlan, VolumePlan, VolumeSource};

impl Engine {
    /// Where what is mounted for sandboxes is mounted on this host.
    pub(crate) fn places(&self) -> PathBuf {
        self.paths.run.join("volumes")
    }

    /// That of a volume. Those of other things begin with a dot, which no volume's name does.
    pub(crate) fn place(&self, volume: &str) -> PathBuf {
        self.places().join(volume)
    }

    /// What is to be mounted for a volume; nothing for a directory.
    pub(crate) fn volume_plan(&self, volume: &VolumeInfo, read_only: bool) -> Result<Option<VolumePlan>> {
        let source = match volume.driver {
            Driver::Disk => VolumeSource::Disk {
                file: self.disk_file(&volume.name),
                trusted: trusts_guest(&volume.options)?,
            },
            Driver::Local if volume.is_directory() => return Ok(None),
            Driver::Local => {
                let (kind, device, options) = mount_of(&volume.options);
                if kind == "none" {
                    check_source(&UserMount::bind(device.clone().into()), &self.paths)?;
                }
                VolumeSource::Mount { kind, device, options }
            }
        };
        let exclusive = volume.driver == Driver::Disk;
        Ok(Some(VolumePlan {
            name: volume.name.clone(),
            place: self.place(&volume.name),
            source,
            read_only: read_only && exclusive,
            exclusive,
        }))
    }

    /// All that is to be mounted for a container.
    pub(crate) fn volume_plans(&self, container: &Container) -> Result<Vec<VolumePlan>> {
        let mut plans: Vec<VolumePlan> = Vec::new();
        for mount in &container.mounts {
            if plans.iter().any(|p| p.name == mount.volume) {
                continue;
            }
            let plan = match mount.kind {
                Kind::Volume => {
                    let writes = |m: &UserMount| m.volume == mount.volume && !m.read_only;
                    let read_only = !container.mounts.iter().any(writes);
                    self.volume_plan(&self.volume_row(&mount.volume)?, read_only)?
                }
                Kind::Image => Some(self.image_plan(&mount.volume)?),
                Kind::Bind | Kind::Tmpfs => None,
            };
            plans.extend(plan);
        }
        plans.extend(self.writable_plan(container)?);
        Ok(plans)
    }

    /// The files of an image, by its id.
    pub(crate) fn image_plan(&self, id: &str) -> Result<VolumePlan> {
        let image = self.images.resolve(id, None)?;
        let hex: String = id.rsplit(':').next().unwrap_or(id).chars().take(16).collect();
        Ok(VolumePlan {
            name: id.to_owned(),
            place: self.places().join(format!(".image-{hex}")),
            source: VolumeSource::Image {
                layers: image
                    .layers
                    .into_iter()
                    .map(|l| LayerPlan { diff_id: l.diff_id, path: l.path, format: l.format })
                    .collect(),
                layer_mounts: self.paths.layer_mounts(),
            },
            read_only: true,
            exclusive: false,
        })
    }

    /// The disk of a container's own changes, where they are to have a size.
    pub(crate) fn writable_plan(&self, container: &Container) -> Result<Option<VolumePlan>> {
        if container.is_vm() || crate::machine::layer_size(&container.host)?.is_none() {
            return Ok(None);
        }
        Ok(Some(VolumePlan {
            name: format!("of {}", container.name),
            place: self.writable_place(&container.id),
            source: VolumeSource::Disk { file: self.disk_path(container), trusted: false },
            read_only: false,
            exclusive: false,
        }))
    }

    pub(crate) fn writable_place(&self, id: &ContainerId) -> PathBuf {
        self.places().join(format!(".rw-{id}"))
    }

    /// Mounts the disk of a container's own changes for as long as `work` takes.
    pub(crate) fn with_writable<T>(
        &self,
        container: &Container,
        work: impl FnOnce() -> Result<T>,
    ) -> Result<T> {
        let Some(plan) = self.writable_plan(container)? else { return work() };
        self.make_writable(container)?;
        let held = place::hold(&plan)?;
        let done = work();
        held.release()?;
        done
    }

    /// Makes the disk of a container's own changes, where they are to have a size.
    pub(crate) fn make_writable(&self, container: &Container) -> Result<()> {
        let Some(size) = crate::machine::layer_size(&container.host)? else { return Ok(()) };
        if container.is_vm() {
            return Ok(());
        }
        self.paths.ensure_sandbox(&container.id)?;
        let path = self.disk_path(container);
        match path.exists() {
            true => Ok(()),
            false => make(&path, size, &self.paths.root.join("templates"), Use::Machine),
        }
    }

    /// Refuses disks that another one has, and those that this host's kernel should not read; notes those that a guest
    /// is about to write.
    pub(crate) fn admit_disks(
        &self,
        container: &Container,
        plans: &[VolumePlan],
        marks: &mut Marks,
    ) -> Result<()> {
        for plan in plans.iter().filter(|p| p.exclusive) {
            self.refuse_second(container, plan)?;
            match container.is_vm() {
                true => self.admit_to_guest(plan, marks)?,
                false => self.refuse_foreign(&self.volume_row(&plan.name)?)?,
            }
        }
        Ok(())
    }

    /// Looks at a disk for a guest, as this host does when it mounts one.
    fn admit_to_guest(&self, plan: &VolumePlan, marks: &mut Marks) -> Result<()> {
        // What a supervisor that was killed left mounted, and nobody holds.
        place::clear(&plan.place)?;
        let Some(path) = plan.disk() else { return Ok(()) };
        let file = std::fs::File::open(path).map_err(EngineError::io("cannot open the disk", path))?;
        let superblock = place::look(&plan.name, path, &file)?;
        if !plan.read_only {
            return self.note_foreign(plan, path, marks);
        }
        if superblock.needs_recovery && disk::refuse_foreign(&plan.name, path, plan.is_trusted()).is_err() {
            return Err(EngineError::Conflict(format!(
                "volume {} was in use by a microVM that was killed, and its journal is to be written first: use it once \
                 in a microVM that may write to it",
                plan.name
            )));
        }
        if superblock.needs_recovery {
            drop(place::mount_disk(plan, path, false)?);
        }
        Ok(())
    }

    /// One writer, or several that read.
    pub(crate) fn refuse_second(&self, container: &Container, plan: &VolumePlan) -> Result<()> {
        for id in self.volume_users(&plan.name)? {
            if id == container.id.as_str() {
                continue;
            }
            let Ok(other) = store::find(&self.db, &id) else { continue };
            let writes = other.mounts.iter().any(|m| m.volume == plan.name && !m.read_only);
            if (writes || !plan.read_only) && self.state(&other)?.status.is_active() {
                let why = match writes {
                    true => "which writes to it",
                    false => "which reads it, and is not to see it change",
                };
                return Err(EngineError::Conflict(format!(
                    "volume {} is in use by container {}, {why}: a disk has one user that writes, or several that read \
                     (mount it read-only in all of them)",
                    plan.name, other.name
                )));
            }
        }
        Ok(())
    }

    /// Refuses to have this host's kernel mount what it should not.
    pub(crate) fn refuse_foreign(&self, volume: &VolumeInfo) -> Result<()> {
        disk::refuse_foreign(&volume.name, &self.disk_file(&volume.name), trusts_guest(&volume.options)?)
    }

    /// Whether others than this host's kernel have written its filesystem.
    pub(crate) fn is_foreign(&self, volume: &str) -> bool {
        disk::is_foreign(&self.disk_file(volume))
    }
}
