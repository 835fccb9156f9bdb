//! What happens to the network of a whole host: its firewall is flushed, it is on a LAN, its subnets are somebody else's after
//! a reboot. Each test has a host's network for itself.

use dhow_tests::private::{self, Neighbour};
use dhow_tests::{Store, busybox};
use std::process::Command;
use std::time::{Duration, Instant};

const SERVE: &[&str] = &["busybox", "httpd", "-f", "-p", "80", "-h", "/etc"];
const PATIENCE: Duration = Duration::from_secs(60);

fn start(store: &Store, name: &str, flags: &[&str]) {
    store.ok(&[&["run", "-d", "--name", name], flags, SERVE].concat());
}

fn refused(store: &Store, args: &[&str]) -> String {
    let out = store.out(args);
    assert!(!out.status.success(), "dhow {args:?} succeeded");
    String::from_utf8_lossy(&out.stderr).into_owned()
}

fn address(store: &Store, container: &str, network: &str) -> String {
    let template = format!("{{{{(index .NetworkSettings.Networks {network:?}).IPAddress}}}}");
    store.ok(&["inspect", "-f", &template, container])
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let begin = Instant::now();
    while !holds() {
        assert!(begin.elapsed() < PATIENCE, "{what}: not within {PATIENCE:?}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Kills a process, and waits until it is gone.
fn kill(pid: i32) {
    use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
    let process = pidfd_open(Pid::from_raw(pid).unwrap(), PidfdFlags::empty()).unwrap();
    pidfd_send_signal(&process, Signal::KILL).unwrap();
    let mut fds = [rustix::event::PollFd::new(&process, rustix::event::PollFlags::IN)];
    let patience = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
    assert_eq!(rustix::event::poll(&mut fds, Some(&patience)), Ok(1));
}

/// Whether a container gets a page from there.
fn reaches(store: &Store, from: &str, host: &str) -> bool {
    let url = format!("http://{host}/group");
    let out = store.out(&["exec", from, "busybox", "timeout", "5", "wget", "-qO-", &url]);
    String::from_utf8_lossy(&out.stdout).contains("root:x:0")
}

#[test]
fn a_flushed_firewall_is_mended_by_who_runs() {
    private::network(&["nft"], || {
        let Some(store) = busybox::store() else { return };
        store.ok(&["network", "create", "own"]);
        start(&store, "shut", &["--network", "own", "--egress", "none", "-p", "127.0.0.1::80"]);
        start(&store, "free", &["--network", "own"]);
        let (shut, free) = (address(&store, "shut", "own"), address(&store, "free", "own"));
        let port = store.ok(&["port", "shut", "80"]);
        let port = port.rsplit(':').next().unwrap().trim();
        let holds = |family: &str, set: &str, element: &str| {
            let out = Command::new("nft").args(["list", "set", family, "dhow", set]).output().unwrap();
            String::from_utf8_lossy(&out.stdout).contains(element)
        };
        let whole = || {
            let map =
                Command::new("nft").args(["list", "map", "ip", "dhow", "published_at"]).output().unwrap();
            holds("inet", "confined4", &shut)
                && holds("bridge", "own4", &shut)
                && holds("bridge", "own4", &free)
                && String::from_utf8_lossy(&map.stdout).contains(port)
        };
        let walls = || {
            until("the neighbour reaches it", || reaches(&store, "free", &shut));
            assert!(!reaches(&store, "shut", &free), "its policy does not hold");
        };
        assert!(whole());
        walls();
        for _ in 0..3 {
            private::run(&["nft", "flush", "ruleset"]);
            until("the rules are back", whole);
        }
        walls();
        // One set alone, too.
        private::run(&["nft", "flush", "set", "inet", "dhow", "confined4"]);
        until("the rules are back", whole);
        assert!(!reaches(&store, "shut", &free), "its policy does not hold");
        // Whose supervisor is dead has nobody who sees it; the next command makes one.
        kill(store.supervisor("shut"));
        kill(store.supervisor("free"));
        private::run(&["nft", "flush", "ruleset"]);
        assert!(!whole());
        store.ok(&["ps"]);
        until("the rules are back", whole);
        walls();
        store.ok(&["rm", "-f", "shut", "free"]);
        assert!(!holds("inet", "confined4", &shut) && !holds("bridge", "own4", &free));
    });
}

#[test]
fn what_a_lost_store_left_takes_no_port_from_the_host() {
    private::network(&["nft"], || {
        let Some(lost) = busybox::store() else { return };
        start(&lost, "web", &["-p", "127.0.0.1::80"]);
        let port = lost.ok(&["port", "web", "80"]);
        let port = port.trim();
        let pid = lost.ok(&["inspect", "-f", "{{.State.Pid}}", "web"]);
        kill(lost.supervisor("web"));
        kill(pid.trim().parse().unwrap());
        std::fs::remove_dir_all(lost.root()).unwrap();
        // The kernel may give this port to anybody now.
        let _anybody = std::net::TcpListener::bind(port).unwrap();
        assert!(std::net::TcpStream::connect(port).is_err(), "there was nothing to mend");
        let Some(other) = busybox::store() else { return };
        other.ok(&["network", "create", "new"]);
        std::net::TcpStream::connect(port).unwrap();
    });
}

#[test]
fn containers_are_machines_of_the_lan() {
    private::network(&["tc"], || {
        let Some(store) = busybox::store() else { return };
        let lan = Neighbour::new("lan0", &["10.241.1.1/24"]);
        let _web = lan.serve(80);
        let create = ["network", "create", "-d", "macvlan", "-o", "parent=lan0", "--subnet", "10.241.1.0/24"];
        store.ok(&[&create[..], &["--gateway", "10.241.1.1", "lan"]].concat());
        start(&store, "one", &["--network", "name=lan,ip=10.241.1.10"]);
        let limits = "name=lan,ip=10.241.1.11,ingress-rate=80mbit,egress-rate=40mbit";
        start(&store, "two", &["--network", limits]);
        let ip = store.ok(&["exec", "one", "ip", "route"]);
        assert!(ip.contains("default via 10.241.1.1 dev eth0"), "{ip}");
        // The LAN, by its own addresses, both ways; a neighbour; by name.
        until("the LAN is reached", || reaches(&store, "one", "10.241.1.1"));
        until("the neighbour is reached", || reaches(&store, "two", "10.241.1.10"));
        assert!(store.ok(&["exec", "two", "nslookup", "one"]).contains("10.241.1.10"));
        until("it is reached from the LAN", || lan.get("10.241.1.11:80").contains("extra:x:2000"));
        let pid = store.ok(&["inspect", "-f", "{{.State.Pid}}", "two"]);
        let net = format!("--net=/proc/{pid}/ns/net");
        let within = |argv: &[&str]| private::run(&[&["nsenter", &net], argv].concat());
        let limits = within(&["tc", "qdisc", "show"]);
        let sends =
            limits.lines().any(|l| l.contains("tbf") && l.contains("dev eth0") && l.contains("rate 40Mbit"));
        let receives = limits.lines().any(|l| l.contains("dev vl") && l.contains("rate 80Mbit"));
        assert!(sends && receives && limits.contains("qdisc ingress"), "{limits}");
        let said =
            refused(&store, &["run", "--rm", "--network", "lan", "--egress", "none", "busybox", "true"]);
        assert!(said.contains("egress") && said.contains("not a bridge"), "{said}");
        // Live, and over the death of a supervisor.
        store.ok(&["network", "disconnect", "lan", "one"]);
        assert!(!store.ok(&["exec", "one", "ip", "link"]).contains("eth0"));
        kill(store.supervisor("one"));
        store.ok(&["network", "connect", "--ip", "10.241.1.12", "lan", "one"]);
        until("it is on the LAN again", || reaches(&store, "one", "10.241.1.1"));
        assert!(reaches(&store, "two", "10.241.1.12"));
        store.ok(&["rm", "-f", "one", "two"]);
        store.ok(&["network", "rm", "lan"]);
        let left = private::run(&["ip", "-o", "link"]);
        assert_eq!(left.lines().count(), 2, "{left}");
    });
}

#[test]
fn a_subnet_that_is_somebody_elses_after_a_reboot_is_told() {
    private::network(&[], || {
        let (Some(one), Some(two)) = (busybox::store(), busybox::store()) else { return };
        let subnet = "10.241.2.0/24";
        let bridge = "com.docker.network.bridge.name=reboot0";
        one.ok(&["network", "create", "--subnet", subnet, "-o", bridge, "mine"]);
        start(&one, "web", &["--network", "mine"]);
        one.ok(&["kill", "web"]);
        one.ok(&["wait", "web"]);
        // As after a reboot: no interface is there, and nobody knows of the other's networks.
        private::run(&["ip", "link", "del", "reboot0"]);
        let said = refused(&one, &["network", "create", "-o", bridge, "x"]);
        assert!(said.contains("reboot0") && said.contains("network mine"), "{said}");
        two.ok(&["network", "create", "--subnet", subnet, "theirs"]);
        let said = refused(&one, &["start", "web"]);
        let theirs = format!("dh-{}", &two.ok(&["network", "inspect", "-f", "{{.Id}}", "theirs"])[..12]);
        assert!(said.contains("10.241.2.1/24") && said.contains(&theirs), "{said}");
        two.ok(&["network", "rm", "theirs"]);
        one.ok(&["start", "web"]);
        // Left to themselves, stores choose differently.
        let chosen = [&one, &two].map(|store| {
            store.ok(&["network", "create", "any"]);
            let subnet = store.ok(&["network", "inspect", "-f", "{{(index .IPAM.Config 0).Subnet}}", "any"]);
            store.ok(&["network", "rm", "any"]);
            subnet
        });
        assert_ne!(chosen[0], chosen[1]);
    });
}

/// As ufw and Docker have it, and whoever wrote it by hand: what is routed is dropped unless somebody permits it. Nothing goes
/// behind that back, its rules stay as they are, and what docs/firewalls.md says opens what is published and no more.
#[test]
fn beside_a_firewall_that_forwards_nothing() {
    private::network(&["nft"], || {
        let Some(store) = busybox::store() else { return };
        let lan = Neighbour::new("out0", &["10.241.3.2/24"]);
        private::run(&["ip", "addr", "add", "10.241.3.1/24", "dev", "out0"]);
        let _web = lan.serve(80);
        private::run(&["nft", "add table ip filter"]);
        private::run(&[
            "nft",
            "add chain ip filter FORWARD { type filter hook forward priority 0; policy drop; }",
        ]);
        let theirs = || private::run(&["nft", "list", "table", "ip", "filter"]);
        let before = theirs();
        store.ok(&["network", "create", "-o", "com.docker.network.bridge.name=beside0", "own"]);
        start(&store, "web", &["--network", "own", "-p", "18089:80"]);
        let inside = address(&store, "web", "own");
        lan.run(&["ip", "route", "add", &inside, "via", "10.241.3.1"]);
        let own_port = || {
            let get = [
                "/bin/busybox",
                "timeout",
                "5",
                "/bin/busybox",
                "wget",
                "-qO-",
                "http://127.0.0.1:18089/group",
            ];
            private::run(&get).contains("root:x:0")
        };
        until("it is reached from its host", own_port);
        assert!(lan.get("10.241.3.1:18089").is_empty() && !reaches(&store, "web", "10.241.3.2"));
        store.ok(&["network", "repair"]);
        assert_eq!(theirs(), before);
        for side in ["iifname", "oifname"] {
            private::run(&["nft", &format!("add rule ip filter FORWARD {side} beside0 accept")]);
        }
        let permitted = theirs();
        until("it is reached from outside", || lan.get("10.241.3.1:18089").contains("extra:x:2000"));
        until("it reaches the outside", || reaches(&store, "web", "10.241.3.2"));
        assert!(lan.get(&format!("{inside}:80")).is_empty(), "a port that is not published");
        store.ok(&["rm", "-f", "web"]);
        store.ok(&["network", "rm", "own"]);
        assert_eq!(theirs(), permitted);
    });
}
