//! Exec sessions of the API, which are made by one request and started by another, perhaps of another server: between the
//! two they are files, `<run>/execs/<container>/<id>`, which go with their container. What runs and what ended lately the
//! supervisor knows.

use crate::exec::admitted;
use crate::recover::remove_tree;
use crate::spec::invalid;
use crate::store::Container;
use crate::{Engine, EngineError, Result};
use sandbox::client::ExecInfo;
use serde::{Deserialize, Serialize};
use std::collections::HashSet;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime};
use types::docker::{ExecConfig, ExecInspectResponse, ProcessConfig};

/// How long a session is remembered that nobody starts, and one that the supervisor does not remember either, from its start
/// on.
const UNSTARTED: Duration = Duration::from_secs(24 * 3600);
const ENDED: Duration = Duration::from_secs(300);
/// How long a supervisor may take to take a session up, or to die.
const SETTLES: Duration = Duration::from_secs(3);
/// How long the size of a terminal waits for that, as in Docker: a client has its stream before the command begins.
const COMING: Duration = Duration::from_secs(10);
/// 128 and SIGKILL.
const KILLED: i64 = 137;

/// A session that was made.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct CreatedExec {
    /// Names it.
    pub id: String,
    /// Full id of its container.
    pub container: String,
    /// What is to run.
    pub config: ExecConfig,
    /// Its exit code, where it never began.
    #[serde(default)]
    pub failed: Option<i64>,
    /// Where it was started: by which supervisor, in the run that began when.
    #[serde(default)]
    pub started: Option<(i32, i64)>,
}

impl Engine {
    fn execs_dir(&self) -> PathBuf {
        self.paths.run.join("execs")
    }

    fn execs_of(&self, container: &str) -> PathBuf {
        self.execs_dir().join(container)
    }

    /// Makes a session in a running container; returns its id.
    pub fn create_exec(&self, name: &str, config: ExecConfig) -> Result<String> {
        let container = self.find(name)?;
        self.may_begin(&container)?;
        let id = crate::ids::new_id()?.to_string();
        let made = CreatedExec {
            id: id.clone(),
            container: container.id.to_string(),
            config,
            failed: None,
            started: None,
        };
        let dir = self.execs_of(&made.container);
        {
            use std::os::unix::fs::DirBuilderExt;
            let make = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            make.map_err(EngineError::io("cannot create the directory", &dir))?;
        }
        // Looking through them costs what there are: one in sixteen does it.
        if id.starts_with('0') {
            let known: HashSet<String> = self.execs(name)?.into_iter().map(|e| e.id).collect();
            forget_old(&dir, &known, SystemTime::now());
        }
        self.write_exec(&made)?;
        Ok(id)
    }

    fn write_exec(&self, made: &CreatedExec) -> Result<()> {
        let path = self.execs_of(&made.container).join(&made.id);
        let json = serde_json::to_vec(made).map_err(invalid)?;
        sys::file::replace(&path, &json, false).map_err(EngineError::io("cannot write", &path))
    }

    /// A session that was made, whether it was started or not.
    pub fn created_exec(&self, id: &str) -> Result<CreatedExec> {
        let missing = || EngineError::NoSuchObject(format!("exec instance {id}"));
        // It becomes a name of a file.
        if types::ContainerId::parse(id).is_err() {
            return Err(missing());
        }
        let containers = std::fs::read_dir(self.execs_dir()).into_iter().flatten().flatten();
        containers.map(|dir| dir.path().join(id)).find_map(|path| read(&path)).ok_or_else(missing)
    }

    /// Forgets the sessions of a container that is gone.
    pub(crate) fn forget_execs(&self, id: &types::ContainerId) -> Result<()> {
        remove_tree(&self.execs_of(id.as_str()))
    }

    /// Remembers that a session begins now, where it may; it can do so once.
    pub fn begin_exec(&self, made: &CreatedExec) -> Result<()> {
        let container = self.find(&made.container)?;
        self.may_begin(&container)?;
        let again = made.started.is_some() || self.execs(&made.container)?.iter().any(|e| e.id == made.id);
        if again {
            return Err(EngineError::Conflict(format!("exec instance {} has already run", made.id)));
        }
        let state = self.read_state(&container.id);
        self.write_exec(&CreatedExec { started: Some((state.supervisor, state.started_ns)), ..made.clone() })
    }

    fn may_begin(&self, container: &Container) -> Result<()> {
        admitted(container, self.liveness(container)?).map(drop)
    }

    /// Remembers that a session could not begin.
    pub fn fail_exec(&self, id: &str, code: i32) {
        if let Ok(made) = self.created_exec(id) {
            // The client was told already.
            let _ = self.write_exec(&CreatedExec { failed: Some(code.into()), ..made });
        }
    }

    /// Whether a session that its container's supervisor does not know is over: killed with its container, as Docker has it, or
    /// its code lost with another supervisor. No code at all would be read as success.
    fn is_lost(&self, made: &CreatedExec) -> Result<bool> {
        let Some(run) = made.started else { return Ok(false) };
        let state = self.state(&self.find(&made.container)?)?;
        Ok(!state.status.is_active() || (state.supervisor, state.started_ns) != run)
    }

    /// A session, what the supervisor says of it, and whether it is over without a word of that. One that was started is known
    /// or over, but for the moments in which its supervisor takes it up, or dies.
    fn told_of(&self, id: &str, patience: Duration) -> Result<(CreatedExec, Option<ExecInfo>, bool)> {
        let begin = Instant::now();
        loop {
            let made = self.created_exec(id)?;
            let execs = match self.execs(&made.container) {
                Err(EngineError::NoSuchContainer(_)) => {
                    return Err(EngineError::NoSuchObject(format!("exec instance {id}")));
                }
                execs => execs?,
            };
            let info = execs.into_iter().find(|e| e.id == made.id);
            let lost = info.is_none() && self.is_lost(&made)?;
            let awaited = made.started.is_some() && made.failed.is_none() && info.is_none() && !lost;
            if !awaited || begin.elapsed() > patience {
                return Ok((made, info, lost));
            }
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Sets the size of a session's terminal.
    pub fn resize_exec(&self, id: &str, rows: u16, columns: u16) -> Result<()> {
        let (made, ..) = self.told_of(id, COMING)?;
        let container = self.find(&made.container)?;
        Ok(self.client(&container)?.resize(Some(id), rows, columns)?)
    }

    /// A session in Docker's shape.
    pub fn inspect_exec(&self, id: &str) -> Result<ExecInspectResponse> {
        let (made, info, killed) = self.told_of(id, SETTLES)?;
        let running = info.as_ref().is_some_and(|e| e.exit_code.is_none());
        let config = &made.config;
        let words = config.cmd.clone().unwrap_or_default();
        Ok(ExecInspectResponse {
            can_remove: Some(false),
            detach_keys: Some(config.detach_keys.clone().unwrap_or_default()),
            running: Some(running),
            exit_code: info
                .as_ref()
                .and_then(|e| e.exit_code.map(i64::from))
                .or(made.failed)
                .or(killed.then_some(KILLED)),
            process_config: Some(ProcessConfig {
                privileged: Some(config.privileged.unwrap_or(false)),
                user: config.user.clone().filter(|u| !u.is_empty()),
                tty: Some(config.tty.unwrap_or(false)),
                entrypoint: words.first().cloned(),
                arguments: Some(words.get(1..).unwrap_or_default().to_vec()),
            }),
            open_stdin: Some(config.attach_stdin.unwrap_or(false)),
            open_stderr: Some(config.attach_stderr.unwrap_or(false)),
            open_stdout: Some(config.attach_stdout.unwrap_or(false)),
            pid: Some(info.filter(|_| running).map_or(0, |e| e.pid.into())),
            container_id: Some(made.container),
            id: Some(made.id),
        })
    }
}

fn read(path: &Path) -> Option<CreatedExec> {
    serde_json::from_slice(&std::fs::read(path).ok()?).ok()
}

/// Removes the sessions of a container that nobody may still ask for. Those that the supervisor knows are not old.
fn forget_old(dir: &Path, known: &HashSet<String>, now: SystemTime) {
    for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
        let changed = entry.metadata().and_then(|m| m.modified());
        let age = changed.ok().and_then(|t| now.duration_since(t).ok()).unwrap_or_default();
        if age <= ENDED || entry.file_name().to_str().is_some_and(|name| known.contains(name)) {
            continue;
        }
        // What cannot be read can be had by nobody.
        let has_begun =
            read(&entry.path()).is_none_or(|made| made.started.is_some() || made.failed.is_some());
        if has_begun || age > UNSTARTED {
            let _ = std::fs::remove_file(entry.path());
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_nobody_asks_for_any_more_is_forgotten() {
        let dir = tempfile::tempdir().unwrap();
        let made = |name: &str, started, failed| {
            let id = name.repeat(64);
            let made = CreatedExec {
                id: id.clone(),
                container: "c".into(),
                config: ExecConfig::default(),
                failed,
                started: Option::from((1, 1)).filter(|_| started),
            };
            std::fs::write(dir.path().join(&id), serde_json::to_vec(&made).unwrap()).unwrap();
            id
        };
        let (new, run, known, bad) = (
            made("a", false, None),
            made("b", true, None),
            made("c", true, None),
            made("d", false, Some(127)),
        );
        let there = |ids: &[&String]| {
            let mut names: Vec<_> =
                std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
            names.sort();
            assert_eq!(names, ids.iter().map(std::ffi::OsString::from).collect::<Vec<_>>());
        };
        let live = HashSet::from([known.clone()]);
        let now = SystemTime::now();
        forget_old(dir.path(), &live, now + ENDED / 2);
        there(&[&new, &run, &known, &bad]);
        forget_old(dir.path(), &live, now + ENDED * 2);
        there(&[&new, &known]);
        forget_old(dir.path(), &live, now + UNSTARTED * 2);
        there(&[&known]);
    }
}
