//! The engine on threads that may block. It is not for sharing, so each thread opens its own and keeps it.

use crate::body::{Body, BodyWriter, DOWNLOAD_PATIENCE};
use crate::fault::Fault;
use engine::{Engine, OpenOptions};
use hyper::Response;
use std::cell::RefCell;
use std::os::unix::fs::MetadataExt;
use std::rc::Rc;
use tokio::sync::Semaphore;

/// Calls of the engine at once that may wait; fewer than there are threads ([`crate::server`]), so that others find one.
const MOST_CALLS: usize = 192;
static CALLS: Semaphore = Semaphore::const_new(MOST_CALLS);
/// Downloads at once, what clients send or other hosts answer, and followers of logs and events: each has a thread.
static STREAMS: Semaphore = Semaphore::const_new(128);
static APART: Semaphore = Semaphore::const_new(128);
static FOLLOWERS: Semaphore = Semaphore::const_new(2048);

fn full() -> Fault {
    Fault::new(503, "the server has as many streams as it can: try again when others have ended")
}

/// A store's database: the same path may name another one later (`system reset`).
type Identity = (u64, u64);

thread_local! {
    static OPEN: RefCell<Option<(Identity, Rc<Engine>)>> = const { RefCell::new(None) };
}

fn identity(engine: &Engine) -> Option<Identity> {
    std::fs::metadata(engine.paths().db()).ok().map(|m| (m.dev(), m.ino()))
}

/// This thread's engine.
fn with<T>(options: &OpenOptions, job: impl FnOnce(&Engine) -> Result<T, Fault>) -> Result<T, Fault> {
    let kept = OPEN.with_borrow(|open| {
        open.as_ref().filter(|(known, engine)| identity(engine) == Some(*known)).map(|(_, e)| Rc::clone(e))
    });
    let engine = match kept {
        Some(engine) => engine,
        None => {
            let engine = Rc::new(Engine::open(options)?);
            if let Some(known) = identity(&engine) {
                OPEN.set(Some((known, Rc::clone(&engine))));
            }
            engine
        }
    };
    job(&engine)
}

/// Runs one call of the engine, that may wait for what somebody else does. A client that goes before its turn takes its call
/// along.
pub async fn run<T: Send + 'static>(
    options: &'static OpenOptions,
    job: impl FnOnce(&Engine) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let turn = CALLS.acquire().await.map_err(|_| Fault::internal("the server ends"))?;
    look(options, move |engine| {
        let done = job(engine);
        drop(turn);
        done
    })
    .await
}

/// Runs one call of the engine that waits for nobody.
pub async fn look<T: Send + 'static>(
    options: &'static OpenOptions,
    job: impl FnOnce(&Engine) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    let done = tokio::task::spawn_blocking(move || with(options, job)).await;
    done.unwrap_or_else(|e| Err(Fault::internal(format!("the request's thread died: {e}"))))
}

/// What becomes of a stream whose job failed when it had begun.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Late {
    /// A last document tells: `{"errorDetail": …}`, as in Docker's progress messages.
    Document,
    /// The connection is broken off.
    BrokenOff,
}

/// Runs one call of the engine whose result is a stream. The answer's head goes out with its first byte; what fails before
/// is an error like any other.
pub async fn stream(
    options: &'static OpenOptions,
    head: hyper::http::response::Builder,
    late: Late,
    job: impl FnOnce(&Engine, &mut BodyWriter) -> Result<(), Fault> + Send + 'static,
) -> Result<Response<Body>, Fault> {
    let (writer, begun, body) = BodyWriter::pair(Some(DOWNLOAD_PATIENCE));
    let done =
        apart(&STREAMS, move || with(options, |engine| conclude(writer, late, |out| job(engine, out))))?;
    answer(head, begun, body, done).await
}

/// Runs one call of the engine that reads what a client sends, or writes what it takes: on a thread of its own, since a
/// client that does neither must not keep the others from theirs.
pub async fn run_apart<T: Send + 'static>(
    options: &'static OpenOptions,
    job: impl FnOnce(&Engine) -> Result<T, Fault> + Send + 'static,
) -> Result<T, Fault> {
    apart(&APART, move || with(options, job))?.await
}

/// A thread, and its result.
fn apart<T: Send + 'static>(
    places: &'static Semaphore,
    job: impl FnOnce() -> Result<T, Fault> + Send + 'static,
) -> Result<impl Future<Output = Result<T, Fault>>, Fault> {
    let place = places.try_acquire().map_err(|_| full())?;
    let (tell, told) = tokio::sync::oneshot::channel();
    std::thread::Builder::new()
        .name("stream".into())
        .spawn(move || {
            let done = job();
            drop(place);
            drop(tell.send(done))
        })
        .map_err(|e| Fault::new(503, format!("no thread can be had for the request: {e}")))?;
    Ok(async { told.await.unwrap_or_else(|_| Err(Fault::internal("the request's thread died"))) })
}

/// The same for what may last: a thread of its own, with a small stack and no engine.
pub async fn follow(
    head: hyper::http::response::Builder,
    job: impl FnOnce(&mut BodyWriter) -> Result<(), Fault> + Send + 'static,
) -> Result<Response<Body>, Fault> {
    // Who follows may look away as long as he likes.
    let (writer, begun, body) = BodyWriter::pair(None);
    let (tell, done) = tokio::sync::oneshot::channel();
    let place = FOLLOWERS.try_acquire().map_err(|_| full())?;
    let thread = std::thread::Builder::new().name("follow".into()).stack_size(256 << 10);
    thread
        .spawn(move || {
            let done = conclude(writer, Late::BrokenOff, job);
            drop(place);
            drop(tell.send(done))
        })
        .map_err(|e| Fault::new(503, format!("no thread can be had for the stream: {e}")))?;
    answer(head, begun, body, async {
        done.await.unwrap_or_else(|_| Err(Fault::internal("the stream's thread died")))
    })
    .await
}

fn conclude(
    mut writer: BodyWriter,
    late: Late,
    job: impl FnOnce(&mut BodyWriter) -> Result<(), Fault>,
) -> Result<(), Fault> {
    use std::io::Write;
    let done = job(&mut writer);
    match &done {
        Ok(()) => drop(writer.flush()),
        Err(fault) if writer.has_begun() && late == Late::BrokenOff => writer.abort(fault),
        Err(fault) if writer.has_begun() => {
            let last = serde_json::json!({"errorDetail": {"message": fault.message}, "error": fault.message});
            let _ = write!(writer, "{last}\r\n").and_then(|()| writer.flush());
        }
        Err(_) => {}
    }
    done
}

async fn answer(
    head: hyper::http::response::Builder,
    begun: tokio::sync::oneshot::Receiver<()>,
    body: Body,
    done: impl Future<Output = Result<(), Fault>>,
) -> Result<Response<Body>, Fault> {
    // The writer goes without a word when its job fails.
    if begun.await.is_err() {
        done.await?;
    }
    head.body(body).map_err(|e| Fault::internal(e.to_string()))
}
