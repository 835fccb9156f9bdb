//! Exec sessions of the API, which are made by one request and started by another, perhaps of another server: between the
//! two they are files, `<run>/execs/<id>`. What runs and what ended lately the supervisor knows.

use crate::recover::Liveness;
use crate::spec::invalid;
use crate::{Engine, EngineError, Result};
use serde::{Deserialize, Serialize};
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};
use types::Status;
use types::docker::{ExecConfig, ExecInspectResponse, ProcessConfig};

/// How long a session is remembered that nobody starts, or whose container has ended.
const KEPT: Duration = Duration::from_secs(24 * 3600);
/// 128 and SIGKILL.
const KILLED: i64 = 137;
/// From so many on the old ones are looked for.
const MANY: usize = 256;

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
    /// It was started.
    #[serde(default)]
    pub started: bool,
}

impl Engine {
    fn execs_dir(&self) -> PathBuf {
        self.paths.run.join("execs")
    }

    fn exec_file(&self, id: &str) -> Result<PathBuf> {
        // It becomes a name of a file.
        if id.len() != 64 || !id.bytes().all(|b| b.is_ascii_hexdigit()) {
            return Err(EngineError::NoSuchObject(format!("exec instance {id}")));
        }
        Ok(self.execs_dir().join(id))
    }

    /// Makes a session in a running container; returns its id.
    pub fn create_exec(&self, name: &str, config: ExecConfig) -> Result<String> {
        let container = self.find(name)?;
        self.admit_container(&container)?;
        let id = crate::create::new_id()?.to_string();
        let made = CreatedExec {
            id: id.clone(),
            container: container.id.to_string(),
            config,
            failed: None,
            started: false,
        };
        let dir = self.execs_dir();
        {
            use std::os::unix::fs::DirBuilderExt;
            let make = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            make.map_err(EngineError::io("cannot create the directory", &dir))?;
        }
        forget_old(&dir);
        self.write_exec(&made)?;
        Ok(id)
    }

    fn write_exec(&self, made: &CreatedExec) -> Result<()> {
        let path = self.exec_file(&made.id)?;
        let json = serde_json::to_vec(made).map_err(invalid)?;
        sys::file::replace(&path, &json, false).map_err(EngineError::io("cannot write", &path))
    }

    /// A session that was made, whether it was started or not.
    pub fn created_exec(&self, id: &str) -> Result<CreatedExec> {
        let path = self.exec_file(id)?;
        let missing = || EngineError::NoSuchObject(format!("exec instance {id}"));
        let json = std::fs::read(&path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => missing(),
            _ => EngineError::io("cannot read", &path)(e),
        })?;
        serde_json::from_slice(&json).map_err(|_| missing())
    }

    /// Remembers that a session begins now, where it may; it can do so once.
    pub fn begin_exec(&self, made: &CreatedExec) -> Result<()> {
        let container = self.find(&made.container)?;
        self.admit_container(&container)?;
        let again = made.started || self.execs(&made.container)?.iter().any(|e| e.id == made.id);
        if again {
            return Err(EngineError::Conflict(format!("exec instance {} has already run", made.id)));
        }
        self.write_exec(&CreatedExec { started: true, ..made.clone() })
    }

    fn admit_container(&self, container: &crate::store::Container) -> Result<()> {
        match self.liveness(container)? {
            Liveness::Ended(..) => Err(EngineError::NotRunning(container.id.to_string())),
            Liveness::Supervised(state) => match state.status {
                Status::Paused => Err(EngineError::Conflict(format!(
                    "container {} is paused, unpause the container before exec",
                    container.name
                ))),
                Status::Restarting => Err(EngineError::Conflict(format!(
                    "container {} is restarting, wait until the container is running",
                    container.name
                ))),
                _ => Ok(()),
            },
        }
    }

    /// Remembers that a session could not begin.
    pub fn fail_exec(&self, id: &str, code: i32) {
        if let Ok(made) = self.created_exec(id) {
            // The client was told already.
            let _ = self.write_exec(&CreatedExec { failed: Some(code.into()), ..made });
        }
    }

    /// A session in Docker's shape.
    pub fn inspect_exec(&self, id: &str) -> Result<ExecInspectResponse> {
        let made = self.created_exec(id)?;
        let execs = match self.execs(&made.container) {
            Err(EngineError::NoSuchContainer(_)) => {
                return Err(EngineError::NoSuchObject(format!("exec instance {id}")));
            }
            execs => execs?,
        };
        let info = execs.into_iter().find(|e| e.id == made.id);
        let running = info.as_ref().is_some_and(|e| e.exit_code.is_none());
        // Whose container ended was killed with it, as Docker has it.
        let killed = made.started && info.is_none() && !self.status(&made.container)?.is_active();
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

/// Removes what is older than anybody may still ask for, where there is much.
fn forget_old(dir: &Path) {
    let Ok(entries) = std::fs::read_dir(dir) else { return };
    let entries: Vec<_> = entries.flatten().collect();
    if entries.len() < MANY {
        return;
    }
    let old = |e: &std::fs::DirEntry| {
        let changed = e.metadata().and_then(|m| m.modified());
        changed.is_ok_and(|t| SystemTime::now().duration_since(t).is_ok_and(|age| age > KEPT))
    };
    for entry in entries.iter().filter(|e| old(e)) {
        let _ = std::fs::remove_file(entry.path());
    }
}
