//! A driver for tests and fuzzers, which can also break every rule.

use crate::mmio::Transport;
use crate::virtio::{Activation, Device, DeviceError, Interrupt, Memory};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::os::fd::BorrowedFd;
#[cfg(test)]
use std::os::fd::{AsRawFd, OwnedFd};
use std::sync::Arc;
use std::sync::atomic::{AtomicU32, Ordering};
use virtio_queue::{Queue, QueueT};
use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryMmap};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Entries of each queue, but for [`Driver::small`].
pub const SIZE: u16 = 256;
/// Guest memory in bytes; buffers may lie from [`BUFFERS`] on.
pub const MEMORY: usize = 16 << 20;
/// See [`MEMORY`].
pub const BUFFERS: u64 = 1 << 20;
/// Guest memory of a [`Driver::small`]: its buffers may lie from [`SMALL_BUFFERS`] on.
pub const SMALL_MEMORY: usize = 1 << 18;
/// See [`SMALL_MEMORY`].
pub const SMALL_BUFFERS: u64 = 0x8000;
/// Flags of descriptors.
pub const NEXT: u16 = 1;
/// The device writes.
pub const WRITE: u16 = 2;
/// A table of descriptors.
pub const INDIRECT: u16 = 4;

/// Counts interrupts.
#[derive(Default)]
pub struct Fired {
    pub queues: [AtomicU32; 3],
    pub config: AtomicU32,
}

impl Interrupt for Fired {
    fn queue(&self, index: u16) {
        self.queues[usize::from(index)].fetch_add(1, Ordering::Relaxed);
    }

    fn config(&self) {
        self.config.fetch_add(1, Ordering::Relaxed);
    }
}

/// Registers of virtio-mmio (VIRTIO 1.2, 4.2.2), by their offset.
pub trait Registers {
    fn set(&mut self, register: u64, value: u32);
    fn get(&self, register: u64) -> u32;
}

/// Where a guest reads the registers of one device.
pub fn page() -> &'static crate::registers::Registers {
    &crate::registers::Registers::pages(1)[0]
}

impl Registers for Transport {
    fn set(&mut self, register: u64, value: u32) {
        if let Some(deferred) = self.write(register, &value.to_le_bytes()) {
            self.carry_out(deferred);
        }
    }

    fn get(&self, register: u64) -> u32 {
        let mut value = [0; 4];
        self.page().read(register, &mut value);
        u32::from_le_bytes(value)
    }
}

/// Memory, and what was made available and seen used.
pub struct Driver {
    pub memory: Memory,
    pub fired: Arc<Fired>,
    size: u16,
    available: Vec<u16>,
    seen: Vec<u16>,
}

impl Driver {
    pub fn new(queues: usize) -> Self {
        Self::with(queues, SIZE, MEMORY)
    }

    /// With queues of 16 entries in little memory, so that random indices and addresses often hit.
    pub fn small(queues: usize) -> Self {
        Self::with(queues, 16, SMALL_MEMORY)
    }

    fn with(queues: usize, size: u16, memory: usize) -> Self {
        let map = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), memory)]).unwrap();
        Self::over(Memory::new(map), queues, size)
    }

    fn over(memory: Memory, queues: usize, size: u16) -> Self {
        Self { memory, fired: Arc::default(), size, available: vec![0; queues], seen: vec![0; queues] }
    }

    /// A driver that takes this one's memory over, with empty queues.
    pub fn anew(&self) -> Self {
        let fresh = Self::over(self.memory.clone(), self.queues(), self.size);
        for [_, available, used] in fresh.rings() {
            fresh.write(available, &[0; 4]);
            fresh.write(used, &[0; 4]);
        }
        fresh
    }

    /// How many queues there are.
    pub fn queues(&self) -> usize {
        self.available.len()
    }

    /// Entries of each.
    pub fn size(&self) -> u16 {
        self.size
    }

    /// Where descriptors, available ring and used ring of each queue lie.
    pub fn rings(&self) -> impl Iterator<Item = [u64; 3]> {
        (0..self.queues()).map(|queue| [self.table(queue), self.available_ring(queue), self.used_ring(queue)])
    }

    /// Resets a device behind its registers and prepares it as a good driver does (VIRTIO 1.2, 3.1.1), with those of
    /// `features` that it offers; all but DRIVER_OK.
    pub fn prepare(&self, device: &mut impl Registers, features: u64) {
        for status in [0, 1, 3] {
            device.set(0x70, status);
        }
        for half in 0..2 {
            device.set(0x14, half);
            device.set(0x24, half);
            let wanted = (features | 1 << 32) >> (32 * half);
            device.set(0x20, device.get(0x10) & wanted as u32);
        }
        device.set(0x70, 11);
        for (queue, rings) in (0..).zip(self.rings()) {
            device.set(0x30, queue);
            device.set(0x38, u32::from(self.size));
            for (register, address) in [0x80, 0x90, 0xa0].into_iter().zip(rings) {
                device.set(register, address as u32);
                device.set(register + 4, 0);
            }
            device.set(0x44, 1);
        }
    }

    /// [`Self::prepare`], and starts it.
    pub fn start(&self, device: &mut impl Registers, features: u64) {
        self.prepare(device, features);
        device.set(0x70, 15);
    }

    /// Where the descriptors of a queue lie, and behind them its available ring and its used ring.
    fn table(&self, queue: usize) -> u64 {
        0x1000 + 0x20 * u64::from(self.size).max(0x40) * queue as u64
    }

    fn available_ring(&self, queue: usize) -> u64 {
        self.table(queue) + 16 * u64::from(self.size)
    }

    fn used_ring(&self, queue: usize) -> u64 {
        self.table(queue) + 20 * u64::from(self.size)
    }

    pub fn activation(&self, features: u64) -> Activation {
        let queue = |index| {
            let mut queue = Queue::new(self.size).unwrap();
            queue.set_desc_table_address(Some(self.table(index) as u32), Some(0));
            queue.set_avail_ring_address(Some(self.available_ring(index) as u32), Some(0));
            queue.set_used_ring_address(Some(self.used_ring(index) as u32), Some(0));
            queue.set_ready(true);
            queue
        };
        Activation {
            memory: self.memory.clone(),
            queues: (0..self.available.len()).map(queue).collect(),
            kicks: self.available.iter().map(|_| EventFd::new(EFD_NONBLOCK).unwrap()).collect(),
            interrupt: Arc::clone(&self.fired) as Arc<dyn Interrupt>,
            features,
        }
    }

    pub fn write(&self, address: u64, data: &[u8]) {
        self.memory.memory().write_slice(data, GuestAddress(address)).unwrap();
    }

    pub fn read(&self, address: u64, length: usize) -> Vec<u8> {
        let mut data = vec![0; length];
        self.memory.memory().read_slice(&mut data, GuestAddress(address)).unwrap();
        data
    }

    /// One descriptor, as it is.
    pub fn descriptor(&self, queue: usize, index: u16, address: u64, length: u32, flags: u16, next: u16) {
        self.descriptor_at(self.table(queue) + 16 * u64::from(index), address, length, flags, next);
    }

    /// One descriptor anywhere.
    pub fn descriptor_at(&self, at: u64, address: u64, length: u32, flags: u16, next: u16) {
        self.write(at, &address.to_le_bytes());
        self.write(at + 8, &length.to_le_bytes());
        self.write(at + 12, &flags.to_le_bytes());
        self.write(at + 14, &next.to_le_bytes());
    }

    /// Makes the chain that begins there available.
    pub fn offer(&mut self, queue: usize, head: u16) {
        let index = self.available[queue];
        let slot = 4 + 2 * u64::from(index % self.size);
        self.write(self.available_ring(queue) + slot, &head.to_le_bytes());
        self.set_available(queue, index.wrapping_add(1));
    }

    /// Says that so many are available.
    pub fn set_available(&mut self, queue: usize, index: u16) {
        self.available[queue] = index;
        self.write(self.available_ring(queue) + 2, &index.to_le_bytes());
    }

    /// A chain of these buffers (address, length, flags), whose descriptors begin at `head`.
    pub fn chain(&mut self, queue: usize, head: u16, buffers: &[(u64, u32, u16)]) {
        for (at, (address, length, flags)) in (head..).zip(buffers) {
            let next = if usize::from(at - head) + 1 < buffers.len() { NEXT } else { 0 };
            self.descriptor(queue, at, *address, *length, flags | next, at + 1);
        }
        self.offer(queue, head);
    }

    /// What was used since the last look: head and length.
    pub fn used(&mut self, queue: usize) -> Vec<(u16, usize)> {
        let word = |at| u32::from_le_bytes(self.read(at, 4).try_into().unwrap());
        let ring = self.used_ring(queue);
        let index = u16::from_le_bytes(self.read(ring + 2, 2).try_into().unwrap());
        let mut used = Vec::new();
        let mut seen = self.seen[queue];
        while seen != index {
            let at = ring + 4 + 8 * u64::from(seen % self.size);
            used.push((word(at) as u16, word(at + 4) as usize));
            seen = seen.wrapping_add(1);
        }
        self.seen[queue] = seen;
        used
    }

    /// Every way to break a queue of which the device reads (`write` false) or to which it writes, each on a fresh
    /// device and driver.
    pub fn hostile(
        queues: usize,
        queue: usize,
        write: bool,
        mut serve: impl FnMut(Driver) -> Result<(), DeviceError>,
    ) {
        let flags = if write { WRITE } else { 0 };
        type Attack<'a> = (&'a str, &'a dyn Fn(&mut Driver));
        let attacks: [Attack; 13] = [
            ("a chain that bites its tail", &|d| {
                d.descriptor(queue, 0, BUFFERS, 64, flags | NEXT, 1);
                d.descriptor(queue, 1, BUFFERS, 64, flags | NEXT, 0);
                d.offer(queue, 0);
            }),
            ("a head outside of the table", &|d| d.offer(queue, SIZE + 5)),
            ("a next outside of the table", &|d| {
                d.descriptor(queue, 0, BUFFERS, 64, flags | NEXT, 60000);
                d.offer(queue, 0);
            }),
            ("a buffer outside of memory", &|d| d.chain(queue, 0, &[(MEMORY as u64 - 10, 4096, flags)])),
            ("a buffer that wraps around", &|d| d.chain(queue, 0, &[(u64::MAX - 10, 4096, flags)])),
            ("an indirect table outside of memory", &|d| d.chain(queue, 0, &[(!15, 64, INDIRECT)])),
            ("an indirect table of a crooked length", &|d| d.chain(queue, 0, &[(BUFFERS, 65, INDIRECT)])),
            ("an endless indirect table", &|d| {
                for at in 0..65535 {
                    d.descriptor_at(BUFFERS + 16 * at, BUFFERS, 1, flags | NEXT, at as u16 + 1);
                }
                d.chain(queue, 0, &[(BUFFERS, 65535 * 16, INDIRECT)]);
            }),
            ("an indirect table in an indirect table", &|d| {
                d.descriptor_at(BUFFERS, BUFFERS + 64, 16, INDIRECT, 0);
                d.descriptor_at(BUFFERS + 64, BUFFERS, 64, flags, 0);
                d.chain(queue, 0, &[(BUFFERS, 16, INDIRECT)]);
            }),
            ("a buffer to read after one to write", &|d| {
                d.chain(queue, 0, &[(BUFFERS, 64, 0), (BUFFERS, 64, WRITE), (BUFFERS, 64, 0)])
            }),
            ("an index that jumps", &|d| d.set_available(queue, 0x8000)),
            ("an index that goes back", &|d| d.set_available(queue, u16::MAX)),
            ("more chains than the queue has", &|d| d.set_available(queue, SIZE + 1)),
        ];
        for (name, attack) in attacks {
            let mut driver = Driver::new(queues);
            attack(&mut driver);
            let result = serve(driver);
            assert!(matches!(result, Err(DeviceError::Driver(_))), "{name}: {result:?}");
        }
    }
}

/// A tap that is up, in a network namespace that becomes this thread's own; why there is none.
#[cfg(test)]
pub fn tap() -> Result<OwnedFd, String> {
    // SAFETY: a thread of its own, which opens nothing that others use.
    if let Err(e) = unsafe { rustix::thread::unshare_unsafe(rustix::thread::UnshareFlags::NEWNET) } {
        return Err(format!("no network namespace of its own: {e}"));
    }
    let tun = std::fs::File::options().read(true).write(true).open("/dev/net/tun");
    let tun = tun.map_err(|e| format!("/dev/net/tun: {e}"))?;
    // struct ifreq: the name, then IFF_TAP | IFF_NO_PI | IFF_VNET_HDR.
    let mut request = [0_u8; 40];
    request[..4].copy_from_slice(b"tap0");
    request[16..18].copy_from_slice(&0x5002_u16.to_ne_bytes());
    // SAFETY: TUNSETIFF reads and writes a struct ifreq, which is as long. The same for SIOCSIFFLAGS.
    unsafe {
        assert_eq!(libc::ioctl(tun.as_raw_fd(), 0x4004_54ca, request.as_mut_ptr()), 0);
        request[16..18].copy_from_slice(&(libc::IFF_UP as u16).to_ne_bytes());
        let socket = std::net::UdpSocket::bind("0.0.0.0:0").unwrap();
        assert_eq!(libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS, request.as_mut_ptr()), 0);
    }
    Ok(tun.into())
}

/// Serves what is ready until nothing is for `millis`.
pub fn pump(device: &mut dyn Device, millis: i64) -> Result<(), DeviceError> {
    loop {
        let interests = device.interests();
        let mut fds: Vec<PollFd> = interests
            .iter()
            .map(|i| {
                // SAFETY: the device owns it and is not called meanwhile.
                let fd = unsafe { BorrowedFd::borrow_raw(i.fd) };
                PollFd::from_borrowed_fd(fd, PollFlags::from_bits_truncate(i.events as u16))
            })
            .collect();
        let wait = Timespec { tv_sec: 0, tv_nsec: millis * 1_000_000 };
        if poll(&mut fds, Some(&wait)).unwrap() == 0 {
            return Ok(());
        }
        let ready: Vec<u32> = fds.iter().map(|fd| u32::from(fd.revents().bits())).collect();
        for (interest, events) in interests.iter().zip(ready).filter(|(_, events)| *events != 0) {
            device.ready(interest.token, events)?;
        }
    }
}
