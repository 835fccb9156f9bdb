//! Networks that come and go while a sandbox runs, their limits, and interfaces of the host in the place of a bridge.

use super::traffic::{answer, ask, tcp_server};
use super::*;
use crate::{connect, disconnect_others, is_attached, machine, unlink};
use crate::{join_tap, leave_tap, spare_tap, sweep};
use std::io::{Read, Write};
use std::net::{SocketAddr, TcpListener, TcpStream};
use std::time::{Duration, Instant};
use sys::netlink::Socket;
use types::{Bandwidth, MacvlanMode, Uplink, spare_mac};

/// A further network of sandbox `n`.
fn second(n: u8, ports: Vec<PortBinding>) -> Attachment {
    let first = attachment(n, ports);
    let ipv4 = Ipv4Addr::new(172, 29, 0, n);
    let bridge = BridgePlan {
        name: "dh-second".into(),
        gateway4: Ipv4Addr::new(172, 29, 0, 1),
        gateway6: Some("fd12:9999::1".parse().unwrap()),
        ..first.bridge
    };
    Attachment {
        host_ifname: host_ifname(&first.id, 1),
        ifname: "eth1".into(),
        network: "1".repeat(64),
        mac: mac_from_ipv4(ipv4),
        ipv4,
        ipv6: bridge.gateway6.map(|g| ipv6_for(g, 64, ipv4)),
        bridge,
        ..first
    }
}

fn link_of(name: &str) -> Option<link::Link> {
    link::get(&mut link::open().unwrap(), name).unwrap()
}

#[test]
fn a_network_comes_and_goes_while_a_sandbox_runs() {
    let Some(world) = World::new() else { return };
    let first = attachment(2, vec![]);
    let inside = world.sandbox(&first);
    let (new, peer) = (second(2, vec![]), second(3, vec![]));
    let neighbour = Namespace::new().unwrap();
    world.host.run(|| {
        ensure_bridge(&new.bridge).unwrap();
        connect(&new, inside.fd()).unwrap();
        connect(&peer, neighbour.fd()).unwrap();
        assert!(is_attached(&new));
    });
    neighbour.run(|| {
        answer(tcp_server(peer.ipv4, 80));
        answer(tcp_server(peer.ipv6.unwrap(), 80));
    });
    inside.run(|| {
        assert_eq!(ask(peer.ipv4, 80).unwrap(), new.ipv4.to_string());
        assert_eq!(ask(peer.ipv6.unwrap(), 80).unwrap(), new.ipv6.unwrap().to_string());
    });
    world.host.run(|| {
        // Again, as after the death of who did so.
        connect(&new, inside.fd()).unwrap();
        unlink(&new, inside.fd()).unwrap();
        unlink(&new, inside.fd()).unwrap();
        assert!(!is_attached(&new));
        // What the plan does not know.
        disconnect_others(&peer.id, &NetworkPlan::Networks(vec![])).unwrap();
        assert!(!is_attached(&peer));
        assert!(is_attached(&first), "another sandbox has nothing to do with it");
    });
    inside.run(|| assert_eq!(link_of("eth1"), None));
}

#[test]
fn a_machines_tap_joins_a_bridge_and_leaves_it() {
    let Some(world) = World::new() else { return };
    let a = second(2, vec![]);
    world.host.run(|| {
        ensure_bridge(&a.bridge).unwrap();
        assert!(matches!(join_tap(&a), Err(crate::NetError::NoSpare { .. })));
        let _tap = spare_tap(&a.id, 1).unwrap();
        assert!(!is_attached(&a) && !link_of(&a.host_ifname).unwrap().up);
        join_tap(&a).unwrap();
        join_tap(&a).unwrap();
        assert!(is_attached(&a) && link_of(&a.host_ifname).unwrap().up);
        leave_tap(&a).unwrap();
        leave_tap(&a).unwrap();
        assert!(!is_attached(&a) && !link_of(&a.host_ifname).unwrap().up);
        join_tap(&a).unwrap();
        disconnect_others(&a.id, &NetworkPlan::Networks(vec![])).unwrap();
        assert!(!is_attached(&a) && link_of(&a.host_ifname).is_some());
    });
}

#[test]
fn a_guest_tells_its_devices_apart_and_configures_them() {
    let Some(guest) = Namespace::new() else { return };
    let (mut first, mut other) = (attachment(2, vec![]), second(2, vec![]));
    guest.run(|| {
        let mut socket = link::open().unwrap();
        // The kernel's names are anything but ours.
        let devices = [("eth1", first.mac), ("eth0", other.mac), ("eth7", spare_mac(2)), ("lan", [2; 6])];
        let _taps = devices.map(|(name, mac)| {
            let tap = sys::tap::open(name).unwrap();
            let mut batch = Batch::new();
            link::set_mac(&mut batch, name, mac);
            link::run(&mut socket, batch, &[]).unwrap();
            tap
        });
        let plan = NetworkPlan::Networks(vec![first.clone(), other.clone()]);
        machine::name_devices(&plan).unwrap();
        let mac = |name: &str| link_of(name).and_then(|l| l.mac);
        assert_eq!([mac("eth0"), mac("eth1"), mac("eth2")], [first.mac, other.mac, spare_mac(2)].map(Some));
        assert_eq!(mac("lan"), Some([2; 6]));
        configure_inside(&plan).unwrap();
        // A spare one becomes a third, with the default route.
        first.default_route = false;
        other = Attachment { ifname: "eth2".into(), mac: [2, 0, 0, 0, 0, 7], ..other };
        machine::rest(&Attachment { ifname: "eth1".into(), ..other.clone() }).unwrap();
        machine::configure(&other).unwrap();
        machine::configure(&other).unwrap();
        assert_eq!(mac("eth2"), Some(other.mac));
        assert_eq!(addresses(&mut socket), [first.ipv4, other.ipv4]);
        machine::rest(&other).unwrap();
        machine::rest(&other).unwrap();
        assert_eq!(addresses(&mut socket), [first.ipv4]);
        assert!(!link_of("eth2").unwrap().up);
    });
}

/// The IPv4 addresses of this namespace, but for the loopback's.
fn addresses(socket: &mut Socket) -> Vec<Ipv4Addr> {
    let mut all: Vec<_> = link::prefixes(socket)
        .unwrap()
        .into_iter()
        .filter_map(|(a, ..)| match a {
            IpAddr::V4(a) if !a.is_loopback() && ![0, 255].contains(&a.octets()[3]) => Some(a),
            _ => None,
        })
        .collect();
    all.sort_by_key(|a| a.octets()[1] != 30);
    all.dedup();
    all
}

/// Takes a megabyte from whoever connects.
fn swallow(at: Ipv4Addr) {
    let listener = TcpListener::bind(SocketAddr::new(at.into(), 99)).unwrap();
    std::thread::spawn(move || {
        while let Ok((mut stream, _)) = listener.accept() {
            let mut all = Vec::new();
            let _ = stream.read_to_end(&mut all);
            let _ = stream.write_all(b"had it");
        }
    });
}

fn time_to_send(to: Ipv4Addr) -> Duration {
    let begin = Instant::now();
    let mut stream = TcpStream::connect(SocketAddr::new(to.into(), 99)).unwrap();
    stream.write_all(&vec![7; 1 << 20]).unwrap();
    stream.shutdown(std::net::Shutdown::Write).unwrap();
    let mut said = String::new();
    stream.read_to_string(&mut said).unwrap();
    assert_eq!(said, "had it");
    begin.elapsed()
}

#[test]
fn limits_hold_in_each_direction_and_leave_nothing() {
    let Some(world) = World::new() else { return };
    let slow = Bandwidth { ingress: Some(8_000_000), egress: Some(4_000_000) };
    let (free, mut limited) = (attachment(2, vec![]), attachment(3, vec![]));
    limited.bandwidth = slow;
    let (a, b) = (world.sandbox(&free), world.sandbox(&limited));
    a.run(|| swallow(free.ipv4));
    b.run(|| swallow(limited.ipv4));
    // A megabyte is 8.4 megabits, of which a burst passes at once.
    let received = a.run(|| time_to_send(limited.ipv4));
    let sent = b.run(|| time_to_send(free.ipv4));
    assert!(received > Duration::from_millis(800), "{received:?}");
    assert!(sent > Duration::from_millis(1600), "{sent:?}");
    drop(b);
    world.host.run(|| {
        let ifb = format!("vl{}", &limited.host_ifname[2..]);
        assert!(link_of(&ifb).is_some());
        sweep(&limited.bridge, || vec![limited.clone()]).unwrap();
        assert!(link_of(&ifb).is_some(), "it lives");
        sweep(&limited.bridge, Vec::new).unwrap();
        assert_eq!(link_of(&ifb), None);
    });
}

#[test]
fn a_taps_limits_go_when_it_leaves() {
    let Some(world) = World::new() else { return };
    let mut a = second(2, vec![]);
    a.bandwidth = Bandwidth { ingress: Some(1 << 40), egress: Some(1_000_000) };
    world.host.run(|| {
        ensure_bridge(&a.bridge).unwrap();
        let _tap = spare_tap(&a.id, 1).unwrap();
        join_tap(&a).unwrap();
        assert!(link_of(&format!("vl{}", &a.host_ifname[2..])).is_some());
        leave_tap(&a).unwrap();
        leave_tap(&a).unwrap();
        assert_eq!(link_of(&format!("vl{}", &a.host_ifname[2..])), None);
    });
}

#[test]
fn a_sandbox_is_a_machine_of_the_network_outside() {
    let Some(world) = World::new() else { return };
    let on = |parent: &str, n: u8| {
        let mut a = attachment(n, vec![]);
        a.uplink = Some(Uplink { parent: parent.into(), mode: MacvlanMode::Bridge });
        a.ipv4 = Ipv4Addr::new(203, 0, 113, n);
        a.ipv6 = Some(Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, n.into()));
        a.bridge = BridgePlan { gateway4: PEER4, prefix4: 24, gateway6: Some(PEER6), ..bridge() };
        a.mac = mac_from_ipv4(a.ipv4);
        a
    };
    let (one, two, lost) = (on("out0", 12), on("out0", 13), on("nowhere", 14));
    let inside = world.sandbox(&one);
    let neighbour = Namespace::new().unwrap();
    world.host.run(|| connect(&two, neighbour.fd()).unwrap());
    world.outside.run(|| answer(tcp_server(PEER4, 80)));
    neighbour.run(|| answer(tcp_server(two.ipv6.unwrap(), 80)));
    inside.run(|| {
        assert_eq!(ask(PEER4, 80).unwrap(), one.ipv4.to_string());
        assert_eq!(ask(two.ipv6.unwrap(), 80).unwrap(), one.ipv6.unwrap().to_string());
    });
    world.host.run(|| {
        let refused = connect(&lost, neighbour.fd()).unwrap_err().to_string();
        assert_eq!(refused, "the network's parent interface nowhere is not on this host");
        unlink(&one, inside.fd()).unwrap();
        unlink(&one, inside.fd()).unwrap();
    });
    inside.run(|| assert_eq!(link_of("eth0"), None));
}
