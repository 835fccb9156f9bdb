//! `state.json` as commands read it, and what is done where it, or the supervisor's socket, was lost.
//!
//! It is replaced by rename and synced to the disk only when a container ended for good: the loss of power may leave
//! it empty. A supervisor that lives is asked then; without one, a container that has begun is taken for ended.

use crate::paths::Paths;
use crate::recover::UNKNOWN;
use crate::store::Container;
use crate::{Engine, config};
use rustix::process::{Pid, PidfdFlags, Signal, pidfd_open, pidfd_send_signal};
use sandbox::client::Client;
use std::os::unix::fs::MetadataExt;
use std::path::Path;
use types::{ContainerId, RunState, Status};

/// The state as the supervisor left it; that of a new container if there is none, that of an ended one if it cannot be
/// read.
pub(crate) fn read_state(paths: &Paths, id: &ContainerId) -> RunState {
    let path = paths.state(id);
    match written(&path) {
        Some(state) => state,
        None if path.exists() => lost(paths, id),
        None => RunState::default(),
    }
}

pub(crate) fn written(path: &Path) -> Option<RunState> {
    std::fs::read(path).ok().and_then(|b| serde_json::from_slice(&b).ok())
}

/// What can be said of a run whose record is lost: it was started when its bundle was written.
fn lost(paths: &Paths, id: &ContainerId) -> RunState {
    let time = |path: &Path| {
        let meta = std::fs::metadata(path).ok();
        meta.map_or(0, |m| m.mtime().saturating_mul(1_000_000_000).saturating_add(m.mtime_nsec()))
    };
    let started_ns = time(&paths.bundle(id)).max(1);
    RunState {
        status: Status::Exited,
        exit_code: UNKNOWN,
        error: "the record of its last run was lost: how it ended is not known".into(),
        started_ns,
        finished_ns: time(&paths.state(id)).max(started_ns),
        ..RunState::default()
    }
}

impl Engine {
    pub(crate) fn read_state(&self, id: &ContainerId) -> RunState {
        read_state(&self.paths, id)
    }

    /// The state, where the supervisor left one that can be read.
    pub(crate) fn written_state(&self, id: &ContainerId) -> Option<RunState> {
        written(&self.paths.state(id))
    }

    /// The state while a supervisor, or a command at work on the files, holds the lock.
    pub(crate) fn held_state(&self, id: &ContainerId) -> RunState {
        self.written_state(id)
            // It writes the file anew before it answers.
            .or_else(|| Client::connect(&self.paths.sandbox_run(id)).ok()?.state().ok())
            // It has been written since, or nothing was ever started.
            .unwrap_or_else(|| self.read_state(id))
    }

    /// The state while nobody holds the lock, and whether it had to be made up.
    pub(crate) fn left_state(&self, container: &Container) -> (RunState, bool) {
        let id = &container.id;
        match self.written_state(id) {
            Some(state) => (state, false),
            None if self.has_begun(container) => (lost(&self.paths, id), true),
            None => (RunState::default(), false),
        }
    }

    /// Whether a supervisor has left marks: a file of its state, or a log.
    fn has_begun(&self, container: &Container) -> bool {
        let log = config::log_config(container).ok();
        let log = log.and_then(|c| sandbox::logs::current_file(&self.paths.sandbox(&container.id), &c));
        self.paths.state(&container.id).exists() || log.is_some_and(|path| path.exists())
    }

    /// Tells the supervisor of a container, which holds its lock but cannot be reached, to make its socket anew.
    pub(crate) fn call_supervisor(&self, id: &ContainerId) {
        let Ok(lock) = std::fs::metadata(self.paths.lock(id)) else { return };
        for process in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let pid = process.file_name().to_str().and_then(|p| p.parse().ok()).and_then(Pid::from_raw);
            let Some(pid) = pid else { continue };
            let command = std::fs::read(process.path().join("cmdline")).unwrap_or_default();
            if !command.split(|b| *b == 0).any(|word| word == id.as_str().as_bytes()) {
                continue;
            }
            let Ok(pidfd) = pidfd_open(pid, PidfdFlags::empty()) else { continue };
            // Anybody can have its command line, nobody else this file; and one that has just begun would die of it.
            if has_open(&process.path(), &lock) && catches_hangup(&process.path()) {
                let _ = pidfd_send_signal(&pidfd, Signal::HUP);
            }
        }
    }
}

/// Whether a process (its directory in procfs) holds a file open.
fn has_open(process: &Path, file: &std::fs::Metadata) -> bool {
    let held = std::fs::read_dir(process.join("fd")).into_iter().flatten().flatten();
    held.filter_map(|fd| std::fs::metadata(fd.path()).ok())
        .any(|meta| (meta.dev(), meta.ino()) == (file.dev(), file.ino()))
}

/// Whether SIGHUP does not end it (proc_pid_status(5), `SigCgt`).
fn catches_hangup(process: &Path) -> bool {
    let status = std::fs::read_to_string(process.join("status")).unwrap_or_default();
    let caught = status.lines().find_map(|l| l.strip_prefix("SigCgt:"));
    caught.and_then(|mask| u64::from_str_radix(mask.trim(), 16).ok()).is_some_and(|mask| mask & 1 != 0)
}
