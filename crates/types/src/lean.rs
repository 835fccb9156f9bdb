//! Reading the OCI runtime specification's structures where a program must be small.
//!
//! `oci_spec` checks `execCPUAffinity` by a regular expression, and the compiler of those would be a third of the guest's
//! agent; platforms other than Linux cost more. Neither is carried out by a hull, so what passes between Dhow's own
//! processes is read without them. Use as `#[serde(deserialize_with = "types::lean::spec")]`; writing needs nothing.

use crate::oci;
use serde::{Deserialize, Deserializer};
use std::collections::HashMap;
use std::path::PathBuf;

/// Reads a specification (config.md), without `execCPUAffinity` and without the sections of other platforms.
pub fn spec<'de, D: Deserializer<'de>>(from: D) -> Result<oci::Spec, D::Error> {
    let read = Spec::deserialize(from)?;
    let mut spec = oci::Spec::default();
    spec.set_version(read.oci_version)
        .set_root(read.root)
        .set_mounts(read.mounts)
        .set_process(read.process.map(oci::Process::from))
        .set_hostname(read.hostname)
        .set_domainname(read.domainname)
        .set_hooks(read.hooks)
        .set_annotations(read.annotations)
        .set_linux(read.linux);
    Ok(spec)
}

/// Reads a process (config.md, "Process"), without `execCPUAffinity` and `commandLine`.
pub fn process<'de, D: Deserializer<'de>>(from: D) -> Result<oci::Process, D::Error> {
    Process::deserialize(from).map(oci::Process::from)
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Spec {
    oci_version: String,
    root: Option<oci::Root>,
    mounts: Option<Vec<oci::Mount>>,
    process: Option<Process>,
    hostname: Option<String>,
    domainname: Option<String>,
    hooks: Option<oci::Hooks>,
    annotations: Option<HashMap<String, String>>,
    linux: Option<oci::Linux>,
}

#[derive(Deserialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    terminal: Option<bool>,
    console_size: Option<oci::Box>,
    user: oci::User,
    args: Option<Vec<String>>,
    env: Option<Vec<String>>,
    cwd: PathBuf,
    capabilities: Option<oci::LinuxCapabilities>,
    rlimits: Option<Vec<oci::PosixRlimit>>,
    no_new_privileges: Option<bool>,
    apparmor_profile: Option<String>,
    oom_score_adj: Option<i32>,
    selinux_label: Option<String>,
    io_priority: Option<oci::LinuxIOPriority>,
    scheduler: Option<oci::Scheduler>,
}

impl From<Process> for oci::Process {
    fn from(read: Process) -> Self {
        let mut process = Self::default();
        process
            .set_terminal(read.terminal)
            .set_console_size(read.console_size)
            .set_user(read.user)
            .set_args(read.args)
            .set_env(read.env)
            .set_cwd(read.cwd)
            .set_capabilities(read.capabilities)
            .set_rlimits(read.rlimits)
            .set_no_new_privileges(read.no_new_privileges)
            .set_apparmor_profile(read.apparmor_profile)
            .set_oom_score_adj(read.oom_score_adj)
            .set_selinux_label(read.selinux_label)
            .set_io_priority(read.io_priority)
            .set_scheduler(read.scheduler);
        process
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    /// All that [`oci::Spec`] knows of Linux, so that a field that is forgotten here shows.
    fn full() -> Value {
        let process = json!({
            "terminal": true,
            "consoleSize": {"height": 24, "width": 80},
            "user": {"uid": 1, "gid": 2, "umask": 18, "additionalGids": [3]},
            "args": ["sh"],
            "env": ["A=b"],
            "cwd": "/tmp",
            "capabilities": {"bounding": ["CAP_KILL"], "effective": [], "inheritable": [], "permitted": [], "ambient": []},
            "rlimits": [{"type": "RLIMIT_NOFILE", "hard": 5, "soft": 4}],
            "noNewPrivileges": false,
            "apparmorProfile": "unconfined",
            "oomScoreAdj": 7,
            "selinuxLabel": "label",
            "ioPriority": {"class": "IOPRIO_CLASS_IDLE", "priority": 1},
            "scheduler": {"policy": "SCHED_BATCH"}
        });
        json!({
            "ociVersion": "1.2.0",
            "root": {"path": "rootfs", "readonly": true},
            "mounts": [{"destination": "/proc", "type": "proc", "source": "proc"}],
            "process": process,
            "hostname": "h",
            "domainname": "d",
            "hooks": {"poststop": [{"path": "/bin/true"}]},
            "annotations": {"a": "b"},
            "linux": {"maskedPaths": ["/proc/kcore"]}
        })
    }

    #[derive(Deserialize)]
    struct Lean(#[serde(deserialize_with = "spec")] oci::Spec);

    #[test]
    fn what_is_read_is_what_oci_spec_reads() {
        let theirs: oci::Spec = serde_json::from_value(full()).unwrap();
        let Lean(ours) = serde_json::from_value(full()).unwrap();
        assert_eq!(ours, theirs);
        // An absent field is absent, whatever the default of a new specification.
        let least = json!({"ociVersion": "1.2.0", "process": {"user": {"uid": 0, "gid": 0}, "cwd": "/"}});
        let theirs: oci::Spec = serde_json::from_value(least.clone()).unwrap();
        let Lean(ours) = serde_json::from_value(least).unwrap();
        assert_eq!(ours, theirs);
    }

    #[test]
    fn what_no_hull_carries_out_is_passed_over() {
        let mut more = full();
        more["process"]["execCPUAffinity"] = json!({"initial": "no list"});
        more["windows"] = json!(1);
        let Lean(ours) = serde_json::from_value(more).unwrap();
        assert_eq!(ours, serde_json::from_value(full()).unwrap());
    }
}
