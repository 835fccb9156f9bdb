//! Volumes of containers: drivers and options, disks with one writer, their way out and in, and what a crash leaves.

use dhow_tests::said::{ok, refused, run, text, until};
use dhow_tests::{Store, busybox, have};
use rustix::process::{Pid, Signal, kill_process};
use rustix::thread::CapabilitySet;
use std::fs;
use std::io::Write;
use std::os::unix::fs::{FileExt, MetadataExt, symlink};
use std::process::Stdio;

/// A store whose host can make disks and mount them.
fn store_with_disks() -> Option<Store> {
    if !have("mke2fs") && !fs::exists("/sbin/mke2fs").unwrap_or(false) {
        eprintln!("SKIPPED: mke2fs is missing (package e2fsprogs)");
        return None;
    }
    if !fs::exists("/dev/loop-control").unwrap_or(false) {
        eprintln!("SKIPPED: this host has no loop devices");
        return None;
    }
    busybox::store()
}

/// Whether anything of this store's volumes is mounted, or has a loop device.
fn is_mounted(store: &Store) -> bool {
    let mounts = fs::read_to_string("/proc/mounts").unwrap();
    let of_loop = |entry: fs::DirEntry| {
        let backing = fs::read_to_string(entry.path().join("loop/backing_file")).unwrap_or_default();
        backing.starts_with(store.root().to_str().unwrap())
    };
    mounts.contains(store.run().join("volumes").to_str().unwrap())
        || fs::read_dir("/sys/block").unwrap().flatten().any(of_loop)
}

#[test]
fn volumes_are_made_listed_and_removed_as_docker_does() {
    let Some(store) = busybox::store() else { return };
    assert_eq!(store.ok(&["volume", "create", "one", "--label", "a=b", "--label", "c"]), "one");
    assert_eq!(store.ok(&["volume", "create", "one"]), "one");
    let made_up = store.ok(&["volume", "create"]);
    assert_eq!(made_up.len(), 64);
    refused(&store.out(&["volume", "create", "-d", "disk", "one"]), "a volume named one exists already");
    refused(&store.out(&["volume", "create", "a/b"]), "invalid characters");
    refused(&store.out(&["volume", "create", "-d", "rexray", "x1"]), "there is no volume driver");
    refused(&store.out(&["volume", "create", "-o", "colour=red", "x1"]), "invalid option");
    refused(&store.out(&["volume", "create", "-o", "type=nfs", "x1"]), "missing required option: \"device\"");
    refused(&store.out(&["volume", "create", "-o", "size=1g", "x1"]), "use the driver disk");
    refused(&store.out(&["volume", "create", "-d", "disk", "-o", "size=1k", "x1"]), "16 MiB to 16 TiB");
    refused(&store.out(&["volume", "resize", "one", "1g"]), "is a directory");
    refused(&store.out(&["volume", "resize", "none", "1g"]), "no such volume");

    let shown = store.ok(&[
        "volume",
        "inspect",
        "-f",
        "{{.Driver}} {{.Scope}} {{.Labels.a}} {{json .Options}}",
        "one",
    ]);
    assert_eq!(shown, "local local b null");
    store.ok(&["run", "--rm", "-v", "used:/x", "--name", "user", "busybox", "true"]);
    store.ok(&["create", "-v", "used:/x", "--name", "user", "busybox", "true"]);
    let list = |filter: &str| store.ok(&["volume", "ls", "-q", "--filter", filter]);
    assert_eq!(list("label=a=b"), "one");
    assert_eq!(list("label=c"), "one");
    assert_eq!(list("dangling=false"), "used");
    assert_eq!(list("name=use"), "used");
    assert_eq!(list("driver=disk"), "");
    refused(&store.out(&["volume", "ls", "--filter", "size=1"]), "invalid filter");

    refused(&store.out(&["volume", "rm", "used"]), "volume is in use");
    assert_eq!(store.ok(&["volume", "prune", "-f"]).lines().nth(1), Some(made_up.as_str()));
    assert!(store.ok(&["volume", "prune", "-af", "--filter", "label!=c"]).contains("reclaimed space: 0B"));
    assert!(store.ok(&["volume", "prune", "-af", "--filter", "label=a"]).contains("one"));
    assert_eq!(store.ok(&["volume", "ls", "-q"]), "used");
    store.ok(&["rm", "user"]);
    store.ok(&["volume", "rm", "used"]);
    store.ok(&["volume", "rm", "-f", "used"]);
    refused(&store.out(&["volume", "rm", "used"]), "no such volume");
    let events = store.ok(&["events", "--since", "1h", "--until", "0s", "--filter", "type=volume"]);
    for said in ["volume create one", "volume destroy one", "volume create used", "volume destroy used"] {
        assert!(events.contains(said), "{said}: {events}");
    }
}

#[test]
fn a_disk_has_a_size_and_one_writer() {
    let Some(store) = store_with_disks() else { return };
    store.ok(&["volume", "create", "-d", "disk", "-o", "size=32m", "db"]);
    let file = store.root().join("volumes/db/disk.img");
    assert!(fs::metadata(&file).unwrap().blocks() * 512 < 8 << 20);
    let script = "cat /data/seed; stat -c '%a %u' /data; ls -a /data | wc -l; echo kept > /data/kept; \
                  dd if=/dev/zero of=/data/big bs=1M count=64 2>&1 | grep -o 'No space left'; rm /data/big";
    let out = run(&store, &["--rm", "-v", "db:/data"], script);
    assert_eq!(ok(&out), "from the image\n750 0\n3\nNo space left\n");
    until("nothing mounted", || !is_mounted(&store));

    let writer = ["-d", "--name", "writer", "-v", "db:/data"];
    ok(&run(&store, &writer, "sleep 1000"));
    for mode in ["", ":ro"] {
        let bind = format!("db:/data{mode}");
        let out = run(&store, &["--rm", "-v", &bind], "true");
        refused(&out, "volume db is in use by container writer, which writes to it");
    }
    refused(&store.out(&["volume", "rm", "db"]), "volume is in use");
    // Its files, and its disk, while it is written to.
    assert!(store.ok(&["exec", "writer", "cat", "/data/kept"]) == "kept");
    let tar = store.out(&["volume", "export", "db"]).stdout;
    let mut tar = tar::Archive::new(&tar[..]);
    let names: Vec<_> = tar.entries().unwrap().map(|e| text(&e.unwrap().path_bytes())).collect();
    assert_eq!(names, ["./", "./kept", "./seed"]);
    let raw = store.root().join("export.raw");
    store.ok(&["volume", "export", "--format", "raw", "-o", raw.to_str().unwrap(), "db"]);
    assert_eq!(fs::metadata(&raw).unwrap().len(), 32 << 20);
    assert_eq!(store.ok(&["inspect", "-f", "{{.State.Status}}", "writer"]), "running");
    // It grows while it is used, where the kernel lets root do that; else it stays as it was.
    let length = || fs::metadata(&file).unwrap().len();
    if rustix::thread::capabilities(None).unwrap().effective.contains(CapabilitySet::SYS_RESOURCE) {
        std::thread::scope(|scope| {
            for size in ["40m", "64m", "48m"] {
                let store = &store;
                scope.spawn(move || store.out(&["volume", "resize", "db", size]));
            }
        });
        assert_eq!(length(), 64 << 20);
        let shown = store.ok(&["exec", "writer", "df", "-m", "/data"]);
        let size: u32 = shown.split_whitespace().nth(8).unwrap().parse().unwrap();
        assert!(size > 50, "{shown}");
    } else {
        eprintln!("SKIPPED: a disk in use grows: root has no CAP_SYS_RESOURCE here");
        refused(&store.out(&["volume", "resize", "db", "64m"]), "CAP_SYS_RESOURCE");
        assert_eq!(length(), 32 << 20);
    }
    store.ok(&["rm", "-f", "writer"]);

    // Files go to and from it while nobody uses it, too.
    let local = store.root().join("local");
    fs::write(&local, "copied\n").unwrap();
    store.ok(&["create", "--name", "resting", "-v", "db:/data", "busybox", "cat", "/data/sub/copied"]);
    let dir = store.root().join("sub");
    fs::create_dir(&dir).unwrap();
    store.ok(&["cp", dir.to_str().unwrap(), "resting:/data/"]);
    store.ok(&["cp", local.to_str().unwrap(), "resting:/data/sub/copied"]);
    until("nothing mounted", || !is_mounted(&store));
    assert_eq!(store.ok(&["start", "-a", "resting"]), "copied");
    assert!(text(&store.out(&["cp", "resting:/data/kept", "-"]).stdout).contains("kept\n"));
    store.ok(&["rm", "resting"]);

    // Several that read, and none that writes meanwhile.
    ok(&run(&store, &["-d", "--name", "reader", "-v", "db:/data:ro"], "sleep 1000"));
    let out = run(&store, &["--rm", "-v", "db:/data:ro"], "cat /data/kept; touch /data/x");
    assert!(text(&out.stdout) == "kept\n" && text(&out.stderr).contains("Read-only file system"));
    refused(&run(&store, &["--rm", "-v", "db:/data"], "true"), "in use by container reader, which reads it");
    store.ok(&["rm", "-f", "reader"]);

    refused(&store.out(&["volume", "resize", "db", "16m"]), "a disk cannot be made smaller");
    store.ok(&["volume", "resize", "db", "96m"]);
    let out = run(
        &store,
        &["--rm", "-v", "db:/data"],
        "cat /data/kept; df -m /data | tail -1 | tr -s ' ' | cut -d' ' -f2",
    );
    let (kept, size) =
        ok(&out).split_once('\n').map(|(k, s)| (k.to_owned(), s.trim().parse::<u32>().unwrap())).unwrap();
    assert!(kept == "kept" && size > 80, "{size}");

    // Damage is said, and nothing changes. Who unmounts it writes its superblock.
    until("nothing mounted", || !is_mounted(&store));
    let disk = fs::File::options().write(true).open(&file).unwrap();
    disk.write_all_at(b"?", 1024 + 0x70).unwrap();
    let before = fs::metadata(&file).unwrap().mtime_nsec();
    refused(&run(&store, &["--rm", "-v", "db:/data"], "true"), "the disk of volume db is damaged");
    assert_eq!(fs::metadata(&file).unwrap().mtime_nsec(), before);
    until("nothing mounted", || !is_mounted(&store));
}

#[test]
fn a_disk_is_free_and_whole_after_kills() {
    let Some(store) = store_with_disks() else { return };
    let kill = |pid: i32| kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    store.ok(&["volume", "create", "-d", "disk", "-o", "size=32m", "db"]);
    let flags = ["-d", "--name", "first", "-v", "db:/data"];
    ok(&run(
        &store,
        &flags,
        "echo synced > /data/f; sync; echo up > /data/up; while echo x >> /data/log; do sleep 0.05; done",
    ));
    until("the first file", || store.out(&["exec", "first", "cat", "/data/up"]).status.success());

    // The container goes on without its supervisor, and so does its hold on the disk.
    kill(store.supervisor("first"));
    refused(&run(&store, &["--rm", "-v", "db:/data"], "true"), "in use by container first");
    store.ok(&["system", "recover"]);
    refused(&run(&store, &["--rm", "-v", "db:/data"], "true"), "in use by container first");
    // Who was killed answers nobody, and is there until it is gone.
    until("another supervisor", || {
        text(&store.out(&["exec", "first", "cat", "/data/f"]).stdout).trim() == "synced"
    });

    // Both at once: what is left over goes with the next use.
    let pid = store.ok(&["inspect", "-f", "{{.State.Pid}}", "first"]).parse().unwrap();
    kill(store.supervisor("first"));
    kill(pid);
    let mut out = None;
    until("the disk to be free", || {
        let next = run(&store, &["--rm", "-v", "db:/data"], "cat /data/f; tail -n 1 /data/log");
        let free = !text(&next.stderr).contains("in use");
        out = Some(next);
        free
    });
    assert_eq!(ok(&out.unwrap()), "synced\nx\n");
    store.ok(&["start", "first"]);
    store.ok(&["rm", "-f", "first"]);
    store.ok(&["system", "recover"]);
    until("nothing mounted", || !is_mounted(&store));
    let file = store.root().join("volumes/db/disk.img");
    let checked = std::process::Command::new("e2fsck").arg("-fn").arg(&file).output().unwrap();
    assert!(checked.status.success(), "{}", text(&checked.stdout));
}

#[test]
fn the_driver_local_mounts_what_its_options_name() {
    let Some(store) = busybox::store() else { return };
    store.ok(&["volume", "create", "-o", "type=tmpfs", "-o", "device=tmpfs", "-o", "o=size=2m,uid=7", "mem"]);
    ok(&run(&store, &["-d", "--name", "holder", "-v", "mem:/t"], "echo one > /t/f; sleep 1000"));
    until("the file", || store.out(&["exec", "holder", "cat", "/t/f"]).status.success());
    // All see the same, as long as one of them runs.
    let script = "cat /t/f; df -k /t | tail -1 | tr -s ' ' | cut -d' ' -f2; stat -c %u /t";
    assert_eq!(ok(&run(&store, &["--rm", "-v", "mem:/t"], script)), "one\n2048\n7\n");
    assert!(is_mounted(&store));
    store.ok(&["rm", "-f", "holder"]);
    until("nothing mounted", || !is_mounted(&store));
    assert_eq!(ok(&run(&store, &["--rm", "-v", "mem:/t"], "ls /t")), "");

    let dir = tempfile::tempdir().unwrap();
    let path = dir.path().to_str().unwrap();
    fs::create_dir(dir.path().join("sub")).unwrap();
    fs::write(dir.path().join("sub/file"), "below\n").unwrap();
    symlink("/etc", dir.path().join("out")).unwrap();
    symlink("sub", dir.path().join("in")).unwrap();
    store.ok(&[
        "volume",
        "create",
        "-o",
        "type=none",
        "-o",
        "o=bind",
        "-o",
        &format!("device={path}"),
        "dir",
    ]);
    let part = |subpath: &str| {
        let mount = format!("type=volume,src=dir,dst=/t,volume-subpath={subpath}");
        run(&store, &["--rm", "--mount", &mount], "cat /t/file || cat /t/passwd")
    };
    assert_eq!(ok(&part("sub")), "below\n");
    assert_eq!(ok(&part("in")), "below\n");
    refused(&part("out"), "no such file or directory");
    refused(&part("../x"), "without \"..\"");
    refused(&part("none"), "no such file or directory");
    store.ok(&["volume", "rm", "dir"]);
    assert!(dir.path().join("sub/file").exists());

    let own = format!("device={}", store.root().display());
    store.ok(&["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", &own, "own"]);
    refused(&run(&store, &["--rm", "-v", "own:/t"], "true"), "lies in dhow's own state");
    store.ok(&["volume", "create", "-o", "type=nofs", "-o", "device=x", "odd"]);
    refused(&run(&store, &["--rm", "-v", "odd:/t"], "true"), "this host's kernel has no nofs");

    // Images are mounted, too, and kept from their removal.
    let out = run(
        &store,
        &["--rm", "--mount", "type=image,src=busybox,dst=/i,image-subpath=data"],
        "cat /i/seed; touch /i/x",
    );
    assert!(text(&out.stdout) == "from the image\n" && text(&out.stderr).contains("Read-only file system"));
    let out = run(&store, &["--rm", "--mount", "type=image,dst=/i"], "true");
    assert!(text(&out.stderr).contains("source is required for an image mount"));
    until("nothing mounted", || !is_mounted(&store));
}

#[test]
fn volumes_go_out_and_come_in() {
    let Some(store) = store_with_disks() else { return };
    ok(&run(
        &store,
        &["--rm", "-v", "src:/data"],
        "echo one > /data/a; ln -s a /data/l; chown 5:6 /data/a; chmod 4711 /data/a",
    ));
    let tar = store.out(&["volume", "export", "src"]).stdout;
    let import = |args: &[&str], bytes: &[u8]| {
        let mut command = store.command(&[&["volume", "import"], args].concat());
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().unwrap();
        let mut stdin = child.stdin.take().unwrap();
        let bytes = bytes.to_owned();
        let feeding = std::thread::spawn(move || drop(stdin.write_all(&bytes)));
        let out = child.wait_with_output().unwrap();
        feeding.join().unwrap();
        out
    };
    let look = "cat /data/l; stat -c '%u:%g %a' /data/a; stat -c %a /data; cat /data/seed";
    let there = "one\n5:6 4711\n750\nfrom the image\n";
    let zstd = zstd::encode_all(&tar[..], 1).unwrap();
    let mut gzip = flate2::write::GzEncoder::new(Vec::new(), flate2::Compression::fast());
    gzip.write_all(&tar).unwrap();
    for (args, bytes) in [
        (&["plain"][..], &tar),
        (&["gzipped", "-"], &gzip.finish().unwrap()),
        (&["-d", "disk", "-o", "size=20m", "zipped"], &zstd),
    ] {
        ok(&import(args, bytes));
        let bind = format!("{}:/data", args.iter().rev().find(|a| **a != "-").unwrap());
        assert_eq!(ok(&run(&store, &["--rm", "-v", &bind], look)), there);
    }
    refused(&import(&["plain"], &tar), "a volume named plain exists already");

    // A disk, as an image; what is in an imported one this host's kernel does not read, unless it is told to.
    let file = store.root().join("image");
    let file = file.to_str().unwrap();
    for format in ["raw", "qcow2"] {
        store.ok(&["volume", "export", "--format", format, "-o", file, "zipped"]);
        store.ok(&["volume", "import", format, file]);
        let bind = format!("{format}:/data");
        refused(
            &run(&store, &["--rm", "-v", &bind], "true"),
            "was imported: this host's kernel does not mount it",
        );
        let trusted = format!("{format}-trusted");
        store.ok(&["volume", "clone", "-o", "trust-guest=true", format, &trusted]);
        assert_eq!(ok(&run(&store, &["--rm", "-v", &format!("{trusted}:/data")], look)), there);
        refused(&store.out(&["volume", "export", format]), "this host's kernel does not mount it");
    }
    store.ok(&["volume", "clone", "src", "twin"]);
    assert_eq!(ok(&run(&store, &["--rm", "-v", "twin:/data"], look)), there);
    refused(&store.out(&["volume", "clone", "src", "twin"]), "exists already");
    refused(&store.out(&["volume", "clone", "-o", "size=1g", "zipped", "larger"]), "has no size of its own");
    refused(&store.out(&["volume", "export", "--format", "raw", "src"]), "is exported as a tar");
    refused(&store.out(&["volume", "export", "--format", "zip", "src"]), "invalid format");

    // Archives that are none, or that lead outside.
    let mut evil = tar::Builder::new(Vec::new());
    let mut add = |path: &str, kind: tar::EntryType, link: &str, data: &[u8]| {
        let mut header = tar::Header::new_gnu();
        header.set_entry_type(kind);
        header.set_mode(0o644);
        header.set_size(data.len() as u64);
        let name = &mut header.as_old_mut().name;
        name[..path.len()].copy_from_slice(path.as_bytes());
        if !link.is_empty() {
            header.set_link_name(link).unwrap();
        }
        header.set_cksum();
        evil.append(&header, data).unwrap();
    };
    let outside = tempfile::tempdir().unwrap();
    add("way", tar::EntryType::Symlink, outside.path().to_str().unwrap(), b"");
    add("way/planted", tar::EntryType::Regular, "", b"x");
    add("../../../../../../../../tmp/dhow-planted", tar::EntryType::Regular, "", b"x");
    let evil = evil.into_inner().unwrap();
    let _ = import(&["evil"], &evil);
    assert_eq!(fs::read_dir(outside.path()).unwrap().count(), 0);
    assert!(!fs::exists("/tmp/dhow-planted").unwrap());
    let before = store.ok(&["volume", "ls", "-q"]);
    for (what, bytes) in [
        ("cut short", &tar[..tar.len() / 3][..]),
        ("noise", &[7; 5000][..]),
        ("a qcow2 that is none", &[&b"QFI\xfb"[..], &[9; 3000]].concat()[..]),
    ] {
        let out = import(&["broken"], bytes);
        assert!(!out.status.success(), "{what}");
    }
    assert_eq!(store.ok(&["volume", "ls", "-q"]), before);
    let left: Vec<_> = fs::read_dir(store.root().join("volumes"))
        .unwrap()
        .map(|e| e.unwrap().file_name().into_string().unwrap())
        .filter(|n| n.starts_with('.'))
        .collect();
    assert!(left.is_empty(), "{left:?}");
    until("nothing mounted", || !is_mounted(&store));
}

#[test]
fn a_containers_own_changes_can_have_a_size() {
    let Some(store) = store_with_disks() else { return };
    let script =
        "dd if=/dev/zero of=/big bs=1M count=64 2>&1 | grep -o 'No space left'; rm /big; echo kept > /new";
    let flags = ["--name", "box", "--storage-opt", "size=32m"];
    assert_eq!(ok(&run(&store, &flags, script)), "No space left\n");
    until("nothing mounted", || !is_mounted(&store));
    assert_eq!(store.ok(&["diff", "box"]), "A /new");
    let out = store.out(&["cp", "box:/new", "-"]);
    assert!(text(&out.stdout).contains("kept"));
    store.ok(&["commit", "box", "made"]);
    assert_eq!(store.ok(&["run", "--rm", "made", "cat", "/new"]), "kept");
    until("nothing mounted", || !is_mounted(&store));
    ok(&run(&store, &["-d", "--name", "crashed", "--storage-opt", "size=32m"], "echo x > /f; sleep 1000"));
    let pid: i32 = store.ok(&["inspect", "-f", "{{.State.Pid}}", "crashed"]).parse().unwrap();
    for pid in [store.supervisor("crashed"), pid] {
        kill_process(Pid::from_raw(pid).unwrap(), Signal::KILL).unwrap();
    }
    store.ok(&["start", "crashed"]);
    store.ok(&["rm", "-f", "crashed", "box"]);
    until("nothing mounted", || !is_mounted(&store));
    refused(&run(&store, &["--rm", "--storage-opt", "size=1k"], "true"), "16 MiB to 16 TiB");
    refused(&run(&store, &["--rm", "--storage-opt", "colour=red"], "true"), "unknown storage option");
}
