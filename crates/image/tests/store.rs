//! Names, archives, removal.

extern crate dhow_image as image;

mod common;

use common::{Store, docker_archive, gzip, layer_tar, load, sha};
use image::{CommitRequest, ImageUser, ImportRequest, LoadFrom, Quiet, SaveFormat, SaveTo};
use types::{ErrorKind, ImageRef, Kinded};

fn unused(_: &types::Digest) -> Vec<ImageUser> {
    Vec::new()
}

fn sample(store: &Store, seed: u64, name: &str) -> types::Digest {
    load(&store.images, &docker_archive(name, &[layer_tar(seed, 1000), layer_tar(seed + 1000, 10)])).unwrap()
        [0]
    .0
}

#[test]
fn names_and_ids_resolve() {
    let store = Store::new();
    let id = sample(&store, 1, "one");
    for name in ["one", "one:latest", "docker.io/library/one", &id.to_string(), &id.hex()[..6], &id.hex()] {
        assert_eq!(store.images.resolve(name, None).unwrap().id, id, "{name}");
    }
    let image = store.images.resolve("one", None).unwrap();
    assert_eq!(image.layers.len(), 2);
    assert_eq!(image.config.config.env, ["A=b"]);
    for missing in ["two", "one:other", &"0".repeat(64)] {
        assert_eq!(store.images.resolve(missing, None).unwrap_err().kind(), ErrorKind::NotFound, "{missing}");
    }
    store.images.tag("one", &ImageRef::parse("two:v1").unwrap()).unwrap();
    assert_eq!(store.images.resolve("two:v1", None).unwrap().refs.len(), 2);
    let inspect = store.images.inspect("one").unwrap();
    assert_eq!(inspect.repo_tags.unwrap(), ["one:latest", "two:v1"]);
    assert_eq!(store.images.history("one").unwrap().len(), 2);
}

#[test]
fn archives_round_trip() {
    let store = Store::new();
    let id = sample(&store, 2, "a/b:c");
    for format in [SaveFormat::DockerArchive, SaveFormat::OciArchive] {
        let mut out = Vec::new();
        store.images.save(&["a/b:c"], SaveTo::Stream(&mut out, format)).unwrap();
        for bytes in [out.clone(), gzip(&out), zstd::encode_all(&out[..], 1).unwrap()] {
            let other = Store::new();
            let loaded = load(&other.images, &bytes).unwrap();
            assert_eq!(loaded, [(id, vec![ImageRef::parse("a/b:c").unwrap()])]);
            let mut again = Vec::new();
            other.images.save(&["a/b:c"], SaveTo::Stream(&mut again, format)).unwrap();
            assert_eq!(sha(&again), sha(&out), "{format:?}");
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let layout = dir.path().join("layout");
    store.images.save(&["a/b:c"], SaveTo::Directory(&layout)).unwrap();
    let other = Store::new();
    let loaded = other.images.load(LoadFrom::Directory(&layout), None, &Quiet).unwrap();
    assert_eq!(loaded[0].0, id);
}

#[test]
fn hostile_archives_are_refused() {
    let good = docker_archive("x", &[layer_tar(3, 100)]);
    let cases: Vec<(&str, Vec<u8>)> = vec![
        ("empty", Vec::new()),
        ("noise", vec![7; 5000]),
        ("truncated", good[..good.len() / 2].to_vec()),
        ("outside", common::archive(&[("../../evil", b"x")])),
        ("absolute", common::archive(&[("/etc/evil", b"x")])),
        ("no index", common::archive(&[("readme", b"x")])),
        ("no config", common::archive(&[("manifest.json", br#"[{"Config":"c.json","Layers":[]}]"#)])),
        ("no layer", {
            let config = common::config(&[sha(b"x")], "amd64");
            let manifest = br#"[{"Config":"c.json","RepoTags":["x"],"Layers":["nowhere"]}]"#;
            common::archive(&[("c.json", &config), ("manifest.json", manifest)])
        }),
        ("lying layer", {
            let config = common::config(&[sha(b"x")], "amd64");
            let manifest = br#"[{"Config":"c.json","RepoTags":["x"],"Layers":["l"]}]"#;
            common::archive(&[("c.json", &config), ("l", &layer_tar(1, 10)), ("manifest.json", manifest)])
        }),
        ("wrong name", {
            let config = common::config(&[], "amd64");
            let manifest = br#"[{"Config":"c.json","RepoTags":["../X"],"Layers":[]}]"#;
            common::archive(&[("c.json", &config), ("manifest.json", manifest)])
        }),
    ];
    for (what, bytes) in cases {
        let store = Store::new();
        let e = load(&store.images, &bytes).expect_err(what);
        assert!(!e.to_string().is_empty(), "{what}");
        assert!(store.images.list(&Default::default()).unwrap().is_empty(), "{what}");
        store.images.collect(&unused).unwrap();
        assert_eq!(store.files(), Vec::<String>::new(), "{what}");
    }
}

#[test]
fn import_and_commit() {
    let store = Store::new();
    let tar = layer_tar(4, 1000);
    let name = ImageRef::parse("imported").unwrap();
    let changes = ["CMD [\"/x\"]".to_owned(), "ENV K=v".to_owned()];
    let request = ImportRequest { name: Some(&name), changes: &changes, message: "m", platform: None };
    for bytes in [tar.clone(), gzip(&tar), zstd::encode_all(&tar[..], 1).unwrap()] {
        store.images.import(&mut &bytes[..], &request).unwrap();
    }
    let base = store.images.resolve("imported", None).unwrap();
    assert_eq!(base.layers[0].diff_id, sha(&tar));
    assert_eq!(base.config.config.cmd.as_deref().unwrap(), ["/x"]);
    let change = layer_tar(5, 10);
    let id = store
        .images
        .commit(CommitRequest {
            base: &base,
            layer_tar: &mut &change[..],
            config: base.config.config.clone(),
            author: "me",
            comment: "why",
            created_by: "sh",
            changes: &["USER 5".to_owned()],
            name: Some(&ImageRef::parse("committed").unwrap()),
        })
        .unwrap();
    let image = store.images.resolve("committed", None).unwrap();
    assert_eq!((image.id, image.layers.len()), (id, 2));
    assert_eq!(image.config.config.user, "5");
    // The base goes, the committed image keeps its layer.
    store.images.prune(false, &Default::default(), &unused).unwrap();
    store.images.remove("imported", false, &unused).unwrap();
    assert_eq!(store.images.resolve("committed", None).unwrap().layers.len(), 2);
    let mut out = Vec::new();
    store.images.save(&["committed"], SaveTo::Stream(&mut out, SaveFormat::DockerArchive)).unwrap();
    let other = Store::new();
    assert_eq!(load(&other.images, &out).unwrap()[0].0, id);
}

#[test]
fn removal_follows_docker() {
    let store = Store::new();
    let id = sample(&store, 6, "r:1");
    store.images.tag("r:1", &ImageRef::parse("r:2").unwrap()).unwrap();
    let items = store.images.remove("r:2", false, &unused).unwrap();
    assert_eq!((items.len(), items[0].untagged.as_deref()), (1, Some("r:2")));
    let user = |running| move |_: &types::Digest| vec![ImageUser { id: "abc".into(), running }];
    let e = store.images.remove("r:1", false, &user(false)).unwrap_err().to_string();
    assert!(e.contains("must force") && e.contains("container abc"), "{e}");
    let e = store.images.remove(&id.hex(), true, &user(true)).unwrap_err().to_string();
    assert!(e.contains("cannot be forced") && e.contains("running container abc"), "{e}");
    // Forced with a stopped container: gone for users, its layers stay for the container.
    let items = store.images.remove("r:1", true, &user(false)).unwrap();
    assert_eq!(items.last().unwrap().deleted, Some(id.to_string()));
    assert!(store.images.list(&Default::default()).unwrap().is_empty());
    assert_eq!(store.images.resolve("r:1", None).unwrap_err().kind(), ErrorKind::NotFound);
    assert!(store.images.resolve(&id.to_string(), None).is_ok());
    assert!(store.images.collect(&unused).unwrap() > 0);
    assert_eq!(store.files(), Vec::<String>::new());
}

#[test]
fn prune_spares_what_is_used_and_named() {
    let store = Store::new();
    let (a, b) = (sample(&store, 7, "p"), sample(&store, 8, "p"));
    assert_ne!(a, b);
    let pruned = store.images.prune(false, &Default::default(), &unused).unwrap();
    assert_eq!(pruned.items[0].deleted, Some(a.to_string()));
    assert!(pruned.reclaimed > 0);
    let busy = |_: &types::Digest| vec![ImageUser { id: "c".into(), running: true }];
    assert!(store.images.prune(true, &Default::default(), &busy).unwrap().items.is_empty());
    store.images.prune(true, &Default::default(), &unused).unwrap();
    assert_eq!(store.files(), Vec::<String>::new());
}

#[test]
fn the_embedded_image_is_deterministic() {
    let (one, two) = (Store::new(), Store::new());
    let a = one.images.ensure_hello(b"program").unwrap();
    assert_eq!(a.id, two.images.ensure_hello(b"program").unwrap().id);
    assert_eq!(one.images.resolve("hello", None).unwrap().id, a.id);
    assert_ne!(one.images.ensure_hello(b"newer").unwrap().id, a.id);
}
