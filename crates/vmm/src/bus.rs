//! Which device answers at a guest-physical address.

use crate::mmio::{CONFIG, INTERRUPT_ACK, MmioInterrupt};
use crate::registers::Registers;
use crate::virtio::Command;
use crate::worker::{Commanded, Mailbox, Shared, lock};
use std::sync::Arc;

/// A window of addresses with a device behind it.
pub struct Window {
    /// First address.
    pub start: u64,
    /// Bytes.
    pub length: u64,
    /// What is behind it.
    pub device: Shared,
    /// Its type, at hand also while the device works.
    kind: u32,
    /// What the guest reads of it, and its interrupt, at hand also while the device works.
    page: &'static Registers,
    interrupt: Arc<MmioInterrupt>,
    /// The worker that runs it.
    pub worker: Mailbox,
    /// Its number there.
    pub number: usize,
}

impl Window {
    /// A window in front of a device, which is number `number` of a worker.
    pub fn new(start: u64, length: u64, device: Shared, worker: Mailbox, number: usize) -> Self {
        let (interrupt, kind, page) = {
            let device = lock(&device);
            (device.interrupt(), device.kind(), device.page())
        };
        Self { start, length, device, kind, page, interrupt, worker, number }
    }
}

/// All windows.
#[derive(Default)]
pub struct Bus {
    /// In no order; there are few.
    pub windows: Vec<Window>,
}

impl Bus {
    /// Has one device of this type, counted from 0 in the order of the configuration, carry out a command.
    pub fn command(&self, kind: u32, number: usize, command: Command) -> Commanded {
        let window = self.windows.iter().filter(|window| window.kind == kind).nth(number);
        window.map_or(Commanded::Nonsense, |window| window.worker.command(window.number, command))
    }

    /// Reads the configuration space of one device of this type, counted as for [`Self::command`]; whether there is one.
    pub fn read_config(&self, kind: u32, number: usize, offset: u64, data: &mut [u8]) -> bool {
        let found = self.windows.iter().filter(|window| window.kind == kind).nth(number);
        found.map(|window| window.page.read(CONFIG + offset, data)).is_some()
    }

    fn find(&self, address: u64) -> Option<(&Window, u64)> {
        self.windows.iter().find_map(|window| {
            let offset = address.checked_sub(window.start)?;
            (offset < window.length).then_some((window, offset))
        })
    }

    /// A vCPU reads, where KVM does not do it by itself; where nothing is, all bits are 1.
    pub fn read(&self, address: u64, data: &mut [u8]) {
        match self.find(address) {
            Some((window, offset)) => window.page.read(offset, data),
            None => data.fill(0xff),
        }
    }

    /// A vCPU writes; where nothing is, it is lost.
    pub fn write(&self, address: u64, data: &[u8]) {
        if let Some((window, offset)) = self.find(address) {
            // An interrupt handler waits for no disk.
            if let (INTERRUPT_ACK, Ok(bits)) = (offset, data.try_into()) {
                return window.interrupt.acknowledge(u32::from_le_bytes(bits));
            }
            let deferred = lock(&window.device).write(offset, data);
            if let Some(deferred) = deferred {
                window.worker.carry_out(window.number, deferred);
            }
        }
    }
}
