//! The requests that a supervisor carries out and its answers.

use crate::hull::Stats;
use serde::{Deserialize, Serialize};
use types::{Attachment, ErrorKind, RestartPolicy, RunState, oci};

/// Which streams of the main process a client wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AttachOptions {
    /// It feeds stdin (where the container keeps stdin open).
    pub stdin: bool,
    /// It reads stdout (or the terminal).
    pub stdout: bool,
    /// It reads stderr.
    pub stderr: bool,
}

/// A command to run beside the main process.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct ExecOptions {
    /// Names the session, for resizing, listing and its exit code: Docker's 64 hexadecimal digits.
    pub id: String,
    /// User, capabilities, environment, arguments, directory. `terminal` is overruled by `tty`.
    #[serde(deserialize_with = "types::lean::process")]
    pub process: oci::Process,
    /// This client feeds its stdin; it is `/dev/null` otherwise.
    pub stdin: bool,
    /// This client reads its stdout.
    pub stdout: bool,
    /// This client reads its stderr.
    pub stderr: bool,
    /// With a terminal of its own.
    pub tty: bool,
    /// Rows and columns of that.
    pub console_size: Option<(u16, u16)>,
    /// The answer comes at its start, and nothing after that.
    pub detach: bool,
    /// It is killed when this connection ends.
    #[serde(default)]
    pub tied: bool,
}

/// An exec session, running or ended not long ago.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct ExecInfo {
    /// As in [`ExecOptions`].
    pub id: String,
    /// Host pid.
    pub pid: i32,
    /// Exit code, once it has ended.
    pub exit_code: Option<i32>,
    /// Its command line.
    pub args: Vec<String>,
    /// With a terminal.
    pub tty: bool,
}

/// What `wait` waits for (Docker's conditions).
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum WaitCondition {
    /// It does not run: at once if it does not now.
    #[default]
    NotRunning,
    /// Its next end.
    NextExit,
    /// Its end for good (with `--rm`: its removal).
    Removed,
}

/// What a client asks for.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Request {
    /// Only on the socket that a supervisor inherits, before it starts the container: the answer is `Started`, and
    /// with `attach` the streams follow from their first byte on.
    Start {
        /// Streams to attach before the workload runs.
        attach: Option<AttachOptions>,
    },
    /// Turns the connection into a stream of the main process's output and input.
    Attach(AttachOptions),
    /// Runs a command; the connection becomes its stream unless it is detached.
    Exec(Box<ExecOptions>),
    /// Sends a signal to the main process.
    Signal {
        /// Its number.
        signal: i32,
    },
    /// Signal, time to obey, SIGKILL; answered when it has ended for good.
    Stop {
        /// Instead of the container's own.
        signal: Option<i32>,
        /// Seconds, instead of the container's own; -1 waits for ever.
        timeout: Option<i64>,
    },
    /// The same, and a start, whether the client is still there or not; the answer is `Started`. One that is to be removed
    /// when it ends stays.
    Restart {
        /// Instead of the container's own.
        signal: Option<i32>,
        /// Seconds, instead of the container's own; -1 waits for ever.
        timeout: Option<i64>,
    },
    /// Kills every process at once; answered when it has ended for good.
    KillAll,
    /// Freezes.
    Pause,
    /// Freezes until the connection ends, if nobody thaws it before.
    Hold,
    /// Thaws.
    Resume,
    /// New limits, new restart policy.
    Update {
        /// Those that are given replace the old ones.
        resources: Option<Box<oci::LinuxResources>>,
        /// Replaces the old one.
        restart: Option<RestartPolicy>,
    },
    /// Another name, for events to come.
    Rename {
        /// The new one.
        name: String,
    },
    /// Gives it an interface on a further network, now and at its next runs.
    ConnectNetwork(Box<Attachment>),
    /// Takes its interface on a network away.
    DisconnectNetwork {
        /// Full id of the network.
        network: String,
    },
    /// Resource figures.
    Stats,
    /// Host pids.
    Processes,
    /// New size of a terminal.
    Resize {
        /// Of this exec session; of the main process if there is none.
        exec: Option<String>,
        /// Rows.
        rows: u16,
        /// Columns.
        columns: u16,
    },
    /// Waits for an end.
    Wait {
        /// Which.
        condition: WaitCondition,
    },
    /// Exec sessions.
    Execs,
    /// What the supervisor holds to be true right now.
    State,
}

/// How a request ended.
#[derive(Clone, Debug, Serialize, Deserialize)]
#[serde(rename_all = "snake_case")]
pub enum Response {
    /// Done; nothing to tell.
    Done,
    /// The container runs, as this pid; after it the stream, if one was asked for.
    Started {
        /// Host pid.
        pid: i32,
    },
    /// The stream follows.
    Attached {
        /// What was logged before this moment is not in it, and all that is logged from then on is; nanoseconds since the
        /// epoch.
        #[serde(default)]
        since_ns: i64,
    },
    /// The command runs, as this pid.
    ExecStarted {
        /// Host pid.
        pid: i32,
    },
    /// It ended with this code.
    Exited {
        /// 0..=255.
        code: i32,
    },
    /// Resource figures.
    Stats(Box<Stats>),
    /// Host pids.
    Processes {
        /// In no order.
        pids: Vec<i32>,
    },
    /// Exec sessions.
    Execs {
        /// Running ones first.
        list: Vec<ExecInfo>,
    },
    /// The present state.
    State(Box<RunState>),
    /// It could not be done.
    Failed(Failure),
}

/// Why a request could not be carried out.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
#[error("{message}")]
pub struct Failure {
    /// Kind of error, as its name.
    #[serde(with = "kind_name")]
    pub kind: ErrorKind,
    /// One sentence.
    pub message: String,
    /// For the command line: 125, 126 or 127.
    pub exit_code: i32,
}

impl types::Kinded for Failure {
    fn kind(&self) -> ErrorKind {
        self.kind
    }
}

/// `ErrorKind` is a value of `types`, which does not say how it is written down.
mod kind_name {
    use serde::{Deserialize, Deserializer, Serializer};
    use types::ErrorKind;

    const NAMES: [(ErrorKind, &str); 9] = [
        (ErrorKind::NotFound, "not_found"),
        (ErrorKind::Conflict, "conflict"),
        (ErrorKind::Invalid, "invalid"),
        (ErrorKind::Denied, "denied"),
        (ErrorKind::Unavailable, "unavailable"),
        (ErrorKind::Exhausted, "exhausted"),
        (ErrorKind::Corrupt, "corrupt"),
        (ErrorKind::Unsupported, "unsupported"),
        (ErrorKind::Internal, "internal"),
    ];

    pub fn serialize<S: Serializer>(kind: &ErrorKind, s: S) -> Result<S::Ok, S::Error> {
        s.serialize_str(NAMES.iter().find(|(k, _)| k == kind).map_or("internal", |(_, n)| n))
    }

    pub fn deserialize<'de, D: Deserializer<'de>>(d: D) -> Result<ErrorKind, D::Error> {
        let name = String::deserialize(d)?;
        Ok(NAMES.iter().find(|(_, n)| *n == name).map_or(ErrorKind::Internal, |(k, _)| *k))
    }
}
