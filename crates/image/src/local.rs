//! Images that are made here: `import`, `commit` and the embedded `hello`.

use crate::content::Scratch;
use crate::db::{self, BlobRow};
use crate::lease::Lease;
use crate::manifest::{self, Descriptor};
use crate::store::Registration;
use crate::unpack::{self, BlobWriter, Compression};
use crate::{Image, ImageError, ImageStore};
use std::fs::File;
use std::io::{BufWriter, Read, Write};
use types::{Digest, HistoryEntry, ImageConfig, ImageRef, Platform, ProcessDefaults, RootFs};

/// Name of the embedded image.
pub const HELLO: &str = "hello";

/// What [`ImageStore::import`] makes an image of.
#[derive(Debug)]
pub struct ImportRequest<'a> {
    /// Name of the new image.
    pub name: Option<&'a ImageRef>,
    /// Dockerfile instructions.
    pub changes: &'a [String],
    /// Comment in the history.
    pub message: &'a str,
    /// Platform that it is for; the host's if not told.
    pub platform: Option<&'a Platform>,
}

/// What [`ImageStore::commit`] makes an image of.
pub struct CommitRequest<'a> {
    /// Image of the container.
    pub base: &'a Image,
    /// The container's changes as an OCI layer tar.
    pub layer_tar: &'a mut (dyn Read + Send),
    /// Configuration of the new image, before `changes`.
    pub config: ProcessDefaults,
    /// Who.
    pub author: &'a str,
    /// Comment in the history.
    pub comment: &'a str,
    /// What the history says made the layer: the container's command line.
    pub created_by: &'a str,
    /// Dockerfile instructions.
    pub changes: &'a [String],
    /// Name of the new image.
    pub name: Option<&'a ImageRef>,
}

impl ImageStore {
    /// Makes an image of a root file system in a tar (plain, gzip or zstd).
    pub fn import(
        &self,
        tar: &mut (dyn Read + Send),
        request: &ImportRequest<'_>,
    ) -> Result<Digest, ImageError> {
        let mut defaults = ProcessDefaults::default();
        request.changes.iter().try_for_each(|c| crate::change::apply(&mut defaults, c))?;
        let lease = self.lease()?;
        let done = self.import_with(&lease, tar, request, defaults);
        self.conclude(lease, done)
    }

    fn import_with(
        &self,
        lease: &Lease,
        tar: &mut (dyn Read + Send),
        request: &ImportRequest<'_>,
        defaults: ProcessDefaults,
    ) -> Result<Digest, ImageError> {
        let blob = self.add_layer(lease, tar, "the imported tar", None)?;
        let created = Some(types::units::rfc3339(sys::host::now_ns()));
        let platform = request.platform.cloned().unwrap_or_else(Platform::host);
        let comment = match request.message {
            "" => "Imported from a tar".to_owned(),
            message => message.to_owned(),
        };
        let config = ImageConfig {
            created: created.clone(),
            architecture: platform.architecture,
            variant: platform.variant,
            os: platform.os,
            config: defaults,
            rootfs: RootFs { kind: "layers".into(), diff_ids: vec![blob.diff_id] },
            history: vec![HistoryEntry { created, comment: Some(comment), ..Default::default() }],
            ..Default::default()
        };
        self.register_local(&config, &[blob], request.name, None)
    }

    /// Makes an image of a container's changes on top of its image.
    pub fn commit(&self, request: CommitRequest<'_>) -> Result<Digest, ImageError> {
        let mut defaults = request.config.clone();
        request.changes.iter().try_for_each(|c| crate::change::apply(&mut defaults, c))?;
        let lease = self.lease()?;
        let done = self.commit_with(&lease, request, defaults);
        self.conclude(lease, done)
    }

    fn commit_with(
        &self,
        lease: &Lease,
        request: CommitRequest<'_>,
        defaults: ProcessDefaults,
    ) -> Result<Digest, ImageError> {
        let mut blobs = db::blobs(self.db.conn(), &request.base.id)?;
        lease.hold(blobs.iter().flat_map(|b| [&b.digest, &b.diff_id]))?;
        blobs.push(self.add_layer(lease, request.layer_tar, "the container's changes", None)?);
        let text = |s: &str| (!s.is_empty()).then(|| s.to_owned());
        let created = Some(types::units::rfc3339(sys::host::now_ns()));
        let mut config = request.base.config.clone();
        for docker in ["container", "container_config", "id", "parent"] {
            config.extra.remove(docker);
        }
        config.created = created.clone();
        config.author = text(request.author);
        config.config = defaults;
        config.rootfs = RootFs { kind: "layers".into(), diff_ids: blobs.iter().map(|b| b.diff_id).collect() };
        config.history.push(HistoryEntry {
            created,
            created_by: text(request.created_by),
            author: text(request.author),
            comment: text(request.comment),
            empty_layer: false,
        });
        self.register_local(&config, &blobs, request.name, Some(request.base.id))
    }

    /// Makes sure that the image `hello` is there and holds this very program, a static binary.
    /// The same program gives the same image on every machine.
    pub fn ensure_hello(&self, program: &[u8]) -> Result<Image, ImageError> {
        let sum = manifest::digest_of(program).to_string();
        match self.resolve(HELLO, None) {
            Ok(image) if image.config.config.labels.get(HELLO_LABEL) == Some(&sum) => return Ok(image),
            _ => {}
        }
        let lease = self.lease()?;
        let tar = hello_tar(program).map_err(|e| ImageError::io("write", self.content.tmp(), e))?;
        let blob = self.add_layer(&lease, &tar[..], "the embedded image", None)?;
        let created = Some("1970-01-01T00:00:00Z".to_owned());
        let platform = Platform::host();
        let config = ImageConfig {
            created: created.clone(),
            architecture: platform.architecture,
            variant: platform.variant,
            os: platform.os,
            config: ProcessDefaults {
                // As PID 1 it has no default action for SIGTERM, and nothing to save.
                stop_signal: Some("SIGKILL".into()),
                entrypoint: Some(vec!["/hello".into()]),
                env: vec!["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin".into()],
                working_dir: "/".into(),
                labels: [(HELLO_LABEL.to_owned(), sum)].into(),
                ..Default::default()
            },
            rootfs: RootFs { kind: "layers".into(), diff_ids: vec![blob.diff_id] },
            history: vec![HistoryEntry {
                created,
                created_by: Some("embedded in the dhow binary".into()),
                ..Default::default()
            }],
            ..Default::default()
        };
        let name = ImageRef::parse(HELLO)?;
        let id = self.register_local(&config, &[blob], Some(&name), None)?;
        self.resolve(&id.to_string(), None)
    }

    /// Stores a tar stream as a layer, and as a gzip blob for `push` and `save`.
    pub(crate) fn add_layer(
        &self,
        lease: &Lease,
        source: impl Read + Send,
        what: &str,
        expected: Option<&Digest>,
    ) -> Result<BlobRow, ImageError> {
        let scratch = Scratch::new(&self.content)?;
        let path = scratch.path().join("blob");
        let fail = |e| ImageError::io("write", &path, e);
        self.content.room(0)?;
        let file = File::create(&path).map_err(fail)?;
        let mut writer = BlobWriter::new(BufWriter::with_capacity(crate::content::CHUNK, file));
        let layer = unpack::ingest(
            &self.layers,
            &self.content,
            what,
            source,
            expected,
            &self.limits,
            Some(&mut writer),
        )?;
        // First of all, so that a failure from here on takes it away again.
        lease.hold([&layer.diff_id])?;
        let (mut out, digest, size) = writer.finish().map_err(fail)?;
        out.flush().map_err(fail)?;
        lease.hold([&digest])?;
        std::fs::rename(&path, self.content.path(&digest)).map_err(fail)?;
        let media_type = Compression::Gzip.layer_type().to_owned();
        Ok(BlobRow { digest, diff_id: layer.diff_id, size, media_type })
    }

    pub(crate) fn register_local(
        &self,
        config: &ImageConfig,
        blobs: &[BlobRow],
        name: Option<&ImageRef>,
        parent: Option<Digest>,
    ) -> Result<Digest, ImageError> {
        let config_bytes = serde_json::to_vec(config)
            .map_err(|e| ImageError::Invalid(format!("the configuration cannot be written as JSON: {e}")))?;
        let manifest = manifest::compose(&config_bytes, descriptors(blobs));
        let names: Vec<ImageRef> = name.into_iter().cloned().collect();
        let (id, _) = self.register(Registration {
            config,
            config_bytes: &config_bytes,
            manifest: &manifest,
            manifest_type: manifest::OCI_MANIFEST,
            layers: blobs,
            names: &names,
            repo_digests: &[],
            parent,
        })?;
        Ok(id)
    }
}

/// Label of the embedded image: the digest of its program.
const HELLO_LABEL: &str = "dhow.hello.program";

/// Manifest entries of blobs.
pub(crate) fn descriptors(blobs: &[BlobRow]) -> Vec<Descriptor> {
    blobs
        .iter()
        .map(|b| Descriptor {
            // An OCI manifest names OCI types.
            media_type: oci_type(&b.media_type).to_owned(),
            digest: b.digest,
            size: b.size,
            platform: None,
            annotations: None,
        })
        .collect()
}

fn oci_type(media_type: &str) -> &str {
    match media_type {
        "application/vnd.docker.image.rootfs.diff.tar.gzip" => Compression::Gzip.layer_type(),
        "application/vnd.docker.image.rootfs.diff.tar.zstd" => Compression::Zstd.layer_type(),
        "application/vnd.docker.image.rootfs.diff.tar" => Compression::None.layer_type(),
        other => other,
    }
}

fn hello_tar(program: &[u8]) -> std::io::Result<Vec<u8>> {
    let mut tar = tar::Builder::new(Vec::with_capacity(program.len() + 4096));
    let mut header = tar::Header::new_ustar();
    header.set_mode(0o755);
    header.set_size(program.len() as u64);
    header.set_mtime(0);
    header.set_uid(0);
    header.set_gid(0);
    header.set_entry_type(tar::EntryType::Regular);
    tar.append_data(&mut header, "hello", program)?;
    tar.into_inner()
}
