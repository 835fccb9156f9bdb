//! Room for documents that are larger than most: so many bytes for all clients together. Nobody waits for it. When it is
//! used up, who has had his place the longest loses it: who sends as fast as he can is done by then, and clients that
//! trickle keep no other from being served.

use std::collections::VecDeque;
use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use tokio::sync::Notify;

/// The room, and who has some of it, the oldest first.
#[derive(Debug)]
pub struct Room {
    bytes: usize,
    places: Mutex<VecDeque<Arc<Held>>>,
}

#[derive(Debug, Default)]
struct Held {
    bytes: AtomicUsize,
    lost: Notify,
}

/// One client's place, given back when it is dropped.
#[derive(Debug)]
pub struct Place<'a> {
    room: &'a Room,
    held: Arc<Held>,
}

impl Room {
    /// So many bytes.
    pub const fn new(bytes: usize) -> Self {
        Self { bytes, places: Mutex::new(VecDeque::new()) }
    }

    fn places(&self) -> MutexGuard<'_, VecDeque<Arc<Held>>> {
        self.places.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// A place that has no bytes yet.
    pub fn place(&self) -> Place<'_> {
        let held = Arc::<Held>::default();
        self.places().push_back(Arc::clone(&held));
        Place { room: self, held }
    }
}

impl Place<'_> {
    /// Has this many bytes from now on, at the cost of older ones. False if the place is lost.
    pub fn grow(&self, bytes: usize) -> bool {
        let mut places = self.room.places();
        self.held.bytes.store(bytes, Relaxed);
        let mut used: usize = places.iter().map(|held| held.bytes.load(Relaxed)).sum();
        while used > self.room.bytes
            && let Some(oldest) = places.pop_front()
        {
            used -= oldest.bytes.load(Relaxed);
            oldest.lost.notify_one();
        }
        places.iter().any(|held| Arc::ptr_eq(held, &self.held))
    }

    /// Waits until the place is lost.
    pub async fn lost(&self) {
        self.held.lost.notified().await;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        self.room.places().retain(|held| !Arc::ptr_eq(held, &self.held));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_oldest_goes() {
        let room = Room::new(100);
        let (old, one, two) = (room.place(), room.place(), room.place());
        assert!(one.grow(30) && old.grow(30) && two.grow(40));
        assert!(two.grow(60), "the oldest has to go");
        assert!(!old.grow(10), "it has gone");
        assert!(one.grow(40));
        drop(two);
        assert!(room.place().grow(60));
    }

    #[test]
    fn nobody_has_more_than_there_is() {
        let room = Room::new(100);
        assert!(!room.place().grow(101));
        assert!(room.place().grow(100));
    }
}
