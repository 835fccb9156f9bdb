//! `restart`: a stop after which the same supervisor starts the container again, whoever asked for it and has gone meanwhile.
//! Not the restart policy ([`super::policy`]), by which a container goes on that nobody stopped.

use super::asking::Next;
use super::core::Core;
use super::requests::Outcome;
use crate::hull::HullError;
use crate::protocol::{Failure, Request, Response};
use std::time::Duration;

impl Core<'_> {
    /// Ends the run as `stop` does and begins the next one; the answer is that of a start.
    pub(super) fn restart_for(
        &mut self,
        id: u64,
        signal: Option<i32>,
        timeout: Option<i64>,
    ) -> Result<Outcome, Failure> {
        self.ready.push(id);
        // A supervisor that takes over finds it here.
        self.state.start_again = true;
        self.state.stopped_by_user = true;
        self.save();
        if !self.bundle.auto_remove || self.main.is_none() {
            self.begin_stop(signal, timeout);
            return Ok(Outcome::Later);
        }
        if self.is_deaf() {
            self.thaw();
        }
        // A guest whose disks nobody was to see again does not write them out at its end, unless it is told to.
        let told = move |core: &mut Core<'_>, _: Result<Response, HullError>| {
            if core.state.start_again {
                core.begin_stop(signal, timeout);
            }
            Next::Done(Ok(Response::Done))
        };
        let next = self.first(|| Request::Restart { signal: None, timeout: None }, told);
        let _ = self.ask(0, next);
        Ok(Outcome::Later)
    }

    /// How long the next start is to wait for, if there is one.
    pub(super) fn next_start(&mut self, ran: Duration) -> Option<Duration> {
        if self.state.start_again {
            return Some(Duration::ZERO);
        }
        let state = &self.state;
        self.back_off.next(
            self.bundle.restart,
            state.exit_code,
            state.restart_count,
            state.stopped_by_user,
            ran,
        )
    }

    /// The time between two runs is over.
    pub(super) fn wait_is_over(&mut self) {
        self.waiting = None;
        if self.state.start_again {
            // It did not run, and so has not stopped.
            self.stopping = false;
            self.state.restart_count = 0;
            self.state.stopped_by_user = false;
        } else if self.state.stopped_by_user {
            return self.finish();
        } else {
            self.state.restart_count += 1;
        }
        let begun = self.start();
        if self.starting.is_none() {
            self.report(begun);
        }
    }
}
