//! A start that the hull takes its time over: a machine that boots.
//!
//! ```text
//! building ──► executing ──► running
//!    │ stop, kill  │ kill, `rm -f`; a stop when its patience is over
//!    └─────────────┴──► aborted: undone, exit code 137
//! ```
//!
//! As long as it is building no instruction of the workload's has run: whoever wants its end has it at once. A signal that
//! comes later waits for the workload to hear it, and so do changes that the hull would not know of yet.

use super::asking::is_change;
use super::channel::Channel;
use super::connection::{Connection, Role};
use super::core::Core;
use super::requests::SIGKILL;
use crate::hull::{Pending, Sandbox};
use crate::protocol::{Failure, Request, Response};
use types::{ErrorKind, Status};

/// Whether there is such a start, or such a command. In a guest there is none, and its agent must be small.
pub(super) const TAKES_TIME: bool = cfg!(feature = "host");
/// The exit code of what is killed.
const KILLED: i32 = 137;

/// How far a start is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Stage {
    /// The hull builds.
    Building,
    /// The order to execute the workload is given.
    Executing,
}

/// See the module.
pub(super) struct Starting {
    pub(super) sandbox: Box<dyn Sandbox>,
    pub(super) io: Channel,
    pub(super) pending: Box<dyn Pending>,
    pub(super) stage: Stage,
    /// To be undone, once nobody looks at it.
    pub(super) aborted: bool,
    /// The signal of a stop.
    pub(super) stop: Option<i32>,
}

impl Starting {
    pub(super) fn new(
        sandbox: Box<dyn Sandbox>,
        io: Channel,
        pending: Box<dyn Pending>,
        stage: Stage,
    ) -> Self {
        Self { sandbox, io, pending, stage, aborted: false, stop: None }
    }

    /// Whether a signal that ends the workload ends the start: it need not be asked, or will not be.
    pub(super) fn ends_by(&self, signal: i32) -> bool {
        self.stage == Stage::Building || signal == SIGKILL
    }

    fn keeps_waiting(&self, request: &Request) -> bool {
        match request {
            Request::Signal { signal } => self.stage == Stage::Executing && *signal != SIGKILL,
            Request::Restart { .. } => true,
            other => is_change(other),
        }
    }
}

impl Core<'_> {
    /// The start that takes its time.
    pub(super) fn under_way(&self) -> Option<&Starting> {
        self.starting.as_ref().filter(|_| TAKES_TIME)
    }

    /// The same, to be changed.
    pub(super) fn under_way_mut(&mut self) -> Option<&mut Starting> {
        self.starting.as_mut().filter(|_| TAKES_TIME)
    }

    /// Puts a request off that wants a container which runs or does not run, or is not being changed; gives back any other.
    pub(super) fn postpone(&mut self, id: u64, client: &mut Connection, request: Request) -> Option<Request> {
        let starts = self.under_way().is_some_and(|s| s.keeps_waiting(&request));
        if starts || (is_change(&request) && self.is_changing()) {
            self.postponed.push((id, request));
            client.role = Role::Postponed;
            return None;
        }
        Some(request)
    }

    /// The hull may be ready, or time is up.
    pub(super) fn start_proceeds(&mut self) {
        let Some(mut starting) = self.starting.take_if(|s| !s.aborted) else { return };
        let Some(result) = starting.pending.result() else {
            self.starting = Some(starting);
            return;
        };
        let Starting { sandbox, io, stage, stop, .. } = starting;
        let begun = match (result, stage) {
            (Err(e), _) => Err(self.undo(sandbox, e.into())),
            (Ok(()), Stage::Building) => self.execute(sandbox, io),
            (Ok(()), Stage::Executing) => {
                self.runs(sandbox, io);
                Ok(())
            }
        };
        match &mut self.starting {
            Some(next) => next.stop = stop,
            None => self.start_over(begun, stop),
        }
    }

    /// Tells the commands that wait, if there are any, and ends what could not begin.
    pub(super) fn report(&mut self, begun: Result<(), Failure>) {
        let ready = std::mem::take(&mut self.ready);
        let failed = begun.is_err();
        let response = match begun {
            Ok(()) => Response::Started { pid: self.state.pid },
            Err(failure) => {
                // They get the reason, not a stream's end.
                for client in ready.iter() {
                    if let Some(client) = self.clients.get_mut(client) {
                        client.role = Role::Idle;
                    }
                }
                self.failed_start(&failure);
                self.finish();
                Response::Failed(failure)
            }
        };
        for client in ready {
            let Some(client) = self.clients.get_mut(&client) else { continue };
            client.answer(response.clone());
            if failed || !matches!(client.role, Role::Attached(_)) {
                client.closing = true;
            }
        }
    }

    /// Undoes a start that nobody wants any more.
    pub(super) fn abort_start(&mut self) {
        let Some(Starting { sandbox, .. }) = self.starting.take() else { return };
        let message =
            format!("Container {} was stopped before its workload had started", self.bundle.id.as_str());
        let why = self.undo(sandbox, Failure { kind: ErrorKind::Conflict, message, exit_code: KILLED });
        self.kill_at = None;
        self.state.status = Status::Exited;
        self.event("die", &[("exitCode", KILLED.to_string())]);
        self.start_over(Err(why), None);
    }

    fn start_over(&mut self, begun: Result<(), Failure>, stop: Option<i32>) {
        let failed = begun.is_err();
        self.report(begun);
        if let Some(signal) = stop {
            self.tell_stop(signal);
        }
        let refusal = failed.then(|| self.not_running());
        self.resume_postponed(refusal);
    }
}
