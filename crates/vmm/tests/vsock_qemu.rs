//! The virtual socket under a real driver: QEMU without KVM boots Debian's kernel, our vhost-user back end serves its
//! vsock device, and this very binary is the guest's init.
//!
//! Needs `qemu-system-x86_64`.

mod common;

use common::{Kernel, PROGRAM, cpio};
use dhow_vmm::devices::vsock::Vsock;
use dhow_vmm::vhost::{ServeError, serve};
use std::io::{BufRead, BufReader, Read, Write};
use std::net::Shutdown;
use std::os::fd::{FromRawFd, OwnedFd};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};
use std::{fs, io, thread};

/// Of the guest.
const CID: u64 = 42;
/// Ports of the guest: sends back what it reads; counts it, and answers after the end; calls the host; stops.
const ECHO: u32 = 1000;
const COUNT: u32 = 1001;
const CALL: u32 = 1002;
const STOP: u32 = 1003;
/// Ports of the host: sends back what it reads; nobody listens.
const HOST_ECHO: u32 = 2000;
const HOST_NOBODY: u32 = 2001;

/// In the order in which they need each other.
const MODULES: [&str; 6] = [
    "virtio_ring.ko",
    "virtio.ko",
    "virtio_mmio.ko",
    "vsock.ko",
    "vmw_vsock_virtio_transport_common.ko",
    "vmw_vsock_virtio_transport.ko",
];

#[test]
fn a_guest_in_qemu_speaks_with_the_host() {
    let qemu = Command::new("qemu-system-x86_64").arg("--version").stdout(Stdio::null()).status();
    let found = match qemu {
        Ok(_) => Kernel::get().and_then(|kernel| Ok((initramfs(&kernel)?, kernel.image()?))),
        Err(_) => Err("qemu-system-x86_64 is not installed".into()),
    };
    let (initramfs, kernel) = match found {
        Ok(found) => found,
        Err(why) => return println!("SKIPPED: {why}"),
    };
    let dir = tempfile::tempdir().unwrap();
    let host = Host::start(&kernel, &initramfs, dir.path());
    let booted = Instant::now();
    assert_eq!(echo(&mut host.retry(ECHO), b"first".to_vec()), b"first");
    println!("first answer {:?} after QEMU's start", booted.elapsed());

    // A mebibyte comes back whole; several at a time do not mix.
    let start = Instant::now();
    assert!(echo(&mut host.connect(ECHO).unwrap(), pattern(1, 1 << 20)) == pattern(1, 1 << 20));
    println!("1 MiB there and back: {:?}", start.elapsed());
    thread::scope(|scope| {
        for seed in 0..8 {
            let host = &host;
            scope.spawn(move || {
                let data = pattern(seed, 200_000 + seed as usize);
                assert!(echo(&mut host.connect(ECHO).unwrap(), data.clone()) == data);
            });
        }
    });

    // The guest answers after it has seen the end of what the host sends.
    let mut stream = host.connect(COUNT).unwrap();
    stream.write_all(&pattern(3, 300_000)).unwrap();
    stream.shutdown(Shutdown::Write).unwrap();
    let mut answer = String::new();
    stream.read_to_string(&mut answer).unwrap();
    assert_eq!(answer, "300000");

    // Nobody listens on that port of the guest.
    assert!(host.connect(77).is_err());

    // A virtual machine that was paused goes on with the connections that it had.
    let mut stream = host.connect(ECHO).unwrap();
    stream.write_all(b"before").unwrap();
    let mut back = [0; 6];
    stream.read_exact(&mut back).unwrap();
    host.pause_and_continue();
    assert_eq!(echo(&mut stream, pattern(5, 100_000)), pattern(5, 100_000));

    // The guest calls the host.
    let listener = UnixListener::bind(host.path(HOST_ECHO)).unwrap();
    let echoing = thread::spawn(move || {
        let (stream, _) = listener.accept().unwrap();
        send_back(&stream);
    });
    let mut report = String::new();
    host.connect(CALL).unwrap().read_to_string(&mut report).unwrap();
    assert_eq!(report, "1048576 bytes, same: true; nobody: Connection reset by peer (os error 104)");
    echoing.join().unwrap();

    host.stop();
}

/// Not a test: what runs as the first process of the guest.
#[test]
#[ignore = "runs inside the virtual machine"]
fn guest() {
    if std::process::id() == 1 {
        guest::run();
    }
}

/// The host's side.
struct Host {
    dir: PathBuf,
    qemu: Child,
    service: Option<thread::JoinHandle<Result<(), ServeError>>>,
}

impl Host {
    fn start(kernel: &Path, initramfs: &[u8], dir: &Path) -> Self {
        let initrd = dir.join("initrd");
        fs::write(&initrd, initramfs).unwrap();
        let socket = dir.join("vhost.sock");
        let listener = UnixListener::bind(&socket).unwrap();
        let hosts = UnixListener::bind(dir.join("vsock")).unwrap();
        let vsock = Vsock::new(CID, hosts, dir.join("vsock")).unwrap();
        let service = Some(thread::spawn(move || serve(&listener, Box::new(vsock))));
        let qemu = Command::new("qemu-system-x86_64")
            .args(["-M", "microvm,acpi=on,ioapic2=off,memory-backend=mem", "-accel", "tcg", "-cpu", "max"])
            .args(["-m", "256M", "-object", "memory-backend-memfd,id=mem,size=256M,share=on"])
            .args(["-global", "virtio-mmio.force-legacy=false"])
            .args(["-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio"])
            .args(["-chardev", &format!("socket,id=vsock,path={}", socket.display())])
            .args(["-device", "vhost-user-vsock-device,chardev=vsock"])
            .args(["-qmp", &format!("unix:{},server=on,wait=off", dir.join("qmp").display())])
            .arg("-kernel")
            .arg(kernel)
            .arg("-initrd")
            .arg(&initrd)
            .args(["-append", &format!("{} -- guest --exact --ignored --nocapture", kernel_arguments())])
            .stdin(Stdio::null())
            .spawn()
            .unwrap();
        Self { dir: dir.into(), qemu, service }
    }

    /// Where the host listens for a port.
    fn path(&self, port: u32) -> PathBuf {
        self.dir.join(format!("vsock_{port}"))
    }

    /// To a port of the guest.
    fn connect(&self, port: u32) -> io::Result<UnixStream> {
        let mut stream = UnixStream::connect(self.dir.join("vsock"))?;
        stream.set_read_timeout(Some(Duration::from_secs(60)))?;
        stream.set_write_timeout(Some(Duration::from_secs(60)))?;
        stream.write_all(format!("CONNECT {port}\n").as_bytes())?;
        let mut line = Vec::new();
        let mut byte = [0];
        while byte != *b"\n" {
            stream.read_exact(&mut byte)?;
            line.extend(byte);
        }
        assert!(line.starts_with(b"OK "), "{line:?}");
        Ok(stream)
    }

    /// While the guest boots it refuses.
    fn retry(&self, port: u32) -> UnixStream {
        let end = Instant::now() + Duration::from_secs(120);
        loop {
            match self.connect(port) {
                Ok(stream) => return stream,
                Err(e) => {
                    assert!(!self.service.as_ref().is_some_and(|s| s.is_finished()), "the service ended");
                    assert!(Instant::now() < end, "the guest does not answer: {e}");
                }
            }
            thread::sleep(Duration::from_millis(20));
        }
    }

    /// By QEMU's monitor.
    fn pause_and_continue(&self) {
        let mut monitor = UnixStream::connect(self.dir.join("qmp")).unwrap();
        let mut answers = BufReader::new(monitor.try_clone().unwrap()).lines();
        for command in ["qmp_capabilities", "stop", "cont"] {
            writeln!(monitor, "{{\"execute\": \"{command}\"}}").unwrap();
            assert!(answers.any(|line| line.unwrap().contains("\"return\"")), "{command}");
        }
    }

    /// The guest powers off, QEMU ends, and so does the service.
    fn stop(mut self) {
        drop(self.connect(STOP));
        let end = Instant::now() + Duration::from_secs(60);
        while self.qemu.try_wait().unwrap().is_none() {
            assert!(Instant::now() < end, "the guest's restart does not end its machine");
            thread::sleep(Duration::from_millis(20));
        }
        let service = self.service.take().unwrap();
        service.join().unwrap().unwrap();
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// Without KVM the guest's TSC is the host's. The kernel would measure it against the PIT and, on a busy host, hang. To
/// restart, it would jump to where a BIOS is entered, which does not end the machine; a triple fault does.
fn kernel_arguments() -> String {
    // SAFETY: reads a counter.
    let cycles = || unsafe { std::arch::x86_64::_rdtsc() };
    let (start, before) = (Instant::now(), cycles());
    thread::sleep(Duration::from_millis(20));
    let khz = u128::from(cycles() - before) * 1_000_000 / start.elapsed().as_nanos();
    format!("console=ttyS0 quiet panic=-1 reboot=t rdinit=/init no_timer_check tsc_early_khz={khz}")
}

/// Writes, and reads at the same time until the end.
fn echo(stream: &mut UnixStream, data: Vec<u8>) -> Vec<u8> {
    let mut writer = stream.try_clone().unwrap();
    let writing = thread::spawn(move || {
        writer.write_all(&data).unwrap();
        writer.shutdown(Shutdown::Write).unwrap();
    });
    let mut back = Vec::new();
    stream.read_to_end(&mut back).unwrap();
    writing.join().unwrap();
    back
}

/// Sends back what comes, until its end.
fn send_back(mut stream: &UnixStream) {
    let mut buffer = vec![0; 50_000];
    loop {
        match stream.read(&mut buffer) {
            Ok(0) | Err(_) => break,
            Ok(n) => stream.write_all(&buffer[..n]).unwrap(),
        }
    }
    let _ = stream.shutdown(Shutdown::Write);
}

/// Bytes that tell when they are lost or mixed up.
fn pattern(seed: u64, length: usize) -> Vec<u8> {
    let mut state = seed.wrapping_add(1).wrapping_mul(0x9E37_79B9_7F4A_7C15);
    (0..length)
        .map(|_| {
            state ^= state << 13;
            state ^= state >> 7;
            state ^= state << 17;
            state as u8
        })
        .collect()
}

fn initramfs(kernel: &Kernel) -> Result<Vec<u8>, String> {
    let init = fs::read("/proc/self/exe").map_err(|e| e.to_string())?;
    let mut files = vec![("init", PROGRAM, init)];
    for name in MODULES {
        files.push((name, PROGRAM, kernel.module(name)?));
    }
    Ok(cpio(&files))
}

/// What runs in the guest.
mod guest {
    use super::*;

    /// Never returns.
    pub fn run() -> ! {
        for name in MODULES {
            let module = fs::File::open(format!("/{name}")).unwrap();
            rustix::system::finit_module(&module, c"", 0).unwrap();
        }
        thread::scope(|scope| {
            scope.spawn(|| serve(ECHO, |stream| send_back(&stream)));
            scope.spawn(|| serve(COUNT, count));
            scope.spawn(|| serve(CALL, call));
            scope.spawn(|| {
                serve(STOP, |_| rustix::system::reboot(rustix::system::RebootCommand::Restart).unwrap())
            });
        });
        unreachable!()
    }

    fn count(mut stream: UnixStream) {
        let read = io::copy(&mut stream, &mut io::sink()).unwrap();
        write!(stream, "{read}").unwrap();
    }

    fn call(mut stream: UnixStream) {
        let mut other = connect(HOST_ECHO).unwrap();
        let back = echo(&mut other, pattern(9, 1 << 20));
        let same = back == pattern(9, 1 << 20);
        let nobody = connect(HOST_NOBODY).unwrap_err();
        write!(stream, "{} bytes, same: {same}; nobody: {nobody}", back.len()).unwrap();
    }

    fn address(cid: u32, port: u32) -> libc::sockaddr_vm {
        // SAFETY: all zeros are a value of this structure of numbers.
        let mut address: libc::sockaddr_vm = unsafe { std::mem::zeroed() };
        address.svm_family = libc::AF_VSOCK as u16;
        address.svm_cid = cid;
        address.svm_port = port;
        address
    }

    fn socket() -> OwnedFd {
        // SAFETY: no pointers; the descriptor is ours.
        unsafe { OwnedFd::from_raw_fd(libc::socket(libc::AF_VSOCK, libc::SOCK_STREAM, 0)) }
    }

    fn connect(port: u32) -> io::Result<UnixStream> {
        use std::os::fd::AsRawFd;
        let (socket, address) = (socket(), address(libc::VMADDR_CID_HOST, port));
        // SAFETY: the address is valid for its size.
        let result = unsafe {
            libc::connect(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32)
        };
        if result == 0 { Ok(socket.into()) } else { Err(io::Error::last_os_error()) }
    }

    fn serve(port: u32, answer: impl Fn(UnixStream) + Copy + Send) {
        use std::os::fd::AsRawFd;
        let (socket, address) = (socket(), address(libc::VMADDR_CID_ANY, port));
        // SAFETY: the address is valid for its size.
        unsafe {
            assert_eq!(
                libc::bind(socket.as_raw_fd(), (&raw const address).cast(), size_of_val(&address) as u32),
                0
            );
            assert_eq!(libc::listen(socket.as_raw_fd(), 16), 0);
        }
        thread::scope(|scope| {
            loop {
                // SAFETY: no address is asked for; the descriptor is ours.
                let fd =
                    unsafe { libc::accept(socket.as_raw_fd(), std::ptr::null_mut(), std::ptr::null_mut()) };
                assert!(fd >= 0, "{}", io::Error::last_os_error());
                // SAFETY: as above.
                let stream = UnixStream::from(unsafe { OwnedFd::from_raw_fd(fd) });
                scope.spawn(move || answer(stream));
            }
        });
    }
}
