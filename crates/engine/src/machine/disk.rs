//! The writable disk of a microVM: a sparse file with an ext4 filesystem of its own.

use crate::{EngineError, Result};
use rustix::fs::{SeekFrom, ftruncate, seek};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

/// Size where nobody says one.
pub(super) const DEFAULT_SIZE: u64 = 10 << 30;
/// Below this there is no room for a journal and some files.
pub(super) const MIN_SIZE: u64 = 16 << 20;
/// ext4 with blocks of 4 KiB ends here.
pub(super) const MAX_SIZE: u64 = 16 << 40;

/// Makes the disk, unless it is there: then its size may only grow, which the guest's filesystem is told of.
///
/// The filesystem is made once for each size, and copied from then on: a copy takes its few blocks of metadata only.
pub(super) fn ensure(path: &Path, size: u64, templates: &Path) -> Result<()> {
    let io = |what| EngineError::io(what, path);
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
        Err(e) => return Err(io("cannot look at the disk")(e)),
    }
    let template = template(size, templates)?;
    let half = path.with_extension("new");
    let copy = || -> std::io::Result<()> {
        let (from, to) = (File::open(&template)?, File::create(&half)?);
        copy_sparse(&from, &to, size)?;
        std::fs::rename(&half, path)
    };
    copy().map_err(|e| {
        let _ = std::fs::remove_file(&half);
        io("cannot make the disk")(e)
    })
}

/// How the names of half-made ones begin; they end with the pid of who makes them.
const HALF: &str = ".ext4-";

/// The empty filesystem of this size.
fn template(size: u64, dir: &Path) -> Result<PathBuf> {
    let path = dir.join(format!("ext4-{size}.img"));
    if path.exists() {
        return Ok(path);
    }
    let io = |what| EngineError::io(what, &path);
    std::fs::create_dir_all(dir).map_err(io("cannot make the directory of"))?;
    sweep(dir);
    let half = dir.join(format!("{HALF}{size}-{}", std::process::id()));
    let make = || -> Result<()> {
        let file = File::create(&half).map_err(io("cannot make"))?;
        ftruncate(&file, size).map_err(|e| io("cannot make")(e.into()))?;
        let made = Command::new("mke2fs")
            .args(["-q", "-F", "-t", "ext4", "-m", "0", "-L", "dhow"])
            // A hole reads as zeros, and after a discard mke2fs notes that the tables of inodes do. A guest would have the
            // host zero them, 2 MiB for each 128 MiB of disk, some seconds after its first mount.
            .args(["-E", "lazy_itable_init=1,lazy_journal_init=1,discard,root_owner=0:0"])
            .arg(&half)
            .stdin(Stdio::null())
            .output();
        match made {
            Ok(out) if out.status.success() => Ok(()),
            Ok(out) => Err(EngineError::Invalid(format!(
                "mke2fs cannot make a filesystem of {size} bytes: {}",
                String::from_utf8_lossy(&out.stderr).trim()
            ))),
            Err(_) => Err(EngineError::Unsupported(
                "mke2fs is not installed: a microVM's disk needs the package e2fsprogs".into(),
            )),
        }
    };
    let done = make().and_then(|()| std::fs::rename(&half, &path).map_err(io("cannot make")));
    if done.is_err() {
        let _ = std::fs::remove_file(&half);
    }
    done.map(|()| path)
}

/// Removes what commands that were killed left half-made.
fn sweep(dir: &Path) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let name = entry.file_name();
        let maker = name.to_str().and_then(|n| n.strip_prefix(HALF)?.rsplit('-').next());
        if maker.is_some_and(|pid| !Path::new("/proc").join(pid).exists()) {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

/// Copies the data, leaves the holes.
fn copy_sparse(from: &File, to: &File, size: u64) -> std::io::Result<()> {
    ftruncate(to, size)?;
    if rustix::fs::ioctl_ficlone(to, from).is_ok() {
        return Ok(());
    }
    let mut buffer = vec![0; 64 << 10];
    let mut at = 0;
    loop {
        let Ok(start) = seek(from, SeekFrom::Data(at)) else { return Ok(()) };
        let end = seek(from, SeekFrom::Hole(start))?;
        let mut position = start;
        while position < end {
            let length = usize::try_from(end - position).unwrap_or(usize::MAX).min(buffer.len());
            let piece = buffer.get_mut(..length).unwrap_or_default();
            from.read_exact_at(piece, position)?;
            // mke2fs writes many zeros.
            if piece.iter().any(|b| *b != 0) {
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
        let left = templates.join(format!("{HALF}1-{}", i32::MAX));
        std::fs::write(&left, "half").unwrap();
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
        let groups: Vec<&str> = told.lines().filter(|line| line.starts_with("Group ")).collect();
        assert_eq!(groups.len(), 8);
        assert!(
            groups.iter().all(|line| line.contains("ITABLE_ZEROED")),
            "a guest would have them zeroed: {told}"
        );
        let refused = ensure(&disk, 2 << 30, &templates).unwrap_err().to_string();
        assert!(refused.contains("2147483648 were asked for"), "{refused}");
    }

    #[test]
    fn a_size_that_is_too_small_leaves_nothing() {
        let dir = tempfile::tempdir().unwrap();
        let templates = dir.path().join("templates");
        assert!(ensure(&dir.path().join("disk.img"), 4096, &templates).is_err());
        assert_eq!(std::fs::read_dir(&templates).unwrap().count(), 0);
    }
}
