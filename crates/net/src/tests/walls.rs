//! Networks are apart, and their sandboxes from the host's services: whatever a sandbox sends.

use super::isolation::ask_briefly;
use super::traffic::{answer, answer_udp, ask, ask_udp, serve_all, supervised, tcp_server};
use super::*;
use crate::publish;
use std::net::UdpSocket;
use std::time::Duration;

/// Whether a datagram is answered before long.
pub(super) fn ask_udp_briefly(to: impl Into<IpAddr>, port: u16) -> std::io::Result<String> {
    let to = std::net::SocketAddr::new(to.into(), port);
    let any: std::net::SocketAddr = if to.is_ipv4() { "0.0.0.0:0" } else { "[::]:0" }.parse().unwrap();
    let socket = UdpSocket::bind(any)?;
    socket.set_read_timeout(Some(Duration::from_millis(300)))?;
    socket.connect(to)?;
    socket.send(b"?")?;
    let mut buf = [0; 64];
    let len = socket.recv(&mut buf)?;
    Ok(String::from_utf8_lossy(&buf[..len]).into_owned())
}

#[test]
fn networks_are_apart_but_for_published_ports() {
    let Some(world) = World::new() else { return };
    let everywhere = ["0.0.0.0", "::"].map(|ip| port(ip, 8080, 80, Protocol::Tcp));
    let (a, b) = (attachment(2, vec![]), attachment_on(other_bridge(), 3, everywhere.to_vec()));
    let (from, to) = (world.sandbox(&a), world.sandbox(&b));
    serve_all(&to, &b);
    let _held = world.host.run(|| publish(&b).unwrap());
    let b6 = b.ipv6.unwrap();
    let apart = || {
        for port in [80, 8080] {
            assert!(ask_briefly(b.ipv4, port).is_err() && ask_briefly(b6, port).is_err());
            assert!(ask_udp_briefly(b.ipv4, port).is_err() && ask_udp_briefly(b6, port).is_err());
        }
    };
    from.run(apart);
    // As the host's other clients, and without leaving a door open.
    from.run(|| {
        let gateways = (b.bridge.gateway4.to_string(), b.bridge.gateway6.unwrap().to_string());
        assert_eq!(ask(HOST4, 8080).unwrap(), gateways.0);
        assert_eq!(ask(a.bridge.gateway4, 8080).unwrap(), gateways.0);
        assert_eq!(ask(b.bridge.gateway4, 8080).unwrap(), gateways.0);
        assert_eq!(ask(HOST6, 8080).unwrap(), gateways.1);
        apart();
    });
    // Nor does the other side get back by the way the first came.
    from.run(|| answer(tcp_server(a.ipv4, 81)));
    to.run(|| assert!(ask_briefly(a.ipv4, 81).is_err()));
}

#[test]
fn internal_networks_have_no_way_out_or_in() {
    let Some(world) = World::new() else { return };
    let plan = BridgePlan { internal: true, ..other_bridge() };
    let inside = |n| Attachment { default_route: false, ..attachment_on(plan.clone(), n, vec![]) };
    let (a, b) = (inside(2), inside(3));
    let (one, two) = (world.sandbox(&a), world.sandbox(&b));
    let published = attachment(2, vec![port("0.0.0.0", 8080, 80, Protocol::Tcp)]);
    let elsewhere = world.sandbox(&published);
    // A sandbox without IPv6, whose port IPv6 clients reach by the proxy.
    let proxied = Attachment { ipv6: None, ..attachment(4, vec![port("::", 8081, 80, Protocol::Tcp)]) };
    let behind = world.sandbox(&proxied);
    behind.run(|| answer(tcp_server(proxied.ipv4, 80)));
    serve_all(&elsewhere, &published);
    serve_all(&two, &b);
    let _held = world.host.run(|| publish(&published).unwrap());
    world.outside.run(|| {
        answer(tcp_server(PEER4, 80));
        answer(tcp_server(PEER6, 80));
    });
    one.run(|| {
        assert!(ask(b.ipv4, 80).is_ok() && ask(b.ipv6.unwrap(), 80).is_ok());
        assert!(ask_briefly(PEER4, 80).is_err());
        // A workload that makes the route itself.
        route_by(plan.gateway4.into(), "eth0");
        route_by(plan.gateway6.unwrap().into(), "eth0");
        assert!(ask_briefly(PEER4, 80).is_err() && ask_briefly(PEER6, 80).is_err());
        assert!(ask_briefly(HOST4, 8080).is_err() && ask_briefly(plan.gateway4, 8080).is_err());
    });
    let carried = world.host.run(|| publish(&proxied).unwrap());
    supervised(&world.host, carried, || {
        world.outside.run(|| assert!(ask(HOST6, 8081).is_ok()));
        one.run(|| {
            assert!(ask_briefly(HOST6, 8081).is_err() && ask_briefly(plan.gateway6.unwrap(), 8081).is_err());
        });
    });
    world.host.run(|| assert!(ask(b.ipv4, 80).is_ok()));
    world.outside.run(|| {
        route_by(HOST4.into(), "in0");
        assert!(ask_briefly(b.ipv4, 80).is_err());
    });
}

fn route_by(gateway: IpAddr, ifname: &str) {
    let mut socket = link::open().unwrap();
    let index = link::get(&mut socket, ifname).unwrap().unwrap().index;
    let mut batch = Batch::new();
    link::add_default_route(&mut batch, index, gateway);
    link::run(&mut socket, batch, &[]).unwrap();
}

#[test]
fn the_hosts_services_are_closed_unless_asked_for() {
    let Some(world) = World::new() else { return };
    let open = BridgePlan { host_access: true, ..other_bridge() };
    let (closed, asked) = (attachment(2, vec![]), Attachment { host_access: true, ..attachment(3, vec![]) });
    let on_open = attachment_on(open, 2, vec![]);
    // A sandbox without IPv6, whose port IPv6 clients reach by the proxy.
    let proxied = Attachment { ipv6: None, ..attachment(4, vec![port("::", 8080, 80, Protocol::Tcp)]) };
    let [a, b, c, d] = [&closed, &asked, &on_open, &proxied].map(|a| world.sandbox(a));
    d.run(|| answer(tcp_server(proxied.ipv4, 80)));
    let published = world.host.run(|| {
        answer(tcp_server(Ipv4Addr::UNSPECIFIED, 99));
        answer(tcp_server(Ipv6Addr::UNSPECIFIED, 98));
        answer_udp(HOST4, 99);
        publish(&proxied).unwrap()
    });
    a.run(|| {
        for to in [HOST4, closed.bridge.gateway4, other_bridge().gateway4] {
            // It is told, and need not wait.
            let refused = ask(to, 99).unwrap_err();
            assert_ne!(refused.kind(), std::io::ErrorKind::TimedOut, "{refused}");
            assert!(ask_udp_briefly(to, 99).is_err());
        }
        assert!(ask_briefly(HOST6, 98).is_err() && ask_briefly(closed.bridge.gateway6.unwrap(), 98).is_err());
    });
    b.run(|| assert!(ask(HOST4, 99).is_ok() && ask(HOST6, 98).is_ok() && ask_udp(HOST4, 99).is_ok()));
    c.run(|| {
        assert!(ask(HOST4, 99).is_ok() && ask(other_bridge().gateway4, 99).is_ok() && ask(HOST6, 98).is_ok())
    });
    supervised(&world.host, published, || {
        a.run(|| assert!(ask(HOST6, 8080).is_ok()));
    });
    world.host.run(|| crate::detach(&asked).unwrap());
    b.run(|| assert!(ask_briefly(HOST4, 99).is_err()));
}

#[test]
fn metadata_services_are_out_of_reach_if_asked() {
    let Some(world) = World::new() else { return };
    const METADATA: Ipv4Addr = Ipv4Addr::new(169, 254, 169, 254);
    let shielded = BridgePlan { no_metadata: true, ..other_bridge() };
    let (a, b) = (attachment(2, vec![]), attachment_on(shielded, 2, vec![]));
    let (plain, shielded) = (world.sandbox(&a), world.sandbox(&b));
    world.outside.run(|| {
        let mut socket = link::open().unwrap();
        let index = link::get(&mut socket, "in0").unwrap().unwrap().index;
        let mut batch = Batch::new();
        link::add_address(&mut batch, index, METADATA.into(), 16);
        link::run(&mut socket, batch, &[]).unwrap();
        answer(tcp_server(METADATA, 80));
        answer(tcp_server(PEER4, 80));
    });
    world.host.run(|| route_by(PEER4.into(), "out0"));
    plain.run(|| assert!(ask(METADATA, 80).is_ok()));
    shielded.run(|| assert!(ask_briefly(METADATA, 80).is_err() && ask(PEER4, 80).is_ok()));
}

/// Frames of a guest that is hostile.
pub(super) mod frames {
    use super::*;

    pub(crate) fn ethernet(to: [u8; 6], from: [u8; 6], kind: u16, payload: &[u8]) -> Vec<u8> {
        [&to[..], &from, &kind.to_be_bytes(), payload].concat()
    }

    pub(crate) const ALL: [u8; 6] = [0xff; 6];

    pub(crate) fn arp(from: [u8; 6], said: [u8; 6], ip: Ipv4Addr) -> Vec<u8> {
        let fixed = [0, 1, 8, 0, 6, 4, 0, 2];
        ethernet(ALL, from, 0x0806, &[&fixed[..], &said, &ip.octets(), &ALL, &[172, 30, 0, 9]].concat())
    }

    fn sum(words: &[u8]) -> u16 {
        let mut all: u32 = 0;
        for pair in words.chunks(2) {
            all += u32::from(pair[0]) << 8 | u32::from(pair.get(1).copied().unwrap_or(0));
        }
        while all > 0xffff {
            all = (all & 0xffff) + (all >> 16);
        }
        !(all as u16)
    }

    /// An IPv4 packet of that protocol.
    pub(crate) fn ip4(from: Ipv4Addr, to: Ipv4Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let [l1, l2] = u16::try_from(20 + payload.len()).unwrap().to_be_bytes();
        let mut head = vec![0x45, 0, l1, l2, 0, 1, 0, 0, 64, protocol, 0, 0];
        head.extend(from.octets());
        head.extend(to.octets());
        let check = sum(&head).to_be_bytes();
        head[10..12].copy_from_slice(&check);
        head.extend(payload);
        head
    }

    /// A datagram without a checksum, which IPv4 allows.
    pub(crate) fn udp(port: u16, text: &[u8]) -> Vec<u8> {
        let [l1, l2] = u16::try_from(8 + text.len()).unwrap().to_be_bytes();
        let [p1, p2] = port.to_be_bytes();
        [&[0x30, 0x39, p1, p2, l1, l2, 0, 0], text].concat()
    }

    pub(crate) fn ip6(from: Ipv6Addr, to: Ipv6Addr, protocol: u8, payload: &[u8]) -> Vec<u8> {
        let [l1, l2] = u16::try_from(payload.len()).unwrap().to_be_bytes();
        let mut out = vec![0x60, 0, 0, 0, l1, l2, protocol, 255];
        out.extend(from.octets());
        out.extend(to.octets());
        out.extend(payload);
        out
    }

    /// Neighbour discovery; the bridge does not look at checksums.
    pub(crate) fn discovery(kind: u8, target: Ipv6Addr) -> Vec<u8> {
        [&[kind, 0, 0, 0, 0, 0, 0, 0], &target.octets()[..]].concat()
    }

    pub(crate) fn link_local(mac: [u8; 6]) -> Ipv6Addr {
        let [a, b, c, d, e, f] = mac;
        Ipv6Addr::from([0xfe, 0x80, 0, 0, 0, 0, 0, 0, a ^ 2, b, c, 0xff, 0xfe, d, e, f])
    }
}

#[test]
fn a_guest_sends_only_what_is_its_own() {
    use frames::*;
    let Some(world) = World::new() else { return };
    let (a, b) = (attachment(2, vec![]), attachment(3, vec![]));
    let (mallory, victim) = (world.machine(&a), world.machine(&b));
    let (mac, other) = (a.mac, b.mac);
    let (ip, gateway) = (a.ipv4, a.bridge.gateway4);
    let everyone: Ipv6Addr = "ff02::1".parse().unwrap();
    let group = [0x33, 0x33, 0, 0, 0, 1];
    let (own6, other6, link) = (a.ipv6.unwrap(), b.ipv6.unwrap(), link_local(mac));
    let v4 = |from, src| ethernet(ALL, from, 0x0800, &ip4(src, Ipv4Addr::BROADCAST, 17, &udp(9, b"bad")));
    let v6 =
        |from, src, next, payload: &[u8]| ethernet(group, from, 0x86dd, &ip6(src, everyone, next, payload));
    let vlan = [&[0, 7, 8, 0][..], &ip4(ip, Ipv4Addr::BROADCAST, 17, &udp(9, b"bad"))].concat();
    let ra = [&[134, 0, 0, 0, 64, 0, 7, 8, 0, 0, 0, 0, 0, 0, 0, 0][..]].concat();
    let behind_options = [&[58, 0, 1, 4, 0, 0, 0, 0][..], &ra].concat();
    let bad = [
        ("the gateway's address by ARP", arp(mac, mac, gateway)),
        ("a neighbour's MAC in ARP", arp(mac, other, ip)),
        ("a neighbour's address and MAC by ARP", arp(other, other, b.ipv4)),
        ("a neighbour's address", v4(mac, b.ipv4)),
        ("an address of another network", v4(mac, Ipv4Addr::new(172, 31, 0, 3))),
        ("no address", v4(mac, Ipv4Addr::UNSPECIFIED)),
        ("a neighbour's MAC", v4(other, ip)),
        ("a VLAN", ethernet(ALL, mac, 0x8100, &vlan)),
        ("another protocol", ethernet(ALL, mac, 0x88cc, b"bad")),
        ("a router advertisement", v6(mac, link, 58, &ra)),
        ("one behind options", v6(mac, link, 0, &behind_options)),
        ("a redirect", v6(mac, link, 58, &discovery(137, other6))),
        ("an advertisement for a neighbour", v6(mac, own6, 58, &discovery(136, other6))),
        ("a duplicate of a neighbour's", v6(mac, Ipv6Addr::UNSPECIFIED, 58, &discovery(135, other6))),
        ("a neighbour's IPv6 address", v6(mac, other6, 17, &udp(9, b"bad"))),
        ("a neighbour's link-local address", v6(mac, link_local(other), 17, &udp(9, b"bad"))),
        ("IPv6 without an address", v6(mac, Ipv6Addr::UNSPECIFIED, 17, &udp(9, b"bad"))),
    ];
    let good = [
        arp(mac, mac, ip),
        v4(mac, ip),
        v6(mac, own6, 17, &udp(9, b"good")),
        v6(mac, link, 58, &discovery(135, other6)),
        v6(mac, own6, 58, &discovery(136, own6)),
        v6(mac, Ipv6Addr::UNSPECIFIED, 58, &discovery(135, link)),
    ];
    mallory.send(&ethernet(ALL, mac, 0x0800, &ip4(ip, Ipv4Addr::BROADCAST, 17, &udp(9, b"first mark"))));
    victim.until(b"first mark");
    for (what, frame) in &bad {
        mallory.send(frame);
        mallory.send(&ethernet(ALL, mac, 0x0800, &ip4(ip, Ipv4Addr::BROADCAST, 17, &udp(9, b"next mark"))));
        assert!(!victim.until(b"next mark").contains(frame), "{what} came through");
    }
    for frame in &good {
        mallory.send(frame);
    }
    mallory.send(&ethernet(ALL, mac, 0x0800, &ip4(ip, Ipv4Addr::BROADCAST, 17, &udp(9, b"last mark"))));
    let came = victim.until(b"last mark");
    for frame in &good {
        assert!(came.contains(frame), "{frame:02x?} did not come through");
    }
    // Nor does a neighbour believe a router that is none, were it let through.
    let believes = world
        .sandbox(&attachment(4, vec![]))
        .run(|| std::fs::read_to_string("/proc/sys/net/ipv6/conf/eth0/accept_ra").unwrap());
    assert_eq!(believes.trim(), "0");
}

#[test]
fn no_frame_takes_a_neighbours_mac() {
    use frames::*;
    let Some(world) = World::new() else { return };
    let [a, b, c] = [2, 3, 4].map(|n| attachment(n, vec![]));
    let (mallory, victim, other) = (world.machine(&a), world.machine(&b), world.machine(&c));
    let all = |from: &Attachment, text: &[u8]| {
        ethernet(ALL, from.mac, 0x0800, &ip4(from.ipv4, Ipv4Addr::BROADCAST, 17, &udp(9, text)))
    };
    let letter = ethernet(b.mac, c.mac, 0x0800, &ip4(c.ipv4, b.ipv4, 17, &udp(9, b"for the victim")));
    // The bridge knows where the victim is.
    victim.send(&all(&b, b"I am here"));
    mallory.until(b"I am here");
    other.until(b"I am here");
    // Frames to reserved addresses (LLDP, 802.1X) are for the bridge itself.
    for reserved in [0x00, 0x03, 0x0e] {
        mallory.send(&ethernet([0x01, 0x80, 0xc2, 0, 0, reserved], b.mac, 0x88cc, &[0; 46]));
        mallory.send(&all(&a, b"sent"));
        other.until(b"sent");
        victim.until(b"sent");
        other.send(&letter);
        other.send(&all(&c, b"mark"));
        assert!(!mallory.until(b"mark").contains(&letter), "{reserved:x}: a neighbour's frame came");
        assert!(victim.until(b"mark").contains(&letter), "{reserved:x}: it did not come to its receiver");
    }
}

#[test]
fn no_network_sends_from_anothers_addresses() {
    use frames::*;
    let Some(world) = World::new() else { return };
    // The default network, where ports are not held to their addresses.
    let a = Attachment { network_name: "bridge".into(), ..attachment(2, vec![]) };
    let b = attachment_on(other_bridge(), 3, vec![]);
    world.host.run(|| ensure_bridge(&b.bridge).unwrap());
    let guest = world.machine(&a);
    let server = world.outside.run(|| UdpSocket::bind((PEER4, 9)).unwrap());
    server.set_read_timeout(Some(Duration::from_secs(20))).unwrap();
    let gateway = mac_from_ipv4(a.bridge.gateway4);
    let send = |from, text: &[u8]| {
        guest.send(&ethernet(gateway, a.mac, 0x0800, &ip4(from, PEER4, 17, &udp(9, text))));
    };
    for spoofed in [b.ipv4, Ipv4Addr::new(8, 8, 8, 8), HOST4, b.bridge.gateway4, PEER4] {
        send(spoofed, b"bad");
    }
    // The host asks by ARP who that is before the answer; it forwards without.
    send(a.ipv4, b"good");
    let mut buf = [0; 16];
    let len = server.recv(&mut buf).unwrap();
    assert_eq!(&buf[..len], b"good");
    world.host.run(|| assert!(!crate::firewall::has_policies()));
}
