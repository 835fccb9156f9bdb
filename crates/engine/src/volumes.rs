//! Volumes: directories below the store that outlive containers. Here the anonymous ones, and named ones as `-v`
//! makes them.

use crate::mounts::Kind;
use crate::store::{Container, json};
use crate::{Engine, EngineError, Result};
use state::rusqlite::{OptionalExtension, Transaction, params};
use std::collections::BTreeMap;
use std::os::unix::fs::DirBuilderExt;

/// One volume.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct VolumeInfo {
    /// Name.
    pub name: String,
    /// Nanoseconds since the epoch.
    pub created_ns: i64,
    /// Made for one container alone.
    pub anonymous: bool,
    /// Containers that use it, by full id.
    pub users: Vec<String>,
}

/// Notes the volumes of a new container, within the transaction that makes it.
pub(crate) fn claim(tx: &Transaction<'_>, container: &Container) -> Result<()> {
    for mount in container.mounts.iter().filter(|m| m.kind == Kind::Volume) {
        tx.prepare_cached("INSERT OR IGNORE INTO volumes VALUES (?1, ?2, ?3, ?4)")?.execute(params![
            mount.volume,
            container.created_ns,
            mount.anonymous,
            json(&BTreeMap::<String, String>::new()),
        ])?;
        tx.prepare_cached("INSERT OR IGNORE INTO container_volumes VALUES (?1, ?2)")?
            .execute([container.id.as_str(), &mount.volume])?;
    }
    Ok(())
}

impl Engine {
    /// Makes the directories of a container's volumes, where they are missing.
    pub(crate) fn prepare_volumes(&self, container: &Container) -> Result<()> {
        for mount in container.mounts.iter() {
            let dir = match mount.kind {
                Kind::Volume => self.paths.volume(&mount.volume),
                Kind::Bind if mount.create_source => mount.source.clone(),
                _ => continue,
            };
            if mount.kind == Kind::Volume {
                // Only the volume itself has a mode for its users: nobody but root gets there by the host's path.
                let parent = dir.parent().unwrap_or(&dir);
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o700)
                    .create(parent)
                    .map_err(EngineError::io("cannot create the directory", parent))?;
            }
            if !dir.exists() {
                std::fs::DirBuilder::new()
                    .recursive(true)
                    .mode(0o755)
                    .create(&dir)
                    .map_err(EngineError::io("cannot create the directory", &dir))?;
            }
        }
        Ok(())
    }

    /// Every volume, by name.
    pub fn volumes(&self) -> Result<Vec<VolumeInfo>> {
        let mut statement =
            self.db.conn().prepare_cached("SELECT name, created_ns, anonymous FROM volumes ORDER BY name")?;
        let rows = statement.query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?;
        rows.map(|row| {
            let (name, created_ns, anonymous): (String, i64, bool) = row?;
            let users = self.volume_users(&name)?;
            Ok(VolumeInfo { name, created_ns, anonymous, users })
        })
        .collect()
    }

    fn volume_users(&self, name: &str) -> Result<Vec<String>> {
        let mut statement =
            self.db.conn().prepare_cached("SELECT container FROM container_volumes WHERE volume = ?1")?;
        let rows = statement.query_map([name], |r| r.get(0))?;
        Ok(rows.collect::<state::rusqlite::Result<_>>()?)
    }

    /// Removes a volume that no container uses, and its data.
    pub fn remove_volume(&self, name: &str) -> Result<()> {
        self.db.write(|tx| {
            let known: Option<i64> =
                tx.query_row("SELECT 1 FROM volumes WHERE name = ?1", [name], |r| r.get(0)).optional()?;
            known.ok_or_else(|| EngineError::NoSuchVolume(name.to_owned()))?;
            let users = self.volume_users(name)?;
            if !users.is_empty() {
                return Err(EngineError::Conflict(format!(
                    "remove {name}: volume is in use - [{}]",
                    users.join(", ")
                )));
            }
            tx.execute("DELETE FROM volumes WHERE name = ?1", [name])?;
            Ok(())
        })?;
        self.discard_volume(name)
    }

    /// Deletes the data of a volume whose row is gone.
    pub(crate) fn discard_volume(&self, name: &str) -> Result<()> {
        let data = self.paths.volume(name);
        let Some(dir) = data.parent() else { return Ok(()) };
        match std::fs::remove_dir_all(dir) {
            Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                Err(EngineError::io("cannot remove the volume", dir)(e))
            }
            _ => Ok(()),
        }
    }
}
