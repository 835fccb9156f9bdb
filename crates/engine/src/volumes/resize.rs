//! `volume resize`: a disk grows, while it is used or not.

use super::{Driver, VolumeInfo, place};
use crate::machine::disk::{copy_sparse, parse_size, tool};
use crate::{Engine, EngineError, Result};
use std::fs::File;
use std::path::Path;
use std::process::Command;
use types::units;

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
        let done = match place::is_mounted(&self.place(name).join("mnt"))? {
            true => self.grow_in_use(&volume, &file, wanted),
            false => self.grow_at_rest(&volume, &file, wanted),
        };
        done.map(|()| self.volume_event("resize", &volume))
    }

    /// A container has it mounted: the kernel lets the filesystem grow meanwhile.
    fn grow_in_use(&self, volume: &VolumeInfo, path: &Path, wanted: u64) -> Result<()> {
        let io = |what| EngineError::io(what, path);
        let file = File::options().read(true).write(true).open(path).map_err(io("cannot open the disk"))?;
        let superblock = place::look(&volume.name, path, &file)?;
        lengthen(&file, path, wanted)?;
        let mountpoint = self.place(&volume.name).join("mnt");
        place::grow_mounted(&mountpoint, superblock.block).map_err(|e| match e.kind() {
            std::io::ErrorKind::PermissionDenied => EngineError::Unsupported(format!(
                "volume {} is in use, and a filesystem in use grows for a root with CAP_SYS_RESOURCE only, which this \
                 host's lacks: stop what uses it, and try again",
                volume.name
            )),
            _ => io("cannot let the filesystem grow on")(e),
        })
    }

    /// Nobody has it: it is mounted for the purpose; or, where that cannot be, a copy takes its place.
    fn grow_at_rest(&self, volume: &VolumeInfo, path: &Path, wanted: u64) -> Result<()> {
        let io = |what| EngineError::io(what, path);
        let in_use = |e: EngineError| match e {
            EngineError::Conflict(_) => EngineError::Conflict(format!(
                "volume {} is in use by a microVM, and grows when that is stopped",
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
        drop(place::mount_disk(&volume.name, path, false)?);
        let file = place::lock_disk(&volume.name, path, false)?;
        let grown = place::look(&volume.name, path, &file)?;
        if grown.block * grown.blocks == wanted {
            return Ok(());
        }
        // Made large beside it, and put in its place whole: resize2fs can be killed midway, too.
        let half = path.with_extension("new");
        let copy = || -> std::io::Result<()> {
            let to = File::create(&half)?;
            copy_sparse(&file, &to, wanted)?;
            to.sync_all()
        };
        let made = copy().map_err(io("cannot copy the disk")).and_then(|()| {
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
