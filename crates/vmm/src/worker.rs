//! The threads on which devices run: each waits with epoll for the descriptors of its devices, and for register
//! accesses that vCPUs hand over.

use crate::error::VmmError;
use crate::mmio::{Deferred, Transport};
use crate::virtio::{Command, Interest};
use std::io;
use std::os::fd::{AsRawFd, RawFd};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, SyncSender, channel, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::Duration;
use vmm_sys_util::epoll::{ControlOperation, Epoll, EpollEvent, EventSet};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// A device that threads share.
pub type Shared = Arc<Mutex<Transport>>;

/// Locks; a panic elsewhere does not make the device's state less defined than a hostile driver does.
pub fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// epoll's word for the channel of jobs; the others are a device's number in the upper and an index in the lower half.
const JOBS: u64 = u64::MAX;

enum Job {
    Access { device: usize, access: Deferred, done: SyncSender<()> },
    Command { device: usize, command: Command, done: SyncSender<bool> },
    Stop,
}

/// The way to a worker, for vCPUs.
#[derive(Clone)]
pub struct Mailbox {
    jobs: Sender<Job>,
    wake: Arc<EventFd>,
}

impl Mailbox {
    /// Has the worker carry out a register access of its device number `device`, and waits until it has.
    pub fn carry_out(&self, device: usize, access: Deferred) {
        let (done, wait) = sync_channel(1);
        if self.jobs.send(Job::Access { device, access, done }).is_ok() && self.wake.write(1).is_ok() {
            // An error says that the worker stopped: the machine is ending.
            let _ = wait.recv();
        }
    }

    /// Has its device number `device` carry out a command.
    pub fn command(&self, device: usize, command: Command) -> Commanded {
        let (done, wait) = sync_channel(1);
        let sent =
            self.jobs.send(Job::Command { device, command, done }).is_ok() && self.wake.write(1).is_ok();
        match wait.recv_timeout(COMMAND_WAIT) {
            _ if !sent => Commanded::Nonsense,
            Ok(true) => Commanded::Done,
            Ok(false) | Err(RecvTimeoutError::Disconnected) => Commanded::Nonsense,
            Err(RecvTimeoutError::Timeout) => Commanded::Later,
        }
    }
}

/// What became of a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Commanded {
    /// It is done.
    Done,
    /// It means nothing to the device, or there is none.
    Nonsense,
    /// The device works long on what its guest asked for, and comes to it after that.
    Later,
}

/// How long a device may work before it comes to a command. Who waits for it waits for the machine's end, too.
const COMMAND_WAIT: Duration = Duration::from_secs(if cfg!(test) { 1 } else { 5 });

/// A worker before it runs.
pub struct Worker {
    epoll: Epoll,
    devices: Vec<Shared>,
    registered: Vec<Vec<Interest>>,
    jobs: Receiver<Job>,
    mailbox: Mailbox,
}

impl Worker {
    /// A worker for these devices.
    pub fn new(devices: Vec<Shared>) -> Result<Self, VmmError> {
        let made = || -> io::Result<_> {
            let epoll = Epoll::new()?;
            let wake = EventFd::new(EFD_NONBLOCK)?;
            epoll.ctl(ControlOperation::Add, wake.as_raw_fd(), EpollEvent::new(EventSet::IN, JOBS))?;
            Ok((epoll, wake))
        };
        let (epoll, wake) = made().map_err(VmmError::system("make the thread of a device"))?;
        let (sender, jobs) = channel();
        let registered = devices.iter().map(|_| Vec::new()).collect();
        Ok(Self { epoll, devices, registered, jobs, mailbox: Mailbox { jobs: sender, wake: Arc::new(wake) } })
    }

    /// The way to this worker.
    pub fn mailbox(&self) -> Mailbox {
        self.mailbox.clone()
    }

    /// Runs on a thread of its own, after `begin` there, which says whether to go on.
    pub fn spawn(self, name: &str, begin: impl FnOnce() -> bool + Send + 'static) -> io::Result<Running> {
        let mailbox = self.mailbox();
        let thread =
            std::thread::Builder::new().name(name.into()).stack_size(256 << 10).spawn(move || {
                if begin() {
                    self.run();
                }
            })?;
        Ok(Running { mailbox, thread })
    }

    fn run(mut self) {
        let mut events = [EpollEvent::default(); 64];
        loop {
            let count = match self.epoll.wait(-1, &mut events) {
                Ok(count) => count,
                Err(e) if e.kind() == io::ErrorKind::Interrupted => continue,
                Err(_) => return,
            };
            // Events of a device whose registrations changed are stale; epoll tells the true ones again.
            let mut changed = Vec::new();
            for event in events.iter().take(count) {
                if event.data() == JOBS {
                    match self.jobs() {
                        Some(devices) => changed.extend(devices),
                        None => return,
                    }
                    continue;
                }
                let (device, index) = ((event.data() >> 32) as usize, event.data() as u32 as usize);
                if changed.contains(&device) {
                    continue;
                }
                let interest = self.registered.get(device).and_then(|list| list.get(index)).copied();
                if let (Some(interest), Some(shared)) = (interest, self.devices.get(device)) {
                    lock(shared).ready(interest.token, event.events());
                    if self.register(device) {
                        changed.push(device);
                    }
                }
            }
        }
    }

    /// Does all jobs; the devices whose registrations changed, or none to stop.
    fn jobs(&mut self) -> Option<Vec<usize>> {
        let _ = self.mailbox.wake.read();
        let mut changed = Vec::new();
        while let Ok(job) = self.jobs.try_recv() {
            let device = match &job {
                Job::Access { device, .. } | Job::Command { device, .. } => *device,
                Job::Stop => return None,
            };
            let Some(shared) = self.devices.get(device).cloned() else { continue };
            // Answers nobody waits for any more are lost.
            match job {
                Job::Access { access, done, .. } => {
                    if access == Deferred::Status(0) {
                        self.forget(device);
                    }
                    lock(&shared).carry_out(access);
                    let _ = done.send(());
                }
                Job::Command { command, done, .. } => {
                    let _ = done.send(lock(&shared).command(command));
                }
                Job::Stop => {}
            }
            if self.register(device) {
                changed.push(device);
            }
        }
        Some(changed)
    }

    /// Waits for nothing of a device any more, before it closes its descriptors: of those that are open elsewhere too, as
    /// queues' events are, epoll would tell for ever, and could not be told to stop.
    fn forget(&mut self, device: usize) {
        for interest in std::mem::take(&mut self.registered[device]) {
            let _ = self.epoll.ctl(ControlOperation::Delete, interest.fd, EpollEvent::default());
        }
    }

    /// Brings epoll up to date with what a device waits for; whether anything changed.
    fn register(&mut self, device: usize) -> bool {
        let wanted = lock(&self.devices[device]).interests();
        let old = &self.registered[device];
        if *old == wanted {
            return false;
        }
        for interest in old.iter().filter(|i| !wanted.iter().any(|w| w.fd == i.fd)) {
            // One that was closed, and was not open elsewhere, is gone from epoll already.
            let _ = self.epoll.ctl(ControlOperation::Delete, interest.fd, EpollEvent::default());
        }
        for (index, interest) in wanted.iter().enumerate() {
            self.add(interest, (device as u64) << 32 | index as u64);
        }
        self.registered[device] = wanted;
        true
    }

    fn add(&self, interest: &Interest, word: u64) {
        let set = EventSet::from_bits_truncate(interest.events);
        let ctl = |operation, fd: RawFd| self.epoll.ctl(operation, fd, EpollEvent::new(set, word));
        let added = match ctl(ControlOperation::Add, interest.fd) {
            Err(e) if e.raw_os_error() == Some(libc::EEXIST) => ctl(ControlOperation::Modify, interest.fd),
            other => other,
        };
        if let Err(e) = added {
            crate::note::note(format_args!("cannot wait for descriptor {} of a device: {e}", interest.fd));
        }
    }
}

/// A worker that runs.
pub struct Running {
    mailbox: Mailbox,
    thread: JoinHandle<()>,
}

impl Running {
    /// Ends it, after what it is doing.
    pub fn stop(self) {
        if self.mailbox.jobs.send(Job::Stop).is_ok() && self.mailbox.wake.write(1).is_ok() {
            let _ = self.thread.join();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bus::{Bus, Window};
    use crate::devices::rng::Rng;
    use crate::devices::testing::page;
    use crate::virtio::Memory;
    use std::time::{Duration, Instant};
    use vm_memory::{Bytes, GuestAddress, GuestAddressSpace, GuestMemoryMmap};

    const WINDOW: u64 = 0xd000_0000;

    fn write(bus: &Bus, register: u64, value: u32) {
        bus.write(WINDOW + register, &value.to_le_bytes());
    }

    fn read(bus: &Bus, register: u64) -> u32 {
        let mut value = [0; 4];
        bus.read(WINDOW + register, &mut value);
        u32::from_le_bytes(value)
    }

    /// Of this process.
    fn cpu_time() -> Duration {
        let time = rustix::time::clock_gettime(rustix::time::ClockId::ProcessCPUTime);
        Duration::new(time.tv_sec as u64, time.tv_nsec as u32)
    }

    /// Polls, as the line does not block.
    fn interrupted(device: &Shared) -> bool {
        let until = Instant::now() + Duration::from_secs(10);
        while Instant::now() < until {
            if lock(device).line().read().is_ok() {
                return true;
            }
            std::thread::sleep(Duration::from_millis(1));
        }
        false
    }

    #[test]
    fn a_kick_reaches_the_device_and_its_interrupt_comes_back() {
        let memory = Memory::new(GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 1 << 20)]).unwrap());
        let device: Shared =
            Arc::new(Mutex::new(Transport::new(Box::<Rng>::default(), memory.clone(), page()).unwrap()));
        let worker = Worker::new(vec![device.clone()]).unwrap();
        let window = Window::new(WINDOW, 0x1000, device.clone(), worker.mailbox(), 0);
        let bus = Bus { windows: vec![window] };
        let running = worker.spawn("test", || true).unwrap();

        for round in 0..2u16 {
            for (register, value) in [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 1), (0x20, 1), (0x70, 11)] {
                write(&bus, register, value);
            }
            for (register, value) in
                [(0x30, 0), (0x38, 8), (0x80, 0x1000), (0x90, 0x2000), (0xa0, 0x3000), (0x44, 1)]
            {
                write(&bus, register, value);
            }
            let guard = memory.memory();
            let descriptor =
                [&0x8000u64.to_le_bytes()[..], &64u32.to_le_bytes(), &2u16.to_le_bytes(), &[0; 2]].concat();
            guard.write_slice(&descriptor, GuestAddress(0x1000)).unwrap();
            guard.write_slice(&[0, 0, 0, 0, 0, 0], GuestAddress(0x2000)).unwrap();
            guard.write_slice(&[0; 64], GuestAddress(0x8000)).unwrap();
            guard.write_slice(&[0; 16], GuestAddress(0x3000)).unwrap();
            write(&bus, 0x70, 15);
            assert_eq!(read(&bus, 0x70), 15);
            guard.write_obj(1u16, GuestAddress(0x2002)).unwrap();
            write(&bus, 0x50, 0);
            assert!(interrupted(&device), "round {round}");
            assert_eq!(guard.read_obj::<u16>(GuestAddress(0x3002)).unwrap(), 1);
            let bytes: [u8; 32] = guard.read_obj(GuestAddress(0x8000)).unwrap();
            assert_ne!(bytes, [0; 32]);
        }
        assert_eq!(read(&bus, 0x1000), u32::MAX, "beyond the window is nothing");

        // A device that works long, or hangs, keeps no vCPU from acknowledging its interrupt.
        let busy = lock(&device);
        assert_eq!(read(&bus, 0x60), 1);
        write(&bus, 0x64, 1);
        assert_eq!(read(&bus, 0x60), 0);
        // Nor one who gives it an order.
        const RNG: u32 = 4;
        assert_eq!(bus.command(RNG, 0, Command::Balloon(1)), Commanded::Later);
        assert_eq!(bus.command(RNG + 1, 0, Command::Balloon(1)), Commanded::Nonsense);
        drop(busy);
        assert_eq!(bus.command(RNG, 0, Command::Balloon(1)), Commanded::Nonsense);

        // After a reset a kick, which KVM goes on to signal, wakes nobody.
        write(&bus, 0x70, 0);
        lock(&device).kicks()[0].write(1).unwrap();
        let before = cpu_time();
        std::thread::sleep(Duration::from_millis(300));
        assert!(cpu_time() - before < Duration::from_millis(150), "the worker spins");
        running.stop();
        write(&bus, 0x70, 0);
    }
}
