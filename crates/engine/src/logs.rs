//! `logs`.

use crate::config::log_config;
use crate::request::LogOptions;
use crate::{Engine, Result};
use sandbox::logs::{Entry, ReadOptions};
use std::ops::ControlFlow;
use std::path::PathBuf;
use types::LogConfig;

/// The log of one container: read without the engine, so that many can follow for long.
#[derive(Clone, Debug)]
pub struct ContainerLog {
    dir: PathBuf,
    state: PathBuf,
    config: LogConfig,
    tty: bool,
}

impl ContainerLog {
    /// Whether what is logged came from a terminal.
    pub fn tty(&self) -> bool {
        self.tty
    }

    /// Gives the lines to `sink`, oldest first, until there are no more (with `follow`: until the container has ended),
    /// until `sink` breaks, or until there is nobody left who wants them, which a follower asks now and then.
    pub fn read(
        &self,
        options: &LogOptions,
        sink: &mut dyn FnMut(Entry) -> ControlFlow<()>,
        wanted: &dyn Fn() -> bool,
    ) -> Result<()> {
        let read = ReadOptions {
            since: options.since_ns,
            until: options.until_ns,
            tail: options.tail.map(|t| t as u64),
            follow: options.follow,
            stdout: options.stdout,
            stderr: options.stderr,
        };
        let running =
            || wanted() && crate::record::written(&self.state).is_some_and(|s| s.status.is_active());
        Ok(sandbox::logs::read(&self.dir, &self.config, &read, sink, &running)?)
    }
}

impl Engine {
    /// A container's log.
    pub fn log(&self, name: &str) -> Result<ContainerLog> {
        let container = self.find(name)?;
        Ok(ContainerLog {
            dir: self.paths.sandbox(&container.id),
            state: self.paths.state(&container.id),
            config: log_config(&container)?,
            tty: container.config.tty.unwrap_or(false),
        })
    }

    /// Gives the lines of a container's log to `sink`, oldest first, until there are no more (with `follow`: until
    /// the container has ended), or until `sink` breaks.
    pub fn logs(
        &self,
        name: &str,
        options: &LogOptions,
        sink: &mut dyn FnMut(Entry) -> ControlFlow<()>,
    ) -> Result<()> {
        self.log(name)?.read(options, sink, &|| true)
    }
}
