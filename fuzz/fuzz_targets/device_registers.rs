//! Devices behind their registers, before a guest that writes to these and to their queues as it likes: sizes and
//! addresses of queues that are none, notifications too early, resets in the middle, queues that move.
#![no_main]

mod queues;

use libfuzzer_sys::fuzz_target;
use queues::{Driver, Input, crooked, offer};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixDatagram;
use vmm::config::RateLimit;
use vmm::devices::balloon::Balloon;
use vmm::devices::net::Net;
use vmm::devices::net_tap::Tap;
use vmm::devices::rng::Rng;
use vmm::mmio::Transport;
use vmm::registers::Registers;
use vmm::virtio::{Command, Device};

/// What a driver writes, and some beyond.
const REGISTERS: [u64; 20] = [
    0x00, 0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0x80, 0x84, 0x90, 0x94, 0xa0, 0xa4, 0xfc,
    0x100, 0x104, 0x200,
];

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let (tap, _host) = UnixDatagram::pair().unwrap();
    let (device, queues): (Box<dyn Device>, usize) = match input.byte() % 3 {
        0 => (Box::new(Rng::default()), 1),
        1 => (Box::new(Balloon::new()), 3),
        _ => {
            let tap = Tap::datagrams(OwnedFd::from(tap)).unwrap();
            (Box::new(Net::new(tap, [2, 0, 0, 0, 0, 1], &RateLimit::default()).unwrap()), 2)
        }
    };
    let mut driver = Driver::small(queues);
    let mut transport = Transport::new(device, driver.memory.clone(), &Registers::pages(1)[0]).unwrap();
    while !input.0.is_empty() {
        match input.byte() % 8 {
            0 => driver.start(&mut transport, if input.byte() % 2 == 0 { 0 } else { u64::MAX }),
            1 => {
                let queue = usize::from(input.byte()) % queues;
                let length = u32::from(input.half() % 0x1800);
                let content = input.take::<16>();
                offer(&mut driver, queue, input.half(), &content, length, input.byte() % 2 == 0);
            }
            2 | 3 => crooked(&mut driver, &mut input),
            4 => {
                let offset = match input.byte() {
                    0xff => u64::from_le_bytes(input.take()),
                    n => REGISTERS[usize::from(n) % REGISTERS.len()],
                };
                let value = match input.byte() % 4 {
                    0 => u32::from_le_bytes(input.take()),
                    1 => u32::from(input.byte() % 32),
                    _ => u32::from(input.half()),
                };
                let width = if input.byte() == 0xff { usize::from(input.byte() % 9) } else { 4 };
                let bytes = [value.to_le_bytes(), value.to_le_bytes(), [0; 4]].concat();
                if let Some(deferred) = transport.write(offset, &bytes[..width]) {
                    transport.carry_out(deferred);
                }
                let mut read = vec![0; width];
                transport.page().read(offset, &mut read);
            }
            5 => drop(transport.command(Command::Balloon(u64::from(input.half())))),
            _ => {
                for interest in transport.interests() {
                    transport.ready(interest.token, 1);
                }
            }
        }
        let mut status = [0; 4];
        transport.page().read(0x70, &mut status);
        // Nothing is waited for that is not running.
        assert!(status[0] & 0x44 == 4 || transport.interests().is_empty());
    }
});
