//! Names on user-defined networks: who finds whom, by what, and when.

use dhow_tests::{Store, busybox, vm};
use std::net::UdpSocket;
use std::time::{Duration, Instant};

const SLEEP: &[&str] = &["busybox", "sleep", "1000"];

fn start(store: &Store, flags: &[&str], command: &[&str]) -> String {
    store.ok(&[&["run", "-d"], flags, command].concat())
}

/// What `nslookup` says inside, answered or not.
fn lookup(store: &Store, container: &str, name: &str) -> String {
    let out = store.out(&["exec", container, "nslookup", name, "127.0.0.11"]);
    String::from_utf8_lossy(&[out.stdout, out.stderr].concat()).into_owned()
}

/// Until it says so: changes show within a second, but this host may be busy.
fn until(what: &str, mut said: impl FnMut() -> (bool, String)) {
    let begin = Instant::now();
    loop {
        let (done, text) = said();
        if done {
            return;
        }
        assert!(begin.elapsed() < Duration::from_secs(20), "{what}: {text}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

fn address(store: &Store, container: &str, network: &str) -> String {
    let path = format!("{{{{(index .NetworkSettings.Networks \"{network}\").IPAddress}}}}");
    store.ok(&["inspect", "-f", &path, container])
}

/// A server of names on the host's loopback, where only the host's own namespace reaches it: answers any A question.
fn server_on_loopback() -> Option<String> {
    let socket = (1..250).find_map(|n| UdpSocket::bind((std::net::Ipv4Addr::new(127, 9, 9, n), 53)).ok())?;
    let address = socket.local_addr().unwrap().ip().to_string();
    std::thread::spawn(move || {
        let mut buffer = [0; 1500];
        while let Ok((n, from)) = socket.recv_from(&mut buffer) {
            let Some(end) = buffer.get(12..n).and_then(|q| q.iter().position(|b| *b == 0)) else { continue };
            let question = 12..12 + end + 5;
            let is_a = buffer[question.end - 3] == 1;
            let mut answer = buffer[..question.end].to_vec();
            answer[2] |= 0x80;
            answer[6..12].copy_from_slice(&[0, u8::from(is_a), 0, 0, 0, 0]);
            if is_a {
                answer.extend([0xc0, 12, 0, 1, 0, 1, 0, 0, 0, 60, 0, 4, 192, 0, 2, 77]);
            }
            let _ = socket.send_to(&answer, from);
        }
    });
    Some(address)
}

#[test]
fn workloads_find_each_other_by_every_name_they_have() {
    let Some(store) = busybox::store() else { return };
    let (one, two) = (format!("one{}", std::process::id()), format!("two{}", std::process::id()));
    store.ok(&["network", "create", &one]);
    store.ok(&["network", "create", &two]);
    let id = start(&store, &["--name", "db", "--network", &one, "--network-alias", "store"], SLEEP);
    start(&store, &["--name", "more", "--network", &one, "--network-alias", "store"], SLEEP);
    start(&store, &["--name", "far", "--network", &two], SLEEP);
    start(&store, &["--name", "me", "--network", &one], SLEEP);
    let conf = store.ok(&["exec", "me", "cat", "/etc/resolv.conf"]);
    assert!(conf.starts_with("nameserver 127.0.0.11\n") && conf.contains("ndots:0"), "{conf}");

    let (db, more) = (address(&store, "db", &one), address(&store, "more", &one));
    for name in ["db", "DB", &format!("db.{one}"), &id[..12]] {
        let text = lookup(&store, "me", name);
        assert!(text.contains(&format!("Address: {db}")), "{name}: {text}");
    }
    // All of an alias, in turn.
    let firsts: std::collections::BTreeSet<String> = (0..6)
        .map(|_| {
            let text = lookup(&store, "me", "store");
            assert!(text.contains(&db) && text.contains(&more), "{text}");
            text.lines()
                .filter_map(|l| l.strip_prefix("Address: "))
                .find(|a| !a.contains(':'))
                .unwrap()
                .to_owned()
        })
        .collect();
    assert_eq!(firsts.len(), 2, "{firsts:?}");
    let text = lookup(&store, "me", &db);
    assert!(text.contains(&format!("name = db.{one}")), "{text}");
    // Not those of other networks, until it is on them.
    assert!(!lookup(&store, "me", "far").contains("Address: 1"), "the other network's names are seen");
    store.ok(&["network", "connect", "--alias", "visitor", &two, "me"]);
    let far = address(&store, "far", &two);
    until("connected", || {
        let text = lookup(&store, "me", "far");
        (text.contains(&format!("Address: {far}")), text)
    });
    let text = lookup(&store, "far", "visitor");
    assert!(text.contains(&address(&store, "me", &two)), "{text}");
    store.ok(&["network", "disconnect", &two, "me"]);
    until("disconnected", || {
        let (mine, theirs) = (lookup(&store, "me", "far"), lookup(&store, "far", "visitor"));
        (!mine.contains(&far) && !theirs.contains("Address: 1"), format!("{mine}\n{theirs}"))
    });

    // Another name, another life, none at all.
    store.ok(&["rename", "more", "renamed"]);
    until("renamed", || {
        let text = lookup(&store, "me", "renamed");
        (text.contains(&more), text)
    });
    store.ok(&["restart", "-t", "0", "db"]);
    until("restarted", || {
        let text = lookup(&store, "me", "db");
        (text.contains(&format!("Address: {}", address(&store, "db", &one))), text)
    });
    store.ok(&["rm", "-f", "db"]);
    assert!(!lookup(&store, "me", "db").contains("Address: 1"), "a removed container is found");

    // A supervisor that is killed takes nothing with it.
    rustix_kill(store.supervisor("me"));
    until("adopted", || {
        let text = lookup(&store, "me", "renamed");
        (text.contains(&more), text)
    });
    rustix_kill(store.supervisor("renamed"));
    let text = lookup(&store, "me", "renamed");
    assert!(text.contains(&more), "{text}");
}

fn rustix_kill(pid: i32) {
    let pid = rustix::process::Pid::from_raw(pid).unwrap();
    rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    std::thread::sleep(Duration::from_millis(100));
}

#[test]
fn names_outside_are_asked_of_the_host_and_of_nobody_where_nothing_leads_out() {
    let Some(store) = busybox::store() else { return };
    let Some(server) = server_on_loopback() else {
        eprintln!("SKIPPED: port 53 of the host's loopback addresses cannot be had");
        return;
    };
    let (open, shut) = (format!("open{}", std::process::id()), format!("shut{}", std::process::id()));
    store.ok(&["network", "create", &open]);
    store.ok(&["network", "create", "--internal", &shut]);
    // Serves port 53 of all its addresses itself, as servers of names do.
    let serve = ["busybox", "httpd", "-f", "-p", "53", "-h", "/etc"];
    start(&store, &["--name", "me", "--network", &open, "--dns", &server], &serve);
    start(&store, &["--name", "shut", "--network", &shut, "--dns", &server], SLEEP);
    let text = lookup(&store, "me", "anything.example");
    assert!(text.contains("Address: 192.0.2.77"), "{text}");
    let text = lookup(&store, "shut", "anything.example");
    assert!(text.contains("REFUSED") && !text.contains("192.0.2.77"), "{text}");
    let text = lookup(&store, "shut", "shut");
    assert!(text.contains(&address(&store, "shut", &shut)), "{text}");
    // Who joins a container's network asks there, too.
    let joined = ["run", "--rm", "--network", "container:me", "busybox", "nslookup", "me"];
    let text = store.both(&joined);
    assert!(text.contains(&address(&store, "me", &open)), "{text}");
}

#[test]
fn a_microvm_and_a_container_find_each_other() {
    let Some(store) = vm::store() else { return };
    let network = format!("both{}", std::process::id());
    store.ok(&["network", "create", &network]);
    start(&store, &["--name", "box", "--network", &network], SLEEP);
    start(&store, &["--vm", "--name", "machine", "--network", &network, "--network-alias", "vm"], SLEEP);
    let (container, machine) = (address(&store, "box", &network), address(&store, "machine", &network));
    for name in ["machine", "vm"] {
        let text = lookup(&store, "box", name);
        assert!(text.contains(&format!("Address: {machine}")), "{text}");
    }
    let ask = |name: &str, expected: &str| {
        until(name, || {
            let text = lookup(&store, "machine", name);
            (text.contains(expected), text)
        });
    };
    ask("box", &format!("Address: {container}"));
    ask(&container, &format!("name = box.{network}"));
    // The next supervisor listens for the agent again.
    rustix_kill(store.supervisor("machine"));
    ask("box", &format!("Address: {container}"));
}
