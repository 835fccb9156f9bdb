//! A network interface before a guest that writes what it likes.
#![no_main]

mod queues;

use libfuzzer_sys::fuzz_target;
use queues::{Driver, Input, crooked, offer, serve};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use vmm::config::RateLimit;
use vmm::devices::net::Net;
use vmm::devices::net_tap::Tap;
use vmm::virtio::Device;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let (tap, host) = UnixDatagram::pair().unwrap();
    host.set_nonblocking(true).unwrap();
    let tap = Tap::datagrams(OwnedFd::from(tap)).unwrap();
    let choice = input.byte();
    let operations = if choice & 1 == 0 { 0 } else { 1000 };
    let rate = RateLimit { bytes_per_second: 0, ops_per_second: operations };
    let mut device = Net::new(tap, [2, 0, 0, 0, 0, 1], &rate).unwrap();
    let mut driver = Driver::small(2);
    // With and without merging, offloads and what the queues can do.
    let mask = [0, 1 << 15, u64::MAX ^ 1 << 15, u64::MAX][usize::from(choice >> 1) % 4];
    device.activate(driver.activation(device.features() & mask)).unwrap();
    while !input.0.is_empty() {
        match input.byte() % 5 {
            0 | 1 => offer(&mut driver, 0, input.half(), &[], 12 + u32::from(input.half() % 0x1800), true),
            2 => {
                let header = input.take::<12>();
                offer(&mut driver, 1, input.half(), &header, u32::from(input.half() % 0x1800), false);
            }
            3 => drop(host.send(&vec![1; usize::from(input.half())])),
            _ => crooked(&mut driver, &mut input),
        }
        if !serve(&mut device) {
            return device.reset();
        }
        let mut packet = vec![0; 1 << 17];
        while let Ok(n) = host.recv(&mut packet) {
            assert!((12..=12 + 65535 + 18).contains(&n));
        }
    }
});
