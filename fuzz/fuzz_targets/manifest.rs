//! Manifests, indexes and configurations as a registry or an archive may send them.
#![no_main]

use image::manifest::{self, Document};
use libfuzzer_sys::fuzz_target;

fuzz_target!(|data: &[u8]| {
    // The first byte chooses what the content comes as.
    let Some((choice, body)) = data.split_first() else { return };
    let kind = manifest::ACCEPT.get(usize::from(*choice)).copied();
    let host = types::Platform::host();
    match manifest::parse(body, kind, "fuzz") {
        Ok(Document::Index(index)) => drop(manifest::choose(&index, &host, "fuzz")),
        Ok(Document::Manifest(m)) => assert!(m.layers.len() <= manifest::MAX_LAYERS),
        Err(e) => assert!(!e.to_string().is_empty()),
    }
    if let Ok(config) = manifest::parse_config(body, None, Some(&host), "fuzz") {
        assert!(host.accepts(&manifest::platform_of(&config)));
    }
});
