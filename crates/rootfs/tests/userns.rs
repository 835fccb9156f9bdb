//! A root filesystem whose ids a user namespace translates: what lies on the disk keeps the ids of the inside.

mod common;

use common::{Store, able, at};
use dhow_rootfs::{Access, MountOptions, archive_changes, mount, prepare};
use std::fs::{self, File};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::fs::{MetadataExt, PermissionsExt, chown};
use std::process::{Command, Stdio};
use types::LayerFormat;

/// First id outside.
const FIRST: u32 = 300_000;

/// A user namespace that maps 65536 ids; `None`, and why, where that cannot be had.
fn namespace() -> Option<File> {
    let mut child = Command::new("unshare")
        .args(["--user", "sh", "-c", "echo; exec sleep 60"])
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    let started = child.stdout.as_mut().unwrap().read(&mut [0]).unwrap() == 1;
    let proc = format!("/proc/{}", child.id());
    let map = format!("0 {FIRST} 65536");
    let mapped = ["uid_map", "gid_map"].iter().all(|f| fs::write(format!("{proc}/{f}"), &map).is_ok());
    let file = File::open(format!("{proc}/ns/user"));
    child.kill().unwrap();
    child.wait().unwrap();
    if !started || !mapped {
        eprintln!("skipped: cannot make a user namespace with mappings");
        return None;
    }
    file.ok()
}

fn written_and_read(format: LayerFormat) {
    if !able(format) {
        return;
    }
    let Some(namespace) = namespace() else { return };
    let store = Store::new();
    let layer = store.layer(1, format, |dir| {
        for name in ["kept", "changed", "removed"] {
            fs::write(dir.join(name), name).unwrap();
            chown(dir.join(name), Some(1000), Some(1001)).unwrap();
        }
        fs::set_permissions(dir.join("changed"), fs::Permissions::from_mode(0o4755)).unwrap();
        fs::create_dir(dir.join("sub")).unwrap();
        fs::write(dir.join("sub/f"), "").unwrap();
    });
    let plan = store.plan("c", vec![layer]);
    prepare(&plan).unwrap();
    // The second time the writable directory is there already.
    for round in 0..2 {
        let options = MountOptions { user_namespace: Some(namespace.as_fd()), ..Default::default() };
        let rootfs = mount(&plan, &options).unwrap();
        let inside = |name: &str| at(&rootfs.fd(), name);
        let owner = |name: &str| fs::symlink_metadata(inside(name)).map(|m| (m.uid(), m.gid())).unwrap();
        assert_eq!(owner(""), (FIRST, FIRST));
        assert_eq!(owner("kept"), (FIRST + 1000, FIRST + 1001));
        sys::fsids::as_owner(FIRST, FIRST, || {
            if round == 1 {
                assert_eq!(owner("given"), (FIRST + 7, FIRST + 8));
                return;
            }
            fs::write(inside("new"), "new").unwrap();
            fs::write(inside("given"), "").unwrap();
            chown(inside("given"), Some(FIRST + 7), Some(FIRST + 8)).unwrap();
            // An id that the namespace has not.
            assert!(chown(inside("given"), Some(5), None).is_err());
            fs::create_dir(inside("dir")).unwrap();
            fs::hard_link(inside("new"), inside("dir/link")).unwrap();
            std::os::unix::fs::symlink("new", inside("symlink")).unwrap();
            fs::set_permissions(inside("changed"), fs::Permissions::from_mode(0o4711)).unwrap();
            fs::remove_file(inside("removed")).unwrap();
            fs::remove_dir_all(inside("sub")).unwrap();
            fs::create_dir(inside("sub")).unwrap();
            fs::rename(inside("kept"), inside("moved")).unwrap();
            fs::rename(inside("moved"), inside("kept")).unwrap();
        })
        .unwrap();
        rootfs.release().unwrap();
    }
    let upper = |name: &str| fs::symlink_metadata(plan.writable.join("upper").join(name)).unwrap();
    let owner = |name: &str| (upper(name).uid(), upper(name).gid());
    assert_eq!((owner("new"), owner("dir"), owner("symlink")), ((0, 0), (0, 0), (0, 0)));
    assert_eq!((owner("given"), owner("changed"), owner("kept")), ((7, 8), (1000, 1001), (1000, 1001)));
    assert_eq!(upper("changed").mode() & 0o7777, 0o4711);
    assert_eq!(upper("new").ino(), upper("dir/link").ino());

    // Looked at without the namespace, it is what the inside sees.
    let look = MountOptions { access: Access::ReadOnly, ..Default::default() };
    let rootfs = mount(&plan, &look).unwrap();
    let meta = fs::metadata(at(&rootfs.fd(), "given")).unwrap();
    assert_eq!((meta.uid(), meta.gid()), (7, 8));
    assert!(!at(&rootfs.fd(), "removed").exists() && !at(&rootfs.fd(), "sub/f").exists());
    drop(rootfs);
    let mut layer = Vec::new();
    archive_changes(&plan, &mut layer).unwrap();
    let mut archive = tar::Archive::new(&layer[..]);
    let mut seen = 0;
    for entry in archive.entries().unwrap() {
        let entry = entry.unwrap();
        let (uid, gid) = (entry.header().uid().unwrap(), entry.header().gid().unwrap());
        match entry.path().unwrap().to_str().unwrap() {
            "given" => assert_eq!((uid, gid), (7, 8)),
            ".wh.removed" | "new" => assert_eq!((uid, gid), (0, 0)),
            _ => continue,
        }
        seen += 1;
    }
    assert_eq!(seen, 3);
    assert_eq!(store.mounted(), 0);
}

#[test]
fn directories_as_layers() {
    written_and_read(LayerFormat::Dir);
}

#[test]
fn erofs_layers() {
    written_and_read(LayerFormat::Erofs);
}
