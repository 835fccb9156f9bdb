//! The file of a disk volume: made, and looked at before it is used. Only its superblock is read here, with every field
//! checked: all else may have been written by an attacker, and is no business of this process.
//!
//! Source: "Ext4 Disk Layout" in the kernel's documentation (filesystems/ext4/super.rst).

use super::options::TRUST;
use crate::machine::disk::{Use, make};
use crate::{EngineError, Result};
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::{Path, PathBuf};

/// Where the superblock begins, and its size.
const START: u64 = 1024;
const SIZE: usize = 1024;
const MAGIC: u64 = 0xef53;
/// In `s_state`: the kernel found errors.
const ERROR: u64 = 2;
/// In `s_feature_incompat`: the journal holds what the rest does not.
const RECOVER: u64 = 4;
/// The same: block numbers have 64 bits.
const WIDE: u64 = 0x80;
/// In `s_feature_ro_compat`: checksums.
const CHECKSUMS: u64 = 0x400;

/// Makes the disk, unless it is there.
pub(crate) fn ensure(path: &Path, size: u64, templates: &Path, of: Use) -> Result<()> {
    match path.exists() {
        true => Ok(()),
        false => make(path, size, templates, of),
    }
}

/// Beside a disk: others than this host's kernel have written its filesystem.
pub(crate) fn mark(file: &Path) -> PathBuf {
    file.with_file_name("foreign")
}

/// Whether they have. What cannot be looked at is not trusted either.
pub(crate) fn is_foreign(file: &Path) -> bool {
    mark(file).try_exists().unwrap_or(true)
}

/// Refuses what this host's kernel should not mount.
pub(crate) fn refuse_foreign(name: &str, file: &Path, trusted: bool) -> Result<()> {
    if trusted || !is_foreign(file) {
        return Ok(());
    }
    Err(EngineError::Unsupported(format!(
        "volume {name} has a filesystem that a guest's kernel has written, or that was imported: this host's kernel \
         does not mount it, as it could be made to attack it. Use it in a microVM (--vm); or, if you trust who \
         wrote it: dhow volume clone -o {TRUST}=true {name} NAME"
    )))
}

/// What a superblock says.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) struct Superblock {
    /// Bytes of a block.
    pub block: u64,
    /// How many blocks.
    pub blocks: u64,
    /// The journal is to be read first.
    pub needs_recovery: bool,
}

/// Why a disk should not be mounted.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Damage {
    /// There is no ext4.
    NoFilesystem,
    /// The superblock is not as it was written.
    Checksum,
    /// The kernel noted errors in the filesystem.
    Errors,
    /// The file is shorter than its filesystem.
    Short,
    /// It says what cannot be.
    Nonsense,
}

impl Damage {
    /// As a sentence about the disk of a volume, that says what to do.
    pub(crate) fn of(&self, name: &str, file: &Path) -> EngineError {
        let what = match self {
            Self::NoFilesystem => "it has no ext4 filesystem",
            Self::Checksum => "the checksum of its superblock is wrong",
            Self::Errors => "the kernel has found errors in its filesystem",
            Self::Short => "its file is shorter than its filesystem",
            Self::Nonsense => "its superblock says what cannot be",
        };
        EngineError::Conflict(format!(
            "the disk of volume {name} is damaged: {what}. Nothing was changed; copy {0} first, then repair it with: \
             e2fsck -f {0}",
            file.display()
        ))
    }
}

/// Looks at the superblock of a disk.
pub(crate) fn superblock(file: &File) -> std::io::Result<Result<Superblock, Damage>> {
    let length = file.metadata()?.len();
    let mut bytes = [0; SIZE];
    match file.read_exact_at(&mut bytes, START) {
        Ok(()) => Ok(read(&bytes, length)),
        Err(e) if e.kind() == std::io::ErrorKind::UnexpectedEof => Ok(Err(Damage::NoFilesystem)),
        Err(e) => Err(e),
    }
}

fn read(bytes: &[u8; SIZE], length: u64) -> Result<Superblock, Damage> {
    let number = |at: usize, size: usize| {
        bytes.get(at..at + size).into_iter().flatten().rev().fold(0, |n, b| n << 8 | u64::from(*b))
    };
    if number(0x38, 2) != MAGIC {
        return Err(Damage::NoFilesystem);
    }
    let (incompatible, read_only) = (number(0x60, 4), number(0x64, 4));
    let summed = bytes.get(..0x3fc).unwrap_or_default();
    if read_only & CHECKSUMS != 0 && u64::from(crc32c(summed)) != number(0x3fc, 4) {
        return Err(Damage::Checksum);
    }
    if number(0x3a, 2) & ERROR != 0 {
        return Err(Damage::Errors);
    }
    let high = if incompatible & WIDE != 0 { number(0x150, 4) << 32 } else { 0 };
    let (log, blocks) = (number(0x18, 4), high | number(0x4, 4));
    if log > 6 || blocks == 0 {
        return Err(Damage::Nonsense);
    }
    let block = 1024 << log;
    match blocks.checked_mul(block) {
        Some(size) if size <= length => {}
        Some(_) => return Err(Damage::Short),
        None => return Err(Damage::Nonsense),
    }
    Ok(Superblock { block, blocks, needs_recovery: incompatible & RECOVER != 0 })
}

/// CRC-32C as ext4 has it: all ones at first, not inverted at the end.
fn crc32c(bytes: &[u8]) -> u32 {
    bytes.iter().fold(u32::MAX, |crc, byte| {
        (0..8).fold(crc ^ u32::from(*byte), |c, _| if c & 1 == 1 { c >> 1 ^ 0x82f6_3b78 } else { c >> 1 })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::process::Command;

    #[test]
    fn a_disk_is_made_whole_and_its_damage_is_seen() {
        if Command::new("mke2fs").arg("-V").output().is_err() {
            eprintln!("SKIPPED: mke2fs is not installed");
            return;
        }
        let dir = tempfile::tempdir().unwrap();
        let (path, templates) = (dir.path().join("disk.img"), dir.path().join("templates"));
        ensure(&path, 64 << 20, &templates, Use::Volume).unwrap();
        let checked = Command::new("e2fsck").arg("-fn").arg(&path).output().unwrap();
        assert!(!String::from_utf8_lossy(&checked.stdout).contains("lost+found not found. Create? yes"));
        let names = Command::new("debugfs").args(["-R", "ls -p /"]).arg(&path).output().unwrap();
        assert!(!String::from_utf8_lossy(&names.stdout).contains("lost+found"));
        // Its journal, which takes 4 MiB at that size, is there to be written over.
        let told = Command::new("debugfs").args(["-R", "blocks <8>"]).arg(&path).output().unwrap();
        let told = String::from_utf8_lossy(&told.stdout).into_owned();
        let file = File::options().read(true).write(true).open(&path).unwrap();
        let journal: Vec<u64> = told.split_whitespace().filter_map(|block| block.parse().ok()).collect();
        assert!(journal.len() > 1000, "{told}");
        for at in journal.iter().map(|block| block * 4096) {
            assert_eq!(rustix::fs::seek(&file, rustix::fs::SeekFrom::Data(at)), Ok(at), "a hole");
        }
        let good = superblock(&file).unwrap().unwrap();
        assert_eq!((good.block * good.blocks, good.needs_recovery), (64 << 20, false));

        file.set_len(32 << 20).unwrap();
        assert_eq!(superblock(&file).unwrap(), Err(Damage::Short));
        file.set_len(64 << 20).unwrap();
        file.write_all_at(&[9], START + 0x10).unwrap();
        assert_eq!(superblock(&file).unwrap(), Err(Damage::Checksum));
        file.write_all_at(&[0; 2], START + 0x38).unwrap();
        assert_eq!(superblock(&file).unwrap(), Err(Damage::NoFilesystem));
        file.set_len(7).unwrap();
        assert_eq!(superblock(&file).unwrap(), Err(Damage::NoFilesystem));
    }

    #[test]
    fn nonsense_does_no_harm() {
        for seed in 0..2000u32 {
            let mut bytes = [0; SIZE];
            for (at, byte) in bytes.iter_mut().enumerate() {
                *byte = (seed.wrapping_mul(2_654_435_761).rotate_left(at as u32 % 31) ^ at as u32) as u8;
            }
            (bytes[0x38], bytes[0x39], bytes[0x65]) = (0x53, 0xef, 0);
            let _ = read(&bytes, 1 << 30);
        }
        assert_eq!(crc32c(b"123456789") ^ u32::MAX, 0xe306_9283);
    }
}
