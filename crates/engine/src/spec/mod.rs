//! From Docker's words to the OCI runtime specification: the one contract that every hull carries out.
//!
//! [`build`] decides everything that can be decided without the root filesystem; what needs it (the user's numbers,
//! `HOME`) is filled in by the supervisor once the layers are mounted.

mod devices;
mod environment;
mod namespaces;
mod resources;
mod rootfs_mounts;
mod security;
pub use security::{MASKED as MASKED_PATHS, READONLY as READ_ONLY_PATHS};

pub(crate) use environment::{exec_process, process_env};
pub(crate) use resources::{from_host as resources_of, from_update as updated_resources};

use crate::mounts::UserMount;
use crate::paths::Paths;
use crate::store::Container;
use crate::{EngineError, Result};
use process::named::{GROUPS, USER};
use std::collections::HashMap;
use types::docker::HostConfig;
use types::oci::{self, LinuxBuilder, ProcessBuilder, RootBuilder, SpecBuilder};
use types::{ContainerId, VolumePlan};

/// What the specification is made from.
pub(crate) struct Context<'a> {
    pub container: &'a Container,
    pub mounts: &'a [UserMount],
    /// Of these mounts, what is mounted on the host for them.
    pub volumes: &'a [VolumePlan],
    pub paths: &'a Paths,
    /// Host pids of the containers whose namespaces are joined, by the name they were given.
    pub joined: &'a HashMap<String, i32>,
    /// Whose `/etc/hosts` and its kin these are: its own, or those of the container whose network it joins.
    pub names_of: &'a ContainerId,
    /// First host id of a private user namespace; looked at where there is one.
    pub user_ids: Option<u32>,
}

/// A specification and what the user should know about it.
pub(crate) struct Built {
    pub spec: oci::Spec,
    pub warnings: Vec<String>,
}

pub(crate) fn invalid(message: impl std::fmt::Display) -> EngineError {
    EngineError::Invalid(message.to_string())
}

/// Builds the specification of a container.
pub(crate) fn build(cx: &Context<'_>) -> Result<Built> {
    let (config, host) = (&cx.container.config, &cx.container.host);
    let mut warnings = Vec::new();
    let privileged = is_privileged(host);
    let capabilities = security::capabilities(host, &mut warnings)?;
    let options = security::options(host)?;
    let tty = config.tty.unwrap_or(false);

    let mut process = ProcessBuilder::default()
        .terminal(tty)
        .args(arguments(config)?)
        .env(process_env(config, &hostname(cx), tty))
        .cwd(config.working_dir.as_deref().filter(|d| !d.is_empty()).unwrap_or("/"))
        .no_new_privileges(options.no_new_privileges)
        .capabilities(security::for_user(&capabilities, config.user.as_deref().unwrap_or("")))
        .rlimits(resources::rlimits(host)?);
    if let Some(profile) = security::apparmor(&options, privileged) {
        process = process.apparmor_profile(profile);
    }
    if let Some(label) = &options.selinux_label {
        process = process.selinux_label(label.clone());
    }
    if let Some(adjust) = host.oom_score_adj.filter(|a| *a != 0) {
        process = process.oom_score_adj(i32::try_from(adjust).map_err(invalid)?);
    }

    let namespaces = namespaces::of(cx)?;
    let mut linux = LinuxBuilder::default()
        .namespaces(namespaces)
        .resources(resources::with_devices(cx, &mut warnings)?)
        .devices(devices::nodes(host)?)
        .rootfs_propagation(rootfs_mounts::propagation(cx.mounts))
        .masked_paths(security::masked(host, &options))
        .readonly_paths(security::readonly(host, &options))
        .sysctl(host.sysctls.clone().unwrap_or_default());
    if let Some(ids) = namespaces::private_ids(cx)? {
        linux = linux.uid_mappings(ids.clone()).gid_mappings(ids);
    }
    if let Some(seccomp) = security::seccomp(&options, &capabilities, privileged)? {
        linux = linux.seccomp(seccomp);
    }

    let mut spec = SpecBuilder::default()
        .version("1.2.0")
        .root(
            RootBuilder::default()
                .path("rootfs")
                .readonly(host.readonly_rootfs.unwrap_or(false))
                .build()
                .map_err(invalid)?,
        )
        .hostname(hostname(cx))
        .mounts(rootfs_mounts::all(cx)?)
        .process(process.build().map_err(invalid)?)
        .linux(linux.build().map_err(invalid)?);
    if let Some(domain) = config.domainname.as_ref().filter(|d| !d.is_empty()) {
        spec = spec.domainname(domain.clone());
    }
    let mut annotations = host.annotations.clone().unwrap_or_default();
    // A user's annotation must not switch a policy: these are the engine's own.
    annotations.retain(|key, _| !key.starts_with("dhow."));
    annotations.insert(USER.to_owned(), config.user.clone().unwrap_or_default());
    if let Some(groups) = host.group_add.as_ref().filter(|g| !g.is_empty()) {
        annotations.insert(GROUPS.to_owned(), groups.join(","));
    }
    if security::built_in_seccomp(&options, privileged) {
        annotations.insert(security::BUILT_IN.to_owned(), "default".to_owned());
    }
    if !annotations.is_empty() {
        spec = spec.annotations(annotations);
    }
    let mut spec = spec.build().map_err(invalid)?;
    if host.uts_mode.as_deref() == Some("host") {
        spec.set_hostname(None).set_domainname(None);
    }
    Ok(Built { spec, warnings })
}

pub(crate) fn is_privileged(host: &HostConfig) -> bool {
    host.privileged.unwrap_or(false)
}

/// The container's own host name: as given, or the short id; the host's where the UTS namespace is shared.
pub(crate) fn hostname(cx: &Context<'_>) -> String {
    if cx.container.host.uts_mode.as_deref() == Some("host")
        || cx.container.host.network_mode.as_deref() == Some("host") && given_hostname(cx).is_none()
    {
        let uname = rustix::system::uname();
        return uname.nodename().to_string_lossy().into_owned();
    }
    given_hostname(cx).unwrap_or_else(|| cx.container.id.short().to_owned())
}

fn given_hostname(cx: &Context<'_>) -> Option<String> {
    cx.container.config.hostname.clone().filter(|h| !h.is_empty())
}

/// Entry point and command; an image may have neither.
pub(crate) fn arguments(config: &types::docker::ContainerConfig) -> Result<Vec<String>> {
    let args: Vec<String> =
        config.entrypoint.iter().flatten().chain(config.cmd.iter().flatten()).cloned().collect();
    if args.first().is_none_or(String::is_empty) {
        return Err(EngineError::Invalid(
            "no command specified: the image has neither an entry point nor a command, give one".into(),
        ));
    }
    Ok(args)
}
