//! Output on its way from a process to the log and to clients.
//!
//! A client that does not keep up stops the reading of the output it wants, and so the workload: nothing is queued beyond
//! one read for each client.

use super::connection::{Connection, Role};
use super::core::Core;
use super::exec::Purpose;
use crate::logs::Source;
use crate::protocol::MAX_DATA;

/// Reads in a row before others have their turn.
const TURNS: usize = 16;
/// Most bytes that are taken from an ended process for clients that are behind: two full pipes.
const LAST_WORDS: usize = 2 << 20;

impl Core<'_> {
    pub(super) fn take_buffer(&mut self) -> Vec<u8> {
        self.untidy = true;
        let mut buffer = std::mem::take(&mut self.buffer);
        buffer.resize(MAX_DATA, 0);
        buffer
    }

    /// Passes on what there is of one output of the main process.
    pub(super) fn main_output(&mut self, source: Source) {
        let mut buffer = self.take_buffer();
        for _ in 0..TURNS {
            let blocked = self.clients.values().any(|c| c.is_behind() && c.reads(source));
            if blocked || !self.main_piece(source, &mut buffer) {
                break;
            }
        }
        self.buffer = buffer;
        if self.main.as_ref().is_some_and(|m| m.is_draining() && !m.io.has_output()) {
            self.run_over();
        }
    }

    /// One read; whether there may be more.
    fn main_piece(&mut self, source: Source, buffer: &mut [u8]) -> bool {
        let Some(main) = &mut self.main else { return false };
        let Some(n) = main.io.read(source, buffer) else { return false };
        let now = sys::host::now_ns();
        if n == 0 {
            main.io.close(source);
            if let Some(log) = &mut self.log {
                log.end(source, now);
            }
            return false;
        }
        let bytes = buffer.get(..n).unwrap_or_default();
        // Clients first: they work on it while the log is written.
        for client in self.clients.values_mut().filter(|c| c.reads(source)) {
            client.output(source, bytes);
        }
        if let Some(log) = &mut self.log {
            log.write(source, bytes, now);
        }
        true
    }

    /// After the end: takes what is left in the pipes, however slow clients are.
    pub(super) fn last_words(&mut self) {
        let mut buffer = self.take_buffer();
        for source in [Source::Stdout, Source::Stderr] {
            for _ in 0..LAST_WORDS / MAX_DATA {
                if !self.main_piece(source, &mut buffer) {
                    break;
                }
            }
        }
        self.buffer = buffer;
    }

    /// Passes on what there is of one output of an exec session.
    pub(super) fn exec_output(&mut self, id: u64, source: Source) {
        let mut buffer = self.take_buffer();
        for _ in 0..TURNS {
            let behind = self
                .execs
                .get(&id)
                .and_then(|e| self.clients.get(&e.client))
                .is_some_and(Connection::is_behind);
            if behind || !self.exec_piece(id, source, &mut buffer) {
                break;
            }
        }
        self.buffer = buffer;
        if self.execs.get(&id).is_some_and(|e| e.has_ended() && !e.io.has_output()) {
            self.exec_over(id);
        }
    }

    fn exec_piece(&mut self, id: u64, source: Source, buffer: &mut [u8]) -> bool {
        let Some(exec) = self.execs.get_mut(&id) else { return false };
        let Some(n) = exec.io.read(source, buffer) else { return false };
        if n == 0 {
            exec.io.close(source);
            return false;
        }
        let bytes = buffer.get(..n).unwrap_or_default();
        match &mut exec.purpose {
            Purpose::Session { .. } => {
                let client = self.clients.get_mut(&exec.client);
                if let Some(client) = client.filter(|c| c.role == Role::Exec(id)) {
                    client.output(source, bytes);
                }
            }
            Purpose::Health(check) => check.output(bytes),
        }
        true
    }

    pub(super) fn exec_last_words(&mut self, id: u64) {
        let mut buffer = self.take_buffer();
        for source in [Source::Stdout, Source::Stderr] {
            for _ in 0..LAST_WORDS / MAX_DATA {
                if !self.exec_piece(id, source, &mut buffer) {
                    break;
                }
            }
        }
        self.buffer = buffer;
    }
}
