//! `rm`: the row goes first, in one transaction; the files follow, now or, after a crash, with the next recovery.

use crate::lifecycle::ATTEMPTS;
use crate::recover::{Liveness, remove_tree};
use crate::request::RemoveOptions;
use crate::volumes::place;
use crate::{Engine, EngineError, Result, store};
use sandbox::client::ClientError;
use std::path::PathBuf;
use types::{ContainerId, ErrorKind, Kinded, Status};

/// How the names of directories begin whose container is gone.
pub(crate) const ASIDE: &str = ".";

impl Engine {
    /// Removes a container.
    pub fn remove(&self, name: &str, options: RemoveOptions) -> Result<()> {
        self.remove_with(name, options, ATTEMPTS)
    }

    fn remove_with(&self, name: &str, options: RemoveOptions, attempts: u32) -> Result<()> {
        let container = self.find(name)?;
        if let Liveness::Supervised(state) = self.liveness(&container)? {
            if !options.force && state.status.is_active() {
                let how = match state.status {
                    Status::Paused => "is paused and must be unpaused first",
                    Status::Restarting => {
                        "is restarting: stop the container before attempting removal or force remove"
                    }
                    _ => "is running: stop the container before removing or force remove",
                };
                return Err(EngineError::Conflict(format!(
                    "cannot remove container {:?}: container {how}",
                    container.name
                )));
            }
            match self.client(&container).and_then(|mut c| Ok(c.kill_all()?)) {
                Ok(_) | Err(EngineError::NotRunning(_) | EngineError::Client(ClientError::Gone)) => {}
                Err(e) => return Err(e),
            }
        }
        match self.ended(&container) {
            // Its supervisor was killed before it answered: the container goes on with another.
            Err(EngineError::Conflict(_)) if options.force && attempts > 1 => {
                self.remove_with(name, options, attempts - 1)
            }
            Ok((_, _lock)) => match self.remove_ended(&container.id, options.volumes) {
                // `--rm` was faster.
                Err(EngineError::NoSuchContainer(_)) if options.force => Ok(()),
                other => other,
            },
            Err(EngineError::NoSuchContainer(_)) if options.force => Ok(()),
            Err(e) => Err(e),
        }
    }

    /// Removes a container that does not run: called with its lock held.
    pub(crate) fn remove_ended(&self, id: &ContainerId, volumes: bool) -> Result<()> {
        self.forget_ended(id, volumes)?;
        remove_tree(&self.paths.sandbox(id))?;
        remove_tree(&self.paths.sandbox_run(id))
    }

    /// As [`Self::remove_ended`], but the directories are only set aside, under names by which nobody finds them:
    /// removing them takes a file system its time. Returns where they are now. Called by the supervisor.
    pub(crate) fn remove_aside(&self, id: &ContainerId) -> Result<Vec<PathBuf>> {
        self.forget_ended(id, true)?;
        let mut aside = Vec::new();
        for dir in [self.paths.sandbox(id), self.paths.sandbox_run(id)] {
            let to = dir.with_file_name(format!("{ASIDE}{id}"));
            aside.push(if std::fs::rename(&dir, &to).is_ok() { to } else { dir });
        }
        Ok(aside)
    }

    fn forget_ended(&self, id: &ContainerId, volumes: bool) -> Result<()> {
        let container = self.find(id.as_str())?;
        let deleted = match store::delete(&self.db, id, volumes) {
            // A full disk has no room to note a removal. What is removed makes it.
            Err(e) if e.kind() == ErrorKind::Exhausted => {
                remove_tree(&self.paths.sandbox(id))?;
                store::delete(&self.db, id, volumes)
            }
            done => done,
        };
        let (was_there, gone) = deleted?;
        if !was_there {
            return Err(EngineError::NoSuchContainer(id.to_string()));
        }
        self.event(&container, "destroy", &[]);
        self.forget_execs(id)?;
        place::clear(&self.writable_place(id))?;
        for volume in gone {
            self.discard_volume(&volume)?;
        }
        Ok(())
    }
}
