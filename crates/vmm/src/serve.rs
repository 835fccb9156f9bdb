//! The main thread while the guest runs: serves the control socket and waits for the end.

use crate::config::Config;
use crate::control::{Answer, Client, Request, State};
use crate::devices::balloon;
use crate::run::Ended;
use crate::vcpu::{Machine, Vcpus};
use crate::virtio::Command;
use crate::worker::Commanded;
use std::collections::BTreeMap;
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::net::UnixListener;
use std::time::Duration;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::EventFd;

/// Connections at a time; the next wait in the socket's backlog.
const CLIENTS: usize = 16;

/// Pause after a connection that could not be taken.
const BREATH: Duration = Duration::from_millis(20);

/// Milliseconds in which a guest has booted; one that ends before keeps what its VMM has in memory.
const SETTLED: i32 = 5000;

/// What the main thread waits for. Made before the thread is confined.
pub struct Server {
    listener: UnixListener,
    end: EventFd,
    epoll: Epoll,
}

impl Server {
    /// Waits for connections and for the end.
    pub fn new(listener: UnixListener, end: EventFd) -> io::Result<Self> {
        let server = Self { epoll: Epoll::new()?, listener, end };
        server.watch(ControlOperation::Add, server.end.as_raw_fd())?;
        server.watch(ControlOperation::Add, server.listener.as_raw_fd())?;
        Ok(server)
    }

    fn watch(&self, operation: ControlOperation, fd: RawFd) -> io::Result<()> {
        self.epoll.ctl(operation, fd, EpollEvent::new(EventSet::IN, fd as u64))
    }

    /// Serves until the guest has ended; says how.
    pub fn run(&self, config: &Config, machine: &Machine, vcpus: &Vcpus) -> io::Result<Ended> {
        let mut control = Control { config, machine, vcpus, state: State::Running };
        let mut clients: BTreeMap<RawFd, Client> = BTreeMap::new();
        let mut events = [EpollEvent::default(); CLIENTS];
        let mut patience = SETTLED;
        loop {
            let count = match self.epoll.wait(patience, &mut events) {
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                other => other?,
            };
            if count == 0 {
                // What made the machine, and what a boot asked of its devices, is not needed any more.
                sys::memory::unmap_program();
                patience = -1;
            }
            for event in events.iter().take(count) {
                let fd = event.data() as RawFd;
                if fd == self.listener.as_raw_fd() {
                    self.accept(&mut clients);
                } else if let Some(client) = clients.get_mut(&fd)
                    && !client.serve(|request| control.answer(request))
                {
                    // Closing it takes it out of epoll.
                    clients.remove(&fd);
                    if clients.len() == CLIENTS - 1 {
                        self.watch(ControlOperation::Add, self.listener.as_raw_fd())?;
                    }
                }
            }
            if let Some(how) = machine.ended() {
                return Ok(how);
            }
        }
    }

    /// Takes a connection; its trouble is not the guest's.
    fn accept(&self, clients: &mut BTreeMap<RawFd, Client>) {
        let accepted = || -> io::Result<Client> {
            let client = Client::new(self.listener.accept()?.0)?;
            self.watch(ControlOperation::Add, client.stream.as_raw_fd())?;
            Ok(client)
        };
        match accepted() {
            Ok(client) => {
                clients.insert(client.stream.as_raw_fd(), client);
            }
            // who connected is gone
            Err(e) if e.kind() == io::ErrorKind::WouldBlock => {}
            // Out of descriptors, which a guest's connections can cause: the listener stays readable.
            Err(_) => std::thread::sleep(BREATH),
        }
        if clients.len() == CLIENTS {
            // It is watched, so this does not fail.
            let _ = self.watch(ControlOperation::Delete, self.listener.as_raw_fd());
        }
    }
}

/// Types of devices (VIRTIO 1.2, section 5).
const NET: u32 = 1;
const DISK: u32 = 2;
const BALLOON: u32 = 5;

fn done(done: Commanded, why_not: impl FnOnce() -> String) -> Answer {
    match done {
        Commanded::Done => Answer::Done,
        Commanded::Nonsense => Answer::Refused { why: why_not() },
        Commanded::Later => {
            let why =
                "the guest keeps the device busy: it comes to this when it has done what the guest asked";
            Answer::Refused { why: why.into() }
        }
    }
}

struct Control<'a> {
    config: &'a Config,
    machine: &'a Machine,
    vcpus: &'a Vcpus,
    state: State,
}

impl Control<'_> {
    fn answer(&mut self, request: Request) -> Answer {
        match request {
            Request::Pause => {
                if !self.vcpus.pause() {
                    self.vcpus.resume();
                    return Answer::Refused { why: "the guest's processors did not stop in time".into() };
                }
                self.state = State::Paused;
                Answer::Done
            }
            Request::Resume => {
                self.vcpus.resume();
                self.state = State::Running;
                Answer::Done
            }
            Request::Stop => {
                self.machine.end(Ended::Stopped);
                Answer::Done
            }
            Request::Status => {
                // Configuration space of the balloon (VIRTIO 1.2, 5.5.4): what is asked of it, what it has.
                let mut pages = [0; 4];
                self.machine.bus.read_config(BALLOON, 0, 4, &mut pages);
                Answer::Status {
                    state: self.state,
                    vcpus: self.config.vcpus,
                    memory_mib: self.config.memory_mib,
                    balloon_mib: u64::from(u32::from_le_bytes(pages)) / balloon::PAGES_PER_MIB,
                    disks: self.config.disks.len(),
                }
            }
            Request::Balloon { mib } => {
                done(self.machine.bus.command(BALLOON, 0, Command::Balloon(mib)), || {
                    "this guest has no balloon".into()
                })
            }
            Request::LimitDisk { number, rate } => {
                let set = self.machine.bus.command(DISK, number, Command::LimitDisk(rate));
                done(set, || format!("this guest has no disk {number} that can be limited"))
            }
            Request::GrowDisk { number } => {
                let grown = self.machine.bus.command(DISK, number, Command::TakeSize);
                done(grown, || format!("this guest has no disk {number} that can grow"))
            }
            Request::LimitNet { number, rate } => {
                let set = self.machine.bus.command(NET, number, Command::Limit(rate));
                done(set, || format!("this guest has no network interface {number} that can be limited"))
            }
        }
    }
}
