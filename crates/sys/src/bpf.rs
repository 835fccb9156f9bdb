//! The `bpf(2)` calls that device rules on cgroup v2 need: load a `BPF_PROG_TYPE_CGROUP_DEVICE` program, attach it
//! to a group, replace it, list and detach what is attached. And those for a program that sees what comes in by a network
//! interface, with a table that it looks things up in. Knows nothing of what a program means.

use std::io;
use std::os::fd::{AsFd, AsRawFd, BorrowedFd, FromRawFd, OwnedFd};

const BPF_MAP_CREATE: libc::c_int = 0;
const BPF_MAP_UPDATE_ELEM: libc::c_int = 2;
const BPF_MAP_DELETE_ELEM: libc::c_int = 3;
const BPF_PROG_LOAD: libc::c_int = 5;
const BPF_PROG_ATTACH: libc::c_int = 8;
const BPF_PROG_DETACH: libc::c_int = 9;
const BPF_PROG_GET_FD_BY_ID: libc::c_int = 13;
const BPF_PROG_QUERY: libc::c_int = 16;
const BPF_LINK_CREATE: libc::c_int = 28;

const BPF_MAP_TYPE_HASH: u32 = 1;
const BPF_F_NO_PREALLOC: u32 = 1;
const BPF_PROG_TYPE_SCHED_CLS: u32 = 3;
const BPF_PROG_TYPE_CGROUP_DEVICE: u32 = 15;
const BPF_TCX_INGRESS: u32 = 46;
const BPF_CGROUP_DEVICE: u32 = 6;
const BPF_F_ALLOW_MULTI: u32 = 2;

/// One eBPF instruction (`struct bpf_insn`).
#[repr(C)]
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Insn {
    /// Operation.
    pub code: u8,
    /// Destination register in the low, source register in the high four bits.
    pub regs: u8,
    /// Offset of a jump or of memory.
    pub off: i16,
    /// Constant.
    pub imm: i32,
}

impl Insn {
    /// An instruction.
    pub const fn new(code: u8, dst: u8, src: u8, off: i16, imm: i32) -> Self {
        // The order of the two halves is that of a little-endian bit field; big-endian kernels have the other.
        let regs = if cfg!(target_endian = "little") { src << 4 | dst } else { dst << 4 | src };
        Self { code, regs, off, imm }
    }
}

/// The start of `union bpf_attr` for `BPF_PROG_LOAD`.
#[repr(C)]
#[derive(Default)]
struct LoadAttr {
    prog_type: u32,
    insn_cnt: u32,
    insns: u64,
    license: u64,
    log_level: u32,
    log_size: u32,
    log_buf: u64,
    kern_version: u32,
    prog_flags: u32,
}

/// For `BPF_PROG_ATTACH` and `BPF_PROG_DETACH`.
#[repr(C)]
#[derive(Default)]
struct AttachAttr {
    target_fd: u32,
    attach_bpf_fd: u32,
    attach_type: u32,
    attach_flags: u32,
    replace_bpf_fd: u32,
}

/// For `BPF_PROG_QUERY`.
#[repr(C)]
#[derive(Default)]
struct QueryAttr {
    target_fd: u32,
    attach_type: u32,
    query_flags: u32,
    attach_flags: u32,
    prog_ids: u64,
    prog_cnt: u32,
    padding: u32,
}

/// For `BPF_PROG_GET_FD_BY_ID`.
#[repr(C)]
#[derive(Default)]
struct IdAttr {
    id: u32,
    next_id: u32,
    open_flags: u32,
}

/// For `BPF_MAP_CREATE`.
#[repr(C)]
#[derive(Default)]
struct MapAttr {
    map_type: u32,
    key_size: u32,
    value_size: u32,
    max_entries: u32,
    map_flags: u32,
}

/// For `BPF_MAP_UPDATE_ELEM` and `BPF_MAP_DELETE_ELEM`.
#[repr(C)]
#[derive(Default)]
struct ElementAttr {
    map_fd: u32,
    padding: u32,
    key: u64,
    value: u64,
    flags: u64,
}

/// For `BPF_LINK_CREATE`, of an interface.
#[repr(C)]
#[derive(Default)]
struct LinkAttr {
    prog_fd: u32,
    target_ifindex: u32,
    attach_type: u32,
    flags: u32,
    relative_fd: u32,
    padding: u32,
    expected_revision: u64,
}

/// # Safety
/// `T` must be the kernel's layout for `command`, and each pointer in it valid for what the command does with it.
unsafe fn bpf<T>(command: libc::c_int, attr: &mut T) -> io::Result<libc::c_long> {
    loop {
        // SAFETY: the attribute is valid for its size; its contents are the caller's promise.
        let done = unsafe { libc::syscall(libc::SYS_bpf, command, std::ptr::from_mut(attr), size_of::<T>()) };
        if done >= 0 {
            return Ok(done);
        }
        match io::Error::last_os_error() {
            // The verifier was interrupted by a signal.
            e if e.raw_os_error() == Some(libc::EAGAIN) || e.raw_os_error() == Some(libc::EINTR) => continue,
            e => return Err(e),
        }
    }
}

fn raw(fd: impl AsFd) -> u32 {
    // A valid descriptor is never negative.
    fd.as_fd().as_raw_fd() as u32
}

/// Loads a program that decides about devices.
pub fn load_device_program(program: &[Insn]) -> io::Result<OwnedFd> {
    load(BPF_PROG_TYPE_CGROUP_DEVICE, program)
}

/// Loads a program that sees packets, and may change them.
pub fn load_packet_program(program: &[Insn]) -> io::Result<OwnedFd> {
    load(BPF_PROG_TYPE_SCHED_CLS, program)
}

fn load(kind: u32, program: &[Insn]) -> io::Result<OwnedFd> {
    let mut attr = LoadAttr {
        prog_type: kind,
        insn_cnt: u32::try_from(program.len()).map_err(|_| io::ErrorKind::InvalidInput)?,
        insns: program.as_ptr() as u64,
        license: c"Apache".as_ptr() as u64,
        ..LoadAttr::default()
    };
    // SAFETY: the layout is that of BPF_PROG_LOAD; the instructions and the licence outlive the call.
    let fd = unsafe { bpf(BPF_PROG_LOAD, &mut attr) }?;
    // SAFETY: the kernel answered with a new descriptor, which nobody else owns; it has CLOEXEC.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// Has a program see all packets that come in by an interface of the calling thread's network namespace, before any protocol
/// does (Linux 6.6, "tcx"). It is let go when the descriptor is closed.
pub fn attach_to_ingress(interface: u32, program: impl AsFd) -> io::Result<OwnedFd> {
    let mut attr = LinkAttr {
        prog_fd: raw(program),
        target_ifindex: interface,
        attach_type: BPF_TCX_INGRESS,
        ..LinkAttr::default()
    };
    // SAFETY: the layout is that of BPF_LINK_CREATE for an interface, which has no pointers.
    let fd = unsafe { bpf(BPF_LINK_CREATE, &mut attr) }?;
    // SAFETY: the kernel answered with a new descriptor, which nobody else owns; it has CLOEXEC.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

/// A table for programs: values of one size by keys of one size.
#[derive(Debug)]
pub struct Map<const KEY: usize, const VALUE: usize>(OwnedFd);

impl<const KEY: usize, const VALUE: usize> Map<KEY, VALUE> {
    /// An empty one, of at most so many entries, which take memory when they are there.
    pub fn new(most: u32) -> io::Result<Self> {
        let size = |n| u32::try_from(n).map_err(|_| io::ErrorKind::InvalidInput);
        let mut attr = MapAttr {
            map_type: BPF_MAP_TYPE_HASH,
            key_size: size(KEY)?,
            value_size: size(VALUE)?,
            max_entries: most,
            map_flags: BPF_F_NO_PREALLOC,
        };
        // SAFETY: the layout is that of BPF_MAP_CREATE, which has no pointers.
        let fd = unsafe { bpf(BPF_MAP_CREATE, &mut attr) }?;
        // SAFETY: the kernel answered with a new descriptor, which nobody else owns; it has CLOEXEC.
        Ok(Self(unsafe { OwnedFd::from_raw_fd(fd as i32) }))
    }

    /// Puts a value there, in the place of another.
    pub fn insert(&self, key: &[u8; KEY], value: &[u8; VALUE]) -> io::Result<()> {
        let mut attr = ElementAttr {
            map_fd: raw(&self.0),
            key: key.as_ptr() as u64,
            value: value.as_ptr() as u64,
            ..ElementAttr::default()
        };
        // SAFETY: the layout is that of BPF_MAP_UPDATE_ELEM; key and value have the map's sizes and outlive the call.
        unsafe { bpf(BPF_MAP_UPDATE_ELEM, &mut attr) }.map(drop)
    }

    /// Takes a value away.
    pub fn remove(&self, key: &[u8; KEY]) -> io::Result<()> {
        let mut attr =
            ElementAttr { map_fd: raw(&self.0), key: key.as_ptr() as u64, ..ElementAttr::default() };
        // SAFETY: the layout is that of BPF_MAP_DELETE_ELEM; the key has the map's size and outlives the call.
        unsafe { bpf(BPF_MAP_DELETE_ELEM, &mut attr) }.map(drop)
    }
}

impl<const KEY: usize, const VALUE: usize> AsFd for Map<KEY, VALUE> {
    fn as_fd(&self) -> BorrowedFd<'_> {
        self.0.as_fd()
    }
}

/// Attaches a device program to a cgroup, beside those that are attached.
pub fn attach_device_program(cgroup: impl AsFd, program: impl AsFd) -> io::Result<()> {
    let mut attr = AttachAttr {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: BPF_CGROUP_DEVICE,
        attach_flags: BPF_F_ALLOW_MULTI,
        replace_bpf_fd: 0,
    };
    // SAFETY: the layout is that of BPF_PROG_ATTACH, which has no pointers.
    unsafe { bpf(BPF_PROG_ATTACH, &mut attr) }.map(drop)
}

/// Detaches a device program from a cgroup.
pub fn detach_device_program(cgroup: impl AsFd, program: BorrowedFd<'_>) -> io::Result<()> {
    let mut attr = AttachAttr {
        target_fd: raw(cgroup),
        attach_bpf_fd: raw(program),
        attach_type: BPF_CGROUP_DEVICE,
        ..AttachAttr::default()
    };
    // SAFETY: the layout is that of BPF_PROG_DETACH, which has no pointers.
    unsafe { bpf(BPF_PROG_DETACH, &mut attr) }.map(drop)
}

/// The device programs that are attached to this very cgroup.
pub fn device_programs(cgroup: impl AsFd) -> io::Result<Vec<OwnedFd>> {
    let mut ids = [0u32; 64];
    let mut attr = QueryAttr {
        target_fd: raw(cgroup),
        attach_type: BPF_CGROUP_DEVICE,
        prog_ids: ids.as_mut_ptr() as u64,
        prog_cnt: ids.len() as u32,
        ..QueryAttr::default()
    };
    // SAFETY: the layout is that of BPF_PROG_QUERY, and `prog_ids` has room for `prog_cnt` numbers.
    unsafe { bpf(BPF_PROG_QUERY, &mut attr) }?;
    let count = attr.prog_cnt as usize;
    let mut out = Vec::new();
    for id in ids.into_iter().take(count) {
        let mut attr = IdAttr { id, ..IdAttr::default() };
        // SAFETY: the layout is that of BPF_PROG_GET_FD_BY_ID, which has no pointers.
        let fd = unsafe { bpf(BPF_PROG_GET_FD_BY_ID, &mut attr) }?;
        // SAFETY: the kernel answered with a new descriptor, which nobody else owns; it has CLOEXEC.
        out.push(unsafe { OwnedFd::from_raw_fd(fd as i32) });
    }
    Ok(out)
}
