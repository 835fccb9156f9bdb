//! Signals as something to poll.

use signal_hook::consts::signal::{
    SIGALRM, SIGHUP, SIGINT, SIGPROF, SIGQUIT, SIGTERM, SIGUSR1, SIGUSR2, SIGVTALRM, SIGWINCH,
};
use signal_hook::iterator::backend::SignalDelivery;
use signal_hook::iterator::exfiltrator::SignalOnly;
use std::io;
use std::os::fd::{AsFd, BorrowedFd};
use std::os::unix::net::UnixStream;

/// Those that are passed on to the workload. The terminal's job control (SIGTSTP and its kin) stays ours.
const PROXIED: [i32; 9] = [SIGHUP, SIGINT, SIGQUIT, SIGUSR1, SIGUSR2, SIGALRM, SIGTERM, SIGVTALRM, SIGPROF];

/// What arrived.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Arrived {
    /// The window has another size.
    Resized,
    /// Anything else.
    Signal(i32),
}

/// Catches signals from now on.
pub struct Signals(SignalDelivery<UnixStream, SignalOnly>);

impl Signals {
    /// `all`: those to be passed on; otherwise those that would end us. `resizes`: changes of the window.
    pub fn catch(all: bool, resizes: bool) -> io::Result<Self> {
        let ends = [SIGHUP, SIGINT, SIGQUIT, SIGTERM];
        let list = if all { &PROXIED[..] } else { &ends };
        let (read, write) = UnixStream::pair()?;
        let list = list.iter().copied().chain(resizes.then_some(SIGWINCH));
        Ok(Self(SignalDelivery::with_pipe(read, write, SignalOnly, list)?))
    }

    /// To be polled for reading.
    pub fn fd(&self) -> BorrowedFd<'_> {
        self.0.get_read().as_fd()
    }

    /// What arrived since the last time.
    pub fn pending(&mut self) -> Vec<Arrived> {
        let one = |s| if s == SIGWINCH { Arrived::Resized } else { Arrived::Signal(s) };
        self.0.pending().map(one).collect()
    }
}

/// Whether a signal asks a program to end.
pub fn ends(signal: i32) -> bool {
    matches!(signal, SIGINT | SIGTERM)
}
