//! What an operator should know and nobody asked for, on standard error. Bounded, as guests can cause it.

use std::fmt;
use std::io::Write;
use std::sync::atomic::{AtomicU32, Ordering};

const MAX: u32 = 100;
static WRITTEN: AtomicU32 = AtomicU32::new(0);

/// Writes a line, unless there were too many.
pub fn note(text: fmt::Arguments) {
    let _ = match WRITTEN.fetch_update(Ordering::Relaxed, Ordering::Relaxed, |n| (n <= MAX).then_some(n + 1))
    {
        Ok(MAX) => writeln!(std::io::stderr(), "vmm: more of this is left out"),
        Ok(_) => writeln!(std::io::stderr(), "vmm: {text}"),
        Err(_) => Ok(()),
    };
}
