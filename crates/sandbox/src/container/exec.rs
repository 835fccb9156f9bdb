//! `exec`: one more process in a running container.
//!
//! ```text
//! caller ─► helper: cgroup, namespaces by the main process's pidfd, user, few capabilities
//!             └─► process, born into the container's PID namespace: session, seccomp, execve
//! ```
//!
//! The process is a child of the caller, as its helper makes it a sibling. The container sees the process only, never
//! the helper: who holds CAP_SYS_PTRACE there would find the host's root behind `/proc/PID/root` and all the host's
//! capabilities in it. It comes with no descriptor of ours (CVE-2024-21626) and cannot be traced without that
//! capability (CVE-2016-9962). What can be done to it is to stop it: the caller waits for so long only.

use super::cgroup::Cgroup;
use super::devices::Console;
use super::init::own_session;
use super::labels::Labels;
use super::namespaces::{apart, become_root, give_stdio};
use super::running;
use super::step::Step;
use super::wire::{Heard, Wire};
use crate::hull::{ExecChild, ExecRequest, HullError};
use process::{Launch, Loadable};
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use sys::Root;
use sys::clone::ns;
use types::oci;

/// How long a process may take to become the command. The container's own processes can stop it, or keep the program
/// from being opened, and the caller does nothing else meanwhile.
const PATIENCE: Duration = Duration::from_secs(5);

/// Runs a command; returns when it is executed, or why it was not.
pub(super) fn exec(
    spec: &oci::Spec,
    main: BorrowedFd<'_>,
    main_pid: i32,
    cgroup: &Cgroup,
    seccomp: Option<Loadable>,
    request: &ExecRequest<'_>,
) -> Result<ExecChild, HullError> {
    let mut launch = Launch::new(request.process, seccomp)?;
    super::hide_from_containers()?;
    give_stdio(spec, request.stdio);
    let flags = apart(spec);
    let (ours, theirs) = Wire::pair().step(|| "make a socket pair".into())?;
    let helper = sys::clone::spawn(0, cgroup.fd(), || {
        let joined = if cgroup.fd().is_none() { cgroup.join() } else { Ok(()) };
        match joined.and_then(|()| prepare(&mut launch, main, flags, request, &theirs)) {
            Ok(()) => 0,
            Err(e) => {
                let code = e.exit_code();
                theirs.say_failed(e);
                code
            }
        }
    })
    .step(|| format!("create a process beside process {main_pid}"))?;
    drop(theirs);
    let mut born = Born::default();
    let done = accompany(&ours, &mut born);
    // It has done its part, unless we gave up on it.
    let _ = sys::process::pidfd_signal(&helper.pidfd, 9);
    let _ = running::reap(&helper.pidfd);
    match (done, born.process) {
        (Ok(()), Some((pid, pidfd))) => Ok(ExecChild { pid, pidfd, console: born.console }),
        (Ok(()), None) => Err(HullError::Invalid("the new process was killed before it began".into())),
        (Err(e), process) => {
            if let Some((_, pidfd)) = process {
                let _ = sys::process::pidfd_signal(&pidfd, 9);
                let _ = running::reap(&pidfd);
            }
            Err(e)
        }
    }
}

/// What the caller has heard of.
#[derive(Default)]
struct Born {
    process: Option<(i32, OwnedFd)>,
    console: Option<OwnedFd>,
}

/// Listens until helper and process have closed their ends: only then everything is said.
fn accompany(wire: &Wire, born: &mut Born) -> Result<(), HullError> {
    let until = Instant::now() + PATIENCE;
    let mut done = Ok(());
    loop {
        let left = Timespec::try_from(until.saturating_duration_since(Instant::now())).unwrap_or_default();
        let mut fds = [PollFd::new(wire, PollFlags::IN)];
        let ready = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&left)));
        if ready.step(|| "listen to the new process".into())? == 0 {
            let text = "the new process was stopped, or kept waiting, by the container before it could begin";
            return done.and(Err(HullError::Invalid(text.into())));
        }
        match wire.hear().step(|| "listen to the new process".into())? {
            Heard::Ready(console) => born.console = console,
            Heard::Born(pid) => {
                // Our child: nobody else can have the pid before it is reaped.
                let known = Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH);
                let pidfd = known.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
                born.process = Some((pid, pidfd.step(|| "look at the new process".into())?));
            }
            Heard::Failed(e) => done = Err(e),
            Heard::Closed => return done,
        }
    }
}

/// The helper's side: all that can be done before the container sees anything.
fn prepare(
    launch: &mut Launch,
    main: BorrowedFd<'_>,
    flags: u64,
    request: &ExecRequest<'_>,
    wire: &Wire,
) -> Result<(), HullError> {
    let mut keep = vec![wire.as_fd(), main];
    keep.extend(request.stdio);
    sys::process::close_all_but(&keep).step(|| "close descriptors".into())?;
    sys::process::reset_signals();
    let labels = Labels::open(request.process)?;
    sys::clone::setns(main, flags).step(|| "join the container's namespaces".into())?;
    if flags & ns::USER != 0 {
        become_root()?;
    }
    let terminal = request.process.terminal().unwrap_or(false);
    let console = if terminal {
        let root = Root::open("/").step(|| "open the container's root".into())?;
        Some(Console::open(&root, request.console_size)?)
    } else {
        None
    };
    let fds = console.as_ref().map_or(request.stdio, |c| [c.slave.as_fd(); 3]);
    sys::process::set_stdio(fds).step(|| "set the standard streams".into())?;
    // For the next execve of this process and of those that it makes.
    labels.apply()?;
    launch.settle()?;
    if let Some(console) = &console {
        wire.say_ready(Some(console.master.as_fd())).step(|| "report".into())?;
    }
    sys::process::close_all_but(&[wire.as_fd()]).step(|| "close descriptors".into())?;
    std::mem::forget(console);
    launch.narrow()?;
    let process = sys::clone::spawn_sibling(|| {
        let Err(e) = run(launch, terminal);
        let code = e.exit_code();
        wire.say_failed(e);
        code
    })
    .step(|| "create the process".into())?;
    wire.say_born(process.pid).step(|| "report".into())
}

/// The process's side.
fn run(launch: &Launch, terminal: bool) -> Result<Infallible, HullError> {
    own_session(terminal)?;
    Ok(launch.go()?)
}
