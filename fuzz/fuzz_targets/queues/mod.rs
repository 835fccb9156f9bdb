//! Commands of the fuzzer upon the driver of a virtio device, with and against the rules.

pub use vmm::devices::testing::Driver;

use vmm::devices::testing::{SMALL_BUFFERS, SMALL_MEMORY, WRITE};
use vmm::virtio::Device;

/// Bytes of the fuzzer, one after the other; zeros beyond their end.
pub struct Input<'a>(pub &'a [u8]);

impl Input<'_> {
    /// The next ones.
    pub fn take<const N: usize>(&mut self) -> [u8; N] {
        let mut bytes = [0; N];
        let n = N.min(self.0.len());
        bytes[..n].copy_from_slice(&self.0[..n]);
        self.0 = &self.0[n..];
        bytes
    }

    pub fn byte(&mut self) -> u8 {
        self.take::<1>()[0]
    }

    pub fn half(&mut self) -> u16 {
        u16::from_le_bytes(self.take())
    }
}

/// Where the buffers of an honest chain lie whose descriptors begin at `head`.
pub fn buffers(driver: &Driver, head: u16) -> u64 {
    SMALL_BUFFERS + u64::from(head % (driver.size() / 2) * 2) * 0x2000
}

/// An honest chain of two buffers; `head` decides where they lie. Their first bytes are `data`.
pub fn offer(driver: &mut Driver, queue: usize, head: u16, data: &[u8], length: u32, writable: bool) {
    let at = buffers(driver, head);
    let flags = if writable { WRITE } else { 0 };
    driver.write(at, data);
    let first = length.min(44);
    let head = head % (driver.size() / 2) * 2;
    driver.chain(queue, head, &[(at, first, flags), (at + u64::from(first), length - first, flags)]);
}

/// A command against the rules: a crooked descriptor, a chain of it, or bytes anywhere.
pub fn crooked(driver: &mut Driver, input: &mut Input) {
    let queue = usize::from(input.byte()) % driver.queues();
    let size = driver.size();
    let index = input.half();
    match input.byte() % 4 {
        0 => {
            let (address, length) = (u64::from_le_bytes(input.take()), u32::from_le_bytes(input.take()));
            let address = if input.byte() % 2 == 0 { address % SMALL_MEMORY as u64 } else { address };
            let length = if input.byte() % 2 == 0 { length % 0x3000 } else { length };
            let flags = input.half() % 8;
            driver.descriptor(queue, index % size, address, length, flags, input.half() % (size + 2));
        }
        1 => driver.offer(queue, index % (size + 2)),
        2 => driver.set_available(queue, index),
        _ => driver.write(u64::from(index) * 4 % (SMALL_MEMORY as u64 - 16), &input.take::<16>()),
    }
}

/// Calls the device for all that it waits for. False when it gave up.
pub fn serve(device: &mut dyn Device) -> bool {
    for interest in device.interests() {
        if let Err(e) = device.ready(interest.token, 1) {
            assert!(!e.to_string().is_empty());
            return false;
        }
    }
    true
}
