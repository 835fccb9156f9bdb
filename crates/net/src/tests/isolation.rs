//! What must not get through, and what must not be left behind.

use super::traffic::{answer, ask, ask_udp, tcp_server};
use super::*;
use crate::firewall::{self, Family};
use crate::{NetError, detach, publish, remove_bridge, sweep, sweep_forsaken};
use std::net::{TcpListener, UdpSocket};
use types::{ErrorKind, Kinded};

#[test]
fn a_port_in_use_is_named_with_its_holder() {
    let Some(world) = World::new() else { return };
    world.host.run(|| {
        let _held = TcpListener::bind("0.0.0.0:8080").unwrap();
        let a = attachment(2, vec![port("0.0.0.0", 8080, 80, Protocol::Tcp)]);
        let refused = publish(&a).unwrap_err();
        assert_eq!(refused.kind(), ErrorKind::Conflict);
        let said = refused.to_string();
        assert!(said.starts_with("Bind for 0.0.0.0:8080 failed: port is already allocated (by "), "{said}");
        assert!(said.ends_with(&format!("pid {})", std::process::id())), "{said}");
        let away = attachment(2, vec![port("192.0.2.77", 8081, 80, Protocol::Tcp)]);
        assert!(matches!(publish(&away), Err(NetError::Bind { .. })));
    });
}

#[test]
fn free_ports_are_chosen_alike_for_both_families() {
    let Some(world) = World::new() else { return };
    world.host.run(|| {
        let wanted = ["0.0.0.0", "::"].map(|ip| port(ip, 0, 80, Protocol::Tcp));
        let a = attachment(2, wanted.to_vec());
        let mut published = publish(&a).unwrap();
        let [one, two] = published.bindings() else { panic!("{:?}", published.bindings()) };
        assert!(one.host_port != 0 && one.host_port == two.host_port);
        // Elements are found again by the decided numbers.
        let decided = Attachment { ports: published.bindings().to_vec(), ..a.clone() };
        detach(&decided).unwrap();
        detach(&decided).unwrap();
        assert!(all_published().is_empty());
        published.withdraw().unwrap();
        drop(published);
        // Whoever decided them may have died before it told anybody.
        drop(publish(&a).unwrap());
        assert!(!all_published().is_empty());
        detach(&a).unwrap();
        assert!(all_published().is_empty());
        let again = [port("0.0.0.0", 8080, 80, Protocol::Tcp)];
        let mut published = publish(&Attachment { ports: again.to_vec(), ..decided }).unwrap();
        published.withdraw().unwrap();
        assert!(all_published().is_empty());
    });
}

pub(super) fn all_published() -> Vec<firewall::Published> {
    crate::sweep::all_published(&mut firewall::open().unwrap()).unwrap()
}

#[test]
fn unpublished_ports_are_closed_to_the_outside() {
    let Some(world) = World::new() else { return };
    let a = attachment(2, vec![port("127.0.0.1", 8080, 80, Protocol::Tcp)]);
    let inside = world.sandbox(&a);
    inside.run(|| answer(tcp_server(a.ipv4, 80)));
    let _published = world.host.run(|| publish(&a).unwrap());
    world.host.run(|| assert!(ask(Ipv4Addr::LOCALHOST, 8080).is_ok()));
    // A neighbour of the host that routes to the sandbox through it, or says it is 127.0.0.1 (CVE-2020-8558).
    world.outside.run(|| {
        let mut socket = link::open().unwrap();
        let index = link::get(&mut socket, "in0").unwrap().unwrap().index;
        let mut batch = Batch::new();
        link::add_default_route(&mut batch, index, HOST4.into());
        link::run(&mut socket, batch, &[]).unwrap();
        assert!(ask_briefly(a.ipv4, 80).is_err());
        assert!(ask_briefly(HOST4, 8080).is_err());
    });
}

pub(super) fn ask_briefly(to: impl Into<IpAddr>, port: u16) -> std::io::Result<()> {
    let to = std::net::SocketAddr::new(to.into(), port);
    std::net::TcpStream::connect_timeout(&to, std::time::Duration::from_millis(300)).map(drop)
}

#[test]
fn the_hosts_loopback_is_closed_to_sandboxes() {
    let Some(world) = World::new() else { return };
    let inside = world.sandbox(&attachment(2, vec![]));
    // Something on the host that trusts 127.0.0.1.
    let trusting = world.host.run(|| UdpSocket::bind("127.0.0.1:9").unwrap());
    trusting.set_read_timeout(Some(std::time::Duration::from_millis(300))).unwrap();
    inside.run(|| {
        // Send what is addressed to 127/8 to the bridge instead of to our own loopback.
        std::fs::write("/proc/sys/net/ipv4/conf/eth0/route_localnet", "1").unwrap();
        let mut socket = link::open().unwrap();
        let index = link::get(&mut socket, "eth0").unwrap().unwrap().index;
        let mut batch = Batch::new();
        link::remove_loopback_address(&mut batch);
        link::add_default_route(&mut batch, index, bridge().gateway4.into());
        link::run(&mut socket, batch, &[]).unwrap();
        assert!(ask_udp_once(Ipv4Addr::LOCALHOST, 9));
    });
    let mut buf = [0; 8];
    assert!(trusting.recv(&mut buf).is_err(), "a datagram to 127.0.0.1 came in from a sandbox");
    let counted = world.host.run(|| ask_udp_once(Ipv4Addr::LOCALHOST, 9));
    assert!(counted && trusting.recv(&mut buf).is_ok(), "the host itself is not kept out");
}

fn ask_udp_once(to: Ipv4Addr, port: u16) -> bool {
    let socket = UdpSocket::bind("0.0.0.0:0").unwrap();
    socket.send_to(b"x", (to, port)).is_ok()
}

#[test]
fn a_sweep_removes_the_dead_and_only_them() {
    let Some(world) = World::new() else { return };
    let dead =
        attachment(2, vec![port("0.0.0.0", 8080, 80, Protocol::Tcp), port("::", 53, 53, Protocol::Udp)]);
    let alive = attachment(3, vec![port("203.0.113.1", 8080, 80, Protocol::Udp)]);
    let (_one, _two) = (world.sandbox(&dead), world.sandbox(&alive));
    world.host.run(|| {
        drop(publish(&dead).unwrap());
        let _held = publish(&alive).unwrap();
        assert_eq!(all_published().len(), 3);
        let swept = sweep(&alive.bridge, || vec![alive.clone()]).unwrap();
        assert_eq!((swept.links, swept.ports), (1, 2));
        assert_eq!(all_published().len(), 1);
        let mut socket = link::open().unwrap();
        assert!(link::get(&mut socket, &alive.host_ifname).unwrap().is_some());
        assert!(link::get(&mut socket, &dead.host_ifname).unwrap().is_none());
        assert_eq!(sweep(&alive.bridge, || vec![alive.clone()]).unwrap(), crate::Swept::default());
        // Where it cannot be told who lives, nobody is dead.
        assert!(matches!(sweep(&alive.bridge, || None), Err(NetError::Unknown)));
        assert!(matches!(
            crate::repair(std::slice::from_ref(&alive.bridge), || None),
            Err(NetError::Unknown)
        ));
        assert_eq!(all_published().len(), 1);
        assert_eq!(sweep(&alive.bridge, Vec::new).unwrap().links, 1);
        remove_bridge(&alive.bridge).unwrap();
        remove_bridge(&alive.bridge).unwrap();
        assert!(all_published().is_empty() && link::get(&mut socket, "dhow0").unwrap().is_none());
        assert!(sweep(&alive.bridge, Vec::new).is_ok());
    });
}

#[test]
fn what_leads_to_nobody_is_swept_by_whoever_comes() {
    let Some(world) = World::new() else { return };
    let dead =
        attachment(2, vec![port("127.0.0.1", 8080, 80, Protocol::Tcp), port("::", 53, 53, Protocol::Udp)]);
    let alive =
        attachment(3, vec![port("127.0.0.1", 8081, 80, Protocol::Tcp), port("::", 54, 53, Protocol::Udp)]);
    world.host.run(|| {
        crate::ensure_bridge(&dead.bridge).unwrap();
        std::mem::forget(publish(&dead).unwrap());
        assert_eq!(all_published().len(), 2);
        // The kernel gave its port to another process, to whom it belongs from now on.
        assert_eq!(sweep_forsaken().unwrap(), 2);
        assert!(all_published().is_empty());
        assert_eq!(sweep_forsaken().unwrap(), 0);
    });
    let _one = world.sandbox(&alive);
    world.host.run(|| {
        let _held = publish(&alive).unwrap();
        assert_eq!((sweep_forsaken().unwrap(), all_published().len()), (0, 2));
        let mut socket = link::open().unwrap();
        let mut batch = sys::netlink::Batch::new();
        link::delete(&mut batch, &alive.bridge.name);
        link::run(&mut socket, batch, &[]).unwrap();
        assert_eq!(sweep_forsaken().unwrap(), 2, "the bridge is gone");
    });
}

#[test]
fn a_bridge_leaves_the_firewall_whatever_of_it_is_gone() {
    let Some(host) = Namespace::new() else { return };
    host.run(|| {
        let (one, other) = (bridge(), types::BridgePlan { name: "dhow1".into(), ..bridge() });
        ensure_bridge(&one).unwrap();
        // Both have one subnet, as two stores may have after a reboot: the second is told.
        let taken = ensure_bridge(&other).unwrap_err();
        assert_eq!(taken.kind(), ErrorKind::Conflict);
        let said = taken.to_string();
        assert!(
            said.contains("172.30.0.1/16") && said.contains("dhow1") && said.contains("on dhow0"),
            "{said}"
        );
        // A wider route is none of its business, and a bridge that is there is found.
        ensure_bridge(&types::BridgePlan { prefix4: 24, prefix6: 80, gateway6: None, ..other_bridge() })
            .unwrap();
        ensure_bridge(&one).unwrap();
        // The second to go finds its part taken away.
        for plan in [&one, &other] {
            remove_bridge(plan).unwrap();
            assert!(
                !firewall::installed(&mut firewall::open().unwrap(), plan),
                "{} is still there",
                plan.name
            );
        }
    });
}

#[test]
fn what_the_dead_published_is_no_obstacle() {
    let Some(world) = World::new() else { return };
    let dead = attachment(2, vec![port("0.0.0.0", 8080, 80, Protocol::Tcp)]);
    let heir = attachment(3, vec![port("0.0.0.0", 8080, 80, Protocol::Tcp)]);
    let inside = world.sandbox(&heir);
    inside.run(|| answer(tcp_server(heir.ipv4, 80)));
    world.host.run(|| drop(publish(&dead).unwrap()));
    let _held = world.host.run(|| publish(&heir).unwrap());
    // The late end of the dead takes nothing from its heir.
    world.host.run(|| detach(&dead).unwrap());
    world.outside.run(|| assert_eq!(ask(HOST4, 8080).unwrap(), PEER4.to_string()));
}

#[test]
fn a_flushed_ruleset_is_loaded_again() {
    let Some(world) = World::new() else { return };
    let a = attachment(2, vec![port("0.0.0.0", 8080, 80, Protocol::Tcp)]);
    let inside = world.sandbox(&a);
    inside.run(|| answer(tcp_server(a.ipv4, 80)));
    world.host.run(|| {
        firewall::delete_tables();
        let _held = publish(&a).unwrap();
        world.outside.run(|| assert_eq!(ask(HOST4, 8080).unwrap(), PEER4.to_string()));
        firewall::delete_tables();
        ensure_bridge(&bridge()).unwrap();
    });
    world.outside.run(|| answer(tcp_server(PEER4, 80)));
    inside.run(|| assert_eq!(ask(PEER4, 80).unwrap(), HOST4.to_string()));
}

#[test]
fn a_hundred_start_at_once() {
    let Some(host) = Namespace::new() else { return };
    let all: Vec<_> = (2..102).map(|n| attachment(n, vec![])).collect();
    let inside: Vec<_> = std::thread::scope(|s| {
        let started: Vec<_> = all
            .iter()
            .map(|a| {
                let host = &host;
                s.spawn(move || {
                    let inside = Namespace::new().unwrap();
                    host.run(|| {
                        ensure_bridge(&a.bridge).unwrap();
                        attach(a, inside.fd()).unwrap();
                    });
                    inside.run(|| configure_inside(&NetworkPlan::Networks(vec![a.clone()])).unwrap());
                    inside
                })
            })
            .collect();
        started.into_iter().map(|t| t.join().unwrap()).collect()
    });
    let (first, last) = (&all[0], &all[99]);
    inside[99].run(|| answer(tcp_server(last.ipv4, 80)));
    inside[0].run(|| assert_eq!(ask(last.ipv4, 80).unwrap(), first.ipv4.to_string()));
    host.run(|| {
        for family in [Family::V4, Family::V6] {
            assert_eq!(firewall::rule_count(family), firewall::count_rules(family));
        }
        assert_eq!(sweep(&bridge(), || all.clone()).unwrap().links, 0);
    });
}

#[test]
fn a_restart_takes_the_place_of_the_last_run() {
    let Some(world) = World::new() else { return };
    let a = attachment(2, vec![]);
    let _dying = world.sandbox(&a);
    let inside = world.sandbox(&a);
    world.outside.run(|| super::traffic::answer_udp(PEER4, 53));
    inside.run(|| assert!(ask_udp(PEER4, 53).is_ok()));
}
