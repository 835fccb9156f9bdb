//! What a guest reads of a device's registers: memory, a page for each device, that KVM maps for reading only. So a look at
//! a register costs no exit, and waits for no device that is at work. What the guest writes still comes to the transport
//! ([`crate::mmio`]), which keeps the page up to date; nothing is decided here.
//!
//! Source: Documentation/virt/kvm/api.rst, KVM_SET_USER_MEMORY_REGION with KVM_MEM_READONLY.

use std::sync::atomic::{AtomicU32, Ordering};

/// Bytes of a page, which are a device's window.
pub const BYTES: usize = 4096;

/// The page of one device.
#[repr(C, align(4096))]
pub struct Registers([AtomicU32; BYTES / 4]);

impl Registers {
    /// New pages, one behind the other, of zeros. They last as long as the process: a guest may read them until its end.
    pub fn pages(count: usize) -> &'static [Self] {
        let pages: Vec<Self> = (0..count).map(|_| Self(std::array::from_fn(|_| AtomicU32::new(0)))).collect();
        Vec::leak(pages)
    }

    /// The register at a multiple of four below [`BYTES`].
    pub(crate) fn word(&self, offset: u64) -> &AtomicU32 {
        &self.0[(offset as usize % BYTES) / 4]
    }

    /// Shows a value there.
    pub(crate) fn set(&self, offset: u64, value: u32) {
        self.word(offset).store(value.to_le(), Ordering::SeqCst);
    }

    /// Shows bytes from a multiple of four on, as far as there is room.
    pub(crate) fn set_bytes(&self, offset: u64, bytes: &[u8]) {
        let words = self.0.iter().skip(offset as usize / 4);
        for (word, bytes) in words.zip(bytes.chunks(4)) {
            let mut value = [0; 4];
            value[..bytes.len()].copy_from_slice(bytes);
            word.store(u32::from_ne_bytes(value), Ordering::SeqCst);
        }
    }

    /// Reads as a guest does; beyond the page is nothing.
    pub fn read(&self, offset: u64, data: &mut [u8]) {
        for (index, byte) in (0..).zip(data) {
            let at = offset.checked_add(index).and_then(|at| usize::try_from(at).ok());
            let word = at.and_then(|at| Some((self.0.get(at / 4)?, at % 4)));
            *byte = word.map_or(0, |(word, at)| word.load(Ordering::SeqCst).to_ne_bytes()[at]);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_page_is_read_as_it_was_shown_and_ends_with_itself() {
        let pages = Registers::pages(2);
        assert_eq!(&raw const pages[1] as usize - &raw const pages[0] as usize, BYTES);
        assert_eq!(&raw const pages[0] as usize % BYTES, 0);
        pages[0].set(0x10, 0x1234_5678);
        pages[0].set_bytes(0x100, b"abcdef");
        let read = |offset, count| {
            let mut data = vec![0xff; count];
            pages[0].read(offset, &mut data);
            data
        };
        assert_eq!(read(0x10, 4), [0x78, 0x56, 0x34, 0x12]);
        assert_eq!(read(0x11, 2), [0x56, 0x34]);
        assert_eq!(read(0x102, 6), *b"cdef\0\0");
        assert_eq!(read(0xffe, 4), [0; 4]);
        assert_eq!(read(u64::MAX, 4), [0; 4]);
        pages[0].set_bytes(0xffc, b"abcdef");
        assert_eq!(read(0xffc, 5), *b"abcd\0");
        assert_eq!(pages[1].word(0).load(Ordering::SeqCst), 0);
    }
}
