//! The files of microVMs: the same answers as for containers, from a guest that runs and from one that does not.

use dhow_tests::{Store, vm};
use std::fs;
use std::process::Stdio;
use std::time::{Duration, Instant};

/// What a workload does to its files.
const WORK: &str = "mkdir /made; echo new > /made/file; ln -s file /made/link; rm /etc/passwd; chmod 700 /tmp; \
                    echo done > /made/done";

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(60), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(100));
    }
}

/// The names of a tar that a command writes.
fn names(store: &Store, args: &[&str]) -> Vec<String> {
    let out = store.out(args);
    assert!(out.status.success(), "{args:?}: {}", String::from_utf8_lossy(&out.stderr));
    let mut archive = tar::Archive::new(&out.stdout[..]);
    let entries = archive.entries().unwrap();
    entries.map(|e| e.unwrap().path().unwrap().to_string_lossy().into_owned()).collect()
}

fn fails(store: &Store, args: &[&str], saying: &str) {
    let out = store.out(args);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success() && said.contains(saying), "{args:?}: {said}");
}

/// The image that was made of a container has its changes, in a container.
fn check_image(store: &Store, image: &str) {
    let look = "test ! -e /etc/passwd && cat /made/file /made/link && stat -c %a /tmp";
    assert_eq!(store.ok(&["run", "--rm", image, "sh", "-c", look]), "new\nnew\n700");
}

#[test]
fn a_running_microvm_shows_and_takes_files() {
    let Some(store) = vm::store() else { return };
    let forever = format!("{WORK}; exec sleep 1000");
    store.ok(&["run", "-d", "--name", "box", "busybox", "sh", "-c", &forever]);
    store.ok(&["run", "--vm", "-d", "--name", "vm", "busybox", "sh", "-c", &forever]);
    until("the work", || store.out(&["cp", "vm:/made/done", "-"]).status.success());

    // The same changes as a container's.
    let changes = store.ok(&["diff", "vm"]);
    assert!(changes.contains("A /made/link"), "{changes}");
    assert_eq!(changes, store.ok(&["diff", "box"]));

    // In, out, and within the workload's own mounts.
    let dir = tempfile::tempdir().unwrap();
    let at = |name: &str| dir.path().join(name).to_str().unwrap().to_owned();
    fs::create_dir_all(at("tree/sub")).unwrap();
    let content: Vec<u8> = (0..3_000_000u32).map(|n| (n % 251) as u8).collect();
    fs::write(at("tree/sub/big"), &content).unwrap();
    std::os::unix::fs::symlink("sub/big", at("tree/link")).unwrap();
    store.ok(&["cp", &at("tree"), "vm:/made"]);
    store.ok(&["cp", "vm:/made/tree", &at("back")]);
    assert_eq!(fs::read(at("back/sub/big")).unwrap(), content);
    assert_eq!(fs::read_link(at("back/link")).unwrap().to_str(), Some("sub/big"));
    store.ok(&["cp", &at("tree/sub/big"), "vm:/dev/shm/big"]);
    assert_eq!(store.ok(&["exec", "vm", "sh", "-c", "wc -c < /dev/shm/big"]), "3000000");
    store.ok(&["cp", "-L", "vm:/made/link", &at("followed")]);
    assert_eq!(fs::read(at("followed")).unwrap(), b"new\n");
    fails(&store, &["cp", "vm:/nowhere", &at("x")], "Could not find the file /nowhere");
    fails(&store, &["cp", &at("tree/link"), "vm:/nowhere/"], "no such directory");
    fails(&store, &["cp", &at("tree"), "vm:/made/file"], "cannot copy the directory");
    store.ok(&["exec", "vm", "rm", "-r", "/made/tree"]);

    assert!(names(&store, &["export", "vm"]).iter().any(|n| n == "made/link"));

    let top = store.ok(&["top", "vm"]);
    let titles: Vec<&str> = top.lines().next().unwrap().split_whitespace().collect();
    assert_eq!(titles, ["UID", "PID", "PPID", "C", "STIME", "TTY", "TIME", "CMD"]);
    let row: Vec<&str> = top.lines().nth(1).unwrap().split_whitespace().collect();
    assert_eq!((row[0], &row[7..], top.lines().count()), ("root", &["sleep", "1000"][..], 2));
    fails(&store, &["top", "vm", "aux"], "takes no options but -ef");

    store.ok(&["commit", "vm", "made"]);
    check_image(&store, "made");
    // The workload goes on after it was frozen.
    assert_eq!(store.ok(&["exec", "vm", "cat", "/made/file"]), "new");
    store.ok(&["pause", "vm"]);
    fails(&store, &["diff", "vm"], "unpause it first");
    store.ok(&["rm", "-f", "vm", "box"]);
}

#[test]
fn a_stopped_microvm_shows_and_takes_files() {
    let Some(store) = vm::store() else { return };
    let dir = tempfile::tempdir().unwrap();
    let put = dir.path().join("put").to_str().unwrap().to_owned();
    fs::write(&put, "put\n").unwrap();
    let tree = dir.path().join("tree");
    fs::create_dir(&tree).unwrap();
    fs::write(tree.join("early"), "early\n").unwrap();
    let work = format!("{WORK}; cat /tmp/put /part/early /plain/put; echo kept > /part/kept");
    store.ok(&["volume", "create", "-d", "disk", "-o", "size=32m", "data"]);
    let create = ["create", "--vm", "--name", "vm", "-v", "data:/data", "-v", "plain:/plain"];
    let part = ["--mount", "type=volume,src=data,dst=/part,volume-subpath=sub"];
    store.ok(&[&create[..], &part, &["busybox", "sh", "-c", &work]].concat());

    // Before it ever ran.
    store.ok(&["cp", &put, "vm:/tmp/put"]);
    store.ok(&["cp", tree.to_str().unwrap(), "vm:/data/sub"]);
    store.ok(&["cp", &put, "vm:/plain"]);
    assert_eq!(store.ok(&["start", "-a", "vm"]), "put\nearly\nput");
    fails(&store, &["top", "vm"], "is not running");

    // A disk that it has written is read by its own machine.
    store.ok(&["cp", &put, "vm:/part/late"]);
    let back = dir.path().join("back");
    store.ok(&["cp", "vm:/data/sub", back.to_str().unwrap()]);
    let read = |name: &str| fs::read_to_string(back.join(name)).unwrap();
    assert_eq!(["early", "kept", "late"].map(read), ["early\n", "kept\n", "put\n"]);

    // Killed in the middle, by the kernel's hardest means: what it started ends, and the next one gets its turn.
    let mut killed =
        store.command(&["export", "vm"]).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap();
    std::thread::sleep(Duration::from_millis(1500));
    killed.kill().unwrap();
    killed.wait().unwrap();
    store.ok(&["commit", "vm", "made"]);
    check_image(&store, "made");
    assert_eq!(store.ok(&["inspect", "-f", "{{.State.Status}} {{.State.ExitCode}}", "vm"]), "exited 0");
    store.ok(&["rm", "vm"]);
}

/// A file system that is soon full, in the place of a directory.
struct Small(std::path::PathBuf);

impl Small {
    fn new(dir: &std::path::Path, size: &str) -> Self {
        fs::create_dir_all(dir).unwrap();
        let options = format!("mode=700,size={size}");
        let mut mount = std::process::Command::new("mount");
        let done = mount.args(["-t", "tmpfs", "-o", &options, "small"]).arg(dir).status().unwrap();
        assert!(done.success(), "mount on {}", dir.display());
        Self(dir.to_owned())
    }
}

impl Drop for Small {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).status();
    }
}

#[test]
fn what_does_not_fit_on_the_hosts_disk_is_no_success() {
    let Some(store) = vm::store() else { return };
    let id = store.ok(&["create", "--vm", "--network", "none", "--name", "full", "busybox", "sleep", "1000"]);
    let small = Small::new(&store.root().join("sandboxes").join(&id), "24m");
    let big = store.root().join("big");
    fs::write(&big, vec![b'x'; 40 << 20]).unwrap();
    store.ok(&["start", "full"]);
    // It fits into the guest's memory, and not onto the disk.
    fails(&store, &["cp", big.to_str().unwrap(), "full:/big"], "write the files to the microVM's disk");
    store.ok(&["kill", "full"]);
    store.ok(&["wait", "full"]);
    let why = store.ok(&["inspect", "-f", "{{.State.Error}}", "full"]);
    assert!(why.contains("disk failed on the host: No space left on device"), "{why:?}");
    drop(small);
    store.ok(&["rm", "-f", "full"]);
}

#[test]
fn a_slow_reader_gets_all_output_and_the_exit_code() {
    let Some(store) = vm::store() else { return };
    let work = "n=0; while [ $n -lt 75 ]; do seq 100000 101000; n=$((n+1)); done; exit 3";
    let mut run = store.command(&["run", "--vm", "--rm", "--network", "none", "busybox", "sh", "-c", work]);
    let mut run = run.stdout(Stdio::piped()).spawn().unwrap();
    // Nobody reads before the guest has sent all that finds room on the way, and has ended if it does not wait.
    std::thread::sleep(Duration::from_secs(20));
    let mut all = Vec::new();
    std::io::Read::read_to_end(&mut run.stdout.take().unwrap(), &mut all).unwrap();
    assert_eq!((all.len(), run.wait().unwrap().code()), (75 * 1001 * 7, Some(3)));
}
