//! Whiteouts and opaque directories, and attributes that would fake them.

use super::support::{able, layer, tar};
use std::path::Path;

#[test]
fn whiteouts_hide_lower_layers_only() {
    if !able() {
        return;
    }
    let seen = layer(&tar(|t| {
        t.file(".wh.gone", b"");
        t.file("d/.wh.gone", b"");
        t.file("d/.wh..wh..opq", b"");
        t.file(".wh..wh.plnk/1.2", b"");
        t.file(".wh..wh.aufs", b"");
        // Named by this very layer, before or after.
        t.file("before", b"");
        t.file(".wh.before", b"");
        t.file(".wh.after", b"");
        t.file("after", b"");
        t.dir("dir-before");
        t.file(".wh.dir-before", b"");
        t.file(".wh.dir-after", b"");
        t.dir("dir-after");
        t.file(".wh.implied", b"");
        t.file("implied/file", b"");
    }));
    let get = |path: &str| seen.get(Path::new(path)).map(String::as_str);
    let opaque = |path: &str| get(path).unwrap().ends_with("trusted.overlay.opaque=[121]");
    assert_eq!(get("gone"), Some("whiteout"));
    assert_eq!(get("d/gone"), Some("whiteout"));
    assert!(opaque("d") && opaque("dir-before") && opaque("dir-after") && opaque("implied"));
    assert!(get("before").unwrap().starts_with("100644") && get("after").unwrap().starts_with("100644"));
    assert_eq!(seen.len(), 10, "{seen:#?}");
}

#[test]
fn a_tar_cannot_speak_to_overlayfs() {
    if !able() {
        return;
    }
    let seen = layer(&tar(|t| {
        let all: &[(&str, &[u8])] = &[
            ("SCHILY.xattr.trusted.overlay.opaque", b"y"),
            ("SCHILY.xattr.trusted.overlay.redirect", b"/etc"),
            ("SCHILY.xattr.trusted.overlay.metacopy", b""),
            ("SCHILY.xattr.trusted.overlay.overlay.opaque", b"y"),
            ("SCHILY.xattr.user.overlay.opaque", b"y"),
            ("SCHILY.xattr.system.nonsense", b"1"),
            ("SCHILY.xattr.nonsense", b"1"),
            ("SCHILY.xattr.user.", b"1"),
            ("SCHILY.xattr.trusted.kept", b"1"),
        ];
        t.pax(all);
        t.dir("d");
        t.pax(all);
        t.file("f", b"");
        t.pax(&[("SCHILY.xattr.user.on-a-link", b"1"), ("SCHILY.xattr.trusted.link", b"1")]);
        t.symlink("l", "f");
    }));
    assert!(seen[Path::new("d")].ends_with("links=0 trusted.kept=[49]"), "{seen:#?}");
    assert!(seen[Path::new("f")].ends_with("\" trusted.kept=[49]"), "{seen:#?}");
    assert!(seen[Path::new("l")].ends_with("-> f trusted.link=[49]"), "{seen:#?}");
}
