//! Manifests, indexes and the choice of a platform: OCI image-spec `manifest.md` and `image-index.md`, Docker's
//! `manifest-v2-2.md`. Reads untrusted bytes; unknown fields are ignored, as both specifications ask.

use crate::ImageError;
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use std::collections::BTreeMap;
use types::{Digest, ImageConfig, Platform};

/// Bytes that a manifest may have (distribution-spec: "Registries SHOULD enforce … 4 MiB").
pub const MAX_MANIFEST: u64 = 4 << 20;
/// Bytes that a configuration may have.
pub const MAX_CONFIG: u64 = 8 << 20;
/// Layers that an image may have: overlayfs takes 500, Docker 127.
pub const MAX_LAYERS: usize = 400;

/// OCI manifest.
pub const OCI_MANIFEST: &str = "application/vnd.oci.image.manifest.v1+json";
/// OCI index.
pub const OCI_INDEX: &str = "application/vnd.oci.image.index.v1+json";
/// OCI configuration.
pub const OCI_CONFIG: &str = "application/vnd.oci.image.config.v1+json";
/// OCI gzip layer.
pub const OCI_LAYER_GZIP: &str = "application/vnd.oci.image.layer.v1.tar+gzip";
/// Docker schema 2 manifest.
pub const DOCKER_MANIFEST: &str = "application/vnd.docker.distribution.manifest.v2+json";
/// Docker schema 2 list.
pub const DOCKER_LIST: &str = "application/vnd.docker.distribution.manifest.list.v2+json";
/// Docker configuration.
pub const DOCKER_CONFIG: &str = "application/vnd.docker.container.image.v1+json";

/// What a manifest request accepts.
pub const ACCEPT: [&str; 4] = [OCI_INDEX, OCI_MANIFEST, DOCKER_LIST, DOCKER_MANIFEST];

/// Points to content (OCI `descriptor.md`).
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Descriptor {
    /// Media type.
    #[serde(default)]
    pub media_type: String,
    /// Digest.
    pub digest: Digest,
    /// Bytes.
    pub size: u64,
    /// In an index: for which platform.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub platform: Option<IndexPlatform>,
    /// Annotations.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub annotations: Option<BTreeMap<String, String>>,
}

/// The platform member of an index entry.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
pub struct IndexPlatform {
    /// Go's name of the architecture.
    pub architecture: String,
    /// Operating system.
    pub os: String,
    /// Variant.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub variant: Option<String>,
}

impl IndexPlatform {
    fn platform(&self) -> Platform {
        Platform {
            os: self.os.clone(),
            architecture: self.architecture.clone(),
            variant: self.variant.clone(),
        }
    }
}

/// An image manifest.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Manifest {
    /// Always 2.
    pub schema_version: u32,
    /// Own media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Configuration.
    pub config: Descriptor,
    /// Layers, base first.
    pub layers: Vec<Descriptor>,
}

/// An index.
#[derive(Clone, Debug, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase")]
pub struct Index {
    /// Always 2.
    pub schema_version: u32,
    /// Own media type.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub media_type: Option<String>,
    /// Entries.
    pub manifests: Vec<Descriptor>,
}

/// Either of the two.
#[derive(Clone, Debug, PartialEq)]
pub enum Document {
    /// One image.
    Manifest(Manifest),
    /// Images to choose from.
    Index(Index),
}

/// The SHA-256 digest of bytes.
pub fn digest_of(bytes: &[u8]) -> Digest {
    Digest::from_sha256(Sha256::digest(bytes).into())
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Shape {
    #[serde(default)]
    schema_version: Option<serde_json::Value>,
    media_type: Option<String>,
    config: Option<serde::de::IgnoredAny>,
    layers: Option<serde::de::IgnoredAny>,
    manifests: Option<serde::de::IgnoredAny>,
    fs_layers: Option<serde::de::IgnoredAny>,
}

/// Reads a manifest or an index. `content_type` is what it came as (an HTTP header or a descriptor); a type that
/// contradicts the content is refused, since two readers might take it for two different things
/// (image-spec, GHSA-77vh-xpmg-72qh).
pub fn parse(bytes: &[u8], content_type: Option<&str>, what: &str) -> Result<Document, ImageError> {
    let corrupt = |reason: String| ImageError::Corrupt { what: what.to_owned(), reason };
    let malformed = |e: serde_json::Error| corrupt(format!("not a manifest ({e})"));
    let shape: Shape = serde_json::from_slice(bytes).map_err(malformed)?;
    if shape.fs_layers.is_some() || shape.schema_version.as_ref().is_some_and(|v| *v == 1) {
        return Err(ImageError::Unsupported(format!(
            "{what} is a Docker schema 1 manifest, which registries gave up in 2020; push it again with a newer tool"
        )));
    }
    if shape.manifests.is_some() && (shape.layers.is_some() || shape.config.is_some()) {
        return Err(corrupt("it is a manifest and an index at once".into()));
    }
    let is_index = shape.manifests.is_some();
    let told = content_type.map(|t| t.split(';').next().unwrap_or(t).trim()).filter(|t| !is_vague(t));
    for kind in told.into_iter().chain(shape.media_type.as_deref().filter(|t| !t.is_empty())) {
        let ok = match kind {
            OCI_INDEX | DOCKER_LIST => is_index,
            OCI_MANIFEST | DOCKER_MANIFEST => !is_index,
            _ => false,
        };
        if !ok {
            return Err(corrupt(format!("it comes as {kind:.100}, which it is not")));
        }
    }
    if let (Some(told), Some(own)) = (told, shape.media_type.as_deref().filter(|t| !t.is_empty()))
        && told != own
    {
        return Err(corrupt(format!("it comes as {told:.100} and calls itself {own:.100}")));
    }
    let version = |v: u32| {
        if v == 2 { Ok(()) } else { Err(corrupt(format!("schemaVersion is {v} instead of 2"))) }
    };
    if is_index {
        let index: Index = serde_json::from_slice(bytes).map_err(malformed)?;
        version(index.schema_version)?;
        return Ok(Document::Index(index));
    }
    let manifest: Manifest = serde_json::from_slice(bytes).map_err(malformed)?;
    version(manifest.schema_version)?;
    check(&manifest, what)?;
    Ok(Document::Manifest(manifest))
}

fn is_vague(content_type: &str) -> bool {
    matches!(content_type, "" | "application/json" | "text/plain" | "application/octet-stream" | "text/json")
}

fn check(manifest: &Manifest, what: &str) -> Result<(), ImageError> {
    let kind = manifest.config.media_type.as_str();
    if !matches!(kind, OCI_CONFIG | DOCKER_CONFIG | "" | "application/octet-stream") {
        return Err(ImageError::Unsupported(format!(
            "{what} is not a container image but an artifact of type {kind:.100}"
        )));
    }
    if manifest.config.size > MAX_CONFIG {
        return Err(ImageError::Limit {
            what: format!("the configuration of {what}"),
            reason: format!("{} bytes, at most {MAX_CONFIG} are read", manifest.config.size),
        });
    }
    if manifest.layers.len() > MAX_LAYERS {
        return Err(ImageError::Limit {
            what: what.to_owned(),
            reason: format!("{} layers, at most {MAX_LAYERS} can be mounted", manifest.layers.len()),
        });
    }
    manifest.layers.iter().try_for_each(|l| check_layer(l, what))
}

fn check_layer(layer: &Descriptor, what: &str) -> Result<(), ImageError> {
    let kind = layer.media_type.as_str();
    if kind.contains("foreign") {
        return Err(ImageError::Unsupported(format!(
            "layer {} of {what} is a foreign layer ({kind:.100}), which only Windows images have",
            layer.digest.short()
        )));
    }
    let known = [
        "application/vnd.oci.image.layer.v1.tar",
        "application/vnd.oci.image.layer.nondistributable.v1.tar",
        "application/vnd.docker.image.rootfs.diff.tar",
    ];
    let base = ["+gzip", "+zstd", ".gzip", ".zstd"].iter().find_map(|s| kind.strip_suffix(s)).unwrap_or(kind);
    if known.contains(&base) {
        return Ok(());
    }
    let problem = if kind.contains("encrypted") { "is encrypted" } else { "has an unknown type" };
    Err(ImageError::Unsupported(format!(
        "layer {} of {what} {problem} ({kind:.100}): dhow reads tar layers, plain, gzip or zstd",
        layer.digest.short()
    )))
}

/// Chooses the entry for `wanted`. Entries without a platform, attestations (`unknown/unknown`) and entries that
/// are no image are passed over. Of several the one with the very variant comes first.
pub fn choose<'a>(index: &'a Index, wanted: &Platform, what: &str) -> Result<&'a Descriptor, ImageError> {
    let image = |d: &&Descriptor| {
        matches!(d.media_type.as_str(), OCI_MANIFEST | DOCKER_MANIFEST | OCI_INDEX | DOCKER_LIST | "")
    };
    let real = |p: &IndexPlatform| p.os != "unknown" && p.architecture != "unknown";
    let entries: Vec<(&Descriptor, Platform)> = index
        .manifests
        .iter()
        .filter(image)
        .filter_map(|d| Some((d, d.platform.as_ref().filter(|p| real(p))?.platform())))
        .collect();
    let fits = || entries.iter().filter(|(_, p)| wanted.accepts(p));
    if let Some((d, _)) = fits().find(|(_, p)| p.variant == wanted.variant).or_else(|| fits().next()) {
        return Ok(d);
    }
    // An index of one image that says nothing of its platform, as archives have it: its configuration tells.
    if let ([only], true) = (&index.manifests[..], entries.is_empty())
        && only.platform.is_none()
    {
        return Ok(only);
    }
    let available = entries.into_iter().map(|(_, p)| p).take(50).collect();
    Err(ImageError::Platform { image: what.to_owned(), wanted: wanted.clone(), available })
}

/// Reads a configuration and checks it against its manifest and the wanted platform.
pub fn parse_config(
    bytes: &[u8],
    layers: Option<usize>,
    wanted: Option<&Platform>,
    what: &str,
) -> Result<ImageConfig, ImageError> {
    let corrupt = |reason: String| ImageError::corrupt(format!("the configuration of {what}"), reason);
    let config: ImageConfig = serde_json::from_slice(bytes).map_err(|e| corrupt(e.to_string()))?;
    if config.os.is_empty() || config.architecture.is_empty() {
        return Err(corrupt("it names no platform".into()));
    }
    let diffs = config.rootfs.diff_ids.len();
    if let Some(layers) = layers
        && layers != diffs
    {
        return Err(corrupt(format!("it lists {diffs} layers, the manifest {layers}")));
    }
    if diffs > MAX_LAYERS {
        return Err(corrupt(format!("{diffs} layers, at most {MAX_LAYERS} can be mounted")));
    }
    let own = platform_of(&config);
    if let Some(wanted) = wanted
        && !wanted.accepts(&own)
    {
        return Err(ImageError::Platform {
            image: what.to_owned(),
            wanted: wanted.clone(),
            available: vec![own],
        });
    }
    Ok(config)
}

/// The platform that a configuration names.
pub fn platform_of(config: &ImageConfig) -> Platform {
    Platform {
        os: config.os.clone(),
        architecture: config.architecture.clone(),
        variant: config.variant.clone(),
    }
}

/// The manifest of an image that was made here, always the same bytes for the same image.
pub fn compose(config: &[u8], layers: Vec<Descriptor>) -> Vec<u8> {
    let manifest = Manifest {
        schema_version: 2,
        media_type: Some(OCI_MANIFEST.into()),
        config: Descriptor {
            media_type: OCI_CONFIG.into(),
            digest: digest_of(config),
            size: config.len() as u64,
            platform: None,
            annotations: None,
        },
        layers,
    };
    serde_json::to_vec(&manifest).unwrap_or_default()
}
