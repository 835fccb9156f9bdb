//! `restart`: a stop after which the same supervisor starts the container again, whoever asked for it and has gone meanwhile.
//! Not the restart policy ([`super::policy`]), by which a container goes on that nobody stopped.

use super::connection::{Connection, Role};
use super::core::Core;
use super::requests::Outcome;
use crate::protocol::Failure;
use std::time::Duration;

impl Core<'_> {
    /// Ends the run as `stop` does and begins the next one; the answer is that of a start.
    pub(super) fn restart_for(
        &mut self,
        (id, client): (u64, &mut Connection),
        signal: Option<i32>,
        timeout: Option<i64>,
    ) -> Result<Outcome, Failure> {
        let outcome = self.stop(client, signal, timeout);
        // It waits for the next run, not for the end of this one.
        client.role = Role::Idle;
        self.ready.push(id);
        // A supervisor that takes over finds it here.
        self.state.start_again = true;
        self.save();
        outcome
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
