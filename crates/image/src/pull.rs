//! Pull: manifest, configuration, then layers, three at a time. Each layer is downloaded, hashed and written by one
//! thread while others decompress it and turn it into its EROFS file; the slowest of the three sets the pace.
//!
//! One blob: `wanted -> locked -> (resumed) -> downloading -> verified -> committed`. A broken connection is taken
//! up where it broke; a lie about digest or size throws the partial blob away; a killed process leaves it for the
//! next pull. A layer appears only when its blob was verified to the last byte.

mod fetch;

use crate::db::{self, BlobRow};
use crate::lease::Lease;
use crate::manifest::{self, Descriptor, Document, MAX_CONFIG, Manifest};
use crate::registry::{Access, Registry};
use crate::store::Registration;
use crate::{Image, ImageError, ImageStore, LayerEvent, Progress};
use fetch::Fetch;
use std::collections::{HashMap, HashSet};
use std::sync::atomic::AtomicBool;
use types::{Digest, ImageConfig, ImageRef, Platform};

/// Indexes within indexes.
const MAX_DEPTH: usize = 3;
/// Why an operation broke off that nobody waits for.
const GIVEN_UP: &str = "the pull was given up";

/// How to pull.
#[derive(Clone, Debug, Default)]
pub struct PullOptions {
    /// Platform to choose; the host's if not told.
    pub platform: Option<Platform>,
    /// How to reach the registry.
    pub access: Access,
}

/// What came of a pull.
#[derive(Clone, Debug)]
pub struct Pulled {
    /// The image.
    pub image: Image,
    /// Digest of the manifest or index that the name stands for.
    pub digest: Digest,
    /// Nothing had to be fetched.
    pub up_to_date: bool,
}

impl ImageStore {
    /// Fetches an image, or what of it is not there.
    pub fn pull(
        &self,
        name: &ImageRef,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Pulled, ImageError> {
        let registry = Registry::connect(name.registry(), &options.access)?;
        self.pull_one(&registry, name, options, progress)
    }

    /// Fetches every tag of a repository.
    pub fn pull_all(
        &self,
        name: &ImageRef,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Vec<Pulled>, ImageError> {
        let registry = Registry::connect(name.registry(), &options.access)?;
        let tags = registry.tags(name)?;
        let one = |tag| match progress.is_wanted() {
            true => self.pull_one(&registry, &name.with_tag(tag)?, options, progress),
            false => Err(registry.down(GIVEN_UP)),
        };
        tags.iter().map(|tag| one(tag.as_str())).collect()
    }

    fn pull_one(
        &self,
        registry: &Registry,
        name: &ImageRef,
        options: &PullOptions,
        progress: &dyn Progress,
    ) -> Result<Pulled, ImageError> {
        let wanted = options.platform.clone().unwrap_or_else(Platform::host);
        let what = name.familiar();
        let reference = match name.digest() {
            Some(d) => d.to_string(),
            None => name.tag().unwrap_or("latest").to_owned(),
        };
        let (bytes, kind) = registry.manifest(name, &reference)?;
        progress.status(&format!("{reference}: Pulling from {}", short_repository(name)));
        let digest = manifest::digest_of(&bytes);
        let picked = pick(registry, name, bytes, kind, &wanted, &what)?;
        let manifest_digest = manifest::digest_of(&picked.bytes);
        let names: Vec<ImageRef> = if name.digest().is_some() { Vec::new() } else { vec![name.clone()] };
        let repo_digests = [(name.clone(), digest)];

        if let Some(image) = self.complete_already(&picked.manifest, &manifest_digest)? {
            if !wanted.accepts(&image.platform) {
                return Err(ImageError::Platform { image: what, wanted, available: vec![image.platform] });
            }
            let known = names.iter().all(|n| image.refs.contains(n))
                && db::by_repo_digest(self.db.conn(), &name.name(), &digest)?.is_some();
            if !known {
                self.db.write(|tx| {
                    for n in &names {
                        db::set_name(tx, n, &image.id, sys::host::now_ns())?;
                    }
                    db::add_repo_digest(tx, name, &digest, &image.id)
                })?;
            }
            tell_end(progress, &digest, known, &what);
            let image = self.resolve(&image.id.to_string(), None)?;
            return Ok(Pulled { image, digest, up_to_date: known });
        }

        let config_bytes = self.config(registry, name, &picked.manifest.config, &what)?;
        let config =
            manifest::parse_config(&config_bytes, Some(picked.manifest.layers.len()), Some(&wanted), &what)?;
        let lease = self.lease()?;
        let stored = self.fetch_layers(registry, name, &picked.manifest, &config, &lease, progress).and_then(
            |layers| {
                let (id, _) = self.register(Registration {
                    config: &config,
                    config_bytes: &config_bytes,
                    manifest: &picked.bytes,
                    manifest_type: &picked.kind,
                    layers: &layers,
                    names: &names,
                    repo_digests: &repo_digests,
                    parent: None,
                })?;
                self.db.write(|tx| db::add_origin(tx, &layers, name))?;
                Ok(id)
            },
        );
        let id = self.conclude(lease, stored)?;
        tell_end(progress, &digest, false, &what);
        let image = self.resolve(&id.to_string(), None)?;
        Ok(Pulled { image, digest, up_to_date: false })
    }

    /// The image of a manifest, if it and all its layers are there.
    fn complete_already(&self, m: &Manifest, digest: &Digest) -> Result<Option<Image>, ImageError> {
        if db::is_removed(self.db.conn(), &m.config.digest)? != Some(false)
            || db::manifest(self.db.conn(), &m.config.digest)?.2 != *digest
            || m.layers.iter().any(|l| self.content.size(&l.digest) != Some(l.size))
        {
            return Ok(None);
        }
        match self.resolve(&m.config.digest.to_string(), None) {
            Ok(image) => Ok(Some(image)),
            // A layer is missing: the pull mends it.
            Err(ImageError::Corrupt { .. } | ImageError::NotFound(_)) => Ok(None),
            Err(e) => Err(e),
        }
    }

    fn config(
        &self,
        registry: &Registry,
        name: &ImageRef,
        d: &Descriptor,
        what: &str,
    ) -> Result<Vec<u8>, ImageError> {
        if let Some(row) = db::by_prefix(self.db.conn(), &d.digest.hex())?.pop() {
            return Ok(row.config);
        }
        let what = format!("the configuration of {what}");
        let (reply, _) = registry.blob(name, &d.digest, 0)?;
        let bytes = registry.body(reply, MAX_CONFIG, &what)?;
        if bytes.len() as u64 != d.size {
            let reason =
                format!("{} bytes instead of the {} that the manifest announces", bytes.len(), d.size);
            return Err(ImageError::corrupt(what, reason));
        }
        let found = manifest::digest_of(&bytes);
        if found != d.digest {
            return Err(ImageError::DigestMismatch { what, expected: d.digest, found });
        }
        Ok(bytes)
    }

    fn fetch_layers(
        &self,
        registry: &Registry,
        name: &ImageRef,
        m: &Manifest,
        config: &ImageConfig,
        lease: &Lease,
        progress: &dyn Progress,
    ) -> Result<Vec<BlobRow>, ImageError> {
        let diff_ids = &config.rootfs.diff_ids;
        lease.hold(m.layers.iter().map(|l| &l.digest).chain(diff_ids))?;
        let mut jobs: Vec<(&Descriptor, &Digest)> = Vec::new();
        let mut rows: HashMap<Digest, BlobRow> = HashMap::new();
        let mut seen = HashSet::new();
        for (layer, diff_id) in m.layers.iter().zip(diff_ids) {
            if !seen.insert(layer.digest) {
                continue;
            }
            match self.known_layer(layer, diff_id, lease)? {
                Some(row) => {
                    progress.layer(&layer.digest.short(), LayerEvent::AlreadyExists);
                    rows.insert(layer.digest, row);
                }
                None => {
                    progress.layer(&layer.digest.short(), LayerEvent::Queued);
                    jobs.push((layer, diff_id));
                }
            }
        }
        if !jobs.is_empty() {
            self.content.room(jobs.iter().map(|(l, _)| l.size).fold(0, u64::saturating_add))?;
        }
        let fetch = Fetch {
            registry,
            name,
            content: &self.content,
            layers: &self.layers,
            limits: &self.limits,
            progress,
            stop: AtomicBool::new(false),
        };
        for row in fetch.all(&jobs)? {
            rows.insert(row.digest, row);
        }
        Ok(m.layers.iter().filter_map(|l| rows.get(&l.digest).cloned()).collect())
    }

    /// A layer that needs no fetching: by this blob or by another one with the same content.
    fn known_layer(
        &self,
        layer: &Descriptor,
        diff_id: &Digest,
        lease: &Lease,
    ) -> Result<Option<BlobRow>, ImageError> {
        if self.layers.get(diff_id).is_none() {
            return Ok(None);
        }
        if self.content.size(&layer.digest) == Some(layer.size) {
            return Ok(Some(row(layer, diff_id)));
        }
        self.other_blob(diff_id, lease, |_| true)
    }

    /// A blob that holds a layer, held from now on.
    pub(crate) fn other_blob(
        &self,
        diff_id: &Digest,
        lease: &Lease,
        wanted: impl Fn(&Digest) -> bool,
    ) -> Result<Option<BlobRow>, ImageError> {
        for blob in db::blobs_of(self.db.conn(), diff_id)?.into_iter().filter(|b| wanted(&b.digest)) {
            lease.hold([&blob.digest])?;
            // Looked at when nobody can delete it any more.
            if self.content.size(&blob.digest) == Some(blob.size) {
                return Ok(Some(blob));
            }
        }
        Ok(None)
    }
}

fn row(layer: &Descriptor, diff_id: &Digest) -> BlobRow {
    let (digest, size) = (layer.digest, layer.size);
    BlobRow { digest, diff_id: *diff_id, size, media_type: layer.media_type.clone() }
}

fn tell_end(progress: &dyn Progress, digest: &Digest, up_to_date: bool, what: &str) {
    progress.status(&format!("Digest: {digest}"));
    progress.status(&match up_to_date {
        true => format!("Status: Image is up to date for {what}"),
        false => format!("Status: Downloaded newer image for {what}"),
    });
}

fn short_repository(name: &ImageRef) -> &str {
    name.repository()
}

struct Picked {
    manifest: Manifest,
    bytes: Vec<u8>,
    kind: String,
}

/// Follows indexes to the manifest for a platform.
fn pick(
    registry: &Registry,
    name: &ImageRef,
    mut bytes: Vec<u8>,
    mut kind: Option<String>,
    wanted: &Platform,
    what: &str,
) -> Result<Picked, ImageError> {
    for _ in 0..=MAX_DEPTH {
        match manifest::parse(&bytes, kind.as_deref(), &format!("the manifest of {what}"))? {
            Document::Manifest(manifest) => {
                let told = manifest.media_type.clone().filter(|t| !t.is_empty()).or(kind);
                let kind = told.unwrap_or_else(|| manifest::OCI_MANIFEST.to_owned());
                return Ok(Picked { manifest, bytes, kind });
            }
            Document::Index(index) => {
                let chosen = manifest::choose(&index, wanted, what)?;
                let (next, next_kind) = registry.manifest(name, &chosen.digest.to_string())?;
                if next.len() as u64 != chosen.size {
                    let reason = format!(
                        "{} bytes instead of the {} that its index announces",
                        next.len(),
                        chosen.size
                    );
                    return Err(ImageError::corrupt(format!("the manifest of {what}"), reason));
                }
                (bytes, kind) = (next, next_kind);
            }
        }
    }
    Err(ImageError::corrupt(format!("the index of {what}"), "indexes lie within each other too deep"))
}
