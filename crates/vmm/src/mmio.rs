//! The virtio-mmio transport, version 2: a page of registers in front of one [`Device`].
//!
//! ```text
//! RESET ─ACKNOWLEDGE,DRIVER─► features ─FEATURES_OK─► queues ─DRIVER_OK─► active ─0─► RESET
//!                                                                           └─error─► NEEDS_RESET ─0─► RESET
//! ```
//!
//! What the guest reads is memory ([`Registers`]), brought up to date whenever something changes. Registers are written by
//! vCPU threads. What the device has to act on is handed back as [`Deferred`], for the device's own thread to carry out.
//!
//! Source: VIRTIO 1.2, sections 2.1 to 2.3, 3.1 and 4.2.2.

use crate::note::note;
use crate::registers::Registers;
use crate::virtio::{Activation, Command, Device, DeviceError, Interest, Interrupt, Memory};
use std::io;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use virtio_queue::{Queue, QueueT};
use vm_memory::GuestAddressSpace;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// Offset of the register that kicks a queue.
pub const QUEUE_NOTIFY: u64 = 0x50;
/// Offset of the register that says why there was an interrupt.
pub const INTERRUPT_STATUS: u64 = 0x60;
/// Offset of the one that takes note of it.
pub const INTERRUPT_ACK: u64 = 0x64;
/// An interrupt because of used buffers. KVM takes an acknowledgement of this alone by itself, and it stays pending until
/// one of both bits: a driver looks at its queues at each interrupt, and at its configuration when that has changed.
pub const USED_BUFFERS: u32 = 1;
/// An interrupt because the configuration changed.
const CONFIG_CHANGED: u32 = 2;
/// Where there is a counter of such changes.
const GENERATION: u64 = 0xfc;
/// Where configuration space begins.
pub(crate) const CONFIG: u64 = 0x100;
/// As much of it as any device has.
const CONFIG_BYTES: usize = 256;
/// VIRTIO_F_VERSION_1, which each driver must accept.
const VERSION_1: u64 = 1 << 32;

/// Bits of the status register (VIRTIO 1.2, 2.1).
mod status {
    pub const FEATURES_OK: u32 = 8;
    pub const DRIVER_OK: u32 = 4;
    pub const NEEDS_RESET: u32 = 0x40;
    pub const FAILED: u32 = 0x80;
}

/// The interrupt line of a device.
pub struct MmioInterrupt {
    page: &'static Registers,
    line: EventFd,
}

impl MmioInterrupt {
    /// The driver has seen these.
    pub fn acknowledge(&self, bits: u32) {
        self.page.word(INTERRUPT_STATUS).fetch_and(!bits.to_le(), Ordering::SeqCst);
    }

    fn raise(&self, bit: u32) {
        self.page.word(INTERRUPT_STATUS).fetch_or(bit.to_le(), Ordering::SeqCst);
        // It fails only when 2^64 - 2 interrupts are pending.
        let _ = self.line.write(1);
    }
}

impl Interrupt for MmioInterrupt {
    fn queue(&self, _index: u16) {
        self.raise(USED_BUFFERS);
    }

    fn config(&self) {
        self.page.word(GENERATION).fetch_add(1, Ordering::SeqCst);
        self.raise(CONFIG_CHANGED);
    }
}

/// A register access that calls the device.
#[derive(Debug, PartialEq, Eq)]
pub enum Deferred {
    /// A write to the status register.
    Status(u32),
    /// A write to configuration space.
    Config {
        /// Offset in it.
        offset: u64,
        /// What is written.
        data: Vec<u8>,
    },
}

/// A device behind its registers.
pub struct Transport {
    device: Box<dyn Device>,
    memory: Memory,
    page: &'static Registers,
    interrupt: Arc<MmioInterrupt>,
    kicks: Vec<EventFd>,
    /// As the driver sets them up; the device owns them while it is active.
    queues: Vec<Queue>,
    queue_ready: Vec<bool>,
    queue_select: u32,
    device_features_select: u32,
    driver_features_select: u32,
    driver_features: u64,
    status: u32,
    active: bool,
}

impl Transport {
    /// Registers in reset, which the guest reads on this page.
    pub fn new(device: Box<dyn Device>, memory: Memory, page: &'static Registers) -> io::Result<Self> {
        let interrupt = MmioInterrupt { page, line: EventFd::new(EFD_NONBLOCK)? };
        let kicks =
            device.queue_sizes().iter().map(|_| EventFd::new(EFD_NONBLOCK)).collect::<Result<_, _>>()?;
        let queues = new_queues(&*device)?;
        page.set(0x00, u32::from_le_bytes(*b"virt"));
        page.set(0x04, 2);
        page.set(0x08, device.kind());
        page.set(0x0c, u32::from_le_bytes(*b"dhow"));
        // Shared memory regions: none has all-ones as length.
        (0xb0..=0xbc).step_by(4).for_each(|offset| page.set(offset, u32::MAX));
        let transport = Self {
            queue_ready: vec![false; queues.len()],
            device,
            memory,
            page,
            interrupt: Arc::new(interrupt),
            kicks,
            queues,
            queue_select: 0,
            device_features_select: 0,
            driver_features_select: 0,
            driver_features: 0,
            status: 0,
            active: false,
        };
        transport.show();
        transport.show_config();
        Ok(transport)
    }

    /// Brings the page up to date with what a write to a register can change.
    fn show(&self) {
        let selected = self.selected();
        self.page.set(0x10, half(self.offered(), self.device_features_select));
        self.page.set(0x34, selected.map_or(0, |index| self.queues[index].max_size().into()));
        self.page.set(0x44, selected.map_or(0, |index| self.queue_ready[index].into()));
        self.page.set(0x70, self.status);
    }

    /// The same with the device's configuration.
    fn show_config(&self) {
        let mut space = [0; CONFIG_BYTES];
        self.device.read_config(0, &mut space);
        self.page.set_bytes(CONFIG, &space);
    }

    /// One event per queue, for KVM to signal when the driver writes the queue's index to [`QUEUE_NOTIFY`].
    pub fn kicks(&self) -> &[EventFd] {
        &self.kicks
    }

    /// The event that raises the interrupt line.
    pub fn line(&self) -> &EventFd {
        &self.interrupt.line
    }

    /// The device's interrupt.
    pub fn interrupt(&self) -> Arc<MmioInterrupt> {
        self.interrupt.clone()
    }

    /// Device type, for messages.
    pub fn kind(&self) -> u32 {
        self.device.kind()
    }

    /// What the guest reads; what is not a register is 0.
    pub fn page(&self) -> &'static Registers {
        self.page
    }

    /// The guest writes; what is not allowed now is ignored.
    pub fn write(&mut self, offset: u64, data: &[u8]) -> Option<Deferred> {
        let deferred = self.take(offset, data);
        self.show();
        deferred
    }

    fn take(&mut self, offset: u64, data: &[u8]) -> Option<Deferred> {
        if let Some(offset) = offset.checked_sub(CONFIG) {
            return Some(Deferred::Config { offset, data: data.to_vec() });
        }
        let value = u32::from_le_bytes(data.try_into().ok()?);
        match offset {
            0x14 => self.device_features_select = value,
            0x20 if self.status & status::FEATURES_OK == 0 => self.accept(value),
            0x24 => self.driver_features_select = value,
            0x30 => self.queue_select = value,
            QUEUE_NOTIFY => {
                if let Some(kick) = self.kicks.get(value as usize) {
                    let _ = kick.write(1);
                }
            }
            INTERRUPT_ACK => self.interrupt.acknowledge(value),
            // The device has to act only when it begins, and when it ends.
            0x70 if value == 0 && !self.active => self.reset(),
            0x70 if value != 0 && value & status::DRIVER_OK == 0 => self.set_status(value),
            0x70 => return Some(Deferred::Status(value)),
            _ => self.write_queue(offset, value),
        }
        None
    }

    fn write_queue(&mut self, offset: u64, value: u32) {
        const NEEDED: u32 = status::FEATURES_OK;
        if self.status & (NEEDED | status::DRIVER_OK | status::FAILED) != NEEDED {
            return;
        }
        let Some(index) = self.selected() else { return };
        let queue = &mut self.queues[index];
        match offset {
            0x38 => queue.set_size(u16::try_from(value).unwrap_or(0)),
            0x44 => {
                queue.set_ready(value == 1);
                self.queue_ready[index] = value == 1;
            }
            0x80 => queue.set_desc_table_address(Some(value), None),
            0x84 => queue.set_desc_table_address(None, Some(value)),
            0x90 => queue.set_avail_ring_address(Some(value), None),
            0x94 => queue.set_avail_ring_address(None, Some(value)),
            0xa0 => queue.set_used_ring_address(Some(value), None),
            0xa4 => queue.set_used_ring_address(None, Some(value)),
            _ => {}
        }
    }

    fn selected(&self) -> Option<usize> {
        Some(self.queue_select as usize).filter(|index| *index < self.queues.len())
    }

    fn offered(&self) -> u64 {
        self.device.features() | VERSION_1
    }

    fn accept(&mut self, value: u32) {
        let value = u64::from(value);
        self.driver_features = match self.driver_features_select {
            0 => self.driver_features & !0xffff_ffff | value,
            1 => self.driver_features & 0xffff_ffff | value << 32,
            _ => self.driver_features,
        };
    }

    /// On the device's thread: does what a write asked for.
    pub fn carry_out(&mut self, deferred: Deferred) {
        match deferred {
            Deferred::Config { offset, data } => self.device.write_config(offset, &data),
            Deferred::Status(0) => self.reset(),
            Deferred::Status(value) => self.set_status(value),
        }
        self.show();
        self.show_config();
    }

    fn set_status(&mut self, value: u32) {
        // The driver may only add bits, and NEEDS_RESET is the device's.
        let added = value & 0xff & !self.status & !status::NEEDS_RESET;
        if value & self.status != self.status & !status::NEEDS_RESET || self.status & status::FAILED != 0 {
            return;
        }
        for bit in (0..8).map(|n| 1 << n).filter(|bit| added & bit != 0) {
            match bit {
                status::DRIVER_OK | status::FEATURES_OK => {}
                _ => self.status |= bit,
            }
        }
        if added & status::FEATURES_OK != 0
            && self.driver_features & !self.offered() == 0
            && self.driver_features & VERSION_1 != 0
        {
            self.status |= status::FEATURES_OK;
        }
        if added & status::DRIVER_OK != 0 && self.status & status::FEATURES_OK != 0 {
            self.status |= status::DRIVER_OK;
            if let Err(e) = self.activate() {
                self.fail(&e);
            }
        }
    }

    fn activate(&mut self) -> Result<(), DeviceError> {
        let failed = |what| move |source: io::Error| DeviceError::Host { what, source };
        let fresh = new_queues(&*self.device).map_err(failed("make the queues"))?;
        let queues = std::mem::replace(&mut self.queues, fresh);
        let memory = self.memory.memory();
        for (index, queue) in queues.iter().enumerate() {
            if queue.ready() && !queue.is_valid(&*memory) {
                return Err(DeviceError::Driver(format!("queue {index} does not lie in memory")));
            }
        }
        let kicks = self.kicks.iter().map(EventFd::try_clone).collect::<Result<_, _>>();
        self.active = true;
        self.device.activate(Activation {
            memory: self.memory.clone(),
            queues,
            kicks: kicks.map_err(failed("copy the events of the queues"))?,
            interrupt: self.interrupt.clone(),
            features: self.driver_features,
        })
    }

    fn reset(&mut self) {
        if self.active {
            self.device.reset();
        }
        self.active = false;
        self.status = 0;
        self.driver_features = 0;
        self.queue_ready.fill(false);
        for queue in &mut self.queues {
            queue.reset();
        }
        for kick in &self.kicks {
            // Without a kick this is EAGAIN.
            let _ = kick.read();
        }
        self.page.set(INTERRUPT_STATUS, 0);
    }

    fn fail(&mut self, error: &DeviceError) {
        note(format_args!("virtio device of type {} needs a reset: {error}", self.kind()));
        self.status |= status::NEEDS_RESET;
        self.show();
        self.interrupt.config();
    }

    /// On the device's thread: carries out a command; false if it means nothing to the device.
    pub fn command(&mut self, command: Command) -> bool {
        let done = self.device.command(command).unwrap_or_else(|e| {
            self.fail(&e);
            true
        });
        if done && matches!(command, Command::TakeSize | Command::Balloon(_)) {
            self.show_config();
            self.interrupt.config();
        }
        done
    }

    /// What the device waits for; nothing unless it is active and sound.
    pub fn interests(&self) -> Vec<Interest> {
        match self.active && self.status & status::NEEDS_RESET == 0 {
            true => self.device.interests(),
            false => Vec::new(),
        }
    }

    /// On the device's thread: a descriptor is ready.
    pub fn ready(&mut self, token: u64, events: u32) {
        if self.active
            && self.status & status::NEEDS_RESET == 0
            && let Err(e) = self.device.ready(token, events)
        {
            self.fail(&e);
        }
    }
}

fn new_queues(device: &dyn Device) -> io::Result<Vec<Queue>> {
    device
        .queue_sizes()
        .iter()
        .map(|size| Queue::new(*size).map_err(|e| io::Error::other(e.to_string())))
        .collect()
}

fn half(features: u64, select: u32) -> u32 {
    match select {
        0 => features as u32,
        1 => (features >> 32) as u32,
        _ => 0,
    }
}

#[cfg(test)]
mod tests;
