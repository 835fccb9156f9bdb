//! `logs`.

use crate::config::log_config;
use crate::request::LogOptions;
use crate::{Engine, Result};
use sandbox::logs::{Entry, ReadOptions};
use std::ops::ControlFlow;

impl Engine {
    /// Gives the lines of a container's log to `sink`, oldest first, until there are no more (with `follow`: until
    /// the container has ended), or until `sink` breaks.
    pub fn logs(
        &self,
        name: &str,
        options: &LogOptions,
        sink: &mut dyn FnMut(Entry) -> ControlFlow<()>,
    ) -> Result<()> {
        let container = self.find(name)?;
        let config = log_config(&container)?;
        let read = ReadOptions {
            since: options.since_ns,
            until: options.until_ns,
            tail: options.tail.map(|t| t as u64),
            follow: options.follow,
            stdout: options.stdout,
            stderr: options.stderr,
        };
        let running = || self.read_state(&container.id).status.is_active();
        Ok(sandbox::logs::read(&self.paths.sandbox(&container.id), &config, &read, sink, &running)?)
    }
}
