//! The monitor: a process that lives as long as its microVM. It carries the host's half of the vsock device, starts the
//! hypervisor, tells the agent what to do, copies the workload's streams, and exits with the workload's exit code.

use super::carrier::Carrier;
use super::kvm::{self, Kvm};
use super::qemu::Qemu;
use super::shares::{Server, Share};
use super::{connect, pump};
use crate::boot::{self, Answer, Boot, READY_PORT, SHARES_TAG};
use crate::client::{AttachOptions, Client, ClientError, Stream};
use crate::container::cgroup::Cgroup;
use crate::container::step::Step;
use crate::container::wire::{Wire, Word};
use crate::hull::HullError;
use std::collections::VecDeque;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::Duration;
use types::{Hypervisor, MachinePlan};
use vmm::devices::fs::Fs;
use vmm::devices::vsock::Vsock;
use vmm::virtio::Device;

/// The guest's context id; each microVM has a vsock device of its own, so all may have the same.
const GUEST_CID: u64 = 3;
/// The sockets between QEMU and devices that are served beside it.
const VHOST_VSOCK: &str = "vhost-vsock";
const VHOST_SHARES: &str = "vhost-shares";
/// What is kept of the guest's console.
const CONSOLE_TAIL: usize = 16 << 10;
/// How many of its lines an error carries.
const CONSOLE_LINES: usize = 8;
/// The exit code of a workload whose end the guest never told.
const UNKNOWN: i32 = 255;

/// How long a guest may take to sync and power off.
const END_WAIT: Duration = Duration::from_secs(60);

/// What a monitor needs.
pub(super) struct Monitor<'a> {
    pub(super) plan: &'a MachinePlan,
    pub(super) layers: &'a [PathBuf],
    pub(super) shares: &'a [Share],
    pub(super) dir: &'a Path,
    pub(super) tap: Option<&'a OwnedFd>,
    pub(super) boot: &'a Boot,
    pub(super) stdio: [BorrowedFd<'a>; 3],
    pub(super) wire: &'a Wire,
}

impl Monitor<'_> {
    /// The monitor's whole life, in a process of its own; returns its exit code.
    pub(super) fn main(&self, cgroup: &Cgroup) -> i32 {
        match self.run(cgroup) {
            Ok(code) => code,
            Err(e) => {
                let code = e.exit_code();
                self.wire.say_failed(e);
                code
            }
        }
    }

    fn run(&self, cgroup: &Cgroup) -> Result<i32, HullError> {
        if cgroup.fd().is_none() {
            cgroup.join()?;
        }
        let mut keep = vec![self.wire.as_fd()];
        keep.extend(self.stdio);
        keep.extend(self.tap.map(AsFd::as_fd));
        sys::process::close_all_but(&keep).step(|| "close descriptors".into())?;
        sys::process::reset_signals();
        let _ = rustix::process::setsid();
        let stdio = pump::own(self.stdio).step(|| "duplicate descriptors".into())?;
        let ready = connect::listen(self.dir, &format!("{}_{READY_PORT}", connect::VSOCK))
            .step(|| "listen for the guest's agent".into())?;
        let console = Console::default();
        // Before there is a thread.
        let served = if self.shares.is_empty() { None } else { Some(Server::start(self.shares)?) };
        let (server, socket) = served.unzip();
        let mut hypervisor = self.start(&console, socket)?;
        let done = self.accompany(&ready, stdio, &mut hypervisor, &console);
        // What it has on its disks is synced before its agent tells of the end.
        hypervisor.kill();
        let _ = hypervisor.wait();
        drop(server);
        done
    }

    /// Starts the hypervisor; `shares` is the socket to the server of the host's directories.
    fn start(&self, console: &Console, shares: Option<OwnedFd>) -> Result<Carrier, HullError> {
        match self.plan.hypervisor {
            Hypervisor::Kvm => {
                let (child, said) = Kvm {
                    plan: self.plan,
                    layers: self.layers,
                    dir: self.dir,
                    tap: self.tap,
                    network: &self.boot.network,
                    shares: shares.as_ref(),
                    cid: GUEST_CID,
                    id: &self.boot.id,
                }
                .start()?;
                console.read(Some(said));
                console.also(self.dir.join(kvm::CONSOLE));
                Ok(Carrier::Vmm(child))
            }
            Hypervisor::Qemu => {
                let shares = shares.map(|socket| self.shares_beside(socket)).transpose()?;
                let mut child = Qemu {
                    plan: self.plan,
                    layers: self.layers,
                    dir: self.dir,
                    tap: self.tap,
                    network: &self.boot.network,
                    vsock: self.vsock_beside()?,
                    shares,
                }
                .start()?;
                console.read(child.stdout.take().map(Into::into));
                console.read(child.stderr.take().map(Into::into));
                Carrier::qemu(child)
            }
        }
    }

    fn vsock_beside(&self) -> Result<OwnedFd, HullError> {
        let listener = connect::listen(self.dir, connect::VSOCK).step(|| "listen for the host".into())?;
        let (open, dir) = connect::short(self.dir).step(|| "open the machine's directory".into())?;
        let device = Vsock::new(GUEST_CID, listener, dir.join(connect::VSOCK));
        self.beside(VHOST_VSOCK, Box::new(device.step(|| "make the vsock device".into())?), Some(open))
    }

    fn shares_beside(&self, socket: OwnedFd) -> Result<OwnedFd, HullError> {
        let device = Fs::new(socket, SHARES_TAG).step(|| "make the device of the host's directories".into())?;
        self.beside(VHOST_SHARES, Box::new(device), None)
    }

    /// Serves a device beside QEMU, on a thread, and gives QEMU's end. `open` stays open as long.
    fn beside(&self, name: &str, device: Box<dyn Device>, open: Option<OwnedFd>) -> Result<OwnedFd, HullError> {
        let listener = connect::listen(self.dir, name).step(|| "listen for the hypervisor".into())?;
        let stream = connect::stream(self.dir, name).step(|| "connect to a device".into())?;
        let serve = move || {
            let _open = open;
            // It ends with the hypervisor; that is waited for elsewhere.
            let _ = vmm::vhost::serve(&listener, device);
        };
        let thread = std::thread::Builder::new().name(name.into()).spawn(serve);
        thread.step(|| "start a thread".into())?;
        Ok(stream.into())
    }

    /// From power-on to the workload's end.
    fn accompany(
        &self,
        ready: &UnixListener,
        stdio: [OwnedFd; 3],
        hypervisor: &mut Carrier,
        console: &Console,
    ) -> Result<i32, HullError> {
        let mut agent = self.await_agent(ready, hypervisor, console)?;
        let talk = boot::write(&mut agent, self.boot).and_then(|()| boot::read(&mut agent));
        match talk {
            Ok(Answer::Prepared) => {}
            Ok(Answer::Failed(failure)) => return Err(HullError::Guest(failure)),
            Err(e) => return Err(console.explain(&format!("the guest's agent broke off: {e}"))),
        }
        self.wire.say(Word::Ready).step(|| "report".into())?;
        self.wire.await_word(Word::Start).step(|| "wait for the start".into())?;
        if self.boot.files_only {
            drop(agent);
            wait_for_end(hypervisor);
            return Ok(0);
        }
        let stream = self.start_workload(agent, console)?;
        // As execve closes it for a container.
        self.wire.shut();
        let code = pump::run(stream, stdio, self.boot.open_stdin).ok().flatten();
        Ok(code.unwrap_or(UNKNOWN))
    }

    fn start_workload(&self, agent: UnixStream, console: &Console) -> Result<Stream, HullError> {
        let options = AttachOptions { stdin: self.boot.open_stdin, stdout: true, stderr: true };
        Client::over(agent).start(options).map_err(|e| match e {
            ClientError::Refused(failure) => HullError::Guest(failure),
            e => console.explain(&format!("the guest's agent broke off: {e}")),
        })
    }

    /// Waits until the agent connects, or its machine ends.
    fn await_agent(
        &self,
        ready: &UnixListener,
        hypervisor: &mut Carrier,
        console: &Console,
    ) -> Result<UnixStream, HullError> {
        use rustix::event::{PollFd, PollFlags, poll};
        loop {
            let mut fds = [
                PollFd::new(ready, PollFlags::IN),
                PollFd::from_borrowed_fd(hypervisor.pidfd(), PollFlags::IN),
            ];
            rustix::io::retry_on_intr(|| poll(&mut fds, None)).step(|| "wait for the guest".into())?;
            let [agent, ended] = [fds[0].revents(), fds[1].revents()];
            if agent.contains(PollFlags::IN) {
                return ready.accept().map(|(socket, _)| socket).step(|| "accept the guest's agent".into());
            }
            if !ended.is_empty() {
                let status = hypervisor.wait();
                return Err(console.explain(&format!("the microVM ended before its agent was up ({status})")));
            }
        }
    }
}

/// Waits until a guest that was told to end has synced its disk and powered off.
fn wait_for_end(hypervisor: &Carrier) {
    use rustix::event::{PollFd, PollFlags, Timespec, poll};
    let mut fds = [PollFd::from_borrowed_fd(hypervisor.pidfd(), PollFlags::IN)];
    let limit = Timespec::try_from(END_WAIT).unwrap_or_default();
    let _ = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&limit)));
}

/// The last of what the guest, or its hypervisor, wrote.
#[derive(Clone, Default)]
struct Console {
    tail: Arc<Mutex<VecDeque<u8>>>,
    /// A file with the rest of it.
    file: Arc<Mutex<Option<PathBuf>>>,
}

impl Console {
    /// Reads a pipe to its end, on a thread.
    fn read(&self, pipe: Option<OwnedFd>) {
        let Some(pipe) = pipe else { return };
        let tail = self.clone();
        let work = move || {
            let mut pipe = std::fs::File::from(pipe);
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                let Ok(mut kept) = tail.tail.lock() else { return };
                kept.extend(buffer.iter().take(n));
                let excess = kept.len().saturating_sub(CONSOLE_TAIL);
                kept.drain(..excess);
            }
        };
        let _ = std::thread::Builder::new().name("console".into()).stack_size(64 << 10).spawn(work);
    }

    /// The guest's console is in this file.
    fn also(&self, file: PathBuf) {
        if let Ok(mut slot) = self.file.lock() {
            *slot = Some(file);
        }
    }

    /// An error with the console's last lines.
    fn explain(&self, what: &str) -> HullError {
        // What it wrote last may still be on its way.
        std::thread::sleep(Duration::from_millis(50));
        let file = self.file.lock().ok().and_then(|slot| slot.clone());
        let mut bytes = file.and_then(|path| std::fs::read(path).ok()).unwrap_or_default();
        bytes.extend(
            self.tail.lock().map(|kept| kept.iter().copied().collect::<Vec<_>>()).unwrap_or_default(),
        );
        let text = String::from_utf8_lossy(&bytes);
        let lines: Vec<&str> = text.lines().map(str::trim_end).filter(|l| !l.is_empty()).collect();
        let from = lines.len().saturating_sub(CONSOLE_LINES);
        let last = lines.get(from..).unwrap_or_default().join("\n  ");
        match last.is_empty() {
            true => HullError::Unsupported(format!("{what}; its console is empty")),
            false => HullError::Unsupported(format!("{what}; its console ends with:\n  {last}")),
        }
    }
}
