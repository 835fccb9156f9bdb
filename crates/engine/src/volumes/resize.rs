//! `volume resize`: a disk grows, while it is used or not.

use super::{Driver, VolumeInfo, place};
use crate::machine::disk::{alone, copy_sparse, parse_size, tool};
use crate::recover::Liveness;
use crate::store::{self, Container};
use crate::{Engine, EngineError, Result};
use sandbox::vm::Growth;
use std::fs::File;
use std::path::Path;
use std::process::Command;
use types::{RunState, Status, units};

impl Engine {
    /// Makes a disk volume larger.
    pub fn resize_volume(&self, name: &str, size: &str) -> Result<()> {
        let volume = self.volume_row(name)?;
        let wanted = parse_size(size, "a disk volume")?;
        if volume.driver != Driver::Disk {
            return Err(EngineError::Unsupported(format!(
                "volume {name} is a directory and has no size of its own: only volumes of the driver disk have"
            )));
        }
        self.make_volume(&volume)?;
        let file = self.disk_file(name);
        let now = std::fs::metadata(&file).map_err(EngineError::io("cannot look at the disk", &file))?.len();
        if wanted < now {
            let shown = |bytes: u64| units::binary_size(bytes as f64);
            return Err(EngineError::Unsupported(format!(
                "volume {name} has {}, and a disk cannot be made smaller ({}): make a new one and copy the files",
                shown(now),
                shown(wanted)
            )));
        }
        // One after the other: a smaller size that comes second is refused.
        let quiet = place::quiet(&self.place(name))?;
        let done = match place::is_mounted(&self.place(name).join("mnt"))? {
            true => self.grow_in_use(&volume, &file, wanted),
            false => match self.writing_machine(name)? {
                Some((container, state)) => self.grow_in_machine(&volume, &container, &state, &file, wanted),
                None => self.grow_at_rest(&volume, &file, wanted),
            },
        };
        drop(quiet);
        // Nothing is there, but where it is mounted.
        let _ = place::clear(&self.place(name));
        done.map(|()| self.volume_event("resize", &volume))
    }

    /// The microVM that runs, and may write to a volume.
    fn writing_machine(&self, name: &str) -> Result<Option<(Container, RunState)>> {
        for id in self.volume_users(name)? {
            let Ok(user) = store::find(&self.db, &id) else { continue };
            if !user.is_vm() || !user.mounts.iter().any(|m| m.volume == name && !m.read_only) {
                continue;
            }
            if let Liveness::Supervised(state) = self.liveness(&user)?
                && state.status.is_active()
            {
                return Ok(Some((user, *state)));
            }
        }
        Ok(None)
    }

    /// A microVM has it as a disk: that grows, and its guest lets the filesystem grow.
    fn grow_in_machine(
        &self,
        volume: &VolumeInfo,
        container: &Container,
        state: &RunState,
        path: &Path,
        wanted: u64,
    ) -> Result<()> {
        let io = |what| EngineError::io(what, path);
        if state.status != Status::Running {
            return Err(EngineError::Conflict(format!(
                "volume {} is in use by the microVM {}, which is {}: a disk grows while its microVM runs, or when it is \
                 stopped",
                volume.name,
                container.name,
                state.status.as_str()
            )));
        }
        let bundle = self.read_bundle(&container.id)?;
        let disks = bundle.machine.iter().flat_map(|machine| &machine.volumes);
        let number = disks.into_iter().position(|plan| plan.name == volume.name);
        let file = File::options().read(true).write(true).open(path).map_err(io("cannot open the disk"))?;
        let growth = Growth {
            id: container.id.as_str(),
            monitor: state.pid,
            run: &self.paths.sandbox_run(&container.id),
            layers: bundle.rootfs.layers.len(),
            volume: number.ok_or_else(|| EngineError::NotRunning(container.name.clone()))?,
            file: &file,
            bytes: wanted,
        };
        let failed = |e: sandbox::vm::GrowError| {
            EngineError::Unsupported(format!(
                "volume {} is in use by the microVM {}: {}",
                volume.name,
                container.name,
                sandbox::boot::shown(&e.to_string())
            ))
        };
        growth.carry_out().map_err(failed)
    }

    /// A container has it mounted: the kernel lets the filesystem grow meanwhile.
    fn grow_in_use(&self, volume: &VolumeInfo, path: &Path, wanted: u64) -> Result<()> {
        let io = |what| EngineError::io(what, path);
        let mountpoint = self.place(&volume.name).join("mnt");
        let refuse =
            |why: &str| Err(EngineError::Unsupported(format!("volume {} is in use, {why}", volume.name)));
        if place::is_read_only(&mountpoint) {
            return refuse("by those who read it: it grows when they are stopped");
        }
        let may = rustix::thread::capabilities(None)
            .is_ok_and(|all| all.effective.contains(rustix::thread::CapabilitySet::SYS_RESOURCE));
        if !may {
            return refuse(
                "and a filesystem in use grows for a root with CAP_SYS_RESOURCE only, which this host's lacks: stop what \
                 uses it, and try again",
            );
        }
        let file = File::options().read(true).write(true).open(path).map_err(io("cannot open the disk"))?;
        let superblock = place::look(&volume.name, path, &file)?;
        lengthen(&file, path, wanted)?;
        place::grow_mounted(&mountpoint, superblock.block).map_err(io("cannot let the filesystem grow on"))
    }

    /// Nobody has it: it is mounted for the purpose; or, where that cannot be, a copy takes its place.
    fn grow_at_rest(&self, volume: &VolumeInfo, path: &Path, wanted: u64) -> Result<()> {
        let io = |what| EngineError::io(what, path);
        let in_use = |e: EngineError| match e {
            EngineError::Conflict(_) => EngineError::Conflict(format!(
                "volume {} is in use by a microVM that reads it, and grows when that is stopped",
                volume.name
            )),
            e => e,
        };
        let file = place::lock_disk(&volume.name, path, false).map_err(in_use)?;
        let superblock = place::look(&volume.name, path, &file)?;
        if self.refuse_foreign(volume).is_err() {
            // This host's kernel does not look into it; the next guest lets it grow.
            return lengthen(&file, path, wanted);
        }
        if superblock.block * superblock.blocks == wanted {
            return lengthen(&file, path, wanted);
        }
        lengthen(&file, path, wanted)?;
        drop(file);
        // It grows when it is mounted to write, if it may.
        if let Some(plan) = self.volume_plan(volume, false)? {
            drop(place::mount_disk(&plan, path, false)?);
        }
        let file = place::lock_disk(&volume.name, path, false)?;
        let grown = place::look(&volume.name, path, &file)?;
        if grown.block * grown.blocks == wanted {
            return Ok(());
        }
        // Made large beside it, and put in its place whole: resize2fs can be killed midway, too.
        let half = path.with_extension("new");
        // Locked until it has its place.
        let to = alone(&half).map_err(io("cannot copy the disk"))?;
        let copied = copy_sparse(&file, &to, wanted).and_then(|()| to.sync_all());
        let made = copied.map_err(io("cannot copy the disk")).and_then(|()| {
            tool(Command::new("e2fsck").args(["-f", "-n"]).arg(&half), "find the filesystem sound")?;
            tool(Command::new("resize2fs").arg("-f").arg(&half), "let the filesystem grow")?;
            File::open(&half).and_then(|f| f.sync_all()).map_err(io("cannot write the disk"))?;
            std::fs::rename(&half, path).map_err(io("cannot replace the disk"))
        });
        if made.is_err() {
            let _ = std::fs::remove_file(&half);
        }
        made
    }
}

/// Only ever makes it longer: that its filesystem is shorter than the file does no harm.
fn lengthen(file: &File, path: &Path, wanted: u64) -> Result<()> {
    let longer = || -> std::io::Result<()> {
        if file.metadata()?.len() < wanted {
            file.set_len(wanted)?;
        }
        file.sync_all()
    };
    longer().map_err(EngineError::io("cannot make the disk larger", path))
}
