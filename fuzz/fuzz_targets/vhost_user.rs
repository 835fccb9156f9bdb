//! What a front end that the guest has taken over can send to the virtual socket beside QEMU: messages of vhost-user
//! with any content and any descriptors, mixed with ones that are right.
#![no_main]

mod queues;

use libfuzzer_sys::fuzz_target;
use queues::{Driver, Input, crooked};
use std::fs::File;
use std::net::Shutdown;
use std::os::fd::{AsRawFd, RawFd};
use std::os::unix::fs::FileExt;
use std::os::unix::net::{UnixListener, UnixStream};
use std::sync::LazyLock;
use vmm::devices::testing::SMALL_MEMORY;
use vmm::devices::vsock::Vsock;
use vmm::vhost::serve;
use vmm_sys_util::eventfd::{EFD_NONBLOCK, EventFd};
use vmm_sys_util::sock_ctrl_msg::ScmSocket;

/// Messages of the front end that carry a number, or nothing (vhost-user.rst).
const GET_FEATURES: u32 = 1;
const SET_FEATURES: u32 = 2;
const SET_OWNER: u32 = 3;
const SET_MEM_TABLE: u32 = 5;
const SET_VRING_NUM: u32 = 8;
const SET_VRING_ADDR: u32 = 9;
const SET_VRING_BASE: u32 = 10;
const SET_VRING_KICK: u32 = 12;
const SET_VRING_CALL: u32 = 13;
const SET_PROTOCOL_FEATURES: u32 = 16;
const SET_VRING_ENABLE: u32 = 18;

/// Where QEMU has the guest's memory, as it says.
const BASE: u64 = 0x7f00_0000_0000;

/// What a descriptor may be: the guest's memory, and things that are none.
struct Files {
    memory: File,
    short: File,
    directory: File,
    event: EventFd,
}

static FILES: LazyLock<Files> = LazyLock::new(|| Files {
    memory: tempfile::tempfile().unwrap(),
    short: tempfile::tempfile().unwrap(),
    directory: File::open("/proc").unwrap(),
    event: EventFd::new(EFD_NONBLOCK).unwrap(),
});

fn descriptor(choice: u8) -> RawFd {
    match choice % 4 {
        0 => FILES.event.as_raw_fd(),
        1 => FILES.memory.as_raw_fd(),
        2 => FILES.short.as_raw_fd(),
        _ => FILES.directory.as_raw_fd(),
    }
}

fn send(to: &UnixStream, request: u32, flags: u32, payload: &[u8], fds: &[RawFd]) {
    let length = payload.len() as u32;
    let header = [request, flags, length].map(u32::to_le_bytes).concat();
    // A socket that is full loses the rest of what the fuzzer says.
    let _ = to.send_with_fds(&[&header[..], payload], fds);
}

fn numbers(numbers: &[u64]) -> Vec<u8> {
    numbers.iter().flat_map(|n| n.to_le_bytes()).collect()
}

/// A number for a queue.
fn state(index: u32, number: u32) -> Vec<u8> {
    [index, number].map(u32::to_le_bytes).concat()
}

/// All that a good front end says before its driver runs.
fn set_up(to: &UnixStream, input: &mut Input) {
    let memory = FILES.memory.as_raw_fd();
    send(to, SET_OWNER, 1, &[], &[]);
    send(to, GET_FEATURES, 1, &[], &[]);
    send(to, SET_FEATURES, 1, &numbers(&[1 << 32 | 1 << 30]), &[]);
    send(to, SET_PROTOCOL_FEATURES, 1, &numbers(&[1 << 9 | 1]), &[]);
    let region = [1_u64, 0, SMALL_MEMORY as u64, BASE, 0];
    send(to, SET_MEM_TABLE, 1, &numbers(&region), &[memory]);
    let driver = Driver::small(2);
    for (index, rings) in (0..).zip(driver.rings()) {
        let [descriptors, available, used] = rings.map(|at| BASE + at);
        send(to, SET_VRING_NUM, 1, &state(index, u32::from(driver.size())), &[]);
        send(to, SET_VRING_BASE, 1, &state(index, u32::from(input.byte() % 4)), &[]);
        send(to, SET_VRING_ADDR, 1, &numbers(&[u64::from(index), descriptors, used, available, 0]), &[]);
        let event = FILES.event.as_raw_fd();
        send(to, SET_VRING_CALL, 1, &numbers(&[u64::from(index)]), &[event]);
        send(to, SET_VRING_KICK, 1, &numbers(&[u64::from(index)]), &[event]);
        send(to, SET_VRING_ENABLE, 1, &state(index, 1), &[]);
    }
}

fuzz_target!(|data: &[u8]| {
    let mut input = Input(data);
    FILES.memory.set_len(0).unwrap();
    FILES.memory.set_len(SMALL_MEMORY as u64).unwrap();
    FILES.short.set_len(0x1000).unwrap();
    let dir = tempfile::tempdir().unwrap();
    let qemu = UnixListener::bind(dir.path().join("q")).unwrap();
    let front = UnixStream::connect(dir.path().join("q")).unwrap();
    front.set_nonblocking(true).unwrap();
    // The queues hold what the fuzzer puts there before.
    let commands = input.byte() % 8;
    if commands > 0 {
        let mut driver = Driver::small(2);
        (0..commands).for_each(|_| crooked(&mut driver, &mut input));
        FILES.memory.write_all_at(&driver.read(0, SMALL_MEMORY), 0).unwrap();
    }
    while !input.0.is_empty() {
        match input.byte() % 4 {
            0 => set_up(&front, &mut input),
            1 | 2 => {
                let request = u32::from(input.byte() % 46);
                let flags = if input.byte() == 0xff { u32::from(input.byte()) } else { 1 };
                let mut payload = vec![0; usize::from(input.byte() % 72)];
                payload.iter_mut().for_each(|byte| *byte = input.byte());
                let count = usize::from(input.byte() % 4);
                let fds: Vec<RawFd> = (0..count).map(|_| descriptor(input.byte())).collect();
                send(&front, request, flags, &payload, &fds);
            }
            _ => {
                // A message about a queue whose content is nearly right.
                let request = [8, 9, 10, 11, 12, 13, 14, 18][usize::from(input.byte() % 8)];
                let (index, value) = (u32::from(input.byte() % 3), u32::from(input.half() % 0x500));
                match request {
                    SET_VRING_ADDR => {
                        let at = || BASE + u64::from(value) * 16;
                        send(&front, request, 1, &numbers(&[u64::from(index), at(), at(), at(), 0]), &[]);
                    }
                    12..=14 => {
                        let fd = descriptor(input.byte());
                        let none = u64::from(input.byte() == 0xff) << 8;
                        let fds = if none == 0 { vec![fd] } else { vec![] };
                        send(&front, request, 1, &numbers(&[u64::from(index) | none]), &fds);
                    }
                    _ => send(&front, request, 1, &state(index, value), &[]),
                }
            }
        }
    }
    let _ = FILES.event.write(1);
    front.shutdown(Shutdown::Write).unwrap();
    let hosts = UnixListener::bind(dir.path().join("v")).unwrap();
    let vsock = Vsock::new(3, hosts, dir.path().join("v")).unwrap();
    if let Err(e) = serve(&qemu, Box::new(vsock)) {
        assert!(!e.to_string().is_empty());
    }
    let _ = FILES.event.read();
});
