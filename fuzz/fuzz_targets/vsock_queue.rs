//! The virtual socket before a guest that writes what it likes, and hosts that come and go.
#![no_main]

mod queues;

use libfuzzer_sys::fuzz_target;
use queues::{Driver, Input, crooked, offer, serve};
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use vmm::devices::vsock::Vsock;
use vmm::virtio::Device;

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    let dir = tempfile::tempdir().unwrap();
    let listener = UnixListener::bind(dir.path().join("v")).unwrap();
    let host = UnixListener::bind(dir.path().join("v_80")).unwrap();
    host.set_nonblocking(true).unwrap();
    let mut device = Vsock::new(3, listener, dir.path().join("v")).unwrap();
    let mut driver = Driver::small(3);
    let features = if input.byte() % 2 == 0 { 0 } else { device.features() };
    device.activate(driver.activation(features)).unwrap();
    let mut streams: Vec<UnixStream> = Vec::new();
    while !input.0.is_empty() {
        match input.byte() % 8 {
            0 => offer(&mut driver, 0, input.half(), &[], 44 + u32::from(input.half() % 0x1800), true),
            1 | 2 => {
                // A packet whose addresses are right as a rule.
                let mut packet = [0; 44 + 64];
                packet[0] = 3;
                packet[8] = 2;
                packet[16] = input.byte() % 4;
                packet[20..24].copy_from_slice(&port(input.byte()).to_le_bytes());
                packet[24..26].copy_from_slice(&input.half().to_le_bytes());
                packet[28] = 1;
                packet[30] = input.byte() % 9;
                packet[32] = input.byte() % 4;
                packet[36..44].copy_from_slice(&input.take::<8>());
                if input.byte() == 0xff {
                    let at = usize::from(input.byte()) % 40;
                    packet[at..at + 4].copy_from_slice(&input.take::<4>());
                }
                let length = u32::from(u16::from_le_bytes([packet[24], packet[25]]) % 0x1800);
                offer(&mut driver, 1, input.half(), &packet, 44 + length, false);
            }
            3 => {
                let mut stream = UnixStream::connect(dir.path().join("v")).unwrap();
                stream.set_nonblocking(true).unwrap();
                let _ = match input.byte() % 4 {
                    0 => stream.write(&input.take::<12>()),
                    _ => stream.write(format!("CONNECT {}\n", input.byte() % 4).as_bytes()),
                };
                streams.push(stream);
            }
            4 => streams.extend(host.accept().map(|(s, _)| s)),
            5 => {
                let which = usize::from(input.byte());
                if let Some(stream) = streams.get_mut(which % 8) {
                    let _ = stream.set_nonblocking(true);
                    let _ = match which / 8 % 4 {
                        0 => stream.write(&vec![1; usize::from(input.half())]),
                        1 => stream.read(&mut vec![0; usize::from(input.half())]),
                        2 => stream.shutdown(Shutdown::Write).map(|()| 0),
                        _ => stream.shutdown(Shutdown::Read).map(|()| 0),
                    };
                }
            }
            6 => streams.truncate(usize::from(input.byte()) % 4),
            _ => crooked(&mut driver, &mut input),
        }
        if !serve(&mut device) {
            device.reset();
            assert_eq!(device.connections(), 0);
            return;
        }
        assert!(device.connections() <= 1024);
    }
});

/// Where somebody listens, nobody does, and where the device's own ports begin.
fn port(choice: u8) -> u32 {
    match choice % 4 {
        0 | 1 => 80,
        2 => 81,
        _ => (1 << 30) + u32::from(choice / 4 % 8),
    }
}
