//! The contract between a virtio device and whatever carries it (virtio-mmio under KVM, vhost-user beside QEMU).
//!
//! ```text
//! reset ──driver negotiates──► activate(memory, queues, interrupt) ──► events … ──reset──►
//! ```
//!
//! Source: Virtual I/O Device (VIRTIO) Version 1.2, sections 2 and 5.

use crate::config::{DiskRate, RateLimit};
use std::os::fd::RawFd;
use std::sync::Arc;
use virtio_queue::Queue;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};
use vmm_sys_util::eventfd::EventFd;

/// Guest memory, shared among threads.
pub type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// Tells the driver that a queue has used buffers, or that the configuration changed.
pub trait Interrupt: Send + Sync {
    /// Used buffers in this queue.
    fn queue(&self, index: u16);
    /// The device's configuration changed.
    fn config(&self);
}

/// What the driver has set up when it says DRIVER_OK.
pub struct Activation {
    /// The guest's memory.
    pub memory: Memory,
    /// The queues. One that the driver did not set up is not ready; the others lie in guest memory.
    pub queues: Vec<Queue>,
    /// Readable when the driver kicks the queue of the same index.
    pub kicks: Vec<EventFd>,
    /// How to interrupt the driver.
    pub interrupt: Arc<dyn Interrupt>,
    /// Features that both sides have.
    pub features: u64,
}

/// The device cannot go on: it is set to DEVICE_NEEDS_RESET and serves nothing until the driver resets it.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    /// The driver broke the rules of its queues or descriptors.
    #[error("the guest's driver broke the rules: {0}")]
    Driver(String),
    /// The host's side failed.
    #[error("{what}: {source}")]
    Host {
        /// What was being done.
        what: &'static str,
        /// What the kernel said.
        source: std::io::Error,
    },
}

/// What is asked of a device from outside the guest.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Command {
    /// The guest shall give up this much memory, in MiB, in all.
    Balloon(u64),
    /// From now on these limits of throughput, of a network interface.
    Limit(RateLimit),
    /// The same of a disk.
    LimitDisk(DiskRate),
    /// The file of a disk has become longer: the disk has all of it from now on.
    TakeSize,
}

/// A virtio device. One thread makes all calls but those that only look, which never run at the same time as another;
/// nothing in it may block but on the host's disks.
pub trait Device: Send {
    /// Device type, VIRTIO 1.2 section 5.
    fn kind(&self) -> u32;
    /// Greatest size of each queue, each a power of two.
    fn queue_sizes(&self) -> &[u16];
    /// Features that are offered, without VIRTIO_F_VERSION_1, which always is.
    fn features(&self) -> u64;
    /// Reads configuration space; bytes beyond its end are 0.
    fn read_config(&self, offset: u64, data: &mut [u8]);
    /// Writes configuration space; what cannot be written is ignored.
    fn write_config(&mut self, _offset: u64, _data: &[u8]) {}
    /// The driver is ready. The device keeps the activation.
    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError>;
    /// The driver reset the device: forgets the activation and all that depends on it.
    fn reset(&mut self);
    /// Descriptors to wait for, with epoll's flags (EPOLLIN = 1, EPOLLOUT = 4) and a token of the device's choice;
    /// asked again after each other call. A descriptor stands there once. If one is closed and another, opened within
    /// the same call, got its number, the token must be another, too: nothing else tells them apart.
    fn interests(&self) -> Vec<Interest>;
    /// A descriptor is ready.
    fn ready(&mut self, token: u64, events: u32) -> Result<(), DeviceError>;
    /// Carries out a command, active or not; false if it means nothing to this device.
    fn command(&mut self, _command: Command) -> Result<bool, DeviceError> {
        Ok(false)
    }
}

/// What a device waits for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Interest {
    /// Descriptor, owned by the device.
    pub fd: RawFd,
    /// epoll's flags.
    pub events: u32,
    /// Handed back to [`Device::ready`].
    pub token: u64,
}
