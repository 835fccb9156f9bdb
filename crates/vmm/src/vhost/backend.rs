//! QEMU's requests, gathered until the device can be activated.

use crate::virtio::{Activation, Device, DeviceError, Interest, Interrupt, Memory};
use std::fs::File;
use std::io;
use std::os::fd::{FromRawFd, IntoRawFd};
use std::sync::atomic::Ordering;
use std::sync::{Arc, Mutex, PoisonError};
use vhost::VhostUserMemoryRegionBase;
use vhost::vhost_user::message::{
    VhostTransferStateDirection, VhostTransferStatePhase, VhostUserConfigFlags, VhostUserInflight,
    VhostUserLog, VhostUserMemoryRegion, VhostUserProtocolFeatures, VhostUserShMemConfig, VhostUserSharedMsg,
    VhostUserSingleMemoryRegion, VhostUserVirtioFeatures, VhostUserVringAddrFlags, VhostUserVringState,
};
use vhost::vhost_user::{Error, GpuBackend, Result, VhostUserBackendReqHandlerMut};
use virtio_queue::{Queue, QueueT};
use vm_memory::{GuestAddress, GuestAddressSpace, GuestMemoryMmap, GuestRegionMmap};
use vmm_sys_util::eventfd::EventFd;

/// VIRTIO_F_VERSION_1.
const VERSION_1: u64 = 1 << 32;
/// As many as each device has that is served here. Of the virtual socket: to the guest and from it; QEMU serves the queue
/// of events itself.
const QUEUES: usize = 2;
/// Greatest size of a queue; QEMU decides, and takes its own greatest.
const QUEUE_SIZE: u16 = 1024;

/// A region as QEMU knows it: where it lies in QEMU's address space.
struct Mapping {
    start: u64,
    size: u64,
    guest: u64,
}

/// What is known of a queue.
#[derive(Default)]
struct Vring {
    size: u16,
    /// Descriptors, available ring, used ring; in QEMU's address space.
    addresses: Option<[u64; 3]>,
    base: u16,
    kick: Option<EventFd>,
    enabled: bool,
}

/// Interrupts go to QEMU by events, which it may exchange at any time.
#[derive(Default)]
struct Calls([Mutex<Option<EventFd>>; QUEUES]);

impl Interrupt for Calls {
    fn queue(&self, index: u16) {
        if let Some(call) = self.0.get(usize::from(index))
            && let Some(event) = &*call.lock().unwrap_or_else(PoisonError::into_inner)
        {
            // Fails only when the event is set already.
            let _ = event.write(1);
        }
    }

    fn config(&self) {}
}

/// The device and what QEMU said of it.
pub struct Backend {
    pub device: Box<dyn Device>,
    active: bool,
    features: u64,
    memory: Option<Memory>,
    mappings: Vec<Mapping>,
    vrings: [Vring; QUEUES],
    calls: Arc<Calls>,
}

impl Backend {
    /// Not active.
    pub fn new(device: Box<dyn Device>) -> Self {
        Self {
            device,
            active: false,
            features: 0,
            memory: None,
            mappings: Vec::new(),
            vrings: Default::default(),
            calls: Arc::default(),
        }
    }

    /// What to wait for; nothing of the device while QEMU has stopped it.
    pub fn interests(&self) -> Vec<Interest> {
        if self.active { self.device.interests() } else { Vec::new() }
    }

    /// Activates the device when QEMU has said all that is needed.
    pub fn settle(&mut self) -> std::result::Result<(), DeviceError> {
        let ready = |v: &Vring| v.enabled && v.size > 0 && v.kick.is_some() && v.addresses.is_some();
        if self.active || !self.vrings.iter().all(ready) {
            return Ok(());
        }
        let Some(memory) = self.memory.clone() else { return Ok(()) };
        if self.vrings.iter().all(|v| v.base == 0) {
            // A driver that begins, not a virtual machine that goes on.
            self.device.reset();
        }
        let mut queues = Vec::new();
        let mut kicks = Vec::new();
        for (index, vring) in self.vrings.iter().enumerate() {
            let queue = self.queue(index, &memory).map_err(|e| DeviceError::Driver(e.to_string()))?;
            queues.push(queue);
            let kick = vring.kick.as_ref().map(EventFd::try_clone).transpose();
            kicks.extend(
                kick.map_err(|source| DeviceError::Host { what: "cannot keep a queue's event", source })?,
            );
        }
        let interrupt = Arc::clone(&self.calls) as Arc<dyn Interrupt>;
        self.active = true;
        self.device.activate(Activation { memory, queues, kicks, interrupt, features: self.features })
    }

    fn queue(&self, index: usize, memory: &Memory) -> Result<Queue> {
        let vring = self.vrings.get(index).ok_or(Error::InvalidParam)?;
        let [descriptors, available, used] = vring.addresses.ok_or(Error::InvalidParam)?;
        let mut queue = Queue::new(QUEUE_SIZE).map_err(|_| Error::BackendInternalError)?;
        queue.try_set_size(vring.size).map_err(|_| Error::InvalidParam)?;
        queue.try_set_desc_table_address(self.guest(descriptors)?).map_err(|_| Error::InvalidParam)?;
        queue.try_set_avail_ring_address(self.guest(available)?).map_err(|_| Error::InvalidParam)?;
        queue.try_set_used_ring_address(self.guest(used)?).map_err(|_| Error::InvalidParam)?;
        queue.set_next_avail(vring.base);
        let used = queue.used_idx(&*memory.memory(), Ordering::Relaxed).map_err(|_| Error::InvalidParam)?;
        queue.set_next_used(used.0);
        queue.set_ready(true);
        Ok(queue)
    }

    /// From QEMU's addresses to the guest's.
    fn guest(&self, address: u64) -> Result<GuestAddress> {
        self.mappings
            .iter()
            .find_map(|m| {
                let offset = address.checked_sub(m.start).filter(|offset| *offset < m.size)?;
                m.guest.checked_add(offset).map(GuestAddress)
            })
            .ok_or(Error::InvalidParam)
    }

    fn vring(&mut self, index: u32) -> Result<&mut Vring> {
        self.vrings.get_mut(index as usize).ok_or(Error::InvalidParam)
    }

    fn unsupported<T>() -> Result<T> {
        Err(Error::InvalidOperation("not offered"))
    }
}

fn event(file: File) -> EventFd {
    // SAFETY: the descriptor is open and owned by nobody else. QEMU sends events here; with anything else only reads
    // and writes fail.
    unsafe { EventFd::from_raw_fd(file.into_raw_fd()) }
}

impl VhostUserBackendReqHandlerMut for Backend {
    fn set_owner(&mut self) -> Result<()> {
        Ok(())
    }

    fn reset_owner(&mut self) -> Result<()> {
        self.reset_device()
    }

    fn reset_device(&mut self) -> Result<()> {
        self.active = false;
        self.vrings = Default::default();
        self.device.reset();
        Ok(())
    }

    fn get_features(&mut self) -> Result<u64> {
        Ok(VERSION_1 | VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() | self.device.features())
    }

    fn set_features(&mut self, features: u64) -> Result<()> {
        if features & !self.get_features()? != 0 {
            return Err(Error::InvalidParam);
        }
        self.features = features;
        if features & VhostUserVirtioFeatures::PROTOCOL_FEATURES.bits() == 0 {
            // A front end that does not know SET_VRING_ENABLE has its queues enabled from the start.
            self.vrings.iter_mut().for_each(|v| v.enabled = true);
        }
        Ok(())
    }

    fn set_mem_table(
        &mut self,
        regions: &[VhostUserMemoryRegion],
        files: Vec<File>,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<Vec<VhostUserMemoryRegionBase>>> {
        let mut mapped = Vec::new();
        let mut mappings = Vec::new();
        for (region, file) in regions.iter().zip(files) {
            let start = GuestAddress(region.guest_phys_addr);
            mapped.push(GuestRegionMmap::new(region.mmap_region(file)?, start).ok_or(Error::InvalidParam)?);
            mappings.push(Mapping {
                start: region.user_addr,
                size: region.memory_size,
                guest: region.guest_phys_addr,
            });
        }
        let map =
            GuestMemoryMmap::from_regions(mapped).map_err(|e| Error::ReqHandlerError(io::Error::other(e)))?;
        match &self.memory {
            // The device sees it at once.
            Some(memory) => memory.lock().map_err(|_| Error::BackendInternalError)?.replace(map),
            None => self.memory = Some(Memory::new(map)),
        }
        self.mappings = mappings;
        Ok(None)
    }

    fn set_vring_num(&mut self, index: u32, size: u32) -> Result<()> {
        self.vring(index)?.size = u16::try_from(size).map_err(|_| Error::InvalidParam)?;
        Ok(())
    }

    fn set_vring_addr(
        &mut self,
        index: u32,
        _flags: VhostUserVringAddrFlags,
        descriptors: u64,
        used: u64,
        available: u64,
        _log: u64,
    ) -> Result<()> {
        self.vring(index)?.addresses = Some([descriptors, available, used]);
        Ok(())
    }

    fn set_vring_base(&mut self, index: u32, base: u32) -> Result<()> {
        self.vring(index)?.base = u16::try_from(base).map_err(|_| Error::InvalidParam)?;
        Ok(())
    }

    /// Stops the queue.
    fn get_vring_base(&mut self, index: u32) -> Result<VhostUserVringState> {
        self.vring(index)?;
        // The virtual socket finishes each chain before it takes the next: what is used is what was taken. A guest that stops
        // the file system's device forgets its requests.
        let next = match &self.memory {
            Some(memory) => self.queue(index as usize, memory).map(|queue| queue.next_used()),
            None => Err(Error::InvalidParam),
        };
        self.active = false;
        let vring = self.vring(index)?;
        let base = next.unwrap_or(vring.base);
        vring.base = base;
        vring.kick = None;
        Ok(VhostUserVringState::new(index, u32::from(base)))
    }

    fn set_vring_kick(&mut self, index: u8, file: Option<File>) -> Result<()> {
        self.vring(u32::from(index))?.kick = file.map(event);
        Ok(())
    }

    fn set_vring_call(&mut self, index: u8, file: Option<File>) -> Result<()> {
        let call = self.calls.0.get(usize::from(index)).ok_or(Error::InvalidParam)?;
        *call.lock().unwrap_or_else(PoisonError::into_inner) = file.map(event);
        Ok(())
    }

    fn set_vring_err(&mut self, _index: u8, _file: Option<File>) -> Result<()> {
        Ok(())
    }

    fn get_protocol_features(&mut self) -> Result<VhostUserProtocolFeatures> {
        Ok(VhostUserProtocolFeatures::CONFIG | VhostUserProtocolFeatures::MQ)
    }

    fn set_protocol_features(&mut self, _features: u64) -> Result<()> {
        Ok(())
    }

    fn get_queue_num(&mut self) -> Result<u64> {
        Ok(QUEUES as u64)
    }

    fn set_vring_enable(&mut self, index: u32, enable: bool) -> Result<()> {
        self.vring(index)?.enabled = enable;
        if !enable {
            self.active = false;
        }
        Ok(())
    }

    /// QEMU asks here for the guest's context id.
    fn get_config(&mut self, offset: u32, size: u32, _flags: VhostUserConfigFlags) -> Result<Vec<u8>> {
        // The protocol's own limit (VHOST_USER_CONFIG_SIZE).
        let mut data = vec![0; size.min(256) as usize];
        self.device.read_config(u64::from(offset), &mut data);
        Ok(data)
    }

    fn set_config(&mut self, _offset: u32, _data: &[u8], _flags: VhostUserConfigFlags) -> Result<()> {
        Ok(())
    }

    fn set_gpu_socket(&mut self, _gpu: GpuBackend) -> Result<()> {
        Self::unsupported()
    }

    fn get_shared_object(&mut self, _uuid: VhostUserSharedMsg) -> Result<File> {
        Self::unsupported()
    }

    fn get_inflight_fd(&mut self, _inflight: &VhostUserInflight) -> Result<(VhostUserInflight, File)> {
        Self::unsupported()
    }

    fn set_inflight_fd(&mut self, _inflight: &VhostUserInflight, _file: File) -> Result<()> {
        Self::unsupported()
    }

    fn get_max_mem_slots(&mut self) -> Result<u64> {
        Self::unsupported()
    }

    fn add_mem_region(
        &mut self,
        _region: &VhostUserSingleMemoryRegion,
        _file: File,
        _postcopy_listening: Option<bool>,
    ) -> Result<Option<VhostUserMemoryRegionBase>> {
        Self::unsupported()
    }

    fn remove_mem_region(&mut self, _region: &VhostUserSingleMemoryRegion) -> Result<()> {
        Self::unsupported()
    }

    fn set_device_state_fd(
        &mut self,
        _direction: VhostTransferStateDirection,
        _phase: VhostTransferStatePhase,
        _file: File,
    ) -> Result<Option<File>> {
        Self::unsupported()
    }

    fn check_device_state(&mut self) -> Result<()> {
        Self::unsupported()
    }

    fn get_shmem_config(&mut self) -> Result<VhostUserShMemConfig> {
        Self::unsupported()
    }

    fn set_log_base(&mut self, _log: &VhostUserLog, _file: File) -> Result<()> {
        Self::unsupported()
    }
}
