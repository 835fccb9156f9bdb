//! `containers/{id}/logs`.

use super::{Answer, Ask, ask};
use crate::body::BodyWriter;
use crate::fault::Fault;
use crate::{stream, work};
use engine::LogOptions;
use sandbox::logs::{Entry, Source};
use std::cell::RefCell;
use std::io::{self, Write};
use std::ops::ControlFlow;

/// The type of streams in frames; clients before API 1.42 know only the other.
const FRAMES: &str = "application/vnd.docker.multiplexed-stream";
const RAW: &str = "application/vnd.docker.raw-stream";

/// The type of a container's streams.
pub(super) fn kind(tty: bool, version: u32) -> &'static str {
    if tty || version < 42 { RAW } else { FRAMES }
}

/// How lines are shown.
pub(super) struct Look {
    pub tty: bool,
    pub timestamps: bool,
    pub details: bool,
}

pub async fn logs(ask: Ask, id: &str) -> Answer {
    let options = LogOptions {
        since_ns: ask.query.moment("since")?,
        until_ns: ask.query.moment("until")?,
        tail: tail(ask.query.get("tail")),
        follow: ask.query.flag("follow"),
        stdout: ask.query.flag("stdout"),
        stderr: ask.query.flag("stderr"),
    };
    if !options.stdout && !options.stderr {
        return Err(Fault::invalid("Bad parameters: you must choose at least one stream"));
    }
    let name = id.to_owned();
    let log = ask.run(move |engine| Ok(engine.log(&name)?)).await?;
    let look =
        Look { tty: log.tty(), timestamps: ask.query.flag("timestamps"), details: ask.query.flag("details") };
    let head = ask::head(kind(look.tty, ask.version));
    work::follow(head, move |out| {
        out.begin();
        write(&log, &options, &look, out)
    })
    .await
}

/// Writes a container's log as far as the options say.
pub(super) fn write(
    log: &engine::ContainerLog,
    options: &LogOptions,
    look: &Look,
    out: &mut BodyWriter,
) -> Result<(), Fault> {
    let out = RefCell::new(out);
    log.read(
        options,
        &mut |entry| {
            let mut out = out.borrow_mut();
            let written = line(&entry, look, &mut **out);
            let written = if options.follow { written.and_then(|()| out.flush()) } else { written };
            if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        },
        &|| !out.borrow().is_gone(),
    )?;
    Ok(())
}

fn line(entry: &Entry, look: &Look, out: &mut impl Write) -> io::Result<()> {
    let mut text = Vec::new();
    entry.render(look.timestamps, look.details, &mut text);
    if !look.tty {
        let of = if entry.source == Source::Stderr { 2 } else { 1 };
        out.write_all(&stream::header(of, text.len()))?;
    }
    out.write_all(&text)
}

/// `all`, or a number. Docker takes what it cannot read, and a negative one, for all.
fn tail(given: Option<&str>) -> Option<usize> {
    given?.parse().ok()
}
