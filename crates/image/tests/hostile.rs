//! Registries that lie, hang and break off.

extern crate dhow_image as image;

mod common;

use common::liar::{Answer, Liar, blob_path, manifest_path};
use common::{Store, layer_tar, sha};
use image::{ImageError, PullOptions, Quiet};
use types::{ErrorKind, ImageRef, Kinded, Platform};

fn name(liar: &Liar) -> ImageRef {
    ImageRef::parse(&format!("{}/r", liar.host)).unwrap()
}

fn pull(store: &Store, liar: &Liar) -> Result<image::Pulled, ImageError> {
    store.images.pull(&name(liar), &PullOptions::default(), &Quiet)
}

fn arch() -> String {
    Platform::host().architecture
}

/// After a refusal nothing of the image is there, and a prune leaves no file.
fn nothing_left(store: &Store) {
    assert!(store.images.list(&Default::default()).unwrap().is_empty());
    store.images.collect(&|_| Vec::new()).unwrap();
    assert_eq!(store.files(), Vec::<String>::new());
}

#[test]
fn an_honest_image_is_pulled_once() {
    let (store, liar) = (Store::new(), Liar::start());
    let tar = layer_tar(1, 3 << 20);
    let (manifest, layer) = liar.image(&tar, &arch());
    let pulled = pull(&store, &liar).unwrap();
    assert!(!pulled.up_to_date);
    assert_eq!(pulled.digest, sha(&manifest));
    assert_eq!(pulled.image.layers[0].diff_id, sha(&tar));
    assert!(pull(&store, &liar).unwrap().up_to_date);
    assert_eq!(liar.logged(&blob_path(&layer)), 1);
    let by_digest = format!("{}@{}", name(&liar).name(), sha(&manifest));
    assert_eq!(store.images.resolve(&by_digest, None).unwrap().id, pulled.image.id);
}

#[test]
fn a_broken_connection_is_taken_up_where_it_broke() {
    let (store, liar) = (Store::new(), Liar::start());
    let (_, layer) = liar.image(&layer_tar(2, 2 << 20), &arch());
    liar.change(&blob_path(&layer), |a| a.break_at = Some((500_000, 2)));
    pull(&store, &liar).unwrap();
    assert_eq!(liar.logged(&format!("{} range= ", blob_path(&layer))), 1);
    assert_eq!(liar.logged("range=bytes=500000-"), 1);
    assert_eq!(liar.logged("range=bytes=1000000-"), 1);
}

#[test]
fn a_registry_without_ranges_is_read_again() {
    let (store, liar) = (Store::new(), Liar::start());
    let (_, layer) = liar.image(&layer_tar(3, 2 << 20), &arch());
    liar.change(&blob_path(&layer), |a| (a.break_at, a.ranges) = (Some((500_000, 1)), false));
    pull(&store, &liar).unwrap();
}

#[test]
fn a_partial_blob_of_a_killed_pull_is_resumed_and_a_damaged_one_replaced() {
    for damaged in [false, true] {
        let (store, liar) = (Store::new(), Liar::start());
        let (_, layer) = liar.image(&layer_tar(4, 2 << 20), &arch());
        let mut left = liar.answers.lock().unwrap()[&blob_path(&layer)].body[..700_000].to_vec();
        if damaged {
            left[1000] ^= 1;
        }
        let tmp = store.dir.path().join("content/tmp");
        std::fs::create_dir_all(&tmp).unwrap();
        std::fs::write(tmp.join(format!("{}.partial", layer.hex())), left).unwrap();
        pull(&store, &liar).unwrap();
        assert_eq!(liar.logged("range=bytes=700000-"), 1);
        assert_eq!(liar.logged(&format!("{} range= ", blob_path(&layer))), usize::from(damaged));
    }
}

#[test]
fn lies_about_a_layer_are_found() {
    type Lie = fn(&mut Answer);
    let lies: [(&str, Lie); 5] = [
        ("digest", |a| {
            let last = a.body.len() - 9;
            a.body[last] ^= 1;
        }),
        ("more bytes", |a| a.body.push(0)),
        ("fewer bytes", |a| a.body.truncate(a.body.len() - 1)),
        ("more bytes, unannounced", |a| {
            a.body.extend([0; 1000]);
            a.chunked = true;
        }),
        ("other content", |a| a.body = vec![b'x'; a.body.len()]),
    ];
    for (what, lie) in lies {
        let (store, liar) = (Store::new(), Liar::start());
        let (_, layer) = liar.image(&layer_tar(5, 300_000), &arch());
        liar.change(&blob_path(&layer), lie);
        let e = pull(&store, &liar).expect_err(what);
        assert_eq!(e.kind(), ErrorKind::Corrupt, "{what}: {e}");
        nothing_left(&store);
    }
}

#[test]
fn a_layer_that_is_not_its_diff_id_is_refused() {
    let (store, liar) = (Store::new(), Liar::start());
    let layer = common::gzip(&layer_tar(6, 1000));
    let config = common::config(&[sha(b"something else")], &arch());
    liar.blob(&config);
    liar.blob(&layer);
    liar.manifest("latest", &common::liar::manifest(&config, &[(sha(&layer), layer.len())]));
    let e = pull(&store, &liar).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Corrupt, "{e}");
    nothing_left(&store);
}

#[test]
fn lies_about_manifests_are_found() {
    type Lie = fn(&mut Answer);
    let lies: [(&str, Lie); 6] = [
        ("an index it is not", |a| a.kind = image::manifest::OCI_INDEX.into()),
        ("a digest header", |a| {
            a.headers.push(("Docker-Content-Digest".into(), sha(b"lie").to_string()));
        }),
        ("no JSON", |a| a.body = b"<html>".to_vec()),
        ("schema 1", |a| a.body = br#"{"schemaVersion":1,"fsLayers":[]}"#.to_vec()),
        ("too large", |a| a.body = vec![b' '; 5 << 20]),
        ("both at once", |a| {
            let text = String::from_utf8(a.body.clone()).unwrap();
            a.body = text.replacen('{', r#"{"manifests":[],"#, 1).into_bytes();
        }),
    ];
    for (what, lie) in lies {
        let (store, liar) = (Store::new(), Liar::start());
        liar.image(&layer_tar(7, 1000), &arch());
        liar.change(&manifest_path("latest"), lie);
        let e = pull(&store, &liar).expect_err(what);
        assert!(!e.to_string().is_empty());
        nothing_left(&store);
    }
}

#[test]
fn unknown_names_and_foreign_platforms_are_told_apart() {
    let (store, liar) = (Store::new(), Liar::start());
    let e = pull(&store, &liar).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::NotFound, "{e}");
    liar.image(&layer_tar(8, 1000), "s390x");
    let e = pull(&store, &liar).unwrap_err().to_string();
    assert!(e.contains("linux/s390x") && e.contains(&Platform::host().to_string()), "{e}");
    let options =
        PullOptions { platform: Some(Platform::parse("linux/s390x").unwrap()), ..Default::default() };
    assert!(store.images.pull(&name(&liar), &options, &Quiet).is_ok());
}

#[test]
fn a_bomb_is_refused() {
    let (mut store, liar) = (Store::new(), Liar::start());
    let limits = image::layer::LayerLimits { max_tar: 1 << 20, ..Default::default() };
    store.images.set_limits(limits);
    liar.image(&vec![0; 8 << 20], &arch());
    let e = pull(&store, &liar).unwrap_err();
    assert!(
        e.to_string().contains("bomb") || e.kind() == ErrorKind::Exhausted || e.kind() == ErrorKind::Invalid,
        "{e}"
    );
    nothing_left(&store);
}

#[test]
fn tokens_are_fetched_and_credentials_do_not_leak() {
    let (store, liar, elsewhere) = (Store::new(), Liar::start(), Liar::start());
    let (_, layer) = liar.image(&layer_tar(9, 1000), &arch());
    let challenge = format!("Bearer realm=\"http://{}/token\",service=\"s\"", elsewhere.host);
    let paths: Vec<String> = liar.answers.lock().unwrap().keys().cloned().collect();
    for path in paths {
        liar.change(&path, |a| a.auth = Some(("Bearer secret".into(), challenge.clone())));
    }
    let token = Answer { status: 200, body: br#"{"token":"secret"}"#.to_vec(), ..Default::default() };
    elsewhere.set("/token", token);
    // The layer lies on another host.
    let blob = liar.answers.lock().unwrap()[&blob_path(&layer)].clone();
    elsewhere.set("/layer", Answer { auth: None, ..blob });
    liar.change(&blob_path(&layer), |a| {
        a.status = 307;
        a.body.clear();
        a.headers.push(("Location".into(), format!("http://{}/layer", elsewhere.host)));
    });
    pull(&store, &liar).unwrap();
    assert_eq!(elsewhere.logged("GET /token?service=s&scope=repository%3Ar%3Apull"), 1);
    assert_eq!(elsewhere.logged("GET /layer range= auth="), 1);
    assert_eq!(elsewhere.logged("secret"), 0);
}

#[test]
fn a_refusal_names_the_registry() {
    let (store, liar) = (Store::new(), Liar::start());
    liar.set(&manifest_path("latest"), Answer { status: 403, ..Default::default() });
    let e = pull(&store, &liar).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Denied);
    assert!(e.to_string().contains("dhow login"), "{e}");
    let port = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let gone = ImageRef::parse(&format!("{port}/r")).unwrap();
    let e = store.images.pull(&gone, &PullOptions::default(), &Quiet).unwrap_err();
    assert_eq!(e.kind(), ErrorKind::Unavailable);
    assert!(e.to_string().contains(&port.to_string()), "{e}");
}
