//! The threads of the vCPUs.
//!
//! ```text
//! begin ─► parked ─start─► run ◄─────resume─────┐
//!                           ├─ kicked, pause ─► parked
//!                           ├─ kicked, stop ──► gone
//!                           └─ guest ends ────► told, gone
//! ```

use crate::arch::ports::{Ports, Power};
use crate::bus::Bus;
use crate::error::VmmError;
use crate::run::Ended;
use crate::worker::lock;
use kvm_bindings::kvm_run;
use kvm_ioctls::{VcpuExit, VcpuFd};
use std::cell::Cell;
use std::io;
use std::sync::atomic::{AtomicU8, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::EventFd;
use vmm_sys_util::signal::{Killable, SIGRTMIN, register_signal_handler};

/// How long all vCPUs together may take to notice a pause; one waits for its device's I/O at worst.
const PAUSE: Duration = Duration::from_secs(10);

const RUN: u8 = 0;
const PARK: u8 = 1;
const STOP: u8 = 2;

/// What vCPUs share.
pub struct Machine {
    /// Devices in memory.
    pub bus: Bus,
    /// Devices at ports.
    pub ports: Ports,
    wanted: AtomicU8,
    parked: Mutex<usize>,
    changed: Condvar,
    ended: Mutex<Option<Ended>>,
    /// Readable when the guest has ended.
    end: EventFd,
}

impl Machine {
    /// A machine whose vCPUs are held.
    pub fn new(bus: Bus, ports: Ports, end: EventFd) -> Self {
        Self {
            bus,
            ports,
            wanted: AtomicU8::new(PARK),
            parked: Mutex::new(0),
            changed: Condvar::new(),
            ended: Mutex::new(None),
            end,
        }
    }

    /// How the guest ended, if it has.
    pub fn ended(&self) -> Option<Ended> {
        lock(&self.ended).clone()
    }

    /// Notes the first end, and wakes who waits for it.
    pub fn end(&self, how: Ended) {
        lock(&self.ended).get_or_insert(how);
        // Its only failure is a full counter, which is readable, too.
        let _ = self.end.write(1);
        // Who waits for vCPUs to park has looked at `ended` under this lock.
        let parked = lock(&self.parked);
        self.changed.notify_all();
        drop(parked);
    }

    fn want(&self, what: u8) {
        let parked = lock(&self.parked);
        self.wanted.store(what, Ordering::SeqCst);
        self.changed.notify_all();
        drop(parked);
    }

    /// Between two runs of a vCPU: waits while a pause lasts; whether to run on.
    fn may_run(&self) -> bool {
        match self.wanted.load(Ordering::SeqCst) {
            RUN => return true,
            STOP => return false,
            _ => {}
        }
        let mut parked = lock(&self.parked);
        *parked += 1;
        self.changed.notify_all();
        while self.wanted.load(Ordering::SeqCst) == PARK {
            parked = self.changed.wait(parked).unwrap_or_else(|poisoned| poisoned.into_inner());
        }
        *parked -= 1;
        self.wanted.load(Ordering::SeqCst) == RUN
    }
}

thread_local! {
    /// What this thread's vCPU shares with the kernel; null on other threads.
    static RUNNING: Cell<*mut kvm_run> = const { Cell::new(std::ptr::null_mut()) };
}

/// Makes the vCPU of this thread leave the guest, or not enter it (kvm_run.immediate_exit). Only this closes the gap
/// between the look at what is wanted and the entry.
extern "C" fn kicked(_: libc::c_int, _: *mut libc::siginfo_t, _: *mut libc::c_void) {
    RUNNING.with(|running| {
        let run = running.get();
        if !run.is_null() {
            // SAFETY: the pointer is this thread's own, to a mapping that lasts until `drive` nulls it; one byte is
            // written, and only the kernel reads it.
            unsafe { std::ptr::addr_of_mut!((*run).immediate_exit).write_volatile(1) };
        }
    });
}

/// All vCPUs.
pub struct Vcpus {
    machine: Arc<Machine>,
    threads: Vec<JoinHandle<()>>,
}

impl Vcpus {
    /// Starts the threads, held; each calls `begin`, which says whether to go on.
    pub fn start(
        vcpus: Vec<VcpuFd>,
        machine: Arc<Machine>,
        begin: impl Fn() -> bool + Clone + Send + 'static,
    ) -> Result<Self, VmmError> {
        register_signal_handler(SIGRTMIN(), kicked)
            .map_err(VmmError::system("handle the signal of vCPUs"))?;
        let mut threads = Vec::with_capacity(vcpus.len());
        for (id, vcpu) in vcpus.into_iter().enumerate() {
            let (machine, begin) = (machine.clone(), begin.clone());
            let thread = std::thread::Builder::new()
                .name(format!("vcpu{id}"))
                .stack_size(256 << 10)
                .spawn(move || {
                    if begin() {
                        drive(vcpu, &machine);
                    }
                })
                .map_err(VmmError::system("start the thread of a vCPU"))?;
            threads.push(thread);
        }
        Ok(Self { machine, threads })
    }

    fn kick(&self) {
        for thread in &self.threads {
            let _ = thread.kill(SIGRTMIN());
        }
    }

    /// Holds all vCPUs; whether they were in time.
    pub fn pause(&self) -> bool {
        self.machine.want(PARK);
        self.kick();
        let until = Instant::now() + PAUSE;
        let mut parked = lock(&self.machine.parked);
        while *parked < self.threads.len() && self.machine.ended().is_none() {
            let Some(left) = until.checked_duration_since(Instant::now()) else { return false };
            parked = match self.machine.changed.wait_timeout(parked, left) {
                Ok((parked, _)) => parked,
                Err(poisoned) => poisoned.into_inner().0,
            };
        }
        true
    }

    /// Lets them run again.
    pub fn resume(&self) {
        self.machine.want(RUN);
    }

    /// Ends all threads.
    pub fn stop(self) {
        self.machine.want(STOP);
        self.kick();
        for thread in self.threads {
            let _ = thread.join();
        }
    }
}

/// Runs a vCPU until the guest ends or it is stopped.
fn drive(mut vcpu: VcpuFd, machine: &Machine) {
    RUNNING.set(vcpu.get_kvm_run());
    while machine.may_run() {
        match step(&mut vcpu, machine) {
            Ok(None) => {}
            Ok(Some(how)) => {
                machine.end(how);
                break;
            }
            Err(e) => {
                machine.end(Ended::Crashed(format!("KVM cannot run the guest: {e}")));
                break;
            }
        }
    }
    RUNNING.set(std::ptr::null_mut());
}

/// Runs until the guest needs something, and gives it; how the guest ended, if it did.
fn step(vcpu: &mut VcpuFd, machine: &Machine) -> io::Result<Option<Ended>> {
    let crashed = |why: String| Ok(Some(Ended::Crashed(why)));
    match vcpu.run() {
        Ok(VcpuExit::MmioRead(address, data)) => machine.bus.read(address, data),
        Ok(VcpuExit::MmioWrite(address, data)) => machine.bus.write(address, data),
        Ok(VcpuExit::IoIn(port, data)) => machine.ports.read(port, data),
        Ok(VcpuExit::IoOut(port, data)) => match machine.ports.write(port, data) {
            Some(Power::Off) => return Ok(Some(Ended::PoweredOff)),
            Some(Power::Reset) => return Ok(Some(Ended::Reset)),
            None => {}
        },
        Ok(VcpuExit::Shutdown) => return crashed("triple fault".into()),
        Ok(VcpuExit::Intr | VcpuExit::IrqWindowOpen | VcpuExit::Hlt) => {}
        Ok(VcpuExit::FailEntry(reason, cpu)) => {
            return crashed(format!(
                "the processor refused to enter the guest: reason {reason:#x} on CPU {cpu}"
            ));
        }
        Ok(other) => return crashed(format!("unexpected exit of a vCPU: {other:?}")),
        Err(e) => match e.errno() {
            libc::EINTR => vcpu.set_kvm_immediate_exit(0),
            // a vCPU that waits for its first SIPI says this once
            libc::EAGAIN => {}
            errno => return Err(io::Error::from_raw_os_error(errno)),
        },
    }
    Ok(None)
}
