//! Random trees, and random damage.

use super::super::{LayerLimits, LayerStore};
use super::support::{Tar, able, layer, tar};
use proptest::collection::vec;
use proptest::prelude::*;
use types::LayerFormat;

#[derive(Clone, Debug)]
enum Op {
    File(String, usize, u16),
    Dir(String, u16),
    Symlink(String, String),
    Hard(usize, String),
    Whiteout(String, String),
    Opaque(String),
    Xattr(String, Vec<u8>),
}

fn path() -> impl Strategy<Value = String> {
    "[abc]{1,2}(/[abcd.]{1,3}){0,3}".prop_filter("dots", |p| !p.split('/').any(|c| c.starts_with('.')))
}

fn op() -> impl Strategy<Value = Op> {
    prop_oneof![
        4 => (path(), prop_oneof![0_usize..5000, 0_usize..100_000], 0_u16..0o10000).prop_map(|(p, n, m)| Op::File(p, n, m)),
        2 => (path(), 0_u16..0o10000).prop_map(|(p, m)| Op::Dir(p, m)),
        1 => (path(), path()).prop_map(|(p, t)| Op::Symlink(p, t)),
        1 => (any::<usize>(), path()).prop_map(|(i, p)| Op::Hard(i, p)),
        1 => (path(), "[abc]{1,2}").prop_map(|(p, n)| Op::Whiteout(p, n)),
        1 => path().prop_map(Op::Opaque),
        1 => (path(), vec(any::<u8>(), 0..3000)).prop_map(|(p, v)| Op::Xattr(p, v)),
    ]
}

fn build(ops: &[Op]) -> Vec<u8> {
    tar(|t: &mut Tar| {
        let mut files: Vec<&str> = Vec::new();
        for op in ops {
            match op {
                Op::File(path, size, mode) => {
                    let data: Vec<u8> = (0..*size).map(|i| (i * 7 / 3) as u8).collect();
                    t.entry(b'0', path, &data, |h| h.set_mode(u32::from(*mode)));
                    files.push(path);
                }
                Op::Dir(path, mode) => t.entry(b'5', path, b"", |h| h.set_mode(u32::from(*mode))),
                Op::Symlink(path, target) => t.symlink(path, target),
                Op::Hard(i, path) => {
                    if let Some(target) = files.get(i % files.len().max(1)) {
                        t.hard_link(path, target);
                    }
                }
                Op::Whiteout(dir, name) => t.file(&format!("{dir}/.wh.{name}"), b""),
                Op::Opaque(dir) => t.file(&format!("{dir}/.wh..wh..opq"), b""),
                Op::Xattr(path, value) => {
                    t.pax(&[("SCHILY.xattr.trusted.x", value)]);
                    t.file(path, b"with attributes");
                }
            }
        }
    })
}

/// Whether it is taken; both formats must say the same.
fn taken(bytes: &[u8]) -> bool {
    let limits = LayerLimits { max_content: 1 << 24, max_entries: 10_000, max_tar: 1 << 24 };
    let [a, b] = [LayerFormat::Erofs, LayerFormat::Dir].map(|format| {
        let tmp = tempfile::tempdir().unwrap();
        let store = LayerStore::open(tmp.path(), format).unwrap();
        let done = store.ingest(&mut &bytes[..], None, &limits);
        let left = std::fs::read_dir(tmp.path()).unwrap().count();
        assert_eq!(left, usize::from(done.is_ok()));
        done.map(|l| l.content_size).map_err(|e| e.to_string())
    });
    assert_eq!(a, b);
    a.is_ok()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 32, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn both_formats_agree(ops in vec(op(), 0..40)) {
        if able() {
            let bytes = build(&ops);
            if taken(&bytes) {
                layer(&bytes);
            }
        }
    }

    #[test]
    fn damage_never_panics(ops in vec(op(), 0..12), damage in vec((any::<prop::sample::Index>(), any::<u8>()), 0..12), cut in any::<prop::sample::Index>()) {
        let mut bytes = build(&ops);
        for (at, byte) in damage {
            let at = at.index(bytes.len());
            bytes[at] = byte;
            // Half of the damage must get past the checksum to be of use.
            if byte % 2 == 0 {
                mend(&mut bytes, at / 512 * 512);
            }
        }
        if cut.index(2) == 0 {
            bytes.truncate(cut.index(bytes.len()));
        }
        if able() {
            taken(&bytes);
        }
    }
}

/// Makes the checksum of a header right.
fn mend(bytes: &mut [u8], at: usize) {
    let Some(block) = bytes.get_mut(at..at + 512) else { return };
    block[148..156].fill(b' ');
    let sum: u32 = block.iter().map(|b| u32::from(*b)).sum();
    block[148..156].copy_from_slice(format!("{sum:06o}\0 ").as_bytes());
}
