//! A driver that obeys the fuzzer: memory and queues of a virtio device, and commands upon them.

use std::sync::Arc;
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryMmap};
use vmm::virtio::{Activation, Device, Interrupt, Memory};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Entries of each queue: few, so that wrong ones are often met.
const SIZE: u16 = 16;
const MEMORY: usize = 1 << 18;

struct Nobody;

impl Interrupt for Nobody {
    fn queue(&self, _index: u16) {}
    fn config(&self) {}
}

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

/// The driver.
pub struct Driver {
    memory: Memory,
    available: Vec<u16>,
}

fn table(queue: usize) -> u64 {
    0x1000 * (queue as u64 + 1)
}

impl Driver {
    /// With so many queues.
    pub fn new(queues: usize) -> Self {
        let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), MEMORY)]).unwrap();
        Self { memory: Memory::new(map), available: vec![0; queues] }
    }

    /// What the device is activated with.
    pub fn activation(&self, features: u64) -> Activation {
        let queue = |index| {
            let mut queue = Queue::new(SIZE).unwrap();
            let base = table(index) as u32;
            queue.set_desc_table_address(Some(base), Some(0));
            queue.set_avail_ring_address(Some(base + 0x400), Some(0));
            queue.set_used_ring_address(Some(base + 0x800), Some(0));
            queue.set_ready(true);
            queue
        };
        Activation {
            memory: self.memory.clone(),
            queues: (0..self.available.len()).map(queue).collect(),
            kicks: self.available.iter().map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect(),
            interrupt: Arc::new(Nobody),
            features,
        }
    }

    fn write(&self, address: u64, data: &[u8]) {
        // Beyond memory is nothing.
        let _ = self.memory.memory().write_slice(data, GuestAddress(address));
    }

    /// An honest chain of one or two buffers; `head` decides where they lie. Their first bytes are `data`.
    pub fn offer(&mut self, queue: usize, head: u16, data: &[u8], length: u32, writable: bool) {
        let head = head % (SIZE / 2) * 2;
        let at = 0x8000 + u64::from(head) * 0x2000;
        let flags = if writable { 2 } else { 0 };
        self.write(at, data);
        let first = length.min(44);
        self.descriptor(table(queue) + u64::from(head) * 16, at, first, flags | 1, head + 1);
        self.descriptor(
            table(queue) + u64::from(head + 1) * 16,
            at + u64::from(first),
            length - first,
            flags,
            0,
        );
        self.available(queue, head);
    }

    /// Makes a chain available, whatever it is.
    pub fn available(&mut self, queue: usize, head: u16) {
        let index = self.available[queue];
        self.write(table(queue) + 0x404 + 2 * u64::from(index % SIZE), &head.to_le_bytes());
        self.available[queue] = index.wrapping_add(1);
        self.write(table(queue) + 0x402, &self.available[queue].to_le_bytes());
    }

    /// A descriptor anywhere.
    fn descriptor(&self, at: u64, address: u64, length: u32, flags: u16, next: u16) {
        self.write(at, &address.to_le_bytes());
        self.write(at + 8, &length.to_le_bytes());
        self.write(at + 12, &flags.to_le_bytes());
        self.write(at + 14, &next.to_le_bytes());
    }

    /// A command of the fuzzer against the rules: a crooked descriptor, a chain of it, or bytes anywhere.
    pub fn crooked(&mut self, input: &mut Input) {
        let queue = usize::from(input.byte()) % self.available.len();
        let index = input.half();
        match input.byte() % 3 {
            0 => {
                let (address, length) = (u64::from_le_bytes(input.take()), u32::from_le_bytes(input.take()));
                let address = if input.byte() % 2 == 0 { address % MEMORY as u64 } else { address };
                let length = if input.byte() % 2 == 0 { length % 0x3000 } else { length };
                let at = table(queue) + 16 * u64::from(index % SIZE);
                self.descriptor(at, address, length, input.half() % 8, input.half() % (SIZE + 2));
            }
            1 => self.available(queue, index % (SIZE + 2)),
            _ => {
                let bytes = input.take::<16>();
                self.write(u64::from(index) * 4, &bytes);
            }
        }
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
