//! Images in the store: archives in and out, names, removal, what is kept and what goes, and a store that is hurt.

use dhow_tests::layout::{self, Layout, Packing, Tar, docker_archive};
use dhow_tests::registry::Registry;
use dhow_tests::{Store, have};
use std::io::Write;
use std::path::Path;
use std::process::{Command, Stdio};

fn layer(seed: u64, size: usize) -> Vec<u8> {
    Tar::new().file(&format!("seed-{seed}"), b"").file("big", &layout::noise(seed, size)).end()
}

/// Runs a verb with input; stdout, or stderr if it failed.
fn fed(store: &Store, args: &[&str], input: &[u8]) -> Result<String, String> {
    let mut command = store.command(args);
    let child = command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn();
    let mut child = child.unwrap();
    let _ = child.stdin.take().unwrap().write_all(input);
    let out = child.wait_with_output().unwrap();
    match out.status.success() {
        true => Ok(String::from_utf8(out.stdout).unwrap().trim_end().to_owned()),
        false => Err(String::from_utf8(out.stderr).unwrap().trim_end().to_owned()),
    }
}

fn load(store: &Store, name: &str, layers: &[Vec<u8>]) -> String {
    fed(store, &["load", "-q"], &docker_archive(name, layers)).unwrap();
    store.ok(&["inspect", "-f", "{{.Id}}", name])
}

/// The one sentence of what must fail.
fn refused(store: &Store, args: &[&str]) -> String {
    let out = store.out(args);
    let said = String::from_utf8(out.stderr).unwrap();
    assert!(!out.status.success() && said.lines().count() == 1, "{args:?}: {said}");
    said
}

/// Files of layers and blobs.
fn kept(store: &Store) -> usize {
    let dirs = ["content/blobs/sha256", "layers"].map(|d| store.root().join(d));
    dirs.iter().flat_map(std::fs::read_dir).flatten().count()
}

#[test]
fn archives_of_every_form_go_round() {
    let store = Store::new();
    let layers = [layer(1, 50_000), layer(2, 10)];
    let id = load(&store, "a/b:c", &layers);
    let tmp = tempfile::tempdir().unwrap();
    for (form, source) in
        [("docker-archive", "docker-archive"), ("oci-archive", "oci-archive"), ("oci-dir", "oci")]
    {
        let path = tmp.path().join(form);
        let path = path.to_str().unwrap();
        store.ok(&["save", "--format", form, "-o", path, "a/b:c"]);
        let other = Store::new();
        other.ok(&["load", "-q", "-i", path]);
        assert_eq!(other.ok(&["images", "-q", "--no-trunc"]), id, "{form}");
        if !have("skopeo") {
            println!("not read by skopeo: it is not installed");
            continue;
        }
        // skopeo reads what we wrote, and we read what skopeo wrote.
        for to in ["docker-archive", "oci-archive", "oci"] {
            let theirs = tmp.path().join(format!("skopeo-{form}-{to}"));
            let theirs = theirs.to_str().unwrap();
            let out = Command::new("skopeo")
                .args(["copy", "-q", "--insecure-policy", &format!("{source}:{path}")])
                .arg(format!("{to}:{theirs}:x/y:z"))
                .output()
                .unwrap();
            assert!(out.status.success(), "{form} to {to}: {}", String::from_utf8_lossy(&out.stderr));
            let third = Store::new();
            third.ok(&["load", "-q", "-i", theirs]);
            let diff_ids = |s: &Store, name: &str| s.ok(&["inspect", "-f", "{{json .RootFS.Layers}}", name]);
            let loaded = third.ok(&["images", "-aq"]);
            assert_eq!(diff_ids(&third, &loaded), diff_ids(&store, &id), "{form} to {to}");
        }
    }
    let broken = std::fs::read(tmp.path().join("docker-archive")).unwrap();
    let empty = Store::new();
    let said = fed(&empty, &["load", "-q"], &broken[..broken.len() / 2]).unwrap_err();
    assert_eq!(said.lines().count(), 1, "{said}");
    assert_eq!(empty.ok(&["images", "-aq"]), "");
}

#[test]
fn roots_come_in_and_go_out() {
    let Some(busybox) = layout::busybox_layer() else { return };
    let store = Store::new();
    let import = ["import", "-c", "CMD [\"/bin/true\"]", "-c", "ENV A=b", "-m", "by hand", "-", "root:1"];
    let id = fed(&store, &import, &busybox).unwrap();
    assert_eq!(
        store.ok(&["inspect", "-f", "{{.Id}} {{json .Config.Cmd}} {{.Config.Env}}", "root:1"]),
        format!("{id} [\"/bin/true\"] [A=b]")
    );
    assert!(store.ok(&["history", "root:1"]).contains("by hand"));
    store.ok(&["run", "--name", "made", "--network", "none", "root:1", "/bin/sh", "-c", "echo new > /file"]);
    let out = store.out(&["export", "made"]);
    assert!(out.status.success());
    fed(&store, &["import", "-", "again"], &out.stdout).unwrap();
    assert_eq!(store.ok(&["run", "--rm", "--network", "none", "again", "/bin/cat", "/file"]), "new");
    store.ok(&["rm", "made"]);
}

#[test]
fn names_and_removal() {
    let store = Store::new();
    let id = load(&store, "one:1", &[layer(10, 1000)]);
    store.ok(&["tag", "one:1", "two"]);
    let short = &id["sha256:".len()..][..12];
    let said = refused(&store, &["rmi", short]);
    assert!(said.contains("conflict") && said.contains("one:1") || said.contains("multiple"), "{said}");
    assert_eq!(store.ok(&["rmi", "one:1"]), "Untagged: one:1");
    store.ok(&["create", "--name", "user", "--network", "none", "two", "/x"]);
    let said = refused(&store, &["rmi", "two"]);
    assert!(said.contains("conflict") && said.contains("container"), "{said}");
    // A forced one goes from sight; what the container needs stays.
    store.ok(&["rmi", "-f", "two"]);
    store.ok(&["system", "prune", "-f", "--filter", "until=1h"]);
    store.ok(&["image", "prune", "-af"]);
    assert!(kept(&store) > 0, "the layers of a container were deleted");
    let out = store.out(&["cp", "user:/seed-10", "-"]);
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    store.ok(&["rm", "user"]);
    store.ok(&["image", "prune", "-af"]);
    assert_eq!(kept(&store), 0);
    let said = refused(&store, &["rmi", "nobody"]);
    assert!(said.contains("nobody"), "{said}");
}

#[test]
fn shared_layers_and_pruning() {
    let store = Store::new();
    let shared = layer(20, 5000);
    load(&store, "a", &[shared.clone(), layer(21, 10)]);
    load(&store, "b", &[shared.clone(), layer(22, 10)]);
    let files = kept(&store);
    store.ok(&["rmi", "a"]);
    assert!(kept(&store) < files);
    assert!(
        store.out(&["save", "-o", "/dev/null", "b"]).status.success(),
        "a shared layer went with the other image"
    );
    // A name that moves on leaves a dangling image, which is what prune takes.
    load(&store, "b", &[shared, layer(23, 10)]);
    assert_eq!(store.ok(&["images", "-q", "-f", "dangling=true"]).lines().count(), 1);
    assert!(store.ok(&["image", "prune", "-f"]).contains("Total reclaimed space"));
    assert_eq!(store.ok(&["images", "-aq"]).lines().count(), 1);
    let df = store.ok(&["system", "df", "--format", "{{.Type}} {{.TotalCount}} {{.Active}}"]);
    assert!(df.contains("Images 1 0"), "{df}");
}

#[test]
fn what_is_known_of_an_image() {
    let store = Store::new();
    let id = load(&store, "known:1", &[layer(30, 1000), layer(31, 500)]);
    let inspect: serde_json::Value = serde_json::from_str(&store.ok(&["inspect", "known:1"])).unwrap();
    let image = &inspect[0];
    assert_eq!(image["Id"], id);
    assert_eq!(image["RepoTags"], serde_json::json!(["known:1"]));
    assert_eq!(image["Architecture"], layout::arch());
    assert_eq!(image["Os"], "linux");
    assert_eq!(image["Config"]["Labels"]["who"], "test");
    assert_eq!(image["RootFS"]["Layers"].as_array().unwrap().len(), 2);
    assert_eq!(image["Size"], 1500);
    assert!(image["Created"].as_str().unwrap().starts_with("2024-01-02T03:04:05"));
    assert_eq!(store.ok(&["history", "-q", "known:1"]).lines().count(), 2);
    for filter in ["label=who=test", "reference=kno*:1", "dangling=false"] {
        assert_eq!(store.ok(&["images", "-q", "--no-trunc", "-f", filter]), id, "{filter}");
    }
    assert_eq!(store.ok(&["images", "-q", "-f", "label=who=else"]), "");
}

/// A full disk in the middle of a pull: one sentence, nothing half-made, and the store goes on.
#[test]
fn a_full_disk() {
    let Some(registry) = Registry::start() else { return };
    let maker = Store::new();
    let (big, small) = (registry.name("big"), registry.name("small"));
    load(&maker, &big, &[layer(40, 3 << 20), layer(41, 3 << 20)]);
    load(&maker, &small, &[layer(42, 100_000)]);
    maker.ok(&["push", "-q", &big]);
    maker.ok(&["push", "-q", &small]);

    let store = Store::new();
    std::fs::create_dir_all(store.root()).unwrap();
    let _mount = Mounted::tmpfs(&store.root(), "size=8m");
    let said = refused(&store, &["pull", "-q", &big]);
    assert!(said.contains("space"), "{said}");
    assert_eq!(store.ok(&["images", "-aq"]), "");
    store.ok(&["pull", "-q", &small]);
    assert_eq!(store.ok(&["images", "-q"]).lines().count(), 1);
    store.ok(&["rmi", &small]);
    store.ok(&["system", "prune", "-f"]);
    assert_eq!(kept(&store), 0);
}

/// A mount that ends with the test.
struct Mounted(std::path::PathBuf);

impl Mounted {
    fn tmpfs(at: &Path, options: &str) -> Self {
        let done =
            Command::new("mount").args(["-t", "tmpfs", "-o", options, "tmpfs"]).arg(at).status().unwrap();
        assert!(done.success());
        Self(at.to_owned())
    }
}

impl Drop for Mounted {
    fn drop(&mut self) {
        let _ = Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn the_store_of_a_newer_version_is_left_alone() {
    if !have("python3") {
        println!("skipped: python3 is not installed");
        return;
    }
    let store = Store::new();
    load(&store, "x", &[layer(51, 10)]);
    let set = |change: &str| {
        let program =
            "import sqlite3, sys; c = sqlite3.connect(sys.argv[1]); c.execute(sys.argv[2]); c.commit()";
        let sql = format!("UPDATE schema SET version = version {change} WHERE component = 'image'");
        let db = store.root().join("state.db");
        assert!(Command::new("python3").args(["-c", program]).arg(db).arg(sql).status().unwrap().success());
    };
    set("+ 7");
    for verb in [&["images"][..], &["run", "x"], &["pull", "-q", "127.0.0.1:1/x"]] {
        let said = refused(&store, verb);
        assert!(said.contains("newer version"), "{said}");
    }
    set("- 7");
    assert_eq!(store.ok(&["images", "-q"]).lines().count(), 1);
}

#[test]
fn a_damaged_store_is_told_and_left_alone() {
    for damage in
        [&b"this is no database, and it never was one; it only has the name of one"[..], &[0xff; 8192]]
    {
        let store = Store::new();
        load(&store, "x", &[layer(50, 10)]);
        let path = store.root().join("state.db");
        let good = std::fs::read(&path).unwrap();
        for side in ["-wal", "-shm"] {
            let _ = std::fs::remove_file(store.root().join(format!("state.db{side}")));
        }
        std::fs::write(&path, damage).unwrap();
        for verb in [&["images"][..], &["ps"], &["run", "x"]] {
            let said = refused(&store, verb);
            assert!(said.contains("state.db"), "{said}");
        }
        assert_eq!(std::fs::read(&path).unwrap(), damage, "the evidence was changed");
        std::fs::write(&path, good).unwrap();
    }
}

#[test]
fn layers_as_directories() {
    let Some(busybox) = layout::busybox_layer() else { return };
    let tmp = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(tmp.path());
    layout.name(layout.image(&[busybox, layer(60, 10)], Packing::Zstd, layout::arch()), "dir:1");
    let store = Store::new();
    let dhow = |args: &[&str]| {
        let out = store.command(args).env("DHOW_LAYERS", "dir").output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim_end().to_owned()
    };
    let loaded = dhow(&["load", "-q", "-i", tmp.path().to_str().unwrap()]);
    let id = loaded.rsplit(' ').next().unwrap();
    let layers: Vec<_> = std::fs::read_dir(store.root().join("layers")).unwrap().flatten().collect();
    assert!(layers.len() == 2 && layers.iter().all(|l| l.path().is_dir()), "{layers:?}");
    assert_eq!(dhow(&["run", "--rm", "--network", "none", id, "/bin/ls", "/"]).matches("seed-60").count(), 1);
    dhow(&["rmi", id]);
    assert_eq!(kept(&store), 0);
}
