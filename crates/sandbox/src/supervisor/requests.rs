//! What clients ask for, carried out.

use super::asking::Next;
use super::connection::{Connection, Role};
use super::core::{Core, Waiting};
use super::exec::later;
use super::starting::TAKES_TIME;
use crate::hull::{HullError, Sandbox};
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
                // If it fails, the stream goes on in the old size.
                if self.resize(exec.as_deref(), *rows, *columns).is_ok() && TAKES_TIME && self.hears() {
                    self.tell_size(exec, *rows, *columns);
                }
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
            Request::Signal { signal } => self.signal((id, client), signal),
            Request::Stop { signal, timeout } => self.stop(client, signal, timeout),
            Request::Restart { signal, timeout } if TAKES_TIME => self.restart_for(id, signal, timeout),
            Request::Restart { .. } => {
                // Of a guest the host asks that its disks be whole after this run.
                self.bundle.auto_remove = false;
                Ok(Outcome::Now(Response::Done))
            }
            Request::KillAll => self.kill_all(client),
            Request::Pause => self.pause().map(Outcome::Now),
            Request::Hold => {
                let done = self.pause();
                client.holds = done.is_ok();
                done.map(Outcome::Now)
            }
            Request::Resume => {
                client.holds = false;
                self.resume().map(Outcome::Now)
            }
            Request::Update { .. } if TAKES_TIME && self.is_deaf() => Err(self.not_running()),
            Request::Update { resources, restart } => {
                let next = self.update(resources, restart);
                self.ask_for((id, client), next)
            }
            Request::Rename { name } => {
                let old = std::mem::replace(&mut self.bundle.name, name);
                self.renamed(&old).map(Outcome::Now)
            }
            Request::ConnectNetwork(attachment) => {
                self.connect_network(*attachment).and_then(|next| self.ask_for((id, client), next))
            }
            Request::DisconnectNetwork { network } => {
                self.disconnect_network(&network).and_then(|next| self.ask_for((id, client), next))
            }
            Request::Stats => self.stats((id, client)),
            Request::Processes => self.processes((id, client)),
            Request::Resize { exec, rows, columns } => {
                self.resize_and_tell((id, client), exec, rows, columns)
            }
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
        f: impl FnOnce(&dyn Sandbox) -> Result<Response, HullError>,
    ) -> Result<Response, Failure> {
        match &self.main {
            Some(main) if !main.is_draining() => Ok(f(&*main.sandbox)?),
            _ => Err(self.not_running()),
        }
    }

    /// Whether what runs can be asked something.
    pub(super) fn hears(&self) -> bool {
        !self.is_deaf() && self.main.as_ref().is_some_and(|main| !main.is_draining())
    }

    fn stats(&mut self, client: (u64, &mut Connection)) -> Result<Outcome, Failure> {
        if TAKES_TIME && self.is_deaf() {
            let stats = self.with_sandbox(|s| Ok(Response::Stats(Box::new(s.stats()?))));
            return stats.map(Outcome::Now);
        }
        if !self.hears() {
            return Err(self.not_running());
        }
        // What the host pays is counted by the host; what runs inside is told by the guest, if it tells.
        let count = |core: &mut Core<'_>, inside: Result<Response, HullError>| {
            let stats = core.with_sandbox(|s| Ok(Response::Stats(Box::new(s.stats()?))));
            Next::Done(match (stats, inside) {
                (Ok(Response::Stats(stats)), Ok(Response::Stats(inside))) => {
                    Ok(Response::Stats(Box::new(stats.with_guest(*inside))))
                }
                (stats, _) => stats,
            })
        };
        let next = self.first(|| Request::Stats, count);
        self.ask_for(client, next)
    }

    fn processes(&mut self, client: (u64, &mut Connection)) -> Result<Outcome, Failure> {
        if !self.hears() {
            return Err(self.not_running());
        }
        let list = |core: &mut Core<'_>, inside: Result<Response, HullError>| {
            Next::Done(match inside {
                Ok(Response::Done) => core.with_sandbox(|s| Ok(Response::Processes { pids: s.processes()? })),
                told => told.map_err(Into::into),
            })
        };
        let next = self.first(|| Request::Processes, list);
        self.ask_for(client, next)
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

    fn signal(&mut self, client: (u64, &mut Connection), signal: i32) -> Result<Outcome, Failure> {
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
        if signal == SIGKILL && self.grace().is_some() {
            self.kill_softly();
            self.signalled(signal);
            return Ok(Outcome::Now(Response::Done));
        }
        if self.is_deaf() {
            return Err(self.not_running());
        }
        let told = move |core: &mut Core<'_>, told: Result<Response, HullError>| {
            let sent = told
                .map_err(Into::into)
                .and_then(|_| core.with_sandbox(|s| s.signal(signal).map(|()| Response::Done)));
            if sent.is_ok() {
                core.signalled(signal);
            }
            Next::Done(sent)
        };
        let next = self.first(|| Request::Signal { signal }, told);
        self.ask_for(client, next)
    }

    /// A signal that a user wanted has reached the workload, or will.
    fn signalled(&mut self, signal: i32) {
        if signal == SIGKILL || signal == self.bundle.stop_signal {
            // No restart.
            self.state.stopped_by_user = true;
            self.save();
            self.thaw();
        }
        self.event("kill", &[("signal", signal.to_string())]);
    }

    /// A frozen process cannot die.
    pub(super) fn thaw(&mut self) {
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
        self.begin_stop(signal, timeout);
        Ok(Outcome::Later)
    }

    pub(super) fn begin_stop(&mut self, signal: Option<i32>, timeout: Option<i64>) {
        self.stopping = true;
        if self.waiting.is_some() {
            return self.end_wait();
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
    }

    /// Passes on the signal of a stop.
    pub(super) fn tell_stop(&mut self, signal: i32) {
        if self.is_deaf() {
            self.thaw();
        }
        let told = move |core: &mut Core<'_>, _: Result<Response, HullError>| {
            Next::Done(core.with_sandbox(|s| s.signal(signal).map(|()| Response::Done)))
        };
        let next = self.first(|| Request::Signal { signal }, told);
        let _ = self.ask(0, next);
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
        self.state.stopped_by_user = true;
        self.state.start_again = false;
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

    /// Kills the workload of a guest, which then writes its disks out; the machine is ended if that takes too long, whether
    /// the guest answers or not: one that is about to end may have nobody left who does.
    fn kill_softly(&mut self) {
        let Some(grace) = self.grace() else { return };
        let grace = u64::try_from(grace.as_nanos()).unwrap_or(u64::MAX);
        let at = later(grace);
        self.plug_at = Some(self.plug_at.map_or(at, |before| before.min(at)));
        let told = move |core: &mut Core<'_>, told: Result<Response, HullError>| {
            if told.is_ok() {
                core.plug_at = core.plug_at.map(|_| later(grace));
            }
            Next::Done(Ok(Response::Done))
        };
        let next = self.first(|| Request::Signal { signal: SIGKILL }, told);
        let _ = self.ask(0, next);
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

    fn pause(&mut self) -> Result<Response, Failure> {
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

    pub(super) fn resume(&mut self) -> Result<Response, Failure> {
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
    ) -> Next {
        let wanted = resources.clone();
        self.first(
            || Request::Update { resources: wanted, restart },
            move |core, told| {
                Next::Done(told.map_err(Into::into).and_then(|_| core.updated(resources, restart)))
            },
        )
    }

    fn updated(
        &mut self,
        resources: Option<Box<oci::LinuxResources>>,
        restart: Option<RestartPolicy>,
    ) -> Result<Response, Failure> {
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
        Ok(Response::Done)
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

    /// Sets the size of a terminal of this host, and remembers it.
    fn resize(&mut self, exec: Option<&str>, rows: u16, columns: u16) -> Result<(), Failure> {
        let io = match exec {
            Some(name) => self.execs.values().find(|e| e.info.id == name).map(|e| &e.io),
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
        if exec.is_none() {
            self.bundle.console_size = Some((rows, columns));
        }
        Ok(())
    }

    fn resize_and_tell(
        &mut self,
        client: (u64, &mut Connection),
        exec: Option<String>,
        rows: u16,
        columns: u16,
    ) -> Result<Outcome, Failure> {
        self.resize(exec.as_deref(), rows, columns)?;
        if !TAKES_TIME || !self.hears() {
            return Ok(Outcome::Now(Response::Done));
        }
        let next = self.first(
            || Request::Resize { exec, rows, columns },
            |_, told| Next::Done(told.map_err(Into::into)),
        );
        self.ask_for(client, next)
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
