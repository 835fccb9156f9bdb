//! The database `state.db`: WAL mode, so that readers never wait for a writer and a killed writer loses its own
//! transaction only.

use rusqlite::config::DbConfig;
use rusqlite::{Connection, ErrorCode, OpenFlags, OptionalExtension, Transaction, TransactionBehavior};
use std::path::{Path, PathBuf};
use std::time::Duration;
use types::{ErrorKind, Kinded};

/// What the index of a log that is not unusually long takes, and some.
const INDEX: u64 = 128 << 10;
/// How long a command waits for another one's transaction.
const BUSY: Duration = Duration::from_secs(30);

/// An open database.
#[derive(Debug)]
pub struct Db {
    conn: Connection,
    path: PathBuf,
}

/// Why the database could not be used.
#[derive(Debug, thiserror::Error)]
pub enum DbError {
    /// Not a database, or torn.
    #[error(
        "the state database {} is damaged ({reason}); restore it from a backup, or move it aside to start with an empty store (layers and volumes beside it are kept)", path.display()
    )]
    Damaged {
        /// Its path.
        path: PathBuf,
        /// What SQLite found.
        reason: String,
    },
    /// Written by a newer Dhow.
    #[error(
        "the store {} was written by a newer version of dhow ({component} schema {found}, this one knows {known}); use that version, or another --root", path.display()
    )]
    Newer {
        /// Path of the database.
        path: PathBuf,
        /// Whose tables.
        component: String,
        /// Version on disk.
        found: i64,
        /// Newest version known here.
        known: i64,
    },
    /// The disk is full.
    #[error("no space left on the disk of the state database {}: make room there", .0.display())]
    Full(PathBuf),
    /// It cannot be opened or written.
    #[error("the state database {}: {source}", path.display())]
    Access {
        /// Its path.
        path: PathBuf,
        /// Why.
        source: std::io::Error,
    },
    /// Any other failure of SQLite.
    #[error("the state database: {0}")]
    Sqlite(rusqlite::Error),
}

impl From<rusqlite::Error> for DbError {
    fn from(e: rusqlite::Error) -> Self {
        let path = PathBuf::from("state.db");
        match e.sqlite_error_code() {
            Some(ErrorCode::NotADatabase | ErrorCode::DatabaseCorrupt) => {
                Self::Damaged { path, reason: e.to_string() }
            }
            Some(ErrorCode::DiskFull) => Self::Full(path),
            _ => Self::Sqlite(e),
        }
    }
}

impl Kinded for DbError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::Damaged { .. } => ErrorKind::Corrupt,
            Self::Newer { .. } => ErrorKind::Unsupported,
            Self::Full(_) => ErrorKind::Exhausted,
            Self::Access { source, .. } if source.kind() == std::io::ErrorKind::PermissionDenied => {
                ErrorKind::Denied
            }
            Self::Access { .. } | Self::Sqlite(_) => ErrorKind::Internal,
        }
    }
}

impl Db {
    /// Opens the database, which is made if it is not there. Its directory must exist.
    pub fn open(path: &Path) -> Result<Self, DbError> {
        let flags = OpenFlags::SQLITE_OPEN_READ_WRITE
            | OpenFlags::SQLITE_OPEN_CREATE
            | OpenFlags::SQLITE_OPEN_NO_MUTEX
            | OpenFlags::SQLITE_OPEN_NOFOLLOW;
        private(path)?;
        if rustix::fs::statfs(path)
            .is_ok_and(|fs| lacks_index(fs.f_type as u64, fs.f_bsize as u64, fs.f_bfree))
        {
            return Err(DbError::Full(path.to_owned()));
        }
        let conn = Connection::open_with_flags(path, flags).map_err(|e| named(e, path))?;
        let db = Self { conn, path: path.to_owned() };
        db.prepare().map_err(|e| named(e, path))?;
        Ok(db)
    }

    fn prepare(&self) -> Result<(), rusqlite::Error> {
        self.conn.busy_timeout(BUSY)?;
        // A checkpoint at each command's end would cost a sync of the disk. The automatic one is for commands in
        // a row without a container; otherwise supervisors do it when nobody waits for them, see `log_frames`.
        self.conn.set_db_config(DbConfig::SQLITE_DBCONFIG_NO_CKPT_ON_CLOSE, true)?;
        let begun = std::time::Instant::now();
        loop {
            let mode: String = self.conn.query_row("PRAGMA journal_mode", [], |r| r.get(0))?;
            if mode == "wal" {
                break;
            }
            // Of several who make a store at once one wins; the others SQLite does not let wait, lest they deadlock.
            match self.conn.query_row("PRAGMA journal_mode = WAL", [], |_| Ok(())) {
                Err(e)
                    if e.sqlite_error_code() == Some(ErrorCode::DatabaseBusy) && begun.elapsed() < BUSY =>
                {
                    std::thread::sleep(std::time::Duration::from_millis(2));
                }
                done => break done?,
            }
        }
        self.conn.execute_batch(
            "PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON; PRAGMA wal_autocheckpoint = 400;",
        )
    }

    /// Brings a component's tables to the version that it knows: step *n* leads from version *n* to *n*+1.
    /// Costs one small query when nothing is to be done.
    pub fn migrate(&self, component: &str, steps: &[&str]) -> Result<(), DbError> {
        let known = steps.len() as i64;
        if self.version(component).map_err(|e| named(e, &self.path))? == known {
            return Ok(());
        }
        self.write(|tx| {
            tx.execute_batch(
                "CREATE TABLE IF NOT EXISTS schema(component TEXT PRIMARY KEY, version INTEGER NOT NULL) WITHOUT ROWID",
            )?;
            let found = self.version(component)?;
            if found > known {
                let component = component.to_owned();
                return Err(DbError::Newer { path: self.path.clone(), component, found, known });
            }
            for step in steps.iter().skip(found.max(0) as usize) {
                tx.execute_batch(step)?;
            }
            tx.execute("INSERT OR REPLACE INTO schema VALUES (?1, ?2)", (component, known))?;
            Ok(())
        })
    }

    fn version(&self, component: &str) -> Result<i64, rusqlite::Error> {
        let found = self
            .conn
            .query_row("SELECT version FROM schema WHERE component = ?1", [component], |r| r.get(0))
            .optional();
        match found {
            Ok(version) => Ok(version.unwrap_or(0)),
            // The version table comes with the first component.
            Err(rusqlite::Error::SqliteFailure(_, Some(m))) if m.starts_with("no such table") => Ok(0),
            Err(rusqlite::Error::SqlInputError { msg, .. }) if msg.starts_with("no such table") => Ok(0),
            Err(e) => Err(e),
        }
    }

    /// For reading. Statements that are used again: `prepare_cached`.
    pub fn conn(&self) -> &Connection {
        &self.conn
    }

    /// Runs `work` as one transaction that holds the write lock from its start, so that what it reads stays true
    /// until it commits. An error rolls everything back.
    pub fn write<T, E: From<DbError>>(
        &self,
        work: impl FnOnce(&Transaction<'_>) -> Result<T, E>,
    ) -> Result<T, E> {
        let fail = |e| E::from(named(e, &self.path));
        let tx = Transaction::new_unchecked(&self.conn, TransactionBehavior::Immediate).map_err(fail)?;
        let out = work(&tx)?;
        tx.commit().map_err(fail)?;
        Ok(out)
    }

    /// Moves the log into the database and empties it, unless another command is using it right now.
    pub fn checkpoint(&self) -> Result<(), DbError> {
        let tidy = || {
            self.conn.busy_timeout(Duration::ZERO)?;
            self.conn.query_row("PRAGMA wal_checkpoint(TRUNCATE)", [], |_| Ok(()))?;
            self.conn.busy_timeout(BUSY)
        };
        tidy().map_err(|e| named(e, &self.path))
    }

    /// Where the database lies.
    pub fn path(&self) -> &Path {
        &self.path
    }
}

/// Makes the file, if it is not there, for its owner alone: configurations hold secrets, and who can read the file can
/// keep a lock on it for ever. SQLite gives its other files the same mode.
fn private(path: &Path) -> Result<(), DbError> {
    use std::os::unix::fs::OpenOptionsExt;
    match std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(path) {
        Err(e) if e.kind() != std::io::ErrorKind::AlreadyExists => {
            Err(DbError::Access { path: path.to_owned(), source: e })
        }
        _ => Ok(()),
    }
}

/// Whether a store to SQLite's index of the log, which is mapped, may find no block on this filesystem: that is SIGBUS, and not an
/// error. SQLite writes a byte of each 4 KiB (`unixShmMap`), which is all of them where blocks are as large and stay in
/// place.
fn lacks_index(kind: u64, block: u64, free: u64) -> bool {
    // Btrfs, ZFS and bcachefs write each block to a new place.
    let moves = [0x9123_683e, 0x2fc1_2fc1, 0xca45_1a4e].contains(&kind);
    (moves || block < 4096) && free.saturating_mul(block) < INDEX
}

/// Pages in the log of the database at `path`, without opening it: `mxFrame` of the index that lies beside it (SQLite,
/// "WAL-mode File Format", section 2.1). The first command to open the database reads them all, so a long log makes
/// every command slow.
pub fn log_frames(path: &Path) -> u32 {
    let mut index = path.as_os_str().to_owned();
    index.push("-shm");
    let mut head = [0; 20];
    let read = std::fs::File::open(index).and_then(|mut f| std::io::Read::read_exact(&mut f, &mut head));
    match read {
        Ok(()) => u32::from_ne_bytes([head[16], head[17], head[18], head[19]]),
        Err(_) => 0,
    }
}

fn named(e: rusqlite::Error, path: &Path) -> DbError {
    let access = |kind| DbError::Access { path: path.to_owned(), source: std::io::Error::from(kind) };
    match e.sqlite_error_code() {
        Some(ErrorCode::CannotOpen) => match std::fs::metadata(path) {
            Err(source) => DbError::Access { path: path.to_owned(), source },
            Ok(_) => access(std::io::ErrorKind::PermissionDenied),
        },
        Some(ErrorCode::PermissionDenied | ErrorCode::ReadOnly) => {
            access(std::io::ErrorKind::PermissionDenied)
        }
        _ => match DbError::from(e) {
            DbError::Damaged { reason, .. } => DbError::Damaged { path: path.to_owned(), reason },
            DbError::Full(_) => DbError::Full(path.to_owned()),
            other => other,
        },
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn temp() -> (tempfile::TempDir, PathBuf) {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("state.db");
        (dir, path)
    }

    #[test]
    fn nobody_else_reads_it() {
        use std::os::unix::fs::PermissionsExt;
        let (dir, path) = temp();
        let db = Db::open(&path).unwrap();
        db.migrate("t", &["CREATE TABLE a(x)"]).unwrap();
        let files: Vec<_> = std::fs::read_dir(dir.path()).unwrap().flatten().collect();
        assert_eq!(files.len(), 3);
        for file in files {
            assert_eq!(file.metadata().unwrap().permissions().mode() & 0o777, 0o600, "{:?}", file.path());
        }
    }

    #[test]
    fn an_index_that_may_lack_blocks_is_not_mapped() {
        let (ext4, btrfs) = (0xef53, 0x9123_683e);
        assert!(lacks_index(ext4, 1024, 100) && lacks_index(btrfs, 4096, 0));
        assert!(
            !lacks_index(ext4, 1024, 128) && !lacks_index(btrfs, 4096, 32) && !lacks_index(ext4, 4096, 0)
        );
    }

    #[test]
    fn many_may_make_it_at_once() {
        for _ in 0..20 {
            let (_dir, path) = temp();
            std::thread::scope(|s| {
                for _ in 0..6 {
                    s.spawn(|| Db::open(&path).unwrap().migrate("t", &["CREATE TABLE a(x)"]).unwrap());
                }
            });
        }
    }

    #[test]
    fn steps_run_once_and_in_order() {
        let (_dir, path) = temp();
        let one = ["CREATE TABLE a(x)"];
        let two = ["CREATE TABLE a(x)", "ALTER TABLE a ADD COLUMN y"];
        Db::open(&path).unwrap().migrate("t", &one).unwrap();
        for _ in 0..2 {
            Db::open(&path).unwrap().migrate("t", &two).unwrap();
        }
        let db = Db::open(&path).unwrap();
        db.conn().execute("INSERT INTO a VALUES (1, 2)", []).unwrap();
        assert!(matches!(db.migrate("t", &one), Err(DbError::Newer { found: 2, known: 1, .. })));
    }

    #[test]
    fn a_damaged_file_is_named_and_left_alone() {
        let (_dir, path) = temp();
        std::fs::write(&path, vec![0x42; 8192]).unwrap();
        let e = Db::open(&path).unwrap_err();
        assert_eq!(e.kind(), ErrorKind::Corrupt);
        assert!(e.to_string().contains(path.to_str().unwrap()), "{e}");
        assert_eq!(std::fs::read(&path).unwrap(), vec![0x42; 8192]);
    }

    #[test]
    fn an_error_rolls_back() {
        let (_dir, path) = temp();
        let db = Db::open(&path).unwrap();
        db.migrate("t", &["CREATE TABLE a(x)"]).unwrap();
        let r: Result<(), DbError> = db.write(|tx| {
            tx.execute("INSERT INTO a VALUES (1)", [])?;
            Err(DbError::Full("x".into()))
        });
        assert!(r.is_err());
        let n: i64 = db.conn().query_row("SELECT count(*) FROM a", [], |r| r.get(0)).unwrap();
        assert_eq!(n, 0);
    }

    #[test]
    fn a_checkpoint_empties_the_log() {
        let (_dir, path) = temp();
        assert_eq!(log_frames(&path), 0);
        let db = Db::open(&path).unwrap();
        db.migrate("t", &["CREATE TABLE a(x)"]).unwrap();
        for _ in 0..10 {
            db.write::<_, DbError>(|tx| Ok(tx.execute("INSERT INTO a VALUES (1)", [])?)).unwrap();
        }
        assert!(log_frames(&path) >= 10, "{}", log_frames(&path));
        db.checkpoint().unwrap();
        assert_eq!(log_frames(&path), 0);
    }

    #[test]
    fn writers_wait_for_each_other() {
        let (_dir, path) = temp();
        Db::open(&path).unwrap().migrate("t", &["CREATE TABLE a(x)"]).unwrap();
        std::thread::scope(|s| {
            for _ in 0..8 {
                s.spawn(|| {
                    let db = Db::open(&path).unwrap();
                    for _ in 0..20 {
                        db.write::<_, DbError>(|tx| Ok(tx.execute("INSERT INTO a VALUES (1)", [])?)).unwrap();
                    }
                });
            }
        });
        let db = Db::open(&path).unwrap();
        let n: i64 = db.conn().query_row("SELECT count(*) FROM a", [], |r| r.get(0)).unwrap();
        assert_eq!(n, 160);
    }
}
