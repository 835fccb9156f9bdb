//! The truth about a container, whatever died.
//!
//! ```text
//! state.json says   lock     main process   so
//! ended             free     –              it ended
//! active            held     –              its supervisor knows
//! active            free     runs           adopt: a new supervisor takes over
//! active            free     gone           clean up, note the end; start again if the policy says so
//! lost              held     –              its supervisor knows; ask it
//! lost              free     –              clean up, note that it ended
//! ```

use crate::remove::ASIDE;
use crate::store::{self, Container};
use crate::volumes::place;
use crate::{Engine, EngineError, Result};
use sandbox::client::{Client, ClientError};
use sandbox::container::ContainerHull;
use sandbox::hull::Hull;
use std::path::Path;
use std::time::{Duration, Instant};
use sys::file::Lock;
use types::{ContainerId, RestartPolicy, RunState, Status};

/// How long a supervisor may take from its lock to its socket, and from its last word to its end.
const PATIENCE: Duration = Duration::from_secs(10);
/// After which time without its socket a supervisor is told to make it anew; four times as long before the next time.
const CALL_AFTER: Duration = Duration::from_millis(100);
/// The exit code of a run whose end nobody saw, as Docker's daemon has it after a crash.
pub(crate) const UNKNOWN: i32 = 255;

/// What is true of a container right now.
pub(crate) enum Liveness {
    /// A supervisor runs it.
    Supervised(Box<RunState>),
    /// Nothing of it runs. The lock keeps it so while it is held.
    Ended(Box<RunState>, Lock),
}

impl Engine {
    /// The state for showing: without a lock, unless something looks wrong.
    pub(crate) fn state(&self, container: &Container) -> Result<RunState> {
        if let Some(state) = self.unsupervised(&container.id) {
            return Ok(state);
        }
        match self.liveness(container) {
            Ok(Liveness::Supervised(state) | Liveness::Ended(state, _)) => Ok(*state),
            Err(e @ EngineError::NoSuchContainer(_)) => Err(e),
            // What is wrong with one is told to those who use it, and hides no other.
            Err(_) => Ok(self.read_state(&container.id)),
        }
    }

    /// The state of a container that no supervisor ought to run; none where one ought to, or where its state is lost.
    pub(crate) fn unsupervised(&self, id: &ContainerId) -> Option<RunState> {
        match self.written_state(id) {
            // Without a bundle nothing was ever started.
            None => (!self.paths.bundle(id).exists()).then(RunState::default),
            written => written.filter(|state| !state.status.is_active()),
        }
    }

    /// Finds out what is true, and makes it so where a supervisor died.
    pub(crate) fn liveness(&self, container: &Container) -> Result<Liveness> {
        let id = &container.id;
        let dir = self.paths.sandbox_run(id);
        let seen_before = dir.is_dir();
        if !seen_before {
            use std::os::unix::fs::DirBuilderExt;
            let make = std::fs::DirBuilder::new().recursive(true).mode(0o700).create(&dir);
            make.map_err(EngineError::io("cannot create the directory", &dir))?;
        }
        let path = self.paths.lock(id);
        let Some(lock) = Lock::try_exclusive(&path).map_err(EngineError::io("cannot lock", &path))? else {
            return Ok(Liveness::Supervised(Box::new(self.held_state(id))));
        };
        let (mut state, made_up) = self.left_state(container);
        if !state.status.is_active() {
            // Its supervisor died on the last steps, after it had noted the end; or nobody knows what it noted.
            if state.supervisor != 0 || made_up || (seen_before && self.written_state(id).is_none()) {
                self.clean_after_death(container)?;
                state.supervisor = 0;
                self.note_state(id, &state);
            }
            return Ok(Liveness::Ended(Box::new(state), lock));
        }
        let same_boot = sys::host::boot_id().is_ok_and(|b| b == state.boot_id);
        // Without its bundle nobody can take it over: it is ended.
        if same_boot
            && sys::host::is_running(state.pid, state.pid_start)
            && self.read_bundle(&container.id).is_ok()
        {
            let (launch, socket) = sandbox::client::Launch::new(None)?;
            crate::supervise::spawn(&self.paths, id, socket, lock, true)?;
            launch.started()?;
            return Ok(Liveness::Supervised(Box::new(state)));
        }
        self.clean_after_death(container)?;
        state.status = Status::Exited;
        state.exit_code = UNKNOWN;
        state.pid = 0;
        state.supervisor = 0;
        state.finished_ns = sys::host::now_ns();
        state.error = "its supervisor died with it".into();
        self.note_state(id, &state);
        self.event(container, "die", &[("exitCode", UNKNOWN.to_string())]);
        if container.host.auto_remove.unwrap_or(false) && !state.start_again {
            self.remove_ended(id, true)?;
            return Err(EngineError::NoSuchContainer(container.name.clone()));
        }
        let again = match crate::config::restart_policy(&container.host)? {
            _ if state.start_again => true,
            RestartPolicy::Always | RestartPolicy::UnlessStopped => !state.stopped_by_user,
            RestartPolicy::OnFailure(max) => max == 0 || state.restart_count < max,
            RestartPolicy::No => false,
        };
        // After a reboot `dhow system recover` does this, at boot; a command that only looks should not.
        if again && same_boot {
            drop(lock);
            self.start_container(container, None)?;
            return Ok(Liveness::Supervised(Box::new(self.read_state(id))));
        }
        Ok(Liveness::Ended(Box::new(state), lock))
    }

    /// What is true once nobody is between two states: a start under way has succeeded or failed, a supervisor on its
    /// way out is gone, and a command that held the lock to work on the files has let go of it.
    pub(crate) fn settled(&self, container: &Container) -> Result<Liveness> {
        let begin = Instant::now();
        loop {
            match self.liveness(container)? {
                Liveness::Supervised(state) if !state.status.is_active() => {
                    if begin.elapsed() > PATIENCE {
                        return Err(EngineError::Conflict(format!(
                            "container {} is held by another command: try again when that has ended",
                            container.name
                        )));
                    }
                    // A start is over in milliseconds; what takes longer may be looked at less often.
                    let pause = begin.elapsed() / 8;
                    std::thread::sleep(pause.clamp(Duration::from_millis(1), Duration::from_millis(100)));
                }
                settled => return Ok(settled),
            }
        }
    }

    /// What a request's failure means: a supervisor that hung up has most likely seen its container end.
    pub(crate) fn refused(&self, container: &Container, e: ClientError) -> EngineError {
        match e {
            ClientError::Gone => match self.ended(container) {
                Ok(_) | Err(EngineError::NoSuchContainer(_)) => {
                    EngineError::NotRunning(container.name.clone())
                }
                Err(_) => e.into(),
            },
            other => other.into(),
        }
    }

    /// Notes what was found. On a full or read-only disk the next command finds it again: looking and removing must
    /// go on there.
    fn note_state(&self, id: &ContainerId, state: &RunState) {
        let _ = self.write_state(id, state);
    }

    pub(crate) fn write_state(&self, id: &ContainerId, state: &RunState) -> Result<()> {
        let path = self.paths.state(id);
        let io = EngineError::io("cannot write", &path);
        serde_json::to_vec(state)
            .map_err(Into::into)
            .and_then(|j| sys::file::replace(&path, &j, false))
            .map_err(io)
    }

    /// Removes what a dead supervisor and a dead workload left on the host.
    fn clean_after_death(&self, container: &Container) -> Result<()> {
        let bundle = self.read_bundle(&container.id).ok();
        // One whose cgroup cannot be named had none.
        let cgroup = bundle.as_ref().map(|b| b.cgroup.clone()).or_else(|| self.cgroup(container).ok());
        if let Some(cgroup) = cgroup {
            ContainerHull
                .clean(container.id.as_str(), &cgroup)
                .map_err(|e| EngineError::Start { message: e.to_string(), code: e.exit_code() })?;
        }
        for attachment in bundle.iter().flat_map(|b| b.network.attachments()) {
            net::detach(attachment)?;
            net::dns::withdraw(&self.paths.run, attachment)?;
        }
        if bundle.as_ref().is_some_and(|b| b.machine.is_some()) {
            // Also of networks that it was disconnected from.
            net::remove_ends(container.id.as_str())?;
        }
        for plan in bundle.iter().flat_map(|b| &b.volumes) {
            place::clear(&plan.place)?;
        }
        rootfs::sweep(&self.paths.layer_mounts())?;
        Ok(())
    }

    /// A connection to the supervisor of a running container.
    pub(crate) fn client(&self, container: &Container) -> Result<Client> {
        let run = self.paths.sandbox_run(&container.id);
        let begin = Instant::now();
        let mut call_at = CALL_AFTER;
        loop {
            match Client::connect(&run) {
                Ok(client) => return Ok(client),
                // It holds its lock a moment before it listens.
                Err(ClientError::Connect { .. }) if begin.elapsed() < PATIENCE => {
                    if let Liveness::Ended(..) = self.liveness(container)? {
                        return Err(EngineError::NotRunning(container.name.clone()));
                    }
                    if begin.elapsed() >= call_at {
                        self.call_supervisor(&container.id);
                        call_at *= 4;
                    }
                    std::thread::sleep(Duration::from_millis(2));
                }
                Err(e) => return Err(e.into()),
            }
        }
    }

    /// The lock of an ended container: waits for its supervisor's last breath.
    pub(crate) fn ended(&self, container: &Container) -> Result<(RunState, Lock)> {
        let begin = Instant::now();
        loop {
            match self.liveness(container)? {
                Liveness::Ended(state, lock) => return Ok((*state, lock)),
                Liveness::Supervised(state) if state.status.is_active() || begin.elapsed() > PATIENCE => {
                    return Err(EngineError::Conflict(format!("container {} is running", container.name)));
                }
                Liveness::Supervised(_) => std::thread::sleep(Duration::from_millis(1)),
            }
        }
    }

    /// Looks at everything: adopts, cleans, finishes removals, sweeps what belongs to nobody. What one container's
    /// recovery fails with does not keep the others from theirs.
    pub fn recover(&self) -> Result<Vec<String>> {
        let mut problems = Vec::new();
        let containers = store::all(&self.db)?;
        for container in &containers {
            match self.liveness(container) {
                Ok(Liveness::Ended(state, lock)) => {
                    drop(lock);
                    if container.host.auto_remove.unwrap_or(false)
                        && state.finished_ns != 0
                        && let Err(e) = self.remove_ended(&container.id, true)
                    {
                        problems.push(e.to_string());
                    }
                }
                Ok(Liveness::Supervised(_)) | Err(EngineError::NoSuchContainer(_)) => {}
                Err(e) => problems.push(format!("{}: {e}", container.name)),
            }
        }
        self.sweep(&mut problems);
        Ok(problems)
    }

    /// At boot: recovers, and starts what its restart policy wants to run.
    pub fn recover_at_boot(&self) -> Result<Vec<String>> {
        let mut problems = self.recover()?;
        for container in store::all(&self.db)? {
            let state = self.read_state(&container.id);
            let wanted = match crate::config::restart_policy(&container.host)? {
                RestartPolicy::Always => true,
                RestartPolicy::UnlessStopped => !state.stopped_by_user,
                RestartPolicy::OnFailure(_) | RestartPolicy::No => false,
            };
            if wanted
                && !state.status.is_active()
                && state.started_ns != 0
                && let Err(e) = self.start_container(&container, None)
            {
                problems.push(format!("{}: {e}", container.name));
            }
        }
        Ok(problems)
    }

    fn sweep(&self, problems: &mut Vec<String>) {
        let mut note = |r: Result<()>| {
            if let Err(e) = r {
                problems.push(e.to_string());
            }
        };
        note(self.sweep_directories());
        place::sweep(&self.places());
        note(self.sweep_volumes());
        note(rootfs::sweep(&self.paths.layer_mounts()).map(drop).map_err(Into::into));
        note(self.sweep_networks());
        self.sweep_names();
        note(self.images.collect(&|id| self.users_of(id)).map(drop).map_err(Into::into));
    }

    /// Directories without a row: a removal that was cut short.
    fn sweep_directories(&self) -> Result<()> {
        let (run, root) = (&self.paths.run, &self.paths.root);
        for base in [run.join("sandboxes"), root.join("sandboxes"), run.join("execs")] {
            for entry in std::fs::read_dir(&base).into_iter().flatten().flatten() {
                let name = entry.file_name();
                let Some(name) = name.to_str() else { continue };
                if name.strip_prefix(ASIDE).is_some_and(|id| ContainerId::parse(id).is_ok()) {
                    // Its supervisor is removing it too, or was killed over it.
                    remove_tree(&entry.path())?;
                    continue;
                }
                let Ok(id) = ContainerId::parse(name) else { continue };
                if self.exists(&id)? {
                    continue;
                }
                let lock = self.paths.lock(&id);
                if lock.exists() && Lock::try_exclusive(&lock).ok().flatten().is_none() {
                    // Its supervisor is on its way out.
                    continue;
                }
                remove_tree(&entry.path())?;
            }
        }
        Ok(())
    }

    /// Names of what is gone, or of networks that it left as its supervisor died.
    fn sweep_names(&self) {
        net::dns::sweep_names(&self.paths.run, |network, container| {
            let Ok(id) = ContainerId::parse(container) else { return Some(None) };
            let path = self.paths.lock(&id);
            if !path.exists() {
                return Some(None);
            }
            match Lock::try_exclusive(&path) {
                // Nobody can start it as long as this is held.
                Ok(Some(lock)) => Some(Some(lock)),
                _ => {
                    let bundle = std::fs::read(self.paths.bundle(&id)).ok();
                    let bundle: Option<types::Bundle> = bundle.and_then(|b| serde_json::from_slice(&b).ok());
                    let left =
                        |b: &types::Bundle| b.network.attachments().iter().all(|a| a.network != network);
                    bundle.filter(left).map(|_| None)
                }
            }
        });
    }

    fn exists(&self, id: &ContainerId) -> Result<bool> {
        Ok(self.db.conn().prepare_cached("SELECT 1 FROM containers WHERE id = ?1")?.exists([id.as_str()])?)
    }
}

/// Removes a directory tree that may be gone already.
pub(crate) fn remove_tree(path: &Path) -> Result<()> {
    match rootfs::remove_tree(path) {
        Err(e) if e.kind() != std::io::ErrorKind::NotFound => Err(EngineError::io("cannot remove", path)(e)),
        _ => Ok(()),
    }
}
