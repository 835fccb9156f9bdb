//! What registries tell of images that are not here: what a name stands for, and what Docker Hub finds.

use crate::ImageError;
use crate::manifest::{self, Document};
use crate::registry::{Access, Ask, Registry};
use serde_json::Value;
use types::{Digest, ImageRef, Platform};
use ureq::http::{Method, StatusCode};

/// Most bytes of a list of finds.
const MAX_FINDS: u64 = 1 << 20;

/// What a name stands for in its registry.
#[derive(Clone, Debug)]
pub struct Remote {
    /// Media type of the manifest or index.
    pub media_type: String,
    /// Its digest.
    pub digest: Digest,
    /// Its bytes.
    pub size: u64,
    /// Platforms that there are images for.
    pub platforms: Vec<Platform>,
}

/// Asks a registry for what a name stands for, without fetching the image.
pub fn describe(name: &ImageRef, access: &Access) -> Result<Remote, ImageError> {
    let registry = Registry::connect(name.registry(), access)?;
    let reference = match name.digest() {
        Some(d) => d.to_string(),
        None => name.tag().unwrap_or("latest").to_owned(),
    };
    let (bytes, kind) = registry.manifest(name, &reference)?;
    let what = format!("the manifest of {}", name.familiar());
    let digest = manifest::digest_of(&bytes);
    let size = bytes.len() as u64;
    let document = manifest::parse(&bytes, kind.as_deref(), &what)?;
    let told: Value = serde_json::from_slice(&bytes).unwrap_or_default();
    let media_type = told["mediaType"].as_str().map(str::to_owned).or(kind).unwrap_or_default();
    let platforms = match document {
        Document::Index(index) => {
            let known = |word: &str| !word.is_empty() && word != "unknown";
            let platforms = index.manifests.iter().filter_map(|d| d.platform.as_ref());
            let platforms = platforms.filter(|p| known(&p.os) && known(&p.architecture));
            platforms
                .filter_map(|p| {
                    let variant = p.variant.as_deref().filter(|v| !v.is_empty());
                    let variant = variant.map(|v| format!("/{v}")).unwrap_or_default();
                    Platform::parse(&format!("{}/{}{variant}", p.os, p.architecture)).ok()
                })
                .collect()
        }
        Document::Manifest(m) => {
            let (reply, _) = registry.blob(name, &m.config.digest, 0)?;
            let what = format!("the configuration of {}", name.familiar());
            let config = registry.body(reply, manifest::MAX_CONFIG, &what)?;
            let config: types::ImageConfig =
                serde_json::from_slice(&config).map_err(|e| ImageError::corrupt(what, e.to_string()))?;
            vec![manifest::platform_of(&config)]
        }
    };
    Ok(Remote { media_type, digest, size, platforms })
}

/// What Docker Hub finds for a term, in the shape in which its own index answers.
pub fn search(term: &str, limit: i64) -> Result<Vec<Value>, ImageError> {
    let access = Access { anonymous: true, ..Access::default() };
    let registry = Registry::connect("index.docker.io", &access)?;
    let term: String = term.bytes().map(encoded).collect();
    let place = format!("/v1/search?q={term}&n={limit}");
    let reply = registry.send(&Method::GET, &place, &Ask::new(""))?;
    if reply.status() != StatusCode::OK {
        return Err(registry.unexpected(&registry.refusal(reply), "the search"));
    }
    let bytes = registry.body(reply, MAX_FINDS, "the list of finds")?;
    let mut found: Value = serde_json::from_slice(&bytes)
        .map_err(|e| registry.wrong(format!("its list of finds cannot be read ({e})")))?;
    let results = found.get_mut("results").and_then(Value::as_array_mut);
    Ok(results.map(std::mem::take).unwrap_or_default())
}

/// RFC 3986, section 2.1.
fn encoded(byte: u8) -> String {
    match byte {
        b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => char::from(byte).to_string(),
        other => format!("%{other:02X}"),
    }
}
