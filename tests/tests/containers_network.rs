//! The default bridge, published ports, and the networks that are none.

use dhow_tests::{Store, busybox};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpStream, UdpSocket};
use std::os::fd::AsFd;
use std::time::{Duration, Instant};

const SERVE: &[&str] = &["busybox", "httpd", "-f", "-p", "80", "-h", "/etc"];

fn run(store: &Store, flags: &[&str], command: &[&str]) -> String {
    let mut args = vec!["run", "-d"];
    args.extend(flags);
    args.extend(command);
    store.ok(&args)
}

/// GET of `/group`, with patience until the server listens.
fn fetch(address: SocketAddr) -> String {
    let begin = Instant::now();
    loop {
        let got = TcpStream::connect_timeout(&address, Duration::from_secs(2)).and_then(|mut s| {
            s.set_read_timeout(Some(Duration::from_secs(2)))?;
            s.write_all(b"GET /group HTTP/1.0\r\n\r\n")?;
            let mut text = String::new();
            s.read_to_string(&mut text)?;
            Ok(text)
        });
        match got {
            Ok(text) if text.contains("extra:x:2000") => return text,
            other => assert!(begin.elapsed() < Duration::from_secs(15), "{address}: {other:?}"),
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Host port of `80/tcp` as `dhow port` tells it.
fn port(store: &Store, name: &str) -> u16 {
    let text = store.ok(&["port", name, "80/tcp"]);
    text.lines()
        .next()
        .and_then(|l| l.rsplit(':').next())
        .and_then(|p| p.parse().ok())
        .unwrap_or_else(|| panic!("{text}"))
}

#[test]
fn containers_reach_each_other_and_the_host_reaches_them() {
    let Some(store) = busybox::store() else { return };
    run(&store, &["--name", "web"], SERVE);
    let address = store.ok(&["inspect", "-f", "{{.NetworkSettings.Networks.bridge.IPAddress}}", "web"]);
    fetch(format!("{address}:80").parse().unwrap());
    let url = format!("http://{address}/group");
    assert!(store.ok(&["run", "--rm", "busybox", "wget", "-qO-", &url]).contains("extra"));
    let v6 = store.ok(&["inspect", "-f", "{{.NetworkSettings.Networks.bridge.GlobalIPv6Address}}", "web"]);
    if v6.is_empty() || v6.contains("no value") {
        eprintln!("SKIPPED: IPv6, this host has none");
        return;
    }
    fetch(format!("[{v6}]:80").parse().unwrap());
}

#[test]
fn published_ports_are_reached_from_everywhere() {
    let Some(store) = busybox::store() else { return };
    run(&store, &["--name", "web", "-p", "80"], SERVE);
    let port = port(&store, "web");
    fetch(SocketAddr::from(([127, 0, 0, 1], port)));
    if std::net::TcpListener::bind("[::1]:0").is_ok() {
        fetch(format!("[::1]:{port}").parse().unwrap());
    }
    // From another container, and from itself, by the address of the host's end.
    let gateway = store.ok(&["inspect", "-f", "{{.NetworkSettings.Networks.bridge.Gateway}}", "web"]);
    let url = format!("http://{gateway}:{port}/group");
    assert!(store.ok(&["run", "--rm", "busybox", "wget", "-qO-", &url]).contains("extra"));
    assert!(store.ok(&["exec", "web", "wget", "-qO-", &url]).contains("extra"));
    // Taken, and free again.
    let taken = format!("{port}:80");
    let out = store.out(&["run", "-d", "--name", "late", "-p", &taken, "busybox", "true"]);
    let said = String::from_utf8_lossy(&out.stderr).into_owned();
    assert!(
        out.status.code() == Some(125)
            && said.contains("already allocated")
            && said.contains(&port.to_string()),
        "{said}"
    );
    store.ok(&["rm", "-f", "late"]);
    store.ok(&["rm", "-f", "web"]);
    run(&store, &["--name", "next", "-p", &taken], SERVE);
    fetch(SocketAddr::from(([127, 0, 0, 1], port)));
}

#[test]
fn a_port_is_free_when_the_end_is_told() {
    let Some(store) = busybox::store() else { return };
    // Its supervisor lives on for a moment after it has answered: more than once, to meet that moment.
    run(&store, &["--name", "web", "-p", "127.0.0.1::80"], SERVE);
    for _ in 0..10 {
        let address = SocketAddr::from(([127, 0, 0, 1], port(&store, "web")));
        fetch(address);
        store.ok(&["kill", "web"]);
        store.ok(&["wait", "web"]);
        let bound = std::net::TcpListener::bind(address);
        assert!(bound.is_ok(), "{address}: {bound:?}");
        store.ok(&["start", "web"]);
    }
}

#[test]
fn udp_is_published_too() {
    let Some(store) = busybox::store() else { return };
    run(&store, &["--name", "echo", "-p", "127.0.0.1::7/udp"], &["busybox", "sleep", "60"]);
    let pid = store.ok(&["inspect", "-f", "{{.State.Pid}}", "echo"]);
    // busybox has no UDP server: this thread becomes one inside.
    std::thread::spawn(move || {
        let namespace = std::fs::File::open(format!("/proc/{pid}/ns/net")).unwrap();
        let kind = Some(rustix::thread::LinkNameSpaceType::Network);
        rustix::thread::move_into_link_name_space(namespace.as_fd(), kind).unwrap();
        let socket = UdpSocket::bind("0.0.0.0:7").unwrap();
        let mut buffer = [0; 16];
        while let Ok((len, from)) = socket.recv_from(&mut buffer) {
            let _ = socket.send_to(&buffer[..len], from);
        }
    });
    let text = store.ok(&["port", "echo"]);
    let port: u16 = text.rsplit(':').next().unwrap().trim().parse().unwrap();
    let socket = UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(200))).unwrap();
    let begin = Instant::now();
    let mut buffer = [0; 16];
    loop {
        socket.send_to(b"ping", ("127.0.0.1", port)).unwrap();
        if socket.recv(&mut buffer).is_ok_and(|n| &buffer[..n] == b"ping") {
            break;
        }
        assert!(begin.elapsed() < Duration::from_secs(15), "no answer");
    }
}

#[test]
fn none_host_and_all_exposed() {
    let Some(store) = busybox::store() else { return };
    let links = "ip -o link | wc -l";
    assert_eq!(store.ok(&["run", "--rm", "--network", "none", "busybox", "sh", "-c", links]), "1");
    let host = std::fs::read_link("/proc/self/ns/net").unwrap();
    assert_eq!(
        store.ok(&["run", "--rm", "--network", "host", "busybox", "readlink", "/proc/self/ns/net"]),
        host.to_str().unwrap()
    );
    run(&store, &["--name", "web", "-P", "--expose", "80"], SERVE);
    fetch(SocketAddr::from(([127, 0, 0, 1], port(&store, "web"))));
    let out = store.out(&["run", "--rm", "--network", "nowhere", "busybox", "true"]);
    assert_eq!(out.status.code(), Some(125));
}

#[test]
fn addresses_are_distinct_in_a_crowd() {
    let Some(store) = busybox::store() else { return };
    let addresses: Vec<String> = std::thread::scope(|scope| {
        let one = || {
            store.ok(&[
                "run",
                "--rm",
                "busybox",
                "sh",
                "-c",
                "ip -o -4 addr show eth0 | tr -s ' ' | cut -d' ' -f4; sleep 1",
            ])
        };
        let all: Vec<_> = (0..20).map(|_| scope.spawn(one)).collect();
        all.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let distinct: std::collections::HashSet<_> = addresses.iter().collect();
    assert_eq!(distinct.len(), 20, "{addresses:?}");
}
