//! Commands beside the main process: sessions of clients, and the health check's.

use super::channel::{self, Channel};
use super::connection::{Connection, Role};
use super::core::{Core, internal};
use super::health::Check;
use super::lifecycle::DRAIN;
use super::requests::Outcome;
use super::starting::TAKES_TIME;
use crate::hull::{ExecRequest, Pending};
use crate::protocol::{ExecInfo, ExecOptions, Failure, Response};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, Signal, WaitOptions, pidfd_send_signal, waitpid};
use std::os::fd::OwnedFd;
use std::time::{Duration, Instant};
use types::{ErrorKind, Status, oci};

/// Ended sessions whose exit code can still be asked for.
const REMEMBERED: usize = 32;
/// Sessions at one time.
const MAX_EXECS: usize = 256;

/// Whose it is.
pub(super) enum Purpose {
    /// A client's, or nobody's (detached).
    Session {
        /// It does not outlive its client's connection.
        tied: bool,
        /// Its client wants to know no more than that it is executed.
        detached: bool,
    },
    /// The health check's.
    Health(Check),
}

/// A command that runs.
pub(super) struct Exec {
    pub(super) info: ExecInfo,
    pub(super) pidfd: OwnedFd,
    pub(super) io: Channel,
    /// The client of a session; none has the id 0.
    pub(super) client: u64,
    pub(super) purpose: Purpose,
    /// Until when it is not executed, and a client has no answer.
    pending: Option<Box<dyn Pending>>,
    /// Its code, and until when output is waited for.
    ended: Option<(i32, Instant)>,
    /// When it is killed.
    kill_at: Option<Instant>,
}

impl Exec {
    pub(super) fn has_ended(&self) -> bool {
        self.ended.is_some()
    }

    /// That by which it is known whether it is executed, until then.
    pub(super) fn waits_for(&self) -> Option<&dyn Pending> {
        self.pending.as_deref().filter(|_| TAKES_TIME)
    }

    pub(super) fn deadline(&self) -> Option<Instant> {
        let pending = self.waits_for().map(|p| p.until());
        self.ended.map(|(_, at)| at).or([pending, self.kill_at].into_iter().flatten().min())
    }
}

impl Core<'_> {
    /// Starts a client's command and makes the connection its stream.
    pub(super) fn exec(
        &mut self,
        id: u64,
        client: &mut Connection,
        options: ExecOptions,
    ) -> Result<Outcome, Failure> {
        if self.execs.len() >= MAX_EXECS {
            let message =
                format!("{MAX_EXECS} exec sessions run in this container: wait until one has ended");
            return Err(Failure { kind: ErrorKind::Exhausted, message, exit_code: 125 });
        }
        if self.execs.values().any(|e| e.info.id == options.id) {
            let message = format!("exec session {} runs already", options.id);
            return Err(Failure { kind: ErrorKind::Conflict, message, exit_code: 125 });
        }
        let mut process = options.process;
        process.set_terminal(Some(options.tty));
        let attached = !options.detach;
        let wanted = [options.stdin && attached, options.stdout && attached, options.stderr && attached];
        let purpose = Purpose::Session { tied: options.tied, detached: options.detach };
        let key = self.exec_start(&options.id, &process, wanted, options.console_size, id, purpose)?;
        client.role = Role::Exec(key);
        Ok(self.exec_answer(key, client).map_or(Outcome::Later, Outcome::Now))
    }

    /// The answer for the client of a session that is executed, and what the client is from now on.
    fn exec_answer(&mut self, key: u64, client: &mut Connection) -> Option<Response> {
        let exec = self.execs.get_mut(&key).filter(|e| e.waits_for().is_none())?;
        if matches!(exec.purpose, Purpose::Session { detached: true, .. }) {
            exec.client = 0;
            client.role = Role::Idle;
        }
        Some(Response::ExecStarted { pid: exec.info.pid })
    }

    /// A command may be executed, or time is up.
    pub(super) fn exec_proceeds(&mut self, key: u64) {
        let Some(exec) = self.execs.get_mut(&key) else { return };
        let Some(result) = exec.pending.as_mut().and_then(|p| p.result()) else { return };
        exec.pending = None;
        let owner = exec.client;
        match result {
            Ok(()) => {
                let Some(mut client) = self.clients.remove(&owner) else { return };
                if let Some(answer) = self.exec_answer(key, &mut client) {
                    client.answer(answer);
                }
                self.clients.insert(owner, client);
            }
            Err(e) => self.exec_failed(key, e.into()),
        }
    }

    /// It was never executed, and never will be. What is left of its process is reaped when it has ended.
    fn exec_failed(&mut self, key: u64, failure: Failure) {
        let Some(exec) = self.execs.remove(&key) else { return };
        let _ = pidfd_send_signal(&exec.pidfd, Signal::KILL);
        match exec.purpose {
            Purpose::Health(check) => self.health_failed(check, failure),
            Purpose::Session { .. } => {
                if let Some(client) = self.clients.get_mut(&exec.client).filter(|c| c.role == Role::Exec(key))
                {
                    client.role = Role::Idle;
                    client.answer(Response::Failed(failure));
                }
            }
        }
    }

    /// Starts a command; returns its key.
    pub(super) fn exec_start(
        &mut self,
        name: &str,
        process: &oci::Process,
        [stdin, stdout, stderr]: [bool; 3],
        console_size: Option<(u16, u16)>,
        client: u64,
        purpose: Purpose,
    ) -> Result<u64, Failure> {
        let args = process.args().clone().unwrap_or_default();
        let tty = process.terminal().unwrap_or(false);
        let line = args.join(" ");
        let id = self.new_id();
        if self.state.status != Status::Running {
            return Err(self.not_running());
        }
        self.event(&format!("exec_create: {line}"), &[("execID", name.to_owned())]);
        self.event(&format!("exec_start: {line}"), &[("execID", name.to_owned())]);
        let Some(main) = self.main.as_mut().filter(|m| !m.is_draining()) else {
            return Err(self.not_running());
        };
        let ends = if tty {
            channel::no_ends().map(|ends| (Channel::default(), ends))
        } else {
            channel::pipes(stdin, stdout, stderr)
        };
        let (mut io, ends) = ends.map_err(|e| internal(format!("cannot make pipes for exec: {e}")))?;
        let child =
            main.sandbox.exec(ExecRequest { id: name, process, stdio: ends.borrow(), console_size })?;
        drop(ends);
        if let Some(master) = child.console {
            io = Channel::console(master, stdin)
                .map_err(|e| internal(format!("cannot set the console up: {e}")))?;
        }
        let info = ExecInfo { id: name.to_owned(), pid: child.pid, exit_code: None, args, tty };
        let kill_at = match &purpose {
            Purpose::Health(check) => Some(check.deadline()),
            Purpose::Session { .. } => None,
        };
        let (pidfd, pending) = (child.pidfd, child.pending);
        self.execs.insert(id, Exec { info, pidfd, io, client, purpose, pending, ended: None, kill_at });
        Ok(id)
    }

    /// Its process has ended.
    pub(super) fn exec_ended(&mut self, id: u64) {
        let Some(exec) = self.execs.get_mut(&id).filter(|e| !e.has_ended()) else { return };
        exec.ended = Some((reap(exec.info.pid), Instant::now() + DRAIN));
        self.exec_last_words(id);
        self.reap_orphans();
        if self.execs.get(&id).is_some_and(|e| !e.io.has_output()) {
            self.exec_over(id);
        }
    }

    /// Time is up: for its output after the end, or for the command itself.
    pub(super) fn exec_deadline(&mut self, id: u64) {
        let Some(exec) = self.execs.get_mut(&id) else { return };
        if exec.has_ended() {
            return self.exec_over(id);
        }
        if exec.waits_for().is_some_and(|p| p.until() <= Instant::now()) {
            return self.exec_proceeds(id);
        }
        exec.kill_at = None;
        if let Purpose::Health(check) = &mut exec.purpose {
            check.timed_out = true;
        }
        let _ = pidfd_send_signal(&exec.pidfd, Signal::KILL);
    }

    /// Its output is passed on as well.
    pub(super) fn exec_over(&mut self, id: u64) {
        let Some(mut exec) = self.execs.remove(&id) else { return };
        let code = exec.ended.map_or(137, |(code, _)| code);
        exec.info.exit_code = Some(code);
        self.event("exec_die", &[("execID", exec.info.id.clone()), ("exitCode", code.to_string())]);
        match exec.purpose {
            Purpose::Health(check) => self.health_result(check, code),
            Purpose::Session { .. } => {
                if let Some(client) = self.clients.get_mut(&exec.client).filter(|c| c.role == Role::Exec(id))
                {
                    client.finish(code, false);
                }
                self.past_execs.push_back(exec.info);
                if self.past_execs.len() > REMEMBERED {
                    self.past_execs.pop_front();
                }
            }
        }
    }

    /// The client of a session went away: the command goes on, and its output goes nowhere.
    pub(super) fn exec_client_gone(&mut self, id: u64, detached: bool) {
        let Some(exec) = self.execs.get_mut(&id) else { return };
        exec.client = 0;
        if detached {
            let attributes = [("execID", exec.info.id.clone())];
            self.event("exec_detach", &attributes);
        } else if matches!(exec.purpose, Purpose::Session { tied: true, .. }) {
            let _ = pidfd_send_signal(&exec.pidfd, Signal::KILL);
        } else {
            exec.io.end_input();
        }
    }

    /// The container ends, and its sessions with it.
    pub(super) fn end_execs(&mut self) {
        for id in self.execs.keys().copied().collect::<Vec<_>>() {
            if self.execs.get(&id).is_some_and(|e| e.waits_for().is_some()) {
                self.exec_failed(id, self.not_running());
                continue;
            }
            if let Some(exec) = self.execs.get_mut(&id).filter(|e| !e.has_ended()) {
                let _ = pidfd_send_signal(&exec.pidfd, Signal::KILL);
                let mut fds = [PollFd::new(&exec.pidfd, PollFlags::IN)];
                let _ = poll(&mut fds, Some(&Timespec { tv_sec: 1, tv_nsec: 0 }));
                exec.ended = Some((reap(exec.info.pid), Instant::now()));
                self.exec_last_words(id);
            }
            self.exec_over(id);
        }
    }

    /// All sessions, the running ones first.
    pub(super) fn exec_list(&self) -> Vec<ExecInfo> {
        let running = self
            .execs
            .values()
            .filter(|e| matches!(e.purpose, Purpose::Session { .. }))
            .map(|e| e.info.clone());
        running.chain(self.past_execs.iter().rev().cloned()).collect()
    }
}

/// The exit code of an ended child.
fn reap(pid: i32) -> i32 {
    let Some(pid) = Pid::from_raw(pid) else { return 255 };
    match waitpid(Some(pid), WaitOptions::NOHANG) {
        Ok(Some((_, status))) => {
            status.exit_status().or(status.terminating_signal().map(|signal| 128 + signal)).unwrap_or(255)
        }
        // Killed just now, and not gone within a second.
        _ => 137,
    }
}

/// A deadline that is never reached overflows nothing.
pub(super) fn later(ns: u64) -> Instant {
    let now = Instant::now();
    now.checked_add(Duration::from_nanos(ns)).unwrap_or(now + Duration::from_secs(1 << 30))
}
