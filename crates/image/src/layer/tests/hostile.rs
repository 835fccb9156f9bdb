//! Tars that lie, escape or ask for too much.

use super::super::{LayerError, LayerLimits};
use super::support::{Tar, refused, tar};
use types::{ErrorKind, Kinded};

fn error(fill: impl FnOnce(&mut Tar)) -> LayerError {
    refused(&tar(fill), &LayerLimits::default())
}

#[test]
fn nothing_leads_outside() {
    for path in ["../x", "a/../../x", "/..", "./../etc/passwd"] {
        assert!(matches!(error(|t| t.file(path, b"")), LayerError::Escapes { .. }), "{path}");
        assert!(matches!(error(|t| t.hard_link("l", path)), LayerError::Escapes { .. }), "{path}");
    }
    for fill in [
        |t: &mut Tar| t.hard_link("l", "nowhere"),
        |t: &mut Tar| t.hard_link("l", "/"),
        |t: &mut Tar| {
            t.symlink("etc", "/etc");
            t.hard_link("l", "etc/passwd");
        },
    ] {
        assert!(matches!(error(fill), LayerError::MissingTarget { .. }));
    }
}

#[test]
fn impossible_entries_are_refused() {
    let long = "n".repeat(256);
    let deep = "d/".repeat(2048);
    for (what, fill) in [
        (
            "a file as a parent",
            Box::new(|t: &mut Tar| {
                t.file("f", b"");
                t.file("f/x", b"");
            }) as Box<dyn FnOnce(&mut Tar)>,
        ),
        (
            "links in a circle",
            Box::new(|t: &mut Tar| {
                t.symlink("a", "b");
                t.symlink("b", "a");
                t.file("a/x", b"");
            }),
        ),
        ("a long name", Box::new(move |t: &mut Tar| t.file(&long, b""))),
        ("a long path", Box::new(move |t: &mut Tar| t.file(&deep, b""))),
        ("no name", Box::new(|t: &mut Tar| t.file("", b""))),
        ("a root that is a file", Box::new(|t: &mut Tar| t.file("./", b"x"))),
        ("a link to nothing", Box::new(|t: &mut Tar| t.symlink("l", ""))),
        ("a whiteout of nothing", Box::new(|t: &mut Tar| t.file("d/.wh.", b""))),
        ("a whiteout of ..", Box::new(|t: &mut Tar| t.file(".wh...", b""))),
        ("an unknown type", Box::new(|t: &mut Tar| t.entry(b'Z', "x", b"", |_| {}))),
        (
            "a link to a directory",
            Box::new(|t: &mut Tar| {
                t.dir("d");
                t.hard_link("l", "d");
            }),
        ),
        (
            "a sparse map of nothing",
            Box::new(|t: &mut Tar| {
                t.pax(&[("GNU.sparse.map", b"0,5,3,5"), ("GNU.sparse.size", b"10")]);
                t.file("f", b"0123456789");
            }),
        ),
    ] {
        let error = error(fill);
        assert!(matches!(error, LayerError::Entry { .. }), "{what}: {error:?}");
        assert_eq!(error.kind(), ErrorKind::Invalid);
    }
}

#[test]
fn damage_is_found() {
    let whole = tar(|t| {
        t.file("a", &[7; 3000]);
        t.file("b", b"");
    });
    for cut in [1, 511, 513, 1000, 3583, 3585, 4096] {
        let error = refused(&whole[..cut], &LayerLimits::default());
        assert!(matches!(error, LayerError::Truncated { .. }), "{cut}: {error:?}");
    }
    for at in [0, 100, 124, 136, 156, 257] {
        let mut bad = whole.clone();
        bad[at] ^= 0x11;
        assert!(matches!(refused(&bad, &LayerLimits::default()), LayerError::Damaged { .. }), "{at}");
    }
    for fill in [
        |t: &mut Tar| t.pax(&[("path", b"x")]),
        |t: &mut Tar| t.entry(b'x', "p", b"not a record", |_| {}),
        |t: &mut Tar| t.entry(b'0', "f", b"", |h| h.as_old_mut().size = *b"nonsense\0\0\0\0"),
        |t: &mut Tar| t.entry(b'3', "f", b"", |h| h.as_ustar_mut().unwrap().dev_major = *b"7777777\0"),
        |t: &mut Tar| t.entry(b'0', "f", b"", |h| h.as_old_mut().uid = [0xff; 8]),
    ] {
        let error = error(fill);
        assert!(matches!(error, LayerError::Damaged { .. }), "{error:?}");
        assert_eq!(error.kind(), ErrorKind::Corrupt);
    }
}

#[test]
fn limits_end_bombs() {
    let limits = LayerLimits { max_content: 10_000, max_entries: 10, max_tar: 100_000 };
    let claims = |size: u64| {
        tar(|t| {
            t.pax(&[("size", size.to_string().as_bytes())]);
            t.file("f", b"");
        })
    };
    let sparse = |size: u64| {
        tar(|t| {
            t.pax(&[("GNU.sparse.map", b"0,1"), ("GNU.sparse.size", size.to_string().as_bytes())]);
            t.file("f", b"1");
        })
    };
    for (what, bytes) in [
        ("content", tar(|t| (0..3).for_each(|i| t.file(&format!("{i}"), &[0; 4000])))),
        ("one large file", claims(10_001)),
        ("an absurd size", claims(u64::MAX)),
        ("a size beyond the largest file", claims(1 << 63)),
        ("a sparse file", sparse(1 << 40)),
        ("entries", tar(|t| (0..11).for_each(|i| t.file(&format!("{i}"), b"")))),
        ("parents nobody asked for", tar(|t| t.file("1/2/3/4/5/6/7/8/9/10/11", b""))),
        ("whiteouts", tar(|t| (0..11).for_each(|i| t.file(&format!(".wh.{i}"), b"")))),
        ("headers", tar(|t| (0..40).for_each(|_| t.entry(b'g', "", b"", |_| {})))),
        ("what follows the end", {
            let mut bytes = tar(|t| t.file("f", b""));
            bytes.resize(100_001, 1);
            bytes
        }),
        ("an extended header", tar(|t| t.entry(b'L', "", b"", |h| h.set_size((1 << 20) + 1)))),
    ] {
        let error = refused(&bytes, &limits);
        assert!(matches!(error, LayerError::Limit { .. }), "{what}: {error:?}");
    }
}
