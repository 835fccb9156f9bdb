//! `containers/{id}/wait`: the head of the answer goes out at once, as the client starts the container when it has it; the
//! exit code follows.

use super::{Answer, Ask, ask};
use crate::body::Body;
use crate::fault::Fault;
use crate::rendezvous::End;
use crate::stream::Signal;
use engine::Waiting;
use sandbox::client::WaitCondition;
use serde_json::json;
use std::time::Duration;
use tokio::io::Interest;
use tokio::sync::{mpsc, oneshot};

/// After which time a container is first looked at that somebody else may start.
const LOOK: Duration = Duration::from_millis(100);
/// Never taken for success.
const UNKNOWN: &str = "the exit code is unknown: the container was removed before anybody could read it";
/// How rarely in the end.
const RARELY: Duration = Duration::from_secs(1);

pub async fn wait(ask: Ask, id: &str) -> Answer {
    let condition = match ask.query.get("condition") {
        None | Some("not-running") => WaitCondition::NotRunning,
        Some("next-exit") => WaitCondition::NextExit,
        Some("removed") => WaitCondition::Removed,
        Some(other) => return Err(Fault::invalid(format!("invalid condition: {other:?}"))),
    };
    let name = id.to_owned();
    let (id, first) = ask
        .run(move |engine| Ok((engine.id(&name)?.to_string(), engine.begin_wait(&name, condition, None)?)))
        .await?;
    // Registered before the head of the answer goes out.
    let next = matches!(first, Waiting::NotStarted { .. }).then(|| ask.server.rendezvous.wait(&id));
    let (to, body) = mpsc::channel(1);
    let told_always = ask.version < 42;
    tokio::spawn(async move {
        tokio::select! {
            () = to.closed() => {}
            end = until_the_end(ask, id, condition, first, next) => {
                let mut document = match end {
                    Ok(End::Failed { code, message }) => json!({"StatusCode": code, "Error": {"Message": message}}),
                    Ok(End::Exited(code)) => json!({"StatusCode": code}),
                    Ok(End::Unknown) => json!({"StatusCode": -1, "Error": {"Message": UNKNOWN}}),
                    Err(fault) => json!({"StatusCode": -1, "Error": {"Message": fault.message}}),
                };
                if told_always && document["Error"].is_null() {
                    document["Error"] = serde_json::Value::Null;
                }
                let _ = to.send(Ok((document.to_string() + "\n").into())).await;
            }
        }
    });
    ask::head("application/json").body(Body::Pieces(body)).map_err(|e| Fault::internal(e.to_string()))
}

async fn until_the_end(
    ask: Ask,
    id: String,
    condition: WaitCondition,
    first: Waiting,
    mut next: Option<oneshot::Receiver<End>>,
) -> Result<End, Fault> {
    let mut waiting = first;
    // When it had last been started, of one that did not run.
    let mut since = None;
    let mut last = None;
    let mut look = LOOK;
    loop {
        match waiting {
            Waiting::Ended(code) => return Ok(End::Exited(code)),
            Waiting::Running { answer, last: code } => {
                last = code.or(last);
                if let Some(code) = answered(answer).await? {
                    return Ok(End::Exited(code));
                }
                // Its supervisor went without a word; if the run is over, it is this one.
                since = Some(i64::MIN);
            }
            Waiting::NotStarted { since: started, last: code } => {
                since.get_or_insert(started);
                last = code.or(last);
                tokio::select! {
                    end = told(&mut next) => match end {
                        End::Unknown => next = None,
                        end => return Ok(end),
                    },
                    () = tokio::time::sleep(look) => {}
                }
                look = (look * 5 / 4).min(RARELY);
            }
        }
        let (name, before) = (id.clone(), since);
        let again = ask.run(move |engine| Ok(engine.begin_wait(&name, condition, before)?)).await;
        waiting = match again {
            Ok(waiting) => waiting,
            // It is gone; who took it along may know its code.
            Err(fault) if fault.status == 404 => {
                let told = match next {
                    Some(next) => tokio::time::timeout(LOOK, next).await.ok().and_then(Result::ok),
                    None => None,
                };
                return Ok(match told {
                    None | Some(End::Unknown) => last.map_or(End::Unknown, End::Exited),
                    Some(end) => end,
                });
            }
            Err(fault) => return Err(fault),
        };
    }
}

/// What is told by whoever starts the container through this server.
async fn told(next: &mut Option<oneshot::Receiver<End>>) -> End {
    match next {
        Some(next) => next.await.unwrap_or(End::Unknown),
        None => std::future::pending().await,
    }
}

/// The supervisor's answer; none if it went without one.
pub(super) async fn answered(mut answer: sandbox::client::Waiting) -> Result<Option<i64>, Fault> {
    let io = |e: std::io::Error| Fault::internal(format!("cannot wait: {e}"));
    let signal = Signal::of(&answer).map_err(io)?;
    loop {
        match answer.answer() {
            Ok(Some(code)) => return Ok(Some(code.into())),
            Ok(None) => signal.clear(Interest::READABLE),
            Err(sandbox::client::ClientError::Gone) => return Ok(None),
            Err(e) => return Err(engine::failed_start(e).into()),
        }
        signal.ready(Interest::READABLE).await.map_err(io)?;
    }
}
