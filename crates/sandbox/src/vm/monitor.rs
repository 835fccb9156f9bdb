//! The monitor: a process that lives as long as its microVM. It carries the host's half of the vsock device, starts the
//! hypervisor, tells the agent what to do, copies the workload's streams, and exits with the workload's exit code.

use super::beside::Beside;
use super::carrier::Carrier;
use super::machine::{END, START_WAIT};
use super::patience::Patience;
use super::shares::{Server, Share};
use super::{connect, kvm, pump, qemu, qmp, trouble};
use crate::boot::{self, Answer, Boot, READY_PORT, shown};
use crate::client::{AttachOptions, Client, ClientError, Stream};
use crate::container::cgroup::Cgroup;
use crate::container::step::Step;
use crate::container::wire::{Wire, Word};
use crate::hull::HullError;
use rustix::event::{PollFd, PollFlags, Timespec, poll};
use std::collections::VecDeque;
use std::io::Read;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};
use types::{Hypervisor, MachinePlan};
use vmm::config::DiskRate;

/// The guest's context id; each microVM has a vsock device of its own, so all may have the same.
pub(super) const GUEST_CID: u64 = 3;
/// The kernel's command line in any machine. The console is read for its last lines should the guest fail. On a single
/// processor Linux takes the lock prefixes out of its code, some 8,000 places one by one: with that it would spend a tenth of
/// its boot.
pub(super) const KERNEL_CMDLINE: &str =
    "console=ttyS0 quiet panic=-1 rdinit=/init dhow.hull=vm random.trust_cpu=on noreplace-smp";
/// A file in the machine's directory that says that the OOM killer of its guest struck.
pub(super) const OOM: &str = "oom";
/// Another, with the workload's exit code in decimal digits: on kernels before 6.15 a supervisor that has adopted the
/// machine cannot be told it by the end of this process.
pub(super) const CODE: &str = "code";
/// What is kept of the guest's console.
const CONSOLE_TAIL: usize = 16 << 10;
/// How many of its lines an error carries.
const CONSOLE_LINES: usize = 8;
/// The longest that is shown of one, in characters.
const CONSOLE_LINE: usize = 120;
/// Most bytes of a console's file that are read.
const CONSOLE_FILE: u64 = 1 << 20;
/// See [`boot_wait`].
const BOOT_WAIT: Duration = Duration::from_secs(60);
/// The same where each of its instructions is emulated.
const EMULATED_BOOT_WAIT: Duration = Duration::from_secs(180);
/// In which a machine ends whose agent has gone.
const LAST_WORDS: Duration = Duration::from_secs(2);
/// The exit code of a workload whose end the guest never told.
const UNKNOWN: i32 = 255;

/// Memory in which the kernels of distributions boot with certainty.
const ROOMY_MIB: u64 = 128;
/// How long one who kills a whole cgroup may take from its first process to its last.
const KILLER_WAIT: Duration = Duration::from_millis(100);
/// How much earlier than its supervisor, which only knows the time, the monitor gives up.
const HEAD_START: Duration = Duration::from_secs(5);
/// How long a guest may take to write its disk out.
const END_WAIT: Duration = Duration::from_secs(60);

/// How long a guest may take from its power-on until its agent is ready.
pub(super) fn boot_wait(hypervisor: Hypervisor) -> Duration {
    match hypervisor {
        Hypervisor::Kvm => BOOT_WAIT,
        Hypervisor::Qemu => EMULATED_BOOT_WAIT,
    }
}

/// What a monitor needs.
pub(super) struct Monitor<'a> {
    pub(super) plan: &'a MachinePlan,
    pub(super) layers: &'a [PathBuf],
    pub(super) shares: &'a [Share],
    pub(super) dir: &'a Path,
    /// One for each interface of the guest's network, and then the spare ones.
    pub(super) taps: &'a [OwnedFd],
    /// Limits of its disks.
    pub(super) rate: DiskRate,
    pub(super) boot: &'a Boot,
    pub(super) stdio: [BorrowedFd<'a>; 3],
    pub(super) wire: &'a Wire,
}

/// The first of the users that hypervisors run as, one for each, far from those that people have.
const FIRST_USER: u32 = 0x7800_0000;
/// How many there are.
const USERS: u32 = 1 << 20;

/// The user that the hypervisor of a container becomes.
pub(super) fn user(id: &str) -> u32 {
    // The id is random: two machines of one user would be one in a million pairs.
    FIRST_USER + u32::from_str_radix(id.get(..8).unwrap_or("0"), 16).unwrap_or(0) % USERS
}

impl Monitor<'_> {
    /// The user, and the group of the same number, that the hypervisor becomes.
    pub(super) fn user(&self) -> u32 {
        user(&self.boot.id)
    }

    /// The machine's interfaces: taps, and the hardware addresses by which the guest knows which is which.
    pub(super) fn interfaces(&self) -> impl Iterator<Item = (&OwnedFd, [u8; 6])> {
        let network = &self.boot.network;
        let connected = network.attachments().iter().map(|a| a.mac);
        self.taps.iter().zip(connected.chain(network.free_slots().map(types::spare_mac)))
    }

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
        keep.extend(self.taps.iter().map(AsFd::as_fd));
        sys::process::close_all_but(&keep).step(|| "close descriptors".into())?;
        sys::process::reset_signals();
        // The other end of a stream may go at any moment, and what is left in it is still to be copied.
        sys::process::ignore_broken_pipes();
        let _ = rustix::process::setsid();
        let stdio = pump::own(self.stdio).step(|| "duplicate descriptors".into())?;
        // The first three are left open by all that closes descriptors: whatever they were is not to live as long as this.
        let null = std::fs::File::options().read(true).write(true).open("/dev/null");
        let null = null.step(|| "open /dev/null".into())?;
        sys::process::set_stdio([null.as_fd(); 3]).step(|| "replace the standard descriptors".into())?;
        let ready = connect::listen(self.dir, &format!("{}_{READY_PORT}", connect::VSOCK))
            .step(|| "listen for the guest's agent".into())?;
        let console = Console { tail: Arc::default(), file: self.dir.join(kvm::CONSOLE) };
        // Before there is a thread.
        let served = if self.shares.is_empty() { None } else { Some(Server::start(self.shares)?) };
        let (server, socket) = served.unzip();
        let mut hypervisor = self.start(&console, socket)?;
        let done = self.accompany(ready, stdio, &mut hypervisor, &console);
        match &done {
            Ok(None) => self.explain_end(&mut hypervisor, &console),
            // Nobody listens on the wire any more.
            Err(e) if self.boot.files_only => drop(std::fs::write(self.dir.join(END), e.to_string())),
            _ => {}
        }
        // What it has on its disks is synced before its agent tells of the end.
        hypervisor.kill();
        // Of one that told its code the supervisor waits for the end, when it has done what else there is to do.
        if !matches!(done, Ok(Some(_))) {
            let _ = hypervisor.wait();
        }
        drop(server);
        done.map(|code| code.unwrap_or(UNKNOWN))
    }

    /// Leaves word of an end that its guest did not tell of.
    fn explain_end(&self, hypervisor: &mut Carrier, console: &Console) {
        // Whoever killed the machine may be about to kill this process with it, and then that is how it ends.
        std::thread::sleep(KILLER_WAIT);
        let what = match wait_for_end(hypervisor, LAST_WORDS) {
            true => {
                format!("the microVM ended before it told its workload's exit code ({})", hypervisor.wait())
            }
            false => "the guest's agent broke off before it told the workload's exit code".to_owned(),
        };
        let _ = std::fs::write(self.dir.join(END), console.explain(&what).to_string());
    }

    /// Starts the hypervisor; `shares` is the socket to the server of the host's directories.
    fn start(&self, console: &Console, shares: Option<OwnedFd>) -> Result<Carrier, HullError> {
        match self.plan.hypervisor {
            Hypervisor::Kvm => {
                let (child, said) = kvm::start(self, shares.as_ref())?;
                console.read(said, Some(self.dir.to_owned()));
                Ok(Carrier(child))
            }
            Hypervisor::Qemu => {
                let (vsock, device) = Beside::vsock(self.dir)?;
                let shares = shares.map(|socket| Beside::shares(self.dir, socket)).transpose()?;
                let (shares, server) = shares.unzip();
                let orders = connect::listen(self.dir, qmp::SOCKET).step(|| "listen for orders".into())?;
                // Before there is a thread.
                let (events, told) = UnixStream::pair().step(|| "make a socket pair".into())?;
                let (child, said) =
                    qemu::start(self, &vsock, shares.as_ref(), [orders.as_fd(), told.as_fd()])?;
                drop(told);
                device.serve()?;
                server.map_or(Ok(()), Beside::serve)?;
                trouble::listen(self.dir, events).step(|| "start a thread".into())?;
                console.read(said, None);
                Ok(Carrier(child))
            }
        }
    }

    /// From power-on to the workload's end.
    fn accompany(
        &self,
        ready: UnixListener,
        stdio: [OwnedFd; 3],
        hypervisor: &mut Carrier,
        console: &Console,
    ) -> Result<Option<i32>, HullError> {
        let until = Instant::now() + boot_wait(self.plan.hypervisor);
        let agent = self.await_agent(&ready, hypervisor, console, until)?;
        // Nobody else of the guest has anything to say: its connections would lie in the backlog for ever.
        drop(ready);
        // Its clock starts from here.
        let boot = Boot { now_ns: sys::host::now_ns(), ..self.boot.clone() };
        let waiting = Some(self.wire);
        let mut patience = Patience { stream: &agent, machine: hypervisor.pidfd(), waiting, until };
        match boot::write(&mut patience, &boot).and_then(|()| boot::read(&mut patience)) {
            Ok(Answer::Prepared) => {}
            Ok(Answer::Failed(failure)) => return Err(boot::refused(failure)),
            other => return Err(broken(other, console)),
        }
        self.wire.say(Word::Ready).step(|| "report".into())?;
        self.wire.await_word(Word::Start).step(|| "wait for the start".into())?;
        if self.boot.files_only {
            // The host has said what it wanted to say.
            self.wire.shut();
            return end_of_files(&agent, hypervisor, console).map(|()| Some(0));
        }
        let stream = self.start_workload(agent, console)?;
        // As execve closes it for a container.
        self.wire.shut();
        let Ok(Some((code, oom))) = pump::run(stream, stdio, self.boot.open_stdin) else {
            return Ok(None);
        };
        if oom {
            // Before the supervisor can see the end of this process, with which it asks. A failure tells less, not wrong.
            let _ = std::fs::write(self.dir.join(OOM), b"");
        }
        let _ = std::fs::write(self.dir.join(CODE), (code & 0xff).to_string());
        Ok(Some(code))
    }

    fn start_workload(&self, agent: UnixStream, console: &Console) -> Result<Stream, HullError> {
        let options = AttachOptions { stdin: self.boot.open_stdin, stdout: true, stderr: true };
        let until = Instant::now() + START_WAIT.saturating_sub(HEAD_START);
        let started = Client::over_until(agent, until).start(options);
        let started = started.and_then(|stream| stream.wait_for_ever().map(|()| stream));
        started.map_err(|e| match e {
            ClientError::Refused(failure) => boot::refused(failure),
            e => console.explain(&format!("the guest's agent broke off: {}", shown(&e.to_string()))),
        })
    }

    /// Waits until the agent connects, or its machine ends, or nobody wants it any more, or it takes too long.
    fn await_agent(
        &self,
        ready: &UnixListener,
        hypervisor: &mut Carrier,
        console: &Console,
        until: Instant,
    ) -> Result<UnixStream, HullError> {
        loop {
            let mut fds = [
                PollFd::new(ready, PollFlags::IN),
                PollFd::from_borrowed_fd(hypervisor.pidfd(), PollFlags::IN),
                PollFd::new(self.wire, PollFlags::IN),
            ];
            let left =
                Timespec::try_from(until.saturating_duration_since(Instant::now())).unwrap_or_default();
            let some = rustix::io::retry_on_intr(|| poll(&mut fds, Some(&left)));
            if some.step(|| "wait for the guest".into())? == 0 {
                let seconds = boot_wait(self.plan.hypervisor).as_secs();
                return Err(
                    console.explain(&format!("the microVM's guest did not answer within {seconds} s"))
                );
            }
            let [agent, ended, wire] = [fds[0].revents(), fds[1].revents(), fds[2].revents()];
            // Nothing is said before the agent is there: the host has gone.
            if !wire.is_empty() {
                return Err(HullError::Invalid("the microVM's supervisor has ended".into()));
            }
            if agent.contains(PollFlags::IN) {
                return ready.accept().map(|(socket, _)| socket).step(|| "accept the guest's agent".into());
            }
            if !ended.is_empty() {
                let status = hypervisor.wait();
                let little = match self.plan.memory_mib {
                    mib @ ..ROOMY_MIB => format!(
                        "; it has {mib} MiB of memory, which may be too little for its kernel: give it more with --memory"
                    ),
                    _ => String::new(),
                };
                let what = format!("the microVM ended before its agent was up ({status}){little}");
                return Err(console.explain(&what));
            }
        }
    }
}

/// Ends a machine that served its files; what was written is on its disk then.
fn end_of_files(agent: &UnixStream, hypervisor: &Carrier, console: &Console) -> Result<(), HullError> {
    let _ = agent.shutdown(std::net::Shutdown::Write);
    let until = Instant::now() + END_WAIT;
    let mut patience = Patience { stream: agent, machine: hypervisor.pidfd(), waiting: None, until };
    match boot::read(&mut patience) {
        Ok(Answer::Written) => Ok(()),
        Ok(Answer::Failed(failure)) => Err(boot::refused(failure)),
        other => Err(broken(other, console)),
    }
}

/// The error for an agent that did not answer, or not what it was asked.
fn broken(answer: std::io::Result<Answer>, console: &Console) -> HullError {
    let what = match answer {
        Ok(_) => "its answer fits no question".to_owned(),
        // A parser's error has the guest's own words in it.
        Err(e) => shown(&e.to_string()),
    };
    console.explain(&format!("the guest's agent broke off: {what}"))
}

/// Waits until a machine has ended, and says whether it has.
fn wait_for_end(hypervisor: &Carrier, limit: Duration) -> bool {
    let mut fds = [PollFd::from_borrowed_fd(hypervisor.pidfd(), PollFlags::IN)];
    let limit = Timespec::try_from(limit).unwrap_or_default();
    rustix::io::retry_on_intr(|| poll(&mut fds, Some(&limit))).is_ok_and(|n| n > 0)
}

/// The last of what the guest, or its hypervisor, wrote.
struct Console {
    tail: Arc<Mutex<VecDeque<u8>>>,
    /// Our own machine writes its console there.
    file: PathBuf,
}

impl Console {
    /// Reads a pipe to its end, on a thread. With a directory it is our own VMM's, which tells of its disks.
    fn read(&self, pipe: OwnedFd, dir: Option<PathBuf>) {
        let tail = Arc::clone(&self.tail);
        let work = move || {
            let mut pipe = std::fs::File::from(pipe);
            let mut buffer = [0; 4096];
            while let Ok(n @ 1..) = pipe.read(&mut buffer) {
                let Ok(mut kept) = tail.lock() else { return };
                kept.extend(buffer.iter().take(n));
                let excess = kept.len().saturating_sub(CONSOLE_TAIL);
                kept.drain(..excess);
                if let Some(dir) = &dir {
                    trouble::heard(dir, &String::from_utf8_lossy(kept.make_contiguous()));
                }
            }
        };
        let _ = std::thread::Builder::new().name("console".into()).stack_size(64 << 10).spawn(work);
    }

    /// An error with the console's last lines.
    fn explain(&self, what: &str) -> HullError {
        // What it wrote last may still be on its way.
        std::thread::sleep(Duration::from_millis(50));
        let mut bytes = Vec::new();
        if let Ok(file) = std::fs::File::open(&self.file) {
            let _ = file.take(CONSOLE_FILE).read_to_end(&mut bytes);
        }
        bytes.extend(
            self.tail.lock().map(|kept| kept.iter().copied().collect::<Vec<_>>()).unwrap_or_default(),
        );
        // Of a line that no terminal should see, the readable part.
        let text = String::from_utf8_lossy(&bytes).replace(|c: char| c.is_control() && c != '\n', "");
        let lines: Vec<String> = text
            .lines()
            .map(str::trim_end)
            .filter(|l| !l.is_empty())
            .map(|l| l.chars().take(CONSOLE_LINE).collect())
            .collect();
        let from = lines.len().saturating_sub(CONSOLE_LINES);
        let last = lines.get(from..).unwrap_or_default().join("\n  ");
        match last.is_empty() {
            true => HullError::Unsupported(format!("{what}; its console is empty")),
            false => HullError::Unsupported(format!("{what}; its console ends with:\n  {last}")),
        }
    }
}
