//! A machine without KVM: every device at work on threads with the filters that they have in a jail. A vCPU is a
//! thread that does what it is told; the guest's memory is written by the test.

use super::*;
use crate::arch::ports::{COM1, Ports};
use crate::bus::{Bus, Window};
use crate::config::{Config, DiskRate, RateLimit};
use crate::console::Console;
use crate::control::{Answer, Request, ask};
use crate::devices::balloon::Balloon;
use crate::devices::block::Block;
use crate::devices::net::Net;
use crate::devices::net_tap::Tap;
use crate::devices::rng::Rng;
use crate::devices::storage::Storage;
use crate::devices::testing::{BUFFERS, Driver, Registers, WRITE, page, tap};
use crate::devices::vsock::Vsock;
use crate::gpt::Layout;
use crate::mmio::Transport;
use crate::run::Ended;
use crate::serve::Server;
use crate::vcpu::{Machine, Vcpus};
use crate::virtio::Device;
use crate::worker::{Running, Worker};
use std::fs::File;
use std::io::{Read, Write};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::Path;
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Mutex};
use std::thread;
use std::time::{Duration, Instant};
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};

const NAME: &str = "seccomp::tests::machine::every_thread_does_its_work_within_its_filter";

#[test]
fn every_thread_does_its_work_within_its_filter() {
    let status = apart(NAME, work);
    assert!(status.success(), "{status}: signal {} is a system call that a filter lacks", libc::SIGSYS);
}

fn until(what: &str, mut done: impl FnMut() -> bool) {
    let end = Instant::now() + Duration::from_secs(20);
    while !done() {
        assert!(Instant::now() < end, "{what}");
        thread::sleep(Duration::from_millis(1));
    }
}

type Job = Box<dyn FnOnce(&Machine) + Send>;

/// A thread with the filter of a vCPU.
#[derive(Clone)]
struct Cpu(Sender<Job>);

impl Cpu {
    fn start(machine: Arc<Machine>, filter: Filter) -> Self {
        let (sender, jobs) = channel::<Job>();
        thread::spawn(move || {
            filter.apply().unwrap();
            jobs.iter().for_each(|job| job(&machine));
        });
        Self(sender)
    }

    fn run<T: Send + 'static>(&self, job: impl FnOnce(&Machine) -> T + Send + 'static) -> T {
        let (done, result) = channel();
        self.0.send(Box::new(move |machine| done.send(job(machine)).unwrap())).unwrap();
        result.recv().unwrap()
    }
}

/// A device as the guest has it.
struct Guest {
    cpu: Cpu,
    window: u64,
    driver: Driver,
}

impl Registers for Guest {
    fn set(&mut self, register: u64, value: u32) {
        let address = self.window + register;
        self.cpu.run(move |machine| machine.bus.write(address, &value.to_le_bytes()));
    }

    fn get(&self, register: u64) -> u32 {
        let address = self.window + register;
        self.cpu.run(move |machine| {
            let mut value = [0; 4];
            machine.bus.read(address, &mut value);
            u32::from_le_bytes(value)
        })
    }
}

impl Guest {
    fn start(&mut self) {
        let driver = self.driver.anew();
        driver.start(self, u64::MAX);
        assert_eq!(self.get(0x70), 15);
        self.driver = driver;
    }

    fn kick(&mut self, queue: usize) {
        self.set(0x50, queue as u32);
    }

    /// One chain, served.
    fn request(&mut self, queue: usize, buffers: &[(u64, u32, u16)]) {
        self.driver.chain(queue, 0, buffers);
        self.kick(queue);
        until("a request is served", || !self.driver.used(queue).is_empty());
    }

    /// Breaks a queue, sees the device stop, and starts it again.
    fn break_and_mend(&mut self, queue: usize) {
        self.driver.set_available(queue, 0x8000);
        self.kick(queue);
        until("the device needs a reset", || self.get(0x70) & 0x40 != 0);
        self.start();
    }
}

/// All devices, those that share a worker first.
fn devices(dir: &Path, tap: Tap) -> [(Box<dyn Device>, usize); 7] {
    let listener = UnixListener::bind(dir.join("v")).unwrap();
    let rate = RateLimit { bytes_per_second: 0, ops_per_second: 1000 };
    let file = || {
        let file = tempfile::tempfile_in(dir).unwrap();
        file.set_len(1 << 20).unwrap();
        file
    };
    let memory = File::from(rustix::fs::memfd_create("disk", rustix::fs::MemfdFlags::CLOEXEC).unwrap());
    memory.set_len(1 << 20).unwrap();
    let disk = |storage, read_only, number| {
        Box::new(Block::new(storage, read_only, number).limited(&DiskRate::default()).unwrap())
    };
    let raw = |file, size| disk(Storage::Raw { file, size }, false, 0);
    let layout = Layout::of(&[700]).unwrap();
    let partitions = Storage::Partitions { layout, files: vec![file()] };
    [
        (Box::<Rng>::default(), 1),
        (Box::<Balloon>::default(), 3),
        (Box::new(Net::new(tap, [2; 6], &rate).unwrap()), 2),
        (Box::new(Vsock::new(3, listener, dir.join("v")).unwrap()), 3),
        (raw(file(), 1 << 20), 1),
        // A file that shrank, on a filesystem that cannot zero ranges.
        (raw(memory, 2 << 20), 1),
        (disk(partitions, true, 1), 1),
    ]
}

fn work() {
    prepare();
    let filters = Filters::new().unwrap();
    let _ = rustix::param::page_size();
    let dir = tempfile::tempdir().unwrap();
    let (near, _far) = std::os::unix::net::UnixDatagram::pair().unwrap();
    let tap = tap().map(Tap::new).unwrap_or_else(|why| {
        println!("SKIPPED the tap: {why}");
        Tap::datagrams(near.into())
    });
    let (mut bus, mut drivers, mut running) = (Bus::default(), Vec::new(), Vec::new());
    for (number, (device, queues)) in devices(dir.path(), tap.unwrap()).into_iter().enumerate() {
        let driver = Driver::new(queues);
        let device = Arc::new(Mutex::new(Transport::new(device, driver.memory.clone(), page()).unwrap()));
        let worker = Worker::new(vec![device.clone()]).unwrap();
        let start = 0x1000 * number as u64;
        bus.windows.push(Window::new(start, 0x1000, device, worker.mailbox(), 0));
        let filter = filters.worker.clone();
        running.push(worker.spawn("io", move || filter.apply().is_ok()).unwrap());
        drivers.push(driver);
    }
    let console = Console::new(Some(File::create(dir.path().join("console")).unwrap()));
    let event = || EventFd::new(EFD_NONBLOCK).unwrap();
    let end = event();
    let ports = Ports::new(console, event());
    let machine = Arc::new(Machine::new(bus, ports, end.try_clone().unwrap()));
    let cpu = Cpu::start(machine.clone(), filters.vcpu.clone());
    let control = dir.path().join("control");
    let listener = UnixListener::bind(&control).unwrap();
    listener.set_nonblocking(true).unwrap();
    let server = Server::new(listener, end).unwrap();
    let main = thread::spawn(move || serve(&server, &machine, &filters.main, running));

    let mut guests: Vec<Guest> = (0..)
        .step_by(0x1000)
        .zip(drivers)
        .map(|(window, driver)| Guest { cpu: cpu.clone(), window, driver })
        .collect();
    guests.iter_mut().for_each(Guest::start);
    let [rng, balloon, net, vsock, disk, memory, partitions] = &mut guests[..] else { unreachable!() };
    rng.request(0, &[(BUFFERS, 64, WRITE)]);
    balloon.request(0, &[(BUFFERS, 4, 0)]);
    balloon.request(1, &[(BUFFERS, 4, 0)]);
    balloon.request(2, &[(4 << 20, 1 << 20, WRITE)]);
    packets(net);
    streams(vsock, dir.path());
    for disk in [disk, memory, partitions] {
        sectors(disk);
    }
    cpu.run(|machine| {
        for _ in 0..100 {
            machine.ports.write(COM1, b"A line on the console.\n");
        }
        let mut value = [0];
        machine.ports.read(COM1 + 5, &mut value);
    });
    let asked = |request| ask(&control, &request).unwrap();
    asked(Request::Status);
    assert_eq!(asked(Request::Pause), Answer::Done);
    assert_eq!(asked(Request::Resume), Answer::Done);
    assert_eq!(asked(Request::Balloon { mib: 1 }), Answer::Done);
    let rate = RateLimit { bytes_per_second: 1 << 20, ops_per_second: 100 };
    assert_eq!(asked(Request::LimitNet { number: 0, rate }), Answer::Done);
    let rate = DiskRate { read: rate, write: rate };
    assert_eq!(asked(Request::LimitDisk { number: 0, rate }), Answer::Done);
    packets(&mut guests[2]);
    // More than are served at a time; they wait, and go.
    let many: Vec<_> = (0..40).filter_map(|_| UnixStream::connect(&control).ok()).collect();
    drop(many);
    UnixStream::connect(&control).unwrap().write_all(b"nonsense\n").unwrap();
    for (guest, queue) in guests.iter_mut().zip([0, 0, 1, 1, 0, 0, 0]) {
        guest.break_and_mend(queue);
        guest.set(0x70, 0);
    }
    assert_eq!(asked(Request::Stop), Answer::Done);
    main.join().unwrap();
    let written = std::fs::metadata(dir.path().join("console")).unwrap().len();
    assert_eq!(written, 2300);
}

/// What the main thread does from the guest's first instruction to its end.
fn serve(server: &Server, machine: &Arc<Machine>, filter: &Filter, running: Vec<Running>) {
    let vcpus = Vcpus::start(Vec::new(), machine.clone(), || true).unwrap();
    filter.apply().unwrap();
    let ended = server.run(&Config::default(), machine, &vcpus).unwrap();
    assert_eq!(ended, Ended::Stopped);
    vcpus.stop();
    running.into_iter().for_each(Running::stop);
    machine.ports.finish();
    assert!(machine.ports.tail(100).contains("console"));
}

fn packets(net: &mut Guest) {
    let mut frame = [0xff; 12 + 60];
    frame[..12].fill(0);
    net.driver.write(BUFFERS, &frame);
    for head in 0..100 {
        net.driver.chain(0, head, &[(BUFFERS + 0x1_0000 + 0x1000 * u64::from(head), 4096, WRITE)]);
        net.driver.chain(1, head, &[(BUFFERS, 72, 0)]);
    }
    net.kick(0);
    net.kick(1);
    let mut sent = 0;
    until("packets are sent", || {
        sent += net.driver.used(1).len();
        sent == 100
    });
    net.driver.used(0);
}

/// A packet of the virtual socket without data (VIRTIO 1.2, 5.10.6).
fn packet(guest: u32, host: u32, op: u16, length: u32) -> Vec<u8> {
    let words = |words: &[u32]| words.iter().flat_map(|word| word.to_le_bytes()).collect::<Vec<_>>();
    let room = 1 << 16;
    [words(&[3, 0, 2, 0, guest, host, length]), vec![1, 0, op as u8, 0], words(&[0, room, 0])].concat()
}

/// Streams that the host and the guest open, use, and end or forget.
fn streams(vsock: &mut Guest, dir: &Path) {
    const AT: u64 = BUFFERS + (4 << 20);
    for head in 0..64 {
        vsock.driver.chain(0, head, &[(BUFFERS + 0x1000 * u64::from(head), 4096, WRITE)]);
    }
    vsock.kick(0);
    let send = |vsock: &mut Guest, packet: &[u8]| {
        vsock.driver.write(AT, packet);
        vsock.request(1, &[(AT, packet.len() as u32, 0)]);
    };
    let answer = |vsock: &mut Guest| {
        let mut heads = Vec::new();
        until("the device answers", || {
            heads = vsock.driver.used(0);
            !heads.is_empty()
        });
        vsock.driver.read(BUFFERS + 0x1000 * u64::from(heads[0].0), 44)
    };
    let host = UnixListener::bind(dir.join("v_80")).unwrap();
    send(vsock, &packet(1000, 80, 1, 0));
    assert_eq!(answer(vsock)[30], 2, "accepted");
    let (mut stream, _) = host.accept().unwrap();
    send(vsock, &[&packet(1000, 80, 5, 5)[..], b"hello"].concat());
    let mut hello = [0; 5];
    stream.read_exact(&mut hello).unwrap();
    stream.write_all(b"back").unwrap();
    assert_eq!(answer(vsock)[30], 5, "data");
    send(vsock, &packet(1000, 80, 4, 0));
    drop(stream);
    answer(vsock);
    // Nobody listens there.
    send(vsock, &packet(1001, 81, 1, 0));
    answer(vsock);
    // The host opens one that the guest accepts, one that it never does, and one that says nothing.
    let connect = |line: &[u8]| {
        let mut stream = UnixStream::connect(dir.join("v")).unwrap();
        stream.write_all(line).unwrap();
        stream
    };
    let mut stream = connect(b"CONNECT 5\n");
    let request = answer(vsock);
    let port = u32::from_le_bytes(request[16..20].try_into().unwrap());
    send(vsock, &packet(5, port, 2, 0));
    let mut line = [0; 3];
    stream.read_exact(&mut line).unwrap();
    assert_eq!(&line, b"OK ");
    let mut silent = [connect(b"CONNECT 6\n"), connect(b"CONN")];
    answer(vsock);
    for stream in &mut silent {
        assert_eq!(stream.read(&mut [0; 8]).unwrap_or(0), 0, "given up");
    }
}

/// Every request, well-formed or not.
fn sectors(disk: &mut Guest) {
    const DATA: u64 = BUFFERS + 0x1000;
    const STATUS: u64 = BUFFERS + 0x800;
    let ask = |disk: &mut Guest, kind: u32, sector: u64, length: u32| {
        disk.driver.write(BUFFERS, &[&kind.to_le_bytes()[..], &[0; 4], &sector.to_le_bytes()].concat());
        let flags = if matches!(kind, 0 | 8) { WRITE } else { 0 };
        disk.request(0, &[(BUFFERS, 16, 0), (DATA, length, flags), (STATUS, 1, WRITE)]);
    };
    // Read, write, flush, the name, beyond the end, beyond a file that shrank.
    for (kind, sector, length) in
        [(0, 0, 4096), (1, 8, 4096), (4, 0, 0), (8, 0, 20), (0, 1 << 40, 512), (0, 2048, 512), (99, 0, 0)]
    {
        ask(disk, kind, sector, length);
    }
    // Discard; zero and do or do not give room back.
    for (kind, flags) in [(11, 0_u32), (13, 0), (13, 1)] {
        let range = [&0_u64.to_le_bytes()[..], &64_u32.to_le_bytes(), &flags.to_le_bytes()].concat();
        disk.driver.write(DATA, &range);
        ask(disk, kind, 0, 16);
    }
}
