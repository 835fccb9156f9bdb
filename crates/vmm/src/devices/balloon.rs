//! virtio-balloon: memory that the guest does not need goes back to the host. Source: VIRTIO 1.2, 5.5.
//!
//! Inflating takes pages from the guest at the host's wish ([`Balloon::set_target`]); with free page reporting the guest
//! gives what it has no use for by itself. A page that is given back reads as zeros when the guest touches it again.
//!
//! Of a huge page the guest gives parts, and the host's kernel would make it whole again in its own time (khugepaged, of whose
//! parts by default all but one may be missing): such a page stays small until the guest has given all of it.

use super::{IN, RING_FEATURES, Ring, Segments, read_config};
use crate::memory::HUGE_PAGE;
use crate::virtio::{Activation, Command, Device, DeviceError, Interest, Memory};
use std::collections::BTreeSet;
use vm_memory::{
    GuestAddress, GuestAddressSpace, GuestMemoryBackend, GuestMemoryMmap, GuestMemoryRegion, GuestRegionMmap,
    VolatileSlice,
};

/// Device type, VIRTIO 1.2, 5.5.1.
pub const KIND: u32 = 5;
/// Of the queues for inflating, deflating and reporting. Without the queues of statistics and hints, which are not
/// offered, Linux counts the third one as we do.
const SIZES: [u16; 3] = [128, 128, 128];
/// Most huge pages that stay small: each may split a mapping, of which a process has 65530 (vm.max_map_count).
const MOST_SMALL: usize = 16 << 10;
/// The unit of the device, whatever the host's and guest's pages are (VIRTIO_BALLOON_PFN_SHIFT).
const PAGE: u64 = 4096;
/// Pages of a MiB.
pub const PAGES_PER_MIB: u64 = (1 << 20) / PAGE;
/// Page numbers in one chain; Linux sends 256, Windows 1024.
const NUMBERS: usize = 1024;
/// Chains of one turn: each may cost as many system calls as it has pages.
const TURNS: u16 = 32;

/// VIRTIO_BALLOON_F_PAGE_REPORTING. Without DEFLATE_ON_OOM, with which a guest would take pages back: what it has given is
/// taken from it as a limit.
const PAGE_REPORTING: u64 = 1 << 5;

/// The device.
#[derive(Default)]
pub struct Balloon {
    /// Pages that the guest is to give.
    target: u32,
    /// Pages that it has given, as it says.
    actual: [u8; 4],
    /// Where the huge pages of this process are that are to stay small.
    small: BTreeSet<usize>,
    active: Option<Active>,
}

struct Active {
    memory: Memory,
    rings: Vec<Ring>,
}

impl Balloon {
    /// An empty balloon.
    pub fn new() -> Self {
        Self::default()
    }

    /// Asks the guest to give so much of its memory, once it is told that the configuration changed.
    pub fn set_target(&mut self, mib: u64) {
        self.target = u32::try_from(mib.saturating_mul(PAGES_PER_MIB)).unwrap_or(u32::MAX);
    }

    /// Serves a queue.
    fn serve(&mut self, index: usize) -> Result<(), DeviceError> {
        let Some(Active { memory, rings, .. }) = &mut self.active else { return Ok(()) };
        let Some(ring) = rings.get_mut(index) else { return Ok(()) };
        let memory = memory.memory();
        let small = &mut self.small;
        let mut turns = TURNS;
        while let Some(chain) = ring.next(&memory, &mut turns)? {
            match index {
                0 => inflate(&memory, small, &chain.readable)?,
                // The host's kernel gives pages when the guest touches them.
                1 => {}
                _ => report(&memory, small, &chain.writable),
            }
            ring.used(&memory, chain.head, 0)?;
        }
        ring.signal(&memory)
    }
}

/// Gives the pages back whose numbers stand there.
fn inflate(
    memory: &GuestMemoryMmap,
    small: &mut BTreeSet<usize>,
    numbers: &Segments,
) -> Result<(), DeviceError> {
    if numbers.len() > NUMBERS * 4 {
        return Err(DeviceError::Driver(format!("the balloon is given more than {NUMBERS} pages at a time")));
    }
    let mut bytes = vec![0; numbers.len()];
    numbers.read(0, &mut bytes);
    // Neighbours go together. Linux numbers them downwards as a rule.
    let mut run: Option<(u64, u64)> = None;
    for number in bytes.chunks_exact(4) {
        let page = u64::from(u32::from_le_bytes([number[0], number[1], number[2], number[3]]));
        run = match run {
            Some((first, count)) if page == first + count => Some((first, count + 1)),
            Some((first, count)) if page + 1 == first => Some((page, count + 1)),
            _ => {
                run.into_iter().for_each(|run| discard_pages(memory, small, run));
                Some((page, 1))
            }
        };
    }
    run.into_iter().for_each(|run| discard_pages(memory, small, run));
    Ok(())
}

/// Pages outside of memory are none.
fn discard_pages(memory: &GuestMemoryMmap, small: &mut BTreeSet<usize>, (first, count): (u64, u64)) {
    // Page numbers have 32 bits.
    let slices = memory.get_slices(GuestAddress(first * PAGE), (count * PAGE) as usize);
    slices.map_while(Result::ok).for_each(|slice| discard(memory, small, &slice));
}

/// Gives back what the guest reports as free.
fn report(memory: &GuestMemoryMmap, small: &mut BTreeSet<usize>, free: &Segments) {
    free.range(0, free.len()).for_each(|slice| discard(memory, small, &slice));
}

/// Gives the whole pages of a piece of guest memory back to the host.
fn discard(memory: &GuestMemoryMmap, small: &mut BTreeSet<usize>, slice: &VolatileSlice) {
    let page = rustix::param::page_size();
    let start = slice.ptr_guard_mut().as_ptr() as usize;
    let Some(end) = start.checked_add(slice.len()).map(|end| end / page * page) else { return };
    let start = start.next_multiple_of(page);
    // Of a shared mapping only the removal from its file gives memory back.
    let shared = memory.iter().any(|region| region.file_offset().is_some());
    let advice = if shared { libc::MADV_REMOVE } else { libc::MADV_DONTNEED };
    if start < end {
        // SAFETY: the range lies in guest memory, which is mapped as long as `memory` is borrowed and of which nobody
        // holds references. If the kernel refuses, the memory is not given back.
        unsafe { libc::madvise(start as *mut libc::c_void, end - start, advice) };
        if !shared {
            size_pages(memory, small, start, end);
        }
    }
}

/// Keeps the huge pages small that a range covers a part of, and lets those be huge again that it covers.
fn size_pages(memory: &GuestMemoryMmap, small: &mut BTreeSet<usize>, start: usize, end: usize) {
    let bounds =
        |region: &GuestRegionMmap| (region.as_ptr() as usize, region.as_ptr() as usize + region.size());
    let Some((first, last)) = memory.iter().map(bounds).find(|(first, last)| *first <= start && end <= *last)
    else {
        return;
    };
    for page in (start / HUGE_PAGE * HUGE_PAGE..end).step_by(HUGE_PAGE) {
        let (from, to) = (page.max(first), (page + HUGE_PAGE).min(last));
        let whole = start <= from && to <= end;
        if whole != small.contains(&page) || (!whole && small.len() >= MOST_SMALL) {
            continue;
        }
        let advice = if whole { libc::MADV_HUGEPAGE } else { libc::MADV_NOHUGEPAGE };
        // SAFETY: the range lies in guest memory, as above, and its content stays what it is.
        unsafe { libc::madvise(from as *mut libc::c_void, to - from, advice) };
        if whole {
            small.remove(&page)
        } else {
            small.insert(page)
        };
    }
}

impl Device for Balloon {
    fn command(&mut self, command: Command) -> Result<bool, DeviceError> {
        let Command::Balloon(mib) = command else { return Ok(false) };
        self.set_target(mib);
        Ok(true)
    }

    fn kind(&self) -> u32 {
        KIND
    }

    fn queue_sizes(&self) -> &[u16] {
        &SIZES
    }

    fn features(&self) -> u64 {
        RING_FEATURES | PAGE_REPORTING
    }

    fn read_config(&self, offset: u64, data: &mut [u8]) {
        let mut space = [0; 8];
        space[..4].copy_from_slice(&self.target.to_le_bytes());
        space[4..].copy_from_slice(&self.actual);
        read_config(&space, offset, data);
    }

    /// The driver says how much it has given.
    fn write_config(&mut self, offset: u64, data: &[u8]) {
        for (index, byte) in data.iter().enumerate() {
            let at = offset.checked_add(index as u64).and_then(|at| at.checked_sub(4));
            let at = at.and_then(|at| usize::try_from(at).ok());
            if let Some(to) = at.and_then(|at| self.actual.get_mut(at)) {
                *to = *byte;
            }
        }
    }

    fn activate(&mut self, activation: Activation) -> Result<(), DeviceError> {
        let (memory, rings) = Ring::all(activation, 2)?;
        let count = rings.len();
        self.active = Some(Active { memory, rings });
        (0..count).try_for_each(|index| self.serve(index))
    }

    fn reset(&mut self) {
        self.active = None;
        self.actual = [0; 4];
    }

    fn interests(&self) -> Vec<Interest> {
        let rings = self.active.iter().flat_map(|active| &active.rings);
        (0..).zip(rings).map(|(token, ring)| Interest { events: IN, ..ring.interest(token) }).collect()
    }

    fn ready(&mut self, token: u64, _events: u32) -> Result<(), DeviceError> {
        let index = usize::try_from(token).unwrap_or(usize::MAX);
        if let Some(ring) = self.active.as_ref().and_then(|active| active.rings.get(index)) {
            ring.kicked();
        }
        self.serve(index)
    }
}

#[cfg(test)]
#[path = "balloon_tests.rs"]
mod tests;
