//! `diff` and `commit`: what overlayfs leaves in the upper directory, told as users mean it.

mod common;

use common::{Store, able, at};
use dhow_rootfs::{Access, MountOptions, archive_changes, changes, mount, prepare, usage};
use rustix::fs::XattrFlags;
use std::fs;
use std::io::Read;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::process::{Command, Stdio};
use types::LayerFormat::{self, Dir, Erofs};

fn image(d: &Path) {
    for dir in ["etc", "usr/lib/deep", "var/cache/apt", "gone", "again", "kind"] {
        fs::create_dir_all(d.join(dir)).unwrap();
    }
    for file in
        ["etc/passwd", "etc/motd", "usr/lib/deep/x", "var/cache/apt/pkg", "gone/f", "again/old", "again/both"]
    {
        fs::write(d.join(file), file).unwrap();
    }
    fs::write(d.join("kind/file"), "f").unwrap();
    fs::create_dir(d.join("kind/dir")).unwrap();
}

/// Every kind of change that a container makes.
fn work(root: &Path) {
    fs::write(root.join("etc/passwd"), "changed").unwrap();
    fs::remove_file(root.join("etc/motd")).unwrap();
    fs::remove_dir_all(root.join("gone")).unwrap();
    fs::remove_dir_all(root.join("again")).unwrap();
    fs::create_dir(root.join("again")).unwrap();
    fs::write(root.join("again/new"), "n").unwrap();
    fs::write(root.join("again/both"), "b").unwrap();
    fs::set_permissions(root.join("var/cache"), fs::Permissions::from_mode(0o700)).unwrap();
    // Copied up, and as it was before.
    fs::write(root.join("usr/lib/deep/tmp"), "t").unwrap();
    fs::remove_file(root.join("usr/lib/deep/tmp")).unwrap();
    // New, renamed, with a link and attributes.
    fs::create_dir_all(root.join("srv/one/two")).unwrap();
    fs::write(root.join("srv/one/two/f"), "deep").unwrap();
    fs::rename(root.join("srv/one"), root.join("srv/moved")).unwrap();
    fs::hard_link(root.join("srv/moved/two/f"), root.join("srv/hard")).unwrap();
    symlink("moved/two/f", root.join("srv/soft")).unwrap();
    rustix::fs::setxattr(root.join("srv/hard"), "user.note", b"hi", XattrFlags::empty()).unwrap();
    fs::write(root.join("srv").join("l".repeat(200)), "long").unwrap();
    fs::remove_file(root.join("kind/file")).unwrap();
    fs::create_dir(root.join("kind/file")).unwrap();
    fs::write(root.join("kind/file/in"), "i").unwrap();
    fs::remove_dir(root.join("kind/dir")).unwrap();
    fs::write(root.join("kind/dir"), "d").unwrap();
    // Made and removed: no trace.
    fs::write(root.join("etc/brief"), "x").unwrap();
    fs::remove_file(root.join("etc/brief")).unwrap();
}

fn listed(format: LayerFormat) {
    if !able(format) {
        return;
    }
    let store = Store::new();
    let plan = store.plan("c", vec![store.layer(1, format, image)]);
    assert!(changes(&plan).unwrap().is_empty());
    prepare(&plan).unwrap();
    let rootfs = mount(&plan, &MountOptions::default()).unwrap();
    assert!(changes(&plan).unwrap().is_empty());
    work(&at(&rootfs.fd(), ""));
    rootfs.release().unwrap();
    let long = format!("A /srv/{}", "l".repeat(200));
    let expected = [
        "C /again",
        "C /again/both",
        "A /again/new",
        "D /again/old",
        "C /etc",
        "D /etc/motd",
        "C /etc/passwd",
        "D /gone",
        "C /kind",
        "C /kind/dir",
        "C /kind/file",
        "A /kind/file/in",
        "A /srv",
        "A /srv/hard",
        &long,
        "A /srv/moved",
        "A /srv/moved/two",
        "A /srv/moved/two/f",
        "A /srv/soft",
        "C /var",
        "C /var/cache",
    ];
    let found: Vec<_> = changes(&plan)
        .unwrap()
        .into_iter()
        .map(|c| format!("{} {}", ["C", "A", "D"][c.kind.to_string().parse::<usize>().unwrap()], c.path))
        .collect();
    assert_eq!(found, expected);
    assert!(usage(&plan.writable).unwrap() >= 4096);
    assert_eq!(store.mounted(), 0);
}

#[test]
fn changes_over_directories() {
    listed(Dir);
}

#[test]
fn changes_over_erofs() {
    listed(Erofs);
}

/// The layer written, laid over the image again, shows what the container saw.
#[test]
fn a_committed_layer_is_what_was_seen() {
    if !able(Dir) {
        return;
    }
    let store = Store::new();
    let base = store.layer(1, Dir, image);
    let plan = store.plan("c", vec![base.clone()]);
    prepare(&plan).unwrap();
    let rootfs = mount(&plan, &MountOptions::default()).unwrap();
    let root = at(&rootfs.fd(), "");
    work(&root);
    Command::new("mkfifo").arg(root.join("srv/fifo")).status().unwrap();
    rustix::fs::chown(root.join("srv/hard"), Some(rustix::fs::Uid::from_raw(3_000_000)), None).unwrap();
    drop(std::os::unix::net::UnixListener::bind(store.path().join("s")).unwrap());
    fs::rename(store.path().join("s"), store.path().join("c/upper/srv/socket")).ok();

    let mut tar = Vec::new();
    archive_changes(&plan, &mut tar).unwrap();
    let mut again = Vec::new();
    archive_changes(&plan, &mut again).unwrap();
    assert!(tar == again, "not deterministic");

    let names: Vec<String> = tar::Archive::new(&tar[..])
        .entries()
        .unwrap()
        .map(|e| String::from_utf8(e.unwrap().path_bytes().into_owned()).unwrap())
        .collect();
    for name in ["again/", "again/.wh..wh..opq", "again/new", "etc/.wh.motd", ".wh.gone", "srv/moved/two/f"] {
        assert!(names.iter().any(|n| n == name), "{name} in {names:?}");
    }
    assert!(
        !names.iter().any(|n| n.contains("socket") || n.contains("deep") || n.contains("brief")),
        "{names:?}"
    );

    // GNU tar takes it, and applying it by hand gives the tree that the container has.
    let flat = store.path().join("flat");
    let status = Command::new("cp").arg("-a").arg(&base.path).arg(&flat).status().unwrap();
    assert!(status.success());
    let mut layer = store.path().join("unpacked");
    fs::create_dir(&layer).unwrap();
    let mut untar = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf", "-", "-C"])
        .arg(&layer)
        .stdin(Stdio::piped())
        .spawn()
        .unwrap();
    std::io::Write::write_all(untar.stdin.as_mut().unwrap(), &tar).unwrap();
    assert!(untar.wait().unwrap().success());
    apply(&layer, &flat);
    layer = root;
    compare(&layer, &flat, Path::new(""));
    rootfs.release().unwrap();
}

/// Applies an unpacked layer, as the image specification says.
fn apply(layer: &Path, to: &Path) {
    let entries: Vec<_> = fs::read_dir(layer).unwrap().map(|e| e.unwrap().file_name()).collect();
    for name in &entries {
        let name = name.to_str().unwrap();
        if name == ".wh..wh..opq" {
            fs::remove_dir_all(to).unwrap();
            fs::create_dir(to).unwrap();
        }
    }
    for name in entries {
        let (from, target) = (layer.join(&name), to.join(&name));
        match name.to_str().unwrap().strip_prefix(".wh.") {
            Some(".wh..opq") => {}
            Some(gone) => {
                Command::new("rm").arg("-rf").arg(to.join(gone)).status().unwrap();
            }
            None if from.is_dir() && !from.is_symlink() => {
                if target.is_symlink() || !target.is_dir() {
                    fs::remove_file(&target).ok();
                    fs::create_dir(&target).unwrap();
                }
                apply(&from, &target);
                fs::set_permissions(&target, fs::metadata(&from).unwrap().permissions()).unwrap();
            }
            None => {
                Command::new("rm").arg("-rf").arg(&target).status().unwrap();
                assert!(Command::new("cp").arg("-a").arg(&from).arg(&target).status().unwrap().success());
            }
        }
    }
}

fn compare(a: &Path, b: &Path, path: &Path) {
    let names = |dir: &Path| {
        let mut names: Vec<_> = fs::read_dir(dir)
            .unwrap()
            .map(|e| e.unwrap().file_name())
            // The mount points of every container, and what no tar can hold.
            .filter(|n| {
                !["dev", "proc", "sys", "socket", "hosts", "hostname", "resolv.conf", "mtab"]
                    .contains(&n.to_str().unwrap())
            })
            .collect();
        names.sort();
        names
    };
    assert_eq!(names(a), names(b), "{}", path.display());
    for name in names(a) {
        let (x, y, path) = (a.join(&name), b.join(&name), path.join(&name));
        let (m, n) = (fs::symlink_metadata(&x).unwrap(), fs::symlink_metadata(&y).unwrap());
        assert_eq!((m.mode(), m.uid(), m.gid()), (n.mode(), n.uid(), n.gid()), "{}", path.display());
        if m.is_dir() {
            compare(&x, &y, &path);
        } else if m.is_file() {
            let mut content = Vec::new();
            fs::File::open(&x).unwrap().read_to_end(&mut content).unwrap();
            assert_eq!(content, fs::read(&y).unwrap());
        } else if m.is_symlink() {
            assert_eq!(fs::read_link(&x).unwrap(), fs::read_link(&y).unwrap());
        }
    }
}

#[test]
fn a_volatile_root_can_be_mounted_again() {
    if !able(Dir) {
        return;
    }
    let store = Store::new();
    let plan = store.plan("c", vec![store.layer(1, Dir, image)]);
    prepare(&plan).unwrap();
    let volatile = MountOptions { volatile: true, ..Default::default() };
    for _ in 0..3 {
        let rootfs = mount(&plan, &volatile).unwrap();
        fs::write(at(&rootfs.fd(), "etc/passwd"), "x").unwrap();
        rootfs.release().unwrap();
    }
    let look = MountOptions { access: Access::ReadOnly, ..Default::default() };
    assert_eq!(fs::read(at(&mount(&plan, &look).unwrap().fd(), "etc/passwd")).unwrap(), b"x");
}
