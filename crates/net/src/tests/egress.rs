//! Egress policies: where a workload may go, and that nothing that it sends goes elsewhere.

use super::isolation::ask_briefly;
use super::traffic::{answer, answer_udp, ask, ask_udp, serve_all, tcp_server};
use super::walls::{ask_udp_briefly, frames};
use super::*;
use crate::{detach, egress, publish};
use rustix::net::{AddressFamily, RecvFlags, SendFlags, SocketType, ipproto};
use std::net::{SocketAddr, UdpSocket};
use std::time::{Duration, Instant};
use types::{Egress, EgressRule, EgressTo};

pub(super) fn rule(to: &str, port: impl Into<Option<u16>>, protocol: Option<Protocol>) -> EgressRule {
    let to = match to.split_once('/') {
        Some((address, prefix)) => EgressTo::Subnet(address.parse().unwrap(), prefix.parse().unwrap()),
        None => EgressTo::Name(to.into()),
    };
    EgressRule { to, port: port.into(), protocol }
}

pub(super) fn confined(a: Attachment, rules: Vec<EgressRule>) -> Attachment {
    Attachment { egress: Egress::Only(rules), ..a }
}

/// Whether an echo request is answered, before long.
fn ping_briefly(to: IpAddr) -> bool {
    ping_within(to, Duration::from_millis(400))
}

/// Whether an echo request is answered.
fn ping(to: IpAddr) -> bool {
    ping_within(to, Duration::from_secs(10))
}

fn ping_within(to: IpAddr, time: Duration) -> bool {
    let (family, protocol, kind) = match to {
        IpAddr::V4(_) => (AddressFamily::INET, ipproto::ICMP, 8),
        IpAddr::V6(_) => (AddressFamily::INET6, ipproto::ICMPV6, 128),
    };
    let socket = rustix::net::socket(family, SocketType::RAW, Some(protocol)).unwrap();
    let patience = rustix::net::sockopt::Timeout::Recv;
    rustix::net::sockopt::set_socket_timeout(&socket, patience, Some(time)).unwrap();
    // The checksum: the kernel's for IPv6.
    let echo = if to.is_ipv4() { [kind, 0, 0xf7, 0xff - 1, 0, 1, 0, 0] } else { [kind, 0, 0, 0, 0, 1, 0, 0] };
    if rustix::net::sendto(&socket, &echo, SendFlags::empty(), &SocketAddr::new(to, 0)).is_err() {
        return false;
    }
    let mut buf = [0; 256];
    let end = Instant::now() + time;
    while Instant::now() < end {
        let Ok((_, len)) = rustix::net::recv(&socket, &mut buf[..], RecvFlags::empty()) else { return false };
        let icmp = if to.is_ipv4() { &buf[20..len] } else { &buf[..len] };
        if matches!(icmp.first(), Some(0 | 129)) {
            return true;
        }
    }
    false
}

fn outside_serves(world: &World) {
    world.outside.run(|| {
        for ip in [IpAddr::from(PEER4), PEER6.into()] {
            for port in [80, 81] {
                answer(tcp_server(ip, port));
                answer_udp(ip, port);
            }
        }
    });
}

#[test]
fn only_what_is_permitted_is_reached() {
    let Some(world) = World::new() else { return };
    outside_serves(&world);
    let (p4, p6) = (format!("{PEER4}/32"), format!("{PEER6}/128"));
    let a = confined(
        attachment(2, vec![]),
        vec![
            rule(&p4, 80, Some(Protocol::Tcp)),
            rule(&p6, 81, None),
            // They overlap with the others, and with each other.
            rule("203.0.113.0/24", 80, Some(Protocol::Tcp)),
            rule("10.0.0.0/8", None, None),
            rule("10.1.0.0/16", 443, None),
        ],
    );
    let b =
        confined(attachment(3, vec![]), vec![rule(&p4, None, None), rule(&p6, None, Some(Protocol::Udp))]);
    let none = confined(attachment(4, vec![]), vec![]);
    let free = attachment(5, vec![]);
    let inside = world.sandbox(&a);
    inside.run(|| {
        assert!(ask(PEER4, 80).is_ok() && ask(PEER6, 81).is_ok() && ask_udp(PEER6, 81).is_ok());
        // It is told, and need not wait.
        let refused = ask(PEER4, 81).unwrap_err();
        assert_ne!(refused.kind(), std::io::ErrorKind::TimedOut, "{refused}");
        assert!(ask_briefly(PEER6, 80).is_err());
        assert!(ask_udp_briefly(PEER4, 80).is_err() && ask_udp_briefly(PEER6, 80).is_err());
        assert!(!ping_briefly(PEER4.into()) && !ping_briefly(PEER6.into()) && !ping_briefly(HOST4.into()));
    });
    world.sandbox(&b).run(|| {
        assert!(ask(PEER4, 81).is_ok() && ask_udp(PEER4, 80).is_ok() && ping(PEER4.into()));
        assert!(ask_udp(PEER6, 80).is_ok() && ask_briefly(PEER6, 80).is_err() && !ping_briefly(PEER6.into()));
    });
    world.sandbox(&none).run(|| {
        assert!(ask_briefly(PEER4, 80).is_err() && ask_briefly(PEER6, 81).is_err());
        assert!(ask_udp_briefly(PEER4, 80).is_err() && !ping_briefly(PEER4.into()));
    });
    world.sandbox(&free).run(|| {
        assert!(ask(PEER4, 81).is_ok() && ping(PEER4.into()) && ping(PEER6.into()) && ping(HOST4.into()));
    });
    // Another policy in the place of the first.
    let narrower = confined(a.clone(), vec![rule(&p4, 81, None)]);
    world.host.run(|| egress::confine(&narrower).unwrap());
    inside.run(|| {
        assert!(ask(PEER4, 81).is_ok() && ask_briefly(PEER4, 80).is_err() && ask_briefly(PEER6, 81).is_err())
    });
    world.host.run(|| {
        egress::release(&narrower).unwrap();
        egress::release(&narrower).unwrap();
    });
    inside.run(|| assert!(ask(PEER6, 80).is_ok()));
}

#[test]
fn clients_and_neighbours_are_answered_but_not_asked() {
    let Some(world) = World::new() else { return };
    let everywhere = |protocol| ["0.0.0.0", "::"].map(|ip| port(ip, 8080, 80, protocol));
    let ports = [everywhere(Protocol::Tcp), everywhere(Protocol::Udp)].concat();
    // By another name than that of the default network, and by that: both hold its port to its addresses.
    // And where bridged packets go by the IP firewall (br_netfilter), and where they do not.
    for (name, filtered) in [("test", "1"), ("bridge", "0")] {
        world.host.run(|| {
            for family in ["ip", "ip6"] {
                let file = format!("/proc/sys/net/bridge/bridge-nf-call-{family}tables");
                if std::fs::exists(&file).unwrap() {
                    std::fs::write(file, filtered).unwrap();
                }
            }
        });
        let b = attachment(3, vec![]);
        let (b4, b6) = (b.ipv4, b.ipv6.unwrap());
        let a =
            confined(attachment(2, ports.clone()), vec![rule(&format!("{b4}/32"), 81, Some(Protocol::Tcp))]);
        let a = Attachment { network_name: name.into(), ..a };
        let (shut_in, free) = (world.sandbox(&a), world.sandbox(&b));
        serve_all(&shut_in, &a);
        serve_all(&free, &b);
        free.run(|| answer(tcp_server(b4, 81)));
        let held = world.host.run(|| publish(&a).unwrap());
        let client = || {
            assert!(ask(HOST4, 8080).is_ok() && ask(HOST6, 8080).is_ok());
            assert!(ask_udp(HOST4, 8080).is_ok() && ask_udp(HOST6, 8080).is_ok());
        };
        world.outside.run(client);
        free.run(client);
        let a6 = a.ipv6.unwrap();
        free.run(|| {
            assert_eq!(ask(a.ipv4, 80).unwrap(), b4.to_string());
            assert_eq!(ask_udp(a.ipv4, 80).unwrap(), b4.to_string());
            assert_eq!(ask(a6, 80).unwrap(), b6.to_string());
            assert_eq!(ask_udp(a6, 80).unwrap(), b6.to_string());
            assert!(ping(a.ipv4.into()) && ping(a6.into()));
        });
        shut_in.run(|| {
            assert_eq!(ask(b4, 81).unwrap(), a.ipv4.to_string());
            assert!(ask_briefly(b4, 80).is_err() && ask_briefly(b6, 80).is_err());
            assert!(ask_udp_briefly(b4, 80).is_err() && ask_udp_briefly(b6, 80).is_err());
            assert!(!ping_briefly(b4.into()) && !ping_briefly(b6.into()));
            // The neighbour's port, by the way of the host.
            assert!(ask_briefly(HOST4, 8080).is_err());
        });
        drop(held);
        world.host.run(|| {
            detach(&a).unwrap();
            detach(&b).unwrap();
        });
    }
}

#[test]
fn no_neighbour_takes_all_the_room_for_answers() {
    use crate::firewall::{Family, answers_remembered};
    let Some(world) = World::new() else { return };
    let shut_in = confined(attachment(2, vec![]), vec![]);
    let (greedy, other) = (attachment(3, vec![]), attachment(4, vec![]));
    let [asked, asks, waits] = [&shut_in, &greedy, &other].map(|a| world.sandbox(a));
    serve_all(&asked, &shut_in);
    let begin = Instant::now();
    const FLOWS: usize = 6000;
    asks.run(|| {
        for _ in 0..FLOWS {
            let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
            socket.send_to(b"x", (shut_in.ipv4, 80)).unwrap();
        }
    });
    let (kept, took) = world.host.run(|| (answers_remembered(Family::V4), begin.elapsed()));
    // A thousand at once, and then 500 a second.
    assert!(kept >= 500 && kept <= 1100 + took.as_millis() as usize / 2, "{kept} within {took:?}");
    waits.run(|| assert_eq!(ask_udp(shut_in.ipv4, 80).unwrap(), other.ipv4.to_string()));
}

#[test]
fn no_spoofed_packet_leaves_a_confined_port() {
    use frames::*;
    let Some(world) = World::new() else { return };
    let a = Attachment {
        network_name: "bridge".into(),
        ..confined(attachment(2, vec![]), vec![rule("198.51.100.0/24", None, None)])
    };
    let free = Attachment { network_name: "bridge".into(), ..attachment(3, vec![]) };
    let (guest, neighbour) = (world.machine(&a), world.machine(&free));
    let server = world.outside.run(|| UdpSocket::bind((PEER4, 9)).unwrap());
    server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let gateway = mac_from_ipv4(a.bridge.gateway4);
    let packet = |from, text: &[u8]| ip4(from, PEER4, 17, &udp(9, text));
    guest.send(&ethernet(gateway, a.mac, 0x0800, &packet(a.ipv4, b"own")));
    guest.send(&ethernet(gateway, a.mac, 0x0800, &packet(free.ipv4, b"a neighbour's")));
    guest.send(&ethernet(gateway, free.mac, 0x0800, &packet(free.ipv4, b"a neighbour's, and MAC")));
    guest.send(&ethernet(gateway, a.mac, 0x0800, &ip4(a.ipv4, PEER4, 1, &[8, 0, 0xf7, 0xfe, 0, 1, 0, 0])));
    let link = link_local(a.mac);
    let to6 = |from, to: Ipv6Addr, next, payload: &[u8]| {
        guest.send(&ethernet(ALL, a.mac, 0x86dd, &ip6(from, to, next, payload)));
    };
    let all6: Ipv6Addr = "ff02::1".parse().unwrap();
    // To neighbours, all of them at once.
    guest.send(&ethernet(ALL, a.mac, 0x0800, &ip4(a.ipv4, Ipv4Addr::BROADCAST, 17, &udp(9, b"to all"))));
    to6(link, all6, 17, &udp(9, b"by the link"));
    to6(a.ipv6.unwrap(), all6, 17, &udp(9, b"to all by IPv6"));
    let fragment = [&[17, 0, 0, 9, 0, 0, 0, 1][..], b"a fragment"].concat();
    to6(a.ipv6.unwrap(), all6, 44, &fragment);
    // What it may, at the end.
    guest.send(&ethernet(ALL, a.mac, 0x0806, &arp(a.mac, a.mac, a.ipv4)[14..]));
    let came = neighbour.until(&arp(a.mac, a.mac, a.ipv4)[14..]);
    assert!(!came.iter().any(|f| f[6..12] == a.mac), "{came:02x?}");
    neighbour.send(&ethernet(gateway, free.mac, 0x0800, &packet(free.ipv4, b"good")));
    let mut buf = [0; 32];
    let len = server.recv(&mut buf).unwrap();
    assert_eq!(String::from_utf8_lossy(&buf[..len]), "good");
}

#[test]
fn names_lead_where_they_resolve_to_for_a_while() {
    let Some(world) = World::new() else { return };
    outside_serves(&world);
    let named = rule("peer.example.org", 80, Some(Protocol::Tcp));
    let any = rule("any.example.org", None, None);
    let a = confined(attachment(2, vec![]), vec![named.clone(), any.clone()]);
    let inside = world.sandbox(&a);
    inside.run(|| assert!(ask_briefly(PEER4, 80).is_err()));
    let (peer4, peer6) = (IpAddr::from(PEER4), IpAddr::from(PEER6));
    world.host.run(|| {
        let long = Duration::from_secs(3600);
        egress::permit(&a, &named, &[(peer4, Duration::from_secs(1)), (Ipv4Addr::LOCALHOST.into(), long)])
            .unwrap();
        // A later answer counts.
        egress::permit(&a, &named, &[(peer4, long)]).unwrap();
        egress::permit(&a, &any, &[(peer6, Duration::from_secs(6))]).unwrap();
    });
    inside.run(|| {
        assert!(ask(PEER6, 81).is_ok() && ask_udp(PEER6, 80).is_ok() && ping(peer6));
        let end = Instant::now() + Duration::from_secs(60);
        while ask_briefly(PEER6, 81).is_ok() {
            assert!(Instant::now() < end, "it never expired");
            std::thread::sleep(Duration::from_millis(100));
        }
        assert!(ask(PEER4, 80).is_ok());
        assert!(ask_briefly(PEER4, 81).is_err() && ask_udp_briefly(PEER4, 80).is_err());
    });
    // Nothing is left to who has the address next.
    world.host.run(|| detach(&a).unwrap());
    let next = world.sandbox(&confined(attachment(2, vec![]), vec![]));
    next.run(|| assert!(ask_briefly(PEER4, 80).is_err()));
}

/// Whether a datagram from that port is answered before long.
fn talk(from: (Ipv4Addr, u16), to: (Ipv4Addr, u16)) -> bool {
    let socket = UdpSocket::bind(from).unwrap();
    socket.set_read_timeout(Some(Duration::from_millis(400))).unwrap();
    socket.connect(to).unwrap();
    socket.send(b"?").is_ok() && socket.recv(&mut [0; 64]).is_ok()
}

#[test]
fn who_inherits_an_address_inherits_no_connection() {
    let Some(world) = World::new() else { return };
    outside_serves(&world);
    let free = attachment(2, vec![port("0.0.0.0", 8080, 80, Protocol::Udp)]);
    let before = world.sandbox(&free);
    before.run(|| answer_udp(free.ipv4, 80));
    let held = world.host.run(|| publish(&free).unwrap());
    let client = world.outside.run(|| {
        assert!(talk((PEER4, 6666), (HOST4, 8080)));
        UdpSocket::bind((PEER4, 6666)).unwrap()
    });
    before.run(|| assert!(talk((free.ipv4, 5555), (PEER4, 80))));
    world.host.run(|| detach(&free).unwrap());
    drop(held);
    // The others of these two connections may have kept them alive.
    let next = world.sandbox(&confined(attachment(2, vec![]), vec![]));
    next.run(|| {
        assert!(!talk((free.ipv4, 5555), (PEER4, 80)));
        assert!(!talk((free.ipv4, 80), (PEER4, 6666)));
    });
    client.set_nonblocking(true).unwrap();
    assert!(client.recv(&mut [0; 64]).is_err(), "what was published by its predecessor is a way out");
}
