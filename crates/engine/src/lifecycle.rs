//! Verbs on a container that exists: stop, restart, kill, pause, update, rename, wait, attach.

use crate::mounts::Kind;
use crate::recover::Liveness;
use crate::spec::invalid;
use crate::store::{self, Container, json};
use crate::{Engine, EngineError, Result, config, names, signals, spec};
use sandbox::client::{AttachOptions, Client, ClientError, Stream, WaitCondition};
use std::path::PathBuf;
use std::time::{Duration, Instant};
use types::docker::{ContainerUpdateBody, HostConfig};
use types::{ErrorKind, Kinded, RunState, Status};

/// How often a request is made again when the supervisor is killed while it answers.
pub(crate) const ATTEMPTS: u32 = 5;
/// SIGKILL.
const KILL: i32 = 9;
/// How long a killed process may take to die: one that waits for a disk does so first.
pub const DEATH: Duration = Duration::from_secs(10);

impl Engine {
    pub(crate) fn find(&self, name: &str) -> Result<Container> {
        store::find(&self.db, name)
    }

    /// Full id of a container.
    pub fn id(&self, name: &str) -> Result<types::ContainerId> {
        Ok(self.find(name)?.id)
    }

    /// What a container is at.
    pub fn status(&self, name: &str) -> Result<Status> {
        Ok(self.state(&self.find(name)?)?.status)
    }

    /// Whether a container goes when it ends (`--rm`); one that is gone does not.
    pub fn removes_itself(&self, name: &str) -> bool {
        self.find(name).is_ok_and(|c| c.host.auto_remove.unwrap_or(false))
    }

    /// A connection to a container that runs.
    fn running(&self, name: &str) -> Result<(Container, Box<RunState>, Client)> {
        let container = self.find(name)?;
        match self.liveness(&container)? {
            Liveness::Supervised(state) => {
                let client = self.client(&container)?;
                Ok((container, state, client))
            }
            Liveness::Ended(..) => Err(EngineError::NotRunning(name.to_owned())),
        }
    }

    /// Asks a container to end, and kills it after `timeout` seconds (-1 waits for ever). One that does not run is
    /// left alone.
    pub fn stop(&self, name: &str, signal: Option<&str>, timeout: Option<i64>) -> Result<()> {
        let signal = signal.map(signals::parse).transpose()?;
        let container = self.find(name)?;
        self.stop_container(&container, signal, timeout)
    }

    pub(crate) fn stop_container(
        &self,
        container: &Container,
        signal: Option<i32>,
        timeout: Option<i64>,
    ) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let stopped = self.running(container.id.as_str()).and_then(|(_, _, mut client)| {
                client.stop(signal, timeout).map_err(|e| self.refused(container, e))
            });
            match stopped {
                Ok(_) | Err(EngineError::NotRunning(_)) => return Ok(()),
                // The supervisor was killed, and the container goes on without it.
                Err(EngineError::Client(ClientError::Gone)) => {}
                Err(EngineError::Client(e)) if e.kind() == ErrorKind::NotFound => return Ok(()),
                Err(e) => return Err(e),
            }
        }
        Err(ClientError::Gone.into())
    }

    /// Asks a container to end as [`Engine::stop`] does, and returns what tells of its end; none where it does not run. Its
    /// answer may stay out when the supervisor dies: then ask again.
    pub fn begin_stop(
        &self,
        name: &str,
        signal: Option<&str>,
        timeout: Option<i64>,
    ) -> Result<Option<sandbox::client::Waiting>> {
        let signal = signal.map(signals::parse).transpose()?;
        let container = self.find(name)?;
        let asked = self.running(container.id.as_str()).and_then(|(_, _, client)| {
            client.stopping(signal, timeout).map_err(|e| self.refused(&container, e))
        });
        match asked {
            Ok(waiting) => Ok(Some(waiting)),
            Err(EngineError::NotRunning(_)) => Ok(None),
            Err(EngineError::Client(e)) if e.kind() == ErrorKind::NotFound => Ok(None),
            Err(e) => Err(e),
        }
    }

    /// Stops it, if it runs, and starts it.
    pub fn restart(&self, name: &str, signal: Option<&str>, timeout: Option<i64>) -> Result<()> {
        for _ in 0..ATTEMPTS {
            let Some(mut restarted) = self.begin_restart(name, signal, timeout)? else { return Ok(()) };
            match restarted.answer_until(None) {
                Ok(_) => return Ok(()),
                // The supervisor was killed, and the container goes on without it.
                Err(ClientError::Gone) => {}
                Err(e) => return Err(failed_start(e)),
            }
        }
        Err(ClientError::Gone.into())
    }

    /// Asks for a restart, and returns what tells that it is done; none where it did not run, and was started. What runs its
    /// supervisor restarts, whether the client stays or not. The answer may stay out when the supervisor dies: then ask
    /// again.
    pub fn begin_restart(
        &self,
        name: &str,
        signal: Option<&str>,
        timeout: Option<i64>,
    ) -> Result<Option<sandbox::client::Waiting>> {
        let signal = signal.map(signals::parse).transpose()?;
        let container = self.find(name)?;
        let asked = self.running(container.id.as_str()).and_then(|(_, _, client)| {
            client.restarting(signal, timeout).map_err(|e| self.refused(&container, e))
        });
        match asked {
            Ok(waiting) => Ok(Some(waiting)),
            Err(EngineError::NotRunning(_)) => {
                drop(self.ended(&container)?);
                self.start_container(&container, None)?;
                self.event(&container, "restart", &[]);
                Ok(None)
            }
            Err(e) => Err(e),
        }
    }

    /// Sends a signal to the main process. One that it cannot survive has ended it when this returns, as in Docker, or has
    /// not within [`DEATH`].
    pub fn kill(&self, name: &str, signal: Option<&str>) -> Result<()> {
        if let Some(mut end) = self.begin_kill(name, signal)? {
            // What fails is that the supervisor ended with its container.
            let _ = end.answer_until(Some(Instant::now() + DEATH));
        }
        Ok(())
    }

    /// The same without waiting: what tells of the end, where the signal is one that cannot be survived.
    pub fn begin_kill(&self, name: &str, signal: Option<&str>) -> Result<Option<sandbox::client::Waiting>> {
        let signal = signals::parse(signal.unwrap_or("KILL"))?;
        let killed = self.running(name).and_then(|(container, _, mut client)| {
            let end = match signal {
                KILL => Some(self.client(&container)?.waiting(WaitCondition::NextExit)?),
                _ => None,
            };
            client.signal(signal).map_err(|e| self.refused(&container, e))?;
            Ok(end)
        });
        killed.map_err(|e| match e {
            EngineError::NotRunning(name) => {
                EngineError::Conflict(format!("cannot kill container: {name}: container is not running"))
            }
            other => other,
        })
    }

    /// Freezes it.
    pub fn pause(&self, name: &str) -> Result<()> {
        let (container, _, mut client) = self.running(name)?;
        client.pause().map_err(|e| self.refused(&container, e))
    }

    /// Thaws it.
    pub fn unpause(&self, name: &str) -> Result<()> {
        let (container, _, mut client) = self.running(name)?;
        client.resume().map_err(|e| self.refused(&container, e))
    }

    /// Attaches to the streams of a running container.
    pub fn attach(&self, name: &str, options: AttachOptions) -> Result<Stream> {
        let stopped = |e| match e {
            EngineError::NotRunning(_) => {
                EngineError::Conflict("you cannot attach to a stopped container, start it first".into())
            }
            other => other,
        };
        let (container, state, client) = self.running(name).map_err(stopped)?;
        match state.status {
            Status::Paused => {
                Err(EngineError::Conflict("you cannot attach to a paused container, unpause it first".into()))
            }
            Status::Restarting => Err(EngineError::Conflict(
                "you cannot attach to a restarting container, wait until it is running".into(),
            )),
            _ => client.attach(options).map_err(|e| stopped(self.refused(&container, e))),
        }
    }

    /// Sets the size of a container's terminal.
    pub fn resize(&self, name: &str, rows: u16, columns: u16) -> Result<()> {
        Ok(self.running(name)?.2.resize(None, rows, columns)?)
    }

    /// Waits for a container's end and returns its exit code.
    pub fn wait(&self, name: &str, condition: WaitCondition) -> Result<i64> {
        let container = self.find(name)?;
        match self.liveness(&container)? {
            Liveness::Ended(state, _lock) if condition == WaitCondition::NotRunning => {
                Ok(state.exit_code.into())
            }
            Liveness::Ended(state, _lock)
                if condition == WaitCondition::Removed && self.find(name).is_err() =>
            {
                Ok(state.exit_code.into())
            }
            Liveness::Ended(..) => self.wait_for_next(&container, condition),
            Liveness::Supervised(_) => match self.client(&container).and_then(|mut c| Ok(c.wait(condition)?))
            {
                Ok(code) => Ok(code.into()),
                // It ended, or its supervisor was killed and the next one knows.
                Err(EngineError::Client(ClientError::Gone)) => match self.settled(&container)? {
                    Liveness::Ended(state, _) => Ok(state.exit_code.into()),
                    Liveness::Supervised(_) => self.wait(container.id.as_str(), condition),
                },
                Err(EngineError::NotRunning(_)) => Ok(self.read_state(&container.id).exit_code.into()),
                Err(e) => Err(e),
            },
        }
    }

    /// Nothing runs yet: waits until something does, or until the container is gone.
    fn wait_for_next(&self, container: &Container, condition: WaitCondition) -> Result<i64> {
        let id = container.id.as_str();
        loop {
            std::thread::sleep(std::time::Duration::from_millis(50));
            let state = self.read_state(&container.id);
            match self.find(id) {
                Err(EngineError::NoSuchContainer(_)) => return Ok(state.exit_code.into()),
                Err(e) => return Err(e),
                Ok(_) if state.status.is_active() => return self.wait(id, condition),
                Ok(_) => {}
            }
        }
    }

    /// Changes limits and restart policy, at once where it runs. Returns warnings.
    pub fn update(&self, name: &str, change: &ContainerUpdateBody) -> Result<Vec<String>> {
        let container = self.find(name)?;
        let change = as_host_config(change)?;
        let (host, mut resources) = spec::updated_resources(&container.host, &change)?;
        let warnings = sandbox::container::cgroup::Cgroup::unsupported(&resources);
        crate::machine::check(&Container { host: host.clone(), ..container.clone() })?;
        let restart = config::restart_policy(&host)?;
        if restart != types::RestartPolicy::No && host.auto_remove.unwrap_or(false) {
            return Err(EngineError::Conflict(
                "restart policy cannot be updated because AutoRemove is enabled for the container".into(),
            ));
        }
        if let Liveness::Supervised(_) = self.liveness(&container)? {
            let mut client = self.client(&container)?;
            client
                .update(Some(&resources), change.restart_policy.is_some().then_some(restart))
                .map_err(|e| self.refused(&container, e))?;
            let mut bundle = self.read_bundle(&container.id)?;
            let old = bundle.spec.linux().as_ref().and_then(|l| l.resources().clone());
            resources.set_devices(old.and_then(|r| r.devices().clone()));
            if let Some(linux) = bundle.spec.linux_mut() {
                linux.set_resources(Some(resources));
            }
            bundle.restart = restart;
            self.write_bundle(&bundle)?;
        } else {
            self.event(&container, "update", &[]);
        }
        self.db.write::<_, EngineError>(|tx| {
            tx.execute(
                "UPDATE containers SET host = ?1 WHERE id = ?2",
                [json(&host), container.id.to_string()],
            )?;
            Ok(())
        })?;
        Ok(warnings)
    }

    /// Has its bind mounts from below these directories found beneath them from its next start on, whoever made it.
    pub fn confine(&self, name: &str, beneath: &[PathBuf]) -> Result<()> {
        let container = self.find(name)?;
        let mut mounts = container.mounts.clone();
        mounts.iter_mut().for_each(|mount| mount.confine(beneath));
        if mounts == container.mounts {
            return Ok(());
        }
        self.db.write(|tx| {
            tx.execute(
                "UPDATE containers SET mounts = ?1 WHERE id = ?2",
                [json(&mounts), container.id.to_string()],
            )?;
            Ok(())
        })
    }

    /// Whether what runs of a container has a bind mount that was not found beneath its directory, though its next start
    /// will find it there ([`Engine::confine`]).
    pub fn runs_unconfined(&self, name: &str) -> Result<bool> {
        let container = self.find(name)?;
        if !self.state(&container)?.status.is_active() {
            return Ok(false);
        }
        let bundle = self.read_bundle(&container.id)?;
        let is_confined = |mount: &types::oci::Mount| {
            mount.options().iter().flatten().any(|word| word.starts_with(types::SUBPATH))
        };
        let runs_as = |target: &std::path::Path| {
            bundle.spec.mounts().iter().flatten().find(|mount| mount.destination() == target)
        };
        let binds = container.mounts.iter().filter(|m| m.kind == Kind::Bind && !m.subpath.is_empty());
        Ok(binds.filter_map(|mount| runs_as(&mount.target)).any(|mount| !is_confined(mount)))
    }

    /// Gives it another name.
    pub fn rename(&self, name: &str, new: &str) -> Result<()> {
        let container = self.find(name)?;
        let new = new.strip_prefix('/').unwrap_or(new);
        if !names::is_valid(new) {
            return Err(invalid(format!(
                "invalid container name ({new}), only [a-zA-Z0-9][a-zA-Z0-9_.-] are allowed"
            )));
        }
        if new == container.name {
            return Err(invalid("renaming a container with the same name as its current name"));
        }
        self.db.write(|tx| {
            if let Ok(owner) = store::find(&self.db, new)
                && owner.name == new
            {
                return Err(EngineError::NameInUse { name: new.to_owned(), id: owner.id.to_string() });
            }
            tx.execute("UPDATE containers SET name = ?1 WHERE id = ?2", [new, container.id.as_str()])?;
            Ok(())
        })?;
        let renamed = Container { name: new.to_owned(), ..container.clone() };
        self.tell_name(&renamed);
        self.event(&renamed, "rename", &[("oldName", format!("/{}", container.name))]);
        Ok(())
    }
}

impl Engine {
    /// Events of a running container come from its supervisor, and from the one that may take its place. It is renamed
    /// already: one that ends meanwhile needs no telling.
    fn tell_name(&self, container: &Container) {
        if let Ok(Liveness::Supervised(_)) = self.liveness(container)
            && let Ok(mut client) = self.client(container)
            && client.rename(&container.name).is_ok()
            && let Ok(mut bundle) = self.read_bundle(&container.id)
        {
            bundle.name.clone_from(&container.name);
            let _ = self.write_bundle(&bundle);
        }
    }
}

/// The fields that an update may change, by way of their common JSON names.
fn as_host_config(change: &ContainerUpdateBody) -> Result<HostConfig> {
    serde_json::to_value(change).and_then(serde_json::from_value).map_err(invalid)
}

/// What a supervisor refused to start for, as the start of a container says it.
pub fn failed_start(e: ClientError) -> EngineError {
    match e {
        ClientError::Refused(failure) => {
            EngineError::Start { message: failure.message, code: failure.exit_code }
        }
        other => other.into(),
    }
}
