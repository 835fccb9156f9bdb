//! The engine's tables: containers, networks, the places and addresses that containers have on them, the volumes they
//! use, settings of this store.
//!
//! A container exists from the moment its row is committed until the row is deleted. Everything else that belongs
//! to it (directories, bundle, state) is made when first needed and may be missing after a crash.

use crate::mounts::UserMount;
use crate::{EngineError, Result};
use state::Db;
use state::rusqlite::{OptionalExtension, Row, Transaction, params};
use types::{ContainerId, docker};

/// Migration steps, see [`Db::migrate`].
pub(crate) const SCHEMA: &[&str] = &[
    "
    CREATE TABLE containers(
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        created_ns INTEGER NOT NULL,
        image_id TEXT NOT NULL,
        image TEXT NOT NULL,
        config TEXT NOT NULL,
        host TEXT NOT NULL,
        networking TEXT NOT NULL,
        mounts TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE INDEX containers_by_image ON containers(image_id);
    CREATE TABLE addresses(
        network TEXT NOT NULL,
        address INTEGER NOT NULL,
        container TEXT NOT NULL REFERENCES containers(id) ON DELETE CASCADE,
        PRIMARY KEY (network, address)
    ) WITHOUT ROWID;
    CREATE INDEX addresses_by_container ON addresses(container);
    CREATE TABLE volumes(
        name TEXT PRIMARY KEY,
        created_ns INTEGER NOT NULL,
        anonymous INTEGER NOT NULL,
        labels TEXT NOT NULL
    ) WITHOUT ROWID;
    CREATE TABLE container_volumes(
        container TEXT NOT NULL REFERENCES containers(id) ON DELETE CASCADE,
        volume TEXT NOT NULL REFERENCES volumes(name),
        PRIMARY KEY (container, volume)
    ) WITHOUT ROWID;
    CREATE INDEX container_volumes_by_volume ON container_volumes(volume);
    CREATE TABLE settings(key TEXT PRIMARY KEY, value TEXT NOT NULL) WITHOUT ROWID;
",
    NETWORKS,
    VOLUME_DRIVERS,
    VOLUMES_MADE,
];

/// Networks, and the containers' places on them. What was a container's only place, on the default bridge, with its
/// address, becomes one of many.
const NETWORKS: &str = "
    CREATE TABLE networks(
        id TEXT PRIMARY KEY,
        name TEXT NOT NULL UNIQUE,
        created_ns INTEGER NOT NULL,
        last4 INTEGER,
        config TEXT NOT NULL
    ) WITHOUT ROWID;
    INSERT INTO networks SELECT lower(hex(randomblob(32))), column1, strftime('%s', 'now') * 1000000000, NULL,
        json_object('driver', column2)
        FROM (VALUES ('bridge', 'bridge'), ('host', 'host'), ('none', 'null'));
    UPDATE networks SET last4 = (SELECT max(address) FROM addresses WHERE network = 'bridge') WHERE name = 'bridge';
    CREATE TABLE endpoints(
        container TEXT NOT NULL REFERENCES containers(id) ON DELETE CASCADE,
        network TEXT NOT NULL,
        name TEXT NOT NULL,
        position INTEGER NOT NULL,
        settings TEXT NOT NULL,
        ipv4 INTEGER,
        ipv6 BLOB,
        PRIMARY KEY (container, network)
    ) WITHOUT ROWID;
    INSERT INTO endpoints SELECT c.id, n.id, n.name, 0,
        coalesce(json_extract(c.networking, '$.EndpointsConfig.default'),
            json_extract(c.networking, '$.EndpointsConfig.bridge'), '{}'),
        (SELECT address FROM addresses a WHERE a.container = c.id AND a.network = 'bridge'), NULL
        FROM containers c JOIN networks n ON n.name = 'bridge'
        WHERE coalesce(json_extract(c.host, '$.NetworkMode'), 'bridge') IN ('bridge', 'default', '');
    CREATE UNIQUE INDEX endpoints_ipv4 ON endpoints(network, ipv4) WHERE ipv4 IS NOT NULL;
    CREATE UNIQUE INDEX endpoints_ipv6 ON endpoints(network, ipv6) WHERE ipv6 IS NOT NULL;
    CREATE INDEX endpoints_by_network ON endpoints(network);
    ALTER TABLE containers DROP COLUMN networking;
    CREATE TABLE user_ranges(
        slot INTEGER PRIMARY KEY,
        container TEXT NOT NULL UNIQUE REFERENCES containers(id) ON DELETE CASCADE
    );
    INSERT INTO user_ranges SELECT address, container FROM addresses WHERE network = 'userns';
    DROP TABLE addresses;
    DELETE FROM settings WHERE key = 'last-address';
    CREATE TABLE dead_bridges(name TEXT PRIMARY KEY, plan TEXT NOT NULL) WITHOUT ROWID;
";

/// Volumes of more kinds than one.
const VOLUME_DRIVERS: &str = "
    ALTER TABLE volumes ADD COLUMN driver TEXT NOT NULL DEFAULT 'local';
    ALTER TABLE volumes ADD COLUMN options TEXT NOT NULL DEFAULT '{}';
";

/// Which volumes have had files: they are not made a second time.
const VOLUMES_MADE: &str = "ALTER TABLE volumes ADD COLUMN made INTEGER NOT NULL DEFAULT 0";

/// One container as it was created.
#[derive(Clone, Debug)]
pub(crate) struct Container {
    pub id: ContainerId,
    pub name: String,
    pub created_ns: i64,
    /// Digest of the image's configuration.
    pub image_id: String,
    /// Image as the user named it.
    pub image: String,
    pub config: docker::ContainerConfig,
    pub host: docker::HostConfig,
    pub mounts: Vec<UserMount>,
}

const COLUMNS: &str = "id, name, created_ns, image_id, image, config, host, mounts";

impl Container {
    fn from_row(row: &Row<'_>) -> state::rusqlite::Result<Result<Self>> {
        let id: String = row.get(0)?;
        let docs: [String; 3] = [row.get(5)?, row.get(6)?, row.get(7)?];
        let rest = (row.get(1)?, row.get(2)?, row.get(3)?, row.get(4)?);
        Ok(Self::from_parts(id, docs, rest))
    }

    fn from_parts(
        id: String,
        [config, host, mounts]: [String; 3],
        (name, created_ns, image_id, image): (String, i64, String, String),
    ) -> Result<Self> {
        fn read<T: serde::de::DeserializeOwned>(what: &'static str, id: &str, json: &str) -> Result<T> {
            serde_json::from_str(json).map_err(|source| EngineError::Stored {
                what,
                id: id.to_owned(),
                source,
            })
        }
        Ok(Self {
            config: read("configuration", &id, &config)?,
            host: read("host configuration", &id, &host)?,
            mounts: read("mounts", &id, &mounts)?,
            id: ContainerId::parse(&id).map_err(|e| EngineError::Invalid(e.to_string()))?,
            name,
            created_ns,
            image_id,
            image,
        })
    }

    /// Commits the container to the store.
    pub fn insert(&self, tx: &Transaction<'_>) -> Result<()> {
        let owner: Option<String> = tx
            .prepare_cached("SELECT id FROM containers WHERE name = ?1")?
            .query_row([&self.name], |r| r.get(0))
            .optional()?;
        if let Some(id) = owner {
            return Err(EngineError::NameInUse { name: self.name.clone(), id });
        }
        tx.prepare_cached("INSERT INTO containers VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8)")?.execute(
            params![
                self.id.as_str(),
                self.name,
                self.created_ns,
                self.image_id,
                self.image,
                json(&self.config),
                json(&self.host),
                json(&self.mounts),
            ],
        )?;
        Ok(())
    }
}

/// Serializes a value that has no maps with keys other than strings, which cannot fail.
pub(crate) fn json<T: serde::Serialize>(value: &T) -> String {
    serde_json::to_string(value).unwrap_or_else(|_| "{}".into())
}

/// Every container, latest first.
pub(crate) fn all(db: &Db) -> Result<Vec<Container>> {
    let sql = format!("SELECT {COLUMNS} FROM containers ORDER BY created_ns DESC, id");
    let mut statement = db.conn().prepare_cached(&sql)?;
    let rows = statement.query_map([], Container::from_row)?;
    rows.map(|r| r?).collect()
}

/// Finds a container by full id, name (with or without a slash before it), or unambiguous id prefix.
pub(crate) fn find(db: &Db, wanted: &str) -> Result<Container> {
    let key = wanted.strip_prefix('/').unwrap_or(wanted);
    let sql = format!("SELECT {COLUMNS} FROM containers WHERE id = ?1 OR name = ?1");
    let found =
        db.conn().prepare_cached(&sql)?.query_row([key], Container::from_row).optional()?.transpose()?;
    if let Some(container) = found {
        return Ok(container);
    }
    let none = || EngineError::NoSuchContainer(wanted.to_owned());
    if key.is_empty() || key.len() > 64 || !key.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
        return Err(none());
    }
    // 'g' sorts behind every hexadecimal digit.
    let sql = format!("SELECT {COLUMNS} FROM containers WHERE id >= ?1 AND id < ?1 || 'g' LIMIT 2");
    let mut statement = db.conn().prepare_cached(&sql)?;
    let mut rows = statement.query_map([key], Container::from_row)?;
    let first = rows.next().ok_or_else(none)??;
    if rows.next().is_some() {
        return Err(EngineError::Ambiguous(wanted.to_owned()));
    }
    first
}

/// Deletes the row, and with it the claim to name, addresses and volumes. With `volumes`, anonymous volumes that
/// nobody else uses go too: their names are returned. False if there was no such row.
pub(crate) fn delete(db: &Db, id: &ContainerId, volumes: bool) -> Result<(bool, Vec<String>)> {
    db.write(|tx| {
        let mut gone = Vec::new();
        if volumes {
            let sql = "SELECT v.name FROM volumes v JOIN container_volumes u ON u.volume = v.name
                 WHERE u.container = ?1 AND v.anonymous
                 AND NOT EXISTS (SELECT 1 FROM container_volumes o WHERE o.volume = v.name AND o.container <> ?1)";
            let mut statement = tx.prepare_cached(sql)?;
            let rows = statement.query_map([id.as_str()], |r| r.get(0))?;
            gone = rows.collect::<state::rusqlite::Result<Vec<String>>>()?;
        }
        let count = tx.prepare_cached("DELETE FROM containers WHERE id = ?1")?.execute([id.as_str()])?;
        for name in &gone {
            tx.prepare_cached("DELETE FROM volumes WHERE name = ?1")?.execute([name])?;
        }
        Ok((count > 0, gone))
    })
}

/// Names of the containers that were made from an image.
pub(crate) fn users_of_image(db: &Db, image_id: &str) -> Result<Vec<(String, String)>> {
    // Also those that have its files mounted.
    let mut statement = db.conn().prepare_cached(
        "SELECT id, name FROM containers WHERE image_id = ?1 OR instr(mounts, '\"volume\":\"' || ?1 || '\"') > 0",
    )?;
    let rows = statement.query_map([image_id], |r| Ok((r.get(0)?, r.get(1)?)))?;
    Ok(rows.collect::<state::rusqlite::Result<_>>()?)
}

/// A setting of this store.
pub(crate) fn setting(db: &Db, key: &str) -> Result<Option<String>> {
    let mut statement = db.conn().prepare_cached("SELECT value FROM settings WHERE key = ?1")?;
    Ok(statement.query_row([key], |r| r.get(0)).optional()?)
}

/// Changes a setting of this store.
pub(crate) fn set_setting(db: &Db, key: &str, value: &str) -> Result<()> {
    db.write(|tx| {
        tx.execute("INSERT OR REPLACE INTO settings VALUES (?1, ?2)", [key, value])?;
        Ok(())
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn container(byte: u8, name: &str) -> Container {
        Container {
            id: ContainerId::from_random([byte; 32]),
            name: name.into(),
            created_ns: i64::from(byte),
            image_id: "sha256:x".into(),
            image: "x".into(),
            config: Default::default(),
            host: Default::default(),
            mounts: Vec::new(),
        }
    }

    #[test]
    fn containers_are_found_by_name_id_and_prefix() {
        let dir = tempfile::tempdir().unwrap();
        let db = Db::open(&dir.path().join("state.db")).unwrap();
        db.migrate("engine", SCHEMA).unwrap();
        for c in [container(0xaa, "one"), container(0xab, "two")] {
            db.write(|tx| c.insert(tx)).unwrap();
        }
        assert_eq!(find(&db, "one").unwrap().id, ContainerId::from_random([0xaa; 32]));
        assert_eq!(find(&db, "/two").unwrap().name, "two");
        assert_eq!(find(&db, "aba").unwrap().name, "two");
        assert_eq!(find(&db, &"aa".repeat(32)).unwrap().name, "one");
        assert!(matches!(find(&db, "a"), Err(EngineError::Ambiguous(_))));
        for missing in ["", "/", "three", "ac", "a'--"] {
            assert!(matches!(find(&db, missing), Err(EngineError::NoSuchContainer(_))), "{missing}");
        }
        let twin = Container { name: "one".into(), ..container(0xcc, "x") };
        assert!(matches!(db.write(|tx| twin.insert(tx)), Err(EngineError::NameInUse { .. })));
        assert!(delete(&db, &ContainerId::from_random([0xaa; 32]), true).unwrap().0);
        db.write(|tx| twin.insert(tx)).unwrap();
        assert_eq!(all(&db).unwrap().len(), 2);
    }
}
