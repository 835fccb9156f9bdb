//! All that a supervisor needs to run one container, written by the engine as
//! `sandboxes/<id>/bundle.json` before each start.

use crate::{ContainerId, MachinePlan, NetworkPlan, RootfsPlan};
use serde::{Deserialize, Serialize};
use std::collections::BTreeMap;
use std::net::IpAddr;

/// One container, ready to be started as often as its restart policy wants.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Bundle {
    /// Full id.
    pub id: ContainerId,
    /// Name, without a slash.
    pub name: String,
    /// Image as the user named it, for events.
    pub image: String,
    /// Labels, for events.
    pub labels: BTreeMap<String, String>,
    /// What the hull carries out. `root.path` is not used: the root comes as a descriptor.
    #[serde(deserialize_with = "crate::lean::spec")]
    pub spec: crate::oci::Spec,
    /// Layers and writable directory.
    pub rootfs: RootfsPlan,
    /// The microVM that it runs in; none for a container.
    #[serde(default)]
    pub machine: Option<MachinePlan>,
    /// Network.
    pub network: NetworkPlan,
    /// `--dns`: who is asked for names outside; the host's own servers if empty.
    #[serde(default)]
    pub name_servers: Vec<IpAddr>,
    /// Path of the cgroup below the root of each hierarchy: `/dhow/<id>`.
    pub cgroup: String,
    /// `-i`: stdin stays open and is fed by attached clients.
    pub open_stdin: bool,
    /// stdin is closed when the first client that fed it goes.
    pub stdin_once: bool,
    /// `--init`: a small init reaps zombies and forwards signals as PID 1.
    pub init: bool,
    /// Size of the terminal at start, rows and columns.
    pub console_size: Option<(u16, u16)>,
    /// What happens when it ends.
    pub restart: RestartPolicy,
    /// Remove it when it ends.
    pub auto_remove: bool,
    /// Signal that asks it to end.
    pub stop_signal: i32,
    /// Seconds between that and SIGKILL; -1 waits for ever.
    pub stop_timeout: i64,
    /// Health check.
    pub health: Option<HealthCheck>,
    /// Log driver.
    pub log: LogConfig,
}

/// Docker's restart policies.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum RestartPolicy {
    /// Never.
    #[default]
    No,
    /// Whatever the exit code, and after a reboot.
    Always,
    /// As `Always`, unless a user stopped it.
    UnlessStopped,
    /// On a non-zero exit code, at most so many times in a row (0: no limit).
    OnFailure(u32),
}

/// A health check with every default filled in. Times are nanoseconds.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct HealthCheck {
    /// Command line; the shell form is `/bin/sh -c …` already.
    pub command: Vec<String>,
    /// Between the end of a check and the next.
    pub interval_ns: u64,
    /// For one check, which is killed then.
    pub timeout_ns: u64,
    /// Failures in this time after start do not count.
    pub start_period_ns: u64,
    /// Between checks within the start period.
    pub start_interval_ns: u64,
    /// Failures in a row until unhealthy.
    pub retries: u32,
}

/// Where the output goes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum LogDriver {
    /// Docker's `json-file`: one JSON object a line.
    #[default]
    JsonFile,
    /// Docker's `local`: compact, rotated by default.
    Local,
    /// Nowhere.
    None,
}

impl LogDriver {
    /// Docker's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::JsonFile => "json-file",
            Self::Local => "local",
            Self::None => "none",
        }
    }
}

/// Log driver and its options, checked.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct LogConfig {
    /// Driver.
    pub driver: LogDriver,
    /// Bytes in one file before it is rotated; none is no limit.
    pub max_size: Option<u64>,
    /// Files that are kept, the current one included; at least 1.
    pub max_file: u32,
    /// Rotated files are gzipped.
    pub compress: bool,
    /// Attributes (`labels`, `env`, `tag`) that each json-file line carries.
    pub attrs: BTreeMap<String, String>,
}
