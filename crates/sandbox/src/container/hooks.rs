//! Hooks of the runtime specification: programs run at fixed points, with the container's state on standard input.

use super::step::Step;
use crate::host_only::on_host;
use crate::hull::HullError;
use std::io::Write;
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use types::oci::{Hook, Hooks, Spec};

/// In the host's namespaces, after ours are made and before `pivot_root`; `prestart` is its old name.
pub(super) fn create_runtime(spec: &Spec, id: &str, pid: i32) -> Result<(), HullError> {
    let Some(hooks) = spec.hooks() else { return Ok(()) };
    #[allow(deprecated)]
    let old = hooks.prestart();
    run(spec, old.as_deref(), "prestart", id, "creating", pid)?;
    run(spec, hooks.create_runtime().as_deref(), "createRuntime", id, "creating", pid)
}

/// In the container's namespaces, before `pivot_root`.
pub(super) fn create_container(spec: &Spec, id: &str) -> Result<(), HullError> {
    let list = |h: &Hooks| h.create_container().clone();
    run(spec, spec.hooks().as_ref().and_then(list).as_deref(), "createContainer", id, "creating", 0)
}

/// In the container, just before the workload.
pub(super) fn start_container(spec: &Spec, id: &str) -> Result<(), HullError> {
    let list = |h: &Hooks| h.start_container().clone();
    run(spec, spec.hooks().as_ref().and_then(list).as_deref(), "startContainer", id, "created", 0)
}

/// On the host, after the workload started. What they fail with is not the container's failure.
pub(super) fn poststart(spec: &Spec, id: &str, pid: i32) {
    let list = |h: &Hooks| h.poststart().clone();
    let _ = run(spec, spec.hooks().as_ref().and_then(list).as_deref(), "poststart", id, "running", pid);
}

/// On the host, after the container is gone.
pub(super) fn poststop(spec: &Spec, id: &str) {
    let list = |h: &Hooks| h.poststop().clone();
    let _ = run(spec, spec.hooks().as_ref().and_then(list).as_deref(), "poststop", id, "stopped", 0);
}

fn run(
    spec: &Spec,
    hooks: Option<&[Hook]>,
    kind: &str,
    id: &str,
    status: &str,
    pid: i32,
) -> Result<(), HullError> {
    let Some(hooks) = hooks.filter(|h| !h.is_empty()) else { return Ok(()) };
    on_host().step(|| format!("run {kind} hooks"))?;
    let mut state =
        serde_json::json!({ "ociVersion": spec.version(), "id": id, "status": status, "bundle": "/" });
    if pid > 0 {
        state["pid"] = pid.into();
    }
    if let Some(annotations) = spec.annotations() {
        state["annotations"] = serde_json::json!(annotations);
    }
    hooks.iter().try_for_each(|hook| run_one(hook, kind, state.to_string().as_bytes()))
}

fn run_one(hook: &Hook, kind: &str, state: &[u8]) -> Result<(), HullError> {
    let named = || format!("{kind} hook {}", hook.path().display());
    let failed = |why: String| HullError::Invalid(format!("{}: {why}", named()));
    if !hook.path().is_absolute() {
        return Err(failed("its path must be absolute".into()));
    }
    let args = hook.args().as_deref().unwrap_or_default();
    let mut command = Command::new(hook.path());
    if let Some(name) = args.first() {
        std::os::unix::process::CommandExt::arg0(&mut command, name);
    }
    let env = hook.env().iter().flatten().filter_map(|e| e.split_once('='));
    command.args(args.iter().skip(1)).env_clear().envs(env).stdin(Stdio::piped());
    let mut child = command.stdout(Stdio::null()).stderr(Stdio::null()).spawn().step(named)?;
    if let Some(mut stdin) = child.stdin.take() {
        // A hook need not read it.
        let _ = stdin.write_all(state);
    }
    let until = hook.timeout().and_then(|t| u64::try_from(t).ok()).map(Duration::from_secs);
    let started = Instant::now();
    let status = loop {
        match until {
            None => break child.wait().step(named)?,
            Some(limit) => match child.try_wait().step(named)? {
                Some(status) => break status,
                None if started.elapsed() >= limit => {
                    let _ = child.kill();
                    let _ = child.wait();
                    return Err(failed(format!("not done after {} s", limit.as_secs())));
                }
                None => std::thread::sleep(Duration::from_millis(2)),
            },
        }
    };
    if status.success() { Ok(()) } else { Err(failed(status.to_string())) }
}
