//! The `docker` command where answers go on: terminals, follows, archives by pipe, registries, and servers that die
//! meanwhile. Verbs that are answered at once are in `api_docker.rs`.

use dhow_tests::layout::{Tar, arch, noise};
use dhow_tests::liar::Liar;
use dhow_tests::registry::{Registry, USER};
use dhow_tests::server::{Server, for_docker as served};
use dhow_tests::{Store, clients, have, vm};
use std::io::{BufRead, BufReader, Read, Write};
use std::process::{Child, ChildStdout, Command, Stdio};
use std::time::{Duration, Instant};

const LOOP: &str = "trap 'exit 3' TERM; i=0; while :; do i=$((i+1)); echo line $i; sleep 0.1; done";

/// A client whose answer goes on.
struct Stream {
    child: Child,
    out: BufReader<ChildStdout>,
}

impl Stream {
    fn of(server: &Server, args: &[&str]) -> Self {
        let mut command = server.docker(args);
        let mut child =
            command.stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::null()).spawn().unwrap();
        let out = BufReader::new(child.stdout.take().unwrap());
        Self { child, out }
    }

    /// Reads up to a line that holds this.
    fn until(&mut self, want: &str) -> String {
        loop {
            let mut line = String::new();
            assert_ne!(self.out.read_line(&mut line).unwrap(), 0, "the stream ended before {want:?}");
            if line.contains(want) {
                return line;
            }
        }
    }

    /// The client ends by itself; the rest of what it said, and its exit code.
    fn ends(mut self) -> (String, i32) {
        let mut rest = String::new();
        self.out.read_to_string(&mut rest).unwrap();
        (rest, self.child.wait().unwrap().code().unwrap_or(-1))
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// Waits for it, up to a minute and a half.
fn eventually(what: &str, mut holds: impl FnMut() -> bool) {
    let start = Instant::now();
    while !holds() {
        assert!(start.elapsed() < Duration::from_secs(90), "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

#[test]
fn on_a_terminal() {
    let Some((store, server)) = served() else { return };
    let mut script = Command::new("python3");
    let out = script.arg(clients::file("terminal.py")).env("DOCKER_HOST", server.address()).output().unwrap();
    assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    assert_eq!(store.ok(&["ps", "-aq"]), "");
}

#[test]
fn what_is_followed_ends_with_its_container() {
    let Some((_store, server)) = served() else { return };
    let mut events = Stream::of(
        &server,
        &["events", "--filter", "container=box", "--filter", "event=die", "--format", "{{.Action}}"],
    );
    server.ok(&["run", "-d", "--name", "box", "--network", "none", "busybox", "sh", "-c", LOOP]);
    let mut logs = Stream::of(&server, &["logs", "-f", "box"]);
    let mut attached = Stream::of(&server, &["attach", "--no-stdin", "--sig-proxy=false", "box"]);
    let mut stats = Stream::of(&server, &["stats", "--format", "{{.Name}}", "box"]);
    let waits = Stream::of(&server, &["wait", "box"]);
    logs.until("line 1");
    attached.until("line");
    stats.until("box");
    stats.until("box");
    server.ok(&["stop", "-t", "60", "box"]);
    assert_eq!(logs.ends().1, 0);
    assert_eq!(attached.ends().1, 3);
    let (code, _) = waits.ends();
    assert_eq!(code.trim(), "3");
    assert_eq!(events.until("die").trim(), "die");
    // A signal to a client without a terminal is passed on.
    let mut run = Stream::of(&server, &["run", "--rm", "--network", "none", "busybox", "sh", "-c", LOOP]);
    run.until("line 2");
    let pid = rustix::process::Pid::from_child(&run.child);
    rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
    assert_eq!(run.ends().1, 3);
    // Archives by pipe, in both directions.
    let mut out = server.docker(&["cp", "box:/etc/passwd", "-"]).stdout(Stdio::piped()).spawn().unwrap();
    let into = server.docker(&["cp", "-", "box:/tmp"]).stdin(out.stdout.take().unwrap()).status().unwrap();
    assert!(into.success() && out.wait().unwrap().success());
    assert!(server.ok(&["diff", "box"]).contains("A /tmp/passwd"));
}

#[test]
fn restarts_health_and_names() {
    let Some((store, server)) = served() else { return };
    let quiet = ["run", "-d", "--network", "none", "--name"];
    let run = |name: &str, more: &[&str]| server.ok(&[&quiet[..], &[name], more].concat());
    run("again", &["--restart", "on-failure:2", "busybox", "sh", "-c", "exit 4"]);
    let check = "--health-cmd=test -e /well";
    let often = ["--health-interval=200ms", "--health-retries=1", "--health-timeout=30s"];
    run("ill", &[&[check], &often[..], &["busybox", "sleep", "1000"]].concat());
    let state = |format: &str, name: &str| server.ok(&["inspect", "-f", format, name]);
    eventually("it does not fall ill", || state("{{.State.Health.Status}}", "ill") == "unhealthy");
    server.ok(&["exec", "ill", "touch", "/well"]);
    eventually("it does not get well", || state("{{.State.Health.Status}}", "ill") == "healthy");
    assert!(server.ok(&["ps", "--filter", "health=healthy"]).contains("(healthy)"));
    eventually("it was not restarted twice", || {
        state("{{.RestartCount}} {{.State.Status}} {{.State.ExitCode}}", "again") == "2 exited 4"
    });
    // A name that is taken; what goes away by itself, also where its start fails.
    let (code, said) = server.fails(&["run", "--name", "ill", "busybox", "true"]);
    assert!(code == 125 && said.contains("already in use"), "{code} {said}");
    assert_eq!(server.fails(&["run", "--rm", "--name", "bad", "busybox", "nothing"]).0, 127);
    assert_eq!(server.fails(&["run", "-d", "--rm", "--name", "bad", "busybox", "nothing"]).0, 127);
    server.ok(&["rm", "-f", "ill", "again"]);
    eventually("something is left", || store.ok(&["ps", "-aq"]).is_empty());
}

#[test]
fn registries_and_contexts() {
    let Some((_store, server)) = served() else { return };
    let config = tempfile::tempdir().unwrap();
    let docker = |args: &[&str]| {
        let mut command = server.docker(args);
        command.env("DOCKER_CONFIG", config.path()).stdin(Stdio::null()).output().unwrap()
    };
    if let Some(registry) = Registry::with_password() {
        let name = registry.name("some/image:1");
        server.ok(&["tag", "busybox", &name]);
        assert!(!docker(&["push", &name]).status.success(), "pushed without a password");
        let (user, password) = USER;
        assert!(!docker(&["login", "-u", user, "-p", "wrong", &registry.host]).status.success());
        let login = docker(&["login", "-u", user, "-p", password, &registry.host]);
        assert!(String::from_utf8_lossy(&login.stdout).contains("Login Succeeded"), "{login:?}");
        let pushed = docker(&["push", &name]);
        assert!(String::from_utf8_lossy(&pushed.stdout).contains("digest: sha256:"), "{pushed:?}");
        server.ok(&["rmi", &name]);
        let pulled = docker(&["pull", &name]);
        assert!(String::from_utf8_lossy(&pulled.stdout).contains("Status: "), "{pulled:?}");
        // `run` pulls what is not there.
        server.ok(&["rmi", &name]);
        let run = docker(&["run", "--rm", "--network", "none", &name, "echo", "ran"]);
        assert_eq!(String::from_utf8_lossy(&run.stdout), "ran\n", "{run:?}");
        assert!(!docker(&["pull", &registry.name("some/other:1")]).status.success());
    }
    // Import from a pipe, with changes.
    let mut tar = tar::Builder::new(Vec::new());
    let mut header = tar::Header::new_gnu();
    header.set_size(0);
    header.set_mode(0o644);
    tar.append_data(&mut header, "file", &b""[..]).unwrap();
    let mut import = server
        .docker(&["import", "-c", "CMD [\"/file\"]", "-", "made:2"])
        .stdin(Stdio::piped())
        .stdout(Stdio::null())
        .spawn()
        .unwrap();
    import.stdin.take().unwrap().write_all(&tar.into_inner().unwrap()).unwrap();
    assert!(import.wait().unwrap().success());
    assert_eq!(server.ok(&["image", "inspect", "-f", "{{.Config.Cmd}}", "made:2"]), "[/file]");
    // A context instead of the variable.
    let host = format!("host={}", server.address());
    let context = |args: &[&str]| {
        let mut command = Command::new("docker");
        command.env_remove("DOCKER_HOST").env("DOCKER_CONFIG", config.path()).args(args).output().unwrap()
    };
    assert!(context(&["context", "create", "dhow", "--docker", &host]).status.success());
    let images = context(&["--context", "dhow", "images", "-q", "made"]);
    assert!(images.status.success() && !images.stdout.is_empty(), "{images:?}");
}

#[test]
fn clients_go_on_with_the_next_server() {
    let Some((store, mut server)) = served() else { return };
    server.ok(&["run", "-d", "--name", "box", "--network", "none", "busybox", "sh", "-c", LOOP]);
    let mut streams: Vec<Stream> = [
        &["logs", "-f", "box"][..],
        &["attach", "--no-stdin", "box"],
        &["exec", "-i", "box", "sh", "-c", LOOP],
        &["events", "--since", "1h", "--format", "line {{.Action}}"],
        &["run", "--name", "mine", "--network", "none", "busybox", "sh", "-c", LOOP],
    ]
    .iter()
    .map(|args| Stream::of(&server, args))
    .collect();
    let mut waits = Stream::of(&server, &["wait", "box"]);
    // Docker's client shows its last figures for ever.
    let mut stats = Stream::of(&server, &["stats", "--format", "line {{.Name}}", "box"]);
    for stream in streams.iter_mut().chain([&mut stats]) {
        stream.until("line");
    }
    let socket = server.socket.clone();
    server.kill();
    // Each client notices; nothing stopped.
    for stream in streams.iter_mut().chain([&mut waits]) {
        eventually("a client does not notice", || stream.child.try_wait().unwrap().is_some());
    }
    drop(stats);
    let next = Server::at(&store, socket, &[]);
    assert_eq!(next.ok(&["ps", "--format", "{{.Names}}"]), "mine\nbox");
    // The same clients once more: what the first server held is held by nobody.
    let mut again = Stream::of(&next, &["attach", "--no-stdin", "--sig-proxy=false", "mine"]);
    again.until("line");
    assert!(next.ok(&["logs", "--tail", "1", "box"]).starts_with("line"));
    next.ok(&["exec", "box", "true"]);
    next.ok(&["stop", "-t", "60", "mine", "box"]);
    assert_eq!(again.ends().1, 3);
    next.ok(&["rm", "mine", "box"]);
    assert_eq!(store.ok(&["ps", "-aq"]), "");
}

/// Files of images that are half there.
fn halves(store: &Store) -> Vec<String> {
    let list = |dir: &str, of: fn(&str) -> bool| {
        let entries = std::fs::read_dir(store.root().join(dir)).into_iter().flatten().flatten();
        entries.map(|e| e.file_name().into_string().unwrap()).filter(|n| of(n)).collect::<Vec<_>>()
    };
    [list("content/tmp", |n| !n.ends_with(".lock")), list("layers", |n| n.starts_with('.'))].concat()
}

/// What is on its way in or out when the server dies is nobody's afterwards, and goes the next time.
#[test]
fn transfers_begin_again_with_the_next_server() {
    let Some((store, mut server)) = served() else { return };
    let liar = Liar::start();
    let layer = Tar::new().file("f", &noise(1, 300_000)).end();
    let blob = liar.serve(&[layer], arch()).remove(0);
    liar.change(&blob, |answer| answer.speed = 4000);
    let silent = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let away = format!("{}/busybox", silent.local_addr().unwrap());
    store.ok(&["tag", "busybox", &away]);
    let big = "dd if=/dev/urandom of=/big bs=1M count=8 2>/dev/null; sleep 600";
    server.ok(&["run", "-d", "--name", "box", "--network", "none", "busybox", "sh", "-c", big]);
    eventually("the file", || server.ok(&["exec", "box", "stat", "-c", "%s", "/big"]) == "8388608");
    server.ok(&["commit", "box", "made"]);
    let dir = tempfile::tempdir().unwrap();
    let path = |name: &str| dir.path().join(name).display().to_string();
    server.ok(&["save", "-o", &path("image.tar"), "made"]);
    server.ok(&["export", "-o", &path("files.tar"), "box"]);

    let ins: [(&[&str], &str); 3] = [
        (&["load"], "image.tar"),
        (&["import", "-", "imported"], "files.tar"),
        (&["cp", "-", "box:/tmp"], "files.tar"),
    ];
    let outs: [&[&str]; 3] = [&["save", "made"], &["export", "box"], &["cp", "box:/big", "-"]];
    let mut streams = Vec::new();
    for (args, archive) in ins {
        let mut stream = Stream::of(&server, args);
        let bytes = std::fs::read(path(archive)).unwrap();
        stream.child.stdin.as_mut().unwrap().write_all(&bytes[..bytes.len() / 2]).unwrap();
        streams.push(stream);
    }
    for args in outs {
        let mut stream = Stream::of(&server, args);
        stream.out.read_exact(&mut [0; 512]).unwrap();
        streams.push(stream);
    }
    streams.push(Stream::of(&server, &["pull", &liar.image()]));
    streams.push(Stream::of(&server, &["push", &away]));
    eventually("the pull", || liar.requests(&blob) > 0);
    let (pushed, _) = silent.accept().unwrap();
    let socket = server.socket.clone();
    server.kill();
    drop(pushed);
    for mut stream in streams {
        // Who is in the middle of a write notices, and so does who reads.
        drop(stream.child.stdin.take());
        let mut rest = Vec::new();
        stream.out.read_to_end(&mut rest).unwrap();
        eventually("a client does not notice", || stream.child.try_wait().unwrap().is_some());
    }

    let next = Server::at(&store, socket, &[]);
    liar.change(&blob, |answer| answer.speed = 0);
    for (args, archive) in ins {
        let file = std::fs::File::open(path(archive)).unwrap();
        let done = next.docker(args).stdin(file).output().unwrap();
        assert!(done.status.success(), "{args:?}: {done:?}");
    }
    for args in outs {
        assert!(next.docker(args).output().unwrap().stdout.len() > 8 << 20, "{args:?}");
    }
    next.ok(&["pull", &liar.image()]);
    assert_eq!(next.ok(&["exec", "box", "stat", "-c", "%s", "/tmp/big"]), "8388608");
    next.ok(&["rm", "-f", "box"]);
    store.ok(&["system", "recover"]);
    assert_eq!(halves(&store), [""; 0]);
}

#[test]
fn a_microvm() {
    if !have("docker") {
        eprintln!("SKIPPED: the docker command is missing");
        return;
    }
    let Some(store) = vm::store() else { return };
    let server = Server::start(&store, &[]);
    let id = server.ok(&["run", "-d", "--runtime", "vm", "--name", "box", "busybox", "sh", "-c", LOOP]);
    assert_eq!(
        server.ok(&["inspect", "-f", "{{.HostConfig.Runtime}} {{.State.Running}}", "box"]),
        "dhow-vm true"
    );
    let mut logs = Stream::of(&server, &["logs", "-f", "box"]);
    logs.until("line 2");
    assert_eq!(server.ok(&["exec", "box", "sh", "-c", "echo $((6*7))"]), "42");
    assert_eq!(server.fails(&["exec", "box", "sh", "-c", "exit 9"]).0, 9);
    let stats = server.ok(&["stats", "--no-stream", "--no-trunc", "--format", "{{.ID}}", "box"]);
    assert_eq!(stats, id);
    let dir = tempfile::tempdir().unwrap();
    let file = dir.path().join("file");
    std::fs::write(&file, "content").unwrap();
    server.ok(&["cp", file.to_str().unwrap(), "box:/tmp/in"]);
    assert_eq!(server.ok(&["exec", "box", "cat", "/tmp/in"]), "content");
    server.ok(&["stop", "-t", "60", "box"]);
    assert_eq!(logs.ends().1, 0);
    assert_eq!(server.ok(&["wait", "box"]), "3");
    server.ok(&["rm", "box"]);
}
