//! Start, end, restart, end for good. See the drawing at the head of [`super`].

use super::HookError;
use super::channel::{self, Channel};
use super::connection::Role;
use super::core::{Core, Waiting, internal};
use super::health::Health;
use super::starting::{Stage, Starting, TAKES_TIME};
use crate::hull::{AdoptRequest, CreateRequest, ExitStatus, HullError, Pending, Rootfs, Sandbox};
use crate::logs::Source;
use crate::protocol::{Failure, Response, WaitCondition};
use std::cell::RefCell;
use std::os::fd::{AsFd, OwnedFd};
use std::time::{Duration, Instant};
use types::{ErrorKind, HealthState, Kinded, Status};

/// How long output is waited for that a process outside still holds open.
pub(super) const DRAIN: Duration = Duration::from_millis(100);
/// Where no descriptor tells of the OOM killer, and after a notice that brought nothing new.
const OOM_PAUSE: Duration = Duration::from_secs(1);

/// What the hull has built, or until when it builds it.
type Built = (Box<dyn Sandbox>, Channel, Option<Box<dyn Pending>>);

/// The container while it runs, and while its last output comes.
pub(super) struct Main {
    pub(super) sandbox: Box<dyn Sandbox>,
    pub(super) io: Channel,
    started: Instant,
    oom_kills: u64,
    /// Set when it has ended: until when output is waited for.
    ended: Option<Instant>,
}

impl Main {
    /// Its process has ended; only output may come.
    pub(super) fn is_draining(&self) -> bool {
        self.ended.is_some()
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        self.ended
    }
}

impl From<HullError> for Failure {
    fn from(e: HullError) -> Self {
        Self { kind: e.kind(), exit_code: e.exit_code(), message: e.to_string() }
    }
}

impl Core<'_> {
    pub(super) fn first_start(&mut self) -> Result<(), Failure> {
        self.state.restart_count = 0;
        self.state.stopped_by_user = false;
        self.state.start_again = false;
        self.start()
    }

    /// Starts the container, or begins to, or undoes what was done.
    pub(super) fn start(&mut self) -> Result<(), Failure> {
        self.state.supervisor = rustix::process::getpid().as_raw_nonzero().get();
        self.state.boot_id = sys::host::boot_id().unwrap_or_default();
        (self.state.pid, self.state.pid_start) = (0, 0);
        self.state.ports.clear();
        // Not two overlays on one writable directory.
        self.mounts = None;
        match self.create() {
            Ok((sandbox, io, pending)) => match pending.filter(|_| TAKES_TIME) {
                None => self.execute(sandbox, io),
                Some(pending) => {
                    self.starting = Some(Starting::new(sandbox, io, pending, Stage::Building));
                    Ok(())
                }
            },
            Err(failure) => {
                self.hooks.ended(&self.bundle);
                Err(failure)
            }
        }
    }

    /// Has the workload executed of what is built.
    pub(super) fn execute(&mut self, mut sandbox: Box<dyn Sandbox>, io: Channel) -> Result<(), Failure> {
        match sandbox.start().map(|pending| pending.filter(|_| TAKES_TIME)) {
            Ok(None) => self.runs(sandbox, io),
            Ok(Some(pending)) => {
                self.starting = Some(Starting::new(sandbox, io, pending, Stage::Executing));
            }
            Err(e) => return Err(self.undo(sandbox, e.into())),
        }
        Ok(())
    }

    /// Takes back a start that failed.
    pub(super) fn undo(&mut self, mut sandbox: Box<dyn Sandbox>, why: Failure) -> Failure {
        let _ = sandbox.destroy();
        self.hooks.ended(&self.bundle);
        why
    }

    /// The workload is executed.
    pub(super) fn runs(&mut self, sandbox: Box<dyn Sandbox>, io: Channel) {
        self.hold_mounts(sandbox.pid());
        self.state.pid = sandbox.pid();
        self.state.pid_start = sys::host::start_time(self.state.pid).unwrap_or_default();
        self.state.status = Status::Running;
        self.state.started_ns = sys::host::now_ns();
        self.state.error.clear();
        self.state.oom_killed = false;
        self.state.exit_code = 0;
        self.state.health = self.bundle.health.as_ref().map(|_| HealthState::default());
        let oom_kills = sandbox.oom_kills();
        self.main = Some(Main { sandbox, io, started: Instant::now(), oom_kills, ended: None });
        self.health = self.bundle.health.as_ref().map(|h| Health::begin(h, Duration::ZERO));
        self.untidy = true;
        let again = std::mem::take(&mut self.state.start_again);
        self.save();
        self.event("start", &[]);
        if again {
            self.event("restart", &[]);
        }
    }

    /// Keeps the mount namespace until the clients are answered: who is the last in it takes its mounts apart, which
    /// waits for all of the kernel's readers, and so would everybody who waits for the end of its process. Only where
    /// nobody can miss them: all that is mounted is the container's own, and is removed with it.
    fn hold_mounts(&mut self, pid: i32) {
        let mut sources = self.bundle.spec.mounts().iter().flatten().filter_map(|m| m.source().as_deref());
        if self.bundle.auto_remove && sources.all(|s| s.starts_with(&self.dir) || !s.has_root()) {
            // A workload that has ended already has no namespace any more, and nothing is gained.
            self.mounts = std::fs::File::open(format!("/proc/{pid}/ns/mnt")).ok();
        }
    }

    fn create(&mut self) -> Result<Built, Failure> {
        let refuse = |e: HookError| Failure { kind: e.kind, message: e.message, exit_code: 125 };
        let (mount, layers): (OwnedFd, Vec<_>);
        let rootfs = match &self.bundle.machine {
            Some(plan) => {
                layers = self.bundle.rootfs.layers.iter().map(|l| l.path.clone()).collect();
                Rootfs::Machine { plan, layers: &layers, network: &self.bundle.network }
            }
            None => {
                mount = self.hooks.rootfs(&self.bundle).map_err(refuse)?;
                Rootfs::Mount(mount.as_fd())
            }
        };
        let tty = self.bundle.spec.process().as_ref().and_then(|p| p.terminal()).unwrap_or(false);
        let ends = match tty {
            true => channel::no_ends().map(|ends| (Channel::default(), ends)),
            false => channel::fifos(&self.run, self.bundle.open_stdin, self.bundle.stdin_once),
        };
        let (mut io, ends) = ends.map_err(|e| internal(format!("cannot make the FIFOs of stdio: {e}")))?;
        let (bundle, dir, state) = (&self.bundle, &self.dir, &self.state);
        let hooks = RefCell::new(&mut *self.hooks);
        let (ports, refused) = (RefCell::new(Vec::new()), RefCell::new(None));
        let keep_refusal = |e: HookError| {
            let message = e.message.clone();
            *refused.borrow_mut() = Some(e);
            HullError::Network(message)
        };
        let created = self.hull.create(CreateRequest {
            id: bundle.id.as_str(),
            spec: &bundle.spec,
            rootfs,
            cgroup: &bundle.cgroup,
            run: &self.run,
            stdio: ends.borrow(),
            console_size: bundle.console_size,
            init: bundle.init,
            removed: bundle.auto_remove,
            network_outside: &mut |netns| {
                let decided = hooks.borrow_mut().network_outside(bundle, netns).map_err(keep_refusal)?;
                *ports.borrow_mut() = decided;
                Ok(())
            },
            taps: &mut || {
                let (taps, decided) = hooks.borrow_mut().taps(bundle).map_err(keep_refusal)?;
                *ports.borrow_mut() = decided;
                Ok(taps)
            },
            network_inside: &|| {
                hooks.borrow().network_inside(bundle).map_err(|e| HullError::Network(e.message))
            },
            meanwhile: &|| super::core::save(dir, state),
        });
        let created = match (created, refused.into_inner()) {
            (Ok(created), _) => created,
            // The engine's own sentence and kind, not the hull's words around it.
            (Err(_), Some(e)) => return Err(Failure { kind: e.kind, message: e.message, exit_code: 125 }),
            (Err(e), None) => return Err(e.into()),
        };
        self.state.ports = ports.into_inner();
        if let Some(master) = created.console {
            io = Channel::console(master, self.bundle.open_stdin)
                .map_err(|e| internal(format!("cannot set the console up: {e}")))?;
        }
        Ok((created.sandbox, io, created.pending))
    }

    /// Takes over what another supervisor left when it was killed.
    pub(super) fn adopt(&mut self) -> Result<(), Failure> {
        self.state.supervisor = rustix::process::getpid().as_raw_nonzero().get();
        if self.state.status == Status::Restarting {
            self.waiting = Some(Waiting { until: Instant::now() });
            self.save();
            return Ok(());
        }
        let io = channel::adopt_fifos(&self.run, self.bundle.open_stdin);
        let adopted = self.hull.adopt(AdoptRequest {
            id: self.bundle.id.as_str(),
            spec: &self.bundle.spec,
            cgroup: &self.bundle.cgroup,
            run: &self.run,
            pid: self.state.pid,
            pid_start: self.state.pid_start,
        });
        let ran =
            Duration::from_nanos(sys::host::now_ns().saturating_sub(self.state.started_ns).max(0) as u64);
        match adopted {
            Ok(sandbox) => {
                let now = Instant::now();
                let oom_kills = sandbox.oom_kills();
                let started = now.checked_sub(ran).unwrap_or(now);
                self.main = Some(Main { sandbox, io, started, oom_kills, ended: None });
                self.health = self.bundle.health.as_ref().map(|h| Health::begin(h, ran));
                self.finish_connecting();
                self.save();
            }
            // It ended while nobody looked.
            Err(_) => {
                let _ = self.hull.clean(self.bundle.id.as_str(), &self.bundle.cgroup);
                self.state.exit_code = ExitStatus::Unknown.code();
                self.after_run(ran);
            }
        }
        Ok(())
    }

    /// A start failed, and everything is undone.
    pub(super) fn failed_start(&mut self, failure: &Failure) {
        self.state.error = failure.message.clone();
        self.state.exit_code = failure.exit_code;
        (self.state.pid, self.state.pid_start) = (0, 0);
        self.state.start_again = false;
        if self.state.status != Status::Created {
            self.state.status = Status::Exited;
            self.state.finished_ns = sys::host::now_ns();
        }
    }

    /// The notifier says that the OOM killer struck.
    pub(super) fn oom_readable(&mut self) {
        if let Some(fd) = self.main.as_ref().and_then(|m| m.sandbox.oom_notifier()) {
            // Clears files of cgroup v2, or else eventfds and inotify: without it the loop would turn idly.
            let mut told = [0; 4096];
            if rustix::io::pread(fd, &mut told, 0).is_err() {
                let _ = rustix::io::read(fd, &mut told);
            }
        }
        self.oom_notice();
    }

    /// The OOM killer may have struck.
    pub(super) fn oom_notice(&mut self) {
        let Some(main) = &mut self.main else { return };
        let kills = main.sandbox.oom_kills();
        let risen = kills > main.oom_kills;
        main.oom_kills = kills;
        self.oom_quiet = Some(Instant::now() + OOM_PAUSE).filter(|_| !risen);
        if risen {
            self.state.oom_killed = true;
            self.save();
            self.event("oom", &[]);
        }
    }

    /// The main process has ended.
    pub(super) fn main_ended(&mut self) {
        let Some(main) = self.main.as_mut().filter(|m| !m.is_draining()) else { return };
        let status = main.sandbox.wait().unwrap_or(ExitStatus::Unknown);
        main.ended = Some(Instant::now() + DRAIN);
        self.state.error = main.sandbox.end_reason().unwrap_or_default();
        self.oom_notice();
        self.state.exit_code = status.code();
        self.end_questions();
        (self.kill_at, self.plug_at) = (None, None);
        self.health = None;
        self.end_execs();
        if let Some(main) = &mut self.main {
            // Whatever of it is left would keep its pipes open.
            let _ = main.sandbox.end_rest();
        }
        self.last_words();
        self.reap_orphans();
        if self.main.as_ref().is_some_and(|m| !m.io.has_output()) {
            self.run_over();
        }
    }

    /// The process is gone and its output is passed on.
    pub(super) fn run_over(&mut self) {
        let Some(main) = self.main.take() else { return };
        let now = sys::host::now_ns();
        if let Some(log) = &mut self.log {
            log.end(Source::Stdout, now);
            log.end(Source::Stderr, now);
        }
        let ran = main.started.elapsed();
        self.rest = Some(main.sandbox);
        self.oom_quiet = None;
        self.after_run(ran);
    }

    fn after_run(&mut self, ran: Duration) {
        self.hooks.ended(&self.bundle);
        let (code, state) = (self.state.exit_code, &mut self.state);
        (state.pid, state.pid_start) = (0, 0);
        state.finished_ns = sys::host::now_ns();
        state.ports.clear();
        let wait = self.next_start(ran);
        self.state.status = if wait.is_some() { Status::Restarting } else { Status::Exited };
        self.save();
        self.event("die", &[("exitCode", code.to_string())]);
        if let Some(mut rest) = self.rest.take() {
            // The next run, or who removes it, finds nobody at its files.
            let _ = rest.destroy();
        }
        match wait {
            Some(wait) => {
                if std::mem::take(&mut self.stopping) {
                    self.event("stop", &[]);
                }
                self.mounts = None;
                self.waiting = Some(Waiting { until: Instant::now() + wait });
                self.untidy = true;
                self.tell_end(false);
            }
            None => self.finish_saved(),
        }
    }

    /// The end for good.
    pub(super) fn finish(&mut self) {
        if self.finished {
            return;
        }
        self.waiting = None;
        if self.state.status.is_active() {
            self.state.status = Status::Exited;
        }
        self.save();
        self.finish_saved();
    }

    /// The same with `state.json` as it shall stay.
    fn finish_saved(&mut self) {
        self.log = None;
        if self.stopping {
            self.event("stop", &[]);
        }
        self.hooks.finished(&self.bundle, &self.state);
        // From here on the directories may be gone, or another supervisor's.
        self.finished = true;
        self.leave();
        self.tell_end(true);
        self.clients.values_mut().for_each(|c| c.closing = true);
    }

    /// Answers those who wait for the end, and ends the streams.
    fn tell_end(&mut self, for_good: bool) {
        let (code, oom) = (self.state.exit_code, self.state.oom_killed);
        for client in self.clients.values_mut() {
            match client.role {
                Role::Attached(_) => {
                    client.finish(code, oom);
                    // Its going is not the end of the next run's input.
                    client.detached = true;
                }
                Role::Waiting(WaitCondition::Removed) if !for_good => {}
                Role::Waiting(_) => {
                    client.answer(Response::Exited { code });
                    client.role = Role::Idle;
                }
                _ => {}
            }
        }
    }

    /// Why something cannot be done to it now.
    pub(super) fn not_running(&self) -> Failure {
        let id = self.bundle.id.as_str();
        let message = match self.state.status {
            Status::Restarting => {
                format!("Container {id} is restarting, wait until the container is running")
            }
            _ if self.under_way().is_some() => {
                format!("Container {id} is starting, wait until the container is running")
            }
            Status::Paused => format!("Container {id} is paused, unpause the container first"),
            _ => format!("Container {id} is not running"),
        };
        Failure { kind: ErrorKind::Conflict, message, exit_code: 1 }
    }
}
