//! What a container sees of an image, entry by entry, against what umoci unpacks from the same image.

use dhow_tests::layout::{self, Layout, Packing, Snapshot, Tar, differences, snapshot};
use dhow_tests::{Store, have};
use std::path::{Path, PathBuf};
use std::process::Command;

/// Loads an image of these layers and answers what a container of it sees, and what umoci makes of the same layers
/// in gzip, the only packing that it knows.
fn both(layers: &[Vec<u8>], packing: Packing, environment: &[(&str, &str)]) -> Option<(Snapshot, Snapshot)> {
    let busybox = layout::busybox_layer()?;
    if !have("umoci") {
        println!("skipped: umoci is not installed");
        return None;
    }
    let layers: Vec<Vec<u8>> = std::iter::once(busybox).chain(layers.iter().cloned()).collect();
    let tmp = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(&tmp.path().join("layout"));
    layout.name(layout.image(&layers, packing, layout::arch()), "latest");
    let mut reference = Layout::new(&tmp.path().join("reference"));
    reference.name(reference.image(&layers, Packing::Gzip, layout::arch()), "latest");

    let tree = tmp.path().join("tree");
    let image = format!("{}:latest", reference.dir().display());
    let umoci = Command::new("umoci").args(["raw", "unpack", "--image", &image]).arg(&tree).output().unwrap();
    assert!(umoci.status.success(), "umoci: {}", String::from_utf8_lossy(&umoci.stderr));
    let theirs = snapshot(&tree);

    Some((container(&layout, environment), theirs))
}

/// What a container sees of an image of these layers.
fn ours(layers: &[Vec<u8>], environment: &[(&str, &str)]) -> Option<Snapshot> {
    let layers: Vec<Vec<u8>> =
        std::iter::once(layout::busybox_layer()?).chain(layers.iter().cloned()).collect();
    let tmp = tempfile::tempdir().unwrap();
    let mut layout = Layout::new(tmp.path());
    layout.name(layout.image(&layers, Packing::Gzip, layout::arch()), "latest");
    Some(container(&layout, environment))
}

fn container(layout: &Layout, environment: &[(&str, &str)]) -> Snapshot {
    let store = Store::new();
    let dhow = |args: &[&str]| {
        let mut command = store.command(args);
        let out = command.envs(environment.iter().copied()).output().unwrap();
        assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
        String::from_utf8(out.stdout).unwrap().trim_end().to_owned()
    };
    let loaded = dhow(&["load", "-q", "-i", layout.dir().to_str().unwrap()]);
    let id = loaded.rsplit(' ').next().unwrap();
    dhow(&["run", "-d", "--name", "box", "--network", "none", id, "/bin/busybox", "sleep", "1000"]);
    let pid = dhow(&["inspect", "-f", "{{.State.Pid}}", "box"]);
    let seen = snapshot(Path::new(&format!("/proc/{pid}/root")));
    dhow(&["rm", "-f", "box"]);
    seen
}

/// Takes what every container has beneath its image out of a snapshot: mount points of the engine.
fn without_mount_points(mut ours: Snapshot, theirs: &Snapshot) -> Snapshot {
    for path in ["dev", "proc", "sys", "etc", "etc/hosts", "etc/hostname", "etc/resolv.conf", "etc/mtab"] {
        if !theirs.contains_key(Path::new(path)) {
            ours.remove(Path::new(path));
        }
    }
    ours
}

fn check(layers: &[Vec<u8>], packing: Packing, environment: &[(&str, &str)]) -> Option<Snapshot> {
    let (ours, theirs) = both(layers, packing, environment)?;
    let mut ours = without_mount_points(ours, &theirs);
    // Of a file with two names, one of which a higher layer replaced, overlayfs still counts both.
    if let Some(text) = ours.get_mut(Path::new("same")) {
        *text = text.replace("links=2", "links=1");
    }
    let found = differences(&ours, &theirs);
    assert!(found.is_empty(), "{found}");
    Some(ours)
}

/// Every kind of entry.
fn every_kind() -> Vec<Vec<u8>> {
    let cap = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let deep = format!("d/{}/{}/{}", "n".repeat(200), "m".repeat(255), "o".repeat(255));
    let target = format!("/{}", "t/".repeat(200));
    let mut one = Tar::new();
    one.pax(&[("mtime", b"1500000000.123456789")]).entry(b'5', b"./", b"", |h| h.set_mode(0o755));
    one.dir("d/").dir(&format!("d/{}/", "n".repeat(200)));
    one.dir(&format!("d/{}/{}/", "n".repeat(200), "m".repeat(255)));
    one.pax(&[("mtime", b"123.000000004"), ("SCHILY.xattr.user.dir", b"\0\n=")]);
    one.entry(b'5', b"sticky/", b"", |h| h.set_mode(0o1777));
    one.entry(b'5', b"setgid/", b"", |h| {
        h.set_mode(0o2775);
        h.set_gid(50);
    });
    one.pax(&[("mtime", b"5.25"), ("SCHILY.xattr.security.capability", &cap), ("uid", b"3000000000")]);
    one.entry(b'0', b"d/capable", b"#!", |h| h.set_mode(0o755));
    one.entry(b'0', b"d/suid", b"#!", |h| h.set_mode(0o6755));
    one.entry(b'0', b"d/nothing", b"no mode", |h| h.set_mode(0));
    one.pax(&[("SCHILY.xattr.user.big", &[7; 3000]), ("SCHILY.xattr.trusted.t", b"t")]);
    one.entry(b'0', b"d/attributes", b"x", |h| {
        h.set_uid(1000);
        h.set_gid(2000);
    });
    one.file(&deep, b"a long path in PAX");
    let long = format!("d/{}", "g".repeat(255));
    one.gnu_long(b'L', long.as_bytes()).file("d/short", b"a long name in GNU's form");
    one.gnu_long(b'K', target.as_bytes()).symlink("d/gnu-link", "short");
    one.pax(&[("linkpath", target.as_bytes())]).symlink("d/pax-link", "short");
    one.symlink("d/relative", "suid").symlink("d/up", "../d/./suid");
    one.symlink("d/absolute", "/d/suid").symlink("d/dangling", "nowhere/at all");
    one.hard_link("d/second", "d/suid").hard_link("third", "d/second").hard_link("d/link2", "d/dangling");
    one.entry(b'3', b"d/char", b"", |h| {
        h.set_device_major(5).unwrap();
        h.set_device_minor(300).unwrap();
    });
    one.entry(b'4', b"d/block", b"", |h| h.set_device_major(8).unwrap());
    one.entry(b'6', b"d/fifo", b"", |h| h.set_uid(7));
    one.hard_link("d/fifo2", "d/fifo");
    one.entry(b'0', b"d/not-utf8-\xff\xfe", b"bytes", |_| {});
    one.entry(b'2', b"d/link-not-utf8", b"", |h| h.as_old_mut().linkname[..3].copy_from_slice(b"\xf0\x28z"));
    one.file("d/empty", b"").file("d/block-sized", &[1; 4096]).file("d/large", &layout::noise(1, 300_001));
    one.dir("opaque/").file("opaque/below", b"").dir("opaque/sub/").file("opaque/sub/below", b"");
    one.dir("gone/").file("gone/x", b"").file("removed", b"").file("d/removed", b"");
    one.dir("dir-to-file/").file("dir-to-file/x", b"").file("file-to-dir", b"").symlink("link-to-dir", "d");
    one.dir("dir-to-link/").file("dir-to-link/x", b"").file("d/changed", b"old").file("same", b"same");
    one.hard_link("same2", "same");
    one.dir("keeps/").file("keeps/below", b"");

    let mut two = Tar::new();
    two.dir("opaque/").file("opaque/.wh..wh..opq", b"").file("opaque/above", b"");
    two.file(".wh.gone", b"").file(".wh.removed", b"").file("d/.wh.removed", b"");
    two.file("dir-to-file", b"now a file").dir("file-to-dir/").file("file-to-dir/x", b"");
    two.dir("link-to-dir/").file("link-to-dir/x", b"").symlink("dir-to-link", "sticky");
    two.pax(&[("mtime", b"1600000000.5")]).entry(b'5', b"d/", b"", |h| h.set_mode(0o711));
    two.entry(b'0', b"d/changed", b"new", |h| h.set_mode(0o600)).file("same2", b"not the same any more");
    two.entry(b'5', b"keeps/", b"", |h| {
        h.set_mode(0o700);
        h.set_uid(33);
    });
    let mut three = Tar::new();
    three.file("removed", b"is back").dir("gone/").file("gone/y", b"");
    three.entry(b'5', b"opaque/", b"", |_| {}).file("opaque/.wh.above", b"").file("opaque/more", b"");
    vec![one.end(), two.end(), three.end()]
}

#[test]
fn every_kind_of_entry_is_as_umoci_unpacks_it() {
    let Some(seen) = check(&every_kind(), Packing::Gzip, &[]) else { return };
    // A few against the tar itself, lest both be wrong.
    let get = |path: &str| seen[Path::new(path)].as_str();
    assert!(get("d/suid").starts_with("106755 0:0 1000000000.000000000 links=3"));
    assert!(get("sticky").starts_with("41777 0:0 123.000000004 user.dir=[0, 10, 61]"));
    assert!(get("d/capable").contains(" security.capability=[1, 0, 0, 2"));
    assert!(get("d").starts_with("40711 0:0 1600000000.500000000"));
    assert!(!seen.contains_key(Path::new("opaque/below")) && seen.contains_key(Path::new("opaque/more")));
    assert!(!seen.contains_key(Path::new("gone/x")) && seen.contains_key(Path::new("keeps/below")));
    assert!(get("same2").contains("size=21") && get("same").contains("size=4"));
}

#[test]
fn zstd_and_plain_layers_and_unpacked_ones_are_no_different() {
    let Some(zstd) = check(&every_kind(), Packing::Zstd, &[]) else { return };
    let Some(plain) = check(&every_kind(), Packing::Plain, &[("DHOW_LAYERS", "dir")]) else { return };
    assert_eq!(differences(&zstd, &plain), "");
}

/// Trees packed by GNU tar in each of its forms, holes included. GNU's own form, which umoci does not know, is
/// compared with what it has of the others.
#[test]
fn sparse_files_of_every_form_are_as_umoci_unpacks_them() {
    use std::os::unix::fs::FileExt;
    let tmp = tempfile::tempdir().unwrap();
    let tree = tmp.path().join("tree");
    std::fs::create_dir_all(tree.join("s")).unwrap();
    let many: Vec<(u64, usize)> = (0..60).map(|i| (i * 30_000 + 13, 77)).collect();
    let files = [
        ("hole", 1 << 24, vec![]),
        ("end", 1_000_001, vec![(1_000_000, 1)]),
        ("start", 9_000_000, vec![(0, 5000)]),
        ("many", 2_000_000, many),
    ];
    for (name, size, pieces) in files {
        let file = std::fs::File::create(tree.join("s").join(name)).unwrap();
        file.set_len(size).unwrap();
        for (offset, length) in pieces {
            file.write_all_at(&vec![9; length], offset).unwrap();
        }
    }
    let pack = |form: &[&str], dir: &str| {
        let mut tar = Command::new("tar");
        let rename = format!("--transform=s,^s,{dir},");
        tar.args(form).args(["-S", "-cf", "-", &rename, "-C"]).arg(&tree).arg("s");
        let out = tar.output().unwrap();
        assert!(out.status.success() && out.stdout.len() < 1_000_000, "tar found no holes");
        out.stdout
    };
    let posix = ["0.0", "0.1", "1.0"].map(|v| pack(&["--format=posix", &format!("--sparse-version={v}")], v));
    let Some(seen) = check(&posix, Packing::Gzip, &[]) else { return };
    let Some(gnu) = ours(&[pack(&["--format=gnu"], "gnu")], &[]) else { return };
    let hash = |seen: &Snapshot, path: PathBuf| seen[&path].split(" size=").nth(1).unwrap().to_owned();
    for name in ["hole", "end", "start", "many"] {
        for dir in ["0.0", "0.1", "1.0"] {
            assert_eq!(
                hash(&seen, Path::new(dir).join(name)),
                hash(&gnu, Path::new("gnu").join(name)),
                "{dir}/{name}"
            );
        }
    }
}

/// Some build tools leave the parents of what they add out of their tars. A parent that a lower layer has stays as it
/// is then, as with umoci, containerd and Docker.
#[test]
fn a_layer_without_entries_for_its_parents_leaves_them_as_they_are() {
    let mut lower = Tar::new();
    lower.pax(&[("SCHILY.xattr.user.of", b"lower")]).entry(b'5', b"tmp/", b"", |h| h.set_mode(0o1777));
    lower.entry(b'5', b"root/", b"", |h| h.set_mode(0o700)).dir("home/").entry(b'5', b"home/u/", b"", |h| {
        h.set_uid(1000);
        h.set_gid(1000);
    });
    lower.dir("replaced/").dir("hidden/").entry(b'5', b"hidden/sub/", b"", |h| h.set_mode(0o700));
    let mut middle = Tar::new();
    middle
        .file("tmp/a", b"")
        .file("home/u/.profile", b"")
        .file("home/u/.config/x", b"")
        .file("new/dir/file", b"");
    middle.file("hidden/.wh..wh..opq", b"");
    let mut upper = Tar::new();
    upper.file("home/u/.config/y", b"").file("root/.bashrc", b"").file("tmp/.wh.a", b"").file("tmp/b/c", b"");
    upper.file("hidden/sub/file", b"");
    let layers = [lower.end(), middle.end(), upper.end()];
    let Some((ours, theirs)) = both(&layers, Packing::Gzip, &[]) else { return };
    // When a directory that a layer does not tell of was changed is anybody's guess.
    let timeless = |tree: Snapshot| -> Snapshot {
        let implied =
            ["", "new", "new/dir", "home/u", "home/u/.config", "tmp", "tmp/b", "hidden", "hidden/sub"];
        let strip = |t: String| {
            t.split(' ').enumerate().filter(|(i, _)| *i != 2).map(|(_, w)| w).collect::<Vec<_>>().join(" ")
        };
        tree.into_iter()
            .map(|(p, t)| if implied.iter().any(|i| p == Path::new(i)) { (p, strip(t)) } else { (p, t) })
            .collect()
    };
    let (ours, theirs) = (timeless(without_mount_points(ours, &theirs)), timeless(theirs));
    assert_eq!(ours, theirs, "{}", differences(&ours, &theirs));
}

/// The same in each format of layers, in what is exported and committed, and nothing of it stays mounted.
#[test]
fn forgotten_parents_are_right_everywhere() {
    let mut lower = Tar::new();
    lower.entry(b'5', b"tmp/", b"", |h| h.set_mode(0o1777)).entry(b'5', b"tmp/in/", b"", |h| h.set_uid(7));
    let mut upper = Tar::new();
    upper.file("tmp/in/file", b"");
    let Some(busybox) = layout::busybox_layer() else { return };
    let layers = [busybox, lower.end(), upper.end()];
    for format in ["erofs", "dir"] {
        let store = Store::new();
        let dhow = |args: &[&str]| {
            let out = store.command(args).env("DHOW_LAYERS", format).output().unwrap();
            assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
            out.stdout
        };
        let text = |args: &[&str]| String::from_utf8(dhow(args)).unwrap().trim_end().to_owned();
        let tmp = tempfile::tempdir().unwrap();
        let mut layout = Layout::new(tmp.path());
        layout.name(layout.image(&layers, Packing::Gzip, layout::arch()), "latest");
        let loaded = text(&["load", "-q", "-i", layout.dir().to_str().unwrap()]);
        let id = loaded.rsplit(' ').next().unwrap();
        let look = ["/bin/busybox", "stat", "-c", "%a %u", "/tmp", "/tmp/in"];
        let box_ = ["run", "--name", "box", "--network", "none", id];
        assert_eq!(text(&[&box_[..], &look].concat()), "1777 0\n755 7", "{format}");
        // A container that touches nothing there changes nothing.
        assert!(!text(&["diff", "box"]).contains("tmp"));
        let exported = dhow(&["export", "box"]);
        let mut tar = tar::Archive::new(exported.as_slice());
        let found =
            tar.entries().unwrap().map(Result::unwrap).find(|e| e.path().unwrap() == Path::new("tmp"));
        assert_eq!(found.unwrap().header().mode().unwrap() & 0o7777, 0o1777, "{format}");
        dhow(&["rm", "box"]);
        dhow(&["run", "--name", "box", "--network", "none", id, "/bin/busybox", "touch", "/tmp/in/other"]);
        dhow(&["commit", "box", "again"]);
        dhow(&["rm", "box"]);
        let again = ["run", "--rm", "--network", "none", "again"];
        assert_eq!(text(&[&again[..], &look].concat()), "1777 0\n755 7", "{format}");
        let run = store.run();
        let mounts = || std::fs::read_to_string("/proc/self/mounts").unwrap();
        let begin = std::time::Instant::now();
        while mounts().contains(run.to_str().unwrap()) {
            assert!(begin.elapsed().as_secs() < 20, "{}", mounts());
            std::thread::sleep(std::time::Duration::from_millis(20));
        }
    }
}
