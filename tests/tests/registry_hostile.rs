//! Registries that lie, hang and attack: each gets one clear sentence and an exit code, and nothing half-made stays.

use dhow_tests::Store;
use dhow_tests::layout::{self, Tar, gzip};
use dhow_tests::liar::{Answer, Liar};

/// Files that the store keeps of images.
fn kept(store: &Store) -> Vec<String> {
    let mut found = Vec::new();
    for dir in ["content/blobs/sha256", "content/tmp", "layers"] {
        let entries = std::fs::read_dir(store.root().join(dir)).into_iter().flatten().flatten();
        found.extend(entries.map(|e| e.file_name().into_string().unwrap()).filter(|n| !n.ends_with(".lock")));
    }
    found
}

/// Pulls what must be refused: one sentence, an exit code, no image, no file. Answers the sentence.
fn refused(what: &str, liar: &Liar, environment: &[(&str, &str)]) -> String {
    println!("{what}");
    let store = Store::new();
    let mut command = store.command(&["pull", "-q", &liar.image()]);
    let out = command.envs(environment.iter().copied()).output().unwrap();
    let said = String::from_utf8(out.stderr).unwrap();
    assert_eq!(out.status.code(), Some(1), "{what}: {said}");
    assert_eq!(String::from_utf8_lossy(&out.stdout), "", "{what}");
    assert_eq!(said.lines().count(), 1, "{what}: {said}");
    assert!(said.starts_with("dhow: ") && said.len() < 600, "{what}: {said}");
    assert_eq!(store.ok(&["images", "-aq"]), "", "{what}");
    let partial = environment.iter().any(|(name, _)| *name == "DHOW_REGISTRY_TIMEOUT");
    let left: Vec<_> = kept(&store).into_iter().filter(|n| !(partial && n.ends_with(".partial"))).collect();
    // What other, honest layers brought is no harm, but no image needs it: it goes with the next collection.
    store.ok(&["system", "prune", "-f"]);
    assert_eq!(kept(&store), [""; 0], "{what}: before the collection: {left:?}");
    said.trim_end().to_owned()
}

/// A registry with an image of this one layer.
fn with_layer(tar: &[u8]) -> (Liar, String) {
    let liar = Liar::start();
    let path = liar.serve(&[tar.to_vec()], layout::arch()).remove(0);
    (liar, path)
}

fn honest() -> Vec<u8> {
    Tar::new().file("f", &layout::noise(1, 300_000)).end()
}

#[test]
fn lies_about_content_are_found() {
    type Lie = fn(&mut Answer);
    let lies: [(&str, Lie, &str); 6] = [
        ("another byte", |a| *a.body.last_mut().unwrap() ^= 1, ""),
        ("other content", |a| a.body = vec![b'x'; a.body.len()], ""),
        ("more bytes", |a| a.body.push(0), "announces"),
        ("fewer bytes", |a| a.body.truncate(a.body.len() - 1), "announces"),
        ("an error page", |a| (a.status, a.body) = (500, b"<html>oops".to_vec()), "500"),
        ("nothing there", |a| a.status = 404, "does not have the blob"),
    ];
    for (what, lie, words) in lies {
        let (liar, path) = with_layer(&honest());
        liar.change(&path, lie);
        let said = refused(what, &liar, &[]);
        assert!(said.contains(words), "{what}: {said}");
    }
}

#[test]
fn lies_about_manifests_are_found() {
    type Lie = fn(&mut Answer);
    let lies: [(&str, Lie); 8] = [
        ("an index it is not", |a| a.kind = "application/vnd.oci.image.index.v1+json".into()),
        ("a content type of its own", |a| a.kind = "text/html".into()),
        ("a digest it has not", |a| {
            a.headers.push(("Docker-Content-Digest".into(), layout::digest(b"lie")));
        }),
        ("no JSON", |a| a.body = b"<html>".to_vec()),
        ("nothing", |a| a.body.clear()),
        ("version 1", |a| a.body = br#"{"schemaVersion":1,"fsLayers":[]}"#.to_vec()),
        ("too large", |a| a.body = vec![b' '; 5 << 20]),
        ("the size of the configuration", |a| {
            let text = String::from_utf8(a.body.clone()).unwrap();
            a.body = text.replacen("\"size\":", "\"size\":1", 1).into_bytes();
        }),
    ];
    for (what, lie) in lies {
        let (liar, _) = with_layer(&honest());
        liar.change(Liar::MANIFEST, lie);
        // A wrong type alone does no harm where the document says itself what it is: then it may be taken.
        if what == "a content type of its own" {
            let store = Store::new();
            let out = store.out(&["pull", "-q", &liar.image()]);
            assert!(String::from_utf8_lossy(&out.stderr).lines().count() <= 1);
            continue;
        }
        refused(what, &liar, &[]);
    }
}

#[test]
fn unknown_fields_do_no_harm_and_foreign_machines_are_named() {
    let (liar, _) = with_layer(&honest());
    liar.change(Liar::MANIFEST, |a| {
        let text = String::from_utf8(a.body.clone()).unwrap();
        a.body = text.replacen('{', r#"{"unknown":{"deep":[1,null]},"subject":null,"#, 1).into_bytes();
    });
    Store::new().ok(&["pull", "-q", &liar.image()]);

    let liar = Liar::start();
    liar.serve(&[honest()], "s390x");
    let said = refused("a foreign machine", &liar, &[]);
    assert!(said.contains("linux/s390x") && said.contains(layout::arch()), "{said}");
}

#[test]
fn silence_ends() {
    for (what, path) in [("manifest", None), ("layer", Some(1000))] {
        let (liar, layer) = with_layer(&honest());
        let path = path.map_or(Liar::MANIFEST.to_owned(), |_| layer);
        liar.change(&path, |a| a.hang_after = Some(a.body.len() / 2));
        let begun = std::time::Instant::now();
        let said = refused(what, &liar, &[("DHOW_REGISTRY_TIMEOUT", "1")]);
        assert!(said.contains(&liar.host) && said.contains("silent"), "{said}");
        assert!(begun.elapsed().as_secs() < 40);
    }
    let nobody = std::net::TcpListener::bind("127.0.0.1:0").unwrap().local_addr().unwrap();
    let out = Store::new().out(&["pull", "-q", &format!("{nobody}/r")]);
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(
        said.contains("refused") && said.contains(&nobody.to_string()) && said.lines().count() == 1,
        "{said}"
    );
}

#[test]
fn malformed_layers_are_refused() {
    let file = |name: &str| Tar::new().file(name, b"x").end();
    let huge = |size: u64| {
        let mut tar = Tar::new();
        tar.entry(b'0', b"huge", b"", |h| h.set_size(size));
        tar.end()
    };
    let honest = honest();
    let cases: Vec<(&str, Vec<u8>, &str)> = vec![
        ("truncated", honest[..honest.len() / 2].to_vec(), ""),
        (
            "a broken checksum",
            {
                let mut tar = honest.clone();
                tar[3] ^= 1;
                tar
            },
            "",
        ),
        ("no tar", layout::noise(2, 5000), ""),
        ("a path upwards", file("../../evil"), ".."),
        ("a path upwards, hidden", file("a/b/../../../evil"), ".."),
        ("a hard link upwards", Tar::new().hard_link("l", "../../../etc/passwd").end(), ".."),
        ("a hard link to nothing", Tar::new().hard_link("l", "nowhere").end(), "nowhere"),
        ("through a file", Tar::new().file("f", b"").file("f/g", b"").end(), "f/g"),
        ("too many links", Tar::new().symlink("a", "b").symlink("b", "a").file("a/x", b"").end(), "links"),
        ("a name too long", Tar::new().file(&"n".repeat(256), b"").end(), "255"),
        ("an absurd size", huge(1 << 60), ""),
        ("a size without content", huge(1 << 30), ""),
        (
            "an absurd sparse file",
            {
                let mut tar = Tar::new();
                tar.pax(&[
                    ("GNU.sparse.major", b"1"),
                    ("GNU.sparse.minor", b"0"),
                    ("GNU.sparse.realsize", b"4611686018427387904"),
                ]);
                let map = [&b"1\n4611686018427387000\n1\n"[..], &[0; 489], b"x"].concat();
                tar.file("GNUSparseFile.0/f", &map).end()
            },
            "",
        ),
    ];
    for (what, tar, words) in cases {
        let (liar, _) = with_layer(&tar);
        let said = refused(what, &liar, &[]);
        assert!(said.contains(words), "{what}: {said}");
    }
}

#[test]
fn broken_and_lying_compression_is_refused() {
    let tar = honest();
    let config = serde_json::to_vec(&layout::config(std::slice::from_ref(&tar), layout::arch())).unwrap();
    let whole = gzip(&tar);
    let bomb = gzip(&vec![0; 32 << 20]);
    let cases: [(&str, Vec<u8>); 5] = [
        ("gzip cut off", whole[..whole.len() / 2].to_vec()),
        ("gzip of something else", gzip(b"something else")),
        ("no compression at all", b"plain words, no tar".to_vec()),
        ("more behind the gzip", [&whole[..], b"trailing"].concat()),
        // Zeros are the end of a tar: here a thousand times as many as are sent.
        ("a bomb", bomb),
    ];
    for (what, blob) in cases {
        let liar = Liar::start();
        liar.serve_parts(&config, &[blob]);
        refused(what, &liar, &[]);
    }
}

#[test]
fn links_of_a_layer_lead_nowhere_else() {
    let outside = tempfile::tempdir().unwrap();
    let target = outside.path().display().to_string();
    // A link to the host, then files through it: they belong below the layer's own root.
    let mut tar = Tar::new();
    tar.symlink("out", &target).file("out/evil", b"x").symlink("up", "../../../../..").file("up/evil2", b"x");
    for format in ["erofs", "dir"] {
        let (liar, _) = with_layer(&tar.end());
        let store = Store::new();
        let mut command = store.command(&["pull", "-q", &liar.image()]);
        let out = command.env("DHOW_LAYERS", format).output().unwrap();
        assert!(String::from_utf8_lossy(&out.stderr).lines().count() <= 1);
        assert_eq!(std::fs::read_dir(outside.path()).unwrap().count(), 0, "{format}: a layer wrote outside");
        assert!(!std::path::Path::new("/evil2").exists());
        assert!(
            !store.root().join("evil2").exists() && !store.root().parent().unwrap().join("evil2").exists()
        );
    }
}
