//! Directories of volumes that have no row: those on their way in, those on their way out, and what the dead left of both.
//!
//! ```text
//! <root>/volumes/.new-<id>   being made; locked by who makes it. With its row it gets its name, in one transaction
//! <root>/volumes/.gone-<id>  had its name taken away in a transaction that saw no row of that name; to be deleted
//! <root>/volumes/<name>      without a row: of a removal that was cut short. Whoever takes the name puts it aside first
//! ```
//!
//! So nobody ever finds what another volume of the same name has held, nor a part of it, and nothing is deleted by a name
//! that somebody may be taking.

use super::{VolumeInfo, find, place};
use crate::recover::remove_tree;
use crate::{Engine, EngineError, Result};
use rustix::fs::{FlockOperation, flock};
use state::rusqlite::Connection;
use std::fs::{DirBuilder, File};
use std::io::ErrorKind;
use std::os::unix::fs::DirBuilderExt;
use std::path::{Path, PathBuf};
use sys::file::{Lock, open_locked};

/// How the names begin; no volume's name begins with a dot.
const NEW: &str = ".new-";
const GONE: &str = ".gone-";
/// Bytes of a random id in hexadecimal digits.
const ID: usize = 16;

/// A directory that is being made; nobody else's as long as this lives.
pub(super) struct Aside {
    pub path: PathBuf,
    /// What the same volume is called elsewhere while it is made.
    pub id: String,
    _lock: File,
}

fn new_id() -> Result<String> {
    let bytes: [u8; ID] = sys::host::random().map_err(EngineError::io("getrandom", "".as_ref()))?;
    Ok(bytes.iter().map(|byte| format!("{byte:02x}")).collect())
}

/// Makes a directory for a volume that is on its way.
pub(super) fn make(volumes: &Path) -> Result<Aside> {
    loop {
        let id = new_id()?;
        let path = volumes.join(format!("{NEW}{id}"));
        let made = DirBuilder::new().recursive(true).mode(0o700).create(&path);
        made.map_err(EngineError::io("cannot make", &path))?;
        match open_locked(&path, true) {
            Ok(Some(lock)) => return Ok(Aside { path, id, _lock: lock }),
            // Somebody sweeps, and was faster.
            Ok(None) => {}
            Err(e) if e.kind() == ErrorKind::NotFound => {}
            Err(e) => return Err(EngineError::io("cannot lock", &path)(e)),
        }
    }
}

/// Whether its maker is dead.
fn is_left(path: &Path) -> bool {
    File::open(path).is_ok_and(|dir| flock(&dir, FlockOperation::NonBlockingLockExclusive).is_ok())
}

/// Takes away the name of what lies under one that has no row, within the transaction that knows it; where that is now.
pub(super) fn put_aside(volumes: &Path, name: &str) -> Result<Option<PathBuf>> {
    let (from, to) = (volumes.join(name), volumes.join(format!("{GONE}{}", new_id()?)));
    match std::fs::rename(&from, &to) {
        Ok(()) => Ok(Some(to)),
        Err(e) if e.kind() == ErrorKind::NotFound => Ok(None),
        Err(e) => Err(EngineError::io("cannot put aside", &from)(e)),
    }
}

impl Engine {
    pub(super) fn volumes_dir(&self) -> PathBuf {
        self.paths.root.join("volumes")
    }

    /// Deletes the data of a volume whose row is gone, unless another one has its name already.
    pub(crate) fn discard_volume(&self, name: &str) -> Result<()> {
        // What a supervisor that was killed left mounted.
        place::clear(&self.place(name))?;
        let gone = self.db.write(|tx| match find(tx, name)? {
            Some(_) => Ok(None),
            None => put_aside(&self.volumes_dir(), name),
        })?;
        gone.map_or(Ok(()), |gone| remove_tree(&gone))
    }

    /// Removes a volume's row with `also`, if nobody uses it.
    pub(super) fn remove_row(&self, name: &str, also: impl Fn(&Path) -> Result<()>) -> Result<VolumeInfo> {
        self.db.write(|tx| {
            let volume = find(tx, name)?.ok_or_else(|| EngineError::NoSuchVolume(name.to_owned()))?;
            let users = self.volume_users(name)?;
            if !users.is_empty() {
                return Err(EngineError::Conflict(format!(
                    "remove {name}: volume is in use - [{}]",
                    users.join(", ")
                )));
            }
            also(&self.volumes_dir().join(name))?;
            tx.execute("DELETE FROM volumes WHERE name = ?1", [name])?;
            Ok(volume)
        })
    }

    /// Directories without a row, and disks that were to take another's place.
    pub(crate) fn sweep_volumes(&self) -> Result<()> {
        for entry in std::fs::read_dir(self.volumes_dir()).into_iter().flatten().flatten() {
            let name = entry.file_name();
            let Some(name) = name.to_str() else { continue };
            let path = entry.path();
            if name.starts_with(GONE) || (name.starts_with(NEW) && is_left(&path)) {
                remove_tree(&path)?;
            } else if !name.starts_with('.') {
                self.sweep_volume(self.db.conn(), name, &path)?;
            }
        }
        Ok(())
    }

    fn sweep_volume(&self, conn: &Connection, name: &str, path: &Path) -> Result<()> {
        if find(conn, name)?.is_none() {
            return self.discard_volume(name);
        }
        let half = path.join("disk.new");
        if half.exists()
            && let Ok(Some(_lock)) = Lock::try_exclusive(&half)
        {
            std::fs::remove_file(&half).map_err(EngineError::io("cannot remove", &half))?;
        }
        Ok(())
    }
}
