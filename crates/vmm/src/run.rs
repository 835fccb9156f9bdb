//! One microVM, from its configuration to its end. [`run`] reads from top to bottom.

use crate::arch::{self, layout, ports::Ports};
use crate::bus::{Bus, Window};
use crate::config::{CONSOLE_BYTES, Config, DiskContent};
use crate::console::Console;
use crate::devices::balloon::Balloon;
use crate::devices::rng::Rng;
use crate::error::VmmError;
use crate::mmio::{INTERRUPT_ACK, QUEUE_NOTIFY, Transport, USED_BUFFERS};
use crate::registers::Registers;
use crate::seccomp::{Filter, Filters};
use crate::serve::Server;
use crate::vcpu::{Machine, Vcpus};
use crate::virtio::{Device, Memory};
use crate::worker::{Running, Shared, Worker, lock};
use crate::{jail, memory, open};
use kvm_ioctls::{IoEventAddress, Kvm, VcpuFd, VmFd};
use std::io;
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use vm_memory::GuestMemoryMmap;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

/// How a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ended {
    /// It switched itself off.
    PoweredOff,
    /// It reset the machine, which a panic with `panic=-1` does, too.
    Reset,
    /// Somebody asked for it on the control socket.
    Stopped,
    /// It cannot go on; why, with the console's last lines.
    Crashed(String),
}

/// Bytes of the console in the text of a crash.
const CRASH_TAIL: usize = 2048;

/// Runs a microVM to its end.
///
/// With a jail the process is the machine's own from here on, and does not get out of it: its root is empty, its user
/// has no rights, the system calls of the calling thread are few, and its inherited descriptors, but for the standard
/// ones, taps, and those that the jail keeps, are closed. The caller can still write to descriptors and exit.
pub fn run(config: Config) -> Result<Ended, VmmError> {
    let inherited = jail::open_descriptors().map_err(VmmError::system("list the open descriptors"))?;
    check(&config)?;
    // Asked for once, by a system call that a jailed thread has not.
    let _ = rustix::param::page_size();

    let mut images = open::images(&config)?;
    let console = Console::new(open::console(&config)?);
    let (shared, own) = devices(&config)?;
    let listener = open::control(&config)?;

    let memory = memory::map(config.memory_mib)?;
    let size = config.memory_mib << 20;
    let count = shared.len() + own.len();
    if config.jail.is_some() {
        crate::seccomp::prepare();
    }
    // Most of it is the host's giving of memory, and the copy of the kernel: meanwhile the machine is made.
    let (loaded, made) = thread::scope(|scope| {
        let load = || arch::boot::load(&memory, size, &mut images, &config.cmdline, config.vcpus, count);
        let loading = thread::Builder::new().name("load".into()).spawn_scoped(scope, load);
        let made = Made::new(&config, &memory, shared, own);
        let loaded = loading.map_err(VmmError::system("start a thread")).and_then(|loading| {
            loading.join().unwrap_or(Err(VmmError::Internal("the kernel could not be loaded")))
        });
        (loaded, made)
    });
    let (entry, Made { kvm, vm, bus, workers, filters }) = (loaded?, made?);
    drop(images);
    let vcpus = create_vcpus(&kvm, &vm, config.vcpus, entry)?;
    let ports = Ports::new(console, com1_line(&vm)?);
    let end = EventFd::new(EFD_NONBLOCK).map_err(VmmError::system("make an event"))?;
    let told = end.try_clone().map_err(VmmError::system("copy an event"))?;
    let server = Server::new(listener, end).map_err(VmmError::system("wait for the control socket"))?;
    let machine = Arc::new(Machine::new(bus, ports, told));

    if let Some(walls) = &config.jail {
        let mut keep = walls.keep.clone();
        keep.extend(config.nets.iter().map(|net| net.tap).chain(config.fs.iter().map(|fs| fs.socket)));
        jail::close_inherited(&inherited, &keep);
        jail::enter(walls, largest_file(&config))?;
    }
    let threads = Threads::start(vcpus, workers, &machine, filters.as_ref())?;
    threads.vcpus.resume();
    let served = server.run(&config, &machine, &threads.vcpus);
    threads.stop();
    machine.ports.finish();
    let ended = served.map_err(VmmError::system("serve the control socket"))?;
    Ok(match ended {
        Ended::Crashed(why) => Ended::Crashed(with_console(why, &machine.ports.tail(CRASH_TAIL))),
        other => other,
    })
}

/// The machine, but for its vCPUs.
struct Made {
    kvm: Kvm,
    vm: VmFd,
    bus: Bus,
    workers: Vec<Worker>,
    filters: Option<Filters>,
}

impl Made {
    /// With devices that share a worker, and some that have one of their own.
    fn new(
        config: &Config,
        memory: &GuestMemoryMmap,
        shared: Vec<Box<dyn Device>>,
        own: Vec<Box<dyn Device>>,
    ) -> Result<Self, VmmError> {
        let kvm = open_kvm()?;
        let vm = create_vm(&kvm)?;
        memory::attach(&vm, memory)?;
        arch::create_interrupt_controllers(&kvm, &vm)?;
        let mut bus = Bus::default();
        let pages = memory::map_registers(&vm, shared.len() + own.len())?;
        let memory = Memory::new(memory.clone());
        let mut workers = vec![plug(&vm, &memory, &mut bus, pages, shared)?];
        for device in own {
            workers.push(plug(&vm, &memory, &mut bus, pages, vec![device])?);
        }
        let filters = config.jail.as_ref().map(|_| Filters::new()).transpose()?;
        Ok(Self { kvm, vm, bus, workers, filters })
    }
}

/// The console, or the largest of the disks that a guest may write. Those that others may want, too, can grow.
fn largest_file(config: &Config) -> jail::Largest {
    let written = || config.disks.iter().filter(|disk| !disk.read_only);
    let sizes = written().filter_map(|disk| match &disk.content {
        DiskContent::Raw(path) => std::fs::metadata(path).ok().map(|m| m.len()),
        DiskContent::Partitions(_) => None,
    });
    let now = sizes.fold(CONSOLE_BYTES, u64::max);
    let ever = if written().any(|disk| disk.lock.is_some()) { jail::GROWN.max(now) } else { now };
    jail::Largest { now, ever }
}

fn with_console(why: String, tail: &str) -> String {
    match tail {
        "" => format!("{why}; the console is empty"),
        tail => format!("{why}; the console's last lines:\n{tail}"),
    }
}

fn check(config: &Config) -> Result<(), VmmError> {
    let refuse = |why: String| Err(VmmError::Config(why));
    if !(1..=layout::MAX_VCPUS).contains(&config.vcpus) {
        return refuse(format!("a microVM has 1 to {} vCPUs, not {}", layout::MAX_VCPUS, config.vcpus));
    }
    // 2^20 MiB are 1 TiB, within the physical addresses of every processor that can do this.
    if !(16..=1 << 20).contains(&config.memory_mib) {
        return refuse(format!("a microVM has 16 to 1048576 MiB of memory, not {}", config.memory_mib));
    }
    let count = 1
        + config.disks.len()
        + config.nets.len()
        + usize::from(config.vsock.is_some())
        + usize::from(config.fs.is_some())
        + usize::from(config.balloon);
    if count > layout::MAX_DEVICES {
        return refuse(format!("a microVM has at most {} devices, not {count}", layout::MAX_DEVICES));
    }
    Ok(())
}

/// The devices: those that share a thread, and those that wait for the host's disks, or copy much, and so have threads of their own.
#[allow(clippy::type_complexity)]
fn devices(config: &Config) -> Result<(Vec<Box<dyn Device>>, Vec<Box<dyn Device>>), VmmError> {
    let mut shared: Vec<Box<dyn Device>> = vec![Box::new(Rng::default())];
    for net in &config.nets {
        shared.push(Box::new(open::net(net)?));
    }
    if let Some(vsock) = &config.vsock {
        shared.push(Box::new(open::vsock(vsock, config.jail.is_some())?));
    }
    if config.balloon {
        shared.push(Box::new(Balloon::new()));
    }
    let mut own: Vec<Box<dyn Device>> = Vec::new();
    if let Some(fs) = &config.fs {
        own.push(Box::new(open::fs(fs)?));
    }
    for (number, disk) in config.disks.iter().enumerate() {
        own.push(Box::new(open::disk(disk, number)?));
    }
    Ok((shared, own))
}

fn open_kvm() -> Result<Kvm, VmmError> {
    let kvm = Kvm::new().map_err(VmmError::kvm("open /dev/kvm"))?;
    // The version that every kernel since 2.6.22 has; others are to be refused (Documentation/virt/kvm/api.rst).
    match kvm.get_api_version() {
        12 => Ok(kvm),
        _ => Err(VmmError::Internal("KVM's interface is not version 12")),
    }
}

fn create_vm(kvm: &Kvm) -> Result<VmFd, VmmError> {
    loop {
        match kvm.create_vm() {
            Err(e) if e.errno() == libc::EINTR => continue,
            other => return other.map_err(VmmError::kvm("create a virtual machine")),
        }
    }
}

fn create_vcpus(kvm: &Kvm, vm: &VmFd, count: u8, entry: u64) -> Result<Vec<VcpuFd>, VmmError> {
    let supported = arch::cpu::supported(kvm)?;
    let mut vcpus = Vec::with_capacity(count.into());
    for id in 0..count {
        let vcpu = vm.create_vcpu(id.into()).map_err(VmmError::kvm("create a vCPU"))?;
        let cpuid = arch::cpu::for_vcpu(&supported, id, count);
        arch::cpu::prepare(&vcpu, &cpuid, (id == 0).then_some(entry))?;
        vcpus.push(vcpu);
    }
    Ok(vcpus)
}

fn com1_line(vm: &VmFd) -> Result<EventFd, VmmError> {
    let line = EventFd::new(EFD_NONBLOCK).map_err(VmmError::system("make an event"))?;
    vm.register_irqfd(&line, layout::COM1_GSI).map_err(VmmError::kvm("connect the interrupt of COM1"))?;
    Ok(line)
}

/// Gives these devices their windows on the bus, their interrupts and one worker.
fn plug(
    vm: &VmFd,
    memory: &Memory,
    bus: &mut Bus,
    pages: &'static [Registers],
    devices: Vec<Box<dyn Device>>,
) -> Result<Worker, VmmError> {
    let mut shared: Vec<Shared> = Vec::with_capacity(devices.len());
    let seen = EventFd::new(EFD_NONBLOCK).map_err(VmmError::system("make an event"))?;
    for (device, page) in devices.into_iter().zip(pages.iter().skip(bus.windows.len())) {
        let transport = Transport::new(device, memory.clone(), page)
            .map_err(VmmError::system("make the events of a device"))?;
        shared.push(Arc::new(Mutex::new(transport)));
    }
    let worker = Worker::new(shared.clone())?;
    for (number, device) in shared.into_iter().enumerate() {
        let (start, line) = layout::device(bus.windows.len());
        {
            let transport = lock(&device);
            let notify = IoEventAddress::Mmio(start + QUEUE_NOTIFY);
            for (queue, kick) in (0u32..).zip(transport.kicks()) {
                vm.register_ioevent(kick, &notify, queue).map_err(VmmError::kvm("connect a queue"))?;
            }
            // Nobody waits for it: what this saves is the way to here.
            let acknowledge = IoEventAddress::Mmio(start + INTERRUPT_ACK);
            vm.register_ioevent(&seen, &acknowledge, USED_BUFFERS)
                .map_err(VmmError::kvm("connect an acknowledgement"))?;
            vm.register_irqfd(transport.line(), line).map_err(VmmError::kvm("connect an interrupt"))?;
        }
        let worker = worker.mailbox();
        bus.windows.push(Window::new(start, layout::MMIO_WINDOW, device, worker, number));
    }
    Ok(worker)
}

/// All threads but the main one.
struct Threads {
    vcpus: Vcpus,
    workers: Vec<Running>,
}

impl Threads {
    /// Starts them, vCPUs held, each within its filter; the calling thread gets its own.
    fn start(
        vcpus: Vec<VcpuFd>,
        workers: Vec<Worker>,
        machine: &Arc<Machine>,
        filters: Option<&Filters>,
    ) -> Result<Self, VmmError> {
        let count = vcpus.len() + workers.len();
        let (began, results) = channel();
        let mut running = Vec::with_capacity(workers.len());
        for (number, worker) in workers.into_iter().enumerate() {
            let begin = confine(filters.map(|filters| filters.worker.clone()), began.clone());
            let started = worker.spawn(&format!("io{number}"), begin);
            running.push(started.map_err(VmmError::system("start the thread of a device"))?);
        }
        let begin = confine(filters.map(|filters| filters.vcpu.clone()), began);
        let threads = Self { vcpus: Vcpus::start(vcpus, machine.clone(), begin)?, workers: running };
        let confined = all_began(&results, count).and_then(|()| match filters {
            Some(filters) => filters.main.apply(),
            None => Ok(()),
        });
        match confined {
            Ok(()) => Ok(threads),
            Err(source) => {
                threads.stop();
                Err(VmmError::Jail { step: "bind its threads to their system calls", source })
            }
        }
    }

    fn stop(self) {
        self.vcpus.stop();
        for worker in self.workers {
            worker.stop();
        }
    }
}

/// What a thread does first: takes its filter, and tells.
fn confine(filter: Option<Filter>, tell: Sender<io::Result<()>>) -> impl Fn() -> bool + Clone + Send {
    move || {
        let applied = filter.as_ref().map_or(Ok(()), Filter::apply);
        let good = applied.is_ok();
        tell.send(applied).is_ok() && good
    }
}

fn all_began(results: &Receiver<io::Result<()>>, count: usize) -> io::Result<()> {
    (0..count).try_for_each(|_| results.recv().map_err(io::Error::other)?)
}
