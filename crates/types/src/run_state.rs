//! What is known of a container's processes: written by its supervisor alone, read by every command.

use serde::{Deserialize, Serialize};

/// Docker's container states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Made, never started.
    #[default]
    Created,
    /// Its main process runs.
    Running,
    /// Frozen.
    Paused,
    /// Ended; the supervisor waits to start it again.
    Restarting,
    /// Ended.
    Exited,
    /// Could not be removed wholly.
    Dead,
}

impl Status {
    /// Docker's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Created => "created",
            Self::Running => "running",
            Self::Paused => "paused",
            Self::Restarting => "restarting",
            Self::Exited => "exited",
            Self::Dead => "dead",
        }
    }

    /// Whether a supervisor ought to be there.
    pub fn is_active(self) -> bool {
        matches!(self, Self::Running | Self::Paused | Self::Restarting)
    }
}

/// `sandboxes/<id>/state.json`.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
#[serde(default)]
pub struct RunState {
    /// Where the container stands.
    pub status: Status,
    /// Host pid of the main process; 0 when there is none.
    pub pid: i32,
    /// Start time of that pid in clock ticks since boot (`/proc/PID/stat` field 22): pids are reused.
    pub pid_start: u64,
    /// Pid of the supervisor.
    pub supervisor: i32,
    /// `/proc/sys/kernel/random/boot_id` when it was started.
    pub boot_id: String,
    /// Exit code of the last run: 0..=255, 128+n for signal n.
    pub exit_code: i32,
    /// The OOM killer ended something in it during the last run.
    pub oom_killed: bool,
    /// Why the last start failed; empty if it did not.
    pub error: String,
    /// Nanoseconds since the epoch; 0 for never.
    pub started_ns: i64,
    /// Nanoseconds since the epoch; 0 for never.
    pub finished_ns: i64,
    /// Restarts by policy.
    pub restart_count: u32,
    /// A user asked it to stop: the restart policy `unless-stopped` heeds that.
    pub stopped_by_user: bool,
    /// A user asked for a restart, and the next run has not begun.
    pub start_again: bool,
    /// Where there is a health check.
    pub health: Option<HealthState>,
    /// Host ports that were handed out where 0 was asked for, in the order of the plan.
    pub ports: Vec<crate::PortBinding>,
}

/// Docker's health states.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum HealthStatus {
    /// No verdict yet.
    #[default]
    Starting,
    /// The last check passed.
    Healthy,
    /// `retries` checks in a row failed.
    Unhealthy,
}

impl HealthStatus {
    /// Docker's word.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Starting => "starting",
            Self::Healthy => "healthy",
            Self::Unhealthy => "unhealthy",
        }
    }
}

/// Verdict and last results of a health check.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HealthState {
    /// Verdict.
    pub status: HealthStatus,
    /// Failures in a row.
    pub failing_streak: u32,
    /// The last five results, oldest first.
    pub log: Vec<HealthLogEntry>,
}

/// One result of a health check.
#[derive(Clone, Debug, Default, PartialEq, Serialize, Deserialize)]
pub struct HealthLogEntry {
    /// Nanoseconds since the epoch.
    pub start_ns: i64,
    /// Nanoseconds since the epoch.
    pub end_ns: i64,
    /// Of the check; -1 for a time-out.
    pub exit_code: i32,
    /// At most 4096 bytes of its output.
    pub output: String,
}
