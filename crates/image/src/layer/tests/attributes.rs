//! Every kind of entry, as Linux sees it afterwards.

use super::support::{able, layer, same, snapshot, tar};
use std::path::Path;
use std::process::Command;

#[test]
fn every_kind_of_entry() {
    if !able() {
        return;
    }
    // user::rw- user:1000:r-- group::r-- mask::rw- other::r--
    let entry = |tag: u8, perm: u8, id: u32| [&[tag, 0, perm, 0][..], &id.to_le_bytes()].concat();
    let all = u32::MAX;
    let entries =
        [entry(1, 6, all), entry(2, 4, 1000), entry(4, 4, all), entry(16, 6, all), entry(32, 4, all)];
    let acl = [&[2, 0, 0, 0][..], &entries.concat()].concat();
    let cap = [1, 0, 0, 2, 0, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let long = format!("d/{}/{}", "n".repeat(200), "m".repeat(255));
    let target = format!("/{}", "t/".repeat(2000));
    let bytes = tar(|t| {
        t.pax(&[("mtime", b"123.000000004"), ("SCHILY.xattr.user.dir", b"\0\n=")]);
        t.entry(b'5', "./", b"", |h| h.set_mode(0o1777));
        t.dir("d/");
        t.pax(&[("mtime", b"-5.25"), ("SCHILY.xattr.security.capability", &cap), ("uid", b"4000000000")]);
        t.entry(b'0', "d/suid", b"#!", |h| h.set_mode(0o6755));
        t.pax(&[("SCHILY.xattr.system.posix_acl_access", &acl), ("SCHILY.xattr.user.big", &[7; 3000])]);
        t.entry(b'0', "acl", b"x", |h| h.set_mode(0o664));
        t.file(&long, b"long");
        t.symlink("d/link", "../nowhere");
        t.symlink("d/long-link", &target);
        t.hard_link("second", "d/suid");
        t.hard_link("d/third", "/d/../second");
        t.hard_link("link-to-link", "d/link");
        t.entry(b'3', "char", b"", |h| {
            h.set_device_major(5).unwrap();
            h.set_device_minor(300).unwrap();
        });
        t.entry(b'4', "block", b"", |h| h.set_device_major(8).unwrap());
        t.entry(b'6', "fifo", b"", |h| h.set_uid(7));
        t.file("empty", b"");
        t.file("block-sized", &[1; 4096]);
        t.file("large", &[2; 700_001]);
        t.entry(b'7', "contiguous", b"7", |_| {});
    });
    let seen = layer(&bytes);
    let get = |path: &str| seen.get(Path::new(path)).unwrap_or_else(|| panic!("{path}: {seen:#?}")).as_str();
    // Its root says that something is implied: the directory of `long`.
    let mark = "trusted.overlay.dhow.implied=[121]";
    assert_eq!(get(""), format!("41777 0:0 123.000000004 links=0 {mark} user.dir=[0, 10, 61]"));
    assert!(get(&format!("d/{}", "n".repeat(200))).ends_with(mark) && !get("d").contains(mark));
    assert!(
        get("d/suid").starts_with("106755 4000000000:0 -6.750000000 links=3 size=2"),
        "{}",
        get("d/suid")
    );
    assert!(get("d/suid").contains(&format!(" security.capability={cap:?}")));
    assert_eq!(get("second"), get("d/suid"));
    assert_eq!(get("d/third"), get("d/suid"));
    assert!(get("acl").contains(&format!("system.posix_acl_access={acl:?}")));
    assert!(get("acl").contains("user.big="));
    assert!(get(&long).contains("size=4"));
    assert!(get("link-to-link").ends_with("links=2 -> ../nowhere"));
    assert!(get("d/long-link").ends_with(&target));
    assert!(get("char").starts_with("20644 ") && get("char").contains("dev=10052c"), "{}", get("char"));
    assert!(get("block").starts_with("60644 ") && get("block").contains("dev=800"));
    assert!(get("fifo").starts_with("10644 7:0"));
    assert!(get("large").contains("size=700001"));
    assert!(get("contiguous").contains("size=1"));
}

#[test]
fn later_entries_replace_earlier_ones() {
    if !able() {
        return;
    }
    let seen = layer(&tar(|t| {
        t.file("a", b"one");
        t.hard_link("b", "a");
        t.file("a", b"second");
        t.dir("d");
        t.file("d/f", b"");
        t.entry(b'5', "d", b"", |h| h.set_mode(0o700));
        t.dir("gone");
        t.hard_link("gone/a", "a");
        t.file("gone", b"a file now");
        t.hard_link("b", "b");
        t.file("deep/in/nowhere", b"");
        t.symlink("lib", "usr/lib");
        t.file("lib/through", b"");
        t.symlink("up", "../../deep/./in/");
        t.file("up/and/away", b"");
    }));
    let get = |path: &str| seen.get(Path::new(path)).unwrap_or_else(|| panic!("{path}: {seen:#?}")).as_str();
    assert!(get("a").contains("links=1 size=6"));
    assert!(get("b").contains("links=1 size=3"));
    assert!(get("d").starts_with("40700"));
    assert!(get("d/f").contains("size=0"));
    assert!(get("gone").starts_with("100644"));
    assert_eq!(
        get("deep/in"),
        "40755 0:0 0.000000000 links=0 trusted.overlay.dhow.implied=[121]",
        "marked, as the tar does not tell of it"
    );
    assert!(!get("d").contains("implied"));
    assert!(get("usr/lib/through").contains("size=0"));
    assert!(get("deep/in/and/away").contains("size=0"));
    assert!(get("lib").starts_with("120777"), "{}", get("lib"));
}

#[test]
fn directories_of_every_size() {
    if !able() {
        return;
    }
    let seen = layer(&tar(|t| {
        for i in 0..3000 {
            t.file(&format!("many/{i}-{}", "x".repeat(i % 80)), b"");
        }
        for i in 0..50 {
            t.file(&format!("{i}-{}", "long".repeat(20)), b"in the root");
        }
        // Names on both sides of "." and "..".
        for name in ["!", "-", "...", "..a", ".a", "/./~", "\u{1}"] {
            t.file(&format!("odd/{name}"), b"");
        }
    }));
    assert_eq!(seen.len(), 1 + 3001 + 50 + 8);
}

#[test]
fn sparse_files_of_every_form() {
    if !able() {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    let tree = tmp.path().join("tree");
    std::fs::create_dir(&tree).unwrap();
    use std::os::unix::fs::FileExt;
    for (name, size, pieces) in [
        ("hole", 1 << 26, vec![]),
        ("end", 1_000_001, vec![(1_000_000, 1)]),
        ("start", 30_000_000, vec![(0, 5000)]),
        ("many", 3_000_000, (0..100).map(|i| (i * 30_000 + 13, 77)).collect()),
    ] {
        let file = std::fs::File::create(tree.join(name)).unwrap();
        file.set_len(size).unwrap();
        for (offset, length) in pieces {
            file.write_all_at(&vec![9; length], offset).unwrap();
        }
    }
    for form in [
        &["--format=gnu"][..],
        &["--format=posix", "--sparse-version=0.0"],
        &["--format=posix", "--sparse-version=0.1"],
        &["--format=posix", "--sparse-version=1.0"],
    ] {
        let out = Command::new("tar").args(form).args(["-S", "-cf", "-", "-C"]).arg(&tree).arg(".").output();
        let Ok(out) = out else {
            println!("skipped: no tar here");
            return;
        };
        assert!(out.stdout.len() < 1_000_000, "tar found no holes");
        let seen = layer(&out.stdout);
        for (path, text) in snapshot(&tree) {
            let strip = |s: &str| s.split(" size=").nth(1).unwrap_or("").to_owned();
            assert_eq!(strip(&text), strip(&seen[&path]), "{form:?} {path:?}");
        }
    }
}

#[test]
fn as_tar_unpacks_it() {
    if !able() || Command::new("tar").arg("--version").output().is_err() {
        return;
    }
    let tmp = tempfile::tempdir().unwrap();
    // A tree that every Linux has, with whatever is in it.
    let made = Command::new("tar")
        .args(["--format=posix", "--xattrs", "--xattrs-include=*", "-cf"])
        .arg(tmp.path().join("t.tar"))
        .args(["-C", "/", "etc"])
        .output()
        .unwrap();
    println!("{}", String::from_utf8_lossy(&made.stderr));
    let out = tmp.path().join("out");
    std::fs::create_dir(&out).unwrap();
    let unpacked = Command::new("tar")
        .args(["--xattrs", "--xattrs-include=*", "--numeric-owner", "-xpf"])
        .arg(tmp.path().join("t.tar"))
        .arg("-C")
        .arg(&out)
        .status()
        .unwrap();
    assert!(unpacked.success());
    let (mut seen, mut wanted) = (layer(&std::fs::read(tmp.path().join("t.tar")).unwrap()), snapshot(&out));
    // The tar says nothing of the root.
    seen.remove(Path::new(""));
    wanted.remove(Path::new(""));
    same(&seen, &wanted);
}
