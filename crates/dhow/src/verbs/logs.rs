//! `logs`.

use super::common::moment;
use crate::cli::context::Context;
use crate::cli::failure::Outcome;
use crate::cli::verb::Run as Verb;
use engine::LogOptions;
use sandbox::logs::{Entry, Source};
use std::io::{self, Write};
use std::ops::ControlFlow;

/// Flags of `logs`.
#[derive(clap::Args, Debug)]
pub struct Logs {
    /// Show extra details provided to logs
    #[arg(long)]
    details: bool,
    /// Follow log output
    #[arg(short, long)]
    follow: bool,
    /// Show logs since timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)
    #[arg(long, value_name = "string")]
    since: Option<String>,
    /// Number of lines to show from the end of the logs
    #[arg(short = 'n', long, value_name = "string", default_value = "all")]
    tail: String,
    /// Show timestamps
    #[arg(short, long)]
    timestamps: bool,
    /// Show logs before a timestamp (e.g. "2013-01-02T13:23:37Z") or relative (e.g. "42m" for 42 minutes)
    #[arg(long, value_name = "string")]
    until: Option<String>,
}

/// Lines that are collected before they are written.
const BUFFER: usize = 64 << 10;

impl Verb for Logs {
    fn run(self, cx: &Context, words: Vec<String>) -> Outcome {
        let tail = match self.tail.as_str() {
            "all" | "" => None,
            // Docker takes a negative number for all.
            n => match n.parse::<i64>() {
                Ok(n) => usize::try_from(n).ok(),
                Err(_) => {
                    return Err(format!("invalid number of lines {n:?}: give a number or \"all\"").into());
                }
            },
        };
        let options = LogOptions {
            since_ns: moment(self.since.as_deref())?,
            until_ns: moment(self.until.as_deref())?,
            tail,
            follow: self.follow,
            stdout: true,
            stderr: true,
        };
        let mut out = Lines { buffer: Vec::with_capacity(BUFFER), source: Source::Stdout };
        let mut written = Ok(());
        cx.engine()?.logs(&words[0], &options, &mut |entry| {
            written = out.add(&entry, self.timestamps, self.details);
            if written.is_ok() && self.follow {
                written = out.flush();
            }
            if written.is_ok() { ControlFlow::Continue(()) } else { ControlFlow::Break(()) }
        })?;
        written.and_then(|()| out.flush())?;
        Ok(0)
    }
}

/// Neighbours of one source go out in one write.
struct Lines {
    buffer: Vec<u8>,
    source: Source,
}

impl Lines {
    fn add(&mut self, entry: &Entry, timestamps: bool, details: bool) -> io::Result<()> {
        if entry.source != self.source || self.buffer.len() >= BUFFER {
            self.flush()?;
            self.source = entry.source;
        }
        entry.render(timestamps, details, &mut self.buffer);
        Ok(())
    }

    fn flush(&mut self) -> io::Result<()> {
        let bytes = std::mem::take(&mut self.buffer);
        match self.source {
            Source::Stderr => io::stderr().write_all(&bytes),
            _ => {
                let mut out = io::stdout().lock();
                out.write_all(&bytes).and_then(|()| out.flush())
            }
        }
    }
}
