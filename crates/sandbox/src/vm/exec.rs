//! `exec` in a microVM: a process of the host that stands for the one in the guest.

use super::pending::{Awaited, End};
use super::{connect, pump};
use crate::container::cgroup::Cgroup;
use crate::container::step::Step;
use crate::container::wire::Wire;
use crate::hull::{ExecChild, ExecRequest, HullError};
use crate::protocol::ExecOptions;
use std::os::fd::AsFd;
use std::path::Path;

/// More than the session's process allows the guest.
const WAIT: std::time::Duration = std::time::Duration::from_secs(30);

/// Has a command executed inside; that it is, or why it is not, is to be seen then. The child ends with its exit code;
/// killing the child kills the command, too.
pub(super) fn exec(dir: &Path, cgroup: &str, request: &ExecRequest<'_>) -> Result<ExecChild, HullError> {
    let tty = request.process.terminal().unwrap_or(false);
    let (console, inner) = if tty { super::console()? } else { (None, None) };
    let stdio = inner.as_ref().map_or(request.stdio, |fd| [fd.as_fd(); 3]);
    let options = ExecOptions {
        id: request.id.to_owned(),
        process: request.process.clone(),
        stdin: true,
        stdout: true,
        stderr: true,
        tty,
        console_size: request.console_size,
        detach: false,
        tied: true,
    };
    let (ours, theirs) = Wire::pair().step(|| "make a socket pair".into())?;
    let group = Cgroup::open(cgroup)?;
    let child = sys::clone::spawn(0, group.fd(), || {
        if group.fd().is_none() {
            let _ = group.join();
        }
        let mut keep = vec![theirs.as_fd()];
        keep.extend(stdio);
        if sys::process::close_all_but(&keep).is_err() {
            return 125;
        }
        sys::process::reset_signals();
        // The other end of a stream may go at any moment, and what is left in it is still to be copied.
        sys::process::ignore_broken_pipes();
        let Ok(stdio) = pump::own(stdio) else { return 125 };
        let started = connect::control(dir).and_then(|client| client.exec(options));
        let stream = match started {
            Ok(Some(stream)) => stream,
            Ok(None) => return 125,
            Err(e) => {
                theirs.say_failed(e.into());
                return 125;
            }
        };
        if stream.wait_for_ever().is_err() || theirs.say(crate::container::wire::Word::Ready).is_err() {
            return 125;
        }
        pump::run(stream, stdio, true).ok().flatten().map_or(255, |(code, _)| code)
    })
    .step(|| "create a process for the session".into())?;
    drop((theirs, inner));
    let late = "the guest's agent did not execute the command in time".to_owned();
    match Awaited::new(ours, child.pidfd.as_fd(), End::Ready, WAIT, late) {
        Ok(begins) => {
            Ok(ExecChild { pid: child.pid, pidfd: child.pidfd, console, pending: Some(Box::new(begins)) })
        }
        Err(source) => {
            let _ = sys::process::pidfd_signal(&child.pidfd, 9);
            Err(HullError::Step { step: "duplicate a descriptor".into(), source })
        }
    }
}
