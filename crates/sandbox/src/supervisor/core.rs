//! The loop: what is waited for, and who deals with it.

use super::asking::{Asked, Size};
use super::channel;
use super::connection::{Connection, Role};
use super::exec::Exec;
use super::health::Health;
use super::lifecycle::Main;
use super::listener::Listener;
use super::order::{previous_state, take_order};
use super::policy::BackOff;
use super::starting::{Starting, TAKES_TIME};
use super::{Hooks, Supervise};
use crate::client::SOCKET;
use crate::hull::{Hull, Sandbox};
use crate::logs::{LogWriter, Source};
use crate::protocol::{ExecInfo, Failure, Request};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::fs::{Mode, OFlags};
use rustix::io::{FdFlags, fcntl_setfd};
use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io;
use std::os::fd::{AsFd, AsRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant};
use types::{Bundle, ErrorKind, LogDriver, RunState, Status};

/// Clients at one time.
const MAX_CLIENTS: usize = 256;
/// Buffers are given back after such a silence.
const SILENCE: Duration = Duration::from_millis(300);

/// What a descriptor in the loop belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Token {
    Listener,
    Children,
    Hooks,
    Starting,
    Asked(u64),
    MainEnd,
    MainOutput(Source),
    MainInput,
    Oom,
    ExecPending(u64),
    ExecEnd(u64),
    ExecOutput(u64, Source),
    ExecInput(u64),
    Client(u64),
}

/// Between two runs.
pub(super) struct Waiting {
    pub(super) until: Instant,
}

/// Everything a supervisor knows.
pub(super) struct Core<'a> {
    pub(super) bundle: Bundle,
    pub(super) dir: PathBuf,
    pub(super) run: PathBuf,
    pub(super) lock: Option<sys::file::Lock>,
    pub(super) hull: &'a dyn Hull,
    pub(super) hooks: &'a mut dyn Hooks,
    pub(super) listener: Option<Listener>,
    /// To be listened on in the place of a socket of ours.
    offered: Option<OwnedFd>,
    pub(super) children: OwnedFd,
    pub(super) state: RunState,
    pub(super) log: Option<LogWriter>,
    pub(super) main: Option<Main>,
    /// What is left of the one before, killed.
    pub(super) rest: Option<Box<dyn Sandbox>>,
    /// The run that is to become `main`.
    pub(super) starting: Option<Starting>,
    /// What a guest is asked.
    pub(super) asked: Vec<Asked>,
    /// Requests that wait until a start, or another change, is over.
    pub(super) postponed: Vec<(u64, Request)>,
    /// Terminals whose size a guest is being told, and the sizes to follow.
    pub(super) sizes: Vec<Size>,
    /// Who gave the order to start, or to start again, and has no answer yet.
    pub(super) ready: Vec<u64>,
    /// See `hold_mounts`.
    pub(super) mounts: Option<File>,
    pub(super) waiting: Option<Waiting>,
    pub(super) back_off: BackOff,
    pub(super) health: Option<Health>,
    pub(super) execs: BTreeMap<u64, Exec>,
    pub(super) past_execs: VecDeque<ExecInfo>,
    pub(super) clients: BTreeMap<u64, Connection>,
    pub(super) next_id: u64,
    /// When a stop becomes a kill.
    pub(super) kill_at: Option<Instant>,
    /// When a machine whose workload was killed is ended, its disks written out or not.
    pub(super) plug_at: Option<Instant>,
    /// A client asked for the end by `stop`: the event is told.
    pub(super) stopping: bool,
    pub(super) finished: bool,
    /// No OOM notice is looked at before this.
    pub(super) oom_quiet: Option<Instant>,
    pub(super) buffer: Vec<u8>,
    /// Memory may be given back at the next silence.
    pub(super) untidy: bool,
}

/// Sets up, starts or adopts, and loops until nothing is left to do.
pub(super) fn run(supervise: Supervise, hull: &dyn Hull, hooks: &mut dyn Hooks) -> i32 {
    // Handed down by number, so open for any program that is executed.
    let _ = fcntl_setfd(&supervise.lock, FdFlags::CLOEXEC);
    let ready = supervise.ready.map(|fd| {
        let _ = fcntl_setfd(&fd, FdFlags::CLOEXEC);
        UnixStream::from(fd)
    });
    let (order, ready) = match ready {
        Some(socket) => take_order(socket),
        None => (None, None),
    };
    let adopt = supervise.adopt;
    let state = match &adopt {
        Some(state) => state.clone(),
        None => previous_state(&supervise.dir),
    };
    let children = match sys::signals::child_notifier() {
        Ok(fd) => fd,
        Err(_) => return 125,
    };
    let mut core = Core {
        bundle: supervise.bundle,
        dir: supervise.dir,
        run: supervise.run,
        lock: Some(supervise.lock),
        hull,
        hooks,
        listener: None,
        offered: supervise.listener,
        children,
        state,
        log: None,
        main: None,
        rest: None,
        starting: None,
        asked: Vec::new(),
        postponed: Vec::new(),
        sizes: Vec::new(),
        ready: Vec::new(),
        mounts: None,
        waiting: None,
        back_off: BackOff::default(),
        health: None,
        execs: BTreeMap::new(),
        past_execs: VecDeque::new(),
        clients: BTreeMap::new(),
        next_id: 1,
        kill_at: None,
        plug_at: None,
        stopping: false,
        finished: false,
        oom_quiet: None,
        buffer: Vec::new(),
        untidy: true,
    };
    if let Some(mut client) = ready {
        if let Some(Request::Start { attach: Some(options) }) = order {
            client.role = Role::Attached(options);
        }
        let id = core.add_client(client);
        core.ready.push(id);
    }
    if core.clients.values().any(|c| matches!(c.role, Role::Attached(_))) {
        core.event("attach", &[]);
    }
    let begun = core.begin(adopt.is_some());
    if core.starting.is_none() {
        core.report(begun);
    }
    core.serve();
    core.state.exit_code
}

impl Core<'_> {
    fn begin(&mut self, adopt: bool) -> Result<(), Failure> {
        let failed = |what: &str, e: io::Error| internal(format!("{what}: {e}"));
        if self.bundle.log.driver != LogDriver::None {
            let log = LogWriter::open(&self.dir, &self.bundle.log);
            self.log = Some(log.map_err(|e| failed("cannot open the log", e))?);
        }
        self.listen().map_err(|e| failed("cannot make the control socket", e))?;
        if adopt { self.adopt() } else { self.first_start() }
    }

    fn listen(&mut self) -> io::Result<()> {
        if let Some(fd) = self.offered.take() {
            self.listener = Some(Listener::Vsock(fd));
            return Ok(());
        }
        let path = self.run.join(SOCKET);
        let _ = std::fs::remove_file(&path);
        // See unix(7): an address has 108 bytes.
        let listener = if path.as_os_str().len() < 100 {
            UnixListener::bind(&path)?
        } else {
            let dir = rustix::fs::open(
                &self.run,
                OFlags::PATH | OFlags::DIRECTORY | OFlags::CLOEXEC,
                Mode::empty(),
            )?;
            UnixListener::bind(format!("/proc/self/fd/{}/{SOCKET}", dir.as_raw_fd()))?
        };
        listener.set_nonblocking(true)?;
        self.listener = Some(Listener::Unix(listener));
        Ok(())
    }

    pub(super) fn add_client(&mut self, client: Connection) -> u64 {
        let id = self.new_id();
        self.clients.insert(id, client);
        id
    }

    pub(super) fn new_id(&mut self) -> u64 {
        self.next_id += 1;
        self.next_id
    }

    fn serve(&mut self) {
        loop {
            self.drop_clients();
            if self.finished && self.clients.is_empty() {
                return;
            }
            for (token, events) in self.wait() {
                self.dispatch(token, events);
            }
            self.timers();
        }
    }

    /// Waits for the next thing to do.
    fn wait(&mut self) -> Vec<(Token, PollFlags)> {
        let timeout = self.timeout();
        let watched = self.watched();
        let mut fds: Vec<PollFd<'_>> = watched.iter().map(|(_, fd)| fd.clone()).collect();
        let ready = poll(&mut fds, timeout.as_ref());
        let events: Vec<_> = watched
            .iter()
            .zip(&fds)
            .filter(|(_, fd)| !fd.revents().is_empty())
            .map(|((token, _), fd)| (*token, fd.revents()))
            .collect();
        drop(fds);
        if ready == Ok(0) {
            self.tidy();
        }
        events
    }

    fn watched(&self) -> Vec<(Token, PollFd<'_>)> {
        let mut list = Vec::with_capacity(16);
        let mut watch = |token, fd, events| list.push((token, PollFd::from_borrowed_fd(fd, events)));
        let (read, write) = (PollFlags::IN, PollFlags::OUT);
        if let Some(listener) = self.listener.as_ref().filter(|_| self.clients.len() < MAX_CLIENTS) {
            watch(Token::Listener, listener.as_fd(), read);
        }
        watch(Token::Children, self.children.as_fd(), read);
        if let Some(starting) = self.under_way() {
            watch(Token::Starting, starting.pending.fd(), read);
        }
        for asked in self.asked.iter().filter(|_| TAKES_TIME) {
            watch(Token::Asked(asked.id), asked.pending.fd(), read);
        }
        if let Some(main) = &self.main {
            if !main.is_draining() {
                watch(Token::MainEnd, main.sandbox.pidfd(), read);
                if let Some(fd) = main.sandbox.oom_notifier().filter(|_| self.oom_quiet.is_none()) {
                    watch(Token::Oom, fd, read | PollFlags::PRI);
                }
                if let Some(fd) = self.hooks.poll_fd() {
                    watch(Token::Hooks, fd, read);
                }
            }
            for source in [Source::Stdout, Source::Stderr] {
                let blocked = self.clients.values().any(|c| c.is_behind() && c.reads(source));
                if let Some(fd) = main.io.output(source).filter(|_| !blocked) {
                    watch(Token::MainOutput(source), fd.as_fd(), read);
                }
            }
            if let Some(fd) = main.io.waiting_input() {
                watch(Token::MainInput, fd.as_fd(), write);
            }
        }
        for (id, exec) in &self.execs {
            if let Some(pending) = exec.waits_for() {
                // Nothing of it is to be seen before its client has the answer.
                watch(Token::ExecPending(*id), pending.fd(), read);
                continue;
            }
            if !exec.has_ended() {
                watch(Token::ExecEnd(*id), exec.pidfd.as_fd(), read);
            }
            let blocked = self.clients.get(&exec.client).is_some_and(Connection::is_behind);
            for source in [Source::Stdout, Source::Stderr] {
                if let Some(fd) = exec.io.output(source).filter(|_| !blocked) {
                    watch(Token::ExecOutput(*id, source), fd.as_fd(), read);
                }
            }
            if let Some(fd) = exec.io.waiting_input() {
                watch(Token::ExecInput(*id), fd.as_fd(), write);
            }
        }
        for (id, client) in &self.clients {
            let mut events = PollFlags::empty();
            if client.is_behind() {
                events |= write;
            }
            // Its process does not read, or it does not read our answers: neither do we.
            let unread = client.role == Role::Idle && client.is_behind();
            if !client.closing && !unread && !self.is_feeding_a_full_pipe(client) {
                events |= read;
            }
            if !events.is_empty() {
                watch(Token::Client(*id), client.socket.as_fd(), events);
            }
        }
        list
    }

    fn is_feeding_a_full_pipe(&self, client: &Connection) -> bool {
        match &client.role {
            Role::Attached(options) => options.stdin && self.main.as_ref().is_some_and(|m| m.io.is_full()),
            Role::Exec(id) => self.execs.get(id).is_some_and(|e| e.io.is_full()),
            _ => false,
        }
    }

    fn dispatch(&mut self, token: Token, events: PollFlags) {
        match token {
            Token::Listener => self.accept(),
            Token::Children => self.children_readable(),
            Token::Hooks => self.hooks.serve(),
            Token::Starting if TAKES_TIME => self.start_proceeds(),
            Token::MainEnd => self.main_ended(),
            Token::MainOutput(source) => self.main_output(source),
            Token::MainInput => {
                if let Some(main) = &mut self.main {
                    main.io.flush();
                }
            }
            Token::Oom => self.oom_readable(),
            Token::ExecPending(id) if TAKES_TIME => self.exec_proceeds(id),
            Token::Asked(id) if TAKES_TIME => self.asked_proceeds(id),
            Token::Starting | Token::ExecPending(_) | Token::Asked(_) => {}
            Token::ExecEnd(id) => self.exec_ended(id),
            Token::ExecOutput(id, source) => self.exec_output(id, source),
            Token::ExecInput(id) => {
                if let Some(exec) = self.execs.get_mut(&id) {
                    exec.io.flush();
                }
            }
            Token::Client(id) => self.client_ready(id, events),
        }
    }

    fn accept(&mut self) {
        let Some(Ok(socket)) = self.listener.as_ref().map(Listener::accept) else { return };
        if let Ok(client) = Connection::new(socket) {
            self.add_client(client);
        }
    }

    fn client_ready(&mut self, id: u64, events: PollFlags) {
        // Taken out, so that its frames can be read while everything else is changed.
        let Some(mut client) = self.clients.remove(&id) else { return };
        if events.contains(PollFlags::OUT) {
            client.flush();
        }
        if events.intersects(PollFlags::IN | PollFlags::HUP | PollFlags::ERR) && !client.closing {
            client.receive();
            self.read_frames(id, &mut client);
        } else if events.intersects(PollFlags::HUP | PollFlags::ERR) {
            client.dead = true;
        }
        client.decoder.shrink();
        self.clients.insert(id, client);
    }

    /// Lets go of clients that are served or gone.
    fn drop_clients(&mut self) {
        let over: Vec<u64> = self.clients.iter().filter(|(_, c)| c.is_over()).map(|(id, _)| *id).collect();
        for id in over {
            let Some(client) = self.clients.remove(&id) else { continue };
            if client.holds {
                // Somebody else may have thawed it already.
                let _ = self.resume();
            }
            match client.role {
                Role::Attached(options) if options.stdin && !client.detached => self.end_main_input(),
                Role::Exec(exec) => self.exec_client_gone(exec, client.detached),
                _ => {}
            }
        }
    }

    /// The client that fed stdin has no more, or is gone.
    pub(super) fn end_main_input(&mut self) {
        let io = match (&mut self.main, &mut self.starting) {
            (Some(main), _) => &mut main.io,
            (_, Some(starting)) => &mut starting.io,
            _ => return,
        };
        if self.bundle.stdin_once {
            io.end_input();
        }
    }

    /// Children ended, or a command that cannot reach us asks for a new socket.
    fn children_readable(&mut self) {
        let mut told = [0; 64];
        let mut called = false;
        while let Ok(n) = rustix::io::read(&self.children, &mut told)
            && let Some(bytes) = told.get(..n).filter(|b| !b.is_empty())
        {
            called |= bytes.contains(&sys::signals::HANGUP);
        }
        if called && !self.finished {
            let _ = self.listen();
        }
        self.reap_orphans();
    }

    /// Children that were left to us and are nobody's business any more.
    pub(super) fn reap_orphans(&mut self) {
        while let Some(pid) = sys::signals::ended_child() {
            let ours = self.main.as_ref().is_some_and(|m| m.sandbox.pid() == pid && !m.is_draining())
                || self.under_way().is_some_and(|s| s.sandbox.pid() == pid)
                || self.execs.values().any(|e| e.info.pid == pid && !e.has_ended());
            let Some(pid) = rustix::process::Pid::from_raw(pid) else { return };
            // Its own descriptor tells of it, and this is called once more then.
            if ours
                || !matches!(
                    rustix::process::waitpid(Some(pid), rustix::process::WaitOptions::NOHANG),
                    Ok(Some(_))
                )
            {
                return;
            }
        }
    }

    fn deadlines(&self) -> impl Iterator<Item = Instant> {
        let main = self.main.as_ref().and_then(Main::deadline);
        let waiting = self.waiting.as_ref().map(|w| w.until);
        let health =
            self.health.as_ref().and_then(|h| h.due).filter(|_| self.state.status == Status::Running);
        let kill = [self.kill_at, self.plug_at].into_iter().flatten().min();
        let is_alive = self.under_way().is_some() || self.main.as_ref().is_some_and(|m| !m.is_draining());
        let kill = kill.filter(|_| is_alive);
        let starting = self.under_way().map(|s| s.pending.until());
        let quiet = self.oom_quiet.filter(|_| self.main.is_some());
        let execs = self.execs.values().filter_map(Exec::deadline).min();
        let asked = self.asked.iter().filter(|_| TAKES_TIME).map(|a| a.pending.until()).min();
        [main, starting, waiting, health, kill, quiet, execs, asked].into_iter().flatten()
    }

    fn timeout(&self) -> Option<Timespec> {
        let left = self.deadlines().min().map(|at| at.saturating_duration_since(Instant::now()));
        let left = match self.log.as_ref().is_some_and(LogWriter::has_work) {
            true => Some(Duration::ZERO),
            // At its own time-out the silence is what it waited for.
            false if self.untidy => Some(left.map_or(SILENCE, |l| l.min(SILENCE))),
            false => left,
        };
        // A part of a nanosecond more, never less: the loop would turn idly.
        left.and_then(|l| Timespec::try_from(l).ok())
    }

    fn timers(&mut self) {
        if let Some(log) = &mut self.log
            && log.has_work()
        {
            log.work();
        }
        let now = Instant::now();
        let due = |at: Option<Instant>| at.is_some_and(|at| at <= now);
        if due(self.oom_quiet) {
            self.oom_quiet = None;
            self.oom_notice();
        }
        if self.under_way().is_some_and(|s| due(Some(s.pending.until()))) {
            self.start_proceeds();
        }
        if self.under_way().is_some_and(|s| s.aborted) {
            self.abort_start();
        }
        if TAKES_TIME {
            let late = |asked: &Asked| due(Some(asked.pending.until()));
            let late: Vec<u64> = self.asked.iter().filter(|a| late(a)).map(|a| a.id).collect();
            late.into_iter().for_each(|id| self.asked_proceeds(id));
        }
        if due(self.kill_at) {
            self.kill_at = None;
            self.kill_now();
        }
        if due(self.plug_at) {
            self.plug_at = None;
            self.pull_plug();
        }
        if self.main.as_ref().is_some_and(|m| due(m.deadline())) {
            self.run_over();
        }
        let execs: Vec<u64> =
            self.execs.iter().filter(|(_, e)| due(e.deadline())).map(|(id, _)| *id).collect();
        execs.into_iter().for_each(|id| self.exec_deadline(id));
        if self.state.status == Status::Running && due(self.health.as_ref().and_then(|h| h.due)) {
            self.check_health();
        }
        if self.waiting.as_ref().is_some_and(|w| w.until <= now) {
            self.wait_is_over();
        }
    }

    fn tidy(&mut self) {
        if std::mem::take(&mut self.untidy) {
            self.buffer = Vec::new();
            if let Some(log) = &mut self.log {
                log.shrink();
            }
            sys::signals::trim_heap();
            if cfg!(feature = "host") {
                sys::memory::unmap_program();
            }
        }
    }

    /// Writes `state.json`.
    pub(super) fn save(&self) {
        if !self.finished {
            save(&self.dir, &self.state);
        }
    }

    pub(super) fn event(&mut self, action: &str, attributes: &[(&str, String)]) {
        self.hooks.event(&self.bundle, action, attributes);
    }

    /// Gives up everything by which others find this supervisor.
    pub(super) fn leave(&mut self) {
        self.listener = None;
        let _ = std::fs::remove_file(self.run.join(SOCKET));
        channel::remove_fifos(&self.run);
        self.lock = None;
    }
}

/// Writes `state.json`; on a full disk over the old one, whose blocks are there.
pub(super) fn save(dir: &Path, state: &RunState) {
    let path = dir.join("state.json");
    if let Ok(bytes) = serde_json::to_vec(state)
        && sys::file::replace(&path, &bytes, false).is_err()
    {
        let _ = overwrite(&path, &bytes);
    }
}

fn overwrite(path: &Path, bytes: &[u8]) -> io::Result<()> {
    let file = std::fs::OpenOptions::new().write(true).open(path)?;
    std::os::unix::fs::FileExt::write_all_at(&file, bytes, 0)?;
    file.set_len(bytes.len() as u64)
}

pub(super) fn internal(message: String) -> Failure {
    Failure { kind: ErrorKind::Internal, message, exit_code: 125 }
}
