//! Many starters, sweepers and deaths at once, in separate processes; nothing stays behind.

mod common;

use common::{Store, able, at};
use dhow_rootfs::{MountOptions, mount, prepare, sweep};
use std::fs;
use std::path::PathBuf;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use types::{Digest, LayerFormat, LayerPlan, RootfsPlan};

const STORE: &str = "DHOW_TEST_ROOTFS_STORE";

fn plan(dir: &str, name: &str) -> RootfsPlan {
    let dir = PathBuf::from(dir);
    let layer = |n: u8| LayerPlan {
        diff_id: Digest::from_sha256([n; 32]),
        path: dir.join(format!("layer-{n}.erofs")),
        format: LayerFormat::Erofs,
    };
    let layers = vec![layer(1), layer(2)];
    RootfsPlan { layers, writable: dir.join(name), layer_mounts: dir.join("run/layers") }
}

/// Not a test by itself: what each process of the next one does.
#[test]
fn worker() {
    let Ok(dir) = std::env::var(STORE) else { return };
    let plan = plan(&dir, &format!("w{}", std::process::id()));
    prepare(&plan).unwrap();
    for round in 0.. {
        let rootfs = mount(&plan, &MountOptions::default()).unwrap();
        assert_eq!(fs::read(at(&rootfs.fd(), "one")).unwrap(), b"1");
        assert_eq!(fs::read(at(&rootfs.fd(), "two")).unwrap(), b"2");
        if round % 3 == 0 {
            sweep(&plan.layer_mounts).unwrap();
            // Still there: this process holds it.
            assert_eq!(
                fs::read(plan.layer_mounts.join(plan.layers[0].diff_id.hex()).join("one")).unwrap(),
                b"1"
            );
        }
        rootfs.release().unwrap();
    }
}

fn spawn(store: &Store) -> Child {
    Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "worker", "--nocapture"])
        .env(STORE, store.path())
        .stdout(Stdio::null())
        .stderr(Stdio::piped())
        .spawn()
        .unwrap()
}

#[test]
fn killed_holders_leave_nothing() {
    if !able(LayerFormat::Erofs) {
        return;
    }
    let store = Store::new();
    store.layer(1, LayerFormat::Erofs, |d| fs::write(d.join("one"), "1").unwrap());
    store.layer(2, LayerFormat::Erofs, |d| fs::write(d.join("two"), "2").unwrap());
    let mut workers: Vec<Child> = (0..8).map(|_| spawn(&store)).collect();
    let end = Instant::now() + Duration::from_secs(3);
    let mut next = 0;
    while Instant::now() < end {
        std::thread::sleep(Duration::from_millis(20));
        sweep(&store.mounts()).unwrap();
        next = (next + 1) % workers.len();
        // Whoever ended by itself failed.
        end_of(&mut workers[next]);
        workers[next] = spawn(&store);
    }
    workers.iter_mut().for_each(end_of);
    sweep(&store.mounts()).unwrap();
    assert_eq!(store.mounted(), 0);
    assert!(store.left().is_empty(), "{:?}", store.left());
}

fn end_of(worker: &mut Child) {
    let failed = worker.try_wait().unwrap().is_some();
    let _ = worker.kill();
    worker.wait().unwrap();
    if failed {
        let mut text = String::new();
        std::io::Read::read_to_string(worker.stderr.as_mut().unwrap(), &mut text).unwrap();
        panic!("a worker failed: {text}");
    }
}

#[test]
fn a_hundred_at_once() {
    if !able(LayerFormat::Erofs) {
        return;
    }
    let store = Store::new();
    store.layer(1, LayerFormat::Erofs, |d| fs::write(d.join("one"), "1").unwrap());
    store.layer(2, LayerFormat::Erofs, |d| fs::write(d.join("two"), "2").unwrap());
    let dir = store.path().to_str().unwrap();
    std::thread::scope(|scope| {
        for n in 0..100 {
            scope.spawn(move || {
                let plan = plan(dir, &format!("t{n}"));
                prepare(&plan).unwrap();
                for _ in 0..5 {
                    let rootfs = mount(&plan, &MountOptions::default()).unwrap();
                    assert_eq!(fs::read(at(&rootfs.fd(), "one")).unwrap(), b"1");
                    rootfs.release().unwrap();
                }
            });
        }
    });
    assert_eq!(store.mounted(), 0);
    assert!(store.left().is_empty(), "{:?}", store.left());
}
