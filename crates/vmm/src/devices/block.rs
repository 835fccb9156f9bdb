//! The virtio block device.
//!
//! Source: VIRTIO 1.2, section 5.2.

use super::chain::{Segments, buffers};
use super::storage::Storage;
use crate::gpt::SECTOR;
use crate::mmio::{EVENT_IDX, INDIRECT_DESC};
use crate::note::note;
use crate::virtio::{Activation, Device, DeviceError, Interest};
use std::io;
use std::ops::Range;
use std::os::fd::AsRawFd;
use virtio_bindings::virtio_blk::*;
use virtio_queue::{QueueOwnedT, QueueT};
use vm_memory::{Bytes, GuestAddressSpace, GuestMemoryMmap};

/// Size of the queue.
const QUEUE: u16 = 256;
/// Requests that one event serves before other events get their turn.
const BATCH: usize = 256;
/// Sectors that one discard or zeroing may cover: 2 GiB.
const MAX_ERASE: u32 = 1 << 22;
/// Ranges that one discard or zeroing may have.
const MAX_ERASE_SEGMENTS: u32 = 32;
/// Bytes of the answer to GET_ID.
const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// A disk.
pub struct Block {
    storage: Storage,
    read_only: bool,
    id: [u8; ID_BYTES],
    active: Option<Activation>,
    complained: bool,
}

/// How a request ended: its status byte, and how many bytes of data were written into guest memory.
type Outcome = (u32, u32);

impl Block {
    /// A disk with this content. `number` is for the identifier, `dhow-NUMBER`, that the guest can ask for.
    pub fn new(storage: Storage, read_only: bool, number: usize) -> Self {
        let read_only = read_only || matches!(storage, Storage::Partitions { .. });
        let mut id = [0; ID_BYTES];
        for (to, from) in id.iter_mut().zip(format!("dhow-{number}").bytes()) {
            *to = from;
        }
        Self { storage, read_only, id, active: None, complained: false }
    }

    /// Serves requests; whether it stopped before the queue was empty.
    fn serve(&mut self) -> Result<bool, DeviceError> {
        let Some(mut active) = self.active.take() else { return Ok(false) };
        let served = self.serve_queue(&mut active);
        self.active = Some(active);
        served
    }

    fn serve_queue(&mut self, active: &mut Activation) -> Result<bool, DeviceError> {
        let memory = active.memory.memory();
        let Some(queue) = active.queues.first_mut() else { return Ok(false) };
        let broken = |e: virtio_queue::Error| DeviceError::Driver(e.to_string());
        let mut served = 0;
        loop {
            queue.disable_notification(&*memory).map_err(broken)?;
            let before = served;
            while served < BATCH
                && let Some(chain) = queue.iter(&*memory).map_err(broken)?.next()
            {
                let head = chain.head_index();
                let written = self.request(&memory, buffers(chain, QUEUE)?)?;
                queue.add_used(&*memory, head, written).map_err(broken)?;
                served += 1;
            }
            if served > before && queue.needs_notification(&*memory).map_err(broken)? {
                active.interrupt.queue(0);
            }
            if served >= BATCH {
                return Ok(true);
            }
            if !queue.enable_notification(&*memory).map_err(broken)? {
                return Ok(false);
            }
        }
    }

    /// Carries out a request; how many bytes were written into guest memory.
    fn request(
        &mut self,
        memory: &GuestMemoryMmap,
        (mut readable, mut writable): (Segments, Segments),
    ) -> Result<u32, DeviceError> {
        let Some(status_at) = writable.take_last() else {
            return Err(DeviceError::Driver("a request has no room for its status".into()));
        };
        let mut header = [0; 16];
        let (status, written) = match readable.take(memory, &mut header) {
            true => self.dispatch(memory, header, readable, writable),
            false => (VIRTIO_BLK_S_IOERR, 0),
        };
        memory
            .write_obj(status as u8, status_at)
            .map_err(|_| DeviceError::Driver("the status of a request does not lie in memory".into()))?;
        Ok(written.saturating_add(1))
    }

    fn dispatch(
        &mut self,
        memory: &GuestMemoryMmap,
        header: [u8; 16],
        readable: Segments,
        writable: Segments,
    ) -> Outcome {
        let [k0, k1, k2, k3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let done = match u32::from_le_bytes([k0, k1, k2, k3]) {
            VIRTIO_BLK_T_IN => {
                let length = writable.length();
                self.range(sector, length)
                    .and_then(|range| self.storage.read(memory, &writable, range.start))
                    .map(|()| u32::try_from(length).unwrap_or(u32::MAX))
            }
            VIRTIO_BLK_T_FLUSH => self.storage.flush().map(|()| 0),
            VIRTIO_BLK_T_GET_ID => self.identify(memory, &writable),
            VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if self.read_only => {
                return (VIRTIO_BLK_S_IOERR, 0);
            }
            VIRTIO_BLK_T_OUT => self
                .range(sector, readable.length())
                .and_then(|range| self.storage.write(memory, &readable, range.start))
                .map(|()| 0),
            kind @ (VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES) => {
                self.erase(memory, readable, kind == VIRTIO_BLK_T_DISCARD).map(|()| 0)
            }
            _ => return (VIRTIO_BLK_S_UNSUPP, 0),
        };
        match done {
            Ok(written) => (VIRTIO_BLK_S_OK, written),
            Err(e) if e.kind() == io::ErrorKind::Unsupported => (VIRTIO_BLK_S_UNSUPP, 0),
            Err(e) => {
                self.complain(&e);
                (VIRTIO_BLK_S_IOERR, 0)
            }
        }
    }

    /// Says once that the host fails the guest; what the guest does wrong is between it and its disk.
    fn complain(&mut self, error: &io::Error) {
        if !self.complained && error.kind() != io::ErrorKind::InvalidInput {
            self.complained = true;
            let id = String::from_utf8_lossy(&self.id);
            note(format_args!("disk {}: the guest gets an I/O error: {error}", id.trim_end_matches('\0')));
        }
    }

    /// The bytes of the disk that a request is about, within it and made of whole sectors.
    fn range(&self, sector: u64, length: u64) -> io::Result<Range<u64>> {
        let start = sector.checked_mul(SECTOR);
        let end = start.and_then(|start| start.checked_add(length));
        match (start, end) {
            (Some(start), Some(end)) if length.is_multiple_of(SECTOR) && end <= self.storage.size() => {
                Ok(start..end)
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    fn identify(&self, memory: &GuestMemoryMmap, writable: &Segments) -> io::Result<u32> {
        let mut id = &self.id[..];
        for segment in writable.iter() {
            let (now, rest) = id.split_at(id.len().min(segment.length as usize));
            memory.write_slice(now, segment.address).map_err(|_| io::ErrorKind::InvalidInput)?;
            id = rest;
        }
        Ok((self.id.len() - id.len()) as u32)
    }

    fn erase(&self, memory: &GuestMemoryMmap, mut readable: Segments, discard: bool) -> io::Result<()> {
        let ranges = readable.length();
        if !ranges.is_multiple_of(16) || ranges / 16 > u64::from(MAX_ERASE_SEGMENTS) {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        for _ in 0..ranges / 16 {
            let mut raw = [0; 16];
            if !readable.take(memory, &mut raw) {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, f0, f1, f2, f3] = raw;
            let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
            let count = u32::from_le_bytes([c0, c1, c2, c3]);
            let unmap = u32::from_le_bytes([f0, f1, f2, f3]);
            if unmap & !1 != 0 || discard && unmap != 0 {
                return Err(io::ErrorKind::Unsupported.into());
            }
            if count > MAX_ERASE {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            let range = self.range(sector, u64::from(count) * SECTOR)?;
            match (discard, range.is_empty()) {
                (_, true) => {}
                (true, _) => self.storage.discard(range)?,
                (false, _) => self.storage.write_zeroes(range, unmap == 1)?,
            }
        }
        Ok(())
    }

    /// Configuration space (5.2.4).
    fn config(&self) -> Vec<u8> {
        let mut config = Vec::with_capacity(60);
        config.extend((self.storage.size() / SECTOR).to_le_bytes());
        config.extend(0u32.to_le_bytes()); // size_max
        config.extend(u32::from(QUEUE - 2).to_le_bytes()); // seg_max
        config.extend([0; 4]); // geometry
        config.extend((SECTOR as u32).to_le_bytes()); // blk_size
        config.extend([0; 8]); // topology
        config.extend([0; 4]); // writeback, num_queues
        for _ in 0..2 {
            // discard: greatest range, number of ranges, alignment; write zeroes: the first two, may unmap
            config.extend(MAX_ERASE.to_le_bytes());
            config.extend(MAX_ERASE_SEGMENTS.to_le_bytes());
            config.extend(8u32.to_le_bytes());
        }
        config[56] = 1;
        config
    }
}

impl Device for Block {
    fn kind(&self) -> u32 {
        2
    }

    fn queue_sizes(&self) -> &[u16] {
        &[QUEUE]
    }

    fn features(&self) -> u64 {
        let both = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | EVENT_IDX | INDIRECT_DESC;
        both | match self.read_only {
            true => 1 << VIRTIO_BLK_F_RO,
            false => 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let config = self.config();
        for (at, byte) in (offset..).zip(data) {
            *byte = usize::try_from(at).ok().and_then(|at| config.get(at)).copied().unwrap_or(0);
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        self.active = Some(activation);
        Ok(())
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn interests(&self) -> Vec<Interest> {
        let kicks = self.active.iter().flat_map(|active| &active.kicks);
        kicks.map(|kick| Interest { fd: kick.as_raw_fd(), events: 1, token: 0 }).collect()
    }

    fn ready(&mut self, _token: u64, _events: u32) -> Result<(), DeviceError> {
        if let Some(kick) = self.active.iter().flat_map(|active| &active.kicks).next() {
            // EAGAIN: somebody else drained it.
            let _ = kick.read();
        }
        if self.serve()?
            && let Some(kick) = self.active.iter().flat_map(|active| &active.kicks).next()
        {
            kick.write(1).map_err(|source| DeviceError::Host { what: "wake the disk again", source })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests;
