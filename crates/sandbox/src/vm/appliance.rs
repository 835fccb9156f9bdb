//! The machine of a microVM that does not run, started for nothing but its files: this host never mounts a disk that a
//! guest has written, as its filesystem may be made to attack the kernel that reads it.
//!
//! ```text
//! command ──spawns──► process (holds the lock) ──clones──► monitor ──► hypervisor ──► agent
//!    │                     │   ◄───────── prepared ────────────────────────────────────┘
//!    │ Order ─────────────►│
//!    │ ◄──────── Prepared  │
//!    │ works on the files  │
//!    │ hangs up ──────────►│ ──► sync, power off ──► cgroup removed, lock free
//! ```
//!
//! Each ends with the one before it: whoever of them is killed, the machine ends and the lock is let go after it. What a
//! guest had not synced then, its journal mends.

use super::{DIR, Make, spec};
use crate::boot::{self, Answer, Boot, VERSION};
use crate::container::step::Step;
use crate::hull::{ExitStatus, HullError, Sandbox};
use crate::protocol::Failure;
use serde::{Deserialize, Serialize};
use std::io::Read;
use std::os::fd::AsFd;
use std::os::unix::net::UnixStream;
use std::path::PathBuf;
use std::time::Duration;
use types::{Kinded, MachinePlan, NetworkPlan, oci};
use vmm::config::DiskRate;

/// More than the machine takes to start.
const PATIENCE: Duration = Duration::from_secs(240);

/// What is to be started.
#[derive(Clone, Debug, Serialize, Deserialize)]
pub struct Order {
    /// Full id of the container.
    pub id: String,
    /// Its machine. If that has a volume, the files are that one's.
    pub plan: MachinePlan,
    /// The part of the volume, a path beneath it; all of it if empty.
    pub part: String,
    /// Files of layers, base first.
    pub layers: Vec<PathBuf>,
    /// Path of its cgroup.
    pub cgroup: String,
    /// `<run>/sandboxes/<id>`.
    pub run: PathBuf,
}

/// The command's side: the machine serves its files until this is ended or dropped.
#[derive(Debug)]
pub struct Appliance(UnixStream);

impl Appliance {
    /// Gives the order to the process behind a socket, which runs [`serve`]; waits until the files are served.
    pub fn start(mut socket: UnixStream, order: &Order) -> Result<Self, HullError> {
        let mut talk = || -> std::io::Result<Answer> {
            socket.set_read_timeout(Some(PATIENCE))?;
            boot::write(&mut socket, order)?;
            boot::read(&mut socket)
        };
        match talk().step(|| "start the microVM for its files".into())? {
            Answer::Failed(failure) => Err(HullError::Guest(failure)),
            Answer::Prepared | Answer::Written => Ok(Self(socket)),
        }
    }

    /// Ends the machine; what was written is on its disk when this returns.
    pub fn end(mut self) -> Result<(), HullError> {
        let mut hang_up = || -> std::io::Result<Answer> {
            self.0.shutdown(std::net::Shutdown::Write)?;
            boot::read(&mut self.0)
        };
        match hang_up().step(|| "end the microVM that served its files".into())? {
            Answer::Failed(failure) => Err(HullError::Guest(failure)),
            Answer::Prepared | Answer::Written => Ok(()),
        }
    }
}

/// The process's whole life, behind its end of the socket. It must have but one thread. Answers when the files are served,
/// and again when the machine has ended.
pub fn serve(mut command: UnixStream) -> std::io::Result<()> {
    let order: Order = boot::read(&mut command)?;
    let done = order.serve(&mut command);
    let answer = match done {
        Ok(()) => Answer::Written,
        Err(e) => {
            let exit_code = e.exit_code();
            Answer::Failed(Failure { kind: e.kind(), message: e.to_string(), exit_code })
        }
    };
    boot::write(&mut command, &answer)
}

impl Order {
    fn serve(&self, command: &mut UnixStream) -> Result<(), HullError> {
        let boot = Boot {
            version: VERSION,
            id: self.id.clone(),
            spec: oci::Spec::default(),
            files: Vec::new(),
            shares: false,
            volumes: spec::volumes(&self.plan, self.layers.len()),
            network: NetworkPlan::None,
            layers: self.layers.len(),
            files_only: true,
            forgotten: false,
            part: self.part.clone(),
            init: false,
            open_stdin: false,
            console_size: None,
            now_ns: 0,
        };
        let null = std::fs::File::options().read(true).write(true).open("/dev/null");
        let null = null.step(|| "open /dev/null".into())?;
        let make = Make {
            plan: &self.plan,
            layers: &self.layers,
            rate: DiskRate::default(),
            shares: &[],
            boot: &boot,
            cgroup: &self.cgroup,
            run: &self.run,
            stdio: [null.as_fd(); 3],
        };
        let resources = spec::host_resources(None, &self.plan);
        let (mut machine, _, boots) = make.make(&resources, &mut || Ok(Vec::new()))?;
        let serve = || {
            boots.wait()?;
            boot::write(command, &Answer::Prepared).step(|| "answer".into())?;
            // It hangs up, or has been killed.
            let _ = command.read(&mut [0]);
            // The monitor's word for "go on": here, to the end.
            machine.order_start()?.wait()?;
            end(&mut machine)
        };
        let ended = serve();
        let destroyed = machine.destroy();
        let _ = std::fs::remove_dir_all(self.run.join(DIR));
        ended.and(destroyed)
    }
}

/// Waits for the machine's end. Only if all was on its disk, it was a good one.
fn end(sandbox: &mut dyn Sandbox) -> Result<(), HullError> {
    let status = sandbox.wait()?;
    if status == ExitStatus::Exited(0) {
        return Ok(());
    }
    let why = sandbox.end_reason().unwrap_or_else(|| format!("it ended with code {}", status.code()));
    Err(HullError::Unsupported(format!("the microVM may not have written all to its disk: {why}")))
}
