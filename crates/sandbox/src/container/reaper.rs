//! The container's own init (`--init`): PID 1 that reaps orphans, hands every signal on to the one child that is the
//! workload, and ends as it ends.
//!
//! It runs in a copy of our program that has given up what the workload gives up (user, capabilities, seccomp), holds
//! no descriptor but the container's null device, and cannot be traced, as it is not dumpable.

use super::init::own_session;
use super::step::Step;
use super::wire::Wire;
use crate::hull::HullError;
use process::Launch;
use rustix::fs::{CWD, Mode, OFlags, openat};
use rustix::process::{WaitOptions, wait};
use std::convert::Infallible;
use std::os::fd::AsFd;

/// The command line by which the container sees it, and its short name.
pub(super) const TITLE: &str = "/sbin/dhow-init";
pub(super) const NAME: &std::ffi::CStr = c"dhow-init";

/// Executes the workload as a child, looks after it and ends as it ends.
pub(super) fn run(launch: &Launch, terminal: bool, wire: &Wire) -> Result<Infallible, HullError> {
    sys::process::block_signals();
    let child = sys::clone::spawn(0, None, || {
        sys::process::reset_signals();
        let Err(failed) = own_session(terminal).and_then(|()| Ok(launch.go()?));
        let code = failed.exit_code();
        wire.say_failed(failed);
        code
    })
    .step(|| "start the command under the init".into())?;
    let main = child.pid;
    // Only now: seccomp policies know the system call that made the child too little to allow it.
    launch.drop_privileges()?;
    leave_streams();
    // Not by returning: the descriptors that callers own are closed already.
    sys::process::exit_now(look_after(main))
}

/// Lets go of every descriptor, so that pipes and terminals close when the workload closes them.
fn leave_streams() {
    if let Ok(null) = openat(CWD, "/dev/null", OFlags::RDWR | OFlags::CLOEXEC, Mode::empty()) {
        let _ = sys::process::set_stdio([null.as_fd(); 3]);
        std::mem::forget(null);
    }
    let _ = sys::process::close_from_3();
    let _ = rustix::process::chdir("/");
}

fn look_after(main: i32) -> i32 {
    loop {
        let Ok(signal) = sys::process::next_signal() else { continue };
        if signal != rustix::process::Signal::CHILD.as_raw() {
            // Gone already: the next SIGCHLD will tell.
            let _ = sys::process::kill(main, signal);
            continue;
        }
        while let Ok(Some((pid, status))) = wait(WaitOptions::NOHANG) {
            if pid.as_raw_pid() == main {
                return super::running::exit_status(status.as_raw()).code();
            }
        }
    }
}
