//! The virtio devices, and what they share: a queue of which nothing is believed before it is checked.

pub mod balloon;
pub mod block;
pub mod fs;
pub mod net;
pub mod net_tap;
pub mod rate;
#[cfg(test)]
mod register_tests;
pub mod rng;
pub mod storage;
#[cfg(any(test, feature = "testing"))]
#[allow(missing_docs)]
pub mod testing;
pub mod vsock;

use crate::virtio::{Activation, DeviceError, Interest, Interrupt, Memory};
use std::os::fd::{AsRawFd, BorrowedFd};
use std::sync::Arc;
use virtio_queue::{Queue, QueueOwnedT, QueueT};
use vm_memory::{
    Bytes, GuestAddress, GuestAddressSpace, GuestMemory, GuestMemoryMmap, Permissions, VolatileSlice,
};
use vmm_sys_util::eventfd::EventFd;

/// VIRTIO_F_INDIRECT_DESC (VIRTIO 1.2, 2.7.5.3): chains may lie in tables of their own.
const INDIRECT_DESC: u64 = 1 << 28;
/// VIRTIO_F_EVENT_IDX (VIRTIO 1.2, 2.7.7): both sides say when they want to be notified.
const EVENT_IDX: u64 = 1 << 29;
/// What [`Ring`] can do for any device.
pub(crate) const RING_FEATURES: u64 = INDIRECT_DESC | EVENT_IDX;

/// EPOLLIN.
pub(crate) const IN: u32 = 1;

/// One queue of an active device.
pub(crate) struct Ring {
    queue: Queue,
    kick: EventFd,
    index: u16,
    interrupt: Arc<dyn Interrupt>,
    lenient: bool,
    dirty: bool,
    overdue: bool,
}

impl Ring {
    /// Takes the queues of an activation. At least `least` must be ready; the driver may leave others out.
    pub fn all(activation: Activation, least: usize) -> Result<(Memory, Vec<Self>), DeviceError> {
        let Activation { memory, queues, kicks, interrupt, features } = activation;
        if queues.len() < least || kicks.len() < queues.len() {
            return Err(DeviceError::Driver(format!("it set up {} of {least} queues", queues.len())));
        }
        let guard = memory.memory();
        let mut rings = Vec::with_capacity(queues.len());
        for (index, (mut queue, kick)) in (0..).zip(queues.into_iter().zip(kicks)) {
            if !queue.ready() && usize::from(index) >= least {
                break;
            }
            if !queue.is_valid(&*guard) {
                return Err(DeviceError::Driver(format!(
                    "queue {index} is outside of its memory or not ready"
                )));
            }
            let index: u16 = index;
            queue.set_event_idx(features & EVENT_IDX != 0);
            // SAFETY: `kick` stays open beyond this statement.
            let fd = unsafe { BorrowedFd::borrow_raw(kick.as_raw_fd()) };
            rustix::io::ioctl_fionbio(fd, true).map_err(|e| DeviceError::Host {
                what: "cannot prepare a queue's event",
                source: e.into(),
            })?;
            rings.push(Self {
                queue,
                kick,
                index,
                interrupt: Arc::clone(&interrupt),
                lenient: false,
                dirty: false,
                overdue: false,
            });
        }
        drop(guard);
        Ok((memory, rings))
    }

    /// From now on, a buffer outside of memory is its request's trouble ([`Chain::torn`]), not the queue's, unless it
    /// is the last one of a chain, where devices answer.
    pub fn lenient(mut self) -> Self {
        self.lenient = true;
        self
    }

    /// Wait for the driver's kicks.
    pub fn interest(&self, token: u64) -> Interest {
        Interest { fd: self.kick.as_raw_fd(), events: IN, token }
    }

    /// Forgets the kicks so far.
    pub fn kicked(&self) {
        // An event that has not happened is none.
        let _ = self.kick.read();
    }

    /// Comes back to this queue after others had their turn.
    pub fn again(&self) {
        // Fails only when the event is set already.
        let _ = self.kick.write(1);
    }

    /// How many chains a turn may take.
    pub fn size(&self) -> u16 {
        self.queue.size()
    }

    /// The next chain that the driver made available.
    fn pop<'m>(&mut self, memory: &'m GuestMemoryMmap) -> Result<Option<Chain<'m>>, DeviceError> {
        let size = self.queue.size();
        let broken = |what: &str| DeviceError::Driver(format!("queue {}: {what}", self.index));
        let Some(chain) = self.queue.iter(memory).map_err(|e| broken(&e.to_string()))?.next() else {
            return Ok(None);
        };
        let head = chain.head_index();
        let (readable, writable) = (Segments::default(), Segments::default());
        let mut result = Chain { head, readable, writable, torn: false };
        let (mut ended, mut missing) = (false, None);
        for (count, descriptor) in chain.enumerate() {
            // The iterator bounds loops by the table's length, which for an indirect table is up to 65535.
            if count >= usize::from(size) {
                return Err(broken("a chain is longer than the queue"));
            }
            let (part, access) = match descriptor.is_write_only() {
                true => (&mut result.writable, Permissions::Write),
                false if result.writable.slices.is_empty() => (&mut result.readable, Permissions::Read),
                false => return Err(broken("a chain has a readable buffer after a writable one")),
            };
            let length = descriptor.len() as usize;
            if descriptor.addr().0.checked_add(length as u64).is_none() {
                return Err(broken("a buffer goes beyond the end of the address space"));
            }
            let slices = memory.get_slices(descriptor.addr(), length, access);
            let added =
                slices.and_then(|mut slices| slices.try_for_each(|slice| slice.map(|s| part.push(s))));
            match added {
                Ok(()) => missing = missing.filter(|_| length == 0),
                Err(e) if self.lenient => {
                    result.torn = true;
                    missing = Some(e);
                }
                Err(e) => return Err(broken(&e.to_string())),
            }
            ended = !descriptor.has_next();
        }
        if let Some(e) = missing {
            return Err(broken(&e.to_string()));
        }
        // The iterator stops silently at a loop, at an index outside of the table and at a table outside of memory.
        if !ended {
            return Err(broken("a chain has no end"));
        }
        Ok(Some(result))
    }

    /// The next chain of a turn. None when there is no more, and a kick will tell; or when as many as `left` said were
    /// taken: then other descriptors come first, and the queue is ready again.
    pub fn next<'m>(
        &mut self,
        memory: &'m GuestMemoryMmap,
        left: &mut u16,
    ) -> Result<Option<Chain<'m>>, DeviceError> {
        let Some(after) = left.checked_sub(1) else {
            self.again();
            return Ok(None);
        };
        let chain = self.pop_or_wait(memory)?;
        if chain.is_some() {
            *left = after;
        }
        Ok(chain)
    }

    /// The next chain, or none, and a kick will tell.
    pub fn pop_or_wait<'m>(&mut self, memory: &'m GuestMemoryMmap) -> Result<Option<Chain<'m>>, DeviceError> {
        loop {
            match self.pop(memory)? {
                // One may have come before the driver was asked for a kick.
                None if self.wait(memory)? => {}
                chain => return Ok(chain),
            }
        }
    }

    /// Puts the chain that was popped last back.
    pub fn unpop(&mut self) {
        self.queue.go_to_previous_position();
    }

    /// Gives a chain back to the driver, `written` bytes of it filled.
    pub fn used(&mut self, memory: &GuestMemoryMmap, head: u16, written: usize) -> Result<(), DeviceError> {
        self.dirty = true;
        // A chain is at most 4 GiB.
        let written = u32::try_from(written).unwrap_or(u32::MAX);
        self.queue.add_used(memory, head, written).map_err(|e| self.broken(&e))
    }

    /// Gives several chains back at once: the driver sees all of them or none.
    pub fn used_together(
        &mut self,
        memory: &GuestMemoryMmap,
        chains: &[(u16, usize)],
    ) -> Result<(), DeviceError> {
        let Some(((last, length), rest)) = chains.split_last() else { return Ok(()) };
        for (head, written) in rest {
            let (index, size) = (self.queue.next_used(), self.queue.size());
            // The used ring has a header of 4 bytes and entries of 8 (VIRTIO 1.2, 2.7.8), and was found valid.
            let slot = 4 + 8 * u64::from(index % size.max(1));
            // Head and length, each 32 bits in little endian.
            let entry = u64::from(*head) | u64::from(u32::try_from(*written).unwrap_or(u32::MAX)) << 32;
            let address = GuestAddress(self.queue.used_ring().wrapping_add(slot));
            memory
                .write_obj(entry.to_le(), address)
                .map_err(|e| self.broken(&virtio_queue::Error::GuestMemory(e)))?;
            self.queue.set_next_used(index.wrapping_add(1));
            // The queue knows of the last one only, and could think that the driver does not want to hear of it.
            self.overdue = true;
        }
        self.used(memory, *last, *length)
    }

    /// Asks to be kicked for the next chain. True if one is there already, and no kick will come.
    fn wait(&mut self, memory: &GuestMemoryMmap) -> Result<bool, DeviceError> {
        self.queue.enable_notification(memory).map_err(|e| self.broken(&e))
    }

    /// Interrupts the driver if chains were used that it wants to hear of.
    pub fn signal(&mut self, memory: &GuestMemoryMmap) -> Result<(), DeviceError> {
        if std::mem::take(&mut self.dirty) {
            let wanted = self.queue.needs_notification(memory).map_err(|e| self.broken(&e))?;
            if std::mem::take(&mut self.overdue) || wanted {
                self.interrupt.queue(self.index);
            }
        }
        Ok(())
    }

    fn broken(&self, error: &virtio_queue::Error) -> DeviceError {
        DeviceError::Driver(format!("queue {}: {error}", self.index))
    }
}

/// A chain of descriptors, checked: it has an end, and all of it lies in guest memory, unless it is `torn`.
pub(crate) struct Chain<'m> {
    /// What [`Ring::used`] wants.
    pub head: u16,
    /// What the driver sends.
    pub readable: Segments<'m>,
    /// Room for what the device sends.
    pub writable: Segments<'m>,
    /// A buffer is not, or not as a whole, in memory and here; only a [`Ring::lenient`] queue gives such a chain.
    pub torn: bool,
}

/// Pieces of guest memory, one after the other. Another CPU of the guest may change them at any time.
#[derive(Default)]
pub(crate) struct Segments<'m> {
    slices: Vec<VolatileSlice<'m>>,
    length: usize,
}

impl<'m> Segments<'m> {
    fn push(&mut self, slice: VolatileSlice<'m>) {
        if !slice.is_empty() {
            self.length = self.length.saturating_add(slice.len());
            self.slices.push(slice);
        }
    }

    /// Bytes.
    pub fn len(&self) -> usize {
        self.length
    }

    /// The pieces of at most `count` bytes from `offset`.
    pub fn range(&self, offset: usize, count: usize) -> impl Iterator<Item = VolatileSlice<'m>> {
        let (mut skip, mut left) = (offset, count);
        self.slices.iter().filter_map(move |slice| {
            let start = skip.min(slice.len());
            skip -= start;
            let take = left.min(slice.len() - start);
            left -= take;
            if take == 0 { None } else { slice.subslice(start, take).ok() }
        })
    }

    /// Copies from `offset`; the number of bytes that were there.
    pub fn read(&self, offset: usize, data: &mut [u8]) -> usize {
        let mut done = 0;
        for slice in self.range(offset, data.len()) {
            done += data.get_mut(done..).and_then(|rest| slice.read(rest, 0).ok()).unwrap_or(0);
        }
        done
    }

    /// Copies to `offset`; the number of bytes for which there was room.
    pub fn write(&self, offset: usize, data: &[u8]) -> usize {
        let mut done = 0;
        for slice in self.range(offset, data.len()) {
            done += data.get(done..).and_then(|rest| slice.write(rest, 0).ok()).unwrap_or(0);
        }
        done
    }
}

/// Copies a configuration space from `offset`; what lies beyond its end is 0.
pub(crate) fn read_config(space: &[u8], offset: u64, data: &mut [u8]) {
    data.fill(0);
    let rest = usize::try_from(offset).ok().and_then(|o| space.get(o..)).unwrap_or_default();
    for (to, from) in data.iter_mut().zip(rest) {
        *to = *from;
    }
}
