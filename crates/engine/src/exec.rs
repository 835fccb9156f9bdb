//! `exec`: another command in a running container.

use crate::recover::Liveness;
use crate::request::ExecRequest;
use crate::spec::{exec_process, invalid};
use crate::store::Container;
use crate::{Engine, EngineError, Result};
use sandbox::client::{ClientError, ExecInfo, ExecOptions, Stream};
use types::docker::ExecConfig;
use types::{RunState, Status, oci};

/// The state of a container in which a command may begin.
pub(crate) fn admitted(container: &Container, is: Liveness) -> Result<Box<RunState>> {
    let Liveness::Supervised(state) = is else {
        return Err(EngineError::NotRunning(container.id.to_string()));
    };
    match state.status {
        Status::Paused => Err(EngineError::Conflict(format!(
            "container {} is paused, unpause the container before exec",
            container.name
        ))),
        Status::Restarting => Err(EngineError::Conflict(format!(
            "container {} is restarting, wait until the container is running",
            container.name
        ))),
        _ => Ok(state),
    }
}

impl Engine {
    /// Runs a command beside the main process. The stream ends with its exit code; a detached one has none. The id
    /// names the session.
    pub fn exec(&self, name: &str, request: &ExecRequest) -> Result<(String, Option<Stream>)> {
        let config = &request.config;
        if config.cmd.as_ref().is_none_or(|c| c.first().is_none_or(String::is_empty)) {
            return Err(invalid("no exec command specified"));
        }
        let container = self.find(name)?;
        let state = admitted(&container, self.settled(&container)?)?;
        let spec = self.read_bundle(&container.id)?.spec;
        let main_user = container.config.user.as_deref().unwrap_or("");
        let user_name = config.user.as_deref().filter(|u| !u.is_empty()).unwrap_or(main_user);
        let process = if container.is_vm() {
            // Its files are the guest's: so is the finding of the user's numbers.
            let mut named = types::oci::User::default();
            named.set_username(Some(user_name.to_owned()));
            exec_process(&spec, config, named, user_name)?
        } else {
            self.process_by_files(&container, &state, &spec, config, user_name)?
        };
        let id = match &request.id {
            Some(id) => id.clone(),
            None => crate::ids::new_id()?.to_string(),
        };
        let options = ExecOptions {
            id: id.clone(),
            process,
            stdin: config.attach_stdin.unwrap_or(false),
            stdout: config.attach_stdout.unwrap_or(false),
            stderr: config.attach_stderr.unwrap_or(false),
            tty: config.tty.unwrap_or(false),
            console_size: request.console_size,
            detach: request.detach,
            tied: false,
        };
        let stream = self.client(&container)?.exec(options).map_err(|e| match e {
            ClientError::Refused(failure) => {
                EngineError::Start { message: failure.message, code: failure.exit_code }
            }
            other => self.refused(&container, other),
        })?;
        Ok((id, stream))
    }

    /// The process of an exec session, its user looked up in the files of a running container.
    fn process_by_files(
        &self,
        container: &Container,
        state: &RunState,
        spec: &oci::Spec,
        config: &ExecConfig,
        user_name: &str,
    ) -> Result<oci::Process> {
        let root_path = format!("/proc/{}/root", state.pid);
        let root = sys::Root::open(&root_path).map_err(|e| match e.kind() {
            std::io::ErrorKind::NotFound => EngineError::NotRunning(container.id.to_string()),
            _ => EngineError::io("cannot open", root_path.as_ref())(e),
        })?;
        let none = Vec::new();
        let groups = container.host.group_add.as_ref().unwrap_or(&none);
        let user = process::resolve_user(&root, user_name, groups).map_err(invalid)?;
        let mut process = exec_process(spec, config, user.clone(), user_name)?;
        process::named::set_user(&root, &mut process, user);
        Ok(process)
    }

    /// The exec sessions of a container, running and lately ended.
    pub fn execs(&self, name: &str) -> Result<Vec<ExecInfo>> {
        let container = self.find(name)?;
        match self.liveness(&container)? {
            Liveness::Supervised(_) => {
                match self.client(&container).and_then(|mut client| Ok(client.execs()?)) {
                    // It ended meanwhile, and its sessions with it.
                    Err(
                        EngineError::NotRunning(_)
                        | EngineError::Client(ClientError::Gone | ClientError::Connect { .. }),
                    ) => Ok(Vec::new()),
                    found => found,
                }
            }
            Liveness::Ended(..) => Ok(Vec::new()),
        }
    }
}
