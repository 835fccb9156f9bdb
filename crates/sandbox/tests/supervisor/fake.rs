//! A hull without isolation: plain child processes that wait for a signal before they become the workload.
//!
//! It takes its time where the environment of a process names a FIFO: over the creation (`BOOT`), the start (`START`), or an
//! exec (`BEGIN`), until somebody writes to it, or for `LIMIT` milliseconds. With `GUEST` it has a guest, which answers when
//! somebody has written to that FIFO; what it is asked is written beside it.

use dhow_sandbox::hull::*;
use dhow_sandbox::protocol::{Request, Response};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{
    Pid, PidfdFlags, Signal, WaitId, WaitIdOptions, WaitOptions, kill_process, pidfd_open,
};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Command, Stdio};
use std::time::{Duration, Instant};
use types::{Attachment, oci};

pub struct FakeHull;

struct FakeSandbox {
    pid: Pid,
    pidfd: OwnedFd,
    child: bool,
    process: oci::Process,
}

fn step(step: &str, source: impl Into<std::io::Error>) -> HullError {
    HullError::Step { step: step.into(), source: source.into() }
}

fn spawn(
    process: &oci::Process,
    stdio: [BorrowedFd<'_>; 3],
    hold: bool,
) -> Result<(Pid, OwnedFd, Option<OwnedFd>), HullError> {
    let args = process.args().clone().unwrap_or_default();
    if args.first().is_some_and(|a| a.contains("missing")) {
        return Err(HullError::CommandNotFound { command: args[0].clone() });
    }
    let mut console = None;
    let mut stdio: Vec<OwnedFd> = stdio.iter().map(|fd| fd.try_clone_to_owned().unwrap()).collect();
    let mut command = if process.terminal().unwrap_or(false) {
        use rustix::pty::{OpenptFlags, grantpt, ioctl_tiocgptpeer, openpt, unlockpt};
        let master = openpt(OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC).unwrap();
        grantpt(&master).unwrap();
        unlockpt(&master).unwrap();
        let slave =
            ioctl_tiocgptpeer(&master, OpenptFlags::RDWR | OpenptFlags::NOCTTY | OpenptFlags::CLOEXEC)
                .unwrap();
        stdio = (0..3).map(|_| slave.try_clone().unwrap()).collect();
        console = Some(master);
        let mut c = Command::new("setsid");
        c.args(["-c", "sh"]);
        c
    } else {
        Command::new("sh")
    };
    command.args(["-c", if hold { "kill -STOP $$; exec \"$@\"" } else { "exec \"$@\"" }, "sh"]).args(args);
    if let Some(env) = process.env() {
        command.envs(env.iter().filter_map(|e| e.split_once('=')));
    }
    let mut stdio = stdio.into_iter().map(Stdio::from);
    command.stdin(stdio.next().unwrap()).stdout(stdio.next().unwrap()).stderr(stdio.next().unwrap());
    let child = command.spawn().map_err(|e| step("spawn", e))?;
    let pid = Pid::from_raw(child.id() as i32).unwrap();
    let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| step("pidfd", e))?;
    if hold {
        let _ = rustix::process::waitid(WaitId::Pid(pid), WaitIdOptions::STOPPED);
    }
    Ok((pid, pidfd, console))
}

/// Until somebody writes to the FIFO.
struct Slow {
    fifo: OwnedFd,
    until: Instant,
    /// Goes on then.
    held: Option<Pid>,
}

impl Slow {
    fn by(name: &str, process: &oci::Process, held: Option<Pid>) -> Option<Box<dyn Pending>> {
        let value = |name: &str| {
            let env = process.env().as_deref().unwrap_or_default();
            env.iter().filter_map(|e| e.split_once('=')).find(|(n, _)| *n == name).map(|(_, v)| v.to_owned())
        };
        // Readable as well as writable: it never ends.
        let fifo = std::fs::File::options().read(true).write(true).open(value(name)?).unwrap().into();
        let limit = value("LIMIT").map_or(600_000, |ms| ms.parse().unwrap());
        Some(Box::new(Self { fifo, until: Instant::now() + Duration::from_millis(limit), held }))
    }
}

impl Pending for Slow {
    fn fd(&self) -> BorrowedFd<'_> {
        self.fifo.as_fd()
    }
    fn until(&self) -> Instant {
        self.until
    }
    fn result(&mut self) -> Option<Result<(), HullError>> {
        let mut fds = [PollFd::new(&self.fifo, PollFlags::IN)];
        if poll(&mut fds, Some(&Timespec::default())).unwrap() > 0 {
            self.held.into_iter().for_each(|pid| kill_process(pid, Signal::CONT).unwrap());
            return Some(Ok(()));
        }
        (self.until <= Instant::now()).then(|| Err(HullError::Unsupported("it is late".into())))
    }
}

/// What a guest will say.
struct Answer(Box<dyn Pending>, Response);

impl Pending<Response> for Answer {
    fn fd(&self) -> BorrowedFd<'_> {
        self.0.fd()
    }
    fn until(&self) -> Instant {
        self.0.until()
    }
    fn result(&mut self) -> Option<Result<Response, HullError>> {
        self.0.result().map(|done| done.map(|()| self.1.clone()))
    }
}

impl Hull for FakeHull {
    fn create(&self, request: CreateRequest<'_>) -> Result<Created, HullError> {
        let netns = std::fs::File::open("/proc/self/ns/net").unwrap();
        (request.network_outside)(netns.as_fd())?;
        let process = request.spec.process().as_ref().unwrap();
        let (pid, pidfd, console) = spawn(process, request.stdio, true)?;
        let (pending, process) = (Slow::by("BOOT", process, None), process.clone());
        Ok(Created { sandbox: Box::new(FakeSandbox { pid, pidfd, child: true, process }), console, pending })
    }

    fn adopt(&self, request: AdoptRequest<'_>) -> Result<Box<dyn Sandbox>, HullError> {
        if !sys::host::is_running(request.pid, request.pid_start) {
            return Err(HullError::Invalid("gone".into()));
        }
        let pid = Pid::from_raw(request.pid).unwrap();
        let pidfd = pidfd_open(pid, PidfdFlags::empty()).map_err(|e| step("pidfd", e))?;
        let process = request.spec.process().clone().unwrap();
        Ok(Box::new(FakeSandbox { pid, pidfd, child: false, process }))
    }

    fn clean(&self, _: &str, _: &str) -> Result<(), HullError> {
        Ok(())
    }
}

impl FakeSandbox {
    fn kill(&self, signal: Signal) -> Result<(), HullError> {
        let _ = kill_process(self.pid, signal);
        Ok(())
    }
}

impl Sandbox for FakeSandbox {
    fn pid(&self) -> i32 {
        self.pid.as_raw_nonzero().get()
    }
    fn pidfd(&self) -> BorrowedFd<'_> {
        self.pidfd.as_fd()
    }
    fn start(&mut self) -> Result<Option<Box<dyn Pending>>, HullError> {
        match Slow::by("START", &self.process, Some(self.pid)) {
            None => self.kill(Signal::CONT).map(|()| None),
            slow => Ok(slow),
        }
    }
    fn ask(&self, request: &Request) -> Result<Option<Box<dyn Pending<Response>>>, HullError> {
        let Some(slow) = Slow::by("GUEST", &self.process, None) else { return Ok(None) };
        let env = self.process.env().as_deref().unwrap_or_default();
        let fifo = env.iter().find_map(|e| e.strip_prefix("GUEST=")).unwrap();
        let mut asked =
            std::fs::File::options().append(true).create(true).open(format!("{fifo}.asked")).unwrap();
        std::io::Write::write_all(
            &mut asked,
            format!("{}\n", serde_json::to_string(request).unwrap()).as_bytes(),
        )
        .unwrap();
        let says = match request {
            Request::Stats => Response::Stats(Box::new(Stats { pids: 42, ..Stats::default() })),
            Request::Processes => Response::Processes { pids: vec![42] },
            _ => Response::Done,
        };
        Ok(Some(Box::new(Answer(slow, says))))
    }
    fn grace(&self) -> Option<Duration> {
        let mut env = self.process.env().iter().flatten();
        env.any(|e| e.starts_with("GUEST=")).then(|| Duration::from_millis(500))
    }
    fn signal(&self, signal: i32) -> Result<(), HullError> {
        self.kill(Signal::from_named_raw(signal).unwrap())
    }
    fn kill_all(&self) -> Result<(), HullError> {
        self.kill(Signal::KILL)
    }
    fn pause(&self) -> Result<(), HullError> {
        self.kill(Signal::STOP)
    }
    fn resume(&self) -> Result<(), HullError> {
        self.kill(Signal::CONT)
    }
    fn update(&self, _: &oci::LinuxResources) -> Result<(), HullError> {
        Ok(())
    }
    fn connect(&mut self, attachment: &Attachment, wiring: &mut dyn Wiring) -> Result<(), HullError> {
        Ok(wiring.connect(attachment, None)?)
    }
    fn reconfigure(&mut self, attachment: &Attachment, wiring: &mut dyn Wiring) -> Result<(), HullError> {
        let netns = std::fs::File::open("/proc/self/ns/net").unwrap();
        Ok(wiring.configure(attachment, netns.as_fd())?)
    }
    fn disconnect(&mut self, attachment: &Attachment, wiring: &mut dyn Wiring) -> Result<(), HullError> {
        Ok(wiring.disconnect(attachment, None)?)
    }
    fn stats(&self) -> Result<Stats, HullError> {
        Ok(Stats { pids: 1, ..Stats::default() })
    }
    fn processes(&self) -> Result<Vec<i32>, HullError> {
        Ok(vec![self.pid()])
    }
    fn exec(&mut self, request: ExecRequest<'_>) -> Result<ExecChild, HullError> {
        let slow = request.process.env().iter().flatten().any(|e| e.starts_with("BEGIN="));
        let (pid, pidfd, console) = spawn(request.process, request.stdio, slow)?;
        let pending = Slow::by("BEGIN", request.process, Some(pid));
        Ok(ExecChild { pid: pid.as_raw_nonzero().get(), pidfd, console, pending })
    }
    fn oom_kills(&self) -> u64 {
        0
    }
    fn oom_notifier(&self) -> Option<BorrowedFd<'_>> {
        None
    }
    fn wait(&mut self) -> Result<ExitStatus, HullError> {
        if !self.child {
            return Ok(ExitStatus::Unknown);
        }
        let (_, status) = rustix::process::waitpid(Some(self.pid), WaitOptions::empty()).unwrap().unwrap();
        Ok(match (status.exit_status(), status.terminating_signal()) {
            (Some(code), _) => ExitStatus::Exited(code),
            (_, Some(signal)) => ExitStatus::Signaled(signal),
            _ => ExitStatus::Unknown,
        })
    }
    fn destroy(&mut self) -> Result<(), HullError> {
        if self.child && !matches!(rustix::process::waitpid(Some(self.pid), WaitOptions::NOHANG), Ok(None)) {
            return Ok(());
        }
        self.kill(Signal::KILL)
    }
}
