//! Networks that users make: their verbs, the addresses on them, who is on them, and what is refused. What passes between
//! workloads is in `hulls_networks`, names in `names`.

use dhow_tests::{Store, busybox};
use std::collections::HashSet;
use std::path::Path;
use std::process::Output;
use std::time::{Duration, Instant};

/// Runs what must fail; what it said.
fn refused(store: &Store, args: &[&str]) -> String {
    let out = store.out(args);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(!out.status.success(), "dhow {args:?} succeeded");
    assert!(!said.contains("panicked") && !said.trim().is_empty(), "dhow {args:?}: {said}");
    said
}

fn json(store: &Store, args: &[&str]) -> serde_json::Value {
    serde_json::from_str(&store.ok(args)).unwrap()
}

/// The bridge of a network.
fn bridge(store: &Store, network: &str) -> String {
    store.ok(&["network", "inspect", "-f", "{{index .Options \"com.docker.network.bridge.name\"}}", network])
}

fn has_link(name: &str) -> bool {
    Path::new("/sys/class/net").join(name).exists()
}

fn address(store: &Store, container: &str, network: &str) -> String {
    let template = format!("{{{{(index .NetworkSettings.Networks {network:?}).IPAddress}}}}");
    store.ok(&["inspect", "-f", &template, container])
}

/// A subnet that no other test uses: tests run beside each other, in stores of their own, on one host.
fn subnet(third: u8) -> (String, impl Fn(u8) -> String) {
    let base = format!("10.240.{third}");
    (format!("{base}.0/24"), move |last| format!("{base}.{last}"))
}

fn sleeper(store: &Store, name: &str, flags: &[&str]) {
    let mut args = vec!["run", "-d", "--name", name];
    args.extend(flags);
    args.extend(["busybox", "sleep", "300"]);
    store.ok(&args);
}

#[test]
fn a_network_is_made_shown_and_removed() {
    let Some(store) = busybox::store() else { return };
    let ls = store.ok(&["network", "ls", "--format", "{{.Name}} {{.Driver}} {{.Scope}}"]);
    assert_eq!(ls, "bridge bridge local\nhost host local\nnone null local");
    let (net, host) = subnet(11);
    let id = store.ok(&[
        "network",
        "create",
        "--subnet",
        &net,
        "--gateway",
        &host(9),
        "--ip-range",
        &host(64).replace(".64", ".64/26"),
        "--aux-address",
        &format!("router={}", host(64)),
        "--label",
        "tier=back",
        "-o",
        "host-access",
        "--egress",
        "none",
        "--attachable",
        "back",
    ]);
    assert_eq!(id.len(), 64);
    let v = json(&store, &["network", "inspect", &id[..12]]);
    let v = &v[0];
    assert_eq!((&v["Name"], &v["Id"], &v["Driver"]), (&"back".into(), &id.clone().into(), &"bridge".into()));
    assert_eq!(v["IPAM"]["Config"][0]["Subnet"], net);
    assert_eq!(v["IPAM"]["Config"][0]["Gateway"], host(9));
    assert_eq!(v["IPAM"]["Config"][0]["AuxiliaryAddresses"]["router"], host(64));
    assert_eq!((&v["Labels"]["tier"], &v["Internal"]), (&"back".into(), &false.into()));
    assert_eq!((&v["Options"]["host-access"], &v["Options"]["egress"]), (&"true".into(), &"none".into()));
    assert_eq!(v["Containers"], serde_json::json!({}));
    let link = bridge(&store, "back");
    assert!(has_link(&link) && link == format!("dh-{}", &id[..12]), "{link}");

    // Addresses come from the range, and not the one of somebody else.
    sleeper(&store, "one", &["--network", "back", "--network-alias", "uno"]);
    sleeper(
        &store,
        "two",
        &["--network", &format!("name=back,ip={},alias=duo,mac-address=02:00:00:00:00:22", host(20))],
    );
    assert_eq!(address(&store, "one", "back"), host(65));
    let said = refused(
        &store,
        &["run", "--rm", "--network", &format!("name=back,ip={}", host(64)), "busybox", "true"],
    );
    assert!(said.contains("already in use") && said.contains("router"), "{said}");
    assert_eq!(address(&store, "two", "back"), host(20));
    let seen = store.ok(&[
        "exec",
        "two",
        "sh",
        "-c",
        "ip -o addr show eth0; cat /sys/class/net/eth0/address; ip route",
    ]);
    assert!(seen.contains(&format!("{}/24", host(20))) && seen.contains("02:00:00:00:00:22"), "{seen}");
    assert!(seen.contains(&format!("default via {}", host(9))), "{seen}");
    let v = json(&store, &["network", "inspect", "back"]);
    let two = store.ok(&["inspect", "-f", "{{.Id}}", "two"]);
    assert_eq!(v[0]["Containers"][&two]["IPv4Address"], format!("{}/24", host(20)));
    assert_eq!(v[0]["Containers"][&two]["MacAddress"], "02:00:00:00:00:22");
    let names = json(&store, &["inspect", "-f", "{{json .NetworkSettings.Networks.back.DNSNames}}", "two"]);
    assert_eq!(names, serde_json::json!(["two", &two[..12], "duo"]));

    // Lists and filters.
    for (filter, want) in [
        ("name=ack", "back"),
        ("label=tier", "back"),
        ("label=tier=front", ""),
        ("type=custom", "back"),
        ("driver=macvlan", ""),
        ("dangling=true", ""),
        ("scope=swarm", ""),
        (&*format!("id={}", &id[..6]), "back"),
    ] {
        assert_eq!(store.ok(&["network", "ls", "-f", filter, "--format", "{{.Name}}"]), want, "{filter}");
    }
    assert_eq!(store.ok(&["network", "ls", "-q", "--no-trunc", "-f", "name=back"]), id);
    for (filter, want) in
        [("network=back", "one two"), ("network=bridge", ""), (&*format!("network={}", &id[..12]), "one two")]
    {
        let list = store.ok(&["ps", "-f", filter, "--format", "{{.Names}}"]);
        let mut list: Vec<_> = list.lines().collect();
        list.sort_unstable();
        assert_eq!(list.join(" "), want, "{filter}");
    }
    assert_eq!(store.ok(&["ps", "-f", "name=one", "--format", "{{.Networks}}"]), "back");

    // In use, it stays; not in use, it goes, with its bridge.
    let said = refused(&store, &["network", "rm", "back"]);
    assert!(said.contains("active endpoints") && said.contains("one (") && said.contains("two ("), "{said}");
    store.ok(&["rm", "-f", "two"]);
    store.ok(&["kill", "one"]);
    store.ok(&["wait", "one"]);
    assert_eq!(store.ok(&["network", "prune", "-f"]), "");
    store.ok(&["network", "rm", "back"]);
    assert!(!has_link(&link));
    // What was on it cannot start without it, and can with another of that name.
    let said = refused(&store, &["start", "one"]);
    assert!(said.contains("network back not found"), "{said}");
    store.ok(&["network", "create", "--subnet", &net, "back"]);
    store.ok(&["start", "one"]);
    assert_eq!(address(&store, "one", "back"), host(2));
    store.ok(&["rm", "-f", "one"]);
    assert_eq!(store.ok(&["network", "prune", "-f"]), "Deleted Networks:\nback");
    let events = store.ok(&[
        "events",
        "--since",
        "10m",
        "--until",
        "0s",
        "-f",
        "type=network",
        "--format",
        "{{.Action}}",
    ]);
    let events: Vec<_> = events.lines().collect();
    assert_eq!(events.iter().filter(|e| **e == "create").count(), 2, "{events:?}");
    assert_eq!(events.iter().filter(|e| **e == "destroy").count(), 2, "{events:?}");
}

#[test]
fn wrong_networks_are_refused_with_a_sentence() {
    let Some(store) = busybox::store() else { return };
    let (net, host) = subnet(21);
    store.ok(&["network", "create", "--subnet", &net, "taken"]);
    let half = net.replace(".0/24", ".128/25");
    let route = "127.0.0.0/8";
    for (args, why) in [
        (&["--subnet", &half, "x"][..], &*format!("overlaps {net} of network taken")),
        (&["--subnet", route, "x"], "special meaning"),
        (&["--subnet", "10.240.22.1/24", "x"], "it should be 10.240.22.0/24"),
        (&["--subnet", "10.240.22.0/24", "--gateway", "10.240.23.1", "x"], "no matching subnet"),
        (&["--subnet", "10.240.22.0/24", "--ip-range", "10.240.0.0/16", "x"], "no matching subnet"),
        (&["--subnet", "10.240.22.0/31", "x"], "too small"),
        (&["--gateway", "10.240.22.1", "x"], "corresponding subnet"),
        (&["--subnet", "10.240.22.0/24", "--subnet", "10.240.23.0/24", "x"], "one subnet of each"),
        (&["-d", "overlay", "x"], "unknown network driver"),
        (&["-d", "macvlan", "x"], "parent=eth0"),
        (
            &["-d", "macvlan", "-o", "parent=nowhere0", "--subnet", "10.240.22.0/24", "x"],
            "nowhere0 does not exist",
        ),
        (&["-o", "colour=red", "x"], "invalid option colour"),
        (&["-o", "mtu=5", "x"], "mtu=5"),
        (&["--egress", "example.org:http", "x"], "invalid port"),
        (&["taken"], "already exists"),
        (&["bridge"], "predefined bridge network"),
        (&["host"], "predefined host network"),
        (&["a b"], "invalid network name"),
        (&["--label", "=x", "x"], "label"),
    ] {
        let said = refused(&store, &[&["network", "create"], args].concat());
        assert!(said.contains(why), "{args:?}: {said}");
    }
    // What another store has is a route of this host.
    let other = Store::new();
    let said = refused(&other, &["network", "create", "--subnet", &half, "x"]);
    assert!(
        said.contains(&net) && said.contains("a route") && said.contains(&bridge(&store, "taken")),
        "{said}"
    );
    let gateway = store.ok(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Gateway}}", "taken"]);
    for (args, why) in [
        (&["--network", "nowhere"][..], "network nowhere not found"),
        (&["--network", "taken", "--ip", "10.1.2.3"], "does not belong to any"),
        (&["--network", "taken", "--ip", &gateway], "Address already in use"),
        (&["--network", "taken", "--ip", &host(255)], "does not belong to any"),
        (&["--network", "taken", "--ip6", "fd00::5"], "no IPv6 subnet"),
        (&["--network", "taken", "--ip", "::1"], "invalid IPv4 address"),
        (&["--ip", &host(7)], "user defined networks only"),
        (&["--network-alias", "x"], "user defined networks"),
        (&["--network", "taken", "--network-alias", "a b"], "invalid network alias"),
        (&["--network", "taken", "--network", "taken"], "multiple times"),
        (&["--network", "taken", "--network", "host"], "conflicting options"),
        (&["--network", "none", "--ip", &host(7)], "conflicting options"),
        (&["--network", "taken,colour=red"], "colour"),
        (&["--network", "taken,driver-opt=colour=red"], "colour=red"),
        (&["--network", "taken,ingress-rate=fast"], "ingress-rate"),
        (&["--network", "taken", "--mac-address", "01:00:00:00:00:01"], "MAC"),
        (&["--network", "host", "--egress", "none"], "--egress"),
        (&["--egress", "a/b"], "egress"),
        (&["--egress", "example.org"], "user-defined network"),
        (&["--vm", "--network", "host"], "not for microVMs"),
    ] {
        let said = refused(&store, &[&["run", "--rm"], args, &["busybox", "true"]].concat());
        assert!(said.contains(why), "{args:?}: {said}");
    }
    let all = [
        (&["network", "rm", "nowhere"][..], "network nowhere not found"),
        (&["network", "rm", "bridge"], "pre-defined"),
    ];
    for (args, why) in all {
        let said = refused(&store, args);
        assert!(said.contains(why), "{args:?}: {said}");
    }
    store.ok(&["network", "rm", "-f", "nowhere"]);
    assert_eq!(store.ok(&["ps", "-aq"]), "", "what was refused has left a container");
}

#[test]
fn a_small_range_is_used_up_and_given_back() {
    let Some(store) = busybox::store() else { return };
    let (net, host) = subnet(31);
    let small = net.replace("/24", "/29");
    store.ok(&["network", "create", "--subnet", &small, "small"]);
    for n in 2..=6 {
        sleeper(&store, &format!("c{n}"), &["--network", "small"]);
        assert_eq!(address(&store, &format!("c{n}"), "small"), host(n));
    }
    let said = refused(&store, &["run", "--rm", "--network", "small", "busybox", "true"]);
    assert!(said.contains("no free address is left") && said.contains("small"), "{said}");
    let said = refused(&store, &["run", "--rm", "--network", "small", "--ip", &host(3), "busybox", "true"]);
    assert!(said.contains("Address already in use") && said.contains("c3"), "{said}");
    // One that does not run lends its address to whoever needs it, and gets another.
    store.ok(&["kill", "c3"]);
    store.ok(&["wait", "c3"]);
    sleeper(&store, "late", &["--network", "small"]);
    assert_eq!(address(&store, "late", "small"), host(3));
    refused(&store, &["start", "c3"]);
    store.ok(&["rm", "-f", "c5"]);
    store.ok(&["start", "c3"]);
    assert_eq!(address(&store, "c3", "small"), host(5));
}

#[test]
fn several_networks_at_once() {
    let Some(store) = busybox::store() else { return };
    store.ok(&["network", "create", "--internal", "inner"]);
    store.ok(&["network", "create", "outer"]);
    store.ok(&["network", "create", "other"]);
    let flags =
        ["--network", "inner", "--network", "name=outer,alias=face", "--network", "other,gw-priority=5"];
    sleeper(&store, "web", &flags);
    assert_eq!(store.ok(&["ps", "--format", "{{.Networks}}"]), "inner,other,outer");
    // It is no way from one of them to another, unless it shall be.
    let routes = ["cat", "/proc/sys/net/ipv4/ip_forward"];
    assert_eq!(store.ok(&[&["exec", "web"], &routes[..]].concat()), "0");
    let asked =
        ["run", "--rm", "--sysctl", "net.ipv4.ip_forward=1", "--network", "inner", "--network", "outer"];
    assert_eq!(store.ok(&[&asked[..], &["busybox"], &routes].concat()), "1");
    let links = store.ok(&["exec", "web", "ip", "-o", "-4", "addr"]);
    for (n, network) in ["inner", "outer", "other"].iter().enumerate() {
        let want = format!("inet {}/", address(&store, "web", network));
        let line = links.lines().find(|l| l.contains(&want)).unwrap_or_else(|| panic!("{want}: {links}"));
        assert!(line.contains(&format!("eth{n}")), "{links}");
    }
    // The route leads by the network of the highest priority, and never by an internal one.
    let route = store.ok(&["exec", "web", "ip", "route"]);
    assert!(
        route.contains("dev eth2") && route.lines().filter(|l| l.starts_with("default")).count() == 1,
        "{route}"
    );
    let default = route.lines().find(|l| l.starts_with("default")).unwrap();
    assert!(default.contains("eth2"), "{route}");
    assert_eq!(
        store.ok(&[
            "run",
            "--rm",
            "--network",
            "inner",
            "busybox",
            "sh",
            "-c",
            "ip route | grep -c default || true"
        ]),
        "0"
    );
}

#[test]
fn networks_come_and_go_with_a_container() {
    let Some(store) = busybox::store() else { return };
    store.ok(&["network", "create", "a"]);
    store.ok(&["network", "create", "b"]);
    store.ok(&["create", "--name", "web", "busybox", "sleep", "300"]);
    // While it does not run.
    store.ok(&["network", "connect", "--alias", "see", "a", "web"]);
    assert!(refused(&store, &["network", "connect", "a", "web"]).contains("already connected"));
    store.ok(&["network", "disconnect", "bridge", "web"]);
    assert!(refused(&store, &["network", "disconnect", "bridge", "web"]).contains("not connected"));
    store.ok(&["start", "web"]);
    assert_eq!(store.ok(&["ps", "--format", "{{.Networks}}"]), "a");
    // While it runs.
    let links = || store.ok(&["exec", "web", "sh", "-c", "ls /sys/class/net | tr '\\n' ' '"]);
    assert_eq!(links().trim(), "eth0 lo");
    store.ok(&["network", "connect", "b", "web"]);
    assert!(refused(&store, &["network", "connect", "b", "web"]).contains("already connected"));
    assert_eq!(links().trim(), "eth0 eth1 lo");
    let on_b = address(&store, "web", "b");
    assert!(store.ok(&["exec", "web", "ip", "-o", "addr", "show", "eth1"]).contains(&on_b));
    assert!(
        store
            .ok(&["run", "--rm", "--network", "b", "busybox", "ping", "-c", "1", "-w", "5", &on_b])
            .contains(" 0% packet loss")
    );
    assert!(refused(&store, &["network", "rm", "b"]).contains("active endpoints"));
    store.ok(&["network", "disconnect", "a", "web"]);
    assert_eq!(links().trim(), "eth1 lo");
    assert_eq!(store.ok(&["ps", "--format", "{{.Networks}}"]), "b");
    store.ok(&["network", "rm", "a"]);
    // It keeps them over restarts.
    store.ok(&["restart", "-t", "0", "web"]);
    assert_eq!(address(&store, "web", "b"), on_b);
    assert_eq!(links().trim(), "eth1 lo");
    store.ok(&["network", "disconnect", "b", "web"]);
    assert_eq!(links().trim(), "lo");
    store.ok(&["network", "connect", "bridge", "web"]);
    assert!(store.ok(&["exec", "web", "ip", "route"]).starts_with("default"));
    for (mode, why) in
        [("none", "(none) mode"), ("host", "host network"), ("container:web", "sharing network namespace")]
    {
        let name = mode.replace(':', "-");
        store.ok(&["create", "--name", &name, "--network", mode, "busybox", "true"]);
        assert!(refused(&store, &["network", "connect", "b", &name]).contains(why), "{mode}");
    }
    assert!(refused(&store, &["network", "connect", "nowhere", "web"]).contains("network nowhere not found"));
    assert!(refused(&store, &["network", "connect", "b", "nobody"]).contains("no such container"));
    store.ok(&["network", "disconnect", "-f", "b", "nobody"]);
}

#[test]
fn two_families() {
    let Some(store) = busybox::store() else { return };
    if std::net::TcpListener::bind("[::1]:0").is_err() {
        eprintln!("SKIPPED: IPv6, this host has none");
        return;
    }
    store.ok(&["network", "create", "--subnet", "fd00:d40:41::/64", "six"]);
    store.ok(&["network", "create", "--ipv6", "both"]);
    sleeper(&store, "web", &["--network", "six", "--ip6", "fd00:d40:41::77", "--network", "both"]);
    let of = |network: &str, field: &str| {
        store.ok(&["inspect", "-f", &format!("{{{{.NetworkSettings.Networks.{network}.{field}}}}}"), "web"])
    };
    assert_eq!(of("six", "GlobalIPv6Address"), "fd00:d40:41::77");
    assert!(of("both", "GlobalIPv6Address").starts_with("fd") && of("both", "IPv6Gateway").ends_with("::1"));
    let taken =
        refused(&store, &["run", "--rm", "--network", "six", "--ip6", "fd00:d40:41::77", "busybox", "true"]);
    assert!(taken.contains("already in use"), "{taken}");
    let ping =
        ["run", "--rm", "--network", "six", "busybox", "ping", "-6", "-c", "1", "-w", "5", "fd00:d40:41::77"];
    assert!(store.ok(&ping).contains(" 0% packet loss"));
    assert_eq!(store.ok(&["network", "ls", "--format", "{{.IPv6}}", "-f", "name=both"]), "true");
    // CVE-2024-32473: without it there is none, not even a link-local address.
    store.ok(&["network", "create", "four"]);
    let all = store.ok(&["run", "--rm", "--network", "four", "busybox", "cat", "/proc/net/if_inet6"]);
    assert!(all.lines().all(|line| line.ends_with(" lo")), "{all}");
}

#[test]
fn what_a_killed_command_leaves_is_swept() {
    let Some(store) = busybox::store() else { return };
    store.ok(&["network", "create", "a"]);
    sleeper(&store, "web", &["--network", "a"]);
    let link = bridge(&store, "a");
    // The container and its supervisor at once.
    let supervisor = store.supervisor("web");
    let pid: i32 = store.ok(&["inspect", "-f", "{{.State.Pid}}", "web"]).parse().unwrap();
    for pid in [supervisor, pid] {
        let pid = rustix::process::Pid::from_raw(pid).unwrap();
        rustix::process::kill_process(pid, rustix::process::Signal::KILL).unwrap();
    }
    let begin = Instant::now();
    let waits = |what: &str| assert!(begin.elapsed() < Duration::from_secs(20), "{what}");
    while !store.ok(&["ps", "-q"]).is_empty() {
        waits("it still runs");
    }
    // A process that is killed has its lock until it is gone.
    while !store.out(&["network", "rm", "a"]).status.success() {
        waits("it is still on the network");
    }
    assert!(!has_link(&link));
    // `rm` that died between its row and its bridge.
    store.ok(&["network", "create", "other"]);
    let link = bridge(&store, "other");
    let mut kept = 0;
    for n in 0..6u32 {
        let mut command = store.command(&["network", "rm", "other"]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(u64::from(n)));
        let _ = command.kill();
        command.wait().unwrap();
        store.ok(&["system", "recover"]);
        let known = store.out(&["network", "inspect", "other"]).status.success();
        assert_eq!(known, has_link(&link), "attempt {n}");
        kept += u32::from(known);
        if !known {
            break;
        }
    }
    assert!(kept < 6 || store.out(&["network", "rm", "other"]).status.success());
    // `create` likewise: what there is can be used and removed.
    for n in 0..4u32 {
        let name = format!("n{n}");
        let mut command = store.command(&["network", "create", &name]).spawn().unwrap();
        std::thread::sleep(Duration::from_millis(u64::from(n) * 2));
        let _ = command.kill();
        command.wait().unwrap();
        if store.out(&["network", "inspect", &name]).status.success() {
            store.ok(&["run", "--rm", "--network", &name, "busybox", "true"]);
            store.ok(&["network", "rm", &name]);
        }
    }
}

#[test]
fn a_crowd_on_three_networks_has_distinct_addresses() {
    let Some(store) = busybox::store() else { return };
    let networks = ["red", "green", "blue"];
    let bridges = networks.map(|n| {
        store.ok(&["network", "create", n]);
        bridge(&store, n)
    });
    let said: Vec<(String, Output)> = std::thread::scope(|scope| {
        // Eight at a time: what is tested is the order of things, not the host's memory.
        let workers: Vec<_> = (0..8)
            .map(|worker| {
                let store = &store;
                scope.spawn(move || {
                    let mine = (worker..100).step_by(8);
                    mine.map(|n| {
                        let (name, network) = (format!("c{n}"), networks[n % 3]);
                        (
                            network.to_owned(),
                            store.out(&[
                                "run",
                                "-d",
                                "--name",
                                &name,
                                "--network",
                                network,
                                "busybox",
                                "sleep",
                                "300",
                            ]),
                        )
                    })
                    .collect::<Vec<_>>()
                })
            })
            .collect();
        workers.into_iter().flat_map(|w| w.join().unwrap()).collect()
    });
    for (_, out) in &said {
        assert!(out.status.success(), "{}", String::from_utf8_lossy(&out.stderr));
    }
    let mut all = HashSet::new();
    for network in networks {
        let v = json(&store, &["network", "inspect", network]);
        for place in v[0]["Containers"].as_object().unwrap().values() {
            assert!(all.insert(place["IPv4Address"].as_str().unwrap().to_owned()), "{place}");
        }
    }
    assert_eq!(all.len(), 100);
    let ids = store.ok(&["ps", "-aq"]);
    let mut remove = vec!["rm", "-f"];
    remove.extend(ids.lines());
    store.ok(&remove);
    store.ok(&["network", "prune", "-f"]);
    for link in &bridges {
        assert!(!has_link(link));
    }
    store.ok(&["system", "recover"]);
    assert_eq!(store.ok(&["network", "ls", "-q"]).lines().count(), 3);
}

#[test]
fn a_policy_says_what_a_workload_reaches() {
    let Some(store) = busybox::store() else { return };
    store.ok(&["network", "create", "open"]);
    store.ok(&["network", "create", "--egress", "none", "shut"]);
    let serve = ["busybox", "httpd", "-f", "-p", "80", "-h", "/etc"];
    store.ok(&[&["run", "-d", "--name", "srv", "--network", "open", "--network", "shut"][..], &serve].concat());
    let (open, shut) = (address(&store, "srv", "open"), address(&store, "srv", "shut"));
    // Asks for the name first: busybox's wget cannot.
    let reaches = |flags: &[&str], host: &str, name: &str| {
        let script = format!("nslookup {name} >/dev/null; busybox timeout 3 wget -qO- http://{host}/group");
        let out = store.out(&[&["run", "--rm"], flags, &["busybox", "sh", "-c", &script]].concat());
        String::from_utf8_lossy(&out.stdout).contains("extra:x:2000")
    };
    let begin = Instant::now();
    while !reaches(&["--network", "open"], &open, "srv") {
        assert!(begin.elapsed() < Duration::from_secs(20), "nothing reaches the server");
    }
    let rule = format!("{open}:80/tcp");
    for (flags, host, want) in [
        (&["--network", "open", "--egress", "none"][..], &*open, false),
        (&["--network", "open", "--egress", &rule], &open, true),
        (&["--network", "open", "--egress", "srv:80"], &open, true),
        (&["--network", "open", "--egress", "srv:81"], &open, false),
        // The network's, and another in its place.
        (&["--network", "shut"], &shut, false),
        (&["--network", "shut", "--egress", "all"], &shut, true),
    ] {
        assert_eq!(reaches(flags, host, "srv"), want, "{flags:?} {host}");
    }
    // Bridges and rules that are there survive their repair, and so does what runs.
    let mended = store.ok(&["network", "repair"]);
    assert!(mended.contains("open") && mended.contains("shut"), "{mended}");
    assert!(reaches(&["--network", "open"], &open, "srv") && !reaches(&["--network", "shut"], &shut, "srv"));
}
