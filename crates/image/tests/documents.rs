//! Properties of names, manifests, indexes and configurations.

extern crate dhow_image as image;

use image::manifest::{self, Descriptor, Document};
use proptest::collection::vec;
use proptest::prelude::*;
use serde_json::{Value, json};
use types::{ImageRef, Platform};

fn descriptor() -> impl Strategy<Value = Value> {
    let platform = prop_oneof![
        Just(Value::Null),
        ("linux|windows", "amd64|arm64|arm|s390x", prop_oneof![Just(None), "v[6-8]".prop_map(Some)])
            .prop_map(|(os, architecture, variant)| json!({"os": os, "architecture": architecture, "variant": variant})),
    ];
    (any::<[u8; 32]>(), any::<u32>(), platform, 0..4usize).prop_map(|(sum, size, platform, kind)| {
        let kinds = [manifest::OCI_LAYER_GZIP, manifest::OCI_CONFIG, manifest::OCI_MANIFEST, ""];
        let digest = types::Digest::from_sha256(sum);
        let mut d = json!({"mediaType": kinds[kind], "digest": digest, "size": size, "extra": [1]});
        if !platform.is_null() {
            d["platform"] = platform;
        }
        d
    })
}

/// Any JSON, small.
fn any_json() -> impl Strategy<Value = Value> {
    let leaf = prop_oneof![
        Just(Value::Null),
        any::<bool>().prop_map(Value::from),
        any::<i64>().prop_map(Value::from),
        "[ -~]{0,12}".prop_map(Value::from),
    ];
    leaf.prop_recursive(3, 24, 4, |inner| {
        prop_oneof![
            vec(inner.clone(), 0..4).prop_map(Value::from),
            proptest::collection::hash_map("[a-zA-Z_]{1,12}", inner, 0..4)
                .prop_map(|m| Value::Object(m.into_iter().collect())),
        ]
    })
}

fn kinds() -> impl Strategy<Value = Option<&'static str>> {
    (0..=manifest::ACCEPT.len()).prop_map(|i| manifest::ACCEPT.get(i).copied())
}

proptest! {
    #![proptest_config(ProptestConfig { failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn a_manifest_keeps_its_layers(layers in vec(descriptor(), 0..6), config in descriptor(), unknown in any_json()) {
        let all: Vec<Value> = layers.iter().cloned().map(|mut l| {
            l["mediaType"] = manifest::OCI_LAYER_GZIP.into();
            l
        }).collect();
        let mut config = config;
        config["mediaType"] = manifest::OCI_CONFIG.into();
        config["size"] = 1234.into();
        let text = json!({"schemaVersion": 2, "mediaType": manifest::OCI_MANIFEST, "config": config,
            "layers": all, "subject": unknown, "futureField": unknown});
        let parsed = manifest::parse(&serde_json::to_vec(&text).unwrap(), Some(manifest::OCI_MANIFEST), "it");
        let Ok(Document::Manifest(m)) = parsed else { panic!("{parsed:?}") };
        prop_assert_eq!(m.layers.len(), all.len());
        for (parsed, given) in m.layers.iter().zip(&all) {
            prop_assert_eq!(serde_json::to_value(parsed.digest).unwrap(), given["digest"].clone());
            prop_assert_eq!(Value::from(parsed.size), given["size"].clone());
        }
        // What was understood can be written and read again.
        let again = manifest::compose(b"{}", m.layers.clone());
        let Ok(Document::Manifest(again)) = manifest::parse(&again, None, "it") else { panic!("not again") };
        prop_assert_eq!(again.layers, m.layers);
    }

    #[test]
    fn the_choice_of_an_index_fits(entries in vec(descriptor(), 0..8), arch in "amd64|arm64|arm") {
        let text = json!({"schemaVersion": 2, "mediaType": manifest::OCI_INDEX, "manifests": entries});
        let wanted = Platform::parse(&format!("linux/{arch}")).unwrap();
        if let Ok(Document::Index(index)) = manifest::parse(&serde_json::to_vec(&text).unwrap(), None, "it")
            && let Ok(Descriptor { platform: Some(p), .. }) = manifest::choose(&index, &wanted, "it")
        {
            prop_assert_eq!((p.os.as_str(), p.architecture.as_str()), ("linux", arch.as_str()));
        }
    }

    #[test]
    fn no_document_panics(json in any_json(), kind in kinds(), cut in 0..400usize) {
        let mut bytes = serde_json::to_vec(&json).unwrap();
        let _ = manifest::parse(&bytes, kind, "it");
        let _ = manifest::parse_config(&bytes, Some(1), Some(&Platform::host()), "it");
        bytes.truncate(cut);
        if let Err(e) = manifest::parse(&bytes, kind, "it") {
            prop_assert!(!e.to_string().contains('\n'));
        }
    }

    #[test]
    fn configurations_fit_their_manifest(diffs in vec(any::<[u8; 32]>(), 0..5), layers in 0..5usize, unknown in any_json()) {
        let ids: Vec<_> = diffs.iter().map(|d| types::Digest::from_sha256(*d)).collect();
        let text = json!({"os": "linux", "architecture": "amd64", "rootfs": {"type": "layers", "diff_ids": ids},
            "moby.unknown": unknown});
        let config = manifest::parse_config(&serde_json::to_vec(&text).unwrap(), Some(layers), None, "it");
        prop_assert_eq!(config.is_ok(), layers == ids.len());
    }

    #[test]
    fn names_survive_being_shown(
        host in prop_oneof![Just(String::new()), "[a-z]{1,8}\\.[a-z]{2,4}(:[0-9]{2,4})?/", Just("localhost/".to_owned())],
        path in "[a-z0-9]{1,6}([._-][a-z0-9]{1,4})?(/[a-z0-9]{1,6}){0,2}",
        tag in prop_oneof![Just(String::new()), ":[A-Za-z0-9_][A-Za-z0-9_.-]{0,12}"],
    ) {
        let text = format!("{host}{path}{tag}");
        // Sixty-four hexadecimal digits are an id; nothing here is that long.
        let name = ImageRef::parse(&text).unwrap();
        prop_assert_eq!(&ImageRef::parse(&name.familiar()).unwrap(), &name);
        prop_assert_eq!(&ImageRef::parse(&name.to_string()).unwrap(), &name);
        prop_assert_eq!(name.tag(), Some(tag.strip_prefix(':').unwrap_or("latest")));
    }

    #[test]
    fn no_name_panics_or_escapes(text in "[ -~]{0,40}|[a-z./:@A-F0-9-]{0,60}|\\PC{0,20}") {
        if let Ok(name) = ImageRef::parse(&text) {
            prop_assert!(!name.repository().split('/').any(|p| p.is_empty() || p.starts_with('.')), "{}", text);
            prop_assert!(name.repository().bytes().all(|b| b.is_ascii_graphic()));
        }
    }
}
