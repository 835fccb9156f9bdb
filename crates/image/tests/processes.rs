//! Several processes at one store, and killed ones.

extern crate dhow_image as image;

mod common;

use common::liar::{Liar, blob_path};
use common::world::{World, said};
use common::{RegistryServer, Store, docker_archive, layer_tar, load};
use image::{PushOptions, Quiet};
use std::time::{Duration, Instant};
use types::{ImageRef, Platform};

#[test]
#[ignore = "the other tests run it as a process of its own"]
fn worker() {
    common::world::work();
}

#[test]
fn processes_that_pull_at_once_fetch_once() {
    let Some(registry) = RegistryServer::start() else { return };
    let (world, store, from) = (World::new(), Store::new(), Store::new());
    let name = ImageRef::parse(&format!("{}/many", registry.host)).unwrap();
    let layers: Vec<_> = (21..26).map(|s| layer_tar(s, 1 << 20)).collect();
    load(&from.images, &docker_archive(&name.to_string(), &layers)).unwrap();
    from.images.push(&name, &PushOptions::default(), &Quiet).unwrap();
    let words = ["pull", store.dir.path().to_str().unwrap(), &name.to_string()];
    let children: Vec<_> = (0..3).map(|_| world.start(&words)).collect();
    for child in children {
        let said = said(&child.wait_with_output().unwrap());
        assert!(said.ok, "{said:?}");
    }
    for layer in &from.images.resolve(&name.to_string(), None).unwrap().layers {
        assert!(store.images.layers().get(&layer.diff_id).is_some());
    }
    // Five layers; the configuration is small and may be asked for by each.
    let gets = registry.requests(&["GET /v2/many/blobs/"]);
    assert!((6..=8).contains(&gets), "{gets} blobs were fetched");
    assert!(store.files().iter().all(|f| !f.contains("tmp/") && !f.contains(".new-")), "{:?}", store.files());
}

/// Kills a pull of the image with this layer once a mebibyte is there; the name that was pulled.
fn kill_a_pull(liar: &Liar, world: &World, store: &Store, layer: &types::Digest) -> String {
    liar.change(&blob_path(layer), |a| a.stall_at = Some(1 << 20));
    let name = format!("{}/r", liar.host);
    let mut child = world.start(&["pull", store.dir.path().to_str().unwrap(), &name]);
    let partial = store.dir.path().join(format!("content/tmp/{}.partial", layer.hex()));
    let start = Instant::now();
    while std::fs::metadata(&partial).map_or(0, |m| m.len()) < 1 << 20 {
        assert!(start.elapsed() < Duration::from_secs(60), "the pull does not begin");
        std::thread::sleep(Duration::from_millis(20));
    }
    child.kill().unwrap();
    child.wait().unwrap();
    name
}

#[test]
fn a_killed_pull_is_taken_up_by_the_next() {
    let (liar, world, store) = (Liar::start(), World::new(), Store::new());
    let (_, layer) = liar.image(&layer_tar(30, 3 << 20), &Platform::host().architecture);
    let name = kill_a_pull(&liar, &world, &store, &layer);
    assert!(store.files().iter().any(|f| f.contains("layers/.new-")), "{:?}", store.files());
    liar.change(&blob_path(&layer), |a| a.stall_at = None);
    let said = world.pull(store.dir.path(), &name);
    assert!(said.ok, "{said:?}");
    assert_eq!(liar.logged(&format!("range=bytes={}-", 1 << 20)), 1);
    let left = store.files();
    assert_eq!(left.len(), 2, "one blob, one layer, nothing of the killed: {left:?}");
}

#[test]
fn what_a_killed_pull_left_goes_with_the_next_removal() {
    let (liar, world, store) = (Liar::start(), World::new(), Store::new());
    let (_, layer) = liar.image(&layer_tar(31, 3 << 20), &Platform::host().architecture);
    kill_a_pull(&liar, &world, &store, &layer);
    load(&store.images, &docker_archive("other", &[layer_tar(32, 1000)])).unwrap();
    store.images.remove("other", false, &|_| Vec::new()).unwrap();
    // What was downloaded may still be taken up; it goes when nobody comes back for it, or with a prune.
    assert_eq!(store.files(), [format!("content/tmp/{}.partial", layer.hex())]);
    store.images.prune(false, &Default::default(), &|_| Vec::new()).unwrap();
    assert_eq!(store.files(), Vec::<String>::new());
}
