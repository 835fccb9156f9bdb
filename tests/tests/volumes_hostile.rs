//! Volumes whose commands are killed, race with each other, or meet what somebody hostile has left.

use dhow_tests::said::{ok, refused, run, text, until};
use dhow_tests::{Store, busybox, have};
use rustix::fs::{CWD, Mode, OFlags, mkdirat, openat};
use rustix::mount::{MountFlags, MountPropagationFlags, UnmountFlags, mount, mount_change, unmount};
use std::fs;
use std::os::unix::fs::MetadataExt;
use std::path::{Path, PathBuf};

/// Names in the store's directory of volumes that belong to no volume.
fn leftovers(store: &Store) -> Vec<String> {
    let all = fs::read_dir(store.root().join("volumes")).into_iter().flatten();
    let names = all.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| name.starts_with('.')).collect()
}

/// A small file system, unmounted when this is dropped.
struct Tmpfs(PathBuf);

impl Tmpfs {
    fn new(at: &Path, options: &std::ffi::CStr) -> Self {
        fs::create_dir_all(at).unwrap();
        mount("tmpfs", at, "tmpfs", MountFlags::empty(), options).unwrap();
        Self(at.to_owned())
    }
}

impl Drop for Tmpfs {
    fn drop(&mut self) {
        let _ = unmount(&self.0, UnmountFlags::DETACH);
    }
}

#[test]
fn what_a_removal_left_is_none_of_the_next_volumes() {
    let Some(store) = busybox::store() else { return };
    let volumes = store.root().join("volumes");
    // Of one that was killed between its row and its files.
    for name in ["ran", "made", "swept", "imported"] {
        fs::create_dir_all(volumes.join(name).join("_data/old")).unwrap();
    }
    assert_eq!(ok(&run(&store, &["--rm", "-v", "ran:/v"], "ls /v")), "");
    store.ok(&["volume", "create", "made"]);
    assert_eq!(ok(&run(&store, &["--rm", "-v", "made:/v"], "ls /v")), "");
    store.ok(&["volume", "create", "empty"]);
    store.ok(&["volume", "clone", "empty", "imported"]);
    assert_eq!(ok(&run(&store, &["--rm", "-v", "imported:/v"], "ls /v")), "");
    store.ok(&["system", "recover"]);
    assert!(leftovers(&store).is_empty() && !volumes.join("swept").exists(), "{:?}", leftovers(&store));
    assert_eq!(store.ok(&["volume", "ls", "-q"]), "empty\nimported\nmade\nran");
}

#[test]
fn a_removal_takes_nothing_from_who_takes_the_name_meanwhile() {
    let Some(store) = busybox::store() else { return };
    std::thread::scope(|scope| {
        let store = &store;
        let removing = scope.spawn(move || {
            for _ in 0..20 {
                let _ = store.out(&["volume", "rm", "contested"]);
                let _ = store.out(&["volume", "prune", "-af"]);
            }
        });
        while !removing.is_finished() {
            let script = "echo mine > /v/f; sleep 0.02; cat /v/f";
            assert_eq!(ok(&run(store, &["--rm", "-v", "contested:/v"], script)), "mine\n");
        }
    });
    store.ok(&["system", "recover"]);
    assert!(leftovers(&store).is_empty());
}

#[test]
fn several_who_begin_with_a_new_volume_find_it_whole() {
    let Some(store) = busybox::store() else { return };
    std::thread::scope(|scope| {
        for _ in 0..6 {
            let look = || run(&store, &["--rm", "-v", "fresh:/data"], "cat /data/seed; stat -c %a /data");
            scope.spawn(move || assert_eq!(ok(&look()), "from the image\n750\n"));
        }
    });
    // Left half full by one who was killed.
    let data = store.root().join("volumes/fresh/_data");
    fs::remove_file(data.join("seed")).unwrap();
    fs::write(data.join("half"), "ha").unwrap();
    let none = rustix::fs::XattrFlags::empty();
    rustix::fs::setxattr(&data, "trusted.overlay.dhow.filling", b"y", none).unwrap();
    assert_eq!(ok(&run(&store, &["--rm", "-v", "fresh:/data"], "cat /data/*")), "from the image\n");
}

#[test]
fn a_bound_volume_leaves_what_the_host_has_mounted() {
    let Some(store) = busybox::store() else { return };
    let dir = tempfile::tempdir().unwrap();
    let top = Tmpfs::new(&dir.path().join("top"), c"size=1m");
    // As systemd has it.
    mount_change(&top.0, MountPropagationFlags::SHARED).unwrap();
    let _below = Tmpfs::new(&top.0.join("below"), c"size=1m");
    fs::write(top.0.join("below/file"), "here\n").unwrap();
    let device = format!("device={}", top.0.display());
    for (name, how, seen) in [("all", "o=rbind,ro", "here\nro"), ("one", "o=bind", "no\nrw")] {
        store.ok(&["volume", "create", "-o", "type=none", "-o", how, "-o", &device, name]);
        let script = "cat /v/below/file 2>/dev/null || echo no; touch /v/x 2>/dev/null && echo rw || echo ro";
        let out = run(&store, &["--rm", "-v", &format!("{name}:/v")], script);
        assert_eq!(ok(&out).trim(), seen);
        let places = store.run().join("volumes");
        let places = places.to_str().unwrap();
        until("nothing mounted", || !fs::read_to_string("/proc/mounts").unwrap().contains(places));
        assert_eq!(fs::read_to_string(top.0.join("below/file")).unwrap(), "here\n", "{how}");
    }
}

#[test]
fn trees_without_a_bottom_and_files_without_an_end_cost_little() {
    let Some(store) = busybox::store() else { return };
    store.ok(&["volume", "create", "deep"]);
    store.ok(&["create", "--name", "box", "busybox", "true"]);
    store.ok(&["start", "-a", "box"]);
    let id = store.ok(&["inspect", "-f", "{{.Id}}", "box"]);
    let data = store.root().join("volumes/deep/_data");
    let flags = OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC;
    for top in [&data, &store.root().join("sandboxes").join(&id).join("upper")] {
        let mut dir = openat(CWD, top, flags, Mode::empty()).unwrap();
        for _ in 0..3000 {
            mkdirat(&dir, "d", Mode::RWXU).unwrap();
            dir = openat(&dir, "d", flags, Mode::empty()).unwrap();
        }
    }
    // With as many descriptors as a shell gives.
    let few = |verb: &str, args: &str| {
        let program = dhow_tests::program();
        let script = format!("ulimit -Sn 256; exec {} {verb} {args}", program.display());
        let mut command = std::process::Command::new("sh");
        command.args(["-c", &script]).env("DHOW_ROOT", store.root()).env("DHOW_RUN", store.run());
        command.output().unwrap()
    };
    ok(&few("rm", "box"));
    ok(&few("volume rm", "deep"));
    assert!(leftovers(&store).is_empty() && !store.root().join("sandboxes").join(id).exists());

    // A clone has a file's holes.
    store.ok(&["volume", "create", "sparse"]);
    let file = fs::File::create(store.root().join("volumes/sparse/_data/f")).unwrap();
    file.set_len(1 << 40).unwrap();
    store.ok(&["volume", "clone", "sparse", "twin"]);
    let meta = fs::metadata(store.root().join("volumes/twin/_data/f")).unwrap();
    assert!(meta.len() == 1 << 40 && meta.blocks() < 1000);
}

#[test]
fn a_disk_that_the_host_has_no_room_for_is_an_error_inside_and_of_nobody_else() {
    let Some(store) = busybox::store() else { return };
    if !have("mke2fs") && !Path::new("/sbin/mke2fs").exists() || !Path::new("/dev/loop-control").exists() {
        eprintln!("SKIPPED: mke2fs (package e2fsprogs) or loop devices are missing");
        return;
    }
    let small = Tmpfs::new(&store.root().join("volumes"), c"size=24m");
    store.ok(&["volume", "create", "-d", "disk", "-o", "size=96m", "big"]);
    let script = "echo kept > /v/kept; sync; \
                  dd if=/dev/zero of=/v/f bs=1M count=64 conv=fsync 2>&1 | grep -c 'error\\|No space\\|Read-only'";
    assert_eq!(ok(&run(&store, &["--rm", "-v", "big:/v"], script)), "1\n");
    // What is asked for when the disk is full is done or not, and what there is stays.
    let before = store.ok(&["volume", "ls", "-q"]);
    assert!(!store.out(&["volume", "clone", "big", "second"]).status.success());
    let full = store.out(&["volume", "create", "-d", "disk", "-o", "size=64m", "third"]);
    assert!(!full.status.success() && text(&full.stderr).contains("No space left"), "{}", text(&full.stderr));
    assert_eq!(store.ok(&["volume", "ls", "-q"]), before);
    assert!(leftovers(&store).is_empty(), "{:?}", leftovers(&store));
    store.ok(&["volume", "rm", "big"]);
    until("the room to be free", || {
        let free = rustix::fs::statvfs(&small.0).unwrap();
        free.f_bfree * free.f_frsize > 23 << 20
    });
    store.ok(&["volume", "create", "-d", "disk", "-o", "size=64m", "third"]);
    assert_eq!(ok(&run(&store, &["--rm", "-v", "third:/v"], "echo fine > /v/f; cat /v/f")), "fine\n");
    store.ok(&["volume", "rm", "third"]);
    refused(&store.out(&["volume", "rm", "third"]), "no such volume");
}
