//! `dhow serve` as it is on the wire: versions, statuses, bad input, clients that vanish, rules, and its death.

use dhow_tests::server::Server;
use dhow_tests::{Store, busybox};
use serde_json::json;
use std::io::{Read, Write};
use std::os::unix::fs::PermissionsExt;
use std::os::unix::net::UnixStream;
use std::time::{Duration, Instant};

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !done() {
        assert!(begin.elapsed() < Duration::from_secs(30), "waited in vain: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn served(args: &[&str]) -> Option<(Store, Server)> {
    let store = busybox::store()?;
    let server = Server::start(&store, args);
    Some((store, server))
}

fn create(server: &Server, name: &str, body: serde_json::Value) -> dhow_tests::server::Answer {
    server.ask("POST", &format!("/containers/create?name={name}"), Some(&body))
}

fn sleeper() -> serde_json::Value {
    json!({"Image": "busybox", "Cmd": ["sleep", "600"], "HostConfig": {"NetworkMode": "none"}})
}

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
    assert_eq!(create(&server, "box", sleeper()).status, 201);
    assert_eq!(create(&server, "box", sleeper()).status, 409);
    assert_eq!(server.ask("POST", "/containers/box/start", None).status, 204);
    assert_eq!(server.ask("POST", "/containers/box/start", None).status, 304);
    assert_eq!(server.ask("POST", "/containers/box/unpause", None).status, 409);
    assert_eq!(server.ask("DELETE", "/containers/box", None).status, 409);
    assert_eq!(server.ask("POST", "/containers/box/stop?t=0", None).status, 204);
    assert_eq!(server.ask("POST", "/containers/box/stop", None).status, 304);
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
    assert_eq!(create(&server, "box", sleeper()).status, 201);
    server.ask("POST", "/containers/box/start", None);
    assert_eq!(create(&server, "idle", sleeper()).status, 201);
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
    assert_eq!(create(&server, "box", sleeper()).status, 201);
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
    // The socket that it left is taken over; a second server beside it is not.
    let next = Server::start(&store, &[]);
    assert_eq!(next.ask("GET", "/containers/box/json", None).json()["State"]["Running"], true);
    let taken = store.out(&["serve", "--socket", next.socket.to_str().unwrap()]);
    assert!(String::from_utf8_lossy(&taken.stderr).contains("another server listens"), "{taken:?}");
    let beside = Server::at(&store, store.run().join("other.sock"), &[]);
    assert_eq!(beside.ask("POST", "/containers/box/kill", None).status, 204);
    assert_eq!(next.ask("POST", "/containers/box/wait", None).json()["StatusCode"], 137);
    store.ok(&["rm", "box"]);
}

/// Whatever a workload makes of the directory that it was given, nobody is led out of it.
#[test]
fn binds_stay_beneath_their_directory() {
    let Some(store) = busybox::store() else { return };
    let dir = tempfile::tempdir().unwrap();
    let allowed = std::fs::canonicalize(dir.path()).unwrap();
    std::fs::create_dir(allowed.join("sub")).unwrap();
    std::fs::write(allowed.join("sub/seen"), "").unwrap();
    let server = Server::start(&store, &["--restrict", &format!("bind={}", allowed.display())]);
    let body = |bind: String| json!({"Image": "busybox", "Cmd": ["ls", "/m"], "HostConfig": {"NetworkMode": "none", "Binds": [bind]}});
    let made = create(&server, "inside", body(format!("{}/sub:/m", allowed.display())));
    assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
    assert_eq!(server.ask("POST", "/containers/inside/start", None).status, 204);
    assert_eq!(server.ask("POST", "/containers/inside/wait", None).json()["StatusCode"], 0);
    assert_eq!(store.ok(&["logs", "inside"]), "seen");
    std::fs::rename(allowed.join("sub"), allowed.join("was")).unwrap();
    std::os::unix::fs::symlink("/etc", allowed.join("sub")).unwrap();
    for verb in ["start", "restart?t=0"] {
        let answer = server.ask("POST", &format!("/containers/inside/{verb}"), None);
        assert_eq!(answer.status, 403, "{verb}: {}", String::from_utf8_lossy(&answer.body));
    }
    // Nor by who is under no rule and looks at none.
    store.out(&["start", "inside"]);
    store.ok(&["wait", "inside"]);
    assert_eq!(store.ok(&["logs", "inside"]), "seen");
    store.ok(&["rm", "inside"]);
}

/// Stops that never end keep neither threads nor the supervisor from others.
#[test]
fn stops_that_never_end_stop_nobody() {
    let Some((store, server)) = served(&[]) else { return };
    let deaf = json!({"Image": "busybox", "Cmd": ["sh", "-c", "trap '' TERM; while :; do sleep 1; done"], "HostConfig": {"NetworkMode": "none"}});
    assert_eq!(create(&server, "deaf", deaf).status, 201);
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
}

#[test]
fn rules_hold_and_are_named() {
    let Some((store, server)) = served(&["--restrict", "image=busybox*"]) else { return };
    store.ok(&[
        "run",
        "-d",
        "--privileged",
        "--network",
        "none",
        "--name",
        "strong",
        "busybox",
        "sleep",
        "600",
    ]);
    for (host, rule) in [
        (json!({"Privileged": true}), "privileged"),
        (json!({"PidMode": "host"}), "namespaces"),
        (json!({"NetworkMode": "host"}), "namespaces"),
        (json!({"CapAdd": ["SYS_ADMIN"]}), "capabilities"),
        (json!({"Binds": ["/:/host"]}), "bind"),
        (json!({"Mounts": [{"Type": "bind", "Source": "/etc", "Target": "/x"}]}), "bind"),
        (
            json!({"Devices": [{"PathOnHost": "/dev/null", "PathInContainer": "/dev/x", "CgroupPermissions": "rwm"}]}),
            "devices",
        ),
        (json!({"SecurityOpt": ["seccomp=unconfined"]}), "security"),
    ] {
        let answer = create(&server, "x", json!({"Image": "busybox", "Cmd": ["true"], "HostConfig": host}));
        let message = answer.message();
        assert!(answer.status == 403 && message.contains(&format!("rule \"{rule}\"")), "{message}");
    }
    assert_eq!(create(&server, "x", json!({"Image": "hello"})).status, 403);
    // What is stronger than the rules allow is not entered either.
    let body = json!({"Cmd": ["id"]});
    assert_eq!(server.ask("POST", "/containers/strong/exec", Some(&body)).status, 403);
    assert_eq!(server.ask("GET", "/containers/strong/archive?path=/etc", None).status, 403);
    assert_eq!(server.ask("POST", "/containers/strong/attach?stream=1", None).status, 403);
    let network = json!({"Name": "n", "Options": {"host-access": "true"}});
    assert_eq!(server.ask("POST", "/networks/create", Some(&network)).status, 403);
    let endpoint = json!({"EndpointsConfig": {"bridge": {"DriverOpts": {"dhow.host-access": "true"}}}});
    let body = json!({"Image": "busybox", "Cmd": ["true"], "NetworkingConfig": endpoint});
    assert_eq!(create(&server, "xx", body).status, 403);
    let volume = json!({"Name": "v", "DriverOpts": {"type": "none", "o": "bind", "device": "/etc"}});
    assert_eq!(server.ask("POST", "/volumes/create", Some(&volume)).status, 403);
    let made = create(&server, "xx", sleeper());
    assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
    assert_eq!(server.ask("POST", "/containers/xx/start", None).status, 204);
    store.ok(&["rm", "-f", "xx"]);

    let quiet = Server::at(&store, store.run().join("quiet.sock"), &["--readonly"]);
    assert_eq!(quiet.ask("GET", "/containers/json", None).json().as_array().unwrap().len(), 1);
    let refused = quiet.ask("DELETE", "/containers/strong?force=1", None);
    assert!(refused.status == 403 && refused.json()["message"].as_str().unwrap().contains("readonly"));
    store.ok(&["rm", "-f", "strong"]);
    assert!(!store.out(&["serve", "--restrict", "nonsense"]).status.success());
    let plain = store.out(&["serve", "-H", "tcp://127.0.0.1:0"]);
    assert!(String::from_utf8_lossy(&plain.stderr).contains("mutual TLS"), "{plain:?}");
}
