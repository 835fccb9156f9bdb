//! The hull contract: what any isolation (a container, a microVM) must offer so that one supervisor, one engine and
//! one set of commands serve all.
//!
//! A hull takes an OCI [`Spec`](types::oci::Spec), a root filesystem and a network, and gives a [`Sandbox`]:
//!
//! ```text
//! Hull::create ──► created ──start──► running ◄──pause/resume──► paused
//!                     │                  │
//!                     └──────────────────┴──► ended (pidfd readable) ──wait──► ExitStatus ──destroy──► gone
//! ```
//!
//! `create`, `start` and `exec` may take longer than anybody may be kept waiting, as a machine that boots does: then they
//! return before they are done, with something [`Pending`]. So does [`Sandbox::ask`], by which a guest is asked for its part of
//! what its supervisor is asked for; the other methods wait for nobody but this host.
//!
//! `destroy` is right in every state and may be repeated; after it neither process nor cgroup nor mount remains.

use crate::protocol::{Request, Response};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use types::oci;
use types::{Attachment, ErrorKind, Kinded, MachinePlan, NetworkPlan};

/// What a hull is asked to create.
pub struct CreateRequest<'a> {
    /// Full id of the container.
    pub id: &'a str,
    /// What to carry out. `root.path` is ignored; `process.terminal` asks for a console.
    pub spec: &'a oci::Spec,
    /// The root filesystem.
    pub rootfs: Rootfs<'a>,
    /// Path of the cgroup below the root of each hierarchy.
    pub cgroup: &'a str,
    /// `<run>/sandboxes/<id>`, for what must be found again by an adopting supervisor.
    pub run: &'a Path,
    /// Descriptors 0, 1 and 2 of the workload; ignored where a console is asked for.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Rows and columns of the console.
    pub console_size: Option<(u16, u16)>,
    /// PID 1 is our own small init, which reaps and forwards signals.
    pub init: bool,
    /// What the workload changes of its root filesystem goes with its end.
    pub removed: bool,
    /// Configures the network from outside, given the new network namespace. Not called where the spec has no
    /// new network namespace.
    pub network_outside: &'a mut dyn FnMut(BorrowedFd<'_>) -> Result<(), HullError>,
    /// Connects tap devices, for a hull whose network begins with them: one for each of the plan's interfaces, and then
    /// those for the machine's spare ones, which are on no network yet, by their slots.
    pub taps: &'a mut dyn FnMut() -> Result<Vec<OwnedFd>, HullError>,
    /// Configures the network from inside; runs in the new process, in its namespaces, with all privileges.
    pub network_inside: &'a dyn Fn() -> Result<(), HullError>,
    /// What the caller may do while the new process builds; called once, unless the creation fails before.
    pub meanwhile: &'a dyn Fn(),
}

impl CreateRequest<'_> {
    /// The limits of the specification.
    pub fn resources(&self) -> Option<&oci::LinuxResources> {
        self.spec.linux().as_ref()?.resources().as_ref()
    }
}

/// A root filesystem, in the form that a hull wants.
#[derive(Clone, Copy, Debug)]
pub enum Rootfs<'a> {
    /// A detached mount.
    Mount(BorrowedFd<'a>),
    /// A virtual machine with disks: files of layers, base first, and a writable one.
    Machine {
        /// The machine, its writable disk included.
        plan: &'a MachinePlan,
        /// Files of layers.
        layers: &'a [PathBuf],
        /// What the guest configures by itself.
        network: &'a NetworkPlan,
    },
}

/// A created sandbox and, where asked for, the master side of its console.
pub struct Created {
    /// The sandbox, its workload not yet started.
    pub sandbox: Box<dyn Sandbox>,
    /// Master of the pseudo terminal.
    pub console: Option<OwnedFd>,
    /// Until when it is not created yet; one that fails is to be destroyed.
    pub pending: Option<Box<dyn Pending>>,
}

/// Something under way whose end nobody should wait for idly.
pub trait Pending<T = ()> {
    /// Readable when there may be a result.
    fn fd(&self) -> BorrowedFd<'_>;
    /// When it has failed for want of a result.
    fn until(&self) -> Instant;
    /// How it went; none while it goes on. To be asked when the descriptor is readable or the time is up.
    fn result(&mut self) -> Option<Result<T, HullError>>;
}

/// Takes over a sandbox whose supervisor died.
pub struct AdoptRequest<'a> {
    /// Full id of the container.
    pub id: &'a str,
    /// As at its creation.
    pub spec: &'a oci::Spec,
    /// Path of its cgroup.
    pub cgroup: &'a str,
    /// `<run>/sandboxes/<id>`.
    pub run: &'a Path,
    /// Host pid of its main process.
    pub pid: i32,
    /// That process's start time, see `sys::host::start_time`.
    pub pid_start: u64,
}

/// A way to isolate.
pub trait Hull {
    /// Builds everything up to the workload's first instruction, or begins to. On failure nothing remains.
    fn create(&self, request: CreateRequest<'_>) -> Result<Created, HullError>;
    /// Takes over a sandbox that runs already; its exit status may be unknowable on old kernels.
    fn adopt(&self, request: AdoptRequest<'_>) -> Result<Box<dyn Sandbox>, HullError>;
    /// Removes what a dead supervisor and a dead workload left: cgroups, processes in them. Idempotent.
    fn clean(&self, id: &str, cgroup: &str) -> Result<(), HullError>;
}

/// How a process ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ExitStatus {
    /// With this code.
    Exited(i32),
    /// By this signal.
    Signaled(i32),
    /// Nobody can tell any more (an adopted process, an old kernel).
    Unknown,
}

impl ExitStatus {
    /// The shell's convention: the code, 128+n for signal n, 255 for unknown.
    pub fn code(self) -> i32 {
        match self {
            Self::Exited(code) => code,
            Self::Signaled(signal) => 128 + signal,
            Self::Unknown => 255,
        }
    }
}

/// One command to run beside the main process.
pub struct ExecRequest<'a> {
    /// Name of the session, unique in its sandbox.
    pub id: &'a str,
    /// User, capabilities, environment, arguments, directory, terminal.
    pub process: &'a oci::Process,
    /// Descriptors 0, 1 and 2; ignored where a console is asked for.
    pub stdio: [BorrowedFd<'a>; 3],
    /// Rows and columns of the console.
    pub console_size: Option<(u16, u16)>,
}

/// A running command.
pub struct ExecChild {
    /// Host pid; a child of the caller.
    pub pid: i32,
    /// Readable when it has ended.
    pub pidfd: OwnedFd,
    /// Master of the pseudo terminal, where asked for.
    pub console: Option<OwnedFd>,
    /// Until when the command is not executed yet; the process of one that fails is to be killed.
    pub pending: Option<Box<dyn Pending>>,
}

/// Why the engine's part of a sandbox could not be done.
#[derive(Debug, thiserror::Error)]
#[error("{message}")]
pub struct HookError {
    /// Kind of failure.
    pub kind: ErrorKind,
    /// One sentence.
    pub message: String,
}

impl Kinded for HookError {
    fn kind(&self) -> ErrorKind {
        self.kind
    }
}

impl HookError {
    /// From any error of a crate below.
    pub fn new(e: &(impl Kinded + std::fmt::Display)) -> Self {
        Self { kind: e.kind(), message: e.to_string() }
    }
}

/// What the engine does when the networks of a running sandbox change. Without a network namespace it is about the tap
/// device of that name, whose other end configures itself. Each may be repeated.
pub trait Wiring {
    /// Connects an interface to its network, and configures it inside.
    fn connect(&mut self, attachment: &Attachment, netns: Option<BorrowedFd<'_>>) -> Result<(), HookError>;
    /// Whether an interface is connected, with all that [`Self::connect`] does.
    fn is_connected(&self, attachment: &Attachment) -> bool;
    /// Configures a connected interface anew: the default route may lead there now.
    fn configure(&mut self, attachment: &Attachment, netns: BorrowedFd<'_>) -> Result<(), HookError>;
    /// Takes an interface from its network.
    fn disconnect(&mut self, attachment: &Attachment, netns: Option<BorrowedFd<'_>>)
    -> Result<(), HookError>;
}

/// A created or running sandbox.
pub trait Sandbox {
    /// Host pid of the main process.
    fn pid(&self) -> i32;
    /// Readable when the main process has ended.
    fn pidfd(&self) -> BorrowedFd<'_>;
    /// Executes the workload; returns when `execve` succeeded, or why it failed, or that this is still to be seen.
    fn start(&mut self) -> Result<Option<Box<dyn Pending>>, HullError>;
    /// Asks a guest for its part of a signal, of figures, processes, new limits, the size of a terminal, a network that comes
    /// or goes. None where there is no guest, or it has no part: then the methods below do all of it. If there is, they do what
    /// is left for the host.
    fn ask(&self, _request: &Request) -> Result<Option<Box<dyn Pending<Response>>>, HullError> {
        Ok(None)
    }
    /// Sends a signal to the main process. An ended process is no error.
    fn signal(&self, signal: i32) -> Result<(), HullError>;
    /// Kills every process of the sandbox.
    fn kill_all(&self) -> Result<(), HullError>;
    /// Freezes every process.
    fn pause(&self) -> Result<(), HullError>;
    /// Thaws.
    fn resume(&self) -> Result<(), HullError>;
    /// Applies limits at once; absent ones stay as they are.
    fn update(&self, resources: &oci::LinuxResources) -> Result<(), HullError>;
    /// Gives it a further interface while it runs.
    fn connect(&mut self, attachment: &Attachment, wiring: &mut dyn Wiring) -> Result<(), HullError>;
    /// Configures an interface that it has anew.
    fn reconfigure(&mut self, attachment: &Attachment, wiring: &mut dyn Wiring) -> Result<(), HullError>;
    /// Takes an interface from it.
    fn disconnect(&mut self, attachment: &Attachment, wiring: &mut dyn Wiring) -> Result<(), HullError>;
    /// Figures as of now.
    fn stats(&self) -> Result<Stats, HullError>;
    /// Host pids of all processes.
    fn processes(&self) -> Result<Vec<i32>, HullError>;
    /// Runs a command beside the main process; returns as [`Self::start`] does.
    fn exec(&mut self, request: ExecRequest<'_>) -> Result<ExecChild, HullError>;
    /// Whether there is a guest to ask, which does not hear while it is paused. After SIGKILL such a one may go on for as
    /// long as this, to write its disks out.
    fn grace(&self) -> Option<Duration> {
        None
    }
    /// Why the main process ended without telling its exit code, if somebody knows.
    fn end_reason(&self) -> Option<String> {
        None
    }
    /// How many processes the OOM killer has ended here.
    fn oom_kills(&self) -> u64;
    /// Becomes readable on an OOM kill, where the host can tell.
    fn oom_notifier(&self) -> Option<BorrowedFd<'_>>;
    /// Reaps the main process; call it when `pidfd` is readable.
    fn wait(&mut self) -> Result<ExitStatus, HullError>;
    /// Kills what is left once the main process has ended, and need not wait until it is gone: [`Self::destroy`] does.
    fn end_rest(&mut self) -> Result<(), HullError> {
        self.destroy()
    }
    /// Kills what is left and removes cgroups.
    fn destroy(&mut self) -> Result<(), HullError>;
}

/// Resource figures of a sandbox. Times are nanoseconds, sizes bytes; counters count from its start.
#[derive(Clone, Debug, Default, PartialEq, serde::Serialize, serde::Deserialize)]
#[serde(default)]
pub struct Stats {
    /// When they were read, nanoseconds since the epoch.
    pub read_ns: i64,
    /// CPU time in all, in user mode, in kernel mode.
    pub cpu_total_ns: u64,
    /// User part.
    pub cpu_user_ns: u64,
    /// Kernel part.
    pub cpu_system_ns: u64,
    /// CPU time of the whole host, as Docker's `system_cpu_usage`.
    pub host_cpu_ns: u64,
    /// CPUs of the host.
    pub online_cpus: u32,
    /// Enforcement periods, those throttled, time throttled.
    pub throttling: [u64; 3],
    /// Memory in use, page cache included.
    pub memory_usage: u64,
    /// Highest memory in use.
    pub memory_max_usage: u64,
    /// Limit; the host's memory where there is none.
    pub memory_limit: u64,
    /// `memory.stat` as it stands.
    pub memory_stat: std::collections::BTreeMap<String, u64>,
    /// Processes and threads.
    pub pids: u64,
    /// Limit of those; 0 is none.
    pub pids_limit: u64,
    /// Bytes read and written, by device (major, minor).
    pub blkio_bytes: Vec<(u64, u64, u64, u64)>,
    /// Of a microVM: memory in use inside, and all that its kernel has; as the guest says.
    pub guest_memory: Option<[u64; 2]>,
    /// By interface inside: name, received bytes, packets, errors, dropped, sent bytes, packets, errors, dropped.
    pub networks: Vec<(String, [u64; 8])>,
}

impl Stats {
    /// What the host counts of a machine, and what its guest tells of what runs inside, if it tells.
    pub(crate) fn with_guest(self, inside: Self) -> Self {
        Self {
            pids: inside.pids,
            pids_limit: inside.pids_limit,
            guest_memory: Some([inside.memory_usage, inside.memory_limit]).filter(|m| *m != [0, 0]),
            networks: inside.networks,
            blkio_bytes: inside.blkio_bytes,
            ..self
        }
    }
}

/// Why a hull could not do what it was asked.
#[derive(Debug, thiserror::Error)]
pub enum HullError {
    /// The command is nowhere in `PATH`, or the file does not exist: exit code 127.
    #[error("exec: {command:?}: executable file not found{}", if command.contains('/') { "" } else { " in $PATH" })]
    CommandNotFound {
        /// As the user gave it.
        command: String,
    },
    /// The command is there but cannot be executed: exit code 126.
    #[error("exec: {command:?}: {source}")]
    CommandNotExecutable {
        /// As the user gave it.
        command: String,
        /// What `execve` said.
        source: std::io::Error,
    },
    /// The specification asks for what cannot be done here.
    #[error("{0}")]
    Invalid(String),
    /// The host lacks something.
    #[error("{0}")]
    Unsupported(String),
    /// A step failed.
    #[error("{step}: {source}")]
    Step {
        /// What was being done, with the path or name it was done to.
        step: String,
        /// What the kernel said.
        source: std::io::Error,
    },
    /// The network could not be configured.
    #[error("network: {0}")]
    Network(String),
    /// The engine could not do its part.
    #[error(transparent)]
    Hook(#[from] HookError),
    /// The guest refused, with the sentence and the exit code that a container's start would have had.
    #[error(transparent)]
    Guest(#[from] crate::protocol::Failure),
}

impl HullError {
    /// The exit code of `run`, `start` and `exec` for this failure (Docker's): 125, 126 or 127.
    pub fn exit_code(&self) -> i32 {
        match self {
            Self::CommandNotFound { .. } => 127,
            Self::CommandNotExecutable { .. } => 126,
            Self::Guest(failure) => failure.exit_code,
            _ => 125,
        }
    }
}

impl Kinded for HullError {
    fn kind(&self) -> ErrorKind {
        match self {
            Self::CommandNotFound { .. } => ErrorKind::NotFound,
            Self::CommandNotExecutable { .. } | Self::Invalid(_) => ErrorKind::Invalid,
            Self::Unsupported(_) => ErrorKind::Unsupported,
            Self::Step { .. } | Self::Network(_) => ErrorKind::Internal,
            Self::Hook(e) => e.kind,
            Self::Guest(failure) => failure.kind,
        }
    }
}
