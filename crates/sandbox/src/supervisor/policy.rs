//! When a container that ended is started again: Docker's restart manager as a pure state machine.

use std::time::Duration;
use types::RestartPolicy;

const FIRST: Duration = Duration::from_millis(100);
const LONGEST: Duration = Duration::from_secs(60);
/// A run of this length was a good one: the next wait is the first again.
const GOOD_RUN: Duration = Duration::from_secs(10);

/// Remembers how long the last wait was.
#[derive(Debug, Default)]
pub(super) struct BackOff {
    last: Duration,
}

impl BackOff {
    /// How long to wait before the next start; none if there is none.
    pub(super) fn next(
        &mut self,
        policy: RestartPolicy,
        exit_code: i32,
        restarts: u32,
        stopped_by_user: bool,
        ran: Duration,
    ) -> Option<Duration> {
        let again = match policy {
            _ if stopped_by_user => false,
            RestartPolicy::No => false,
            RestartPolicy::Always | RestartPolicy::UnlessStopped => true,
            RestartPolicy::OnFailure(most) => exit_code != 0 && (most == 0 || restarts < most),
        };
        if ran >= GOOD_RUN {
            self.last = Duration::ZERO;
        }
        self.last = if self.last.is_zero() { FIRST } else { (self.last * 2).min(LONGEST) };
        again.then_some(self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn doubles_up_to_a_minute_and_starts_over_after_a_good_run() {
        let mut back = BackOff::default();
        let mut next = |ran| {
            back.next(RestartPolicy::Always, 0, 0, false, Duration::from_secs(ran)).unwrap().as_millis()
        };
        let waits: Vec<u128> = (0..12).map(|_| next(1)).collect();
        assert_eq!(waits[..4], [100, 200, 400, 800]);
        assert_eq!(waits[10..], [60_000, 60_000]);
        assert_eq!(next(10), 100);
    }

    #[test]
    fn policies_are_dockers() {
        let again = |policy, code, restarts, stopped| {
            BackOff::default().next(policy, code, restarts, stopped, Duration::ZERO).is_some()
        };
        assert!(!again(RestartPolicy::No, 1, 0, false));
        assert!(again(RestartPolicy::Always, 0, 9, false) && !again(RestartPolicy::Always, 0, 0, true));
        assert!(again(RestartPolicy::UnlessStopped, 0, 9, false));
        assert!(
            !again(RestartPolicy::OnFailure(0), 0, 0, false)
                && again(RestartPolicy::OnFailure(0), 1, 99, false)
        );
        assert!(
            again(RestartPolicy::OnFailure(3), 1, 2, false)
                && !again(RestartPolicy::OnFailure(3), 1, 3, false)
        );
    }
}
