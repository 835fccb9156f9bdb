//! Containers that exist: list, inspect, top, changes, stats, and the verbs that change their state.

use super::{Answer, Ask, ask, shapes};
use crate::body::Body;
use crate::fault::Fault;
use engine::{ListOptions, RemoveOptions};
use hyper::StatusCode;
use serde_json::{Value, json};
use std::time::Duration;
use types::docker::ContainerUpdateBody;

/// How often a stop is asked for again when the supervisor is killed meanwhile.
const ATTEMPTS: u32 = 5;
/// Between two readings.
const PERIOD: Duration = Duration::from_secs(1);

pub async fn list(ask: Ask) -> Answer {
    let limit = ask.query.number("limit")?.filter(|n| *n > 0);
    let options = ListOptions {
        all: ask.query.flag("all"),
        limit: limit.and_then(|n| usize::try_from(n).ok()),
        size: ask.query.flag("size"),
        filters: ask.query.filters()?,
    };
    let version = ask.version;
    let found = ask.look(move |engine| shapes::containers(engine, &options, version)).await?;
    ask::document(StatusCode::OK, found)
}

pub async fn inspect(ask: Ask, id: &str) -> Answer {
    let (name, size, version) = (id.to_owned(), ask.query.flag("size"), ask.version);
    let shown = ask.look(move |engine| Ok(shapes::container(engine.inspect(&name, size)?, version)?)).await?;
    ask::json(StatusCode::OK, &shown)
}

pub async fn top(ask: Ask, id: &str) -> Answer {
    let name = id.to_owned();
    let args: Vec<String> =
        ask.query.get("ps_args").unwrap_or_default().split_whitespace().map(str::to_owned).collect();
    let shown = ask
        .run(move |engine| {
            engine.top(&name, &args).map_err(|e| match e {
                engine::EngineError::NotRunning(_) => Fault::conflict(e.to_string()),
                e => e.into(),
            })
        })
        .await?;
    ask::json(StatusCode::OK, &shown)
}

pub async fn changes(ask: Ask, id: &str) -> Answer {
    let name = super::admission::looked_into(&ask, id).await?;
    let mut found = ask.run(move |engine| Ok(serde_json::to_value(engine.changes(&name)?)?)).await?;
    shapes::null_if_empty(&mut found);
    ask::json(StatusCode::OK, &found)
}

pub async fn remove(ask: Ask, id: &str) -> Answer {
    let name = id.to_owned();
    if ask.query.flag("link") {
        return Err(Fault::invalid("links are not supported: there is none to remove"));
    }
    let options = RemoveOptions { force: ask.query.flag("force"), volumes: ask.query.flag("v") };
    ask.run(move |engine| Ok(engine.remove(&name, options)?)).await?;
    ask::empty(StatusCode::NO_CONTENT)
}

pub async fn prune(ask: Ask) -> Answer {
    let filters = ask.query.filters()?;
    let pruned = ask.run(move |engine| Ok(engine.prune_containers(&filters)?)).await?;
    let mut shown = json!({"ContainersDeleted": pruned.containers, "SpaceReclaimed": pruned.reclaimed});
    shapes::null_if_empty(&mut shown["ContainersDeleted"]);
    ask::json(StatusCode::OK, &shown)
}

/// `stop`, `restart`, `kill`, `pause`, `unpause`, `rename`, `resize`, `update`.
pub async fn act(mut ask: Ask, id: &str, verb: &str) -> Answer {
    let name = id.to_owned();
    let signal = ask.query.get("signal").map(str::to_owned);
    match verb {
        "stop" => {
            let timeout = ask.query.number("t")?;
            let stopped = stop(&ask, &name, signal, timeout).await?;
            ask::empty(if stopped { StatusCode::NO_CONTENT } else { StatusCode::NOT_MODIFIED })
        }
        "restart" => {
            let timeout = ask.query.number("t")?;
            let name = super::admission::restarted(&ask, &name).await?;
            // A client that goes leaves nothing half done.
            let done = tokio::spawn(restart(ask, name, signal, timeout)).await;
            done.unwrap_or_else(|e| Err(Fault::internal(format!("the restart broke off: {e}"))))
        }
        "kill" => {
            let end = ask.look(move |engine| Ok(engine.begin_kill(&name, signal.as_deref())?)).await?;
            if let Some(end) = end {
                // What fails is that the supervisor ended with its container.
                let _ = tokio::time::timeout(engine::DEATH, super::wait::answered(end)).await;
            }
            ask::empty(StatusCode::NO_CONTENT)
        }
        "pause" => {
            ask.run(move |engine| Ok(engine.pause(&name)?)).await?;
            ask::empty(StatusCode::NO_CONTENT)
        }
        "unpause" => {
            let name = super::entered(&ask, &name).await?;
            ask.run(move |engine| Ok(engine.unpause(&name)?)).await?;
            ask::empty(StatusCode::NO_CONTENT)
        }
        "rename" => {
            let new = ask.query.get("name").unwrap_or_default().to_owned();
            if new.is_empty() {
                return Err(Fault::invalid("neither old nor new names may be empty"));
            }
            ask.run(move |engine| Ok(engine.rename(&name, &new)?)).await?;
            ask::empty(StatusCode::NO_CONTENT)
        }
        "resize" => {
            let (rows, columns) = (ask.query.size("h")?, ask.query.size("w")?);
            ask.run(move |engine| Ok(engine.resize(&name, rows, columns)?)).await?;
            ask::empty(StatusCode::OK)
        }
        "update" => {
            let change: ContainerUpdateBody = ask.shape().await?;
            let name = super::entered(&ask, &name).await?;
            let warnings = ask.run(move |engine| Ok(engine.update(&name, &change)?)).await?;
            let mut shown = json!({"Warnings": warnings});
            shapes::null_if_empty(&mut shown["Warnings"]);
            ask::json(StatusCode::OK, &shown)
        }
        _ => Err(Fault::not_found("page not found")),
    }
}

/// Ends it, and tells whether it ran. However long it takes, no thread waits for it, and a client that goes takes its
/// question along.
async fn stop(ask: &Ask, name: &str, signal: Option<String>, timeout: Option<i64>) -> Result<bool, Fault> {
    let mut ran = false;
    for _ in 0..ATTEMPTS {
        let (name, signal) = (name.to_owned(), signal.clone());
        let begun = ask.look(move |engine| Ok(engine.begin_stop(&name, signal.as_deref(), timeout)?)).await;
        match begun {
            Ok(None) => return Ok(ran),
            Ok(Some(end)) => {
                ran = true;
                if super::wait::answered(end).await?.is_some() {
                    return Ok(true);
                }
            }
            Err(fault) if ran && fault.status == 404 => return Ok(true),
            Err(fault) => return Err(fault),
        }
    }
    Err(Fault::internal(format!("the supervisor of {name} was killed again and again")))
}

async fn restart(ask: Ask, name: String, signal: Option<String>, timeout: Option<i64>) -> Answer {
    for _ in 0..ATTEMPTS {
        let (id, signal) = (name.clone(), signal.clone());
        let begun = ask.run(move |engine| Ok(engine.begin_restart(&id, signal.as_deref(), timeout)?)).await?;
        let done = match begun {
            Some(restarted) => super::wait::answered(restarted).await?.is_some(),
            None => true,
        };
        if done {
            return ask::empty(StatusCode::NO_CONTENT);
        }
    }
    Err(Fault::internal(format!("the supervisor of {name} was killed again and again")))
}

/// Whether it runs, or is paused or about to restart.
pub(super) fn is_active(engine: &engine::Engine, name: &str) -> Result<bool, Fault> {
    Ok(engine.status(name)?.is_active())
}

/// `stats`: a document each second, or one.
pub async fn stats(ask: Ask, id: &str) -> Answer {
    let stream = ask.query.flag_or("stream", true);
    let one_shot = ask.query.flag("one-shot");
    if one_shot && stream {
        return Err(Fault::invalid("cannot have stream=true and one-shot=true"));
    }
    let name = id.to_owned();
    let first = reading(&ask, &name).await?;
    if one_shot {
        return ask::json(StatusCode::OK, &first);
    }
    if !stream {
        // Two readings, so that the client has something to compare.
        tokio::time::sleep(PERIOD).await;
        let second = reading(&ask, &name).await?;
        return ask::json(StatusCode::OK, &with_before(second, &first));
    }
    let (to, body) = tokio::sync::mpsc::channel(1);
    tokio::spawn(async move {
        let mut before = json!({"cpu_stats": {}, "read": "0001-01-01T00:00:00Z"});
        let mut now = first;
        loop {
            let document = with_before(now.clone(), &before).to_string() + "\n";
            if to.send(Ok(document.into())).await.is_err() {
                return;
            }
            tokio::select! {
                () = to.closed() => return,
                () = tokio::time::sleep(PERIOD) => {}
            }
            match reading(&ask, &name).await {
                Ok(read) => before = std::mem::replace(&mut now, read),
                // The container is gone, and so are its figures.
                Err(_) => return,
            }
        }
    });
    ask::head("application/json").body(Body::Pieces(body)).map_err(|e| Fault::internal(e.to_string()))
}

async fn reading(ask: &Ask, name: &str) -> Result<Value, Fault> {
    let name = name.to_owned();
    ask.run(move |engine| {
        let read = serde_json::to_value(engine.stats(&name)?)?;
        Ok(shapes::stats(read, is_active(engine, &name)?))
    })
    .await
}

/// A reading with the one before, by which clients know how much was used since.
fn with_before(mut now: Value, before: &Value) -> Value {
    now["precpu_stats"] = before["cpu_stats"].clone();
    now["preread"] = before["read"].clone();
    now
}
