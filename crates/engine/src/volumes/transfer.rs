//! `volume export`, `import` and `clone`: what a volume holds, out and in.
//!
//! What comes out is of one moment: whoever uses the volume is paused meanwhile, as for `commit`, and a disk's journal is
//! written out first. A disk in a running microVM is refused: part of what it should hold is in the guest's memory.
//!
//! What comes in is made aside, and appears with its row, whole. Nothing in it is believed: a tar is unpacked beneath the
//! volume, where its links may lead but not outside; an image is copied without being looked into, and marked so that only
//! guests read its filesystem.

use super::aside::{self, Aside};
use super::{CreateVolume, Driver, VolumeInfo, disk, options, place, qcow2};
use crate::machine::disk::{MAX_SIZE, MIN_SIZE, copy_sparse, make};
use crate::recover::{Liveness, remove_tree};
use crate::spec::invalid;
use crate::store;
use crate::{Engine, EngineError, Result};
use rustix::fs::{SeekFrom, seek};
use sandbox::client::Client;
use std::collections::BTreeMap;
use std::ffi::OsStr;
use std::fs::File;
use std::io::{self, Read, Seek, Write};
use std::os::fd::OwnedFd;
use std::os::unix::fs::{DirBuilderExt, FileExt};
use std::path::{Path, PathBuf};
use sys::Root;
use types::{Status, VolumePlan};

/// Bytes by which files are copied.
const PIECE: usize = 64 << 10;
/// How much of a stream tells what it is.
const HEAD: usize = 2048;

/// What a volume is written as.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Format {
    /// The files.
    Tar,
    /// The disk, with zeros for its holes.
    Raw,
    /// The disk as QEMU has it, without its holes.
    Qcow2,
}

impl Format {
    /// By its name.
    pub fn parse(name: &str) -> Result<Self> {
        match name {
            "tar" => Ok(Self::Tar),
            "raw" => Ok(Self::Raw),
            "qcow2" => Ok(Self::Qcow2),
            other => Err(invalid(format!("invalid format {other:?}: use tar, raw or qcow2"))),
        }
    }
}

/// Those who use a volume, standing still until this is dropped.
struct Still(Vec<Client>);

impl Drop for Still {
    fn drop(&mut self) {
        for client in &mut self.0 {
            // Who has ended meanwhile needs no waking. And should this process be killed, its connections end.
            let _ = client.resume();
        }
    }
}

impl Engine {
    /// Writes what a volume holds.
    pub fn export_volume(&self, name: &str, format: Format, pause: bool, out: &mut dyn Write) -> Result<()> {
        let volume = self.volume_row(name)?;
        self.make_volume(&volume)?;
        if format == Format::Tar {
            return self.with_volume(&volume, pause, |root| {
                Ok(rootfs::pack(root, Path::new("/"), Some(OsStr::new(".")), out)?)
            });
        }
        if volume.driver != Driver::Disk {
            return Err(EngineError::Unsupported(format!(
                "volume {name} is a directory, which is exported as a tar: only volumes of the driver disk are disks"
            )));
        }
        self.with_disk(&volume, pause, |disk, size| match format {
            Format::Qcow2 => qcow2::write(disk, size, out),
            _ => write_raw(disk, size, out),
        })
    }

    /// Makes a volume with what another one holds, and its options but for those that are given.
    pub fn clone_volume(
        &self,
        from: &str,
        to: &str,
        given: &BTreeMap<String, String>,
        pause: bool,
    ) -> Result<()> {
        let volume = self.volume_row(from)?;
        self.make_volume(&volume)?;
        let request = CreateVolume {
            name: Some(to.to_owned()),
            driver: volume.driver.to_string(),
            options: volume.options.iter().chain(given).map(|(k, v)| (k.clone(), v.clone())).collect(),
            labels: volume.labels.clone(),
        };
        options::check(volume.driver, &request.options)?;
        if let Some(key) = given.keys().find(|key| *key != options::TRUST) {
            return Err(invalid(format!(
                "a clone is what it is a copy of, and has no {key} of its own: only {} can be given (a disk grows by volume resize)",
                options::TRUST
            )));
        }
        if !volume.is_directory() && volume.driver == Driver::Local {
            return Err(EngineError::Unsupported(format!(
                "volume {from} is what its options name, and a clone would be the same: export it, and import that"
            )));
        }
        self.bring_in(&request, |aside| {
            if volume.driver == Driver::Local {
                let data = aside.path.join("_data");
                make_directory(&data)?;
                return self.with_volume(&volume, pause, |root| {
                    Ok(rootfs::copy_up(root, Path::new("/"), &data).map(drop)?)
                });
            }
            let path = aside.path.join("disk.img");
            self.with_disk(&volume, pause, |disk, size| {
                let to = File::create(&path)?;
                copy_sparse(disk, &to, size)?;
                to.sync_all()
            })?;
            if self.is_foreign(from) {
                mark_foreign(&aside.path)?;
            }
            Ok(())
        })
        .map(drop)
    }

    /// Makes a volume of a tar (gzip or zstd around it or not), or of a disk image (raw ext4 or qcow2); returns its name.
    pub fn import_volume(&self, request: &CreateVolume, from: &mut (dyn Read + Send)) -> Result<String> {
        let broken = |e: io::Error| invalid(format!("cannot import the volume: {e}"));
        let mut head = Vec::with_capacity(HEAD);
        from.take(HEAD as u64).read_to_end(&mut head).map_err(broken)?;
        let is_tar = head.get(257..262) == Some(b"ustar");
        let is_raw = head.get(0x438..0x43a) == Some(&[0x53, 0xef]) && !is_tar;
        let is_qcow2 = head.starts_with(&qcow2::MAGIC);
        let mut all = io::Cursor::new(head).chain(from);
        let driver = Driver::parse(&request.driver)?;
        options::check(driver, &request.options)?;
        if is_qcow2 || is_raw {
            let options = request.options.clone();
            let request = CreateVolume { driver: "disk".into(), options, ..request.clone() };
            options::check(Driver::Disk, &request.options)?;
            return self.bring_in(&request, |aside| {
                let path = aside.path.join("disk.img");
                let to = File::options().create_new(true).read(true).write(true).open(&path);
                let to = to.map_err(EngineError::io("cannot make", &path))?;
                match is_qcow2 {
                    true => read_qcow2(&mut all, &aside.path.join("image"), &to),
                    false => read_raw(&mut all, &to),
                }
                .map_err(broken)?;
                finish_disk(&to, &path, request.name.as_deref().unwrap_or("NEW"))?;
                mark_foreign(&aside.path)
            });
        }
        if driver == Driver::Local && !request.options.is_empty() {
            return Err(EngineError::Unsupported(
                "a tar is imported into a directory or a disk: leave the options of the driver local out"
                    .into(),
            ));
        }
        self.bring_in(request, |aside| match driver {
            Driver::Local => {
                let data = aside.path.join("_data");
                make_directory(&data)?;
                unpack(&data, &mut all)
            }
            Driver::Disk => {
                let path = aside.path.join("disk.img");
                let templates = self.paths.root.join("templates");
                make(&path, options::size(&request.options)?, &templates, options::kind(&request.options)?)?;
                let plan = VolumePlan {
                    name: request.name.clone().unwrap_or_default(),
                    place: self.places().join(format!(".import-{}", aside.id)),
                    source: types::VolumeSource::Disk { file: path.clone(), trusted: false },
                    read_only: false,
                    exclusive: true,
                };
                let held = place::hold(&plan)?;
                let done = unpack(&plan.mountpoint(), &mut all);
                held.release()?;
                place::clear(&plan.place)?;
                done
            }
        })
    }

    /// Has a new volume's directory made aside by `make`, and puts it in its place with its row, in one step.
    fn bring_in(&self, request: &CreateVolume, make: impl FnOnce(&Aside) -> Result<()>) -> Result<String> {
        let name = match request.name.as_deref().filter(|n| !n.is_empty()) {
            Some(name) => crate::mounts::volume_name(name)?,
            None => crate::ids::new_id()?.as_str().to_owned(),
        };
        let volume = VolumeInfo {
            name: name.clone(),
            created_ns: sys::host::now_ns(),
            anonymous: false,
            driver: Driver::parse(&request.driver)?,
            options: request.options.clone(),
            labels: request.labels.clone(),
            made: true,
            users: Vec::new(),
        };
        let free = |tx: &state::rusqlite::Connection| match super::find(tx, &name)? {
            Some(there) => Err(super::taken(&there)),
            None => Ok(()),
        };
        free(self.db.conn())?;
        let volumes = self.volumes_dir();
        let aside = aside::make(&volumes)?;
        let io = |what| EngineError::io(what, &aside.path);
        let target = volumes.join(&name);
        let made = make(&aside).and_then(|()| {
            let synced = File::open(&aside.path).and_then(|dir| Ok(rustix::fs::syncfs(dir)?));
            synced.map_err(io("cannot write out"))?;
            self.db.write(|tx| {
                free(tx)?;
                super::insert(&volumes, tx, &volume)?;
                std::fs::rename(&aside.path, &target)
                    .and_then(|()| File::open(&volumes)?.sync_all())
                    .map_err(io("cannot give its name to"))
            })
        });
        if made.is_err() {
            // It may have its name by now, and no row.
            remove_tree(&aside.path).and_then(|()| self.discard_volume(&name))?;
        }
        made?;
        self.volume_event("create", &volume);
        Ok(name)
    }

    /// Runs `work` on a volume's files, while nobody changes them.
    fn with_volume<T>(
        &self,
        volume: &VolumeInfo,
        pause: bool,
        work: impl FnOnce(&Root) -> Result<T>,
    ) -> Result<T> {
        if volume.driver == Driver::Disk {
            self.refuse_foreign(volume)?;
        }
        let _still = self.still(volume, pause)?;
        let open = |path: &Path| Root::open(path).map_err(EngineError::io("cannot open", path));
        let Some(plan) = self.volume_plan(volume, true)? else {
            return work(&open(&self.paths.volume(&volume.name))?);
        };
        // A container that runs has it mounted where this host can see it.
        if plan.exclusive && place::is_mounted(&plan.mountpoint())? {
            return work(&open(&plan.mountpoint())?);
        }
        let held = place::hold(&plan)?;
        let done = open(&plan.mountpoint()).and_then(|root| work(&root));
        held.release()?;
        done
    }

    /// Runs `work` on a volume's disk, while nobody changes it.
    fn with_disk<T>(
        &self,
        volume: &VolumeInfo,
        pause: bool,
        work: impl FnOnce(&File, u64) -> io::Result<T>,
    ) -> Result<T> {
        let path = self.disk_file(&volume.name);
        let io = |what| EngineError::io(what, &path);
        let _still = self.still(volume, pause)?;
        let mountpoint = self.place(&volume.name).join("mnt");
        let file = match place::is_mounted(&mountpoint)? {
            true => {
                flush(&mountpoint).map_err(io("cannot write out"))?;
                File::open(&path).map_err(io("cannot open the disk"))?
            }
            false => place::lock_disk(&volume.name, &path, true)?,
        };
        let size = file.metadata().map_err(io("cannot look at the disk"))?.len();
        work(&file, size).map_err(io("cannot copy the disk"))
    }

    /// Pauses those who may write to a volume.
    fn still(&self, volume: &VolumeInfo, pause: bool) -> Result<Still> {
        let mut still = Still(Vec::new());
        for id in self.volume_users(&volume.name)? {
            let Ok(user) = store::find(&self.db, &id) else { continue };
            let Liveness::Supervised(state) = self.liveness(&user)? else { continue };
            if !state.status.is_active()
                || !user.mounts.iter().any(|m| m.volume == volume.name && !m.read_only)
            {
                continue;
            }
            if user.is_vm() && volume.driver == Driver::Disk {
                return Err(EngineError::Conflict(format!(
                    "volume {} is in use by the microVM {}, which has a part of it in its memory: stop it first",
                    volume.name, user.name
                )));
            }
            if pause && state.status == Status::Running {
                let mut client = self.client(&user)?;
                client.hold()?;
                still.0.push(client);
            }
        }
        Ok(still)
    }
}

/// Writes a mounted filesystem out, its journal included. Those who write to it stand still already: it is frozen for what
/// the kernel does then, and thawed at once, by whomever it was frozen. What one leaves who is killed in between, the next
/// one thaws, or the next recovery.
fn flush(mountpoint: &Path) -> io::Result<()> {
    let dir = OwnedFd::from(File::open(mountpoint)?);
    rustix::fs::syncfs(&dir)?;
    let _ = sys::fsctl::freeze(&dir);
    place::thaw(&dir);
    Ok(())
}

fn make_directory(path: &Path) -> Result<()> {
    std::fs::DirBuilder::new().mode(0o755).create(path).map_err(EngineError::io("cannot make", path))
}

fn mark_foreign(aside: &Path) -> Result<()> {
    let mark = aside.join("foreign");
    std::fs::write(&mark, b"").map_err(EngineError::io("cannot write", &mark))
}

/// A tar into a directory, whatever its compression: as its maker has it, but for devices, which would be this host's.
fn unpack(dir: &Path, from: &mut (dyn Read + Send)) -> Result<()> {
    let root = Root::open(dir).map_err(EngineError::io("cannot open", dir))?;
    let plain = image::decompress(from).map_err(|e| invalid(format!("cannot import the volume: {e}")));
    let options = rootfs::UnpackOptions { no_devices: true, ..Default::default() };
    Ok(rootfs::unpack(&root, Path::new("/"), &mut plain?.1, &options)?)
}

/// Calls `take` for the ranges of a file that are no holes.
pub(super) fn data_ranges(
    file: &File,
    size: u64,
    mut take: impl FnMut(u64, u64) -> io::Result<()>,
) -> io::Result<()> {
    let mut at = 0;
    while at < size {
        let start = match seek(file, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No more data (lseek(2)); anything else would pass half a disk off as the whole.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let end = seek(file, SeekFrom::Hole(start))?.min(size);
        if start < end {
            take(start, end)?;
        }
        at = end.max(at + 1);
    }
    Ok(())
}

/// The whole disk, zeros and all: a stream has no holes.
fn write_raw(disk: &File, size: u64, out: &mut dyn Write) -> io::Result<()> {
    let (mut buffer, zeros) = (vec![0; PIECE], vec![0; PIECE]);
    let mut at = 0;
    let fill = |out: &mut dyn Write, mut count: u64| -> io::Result<()> {
        while count > 0 {
            let piece = zeros.get(..count.min(PIECE as u64) as usize).unwrap_or_default();
            out.write_all(piece)?;
            count -= piece.len() as u64;
        }
        Ok(())
    };
    data_ranges(disk, size, |start, end| {
        fill(out, start - at)?;
        at = start;
        while at < end {
            let piece = buffer.get_mut(..(end - at).min(PIECE as u64) as usize).unwrap_or_default();
            disk.read_exact_at(piece, at)?;
            out.write_all(piece)?;
            at += piece.len() as u64;
        }
        Ok(())
    })?;
    fill(out, size - at)?;
    out.flush()
}

/// A raw disk from a stream; zeros become holes.
fn read_raw(from: &mut dyn Read, to: &File) -> io::Result<()> {
    let mut buffer = vec![0; PIECE];
    let mut at = 0;
    loop {
        let mut filled = 0;
        while let Some(rest) = buffer.get_mut(filled..).filter(|r| !r.is_empty()) {
            match from.read(rest)? {
                0 => break,
                n => filled += n,
            }
        }
        let piece = buffer.get(..filled).unwrap_or_default();
        if piece.iter().any(|b| *b != 0) {
            to.write_all_at(piece, at)?;
        }
        at += filled as u64;
        if at > MAX_SIZE {
            return Err(io::Error::other("it is larger than a disk volume can be"));
        }
        if filled < PIECE {
            return to.set_len(at);
        }
    }
}

/// A disk from an image, which is kept in a file meanwhile: it is read back and forth.
fn read_qcow2(from: &mut dyn Read, spool: &Path, to: &File) -> io::Result<()> {
    let mut file = File::options().create_new(true).read(true).write(true).open(spool)?;
    let copied = io::copy(&mut from.take(MAX_SIZE), &mut file).and_then(|_| file.rewind());
    let read = copied.and_then(|()| {
        let image = qcow2::Image::open(&file, MAX_SIZE)?;
        to.set_len(image.size)?;
        image.read(|at, bytes| match bytes.iter().any(|b| *b != 0) {
            true => to.write_all_at(bytes, at),
            false => Ok(()),
        })
    });
    std::fs::remove_file(spool)?;
    read
}

/// Checks what was imported, as far as this host looks into it.
fn finish_disk(file: &File, path: &Path, name: &str) -> Result<()> {
    let io = |e| EngineError::io("cannot write the disk", path)(e);
    let length = file.metadata().map_err(io)?.len();
    let size = length.next_multiple_of(1 << 20);
    if !(MIN_SIZE..=MAX_SIZE).contains(&size) {
        return Err(invalid(format!("a disk volume has 16 MiB to 16 TiB, and the image has {length} bytes")));
    }
    match disk::superblock(file).map_err(io)? {
        Ok(_) => file.set_len(size).and_then(|()| file.sync_all()).map_err(io),
        Err(damage) => Err(damage.of(name, &PathBuf::from("the image"))),
    }
}
