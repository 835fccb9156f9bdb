//! Memory that a process keeps: how much of its program, and how many heaps.

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

/// Keeps the C library from giving each thread a heap of its own (`mallopt(3)`): threads share this many. A server whose threads
/// come and go would hold the memory of all of them. For a process that may open nothing it must be one: before the library makes
/// another one smaller it opens /proc/sys/vm/overcommit_memory, and before it makes the ninth it counts the processors.
pub fn share_heaps(most: i32) {
    #[cfg(target_env = "gnu")]
    // SAFETY: sets a number of the allocator's.
    unsafe {
        libc::mallopt(libc::M_ARENA_MAX, most);
    }
    #[cfg(not(target_env = "gnu"))]
    let _ = most;
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
