//! What clients ask for, carried out.

use super::connection::{Connection, Role};
use super::core::{Core, Waiting};
use super::exec::later;
use crate::hull::HullError;
use crate::protocol::{AttachOptions, ExecOptions, Failure, Frame, Request, Response, WaitCondition};
use std::time::{Duration, Instant};
use types::{ErrorKind, RestartPolicy, Status, oci};

pub(super) const SIGKILL: i32 = 9;

/// What becomes of a request.
pub(super) enum Outcome {
    Now(Response),
    /// The answer comes at the end.
    Later,
}

impl Core<'_> {
    /// Deals with every frame that has come from a client.
    pub(super) fn read_frames(&mut self, id: u64, client: &mut Connection) {
        // Moved out, so that the client can be written to while its frames are looked at.
        let mut decoder = std::mem::take(&mut client.decoder);
        while !client.dead && !client.closing {
            match decoder.next_frame() {
                Ok(None) => break,
                Ok(Some(Frame::Hello)) if !client.greeted => {
                    client.greeted = true;
                    client.send(&Frame::Hello);
                }
                Ok(Some(Frame::Request(request))) if client.greeted && client.role == Role::Idle => {
                    self.request(id, client, *request);
                }
                Ok(Some(frame)) => self.stream_frame(client, &frame),
                Err(e) => client.refuse(&e),
            }
        }
        client.decoder = decoder;
    }

    /// A frame on an attached connection; anything else ends the conversation.
    fn stream_frame(&mut self, client: &mut Connection, frame: &Frame<'_>) {
        let (io, feeds) = match &client.role {
            Role::Attached(options) => (self.main.as_mut().map(|m| &mut m.io), options.stdin),
            Role::Exec(id) => (self.execs.get_mut(id).map(|e| &mut e.io), true),
            Role::Idle | Role::Waiting(_) | Role::Postponed => {
                client.dead = true;
                return;
            }
        };
        match frame {
            Frame::Stdin(bytes) => {
                if let Some(io) = io.filter(|_| feeds) {
                    io.feed(bytes);
                }
            }
            Frame::StdinEnd => match client.role {
                Role::Exec(_) => {
                    if let Some(io) = io {
                        io.end_input();
                    }
                }
                _ if feeds => self.end_main_input(),
                _ => {}
            },
            Frame::Resize(rows, columns) => {
                let exec = match &client.role {
                    Role::Exec(id) => self.execs.get(id).map(|e| e.info.id.clone()),
                    _ => None,
                };
                // The stream goes on in the old size.
                let _ = self.resize(exec, *rows, *columns);
            }
            Frame::Detach => {
                client.detached = true;
                client.closing = true;
                if matches!(client.role, Role::Attached(_)) {
                    self.event("detach", &[]);
                }
            }
            _ => client.dead = true,
        }
    }

    pub(super) fn request(&mut self, id: u64, client: &mut Connection, request: Request) {
        let Some(request) = self.postpone(id, client, request) else { return };
        let outcome = match request {
            Request::Start { .. } => Err(Failure {
                kind: ErrorKind::Invalid,
                message: "the container is started already".to_owned(),
                exit_code: 125,
            }),
            Request::Attach(options) => self.attach(client, options),
            Request::Exec(options) => self.exec_request(id, client, *options),
            Request::Signal { signal } => self.signal(signal),
            Request::Stop { signal, timeout } => self.stop(client, signal, timeout),
            Request::KillAll => self.kill_all(client),
            Request::Pause => self.pause(),
            Request::Hold => {
                let done = self.pause();
                client.holds = done.is_ok();
                done
            }
            Request::Resume => {
                client.holds = false;
                self.resume()
            }
            Request::Update { resources, restart } => self.update(resources, restart),
            Request::Rename { name } => {
                let old = std::mem::replace(&mut self.bundle.name, name);
                self.renamed(&old)
            }
            Request::ConnectNetwork(attachment) => self.connect_network(*attachment),
            Request::DisconnectNetwork { network } => self.disconnect_network(&network),
            Request::Stats => self.ask_sandbox(|s| s.stats().map(|stats| Response::Stats(Box::new(stats)))),
            Request::Processes => {
                self.ask_sandbox(|s| s.processes().map(|pids| Response::Processes { pids }))
            }
            Request::Resize { exec, rows, columns } => self.resize(exec, rows, columns),
            Request::Wait { condition } => Ok(self.wait_for(client, condition)),
            Request::Execs => Ok(Outcome::Now(Response::Execs { list: self.exec_list() })),
            Request::State => {
                // Who asks could not read it.
                self.save();
                Ok(Outcome::Now(Response::State(Box::new(self.state.clone()))))
            }
        };
        match outcome {
            Ok(Outcome::Now(response)) => client.answer(response),
            Ok(Outcome::Later) => {}
            Err(failure) => client.answer(Response::Failed(failure)),
        }
    }

    /// The running sandbox, or why there is none.
    fn with_sandbox(
        &mut self,
        f: impl FnOnce(&dyn crate::hull::Sandbox) -> Result<Response, HullError>,
    ) -> Result<Outcome, Failure> {
        match &self.main {
            Some(main) if !main.is_draining() => Ok(Outcome::Now(f(&*main.sandbox)?)),
            _ => Err(self.not_running()),
        }
    }

    /// The same, if it hears.
    fn ask_sandbox(
        &mut self,
        f: impl FnOnce(&dyn crate::hull::Sandbox) -> Result<Response, HullError>,
    ) -> Result<Outcome, Failure> {
        if self.is_deaf() { Err(self.not_running()) } else { self.with_sandbox(f) }
    }

    /// See `Sandbox::grace`.
    fn grace(&self) -> Option<Duration> {
        self.main.as_ref().and_then(|main| main.sandbox.grace())
    }

    /// A guest that is paused.
    pub(super) fn is_deaf(&self) -> bool {
        self.state.status == Status::Paused && self.grace().is_some()
    }

    fn attach(&mut self, client: &mut Connection, options: AttachOptions) -> Result<Outcome, Failure> {
        if self.main.is_none() {
            return Err(self.not_running());
        }
        client.role = Role::Attached(options);
        self.event("attach", &[]);
        Ok(Outcome::Now(Response::Attached { since_ns: sys::host::now_ns() }))
    }

    fn exec_request(
        &mut self,
        id: u64,
        client: &mut Connection,
        options: ExecOptions,
    ) -> Result<Outcome, Failure> {
        self.exec(id, client, options)
    }

    fn signal(&mut self, signal: i32) -> Result<Outcome, Failure> {
        let ends = signal == SIGKILL || signal == self.bundle.stop_signal;
        if ends && self.waiting.is_some() {
            self.end_wait();
            return Ok(Outcome::Now(Response::Done));
        }
        if ends && let Some(starting) = self.under_way_mut().filter(|s| s.ends_by(signal)) {
            starting.aborted = true;
            self.state.stopped_by_user = true;
            self.save();
            self.event("kill", &[("signal", signal.to_string())]);
            return Ok(Outcome::Now(Response::Done));
        }
        if ends && self.is_deaf() {
            self.thaw();
        }
        let sent = match signal {
            SIGKILL if self.grace().is_some() => {
                self.kill_softly();
                Outcome::Now(Response::Done)
            }
            _ => self.ask_sandbox(|s| s.signal(signal).map(|()| Response::Done))?,
        };
        if ends {
            // A user's wish: no restart.
            self.state.stopped_by_user = true;
            self.save();
            self.thaw();
        }
        self.event("kill", &[("signal", signal.to_string())]);
        Ok(sent)
    }

    /// A frozen process cannot die.
    fn thaw(&mut self) {
        if self.state.status == Status::Paused
            && let Some(main) = &self.main
            && main.sandbox.resume().is_ok()
        {
            self.state.status = Status::Running;
            self.save();
        }
    }

    fn stop(
        &mut self,
        client: &mut Connection,
        signal: Option<i32>,
        timeout: Option<i64>,
    ) -> Result<Outcome, Failure> {
        self.mark_stopped(client);
        if self.waiting.is_some() {
            self.end_wait();
            return Ok(Outcome::Later);
        }
        let signal = signal.unwrap_or(self.bundle.stop_signal);
        match self.under_way_mut() {
            None => self.tell_stop(signal),
            Some(starting) if starting.ends_by(signal) => {
                starting.aborted = true;
                self.event("kill", &[("signal", signal.to_string())]);
            }
            Some(starting) => starting.stop = Some(signal),
        }
        let timeout = timeout.unwrap_or(self.bundle.stop_timeout);
        if let Ok(seconds) = u64::try_from(timeout) {
            let at = later(seconds.saturating_mul(1_000_000_000));
            self.kill_at = Some(self.kill_at.map_or(at, |before| before.min(at)));
        }
        Ok(Outcome::Later)
    }

    /// Passes on the signal of a stop.
    pub(super) fn tell_stop(&mut self, signal: i32) {
        if self.is_deaf() {
            self.thaw();
        }
        let _ = self.with_sandbox(|s| s.signal(signal).map(|()| Response::Done));
        self.thaw();
        self.event("kill", &[("signal", signal.to_string())]);
    }

    fn kill_all(&mut self, client: &mut Connection) -> Result<Outcome, Failure> {
        self.mark_stopped(client);
        if self.waiting.is_some() {
            self.end_wait();
            return Ok(Outcome::Later);
        }
        if let Some(starting) = self.under_way_mut() {
            starting.aborted = true;
            return Ok(Outcome::Later);
        }
        // Who asks removes it: nobody misses what it had not written yet.
        if self.grace().is_none() {
            self.kill_now();
        } else {
            self.pull_plug();
        }
        Ok(Outcome::Later)
    }

    fn mark_stopped(&mut self, client: &mut Connection) {
        client.role = Role::Waiting(WaitCondition::Removed);
        self.stopping = true;
        self.state.stopped_by_user = true;
        self.save();
    }

    /// The time that `stop` gave is over.
    pub(super) fn kill_now(&mut self) {
        if self.under_way().is_some() {
            self.event("kill", &[("signal", SIGKILL.to_string())]);
            return self.abort_start();
        }
        if self.grace().is_some() {
            self.kill_softly();
        } else if let Some(main) = &self.main {
            let _ = main.sandbox.signal(SIGKILL);
            let _ = main.sandbox.kill_all();
            self.thaw();
        }
        self.event("kill", &[("signal", SIGKILL.to_string())]);
    }

    /// Kills the workload of a guest, which then writes its disks out; the machine is ended if that takes too long, or if
    /// nobody answers.
    fn kill_softly(&mut self) {
        let Some((main, grace)) = self.main.as_ref().zip(self.grace()) else { return };
        self.plug_at = match main.sandbox.signal(SIGKILL) {
            Ok(()) => Some(later(u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX))),
            Err(_) => Some(Instant::now()),
        };
    }

    /// Ends a machine as a power cut does.
    pub(super) fn pull_plug(&mut self) {
        let Some(main) = &self.main else { return };
        let _ = main.sandbox.kill_all();
        self.thaw();
    }

    /// It does not run; what would start it again does so no more.
    fn end_wait(&mut self) {
        self.state.stopped_by_user = true;
        self.waiting = Some(Waiting { until: Instant::now() });
    }

    fn pause(&mut self) -> Result<Outcome, Failure> {
        if self.state.status == Status::Paused {
            let message = format!("Container {} is already paused", self.bundle.id.as_str());
            return Err(Failure { kind: ErrorKind::Conflict, message, exit_code: 1 });
        }
        let done = self.with_sandbox(|s| s.pause().map(|()| Response::Done))?;
        self.state.status = Status::Paused;
        self.save();
        self.event("pause", &[]);
        Ok(done)
    }

    pub(super) fn resume(&mut self) -> Result<Outcome, Failure> {
        if self.state.status != Status::Paused {
            let message = format!("Container {} is not paused", self.bundle.id.as_str());
            return Err(Failure { kind: ErrorKind::Conflict, message, exit_code: 1 });
        }
        let done = self.with_sandbox(|s| s.resume().map(|()| Response::Done))?;
        self.state.status = Status::Running;
        self.resume_health();
        self.save();
        self.event("unpause", &[]);
        Ok(done)
    }

    fn update(
        &mut self,
        resources: Option<Box<oci::LinuxResources>>,
        restart: Option<RestartPolicy>,
    ) -> Result<Outcome, Failure> {
        if let Some(resources) = resources {
            if let Some(main) = self.main.as_ref().filter(|m| !m.is_draining()) {
                main.sandbox.update(&resources)?;
            }
            // A guest's workload is started once.
            if cfg!(feature = "host") {
                self.remember(&resources);
            }
        }
        if let Some(restart) = restart {
            self.bundle.restart = restart;
        }
        self.event("update", &[]);
        Ok(Outcome::Now(Response::Done))
    }

    /// The next start by the restart policy has the new limits too.
    fn remember(&mut self, resources: &oci::LinuxResources) {
        let Some(linux) = self.bundle.spec.linux_mut() else { return };
        let old = linux.resources().clone().unwrap_or_default();
        let (Ok(mut merged), Ok(new)) = (serde_json::to_value(old), serde_json::to_value(resources)) else {
            return;
        };
        merge(&mut merged, new);
        if let Ok(merged) = serde_json::from_value(merged) {
            linux.set_resources(Some(merged));
        }
    }

    fn resize(&mut self, exec: Option<String>, rows: u16, columns: u16) -> Result<Outcome, Failure> {
        let io = match &exec {
            Some(name) => self.execs.values().find(|e| e.info.id == *name).map(|e| &e.io),
            None => self.main.as_ref().map(|m| &m.io),
        };
        let Some(io) = io else {
            return Err(match exec {
                None => self.not_running(),
                Some(name) => Failure {
                    kind: ErrorKind::NotFound,
                    message: format!("exec session {name} does not run in this container"),
                    exit_code: 1,
                },
            });
        };
        io.resize(rows, columns)
            .map_err(|e| super::core::internal(format!("cannot resize the terminal: {e}")))?;
        if let Some(main) = self.main.as_ref().filter(|m| !m.is_draining() && !self.is_deaf()) {
            main.sandbox.resize(exec.as_deref(), rows, columns)?;
        }
        if exec.is_none() {
            self.bundle.console_size = Some((rows, columns));
        }
        Ok(Outcome::Now(Response::Done))
    }

    fn wait_for(&mut self, client: &mut Connection, condition: WaitCondition) -> Outcome {
        if condition == WaitCondition::NotRunning && self.main.is_none() && self.under_way().is_none() {
            return Outcome::Now(Response::Exited { code: self.state.exit_code });
        }
        client.role = Role::Waiting(condition);
        Outcome::Later
    }
}

/// Values that are given replace those that were.
fn merge(old: &mut serde_json::Value, new: serde_json::Value) {
    match (old, new) {
        (serde_json::Value::Object(old), serde_json::Value::Object(new)) => {
            for (key, value) in new {
                merge(old.entry(key).or_insert(serde_json::Value::Null), value);
            }
        }
        (_, serde_json::Value::Null) => {}
        (old, new) => *old = new,
    }
}
