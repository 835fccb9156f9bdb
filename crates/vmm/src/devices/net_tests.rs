use super::*;
use crate::devices::testing::{BUFFERS, Driver, INDIRECT, NEXT, WRITE, pump, tap};
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::os::fd::OwnedFd;
use std::sync::atomic::Ordering;
use std::time::{Duration, Instant};

const MAC: [u8; 6] = [2, 1, 2, 3, 4, 5];
const RX_QUEUE: usize = 0;
const TX_QUEUE: usize = 1;

/// A device whose tap is one end of a pair of sockets, and a driver.
struct Rig {
    device: Net,
    driver: Driver,
    peer: OwnedFd,
}

fn device(rate: &RateLimit) -> (Net, OwnedFd) {
    let (tap, peer) =
        socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap();
    (Net::new(Tap::datagrams(tap).unwrap(), MAC, rate).unwrap(), peer)
}

impl Rig {
    fn new(features: u64, rate: &RateLimit) -> Self {
        let (mut device, peer) = device(rate);
        let driver = Driver::new(2);
        device.activate(driver.activation(features)).unwrap();
        Self { device, driver, peer }
    }

    /// Buffers of `size` bytes for packets to the guest, whose heads begin at `from`.
    fn buffers(&mut self, from: u16, count: u16, size: u32) {
        for head in from..from + count {
            self.driver.chain(RX_QUEUE, head, &[(buffer(head), size, WRITE)]);
        }
        self.device.ready(RX, IN).unwrap();
    }

    fn host_sends(&self, packet: &[u8]) {
        rustix::net::send(&self.peer, packet, rustix::net::SendFlags::empty()).unwrap();
    }

    fn host_gets(&self) -> Option<Vec<u8>> {
        let mut packet = vec![0; 1 << 17];
        let (n, _) = rustix::net::recv(&self.peer, &mut packet, rustix::net::RecvFlags::empty()).ok()?;
        packet.truncate(n);
        Some(packet)
    }

    fn send(&mut self, head: u16, packet: &[u8]) {
        self.driver.write(buffer(head), packet);
        self.driver.chain(TX_QUEUE, head, &[(buffer(head), packet.len() as u32, 0)]);
        self.device.ready(TX, IN).unwrap();
    }

    /// The packet that used buffers make up, and how many they were.
    fn received(&mut self) -> (Vec<u8>, usize) {
        pump(&mut self.device, 5).unwrap();
        let used = self.driver.used(RX_QUEUE);
        (used.iter().flat_map(|(head, n)| self.driver.read(buffer(*head), *n)).collect(), used.len())
    }
}

fn buffer(head: u16) -> u64 {
    BUFFERS + 0x1_2000 * u64::from(head % 64)
}

fn packet(length: usize) -> Vec<u8> {
    let mut packet = vec![0; HEADER];
    packet.extend((0..length - HEADER).map(|i| (i % 251) as u8));
    packet
}

/// As the guest sees it.
fn with_buffers(mut packet: Vec<u8>, count: u16) -> Vec<u8> {
    packet[10..12].copy_from_slice(&count.to_le_bytes());
    packet
}

#[test]
fn packets_pass_in_both_directions() {
    for features in [0, RING_FEATURES, RING_FEATURES | feature::MRG_RXBUF] {
        let mut rig = Rig::new(features, &RateLimit::default());
        rig.send(0, &packet(100));
        assert_eq!(rig.host_gets().unwrap(), packet(100));
        assert_eq!(rig.driver.used(TX_QUEUE), [(0, 0)]);
        rig.host_sends(&packet(1500));
        rig.buffers(0, 4, 2048);
        assert_eq!(rig.received(), (with_buffers(packet(1500), 1), 1));
        assert_eq!(rig.driver.fired.queues[RX_QUEUE].load(Ordering::Relaxed), 1);
        rig.host_sends(&packet(60));
        assert_eq!(rig.received(), (with_buffers(packet(60), 1), 1));
    }
}

#[test]
fn a_packet_takes_as_many_buffers_as_it_needs_and_waits_for_them() {
    let merge = feature::MRG_RXBUF | feature::GUEST_CSUM | feature::GUEST_TSO4 | RING_FEATURES;
    let mut rig = Rig::new(merge, &RateLimit::default());
    rig.buffers(0, 50, 1536);
    rig.host_sends(&packet(60_000));
    assert_eq!(rig.received(), (with_buffers(packet(60_000), 40), 40));
    assert!(rig.driver.fired.queues[RX_QUEUE].load(Ordering::Relaxed) >= 1);
    // Ten are left, which is not enough.
    rig.host_sends(&packet(30_000));
    rig.host_sends(&packet(99));
    assert_eq!(rig.received(), (vec![], 0));
    assert!(rig.device.interests().iter().all(|i| i.token != TAP));
    rig.buffers(50, 5, 1536);
    assert_eq!(rig.received().1, 0);
    rig.buffers(55, 8, 1536);
    let (both, count) = rig.received();
    let mut expected = with_buffers(packet(30_000), 20);
    expected.extend(with_buffers(packet(99), 1));
    assert_eq!((both, count), (expected, 21));
}

#[test]
fn without_merging_a_packet_that_does_not_fit_is_lost() {
    let mut rig = Rig::new(0, &RateLimit::default());
    rig.buffers(0, 2, 512);
    rig.host_sends(&packet(1500));
    rig.host_sends(&packet(400));
    assert_eq!(rig.received(), (with_buffers(packet(400), 1), 1));
}

#[test]
fn packets_that_are_none_are_dropped() {
    let mut rig = Rig::new(0, &RateLimit::default());
    rig.send(0, &[0; HEADER - 1]);
    rig.driver.chain(TX_QUEUE, 1, &[(BUFFERS, 4 << 20, 0)]);
    rig.send(2, &packet(80));
    assert_eq!(rig.driver.used(TX_QUEUE).len(), 3);
    assert_eq!(rig.host_gets().unwrap(), packet(80));
    rig.host_sends(&[0; 5]);
    rig.buffers(0, 1, 512);
    assert_eq!(rig.received().1, 0);
}

#[test]
fn limits_hold_in_both_directions() {
    let rate = RateLimit { bytes_per_second: 0, ops_per_second: 100 };
    let mut rig = Rig::new(0, &rate);
    let start = Instant::now();
    for head in 0..30 {
        rig.send(head, &packet(64));
        rig.host_sends(&packet(64));
    }
    rig.buffers(0, 30, 512);
    let (mut sent, mut received) = (0, 0);
    while sent < 30 || received < 30 {
        assert!(start.elapsed() < Duration::from_secs(10), "{sent} {received}");
        received += rig.received().1;
        while rig.host_gets().is_some() {
            sent += 1;
        }
    }
    // Ten at once, and the rest by the hundredth of a second.
    assert!(start.elapsed() > Duration::from_millis(180), "{:?}", start.elapsed());
    rig.device.limit(&RateLimit::default()).unwrap();
    rig.send(31, &packet(64));
    assert!(rig.host_gets().is_some());
}

#[test]
fn broken_queues_cost_the_device() {
    let serve = |driver: Driver| {
        let (mut device, peer) = device(&RateLimit::default());
        rustix::net::send(&peer, &packet(100), rustix::net::SendFlags::empty()).unwrap();
        device.activate(driver.activation(RING_FEATURES | feature::MRG_RXBUF))?;
        pump(&mut device, 5)
    };
    Driver::hostile(2, RX_QUEUE, true, serve);
    Driver::hostile(2, TX_QUEUE, false, serve);
    for chain in [[(BUFFERS, 11, WRITE)], [(BUFFERS, 100, 0)]] {
        let mut driver = Driver::new(2);
        driver.chain(RX_QUEUE, 0, &chain);
        assert!(matches!(serve(driver), Err(DeviceError::Driver(_))));
    }
}

#[test]
fn buffers_in_crumbs_cost_the_device_instead_of_all_its_time() {
    let features = feature::MRG_RXBUF | feature::GUEST_CSUM | feature::GUEST_TSO4 | RING_FEATURES;
    let mut rig = Rig::new(features, &RateLimit::default());
    for head in 0..256 {
        rig.driver.descriptor_at(BUFFERS + 16 * head, 2 * BUFFERS + head, 1, WRITE | NEXT, head as u16 + 1);
    }
    rig.driver.descriptor_at(BUFFERS + 16 * 255, 2 * BUFFERS, 1, WRITE, 0);
    for head in 0..8 {
        rig.driver.chain(RX_QUEUE, head, &[(BUFFERS, 256 * 16, INDIRECT)]);
    }
    // After one that took several chains it looks at as many as a packet may take.
    rig.host_sends(&packet(600));
    rig.host_sends(&packet(60));
    assert!(matches!(rig.device.ready(RX, IN), Err(DeviceError::Driver(_))));
}

#[test]
fn the_configuration_tells_the_address_and_that_the_link_is_up() {
    let (device, _peer) = device(&RateLimit::default());
    let mut space = [0xff; 10];
    device.read_config(0, &mut space);
    assert_eq!(space, [2, 1, 2, 3, 4, 5, 1, 0, 0, 0]);
}

/// A tap of the kernel, in a network of its own.
#[test]
fn a_tap_takes_packets_and_offloads() {
    let counted = std::thread::spawn(|| -> Result<String, String> {
        let tap = Tap::new(tap()?).unwrap();
        let mut device = Net::new(tap, MAC, &RateLimit::default()).unwrap();
        let mut driver = Driver::new(2);
        device.activate(driver.activation(device.features())).unwrap();
        let mut frame = packet(HEADER + 60);
        frame[HEADER..HEADER + 12].fill(0xff);
        driver.write(BUFFERS, &frame);
        driver.chain(TX_QUEUE, 0, &[(BUFFERS, frame.len() as u32, 0)]);
        // What the host sends by itself, to find neighbours, comes to the guest.
        for head in 0..60 {
            driver.chain(RX_QUEUE, head, &[(buffer(head + 1), 4096, WRITE)]);
        }
        device.ready(TX, IN).unwrap();
        Ok(std::fs::read_to_string("/proc/thread-self/net/dev").unwrap())
    });
    match counted.join().unwrap() {
        Err(why) => println!("SKIPPED: {why}"),
        Ok(counters) => {
            let line = counters.lines().find(|l| l.trim().starts_with("tap0:")).unwrap();
            let packets: Vec<&str> = line.split_whitespace().collect();
            assert_eq!((packets[1], packets[2]), ("60", "1"), "{counters}");
        }
    }
}
