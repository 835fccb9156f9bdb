//! Memory that the guest does not need goes back to the host. Source: the kernel's mm/page_reporting.c.

use std::fs;

/// Blocks of so many pages, as a power of two, and larger ones are reported to the host: 64 KiB. Linux begins at the size of
/// a huge page, and reports nothing while less than 32 such blocks, 64 MiB, are free in a zone, as in any small guest.
const ORDER: &str = "4";
const PARAMETER: &str = "/sys/module/page_reporting/parameters/page_reporting_order";

/// Has the kernel report small blocks, too. Its balloon driver, which sets the size, must be there.
pub fn report_small_blocks() {
    // A kernel without the parameter gives less back.
    let _ = fs::write(PARAMETER, ORDER);
}
