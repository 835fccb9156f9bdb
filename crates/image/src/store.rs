//! The store itself: opening, names to images, tags.

use crate::content::Content;
use crate::db::{self, ImageRow};
use crate::layer::{Layer, LayerLimits, LayerStore};
use crate::lease::Lease;
use crate::{ImageError, manifest};
use std::path::Path;
use std::rc::Rc;
use types::{Digest, ImageConfig, ImageRef, LayerFormat, Platform};

/// All images of one root directory. Cheap to open: no directory is read, no thread started, no TLS set up.
#[derive(Debug)]
pub struct ImageStore {
    pub(crate) db: Rc<state::Db>,
    pub(crate) content: Content,
    pub(crate) layers: LayerStore,
    pub(crate) limits: LayerLimits,
}

/// An image, ready to be run.
#[derive(Clone, Debug)]
pub struct Image {
    /// Digest of the configuration.
    pub id: Digest,
    /// Configuration.
    pub config: ImageConfig,
    /// Layers, base first.
    pub layers: Vec<Layer>,
    /// Names with a tag.
    pub refs: Vec<ImageRef>,
    /// Names with a digest.
    pub repo_digests: Vec<ImageRef>,
    /// Sum of the file sizes of all layers.
    pub size: u64,
    /// Time of creation in nanoseconds since the epoch; 0 if unknown.
    pub created_ns: i64,
    /// For which platform.
    pub platform: Platform,
}

impl ImageStore {
    /// Opens the store below `root`, layers as EROFS files.
    pub fn open(root: &Path, db: Rc<state::Db>) -> Result<Self, ImageError> {
        Self::open_with(root, db, LayerFormat::Erofs)
    }

    /// Opens the store below `root`. New layers get `format`; what is there is found in either form.
    pub fn open_with(root: &Path, db: Rc<state::Db>, format: LayerFormat) -> Result<Self, ImageError> {
        db.migrate("image", db::MIGRATIONS)?;
        let dir = root.join("layers");
        let layers = LayerStore::open(&dir, format).map_err(|e| match e {
            crate::layer::LayerError::Io { source, .. } => ImageError::io("open", &dir, source),
            other => ImageError::corrupt(format!("the layer store {}", dir.display()), other.to_string()),
        })?;
        // Every name costs memory until its layer is written; a large distribution has half a million in all.
        let limits = LayerLimits { max_entries: 1 << 22, ..LayerLimits::default() };
        Ok(Self { db, content: Content::new(root), layers, limits })
    }

    /// Sets the bounds for layers that come from now on.
    pub fn set_limits(&mut self, limits: LayerLimits) {
        self.limits = limits;
    }

    /// The layers of this store.
    pub fn layers(&self) -> &LayerStore {
        &self.layers
    }

    /// Finds an image by name, digest, id or unique id prefix. With a platform, one for another is an error.
    ///
    /// On the path of every `run`: a handful of indexed queries, no directory is read.
    pub fn resolve(&self, name: &str, platform: Option<&Platform>) -> Result<Image, ImageError> {
        let image = self.complete(self.find(name)?)?;
        match platform {
            Some(wanted) if !wanted.accepts(&image.platform) => Err(ImageError::Platform {
                image: name.to_owned(),
                wanted: wanted.clone(),
                available: vec![image.platform],
            }),
            _ => Ok(image),
        }
    }

    /// The id that a name, digest, id or unique id prefix stands for, without reading the image.
    pub fn id(&self, name: &str) -> Result<Digest, ImageError> {
        Ok(self.find(name)?.id)
    }

    /// Docker's order: a full id, then a name, then a prefix of an id.
    pub(crate) fn find(&self, name: &str) -> Result<ImageRow, ImageError> {
        let c = self.db.conn();
        let missing = || ImageError::NotFound(name.chars().take(200).collect());
        let hex = name.strip_prefix("sha256:").unwrap_or(name);
        let is_hex =
            !hex.is_empty() && hex.len() <= 64 && hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f'));
        if !(is_hex && (hex.len() == 64 || hex.len() != name.len())) {
            match ImageRef::parse(name) {
                Ok(r) => {
                    let found = match r.digest() {
                        // An image's own id serves as its digest, too.
                        Some(d) => match db::by_repo_digest(c, &r.name(), d)? {
                            None => db::by_name(c, &db::key(&r))?.filter(|i| i.id == *d),
                            found => found,
                        },
                        None => db::by_name(c, &db::key(&r))?,
                    };
                    if let Some(row) = found {
                        return Ok(row);
                    }
                }
                Err(_) if is_hex => {}
                Err(e) => return Err(e.into()),
            }
        }
        if !is_hex {
            return Err(missing());
        }
        let mut found = db::by_prefix(c, hex)?;
        match (found.len(), found.pop()) {
            (1, Some(row)) => Ok(row),
            (0, _) => Err(missing()),
            _ => Err(ImageError::Ambiguous(name.to_owned())),
        }
    }

    pub(crate) fn complete(&self, row: ImageRow) -> Result<Image, ImageError> {
        let c = self.db.conn();
        let what = format!("image {}", row.id.short());
        let config: ImageConfig = serde_json::from_slice(&row.config)
            .map_err(|e| ImageError::corrupt(format!("the stored configuration of {what}"), e.to_string()))?;
        let mut layers = Vec::with_capacity(config.rootfs.diff_ids.len());
        for diff_id in db::diff_ids(c, &row.id)? {
            let missing = || {
                ImageError::corrupt(
                    &what,
                    format!("its layer {} is gone; pull or load it again", diff_id.short()),
                )
            };
            let Some(layer) = self.layers.get(&diff_id) else {
                // A layer that cannot be opened is not a layer that is gone.
                self.layers.reachable()?;
                return Err(missing());
            };
            layers.push(layer);
        }
        Ok(Image {
            id: row.id,
            config,
            layers,
            refs: db::names(c, &row.id)?,
            repo_digests: self.repo_digests(&row.id)?,
            size: row.size,
            created_ns: row.created_ns,
            platform: row.platform,
        })
    }

    pub(crate) fn repo_digests(&self, id: &Digest) -> Result<Vec<ImageRef>, ImageError> {
        let known = db::repo_digests(self.db.conn(), id)?;
        Ok(known
            .into_iter()
            .filter_map(|(name, d)| Some(ImageRef::parse(&name).ok()?.with_digest(d)))
            .collect())
    }

    /// Gives an image one more name; a name that another image had moves over.
    pub fn tag(&self, image: &str, name: &ImageRef) -> Result<Digest, ImageError> {
        if name.digest().is_some() {
            return Err(ImageError::Invalid(format!(
                "refusing to create a tag with a digest reference: {}",
                name.familiar()
            )));
        }
        self.db.write(|tx| {
            let row = self.find(image)?;
            db::set_name(tx, name, &row.id, sys::host::now_ns())?;
            Ok(row.id)
        })
    }

    /// What every operation that makes layers begins with. What killed ones left of theirs goes.
    pub(crate) fn lease(&self) -> Result<Lease, ImageError> {
        self.layers.sweep_temporary();
        Lease::new(&self.db, &self.content)
    }

    /// Stores an image whose layers are all there, with its names.
    pub(crate) fn register(&self, new: Registration<'_>) -> Result<(Digest, Vec<Digest>), ImageError> {
        let id = manifest::digest_of(new.config_bytes);
        let mut size = 0;
        for blob in new.layers {
            let layer = self.layers.get(&blob.diff_id).ok_or_else(|| {
                ImageError::corrupt(format!("image {}", id.short()), "a layer vanished while it was stored")
            })?;
            size += layer.content_size;
        }
        let created_ns = new.config.created.as_deref().and_then(types::units::parse_rfc3339).unwrap_or(0);
        let platform = manifest::platform_of(new.config);
        self.content.settle()?;
        let replaced = self.db.write(|tx| {
            db::insert(
                tx,
                &db::NewImage {
                    id,
                    config: new.config_bytes,
                    manifest: new.manifest,
                    manifest_type: new.manifest_type,
                    platform: &platform,
                    size,
                    created_ns,
                    parent: new.parent,
                    layers: new.layers,
                },
            )?;
            let mut replaced = Vec::new();
            for name in new.names {
                let old = db::set_name(tx, name, &id, sys::host::now_ns())?;
                replaced.extend(old.and_then(|o| Digest::parse_hex(&o)));
            }
            for (name, digest) in new.repo_digests {
                db::add_repo_digest(tx, name, digest, &id)?;
            }
            Ok::<_, ImageError>(replaced)
        })?;
        Ok((id, replaced))
    }
}

/// What [`ImageStore::register`] stores.
pub(crate) struct Registration<'a> {
    pub config: &'a ImageConfig,
    pub config_bytes: &'a [u8],
    pub manifest: &'a [u8],
    pub manifest_type: &'a str,
    pub layers: &'a [db::BlobRow],
    pub names: &'a [ImageRef],
    pub repo_digests: &'a [(ImageRef, Digest)],
    pub parent: Option<Digest>,
}
