//! The terminal that we were called from.

use rustix::termios::{OptionalActions, Termios, isatty, tcgetattr, tcgetwinsize, tcsetattr};
use std::io::{self, stdin, stdout};

/// Whether stdin is a terminal.
pub fn stdin_is_terminal() -> bool {
    isatty(stdin())
}

/// Rows and columns of the terminal on stdout, or else on stdin.
pub fn size() -> Option<(u16, u16)> {
    let size = tcgetwinsize(stdout()).or_else(|_| tcgetwinsize(stdin())).ok()?;
    (size.ws_row > 0 && size.ws_col > 0).then_some((size.ws_row, size.ws_col))
}

/// Columns of the terminal on stdout.
pub fn columns() -> Option<usize> {
    tcgetwinsize(stdout()).ok().map(|s| s.ws_col.into()).filter(|c| *c > 0)
}

/// The terminal on stdin in raw mode; as it was before when this is dropped.
pub struct Raw(Termios);

impl Raw {
    /// Switches it. None where stdin is no terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        if !stdin_is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin())?;
        let mut raw = before.clone();
        raw.make_raw();
        tcsetattr(stdin(), OptionalActions::Drain, &raw)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Raw {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.0);
    }
}

/// A terminal without echo, for passwords; as it was before when this is dropped.
pub struct Silent(Termios);

impl Silent {
    /// Switches it. None where stdin is no terminal.
    pub fn enter() -> io::Result<Option<Self>> {
        if !stdin_is_terminal() {
            return Ok(None);
        }
        let before = tcgetattr(stdin())?;
        let mut silent = before.clone();
        silent.local_modes.remove(rustix::termios::LocalModes::ECHO);
        tcsetattr(stdin(), OptionalActions::Drain, &silent)?;
        Ok(Some(Self(before)))
    }
}

impl Drop for Silent {
    fn drop(&mut self) {
        let _ = tcsetattr(stdin(), OptionalActions::Drain, &self.0);
    }
}
