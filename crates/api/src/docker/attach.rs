//! `containers/{id}/attach`, by a connection that is taken over, by an answer that goes on, or by websocket.

use super::{Answer, Ask, logs};
use crate::body::{Body, BodyWriter};
use crate::client::Wire;
use crate::fault::Fault;
use crate::rendezvous::{Awaited, End, Waiters};
use crate::stream::{self, Options};
use crate::{takeover, work};
use engine::LogOptions;
use sandbox::client::{AttachOptions, Stream};
use std::time::Duration;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use types::Status;

/// After which time a container is first looked at that somebody else may start.
const LOOK: Duration = Duration::from_millis(50);
/// How rarely in the end.
const RARELY: Duration = Duration::from_secs(1);

/// What a client wants of a container.
struct Wanted {
    id: String,
    streams: AttachOptions,
    /// The streams themselves, not only what was logged.
    live: bool,
    logs: bool,
    tty: bool,
    keys: Option<Vec<u8>>,
}

pub async fn attach(ask: Ask, id: &str) -> Answer {
    let (wanted, source) = prepare(&ask, id).await?;
    let kind = logs::kind(wanted.tty, ask.version);
    takeover::streams(ask, kind, |ask, input, output| join(ask, wanted, source, input, output))
}

pub async fn websocket(mut ask: Ask, id: &str) -> Answer {
    let (mut wanted, source) = prepare(&ask, id).await?;
    // Without frames: a websocket has its own.
    let tty = std::mem::replace(&mut wanted.tty, true);
    wanted.keys = wanted.keys.filter(|_| tty);
    let (answer, socket) = takeover::websocket(&mut ask)?;
    tokio::spawn(async move {
        if let Some((input, output)) = socket.await {
            join(ask, wanted, source, input, output).await;
        }
    });
    Ok(answer)
}

/// Where the streams come from.
enum Source {
    /// It runs.
    Now(Stream),
    /// It is started after this moment.
    Later(Awaited, i64),
    /// Nobody asked for them.
    Never,
}

impl Source {
    /// From when on what is logged is in the streams, too.
    fn since_ns(&self) -> Option<i64> {
        match self {
            Self::Now(stream) => Some(stream.since_ns()),
            Self::Later(_, since) => Some(*since),
            Self::Never => None,
        }
    }
}

async fn prepare(ask: &Ask, id: &str) -> Result<(Wanted, Source), Fault> {
    let keys =
        engine::keys::parse(ask.query.get("detachKeys").unwrap_or_default()).map_err(Fault::invalid)?;
    let (live, logs) = (ask.query.flag("stream"), ask.query.flag("logs"));
    let asked = AttachOptions {
        stdin: ask.query.flag("stdin"),
        stdout: ask.query.flag("stdout"),
        stderr: ask.query.flag("stderr"),
    };
    let (shown, name) = (id.to_owned(), super::entered(ask, id).await?);
    let (wanted, stream) = ask
        .run(move |engine| {
            let config = engine.inspect(&name, false)?.config.unwrap_or_default();
            let tty = config.tty == Some(true);
            let streams = AttachOptions { stdin: asked.stdin && config.open_stdin == Some(true), ..asked };
            let wanted = Wanted { id: name.clone(), streams, live, logs, tty, keys: tty.then_some(keys) };
            let stream = match engine.status(&name)? {
                Status::Paused => {
                    let why = format!("container {shown} is paused, unpause the container before attach");
                    return Err(Fault::conflict(why));
                }
                Status::Restarting => {
                    let why = format!("Container {shown} is restarting, wait until the container is running");
                    return Err(Fault::conflict(why));
                }
                Status::Running if live => match engine.attach(&name, streams) {
                    Ok(stream) => Some(stream),
                    // It ended meanwhile.
                    Err(engine::EngineError::Conflict(_) | engine::EngineError::NotRunning(_)) => None,
                    Err(e) => return Err(e.into()),
                },
                _ => None,
            };
            Ok((wanted, stream))
        })
        .await?;
    let source = match stream {
        Some(stream) => Source::Now(stream),
        None if live => {
            let now = sys::host::now_ns();
            Source::Later(ask.server.rendezvous.attach(&wanted.id, wanted.streams), now)
        }
        None => Source::Never,
    };
    Ok((wanted, source))
}

async fn join(
    ask: Ask,
    wanted: Wanted,
    source: Source,
    input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
) {
    let wire = ask.wire.clone();
    if wanted.logs && replay(&ask, &wanted, source.since_ns(), &mut output).await.is_none() {
        return;
    }
    let (stream, waiters) = match source {
        Source::Now(stream) => (Some(stream), Waiters::default()),
        Source::Later(awaited, _) => later(&ask, &wanted, awaited, wire.as_ref()).await,
        Source::Never => (None, Waiters::default()),
    };
    let Some(stream) = stream.filter(|_| wanted.live) else {
        let _ = output.shutdown().await;
        return;
    };
    let options = Options { streams: wanted.streams, tty: wanted.tty, keys: wanted.keys, wire };
    if let stream::End::Exited(code) = stream::pump(stream, input, output, options).await {
        waiters.tell(&End::Exited(code.into()));
    }
}

/// The streams of a container that did not run. Our own start hands them over from their first byte on; where somebody
/// else starts it, they are had as soon as it is seen.
async fn later(
    ask: &Ask,
    wanted: &Wanted,
    mut awaited: Awaited,
    wire: Option<&Wire>,
) -> (Option<Stream>, Waiters) {
    let mut waiters = Waiters::default();
    let mut is_ours = true;
    let mut look = LOOK;
    loop {
        tokio::select! {
            given = &mut awaited.handed, if is_ours => match given {
                Ok((Some(stream), waiters)) => return (Some(stream), waiters),
                Ok((None, theirs)) => {
                    waiters = theirs;
                    is_ours = false;
                }
                // The start failed.
                Err(_) => return (None, waiters),
            },
            () = tokio::time::sleep(look) => {}
        }
        look = (look * 5 / 4).min(RARELY);
        if wire.is_some_and(Wire::is_cut) {
            return (None, waiters);
        }
        // A second stream beside the start's own would miss its first bytes, and take its input away.
        if is_ours && awaited.is_taken() {
            continue;
        }
        let (id, streams) = (wanted.id.clone(), wanted.streams);
        let looked = ask
            .run(move |engine| match engine.status(&id)? {
                Status::Running => Ok(engine.attach(&id, streams).ok()),
                _ => Ok(None),
            })
            .await;
        match looked {
            // Started by us while we looked.
            Ok(Some(stream)) if is_ours && awaited.is_taken() => {
                let _ = stream.detach();
            }
            Ok(Some(stream)) => return (Some(stream), waiters),
            // It ran, and is over.
            Ok(None) if !is_ours => return (None, waiters),
            Ok(None) => {}
            Err(_) => return (None, waiters),
        }
    }
}

/// What was logged before the streams begin.
async fn replay(
    ask: &Ask,
    wanted: &Wanted,
    since_ns: Option<i64>,
    output: &mut (impl AsyncWrite + Unpin),
) -> Option<()> {
    let id = wanted.id.clone();
    let log = ask.run(move |engine| Ok(engine.log(&id)?)).await.ok()?;
    let options = LogOptions {
        stdout: wanted.streams.stdout,
        stderr: wanted.streams.stderr,
        until_ns: since_ns.map(|since| since - 1),
        ..Default::default()
    };
    let look = logs::Look { tty: wanted.tty, timestamps: false, details: false };
    let answer = work::follow(crate::ask::head(""), move |out: &mut BodyWriter| {
        out.begin();
        logs::write(&log, &options, &look, out)
    });
    let Body::Pieces(mut pieces) = answer.await.ok()?.into_body() else { return Some(()) };
    while let Some(piece) = pieces.recv().await {
        output.write_all(&piece.ok()?).await.ok()?;
    }
    Some(())
}
