//! Tests with real traffic: each makes a little world of its own network namespaces (a host, a peer outside,
//! sandboxes), so they run side by side and never touch this machine's network.

mod egress;
mod isolation;
mod live;
mod repair;
mod traffic;
mod walls;

use crate::{attach, configure_inside, ensure_bridge, host_ifname, ipv6_for, link, mac_from_ipv4};
use rustix::thread::{LinkNameSpaceType, UnshareFlags, move_into_link_name_space};
use std::fs::File;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::os::fd::{AsFd, OwnedFd};
use sys::netlink::Batch;
use types::{Attachment, BridgePlan, NetworkPlan, PortBinding, Protocol};

pub(super) const HOST4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 1);
pub(super) const PEER4: Ipv4Addr = Ipv4Addr::new(203, 0, 113, 2);
pub(super) const HOST6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 1);
pub(super) const PEER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 0, 0, 0, 0, 0, 2);

/// A network namespace, kept by its descriptor.
pub(super) struct Namespace(OwnedFd);

impl Namespace {
    /// A new one; `None`, with a word why, where this test may not make one.
    pub(super) fn new() -> Option<Self> {
        let made = std::thread::spawn(|| {
            #[allow(deprecated)] // Sound here: a new network namespace invalidates no descriptor.
            rustix::thread::unshare(UnshareFlags::NEWNET)?;
            File::open("/proc/thread-self/ns/net").map(OwnedFd::from)
        });
        match made.join().unwrap() {
            Ok(fd) => Some(Self(fd)),
            Err(e) => {
                eprintln!("skipped: cannot make a network namespace: {e}");
                None
            }
        }
    }

    /// Runs `f` inside, on a thread of its own.
    pub(super) fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> T {
        let inside = || {
            move_into_link_name_space(self.0.as_fd(), Some(LinkNameSpaceType::Network)).unwrap();
            f()
        };
        match std::thread::scope(|s| s.spawn(inside).join()) {
            Ok(done) => done,
            Err(panic) => std::panic::resume_unwind(panic),
        }
    }

    pub(super) fn fd(&self) -> std::os::fd::BorrowedFd<'_> {
        self.0.as_fd()
    }
}

pub(super) fn bridge() -> BridgePlan {
    BridgePlan {
        name: "dhow0".into(),
        gateway4: Ipv4Addr::new(172, 30, 0, 1),
        prefix4: 16,
        gateway6: Some("fd12:3456::1".parse().unwrap()),
        prefix6: 64,
        mtu: 1500,
        internal: false,
        host_access: false,
        no_metadata: false,
    }
}

/// Another network of the same host.
pub(super) fn other_bridge() -> BridgePlan {
    BridgePlan {
        name: "dh-0123456789ab".into(),
        gateway4: Ipv4Addr::new(172, 31, 0, 1),
        gateway6: Some("fd12:9999::1".parse().unwrap()),
        ..bridge()
    }
}

pub(super) fn attachment(n: u8, ports: Vec<PortBinding>) -> Attachment {
    attachment_on(bridge(), n, ports)
}

pub(super) fn attachment_on(bridge: BridgePlan, n: u8, ports: Vec<PortBinding>) -> Attachment {
    let [a, b, ..] = bridge.gateway4.octets();
    let ipv4 = Ipv4Addr::new(a, b, 0, n);
    let id = format!("{b:02x}{n:02x}").repeat(16);
    Attachment {
        host_ifname: host_ifname(&id, 0),
        ifname: "eth0".into(),
        mac: mac_from_ipv4(ipv4),
        ipv4,
        ipv6: bridge.gateway6.map(|g| ipv6_for(g, bridge.prefix6, ipv4)),
        bridge,
        id,
        network: "0".repeat(64),
        network_name: "test".into(),
        names: Vec::new(),
        default_route: true,
        egress: types::Egress::All,
        bandwidth: types::Bandwidth::default(),
        uplink: None,
        host_access: false,
        ports,
    }
}

pub(super) fn port(host_ip: &str, host_port: u16, container_port: u16, protocol: Protocol) -> PortBinding {
    PortBinding { host_ip: host_ip.parse().unwrap(), host_port, container_port, protocol }
}

/// A host with a bridge and a peer outside, which does not know the way to the sandboxes.
pub(super) struct World {
    pub(super) host: Namespace,
    pub(super) outside: Namespace,
}

impl World {
    pub(super) fn new() -> Option<Self> {
        let world = Self { host: Namespace::new()?, outside: Namespace::new()? };
        world.host.run(|| {
            let mut socket = link::open().unwrap();
            let mut batch = Batch::new();
            link::loopback_up(&mut batch);
            link::add_veth(&mut batch, "out0", world.outside.fd(), "in0", [2, 0, 0, 0, 0, 9], 1500);
            link::run(&mut socket, batch, &[]).unwrap();
        });
        world.host.run(|| configure("out0", HOST4, HOST6));
        world.outside.run(|| configure("in0", PEER4, PEER6));
        world.host.run(|| ensure_bridge(&bridge()).unwrap());
        Some(world)
    }

    /// A machine on the bridge, whose frames are the test's.
    pub(super) fn machine(&self, a: &Attachment) -> Machine {
        self.host.run(|| {
            ensure_bridge(&a.bridge).unwrap();
            Machine(crate::attach_tap(a).unwrap())
        })
    }

    /// A sandbox on the bridge, which is made if it is another than the world's own.
    pub(super) fn sandbox(&self, a: &Attachment) -> Namespace {
        let inside = Namespace::new().unwrap();
        self.host.run(|| {
            ensure_bridge(&a.bridge).unwrap();
            attach(a, inside.fd()).unwrap();
        });
        inside.run(|| configure_inside(&NetworkPlan::Networks(vec![a.clone()])).unwrap());
        inside
    }
}

/// A guest that sends what it likes.
pub(super) struct Machine(OwnedFd);

impl Machine {
    /// Length of the header before each frame (`struct virtio_net_hdr`).
    const HEADER: usize = 12;

    pub(super) fn send(&self, frame: &[u8]) {
        let mut whole = vec![0; Self::HEADER];
        whole.extend_from_slice(frame);
        rustix::io::write(&self.0, &whole).unwrap();
    }

    /// Every frame that comes until one holds `mark`, that one left out.
    pub(super) fn until(&self, mark: &[u8]) -> Vec<Vec<u8>> {
        let mut frames = Vec::new();
        loop {
            let mut fds = [rustix::event::PollFd::new(&self.0, rustix::event::PollFlags::IN)];
            let patience = rustix::event::Timespec { tv_sec: 20, tv_nsec: 0 };
            assert_ne!(rustix::event::poll(&mut fds, Some(&patience)).unwrap(), 0, "the mark never came");
            let mut buf = [0; 2048];
            let len = rustix::io::read(&self.0, &mut buf).unwrap();
            let frame = &buf[Self::HEADER..len];
            if frame.windows(mark.len()).any(|w| w == mark) {
                return frames;
            }
            frames.push(frame.to_vec());
        }
    }
}

fn configure(name: &str, ipv4: Ipv4Addr, ipv6: Ipv6Addr) {
    let mut socket = link::open().unwrap();
    let index = link::get(&mut socket, name).unwrap().unwrap().index;
    let mut batch = Batch::new();
    link::loopback_up(&mut batch);
    link::add_address(&mut batch, index, IpAddr::V4(ipv4), 24);
    link::add_address(&mut batch, index, IpAddr::V6(ipv6), 64);
    link::set_up(&mut batch, index);
    link::run(&mut socket, batch, &[]).unwrap();
}
