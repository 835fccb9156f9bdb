//! Against Debian's `docker-registry`.

extern crate dhow_image as image;

mod common;

use common::{RegistryServer, Store, docker_archive, layer_tar, load};
use image::{PullOptions, PushOptions, Quiet};
use types::ImageRef;

fn pushed(registry: &RegistryServer, repository: &str, seeds: &[u64], size: usize) -> (Store, ImageRef) {
    let store = Store::new();
    let name = ImageRef::parse(&format!("{}/{repository}", registry.host)).unwrap();
    let layers: Vec<_> = seeds.iter().map(|s| layer_tar(*s, size)).collect();
    load(&store.images, &docker_archive(&name.to_string(), &layers)).unwrap();
    store.images.push(&name, &PushOptions::default(), &Quiet).unwrap();
    (store, name)
}

#[test]
fn push_and_pull() {
    let Some(registry) = RegistryServer::start() else { return };
    let (store, name) = pushed(&registry, "a/b", &[1, 2, 3, 4], 500_000);
    let there = store.images.resolve(&name.to_string(), None).unwrap();
    let other = Store::new();
    let pulled = other.images.pull(&name, &PullOptions::default(), &Quiet).unwrap();
    assert_eq!(pulled.image.id, there.id);
    assert_eq!(there.repo_digests, [name.with_digest(pulled.digest)]);
    assert!(other.images.pull(&name, &PullOptions::default(), &Quiet).unwrap().up_to_date);
    assert_eq!(registry.requests(&["GET /v2/a/b/blobs/"]), 5);

    // What is there is not sent again, and another repository takes it from this one.
    let before = registry.requests(&["PUT", "/blobs/uploads/"]);
    store.images.push(&name, &PushOptions::default(), &Quiet).unwrap();
    let moved = ImageRef::parse(&format!("{}/c", registry.host)).unwrap();
    other.images.tag(&name.to_string(), &moved).unwrap();
    other.images.push(&moved, &PushOptions::default(), &Quiet).unwrap();
    assert_eq!(registry.requests(&["POST", "mount="]), 4);
    assert_eq!(registry.requests(&["PUT", "/blobs/uploads/"]), before + 1, "the configuration only");
    assert_eq!(other.images.pull_all(&moved, &PullOptions::default(), &Quiet).unwrap().len(), 1);
}

#[test]
fn two_pulls_at_once_fetch_once() {
    let Some(registry) = RegistryServer::start() else { return };
    let (_store, name) = pushed(&registry, "twice", &[11, 12, 13, 14, 15], 1 << 20);
    let root = tempfile::tempdir().unwrap();
    // The locks belong to open files, so that two threads stand for two processes.
    std::thread::scope(|s| {
        for _ in 0..2 {
            s.spawn(|| {
                common::open(root.path()).pull(&name, &PullOptions::default(), &Quiet).unwrap();
            });
        }
    });
    // Five layers; the configuration is small and may be asked for by both.
    let gets = registry.requests(&["GET /v2/twice/blobs/"]);
    assert!((6..=7).contains(&gets), "{gets} blobs were fetched");
}
