//! Waiting awake for the next question. A client that asks one thing after the other has its next question ready within
//! microseconds of an answer, which is sooner than a process that went to sleep is woken on a processor that has gone idle,
//! and more so on a virtual one. Where processors are busy, the two take turns on one, which costs next to nothing: then to
//! stay awake would only be in the client's way. So what it is worth is measured.
//!
//! ```text
//! asleep ── questions come soon, but not at once ──► awake: looks again and again ── nothing comes in time ──► asleep
//!    ▲                                                 │
//!    └──────────── RESPITE questions long ◄────────────┘ no sooner than asleep
//! ```
//!
//! Who has but one processor needs it for the client, and sleeps.

use std::time::{Duration, Instant};

/// How long the next question is waited for, and how soon it must have come for that to be worth while.
const PATIENCE: Duration = Duration::from_micros(120);
/// What comes sooner than this comes from the same processor.
const AT_ONCE: Duration = Duration::from_micros(25);
/// So many questions are answered asleep after it was not worth it to be awake.
const RESPITE: u32 = 1000;
/// Of the averages of the last questions.
const WEIGHT: u32 = 16;

/// Whether the next question is waited for awake.
#[derive(Debug)]
pub(super) struct Haste {
    last: Option<Instant>,
    awake: bool,
    /// How long after an answer the next question came, by who was asleep, and awake: averages.
    asleep_took: Duration,
    awake_took: Duration,
    respite: u32,
    /// Whether there are several processors, once somebody has asked in haste.
    several: Option<bool>,
}

impl Default for Haste {
    fn default() -> Self {
        // Averages of fewer questions say little.
        let (asleep_took, awake_took) = Default::default();
        Self { last: None, awake: false, asleep_took, awake_took, respite: WEIGHT, several: None }
    }
}

impl Haste {
    /// A question that came at `asked` is answered now.
    pub(super) fn answered(&mut self, asked: Instant, now: Instant) {
        let Some(last) = self.last.replace(now) else { return };
        let took = asked.saturating_duration_since(last).min(4 * PATIENCE);
        let average = |old: Duration| match old.is_zero() {
            true => took,
            false => (old * (WEIGHT - 1) + took) / WEIGHT,
        };
        if self.awake {
            self.awake_took = average(self.awake_took);
            if self.awake_took > self.asleep_took {
                (self.awake, self.respite) = (false, RESPITE);
            }
            return;
        }
        self.asleep_took = average(self.asleep_took);
        self.respite = self.respite.saturating_sub(1);
        let worth = (AT_ONCE..PATIENCE).contains(&self.asleep_took) && took < PATIENCE && self.respite == 0;
        if worth && *self.several.get_or_insert_with(several_processors) {
            (self.awake, self.awake_took) = (true, self.asleep_took * 3 / 4);
        }
    }

    /// Whether the last questions came so fast that the next one is waited for awake.
    pub(super) fn is_awake(&self) -> bool {
        self.awake
    }

    /// Whether to look again, after nothing was there.
    pub(super) fn goes_on(&mut self) -> bool {
        self.awake = self.awake && self.last.is_some_and(|last| last.elapsed() < PATIENCE);
        self.awake
    }
}

fn several_processors() -> bool {
    std::thread::available_parallelism().is_ok_and(|n| n.get() > 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Questions that come so long after each answer.
    fn ask(haste: &mut Haste, count: u32, after: Duration) {
        let mut at = haste.last.unwrap_or_else(Instant::now);
        for _ in 0..count {
            at += after;
            haste.answered(at, at);
        }
    }

    #[test]
    fn only_who_asks_in_haste_is_waited_for() {
        let (soon, at_once, late) = (PATIENCE / 2, AT_ONCE / 4, PATIENCE * 2);
        let several = || Haste { several: Some(true), ..Haste::default() };
        let mut haste = several();
        assert!(!haste.goes_on());
        ask(&mut haste, 100, late);
        assert!(!haste.awake);
        ask(&mut haste, 100, soon);
        assert!(haste.awake);
        // It has an end.
        haste.last = Some(Instant::now());
        let begin = Instant::now();
        while haste.goes_on() {}
        assert!(begin.elapsed() >= PATIENCE / 2 && !haste.awake);
        // Where it takes no turn between processors, or wins nothing, it is left.
        let mut busy = several();
        ask(&mut busy, 2000, at_once);
        assert!(!busy.awake);
        let mut slow = several();
        ask(&mut slow, 100, soon);
        assert!(slow.awake);
        ask(&mut slow, 40, soon + soon / 2);
        assert!(!slow.awake && slow.respite > RESPITE / 2);
        let mut alone = Haste { several: Some(false), ..Haste::default() };
        ask(&mut alone, 2000, soon);
        assert!(!alone.awake);
    }
}
