//! Networks that users make, with both hulls on them: who reaches whom, what comes and goes while a workload runs, and the
//! limits of an endpoint. What the verbs say is in `networks`, names are in `names`.

use dhow_tests::{Store, busybox, vm};
use std::path::Path;
use std::time::{Duration, Instant};

const SERVE: &[&str] = &["busybox", "httpd", "-f", "-p", "80", "-h", "/etc"];

/// Starts a server of its own `/etc`.
fn start(store: &Store, name: &str, flags: &[&str]) {
    store.ok(&[&["run", "-d", "--name", name], flags, SERVE].concat());
}

fn field(store: &Store, container: &str, network: &str, field: &str) -> String {
    let template = format!("{{{{(index .NetworkSettings.Networks {network:?}).{field}}}}}");
    store.ok(&["inspect", "-f", &template, container])
}

/// Both addresses of a container on a network, as URLs have them.
fn addresses(store: &Store, container: &str, network: &str) -> [String; 2] {
    let ipv6 = field(store, container, network, "GlobalIPv6Address");
    [field(store, container, network, "IPAddress"), format!("[{ipv6}]")]
}

/// Whether a container gets a page from an address.
fn reaches(store: &Store, from: &str, address: &str) -> bool {
    let url = format!("http://{address}/passwd");
    let out = store.out(&["exec", from, "busybox", "timeout", "5", "wget", "-qO-", &url]);
    String::from_utf8_lossy(&out.stdout).contains("root:x:0")
}

/// The same in time: a server may be a moment behind the start of its machine.
fn must_reach(store: &Store, from: &str, address: &str) {
    let begin = Instant::now();
    while !reaches(store, from, address) {
        assert!(begin.elapsed() < Duration::from_secs(60), "{from} does not reach {address}");
    }
}

fn default_route(store: &Store, container: &str) -> String {
    let routes = store.ok(&["exec", container, "ip", "route"]);
    routes.lines().find(|l| l.starts_with("default")).unwrap_or_default().to_owned()
}

fn has_interface(store: &Store, container: &str, name: &str) -> bool {
    let out = store.ok(&["exec", container, "ip", "address", "show", "up"]);
    out.contains(&format!(" {name}:")) || out.contains(&format!(" {name}@"))
}

/// Received and sent bytes of the workload, and those that it read and wrote on disks.
fn figures(store: &Store, name: &str) -> String {
    store.ok(&["stats", "--no-stream", "--format", "{{.NetIO}} {{.BlockIO}}", name])
}

#[test]
fn all_hulls_reach_each_other_and_networks_come_and_go() {
    let Some(store) = vm::store() else { return };
    store.ok(&["network", "create", "--ipv6", "front"]);
    store.ok(&["network", "create", "--ipv6", "back"]);
    start(&store, "box1", &["--network", "front"]);
    start(&store, "box2", &["--network", "front"]);
    start(&store, "wall1", &["--vm", "--network", "name=front,ingress-rate=8mbit,egress-rate=4mbit"]);
    start(&store, "wall2", &["--vm", "--network", "front"]);
    for (from, to) in [("box1", "box2"), ("box1", "wall1"), ("wall1", "box1"), ("wall1", "wall2")] {
        for address in addresses(&store, to, "front") {
            must_reach(&store, from, &address);
        }
    }

    is_slow(&store, "box1", "wall1", "front");

    // One of each hull moves to another network while it runs.
    for mover in ["box2", "wall2"] {
        store.ok(&["network", "connect", "back", mover]);
        assert!(default_route(&store, mover).contains("eth0"));
        assert!(has_interface(&store, mover, "eth1"));
    }
    for (from, to) in [("box2", "wall2"), ("wall2", "box2")] {
        for address in addresses(&store, to, "back") {
            must_reach(&store, from, &address);
        }
    }
    let here = addresses(&store, "wall2", "back");
    assert!(!reaches(&store, "box1", &here[0]), "networks are apart");
    for mover in ["box2", "wall2"] {
        store.ok(&["network", "disconnect", "front", mover]);
        assert!(default_route(&store, mover).contains("eth1"), "{}", default_route(&store, mover));
        assert!(!has_interface(&store, mover, "eth0"));
        must_reach(
            &store,
            mover,
            &addresses(&store, if mover == "box2" { "wall2" } else { "box2" }, "back")[0],
        );
    }
    assert!(!reaches(&store, "wall2", &addresses(&store, "box1", "front")[0]));
    assert!(!store.out(&["network", "disconnect", "front", "wall2"]).status.success(), "it is not on it");

    // What passed is counted, for both alike; so is what was written.
    for name in ["box2", "wall2"] {
        store.ok(&["exec", name, "sh", "-c", "dd if=/dev/zero of=/big bs=64k count=16 conv=fsync"]);
        let figures = figures(&store, name);
        assert!(!figures.starts_with("0B / 0B"), "{name}: {figures}");
        assert!(name == "box2" || !figures.ends_with(" / 0B"), "{name}: {figures}");
    }

    // A start makes them anew.
    store.ok(&["restart", "-t", "1", "wall2"]);
    let back = &addresses(&store, "wall2", "back")[0];
    must_reach(&store, "box2", back);
    assert!(!reaches(&store, "box1", back));

    // The sixth network is one too many for a running microVM.
    for n in 0..3 {
        store.ok(&["network", "create", &format!("more{n}")]);
        store.ok(&["network", "connect", &format!("more{n}"), "wall2"]);
    }
    store.ok(&["network", "create", "last"]);
    let out = store.out(&["network", "connect", "last", "wall2"]);
    let said = String::from_utf8_lossy(&out.stderr);
    assert!(!out.status.success() && said.contains("no interface left for network last"), "{said}");
    store.ok(&["rm", "-f", "box1", "box2", "wall1", "wall2"]);
}

#[test]
fn a_connection_outlives_the_supervisor() {
    let Some(store) = busybox::store() else { return };
    store.ok(&["network", "create", "one"]);
    store.ok(&["network", "create", "two"]);
    start(&store, "kept", &["--network", "one"]);
    start(&store, "peer", &["--network", "two"]);
    store.ok(&["network", "connect", "two", "kept"]);
    let run = store.run().join("sandboxes").join(store.ok(&["inspect", "-f", "{{.Id}}", "kept"]));
    let state = std::fs::read_to_string(
        store.root().join("sandboxes").join(run.file_name().unwrap()).join("state.json"),
    )
    .unwrap();
    let state: serde_json::Value = serde_json::from_str(&state).unwrap();
    let supervisor = rustix::process::Pid::from_raw(state["supervisor"].as_i64().unwrap() as i32).unwrap();
    rustix::process::kill_process(supervisor, rustix::process::Signal::KILL).unwrap();
    // The next command has it adopted.
    must_reach(&store, "peer", &field(&store, "kept", "two", "IPAddress"));
    store.ok(&["network", "disconnect", "one", "kept"]);
    must_reach(&store, "kept", &field(&store, "peer", "two", "IPAddress"));
    assert!(default_route(&store, "kept").contains("eth1"));
    store.ok(&["restart", "-t", "1", "kept"]);
    must_reach(&store, "kept", &field(&store, "peer", "two", "IPAddress"));
    store.ok(&["rm", "-f", "kept", "peer"]);
}

/// One that has 8 megabits a second to it, and 4 from it, and no more.
fn is_slow(store: &Store, free: &str, limited: &str, network: &str) {
    // A megabyte each way, 8.4 megabits, of which a burst passes at once.
    for (from, to, least) in [(free, limited, 800), (limited, free, 1600)] {
        store.ok(&["exec", from, "dd", "if=/dev/zero", "of=/etc/big", "bs=64k", "count=16"]);
        let address = field(store, from, network, "IPAddress");
        must_reach(store, to, &address);
        let begin = Instant::now();
        store.ok(&["exec", to, "wget", "-qO", "/tmp/big", &format!("http://{address}/big")]);
        let took = begin.elapsed();
        assert!(took > Duration::from_millis(least), "{from} to {to}: {took:?}");
        assert_eq!(store.ok(&["exec", to, "stat", "-c", "%s", "/tmp/big"]), "1048576");
    }
}

#[test]
fn an_endpoint_is_as_slow_as_it_was_asked_to_be() {
    let Some(store) = busybox::store() else { return };
    store.ok(&["network", "create", "slow"]);
    let limited = "name=slow,ingress-rate=8mbit,egress-rate=4mbit";
    start(&store, "limited", &["--network", limited]);
    start(&store, "free", &["--network", "slow"]);
    is_slow(&store, "free", "limited", "slow");
    let id = store.ok(&["inspect", "-f", "{{.Id}}", "limited"]);
    let device = Path::new("/sys/class/net").join(format!("vlh{}", &id[..12]));
    assert!(device.exists());
    store.ok(&["rm", "-f", "limited", "free"]);
    assert!(!device.exists(), "nothing is left of the limits");
}
