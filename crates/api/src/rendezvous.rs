//! Clients that came before a container's start: `docker run` attaches and waits first, and starts then, so that it
//! misses neither a byte nor the exit code.
//!
//! ```text
//! attach, wait ─► registered here ─► start takes them along: the start's own stream goes to the first that attached,
//!                                    its end to all that wait
//! ```
//!
//! Whoever starts the container by another server or by the command line does not know of them: they find out by looking
//! (see `docker::wait` and `docker::attach`).

use sandbox::client::{AttachOptions, Stream};
use std::collections::HashMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::oneshot;

/// How a run ended for those who wait.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum End {
    /// With this exit code.
    Exited(i64),
    /// It never began.
    Failed {
        /// Docker's code for it.
        code: i64,
        /// Why.
        message: String,
    },
    /// Nobody here knows: ask the engine.
    Unknown,
}

/// A client that attached.
#[derive(Debug)]
pub struct Attacher {
    /// What it wants.
    pub options: AttachOptions,
    /// Takes the stream, and whom to tell of the end.
    pub hand: oneshot::Sender<(Option<Stream>, Waiters)>,
    taken: Arc<AtomicBool>,
}

/// What a client that attached awaits.
#[derive(Debug)]
pub struct Awaited {
    /// The streams of our own start, and whom to tell of the end.
    pub handed: oneshot::Receiver<(Option<Stream>, Waiters)>,
    taken: Arc<AtomicBool>,
}

impl Awaited {
    /// Our own start is on its way: what it does not hand over it drops, and nobody has to look.
    pub fn is_taken(&self) -> bool {
        self.taken.load(Ordering::Acquire)
    }
}

/// Those who wait for the end. Dropped, they are told that nobody knows.
#[derive(Debug, Default)]
pub struct Waiters(pub Vec<oneshot::Sender<End>>);

impl Waiters {
    /// Tells them.
    pub fn tell(self, end: &End) {
        for waiter in self.0 {
            let _ = waiter.send(end.clone());
        }
    }
}

/// Everybody who awaits a container's start.
#[derive(Debug, Default)]
pub struct Party {
    /// Who attached.
    pub attachers: Vec<Attacher>,
    /// Who waits.
    pub waiters: Waiters,
}

/// All parties, by full id of their container.
#[derive(Debug, Default)]
pub struct Rendezvous(Mutex<HashMap<String, Party>>);

impl Rendezvous {
    fn with<T>(&self, f: impl FnOnce(&mut HashMap<String, Party>) -> T) -> T {
        let mut all = self.0.lock().unwrap_or_else(PoisonError::into_inner);
        // Who has gone needs nothing any more.
        all.retain(|_, party| {
            party.attachers.retain(|a| !a.hand.is_closed());
            party.waiters.0.retain(|w| !w.is_closed());
            !party.attachers.is_empty() || !party.waiters.0.is_empty()
        });
        f(&mut all)
    }

    /// Awaits the streams of a container's next run.
    pub fn attach(&self, id: &str, options: AttachOptions) -> Awaited {
        let (hand, handed) = oneshot::channel();
        let awaited = Awaited { handed, taken: Arc::default() };
        let attacher = Attacher { options, hand, taken: Arc::clone(&awaited.taken) };
        self.with(|all| all.entry(id.to_owned()).or_default().attachers.push(attacher));
        awaited
    }

    /// Awaits the end of a container's next run.
    pub fn wait(&self, id: &str) -> oneshot::Receiver<End> {
        let (tell, receiver) = oneshot::channel();
        self.with(|all| all.entry(id.to_owned()).or_default().waiters.0.push(tell));
        receiver
    }

    /// The container is being started: whoever awaited it goes along.
    pub fn take(&self, id: &str) -> Party {
        self.with(|all| {
            let party = all.remove(id).unwrap_or_default();
            party.attachers.iter().for_each(|a| a.taken.store(true, Ordering::Release));
            party
        })
    }
}
