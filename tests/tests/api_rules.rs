//! What `dhow serve --readonly` and `--restrict` let nobody do, by whatever way.

use dhow_tests::server::{Answer, Server, served, sleeper};
use dhow_tests::{Store, busybox};
use serde_json::json;

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
    let made = server.create("inside", body(format!("{}/sub:/m", allowed.display())));
    assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
    assert_eq!(server.ask("POST", "/containers/inside/start", None).status, 204);
    assert_eq!(server.ask("POST", "/containers/inside/wait", None).json()["StatusCode"], 0);
    assert_eq!(store.ok(&["logs", "inside"]), "seen");
    // What others made is found beneath it, too, once it has passed.
    let bind = format!("{}/sub:/m", allowed.display());
    store.ok(&["create", "--name", "theirs", "--network", "none", "-v", &bind, "busybox", "ls", "/m"]);
    assert_eq!(server.ask("POST", "/containers/theirs/start", None).status, 204);
    assert_eq!(server.ask("POST", "/containers/theirs/wait", None).json()["StatusCode"], 0);
    // But one that runs goes on as it began.
    store.ok(&["run", "-d", "--name", "runs", "--network", "none", "-v", &bind, "busybox", "sleep", "600"]);
    for _ in 0..2 {
        let answer = server.ask("POST", "/containers/runs/restart?t=0", None);
        assert!(answer.status == 403 && answer.message().contains("stop it"), "{}", answer.message());
    }
    store.ok(&["rm", "-f", "runs"]);
    std::fs::rename(allowed.join("sub"), allowed.join("was")).unwrap();
    std::os::unix::fs::symlink("/etc", allowed.join("sub")).unwrap();
    for verb in ["start", "restart?t=0"] {
        let answer = server.ask("POST", &format!("/containers/inside/{verb}"), None);
        assert_eq!(answer.status, 403, "{verb}: {}", String::from_utf8_lossy(&answer.body));
    }
    // Nor by who is under no rule and looks at none.
    for name in ["inside", "theirs"] {
        store.out(&["start", name]);
        store.ok(&["wait", name]);
        assert_eq!(store.ok(&["logs", name]), "seen");
    }
    store.ok(&["rm", "inside", "theirs"]);
}

/// What others made is used only as far as the rules would have let it be made.
fn what_others_made_is_looked_at(store: &Store, server: &Server) {
    store.ok(&["volume", "create", "-o", "type=none", "-o", "o=bind", "-o", "device=/etc", "etc"]);
    store.ok(&["network", "create", "-o", "host-access=true", "near"]);
    let refused = |answer: Answer, rule: &str| {
        let message = answer.message();
        assert!(answer.status == 403 && message.contains(&format!("rule \"{rule}\"")), "{message}");
    };
    for (host, rule) in [
        (json!({"Binds": ["etc:/m"]}), "bind"),
        (json!({"Mounts": [{"Type": "volume", "Source": "etc", "Target": "/m"}]}), "bind"),
        (json!({"NetworkMode": "near"}), "network"),
        (json!({"PortBindings": {"80/tcp": [{"HostPort": "22"}]}}), "ports"),
        (json!({"PortBindings": {"80/tcp": [{"HostPort": "1020-1030"}]}}), "ports"),
    ] {
        refused(server.create("x", json!({"Image": "busybox", "Cmd": ["true"], "HostConfig": host})), rule);
    }
    store.ok(&["create", "--name", "theirs", "--network", "near", "busybox", "true"]);
    store.ok(&["create", "--name", "etc", "--network", "none", "-v", "etc:/m", "busybox", "true"]);
    refused(server.ask("POST", "/containers/theirs/start", None), "network");
    refused(server.ask("POST", "/containers/etc/start", None), "bind");
    for subnet in ["1.1.1.0/24", "8.0.0.0/8"] {
        let network = json!({"Name": "dns", "IPAM": {"Config": [{"Subnet": subnet}]}});
        refused(server.ask("POST", "/networks/create", Some(&network)), "network");
    }
    let named = json!({"Name": "named", "Options": {"com.docker.network.bridge.name": "eth9"}});
    refused(server.ask("POST", "/networks/create", Some(&named)), "network");
    store.ok(&["rm", "theirs", "etc"]);
    store.ok(&["network", "rm", "near"]);
    store.ok(&["volume", "rm", "etc"]);
}

/// `ps` runs as root, and shows of the host what belongs to the container.
fn top_shows_nobody_else(server: &Server, name: &str) {
    let shown = server.ask("GET", &format!("/containers/{name}/top?ps_args=axo%20pid,args"), None);
    let processes = shown.json()["Processes"].clone();
    assert_eq!(processes.as_array().map(Vec::len), Some(1), "{processes}");
    let renamed =
        server.ask("GET", &format!("/containers/{name}/top?ps_args=axeww%20-o%20vsz=PID,pid=P,args"), None);
    let processes = renamed.json()["Processes"].clone();
    assert!(processes.as_array().is_none_or(|all| all.len() <= 1), "{processes}");
    let chosen = server.ask("GET", &format!("/containers/{name}/top?ps_args=-p%201"), None);
    assert_eq!(chosen.status, 400, "{}", chosen.message());
}

#[test]
fn rules_hold_and_are_named() {
    let Some((store, server)) = served(&["--restrict", "image=busybox*"]) else { return };
    what_others_made_is_looked_at(&store, &server);
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
        (json!({"OomKillDisable": true}), "default"),
        (
            json!({"Mounts": [{"Target": "/x", "VolumeOptions": {"DriverConfig": {"Options": {"type": "none", "o": "bind", "device": "/etc"}}}}]}),
            "bind",
        ),
    ] {
        let answer = server.create("x", json!({"Image": "busybox", "Cmd": ["true"], "HostConfig": host}));
        let message = answer.message();
        assert!(answer.status == 403 && message.contains(&format!("rule \"{rule}\"")), "{message}");
    }
    assert_eq!(server.create("x", json!({"Image": "hello"})).status, 403);
    assert_eq!(server.create("x", json!({"Image": "busybox.attacker.example/x"})).status, 403);
    // What is stronger than the rules allow is not entered either.
    let body = json!({"Cmd": ["id"]});
    assert_eq!(server.ask("POST", "/containers/strong/exec", Some(&body)).status, 403);
    assert_eq!(server.ask("GET", "/containers/strong/archive?path=/etc", None).status, 403);
    assert_eq!(server.ask("POST", "/containers/strong/attach?stream=1", None).status, 403);
    let network = json!({"Name": "n", "Options": {"host-access": "true"}});
    assert_eq!(server.ask("POST", "/networks/create", Some(&network)).status, 403);
    let endpoint = json!({"EndpointsConfig": {"bridge": {"DriverOpts": {"dhow.host-access": "true"}}}});
    let body = json!({"Image": "busybox", "Cmd": ["true"], "NetworkingConfig": endpoint});
    assert_eq!(server.create("xx", body).status, 403);
    let volume = json!({"Name": "v", "DriverOpts": {"type": "none", "o": "bind", "device": "/etc"}});
    assert_eq!(server.ask("POST", "/volumes/create", Some(&volume)).status, 403);
    let made = server.create("xx", sleeper());
    assert_eq!(made.status, 201, "{}", String::from_utf8_lossy(&made.body));
    assert_eq!(server.ask("POST", "/containers/xx/start", None).status, 204);
    top_shows_nobody_else(&server, "xx");
    store.ok(&["rm", "-f", "xx"]);

    let quiet = Server::at(&store, store.run().join("quiet.sock"), &["--readonly"]);
    assert_eq!(quiet.ask("GET", "/containers/json", None).json().as_array().unwrap().len(), 1);
    store.ok(&["create", "--name", "ended", "--network", "none", "busybox", "true"]);
    for path in ["archive?path=/etc", "export", "changes"] {
        assert_eq!(quiet.ask("GET", &format!("/containers/ended/{path}"), None).status, 403);
    }
    store.ok(&["rm", "ended"]);
    assert_eq!(quiet.ask("GET", "/containers/strong/archive?path=/etc", None).status, 200);
    let refused = quiet.ask("DELETE", "/containers/strong?force=1", None);
    assert!(refused.status == 403 && refused.json()["message"].as_str().unwrap().contains("readonly"));
    store.ok(&["rm", "-f", "strong"]);
    assert!(!store.out(&["serve", "--restrict", "nonsense"]).status.success());
    let plain = store.out(&["serve", "-H", "tcp://127.0.0.1:0"]);
    assert!(String::from_utf8_lossy(&plain.stderr).contains("mutual TLS"), "{plain:?}");
}
