//! The guest's agent: PID 1 of a microVM.
//!
//! ```text
//! filesystems ─► modules ─► vsock: Boot ─► clock, disks, root, network ─► prepared ─► supervise … ─► sync ─► power off
//!                                                                       └─► files, and names: processes of their own
//! ```
//!
//! Inside it is the host's own supervisor with the host's own container hull: users, capabilities, seccomp, masks, terminals
//! and exec sessions are the same code in both hulls. What it is told comes from the host, which is trusted here; the
//! workload is not, and is walled from the agent as a container is from its host.
#![forbid(unsafe_code)]

mod disks;
mod dns;
mod early;
mod files;
mod hooks;
mod memory;
mod modules;
mod processes;
mod serve;
mod shares;

use std::io::Write;

fn main() {
    let code = match early::mount_kernel_filesystems().and_then(|()| serve::serve()) {
        Ok(()) => 0,
        Err(e) => {
            // The console is what the host shows of a guest that failed.
            let _ = writeln!(std::io::stderr(), "dhow guest: {e}");
            1
        }
    };
    if rustix::process::getpid().as_raw_nonzero().get() != 1 {
        std::process::exit(code);
    }
    disks::unmount_volumes();
    rustix::fs::sync();
    let _ = rustix::system::reboot(rustix::system::RebootCommand::PowerOff);
    // Nothing is left to do, and PID 1 must not return.
    loop {
        std::thread::park();
    }
}

/// Why the guest cannot run the workload.
#[derive(Debug)]
struct Error(String);

impl std::fmt::Display for Error {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(&self.0)
    }
}

type Result<T> = std::result::Result<T, Error>;

/// Says what failed.
trait Told<T> {
    fn told(self, what: impl std::fmt::Display) -> Result<T>;
}

impl<T, E: std::fmt::Display> Told<T> for std::result::Result<T, E> {
    fn told(self, what: impl std::fmt::Display) -> Result<T> {
        self.map_err(|e| Error(format!("{what}: {e}")))
    }
}
