//! The caller's own end of a process's streams: terminal, signals, and the loop between them and a supervisor.

pub mod pump;
pub mod signals;
pub mod terminal;
