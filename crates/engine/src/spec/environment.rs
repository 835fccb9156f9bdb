//! Environment and process of a container, and of a command that runs beside it.

use crate::Result;
use crate::spec::{invalid, security};
use types::docker::{ContainerConfig, ExecConfig};
use types::oci::{self, ProcessBuilder};

const PATH: &str = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin";

/// `PATH`, `HOSTNAME` and `TERM` where nobody set them, then the configured ones. A bare `NAME` removes it.
pub(crate) fn process_env(config: &ContainerConfig, hostname: &str, tty: bool) -> Vec<String> {
    let mut env = vec![PATH.to_owned(), format!("HOSTNAME={hostname}")];
    if tty {
        env.push("TERM=xterm".into());
    }
    for entry in config.env.iter().flatten() {
        set(&mut env, entry);
    }
    env
}

/// Sets `NAME=value` over an older value, or removes `NAME`.
pub(crate) fn set(env: &mut Vec<String>, entry: &str) {
    let name = entry.split('=').next().unwrap_or(entry);
    let same = |e: &String| e.split('=').next() == Some(name);
    match (entry.contains('='), env.iter().position(same)) {
        (true, Some(at)) => env[at] = entry.to_owned(),
        (true, None) => env.push(entry.to_owned()),
        (false, Some(at)) => drop(env.remove(at)),
        (false, None) => {}
    }
}

/// The process of an `exec`: the container's own, with another command and, if asked for, another user, directory and
/// environment. `user` comes resolved.
pub(crate) fn exec_process(
    spec: &oci::Spec,
    exec: &ExecConfig,
    user: oci::User,
    user_name: &str,
) -> Result<oci::Process> {
    let main = spec.process().clone().unwrap_or_default();
    let tty = exec.tty.unwrap_or(false);
    let mut env = main.env().clone().unwrap_or_default();
    if tty && !env.iter().any(|e| e.starts_with("TERM=")) {
        env.push("TERM=xterm".into());
    }
    for entry in exec.env.iter().flatten() {
        set(&mut env, entry);
    }
    let privileged = exec.privileged.unwrap_or(false);
    let capabilities = if privileged {
        process::caps::available()
    } else {
        main.capabilities().as_ref().and_then(|c| c.bounding().clone()).unwrap_or_default()
    };
    let mut out = ProcessBuilder::default()
        .terminal(tty)
        .user(user)
        .args(exec.cmd.clone().unwrap_or_default())
        .env(env)
        .cwd(
            exec.working_dir.clone().filter(|d| !d.is_empty()).map_or_else(|| main.cwd().clone(), Into::into),
        )
        .capabilities(security::for_user(&capabilities, user_name))
        .rlimits(main.rlimits().clone().unwrap_or_default())
        .no_new_privileges(main.no_new_privileges().unwrap_or(false) && !privileged);
    if let Some(profile) = main.apparmor_profile().clone().filter(|_| !privileged) {
        out = out.apparmor_profile(profile);
    }
    if let Some(label) = main.selinux_label() {
        out = out.selinux_label(label.clone());
    }
    out.build().map_err(invalid)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn later_entries_win_and_bare_names_remove() {
        let config = ContainerConfig {
            env: Some(vec!["PATH=/x".into(), "A=1".into(), "A=2".into(), "HOSTNAME".into()]),
            ..Default::default()
        };
        assert_eq!(process_env(&config, "h", true), ["PATH=/x", "TERM=xterm", "A=2"]);
    }
}
