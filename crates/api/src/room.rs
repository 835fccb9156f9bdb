//! Room for documents that are larger than most: so many bytes for all clients together. Nobody waits for it. When it is
//! used up, who sends the slowest loses his place, so that clients that trickle keep no other from being served.

use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant};
use tokio::sync::Notify;

/// Who came this lately is not called slow.
const GRACE: Duration = Duration::from_millis(500);

/// The room, and who has some of it.
#[derive(Debug)]
pub struct Room {
    bytes: usize,
    places: Mutex<Vec<Arc<Held>>>,
}

#[derive(Debug)]
struct Held {
    begun: Instant,
    bytes: AtomicUsize,
    lost: Notify,
}

impl Held {
    fn bytes(&self) -> usize {
        self.bytes.load(Relaxed)
    }

    /// Bytes a second.
    fn rate(&self) -> f64 {
        self.bytes() as f64 / self.begun.elapsed().max(GRACE).as_secs_f64()
    }
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
        Self { bytes, places: Mutex::new(Vec::new()) }
    }

    /// A place that has no bytes yet.
    pub fn place(&self) -> Place<'_> {
        let held = Arc::new(Held { begun: Instant::now(), bytes: AtomicUsize::new(0), lost: Notify::new() });
        self.places.lock().unwrap_or_else(PoisonError::into_inner).push(Arc::clone(&held));
        Place { room: self, held }
    }
}

impl Place<'_> {
    /// Has this many bytes from now on, at the cost of those who are slower. False if nobody is: the place is lost.
    pub fn grow(&self, bytes: usize) -> bool {
        let mut places = self.room.places.lock().unwrap_or_else(PoisonError::into_inner);
        self.held.bytes.store(bytes, Relaxed);
        while places.iter().map(|p| p.bytes()).sum::<usize>() > self.room.bytes {
            let slowest = places.iter().enumerate().min_by(|(_, a), (_, b)| a.rate().total_cmp(&b.rate()));
            let Some((at, _)) = slowest else { return false };
            let held = places.swap_remove(at);
            held.lost.notify_one();
            if Arc::ptr_eq(&held, &self.held) {
                return false;
            }
        }
        // It may have been lost to another one's growth.
        places.iter().any(|p| Arc::ptr_eq(p, &self.held))
    }

    /// Waits until the place is lost.
    pub async fn lost(&self) {
        self.held.lost.notified().await;
    }
}

impl Drop for Place<'_> {
    fn drop(&mut self) {
        let mut places = self.room.places.lock().unwrap_or_else(PoisonError::into_inner);
        places.retain(|p| !Arc::ptr_eq(p, &self.held));
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_slowest_goes() {
        let room = Room::new(100);
        let slow = room.place();
        assert!(slow.grow(30));
        std::thread::sleep(GRACE * 3);
        let (one, two) = (room.place(), room.place());
        assert!(one.grow(30) && two.grow(40));
        assert!(two.grow(60), "the slow one has to go");
        assert!(!slow.grow(31), "it has gone");
        assert!(one.grow(35));
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
