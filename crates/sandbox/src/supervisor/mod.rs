//! The process that lives with one container: it starts it, owns its stdio, log, exit code, restart policy, health check and
//! exec sessions, and answers its clients. One thread, one `poll(2)` loop, no state but `state.json`.
//!
//! ```text
//!            start ok               main process ends            no restart
//! starting ───────────► running ───────────────────► draining ─────────────► finished ──► (clients are served) gone
//!    │                  ▲  ▲                            │ restart policy          ▲
//!    │ start fails      │  └────────── start ok ── backing off ── stop, failure ──┤
//!    └──────────────────┼─────────────────────────────────────────────────────────┘
//!                  adopted (the supervisor before this one was killed)
//! ```
//!
//! All of it is waited for in that one loop, also what a hull takes its time over: the start of a machine, and of a command in
//! it ([`starting`], [`exec`]), and what a guest is asked ([`asking`]). What is asked meanwhile is answered, and a stop ends it.
//!
//! Killed at any point it leaves what the next command can set right: before `running` is written, a cgroup that `Hull::clean`
//! empties; after it, a container that the next supervisor adopts; after `exited` is written, nothing but files.
//! SIGHUP makes it listen on a new socket. SIGTERM and its like do nothing to it: a container is stopped by `stop`, not by its supervisor's death.
//!
//! Not here: names, images, the database (the engine, through [`Hooks`]), isolation (the hull).

mod asking;
mod channel;
mod connection;
mod core;
mod exec;
mod health;
mod lifecycle;
mod listener;
mod networks;
mod order;
mod output;
mod policy;
mod requests;
mod restart;
mod starting;

pub use crate::hull::HookError;
use crate::hull::{Hull, Wiring};
use rustix::fs::{Mode, OFlags};
use std::os::fd::{BorrowedFd, OwnedFd};
use std::path::PathBuf;
use types::{Bundle, PortBinding, RunState};

/// What a supervisor is given.
pub struct Supervise {
    /// The container.
    pub bundle: Bundle,
    /// `<root>/sandboxes/<id>`: bundle, state, log.
    pub dir: PathBuf,
    /// `<run>/sandboxes/<id>`: control socket, FIFOs, lock.
    pub run: PathBuf,
    /// The lock in `run`, held for the supervisor's life.
    pub lock: sys::file::Lock,
    /// The descriptor that `client::Launch::new` made.
    pub ready: Option<OwnedFd>,
    /// A vsock listener in the place of the control socket, in a guest.
    pub listener: Option<OwnedFd>,
    /// Takes over the container, which runs as this says, instead of starting it.
    pub adopt: Option<RunState>,
}

/// What the engine does around a container's runs.
pub trait Hooks: Wiring {
    /// The root filesystem as a detached mount; called before each start.
    fn rootfs(&mut self, bundle: &Bundle) -> Result<OwnedFd, HookError>;
    /// Attaches the network from outside and publishes ports; the decided ports go to `RunState::ports`.
    fn network_outside(
        &mut self,
        bundle: &Bundle,
        netns: BorrowedFd<'_>,
    ) -> Result<Vec<PortBinding>, HookError>;
    /// Tap devices in the place of [`Hooks::network_outside`], for a hull that wants them: one for each interface of the
    /// plan, and then the machine's spare ones.
    fn taps(&mut self, bundle: &Bundle) -> Result<(Vec<OwnedFd>, Vec<PortBinding>), HookError>;
    /// Configures the network from inside; runs in the new process.
    fn network_inside(&self, bundle: &Bundle) -> Result<(), HookError>;
    /// The bundle has another attachment, or one less, since a moment ago: publishes ports, tells of names. The ports that
    /// are published now go to `RunState::ports`.
    fn networks_changed(&mut self, bundle: &Bundle) -> Result<Vec<PortBinding>, HookError>;
    /// Readable when [`Hooks::serve`] has work (an epoll descriptor will do); asked for after each start.
    fn poll_fd(&self) -> Option<BorrowedFd<'_>>;
    /// Does what is due on it, without waiting: the userland port proxy.
    fn serve(&mut self);
    /// After each run, and after a start that failed: releases network and root filesystem.
    fn ended(&mut self, bundle: &Bundle);
    /// Something that `events` tells: Docker's verb and attributes.
    fn event(&mut self, bundle: &Bundle, action: &str, attributes: &[(&str, String)]);
    /// It ended for good. `--rm` removes here: waiting clients get their answer after this.
    fn finished(&mut self, bundle: &Bundle, state: &RunState);
}

/// Runs one container to its end for good; returns the last exit code. The caller is a process of its own: its stdio, session
/// and signal handlers are taken over.
pub fn supervise(supervise: Supervise, hull: &dyn Hull, hooks: &mut dyn Hooks) -> i32 {
    // Fails in a process that leads its group already, which is as good.
    let _ = rustix::process::setsid();
    let _ = rustix::process::set_child_subreaper(Some(rustix::process::getpid()));
    let _ = sys::signals::survive();
    let null = rustix::fs::open("/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty());
    if let Ok(null) = null {
        let _ = rustix::stdio::dup2_stdin(&null);
        let _ = rustix::stdio::dup2_stdout(&null);
        let _ = rustix::stdio::dup2_stderr(&null);
    }
    self::core::run(supervise, hull, hooks)
}
