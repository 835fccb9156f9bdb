//! What others see of the store while layers come and go.

use super::super::temp::Temp;
use super::super::{LayerError, LayerLimits, LayerStore};
use super::support::{Mounted, able, tar};
use std::io::{self, Read};
use types::{Digest, ErrorKind, Kinded, LayerFormat};

const LIMITS: LayerLimits = LayerLimits { max_content: 1 << 40, max_entries: 1 << 20, max_tar: 1 << 40 };

fn digest(data: &[u8]) -> Digest {
    use sha2::Digest as _;
    Digest::from_sha256(sha2::Sha256::digest(data).into())
}

#[test]
fn layers_come_and_go() {
    if !able() {
        return;
    }
    for format in [LayerFormat::Erofs, LayerFormat::Dir] {
        let tmp = tempfile::tempdir().unwrap();
        let store = LayerStore::open(&tmp.path().join("layers"), format).unwrap();
        // Bytes behind the end are part of the digest; several buffers are hashed by the second thread.
        let mut bytes = tar(|t| t.file("f", &vec![3; 2_000_000]));
        bytes.extend([0; 9000]);
        let want = digest(&bytes);
        assert_eq!(store.get(&want), None);
        let wrong = digest(b"other");
        let error = store.ingest(&mut &bytes[..], Some(&wrong), &LIMITS).unwrap_err();
        assert!(matches!(error, LayerError::Digest { found, .. } if found == want));
        assert_eq!(store.list(), []);
        let layer = store.ingest(&mut &bytes[..], Some(&want), &LIMITS).unwrap();
        assert_eq!((layer.diff_id, layer.content_size), (want, 2_000_000));
        assert!(layer.size >= 2_000_000);
        assert_eq!(store.list(), [want]);
        // Again: kept, but read and verified.
        assert_eq!(store.ingest(&mut &bytes[..], Some(&want), &LIMITS).unwrap(), layer);
        assert_eq!(store.ingest(&mut &bytes[..], None, &LIMITS).unwrap(), layer);
        assert!(store.ingest(&mut &bytes[..5000], Some(&want), &LIMITS).is_err());
        assert_eq!(store.remove(&want).unwrap(), layer.size);
        assert_eq!(store.remove(&want).unwrap(), 0);
        assert_eq!(std::fs::read_dir(tmp.path().join("layers")).unwrap().count(), 0);
    }
}

#[test]
fn a_damaged_layer_is_none() {
    let tmp = tempfile::tempdir().unwrap();
    let store = LayerStore::open(tmp.path(), LayerFormat::Erofs).unwrap();
    let bytes = tar(|t| t.file("f", &[3; 20_000]));
    let layer = store.ingest(&mut &bytes[..], None, &LIMITS).unwrap();
    let file = std::fs::File::options().write(true).open(&layer.path).unwrap();
    file.set_len(8192).unwrap();
    assert_eq!(store.get(&layer.diff_id), None);
    assert_eq!(store.list(), []);
    assert_eq!(store.ingest(&mut &bytes[..], Some(&layer.diff_id), &LIMITS).unwrap(), layer);
}

#[test]
fn only_the_dead_are_swept() {
    let tmp = tempfile::tempdir().unwrap();
    let store = LayerStore::open(tmp.path(), LayerFormat::Erofs).unwrap();
    let (alive, alive_dir) = (Temp::file(tmp.path()).unwrap(), Temp::dir(tmp.path()).unwrap());
    std::fs::write(tmp.path().join(".new-dead"), "").unwrap();
    std::fs::create_dir_all(tmp.path().join(".new-dead-dir/fs/x")).unwrap();
    std::fs::write(tmp.path().join("other"), "").unwrap();
    store.sweep_temporary();
    let left = std::fs::read_dir(tmp.path()).unwrap().count();
    assert_eq!(left, 3);
    assert!(alive.path().exists() && alive_dir.path().exists());
    drop((alive, alive_dir));
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 1);
}

#[test]
fn many_writers_of_one_layer() {
    if !able() {
        return;
    }
    for format in [LayerFormat::Erofs, LayerFormat::Dir] {
        let tmp = tempfile::tempdir().unwrap();
        let bytes = tar(|t| (0..200).for_each(|i| t.file(&format!("d/{i}"), &vec![1; i * 100])));
        let want = digest(&bytes);
        std::thread::scope(|scope| {
            for _ in 0..6 {
                scope.spawn(|| {
                    let store = LayerStore::open(tmp.path(), format).unwrap();
                    for _ in 0..5 {
                        assert_eq!(store.ingest(&mut &bytes[..], None, &LIMITS).unwrap().diff_id, want);
                        store.sweep_temporary();
                    }
                });
            }
        });
        assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 1);
    }
}

#[test]
fn a_full_disk_is_said_and_leaves_nothing() {
    if !able() {
        return;
    }
    for format in [LayerFormat::Erofs, LayerFormat::Dir] {
        let small = Mounted::tmpfs("1m");
        let store = LayerStore::open(&small.path(), format).unwrap();
        let bytes = tar(|t| t.file("f", &vec![3; 2_000_000]));
        let error = store.ingest(&mut &bytes[..], None, &LIMITS).unwrap_err();
        assert_eq!(error.kind(), ErrorKind::Exhausted, "{error:?}");
        assert_eq!(std::fs::read_dir(small.path()).unwrap().count(), 0);
    }
}

#[test]
fn a_failing_stream_is_told_apart() {
    struct Failing;
    impl Read for Failing {
        fn read(&mut self, _: &mut [u8]) -> io::Result<usize> {
            Err(io::Error::other("connection reset"))
        }
    }
    let tmp = tempfile::tempdir().unwrap();
    let store = LayerStore::open(tmp.path(), LayerFormat::Erofs).unwrap();
    let error = store.ingest(&mut Failing, None, &LIMITS).unwrap_err();
    assert!(matches!(error, LayerError::Source(_)));
    assert_eq!(std::fs::read_dir(tmp.path()).unwrap().count(), 0);
}
