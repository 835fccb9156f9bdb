//! The `docker` command against `dhow serve`: what people type, unchanged.

use dhow_tests::server::for_docker as served;
use std::io::Write;
use std::process::Stdio;

#[test]
fn run_in_the_foreground() {
    let Some((store, server)) = served() else { return };
    assert_eq!(server.ok(&["run", "--rm", "--network", "none", "busybox", "echo", "hello"]), "hello");
    // Exit codes, streams apart, stdin to its end.
    let (code, said) =
        server.fails(&["run", "--rm", "--network", "none", "busybox", "sh", "-c", "echo err >&2; exit 7"]);
    assert_eq!((code, said.as_str()), (7, "err\n"));
    let mut cat = server
        .docker(&["run", "--rm", "-i", "--network", "none", "busybox", "wc", "-c"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .unwrap();
    cat.stdin.take().unwrap().write_all(&vec![b'x'; 3_000_000]).unwrap();
    let out = cat.wait_with_output().unwrap();
    assert_eq!(String::from_utf8_lossy(&out.stdout).trim(), "3000000");
    // What cannot be found or run has Docker's exit codes.
    assert_eq!(server.fails(&["run", "--rm", "--network", "none", "busybox", "nothing"]).0, 127);
    assert_eq!(server.fails(&["run", "--rm", "--network", "none", "busybox", "/etc"]).0, 126);
    assert_eq!(server.fails(&["run", "--rm", "--pull", "never", "nosuchimage"]).0, 125);
    assert_eq!(store.ok(&["ps", "-aq"]), "");
}

#[test]
fn a_life() {
    let Some((store, server)) = served() else { return };
    let id = server.ok(&[
        "run",
        "-d",
        "--name",
        "box",
        "--label",
        "a=b",
        "busybox",
        "sh",
        "-c",
        "echo up; trap 'exit 3' TERM; while :; do sleep 0.1; done",
    ]);
    assert_eq!(server.ok(&["ps", "-q", "--no-trunc", "--filter", "label=a=b"]), id);
    assert_eq!(store.ok(&["ps", "-q", "--no-trunc"]), id, "the command line sees the same");
    assert_eq!(server.ok(&["exec", "box", "sh", "-c", "echo $((6*7))"]), "42");
    assert_eq!(server.fails(&["exec", "box", "sh", "-c", "exit 9"]).0, 9);
    assert_eq!(server.fails(&["exec", "box", "nothing"]).0, 127);
    server.ok(&["exec", "-d", "box", "touch", "/made"]);
    let mut made = server.out(&["exec", "box", "test", "-e", "/made"]);
    for _ in 0..100 {
        if made.status.success() {
            break;
        }
        made = server.out(&["exec", "box", "test", "-e", "/made"]);
    }
    assert!(made.status.success());
    assert!(server.ok(&["diff", "box"]).contains("A /made"));
    assert!(server.ok(&["top", "box"]).contains("sleep"));
    assert_eq!(server.ok(&["logs", "box"]), "up");
    assert!(server.ok(&["logs", "-t", "box"]).ends_with("Z up"));
    server.ok(&["pause", "box"]);
    assert_eq!(server.ok(&["inspect", "-f", "{{.State.Status}}", "box"]), "paused");
    server.ok(&["unpause", "box"]);
    server.ok(&["rename", "box", "other"]);
    server.ok(&["update", "--memory", "64m", "--memory-swap", "64m", "other"]);
    assert_eq!(server.ok(&["inspect", "-f", "{{.HostConfig.Memory}}", "other"]), "67108864");
    assert!(
        server
            .ok(&["stats", "--no-stream", "--format", "{{.Name}} {{.PIDs}}", "other"])
            .starts_with("other ")
    );
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "content").unwrap();
    server.ok(&["cp", file.to_str().unwrap(), "other:/tmp/in"]);
    assert_eq!(server.ok(&["exec", "other", "cat", "/tmp/in"]), "content");
    server.ok(&["cp", "other:/tmp/in", dir.path().join("out").to_str().unwrap()]);
    assert_eq!(std::fs::read_to_string(dir.path().join("out")).unwrap(), "content");
    server.ok(&["stop", "-t", "5", "other"]);
    assert_eq!(server.ok(&["wait", "other"]), "3");
    server.ok(&["start", "other"]);
    server.ok(&["restart", "-t", "1", "other"]);
    server.ok(&["kill", "other"]);
    server.ok(&["commit", "other", "image:new"]);
    assert!(server.ok(&["images", "--format", "{{.Repository}}:{{.Tag}}"]).contains("image:new"));
    server.ok(&["export", "-o", dir.path().join("tar").to_str().unwrap(), "other"]);
    server.ok(&["rm", "-f", "other"]);
    assert!(server.fails(&["inspect", "other"]).1.to_lowercase().contains("no such object"));
    // Docker's client knows whole seconds only.
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap();
    let soon = (now.as_secs() + 1).to_string();
    let events =
        server.ok(&["events", "--since", "1h", "--until", &soon, "--format", "{{.Type}} {{.Action}}"]);
    for event in ["container create", "container start", "container die", "container destroy"] {
        assert!(events.lines().any(|l| l == event), "{event}: {events}");
    }
}

#[test]
fn images_networks_and_volumes() {
    let Some((store, server)) = served() else { return };
    let dir = tempfile::tempdir().unwrap();
    let tar = dir.path().join("image.tar");
    server.ok(&["tag", "busybox", "again:1"]);
    server.ok(&["save", "-o", tar.to_str().unwrap(), "again:1"]);
    server.ok(&["rmi", "again:1"]);
    assert!(server.ok(&["load", "-i", tar.to_str().unwrap()]).contains("Loaded image: again:1"));
    assert!(server.ok(&["history", "again:1"]).contains("IMAGE"));
    assert_eq!(server.ok(&["image", "inspect", "-f", "{{.Os}}", "again:1"]), "linux");
    server.ok(&["network", "create", "--label", "x=y", "net1"]);
    assert_eq!(server.ok(&["network", "ls", "-q", "--filter", "label=x=y"]).len(), 12);
    server.ok(&["volume", "create", "vol1"]);
    let text = [
        "run",
        "--rm",
        "--network",
        "net1",
        "-v",
        "vol1:/v",
        "busybox",
        "sh",
        "-c",
        "echo kept >/v/f; ip -4 addr show eth0 | grep -c inet",
    ];
    assert_eq!(server.ok(&text), "1");
    assert_eq!(
        server.ok(&["run", "--rm", "--network", "none", "-v", "vol1:/v:ro", "busybox", "cat", "/v/f"]),
        "kept"
    );
    assert_eq!(server.ok(&["volume", "inspect", "-f", "{{.Driver}}", "vol1"]), "local");
    // Tools that manage workloads mount the socket; nothing else of the store can be had.
    let socket = format!("{}:/var/run/docker.sock", server.socket.display());
    let there =
        ["run", "--rm", "--network", "none", "-v", &socket, "busybox", "test", "-S", "/var/run/docker.sock"];
    server.ok(&there);
    let root = format!("{}:/x", store.run().display());
    assert!(server.fails(&["run", "--rm", "-v", &root, "busybox", "true"]).1.contains("own state"));
    server.ok(&["volume", "rm", "vol1"]);
    server.ok(&["network", "rm", "net1"]);
    for list in [
        vec!["info"],
        vec!["version"],
        vec!["system", "df"],
        vec!["system", "df", "-v"],
        vec!["volume", "ls"],
        vec!["image", "prune", "-f"],
        vec!["system", "prune", "-f"],
    ] {
        server.ok(&list);
    }
    assert!(server.fails(&["swarm", "init"]).1.contains("Swarm is not implemented"));
}
