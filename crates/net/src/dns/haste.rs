//! Waiting awake for the next question. A client that asks one thing after the other has its next question ready within
//! microseconds of an answer, which is sooner than a process that went to sleep is woken: on an idle processor, and more so on
//! a virtual one, waking takes longer than all that is done about a question.
//!
//! ```text
//! asleep ── a question, soon after the last answer ──► awake: looks again and again ── nothing comes in time ──► asleep
//! ```
//!
//! Who has but one processor needs it for the client, and sleeps.

use std::time::{Duration, Instant};

/// How long the next question is waited for, and how soon it must have come for that to be worth while.
const PATIENCE: Duration = Duration::from_micros(100);

/// Whether the next question is waited for awake.
#[derive(Debug, Default)]
pub(super) struct Haste {
    last: Option<Instant>,
    awake: bool,
    /// Whether there are several processors, once somebody has asked twice in haste.
    several: Option<bool>,
}

impl Haste {
    /// A question has come, and is answered by now.
    pub(super) fn answered(&mut self, asked: Instant) {
        let soon = self.last.is_some_and(|last| asked.duration_since(last) < PATIENCE);
        self.awake = soon && *self.several.get_or_insert_with(several_processors);
        self.last = Some(asked);
    }

    /// Whether to look again, after nothing was there. Others may have the processor first.
    pub(super) fn goes_on(&mut self) -> bool {
        self.awake = self.awake && self.last.is_some_and(|last| last.elapsed() < PATIENCE);
        if self.awake {
            rustix::thread::sched_yield();
        }
        self.awake
    }
}

fn several_processors() -> bool {
    std::thread::available_parallelism().is_ok_and(|n| n.get() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_who_asks_in_haste_is_waited_for() {
        let mut haste = Haste { several: Some(true), ..Haste::default() };
        assert!(!haste.goes_on());
        haste.answered(Instant::now());
        assert!(!haste.goes_on());
        let begin = Instant::now();
        haste.answered(begin);
        haste.answered(begin + PATIENCE / 2);
        // Each look takes its time, and there is an end.
        while haste.goes_on() {}
        assert!(begin.elapsed() >= PATIENCE && !haste.goes_on());
        haste.answered(begin + PATIENCE * 2);
        assert!(!haste.goes_on());
        let mut alone = Haste { several: Some(false), ..Haste::default() };
        (0..3).for_each(|_| alone.answered(begin));
        assert!(!alone.goes_on());
    }
}
