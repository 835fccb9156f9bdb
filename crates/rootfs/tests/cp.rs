//! Files in and out beneath a root that is hostile.

mod common;

use dhow_rootfs::{RootfsError, UnpackOptions, copy_up, export, pack, stat, unpack};
use proptest::prelude::*;
use rustix::fs::XattrFlags;
use std::fs;
use std::os::unix::fs::{MetadataExt, PermissionsExt, symlink};
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering};
use sys::Root;
use tempfile::TempDir;

fn root() -> bool {
    let root = rustix::process::geteuid().is_root();
    if !root {
        eprintln!("skipped: owners need root");
    }
    root
}

/// A directory with every kind of file that a tar holds.
fn fill(dir: &Path) {
    fs::create_dir_all(dir.join("sub/deeper")).unwrap();
    fs::write(dir.join("sub/file"), vec![7u8; 700_001]).unwrap();
    fs::write(dir.join("sub/empty"), "").unwrap();
    fs::hard_link(dir.join("sub/file"), dir.join("sub/zhard")).unwrap();
    symlink("/etc/passwd", dir.join("sub/absolute")).unwrap();
    symlink("nowhere", dir.join("dangling")).unwrap();
    let long = "n".repeat(240);
    fs::write(dir.join(&long), "long").unwrap();
    symlink("t".repeat(300), dir.join("longlink")).unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.join("null"),
        rustix::fs::FileType::CharacterDevice,
        rustix::fs::Mode::from_raw_mode(0o666),
        rustix::fs::makedev(1, 3),
    )
    .unwrap();
    rustix::fs::mknodat(
        rustix::fs::CWD,
        dir.join("fifo"),
        rustix::fs::FileType::Fifo,
        rustix::fs::Mode::from_raw_mode(0o644),
        0,
    )
    .unwrap();
    rustix::fs::setxattr(dir.join("sub/empty"), "user.k", b"v\0v", XattrFlags::empty()).unwrap();
    rustix::fs::setxattr(dir.join("sub"), "user.d", b"", XattrFlags::empty()).unwrap();
    std::os::unix::fs::chown(dir.join("sub/empty"), Some(12), Some(4_000_000)).unwrap();
    fs::set_permissions(dir.join("sub/empty"), fs::Permissions::from_mode(0o6751)).unwrap();
    fs::set_permissions(dir.join("sub"), fs::Permissions::from_mode(0o1711)).unwrap();
    let _ = std::os::unix::net::UnixListener::bind(dir.join("socket")).unwrap();
}

fn same(a: &Path, b: &Path) {
    let list = |dir: &Path| {
        let mut names: Vec<_> =
            fs::read_dir(dir).unwrap().map(|e| e.unwrap().file_name()).filter(|n| n != "socket").collect();
        names.sort();
        names
    };
    assert_eq!(list(a), list(b));
    for name in list(a) {
        let (x, y) = (a.join(&name), b.join(&name));
        let (m, n) = (fs::symlink_metadata(&x).unwrap(), fs::symlink_metadata(&y).unwrap());
        let all = |m: &fs::Metadata| {
            (m.mode(), m.uid(), m.gid(), m.rdev(), (m.mtime(), m.mtime_nsec()), m.is_dir() || m.nlink() > 1)
        };
        assert_eq!(all(&m), all(&n), "{}", x.display());
        if m.is_dir() {
            same(&x, &y);
        } else if m.is_symlink() {
            assert_eq!(fs::read_link(&x).unwrap(), fs::read_link(&y).unwrap());
        } else if m.is_file() {
            assert_eq!(fs::read(&x).unwrap(), fs::read(&y).unwrap());
        }
        if m.is_file() || m.is_dir() {
            let attrs = |p: &Path| {
                let mut list = [0; 400];
                let n = rustix::fs::listxattr(p, &mut list[..]).unwrap();
                list[..n].to_vec()
            };
            assert_eq!(attrs(&x), attrs(&y), "{}", x.display());
        }
    }
}

#[test]
fn a_tree_goes_out_and_in() {
    if !root() {
        return;
    }
    let (a, b) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fill(a.path());
    let mut tar = Vec::new();
    export(&Root::open(a.path()).unwrap(), &mut tar).unwrap();
    unpack(&Root::open(b.path()).unwrap(), Path::new("/"), &mut &tar[..], &UnpackOptions::default()).unwrap();
    same(a.path(), b.path());

    // And once more over it.
    unpack(&Root::open(b.path()).unwrap(), Path::new("/"), &mut &tar[..], &UnpackOptions::default()).unwrap();
    same(a.path(), b.path());

    let c = TempDir::new().unwrap();
    let mut tar = Vec::new();
    pack(&Root::open(a.path()).unwrap(), Path::new("/sub"), None, &mut tar).unwrap();
    let owner = UnpackOptions { owner: Some((5, 6)), ..Default::default() };
    unpack(&Root::open(c.path()).unwrap(), Path::new("/"), &mut &tar[..], &owner).unwrap();
    let meta = fs::metadata(c.path().join("sub/empty")).unwrap();
    assert_eq!((meta.uid(), meta.gid(), meta.len()), (5, 6, 0));
}

#[test]
fn an_image_fills_a_new_volume_once() {
    if !root() {
        return;
    }
    let (a, b) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::create_dir(a.path().join("data")).unwrap();
    fill(&a.path().join("data"));
    symlink("/data", a.path().join("link")).unwrap();
    let image = Root::open(a.path()).unwrap();
    assert!(!copy_up(&image, Path::new("/nothing"), b.path()).unwrap());
    assert!(copy_up(&image, Path::new("/link"), b.path()).unwrap());
    same(&a.path().join("data"), b.path());
    assert!(!copy_up(&image, Path::new("/data"), b.path()).unwrap());
}

#[test]
fn names_and_stats() {
    let a = TempDir::new().unwrap();
    fs::create_dir_all(a.path().join("d/e")).unwrap();
    fs::write(a.path().join("d/f"), "12345").unwrap();
    fs::set_permissions(a.path().join("d/f"), fs::Permissions::from_mode(0o4640)).unwrap();
    symlink("/d/../d", a.path().join("l")).unwrap();
    symlink("../../x/y", a.path().join("d/dangling")).unwrap();
    let root = Root::open(a.path()).unwrap();
    let f = stat(&root, Path::new("/d/f")).unwrap();
    assert_eq!((f.name.as_str(), f.size, f.mode, f.link_target.as_str()), ("f", 5, 1 << 23 | 0o640, ""));
    let l = stat(&root, Path::new("l")).unwrap();
    assert_eq!((l.name.as_str(), l.mode >> 27, l.link_target.as_str()), ("l", 1, "/d"));
    assert!(stat(&root, Path::new("l/")).unwrap().is_dir());
    assert_eq!(stat(&root, Path::new("l/")).unwrap().name, "l");
    assert_eq!(stat(&root, Path::new("/d/dangling")).unwrap().link_target, "/x/y");
    assert_eq!(stat(&root, Path::new("/")).unwrap().name, "/");
    let e = stat(&root, Path::new("/no/thing")).unwrap_err();
    assert!(matches!(e, RootfsError::NoSuchPath { .. }), "{e}");
    assert!(matches!(stat(&root, Path::new("/d/f/")).unwrap_err(), RootfsError::NotADirectory { .. }));

    let names = |path: &str, rename: Option<&str>| {
        let mut tar = Vec::new();
        pack(&root, Path::new(path), rename.map(std::ffi::OsStr::new), &mut tar).unwrap();
        let names: Vec<_> = tar::Archive::new(&tar[..])
            .entries()
            .unwrap()
            .map(|e| String::from_utf8(e.unwrap().path_bytes().into_owned()).unwrap())
            .collect();
        names
    };
    assert_eq!(names("/d", None), ["d/", "d/dangling", "d/e/", "d/f"]);
    assert_eq!(names("/d/.", None), ["./", "./dangling", "./e/", "./f"]);
    assert_eq!(names("/d/e", Some("new")), ["new/"]);
    assert_eq!(names("/l", None), ["l"]);
    assert_eq!(names("/l/", None)[0], "l/");
}

fn tar_of(entries: &[(tar::EntryType, &str, &str, &[u8])]) -> Vec<u8> {
    let mut out = Vec::new();
    for (kind, name, link, content) in entries {
        let mut header = tar::Header::new_ustar();
        header.set_entry_type(*kind);
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.as_mut_bytes()[157..157 + link.len()].copy_from_slice(link.as_bytes());
        header.set_size(content.len() as u64);
        header.set_mode(0o644);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(1);
        header.set_cksum();
        out.extend_from_slice(header.as_bytes());
        out.extend_from_slice(content);
        out.resize(out.len().next_multiple_of(512), 0);
    }
    out.resize(out.len() + 1024, 0);
    out
}

#[test]
fn what_leads_outside_stays_inside_or_is_refused() {
    use tar::EntryType::{Link, Regular, Symlink};
    let tmp = TempDir::new().unwrap();
    let inside = tmp.path().join("root");
    fs::create_dir_all(inside.join("dest")).unwrap();
    fs::write(tmp.path().join("secret"), "safe").unwrap();
    let root = Root::open(&inside).unwrap();
    let go = |tar: Vec<u8>| unpack(&root, Path::new("/dest"), &mut &tar[..], &UnpackOptions::default());
    for bad in ["../x", "a/../../x", "/../x"] {
        let e = go(tar_of(&[(Regular, bad, "", b"evil")])).unwrap_err();
        assert!(matches!(e, RootfsError::Breakout { .. }), "{bad}: {e}");
    }
    let e = go(tar_of(&[(Link, "h", "../../secret", b"")])).unwrap_err();
    assert!(matches!(e, RootfsError::Breakout { .. }), "{e}");
    // Through a link of the tar itself, by an absolute and by a climbing one.
    let up = tmp.path().to_str().unwrap();
    go(tar_of(&[(Symlink, "l", "../../../../..", b""), (Regular, "l/secret", "", b"evil")])).unwrap();
    go(tar_of(&[(Symlink, "m", up, b""), (Regular, "m/secret", "", b"evil")])).ok();
    go(tar_of(&[(Symlink, "n", "../../secret", b""), (Regular, "n", "", b"new")])).unwrap();
    go(tar_of(&[(Symlink, "o", "../../../secret", b""), (Link, "p", "o", b"")])).unwrap();
    assert_eq!(fs::read(tmp.path().join("secret")).unwrap(), b"safe");
    assert_eq!(fs::read(inside.join("secret")).unwrap(), b"evil");
    assert_eq!(fs::read(inside.join("dest/n")).unwrap(), b"new");
    assert!(inside.join("dest/p").is_symlink());

    let mut cut = tar_of(&[(Regular, "cut", "", &[1; 5000])]);
    cut.truncate(2000);
    assert!(matches!(go(cut).unwrap_err(), RootfsError::Tar { .. }));
    let mut huge = tar_of(&[(Regular, "huge", "", b"")]);
    let mut header = tar::Header::from_byte_slice(&huge[..512]).clone();
    header.set_size(1 << 60);
    header.set_cksum();
    huge[..512].copy_from_slice(header.as_bytes());
    let e = go(huge).unwrap_err();
    assert_eq!(types::Kinded::kind(&e), types::ErrorKind::Exhausted, "{e}");
}

#[test]
fn directories_are_not_overwritten_where_that_is_asked() {
    use tar::EntryType::{Directory, Regular};
    let tmp = TempDir::new().unwrap();
    fs::create_dir(tmp.path().join("d")).unwrap();
    fs::write(tmp.path().join("d/in"), "").unwrap();
    fs::write(tmp.path().join("f"), "").unwrap();
    let root = Root::open(tmp.path()).unwrap();
    let go = |tar: Vec<u8>, no| {
        let options = UnpackOptions { no_overwrite_dir_non_dir: no, ..Default::default() };
        unpack(&root, Path::new("/"), &mut &tar[..], &options)
    };
    let e = go(tar_of(&[(Regular, "d", "", b"x")]), true).unwrap_err();
    assert_eq!(e.to_string(), "cannot overwrite directory d with non-directory \"d\"");
    let e = go(tar_of(&[(Directory, "f", "", b"")]), true).unwrap_err();
    assert_eq!(e.to_string(), "cannot overwrite non-directory f with directory \"f\"");
    go(tar_of(&[(Regular, "d", "", b"x"), (Directory, "f", "", b"")]), false).unwrap();
    assert!(tmp.path().join("d").is_file() && tmp.path().join("f").is_dir());
}

/// CVE-2018-15664: a container that swaps a directory for a link to `/` while files are copied.
#[test]
fn a_swapped_link_never_leads_outside() {
    let tmp = TempDir::new().unwrap();
    let inside = tmp.path().join("root");
    let outside = tmp.path().join("outside");
    fs::create_dir_all(inside.join("a")).unwrap();
    fs::create_dir(&outside).unwrap();
    fs::write(outside.join("f"), "TOP SECRET").unwrap();
    fs::write(inside.join("a/f"), "inside").unwrap();
    symlink(&outside, inside.join("b")).unwrap();
    let done = AtomicBool::new(false);
    let mut seen = [0; 2];
    let mut leaked = false;
    std::thread::scope(|scope| {
        scope.spawn(|| {
            let here =
                rustix::fs::open(&inside, rustix::fs::OFlags::PATH, rustix::fs::Mode::empty()).unwrap();
            while !done.load(Ordering::Relaxed) {
                let flags = rustix::fs::RenameFlags::EXCHANGE;
                rustix::fs::renameat_with(&here, "a", &here, "b", flags).unwrap();
            }
        });
        let root = Root::open(&inside).unwrap();
        let tar = tar_of(&[(tar::EntryType::Regular, "a/g", "", b"copied")]);
        for _ in 0..3000 {
            for path in ["/a/f", "/a/", "/a"] {
                let mut out = Vec::new();
                let packed = pack(&root, Path::new(path), None, &mut out);
                seen[usize::from(packed.is_ok())] += 1;
                leaked |= String::from_utf8_lossy(&out).contains("TOP SECRET");
            }
            let _ = unpack(&root, Path::new("/"), &mut &tar[..], &UnpackOptions::default());
        }
        done.store(true, Ordering::Relaxed);
    });
    assert!(!leaked && !outside.join("g").exists());
    assert!(seen[1] > 0, "{seen:?}");
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(300))]
    /// No stream of bytes makes it panic or write outside.
    #[test]
    fn damaged_tars_do_no_harm(flips in proptest::collection::vec((0usize..6000, any::<u8>()), 1..12)) {
        use tar::EntryType::{Directory, Link, Regular, Symlink};
        let tmp = TempDir::new().unwrap();
        fs::create_dir(tmp.path().join("root")).unwrap();
        let mut tar = tar_of(&[
            (Directory, "d", "", b""), (Regular, "d/f", "", &[3; 900]), (Symlink, "s", "d", b""),
            (Link, "h", "d/f", b""), (Regular, "s/g", "", b"x"),
        ]);
        for (at, byte) in flips {
            let len = tar.len();
            tar[at % len] = byte;
        }
        let root = Root::open(tmp.path().join("root")).unwrap();
        let _ = unpack(&root, Path::new("/"), &mut &tar[..], &UnpackOptions::default());
        prop_assert_eq!(fs::read_dir(tmp.path()).unwrap().count(), 1);
    }
}

/// A tar of these entries: name, type, target of a link.
fn named_tar(entries: &[(&str, tar::EntryType, &str)]) -> Vec<u8> {
    let mut out = tar::Builder::new(Vec::new());
    for (name, kind, link) in entries {
        let mut header = tar::Header::new_ustar();
        header.as_mut_bytes()[..name.len()].copy_from_slice(name.as_bytes());
        header.set_entry_type(*kind);
        header.set_mode(0o755);
        header.set_uid(0);
        header.set_gid(0);
        header.set_mtime(0);
        header.set_size(0);
        if !link.is_empty() {
            header.set_link_name_literal(link).unwrap();
        }
        header.set_cksum();
        out.append(&header, std::io::empty()).unwrap();
    }
    out.into_inner().unwrap()
}

#[test]
fn a_tar_that_may_have_one_name_has_no_other() {
    use tar::EntryType::{Directory, Link, Regular, Symlink};
    let options = UnpackOptions { only: Some("x".into()), ..Default::default() };
    let unpacked = |entries: &[(&str, tar::EntryType, &str)]| {
        let dir = TempDir::new().unwrap();
        fs::write(dir.path().join("mine"), "mine").unwrap();
        let root = Root::open(dir.path()).unwrap();
        let done = unpack(&root, Path::new("/"), &mut &named_tar(entries)[..], &options);
        assert_eq!(fs::read(dir.path().join("mine")).unwrap(), b"mine");
        let mut names: Vec<_> = fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
        names.sort();
        assert!(names == ["mine"] || names == ["mine", "x"], "{names:?}");
        done
    };
    unpacked(&[("x", Regular, "")]).unwrap();
    unpacked(&[("x/", Directory, ""), ("x/y", Regular, ""), ("x/z", Link, "x/y")]).unwrap();
    for hostile in [
        &[("mine", Regular, "")][..],
        &[("./", Directory, "")],
        &[("y/x", Regular, "")],
        &[("x/y", Regular, "")],
        &[("x", Symlink, "."), ("x/mine", Regular, "")],
        &[("x/", Directory, ""), ("x", Symlink, "."), ("x/mine", Regular, "")],
        &[("x/", Directory, ""), ("x/../mine", Regular, "")],
        &[("x/", Directory, ""), ("x/y", Symlink, ".."), ("x/y/mine", Regular, "")],
        &[("x/", Directory, ""), ("x/y", Link, "mine")],
    ] {
        assert!(unpacked(hostile).is_err(), "{hostile:?}");
    }
}

/// What a start leaves that is killed midway, or has no room.
#[test]
fn a_volume_that_was_left_half_full_is_filled_anew() {
    if !root() {
        return;
    }
    let (a, b) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    fs::create_dir_all(a.path().join("data/full/deeper")).unwrap();
    fs::write(a.path().join("data/full/deeper/file"), "whole").unwrap();
    let image = Root::open(a.path()).unwrap();
    let marked =
        |dir: &Path| rustix::fs::getxattr(dir, "trusted.overlay.dhow.filling", &mut [0u8; 1][..]).is_ok();
    rustix::fs::setxattr(b.path(), "trusted.overlay.dhow.filling", b"y", XattrFlags::empty()).unwrap();
    fs::create_dir_all(b.path().join("full/old")).unwrap();
    fs::write(b.path().join("full/old/half"), "ha").unwrap();
    assert!(dhow_rootfs::is_unfilled(b.path()));
    assert!(copy_up(&image, Path::new("/data"), b.path()).unwrap());
    assert!(!marked(b.path()) && !b.path().join("full/old").exists());
    assert_eq!(fs::read(b.path().join("full/deeper/file")).unwrap(), b"whole");
    assert!(!dhow_rootfs::is_unfilled(b.path()));
    assert!(!copy_up(&image, Path::new("/data"), b.path()).unwrap());
}

/// A container that has the volume already exchanges a directory that is being filled for a link.
#[test]
fn a_hard_link_of_an_image_never_leads_outside_of_the_volume() {
    if !root() {
        return;
    }
    let top = TempDir::new().unwrap();
    let [image, volume, outside] = ["image", "volume", "outside"].map(|name| top.path().join(name));
    for dir in [&image.join("a"), &volume, &outside] {
        fs::create_dir_all(dir).unwrap();
    }
    // The first name of each pair is in a directory, and its second comes after many others.
    for n in 0..150 {
        let first = image.join(format!("a/{n:03}"));
        fs::write(&first, "the image's").unwrap();
        fs::hard_link(&first, image.join(format!("z{n:03}"))).unwrap();
        fs::write(outside.join(format!("{n:03}")), "the host's").unwrap();
    }
    let (swapping, dir, mut leaked) = (AtomicBool::new(true), volume.join("a"), false);
    std::thread::scope(|scope| {
        scope.spawn(|| {
            while swapping.load(Ordering::Relaxed) {
                // When the links begin; whatever of it fails because the directory is just removed.
                let begun = fs::symlink_metadata(volume.join("z000")).is_ok();
                if begun && fs::rename(&dir, volume.join("b")).is_ok() && symlink(&outside, &dir).is_ok() {
                    std::thread::sleep(std::time::Duration::from_micros(50));
                    let _ = fs::remove_file(&dir);
                    let _ = fs::rename(volume.join("b"), &dir);
                }
            }
        });
        let from = Root::open(&image).unwrap();
        for _ in 0..4 {
            let _ = copy_up(&from, Path::new("/"), &volume);
            for entry in fs::read_dir(&volume).unwrap().flatten() {
                if entry.file_type().is_ok_and(|kind| kind.is_file()) {
                    leaked |= fs::read(entry.path()).is_ok_and(|text| text == b"the host's");
                    let _ = fs::remove_file(entry.path());
                }
            }
            let _ = fs::remove_dir_all(volume.join("b"));
            let _ = fs::remove_dir_all(&dir);
        }
        swapping.store(false, Ordering::Relaxed);
    });
    assert!(!leaked);
    assert_eq!(fs::read_dir(&outside).unwrap().count(), 150);
}

#[test]
fn holes_stay_holes() {
    let (a, b) = (TempDir::new().unwrap(), TempDir::new().unwrap());
    let file = fs::File::create(a.path().join("f")).unwrap();
    file.set_len(3 << 30).unwrap();
    std::os::unix::fs::FileExt::write_all_at(&file, b"middle", 1 << 30).unwrap();
    assert!(copy_up(&Root::open(a.path()).unwrap(), Path::new("/"), b.path()).unwrap());
    let copy = fs::File::open(b.path().join("f")).unwrap();
    let meta = copy.metadata().unwrap();
    assert!(meta.len() == 3 << 30 && meta.blocks() * 512 < 1 << 20, "{} blocks", meta.blocks());
    let mut found = [0; 8];
    std::os::unix::fs::FileExt::read_exact_at(&copy, &mut found, (1 << 30) - 1).unwrap();
    assert_eq!(&found, b"\0middle\0");
}

#[test]
fn sizes_that_overflow_and_sparse_files_are_refused() {
    let dir = TempDir::new().unwrap();
    let root = Root::open(dir.path()).unwrap();
    let unpack_this =
        |bytes: &[u8]| unpack(&root, Path::new("/"), &mut &bytes[..], &UnpackOptions::default());
    let mut header = tar::Header::new_ustar();
    header.set_path("d/").unwrap();
    header.set_entry_type(tar::EntryType::Directory);
    header.set_mode(0o755);
    header.as_mut_bytes()[124..136].fill(0xff);
    header.as_mut_bytes()[124] = 0x80;
    header.set_cksum();
    assert!(unpack_this(&[&header.as_bytes()[..], &[0; 4096]].concat()).is_err());

    let mut tar = tar::Builder::new(Vec::new());
    tar.append_pax_extensions([("GNU.sparse.major", &b"1"[..])]).unwrap();
    let mut header = tar::Header::new_ustar();
    header.set_size(3);
    header.set_mode(0o644);
    tar.append_data(&mut header, "GNUSparseFile.0/f", &b"map"[..]).unwrap();
    let e = unpack_this(&tar.into_inner().unwrap()).unwrap_err();
    assert!(format!("{e}: {:?}", std::error::Error::source(&e)).contains("sparse"), "{e}");
}
