//! The health check: a command in the container, now and then, and the verdict of its results (moby, `daemon/health.go`).

use super::core::Core;
use super::exec::{Purpose, later};
use crate::protocol::Failure;
use std::time::{Duration, Instant};
use types::{HealthCheck, HealthLogEntry, HealthState, HealthStatus, Status};

/// Docker's `maxOutputLen`.
const MAX_OUTPUT: usize = 4096;
/// Docker's `maxLogEntries`.
const MAX_RESULTS: usize = 5;
/// Results that change no verdict are written at most this often.
const SAVE_PAUSE: Duration = Duration::from_secs(1);

/// The check of a running container.
pub(super) struct Health {
    /// When the next one is due; none while one runs.
    pub(super) due: Option<Instant>,
    started: Instant,
    saved: Option<Instant>,
}

impl Health {
    /// Of a container that has run for so long.
    pub(super) fn begin(check: &HealthCheck, ran: Duration) -> Self {
        let now = Instant::now();
        let mut health = Self { due: None, started: now.checked_sub(ran).unwrap_or(now), saved: None };
        health.schedule(check, HealthStatus::Starting);
        health
    }

    fn in_start_period(&self, check: &HealthCheck) -> bool {
        self.started.elapsed() < Duration::from_nanos(check.start_period_ns)
    }

    fn schedule(&mut self, check: &HealthCheck, status: HealthStatus) {
        let starting = status == HealthStatus::Starting && self.in_start_period(check);
        self.due = Some(later(if starting { check.start_interval_ns } else { check.interval_ns }));
    }
}

/// One check that runs.
pub(super) struct Check {
    start_ns: i64,
    deadline: Instant,
    output: Vec<u8>,
    /// It was killed for it.
    pub(super) timed_out: bool,
}

impl Check {
    /// When it has had its time.
    pub(super) fn deadline(&self) -> Instant {
        self.deadline
    }

    pub(super) fn output(&mut self, bytes: &[u8]) {
        let room = MAX_OUTPUT.saturating_sub(self.output.len());
        self.output.extend_from_slice(bytes.get(..room.min(bytes.len())).unwrap_or_default());
    }
}

/// Takes a result in; whether the verdict changed.
fn judge(state: &mut HealthState, entry: HealthLogEntry, retries: u32, lenient: bool) -> bool {
    let before = state.status;
    if entry.exit_code == 0 {
        state.failing_streak = 0;
        state.status = HealthStatus::Healthy;
    } else if !(lenient && state.status == HealthStatus::Starting) {
        state.failing_streak = state.failing_streak.saturating_add(1);
        if state.failing_streak >= retries {
            state.status = HealthStatus::Unhealthy;
        }
    }
    state.log.push(entry);
    if state.log.len() > MAX_RESULTS {
        state.log.remove(0);
    }
    state.status != before
}

impl Core<'_> {
    /// Starts a check.
    pub(super) fn check_health(&mut self) {
        let (Some(config), Some(health)) = (self.bundle.health.clone(), &mut self.health) else { return };
        health.due = None;
        let check = Check {
            start_ns: sys::host::now_ns(),
            deadline: later(config.timeout_ns),
            output: Vec::new(),
            timed_out: false,
        };
        let mut process = self.bundle.spec.process().clone().unwrap_or_default();
        process.set_args(Some(config.command)).set_terminal(Some(false));
        let name: String = match sys::host::random::<32>() {
            Ok(bytes) => bytes.iter().map(|b| format!("{b:02x}")).collect(),
            Err(_) => String::from("health"),
        };
        let (start_ns, deadline) = (check.start_ns, check.deadline);
        let started = self.exec_start(&name, &process, [false, true, true], None, 0, Purpose::Health(check));
        if let Err(failure) = started {
            let check = Check { start_ns, deadline, output: Vec::new(), timed_out: false };
            self.health_failed(check, failure);
        }
    }

    /// A check could not be executed.
    pub(super) fn health_failed(&mut self, mut check: Check, why: Failure) {
        if !check.timed_out {
            check.output = why.message.into_bytes();
        }
        self.health_result(check, -1);
    }

    /// A check has ended.
    pub(super) fn health_result(&mut self, check: Check, code: i32) {
        let (Some(config), Some(health), Some(state)) =
            (&self.bundle.health, &mut self.health, &mut self.state.health)
        else {
            return;
        };
        let mut output = String::from_utf8_lossy(&check.output).into_owned();
        if check.timed_out {
            let limit = Duration::from_nanos(config.timeout_ns);
            output = format!("Health check exceeded timeout ({limit:?}): {output}");
        }
        let entry = HealthLogEntry {
            start_ns: check.start_ns,
            end_ns: sys::host::now_ns(),
            exit_code: if check.timed_out { -1 } else { code },
            output,
        };
        let lenient = health.in_start_period(config);
        let changed = judge(state, entry, config.retries.max(1), lenient);
        let status = state.status;
        health.schedule(config, status);
        if changed || health.saved.is_none_or(|at| at.elapsed() >= SAVE_PAUSE) {
            health.saved = Some(Instant::now());
            self.save();
        }
        if changed && matches!(self.state.status, Status::Running | Status::Paused) {
            self.event(&format!("health_status: {}", status.as_str()), &[]);
        }
    }

    /// After a pause the next check is a whole interval away.
    pub(super) fn resume_health(&mut self) {
        if let (Some(config), Some(health), Some(state)) =
            (&self.bundle.health, &mut self.health, &self.state.health)
            && health.due.is_some()
        {
            health.schedule(config, state.status);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn result(exit_code: i32) -> HealthLogEntry {
        HealthLogEntry { exit_code, ..HealthLogEntry::default() }
    }

    #[test]
    fn verdicts_are_dockers() {
        let mut state = HealthState::default();
        assert!(!judge(&mut state, result(1), 2, true));
        assert_eq!((state.status, state.failing_streak), (HealthStatus::Starting, 0));
        assert!(!judge(&mut state, result(1), 2, false));
        assert!(judge(&mut state, result(1), 2, false));
        assert_eq!(state.status, HealthStatus::Unhealthy);
        assert!(judge(&mut state, result(0), 2, false));
        assert_eq!((state.status, state.failing_streak), (HealthStatus::Healthy, 0));
        // The start period is over with the first success.
        assert!(!judge(&mut state, result(1), 2, true));
        assert_eq!(state.failing_streak, 1);
        for _ in 0..9 {
            judge(&mut state, result(1), 2, false);
        }
        assert_eq!(state.log.len(), MAX_RESULTS);
    }
}
