//! Removal: `rmi`, `image prune` and the garbage collection behind them.
//!
//! What is deleted is decided and done within one write transaction, so that a lease taken by another process comes
//! before it and is heeded, or after it and finds the content gone. An image that a container still uses is hidden
//! instead (`removed`), and goes with the last container, at the next removal or prune.

use crate::db::{self, BlobRow};
use crate::lease::{self, Lease};
use crate::list::ListFilters;
use crate::{ImageError, ImageStore};
use rusqlite::{Connection, OptionalExtension};
use std::collections::HashSet;
use sys::file::Lock;
use types::docker::ImageDeleteResponseItem;
use types::{Digest, ErrorKind, ImageRef, Kinded};

/// A container that uses an image.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ImageUser {
    /// Its id, as it shall be shown.
    pub id: String,
    /// Whether it runs.
    pub running: bool,
}

/// What a prune did.
#[derive(Clone, Debug, Default)]
pub struct Pruned {
    /// Names and ids that went.
    pub items: Vec<ImageDeleteResponseItem>,
    /// Bytes that the disk got back.
    pub reclaimed: u64,
}

impl ImageStore {
    /// `docker rmi`: takes a name away, and with the last name the image. By id the image goes, if it has one name
    /// at most or `force` is set. `in_use` tells the containers of an image.
    pub fn remove(
        &self,
        name: &str,
        force: bool,
        in_use: &dyn Fn(&Digest) -> Vec<ImageUser>,
    ) -> Result<Vec<ImageDeleteResponseItem>, ImageError> {
        let mut pruned = Pruned::default();
        self.db.write(|tx| {
            let row = self.find(name)?;
            let refs = db::names(tx, &row.id)?;
            let digests = self.repo_digests(&row.id)?;
            let by_name = ImageRef::parse(name).ok().filter(|r| {
                refs.iter().any(|n| db::key(n) == db::key(r)) && r.digest().is_none() || digests.contains(r)
            });
            let users = in_use(&row.id);
            let running = users.iter().find(|u| u.running);
            if let Some(given) = &by_name {
                let last = refs.len() <= 1;
                if last && let (Some(user), false) = (users.first(), force) {
                    return Err(ImageError::Conflict(format!(
                        "unable to remove repository reference \"{}\" (must force) - container {} is using its referenced image {}",
                        given.familiar(),
                        user.id,
                        row.id.short()
                    )));
                }
                // A name by digest goes alone while there are tags.
                if given.digest().is_some() && !refs.is_empty() {
                    untag_digest(tx, given, &row.id, &mut pruned)?;
                    return Ok(());
                }
                if !last {
                    untag(tx, given, &mut pruned)?;
                    // Digests of a repository go with its last tag.
                    if !refs.iter().any(|r| db::key(r) != db::key(given) && r.name() == given.name()) {
                        for d in digests.iter().filter(|d| d.name() == given.name()) {
                            untag_digest(tx, d, &row.id, &mut pruned)?;
                        }
                    }
                    return Ok(());
                }
                if running.is_some() {
                    // Forced: the name goes, the image stays for the container.
                    return untag(tx, given, &mut pruned);
                }
            } else {
                if let Some(user) = running {
                    return Err(ImageError::Conflict(format!(
                        "unable to delete {} (cannot be forced) - image is being used by running container {}",
                        row.id.short(),
                        user.id
                    )));
                }
                if let (Some(user), false) = (users.first(), force) {
                    return Err(ImageError::Conflict(format!(
                        "unable to delete {} (must be forced) - image is being used by stopped container {}",
                        row.id.short(),
                        user.id
                    )));
                }
                let repositories: HashSet<String> = refs.iter().map(ImageRef::name).collect();
                if repositories.len() > 1 && !force {
                    return Err(ImageError::Conflict(format!(
                        "unable to delete {} (must be forced) - image is referenced in multiple repositories",
                        row.id.short()
                    )));
                }
            }
            self.delete(tx, &row.id, !users.is_empty(), &mut pruned)
        })?;
        self.tidy()?;
        Ok(pruned.items)
    }

    /// Ends an operation that held `lease`. What a failed one made and nothing else needs is dropped, unless a
    /// registry was the reason: then the next attempt takes it up.
    pub(crate) fn conclude<T>(&self, lease: Lease, done: Result<T, ImageError>) -> Result<T, ImageError> {
        match &done {
            Ok(_) => {}
            Err(e) if e.kind() == ErrorKind::Unavailable => lease.leave(),
            // The failure matters more than what cannot be cleaned now.
            Err(_) => drop(self.db.write(|tx| {
                let held = lease.give_up(tx)?;
                self.drop_unreferenced(tx, held.iter().map(|d| (*d, *d)).collect())?;
                held.iter().for_each(|d| self.content.discard_idle(d));
                Ok::<_, ImageError>(())
            })),
        }
        if done.is_ok() {
            // A second failure must not hide that it worked.
            let _ = self.tidy();
        }
        drop(lease);
        done
    }

    /// Drops what the dead left behind. One query and two small directories when there is nothing.
    fn tidy(&self) -> Result<(), ImageError> {
        if lease::any_dead(self.db.conn())? {
            self.db.write(|tx| {
                let left = lease::bury(tx)?;
                self.drop_unreferenced(tx, left.into_iter().map(|d| (d, d)).collect())
            })?;
        }
        self.content.sweep(false);
        self.layers.sweep_temporary();
        Ok(())
    }

    /// Deletes images that no name points to, or with `all` those that no container uses, then everything on the
    /// disk that belongs to no image.
    pub fn prune(
        &self,
        all: bool,
        filters: &ListFilters,
        in_use: &dyn Fn(&Digest) -> Vec<ImageUser>,
    ) -> Result<Pruned, ImageError> {
        let mut pruned = Pruned::default();
        self.db.write(|tx| {
            for row in db::all(tx)? {
                let names = db::names(tx, &row.id)?;
                let candidate = (all || names.is_empty()) && self.admits(&row, &names, filters)?;
                if candidate && in_use(&row.id).is_empty() {
                    self.delete(tx, &row.id, false, &mut pruned)?;
                }
            }
            Ok::<_, ImageError>(())
        })?;
        pruned.reclaimed += self.collect(in_use)?;
        Ok(pruned)
    }

    /// Garbage collection: hidden images whose containers are gone, and files that belong to no image and that no
    /// running operation holds. Answers the bytes that came free.
    pub fn collect(&self, in_use: &dyn Fn(&Digest) -> Vec<ImageUser>) -> Result<u64, ImageError> {
        let mut pruned = Pruned::default();
        self.tidy()?;
        self.db.write(|tx| {
            let hidden: Vec<Digest> = tx
                .prepare("SELECT id FROM image WHERE removed = 1")?
                .query_map([], |r| db::digest(r, 0))?
                .collect::<Result<_, _>>()?;
            for id in hidden.iter().filter(|id| in_use(id).is_empty()) {
                self.delete(tx, id, false, &mut pruned)?;
            }
            Ok::<_, ImageError>(())
        })?;
        // Unknown files may be an import's that does not know its digest yet: only when nothing is going on.
        let path = lease::sweep_lock(&self.content);
        if !self.content.tmp().is_dir() {
            return Ok(pruned.reclaimed);
        }
        let lock = Lock::try_exclusive(&path).map_err(|e| ImageError::io("lock", &path, e))?;
        if lock.is_some() {
            self.content.sweep(true);
            self.db.write(|tx| {
                let mut unknown: Vec<(Digest, Digest)> = Vec::new();
                let mut known = tx.prepare("SELECT digest, diff_id FROM blob")?;
                unknown.extend(
                    known
                        .query_map([], |r| Ok((db::digest(r, 0)?, db::digest(r, 1)?)))?
                        .collect::<Result<Vec<_>, _>>()?,
                );
                unknown.extend(self.content.list().into_iter().map(|d| (d, d)));
                unknown.extend(self.layers.list().into_iter().map(|d| (d, d)));
                pruned.reclaimed += self.drop_unreferenced(tx, unknown)?;
                Ok::<_, ImageError>(())
            })?;
        }
        Ok(pruned.reclaimed)
    }

    /// Takes all names of an image away and deletes it, or hides it while containers need its layers.
    fn delete(
        &self,
        tx: &Connection,
        id: &Digest,
        used: bool,
        pruned: &mut Pruned,
    ) -> Result<(), ImageError> {
        for name in db::names(tx, id)? {
            untag(tx, &name, pruned)?;
        }
        for name in self.repo_digests(id)? {
            untag_digest(tx, &name, id, pruned)?;
        }
        pruned.items.push(ImageDeleteResponseItem { deleted: Some(id.to_string()), ..Default::default() });
        if used {
            tx.execute("UPDATE image SET removed = 1 WHERE id = ?1", [id.hex()])?;
            return Ok(());
        }
        let blobs: Vec<BlobRow> = db::blobs(tx, id)?;
        tx.execute("DELETE FROM image WHERE id = ?1", [id.hex()])?;
        pruned.reclaimed +=
            self.drop_unreferenced(tx, blobs.iter().map(|b| (b.digest, b.diff_id)).collect())?;
        Ok(())
    }

    /// Deletes those of these blobs and layers that no image and no lease holds.
    fn drop_unreferenced(&self, tx: &Connection, of: Vec<(Digest, Digest)>) -> Result<u64, ImageError> {
        let held = lease::held(tx)?;
        let mut by_blob = tx.prepare_cached("SELECT 1 FROM image_layer WHERE blob = ?1 LIMIT 1")?;
        let mut by_layer = tx.prepare_cached("SELECT 1 FROM image_layer WHERE diff_id = ?1 LIMIT 1")?;
        let mut freed = 0;
        for (blob, diff_id) in of {
            if !held.contains(&blob) && by_blob.query_row([blob.hex()], |_| Ok(())).optional()?.is_none() {
                freed += self.content.remove(&blob)?;
                tx.execute("DELETE FROM blob WHERE digest = ?1", [blob.hex()])?;
            }
            let unheld = !held.contains(&diff_id);
            if unheld
                && by_layer.query_row([diff_id.hex()], |_| Ok(())).optional()?.is_none()
                && self.layers.get(&diff_id).is_some()
            {
                freed += self.layers.remove(&diff_id).map_err(|e| {
                    crate::unpack::layer_error(&format!("layer {}", diff_id.short()), &self.content, e)
                })?;
            }
        }
        Ok(freed)
    }
}

fn untag(tx: &Connection, name: &ImageRef, pruned: &mut Pruned) -> Result<(), ImageError> {
    tx.execute("DELETE FROM image_ref WHERE name = ?1", [db::key(name)])?;
    pruned.items.push(ImageDeleteResponseItem { untagged: Some(name.familiar()), ..Default::default() });
    Ok(())
}

fn untag_digest(
    tx: &Connection,
    name: &ImageRef,
    id: &Digest,
    pruned: &mut Pruned,
) -> Result<(), ImageError> {
    if let Some(d) = name.digest() {
        tx.execute(
            "DELETE FROM repo_digest WHERE repository = ?1 AND digest = ?2 AND image = ?3",
            [name.name(), d.hex(), id.hex()],
        )?;
        pruned.items.push(ImageDeleteResponseItem { untagged: Some(name.familiar()), ..Default::default() });
    }
    Ok(())
}
