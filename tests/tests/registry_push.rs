//! Pushing: what is there is not sent again, and what another repository has is taken from it.

use dhow_tests::layout::{self, Tar, docker_archive};
use dhow_tests::registry::Registry;
use dhow_tests::{Store, have};
use std::process::Command;

fn layer(seed: u64) -> Vec<u8> {
    Tar::new().file(&format!("seed-{seed}"), b"").file("big", &layout::noise(seed, 100_000)).end()
}

/// Loads an image of these layers under this name.
fn load(store: &Store, name: &str, layers: &[Vec<u8>]) {
    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().join("archive.tar");
    std::fs::write(&path, docker_archive(name, layers)).unwrap();
    store.ok(&["load", "-q", "-i", path.to_str().unwrap()]);
}

#[test]
fn what_is_there_is_not_sent_again_and_blobs_are_mounted() {
    let Some(registry) = Registry::start() else { return };
    let store = Store::new();
    let (first, second) = (registry.name("a/one:1"), registry.name("b/two:1"));
    load(&store, &first, &[layer(1), layer(2), layer(3)]);
    let said = store.ok(&["push", &first]);
    assert_eq!(said.matches("The push refers to repository").count(), 1, "{said}");
    assert_eq!(said.matches("1: digest: sha256:").count(), 1, "{said}");
    let uploads = || registry.requests(&["\"PUT ", "/blobs/uploads/", "\" 201 "]);
    let before = uploads();
    assert_eq!(before, 4, "three layers and a configuration");

    store.ok(&["push", "-q", &first]);
    assert_eq!(uploads(), before, "pushed again");

    store.ok(&["tag", &first, &second]);
    store.ok(&["push", "-q", &second]);
    assert_eq!(registry.requests(&["POST", "mount=", "\" 201 "]), 3);
    assert_eq!(uploads(), before + 1, "only the configuration is sent");

    // One layer more: only it is sent, and another configuration.
    let third = registry.name("a/one:2");
    load(&store, &third, &[layer(1), layer(2), layer(3), layer(4)]);
    store.ok(&["push", "-q", &third]);
    assert_eq!(uploads(), before + 3);

    // Every tag, and back into another store.
    let other = Store::new();
    other.ok(&["pull", "-q", &second]);
    assert_eq!(
        other.ok(&["inspect", "-f", "{{.Id}}", &second]),
        store.ok(&["inspect", "-f", "{{.Id}}", &first])
    );
    for tag in ["x", "y"] {
        other.ok(&["tag", &second, &registry.name(&format!("c/three:{tag}"))]);
    }
    let said = other.ok(&["push", "-a", &registry.name("c/three")]);
    assert_eq!(said.matches(": digest: sha256:").count(), 2, "{said}");
}

#[test]
fn skopeo_reads_what_was_pushed() {
    let Some(registry) = Registry::start() else { return };
    if !have("skopeo") {
        println!("skipped: skopeo is not installed");
        return;
    }
    let store = Store::new();
    let name = registry.name("for/skopeo:1");
    load(&store, &name, &[layer(5), layer(6)]);
    store.ok(&["push", "-q", &name]);
    let tmp = tempfile::tempdir().unwrap();
    let to = format!("oci:{}:x", tmp.path().display());
    let out = Command::new("skopeo")
        .args(["copy", "-q", "--insecure-policy", "--src-tls-verify=false", &format!("docker://{name}"), &to])
        .output()
        .unwrap();
    assert!(out.status.success(), "skopeo: {}", String::from_utf8_lossy(&out.stderr));
}

#[test]
fn what_cannot_be_pushed_is_said() {
    let Some(registry) = Registry::start() else { return };
    let store = Store::new();
    let said = |args: &[&str]| {
        let out = store.out(args);
        assert!(!out.status.success(), "{args:?}");
        String::from_utf8(out.stderr).unwrap()
    };
    let missing = said(&["push", "-q", &registry.name("nothing")]);
    assert!(missing.contains("nothing") && missing.lines().count() == 1, "{missing}");
    let missing = said(&["push", "-q", "-a", &registry.name("nothing")]);
    assert!(missing.contains("nothing") && missing.lines().count() == 1, "{missing}");
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    load(&store, &format!("{nobody}/x:1"), &[layer(7)]);
    let refused = said(&["push", "-q", &format!("{nobody}/x:1")]);
    assert!(refused.contains("refused") && refused.lines().count() == 1, "{refused}");
}
