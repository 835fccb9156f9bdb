//! Waiting for a container's end, step by step: for a caller that waits for many at once and must not block.

use crate::recover::Liveness;
use crate::{Engine, EngineError, Result};
use sandbox::client::{ClientError, WaitCondition};
use types::Status;

/// What there is to wait for.
#[derive(Debug)]
pub enum Waiting {
    /// Nothing: it ended, with this code.
    Ended(i64),
    /// Its supervisor answers when it has. Without an answer, ask again.
    Running {
        /// What to wait for.
        answer: sandbox::client::Waiting,
        /// How the run ended, where the supervisor is on its way out.
        last: Option<i64>,
    },
    /// It does not run.
    NotStarted {
        /// When it last was started, in nanoseconds since the epoch: give that when asking again.
        since: i64,
        /// How its last run ended, if there was one.
        last: Option<i64>,
    },
}

impl Engine {
    /// Finds out how to wait for a container. `since` is when it had last been started when it was first asked: a run that
    /// began and ended meanwhile has ended.
    pub fn begin_wait(&self, name: &str, condition: WaitCondition, since: Option<i64>) -> Result<Waiting> {
        let container = self.find(name)?;
        match self.liveness(&container)? {
            Liveness::Supervised(state) if !state.status.is_active() && state.status != Status::Exited => {
                // Another command holds it, perhaps to start it.
                Ok(Waiting::NotStarted { since: since.unwrap_or(state.started_ns), last: None })
            }
            Liveness::Supervised(state) => {
                let last = (state.status == Status::Exited).then(|| state.exit_code.into());
                match self.client(&container) {
                    Ok(client) => Ok(Waiting::Running { answer: client.waiting(condition)?, last }),
                    Err(EngineError::NotRunning(_) | EngineError::Client(ClientError::Gone)) => {
                        Ok(Waiting::NotStarted { since: since.unwrap_or(0), last })
                    }
                    Err(e) => Err(e),
                }
            }
            Liveness::Ended(state, _lock) => {
                let ended = match condition {
                    WaitCondition::NotRunning => true,
                    WaitCondition::NextExit => since.is_some_and(|since| state.started_ns > since),
                    WaitCondition::Removed => false,
                };
                Ok(if ended {
                    Waiting::Ended(state.exit_code.into())
                } else {
                    let last = (state.started_ns > 0).then(|| state.exit_code.into());
                    Waiting::NotStarted { since: since.unwrap_or(state.started_ns), last }
                })
            }
        }
    }
}
