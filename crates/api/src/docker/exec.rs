//! `exec`: made, started and looked at by three requests, perhaps of three servers: what is made is remembered in a file.

use super::{Answer, Ask, ask, logs};
use crate::fault::Fault;
use crate::stream::{self, Options};
use crate::takeover;
use engine::{Engine, EngineError, ExecRequest};
use hyper::StatusCode;
use sandbox::client::{AttachOptions, Stream};
use serde_json::json;
use tokio::io::{AsyncRead, AsyncWrite, AsyncWriteExt};
use types::docker::{ExecConfig, ExecStartConfig};

pub async fn create(mut ask: Ask, id: &str) -> Answer {
    let config: ExecConfig = ask.shape().await?;
    if config.cmd.as_ref().is_none_or(Vec::is_empty) {
        return Err(Fault::invalid("No exec command specified"));
    }
    engine::keys::parse(config.detach_keys.as_deref().unwrap_or_default()).map_err(Fault::invalid)?;
    let name = super::entered(&ask, id).await?;
    refuse_privileged(&ask, &config)?;
    let id = ask
        .run(move |engine| {
            engine.create_exec(&name, config).map_err(|e| match e {
                EngineError::NotRunning(id) => Fault::conflict(format!("container {id} is not running")),
                e => e.into(),
            })
        })
        .await?;
    ask::json(StatusCode::CREATED, &json!({"Id": id}))
}

pub async fn start(mut ask: Ask, id: &str) -> Answer {
    let how: ExecStartConfig = ask.shape().await?;
    let session = id.to_owned();
    let made = ask.run(move |engine| Ok(engine.created_exec(&session)?)).await?;
    super::entered(&ask, &made.container).await?;
    refuse_privileged(&ask, &made.config)?;
    let made = ask
        .run(move |engine| {
            // Told as errors of their own, before the connection is taken over.
            engine.begin_exec(&made)?;
            Ok(made)
        })
        .await?;
    let console_size = how.console_size.as_deref().and_then(|size| match size {
        [rows, columns] => {
            u16::try_from(*rows).ok().zip(u16::try_from(*columns).ok()).filter(|s| *s != (0, 0))
        }
        _ => None,
    });
    let detach = how.detach == Some(true);
    let tty = made.config.tty == Some(true);
    let (container, config) = (made.container.clone(), made.config.clone());
    let request = ExecRequest { id: Some(id.to_owned()), config: config.clone(), console_size, detach };
    if detach {
        ask.run(move |engine| begin(engine, &container, &request).map(drop)).await?;
        return ask::empty(StatusCode::OK);
    }
    let streams = AttachOptions {
        stdin: config.attach_stdin == Some(true),
        stdout: config.attach_stdout == Some(true),
        stderr: config.attach_stderr == Some(true),
    };
    let keys =
        engine::keys::parse(config.detach_keys.as_deref().unwrap_or_default()).map_err(Fault::invalid)?;
    let options = Options { streams, tty, keys: tty.then_some(keys), wire: ask.wire.clone() };
    let kind = logs::kind(tty, ask.version);
    takeover::streams(ask, kind, |ask, input, output| run(ask, container, request, input, output, options))
}

/// Starts a session; that it could not begin is remembered.
fn begin(engine: &Engine, container: &str, request: &ExecRequest) -> Result<Option<Stream>, Fault> {
    let done = engine.exec(container, request);
    if let (Err(e), Some(id)) = (&done, &request.id) {
        engine.fail_exec(id, e.exit_code());
    }
    Ok(done?.1)
}

/// Whoever made the session, perhaps by another server.
fn refuse_privileged(ask: &Ask, config: &ExecConfig) -> Result<(), Fault> {
    match ask.server.settings.policy.restrict.is_some() && config.privileged == Some(true) {
        true => Err(crate::policy::refused("privileged", "privileged commands are not allowed")),
        false => Ok(()),
    }
}

/// As with Docker, what fails now is told in the stream, and by the exit code.
async fn run(
    ask: Ask,
    container: String,
    request: ExecRequest,
    input: impl AsyncRead + Unpin,
    mut output: impl AsyncWrite + Unpin,
    options: Options,
) {
    let started = ask.run(move |engine| begin(engine, &container, &request)).await;
    match started {
        Ok(Some(stream)) => drop(stream::pump(stream, input, output, options).await),
        Ok(None) => drop(output.shutdown().await),
        Err(fault) => {
            let text = format!("{}\r\n", fault.message);
            if !options.tty {
                let _ = output.write_all(&stream::header(1, text.len())).await;
            }
            let _ = output.write_all(text.as_bytes()).await;
            let _ = output.shutdown().await;
        }
    }
}

pub async fn resize(ask: Ask, id: &str) -> Answer {
    let (rows, columns) = (ask.query.size("h")?, ask.query.size("w")?);
    let session = id.to_owned();
    ask.run(move |engine| Ok(engine.resize_exec(&session, rows, columns)?)).await?;
    ask::empty(StatusCode::OK)
}

pub async fn inspect(ask: Ask, id: &str) -> Answer {
    let session = id.to_owned();
    let mut shown = ask.run(move |engine| Ok(serde_json::to_value(engine.inspect_exec(&session)?)?)).await?;
    // It is there, and null, as long as there is none.
    shown["ExitCode"] = shown["ExitCode"].take();
    ask::json(StatusCode::OK, &shown)
}
