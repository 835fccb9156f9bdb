//! The tables of the image store in `state.db`, and the questions asked of them.
//!
//! - `image`: one row per configuration digest, with the documents as they came.
//! - `image_layer`: its layers, with the blob that each came as.
//! - `image_ref`: names (`registry/repository:tag`) that point to images.
//! - `repo_digest`: manifest digests under which repositories know images.
//! - `blob`: which blob holds which layer; `blob_origin`: which registry has it (for mounts on push).
//! - `lease`: digests of blobs and layers that a running operation needs; it ends with its process.

use crate::ImageError;
use rusqlite::{Connection, OptionalExtension, params};
use types::{Digest, ImageRef, Platform};

/// Versions of the tables; see [`state::Db::migrate`].
pub(crate) const MIGRATIONS: &[&str] = &["
CREATE TABLE image(
    id TEXT PRIMARY KEY,
    config BLOB NOT NULL,
    manifest BLOB NOT NULL,
    manifest_type TEXT NOT NULL,
    manifest_digest TEXT NOT NULL,
    os TEXT NOT NULL, architecture TEXT NOT NULL, variant TEXT,
    size INTEGER NOT NULL,
    created_ns INTEGER NOT NULL,
    parent TEXT,
    removed INTEGER NOT NULL DEFAULT 0
);
CREATE TABLE image_layer(
    image TEXT NOT NULL REFERENCES image(id) ON DELETE CASCADE,
    position INTEGER NOT NULL,
    diff_id TEXT NOT NULL,
    blob TEXT NOT NULL,
    PRIMARY KEY (image, position)
) WITHOUT ROWID;
CREATE INDEX image_layer_diff ON image_layer(diff_id);
CREATE TABLE image_ref(
    name TEXT PRIMARY KEY,
    image TEXT NOT NULL REFERENCES image(id) ON DELETE CASCADE,
    tagged_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX image_ref_image ON image_ref(image);
CREATE TABLE repo_digest(
    repository TEXT NOT NULL,
    digest TEXT NOT NULL,
    image TEXT NOT NULL REFERENCES image(id) ON DELETE CASCADE,
    PRIMARY KEY (repository, digest, image)
) WITHOUT ROWID;
CREATE INDEX repo_digest_image ON repo_digest(image);
CREATE TABLE blob(
    digest TEXT PRIMARY KEY,
    diff_id TEXT NOT NULL,
    size INTEGER NOT NULL,
    media_type TEXT NOT NULL
) WITHOUT ROWID;
CREATE INDEX blob_diff ON blob(diff_id);
CREATE TABLE blob_origin(
    digest TEXT NOT NULL REFERENCES blob(digest) ON DELETE CASCADE,
    registry TEXT NOT NULL,
    repository TEXT NOT NULL,
    PRIMARY KEY (digest, registry, repository)
) WITHOUT ROWID;
CREATE TABLE lease(
    holder TEXT NOT NULL,
    digest TEXT NOT NULL,
    pid INTEGER NOT NULL,
    pid_start INTEGER NOT NULL,
    PRIMARY KEY (holder, digest)
) WITHOUT ROWID;
"];

/// A row of `image`, without the large documents.
#[derive(Clone, Debug)]
pub(crate) struct ImageRow {
    pub id: Digest,
    pub config: Vec<u8>,
    pub platform: Platform,
    pub size: u64,
    pub created_ns: i64,
    pub parent: Option<String>,
}

/// A layer that came as a blob.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct BlobRow {
    pub digest: Digest,
    pub diff_id: Digest,
    pub size: u64,
    pub media_type: String,
}

/// A complete image to be stored.
pub(crate) struct NewImage<'a> {
    pub id: Digest,
    pub config: &'a [u8],
    pub manifest: &'a [u8],
    pub manifest_type: &'a str,
    pub platform: &'a Platform,
    pub size: u64,
    pub created_ns: i64,
    pub parent: Option<Digest>,
    pub layers: &'a [BlobRow],
}

const COLUMNS: &str = "image.id, image.config, image.os, image.architecture, image.variant, image.size, image.created_ns, image.parent";

fn row(r: &rusqlite::Row<'_>) -> rusqlite::Result<ImageRow> {
    Ok(ImageRow {
        id: digest(r, 0)?,
        config: r.get(1)?,
        platform: Platform { os: r.get(2)?, architecture: r.get(3)?, variant: r.get(4)? },
        size: unsigned(r, 5)?,
        created_ns: r.get(6)?,
        parent: r.get(7)?,
    })
}

pub(crate) fn digest(r: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<Digest> {
    let text = r.get_ref(column)?.as_str()?;
    Digest::parse_hex(text).ok_or(rusqlite::Error::InvalidColumnType(
        column,
        "digest".into(),
        rusqlite::types::Type::Text,
    ))
}

fn unsigned(r: &rusqlite::Row<'_>, column: usize) -> rusqlite::Result<u64> {
    Ok(r.get::<_, i64>(column)?.max(0) as u64)
}

/// The image that a name points to.
pub(crate) fn by_name(c: &Connection, name: &str) -> Result<Option<ImageRow>, ImageError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM image_ref JOIN image ON image.id = image_ref.image WHERE image_ref.name = ?1"
    );
    Ok(c.prepare_cached(&sql)?.query_row([name], row).optional()?)
}

/// The image that a repository knows under a manifest digest.
pub(crate) fn by_repo_digest(
    c: &Connection,
    repository: &str,
    d: &Digest,
) -> Result<Option<ImageRow>, ImageError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM repo_digest JOIN image ON image.id = repo_digest.image
         WHERE repo_digest.repository = ?1 AND repo_digest.digest = ?2 AND image.removed = 0"
    );
    Ok(c.prepare_cached(&sql)?.query_row([repository, &d.hex()], row).optional()?)
}

/// The images whose id starts with `hex`; two at most.
pub(crate) fn by_prefix(c: &Connection, hex: &str) -> Result<Vec<ImageRow>, ImageError> {
    let sql = format!(
        "SELECT {COLUMNS} FROM image WHERE id >= ?1 AND id < ?2 AND (removed = 0 OR id = ?1) LIMIT 2"
    );
    // 'g' follows every hexadecimal digit.
    Ok(c.prepare_cached(&sql)?.query_map([hex, &format!("{hex}g")], row)?.collect::<Result<_, _>>()?)
}

/// Every image that was not removed.
pub(crate) fn all(c: &Connection) -> Result<Vec<ImageRow>, ImageError> {
    let sql = format!("SELECT {COLUMNS} FROM image WHERE removed = 0 ORDER BY created_ns DESC, id");
    Ok(c.prepare_cached(&sql)?.query_map([], row)?.collect::<Result<_, _>>()?)
}

/// Whether there is such an image, removed or not.
pub(crate) fn is_removed(c: &Connection, id: &Digest) -> Result<Option<bool>, ImageError> {
    Ok(c.prepare_cached("SELECT removed FROM image WHERE id = ?1")?
        .query_row([id.hex()], |r| r.get(0))
        .optional()?)
}

/// The manifest of an image, its media type and its digest.
pub(crate) fn manifest(c: &Connection, id: &Digest) -> Result<(Vec<u8>, String, Digest), ImageError> {
    Ok(c.prepare_cached("SELECT manifest, manifest_type, manifest_digest FROM image WHERE id = ?1")?
        .query_row([id.hex()], |r| Ok((r.get(0)?, r.get(1)?, digest(r, 2)?)))?)
}

/// The diff ids of an image, base first.
pub(crate) fn diff_ids(c: &Connection, id: &Digest) -> Result<Vec<Digest>, ImageError> {
    Ok(c.prepare_cached("SELECT diff_id FROM image_layer WHERE image = ?1 ORDER BY position")?
        .query_map([id.hex()], |r| digest(r, 0))?
        .collect::<Result<_, _>>()?)
}

fn blob_row(r: &rusqlite::Row<'_>) -> rusqlite::Result<BlobRow> {
    Ok(BlobRow {
        digest: digest(r, 0)?,
        diff_id: digest(r, 1)?,
        size: unsigned(r, 2)?,
        media_type: r.get(3)?,
    })
}

/// The blobs of an image, base first.
pub(crate) fn blobs(c: &Connection, id: &Digest) -> Result<Vec<BlobRow>, ImageError> {
    Ok(c.prepare_cached(
        "SELECT blob.digest, blob.diff_id, blob.size, blob.media_type FROM image_layer
         JOIN blob ON blob.digest = image_layer.blob WHERE image_layer.image = ?1 ORDER BY image_layer.position",
    )?
    .query_map([id.hex()], blob_row)?
    .collect::<Result<_, _>>()?)
}

/// The blobs that hold a layer.
pub(crate) fn blobs_of(c: &Connection, diff_id: &Digest) -> Result<Vec<BlobRow>, ImageError> {
    Ok(c.prepare_cached("SELECT digest, diff_id, size, media_type FROM blob WHERE diff_id = ?1")?
        .query_map([diff_id.hex()], blob_row)?
        .collect::<Result<_, _>>()?)
}

/// Repositories of a registry that hold a blob.
pub(crate) fn origins(c: &Connection, d: &Digest, registry: &str) -> Result<Vec<String>, ImageError> {
    Ok(c.prepare_cached("SELECT repository FROM blob_origin WHERE digest = ?1 AND registry = ?2")?
        .query_map([&d.hex(), registry], |r| r.get(0))?
        .collect::<Result<_, _>>()?)
}

/// Remembers that a repository holds blobs.
pub(crate) fn add_origin(c: &Connection, blobs: &[BlobRow], name: &ImageRef) -> Result<(), ImageError> {
    let mut add = c.prepare_cached(
        "INSERT OR IGNORE INTO blob_origin SELECT digest, ?2, ?3 FROM blob WHERE digest = ?1",
    )?;
    for b in blobs {
        add.execute([&b.digest.hex(), name.registry(), name.repository()])?;
    }
    Ok(())
}

/// The names of an image, sorted.
pub(crate) fn names(c: &Connection, id: &Digest) -> Result<Vec<ImageRef>, ImageError> {
    let names: Vec<String> = c
        .prepare_cached("SELECT name FROM image_ref WHERE image = ?1 ORDER BY name")?
        .query_map([id.hex()], |r| r.get(0))?
        .collect::<Result<_, _>>()?;
    Ok(names.iter().filter_map(|n| ImageRef::parse(n).ok()).collect())
}

/// When an image was last given a name.
pub(crate) fn last_tag(c: &Connection, id: &Digest) -> Result<Option<i64>, ImageError> {
    Ok(c.prepare_cached("SELECT max(tagged_ns) FROM image_ref WHERE image = ?1")?
        .query_row([id.hex()], |r| r.get(0))?)
}

/// `registry/repository` and manifest digest.
pub(crate) fn repo_digests(c: &Connection, id: &Digest) -> Result<Vec<(String, Digest)>, ImageError> {
    Ok(c.prepare_cached(
        "SELECT repository, digest FROM repo_digest WHERE image = ?1 ORDER BY repository, digest",
    )?
    .query_map([id.hex()], |r| Ok((r.get(0)?, digest(r, 1)?)))?
    .collect::<Result<_, _>>()?)
}

/// Stores an image, or brings a removed one back.
pub(crate) fn insert(c: &Connection, new: &NewImage<'_>) -> Result<(), ImageError> {
    let id = new.id.hex();
    let mut add = c.prepare_cached(
        "INSERT INTO blob VALUES (?1, ?2, ?3, ?4) ON CONFLICT DO UPDATE SET diff_id = ?2, size = ?3",
    )?;
    for b in new.layers {
        add.execute(params![b.digest.hex(), b.diff_id.hex(), b.size as i64, b.media_type])?;
    }
    // The manifest is renewed: another registry may have given the same image with other blobs.
    c.prepare_cached(
        "INSERT INTO image VALUES (?1, ?2, ?3, ?4, ?5, ?6, ?7, ?8, ?9, ?10, ?11, 0)
         ON CONFLICT DO UPDATE SET manifest = ?3, manifest_type = ?4, manifest_digest = ?5, removed = 0",
    )?
    .execute(params![
        id,
        new.config,
        new.manifest,
        new.manifest_type,
        crate::manifest::digest_of(new.manifest).hex(),
        new.platform.os,
        new.platform.architecture,
        new.platform.variant,
        new.size as i64,
        new.created_ns,
        new.parent.map(|p| p.hex()),
    ])?;
    let mut add = c.prepare_cached("INSERT OR REPLACE INTO image_layer VALUES (?1, ?2, ?3, ?4)")?;
    for (position, b) in new.layers.iter().enumerate() {
        add.execute(params![id, position as i64, b.diff_id.hex(), b.digest.hex()])?;
    }
    Ok(())
}

/// Points a name to an image. Answers the image that it pointed to before, if another.
pub(crate) fn set_name(
    c: &Connection,
    name: &ImageRef,
    id: &Digest,
    now: i64,
) -> Result<Option<String>, ImageError> {
    let name = key(name);
    let old: Option<String> = c
        .prepare_cached("SELECT image FROM image_ref WHERE name = ?1")?
        .query_row([&name], |r| r.get(0))
        .optional()?;
    c.prepare_cached("INSERT OR REPLACE INTO image_ref VALUES (?1, ?2, ?3)")?.execute(params![
        name,
        id.hex(),
        now
    ])?;
    Ok(old.filter(|o| *o != id.hex()))
}

/// Notes that a repository knows an image under a manifest digest.
pub(crate) fn add_repo_digest(
    c: &Connection,
    name: &ImageRef,
    d: &Digest,
    id: &Digest,
) -> Result<(), ImageError> {
    c.prepare_cached("INSERT OR IGNORE INTO repo_digest VALUES (?1, ?2, ?3)")?.execute([
        name.name(),
        d.hex(),
        id.hex(),
    ])?;
    Ok(())
}

/// The key of a name in `image_ref`: with its tag, without its digest.
pub(crate) fn key(name: &ImageRef) -> String {
    format!("{}:{}", name.name(), name.tag().unwrap_or("latest"))
}
