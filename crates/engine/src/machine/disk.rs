//! Disks: sparse files, each with an ext4 filesystem of its own. A microVM's writable one, and those of volumes.

use crate::{EngineError, Result};
use rustix::fs::{SeekFrom, ftruncate, seek};
use std::fs::File;
use std::os::fd::OwnedFd;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use sys::file::Lock;

/// Size where nobody says one.
pub(crate) const DEFAULT_SIZE: u64 = 10 << 30;
/// Below this there is no room for a journal and some files.
pub(crate) const MIN_SIZE: u64 = 16 << 20;
/// ext4 with blocks of 4 KiB ends here.
pub(crate) const MAX_SIZE: u64 = 16 << 40;
/// From this size on mke2fs would make larger journals than this, in MiB. One that is laid out for a volume is not to cost
/// much of the host's disk, and who needs a larger one has more in it than an `fsync`.
const LARGE: u64 = 1 << 30;
const JOURNAL: u64 = 16;

/// Makes the disk, unless it is there, in this size.
///
/// The filesystem is made once for each size, and copied from then on: a copy takes its few blocks of metadata only.
pub(super) fn ensure(path: &Path, size: u64, templates: &Path) -> Result<()> {
    match std::fs::metadata(path) {
        Ok(meta) if meta.len() == size => return Ok(()),
        Ok(meta) => {
            return Err(EngineError::Conflict(format!(
                "the disk {} has {} bytes, and {size} were asked for: remove the container and run it anew",
                path.display(),
                meta.len()
            )));
        }
        Err(e) if e.kind() == std::io::ErrorKind::NotFound => {}
        Err(e) => return Err(EngineError::io("cannot look at the disk", path)(e)),
    }
    make(path, size, templates, Use::Machine)
}

/// What a disk is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum Use {
    /// One microVM, whose end it does not outlive.
    Machine,
    /// Data that stays: it is on the host's disk when it is made, and has no directory `lost+found`, which would be
    /// the volume's own. Its journal is laid out in the file: else each commit of what an `fsync` writes would have the
    /// host allocate blocks and commit that in a journal of its own, until the volume's has been once round.
    Volume,
    /// The same, with fast commits (ext4's journal.rst in the kernel's documentation): an `fsync` that changes more than data
    /// writes one block of the journal, not a transaction.
    FastVolume,
}

impl Use {
    /// Whether zeros in a file are to take room like other data.
    fn is_laid_out(self) -> bool {
        self != Self::Machine
    }
}

/// The size of a disk, as a user writes it; `what` has it.
pub(crate) fn parse_size(text: &str, what: &str) -> Result<u64> {
    let size = types::units::parse_bytes(text).and_then(|s| u64::try_from(s).ok());
    let size = size.ok_or_else(|| {
        EngineError::Invalid(format!("invalid disk size {text:?}: write it as 512m, 10g or 1t"))
    })?;
    let size = size.min(MAX_SIZE + 1).next_multiple_of(1 << 20);
    if !(MIN_SIZE..=MAX_SIZE).contains(&size) {
        return Err(EngineError::Invalid(format!("{what} has 16 MiB to 16 TiB: {text} were asked for")));
    }
    Ok(size)
}

/// Makes a disk, whole or not at all. Whoever comes second waits for the first, and finds it made.
pub(crate) fn make(path: &Path, size: u64, templates: &Path, of: Use) -> Result<()> {
    let template = template(size, templates, of)?;
    let half = path.with_extension("new");
    let copy = |to: File| -> std::io::Result<()> {
        copy_data(&File::open(&template)?, &to, size, of.is_laid_out())?;
        if of != Use::Machine {
            to.sync_all()?;
        }
        std::fs::rename(&half, path)?;
        match path.parent() {
            Some(dir) if of != Use::Machine => File::open(dir)?.sync_all(),
            _ => Ok(()),
        }
    };
    let made = alone(&half).and_then(|to| match path.exists() {
        true => std::fs::remove_file(&half),
        false => copy(to).inspect_err(|_| drop(std::fs::remove_file(&half))),
    });
    made.map_err(EngineError::io("cannot make the disk", path))
}

/// Opens a file that is to take another's place, empty and locked: nobody else writes to it, and after the death of who did
/// the next one begins anew.
pub(crate) fn alone(half: &Path) -> std::io::Result<File> {
    let file = File::from(OwnedFd::from(Lock::exclusive(half)?));
    file.set_len(0)?;
    Ok(file)
}

/// Options of mke2fs.
const LAZY: &str = "lazy_itable_init=1,lazy_journal_init=1,discard,root_owner=0:0";
const LAID_OUT: &str = "lazy_itable_init=1,lazy_journal_init=0,discard,root_owner=0:0";
/// How the names of half-made ones begin.
const HALF: &str = ".half-";

/// The empty filesystem of this size.
fn template(size: u64, dir: &Path, of: Use) -> Result<PathBuf> {
    let name = match of {
        Use::Machine => format!("ext4-{size}.img"),
        Use::Volume => format!("volume-{size}.img"),
        Use::FastVolume => format!("fast-volume-{size}.img"),
    };
    let path = dir.join(&name);
    if path.exists() {
        return Ok(path);
    }
    let io = |what| EngineError::io(what, &path);
    std::fs::create_dir_all(dir).map_err(io("cannot make the directory of"))?;
    sweep(dir);
    let half = dir.join(format!("{HALF}{name}"));
    // Held until it has its name.
    let file = alone(&half).map_err(io("cannot make"))?;
    let journal = (of.is_laid_out() && size >= LARGE).then(|| format!("-Jsize={JOURNAL}"));
    let make = || -> Result<()> {
        if path.exists() {
            return std::fs::remove_file(&half).map_err(io("cannot make"));
        }
        ftruncate(&file, size).map_err(|e| io("cannot make")(e.into()))?;
        let mut mke2fs = Command::new("mke2fs");
        mke2fs
            .args(["-q", "-F", "-t", "ext4", "-m", "0", "-L", "dhow"])
            // Those of the host's filesystem: smaller ones, which mke2fs gives small disks, are each a part of one of the host's,
            // and the host writes such parts one after the other.
            .args(["-b", "4096"])
            // A hole reads as zeros, and after a discard mke2fs notes that the tables of inodes do. A guest would have the
            // host zero them, 2 MiB for each 128 MiB of disk, some seconds after its first mount.
            .args(["-E", if of.is_laid_out() { LAID_OUT } else { LAZY }])
            // It would make holes of the journal's zeros.
            .envs(of.is_laid_out().then_some(("UNIX_IO_NOZEROOUT", "1")))
            .args(journal.as_slice())
            .args(match of {
                // A volume may grow. Room for that is 4 MiB to copy, and to write, for each machine.
                Use::Machine => &["-O", "^resize_inode"][..],
                Use::FastVolume => &["-O", "fast_commit"],
                Use::Volume => &[],
            })
            .arg(&half);
        tool(&mut mke2fs, &format!("make a filesystem of {size} bytes"))?;
        if of != Use::Machine {
            tool(
                Command::new("debugfs").args(["-w", "-R", "rmdir lost+found"]).arg(&half),
                "prepare a volume",
            )?;
        }
        std::fs::rename(&half, &path).map_err(io("cannot make"))
    };
    let done = make();
    if done.is_err() {
        let _ = std::fs::remove_file(&half);
    }
    done.map(|()| path)
}

/// Runs one of e2fsprogs.
pub(crate) fn tool(command: &mut Command, what: &str) -> Result<()> {
    let program = command.get_program().to_string_lossy().into_owned();
    match command.stdin(Stdio::null()).output() {
        Ok(out) if out.status.success() => Ok(()),
        Ok(out) => Err(EngineError::Invalid(format!(
            "{program} cannot {what}: {}",
            String::from_utf8_lossy(&out.stderr).trim()
        ))),
        Err(_) => Err(EngineError::Unsupported(format!(
            "{program} is not installed: disks of microVMs and of volumes need the package e2fsprogs"
        ))),
    }
}

/// Removes what commands that were killed left half-made.
fn sweep(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let is_half = entry.file_name().to_str().is_some_and(|name| name.starts_with(HALF));
        if is_half && let Ok(Some(_lock)) = Lock::try_exclusive(&entry.path()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Copies the data, leaves the holes, and makes more of them where there are nothing but zeros.
pub(crate) fn copy_sparse(from: &File, to: &File, size: u64) -> std::io::Result<()> {
    copy_data(from, to, size, false)
}

fn copy_data(from: &File, to: &File, size: u64, zeros: bool) -> std::io::Result<()> {
    ftruncate(to, size)?;
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0;
    loop {
        let start = match seek(from, SeekFrom::Data(at)) {
            Ok(start) => start,
            // No more data (lseek(2)); anything else would pass half a copy off as the disk.
            Err(rustix::io::Errno::NXIO) => return Ok(()),
            Err(e) => return Err(e.into()),
        };
        let end = seek(from, SeekFrom::Hole(start))?;
        let mut position = start;
        while position < end {
            let length = usize::try_from(end - position).unwrap_or(usize::MAX).min(buffer.len());
            let piece = buffer.get_mut(..length).unwrap_or_default();
            from.read_exact_at(piece, position)?;
            // mke2fs writes many zeros.
            if zeros || piece.iter().any(|b| *b != 0) {
                to.write_all_at(piece, position)?;
            }
            position += length as u64;
        }
        at = end;
    }
}

/// Bytes that a sparse file really takes.
#[cfg(test)]
fn used(path: &Path) -> u64 {
    use std::os::unix::fs::MetadataExt;
    std::fs::metadata(path).map_or(0, |m| m.blocks() * 512)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_disk_is_sparse_and_made_once() {
        if Command::new("mke2fs").arg("-V").output().is_err() {
            eprintln!("SKIPPED: mke2fs is not installed");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (disk, templates) = (dir.path().join("disk.img"), dir.path().join("templates"));
        std::fs::create_dir(&templates).unwrap();
        let left = templates.join(format!("{HALF}ext4-1.img"));
        std::fs::write(&left, "half").unwrap();
        // By somebody who was killed at it.
        std::fs::write(disk.with_extension("new"), vec![7; 1 << 20]).unwrap();
        ensure(&disk, 1 << 30, &templates).unwrap();
        assert!(!left.exists(), "whoever made it was killed");
        assert_eq!(std::fs::metadata(&disk).unwrap().len(), 1 << 30);
        assert!(used(&disk) < 8 << 20, "{}", used(&disk));
        let made = std::fs::metadata(&disk).unwrap().modified().unwrap();
        ensure(&disk, 1 << 30, &templates).unwrap();
        assert_eq!(std::fs::metadata(&disk).unwrap().modified().unwrap(), made);
        let checked = Command::new("e2fsck").args(["-fn"]).arg(&disk).output().unwrap();
        assert!(checked.status.success(), "{}", String::from_utf8_lossy(&checked.stdout));
        let told = Command::new("dumpe2fs").arg(&disk).output().unwrap();
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let groups = told.lines().filter(|line| line.starts_with("Group ") && line.contains("(Blocks "));
        assert_eq!(groups.clone().count(), 8);
        assert!(
            groups.into_iter().all(|line| line.contains("ITABLE_ZEROED")),
            "the guest would write them: {told}"
        );
        let refused = ensure(&disk, 2 << 30, &templates).unwrap_err().to_string();
        assert!(refused.contains("2147483648 were asked for"), "{refused}");
    }

    #[test]
    fn many_who_make_one_disk_at_once_find_one() {
        if Command::new("mke2fs").arg("-V").output().is_err() {
            eprintln!("SKIPPED: mke2fs is not installed");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (disk, templates) = (dir.path().join("disk.img"), dir.path().join("templates"));
        std::thread::scope(|scope| {
            for n in 0..8u64 {
                let (disk, templates) = (&disk, &templates);
                scope.spawn(move || {
                    make(disk, 16 << 20, templates, Use::Volume).unwrap();
                    // What one writes who uses it the next one does not write over.
                    let file = File::options().read(true).write(true).open(disk).unwrap();
                    let mut there = [0; 1];
                    file.write_all_at(&[9], n).unwrap();
                    std::thread::sleep(std::time::Duration::from_millis(20));
                    file.read_exact_at(&mut there, n).unwrap();
                    assert_eq!(there, [9], "{n}");
                });
            }
        });
        let mut all = [0; 8];
        File::open(&disk).unwrap().read_exact_at(&mut all, 0).unwrap();
        assert_eq!(all, [9; 8]);
        assert_eq!(std::fs::read_dir(dir.path()).unwrap().count(), 2);
        assert_eq!(std::fs::read_dir(&templates).unwrap().count(), 1);
    }

    #[test]
    fn what_cannot_be_read_is_no_disk() {
        let dir = tempfile::tempdir().unwrap();
        let (pipe, _) = rustix::pipe::pipe().unwrap();
        let to = File::create(dir.path().join("disk")).unwrap();
        assert!(copy_sparse(&File::from(pipe), &to, 4096).is_err());
        let hole = File::create(dir.path().join("hole")).unwrap();
        hole.set_len(4096).unwrap();
        copy_sparse(&File::open(dir.path().join("hole")).unwrap(), &to, 4096).unwrap();
    }

    #[test]
    fn a_size_that_is_too_small_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let templates = dir.path().join("templates");
        assert!(ensure(&dir.path().join("disk.img"), 4096, &templates).is_err());
        assert_eq!(std::fs::read_dir(&templates).unwrap().count(), 0);
    }
}
