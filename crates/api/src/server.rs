//! The life of a server, from its first connection to its last.

use crate::connection;
use crate::listen::Listener;
use crate::rendezvous::Rendezvous;
use crate::shared::{Server, Settings};
use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::signal::unix::{SignalKind, signal};
use tokio::sync::Semaphore;

/// Connections at once; more wait in the listening socket's queue. Fewer where the process may open fewer files: a
/// connection costs up to four, and the engine needs some.
const MOST_CONNECTIONS: usize = 4096;
const FILES_EACH: u64 = 4;
const FILES_OF_OUR_OWN: u64 = 256;
/// Threads that may block, for calls of the engine.
const MOST_THREADS: usize = 256;
/// How long a thread without work is kept.
const KEEP: Duration = Duration::from_secs(5);
/// How long requests on their way may take when the server is asked to end.
const LAST_CALLS: Duration = Duration::from_secs(3);

/// Where a server listens, and what it is told.
#[derive(Debug)]
pub struct ServeOptions {
    /// Sockets.
    pub listeners: Vec<Listener>,
    /// Settings.
    pub settings: Settings,
}

/// Serves until SIGTERM or SIGINT. Calls `ready` when every socket takes connections.
pub fn serve(options: ServeOptions, ready: impl FnOnce()) -> io::Result<()> {
    // One per process, for ever: threads of the engine borrow it.
    let settings: &'static Settings = Box::leak(Box::new(options.settings));
    let server = Arc::new(Server { settings, rendezvous: Rendezvous::default() });
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .max_blocking_threads(MOST_THREADS)
        .thread_keep_alive(KEEP)
        .thread_stack_size(1 << 20)
        .enable_all()
        .build()?;
    let ended = runtime.block_on(run(server, options.listeners, ready));
    // A stream that follows something for ever ends with the process.
    runtime.shutdown_timeout(Duration::from_millis(100));
    ended
}

async fn run(server: Arc<Server>, listeners: Vec<Listener>, ready: impl FnOnce()) -> io::Result<()> {
    let (mut term, mut int) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let most = most_connections();
    // Each listener has its own: who fills those of one leaves those of the others.
    let each = most / listeners.len().max(1);
    let mut all_places = Vec::new();
    let mut tasks = Vec::new();
    let mut removers = Vec::new();
    for listener in listeners {
        let (listener, remover) = listener.activate()?;
        removers.extend(remover);
        let places = Arc::new(Semaphore::new(each));
        all_places.push(Arc::clone(&places));
        tasks.push(tokio::spawn(connection::accept(Arc::clone(&server), listener, places)));
    }
    ready();
    tokio::select! {
        _ = term.recv() => {}
        _ = int.recv() => {}
    }
    for task in &tasks {
        task.abort();
    }
    drop(removers);
    let all = u32::try_from(each).unwrap_or(u32::MAX);
    connection::CLOSING.notify_waiters();
    let ended = async {
        for places in &all_places {
            let _ = places.acquire_many(all).await;
        }
    };
    let _ = tokio::time::timeout(LAST_CALLS, ended).await;
    Ok(())
}

/// Takes as many open files as the process may have, and tells how many connections that makes.
fn most_connections() -> usize {
    let files = sys::limits::raise_open_files().unwrap_or(u64::MAX);
    let places = files.saturating_sub(FILES_OF_OUR_OWN) / FILES_EACH;
    usize::try_from(places).unwrap_or(MOST_CONNECTIONS).clamp(16, MOST_CONNECTIONS)
}
