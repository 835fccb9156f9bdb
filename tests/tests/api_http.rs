//! `dhow serve` as it is on the wire: versions, statuses, bad input, clients that vanish, and its death.

use dhow_tests::Store;
use dhow_tests::layout::{Tar, arch, noise};
use dhow_tests::liar::Liar;
use dhow_tests::said::until;
use dhow_tests::server::{Server, served, sleeper};
use serde_json::json;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::process::{Child, Stdio};

#[test]
fn versions_and_statuses() {
    let Some((_store, server)) = served(&[]) else { return };
    assert_eq!(std::fs::metadata(&server.socket).unwrap().permissions().mode() & 0o777, 0o660);
    let ping = server.ask("GET", "/_ping", None);
    assert_eq!((ping.status, &ping.body[..], ping.header("api-version")), (200, &b"OK"[..], Some("1.50")));
    assert_eq!(server.ask("HEAD", "/_ping", None).status, 200);
    assert_eq!(server.ask("GET", "/v1.24/version", None).json()["MinAPIVersion"], "1.24");
    for (path, status, said) in [
        ("/v1.23/info", 400, "too old"),
        ("/v1.99/info", 400, "too new"),
        ("/v1.41/nothing", 404, "page not found"),
        ("/containers/none/json", 404, "No such container: none"),
        ("/images/none/json", 404, "No such image: none"),
        ("/networks/absent", 404, "network absent not found"),
        ("/volumes/none", 404, "no such volume"),
        ("/exec/none/json", 404, "exec instance: none"),
        ("/swarm", 501, "Swarm is not implemented"),
        ("/containers/json?filters=nonsense", 400, "invalid filter"),
        ("/containers/json?filters=%7B%22nonsense%22%3A%5B%22x%22%5D%7D", 400, "nonsense"),
        ("/containers/json?limit=x", 400, "invalid limit"),
        ("/events?since=yesterday", 400, "invalid since"),
    ] {
        let answer = server.ask("GET", path, None);
        let message = answer.message();
        assert!(answer.status == status && message.contains(said), "{path}: {} {message}", answer.status);
    }
    assert_eq!(server.ask("POST", "/build", None).status, 501);
    assert_eq!(server.create("box", sleeper()).status, 201);
    assert_eq!(server.create("box", sleeper()).status, 409);
    let listed = |query: &str| {
        let found = server.ask("GET", &format!("/containers/json?{query}"), None).json();
        found.as_array().unwrap().iter().map(|c| c["State"].as_str().unwrap().to_owned()).collect::<Vec<_>>()
    };
    assert_eq!(
        (listed(""), listed("all=1"), listed("limit=1")),
        (vec![], vec!["created".into()], vec!["created".into()])
    );
    assert_eq!(server.ask("POST", "/containers/box/start", None).status, 204);
    assert_eq!((listed(""), listed("all=1")), (vec!["running".into()], vec!["running".into()]));
    for (filter, fits) in [("network", "none"), ("network", "bridge"), ("name", "box"), ("status", "created")]
    {
        let filters = format!("filters=%7B%22{filter}%22%3A%5B%22{fits}%22%5D%7D");
        assert_eq!(listed(&filters).len(), usize::from(matches!(fits, "none" | "box")), "{filter} {fits}");
    }
    assert_eq!(server.ask("POST", "/containers/box/start", None).status, 304);
    assert_eq!(server.ask("POST", "/containers/box/unpause", None).status, 409);
    assert_eq!(server.ask("DELETE", "/containers/box", None).status, 409);
    assert_eq!(server.ask("POST", "/containers/box/stop?t=0", None).status, 204);
    assert_eq!(server.ask("POST", "/containers/box/stop", None).status, 304);
    assert_eq!((listed(""), listed("all=1&size=1")), (vec![], vec!["exited".into()]));
    assert_eq!(server.ask("POST", "/containers/box/kill", None).status, 409);
    assert_eq!(server.ask("POST", "/containers/box/wait", None).json()["StatusCode"], 137);
    assert_eq!(server.ask("DELETE", "/containers/box", None).status, 204);
}

#[test]
fn bad_input_gets_a_sentence() {
    let Some((_store, server)) = served(&[]) else { return };
    let post = |kind: &str, body: &str| {
        server.send(&format!(
            "POST /containers/create HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: {kind}\r\nContent-Length: {}\r\n\r\n{body}",
            body.len()
        ))
    };
    for (kind, body, said) in [
        ("application/json", "{", "invalid JSON"),
        ("application/json", "[]", "object"),
        ("application/json", "", "config cannot be empty"),
        ("application/json", "{\"Image\": 5}", "invalid JSON"),
        ("application/json", "{\"Image\": \"busybox\", \"HostConfig\": {\"Memory\": \"x\"}}", "invalid JSON"),
        ("application/json", "{}", "image"),
        ("text/plain", "{\"Image\": \"busybox\"}", "Content-Type"),
    ] {
        let answer = post(kind, body);
        let message = answer.message();
        assert!(answer.status == 400 && message.contains(said), "{body}: {} {message}", answer.status);
    }
    assert_eq!(post("application/json", "{\"Image\": \"none\"}").status, 404);
    let unknown = post(
        "application/json",
        "{\"Image\": \"busybox\", \"Cmd\": [\"true\"], \"Nonsense\": {\"a\": 1}, \"HostConfig\": {\"X\": 1}}",
    );
    assert_eq!(unknown.status, 201, "{}", String::from_utf8_lossy(&unknown.body));
    // Heads and bodies beyond all measure.
    let long = "x".repeat(200_000);
    let head =
        server.send(&format!("GET /info HTTP/1.1\r\nHost: d\r\nX: {long}\r\nConnection: close\r\n\r\n"));
    assert_eq!(head.status, 431);
    let huge = "POST /containers/create HTTP/1.1\r\nHost: d\r\nContent-Type: application/json\r\nConnection: close\r\nContent-Length: 99999999\r\n\r\n";
    let mut stream = UnixStream::connect(&server.socket).unwrap();
    stream.write_all(huge.as_bytes()).unwrap();
    let piece = vec![b' '; 1 << 20];
    let sent = (0..99).take_while(|_| stream.write_all(&piece).is_ok()).count();
    assert!(sent < 99, "all of an enormous body was taken");
    assert_eq!(server.send("nonsense\r\n\r\n").status, 400);
}

fn resident(pid: i32) -> u64 {
    let status = std::fs::read_to_string(format!("/proc/{pid}/status")).unwrap();
    let line = status.lines().find_map(|l| l.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse().unwrap()
}

/// Those of a process, but for its databases: SQLite keeps closed ones for the next that opens them.
fn descriptors(pid: i32) -> usize {
    let all = std::fs::read_dir(format!("/proc/{pid}/fd")).unwrap().flatten();
    let targets = all.filter_map(|fd| std::fs::read_link(fd.path()).ok());
    targets.filter(|to| !to.to_string_lossy().contains("state.db")).count()
}

#[test]
fn clients_that_vanish_leave_nothing() {
    let Some((_store, server)) = served(&[]) else { return };
    assert_eq!(server.create("box", sleeper()).status, 201);
    server.ask("POST", "/containers/box/start", None);
    assert_eq!(server.create("idle", sleeper()).status, 201);
    server.ask("GET", "/containers/json", None);
    let before = descriptors(server.pid());
    let open = |request: &str| {
        let mut stream = UnixStream::connect(&server.socket).unwrap();
        stream.write_all(request.as_bytes()).unwrap();
        stream
    };
    let mut held = Vec::new();
    for _ in 0..20 {
        for path in [
            "GET /events",
            "GET /containers/box/logs?follow=1&stdout=1",
            "GET /containers/box/stats",
            "POST /containers/box/wait",
            "POST /containers/idle/wait?condition=next-exit",
        ] {
            held.push(open(&format!("{path} HTTP/1.1\r\nHost: d\r\n\r\n")));
        }
        for name in ["box", "idle"] {
            held.push(open(&format!("POST /containers/{name}/attach?stream=1&stdout=1&stdin=1 HTTP/1.1\r\nHost: d\r\nConnection: Upgrade\r\nUpgrade: tcp\r\nContent-Length: 0\r\n\r\n")));
        }
    }
    for stream in &mut held {
        let mut head = [0; 12];
        stream.read_exact(&mut head).unwrap();
        assert!(matches!(&head[9..], b"200" | b"101"), "{}", String::from_utf8_lossy(&head));
    }
    held.extend((0..800).map(|_| UnixStream::connect(&server.socket).unwrap()));
    until("a thousand connections", || descriptors(server.pid()) > before + 900);
    assert_eq!(server.ask("GET", "/_ping", None).status, 200);
    let most = resident(server.pid());
    assert!(most < 120_000, "{most} KiB for a thousand connections");
    drop(held);
    until("the end of all that they held", || descriptors(server.pid()) <= before + 4);
    server.ask("DELETE", "/containers/box?force=1", None);
}

#[test]
fn a_killed_server_stops_nothing() {
    let Some((store, mut server)) = served(&[]) else { return };
    assert_eq!(server.create("box", sleeper()).status, 201);
    assert_eq!(server.ask("POST", "/containers/box/start", None).status, 204);
    let mut streams: Vec<UnixStream> =
        ["GET /events", "GET /containers/box/logs?follow=1&stdout=1", "POST /containers/box/wait"]
            .iter()
            .map(|path| {
                let mut stream = UnixStream::connect(&server.socket).unwrap();
                stream.write_all(format!("{path} HTTP/1.1\r\nHost: d\r\n\r\n").as_bytes()).unwrap();
                let mut head = [0; 12];
                stream.read_exact(&mut head).unwrap();
                stream
            })
            .collect();
    server.kill();
    for stream in &mut streams {
        let mut rest = Vec::new();
        let _ = stream.read_to_end(&mut rest);
    }
    assert_eq!(store.ok(&["inspect", "-f", "{{.State.Status}}", "box"]), "running");
    // The socket that it left is taken over, of many by one; a second server beside it is not let in.
    one_of_many_listens(&store, &server);
    let next = Server::start(&store, &[]);
    assert_eq!(next.ask("GET", "/containers/box/json", None).json()["State"]["Running"], true);
    let taken = store.out(&["serve", "--socket", next.socket.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&taken.stderr).contains("another server listens"), "{taken:?}");
    let beside = Server::at(&store, store.run().join("other.sock"), &[]);
    assert_eq!(beside.ask("POST", "/containers/box/kill", None).status, 204);
    assert_eq!(next.ask("POST", "/containers/box/wait", None).json()["StatusCode"], 137);
    store.ok(&["rm", "box"]);
}

fn one_of_many_listens(store: &Store, left: &Server) {
    let serve = || {
        let mut command = store.command(&["serve", "--socket", left.socket.to_str().unwrap()]);
        command.stdout(Stdio::null()).stderr(Stdio::piped()).spawn().unwrap()
    };
    let mut all: Vec<Child> = (0..4).map(|_| serve()).collect();
    let mut refused = Vec::new();
    until("all but one have given up", || {
        for child in &mut all {
            if child.try_wait().unwrap().is_some()
                && let Some(mut said) = child.stderr.take()
            {
                let mut text = String::new();
                said.read_to_string(&mut text).unwrap();
                refused.push(text);
            }
        }
        refused.len() == 3
    });
    assert!(refused.iter().all(|said| said.contains("another server listens")), "{refused:?}");
    until("the last one", || UnixStream::connect(&left.socket).is_ok());
    assert_eq!(left.ask("GET", "/_ping", None).status, 200);
    for child in &mut all {
        let pid = rustix::process::Pid::from_child(child);
        if child.try_wait().unwrap().is_none() {
            rustix::process::kill_process(pid, rustix::process::Signal::TERM).unwrap();
        }
        child.wait().unwrap();
    }
    assert!(!left.socket.exists() && !left.socket.with_extension("sock.lock").exists());
}

/// A request with these headers whose connection becomes a stream; the answer's head is read.
fn attached(server: &Server, path: &str, headers: &str) -> BufReader<UnixStream> {
    let mut reader = BufReader::new(UnixStream::connect(&server.socket).unwrap());
    head_of(&mut reader, &format!("POST {path} HTTP/1.1\r\nHost: d\r\n{headers}\r\n"));
    reader
}

/// Sends this, and reads the head of the answer.
fn head_of(stream: &mut BufReader<UnixStream>, request: &str) -> String {
    stream.get_mut().write_all(request.as_bytes()).unwrap();
    let mut head = String::new();
    while !head.ends_with("\r\n\r\n") {
        assert_ne!(stream.read_line(&mut head).unwrap(), 0, "{head}");
    }
    head.to_lowercase()
}

/// Reads until this has come.
fn read_to(stream: &mut impl Read, wanted: &[u8]) {
    let mut seen = Vec::new();
    while !seen.ends_with(wanted) {
        let mut byte = [0];
        stream.read_exact(&mut byte).unwrap();
        seen.push(byte[0]);
    }
}

/// What was logged before and what comes now is told once, whole and in order.
#[test]
fn streams_go_on_where_the_log_ends() {
    let Some((store, server)) = served(&[]) else { return };
    let count = "i=100000; while :; do echo $i; i=$((i+1)); done";
    let body = json!({"Image": "busybox", "Cmd": ["sh", "-c", count], "HostConfig": {"NetworkMode": "none"}});
    assert_eq!(server.create("count", body).status, 201);
    assert_eq!(server.ask("POST", "/containers/count/start", None).status, 204);
    until("some lines", || store.ok(&["logs", "-n", "1", "count"]).as_str() > "100200");
    let mut stream = attached(
        &server,
        "/containers/count/attach?logs=1&stream=1&stdout=1",
        "Connection: Upgrade\r\nUpgrade: tcp\r\n",
    );
    let mut text = Vec::new();
    while text.len() < 1 << 20 {
        let mut head = [0; 8];
        stream.read_exact(&mut head).unwrap();
        let mut piece = vec![0; u32::from_be_bytes(head[4..].try_into().unwrap()) as usize];
        stream.read_exact(&mut piece).unwrap();
        text.extend(piece);
    }
    let lines = text.split(|b| *b == b'\n').map(|line| String::from_utf8_lossy(line).into_owned());
    let lines: Vec<String> = lines.collect();
    for (line, number) in lines[..lines.len() - 1].iter().zip(100_000..) {
        assert_eq!(*line, number.to_string());
    }
    store.ok(&["rm", "-f", "count"]);
}

/// Who does not ask for the connection has it all the same, unless he sends his input as his request's body.
#[test]
fn streams_without_an_upgrade_and_sessions_that_are_over() {
    let Some((store, server)) = served(&[]) else { return };
    let body = json!({"Image": "busybox", "Cmd": ["cat"], "OpenStdin": true, "StdinOnce": true, "HostConfig": {"NetworkMode": "none"}});
    assert_eq!(server.create("cat", body).status, 201);
    let mut raw =
        attached(&server, "/containers/cat/attach?stream=1&stdin=1&stdout=1", "Content-Length: 0\r\n");
    // One that sends its input in its request's body has nothing to send yet.
    let mut chunked = attached(
        &server,
        "/containers/cat/attach?stream=1&stdin=1&stdout=1",
        "Transfer-Encoding: chunked\r\n",
    );
    assert_eq!(server.ask("POST", "/containers/cat/start", None).status, 204);
    for (number, speaks) in [b"one\n", b"two\n"].into_iter().enumerate() {
        match number {
            0 => raw.get_mut().write_all(speaks).unwrap(),
            _ => chunked.get_mut().write_all(&[b"4\r\n", &speaks[..], b"\r\n"].concat()).unwrap(),
        }
        for stream in [&mut raw, &mut chunked] {
            read_to(stream, speaks);
        }
    }
    // The server's limits are not the workload's.
    let files = |shell: &mut std::process::Command| {
        String::from_utf8(shell.args(["sh", "-c", "ulimit -Sn"]).output().unwrap().stdout).unwrap()
    };
    let ours = files(&mut std::process::Command::new("env"));
    assert_eq!(files(&mut store.command(&["exec", "cat"])), ours);
    // So has a later request of a connection, with what is sent behind it at once; and the connection ends with it.
    let mut later = BufReader::new(UnixStream::connect(&server.socket).unwrap());
    let none = "POST /containers/none/attach?stream=1 HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n";
    let head = head_of(&mut later, none);
    assert!(head.starts_with("http/1.1 404") && !head.contains("connection: close"), "{head}");
    read_to(&mut later, b"}\n");
    let head = head_of(
        &mut later,
        "POST /containers/cat/attach?stream=1&stdin=1&stdout=1 HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\nthree\n",
    );
    assert!(head.starts_with("http/1.0 200") && head.contains("connection: close"), "{head}");
    assert!(!head.contains("chunked") && !head.contains("content-length"), "{head}");
    read_to(&mut later, b"three\n");
    later.get_mut().write_all(b"four\n").unwrap();
    read_to(&mut later, b"four\n");
    // A session of exec is known as long as its container is.
    let exec = json!({"Cmd": ["true"], "AttachStdout": true});
    let made =
        server.ask("POST", "/containers/cat/exec", Some(&exec)).json()["Id"].as_str().unwrap().to_owned();
    assert_eq!(
        server.ask("POST", &format!("/exec/{made}/start"), Some(&json!({"Detach": true}))).status,
        200
    );
    until("the end of the session", || {
        server.ask("GET", &format!("/exec/{made}/json"), None).json()["ExitCode"] == 0
    });
    // One whose end nobody saw has a code all the same: none would be read as success.
    let lost = json!({"Cmd": ["sleep", "600"]});
    for ends in ["restart", "supervisor"] {
        let made =
            server.ask("POST", "/containers/cat/exec", Some(&lost)).json()["Id"].as_str().unwrap().to_owned();
        let path = format!("/exec/{made}/json");
        let detached = json!({"Detach": true});
        assert_eq!(server.ask("POST", &format!("/exec/{made}/start"), Some(&detached)).status, 200);
        let told = server.ask("GET", &path, None).json();
        assert!(told["Running"] == true && told["ExitCode"].is_null(), "{told}");
        match ends {
            "restart" => store.ok(&["restart", "-t", "0", "cat"]),
            _ => {
                let supervisor = store.supervisor("cat").to_string();
                assert!(
                    std::process::Command::new("kill").args(["-9", &supervisor]).status().unwrap().success()
                );
                String::new()
            }
        };
        until("the end of the session", || {
            let told = server.ask("GET", &path, None).json();
            assert!(told["Running"] == true || told["ExitCode"] == 137, "{ends}: {told}");
            told["Running"] == false
        });
    }
    store.ok(&["rm", "-f", "cat"]);
    later.read_to_end(&mut Vec::new()).unwrap();
    assert_eq!(server.ask("GET", &format!("/exec/{made}/json"), None).status, 404);
    assert_eq!(std::fs::read_dir(store.run().join("execs")).unwrap().count(), 0);
}

/// Threads of a server that are at a stream.
fn streams_of(server: &Server) -> usize {
    let tasks = std::fs::read_dir(format!("/proc/{}/task", server.pid())).unwrap().flatten();
    let names = tasks.filter_map(|task| std::fs::read_to_string(task.path().join("comm")).ok());
    names.filter(|name| name.trim() == "stream").count()
}

/// A pull ends with the client that wants it, and clients that send slowly keep no other from being served.
#[test]
fn who_goes_or_dawdles_takes_nothing_from_others() {
    let Some((store, server)) = served(&[]) else { return };
    let liar = Liar::start();
    let layer = Tar::new().file("noise", &noise(1, 400_000)).end();
    let paths = liar.serve(&[layer], arch());
    liar.change(&paths[0], |answer| answer.speed = 4000);
    let pull = format!(
        "POST /images/create?fromImage={}&tag=latest HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n",
        liar.image()
    );
    let mut client = UnixStream::connect(&server.socket).unwrap();
    client.write_all(pull.as_bytes()).unwrap();
    until("the download", || liar.requests(&paths[0]) > 0);
    assert!(streams_of(&server) > 0);
    drop(client);
    until("the end of the pull", || streams_of(&server) == 0);
    assert!(!store.out(&["image", "inspect", &liar.image()]).status.success());

    let large = json!({"Image": "busybox", "Cmd": ["true"], "Unknown": "x".repeat(3_900_000)}).to_string();
    let head = format!(
        "POST /containers/create HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Type: application/json\r\nContent-Length: {}\r\n\r\n",
        large.len()
    );
    let slow: Vec<UnixStream> = (0..20)
        .map(|_| {
            let mut stream = UnixStream::connect(&server.socket).unwrap();
            // Some are told to go before they have sent all of this.
            let _ = stream.write_all(format!("{head}{}", &large[..large.len() - 1]).as_bytes());
            stream
        })
        .collect();
    let served = server.send(&format!("{head}{large}"));
    assert_eq!(served.status, 201, "{}", String::from_utf8_lossy(&served.body));
    drop(slow);
    let nonsense = "POST /images/create?fromSrc=-&repo=none HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: 8\r\n\r\nnonsense";
    let refused = server.send(nonsense);
    assert_eq!(refused.status, 400, "{}", String::from_utf8_lossy(&refused.body));
    // What is kept of a container is bounded: each who lists it gets it.
    let kept = json!({"Image": "busybox", "Labels": {"large": "x".repeat(600_000)}});
    let refused = server.create("large", kept);
    assert!(refused.status == 400 && refused.message().contains("524288"), "{}", refused.message());
}

/// Stops that never end keep neither threads nor the supervisor from others.
#[test]
fn stops_that_never_end_stop_nobody() {
    let Some((store, server)) = served(&[]) else { return };
    let deaf = json!({"Image": "busybox", "Cmd": ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"], "HostConfig": {"NetworkMode": "none"}});
    assert_eq!(server.create("deaf", deaf).status, 201);
    assert_eq!(server.ask("POST", "/containers/deaf/start", None).status, 204);
    let held: Vec<UnixStream> = (0..300)
        .map(|_| {
            let mut stream = UnixStream::connect(&server.socket).unwrap();
            stream
                .write_all(
                    b"POST /containers/deaf/stop?t=-1 HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n",
                )
                .unwrap();
            stream
        })
        .collect();
    assert_eq!(server.ask("GET", "/containers/json", None).status, 200);
    drop(held);
    until("the kill", || server.ask("POST", "/containers/deaf/kill", None).status == 204);
    assert_eq!(server.ask("POST", "/containers/deaf/wait", None).json()["StatusCode"], 137);
    // The code of what was removed is told to who waited for that.
    let mut waits = UnixStream::connect(&server.socket).unwrap();
    waits.write_all(b"POST /containers/deaf/wait?condition=removed HTTP/1.1\r\nHost: d\r\nConnection: close\r\nContent-Length: 0\r\n\r\n").unwrap();
    let mut head = [0; 12];
    waits.read_exact(&mut head).unwrap();
    store.ok(&["rm", "deaf"]);
    let mut rest = String::new();
    waits.read_to_string(&mut rest).unwrap();
    assert!(rest.contains("\"StatusCode\":137"), "{rest}");
    a_restart_outlives_its_client(&store, &server);
}

/// Nor does it take a container away that is to go when it ends.
fn a_restart_outlives_its_client(store: &Store, server: &Server) {
    let again = json!({"Image": "busybox", "Cmd": ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"], "HostConfig": {"NetworkMode": "none", "AutoRemove": true}});
    assert_eq!(server.create("again", again).status, 201);
    assert_eq!(server.ask("POST", "/containers/again/start", None).status, 204);
    let started = || server.ask("GET", "/containers/again/json", None).json()["State"]["StartedAt"].clone();
    let before = started();
    let session = json!({"Cmd": ["sleep", "600"]});
    let session = server.ask("POST", "/containers/again/exec", Some(&session)).json()["Id"].clone();
    let session = session.as_str().unwrap();
    let begun = server.ask("POST", &format!("/exec/{session}/start"), Some(&json!({"Detach": true})));
    assert_eq!(begun.status, 200);
    let mut client = UnixStream::connect(&server.socket).unwrap();
    let request = b"POST /containers/again/restart?t=1 HTTP/1.1\r\nHost: d\r\nContent-Length: 0\r\n\r\n";
    client.write_all(request).unwrap();
    std::thread::sleep(std::time::Duration::from_millis(300));
    drop(client);
    until("the start after the stop", || {
        let state = server.ask("GET", "/containers/again/json", None).json()["State"].clone();
        state["Running"] == true && state["StartedAt"] != before
    });
    // What ran in the run before was killed with that.
    assert_eq!(server.ask("GET", &format!("/exec/{session}/json"), None).json()["ExitCode"], 137);
    store.ok(&["rm", "-f", "again"]);
}
