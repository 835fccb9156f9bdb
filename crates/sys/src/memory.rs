//! Memory that a process which waits for long need not have mapped.

/// Lets go of the pages of the program's own code and constants, most of which only its start needs. Those that are used
/// again are mapped anew, from the page cache as a rule; others the kernel can have. A program's file does not change while
/// it is executed (execve(2), ETXTBSY).
pub fn unmap_program() {
    #[cfg(target_env = "gnu")]
    {
        unsafe extern "C" {
            // Of the linker's making (ld(1), default linker script; lld does the same): addresses, not values.
            static __executable_start: u8;
            static etext: u8;
        }
        let (start, end) = (&raw const __executable_start, &raw const etext);
        let length = (end as usize).saturating_sub(start as usize);
        // SAFETY: the range holds headers, constants and code, all of them mapped privately from the file and never written
        // (relocated data lies after `etext`): what is dropped is read again from where it came from.
        unsafe {
            libc::madvise(start.cast_mut().cast(), length, libc::MADV_DONTNEED);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_program_goes_on_without_its_pages() {
        static TEXT: &str = "constants stay what they are";
        unmap_program();
        assert_eq!(TEXT.split(' ').count(), 5);
        unmap_program();
    }
}
