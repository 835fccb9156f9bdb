//! The buffers of one request, as the driver chained them.

use crate::virtio::DeviceError;
use std::ops::Deref;
use virtio_queue::DescriptorChain;
use vm_memory::{Bytes, GuestAddress, GuestMemoryMmap};

/// A run of guest memory; nothing is known about its bounds.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// First byte.
    pub address: GuestAddress,
    /// Bytes.
    pub length: u32,
}

/// A list of segments that is consumed from both ends.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Segments(Vec<Segment>);

impl Segments {
    /// Sum of the lengths; a chain has less than 4 GiB.
    pub fn length(&self) -> u64 {
        self.0.iter().map(|segment| u64::from(segment.length)).sum()
    }

    /// The segments.
    pub fn iter(&self) -> impl Iterator<Item = &Segment> {
        self.0.iter()
    }

    /// Takes as many bytes from the front as `buffer` has; whether there were enough and all in guest memory.
    pub fn take(&mut self, memory: &GuestMemoryMmap, mut buffer: &mut [u8]) -> bool {
        while !buffer.is_empty() {
            let Some(first) = self.0.first_mut() else { return false };
            let now = (first.length as usize).min(buffer.len());
            let (part, rest) = buffer.split_at_mut(now);
            if memory.read_slice(part, first.address).is_err() {
                return false;
            }
            buffer = rest;
            first.length -= now as u32;
            first.address.0 += now as u64;
            if first.length == 0 {
                self.0.remove(0);
            }
        }
        true
    }

    /// Takes the last byte away, and says where it is.
    pub fn take_last(&mut self) -> Option<GuestAddress> {
        let last = self.0.last_mut()?;
        last.length -= 1;
        let address = GuestAddress(last.address.0 + u64::from(last.length));
        if last.length == 0 {
            self.0.pop();
        }
        Some(address)
    }
}

/// What the device reads and then writes (VIRTIO 1.2, 2.7.4.2: first all readable, then all writable).
pub fn buffers<M>(chain: DescriptorChain<M>, most: u16) -> Result<(Segments, Segments), DeviceError>
where
    M: Deref<Target = GuestMemoryMmap>,
{
    let mut readable = Vec::new();
    let mut writable = Vec::new();
    for descriptor in chain {
        if readable.len() + writable.len() >= usize::from(most) {
            return Err(DeviceError::Driver("a chain has more descriptors than its queue".into()));
        }
        let segment = Segment { address: descriptor.addr(), length: descriptor.len() };
        let end = segment.address.0.checked_add(u64::from(segment.length));
        if end.is_none() {
            return Err(DeviceError::Driver("a buffer goes beyond the end of the address space".into()));
        }
        match (descriptor.is_write_only(), writable.is_empty()) {
            _ if segment.length == 0 => {}
            (true, _) => writable.push(segment),
            (false, true) => readable.push(segment),
            (false, false) => {
                return Err(DeviceError::Driver("a readable buffer follows a writable one".into()));
            }
        }
    }
    Ok((Segments(readable), Segments(writable)))
}
