//! Leases: digests that a running pull, load, import or commit needs although no image names them yet. Garbage
//! collection spares them. A lease ends with its process; what a killed one held is dropped at the end of the next
//! operation that did not use it.

use crate::ImageError;
use crate::content::Content;
use rusqlite::{Connection, params};
use std::cell::Cell;
use std::collections::HashSet;
use std::path::PathBuf;
use std::rc::Rc;
use sys::file::Lock;
use types::Digest;

/// Held for the length of an operation.
#[derive(Debug)]
pub(crate) struct Lease {
    db: Rc<state::Db>,
    holder: String,
    pid: i32,
    start: u64,
    /// What it holds outlives it, until the next operation has had its chance to use it.
    left: Cell<bool>,
    /// Keeps sweeps for unknown files away: an import knows the digest of what it makes only at its end.
    _sweep: Lock,
}

/// The lock that operations share and that a sweep for unknown files has alone.
pub(crate) fn sweep_lock(content: &Content) -> PathBuf {
    content.tmp().join("sweep.lock")
}

impl Lease {
    /// Holds nothing yet.
    pub fn new(db: &Rc<state::Db>, content: &Content) -> Result<Self, ImageError> {
        content.prepare()?;
        let path = sweep_lock(content);
        let sweep = Lock::shared(&path).map_err(|e| ImageError::io("lock", &path, e))?;
        let proc = |e| ImageError::io("read", std::path::Path::new("/proc/self/stat"), e);
        let pid = std::process::id() as i32;
        let unique = u64::from_ne_bytes(sys::host::random::<8>().map_err(proc)?);
        let start = sys::host::start_time(pid).map_err(proc)?;
        let holder = format!("{unique:016x}");
        Ok(Self { db: db.clone(), holder, pid, start, left: Cell::new(false), _sweep: sweep })
    }

    /// Leaves what it holds to the next operation, as a killed process does: a layer that came before the
    /// connection broke need not come again.
    pub fn leave(&self) {
        self.left.set(true);
    }

    /// Gives up everything, and answers what it was.
    pub fn give_up(&self, tx: &Connection) -> Result<Vec<Digest>, ImageError> {
        release(tx, &self.holder)
    }

    /// From here on these blobs and layers stay.
    pub fn hold<'a>(&self, digests: impl IntoIterator<Item = &'a Digest>) -> Result<(), ImageError> {
        self.db.write(|tx| {
            let mut add = tx.prepare_cached("INSERT OR IGNORE INTO lease VALUES (?1, ?2, ?3, ?4)")?;
            for d in digests {
                add.execute(params![self.holder, d.hex(), self.pid, self.start as i64])?;
            }
            Ok(())
        })
    }
}

impl Drop for Lease {
    fn drop(&mut self) {
        if self.left.get() {
            // The holder of nothing alive: the next operation takes it for a dead one's.
            let _ = self.db.conn().execute("UPDATE lease SET pid = 0 WHERE holder = ?1", [&self.holder]);
            return;
        }
        // A lease that stays ends with this process.
        let _ = self.db.conn().execute("DELETE FROM lease WHERE holder = ?1", [&self.holder]);
    }
}

fn release(tx: &Connection, holder: &str) -> Result<Vec<Digest>, ImageError> {
    Ok(tx
        .prepare_cached("DELETE FROM lease WHERE holder = ?1 RETURNING digest")?
        .query_map([holder], |r| crate::db::digest(r, 0))?
        .collect::<Result<_, _>>()?)
}

fn dead_holders(c: &Connection) -> Result<Vec<String>, ImageError> {
    let holders: Vec<(String, i32, i64)> = c
        .prepare_cached("SELECT DISTINCT holder, pid, pid_start FROM lease")?
        .query_map([], |r| Ok((r.get(0)?, r.get(1)?, r.get(2)?)))?
        .collect::<Result<_, _>>()?;
    let dead =
        |(_, pid, start): &(String, i32, i64)| *pid <= 0 || !sys::host::is_running(*pid, *start as u64);
    Ok(holders.into_iter().filter(dead).map(|(holder, ..)| holder).collect())
}

/// Whether somebody died, or gave up, with a lease.
pub(crate) fn any_dead(c: &Connection) -> Result<bool, ImageError> {
    Ok(!dead_holders(c)?.is_empty())
}

/// Ends the leases of the dead, and answers what they held.
pub(crate) fn bury(tx: &Connection) -> Result<Vec<Digest>, ImageError> {
    let mut all = Vec::new();
    for holder in dead_holders(tx)? {
        all.extend(release(tx, &holder)?);
    }
    Ok(all)
}

/// What is held.
pub(crate) fn held(c: &Connection) -> Result<HashSet<Digest>, ImageError> {
    Ok(c.prepare_cached("SELECT DISTINCT digest FROM lease")?
        .query_map([], |r| crate::db::digest(r, 0))?
        .collect::<Result<_, _>>()?)
}
