//! Packets between a sandbox, its neighbours, the host and the outside.

use super::*;
use crate::{Published, detach, publish};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream, UdpSocket};
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::Duration;

const PATIENCE: Duration = Duration::from_secs(5);

/// Serves one connection: sends the client's address as the server sees it.
pub(super) fn tcp_server(at: impl Into<IpAddr>, port: u16) -> TcpListener {
    TcpListener::bind(SocketAddr::new(at.into(), port)).unwrap()
}

/// Answers clients with their address as the server sees it, for ever.
pub(super) fn answer(listener: TcpListener) {
    std::thread::spawn(move || {
        while let Ok((mut stream, from)) = listener.accept() {
            let _ = stream.write_all(from.ip().to_string().as_bytes());
        }
    });
}

pub(super) fn ask(to: impl Into<IpAddr>, port: u16) -> std::io::Result<String> {
    let mut stream = TcpStream::connect_timeout(&SocketAddr::new(to.into(), port), PATIENCE)?;
    stream.set_read_timeout(Some(PATIENCE))?;
    let mut said = String::new();
    stream.read_to_string(&mut said)?;
    Ok(said)
}

pub(super) fn answer_udp(at: impl Into<IpAddr>, port: u16) {
    let socket = UdpSocket::bind(SocketAddr::new(at.into(), port)).unwrap();
    std::thread::spawn(move || {
        let mut buf = [0; 64];
        while let Ok((_, from)) = socket.recv_from(&mut buf) {
            let _ = socket.send_to(from.ip().to_string().as_bytes(), from);
        }
    });
}

pub(super) fn ask_udp(to: impl Into<IpAddr>, port: u16) -> std::io::Result<String> {
    let to = SocketAddr::new(to.into(), port);
    let any: SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(PATIENCE))?;
    socket.connect(to)?;
    socket.send(b"who am I?")?;
    let mut buf = [0; 64];
    let len = socket.recv(&mut buf)?;
    Ok(String::from_utf8_lossy(&buf[..len]).into_owned())
}

#[test]
fn a_sandbox_reaches_the_outside_behind_the_hosts_address() {
    let Some(world) = World::new() else { return };
    let inside = world.sandbox(&attachment(2, vec![]));
    world.outside.run(|| {
        answer(tcp_server(PEER4, 80));
        answer(tcp_server(PEER6, 80));
        answer_udp(PEER4, 53);
        answer_udp(PEER6, 53);
    });
    inside.run(|| {
        assert_eq!(ask(PEER4, 80).unwrap(), HOST4.to_string());
        assert_eq!(ask(PEER6, 80).unwrap(), HOST6.to_string());
        assert_eq!(ask_udp(PEER4, 53).unwrap(), HOST4.to_string());
        assert_eq!(ask_udp(PEER6, 53).unwrap(), HOST6.to_string());
    });
}

#[test]
fn neighbours_and_host_reach_each_other_unchanged() {
    let Some(world) = World::new() else { return };
    let (a, b) = (attachment(2, vec![]), attachment(3, vec![]));
    let (inside_a, inside_b) = (world.sandbox(&a), world.sandbox(&b));
    inside_b.run(|| {
        answer(tcp_server(b.ipv4, 80));
        answer(tcp_server(b.ipv6.unwrap(), 80));
    });
    inside_a.run(|| {
        assert_eq!(ask(b.ipv4, 80).unwrap(), a.ipv4.to_string());
        assert_eq!(ask(b.ipv6.unwrap(), 80).unwrap(), a.ipv6.unwrap().to_string());
    });
    world.host.run(|| assert_eq!(ask(b.ipv4, 80).unwrap(), b.bridge.gateway4.to_string()));
}

/// Answers TCP and UDP on port 80 of a sandbox, both families.
pub(super) fn serve_all(inside: &Namespace, a: &Attachment) {
    let (v4, v6) = (a.ipv4, a.ipv6.unwrap());
    inside.run(|| {
        answer(tcp_server(v4, 80));
        answer(tcp_server(v6, 80));
        answer_udp(v4, 80);
        answer_udp(v6, 80);
    });
}

fn everywhere() -> Vec<PortBinding> {
    vec![
        port("0.0.0.0", 8080, 80, Protocol::Tcp),
        port("::", 8080, 80, Protocol::Tcp),
        port("0.0.0.0", 8080, 80, Protocol::Udp),
        port("::", 8080, 80, Protocol::Udp),
    ]
}

/// Serves a host's published ports, as its supervisor does, while `f` runs.
pub(super) fn supervised<T>(host: &Namespace, mut published: Published, f: impl FnOnce() -> T) -> T {
    let stop = AtomicBool::new(false);
    std::thread::scope(|s| {
        let serve = || {
            while !stop.load(Ordering::Relaxed) {
                let fd = published.poll_fd().unwrap().try_clone_to_owned().unwrap();
                let mut fds = [rustix::event::PollFd::new(&fd, rustix::event::PollFlags::IN)];
                let wait = rustix::event::Timespec { tv_sec: 0, tv_nsec: 10_000_000 };
                if rustix::event::poll(&mut fds, Some(&wait)).unwrap() > 0 {
                    published.serve();
                }
            }
        };
        let supervisor = s.spawn(|| host.run(serve));
        let done = std::panic::catch_unwind(std::panic::AssertUnwindSafe(f));
        stop.store(true, Ordering::Relaxed);
        supervisor.join().unwrap();
        done.unwrap_or_else(|panic| std::panic::resume_unwind(panic))
    })
}

#[test]
fn published_ports_are_reached_from_everywhere() {
    let Some(world) = World::new() else { return };
    let (a, b) = (attachment(2, everywhere()), attachment(3, vec![]));
    let (inside, neighbour) = (world.sandbox(&a), world.sandbox(&b));
    serve_all(&inside, &a);
    let published = world.host.run(|| publish(&a).unwrap());
    assert_eq!(published.bindings(), a.ports);
    let (gw4, gw6) = (a.bridge.gateway4.to_string(), a.bridge.gateway6.unwrap().to_string());
    supervised(&world.host, published, || {
        // From outside, with the client's own address.
        world.outside.run(|| {
            assert_eq!(ask(HOST4, 8080).unwrap(), PEER4.to_string());
            assert_eq!(ask(HOST6, 8080).unwrap(), PEER6.to_string());
            assert_eq!(ask_udp(HOST4, 8080).unwrap(), PEER4.to_string());
            assert_eq!(ask_udp(HOST6, 8080).unwrap(), PEER6.to_string());
        });
        // From the host: by its addresses, and by loopback.
        world.host.run(|| {
            assert_eq!(ask(HOST4, 8080).unwrap(), HOST4.to_string());
            assert_eq!(ask(HOST6, 8080).unwrap(), HOST6.to_string());
            assert_eq!(ask(Ipv4Addr::LOCALHOST, 8080).unwrap(), gw4);
            assert_eq!(ask_udp(Ipv4Addr::LOCALHOST, 8080).unwrap(), gw4);
            assert_eq!(ask(Ipv6Addr::LOCALHOST, 8080).unwrap(), gw6);
            assert_eq!(ask_udp(Ipv6Addr::LOCALHOST, 8080).unwrap(), gw6);
        });
        // From sandboxes, itself included.
        for from in [&inside, &neighbour] {
            from.run(|| {
                assert_eq!(ask(HOST4, 8080).unwrap(), gw4);
                assert_eq!(ask(HOST6, 8080).unwrap(), gw6);
                assert_eq!(ask(a.bridge.gateway4, 8080).unwrap(), gw4);
                assert_eq!(ask_udp(HOST4, 8080).unwrap(), gw4);
                assert_eq!(ask_udp(HOST6, 8080).unwrap(), gw6);
            });
        }
    });
    world.host.run(|| detach(&a).unwrap());
    world.outside.run(|| assert!(ask(HOST4, 8080).is_err()));
}

#[test]
fn without_rules_the_proxy_serves() {
    let Some(world) = World::new() else { return };
    let a = attachment(2, everywhere());
    let inside = world.sandbox(&a);
    serve_all(&inside, &a);
    let published = world.host.run(|| publish(&a).unwrap());
    // As if somebody had flushed the ruleset.
    world.host.run(|| detach(&a).unwrap());
    let gw4 = a.bridge.gateway4.to_string();
    supervised(&world.host, published, || {
        world.outside.run(|| {
            assert_eq!(ask(HOST4, 8080).unwrap(), gw4);
            assert_eq!(ask_udp(HOST4, 8080).unwrap(), gw4);
            assert!(ask(HOST6, 8080).is_ok());
        });
    });
}

#[test]
fn the_proxy_carries_much_and_half_closes() {
    let Some(world) = World::new() else { return };
    let a = attachment(2, vec![port("::1", 8080, 80, Protocol::Tcp)]);
    let inside = world.sandbox(&a);
    let listener = inside.run(|| tcp_server(a.ipv6.unwrap(), 80));
    // Reads to the end, then says how much it read and sends as much back.
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut all = Vec::new();
            stream.read_to_end(&mut all).unwrap();
            std::thread::sleep(Duration::from_millis(20));
            let _ = stream.write_all(&all);
        }
    });
    let published = world.host.run(|| publish(&a).unwrap());
    supervised(&world.host, published, || {
        world.host.run(|| {
            std::thread::scope(|s| {
                for n in 0..8u32 {
                    s.spawn(move || {
                        let mut stream = TcpStream::connect((Ipv6Addr::LOCALHOST, 8080)).unwrap();
                        stream.set_read_timeout(Some(PATIENCE)).unwrap();
                        let sent: Vec<u8> =
                            (0..3_000_000u32).map(|i| (i.wrapping_mul(n + 7) >> 3) as u8).collect();
                        stream.write_all(&sent).unwrap();
                        stream.shutdown(std::net::Shutdown::Write).unwrap();
                        let mut back = Vec::new();
                        stream.read_to_end(&mut back).unwrap();
                        assert!(back == sent, "{} of {}", back.len(), sent.len());
                    });
                }
            });
        });
    });
}

#[test]
fn a_closed_port_inside_is_a_reset() {
    let Some(world) = World::new() else { return };
    let a = attachment(2, vec![port("::1", 8080, 81, Protocol::Tcp)]);
    let _inside = world.sandbox(&a);
    let published = world.host.run(|| publish(&a).unwrap());
    supervised(&world.host, published, || {
        world.host.run(|| assert!(ask(Ipv6Addr::LOCALHOST, 8080).is_err()))
    });
}

#[test]
fn the_first_packet_is_not_lost() {
    let Some(world) = World::new() else { return };
    world.outside.run(|| {
        answer(tcp_server(PEER4, 80));
        let _ = ask(HOST4, 80);
    });
    // A packet that a bridge port or a link drops before its carrier has settled is sent again after a second.
    let quick = (2..6).filter(|n| {
        let inside = world.sandbox(&attachment(*n, vec![]));
        inside.run(|| {
            let start = std::time::Instant::now();
            ask(PEER4, 80).unwrap();
            start.elapsed() < Duration::from_millis(800)
        })
    });
    assert!(quick.count() >= 3);
}

#[test]
fn rules_of_iptables_are_left_alone() {
    let Some(world) = World::new() else { return };
    let iptables = |args: &str| {
        world.host.run(|| {
            std::process::Command::new("iptables").args(args.split(' ')).output().map_err(|e| e.to_string())
        })
    };
    // Another engine's rules, in the tables that iptables keeps in nf_tables.
    let theirs = [
        "-t nat -A POSTROUTING -s 172.17.0.0/16 ! -o docker0 -j MASQUERADE",
        "-t nat -A PREROUTING -m addrtype --dst-type LOCAL -p tcp --dport 9090 -j DNAT --to-destination 172.17.0.2:90",
        "-A FORWARD -i docker0 -j ACCEPT",
    ];
    for rule in theirs {
        match iptables(rule) {
            Ok(done) if done.status.success() => {}
            other => return eprintln!("skipped: iptables does not work here: {other:?}"),
        }
    }
    let listing = || [iptables("-S").unwrap().stdout, iptables("-t nat -S").unwrap().stdout];
    let before = listing();
    let a = attachment(2, everywhere());
    let inside = world.sandbox(&a);
    serve_all(&inside, &a);
    let _held = world.host.run(|| publish(&a).unwrap());
    world.outside.run(|| {
        assert_eq!(ask(HOST4, 8080).unwrap(), PEER4.to_string());
        answer(tcp_server(PEER4, 80));
    });
    inside.run(|| assert_eq!(ask(PEER4, 80).unwrap(), HOST4.to_string()));
    world.host.run(|| {
        detach(&a).unwrap();
        crate::remove_bridge(&a.bridge).unwrap();
    });
    assert_eq!(listing(), before);
}
