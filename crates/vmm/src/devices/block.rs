//! The virtio block device.
//!
//! Source: VIRTIO 1.2, section 5.2.

use super::rate::{Limiter, timer};
use super::storage::Storage;
use super::{Chain, RING_FEATURES, Ring, Segments, read_config};
use crate::config::DiskRate;
use crate::gpt::SECTOR;
use crate::note::note;
use crate::virtio::{Activation, Command, Device, DeviceError, Interest, Memory};
use std::io;
use std::ops::Range;
use virtio_bindings::virtio_blk::*;
use vm_memory::GuestAddressSpace;

/// Size of the queue.
const QUEUE: u16 = 256;
/// Sectors that one range of a discard may cover: 2 GiB.
const MAX_DISCARD: u32 = 1 << 22;
/// Ranges that one discard may have.
const MAX_DISCARD_SEGMENTS: u32 = 32;
/// Sectors that one zeroing may cover, in one range: 32 MiB, as the host may have to write them.
const MAX_ZEROES: u32 = 1 << 16;
/// Bytes of such a range.
const ERASE: usize = 16;
/// Bytes of the answer to GET_ID.
const ID_BYTES: usize = VIRTIO_BLK_ID_BYTES as usize;

/// A disk.
pub struct Block {
    storage: Storage,
    read_only: bool,
    id: [u8; ID_BYTES],
    active: Option<(Memory, Ring)>,
    complained: bool,
    limits: Option<Limits>,
}

/// Limits of what is read and of what is written.
struct Limits {
    read: Limiter,
    write: Limiter,
}

/// Tokens of [`Device::ready`]: the queue, and the timers of the limits.
const KICK: u64 = 0;
const READ_TIMER: u64 = 1;
const WRITE_TIMER: u64 = 2;

/// Bytes of a request's header.
const HEADER: usize = 16;

/// What a request asks for, read once: the guest may write there meanwhile, and what is charged is what is done.
struct Order {
    kind: u32,
    sector: u64,
    /// Of a discard or zeroing, with whether their room may be given back.
    ranges: io::Result<Vec<(Range<u64>, bool)>>,
}

/// How a request ended: its status byte, and how many bytes of data were written into guest memory.
type Outcome = (u32, usize);

/// After so many bytes others have their turn, who give the disk orders.
const TURN: usize = 64 << 20;

/// After so many requests the guest is told of them.
const SIGNALS: u16 = 16;

impl Block {
    /// A disk with this content. `number` is for the identifier, `dhow-NUMBER`, that the guest can ask for.
    pub fn new(storage: Storage, read_only: bool, number: usize) -> Self {
        let read_only = read_only || matches!(storage, Storage::Partitions { .. });
        let mut id = [0; ID_BYTES];
        for (to, from) in id.iter_mut().zip(format!("dhow-{number}").bytes()) {
            *to = from;
        }
        Self { storage, read_only, id, active: None, complained: false, limits: None }
    }

    /// The same within limits, which can be changed.
    pub fn limited(mut self, rate: &DiskRate) -> io::Result<Self> {
        self.limits = Some(Limits { read: Limiter::new(&rate.read)?, write: Limiter::new(&rate.write)? });
        Ok(self)
    }

    /// Whether a request may pass; it is charged at once. If not, its bucket's timer is set. What it costs is what Linux
    /// throttles bios by (`throtl_bio_data_size`): a discard counts as a sector, zeroes as if they were written.
    fn may_pass(&mut self, order: &Order, chain: &Chain) -> Result<bool, DeviceError> {
        let Some(limits) = &mut self.limits else { return Ok(true) };
        let ranges = order.ranges.as_deref().unwrap_or_default();
        let (limiter, bytes, count) = match order.kind {
            VIRTIO_BLK_T_IN => (&mut limits.read, chain.writable.len() as u64, 1),
            VIRTIO_BLK_T_OUT => (&mut limits.write, chain.readable.len() as u64, 1),
            VIRTIO_BLK_T_FLUSH => (&mut limits.write, 0, 1),
            VIRTIO_BLK_T_DISCARD => (&mut limits.write, SECTOR, ranges.len().max(1)),
            VIRTIO_BLK_T_WRITE_ZEROES => {
                (&mut limits.write, ranges.iter().map(|(range, _)| range.end - range.start).sum(), 1)
            }
            _ => return Ok(true),
        };
        let passes = limiter.ready().map_err(timer)?;
        if passes {
            (0..count).for_each(|_| limiter.charge(bytes));
        }
        Ok(passes)
    }

    /// Serves requests.
    fn serve(&mut self) -> Result<(), DeviceError> {
        let Some((memory, mut ring)) = self.active.take() else { return Ok(()) };
        let served = self.serve_queue(&memory, &mut ring);
        self.active = Some((memory, ring));
        served
    }

    fn serve_queue(&mut self, memory: &Memory, ring: &mut Ring) -> Result<(), DeviceError> {
        let memory = memory.memory();
        let mut turns = ring.size();
        let mut bytes = 0;
        while let Some(chain) = ring.next(&memory, &mut turns)? {
            let mut header = [0; HEADER];
            let whole = chain.readable.read(0, &mut header) == HEADER && !chain.torn;
            let order = whole.then(|| self.order(header, &chain.readable));
            // The next ones wait behind it, as in any queue.
            if let Some(order) = &order
                && !self.may_pass(order, &chain)?
            {
                drop(chain);
                ring.unpop();
                break;
            }
            let written = self.request(&chain, order)?;
            ring.used(&memory, chain.head, written)?;
            // What is done waits for no slow request behind it.
            if turns.is_multiple_of(SIGNALS) {
                ring.signal(&memory)?;
            }
            bytes += chain.readable.len() + chain.writable.len();
            if bytes > TURN {
                ring.again();
                break;
            }
        }
        ring.signal(&memory)
    }

    /// Carries out a request, if it has a header; how many bytes were written into guest memory.
    fn request(&mut self, chain: &Chain, order: Option<Order>) -> Result<usize, DeviceError> {
        let Some(status_at) = chain.writable.len().checked_sub(1) else {
            return Err(DeviceError::Driver("a request has no room for its status".into()));
        };
        let (status, written) = match order {
            Some(order) => self.dispatch(order, chain, status_at),
            None => (VIRTIO_BLK_S_IOERR, 0),
        };
        chain.writable.write(status_at, &[status as u8]);
        Ok(written.saturating_add(1))
    }

    /// `room` is how many bytes the answer may have before the status.
    fn dispatch(&mut self, order: Order, chain: &Chain, room: usize) -> Outcome {
        let Order { kind, sector, ranges } = order;
        let done = match kind {
            VIRTIO_BLK_T_IN => self
                .range(sector, room)
                .and_then(|range| self.storage.read(chain.writable.range(0, room), range.start))
                .map(|()| room),
            VIRTIO_BLK_T_FLUSH => self.storage.flush().map(|()| 0),
            VIRTIO_BLK_T_GET_ID => Ok(chain.writable.write(0, &self.id[..ID_BYTES.min(room)])),
            VIRTIO_BLK_T_OUT | VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES if self.read_only => {
                return (VIRTIO_BLK_S_IOERR, 0);
            }
            VIRTIO_BLK_T_OUT => {
                let length = chain.readable.len() - HEADER;
                self.range(sector, length)
                    .and_then(|range| self.storage.write(chain.readable.range(HEADER, length), range.start))
                    .map(|()| 0)
            }
            VIRTIO_BLK_T_DISCARD | VIRTIO_BLK_T_WRITE_ZEROES => {
                ranges.and_then(|ranges| self.erase(ranges, kind == VIRTIO_BLK_T_DISCARD)).map(|()| 0)
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
    fn range(&self, sector: u64, length: usize) -> io::Result<Range<u64>> {
        let length = length as u64;
        let start = sector.checked_mul(SECTOR);
        let end = start.and_then(|start| start.checked_add(length));
        match (start, end) {
            (Some(start), Some(end)) if length.is_multiple_of(SECTOR) && end <= self.storage.size() => {
                Ok(start..end)
            }
            _ => Err(io::ErrorKind::InvalidInput.into()),
        }
    }

    /// What a request asks for.
    fn order(&self, header: [u8; HEADER], readable: &Segments) -> Order {
        let [k0, k1, k2, k3, _, _, _, _, s0, s1, s2, s3, s4, s5, s6, s7] = header;
        let kind = u32::from_le_bytes([k0, k1, k2, k3]);
        let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
        let ranges = match kind {
            VIRTIO_BLK_T_DISCARD => self.ranges(readable, true),
            VIRTIO_BLK_T_WRITE_ZEROES => self.ranges(readable, false),
            _ => Ok(Vec::new()),
        };
        Order { kind, sector, ranges }
    }

    /// The ranges of a discard or zeroing, and whether their room may be given back.
    fn ranges(&self, readable: &Segments, discard: bool) -> io::Result<Vec<(Range<u64>, bool)>> {
        let length = readable.len() - HEADER;
        let (most, longest) = if discard { (MAX_DISCARD_SEGMENTS, MAX_DISCARD) } else { (1, MAX_ZEROES) };
        if !length.is_multiple_of(ERASE) || length / ERASE > most as usize {
            return Err(io::ErrorKind::InvalidInput.into());
        }
        let range = |at| {
            let mut raw = [0; ERASE];
            readable.read(at, &mut raw);
            let [s0, s1, s2, s3, s4, s5, s6, s7, c0, c1, c2, c3, f0, f1, f2, f3] = raw;
            let sector = u64::from_le_bytes([s0, s1, s2, s3, s4, s5, s6, s7]);
            let count = u32::from_le_bytes([c0, c1, c2, c3]);
            let unmap = u32::from_le_bytes([f0, f1, f2, f3]);
            if unmap & !1 != 0 || discard && unmap != 0 {
                return Err(io::ErrorKind::Unsupported.into());
            }
            if count > longest {
                return Err(io::ErrorKind::InvalidInput.into());
            }
            Ok((self.range(sector, count as usize * SECTOR as usize)?, unmap == 1))
        };
        (HEADER..readable.len()).step_by(ERASE).map(range).collect()
    }

    fn erase(&self, ranges: Vec<(Range<u64>, bool)>, discard: bool) -> io::Result<()> {
        for (range, unmap) in ranges.into_iter().filter(|(range, _)| !range.is_empty()) {
            match discard {
                true => self.storage.discard(range)?,
                false => self.storage.write_zeroes(range, unmap)?,
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
        for (longest, most) in [(MAX_DISCARD, MAX_DISCARD_SEGMENTS), (MAX_ZEROES, 1)] {
            // discard: greatest range, number of ranges, alignment; write zeroes: the first two, may unmap
            config.extend(longest.to_le_bytes());
            config.extend(most.to_le_bytes());
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
        let both = 1 << VIRTIO_BLK_F_SEG_MAX | 1 << VIRTIO_BLK_F_BLK_SIZE | RING_FEATURES;
        both | match self.read_only {
            true => 1 << VIRTIO_BLK_F_RO,
            false => 1 << VIRTIO_BLK_F_FLUSH | 1 << VIRTIO_BLK_F_DISCARD | 1 << VIRTIO_BLK_F_WRITE_ZEROES,
        }
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        read_config(&self.config(), offset, data);
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let (memory, rings) = Ring::all(activation, 1)?;
        self.active = rings.into_iter().next().map(|ring| (memory, ring.lenient()));
        self.serve()
    }

    fn reset(&mut self) {
        self.active = None;
    }

    fn interests(&self) -> Vec<Interest> {
        let Some((_, ring)) = &self.active else { return Vec::new() };
        let limits = self.limits.iter().flat_map(|l| [(READ_TIMER, &l.read), (WRITE_TIMER, &l.write)]);
        let waiting = limits.filter(|(_, limiter)| limiter.waits());
        waiting.map(|(token, limiter)| limiter.interest(token)).chain([ring.interest(KICK)]).collect()
    }

    fn ready(&mut self, token: u64, _events: u32) -> Result<(), DeviceError> {
        match (token, &mut self.limits) {
            (READ_TIMER, Some(limits)) => limits.read.rang(),
            (WRITE_TIMER, Some(limits)) => limits.write.rang(),
            _ => self.active.iter().for_each(|(_, ring)| ring.kicked()),
        }
        self.serve()
    }

    fn command(&mut self, command: Command) -> Result<bool, DeviceError> {
        if command == Command::TakeSize {
            let taken = self.storage.take_size();
            return taken.map_err(|source| DeviceError::Host { what: "look at a disk's size", source });
        }
        let (Command::LimitDisk(rate), Some(limits)) = (command, &mut self.limits) else { return Ok(false) };
        limits.read.set(&rate.read);
        limits.write.set(&rate.write);
        self.serve()?;
        Ok(true)
    }
}

#[cfg(test)]
mod tests;
