//! Rules from scratch, two stores beside each other, and what the dead leave in policies.

use super::egress::{confined, rule};
use super::isolation::{all_published, ask_briefly};
use super::traffic::{answer, ask, serve_all, tcp_server};
use super::walls::frames;
use super::*;
use crate::firewall::{self, Family};
use crate::{egress, leave, publish, remove_bridge, repair, sweep};
use std::time::Duration;

/// How many rules there are, and what the tables hold.
fn state() -> (Vec<usize>, Vec<String>) {
    let families = [Family::V4, Family::V6, Family::Inet, Family::Bridge];
    (families.map(firewall::rule_count).to_vec(), firewall::everything_held())
}

#[test]
fn everything_is_made_anew() {
    let Some(world) = World::new() else { return };
    let plans = [bridge(), BridgePlan { no_metadata: true, ..other_bridge() }];
    let peer = format!("{PEER4}/32");
    let a = confined(
        attachment(2, vec![port("0.0.0.0", 8080, 80, Protocol::Tcp), port("::", 8080, 80, Protocol::Udp)]),
        vec![rule(&peer, 80, None), rule("example.org", None, None)],
    );
    let b = Attachment { host_access: true, ..attachment_on(plans[1].clone(), 3, vec![]) };
    let (one, two) = (world.sandbox(&a), world.sandbox(&b));
    serve_all(&one, &a);
    world.outside.run(|| [80, 81].map(|port| answer(tcp_server(PEER4, port))));
    let live = || vec![a.clone(), b.clone()];
    let works = || {
        world.outside.run(|| assert!(ask(HOST4, 8080).is_ok()));
        one.run(|| assert!(ask(PEER4, 80).is_ok() && ask_briefly(PEER4, 81).is_err()));
        two.run(|| assert!(ask_briefly(a.ipv4, 80).is_err() && ask(HOST4, 99).is_ok()));
    };
    let _held = world.host.run(|| {
        answer(tcp_server(HOST4, 99));
        publish(&a).unwrap()
    });
    works();
    world.host.run(|| {
        let before = state();
        let resolved = rule("example.org", None, None);
        egress::permit(&a, &resolved, &[(IpAddr::from(PEER6), Duration::from_secs(3600))]).unwrap();
        let swept = repair(&plans, live).unwrap();
        assert_eq!(swept, crate::Swept::default());
        let with_name = state();
        assert_eq!((&with_name.0, with_name.1.len()), (&before.0, before.1.len() + 2));
        firewall::delete_tables();
        assert!(state().1.is_empty());
        repair(&plans, live).unwrap();
        assert_eq!(state(), before);
    });
    works();
    // What the dead left goes, and bridges that are gone come back.
    world.host.run(|| {
        crate::endpoint::remove_link(&mut link::open().unwrap(), &plans[1].name).unwrap();
        repair(&plans, || vec![a.clone()]).unwrap();
        assert!(link::get(&mut link::open().unwrap(), &plans[1].name).unwrap().is_some());
        assert!(!state().1.iter().any(|e| e.contains("open_from")));
    });
}

#[test]
fn stores_beside_each_other_leave_each_others_alone() {
    let Some(world) = World::new() else { return };
    let (mine, theirs) = (bridge(), other_bridge());
    let ports = |n| vec![port("0.0.0.0", n, 80, Protocol::Tcp)];
    let a = confined(attachment(2, ports(8080)), vec![rule("192.0.2.0/24", None, None)]);
    let named = rule("example.org", 443, None);
    let b = confined(
        attachment_on(theirs.clone(), 3, ports(8081)),
        vec![rule("10.0.0.0/8", 80, None), named.clone()],
    );
    let (_one, _two) = (world.sandbox(&a), world.sandbox(&b));
    world.host.run(|| {
        let _held = [&a, &b].map(|a| publish(a).unwrap());
        egress::permit(&b, &named, &[(IpAddr::from(PEER4), Duration::from_secs(3600))]).unwrap();
        let before = state();
        for _ in 0..2 {
            repair(std::slice::from_ref(&mine), || vec![a.clone()]).unwrap();
            assert_eq!(state(), before);
            assert_eq!(sweep(&mine, || vec![a.clone()]).unwrap(), crate::Swept::default());
        }
        // The one store ends.
        let swept = sweep(&mine, Vec::new).unwrap();
        assert_eq!((swept.links, swept.ports), (1, 1));
        assert!(swept.policies > 5);
        remove_bridge(&mine).unwrap();
        assert_eq!(all_published().len(), 1);
        repair(&[], Vec::new).unwrap();
        let left = state();
        repair(std::slice::from_ref(&theirs), || vec![b.clone()]).unwrap();
        assert_eq!(state(), left);
        leave(std::slice::from_ref(&b)).unwrap();
        remove_bridge(&theirs).unwrap();
        // Nothing but the port that its supervisor has not given back.
        assert_eq!(state().1.iter().filter(|e| !e.contains("published")).count(), 0, "{:?}", state().1);
    });
}

#[test]
fn repair_and_starts_at_once() {
    let Some(world) = World::new() else { return };
    let all: Vec<_> =
        (2..12).map(|n| confined(attachment(n, vec![]), vec![rule("10.0.0.0/8", None, None)])).collect();
    std::thread::scope(|s| {
        for a in &all {
            let world = &world;
            s.spawn(move || world.host.run(|| drop(crate::attach_tap(a).unwrap())));
        }
        let repairs = || world.host.run(|| repair(&[bridge()], || all.clone()).unwrap());
        s.spawn(repairs);
        s.spawn(repairs);
    });
    world.host.run(|| {
        let before = state();
        repair(&[bridge()], || all.clone()).unwrap();
        assert_eq!(state(), before);
        leave(&all).unwrap();
        assert!(!state().1.iter().any(|e| e.contains("own4") || e.contains("permitted")));
    });
}

#[test]
fn a_port_that_nobody_guards_is_guarded_again() {
    let Some(world) = World::new() else { return };
    let (a, b) = (attachment(2, vec![]), attachment(3, vec![]));
    let (mallory, victim) = (world.machine(&a), world.machine(&b));
    world.host.run(|| {
        firewall::delete_tables();
        repair(&[bridge()], || vec![a.clone(), b.clone()]).unwrap();
    });
    let bad = frames::arp(a.mac, a.mac, b.bridge.gateway4);
    mallory.send(&bad);
    mallory.send(&frames::arp(a.mac, a.mac, a.ipv4));
    assert!(!victim.until(&frames::arp(a.mac, a.mac, a.ipv4)[14..]).contains(&bad));
}

#[test]
fn what_is_flushed_is_put_back_at_once() {
    let Some(world) = World::new() else { return };
    world.outside.run(|| [80, 81].map(|port| answer(tcp_server(PEER4, port))));
    let named = rule("example.org", None, None);
    let rules = vec![rule(&format!("{PEER4}/32"), 80, None), named.clone()];
    let a = confined(attachment(2, vec![port("0.0.0.0", 8080, 80, Protocol::Tcp)]), rules);
    let b = Attachment { network_name: "bridge".into(), host_access: true, ..attachment(3, vec![]) };
    let inside = world.sandbox(&a);
    serve_all(&inside, &a);
    // Who is told first leaves all for the next.
    let watches = || [crate::Watch::new().unwrap(), crate::Watch::new().unwrap()];
    let ([first, watch], mut published) = world.host.run(|| (watches(), publish(&a).unwrap()));
    let free = world.sandbox(&b);
    let sandboxes = [a.clone(), b.clone()];
    let lock = || Ok(());
    let walls = || {
        world.outside.run(|| assert!(ask(HOST4, 8080).is_ok()));
        inside.run(|| assert!(ask(PEER4, 80).is_ok() && ask_briefly(PEER4, 81).is_err()));
        free.run(|| assert!(ask(PEER4, 81).is_ok()));
    };
    walls();
    world.host.run(|| {
        // Who comes and goes wakes nobody.
        egress::permit(&a, &named, &[(IpAddr::from(PEER6), Duration::from_secs(3600))]).unwrap();
        assert!(!watch.stirred());
        assert!(!crate::restore(&sandboxes, Some(&mut published), lock).unwrap());
    });
    let before = world.host.run(state);
    for _ in 0..2 {
        world.host.run(|| {
            firewall::delete_tables();
            assert!(watch.stirred() && !watch.stirred());
            assert!(crate::restore(&sandboxes, Some(&mut published), lock).unwrap());
            // But for what a name led to, which its supervisor knows.
            egress::permit(&a, &named, &[(IpAddr::from(PEER6), Duration::from_secs(3600))]).unwrap();
            assert_eq!(state(), before);
            watch.stirred();
            assert!(!crate::restore(&sandboxes, Some(&mut published), lock).unwrap());
            assert!(!watch.stirred());
        });
        walls();
    }
    // Elements alone, of each kind that is somebody's own; but not those of other tables.
    if std::process::Command::new("nft").arg("-v").output().is_err() {
        eprintln!("SKIPPED: nft is not installed (package nftables)");
        return;
    }
    let nft = |text: &str| {
        let done = std::process::Command::new("nft").arg(text).output().unwrap();
        assert!(done.status.success(), "nft {text}: {}", String::from_utf8_lossy(&done.stderr));
    };
    world.host.run(|| {
        nft("add table inet other; add set inet other s { type inet_service; elements = { 1, 2 }; }; flush set inet other s");
        assert!(!watch.stirred());
        for set in ["inet dhow confined4", "inet dhow permitted4", "bridge dhow own4", "bridge dhow confined"] {
            nft(&format!("flush set {set}"));
            assert!(watch.stirred() && first.stirred(), "{set}");
            assert!(crate::restore(&sandboxes, Some(&mut published), lock).unwrap(), "{set}");
            egress::permit(&a, &named, &[(IpAddr::from(PEER6), Duration::from_secs(3600))]).unwrap();
            assert_eq!(state(), before, "{set}");
            assert!(!watch.stirred(), "{set}");
        }
        // Of where names lead its supervisor is told, and knows.
        nft("flush set inet dhow resolved6");
        assert!(watch.stirred());
    });
    walls();
}
