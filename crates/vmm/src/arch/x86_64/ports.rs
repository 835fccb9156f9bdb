//! I/O ports of the machine: COM1, and the registers that end it.

use crate::console::Console;
use crate::worker::lock;
use std::io;
use std::sync::Mutex;
use vm_superio::{Serial, Trigger, serial::NoEvents};
use vmm_sys_util::eventfd::EventFd;

/// COM1, 8 ports.
pub const COM1: u16 = 0x3f8;
/// Commands of the keyboard controller.
pub const I8042: u16 = 0x64;
/// The command that pulses the reset line.
pub const I8042_RESET: u8 = 0xfe;
/// Real-mode code of the reset vector: sends [`I8042_RESET`] to [`I8042`], and halts.
pub const RESET_CODE: [u8; 5] = [0xb0, I8042_RESET, 0xe6, I8042 as u8, 0xf4];
/// ACPI's SLEEP_CONTROL_REG of hardware-reduced machines.
pub const SLEEP_CONTROL: u16 = 0x600;
/// ACPI's SLEEP_STATUS_REG.
pub const SLEEP_STATUS: u16 = 0x601;
/// ACPI's RESET_REG.
pub const RESET: u16 = 0x602;
/// What is written to [`RESET`].
pub const RESET_VALUE: u8 = 1;
/// SLP_TYP of S5 (soft off) in the DSDT's `_S5_`.
pub const S5: u8 = 5;

/// What a write to a port asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Power {
    /// The guest is off.
    Off,
    /// The guest resets the machine.
    Reset,
}

/// Whether this write ends the machine (ACPI 6.5, 4.8.3.7: SLP_EN is bit 5, SLP_TYPx bits 2 to 4).
pub fn power(port: u16, data: &[u8]) -> Option<Power> {
    match (port, *data.first()?) {
        (SLEEP_CONTROL, value) if value & 0x20 != 0 && (value >> 2) & 7 == S5 => Some(Power::Off),
        (RESET, RESET_VALUE) | (I8042, I8042_RESET) => Some(Power::Reset),
        _ => None,
    }
}

/// COM1's interrupt line.
pub struct Line(EventFd);

impl Trigger for Line {
    type E = io::Error;

    fn trigger(&self) -> io::Result<()> {
        self.0.write(1)
    }
}

/// All ports.
pub struct Ports {
    com1: Mutex<Serial<Line, NoEvents, Console>>,
}

impl Ports {
    /// COM1 writes to the console and interrupts by the line.
    pub fn new(console: Console, line: EventFd) -> Self {
        Self { com1: Mutex::new(Serial::new(Line(line), console)) }
    }

    /// A vCPU reads; where nothing is, all bits are 1.
    pub fn read(&self, port: u16, data: &mut [u8]) {
        match port.checked_sub(COM1) {
            Some(offset @ 0..8) => {
                let mut com1 = lock(&self.com1);
                data.fill_with(|| com1.read(offset as u8));
            }
            // nothing is asleep; the keyboard controller is never busy
            _ if port == SLEEP_STATUS || port == I8042 => data.fill(0),
            _ => data.fill(0xff),
        }
    }

    /// A vCPU writes; what that means for the machine.
    pub fn write(&self, port: u16, data: &[u8]) -> Option<Power> {
        if let Some(offset @ 0..8) = port.checked_sub(COM1) {
            let mut com1 = lock(&self.com1);
            for byte in data {
                // An interrupt that cannot be counted is pending already.
                let _ = com1.write(offset as u8, *byte);
            }
            return None;
        }
        power(port, data)
    }

    /// The console's last lines.
    pub fn tail(&self, bytes: usize) -> String {
        lock(&self.com1).writer().tail(bytes)
    }

    /// Nothing more will be written.
    pub fn finish(&self) {
        lock(&self.com1).writer_mut().finish();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_guest_can_power_off_and_reset() {
        assert_eq!(power(SLEEP_CONTROL, &[0x34]), Some(Power::Off));
        assert_eq!(power(SLEEP_CONTROL, &[0x14]), None, "without SLP_EN");
        assert_eq!(power(SLEEP_CONTROL, &[0x20]), None, "S0");
        assert_eq!(power(RESET, &[1]), Some(Power::Reset));
        assert_eq!(power(I8042, &[0xfe]), Some(Power::Reset));
        assert_eq!(power(I8042, &[0xd1]), None);
        assert_eq!(power(RESET, &[]), None);
    }
}
