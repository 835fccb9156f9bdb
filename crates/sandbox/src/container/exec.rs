//! `exec`: one more process in a running container.
//!
//! ```text
//! caller ─► helper: cgroup, namespaces by the main process's pidfd, user, seccomp, the workload's capabilities
//!             └─► process, born into the container's PID namespace: session, execve
//! ```
//!
//! The process is a child of the caller, as its helper makes it a sibling. The container sees the process only, never
//! the helper: who holds CAP_SYS_PTRACE there would find the host's root behind `/proc/PID/root` and all the host's
//! capabilities in it. The process never has more than the workload may have: the helper has given all of it up before.
//! It comes with no descriptor of ours (CVE-2024-21626) and cannot be traced without that capability (CVE-2016-9962).
//! What can be done to it is to stop it: that is an error at once.
//!
//! Where a policy of the user's own forbids what a helper must do after it is loaded (`clone` above all), the process
//! loads it itself and holds CAP_SYS_ADMIN until then, unless `no_new_privs` makes that needless.

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
use rustix::process::{Pid, PidfdFlags, pidfd_open};
use std::convert::Infallible;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::{Duration, Instant};
use sys::Root;
use sys::clone::ns;
use types::oci;

/// How long a process may take to become the command: the container can keep the program from being opened (a file
/// system that it serves itself), and the caller does nothing else meanwhile.
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
        (Ok(()), Some((pid, pidfd))) => Ok(ExecChild { pid, pidfd, console: born.console, pending: None }),
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
        let process = born.process.as_ref().map(|(pid, _)| *pid);
        let heard = match wire.hear_from(process, Some(until)) {
            Err(e) if e.kind() == std::io::ErrorKind::TimedOut => {
                let text = "the new process was kept waiting by the container before it could begin";
                return done.and(Err(HullError::Invalid(text.into())));
            }
            heard => heard.step(|| "listen to the new process".into())?,
        };
        match heard {
            Heard::Ready(console) => born.console = console,
            Heard::Born(pid) => {
                // Our child: nobody else can have the pid before it is reaped.
                let known = Pid::from_raw(pid).ok_or(rustix::io::Errno::SRCH);
                let pidfd = known.and_then(|pid| pidfd_open(pid, PidfdFlags::empty()));
                born.process = Some((pid, pidfd.step(|| "look at the new process".into())?));
            }
            Heard::Failed(e) => done = Err(e),
            Heard::Stopped => return done.and(Err(Heard::stopped())),
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
    let confined = launch.can_spawn_after(terminal);
    if confined {
        launch.drop_privileges()?;
    } else {
        launch.narrow()?;
    }
    let pid = sys::clone::spawn_sibling(|| {
        let Err(e) = run(launch, terminal, confined);
        let code = e.exit_code();
        wire.say_failed(e);
        code
    })
    .step(|| "create the process".into())?;
    wire.say_born(pid).step(|| "report".into())
}

/// The process's side.
fn run(launch: &Launch, terminal: bool, confined: bool) -> Result<Infallible, HullError> {
    own_session(terminal)?;
    if confined {
        return Err(launch.exec().into());
    }
    Ok(launch.go()?)
}
