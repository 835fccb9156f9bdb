//! Every device behind its registers, before drivers that do not keep to the order of things.

use super::balloon::Balloon;
use super::block::Block;
use super::net::Net;
use super::net_tap::Tap;
use super::rng::Rng;
use super::storage::Storage;
use super::testing::{Driver, Registers, SMALL_BUFFERS, SMALL_MEMORY, WRITE, page};
use super::vsock::Vsock;
use crate::config::RateLimit;
use crate::mmio::Transport;
use crate::virtio::Device;
use rustix::net::{AddressFamily, SocketFlags, SocketType, socketpair};
use std::os::fd::OwnedFd;
use std::os::unix::net::UnixListener;

const NOTIFY: u64 = 0x50;
const STATUS: u64 = 0x70;
const RUNNING: u32 = 15;
const NEEDS_RESET: u32 = 0x40;

/// A device, its driver, and the chain of an honest request to one of its queues.
struct Rig {
    name: &'static str,
    device: Transport,
    driver: Driver,
    queue: usize,
    request: Vec<(u64, u32, u16)>,
    /// What the device's other side is.
    _host: (tempfile::TempDir, OwnedFd),
}

impl Rig {
    fn each() -> Vec<Self> {
        ["rng", "balloon", "net", "vsock", "block"].map(Self::new).into()
    }

    fn new(name: &'static str) -> Self {
        let dir = tempfile::tempdir().unwrap();
        let path = dir.path().join("v");
        let (tap, peer) =
            socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::NONBLOCK, None).unwrap();
        let at = SMALL_BUFFERS;
        let (device, queues, queue, request): (Box<dyn Device>, _, _, _) = match name {
            "rng" => (Box::<Rng>::default(), 1, 0, vec![(at, 64, WRITE)]),
            "balloon" => (Box::<Balloon>::default(), 3, 0, vec![(at, 4, 0)]),
            "net" => {
                let net = Net::new(Tap::datagrams(tap).unwrap(), [2; 6], &RateLimit::default());
                (Box::new(net.unwrap()), 2, 1, vec![(at, 100, 0)])
            }
            "vsock" => {
                let vsock = Vsock::new(3, UnixListener::bind(&path).unwrap(), path).unwrap();
                (Box::new(vsock), 3, 1, vec![(at, 44, 0)])
            }
            _ => {
                let file = tempfile::tempfile().unwrap();
                file.set_len(4096).unwrap();
                let block = Block::new(Storage::Raw { file, size: 4096 }, false, 0);
                (Box::new(block), 1, 0, vec![(at, 16, 0), (at + 0x200, 512, WRITE), (at + 0x400, 1, WRITE)])
            }
        };
        let driver = Driver::small(queues);
        let device = Transport::new(device, driver.memory.clone(), page()).unwrap();
        Self { name, device, driver, queue, request, _host: (dir, peer) }
    }

    fn offer(&mut self) {
        self.driver.chain(self.queue, 0, &self.request);
        self.device.set(NOTIFY, self.queue as u32);
    }

    /// Everything that the device could wait for has happened.
    fn serve(&mut self) {
        for token in 0..8 {
            self.device.ready(token, 1);
        }
    }

    fn served(&mut self) -> usize {
        self.serve();
        self.driver.used(self.queue).len()
    }
}

#[test]
fn nothing_happens_before_the_driver_is_ready() {
    for mut rig in Rig::each() {
        rig.offer();
        assert_eq!(rig.served(), 0, "{}", rig.name);
        rig.driver.prepare(&mut rig.device, u64::MAX);
        rig.device.set(NOTIFY, rig.queue as u32);
        assert!(rig.device.interests().is_empty(), "{}", rig.name);
        assert_eq!(rig.served(), 0, "{}", rig.name);
        rig.device.set(STATUS, RUNNING);
        assert_eq!((rig.device.get(STATUS), rig.served()), (RUNNING, 1), "{}", rig.name);
    }
}

#[test]
fn a_queue_has_no_size_that_is_none() {
    for size in [0, 3, 0x2000, 0x8000, 0x1_0000, u32::MAX] {
        for mut rig in Rig::each() {
            rig.driver.prepare(&mut rig.device, u64::MAX);
            rig.device.set(0x30, rig.queue as u32);
            rig.device.set(0x38, size);
            rig.device.set(STATUS, RUNNING);
            rig.offer();
            assert_eq!((rig.device.get(STATUS), rig.served()), (RUNNING, 1), "{} {size}", rig.name);
        }
    }
}

#[test]
fn a_queue_does_not_move_under_a_running_device() {
    for mut rig in Rig::each() {
        rig.driver.start(&mut rig.device, u64::MAX);
        rig.device.set(0x30, rig.queue as u32);
        for (register, value) in [(0x38, 2), (0x80, 0x3_0000), (0x90, 0x3_1000), (0xa0, 0x3_2000), (0x44, 0)]
        {
            rig.device.set(register, value);
        }
        rig.offer();
        assert_eq!(rig.served(), 1, "{}", rig.name);
        assert_eq!(rig.driver.read(0x3_2000, 64), [0; 64], "{}", rig.name);
    }
}

#[test]
fn a_reset_in_the_middle_forgets_what_was_asked() {
    for mut rig in Rig::each() {
        rig.driver.start(&mut rig.device, u64::MAX);
        rig.offer();
        rig.device.set(STATUS, 0);
        assert!(rig.device.interests().is_empty(), "{}", rig.name);
        assert_eq!(rig.served(), 0, "{}", rig.name);
        assert_eq!(rig.device.get(STATUS), 0);
        // The queue begins anew; what still lies there is new, too.
        rig.driver.start(&mut rig.device, u64::MAX);
        assert_eq!(rig.served(), 1, "{}", rig.name);
    }
}

#[test]
fn a_broken_queue_is_mended_by_a_reset_only() {
    for mut rig in Rig::each() {
        rig.driver.start(&mut rig.device, u64::MAX);
        rig.driver.set_available(rig.queue, 0x8000);
        rig.serve();
        assert_eq!(rig.device.get(STATUS), RUNNING | NEEDS_RESET, "{}", rig.name);
        rig.driver.set_available(rig.queue, 0);
        rig.offer();
        rig.device.set(STATUS, RUNNING);
        assert_eq!(rig.served(), 0, "{}", rig.name);
        rig.driver.start(&mut rig.device, u64::MAX);
        assert_eq!((rig.device.get(STATUS), rig.served()), (RUNNING, 1), "{}", rig.name);
    }
}

#[test]
fn queues_outside_of_memory_or_upon_each_other_cost_the_device_at_most() {
    let end = SMALL_MEMORY as u32;
    for (low, high) in [(end - 16, 0), (end, 0), (0x1000, 1), (!15, !0), (0x1000, 0), (0, 0)] {
        for mut rig in Rig::each() {
            rig.driver.prepare(&mut rig.device, u64::MAX);
            for queue in 0..rig.driver.queues() {
                rig.device.set(0x30, queue as u32);
                for register in [0x80, 0x90, 0xa0] {
                    rig.device.set(register, low);
                    rig.device.set(register + 4, high);
                }
            }
            rig.device.set(STATUS, RUNNING);
            let inside = high == 0 && low < end - 16;
            assert!(inside || rig.device.get(STATUS) == RUNNING | NEEDS_RESET, "{} {low:#x}", rig.name);
            for index in 0..20 {
                rig.driver.set_available(rig.queue, index);
                rig.driver.write(0x1002, &index.to_le_bytes());
                rig.serve();
            }
            rig.driver.set_available(rig.queue, 0);
            rig.driver.start(&mut rig.device, u64::MAX);
            assert_eq!(rig.device.get(STATUS), RUNNING, "{}", rig.name);
        }
    }
}
