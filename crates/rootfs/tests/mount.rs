//! Layers become a root filesystem, whoever dies on the way.

mod common;

use common::{Store, able, at};
use dhow_rootfs::{Access, MountOptions, mount, prepare, sweep};
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::time::Instant;
use types::LayerFormat::{self, Dir, Erofs};

fn small(dir: &Path) {
    fs::create_dir(dir.join("etc")).unwrap();
    fs::write(dir.join("etc/os-release"), "small").unwrap();
    fs::write(dir.join("a"), "one").unwrap();
    symlink("a", dir.join("link")).unwrap();
    fs::set_permissions(dir, fs::Permissions::from_mode(0o751)).unwrap();
}

fn read_write(format: LayerFormat) {
    if !able(format) {
        return;
    }
    let store = Store::new();
    let below = store.layer(1, format, small);
    let above = store.layer(2, format, |d| fs::write(d.join("a"), "two").unwrap());
    let plan = store.plan("c", vec![below, above]);
    prepare(&plan).unwrap();
    let rootfs = mount(&plan, &MountOptions::default()).unwrap();
    assert_eq!(fs::read(at(&rootfs.fd(), "a")).unwrap(), b"two");
    assert_eq!(fs::read(at(&rootfs.fd(), "etc/os-release")).unwrap(), b"small");
    assert_eq!(fs::read(at(&rootfs.fd(), "etc/hosts")).unwrap(), b"");
    fs::write(at(&rootfs.fd(), "new"), "x").unwrap();
    fs::remove_file(at(&rootfs.fd(), "a")).unwrap();
    assert!(plan.writable.join("upper/new").is_file());
    rootfs.release().unwrap();
    assert_eq!(store.mounted(), 0);
    assert!(store.left().is_empty(), "{:?}", store.left());

    // What was written is seen again, and nothing is writable where only a look was asked for.
    let look = MountOptions { access: Access::ReadOnly, ..Default::default() };
    let rootfs = mount(&plan, &look).unwrap();
    assert_eq!(fs::read(at(&rootfs.fd(), "new")).unwrap(), b"x");
    assert!(!at(&rootfs.fd(), "a").exists());
    assert!(fs::write(at(&rootfs.fd(), "no"), "x").is_err());
    drop(rootfs);
    let image = MountOptions { access: Access::LayersOnly, ..Default::default() };
    let rootfs = mount(&plan, &image).unwrap();
    assert!(at(&rootfs.fd(), "a").exists());
    assert!(!at(&rootfs.fd(), "new").exists());
    drop(rootfs);
    assert_eq!(store.mounted(), 0);
}

#[test]
fn directories_as_layers() {
    read_write(Dir);
}

#[test]
fn erofs_layers() {
    read_write(Erofs);
}

#[test]
fn no_layers_at_all() {
    if !able(Dir) {
        return;
    }
    let store = Store::new();
    let plan = store.plan("c", vec![]);
    prepare(&plan).unwrap();
    for access in [Access::LayersOnly, Access::ReadOnly, Access::ReadWrite, Access::ReadOnly] {
        let rootfs = mount(&plan, &MountOptions { access, ..Default::default() }).unwrap();
        assert!(at(&rootfs.fd(), "proc").is_dir());
        assert_eq!(fs::write(at(&rootfs.fd(), "f"), "x").is_ok(), access == Access::ReadWrite);
    }
}

#[test]
fn many_layers_and_one_of_them_twice() {
    if !able(Dir) {
        return;
    }
    let store = Store::new();
    let mut layers: Vec<_> =
        (0..140).map(|n| store.layer(n, Dir, |d| fs::write(d.join("top"), n.to_string()).unwrap())).collect();
    layers.push(layers[3].clone());
    let plan = store.plan("c", layers);
    prepare(&plan).unwrap();
    let rootfs = mount(&plan, &MountOptions::default()).unwrap();
    assert_eq!(fs::read(at(&rootfs.fd(), "top")).unwrap(), b"3");
}

#[test]
fn the_root_directory_is_the_images() {
    if !able(Erofs) {
        return;
    }
    let store = Store::new();
    let layer = store.layer(1, Erofs, small);
    let plan = store.plan("c", vec![layer]);
    prepare(&plan).unwrap();
    let rootfs = mount(&plan, &MountOptions::default()).unwrap();
    assert_eq!(fs::metadata(at(&rootfs.fd(), "")).unwrap().mode() & 0o7777, 0o751);
}

#[test]
fn users_share_one_mount_and_the_last_removes_it() {
    if !able(Erofs) {
        return;
    }
    let store = Store::new();
    let layer = store.layer(1, Erofs, small);
    let plans: Vec<_> = (0..5).map(|n| store.plan(&format!("c{n}"), vec![layer.clone()])).collect();
    let mut all = Vec::new();
    for plan in &plans {
        prepare(plan).unwrap();
        all.push(mount(plan, &MountOptions::default()).unwrap());
        assert_eq!(store.mounted(), 1);
    }
    assert_eq!(sweep(&store.mounts()).unwrap(), 0);
    let last = all.pop().unwrap();
    let layers = last.into_layers();
    all.into_iter().for_each(|r| r.release().unwrap());
    assert_eq!(store.mounted(), 1);
    let adopted = dhow_rootfs::Layers::adopt(&plans[0]).unwrap();
    layers.release().unwrap();
    assert_eq!(store.mounted(), 1);
    adopted.release().unwrap();
    assert_eq!(store.mounted(), 0);
    assert!(store.left().is_empty());
}

#[test]
fn bad_layers_are_named() {
    if !able(Erofs) {
        return;
    }
    let store = Store::new();
    let mut layer = store.layer(1, Erofs, small);
    fs::write(&layer.path, vec![7; 8192]).unwrap();
    let e = mount(&store.plan("c", vec![layer.clone()]), &MountOptions::default()).unwrap_err();
    assert!(e.to_string().contains("damaged"), "{e}");
    layer.path = "/nowhere.erofs".into();
    let e = mount(&store.plan("c", vec![layer]), &MountOptions::default()).unwrap_err();
    assert!(e.to_string().contains("missing at /nowhere.erofs"), "{e}");
    assert_eq!(store.mounted(), 0);
    assert!(store.left().is_empty(), "{:?}", store.left());
}

#[test]
fn a_start_is_quick_where_the_layer_is_mounted() {
    if !able(Erofs) {
        return;
    }
    let store = Store::new();
    let layer = store.layer(1, Erofs, small);
    let keep = store.plan("keep", vec![layer.clone()]);
    prepare(&keep).unwrap();
    let held = mount(&keep, &MountOptions::default()).unwrap();
    let mut times = Vec::new();
    for n in 0..50 {
        let plan = store.plan(&format!("c{n}"), vec![layer.clone()]);
        let start = Instant::now();
        prepare(&plan).unwrap();
        let rootfs = mount(&plan, &MountOptions::default()).unwrap();
        let mounted = start.elapsed();
        rootfs.release().unwrap();
        times.push((mounted, start.elapsed() - mounted));
    }
    times.sort();
    println!("warm: mount, release: {:?}", times[25]);
    held.release().unwrap();
    let mut times = Vec::new();
    for n in 0..50 {
        let plan = store.plan(&format!("d{n}"), vec![layer.clone()]);
        let start = Instant::now();
        prepare(&plan).unwrap();
        let rootfs = mount(&plan, &MountOptions::default()).unwrap();
        let mounted = start.elapsed();
        rootfs.release().unwrap();
        times.push((mounted, start.elapsed() - mounted));
    }
    times.sort();
    println!("cold: mount, release: {:?}", times[25]);
}

/// What a layer implied has the attributes of the directory below it: the nearest that is really there, and none where
/// something else hides it.
#[test]
fn implied_directories_look_as_those_below() {
    if !able(Dir) {
        return;
    }
    fn mark(path: &Path) {
        rustix::fs::setxattr(path, types::IMPLIED_XATTR, b"y", rustix::fs::XattrFlags::empty()).unwrap();
    }
    fn imply(root: &Path, path: &str) {
        fs::create_dir_all(root.join(path)).unwrap();
        Path::new(path).ancestors().for_each(|p| mark(&root.join(p)));
    }
    fn chmod(root: &Path, path: &str, mode: u32) {
        fs::create_dir_all(root.join(path)).unwrap();
        fs::set_permissions(root.join(path), fs::Permissions::from_mode(mode)).unwrap();
    }
    let store = Store::new();
    let below = store.layer(1, Dir, |d| {
        chmod(d, "tmp", 0o1777);
        chmod(d, "a/b/c", 0o700);
        chmod(d, "a", 0o711);
        chmod(d, "opaque", 0o700);
        fs::write(d.join("file"), "").unwrap();
        symlink("tmp", d.join("link")).unwrap();
    });
    let middle = store.layer(2, Dir, |d| chmod(d, "a/b", 0o750));
    let above = store.layer(3, Dir, |d| {
        for path in ["tmp", "a/b/c/d", "opaque", "file", "link"] {
            imply(d, path);
        }
        let opaque = d.join("opaque");
        rustix::fs::setxattr(&opaque, "trusted.overlay.opaque", b"y", rustix::fs::XattrFlags::empty())
            .unwrap();
    });
    let plan = store.plan("c", vec![below, middle, above]);
    prepare(&plan).unwrap();
    let rootfs = mount(&plan, &MountOptions::default()).unwrap();
    let mode = |path: &str| {
        let meta = fs::symlink_metadata(at(&rootfs.fd(), path)).unwrap();
        assert!(meta.is_dir(), "{path}");
        format!("{:o}", meta.mode() & 0o7777)
    };
    let seen = ["tmp", "a", "a/b", "a/b/c", "a/b/c/d", "opaque", "file", "link"].map(mode);
    // `middle` has its own `a`, of 0755, above the one of 0711.
    assert_eq!(seen, ["1777", "755", "750", "700", "755", "755", "755", "755"]);
    let path = at(&rootfs.fd(), "tmp");
    assert!(rustix::fs::getxattr(path, types::IMPLIED_XATTR, &mut [0u8; 8][..]).is_err(), "it shows inside");
    // A second container shares it, and it goes with the last one.
    let second = store.plan("d", plan.layers.clone());
    prepare(&second).unwrap();
    let other = mount(&second, &MountOptions::default()).unwrap();
    assert_eq!(store.mounted(), 1);
    rootfs.release().unwrap();
    assert_eq!(store.mounted(), 1);
    drop(other.into_layers());
    assert_eq!(store.mounted(), 0);
    assert!(store.left().is_empty(), "{:?}", store.left());
}
