//! `containers/{id}/start`: takes along who attached to the container and who waits for it.

use super::{Answer, Ask, ask, containers};
use crate::fault::Fault;
use crate::rendezvous::{End, Party, Waiters};
use engine::{Engine, EngineError, RemoveOptions};
use hyper::StatusCode;
use sandbox::client::{AttachOptions, Stream};

/// No stream, but the end.
const NOTHING: AttachOptions = AttachOptions { stdin: false, stdout: false, stderr: false };

pub async fn start(ask: Ask, id: &str) -> Answer {
    let id = super::entered(&ask, id).await?;
    // A client that goes takes nobody's start along.
    let done = tokio::spawn(begin_with_all(ask, id)).await;
    done.unwrap_or_else(|e| Err(Fault::internal(format!("the start broke off: {e}"))))
}

async fn begin_with_all(ask: Ask, id: String) -> Answer {
    let name = id.clone();
    let runs = ask.run(move |engine| containers::is_active(engine, &name)).await?;
    if runs {
        // Paused is an error of its own.
        ask.run(move |engine| Ok(engine.start(&id, None).map(drop)?)).await?;
        return ask::empty(StatusCode::NOT_MODIFIED);
    }
    let Party { mut attachers, waiters } = ask.server.rendezvous.take(&id);
    let first = (!attachers.is_empty()).then(|| attachers.remove(0));
    let wanted = first.as_ref().map(|a| a.options).or((!waiters.0.is_empty()).then_some(NOTHING));
    let started = ask.run(move |engine| Ok(begin(engine, &id, wanted))).await?;
    let stream = match started {
        Ok(stream) => stream,
        Err((fault, code)) => {
            waiters.tell(&End::Failed { code, message: fault.message.clone() });
            return Err(fault);
        }
    };
    match first {
        // Whoever went meanwhile gives back what was handed over; those who wait are told to ask.
        Some(first) => drop(first.hand.send((stream, waiters))),
        None => tell_of_the_end(stream, waiters),
    }
    for other in attachers {
        let _ = other.hand.send((None, Waiters::default()));
    }
    ask::empty(StatusCode::NO_CONTENT)
}

type Begun = Result<Option<Stream>, (Fault, i64)>;

/// Starts it; one that was to be removed in the end and never began is removed now, as Docker does.
fn begin(engine: &Engine, id: &str, attach: Option<AttachOptions>) -> Begun {
    engine.start(id, attach).map_err(|e| {
        let code = match &e {
            EngineError::Start { code, .. } => i64::from(*code),
            _ => 128,
        };
        if engine.removes_itself(id) {
            let _ = engine.remove(id, RemoveOptions { force: true, volumes: true });
        }
        (Fault::from(e), code)
    })
}

/// Nobody has the streams, but somebody waits for the end.
fn tell_of_the_end(stream: Option<Stream>, waiters: Waiters) {
    let Some(stream) = stream else { return };
    tokio::spawn(async move {
        let options = crate::stream::Options { streams: NOTHING, tty: false, keys: None, wire: None };
        let end = crate::stream::pump(stream, tokio::io::empty(), tokio::io::sink(), options).await;
        if let crate::stream::End::Exited(code) = end {
            waiters.tell(&End::Exited(code.into()));
        }
    });
}
